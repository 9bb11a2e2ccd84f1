//! Operators that copy elements by position: Transpose, Concat, Split, Slice, Expand, Tile, Pad,
//! SpaceToDepth, DepthToSpace, Trilu, ReverseSequence.

use super::elements::{self, rearrange};
use super::{Attr, Attributes, Coupling, Cut, Dim, Fact, Keeps, Operator, Pattern, Port, Rewrite, Spec, Vjp};
use super::{broadcast, float, reshape};
use crate::error::{Error, Result};
use crate::kernels::movement::{FILL, permute, pick, unpick};
use crate::tensor::{DType, Tensor, Value};
use candle_core::Tensor as Float;
use std::sync::Arc;

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec::new("Transpose", 1, DType::ALL, |a, _| Ok(Arc::new(Transpose { perm: a.ints("perm")? }))),
    Spec::new("Concat", 4, DType::ALL, |a, _| {
        let axis = a.opt_int("axis")?;
        Ok(Arc::new(Concat { axis: axis.ok_or_else(|| missing("axis"))? }))
    }),
    Spec::new("Split", 2, DType::ALL, |a, v| {
        Ok(Arc::new(Split {
            axis: a.int("axis", 0)?,
            sizes: if v < 13 { a.ints("split")? } else { None },
            parts: if v >= 18 { a.opt_int("num_outputs")? } else { None },
            from_input: v >= 13,
            outputs: a.outputs(),
        }))
    }),
    Spec::new("Slice", 1, DType::ALL, |a, v| {
        let given = if v < 10 {
            let need = |n: &str| a.ints(n)?.ok_or_else(|| missing(n));
            Some((need("starts")?, need("ends")?, a.ints("axes")?))
        } else {
            None
        };
        Ok(Arc::new(Slice { given }))
    }),
    Spec::new("Expand", 8, DType::ALL, |_, _| Ok(Arc::new(Expand))),
    Spec::new("Tile", 6, DType::ALL, |_, _| Ok(Arc::new(Tile))),
    Spec::new("Pad", 2, DType::ALL, Pad::parse),
    Spec::new("SpaceToDepth", 1, DType::ALL, |a, _| Blocks::parse(a, Layout::SpaceToDepth)),
    Spec::new("DepthToSpace", 1, DType::ALL, |a, _| match a.str("mode", "DCR")?.as_str() {
        "DCR" => Blocks::parse(a, Layout::Dcr),
        "CRD" => Blocks::parse(a, Layout::Crd),
        other => Err(mode(other)),
    }),
    Spec::new("Trilu", 14, DType::ALL, |a, _| Ok(Arc::new(Trilu { upper: a.int("upper", 1)? != 0 }))),
    Spec::new("ReverseSequence", 10, DType::ALL, |a, _| {
        let (batch, time) = (a.int("batch_axis", 1)?, a.int("time_axis", 0)?);
        match (batch, time) {
            (1, 0) | (0, 1) => Ok(Arc::new(ReverseSequence { batch: batch as usize })),
            _ => Err(Error::invalid("ATTR-RANGE", "batch and time axis must be 0 and 1 in either order")),
        }
    }),
];

fn missing(name: &str) -> Error {
    Error::invalid("ATTR-MISSING", "a required attribute is missing").field(format!("attribute {name}"))
}

fn mode(found: &str) -> Error {
    Error::invalid("ATTR-VALUE", "mode is not known").field("attribute mode").found(found)
}

/// Whole axes.
fn identity(shape: &[usize]) -> Vec<Vec<usize>> {
    shape.iter().map(|n| (0..*n).collect()).collect()
}

/// The elements at `maps`; `fill` elsewhere, or the type's zero.
fn picked(x: &Value, maps: &[Vec<usize>], fill: Option<&Value>) -> Result<Value> {
    let out: Vec<usize> = maps.iter().map(Vec::len).collect();
    float::size(&out)?;
    let mut values = vec![x];
    values.extend(fill);
    rearrange!(&values, &out, v => {
        let fill = v.get(1).and_then(|f| f.first()).cloned().unwrap_or_default();
        Ok::<_, Error>(pick(v[0], x.shape(), maps, &fill))
    })
}

/// The gradient of [`picked`] with respect to `x`.
fn unpicked(grad: &Float, shape: &[usize], maps: &[Vec<usize>]) -> Result<Float> {
    float::real!(grad.dtype(), T => {
        float::tensor(unpick::<T>(&float::elements::<T>(grad)?, shape, maps), shape, grad.dtype())
    })
}

/// Gradients of which only the first input's may be present.
fn first(v: &Vjp<'_>, grad: impl FnOnce(&Float) -> Result<Float>) -> Result<Vec<Option<Float>>> {
    let mut grads = vec![None; v.inputs.len()];
    if let (Some(g), true) = (&v.grads[0], v.needs[0]) {
        grads[0] = Some(grad(g)?);
    }
    Ok(grads)
}

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
        let x = super::input(inputs, 0)?;
        Ok(vec![match &x.shape {
            Some(s) => {
                let perm = self.perm(s.len())?;
                reshape::carry(x, Fact::new(x.dtype, perm.into_iter().map(|p| s[p].clone()).collect()))
            }
            None => Fact::unranked(x.dtype),
        }])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let x = super::input(inputs, 0)?;
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

