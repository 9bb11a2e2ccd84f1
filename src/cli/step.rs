//! `optimize`, `quantize`: recipes of one step, from flags, and what every such command shares.

use super::context::Context;
use super::goal::DataArgs;
use super::{prepare, run};
use crate::error::{Error, Result};
use crate::plan::{Recipe, Step};
use crate::save;
use std::path::PathBuf;
use toml::{Table, Value};

/// Flags of every one-step command.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
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
#[command(
    after_help = "Examples:\n  tinsmith optimize model.onnx -o smaller.onnx\n  tinsmith optimize bert.onnx --target ort -o bert-ort.onnx\n  tinsmith optimize model.onnx --serialize extended -o model.ort\n  tinsmith optimize model.onnx --tune"
)]
pub(super) struct Optimize {
    /// Whose operators may be written: standard, or ort for ONNX Runtime's own too [default: standard]
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Raise the operator set to 17 where a rule needs it; target ort does so unasked
    #[arg(long)]
    upgrade: bool,
    /// Rules to apply alone, by name
    #[arg(long, value_name = "RULE", num_args = 1..)]
    rules: Vec<String>,
    /// Rules to leave out, by name
    #[arg(long, value_name = "RULE", num_args = 1..)]
    skip: Vec<String>,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    session: prepare::Prepare,
}

/// Store weights, and compute where it pays, in 8-bit integers
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  tinsmith quantize bert.onnx --scheme dynamic-int8 -o bert-int8.onnx\n  tinsmith quantize cnn.onnx --scheme static-int8 --calibration digits:train#0..256 --measure --data digits:test\n  tinsmith quantize smollm2 --scheme weight-int4 --rounding gptq --calibration text:book.txt -o smollm2-int4.onnx"
)]
pub(super) struct Quantize {
    #[command(flatten)]
    common: Common,
    /// dynamic-int8 for products with weights, static-int8 (QDQ, needs --calibration) for convolutions,
    /// weight-int4 or weight-int8 (weights in blocks) for language models, fp16 or bf16 to store weights in 16 bits
    #[arg(long, value_name = "SCHEME")]
    scheme: String,
    /// How ranges come from calibration data: minmax, moving-average, entropy, percentile or mse [default: minmax]
    #[arg(long, value_name = "NAME")]
    calibrator: Option<String>,
    /// Percent of the elements within the range of --calibrator percentile [default: 99.99]
    #[arg(long, value_name = "PERCENT")]
    percentile: Option<f64>,
    /// Most rows of the calibration data to read [default: all]
    #[arg(long, value_name = "ROWS")]
    samples: Option<i64>,
    /// Form of the file of static-int8: qdq or qoperator [default: qdq]
    #[arg(long, value_name = "FORM")]
    form: Option<String>,
    /// Type of activations of static-int8: u8 or s8 [default: u8]
    #[arg(long, value_name = "TYPE")]
    activations: Option<String>,
    /// Zero points of activations, or of weights in blocks, in the middle
    #[arg(long)]
    symmetric: bool,
    /// Elements of a block of weight-int4 and weight-int8 [default: 32]
    #[arg(long, value_name = "ELEMENTS")]
    block: Option<i64>,
    /// Tables of embeddings of weight-int4 and weight-int8: keep, int8 or int4 [default: int8]
    #[arg(long, value_name = "TYPE")]
    embeddings: Option<String>,
    /// How weights are rounded: on 8 bits rtn or gptq, in blocks also mse, hqq, k-quant (better with --calibration), awq,
    /// awq-gptq, or lossless for those that lie in blocks already; gptq and awq need --calibration [default: rtn]
    #[arg(long, value_name = "NAME")]
    rounding: Option<String>,
    /// Zero points of weights in blocks: whole or real [default: whole]
    #[arg(long, value_name = "KIND")]
    zero_points: Option<String>,
    /// Least exact type that the runtime may compute in with weights in blocks: 1 for f32, 4 for int8 [default: 4]
    #[arg(long, value_name = "LEVEL")]
    accuracy_level: Option<i64>,
    /// Find --block and --accuracy-level by trying them here; with --calibration the next token must agree
    #[arg(long)]
    tune: bool,
    /// One scale per tensor instead of one per output channel
    #[arg(long)]
    per_tensor: bool,
    /// 7-bit weights, for processors whose 8-bit sums saturate (AVX2 without VNNI) [default: follows --device]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    reduce_range: Option<bool>,
    /// Weights of static-int8 as unsigned 8 bits, whose sums are exact on every processor
    #[arg(long, conflicts_with = "reduce_range")]
    unsigned_weights: bool,
    /// Device that the model is for: host, or a profile (tinsmith device list)
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Even out the channels of neighbouring layers first (int8 schemes; cross-layer equalisation)
    #[arg(long)]
    equalize: bool,
    /// Move ranges of data into weights first: an exponent from 0 to 1, or auto (int8 schemes; SmoothQuant)
    #[arg(long, value_name = "EXPONENT")]
    smooth: Option<String>,
    /// Move the means of layers back by their biases (int8 schemes)
    #[arg(long)]
    bias_correction: bool,
    /// Nodes to leave in float, by name
    #[arg(long, value_name = "NODE", num_args = 1..)]
    exclude: Vec<String>,
    /// Nodes whose weights take 8 bits where weight-int4 has 4, by name
    #[arg(long, value_name = "NODE", num_args = 1..)]
    int8: Vec<String>,
    /// More bits for the layers where they pay most, within a budget (needs --calibration): max_loss or max_size,
    /// and metric (divergence, task), search (knapsack, greedy), rows as in [step.mixed]
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    mixed: Vec<String>,
    /// Train scales of blocks, biases and norms towards the float model afterwards, as --recover of `prune`
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    recover: Vec<String>,
}

