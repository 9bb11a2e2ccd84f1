//! Which units leave: scores and bounds enter, a choice leaves. Parameters are counted exactly, also
//! where two groups cut one weight along two axes.

use super::criterion::Normalize;
use super::sensitivity::Curve;
use super::{Room, Scope, Settings};
use crate::error::{Error, Result};
use crate::graph::ValueId;
use crate::graph::constants::Constants;
use crate::graph::coupling::{Coupled, Group};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Fewest units that a group keeps.
pub(super) fn floor(units: usize, settings: &Settings) -> usize {
    let part = (settings.min_keep * units as f64).ceil() as usize;
    part.max(settings.min_units).max(1).min(units)
}

/// Numbers of units that a group may keep: all, or multiples of a step from a floor on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steps {
    /// All of them.
    pub units: usize,
    /// Fewest.
    pub floor: usize,
    /// Kept counts are multiples of this.
    pub step: usize,
}

impl Steps {
    /// The next smaller count, if one is allowed.
    pub fn below(&self, kept: usize) -> Option<usize> {
        let next = kept.checked_sub(1)? / self.step * self.step;
        (next >= self.floor).then_some(next)
    }

    /// The next larger count, if there is one.
    pub fn above(&self, kept: usize) -> Option<usize> {
        (kept < self.units).then(|| ((kept / self.step + 1) * self.step).min(self.units))
    }
}

/// A group of which units may leave.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) group: usize,
    pub(super) steps: Steps,
    units: usize,
    first: usize,
}

impl Candidate {
    /// `matrices` are the indices of a unit on each axis of the group's matrices. The step is the
    /// smallest number of units whose indices are a multiple of `round_to` on every such axis, or the
    /// largest power-of-two part of it that a small group allows.
    pub(super) fn of(group: &Group, matrices: &[usize], settings: &Settings) -> Candidate {
        let step = |per_unit: &usize| settings.round_to / gcd(settings.round_to, (*per_unit).max(1));
        let mut step = matrices.iter().map(step).max().unwrap_or(settings.round_to).max(1);
        while step > 1 && group.units < 2 * step {
            step = step.div_ceil(2);
        }
        let steps = Steps { units: group.units, floor: floor(group.units, settings), step };
        Candidate { group: group.id, steps, units: group.units, first: group.first }
    }

    fn below(&self, kept: usize) -> Option<usize> {
        self.steps.below(kept)
    }

    /// The allowed count next to `wanted`.
    fn nearest(&self, wanted: f64) -> usize {
        let mut best = self.units;
        let mut kept = self.units;
        while let Some(next) = self.below(kept) {
            if (next as f64 - wanted).abs() <= (best as f64 - wanted).abs() {
                best = next;
            }
            kept = next;
        }
        best
    }

