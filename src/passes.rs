//! Passes: graph to graph, each with a report of what it applied and what it skipped, and why.
//! They know graphs, operators and the executor; they know no job, no file of results and no face.

mod look;
pub mod lower;
pub mod optimize;
pub mod prune;
pub mod quantize;
pub mod recover;

use crate::error::{Error, Result};
use crate::evaluate::samples::Samples;
use crate::graph::{Graph, NodeIndex};
use crate::monitor::Monitor;
use crate::units::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Version of [`PassReport`].
pub const SCHEMA_VERSION: u32 = 1;

/// What a pass may use.
pub struct Ctx<'a> {
    /// Progress, cancellation, memory cap.
    pub monitor: &'a dyn Monitor,
    /// Seed of everything random.
    pub seed: u64,
    /// Threads to use.
    pub threads: usize,
    /// Data to look at a model with, where the recipe names some.
    pub calibration: Option<&'a Samples>,
    /// Data to train on, where the recipe names some.
    pub train: Option<&'a Samples>,
    /// The model that the recipe began with, where that is not the step's input.
    pub original: Option<&'a Graph>,
    /// Where work inside a step saves how far it has come.
    pub keep: Option<&'a dyn Keep>,
    /// Where results are kept that other runs may want again.
    pub memo: Option<&'a dyn Memo>,
    /// Measures the latency of a graph on this machine, as a part of the step's input's.
    pub latency: Option<&'a Meter<'a>>,
    /// The device that the result is for, where the recipe's goal names one: name and instruction set.
    pub target: Option<(&'a str, &'a str)>,
    /// Tries variants of the step's input on the runtime of this machine.
    pub trial: Option<&'a dyn Trial>,
}

/// A figure that is measured.
pub type Meter<'a> = dyn Fn(&Graph) -> Result<f64> + Sync + 'a;

impl<'a> Ctx<'a> {
    /// One thread, seed 0, no data.
    pub fn new(monitor: &'a dyn Monitor) -> Ctx<'a> {
        Ctx {
            monitor,
            seed: 0,
            threads: 1,
            calibration: None,
            train: None,
            original: None,
            keep: None,
            memo: None,
            latency: None,
            target: None,
            trial: None,
        }
    }
}

/// Tries a graph beside the step's input.
pub trait Trial: Sync {
    /// Its median latency as a part of the input's: of one token behind a cache, where there is one.
    fn latency(&self, graph: &Graph) -> Result<f64>;
    /// Part of the positions of the calibration data behind which both find the same token most likely; none
    /// where they predict no tokens, or there are no such data.
    fn agreement(&self, graph: &Graph) -> Result<Option<f64>>;
}

/// Keeps what was computed inside a step through stops and crashes.
pub trait Keep: Sync {
    /// Saves what `fill` writes into the directory that it is given, as of `step`; it replaces what was
    /// kept before only once it is whole.
    fn save(&self, step: u64, fill: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()>;
    /// The newest that is whole: its step and directory.
    fn newest(&self) -> Option<(u64, PathBuf)>;
    /// A number that was settled by measuring: as it was settled at the first start, so that a later
    /// start goes by it.
    fn settled(&self, name: &str) -> Result<Option<f64>>;
    /// Settles a number.
    fn settle(&self, name: &str, value: f64) -> Result<()>;
}

/// Keeps what is costly and follows from model, data and seed alone, for whoever asks for the same.
pub trait Memo: Sync {
    /// What was kept under this name, which says everything that the result depends on beside these.
    fn recall(&self, what: &str) -> Option<Vec<u8>>;
    /// Keeps a result; where that fails it is computed again next time.
    fn keep(&self, what: &str, result: &[u8]);
}

/// Bytes that a reverse pass over `graph` may keep of its forward pass beside `copies` of the weights in f32,
/// where memory is limited. As much again is left for gradients on their way and the loss.
pub(crate) fn keepable(monitor: &dyn Monitor, graph: &Graph, copies: u64) -> Option<u64> {
    let weights: u64 = graph.initializers().map(|(_, t)| 4 * t.len() as u64).sum();
    monitor.memory_cap().map(|cap| cap.0.saturating_sub(copies.saturating_mul(weights)) / 2)
}

/// What a pass will need.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, Default)]
pub struct Estimate {
    /// Wall time.
    pub seconds: f64,
    /// Peak memory above what the process holds.
    pub memory: Bytes,
    /// Size of the result.
    pub disk: Bytes,
}

/// One thing that a pass did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    /// Rule, such as `fold-batch-norm`.
    pub rule: String,
    /// Node or group it was applied to.
    pub target: String,
    /// Detail for people: `64 -> 48 channels`.
    pub detail: String,
}

/// One thing that a pass left alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Skipped {
    /// Rule.
    pub rule: String,
    /// Node or group.
    pub target: String,
    /// Why.
    pub reason: String,
}

/// What a pass did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct PassReport {
    /// Version of this format.
    pub schema_version: u32,
    /// Pass.
    pub pass: String,
    /// Changes.
    pub applied: Vec<Applied>,
    /// Near misses and refusals.
    pub skipped: Vec<Skipped>,
    /// What became of each coupling group, where the pass cuts them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<prune::GroupReport>,
    /// What became of each quantised activation, where the pass quantises some.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<quantize::TensorReport>,
    /// What would saturate in each layer on the device that the result is for, where it can.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub saturation: Vec<crate::analysis::SaturatedLayer>,
    /// What each layer does to the outputs, where the pass chose bits by it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<quantize::LayerReport>,
    /// Figures: `parameters_before`, `calibration_samples`, ...
    pub facts: BTreeMap<String, f64>,
}

