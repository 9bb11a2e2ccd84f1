//! Structured pruning (DepGraph, arXiv 2301.12900): a float graph enters, a graph with fewer channels,
//! neurons or heads leaves, its tensors, attributes and shapes really smaller. Units that are coupled
//! ([`crate::graph::coupling`]) leave together. One decision is used two ways: [`slice()`] removes the
//! units, [`mask()`] zeroes them and keeps all shapes, so that one can be held against the other.
//! Scores come from weights, from what flows through the model on data, or from the slope of a loss.

mod blocks;
mod criterion;
pub mod depth;
mod importance;
mod mask;
mod preview;
mod repair;
mod report;
mod room;
mod rounds;
mod select;
mod sensitivity;
mod settings;
mod slice;
mod target;

pub use criterion::{Criterion, Form, Normalize, Power, Slope};
pub use mask::mask;
pub use preview::{Cut, Preview};
pub use repair::Repair;
pub use report::{GroupReport, Spread};
pub use room::Survey;
pub use select::Steps;
pub use sensitivity::{Curve, PARTS};
pub use settings::{Of, Scope, Settings};
pub use slice::slice;
pub use target::{Amount, Target};

use super::{Ctx, Estimate, Pass, PassReport, quantized_node, recover};
use crate::analysis::{self, Summary};
use crate::error::{Error, Result};
use crate::graph::coupling::{Coupled, Group};
use crate::graph::{Facts, Graph};
use crate::monitor::Monitor;
use crate::units::Bytes;
use criterion::Family;
use importance::Source;
use room::Room;

/// The pass.
#[derive(Debug)]
pub struct Prune {
    settings: Settings,
}

/// Builds the pass from a recipe step.
pub(super) fn build(table: &toml::Table) -> Result<Box<dyn Pass>> {
    let settings: Settings = super::settings("prune", table)?;
    settings.check()?;
    Ok(Box::new(Prune { settings }))
}

/// Which units leave a graph.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The coupling that numbers the units.
    pub coupled: Coupled,
    /// By unit number: whether it leaves.
    pub leaves: Vec<bool>,
    /// By group: score of each unit, none for groups that were not ranked.
    pub scores: Vec<Option<Vec<f64>>>,
    /// By group: how the loss rises as its units leave, where that was looked at.
    pub curves: Vec<Option<Curve>>,
    /// By group: why it stays as it is, where it does.
    pub stays: Vec<Option<String>>,
    /// Parameters that would leave if every unit that may leave did.
    pub prunable_parameters: u64,
    /// Parameters that `ratio` is a part of.
    pub whole_parameters: u64,
    /// Parameters that leave.
    pub removed_parameters: u64,
}

impl Decision {
    /// Units of a group that stay.
    pub fn kept(&self, group: &Group) -> usize {
        group.numbers().filter(|u| !self.leaves[*u]).count()
    }
}

/// Decides which units leave: those of the lowest scores, until `ratio` is met as nearly as whole
/// rounding units allow.
///
/// # Errors
/// `Usage` for settings out of range or a ratio that cannot be met, `Unsupported` where nothing can
/// leave or the graph is quantised, `Invalid` for weights that are not finite.
pub fn decide(graph: &Graph, settings: &Settings, monitor: &dyn Monitor) -> Result<Decision> {
    decide_with(graph, settings, &Ctx::new(monitor))
}

/// [`decide`] for criteria that look at data.
///
/// # Errors
/// As above; `Usage` where data or their labels are missing, those of running the model.
pub fn decide_with(graph: &Graph, settings: &Settings, ctx: &Ctx<'_>) -> Result<Decision> {
    settings.check()?;
    refuse_quantized(graph)?;
    let facts = graph.infer(&|_| None)?;
    let survey = Survey::of(graph, &facts, settings.allow_interface_change);
    let room = Room::of(&survey, settings)?;
    let groups = survey.coupled.groups();
    let ranked: Vec<bool> = room.stays.iter().map(Option::is_none).collect();
    let source = source(graph, &facts, &survey.coupled, &ranked, settings, ctx);
    let scores = importance::scores(&source, settings.criterion)?;
    let curves = match settings.scope {
        Scope::Sensitivity => sensitivity::remembered(&source, &room, &scores, settings, ctx.memo)?,
        _ => Vec::new(),
    };
    let mut by_group = vec![None; groups.len()];
    for (candidate, curve) in room.candidates.iter().zip(&curves) {
        by_group[candidate.group] = Some(curve.clone());
    }
    let fixed = select::fixed(&room, settings)?;
    let cut = |parameters: u64| {
        let (leaves, removed) = select::select(&room, &scores, settings, &curves, &fixed, parameters);
        Decision {
            stays: room.stays_after(&leaves),
            leaves,
            scores: scores.clone(),
            curves: by_group.clone(),
            prunable_parameters: room.prunable,
            whole_parameters: room.whole,
            removed_parameters: removed,
            coupled: survey.coupled.clone(),
        }
    };
    match settings.target.map(|t| t.part(graph, settings.rounds, ctx)).transpose()?.flatten() {
        Some(wanted) => target::search(graph, &room, wanted, &cut, ctx),
        None => Ok(cut(room.target)),
    }
}

