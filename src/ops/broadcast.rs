//! Multidirectional broadcasting: shapes, sums of gradients back to the smaller shape, coupling.

use super::float::{self, Float};
use super::{Coupling, Dim, Fact, Port};
use crate::error::{Error, Result};
use crate::kernels::reduce::{Split, Sum};
use crate::tensor::DType;

/// The common shape of symbolic shapes. A symbol against a number other than one takes the number.
pub fn symbolic(shapes: &[&[Dim]]) -> Result<Vec<Dim>> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![Dim::from(1i64); rank];
    for shape in shapes {
        let skip = rank - shape.len();
        for (o, d) in out[skip..].iter_mut().zip(shape.iter()) {
            match (o.known(), d.known()) {
                (Some(1), _) => *o = d.clone(),
                (_, Some(1)) => {}
                (Some(a), Some(b)) if a != b => {
                    return Err(Error::invalid("OP-BROADCAST", "shapes do not broadcast")
                        .found(format!("{shapes:?}")));
                }
                (None, Some(_)) => *o = d.clone(),
                _ => {}
            }
        }
    }
    Ok(out)
}

/// The common shape of facts, where all are ranked.
pub fn shape(inputs: &[Option<&Fact>]) -> Result<Option<Vec<Dim>>> {
    let shapes: Option<Vec<&[Dim]>> = inputs.iter().flatten().map(|f| f.shape.as_deref()).collect();
    shapes.map(|s| symbolic(&s)).transpose()
}

/// The fact of an element-wise result: of type `dtype`, on the common shape of the inputs.
pub fn fact(dtype: DType, inputs: &[Option<&Fact>]) -> Result<Fact> {
    Ok(shape(inputs)?.map_or_else(|| Fact::unranked(dtype), |s| Fact::new(dtype, s)))
}

/// The fact of an element-wise result with its content, where the inputs are integer vectors or scalars
/// whose content is known as dimensions. `f` gives one element, or `None` where it does not follow.
pub fn content(dtype: DType, inputs: &[Option<&Fact>], f: impl Fn(&[&Dim]) -> Option<Dim>) -> Result<Fact> {
    let fact = fact(dtype, inputs)?;
    let Some(rank @ (0 | 1)) = fact.rank() else { return Ok(fact) };
    let Some(parts) = inputs.iter().flatten().map(|f| dims(f)).collect::<Option<Vec<_>>>() else {
        return Ok(fact);
    };
    let n = parts.iter().map(Vec::len).find(|n| *n != 1).unwrap_or(1);
    if parts.iter().any(|p| p.len() != n && p.len() != 1) {
        return Ok(fact);
    }
    let element = |i: usize| -> Option<Dim> {
        let operands: Vec<&Dim> = parts.iter().map(|p| &p[if p.len() == 1 { 0 } else { i }]).collect();
        f(&operands)
    };
    let found: Vec<Option<Dim>> = (0..n).map(element).collect();
    let fits = |d: &Dim| d.known().is_none_or(|v| dtype != DType::I32 || i32::try_from(v).is_ok());
    if found.iter().all(Option::is_none) || !found.iter().flatten().all(fits) {
        return Ok(fact);
    }
    Ok(Fact::of_dims(dtype, found.into_iter().map(|d| d.unwrap_or_else(Dim::unknown)).collect(), rank == 0))
}

/// Content as dimensions, of types in which shapes are computed.
fn dims(f: &Fact) -> Option<Vec<Dim>> {
    match f.dtype {
        DType::I64 | DType::I32 => f.dims.clone(),
        DType::Bool => f.dims.clone().or_else(|| Some(f.ints()?.into_iter().map(Dim::from).collect())),
        _ => None,
    }
}

/// The common shape of fixed shapes.
pub fn fixed(shapes: &[&[usize]]) -> Result<Vec<usize>> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![1; rank];
    for shape in shapes {
        let skip = rank - shape.len();
        for (o, d) in out[skip..].iter_mut().zip(shape.iter()) {
            if *o == 1 {
                *o = *d;
            } else if *d != 1 && *d != *o {
                return Err(
                    Error::invalid("OP-BROADCAST", "shapes do not broadcast").found(format!("{shapes:?}"))
                );
            }
        }
    }
    Ok(out)
}

/// Sums a gradient over the axes along which an input of `shape` was broadcast.
pub fn sum_to(grad: &Float, shape: &[usize]) -> Result<Float> {
    if grad.dims() == shape {
        return Ok(grad.clone());
    }
    let skip = grad.rank() - shape.len();
    let axes: Vec<usize> =
        (0..grad.rank()).filter(|i| *i < skip || (shape[*i - skip] == 1 && grad.dims()[*i] != 1)).collect();
    float::real!(grad.dtype(), T => {
        let sums = Split::new(grad.dims(), &axes).fold(&float::elements::<T>(grad)?, Sum);
        float::tensor(sums, shape, grad.dtype())
    })
}

/// Ties every axis of every input to the axis of the output that it lies on. An axis of size one that
/// is broadcast stays out of the tie and need not shrink.
pub fn couple(inputs: &[Option<&Fact>], output: &Fact) -> Coupling {
    let mut coupling = Coupling::default();
    let Some(out) = &output.shape else { return coupling };
    for (i, input) in inputs.iter().enumerate() {
        let Some(shape) = input.and_then(|f| f.shape.as_ref()) else { continue };
        let skip = out.len() - shape.len();
        for (axis, d) in shape.iter().enumerate() {
            if d.is(1) && !out[axis + skip].is(1) {
                coupling.free.push((Port::In(i), axis));
            } else {
                coupling.same((Port::In(i), axis), (Port::Out(0), axis + skip));
            }
        }
    }
    coupling
}
