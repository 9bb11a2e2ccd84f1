//! Trilu.

use super::super::{Coupling, Fact, Keeps, Operator, Spec, Vjp, broadcast, elements::rearrange, float};
use super::first;
use crate::error::{Error, Result};
use crate::kernels::movement::{FILL, pick};
use crate::ops;
use crate::tensor::{DType, Value};
use candle_core::Tensor as Float;
use std::sync::Arc;

/// Claim of Trilu.
pub(super) const SPEC: Spec =
    Spec::new("Trilu", 14, DType::ALL, |a, _| Ok(Arc::new(Trilu { upper: a.int("upper", 1)? != 0 })));

/// One triangle of matrices kept, the rest zero.
#[derive(Debug)]
struct Trilu {
    upper: bool,
}

impl Trilu {
    fn holds(&self, row: usize, column: usize, k: i64) -> bool {
        let diagonal = (column as i64).saturating_sub(row as i64);
        if self.upper { diagonal >= k } else { diagonal <= k }
    }

    fn apply(&self, x: &Value, k: i64) -> Result<Value> {
        let shape = x.shape();
        let (rows, columns) = (shape[shape.len() - 2], shape[shape.len() - 1]);
        rearrange!(&[x], shape, v => {
            let mut out = v[0].to_vec();
            let zero = pick(v[0], &[v[0].len()], &[vec![FILL]], &Default::default());
            for (i, row) in out.chunks_mut(columns.max(1)).enumerate() {
                for (j, e) in row.iter_mut().enumerate() {
                    if !self.holds(i % rows.max(1), j, k) {
                        e.clone_from(&zero[0]);
                    }
                }
            }
            Ok::<_, Error>(out)
        })
    }

    fn k(inputs: &[Option<&Value>]) -> Result<i64> {
        match inputs.get(1).copied().flatten() {
            Some(k) => Ok(k.ints()?.first().copied().unwrap_or(0)),
            None => Ok(0),
        }
    }
}

impl Operator for Trilu {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = ops::input(inputs, 0)?;
        match x.rank() {
            Some(0 | 1) => Err(Error::invalid("OP-RANK", "matrices are needed").found(x.rank().unwrap_or(0))),
            _ => Ok(vec![x.without_value()]),
        }
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        float::shapes(self, inputs)?;
        Ok(vec![self.apply(ops::input(inputs, 0)?, Trilu::k(inputs)?)?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        first(v, |g| Ok(self.apply(&g.clone().into(), Trilu::k(v.inputs)?)?.float()?.clone()))
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling = broadcast::couple(&inputs[..1], &outputs[0]);
        let rank = outputs[0].rank().unwrap_or(0);
        coupling.links.retain(|l| l.a.1 + 2 < rank);
        coupling
    }
}
