//! What may leave: a graph enters, then settings; groups that may shrink, how far, and why others stay,
//! leave. No weight is read. A [`Survey`] holds for any settings and is made once; a [`Room`] is cheap.

use super::select::{self, Bounds, Candidate};
use super::{Of, Settings};
use crate::error::{Error, Result};
use crate::graph::constants::Constants;
use crate::graph::coupling::{Coupled, Group, Kind, Options};
use crate::graph::{Facts, Graph, ValueId};
use crate::passes::matches;
use std::collections::{BTreeSet, HashMap};

/// The groups of a graph with what decisions about them need, whatever the settings.
#[derive(Debug)]
pub struct Survey {
    pub(super) coupled: Coupled,
    /// By group: names by which it can be meant, of its weights and of the nodes that read them.
    pub(super) names: Vec<Vec<String>>,
    /// By group: nodes that read its weights, in execution order.
    pub(super) readers: Vec<Vec<String>>,
    /// By name: groups that could shrink and have it.
    owners: HashMap<String, usize>,
    /// By group: why no settings let it shrink.
    never: Vec<Option<String>>,
    /// By group: indices that a unit holds on each axis of its matrices.
    matrices: Vec<Vec<usize>>,
    pub(super) bounds: Bounds,
    /// Parameters of the whole graph.
    parameters: u64,
}

impl Survey {
    /// The survey of `graph` under `facts`, which leave open dimensions open.
    pub fn of(graph: &Graph, facts: &Facts, allow_interface_change: bool) -> Survey {
        let constants = Constants::of(graph);
        let coupled = Coupled::of(graph, facts, &Options { allow_interface_change });
        let readers = readers(graph, &coupled);
        let names = |g: &Group| -> Vec<String> {
            let weights = g.weights().map(|p| graph.value_name(p.value).to_string());
            let mut names: Vec<String> = weights.chain(readers[g.id].iter().cloned()).collect();
            names.dedup();
            names
        };
        let never = |g: &Group| -> Option<String> {
            let float = |v: ValueId| constants.get(v).is_none_or(|t| t.dtype().is_float());
            g.pinned_by.clone().or_else(|| {
                let weight = g.weights().find(|p| !float(p.value))?;
                Some(format!("weight \"{}\" is not of a float type", graph.value_name(weight.value)))
            })
        };
        let matrices = |g: &Group| -> Vec<usize> {
            let matrix = |v: ValueId| constants.get(v).is_some_and(|t| t.shape().len() >= 2);
            g.weights().filter(|p| matrix(p.value)).map(|p| p.per_unit).collect()
        };
        let names: Vec<Vec<String>> = coupled.groups().iter().map(names).collect();
        let never: Vec<Option<String>> = coupled.groups().iter().map(never).collect();
        let mut owners = HashMap::new();
        for (names, _) in names.iter().zip(&never).filter(|(_, never)| never.is_none()) {
            let distinct: BTreeSet<&String> = names.iter().collect();
            distinct.into_iter().for_each(|n| *owners.entry(n.clone()).or_default() += 1);
        }
        Survey {
            names,
            owners,
            never,
            matrices: coupled.groups().iter().map(matrices).collect(),
            bounds: Bounds::of(&coupled, &constants),
            parameters: constants.weights().map(|(_, t)| t.len() as u64).sum(),
            readers,
            coupled,
        }
    }

    /// The coupling that numbers groups and units.
    pub fn coupled(&self) -> &Coupled {
        &self.coupled
    }

    /// By group, the nodes that read its weights.
    pub fn readers(&self) -> &[Vec<String>] {
        &self.readers
    }

    /// The shortest name that `exclude` and `ratios` understand and that means this group and no other
    /// that could shrink: of a node, of a weight, else its number.
    pub fn address(&self, group: usize) -> String {
        // Most names are shared with the group on the other axis of a weight; that is told at once.
        let shared = |n: &String| self.owners.get(n).is_some_and(|o| *o > 1);
        let all: BTreeSet<&String> = self.names[group].iter().collect();
        let alone =
            |n: &String| self.owners.keys().all(|m| (all.contains(m) && !shared(m)) || !matches(n, m));
        let mut own: Vec<&String> = all.iter().copied().filter(|n| !shared(n)).collect();
        own.sort_by_key(|n| n.len());
        own.into_iter()
            .filter(|n| numbered(n).is_none() && Kind::ALL.iter().all(|k| k.word() != n.as_str()))
            .find(|n| alone(n))
            .cloned()
            .unwrap_or_else(|| format!("group {group}"))
    }

    /// Why no settings let a group shrink.
    pub fn never(&self, group: usize) -> Option<&str> {
        self.never.get(group)?.as_deref()
    }

    /// Whether a pattern of `exclude` or a key of `ratios` that is no kind means this group, and by which
    /// of its names.
    pub(super) fn means(&self, pattern: &str, group: usize) -> Option<&str> {
        match numbered(pattern) {
            Some(n) => (n == group).then_some("it"),
            None => self.names[group].iter().find(|n| matches(pattern, n)).map(String::as_str),
        }
    }

