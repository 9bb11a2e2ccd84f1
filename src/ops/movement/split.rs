//! Split.

use super::super::{
    Attr, Coupling, Cut, Dim, Fact, Keeps, Operator, Pattern, Port, Rewrite, Spec, Vjp, float,
};
use super::{identity, picked};
use crate::error::{Error, Result};
use crate::ops;
use crate::tensor::{DType, Tensor, Value};
use candle_core::Tensor as Float;
use std::sync::Arc;

/// Claim of Split.
pub(super) const SPEC: Spec = Spec::new("Split", 2, DType::ALL, |a, v| {
    Ok(Arc::new(Split {
        axis: a.int("axis", 0)?,
        sizes: if v < 13 { a.ints("split")? } else { None },
        parts: if v >= 18 { a.opt_int("num_outputs")? } else { None },
        from_input: v >= 13,
        outputs: a.outputs(),
    }))
});

/// Parts along an axis: of given sizes, or equal with a smaller last one.
#[derive(Debug)]
struct Split {
    axis: i64,
    sizes: Option<Vec<i64>>,
    parts: Option<i64>,
    from_input: bool,
    /// Number of outputs of the node.
    outputs: Option<usize>,
}

/// Most outputs that a split is trusted to have.
const MAX_PARTS: i64 = 1 << 16;

impl Split {
    /// Sizes where given; else `None` for equal parts.
    fn given(&self, inputs: &[Option<&Fact>]) -> Result<Option<Option<Vec<Dim>>>> {
        match inputs.get(1).copied().flatten().filter(|_| self.from_input) {
            Some(f) => Ok(Some(f.dims.clone())),
            None => Ok(self.sizes.as_ref().map(|v| Some(v.iter().map(|n| Dim::from(*n)).collect()))),
        }
    }

    fn sizes(&self, whole: &Dim, inputs: &[Option<&Fact>]) -> Result<Vec<Dim>> {
        if let Some(given) = self.given(inputs)? {
            let Some(sizes) = given else {
                let n = inputs[1].and_then(|f| f.shape.as_ref()).and_then(|s| s.first()).and_then(Dim::size);
                return Ok((0..n.or(self.outputs).unwrap_or(0).min(MAX_PARTS as usize))
                    .map(|_| Dim::unknown())
                    .collect());
            };
            let sum = sizes.iter().fold(Dim::from(0i64), |s, d| s + d.clone());
            let negative = sizes.iter().any(|d| d.known().is_some_and(|n| n < 0));
            if negative || matches!((sum.known(), whole.known()), (Some(a), Some(b)) if a != b) {
                return Err(Error::invalid("OP-SPLIT", "the parts do not make up the axis")
                    .found(format!("{sizes:?}"))
                    .limit(whole));
            }
            return Ok(sizes);
        }
        let parts = self.parts.or(self.outputs.map(|n| n as i64)).unwrap_or(0);
        if !(1..=MAX_PARTS).contains(&parts) {
            return Err(Error::invalid("OP-SPLIT", "the number of parts is not known").found(parts));
        }
        let part = whole.ceil_div(&Dim::from(parts));
        let last = whole.clone() - part.clone() * Dim::from(parts - 1);
        if last.known().is_some_and(|n| n < 0) {
            return Err(Error::invalid("OP-SPLIT", "the axis is too short").found(whole).limit(parts));
        }
        // A symbolic size is taken to divide evenly.
        let last = if last.known().is_some() { last } else { part.clone() };
        Ok((0..parts).map(|i| if i + 1 == parts { last.clone() } else { part.clone() }).collect())
    }

    fn split(&self, inputs: &[Option<&Fact>]) -> Result<Option<(usize, Vec<Dim>)>> {
        let x = ops::input(inputs, 0)?;
        let Some(shape) = &x.shape else { return Ok(None) };
        let axis = ops::axis(self.axis, shape.len())?;
        Ok(Some((axis, self.sizes(&shape[axis], inputs)?)))
    }
}

