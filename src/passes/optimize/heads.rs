//! Attention that is spelled out, with its heads split from rows and joined again, as ONNX Runtime's
//! MultiHeadAttention. Masks that come from a padding input are handed over as that input, others as what is
//! added to the scores.

use super::CONTRIB;
use super::fused::{New, Outcome, Written, become_one};
use super::pairs::permutation;
use super::sweep::Sweep;
use crate::error::Result;
use crate::execute::fuse::{Form, Fusion};
use crate::graph::{Node, NodeIndex, ValueId};
use crate::ops::spelled::Masking;
use crate::ops::{Attr, Attributes, Dim};
use crate::passes::lower::{Target, masks};
use crate::tensor::DType;

/// Axes of `[batch, positions, heads, size]` as `[batch, heads, positions, size]`.
const BY_HEAD: [usize; 4] = [0, 2, 1, 3];

/// Input of MultiHeadAttention that tells padding, and the one that is added to the scores.
const PADDING: usize = 4;
const BIAS: usize = 5;

pub(super) fn attention(sweep: &mut Sweep<'_>, fusion: &Fusion) -> Result<Outcome> {
    Ok(fit(sweep, fusion)?.map(|site| Some(write(sweep, fusion, site))))
}

/// What the operator reads and where its result goes.
struct Site {
    heads: usize,
    scale: f64,
    /// Queries, keys, values, heads side by side.
    rows: [ValueId; 3],
    mask: Mask,
    /// The nodes behind the attention that join the heads, and what they give.
    joins: [NodeIndex; 2],
    joined: ValueId,
}

enum Mask {
    None,
    /// An input of ones where tokens are real, and what is added elsewhere.
    Padding(ValueId, f32),
    Added(ValueId),
}

fn fit(sweep: &Sweep<'_>, fusion: &Fusion) -> Result<std::result::Result<Site, String>> {
    let Form::Attention { scale, keys, masking } = &fusion.form else { return Ok(Err("it is none".into())) };
    let keys: &[usize] = keys;
    if sweep.terms.target != Target::Ort {
        return Ok(Err("one operator for it is ONNX Runtime's own, which target = \"ort\" allows".into()));
    }
    let [Some(q), Some(k), Some(v), mask] = fusion.inputs[..] else {
        return Ok(Err("an operand is missing".into()));
    };
    let facts = sweep.facts()?;
    if facts.get(q).map(|f| f.dtype) != Some(DType::F32) {
        return Ok(Err("it is not in f32".into()));
    }
    let axis = |v: ValueId, at: usize| facts.get(v)?.shape.as_ref()?.get(at)?.size();
    let rank = facts.get(q).and_then(|f| f.rank());
    let (Some(4), Some(&head_axis)) = (rank, keys.get(1)) else {
        return Ok(Err(format!("it has {} axes, not four", rank.unwrap_or(0))));
    };
    let Some(heads) = axis(q, 1) else { return Ok(Err("the number of heads is not known".into())) };
    if [axis(k, head_axis), axis(v, 1)] != [Some(heads); 2] {
        return Ok(Err("one head of keys and values serves all queries".into()));
    }
    let mut rows = [q; 3];
    let straight: &[usize] = &[0, 1, 2, 3];
    for (slot, (operand, order)) in [(q, straight), (k, keys), (v, straight)].into_iter().enumerate() {
        match beside(sweep, operand, order)? {
            Some(row) => rows[slot] = row,
            None => {
                let name = sweep.graph.value_name(operand);
                return Ok(Err(format!(
                    "the heads of {name} are not split from rows by Reshape and Transpose"
                )));
            }
        }
    }
    let Some((joins, joined)) = joined(sweep, fusion.output)? else {
        return Ok(Err("its heads are not joined by Transpose and Reshape behind it".into()));
    };
    if joins.iter().any(|i| sweep.is_touched(*i)) {
        return Ok(Err("its neighbours have just changed".into()));
    }
    if let Some(why) = sweep.refused(joined) {
        return Ok(Err(why.into()));
    }
    let mask = match mask {
        None => Mask::None,
        Some(mask) => match told(sweep, mask, *masking, [q, k], keys)? {
            Some(mask) => mask,
            None => {
                let name = sweep.graph.value_name(mask);
                return Ok(Err(format!("its mask, {name}, has an unknown form")));
            }
        },
    };
    Ok(Ok(Site { heads, scale: *scale, rows, mask, joins, joined }))
}

