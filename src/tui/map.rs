//! State of the map of what can be pruned: groups by block and kind with their importance, what a run
//! left of them, and the cut that a person plans. Knows no drawing and computes no selection: what a cut
//! keeps and brings is told by [`crate::plan::study`].

mod edit;
mod place;

pub use edit::{Edit, Level};
pub use place::{Line, Places};

use super::app::{App, Failure};
use super::list::List;
use crate::graph::coupling::Kind;
use crate::passes::PassReport;
use crate::passes::prune::{Curve, GroupReport, Settings, Spread};
use crate::plan::study::{Forecast, Study};
use place::block;
use std::path::PathBuf;
use std::sync::Arc;

/// What is known of the groups of the model in front.
#[derive(Debug, Clone, Default)]
pub enum Known {
    /// Nobody has looked.
    #[default]
    Nothing,
    /// The model is being read: phase, units done and in all.
    Reading(String, u64, Option<u64>),
    /// It was read.
    Ready(Arc<Study>),
    /// It cannot be read.
    Failed(Failure),
}

/// Points of the strip of a run.
const POINTS: usize = 40;

/// What a pruning step of a run did.
#[derive(Debug, Clone, PartialEq)]
pub struct Ran {
    /// Job.
    pub job: String,
    /// Its name.
    pub name: String,
    /// Position of the step.
    pub step: usize,
    /// Its settings.
    pub settings: Settings,
    /// What it told.
    pub report: Arc<PassReport>,
    /// The model that the run left, where it came so far, and its bytes.
    pub variant: Option<(PathBuf, u64)>,
}

/// One group, from whichever source.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Position among the groups.
    pub id: usize,
    /// What its units are.
    pub kind: Kind,
    /// Units.
    pub units: usize,
    /// Nodes by which it is shown.
    pub nodes: Vec<String>,
    /// The block that it belongs to.
    pub block: String,
    /// How many nodes read its weights, where that is known.
    pub readers: Option<usize>,
    /// Parameters that leave with the first unit.
    pub parameters_per_unit: u64,
    /// Multiply-accumulates that leave with it, where they are known.
    pub macs_per_unit: Option<u64>,
    /// Why it can never shrink.
    pub never: Option<String>,
    /// Quantiles of its units' scores over their mean, from the least.
    pub strip: Vec<f64>,
    /// Its part of all scores, 0 to 1.
    pub share: Option<f64>,
    /// What the run in front did to it.
    pub ran: Option<GroupReport>,
}

impl Entry {
    /// Whether settings can let it shrink.
    pub fn prunable(&self) -> bool {
        self.never.is_none()
    }
    /// How the loss rises as its units leave, where the run measured that.
    pub fn sensitivity(&self) -> Option<&Curve> {
        self.ran.as_ref()?.sensitivity.as_ref()
    }
}

/// What blocks are ordered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// As the model computes.
    #[default]
    Model,
    /// Part of all scores, least first.
    Importance,
    /// Rise of the loss, least first.
    Sensitivity,
    /// Parameters of a unit, most first.
    Parameters,
}

impl Order {
    /// The next one.
    pub fn next(self) -> Order {
        match self {
            Order::Model => Order::Importance,
            Order::Importance => Order::Sensitivity,
            Order::Sensitivity => Order::Parameters,
            Order::Parameters => Order::Model,
        }
    }
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Order::Model => "order of execution",
            Order::Importance => "importance",
            Order::Sensitivity => "sensitivity",
            Order::Parameters => "parameters per unit",
        }
    }
}

