//! What settings would cut, before anything is cut: a surveyed graph enters and is scored once; for any
//! settings the units that each group would keep, and what the model would then cost, leave. Decides with
//! the code of the pass itself, so that a promise is what a run does.

use super::room::Room;
use super::{Criterion, Curve, Scope, Settings, Steps, Survey, importance, refuse_quantized, select, source};
use crate::error::{Error, Result};
use crate::graph::coupling::Costs;
use crate::graph::{Facts, Graph};
use crate::monitor::Monitor;
use crate::passes::Ctx;
use std::collections::HashMap;

/// A graph that is ready to be asked.
pub struct Preview<'a> {
    graph: &'a Graph,
    survey: &'a Survey,
    criterion: Criterion,
    refusal: Option<Error>,
    scores: Vec<Option<Vec<f64>>>,
    costs: Costs<'a>,
    addresses: HashMap<usize, String>,
}

/// What settings would do.
#[derive(Debug, Clone, PartialEq)]
pub struct Cut {
    /// By group: units that stay.
    pub kept: Vec<usize>,
    /// By group: why it stays whole, where it does.
    pub stays: Vec<Option<String>>,
    /// By group: the numbers of units that it may keep, where it may shrink.
    pub steps: Vec<Option<Steps>>,
    /// Parameters that leave.
    pub removed_parameters: u64,
    /// Parameters that `ratio` is a part of.
    pub whole_parameters: u64,
    /// Bytes of weights that leave.
    pub removed_bytes: u64,
    /// Multiply-accumulates of one inference that are left.
    pub macs: u64,
    /// Whether a run would keep exactly these numbers. If not, it ranks units by scores that are not
    /// known before it has looked at data.
    pub exact: bool,
}

impl<'a> Preview<'a> {
    /// Scores the units of all groups that can shrink. `facts` leave open dimensions open, as the pass
    /// has them; `bound` give them sizes, which multiply-accumulates are counted for. `criterion` looks at
    /// no data. A graph that cannot be pruned has no scores and says why in [`Preview::refusal`].
    ///
    /// # Errors
    /// `Stopped`; `Usage` for a criterion that needs data; those of reading weights.
    pub fn of(
        graph: &'a Graph,
        facts: &Facts,
        bound: &'a Facts,
        survey: &'a Survey,
        criterion: Criterion,
        monitor: &dyn Monitor,
    ) -> Result<Preview<'a>> {
        let groups = survey.coupled.groups();
        let settings = Settings { criterion, ..Settings::default() };
        let refusal = refuse_quantized(graph).and_then(|()| Room::of(survey, &settings).map(drop)).err();
        let mut preview = Preview {
            graph,
            survey,
            criterion,
            refusal,
            scores: vec![None; groups.len()],
            costs: Costs::of(graph, bound, &survey.coupled),
            addresses: HashMap::new(),
        };
        if preview.refusal.is_none() {
            let ranked: Vec<bool> = groups.iter().map(|g| survey.never(g.id).is_none()).collect();
            let ctx = Ctx::new(monitor);
            let source = source(graph, facts, &survey.coupled, &ranked, &settings, &ctx);
            preview.scores = importance::scores(&source, criterion)?;
        }
        Ok(preview)
    }

    /// Why nothing can be pruned, if so.
    pub fn refusal(&self) -> Option<&Error> {
        self.refusal.as_ref()
    }

    /// Scores of a group's units, where they were ranked.
    pub fn scores(&self, group: usize) -> Option<&[f64]> {
        self.scores.get(group)?.as_deref()
    }

    /// Costs with the units that the last cut kept.
    pub fn costs(&self) -> &Costs<'a> {
        &self.costs
    }

    /// Counts costs with these numbers of units, by group.
    ///
    /// # Errors
    /// Those of [`Costs::keep`].
    pub fn keep(&mut self, units: &[usize]) -> Result<()> {
        self.costs.keep_all(units).map(drop)
    }

    /// Multiply-accumulates that leave with one unit of a group while all others stay; none where they
    /// cannot be told.
    pub fn macs_per_unit(&mut self, group: usize) -> Option<u64> {
        self.costs.per_unit(group).ok()
    }

    /// [`Survey::address`], remembered.
    pub fn address(&mut self, group: usize) -> String {
        self.addresses.entry(group).or_insert_with(|| self.survey.address(group)).clone()
    }

    /// What a run with these settings would keep. `curves` are those that a run measured before, by
    /// group, for `scope = "sensitivity"`.
    ///
    /// # Errors
    /// Those of the pass for settings that cannot be met; [`Preview::refusal`]; `Usage` for a target
    /// that is found by trying.
    pub fn cut(&mut self, settings: &Settings, curves: &[Option<Curve>]) -> Result<Cut> {
        refuse_quantized(self.graph)?;
        if settings.target.is_some() || settings.criterion.removes_blocks() {
            return Err(Error::usage("PRUNE-PREVIEW", "what leaves is found by trying, in the run itself")
                .field(if settings.target.is_some() { "step.target" } else { "step.criterion" })
                .hint("state a ratio, and a criterion of units"));
        }
        if settings.says_how_much() {
            settings.check()?;
        }
        let room = Room::of(self.survey, settings)?;
        let fixed = select::fixed(&room, settings)?;
        let of_candidates: Option<Vec<Curve>> =
            room.candidates.iter().map(|c| curves.get(c.group)?.clone()).collect();
        let (scope, curves) = match (settings.scope, of_candidates) {
            (Scope::Sensitivity, Some(curves)) => (Scope::Sensitivity, curves),
            (Scope::Sensitivity, None) => (Scope::Global, Vec::new()),
            (scope, _) => (scope, Vec::new()),
        };
        let own = Settings { criterion: self.criterion, scope, ..settings.clone() };
        let (leaves, removed) = select::select(&room, &self.scores, &own, &curves, &fixed, room.target);
        let groups = self.survey.coupled.groups();
        let kept: Vec<usize> = groups.iter().map(|g| g.numbers().filter(|u| !leaves[*u]).count()).collect();
        let mut bounds = self.survey.bounds.clone();
        let before = bounds.bytes();
        for group in groups {
            bounds.take(group.id, group.units - kept[group.id]);
        }
        let mut steps = vec![None; groups.len()];
        room.candidates.iter().for_each(|c| steps[c.group] = Some(c.steps));
        // The same part of every group leaves by any scores.
        let by_counts = scope == Scope::Layer || room.target == 0;
        Ok(Cut {
            macs: self.costs.keep_all(&kept)?,
            stays: room.stays_after(&leaves),
            steps,
            removed_parameters: removed,
            whole_parameters: room.whole,
            removed_bytes: before - bounds.bytes(),
            // Every round looks at what the one before it left.
            exact: settings.rounds == 1
                && (by_counts || (settings.criterion == self.criterion && scope == settings.scope)),
            kept,
        })
    }
}
