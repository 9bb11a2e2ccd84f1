//! The one place where the state changes: a message enters, effects leave. Pure.

use super::action::Action;
use super::app::{App, Control, Data, Effect, Frozen, Hit, Job, Msg, Tab};
use super::compare;
use super::key::Key;
use super::layout::Pane;
use super::list::Scroll;
use super::log;
use super::model::View;
use super::overlay::{Confirm, GoalForm, OpenModel, Outcome, Overlay, Prompt, Purpose, Side, Texts};
use super::paint::many;
use super::plan::{command, file_stem, quoted};
use crate::jobs::Status;
use crate::monitor::Level;
use crate::plan::Recommendation;
use crossterm::event::{KeyEvent, KeyEventKind, MouseButton, MouseEvent, MouseEventKind};
use std::path::PathBuf;
use tui_input::Input;

/// Folds a message into the state.
pub fn update(app: &mut App, msg: Msg) -> Vec<Effect> {
    let mut out = Vec::new();
    if app.toast.as_ref().is_some_and(|t| t.until_ms <= app.now_ms) {
        app.toast = None;
    }
    match msg {
        Msg::Key(key) if key.kind == KeyEventKind::Release => {}
        Msg::Key(key) => on_key(app, &key, &mut out),
        Msg::Paste(text) => match app.overlay.as_mut().and_then(|o| o.paste(&text)) {
            Some(outcome) => decide(app, outcome, &mut out),
            None => app.say(Level::Info, "paste ignored: nothing here takes text"),
        },
        Msg::Mouse(event) => on_mouse(app, event, &mut out),
        Msg::Resize(w, h) => app.size = (w, h),
        Msg::Tick => {}
        Msg::Suspend => out.push(Effect::Suspend),
        Msg::Data(data) => on_data(app, data, &mut out),
    }
    out
}

fn on_key(app: &mut App, event: &KeyEvent, out: &mut Vec<Effect>) {
    let key = Key::of(event);
    if app.keymap.keys(Action::QuitNow).contains(&key) {
        out.push(Effect::Quit { summary: false });
        return;
    }
    if app.keymap.keys(Action::Suspend).contains(&key) {
        out.push(Effect::Suspend);
        return;
    }
    let tab = app.tab;
    if let Some(overlay) = app.overlay.as_mut() {
        let outcome = overlay.key(event, tab);
        decide(app, outcome, out);
    } else if let Some(action) = app.keymap.action(key, tab) {
        perform(app, action, out);
    }
}

fn decide(app: &mut App, outcome: Outcome, out: &mut Vec<Effect>) {
    match outcome {
        Outcome::Stay => {}
        Outcome::Close => app.overlay = None,
        Outcome::Act(action) => {
            app.overlay = None;
            if let super::action::Context::On(tab) = action.spec().context
                && tab != app.tab
            {
                go_to(app, tab);
            }
            if (action.spec().enabled)(app) {
                perform(app, action, out);
            } else {
                app.say(Level::Info, format!("{}: nothing to do here now", action.spec().label));
            }
        }
        Outcome::Ask(effect) => {
            app.overlay = None;
            out.push(effect);
        }
        Outcome::Filter(text) => set_filter(app, text),
        Outcome::Unfilter => {
            app.overlay = None;
            set_filter(app, String::new());
        }
        Outcome::OpenModel(purpose, path) => {
            if path.ends_with(std::path::MAIN_SEPARATOR)
                && let Some(Overlay::Open(open)) = app.overlay.as_mut()
            {
                open.input = Input::new(path);
                open.in_list = false;
                find_models(app, out);
                return;
            }
            app.overlay = None;
            match purpose {
                Purpose::Open => open_model(app, PathBuf::from(path), out),
                Purpose::Diff => compare_with(app, PathBuf::from(path), out),
            }
        }
        Outcome::FindModels => find_models(app, out),
        Outcome::Prompt(text, models) => {
            app.overlay = Some(Overlay::Prompt(Box::new(Prompt { input: Input::new(text), models })));
        }
        Outcome::Say(prompt, models) => {
            app.says += 1;
            let side = |(name, path): &(String, PathBuf)| Side {
                name: name.clone(),
                path: path.clone(),
                text: String::new(),
                end: None,
            };
            app.overlay = Some(Overlay::Texts(Box::new(Texts {
                generation: app.says,
                prompt: prompt.clone(),
                sides: models.iter().map(side).collect(),
                scroll: 0,
            })));
            let models = models.into_iter().map(|(_, path)| path).collect();
            out.push(Effect::Say { generation: app.says, models, prompt });
        }
        Outcome::Goal(goal, data) => {
            app.overlay = None;
            app.plan.goal = goal;
            app.plan.data = data;
            recommend(app, out);
        }
    }
}

