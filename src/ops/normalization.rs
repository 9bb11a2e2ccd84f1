//! Normalisation over rows and channels.

use super::float::{self, Float, Scalar, real};
use super::{
    Attr, Attributes, Coupling, Cut, Dim, Fact, Operator, Pattern, Port, Rewrite, Spec, Vjp, broadcast,
};
use crate::error::{Error, Result};
use crate::kernels::norm::{Gradients, Rows, channel_affine, channel_sums};
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
    spec!("BatchNormalization", 7, BatchNorm::parse),
    spec!("LayerNormalization", 17, |a, _| {
        Ok(Arc::new(RowNorm {
            span: Span::From(a.int("axis", -1)?),
            centred: true,
            epsilon: a.float("epsilon", 1e-5)?.into(),
            statistics: true,
        }))
    }),
    spec!("RMSNormalization", 23, |a, _| {
        Ok(Arc::new(RowNorm {
            span: Span::From(a.int("axis", -1)?),
            centred: false,
            epsilon: a.float("epsilon", 1e-5)?.into(),
            statistics: false,
        }))
    }),
    // ONNX Runtime's form of the above, which it keeps in the default domain.
    spec!("SimplifiedLayerNormalization", 1, |a, _| {
        if a.outputs().is_some_and(|n| n > 1) {
            return Err(Error::unsupported("OP-OUTPUT", "the reciprocal deviation is not an output here"));
        }
        Ok(Arc::new(RowNorm {
            span: Span::From(a.int("axis", -1)?),
            centred: false,
            epsilon: a.float("epsilon", 1e-5)?.into(),
            statistics: false,
        }))
    }),
    spec!("InstanceNormalization", 6, |a, _| {
        Ok(Arc::new(RowNorm {
            span: Span::Channel,
            centred: true,
            epsilon: a.float("epsilon", 1e-5)?.into(),
            statistics: false,
        }))
    }),
    spec!("GroupNormalization", 21, |a, _| {
        let groups = a.int("num_groups", 0)?;
        let groups = usize::try_from(groups).ok().filter(|g| *g > 0).ok_or_else(|| {
            Error::invalid("ATTR-RANGE", "attribute is out of range")
                .field("attribute num_groups")
                .found(groups)
        })?;
        Ok(Arc::new(RowNorm {
            span: Span::Groups(groups),
            centred: true,
            epsilon: a.float("epsilon", 1e-5)?.into(),
            statistics: false,
        }))
    }),
];

/// Normalisation of all axes from `axis` on, by mean and deviation where `centred`.
pub(super) fn rows(centred: bool, axis: i64, epsilon: f64) -> Arc<dyn Operator> {
    Arc::new(RowNorm { span: Span::From(axis), centred, epsilon, statistics: false })
}

/// `(x - mean) / sqrt(var + epsilon) * scale + bias` per channel. In training mode mean and variance
/// are those of the batch, and the running ones are outputs.
#[derive(Debug)]
struct BatchNorm {
    epsilon: f64,
    momentum: f64,
    training: bool,
}

impl BatchNorm {
    fn parse(a: &Attributes, opset: i64) -> Result<Arc<dyn Operator>> {
        if opset < 9 && a.int("spatial", 1)? == 0 {
            return Err(Error::unsupported("OP-ATTR", "statistics per position are not supported")
                .field("attribute spatial")
                .found(0));
        }
        Ok(Arc::new(BatchNorm {
            epsilon: a.float("epsilon", 1e-5)?.into(),
            momentum: a.float("momentum", 0.9)?.into(),
            training: opset >= 14 && a.int("training_mode", 0)? != 0,
        }))
    }

    /// (outer, channels, inner).
    fn split(x: &[usize]) -> (usize, usize, usize) {
        (x[0], x.get(1).copied().unwrap_or(1), x.iter().skip(2).product())
    }

