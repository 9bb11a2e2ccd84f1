//! What an inspection says.

use super::{Cell, Present, Report, Table};
use crate::analysis::summary::{GroupInfo, KvCache, ValueInfo};
use crate::analysis::{Layer, Summary, TensorInfo, Total};
use crate::error::Result;
use crate::formats::About;
use crate::tensor::Distribution;
use crate::units::{Bytes, Count, Millis};

/// Rows of a table of sums; the rest is one row.
const KINDS: usize = 12;

/// Parts of an inspection for people. Of JSON nothing is ever left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sections {
    /// Only these, where any is asked for.
    pub only: Vec<Section>,
    /// Only layers and tensors whose name, operator, encoding or role contains this.
    pub matching: String,
    /// For people: long tables are cut to their most expensive rows unless they were asked for, and
    /// there is no JSON.
    pub brief: bool,
}

/// A part of an inspection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// One row a layer.
    Layers,
    /// One row a weight.
    Tensors,
    /// Metadata in full.
    Metadata,
    /// Coupling groups.
    Groups,
}

/// Inputs and outputs that are named in brief.
const INTERFACE: usize = 4;
/// Rows of a table that is shown in brief.
const BRIEF: usize = 24;
/// Characters of a metadata value in the table.
const VALUE: usize = 4000;

impl Present for Summary {
    fn report(&self) -> Result<Report> {
        inspection(self, &Sections::default())
    }
}

/// The report of an inspection with the sections that were asked for.
pub fn inspection(s: &Summary, sections: &Sections) -> Result<Report> {
    // Text is all that is wanted in brief; ten thousand layers as JSON would only take memory.
    let mut report = match sections.only.first() {
        _ if sections.brief => Report::new(&())?,
        Some(Section::Tensors) => Report::new(s)?.records(&s.tensors)?,
        _ => Report::new(s)?.records(&s.layers)?,
    };
    if !sections.only.is_empty() {
        for section in &sections.only {
            report = match section {
                Section::Layers => report.heading("layers").table(layers(s, &sections.matching)),
                Section::Tensors => report.heading("tensors").table(tensors(s, &sections.matching)),
                Section::Metadata => metadata(report, s),
                Section::Groups => timing(report.heading("coupling groups"), s).table(groups(s)),
            };
        }
        return Ok(report);
    }
    let prunable = s.groups.iter().filter(|g| g.prunable).count();
    let opsets = s.opsets.iter().map(|(domain, version)| match domain.as_str() {
        "" => format!("ai.onnx {version}"),
        _ => format!("{domain} {version}"),
    });
    let unknown = match s.macs_unknown {
        0 => String::new(),
        n => format!(" (without {n} nodes of unknown shape)"),
    };
    let bound = s.bindings.iter().map(|(s, v)| format!("{s}={v}")).collect::<Vec<_>>().join(" ");
    let graph = |text: String| if s.no_graph.is_none() { text } else { String::new() };
    report = report.facts([
        ("model", s.name.clone()),
        ("format", s.format.clone()),
        ("producer", s.producer.clone()),
        ("opsets", opsets.collect::<Vec<_>>().join(", ")),
        ("inputs", values(&s.inputs, sections.brief)),
        ("outputs", values(&s.outputs, sections.brief)),
        ("counted with", bound),
        ("nodes", graph(s.layers.len().to_string())),
        ("tensors", s.tensors.len().to_string()),
        ("parameters", format!("{} ({})", s.parameters, Count(s.parameters))),
        ("macs", graph(format!("{} ({}){unknown}", s.macs, Count(s.macs)))),
        ("weights", Bytes(s.weight_bytes).to_string()),
        ("file", Bytes(s.file_bytes).to_string()),
        ("peak activations", graph(Bytes(s.peak_activation_bytes).to_string())),
        ("kv cache", s.kv_cache.as_ref().map_or(String::new(), kv_cache)),
        ("coupling groups", graph(format!("{} of {} prunable", prunable, s.groups.len()))),
    ]);
    if !s.about.is_empty() {
        report = about(report.heading("model"), &s.about);
    }
    // The main table, which is what CSV writes, is that of the layers.
    let all = !sections.brief || s.layers.len() <= BRIEF;
    report = match all {
        true => report.heading("layers").table(layers(s, "")),
        false => {
            let title = format!("layers, the {BRIEF} of {} with the most work or weights", s.layers.len());
            report.heading(title).table(layer_table(most_expensive(s)))
        }
    };
    report = report.heading("by role").table(totals(&s.by_role, s.macs, s.parameters));
    if !s.by_operator.is_empty() {
        report = report.heading("operators").table(totals(&s.by_operator, s.macs, s.parameters));
    }
    if !s.encodings.is_empty() {
        report = report.heading("encodings").table(encodings(s));
    }
    if s.tensors.iter().any(|t| t.distribution.is_some()) {
        report = report.heading("weights").table(tensors(s, ""));
    }
    if !s.groups.is_empty() {
        report = report.heading("coupling groups").table(match sections.brief {
            true => brief_groups(s),
            false => groups(s),
        });
    }
    if let Some(why) = &s.no_graph {
        report = report.line(format!(
            "no graph: {why}; the weights can be inspected, the model cannot be converted or run"
        ));
    }
    for (op, nodes) in &s.unknown_ops {
        report = report.line(format!("unknown operator: {op} ({nodes} nodes), kept as it is"));
    }
    for warning in &s.warnings {
        report = report.line(format!("warning: {warning}"));
    }
    if sections.brief && !all {
        report = report.line("all rows: --layers, --tensors, --groups, --metadata, or another --format");
    }
    Ok(report)
}

