//! What keys do on the Runs tab: control of jobs, curves; and what became of jobs.

use super::super::action::Action;
use super::super::app::{App, Control, Effect, Job, Tab};
use super::super::layout::Pane;
use super::super::overlay::{Confirm, Overlay};
use super::super::plan::quoted;
use super::{compare_with, focus, go_to, map, open_model};
use crate::jobs::Status;
use crate::monitor::Level;
use tui_input::Input;

/// Does an action of the Runs tab.
pub(super) fn act(app: &mut App, action: Action, out: &mut Vec<Effect>) {
    match action {
        Action::Cancel => confirm_control(app, Control::Cancel),
        Action::Delete => confirm_control(app, Control::Delete),
        Action::Pause => {
            if let Some(job) = app.runs.selected() {
                let control = if job.status() == Status::Paused { Control::Resume } else { Control::Pause };
                out.push(Effect::Control { id: job.id.clone(), control });
            }
        }
        Action::Resume => {
            if let Some(job) = app.runs.selected() {
                out.push(Effect::Control { id: job.id.clone(), control: Control::Resume });
            }
        }
        Action::DiffRun => {
            let Some((model, Some(variant))) = app.runs.selected().map(|j| (j.model.clone(), j.variant()))
            else {
                return;
            };
            if app.model.path.as_ref() == Some(&model) {
                compare_with(app, variant, out);
            } else {
                open_model(app, model, out);
                app.model.then_differ = Some(variant);
            }
        }
        Action::MapRun => {
            let Some((id, model)) = app.runs.selected().map(|j| (j.id.clone(), j.model.clone())) else {
                return;
            };
            if app.model.path.as_ref() == Some(&model) {
                go_to(app, Tab::Model);
                map::enter(app, out);
                map::want(app, id, out);
            } else {
                open_model(app, model, out);
                app.model.map.wanted = Some(id);
            }
        }
        Action::Overlay => {
            app.runs.overlay = !app.runs.overlay;
            focus(app, Pane::Charts);
        }
        Action::Scale => app.runs.scale = app.runs.scale.next(),
        Action::ZoomIn => app.runs.zoom = (app.runs.zoom + 1).min(16),
        Action::ZoomOut => app.runs.zoom = app.runs.zoom.saturating_sub(1),
        Action::ZoomReset => app.runs.zoom = 0,
        Action::Cursor => {
            app.runs.cursor = if app.runs.cursor.is_some() { None } else { Some(1000) };
            focus(app, Pane::Charts);
        }
        _ => {}
    }
}

pub(super) fn confirm_control(app: &mut App, control: Control) {
    let Some(job) = app.runs.selected() else { return };
    let Job { id, .. } = job;
    let title = job.title().to_string();
    let (heading, line, yes, typed) = match control {
        Control::Delete => (
            "Delete",
            format!("Removes {title} with its variants, checkpoints and log from the disk."),
            "delete",
            Some((title.clone(), Input::default())),
        ),
        _ => ("Cancel", format!("Stops {title}; its last checkpoint stays."), "cancel the job", None),
    };
    app.overlay = Some(Overlay::Confirm(Box::new(Confirm {
        title: heading.into(),
        lines: vec![line],
        command: format!("tinsmith jobs {} {}", control.word(), quoted(id)),
        effect: Effect::Control { id: id.clone(), control },
        yes,
        typed,
    })));
}

/// Says what became of jobs that ended since the last look.
pub(super) fn announce(app: &mut App, jobs: &[Job]) {
    let mut said = None;
    for job in jobs {
        let before = app.runs.jobs.iter().find(|j| j.id == job.id).map(Job::status);
        let now = job.status();
        if before.is_some_and(|b| b != now && !b.is_final()) && now.is_final() {
            let level = if now == Status::Finished { Level::Info } else { Level::Warning };
            said = Some((level, format!("{}: {}", job.title(), now.word())));
        }
    }
    if let Some((level, text)) = said {
        app.say(level, text);
    }
}
