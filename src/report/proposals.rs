//! What a recommendation says.

use super::{Cell, Present, Report, Table};
use crate::error::Result;
use crate::plan::{Confidence, Recommendation};
use crate::units::{Bytes, Span};

impl Present for Recommendation {
    fn report(&self) -> Result<Report> {
        let mut table = Table::new(&[
            ("rank", "#"),
            ("name", "<proposal"),
            ("predicted_latency_ms", "latency ms"),
            ("predicted_latency_range", "?range"),
            ("predicted_speedup", "speed-up"),
            ("predicted_file_bytes", "file"),
            ("expected_quality_drop", "quality drop"),
            ("cost_seconds", "?cost"),
            ("confidence", "<confidence"),
            ("meets_goal", "<goal"),
        ]);
        for p in &self.proposals {
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
        let mut report = Report::new(self)?.records(&self.proposals)?.table(table);
        for p in &self.proposals {
            let steps: Vec<String> = p.recipe.steps.iter().map(|s| s.describe()).collect();
            report = report.heading(format!("{} {}: {}", p.rank, p.name, steps.join(" | ")));
            for reason in &p.reasons {
                report = report.line(format!("  + {reason}"));
            }
            for risk in &p.risks {
                report = report.line(format!("  ? {risk}"));
            }
        }
        if self.proposals.is_empty() {
            report = report.line("no recipe at hand promises a gain for this model");
        }
        if !self.refused.is_empty() {
            report = report.heading("not proposed");
        }
        for refused in &self.refused {
            report = report.line(format!("  {}: {}", refused.name, refused.reason));
        }
        if let Some((mid, low, high)) = self.original_latency_ms {
            report = report
                .line(format!("the model as it is, on {}: {mid:.3} ms ({low:.3}..{high:.3})", self.device));
        }
        for note in &self.notes {
            report = report.line(format!("note: {note}"));
        }
        Ok(report.line("predictions, not measurements: run a proposal to know"))
    }
}
