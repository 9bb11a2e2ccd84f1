//! Operators that no file names: what an executor runs in the place of several nodes that spell one out.
//! Numbers that nodes hold as constants are fields here, in full precision.

use super::attention::Plain;
use super::broadcast;
use super::float::{self, Float};
use super::{Dim, Fact, Operator, Vjp, activation, elements, normalization};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor, Value};
use candle_core::DType as Kind;
use std::sync::Arc;

/// Normalisation over the axes from `axis` on, by mean and deviation where `centred`, else by the root
/// mean square. Inputs: x, scale and bias, the last two optional.
pub fn norm(centred: bool, axis: i64, epsilon: f64) -> Arc<dyn Operator> {
    normalization::rows(centred, axis, epsilon)
}

/// `x P(X <= x)` for X normal, or its approximation by a hyperbolic tangent.
pub fn gelu(tanh: bool) -> Arc<dyn Operator> {
    activation::gelu(tanh)
}

/// `x sigmoid(alpha x)`.
pub fn swish(alpha: f64) -> Arc<dyn Operator> {
    activation::swish(alpha)
}

/// `x clamp(x / 6 + 1 / 2, 0, 1)`; the slope of the middle part at both kinks.
pub fn hard_swish() -> Arc<dyn Operator> {
    activation::hard_swish()
}

/// `x clamp(alpha x + beta, 0, 1)`; the slope of the outer parts at both kinks.
pub fn hard_gate(alpha: f64, beta: f64) -> Arc<dyn Operator> {
    activation::hard_gate(alpha, beta)
}

/// `clamp(alpha x + beta, 0, 1)`; slope alpha at both kinks.
pub fn ramp(alpha: f64, beta: f64) -> Arc<dyn Operator> {
    activation::ramp(alpha, beta)
}

/// How scores are masked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Masking {
    /// Not at all.
    None,
    /// The fourth input is added.
    Added,
    /// The fourth input is boolean and chooses between the score and `fill`, which is so low that it
    /// weighs nothing beside a score.
    Chosen {
        /// Which truth value keeps the score.
        keeps: bool,
        /// What stands in its place.
        fill: f64,
    },
}

/// `softmax(scale Q K^T, masked) V` over the last two axes of two to four. Inputs: queries `[.., queries,
/// size]`, keys whose axes `keys` make `[.., keys, size]`, values `[.., keys, value]`, and the mask, which
/// broadcasts to the scores. Axes before are the same for all, but that one head of keys and values may
/// serve all queries. A query whose keys are all masked takes the mean of all values where `fill` is
/// finite, and is not a number where it is negative infinity, as softmax has it.
pub fn attention(scale: f64, keys: Vec<usize>, masking: Masking) -> Arc<dyn Operator> {
    Arc::new(Attention { plain: Plain::scaled(scale), keys, masking })
}

#[derive(Debug)]
struct Attention {
    plain: Plain,
    keys: Vec<usize>,
    masking: Masking,
}

const MASK: usize = 3;

/// With axes of size one in front, up to four.
fn four(t: &Float) -> Result<Float> {
    let mut t = t.clone();
    while t.rank() < 4 {
        t = t.unsqueeze(0)?;
    }
    Ok(t)
}

/// The mask as the plain operator takes it, and which of its rows (all axes but the last) rule every key
/// out, where any does.
struct Mask {
    value: Value,
    shape: [usize; 4],
    lost: Option<Vec<bool>>,
}

impl Mask {
    /// Whether query `s` of head `h` in batch entry `b` reaches no key.
    fn lost(&self, at: [usize; 3]) -> bool {
        let row = (0..3).fold(0, |row, axis| {
            let n = self.shape[axis];
            row * n + if n == 1 { 0 } else { at[axis] }
        });
        self.lost.as_ref().is_some_and(|lost| lost[row])
    }
}

impl Attention {
    /// Queries, keys and values in four axes.
    fn operands(&self, inputs: &[Option<&Value>]) -> Result<[Value; 3]> {
        let get = |slot: usize| super::input(inputs, slot)?.float();
        Ok([four(get(0)?)?.into(), four(&get(1)?.permute(self.keys.clone())?)?.into(), four(get(2)?)?.into()])
    }

    fn mask(&self, inputs: &[Option<&Value>]) -> Result<Option<Mask>> {
        let given = match self.masking {
            Masking::None => return Ok(None),
            _ => super::input(inputs, MASK)?,
        };
        let mut shape = [1; 4];
        let skip = 4usize.checked_sub(given.shape().len()).ok_or_else(|| {
            Error::invalid("OP-RANK", "a mask has more than four axes").found(format!("{:?}", given.shape()))
        })?;
        shape[skip..].copy_from_slice(given.shape());
        let width = shape[3].max(1);
        let (value, out): (Value, Vec<bool>) = match (self.masking, given) {
            (Masking::Chosen { keeps, .. }, Value::Host(t)) => {
                let allowed: Vec<bool> = t.to_i64s()?.into_iter().map(|x| (x != 0) == keeps).collect();
                let lost = allowed.chunks(width).map(|row| !row.contains(&true)).collect();
                let value = match keeps {
                    true => given.clone(),
                    false => Tensor::from_bools(given.shape().to_vec(), allowed)?.into(),
                };
                (value, lost)
            }
            (Masking::Added, Value::Float(t)) => {
                let wide = float::elements::<f64>(t)?;
                let ruled = |row: &[f64]| row.iter().all(|x| *x == f64::NEG_INFINITY);
                (given.clone(), wide.chunks(width).map(ruled).collect())
            }
            (_, other) => return Err(elements::refused(other.dtype())),
        };
        Ok(Some(Mask { value, shape, lost: out.contains(&true).then_some(out) }))
    }

