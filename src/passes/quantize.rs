//! Post-training quantisation: `dynamic-int8` (activations quantised as they come, for products),
//! `static-int8` (QDQ with calibrated ranges, for convolutional nets), `weight-int8` and `weight-int4` (weights
//! in blocks, activations in float), `fp16` and `bf16` (weights stored in 16 bits, all computed in float).

mod awq;
mod blocks;
mod calibrate;
mod dynamic;
mod embeddings;
mod fold;
mod half;
mod mixed;
mod products;
mod qdq;
mod ranges;
mod recurrent;
mod repair;
mod tune;
mod weight_only;
mod weights;

pub use self::half::{Half, stored as stored_in_half};
pub use blocks::{Rounding, ZeroPoints};
pub use calibrate::TensorReport;
pub use mixed::{LayerReport, Metric, Mixed, OptionReport, Precision, Search};
pub use ranges::Activations;
pub use repair::{Auto, Repair, Smooth, equalized};

use super::optimize::lifted;
use super::recover::{self, Recover};
use super::{Ctx, Estimate, Pass, PassReport, matches, quantized_node};
use crate::analysis::SaturatedLayer;
use crate::analysis::saturation::saturation;
use crate::error::{Error, Result};
use crate::execute::Checkpointing;
use crate::graph::{Graph, Node, NodeIndex};
use crate::hardware::{IntegerSet, Machine};
use crate::monitor::Level;
use crate::tensor::DType;
use crate::units::Bytes;
use ranges::Levels;
use serde::{Deserialize, Serialize};

/// What is quantised, and when the ranges of activations are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// Weights once, activations at run time; MatMul, Gemm and embedding look-ups, never Conv.
    #[default]
    DynamicInt8,
    /// Weights and activations once, from calibration data; QuantizeLinear/DequantizeLinear pairs.
    StaticInt8,
    /// Weights of products on 8 bits in blocks, activations in float.
    WeightInt8,
    /// Weights of products on 4 bits in blocks, activations in float.
    WeightInt4,
    /// Weights stored in IEEE half precision, computed in f32.
    Fp16,
    /// Weights stored in bfloat16, computed in f32.
    Bf16,
}

/// How the range of an activation follows from calibration data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Calibrator {
    /// Smallest and largest value seen.
    #[default]
    Minmax,
    /// Moving average over batches of the smallest and the largest value.
    MovingAverage,
    /// The least Kullback-Leibler divergence of what the grid tells from the elements.
    Entropy,
    /// All but a part of the elements, the same on both sides.
    Percentile,
    /// The least mean squared error.
    Mse,
}

/// How a file tells what runs on integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// Float operators between QuantizeLinear and DequantizeLinear, of which every runtime makes what it has.
    #[default]
    Qdq,
    /// Operators on integers, some of them ONNX Runtime's own.
    Qoperator,
}

/// What becomes of tables of embeddings where weights are stored in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Embeddings {
    /// They stay in float, and one that is an output head as well is stored twice.
    Keep,
    /// 8 bits in blocks, as the head that shares the table.
    #[default]
    Int8,
    /// 4 bits in blocks, as the head that shares the table.
    Int4,
}

/// Sizes of blocks that ONNX Runtime has kernels for.
const BLOCKS: [usize; 5] = [16, 32, 64, 128, 256];

