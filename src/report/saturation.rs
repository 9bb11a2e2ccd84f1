//! How much saturates where, and what it does.

use super::{Cell, Present, Report, Table};
use crate::analysis::Saturation;
use crate::error::Result;

impl Present for Saturation {
    fn report(&self) -> Result<Report> {
        let mut table = Table::new(&[
            ("node", "<layer"),
            ("operator", "<operator"),
            ("pairs", "pairs"),
            ("saturated_pairs", "saturated"),
            ("share", "share"),
            ("changed_outputs", "changed"),
            ("outputs", "of outputs"),
            ("largest_error", "largest error"),
            ("largest_sum", "of"),
        ]);
        for l in &self.layers {
            let count = |n: f64| Cell::value(n, format!("{n}"));
            table.push([
                Cell::text(l.node.clone()),
                Cell::text(l.operator.clone()),
                count(l.pairs as f64),
                count(l.saturated_pairs as f64),
                Cell::value(l.share, format!("{:.4} %", 100.0 * l.share)),
                count(l.changed_outputs as f64),
                count(l.outputs as f64),
                count(l.largest_error as f64),
                count(l.largest_sum as f64),
            ]);
        }
        let mut report = Report::new(self)?.records(&self.layers)?.table(table);
        if !self.saturates {
            return Ok(report.line(format!("{} sums 8-bit products exactly: nothing saturates", self.isa)));
        }
        let (pairs, saturated) =
            self.layers.iter().fold((0, 0), |(p, s), l| (p + l.pairs, s + l.saturated_pairs));
        report = report.line(format!(
            "{saturated} of {pairs} pairs saturate on {} over {} samples ({:.5} %)",
            self.isa,
            self.samples,
            100.0 * saturated as f64 / pairs.max(1) as f64
        ));
        for o in &self.outputs {
            report = report.line(format!(
                "output {}: cosine with exact sums {:.6}, largest difference {:.4} of {:.4}",
                o.name, o.cosine, o.largest_difference, o.largest
            ));
        }
        Ok(report)
    }
}
