//! What keys do on the Plan tab: the goal, asking for proposals, running one.

use super::super::action::Action;
use super::super::app::{App, Effect};
use super::super::compare;
use super::super::overlay::{Confirm, GoalForm, Overlay};
use super::super::plan::command;
use super::model::ask_for_model;
use crate::plan::Recipe;

/// Does an action of the Plan tab.
pub(super) fn act(app: &mut App, action: Action, out: &mut Vec<Effect>) {
    match action {
        Action::Run => confirm_run(app),
        Action::EditGoal => app.overlay = Some(Overlay::Goal(Box::new(GoalForm::new(app)))),
        Action::NextDevice => {
            app.plan.next_device();
            recommend(app, out);
        }
        Action::Refresh => recommend(app, out),
        Action::OpenModelPlan => ask_for_model(app, out),
        _ => {}
    }
}

pub(super) fn recommend(app: &mut App, out: &mut Vec<Effect>) {
    app.plan.measured_ms = compare::measured_ms(app);
    let (Some(opened), Some(path)) = (&app.model.opened, &app.model.path) else { return };
    app.plan.generation += 1;
    app.plan.loading = true;
    app.plan.failure = None;
    out.push(Effect::Recommend {
        generation: app.plan.generation,
        summary: opened.summary.clone(),
        path: path.clone(),
        goal: app.plan.goal.clone(),
        data: app.plan.data.clone(),
        measured_ms: app.plan.measured_ms,
    });
}

pub(super) fn confirm_run(app: &mut App) {
    let Some(proposal) = app.plan.selected() else { return };
    let (recipe, mut lines) = (proposal.recipe.clone(), Vec::new());
    if proposal.cost_seconds > 0.0 {
        lines.push(format!("about {}", crate::units::Span(proposal.cost_seconds)));
    }
    let key = app.keymap.key_name(Action::Export);
    confirm_recipe(app, &recipe, lines, format!("{key} on this tab writes the recipe to a file."));
}

/// Asks before a recipe runs; `about` says what is known of the run, `file` how to get the recipe.
pub(super) fn confirm_recipe(app: &mut App, recipe: &Recipe, about: Vec<String>, file: String) {
    let mut lines = vec![format!("{} on {}", recipe.name, recipe.model)];
    lines.extend(recipe.steps.iter().enumerate().map(|(i, s)| format!("{}. {}", i + 1, s.describe())));
    lines.extend(about);
    if recipe.measure {
        lines.push(match &recipe.data.eval {
            Some(data) => format!("Speed, memory and quality on {data} are measured at the end."),
            None => "Speed and memory are measured at the end; quality needs evaluation data.".into(),
        });
    }
    lines.push("The job goes on when the workbench is closed.".into());
    lines.push(file);
    app.overlay = Some(Overlay::Confirm(Box::new(Confirm {
        title: "Run".into(),
        lines,
        command: command(recipe),
        effect: Effect::Submit(Box::new(recipe.clone())),
        yes: "run",
        typed: None,
    })));
}