fn set_filter(app: &mut App, text: String) {
    match app.tab {
        Tab::Model => {
            app.model.filter = text;
            app.model.refresh();
        }
        Tab::Runs => {
            app.runs.filter = text;
            app.runs.refresh();
        }
        Tab::Log => {
            app.log.filter = text;
            relog(app);
        }
        Tab::Plan | Tab::Compare => {}
    }
}

fn relog(app: &mut App) {
    let lines = log::gather(app);
    app.log.set(lines);
}

fn find_models(app: &mut App, out: &mut Vec<Effect>) {
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
    out.push(Effect::Analyse { generation: app.model.generation, path });
    if app.tab != Tab::Plan {
        go_to(app, Tab::Model);
    }
}

/// The column of a text that is still looked at.
fn side_of(app: &mut App, generation: u64, side: usize) -> Option<&mut Side> {
    match &mut app.overlay {
        Some(Overlay::Texts(texts)) if texts.generation == generation => texts.sides.get_mut(side),
        _ => None,
    }
}

/// Model files that jobs made of the model in front, newest first.
fn variants(app: &App) -> Vec<String> {
    let Some(path) = &app.model.path else { return Vec::new() };
    let jobs = app.runs.jobs.iter().filter(|j| j.model == *path);
    let files = jobs.flat_map(|j| j.state.artifacts.iter().map(|a| j.dir.join(&a.path)));
    files.map(|f| f.to_string_lossy().into_owned()).filter(|f| f.ends_with(".onnx")).collect()
}

/// Asks what changed between the model in front and another one.
fn compare_with(app: &mut App, after: PathBuf, out: &mut Vec<Effect>) {
    let Some(before) = app.model.path.clone() else { return };
    app.model.diff_generation += 1;
    app.model.comparing = Some(after.clone());
    out.push(Effect::Differ { generation: app.model.diff_generation, before, after });
}

/// Asks for the elements of the selected weights that are not known yet.
fn weigh(app: &mut App, out: &mut Vec<Effect>) {
    let Some(path) = app.model.path.clone() else { return };
    for name in app.model.selected_weights() {
        if app.model.ask_for(&name) {
            out.push(Effect::Weigh { generation: app.model.generation, path: path.clone(), name });
        }
    }
}

