//! Transpose.

use super::super::{Coupling, Fact, Keeps, Operator, Port, Spec, Vjp, elements::rearrange, reshape};
use super::first;
use crate::error::{Error, Result};
use crate::kernels::movement::permute;
use crate::ops;
use crate::tensor::{DType, Value};
use candle_core::Tensor as Float;
use std::sync::Arc;

/// Claim of Transpose.
pub(super) const SPEC: Spec =
    Spec::new("Transpose", 1, DType::ALL, |a, _| Ok(Arc::new(Transpose { perm: a.ints("perm")? })));

/// Result axis `i` is source axis `perm[i]`; reversed without `perm`.
#[derive(Debug)]
struct Transpose {
    perm: Option<Vec<i64>>,
}

impl Transpose {
    fn perm(&self, rank: usize) -> Result<Vec<usize>> {
        let Some(perm) = &self.perm else { return Ok((0..rank).rev().collect()) };
        let axes: Vec<usize> = perm.iter().filter_map(|p| usize::try_from(*p).ok()).collect();
        let mut sorted = axes.clone();
        sorted.sort_unstable();
        if sorted != (0..rank).collect::<Vec<_>>() {
            return Err(Error::invalid("OP-PERM", "perm is not a permutation of the axes")
                .field("attribute perm")
                .found(format!("{perm:?}"))
                .limit(format!("rank {rank}")));
        }
        Ok(axes)
    }
}

/// A value with its axes permuted.
pub fn permuted(x: &Value, perm: &[usize]) -> Result<Value> {
    let out: Vec<usize> = perm.iter().map(|p| x.shape()[*p]).collect();
    rearrange!(&[x], &out, v => Ok::<_, Error>(permute(v[0], x.shape(), perm)))
}

impl Operator for Transpose {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = ops::input(inputs, 0)?;
        Ok(vec![match &x.shape {
            Some(s) => {
                let perm = self.perm(s.len())?;
                reshape::carry(x, Fact::new(x.dtype, perm.into_iter().map(|p| s[p].clone()).collect()))
            }
            None => Fact::unranked(x.dtype),
        }])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let x = ops::input(inputs, 0)?;
        Ok(vec![permuted(x, &self.perm(x.shape().len())?)?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        first(v, |g| {
            let perm = self.perm(g.rank())?;
            let mut inverse = vec![0; perm.len()];
            for (i, p) in perm.iter().enumerate() {
                inverse[*p] = i;
            }
            Ok(permuted(&g.clone().into(), &inverse)?.float()?.clone())
        })
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling = Coupling::default();
        let rank = inputs[0].and_then(Fact::rank).or(outputs[0].rank()).unwrap_or(0);
        for (o, i) in self.perm(rank).unwrap_or_default().into_iter().enumerate() {
            coupling.same((Port::In(0), i), (Port::Out(0), o));
        }
        coupling
    }
}
