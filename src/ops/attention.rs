//! Scaled dot-product attention, with keys and values shared between heads, masks, soft caps, windows
//! and a cache of past keys and values.

use super::float::{self, Float, Scalar, real};
use super::{Attr, Attributes, Coupling, Cut, Dim, Fact, Operator, Pattern, Port, Rewrite, Spec, Vjp};
use crate::error::{Error, Result};
use crate::kernels::analytic::Analytic;
pub(super) use crate::kernels::attention::Sizes;
use crate::kernels::attention::{Gradients, Mask, Rows, Rules, Stage, backward, forward, scores};
use crate::tensor::{DType, Value};
use candle_core::DType as Kind;
use std::sync::Arc;

/// Claims of this family.
pub const SPECS: &[Spec] = &[Spec {
    domain: "",
    name: "Attention",
    opsets: (23, super::LAST_OPSET),
    dtypes: DType::FLOATS,
    parse: Attention::parse,
}];

const MASK: usize = 3;
const PAST: [usize; 2] = [4, 5];
const LENGTHS: usize = 6;

/// `softmax(scale * Q K^T + mask) V` by heads. Queries, keys and values are `[batch, heads, positions,
/// size]`, or `[batch, positions, heads * size]` where the numbers of heads are attributes; query heads
/// are a multiple of key heads. A query that reaches no key gives zeros.
#[derive(Debug)]
struct Attention {
    scale: Option<f64>,
    softcap: f64,
    causal: bool,
    window: [Option<i64>; 2],
    heads: Option<[usize; 2]>,
    /// Where the fourth output is taken.
    stage: Stage,
    /// Outputs that the node has.
    outputs: usize,
    /// Whether a mask of one key stands for all keys (later it ends after the first).
    broadcasts_keys: bool,
}

impl Attention {
    fn parse(a: &Attributes, opset: i64) -> Result<Arc<dyn Operator>> {
        let bad = |name: &str, found: String| {
            Error::invalid("ATTR-RANGE", "attribute is out of range")
                .field(format!("attribute {name}"))
                .found(found)
        };
        let count = |name: &str| -> Result<Option<usize>> {
            match a.opt_int(name)? {
                None | Some(0) => Ok(None),
                Some(n) => Ok(Some(usize::try_from(n).map_err(|_| bad(name, n.to_string()))?)),
            }
        };
        let heads = match (count("q_num_heads")?, count("kv_num_heads")?) {
            (Some(q), Some(kv)) => Some([q, kv]),
            (None, None) => None,
            _ => return Err(bad("q_num_heads", "only one of q_num_heads and kv_num_heads".into())),
        };
        let window = |name: &str| -> Result<Option<i64>> {
            match if opset >= 25 { a.int(name, -1)? } else { -1 } {
                -1 => Ok(None),
                n if n >= 0 => Ok(Some(n)),
                n => Err(bad(name, n.to_string())),
            }
        };
        let softcap = f64::from(a.float("softcap", 0.0)?);
        if softcap < 0.0 {
            return Err(bad("softcap", softcap.to_string()));
        }
        Ok(Arc::new(Attention {
            scale: a.get("scale").map(|_| a.float("scale", 0.0)).transpose()?.map(f64::from),
            softcap,
            causal: a.int("is_causal", 0)? != 0,
            window: [window("left_window_size")?, window("right_window_size")?],
            heads,
            stage: match a.int("qk_matmul_output_mode", 0)? {
                0 => Stage::Products,
                1 => Stage::Capped,
                2 => Stage::Masked,
                3 => Stage::Weights,
                n => return Err(bad("qk_matmul_output_mode", n.to_string())),
            },
            outputs: a.outputs().unwrap_or(3),
            broadcasts_keys: opset < 24,
        }))
    }

