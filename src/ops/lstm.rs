//! LSTM (Hochreiter and Schmidhuber 1997, with forget gates and peepholes), in float and, as
//! DynamicQuantizeLSTM of ONNX Runtime, with weights in 8 bits.

mod cell;
mod integer;

use super::float::{self, Float};
use super::{Attributes, Dim, Fact, Operator, Spec, Vjp, activation};
use crate::error::{Error, Result};
use crate::tensor::{DType, Value};
use cell::{Cell, GATES, Sequence, Step};
use std::sync::Arc;

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec::new("LSTM", 7, DType::FLOATS, |a, _| Ok(Arc::new(Lstm::parse(a)?))),
    Spec {
        domain: "com.microsoft",
        name: "DynamicQuantizeLSTM",
        opsets: (1, 1),
        dtypes: &[DType::F32],
        parse: |a, _| Ok(Arc::new(integer::DynamicLstm(Lstm::parse(a)?))),
    },
];

const BIAS: usize = 3;
const LENGTHS: usize = 4;
const START: [usize; 2] = [5, 6];
const PEEPHOLES: usize = 7;

/// X `[length, batch, inputs]`, W `[directions, 4 hidden, inputs]`, R `[directions, 4 hidden, hidden]`,
/// B `[directions, 8 hidden]`, lengths of the rows, first hidden state and cell `[directions, batch,
/// hidden]`, P `[directions, 3 hidden]` to Y `[length, directions, batch, hidden]` and the last hidden state
/// and cell. With `layout` 1 the batch comes first in X, Y and the states.
#[derive(Debug)]
struct Lstm {
    /// For each direction, whether it runs from the end.
    cells: Vec<(bool, Cell)>,
    hidden: Option<i64>,
    batch_first: bool,
}

impl Lstm {
    fn parse(a: &Attributes) -> Result<Lstm> {
        let reversed: &[bool] = match a.str("direction", "forward")?.as_str() {
            "forward" => &[false],
            "reverse" => &[true],
            "bidirectional" => &[false, true],
            other => {
                return Err(Error::invalid("ATTR-VALUE", "the direction is not known")
                    .field("attribute direction")
                    .found(other)
                    .limit("forward, reverse, bidirectional"));
            }
        };
        let names = functions(a, reversed.len())?;
        let (mut alpha, mut beta) = (
            a.floats("activation_alpha")?.unwrap_or_default().into_iter(),
            a.floats("activation_beta")?.unwrap_or_default().into_iter(),
        );
        let clip = match a.get("clip") {
            Some(_) => Some(f64::from(a.float("clip", 0.0)?)).filter(|limit| *limit > 0.0),
            None => None,
        };
        let coupled = a.int("input_forget", 0)? != 0;
        let cells = reversed.iter().zip(names.chunks(3)).map(|(reverse, names)| {
            let mut one = |name: &str| {
                activation::named(name, &mut |default| alpha.next().unwrap_or(default), &mut |default| {
                    beta.next().unwrap_or(default)
                })
            };
            let functions = [one(&names[0])?, one(&names[1])?, one(&names[2])?];
            Ok((*reverse, Cell { functions, clip, coupled }))
        });
        Ok(Lstm {
            cells: cells.collect::<Result<_>>()?,
            hidden: a.opt_int("hidden_size")?,
            batch_first: a.int("layout", 0)? != 0,
        })
    }

