//! GroupQueryAttention of ONNX Runtime: causal attention with a cache that rows of a batch fill to
//! different lengths, windows, and rotary embedding inside. Semantics are those of its operator text and
//! of version 1.32 on the CPU.

use super::attention::Sizes;
use super::float::{self, Float, Scalar, real};
use super::{
    Attr, Attributes, Coupling, Cut, Dim, Fact, Operator, Pattern, Port, Rewrite, Spec, Vjp, broadcast,
};
use crate::error::{Error, Result};
use crate::kernels::analytic::Analytic;
use crate::kernels::attention::{Mask, Rows, Rules, backward, forward};
use crate::kernels::real::axpy;
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
const TABLES: [usize; 2] = [7, 8];
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

    /// What attention works on, from the inputs.
    fn ready<'a, T: Scalar>(&self, inputs: &[Option<&'a Value>]) -> Result<Ready<'a, T>> {
        let [q, k, v] = self.operands(inputs)?;
        let (batch, heads, queries, head) = q.dims4()?;
        let (total, lengths) = lengths(inputs, batch)?;
        let given = |slot: usize| inputs.get(slot).copied().flatten().map(Value::float).transpose();
        let before = given(PAST[0])?.map_or(0, |p| p.dims()[2]);
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
        let bias = match given(BIAS)? {
            None => None,
            Some(bias) => {
                let dims = bias.dims4()?;
                let strides = crate::tensor::strides(bias.dims());
                let stride = |axis: usize, n: usize| if n == 1 { 0 } else { strides[axis] };
                let strides = [stride(0, dims.0), stride(1, dims.1), stride(2, dims.2)];
                Some((float::elements::<T>(bias)?, Rows { strides, width: dims.3 }))
            }
        };
        let keys = total.max(before);
        let sizes = Sizes { batch, heads, groups: self.groups, queries, keys, head, value: head };
        let (mut qs, mut ks) = (float::elements::<T>(&q)?.to_vec(), float::elements::<T>(&k)?.to_vec());
        let mut ready = Ready { sizes, start, before, lengths, bias, qs: vec![], ks: vec![], vs: vec![] };
        if let Some(turn) = self.turn(inputs, &ready)? {
            (qs, ks) = (turn.rotate(&ready, &qs, false), turn.rotate(&ready, &ks, false));
        }
        ready.ks = ready.present(&ks, given(PAST[0])?)?;
        ready.vs = ready.present(&float::elements::<T>(&v)?, given(PAST[1])?)?;
        ready.qs = qs;
        Ok(ready)
    }

    fn rules<'r, T: Scalar>(&self, r: &'r Ready<'_, T>) -> Rules<'r, T> {
        let natural = 1.0 / (r.sizes.head as f64).sqrt();
        Rules {
            scale: T::of(if self.scale == 0.0 { natural } else { self.scale }),
            softcap: T::of(self.softcap),
            mask: r.bias.as_ref().map_or(Mask::All, |(data, rows)| Mask::Bias(data, *rows)),
            offset: r.start.iter().map(|s| *s as i64).collect(),
            left: self.window.map(|w| w - 1),
            right: self.causal.then_some(0),
            valid: r.lengths.iter().map(|n| *n as i64).collect(),
        }
    }

    /// The rotary embedding that the attention applies itself, if it does.
    fn turn<'a, T: Scalar>(
        &self,
        inputs: &[Option<&'a Value>],
        r: &Ready<'_, T>,
    ) -> Result<Option<Turn<'a, T>>> {
        if !self.rotary {
            return Ok(None);
        }
        let table = |slot: usize| super::input(inputs, slot)?.float();
        let (cos, sin) = (table(TABLES[0])?, table(TABLES[1])?);
        let ((rows, half), head) = (cos.dims2()?, r.sizes.head);
        let last = r.start.iter().max().unwrap_or(&0) + r.sizes.queries;
        if last > rows || cos.dims() != sin.dims() || 2 * half > head {
            return Err(Error::invalid("OP-INDEX", "positions or heads do not fit the tables of angles")
                .field("input[7]")
                .found(format!("{last} positions of {head} elements"))
                .limit(format!("{rows} positions, {half} pairs")));
        }
        let rotary = Rotary { head, rotated: 2 * half, interleaved: self.interleaved };
        Ok(Some(Turn { rotary, half, cos: float::elements(cos)?, sin: float::elements(sin)? }))
    }

    fn run<T: Scalar + Analytic>(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let dtype = super::input(inputs, 0)?.float()?.dtype();
        let r = self.ready::<T>(inputs)?;
        let z = r.sizes;
        let y = forward(&z, &self.rules(&r), &r.qs, &r.ks, &r.vs);
        let cache = [z.batch, z.groups, z.keys, z.head];
        Ok(vec![
            r.side_by_side(y, z.heads, dtype)?.into(),
            float::tensor(r.ks, &cache, dtype)?.into(),
            float::tensor(r.vs, &cache, dtype)?.into(),
        ])
    }

    fn back<T: Scalar + Analytic>(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let dtype = super::input(v.inputs, 0)?.float()?.dtype();
        let r = self.ready::<T>(v.inputs)?;
        let z = r.sizes;
        let need = |i: usize| v.needs.get(i) == Some(&true);
        let grad = |i: usize| v.grads.get(i).and_then(Option::as_ref);
        let dy = match grad(0) {
            Some(dy) => dy.contiguous()?.reshape((z.batch, z.queries, z.heads, z.head))?.transpose(1, 2)?,
            None => Float::zeros((z.batch, z.heads, z.queries, z.head), dtype, &candle_core::Device::Cpu)?,
        };
        let dy = float::elements::<T>(&dy)?;
        let mut found = backward(&z, &self.rules(&r), &r.qs, &r.ks, &r.vs, &dy, need(BIAS));
        for (d, present) in [(&mut found.k, grad(1)), (&mut found.v, grad(2))] {
            if let Some(present) = present {
                axpy(T::ONE, &float::elements::<T>(present)?, d);
            }
        }
        let (mut dk, past_k) = r.parted(&found.k);
        let (dv, past_v) = r.parted(&found.v);
        let mut dq = found.q;
        let mut out = vec![None; v.inputs.len()];
        if let Some(turn) = self.turn(v.inputs, &r)? {
            if need(TABLES[0]) || need(TABLES[1]) {
                let [q, k, _] = self.operands(v.inputs)?;
                let of_q = turn.tables(&r, &float::elements::<T>(&q)?, &dq);
                let (mut cos, mut sin) = turn.tables(&r, &float::elements::<T>(&k)?, &dk);
                axpy(T::ONE, &of_q.0, &mut cos);
                axpy(T::ONE, &of_q.1, &mut sin);
                for (slot, d) in TABLES.into_iter().zip([cos, sin]).filter(|(slot, _)| need(*slot)) {
                    let table = super::input(v.inputs, slot)?.float()?;
                    out[slot] = Some(float::tensor(d, table.dims(), table.dtype())?);
                }
            }
            (dq, dk) = (turn.rotate(&r, &dq, true), turn.rotate(&r, &dk, true));
        }
        let new = [
            r.side_by_side(dq, z.heads, dtype)?,
            r.side_by_side(dk, z.groups, dtype)?,
            r.side_by_side(dv, z.groups, dtype)?,
        ];
        match v.inputs.get(1).copied().flatten() {
            None => out[0] = need(0).then(|| Float::cat(&new, 2)).transpose()?,
            Some(_) => {
                for (slot, d) in new.into_iter().enumerate().filter(|(slot, _)| need(*slot)) {
                    out[slot] = Some(d);
                }
            }
        }
        for (slot, d) in PAST.into_iter().zip([past_k, past_v]).filter(|(slot, _)| need(*slot)) {
            out[slot] = Some(float::tensor(d, &[z.batch, z.groups, r.before, z.head], dtype)?);
        }
        if let Some(d) = found.bias {
            let given = super::input(v.inputs, BIAS)?.float()?;
            let d = float::tensor(d, &[z.batch, z.heads, z.queries, z.keys], given.dtype())?;
            let width = given.dims4()?.3;
            let d = if width < z.keys { d.narrow(3, 0, width)?.contiguous()? } else { d };
            out[BIAS] = Some(broadcast::sum_to(&d, given.dims())?);
        }
        Ok(out)
    }
}

