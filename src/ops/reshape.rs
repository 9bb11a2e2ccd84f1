//! Operators that keep the elements and their order: Identity, Dropout (inference), Reshape, Flatten,
//! Squeeze, Unsqueeze.

use super::{Attributes, Coupling, Cut, Dim, Fact, Keeps, Operator, Pattern, Port, Rewrite, Spec, Vjp};
use super::{elements, float};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor, Value, element_count};
use candle_core::Tensor as Float;
use std::sync::Arc;

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec::new("Identity", 1, DType::ALL, |_, _| Ok(Arc::new(Identity))),
    Spec::new("Dropout", 7, DType::FLOATS, |_, _| Ok(Arc::new(Dropout))),
    Spec::new("Reshape", 5, DType::ALL, |a, _| {
        Ok(Arc::new(Reshape { zero_is_zero: a.int("allowzero", 0)? != 0 }))
    }),
    Spec::new("Flatten", 1, DType::ALL, |a, _| Ok(Arc::new(Flatten { axis: a.int("axis", 1)? }))),
    Spec::new("Squeeze", 1, DType::ALL, |a, v| Axes::parse(a, v, false)),
    Spec::new("Unsqueeze", 1, DType::ALL, |a, v| Axes::parse(a, v, true)),
];

/// The content of `x` under another shape, where it is known and the shape has rank 0 or 1.
pub fn carry(x: &Fact, out: Fact) -> Fact {
    match (&x.dims, out.rank()) {
        (Some(dims), Some(rank @ (0 | 1))) if rank == 1 || dims.len() == 1 => {
            Fact::of_dims(x.dtype, dims.clone(), rank == 0)
        }
        _ => out,
    }
}

/// The same elements under another shape.
pub fn with_shape(value: &Value, shape: &[usize]) -> Result<Value> {
    if element_count(shape) != Some(value.shape().iter().product()) {
        return Err(Error::invalid("OP-RESHAPE", "the shapes differ in their number of elements")
            .found(format!("{:?} to {shape:?}", value.shape())));
    }
    Ok(match value {
        Value::Float(t) => t.reshape(shape)?.into(),
        Value::Host(t) => t.reshaped(shape.to_vec())?.into(),
    })
}

/// The gradient of the first input, which keeps the elements of the first output; nothing flows to others.
fn back(v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
    let mut grads = vec![None; v.inputs.len()];
    if let (Some(g), true) = (&v.grads[0], v.needs[0]) {
        grads[0] = Some(g.reshape(super::input(v.inputs, 0)?.shape())?);
    }
    Ok(grads)
}

/// `x`.
#[derive(Debug)]
struct Identity;

impl Operator for Identity {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        Ok(vec![super::input(inputs, 0)?.clone()])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        Ok(vec![super::input(inputs, 0)?.clone()])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        back(v)
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        super::broadcast::couple(inputs, &outputs[0])
    }
}

/// Inference form, or training with ratio 0: `x` and a mask of ones.
#[derive(Debug)]
struct Dropout;