fn recommend(app: &mut App, out: &mut Vec<Effect>) {
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

fn go_to(app: &mut App, tab: Tab) {
    app.tab = tab;
    app.zoomed = false;
    if tab == Tab::Log {
        relog(app);
    }
}

fn focus(app: &mut App, pane: Pane) {
    if let Some(at) = Pane::of(app.tab).iter().position(|p| *p == pane) {
        app.focus[app.tab as usize] = at;
    }
}

fn cycle_pane(app: &mut App, by: isize) {
    let len = Pane::of(app.tab).len() as isize;
    let at = &mut app.focus[app.tab as usize];
    *at = (*at as isize + by).rem_euclid(len) as usize;
}

/// Does an action on the tab in front.
pub fn perform(app: &mut App, action: Action, out: &mut Vec<Effect>) {
    if !(action.spec().enabled)(app) {
        return;
    }
    match action {
        Action::Help => app.overlay = Some(Overlay::help()),
        Action::Palette => app.overlay = Some(Overlay::palette()),
        Action::TabModel => go_to(app, Tab::Model),
        Action::TabPlan => go_to(app, Tab::Plan),
        Action::TabRuns => go_to(app, Tab::Runs),
        Action::TabCompare => go_to(app, Tab::Compare),
        Action::TabLog => go_to(app, Tab::Log),
        Action::NextPane => cycle_pane(app, 1),
        Action::PreviousPane => cycle_pane(app, -1),
        Action::Up => move_by(app, Move::Step(-1)),
        Action::Down => move_by(app, Move::Step(1)),
        Action::PageUp => move_by(app, Move::Page(-1)),
        Action::PageDown => move_by(app, Move::Page(1)),
        Action::First => move_by(app, Move::First),
        Action::Last => move_by(app, Move::Last),
        Action::Left => sideways(app, -1),
        Action::Right => sideways(app, 1),
        Action::Open => open(app, out),
        Action::Back => {
            back(app);
        }
        Action::Filter => app.overlay = Some(Overlay::Filter(Input::new(app.filter().to_string()))),
        Action::NextMatch => next_match(app, 1),
        Action::PreviousMatch => next_match(app, -1),
        Action::Sort => sort(app, false),
        Action::ReverseSort => sort(app, true),
        Action::Mark => {
            if let Some(id) = app.runs.selected().map(|j| j.id.clone()) {
                if !app.runs.marks.remove(&id) {
                    app.runs.marks.insert(id);
                }
                compare_again(app, false, out);
            }
        }
        Action::Zoom => app.zoomed = !app.zoomed,
        Action::Copy => {
            if let Some(text) = app.copy_text() {
                app.say(Level::Info, format!("copied: {text}"));
                out.push(Effect::Copy(text));
            }
        }
        Action::Export => export(app, out),
        Action::Freeze => freeze(app, out),
        Action::Mouse => {
            app.mouse = !app.mouse;
            out.push(Effect::Mouse(app.mouse));
            app.say(Level::Info, if app.mouse { "mouse on" } else { "mouse off: select text as usual" });
        }
        Action::Quit => quit(app, out),
        Action::QuitWithSummary => out.push(Effect::Quit { summary: true }),
        Action::QuitNow => out.push(Effect::Quit { summary: false }),
        Action::Redraw => out.push(Effect::Redraw),
        Action::Suspend => out.push(Effect::Suspend),

        Action::OpenModel | Action::OpenModelPlan => {
            app.overlay = Some(Overlay::Open(OpenModel::new(Purpose::Open, Vec::new())));
            find_models(app, out);
        }
        Action::DiffModel => {
            let variants = variants(app);
            app.overlay = Some(Overlay::Open(OpenModel::new(Purpose::Diff, variants)));
            find_models(app, out);
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
            };
            app.model.details = Scroll::default();
            focus(app, Pane::Tree);
        }
        Action::PlanForModel => {
            go_to(app, Tab::Plan);
            if app.plan.ranked.is_none() && !app.plan.loading {
                recommend(app, out);
            }
        }

        Action::Run => confirm_run(app),
        Action::Say => {
            let baseline = app.compare.measurements.get(app.compare.baseline_index());
            let selected = app.compare.selected().map(|r| &r.measurement);
            let mut models: Vec<(String, PathBuf)> = Vec::new();
            for m in [baseline, selected].into_iter().flatten() {
                let model = (m.variant.clone(), PathBuf::from(&m.path));
                if !models.contains(&model) {
                    models.push(model);
                }
            }
            let input = Input::default();
            app.overlay = Some(Overlay::Prompt(Box::new(Prompt { input, models })));
        }
        Action::EditGoal => app.overlay = Some(Overlay::Goal(Box::new(GoalForm::new(app)))),
        Action::NextDevice => {
            app.plan.next_device();
            recommend(app, out);
        }
        Action::Refresh => recommend(app, out),

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

        Action::Baseline => {
            if let Some(row) = app.compare.selected() {
                let m = &row.measurement;
                app.compare.baseline = Some((m.variant.clone(), m.model_sha256.clone()));
                compare_again(app, true, out);
            }
        }
        Action::Differences => app.compare.only_differences = !app.compare.only_differences,
        Action::Axes => app.compare.axis = app.compare.axis.next(),
        Action::Scatter => {
            let to = if app.pane() == Pane::Scatter { Pane::Table } else { Pane::Scatter };
            focus(app, to);
        }

        Action::Wrap => app.log.wrap = !app.log.wrap,
        Action::Follow => {
            app.log.follow = !app.log.follow;
            relog(app);
        }
        Action::Level => {
            app.log.next_level();
            relog(app);
        }
        Action::Source => {
            app.log.source = app.log.source.next();
            relog(app);
        }
    }
}

enum Move {
    Step(isize),
    Page(isize),
    First,
    Last,
}

