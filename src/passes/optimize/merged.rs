//! `merge-products`: queries, keys and values that are products of the same data become one product, whose
//! result GroupQueryAttention takes as it is; where one product is split into them, the Split goes. The weights are put side by side (`Concat`, which
//! `fold-constants` computes), blocks of quantised ones with their scales and zero points, so that every number
//! is what it was; sums and biases behind the products go along.

use super::CONTRIB;
use super::sweep::Sweep;
use crate::error::Result;
use crate::graph::{Graph, Node, NodeIndex, ValueId};
use crate::ops::{Attr, Attributes, canonical_domain};

/// Values made in the same way from the same data.
enum Alike {
    Constants(Vec<ValueId>, i64),
    Nodes(Vec<NodeIndex>, Vec<Input>),
}

enum Input {
    Missing,
    Same(ValueId),
    Beside(Alike),
}

type Found<T> = Result<std::result::Result<T, String>>;

/// Whether a node is an attention that may take queries, keys and values as one value.
fn takes_one(node: &Node) -> bool {
    node.op_type == "GroupQueryAttention"
        && canonical_domain(&node.domain) == CONTRIB
        && node.op.is_some()
        && (0..3).all(|slot| node.inputs.get(slot).copied().flatten().is_some())
}

/// Bytes of weights that are read, and kept once more.
pub(super) fn bytes(graph: &Graph) -> u64 {
    let uses = graph.uses();
    let of = |v: &ValueId| uses.producer(*v).map(|(p, _)| graph.node(p));
    let attentions = graph.nodes().iter().filter(|n| takes_one(n));
    let products = attentions.flat_map(|n| n.inputs[..3].iter().flatten()).filter_map(of);
    products
        .flat_map(|n| n.inputs.iter().flatten())
        .filter_map(|v| graph.initializer(*v))
        .map(|t| t.byte_len())
        .sum()
}

pub(super) fn sweep(sweep: &mut Sweep<'_>) -> Result<()> {
    for i in 0..sweep.graph.nodes().len() {
        let node = sweep.graph.node(i);
        if !takes_one(node) {
            continue;
        }
        let parts: Vec<ValueId> = node.inputs[..3].iter().copied().flatten().collect();
        let label = sweep.graph.label(i);
        if let Some((split, whole)) = parted(sweep, &parts) {
            sweep.remove(split);
            take(sweep, i, whole);
            sweep.apply(label, "queries, keys and values stay as they are made");
            continue;
        }
        let found = match sweep.refused(parts[0]) {
            Some(why) => Err(why.to_string()),
            None => alike(sweep, &parts)?,
        };
        match found {
            Err(why) => sweep.skip(label, why),
            Ok(found) => {
                let mut from = vec![];
                let whole = write(sweep, &found, &mut from);
                take(sweep, i, whole);
                sweep.apply(label, "queries, keys and values come from one product");
                sweep.claim_beside(parts, whole, from);
            }
        }
    }
    Ok(())
}

fn take(sweep: &mut Sweep<'_>, attention: NodeIndex, whole: ValueId) {
    let node = sweep.change(attention);
    node.inputs[0] = Some(whole);
    (node.inputs[1], node.inputs[2]) = (None, None);
}

/// The Split of the last axis whose results queries, keys and values are, in this order, and what it splits.
fn parted(sweep: &Sweep<'_>, parts: &[ValueId]) -> Option<(NodeIndex, ValueId)> {
    let (split, _) = sweep.uses().producer(parts[0])?;
    let node = sweep.graph.node(split);
    let all = node.outputs.iter().copied().eq(parts.iter().copied().map(Some));
    let alone = parts.iter().all(|v| sweep.only_reader(*v).is_some());
    let last = matches!(node.attributes.int("axis", 0), Ok(-1 | 2));
    (node.is("Split") && all && alone && last && !sweep.is_touched(split)).then_some(())?;
    Some((split, node.inputs.first().copied().flatten()?))
}

