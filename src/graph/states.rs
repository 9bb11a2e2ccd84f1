//! Caches of decoders, found by the names of graph inputs and outputs: `past_key_values.N.key` comes in,
//! `present.N.key` goes out and comes in again. Whoever runs a decoder pairs them by name, so that the
//! numbers must have no gaps.

use crate::graph::{Graph, ValueId};
use std::collections::BTreeMap;

const PAST: &str = "past_key_values.";
const PRESENT: &str = "present.";

/// A cache that is handed on from run to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Number of its layer.
    pub layer: usize,
    /// What it holds: `key`, `value`.
    pub part: String,
    /// Graph input.
    pub past: ValueId,
    /// Graph output, the past of the next run.
    pub present: ValueId,
}

/// The states of a graph by their present value.
pub fn of(graph: &Graph) -> BTreeMap<ValueId, State> {
    let states = graph.outputs().iter().filter_map(|v| {
        let (layer, part) = graph.value_name(*v).strip_prefix(PRESENT)?.split_once('.')?;
        let past = graph.find(&format!("{PAST}{layer}.{part}"))?;
        let state = State { layer: layer.parse().ok()?, part: part.into(), past, present: *v };
        graph.inputs().contains(&past).then_some((*v, state))
    });
    states.collect()
}

/// Names of past and present of one layer.
pub fn names(layer: usize, part: &str) -> [String; 2] {
    [format!("{PAST}{layer}.{part}"), format!("{PRESENT}{layer}.{part}")]
}
