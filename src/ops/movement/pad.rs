//! Pad.

use super::super::{Attributes, Coupling, Dim, Fact, Keeps, Operator, Pattern, Port, Spec, Vjp, float};
use super::{first, missing, picked, unpicked};
use crate::error::{Error, Result};
use crate::kernels::movement::FILL;
use crate::ops;
use crate::tensor::{DType, Tensor, Value};
use candle_core::Tensor as Float;
use std::sync::Arc;

/// Claim of Pad.
pub(super) const SPEC: Spec = Spec::new("Pad", 2, DType::ALL, Pad::parse);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PadMode {
    Constant,
    Reflect,
    Edge,
    Wrap,
}

/// Elements added (or, where negative, taken off) around axes.
#[derive(Debug)]
struct Pad {
    mode: PadMode,
    /// Attribute form: pads and value.
    given: Option<(Vec<i64>, f32)>,
}

impl Pad {
    fn parse(a: &Attributes, opset: i64) -> Result<Arc<dyn Operator>> {
        let mode = match a.str("mode", "constant")?.as_str() {
            "constant" => PadMode::Constant,
            "reflect" => PadMode::Reflect,
            "edge" => PadMode::Edge,
            "wrap" => PadMode::Wrap,
            other => return Err(super::mode(other)),
        };
        let given = if opset < 11 {
            Some((a.ints("pads")?.ok_or_else(|| missing("pads"))?, a.float("value", 0.0)?))
        } else {
            None
        };
        Ok(Arc::new(Pad { mode, given }))
    }

    /// (before, after) of every axis; `None` where not known.
    fn pads(&self, rank: usize, inputs: &[Option<&Fact>]) -> Result<Option<Vec<(Dim, Dim)>>> {
        let pads: Vec<Dim> = match &self.given {
            Some((pads, _)) => pads.iter().map(|n| Dim::from(*n)).collect(),
            None => match &ops::input(inputs, 1)?.dims {
                Some(d) => d.clone(),
                None => return Ok(None),
            },
        };
        let axes: Vec<i64> = match inputs.get(3).copied().flatten() {
            Some(f) => match f.ints() {
                Some(a) => a,
                None => return Ok(None),
            },
            None => (0..rank as i64).collect(),
        };
        if pads.len() != 2 * axes.len() {
            return Err(Error::invalid("OP-PAD", "pads must be two sizes an axis")
                .found(pads.len())
                .limit(2 * axes.len()));
        }
        let mut out = vec![(Dim::from(0i64), Dim::from(0i64)); rank];
        for (i, a) in axes.iter().enumerate() {
            out[ops::axis(*a, rank)?] = (pads[i].clone(), pads[i + axes.len()].clone());
        }
        Ok(Some(out))
    }

    fn map(&self, n: usize, before: i64, after: i64, axis: usize) -> Result<Vec<usize>> {
        let size = n as i64;
        let out = size.saturating_add(before).saturating_add(after);
        let bad = |what: &str| {
            Error::invalid("OP-PAD", what.to_string())
                .field(format!("axis {axis}"))
                .found(format!("{before}, {after}"))
                .limit(format!("size {n}"))
        };
        if out < 0 {
            return Err(bad("more is taken off than there is"));
        }
        float::size(&[out as usize])?;
        // Cropping comes first; the rest is padded from what remains.
        let (low, high) = ((-before).max(0), size - (-after).max(0));
        let kept = high - low;
        if kept <= 0 && out > 0 && self.mode != PadMode::Constant {
            return Err(bad("there is nothing to pad from"));
        }
        Ok((0..out)
            .map(|o| {
                let i = o - before.max(0);
                let inside = (0..kept).contains(&i);
                match self.mode {
                    PadMode::Constant if !inside => FILL,
                    PadMode::Edge => (low + i.clamp(0, kept - 1)) as usize,
                    PadMode::Wrap => (low + i.rem_euclid(kept)) as usize,
                    PadMode::Reflect if !inside => {
                        let period = (2 * (kept - 1)).max(1);
                        let r = i.rem_euclid(period);
                        (low + if r < kept { r } else { period - r }) as usize
                    }
                    _ => (low + i) as usize,
                }
            })
            .collect())
    }

    fn maps(&self, shape: &[usize], inputs: &[Option<&Fact>]) -> Result<Vec<Vec<usize>>> {
        let open = || Error::invalid("OP-PAD", "pads must be integers");
        let pads = self.pads(shape.len(), inputs)?.ok_or_else(open)?;
        shape
            .iter()
            .zip(pads)
            .enumerate()
            .map(|(axis, (n, (b, a)))| {
                self.map(*n, b.known().ok_or_else(open)?, a.known().ok_or_else(open)?, axis)
            })
            .collect()
    }
}

impl Operator for Pad {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = ops::input(inputs, 0)?;
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let out = match self.pads(shape.len(), inputs)? {
            Some(pads) => shape.iter().zip(pads).map(|(d, (b, a))| d.clone() + b + a).collect::<Vec<_>>(),
            None => shape.iter().map(|_| Dim::unknown()).collect(),
        };
        if let Some(axis) = out.iter().position(|d| d.known().is_some_and(|n| n < 0)) {
            return Err(
                Error::invalid("OP-PAD", "more is taken off than there is").field(format!("axis {axis}"))
            );
        }
        Ok(vec![Fact::new(x.dtype, out)])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let facts = float::facts(inputs)?;
        let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        float::shapes(self, inputs)?;
        let x = ops::input(inputs, 0)?;
        let given = match (&self.given, inputs.get(2).copied().flatten()) {
            (Some((_, value)), _) => Some(Value::load(&Tensor::scalar(*value).cast_to(x.dtype()))?),
            (None, Some(v)) => Some(v.clone()),
            _ => None,
        };
        Ok(vec![picked(x, &self.maps(x.shape(), &refs)?, given.as_ref())?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        if v.needs.get(2).copied().unwrap_or(false) && v.grads[0].is_some() {
            return Err(Error::unsupported("NO-VJP", "no gradient is defined for the padding value"));
        }
        first(v, |g| {
            let facts = float::facts(v.inputs)?;
            let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
            let shape = ops::input(v.inputs, 0)?.shape();
            unpicked(g, shape, &self.maps(shape, &refs)?)
        })
    }
    fn couple(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        let mut coupling = Coupling { reason: Some("padding keeps its size".into()), ..Coupling::default() };
        let Some(shape) = inputs[0].and_then(|f| f.shape.as_ref()) else { return coupling };
        let Ok(Some(pads)) = self.pads(shape.len(), inputs) else { return coupling };
        for (axis, (n, (before, after))) in shape.iter().zip(pads).enumerate() {
            match (n.size(), before.size()) {
                _ if before.is(0) && after.is(0) => coupling.same((Port::In(0), axis), (Port::Out(0), axis)),
                (Some(n), Some(b)) if self.mode == PadMode::Constant && after.size().is_some() => {
                    let units = (Pattern::from(0), Pattern::from(b));
                    coupling.link((Port::In(0), axis), units.0, (Port::Out(0), axis), units.1, n);
                }
                _ => {}
            }
        }
        coupling
    }
}