/// Bytes of the cache in words.
fn kv_cache(cache: &KvCache) -> String {
    let at = match (cache.context, cache.bytes_at_context) {
        (Some(n), Some(bytes)) => format!(", {} at {n} tokens", Bytes(bytes)),
        _ => String::new(),
    };
    let assumed = if cache.source == "inputs" { "" } else { " assumed" };
    format!("{} per token{at} ({}{assumed})", Bytes(cache.bytes_per_token), cache.dtype)
}

fn about(mut report: Report, a: &About) -> Report {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let count = |n: Option<u64>| n.map_or(String::new(), |n| n.to_string());
    report = report.facts([
        ("title", text(&a.title)),
        ("architecture", text(&a.architecture)),
        ("licence", text(&a.licence)),
        ("quantisation", text(&a.quantisation)),
        ("context", count(a.context_length)),
        ("vocabulary", count(a.vocabulary)),
        ("blocks", count(a.blocks)),
        ("width", count(a.width)),
        ("feed-forward", count(a.feed_forward)),
        ("heads", count(a.heads)),
        ("key-value heads", count(a.kv_heads)),
        ("head size", count(a.head_size)),
        ("causal", a.causal.map_or(String::new(), |c| if c { "yes".into() } else { "no".into() })),
    ]);
    if let Some(t) = &a.tokenizer {
        let special: Vec<String> = t.special.iter().map(|(n, v)| format!("{n}={v}")).collect();
        report = report.heading("tokenizer").facts([
            ("kind", t.kind.clone()),
            ("splits with", text(&t.pre)),
            ("tokens", t.tokens.to_string()),
            ("special", special.join(" ")),
            ("chat template", if t.chat_template { "present".into() } else { "none".into() }),
        ]);
    }
    if !a.generation.is_empty() {
        let settings: Vec<String> = a.generation.iter().map(|(k, v)| format!("{k}={v}")).collect();
        report = report.facts([("generation", settings.join(" "))]);
    }
    report
}

fn metadata(report: Report, s: &Summary) -> Report {
    let mut table = Table::new(&[("key", "<key"), ("value", "<value")]);
    for (key, value) in &s.metadata {
        let shown = &value[..value.floor_char_boundary(VALUE)];
        let mark = if shown.len() < value.len() { "…" } else { "" };
        table.push([Cell::text(key.clone()), Cell::value(value.clone(), format!("{shown}{mark}"))]);
    }
    let report = if s.about.is_empty() { report } else { about(report.heading("model"), &s.about) };
    match s.metadata.is_empty() {
        true => report.line("the file carries no metadata"),
        false => report.heading("metadata").table(table),
    }
}

fn values(values: &[ValueInfo], brief: bool) -> String {
    let one = |v: &ValueInfo| format!("{}:{}{}", v.name, v.dtype, shape(v.shape.as_deref()));
    let shown = if brief { values.len().min(INTERFACE) } else { values.len() };
    let mut text: Vec<String> = values.iter().take(shown).map(one).collect();
    if shown < values.len() {
        text.push(format!("and {} more", values.len() - shown));
    }
    text.join(" ")
}

fn shape(shape: Option<&[String]>) -> String {
    shape.map_or("[?]".into(), |s| format!("[{}]", s.join(",")))
}

/// Whether a layer or tensor is one of those asked for.
fn wanted(matching: &str, texts: [&str; 3]) -> bool {
    let needle = matching.to_lowercase();
    needle.is_empty() || texts.iter().any(|t| t.to_lowercase().contains(&needle))
}

