//! What a comparison of two models says.

use super::{Cell, Present, Report, Table};
use crate::analysis::diff::{ChangeKind, Diff, GroupChange, LayerChange, LayerTime, WeightChange};
use crate::error::Result;
use crate::units::{Bytes, Count};

/// Rows of a table that is shown in brief.
const BRIEF: usize = 40;

impl Present for Diff {
    fn report(&self) -> Result<Report> {
        differences(self, false)
    }
}

/// The report of a comparison. In brief, long tables are cut and what did not change is left out.
pub fn differences(d: &Diff, brief: bool) -> Result<Report> {
    let mut totals =
        Table::new(&[("name", "<total"), ("before", "before"), ("after", "after"), ("delta", "change")]);
    for t in &d.totals {
        let text =
            |v: u64| if t.name.ends_with("bytes") { Bytes(v).to_string() } else { Count(v).to_string() };
        let delta = (t.before > 0).then(|| t.after as f64 / t.before as f64 - 1.0);
        totals.push([
            Cell::text(t.name.clone()),
            Cell::value(t.before, text(t.before)),
            Cell::value(t.after, text(t.after)),
            Cell::maybe(delta, |d| format!("{:+.1} %", 100.0 * d)),
        ]);
    }
    let mut report = Report::new(d)?.records(&d.layers)?.table(totals);
    let paired = d.by_name + d.by_structure;
    if paired + d.layer_counts.removed + d.layer_counts.added > 0 {
        report = report.line(format!(
            "{paired} nodes paired, {} by name and {} by structure: {}",
            d.by_name, d.by_structure, d.layer_counts
        ));
    }
    report = report.line(format!("weights: {}", d.weight_counts));
    if !d.groups.is_empty() {
        let groups: Vec<&GroupChange> = d.groups.iter().collect();
        report = titled(report, "groups", groups.len(), brief).table(group_table(&cut(&groups, brief)));
    }
    let layers: Vec<&LayerChange> =
        d.layers.iter().filter(|l| !brief || l.change != ChangeKind::Renamed).collect();
    if !layers.is_empty() {
        report = titled(report, "layers", layers.len(), brief).table(layer_table(&cut(&layers, brief)));
    } else if paired > 0 {
        report = report.line("no layer differs in operator, attributes, shape or inputs");
    }
    let mut weights: Vec<&WeightChange> = d
        .weights
        .iter()
        .filter(|w| !brief || !matches!(w.change, None | Some(ChangeKind::Renamed | ChangeKind::Recoded)))
        .collect();
    if brief {
        // The farthest apart first; those without numbers stand before them.
        let far =
            |w: &&WeightChange| w.difference.map_or(f64::INFINITY, |d| d.relative_l2.unwrap_or(f64::MAX));
        weights.sort_by(|a, b| far(b).total_cmp(&far(a)));
    }
    if !weights.is_empty() {
        report = titled(report, "weights", weights.len(), brief).table(weight_table(&cut(&weights, brief)));
    }
    if let Some(times) = &d.times {
        let layers: Vec<&LayerTime> = times.layers.iter().collect();
        report = titled(report, "time by layer", layers.len(), brief).table(time_table(&cut(&layers, brief)));
        let (was, is) = (&times.before, &times.after);
        report = report.line(format!(
            "all nodes: {:.3} ms before, {:.3} ms after; by layers of the model before: {:.3} and {:.3} ms",
            was.nodes_ms, is.nodes_ms, was.known_ms, is.known_ms
        ));
        report = report
            .line("one profile each, the profiler's own time included: `tinsmith bench` compares latencies");
    }
    for warning in &d.warnings {
        report = report.line(format!("warning: {warning}"));
    }
    if brief && (layers.len() > BRIEF || weights.len() > BRIEF) {
        report = report.line("all rows: --all, or another --format");
    }
    Ok(report)
}

fn cut<'a, T>(rows: &[&'a T], brief: bool) -> Vec<&'a T> {
    rows.iter().take(if brief { BRIEF } else { usize::MAX }).copied().collect()
}

fn titled(report: Report, name: &str, rows: usize, brief: bool) -> Report {
    report.heading(match brief && rows > BRIEF {
        true => format!("{name}, {BRIEF} of {rows} that differ"),
        false => name.to_string(),
    })
}

fn optional(text: &Option<String>) -> Cell {
    text.clone().map_or_else(Cell::empty, Cell::text)
}

fn group_table(groups: &[&GroupChange]) -> Table {
    let mut table = Table::new(&[
        ("name", "<first weight of the group"),
        ("kind", "<kind"),
        ("before", "before"),
        ("after", "after"),
        ("delta", "change"),
    ]);
    for g in groups {
        let delta = g.after as f64 / g.before.max(1) as f64 - 1.0;
        table.push([
            Cell::text(g.name.clone()),
            Cell::text(g.kind.word()),
            Cell::value(g.before as u64, g.before.to_string()),
            Cell::value(g.after as u64, g.after.to_string()),
            Cell::value(delta, format!("{:+.1} %", 100.0 * delta)),
        ]);
    }
    table
}

fn time_table(layers: &[&LayerTime]) -> Table {
    let mut table = Table::new(&[
        ("name", "<layer"),
        ("before_ms", "before ms"),
        ("after_ms", "after ms"),
        ("delta", "change ms"),
        ("before", "<ran before"),
        ("after", "<ran after"),
    ]);
    for l in layers {
        let ms = |v: f64| Cell::value(v, format!("{v:.3}"));
        let delta = l.after_ms - l.before_ms;
        table.push([
            Cell::text(l.name.clone()),
            ms(l.before_ms),
            ms(l.after_ms),
            Cell::value(delta, format!("{delta:+.3}")),
            Cell::text(l.before.clone()),
            Cell::text(l.after.clone()),
        ]);
    }
    table
}

fn layer_table(layers: &[&LayerChange]) -> Table {
    let mut table = Table::new(&[
        ("name", "<layer"),
        ("change", "<change"),
        ("what", "<what"),
        ("before", "<before"),
        ("after", "<after"),
        ("renamed", "?<new name"),
    ]);
    for l in layers {
        table.push([
            Cell::text(l.name.clone()),
            Cell::text(l.change.word()),
            Cell::text(l.what.join(" ")),
            optional(&l.before),
            optional(&l.after),
            optional(&l.renamed),
        ]);
    }
    table
}

fn weight_table(weights: &[&WeightChange]) -> Table {
    let mut table = Table::new(&[
        ("name", "<weight"),
        ("change", "<change"),
        ("before", "<before"),
        ("after", "<after"),
        ("max_abs", "max |d|"),
        ("relative_l2", "rel. L2"),
        ("cosine", "cosine"),
        ("renamed", "?<new name"),
    ]);
    for w in weights {
        let d = w.difference;
        table.push([
            Cell::text(w.name.clone()),
            Cell::text(w.change.map_or("same", ChangeKind::word)),
            optional(&w.before),
            optional(&w.after),
            Cell::maybe(d.map(|d| d.max_abs), |v| format!("{v:.2e}")),
            Cell::maybe(d.and_then(|d| d.relative_l2), |v| format!("{v:.2e}")),
            Cell::maybe(d.and_then(|d| d.cosine), |v| format!("{v:.6}")),
            optional(&w.renamed),
        ]);
    }
    table
}
