//! Softmax, LogSoftmax and Hardmax. Before operator set 13 they work on the axis and all behind it as
//! one; since then on the axis alone.

use super::float::{self, Float, Scalar, real};
use super::{Barrier, Coupling, Fact, Keeps, Operator, Port, Spec, Vjp};
use crate::error::Result;
use crate::kernels::analytic::Analytic;
use crate::kernels::softmax::{Axis, backward, forward};
use crate::tensor::{DType, Value};
use std::sync::Arc;

macro_rules! spec {
    ($name:literal, $kind:expr) => {
        Spec::new($name, 1, DType::FLOATS, |a, v| {
            let joined = v < 13;
            Ok(Arc::new(Softmax { kind: $kind, axis: a.int("axis", if joined { 1 } else { -1 })?, joined }))
        })
    };
}

/// Claims of this family.
pub const SPECS: &[Spec] =
    &[spec!("Softmax", Kind::Plain), spec!("LogSoftmax", Kind::Log), spec!("Hardmax", Kind::Hard)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Log,
    /// 1 at the first of the largest elements, 0 elsewhere.
    Hard,
}

#[derive(Debug)]
struct Softmax {
    kind: Kind,
    axis: i64,
    /// The axes behind are part of the row.
    joined: bool,
}

impl Softmax {
    /// The first axis of a row, and the axis behind it.
    fn span(&self, rank: usize) -> Result<(usize, usize)> {
        if self.joined {
            if self.axis == rank as i64 {
                return Ok((rank, rank));
            }
            return Ok((super::axis(self.axis, rank)?, rank));
        }
        let axis = super::axis(self.axis, rank)?;
        Ok((axis, axis + 1))
    }

    fn rows(&self, shape: &[usize]) -> Result<Axis> {
        let (from, to) = self.span(shape.len())?;
        Ok(Axis { count: shape[from..to].iter().product(), inner: shape[to..].iter().product() })
    }

    fn run<T: Scalar + Analytic>(&self, x: &Float) -> Result<Float> {
        let axis = self.rows(x.dims())?;
        let data = float::elements::<T>(x)?;
        let y = match self.kind {
            Kind::Hard => {
                let mut y = vec![T::ZERO; data.len()];
                let first =
                    crate::kernels::reduce::extremes(&data, axis.count, axis.inner, |a, b| a > b, false);
                for (i, c) in first.into_iter().enumerate() {
                    let (o, k) = (i / axis.inner, i % axis.inner);
                    y[(o * axis.count + c as usize) * axis.inner + k] = T::ONE;
                }
                y
            }
            kind => forward(axis, kind == Kind::Log, &data),
        };
        float::tensor(y, x.dims(), x.dtype())
    }

    fn back<T: Scalar + Analytic>(&self, y: &Float, dy: &Float) -> Result<Float> {
        let (axis, log) = (self.rows(dy.dims())?, self.kind == Kind::Log);
        let dx = backward(axis, log, &float::elements::<T>(y)?, &float::elements::<T>(dy)?);
        float::tensor(dx, dy.dims(), dy.dtype())
    }
}

impl Operator for Softmax {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        if let Some(rank) = x.rank() {
            self.span(rank)?;
        }
        Ok(vec![x.without_value()])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let x = super::input(inputs, 0)?.float()?;
        Ok(vec![real!(x.dtype(), T => self.run::<T>(x))?.into()])
    }
    fn differentiable(&self) -> bool {
        self.kind != Kind::Hard
    }
    fn barrier(&self) -> Option<Barrier> {
        (self.kind == Kind::Hard).then_some(Barrier::Steps)
    }
    fn keeps(&self) -> Keeps {
        Keeps { inputs: false, outputs: true }
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let Some(dy) = &v.grads[0] else { return Ok(vec![None]) };
        let y = super::input(v.outputs, 0)?.float()?;
        Ok(vec![Some(real!(dy.dtype(), T => self.back::<T>(y, dy))?)])
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling = super::broadcast::couple(inputs, &outputs[0]);
        let rank = inputs.first().copied().flatten().and_then(Fact::rank).unwrap_or(0);
        if let Ok((from, to)) = self.span(rank) {
            coupling.statistics.extend((from..to).map(|a| (Port::In(0), a)));
        }
        coupling
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    fn run(kind: Kind, axis: i64, joined: bool, shape: &[usize], x: Vec<f32>) -> Vec<f32> {
        let x = Value::load(&Tensor::from_vec(shape.to_vec(), x).unwrap()).unwrap();
        let y = Softmax { kind, axis, joined }.eval(&[Some(&x)]).unwrap().remove(0);
        y.to_tensor().unwrap().to_f32s().unwrap()
    }

    #[test]
    fn rows_sum_to_one_along_any_axis_and_large_values_do_not_overflow() {
        let x: Vec<f32> = (0..24).map(|i| ((i * 7) % 11) as f32 * 100.0).collect();
        for (axis, count, inner) in [(0, 2, 12), (1, 3, 4), (2, 4, 1)] {
            let y = run(Kind::Plain, axis, false, &[2, 3, 4], x.clone());
            let log = run(Kind::Log, axis, false, &[2, 3, 4], x.clone());
            for o in 0..24 / (count * inner) {
                for i in 0..inner {
                    let at = |c: usize| (o * count + c) * inner + i;
                    let sum: f32 = (0..count).map(|c| y[at(c)]).sum();
                    assert!((sum - 1.0).abs() < 1e-6);
                    for c in 0..count {
                        assert!((log[at(c)].exp() - y[at(c)]).abs() < 1e-5 && log[at(c)].is_finite());
                    }
                }
            }
        }
        let joined = run(Kind::Plain, 1, true, &[2, 3, 4], x);
        assert!((joined[..12].iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn masked_elements_get_exactly_zero_and_ties_go_to_the_first() {
        let y = run(Kind::Plain, -1, false, &[3], vec![f32::NEG_INFINITY, 0.0, 0.0]);
        assert_eq!(y, [0.0, 0.5, 0.5]);
        assert_eq!(run(Kind::Hard, 0, false, &[3, 1], vec![1.0, 2.0, 2.0]), [0.0, 1.0, 0.0]);
        assert!(run(Kind::Plain, -1, false, &[0], vec![]).is_empty());
        assert!(run(Kind::Hard, -1, false, &[2, 0], vec![]).is_empty());
    }
}