/// The map.
#[derive(Debug, Default)]
pub struct PruneMap {
    /// The model in front, looked at.
    pub known: Known,
    /// Newest request for a look.
    pub generation: u64,
    /// Pruning steps of runs on the model in front, newest first.
    pub runs: Vec<Ran>,
    /// Newest request for their reports, and the jobs that it was about.
    pub asked_runs: (u64, Vec<String>),
    /// The run whose figures are shown, by job and step; those of the weights where there is none.
    pub shown: Option<(String, usize)>,
    /// A run that is to be shown as soon as its report is there.
    pub wanted: Option<String>,
    /// The cut that is planned.
    pub edit: Edit,
    /// What `+` and `-` change.
    pub level: Level,
    /// What the plan brings, as of the last answer.
    pub forecast: Option<Arc<Forecast>>,
    /// Why the plan cannot be met.
    pub wrong: Option<String>,
    /// Newest request for a forecast.
    pub foreseen: u64,
    /// It is under way.
    pub waiting: bool,
    /// The plan changed while it was.
    pub stale: bool,
    /// Groups as they are shown.
    pub entries: Vec<Entry>,
    /// Where they stand.
    pub places: Places,
    /// Selected line.
    pub lines: List,
    /// Wanted column.
    pub column: usize,
    /// Order of the blocks.
    pub order: Order,
    /// Reversed.
    pub reverse: bool,
}

impl PruneMap {
    /// Forgets a model; requests under way are void.
    pub fn clear(&mut self) {
        let wanted = self.wanted.take();
        *self = PruneMap {
            generation: self.generation + 1,
            foreseen: self.foreseen + 1,
            asked_runs: (self.asked_runs.0 + 1, Vec::new()),
            wanted,
            ..PruneMap::default()
        };
    }

    /// What was read of the model.
    pub fn study(&self) -> Option<&Arc<Study>> {
        match &self.known {
            Known::Ready(study) => Some(study),
            _ => None,
        }
    }

    /// The run whose figures are shown.
    pub fn run(&self) -> Option<&Ran> {
        let (job, step) = self.shown.as_ref()?;
        self.runs.iter().find(|r| r.job == *job && r.step == *step)
    }

    /// Whether a plan can be made: the model was read, and something of it can leave.
    pub fn can_plan(&self) -> bool {
        self.study().is_some_and(|s| s.refusal.is_none()) && self.agrees()
    }

    /// Whether the groups that are shown are those of the model in front. Those of a step that followed
    /// others are not.
    fn agrees(&self) -> bool {
        match (self.study(), self.run()) {
            (Some(study), Some(run)) => same_groups(study, &run.report.groups),
            _ => true,
        }
    }

    /// Shows the figures of the next source: the weights, then each run.
    pub fn next_source(&mut self, filter: &str) {
        let at = self.run().and_then(|run| self.runs.iter().position(|r| r == run)).map_or(0, |i| i + 1);
        self.shown = self.runs.get(at).map(|r| (r.job.clone(), r.step));
        self.rebuild(filter);
    }

    /// Shows a run of this job where there is one, and plans what it did.
    pub fn show(&mut self, job: &str, filter: &str) -> bool {
        let Some(run) = self.runs.iter().find(|r| r.job == job) else { return false };
        self.shown = Some((run.job.clone(), run.step));
        self.edit = Edit::of(run.settings.clone());
        self.rebuild(filter);
        true
    }

    /// Curves by group that the run in front measured.
    pub fn curves(&self) -> Vec<Option<Curve>> {
        match self.run().filter(|_| self.agrees()) {
            Some(run) => run.report.groups.iter().map(|g| g.sensitivity.clone()).collect(),
            None => Vec::new(),
        }
    }

