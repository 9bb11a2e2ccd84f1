//! Drawing of the Runs tab.

use super::super::action::Action;
use super::super::app::{App, Job, Liveness};
use super::super::layout::Pane;
use super::super::paint::{Pen, Span, many, span, width_of};
use super::super::runs::{Line, Scale, elapsed, progress};
use super::super::theme::Role;
use super::chart::{Chart, Curve, Transform, draw, number, round_up};
use super::doc::{Doc, wrap};
use super::log::level;
use super::model::mark_row;
use crate::jobs::{JobState, Status};
use crate::units::{Bytes, Millis};
use ratatui::layout::Rect;

type Titles = (Vec<Span>, Vec<Span>);

/// The role of a status.
fn role(job: &Job) -> Role {
    match (job.status(), job.liveness) {
        (Status::Running, Liveness::Stalled(_)) => Role::Warn,
        (Status::Running, _) => Role::Info,
        (Status::Queued, _) => Role::Text,
        (Status::Paused, _) => Role::Warn,
        (Status::Finished, _) => Role::Good,
        (Status::Cancelled, _) => Role::Dim,
        (Status::Failed | Status::Dead, _) => Role::Bad,
    }
}

pub(super) fn jobs_title(app: &App) -> Titles {
    let runs = &app.runs;
    let mut title = vec![span("Runs", Role::Title)];
    if !runs.filter.is_empty() {
        title.push(span(format!(" /{}", crate::text::clean(&runs.filter, 20)), Role::Key));
    }
    let mut note = String::new();
    if !runs.marks.is_empty() {
        note = format!("{} marked · ", runs.marks.len());
    }
    if !runs.jobs.is_empty() {
        note += &format!("{} of {}", runs.shown.len(), runs.jobs.len());
    }
    (title, if note.is_empty() { vec![] } else { vec![span(note, Role::Dim)] })
}

pub(super) fn jobs(app: &App, pen: &mut Pen<'_>, focused: bool) {
    let runs = &app.runs;
    if runs.jobs.is_empty() {
        if !runs.listed {
            return super::empty(pen, "Looking for jobs …", &[]);
        }
        let (plan, run) = (app.keymap.key_name(Action::TabPlan), app.keymap.key_name(Action::Run));
        return super::empty(
            pen,
            "No jobs yet. A job runs a recipe, goes on when the workbench or the connection ends, and is \
             shown here.",
            &[(&plan, "go to the plan"), (&run, "there: run the selected recipe")],
        );
    }
    let (lines, selected) = runs.lines();
    if lines.is_empty() {
        pen.text(1, 1, "No job matches the filter.", Role::Dim);
        return;
    }
    let window = runs.list.window_around(selected, lines.len(), pen.height());
    for (y, at) in window.enumerate() {
        match lines[at] {
            Line::Heading(word, n) => {
                pen.spans(
                    1,
                    y,
                    usize::MAX,
                    &[span(format!("{word} "), Role::Title), span(n.to_string(), Role::Dim)],
                );
            }
            Line::Job(row) => {
                job_row(app, pen, y, &runs.jobs[runs.shown[row]]);
                if row == runs.list.selected {
                    mark_row(pen, y, focused);
                }
                super::clickable(app, pen, y, Pane::Jobs, row);
            }
        }
    }
}

