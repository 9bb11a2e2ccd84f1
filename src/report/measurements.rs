//! What measurements say, without a comparison.

use super::{Cell, Present, Report, Table};
use crate::error::Result;
use crate::evaluate::measurement::Measurement;
use crate::units::{Bytes, Count};
use serde::Serialize;

#[derive(Serialize)]
struct Document<'a> {
    schema_version: u32,
    measurements: &'a [Measurement],
}

impl Present for [Measurement] {
    fn report(&self) -> Result<Report> {
        let mut table = Table::new(&[
            ("variant", "<variant"),
            ("threads", "threads"),
            ("latency_ms_p50", "p50 ms"),
            ("latency_ms_ci95", "95 % interval"),
            ("latency_ms_p90", "?p90 ms"),
            ("latency_ms_p99", "?p99 ms"),
            ("n", "?n"),
            ("throughput_per_s", "?per s"),
            ("peak_rss_bytes", "peak memory"),
            ("file_bytes", "file"),
            ("parameters", "?parameters"),
            ("macs", "?macs"),
            ("quality", "quality"),
            ("output_error", "?output error"),
        ]);
        for m in self {
            let latency = m.latency_ms.as_ref();
            let number = |v: Option<f64>, digits: usize| Cell::maybe(v, |v| format!("{v:.digits$}"));
            table.push([
                Cell::text(m.variant.clone()),
                Cell::value(m.conditions.threads, m.conditions.threads),
                number(latency.map(|l| l.p50), 3),
                latency.map_or_else(Cell::empty, |l| {
                    Cell::text(format!("{:.3}..{:.3}", l.ci95.low, l.ci95.high))
                }),
                number(latency.map(|l| l.p90), 3),
                number(latency.and_then(|l| l.p99), 3),
                Cell::maybe(latency.map(|l| l.n as u64), |n| n.to_string()),
                number(m.throughput_per_s, 1),
                Cell::maybe(m.peak_rss_bytes, |b| Bytes(b).to_string()),
                Cell::value(m.file_bytes, Bytes(m.file_bytes)),
                Cell::value(m.parameters, Count(m.parameters)),
                Cell::value(m.macs, Count(m.macs)),
                m.quality.as_ref().map_or_else(Cell::empty, |q| {
                    Cell::value(
                        q.value,
                        format!(
                            "{} {:.4} [{:.4}, {:.4}] n={}",
                            q.metric, q.value, q.ci95.low, q.ci95.high, q.n
                        ),
                    )
                }),
                Cell::maybe(m.output_error, |e| format!("{e:.1e}")),
            ]);
        }
        let mut report = Report::new(&Document {
            schema_version: crate::evaluate::measurement::SCHEMA_VERSION,
            measurements: self,
        })?
        .records(self)?
        .table(table);
        for line in notes(self) {
            report = report.line(line);
        }
        Ok(report)
    }
}

fn notes(measurements: &[Measurement]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut add = |line: String| {
        if !out.contains(&line) {
            out.push(line);
        }
    };
    for m in measurements {
        let c = &m.conditions;
        add(format!("measured on {} ({}), {}; inputs {}", c.cpu, c.isa, c.runtime, c.inputs.join(" ")));
        if m.latency_ms.as_ref().is_some_and(|l| l.p99.is_none()) {
            add("p99 needs 299 samples, fewer were taken".into());
        }
        if !c.session.is_empty() {
            add(format!("{}: session with {}", m.variant, c.session.join(", ")));
        }
        if !c.noise.is_empty() {
            add(format!("{}: disturbed while measured: {}", m.variant, c.noise.join(", ")));
        }
        for failure in &m.failures {
            add(format!("{}: {failure}", m.variant));
        }
    }
    out
}