fn move_by(app: &mut App, by: Move) {
    let pane = app.pane();
    let len = match pane {
        Pane::Tree => app.model.count(),
        Pane::Proposals => app.plan.rows.len(),
        Pane::Jobs => app.runs.shown.len(),
        Pane::Table | Pane::Scatter => app.compare.rows.len(),
        Pane::Lines => app.log.count(),
        _ => 0,
    };
    let list = match pane {
        Pane::Tree => app.model.list(),
        Pane::Proposals => &mut app.plan.list,
        Pane::Jobs | Pane::Charts => &mut app.runs.list,
        Pane::Table | Pane::Scatter => &mut app.compare.list,
        Pane::Lines => &mut app.log.list,
        Pane::Layer => return scroll(&mut app.model.details, by),
        Pane::Facts => return scroll(&mut app.model.facts, by),
        Pane::Why => return scroll(&mut app.plan.why, by),
        Pane::RunFacts => return scroll(&mut app.runs.facts, by),
        Pane::Tail => return scroll(&mut app.runs.tail, by),
        Pane::Variant => return scroll(&mut app.compare.details, by),
    };
    let len = if pane == Pane::Charts { app.runs.shown.len() } else { len };
    match by {
        Move::Step(n) => list.step(n, len),
        Move::Page(n) => list.page(n, len),
        Move::First => list.selected = 0,
        Move::Last => list.selected = len.saturating_sub(1),
    }
    match pane {
        Pane::Tree => app.model.details = Scroll::default(),
        Pane::Proposals => app.plan.why = Scroll::default(),
        Pane::Jobs | Pane::Charts => {
            app.runs.remember();
            if app.log.source == log::Source::Run {
                relog(app);
            }
        }
        Pane::Table | Pane::Scatter => app.compare.details = Scroll::default(),
        Pane::Lines => app.log.follow = app.log.list.selected + 1 >= len,
        _ => {}
    }
}

fn scroll(scroll: &mut Scroll, by: Move) {
    match by {
        Move::Step(n) => scroll.step(n),
        Move::Page(n) => scroll.page(n),
        Move::First => scroll.top = 0,
        Move::Last => scroll.end(),
    }
}

fn sideways(app: &mut App, by: isize) {
    match app.pane() {
        Pane::Tree if by > 0 => {
            if !app.model.expand(Some(true)) && app.model.selected_layer().is_some() {
                focus(app, Pane::Layer);
            }
        }
        Pane::Tree => {
            if !app.model.expand(Some(false)) {
                app.model.to_parent();
            }
        }
        Pane::Layer | Pane::Facts if by < 0 => focus(app, Pane::Tree),
        Pane::Charts => {
            if let Some(cursor) = app.runs.cursor {
                app.runs.cursor = Some((cursor as i64 + by as i64 * 10).clamp(0, 1000) as u32);
            } else if by < 0 {
                focus(app, Pane::Jobs);
            }
        }
        _ => {}
    }
}

fn open(app: &mut App, out: &mut Vec<Effect>) {
    match app.pane() {
        Pane::Tree if app.model.opened.is_none() => perform(app, Action::OpenModel, out),
        Pane::Tree => {
            if !app.model.expand(None) {
                weigh(app, out);
                focus(app, Pane::Layer);
            }
        }
        Pane::Proposals => focus(app, Pane::Why),
        Pane::Jobs => focus(app, Pane::Charts),
        Pane::Charts => focus(app, Pane::RunFacts),
        Pane::RunFacts => focus(app, Pane::Tail),
        Pane::Table | Pane::Scatter => focus(app, Pane::Variant),
        _ => {}
    }
}

/// One step back; whether there was one.
fn back(app: &mut App) -> bool {
    if app.toast.take().is_some() && app.zoomed {
        return true;
    }
    if app.zoomed {
        app.zoomed = false;
    } else if app.is_filtered() {
        set_filter(app, String::new());
    } else if app.tab == Tab::Runs && app.runs.cursor.take().is_some() {
    } else if app.focus[app.tab as usize] != 0 {
        app.focus[app.tab as usize] = 0;
    } else if app.tab == Tab::Model && app.model.view == View::Diff {
        app.model.view = View::Layers;
    } else if app.tab == Tab::Runs && !app.runs.marks.is_empty() {
        app.runs.marks.clear();
        app.runs.overlay = false;
    } else {
        return false;
    }
    true
}

