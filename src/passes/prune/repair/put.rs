//! Where a repair goes in the pruned graph: the weight of a product, and the place of its bias.

use super::{Fitted, Lost, Repair};
use crate::error::{Error, Result};
use crate::graph::constants::Constants;
use crate::graph::{Edit, Graph, NodeIndex, ValueId};
use crate::ops::{Attr, Attributes};
use crate::passes::PassReport;
use crate::passes::prune::importance::Gate;
use crate::tensor::{DType, Tensor};

/// Where the bias of a product is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bias {
    /// In an input of a node, as this constant.
    At(NodeIndex, usize, ValueId),
    /// In an input of the product's node that is still empty.
    Empty(usize),
}

/// Where a repair goes.
#[derive(Debug, Clone)]
pub(super) struct Place {
    node: NodeIndex,
    weight: ValueId,
    /// Kept features of the original weight, where some were cut.
    pub(super) features: Option<Vec<usize>>,
    pub(super) bias: Option<Bias>,
}

/// The place in `pruned` of a product of the original graph, or why it cannot be repaired.
pub(super) fn place(
    graph: &Graph,
    pruned: &Graph,
    gate: &Gate,
    features: Option<Vec<usize>>,
    repair: Repair,
) -> std::result::Result<Place, String> {
    let output = graph.node(gate.node).outputs.first().copied().flatten();
    let output = output.and_then(|v| pruned.find(graph.value_name(v)));
    let weight = pruned.find(graph.value_name(gate.weight));
    let (Some(output), Some(weight)) = (output, weight) else {
        return Err("the product is gone from the pruned model".into());
    };
    let uses = pruned.uses();
    let Some((node, _)) = uses.producer(output) else {
        return Err("the product is gone from the pruned model".into());
    };
    if uses.consumers(weight) != [(node, gate.at.weight.0)] || pruned.outputs().contains(&weight) {
        return Err("its weight is shared with other parts of the model".into());
    }
    let constants = Constants::of(pruned);
    let inputs = &pruned.node(node).inputs;
    let float = |v: ValueId| constants.get(v).filter(|t| t.dtype().is_float() && t.shape().len() == 1);
    let bias = match gate.at.bias {
        Some(slot) => inputs
            .get(slot)
            .copied()
            .flatten()
            .filter(|v| float(*v).is_some())
            .map(|v| Bias::At(node, slot, v)),
        None if matches!(pruned.node(node).op_type.as_str(), "Conv" | "Gemm") => Some(Bias::Empty(2)),
        None => match uses.consumers(output) {
            [(next, slot)] if pruned.node(*next).is("Add") && !pruned.outputs().contains(&output) => {
                let other = pruned.node(*next).inputs.get(1 - slot).copied().flatten();
                other.filter(|v| float(*v).is_some()).map(|v| Bias::At(*next, 1 - slot, v))
            }
            _ => None,
        },
    };
    if bias.is_none() && repair == Repair::Bias && pruned.outputs().contains(&output) {
        return Err("the model's output has no bias".into());
    }
    Ok(Place { node, weight, features, bias })
}

