//! Takes blocks out of a graph. Exits become entries, nodes and constants that nothing needs any longer
//! leave with their caches, and the caches that stay are numbered without gaps.

use super::Block;
use crate::error::{Error, Result};
use crate::graph::states::{self, State};
use crate::graph::{Edit, Graph, Node, NodeIndex, Type, ValueId};
use crate::ops::Dim;
use crate::passes::optimize::drop_unused_constants;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// `graph` without the blocks `chosen` (positions in `blocks`, which were found in this graph). Inputs
/// and outputs keep name and type, but for the caches of the blocks that leave; others move up to the
/// free numbers. What reads only the length of a cache that leaves reads that of another one.
///
/// # Errors
/// `Usage` for a position that is none; `Unsupported` where a cache that leaves is read by something
/// that stays, or where no cache is left to tell how many positions there are.
pub fn without(graph: &Graph, blocks: &[Block], chosen: &[usize]) -> Result<Graph> {
    let leaving: Vec<&Block> = chosen.iter().map(|at| block(blocks, *at)).collect::<Result<_>>()?;
    let entry: BTreeMap<ValueId, ValueId> = leaving.iter().map(|b| (b.exit, b.entry)).collect();
    let resolve = |mut v: ValueId| {
        while let Some(before) = entry.get(&v) {
            v = *before;
        }
        v
    };
    let gone: BTreeSet<NodeIndex> = leaving.iter().flat_map(|b| b.nodes.iter().copied()).collect();
    let uses = graph.uses();
    let producer = |v: ValueId| uses.producer(v).map(|(i, _)| i);
    let mut edit = graph.edit();
    edit.redirect_all(resolve);
    for v in graph.outputs().iter().filter(|v| entry.contains_key(v)) {
        // The output keeps its name, so something must give it.
        producer(*v).into_iter().for_each(|i| edit.remove_node(i));
        edit.add_node(Node::new("Identity", vec![Some(resolve(*v))], vec![Some(*v)]));
    }
    let all: Vec<State> = states::of(graph).into_values().collect();
    let leaves = |s: &State| producer(s.present).is_some_and(|i| gone.contains(&i));
    let (dropped, mut stay): (Vec<State>, Vec<State>) = all.into_iter().partition(leaves);
    for state in &dropped {
        edit.remove_output(state.present);
    }
    let before = alive(graph, |_| true);
    let standing: HashSet<NodeIndex> = edit.live_nodes().map(|(i, _)| i).collect();
    let after = alive(edit.graph(), |i| standing.contains(&i));
    for i in 0..graph.nodes().len() {
        if !after.contains(&i) && (gone.contains(&i) || before.contains(&i)) {
            edit.remove_node(i);
        }
    }
    stay.sort_by(|a, b| (a.layer, &a.part).cmp(&(b.layer, &b.part)));
    for state in &dropped {
        hand_on(&mut edit, graph, state, &stay)?;
    }
    renumber(&mut edit, graph, &stay)?;
    edit.forget_types();
    let shorter = drop_unused_constants(graph, edit.commit()?)?;
    verify(graph, &shorter)?;
    Ok(shorter)
}

fn block(blocks: &[Block], at: usize) -> Result<&Block> {
    blocks.get(at).ok_or_else(|| {
        Error::usage("PRUNE-DEPTH-BLOCK", "there is no such block")
            .found(at)
            .limit(format!("{} blocks, counted from 0", blocks.len()))
    })
}

/// Nodes that the graph's outputs need, among those that stand.
fn alive(graph: &Graph, stands: impl Fn(NodeIndex) -> bool) -> HashSet<NodeIndex> {
    let mut producer: HashMap<ValueId, NodeIndex> = HashMap::new();
    for (i, node) in graph.nodes().iter().enumerate().filter(|(i, _)| stands(*i)) {
        producer.extend(node.outputs.iter().flatten().map(|v| (*v, i)));
    }
    let mut found: HashSet<NodeIndex> = HashSet::new();
    let mut work: Vec<NodeIndex> = graph.outputs().iter().filter_map(|v| producer.get(v).copied()).collect();
    while let Some(i) = work.pop() {
        if found.insert(i) {
            let node = graph.node(i);
            let captured = node.bodies.iter().flat_map(|(_, b)| b.captured());
            let captured = captured.filter_map(|name| graph.find(&name));
            let read = node.inputs.iter().flatten().copied().chain(captured);
            work.extend(read.filter_map(|v| producer.get(&v).copied()));
        }
    }
    found
}