pub(super) fn optimize(context: &Context, args: Optimize) -> anyhow::Result<()> {
    if args.session.serializes() {
        let Common { model, output, detach, data, .. } = args.common;
        return args.session.serialize(context, &model, output.as_deref(), data.data, detach);
    }
    let mut step = Step::new("optimize");
    if let Some(target) = args.target {
        step = step.with("target", target);
    }
    if args.upgrade {
        step = step.with("upgrade", true);
    }
    for (name, rules) in [("rules", args.rules), ("skip", args.skip)] {
        if !rules.is_empty() {
            step = step.with(name, rules);
        }
    }
    if !args.session.tune {
        return start(context, args.common, "optimized", step);
    }
    // Without a place for another file, the model itself is what is tuned.
    let detach = args.common.detach;
    let model = match &args.common.output {
        None => args.common.model.clone(),
        Some(output) => {
            let output = output.to_string_lossy().into_owned();
            start(context, args.common, "optimized", step)?;
            output
        }
    };
    args.session.tune(context, &model, detach)
}

pub(super) fn quantize(context: &Context, args: Quantize) -> anyhow::Result<()> {
    let mut step = Step::new("quantize").with("scheme", args.scheme.clone());
    let names = [
        ("calibrator", args.calibrator),
        ("form", args.form),
        ("activations", args.activations),
        ("rounding", args.rounding),
        ("embeddings", args.embeddings),
        ("zero_points", args.zero_points),
    ];
    for (name, value) in names {
        if let Some(value) = value {
            step = step.with(name, value);
        }
    }
    if let Some(percentile) = args.percentile {
        step = step.with("percentile", percentile);
    }
    let counts = [("samples", args.samples), ("block", args.block), ("accuracy_level", args.accuracy_level)];
    for (name, value) in counts {
        if let Some(value) = value {
            step = step.with(name, value);
        }
    }
    if args.symmetric {
        step = step.with("symmetric", true);
    }
    if args.tune {
        step = step.with("tune", true);
    }
    if args.per_tensor {
        step = step.with("per_channel", false);
    }
    if let Some(reduce) = args.reduce_range {
        step = step.with("reduce_range", reduce);
    }
    if args.unsigned_weights {
        step = step.with("unsigned_weights", true);
    }
    let mut repair = toml::Table::new();
    for (name, set) in [("equalize", args.equalize), ("bias_correction", args.bias_correction)] {
        if set {
            repair.insert(name.into(), true.into());
        }
    }
    if let Some(smooth) = args.smooth {
        let value = smooth.parse::<f64>().map_or_else(|_| smooth.into(), toml::Value::from);
        repair.insert("smooth".into(), value);
    }
    if !repair.is_empty() {
        step = step.with("repair", repair);
    }
    for (name, nodes) in [("exclude", args.exclude), ("int8", args.int8)] {
        if !nodes.is_empty() {
            step = step.with(name, nodes);
        }
    }
    for (name, flag, all) in [("mixed", "--mixed", args.mixed), ("recover", "--recover", args.recover)] {
        if !all.is_empty() {
            step = step.with(name, pairs(flag, &all)?);
        }
    }
    start_for(context, args.common, &args.scheme, step, args.device)
}