impl Operator for Dropout {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        let training = inputs.get(2).copied().flatten().and_then(Fact::ints);
        let ratio = inputs.get(1).copied().flatten().and_then(|f| f.value.as_ref());
        let keeps_all = match ratio.filter(|t| t.len() == 1) {
            Some(ratio) => ratio.to_f64s()? == [0.0],
            None => false,
        };
        if training.is_some_and(|v| v.iter().any(|x| *x != 0)) && !keeps_all {
            return Err(Error::unsupported("OP-DROPOUT", "dropout in training mode is not evaluated")
                .hint("export the model for inference"));
        }
        let mask = Fact { dtype: DType::Bool, ..x.without_value() };
        Ok(vec![x.without_value(), mask])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        float::shapes(self, inputs)?;
        let x = super::input(inputs, 0)?;
        let mask = vec![1u8; x.shape().iter().product()];
        Ok(vec![x.clone(), elements::bool_value(x.shape(), mask)?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        back(v)
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling = super::broadcast::couple(&inputs[..1], &outputs[0]);
        if outputs.len() > 1 {
            for axis in 0..outputs[0].rank().unwrap_or(0) {
                coupling.same((Port::In(0), axis), (Port::Out(1), axis));
            }
        }
        coupling
    }
}

/// A new shape from the second input; 0 copies (unless `allowzero`), -1 fills in.
#[derive(Debug)]
struct Reshape {
    zero_is_zero: bool,
}

impl Reshape {
    fn target(&self, x: &Fact, wanted: &[Dim]) -> Result<Vec<Dim>> {
        let invalid =
            |what: &str| Error::invalid("OP-RESHAPE", what).found(format!("{:?} to {wanted:?}", x.shape));
        let mut open = None;
        let mut out = Vec::with_capacity(wanted.len());
        for (i, d) in wanted.iter().enumerate() {
            out.push(match d.known() {
                Some(0) if !self.zero_is_zero => match &x.shape {
                    Some(s) => s.get(i).cloned().ok_or_else(|| {
                        invalid("the shape copies an axis that the input does not have")
                            .field(format!("shape[{i}]"))
                    })?,
                    None => Dim::unknown(),
                },
                Some(-1) => {
                    if open.replace(i).is_some() {
                        return Err(invalid("the shape leaves two axes open").field(format!("shape[{i}]")));
                    }
                    Dim::from(1i64)
                }
                Some(n) if n < 0 => {
                    return Err(invalid("the shape holds a negative size").field(format!("shape[{i}]")));
                }
                _ => d.clone(),
            });
        }
        let rest = Dim::product(&out);
        let total = x.elements();
        let Some(open) = open else {
            if let (Some(a), Some(b)) = (total.as_ref().and_then(Dim::known), rest.known())
                && a != b
            {
                return Err(invalid("the shapes differ in their number of elements"));
            }
            return Ok(out);
        };
        out[open] = match total {
            None => Dim::unknown(),
            Some(total) => match (total.known(), rest.known()) {
                (_, Some(0)) => return Err(invalid("an open axis beside an axis of size 0 has no size")),
                (Some(a), Some(b)) if a % b != 0 => {
                    return Err(
                        invalid("the elements do not fill the open axis").field(format!("shape[{open}]"))
                    );
                }
                _ => total.floor_div(&rest),
            },
        };
        Ok(out)
    }
}

impl Operator for Reshape {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (x, shape) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
        let out = match (&shape.dims, shape.shape.as_deref()) {
            (Some(dims), _) => Fact::new(x.dtype, self.target(x, dims)?),
            (None, Some([n])) if n.size().is_some_and(|n| n <= 64) => {
                Fact::new(x.dtype, (0..n.size().unwrap_or(0)).map(|_| Dim::unknown()).collect())
            }
            _ => Fact::unranked(x.dtype),
        };
        Ok(vec![carry(x, out)])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.swap_remove(0);
        Ok(vec![with_shape(super::input(inputs, 0)?, &shape)?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        back(v)
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        regroup(inputs[0], &outputs[0])
    }
    fn resize(&self, inputs: &[Option<&Fact>], outputs: &[Fact], cut: &Cut) -> Result<Rewrite> {
        resized_shape(inputs, outputs, cut, !self.zero_is_zero)
    }
}

/// The shape constant (input 1) after cuts: cut axes get their new size. Where the shape was computed
/// from others, it becomes a constant with 0 or -1 for the axes that are not fixed.
pub fn resized_shape(
    inputs: &[Option<&Fact>],
    outputs: &[Fact],
    cut: &Cut,
    zero_copies: bool,
) -> Result<Rewrite> {
    let (Some(out), Some(shape)) = (outputs[0].shape.as_ref(), inputs.get(1).copied().flatten()) else {
        return Ok(Rewrite::default());
    };
    let kept = |axis: usize| cut.of(Port::Out(0), axis).map(|(_, kept)| kept.len() as i64);
    if (0..out.len()).all(|a| kept(a).is_none()) {
        return Ok(Rewrite::default());
    }
    let x = inputs[0].and_then(|f| f.shape.as_ref());
    let old = shape.ints();
    let mut open = old.as_ref().is_some_and(|v| v.contains(&-1));
    let mut new = Vec::with_capacity(out.len());
    for (axis, d) in out.iter().enumerate() {
        let written = old.as_ref().and_then(|v| v.get(axis)).copied();
        new.push(match (written, kept(axis), d.known()) {
            (Some(v), None, _) => v,
            // An axis that copies or fills in follows by itself.
            (Some(v @ -1), Some(_), _) => v,
            (Some(0), Some(_), _) if zero_copies => 0,
            (_, Some(n), _) => n,
            (None, None, Some(n)) => n,
            (None, None, None) if zero_copies && x.is_some_and(|x| x.get(axis) == Some(d)) => 0,
            (None, None, None) if !open => {
                open = true;
                -1
            }
            _ => {
                return Err(Error::unsupported("RESIZE-SHAPE", "the new shape has two open axes")
                    .found(format!("{out:?}"))
                    .hint("fix the sizes of the model's inputs and try again"));
            }
        });
    }
    Ok(Rewrite { inputs: vec![(1, Tensor::from_vec(vec![new.len()], new)?)], ..Rewrite::default() })
}

/// How axes tie where the elements keep their order under another shape. Runs of axes with equal
/// products belong together: one to one is the same axis; where one splits or several merge, one axis
/// of the finer side is tied, in blocks, and the others are pinned. Tied is the outermost axis (heads
/// before head size; channels before height and width), but not of a split a packing of 2 or 3 (query, key,
/// value) before two more, and in front of two or more untouched trailing axes (images) the inner one of two,
/// because that is the channel shuffle.
pub fn regroup(input: Option<&Fact>, output: &Fact) -> Coupling {
    let mut coupling =
        Coupling { reason: Some("the axis is regrouped by a reshape".into()), ..Coupling::default() };
    let (Some(a), Some(b)) = (input.and_then(|f| f.shape.as_ref()), output.shape.as_ref()) else {
        return coupling;
    };
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        let (from_i, from_j) = (i, j);
        let (mut p, mut q) = (a[i].clone(), b[j].clone());
        i += 1;
        j += 1;
        while p != q {
            // The smaller side takes the next axis; symbols that do not tell end the walk.
            let smaller = match (p.known(), q.known()) {
                (Some(x), Some(y)) => x < y,
                _ if divides(&p, &q) => true,
                _ if divides(&q, &p) => false,
                _ => return behind(coupling, (a, from_i), (b, from_j)),
            };
            if smaller && i < a.len() {
                p = p * a[i].clone();
                i += 1;
            } else if !smaller && j < b.len() {
                q = q * b[j].clone();
                j += 1;
            } else {
                return behind(coupling, (a, from_i), (b, from_j));
            }
        }
        let trailing = a.len() - i == b.len() - j && a[i..] == b[j..] && a.len() - i >= 2;
        tie(&mut coupling, &a[from_i..i], from_i, &b[from_j..j], from_j, trailing);
    }
    coupling
}

/// Ties what lies behind axes whose sizes do not tell how they belong together, counted from the last
/// axis on and not before the given ones: while the sizes are equal, so are the indices.
fn behind(mut coupling: Coupling, (a, from_a): (&[Dim], usize), (b, from_b): (&[Dim], usize)) -> Coupling {
    let (mut i, mut j) = (a.len(), b.len());
    while i > from_a && j > from_b {
        match (&a[i - 1], &b[j - 1]) {
            (x, _) if x.is(1) => i -= 1,
            (_, y) if y.is(1) => j -= 1,
            (x, y) if x == y && !x.is_unknown() => {
                (i, j) = (i - 1, j - 1);
                coupling.same((Port::In(0), i), (Port::Out(0), j));
            }
            _ => break,
        }
    }
    coupling
}

fn divides(p: &Dim, q: &Dim) -> bool {
    !p.is(0) && q.floor_div(p) * p.clone() == *q
}

fn tie(coupling: &mut Coupling, a: &[Dim], a0: usize, b: &[Dim], b0: usize, image: bool) {
    let significant = |dims: &[Dim], from: usize| -> Vec<(usize, Dim)> {
        dims.iter().enumerate().filter(|(_, d)| !d.is(1)).map(|(k, d)| (from + k, d.clone())).collect()
    };
    let (x, y) = (significant(a, a0), significant(b, b0));
    match (x.as_slice(), y.as_slice()) {
        ([(i, _)], [(j, _)]) => coupling.same((Port::In(0), *i), (Port::Out(0), *j)),
        ([(i, _)], parts) if parts.len() > 1 => {
            if let Some((j, pattern, count)) = unit(parts, image, true) {
                coupling.link((Port::In(0), *i), pattern, (Port::Out(0), j), Pattern::from(0), count);
            }
        }
        (parts, [(j, _)]) if parts.len() > 1 => {
            if let Some((i, pattern, count)) = unit(parts, image, false) {
                coupling.link((Port::In(0), i), Pattern::from(0), (Port::Out(0), *j), pattern, count);
            }
        }
        ([(i, m), ..], [(j, n), ..]) => {
            // Both sides have several axes: the outermost ones tie where one is a multiple of the other.
            let (Some(m), Some(n)) = (m.size(), n.size()) else { return };
            if m >= n && n > 0 && m % n == 0 {
                coupling.link(
                    (Port::In(0), *i),
                    Pattern::blocks(m / n),
                    (Port::Out(0), *j),
                    Pattern::from(0),
                    n,
                );
            } else if n > m && m > 0 && n % m == 0 {
                coupling.link(
                    (Port::In(0), *i),
                    Pattern::from(0),
                    (Port::Out(0), *j),
                    Pattern::blocks(n / m),
                    m,
                );
            }
        }
        _ => {}
    }
}

/// The axis of the finer side that is tied, the pattern of its units on the coarse axis, and their number.
fn unit(parts: &[(usize, Dim)], image: bool, splits: bool) -> Option<(usize, Pattern, usize)> {
    let sizes: Vec<usize> = parts.iter().map(|(_, d)| d.size()).collect::<Option<_>>()?;
    let k = match sizes.as_slice() {
        [2 | 3, _, _, ..] if splits => 1,
        // Channel shuffle: split into (groups, channels), merged from (channels, groups).
        [groups, _] if image && splits && *groups <= 16 => 1,
        _ => 0,
    };
    let inner: usize = sizes[k + 1..].iter().product();
    let outer: usize = sizes[..k].iter().product();
    let pattern = Pattern { start: 0, stride: inner, block: inner, repeat: outer, period: sizes[k] * inner };
    Some((parts[k].0, pattern, sizes[k]))
}

/// Two axes: everything before `axis`, everything from it on.
#[derive(Debug)]
struct Flatten {
    axis: i64,
}

impl Operator for Flatten {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        let Some(shape) = &x.shape else {
            return Ok(vec![Fact::new(x.dtype, vec![Dim::unknown(), Dim::unknown()])]);
        };
        // Negative axes count from the rank, although the rank itself is allowed.
        let axis = if self.axis < 0 { self.axis + shape.len() as i64 } else { self.axis };
        let axis = super::axis(if axis < 0 { i64::MAX } else { axis }, shape.len() + 1)?;
        let (head, tail) = shape.split_at(axis);
        Ok(vec![Fact::new(x.dtype, vec![Dim::product(head), Dim::product(tail)])])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.swap_remove(0);
        Ok(vec![with_shape(super::input(inputs, 0)?, &shape)?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        back(v)
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        regroup(inputs[0], &outputs[0])
    }
}

/// Squeeze and Unsqueeze, with axes from the attribute or, from version 13, the second input.
#[derive(Debug)]
struct Axes {
    insert: bool,
    axes: Option<Vec<i64>>,
    from_input: bool,
}

impl Axes {
    fn parse(a: &Attributes, opset: i64, insert: bool) -> Result<Arc<dyn Operator>> {
        let from_input = opset >= 13;
        let axes = if from_input { None } else { a.ints("axes")? };
        if insert && !from_input && axes.is_none() {
            return Err(
                Error::invalid("ATTR-MISSING", "a required attribute is missing").field("attribute axes")
            );
        }
        Ok(Arc::new(Axes { insert, axes, from_input }))
    }

