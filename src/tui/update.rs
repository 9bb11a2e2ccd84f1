//! The one place where the state changes: a message enters, effects leave. Pure.

mod compare;
mod data;
mod export;
mod log;
mod map;
mod model;
mod mouse;
mod moves;
mod plan;
mod quantised;
mod runs;

use super::action::{Action, Context};
use super::app::{App, Effect, Frozen, Msg, Tab};
use super::key::Key;
use super::layout::Pane;
use super::overlay::{Outcome, Overlay, Prompt, Purpose, Side, Texts};
use crate::monitor::Level;
use crossterm::event::{KeyEvent, KeyEventKind};
use data::on_data;
use log::relog;
use model::{compare_with, find_models};
use moves::{Move, back, move_by, next_match, open, quit, sideways, sort};
use std::path::PathBuf;
use tui_input::Input;

pub use model::open_model;
pub(super) use quantised::layer_in_front;

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
        Msg::Mouse(event) => mouse::on_mouse(app, event, &mut out),
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
            if let Context::On(tab) = action.spec().context
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
        Outcome::Ratio(ratio) => {
            app.overlay = None;
            map::set_ratio(app, ratio, out);
        }
        Outcome::Cut(settings, calibration) => {
            app.overlay = None;
            map::set_settings(app, *settings, calibration, out);
        }
        Outcome::Goal(goal, data) => {
            app.overlay = None;
            app.plan.goal = goal;
            app.plan.data = data;
            plan::recommend(app, out);
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
    let panes = Pane::of(app.tab);
    let nothing = app.quantised().is_none();
    let at = &mut app.focus[app.tab as usize];
    let step = |at: usize| (at as isize + by).rem_euclid(panes.len() as isize) as usize;
    *at = step(*at);
    if panes[*at] == Pane::Quantised && nothing {
        *at = step(*at);
    }
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
            back(app, out);
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
                compare::compare_again(app, false, out);
            }
        }
        Action::Zoom => app.zoomed = !app.zoomed,
        Action::Copy => {
            if let Some(text) = app.copy_text() {
                app.say(Level::Info, format!("copied: {text}"));
                out.push(Effect::Copy(text));
            }
        }
        Action::Export => export::export(app, out),
        Action::KeepFloat => quantised::keep_float(app, out),
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

        _ => match action.spec().context {
            Context::Everywhere => {}
            Context::On(Tab::Model) => model::act(app, action, out),
            Context::On(Tab::Plan) => plan::act(app, action, out),
            Context::On(Tab::Runs) => runs::act(app, action, out),
            Context::On(Tab::Compare) => compare::act(app, action, out),
            Context::On(Tab::Log) => log::act(app, action, out),
        },
    }
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