fn job_row(app: &App, pen: &mut Pen<'_>, y: usize, job: &Job) {
    let width = pen.width();
    let marked = app.runs.marks.contains(&job.id);
    pen.text(1, y, if marked { "●" } else { " " }, Role::Key);
    // Status word first where the heading does not say it already.
    let status = job.status();
    let word = match status {
        Status::Failed | Status::Dead | Status::Cancelled => status.word(),
        _ => "",
    };
    let name = (width / 3).clamp(16, 34).min(width.saturating_sub(6));
    pen.spans(3, y, name, &[span(job.title().to_string(), Role::Strong)]);
    let mut x = 3 + name + 2;
    if width >= 90 {
        pen.spans(x, y, 10, &[span(job.state.what.clone(), Role::Dim)]);
        x += 11;
        let model = job.state.model.rsplit(['/', '\\']).next().unwrap_or_default();
        pen.spans(x, y, 18, &[span(model, Role::Dim)]);
        x += 20;
    }
    if !word.is_empty() {
        x += pen.spans(x, y, 10, &[span(word, role(job))]);
        x += pen.text(x, y, " – ", Role::Dim);
    }
    if job.is_running() {
        if let Some(part) = job.state.fraction()
            && width >= x + 8 + 18
        {
            pen.bar(x, y, 8, part, Role::Bar);
            x += 9;
        }
        let text = progress(job);
        x += pen.spans(x, y, width.saturating_sub(x + 1), &[span(text, role(job))]) + 2;
        if width > x + 12 && !job.state.phase.name.is_empty() {
            let room = width - x - 1;
            pen.spans(x, y, room, &[span(job.state.phase.name.clone(), Role::Dim)]);
        }
        return;
    }
    if let (Status::Finished, Some(verdict)) = (status, job.verdict()) {
        x += pen.spans(x, y, width.saturating_sub(x + 1), &[span(verdict, Role::Bad)]) + 2;
    }
    let tell = if status == Status::Finished { outcome(&job.state) } else { None };
    let text = tell.unwrap_or_else(|| progress(job));
    let tone = match status {
        Status::Dead | Status::Failed => Role::Text,
        Status::Finished if job.verdict().is_some() => Role::Text,
        Status::Finished => Role::Good,
        _ => Role::Dim,
    };
    pen.spans(x, y, width.saturating_sub(x + 1), &[span(text, tone)]);
}

/// What a finished job brought: `-74% size  1.80× speed  -0.40 pt`, of its variant against `original`; of
/// several variants their number.
fn outcome(state: &JobState) -> Option<String> {
    let base = state.measurements.iter().find(|m| m.variant == "original")?;
    let failed = state.measurements.iter().filter(|m| !m.failures.is_empty()).count();
    if failed > 0 {
        return Some(format!("{failed} of {} not measured", many(state.measurements.len(), "variant")));
    }
    let mut others = state.measurements.iter().filter(|m| m.variant != "original");
    let (last, more) = (others.next()?, others.count());
    if more > 0 {
        return Some(format!("{} measured", many(state.measurements.len(), "variant")));
    }
    let mut parts = Vec::new();
    if base.file_bytes > 0 {
        let change = 100.0 * (last.file_bytes as f64 / base.file_bytes as f64 - 1.0);
        parts.push(format!("{change:+.0}% size"));
    }
    if let (Some(a), Some(b)) = (&base.latency_ms, &last.latency_ms)
        && b.p50 > 0.0
    {
        parts.push(format!("{:.2}× speed", a.p50 / b.p50));
    }
    if let (Some(a), Some(b)) = (&base.quality, &last.quality)
        && a.metric.contains("acc")
    {
        parts.push(format!("{:+.2} pt", 100.0 * (b.value - a.value)));
    }
    (!parts.is_empty()).then(|| parts.join("  "))
}

pub(super) fn charts_title(app: &App) -> Titles {
    let runs = &app.runs;
    let mut title = Vec::new();
    if runs.overlay && !runs.marks.is_empty() {
        title.push(span(format!("{} marked runs", runs.marks.len()), Role::Title));
    } else if let Some(job) = runs.selected() {
        title.push(span(crate::text::clean(job.title(), 40), Role::Title));
        if !job.state.what.is_empty() {
            title.push(span(format!(" · {}", crate::text::clean(&job.state.what, 16)), Role::Dim));
        }
        title.push(span(format!(" · {}", job.status().word()), role(job)));
    } else {
        title.push(span("Run", Role::Title));
    }
    let mut note = Vec::new();
    if runs.selected().is_some_and(|j| !j.state.curves.is_empty()) {
        if runs.scale != Scale::Linear {
            note.push(span(format!("y {} ", runs.scale.word()), Role::Key));
        }
        if runs.zoom > 0 {
            note.push(span(format!("x zoom {}× ", 1u64 << runs.zoom), Role::Key));
        }
    }
    (title, note)
}

/// Curves of a job in the order of their weight: losses, qualities, the rest by name.
fn names(jobs: &[&Job]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in jobs.iter().flat_map(|j| j.state.curves.keys()) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names.sort_by_key(|n| {
        let lower = n.to_lowercase();
        let weight = if lower.contains("loss") {
            0
        } else if lower.contains("acc") || lower.contains("quality") {
            1
        } else {
            2
        };
        (weight, lower)
    });
    names
}

