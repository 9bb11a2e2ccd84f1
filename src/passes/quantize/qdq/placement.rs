//! Which nodes are quantised and which values have a grid: those that an integer kernel reads, and those
//! that one cannot give as floats. A node without weights is quantised where its data are on integers
//! anyway and an integer kernel wants what it gives.

use super::super::Settings;
use super::roles::{self, Role, Weighted};
use super::{RULE, Refused};
use crate::error::Result;
use crate::graph::{Graph, NodeIndex, Uses, ValueId};
use crate::passes::PassReport;
use crate::tensor::DType;
use std::collections::{BTreeMap, BTreeSet};

/// What is quantised, and how.
#[derive(Debug, Default)]
pub(super) struct Placement {
    pub(super) roles: BTreeMap<NodeIndex, Role>,
    /// Data that each node reads on a grid.
    pub(super) data: BTreeMap<NodeIndex, Vec<ValueId>>,
    /// Values with a grid.
    pub(super) values: BTreeSet<ValueId>,
    /// Those of them that an integer kernel gives: whoever reads them reads what left the grid.
    pub(super) integer: BTreeSet<ValueId>,
    /// Follows a value to the one whose levels it has, with the factor between both scales.
    same_levels: BTreeMap<ValueId, (ValueId, f32)>,
    /// Values behind an activation that the ends of their grid do: the activation, and its largest value.
    pub(super) ramps: BTreeMap<ValueId, (NodeIndex, f32)>,
}

impl Placement {
    /// The value whose grid this one shares, and the factor by which its scale is another.
    pub(super) fn root(&self, mut v: ValueId) -> (ValueId, f32) {
        let mut factor = 1.0;
        while let Some((next, f)) = self.same_levels.get(&v) {
            (v, factor) = (*next, factor * f);
        }
        (v, factor)
    }

    /// The value whose levels a product with a number shares, where this is the result of one.
    pub(super) fn seen_through(&self, v: ValueId) -> Option<(ValueId, f32)> {
        self.same_levels.get(&v).copied().filter(|(_, f)| *f != 1.0)
    }

    /// The values that are to be calibrated.
    pub(super) fn roots(&self) -> BTreeSet<ValueId> {
        self.values.iter().map(|v| self.root(*v).0).collect()
    }

    pub(super) fn has_weights(&self) -> bool {
        self.roles.values().any(|r| matches!(r, Role::Weighted(_)))
    }
}

struct Search<'a> {
    graph: &'a Graph,
    uses: Uses,
    settings: &'a Settings,
    placement: Placement,
    /// What products with weights read.
    wanted: BTreeSet<ValueId>,
}

/// Finds the nodes that are quantised; what almost is one is noted in `report`. Nodes in `unfit` stay in
/// float.
pub(super) fn place(
    graph: &Graph,
    settings: &Settings,
    refused: &Refused,
    unfit: &BTreeSet<NodeIndex>,
    mut report: Option<&mut PassReport>,
) -> Result<Placement> {
    let uses = graph.uses();
    let facts = graph.infer(&|_| None)?;
    let is_f32 = |v: ValueId| facts.get(v).is_some_and(|f| f.dtype == DType::F32);
    let mut skip = |i: NodeIndex, why: &str| {
        if let Some(report) = report.as_deref_mut() {
            report.skip(RULE, graph.label(i), why);
        }
    };
    let mut candidates = vec![];
    for i in 0..graph.nodes().len() {
        let node = graph.node(i);
        let role = match roles::role(graph, &uses, settings, i) {
            Ok(Some(role)) => role,
            Ok(None) => continue,
            Err(why) => {
                skip(i, why);
                continue;
            }
        };
        if settings.excluded(graph, i) {
            skip(i, "excluded by name");
            continue;
        }
        if let Some(why) = refused.get(&i) {
            skip(i, why);
            continue;
        }
        let Some(Some(y)) = node.outputs.first() else { continue };
        let data = roles::data(graph, node, role);
        let fits = |v: &ValueId| is_f32(*v) && graph.initializer(*v).is_none();
        if !is_f32(*y) || data.is_empty() || !data.iter().all(fits) {
            if matches!(role, Role::Weighted(_)) {
                skip(i, "its input is no f32 activation");
            }
            continue;
        }
        if !unfit.contains(&i) {
            candidates.push((i, role, data));
        }
    }
    let weighted = |(_, role, data): &(NodeIndex, Role, Vec<ValueId>)| {
        matches!(role, Role::Weighted(_)).then(|| data[0])
    };
    let wanted = candidates.iter().filter_map(weighted).collect();
    let mut search = Search { graph, uses, settings, placement: Placement::default(), wanted };
    for (i, role, data) in candidates {
        search.forward(i, role, data);
    }
    search.backward();
    Ok(search.placement)
}

