//! What keys do on the map of what pruning can take: looking at the model, planning a cut, taking it to
//! the Plan tab or running it, and what runs told.

use super::super::action::Action;
use super::super::app::{App, Effect, Failure, Tab};
use super::super::layout::Pane;
use super::super::list::Scroll;
use super::super::map::{Known, Level, Ran, latency};
use super::super::model::View;
use super::super::overlay::{CutForm, Overlay, RatioForm};
use super::{compare_with, focus, plan};
use crate::monitor::Level as Weight;
use crate::passes::prune::{Repair, Scope, Settings};
use crate::plan::study::{Forecast, Question, Study};
use crate::plan::{Confidence, DeviceFacts, Proposal, Recipe, expected_loss};
use std::sync::Arc;

/// How much of the units a key takes where single counts say nothing.
const STEP: f64 = 0.05;

/// Does an action of the map.
pub(super) fn act(app: &mut App, action: Action, out: &mut Vec<Effect>) {
    match action {
        Action::Map if app.model.view == View::Map => leave(app, out),
        Action::Map => enter(app, out),
        Action::CutMore => nudge(app, true, out),
        Action::CutLess => nudge(app, false, out),
        Action::CutReset => {
            let map = &mut app.model.map;
            let (meant, kind) = (map.meant(), map.candidate().map(|e| e.kind));
            if map.level == Level::Model {
                map.edit.set_overall(0.0);
            }
            if let (Level::Kind, Some(kind)) = (map.level, kind) {
                map.edit.set_kind(kind, None);
            }
            for id in meant {
                map.edit.set_group(id, None);
                map.edit.protected.remove(&id);
            }
            foresee(app, out);
        }
        Action::CutValue => {
            let (map, what) = (&app.model.map, meaning(app));
            let now = match map.level {
                Level::Model => Some(map.edit.settings.ratio),
                Level::Kind => map.candidate().and_then(|e| map.edit.of_kind(e.kind)),
                _ => map.candidate().and_then(|e| map.edit.groups.get(&e.id).copied()),
            };
            app.overlay = Some(Overlay::Ratio(Box::new(RatioForm::new(what, now))));
        }
        Action::Protect => {
            let meant = app.model.map.meant();
            app.model.map.edit.toggle_protection(&meant);
            foresee(app, out);
        }
        Action::CutLevel => app.model.map.level = app.model.map.level.next(),
        Action::CutSource => {
            let filter = app.model.filter.clone();
            app.model.map.next_source(&filter);
            app.model.details = Scroll::default();
            foresee(app, out);
        }
        Action::CutSettings => {
            let calibration = app.plan.data.calibration.clone();
            let form = CutForm::new(&app.model.map.edit.settings, calibration);
            app.overlay = Some(Overlay::Cut(Box::new(form)));
        }
        Action::RunCut => match recipe(app) {
            Ok(recipe) => {
                let lines = told(app);
                plan::confirm_recipe(app, &recipe, lines, "e on the map writes the recipe to a file.".into());
            }
            Err(why) => app.say(Weight::Warning, why),
        },
        _ => {}
    }
}

/// Puts the map in front; the model is read where that has not been done.
pub(super) fn enter(app: &mut App, out: &mut Vec<Effect>) {
    if !app.has_graph() {
        return;
    }
    app.model.view = View::Map;
    app.model.details = Scroll::default();
    app.model.facts = Scroll::default();
    focus(app, Pane::Tree);
    if matches!(app.model.map.known, Known::Nothing | Known::Failed(_)) {
        look(app, out);
    }
    ask_runs(app, out);
    let filter = app.model.filter.clone();
    app.model.map.rebuild(&filter);
}

/// Goes back to the layers. What is still being read is given up.
pub(super) fn leave(app: &mut App, out: &mut Vec<Effect>) {
    app.model.view = View::Layers;
    app.model.refresh();
    if let Known::Reading(..) = app.model.map.known {
        app.model.map.known = Known::Nothing;
        app.model.map.generation += 1;
        out.push(Effect::EndStudy { generation: app.model.map.generation });
    }
}

