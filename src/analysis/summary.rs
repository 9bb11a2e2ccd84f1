//! The shape of an inspection. The field names are the public JSON contract of `inspect`.

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

/// One node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// Index in execution order.
    pub index: usize,
    /// Node name (or its first output's).
    pub name: String,
    /// Operator, with the domain before a colon where it is not the default one.
    pub op: String,
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
    /// Units (channels, neurons, heads) in it.
    pub units: usize,
    /// Whether units may leave; else `pinned_by` says why not.
    pub prunable: bool,
    /// What pins it: `graph output "y"`, `node "n": operator Foo is unknown`.
    pub pinned_by: Option<String>,
    /// Weights that lose an axis slice: (tensor, axis).
    pub members: Vec<(String, usize)>,
    /// Parameters that leave with one unit.
    pub parameters_per_unit: u64,
}

/// A whole model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Version of this format.
    pub schema_version: u32,
    /// File name.
    pub name: String,
    /// Format: `onnx`.
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
}
