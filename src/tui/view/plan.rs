//! Drawing of the Plan tab.

use super::super::action::Action;
use super::super::app::App;
use super::super::layout::Pane;
use super::super::paint::{Pen, Span, many, span};
use super::super::plan::{Order, Ranked, command};
use super::super::theme::Role;
use super::doc::Doc;
use super::model::mark_row;
use super::table::{Cell, Column, Grid, cell, flexible, left, right};
use crate::plan::{Confidence, Proposal};
use crate::units::{Bytes, Millis, Span as Time};

type Titles = (Vec<Span>, Vec<Span>);

const COLUMNS: [Column; 8] = [
    right("#", 3, 0),
    flexible("recipe", 20),
    right("size", 10, 0),
    right("latency", 10, 0),
    right("speed-up", 8, 3),
    right("quality loss", 12, 2),
    left("confidence", 10, 4),
    left("goal", 7, 1),
];

pub(super) fn title(app: &App) -> Titles {
    let tab = &app.plan;
    let mut title = vec![span("Proposals", Role::Title)];
    if let Some(path) = &app.model.path {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        title.push(span(" · ", Role::Dim));
        title.push(span(crate::text::clean(&name, 32), Role::Accent));
    }
    let note = if tab.loading {
        vec![span("predicting…", Role::Info)]
    } else if tab.proposals().is_empty() {
        vec![]
    } else {
        let recipes = many(tab.proposals().len(), "recipe");
        vec![span(format!("{recipes} · predictions, not measurements"), Role::Dim)]
    };
    (title, note)
}

fn goal_line(app: &App) -> Vec<Span> {
    let goal = &app.plan.goal;
    let mut out = vec![
        span("Goal  ", Role::Dim),
        span("device ", Role::Dim),
        span(goal.device.clone().unwrap_or_else(|| "host".into()), Role::Accent),
    ];
    let mut gate = |label: &str, value: Option<String>| {
        if let Some(value) = value {
            out.push(span(format!("  {label} "), Role::Dim));
            out.push(span(format!("≤{value}"), Role::Strong));
        }
    };
    gate("latency", goal.latency_ms.map(|v| Millis(v).to_string()));
    gate("size", goal.size_mb.map(|v| format!("{v} MB")));
    gate("memory", goal.memory_mb.map(|v| format!("{v} MB")));
    gate("quality drop", goal.max_quality_drop.map(|v| format!("{:.2} %", v * 100.0)));
    if goal.latency_ms.is_none()
        && goal.size_mb.is_none()
        && goal.memory_mb.is_none()
        && goal.max_quality_drop.is_none()
    {
        out.push(span(
            format!("  no limits, {} sets some", app.keymap.key_name(Action::EditGoal)),
            Role::Dim,
        ));
    }
    if let Some(eval) = &app.plan.data.eval {
        out.push(span("  data ", Role::Dim));
        out.push(span(eval.clone(), Role::Text));
    }
    out
}

/// The model as it is on the device, to compare the predictions with.
fn original_line(app: &App) -> Vec<Span> {
    let (Some(ranked), Some(opened)) = (&app.plan.ranked, &app.model.opened) else { return vec![] };
    let mut out = vec![
        span("As is ", Role::Dim),
        span(Bytes(opened.summary.file_bytes).to_string(), Role::Text),
        span(" · ", Role::Dim),
    ];
    match ranked.recommendation.original_latency_ms {
        Some((middle, low, high)) if low < high => {
            out.push(span(Millis(middle).to_string(), Role::Text));
            out.push(span(format!(" predicted, {} to {}", Millis(low), Millis(high)), Role::Dim));
        }
        Some((middle, ..)) => {
            out.push(span(Millis(middle).to_string(), Role::Text));
            out.push(span(" measured", Role::Dim));
        }
        None => out.push(span("latency unknown", Role::Warn)),
    }
    let device = &ranked.device;
    out.push(span(format!(" · {} · {}", device.isa, many(device.cores, "thread")), Role::Dim));
    out
}

