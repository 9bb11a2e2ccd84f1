//! The frame: header, panes of the tab in front, footer, dialog. The state enters by shared reference;
//! cells leave. No I/O and no change of the state but for what the frame itself learnt (page sizes, hits).

mod chart;
mod compare;
mod dialog;
mod differ;
mod doc;
mod facts;
mod log;
mod map;
mod model;
mod plan;
mod quantised;
mod runs;
mod table;
mod weight;

use super::action::{Action, Spec, TABLE};
use super::app::{App, Hit, Tab};
use super::layout::{self, Class, Pane, Place};
use super::overlay::{Overlay, Purpose};
use super::paint::{Pen, Span, span, width_of};
use super::theme::Role;
use crate::monitor::Level;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

/// Draws a frame on the whole buffer.
pub fn draw(app: &App, buffer: &mut Buffer) {
    let area = buffer.area;
    app.hits.borrow_mut().clear();
    let mut pen = Pen::new(buffer, app.look);
    let class = layout::class(area.width, area.height);
    match class {
        Class::Nothing => return,
        Class::Card => return card(&mut pen),
        _ => {}
    }
    header(app, &mut pen.part(Rect { height: 1, ..area }));
    let body = Rect { y: area.y + 1, height: area.height - 2, ..area };
    let places =
        layout::places(app.tab, class, body, app.pane(), app.zoomed, (items(app), app.shows_quantised()));
    for place in places {
        pane(app, &mut pen, place, class);
    }
    footer(app, &mut pen.part(Rect { y: area.bottom() - 1, height: 1, ..area }));
    match &app.overlay {
        Some(Overlay::Filter(_)) | None => {}
        Some(overlay) => dialog::draw(app, overlay, &mut pen.part(body)),
    }
}

/// Lines that the main list of a tab needs; none where there is nothing to list.
fn items(app: &App) -> usize {
    if !app.has_content() {
        return 0;
    }
    let lines = match app.tab {
        Tab::Model => app.model.count(),
        Tab::Plan => app.plan.rows.len() + 1,
        Tab::Runs => app.runs.lines().0.len(),
        Tab::Compare => app.compare.rows.len() + 1,
        Tab::Log => app.log.count(),
    };
    lines.max(1)
}

fn card(pen: &mut Pen<'_>) {
    let (w, h) = (pen.width(), pen.height());
    let lines = [format!("Terminal {w}x{h} – need 60x15."), "q quit, jobs continue.".to_string()];
    let top = h.saturating_sub(lines.len()) / 2;
    for (i, line) in lines.iter().enumerate() {
        let x = w.saturating_sub(crate::text::columns(line)) / 2;
        pen.text(x, top + i, line, if i == 0 { Role::Title } else { Role::Text });
    }
}

fn header(app: &App, pen: &mut Pen<'_>) {
    let mut flags: Vec<Vec<Span>> = Vec::new();
    if let Some(frozen) = &app.frozen {
        flags.push(vec![span(format!("FROZEN +{}", frozen.waiting), Role::Warn)]);
    }
    if app.read_only {
        flags.push(vec![span("read-only", Role::Warn)]);
    }
    let (running, waiting, bad) = app.runs.counts();
    let mut jobs: Vec<Span> = Vec::new();
    for (n, word, role) in
        [(running, "running", Role::Info), (waiting, "waiting", Role::Text), (bad, "failed", Role::Bad)]
    {
        if n > 0 {
            if !jobs.is_empty() {
                jobs.push(span(" · ", Role::Dim));
            }
            jobs.push(span(format!("{n} {word}"), role));
        }
    }
    if !jobs.is_empty() {
        flags.push(jobs);
    }
    if app.look.ssh {
        flags.push(vec![span("ssh", Role::Dim)]);
    }
    if !app.machine.is_empty() && pen.width() >= 110 {
        flags.push(vec![span(crate::text::clean(&app.machine, 24), Role::Dim)]);
    }

    let compact = pen.width() < 80;
    let mut x = 1;
    if !compact {
        x += pen.text(x, 0, "tinsmith", Role::Title) + 2;
    }
    for (i, tab) in Tab::ALL.into_iter().enumerate() {
        let active = tab == app.tab;
        let (open, close) = if active { ("[", "]") } else { (" ", " ") };
        let start = x;
        let edge = if active { Role::Focus } else { Role::Dim };
        x += pen.text(x, 0, open, edge);
        x += pen.text(x, 0, &format!("{} ", i + 1), if active { Role::Focus } else { Role::Key });
        x += pen.text(x, 0, tab.title(), if active { Role::Title } else { Role::Text });
        x += pen.text(x, 0, close, edge);
        let area = pen.area();
        let hit = Rect { x: area.x + start as u16, y: area.y, width: (x - start) as u16, height: 1 };
        app.hits.borrow_mut().push((hit.intersection(area), Hit::Tab(tab)));
    }
    let mut end = pen.width().saturating_sub(1);
    for flag in flags {
        let need = width_of(&flag);
        if end < x + need + 2 {
            break;
        }
        end = pen.right(end, 0, &flag).saturating_sub(3);
    }
}