/// Asks for the groups of the model in front, scored by the plan's criterion where that needs no data.
fn look(app: &mut App, out: &mut Vec<Effect>) {
    let Some(path) = app.model.path.clone() else { return };
    let map = &mut app.model.map;
    map.generation += 1;
    map.known = Known::Reading("open the model".into(), 0, None);
    let planned = map.edit.settings.criterion;
    let criterion = if planned.needs_data() { Settings::default().criterion } else { planned };
    out.push(Effect::Study { generation: map.generation, path, criterion });
}

/// Asks what pruning runs on the model in front told, where there are others than were asked for.
pub(super) fn ask_runs(app: &mut App, out: &mut Vec<Effect>) {
    let Some(path) = &app.model.path else { return };
    let jobs = app.runs.jobs.iter().filter(|j| j.prunes() && j.status().is_final() && j.model == *path);
    let mut jobs: Vec<(u64, String)> = jobs.map(|j| (j.state.created_ms, j.id.clone())).collect();
    jobs.sort_by(|a, b| b.cmp(a));
    let jobs: Vec<String> = jobs.into_iter().map(|(_, id)| id).collect();
    let map = &mut app.model.map;
    if map.asked_runs.1 != jobs {
        map.asked_runs = (map.asked_runs.0 + 1, jobs.clone());
        out.push(Effect::ReadRuns { generation: map.asked_runs.0, jobs });
    }
}

/// Asks what the plan would bring. One question is under way at a time; a plan that changed meanwhile is
/// asked about when the answer is there.
pub(super) fn foresee(app: &mut App, out: &mut Vec<Effect>) {
    let device = app.plan.ranked.as_ref().map(|r| DeviceFacts::from(&r.device));
    let map = &mut app.model.map;
    if map.study().is_none_or(|s| s.refusal.is_some()) {
        return;
    }
    if map.waiting {
        map.stale = true;
        return;
    }
    (map.waiting, map.stale) = (true, false);
    map.foreseen += 1;
    let settings = map.edit.asked();
    let curves = if settings.scope == Scope::Sensitivity { map.curves() } else { Vec::new() };
    let question = Box::new(Question { settings, curves, device });
    out.push(Effect::Foresee { generation: map.foreseen, question });
}

/// The model was read, or not.
pub(super) fn studied(app: &mut App, result: Result<Arc<Study>, Failure>, out: &mut Vec<Effect>) {
    let filter = app.model.filter.clone();
    match result {
        Ok(study) => {
            app.model.map.known = Known::Ready(study);
            app.model.map.rebuild(&filter);
            foresee(app, out);
        }
        Err(failure) => {
            app.log.note(app.wall_ms, Weight::Error, failure.message.clone());
            app.model.map.known = Known::Failed(failure);
        }
    }
}

/// The answer to the last question.
pub(super) fn foreseen(app: &mut App, result: Result<Box<Forecast>, Failure>, out: &mut Vec<Effect>) {
    let map = &mut app.model.map;
    map.waiting = false;
    match result {
        Ok(forecast) => {
            map.forecast = Some(Arc::from(forecast));
            map.wrong = None;
        }
        Err(failure) => map.wrong = Some(failure.message),
    }
    if map.stale {
        foresee(app, out);
    }
}

/// What pruning runs told.
pub(super) fn ran(app: &mut App, runs: Vec<Ran>, out: &mut Vec<Effect>) {
    let filter = app.model.filter.clone();
    app.model.map.runs = runs;
    app.model.map.rebuild(&filter);
    if let Some(job) = app.model.map.wanted.take() {
        match app.model.map.show(&job, &filter) {
            true => foresee(app, out),
            false => app.say(Weight::Info, "this run has no report of a pruning step"),
        }
    }
}

/// Shows a run now or as soon as it is known what it told.
pub(super) fn want(app: &mut App, job: String, out: &mut Vec<Effect>) {
    let filter = app.model.filter.clone();
    let map = &mut app.model.map;
    if map.show(&job, &filter) {
        foresee(app, out);
    } else if map.asked_runs.1.contains(&job) {
        map.wanted = Some(job);
    } else {
        app.say(Weight::Info, "this run has no report of a pruning step");
    }
}

