//! The shape of an inspection. The field names are the public JSON contract of `inspect`.

use crate::formats::About;
use crate::graph::coupling::Kind;
use crate::tensor::Distribution;
use serde::{Deserialize, Serialize};

/// Version of [`Summary`].
pub const SCHEMA_VERSION: u32 = 1;

/// A graph input or output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ValueInfo {
    /// Name.
    pub name: String,
    /// Element type, `f32`.
    pub dtype: String,
    /// Dimensions: numbers or symbols; none where unknown.
    pub shape: Option<Vec<String>>,
}

/// One node; of a checkpoint without a graph, one weight.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Layer {
    /// Index in execution order.
    pub index: usize,
    /// Node name (or its first output's).
    pub name: String,
    /// Operator, with the domain before a colon where it is not the default one.
    pub op: String,
    /// What it is for: `attention`, `mlp`, `norm`, `embedding`, `head`, `conv`, …
    #[serde(default)]
    pub role: String,
    /// Output element type.
    pub dtype: String,
    /// First output's shape.
    pub output_shape: Option<Vec<String>>,
    /// Scalar weights that this node is the first to use.
    pub parameters: u64,
    /// Bytes of those weights as stored.
    pub weight_bytes: u64,
    /// Multiply-accumulates; none where the shape is unknown.
    pub macs: Option<u64>,
    /// Bytes read and written by the node, weights included.
    pub traffic_bytes: Option<u64>,
    /// Bytes of its outputs.
    pub activation_bytes: Option<u64>,
    /// Coupling group of its output channels, where it has a prunable one.
    pub group: Option<usize>,
    /// Weight tensors: (name, dtype, shape).
    pub weights: Vec<(String, String, Vec<usize>)>,
}

/// Axes that must be cut together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupInfo {
    /// Number, as in `Layer::group`.
    pub id: usize,
    /// What its units are: `heads`, `neurons`, `channels`, `width` or `other`.
    #[serde(default)]
    pub kind: Kind,
    /// Units in it.
    pub units: usize,
    /// Whether units may leave; else `pinned_by` says why not.
    pub prunable: bool,
    /// What pins it: `graph output "y"`, `node "n": operator Foo is unknown`.
    pub pinned_by: Option<String>,
    /// Weights that lose an axis slice: (tensor, axis).
    pub members: Vec<(String, usize)>,
    /// Parameters that leave with one unit.
    pub parameters_per_unit: u64,
    /// Bytes of weights, as they are stored, that leave with one unit.
    #[serde(default)]
    pub bytes_per_unit: u64,
    /// Multiply-accumulates that leave with the first unit, at the sizes of `bindings`.
    #[serde(default)]
    pub macs_per_unit: Option<u64>,
    /// Milliseconds that leave with one unit, where the model was timed; see [`Timing`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms_per_unit: Option<f64>,
}

/// How the model was timed on ONNX Runtime, at the sizes of `bindings`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Runs.
    pub runs: u64,
    /// Median of a run in milliseconds, with every node timed.
    pub run_ms: f64,
    /// What nodes take of a run; the middle half of the runs of each counts.
    pub nodes_ms: f64,
    /// What of that is in nodes that the runtime still names after those of the graph.
    pub known_ms: f64,
}

/// Sums over the layers of one kind.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Total {
    /// Operator or role.
    pub kind: String,
    /// Layers of it.
    pub layers: usize,
    /// Scalar weights.
    pub parameters: u64,
    /// Multiply-accumulates of those that could be counted.
    pub macs: u64,
    /// Bytes of weights as stored.
    pub weight_bytes: u64,
    /// Bytes of outputs of known shape.
    pub activation_bytes: u64,
}

/// One weight as it is stored.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TensorInfo {
    /// Name in the file.
    pub name: String,
    /// Encoding as the format names it: `f32`, `BF16`, `Q4_K`.
    pub encoding: String,
    /// Shape, outermost axis first.
    pub shape: Vec<usize>,
    /// Elements.
    pub parameters: u64,
    /// Bytes as stored.
    pub bytes: u64,
    /// What it is for, as in [`Layer::role`].
    pub role: String,
    /// What its elements are like, where they were asked for and can be read.
    pub distribution: Option<Distribution>,
}

/// Weights of one encoding.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EncodingTotal {
    /// Encoding.
    pub encoding: String,
    /// Tensors.
    pub tensors: usize,
    /// Their elements.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Keys and values that a causal language model keeps between tokens.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct KvCache {
    /// Bytes for one more token of one sequence, in all layers together.
    pub bytes_per_token: u64,
    /// Longest sequence in tokens, where it is known.
    pub context: Option<u64>,
    /// Bytes of one sequence of that length.
    pub bytes_at_context: Option<u64>,
    /// Element type: that of the graph's inputs, else assumed.
    pub dtype: String,
    /// Where the sizes come from: `inputs` of the graph, or `configuration`.
    pub source: String,
}

/// A whole model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Version of this format.
    pub schema_version: u32,
    /// File name.
    pub name: String,
    /// Format: `onnx`, `safetensors`, `gguf`.
    pub format: String,
    /// Producer and versions as the file tells.
    pub producer: String,
    /// (domain, version) of operator sets.
    pub opsets: Vec<(String, i64)>,
    /// Inputs without an initialiser.
    pub inputs: Vec<ValueInfo>,
    /// Outputs.
    pub outputs: Vec<ValueInfo>,
    /// Symbols that were bound to compute MACs: (symbol, value).
    pub bindings: Vec<(String, i64)>,
    /// Nodes in execution order.
    pub layers: Vec<Layer>,
    /// Coupling groups.
    pub groups: Vec<GroupInfo>,
    /// How units were timed, where they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timing: Option<Timing>,
    /// Scalar weights.
    pub parameters: u64,
    /// Multiply-accumulates of one inference of the bound input; of the nodes that could be counted.
    pub macs: u64,
    /// Nodes whose MACs could not be counted.
    pub macs_unknown: usize,
    /// Bytes of weights as stored.
    pub weight_bytes: u64,
    /// Bytes of the file and external data.
    pub file_bytes: u64,
    /// Peak of live activations in execution order.
    pub peak_activation_bytes: u64,
    /// Operators that this version does not know: (operator, nodes).
    pub unknown_ops: Vec<(String, usize)>,
    /// Metadata key-value pairs.
    pub metadata: Vec<(String, String)>,
    /// What the person should know: damaged weights, NaNs, missing shapes.
    pub warnings: Vec<String>,
    /// Sums by operator, most work first.
    #[serde(default)]
    pub by_operator: Vec<Total>,
    /// Sums by role, most work first.
    #[serde(default)]
    pub by_role: Vec<Total>,
    /// Weights as they are stored, in the order of the file.
    #[serde(default)]
    pub tensors: Vec<TensorInfo>,
    /// Encodings of the weights, most bytes first.
    #[serde(default)]
    pub encodings: Vec<EncodingTotal>,
    /// What configuration, metadata and tokenizer tell of the model.
    #[serde(default)]
    pub about: About,
    /// Cache of a causal language model.
    #[serde(default)]
    pub kv_cache: Option<KvCache>,
    /// Why there is no graph: the layers are the weights, and the model cannot be converted.
    #[serde(default)]
    pub no_graph: Option<String>,
}
