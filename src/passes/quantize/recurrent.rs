//! LSTM with weights in int8 and data quantised as they come: DynamicQuantizeLSTM of ONNX Runtime.

use super::{Settings, weights};
use crate::error::{Error, Result};
use crate::graph::{Edit, Graph, Node, NodeIndex, ValueId};
use crate::tensor::{DType, Tensor};

/// Weights of the data and of the hidden state, `[directions, 4 hidden, inputs]` each.
pub(super) type Weights = [ValueId; 2];

/// Inputs that both operators have at the same places.
const SHARED: usize = 8;

/// The weights of a node that can be exchanged; `Err` says why a candidate cannot.
pub(super) fn candidate(graph: &Graph, node: &Node) -> std::result::Result<Option<Weights>, &'static str> {
    if !node.is("LSTM") {
        return Ok(None);
    }
    if node.attributes.int("layout", 0).unwrap_or(0) != 0 {
        return Err("DynamicQuantizeLSTM has no layout with the batch first");
    }
    let constant = |slot: usize| {
        let v = node.inputs.get(slot).copied().flatten()?;
        graph.initializer(v).filter(|t| t.dtype() == DType::F32 && t.shape().len() == 3).map(|_| v)
    };
    match [constant(1), constant(2)] {
        [Some(w), Some(r)] => Ok(Some([w, r])),
        _ => Err("its weights are no f32 constants"),
    }
}

/// A weight as int8 `[directions, inputs, 4 hidden]`, its scales and its zero points.
fn stored(
    graph: &Graph,
    edit: &mut Edit,
    weight: ValueId,
    settings: &Settings,
) -> Result<std::result::Result<[ValueId; 3], String>> {
    let name = graph.value_name(weight).to_string();
    let tensor = graph.initializer(weight).ok_or_else(|| Error::internal("QUANTIZE", "weight vanished"))?;
    let [directions, columns, inputs] = [0, 1, 2].map(|axis| tensor.shape()[axis]);
    // A channel is a column of a direction, or a direction.
    let rows = if settings.per_channel { directions * columns } else { directions };
    let flat = tensor.reshaped(vec![rows, tensor.len() / rows.max(1)])?;
    let q = match weights::symmetric(&name, &flat, Some(0), settings.weight_limit(), &[])? {
        Ok(q) => q,
        Err(why) => return Ok(Err(why)),
    };
    let values = Tensor::from_vec(vec![directions, columns, inputs], q.values)?.transposed(&[0, 2, 1]);
    let shape = if settings.per_channel { vec![directions, columns] } else { vec![directions] };
    Ok(Ok([
        edit.add_initializer(&format!("{name}_quantized"), values),
        edit.add_initializer(&format!("{name}_scale"), Tensor::from_vec(shape.clone(), q.scales)?),
        edit.add_initializer(&format!("{name}_zero_point"), Tensor::from_vec(shape, vec![0i8; rows])?),
    ]))
}

/// Exchanges a node; the inner error says why a weight cannot be stored.
pub(super) fn exchange(
    graph: &Graph,
    edit: &mut Edit,
    i: NodeIndex,
    weights: Weights,
    settings: &Settings,
) -> Result<std::result::Result<(), String>> {
    let mut parts = Vec::with_capacity(weights.len());
    for weight in weights {
        match stored(graph, edit, weight, settings)? {
            Ok(part) => parts.push(part),
            Err(why) => return Ok(Err(why)),
        }
    }
    let node = graph.node(i);
    let mut inputs = node.inputs.clone();
    inputs.resize(SHARED, None);
    for (slot, part) in parts.iter().enumerate() {
        inputs[1 + slot] = Some(part[0]);
        inputs.extend([Some(part[1]), Some(part[2])]);
    }
    let label = graph.label(i);
    let mut attributes = node.attributes.clone();
    attributes.remove("layout");
    edit.set_opset("com.microsoft", 1);
    edit.remove_node(i);
    edit.add_node(
        Node::new("DynamicQuantizeLSTM", inputs, node.outputs.clone())
            .with(attributes)
            .in_domain("com.microsoft")
            .named(format!("{label}_DynamicQuantizeLSTM")),
    );
    Ok(Ok(()))
}