    /// Sizes `[batch, heads, positions, size]` of Q, K or V.
    fn four(&self, shape: &[Dim], slot: usize) -> Result<[Dim; 4]> {
        let wrong = |what: &str| {
            Error::invalid("OP-SHAPE", what.to_string())
                .field(format!("input[{slot}]"))
                .found(format!("{shape:?}"))
        };
        match (shape, self.heads) {
            ([b, h, s, d], _) => Ok([b.clone(), h.clone(), s.clone(), d.clone()]),
            ([b, s, width], Some([q, kv])) => {
                let n = if slot == 0 { q } else { kv };
                if width.known().is_some_and(|w| w % n as i64 != 0) {
                    return Err(wrong("heads do not divide the width"));
                }
                Ok([b.clone(), Dim::from(n), s.clone(), width.floor_div(&Dim::from(n))])
            }
            ([_, _, _], None) => Err(wrong("attention on three axes needs the numbers of heads")
                .hint("set q_num_heads and kv_num_heads")),
            _ => Err(wrong("attention needs three or four axes")),
        }
    }

    /// Sizes of Q, K, V in four axes, and the number of keys with those of the past.
    fn sizes(&self, inputs: &[Option<&Fact>]) -> Result<Option<([[Dim; 4]; 3], Dim)>> {
        let mut four = vec![];
        for slot in 0..3 {
            match &super::input(inputs, slot)?.shape {
                Some(shape) => four.push(self.four(shape, slot)?),
                None => return Ok(None),
            }
        }
        let [q, k, v]: [[Dim; 4]; 3] = four.try_into().expect("three were pushed");
        let differ = |a: &Dim, b: &Dim| a.known().zip(b.known()).is_some_and(|(a, b)| a != b);
        if differ(&q[0], &k[0]) || differ(&k[0], &v[0]) || differ(&k[1], &v[1]) || differ(&k[2], &v[2]) {
            return Err(Error::invalid("OP-SHAPE", "queries, keys and values do not fit each other")
                .found(format!("{q:?}, {k:?}, {v:?}")));
        }
        if differ(&q[3], &k[3]) {
            return Err(Error::invalid("OP-SHAPE", "queries and keys differ in size")
                .found(format!("{} and {}", q[3], k[3])));
        }
        if let (Some(h), Some(g)) = (q[1].known(), k[1].known())
            && (g == 0 || h % g != 0)
        {
            return Err(Error::invalid("OP-SHAPE", "query heads are no multiple of key heads")
                .found(format!("{h} and {g}")));
        }
        let past = PAST.map(|i| inputs.get(i).copied().flatten());
        let total = match past {
            [None, None] => k[2].clone(),
            [Some(key), Some(value)] => {
                let mut length = None;
                for (slot, (fact, want)) in PAST.into_iter().zip([(key, &k), (value, &v)]) {
                    let Some(shape) = &fact.shape else { continue };
                    let fits = shape.len() == 4
                        && [0, 1, 3].iter().all(|axis| !differ(&shape[*axis], &want[*axis]))
                        && length.as_ref().is_none_or(|n| !differ(n, &shape[2]));
                    if !fits {
                        return Err(Error::invalid("OP-SHAPE", "the past does not fit keys and values")
                            .field(format!("input[{slot}]"))
                            .found(format!("{shape:?}"))
                            .limit(format!("[{}, {}, past, {}]", want[0], want[1], want[3])));
                    }
                    length.get_or_insert_with(|| shape[2].clone());
                }
                length.unwrap_or_else(Dim::unknown) + k[2].clone()
            }
            _ => {
                return Err(Error::invalid("OP-INPUT", "past keys and past values go together")
                    .field("input[4], input[5]"));
            }
        };
        let lengths = inputs.get(LENGTHS).copied().flatten();
        if lengths.is_some() && past[0].is_some() {
            return Err(
                Error::invalid("OP-INPUT", "numbers of keys and a past exclude each other").field("input[6]")
            );
        }
        Ok(Some(([q, k, v], total)))
    }

    fn check_mask(&self, mask: &Fact, q: &[Dim; 4], total: &Dim) -> Result<()> {
        let Some(shape) = &mask.shape else { return Ok(()) };
        let want = [&q[0], &q[1], &q[2], total];
        let fits = shape.len() <= 4
            && shape.iter().rev().zip(want.iter().rev()).enumerate().all(|(i, (d, w))| {
                match (d.known(), w.known()) {
                    (Some(d), Some(w)) if i == 0 => d == w || (d == 1 && self.broadcasts_keys) || d < w,
                    (Some(d), Some(w)) => d == w || d == 1,
                    _ => true,
                }
            });
        if fits && !shape.is_empty() {
            return Ok(());
        }
        Err(Error::invalid("OP-BROADCAST", "the mask does not broadcast to the scores")
            .field("input[3]")
            .found(format!("{shape:?}"))
            .limit(format!("{want:?}")))
    }