impl Operator for Split {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = ops::input(inputs, 0)?;
        let Some((axis, sizes)) = self.split(inputs)? else { return Ok(vec![]) };
        let mut at = 0;
        Ok(sizes
            .into_iter()
            .map(|n| {
                let mut shape = x.shape.clone().unwrap_or_default();
                shape[axis] = n.clone();
                let range = n.size().map(|n| at..at + n);
                at += n.size().unwrap_or(0);
                match (&x.dims, range) {
                    (Some(d), Some(r)) if shape.len() == 1 && r.end <= d.len() => {
                        Fact::of_dims(x.dtype, d[r].to_vec(), false)
                    }
                    _ => Fact::new(x.dtype, shape),
                }
            })
            .collect())
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shapes = float::shapes(self, inputs)?;
        let x = ops::input(inputs, 0)?;
        let axis = ops::axis(self.axis, x.shape().len())?;
        let mut maps = identity(x.shape());
        let mut at = 0;
        shapes
            .into_iter()
            .map(|s| {
                maps[axis] = (at..at + s[axis]).collect();
                at += s[axis];
                picked(x, &maps, None)
            })
            .collect()
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let mut grads = vec![None; v.inputs.len()];
        let x = ops::input(v.inputs, 0)?;
        if !v.needs[0] || v.grads.iter().all(Option::is_none) {
            return Ok(grads);
        }
        let axis = ops::axis(self.axis, x.shape().len())?;
        let like = v.grads.iter().flatten().next().map_or(candle_core::DType::F32, |g| g.dtype());
        let mut parts = Vec::new();
        for (g, shape) in v.grads.iter().zip(float::shapes(self, v.inputs)?) {
            parts.push(match g {
                Some(g) => g.clone(),
                None => Float::zeros(shape, like, &candle_core::Device::Cpu)?,
            });
        }
        grads[0] = Some(Float::cat(&parts, axis)?.contiguous()?);
        Ok(grads)
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling = Coupling::default();
        let Ok(Some((along, sizes))) = self.split(inputs) else { return coupling };
        let mut at = Some(0);
        for (o, (output, n)) in outputs.iter().zip(sizes).enumerate() {
            for axis in (0..output.rank().unwrap_or(0)).filter(|a| *a != along) {
                coupling.same((Port::In(0), axis), (Port::Out(o), axis));
            }
            if let (Some(start), Some(n)) = (at, n.size()) {
                let units = (Pattern::from(start), Pattern::from(0));
                coupling.link((Port::In(0), along), units.0, (Port::Out(o), along), units.1, n);
            }
            at = at.zip(n.size()).map(|(a, n)| a + n);
        }
        coupling
    }
    fn resize(&self, inputs: &[Option<&Fact>], outputs: &[Fact], cut: &Cut) -> Result<Rewrite> {
        let Some((along, sizes)) = self.split(inputs)? else { return Ok(Rewrite::default()) };
        let kept = |o: usize| cut.of(Port::Out(o), along).map(|(_, kept)| kept.len() as i64);
        if (0..outputs.len()).all(|o| kept(o).is_none()) {
            return Ok(Rewrite::default());
        }
        let new: Option<Vec<i64>> =
            sizes.iter().enumerate().map(|(o, n)| kept(o).or_else(|| n.known())).collect();
        let Some(new) = new else { return Ok(Rewrite::default()) };
        if self.given(inputs)?.is_none() {
            // Equal parts stay equal parts: all but the last as long as the first, which no part exceeds.
            let total: i64 = new.iter().sum();
            let part = (total + new.len() as i64 - 1) / new.len() as i64;
            if new[..new.len() - 1].iter().all(|n| *n == part) {
                return Ok(Rewrite::default());
            }
        }
        Ok(if self.from_input {
            // Explicit sizes and a number of parts exclude each other.
            let remove = self.parts.map(|_| "num_outputs".to_string()).into_iter().collect();
            let inputs = vec![(1, Tensor::from_vec(vec![new.len()], new)?)];
            Rewrite { inputs, remove, ..Rewrite::default() }
        } else {
            Rewrite { attributes: vec![("split".into(), Attr::Ints(new))], ..Rewrite::default() }
        })
    }
}
