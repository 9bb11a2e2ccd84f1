//! The operator set of the result: the lowest from the target's on at which every node means what it
//! means now. Forms that changed are written in the older one where it says the same.

use super::super::PassReport;
use super::super::optimize::drop_unused_constants;
use super::Target;
use crate::error::Result;
use crate::graph::{Graph, NodeIndex};
use crate::ops::{self, Attr};
use crate::tensor::DType;

/// The format version that came with an operator set, which runtimes of its time read.
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=18 => 8,
        19 | 20 => 9,
        21 | 22 => 10,
        23 => 11,
        _ => 12,
    }
}

/// The graph at its lowest operator set for `target`.
pub(super) fn lowered(graph: &Graph, target: Target, mut report: PassReport) -> Result<(Graph, PassReport)> {
    let from = graph.opset("").unwrap_or(0);
    if from <= target.opset() {
        return Ok((graph.clone(), report));
    }
    let mut to = target.opset();
    for i in 0..graph.nodes().len() {
        let needs = needed(graph, i, target.opset(), from);
        if needs > target.opset() {
            let (name, aim) = (graph.node(i).operator_name(), target.opset());
            report.skip("operator-set", graph.label(i), format!("{name} needs {needs} rather than {aim}"));
        }
        to = to.max(needs);
    }
    let packed = graph.initializers().map(|(_, t)| dtype_needs(t.dtype())).max().unwrap_or(0);
    to = to.max(packed).min(from);
    if to == from {
        return Ok((graph.clone(), report));
    }
    let mut edit = graph.edit();
    edit.lower_opset("", to);
    for i in 0..graph.nodes().len() {
        rewrite(graph, &mut edit, i, to)?;
    }
    let header = edit.header_mut();
    header.ir_version = header.ir_version.min(ir_version(to)).max(4);
    report.apply("operator-set", "the model", format!("{from} -> {to}"));
    Ok((drop_unused_constants(graph, edit.commit()?)?, report))
}

fn dtype_needs(dtype: DType) -> i64 {
    match dtype {
        DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ => 19,
        DType::I4 | DType::U4 => 21,
        DType::F4E2M1 => 23,
        dtype if dtype.is_packed() => 25,
        _ => 0,
    }
}

/// Reductions whose axes became an input with operator set 18.
const REDUCTIONS: &[&str] = &[
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceSumSquare",
];

/// Operators whose meaning changed, with the version since which they are what they are.
const CHANGED: &[(&str, i64)] = &[
    ("GroupNormalization", 21),
    ("DFT", 20),
    ("AffineGrid", 20),
    ("GridSample", 20),
    ("Resize", 19),
    ("DeformConv", 19),
    ("BitwiseAnd", 18),
    ("BitwiseOr", 18),
    ("BitwiseXor", 18),
    ("BitwiseNot", 18),
    ("QuantizeLinear", 19),
    ("DequantizeLinear", 19),
];

/// Attributes that older forms lack, with the version that brought them.
const ATTRIBUTES: &[(&str, &str, i64)] = &[
    ("AveragePool", "dilations", 19),
    ("Cast", "saturate", 19),
    ("CastLike", "saturate", 19),
    ("Cast", "round_mode", 24),
    ("CastLike", "round_mode", 24),
    ("QuantizeLinear", "block_size", 21),
    ("DequantizeLinear", "block_size", 21),
    ("QuantizeLinear", "output_dtype", 21),
    ("QuantizeLinear", "precision", 23),
    ("DequantizeLinear", "output_dtype", 23),
    ("ScatterND", "reduction", 16),
];

/// The lowest operator set at which node `i` means the same, not below `aim`; `from` where none is known.
fn needed(graph: &Graph, i: NodeIndex, aim: i64, from: i64) -> i64 {
    let node = graph.node(i);
    if !ops::canonical_domain(&node.domain).is_empty() {
        return aim;
    }
    // A body is one of the same operator set.
    let inside = node.bodies.iter().map(|(_, body)| {
        let rewritten = |n: &crate::graph::Node| aim < 18 && REDUCTIONS.contains(&n.op_type.as_str());
        (0..body.nodes().len())
            .map(|i| if rewritten(body.node(i)) { 18 } else { needed(body, i, aim, from) })
            .max()
            .unwrap_or(aim)
    });
    let inside = inside.max().unwrap_or(aim);
    if node.op.is_none() && node.bodies.is_empty() {
        return from;
    }
    let known = (aim..=from).find(|v| node.is("If") || ops::lookup("", &node.op_type, *v).is_some());
    let mut needs = known.unwrap_or(from).max(inside);
    let name = node.op_type.as_str();
    if let Some((_, since)) = CHANGED.iter().find(|(n, _)| *n == name) {
        needs = needs.max(*since);
    }
    for (_, attribute, since) in ATTRIBUTES.iter().filter(|(n, _, _)| *n == name) {
        if node.attributes.get(attribute).is_some() {
            needs = needs.max(*since);
        }
    }
    let constant =
        |slot: usize| node.inputs.get(slot).copied().flatten().is_none_or(|v| graph.constant(v).is_some());
    let axes = node.inputs.get(1).copied().flatten().is_some();
    let noop = !matches!(node.attributes.int("noop_with_empty_axes", 0), Ok(0));
    let cannot = match name {
        _ if REDUCTIONS.contains(&name) => !constant(1) || (noop && !axes),
        "Split" => node.attributes.get("num_outputs").is_some() && !evenly(graph, i),
        "Pad" => node.inputs.get(3).copied().flatten().is_some(),
        _ => false,
    };
    if cannot { needs.max(18) } else { needs }
}

/// Whether a Split makes equal parts, which older forms do without being told.
fn evenly(graph: &Graph, i: NodeIndex) -> bool {
    let node = graph.node(i);
    let Ok(facts) = graph.infer(&|_| None) else { return false };
    let shape = node.inputs.first().copied().flatten().and_then(|v| facts.get(v)?.shape.clone());
    let (Some(shape), Ok(axis)) = (shape, node.attributes.int("axis", 0)) else { return false };
    let size = ops::axis(axis, shape.len()).ok().and_then(|a| shape[a].size());
    size.is_some_and(|n| n.is_multiple_of(node.outputs.len().max(1)))
}

/// Writes node `i` in the form of operator set `to`.
fn rewrite(graph: &Graph, edit: &mut crate::graph::Edit, i: NodeIndex, to: i64) -> Result<()> {
    let node = graph.node(i);
    if to >= 18 || !ops::canonical_domain(&node.domain).is_empty() {
        return Ok(());
    }
    if REDUCTIONS.contains(&node.op_type.as_str()) {
        let axes = match node.inputs.get(1).copied().flatten().and_then(|v| graph.constant(v)) {
            Some(t) => t.to_i64s()?,
            None => vec![],
        };
        let node = edit.node_mut(i);
        node.inputs.truncate(1);
        node.attributes.remove("noop_with_empty_axes");
        if !axes.is_empty() {
            node.attributes.set("axes", Attr::Ints(axes));
        }
    } else if node.is("Split") {
        edit.node_mut(i).attributes.remove("num_outputs");
    }
    Ok(())
}