    fn rules<'a, T: Scalar + Analytic>(
        &self,
        z: &Sizes,
        mask: &'a Held<'a, T>,
        past: usize,
        lengths: Option<&[i64]>,
    ) -> Rules<'a, T> {
        let offset = match lengths {
            Some(n) => n.iter().map(|n| n - z.queries as i64).collect(),
            None => vec![past as i64],
        };
        Rules {
            scale: T::of(self.scale.unwrap_or(1.0 / (z.head.max(1) as f64).sqrt())),
            softcap: T::of(self.softcap),
            mask: mask.mask(),
            offset,
            left: self.window[0],
            right: if self.causal { Some(0) } else { self.window[1] },
            valid: lengths.map(<[i64]>::to_vec).unwrap_or_default(),
        }
    }

    /// Queries, keys and values in four axes, those of the past before the new ones.
    fn operands(&self, inputs: &[Option<&Value>]) -> Result<[Float; 3]> {
        let mut all = vec![];
        for slot in 0..3 {
            let x = super::input(inputs, slot)?.float()?;
            all.push(match (x.rank(), self.heads) {
                (3, Some([q, kv])) => {
                    let n = if slot == 0 { q } else { kv };
                    let (b, s, width) = x.dims3()?;
                    x.reshape((b, s, n, width / n))?.transpose(1, 2)?
                }
                _ => x.clone(),
            });
        }
        for (slot, at) in PAST.into_iter().zip([1, 2]) {
            if let Some(past) = inputs.get(slot).copied().flatten() {
                let past = past.float()?;
                all[at] =
                    if past.dims()[2] == 0 { all[at].clone() } else { Float::cat(&[past, &all[at]], 2)? };
            }
        }
        Ok(all.try_into().expect("three were pushed"))
    }

    fn run<T: Scalar + Analytic>(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let [q, k, v] = self.operands(inputs)?;
        let z = sizes(&q, &k, &v)?;
        let mask = Held::<T>::of(inputs, &z, self.broadcasts_keys)?;
        let past = inputs.get(PAST[0]).copied().flatten().map_or(0, |p| p.shape()[2]);
        let lengths = lengths(inputs, z.batch)?;
        let rules = self.rules(&z, &mask, past, lengths.as_deref());
        let (qs, ks, vs) = (float::elements::<T>(&q)?, float::elements::<T>(&k)?, float::elements::<T>(&v)?);
        let y = float::tensor(
            forward(&z, &rules, &qs, &ks, &vs),
            &[z.batch, z.heads, z.queries, z.value],
            q.dtype(),
        )?;
        let y = match super::input(inputs, 0)?.shape().len() {
            3 => y.transpose(1, 2)?.reshape((z.batch, z.queries, z.heads * z.value))?,
            _ => y,
        };
        let mut out: Vec<Value> = vec![y.into(), k.clone().into(), v.clone().into()];
        if self.outputs > 3 {
            let shape = [z.batch, z.heads, z.queries, z.keys];
            out.push(float::tensor(scores(&z, &rules, self.stage, &qs, &ks), &shape, q.dtype())?.into());
        }
        out.truncate(self.outputs.max(1));
        Ok(out)
    }

    fn back<T: Scalar + Analytic>(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let [q, k, values] = self.operands(v.inputs)?;
        let z = sizes(&q, &k, &values)?;
        let mask = Held::<T>::of(v.inputs, &z, self.broadcasts_keys)?;
        let past = v.inputs.get(PAST[0]).copied().flatten().map_or(0, |p| p.shape()[2]);
        let lengths = lengths(v.inputs, z.batch)?;
        let rules = self.rules(&z, &mask, past, lengths.as_deref());
        let need = |i: usize| v.needs.get(i) == Some(&true);
        let y_shape = [z.batch, z.heads, z.queries, z.value];
        let dy = match &v.grads[0] {
            Some(dy) if dy.rank() == 3 => {
                dy.reshape((z.batch, z.queries, z.heads, z.value))?.transpose(1, 2)?
            }
            Some(dy) => dy.clone(),
            None => Float::zeros(&y_shape, q.dtype(), q.device())?,
        };
        let Gradients { q: dq, k: dk, v: dv, bias } = backward(
            &z,
            &rules,
            &float::elements::<T>(&q)?,
            &float::elements::<T>(&k)?,
            &float::elements::<T>(&values)?,
            &float::elements::<T>(&dy)?,
            need(MASK),
        );
        let mut out = vec![None; v.inputs.len()];
        let whole = [
            float::tensor(dq, q.dims(), q.dtype())?,
            cached(float::tensor(dk, k.dims(), k.dtype())?, v.grads.get(1))?,
            cached(float::tensor(dv, values.dims(), values.dtype())?, v.grads.get(2))?,
        ];
        for (slot, d) in whole.into_iter().enumerate() {
            let new = if slot == 0 { d.clone() } else { d.narrow(2, past, d.dims()[2] - past)? };
            if need(slot) {
                let like = super::input(v.inputs, slot)?.shape();
                out[slot] = Some(if like.len() == 3 { new.transpose(1, 2)?.reshape(like)? } else { new });
            }
            if slot > 0 && need(slot + 3) {
                out[slot + 3] = Some(d.narrow(2, 0, past)?);
            }
        }
        if let Some(bias) = bias {
            let given = super::input(v.inputs, MASK)?;
            let d = float::tensor(bias, &[z.batch, z.heads, z.queries, z.keys], given.float()?.dtype())?;
            let width = given.shape().last().copied().unwrap_or(1);
            let short = width != z.keys && !(width == 1 && self.broadcasts_keys);
            let d = if short { d.narrow(3, 0, width)?.contiguous()? } else { d };
            out[MASK] = Some(super::broadcast::sum_to(&d, given.shape())?);
        }
        Ok(out)
    }
}

