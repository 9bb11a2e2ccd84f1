//! Drawing of the map of what pruning can take: blocks are rows, kinds are columns, each cell a group
//! with its units, a strip of its scores, and what the plan or a run leaves of it.

mod detail;

pub(super) use detail::{detail, detail_title, prediction};

use super::super::action::Action;
use super::super::app::App;
use super::super::layout::Pane;
use super::super::map::{Entry, Known, PruneMap, Ran, latency};
use super::super::paint::{Pen, Span, many, span, width_of};
use super::super::theme::Role;
use super::doc::wrap;
use super::table::{Column, Grid, cell, flexible, left, right};
use crate::passes::prune::{Repair, Scope};
use crate::units::{Bytes, Count, Millis};

/// Lines of the prediction above the rows.
const HEAD: usize = 3;
/// Least columns of a cell.
const CELL: usize = 24;
/// Least columns of what can never shrink.
const PINNED: usize = 12;
/// Most columns of a strip.
const STRIP: usize = 40;
/// Part of a group that the sensitivity is told for.
const QUARTER: f64 = 0.25;

/// What the scores are, and where they come from.
fn source(map: &PruneMap) -> Option<String> {
    match (map.run(), map.study()) {
        (Some(run), _) => {
            Some(format!("{} of run {}", run.settings.criterion, crate::text::clean(&run.name, 24)))
        }
        (None, Some(study)) if study.refusal.is_none() => Some(format!("{} of the weights", study.criterion)),
        _ => None,
    }
}

/// The note on the title line.
pub(super) fn note(app: &App) -> Vec<Span> {
    let map = &app.model.map;
    if let Known::Reading(_, done, total) = &map.known {
        let part = total.filter(|t| *t > 0).map_or(String::new(), |t| format!(" {} %", 100 * done / t));
        return vec![span(format!("reading weights…{part}"), Role::Info)];
    }
    let mut out = Vec::new();
    if map.waiting {
        out.push(span("predicting… · ", Role::Info));
    }
    if let Some(source) = source(map) {
        out.push(span(format!("importance: {source}"), Role::Dim));
    }
    out
}

pub(super) fn map(app: &App, pen: &mut Pen<'_>, focused: bool) {
    let map = &app.model.map;
    if map.entries.is_empty() {
        return empty(app, pen);
    }
    let refusal = map.study().and_then(|s| s.refusal.as_deref());
    let top = match refusal {
        Some(why) => {
            let lines = wrap(&format!("Nothing can be pruned: {why}"), pen.width().saturating_sub(2));
            let most = (pen.height() / 3).max(1);
            for (y, line) in lines.iter().take(most).enumerate() {
                pen.text(1, y, line, Role::Warn);
            }
            lines.len().min(most)
        }
        None => {
            prospect(app, pen);
            HEAD
        }
    };
    if map.places.lines.is_empty() {
        pen.text(1, top + 1, "No block matches the filter.", Role::Dim);
        return;
    }
    match refusal {
        Some(why) if map.run().is_none() => reasons(app, pen, top, why, focused),
        _ => cells(app, pen, top, focused),
    }
}

fn empty(app: &App, pen: &mut Pen<'_>) {
    let map_key = app.keymap.key_name(Action::Map);
    match &app.model.map.known {
        Known::Reading(phase, done, total) => {
            let of = match total {
                Some(total) => format!(" {done} of {total}"),
                None => String::new(),
            };
            let text = format!("Reading the model: {phase}{of}. All weights are looked at once.");
            super::empty(pen, &text, &[("Esc", "stop")]);
            if let Some(total) = total.filter(|t| *t > 0) {
                let width = pen.width().saturating_sub(4).min(64);
                let x = pen.width().saturating_sub(width) / 2;
                let y = pen.height() / 3 + 4;
                pen.bar(x, y, width, *done as f64 / total as f64, Role::Bar);
            }
        }
        Known::Failed(failure) => {
            super::empty(pen, &failure.message, &[("Esc", "layers"), (&map_key, "back")])
        }
        Known::Ready(_) => {
            super::empty(
                pen,
                "No weights of this model are coupled: nothing can be pruned by structure.",
                &[],
            );
        }
        Known::Nothing => super::empty(pen, "Nobody has looked at the weights yet.", &[(&map_key, "back")]),
    }
}

