//! Drawing of the Compare tab.

use super::super::action::Action;
use super::super::app::App;
use super::super::compare::{Axis, Order, Source};
use super::super::layout::Pane;
use super::super::paint::{Pen, Span, many, span};
use super::super::theme::Role;
use super::chart::{Dot, number, scatter as draw_scatter};
use super::doc::Doc;
use super::model::mark_row;
use super::table::{Cell, Column, Grid, cell, flexible, left, right};
use crate::compare::table::Delta;
use crate::compare::{Comparison, Row, Verdict};
use crate::units::{Bytes, Count, Millis};

type Titles = (Vec<Span>, Vec<Span>);

const COLUMNS: [Column; 11] = [
    flexible("variant", 16),
    right("p50 latency", 11, 0),
    left("vs baseline", 16, 1),
    right("size", 9, 0),
    left("vs baseline", 14, 4),
    right("memory", 9, 6),
    left("vs baseline", 17, 8),
    right("quality", 8, 0),
    left("vs baseline", 21, 2),
    left("front", 6, 7),
    left("conclusion", 22, 5),
];

pub(super) fn title(app: &App) -> Titles {
    let tab = &app.compare;
    let mut title = vec![span("Variants", Role::Title)];
    match &tab.source {
        Source::None => {}
        Source::Marked(n) => title.push(span(format!(" · of {n} marked runs"), Role::Dim)),
        Source::Model(model) => {
            let name = model.file_name().unwrap_or(model.as_os_str()).to_string_lossy();
            title.push(span(format!(" · {}", crate::text::clean(&name, 32)), Role::Accent));
        }
    }
    let mut note = Vec::new();
    if tab.loading {
        note.push(span("comparing…", Role::Info));
    } else if let Some(table) = &tab.comparison {
        if tab.only_differences {
            note.push(span("differences · ", Role::Key));
        }
        note.push(span(format!("margin {:.1} %", table.margin * 100.0), Role::Dim));
    }
    (title, note)
}

/// A change as sign, figure and word, in the colour of the word.
fn change(delta: Option<&Delta>, lower_is_better: bool, points: bool) -> Vec<Span> {
    let Some(d) = delta else { return vec![span("–", Role::Dim)] };
    if d.verdict == Verdict::Baseline {
        return vec![span("baseline", Role::Dim)];
    }
    if d.verdict == Verdict::NotComparable {
        return vec![span("n/a", Role::Dim)];
    }
    let figure =
        if points { format!("{:+.2} pt", d.delta * 100.0) } else { format!("{:+.1} %", d.delta * 100.0) };
    let role = match d.verdict {
        Verdict::Better => Role::Good,
        Verdict::Worse => Role::Bad,
        Verdict::NonInferior => Role::Good,
        _ => Role::Warn,
    };
    // Without a test the sign alone says which way it went.
    let word = match d.verdict {
        Verdict::Undecided if d.p_value.is_none() && d.ci95.is_none() && d.delta != 0.0 => {
            if (d.delta < 0.0) == lower_is_better { "lower" } else { "higher" }
        }
        v => v.word(),
    };
    vec![span(figure, role), span(format!(" {word}"), role)]
}

fn quality_delta_is_points(row: &Row) -> bool {
    row.measurement.quality.as_ref().is_some_and(|q| q.metric.contains("acc"))
}

/// Whether a column says the same in all rows.
fn same(table: &Comparison, column: usize) -> bool {
    let text = |row: &Row| -> String {
        match figure(row, column, false) {
            Cell::Spans(spans) => spans.iter().map(|s| s.text.as_str()).collect(),
            Cell::Bar(..) => String::new(),
        }
    };
    let mut rows = table.rows.iter().filter(|r| {
        // The baseline's own delta is always the word.
        !(matches!(column, 2 | 4 | 6 | 8)
            && r.latency.as_ref().is_some_and(|d| d.verdict == Verdict::Baseline))
    });
    let first = rows.next().map(&text);
    column != 0 && rows.all(|r| Some(text(r)) == first)
}