/// Attention on operands in four axes, without a cache.
#[derive(Debug)]
pub(super) struct Plain(Attention);

impl Plain {
    pub(super) fn scaled(scale: f64) -> Plain {
        Plain(Attention {
            scale: Some(scale),
            softcap: 0.0,
            causal: false,
            window: [None; 2],
            heads: None,
            stage: Stage::Products,
            outputs: 1,
            broadcasts_keys: true,
        })
    }

    /// `[batch, heads, queries, value]`.
    pub(super) fn eval(&self, [q, k, v]: [&Value; 3], mask: Option<&Value>) -> Result<Float> {
        Ok(self.0.eval(&[Some(q), Some(k), Some(v), mask])?.remove(0).float()?.clone())
    }

    /// Gradients of queries, keys and values, and of the mask where asked for.
    pub(super) fn vjp(
        &self,
        [q, k, v]: [&Value; 3],
        mask: Option<&Value>,
        dy: Float,
        of_mask: bool,
    ) -> Result<Vec<Option<Float>>> {
        let inputs = [Some(q), Some(k), Some(v), mask];
        let (grads, needs) = ([Some(dy)], [true, true, true, of_mask]);
        self.0.vjp(&Vjp { inputs: &inputs, outputs: &[None], grads: &grads, needs: &needs })
    }
}

/// A gradient with what flows back from the cache that went on.
fn cached(d: Float, present: Option<&Option<Float>>) -> Result<Float> {
    match present.and_then(Option::as_ref) {
        Some(p) => Ok((d + p)?),
        None => Ok(d),
    }
}

/// Sizes of operands in four axes.
pub(super) fn sizes(q: &Float, k: &Float, v: &Float) -> Result<Sizes> {
    let ((batch, heads, queries, head), (_, groups, keys, _)) = (q.dims4()?, k.dims4()?);
    Ok(Sizes { batch, heads, groups, queries, keys, head, value: v.dims4()?.3 })
}

/// Numbers of keys that count, by batch entry.
fn lengths(inputs: &[Option<&Value>], batch: usize) -> Result<Option<Vec<i64>>> {
    let Some(value) = inputs.get(LENGTHS).copied().flatten() else { return Ok(None) };
    let lengths = value.ints()?;
    if lengths.len() != batch {
        return Err(Error::invalid("OP-SHAPE", "there is not one number of keys for each batch entry")
            .field("input[6]")
            .found(lengths.len())
            .limit(batch));
    }
    Ok(Some(lengths))
}