impl Search<'_> {
    /// The value that leaves a node, behind its bias and the activation that a grid does.
    fn leaves(&self, i: NodeIndex, role: Role) -> Option<(ValueId, Option<(NodeIndex, f32)>)> {
        let node = match role {
            Role::Weighted(Weighted { bias: Some(bias), .. }) => bias.node,
            _ => i,
        };
        let y = (*self.graph.node(node).outputs.first()?)?;
        if let [(next, 0)] = self.uses.consumers(y)
            && !self.settings.symmetric
            && !self.graph.outputs().contains(&y)
            && !self.settings.excluded(self.graph, *next)
            && let Some(largest) = roles::ramp(self.graph, self.graph.node(*next))
            && let Some(Some(z)) = self.graph.node(*next).outputs.first()
            && self.uses.consumers(*z).iter().all(|(_, slot)| *slot != usize::MAX)
        {
            return Some((*z, Some((*next, largest))));
        }
        Some((y, None))
    }

    /// Takes a node in where its data are on integers anyway.
    fn forward(&mut self, i: NodeIndex, role: Role, data: Vec<ValueId>) {
        let on_integers = data.iter().filter(|v| self.placement.integer.contains(v)).count();
        let worth = match role {
            Role::Weighted(_) => true,
            _ => on_integers > 0 && 2 * on_integers >= data.len(),
        };
        let Some((out, ramp)) = self.leaves(i, role).filter(|_| worth) else { return };
        let (out, ramp) = match role {
            Role::Moves | Role::Scales(_) | Role::Gate { .. } => {
                (self.graph.node(i).outputs[0].unwrap_or(out), None)
            }
            _ => (out, ramp),
        };
        let whole = !matches!(role, Role::Weighted(Weighted { whole: false, .. }));
        if whole || self.wanted.contains(&out) {
            self.placement.integer.insert(out);
            if let Some(ramp) = ramp {
                self.placement.ramps.insert(out, ramp);
            }
        }
        match role {
            Role::Moves => {
                self.placement.same_levels.insert(out, (data[0], 1.0));
            }
            Role::Scales(c) => {
                self.placement.same_levels.insert(out, (data[0], c));
            }
            _ => {}
        }
        self.placement.roles.insert(i, role);
        self.placement.data.insert(i, data);
    }

    /// Gives up, from the end on, the nodes without weights whose results no integer kernel reads, and
    /// notes which values have a grid.
    fn backward(&mut self) {
        let mut wanted = self.wanted.clone();
        for i in (0..self.graph.nodes().len()).rev() {
            let Some(role) = self.placement.roles.get(&i).copied() else { continue };
            let out = match role {
                Role::Weighted(_) | Role::Own => self.leaves(i, role).map(|(v, _)| v),
                _ => self.graph.node(i).outputs[0],
            };
            let Some(out) = out else { continue };
            if !matches!(role, Role::Weighted(_)) && !wanted.contains(&out) {
                self.placement.roles.remove(&i);
                self.placement.data.remove(&i);
                self.placement.integer.remove(&out);
                self.placement.ramps.remove(&out);
                self.placement.same_levels.remove(&out);
                continue;
            }
            wanted.extend(self.placement.data[&i].iter().copied());
        }
        let read = self.placement.data.values().flatten().copied();
        self.placement.values = read.chain(self.placement.integer.iter().copied()).collect();
        // A product that may give floats gives integers to the kernels that read its result.
        for (i, role) in &self.placement.roles {
            if let Some((out, ramp)) = self.leaves(*i, *role)
                && self.placement.values.contains(&out)
                && matches!(role, Role::Weighted(_))
            {
                self.placement.integer.insert(out);
                if let Some(ramp) = ramp {
                    self.placement.ramps.insert(out, ramp);
                }
            }
        }
    }
}
