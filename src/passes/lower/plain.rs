//! Attention in plain operators of the default domain: products, softmax, masks by selection.

use super::emit::Emit;
use crate::error::{Error, Result};
use crate::graph::{NodeIndex, ValueId};
use crate::ops::{Attr, Attributes, Dim};
use crate::tensor::DType;

/// Every Attention of the graph.
pub(super) fn attention(emit: &mut Emit<'_>) -> Result<()> {
    for i in 0..emit.graph.nodes().len() {
        if emit.graph.node(i).is("Attention") {
            spell_out(emit, i)?;
            emit.applied(i, "attention in plain operators");
        }
    }
    Ok(())
}

fn refuse(emit: &Emit<'_>, i: NodeIndex, why: &str) -> Error {
    Error::unsupported("LOWER-ATTENTION", format!("this attention cannot be spelled out: {why}"))
        .node(emit.graph.label(i))
}

/// Writes `like` into `v`.
fn same(emit: &mut Emit<'_>, like: ValueId, v: ValueId) {
    emit.into("", "Identity", vec![Some(like)], &[v], Attributes::new());
}

/// The heads of an operand on an axis of their own: `[batch, heads, positions, size]`.
fn four(emit: &mut Emit<'_>, x: ValueId, heads: usize, size: usize, name: &str) -> ValueId {
    let to = emit.ints(&[0, 0, heads as i64, size as i64]);
    let y = emit.op("Reshape", &[x, to], &[], &format!("{name}_heads"));
    emit.op("Transpose", &[y], &[("perm", Attr::Ints(vec![0, 2, 1, 3]))], &format!("{name}_by_head"))
}

/// The lowest number of a float type: what a key gets that is ruled out.
fn lowest(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => -65504.0,
        DType::F64 => f64::MIN,
        // Largest bfloat16.
        DType::BF16 => -3.389_531_389_251_535e38,
        _ => f32::MIN.into(),
    }
}

/// One axis of a value's shape, as a vector of one element.
fn size(emit: &mut Emit<'_>, v: ValueId, axis: i64, name: &str) -> ValueId {
    emit.op("Shape", &[v], &[("start", Attr::Int(axis)), ("end", Attr::Int(axis + 1))], name)
}

/// `0, 1, ...` up to a size, as a vector.
fn range(emit: &mut Emit<'_>, size: ValueId, name: &str) -> ValueId {
    let (zero, one, first) = (emit.int(0), emit.int(1), emit.ints(&[0]));
    let n = emit.op("Squeeze", &[size, first], &[], &format!("{name}_size"));
    emit.op("Range", &[zero, n, one], &[], name)
}

