//! What evaluations on a task say.

use super::{Cell, Present, Report, Table};
use crate::error::Result;
use crate::evaluate::tasks::{Evaluation, SCHEMA_VERSION};
use serde::Serialize;
use serde_json::Value;

#[derive(Serialize)]
struct Document<'a> {
    schema_version: u32,
    evaluations: &'a [Evaluation],
}

impl Present for [Evaluation] {
    fn report(&self) -> Result<Report> {
        let mut table = Table::new(&[
            ("model", "<model"),
            ("metric", "<metric"),
            ("value", "value"),
            ("ci95", "95 % interval"),
        ]);
        let number = |v: f64| match v.abs() {
            0.0 => "0".into(),
            a if a < 1e-3 => format!("{v:.3e}"),
            _ => format!("{v:.5}"),
        };
        for e in self {
            let model = e.model.path.display().to_string();
            for m in &e.metrics {
                table.push([
                    Cell::text(model.clone()),
                    Cell::text(m.name.clone()),
                    Cell::value(m.value, number(m.value)),
                    m.ci95.as_ref().map_or_else(Cell::empty, |i| {
                        Cell::text(format!("{}..{}", number(i.low), number(i.high)))
                    }),
                ]);
            }
        }
        let document = Document { schema_version: SCHEMA_VERSION, evaluations: self };
        let mut report = Report::new(&document)?.records(self)?.table(table);
        for e in self {
            let facts: Vec<String> = e
                .settings
                .iter()
                .map(|(k, v)| match v {
                    Value::String(s) => format!("{k} {s}"),
                    v => format!("{k} {v}"),
                })
                .collect();
            let against =
                e.reference.as_ref().map_or(String::new(), |r| format!(" against {}", r.path.display()));
            report = report.line(format!(
                "{} of {}{against} on {} ({}, {:.1} s): {}",
                e.task,
                e.model.path.display(),
                e.data,
                e.model.engine,
                e.seconds,
                facts.join(", ")
            ));
            for note in &e.notes {
                report = report.line(format!("note: {note}"));
            }
        }
        Ok(report)
    }
}