/// Cuts more or less of what the level means.
fn nudge(app: &mut App, more: bool, out: &mut Vec<Effect>) {
    let map = &mut app.model.map;
    let by = if more { STEP } else { -STEP };
    // Steps of five hundredths, also from a value between two of them.
    let moved = |ratio: f64| ((ratio / STEP + by / STEP).round() * STEP).clamp(0.0, 0.95);
    let Some((one, kind, units)) = map.candidate().map(|e| (e.id, e.kind, e.units)) else {
        if map.level == Level::Model {
            map.edit.set_overall(moved(map.edit.settings.ratio));
            foresee(app, out);
        }
        return;
    };
    match map.level {
        Level::Model => map.edit.set_overall(moved(map.edit.settings.ratio)),
        Level::Kind => {
            let now = map.edit.of_kind(kind).unwrap_or(0.0);
            map.edit.set_kind(kind, Some(moved(now)));
        }
        Level::Block => {
            for id in map.meant() {
                let units = map.entries.iter().find(|e| e.id == id).map_or(1, |e| e.units);
                let kept = map.planned(id).unwrap_or(units) as f64 / units.max(1) as f64;
                let now = map.edit.groups.get(&id).copied().unwrap_or(1.0 - kept);
                map.edit.protected.remove(&id);
                map.edit.set_group(id, Some(moved(now)));
            }
        }
        Level::Group => {
            let steps = map.forecast.as_ref().and_then(|f| f.steps.get(one).copied().flatten());
            let asked = map.edit.groups.get(&one).map(|r| ((1.0 - r) * units as f64).round() as usize);
            let kept = asked.or_else(|| map.planned(one)).unwrap_or(units);
            let next = match (steps, more) {
                (Some(steps), true) => steps.below(kept).unwrap_or(kept),
                (Some(steps), false) => steps.above(kept).unwrap_or(units),
                (None, _) => kept,
            };
            match (steps, map.edit.protected.remove(&one)) {
                (Some(_), _) => map.edit.set_group(one, Some(1.0 - next as f64 / units.max(1) as f64)),
                // It is free again; the answer tells which counts it may keep.
                (None, true) => {}
                // What stays by itself, such as the width of a residual stream, leaves only when asked to.
                (None, false) => {
                    let now = map.edit.groups.get(&one).copied().unwrap_or(0.0);
                    map.edit.set_group(one, Some(moved(now)));
                }
            }
        }
    }
    foresee(app, out);
}

/// A ratio was typed; none takes it away.
pub(super) fn set_ratio(app: &mut App, ratio: Option<f64>, out: &mut Vec<Effect>) {
    let map = &mut app.model.map;
    let kind = map.candidate().map(|e| e.kind);
    match (map.level, kind) {
        (Level::Model, _) => map.edit.set_overall(ratio.unwrap_or(0.0)),
        (Level::Kind, Some(kind)) => map.edit.set_kind(kind, ratio),
        _ => {
            for id in map.meant() {
                map.edit.protected.remove(&id);
                map.edit.set_group(id, ratio);
            }
        }
    }
    foresee(app, out);
}

/// Settings were edited. Another criterion that needs no data is looked at anew.
pub(super) fn set_settings(
    app: &mut App,
    settings: Settings,
    calibration: Option<String>,
    out: &mut Vec<Effect>,
) {
    app.plan.data.calibration = calibration;
    let map = &mut app.model.map;
    let other =
        !settings.criterion.needs_data() && map.study().is_some_and(|s| s.criterion != settings.criterion);
    map.edit.settings = settings;
    if other {
        (map.waiting, map.stale) = (false, false);
        map.foreseen += 1;
        look(app, out);
    } else {
        foresee(app, out);
    }
}

/// What the level means, in words.
fn meaning(app: &App) -> String {
    let map = &app.model.map;
    let one = map.candidate();
    match (map.level, one) {
        (Level::Model, _) | (_, None) => "the prunable parameters".into(),
        (Level::Kind, Some(e)) => format!("the units of all {}", e.kind),
        (Level::Block, Some(e)) => format!("the units of every group in {}", e.block),
        (Level::Group, Some(e)) => {
            let name = e.nodes.first().map_or(String::new(), |n| format!(" ({n})"));
            format!("the {} {} of group {}{name}", e.units, e.kind, e.id)
        }
    }
}

