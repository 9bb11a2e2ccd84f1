//! Norms of ONNX Runtime that take the residual with them: SkipLayerNormalization and
//! SkipSimplifiedLayerNormalization.

use super::float::{self, Float, Scalar, real};
use super::{Attributes, Coupling, Dim, Fact, Operator, Port, Spec, Vjp, broadcast};
use crate::error::{Error, Result};
use crate::kernels::norm::Rows;
use crate::tensor::{DType, Value};
use std::sync::Arc;

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec {
        domain: "com.microsoft",
        name: "SkipLayerNormalization",
        opsets: (1, 1),
        dtypes: &[DType::F32, DType::F16],
        parse: |a, _| SkipNorm::parse(a, true),
    },
    Spec {
        domain: "com.microsoft",
        name: "SkipSimplifiedLayerNormalization",
        opsets: (1, 1),
        dtypes: &[DType::F32, DType::F16],
        parse: |a, _| SkipNorm::parse(a, false),
    },
];

/// What a norm with residual adds to the variance where it does not say.
pub const EPSILON: f32 = 1e-12;

/// Norm of `input + skip + bias` over the last axis; the sum is the fourth output, mean and reciprocal
/// deviation are the second and third.
#[derive(Debug)]
struct SkipNorm {
    centred: bool,
    epsilon: f64,
}

impl SkipNorm {
    fn parse(a: &Attributes, centred: bool) -> Result<Arc<dyn Operator>> {
        Ok(Arc::new(SkipNorm { centred, epsilon: a.float("epsilon", EPSILON)?.into() }))
    }

    /// Slots of the shift and of the bias.
    fn slots(&self) -> (Option<usize>, usize) {
        if self.centred { (Some(3), 4) } else { (None, 3) }
    }

    /// What is normalised.
    fn sum(&self, inputs: &[Option<&Value>]) -> Result<Float> {
        let sum = super::input(inputs, 0)?.float()?.broadcast_add(super::input(inputs, 1)?.float()?)?;
        match inputs.get(self.slots().1).copied().flatten() {
            Some(bias) => Ok(sum.broadcast_add(bias.float()?)?),
            None => Ok(sum),
        }
    }

    fn rows(&self, x: &Float) -> Rows {
        let width = x.dims().last().copied().unwrap_or(0);
        Rows { width, channels: width.max(1), cycle: 1, centred: self.centred, epsilon: self.epsilon }
    }

    fn run<T: Scalar>(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let x = super::input(inputs, 0)?.float()?;
        let sum = self.sum(inputs)?;
        let gain = float::elements::<T>(super::input(inputs, 2)?.float()?)?;
        let shift = self.slots().0.map(|slot| float::optional::<T>(inputs, slot)).transpose()?.flatten();
        let mut y = vec![T::ZERO; sum.elem_count()];
        let data = float::elements::<T>(&sum)?;
        let moments = self.rows(x).forward(&data, Some(&gain), shift.as_deref(), &mut y);
        drop(data);
        let (mean, inverse): (Vec<T>, Vec<T>) = moments.into_iter().unzip();
        let reduced = [&x.dims()[..x.rank() - 1], &[1]].concat();
        let dtype = if T::DTYPE == candle_core::DType::F64 { T::DTYPE } else { candle_core::DType::F32 };
        let single = |v: Vec<T>| -> Result<Float> { float::tensor(v, &reduced, dtype) };
        Ok(vec![
            float::tensor(y, sum.dims(), x.dtype())?.into(),
            single(mean)?.into(),
            single(inverse)?.into(),
            sum.into(),
        ])
    }