/// `-28 %`, or nothing where nothing changes.
fn change(before: u64, after: u64) -> String {
    if before == 0 || before == after {
        return String::new();
    }
    format!(" {:+.1} %", 100.0 * (after as f64 / before as f64 - 1.0))
}

/// The lines above the rows: figures, latency, and what is planned.
fn prospect(app: &App, pen: &mut Pen<'_>) {
    let map = &app.model.map;
    let room = pen.width().saturating_sub(2);
    let Some(study) = map.study() else {
        pen.text(1, 0, "A plan can be made once the weights are read.", Role::Dim);
        return;
    };
    if let Some(wrong) = &map.wrong {
        for (y, line) in wrap(wrong, room).iter().take(2).enumerate() {
            pen.text(1, y, line, Role::Bad);
        }
    } else {
        let f = map.forecast.as_ref().filter(|_| map.edit.cuts());
        // Without a plan, what the run that is shown brought.
        let ran = map.run().filter(|_| !map.edit.cuts());
        let told = |fact: &str| ran.and_then(|r| r.report.facts.get(fact)).map(|v| *v as u64);
        let before = |fact: &str, plain: u64| told(fact).unwrap_or(plain);
        let (parameters, macs) = (told("parameters_after"), told("macs_after"));
        let file = ran.and_then(|r| r.variant.as_ref()).map(|(_, bytes)| *bytes);
        let parameters_before = before("parameters_before", study.parameters);
        let macs_before = before("macs_before", study.macs);
        let figures: [(&str, u64, Option<u64>, fn(u64) -> String); 3] = [
            ("params", parameters_before, f.map(|f| f.parameters).or(parameters), |n| Count(n).to_string()),
            ("MACs", macs_before, f.map(|f| f.macs).or(macs), |n| Count(n).to_string()),
            ("file", study.file_bytes, f.map(|f| f.file_bytes).or(file), |n| Bytes(n).to_string()),
        ];
        let line = |brief: bool| -> Vec<Span> {
            let mut out = Vec::new();
            for (label, before, after, text) in &figures {
                if !out.is_empty() {
                    out.push(span(if brief { "  " } else { "   " }, Role::Text));
                }
                out.push(span(format!("{label} "), Role::Dim));
                let after = after.unwrap_or(*before);
                if after != *before && !brief {
                    out.push(span(format!("{} → ", text(*before)), Role::Text));
                }
                out.push(span(text(after), Role::Strong));
                out.push(span(change(*before, after), if after < *before { Role::Good } else { Role::Warn }));
            }
            out
        };
        let whole = line(false);
        pen.spans(1, 0, room, &if width_of(&whole) <= room { whole } else { line(true) });
        pen.spans(1, 1, room, &time(app));
    }
    let ran = map.run().filter(|_| !map.edit.cuts());
    let s = ran.map_or(&map.edit.settings, |r| &r.settings);
    let mut plan = vec![
        span(if ran.is_some() { "ran " } else { "cut " }, Role::Dim),
        span(format!("{} %", (s.ratio * 1e6).round() / 1e4), Role::Strong),
        span(format!(" {} · {}", s.criterion, scope(s.scope)), Role::Text),
    ];
    if s.repair != Repair::None {
        plan.push(span(format!(" · repair {}", repair(s.repair)), Role::Text));
    }
    let own = map.edit.groups.len();
    if own > 0 {
        plan.push(span(format!(" · {}", many(own, "own ratio")), Role::Text));
    }
    if !map.edit.protected.is_empty() {
        plan.push(span(format!(" · {} protected", map.edit.protected.len()), Role::Text));
    }
    if map.edit.cuts() && map.forecast.as_ref().is_some_and(|f| !f.exact) {
        plan.push(span(" · settled in the run", Role::Warn));
    }
    let keys = [app.keymap.key_name(Action::CutMore), app.keymap.key_name(Action::CutLess)].join(" ");
    let level = [span(format!("{keys} "), Role::Key), span(map.level.word(), Role::Accent)];
    let end = pen.width().saturating_sub(1);
    let start = if map.can_plan() { pen.right(end, 2, &level) } else { end };
    pen.spans(1, 2, start.saturating_sub(3), &plan);
}