pub(super) fn table(app: &App, pen: &mut Pen<'_>, focused: bool) {
    let tab = &app.compare;
    let Some(table) = &tab.comparison else {
        if let Some(failure) = &tab.failure {
            return super::empty(pen, &failure.message, &[]);
        }
        if tab.loading {
            return super::empty(pen, "Comparing …", &[]);
        }
        let (plan, runs) = (app.keymap.key_name(Action::TabPlan), app.keymap.key_name(Action::TabRuns));
        let mark = app.keymap.key_name(Action::Mark);
        return super::empty(
            pen,
            "Nothing was measured yet. Variants appear here as soon as a run measures them.",
            &[
                (&plan, "choose a recipe and run it"),
                (&runs, "see the runs"),
                (&mark, "on Runs: mark what to compare"),
            ],
        );
    };
    let columns: Vec<Column> = COLUMNS
        .iter()
        .enumerate()
        .map(|(i, c)| {
            let hidden = tab.only_differences && same(table, i);
            if hidden { Column { width: 0, title: "", priority: 200, ..*c } } else { *c }
        })
        .collect();
    let kept: Vec<usize> = (0..columns.len()).filter(|i| columns[*i].priority < 200).collect();
    let shown: Vec<Column> = kept.iter().map(|i| columns[*i]).collect();
    let grid = Grid::new(&shown, pen.width().saturating_sub(2));
    let sorted = match tab.order {
        Order::Given => usize::MAX,
        Order::Latency => 1,
        Order::Size => 3,
        Order::Memory => 5,
        Order::Quality => 7,
    };
    let sorted = kept.iter().position(|i| *i == sorted).map(|at| (at, tab.reverse));
    grid.header(pen, 0, &shown, sorted);
    let notes = table.notes.len().min(pen.height().saturating_sub(table.rows.len() + 2));
    let window = tab.list.window(tab.rows.len(), pen.height().saturating_sub(1 + notes));
    let mut last = 0;
    for (y, at) in window.enumerate() {
        let y = y + 1;
        let row = &table.rows[tab.rows[at]];
        let baseline = tab.rows[at] == table.baseline;
        grid.row(pen, y, &shown, |column| figure(row, kept[column], baseline));
        if at == tab.list.selected {
            mark_row(pen, y, focused);
        }
        super::clickable(app, pen, y, Pane::Table, at);
        last = y;
    }
    for (i, note) in table.notes.iter().take(notes).enumerate() {
        let y = (last + 2 + i).min(pen.height().saturating_sub(1));
        if y > last {
            pen.spans(
                1,
                y,
                pen.width().saturating_sub(2),
                &[span("! ", Role::Warn), span(note.clone(), Role::Dim)],
            );
        }
    }
}

fn figure(row: &Row, column: usize, baseline: bool) -> Cell {
    let m = &row.measurement;
    match column {
        0 => {
            let mut spans = vec![span(m.variant.clone(), Role::Strong)];
            if baseline {
                spans.push(span(" ◆", Role::Key));
            }
            Cell::Spans(spans)
        }
        1 => match &m.latency_ms {
            Some(l) => cell(Millis(l.p50).to_string(), Role::Text),
            None if !m.failures.is_empty() => cell("failed", Role::Bad),
            None => cell("–", Role::Dim),
        },
        2 => Cell::Spans(change(row.latency.as_ref(), true, false)),
        3 if m.file_bytes == 0 => cell("–", Role::Dim),
        3 => cell(Bytes(m.file_bytes).to_string(), Role::Text),
        4 => Cell::Spans(change(row.size.as_ref(), true, false)),
        5 => cell(m.peak_rss_bytes.map_or("–".into(), |b| Bytes(b).to_string()), Role::Text),
        6 => Cell::Spans(change(row.memory.as_ref(), true, false)),
        7 => match &m.quality {
            Some(q) => cell(format!("{:.4}", q.value), Role::Text),
            None => cell("–", Role::Dim),
        },
        8 => Cell::Spans(change(row.quality.as_ref(), false, quality_delta_is_points(row))),
        9 if row.pareto => cell("pareto", Role::Good),
        9 => cell("", Role::Dim),
        _ => cell(row.conclusion.clone(), if row.missed.is_empty() { Role::Text } else { Role::Warn }),
    }
}

pub(super) fn scatter_title(app: &App) -> Titles {
    let quality = quality_name(app).unwrap_or_else(|| "quality".into());
    let title = vec![span(
        format!("{} × {}", app.compare.axis.title(), crate::text::clean(&quality, 20)),
        Role::Title,
    )];
    let note = if app.has_comparison() {
        vec![span("● pareto  ○ other  ◆ baseline", Role::Dim)]
    } else {
        vec![]
    };
    (title, note)
}

