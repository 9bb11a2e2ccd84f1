//! What a measurement is. The field names are the public JSON contract; all faces and files use them.

use serde::{Deserialize, Serialize};

/// A value with its interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Latency of one inference of the stated input, in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile; none below 299 samples, where no bound can be given.
    pub p99: Option<f64>,
    /// Mean.
    pub mean: f64,
    /// Bootstrap 95 % interval of the median.
    pub ci95: Interval,
    /// Samples.
    pub n: usize,
    /// Raw samples in the order taken, for later tests. May be empty in summaries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<f64>,
}

/// Quality on a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// `accuracy`, `perplexity`, ...
    pub metric: String,
    /// Value.
    pub value: f64,
    /// 95 % interval.
    pub ci95: Interval,
    /// Items.
    pub n: usize,
    /// Whether larger is better.
    pub higher_is_better: bool,
    /// Per item, whether it was right (classification), in data order, for paired tests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub correct: Vec<bool>,
    /// Hash of the data that was used; paired tests refuse different ones.
    pub data_hash: String,
}

/// Conditions of a measurement; figures under unlike conditions are not compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct Conditions {
    /// Host name.
    pub host: String,
    /// CPU model.
    pub cpu: String,
    /// Instruction set that matters: `avx512_vnni`, `avx2`, `neon`, ...
    pub isa: String,
    /// `onnxruntime 1.32.0` or `executor`.
    pub runtime: String,
    /// Threads within an operator.
    pub threads: usize,
    /// CPUs that the process was pinned to; empty when it was not.
    pub affinity: Vec<usize>,
    /// Session settings that differ from the default, such as `no spinning`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub session: Vec<String>,
    /// Input shapes, `name:f32[1,8,8]`.
    pub inputs: Vec<String>,
    /// What disturbed the run: `steal 2.1 %`, `throttled 3x`, `load 1.8`. Empty when clean.
    pub noise: Vec<String>,
}

/// All that was measured of one model file under one set of conditions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Version of this format.
    pub schema_version: u32,
    /// Variant name, such as `original`, `static-int8`.
    pub variant: String,
    /// SHA-256 of the model file.
    pub model_sha256: String,
    /// Path of the model file.
    pub path: String,
    /// Scalar weights.
    pub parameters: u64,
    /// Multiply-accumulates of one inference of the stated input.
    pub macs: u64,
    /// Bytes of the weights as stored.
    pub weight_bytes: u64,
    /// Bytes of the file and its external data.
    pub file_bytes: u64,
    /// Peak of live activations by analysis.
    pub peak_activation_bytes: u64,
    /// Latency.
    pub latency_ms: Option<Latency>,
    /// Inferences per second, batch included.
    pub throughput_per_s: Option<f64>,
    /// Peak resident memory of the measuring process.
    pub peak_rss_bytes: Option<u64>,
    /// Energy, where it can be observed.
    pub energy_j: Option<f64>,
    /// Quality on the task.
    pub quality: Option<Quality>,
    /// Largest difference of the outputs from the reference, relative to the largest output.
    pub output_error: Option<f64>,
    /// Conditions.
    pub conditions: Conditions,
    /// Why figures are missing (`failed: ...`), empty when all is well.
    pub failures: Vec<String>,
}

/// Version of [`Measurement`].
pub const SCHEMA_VERSION: u32 = 1;

impl Measurement {
    /// Whether `other` measures the same file under the same settings, and so replaces this one.
    pub fn same_subject(&self, other: &Measurement) -> bool {
        self.variant == other.variant
            && self.model_sha256 == other.model_sha256
            && self.conditions.threads == other.conditions.threads
            && self.conditions.runtime == other.conditions.runtime
            && self.conditions.session == other.conditions.session
            && self.conditions.inputs == other.conditions.inputs
    }
}
