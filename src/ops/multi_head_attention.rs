//! MultiHeadAttention of ONNX Runtime: attention over flat queries, keys and values, with biases of the
//! projections, padding masks, added biases and a cache.

use super::float::{self, Float, Scalar, real};
use super::{
    Attr, Attributes, Coupling, Cut, Dim, Fact, Operator, Pattern, Port, Rewrite, Spec, Vjp, broadcast,
};
use crate::error::{Error, Result};
use crate::kernels::analytic::Analytic;
use crate::kernels::attention::{Gradients, Mask, Rows, Rules, Sizes, backward, forward};
use crate::tensor::{DType, Value};
use std::sync::Arc;

/// Claims of this family.
pub const SPECS: &[Spec] = &[Spec {
    domain: "com.microsoft",
    name: "MultiHeadAttention",
    opsets: (1, 1),
    dtypes: &[DType::F32, DType::F16],
    parse: MultiHeadAttention::parse,
}];

const PROJECTED: usize = 3;
const PADDING: usize = 4;
const BIAS: usize = 5;
const PAST: [usize; 2] = [6, 7];

/// Queries are `[batch, positions, heads * size]`; keys and values too, or `[batch, heads, positions,
/// size]`. Padding lowers a score by `mask_filter_value` rather than ruling the key out.
#[derive(Debug)]
struct MultiHeadAttention {
    heads: usize,
    scale: f64,
    filter: f64,
    causal: bool,
}

impl MultiHeadAttention {
    fn parse(a: &Attributes, _: i64) -> Result<Arc<dyn Operator>> {
        let heads = a.int("num_heads", 0)?;
        Ok(Arc::new(MultiHeadAttention {
            heads: usize::try_from(heads).ok().filter(|n| *n > 0).ok_or_else(|| {
                Error::invalid("ATTR-RANGE", "attribute is out of range")
                    .field("attribute num_heads")
                    .found(heads)
            })?,
            scale: a.float("scale", 0.0)?.into(),
            filter: a.float("mask_filter_value", -10000.0)?.into(),
            causal: a.int("unidirectional", 0)? != 0,
        }))
    }

    /// `[batch, heads, positions, size]` of one operand, with its part of the projections' bias.
    fn split(&self, x: &Float, bias: Option<(&Float, usize)>) -> Result<Float> {
        if x.rank() == 4 {
            return Ok(x.clone());
        }
        let (b, s, width) = x.dims3()?;
        let x = match bias {
            Some((bias, at)) => x.broadcast_add(&bias.narrow(0, at, width)?)?,
            None => x.contiguous()?,
        };
        Ok(x.reshape((b, s, self.heads, width / self.heads))?.transpose(1, 2)?)
    }

    /// What is added to the scores, as `[batch or 1, heads or 1, queries or 1, keys]`.
    fn added<T: Scalar>(&self, inputs: &[Option<&Value>], z: &Sizes) -> Result<Option<Float>> {
        let (batch, queries, keys) = (z.batch, z.queries, z.keys);
        let mut all: Option<Float> = None;
        if let Some(mask) = inputs.get(PADDING).copied().flatten() {
            let (shape, given) = (mask.shape().to_vec(), mask.ints()?);
            let real: Vec<bool> = match shape.as_slice() {
                [n] if *n == batch => {
                    given.iter().flat_map(|n| (0..keys as i64).map(move |k| k < *n)).collect()
                }
                _ => given.iter().map(|x| *x != 0).collect(),
            };
            let four = match shape.as_slice() {
                [n] if *n == batch => [batch, 1, 1, keys],
                [n, width] if *n == batch && *width == keys => [batch, 1, 1, keys],
                [n, rows, width] if *n == batch && *rows == queries && *width == keys => {
                    [batch, 1, queries, keys]
                }
                _ => {
                    return Err(Error::invalid("OP-SHAPE", "the padding mask does not fit")
                        .field("input[4]")
                        .found(format!("{shape:?}"))
                        .limit(format!("[{batch}, {keys}]")));
                }
            };
            let data = real.iter().map(|r| if *r { T::ZERO } else { T::of(self.filter) }).collect();
            all = Some(float::tensor::<T>(data, &four, T::DTYPE)?);
        }
        if let Some(bias) = inputs.get(BIAS).copied().flatten() {
            let bias = bias.float()?.to_dtype(T::DTYPE)?;
            let fits = bias.dims4().is_ok_and(|(b, h, s, t)| {
                (b == 1 || b == batch) && (h == 1 || h == self.heads) && s == queries && t == keys
            });
            if !fits {
                return Err(Error::invalid("OP-SHAPE", "the added bias does not fit the scores")
                    .field("input[5]")
                    .found(format!("{:?}", bias.dims()))
                    .limit(format!("[{batch}, {}, {queries}, {keys}]", self.heads)));
            }
            all = Some(match all {
                Some(mask) => mask.broadcast_add(&bias)?,
                None => bias,
            });
        }
        Ok(all)
    }