/// Settings of the pass.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What is quantised.
    pub scheme: Scheme,
    /// Range rule of `static-int8`.
    pub calibrator: Calibrator,
    /// Percent of the elements that `percentile` keeps within the range, from 50 to 100.
    pub percentile: f64,
    /// Part by which `moving-average` moves towards each batch, above 0 to 1.
    pub averaging: f32,
    /// Form of the file that `static-int8` writes.
    pub form: Form,
    /// Element type of activations of `static-int8`.
    pub activations: Activations,
    /// The zero points of activations, or of weights in blocks, are in the middle.
    pub symmetric: bool,
    /// Elements of a block of `weight-int8` and `weight-int4`: 16, 32, 64, 128 or 256.
    pub block: usize,
    /// Tables of embeddings of `weight-int8` and `weight-int4`.
    pub embeddings: Embeddings,
    /// How weights in blocks are rounded; of the int8 schemes only `gptq` changes weights.
    pub rounding: Rounding,
    /// Zero points of weights in blocks that are not `symmetric`.
    pub zero_points: ZeroPoints,
    /// What `gptq` adds to the moments of the data, in parts of their mean, above 0.
    pub damping: f64,
    /// Least exact type that the runtime may compute in with weights in blocks: 0 leaves it to the
    /// runtime, 1 f32, 2 f16, 3 bf16, 4 int8.
    pub accuracy_level: i64,
    /// `block` and `accuracy_level` of weights in blocks are found by trying them on this machine.
    pub tune: bool,
    /// One scale per output channel of a weight instead of one per tensor.
    pub per_channel: bool,
    /// Weights on 7 bits, so that 16-bit sums of u8 x s8 products cannot saturate; where nothing is stated, it
    /// follows the device of the recipe's goal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reduce_range: Option<bool>,
    /// Weights of `static-int8` on 8 bits as unsigned integers around 128, whose sums are exact on every processor;
    /// those of depthwise convolutions, which are exact as they are, stay signed.
    pub unsigned_weights: bool,
    /// Name patterns (substrings, `*` wild) of nodes that stay in float.
    pub exclude: Vec<String>,
    /// Name patterns of nodes whose weights take 8 bits where `weight-int4` has 4.
    pub int8: Vec<String>,
    /// Most calibration samples (rows of the batch axis) to read; 0 reads all.
    pub samples: usize,
    /// Repairs of the int8 schemes.
    pub repair: Repair,
    /// A budget within which layers take more bits where that pays most.
    pub mixed: Option<Mixed>,
    /// Training of what stays in float, scales of blocks included, towards the float model.
    pub recover: Option<Recover>,
    /// Bits that were found for layers.
    #[serde(skip)]
    assigned: mixed::Assignment,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            scheme: Scheme::default(),
            calibrator: Calibrator::default(),
            percentile: 99.99,
            averaging: 0.01,
            form: Form::default(),
            activations: Activations::default(),
            symmetric: false,
            block: 32,
            embeddings: Embeddings::default(),
            rounding: Rounding::default(),
            zero_points: ZeroPoints::default(),
            damping: 0.01,
            accuracy_level: 4,
            tune: false,
            per_channel: true,
            reduce_range: None,
            unsigned_weights: false,
            exclude: vec![],
            int8: vec![],
            samples: 0,
            repair: Repair::default(),
            mixed: None,
            recover: None,
            assigned: mixed::Assignment::new(),
        }
    }
}

/// The pass.
#[derive(Debug)]
pub struct Quantize {
    settings: Settings,
}

/// Builds the pass from a recipe step.
pub(super) fn build(table: &toml::Table) -> Result<Box<dyn Pass>> {
    let settings: Settings = super::settings("quantize", table)?;
    settings.check()?;
    Ok(Box::new(Quantize { settings }))
}

impl Settings {
    fn excluded(&self, graph: &Graph, i: NodeIndex) -> bool {
        let label = graph.label(i);
        self.precision(graph, i) == Precision::Float || self.exclude.iter().any(|p| matches(p, &label))
    }

    /// Whether a node's weight takes 8 bits where others have 4.
    fn wide(&self, graph: &Graph, i: NodeIndex) -> bool {
        let label = graph.label(i);
        self.precision(graph, i) == Precision::Int8 || self.int8.iter().any(|p| matches(p, &label))
    }