pub(super) fn spell_out(emit: &mut Emit<'_>, i: NodeIndex) -> Result<()> {
    emit.at(i);
    let a = emit.graph.node(i).attributes.clone();
    let opset = emit.graph.opset("").unwrap_or(0);
    let slots: Vec<Option<ValueId>> = (0..7).map(|slot| emit.input(i, slot)).collect();
    let (Some(q), Some(k), Some(v)) = (slots[0], slots[1], slots[2]) else {
        return Err(refuse(emit, i, "an operand is missing"));
    };
    let (Some(qs), Some(ks), Some(vs)) = (emit.shape(q), emit.shape(k), emit.shape(v)) else {
        return Err(refuse(emit, i, "the shapes of its operands are not known"));
    };
    let flat = qs.len() == 3;
    let given =
        [a.int("q_num_heads", 0)?, a.int("kv_num_heads", 0)?].map(|n| usize::try_from(n).unwrap_or(0));
    let part = |shape: &[Dim], heads: usize| -> Option<(usize, usize)> {
        match shape {
            [_, h, _, d] => Some((h.size()?, d.size()?)),
            [_, _, w] if heads > 0 => Some((heads, w.size()? / heads)),
            _ => None,
        }
    };
    let (Some((heads, head)), Some((groups, _)), Some((_, value))) =
        (part(qs, given[0]), part(ks, given[1]), part(vs, given[1]))
    else {
        return Err(refuse(emit, i, "the numbers or sizes of its heads are not known"));
    };
    let dtype = emit.dtype(q);
    let operand = |emit: &mut Emit<'_>, x: ValueId, n, d, name| {
        if flat { four(emit, x, n, d, name) } else { x }
    };
    let q4 = operand(emit, q, heads, head, "q");
    let mut k4 = operand(emit, k, groups, head, "k");
    let mut v4 = operand(emit, v, groups, value, "v");
    for (slot, part, past) in [(1, &mut k4, slots[4]), (2, &mut v4, slots[5])] {
        let out = emit.wanted(i, slot);
        match (past, out) {
            (Some(past), out) => {
                let name = if slot == 1 { "present_key" } else { "present_value" };
                let out = out.unwrap_or_else(|| emit.value(name));
                let axis = Attributes::new().with("axis", Attr::Int(2));
                emit.into("", "Concat", vec![Some(past), Some(*part)], &[out], axis);
                *part = out;
            }
            (None, Some(out)) => {
                same(emit, *part, out);
                *part = out;
            }
            (None, None) => {}
        }
    }
    let total = size(emit, k4, 2, "total");
    let repeat = heads / groups.max(1);
    if repeat > 1 {
        for (part, d, name) in [(&mut k4, head, "k"), (&mut v4, value, "v")] {
            let (axes, times) = (emit.ints(&[2]), emit.ints(&[1, 1, repeat as i64, 1, 1]));
            let to = emit.ints(&[0, heads as i64, -1, d as i64]);
            let y = emit.op("Unsqueeze", &[*part, axes], &[], &format!("{name}_grouped"));
            let y = emit.op("Expand", &[y, times], &[], &format!("{name}_repeated"));
            *part = emit.op("Reshape", &[y, to], &[], &format!("{name}_all"));
        }
    }
    let scale = match a.get("scale") {
        Some(_) => f64::from(a.float("scale", 1.0)?),
        None => 1.0 / (head as f64).sqrt(),
    };
    let factor = emit.number(scale, dtype);
    let scaled = emit.op("Mul", &[q4, factor], &[], "q_scaled");
    let keys = emit.op("Transpose", &[k4], &[("perm", Attr::Ints(vec![0, 1, 3, 2]))], "k_transposed");
    let extra = emit.wanted(i, 3);
    let mode = a.int("qk_matmul_output_mode", 0)?;
    let mut scores = emit.op("MatMul", &[scaled, keys], &[], "scores");
    if let (Some(out), 0) = (extra, mode) {
        same(emit, scores, out);
    }
    let cap = f64::from(a.float("softcap", 0.0)?);
    if cap > 0.0 {
        let cap = emit.number(cap, dtype);
        let y = emit.op("Div", &[scores, cap], &[], "scores_divided");
        let y = emit.op("Tanh", &[y], &[], "scores_squeezed");
        scores = emit.op("Mul", &[y, cap], &[], "scores_capped");
    }
    match (extra, mode) {
        (Some(out), 1) => same(emit, scores, out),
        (Some(_), 2) => return Err(refuse(emit, i, "its masked scores are an output")),
        _ => {}
    }
    if let Some(mask) = slots[3] {
        let width = emit.shape(mask).and_then(|s| s.last()).and_then(Dim::known);
        let full = emit
            .facts
            .get(slots[1].unwrap_or(k))
            .and_then(|f| f.shape.as_ref()?.iter().rev().nth(1)?.known());
        if opset >= 24 && slots[4].is_none() && width.zip(full).is_some_and(|(w, t)| w != t) {
            return Err(refuse(emit, i, "its mask ends before the keys do"));
        }
        scores = match emit.dtype(mask) {
            DType::Bool => {
                let low = emit.number(lowest(dtype), dtype);
                emit.op("Where", &[mask, scores, low], &[], "scores_masked")
            }
            _ => emit.op("Add", &[scores, mask], &[], "scores_masked"),
        };
    }
    if let Some(reach) = reach(emit, &a, (q4, total), slots[4], slots[6])? {
        let low = emit.number(lowest(dtype), dtype);
        scores = emit.op("Where", &[reach, scores, low], &[], "scores_reached");
    }
    let weights = match (extra, mode) {
        (Some(out), 3) => out,
        _ => emit.value("weights"),
    };
    let last = Attributes::new().with("axis", Attr::Int(-1));
    emit.into("", "Softmax", vec![Some(scores)], &[weights], last);
    let Some(out) = emit.graph.node(i).outputs.first().copied().flatten() else {
        return Err(refuse(emit, i, "nothing takes its result"));
    };
    if flat {
        let y = emit.op("MatMul", &[weights, v4], &[], "mixed");
        let y = emit.op("Transpose", &[y], &[("perm", Attr::Ints(vec![0, 2, 1, 3]))], "by_position");
        let to = emit.ints(&[0, 0, (heads * value) as i64]);
        emit.into("", "Reshape", vec![Some(y), Some(to)], &[out], Attributes::new());
    } else {
        emit.into("", "MatMul", vec![Some(weights), Some(v4)], &[out], Attributes::new());
    }
    emit.edit.remove_node(i);
    Ok(())
}

