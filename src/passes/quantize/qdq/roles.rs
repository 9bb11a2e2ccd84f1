//! What part a node can play in a quantised graph, by what ONNX Runtime has integer kernels for on CPUs.

use super::super::{Settings, constant_weight, products};
use crate::graph::{Graph, Node, NodeIndex, Uses, ValueId};
use crate::ops::canonical_domain;
use crate::tensor::{DType, Tensor};

/// Constants and data from here on are masks, which would take all levels of a grid.
pub(super) const MASK: f32 = 1e4;

/// The part that a node can play.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Role {
    /// Conv, Gemm, MatMul with a constant weight.
    Weighted(Weighted),
    /// Integer kernel with a grid of its own.
    Own,
    /// HardSigmoid: becomes the sum of its input, scaled, and a constant; the ends of its grid do the rest.
    Gate { alpha: f32, beta: f32 },
    /// Moves data: input and output share one grid.
    Moves,
    /// Product with a positive number: the same levels with another scale, no kernel at all.
    Scales(f32),
}

/// A product with a constant weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Weighted {
    /// An f32 constant.
    pub(super) weight: ValueId,
    /// Axis of the weight that becomes channels of the output.
    pub(super) channel_axis: usize,
    pub(super) bias: Option<Bias>,
    /// There is no integer kernel that gives floats.
    pub(super) whole: bool,
}

/// A constant that is added to the channels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bias {
    pub(super) value: ValueId,
    /// The node that reads it, and where: the product itself, or an Add behind it.
    pub(super) node: NodeIndex,
    pub(super) slot: usize,
}

/// The role of a node; `Err` says why a product with a weight has none.
pub(super) fn role(
    graph: &Graph,
    uses: &Uses,
    settings: &Settings,
    i: NodeIndex,
) -> Result<Option<Role>, &'static str> {
    let node = graph.node(i);
    if node.is("Conv") {
        let weight = constant_weight(graph, node).ok_or("its weight is no f32 constant")?;
        let bias = node.inputs.get(2).copied().flatten().map(|value| Bias { value, node: i, slot: 2 });
        return Ok(Some(Role::Weighted(Weighted { weight, channel_axis: 0, bias, whole: true })));
    }
    if node.is("MatMul") && !constant_second(graph, node) {
        return Err("products of data with data stay in float");
    }
    if let Some(product) = products::product(graph, i)? {
        let bias = match product.bias {
            Some(value) => Some(Bias { value, node: i, slot: 2 }),
            None => added_bias(graph, uses, node, product.weight),
        };
        let channel_axis = usize::from(!product.transposed);
        let weighted = Weighted { weight: product.weight, channel_axis, bias, whole: false };
        return Ok(Some(Role::Weighted(weighted)));
    }
    if node.is("ConvTranspose") {
        return Err("ONNX Runtime has no integer kernel for it");
    }
    Ok(other(graph, settings, node))
}

fn constant_second(graph: &Graph, node: &Node) -> bool {
    node.inputs.get(1).copied().flatten().is_some_and(|v| graph.initializer(v).is_some())
}

/// The Add behind a MatMul that is its bias. ONNX Runtime makes a Gemm of both before it looks for integer
/// kernels, so that the bias has to be on integers as well, or neither is.
fn added_bias(graph: &Graph, uses: &Uses, node: &Node, weight: ValueId) -> Option<Bias> {
    let y = (*node.outputs.first()?)?;
    let [(add, slot)] = uses.consumers(y) else { return None };
    let channels = *graph.initializer(weight)?.shape().last()?;
    let other = graph.node(*add);
    if !other.is("Add") || *slot > 1 || graph.outputs().contains(&y) {
        return None;
    }
    let value = other.inputs[1 - slot]?;
    let t = graph.constant(value)?;
    let row = t.len() == channels && t.shape().last() == Some(&channels);
    let fits = t.dtype() == DType::F32 && row && small(t);
    fits.then_some(Bias { value, node: *add, slot: 1 - slot })
}

