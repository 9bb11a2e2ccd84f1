//! `optimize`, `quantize`, `prune`: recipes of one step, from flags.

use super::context::Context;
use super::goal::DataArgs;
use super::run;
use crate::error::{Error, Result};
use crate::plan::{Recipe, Step};
use crate::save;
use std::path::PathBuf;

/// Flags of every one-step command.
#[derive(Debug, clap::Args)]
struct Common {
    /// Model
    model: String,
    /// Where the variant is written [default: kept in the job's directory]
    #[arg(long, short, value_name = "FILE", conflicts_with = "detach")]
    output: Option<PathBuf>,
    /// Measure the original and the variant at the end
    #[arg(long)]
    measure: bool,
    /// Write the recipe to this file as well
    #[arg(long, value_name = "FILE")]
    save_recipe: Option<PathBuf>,
    /// Start the job, print its id and return
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    data: DataArgs,
}

/// Fold constants, remove what is dead, fuse batch norms: the same outputs from fewer nodes
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tinsmith optimize model.onnx -o smaller.onnx")]
pub(super) struct Optimize {
    #[command(flatten)]
    common: Common,
}

/// Store weights, and compute where it pays, in 8-bit integers
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  tinsmith quantize bert.onnx --scheme dynamic-int8 -o bert-int8.onnx\n  tinsmith quantize cnn.onnx --scheme static-int8 --calibration digits:train#0..256 --measure --data digits:test"
)]
pub(super) struct Quantize {
    #[command(flatten)]
    common: Common,
    /// dynamic-int8 for products with weights, static-int8 (QDQ, needs --calibration) for convolutions
    #[arg(long, value_name = "SCHEME")]
    scheme: String,
    /// How ranges come from calibration data
    #[arg(long, value_name = "NAME")]
    calibrator: Option<String>,
    /// One scale per tensor instead of one per output channel
    #[arg(long)]
    per_tensor: bool,
    /// 7-bit weights, for processors whose 8-bit sums saturate (AVX2 without VNNI)
    #[arg(long)]
    reduce_range: bool,
    /// Nodes to leave in float, by name
    #[arg(long, value_name = "NODE", num_args = 1..)]
    exclude: Vec<String>,
}

/// Remove whole channels and neurons, so that the shapes really shrink
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  tinsmith prune cnn.onnx --ratio 0.2 -o cnn-20.onnx --measure --data digits:test\n  tinsmith prune cnn.onnx --ratio 0.3 --of total --exclude 'head*' -o cnn-30.onnx\n  tinsmith prune smollm2.gguf --ratio 0.2 --criterion taylor --repair ridge --calibration text:moby-dick.txt -o smol-20.onnx"
)]
pub(super) struct Prune {
    /// Part of the parameters to remove, above 0 and below 1
    #[arg(long, value_name = "PART")]
    ratio: f64,
    /// What the ratio is a part of: prunable (what may leave at all) or total [default: prunable]
    #[arg(long, value_name = "NAME")]
    of: Option<String>,
    /// What makes a channel unimportant. By weights: l1, l2. By what flows through it on --calibration
    /// data: activation, frequency, flap, wanda, minitron. By the slope of the loss on those data: taylor,
    /// llm-pruner, obd. To compare with: random
    #[arg(long, value_name = "NAME", default_value = "l2")]
    criterion: String,
    /// How what is left makes up for what was taken, on --calibration data: none, bias, ridge
    /// [default: none]
    #[arg(long, value_name = "NAME")]
    repair: Option<String>,
    /// The loss whose slope is taken: task (labels, or the next token of texts), reference (the unpruned
    /// model's outputs), auto [default: auto]
    #[arg(long, value_name = "NAME")]
    slope: Option<String>,
    /// What taylor sums over: gate, group, element [default: gate]
    #[arg(long, value_name = "NAME")]
    form: Option<String>,
    /// How scores of different groups are compared: none, mean, max, cost [default: the criterion's own]
    #[arg(long, value_name = "NAME")]
    normalize: Option<String>,
    /// Most rows of calibration data to look at; 0 for all [default: 128]
    #[arg(long, value_name = "N")]
    samples: Option<u32>,
    /// Rank channels over the whole model, or cut each group by the same part: global, layer [default: global]
    #[arg(long, value_name = "SCOPE")]
    scope: Option<String>,
    /// Keep channel counts at multiples of this [default: 8]
    #[arg(long, value_name = "N")]
    round_to: Option<u32>,
    /// Smallest part of its channels that a group keeps [default: 0.1]
    #[arg(long, value_name = "PART")]
    min_keep: Option<f64>,
    /// Fewest channels that a group keeps [default: 1]
    #[arg(long, value_name = "N")]
    min_units: Option<u32>,
    /// Nodes and weights whose channels stay, by name
    #[arg(long, value_name = "NAME", num_args = 1..)]
    exclude: Vec<String>,
    /// Let axes of the model's inputs and outputs shrink
    #[arg(long)]
    allow_interface_change: bool,
    #[command(flatten)]
    common: Common,
}