fn footer(app: &App, pen: &mut Pen<'_>) {
    if let Some(Overlay::Filter(input)) = &app.overlay {
        let mut x = 1 + pen.text(1, 0, "/ ", Role::Key);
        x += dialog::field(pen, x, 0, pen.width().saturating_sub(x + 34).max(8), input, true);
        let found = match app.tab {
            Tab::Runs => app.runs.shown.len(),
            Tab::Log => app.log.count(),
            _ => app.model.count(),
        };
        pen.spans(
            x + 2,
            0,
            usize::MAX,
            &[
                span(format!("{found} shown  "), Role::Dim),
                span("Enter", Role::Key),
                span(" keep  ", Role::Text),
                span("Esc", Role::Key),
                span(" clear", Role::Text),
            ],
        );
        return;
    }
    let toast = app.toast.as_ref().filter(|t| t.until_ms > app.now_ms);
    if let (Some(toast), None) = (toast, &app.overlay) {
        let (mark, role) = match toast.level {
            Level::Info => ("", Role::Info),
            Level::Warning => ("warning: ", Role::Warn),
            Level::Error => ("error: ", Role::Bad),
        };
        let x = 1 + pen.text(1, 0, mark, role);
        pen.text(x, 0, &toast.text, role);
        return;
    }
    let help = [span(app.keymap.key_name(Action::Help), Role::Key), span(" help", Role::Text)];
    let limit = pen.width().saturating_sub(width_of(&help) + 1);
    let mut x = 1;
    if app.overlay.is_none() {
        let mut actions: Vec<_> =
            TABLE.iter().filter(|s| s.rank > 0 && s.context.covers(app.tab) && offered(app, s)).collect();
        actions.sort_by_key(|s| s.rank);
        for spec in actions {
            let hint = [
                span(app.keymap.key_name(spec.action), Role::Key),
                span(format!(" {}", label(app, spec.action)), Role::Text),
            ];
            let need = width_of(&hint);
            if x + need + 2 > limit {
                break;
            }
            x += pen.spans(x, 0, need, &hint) + 2;
        }
        pen.spans(x, 0, usize::MAX, &help);
    } else {
        let hints: &[(&str, &str)] = match &app.overlay {
            Some(Overlay::Actions(_)) => &[("type", "filter"), ("Enter", "run"), ("Esc", "close")],
            Some(Overlay::Open(o)) if o.purpose == Purpose::Diff => {
                &[("Enter", "compare"), ("Tab", "complete"), ("Down", "list"), ("Esc", "close")]
            }
            Some(Overlay::Open(_)) => {
                &[("Enter", "open"), ("Tab", "complete"), ("Down", "list"), ("Esc", "close")]
            }
            Some(Overlay::Prompt(_)) => &[("Enter", "write"), ("Esc", "close")],
            Some(Overlay::Texts(_)) => &[("Enter", "other prompt"), ("Down", "scroll"), ("Esc", "close")],
            Some(Overlay::Ratio(_)) => &[("Enter", "set"), ("Esc", "close")],
            Some(Overlay::Cut(_)) => &[("Enter", "plan"), ("Tab", "next field"), ("Esc", "close")],
            Some(Overlay::Goal(_)) => &[("Enter", "plan"), ("Tab", "next field"), ("Esc", "close")],
            _ => &[("Enter", "yes"), ("Esc", "no")],
        };
        for (key, word) in hints {
            x += pen.spans(x, 0, usize::MAX, &[span(*key, Role::Key), span(format!(" {word}"), Role::Text)]);
            x += 2;
        }
    }
}

/// Whether the footer offers an action: it would do something, and no other key that is shown does it.
fn offered(app: &App, spec: &Spec) -> bool {
    (spec.enabled)(app)
        && match spec.action {
            Action::Back => app.can_go_back(),
            Action::Open => app.has_content(),
            // The map has keys of its own for the little room there is.
            Action::OpenModel | Action::ExpandAll | Action::ModelView => !app.on_map(),
            _ => true,
        }
}

