//! What a recommendation says.

use super::{Cell, Present, Report, Table};
use crate::error::Result;
use crate::plan::{Confidence, Proposal};
use crate::units::{Bytes, Span};
use serde::Serialize;

#[derive(Serialize)]
struct Document<'a> {
    schema_version: u32,
    proposals: &'a [Proposal],
}

impl Present for [Proposal] {
    fn report(&self) -> Result<Report> {
        let mut table = Table::new(&[
            ("rank", "#"),
            ("name", "<proposal"),
            ("predicted_latency_ms", "latency ms"),
            ("predicted_latency_range", "range"),
            ("predicted_speedup", "speed-up"),
            ("predicted_file_bytes", "file"),
            ("expected_quality_drop", "quality drop"),
            ("cost_seconds", "cost"),
            ("confidence", "<confidence"),
            ("meets_goal", "<goal"),
        ]);
        for p in self {
            let latency = p.predicted_latency_ms;
            let (low, high) = p.expected_quality_drop;
            let confidence = match p.confidence {
                Confidence::High => "high",
                Confidence::Medium => "medium",
                Confidence::Low => "low",
            };
            table.push([
                Cell::value(p.rank, p.rank),
                Cell::text(p.name.clone()),
                Cell::maybe(latency.map(|l| l.0), |v| format!("{v:.3}")),
                latency.map_or_else(Cell::empty, |l| Cell::text(format!("{:.3}..{:.3}", l.1, l.2))),
                Cell::maybe(p.predicted_speedup, |v| format!("{v:.2}x")),
                Cell::value(p.predicted_file_bytes, Bytes(p.predicted_file_bytes)),
                Cell::text(format!("{:.1}..{:.1} %", 100.0 * low, 100.0 * high)),
                Cell::value(p.cost_seconds, Span(p.cost_seconds)),
                Cell::text(confidence),
                match p.meets_goal {
                    Some(meets) => Cell::value(meets, if meets { "met" } else { "missed" }),
                    None => Cell::empty(),
                },
            ]);
        }
        let mut report =
            Report::new(&Document { schema_version: 1, proposals: self })?.records(self)?.table(table);
        for p in self {
            let steps: Vec<String> = p.recipe.steps.iter().map(|s| s.describe()).collect();
            report = report.heading(format!("{} {}: {}", p.rank, p.name, steps.join(" | ")));
            for reason in &p.reasons {
                report = report.line(format!("  + {reason}"));
            }
            for risk in &p.risks {
                report = report.line(format!("  ? {risk}"));
            }
        }
        if self.is_empty() {
            report = report.line("no recipe at hand promises a gain for this model");
        }
        Ok(report.line("predictions, not measurements: run a proposal to know"))
    }
}