    /// Queries, keys and values as `[batch, heads, positions, size]`, those of the cache before the new
    /// ones, and how many there were of these.
    fn operands(&self, inputs: &[Option<&Value>]) -> Result<([Float; 3], usize)> {
        let given = |slot: usize| inputs.get(slot).copied().flatten().map(Value::float).transpose();
        let required = |slot: usize| super::input(inputs, slot)?.float();
        let (q, bias) = (required(0)?, given(PROJECTED)?);
        let width = q.dims()[2];
        let part = |n: usize| bias.map(|b| (b, n * width));
        let q = self.split(q, part(0))?;
        let (mut k, mut v) = (self.split(required(1)?, part(1))?, self.split(required(2)?, part(2))?);
        let mut past = 0;
        if let (Some(a), Some(b)) = (given(PAST[0])?, given(PAST[1])?) {
            past = a.dims()[2];
            if past > 0 {
                (k, v) = (Float::cat(&[a, &k], 2)?, Float::cat(&[b, &v], 2)?);
            }
        }
        Ok(([q, k, v], past))
    }

    fn rules<'a, T: Scalar>(
        &self,
        z: &Sizes,
        past: usize,
        added: Option<(&[usize], &'a float::Elements<'_, T>)>,
    ) -> Rules<'a, T> {
        let mask = match added {
            None => Mask::All,
            Some((shape, data)) => {
                let strides = crate::tensor::strides(shape);
                let stride = |axis: usize| if shape[axis] == 1 { 0 } else { strides[axis] };
                Mask::Bias(data, Rows { strides: [stride(0), stride(1), stride(2)], width: z.keys })
            }
        };
        let natural = 1.0 / (z.head.max(1) as f64).sqrt();
        Rules {
            scale: T::of(if self.scale == 0.0 { natural } else { self.scale }),
            softcap: T::ZERO,
            mask,
            offset: vec![past as i64],
            left: None,
            right: self.causal.then_some(0),
            valid: vec![],
        }
    }

    fn run<T: Scalar + Analytic>(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let ([q, k, v], past) = self.operands(inputs)?;
        let z = super::attention::sizes(&q, &k, &v)?;
        let added = self.added::<T>(inputs, &z)?;
        let held = added.as_ref().map(float::elements::<T>).transpose()?;
        let shape = added.as_ref().map_or(&[][..], Float::dims);
        let y = forward(
            &z,
            &self.rules(&z, past, held.as_ref().map(|h| (shape, h))),
            &float::elements::<T>(&q)?,
            &float::elements::<T>(&k)?,
            &float::elements::<T>(&v)?,
        );
        let y = float::tensor(y, &[z.batch, z.heads, z.queries, z.value], q.dtype())?;
        let y = y.transpose(1, 2)?.reshape((z.batch, z.queries, z.heads * z.value))?;
        Ok(vec![y.into(), k.contiguous()?.into(), v.contiguous()?.into()])
    }

    fn back<T: Scalar + Analytic>(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let ([q, k, values], past) = self.operands(v.inputs)?;
        let z = super::attention::sizes(&q, &k, &values)?;
        let need = |i: usize| v.needs.get(i) == Some(&true);
        let grad = |i: usize| v.grads.get(i).and_then(Option::as_ref);
        let added = self.added::<T>(v.inputs, &z)?;
        let held = added.as_ref().map(float::elements::<T>).transpose()?;
        let shape = added.as_ref().map_or(&[][..], Float::dims);
        let dy = match grad(0) {
            Some(dy) => dy.contiguous()?.reshape((z.batch, z.queries, z.heads, z.value))?.transpose(1, 2)?,
            None => Float::zeros((z.batch, z.heads, z.queries, z.value), q.dtype(), q.device())?,
        };
        let Gradients { q: dq, k: dk, v: dv, bias } = backward(
            &z,
            &self.rules(&z, past, held.as_ref().map(|h| (shape, h))),
            &float::elements::<T>(&q)?,
            &float::elements::<T>(&k)?,
            &float::elements::<T>(&values)?,
            &float::elements::<T>(&dy)?,
            need(BIAS),
        );
        let mut out = vec![None; v.inputs.len()];
        let mut projected = vec![];
        for (slot, (d, like)) in [(dq, &q), (dk, &k), (dv, &values)].into_iter().enumerate() {
            let mut d = float::tensor(d, like.dims(), like.dtype())?;
            if slot > 0 {
                if let Some(present) = grad(slot) {
                    d = (d + present)?;
                }
                let from = PAST[slot - 1];
                if need(from) {
                    out[from] = Some(d.narrow(2, 0, past)?.contiguous()?);
                }
                d = d.narrow(2, past, d.dims()[2] - past)?;
            }
            let given = super::input(v.inputs, slot)?.shape();
            let flat = given.len() == 3;
            if flat {
                d = d.transpose(1, 2)?.reshape(given)?;
            }
            // The bias is not added to operands that come by heads.
            let width = if flat { given[2] } else { given[1] * given[3] };
            projected.push(match flat {
                true => d.sum((0, 1))?,
                false => Float::zeros(width, d.dtype(), d.device())?,
            });
            if need(slot) {
                out[slot] = Some(d.contiguous()?);
            }
        }
        if need(PROJECTED) {
            out[PROJECTED] = Some(Float::cat(&projected, 0)?);
        }
        if let Some(d) = bias {
            let given = super::input(v.inputs, BIAS)?.float()?;
            let d = float::tensor(d, &[z.batch, z.heads, z.queries, z.keys], given.dtype())?;
            out[BIAS] = Some(broadcast::sum_to(&d, given.dims())?);
        }
        Ok(out)
    }
}