    /// Facts of the outputs. Weights are `[directions, inputs, 4 hidden]` where they are `turned`.
    fn facts(&self, inputs: &[Option<&Fact>], turned: bool) -> Result<Vec<Fact>> {
        let (x, r) = (super::input(inputs, 0)?, super::input(inputs, 2)?);
        super::input(inputs, 1)?;
        let directions = Dim::from(self.cells.len() as i64);
        let last = |f: &Fact| {
            f.shape.as_ref().filter(|s| s.len() == 3).map(|s| s[if turned { 1 } else { 2 }].clone())
        };
        let hidden = self.hidden.map(Dim::from).or_else(|| last(r)).unwrap_or_else(Dim::unknown);
        let gates = hidden.clone() * Dim::from(GATES as i64);
        let Some(shape) = &x.shape else { return Ok(vec![x.without_value(); 3]) };
        let [first, second, width] = shape.as_slice() else {
            return Err(Error::invalid("OP-SHAPE", "a sequence has three axes")
                .field("input[0]")
                .found(format!("{shape:?}")));
        };
        let (length, batch) = if self.batch_first { (second, first) } else { (first, second) };
        let weight = |inner: &Dim| match turned {
            true => vec![directions.clone(), inner.clone(), gates.clone()],
            false => vec![directions.clone(), gates.clone(), inner.clone()],
        };
        let state = match self.batch_first {
            true => vec![batch.clone(), directions.clone(), hidden.clone()],
            false => vec![directions.clone(), batch.clone(), hidden.clone()],
        };
        let wide = |n: i64| vec![directions.clone(), hidden.clone() * Dim::from(n)];
        let wanted = [
            (1, weight(width)),
            (2, weight(&hidden)),
            (BIAS, wide(2 * GATES as i64)),
            (LENGTHS, vec![batch.clone()]),
            (START[0], state.clone()),
            (START[1], state.clone()),
            (PEEPHOLES, wide(3)),
        ];
        for (slot, wanted) in wanted {
            let Some(found) = inputs.get(slot).copied().flatten().and_then(|f| f.shape.as_ref()) else {
                continue;
            };
            let same = |(a, b): (&Dim, &Dim)| a.known().zip(b.known()).is_none_or(|(a, b)| a == b);
            if found.len() != wanted.len() || !found.iter().zip(&wanted).all(same) {
                return Err(Error::invalid(
                    "OP-SHAPE",
                    "an input does not fit the sequence and the hidden size",
                )
                .field(format!("input[{slot}]"))
                .found(format!("{found:?}"))
                .limit(format!("{wanted:?}")));
            }
        }
        let y = match self.batch_first {
            true => [batch, length, &directions, &hidden].map(Dim::clone),
            false => [length, &directions, batch, &hidden].map(Dim::clone),
        };
        Ok(vec![Fact::new(x.dtype, y.to_vec()), Fact::new(x.dtype, state.clone()), Fact::new(x.dtype, state)])
    }

    fn products(&self, inputs: &[Option<&Fact>]) -> Option<Dim> {
        let (x, w, r) = (inputs.first()?.as_ref()?, inputs.get(1)?.as_ref()?, inputs.get(2)?.as_ref()?);
        let shape = x.shape.as_ref().filter(|s| s.len() == 3)?;
        Some(shape[0].clone() * shape[1].clone() * (w.elements()? + r.elements()?))
    }