/// Which keys the attributes let queries reach, where they say anything: booleans that broadcast to
/// `[batch, heads, queries, keys]`.
fn reach(
    emit: &mut Emit<'_>,
    a: &Attributes,
    (q, total): (ValueId, ValueId),
    past: Option<ValueId>,
    lengths: Option<ValueId>,
) -> Result<Option<ValueId>> {
    let causal = a.int("is_causal", 0)? != 0;
    let (left, right) = (a.int("left_window_size", -1)?, a.int("right_window_size", -1)?);
    if !causal && left < 0 && right < 0 && lengths.is_none() {
        return Ok(None);
    }
    let keys = range(emit, total, "key_places");
    let mut all: Vec<ValueId> = vec![];
    let lengths = lengths.map(|n| {
        let axes = emit.ints(&[1, 2, 3]);
        emit.op("Unsqueeze", &[n, axes], &[], "lengths")
    });
    if let Some(n) = lengths {
        all.push(emit.op("Less", &[keys, n], &[], "inside"));
    }
    if causal || left >= 0 || right >= 0 {
        let queries = size(emit, q, 2, "queries");
        let places = range(emit, queries, "query_range");
        let axes = emit.ints(&[1]);
        let mut places = emit.op("Unsqueeze", &[places, axes], &[], "query_places");
        let offset = match (past, lengths) {
            (Some(past), _) => Some(size(emit, past, 2, "past")),
            (None, Some(n)) => Some(emit.op("Sub", &[n, queries], &[], "first_query")),
            (None, None) => None,
        };
        if let Some(offset) = offset {
            places = emit.op("Add", &[places, offset], &[], "query_places_shifted");
        }
        let ahead = if causal { 0 } else { right };
        if ahead >= 0 {
            let by = emit.int(ahead);
            let last = emit.op("Add", &[places, by], &[], "last_key");
            all.push(emit.op("LessOrEqual", &[keys, last], &[], "not_ahead"));
        }
        if left >= 0 {
            let by = emit.int(left);
            let first = emit.op("Sub", &[places, by], &[], "first_key");
            all.push(emit.op("GreaterOrEqual", &[keys, first], &[], "not_behind"));
        }
    }
    let mut all = all.into_iter();
    let first = all.next();
    Ok(all.fold(first, |a, b| a.map(|a| emit.op("And", &[a, b], &[], "reach"))))
}