fn scope(scope: Scope) -> &'static str {
    match scope {
        Scope::Layer => "evenly",
        Scope::Global => "by score",
        Scope::Sensitivity => "by sensitivity",
    }
}

fn repair(repair: Repair) -> &'static str {
    match repair {
        Repair::None => "none",
        Repair::Bias => "bias",
        Repair::Ridge => "ridge",
    }
}

/// Whether the latency of the model as it is was measured where the plan is for.
fn measured(app: &App) -> bool {
    let base = app.plan.ranked.as_ref().and_then(|r| r.recommendation.original_latency_ms);
    base.is_some_and(|(_, low, high)| low == high)
}

/// The line on latency: what it is and what it would be, and how that is known.
fn time(app: &App) -> Vec<Span> {
    let mut out = vec![span("latency ", Role::Dim)];
    let base = app.plan.ranked.as_ref().and_then(|r| r.recommendation.original_latency_ms);
    let Some((middle, ..)) = base else {
        out.push(span("not measured, and not enough is known to predict it", Role::Dim));
        return out;
    };
    match latency(app) {
        Some((after, ..)) => {
            if app.model.map.edit.cuts() {
                out.push(span(format!("{} → ", Millis(middle)), Role::Text));
            }
            out.push(span(Millis(after).to_string(), Role::Strong));
            if after < middle {
                out.push(span(format!(" {:+.1} %", 100.0 * (after / middle - 1.0)), Role::Good));
            }
            let how = match measured(app) {
                true => " · measured, scaled node by node",
                false => " · not measured: roofline, factor 2",
            };
            out.push(span(how, Role::Dim));
        }
        None => {
            let word = if measured(app) { "measured" } else { "not measured: roofline, factor 2" };
            out.push(span(Millis(middle).to_string(), Role::Strong));
            out.push(span(format!(" · {word}"), Role::Dim));
        }
    }
    out
}

const REASONS: [Column; 5] = [
    right("group", 5, 0),
    left("kind", 8, 1),
    right("units", 6, 0),
    left("block", 18, 2),
    flexible("why it stays", 20),
];

/// One line for each group of a model of which nothing can leave.
fn reasons(app: &App, pen: &mut Pen<'_>, top: usize, why: &str, focused: bool) {
    let map = &app.model.map;
    let grid = Grid::new(&REASONS, pen.width().saturating_sub(2));
    grid.header(pen, top, &REASONS, None);
    let rows = pen.height().saturating_sub(top + 1);
    for (y, at) in map.lines.window(map.places.lines.len(), rows).enumerate() {
        let y = y + top + 1;
        let line = &map.places.lines[at];
        let Some(entry) = line.cells.iter().flatten().next().and_then(|i| map.entries.get(*i)) else {
            continue;
        };
        grid.row(pen, y, &REASONS, |column| match column {
            0 => cell(entry.id.to_string(), Role::Strong),
            1 => cell(entry.kind.word(), Role::Accent),
            2 => cell(entry.units.to_string(), Role::Text),
            3 => cell(map.places.blocks.get(line.block).cloned().unwrap_or_default(), Role::Dim),
            _ => cell(entry.never.clone().unwrap_or_else(|| why.to_string()), Role::Text),
        });
        if at == map.lines.selected {
            super::model::mark_row(pen, y, focused);
        }
        super::clickable(app, pen, y, Pane::Tree, at);
    }
}

