//! What keys do with the layers of a quantise step: looking through its tables, keeping a layer in float.

use super::super::app::{App, Control, Effect, Job, Tab};
use super::super::layout::Pane;
use super::super::model::View;
use super::super::paint::many;
use super::super::quantised::{Pending, Sheets, changes};
use super::compare::compare_again;
use crate::jobs::Status;
use crate::monitor::Level;
use crate::plan::{Confidence, Proposal, Recipe};
use std::path::PathBuf;

/// How the tables in front are looked at.
pub(super) fn sheets(app: &mut App) -> &mut Sheets {
    if app.tab == Tab::Plan { &mut app.plan.sheets } else { &mut app.runs.sheets }
}

/// Goes to the next or the previous table; whether there is one.
pub(super) fn turn(app: &mut App, by: isize) -> bool {
    let Some(run) = app.quantised().cloned() else { return false };
    sheets(app).turn(&run, by)
}

/// A layer that a recipe could keep in float.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::tui) struct InFront {
    layer: String,
    model: PathBuf,
    recipe: Recipe,
    /// The run whose result is there already.
    former: Option<String>,
}

/// The selected layer with the recipe that quantises it: of the run or the recipe in front, on the Model tab of the
/// newest run on the model, else the selected recipe of the Plan tab.
pub(in crate::tui) fn layer_in_front(app: &App) -> Option<InFront> {
    let job = |id: &str| app.runs.jobs.iter().find(|j| j.id == id);
    let (layer, model, recipe, former) = match app.tab {
        Tab::Runs | Tab::Plan if app.pane() == Pane::Quantised => {
            let run = app.quantised()?;
            let (layer, true) = app.sheets().selected(run)? else { return None };
            let recipe = if app.tab == Tab::Plan { &app.plan.selected()?.recipe } else { &run.recipe };
            (layer, job(&run.job)?.model.clone(), recipe, Some(run.job.clone()))
        }
        Tab::Model if app.model.view == View::Layers => {
            let (path, layer) = (app.model.path.clone()?, app.model.selected_layer()?);
            match app.told.newest(&app.runs.jobs, &path, None) {
                Some(run) if run.layers.iter().any(|l| l.name == layer.name) => {
                    (layer.name.as_str(), path, &run.recipe, Some(run.job.clone()))
                }
                Some(_) => return None,
                None => {
                    let recipe = &app.plan.selected()?.recipe;
                    recipe.quantises_at().filter(|_| !layer.weights.is_empty())?;
                    (layer.name.as_str(), path, recipe, None)
                }
            }
        }
        _ => return None,
    };
    // What was changed in this session and has not come to an end yet is changed further.
    let pending = app.told.pending.as_ref().filter(|p| !p.told && p.model == model);
    let pending = pending.filter(|p| p.recipe.alike_but_in_float(recipe));
    let (recipe, former) = match pending {
        Some(p) => (&p.recipe, p.former.clone().or(former)),
        None => (recipe, former),
    };
    Some(InFront { layer: layer.to_string(), model, recipe: recipe.clone(), former })
}

/// Keeps the selected layer in float, or lets it be quantised again, and runs the recipe again.
pub(super) fn keep_float(app: &mut App, out: &mut Vec<Effect>) {
    let Some(InFront { layer, model, recipe, former }) = layer_in_front(app) else { return };
    let (mut recipe, kept) = match recipe.toggled(&layer) {
        Ok(toggled) => toggled,
        Err(e) => return app.say(Level::Warning, e.to_string()),
    };
    recipe.model = model.to_string_lossy().into_owned();
    // The job that runs what this changes further would end with what nobody asks for any more.
    let before = app.told.pending.take().filter(|p| !p.told).and_then(|p| p.job);
    let running =
        |id: &String| app.runs.jobs.iter().find(|j| j.id == *id).is_none_or(|j| !j.status().is_final());
    if let Some(id) = before.filter(running) {
        out.push(Effect::Control { id, control: Control::Cancel });
    }
    let n = recipe.in_float().len();
    let what = if kept { "stays in float" } else { "is quantised again" };
    let from = recipe.quantises_at().map_or(String::new(), |at| match at {
        0 => String::new(),
        at => format!(" from step {} on", at + 1),
    });
    let in_all = if kept && n == 1 { String::new() } else { format!(" ({} in float)", many(n, "layer")) };
    app.say(Level::Info, format!("{layer} {what}{in_all}: {} runs{from}", recipe.name));
    if app.model.path.as_ref() == Some(&model) {
        propose(app, &recipe, former.as_deref());
    }
    app.told.pending = Some(Pending { model, recipe: recipe.clone(), former, job: None, told: false });
    out.push(Effect::Submit(Box::new(recipe)));
}

