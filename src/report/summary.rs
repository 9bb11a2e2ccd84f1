//! What an inspection says.

use super::{Cell, Present, Report, Table};
use crate::analysis::Summary;
use crate::analysis::summary::ValueInfo;
use crate::error::Result;
use crate::units::{Bytes, Count};

/// Rows of the per-operator table; the rest is one row.
const OPERATORS: usize = 12;

impl Present for Summary {
    fn report(&self) -> Result<Report> {
        let prunable = self.groups.iter().filter(|g| g.prunable).count();
        let opsets = self.opsets.iter().map(|(domain, version)| match domain.as_str() {
            "" => format!("ai.onnx {version}"),
            _ => format!("{domain} {version}"),
        });
        let unknown = match self.macs_unknown {
            0 => String::new(),
            n => format!(" (without {n} nodes of unknown shape)"),
        };
        let bound = self.bindings.iter().map(|(s, v)| format!("{s}={v}")).collect::<Vec<_>>().join(" ");
        let mut report = Report::new(self)?
            .records(&self.layers)?
            .facts([
                ("model", self.name.clone()),
                ("format", self.format.clone()),
                ("producer", self.producer.clone()),
                ("opsets", opsets.collect::<Vec<_>>().join(", ")),
                ("inputs", values(&self.inputs)),
                ("outputs", values(&self.outputs)),
                ("counted with", bound),
                ("nodes", self.layers.len().to_string()),
                ("parameters", format!("{} ({})", self.parameters, Count(self.parameters))),
                ("macs", format!("{} ({}){unknown}", self.macs, Count(self.macs))),
                ("weights", Bytes(self.weight_bytes).to_string()),
                ("file", Bytes(self.file_bytes).to_string()),
                ("peak activations", Bytes(self.peak_activation_bytes).to_string()),
                ("coupling groups", format!("{} of {} prunable", prunable, self.groups.len())),
            ])
            .heading("layers")
            .table(layers(self))
            .heading("operators")
            .table(operators(self));
        if !self.groups.is_empty() {
            report = report.heading("coupling groups").table(groups(self));
        }
        for (op, nodes) in &self.unknown_ops {
            report = report.line(format!("unknown operator: {op} ({nodes} nodes), kept as it is"));
        }
        for warning in &self.warnings {
            report = report.line(format!("warning: {warning}"));
        }
        Ok(report)
    }
}

fn values(values: &[ValueInfo]) -> String {
    let one = |v: &ValueInfo| format!("{}:{}{}", v.name, v.dtype, shape(v.shape.as_deref()));
    values.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn shape(shape: Option<&[String]>) -> String {
    shape.map_or("[?]".into(), |s| format!("[{}]", s.join(",")))
}

fn layers(summary: &Summary) -> Table {
    let mut table = Table::new(&[
        ("index", "#"),
        ("name", "<name"),
        ("op", "<operator"),
        ("output_shape", "<output"),
        ("dtype", "?<type"),
        ("parameters", "parameters"),
        ("macs", "macs"),
        ("weight_bytes", "?weights"),
        ("activation_bytes", "?activations"),
        ("group", "?group"),
    ]);
    for l in &summary.layers {
        table.push([
            Cell::value(l.index, l.index),
            Cell::text(l.name.clone()),
            Cell::text(l.op.clone()),
            Cell::text(shape(l.output_shape.as_deref())),
            Cell::text(l.dtype.clone()),
            Cell::value(l.parameters, dash(l.parameters, Count(l.parameters))),
            Cell::maybe(l.macs, |m| dash(m, Count(m))),
            Cell::value(l.weight_bytes, dash(l.weight_bytes, Bytes(l.weight_bytes))),
            Cell::maybe(l.activation_bytes, |b| Bytes(b).to_string()),
            Cell::maybe(l.group.map(|g| g as u64), |g| g.to_string()),
        ]);
    }
    table
}

fn dash(number: u64, text: impl ToString) -> String {
    if number == 0 { "-".into() } else { text.to_string() }
}

fn operators(summary: &Summary) -> Table {
    let mut kinds: Vec<(String, usize, u64, u64)> = Vec::new();
    for l in &summary.layers {
        match kinds.iter_mut().find(|k| k.0 == l.op) {
            Some(kind) => {
                kind.1 += 1;
                kind.2 += l.parameters;
                kind.3 += l.macs.unwrap_or(0);
            }
            None => kinds.push((l.op.clone(), 1, l.parameters, l.macs.unwrap_or(0))),
        }
    }
    kinds.sort_by(|a, b| (b.3, b.2, b.1).cmp(&(a.3, a.2, a.1)).then_with(|| a.0.cmp(&b.0)));
    if kinds.len() > OPERATORS {
        let rest = kinds.split_off(OPERATORS - 1);
        let sum = rest.iter().fold((0, 0, 0), |s, k| (s.0 + k.1, s.1 + k.2, s.2 + k.3));
        kinds.push((format!("{} others", rest.len()), sum.0, sum.1, sum.2));
    }
    let mut table = Table::new(&[
        ("op", "<operator"),
        ("nodes", "nodes"),
        ("parameters", "parameters"),
        ("macs", "macs"),
        ("macs_share", "macs %"),
    ]);
    for (op, nodes, parameters, macs) in kinds {
        let share = 100.0 * macs as f64 / summary.macs.max(1) as f64;
        table.push([
            Cell::text(op),
            Cell::value(nodes, nodes),
            Cell::value(parameters, dash(parameters, Count(parameters))),
            Cell::value(macs, dash(macs, Count(macs))),
            Cell::value(share, format!("{share:.1}")),
        ]);
    }
    table
}

fn groups(summary: &Summary) -> Table {
    let mut table = Table::new(&[
        ("id", "group"),
        ("units", "units"),
        ("parameters_per_unit", "parameters/unit"),
        ("members", "tensors"),
        ("prunable", "<prunable"),
    ]);
    for g in &summary.groups {
        let state = match (&g.pinned_by, g.prunable) {
            (_, true) => "yes".to_string(),
            (Some(why), false) => format!("no: {why}"),
            (None, false) => "no".to_string(),
        };
        table.push([
            Cell::value(g.id, g.id),
            Cell::value(g.units, g.units),
            Cell::value(g.parameters_per_unit, Count(g.parameters_per_unit)),
            Cell::value(g.members.len(), g.members.len()),
            Cell::value(g.prunable, state),
        ]);
    }
    table
}