    fn smallest(&self) -> usize {
        let mut kept = self.units;
        while let Some(next) = self.below(kept) {
            kept = next;
        }
        kept
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Sizes of the weights, and which groups shorten which axes.
#[derive(Debug, Clone)]
pub(super) struct Bounds {
    /// Current size of every axis of every weight that a group touches.
    shapes: Vec<Vec<u64>>,
    /// Bytes of an element of each of them.
    widths: Vec<u64>,
    /// By group: (weight, axis, indices a unit).
    cuts: Vec<Vec<(usize, usize, u64)>>,
}

impl Bounds {
    pub(super) fn of(coupled: &Coupled, constants: &Constants<'_>) -> Bounds {
        let mut number: BTreeMap<ValueId, usize> = BTreeMap::new();
        let cuts = vec![vec![]; coupled.groups().len()];
        let mut bounds = Bounds { shapes: vec![], widths: vec![], cuts };
        for group in coupled.groups() {
            for p in group.weights() {
                let Some(tensor) = constants.weight(p.value) else { continue };
                let at = *number.entry(p.value).or_insert_with(|| {
                    bounds.shapes.push(tensor.shape().iter().map(|n| *n as u64).collect());
                    bounds.widths.push(tensor.byte_len() / (tensor.len() as u64).max(1));
                    bounds.shapes.len() - 1
                });
                bounds.cuts[group.id].push((at, p.axis, p.per_unit as u64));
            }
        }
        bounds
    }

    /// Takes `units` units of a group away and returns the parameters that leave with them.
    pub(super) fn take(&mut self, group: usize, units: usize) -> u64 {
        let gain = self.gain(group, units);
        for (w, axis, per_unit) in &self.cuts[group] {
            let size = &mut self.shapes[*w][*axis];
            *size = size.saturating_sub(per_unit * units as u64);
        }
        gain
    }

    /// Bytes of the weights that groups touch, as they are now.
    pub(super) fn bytes(&self) -> u64 {
        let of = |(shape, width): (&Vec<u64>, &u64)| shape.iter().product::<u64>() * width;
        self.shapes.iter().zip(&self.widths).map(of).sum()
    }

    /// What [`Bounds::take`] would return.
    fn gain(&self, group: usize, units: usize) -> u64 {
        let mut after: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        for (w, axis, per_unit) in &self.cuts[group] {
            let shape = after.entry(*w).or_insert_with(|| self.shapes[*w].clone());
            shape[*axis] = shape[*axis].saturating_sub(per_unit * units as u64);
        }
        let left = |shape: &Vec<u64>| shape.iter().product::<u64>();
        after.iter().map(|(w, shape)| left(&self.shapes[*w]) - left(shape)).sum()
    }

    /// Parameters that leave when all units of the candidates do.
    pub(super) fn if_all_left(&self, candidates: &[Candidate]) -> u64 {
        let mut rest = self.clone();
        candidates.iter().map(|c| rest.take(c.group, c.units)).sum()
    }

    /// Parameters that leave when every candidate keeps as few units as it may.
    pub(super) fn at_most(&self, candidates: &[Candidate]) -> u64 {
        let mut rest = self.clone();
        candidates.iter().map(|c| rest.take(c.group, c.units - c.smallest())).sum()
    }
}

/// Counts that `ratios` settles, by candidate.
///
/// # Errors
/// `Usage` for a name that no group has.
pub(super) fn fixed(room: &Room<'_>, settings: &Settings) -> Result<BTreeMap<usize, usize>> {
    let mut met: BTreeSet<&str> = BTreeSet::new();
    let mut out = BTreeMap::new();
    if settings.ratios.is_empty() {
        return Ok(out);
    }
    let (patterns, numbers) = super::room::split(settings.ratios.keys());
    for (i, candidate) in room.candidates.iter().enumerate() {
        let kind = room.survey.coupled.groups()[candidate.group].kind.word();
        // A number goes before a name, a name before a kind.
        let own = numbers.contains(&candidate.group).then(|| format!("group {}", candidate.group));
        let named = |key: &&&str| room.survey.means(key, candidate.group).is_some();
        let found = own.as_deref().and_then(|own| settings.ratios.get_key_value(own)).or_else(|| {
            let name = patterns.iter().filter(|k| **k != kind).find(named).copied();
            settings.ratios.get_key_value(name.unwrap_or(kind))
        });
        let Some((key, ratio)) = found else { continue };
        met.insert(key);
        out.insert(i, candidate.nearest(candidate.units as f64 * (1.0 - ratio)));
    }
    let kinds: BTreeSet<String> =
        room.candidates.iter().map(|c| room.survey.coupled.groups()[c.group].kind.to_string()).collect();
    match settings.ratios.keys().find(|k| !met.contains(k.as_str())) {
        None => Ok(out),
        Some(name) => Err(Error::usage("PRUNE-RATIOS", "no group that may shrink has this kind or name")
            .field(format!("step.ratios.{name}"))
            .limit(kinds.into_iter().collect::<Vec<_>>().join(", "))
            .hint("`tinsmith inspect` lists the coupling groups, their kinds and weights")),
    }
}

/// A number that orders like a score; scores are finite and not negative.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Key(f64);
impl Eq for Key {}
impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Key {
    fn cmp(&self, other: &Key) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// A candidate on its way down.
struct Walk<'a> {
    candidate: &'a Candidate,
    /// Units from the least important on.
    order: Vec<usize>,
    /// Scores in that order, over the group's mean.
    scores: Vec<f64>,
    kept: usize,
    key: f64,
    curve: Option<&'a Curve>,
}

/// The curve of a group that was not looked at.
static FLAT: Curve = Curve { points: Vec::new() };

impl Walk<'_> {
    /// `cost` is the number of parameters that leave with the first unit.
    fn of<'a>(candidate: &'a Candidate, scores: &[f64], normalize: Normalize, cost: u64) -> Walk<'a> {
        let mut order: Vec<usize> = (0..candidate.units).collect();
        order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b)));
        let whole = match normalize {
            Normalize::None => 1.0,
            Normalize::Mean => scores.iter().sum::<f64>() / scores.len().max(1) as f64,
            Normalize::Max => scores.iter().copied().fold(0.0, f64::max),
            Normalize::Cost => cost as f64,
        };
        let relative = |u: &usize| if whole > 0.0 { scores[*u] / whole } else { 0.0 };
        let scores = order.iter().map(relative).collect();
        Walk { candidate, order, scores, kept: candidate.units, key: 0.0, curve: None }
    }

    /// Rank of the next step down: the rise of the loss for a parameter of the `gain`, the mean score of the units that it takes (never below that of an
    /// earlier step), or the part of the group that is gone after it.
    fn next(&mut self, scope: Scope, bounds: &Bounds) -> Option<f64> {
        let next = self.candidate.below(self.kept)?;
        let part = |kept: usize| 1.0 - kept as f64 / self.candidate.units as f64;
        let gone = self.candidate.units - self.kept..self.candidate.units - next;
        let key = match scope {
            Scope::Global => self.scores[gone.clone()].iter().sum::<f64>() / gone.len() as f64,
            Scope::Layer => part(next),
            Scope::Sensitivity => {
                let curve = self.curve.unwrap_or(&FLAT);
                let gain = bounds.gain(self.candidate.group, self.kept - next).max(1) as f64;
                (curve.at(part(next)) - curve.at(part(self.kept))) / gain
            }
        };
        self.key = self.key.max(key);
        Some(self.key)
    }
}

