//! `inspect` and `diff`: structure and cost of models, without running them.

use super::context::Context;
use crate::analysis::{self, Options, Summary};
use crate::error::{Error, Result};
use crate::report::{Cell, Format, Report, Section, Sections, Table, inspection};
use crate::units::{Bytes, Count};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Assumptions about open dimensions.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Binding {
    /// Size of a named dimension; open ones count with stated defaults
    #[arg(long, value_name = "NAME=SIZE", num_args = 1..)]
    bind: Vec<String>,
}

impl Binding {
    /// Sizes by name.
    pub(super) fn sizes(&self) -> Result<BTreeMap<String, i64>> {
        self.bind.iter().map(|pair| parse(pair)).collect()
    }
}

/// Show what is in a model: layers, parameters, MACs, bytes, encodings, cache, tokenizer, coupling groups
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tinsmith inspect model.gguf\n  tinsmith inspect model.onnx --bind batch=8 --format csv > layers.csv\n  tinsmith inspect model.safetensors --tensors=attn --weights"
)]
pub(super) struct Inspect {
    /// Model file, or directory of a checkpoint
    model: String,
    #[command(flatten)]
    binding: Binding,
    /// Read all weights too: moments, zeros, NaN, outlier channels of each
    #[arg(long)]
    weights: bool,
    /// Only the layers, all of them, or those whose name, operator or role contains TEXT
    #[arg(long, value_name = "TEXT", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    layers: Option<String>,
    /// Only the weights as stored, or those whose name, encoding or role contains TEXT
    #[arg(long, value_name = "TEXT", num_args = 0..=1, require_equals = true, default_missing_value = "", conflicts_with = "layers")]
    tensors: Option<String>,
    /// Only what the files tell beside the weights: metadata, tokenizer, configuration
    #[arg(long)]
    metadata: bool,
    /// Only the coupling groups, all of them
    #[arg(long)]
    groups: bool,
}

/// Show what changed between two models, layer by layer
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tinsmith diff original.onnx pruned.onnx")]
pub(super) struct Diff {
    /// Model before
    before: String,
    /// Model after
    after: String,
    #[command(flatten)]
    binding: Binding,
}

pub(super) fn inspect(context: &Context, args: Inspect) -> anyhow::Result<()> {
    let found = summary(&args.model, &args.binding, args.weights)?;
    let asked = [
        (args.layers.is_some(), Section::Layers),
        (args.tensors.is_some(), Section::Tensors),
        (args.groups, Section::Groups),
        (args.metadata, Section::Metadata),
    ];
    let sections = Sections {
        only: asked.into_iter().filter(|(asked, _)| *asked).map(|(_, section)| section).collect(),
        matching: args.layers.or(args.tensors).unwrap_or_default(),
        brief: context.format == Format::Text,
    };
    context.print(&inspection(&found, &sections)?)
}

/// The summary of a model file.
pub(super) fn summary(model: &str, binding: &Binding, weights: bool) -> Result<Summary> {
    let bindings = binding.sizes()?;
    analysis::summarize_file(Path::new(model), &Options { bindings, weights, ..Options::default() })
}

fn parse(pair: &str) -> Result<(String, i64)> {
    let bad =
        || Error::usage("BIND", "a binding is NAME=SIZE with a positive size").field("--bind").found(pair);
    let (name, size) = pair.split_once('=').ok_or_else(bad)?;
    let size: i64 = size.trim().parse().map_err(|_| bad())?;
    if name.trim().is_empty() || !(1..=1 << 31).contains(&size) {
        return Err(bad());
    }
    Ok((name.trim().to_string(), size))
}

#[derive(Serialize)]
struct Changes {
    schema_version: u32,
    before: String,
    after: String,
    totals: Vec<Total>,
    layers: Vec<Change>,
}

#[derive(Serialize)]
struct Total {
    name: &'static str,
    before: u64,
    after: u64,
}