/// Inputs one after the other along an axis.
#[derive(Debug)]
struct Concat {
    axis: i64,
}

impl Operator for Concat {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let dtype = elements::common_type(inputs)?;
        let facts: Vec<&Fact> = inputs.iter().flatten().copied().collect();
        let Some(mut out) = facts.iter().find_map(|f| f.shape.clone()) else {
            return Ok(vec![Fact::unranked(dtype)]);
        };
        let axis = super::axis(self.axis, out.len())?;
        out[axis] = Dim::from(0i64);
        for (i, f) in facts.iter().enumerate() {
            let Some(shape) = &f.shape else {
                out[axis] = Dim::unknown();
                break;
            };
            if shape.len() != out.len() {
                return Err(Error::invalid("OP-CONCAT", "inputs differ in rank")
                    .field(format!("input[{i}]"))
                    .found(shape.len())
                    .limit(out.len()));
            }
            for (a, d) in shape.iter().enumerate() {
                if a == axis {
                    out[a] = out[a].clone() + d.clone();
                    continue;
                }
                match (out[a].known(), d.known()) {
                    (Some(x), Some(y)) if x != y => {
                        return Err(Error::invalid("OP-CONCAT", format!("inputs differ in axis {a}"))
                            .field(format!("input[{i}]"))
                            .found(y)
                            .limit(x));
                    }
                    (None, Some(_)) => out[a] = d.clone(),
                    _ => {}
                }
            }
        }
        let content: Option<Vec<Dim>> = match out.len() {
            1 => facts.iter().map(|f| f.dims.clone()).collect::<Option<Vec<_>>>().map(|v| v.concat()),
            _ => None,
        };
        Ok(vec![content.map_or_else(|| Fact::new(dtype, out), |d| Fact::of_dims(dtype, d, false))])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.swap_remove(0);
        let axis = super::axis(self.axis, shape.len())?;
        let values: Vec<&Value> = inputs.iter().flatten().copied().collect();
        let outer: usize = shape[..axis].iter().product();
        let inner: usize = shape[axis + 1..].iter().product();
        let widths: Vec<usize> = values.iter().map(|v| v.shape()[axis] * inner).collect();
        Ok(vec![rearrange!(&values, &shape, v => {
            let mut out = Vec::with_capacity(shape.iter().product());
            for o in 0..outer {
                for (v, w) in v.iter().zip(&widths) {
                    out.extend_from_slice(&v[o * w..(o + 1) * w]);
                }
            }
            Ok::<_, Error>(out)
        })?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let Some(g) = &v.grads[0] else { return Ok(vec![None; v.inputs.len()]) };
        let axis = super::axis(self.axis, g.rank())?;
        let mut at = 0;
        v.inputs
            .iter()
            .zip(v.needs)
            .map(|(x, needed)| {
                let Some(x) = x else { return Ok(None) };
                let (from, n) = (at, x.shape()[axis]);
                at += n;
                Ok(if *needed { Some(g.narrow(axis, from, n)?.contiguous()?) } else { None })
            })
            .collect()
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling = Coupling::default();
        let rank = outputs[0].rank().unwrap_or(0);
        let Ok(along) = super::axis(self.axis, rank) else { return coupling };
        let mut at = Some(0);
        for (i, input) in inputs.iter().enumerate() {
            let Some(input) = input else { continue };
            for axis in (0..rank).filter(|a| *a != along) {
                coupling.same((Port::In(i), axis), (Port::Out(0), axis));
            }
            let n = input.shape.as_ref().and_then(|s| s.get(along)).and_then(Dim::size);
            if let (Some(start), Some(n)) = (at, n) {
                let units = (Pattern::from(0), Pattern::from(start));
                coupling.link((Port::In(i), along), units.0, (Port::Out(0), along), units.1, n);
            }
            at = at.zip(n).map(|(a, n)| a + n);
        }
        coupling
    }
}

/// Parts along an axis: of given sizes, or equal with a smaller last one.
#[derive(Debug)]
struct Split {
    axis: i64,
    sizes: Option<Vec<i64>>,
    parts: Option<i64>,
    from_input: bool,
    /// Number of outputs of the node.
    outputs: Option<usize>,
}

/// Most outputs that a split is trusted to have.
const MAX_PARTS: i64 = 1 << 16;

impl Split {
    /// Sizes where given; else `None` for equal parts.
    fn given(&self, inputs: &[Option<&Fact>]) -> Result<Option<Option<Vec<Dim>>>> {
        match inputs.get(1).copied().flatten().filter(|_| self.from_input) {
            Some(f) => Ok(Some(f.dims.clone())),
            None => Ok(self.sizes.as_ref().map(|v| Some(v.iter().map(|n| Dim::from(*n)).collect()))),
        }
    }