/// A mask's elements with its shape in four axes.
enum Held<'a, T> {
    None,
    Bytes(Vec<u8>, Rows),
    Floats(float::Elements<'a, T>, Rows),
    Owned(Vec<T>, Rows),
}

impl<'a, T: Scalar> Held<'a, T> {
    fn of(inputs: &[Option<&'a Value>], z: &Sizes, broadcasts_keys: bool) -> Result<Held<'a, T>> {
        let Some(value) = inputs.get(MASK).copied().flatten() else { return Ok(Held::None) };
        let shape = value.shape();
        let mut four = [1usize; 4];
        four[4 - shape.len()..].copy_from_slice(shape);
        let spread = four[3] == 1 && z.keys != 1 && broadcasts_keys;
        let width = if spread { z.keys } else { four[3] };
        let strides = crate::tensor::strides(&[four[0], four[1], four[2], width]);
        let stride = |axis: usize| if four[axis] == 1 { 0 } else { strides[axis] };
        let rows = Rows { strides: [stride(0), stride(1), stride(2)], width };
        fn repeated<E: Copy>(data: &[E], by: usize) -> Vec<E> {
            data.iter().flat_map(|x| std::iter::repeat_n(*x, by)).collect()
        }
        Ok(match value {
            Value::Host(t) if t.dtype() == DType::Bool => {
                let data: Vec<u8> = t.to_i64s()?.into_iter().map(|x| u8::from(x != 0)).collect();
                Held::Bytes(if spread { repeated(&data, width) } else { data }, rows)
            }
            Value::Host(t) => {
                return Err(Error::invalid("OP-TYPE", "a mask is boolean or float")
                    .field("input[3]")
                    .found(t.dtype()));
            }
            Value::Float(t) => match float::elements::<T>(t)? {
                data if spread => Held::Owned(repeated(&data, width), rows),
                data => Held::Floats(data, rows),
            },
        })
    }

    fn mask(&'a self) -> Mask<'a, T> {
        match self {
            Held::None => Mask::All,
            Held::Bytes(data, rows) => Mask::Allowed(data, *rows),
            Held::Floats(data, rows) => Mask::Bias(data, *rows),
            Held::Owned(data, rows) => Mask::Bias(data, *rows),
        }
    }
}

impl Operator for Attention {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let dtype = super::input(inputs, 0)?.dtype;
        let value = super::input(inputs, 2)?.dtype;
        if super::input(inputs, 1)?.dtype != dtype {
            return Err(super::elements::differing(dtype, super::input(inputs, 1)?.dtype));
        }
        let mut out = vec![];
        match self.sizes(inputs)? {
            None => {
                out.extend([Fact::unranked(dtype), Fact::unranked(dtype), Fact::unranked(value)]);
                out.push(Fact::unranked(dtype));
            }
            Some(([q, k, v], total)) => {
                if let Some(mask) = inputs.get(MASK).copied().flatten() {
                    self.check_mask(mask, &q, &total)?;
                }
                let [b, h, s, _] = q;
                out.push(match super::input(inputs, 0)?.rank() {
                    Some(3) => Fact::new(dtype, vec![b.clone(), s.clone(), h.clone() * v[3].clone()]),
                    _ => Fact::new(dtype, vec![b.clone(), h.clone(), s.clone(), v[3].clone()]),
                });
                let cache = |x: &[Dim; 4]| vec![x[0].clone(), x[1].clone(), total.clone(), x[3].clone()];
                out.push(Fact::new(dtype, cache(&k)));
                out.push(Fact::new(value, cache(&v)));
                out.push(Fact::new(dtype, vec![b, h, s, total.clone()]));
            }
        }
        out.truncate(self.outputs.clamp(1, 4));
        Ok(out)
    }
    fn macs(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Option<Dim> {
        let ([q, _, v], total) = self.sizes(inputs).ok()??;
        let [b, h, s, d] = q;
        Some(b * h * s * total * (d + v[3].clone()))
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        float::shapes(self, inputs)?;
        let dtype = super::input(inputs, 0)?.float()?.dtype();
        match dtype {
            // Whatever the precision that a model asks for, halves are computed in singles.
            Kind::F64 | Kind::F32 | Kind::F16 | Kind::BF16 => real!(dtype, T => self.run::<T>(inputs)),
            other => Err(Error::invalid("OP-TYPE", "attention needs floats").found(format!("{other:?}"))),
        }
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        if v.grads.get(3).is_some_and(Option::is_some) {
            return Err(Error::unsupported("NO-VJP", "no gradient flows through the scores of an attention"));
        }
        if v.grads.iter().all(Option::is_none) {
            return Ok(vec![None; v.inputs.len()]);
        }
        let dtype = super::input(v.inputs, 0)?.float()?.dtype();
        real!(dtype, T => self.back::<T>(v))
    }
    /// A unit is a key head with its query heads; of those that share one key head each is a unit, and
    /// the key head stays. Positions and the size of a head stay.
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut c = Coupling {
            reason: Some("positions and the size of a head stay".into()),
            state: vec![(PAST[0], 1), (PAST[1], 2)],
            ..Coupling::default()
        };
        let Ok(Some(([q, k, v], _))) = self.sizes(inputs) else { return c };
        let (Some(heads), Some(groups)) = (q[1].size(), k[1].size()) else { return c };
        // Units of queries, and query heads of each.
        let alone = groups == 1;
        let (units, repeat) = if alone { (heads, 1) } else { (groups, heads / groups.max(1)) };
        let three = |slot: usize| inputs[slot].and_then(Fact::rank) == Some(3);
        // Place of the heads of Q, K, V and Y, and elements of a unit there.
        let place =
            |port: Port, flat: bool, per_unit: usize, size: &Dim| -> Option<((Port, usize), Pattern)> {
                match flat {
                    true => Some(((port, 2), Pattern::blocks(per_unit * size.size()?))),
                    false => Some(((port, 1), Pattern::blocks(per_unit))),
                }
            };
        let Some(key) = place(Port::In(1), three(1), 1, &k[3]) else { return c };
        let Some(query) = place(Port::In(0), three(0), repeat, &q[3]) else { return c };
        if let Some((at, pattern)) = place(Port::In(2), three(2), 1, &v[3]) {
            c.link(key.0, key.1, at, pattern, groups);
        }
        if let Some((at, pattern)) = place(Port::Out(0), outputs[0].rank() == Some(3), repeat, &v[3]) {
            c.link(query.0, query.1, at, pattern, units);
        }
        if !alone {
            c.link(key.0, key.1, query.0, query.1, groups);
        }
        for port in [Port::In(PAST[0]), Port::In(PAST[1]), Port::Out(1), Port::Out(2)] {
            c.link(key.0, key.1, (port, 1), Pattern::from(0), groups);
        }
        if outputs.len() > 3 {
            c.link(query.0, query.1, (Port::Out(3), 1), Pattern::blocks(repeat), units);
        }
        for port in [Port::In(1), Port::In(2), Port::In(PAST[0]), Port::In(PAST[1])] {
            c.same((Port::In(0), 0), (port, 0));
        }
        for port in (0..outputs.len().min(4)).map(Port::Out) {
            c.same((Port::In(0), 0), (port, 0));
        }
        if let Some(mask) = inputs.get(MASK).copied().flatten().and_then(|f| f.shape.as_ref()) {
            let at = |axis: usize| (axis + mask.len()).checked_sub(4);
            if let Some(axis) = at(0) {
                match mask[axis].is(1) {
                    true => c.free.push((Port::In(MASK), axis)),
                    false => c.same((Port::In(0), 0), (Port::In(MASK), axis)),
                }
            }
            if let Some(axis) = at(1) {
                match mask[axis].is(1) && heads != 1 {
                    true => c.free.push((Port::In(MASK), axis)),
                    false => {
                        c.link(query.0, query.1, (Port::In(MASK), axis), Pattern::blocks(repeat), units);
                    }
                }
            }
        }
        c
    }
    fn resize(&self, inputs: &[Option<&Fact>], _: &[Fact], cut: &Cut) -> Result<Rewrite> {
        let Some([q, kv]) = self.heads else { return Ok(Rewrite::default()) };
        let axis = |slot: usize| if inputs[slot].and_then(Fact::rank) == Some(3) { 2 } else { 1 };
        let slot = usize::from(kv > 1);
        let Some((before, kept)) = cut.of(Port::In(slot), axis(slot)) else { return Ok(Rewrite::default()) };
        let part = |n: usize| kept.len() * n / before.max(1);
        let (q, kv) = if kv > 1 { (q / kv * part(kv), part(kv)) } else { (part(q), kv) };
        Ok(Rewrite {
            attributes: vec![
                ("q_num_heads".into(), Attr::Int(q as i64)),
                ("kv_num_heads".into(), Attr::Int(kv as i64)),
            ],
            ..Rewrite::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    fn attention(attributes: Attributes, opset: i64) -> Arc<dyn Operator> {
        Attention::parse(&attributes, opset).unwrap()
    }

    fn fact(shape: &[i64]) -> Fact {
        Fact::new(DType::F32, shape.iter().map(|n| Dim::from(*n)).collect())
    }

    #[test]
    fn shapes_follow_symbols_and_faults_are_named() {
        let s = |names: [&str; 4]| {
            Fact::new(
                DType::F32,
                names.iter().map(|n| n.parse::<i64>().map_or_else(|_| Dim::symbol(n), Dim::from)).collect(),
            )
        };
        let (q, k, past) =
            (s(["batch", "8", "seq", "16"]), s(["batch", "2", "seq", "16"]), s(["batch", "2", "past", "16"]));
        let op = attention(Attributes::new().for_outputs(3), 23);
        let inputs = [Some(&q), Some(&k), Some(&k), None, Some(&past), Some(&past)];
        let out = op.infer(&inputs).unwrap();
        assert_eq!(format!("{:?}", out[0].shape), "Some([batch, 8, seq, 16])");
        assert_eq!(format!("{:?}", out[1].shape), "Some([batch, 2, seq + past, 16])");
        let macs = op.macs(&inputs, &out).unwrap();
        let bind = |n: &str| {
            Some(match n {
                "batch" => 2,
                "seq" => 3,
                _ => 4,
            })
        };
        assert_eq!(macs.eval(&bind), Some(2 * 8 * 3 * 7 * 32));
        let code = |op: &Arc<dyn Operator>, inputs: &[Option<&Fact>]| op.infer(inputs).unwrap_err().code();
        let odd = fact(&[2, 3, 5, 16]);
        let (a, b) = (fact(&[2, 8, 5, 16]), fact(&[2, 2, 5, 16]));
        assert_eq!(code(&op, &[Some(&a), Some(&odd), Some(&odd)]), "OP-SHAPE");
        assert_eq!(code(&op, &[Some(&a), Some(&b), Some(&b), None, Some(&b)]), "OP-INPUT");
        assert_eq!(code(&op, &[Some(&fact(&[2, 5, 128])), Some(&b), Some(&b)]), "OP-SHAPE");
        let mask = fact(&[2, 1, 4, 5]);
        assert_eq!(code(&op, &[Some(&a), Some(&b), Some(&b), Some(&mask)]), "OP-BROADCAST");
    }

    #[test]
    fn a_mask_of_one_key_stands_for_all_keys_only_where_the_standard_says_so() {
        let value = |shape: &[usize], v: Vec<f32>| {
            Value::load(&Tensor::from_vec(shape.to_vec(), v).unwrap()).unwrap()
        };
        let (q, k) = (value(&[1, 1, 1, 1], vec![0.0]), value(&[1, 1, 3, 1], vec![1.0, 2.0, 6.0]));
        let mask: Value = Tensor::from_bools(vec![1, 1], vec![true]).unwrap().into();
        for (opset, wanted) in [(23, 3.0), (24, 1.0)] {
            let op = attention(Attributes::new().for_outputs(1), opset);
            let y = op.eval(&[Some(&q), Some(&k), Some(&k), Some(&mask)]).unwrap().remove(0);
            assert_eq!(y.to_tensor().unwrap().to_f32s().unwrap(), [wanted]);
        }
    }
}
