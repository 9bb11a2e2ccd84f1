//! From classes of axes and ties between them to unit labels: indices that must leave together share a
//! label, labels that lie on the same axes in the same number form a group.

use super::collect::{Collected, LONGEST, Pinned};
use super::kind::Kinds;
use super::union::Union;
use super::{Coupled, Group, Place};
use crate::graph::constants::Constants;
use crate::graph::{Facts, Graph, ValueId};
use std::collections::{BTreeMap, HashMap};

/// Most indices that are labelled in one graph; beyond it axes stay as they are.
const BUDGET: usize = 1 << 23;
/// No pin, no unit.
const NONE: u32 = u32::MAX;

/// Labels of the indices of all classes that can matter.
struct Labels {
    /// Classes by the number of their first axis: start in `set`, size.
    classes: BTreeMap<usize, (usize, usize)>,
    set: Union,
    /// At the root of a label: which pin holds it.
    pin: Vec<u32>,
}

impl Labels {
    fn of(all: &mut Collected, has_weight: &[bool]) -> Labels {
        let mut labels = Labels { classes: BTreeMap::new(), set: Union::new(0), pin: vec![] };
        let mut total = 0;
        for (axis, weighty) in has_weight.iter().enumerate() {
            let size = all.size[axis].filter(|n| (1..=LONGEST).contains(n));
            if let (true, true, Some(n)) = (all.same.root(axis) == axis, *weighty, size)
                && total + n <= BUDGET
            {
                labels.classes.insert(axis, (total, n));
                total += n;
            }
        }
        labels.set = Union::new(total);
        labels.pin = vec![NONE; total];
        labels
    }

    /// Joins what is tied. A tie to an axis that is not labelled becomes a pin.
    fn tie(&mut self, graph: &Graph, all: &mut Collected) {
        for at in 0..all.ties.len() {
            let tie = &all.ties[at];
            let (a, b, count) = (all.same.root(tie.a), all.same.root(tie.b), tie.count);
            let (a_units, b_units, node) = (tie.a_units, tie.b_units, tie.node);
            let (a_axis, b_axis) = (tie.a, tie.b);
            match (self.classes.get(&a).copied(), self.classes.get(&b).copied()) {
                (Some((from_a, size_a)), Some((from_b, size_b))) => {
                    // The first index of each unit on the one axis stands for the unit.
                    let mut first = vec![usize::MAX; count];
                    for (units, from, size) in [(a_units, from_a, size_a), (b_units, from_b, size_b)] {
                        units.each(count, |unit, index| match first[unit] {
                            _ if index >= size => {}
                            usize::MAX => first[unit] = from + index,
                            known => {
                                self.set.join(known, from + index);
                            }
                        });
                    }
                }
                (Some(_), None) | (None, Some(_)) if count > 0 => {
                    let axis = if self.classes.contains_key(&a) { a_axis } else { b_axis };
                    let why = format!("node \"{}\": an axis beside it has no units", graph.label(node));
                    all.pins.push((axis, Pinned::All, why));
                }
                _ => {}
            }
        }
    }

    fn pin(&mut self, all: &mut Collected) {
        let mut whole = std::collections::BTreeSet::new();
        for at in 0..all.pins.len() {
            let class = all.same.root(all.pins[at].0);
            let Some((from, size)) = self.classes.get(&class).copied() else { continue };
            let mut mark = |i: usize| {
                let root = self.set.root(from + i);
                if self.pin[root] == NONE {
                    self.pin[root] = at as u32;
                }
            };
            match &all.pins[at].1 {
                Pinned::All if whole.insert(class) => (0..size).for_each(mark),
                Pinned::All => {}
                Pinned::These(indices) => indices.iter().filter(|i| **i < size).for_each(|i| mark(*i)),
            }
        }
    }

    /// Refines all labels by the classes that they lie on and how often: (parent, class, count) by
    /// signature number, and the signature of each root. Signature 0 is empty.
    fn signatures(&mut self) -> (Vec<(u32, usize, usize)>, Vec<u32>) {
        let total = self.pin.len();
        let mut parts = vec![(NONE, usize::MAX, 0)];
        let (mut of, mut count) = (vec![0u32; total], vec![0usize; total]);
        for (class, (from, size)) in self.classes.clone() {
            let mut seen = Vec::new();
            for i in from..from + size {
                let root = self.set.root(i);
                if count[root] == 0 {
                    seen.push(root);
                }
                count[root] += 1;
            }
            let mut known: HashMap<(u32, usize), u32> = HashMap::new();
            for root in seen {
                let n = std::mem::take(&mut count[root]);
                of[root] = *known.entry((of[root], n)).or_insert_with(|| {
                    parts.push((of[root], class, n));
                    (parts.len() - 1) as u32
                });
            }
        }
        (parts, of)
    }
}

