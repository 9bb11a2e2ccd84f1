//! Signed weights become unsigned ones with their zero point in the middle: the same values, but products that no
//! processor adds in 16 bits (see `hardware/integer.rs`).

use crate::error::Result;
use crate::graph::Graph;
use crate::passes::PassReport;
use crate::tensor::{DType, Tensor};

const RULE: &str = "unsigned-weights";

/// A pair graph with the int8 weights of Conv, Gemm and MatMul as uint8 around 128. Depthwise convolutions, whose
/// kernels are exact and faster with signed weights, keep theirs, and so do weights that others read as well.
///
/// # Errors
/// Those of reading weights.
pub(in crate::passes::quantize) fn unsigned(graph: &Graph, report: &mut PassReport) -> Result<Graph> {
    let uses = graph.uses();
    let mut edit = graph.edit();
    for i in 0..graph.nodes().len() {
        let node = graph.node(i);
        if !["Conv", "Gemm", "MatMul"].iter().any(|op| node.is(op)) {
            continue;
        }
        let Some((d, _)) = node.inputs.get(1).copied().flatten().and_then(|v| uses.producer(v)) else {
            continue;
        };
        let [Some(levels), Some(_), Some(zero)] = graph.node(d).inputs[..] else { continue };
        let (Some(w), Some(z)) = (graph.initializer(levels), graph.initializer(zero)) else { continue };
        let alone = |v| uses.consumers(v).len() == 1;
        let depthwise = node.attributes.int("group", 1)? > 1 && w.shape().get(1) == Some(&1);
        let read = graph.node(d).outputs.iter().flatten().all(|v| alone(*v));
        if w.dtype() != DType::I8 || depthwise || !(read && alone(levels) && alone(zero)) {
            continue;
        }
        let moved = |t: &Tensor| -> Result<Tensor> {
            let moved = t.to_vec::<i8>()?.into_iter().map(|q| (q as u8) ^ 0x80).collect();
            Tensor::from_vec(t.shape().to_vec(), moved)
        };
        edit.set_initializer(levels, moved(w)?);
        edit.set_initializer(zero, moved(z)?);
        report.apply(RULE, graph.label(i), "weights around 128, sums exact on every processor");
    }
    edit.commit()
}