    /// The sequences of an evaluation: of each direction what its weights make of X. `products(slot, n, x)`
    /// multiplies rows by the weights of a direction at a slot.
    fn sequence<'a>(
        &self,
        inputs: &[Option<&Value>],
        n: usize,
        hidden: usize,
        products: &dyn Fn(usize, &Float) -> Result<Float>,
        recurrent: &'a dyn Fn(&Float) -> Result<Float>,
    ) -> Result<Sequence<'a>> {
        let x = self.time_first(super::input(inputs, 0)?.float()?)?;
        let (length, batch, width) = x.dims3()?;
        let of = |slot: usize| -> Result<Option<Float>> {
            let given = inputs.get(slot).copied().flatten().map(Value::float).transpose()?;
            Ok(given.map(computed).transpose()?)
        };
        let mut projected =
            products(1, &x.reshape((length * batch, width))?)?.reshape((length, batch, GATES * hidden))?;
        if let Some(b) = of(BIAS)? {
            let b = b.get(n)?;
            let both = (b.narrow(0, 0, GATES * hidden)? + b.narrow(0, GATES * hidden, GATES * hidden)?)?;
            projected = projected.broadcast_add(&both)?;
        }
        let peepholes = match of(PEEPHOLES)? {
            Some(p) => {
                let part = |k: usize| p.get(n)?.narrow(0, k * hidden, hidden);
                Some([part(0)?, part(1)?, part(2)?])
            }
            None => None,
        };
        let state = |slot: usize| -> Result<Float> {
            Ok(match of(slot)? {
                Some(s) => if self.batch_first { s.transpose(0, 1)? } else { s }.get(n)?.contiguous()?,
                None => Float::zeros((batch, hidden), projected.dtype(), projected.device())?,
            })
        };
        let start = [state(START[0])?, state(START[1])?];
        let reach = reach(inputs, length, batch, &projected)?;
        Ok(Sequence { projected, recurrent, peepholes, start, reach, reverse: self.cells[n].0 })
    }

    /// `[length, batch, ..]` in the type computed in.
    fn time_first(&self, x: &Float) -> candle_core::Result<Float> {
        let x = computed(x)?;
        if self.batch_first { x.transpose(0, 1)?.contiguous() } else { Ok(x) }
    }

    /// Runs all directions. `products(slot, n, x)` multiplies rows by the weights of direction `n` at a slot.
    fn run(
        &self,
        inputs: &[Option<&Value>],
        shapes: &[Vec<usize>],
        products: &dyn Fn(usize, usize, &Float) -> Result<Float>,
    ) -> Result<Vec<Value>> {
        let like = super::input(inputs, 0)?.float()?.dtype();
        let hidden = *shapes[1].last().unwrap_or(&0);
        let (mut outputs, mut states) = (vec![], [vec![], vec![]]);
        for (n, (_, cell)) in self.cells.iter().enumerate() {
            let recurrent = |h: &Float| products(2, n, h);
            let s = self.sequence(inputs, n, hidden, &|slot, x| products(slot, n, x), &recurrent)?;
            let mut by_position: Vec<Float> = vec![s.start[0].clone(); s.projected.dim(0)?];
            let last = cell.run(&s, |step: Step| by_position[step.at] = step.output)?;
            outputs.push(match by_position.is_empty() {
                true => {
                    Float::zeros((0, s.start[0].dim(0)?, hidden), s.start[0].dtype(), s.start[0].device())?
                }
                false => Float::stack(&by_position, 0)?,
            });
            states.iter_mut().zip(last).for_each(|(all, one)| all.push(one));
        }
        // [length, directions, batch, hidden]
        let mut y = Float::stack(&outputs, 1)?;
        let [mut h, mut c] = [Float::stack(&states[0], 0)?, Float::stack(&states[1], 0)?];
        if self.batch_first {
            y = y.permute((2, 0, 1, 3))?.contiguous()?;
            (h, c) = (h.transpose(0, 1)?.contiguous()?, c.transpose(0, 1)?.contiguous()?);
        }
        [y, h, c].into_iter().map(|t| Ok(t.to_dtype(like)?.into())).collect()
    }

    fn back(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let shapes = float::shapes(self, v.inputs)?;
        let hidden = *shapes[1].last().unwrap_or(&0);
        let (w, r) = (weight(v.inputs, 1)?, weight(v.inputs, 2)?);
        let x = self.time_first(super::input(v.inputs, 0)?.float()?)?;
        let (length, batch, width) = x.dims3()?;
        let grad = |o: usize| v.grads.get(o).and_then(Option::as_ref).map(computed).transpose();
        let y =
            grad(0)?.map(|g| if self.batch_first { g.permute((1, 2, 0, 3)) } else { Ok(g) }).transpose()?;
        let state = |o: usize| -> candle_core::Result<Option<Float>> {
            grad(o)?.map(|g| if self.batch_first { g.transpose(0, 1) } else { Ok(g) }).transpose()
        };
        let (last_h, last_c) = (state(1)?, state(2)?);
        let mut dx = x.zeros_like()?;
        let mut by_direction: [Vec<Float>; 6] = Default::default();
        for (n, (_, cell)) in self.cells.iter().enumerate() {
            let (wn, rn) = (w.get(n)?, r.get(n)?);
            let recurrent = |h: &Float| Ok(h.matmul(&rn.t()?)?);
            let s = self.sequence(v.inputs, n, hidden, &|_, x| Ok(x.matmul(&wn.t()?)?), &recurrent)?;
            let mut steps = vec![];
            cell.run(&s, |step| steps.push(step))?;
            let y = y.as_ref().map(|g| g.narrow(1, n, 1)?.squeeze(1)).transpose()?;
            let of = |g: &Option<Float>| g.as_ref().map(|g| g.get(n)).transpose();
            let found = cell.back(&s, &steps, &rn, y.as_ref(), [of(&last_h)?, of(&last_c)?])?;
            let dz = found.projected.reshape((length * batch, GATES * hidden))?;
            dx = (dx + dz.matmul(&wn)?.reshape((length, batch, width))?)?;
            let rows = x.reshape((length * batch, width))?;
            let bias = dz.sum(0)?;
            let parts = [
                Some(dz.t()?.matmul(&rows)?),
                Some(found.recurrent),
                Some(Float::cat(&[&bias, &bias], 0)?),
                Some(found.start[0].clone()),
                Some(found.start[1].clone()),
                found.peepholes,
            ];
            by_direction.iter_mut().zip(parts).for_each(|(all, one)| all.extend(one));
        }
        let mut out = vec![None; v.inputs.len()];
        let slots = [1, 2, BIAS, START[0], START[1], PEEPHOLES];
        for (slot, parts) in slots.into_iter().zip(by_direction) {
            if v.needs.get(slot) != Some(&true) {
                continue;
            }
            let mut d = Float::stack(&parts, 0)?;
            if self.batch_first && START.contains(&slot) {
                d = d.transpose(0, 1)?.contiguous()?;
            }
            out[slot] = Some(d.to_dtype(super::input(v.inputs, slot)?.float()?.dtype())?);
        }
        if v.needs.first() == Some(&true) {
            let dx = if self.batch_first { dx.transpose(0, 1)?.contiguous()? } else { dx };
            out[0] = Some(dx.to_dtype(super::input(v.inputs, 0)?.float()?.dtype())?);
        }
        Ok(out)
    }
}

