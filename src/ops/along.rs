//! Operators along one axis whose result depends on position: ArgMax, ArgMin, CumSum.

use super::float::{self, Float, real};
use super::{Attributes, Barrier, Coupling, Dim, Fact, Keeps, Operator, Port, Spec, Vjp, elements, reduce};
use crate::error::{Error, Result};
use crate::kernels::reduce::{cumulate, extremes};
use crate::kernels::whole::Whole;
use crate::tensor::{DType, Tensor, Value};
use std::sync::Arc;

const SUMMED: &[DType] =
    &[DType::F32, DType::F64, DType::F16, DType::BF16, DType::U32, DType::I32, DType::U64, DType::I64];

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec::new("ArgMax", 1, DType::NUMBERS, |a, _| Arg::parse(a, true)),
    Spec::new("ArgMin", 1, DType::NUMBERS, |a, _| Arg::parse(a, false)),
    Spec::new("CumSum", 11, SUMMED, |a, _| {
        Ok(Arc::new(CumSum { exclusive: a.int("exclusive", 0)? != 0, reverse: a.int("reverse", 0)? != 0 }))
    }),
];

/// Elements along the axis, and the distance of neighbours.
fn row(shape: &[usize], axis: usize) -> (usize, usize) {
    (shape[axis], shape[axis + 1..].iter().product())
}

/// Where the extreme lies: the first of equals, or the last. NaN is never preferred.
#[derive(Debug)]
struct Arg {
    largest: bool,
    axis: i64,
    keep: bool,
    last: bool,
}

impl Arg {
    fn parse(a: &Attributes, largest: bool) -> Result<Arc<dyn Operator>> {
        Ok(Arc::new(Arg {
            largest,
            axis: a.int("axis", 0)?,
            keep: a.int("keepdims", 1)? != 0,
            last: a.int("select_last_index", 0)? != 0,
        }))
    }
}

impl Operator for Arg {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let Some(shape) = &super::input(inputs, 0)?.shape else {
            return Ok(vec![Fact::unranked(DType::I64)]);
        };
        let axis = super::axis(self.axis, shape.len())?;
        if shape[axis].is(0) {
            return Err(Error::invalid("OP-SHAPE", "nothing lies along the axis").found(format!("{shape:?}")));
        }
        let mut out = shape.clone();
        match self.keep {
            true => out[axis] = Dim::from(1i64),
            false => drop(out.remove(axis)),
        }
        Ok(vec![Fact::new(DType::I64, out)])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.remove(0);
        let x = super::input(inputs, 0)?;
        let (count, inner) = row(x.shape(), super::axis(self.axis, x.shape().len())?);
        let found = elements::numeric!(&[x], v => Ok(match self.largest {
            true => extremes(v[0], count, inner, |a, b| a > b, self.last),
            false => extremes(v[0], count, inner, |a, b| a < b, self.last),
        }))?;
        Ok(vec![Tensor::from_vec(shape, found)?.into()])
    }
    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Whole)
    }
    /// Positions along the axis are the result, so that it keeps its size.
    fn couple(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        let rank = inputs.first().copied().flatten().and_then(Fact::rank);
        let Some((rank, axis)) = rank.and_then(|r| Some((r, super::axis(self.axis, r).ok()?))) else {
            return Coupling::default();
        };
        let mut coupling = reduce::couple_kept(rank, &[axis], self.keep);
        coupling.reason = Some("the result counts along the axis".into());
        coupling
    }
}

/// Running totals along the axis that the second input names.
#[derive(Debug)]
struct CumSum {
    exclusive: bool,
    reverse: bool,
}

impl CumSum {
    fn axis(inputs: &[Option<&Value>], rank: usize) -> Result<usize> {
        let axis = super::input(inputs, 1)?.ints()?;
        let axis = axis.first().ok_or_else(|| {
            Error::invalid("OP-AXIS", "the axis is missing").field("input[1]").found("an empty tensor")
        })?;
        super::axis(*axis, rank)
    }

    fn floats(&self, x: &Float, axis: usize, reverse: bool) -> Result<Float> {
        let (count, inner) = row(x.dims(), axis);
        real!(x.dtype(), T => {
            let v = float::elements::<T>(x)?;
            let zero: T = 0.0;
            let y = cumulate(&v, count, inner, (self.exclusive, reverse), zero, |a: T, b: T| a + b);
            float::tensor(y, x.dims(), x.dtype())
        })
    }
}

impl Operator for CumSum {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (x, axis) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
        if let (Some(rank), Some([axis, ..])) = (x.rank(), axis.ints().as_deref()) {
            super::axis(*axis, rank)?;
        }
        Ok(vec![x.without_value()])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let x = super::input(inputs, 0)?;
        let axis = Self::axis(inputs, x.shape().len())?;
        if let Value::Float(x) = x {
            return Ok(vec![self.floats(x, axis, self.reverse)?.into()]);
        }
        let (count, inner) = row(x.shape(), axis);
        let flags = (self.exclusive, self.reverse);
        Ok(vec![elements::whole!(&[x], v => {
            let y = cumulate(v[0], count, inner, flags, Default::default(), Whole::add);
            elements::narrowed(x.dtype(), x.shape(), y)
        })?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let mut out = vec![None; v.inputs.len()];
        if let (Some(grad), true) = (&v.grads[0], v.needs[0]) {
            out[0] = Some(self.floats(grad, Self::axis(v.inputs, grad.rank())?, !self.reverse)?);
        }
        Ok(out)
    }
    fn couple(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        let mut coupling = Coupling::default();
        let rank = inputs[0].and_then(Fact::rank).unwrap_or(0);
        let along = inputs.get(1).copied().flatten().and_then(Fact::ints);
        let along = along.and_then(|a| super::axis(*a.first()?, rank).ok());
        for axis in 0..rank {
            coupling.same((Port::In(0), axis), (Port::Out(0), axis));
            if along.is_none_or(|a| a == axis) {
                coupling.statistics.push((Port::In(0), axis));
            }
        }
        coupling
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(shape: &[usize], v: Vec<f32>) -> Value {
        Value::load(&Tensor::from_vec(shape.to_vec(), v).unwrap()).unwrap()
    }

    #[test]
    fn ties_go_to_the_first_or_the_last() {
        let x = floats(&[2, 3], vec![2., 2., 1., 0., 5., 5.]);
        let run = |largest, axis, last| {
            Arg { largest, axis, keep: false, last }.eval(&[Some(&x)]).unwrap()[0].ints().unwrap()
        };
        assert_eq!(run(true, 1, false), [0, 1]);
        assert_eq!(run(true, -1, true), [1, 2]);
        assert_eq!(run(false, 0, false), [1, 0, 0]);
        let none = floats(&[0, 3], vec![]);
        assert!(Arg { largest: true, axis: 0, keep: true, last: false }.eval(&[Some(&none)]).is_err());
    }

    #[test]
    fn totals_run_either_way_with_and_without_the_element() {
        let x: Value = Tensor::from_vec(vec![3], vec![1i32, 2, 3]).unwrap().into();
        let axis: Value = Tensor::scalar(-1i64).into();
        let run = |exclusive, reverse| {
            CumSum { exclusive, reverse }.eval(&[Some(&x), Some(&axis)]).unwrap()[0].ints().unwrap()
        };
        assert_eq!(run(false, false), [1, 3, 6]);
        assert_eq!(run(true, false), [0, 1, 3]);
        assert_eq!(run(false, true), [6, 5, 3]);
        assert_eq!(run(true, true), [5, 3, 0]);
    }
}