    /// The name under which the report has what was done.
    fn rule(&self) -> &'static str {
        match self.scheme {
            Scheme::DynamicInt8 => "dynamic-int8",
            Scheme::StaticInt8 => "static-int8",
            Scheme::WeightInt8 => "weight-int8",
            Scheme::WeightInt4 => "weight-int4",
            Scheme::Fp16 => "fp16",
            Scheme::Bf16 => "bf16",
        }
    }

    fn check(&self) -> Result<()> {
        let out_of = |field: &str, found: f64, limit: &str| {
            Err(Error::usage("QUANTIZE-SETTING", "a setting of quantize is out of range")
                .field(format!("step.{field}"))
                .found(found)
                .limit(limit))
        };
        if !(self.percentile > 50.0 && self.percentile <= 100.0) {
            return out_of("percentile", self.percentile, "above 50, at most 100");
        }
        if !(self.averaging > 0.0 && self.averaging <= 1.0) {
            return out_of("averaging", self.averaging.into(), "above 0, at most 1");
        }
        if !(self.damping > 0.0 && self.damping <= 10.0) {
            return out_of("damping", self.damping, "above 0, at most 10");
        }
        if !BLOCKS.contains(&self.block) {
            return out_of("block", self.block as f64, "16, 32, 64, 128 or 256");
        }
        if !(0..=4).contains(&self.accuracy_level) {
            return out_of("accuracy_level", self.accuracy_level as f64, "0 to 4");
        }
        let exact = self.scheme == Scheme::StaticInt8
            && self.form == Form::Qdq
            && self.activations == Activations::U8
            && self.reduce_range != Some(true);
        if self.unsigned_weights && !exact {
            return Err(Error::usage(
                "QUANTIZE-SETTING",
                "unsigned weights are for unsigned data on 8 bits in pairs",
            )
            .field("step.unsigned_weights")
            .hint("use scheme static-int8, form qdq and activations u8, without reduce_range"));
        }
        if let Some(mixed) = &self.mixed {
            mixed.check(self.scheme)?;
        }
        if let Some(recover) = &self.recover {
            recover.check()?;
            if !matches!(self.scheme, Scheme::WeightInt4 | Scheme::WeightInt8) {
                return Err(Error::usage(
                    "QUANTIZE-RECOVER",
                    "only weights in blocks can be trained after they were quantised",
                )
                .field("step.recover")
                .hint("use scheme weight-int4 or weight-int8, or train before"));
            }
        }
        self.repair.check(self.scheme)
    }
    /// The whole numbers that activations become.
    fn levels(&self) -> Levels {
        Levels::new(self.activations, self.symmetric)
    }
    /// With what is left to the target settled, and noted in the report.
    fn settled(&self, ctx: &Ctx<'_>, report: &mut PassReport) -> Settings {
        let mut settled = self.clone();
        let set = |isa: &str| IntegerSet::of(isa).filter(|s| s.seven_bits());
        let target = ctx.target.and_then(|(name, isa)| Some((name, set(isa)?)));
        if !matches!(self.scheme, Scheme::DynamicInt8 | Scheme::StaticInt8) {
            return settled;
        }
        match (self.reduce_range, target) {
            _ if self.unsigned_weights => {}
            (None, Some((name, set))) => {
                settled.reduce_range = Some(true);
                let why = format!("weights on 7 bits: {} of this device is {}", set.name, set.u8s8);
                ctx.monitor.log(Level::Info, &format!("{name}: {why}"));
                report.apply("reduce-range", name, why);
            }
            (Some(false), Some((name, set))) => {
                let why = format!("asked for 8 bits, though {} of this device is {}", set.name, set.u8s8);
                report.skip("reduce-range", name, why);
            }
            (None, None) if ctx.target.is_none() && set(Machine::detect().isa()).is_some() => {
                ctx.monitor.log(
                    Level::Info,
                    "16-bit sums of this machine can saturate with these weights of 8 bits: name the device to run \
                     on (--device host), or ask for 7 bits (--reduce-range)",
                );
            }
            _ => {}
        }
        let bits = if settled.reduce_range == Some(true) { 7.0 } else { 8.0 };
        report.facts.insert("weight_bits".into(), bits);
        settled
    }
    /// Largest magnitude of a quantised weight.
    fn weight_limit(&self) -> f32 {
        if self.reduce_range == Some(true) { 63.0 } else { 127.0 }
    }
}

/// The float weight of a product: a constant f32 matrix at input 1.
fn constant_weight(graph: &Graph, node: &Node) -> Option<crate::graph::ValueId> {
    let v = (*node.inputs.get(1)?)?;
    graph.initializer(v).filter(|t| t.dtype() == DType::F32)?;
    Some(v)
}

/// Quantised operators in the input are refused: quantising twice loses quality for nothing.
fn refuse_quantized(graph: &Graph) -> Result<()> {
    if let Some(i) = quantized_node(graph) {
        return Err(Error::unsupported("QUANTIZE-TWICE", "the model is quantised already")
            .node(graph.label(i))
            .found(graph.node(i).operator_name())
            .hint("start from the float model"));
    }
    Ok(())
}