pub(super) fn charts(app: &App, pen: &mut Pen<'_>) {
    let runs = &app.runs;
    let Some(selected) = runs.selected() else {
        return;
    };
    let jobs = runs.drawn();
    let names = names(&jobs);
    let (w, h) = (pen.width(), pen.height());
    let strip = if h >= 9 { 1 } else { 0 };
    let area = pen.area();
    if names.is_empty() {
        phases(app, selected, pen);
        return;
    }
    let grid = Rect { height: area.height - strip as u16, ..area };
    let across = if w >= 64 && names.len() > 1 { 2 } else { 1 };
    let most_down = (grid.height as usize / 9).clamp(1, 3);
    let down = names.len().div_ceil(across).min(most_down);
    let shown = across * down;
    for (i, name) in names.iter().take(shown).enumerate() {
        let (column, row) = (i % across, i / across);
        let (cw, ch) = (grid.width / across as u16, grid.height / down as u16);
        let cell =
            Rect { x: grid.x + column as u16 * cw, y: grid.y + row as u16 * ch, width: cw, height: ch };
        one_chart(app, &jobs, name, &mut pen.part(cell));
    }
    if strip == 1 {
        let mut spans = summary(selected);
        if names.len() > shown {
            spans.push(span(format!("   +{} more curves, z zooms", names.len() - shown), Role::Dim));
        }
        pen.spans(1, h - 1, w.saturating_sub(2), &spans);
    }
}

/// A job without curves: its phase as a bar, its steps as a list.
fn phases(app: &App, job: &Job, pen: &mut Pen<'_>) {
    let state = &job.state;
    let width = pen.width();
    let mut y = 1;
    if job.status() == Status::Queued {
        pen.text(1, y, "Waits for its turn; it starts by itself.", Role::Text);
        y += 2;
    } else if !state.phase.name.is_empty() {
        pen.spans(
            1,
            y,
            width.saturating_sub(2),
            &[
                span(state.phase.name.clone(), Role::Strong),
                span("  ", Role::Text),
                span(progress(job), role(job)),
            ],
        );
        if let Some(part) = state.fraction() {
            let part = if state.status == Status::Finished { 1.0 } else { part.min(0.99) };
            pen.bar(1, y + 1, width.saturating_sub(2).min(80), part, Role::Bar);
            y += 1;
        }
        y += 2;
    }
    for (i, step) in state.steps.iter().enumerate() {
        let done = i < state.phase.step as usize || state.status == Status::Finished;
        let now = i == state.phase.step as usize && job.is_running();
        let (mark, tone) = match (done, now) {
            (true, _) => ("✓", Role::Good),
            (_, true) => ("●", Role::Info),
            _ => ("○", Role::Dim),
        };
        let word = match (done, now) {
            (true, _) => "done",
            (_, true) => "now",
            _ => "to do",
        };
        pen.spans(
            1,
            y,
            width.saturating_sub(2),
            &[
                span(format!("{mark} "), tone),
                span(format!("{word:<6}"), Role::Dim),
                span(step.clone(), Role::Text),
            ],
        );
        y += 1;
    }
    y += 1;
    for m in &state.measurements {
        let mut text = format!("{}  {}", m.variant, Bytes(m.file_bytes));
        if let Some(l) = &m.latency_ms {
            text += &format!("  {}", Millis(l.p50));
        }
        if let Some(q) = &m.quality {
            text += &format!("  {} {:.4}", q.metric, q.value);
        }
        pen.spans(1, y, width.saturating_sub(2), &[span("measured  ", Role::Dim), span(text, Role::Text)]);
        y += 1;
    }
    if state.steps.is_empty() && state.measurements.is_empty() && state.phase.name.is_empty() {
        super::empty(pen, "No curves and no phases yet.", &[]);
    }
    let _ = app;
}