    /// Why a group is not touched at all under these settings, if so. `excluded` are patterns and numbers
    /// of `exclude`.
    fn why_it_stays(
        &self,
        group: &Group,
        settings: &Settings,
        excluded: &(Vec<&str>, BTreeSet<usize>),
    ) -> Option<String> {
        if let Some(why) = &self.never[group.id] {
            return Some(why.clone());
        }
        if excluded.1.contains(&group.id) {
            return Some(format!("it is excluded by \"group {}\"", group.id));
        }
        for pattern in &excluded.0 {
            if let Some(name) = self.means(pattern, group.id) {
                return Some(format!("\"{name}\" is excluded by \"{pattern}\""));
            }
        }
        let kind = group.kind.word();
        let asked = || settings.ratios.keys().any(|k| k == kind || self.means(k, group.id).is_some());
        if group.kind == Kind::Width && !settings.width && !asked() {
            return Some(
                "it is the width that all layers share; width = true or a ratio of its own cuts it".into(),
            );
        }
        let floor = select::floor(group.units, settings);
        (floor >= group.units).then(|| format!("{} units are the fewest to keep", group.units))
    }
}

/// The number of a group that is meant by its number: `group 12`.
fn numbered(pattern: &str) -> Option<usize> {
    pattern.strip_prefix("group ")?.parse().ok()
}

/// Patterns of names, and numbers of groups.
pub(super) fn split<'a>(all: impl Iterator<Item = &'a String>) -> (Vec<&'a str>, BTreeSet<usize>) {
    let (mut patterns, mut numbers) = (Vec::new(), BTreeSet::new());
    for pattern in all {
        match numbered(pattern) {
            Some(n) => {
                numbers.insert(n);
            }
            None => patterns.push(pattern.as_str()),
        }
    }
    (patterns, numbers)
}

/// By group, names of the nodes that read its weights, in execution order.
pub(super) fn readers(graph: &Graph, coupled: &Coupled) -> Vec<Vec<String>> {
    let mut by_weight: HashMap<ValueId, Vec<usize>> = HashMap::new();
    for group in coupled.groups() {
        for p in group.weights() {
            let of = by_weight.entry(p.value).or_default();
            if of.last() != Some(&group.id) {
                of.push(group.id);
            }
        }
    }
    let mut out = vec![Vec::new(); coupled.groups().len()];
    for i in 0..graph.nodes().len() {
        let read = graph.node(i).inputs.iter().flatten().filter_map(|v| by_weight.get(v));
        let mut groups: Vec<usize> = read.flatten().copied().collect();
        groups.sort_unstable();
        groups.dedup();
        for g in groups {
            out[g].push(graph.label(i));
        }
    }
    out
}

/// What settings allow.
pub(super) struct Room<'s> {
    pub(super) survey: &'s Survey,
    /// By group: why it is not touched.
    pub(super) stays: Vec<Option<String>>,
    pub(super) candidates: Vec<Candidate>,
    /// Parameters that shall leave.
    pub(super) target: u64,
    /// Parameters that would leave if every unit that may leave did.
    pub(super) prunable: u64,
    /// Parameters that `ratio` is a part of.
    pub(super) whole: u64,
}

impl<'s> Room<'s> {
    pub(super) fn of(survey: &'s Survey, settings: &Settings) -> Result<Room<'s>> {
        let groups = survey.coupled.groups();
        let excluded = split(settings.exclude.iter());
        let stays: Vec<Option<String>> =
            groups.iter().map(|g| survey.why_it_stays(g, settings, &excluded)).collect();
        let candidates: Vec<Candidate> = groups
            .iter()
            .filter(|g| stays[g.id].is_none())
            .map(|g| Candidate::of(g, &survey.matrices[g.id], settings))
            .collect();
        if candidates.is_empty() {
            return Err(nothing(&stays));
        }
        let prunable = survey.bounds.if_all_left(&candidates);
        let whole = match settings.of {
            Of::Prunable => prunable,
            Of::Total => survey.parameters,
        };
        let wanted = (settings.ratio * whole as f64).round();
        let target = if settings.ratio > 0.0 { wanted.max(1.0) as u64 } else { 0 };
        let most = survey.bounds.at_most(&candidates);
        if target > most {
            let mut e = Error::usage("PRUNE-RATIO", "so many parameters cannot leave")
                .field("step.ratio")
                .found(settings.ratio)
                .limit(format!("{:.4}", (most as f64 / whole as f64 * 1e4).floor() / 1e4));
            e = match settings.of {
                Of::Total => e.hint(format!(
                    "{} of {whole} parameters are in groups that may shrink; lower ratio, min_keep or round_to",
                    prunable
                )),
                Of::Prunable => e.hint("lower ratio, min_keep, min_units or round_to"),
            };
            return Err(e);
        }
        Ok(Room { survey, stays, candidates, target, prunable, whole })
    }

    /// By group why it stays whole once these units leave.
    pub(super) fn stays_after(&self, leaves: &[bool]) -> Vec<Option<String>> {
        let mut stays = self.stays.clone();
        for group in self.survey.coupled.groups() {
            if stays[group.id].is_none() && !group.numbers().any(|u| leaves[u]) {
                stays[group.id] = Some("its units score higher than those that leave".into());
            }
        }
        stays
    }
}

fn nothing(stays: &[Option<String>]) -> Error {
    let mut reasons: Vec<&str> = stays.iter().flatten().map(String::as_str).collect();
    reasons.sort_unstable();
    reasons.dedup();
    let shown = reasons.iter().take(5).copied().collect::<Vec<_>>().join("; ");
    let more = reasons.len().saturating_sub(5);
    let e = Error::unsupported("PRUNE-NOTHING", "no channels, neurons or heads can leave this model");
    match (stays.is_empty(), more) {
        (true, _) => e.found("no weights whose axes are coupled"),
        (_, 0) => e.found(shown),
        (_, n) => e.found(format!("{shown}; {n} more reasons")),
    }
    .hint("`tinsmith inspect` lists the coupling groups and what pins them")
}