fn quality_name(app: &App) -> Option<String> {
    let table = app.compare.comparison.as_ref()?;
    table.rows.iter().find_map(|r| r.measurement.quality.as_ref().map(|q| q.metric.clone()))
}

pub(super) fn scatter(app: &App, pen: &mut Pen<'_>) {
    let tab = &app.compare;
    let Some(table) = &tab.comparison else { return };
    let selected = tab.rows.get(tab.list.selected);
    let dots: Vec<Dot<'_>> = table
        .rows
        .iter()
        .enumerate()
        .filter_map(|(i, row)| {
            let m = &row.measurement;
            let (x, y) = (tab.axis.value(m)?, m.quality.as_ref()?.value);
            (x.is_finite() && y.is_finite()).then(|| Dot {
                x,
                y,
                label: &m.variant,
                front: row.pareto && tab.axis == Axis::Latency,
                baseline: i == table.baseline,
                selected: selected == Some(&i),
            })
        })
        .collect();
    if dots.len() >= 2 {
        let missing = table.rows.len() - dots.len();
        draw_scatter(pen, &dots, tab.axis.title(), &quality_name(app).unwrap_or_default());
        if missing > 0 {
            let text = format!("{missing} variants lack a figure");
            let end = pen.width().saturating_sub(1);
            pen.right(end, 0, &[span(text, Role::Warn)]);
        }
        return;
    }
    bars(app, table, pen);
}

/// Where there is no quality to plot against: the figure of each variant as a bar.
fn bars(app: &App, table: &Comparison, pen: &mut Pen<'_>) {
    let tab = &app.compare;
    let values: Vec<Option<f64>> = table.rows.iter().map(|r| tab.axis.value(&r.measurement)).collect();
    let most = values.iter().flatten().copied().fold(0.0f64, f64::max).max(f64::MIN_POSITIVE);
    let width = pen.width();
    let name = (width / 4).clamp(10, 28);
    let why = if quality_name(app).is_none() {
        "Quality was not measured: give the goal a data set to see accuracy."
    } else {
        "Too few variants have both figures for a scatter."
    };
    pen.text(1, 0, why, Role::Dim);
    for (i, at) in tab.rows.iter().enumerate() {
        let y = i + 2;
        let m = &table.rows[*at].measurement;
        let role = if i == tab.list.selected { Role::Key } else { Role::Text };
        pen.spans(1, y, name, &[span(m.variant.clone(), role)]);
        match values[*at] {
            Some(v) => {
                let text = [span(number(v), Role::Text)];
                pen.right(name + 12, y, &text);
                pen.bar(name + 14, y, width.saturating_sub(name + 16), v / most, Role::Bar);
            }
            None => {
                pen.text(name + 3, y, "not measured", Role::Dim);
            }
        }
    }
}

pub(super) fn variant_title(app: &App) -> Titles {
    let mut title = vec![span("Variant", Role::Title)];
    if let Some(row) = app.compare.selected() {
        title.push(span(format!(" {}", crate::text::clean(&row.measurement.variant, 40)), Role::Accent));
    }
    (title, vec![])
}

