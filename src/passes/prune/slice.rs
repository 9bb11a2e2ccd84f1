//! Takes units out of a graph: constants lose slices, nodes get the attributes and shape constants that
//! fit (each operator tells its own), declared types are forgotten and inferred anew. Nothing is left to
//! hope: every inferred shape is held against the one that the cut promises.

use super::Decision;
use crate::error::{Error, Result};
use crate::graph::constants::Constants;
use crate::graph::coupling::Kept;
use crate::graph::{Edit, Facts, Graph, NodeIndex, Type, Uses, ValueId};
use crate::ops::{Cut, Dim, Port, Rewrite};
use crate::passes::optimize::drop_unused_constants;
use crate::tensor::Tensor;
use std::sync::Arc;

/// The graph without the units that leave. Slices of tensors that lie in a file are read when needed.
///
/// # Errors
/// `Unsupported` where a node cannot take the new sizes, naming it.
pub fn slice(graph: &Graph, decision: &Decision) -> Result<Graph> {
    let facts = graph.infer(&|_| None)?;
    let constants = Constants::of(graph);
    let uses = graph.uses();
    let kept = decision.coupled.kept(&|u| decision.leaves[u]);
    let mut edit = graph.edit();
    for i in 0..graph.nodes().len() {
        let cut = cut_of(graph, i, &kept);
        if let (Some(op), false) = (&graph.node(i).op, cut.kept.is_empty()) {
            let outputs = facts.outputs(graph, i).unwrap_or_default();
            let rewrite = op
                .resize(&facts.inputs(graph, i), &outputs, &cut)
                .map_err(|e| e.node(graph.label(i)).field(graph.node(i).operator_name()))?;
            apply(&mut edit, graph, &uses, i, rewrite);
        }
    }
    let mut values: Vec<ValueId> = kept.keys().map(|(v, _)| *v).collect();
    values.dedup();
    for v in values {
        let axes = on(&kept, v);
        if let Some(tensor) = constants.get(v) {
            let at = |e: Error| e.field(format!("weight \"{}\"", graph.value_name(v)));
            let tensor = shortened(tensor, &axes).map_err(at)?;
            match constants.node(v).filter(|_| graph.initializer(v).is_none()) {
                Some(i) => {
                    edit.node_mut(i).attributes.set("value", crate::ops::Attr::Tensor(tensor));
                }
                None => edit.set_initializer(v, tensor),
            }
        }
        if let Some(Type::Tensor { dtype, shape: Some(shape) }) = &graph.value(v).ty {
            let mut shape = shape.clone();
            for (axis, kept) in &axes {
                if let Some(size) = shape.get_mut(*axis) {
                    *size = Dim::from(kept.len());
                }
            }
            edit.set_type(v, Some(Type::Tensor { dtype: *dtype, shape: Some(shape) }));
        }
    }
    edit.forget_types();
    let pruned = drop_unused_constants(graph, edit.commit()?)?;
    verify(graph, &facts, &kept, &constants, &pruned)?;
    Ok(pruned)
}

/// Cut axes of one value: (axis, kept indices).
fn on(kept: &Kept, v: ValueId) -> Vec<(usize, &[usize])> {
    kept.range((v, 0)..=(v, usize::MAX)).map(|((_, axis), (_, kept))| (*axis, kept.as_slice())).collect()
}

fn cut_of(graph: &Graph, i: NodeIndex, kept: &Kept) -> Cut {
    let node = graph.node(i);
    let inputs = node.inputs.iter().enumerate().map(|(n, v)| (Port::In(n), v));
    let outputs = node.outputs.iter().enumerate().map(|(n, v)| (Port::Out(n), v));
    let mut cut = Cut::default();
    for (port, v) in inputs.chain(outputs) {
        let Some(v) = *v else { continue };
        for ((_, axis), (before, kept)) in kept.range((v, 0)..=(v, usize::MAX)) {
            cut.kept.push(((port, *axis), *before, kept.clone()));
        }
    }
    cut
}

fn apply(edit: &mut Edit, graph: &Graph, uses: &Uses, i: NodeIndex, rewrite: Rewrite) {
    for (slot, tensor) in rewrite.inputs {
        let old = graph.node(i).inputs.get(slot).copied().flatten();
        let own = old.filter(|v| {
            graph.initializer(*v).is_some()
                && uses.consumers(*v) == [(i, slot)]
                && !graph.outputs().contains(v)
                && !graph.inputs().contains(v)
        });
        let new = match own {
            Some(v) => {
                edit.set_initializer(v, tensor);
                v
            }
            None => {
                let name = old.map_or_else(|| graph.label(i), |v| graph.value_name(v).to_string());
                edit.add_initializer(&format!("{name}_cut"), tensor)
            }
        };
        let inputs = &mut edit.node_mut(i).inputs;
        inputs.resize(inputs.len().max(slot + 1), None);
        inputs[slot] = Some(new);
    }
    if rewrite.attributes.is_empty() && rewrite.remove.is_empty() {
        return;
    }
    let attributes = &mut edit.node_mut(i).attributes;
    for (name, value) in rewrite.attributes {
        attributes.set(&name, value);
    }
    for name in rewrite.remove {
        attributes.remove(&name);
    }
}

fn shortened(tensor: &Tensor, axes: &[(usize, &[usize])]) -> Result<Tensor> {
    let mut cut = tensor.clone();
    for (axis, kept) in axes {
        cut = cut.selected(*axis, kept);
    }
    if tensor.in_file() {
        return Ok(cut);
    }
    // The whole tensor is in memory; its slice shall not keep it there.
    Tensor::new(cut.dtype(), cut.shape().to_vec(), Arc::unwrap_or_clone(cut.data()?))
}

/// Every value has the shape that the cut promises, and no number that was computed from sizes changed.
fn verify(
    graph: &Graph,
    facts: &Facts,
    kept: &Kept,
    constants: &Constants<'_>,
    pruned: &Graph,
) -> Result<()> {
    let after = pruned.infer(&|_| None)?;
    let uses = graph.uses();
    let hint = "exclude that part of the model by name (exclude = [...])";
    let place = |e: Error, v: ValueId| match uses.producer(v) {
        Some((i, _)) => e.node(graph.label(i)),
        None => e,
    };
    for v in (0..graph.value_count() as u32).map(ValueId) {
        let (Some(old), Some(new)) = (facts.get(v), after.get(v)) else { continue };
        let (Some(before), Some(now)) = (&old.shape, &new.shape) else { continue };
        let mut promised = before.clone();
        for (axis, kept) in on(kept, v) {
            promised[axis] = Dim::from(kept.len());
        }
        let differs = |(a, b): (&Dim, &Dim)| matches!((a.known(), b.known()), (Some(a), Some(b)) if a != b);
        if promised.len() != now.len() || promised.iter().zip(now).any(differs) {
            let e = Error::unsupported("PRUNE-SHAPE", "a node does not follow the new sizes")
                .field(format!("value \"{}\"", graph.value_name(v)))
                .found(format!("{now:?}"))
                .limit(format!("{promised:?}"))
                .hint(hint);
            return Err(place(e, v));
        }
        if let (Some(a), Some(b)) = (&old.value, &new.value)
            && old.dtype.is_float()
            && constants.get(v).is_none()
            && on(kept, v).is_empty()
            && !a.same_bits(b)?
        {
            let e = Error::unsupported("PRUNE-SIZE", "a number that is computed from a size would change")
                .field(format!("value \"{}\"", graph.value_name(v)))
                .hint(hint);
            return Err(place(e, v));
        }
    }
    Ok(())
}
