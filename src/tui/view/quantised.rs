//! Drawing of what a quantise step did: its layers, ranges, saturation and notes.

use super::super::action::Action;
use super::super::app::App;
use super::super::layout::Pane;
use super::super::paint::{Pen, Span, many, span};
use super::super::quantised::{Change, Layer, Quantised, Sheet, changes, word};
use super::super::theme::Role;
use super::doc::Doc;
use super::model::mark_row;
use super::table::{Cell, Column, Grid, cell, flexible, left, right};
use crate::text;
use crate::units::{Bytes, Count};
use ratatui::layout::Rect;
use std::collections::BTreeMap;

type Titles = (Vec<Span>, Vec<Span>);

const JUDGED: [Column; 7] = [
    flexible("layer", 28),
    left("now", 6, 0),
    right("loss", 8, 0),
    right("fewest", 8, 2),
    left("", 8, 3),
    right("saves", 8, 1),
    right("saturates", 9, 4),
];
const PLAIN: [Column; 4] =
    [flexible("layer", 22), left("now", 7, 0), left("how", 30, 2), right("saturates", 9, 1)];
const RANGES: [Column; 7] = [
    flexible("value", 26),
    right("SQNR dB", 7, 0),
    left("of 60 dB", 10, 3),
    right("clipped", 8, 1),
    right("seen", 17, 2),
    right("grid", 17, 4),
    right("elements", 8, 5),
];
const SATURATION: [Column; 6] = [
    flexible("layer", 22),
    right("saturates", 9, 0),
    left("of the worst", 12, 2),
    right("outputs changed", 15, 1),
    right("largest error", 13, 3),
    left("operator", 18, 4),
];

/// Ratios below these are bad, or worth a look.
const BAD_DB: f64 = 15.0;
const LOW_DB: f64 = 25.0;

pub(super) fn title(app: &App) -> Titles {
    let Some(run) = app.quantised() else { return (vec![span("Quantised", Role::Title)], vec![]) };
    let front = app.sheets().front(run);
    let mut title = vec![span("Quantised", Role::Title)];
    for sheet in run.sheets() {
        let own = sheet == front;
        let count = match run.rows(sheet) {
            0 => String::new(),
            n => format!(" {n}"),
        };
        let (open, close) = if own { ("[", "]") } else { (" ", " ") };
        title.push(span(format!(" {open}"), if own { Role::Focus } else { Role::Dim }));
        title.push(span(format!("{}{count}", sheet.word()), if own { Role::Strong } else { Role::Text }));
        title.push(span(close, if own { Role::Focus } else { Role::Dim }));
    }
    let turn = [Action::Left, Action::Right].map(|a| app.keymap.key_name(a)).join(" ");
    (title, vec![span(turn, Role::Dim)])
}

pub(super) fn tables(app: &App, pen: &mut Pen<'_>, focused: bool) {
    let Some(run) = app.quantised() else { return };
    let width = pen.width().saturating_sub(2);
    let sheets = app.sheets();
    let front = sheets.front(run);
    if front == Sheet::Notes {
        let mut doc = Doc::new(pen);
        notes(run, &mut doc);
        return doc.draw(pen, &sheets.notes);
    }
    let mut y = 0;
    pen.spans(1, y, width, &summary(run, front));
    y += 1;
    let against = against(app, run);
    if !against.is_empty() && pen.height() > 6 {
        pen.spans(1, y, width, &against);
        y += 1;
    }
    // A line of its own tells more of the selected row where there is room.
    let more = if pen.height() >= y + 6 { 1 } else { 0 };
    let area = pen.area();
    let rest = Rect {
        y: area.y + (y as u16).min(area.height),
        height: area.height.saturating_sub((y + more) as u16),
        ..area
    };
    let mut table = pen.part(rest);
    match front {
        Sheet::Layers => layers(app, run, &mut table, focused),
        Sheet::Ranges => ranges(app, run, &mut table, focused),
        Sheet::Saturation => saturation(app, run, &mut table, focused),
        Sheet::Notes => {}
    }
    if more == 1 {
        let bottom = pen.height() - 1;
        pen.spans(1, bottom, width, &about_selected(app, run, front));
    }
}