/// Queries turned to their positions, keys and values with those of the cache before them.
struct Ready<'a, T> {
    sizes: Sizes,
    /// Where the first new token of each row goes.
    start: Vec<usize>,
    /// Positions that the cache had.
    before: usize,
    /// Positions of each row.
    lengths: Vec<usize>,
    bias: Option<(float::Elements<'a, T>, Rows)>,
    /// `[batch, heads, queries, head]`.
    qs: Vec<T>,
    /// `[batch, groups, keys, head]`.
    ks: Vec<T>,
    vs: Vec<T>,
}

impl<T: Scalar> Ready<'_, T> {
    /// By row of the cache: elements that stay from before, and where how many elements of the new come.
    fn places(&self) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> + '_ {
        let z = &self.sizes;
        (0..z.batch * z.groups).map(move |row| {
            let at = self.start[row / z.groups];
            let fits = z.queries.min(z.keys - at);
            (at.min(self.before) * z.head, at * z.head..(at + fits) * z.head)
        })
    }

    fn present(&self, new: &[T], past: Option<&Float>) -> Result<Vec<T>> {
        let z = &self.sizes;
        let mut all = vec![T::ZERO; z.batch * z.groups * z.keys * z.head];
        let past = past.map(float::elements::<T>).transpose()?;
        let rows = all.chunks_exact_mut((z.keys * z.head).max(1));
        for (row, (all, (kept, place))) in rows.zip(self.places()).enumerate() {
            if let Some(past) = &past {
                all[..kept].copy_from_slice(&past[row * self.before * z.head..][..kept]);
            }
            let fits = place.len();
            all[place].copy_from_slice(&new[row * z.queries * z.head..][..fits]);
        }
        Ok(all)
    }

    /// The gradient of [`Ready::present`] with respect to the new and to the past.
    fn parted(&self, d: &[T]) -> (Vec<T>, Vec<T>) {
        let z = &self.sizes;
        let rows = z.batch * z.groups;
        let mut new = vec![T::ZERO; rows * z.queries * z.head];
        let mut past = vec![T::ZERO; rows * self.before * z.head];
        for (row, (d, (kept, place))) in
            d.chunks_exact((z.keys * z.head).max(1)).zip(self.places()).enumerate()
        {
            past[row * self.before * z.head..][..kept].copy_from_slice(&d[..kept]);
            new[row * z.queries * z.head..][..place.len()].copy_from_slice(&d[place]);
        }
        (new, past)
    }

    /// `[batch, heads, queries, head]` as `[batch, queries, heads * head]`.
    fn side_by_side(&self, x: Vec<T>, heads: usize, dtype: candle_core::DType) -> Result<Float> {
        let z = &self.sizes;
        let x = float::tensor(x, &[z.batch, heads, z.queries, z.head], dtype)?;
        Ok(x.transpose(1, 2)?.reshape((z.batch, z.queries, heads * z.head))?)
    }
}