    fn sizes(&self, whole: &Dim, inputs: &[Option<&Fact>]) -> Result<Vec<Dim>> {
        if let Some(given) = self.given(inputs)? {
            let Some(sizes) = given else {
                let n = inputs[1].and_then(|f| f.shape.as_ref()).and_then(|s| s.first()).and_then(Dim::size);
                return Ok((0..n.or(self.outputs).unwrap_or(0).min(MAX_PARTS as usize))
                    .map(|_| Dim::unknown())
                    .collect());
            };
            let sum = sizes.iter().fold(Dim::from(0i64), |s, d| s + d.clone());
            let negative = sizes.iter().any(|d| d.known().is_some_and(|n| n < 0));
            if negative || matches!((sum.known(), whole.known()), (Some(a), Some(b)) if a != b) {
                return Err(Error::invalid("OP-SPLIT", "the parts do not make up the axis")
                    .found(format!("{sizes:?}"))
                    .limit(whole));
            }
            return Ok(sizes);
        }
        let parts = self.parts.or(self.outputs.map(|n| n as i64)).unwrap_or(0);
        if !(1..=MAX_PARTS).contains(&parts) {
            return Err(Error::invalid("OP-SPLIT", "the number of parts is not known").found(parts));
        }
        let part = whole.ceil_div(&Dim::from(parts));
        let last = whole.clone() - part.clone() * Dim::from(parts - 1);
        if last.known().is_some_and(|n| n < 0) {
            return Err(Error::invalid("OP-SPLIT", "the axis is too short").found(whole).limit(parts));
        }
        // A symbolic size is taken to divide evenly.
        let last = if last.known().is_some() { last } else { part.clone() };
        Ok((0..parts).map(|i| if i + 1 == parts { last.clone() } else { part.clone() }).collect())
    }

    fn split(&self, inputs: &[Option<&Fact>]) -> Result<Option<(usize, Vec<Dim>)>> {
        let x = super::input(inputs, 0)?;
        let Some(shape) = &x.shape else { return Ok(None) };
        let axis = super::axis(self.axis, shape.len())?;
        Ok(Some((axis, self.sizes(&shape[axis], inputs)?)))
    }
}

impl Operator for Split {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        let Some((axis, sizes)) = self.split(inputs)? else { return Ok(vec![]) };
        let mut at = 0;
        Ok(sizes
            .into_iter()
            .map(|n| {
                let mut shape = x.shape.clone().unwrap_or_default();
                shape[axis] = n.clone();
                let range = n.size().map(|n| at..at + n);
                at += n.size().unwrap_or(0);
                match (&x.dims, range) {
                    (Some(d), Some(r)) if shape.len() == 1 && r.end <= d.len() => {
                        Fact::of_dims(x.dtype, d[r].to_vec(), false)
                    }
                    _ => Fact::new(x.dtype, shape),
                }
            })
            .collect())
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shapes = float::shapes(self, inputs)?;
        let x = super::input(inputs, 0)?;
        let axis = super::axis(self.axis, x.shape().len())?;
        let mut maps = identity(x.shape());
        let mut at = 0;
        shapes
            .into_iter()
            .map(|s| {
                maps[axis] = (at..at + s[axis]).collect();
                at += s[axis];
                picked(x, &maps, None)
            })
            .collect()
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let mut grads = vec![None; v.inputs.len()];
        let x = super::input(v.inputs, 0)?;
        if !v.needs[0] || v.grads.iter().all(Option::is_none) {
            return Ok(grads);
        }
        let axis = super::axis(self.axis, x.shape().len())?;
        let like = v.grads.iter().flatten().next().map_or(candle_core::DType::F32, |g| g.dtype());
        let mut parts = Vec::new();
        for (g, shape) in v.grads.iter().zip(float::shapes(self, v.inputs)?) {
            parts.push(match g {
                Some(g) => g.clone(),
                None => Float::zeros(shape, like, &candle_core::Device::Cpu)?,
            });
        }
        grads[0] = Some(Float::cat(&parts, axis)?.contiguous()?);
        Ok(grads)
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling = Coupling::default();
        let Ok(Some((along, sizes))) = self.split(inputs) else { return coupling };
        let mut at = Some(0);
        for (o, (output, n)) in outputs.iter().zip(sizes).enumerate() {
            for axis in (0..output.rank().unwrap_or(0)).filter(|a| *a != along) {
                coupling.same((Port::In(0), axis), (Port::Out(o), axis));
            }
            if let (Some(start), Some(n)) = (at, n.size()) {
                let units = (Pattern::from(start), Pattern::from(0));
                coupling.link((Port::In(0), along), units.0, (Port::Out(o), along), units.1, n);
            }
            at = at.zip(n.size()).map(|(a, n)| a + n);
        }
        coupling
    }
    fn resize(&self, inputs: &[Option<&Fact>], outputs: &[Fact], cut: &Cut) -> Result<Rewrite> {
        let Some((along, sizes)) = self.split(inputs)? else { return Ok(Rewrite::default()) };
        let kept = |o: usize| cut.of(Port::Out(o), along).map(|(_, kept)| kept.len() as i64);
        if (0..outputs.len()).all(|o| kept(o).is_none()) {
            return Ok(Rewrite::default());
        }
        let new: Option<Vec<i64>> =
            sizes.iter().enumerate().map(|(o, n)| kept(o).or_else(|| n.known())).collect();
        let Some(new) = new else { return Ok(Rewrite::default()) };
        if self.given(inputs)?.is_none() {
            // Equal parts stay equal parts: all but the last as long as the first, which no part exceeds.
            let total: i64 = new.iter().sum();
            let part = (total + new.len() as i64 - 1) / new.len() as i64;
            if new[..new.len() - 1].iter().all(|n| *n == part) {
                return Ok(Rewrite::default());
            }
        }
        Ok(if self.from_input {
            // Explicit sizes and a number of parts exclude each other.
            let remove = self.parts.map(|_| "num_outputs".to_string()).into_iter().collect();
            let inputs = vec![(1, Tensor::from_vec(vec![new.len()], new)?)];
            Rewrite { inputs, remove, ..Rewrite::default() }
        } else {
            Rewrite { attributes: vec![("split".into(), Attr::Ints(new))], ..Rewrite::default() }
        })
    }
}

