//! Coupling groups of two models against each other: groups whose weights belong together are the same
//! group, with as many units as each model has of it.

use crate::analysis::summary::{GroupInfo, Summary};
use crate::graph::coupling::Kind;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// A coupling group that has another number of units.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupChange {
    /// Its number before.
    pub group: usize,
    /// What its units are.
    pub kind: Kind,
    /// The first weight that it cuts.
    pub name: String,
    /// Axes of weights that it cuts.
    pub members: usize,
    /// Units before.
    pub before: usize,
    /// Units after.
    pub after: usize,
}

/// Groups of another size. `pairs` are names of weights that belong together, and whether one is the other
/// transposed.
pub(super) fn changes(before: &Summary, after: &Summary, pairs: &[(&str, &str, bool)]) -> Vec<GroupChange> {
    let now: HashMap<&str, (&str, bool)> = pairs.iter().map(|(a, b, turned)| (*a, (*b, *turned))).collect();
    let mut on: HashMap<(&str, usize), Vec<usize>> = HashMap::new();
    for (at, group) in after.groups.iter().enumerate() {
        for (name, axis) in &group.members {
            on.entry((name, *axis)).or_default().push(at);
        }
    }
    let same = |group: &GroupInfo| -> Option<usize> {
        let mut votes: BTreeMap<usize, usize> = BTreeMap::new();
        for (name, axis) in &group.members {
            let Some((name, turned)) = now.get(name.as_str()) else { continue };
            let axis = if *turned && *axis < 2 { 1 - axis } else { *axis };
            for at in on.get(&(*name, axis)).into_iter().flatten() {
                *votes.entry(*at).or_default() += 1;
            }
        }
        let most = votes.into_iter().max_by_key(|(at, n)| (*n, std::cmp::Reverse(*at)));
        most.map(|(at, _)| at)
    };
    let change = |group: &GroupInfo| {
        let is = &after.groups[same(group)?];
        (is.units != group.units).then(|| GroupChange {
            group: group.id,
            kind: group.kind,
            name: group.members.first().map(|(name, _)| name.clone()).unwrap_or_default(),
            members: group.members.len(),
            before: group.units,
            after: is.units,
        })
    };
    before.groups.iter().filter_map(change).collect()
}