/// Columns of the block names, and where the others stand: (column, first screen column, width). A wanted
/// kind is among them; what can never shrink is where the kinds leave room.
fn columns(map: &PruneMap, room: usize, wanted: usize) -> (usize, Vec<(usize, usize, usize)>) {
    let names = map.places.blocks.iter().map(|b| crate::text::columns(b)).max().unwrap_or(0);
    let kinds = map.places.kinds.len();
    let beside = room.saturating_sub(kinds.max(1) * (CELL + 2));
    let block = names.clamp(6, if beside >= 10 { beside.min(26) } else { 16 });
    let space = room.saturating_sub(block + 2);
    let spare = |shown: usize| space.saturating_sub(shown * (CELL + 2));
    let shown = ((space + 2) / (CELL + 2)).max(1).min(kinds);
    let pinned = match map.places.pinned && spare(shown) >= 2 * PINNED {
        true if shown == 0 => space,
        true => (spare(shown) / 2).min(PINNED * 3 / 2),
        false => 0,
    };
    let first = (wanted + 1).min(kinds).saturating_sub(shown);
    let each = (space + 2).saturating_sub(if pinned > 0 { pinned + 2 } else { 0 }) / shown.max(1);
    let mut x = block + 2;
    let mut out = Vec::with_capacity(shown + 1);
    for column in first..first + shown {
        out.push((column, x, each.saturating_sub(2)));
        x += each;
    }
    if pinned > 0 {
        out.push((kinds, x, pinned));
    }
    (block, out)
}

fn cells(app: &App, pen: &mut Pen<'_>, top: usize, focused: bool) {
    let map = &app.model.map;
    let room = pen.width().saturating_sub(2);
    let wanted = map.places.lines.get(map.lines.selected).map_or(0, |l| l.nearest(map.column));
    let (block, columns) = columns(map, room, wanted);
    pen.spans(1, top, block, &[span("block", Role::Dim)]);
    for (column, x, width) in &columns {
        heading(map, pen, *column, x + 1, top, *width);
    }
    let count = map.places.kinds.len() + usize::from(map.places.pinned);
    if columns.len() < count {
        let end = pen.width();
        pen.right(end, top, &[span("…", Role::Dim)]);
    }
    let rows = pen.height().saturating_sub(top + 1);
    for (y, at) in map.lines.window(map.places.lines.len(), rows).enumerate() {
        let y = y + top + 1;
        let line = &map.places.lines[at];
        let selected = at == map.lines.selected;
        if line.first {
            let name = map.places.blocks.get(line.block).map_or("", String::as_str);
            pen.spans(1, y, block, &[span(tail(name, block), Role::Text)]);
        }
        if selected && !columns.iter().any(|(column, ..)| *column == wanted) {
            // There is no room for what is selected; its block stands for it.
            match focused {
                true => pen.select_part(1, y, block),
                false => drop(pen.text(0, y, "▸", Role::Focus)),
            }
        }
        for (column, x, width) in &columns {
            let Some(groups) = line.cells.get(*column).filter(|c| !c.is_empty()) else { continue };
            if *column < map.places.kinds.len() {
                if let Some(entry) = groups.first().and_then(|i| map.entries.get(*i)) {
                    one(map, pen, entry, x + 1, y, *width);
                }
            } else {
                let first = groups.first().and_then(|i| map.entries.get(*i));
                let why = first.and_then(|e| e.never.clone()).unwrap_or_default();
                let text = match groups.len() {
                    1 => why,
                    n => format!("{n}: {why}"),
                };
                pen.spans(x + 1, y, *width, &[span(text, Role::Dim)]);
            }
            if selected && *column == wanted {
                if focused {
                    pen.select_part(x + 1, y, *width);
                } else {
                    pen.text(*x, y, "▸", Role::Focus);
                }
            }
        }
        super::clickable(app, pen, y, Pane::Tree, at);
    }
}

/// The end of a name, which tells more than its beginning.
fn tail(name: &str, columns: usize) -> String {
    let length = name.chars().count();
    if crate::text::columns(name) <= columns || length <= columns {
        return name.to_string();
    }
    format!("…{}", name.chars().skip(length + 1 - columns).collect::<String>())
}

/// Where the parts of a cell stand: units, strip, share, costs of a unit, cut, kept.
struct Parts {
    strip: (usize, usize),
    share: Option<usize>,
    costs: Option<usize>,
    cut: usize,
    kept: usize,
}