fn layers(summary: &Summary, matching: &str) -> Table {
    layer_table(summary.layers.iter().filter(|l| wanted(matching, [&l.name, &l.op, &l.role])))
}

/// The layers with the most work, then weights, in execution order.
fn most_expensive(summary: &Summary) -> impl Iterator<Item = &Layer> {
    let mut most: Vec<&Layer> = summary.layers.iter().collect();
    most.sort_by_key(|l| std::cmp::Reverse((l.macs.unwrap_or(0), l.parameters)));
    most.truncate(BRIEF);
    most.sort_by_key(|l| l.index);
    most.into_iter()
}

fn layer_table<'a>(layers: impl Iterator<Item = &'a Layer>) -> Table {
    let mut table = Table::new(&[
        ("index", "#"),
        ("name", "<name"),
        ("op", "<operator"),
        ("role", "?<role"),
        ("output_shape", "<output"),
        ("dtype", "?<type"),
        ("parameters", "parameters"),
        ("macs", "macs"),
        ("weight_bytes", "?weights"),
        ("activation_bytes", "?activations"),
        ("group", "?group"),
    ]);
    for l in layers {
        table.push([
            Cell::value(l.index, l.index),
            Cell::text(l.name.clone()),
            Cell::text(l.op.clone()),
            Cell::text(l.role.clone()),
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

/// A table of sums; beyond the first kinds the rest is one row.
fn totals(totals: &[Total], macs: u64, parameters: u64) -> Table {
    let mut kinds = totals.to_vec();
    if kinds.len() > KINDS {
        let rest = kinds.split_off(KINDS - 1);
        let mut sum = Total { kind: format!("{} others", rest.len()), ..Total::default() };
        for t in &rest {
            sum.layers += t.layers;
            sum.parameters = sum.parameters.saturating_add(t.parameters);
            sum.macs = sum.macs.saturating_add(t.macs);
            sum.weight_bytes = sum.weight_bytes.saturating_add(t.weight_bytes);
            sum.activation_bytes = sum.activation_bytes.saturating_add(t.activation_bytes);
        }
        kinds.push(sum);
    }
    let mut table = Table::new(&[
        ("kind", "<kind"),
        ("layers", "layers"),
        ("parameters", "parameters"),
        ("parameters_share", "?params %"),
        ("macs", "macs"),
        ("macs_share", "macs %"),
        ("weight_bytes", "?weights"),
        ("activation_bytes", "?activations"),
    ]);
    for t in kinds {
        let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
        let (of_parameters, of_macs) = (share(t.parameters, parameters), share(t.macs, macs));
        table.push([
            Cell::text(t.kind),
            Cell::value(t.layers, t.layers),
            Cell::value(t.parameters, dash(t.parameters, Count(t.parameters))),
            Cell::value(of_parameters, format!("{of_parameters:.1}")),
            Cell::value(t.macs, dash(t.macs, Count(t.macs))),
            Cell::value(of_macs, format!("{of_macs:.1}")),
            Cell::value(t.weight_bytes, dash(t.weight_bytes, Bytes(t.weight_bytes))),
            Cell::value(t.activation_bytes, dash(t.activation_bytes, Bytes(t.activation_bytes))),
        ]);
    }
    table
}

fn encodings(summary: &Summary) -> Table {
    let mut table = Table::new(&[
        ("encoding", "<encoding"),
        ("tensors", "tensors"),
        ("parameters", "parameters"),
        ("bytes", "bytes"),
        ("bits_per_parameter", "bits/parameter"),
    ]);
    for e in &summary.encodings {
        let bits = 8.0 * e.bytes as f64 / e.parameters.max(1) as f64;
        table.push([
            Cell::text(e.encoding.clone()),
            Cell::value(e.tensors, e.tensors),
            Cell::value(e.parameters, Count(e.parameters)),
            Cell::value(e.bytes, Bytes(e.bytes)),
            Cell::value(bits, format!("{bits:.2}")),
        ]);
    }
    table
}

/// One row a weight; with statistics where they were gathered.
fn tensors(summary: &Summary, matching: &str) -> Table {
    let shown = || summary.tensors.iter().filter(|t| wanted(matching, [&t.name, &t.encoding, &t.role]));
    let dims = |t: &TensorInfo| t.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    if !shown().any(|t| t.distribution.is_some()) {
        let mut table = Table::new(&[
            ("name", "<name"),
            ("encoding", "<encoding"),
            ("shape", "<shape"),
            ("role", "?<role"),
            ("parameters", "parameters"),
            ("bytes", "bytes"),
        ]);
        for t in shown() {
            table.push([
                Cell::text(t.name.clone()),
                Cell::text(t.encoding.clone()),
                Cell::text(format!("[{}]", dims(t))),
                Cell::text(t.role.clone()),
                Cell::value(t.parameters, Count(t.parameters)),
                Cell::value(t.bytes, Bytes(t.bytes)),
            ]);
        }
        return table;
    }
    let mut table = Table::new(&[
        ("name", "<name"),
        ("encoding", "<encoding"),
        ("mean", "mean"),
        ("std", "std"),
        ("absmax", "absmax"),
        ("zeros", "?zeros %"),
        ("outlier_channels", "?outliers"),
        ("nan", "?nan"),
        ("infinite", "?infinite"),
        ("denormal", "?denormal"),
        ("min", "?min"),
        ("max", "?max"),
        ("p99_abs", "?p99"),
        ("shape", "?<shape"),
    ]);
    for t in shown() {
        let d = t.distribution.as_ref();
        let number = |of: fn(&Distribution) -> f64| Cell::maybe(d.map(of), |v| format!("{v:.3e}"));
        let count = |of: fn(&Distribution) -> u64| Cell::maybe(d.map(of), |n| dash(n, n));
        table.push([
            Cell::text(t.name.clone()),
            Cell::text(t.encoding.clone()),
            number(|d| d.stats.mean),
            number(|d| d.stats.std()),
            number(|d| d.stats.absmax()),
            Cell::maybe(d.map(|d| 100.0 * d.stats.zeros as f64 / t.parameters.max(1) as f64), |v| {
                format!("{v:.1}")
            }),
            Cell::maybe(d.and_then(|d| Some(d.channels.as_ref()?.outliers as u64)), |n| dash(n, n)),
            count(|d| d.stats.nans),
            count(|d| d.stats.infinities),
            count(|d| d.stats.denormals),
            number(|d| d.stats.min),
            number(|d| d.stats.max),
            number(|d| d.p99_abs),
            Cell::text(format!("[{}]", dims(t))),
        ]);
    }
    table
}

/// Prunable groups with the most to give, and the others in one line each no more.
fn brief_groups(summary: &Summary) -> Table {
    let mut most: Vec<&GroupInfo> = summary.groups.iter().collect();
    most.sort_by_key(|g| {
        (!g.prunable, std::cmp::Reverse(g.parameters_per_unit.saturating_mul(g.units as u64)), g.id)
    });
    most.truncate(BRIEF / 2);
    group_table(most.into_iter())
}

fn groups(summary: &Summary) -> Table {
    group_table(summary.groups.iter())
}

/// How the units were timed, where they were.
fn timing(report: Report, summary: &Summary) -> Report {
    let Some(t) = &summary.timing else { return report };
    report.line(format!(
        "{} runs of {} with every node timed; nodes take {}, {:.0} % of it under names of the graph",
        t.runs,
        Millis(t.run_ms),
        Millis(t.nodes_ms),
        100.0 * t.known_ms / t.nodes_ms.max(f64::MIN_POSITIVE)
    ))
}

fn group_table<'a>(groups: impl Iterator<Item = &'a GroupInfo>) -> Table {
    let groups: Vec<&GroupInfo> = groups.collect();
    let timed = groups.iter().any(|g| g.ms_per_unit.is_some());
    let mut columns = vec![
        ("id", "group"),
        ("kind", "<kind"),
        ("units", "units"),
        ("parameters_per_unit", "parameters/unit"),
        ("bytes_per_unit", "bytes/unit"),
        ("macs_per_unit", "MACs/unit"),
        ("members", "tensors"),
        ("prunable", "<prunable"),
    ];
    if timed {
        columns.insert(6, ("ms_per_unit", "ms/unit"));
    }
    let mut table = Table::new(&columns);
    for g in groups {
        let state = match (&g.pinned_by, g.prunable) {
            (_, true) => "yes".to_string(),
            (Some(why), false) => format!("no: {why}"),
            (None, false) => "no".to_string(),
        };
        let mut row = vec![
            Cell::value(g.id, g.id),
            Cell::text(g.kind.to_string()),
            Cell::value(g.units, g.units),
            Cell::value(g.parameters_per_unit, Count(g.parameters_per_unit)),
            Cell::value(g.bytes_per_unit, Bytes(g.bytes_per_unit)),
            Cell::maybe(g.macs_per_unit, |n| Count(n).to_string()),
            Cell::value(g.members.len(), g.members.len()),
            Cell::value(g.prunable, state),
        ];
        if timed {
            row.insert(6, Cell::maybe(g.ms_per_unit, |ms| format!("{ms:.4}")));
        }
        table.push(row);
    }
    table
}