/// Names of the functions: three for each direction.
fn functions(a: &Attributes, directions: usize) -> Result<Vec<String>> {
    let names: Vec<String> = match a.strs("activations")? {
        Some(names) => names,
        None => ["Sigmoid", "Tanh", "Tanh"].repeat(directions).into_iter().map(String::from).collect(),
    };
    if names.len() != 3 * directions {
        return Err(Error::invalid("ATTR-RANGE", "each direction has three functions")
            .field("attribute activations")
            .found(names.len())
            .limit(3 * directions));
    }
    Ok(names)
}

/// In the type computed in: `f64` as it is, all else in `f32`.
fn computed(t: &Float) -> candle_core::Result<Float> {
    match t.dtype() {
        candle_core::DType::F64 => t.contiguous(),
        _ => t.to_dtype(candle_core::DType::F32)?.contiguous(),
    }
}

fn weight(inputs: &[Option<&Value>], slot: usize) -> Result<Float> {
    Ok(computed(super::input(inputs, slot)?.float()?)?)
}

/// By position which rows reach it, where some do not.
fn reach(inputs: &[Option<&Value>], length: usize, batch: usize, like: &Float) -> Result<Option<Vec<Float>>> {
    let Some(given) = inputs.get(LENGTHS).copied().flatten() else { return Ok(None) };
    let lengths = given.ints()?;
    if let Some(wrong) = lengths.iter().find(|n| **n < 0 || **n > length as i64) {
        return Err(Error::invalid("OP-VALUE", "a row is longer than the sequence, or negative")
            .field(format!("input[{LENGTHS}]"))
            .found(wrong)
            .limit(length));
    }
    if lengths.iter().all(|n| *n == length as i64) {
        return Ok(None);
    }
    let of = |at: usize| -> Result<Float> {
        let row: Vec<f32> = lengths.iter().map(|n| f32::from(u8::from((at as i64) < *n))).collect();
        Ok(Float::from_vec(row, (batch, 1), like.device())?.to_dtype(like.dtype())?)
    };
    Ok(Some((0..length).map(of).collect::<Result<_>>()?))
}

impl Operator for Lstm {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        self.facts(inputs, false)
    }
    fn macs(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Option<Dim> {
        self.products(inputs)
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shapes = float::shapes(self, inputs)?;
        let (w, r) = (weight(inputs, 1)?, weight(inputs, 2)?);
        self.run(inputs, &shapes, &|slot, n, x| {
            let weights = if slot == 1 { &w } else { &r };
            Ok(x.matmul(&weights.get(n)?.t()?)?)
        })
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        if v.grads.iter().all(Option::is_none) {
            return Ok(vec![None; v.inputs.len()]);
        }
        self.back(v)
    }
}