    /// Mean and population variance that normalise: given, or those of the batch.
    fn moments<T: Scalar>(&self, inputs: &[Option<&Value>], x: &Float) -> Result<(Vec<T>, Vec<T>)> {
        let given =
            |i| -> Result<Vec<T>> { Ok(float::elements::<T>(super::input(inputs, i)?.float()?)?.to_vec()) };
        if !self.training {
            return Ok((given(3)?, given(4)?));
        }
        let (outer, channels, inner) = Self::split(x.dims());
        let data = float::elements::<T>(x)?;
        let n = T::of((outer * inner).max(1) as f64);
        let ones = vec![T::ZERO; channels];
        let mean: Vec<T> = channel_sums(&data, &data, &ones, inner).iter().map(|(s, _)| *s / n).collect();
        // sum((x - m) * x) = n * variance, for m the mean of x.
        let variance = channel_sums(&data, &data, &mean, inner)
            .iter()
            .map(|(_, v)| if *v > T::ZERO { *v / n } else { T::ZERO })
            .collect();
        Ok((mean, variance))
    }

    fn forward<T: Scalar>(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let x = super::input(inputs, 0)?.float()?;
        let parameter = |i| float::elements::<T>(super::input(inputs, i)?.float()?);
        let (scale, bias) = (parameter(1)?, parameter(2)?);
        let (mean, variance) = self.moments::<T>(inputs, x)?;
        let a: Vec<T> =
            scale.iter().zip(&variance).map(|(s, v)| *s / (*v + T::of(self.epsilon)).sqrt()).collect();
        let b: Vec<T> = bias.iter().zip(&mean).zip(&a).map(|((b, m), a)| *b - *m * *a).collect();
        let mut y = vec![T::ZERO; x.elem_count()];
        channel_affine(&float::elements::<T>(x)?, Self::split(x.dims()).2, &a, &b, &mut y);
        let mut out = vec![float::tensor(y, x.dims(), x.dtype())?.into()];
        if self.training {
            let m = T::of(self.momentum);
            for (i, new) in [(3, mean), (4, variance)] {
                let old = super::input(inputs, i)?.float()?;
                let mixed: Vec<T> = float::elements::<T>(old)?
                    .iter()
                    .zip(&new)
                    .map(|(o, n)| *o * m + *n * (T::ONE - m))
                    .collect();
                out.push(float::tensor(mixed, old.dims(), old.dtype())?.into());
            }
        }
        Ok(out)
    }

    fn backward<T: Scalar>(&self, v: &Vjp<'_>, dy: &Float) -> Result<Vec<Option<Float>>> {
        let x = super::input(v.inputs, 0)?.float()?;
        let (outer, channels, inner) = Self::split(x.dims());
        let scale = super::input(v.inputs, 1)?.float()?;
        let (mean, variance) = self.moments::<T>(v.inputs, x)?;
        let inv: Vec<T> = variance.iter().map(|v| T::ONE / (*v + T::of(self.epsilon)).sqrt()).collect();
        let (data, grad) = (float::elements::<T>(x)?, float::elements::<T>(dy)?);
        let mut out = vec![None; v.inputs.len()];
        let reduce = v.needs[1] || v.needs[2] || (self.training && v.needs[0]);
        let sums = if reduce { channel_sums(&data, &grad, &mean, inner) } else { vec![] };
        if v.needs[0] {
            let s = float::elements::<T>(scale)?;
            let a: Vec<T> = s.iter().zip(&inv).map(|(s, i)| *s * *i).collect();
            let mut dx = vec![T::ZERO; x.elem_count()];
            channel_affine(&grad, inner, &a, &vec![T::ZERO; channels], &mut dx);
            if self.training {
                // dx = a * (dy - mean(dy) - xhat * mean(dy * xhat))
                let n = T::of((outer * inner).max(1) as f64);
                let slope: Vec<T> =
                    (0..channels).map(|c| -(a[c] * inv[c] * inv[c] * sums[c].1 / n)).collect();
                let offset: Vec<T> =
                    (0..channels).map(|c| -(a[c] * sums[c].0 / n) - mean[c] * slope[c]).collect();
                let mut rest = vec![T::ZERO; x.elem_count()];
                channel_affine(&data, inner, &slope, &offset, &mut rest);
                crate::kernels::real::axpy(T::ONE, &rest, &mut dx);
            }
            out[0] = Some(float::tensor(dx, x.dims(), x.dtype())?);
        }
        if v.needs[1] {
            let ds = sums.iter().zip(&inv).map(|((_, s), i)| *s * *i).collect();
            out[1] = Some(float::tensor(ds, &[channels], scale.dtype())?);
        }
        if v.needs[2] {
            out[2] = Some(float::tensor(sums.iter().map(|s| s.0).collect(), &[channels], scale.dtype())?);
        }
        if !self.training {
            // Running statistics are seldom trained, but a gradient must never be missing.
            if v.needs[3] || v.needs[4] {
                let s = float::elements::<T>(scale)?;
                let sums = channel_sums(&data, &grad, &mean, inner);
                if v.needs[3] {
                    let d = (0..channels).map(|c| -(s[c] * inv[c] * sums[c].0)).collect();
                    out[3] = Some(float::tensor(d, &[channels], scale.dtype())?);
                }
                if v.needs[4] {
                    let half = T::of(-0.5);
                    let d =
                        (0..channels).map(|c| half * s[c] * inv[c] * inv[c] * inv[c] * sums[c].1).collect();
                    out[4] = Some(float::tensor(d, &[channels], scale.dtype())?);
                }
            }
        }
        Ok(out)
    }
}