impl Operator for MultiHeadAttention {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let q = super::input(inputs, 0)?;
        if inputs.iter().skip(8).any(Option::is_some) || (1..3).any(|i| super::input(inputs, i).is_err()) {
            return Err(Error::unsupported(
                "OP-INPUT",
                "packed operands and shared buffers are not supported",
            ));
        }
        let (Some(qs), Some(ks), Some(vs)) =
            (&q.shape, &super::input(inputs, 1)?.shape, &super::input(inputs, 2)?.shape)
        else {
            return Ok(vec![Fact::unranked(q.dtype); 3]);
        };
        let n = Dim::from(self.heads);
        let four = |s: &[Dim]| -> Result<[Dim; 4]> {
            match s {
                [b, s, w] if w.known().is_none_or(|w| w % self.heads as i64 == 0) => {
                    Ok([b.clone(), n.clone(), s.clone(), w.floor_div(&n)])
                }
                [b, h, s, d] if h.known().is_none_or(|h| h == self.heads as i64) => {
                    Ok([b.clone(), h.clone(), s.clone(), d.clone()])
                }
                _ => Err(Error::invalid("OP-SHAPE", "an operand does not have the heads")
                    .found(format!("{s:?}"))
                    .limit(format!("{} heads", self.heads))),
            }
        };
        if qs.len() != 3 {
            return Err(
                Error::unsupported("OP-INPUT", "packed operands are not supported").found(format!("{qs:?}"))
            );
        }
        let (a, k, v) = (four(qs)?, four(ks)?, four(vs)?);
        let differ = |a: &Dim, b: &Dim| a.known().zip(b.known()).is_some_and(|(a, b)| a != b);
        if differ(&a[3], &k[3]) || differ(&k[2], &v[2]) {
            return Err(Error::invalid("OP-SHAPE", "queries, keys and values do not fit each other")
                .found(format!("{qs:?}, {ks:?}, {vs:?}")));
        }
        let mut length = k[2].clone();
        if let Some(past) = inputs.get(PAST[0]).copied().flatten() {
            length = match past.shape.as_ref().and_then(|s| s.get(2)) {
                Some(p) => p.clone() + length,
                None => Dim::unknown(),
            };
        }
        let cache =
            |x: &[Dim; 4]| Fact::new(q.dtype, vec![x[0].clone(), x[1].clone(), length.clone(), x[3].clone()]);
        let y = Fact::new(q.dtype, vec![a[0].clone(), a[2].clone(), n * v[3].clone()]);
        Ok(vec![y, cache(&k), cache(&v)])
    }
    fn macs(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Option<Dim> {
        let q = inputs.first()?.as_ref()?.elements()?;
        let keys = match outputs.get(1).and_then(|f| f.shape.as_ref()) {
            Some(s) => s.get(2)?.clone(),
            // Without a cache, keys are those that come in.
            None => {
                let k = inputs.get(1)?.as_ref()?.shape.as_ref()?;
                k.get(k.len() - 2)?.clone()
            }
        };
        Some((q + outputs.first()?.elements()?) * keys)
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        float::shapes(self, inputs)?;
        let dtype = super::input(inputs, 0)?.float()?.dtype();
        real!(dtype, T => self.run::<T>(inputs))
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        if v.grads.iter().all(Option::is_none) {
            return Ok(vec![None; v.inputs.len()]);
        }
        let dtype = super::input(v.inputs, 0)?.float()?.dtype();
        real!(dtype, T => self.back::<T>(v))
    }
    /// A unit is a head; positions and the size of a head stay.
    fn couple(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        let mut c = Coupling {
            reason: Some("positions and the size of a head stay".into()),
            state: vec![(PAST[0], 1), (PAST[1], 2)],
            ..Coupling::default()
        };
        let shape = |slot: usize| inputs.get(slot).copied().flatten().and_then(|f| f.shape.as_deref());
        let heads = self.heads;
        // Where the heads of an operand lie, and elements of a head there.
        let place = |slot: usize| match shape(slot)? {
            [_, _, width] => Some(((Port::In(slot), 2), width.size()? / heads)),
            [_, _, _, _] => Some(((Port::In(slot), 1), 1)),
            _ => None,
        };
        let size = |slot: usize| match shape(slot)? {
            [_, _, width] => Some(width.size()? / heads),
            [_, _, _, size] => size.size(),
            _ => None,
        };
        let (Some((queries, block)), Some(value)) = (place(0), size(2)) else { return c };
        let units = Pattern::blocks(block);
        for (at, block) in [place(1), place(2), Some(((Port::Out(0), 2), value))].into_iter().flatten() {
            c.link(queries, units, at, Pattern::blocks(block), heads);
        }
        for port in [Port::In(PAST[0]), Port::In(PAST[1]), Port::Out(1), Port::Out(2)] {
            c.link(queries, units, (port, 1), Pattern::from(0), heads);
            c.same((Port::In(0), 0), (port, 0));
        }
        for port in [Port::In(1), Port::In(2), Port::Out(0)] {
            c.same((Port::In(0), 0), (port, 0));
        }
        if shape(PADDING).and_then(|s| s.first()).is_some_and(|d| !d.is(1)) {
            c.same((Port::In(0), 0), (Port::In(PADDING), 0));
        }
        // Biases of queries, keys and values lie side by side.
        for (start, block) in [(0, block), (heads * block, block), (2 * heads * block, value)] {
            let pattern = Pattern { start, ..Pattern::blocks(block) };
            c.link(queries, units, (Port::In(PROJECTED), 0), pattern, heads);
        }
        if let Some([batch, shared, ..]) = shape(BIAS) {
            match batch.is(1) {
                true => c.free.push((Port::In(BIAS), 0)),
                false => c.same((Port::In(0), 0), (Port::In(BIAS), 0)),
            }
            match shared.is(1) && heads != 1 {
                true => c.free.push((Port::In(BIAS), 1)),
                false => c.link(queries, units, (Port::In(BIAS), 1), Pattern::from(0), heads),
            }
        }
        c
    }
    fn resize(&self, _: &[Option<&Fact>], _: &[Fact], cut: &Cut) -> Result<Rewrite> {
        let Some((before, kept)) = cut.of(Port::In(0), 2) else { return Ok(Rewrite::default()) };
        let heads = Attr::Int((kept.len() * self.heads / before.max(1)) as i64);
        Ok(Rewrite { attributes: vec![("num_heads".into(), heads)], ..Rewrite::default() })
    }
}