/// Rows of a table with the selected one among them; `row` gives the cells.
fn rows(
    app: &App,
    pen: &mut Pen<'_>,
    columns: &[Column],
    len: usize,
    focused: bool,
    row: impl Fn(usize, usize, usize) -> Cell,
) {
    let grid = Grid::new(columns, pen.width().saturating_sub(2));
    grid.header(pen, 0, columns, None);
    let list = &app.sheets().list;
    let selected = list.selected.min(len.saturating_sub(1));
    let window = list.window(len, pen.height().saturating_sub(1));
    for (y, at) in window.enumerate() {
        grid.row(pen, y + 1, columns, |column| row(at, column, grid.width(column)));
        if at == selected {
            mark_row(pen, y + 1, focused);
        }
        super::clickable(app, pen, y + 1, Pane::Quantised, at);
    }
}

/// The end of a name that is too long: what tells layers apart stands there.
fn tail(name: &str, width: usize) -> String {
    let name = text::clean(name, 400);
    if text::columns(&name) <= width {
        return name;
    }
    let (mut start, mut used) = (name.len(), 1);
    for (at, c) in name.char_indices().rev() {
        used += unicode_width::UnicodeWidthChar::width(c).unwrap_or(0);
        if used > width {
            break;
        }
        start = at;
    }
    format!("…{}", &name[start..])
}

fn percent(part: f64) -> String {
    match 100.0 * part {
        0.0 => "none".into(),
        p if p < 0.001 => "<0.001 %".into(),
        p if p < 1.0 => format!("{p:.3} %"),
        p => format!("{p:.1} %"),
    }
}

fn loss(value: f64) -> String {
    if value <= 0.0 { "0".into() } else { format!("{value:.2e}") }
}

fn saturates(layer: &Layer) -> Cell {
    match layer.saturated {
        Some(s) => cell(percent(s), share_role(s)),
        None => cell("–", Role::Dim),
    }
}

/// From one in ten thousand on the pass warns.
fn share_role(share: f64) -> Role {
    match share {
        s if s > 0.01 => Role::Bad,
        s if s > 1e-4 => Role::Warn,
        _ => Role::Text,
    }
}

fn layers(app: &App, run: &Quantised, pen: &mut Pen<'_>, focused: bool) {
    let most = run.layers.iter().filter_map(|l| l.most).fold(0.0, f64::max);
    let judged = run.layers.iter().any(|l| l.most.is_some());
    let now = |l: &Layer| -> Cell {
        let asked = app.told.pending.as_ref().filter(|p| !p.told && p.recipe.alike_but_in_float(&run.recipe));
        let kept = |r: &crate::plan::Recipe| r.in_float().contains(&format!("={}", l.name));
        match asked.map(|p| kept(&p.recipe)) {
            Some(true) if l.got != "float" => cell("→float", Role::Accent),
            Some(false) if kept(&run.recipe) => cell("→back", Role::Accent),
            _ => cell(l.got, if l.got == "float" { Role::Dim } else { Role::Text }),
        }
    };
    let all: &[Column] = if judged { &JUDGED } else { &PLAIN };
    // Where nothing was looked for there is no column of it.
    let columns = if run.saturation.is_empty() { &all[..all.len() - 1] } else { all };
    rows(app, pen, columns, run.layers.len(), focused, |at, column, width| {
        let l = &run.layers[at];
        match (judged, column) {
            (_, 0) => cell(tail(&l.name, width), Role::Strong),
            (_, 1) => now(l),
            (true, 2) => l.loss.map_or(cell("–", Role::Dim), |v| cell(loss(v), Role::Text)),
            (true, 4) => Cell::Bar(l.most.unwrap_or(0.0) / most.max(f64::MIN_POSITIVE), Role::Bar),
            (true, 3) => l.most.map_or(cell("–", Role::Dim), |v| cell(loss(v), Role::Text)),
            (true, 5) => match l.saved {
                Some(s) => cell(Bytes(s.max(0.0) as u64).to_string(), Role::Text),
                None => cell("–", Role::Dim),
            },
            (false, 2) => cell(l.detail.clone(), Role::Dim),
            _ => saturates(l),
        }
    });
}

