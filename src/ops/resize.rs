//! Resize and Upsample: one sparse matrix per resized axis, so that nearest, linear and cubic modes,
//! with or without antialiasing, share evaluation and gradient. Coordinates follow the ONNX reference.

use super::float::{self, Float, Scalar, real};
use super::{Attributes, Coupling, Cut, Dim, Fact, Operator, Port, Rewrite, Spec, Vjp};
use crate::error::{Error, Result};
use crate::kernels::resample::Taps;
use crate::tensor::{DType, Tensor, Value, select};
use std::sync::Arc;

const ALL: &[DType] =
    &[DType::F32, DType::F64, DType::F16, DType::BF16, DType::U8, DType::I8, DType::I32, DType::I64];

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec { domain: "", name: "Resize", opsets: (10, super::LAST_OPSET), dtypes: ALL, parse: Resize::parse },
    Spec { domain: "", name: "Upsample", opsets: (7, 9), dtypes: ALL, parse: Resize::upsample },
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Nearest,
    Linear,
    Cubic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coordinates {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
    TfHalfPixelForNn,
    TfCropAndResize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    PreferFloor,
    PreferCeil,
    Floor,
    Ceil,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aspect {
    Stretch,
    NotLarger,
    NotSmaller,
}

#[derive(Debug)]
struct Resize {
    mode: Mode,
    coordinates: Coordinates,
    round: Round,
    aspect: Aspect,
    cubic: f64,
    exclude_outside: bool,
    antialias: bool,
    extrapolation: f64,
    axes: Option<Vec<i64>>,
    /// Scales of `Upsample` before version 9.
    scales: Option<Vec<f64>>,
    /// Inputs that hold roi, scales and sizes.
    slots: (Option<usize>, Option<usize>, Option<usize>),
}

fn choose<T: Copy>(a: &Attributes, name: &str, default: &str, table: &[(&str, T)]) -> Result<T> {
    let found = a.str(name, default)?;
    table.iter().find(|(n, _)| *n == found).map(|(_, v)| *v).ok_or_else(|| {
        let names: Vec<&str> = table.iter().map(|(n, _)| *n).collect();
        Error::invalid("ATTR-RANGE", "attribute value is not known")
            .field(format!("attribute {name}"))
            .found(found)
            .limit(names.join(", "))
    })
}

const MODES: &[(&str, Mode)] = &[
    ("nearest", Mode::Nearest),
    ("linear", Mode::Linear),
    ("bilinear", Mode::Linear),
    ("cubic", Mode::Cubic),
];

/// Where an axis goes: its scale and output size.
#[derive(Debug, Clone)]
struct Target {
    scale: f64,
    size: usize,
}

impl Resize {
    fn simple(mode: Mode, scales: Option<Vec<f64>>) -> Resize {
        Resize {
            mode,
            coordinates: Coordinates::Asymmetric,
            round: Round::Floor,
            aspect: Aspect::Stretch,
            cubic: -0.75,
            exclude_outside: false,
            antialias: false,
            extrapolation: 0.0,
            axes: None,
            slots: (None, scales.is_none().then_some(1), None),
            scales,
        }
    }

    fn upsample(a: &Attributes, opset: i64) -> Result<Arc<dyn Operator>> {
        let mode = choose(a, "mode", "nearest", MODES)?;
        let scales = match opset {
            ..9 => Some(a.floats("scales")?.unwrap_or_default().into_iter().map(f64::from).collect()),
            _ => None,
        };
        Ok(Arc::new(Resize::simple(mode, scales)))
    }

    fn parse(a: &Attributes, opset: i64) -> Result<Arc<dyn Operator>> {
        let mode = choose(a, "mode", "nearest", MODES)?;
        if opset < 11 {
            return Ok(Arc::new(Resize::simple(mode, None)));
        }
        use Coordinates::*;
        let coordinates = choose(
            a,
            "coordinate_transformation_mode",
            "half_pixel",
            &[
                ("half_pixel", HalfPixel),
                ("half_pixel_symmetric", HalfPixelSymmetric),
                ("pytorch_half_pixel", PytorchHalfPixel),
                ("align_corners", AlignCorners),
                ("asymmetric", Asymmetric),
                ("tf_half_pixel_for_nn", TfHalfPixelForNn),
                ("tf_crop_and_resize", TfCropAndResize),
            ],
        )?;
        Ok(Arc::new(Resize {
            mode,
            coordinates,
            round: choose(
                a,
                "nearest_mode",
                "round_prefer_floor",
                &[
                    ("round_prefer_floor", Round::PreferFloor),
                    ("round_prefer_ceil", Round::PreferCeil),
                    ("floor", Round::Floor),
                    ("ceil", Round::Ceil),
                ],
            )?,
            aspect: choose(
                a,
                "keep_aspect_ratio_policy",
                "stretch",
                &[
                    ("stretch", Aspect::Stretch),
                    ("not_larger", Aspect::NotLarger),
                    ("not_smaller", Aspect::NotSmaller),
                ],
            )?,
            cubic: a.float("cubic_coeff_a", -0.75)?.into(),
            exclude_outside: a.int("exclude_outside", 0)? != 0,
            antialias: a.int("antialias", 0)? != 0,
            extrapolation: a.float("extrapolation_value", 0.0)?.into(),
            axes: a.ints("axes")?,
            scales: None,
            slots: (Some(1), Some(2), Some(3)),
        }))
    }

    fn axes(&self, rank: usize) -> Result<Vec<usize>> {
        match &self.axes {
            None => Ok((0..rank).collect()),
            Some(axes) => axes.iter().map(|a| super::axis(*a, rank)).collect(),
        }
    }

    fn present<'a>(inputs: &[Option<&'a Fact>], slot: Option<usize>) -> Option<&'a Fact> {
        let fact = inputs.get(slot?).copied().flatten()?;
        // An empty tensor stands for an absent one.
        let empty = fact.shape.as_ref().is_some_and(|s| s.iter().any(|d| d.is(0)));
        (!empty).then_some(fact)
    }

    fn scales(&self, inputs: &[Option<&Fact>], axes: usize) -> Result<Option<Vec<f64>>> {
        let found = match (&self.scales, Self::present(inputs, self.slots.1)) {
            (Some(s), _) => Some(s.clone()),
            (None, Some(f)) => f.value.as_ref().map(Tensor::to_f64s).transpose()?,
            (None, None) => None,
        };
        if let Some(s) = &found
            && (s.len() != axes || s.iter().any(|v| !(v.is_finite() && *v > 0.0)))
        {
            return Err(Error::invalid(
                "OP-SCALES",
                "scales do not fit: one positive number an axis is needed",
            )
            .found(format!("{s:?}"))
            .limit(format!("{axes} axes")));
        }
        Ok(found)
    }

    /// Scale and output size of every axis from fixed inputs.
    fn targets(&self, x: &[usize], inputs: &[Option<&Fact>]) -> Result<Vec<Target>> {
        let axes = self.axes(x.len())?;
        let mut out: Vec<Target> = x.iter().map(|d| Target { scale: 1.0, size: *d }).collect();
        if let Some(scales) = self.scales(inputs, axes.len())? {
            for (a, s) in axes.into_iter().zip(scales) {
                out[a] = Target { scale: s, size: (x[a] as f64 * s).floor().min(1e15) as usize };
            }
            return Ok(out);
        }
        let sizes = Self::present(inputs, self.slots.2).and_then(Fact::ints);
        let Some(sizes) = sizes else {
            return Err(Error::invalid("OP-INPUT", "neither scales nor sizes are given").field("input[2]"));
        };
        if sizes.len() != axes.len() || sizes.iter().any(|s| *s < 0) || axes.iter().any(|a| x[*a] == 0) {
            return Err(Error::invalid("OP-SIZES", "sizes do not fit the axes")
                .found(format!("{sizes:?}"))
                .limit(format!("{} axes of {x:?}", axes.len())));
        }
        let ratio = |i: usize| sizes[i] as f64 / x[axes[i]] as f64;
        let common = match self.aspect {
            Aspect::Stretch => None,
            Aspect::NotLarger => Some((0..axes.len()).map(ratio).fold(f64::INFINITY, f64::min)),
            Aspect::NotSmaller => Some((0..axes.len()).map(ratio).fold(0.0, f64::max)),
        };
        for (i, a) in axes.iter().enumerate() {
            out[*a] = match common {
                None => Target { scale: ratio(i), size: sizes[i] as usize },
                Some(s) => Target { scale: s, size: (s * x[*a] as f64 + 0.5).floor().min(1e15) as usize },
            };
        }
        Ok(out)
    }

    /// Input coordinate of output `i`; `None` where it lies outside a crop.
    fn coordinate(&self, i: usize, inputs: usize, t: &Target, roi: (f64, f64)) -> Option<f64> {
        let (x, width, scaled) = (i as f64, inputs as f64, inputs as f64 * t.scale);
        let half = (x + 0.5) / t.scale - 0.5;
        Some(match self.coordinates {
            Coordinates::HalfPixel => half,
            Coordinates::HalfPixelSymmetric => width / 2.0 * (1.0 - t.size as f64 / scaled) + half,
            Coordinates::PytorchHalfPixel => {
                if scaled == 1.0 {
                    -0.5
                } else {
                    half
                }
            }
            Coordinates::AlignCorners => {
                if scaled == 1.0 {
                    0.0
                } else {
                    x * (width - 1.0) / (scaled - 1.0)
                }
            }
            Coordinates::Asymmetric => x / t.scale,
            Coordinates::TfHalfPixelForNn => (x + 0.5) / t.scale,
            Coordinates::TfCropAndResize => {
                let span = (roi.1 - roi.0) * (width - 1.0);
                let at = if scaled == 1.0 { span / 2.0 } else { x * span / (scaled - 1.0) };
                let at = at + roi.0 * (width - 1.0);
                if at < 0.0 || at > width - 1.0 {
                    return None;
                }
                at
            }
        })
    }

    /// (first tap relative to the base, weights), for a point `r` in (0, 1] above its base.
    fn weights(&self, r: f64, scale: f64) -> (i64, Vec<f64>) {
        let scale = if self.antialias { scale.min(1.0) } else { 1.0 };
        let reach = if self.mode == Mode::Linear { 1.0 } else { 2.0 };
        let first = (-reach / scale).floor() as i64 + 1;
        let a = self.cubic;
        let weight = |x: f64| {
            let x = x.abs();
            match (self.mode, x) {
                (Mode::Linear, x) => (1.0 - x).max(0.0),
                (_, x) if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
                (_, x) if x < 2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
                _ => 0.0,
            }
        };
        let mut w: Vec<f64> = (first..=1 - first).map(|i| weight((i as f64 - r) * scale)).collect();
        if self.antialias {
            let total: f64 = w.iter().sum();
            w.iter_mut().for_each(|w| *w /= total);
        }
        (first, w)
    }

    fn taps(&self, inputs: usize, t: &Target, roi: (f64, f64)) -> Result<Taps> {
        let last = inputs as i64 - 1;
        let clamp = |i: i64| i.clamp(0, last) as usize;
        if self.antialias && self.mode != Mode::Nearest && 4.0 / t.scale > 1e6 {
            return Err(Error::invalid("OP-SCALES", "scale is too small to antialias").found(t.scale));
        }
        let rows = (0..t.size)
            .map(|i| {
                let x = self.coordinate(i, inputs, t, roi)?;
                if self.mode == Mode::Nearest {
                    let at = match self.round {
                        Round::PreferFloor => (x - 0.5).ceil(),
                        Round::PreferCeil => (x + 0.5).floor(),
                        Round::Floor => x.floor(),
                        Round::Ceil => x.ceil(),
                    };
                    return Some(vec![(clamp(at as i64), 1.0)]);
                }
                let base = x.ceil() - 1.0;
                let (first, mut w) = self.weights(x - base, t.scale);
                let first = base as i64 + first;
                if self.exclude_outside {
                    for (i, w) in w.iter_mut().enumerate() {
                        if !(0..=last).contains(&(first + i as i64)) {
                            *w = 0.0;
                        }
                    }
                    let total: f64 = w.iter().sum();
                    w.iter_mut().for_each(|w| *w /= total);
                }
                let taps = w.into_iter().enumerate().filter(|(_, w)| *w != 0.0);
                Some(taps.map(|(i, w)| (clamp(first + i as i64), w)).collect())
            })
            .collect();
        Ok(Taps { inputs, rows })
    }

    /// The axes that change with their matrices, those that shrink most first.
    fn plan(&self, x: &[usize], inputs: &[Option<&Value>]) -> Result<Vec<(usize, Taps)>> {
        let facts = float::facts(inputs)?;
        let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        let targets = self.targets(x, &refs)?;
        let crop = self.coordinates == Coordinates::TfCropAndResize;
        let axes = self.axes(x.len())?;
        let roi = match self.slots.0.and_then(|s| inputs.get(s).copied().flatten()) {
            Some(v) if crop => {
                let roi = v.to_tensor()?.to_f64s()?;
                if roi.len() != 2 * axes.len() {
                    return Err(Error::invalid("OP-ROI", "roi has not two numbers an axis").found(roi.len()));
                }
                roi
            }
            None if crop => return Err(Error::invalid("OP-INPUT", "roi is missing").field("input[1]")),
            _ => vec![0.0; 2 * axes.len()],
        };
        let mut order: Vec<usize> = (0..x.len())
            .filter(|a| targets[*a].size != x[*a] || targets[*a].scale != 1.0 || (crop && axes.contains(a)))
            .collect();
        order.sort_by(|a, b| targets[*a].scale.total_cmp(&targets[*b].scale));
        order
            .into_iter()
            .map(|a| {
                if x[a] == 0 && targets[a].size > 0 {
                    return Err(
                        Error::invalid("OP-SHAPE", "an empty axis cannot grow").found(format!("{x:?}"))
                    );
                }
                let place = axes.iter().position(|b| *b == a);
                let roi = place.map_or((0.0, 1.0), |p| (roi[p], roi[p + axes.len()]));
                Ok((a, self.taps(x[a], &targets[a], roi)?))
            })
            .collect()
    }

    fn forward<T: Scalar>(&self, x: &Float, plan: &[(usize, Taps)]) -> Result<Float> {
        let mut shape = x.dims().to_vec();
        let mut data = float::elements::<T>(x)?.to_vec();
        for (axis, taps) in plan {
            let inner = shape[axis + 1..].iter().product();
            shape[*axis] = taps.rows.len();
            let mut y = vec![T::ZERO; float::size(&shape)?];
            taps.apply(&data, inner, T::of(self.extrapolation), &mut y);
            data = y;
        }
        float::tensor(data, &shape, x.dtype())
    }

    fn backward<T: Scalar>(&self, x: &[usize], plan: &[(usize, Taps)], dy: &Float) -> Result<Float> {
        let mut shape = dy.dims().to_vec();
        let mut grad = float::elements::<T>(dy)?.to_vec();
        for (axis, taps) in plan.iter().rev() {
            let inner = shape[axis + 1..].iter().product();
            shape[*axis] = taps.inputs;
            let mut dx = vec![T::ZERO; float::size(&shape)?];
            taps.backward(&grad, inner, &mut dx);
            grad = dx;
        }
        float::tensor(grad, x, dy.dtype())
    }
}

