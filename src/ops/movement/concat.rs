//! Concat.

use super::super::{
    Coupling, Dim, Fact, Keeps, Operator, Pattern, Port, Spec, Vjp, elements, elements::rearrange, float,
};
use super::missing;
use crate::error::{Error, Result};
use crate::ops;
use crate::tensor::{DType, Value};
use candle_core::Tensor as Float;
use std::sync::Arc;

/// Claim of Concat.
pub(super) const SPEC: Spec = Spec::new("Concat", 4, DType::ALL, |a, _| {
    let axis = a.opt_int("axis")?;
    Ok(Arc::new(Concat { axis: axis.ok_or_else(|| missing("axis"))? }))
});

/// Inputs one after the other along an axis.
#[derive(Debug)]
struct Concat {
    axis: i64,
}

impl Operator for Concat {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let dtype = elements::common_type(inputs)?;
        let facts: Vec<&Fact> = inputs.iter().flatten().copied().collect();
        let Some(mut out) = facts.iter().find_map(|f| f.shape.clone()) else {
            return Ok(vec![Fact::unranked(dtype)]);
        };
        let axis = ops::axis(self.axis, out.len())?;
        out[axis] = Dim::from(0i64);
        for (i, f) in facts.iter().enumerate() {
            let Some(shape) = &f.shape else {
                out[axis] = Dim::unknown();
                break;
            };
            if shape.len() != out.len() {
                return Err(Error::invalid("OP-CONCAT", "inputs differ in rank")
                    .field(format!("input[{i}]"))
                    .found(shape.len())
                    .limit(out.len()));
            }
            for (a, d) in shape.iter().enumerate() {
                if a == axis {
                    out[a] = out[a].clone() + d.clone();
                    continue;
                }
                match (out[a].known(), d.known()) {
                    (Some(x), Some(y)) if x != y => {
                        return Err(Error::invalid("OP-CONCAT", format!("inputs differ in axis {a}"))
                            .field(format!("input[{i}]"))
                            .found(y)
                            .limit(x));
                    }
                    (None, Some(_)) => out[a] = d.clone(),
                    _ => {}
                }
            }
        }
        let content: Option<Vec<Dim>> = match out.len() {
            1 => facts.iter().map(|f| f.dims.clone()).collect::<Option<Vec<_>>>().map(|v| v.concat()),
            _ => None,
        };
        Ok(vec![content.map_or_else(|| Fact::new(dtype, out), |d| Fact::of_dims(dtype, d, false))])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.swap_remove(0);
        let axis = ops::axis(self.axis, shape.len())?;
        let values: Vec<&Value> = inputs.iter().flatten().copied().collect();
        let outer: usize = shape[..axis].iter().product();
        let inner: usize = shape[axis + 1..].iter().product();
        let widths: Vec<usize> = values.iter().map(|v| v.shape()[axis] * inner).collect();
        Ok(vec![rearrange!(&values, &shape, v => {
            let mut out = Vec::with_capacity(shape.iter().product());
            for o in 0..outer {
                for (v, w) in v.iter().zip(&widths) {
                    out.extend_from_slice(&v[o * w..(o + 1) * w]);
                }
            }
            Ok::<_, Error>(out)
        })?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let Some(g) = &v.grads[0] else { return Ok(vec![None; v.inputs.len()]) };
        let axis = ops::axis(self.axis, g.rank())?;
        let mut at = 0;
        v.inputs
            .iter()
            .zip(v.needs)
            .map(|(x, needed)| {
                let Some(x) = x else { return Ok(None) };
                let (from, n) = (at, x.shape()[axis]);
                at += n;
                Ok(if *needed { Some(g.narrow(axis, from, n)?.contiguous()?) } else { None })
            })
            .collect()
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling = Coupling::default();
        let rank = outputs[0].rank().unwrap_or(0);
        let Ok(along) = ops::axis(self.axis, rank) else { return coupling };
        let mut at = Some(0);
        for (i, input) in inputs.iter().enumerate() {
            let Some(input) = input else { continue };
            for axis in (0..rank).filter(|a| *a != along) {
                coupling.same((Port::In(i), axis), (Port::Out(0), axis));
            }
            let n = input.shape.as_ref().and_then(|s| s.get(along)).and_then(Dim::size);
            if let (Some(start), Some(n)) = (at, n) {
                let units = (Pattern::from(0), Pattern::from(start));
                coupling.link((Port::In(i), along), units.0, (Port::Out(0), along), units.1, n);
            }
            at = at.zip(n).map(|(a, n)| a + n);
        }
        coupling
    }
}