impl Operator for BatchNorm {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        for i in 1..5 {
            let p = super::input(inputs, i)?;
            let (Some(x), Some(p)) = (&x.shape, &p.shape) else { continue };
            let channels = x.get(1).cloned().unwrap_or_else(|| Dim::from(1i64));
            if x.is_empty() || p.len() != 1 || p[0].known().zip(channels.known()).is_some_and(|(a, b)| a != b)
            {
                return Err(Error::invalid("OP-SHAPE", "a parameter has not one element a channel")
                    .field(format!("input[{i}]"))
                    .found(format!("{p:?} for {x:?}")));
            }
        }
        let mut out = vec![x.without_value()];
        if self.training {
            out.push(super::input(inputs, 3)?.without_value());
            out.push(super::input(inputs, 4)?.without_value());
        }
        Ok(out)
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        float::shapes(self, inputs)?;
        let dtype = super::input(inputs, 0)?.float()?.dtype();
        real!(dtype, T => self.forward::<T>(inputs))
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        if v.grads.iter().skip(1).any(Option::is_some) {
            return Err(Error::unsupported("NO-VJP", "no gradient flows through the running statistics"));
        }
        match &v.grads[0] {
            Some(dy) => real!(dy.dtype(), T => self.backward::<T>(v, dy)),
            None => Ok(vec![None; v.inputs.len()]),
        }
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling = Coupling::default();
        let Some(shape) = inputs.first().copied().flatten().and_then(|f| f.shape.as_ref()) else {
            return coupling;
        };
        for axis in 0..shape.len() {
            coupling.same((Port::In(0), axis), (Port::Out(0), axis));
        }
        if shape.len() > 1 {
            for i in 1..5 {
                coupling.same((Port::In(0), 1), (Port::In(i), 0));
            }
            for o in 1..outputs.len().min(3) {
                coupling.same((Port::In(0), 1), (Port::Out(o), 0));
            }
        }
        coupling
    }
}

/// What one row is.
#[derive(Debug, Clone, Copy)]
enum Span {
    /// All axes from this one on; parameters broadcast to them.
    From(i64),
    /// One channel of one batch entry; one parameter a channel.
    Channel,
    /// A group of channels; one parameter a channel.
    Groups(usize),
}

/// Layer, root-mean-square, instance and group normalisation.
#[derive(Debug)]
struct RowNorm {
    span: Span,
    centred: bool,
    epsilon: f64,
    /// Whether mean and reciprocal deviation are outputs too.
    statistics: bool,
}

impl RowNorm {
    fn rows(&self, x: &[usize]) -> Result<Rows> {
        let (width, channels, cycle) = match self.span {
            Span::From(axis) => {
                let width = x[super::axis(axis, x.len())?..].iter().product();
                (width, width, 1)
            }
            Span::Channel => (x[2..].iter().product(), 1, x[1]),
            Span::Groups(g) => (x[1..].iter().product::<usize>() / g, x[1] / g, g),
        };
        Ok(Rows { width, channels: channels.max(1), cycle, centred: self.centred, epsilon: self.epsilon })
    }