/// Rotary embedding by tables `[positions, half]`.
struct Turn<'a, T> {
    rotary: Rotary,
    half: usize,
    cos: float::Elements<'a, T>,
    sin: float::Elements<'a, T>,
}

impl<T: Scalar> Turn<'_, T> {
    /// Rows of `[batch, any heads, queries, head]`, and where the angles of each lie.
    fn rows<'r>(&self, r: &'r Ready<'_, T>, x: &[T]) -> (usize, impl Fn(usize) -> usize + Sync + 'r) {
        let (z, half) = (r.sizes, self.half);
        let rows = x.len().checked_div(z.head).unwrap_or(0);
        let entry = rows.checked_div(z.batch).unwrap_or(0).max(1);
        (rows, move |row| (r.start[row / entry] + row % z.queries) * half)
    }

    fn rotate(&self, r: &Ready<'_, T>, x: &[T], back: bool) -> Vec<T> {
        let ((rows, at), head) = (self.rows(r, x), r.sizes.head);
        self.rotary.rotate(rows, x, |row| row * head, at, (&self.cos, &self.sin), back)
    }

    /// Gradients of the tables from what was turned and the gradient of the result.
    fn tables(&self, r: &Ready<'_, T>, x: &[T], dy: &[T]) -> (Vec<T>, Vec<T>) {
        let ((rows, at), head) = (self.rows(r, x), r.sizes.head);
        self.rotary.table_gradients(rows, (x, dy), |row| row * head, at, self.cos.len())
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
    /// `seqlens_k` and `total_sequence_length` tell how much of the cache counts.
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(PAST[0], 1), (PAST[1], 2)]
    }
    /// A unit is a key head with its query heads; of those that share one key head each is a unit, and
    /// the key head stays. Positions and the size of a head stay.
    fn couple(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        let mut c = Coupling {
            reason: Some("positions and the size of a head stay".into()),
            state: self.in_place().to_vec(),
            ..Coupling::default()
        };
        let shape = |slot: usize| inputs.get(slot).copied().flatten().and_then(|f| f.shape.as_ref());
        let packed = inputs.get(1).copied().flatten().is_none();
        let width = shape(0).and_then(|s| s.get(2)).and_then(Dim::size);
        let Some(head) = width.and_then(|w| self.head(w, packed).ok()) else { return c };
        let groups = self.groups;
        // Units of queries, and query heads of each.
        let alone = groups == 1;
        let (units, repeat) = if alone { (self.heads, 1) } else { (groups, self.heads / groups) };
        let flat = |start: usize, per_unit: usize| Pattern { start, ..Pattern::blocks(per_unit * head) };
        let queries = ((Port::In(0), 2), flat(0, repeat));
        let (keys, values) = match packed {
            true => {
                let from = self.heads * head;
                (((Port::In(0), 2), flat(from, 1)), ((Port::In(0), 2), flat(from + groups * head, 1)))
            }
            false => (((Port::In(1), 2), flat(0, 1)), ((Port::In(2), 2), flat(0, 1))),
        };
        c.link(keys.0, keys.1, values.0, values.1, groups);
        c.link(queries.0, queries.1, (Port::Out(0), 2), flat(0, repeat), units);
        if !alone {
            c.link(keys.0, keys.1, queries.0, queries.1, groups);
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
                false => c.link(queries.0, queries.1, (Port::In(BIAS), 1), Pattern::blocks(repeat), units),
            }
        }
        c
    }
    fn resize(&self, inputs: &[Option<&Fact>], _: &[Fact], cut: &Cut) -> Result<Rewrite> {
        let packed = inputs.get(1).copied().flatten().is_none();
        let port = if packed || self.groups == 1 { Port::In(0) } else { Port::In(1) };
        let Some((before, kept)) = cut.of(port, 2) else { return Ok(Rewrite::default()) };
        let (heads, groups) = match self.groups {
            // The key head and the value head stay beside the queries.
            1 => {
                let beside = if packed { 2 } else { 0 };
                let size = before / (self.heads + beside);
                ((kept.len() / size.max(1)).saturating_sub(beside), 1)
            }
            // Of packed operands each group has the same share.
            n => {
                let groups = kept.len() * n / before.max(1);
                (self.heads / n * groups, groups)
            }
        };
        Ok(Rewrite {
            attributes: vec![
                ("num_heads".into(), Attr::Int(heads as i64)),
                ("kv_num_heads".into(), Attr::Int(groups as i64)),
            ],
            ..Rewrite::default()
        })
    }
}