fn ranges(app: &App, run: &Quantised, pen: &mut Pen<'_>, focused: bool) {
    rows(app, pen, &RANGES, run.ranges.len(), focused, |at, column, width| {
        let t = &run.report.tensors[run.ranges[at]];
        let role = match t.sqnr_db {
            Some(db) if db < BAD_DB => Role::Bad,
            Some(db) if db < LOW_DB => Role::Warn,
            _ => Role::Text,
        };
        let ends = |low: f32, high: f32| format!("{} … {}", short(low), short(high));
        match column {
            0 => cell(tail(&t.value, width), Role::Strong),
            1 => cell(t.sqnr_db.map_or("–".into(), |db| format!("{db:.1}")), role),
            2 => {
                Cell::Bar(t.sqnr_db.unwrap_or(0.0) / 60.0, if role == Role::Text { Role::Bar } else { role })
            }
            3 => cell(percent(t.clipped), if t.clipped > 0.01 { Role::Warn } else { Role::Text }),
            4 => cell(ends(t.min, t.max), Role::Text),
            5 => cell(ends(t.low, t.high), Role::Text),
            _ => cell(Count(t.elements).to_string(), Role::Dim),
        }
    });
}

/// A number in at most eight columns.
fn short(v: f32) -> String {
    let size = v.abs();
    match size {
        0.0 => "0".into(),
        s if !(0.001..100_000.0).contains(&s) => format!("{v:.1e}"),
        s if s < 10.0 => format!("{v:.3}"),
        _ => format!("{v:.1}"),
    }
}

fn saturation(app: &App, run: &Quantised, pen: &mut Pen<'_>, focused: bool) {
    let all = &run.report.saturation;
    let worst = all.iter().map(|l| l.share).fold(0.0, f64::max);
    rows(app, pen, &SATURATION, run.saturation.len(), focused, |at, column, width| {
        let l = &all[run.saturation[at]];
        match column {
            0 => cell(tail(&l.node, width), Role::Strong),
            1 if l.pairs == 0 => cell("exact", Role::Dim),
            1 => cell(percent(l.share), share_role(l.share)),
            2 => Cell::Bar(l.share / worst.max(f64::MIN_POSITIVE), Role::Bar),
            3 => cell(percent(l.changed_outputs as f64 / l.outputs.max(1) as f64), Role::Text),
            4 => cell(percent(l.largest_error as f64 / l.largest_sum.max(1) as f64), Role::Text),
            _ => cell(l.operator.clone(), Role::Dim),
        }
    });
}

/// What a table comes to.
fn summary(run: &Quantised, sheet: Sheet) -> Vec<Span> {
    let fact = |name: &str| run.fact(name);
    let mut parts: Vec<String> = Vec::new();
    match sheet {
        Sheet::Layers => {
            let mut by: BTreeMap<&str, usize> = BTreeMap::new();
            run.layers.iter().for_each(|l| *by.entry(l.got).or_default() += 1);
            parts.push(by.iter().map(|(got, n)| format!("{n} {got}")).collect::<Vec<_>>().join(", "));
            if let Some(v) = fact("mixed_loss") {
                parts.push(format!("loss of all {}", loss(v)));
            }
            if let (Some(a), Some(b)) = (fact("weight_bytes_before"), fact("weight_bytes_after")) {
                parts.push(format!("weights {} → {}", Bytes(a as u64), Bytes(b as u64)));
            }
            if let Some(n) = fact("mixed_known_layers").filter(|n| *n > 0.0) {
                parts.push(format!("{n} judged by earlier runs"));
            }
        }
        Sheet::Ranges => {
            if let Some(n) = fact("calibration_samples") {
                parts.push(format!("ranges from {}", many(n as usize, "calibration row")));
            }
            let low = run.report.tensors.iter().filter(|t| t.sqnr_db.is_some_and(|db| db < LOW_DB)).count();
            parts.push(format!("{} below {LOW_DB} dB", many(low, "value")));
        }
        Sheet::Saturation => {
            if let (Some(n), Some(of)) = (fact("saturated_pairs"), fact("held_pairs")) {
                parts.push(format!("{n} of {} pairs of products saturate", Count(of as u64)));
            }
            if let Some(cosine) = fact("saturation_cosine") {
                parts.push(format!("outputs keep a cosine of {cosine:.4}"));
            }
        }
        Sheet::Notes => {}
    }
    vec![span(parts.join(" · "), Role::Dim)]
}