/// Writes what was fitted.
pub(super) fn put(
    pruned: &Graph,
    edit: &mut Edit,
    lost: &Lost,
    fitted: Fitted,
    report: &mut PassReport,
) -> Result<()> {
    let place = &lost.place;
    let label = pruned.label(place.node);
    let constants = Constants::of(pruned);
    let mut told = Vec::new();
    if let Some(weight) = fitted.weight {
        let old = constants
            .get(place.weight)
            .ok_or_else(|| Error::internal("REPAIR-WEIGHT", "the weight of a product is missing"))?;
        let turned = match lost.gate.at.features {
            0 => weight,
            at => {
                let features = old.shape()[at];
                let inputs = weight.len() / features.max(1);
                (0..weight.len()).map(|i| weight[i % features * inputs + i / features]).collect()
            }
        };
        finite(&turned, &label)?;
        set(pruned, &constants, edit, place.weight, shaped(old.shape(), turned, old.dtype())?);
        let (before, after) = fitted.missing;
        told.push(format!("error of the output {before:.3e} -> {after:.3e}"));
    }
    if let Some(gain) = fitted.bias {
        told.push("bias".into());
        match place.bias {
            Some(Bias::At(node, slot, v)) => {
                let old = constants
                    .get(v)
                    .ok_or_else(|| Error::internal("REPAIR-BIAS", "the bias of a product is missing"))?;
                let sum: Vec<f32> =
                    old.to_f32s()?.iter().zip(&gain).map(|(b, g)| (f64::from(*b) + g) as f32).collect();
                finite(&sum, &label)?;
                let tensor = shaped(old.shape(), sum, old.dtype())?;
                let alone = pruned.uses().consumers(v) == [(node, slot)] && !pruned.outputs().contains(&v);
                if alone {
                    set(pruned, &constants, edit, v, tensor);
                } else {
                    let name = format!("{}_repaired", pruned.value_name(v));
                    let own = edit.add_initializer(&name, tensor);
                    edit.node_mut(node).inputs[slot] = Some(own);
                }
            }
            Some(Bias::Empty(slot)) => {
                let own = new_bias(pruned, &constants, edit, place, &gain, &label)?;
                let inputs = &mut edit.node_mut(place.node).inputs;
                inputs.resize(inputs.len().max(slot + 1), None);
                inputs[slot] = Some(own);
            }
            None => {
                let own = new_bias(pruned, &constants, edit, place, &gain, &label)?;
                add_behind(pruned, edit, place.node, own)?;
            }
        }
    }
    if told.is_empty() {
        report.skip("repair", label, "what it reads does not tell its inputs apart");
    } else {
        report.apply("repair", label, told.join(", "));
    }
    Ok(())
}

fn finite(values: &[f32], label: &str) -> Result<()> {
    match values.iter().all(|v| v.is_finite()) {
        true => Ok(()),
        false => Err(Error::invalid("REPAIR-NAN", "the repaired weights are not finite")
            .node(label)
            .hint("use repair = \"bias\" or \"none\"")),
    }
}

fn shaped(shape: &[usize], values: Vec<f32>, dtype: DType) -> Result<Tensor> {
    let tensor = Tensor::from_vec(shape.to_vec(), values)?;
    Ok(if dtype == DType::F32 { tensor } else { tensor.cast_to(dtype) })
}

fn set(pruned: &Graph, constants: &Constants<'_>, edit: &mut Edit, v: ValueId, tensor: Tensor) {
    match constants.node(v).filter(|_| pruned.initializer(v).is_none()) {
        Some(i) => edit.node_mut(i).attributes.set("value", Attr::Tensor(tensor)),
        None => edit.set_initializer(v, tensor),
    }
}

fn new_bias(
    pruned: &Graph,
    constants: &Constants<'_>,
    edit: &mut Edit,
    place: &Place,
    gain: &[f64],
    label: &str,
) -> Result<ValueId> {
    let dtype = constants.get(place.weight).map_or(DType::F32, Tensor::dtype);
    let values: Vec<f32> = gain.iter().map(|g| *g as f32).collect();
    finite(&values, label)?;
    let name = format!("{}_bias", pruned.value_name(place.weight));
    Ok(edit.add_initializer(&name, shaped(&[gain.len()], values, dtype)?))
}

/// Puts an Add of `bias` between a node and those that read its output.
fn add_behind(pruned: &Graph, edit: &mut Edit, node: NodeIndex, bias: ValueId) -> Result<()> {
    let output = pruned.node(node).outputs.first().copied().flatten();
    let output = output.ok_or_else(|| Error::internal("REPAIR-BIAS", "a product without an output"))?;
    let name = format!("{}_biased", pruned.value_name(output));
    let sum = edit.add_op("Add", &[output, bias], Attributes::new(), &name);
    let readers: Vec<(NodeIndex, usize)> = pruned.uses().consumers(output).to_vec();
    for (reader, slot) in readers {
        edit.node_mut(reader).inputs[slot] = Some(sum);
    }
    Ok(())
}
