//! Weights stored in f16 and cast back where they are used, so that a file is half as large and computes
//! in f32 as before; runtimes fold the casts when they load it. Tables of angles and small vectors stay.

use crate::error::Result;
use crate::graph::{Graph, Node, Uses, ValueId};
use crate::ops::{Attr, Attributes};
use crate::tensor::{DType, Tensor};

/// Elements below which a weight is not worth a cast.
const SMALL: usize = 1024;
/// Largest number of an f16.
const LARGEST: f32 = 65504.0;

/// Inputs that hold angles, which half precision would spoil.
const ANGLES: &[(&str, &[usize])] = &[
    ("RotaryEmbedding", &[1, 2]),
    ("com.microsoft:RotaryEmbedding", &[2, 3]),
    ("com.microsoft:GroupQueryAttention", &[7, 8]),
];

/// The graph with its weights in f16. What does not fit is named in `warnings` and stays.
pub(super) fn weights(graph: &Graph, warnings: &mut Vec<String>) -> Result<Graph> {
    let uses = graph.uses();
    let mut edit = graph.edit();
    let all: Vec<(ValueId, Tensor)> = graph
        .initializers()
        .filter(|(v, t)| wanted(graph, &uses, *v, t))
        .map(|(v, t)| (v, t.clone()))
        .collect();
    for (v, tensor) in all {
        let name = graph.value_name(v);
        let top = tensor.to_f32s()?.iter().fold(0f32, |top, x| top.max(x.abs()));
        if top > LARGEST {
            warnings
                .push(format!("weight \"{name}\" stays in f32: it reaches {top:e}, f16 ends at {LARGEST}"));
            continue;
        }
        edit.remove_initializer(v);
        let stored = edit.add_initializer(&format!("{name}.f16"), tensor.cast_to(DType::F16));
        let to = Attributes::new().with("to", Attr::Int(i64::from(DType::F32.onnx())));
        let cast = Node::new("Cast", vec![Some(stored)], vec![Some(v)]);
        edit.add_node(cast.with(to).named(format!("{name}.cast")));
    }
    edit.commit()
}

fn wanted(graph: &Graph, uses: &Uses, v: ValueId, tensor: &Tensor) -> bool {
    let angles = uses.consumers(v).iter().any(|(i, slot)| {
        let name = graph.node(*i).operator_name();
        ANGLES.iter().any(|(op, slots)| *op == name && slots.contains(slot))
    });
    tensor.dtype() == DType::F32
        && tensor.shape().len() >= 2
        && tensor.len() >= SMALL
        && graph.constant(v).is_some()
        && !graph.inputs().contains(&v)
        && !angles
}
