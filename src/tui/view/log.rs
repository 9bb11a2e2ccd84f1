//! Drawing of the Log tab.

use super::super::app::App;
use super::super::layout::Pane;
use super::super::log::{Entry, Source, clock};
use super::super::paint::{Pen, Span, many, span};
use super::super::theme::Role;
use super::doc::wrap;
use super::model::mark_row;
use crate::monitor::Level;

pub(super) fn title(app: &App) -> (Vec<Span>, Vec<Span>) {
    let log = &app.log;
    let mut title = vec![span("Log", Role::Title), span(format!(" · {}", log.source.word()), Role::Dim)];
    if log.source == Source::Run
        && let Some(job) = app.runs.selected()
    {
        title.push(span(format!(" {}", crate::text::clean(job.title(), 32)), Role::Accent));
    }
    if !log.filter.is_empty() {
        title.push(span(format!(" /{}", crate::text::clean(&log.filter, 20)), Role::Key));
    }
    let level = match log.level {
        Level::Info => "all levels",
        Level::Warning => "warnings and errors",
        Level::Error => "errors",
    };
    let follow = if log.follow { "following" } else { "not following" };
    (title, vec![span(format!("{} · {level} · {follow}", many(log.count(), "line")), Role::Dim)])
}

/// Mark and role of a level.
pub(super) fn level(level: Level) -> (&'static str, Role) {
    match level {
        Level::Info => ("info ", Role::Dim),
        Level::Warning => ("warn ", Role::Warn),
        Level::Error => ("error", Role::Bad),
    }
}

pub(super) fn lines(app: &App, pen: &mut Pen<'_>, focused: bool) {
    let entries = app.log.lines();
    if entries.is_empty() {
        let sentence = if app.log.filter.is_empty() {
            "Nothing was logged yet. Lines of jobs and of the workbench appear here."
        } else {
            "No line matches the filter."
        };
        return super::empty(pen, sentence, &[]);
    }
    let (width, height) = (pen.width(), pen.height());
    let names = entries.iter().map(|e| crate::text::columns(&crate::text::clean(&e.source, 18))).max();
    let names = names.unwrap_or(0).min(if width < 100 { 12 } else { 18 });
    let indent = 1 + 8 + 2 + 5 + 2 + names + 2;
    let room = width.saturating_sub(indent + 1).max(10);
    if !app.log.wrap {
        let window = app.log.list.window(entries.len(), height);
        for (y, at) in window.enumerate() {
            head(pen, y, names, &entries[at]);
            let (_, role) = level(entries[at].level);
            let role = if entries[at].level == Level::Info { Role::Text } else { role };
            pen.spans(indent, y, room, &[span(entries[at].message.clone(), role)]);
            if at == app.log.list.selected {
                mark_row(pen, y, focused && !app.log.follow);
            }
            super::clickable(app, pen, y, Pane::Lines, at);
        }
        return;
    }
    // Wrapped: fill from the selected line upwards, so that it is always wholly shown.
    let selected = app.log.list.selected.min(entries.len() - 1);
    let mut blocks: Vec<(usize, Vec<String>)> = Vec::new();
    let mut used = 0;
    for at in (0..=selected).rev() {
        let block = wrap(&entries[at].message, room);
        used += block.len();
        blocks.push((at, block));
        if used >= height {
            break;
        }
    }
    let mut y = height as isize - used as isize;
    if y > 0 {
        y = 0;
    }
    blocks.reverse();
    let mut next = selected + 1;
    while used < height && next < entries.len() {
        let block = wrap(&entries[next].message, room);
        used += block.len();
        blocks.push((next, block));
        next += 1;
    }
    for (at, block) in blocks {
        for (i, part) in block.iter().enumerate() {
            if y >= 0 {
                let row = y as usize;
                if i == 0 {
                    head(pen, row, names, &entries[at]);
                }
                let (_, role) = level(entries[at].level);
                let role = if entries[at].level == Level::Info { Role::Text } else { role };
                pen.spans(indent, row, room, &[span(part.clone(), role)]);
                if at == selected {
                    mark_row(pen, row, focused && !app.log.follow);
                }
                super::clickable(app, pen, row, Pane::Lines, at);
            }
            y += 1;
        }
    }
}

fn head(pen: &mut Pen<'_>, y: usize, names: usize, entry: &Entry) {
    let (word, role) = level(entry.level);
    pen.spans(1, y, 8, &[span(clock(entry.wall_ms), Role::Dim)]);
    pen.spans(11, y, 5, &[span(word, role)]);
    pen.spans(18, y, names, &[span(entry.source.clone(), Role::Accent)]);
}