    /// Makes the entries and their places anew; the selected group stays selected where it is shown.
    pub fn rebuild(&mut self, filter: &str) {
        let kept = self.selected().first().map(|e| e.id);
        let study = self.study().cloned();
        let run = self.run().cloned();
        let mut entries: Vec<Entry> = match (&study, &run) {
            (Some(study), Some(run)) if same_groups(study, &run.report.groups) => {
                let ran = run.report.groups.iter();
                study
                    .groups
                    .iter()
                    .zip(ran)
                    .map(|(s, r)| Entry { ran: Some(r.clone()), ..of_weights(s) })
                    .collect()
            }
            (_, Some(run)) => run.report.groups.iter().map(of_report).collect(),
            (Some(study), None) => study.groups.iter().map(of_weights).collect(),
            (None, None) => Vec::new(),
        };
        if run.is_some() {
            entries.iter_mut().for_each(by_run);
        }
        // Sums of scores, where means and units tell them.
        let weight: Vec<f64> = match (&study, &run) {
            (Some(study), None) => {
                let sum = |g: &crate::plan::study::StudyGroup| {
                    g.scores.as_ref().map_or(0.0, |s| s.mean * g.units as f64)
                };
                study.groups.iter().map(sum).collect()
            }
            (_, Some(run)) => run.report.groups.iter().map(sum_of).collect(),
            _ => Vec::new(),
        };
        let all: f64 = weight.iter().sum();
        for (entry, weight) in entries.iter_mut().zip(weight) {
            entry.share = (all > 0.0 && !entry.strip.is_empty()).then_some(weight / all);
        }
        self.entries = entries;
        self.place_around(kept, filter);
    }

    /// Places the entries anew: in another order, or others of them.
    pub fn place(&mut self, filter: &str) {
        let kept = self.selected().first().map(|e| e.id);
        self.place_around(kept, filter);
    }

    fn place_around(&mut self, kept: Option<usize>, filter: &str) {
        let listed = self.run().is_none() && self.study().is_some_and(|s| s.refusal.is_some());
        self.places = Places::of(&self.entries, self.order, self.reverse, filter, listed);
        // At first, the first group that can shrink.
        let first = || {
            let mut free = self.entries.iter().filter(|e| e.prunable());
            free.clone().find(|e| e.kind != Kind::Width).or_else(|| free.next()).map(|e| e.id)
        };
        if let Some(line) = kept.or_else(first).and_then(|id| self.places.line_of(&self.entries, id)) {
            self.lines.selected = line;
        }
        self.lines.clamp(self.places.lines.len());
    }

    /// Groups under the cursor: one, or those of a block that can never shrink.
    pub fn selected(&self) -> Vec<&Entry> {
        let Some(line) = self.places.lines.get(self.lines.selected) else { return Vec::new() };
        let column = line.nearest(self.column);
        line.cells.get(column).into_iter().flatten().filter_map(|i| self.entries.get(*i)).collect()
    }

    /// The one group under the cursor that can shrink.
    pub fn candidate(&self) -> Option<&Entry> {
        match self.selected().as_slice() {
            [one] if one.prunable() => Some(one),
            _ => None,
        }
    }

    /// Moves to the next filled cell of the line; whether there was one.
    pub fn sideways(&mut self, by: isize) -> bool {
        let Some(line) = self.places.lines.get(self.lines.selected) else { return false };
        let mut at = line.nearest(self.column) as isize + by;
        while let Some(cell) = usize::try_from(at).ok().and_then(|at| line.cells.get(at)) {
            if !cell.is_empty() {
                self.column = at as usize;
                return true;
            }
            at += by;
        }
        false
    }

    /// Groups that the level means: the selected one, those of its block, its kind or all, as far as they
    /// can shrink.
    pub fn meant(&self) -> Vec<usize> {
        let Some(one) = self.candidate() else { return Vec::new() };
        let fits = |e: &&Entry| match self.level {
            Level::Group => e.id == one.id,
            Level::Block => e.block == one.block,
            Level::Kind => e.kind == one.kind,
            Level::Model => true,
        };
        self.entries.iter().filter(|e| e.prunable()).filter(fits).map(|e| e.id).collect()
    }

    /// Units that the plan keeps of a group, as of the last answer.
    pub fn planned(&self, id: usize) -> Option<usize> {
        let forecast = self.forecast.as_ref().filter(|_| self.edit.cuts())?;
        forecast.kept.get(id).copied()
    }
}