/// The footer's word for an action as things stand.
fn label(app: &App, action: Action) -> &'static str {
    use super::model::View;
    use crate::jobs::Status;
    match action {
        Action::ModelView => match app.model.view {
            View::Layers => "groups",
            View::Groups => "operators",
            View::Operators => "tensors",
            View::Tensors if app.model.diff.is_some() => "diff",
            View::Tensors | View::Diff => "layers",
            View::Map => "groups",
        },
        Action::Map if app.model.view == View::Map => "layers",
        Action::Pause if app.runs.selected().is_some_and(|j| j.status() == Status::Paused) => "go on",
        Action::Scatter if app.pane() == Pane::Scatter => "table",
        Action::Scatter => "scatter",
        Action::Follow if app.log.follow => "stop following",
        Action::Wrap if app.log.wrap => "cut lines",
        _ => action.spec().label,
    }
}

fn pane(app: &App, pen: &mut Pen<'_>, place: Place, class: Class) {
    let focused = app.pane() == place.pane && app.overlay.is_none();
    let titles = match place.pane {
        Pane::Tree => model::tree_title(app),
        Pane::Layer => model::layer_title(app),
        Pane::Facts if app.on_map() => (vec![span("Prediction", Role::Title)], vec![]),
        Pane::Facts => facts::title(),
        Pane::Proposals => plan::title(app),
        Pane::Why => plan::why_title(app),
        Pane::Quantised => quantised::title(app),
        Pane::Jobs => runs::jobs_title(app),
        Pane::Charts => runs::charts_title(app),
        Pane::RunFacts => (vec![span("Facts", Role::Title)], vec![]),
        Pane::Tail => runs::tail_title(app),
        Pane::Table => compare::title(app),
        Pane::Scatter => compare::scatter_title(app),
        Pane::Variant => compare::variant_title(app),
        Pane::Lines => log::title(app),
    };
    let mut pen = pen.part(place.area);
    let inner = if class <= Class::Bare {
        let mut x = 1;
        x += pen.spans(x, 0, usize::MAX, &titles.0) + 2;
        let note = width_of(&titles.1);
        if x + note < pen.width() {
            let end = pen.width() - 1;
            pen.right(end, 0, &titles.1);
        }
        let area = pen.area();
        Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area }
    } else {
        pen.frame(&titles.0, &titles.1, focused, place.joined)
    };
    app.hits.borrow_mut().push((place.area, Hit::Pane(place.pane)));
    let mut pen = pen.part(inner);
    match place.pane {
        Pane::Tree => model::tree(app, &mut pen, focused),
        Pane::Layer => model::layer(app, &mut pen),
        Pane::Facts if app.on_map() => map::prediction(app, &mut pen),
        Pane::Facts => facts::facts(app, &mut pen),
        Pane::Proposals => plan::proposals(app, &mut pen, focused),
        Pane::Why => plan::why(app, &mut pen),
        Pane::Quantised => quantised::tables(app, &mut pen, focused),
        Pane::Jobs => runs::jobs(app, &mut pen, focused),
        Pane::Charts => runs::charts(app, &mut pen),
        Pane::RunFacts => runs::facts(app, &mut pen),
        Pane::Tail => runs::tail(app, &mut pen),
        Pane::Table => compare::table(app, &mut pen, focused),
        Pane::Scatter => compare::scatter(app, &mut pen),
        Pane::Variant => compare::variant(app, &mut pen),
        Pane::Lines => log::lines(app, &mut pen, focused),
    }
}

/// Rows of a list became clickable.
fn clickable(app: &App, pen: &Pen<'_>, y: usize, pane: Pane, row: usize) {
    let area = pen.area();
    let hit = Rect { y: area.y.saturating_add(y as u16), height: 1, ..area };
    app.hits.borrow_mut().push((hit.intersection(area), Hit::Row(pane, row)));
}

/// What an empty pane says: a sentence and what to press.
fn empty(pen: &mut Pen<'_>, sentence: &str, keys: &[(&str, &str)]) {
    let width = pen.width().saturating_sub(4).min(64);
    let lines = doc::wrap(sentence, width);
    let height = lines.len() + if keys.is_empty() { 0 } else { keys.len() + 1 };
    let top = pen.height().saturating_sub(height) / 3;
    let left = pen.width().saturating_sub(width) / 2;
    for (i, line) in lines.iter().enumerate() {
        pen.text(left, top + i, line, Role::Text);
    }
    for (i, (key, word)) in keys.iter().enumerate() {
        let y = top + lines.len() + 1 + i;
        let used = pen.text(left, y, key, Role::Key);
        pen.text(left + used.max(4) + 2, y, word, Role::Dim);
    }
}
