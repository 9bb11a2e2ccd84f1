//! Norms over the last axes:
//!
//! ```text
//! d = Sub(x, ReduceMean(x))                       LayerNormalization; without it, RMSNormalization of d
//! v = ReduceMean(Pow(d, 2) | Mul(d, d)) + epsilon
//! y = Div(d, Sqrt(v)) | Mul(d, Reciprocal(Sqrt(v)) | Div(1, Sqrt(v)) | Pow(v, -0.5))
//! y = Mul(y, scale), y = Add(y, bias)             where they follow
//! ```
//!
//! Means are over the same last axes, which stay with size one; they come as an attribute or as an input.
//! Where the centred value is used elsewhere, what is left is the root mean square of it. Scale and bias
//! have at most the axes that are normalised. Of several subtractions of the mean, all count.

use super::sketch::Sketch;
use super::{Form, Found};
use crate::graph::{NodeIndex, ValueId};

const NAME: &str = "LayerNormalization";

pub(super) fn find(s: &mut Sketch<'_>, i: NodeIndex) -> Option<Found> {
    let (node, y) = s.is(i, &["Div", "Mul"])?;
    s.cover(i);
    let [a, b] = Sketch::pair(node)?;
    let (d, v) = match node.is("Div") {
        true => (a, s.attempt(|s| root(s, b))?),
        false => match s.attempt(|s| inverse_root(s, b)) {
            Some(v) => (a, v),
            None => (b, s.attempt(|s| inverse_root(s, a))?),
        },
    };
    let sum = s.take(v, &["Add"])?;
    let [a, b] = Sketch::pair(sum)?;
    let (mean, epsilon) = match s.attempt(|s| s.number(b)) {
        Some(epsilon) => (a, epsilon),
        None => (b, s.number(a)?),
    };
    if epsilon.is_nan() || epsilon < 0.0 {
        return s.miss(NAME, format!("its epsilon is {epsilon}"));
    }
    let (square, axis) = last_mean(s, mean)?;
    let squared = square_of(s, square)?;
    let centre = s.attempt(|s| {
        let (x, m) = centred(s, d)?;
        if squared != d && centred(s, squared)? != (x, m) {
            return None;
        }
        let (of, over) = last_mean(s, m)?;
        (of == x && over == axis && [d, squared, m].iter().all(|v| s.within(*v))).then_some(x)
    });
    if centre.is_none() && squared != d {
        return None;
    }
    let x = centre.unwrap_or(d);
    let (output, scale, bias) = follow(s, x, y, axis);
    let axis = axis as i64 - s.shape(x)?.len() as i64;
    let form = Form::Norm { centred: centre.is_some(), axis, epsilon };
    Some(Found { form, inputs: vec![Some(x), scale, bias], output })
}

/// What `v` is the square root of.
fn root(s: &mut Sketch<'_>, v: ValueId) -> Option<ValueId> {
    let node = s.take(v, &["Sqrt", "Pow"])?;
    let of = node.inputs.first().copied().flatten()?;
    (node.is("Sqrt") || s.number(node.inputs.get(1).copied().flatten()?)? == 0.5).then_some(of)
}

/// What `v` is the reciprocal square root of.
fn inverse_root(s: &mut Sketch<'_>, v: ValueId) -> Option<ValueId> {
    let node = s.take(v, &["Reciprocal", "Div", "Pow"])?;
    let first = node.inputs.first().copied().flatten()?;
    if node.is("Reciprocal") {
        return root(s, first);
    }
    let second = node.inputs.get(1).copied().flatten()?;
    match node.is("Div") {
        true => (s.number(first)? == 1.0).then(|| root(s, second))?,
        false => (s.number(second)? == -0.5).then_some(first),
    }
}

/// What `v` is the mean of, over all axes from the one given with it.
fn last_mean(s: &mut Sketch<'_>, v: ValueId) -> Option<(ValueId, usize)> {
    let node = s.take(v, &["ReduceMean"])?;
    let of = node.inputs.first().copied().flatten()?;
    let rank = s.shape(of)?.len();
    let kept = node.attributes.int("keepdims", 1).ok()? != 0;
    let axes = match node.inputs.get(1).copied().flatten() {
        Some(axes) => s.integers(axes)?,
        None => node.attributes.ints("axes").ok()??,
    };
    let mut axes: Vec<usize> =
        axes.into_iter().map(|a| crate::ops::axis(a, rank).ok()).collect::<Option<_>>()?;
    axes.sort_unstable();
    let from = *axes.first()?;
    match (axes.iter().copied().eq(from..rank), kept) {
        (true, true) => Some((of, from)),
        (true, false) => s.miss(NAME, "the mean drops its axes"),
        (false, _) => s.miss(NAME, format!("the mean is over axes {axes:?}, not over the last ones")),
    }
}

/// What `v` is the square of.
fn square_of(s: &mut Sketch<'_>, v: ValueId) -> Option<ValueId> {
    let node = s.take(v, &["Pow", "Mul"])?;
    let [a, b] = Sketch::pair(node)?;
    let square = if node.is("Mul") { a == b } else { s.number(b)? == 2.0 };
    square.then_some(a)
}

/// The two that `v` is the difference of.
fn centred(s: &mut Sketch<'_>, v: ValueId) -> Option<(ValueId, ValueId)> {
    let [x, mean] = Sketch::pair(s.take(v, &["Sub"])?)?;
    Some((x, mean))
}

/// Scale and bias behind `y`, and what they make of it.
fn follow(
    s: &mut Sketch<'_>,
    x: ValueId,
    y: ValueId,
    axis: usize,
) -> (ValueId, Option<ValueId>, Option<ValueId>) {
    let next = |s: &mut Sketch<'_>, y: ValueId, op: &str| {
        let i = s.reader(y)?;
        let (node, out) = s.is(i, &[op])?;
        let [a, b] = Sketch::pair(node)?;
        let parameter = if a == y { b } else { a };
        fits(s, parameter, x, axis)?;
        s.cover(i);
        Some((out, parameter))
    };
    let scaled = next(s, y, "Mul");
    let y = scaled.map_or(y, |(out, _)| out);
    let shifted = next(s, y, "Add");
    (shifted.map_or(y, |(out, _)| out), scaled.map(|(_, p)| p), shifted.map(|(_, p)| p))
}

/// Whether a parameter broadcasts to the normalised axes of `x` alone.
fn fits(s: &Sketch<'_>, parameter: ValueId, x: ValueId, axis: usize) -> Option<()> {
    let (p, normal) = (s.shape(parameter)?, &s.shape(x)?[axis..]);
    let ends = p.iter().rev().zip(normal.iter().rev());
    (!p.is_empty() && p.len() <= normal.len() && ends.into_iter().all(|(p, n)| p.is(1) || p == n))
        .then_some(())
}