/// How values that lie side by side can be made at once; `Err` says why they cannot.
fn alike(sweep: &Sweep<'_>, values: &[ValueId]) -> Found<Alike> {
    let graph = sweep.graph;
    let made = |v: &ValueId| sweep.uses().producer(*v).filter(|(p, _)| !sweep.is_touched(*p)).map(|(p, _)| p);
    let Some(nodes) = values.iter().map(made).collect::<Option<Vec<NodeIndex>>>() else {
        return Ok(Err("queries, keys and values are not all results of nodes".into()));
    };
    if let Some(v) = values.iter().find(|v| sweep.only_reader(**v).is_none()) {
        return Ok(Err(format!("{} has other readers", graph.value_name(*v))));
    }
    let first = graph.node(nodes[0]);
    let same = |n: &Node| {
        n.operator_name() == first.operator_name()
            && n.inputs.iter().map(Option::is_some).eq(first.inputs.iter().map(Option::is_some))
            && numbers(n) == numbers(first)
    };
    if let Some(other) = nodes.iter().find(|n| !same(graph.node(**n))) {
        return Ok(Err(format!(
            "{} and {} do not compute alike",
            graph.label(nodes[0]),
            graph.label(*other)
        )));
    }
    let slot = |slot: usize| -> Option<Vec<ValueId>> {
        nodes.iter().map(|n| graph.node(*n).inputs.get(slot).copied().flatten()).collect()
    };
    let mut inputs = Vec::with_capacity(first.inputs.len());
    for at in 0..first.inputs.len() {
        let Some(given) = slot(at) else {
            inputs.push(Input::Missing);
            continue;
        };
        let beside = match (kind(first), at) {
            (Some(Kind::Sum), _) if sweep.constant(given[0]).is_some() => {
                constants(sweep, given, 1, 0, values)?
            }
            (Some(Kind::Sum), _) => alike(sweep, &given)?,
            (Some(_), 0) if given.iter().all(|v| *v == given[0]) => {
                inputs.push(Input::Same(given[0]));
                continue;
            }
            (Some(_), 0) => Err("queries, keys and values are not made from the same data".into()),
            (Some(Kind::Product), _) => constants(sweep, given, 2, 1, values)?,
            // Each part of a quantised weight begins with the axis of its outputs; an order of inputs is none.
            (Some(Kind::Blocks), 1..=3 | 5) => constants(sweep, given, 0, 0, values)?,
            _ => Err(format!("{} is no product", graph.label(nodes[0]))),
        };
        match beside {
            Ok(found) => inputs.push(Input::Beside(found)),
            Err(why) => return Ok(Err(why)),
        }
    }
    Ok(Ok(Alike::Nodes(nodes, inputs)))
}

enum Kind {
    Sum,
    Product,
    Blocks,
}

fn kind(node: &Node) -> Option<Kind> {
    match node.op_type.as_str() {
        "Add" if node.is("Add") => Some(Kind::Sum),
        "MatMul" if node.is("MatMul") => Some(Kind::Product),
        "MatMulNBits" if canonical_domain(&node.domain) == CONTRIB => Some(Kind::Blocks),
        _ => None,
    }
}

/// Attributes that must agree, as text: all but the number of outputs.
fn numbers(node: &Node) -> Vec<String> {
    let mut all: Vec<String> =
        node.attributes.iter().filter(|(name, _)| *name != "N").map(|(n, a)| format!("{n} {a:?}")).collect();
    all.sort();
    all
}

/// Constants of their own, to be put side by side on an axis. Where `rank` is not 0 they have so many axes, the
/// last of the size of what is made with them.
fn constants(
    sweep: &Sweep<'_>,
    given: Vec<ValueId>,
    rank: usize,
    axis: i64,
    made: &[ValueId],
) -> Found<Alike> {
    for (v, made) in given.iter().zip(made) {
        let name = sweep.graph.value_name(*v);
        let Some(tensor) = sweep.constant(*v) else { return Ok(Err(format!("{name} is no constant"))) };
        if sweep.uses().consumers(*v).len() != 1 || sweep.is_pinned(*v) {
            return Ok(Err(format!("{name} has other readers")));
        }
        let width = sweep.fact(*made)?.and_then(|f| f.shape.as_ref()?.last()?.size());
        let fits = tensor.shape().len() == rank && tensor.shape().last().copied() == width;
        if rank > 0 && !fits {
            return Ok(Err(format!("{name} is not of the size of what is made with it")));
        }
    }
    let first = sweep.constant(given[0]).map(|t| (t.dtype(), t.shape().len()));
    if given.iter().any(|v| sweep.constant(*v).map(|t| (t.dtype(), t.shape().len())) != first) {
        return Ok(Err(format!("{} differs in type from its like", sweep.graph.value_name(given[0]))));
    }
    Ok(Ok(Alike::Constants(given, axis)))
}

/// Puts one node, or one constant, in the place of several; `from` gets what they read in common.
fn write(sweep: &mut Sweep<'_>, found: &Alike, from: &mut Vec<ValueId>) -> ValueId {
    let graph = sweep.graph;
    match found {
        Alike::Constants(parts, axis) => {
            let name = format!("{}_merged", graph.value_name(parts[0]));
            let with = Attributes::new().with("axis", Attr::Int(*axis));
            sweep.edit().add_op("Concat", parts, with, &name)
        }
        Alike::Nodes(nodes, inputs) => {
            let read: Vec<Option<ValueId>> = (inputs.iter())
                .map(|input| match input {
                    Input::Missing => None,
                    Input::Same(v) => {
                        from.push(*v);
                        Some(*v)
                    }
                    Input::Beside(found) => Some(write(sweep, found, from)),
                })
                .collect();
            let mut node = graph.node(nodes[0]).clone();
            let outputs = |n: &NodeIndex| graph.node(*n).attributes.int("N", 0).unwrap_or(0);
            if node.attributes.get("N").is_some() {
                node.attributes.set("N", Attr::Int(nodes.iter().map(outputs).sum()));
            }
            nodes.iter().for_each(|n| sweep.remove(*n));
            let old = node.outputs[0].map_or("product", |v| graph.value_name(v)).to_string();
            let whole = sweep.edit().add_value(&format!("{old}_merged"), None);
            (node.inputs, node.outputs, node.op) = (read, vec![Some(whole)], None);
            node.name = format!("{}_merged", node.name);
            sweep.edit().add_node(node);
            whole
        }
    }
}
