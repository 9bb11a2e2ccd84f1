//! Finds nodes that spell an operator out in primitives. A graph enters, fusions leave: a plan may run them
//! in the place of their nodes, a pass may write them into the graph. The graph stays as it is here, and so do
//! the numbers but for rounding. What is a pattern but for one condition leaves as a near miss that says which.
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

use crate::graph::{Facts, Graph, NodeIndex, Uses, ValueId};
use crate::ops::Operator;
use crate::ops::spelled::{self, Masking};
use sketch::Sketch;
use std::collections::HashSet;
use std::sync::Arc;

/// What nodes spell out, with the numbers that their constants hold.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Form {
    /// Normalisation over the axes from `axis` (negative) on.
    Norm {
        /// By mean and deviation; else by the root mean square.
        centred: bool,
        axis: i64,
        epsilon: f64,
    },
    /// Gelu, exact or by a hyperbolic tangent.
    Gelu { tanh: bool },
    /// `x Sigmoid(alpha x)`.
    Swish { alpha: f64 },
    /// `x Clip(x + 3, 0, 6) / 6`.
    HardSwish,
    /// `x HardSigmoid(x)`.
    HardGate { alpha: f64, beta: f64 },
    /// `Clip(alpha x + beta, 0, 1)`.
    HardSigmoid { alpha: f64, beta: f64 },
    /// Attention of queries, keys whose axes `keys` make `[.., keys, size]`, values, and a mask.
    Attention { scale: f64, keys: Vec<usize>, masking: Masking },
}

impl Form {
    /// The operator's name.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Form::Norm { centred: true, .. } => "LayerNormalization",
            Form::Norm { .. } => "RMSNormalization",
            Form::Gelu { .. } => "Gelu",
            Form::Swish { .. } => "Swish",
            Form::HardSwish | Form::HardGate { .. } => "HardSwish",
            Form::HardSigmoid { .. } => "HardSigmoid",
            Form::Attention { .. } => "Attention",
        }
    }

    fn operator(&self) -> Arc<dyn Operator> {
        match self {
            Form::Norm { centred, axis, epsilon } => spelled::norm(*centred, *axis, *epsilon),
            Form::Gelu { tanh } => spelled::gelu(*tanh),
            Form::Swish { alpha } => spelled::swish(*alpha),
            Form::HardSwish => spelled::hard_swish(),
            Form::HardGate { alpha, beta } => spelled::hard_gate(*alpha, *beta),
            Form::HardSigmoid { alpha, beta } => spelled::ramp(*alpha, *beta),
            Form::Attention { scale, keys, masking } => spelled::attention(*scale, keys.clone(), *masking),
        }
    }
}

/// Nodes that one operator can stand for.
#[derive(Debug)]
pub(crate) struct Fusion {
    /// What they spell out.
    pub form: Form,
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

/// A pattern but for one condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Miss {
    /// The pattern's operator.
    pub name: &'static str,
    /// The node that the pattern was looked for around.
    pub node: NodeIndex,
    /// The condition that does not hold.
    pub why: String,
}

/// What a family's file finds: the operator and its inputs, and the value that it gives.
struct Found {
    form: Form,
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
    if !has_signs(graph) {
        return vec![];
    }
    // Where shapes do not fit, running the nodes tells.
    let Ok(facts) = graph.infer(&|_| None) else { return vec![] };
    find_in(graph, &facts, &graph.uses()).0
}

fn has_signs(graph: &Graph) -> bool {
    graph.nodes().iter().any(|n| SIGNS.iter().any(|op| n.is(op)))
}

/// As [`find`], in a graph whose facts and uses are known; with the near misses outside of what was found.
pub(crate) fn find_in(graph: &Graph, facts: &Facts, uses: &Uses) -> (Vec<Arc<Fusion>>, Vec<Miss>) {
    if !has_signs(graph) {
        return (vec![], vec![]);
    }
    let outputs: HashSet<ValueId> = graph.outputs().iter().copied().collect();
    let mut taken: HashSet<NodeIndex> = HashSet::new();
    let (mut all, mut misses) = (vec![], vec![]);
    for finder in FINDERS {
        for i in 0..graph.nodes().len() {
            let mut sketch = Sketch::new(graph, uses, facts, &outputs);
            let found = finder(&mut sketch, i);
            let notes = sketch.notes();
            match found.and_then(|found| sketch.close(found)) {
                Some(fusion) if !fusion.nodes.iter().any(|n| taken.contains(n)) => {
                    taken.extend(&fusion.nodes);
                    all.push(Arc::new(fusion));
                }
                Some(_) => {}
                None => {
                    let miss = notes.borrow_mut().pop();
                    misses.extend(miss.map(|(name, why)| Miss { name, node: i, why }));
                }
            }
        }
    }
    all.sort_by_key(|f| f.nodes.last().copied());
    misses.retain(|m| !taken.contains(&m.node));
    (all, misses)
}
