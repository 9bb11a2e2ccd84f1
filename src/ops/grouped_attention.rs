//! GroupQueryAttention of ONNX Runtime: causal attention with a cache that rows of a batch fill to
//! different lengths, windows, and rotary embedding inside. Semantics are those of its operator text and
//! of version 1.32 on the CPU.

use super::attention::Sizes;
use super::float::{self, Float, Scalar, real};
use super::{Attr, Attributes, Coupling, Cut, Dim, Fact, Operator, Pattern, Port, Rewrite, Spec};
use crate::error::{Error, Result};
use crate::kernels::analytic::Analytic;
use crate::kernels::attention::{Mask, Rows, Rules, forward};
use crate::kernels::rotary::Rotary;
use crate::tensor::{DType, Value};
use std::sync::Arc;

/// Claims of this family.
pub const SPECS: &[Spec] = &[Spec {
    domain: "com.microsoft",
    name: "GroupQueryAttention",
    opsets: (1, 1),
    dtypes: &[DType::F32, DType::F16],
    parse: GroupQueryAttention::parse,
}];

const PAST: [usize; 2] = [3, 4];
const LENGTHS: usize = 5;
const TOTAL: usize = 6;
const BIAS: usize = 10;

/// Queries are `[batch, positions, heads * size]`, or queries, keys and values side by side; the cache
/// is `[batch, groups, positions, size]`. `seqlens_k` holds the last position of each row; a first
/// prompt has as many positions as `total_sequence_length` says.
#[derive(Debug)]
struct GroupQueryAttention {
    heads: usize,
    groups: usize,
    scale: f64,
    softcap: f64,
    window: Option<i64>,
    causal: bool,
    rotary: bool,
    interleaved: bool,
}

impl GroupQueryAttention {
    fn parse(a: &Attributes, _: i64) -> Result<Arc<dyn Operator>> {
        let count = |name: &str| -> Result<usize> {
            let n = a.int(name, 0)?;
            usize::try_from(n).ok().filter(|n| *n > 0).ok_or_else(|| {
                Error::invalid("ATTR-RANGE", "attribute is out of range")
                    .field(format!("attribute {name}"))
                    .found(n)
            })
        };
        for (name, plain) in [("smooth_softmax", 0), ("qk_output", 0), ("sliding_window_cache", 0)] {
            let found = a.int(name, plain)?;
            // Earlier exports write -1 for none.
            if found != plain && found != -1 {
                return Err(Error::unsupported("OP-ATTR", "this form of attention is not supported")
                    .field(format!("attribute {name}"))
                    .found(found));
            }
        }
        for name in ["k_quant_type", "v_quant_type"] {
            let kind = a.str(name, "NONE")?;
            if kind != "NONE" {
                return Err(Error::unsupported("OP-ATTR", "quantised caches are not supported")
                    .field(format!("attribute {name}"))
                    .found(kind));
            }
        }
        let (heads, groups) = (count("num_heads")?, count("kv_num_heads")?);
        if !heads.is_multiple_of(groups) {
            return Err(Error::invalid("ATTR-RANGE", "query heads are no multiple of key heads")
                .field("attribute num_heads")
                .found(format!("{heads} and {groups}")));
        }
        let window = a.int("local_window_size", -1)?;
        Ok(Arc::new(GroupQueryAttention {
            heads,
            groups,
            scale: a.float("scale", 0.0)?.into(),
            softcap: a.float("softcap", 0.0)?.into(),
            window: (window > 0).then_some(window),
            causal: a.int("causal", 1)? != 0,
            rotary: a.int("do_rotary", 0)? != 0,
            interleaved: a.int("rotary_interleaved", 0)? != 0,
        }))
    }

    fn refuse(inputs: &[Option<&Fact>]) -> Result<()> {
        for slot in (9..inputs.len()).filter(|s| *s != BIAS) {
            if inputs[slot].is_some() {
                return Err(Error::unsupported("OP-INPUT", "this input of the attention is not supported")
                    .field(format!("input[{slot}]")));
            }
        }
        Ok(())
    }

