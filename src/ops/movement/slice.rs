//! Slice.

use super::super::{
    Attr, Coupling, Cut, Dim, Fact, Keeps, Operator, Pattern, Port, Rewrite, Spec, Vjp, float,
};
use super::{first, identity, missing, picked, unpicked};
use crate::error::{Error, Result};
use crate::ops;
use crate::tensor::{DType, Tensor, Value};
use candle_core::Tensor as Float;
use std::sync::Arc;

/// Claim of Slice.
pub(super) const SPEC: Spec = Spec::new("Slice", 1, DType::ALL, |a, v| {
    let given = if v < 10 {
        let need = |n: &str| a.ints(n)?.ok_or_else(|| missing(n));
        Some((need("starts")?, need("ends")?, a.ints("axes")?))
    } else {
        None
    };
    Ok(Arc::new(Slice { given }))
});

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
        let (starts, ends) = (ops::input(inputs, 1)?, ops::input(inputs, 2)?);
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
            let axis = ops::axis(*a, rank)?;
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
        let x = ops::input(inputs, 0)?;
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
        let x = ops::input(inputs, 0)?;
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
            let shape = ops::input(v.inputs, 0)?.shape();
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
        let Some(shape) = ops::input(inputs, 0)?.shape.as_ref() else { return Ok(Rewrite::default()) };
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
            let dtype = ops::input(inputs, i)?.dtype;
            Ok((i, Tensor::from_vec(vec![v.len()], v)?.cast_to(dtype)))
        };
        Ok(Rewrite { inputs: vec![tensor(1, starts)?, tensor(2, ends)?], ..Rewrite::default() })
    }
}