/// One line of facts under the charts.
fn summary(job: &Job) -> Vec<Span> {
    let mut out = Vec::new();
    if !job.state.phase.name.is_empty() {
        out.push(span(job.state.phase.name.clone(), Role::Strong));
        out.push(span("  ", Role::Text));
    }
    out.push(span(progress(job), role(job)));
    if let Some(usage) = job.usage {
        out.push(span(format!("   rss {}", Bytes(usage.rss)), Role::Dim));
        out.push(span(format!("   cpu {:.0}%", usage.cpu), Role::Dim));
    }
    out
}

fn one_chart(app: &App, jobs: &[&Job], name: &str, pen: &mut Pen<'_>) {
    let runs = &app.runs;
    let mut last_step = 0u64;
    let mut curves = Vec::new();
    let mut legend = vec![span(crate::text::clean(name, 24), Role::Title)];
    let mut skipped = 0;
    for (series, job) in jobs.iter().enumerate() {
        let Some(points) = job.state.curves.get(name) else { continue };
        last_step = last_step.max(points.last().map_or(0, |p| p.0));
        skipped += job.state.not_finite.get(name).copied().unwrap_or(0);
        curves.push(Curve { points, series });
        if jobs.len() == 1
            && let Some((_, value)) = points.last()
        {
            legend.push(span(format!("  {}", number(*value)), Role::Accent));
        }
    }
    let total = (jobs.len() == 1)
        .then(|| jobs[0].state.phase.total)
        .flatten()
        .filter(|t| *t >= last_step && *t <= last_step.saturating_mul(50).max(50));
    let end = total.map_or_else(|| round_up(last_step as f64), |t| t as f64);
    let start = if runs.zoom == 0 { 0.0 } else { end - end / (1u64 << runs.zoom) as f64 };
    // Zooming keeps the newest points in view.
    let (start, end) = if runs.zoom == 0 {
        (0.0, end)
    } else {
        let span = end - start;
        ((last_step as f64 - span).max(0.0), (last_step as f64).max(span))
    };
    let cursor = runs.cursor.map(|c| f64::from(c) / 1000.0);
    if let Some(part) = cursor {
        let step = start + part * (end - start);
        legend.push(span(format!("  at {}:", step.round()), Role::Key));
        for curve in &curves {
            let at = curve.points.partition_point(|p| (p.0 as f64) < step).min(curve.points.len().max(1) - 1);
            if let Some((_, v)) = curve.points.get(at) {
                legend.push(span(format!(" {}", number(*v)), Role::Key));
            }
        }
    } else if jobs.len() == 1
        && let Some(points) = jobs[0].state.curves.get(name)
    {
        let rising = ["acc", "quality"].iter().any(|w| name.to_lowercase().contains(w));
        let best = points.iter().copied().reduce(|a, b| if (b.1 > a.1) == rising { b } else { a });
        if let Some((step, v)) = best {
            let word = if rising { "max" } else { "min" };
            legend.push(span(format!("  {word} {} @{step}", number(v)), Role::Dim));
        }
    }
    if skipped > 0 {
        legend.push(span(format!("  {skipped} NaN"), Role::Warn));
    }
    let width = pen.width();
    let used = pen.spans(1, 0, width.saturating_sub(2), &legend);
    if jobs.len() > 1 {
        let mut x = used + 3;
        for (series, job) in jobs.iter().enumerate() {
            let style = pen.theme().series(series);
            let room = width.saturating_sub(x + 1).min(22);
            x += pen.put(x, 0, room, &format!("● {}", crate::text::clean(job.title(), 18)), style) + 2;
        }
    }
    let transform = match runs.scale {
        Scale::Linear => Transform::Linear,
        Scale::Log => Transform::Log,
        Scale::Relative => Transform::Relative,
    };
    let area = pen.area();
    let rest = Rect { y: area.y + 1.min(area.height), height: area.height.saturating_sub(1), ..area };
    draw(&mut pen.part(rest), &Chart { curves, x: (start, end), transform, cursor }, "step");
}

