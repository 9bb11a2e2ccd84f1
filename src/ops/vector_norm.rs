//! Normalisation by a norm or deviation along given axes: LpNormalization, MeanVarianceNormalization,
//! LRN.

use super::float::{self, Float, Scalar, real};
use super::{Coupling, Fact, Operator, Port, Spec, Vjp};
use crate::error::{Error, Result};
use crate::kernels::norm::Response;
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

    /// The kernel of local response normalisation over `x`.
    fn response(&self, x: &[usize]) -> Option<Response> {
        let VectorNorm::Response { size, alpha, beta, bias } = *self else { return None };
        Some(Response { channels: x[1], inner: x[2..].iter().product(), size, alpha, beta, bias })
    }

    fn run<T: Scalar>(&self, x: &Float) -> Result<Float> {
        let axes = self.axes(x.rank())?;
        if let Some(response) = self.response(x.dims()) {
            let mut y = vec![T::ZERO; x.elem_count()];
            response.forward(&float::elements::<T>(x)?, &mut y);
            return float::tensor(y, x.dims(), x.dtype());
        }
        let wide = x.to_dtype(T::DTYPE)?;
        let y = match self {
            VectorNorm::Lp { p, .. } => wide.broadcast_div(&or_one(&norm(&wide, &axes, *p)?)?)?,
            _ => {
                let (centred, deviation) = moments(&wide, &axes)?;
                centred.broadcast_div(&(deviation + TINY)?)?
            }
        };
        Ok(y.to_dtype(x.dtype())?)
    }

    fn back<T: Scalar>(&self, x: &Float, dy: &Float) -> Result<Float> {
        let axes = self.axes(x.rank())?;
        if let Some(response) = self.response(x.dims()) {
            let mut dx = vec![T::ZERO; x.elem_count()];
            response.backward(&float::elements::<T>(x)?, &float::elements::<T>(dy)?, &mut dx);
            return float::tensor(dx, x.dims(), x.dtype());
        }
        let (wide, dy) = (x.to_dtype(T::DTYPE)?, dy.to_dtype(T::DTYPE)?);
        let dx = match self {
            VectorNorm::Lp { p, .. } => {
                let found = norm(&wide, &axes, *p)?;
                let norm = or_one(&found)?;
                let y = wide.broadcast_div(&norm)?;
                let along = (&dy * &y)?.sum_keepdim(axes)?;
                let direction = if *p == 1 { wide.sign()? } else { y };
                let dx = (dy - direction.broadcast_mul(&along)?)?.broadcast_div(&norm)?;
                // At the origin the slope is zero.
                dx.broadcast_mul(&found.ne(0f64)?.to_dtype(T::DTYPE)?)?
            }
            _ => {
                let (centred, deviation) = moments(&wide, &axes)?;
                let y = centred.broadcast_div(&(&deviation + TINY)?)?;
                let along = mean(&(&dy * &y)?, &axes)?.broadcast_div(&or_one(&deviation)?)?;
                let flat = dy.broadcast_sub(&mean(&dy, &axes)?)?;
                (flat.broadcast_div(&(&deviation + TINY)?)? - y.broadcast_mul(&along)?)?
            }
        };
        Ok(dx.to_dtype(x.dtype())?)
    }
}

/// What the standard adds to a deviation.
const TINY: f64 = 1e-9;

/// Norm of each vector along `axes`, which stay with one element.
fn norm(x: &Float, axes: &[usize], p: i64) -> Result<Float> {
    Ok(match p {
        1 => x.abs()?.sum_keepdim(axes)?,
        _ => x.sqr()?.sum_keepdim(axes)?.sqrt()?,
    })
}

/// Ones in place of zeros: a vector of zeros stays one.
fn or_one(x: &Float) -> Result<Float> {
    Ok((x.eq(0f64)?.to_dtype(x.dtype())? + x)?)
}

fn mean(x: &Float, axes: &[usize]) -> Result<Float> {
    Ok(axes.iter().try_fold(x.clone(), |x, a| x.mean_keepdim(*a))?)
}

/// What is left without the mean over `axes`, and the standard deviation.
fn moments(x: &Float, axes: &[usize]) -> Result<(Float, Float)> {
    let centred = x.broadcast_sub(&mean(x, axes)?)?;
    let deviation = mean(&centred.sqr()?, axes)?.sqrt()?;
    Ok((centred, deviation))
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
    fn differentiable(&self) -> bool {
        true
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let Some(dy) = &v.grads[0] else { return Ok(vec![None]) };
        let x = super::input(v.inputs, 0)?.float()?;
        Ok(vec![Some(real!(dy.dtype(), T => self.back::<T>(x, dy))?)])
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
