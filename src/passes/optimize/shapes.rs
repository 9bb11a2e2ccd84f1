//! `fold-shapes`: values whose content follows from the declared shapes become constants (chains of
//! Shape, Gather, Concat …), and targets of Reshape and Expand that are known but for what their input
//! tells anyway are written with 0, -1 and 1.

use super::sweep::Sweep;
use crate::error::Result;
use crate::graph::{NodeIndex, ValueId};
use crate::ops::{Fact, fact::FOLD_LIMIT};
use crate::tensor::{DType, Tensor, Value};

pub(super) fn sweep(sweep: &mut Sweep<'_>) -> Result<()> {
    let dequantized = behind_dequantize(sweep);
    for i in 0..sweep.graph.nodes().len() {
        contents(sweep, i, &dequantized)?;
    }
    for i in 0..sweep.graph.nodes().len() {
        if !sweep.is_touched(i) {
            target(sweep, i)?;
        }
    }
    Ok(())
}

/// Values that follow from a DequantizeLinear: folding them would spell out quantised weights.
fn behind_dequantize(sweep: &Sweep<'_>) -> Vec<bool> {
    let mut behind = vec![false; sweep.graph.value_count()];
    for node in sweep.graph.nodes() {
        let any =
            node.op_type == "DequantizeLinear" || node.inputs.iter().flatten().any(|v| behind[v.0 as usize]);
        if any {
            node.outputs.iter().flatten().for_each(|v| behind[v.0 as usize] = true);
        }
    }
    behind
}

/// The whole content of a value, where its fact tells it.
fn known(fact: &Fact) -> Option<Tensor> {
    let shape = fact.fixed_shape()?;
    if crate::tensor::element_count(&shape)? > FOLD_LIMIT {
        return None;
    }
    let tensor = match &fact.value {
        Some(t) => t.clone(),
        None => Tensor::from_vec(shape.clone(), fact.ints()?).ok()?.cast_to(fact.dtype),
    };
    // Facts may hold lazy tensors; what is written is spelled out once.
    let tensor = Value::load(&tensor).ok()?.to_tensor().ok()?;
    (tensor.dtype() == fact.dtype && tensor.shape() == shape).then_some(tensor)
}

fn contents(sweep: &mut Sweep<'_>, i: NodeIndex, dequantized: &[bool]) -> Result<()> {
    let node = sweep.graph.node(i);
    let known_op = node.op.as_ref().is_some_and(|op| op.deterministic());
    if !known_op || !node.bodies.is_empty() || node.is("Identity") {
        return Ok(());
    }
    let mut results: Vec<(ValueId, Tensor)> = vec![];
    for v in node.outputs.iter().flatten() {
        let fact = sweep.fact(*v)?;
        let float = fact.is_some_and(|f| f.dtype.is_float());
        if float && dequantized[v.0 as usize] {
            return Ok(());
        }
        let Some(tensor) = fact.and_then(known) else { return Ok(()) };
        results.push((*v, tensor));
    }
    if results.is_empty() {
        return Ok(());
    }
    let label = sweep.graph.label(i);
    if results.iter().any(|(v, _)| sweep.is_output(*v)) {
        sweep.skip(label, "a graph output must be the result of a node");
        return Ok(());
    }
    if let Some((_, t)) = results.iter().find(|(_, t)| t.byte_len() > sweep.terms.fold_limit) {
        let reason = format!(
            "its result has {} bytes, more than fold_limit ({})",
            t.byte_len(),
            sweep.terms.fold_limit
        );
        sweep.skip(label, reason);
        return Ok(());
    }
    let detail = results
        .iter()
        .map(|(_, t)| match t.to_i64s() {
            Ok(ints) if ints.len() <= 8 && t.dtype().is_int() => format!("{ints:?}"),
            _ => format!("{}{:?}", t.dtype(), t.shape()),
        })
        .collect::<Vec<_>>()
        .join(", ");
    sweep.remove(i);
    for (v, tensor) in results {
        sweep.edit().set_initializer(v, tensor);
    }
    sweep.apply(label, format!("{} is always {detail}", node.operator_name()));
    Ok(())
}

/// Writes the target of a Reshape or an Expand as a constant, where each size is known, or is that of the
/// input, or (once, for Reshape) follows from the number of elements.
fn target(sweep: &mut Sweep<'_>, i: NodeIndex) -> Result<()> {
    let node = sweep.graph.node(i);
    let reshape = node.is("Reshape");
    if !(reshape || node.is("Expand")) || node.op.is_none() {
        return Ok(());
    }
    let (Some(Some(x)), Some(Some(shape))) = (node.inputs.first(), node.inputs.get(1)) else {
        return Ok(());
    };
    if sweep.constant(*shape).is_some() || (reshape && node.attributes.int("allowzero", 0).unwrap_or(1) != 0)
    {
        return Ok(());
    }
    let Some(dims) = sweep.fact(*shape)?.and_then(|f| f.dims.as_ref()) else { return Ok(()) };
    let input = sweep.fact(*x)?.and_then(|f| f.shape.as_ref());
    let label = sweep.graph.label(i);
    let mut open = 0;
    let mut sizes = Vec::with_capacity(dims.len());
    for (k, d) in dims.iter().enumerate() {
        let same = match (input, reshape) {
            (Some(s), true) => s.get(k) == Some(d),
            // Expand aligns at the end.
            (Some(s), false) => (k + s.len()).checked_sub(dims.len()).and_then(|k| s.get(k)) == Some(d),
            (None, _) => false,
        };
        sizes.push(match d.known() {
            Some(n) => {
                open += usize::from(n == -1);
                n
            }
            None if same => i64::from(!reshape),
            None => {
                open += 1;
                -1
            }
        });
    }
    if open > usize::from(reshape) {
        if dims.iter().any(|d| d.known().is_some()) {
            sweep.skip(label, format!("{open} sizes of its target depend on the input: {dims:?}"));
        }
        return Ok(());
    }
    let detail = format!("target {dims:?} is written as {sizes:?}");
    let tensor = Tensor::from_vec(vec![sizes.len()], sizes)?.cast_to(DType::I64);
    let v = sweep.edit().add_initializer(&format!("{label}_target"), tensor);
    sweep.change(i).inputs[1] = Some(v);
    sweep.apply(label, detail);
    Ok(())
}
