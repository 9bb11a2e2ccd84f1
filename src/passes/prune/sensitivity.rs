//! Sensitivity: how much the loss rises when a part of one group's units gives nothing, group by group.
//! Scores of units and data enter; a curve a group leaves, which says where units are cheap. A unit that
//! leaves is zeroed where it flows into products ([`super::importance::gates`]), so that every point
//! costs a forward pass over few rows and no new graph.

use super::Settings;
use super::importance::{Gate, Source, gates};
use super::room::Room;
use crate::error::Result;
use crate::evaluate::objective::{Head, Objective};
use crate::execute::Overrides;
use crate::graph::ValueId;
use crate::graph::constants::Constants;
use crate::monitor::Level;
use crate::passes::Memo;
use crate::passes::look::Judge;
use crate::tensor::{Tensor, Value};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Parts of a group's units that are tried.
pub const PARTS: [f64; 3] = [0.125, 0.25, 0.5];

/// Rise of the mean loss over the part of the units that is gone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct Curve {
    /// (part gone, rise of the loss), from small to large parts.
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    /// The rise where `part` is gone: between the points along straight lines, beyond the last along the
    /// last line. It never falls as more is gone.
    pub fn at(&self, part: f64) -> f64 {
        let mut before = (0.0, 0.0f64);
        let mut slope = 0.0;
        for (to, rise) in &self.points {
            let rise = rise.max(before.1);
            slope = (rise - before.1) / (to - before.0).max(1e-9);
            if part <= *to {
                return before.1 + slope * (part - before.0);
            }
            before = (*to, rise);
        }
        before.1 + slope * (part - before.0)
    }
}

/// [`curves`], or those of a run before that asked for the same.
///
/// # Errors
/// Those of [`curves`].
pub(super) fn remembered(
    source: &Source<'_>,
    room: &Room<'_>,
    scores: &[Option<Vec<f64>>],
    settings: &Settings,
    memo: Option<&dyn Memo>,
) -> Result<Vec<Curve>> {
    let rows = settings.sensitivity_samples;
    let Some(memo) = memo else { return curves(source, room, scores, rows) };
    let groups: Vec<usize> = room.candidates.iter().map(|c| c.group).collect();
    let (batch, slope) = (source.batch, source.slope);
    let what = format!("sensitivity {PARTS:?} {rows} {batch} {slope:?} {groups:?} {}", digest(scores));
    let kept = memo.recall(&what).and_then(|bytes| serde_json::from_slice::<Vec<Bits>>(&bytes).ok());
    if let Some(kept) = kept.filter(|k| k.len() == groups.len()) {
        source.monitor.log(Level::Info, "sensitivity curves are those of an earlier run");
        let point = |(part, rise)| (f64::from_bits(part), f64::from_bits(rise));
        let curve = |points: Bits| Curve { points: points.into_iter().map(point).collect() };
        return Ok(kept.into_iter().map(curve).collect());
    }
    let found = curves(source, room, scores, rows)?;
    let bits = |c: &Curve| c.points.iter().map(|(p, r)| (p.to_bits(), r.to_bits())).collect::<Bits>();
    if let Ok(bytes) = serde_json::to_vec(&found.iter().map(bits).collect::<Vec<_>>()) {
        memo.keep(&what, &bytes);
    }
    Ok(found)
}

/// Points of a curve bit by bit, so that what is recalled decides as what was computed.
type Bits = Vec<(u64, u64)>;

/// Digest of the scores, which say in which order units leave.
fn digest(scores: &[Option<Vec<f64>>]) -> String {
    let mut bytes = Vec::new();
    for group in scores {
        let scores = group.as_deref().unwrap_or_default();
        bytes.extend((scores.len() as u64).to_le_bytes());
        bytes.extend(scores.iter().flat_map(|v| v.to_le_bytes()));
    }
    crate::save::sha256(&bytes)
}