    fn resolve(&self, axes: &[i64], shape: &[Dim]) -> Result<Vec<Dim>> {
        let rank = if self.insert { shape.len() + axes.len() } else { shape.len() };
        let mut chosen = vec![false; rank];
        for a in axes {
            let a = super::axis(*a, rank)?;
            if std::mem::replace(&mut chosen[a], true) {
                return Err(Error::invalid("OP-AXIS", "an axis is named twice").found(a));
            }
        }
        if self.insert {
            let mut rest = shape.iter();
            return Ok(chosen
                .iter()
                .map(|new| if *new { None } else { rest.next().cloned() }.unwrap_or(Dim::from(1i64)))
                .collect());
        }
        if let Some((a, d)) =
            shape.iter().enumerate().find(|(a, d)| chosen[*a] && d.known().is_some_and(|n| n != 1))
        {
            return Err(Error::invalid("OP-SQUEEZE", "an axis to remove is not of size 1")
                .field(format!("axis {a}"))
                .found(d)
                .limit(1));
        }
        Ok(shape.iter().zip(chosen).filter(|(_, gone)| !gone).map(|(d, _)| d.clone()).collect())
    }
}

impl Operator for Axes {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        let given = if self.from_input { inputs.get(1).copied().flatten() } else { None };
        let axes = match given {
            Some(f) => f.ints(),
            None if self.from_input && self.insert => super::input(inputs, 1)?.ints(),
            None => self.axes.clone(),
        };
        let out = match (&x.shape, axes) {
            (Some(shape), Some(axes)) => Some(self.resolve(&axes, shape)?),
            (Some(shape), None) if given.is_none() && shape.iter().all(|d| d.known().is_some()) => {
                Some(shape.iter().filter(|d| !d.is(1)).cloned().collect())
            }
            _ => None,
        };
        Ok(vec![carry(x, out.map_or(Fact::unranked(x.dtype), |s| Fact::new(x.dtype, s)))])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.swap_remove(0);
        Ok(vec![with_shape(super::input(inputs, 0)?, &shape)?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        back(v)
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling = Coupling::default();
        let (Some(a), Some(b)) = (inputs[0].and_then(|f| f.shape.as_ref()), outputs[0].shape.as_ref()) else {
            return coupling;
        };
        let axes = match &self.axes {
            Some(v) => Some(v.clone()),
            None => inputs.get(1).copied().flatten().and_then(Fact::ints),
        };
        let long = if self.insert { b } else { a };
        let gone: Vec<bool> = match axes {
            Some(axes) => (0..long.len() as i64)
                .map(|i| axes.iter().any(|x| *x == i || x + long.len() as i64 == i))
                .collect(),
            None => long.iter().map(|d| d.is(1)).collect(),
        };
        for (short, (axis, _)) in gone.iter().enumerate().filter(|(_, g)| !**g).enumerate() {
            let (i, o) = if self.insert { (short, axis) } else { (axis, short) };
            coupling.same((Port::In(0), i), (Port::Out(0), o));
        }
        coupling
    }
}