/// `graph` quantised as the settings say, without search, repairs and training. What the data show of its values is
/// taken from `known` where that has it.
fn quantized(
    graph: &Graph,
    settings: &Settings,
    known: &calibrate::Known,
    ctx: &Ctx<'_>,
    report: &mut PassReport,
) -> Result<Graph> {
    let half = |half: Half, report: &mut PassReport| {
        let stored = half::stored(graph, half, ctx.monitor, report)?;
        if report.applied.is_empty() { Err(half::refused(report)) } else { Ok(stored) }
    };
    match settings.scheme {
        Scheme::DynamicInt8 => dynamic::run(graph, settings, ctx, report),
        Scheme::StaticInt8 => qdq::run(graph, settings, known, ctx, report),
        Scheme::WeightInt8 | Scheme::WeightInt4 => {
            let tuned = match settings.tune {
                true => Some(tune::tuned(graph, settings, ctx, report)?),
                false => None,
            };
            weight_only::run(graph, tuned.as_ref().unwrap_or(settings), ctx, report)
        }
        Scheme::Fp16 => half(Half::F16, report),
        Scheme::Bf16 => half(Half::Bf16, report),
    }
}

/// The error of a pass that could quantise nothing, because every weight was refused.
fn all_refused(report: &PassReport) -> Error {
    let error =
        Error::invalid("WEIGHT-NAN", "no weight is left to quantise: all hold values that are not finite")
            .hint("repair or retrain the model");
    match report.skipped.iter().find(|s| s.reason.contains("not finite")) {
        Some(first) => error.node(&first.target).found(&first.reason),
        None => error,
    }
}

/// Part of a layer's pairs that may saturate before a warning is given.
const SATURATED: f64 = 1e-4;
/// Rows of calibration data that saturation is looked for in.
const LOOKED_AT: usize = 32;

impl Quantize {
    /// Runs the result as the target computes it, where that saturates and 8 bits were asked for, and reports
    /// by layer.
    fn saturation(&self, graph: &Graph, ctx: &Ctx<'_>, report: &mut PassReport) -> Result<()> {
        let target = ctx.target.filter(|(_, isa)| IntegerSet::of(isa).is_some_and(|s| s.saturates));
        let (Some((name, isa)), Some(data)) = (target, ctx.calibration) else { return Ok(()) };
        let blocks = matches!(self.settings.scheme, Scheme::WeightInt8 | Scheme::WeightInt4);
        if self.settings.reduce_range != Some(false) || blocks {
            return Ok(());
        }
        let found = saturation(graph, &data.first(LOOKED_AT), isa, ctx.monitor)?;
        let count = |of: fn(&SaturatedLayer) -> u64| found.layers.iter().map(of).sum::<u64>() as f64;
        report.facts.insert("saturated_pairs".into(), count(|l| l.saturated_pairs));
        report.facts.insert("held_pairs".into(), count(|l| l.pairs));
        let cosine = found.outputs.iter().map(|o| o.cosine).fold(1.0, f64::min);
        report.facts.insert("saturation_cosine".into(), cosine);
        for layer in found.layers.iter().filter(|l| l.share > SATURATED) {
            ctx.monitor.log(
                Level::Warning,
                &format!(
                    "{}: {:.3} % of its sums of two products saturate on {name} ({isa}); leave reduce_range to the \
                     target, or exclude the layer",
                    layer.node,
                    100.0 * layer.share
                ),
            );
        }
        report.saturation = found.layers;
        Ok(())
    }
}