/// Takes the past of a cache that leaves away. What asked it for sizes asks one that stays.
fn hand_on(edit: &mut Edit, graph: &Graph, state: &State, stay: &[State]) -> Result<()> {
    let readers: Vec<NodeIndex> = edit
        .live_nodes()
        .filter(|(_, n)| n.inputs.iter().flatten().any(|v| *v == state.past))
        .map(|(i, _)| i)
        .collect();
    let shape = |v: ValueId| match &graph.value(v).ty {
        Some(Type::Tensor { shape: Some(shape), .. }) => shape.clone(),
        _ => vec![],
    };
    let (of, name) = (shape(state.past), graph.value_name(state.past));
    for i in readers {
        let node = edit.graph().node(i);
        let refuse =
            |what: &str| Error::unsupported("PRUNE-DEPTH-CACHE", what).node(graph.label(i)).found(name);
        if !node.is("Shape") {
            return Err(refuse("a cache that leaves is read by what stays"));
        }
        let rank = of.len() as i64;
        let bound = |attribute: &str, default: i64| -> Result<i64> {
            let n = node.attributes.int(attribute, default)?;
            Ok(if n < 0 { n + rank } else { n }.clamp(0, rank))
        };
        let (from, to) = (bound("start", 0)? as usize, bound("end", rank)? as usize);
        let alike = |s: &&State| {
            let other = shape(s.past);
            !of.is_empty() && other.len() == of.len() && (from..to).all(|axis| other[axis] == of[axis])
        };
        let heir = stay.iter().find(|s| s.part == state.part && alike(s)).or(stay.iter().find(alike));
        let heir = heir.ok_or_else(|| {
            refuse("no cache is left that tells how many positions there are")
                .hint("leave one attention in the model")
        })?;
        for v in edit.node_mut(i).inputs.iter_mut().flatten().filter(|v| **v == state.past) {
            *v = heir.past;
        }
    }
    edit.remove_input(state.past);
    Ok(())
}

/// Gives the caches that stay, in their order, numbers from 0 on.
fn renumber(edit: &mut Edit, graph: &Graph, stay: &[State]) -> Result<()> {
    let uses = graph.uses();
    let layers: BTreeSet<usize> = stay.iter().map(|s| s.layer).collect();
    for (number, layer) in layers.into_iter().enumerate().filter(|(number, layer)| number != layer) {
        for state in stay.iter().filter(|s| s.layer == layer) {
            let names = states::names(number, &state.part);
            for (v, name) in [state.past, state.present].into_iter().zip(names) {
                if uses.consumers(v).iter().any(|(_, slot)| *slot == usize::MAX) {
                    return Err(Error::unsupported("PRUNE-DEPTH-CACHE", "a cache is read inside a body")
                        .found(graph.value_name(v)));
                }
                edit.rename(v, &name);
            }
        }
    }
    Ok(())
}

/// Every value that stays has the shape that it had.
fn verify(graph: &Graph, shorter: &Graph) -> Result<()> {
    let (before, after) = (graph.infer(&|_| None)?, shorter.infer(&|_| None)?);
    let differs = |(a, b): (&Dim, &Dim)| a.known().zip(b.known()).is_some_and(|(a, b)| a != b);
    for (i, node) in shorter.nodes().iter().enumerate() {
        for v in node.outputs.iter().flatten() {
            let old = (v.0 as usize) < graph.value_count();
            let (Some(a), Some(b)) = (before.get(*v).filter(|_| old), after.get(*v)) else { continue };
            let (Some(a), Some(b)) = (&a.shape, &b.shape) else { continue };
            if a.len() != b.len() || a.iter().zip(b).any(differs) {
                return Err(Error::unsupported(
                    "PRUNE-DEPTH-SHAPE",
                    "a shape would change without the block",
                )
                .node(shorter.label(i))
                .found(format!("{b:?}"))
                .limit(format!("{a:?}")));
            }
        }
    }
    Ok(())
}
