//! What keys do on the Model tab: opening, views, weights, comparing with another model.

use super::super::action::Action;
use super::super::app::{App, Effect, Tab};
use super::super::layout::Pane;
use super::super::list::Scroll;
use super::super::model::View;
use super::super::overlay::{OpenModel, Overlay, Purpose};
use super::{focus, go_to, map, plan};
use std::path::PathBuf;

/// Does an action of the Model tab.
pub(super) fn act(app: &mut App, action: Action, out: &mut Vec<Effect>) {
    match action {
        Action::OpenModel => ask_for_model(app, out),
        Action::DiffModel => {
            if !map::differ(app, out) {
                let variants = variants(app);
                app.overlay = Some(Overlay::Open(OpenModel::new(Purpose::Diff, variants)));
                find_models(app, out);
            }
        }
        Action::Weights => {
            weigh(app, out);
            focus(app, Pane::Layer);
        }
        Action::ExpandAll => app.model.expand_all(),
        Action::ModelView => {
            app.model.view = match app.model.view {
                View::Layers => View::Groups,
                View::Groups => View::Operators,
                View::Operators => View::Tensors,
                View::Tensors if app.model.diff.is_some() => View::Diff,
                View::Tensors | View::Diff => View::Layers,
                View::Map => View::Groups,
            };
            app.model.details = Scroll::default();
            focus(app, Pane::Tree);
        }
        Action::PlanForModel => {
            map::take_along(app);
            go_to(app, Tab::Plan);
            if app.plan.ranked.is_none() && !app.plan.loading {
                plan::recommend(app, out);
            }
        }
        _ => map::act(app, action, out),
    }
}

/// Asks which model to open.
pub(super) fn ask_for_model(app: &mut App, out: &mut Vec<Effect>) {
    app.overlay = Some(Overlay::Open(OpenModel::new(Purpose::Open, Vec::new())));
    find_models(app, out);
}

pub(super) fn find_models(app: &mut App, out: &mut Vec<Effect>) {
    if let Some(Overlay::Open(open)) = app.overlay.as_mut() {
        open.generation += 1;
        out.push(Effect::FindModels { generation: open.generation, typed: open.input.value().to_string() });
    }
}

/// Puts a model in front: its analysis is asked for, and proposals once it is there.
pub fn open_model(app: &mut App, path: PathBuf, out: &mut Vec<Effect>) {
    app.model.generation += 1;
    app.model.loading = Some(path.clone());
    app.model.failure = None;
    app.model.then_differ = None;
    app.model.map.wanted = None;
    out.push(Effect::Analyse { generation: app.model.generation, path });
    if app.tab != Tab::Plan {
        go_to(app, Tab::Model);
    }
}

/// Model files that jobs made of the model in front, newest first.
pub(super) fn variants(app: &App) -> Vec<String> {
    let Some(path) = &app.model.path else { return Vec::new() };
    let jobs = app.runs.jobs.iter().filter(|j| j.model == *path);
    let files = jobs.flat_map(|j| j.state.artifacts.iter().map(|a| j.dir.join(&a.path)));
    files.map(|f| f.to_string_lossy().into_owned()).filter(|f| f.ends_with(".onnx")).collect()
}

/// Asks what changed between the model in front and another one.
pub(super) fn compare_with(app: &mut App, after: PathBuf, out: &mut Vec<Effect>) {
    let Some(before) = app.model.path.clone() else { return };
    app.model.diff_generation += 1;
    app.model.comparing = Some(after.clone());
    out.push(Effect::Differ { generation: app.model.diff_generation, before, after });
}

/// Asks for the elements of the selected weights that are not known yet.
pub(super) fn weigh(app: &mut App, out: &mut Vec<Effect>) {
    let Some(path) = app.model.path.clone() else { return };
    for name in app.model.selected_weights() {
        if app.model.ask_for(&name) {
            out.push(Effect::Weigh { generation: app.model.generation, path: path.clone(), name });
        }
    }
}