pub(super) fn optimize(context: &Context, args: Optimize) -> anyhow::Result<()> {
    start(context, args.common, "optimized", Step::new("optimize"))
}

pub(super) fn quantize(context: &Context, args: Quantize) -> anyhow::Result<()> {
    let mut step = Step::new("quantize").with("scheme", args.scheme.clone());
    if let Some(calibrator) = args.calibrator {
        step = step.with("calibrator", calibrator);
    }
    if args.per_tensor {
        step = step.with("per_channel", false);
    }
    if args.reduce_range {
        step = step.with("reduce_range", true);
    }
    if !args.exclude.is_empty() {
        step = step.with("exclude", args.exclude);
    }
    start(context, args.common, &args.scheme, step)
}

pub(super) fn prune(context: &Context, args: Prune) -> anyhow::Result<()> {
    let mut step = Step::new("prune").with("criterion", args.criterion).with("ratio", args.ratio);
    for (name, value) in [
        ("of", args.of),
        ("scope", args.scope),
        ("repair", args.repair),
        ("slope", args.slope),
        ("form", args.form),
        ("normalize", args.normalize),
    ] {
        if let Some(value) = value {
            step = step.with(name, value);
        }
    }
    for (name, count) in
        [("round_to", args.round_to), ("min_units", args.min_units), ("samples", args.samples)]
    {
        if let Some(count) = count {
            step = step.with(name, i64::from(count));
        }
    }
    if let Some(part) = args.min_keep {
        step = step.with("min_keep", part);
    }
    if !args.exclude.is_empty() {
        step = step.with("exclude", args.exclude);
    }
    if args.allow_interface_change {
        step = step.with("allow_interface_change", true);
    }
    start(context, args.common, &format!("pruned-{:.0}", 100.0 * args.ratio), step)
}

fn start(context: &Context, common: Common, name: &str, step: Step) -> anyhow::Result<()> {
    let recipe = recipe(context, &common, name, step)?;
    if let Some(path) = &common.save_recipe {
        recipe.check()?;
        save::bytes(path, recipe.to_toml()?.as_bytes())?;
        context.note(&format!("wrote {}", path.display()));
    }
    run::start(context, recipe, common.detach, common.output.as_deref())
}

fn recipe(context: &Context, common: &Common, name: &str, step: Step) -> Result<Recipe> {
    if let Some(output) = &common.output
        && same_file(output, common.model.as_ref())
    {
        return Err(Error::usage("OUTPUT", "the output would replace the model")
            .file(output)
            .hint("name another file"));
    }
    let mut recipe = Recipe::new(name, &common.model);
    recipe.seed = context.seed;
    recipe.threads = context.threads()?;
    recipe.measure = common.measure;
    recipe.data = common.data.spec();
    recipe.steps.push(step);
    Ok(recipe)
}

fn same_file(a: &std::path::Path, b: &std::path::Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}