/// What the plan brings, for the question before a run.
fn told(app: &App) -> Vec<String> {
    let map = &app.model.map;
    let (Some(study), Some(f)) = (map.study(), &map.forecast) else { return Vec::new() };
    let part = |after: u64, before: u64| 100.0 * (after as f64 / before.max(1) as f64 - 1.0);
    let mut lines = vec![format!(
        "Predicted: {:+.1} % parameters, {:+.1} % multiply-accumulates.",
        part(f.parameters, study.parameters),
        part(f.macs, study.macs)
    )];
    if !f.exact {
        lines.push("Which groups shrink how far is settled by scores that the run takes from data.".into());
    }
    lines
}

/// The recipe of the plan, or what is missing for one.
pub(super) fn recipe(app: &App) -> Result<Recipe, String> {
    let map = &app.model.map;
    let (Some(path), Some(study), Some(f)) = (&app.model.path, map.study(), &map.forecast) else {
        return Err("the plan is not ready yet".into());
    };
    if !map.edit.cuts() {
        return Err("nothing is to be cut: + cuts more, b sets the overall ratio".into());
    }
    if let Some(wrong) = &map.wrong {
        return Err(wrong.clone());
    }
    let settings = &map.edit.settings;
    let mut data = app.plan.data.clone();
    if data.calibration.is_none() {
        data.calibration = data.train.clone();
    }
    let looks = match (settings.criterion.needs_data(), settings.scope, settings.repair) {
        (true, ..) => Some(format!("criterion {}", settings.criterion)),
        (_, Scope::Sensitivity, _) => Some("spread by sensitivity".into()),
        (_, _, Repair::None) => None,
        _ => Some("repair".into()),
    };
    if let (Some(what), None) = (looks, &data.calibration) {
        return Err(format!("{what} looks at calibration data: b names some"));
    }
    let gone = 100.0 * (1.0 - f.parameters as f64 / study.parameters.max(1) as f64);
    let name = format!("prune-{}-{:.0}", settings.criterion, gone);
    let mut recipe = Recipe::new(&name, &path.to_string_lossy());
    recipe.measure = true;
    recipe.data = data;
    recipe.goal = app.plan.goal.clone();
    let address = |id: usize| f.addresses.get(&id).cloned().unwrap_or_else(|| format!("group {id}"));
    recipe.steps = vec![map.edit.step(&address).map_err(|e| e.to_string())?];
    Ok(recipe)
}

/// Takes what is planned to the Plan tab as a proposal of its own.
pub(super) fn take_along(app: &mut App) {
    if !app.on_map() || !app.model.map.edit.cuts() {
        return;
    }
    let recipe = match recipe(app) {
        Ok(recipe) => recipe,
        Err(why) => return app.say(Weight::Warning, why),
    };
    let (Some(study), Some(f)) = (app.model.map.study(), &app.model.map.forecast) else { return };
    let latency = latency(app);
    let part = 1.0 - f.parameters as f64 / study.parameters.max(1) as f64;
    let mut risks =
        vec!["how much a cut costs without retraining depends on the model: measure it".to_string()];
    if !f.exact {
        risks.push("sizes are foretold with scores of the weights; the run takes its own from data".into());
    }
    let bytes = study.weight_bytes as f64;
    let proposal = Proposal {
        rank: 0,
        name: recipe.name.clone(),
        recipe,
        predicted_file_bytes: f.file_bytes,
        predicted_latency_ms: latency,
        predicted_speedup: f.roofline_ms.filter(|r| r.1 > 0.0).map(|(before, after)| before / after),
        expected_quality_drop: expected_loss(part),
        cost_seconds: 0.3 + bytes / 200e6,
        confidence: Confidence::Low,
        meets_goal: None,
        reasons: vec!["planned on the map of the Model tab".into()],
        risks,
    };
    app.plan.add(proposal);
    app.focus[Tab::Plan as usize] = 0;
}

/// Compares the model in front with the variant of the run that is shown; whether there is one.
pub(super) fn differ(app: &mut App, out: &mut Vec<Effect>) -> bool {
    let variant = app.model.map.run().and_then(|r| r.variant.clone());
    let Some((variant, _)) = variant.filter(|_| app.on_map()) else { return false };
    compare_with(app, variant, out);
    true
}
