//! Gates: the places where the units of a group flow into a product with a weight. A unit that leaves is
//! a column of zeros there, so what it does to the rest of the model passes through its gates.

use super::{Source, data};
use crate::error::Result;
use crate::evaluate::samples::Batch;
use crate::graph::constants::Constants;
use crate::graph::{NodeIndex, ValueId};
use crate::ops::Contraction;
use crate::passes::look::Look;
use std::collections::{BTreeMap, BTreeSet};

/// One product that sums over units.
#[derive(Debug, Clone)]
pub(in crate::passes::prune) struct Gate {
    pub(in crate::passes::prune) node: NodeIndex,
    pub(in crate::passes::prune) at: Contraction,
    /// What flows in.
    pub(in crate::passes::prune) data: ValueId,
    /// What it is multiplied with.
    pub(in crate::passes::prune) weight: ValueId,
    /// Unit at each index of the axis that is summed over.
    pub(in crate::passes::prune) units: Vec<Option<usize>>,
}

/// The gates of the groups that are ranked, in execution order.
pub(in crate::passes::prune) fn gates(source: &Source<'_>) -> Vec<Gate> {
    let graph = source.graph;
    let constants = Constants::of(graph);
    let group_of = group_of(source);
    let mut out = Vec::new();
    for node in 0..graph.nodes().len() {
        let inputs = source.facts.inputs(graph, node);
        let Some(at) = graph.node(node).op.as_ref().and_then(|op| op.contraction(&inputs)) else { continue };
        let input = |slot: usize| graph.node(node).inputs.get(slot).copied().flatten();
        let (Some(data), Some(weight)) = (input(at.data.0), input(at.weight.0)) else { continue };
        let float = constants.get(weight).is_some_and(|t| t.dtype().is_float() && !t.dtype().is_packed());
        if !float || constants.get(data).is_some() {
            continue;
        }
        let Some(units) = source.coupled.on(data, at.data.1) else { continue };
        let ranked = |u: Option<usize>| u.filter(|u| source.ranked[group_of[*u]]);
        let units: Vec<Option<usize>> = units.map(ranked).collect();
        if units.iter().any(Option::is_some) {
            out.push(Gate { node, at, data, weight, units });
        }
    }
    out
}

/// Group of every unit.
pub(super) fn group_of(source: &Source<'_>) -> Vec<usize> {
    source.coupled.groups().iter().flat_map(|g| std::iter::repeat_n(g.id, g.units)).collect()
}

/// Weights that have a say about the groups that are ranked, and the axes on which their units lie:
/// float weights of rank two or more. Vectors (biases, norms) are cut along but have none, unless a group
/// has nothing else.
pub(super) fn members(source: &Source<'_>) -> BTreeMap<ValueId, BTreeSet<usize>> {
    let constants = Constants::of(source.graph);
    let rank = |v: ValueId| constants.get(v).map_or(0, |t| t.shape().len());
    let mut members: BTreeMap<ValueId, BTreeSet<usize>> = BTreeMap::new();
    for group in source.coupled.groups().iter().filter(|g| source.ranked[g.id]) {
        let vectors_only = group.weights().all(|p| rank(p.value) < 2);
        for p in group.weights().filter(|p| vectors_only || rank(p.value) >= 2) {
            members.entry(p.value).or_default().insert(p.axis);
        }
    }
    members
}

/// What flows into gates, each once: the value and axis, and the gates that read it.
pub(super) fn flows(gates: &[Gate]) -> BTreeMap<(ValueId, usize), Vec<usize>> {
    let mut flows: BTreeMap<(ValueId, usize), Vec<usize>> = BTreeMap::new();
    for (i, gate) in gates.iter().enumerate() {
        flows.entry((gate.data, gate.at.data.1)).or_default().push(i);
    }
    flows
}

/// Calls `each` with the number of every batch that is to be looked at and the batch, but for the first
/// `skip`, telling the monitor of phase and progress.
pub(in crate::passes::prune) fn each_batch(
    source: &Source<'_>,
    phase: &str,
    skip: usize,
    each: &mut dyn FnMut(usize, &Batch) -> Result<()>,
) -> Result<()> {
    let look = Look { data: data(source.data)?, samples: source.samples, batch: source.batch };
    look.each(phase, source.monitor, skip, each).map(drop)
}
