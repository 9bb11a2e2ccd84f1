//! What a comparison says.

use super::{Cell, Present, Report, Table};
use crate::compare::{Comparison, Delta, Verdict};
use crate::error::Result;
use crate::units::Bytes;

impl Present for Comparison {
    fn report(&self) -> Result<Report> {
        let mut table = Table::new(&[
            ("variant", "<variant"),
            ("latency_ms_p50", "p50 ms"),
            ("latency_delta", "latency"),
            ("latency_ci95", "?95 % interval"),
            ("latency_p_value", "?p"),
            ("latency_verdict", "<verdict"),
            ("peak_rss_bytes", "?memory"),
            ("file_bytes", "?file"),
            ("size_delta", "size"),
            ("quality", "quality"),
            ("quality_delta", "points"),
            ("quality_ci95", "?95 % interval"),
            ("quality_p_value", "?p"),
            ("quality_verdict", "<verdict"),
            ("quality_minimum_detectable", "?shows"),
            ("pareto", "?<front"),
            ("conclusion", "<conclusion"),
        ]);
        for row in &self.rows {
            let m = &row.measurement;
            let (l, q) = (row.latency.as_ref(), row.quality.as_ref());
            table.push([
                Cell::text(m.variant.clone()),
                Cell::maybe(m.latency_ms.as_ref().map(|l| l.p50), |v| format!("{v:.3}")),
                change(l, percent),
                interval(l, percent),
                p_value(l),
                verdict(l),
                Cell::maybe(m.peak_rss_bytes, |b| Bytes(b).to_string()),
                Cell::value(m.file_bytes, Bytes(m.file_bytes)),
                change(row.size.as_ref(), percent),
                Cell::maybe(m.quality.as_ref().map(|q| q.value), |v| format!("{v:.4}")),
                change(q, points),
                interval(q, points),
                p_value(q),
                verdict(q),
                Cell::maybe(q.and_then(|q| q.minimum_detectable), |v| format!("{:.2}", 100.0 * v)),
                Cell::value(row.pareto, if row.pareto { "front" } else { "" }),
                Cell::text(row.conclusion.clone()),
            ]);
        }
        let base = &self.rows[self.baseline.min(self.rows.len().saturating_sub(1))].measurement;
        let metric = base.quality.as_ref().map_or("quality", |q| q.metric.as_str());
        let mut report = Report::new(self)?
            .records(&self.rows)?
            .table(table)
            .line(format!(
                "against {}; {metric} is non-inferior within {:.1} % (relative); p-values are Holm-corrected over {} variants; \
                 `shows` is the smallest change in points that the data show (80 % power)",
                base.variant,
                100.0 * self.margin,
                self.rows.len().saturating_sub(1)
            ));
        for note in &self.notes {
            report = report.line(format!("note: {note}"));
        }
        Ok(report.line(winner(self)))
    }
}

fn winner(c: &Comparison) -> String {
    let recommended: Vec<&str> = c
        .rows
        .iter()
        .filter(|r| r.conclusion.starts_with("recommended"))
        .map(|r| r.measurement.variant.as_str())
        .collect();
    match recommended.as_slice() {
        [] => "conclusion: no variant is shown to be better at equal quality".into(),
        some => format!("conclusion: better at equal quality: {}", some.join(", ")),
    }
}

fn percent(v: f64) -> String {
    format!("{:+.1} %", 100.0 * v)
}

fn points(v: f64) -> String {
    format!("{:+.2}", 100.0 * v)
}

fn change(delta: Option<&Delta>, text: fn(f64) -> String) -> Cell {
    match delta {
        Some(d) if d.verdict == Verdict::Baseline => Cell::value(0.0, ""),
        Some(d) if d.verdict == Verdict::NotComparable => {
            Cell { text: "n/a".into(), value: serde_json::Value::Null }
        }
        other => Cell::maybe(other.map(|d| d.delta), text),
    }
}

fn interval(delta: Option<&Delta>, text: fn(f64) -> String) -> Cell {
    delta.and_then(|d| d.ci95.as_ref()).map_or_else(
        || Cell { text: String::new(), value: serde_json::Value::Null },
        |i| {
            Cell::value(
                format!("{}..{}", i.low, i.high),
                format!("{}..{}", text(i.low).replace(" %", ""), text(i.high)),
            )
        },
    )
}

fn p_value(delta: Option<&Delta>) -> Cell {
    let text = |p: f64| if p < 0.001 { "<0.001".into() } else { format!("{p:.3}") };
    match delta.and_then(|d| d.p_value) {
        Some(p) => Cell::value(p, text(p)),
        None => Cell { text: String::new(), value: serde_json::Value::Null },
    }
}

fn verdict(delta: Option<&Delta>) -> Cell {
    delta.map_or_else(Cell::empty, |d| Cell::text(d.verdict.word()))
}
