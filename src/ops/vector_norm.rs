//! Normalisation by a norm or deviation along given axes: LpNormalization, MeanVarianceNormalization,
//! LRN.

use super::float::{self, Float, Scalar, real};
use super::{Coupling, Fact, Operator, Port, Spec};
use crate::error::{Error, Result};
use crate::tensor::{DType, Value};
use std::sync::Arc;

const FLOATS: &[DType] = &[DType::F32, DType::F64, DType::F16, DType::BF16];

macro_rules! spec {
    ($name:literal, $from:literal, $parse:expr) => {
        Spec { domain: "", name: $name, opsets: ($from, super::LAST_OPSET), dtypes: FLOATS, parse: $parse }
    };
}

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    spec!("LpNormalization", 1, |a, _| {
        let p = a.int("p", 2)?;
        if p != 1 && p != 2 {
            return Err(Error::invalid("ATTR-RANGE", "only norms 1 and 2 exist")
                .field("attribute p")
                .found(p));
        }
        Ok(Arc::new(VectorNorm::Lp { axis: a.int("axis", -1)?, p }))
    }),
    spec!("MeanVarianceNormalization", 9, |a, _| {
        Ok(Arc::new(VectorNorm::MeanVariance { axes: a.ints("axes")?.unwrap_or_else(|| vec![0, 2, 3]) }))
    }),
    spec!("LRN", 1, |a, _| {
        let size = a.int("size", 0)?;
        let size = usize::try_from(size).ok().filter(|s| (1..1 << 24).contains(s)).ok_or_else(|| {
            Error::invalid("ATTR-RANGE", "attribute is out of range").field("attribute size").found(size)
        })?;
        Ok(Arc::new(VectorNorm::Response {
            size,
            alpha: a.float("alpha", 1e-4)?.into(),
            beta: a.float("beta", 0.75)?.into(),
            bias: a.float("bias", 1.0)?.into(),
        }))
    }),
];

#[derive(Debug)]
enum VectorNorm {
    Lp {
        axis: i64,
        p: i64,
    },
    MeanVariance {
        axes: Vec<i64>,
    },
    /// Local response normalisation over neighbouring channels.
    Response {
        size: usize,
        alpha: f64,
        beta: f64,
        bias: f64,
    },
}

impl VectorNorm {
    fn axes(&self, rank: usize) -> Result<Vec<usize>> {
        match self {
            VectorNorm::Lp { axis, .. } => Ok(vec![super::axis(*axis, rank)?]),
            VectorNorm::MeanVariance { axes } => axes.iter().map(|a| super::axis(*a, rank)).collect(),
            VectorNorm::Response { .. } if rank < 2 => {
                Err(Error::invalid("OP-RANK", "LRN needs a channel axis").found(rank))
            }
            VectorNorm::Response { .. } => Ok(vec![1]),
        }
    }

    fn run<T: Scalar>(&self, x: &Float) -> Result<Float> {
        let axes = self.axes(x.rank())?;
        match self {
            VectorNorm::Lp { p, .. } => {
                let wide = x.to_dtype(T::DTYPE)?;
                let norm = match p {
                    1 => wide.abs()?.sum_keepdim(axes)?,
                    _ => wide.sqr()?.sum_keepdim(axes)?.sqrt()?,
                };
                // A vector of zeros stays one.
                let norm = norm.eq(0f64)?.to_dtype(T::DTYPE)?.add(&norm)?;
                Ok(wide.broadcast_div(&norm)?.to_dtype(x.dtype())?)
            }
            VectorNorm::MeanVariance { .. } => {
                let wide = x.to_dtype(T::DTYPE)?;
                let mut centred = wide.clone();
                let mut mean = wide.clone();
                for a in &axes {
                    mean = mean.mean_keepdim(*a)?;
                }
                centred = centred.broadcast_sub(&mean)?;
                let mut variance = centred.sqr()?;
                for a in &axes {
                    variance = variance.mean_keepdim(*a)?;
                }
                Ok(centred.broadcast_div(&(variance.sqrt()? + 1e-9)?)?.to_dtype(x.dtype())?)
            }
            VectorNorm::Response { size, alpha, beta, bias } => {
                let shape = x.dims();
                let (channels, inner): (usize, usize) = (shape[1], shape[2..].iter().product());
                let data = float::elements::<T>(x)?;
                let mut y = vec![T::ZERO; data.len()];
                for (x, y) in data
                    .chunks_exact((channels * inner).max(1))
                    .zip(y.chunks_exact_mut((channels * inner).max(1)))
                {
                    for c in 0..channels {
                        let from = c.saturating_sub((size - 1) / 2);
                        let to = (c + size / 2).min(channels - 1);
                        for i in 0..inner {
                            let sum: f64 = (from..=to).map(|k| x[k * inner + i].wide().powi(2)).sum();
                            let scale = (bias + alpha / *size as f64 * sum).powf(-beta);
                            y[c * inner + i] = x[c * inner + i] * T::of(scale);
                        }
                    }
                }
                float::tensor(y, shape, x.dtype())
            }
        }
    }
}

impl Operator for VectorNorm {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        if let Some(rank) = x.rank() {
            self.axes(rank)?;
        }
        Ok(vec![x.without_value()])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let x = super::input(inputs, 0)?.float()?;
        Ok(vec![real!(x.dtype(), T => self.run::<T>(x))?.into()])
    }
    fn couple(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        let mut coupling = Coupling::default();
        let Some(rank) = inputs.first().copied().flatten().and_then(Fact::rank) else { return coupling };
        for axis in 0..rank {
            coupling.same((Port::In(0), axis), (Port::Out(0), axis));
        }
        for axis in self.axes(rank).unwrap_or_default() {
            coupling.statistics.push((Port::In(0), axis));
        }
        coupling
    }
}