/// Finite and no mask.
pub(super) fn small(t: &Tensor) -> bool {
    t.to_f32s().is_ok_and(|v| v.iter().all(|x| x.abs() < MASK))
}

/// The number that a constant holds, whatever its shape.
fn number(graph: &Graph, v: ValueId) -> Option<f32> {
    let t = graph.constant(v).filter(|t| t.dtype() == DType::F32 && t.len() == 1)?;
    t.to_f32s().ok()?.first().copied()
}

/// The factor of a product with a positive number of rank no more than its other operand's.
fn factor(graph: &Graph, node: &Node) -> Option<(ValueId, f32)> {
    let [Some(a), Some(b)] = node.inputs[..] else { return None };
    let (x, c) = match node.op_type.as_str() {
        "Mul" => number(graph, b).map(|c| (a, c)).or_else(|| number(graph, a).map(|c| (b, c)))?,
        "Div" => (a, 1.0 / number(graph, b)?),
        _ => return None,
    };
    let constant = if x == a { b } else { a };
    let flat = graph.initializer(constant).is_some_and(|t| t.shape().len() <= 1);
    (graph.initializer(x).is_none() && flat && (1e-6..1e6).contains(&c)).then_some((x, c))
}

fn other(graph: &Graph, settings: &Settings, node: &Node) -> Option<Role> {
    let (domain, op) = (canonical_domain(&node.domain), node.op_type.as_str());
    if !domain.is_empty() {
        return None;
    }
    match op {
        "Add" | "Mul" | "Div" => {
            if let Some((_, c)) = factor(graph, node) {
                return Some(Role::Scales(c));
            }
            let constants = node.inputs.iter().flatten().filter_map(|v| graph.initializer(*v));
            (op != "Div" && constants.clone().all(small) && constants.count() < 2).then_some(Role::Own)
        }
        "HardSigmoid" => {
            let alpha = node.attributes.float("alpha", 0.2).ok()?;
            let beta = node.attributes.float("beta", 0.5).ok()?;
            (!settings.symmetric && alpha > 0.0).then_some(Role::Gate { alpha, beta })
        }
        "Concat" | "GlobalAveragePool" | "AveragePool" | "Sigmoid" | "LeakyRelu" => {
            node.inputs.iter().flatten().all(|v| graph.initializer(*v).is_none()).then_some(Role::Own)
        }
        "Resize" => {
            let nearest = node.attributes.get("mode").is_none()
                || node.attributes.str("mode", "nearest").is_ok_and(|m| m == "nearest");
            nearest.then_some(Role::Moves)
        }
        "MaxPool" | "Reshape" | "Flatten" | "Transpose" | "Squeeze" | "Unsqueeze" | "Identity" | "Slice" => {
            (node.outputs.len() == 1).then_some(Role::Moves)
        }
        _ => None,
    }
}

/// The data that a role computes on, constants left out.
pub(super) fn data(graph: &Graph, node: &Node, role: Role) -> Vec<ValueId> {
    match role {
        Role::Own => {
            node.inputs.iter().flatten().copied().filter(|v| graph.initializer(*v).is_none()).collect()
        }
        Role::Scales(_) => factor(graph, node).map(|(x, _)| x).into_iter().collect(),
        _ => node.inputs.first().copied().flatten().into_iter().collect(),
    }
}

/// The largest value of a Relu or of a Clip from zero on, which the end of a grid that begins at zero does as
/// well.
pub(super) fn ramp(graph: &Graph, node: &Node) -> Option<f32> {
    if node.is("Relu") {
        return Some(f32::INFINITY);
    }
    if !node.is("Clip") {
        return None;
    }
    let at = |slot: usize| node.inputs.get(slot).copied().flatten();
    let low = number(graph, at(1)?)?;
    let high = at(2).map_or(Some(f32::INFINITY), |v| number(graph, v))?;
    (low == 0.0 && high > 0.0).then_some(high)
}
