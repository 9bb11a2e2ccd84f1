//! What a cut tells of each group: for the report of a step, and for faces that draw it.

use super::sensitivity::Curve;
use super::{Decision, room};
use crate::graph::Graph;
use crate::graph::constants::Constants;
use crate::graph::coupling::Kind;
use serde::{Deserialize, Serialize};

/// Five numbers of a distribution.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Spread {
    pub min: f64,
    pub p25: f64,
    pub median: f64,
    pub p75: f64,
    pub max: f64,
}

impl Spread {
    fn of(mut v: Vec<f64>) -> Option<Spread> {
        v.sort_by(f64::total_cmp);
        let at = |part: f64| v.get((part * (v.len() as f64 - 1.0)).round() as usize).copied();
        Some(Spread { min: at(0.0)?, p25: at(0.25)?, median: at(0.5)?, p75: at(0.75)?, max: at(1.0)? })
    }
}

/// One coupling group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupReport {
    /// Position among the groups of the model before the cut.
    pub group: usize,
    /// What its units are.
    pub kind: Kind,
    /// Nodes that read its weights, the first few and the last.
    pub nodes: Vec<String>,
    /// Units before the cut.
    pub units: usize,
    /// Units after it.
    pub kept: usize,
    /// Parameters that leave with the first unit.
    pub parameters_per_unit: u64,
    /// Scores of the units that stay, where they were ranked.
    pub scores_kept: Option<Spread>,
    /// Scores of the units that left.
    pub scores_removed: Option<Spread>,
    /// How the loss rises as units leave, where that was looked at.
    pub sensitivity: Option<Curve>,
    /// Why it stays as it is, where it does.
    pub stays: Option<String>,
}

/// Nodes that a group is shown by.
const NODES: usize = 4;

/// The first of some nodes and the last one, so that it shows how far a group reaches.
fn shown(nodes: &[String]) -> Vec<String> {
    match nodes {
        [first @ .., last] if first.len() >= NODES => {
            first.iter().take(NODES - 1).chain([last]).cloned().collect()
        }
        all => all.to_vec(),
    }
}

/// All groups, in their order.
pub(super) fn groups(graph: &Graph, decision: &Decision) -> Vec<GroupReport> {
    let constants = Constants::of(graph);
    let readers = room::readers(graph, &decision.coupled);
    let of = |group: &crate::graph::coupling::Group| {
        let scores = decision.scores[group.id].as_deref().unwrap_or_default();
        let spread = |leaves: bool| {
            let chosen = group.numbers().zip(scores).filter(|(u, _)| decision.leaves[*u] == leaves);
            Spread::of(chosen.map(|(_, s)| *s).collect())
        };
        GroupReport {
            group: group.id,
            kind: group.kind,
            nodes: shown(&readers[group.id]),
            units: group.units,
            kept: decision.kept(group),
            parameters_per_unit: group.parameters_per_unit(&constants),
            scores_kept: spread(false),
            scores_removed: spread(true),
            sensitivity: decision.curves[group.id].clone(),
            stays: decision.stays[group.id].clone(),
        }
    };
    decision.coupled.groups().iter().map(of).collect()
}