impl Pass for Quantize {
    fn name(&self) -> &'static str {
        "quantize"
    }

    fn needs_calibration(&self) -> Option<String> {
        if let Some(repair) = self.settings.repairs() {
            return Some(repair.into());
        }
        match (self.settings.scheme, self.settings.rounding) {
            _ if self.settings.mixed.is_some() => Some("mixed precision".into()),
            (Scheme::StaticInt8, _) => Some("static-int8".into()),
            (Scheme::WeightInt8 | Scheme::WeightInt4, rounding) if rounding.needs_data() => {
                Some("rounding gptq or awq".into())
            }
            _ => None,
        }
    }

    fn needs_training(&self) -> Option<String> {
        self.settings.recover.as_ref().map(|_| "recovery".into())
    }

    fn check(&self, graph: &Graph, ctx: &Ctx<'_>) -> Result<()> {
        refuse_quantized(graph)?;
        if self.needs_calibration().is_some() {
            calibrate::data(ctx)?;
        }
        if let Some(settings) = &self.settings.recover {
            recover::data(ctx, settings.towards)?;
        }
        let graph = &lifted(graph)?;
        match self.settings.scheme {
            Scheme::DynamicInt8 => dynamic::check(graph, &self.settings),
            Scheme::Fp16 | Scheme::Bf16 => half::check(graph),
            Scheme::StaticInt8 => qdq::check(graph, &self.settings),
            Scheme::WeightInt8 | Scheme::WeightInt4 => weight_only::check(graph, &self.settings),
        }
    }

    fn estimate(&self, graph: &Graph) -> Estimate {
        let lifted = lifted(graph);
        let graph = lifted.as_ref().unwrap_or(graph);
        let bytes: u64 = graph.initializers().map(|(_, t)| t.byte_len()).sum();
        let largest = graph.initializers().map(|(_, t)| t.byte_len()).max().unwrap_or(0);
        // Weights are read in pieces; their int8 elements are held, one at a time transposed while it is
        // written. Calibration runs the float model.
        let (calibration, histograms, covered) = match self.settings.scheme {
            Scheme::DynamicInt8 => (0, 0, dynamic::covered(graph, &self.settings)),
            Scheme::StaticInt8 => (bytes + largest, calibrate::memory(graph.nodes().len()), bytes),
            Scheme::Fp16 | Scheme::Bf16 => (0, 0, half::covered(graph)),
            Scheme::WeightInt8 | Scheme::WeightInt4 => {
                // A weight is spelled out, turned, rounded and spelled out again.
                let moments = weight_only::memory(graph, &self.settings, true);
                let run = if moments > 0 { bytes } else { 0 };
                (run, moments + 4 * largest, weight_only::covered(graph, &self.settings))
            }
        };
        let half = matches!(self.settings.scheme, Scheme::Fp16 | Scheme::Bf16);
        // Search and training hold the float model beside what they make of it.
        let (searched, trained) = (self.settings.mixed.is_some(), self.settings.recover.is_some());
        let calibration = calibration.max(if searched { 2 * bytes } else { 0 });
        let calibration = calibration + if trained { 2 * bytes } else { 0 };
        Estimate {
            seconds: (bytes + 8 * calibration) as f64 / 5e8,
            memory: Bytes(covered / 4 + largest / 4 + calibration + histograms + (16 << 20)),
            disk: Bytes(bytes - covered + if half { covered / 2 } else { covered / 3 }),
        }
    }

    fn run(&self, graph: &Graph, ctx: &mut Ctx<'_>) -> Result<(Graph, PassReport)> {
        self.check(graph, ctx)?;
        let graph = &lifted(graph)?;
        let mut report = PassReport::new("quantize");
        let before: u64 = graph.initializers().map(|(_, t)| t.byte_len()).sum();
        let settings = &self.settings.settled(ctx, &mut report);
        let found = match &settings.mixed {
            Some(mixed) => Some(mixed::choose(graph, settings, mixed, ctx)?),
            None => None,
        };
        let settings = found.as_ref().map_or(settings, |f| &f.settings);
        let make = |graph: &Graph, ctx: &Ctx<'_>, report: &mut PassReport| {
            quantized(graph, settings, &calibrate::Known::default(), ctx, report)
        };
        let mut quantized = repair::run(graph, settings, ctx, &mut report, &make)?;
        if let Some(found) = &found {
            found.judge(&quantized, ctx, &mut report)?;
        }
        if let Some(settings) = &settings.recover {
            let original = ctx.original.unwrap_or(graph);
            quantized =
                recover::recover(&quantized, original, settings, Checkpointing::Auto, ctx, &mut report)?;
        }
        if settings.unsigned_weights {
            quantized = qdq::unsigned(&quantized, &mut report)?;
        }
        self.saturation(&quantized, ctx, &mut report)?;
        let after: u64 = quantized.initializers().map(|(_, t)| t.byte_len()).sum();
        report.facts.insert("weight_bytes_before".into(), before as f64);
        report.facts.insert("weight_bytes_after".into(), after as f64);
        Ok((quantized, report))
    }
}

#[cfg(test)]
mod tests;