pub(super) fn start(context: &Context, common: Common, name: &str, step: Step) -> anyhow::Result<()> {
    start_for(context, common, name, step, None)
}

/// Starts a recipe of one step for a device.
fn start_for(
    context: &Context,
    common: Common,
    name: &str,
    step: Step,
    device: Option<String>,
) -> anyhow::Result<()> {
    let mut recipe = recipe(context, &common, name, step)?;
    recipe.goal.device = device;
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

/// `KEY=VALUE` pairs as the table that a recipe has.
pub(super) fn pairs(flag: &str, all: &[String]) -> Result<Value> {
    let mut table = Table::new();
    for pair in all {
        let bad = |message: &str| {
            Error::usage("PAIR-FLAG", message.to_string()).field(flag).found(pair).limit("KEY=VALUE")
        };
        let (key, value) = pair.split_once('=').ok_or_else(|| bad("a setting is KEY=VALUE"))?;
        let (key, value) = (key.trim(), value.trim());
        if key.is_empty() || value.is_empty() {
            return Err(bad("a setting is KEY=VALUE"));
        }
        if table.insert(key.into(), scalar(value)).is_some() {
            return Err(bad("the setting is given twice"));
        }
    }
    Ok(Value::Table(table))
}

/// A number as a recipe would have it, else text. `2e5` is whole, so that counts can be written so.
pub(super) fn scalar(text: &str) -> Value {
    if let Ok(n) = text.parse::<i64>() {
        return Value::from(n);
    }
    match text.parse::<f64>() {
        Ok(x) if x.fract() == 0.0 && x.abs() < 1e15 && !text.contains('.') => Value::from(x as i64),
        Ok(x) => Value::from(x),
        Err(_) => Value::from(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_become_what_a_recipe_has() {
        let text = ["tokens=2e5", "rate=1e-4", "batch=8", "towards=task"].map(String::from);
        let table = pairs("--recover", &text).unwrap();
        let wanted = "tokens = 200000\nrate = 0.0001\nbatch = 8\ntowards = \"task\"";
        assert_eq!(table, Value::Table(toml::from_str(wanted).unwrap()));
        assert_eq!(pairs("--target", &["bytes=20MB".into()]).unwrap()["bytes"].as_str(), Some("20MB"));
        for bad in [&["steps"][..], &["=3"], &["steps="], &["steps=1", "steps=2"]] {
            let all: Vec<String> = bad.iter().map(ToString::to_string).collect();
            let e = pairs("--recover", &all).unwrap_err();
            assert!(e.kind().exit_code() == 2 && e.to_string().contains("--recover"), "{e}");
        }
    }
}