    /// The size of a head, from the width of the queries.
    fn head(&self, width: usize, packed: bool) -> Result<usize> {
        let parts = if packed { self.heads + 2 * self.groups } else { self.heads };
        if width == 0 || !width.is_multiple_of(parts) {
            return Err(Error::invalid("OP-SHAPE", "heads do not divide the width of the queries")
                .found(format!("{width} by {parts}")));
        }
        Ok(width / parts)
    }

    /// Queries, keys and values as `[batch, heads, positions, size]`.
    fn operands(&self, inputs: &[Option<&Value>]) -> Result<[Float; 3]> {
        let q = super::input(inputs, 0)?.float()?;
        let (b, s, width) = q.dims3()?;
        let packed = inputs.get(1).copied().flatten().is_none();
        let head = self.head(width, packed)?;
        let split = |x: &Float, n: usize| -> Result<Float> {
            Ok(x.contiguous()?.reshape((b, s, n, head))?.transpose(1, 2)?)
        };
        if packed {
            let (h, g) = (self.heads * head, self.groups * head);
            return Ok([
                split(&q.narrow(2, 0, h)?, self.heads)?,
                split(&q.narrow(2, h, g)?, self.groups)?,
                split(&q.narrow(2, h + g, g)?, self.groups)?,
            ]);
        }
        let other = |slot: usize| split(super::input(inputs, slot)?.float()?, self.groups);
        Ok([split(q, self.heads)?, other(1)?, other(2)?])
    }

    fn run<T: Scalar + Analytic>(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let [q, k, v] = self.operands(inputs)?;
        let (batch, heads, queries, head) = q.dims4()?;
        let (total, lengths) = lengths(inputs, batch)?;
        let given = |slot: usize| inputs.get(slot).copied().flatten().map(Value::float).transpose();
        let before = given(3)?.map_or(0, |p| p.dims()[2]);
        let room = total.max(before);
        // Where the first new token of each row goes.
        let prompt = queries == total;
        let start: Vec<usize> = lengths
            .iter()
            .map(|n| if prompt { Some(0) } else { n.checked_sub(queries) })
            .collect::<Option<_>>()
            .filter(|s: &Vec<usize>| s.iter().all(|s| *s <= before || prompt))
            .ok_or_else(|| {
                Error::invalid("OP-INPUT", "the lengths do not fit the cache and the new tokens")
                    .field("input[5]")
                    .found(format!("{lengths:?}"))
                    .limit(format!("{before} cached, {queries} new"))
            })?;
        let (mut qs, mut ks) = (float::elements::<T>(&q)?.to_vec(), float::elements::<T>(&k)?.to_vec());
        let vs = float::elements::<T>(&v)?;
        if self.rotary {
            let table = |slot: usize| super::input(inputs, slot)?.float();
            let (cos, sin) = (table(7)?, table(8)?);
            let (rows, half) = cos.dims2()?;
            let last = start.iter().max().unwrap_or(&0) + queries;
            if last > rows || cos.dims() != sin.dims() || 2 * half > head {
                return Err(Error::invalid("OP-INDEX", "positions or heads do not fit the tables of angles")
                    .field("input[7]")
                    .found(format!("{last} positions of {head} elements"))
                    .limit(format!("{rows} positions, {half} pairs")));
            }
            let rotary = Rotary { head, rotated: 2 * half, interleaved: self.interleaved };
            let tables = (float::elements::<T>(cos)?, float::elements::<T>(sin)?);
            let turn = |x: &[T], heads: usize| {
                let at = |r: usize| (start[r / (heads * queries)] + r % queries) * half;
                let rows = batch * heads * queries;
                rotary.rotate(rows, x, |r| r * head, at, (&tables.0, &tables.1), false)
            };
            (qs, ks) = (turn(&qs, heads), turn(&ks, self.groups));
        }
        let present = |new: &[T], past: Option<&Float>| -> Result<Vec<T>> {
            let mut all = vec![T::ZERO; batch * self.groups * room * head];
            let past = past.map(float::elements::<T>).transpose()?;
            for (bg, row) in all.chunks_exact_mut((room * head).max(1)).enumerate() {
                let at = start[bg / self.groups];
                if let Some(past) = &past {
                    let kept = at.min(before) * head;
                    row[..kept].copy_from_slice(&past[bg * before * head..][..kept]);
                }
                let fits = queries.min(room - at) * head;
                row[at * head..at * head + fits].copy_from_slice(&new[bg * queries * head..][..fits]);
            }
            Ok(all)
        };
        let (keys, values) = (present(&ks, given(3)?)?, present(&vs, given(4)?)?);
        let bias = given(BIAS)?;
        let held = bias.map(float::elements::<T>).transpose()?;
        let mask = match (bias, &held) {
            (Some(b), Some(data)) => {
                let dims = b.dims4()?;
                let strides = crate::tensor::strides(b.dims());
                let stride = |axis: usize, n: usize| if n == 1 { 0 } else { strides[axis] };
                let strides = [stride(0, dims.0), stride(1, dims.1), stride(2, dims.2)];
                Mask::Bias(data, Rows { strides, width: dims.3 })
            }
            _ => Mask::All,
        };
        let rules = Rules {
            scale: T::of(if self.scale == 0.0 { 1.0 / (head as f64).sqrt() } else { self.scale }),
            softcap: T::of(self.softcap),
            mask,
            offset: start.iter().map(|s| *s as i64).collect(),
            left: self.window.map(|w| w - 1),
            right: self.causal.then_some(0),
            valid: lengths.iter().map(|n| *n as i64).collect(),
        };
        let shape = [batch, self.groups, room, head];
        let z = Sizes { batch, heads, groups: self.groups, queries, keys: room, head, value: head };
        let y = forward(&z, &rules, &qs, &keys, &values);
        let y = float::tensor(y, &[batch, heads, queries, head], q.dtype())?;
        let y = y.transpose(1, 2)?.reshape((batch, queries, heads * head))?;
        Ok(vec![
            y.into(),
            float::tensor(keys, &shape, q.dtype())?.into(),
            float::tensor(values, &shape, q.dtype())?.into(),
        ])
    }
}

