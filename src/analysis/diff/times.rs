//! What each layer costs before and after: two profiles and the graph before enter; milliseconds by layer leave.

use super::super::summary::Timing;
use super::super::timing::by_node;
use crate::evaluate::measure::Profile;
use crate::graph::Graph;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Time of a layer in both models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerTime {
    /// Name before.
    pub name: String,
    /// Milliseconds of one run before; 0 where the runtime ran nothing by its name.
    pub before_ms: f64,
    /// Milliseconds of one run after, of everything that is named after it.
    pub after_ms: f64,
    /// Operators that the runtime ran for it before.
    pub before: String,
    /// Operators that the runtime ran for it after.
    pub after: String,
}

/// Times of two models on the same inputs, one profiled after the other: for where the time goes, not for how
/// much faster a model is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// The model before.
    pub before: Timing,
    /// The model after.
    pub after: Timing,
    /// Layers, those whose time changed most first.
    pub layers: Vec<LayerTime>,
}

/// Times by layer of `graph`, which is the model before.
pub fn times(graph: &Graph, before: &Profile, after: &Profile) -> Times {
    let (old, new) = (by_node(graph, before), by_node(graph, after));
    let of = |all: Option<&(f64, BTreeSet<&str>)>| match all {
        Some((ms, operators)) => (*ms, operators.iter().copied().collect::<Vec<_>>().join(", ")),
        None => (0.0, String::new()),
    };
    let layer = |i| {
        let ((before_ms, before), (after_ms, after)) = (of(old.nodes.get(&i)), of(new.nodes.get(&i)));
        LayerTime { name: graph.label(i), before_ms, after_ms, before, after }
    };
    let nodes: BTreeSet<_> = old.nodes.keys().chain(new.nodes.keys()).copied().collect();
    let mut layers: Vec<LayerTime> = nodes.into_iter().map(layer).collect();
    let change = |l: &LayerTime| (l.after_ms - l.before_ms).abs();
    layers.sort_by(|a, b| change(b).total_cmp(&change(a)));
    Times { before: old.timing(before), after: new.timing(after), layers }
}
