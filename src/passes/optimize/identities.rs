//! `remove-identities`: nodes that give back their input.

use super::sweep::Sweep;
use crate::error::Result;
use crate::graph::{Node, NodeIndex, ValueId};
use crate::tensor::Tensor;

/// Largest operand whose elements are read to see whether all are neutral.
const OPERAND: usize = 4096;

pub(super) fn sweep(sweep: &mut Sweep<'_>) -> Result<()> {
    for i in 0..sweep.graph.nodes().len() {
        let node = sweep.graph.node(i);
        if !crate::ops::canonical_domain(&node.domain).is_empty() || !node.bodies.is_empty() {
            continue;
        }
        let Some((x, why)) = kept(sweep, i)? else { continue };
        let Some(Some(y)) = node.outputs.first() else { continue };
        let label = sweep.graph.label(i);
        if node.outputs[1..].iter().flatten().any(|v| is_read(sweep, *v)) {
            sweep.skip(label, "its second output is read");
            continue;
        }
        match sweep.replace(*y, x) {
            Ok(()) => {
                sweep.remove(i);
                sweep.apply(label, format!("{} {why}", node.op_type));
            }
            Err(reason) => sweep.skip(label, reason),
        }
    }
    Ok(())
}

fn is_read(sweep: &Sweep<'_>, v: ValueId) -> bool {
    sweep.is_pinned(v) || !sweep.uses().consumers(v).is_empty()
}

/// The input that a node gives back, and why.
fn kept(sweep: &Sweep<'_>, i: NodeIndex) -> Result<Option<(ValueId, &'static str)>> {
    let node = sweep.graph.node(i);
    let Some(Some(x)) = node.inputs.first() else { return Ok(None) };
    let same_shape = || -> Result<bool> {
        let Some(Some(y)) = node.outputs.first() else { return Ok(false) };
        shapes_equal(sweep, *x, *y)
    };
    let why = match node.op_type.as_str() {
        "Identity" => Some("gives back its input"),
        "Dropout" => inference(sweep, node).then_some("does nothing in inference"),
        "Cast" => {
            let to = node.attributes.int("to", 0).ok();
            let from = sweep.fact(*x)?.map(|f| i64::from(f.dtype.onnx()));
            (from.is_some() && from == to).then_some("to the type that it is")
        }
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Expand" | "Split" => {
            let single = node.outputs.iter().flatten().count() == 1;
            (single && same_shape()?).then_some("to the shape that it is")
        }
        "Transpose" => {
            let rank = sweep.fact(*x)?.and_then(|f| f.rank());
            let perm = rank.and_then(|r| super::pairs::permutation(node, r));
            perm.is_some_and(|p| p.iter().copied().eq(0..p.len())).then_some("leaves the axes in order")
        }
        "Pad" => all_integers(sweep, node, "pads", 1, 0).then_some("by nothing"),
        "Tile" => all_integers(sweep, node, "", 1, 1).then_some("once"),
        "Slice" => {
            let steps = match node.inputs.get(4).copied().flatten() {
                Some(_) => all_integers(sweep, node, "", 4, 1),
                None => true,
            };
            (steps && same_shape()?).then_some("of everything")
        }
        "Concat" | "Sum" | "Max" | "Min" | "Mean" => (node.inputs.len() == 1).then_some("of one input"),
        "Add" | "Sub" | "Mul" | "Div" | "Pow" => return neutral(sweep, node),
        _ => None,
    };
    Ok(why.map(|why| (*x, why)))
}

fn shapes_equal(sweep: &Sweep<'_>, a: ValueId, b: ValueId) -> Result<bool> {
    let shape = |v| -> Result<_> { Ok(sweep.fact(v)?.and_then(|f| f.shape.as_ref())) };
    Ok(match (shape(a)?, shape(b)?) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    })
}

/// Whether a Dropout runs in inference: it has no third input, or that is false.
fn inference(sweep: &Sweep<'_>, node: &Node) -> bool {
    match node.inputs.get(2).copied().flatten() {
        None => sweep.graph.opset("").is_some_and(|v| v >= 7),
        Some(mode) => sweep.constant(mode).and_then(|t| t.to_i64s().ok()).is_some_and(|v| v == [0]),
    }
}

/// Whether the integers of an attribute or of a constant input all equal `value`.
fn all_integers(sweep: &Sweep<'_>, node: &Node, attribute: &str, slot: usize, value: i64) -> bool {
    let ints = match node.attributes.ints(attribute) {
        Ok(Some(ints)) => Some(ints),
        _ => sweep.constant_input(node, slot).filter(|t| t.len() <= OPERAND).and_then(|t| t.to_i64s().ok()),
    };
    ints.is_some_and(|v| !v.is_empty() && v.iter().all(|x| *x == value))
}

/// `x + 0`, `x - 0`, `x * 1`, `x / 1`, `x ^ 1` of the same shape and type.
fn neutral(sweep: &Sweep<'_>, node: &Node) -> Result<Option<(ValueId, &'static str)>> {
    let ([Some(a), Some(b)], Some(Some(y))) = (&node.inputs[..], node.outputs.first()) else {
        return Ok(None);
    };
    let (value, why) = match node.op_type.as_str() {
        "Add" => (0.0, "of zero"),
        "Sub" => (0.0, "of zero"),
        "Mul" => (1.0, "by one"),
        "Div" => (1.0, "by one"),
        _ => (1.0, "of one"),
    };
    let commutes = matches!(node.op_type.as_str(), "Add" | "Mul");
    let is = |v: ValueId| sweep.constant(v).is_some_and(|t| all(t, value));
    let x = if is(*b) {
        *a
    } else if commutes && is(*a) {
        *b
    } else {
        return Ok(None);
    };
    let same_type = match (sweep.fact(x)?, sweep.fact(*y)?) {
        (Some(x), Some(y)) => x.dtype == y.dtype,
        _ => false,
    };
    Ok((same_type && shapes_equal(sweep, x, *y)?).then_some((x, why)))
}

fn all(tensor: &Tensor, value: f64) -> bool {
    let readable = tensor.dtype().is_float() || tensor.dtype().is_int();
    readable
        && (1..=OPERAND).contains(&tensor.len())
        && tensor.to_f64s().is_ok_and(|v| v.iter().all(|x| *x == value))
}
