//! Hashes of nodes with everything that they are made from, and with everything that is made from
//! them. A pair of nodes counts as one known thing, so that hashes agree again beyond a change.

use super::Side;
use crate::graph::{Graph, Node, NodeIndex, ValueId};
use crate::ops::Attr;
use std::hash::{DefaultHasher, Hash, Hasher};

/// What counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// Operators, attributes, types and shapes of constants.
    Strict,
    /// Operators and how they are connected.
    Loose,
}

/// Operators whose inputs may change places.
const COMMUTE: [&str; 10] = ["Add", "Mul", "Min", "Max", "And", "Or", "Xor", "Equal", "Sum", "Mean"];

pub(super) struct Signatures {
    /// By node: its operator and all that it is made from.
    pub(super) made_from: Vec<u64>,
    /// By node: its operator and all that is made from it.
    pub(super) makes: Vec<u64>,
}

fn hash(parts: &impl Hash) -> u64 {
    // The default keys of `DefaultHasher::new` are the same in every run.
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

impl Signatures {
    pub(super) fn new(side: &Side<'_>, level: Level) -> Signatures {
        let graph = side.graph;
        let own: Vec<u64> = graph.nodes().iter().map(|n| hash(&own(n, level))).collect();
        Signatures { made_from: made_from(side, &own, level), makes: makes(side, &own) }
    }
}

/// A node without its surroundings.
fn own(node: &Node, level: Level) -> (String, Vec<String>, usize) {
    let mut attributes: Vec<String> = Vec::new();
    if level == Level::Strict {
        attributes =
            node.attributes.iter().map(|(name, value)| format!("{name}={}", spelled(value))).collect();
        attributes.sort();
    }
    for (name, body) in &node.bodies {
        let operators: Vec<String> = body.nodes().iter().map(Node::operator_name).collect();
        attributes.push(format!("{name}:{}", operators.join(" ")));
    }
    (node.operator_name(), attributes, node.outputs.len())
}

/// An attribute's value for comparison; of a tensor, its type and shape.
pub(crate) fn spelled(value: &Attr) -> String {
    match value {
        Attr::Tensor(t) => format!("{}{:?}", t.dtype(), t.shape()),
        Attr::Str(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => format!("{other:?}"),
    }
}

fn made_from(side: &Side<'_>, own: &[u64], level: Level) -> Vec<u64> {
    let graph = side.graph;
    let mut of_node = vec![0u64; own.len()];
    for (i, node) in graph.nodes().iter().enumerate() {
        let mut inputs: Vec<u64> =
            node.inputs.iter().map(|v| v.map_or(0, |v| value(side, graph, v, &of_node, level))).collect();
        if COMMUTE.iter().any(|op| node.is(op)) {
            inputs.sort_unstable();
        }
        of_node[i] = match side.paired[i] {
            Some(pair) => hash(&("pair", pair)),
            None => hash(&(own[i], inputs)),
        };
    }
    of_node
}

fn value(side: &Side<'_>, graph: &Graph, v: ValueId, of_node: &[u64], level: Level) -> u64 {
    if let Some(tensor) = side.constants.get(v) {
        return match level {
            Level::Strict => hash(&("constant", tensor.dtype().name(), tensor.shape())),
            Level::Loose => hash(&"constant"),
        };
    }
    match side.uses.producer(v) {
        Some((node, slot)) => hash(&(of_node[node], slot)),
        // An input is what stands at its place.
        None => hash(&("input", graph.required_inputs().position(|i| i == v))),
    }
}

fn makes(side: &Side<'_>, own: &[u64]) -> Vec<u64> {
    let graph = side.graph;
    let mut of_node = vec![0u64; own.len()];
    for i in (0..own.len()).rev() {
        of_node[i] = match side.paired[i] {
            Some(pair) => hash(&("pair", pair)),
            None => {
                let outputs = graph.node(i).outputs.iter();
                let outputs: Vec<Vec<u64>> =
                    outputs.map(|v| v.map_or(Vec::new(), |v| readers(side, graph, v, &of_node))).collect();
                hash(&(own[i], outputs))
            }
        };
    }
    of_node
}

/// Who reads a value, and at which place, in an order that does not depend on the file's.
fn readers(side: &Side<'_>, graph: &Graph, v: ValueId, of_node: &[u64]) -> Vec<u64> {
    let place = |node: NodeIndex, slot: usize| {
        let commutes = COMMUTE.iter().any(|op| graph.node(node).is(op));
        if commutes { 0 } else { slot }
    };
    let consumers = side.uses.consumers(v).iter();
    let mut out: Vec<u64> = consumers.map(|(n, slot)| hash(&(of_node[*n], place(*n, *slot)))).collect();
    if let Some(at) = graph.outputs().iter().position(|o| *o == v) {
        out.push(hash(&("output", at)));
    }
    out.sort_unstable();
    out
}