/// Whether a report is about the groups of a study.
fn same_groups(study: &Study, groups: &[GroupReport]) -> bool {
    study.groups.len() == groups.len()
        && study.groups.iter().zip(groups).all(|(s, g)| (s.kind, s.units) == (g.kind, g.units))
}

fn of_weights(group: &crate::plan::study::StudyGroup) -> Entry {
    let strip = group.scores.as_ref().map_or(Vec::new(), |s| over_mean(&s.quantiles, s.mean));
    Entry {
        id: group.id,
        kind: group.kind,
        units: group.units,
        nodes: group.nodes.clone(),
        block: block(group.id, group.nodes.first()),
        readers: Some(group.readers),
        parameters_per_unit: group.parameters_per_unit,
        macs_per_unit: group.macs_per_unit,
        never: group.never.clone(),
        strip,
        share: None,
        ran: None,
    }
}

fn of_report(group: &GroupReport) -> Entry {
    Entry {
        id: group.group,
        kind: group.kind,
        units: group.units,
        nodes: group.nodes.clone(),
        block: block(group.group, group.nodes.first()),
        readers: None,
        parameters_per_unit: group.parameters_per_unit,
        macs_per_unit: None,
        // What was ranked could have shrunk.
        never: group.stays.clone().filter(|_| group.scores_kept.is_none() && group.scores_removed.is_none()),
        strip: Vec::new(),
        share: None,
        ran: Some(group.clone()),
    }
}

/// Puts the scores of the run into the strip of an entry.
fn by_run(entry: &mut Entry) {
    let Some(ran) = &entry.ran else { return };
    let gone = 1.0 - ran.kept as f64 / ran.units.max(1) as f64;
    let at = |spread: &Option<Spread>, part: f64| -> Option<f64> {
        let s = spread.as_ref()?;
        let points = [s.min, s.p25, s.median, s.p75, s.max];
        let place = (4.0 * part).clamp(0.0, 4.0);
        let (low, high) = (place.floor() as usize, place.ceil() as usize);
        Some(points[low] + (points[high] - points[low]) * (place - low as f64))
    };
    // What left has the lower scores, and as much of the strip as of the group.
    let point = |i: usize| {
        let part = (i as f64 + 0.5) / POINTS as f64;
        match part < gone {
            true => at(&ran.scores_removed, part / gone),
            false => at(&ran.scores_kept, (part - gone) / (1.0 - gone)),
        }
    };
    let all: Option<Vec<f64>> = (0..POINTS).map(point).collect();
    let mean = sum_of(ran) / ran.units.max(1) as f64;
    entry.strip = over_mean(&all.unwrap_or_default(), mean);
}

/// About the sum of the scores of a group, from the spreads of those that stayed and left.
fn sum_of(group: &GroupReport) -> f64 {
    let mean =
        |s: &Option<Spread>| s.map_or(0.0, |s| (s.min + 2.0 * (s.p25 + s.median + s.p75) + s.max) / 8.0);
    let gone = group.units.saturating_sub(group.kept);
    mean(&group.scores_kept) * group.kept as f64 + mean(&group.scores_removed) * gone as f64
}

fn over_mean(scores: &[f64], mean: f64) -> Vec<f64> {
    scores.iter().map(|s| if mean > 0.0 { s / mean } else { 0.0 }).collect()
}

/// Latency after the cut in milliseconds, as middle, low and high, scaled from what is known of the model
/// as it is by the part of the roofline that stays.
pub fn latency(app: &App) -> Option<(f64, f64, f64)> {
    let (middle, low, high) = app.plan.ranked.as_ref()?.recommendation.original_latency_ms?;
    let (before, after) = app.model.map.forecast.as_ref()?.roofline_ms?;
    let part = if before > 0.0 { after / before } else { 1.0 };
    Some((middle * part, low * part, high * part))
}