#[derive(Serialize)]
struct Change {
    name: String,
    change: &'static str,
    before: Option<String>,
    after: Option<String>,
    parameters_before: u64,
    parameters_after: u64,
}

pub(super) fn diff(context: &Context, args: Diff) -> anyhow::Result<()> {
    let before = summary(&args.before, &args.binding, false)?;
    let after = summary(&args.after, &args.binding, false)?;
    context.print(&report(&changes(args.before, &before, args.after, &after))?)
}

fn changes(name_before: String, before: &Summary, name_after: String, after: &Summary) -> Changes {
    let total = |name, of: fn(&Summary) -> u64| Total { name, before: of(before), after: of(after) };
    let words = |l: &analysis::Layer| {
        let shapes: Vec<String> = l.weights.iter().map(|(_, t, s)| format!("{t}{s:?}")).collect();
        let output = l.output_shape.as_ref().map_or("?".into(), |s| s.join("x"));
        format!("{} -> {output} {}", l.op, shapes.join(" ")).trim_end().to_string()
    };
    let old: BTreeMap<&str, &analysis::Layer> = before.layers.iter().map(|l| (l.name.as_str(), l)).collect();
    let new: BTreeMap<&str, &analysis::Layer> = after.layers.iter().map(|l| (l.name.as_str(), l)).collect();
    let mut layers = Vec::new();
    for l in &before.layers {
        let other = new.get(l.name.as_str());
        let (was, is) = (words(l), other.map(|o| words(o)));
        if is.as_ref() != Some(&was) {
            layers.push(Change {
                name: l.name.clone(),
                change: if other.is_some() { "changed" } else { "removed" },
                before: Some(was),
                after: is,
                parameters_before: l.parameters,
                parameters_after: other.map_or(0, |o| o.parameters),
            });
        }
    }
    for l in after.layers.iter().filter(|l| !old.contains_key(l.name.as_str())) {
        layers.push(Change {
            name: l.name.clone(),
            change: "added",
            before: None,
            after: Some(words(l)),
            parameters_before: 0,
            parameters_after: l.parameters,
        });
    }
    Changes {
        schema_version: 1,
        before: name_before,
        after: name_after,
        totals: vec![
            total("nodes", |s| s.layers.len() as u64),
            total("parameters", |s| s.parameters),
            total("macs", |s| s.macs),
            total("weight_bytes", |s| s.weight_bytes),
            total("file_bytes", |s| s.file_bytes),
            total("peak_activation_bytes", |s| s.peak_activation_bytes),
        ],
        layers,
    }
}

fn report(changes: &Changes) -> Result<Report> {
    let mut totals =
        Table::new(&[("name", "<total"), ("before", "before"), ("after", "after"), ("delta", "change")]);
    for t in &changes.totals {
        let text =
            |v: u64| if t.name.ends_with("bytes") { Bytes(v).to_string() } else { Count(v).to_string() };
        let delta = (t.before > 0).then(|| t.after as f64 / t.before as f64 - 1.0);
        totals.push([
            Cell::text(t.name),
            Cell::value(t.before, text(t.before)),
            Cell::value(t.after, text(t.after)),
            Cell::maybe(delta, |d| format!("{:+.1} %", 100.0 * d)),
        ]);
    }
    let mut layers =
        Table::new(&[("name", "<layer"), ("change", "<change"), ("before", "<before"), ("after", "<after")]);
    for l in &changes.layers {
        let cell = |t: &Option<String>| t.clone().map_or_else(Cell::empty, Cell::text);
        layers.push([Cell::text(l.name.clone()), Cell::text(l.change), cell(&l.before), cell(&l.after)]);
    }
    let report = Report::new(changes)?.records(&changes.layers)?.table(totals);
    Ok(if changes.layers.is_empty() {
        report.line("no layer differs in operator or shape")
    } else {
        report.heading("layers").table(layers)
    })
}