pub(super) fn proposals(app: &App, pen: &mut Pen<'_>, focused: bool) {
    let tab = &app.plan;
    let width = pen.width().saturating_sub(2);
    pen.spans(1, 0, width, &goal_line(app));
    if tab.proposals().is_empty() {
        let area = pen.area();
        let mut rest = pen.part(ratatui::layout::Rect {
            y: area.y + 1.min(area.height),
            height: area.height.saturating_sub(1),
            ..area
        });
        let (open, goal) =
            (app.keymap.key_name(Action::OpenModelPlan), app.keymap.key_name(Action::EditGoal));
        return match (&tab.failure, app.has_model()) {
            (Some(failure), _) => super::empty(&mut rest, &failure.message, &[(&goal, "change the goal")]),
            (None, true) if tab.loading => {
                super::empty(&mut rest, "Predicting size, latency and quality …", &[])
            }
            (None, true) => super::empty(
                &mut rest,
                "No recipe helps this model on this device; the reasons stand under Why.",
                &[(&goal, "change the goal"), (&open, "open another model")],
            ),
            (None, false) => super::empty(
                &mut rest,
                "Recipes are ranked for a model, a device and a goal. Open a model first.",
                &[(&open, "open a model"), (&goal, "set the goal")],
            ),
        };
    }
    pen.spans(1, 1, width, &original_line(app));
    let grid = Grid::new(&COLUMNS, width);
    let sorted = match tab.order {
        Order::Rank => 0,
        Order::Size => 2,
        Order::Latency => 3,
        Order::Quality => 5,
        Order::Cost => usize::MAX,
    };
    grid.header(pen, 2, &COLUMNS, Some((sorted, tab.reverse)));
    let window = tab.list.window(tab.rows.len(), pen.height().saturating_sub(3));
    for (y, at) in window.enumerate() {
        let y = y + 3;
        let p = &tab.proposals()[tab.rows[at]];
        grid.row(pen, y, &COLUMNS, |column| proposal_cell(p, column));
        if at == tab.list.selected {
            mark_row(pen, y, focused);
        }
        super::clickable(app, pen, y, Pane::Proposals, at);
    }
}

fn proposal_cell(p: &Proposal, column: usize) -> Cell {
    match column {
        0 if p.rank == 0 => cell("own", Role::Accent),
        0 => cell(p.rank.to_string(), Role::Dim),
        1 => cell(p.name.clone(), Role::Strong),
        2 => cell(Bytes(p.predicted_file_bytes).to_string(), Role::Text),
        3 => match p.predicted_latency_ms {
            Some((middle, _, _)) => cell(Millis(middle).to_string(), Role::Text),
            None => cell("unknown", Role::Dim),
        },
        4 => match p.predicted_speedup {
            Some(v) if v.is_finite() => {
                let role = if v >= 1.02 {
                    Role::Good
                } else if v <= 0.98 {
                    Role::Bad
                } else {
                    Role::Text
                };
                cell(format!("{v:.2}×"), role)
            }
            _ => cell("–", Role::Dim),
        },
        5 => cell(loss(p), if p.expected_quality_drop.1 > 0.02 { Role::Warn } else { Role::Text }),
        6 => {
            let (word, role) = confidence(p.confidence);
            cell(word, role)
        }
        _ => match p.meets_goal {
            Some(true) => cell("meets", Role::Good),
            Some(false) => cell("misses", Role::Bad),
            None => cell("–", Role::Dim),
        },
    }
}

fn loss(p: &Proposal) -> String {
    let (low, high) = p.expected_quality_drop;
    if low == 0.0 && high == 0.0 {
        "none".into()
    } else {
        format!("{:.1}–{:.1} %", low * 100.0, high * 100.0)
    }
}

fn confidence(c: Confidence) -> (&'static str, Role) {
    match c {
        Confidence::High => ("high", Role::Good),
        Confidence::Medium => ("medium", Role::Text),
        Confidence::Low => ("low", Role::Warn),
    }
}