/// This run against the one before it that keeps other layers in float.
fn against(app: &App, run: &Quantised) -> Vec<Span> {
    let jobs = &app.runs.jobs;
    let job = |id: &str| jobs.iter().find(|j| j.id == id);
    let Some(former) = app.told.former(jobs, run) else { return vec![] };
    let (Some(before), Some(later)) = (job(&former.job), job(&run.job)) else { return vec![] };
    let mut out = vec![span(format!("against {}:", text::clean(before.title(), 30)), Role::Dim)];
    for Change { what, before, after, better } in changes((before, Some(former)), (later, Some(run))) {
        let role = match better {
            Some(true) => Role::Good,
            Some(false) => Role::Bad,
            None => Role::Text,
        };
        out.push(span(format!("  {what} "), Role::Dim));
        out.push(span(format!("{before} → "), Role::Text));
        out.push(span(after, role));
    }
    out
}

/// More of the selected row, and what can be done with it.
fn about_selected(app: &App, run: &Quantised, sheet: Sheet) -> Vec<Span> {
    let at = app.sheets().list.selected;
    let mut out = Vec::new();
    if app.can_keep_float() {
        let layer = app.sheets().selected(run).map_or("", |(name, _)| name);
        let kept = run.layers.iter().any(|l| l.name == layer && l.got == "float" && l.options.is_empty());
        out.push(span(app.keymap.key_name(Action::KeepFloat), Role::Key));
        out.push(span(if kept { " quantises it again  " } else { " keeps it in float  " }, Role::Text));
    }
    match sheet {
        Sheet::Layers => {
            let Some(l) = run.layers.get(at) else { return out };
            let mut options: Vec<String> = l
                .options
                .iter()
                .map(|o| {
                    let got = word(o.precision, run.scheme);
                    format!("{got} loses {}, saves {}", loss(o.loss), Bytes(o.saved_bytes.max(0.0) as u64))
                })
                .collect();
            if options.is_empty() && !l.detail.is_empty() {
                options.push(l.detail.clone());
            }
            out.push(span(options.join(" · "), Role::Text));
        }
        Sheet::Ranges => {
            let Some(t) = run.ranges.get(at).map(|i| &run.report.tensors[*i]) else { return out };
            let told = format!("{}: step {:.3e}, zero is level {}", t.value, t.scale, t.zero_point);
            out.push(span(told, Role::Text));
        }
        Sheet::Saturation => {
            let Some(l) = run.saturation.get(at).map(|i| &run.report.saturation[*i]) else { return out };
            let told = format!("{} of {} pairs saturate", l.saturated_pairs, Count(l.pairs));
            out.push(span(told, Role::Text));
        }
        Sheet::Notes => {}
    }
    out
}

/// Repairs and further rules, what was left alone, figures.
fn notes(run: &Quantised, doc: &mut Doc) {
    let report = &run.report;
    let scheme = serde_json::to_value(run.scheme).unwrap_or_default();
    let mut rules: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for a in report.applied.iter().filter(|a| scheme.as_str() != Some(&a.rule)) {
        rules.entry(&a.rule).or_default().push(format!("{}: {}", a.target, a.detail));
    }
    if !rules.is_empty() {
        doc.heading("Applied besides");
    }
    for (rule, mut all) in rules {
        let n = all.len();
        doc.item("+", Role::Good, &format!("{rule} {n}×  {}", all.swap_remove(0)));
    }
    let mut left: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for s in &report.skipped {
        left.entry((&s.rule, &s.reason)).or_default().push(&s.target);
    }
    let mut left: Vec<_> = left.into_iter().collect();
    left.sort_by_key(|(_, all)| std::cmp::Reverse(all.len()));
    if !left.is_empty() {
        doc.heading("Left alone");
    }
    for ((rule, reason), all) in left {
        let more = if all.len() > 1 { format!(" and {} more", all.len() - 1) } else { String::new() };
        doc.item("-", Role::Warn, &format!("{rule}, {}{more}: {reason}", all[0]));
    }
    if !report.facts.is_empty() {
        doc.heading("Figures");
    }
    for (name, value) in &report.facts {
        let shown =
            if name.contains("bytes") { Bytes(*value as u64).to_string() } else { format!("{value}") };
        doc.text(&format!("{:<34}{shown}", name.replace('_', " ")), Role::Text);
    }
}