pub(super) fn variant(app: &App, pen: &mut Pen<'_>) {
    let Some(row) = app.compare.selected() else { return };
    let m = &row.measurement;
    let mut doc = Doc::new(pen);
    let tone = if row.missed.is_empty() { Role::Strong } else { Role::Warn };
    doc.pair("conclusion", &row.conclusion, tone);
    if !row.missed.is_empty() {
        doc.pair("misses", &row.missed.join(", "), Role::Bad);
    }
    if let Some(l) = &m.latency_ms {
        let text = format!("{} median, {}–{} (95 %)", Millis(l.p50), Millis(l.ci95.low), Millis(l.ci95.high));
        doc.pair("latency", &text, Role::Text);
        let p99 = l.p99.map_or("p99 needs 299 samples".into(), |v| format!("p99 {}", Millis(v)));
        doc.pair("", &format!("p90 {} · {p99} · n {}", Millis(l.p90), l.n), Role::Dim);
    }
    if let Some(q) = &m.quality {
        let text =
            format!("{} {:.4}, {:.4}–{:.4} (95 %), n {}", q.metric, q.value, q.ci95.low, q.ci95.high, q.n);
        doc.pair("quality", &text, Role::Text);
    }
    doc.pair("file", &Bytes(m.file_bytes).to_string(), Role::Text);
    doc.pair("parameters", &format!("{} · {} MACs", Count(m.parameters), Count(m.macs)), Role::Text);
    if let Some(bytes) = m.peak_rss_bytes {
        doc.pair("peak memory", &Bytes(bytes).to_string(), Role::Text);
    }
    if let Some(e) = m.output_error {
        doc.pair("output error", &format!("{e:.2e} of the largest output"), Role::Text);
    }
    for (label, delta, points) in [
        ("latency", &row.latency, false),
        ("size", &row.size, false),
        ("memory", &row.memory, false),
        ("quality", &row.quality, quality_delta_is_points(row)),
    ] {
        let Some(d) = delta else { continue };
        if d.verdict == Verdict::Baseline {
            continue;
        }
        if label == "latency" || doc_is_first(label, row) {
            doc.heading("Against the baseline");
        }
        let (scale, unit) = if points { (100.0, "pt") } else { (100.0, "%") };
        let mut text = format!("{:+.2} {unit}", d.delta * scale);
        if let Some(ci) = &d.ci95 {
            text += &format!(" ({:+.2} to {:+.2})", ci.low * scale, ci.high * scale);
        }
        if let Some(p) = d.p_value {
            text += &if p < 0.001 { ", p < 0.001".to_string() } else { format!(", p {p:.3}") };
        }
        if let Some(least) = d.minimum_detectable {
            text += &format!(", could show {:.2}", least * scale);
        }
        text += &format!(": {}", d.verdict.word());
        doc.pair(label, &text, Role::Text);
    }
    for failure in &m.failures {
        doc.item("!", Role::Bad, failure);
    }
    if let Some(table) = &app.compare.comparison {
        disagreements(&table.rows[table.baseline], row, &mut doc);
    }
    doc.heading("Conditions");
    let c = &m.conditions;
    doc.pair("runtime", &format!("{}, {}", c.runtime, many(c.threads, "thread")), Role::Text);
    doc.pair("machine", &format!("{} · {} · {}", c.host, c.cpu, c.isa), Role::Text);
    if !c.inputs.is_empty() {
        doc.pair("inputs", &c.inputs.join(", "), Role::Text);
    }
    for noise in &c.noise {
        doc.item("!", Role::Warn, noise);
    }
    doc.pair("path", &m.path, Role::Dim);
    doc.pair("sha256", &m.model_sha256, Role::Dim);
    doc.draw(pen, &app.compare.details);
}

/// Items that only one of a variant and the baseline gets right, by their place in the data.
fn disagreements(baseline: &Row, row: &Row, doc: &mut Doc) {
    let (Some(a), Some(b)) = (&baseline.measurement.quality, &row.measurement.quality) else { return };
    let paired = a.data_hash == b.data_hash && a.correct.len() == b.correct.len();
    if !paired || a.correct.is_empty() || std::ptr::eq(baseline, row) {
        return;
    }
    let only = |x: &[bool], y: &[bool]| -> Vec<usize> { (0..x.len()).filter(|i| x[*i] && !y[*i]).collect() };
    doc.heading("Item by item");
    for (label, items) in
        [("newly wrong", only(&a.correct, &b.correct)), ("newly right", only(&b.correct, &a.correct))]
    {
        let mut text = format!("{} of {}", items.len(), a.correct.len());
        if !items.is_empty() {
            let named: Vec<String> = items.iter().take(40).map(|i| format!("#{i}")).collect();
            text += &format!(": {}", named.join(" "));
            if items.len() > named.len() {
                text += " …";
            }
        }
        doc.pair(label, &text, Role::Text);
    }
}

/// Whether this is the first delta that the row has.
fn doc_is_first(label: &str, row: &Row) -> bool {
    let before =
        |n: usize| [row.latency.is_some(), row.size.is_some(), row.memory.is_some()][..n].iter().any(|b| *b);
    match label {
        "size" => !before(1),
        "memory" => !before(2),
        "quality" => !before(3),
        _ => true,
    }
}