pub(super) fn facts(app: &App, pen: &mut Pen<'_>) {
    let Some(job) = app.runs.selected() else { return };
    let s = &job.state;
    let mut doc = Doc::new(pen);
    let so_far = if s.reason.is_some() { String::new() } else { format!("  {}", progress(job)) };
    doc.pair("status", &format!("{}{so_far}", job.status().word()), role(job));
    if let Some(reason) = &s.reason {
        doc.pair("reason", reason, Role::Text);
    }
    if !s.phase.name.is_empty() {
        let of = s.phase.total.map_or(String::new(), |t| format!(" of {t}"));
        doc.pair("phase", &format!("{}  {}{of}", s.phase.name, s.phase.done), Role::Text);
    }
    if let Some(time) = elapsed(s) {
        doc.pair("ran", &time.to_string(), Role::Text);
    }
    doc.pair("model", &s.model, Role::Text);
    doc.pair("job", &job.id, Role::Text);
    doc.pair("directory", &job.dir.to_string_lossy(), Role::Dim);
    if let Some(pid) = s.pid {
        doc.pair("process", &pid.to_string(), Role::Dim);
    }
    if let Some(u) = job.usage {
        doc.pair("memory", &format!("{} of {}", Bytes(u.rss), Bytes(u.memory)), Role::Text);
        doc.pair("cpu", &format!("{:.0} % of one core", u.cpu), Role::Text);
    }
    if s.warnings > 0 {
        doc.pair("warnings", &s.warnings.to_string(), Role::Warn);
    }
    if s.dropped > 0 {
        doc.pair("dropped", &format!("{} records could not be written", s.dropped), Role::Warn);
    }
    if !job.against.is_empty() {
        doc.heading("Not recommended");
        for reason in &job.against {
            doc.item("!", Role::Bad, reason);
        }
    }
    if !s.steps.is_empty() {
        doc.heading("Steps");
        for (i, step) in s.steps.iter().enumerate() {
            doc.item(&(i + 1).to_string(), Role::Dim, step);
        }
    }
    if !s.artifacts.is_empty() {
        doc.heading("Variants");
        for a in &s.artifacts {
            doc.item("·", Role::Dim, &format!("{}  {}  {}", a.name, Bytes(a.bytes), a.path));
        }
    }
    if let Some((step, path)) = &s.checkpoint {
        doc.heading("Checkpoint");
        doc.item("·", Role::Dim, &format!("after step {}  {path}", step + 1));
    }
    if !s.measurements.is_empty() {
        doc.heading("Measured");
        for m in &s.measurements {
            let latency = m.latency_ms.as_ref().map_or("no latency".into(), |l| Millis(l.p50).to_string());
            let quality =
                m.quality.as_ref().map_or(String::new(), |q| format!("  {} {:.4}", q.metric, q.value));
            doc.item("·", Role::Dim, &format!("{}  {latency}{quality}", m.variant));
            for failure in &m.failures {
                doc.item("!", Role::Warn, failure);
            }
        }
        doc.text(&format!("{} compares them", app.keymap.key_name(Action::TabCompare)), Role::Dim);
    }
    doc.draw(pen, &app.runs.facts);
}

pub(super) fn tail_title(app: &App) -> Titles {
    let warnings = app.runs.selected().map_or(0, |j| j.state.warnings);
    let note = if warnings > 0 { vec![span(many(warnings as usize, "warning"), Role::Warn)] } else { vec![] };
    (vec![span("Log", Role::Title)], note)
}

pub(super) fn tail(app: &App, pen: &mut Pen<'_>) {
    let Some(job) = app.runs.selected() else { return };
    let height = pen.height();
    let lines = &job.state.log;
    if lines.is_empty() {
        pen.text(1, 0, "No lines yet.", Role::Dim);
        return;
    }
    let room = pen.width().saturating_sub(17);
    // Position 0 is the end; scrolling goes back in time.
    let window = app.runs.tail.window(lines.len(), height);
    let (start, end) = (lines.len() - window.end, lines.len() - window.start);
    for (y, line) in lines[start..end].iter().enumerate() {
        let (word, tone) = level(line.level);
        pen.spans(1, y, 8, &[span(super::super::log::clock(line.wall_ms), Role::Dim)]);
        pen.spans(10, y, 5, &[span(word, tone)]);
        let first = wrap(&line.message, usize::MAX / 4).into_iter().next().unwrap_or_default();
        let text = [span(first, if tone == Role::Dim { Role::Text } else { tone })];
        pen.spans(16, y, room.min(width_of(&text)), &text);
    }
}