/// What scores and repairs are taken from.
fn source<'a>(
    graph: &'a Graph,
    facts: &'a Facts,
    coupled: &'a Coupled,
    ranked: &'a [bool],
    settings: &Settings,
    ctx: &'a Ctx<'_>,
) -> Source<'a> {
    Source {
        graph,
        facts,
        coupled,
        ranked,
        data: ctx.calibration,
        samples: settings.samples,
        batch: settings.batch,
        slope: settings.slope,
        form: settings.form,
        power: settings.power,
        checkpointing: settings.checkpointing,
        seed: ctx.seed,
        monitor: ctx.monitor,
        memo: ctx.memo,
    }
}

fn refuse_quantized(graph: &Graph) -> Result<()> {
    let Some(i) = quantized_node(graph) else { return Ok(()) };
    Err(Error::unsupported("PRUNE-QUANTIZED", "a quantised model is not pruned")
        .node(graph.label(i))
        .found(graph.node(i).operator_name())
        .hint("prune the float model, then quantise the result"))
}

/// Smallest, middle and largest.
fn spread(mut v: Vec<f64>) -> String {
    v.sort_by(f64::total_cmp);
    match v.as_slice() {
        [] => "-".into(),
        v => format!("{:.3}/{:.3}/{:.3}", v[0], v[v.len() / 2], v[v.len() - 1]),
    }
}

fn tell(graph: &Graph, decision: &Decision, report: &mut PassReport) {
    let readers = room::readers(graph, &decision.coupled);
    for group in decision.coupled.groups() {
        let nodes = &readers[group.id];
        let mut named = nodes.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
        if nodes.len() > 4 {
            named.push_str(&format!(" and {} more", nodes.len() - 4));
        }
        let target = format!("group {}", group.id);
        if let Some(why) = &decision.stays[group.id] {
            report.skip("prune", target, format!("{why} ({} units; {named})", group.units));
            continue;
        }
        let scores = decision.scores[group.id].as_deref().unwrap_or_default();
        let of = |leaves: bool| {
            let chosen = group.numbers().zip(scores).filter(|(u, _)| decision.leaves[*u] == leaves);
            spread(chosen.map(|(_, s)| *s).collect())
        };
        let what = if group.weights().all(|p| p.per_unit == 1) { "channels" } else { "units" };
        let mut detail = format!(
            "{} -> {} {what}; {named}; score min/median/max kept {}, removed {}",
            group.units,
            decision.kept(group),
            of(false),
            of(true)
        );
        if let Some(i) = group.statistics.first() {
            let name = graph.label(*i);
            detail.push_str(&format!("; \"{name}\" now takes its statistics over fewer of them"));
        }
        report.apply("prune", target, detail);
    }
}

fn facts_of(report: &mut PassReport, before: &Summary, after: &Summary) {
    let mut set = |key: &str, value: f64| report.facts.insert(key.into(), value);
    set("parameters_before", before.parameters as f64);
    set("parameters_after", after.parameters as f64);
    set("macs_before", before.macs as f64);
    set("macs_after", after.macs as f64);
    set("weight_bytes_before", before.weight_bytes as f64);
    set("weight_bytes_after", after.weight_bytes as f64);
}

/// Bytes of moments that a repair may hold at once where the job states no cap.
const MOMENTS: u64 = 1 << 30;

impl Prune {
    /// Without the units that matter least, repaired where asked for.
    fn units(&self, graph: &Graph, ctx: &Ctx<'_>, report: &mut PassReport) -> Result<Graph> {
        let decision = decide_with(graph, &self.settings, ctx)?;
        ctx.monitor.check()?;
        let mut pruned = slice(graph, &decision)?;
        tell(graph, &decision, report);
        report.groups = report::groups(graph, &decision);
        let facts = [
            ("prunable_parameters", decision.prunable_parameters as f64),
            ("removed_parameters", decision.removed_parameters as f64),
            ("ratio", decision.removed_parameters as f64 / decision.whole_parameters.max(1) as f64),
            ("units_removed", decision.leaves.iter().filter(|l| **l).count() as f64),
        ];
        report.facts.extend(facts.map(|(name, value)| (name.to_string(), value)));
        if self.settings.repair != Repair::None {
            pruned = self.repaired(graph, &decision, pruned, ctx, report)?;
        }
        Ok(pruned)
    }