impl Parts {
    fn of(width: usize) -> Parts {
        let cut = width.saturating_sub(13);
        let mut end = cut;
        let costs = (width >= CELL + 36).then(|| {
            end -= 19;
            end
        });
        let share = (width >= CELL + 12).then(|| {
            end -= 8;
            end
        });
        let room = end.saturating_sub(6);
        Parts {
            strip: (6, room.saturating_sub(1).min(STRIP)),
            share,
            costs,
            cut,
            kept: width.saturating_sub(7),
        }
    }
}

fn heading(map: &PruneMap, pen: &mut Pen<'_>, column: usize, x: usize, y: usize, width: usize) {
    let Some(kind) = map.places.kinds.get(column) else {
        pen.spans(x, y, width, &[span("pinned", Role::Dim)]);
        return;
    };
    let parts = Parts::of(width);
    let own = map.edit.of_kind(*kind).map_or(String::new(), |r| format!(" -{:.0} %", 100.0 * r));
    let used = pen.spans(x, y, width, &[span(kind.word(), Role::Title), span(own, Role::Key)]);
    let mut label = |at: usize, width: usize, text: &str| {
        if at > used {
            pen.right(x + at + width, y, &[span(text, Role::Dim)]);
        }
    };
    if let Some(at) = parts.share {
        label(at, 7, if map.run().is_some_and(has_sensitivity) { "rise ¼" } else { "share" });
    }
    if let Some(at) = parts.costs {
        label(at, 9, "par/unit");
        label(at + 9, 9, "MAC/unit");
    }
    label(parts.cut, 5, "cut");
    label(parts.kept, 7, "keeps");
}

fn has_sensitivity(run: &Ran) -> bool {
    run.report.groups.iter().any(|g| g.sensitivity.is_some())
}

/// Units that stay: of the plan, else of the run that is shown.
fn kept(map: &PruneMap, entry: &Entry) -> Option<usize> {
    map.planned(entry.id).or_else(|| entry.ran.as_ref().filter(|_| !map.edit.cuts()).map(|r| r.kept))
}

/// The cell of a group that can shrink.
fn one(map: &PruneMap, pen: &mut Pen<'_>, entry: &Entry, x: usize, y: usize, width: usize) {
    let parts = Parts::of(width);
    pen.right(x + 5, y, &[span(entry.units.to_string(), Role::Text)]);
    let kept = kept(map, entry);
    let gone = kept.map_or(0.0, |k| 1.0 - k as f64 / entry.units.max(1) as f64);
    let (from, room) = parts.strip;
    pen.strip(x + from, y, room, &entry.strip, gone);
    if let Some(at) = parts.share {
        let text = match (entry.sensitivity(), entry.share) {
            (Some(curve), _) => format!("+{:.3}", curve.at(QUARTER)),
            (None, Some(share)) => format!("{:.1} %", 100.0 * share),
            (None, None) => "–".into(),
        };
        pen.right(x + at + 7, y, &[span(text, Role::Text)]);
    }
    if let Some(at) = parts.costs {
        let macs = entry.macs_per_unit.map_or("–".into(), |n| Count(n).to_string());
        pen.right(x + at + 9, y, &[span(Count(entry.parameters_per_unit).to_string(), Role::Text)]);
        pen.right(x + at + 18, y, &[span(macs, Role::Text)]);
    }
    if map.edit.protected.contains(&entry.id) {
        pen.right(x + width, y, &[span("protected", Role::Key)]);
        return;
    }
    let own = map.edit.groups.contains_key(&entry.id);
    match kept {
        Some(kept) if kept < entry.units => {
            let role = if own { Role::Key } else { Role::Text };
            pen.right(x + parts.cut + 5, y, &[span(format!("-{:.0}%", 100.0 * gone), role)]);
            pen.right(x + width, y, &[span(format!("→{kept}"), Role::Strong)]);
        }
        _ => {
            let text = if own { "own 0%" } else { "all" };
            let role = if own { Role::Key } else { Role::Dim };
            pen.right(x + width, y, &[span(text, role)]);
        }
    }
}