fn quit(app: &mut App, out: &mut Vec<Effect>) {
    if back(app) {
        return;
    }
    let (running, waiting, _) = app.runs.counts();
    if running + waiting > 0 && !app.told_jobs_go_on {
        app.told_jobs_go_on = true;
        let jobs = if running + waiting == 1 {
            "1 job goes on".into()
        } else {
            format!("{} jobs go on", running + waiting)
        };
        app.overlay = Some(Overlay::Confirm(Box::new(Confirm {
            title: "Quit".into(),
            lines: vec![format!("{jobs} without the workbench."), "Open it again to see them.".into()],
            command: "tinsmith jobs list".into(),
            effect: Effect::Quit { summary: false },
            yes: "quit",
            typed: None,
        })));
        return;
    }
    out.push(Effect::Quit { summary: false });
}

fn next_match(app: &mut App, by: isize) {
    match app.tab {
        Tab::Model => app.model.step_match(by),
        _ => move_by(app, Move::Step(by)),
    }
}

fn sort(app: &mut App, reverse: bool) {
    macro_rules! turn {
        ($tab:expr) => {{
            if reverse {
                $tab.reverse = !$tab.reverse;
            } else {
                $tab.order = $tab.order.next();
            }
            $tab.refresh();
            format!("sorted by {}{}", $tab.order.word(), if $tab.reverse { ", reversed" } else { "" })
        }};
    }
    let said = match app.tab {
        Tab::Model => turn!(app.model),
        Tab::Plan => turn!(app.plan),
        Tab::Runs => turn!(app.runs),
        Tab::Compare => turn!(app.compare),
        Tab::Log => return,
    };
    app.toast = Some(super::app::Toast { text: said, level: Level::Info, until_ms: app.now_ms + 2000 });
}

fn confirm_run(app: &mut App) {
    let Some(proposal) = app.plan.selected() else { return };
    let recipe = &proposal.recipe;
    let mut lines = vec![format!("{} on {}", proposal.name, recipe.model)];
    lines.extend(recipe.steps.iter().enumerate().map(|(i, s)| format!("{}. {}", i + 1, s.describe())));
    if proposal.cost_seconds > 0.0 {
        lines.push(format!("about {}", crate::units::Span(proposal.cost_seconds)));
    }
    if recipe.measure {
        lines.push(match &recipe.data.eval {
            Some(data) => format!("Speed, memory and quality on {data} are measured at the end."),
            None => "Speed and memory are measured at the end; quality needs evaluation data.".into(),
        });
    }
    lines.push("The job goes on when the workbench is closed.".into());
    let key = app.keymap.key_name(Action::Export);
    lines.push(format!("{key} on this tab writes the recipe to a file."));
    app.overlay = Some(Overlay::Confirm(Box::new(Confirm {
        title: "Run".into(),
        lines,
        command: command(recipe),
        effect: Effect::Submit(Box::new(recipe.clone())),
        yes: "run",
        typed: None,
    })));
}