    fn repaired(
        &self,
        graph: &Graph,
        decision: &Decision,
        pruned: Graph,
        ctx: &Ctx<'_>,
        report: &mut PassReport,
    ) -> Result<Graph> {
        let facts = graph.infer(&|_| None)?;
        let ranked = vec![true; decision.coupled.groups().len()];
        let source = source(graph, &facts, &decision.coupled, &ranked, &self.settings, ctx);
        let kept = decision.coupled.kept(&|u| decision.leaves[u]);
        let cap = ctx.monitor.memory_cap().map_or(MOMENTS, |cap| (cap.0 / 4).min(MOMENTS));
        repair::repair(&source, &kept, pruned, &self.settings, cap, report)
    }
}

impl Pass for Prune {
    fn name(&self) -> &'static str {
        "prune"
    }

    fn measures(&self) -> bool {
        self.settings.target.is_some_and(|t| t.latency.is_some())
    }

    fn rounds(&self) -> Result<Option<Vec<toml::Table>>> {
        if self.settings.rounds > 1 { self.settings.in_rounds().map(Some) } else { Ok(None) }
    }

    fn needs_calibration(&self) -> Option<String> {
        let Settings { criterion, repair, .. } = self.settings;
        match (criterion.needs_data(), repair) {
            _ if self.settings.scope == Scope::Sensitivity => Some("scope sensitivity".into()),
            (true, _) => Some(format!("criterion {criterion}")),
            (_, Repair::None) => None,
            _ => Some(format!("repair {repair:?}").to_lowercase()),
        }
    }

    fn needs_training(&self) -> Option<String> {
        self.settings.recover.as_ref().map(|_| "recovery".into())
    }

    fn check(&self, graph: &Graph, ctx: &Ctx<'_>) -> Result<()> {
        refuse_quantized(graph)?;
        if self.needs_calibration().is_some() {
            importance::data(ctx.calibration)?;
        }
        if let Some(settings) = &self.settings.recover {
            recover::data(ctx, settings.towards)?;
        }
        if self.settings.criterion.family() == Family::Blocks {
            return blocks::found(graph, &self.settings).map(drop);
        }
        let survey = Survey::of(graph, &graph.infer(&|_| None)?, self.settings.allow_interface_change);
        let room = Room::of(&survey, &self.settings)?;
        select::fixed(&room, &self.settings).map(drop)
    }

    fn estimate(&self, graph: &Graph) -> Estimate {
        let bytes: u64 = graph.initializers().map(|(_, t)| t.byte_len()).sum();
        let largest = graph.initializers().map(|(_, t)| t.byte_len()).max().unwrap_or(0);
        // Where the model runs, its weights are held as f32.
        let weights: u64 = graph.initializers().map(|(_, t)| 4 * t.len() as u64).sum();
        let settings = &self.settings;
        let mut copies = u64::from(self.needs_calibration().is_some());
        if settings.criterion == Criterion::LlmPruner {
            copies += 2;
        }
        if let Some(recover) = &settings.recover {
            copies = copies.max(recover::copies(recover.towards));
        }
        if settings.repair != Repair::None {
            // The cut, and the two repairs that are held against each other.
            copies += 2;
        }
        let moments = if settings.repair == Repair::Ridge { MOMENTS } else { 0 };
        Estimate {
            seconds: 0.1 + bytes as f64 / 4e8 + (copies * weights) as f64 / 1e8,
            memory: Bytes(2 * largest + copies * weights + moments),
            disk: Bytes((bytes as f64 * (1.0 - self.settings.ratio)) as u64),
        }
    }

    fn run(&self, graph: &Graph, ctx: &mut Ctx<'_>) -> Result<(Graph, PassReport)> {
        self.whole(graph, ctx).map_err(|e| importance::blamed(graph, ctx, e))
    }
}

impl Prune {
    /// Cut, repaired and trained.
    fn whole(&self, graph: &Graph, ctx: &Ctx<'_>) -> Result<(Graph, PassReport)> {
        let mut report = PassReport::new("prune");
        let cut = match self.settings.criterion.family() {
            Family::Blocks => blocks::cut(graph, &self.settings, ctx, &mut report),
            _ => self.units(graph, ctx, &mut report),
        };
        let mut pruned = match cut {
            // What an earlier round or step took may have been more than its part.
            Err(e) if e.code() == target::ENOUGH && ctx.original.is_some() => {
                report.skip("prune", "model", e.message());
                graph.clone()
            }
            cut => cut?,
        };
        if let Some(settings) = &self.settings.recover {
            let (original, checkpointing) = (ctx.original.unwrap_or(graph), self.settings.checkpointing);
            pruned = recover::recover(&pruned, original, settings, checkpointing, ctx, &mut report)?;
        }
        let options = target::counted(graph, ctx)?;
        let (before, after) =
            (analysis::summarize(graph, &options)?, analysis::summarize(&pruned, &options)?);
        facts_of(&mut report, &before, &after);
        Ok((pruned, report))
    }
}