    fn back<T: Scalar>(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let (sum, need) = (self.sum(v.inputs)?, |i: usize| v.needs.get(i) == Some(&true));
        let (shift, bias) = self.slots();
        let rows = self.rows(&sum);
        let data = float::elements::<T>(&sum)?;
        let gain = super::input(v.inputs, 2)?.float()?;
        let grad = |i: usize| v.grads.get(i).and_then(Option::as_ref);
        let of = |i: usize| grad(i).map(float::elements::<T>).transpose();
        let dy = match of(0)? {
            Some(dy) => dy,
            None => float::Elements::Owned(vec![T::ZERO; data.len()]),
        };
        let needs = [true, need(2), shift.is_some_and(need)];
        let found = rows.backward(&data, Some(&float::elements::<T>(gain)?), &dy, needs);
        let mut dx = found.x.unwrap_or_default();
        rows.statistics_backward(&data, of(1)?.as_deref(), of(2)?.as_deref(), &mut dx);
        let mut dx = float::tensor(dx, sum.dims(), sum.dtype())?;
        if let Some(through) = grad(3) {
            dx = (dx + through)?;
        }
        let mut out = vec![None; v.inputs.len()];
        for slot in [0, 1, bias].into_iter().filter(|slot| need(*slot)) {
            out[slot] = Some(broadcast::sum_to(&dx, super::input(v.inputs, slot)?.shape())?);
        }
        for (slot, d) in [(Some(2), found.scale), (shift, found.bias)] {
            if let (Some(slot), Some(d)) = (slot, d) {
                out[slot] = Some(float::tensor(d, gain.dims(), gain.dtype())?);
            }
        }
        Ok(out)
    }
}

impl Operator for SkipNorm {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (x, skip) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
        let Some(shape) = &x.shape else { return Ok(vec![x.without_value(); 4]) };
        let last = shape.last().and_then(Dim::known);
        for slot in 2..inputs.len().min(if self.centred { 5 } else { 4 }) {
            let Some(p) = inputs[slot].and_then(|f| f.shape.as_ref()) else { continue };
            if p.len() != 1 || p[0].known().zip(last).is_some_and(|(a, b)| a != b) {
                return Err(Error::invalid("OP-SHAPE", "a parameter does not fit what is normalised")
                    .field(format!("input[{slot}]"))
                    .found(format!("{p:?}"))
                    .limit(format!("[{}]", shape.last().cloned().unwrap_or_else(Dim::unknown))));
            }
        }
        super::input(inputs, 2)?;
        if let Some(s) = &skip.shape {
            let fits = s.len() <= shape.len()
                && s.iter()
                    .rev()
                    .zip(shape.iter().rev())
                    .all(|(a, b)| a.is(1) || a.known().zip(b.known()).is_none_or(|(a, b)| a == b));
            if !fits {
                return Err(Error::invalid("OP-SHAPE", "the residual does not fit what is normalised")
                    .field("input[1]")
                    .found(format!("{s:?}"))
                    .limit(format!("{shape:?}")));
            }
        }
        let mut reduced = shape.clone();
        if let Some(last) = reduced.last_mut() {
            *last = Dim::from(1i64);
        }
        let moment = Fact::new(DType::F32, reduced);
        Ok(vec![x.without_value(), moment.clone(), moment, x.without_value()])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        float::shapes(self, inputs)?;
        let dtype = super::input(inputs, 0)?.float()?.dtype();
        real!(dtype, T => self.run::<T>(inputs))
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        if v.grads.iter().all(Option::is_none) {
            return Ok(vec![None; v.inputs.len()]);
        }
        let dtype = super::input(v.inputs, 0)?.float()?.dtype();
        real!(dtype, T => self.back::<T>(v))
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut c = broadcast::couple(&inputs[..2], &outputs[0]);
        let Some(rank) = outputs[0].rank().filter(|r| *r > 0) else { return c };
        let last = rank - 1;
        for slot in 2..inputs.len() {
            c.same((Port::In(slot), 0), (Port::Out(0), last));
        }
        for axis in 0..rank {
            c.same((Port::Out(0), axis), (Port::Out(3), axis));
        }
        for moment in 1..outputs.len().min(3) {
            (0..last).for_each(|axis| c.same((Port::Out(0), axis), (Port::Out(moment), axis)));
            c.free.push((Port::Out(moment), last));
        }
        c.statistics.push((Port::In(0), last));
        c
    }
}