pub(super) fn why_title(app: &App) -> Titles {
    let mut title = vec![span("Why", Role::Title)];
    if let Some(p) = app.plan.selected() {
        title.push(span(format!(" {}", crate::text::clean(&p.name, 40)), Role::Accent));
    }
    (title, vec![])
}

pub(super) fn why(app: &App, pen: &mut Pen<'_>) {
    let mut doc = Doc::new(pen);
    if let Some(p) = app.plan.selected() {
        proposal(app, p, &mut doc);
    }
    if let Some(ranked) = &app.plan.ranked {
        answer(app, ranked, &mut doc);
    }
    doc.draw(pen, &app.plan.why);
}

/// What holds for all proposals: what to know, what was refused, what is assumed of the device.
fn answer(app: &App, ranked: &Ranked, doc: &mut Doc) {
    let Ranked { device, recommendation } = ranked;
    if !recommendation.notes.is_empty() {
        doc.heading("To know");
        for note in &recommendation.notes {
            doc.item("!", Role::Warn, note);
        }
    }
    if !recommendation.refused.is_empty() {
        doc.heading("Not proposed");
        for refused in &recommendation.refused {
            doc.item("-", Role::Dim, &format!("{}: {}", refused.name, refused.reason));
        }
        let key = app.keymap.key_name(Action::EditGoal);
        doc.text(
            &format!("{key} sets the data (--data, --calibration and --train on the command line)"),
            Role::Dim,
        );
    }
    doc.heading("Device");
    doc.pair("name", &format!("{}, {}", device.name, device.description), Role::Text);
    doc.pair(
        "assumed",
        &format!(
            "{} cores, {}, {:.0} GFLOP/s, {:.1} GB/s, {} of memory",
            device.cores,
            device.isa,
            device.gflops_per_core * device.cores as f64,
            device.bandwidth_gbs,
            Bytes(device.ram_mb.saturating_mul(1_000_000))
        ),
        Role::Text,
    );
    doc.pair("from", &device.source, Role::Dim);
}

fn proposal(app: &App, p: &Proposal, doc: &mut Doc) {
    let (word, role) = confidence(p.confidence);
    doc.pair("confidence", word, role);
    if let Some((middle, low, high)) = p.predicted_latency_ms {
        let text = format!("{}, between {} and {}", Millis(middle), Millis(low), Millis(high));
        doc.pair("latency", &text, Role::Text);
    }
    doc.pair("quality loss", &loss(p), Role::Text);
    doc.pair("takes", &format!("about {}", Time(p.cost_seconds)), Role::Text);
    if !p.reasons.is_empty() {
        doc.heading("Because");
        for reason in &p.reasons {
            doc.item("+", Role::Good, reason);
        }
    }
    if !p.risks.is_empty() {
        doc.heading("Risks");
        for risk in &p.risks {
            doc.item("!", Role::Warn, risk);
        }
    }
    if let Some(run) = app.quantised() {
        doc.heading("As it ran last");
        let kept = run.recipe.in_float().len();
        let in_float = if kept > 0 { format!(", {kept} in float") } else { String::new() };
        let told = format!("job {}: {}{in_float}", run.job, many(run.layers.len(), "layer"));
        doc.text(&told, Role::Text);
        for reason in app.runs.jobs.iter().filter(|j| j.id == run.job).flat_map(|j| &j.against) {
            doc.item("!", Role::Bad, reason);
        }
        let key = app.keymap.key_name(Action::NextPane);
        doc.text(&format!("{key} shows what each layer became"), Role::Dim);
    }
    doc.heading("Steps");
    for (i, step) in p.recipe.steps.iter().enumerate() {
        doc.item(&(i + 1).to_string(), Role::Dim, &step.describe());
    }
    doc.heading("Command");
    doc.text(&command(&p.recipe), Role::Key);
    doc.text(
        &format!(
            "{} runs it, {} writes the recipe to a file",
            app.keymap.key_name(Action::Run),
            app.keymap.key_name(Action::Export)
        ),
        Role::Dim,
    );
}
