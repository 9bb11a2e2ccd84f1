//! ReverseSequence.

use super::super::{Coupling, Fact, Keeps, Operator, Spec, Vjp, broadcast, elements::rearrange, float};
use super::first;
use crate::error::{Error, Result};
use crate::ops;
use crate::tensor::{DType, Value};
use candle_core::Tensor as Float;
use std::sync::Arc;

/// Claim of ReverseSequence.
pub(super) const SPEC: Spec = Spec::new("ReverseSequence", 10, DType::ALL, |a, _| {
    let (batch, time) = (a.int("batch_axis", 1)?, a.int("time_axis", 0)?);
    match (batch, time) {
        (1, 0) | (0, 1) => Ok(Arc::new(ReverseSequence { batch: batch as usize })),
        _ => Err(Error::invalid("ATTR-RANGE", "batch and time axis must be 0 and 1 in either order")),
    }
});

/// The first `lengths[b]` elements of each sequence reversed.
#[derive(Debug)]
struct ReverseSequence {
    batch: usize,
}

impl ReverseSequence {
    /// The first `lengths[b]` entries of item `b` from last to first, the others as they are. Doing so
    /// twice changes nothing.
    fn reversed(&self, x: &Value, lengths: &[i64]) -> Result<Value> {
        let shape = x.shape();
        let (batch, time) = (shape[self.batch], shape[1 - self.batch]);
        if lengths.len() != batch || lengths.iter().any(|n| *n < 0 || *n > time as i64) {
            return Err(Error::invalid("OP-SEQUENCE", "lengths must be one an item, at most the time axis")
                .field("input[1]")
                .found(format!("{} lengths", lengths.len()))
                .limit(format!("{batch} lengths up to {time}")));
        }
        let inner: usize = shape[2..].iter().product();
        rearrange!(&[x], shape, v => {
            let mut out = Vec::with_capacity(v[0].len());
            for i in 0..shape[0] {
                for j in 0..shape[1] {
                    let (b, t) = if self.batch == 0 { (i, j) } else { (j, i) };
                    let n = lengths[b] as usize;
                    let from = if t < n { n - 1 - t } else { t };
                    let at = if self.batch == 0 { b * shape[1] + from } else { from * shape[1] + b };
                    out.extend_from_slice(&v[0][at * inner..(at + 1) * inner]);
                }
            }
            Ok::<_, Error>(out)
        })
    }
}

impl Operator for ReverseSequence {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = ops::input(inputs, 0)?;
        ops::input(inputs, 1)?;
        match x.rank() {
            Some(0 | 1) => Err(Error::invalid("OP-RANK", "batch and time axes are needed")),
            _ => Ok(vec![x.without_value()]),
        }
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        float::shapes(self, inputs)?;
        let (x, lengths) = (ops::input(inputs, 0)?, ops::input(inputs, 1)?.ints()?);
        Ok(vec![self.reversed(x, &lengths)?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        first(v, |g| {
            let lengths = ops::input(v.inputs, 1)?.ints()?;
            Ok(self.reversed(&Value::from(g.clone()), &lengths)?.float()?.clone())
        })
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling = broadcast::couple(&inputs[..1], &outputs[0]);
        coupling.links.retain(|l| l.a.1 >= 2);
        coupling
    }
}