    /// A parameter spelled out to one element a run.
    fn parameter<'a, T: Scalar>(
        &self,
        inputs: &[Option<&'a Value>],
        i: usize,
        x: &[usize],
    ) -> Result<Option<float::Elements<'a, T>>> {
        let Some(value) = inputs.get(i).copied().flatten() else { return Ok(None) };
        if let Span::From(axis) = self.span {
            let normal = &x[super::axis(axis, x.len())?..];
            if value.shape() != normal {
                let wide = value.float()?.broadcast_as(normal)?;
                let owned = wide.to_dtype(T::DTYPE)?.flatten_all()?.to_vec1::<T>()?;
                return Ok(Some(float::Elements::Owned(owned)));
            }
        }
        float::elements::<T>(value.float()?).map(Some)
    }

    fn forward<T: Scalar>(&self, inputs: &[Option<&Value>], shapes: &[Vec<usize>]) -> Result<Vec<Value>> {
        let x = super::input(inputs, 0)?.float()?;
        let rows = self.rows(x.dims())?;
        let (scale, bias) =
            (self.parameter::<T>(inputs, 1, x.dims())?, self.parameter::<T>(inputs, 2, x.dims())?);
        let mut y = vec![T::ZERO; x.elem_count()];
        let moments = rows.forward(&float::elements::<T>(x)?, scale.as_deref(), bias.as_deref(), &mut y);
        let mut out = vec![float::tensor(y, x.dims(), x.dtype())?.into()];
        if self.statistics {
            let (mean, inv): (Vec<T>, Vec<T>) = moments.into_iter().unzip();
            let dtype = if T::DTYPE == candle_core::DType::F64 { T::DTYPE } else { candle_core::DType::F32 };
            out.push(float::tensor(mean, &shapes[1], dtype)?.into());
            out.push(float::tensor(inv, &shapes[1], dtype)?.into());
        }
        Ok(out)
    }

    fn backward<T: Scalar>(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let x = super::input(v.inputs, 0)?.float()?;
        let rows = self.rows(x.dims())?;
        let scale = self.parameter::<T>(v.inputs, 1, x.dims())?;
        let need = |i: usize| v.needs.get(i) == Some(&true);
        let of = |i: usize| v.grads.get(i).and_then(Option::as_ref).map(float::elements::<T>).transpose();
        let data = float::elements::<T>(x)?;
        let dy = match of(0)? {
            Some(dy) => dy,
            None => float::Elements::Owned(vec![T::ZERO; data.len()]),
        };
        let Gradients { x: mut dx, scale: ds, bias: db } =
            rows.backward(&data, scale.as_deref(), &dy, [need(0), need(1), need(2)]);
        if let Some(dx) = &mut dx {
            rows.statistics_backward(&data, of(1)?.as_deref(), of(2)?.as_deref(), dx);
        }
        let mut out = vec![None; v.inputs.len()];
        out[0] = dx.map(|d| float::tensor(d, x.dims(), x.dtype())).transpose()?;
        for (i, d) in [(1, ds), (2, db)] {
            let Some(d) = d else { continue };
            let value = super::input(v.inputs, i)?;
            let wide = match self.span {
                Span::From(axis) => x.dims()[super::axis(axis, x.rank())?..].to_vec(),
                _ => vec![x.dims()[1]],
            };
            let d = float::tensor(d, &wide, x.dtype())?;
            out[i] = Some(broadcast::sum_to(&d, value.shape())?);
        }
        Ok(out)
    }
}