/// Which classes are connected with an axis of a weight, at their roots.
fn with_weights(all: &mut Collected, constants: &Constants<'_>) -> Vec<bool> {
    let mut component = all.same.clone();
    for tie in &all.ties {
        component.join(tie.a, tie.b);
    }
    let mut marked = vec![false; all.owner.len()];
    for (v, _) in constants.weights() {
        for axis in all.axes(v) {
            marked[component.root(axis)] = true;
        }
    }
    (0..all.owner.len()).map(|axis| marked[component.root(axis)]).collect()
}

/// The coupling groups of what was collected.
pub(super) fn groups(graph: &Graph, facts: &Facts, constants: &Constants<'_>, mut all: Collected) -> Coupled {
    let has_weight = with_weights(&mut all, constants);
    let mut labels = Labels::of(&mut all, &has_weight);
    labels.tie(graph, &mut all);
    labels.pin(&mut all);
    let (parts, signature) = labels.signatures();
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for axis in 0..all.owner.len() {
        let class = all.same.root(axis);
        if labels.classes.contains_key(&class) {
            members.entry(class).or_default().push(axis);
        }
    }
    // Groups in the order of their first index, then of the first node that reads one of their weights.
    let mut found: Vec<(Vec<Place>, u32, Vec<usize>)> = Vec::new();
    let mut number: HashMap<(u32, u32), usize> = HashMap::new();
    for (i, signed) in signature.iter().enumerate() {
        if labels.set.root(i) != i {
            continue;
        }
        let at = *number.entry((*signed, labels.pin[i])).or_insert_with(|| {
            let mut places = Vec::new();
            let mut part = *signed;
            while part != 0 {
                let (parent, class, per_unit) = parts[part as usize];
                places.extend(members[&class].iter().map(|axis| {
                    let (value, axis) = all.owner[*axis];
                    let size = labels.classes[&class].1;
                    let weight = constants.weight(value).is_some();
                    Place { value, axis, size, per_unit, weight }
                }));
                part = parent;
            }
            places.sort_by_key(|p| (p.value, p.axis));
            found.push((places, labels.pin[i], vec![]));
            found.len() - 1
        });
        found[at].2.push(i);
    }
    found.retain(|(places, _, units)| units.len() > 1 && places.len() > 1 && places.iter().any(|p| p.weight));
    let uses = graph.uses();
    let kinds = Kinds::of(graph, facts, &uses, constants);
    let reader = |v: ValueId| uses.consumers(v).first().map_or(usize::MAX, |(n, _)| *n);
    found.sort_by_key(|(places, _, _)| {
        places.iter().filter(|p| p.weight).map(|p| reader(p.value)).min().unwrap_or(usize::MAX)
    });
    let mut unit_of = vec![NONE; signature.len()];
    let mut groups = Vec::with_capacity(found.len());
    let mut first = 0;
    for (id, (places, pin, roots)) in found.into_iter().enumerate() {
        for (u, root) in roots.iter().enumerate() {
            unit_of[*root] = (first + u) as u32;
        }
        let mut statistics: Vec<_> = all
            .statistics
            .iter()
            .filter(|(axis, _)| {
                let (value, axis) = all.owner[*axis];
                places.binary_search_by_key(&(value, axis), |p| (p.value, p.axis)).is_ok()
            })
            .map(|(_, node)| *node)
            .collect();
        statistics.dedup();
        let pinned_by = (pin != NONE).then(|| all.pins[pin as usize].2.clone());
        let kind = kinds.tell(&places, &statistics);
        groups.push(Group { id, kind, units: roots.len(), first, pinned_by, places, statistics });
        first += roots.len();
    }
    let classes: BTreeMap<usize, Vec<u32>> = labels
        .classes
        .clone()
        .into_iter()
        .map(|(class, (from, n))| (class, (from..from + n).map(|i| unit_of[labels.set.root(i)]).collect()))
        .collect();
    let axes = (0..all.owner.len())
        .map(|axis| (all.owner[axis], all.same.root(axis)))
        .filter(|(_, class)| classes.contains_key(class))
        .collect();
    Coupled { groups, axes, classes }
}