impl Operator for Resize {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let axes = self.axes(shape.len())?;
        let known = Self::present(inputs, self.slots.1).is_some_and(|f| f.value.is_some())
            || self.scales.is_some()
            || Self::present(inputs, self.slots.2).is_some_and(|f| f.ints().is_some());
        if let (Some(fixed), true) = (x.fixed_shape(), known) {
            let targets = self.targets(&fixed, inputs)?;
            return Ok(vec![Fact::new(x.dtype, targets.iter().map(|t| Dim::from(t.size)).collect())]);
        }
        let mut out = shape.clone();
        let unknown = |out: &mut [Dim]| axes.iter().for_each(|a| out[*a] = Dim::unknown());
        if let Some(scales) = self.scales(inputs, axes.len())? {
            for (a, s) in axes.iter().zip(scales) {
                let inverse = 1.0 / s;
                out[*a] = match (&out[*a], s) {
                    (d, 1.0) => d.clone(),
                    (d, s) if s.fract() == 0.0 => d.clone() * Dim::from(s as i64),
                    (d, _) if inverse.fract() == 0.0 => d.floor_div(&Dim::from(inverse as i64)),
                    (d, s) => {
                        d.known().map_or_else(Dim::unknown, |n| Dim::from((n as f64 * s).floor() as i64))
                    }
                };
            }
        } else if let (Some(dims), Aspect::Stretch) =
            (Self::present(inputs, self.slots.2).and_then(|f| f.dims.as_ref()), self.aspect)
        {
            if dims.len() != axes.len() {
                return Err(Error::invalid("OP-SIZES", "sizes do not fit the axes")
                    .found(dims.len())
                    .limit(axes.len()));
            }
            axes.iter().zip(dims).for_each(|(a, d)| out[*a] = d.clone());
        } else {
            unknown(&mut out);
        }
        Ok(vec![Fact::new(x.dtype, out)])
    }

    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        float::shapes(self, inputs)?;
        let x = super::input(inputs, 0)?;
        let plan = self.plan(x.shape(), inputs)?;
        match x {
            Value::Float(x) => Ok(vec![real!(x.dtype(), T => self.forward::<T>(x, &plan))?.into()]),
            Value::Host(x)
                if self.mode == Mode::Nearest && self.coordinates != Coordinates::TfCropAndResize =>
            {
                let mut shape = x.shape().to_vec();
                let mut data = x.data()?;
                for (axis, taps) in &plan {
                    let indices: Vec<usize> = taps.rows.iter().flatten().map(|r| r[0].0).collect();
                    data = Arc::new(select(&data, &shape, *axis, &indices));
                    shape[*axis] = indices.len();
                }
                let data = Arc::try_unwrap(data).unwrap_or_else(|d| (*d).clone());
                Ok(vec![Tensor::new(x.dtype(), shape, data)?.into()])
            }
            Value::Host(x) => {
                Err(Error::unsupported("OP-TYPE", "integers are resized by nearest mode only")
                    .found(x.dtype()))
            }
        }
    }

    fn differentiable(&self) -> bool {
        true
    }

    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let mut out = vec![None; v.inputs.len()];
        if let (Some(dy), true) = (&v.grads[0], v.needs[0]) {
            let x = super::input(v.inputs, 0)?.shape();
            let plan = self.plan(x, v.inputs)?;
            out[0] = Some(real!(dy.dtype(), T => self.backward::<T>(x, &plan, dy))?);
        }
        Ok(out)
    }

    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling =
            Coupling { reason: Some("resized axes keep their size".into()), ..Coupling::default() };
        let x = inputs.first().copied().flatten();
        let (Some(x), Some(y)) = (x.and_then(|f| f.shape.as_ref()), &outputs[0].shape) else {
            return coupling;
        };
        let axes = self.axes(x.len()).unwrap_or_default();
        let sizes = Self::present(inputs, self.slots.2);
        // Sizes that are not constant cannot be rewritten; they tie nothing.
        let rewritable = sizes.is_none_or(|f| f.value.is_some());
        for (axis, (a, b)) in x.iter().zip(y).enumerate() {
            if a == b && (!axes.contains(&axis) || rewritable) && self.aspect == Aspect::Stretch {
                coupling.same((Port::In(0), axis), (Port::Out(0), axis));
            }
        }
        coupling
    }

    fn resize(&self, inputs: &[Option<&Fact>], _: &[Fact], cut: &Cut) -> Result<Rewrite> {
        let mut rewrite = Rewrite::default();
        let (Some(slot), Some(fact)) = (self.slots.2, Self::present(inputs, self.slots.2)) else {
            return Ok(rewrite);
        };
        let rank = super::input(inputs, 0)?.rank().unwrap_or(0);
        if let Some(mut sizes) = fact.ints() {
            let mut changed = false;
            for (i, axis) in self.axes(rank)?.into_iter().enumerate() {
                if let Some((_, kept)) = cut.of(Port::In(0), axis) {
                    sizes[i] = kept.len() as i64;
                    changed = true;
                }
            }
            if changed {
                rewrite.inputs.push((slot, Tensor::from_vec(vec![sizes.len()], sizes)?));
            }
        }
        Ok(rewrite)
    }
}
