//! Products with a constant weight, whose weight can be stored in integers.

use super::constant_weight;
use crate::graph::{Graph, NodeIndex, ValueId};

/// `x * W`, or `x * W^T`, with a bias or without.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    /// An f32 matrix.
    pub(super) weight: ValueId,
    /// The weight is `[outputs, inputs]`.
    pub(super) transposed: bool,
    pub(super) bias: Option<ValueId>,
}

/// The product that a node is; `Err` says why a candidate is none, `Ok(None)` that it is no candidate.
pub(super) fn product(graph: &Graph, i: NodeIndex) -> std::result::Result<Option<Product>, &'static str> {
    let node = graph.node(i);
    if !node.is("MatMul") && !node.is("Gemm") {
        return Ok(None);
    }
    let weight = constant_weight(graph, node).ok_or("its second input is no f32 constant")?;
    if graph.initializer(weight).is_none_or(|t| t.shape().len() != 2) {
        return Err("its weight is no matrix");
    }
    if node.is("MatMul") {
        return Ok(Some(Product { weight, transposed: false, bias: None }));
    }
    let flag = |name| node.attributes.int(name, 0).unwrap_or(0) != 0;
    let one = |name| node.attributes.float(name, 1.0).unwrap_or(1.0) == 1.0;
    if flag("transA") || !one("alpha") || !one("beta") {
        return Err("Gemm with transA, alpha or beta");
    }
    let bias = node.inputs.get(2).copied().flatten();
    Ok(Some(Product { weight, transposed: flag("transB"), bias }))
}