/// RotaryEmbedding in plain operators. Tables are looked up once for all that share them.
pub(super) fn rotary(emit: &mut Emit<'_>, i: NodeIndex) -> Result<()> {
    emit.at(i);
    let refuse = |emit: &Emit<'_>, why: &str| {
        Error::unsupported("LOWER-ROTARY", format!("this rotary embedding cannot be spelled out: {why}"))
            .node(emit.graph.label(i))
    };
    let a = emit.graph.node(i).attributes.clone();
    let (Some(x), Some(cos), Some(sin)) = (emit.input(i, 0), emit.input(i, 1), emit.input(i, 2)) else {
        return Err(refuse(emit, "an operand is missing"));
    };
    let positions = emit.input(i, 3);
    let half = emit.shape(cos).and_then(|s| s.last()).and_then(Dim::size);
    let (Some(shape), Some(half)) = (emit.shape(x), half) else {
        return Err(refuse(emit, "the shapes of its operands are not known"));
    };
    let interleaved = a.int("interleaved", 0)? != 0;
    let flat = shape.len() == 3;
    let width = shape.last().and_then(Dim::size);
    let heads = usize::try_from(a.int("num_heads", 0)?).ok().filter(|n| *n > 0);
    let head = match (flat, width, heads) {
        (false, Some(d), _) => d,
        (true, Some(w), Some(n)) => w / n,
        _ => return Err(refuse(emit, "the size of its heads is not known")),
    };
    let axis = if flat { 2 } else { 1 };
    let mut table = |table: ValueId, name: &str| {
        let key = format!("{name}_{}_{}_{axis}", table.0, positions.map_or(0, |p| p.0 + 1));
        emit.shared(key, |e, key| {
            let rows = match positions {
                Some(p) => e.op("Gather", &[table, p], &[("axis", Attr::Int(0))], &format!("{key}_rows")),
                None => table,
            };
            let axes = e.ints(&[axis]);
            e.op("Unsqueeze", &[rows, axes], &[], key)
        })
    };
    let (cos, sin) = (table(cos, "cos"), table(sin, "sin"));
    let mut y = x;
    if flat {
        let to = emit.ints(&[0, 0, -1, head as i64]);
        y = emit.op("Reshape", &[x, to], &[], "heads");
    }
    let (h, rest) = (half as i64, (head - 2 * half) as i64);
    let slice = |emit: &mut Emit<'_>, x: ValueId, from: i64, to: i64, step: i64, name: &str| {
        let all = [emit.ints(&[from]), emit.ints(&[to]), emit.ints(&[3]), emit.ints(&[step])];
        emit.op("Slice", &[x, all[0], all[1], all[2], all[3]], &[], name)
    };
    let (left, right, tail);
    if interleaved {
        left = slice(emit, y, 0, 2 * h, 2, "even");
        right = slice(emit, y, 1, 2 * h, 2, "odd");
        tail = (rest > 0).then(|| slice(emit, y, 2 * h, head as i64, 1, "rest"));
    } else {
        let sizes = if rest > 0 { emit.ints(&[h, h, rest]) } else { emit.ints(&[h, h]) };
        let mut outputs = vec![emit.value("left"), emit.value("right")];
        if rest > 0 {
            outputs.push(emit.value("rest"));
        }
        let last = Attributes::new().with("axis", Attr::Int(3));
        emit.into("", "Split", vec![Some(y), Some(sizes)], &outputs, last);
        (left, right, tail) = (outputs[0], outputs[1], outputs.get(2).copied());
    }
    let product =
        |emit: &mut Emit<'_>, a: ValueId, b: ValueId, name: &str| emit.op("Mul", &[a, b], &[], name);
    let (lc, rs) = (product(emit, left, cos, "left_cos"), product(emit, right, sin, "right_sin"));
    let (rc, ls) = (product(emit, right, cos, "right_cos"), product(emit, left, sin, "left_sin"));
    let a0 = emit.op("Sub", &[lc, rs], &[], "turned_left");
    let b0 = emit.op("Add", &[rc, ls], &[], "turned_right");
    let mut parts = vec![a0, b0];
    if interleaved {
        let axes = emit.ints(&[4]);
        let pair =
            parts.iter().map(|p| emit.op("Unsqueeze", &[*p, axes], &[], "element")).collect::<Vec<_>>();
        let pairs = emit.op("Concat", &pair, &[("axis", Attr::Int(4))], "pairs");
        let to = emit.ints(&[0, 0, 0, 2 * h]);
        parts = vec![emit.op("Reshape", &[pairs, to], &[], "turned")];
    }
    parts.extend(tail);
    let Some(out) = emit.graph.node(i).outputs.first().copied().flatten() else {
        return Err(refuse(emit, "nothing takes its result"));
    };
    let all: Vec<Option<ValueId>> = parts.into_iter().map(Some).collect();
    let last = Attributes::new().with("axis", Attr::Int(3));
    if flat {
        let joined = emit.value("joined");
        emit.into("", "Concat", all, &[joined], last);
        let to = emit.ints(&[0, 0, width.unwrap_or(0) as i64]);
        emit.into("", "Reshape", vec![Some(joined), Some(to)], &[out], Attributes::new());
    } else {
        emit.into("", "Concat", all, &[out], last);
    }
    emit.edit.remove_node(i);
    Ok(())
}
