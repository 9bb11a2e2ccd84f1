//! Expand and Tile.

use super::super::{
    Coupling, Cut, Dim, Fact, Keeps, Operator, Pattern, Port, Rewrite, Spec, Vjp, broadcast, float, reshape,
};
use super::{first, picked, unpicked};
use crate::error::{Error, Result};
use crate::ops;
use crate::tensor::{DType, Tensor, Value};
use candle_core::Tensor as Float;
use std::sync::Arc;

/// Claim of Expand.
pub(super) const SPEC: Spec = Spec::new("Expand", 8, DType::ALL, |_, _| Ok(Arc::new(Expand)));

/// Claim of Tile.
pub(super) const TILE: Spec = Spec::new("Tile", 6, DType::ALL, |_, _| Ok(Arc::new(Tile)));

/// Broadcasts to a shape (both ways).
#[derive(Debug)]
struct Expand;

impl Operator for Expand {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (x, shape) = (ops::input(inputs, 0)?, ops::input(inputs, 1)?);
        let out = match (&x.shape, &shape.dims) {
            (Some(s), Some(dims)) => {
                if let Some(d) = dims.iter().find(|d| d.known().is_some_and(|n| n < 0)) {
                    return Err(Error::invalid("OP-EXPAND", "the shape holds a negative size").found(d));
                }
                Fact::new(x.dtype, broadcast::symbolic(&[s, dims])?)
            }
            _ => Fact::unranked(x.dtype),
        };
        let fill = match (&x.dims, out.shape.as_deref()) {
            (Some(d), Some([n])) if d.len() == 1 => {
                n.size().filter(|n| *n <= 64).map(|n| Fact::of_dims(x.dtype, vec![d[0].clone(); n], false))
            }
            _ => None,
        };
        Ok(vec![fill.unwrap_or(out)])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.swap_remove(0);
        Ok(vec![expanded(ops::input(inputs, 0)?, &shape)?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        first(v, |g| broadcast::sum_to(g, ops::input(v.inputs, 0)?.shape()))
    }
    /// All copies are equal, so that any may go where the shape can be rewritten.
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling = broadcast::couple(&inputs[..1], &outputs[0]);
        if inputs.get(1).copied().flatten().and_then(Fact::ints).is_some() {
            let tied: Vec<(Port, usize)> = coupling.links.iter().map(|l| l.b).collect();
            let copies = (0..outputs[0].rank().unwrap_or(0)).map(|axis| (Port::Out(0), axis));
            coupling.free.extend(copies.filter(|end| !tied.contains(end)));
        }
        coupling
    }
    fn resize(&self, inputs: &[Option<&Fact>], outputs: &[Fact], cut: &Cut) -> Result<Rewrite> {
        let (Some(out), Some(old)) =
            (outputs[0].rank(), inputs.get(1).copied().flatten().and_then(Fact::ints))
        else {
            return Ok(Rewrite::default());
        };
        let skip = out - old.len().min(out);
        let new: Vec<i64> = old
            .iter()
            .enumerate()
            .map(|(i, n)| match cut.of(Port::Out(0), i + skip) {
                Some((_, kept)) if *n != 1 => kept.len() as i64,
                _ => *n,
            })
            .collect();
        if new == old {
            return Ok(Rewrite::default());
        }
        Ok(Rewrite { inputs: vec![(1, Tensor::from_vec(vec![new.len()], new)?)], ..Rewrite::default() })
    }
}

/// `x` broadcast to `shape`, which must be its broadcast with something.
pub fn expanded(x: &Value, shape: &[usize]) -> Result<Value> {
    if x.shape() == shape {
        return Ok(x.clone());
    }
    let skip = shape.len() - x.shape().len();
    let mut full = vec![1; skip];
    full.extend(x.shape());
    let maps: Vec<Vec<usize>> = shape
        .iter()
        .zip(&full)
        .map(|(n, from)| if n == from { (0..*n).collect() } else { vec![0; *n] })
        .collect();
    picked(&reshape::with_shape(x, &full)?, &maps, None)
}

/// Repeats along axes.
#[derive(Debug)]
struct Tile;

impl Operator for Tile {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (x, repeats) = (ops::input(inputs, 0)?, ops::input(inputs, 1)?);
        Ok(vec![match (&x.shape, &repeats.dims) {
            (Some(s), Some(r)) => {
                if s.len() != r.len() || r.iter().any(|d| d.known().is_some_and(|n| n < 0)) {
                    return Err(Error::invalid("OP-TILE", "repeats must be one size an axis, none negative")
                        .found(format!("{r:?}"))
                        .limit(format!("rank {}", s.len())));
                }
                Fact::new(x.dtype, s.iter().zip(r).map(|(a, b)| a.clone() * b.clone()).collect())
            }
            (Some(s), None) => Fact::new(x.dtype, s.iter().map(|_| Dim::unknown()).collect()),
            _ => Fact::unranked(x.dtype),
        }])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.swap_remove(0);
        let x = ops::input(inputs, 0)?;
        Ok(vec![picked(x, &tiled(x.shape(), &shape), None)?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        first(v, |g| {
            let shape = ops::input(v.inputs, 0)?.shape();
            unpicked(g, shape, &tiled(shape, g.dims()))
        })
    }
    fn couple(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        let mut coupling = Coupling::default();
        let Some(shape) = inputs[0].and_then(|f| f.shape.as_ref()) else { return coupling };
        let repeats = inputs.get(1).copied().flatten().and_then(|f| f.dims.clone()).unwrap_or_default();
        for (axis, (n, r)) in shape.iter().zip(&repeats).enumerate() {
            match (n.size(), r.size()) {
                (_, Some(1)) => coupling.same((Port::In(0), axis), (Port::Out(0), axis)),
                (Some(n), Some(r)) => {
                    let units = (Pattern::from(0), Pattern::recurring(n, r));
                    coupling.link((Port::In(0), axis), units.0, (Port::Out(0), axis), units.1, n);
                }
                _ => {}
            }
        }
        coupling
    }
}

fn tiled(from: &[usize], to: &[usize]) -> Vec<Vec<usize>> {
    from.iter().zip(to).map(|(n, m)| (0..*m).map(|i| i % n.max(&1)).collect()).collect()
}
