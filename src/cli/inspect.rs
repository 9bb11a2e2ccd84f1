//! `inspect` and `diff`: structure and cost of models, without running them.

use super::context::Context;
use super::progress::Progress;
use crate::analysis::{self, Options, Summary};
use crate::data::located;
use crate::error::{Error, Result};
use crate::evaluate::measure::{self, MeasureOptions};
use crate::graph::Graph;
use crate::monitor::Monitor;
use crate::report::{Format, Section, Sections, differences, inspection};
use crate::{formats, runtime};
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
    after_help = "Examples:\n  tinsmith inspect model.gguf\n  tinsmith inspect model.onnx --bind batch=8 --format csv > layers.csv\n  tinsmith inspect model.safetensors --tensors=attn --weights\n  tinsmith inspect model.onnx --groups --measure\n  tinsmith inspect int8.onnx --saturation digits:test#0..64"
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
    /// Run the model with every node timed and tell what a unit of each group takes
    #[arg(long, requires = "groups")]
    measure: bool,
    /// Run an int8 model on DATA as a processor computes it that holds sums of two 8-bit products in 16 bits,
    /// and tell what saturates
    #[arg(long, value_name = "DATA", conflicts_with_all = ["weights", "layers", "tensors", "metadata", "groups"])]
    saturation: Option<String>,
    /// Instruction set for --saturation, such as avx2 or avx512
    #[arg(long, value_name = "ISA", default_value = "avx2", requires = "saturation")]
    isa: String,
    /// Most rows of the data for --saturation [default: 64; 0 takes all]
    #[arg(long, value_name = "ROWS", requires = "saturation")]
    samples: Option<usize>,
}

/// Show what changed between two models: nodes, shapes and weights, by name and by structure
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tinsmith diff original.onnx pruned.onnx\n  tinsmith diff model.gguf exported.onnx --all\n  tinsmith diff original.onnx int8.onnx --measure"
)]
pub(super) struct Diff {
    /// Model before
    before: String,
    /// Model after
    after: String,
    #[command(flatten)]
    binding: Binding,
    /// Compare shapes and encodings only; no weight is read
    #[arg(long)]
    shapes: bool,
    /// Every row of every table, what did not change included
    #[arg(long)]
    all: bool,
    /// Run both models (ONNX) with every node timed and tell what each layer costs before and after
    #[arg(long)]
    measure: bool,
}

pub(super) fn inspect(context: &Context, args: Inspect) -> anyhow::Result<()> {
    if let Some(data) = &args.saturation {
        let data = located(data, &context.paths)?;
        let (threads, rows) = (context.threads()?.unwrap_or(0), args.samples.unwrap_or(64));
        let progress = Progress::new(context);
        let model = Path::new(&args.model);
        let found = analysis::saturation_in_child(model, &data, &args.isa, rows, threads, &progress)?;
        drop(progress);
        return context.show(&found);
    }
    let found = match args.measure {
        true => timed(context, &args)?,
        false => summary(&args.model, &args.binding, args.weights)?,
    };
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

/// The summary of an ONNX file, its units timed on ONNX Runtime.
fn timed(context: &Context, args: &Inspect) -> Result<Summary> {
    let path = Path::new(&args.model);
    let progress = Progress::new(context);
    let options = Options { bindings: args.binding.sizes()?, weights: args.weights, ..Options::default() };
    let (graph, mut summary) = opened(path, &options)?;
    let measure = as_stated(context, &summary, &progress)?;
    let profile = measure::profile(path, &measure, &progress)?;
    analysis::time_units(&mut summary, &graph, &options, &profile)?;
    Ok(summary)
}

/// The graph of an ONNX file and its summary.
fn opened(path: &Path, options: &Options) -> Result<(Graph, Summary)> {
    if formats::is_checkpoint(path)? {
        return Err(Error::unsupported("INSPECT-MEASURE", "a checkpoint has no graph that could be timed")
            .file(path)
            .hint("`tinsmith import` makes an ONNX file of it; name that"));
    }
    let opened = formats::load(path)?;
    let summary = analysis::summarize_opened(&opened, options)?;
    Ok((opened.graph, summary))
}

/// Measuring on inputs of the sizes that a summary counts for, which are told.
fn as_stated(context: &Context, summary: &Summary, monitor: &dyn Monitor) -> Result<MeasureOptions> {
    let (shapes, stated) = analysis::input_shapes(std::slice::from_ref(summary));
    stated.iter().for_each(|line| context.note(line));
    Ok(MeasureOptions {
        threads: context.threads()?.unwrap_or(1),
        shapes,
        dimensions: analysis::dimensions(std::slice::from_ref(summary)),
        ..MeasureOptions::new(runtime::ensure(&context.paths, monitor)?.library)
    })
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

pub(super) fn diff(context: &Context, args: Diff) -> anyhow::Result<()> {
    let options = Options { bindings: args.binding.sizes()?, ..Options::default() };
    let (before, after) = (Path::new(&args.before), Path::new(&args.after));
    let progress = Progress::new(context);
    let mut found = analysis::diff::diff(before, after, &options, !args.shapes, &progress)?;
    if args.measure {
        let (graph, summary) = opened(before, &options)?;
        opened(after, &options)?;
        let measure = as_stated(context, &summary, &progress)?;
        let (was, is) =
            (measure::profile(before, &measure, &progress)?, measure::profile(after, &measure, &progress)?);
        found.times = Some(analysis::diff::times(&graph, &was, &is));
    }
    drop(progress);
    context.print(&differences(&found, context.format == Format::Text && !args.all)?)
}