impl PassReport {
    /// An empty report.
    pub fn new(pass: &str) -> PassReport {
        PassReport { schema_version: SCHEMA_VERSION, pass: pass.into(), ..PassReport::default() }
    }
    /// Notes a change.
    pub fn apply(&mut self, rule: &str, target: impl Into<String>, detail: impl Into<String>) {
        self.applied.push(Applied { rule: rule.into(), target: target.into(), detail: detail.into() });
    }
    /// Notes what was left alone.
    pub fn skip(&mut self, rule: &str, target: impl Into<String>, reason: impl Into<String>) {
        self.skipped.push(Skipped { rule: rule.into(), target: target.into(), reason: reason.into() });
    }
    /// Takes over what another report notes.
    pub(crate) fn absorb(&mut self, other: PassReport) {
        self.applied.extend(other.applied);
        self.skipped.extend(other.skipped);
        self.facts.extend(other.facts);
    }
}

/// A transformation of graphs. Same graph, settings, data, seed and threads give the same result.
pub trait Pass: Send + Sync {
    /// Name, as in recipes.
    fn name(&self) -> &'static str;
    /// Fails early where the pass cannot run on this graph (missing data, nothing prunable).
    fn check(&self, graph: &Graph, ctx: &Ctx<'_>) -> Result<()>;
    /// The settings of the steps that it stands for, one behind another, where that is not itself alone.
    ///
    /// # Errors
    /// `Internal` where settings cannot be written.
    fn rounds(&self) -> Result<Option<Vec<toml::Table>>> {
        Ok(None)
    }
    /// What of it looks at calibration data, for people, where it cannot do without.
    fn needs_calibration(&self) -> Option<String> {
        None
    }
    /// What of it trains, for people, where it cannot do without data for that.
    fn needs_training(&self) -> Option<String> {
        None
    }
    /// Whether it measures, and so has to be alone on the machine.
    fn measures(&self) -> bool {
        false
    }
    /// What it will need.
    fn estimate(&self, graph: &Graph) -> Estimate;
    /// Runs. Reports to `ctx.monitor` and stops at safe points when asked.
    fn run(&self, graph: &Graph, ctx: &mut Ctx<'_>) -> Result<(Graph, PassReport)>;
}

/// Builds a pass from its settings, which are checked by type and range; unknown ones are refused.
type Build = fn(&toml::Table) -> Result<Box<dyn Pass>>;

/// All passes: name, one sentence, builder.
pub const PASSES: &[(&str, &str, Build)] = &[
    (
        "optimize",
        "constants folded, what does nothing removed, batch norms fused: the same outputs from fewer nodes",
        optimize::build,
    ),
    (
        "lower",
        "operators written for a runtime: ONNX Runtime's own (ort), or plain ones at operator set 17 (standard)",
        lower::build,
    ),
    ("prune", "whole channels, neurons and heads removed, so that shapes shrink", prune::build),
    (
        "quantize",
        "int8 weights, with activations quantised at run time or on calibrated ranges",
        quantize::build,
    ),
];

/// The pass of a recipe step; a `Usage` error names the step's faulty field.
pub fn by_name(name: &str, settings: &toml::Table) -> Result<Box<dyn Pass>> {
    match PASSES.iter().find(|(n, _, _)| *n == name) {
        Some((_, _, build)) => build(settings),
        None => Err(Error::usage("PASS", "unknown pass")
            .field("step.pass")
            .found(name)
            .limit(PASSES.iter().map(|(n, _, _)| *n).collect::<Vec<_>>().join(", "))),
    }
}

/// Reads typed settings from a step; unknown or ill-typed fields are `Usage` errors that name them.
pub fn settings<T: serde::de::DeserializeOwned>(pass: &str, table: &toml::Table) -> Result<T> {
    T::deserialize(table.clone()).map_err(|e| {
        Error::usage("PASS-SETTINGS", e.message().trim().to_string())
            .field(format!("step \"{pass}\""))
            .hint(format!("`tinsmith {pass} --help` lists the settings"))
    })
}

/// Whether `name` matches a pattern: `*` stands for any text, a pattern without one must be contained; `=` and a
/// name stand for that name alone.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    if let Some(exact) = pattern.strip_prefix('=') {
        return exact == name;
    }
    if !pattern.contains('*') {
        return name.contains(pattern);
    }
    let parts: Vec<&str> = pattern.split('*').collect();
    let (first, last) = (parts[0], parts[parts.len() - 1]);
    if !name.starts_with(first) || !name.ends_with(last) || name.len() < first.len() + last.len() {
        return false;
    }
    let mut rest = &name[first.len()..name.len() - last.len()];
    parts[1..parts.len() - 1].iter().all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

/// The first node of an operator that works on quantised values.
pub(crate) fn quantized_node(graph: &Graph) -> Option<NodeIndex> {
    let quantized = [
        "QuantizeLinear",
        "DequantizeLinear",
        "MatMulInteger",
        "ConvInteger",
        "QGemm",
        "MatMulIntegerToFloat",
        "DynamicQuantizeLinear",
        "DynamicQuantizeLSTM",
        "MatMulNBits",
        "GatherBlockQuantized",
    ];
    let is = |op: &str| quantized.contains(&op) || op.starts_with("QLinear");
    (0..graph.nodes().len()).find(|i| is(&graph.node(*i).op_type))
}