/// `x[start:end:step]` along axes, as Python counts.
#[derive(Debug)]
struct Slice {
    /// Attribute form: starts, ends, axes.
    given: Option<(Vec<i64>, Vec<i64>, Option<Vec<i64>>)>,
}

/// One axis of a slice in numbers.
#[derive(Debug, Clone, Copy)]
struct Range {
    start: i64,
    end: i64,
    step: i64,
}

impl Range {
    /// First index and count on an axis of `n`.
    fn on(self, n: usize) -> (i64, usize) {
        let n = n as i64;
        let wrap = |v: i64| if v < 0 { v.saturating_add(n) } else { v };
        if self.step > 0 {
            let (s, e) = (wrap(self.start).clamp(0, n), wrap(self.end).clamp(0, n));
            // Ceiling, without overflow for the largest steps.
            let span = (e - s).max(0);
            (s, (span / self.step + i64::from(span % self.step != 0)) as usize)
        } else {
            let (s, e) = (wrap(self.start).clamp(-1, n - 1), wrap(self.end).clamp(-1, n - 1));
            let (span, step) = ((s - e).max(0), self.step.saturating_neg());
            (s, (span / step + i64::from(span % step != 0)) as usize)
        }
    }
    fn map(self, n: usize) -> Vec<usize> {
        let (start, count) = self.on(n);
        (0..count as i64).map(|i| (start + i * self.step) as usize).collect()
    }
}

/// Starts, ends, axes and steps as dimensions; a part is `None` where it is not known.
struct Spans {
    starts: Option<Vec<Dim>>,
    ends: Option<Vec<Dim>>,
    axes: Option<Vec<i64>>,
    steps: Option<Vec<i64>>,
}

impl Slice {
    fn spans(&self, inputs: &[Option<&Fact>]) -> Result<Spans> {
        let wide = |v: &[i64]| Some(v.iter().map(|n| Dim::from(*n)).collect::<Vec<_>>());
        if let Some((starts, ends, axes)) = &self.given {
            let axes = axes.clone().unwrap_or_else(|| (0..starts.len() as i64).collect());
            let steps = vec![1; starts.len()];
            return Ok(Spans {
                starts: wide(starts),
                ends: wide(ends),
                axes: Some(axes),
                steps: Some(steps),
            });
        }
        let (starts, ends) = (super::input(inputs, 1)?, super::input(inputs, 2)?);
        let count = |f: &Fact| f.shape.as_ref().and_then(|s| s.first()).and_then(Dim::size);
        let n = count(starts).or(count(ends)).unwrap_or(0).min(64);
        let option = |i: usize, otherwise: Vec<i64>| match inputs.get(i).copied().flatten() {
            Some(f) => f.ints(),
            None => Some(otherwise),
        };
        Ok(Spans {
            starts: starts.dims.clone(),
            ends: ends.dims.clone(),
            axes: option(3, (0..n as i64).collect()),
            steps: option(4, vec![1; n]),
        })
    }

    /// For each sliced axis: start, end, step. `None` where not even the axes are known.
    #[allow(clippy::type_complexity)]
    fn axes(
        &self,
        rank: usize,
        inputs: &[Option<&Fact>],
    ) -> Result<Option<Vec<(usize, Option<Dim>, Option<Dim>, Option<i64>)>>> {
        let spans = self.spans(inputs)?;
        let Some(axes) = spans.axes else { return Ok(None) };
        let lengths = [
            spans.starts.as_ref().map(Vec::len),
            spans.ends.as_ref().map(Vec::len),
            spans.steps.as_ref().map(Vec::len),
        ];
        if lengths.iter().flatten().any(|n| *n != axes.len()) {
            return Err(Error::invalid("OP-SLICE", "starts, ends, axes and steps differ in length")
                .found(format!("{lengths:?}"))
                .limit(axes.len()));
        }
        let mut out: Vec<(usize, Option<Dim>, Option<Dim>, Option<i64>)> = Vec::new();
        for (i, a) in axes.iter().enumerate() {
            let axis = super::axis(*a, rank)?;
            if out.iter().any(|(b, ..)| *b == axis) {
                return Err(Error::invalid("OP-AXIS", "an axis is named twice").found(axis));
            }
            let step = spans.steps.as_ref().map(|v| v[i]);
            if step == Some(0) {
                return Err(Error::invalid("OP-SLICE", "a step is zero").field(format!("axis {axis}")));
            }
            let at = |v: &Option<Vec<Dim>>| v.as_ref().map(|v| v[i].clone());
            out.push((axis, at(&spans.starts), at(&spans.ends), step));
        }
        Ok(Some(out))
    }