/// Puts the changed recipe before the others on the Plan tab.
fn propose(app: &mut App, recipe: &Recipe, former: Option<&str>) {
    let like = |p: &&Proposal| p.recipe.alike_but_in_float(recipe);
    let known = app.plan.proposals().iter().find(like).cloned();
    let made = former.and_then(|id| app.runs.jobs.iter().find(|j| j.id == id));
    let bytes = made.and_then(|j| j.state.artifacts.last()).map_or(0, |a| a.bytes);
    let proposal = Proposal {
        rank: 0,
        name: recipe.name.clone(),
        recipe: recipe.clone(),
        confidence: Confidence::Low,
        reasons: vec![format!("layers in float: {}", recipe.in_float().join(", "))],
        risks: vec!["figures are those of the recipe without them".into()],
        ..known.unwrap_or_else(|| Proposal {
            rank: 0,
            name: String::new(),
            recipe: recipe.clone(),
            predicted_file_bytes: bytes,
            predicted_latency_ms: None,
            predicted_speedup: None,
            expected_quality_drop: (0.0, 0.0),
            cost_seconds: 0.0,
            confidence: Confidence::Low,
            meets_goal: None,
            reasons: vec![],
            risks: vec![],
        })
    };
    app.plan.remove(|p| p.recipe.alike_but_in_float(recipe));
    if recipe.in_float().is_empty() {
        return;
    }
    let sheets = std::mem::take(&mut app.plan.sheets);
    app.plan.add(proposal);
    app.plan.sheets = sheets;
}

/// A job was accepted; whether it is the one that runs a changed recipe.
pub(super) fn queued(app: &mut App, id: &str) -> bool {
    let Some(pending) = app.told.pending.as_mut().filter(|p| p.job.is_none()) else { return false };
    pending.job = Some(id.to_string());
    app.log.note(app.wall_ms, Level::Info, format!("job {id} is queued: {}", pending.recipe.name));
    true
}

/// A job was not accepted.
pub(super) fn refused(app: &mut App) {
    if app.told.pending.as_ref().is_some_and(|p| p.job.is_none()) {
        app.told.pending = None;
    }
}

/// Looks at what jobs told since the last look: reads reports that are new, and compares a changed recipe's result
/// with the one before it once it is there.
pub(super) fn follow(app: &mut App, out: &mut Vec<Effect>) {
    let jobs = app.told.to_read(&app.runs.jobs);
    if !jobs.is_empty() {
        out.push(Effect::ReadQuantised(jobs));
    }
    let Some(pending) = app.told.pending.as_mut().filter(|p| !p.told) else { return };
    let find = |id: &Option<String>| -> Option<&Job> {
        let id = id.as_ref()?;
        app.runs.jobs.iter().find(|j| j.id == *id)
    };
    let Some(job) = find(&pending.job).filter(|j| j.status().is_final()) else { return };
    pending.told = true;
    let (id, status, former) = (job.id.clone(), job.status(), pending.former.clone());
    let Some(former) = find(&former).filter(|_| status == Status::Finished) else { return };
    let told: Vec<String> = changes((former, None), (job, None)).iter().map(ToString::to_string).collect();
    let text = format!("{} against {}: {}", job.title(), former.title(), told.join(", "));
    let former = former.id.clone();
    app.say(Level::Info, text);
    // The Compare tab shows both.
    let measured = |id: &str| app.runs.jobs.iter().any(|j| j.id == id && !j.state.measurements.is_empty());
    if measured(&id) && measured(&former) {
        app.runs.marks = [id.clone(), former.clone()].into();
        compare_again(app, false, out);
    }
    if app.runs.selected_id.as_ref() == Some(&former) {
        app.runs.want(&id);
    }
}
