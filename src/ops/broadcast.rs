//! Multidirectional broadcasting: shapes, sums of gradients back to the smaller shape, coupling.

use super::{Coupling, Dim, Fact, Port};
use crate::error::{Error, Result};
use candle_core::Tensor as Float;

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
    let summed = if axes.is_empty() { grad.clone() } else { grad.sum_keepdim(axes)? };
    Ok(summed.reshape(shape)?)
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