impl Operator for RowNorm {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        let f32_or_64 = if x.dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let Some(shape) = &x.shape else {
            let mut out = vec![Fact::unranked(x.dtype)];
            if self.statistics {
                out.resize(3, Fact::unranked(f32_or_64));
            }
            return Ok(out);
        };
        let wrong = |i: usize, p: &[Dim], want: String| {
            Error::invalid("OP-SHAPE", "a parameter does not fit what is normalised")
                .field(format!("input[{i}]"))
                .found(format!("{p:?}"))
                .limit(want)
        };
        let start = match self.span {
            Span::From(axis) => super::axis(axis, shape.len())?,
            _ if shape.len() < 2 + usize::from(matches!(self.span, Span::Channel)) => {
                return Err(Error::invalid("OP-RANK", "x has no channel or no spatial axis")
                    .found(format!("{shape:?}")));
            }
            _ => 2,
        };
        if let Span::Groups(g) = self.span
            && let Some(c) = shape[1].size()
            && c % g != 0
        {
            return Err(Error::invalid("OP-SHAPE", "groups do not divide the channels")
                .found(format!("{c} channels, {g} groups")));
        }
        for i in 1..3 {
            let Some(p) = inputs.get(i).copied().flatten().and_then(|f| f.shape.as_ref()) else { continue };
            match self.span {
                Span::From(_) => {
                    let normal = &shape[start..];
                    let fits = p.len() <= normal.len()
                        && p.iter()
                            .rev()
                            .zip(normal.iter().rev())
                            .all(|(p, n)| p.is(1) || p.known().zip(n.known()).is_none_or(|(a, b)| a == b));
                    if !fits {
                        return Err(wrong(i, p, format!("{normal:?}")));
                    }
                }
                _ => {
                    if p.len() != 1 || p[0].known().zip(shape[1].known()).is_some_and(|(a, b)| a != b) {
                        return Err(wrong(i, p, format!("[{}]", shape[1])));
                    }
                }
            }
        }
        let mut out = vec![x.without_value()];
        if self.statistics {
            let mut reduced = shape.clone();
            reduced[start..].fill(Dim::from(1i64));
            out.resize(3, Fact::new(f32_or_64, reduced));
        }
        Ok(out)
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shapes = float::shapes(self, inputs)?;
        let dtype = super::input(inputs, 0)?.float()?.dtype();
        real!(dtype, T => self.forward::<T>(inputs, &shapes))
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        if v.grads.iter().all(Option::is_none) {
            return Ok(vec![None; v.inputs.len()]);
        }
        let dtype = super::input(v.inputs, 0)?.float()?.dtype();
        real!(dtype, T => self.backward::<T>(v))
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling = Coupling::default();
        let Some(shape) = inputs.first().copied().flatten().and_then(|f| f.shape.as_ref()) else {
            return coupling;
        };
        let rank = shape.len();
        let start = match self.span {
            Span::From(axis) => super::axis(axis, rank).unwrap_or(rank),
            _ => 2,
        };
        let blocks = match self.span {
            Span::Groups(g) if g > 1 => match shape[1].size() {
                Some(channels) => Some((channels / g, g)),
                None => return coupling,
            },
            _ => None,
        };
        for axis in 0..rank {
            if let (1, Some((per_group, g))) = (axis, blocks) {
                // Groups leave whole, so that the statistics of the others stay as they are.
                let units = Pattern::blocks(per_group);
                for port in [Port::In(1), Port::In(2)] {
                    coupling.link((Port::In(0), 1), units, (port, 0), units, g);
                }
                coupling.link((Port::In(0), 1), units, (Port::Out(0), 1), units, g);
                continue;
            }
            coupling.same((Port::In(0), axis), (Port::Out(0), axis));
            if axis >= start || (axis == 1 && matches!(self.span, Span::Groups(_))) {
                coupling.statistics.push((Port::In(0), axis));
            }
            for o in 1..outputs.len() {
                if axis < start {
                    coupling.same((Port::In(0), axis), (Port::Out(o), axis));
                }
            }
        }
        for i in 1..3 {
            let Some(p) = inputs.get(i).copied().flatten().and_then(|f| f.shape.as_ref()) else { continue };
            match self.span {
                Span::From(_) => {
                    for (axis, d) in p.iter().enumerate() {
                        let to = rank - p.len() + axis;
                        if d.is(1) && !shape[to].is(1) {
                            coupling.free.push((Port::In(i), axis));
                        } else {
                            coupling.same((Port::In(0), to), (Port::In(i), axis));
                        }
                    }
                }
                Span::Groups(g) if g > 1 => {}
                _ => coupling.same((Port::In(0), 1), (Port::In(i), 0)),
            }
        }
        coupling
    }
    fn resize(&self, _: &[Option<&Fact>], _: &[Fact], cut: &Cut) -> Result<Rewrite> {
        let (Span::Groups(g), Some((before, kept))) = (&self.span, cut.of(Port::In(0), 1)) else {
            return Ok(Rewrite::default());
        };
        if *g == 1 {
            return Ok(Rewrite::default());
        }
        let groups = Attr::Int((kept.len() * g / before.max(1)) as i64);
        Ok(Rewrite { attributes: vec![("num_groups".into(), groups)], ..Rewrite::default() })
    }
}
