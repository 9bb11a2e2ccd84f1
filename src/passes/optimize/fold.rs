//! `fold-constants`: a node that reads nothing but constants is evaluated once, here. Quantised weights
//! stay behind their DequantizeLinear, and nothing is folded that would make the file much larger.

use super::sweep::Sweep;
use crate::error::{Error, Result};
use crate::graph::{Node, NodeIndex, ValueId};
use crate::ops::{Fact, Operator};
use crate::tensor::{Tensor, Value};
use std::sync::Arc;

/// Operators whose result size is known only once they have run, but cannot exceed what they read by much.
const COUNTED: [&str; 3] = ["Compress", "NonZero", "Unique"];

pub(super) fn sweep(sweep: &mut Sweep<'_>) -> Result<()> {
    for i in 0..sweep.graph.nodes().len() {
        let node = sweep.graph.node(i);
        let Some(op) = node.op.clone() else { continue };
        // An identity is removed, which copies nothing.
        let kept = node.op_type == "DequantizeLinear" || node.is("Constant") || node.is("Identity");
        if !op.deterministic() || !node.bodies.is_empty() || kept {
            continue;
        }
        let inputs: Option<Vec<Option<Tensor>>> = node
            .inputs
            .iter()
            .map(|v| match v {
                None => Some(None),
                Some(v) => sweep.constant(*v).map(|t| Some(t.clone())),
            })
            .collect();
        let Some(inputs) = inputs else { continue };
        match fold(sweep, i, &op, &inputs) {
            Ok(results) => {
                let made: Vec<String> =
                    results.iter().map(|(_, t)| format!("{}{:?}", t.dtype(), t.shape())).collect();
                let detail = format!("{} becomes {}", node.operator_name(), made.join(", "));
                sweep.remove(i);
                for (v, tensor) in results {
                    sweep.edit().set_initializer(v, tensor);
                }
                sweep.apply(sweep.graph.label(i), detail);
            }
            Err(why) => sweep.skip(sweep.graph.label(i), why),
        }
    }
    Ok(())
}

/// The results of a node on constants; the error says why it is left alone.
fn fold(
    sweep: &Sweep<'_>,
    i: NodeIndex,
    op: &Arc<dyn Operator>,
    inputs: &[Option<Tensor>],
) -> std::result::Result<Vec<(ValueId, Tensor)>, String> {
    let node = sweep.graph.node(i);
    if node.outputs.iter().flatten().any(|v| sweep.is_output(*v)) {
        return Err("a graph output must be the result of a node".into());
    }
    let facts: Vec<Option<Fact>> = inputs.iter().map(|t| t.as_ref().map(Fact::constant)).collect();
    let told: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
    let outputs = op.infer(&told).map_err(said)?;
    fits(sweep, node, inputs, &outputs)?;
    if let Some(moved) = moved(node, inputs, &outputs) {
        return Ok(vec![moved]);
    }
    let loaded: Result<Vec<Option<Value>>> =
        inputs.iter().map(|t| t.as_ref().map(Value::load).transpose()).collect();
    let loaded = loaded.map_err(said)?;
    let refs: Vec<Option<&Value>> = loaded.iter().map(Option::as_ref).collect();
    let values = op.eval(&refs).map_err(said)?;
    let mut results = vec![];
    for (v, value) in node.outputs.iter().zip(values) {
        if let Some(v) = v {
            results.push((*v, value.to_tensor().map_err(said)?));
        }
    }
    match results.len() == node.outputs.iter().flatten().count() {
        true => Ok(results),
        false => Err("it gives fewer results than the node names".into()),
    }
}

fn said(e: Error) -> String {
    format!("it cannot be evaluated: {e}")
}

/// Whether the results are small enough, or replace constants that were as large.
fn fits(
    sweep: &Sweep<'_>,
    node: &Node,
    inputs: &[Option<Tensor>],
    outputs: &[Fact],
) -> std::result::Result<(), String> {
    let mut bytes = 0u64;
    for (fact, _) in outputs.iter().zip(&node.outputs).filter(|(_, v)| v.is_some()) {
        let size = fact
            .fixed_shape()
            .and_then(|s| crate::tensor::element_count(&s))
            .and_then(|n| fact.dtype.byte_len(n));
        bytes = match size {
            Some(size) => bytes.saturating_add(size),
            None if COUNTED.contains(&node.op_type.as_str()) || fact.dtype.bits() == 0 => {
                inputs.iter().flatten().map(|t| t.byte_len().saturating_mul(8)).sum()
            }
            None => return Err("the size of its result is not known before it runs".into()),
        };
    }
    let freed: u64 = node
        .inputs
        .iter()
        .zip(inputs)
        .filter_map(|(v, t)| Some((sweep.only_reader((*v)?).is_some(), t.as_ref()?)))
        .filter(|(alone, _)| *alone)
        .map(|(_, t)| t.byte_len())
        .sum();
    let limit = sweep.terms.fold_limit.max(freed);
    match bytes <= limit {
        true => Ok(()),
        false => {
            Err(format!("its result has {bytes} bytes, more than fold_limit ({})", sweep.terms.fold_limit))
        }
    }
}

/// Weights that only move stay where they are stored: transposed on demand, or under another shape.
fn moved(node: &Node, inputs: &[Option<Tensor>], outputs: &[Fact]) -> Option<(ValueId, Tensor)> {
    let (Some(x), Some(Some(y))) = (inputs.first()?.as_ref(), node.outputs.first()) else { return None };
    if x.dtype().is_packed() || x.len() <= crate::ops::fact::FOLD_LIMIT || node.outputs.len() != 1 {
        return None;
    }
    match node.op_type.as_str() {
        "Transpose" => {
            let rank = x.shape().len();
            let perm = super::pairs::permutation(node, rank)?;
            Some((*y, x.transposed(&perm)))
        }
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => {
            Some((*y, x.reshaped(outputs.first()?.fixed_shape()?).ok()?))
        }
        _ => None,
    }
}
