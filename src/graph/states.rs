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

/// Whether each cache may stay in one place, past and present in one buffer that is longer than what it
/// holds: one operator reads the past and writes the present into its place, and nothing else reads either,
/// so that nobody takes the buffer's length for the number of positions.
pub fn in_place(graph: &Graph) -> bool {
    let (states, uses) = (of(graph), graph.uses());
    let pasts = graph.inputs().iter().filter(|v| graph.value_name(**v).starts_with(PAST)).count();
    let stays = |s: &State| {
        let (&[(reader, input)], Some((writer, output))) = (uses.consumers(s.past), uses.producer(s.present))
        else {
            return false;
        };
        let op = graph.node(writer).op.as_ref();
        reader == writer
            && uses.consumers(s.present).is_empty()
            && op.is_some_and(|op| op.in_place().contains(&(input, output)))
    };
    !states.is_empty() && states.len() == pasts && states.values().all(stays)
}

/// Names of past and present of one layer.
pub fn names(layer: usize, part: &str) -> [String; 2] {
    [format!("{PAST}{layer}.{part}"), format!("{PRESENT}{layer}.{part}")]
}