    /// Numbers of a sliced axis.
    fn range(start: &Option<Dim>, end: &Option<Dim>, step: Option<i64>) -> Option<Range> {
        Some(Range { start: start.as_ref()?.known()?, end: end.as_ref()?.known()?, step: step? })
    }

    fn maps(&self, shape: &[usize], inputs: &[Option<&Fact>]) -> Result<Vec<Vec<usize>>> {
        let mut maps = identity(shape);
        let open = || Error::invalid("OP-SLICE", "starts, ends, axes and steps must be integers");
        for (axis, start, end, step) in self.axes(shape.len(), inputs)?.ok_or_else(open)? {
            maps[axis] = Slice::range(&start, &end, step).ok_or_else(open)?.map(shape[axis]);
        }
        Ok(maps)
    }

    /// Size of a sliced axis where something is symbolic: exact for whole prefixes and suffixes, given
    /// that symbols are at least as large as the numbers they are compared with.
    fn symbolic(n: &Dim, start: &Option<Dim>, end: &Option<Dim>, step: Option<i64>) -> Option<Dim> {
        let (start, end, step) = (start.as_ref()?, end.as_ref()?, step?);
        if step == -1
            && start.known().is_some_and(|s| s == -1 || s >= i64::from(i32::MAX))
            && end.known().is_some_and(|e| e <= -i64::from(i32::MAX))
        {
            return Some(n.clone());
        }
        if step < 1 {
            return None;
        }
        let resolve = |d: &Dim| match d.known() {
            Some(v) if v < 0 => Some(n.clone() + d.clone()),
            Some(v) if v >= i64::from(i32::MAX) => Some(n.clone()),
            _ => Some(d.clone()),
        };
        let (s, e) = (resolve(start)?, resolve(end)?);
        // An end that is a plain number may lie behind a symbolic size.
        if n.known().is_none() && e.known().is_some_and(|e| e != 1) {
            return None;
        }
        // With a known size, a symbolic end may lie behind it.
        if n.known().is_some() && e.known().is_none() {
            return None;
        }
        let span = e - s;
        if span.known().is_some_and(|v| v < 0) {
            return Some(Dim::from(0i64));
        }
        Some(span.ceil_div(&Dim::from(step)))
    }
}