/// By unit number whether it leaves, and the parameters that do.
///
/// `fixed` are the counts that some candidates keep whatever the others do, `target` the parameters that
/// leave the others.
pub(super) fn select(
    room: &Room<'_>,
    scores: &[Option<Vec<f64>>],
    settings: &Settings,
    curves: &[Curve],
    fixed: &BTreeMap<usize, usize>,
    target: u64,
) -> (Vec<bool>, u64) {
    let scope = settings.scope;
    let normalize = settings.normalize.unwrap_or(settings.criterion.normalize());
    let mut bounds = room.survey.bounds.clone();
    let mut walks = Vec::with_capacity(room.candidates.len());
    for c in &room.candidates {
        let of_group = scores[c.group].as_deref().unwrap_or_default();
        let curve = curves.get(walks.len());
        walks.push(Walk { curve, ..Walk::of(c, of_group, normalize, bounds.gain(c.group, 1)) });
    }
    let mut queue: BTreeSet<(Key, usize)> = BTreeSet::new();
    let mut settled = 0;
    for (i, walk) in walks.iter_mut().enumerate() {
        if let Some(kept) = fixed.get(&i) {
            settled += bounds.take(walk.candidate.group, walk.candidate.units - kept);
            walk.kept = *kept;
            continue;
        }
        queue.extend(walk.next(scope, &bounds).map(|key| (Key(key), i)));
    }
    let mut removed = 0;
    let mut too_large: BTreeSet<(u64, Reverse<usize>)> = BTreeSet::new();
    while removed < target
        && let Some((_, i)) = queue.pop_first()
    {
        let walk = &mut walks[i];
        let Some(next) = walk.candidate.below(walk.kept) else { continue };
        let gain = bounds.gain(walk.candidate.group, walk.kept - next);
        let missing = target.saturating_sub(removed);
        if gain > missing && gain - missing > missing {
            // Further from the target with it than without: other groups have smaller steps.
            too_large.insert((gain, Reverse(i)));
            continue;
        }
        bounds.take(walk.candidate.group, walk.kept - next);
        walk.kept = next;
        removed += gain;
        queue.extend(walk.next(scope, &bounds).map(|key| (Key(key), i)));
    }
    if removed == 0
        && target > 0
        && let Some((_, Reverse(i))) = too_large.first()
    {
        let walk = &mut walks[*i];
        if let Some(next) = walk.candidate.below(walk.kept) {
            removed = bounds.take(walk.candidate.group, walk.kept - next);
            walk.kept = next;
        }
    }
    let mut leaves = vec![false; room.survey.coupled.units()];
    for walk in &walks {
        for u in &walk.order[..walk.candidate.units - walk.kept] {
            leaves[walk.candidate.first + u] = true;
        }
    }
    (leaves, removed + settled)
}