/// Positions in all, and of each row.
fn lengths(inputs: &[Option<&Value>], batch: usize) -> Result<(usize, Vec<usize>)> {
    let lengths = super::input(inputs, LENGTHS)?.ints()?;
    let total = super::input(inputs, TOTAL)?.ints()?.first().copied().unwrap_or(0);
    let wrong = |found: String| {
        Error::invalid("OP-INPUT", "the lengths of the rows are out of range")
            .field("input[5]")
            .found(found)
            .limit(format!("{batch} rows of at most {total} positions"))
    };
    let total = usize::try_from(total).map_err(|_| wrong(total.to_string()))?;
    let rows: Option<Vec<usize>> =
        lengths.iter().map(|n| usize::try_from(n + 1).ok().filter(|n| *n <= total)).collect();
    match rows {
        Some(rows) if rows.len() == batch => Ok((total, rows)),
        _ => Err(wrong(format!("{lengths:?}"))),
    }
}

impl Operator for GroupQueryAttention {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        Self::refuse(inputs)?;
        let q = super::input(inputs, 0)?;
        let Some(shape) = &q.shape else { return Ok(vec![Fact::unranked(q.dtype); 3]) };
        let [batch, seq, width] = shape.as_slice() else {
            return Err(Error::invalid("OP-RANK", "queries have three axes").found(format!("{shape:?}")));
        };
        let packed = inputs.get(1).copied().flatten().is_none();
        let head = match width.size() {
            Some(w) => Dim::from(self.head(w, packed)?),
            None => Dim::unknown(),
        };
        for slot in 1..3 {
            let Some(x) = inputs.get(slot).copied().flatten().and_then(|f| f.shape.as_ref()) else {
                continue;
            };
            let want = head.clone() * Dim::from(self.groups);
            let fits = x.len() == 3 && x[2].known().zip(want.known()).is_none_or(|(a, b)| a == b);
            if !fits {
                return Err(Error::invalid("OP-SHAPE", "keys or values do not fit the heads")
                    .field(format!("input[{slot}]"))
                    .found(format!("{x:?}"))
                    .limit(format!("[{batch}, {seq}, {want}]")));
            }
        }
        let total = super::input(inputs, TOTAL)?.dims.as_ref().and_then(|d| d.first().cloned());
        let past = inputs.get(3).copied().flatten();
        let past = match past {
            None => Some(Dim::from(0i64)),
            Some(f) => f.shape.as_ref().and_then(|s| s.get(2).cloned()),
        };
        let room = match (total, past) {
            (Some(t), Some(p)) if p.is(0) || p == t => t,
            (Some(t), Some(p)) => match (t.known(), p.known()) {
                (Some(t), Some(p)) => Dim::from(t.max(p)),
                _ => Dim::unknown(),
            },
            _ => Dim::unknown(),
        };
        let out = Dim::from(self.heads) * head.clone();
        let cache = Fact::new(q.dtype, vec![batch.clone(), Dim::from(self.groups), room, head]);
        Ok(vec![Fact::new(q.dtype, vec![batch.clone(), seq.clone(), out]), cache.clone(), cache])
    }
    fn macs(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Option<Dim> {
        let y = outputs.first()?.elements()?;
        let total = super::input(inputs, TOTAL).ok()?.dims.as_ref()?.first()?.clone();
        Some(y * total * Dim::from(2i64))
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        float::shapes(self, inputs)?;
        let dtype = super::input(inputs, 0)?.float()?.dtype();
        real!(dtype, T => self.run::<T>(inputs))
    }
    /// A unit is a key head with its query heads; positions and the size of a head stay.
    fn couple(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        let mut c = Coupling {
            reason: Some("positions and the size of a head stay".into()),
            state: vec![(PAST[0], 1), (PAST[1], 2)],
            ..Coupling::default()
        };
        let shape = |slot: usize| inputs.get(slot).copied().flatten().and_then(|f| f.shape.as_ref());
        let packed = inputs.get(1).copied().flatten().is_none();
        let width = shape(0).and_then(|s| s.get(2)).and_then(Dim::size);
        let Some(head) = width.and_then(|w| self.head(w, packed).ok()) else { return c };
        let (groups, repeat) = (self.groups, self.heads / self.groups);
        let flat = |start: usize, per_unit: usize| Pattern { start, ..Pattern::blocks(per_unit * head) };
        let queries = ((Port::In(0), 2), flat(0, repeat));
        let (keys, values) = match packed {
            true => {
                let from = self.heads * head;
                (((Port::In(0), 2), flat(from, 1)), ((Port::In(0), 2), flat(from + groups * head, 1)))
            }
            false => (((Port::In(1), 2), flat(0, 1)), ((Port::In(2), 2), flat(0, 1))),
        };
        for (at, pattern) in [queries, values, ((Port::Out(0), 2), flat(0, repeat))] {
            c.link(keys.0, keys.1, at, pattern, groups);
        }
        for port in [Port::In(PAST[0]), Port::In(PAST[1]), Port::Out(1), Port::Out(2)] {
            c.link(keys.0, keys.1, (port, 1), Pattern::from(0), groups);
            c.same((Port::In(0), 0), (port, 0));
        }
        for port in [Port::In(1), Port::In(2), Port::In(LENGTHS), Port::Out(0)] {
            c.same((Port::In(0), 0), (port, 0));
        }
        if let Some([batch, heads, ..]) = shape(BIAS).map(Vec::as_slice) {
            match batch.is(1) {
                true => c.free.push((Port::In(BIAS), 0)),
                false => c.same((Port::In(0), 0), (Port::In(BIAS), 0)),
            }
            match heads.is(1) && self.heads != 1 {
                true => c.free.push((Port::In(BIAS), 1)),
                false => c.link(keys.0, keys.1, (Port::In(BIAS), 1), Pattern::blocks(repeat), groups),
            }
        }
        c
    }
    fn resize(&self, inputs: &[Option<&Fact>], _: &[Fact], cut: &Cut) -> Result<Rewrite> {
        let packed = inputs.get(1).copied().flatten().is_none();
        let port = if packed { Port::In(0) } else { Port::In(1) };
        let Some((before, kept)) = cut.of(port, 2) else { return Ok(Rewrite::default()) };
        // Of packed operands each group has the same share.
        let groups = kept.len() * self.groups / before.max(1);
        Ok(Rewrite {
            attributes: vec![
                ("num_heads".into(), Attr::Int((self.heads / self.groups * groups) as i64)),
                ("kv_num_heads".into(), Attr::Int(groups as i64)),
            ],
            ..Rewrite::default()
        })
    }
}
