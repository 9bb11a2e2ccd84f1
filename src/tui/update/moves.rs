//! Moving: through lists and texts, between panes, one step back, sorted another way.

use super::super::action::Action;
use super::super::app::{App, Effect, Tab};
use super::super::layout::Pane;
use super::super::list::Scroll;
use super::super::log::Source;
use super::super::model::View;
use super::super::overlay::{Confirm, Overlay};
use super::super::quantised::Sheets;
use super::log::relog;
use super::{focus, map, model, perform, quantised, set_filter};
use crate::monitor::Level;

pub(super) enum Move {
    Step(isize),
    Page(isize),
    First,
    Last,
}

pub(super) fn move_by(app: &mut App, by: Move) {
    let pane = app.pane();
    let len = match pane {
        Pane::Tree => app.model.count(),
        Pane::Proposals => app.plan.rows.len(),
        Pane::Jobs => app.runs.shown.len(),
        Pane::Table | Pane::Scatter => app.compare.rows.len(),
        Pane::Lines => app.log.count(),
        Pane::Quantised => app.quantised().map_or(0, |run| run.rows(app.sheets().front(run))),
        _ => 0,
    };
    let len = if pane == Pane::Charts { app.runs.shown.len() } else { len };
    let list = match pane {
        Pane::Tree => app.model.list(),
        Pane::Proposals => &mut app.plan.list,
        Pane::Jobs | Pane::Charts => &mut app.runs.list,
        Pane::Table | Pane::Scatter => &mut app.compare.list,
        Pane::Lines => &mut app.log.list,
        Pane::Layer => return scroll(&mut app.model.details, by),
        Pane::Facts => return scroll(&mut app.model.facts, by),
        Pane::Why => return scroll(&mut app.plan.why, by),
        Pane::Quantised if len == 0 => return scroll(&mut quantised::sheets(app).notes, by),
        Pane::Quantised => &mut quantised::sheets(app).list,
        Pane::RunFacts => return scroll(&mut app.runs.facts, by),
        Pane::Tail => return scroll(&mut app.runs.tail, by),
        Pane::Variant => return scroll(&mut app.compare.details, by),
    };
    match by {
        Move::Step(n) => list.step(n, len),
        Move::Page(n) => list.page(n, len),
        Move::First => list.selected = 0,
        Move::Last => list.selected = len.saturating_sub(1),
    }
    match pane {
        Pane::Tree => app.model.details = Scroll::default(),
        Pane::Proposals => {
            app.plan.why = Scroll::default();
            app.plan.sheets = Sheets { sheet: app.plan.sheets.sheet, ..Sheets::default() };
        }
        Pane::Jobs | Pane::Charts => {
            app.runs.remember();
            if app.log.source == Source::Run {
                relog(app);
            }
        }
        Pane::Table | Pane::Scatter => app.compare.details = Scroll::default(),
        Pane::Lines => app.log.follow = app.log.list.selected + 1 >= len,
        _ => {}
    }
}

pub(super) fn scroll(scroll: &mut Scroll, by: Move) {
    match by {
        Move::Step(n) => scroll.step(n),
        Move::Page(n) => scroll.page(n),
        Move::First => scroll.top = 0,
        Move::Last => scroll.end(),
    }
}

pub(super) fn sideways(app: &mut App, by: isize) {
    match app.pane() {
        Pane::Tree if app.on_map() => {
            if app.model.map.sideways(by) {
                app.model.details = Scroll::default();
            }
        }
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
        Pane::Quantised => {
            if !quantised::turn(app, by) && by < 0 {
                app.focus[app.tab as usize] = 0;
            }
        }
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

pub(super) fn open(app: &mut App, out: &mut Vec<Effect>) {
    match app.pane() {
        Pane::Tree if app.model.opened.is_none() => perform(app, Action::OpenModel, out),
        Pane::Tree if app.on_map() => focus(app, Pane::Layer),
        Pane::Tree => {
            if !app.model.expand(None) {
                model::weigh(app, out);
                focus(app, Pane::Layer);
            }
        }
        Pane::Proposals => focus(app, Pane::Why),
        Pane::Jobs if app.shows_quantised() => focus(app, Pane::Quantised),
        Pane::Jobs => focus(app, Pane::Charts),
        Pane::Charts if app.quantised().is_some() => focus(app, Pane::Quantised),
        Pane::Charts => focus(app, Pane::RunFacts),
        Pane::Quantised if app.tab == Tab::Runs => focus(app, Pane::RunFacts),
        Pane::RunFacts => focus(app, Pane::Tail),
        Pane::Table | Pane::Scatter => focus(app, Pane::Variant),
        _ => {}
    }
}

/// One step back; whether there was one.
pub(super) fn back(app: &mut App, out: &mut Vec<Effect>) -> bool {
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
        app.model.view = app.model.before_diff;
        app.model.refresh();
    } else if app.tab == Tab::Model && app.model.view == View::Map {
        map::leave(app, out);
    } else if app.tab == Tab::Runs && !app.runs.marks.is_empty() {
        app.runs.marks.clear();
        app.runs.overlay = false;
    } else {
        return false;
    }
    true
}

pub(super) fn quit(app: &mut App, out: &mut Vec<Effect>) {
    if back(app, out) {
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

pub(super) fn next_match(app: &mut App, by: isize) {
    match app.tab {
        Tab::Model if !app.on_map() => app.model.step_match(by),
        _ => move_by(app, Move::Step(by)),
    }
}

pub(super) fn sort(app: &mut App, reverse: bool) {
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
        Tab::Model if app.on_map() => {
            let filter = app.model.filter.clone();
            let map = &mut app.model.map;
            if reverse {
                map.reverse = !map.reverse;
            } else {
                map.order = map.order.next();
            }
            map.place(&filter);
            format!("sorted by {}{}", map.order.word(), if map.reverse { ", reversed" } else { "" })
        }
        Tab::Model => turn!(app.model),
        Tab::Plan => turn!(app.plan),
        Tab::Runs => turn!(app.runs),
        Tab::Compare => turn!(app.compare),
        Tab::Log => return,
    };
    app.toast =
        Some(super::super::app::Toast { text: said, level: Level::Info, until_ms: app.now_ms + 2000 });
}