/// `[batch, positions, heads * size]` that an operand was split from; `order` has the axes that hold batch,
/// heads, positions and size.
fn beside(sweep: &Sweep<'_>, v: ValueId, order: &[usize]) -> Result<Option<ValueId>> {
    let made = |v: ValueId, op: &str| {
        let (i, _) = sweep.uses().producer(v)?;
        let node = sweep.graph.node(i);
        node.is(op).then_some(node)
    };
    let mut split = v;
    let mut order = order.to_vec();
    if order != BY_HEAD
        && let Some(node) = made(v, "Transpose")
        && let (Some(perm), Some(of)) = (permutation(node, 4), node.inputs.first().copied().flatten())
    {
        order.iter_mut().for_each(|axis| *axis = perm[*axis]);
        split = of;
    }
    if order != BY_HEAD {
        return Ok(None);
    }
    let Some(whole) = made(split, "Reshape").and_then(|n| n.inputs.first().copied().flatten()) else {
        return Ok(None);
    };
    let facts = sweep.facts()?;
    let shape = |v: ValueId| facts.get(v).and_then(|f| f.shape.as_deref());
    let fits = match (shape(whole), shape(split)) {
        (Some([b, s, w]), Some([b0, s0, h, d])) => b == b0 && s == s0 && *w == h.clone() * d.clone(),
        _ => false,
    };
    Ok(fits.then_some(whole))
}

/// The nodes that join the heads of `y`, and what they give.
fn joined(sweep: &Sweep<'_>, y: ValueId) -> Result<Option<([NodeIndex; 2], ValueId)>> {
    let next = |v: ValueId, op: &str| {
        let i = sweep.only_reader(v)?;
        let node = sweep.graph.node(i);
        let out = node.outputs.first().copied().flatten()?;
        (node.is(op) && node.inputs.first().copied().flatten() == Some(v)).then_some((i, out))
    };
    let Some((turn, by_position)) = next(y, "Transpose") else { return Ok(None) };
    if permutation(sweep.graph.node(turn), 4).is_none_or(|p| p != BY_HEAD) {
        return Ok(None);
    }
    let Some((join, rows)) = next(by_position, "Reshape") else { return Ok(None) };
    let facts = sweep.facts()?;
    let shape = |v: ValueId| facts.get(v).and_then(|f| f.shape.as_deref());
    let fits = match (shape(y), shape(rows)) {
        (Some([b, h, s, d]), Some([b0, s0, w])) => b == b0 && s == s0 && *w == h.clone() * d.clone(),
        _ => false,
    };
    Ok(fits.then_some(([turn, join], rows)))
}

/// How the operator is told of a mask.
fn told(
    sweep: &Sweep<'_>,
    mask: ValueId,
    masking: Masking,
    [q, k]: [ValueId; 2],
    keys: &[usize],
) -> Result<Option<Mask>> {
    let lowest = |fill: f64| (fill as f32).max(f32::MIN);
    if let Some((padding, fill)) = masks::padding(sweep.graph, sweep.uses(), mask, masking) {
        return Ok(Some(Mask::Padding(padding, lowest(fill))));
    }
    let facts = sweep.facts()?;
    let axis = |v: ValueId, at: usize| -> Option<&Dim> { facts.get(v)?.shape.as_ref()?.get(at) };
    let whole = match facts.get(mask).and_then(|f| f.shape.as_deref()) {
        Some([b, h, s, t]) => {
            let same = |d: &Dim, v: ValueId, at: usize| axis(v, at) == Some(d);
            (b.is(1) || same(b, q, 0))
                && (h.is(1) || same(h, q, 1))
                && same(s, q, 2)
                && keys.get(2).is_some_and(|at| same(t, k, *at))
        }
        _ => false,
    };
    Ok((whole && masking == Masking::Added).then_some(Mask::Added(mask)))
}

fn write(sweep: &mut Sweep<'_>, fusion: &Fusion, site: Site) -> Written {
    let Site { heads, scale, rows, mask, joins: [turn, join], joined } = site;
    let mut attributes =
        Attributes::new().with("num_heads", Attr::Int(heads as i64)).with("scale", Attr::Float(scale as f32));
    let mut inputs: Vec<Option<ValueId>> = rows.map(Some).to_vec();
    let mut from = rows.to_vec();
    let mut with = "";
    match mask {
        Mask::None => {}
        Mask::Padding(padding, fill) => {
            let to = Attributes::new().with("to", Attr::Int(i64::from(DType::I32.onnx())));
            let name = format!("{}_padding", sweep.graph.value_name(joined));
            let narrow = sweep.edit().add_value(&name, None);
            let cast = Node::new("Cast", vec![Some(padding)], vec![Some(narrow)]).with(to).named(name);
            sweep.edit().add_node(cast);
            inputs.resize(PADDING, None);
            inputs.push(Some(narrow));
            attributes.set("mask_filter_value", Attr::Float(fill));
            from.push(padding);
            with = " with a padding input";
        }
        Mask::Added(bias) => {
            inputs.resize(BIAS, None);
            inputs.push(Some(bias));
            from.push(bias);
            with = " with what is added to its scores";
        }
    }
    fusion.nodes.iter().chain([&turn]).for_each(|i| sweep.remove(*i));
    become_one(sweep, join, New { domain: CONTRIB, op: "MultiHeadAttention", inputs, attributes });
    Written { detail: format!("{} becomes MultiHeadAttention{with}", fusion.covers), output: joined, from }
}