fn confirm_control(app: &mut App, control: Control) {
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

fn freeze(app: &mut App, out: &mut Vec<Effect>) {
    match app.frozen.take() {
        None => app.frozen = Some(Frozen::default()),
        Some(frozen) => {
            for data in frozen.held {
                on_data(app, data, out);
            }
        }
    }
}

fn export(app: &mut App, out: &mut Vec<Effect>) {
    let model = app.model.path.as_ref().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
    let json = |value: Result<String, serde_json::Error>| value.unwrap_or_default();
    let (name, text, command) = match app.tab {
        Tab::Model => {
            let Some(opened) = &app.model.opened else { return };
            if let (View::Diff, Some(diff)) = (app.model.view, &app.model.diff) {
                let name = format!("{}.diff.json", file_stem(&diff.after));
                let text = json(serde_json::to_string_pretty(&**diff));
                let after = app.model.diff_with.to_string_lossy();
                let command = format!("tinsmith diff {} {} --format json", quoted(&model), quoted(&after));
                out.push(Effect::Export { name, text, command });
                return;
            }
            (
                format!("{}.summary.json", file_stem(&opened.summary.name)),
                json(serde_json::to_string_pretty(&*opened.summary)),
                format!("tinsmith inspect {} --format json", quoted(&model)),
            )
        }
        Tab::Plan => {
            let Some(proposal) = app.plan.selected() else { return };
            let text = match proposal.recipe.to_toml() {
                Ok(text) => text,
                Err(e) => return app.say(Level::Error, e.to_string()),
            };
            (format!("{}.toml", file_stem(&proposal.recipe.name)), text, command(&proposal.recipe))
        }
        Tab::Runs => {
            let Some(job) = app.runs.selected() else { return };
            (
                format!("{}.job.json", file_stem(&job.id)),
                json(serde_json::to_string_pretty(&*job.state)),
                format!("tinsmith jobs show {} --format json", quoted(&job.id)),
            )
        }
        Tab::Compare => {
            let Some(table) = &app.compare.comparison else { return };
            let paths: Vec<String> = table.rows.iter().map(|r| quoted(&r.measurement.path)).collect();
            (
                "comparison.json".to_string(),
                json(serde_json::to_string_pretty(table)),
                format!("tinsmith compare {} --format json", paths.join(" ")),
            )
        }
        Tab::Log => {
            let lines: Vec<String> = app
                .log
                .lines()
                .iter()
                .map(|l| {
                    let message = crate::text::clean(&l.message, usize::MAX);
                    format!("{} {:?} {} {message}\n", log::clock(l.wall_ms), l.level, l.source)
                })
                .collect();
            ("workbench.log".to_string(), lines.concat(), "tinsmith jobs log JOB".to_string())
        }
    };
    out.push(Effect::Export { name, text, command });
}

/// Asks for the comparison again where what is to be compared has changed.
fn compare_again(app: &mut App, always: bool, out: &mut Vec<Effect>) {
    let (source, measurements) = compare::gather(app);
    let tab = &mut app.compare;
    tab.source = source;
    if measurements.is_empty() {
        tab.measurements.clear();
        tab.comparison = None;
        tab.rows.clear();
        tab.loading = false;
        return;
    }
    if !always && tab.measurements == measurements {
        return;
    }
    tab.measurements = measurements;
    tab.generation += 1;
    tab.loading = true;
    out.push(Effect::Compare {
        generation: tab.generation,
        measurements: tab.measurements.clone(),
        baseline: tab.baseline_index(),
    });
}

fn on_data(app: &mut App, data: Data, out: &mut Vec<Effect>) {
    if let Some(frozen) = &mut app.frozen
        && matches!(data, Data::Jobs(_))
    {
        frozen.waiting += 1;
        frozen.held.clear();
        frozen.held.push(data);
        return;
    }
    match data {
        Data::Analysed { generation, path, result } if generation == app.model.generation => match result {
            Ok(opened) => {
                let layers = opened.summary.layers.len();
                let line = format!("opened {} with {}", path.display(), many(layers, "layer"));
                app.log.note(app.wall_ms, Level::Info, line);
                for warning in opened.summary.warnings.iter().take(20) {
                    app.log.note(app.wall_ms, Level::Warning, format!("{}: {warning}", opened.summary.name));
                }
                app.model.set(path, opened);
                app.plan.clear();
                recommend(app, out);
                compare_again(app, false, out);
            }
            Err(failure) => {
                app.model.loading = None;
                app.say(Level::Error, failure.message.clone());
                app.model.failure = Some(failure);
            }
        },
        Data::Weighed { generation, name, result } if generation == app.model.generation => {
            if let Err(failure) = &result {
                app.log.note(app.wall_ms, Level::Error, failure.message.clone());
            }
            app.model.weighed(name, result);
        }
        Data::Differed { generation, after, result } if generation == app.model.diff_generation => {
            app.model.comparing = None;
            match result {
                Ok(diff) => {
                    let c = diff.layer_counts;
                    let (changed, w) = (c.changed + c.removed + c.added, diff.weight_counts.changed);
                    let line =
                        format!("{}: {changed} of the layers and {w} of the weights differ", after.display());
                    app.say(Level::Info, line);
                    app.model.set_diff(after, *diff);
                    go_to(app, Tab::Model);
                    focus(app, Pane::Tree);
                }
                Err(failure) => app.say(Level::Error, failure.message),
            }
        }
        Data::Devices(devices) => app.plan.devices = devices,
        Data::Proposed { generation, result } if generation == app.plan.generation => match result {
            Ok(ranked) => {
                let Recommendation { proposals, refused, .. } = &ranked.recommendation;
                let (n, no) = (proposals.len(), refused.len());
                let line = format!("ranked {} for {}; refused {no}", many(n, "recipe"), ranked.device.name);
                app.log.note(app.wall_ms, Level::Info, line);
                app.plan.set(*ranked);
            }
            Err(failure) => {
                app.plan.loading = false;
                app.plan.clear();
                app.log.note(app.wall_ms, Level::Error, failure.message.clone());
                app.plan.failure = Some(failure);
            }
        },
        Data::Jobs(jobs) => {
            announce(app, &jobs);
            app.runs.set(jobs);
            relog(app);
            compare_again(app, false, out);
            // Predictions start from what was measured as soon as it is known.
            if app.has_model() && compare::measured_ms(app) != app.plan.measured_ms {
                recommend(app, out);
            }
        }
        Data::Compared { generation, result } if generation == app.compare.generation => match result {
            Ok(table) => app.compare.set(table),
            Err(failure) => {
                app.compare.loading = false;
                app.log.note(app.wall_ms, Level::Error, failure.message.clone());
                app.compare.failure = Some(failure);
            }
        },
        Data::Models { generation, paths } => {
            if let Some(Overlay::Open(open)) = app.overlay.as_mut()
                && open.generation == generation
            {
                let own: Vec<String> = match open.input.value().is_empty() {
                    true => open.variants.clone(),
                    false => Vec::new(),
                };
                open.paths =
                    own.iter().cloned().chain(paths.into_iter().filter(|p| !own.contains(p))).collect();
                open.list.clamp(open.paths.len());
            }
        }
        Data::Submitted(Ok(id)) => {
            go_to(app, Tab::Runs);
            app.focus[Tab::Runs as usize] = 0;
            app.runs.want(&id);
            app.say(Level::Info, format!("job {id} is queued; it goes on when the workbench is closed"));
        }
        Data::Submitted(Err(failure)) | Data::Done(Err(failure)) => app.say(Level::Error, failure.message),
        Data::Done(Ok(text)) => app.say(Level::Info, text),
        Data::ReadOnly(read_only) => app.read_only = read_only,
        // Answers to requests that newer ones replaced.
        Data::Wrote { generation, side, text } => {
            if let Some(side) = side_of(app, generation, side) {
                side.text.push_str(&text);
            }
        }
        Data::Said { generation, side, result } => {
            if let Some(side) = side_of(app, generation, side) {
                side.end = Some(result);
            }
        }
        Data::Analysed { .. }
        | Data::Proposed { .. }
        | Data::Compared { .. }
        | Data::Weighed { .. }
        | Data::Differed { .. } => {}
    }
}

/// Says what became of jobs that ended since the last look.
fn announce(app: &mut App, jobs: &[Job]) {
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

fn on_mouse(app: &mut App, event: MouseEvent, out: &mut Vec<Effect>) {
    if app.overlay.is_some() {
        return;
    }
    let hit = app
        .hits
        .borrow()
        .iter()
        .rev()
        .find(|(area, _)| area.contains((event.column, event.row).into()))
        .map(|(_, hit)| *hit);
    match (event.kind, hit) {
        (MouseEventKind::Down(MouseButton::Left), Some(Hit::Tab(tab))) => go_to(app, tab),
        (MouseEventKind::Down(MouseButton::Left), Some(Hit::Pane(pane))) => focus(app, pane),
        (MouseEventKind::Down(MouseButton::Left), Some(Hit::Row(pane, row))) => {
            focus(app, pane);
            let again = match pane {
                Pane::Tree => std::mem::replace(&mut app.model.list().selected, row) == row,
                Pane::Proposals => std::mem::replace(&mut app.plan.list.selected, row) == row,
                Pane::Jobs => std::mem::replace(&mut app.runs.list.selected, row) == row,
                Pane::Table => std::mem::replace(&mut app.compare.list.selected, row) == row,
                Pane::Lines => std::mem::replace(&mut app.log.list.selected, row) == row,
                _ => false,
            };
            move_by(app, Move::Step(0));
            if again && pane == Pane::Tree {
                open(app, out);
            }
        }
        (
            MouseEventKind::ScrollDown | MouseEventKind::ScrollUp,
            Some(Hit::Pane(pane) | Hit::Row(pane, _)),
        ) => {
            focus(app, pane);
            move_by(app, Move::Step(if event.kind == MouseEventKind::ScrollDown { 3 } else { -3 }));
        }
        _ => {}
    }
}