    /// What an all-masked score is.
    fn fill(&self) -> f64 {
        match self.masking {
            Masking::Chosen { fill, .. } => fill,
            _ => f64::NEG_INFINITY,
        }
    }

    /// `[batch, heads, queries, 1]`: one where a query reaches no key.
    fn lost(&self, mask: &Option<Mask>, y: &[usize], kind: Kind) -> Result<Option<Float>> {
        let Some(mask) = mask.as_ref().filter(|m| m.lost.is_some()) else { return Ok(None) };
        let mut marks = Vec::with_capacity(y[..3].iter().product());
        for b in 0..y[0] {
            for h in 0..y[1] {
                marks.extend((0..y[2]).map(|s| f64::from(u8::from(mask.lost([b, h, s])))));
            }
        }
        Ok(Some(float::tensor(marks, &[y[0], y[1], y[2], 1], kind)?))
    }
}

/// Which elements are not zero.
fn marked(marks: &Float, like: &Float) -> Result<Float> {
    Ok(marks.broadcast_as(like.shape())?.ne(0.0)?)
}

fn nowhere(like: &Float) -> Result<Float> {
    Ok(Float::full(f64::NAN, like.shape(), like.device())?.to_dtype(like.dtype())?)
}

impl Operator for Attention {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (q, v) = (super::input(inputs, 0)?, super::input(inputs, 2)?);
        let (Some(rows), Some(values)) = (&q.shape, &v.shape) else {
            return Ok(vec![Fact::unranked(q.dtype)]);
        };
        let mut shape = rows.clone();
        if let (Some(last), Some(value)) = (shape.last_mut(), values.last()) {
            *last = value.clone();
        }
        Ok(vec![Fact::new(q.dtype, shape)])
    }
    fn macs(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Option<Dim> {
        let q = inputs.first().copied().flatten()?;
        let keys = inputs.get(2).copied().flatten()?.shape.as_ref()?.iter().rev().nth(1)?.clone();
        Some((q.elements()? + outputs.first()?.elements()?) * keys)
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.remove(0);
        let [q, k, v] = self.operands(inputs)?;
        let mask = self.mask(inputs)?;
        let y = self.plain.eval([&q, &k, &v], mask.as_ref().map(|m| &m.value))?;
        let y = match self.lost(&mask, y.dims(), y.dtype())? {
            None => y,
            Some(lost) => {
                let instead = match self.fill().is_finite() {
                    true => {
                        let mean = v.float()?.mean_keepdim(2)?;
                        mean.broadcast_as(y.shape())?.contiguous()?
                    }
                    false => nowhere(&y)?,
                };
                marked(&lost, &y)?.where_cond(&instead, &y)?
            }
        };
        Ok(vec![y.reshape(shape)?.into()])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let mut out = vec![None; v.inputs.len()];
        let Some(dy) = &v.grads[0] else { return Ok(out) };
        let [q, k, values] = self.operands(v.inputs)?;
        let mask = self.mask(v.inputs)?;
        let mut grads = self.plain.vjp(
            [&q, &k, &values],
            mask.as_ref().map(|m| &m.value),
            four(dy)?,
            v.needs.get(MASK) == Some(&true) && self.masking == Masking::Added,
        )?;
        if let Some(lost) = self.lost(&mask, four(dy)?.dims(), dy.dtype())? {
            match self.fill().is_finite() {
                true => {
                    // Each value has the same part in a query that reaches no key.
                    let keys = k.shape()[2].max(1) as f64;
                    let sums = (four(dy)?.broadcast_mul(&lost)?.sum_keepdim(2)? / keys)?;
                    let sums =
                        broadcast::sum_to(&sums, &[k.shape()[0], k.shape()[1], 1, dy.dims()[dy.rank() - 1]])?;
                    grads[2] = grads[2].as_ref().map(|d| d.broadcast_add(&sums)).transpose()?;
                }
                false => {
                    for d in grads.iter_mut().flatten() {
                        *d = nowhere(d)?;
                    }
                }
            }
        }
        // Axis `a` of the keys as they came is where `keys` names it.
        let mut back = vec![0; self.keys.len()];
        self.keys.iter().enumerate().for_each(|(at, axis)| back[*axis] = at);
        for (slot, d) in grads.into_iter().enumerate() {
            let (Some(d), Some(true)) = (d, v.needs.get(slot)) else { continue };
            let like = super::input(v.inputs, slot)?.shape();
            out[slot] = Some(match slot {
                1 => {
                    let straight: Vec<usize> = self.keys.iter().map(|axis| like[*axis]).collect();
                    d.reshape(straight)?.permute(back.clone())?.contiguous()?
                }
                _ => d.reshape(like)?,
            });
        }
        Ok(out)
    }
}

/// Whether values of this type may be computed by the operators above in place of several nodes: those
/// that are not rounded between them.
pub fn whole_precision(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F64)
}
