//! Axis coupling over a whole graph: what every operator says of its axes enters
//! ([`crate::ops::Operator::couple`]), groups of units that can leave only together come out (DepGraph,
//! arXiv 2301.12900, here index by index on the axes of values). Knows no criterion and cuts nothing.
//!
//! An axis of every value is tied to axes of others by the nodes that read or write it. Axes that agree
//! index by index form one class; where blocks, offsets or repetitions are tied, indices share a label
//! across classes. A **unit** is a label: the set of all indices, anywhere in the graph, that leave
//! together. A **group** is a set of units that lie on the same axes, each with the same number of
//! indices, so that one may leave as well as another. Graph inputs and outputs, unknown operators,
//! values that a body captures, and every axis for which some operator does not vouch, pin their units;
//! the reason is kept.

mod collect;
mod costs;
mod kind;
mod label;
#[cfg(test)]
mod tests;
mod union;

pub use costs::Costs;
pub use kind::Kind;

use super::constants::Constants;
use super::{Facts, Graph, NodeIndex, ValueId};
use crate::tensor::Tensor;
use std::collections::BTreeMap;

/// What may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Let axes of graph inputs and outputs change their size.
    pub allow_interface_change: bool,
}

/// An axis on which the units of a group lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Value.
    pub value: ValueId,
    /// Axis of it.
    pub axis: usize,
    /// Size of the axis; more than the group's units where others lie on it too.
    pub size: usize,
    /// Indices of the axis that one unit holds.
    pub per_unit: usize,
    /// Whether the value is a weight, which loses a slice with each unit.
    pub weight: bool,
}

/// Units that are cut alike.
#[derive(Debug, Clone)]
pub struct Group {
    /// Position in [`Coupled::groups`].
    pub id: usize,
    /// What its units are.
    pub kind: Kind,
    /// Units: channels, neurons, heads.
    pub units: usize,
    /// Number of its first unit; units are numbered through all groups.
    pub first: usize,
    /// Why its units must stay; `None` where they may leave.
    pub pinned_by: Option<String>,
    /// Axes that shrink with it, by value and axis.
    pub places: Vec<Place>,
    /// Nodes that take a statistic over such an axis: without a unit their result is another one than
    /// with the unit at zero.
    pub statistics: Vec<NodeIndex>,
}

impl Group {
    /// Whether units may leave.
    pub fn prunable(&self) -> bool {
        self.pinned_by.is_none()
    }
    /// Numbers of its units.
    pub fn numbers(&self) -> std::ops::Range<usize> {
        self.first..self.first + self.units
    }
    /// Parameters that leave with the first unit.
    pub fn parameters_per_unit(&self, constants: &Constants<'_>) -> u64 {
        self.elements_per_unit(constants).map(|(_, n)| n).sum()
    }
    /// Bytes of weights, as they are stored, that leave with the first unit.
    pub fn bytes_per_unit(&self, constants: &Constants<'_>) -> u64 {
        let bytes = |(t, n): (&Tensor, u64)| t.dtype().byte_len(n as usize).unwrap_or(0);
        self.elements_per_unit(constants).map(bytes).sum()
    }
    /// Weights with the elements that leave with the first unit.
    fn elements_per_unit<'c>(&self, constants: &'c Constants<'_>) -> impl Iterator<Item = (&'c Tensor, u64)> {
        let mut stays: BTreeMap<ValueId, u64> = BTreeMap::new();
        for p in self.weights() {
            let all = constants.get(p.value).map_or(0, |t| t.len() as u64);
            let left = stays.entry(p.value).or_insert(all);
            *left = *left / p.size as u64 * p.size.saturating_sub(p.per_unit) as u64;
        }
        stays.into_iter().filter_map(|(v, left)| {
            let tensor = constants.get(v)?;
            Some((tensor, tensor.len() as u64 - left))
        })
    }
    /// The axes of weights among its places.
    pub fn weights(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().filter(|p| p.weight)
    }
}

/// The groups of one graph, and the unit of every index.
#[derive(Debug, Clone)]
pub struct Coupled {
    groups: Vec<Group>,
    /// Class of each axis that has units.
    axes: BTreeMap<(ValueId, usize), usize>,
    /// Number of the unit at each index of a class; `u32::MAX` where there is none.
    classes: BTreeMap<usize, Vec<u32>>,
}

/// Kept indices of the axes that are cut: (value, axis) to size before and kept indices, ascending.
pub type Kept = BTreeMap<(ValueId, usize), (usize, Vec<usize>)>;

impl Coupled {
    /// The coupling of `graph` under `facts`. Axes of unknown size have no units.
    pub fn of(graph: &Graph, facts: &Facts, options: &Options) -> Coupled {
        let constants = Constants::of(graph);
        let collected = collect::Collected::of(graph, facts, &constants, options);
        label::groups(graph, facts, &constants, collected)
    }

    /// Groups that hold weights, in the order in which nodes first read them; pinned ones too.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Number of units in all groups.
    pub fn units(&self) -> usize {
        self.groups.last().map_or(0, |g| g.first + g.units)
    }

    /// Number of the unit at each index of an axis, where the axis has units.
    pub fn on(&self, value: ValueId, axis: usize) -> Option<impl Iterator<Item = Option<usize>> + '_> {
        let class = self.axes.get(&(value, axis))?;
        Some(self.classes[class].iter().map(|u| (*u != u32::MAX).then_some(*u as usize)))
    }

    /// What stays of every axis that shrinks when units leave; `leaves` is asked by unit number.
    pub fn kept(&self, leaves: &dyn Fn(usize) -> bool) -> Kept {
        let kept: BTreeMap<usize, (usize, Vec<usize>)> = self
            .classes
            .iter()
            .filter_map(|(class, units)| {
                let stays = |u: u32| u == u32::MAX || !leaves(u as usize);
                let kept: Vec<usize> = (0..units.len()).filter(|i| stays(units[*i])).collect();
                (kept.len() < units.len()).then_some((*class, (units.len(), kept)))
            })
            .collect();
        self.axes.iter().filter_map(|(axis, class)| Some((*axis, kept.get(class)?.clone()))).collect()
    }
}
