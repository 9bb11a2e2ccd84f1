//! Finds nodes that spell an operator out in primitives. A graph enters, fusions leave, which a plan may
//! run in the place of their nodes; the graph stays as it is, and so do the numbers but for rounding.
//!
//! Each family's file states its patterns. What holds for all: constants are what they must be and no
//! caller can replace them; values between the nodes are used by nothing else; elements are f32 or f64, so
//! that nothing is rounded in between.

mod activation;
mod attention;
mod norm;
mod sketch;
#[cfg(test)]
mod tests;

use crate::graph::{Graph, NodeIndex, ValueId};
use crate::ops::Operator;
use sketch::Sketch;
use std::collections::HashSet;
use std::sync::Arc;

/// Nodes that one operator can stand for.
#[derive(Debug)]
pub(super) struct Fusion {
    /// The operator's name.
    pub name: &'static str,
    pub op: Arc<dyn Operator>,
    /// What the operator reads.
    pub inputs: Vec<Option<ValueId>>,
    /// What it gives: the last node's result.
    pub output: ValueId,
    /// Ascending.
    pub nodes: Vec<NodeIndex>,
    /// Their operators, separated by commas.
    pub covers: String,
    /// Results of the other nodes, which are never computed.
    pub inner: Vec<ValueId>,
    /// Constants whose elements the operator holds.
    pub fixed: Vec<ValueId>,
}

/// What a family's file finds: the operator and its inputs, and the value that it gives.
struct Found {
    name: &'static str,
    op: Arc<dyn Operator>,
    inputs: Vec<Option<ValueId>>,
    output: ValueId,
}

/// Looks for a pattern around one node, and marks in the sketch what it covers.
type Finder = fn(&mut Sketch<'_>, NodeIndex) -> Option<Found>;

/// Earlier ones take what later ones could be part of.
const FINDERS: [Finder; 4] = [attention::find, norm::find, activation::find, activation::find_ramp];

/// Operators without which no pattern is complete.
const SIGNS: [&str; 8] = ["Softmax", "Sqrt", "Pow", "Erf", "Tanh", "Sigmoid", "HardSigmoid", "Clip"];

/// Fusions that share no node, by the order of their last nodes.
pub(super) fn find(graph: &Graph) -> Vec<Arc<Fusion>> {
    if !graph.nodes().iter().any(|n| SIGNS.iter().any(|op| n.is(op))) {
        return vec![];
    }
    // Where shapes do not fit, running the nodes tells.
    let Ok(facts) = graph.infer(&|_| None) else { return vec![] };
    let uses = graph.uses();
    let outputs: HashSet<ValueId> = graph.outputs().iter().copied().collect();
    let mut taken: HashSet<NodeIndex> = HashSet::new();
    let mut all = vec![];
    for finder in FINDERS {
        for i in 0..graph.nodes().len() {
            let mut sketch = Sketch::new(graph, &uses, &facts, &outputs);
            let fusion = finder(&mut sketch, i).and_then(|found| sketch.close(found));
            if let Some(fusion) = fusion.filter(|f| !f.nodes.iter().any(|n| taken.contains(n))) {
                taken.extend(&fusion.nodes);
                all.push(Arc::new(fusion));
            }
        }
    }
    all.sort_by_key(|f| f.nodes.last().copied());
    all
}
