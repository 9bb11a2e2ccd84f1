//! Drawing of what changed between two models.

use super::super::app::App;
use super::super::layout::Pane;
use super::super::model::DiffRow;
use super::super::paint::Pen;
use super::super::theme::Role;
use super::doc::Doc;
use super::model::mark_row;
use super::table::{Column, Grid, cell, flexible, left, right};
use crate::analysis::diff::{ChangeKind, Diff, Difference};
use crate::units::{Bytes, Count};

const ROWS: [Column; 5] = [
    flexible("name", 24),
    left("is", 6, 1),
    left("change", 8, 0),
    left("what", 18, 2),
    right("rel. L2", 8, 3),
];

pub(super) fn rows(app: &App, pen: &mut Pen<'_>, focused: bool) {
    let tab = &app.model;
    let Some(diff) = &tab.diff else { return };
    let grid = Grid::new(&ROWS, pen.width().saturating_sub(2));
    grid.header(pen, 0, &ROWS, None);
    if tab.diff_rows.is_empty() {
        let none = tab.filter.is_empty();
        let text = if none { "Nothing differs." } else { "No difference matches the filter." };
        pen.text(1, 2, text, Role::Dim);
        return;
    }
    let window = tab.differences.window(tab.diff_rows.len(), pen.height().saturating_sub(1));
    for (y, at) in window.enumerate() {
        let y = y + 1;
        let (name, is, change, what, numbers) = match tab.diff_rows[at] {
            DiffRow::Group(i) => {
                let g = &diff.groups[i];
                let what = format!("{} → {} {}", g.before, g.after, g.kind);
                (&g.name, "group", ChangeKind::Changed, what, None)
            }
            DiffRow::Layer(i) => {
                let l = &diff.layers[i];
                (&l.name, "layer", l.change, l.what.join(" "), None)
            }
            DiffRow::Weight(i) => {
                let w = &diff.weights[i];
                let what = if w.difference.is_some() { "elements" } else { "shape or encoding" };
                let change = w.change.unwrap_or(ChangeKind::Changed);
                let what = if change == ChangeKind::Changed { what } else { "" };
                (&w.name, "weight", change, what.to_string(), w.difference)
            }
        };
        grid.row(pen, y, &ROWS, |column| match column {
            0 => cell(name.clone(), Role::Text),
            1 => cell(is, Role::Dim),
            2 => cell(change.word(), role(change)),
            3 => cell(what.clone(), Role::Dim),
            _ => match numbers.and_then(|n: Difference| n.relative_l2) {
                Some(v) => cell(format!("{v:.1e}"), Role::Text),
                None => cell("–", Role::Dim),
            },
        });
        if at == tab.differences.selected {
            mark_row(pen, y, focused);
        }
        super::clickable(app, pen, y, Pane::Tree, at);
    }
}

fn role(change: ChangeKind) -> Role {
    match change {
        ChangeKind::Changed => Role::Warn,
        ChangeKind::Renamed | ChangeKind::Recoded => Role::Dim,
        ChangeKind::Removed => Role::Bad,
        ChangeKind::Added => Role::Good,
    }
}

/// The selected difference, and the models as a whole.
pub(super) fn detail(doc: &mut Doc, app: &App) {
    let Some(diff) = &app.model.diff else { return };
    match app.model.diff_rows.get(app.model.differences.selected) {
        Some(DiffRow::Group(i)) => {
            let g = &diff.groups[*i];
            doc.pair("group", &g.group.to_string(), Role::Strong);
            doc.pair("first weight", &g.name, Role::Text);
            let change = 100.0 * (g.after as f64 / g.before.max(1) as f64 - 1.0);
            doc.pair(g.kind.word(), &format!("{} → {}  {change:+.1} %", g.before, g.after), Role::Good);
            doc.pair("lies on", &format!("{} axes of weights", g.members), Role::Dim);
        }
        Some(DiffRow::Layer(i)) => {
            let l = &diff.layers[*i];
            doc.pair("layer", &l.name, Role::Strong);
            change(doc, l.change, &l.renamed, &l.before, &l.after);
            if !l.what.is_empty() {
                doc.pair("differs in", &l.what.join(", "), Role::Warn);
            }
            let (was, is) = (Count(l.parameters_before), Count(l.parameters_after));
            doc.pair("parameters", &format!("{was} → {is}"), Role::Text);
        }
        Some(DiffRow::Weight(i)) => {
            let w = &diff.weights[*i];
            doc.pair("weight", &w.name, Role::Strong);
            change(doc, w.change.unwrap_or(ChangeKind::Changed), &w.renamed, &w.before, &w.after);
            if let Some(d) = &w.difference {
                numbers(doc, d);
            }
        }
        None => {}
    }
    whole(doc, diff);
}

fn change(
    doc: &mut Doc,
    kind: ChangeKind,
    renamed: &Option<String>,
    before: &Option<String>,
    after: &Option<String>,
) {
    doc.pair("change", kind.word(), role(kind));
    for (label, value) in [("new name", renamed), ("before", before), ("after", after)] {
        if let Some(value) = value {
            doc.pair(label, value, Role::Text);
        }
    }
}

fn numbers(doc: &mut Doc, d: &Difference) {
    if d.identical {
        doc.pair("elements", "the same, bit by bit", Role::Good);
        return;
    }
    doc.pair("elements", &format!("{} differ", d.differing), Role::Text);
    doc.pair("max |d|", &format!("{:.3e}", d.max_abs), Role::Text);
    if let Some(v) = d.relative_l2 {
        doc.pair("relative L2", &format!("{v:.3e}"), Role::Text);
    }
    if let Some(v) = d.cosine {
        doc.pair("cosine", &format!("{v:.6}"), Role::Text);
    }
    if d.odd > 0 {
        doc.pair("damaged", &format!("{} NaN or infinite on one side", d.odd), Role::Bad);
    }
}

fn whole(doc: &mut Doc, diff: &Diff) {
    doc.heading("Both models");
    doc.pair("before", &diff.before, Role::Text);
    doc.pair("after", &diff.after, Role::Text);
    for t in &diff.totals {
        let text = |n: u64| match t.name.ends_with("bytes") {
            true => Bytes(n).to_string(),
            false => Count(n).to_string(),
        };
        let label = t.name.replace("_bytes", "").replace("peak_activation", "activations");
        let relative = match t.before {
            0 => String::new(),
            before => format!("  {:+.1} %", 100.0 * (t.after as f64 / before as f64 - 1.0)),
        };
        doc.pair(&label, &format!("{} → {}{relative}", text(t.before), text(t.after)), Role::Text);
    }
    let paired = format!("{} by name, {} by structure", diff.by_name, diff.by_structure);
    doc.pair("paired", &paired, Role::Text);
    for (label, c) in [("layers", &diff.layer_counts), ("weights", &diff.weight_counts)] {
        doc.pair(label, &c.to_string(), Role::Text);
    }
    for warning in &diff.warnings {
        doc.item("!", Role::Warn, warning);
    }
}
