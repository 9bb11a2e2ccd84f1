//! Where the time of a model goes on a device: a roofline per layer. A summary and what is known of the
//! device enter; milliseconds per layer leave. Knows no recipe.

use crate::analysis::Summary;
use crate::analysis::summary::Layer;
use crate::hardware::Device;
use serde::{Deserialize, Serialize};

/// What the recommendation needs to know of a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceFacts {
    /// Name of the profile; `host` for this machine.
    pub name: String,
    /// Instruction set that decides the speed of integers: `avx512_vnni`, `avx_vnni`, `amx`, `avx512`,
    /// `avx2`, `neon_i8mm`, `neon_dot`, `neon`.
    pub isa: String,
    /// Threads that an inference uses.
    pub threads: usize,
    /// Peak of 32-bit floating products and sums with these threads, 10^9 operations per second (a
    /// multiply-accumulate is two).
    pub peak_gflops: f64,
    /// Memory bandwidth, 10^9 bytes per second.
    pub bandwidth_gbs: f64,
    /// Memory of the device.
    pub ram_bytes: Option<u64>,
}

impl From<&Device> for DeviceFacts {
    fn from(device: &Device) -> DeviceFacts {
        DeviceFacts {
            name: device.name.clone(),
            isa: device.isa.clone(),
            threads: device.cores,
            peak_gflops: device.gflops_per_core * device.cores as f64,
            bandwidth_gbs: device.bandwidth_gbs,
            ram_bytes: Some(device.ram_mb * 1_000_000),
        }
    }
}

/// Kinds of work that respond differently to the passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Convolution over channels.
    Conv,
    /// Convolution of each channel by itself.
    Depthwise,
    /// Product with a constant matrix.
    Product,
    /// Product of two activations.
    Attention,
    /// Everything that mostly moves data.
    Other,
}

impl Class {
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Class::Conv => "convolution",
            Class::Depthwise => "depthwise convolution",
            Class::Product => "matrix products with weights",
            Class::Attention => "products of activations",
            Class::Other => "element-wise and data movement",
        }
    }
}

/// Cost of a node on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerCost {
    /// Index of the layer in the summary.
    pub index: usize,
    /// Kind of work.
    pub class: Class,
    /// Predicted time in milliseconds.
    pub ms: f64,
    /// Bytes of weights.
    pub weight_bytes: u64,
    /// Whether structured pruning can cut its width.
    pub prunable: bool,
    /// Whether its weights or activations are integers already.
    pub quantized: bool,
}

/// Part of the peak that a kernel of a runtime reaches, by kind: this project's measurements of ONNX
/// Runtime on convolutional nets and encoders.
fn efficiency(class: Class) -> f64 {
    match class {
        Class::Conv => 0.45,
        Class::Depthwise => 0.08,
        Class::Product => 0.60,
        Class::Attention => 0.35,
        Class::Other => 1.0,
    }
}

/// Time that a runtime spends on any node, in milliseconds.
const NODE_MS: f64 = 0.002;

/// The class of a layer, from its operator and its weights.
pub fn class(layer: &Layer) -> Class {
    class_of(&layer.op, layer.weights.iter().map(|(_, _, shape)| shape.as_slice()))
}

/// The class of an operator that reads weights of these shapes.
pub fn class_of<'a>(operator: &str, mut weights: impl Iterator<Item = &'a [usize]>) -> Class {
    let op = operator.rsplit(':').next().unwrap_or(operator);
    match op {
        "Conv" | "ConvTranspose" | "FusedConv" | "ConvInteger" | "QLinearConv" => {
            let depthwise = weights.any(|s| s.len() > 2 && s[1] == 1 && s[0] > 1);
            if depthwise { Class::Depthwise } else { Class::Conv }
        }
        "Gemm"
        | "MatMul"
        | "FusedMatMul"
        | "MatMulInteger"
        | "QLinearMatMul"
        | "QGemm"
        | "MatMulNBits"
        | "DynamicQuantizeMatMul"
        | "LSTM"
        | "GRU" => {
            if weights.next().is_none() {
                Class::Attention
            } else {
                Class::Product
            }
        }
        "Attention" | "MultiHeadAttention" | "GroupQueryAttention" | "Einsum" => Class::Attention,
        _ => Class::Other,
    }
}

/// Time of one layer of a kind, in milliseconds: of its multiply-accumulates at the speed that kernels of
/// its kind reach, or of the bytes it moves, whichever takes longer.
pub fn time_ms(class: Class, macs: u64, traffic_bytes: u64, device: &DeviceFacts) -> f64 {
    let peak = device.peak_gflops.max(1e-3) * 1e9;
    let bandwidth = device.bandwidth_gbs.max(1e-3) * 1e9;
    let compute = 2.0 * macs as f64 / (peak * efficiency(class));
    let traffic = traffic_bytes as f64 / bandwidth;
    1e3 * compute.max(traffic) + NODE_MS
}

/// Cost of every layer, in the summary's order. Layers of unknown cost count as data movement of their
/// weights.
pub fn layers(summary: &Summary, device: &DeviceFacts) -> Vec<LayerCost> {
    let prunable: std::collections::HashSet<usize> =
        summary.groups.iter().filter(|g| g.prunable).map(|g| g.id).collect();
    let members: std::collections::HashSet<&str> = summary
        .groups
        .iter()
        .filter(|g| g.prunable)
        .flat_map(|g| g.members.iter().map(|(name, _)| name.as_str()))
        .collect();
    summary
        .layers
        .iter()
        .map(|layer| {
            let class = class(layer);
            let traffic = layer.traffic_bytes.unwrap_or(layer.weight_bytes);
            LayerCost {
                index: layer.index,
                class,
                ms: time_ms(class, layer.macs.unwrap_or(0), traffic, device),
                weight_bytes: layer.weight_bytes,
                prunable: layer.group.is_some_and(|g| prunable.contains(&g))
                    || layer.weights.iter().any(|(name, _, _)| members.contains(name.as_str())),
                quantized: layer
                    .weights
                    .iter()
                    .any(|(_, t, _)| matches!(t.as_str(), "i8" | "u8" | "i4" | "u4"))
                    || layer.op.contains("Integer")
                    || layer.op.contains("QLinear"),
            }
        })
        .collect()
}

/// Share of the predicted time in layers of a kind, 0 to 1.
pub fn share(layers: &[LayerCost], of: impl Fn(&LayerCost) -> bool) -> f64 {
    let all: f64 = layers.iter().map(|l| l.ms).sum();
    if all <= 0.0 { 0.0 } else { layers.iter().filter(|l| of(l)).map(|l| l.ms).sum::<f64>() / all }
}