impl Operator for Slice {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let Some(axes) = self.axes(shape.len(), inputs)? else {
            return Ok(vec![Fact::new(x.dtype, shape.iter().map(|_| Dim::unknown()).collect())]);
        };
        let mut out = shape.clone();
        for (axis, start, end, step) in axes {
            out[axis] = match (Slice::range(&start, &end, step), shape[axis].size()) {
                (Some(r), Some(n)) => {
                    if let (Some(dims), 1) = (&x.dims, shape.len()) {
                        let content = r.map(n).into_iter().filter_map(|i| dims.get(i).cloned()).collect();
                        return Ok(vec![Fact::of_dims(x.dtype, content, false)]);
                    }
                    Dim::from(r.on(n).1)
                }
                _ => Slice::symbolic(&shape[axis], &start, &end, step).unwrap_or_else(Dim::unknown),
            };
        }
        Ok(vec![Fact::new(x.dtype, out)])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let facts = float::facts(inputs)?;
        let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        let x = super::input(inputs, 0)?;
        Ok(vec![picked(x, &self.maps(x.shape(), &refs)?, None)?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        first(v, |g| {
            let facts = float::facts(v.inputs)?;
            let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
            let shape = super::input(v.inputs, 0)?.shape();
            unpicked(g, shape, &self.maps(shape, &refs)?)
        })
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling = Coupling::default();
        let (Some(shape), Some(out)) = (inputs[0].and_then(|f| f.shape.as_ref()), outputs[0].shape.as_ref())
        else {
            return coupling;
        };
        let Ok(Some(axes)) = self.axes(shape.len(), inputs) else { return coupling };
        for axis in 0..shape.len() {
            match axes.iter().find(|(a, ..)| *a == axis) {
                None => coupling.same((Port::In(0), axis), (Port::Out(0), axis)),
                Some((_, start, end, step)) => {
                    let (Some(r), Some(n)) = (Slice::range(start, end, *step), shape[axis].size()) else {
                        if shape[axis] == out[axis] {
                            coupling.same((Port::In(0), axis), (Port::Out(0), axis));
                        }
                        continue;
                    };
                    let (from, count) = r.on(n);
                    if r.step == 1 {
                        let units = (Pattern::from(from as usize), Pattern::from(0));
                        coupling.link((Port::In(0), axis), units.0, (Port::Out(0), axis), units.1, count);
                    }
                }
            }
        }
        coupling
    }
    fn resize(&self, inputs: &[Option<&Fact>], _: &[Fact], cut: &Cut) -> Result<Rewrite> {
        let Some(shape) = super::input(inputs, 0)?.shape.as_ref() else { return Ok(Rewrite::default()) };
        let Some(axes) = self.axes(shape.len(), inputs)? else { return Ok(Rewrite::default()) };
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        let mut changed = false;
        for (axis, start, end, step) in &axes {
            let (Some(s), Some(e)) = (start.as_ref().and_then(Dim::known), end.as_ref().and_then(Dim::known))
            else {
                return Ok(Rewrite::default());
            };
            match (cut.of(Port::In(0), *axis), step) {
                (Some((before, kept)), Some(1)) => {
                    let (from, count) = Range { start: s, end: e, step: 1 }.on(before);
                    let below = |limit: i64| kept.iter().filter(|k| (**k as i64) < limit).count() as i64;
                    starts.push(below(from));
                    ends.push(below(from + count as i64));
                    changed = true;
                }
                _ => {
                    starts.push(s);
                    ends.push(e);
                }
            }
        }
        if !changed {
            return Ok(Rewrite::default());
        }
        if self.given.is_some() {
            let attributes = vec![("starts".into(), Attr::Ints(starts)), ("ends".into(), Attr::Ints(ends))];
            return Ok(Rewrite { attributes, ..Rewrite::default() });
        }
        let tensor = |i: usize, v: Vec<i64>| -> Result<(usize, Tensor)> {
            let dtype = super::input(inputs, i)?.dtype;
            Ok((i, Tensor::from_vec(vec![v.len()], v)?.cast_to(dtype)))
        };
        Ok(Rewrite { inputs: vec![tensor(1, starts)?, tensor(2, ends)?], ..Rewrite::default() })
    }
}

/// Broadcasts to a shape (both ways).
#[derive(Debug)]
struct Expand;

impl Operator for Expand {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (x, shape) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
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
        Ok(vec![expanded(super::input(inputs, 0)?, &shape)?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        first(v, |g| broadcast::sum_to(g, super::input(v.inputs, 0)?.shape()))
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
        let (x, repeats) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
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
        let x = super::input(inputs, 0)?;
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
            let shape = super::input(v.inputs, 0)?.shape();
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PadMode {
    Constant,
    Reflect,
    Edge,
    Wrap,
}

/// Elements added (or, where negative, taken off) around axes.
#[derive(Debug)]
struct Pad {
    mode: PadMode,
    /// Attribute form: pads and value.
    given: Option<(Vec<i64>, f32)>,
}

impl Pad {
    fn parse(a: &Attributes, opset: i64) -> Result<Arc<dyn Operator>> {
        let mode = match a.str("mode", "constant")?.as_str() {
            "constant" => PadMode::Constant,
            "reflect" => PadMode::Reflect,
            "edge" => PadMode::Edge,
            "wrap" => PadMode::Wrap,
            other => return Err(self::mode(other)),
        };
        let given = if opset < 11 {
            Some((a.ints("pads")?.ok_or_else(|| missing("pads"))?, a.float("value", 0.0)?))
        } else {
            None
        };
        Ok(Arc::new(Pad { mode, given }))
    }

    /// (before, after) of every axis; `None` where not known.
    fn pads(&self, rank: usize, inputs: &[Option<&Fact>]) -> Result<Option<Vec<(Dim, Dim)>>> {
        let pads: Vec<Dim> = match &self.given {
            Some((pads, _)) => pads.iter().map(|n| Dim::from(*n)).collect(),
            None => match &super::input(inputs, 1)?.dims {
                Some(d) => d.clone(),
                None => return Ok(None),
            },
        };
        let axes: Vec<i64> = match inputs.get(3).copied().flatten() {
            Some(f) => match f.ints() {
                Some(a) => a,
                None => return Ok(None),
            },
            None => (0..rank as i64).collect(),
        };
        if pads.len() != 2 * axes.len() {
            return Err(Error::invalid("OP-PAD", "pads must be two sizes an axis")
                .found(pads.len())
                .limit(2 * axes.len()));
        }
        let mut out = vec![(Dim::from(0i64), Dim::from(0i64)); rank];
        for (i, a) in axes.iter().enumerate() {
            out[super::axis(*a, rank)?] = (pads[i].clone(), pads[i + axes.len()].clone());
        }
        Ok(Some(out))
    }

    fn map(&self, n: usize, before: i64, after: i64, axis: usize) -> Result<Vec<usize>> {
        let size = n as i64;
        let out = size.saturating_add(before).saturating_add(after);
        let bad = |what: &str| {
            Error::invalid("OP-PAD", what.to_string())
                .field(format!("axis {axis}"))
                .found(format!("{before}, {after}"))
                .limit(format!("size {n}"))
        };
        if out < 0 {
            return Err(bad("more is taken off than there is"));
        }
        float::size(&[out as usize])?;
        // Cropping comes first; the rest is padded from what remains.
        let (low, high) = ((-before).max(0), size - (-after).max(0));
        let kept = high - low;
        if kept <= 0 && out > 0 && self.mode != PadMode::Constant {
            return Err(bad("there is nothing to pad from"));
        }
        Ok((0..out)
            .map(|o| {
                let i = o - before.max(0);
                let inside = (0..kept).contains(&i);
                match self.mode {
                    PadMode::Constant if !inside => FILL,
                    PadMode::Edge => (low + i.clamp(0, kept - 1)) as usize,
                    PadMode::Wrap => (low + i.rem_euclid(kept)) as usize,
                    PadMode::Reflect if !inside => {
                        let period = (2 * (kept - 1)).max(1);
                        let r = i.rem_euclid(period);
                        (low + if r < kept { r } else { period - r }) as usize
                    }
                    _ => (low + i) as usize,
                }
            })
            .collect())
    }

    fn maps(&self, shape: &[usize], inputs: &[Option<&Fact>]) -> Result<Vec<Vec<usize>>> {
        let open = || Error::invalid("OP-PAD", "pads must be integers");
        let pads = self.pads(shape.len(), inputs)?.ok_or_else(open)?;
        shape
            .iter()
            .zip(pads)
            .enumerate()
            .map(|(axis, (n, (b, a)))| {
                self.map(*n, b.known().ok_or_else(open)?, a.known().ok_or_else(open)?, axis)
            })
            .collect()
    }
}

impl Operator for Pad {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let out = match self.pads(shape.len(), inputs)? {
            Some(pads) => shape.iter().zip(pads).map(|(d, (b, a))| d.clone() + b + a).collect::<Vec<_>>(),
            None => shape.iter().map(|_| Dim::unknown()).collect(),
        };
        if let Some(axis) = out.iter().position(|d| d.known().is_some_and(|n| n < 0)) {
            return Err(
                Error::invalid("OP-PAD", "more is taken off than there is").field(format!("axis {axis}"))
            );
        }
        Ok(vec![Fact::new(x.dtype, out)])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let facts = float::facts(inputs)?;
        let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        float::shapes(self, inputs)?;
        let x = super::input(inputs, 0)?;
        let given = match (&self.given, inputs.get(2).copied().flatten()) {
            (Some((_, value)), _) => Some(Value::load(&Tensor::scalar(*value).cast_to(x.dtype()))?),
            (None, Some(v)) => Some(v.clone()),
            _ => None,
        };
        Ok(vec![picked(x, &self.maps(x.shape(), &refs)?, given.as_ref())?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        if v.needs.get(2).copied().unwrap_or(false) && v.grads[0].is_some() {
            return Err(Error::unsupported("NO-VJP", "no gradient is defined for the padding value"));
        }
        first(v, |g| {
            let facts = float::facts(v.inputs)?;
            let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
            let shape = super::input(v.inputs, 0)?.shape();
            unpicked(g, shape, &self.maps(shape, &refs)?)
        })
    }
    fn couple(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        let mut coupling = Coupling { reason: Some("padding keeps its size".into()), ..Coupling::default() };
        let Some(shape) = inputs[0].and_then(|f| f.shape.as_ref()) else { return coupling };
        let Ok(Some(pads)) = self.pads(shape.len(), inputs) else { return coupling };
        for (axis, (n, (before, after))) in shape.iter().zip(pads).enumerate() {
            match (n.size(), before.size()) {
                _ if before.is(0) && after.is(0) => coupling.same((Port::In(0), axis), (Port::Out(0), axis)),
                (Some(n), Some(b)) if self.mode == PadMode::Constant && after.size().is_some() => {
                    let units = (Pattern::from(0), Pattern::from(b));
                    coupling.link((Port::In(0), axis), units.0, (Port::Out(0), axis), units.1, n);
                }
                _ => {}
            }
        }
        coupling
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    SpaceToDepth,
    Dcr,
    Crd,
}

/// Square blocks of an image to channels and back, as a reshape, a permutation and a reshape.
#[derive(Debug)]
struct Blocks {
    size: usize,
    layout: Layout,
}

impl Blocks {
    fn parse(a: &Attributes, layout: Layout) -> Result<Arc<dyn Operator>> {
        match a.int("blocksize", 0)? {
            size @ 1..=65536 => Ok(Arc::new(Blocks { size: size as usize, layout })),
            other => Err(Error::invalid("ATTR-RANGE", "blocksize is out of range")
                .field("attribute blocksize")
                .found(other)
                .limit("1 to 65536")),
        }
    }

    /// The shape in between and the permutation.
    fn plan(&self, s: &[usize]) -> ([usize; 6], [usize; 6]) {
        let b = self.size;
        match self.layout {
            Layout::SpaceToDepth => ([s[0], s[1], s[2] / b, b, s[3] / b, b], [0, 3, 5, 1, 2, 4]),
            Layout::Dcr => ([s[0], b, b, s[1] / (b * b), s[2], s[3]], [0, 3, 4, 1, 5, 2]),
            Layout::Crd => ([s[0], s[1] / (b * b), b, b, s[2], s[3]], [0, 1, 4, 2, 5, 3]),
        }
    }
}

impl Operator for Blocks {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let [n, c, h, w] = shape.as_slice() else {
            return Err(Error::invalid("OP-RANK", "the input must have four axes").found(shape.len()));
        };
        let b = Dim::from(self.size);
        let divide = |d: &Dim, by: &Dim, axis: usize| match (d.known(), by.known()) {
            (Some(a), Some(k)) if a % k != 0 => {
                Err(Error::invalid("OP-BLOCKS", "the axis is not a multiple of the block")
                    .field(format!("axis {axis}"))
                    .found(a)
                    .limit(k))
            }
            _ => Ok(d.floor_div(by)),
        };
        let area = b.clone() * b.clone();
        let out = match self.layout {
            Layout::SpaceToDepth => vec![n.clone(), c.clone() * area, divide(h, &b, 2)?, divide(w, &b, 3)?],
            _ => vec![n.clone(), divide(c, &area, 1)?, h.clone() * b.clone(), w.clone() * b],
        };
        Ok(vec![Fact::new(x.dtype, out)])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let out = float::shapes(self, inputs)?.swap_remove(0);
        let x = super::input(inputs, 0)?;
        let (between, perm) = self.plan(x.shape());
        Ok(vec![reshape::with_shape(&permuted(&reshape::with_shape(x, &between)?, &perm)?, &out)?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        first(v, |g| {
            let shape = super::input(v.inputs, 0)?.shape();
            let (between, perm) = self.plan(shape);
            let mut inverse = [0; 6];
            for (i, p) in perm.iter().enumerate() {
                inverse[*p] = i;
            }
            let moved: Vec<usize> = perm.iter().map(|p| between[*p]).collect();
            let g = permuted(&Value::from(g.reshape(moved)?), &inverse)?;
            Ok(g.float()?.reshape(shape)?)
        })
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let reason = Some("blocks of an image move between axes".into());
        let mut coupling = Coupling { reason, ..Coupling::default() };
        coupling.same((Port::In(0), 0), (Port::Out(0), 0));
        let channels =
            |f: Option<&Fact>| f.and_then(|f| f.shape.as_ref()).and_then(|s| s.get(1)).and_then(Dim::size);
        let area = self.size * self.size;
        let (Some(from), Some(to)) = (channels(inputs[0]), channels(outputs.first())) else {
            return coupling;
        };
        let (a, b, count) = match self.layout {
            Layout::SpaceToDepth => (Pattern::from(0), Pattern::recurring(from, area), from),
            Layout::Dcr => (Pattern::recurring(to, area), Pattern::from(0), to),
            Layout::Crd => (Pattern::blocks(area), Pattern::from(0), to),
        };
        coupling.link((Port::In(0), 1), a, (Port::Out(0), 1), b, count);
        coupling
    }
}

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
        let x = super::input(inputs, 0)?;
        match x.rank() {
            Some(0 | 1) => Err(Error::invalid("OP-RANK", "matrices are needed").found(x.rank().unwrap_or(0))),
            _ => Ok(vec![x.without_value()]),
        }
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        float::shapes(self, inputs)?;
        Ok(vec![self.apply(super::input(inputs, 0)?, Trilu::k(inputs)?)?])
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

/// The first `lengths[b]` elements of each sequence reversed.
#[derive(Debug)]
struct ReverseSequence {
    batch: usize,
}

impl ReverseSequence {
    /// The first `lengths[b]` entries of item `b` from last to first, the others as they are. Doing so
    /// twice changes nothing.
    fn reversed(&self, x: &Value, lengths: &[i64]) -> Result<Value> {
        let shape = x.shape();
        let (batch, time) = (shape[self.batch], shape[1 - self.batch]);
        if lengths.len() != batch || lengths.iter().any(|n| *n < 0 || *n > time as i64) {
            return Err(Error::invalid("OP-SEQUENCE", "lengths must be one an item, at most the time axis")
                .field("input[1]")
                .found(format!("{} lengths", lengths.len()))
                .limit(format!("{batch} lengths up to {time}")));
        }
        let inner: usize = shape[2..].iter().product();
        rearrange!(&[x], shape, v => {
            let mut out = Vec::with_capacity(v[0].len());
            for i in 0..shape[0] {
                for j in 0..shape[1] {
                    let (b, t) = if self.batch == 0 { (i, j) } else { (j, i) };
                    let n = lengths[b] as usize;
                    let from = if t < n { n - 1 - t } else { t };
                    let at = if self.batch == 0 { b * shape[1] + from } else { from * shape[1] + b };
                    out.extend_from_slice(&v[0][at * inner..(at + 1) * inner]);
                }
            }
            Ok::<_, Error>(out)
        })
    }
}

impl Operator for ReverseSequence {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        super::input(inputs, 1)?;
        match x.rank() {
            Some(0 | 1) => Err(Error::invalid("OP-RANK", "batch and time axes are needed")),
            _ => Ok(vec![x.without_value()]),
        }
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        float::shapes(self, inputs)?;
        let (x, lengths) = (super::input(inputs, 0)?, super::input(inputs, 1)?.ints()?);
        Ok(vec![self.reversed(x, &lengths)?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        first(v, |g| {
            let lengths = super::input(v.inputs, 1)?.ints()?;
            Ok(self.reversed(&Value::from(g.clone()), &lengths)?.float()?.clone())
        })
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling = broadcast::couple(&inputs[..1], &outputs[0]);
        coupling.links.retain(|l| l.a.1 >= 2);
        coupling
    }
}