/// Curves by candidate of `room`, whose units leave in the order of their scores.
///
/// # Errors
/// Those of running the model, `Stopped` when asked to.
fn curves(
    source: &Source<'_>,
    room: &Room<'_>,
    scores: &[Option<Vec<f64>>],
    rows: usize,
) -> Result<Vec<Curve>> {
    let data = super::importance::data(source.data)?;
    let task = source.slope != super::Slope::Reference && data.labelled();
    let objective = if task { Objective::Likelihood } else { Objective::Reference };
    let by = (Head::of(source.graph, data)?, objective);
    let judge = Judge::new(source.graph, data, rows, source.batch, by, source.monitor)?;
    let by_unit = by_group(source, room);
    source.monitor.phase("prune: look at sensitivity", Some((room.candidates.len() * PARTS.len()) as u64));
    let mut out = Vec::with_capacity(room.candidates.len());
    for (i, candidate) in room.candidates.iter().enumerate() {
        let group = &room.survey.coupled.groups()[candidate.group];
        let of_group = scores[candidate.group].as_deref().unwrap_or_default();
        let mut order: Vec<usize> = (0..group.units).collect();
        order.sort_by(|a, b| of_group[*a].total_cmp(&of_group[*b]).then(a.cmp(b)));
        let mut curve = Curve::default();
        for (k, part) in PARTS.iter().enumerate() {
            let gone = ((part * group.units as f64).round() as usize).clamp(1, group.units);
            let mut leaves = vec![false; group.units];
            order[..gone].iter().for_each(|u| leaves[*u] = true);
            let with = without(source, &by_unit[i], group.first, &leaves)?;
            let rise = judge.rise(|batch| judge.with(batch, &with))?;
            curve.points.push((gone as f64 / group.units as f64, rise.max(0.0)));
            source.monitor.progress((i * PARTS.len() + k + 1) as u64);
        }
        out.push(curve);
    }
    Ok(out)
}

/// The gates of each candidate.
fn by_group(source: &Source<'_>, room: &Room<'_>) -> Vec<Vec<Gate>> {
    let all = gates(source);
    let of = |c: &super::select::Candidate| {
        let numbers = room.survey.coupled.groups()[c.group].numbers();
        all.iter().filter(|g| g.units.iter().flatten().any(|u| numbers.contains(u))).cloned().collect()
    };
    room.candidates.iter().map(of).collect()
}

/// Weights of gates with the columns of the units that leave at zero.
fn without(source: &Source<'_>, gates: &[Gate], first: usize, leaves: &[bool]) -> Result<Overrides> {
    let constants = Constants::of(source.graph);
    let mut zeroed: BTreeMap<ValueId, Tensor> = BTreeMap::new();
    for gate in gates {
        let tensor = match zeroed.remove(&gate.weight) {
            Some(tensor) => tensor,
            None => match constants.get(gate.weight) {
                Some(tensor) => tensor.clone(),
                None => continue,
            },
        };
        let gone = |u: &Option<usize>| {
            u.and_then(|u| u.checked_sub(first)).is_some_and(|u| leaves.get(u).copied().unwrap_or(false))
        };
        let gone: Vec<bool> = gate.units.iter().map(gone).collect();
        zeroed.insert(gate.weight, super::mask::zeroed(&tensor, gate.at.weight.1, &gone)?);
    }
    zeroed.into_iter().map(|(v, tensor)| Ok((v, Value::load(&tensor)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_never_falls_and_goes_on_beyond_its_points() {
        let curve = Curve { points: vec![(0.125, 0.2), (0.25, 0.1), (0.5, 1.2)] };
        let close = |part: f64, want: f64| assert!((curve.at(part) - want).abs() < 1e-12, "{part}");
        close(0.0, 0.0);
        close(0.0625, 0.1);
        close(0.2, 0.2);
        close(0.375, 0.7);
        close(1.0, 3.2);
        assert_eq!(Curve::default().at(0.5), 0.0);
    }
}
