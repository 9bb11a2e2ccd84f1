//! Raises the default operator set of a graph by rewriting the operators whose form changed. Covers
//! versions 7 to 17: up to 13 attributes became inputs and Softmax lost its flattening; up to 17 nothing but
//! the default of RoiAlign and the training outputs of BatchNormalization changed.

use super::{Edit, Graph, Node, NodeIndex, Type, ValueId};
use crate::error::{Error, Result};
use crate::ops::{self, Attr, Attributes};
use crate::tensor::{DType, Tensor};

impl Graph {
    /// The same graph at operator set `to` or later (unchanged where it is there already). Fails with
    /// kind `Unsupported` naming the node where one cannot be raised, and for versions below 7.
    pub fn upgrade(&self, to: i64) -> Result<Graph> {
        let from = self.opset("").unwrap_or(0);
        if from >= to {
            return Ok(self.clone());
        }
        if from < 7 || to > 17 {
            return Err(Error::unsupported("OPSET-UPGRADE", "this operator set cannot be raised")
                .field("opset_import")
                .found(from)
                .limit("7 to 17")
                .hint("export the model with operator set 13 or later"));
        }
        let mut edit = self.edit();
        edit.set_opset("", to);
        edit.header_mut().ir_version = self.header().ir_version.max(if to > 14 { 8 } else { 7 });
        for i in 0..self.nodes().len() {
            if ops::canonical_domain(&self.node(i).domain).is_empty() {
                raise(self, &mut edit, i, from, to)?;
            }
        }
        edit.commit()
    }
}

fn raise(graph: &Graph, edit: &mut Edit, i: NodeIndex, from: i64, to: i64) -> Result<()> {
    let node = graph.node(i);
    let refuse = |why: &str| {
        Err(Error::unsupported("OPSET-UPGRADE", format!("{} cannot be raised: {why}", node.op_type))
            .node(graph.label(i)))
    };
    if node.op.is_none() && node.bodies.is_empty() {
        return refuse("the operator is not known");
    }
    for (_, body) in &node.bodies {
        if body.nodes().iter().any(|n| ops::canonical_domain(&n.domain).is_empty()) {
            return refuse("its bodies hold operators of the old set");
        }
    }
    match node.op_type.as_str() {
        "BatchNormalization" if from < 14 && to >= 14 && node.outputs.iter().flatten().count() > 1 => {
            return refuse("it has outputs for training");
        }
        "RoiAlign" if from < 16 && to >= 16 => {
            let mode = Attr::Str(b"output_half_pixel".to_vec());
            edit.node_mut(i).attributes.set("coordinate_transformation_mode", mode);
        }
        _ if from >= 13 => {}
        "Squeeze" | "Unsqueeze" | "ReduceSum" => ints_to_input(graph, edit, i, "axes", 1)?,
        "Split" => ints_to_input(graph, edit, i, "split", 1)?,
        "Softmax" | "LogSoftmax" | "Hardmax" => softmax(graph, edit, i, to)?,
        "Dropout" if from < 12 => edit.node_mut(i).attributes.remove("ratio"),
        "Clip" if from < 11 => {
            floats_to_input(graph, edit, i, "min", 1)?;
            floats_to_input(graph, edit, i, "max", 2)?;
        }
        "Pad" if from < 11 => {
            ints_to_input(graph, edit, i, "pads", 1)?;
            floats_to_input(graph, edit, i, "value", 2)?;
        }
        "Slice" if from < 10 => {
            for (slot, name) in [(1, "starts"), (2, "ends"), (3, "axes")] {
                ints_to_input(graph, edit, i, name, slot)?;
            }
        }
        "TopK" if from < 10 => {
            let k = node.attributes.int("k", 1)?;
            let v =
                edit.add_initializer(&format!("{}_k", graph.label(i)), Tensor::from_vec(vec![1], vec![k])?);
            let node = edit.node_mut(i);
            node.attributes.remove("k");
            node.inputs.push(Some(v));
        }
        "Resize" if from == 10 => {
            let node = edit.node_mut(i);
            let scales = node.inputs.get(1).copied().flatten();
            node.inputs = vec![node.inputs[0], None, scales];
            node.attributes.set("coordinate_transformation_mode", Attr::Str(b"asymmetric".to_vec()));
            node.attributes.set("nearest_mode", Attr::Str(b"floor".to_vec()));
        }
        "Upsample" | "Scatter" => return refuse("it left the operator set"),
        "BatchNormalization" if from < 9 => {
            if node.attributes.int("spatial", 1)? != 1 {
                return refuse("it is not spatial");
            }
            edit.node_mut(i).attributes.remove("spatial");
        }
        _ => {
            edit.node_mut(i);
        }
    }
    Ok(())
}

fn place_input(node: &mut Node, slot: usize, v: ValueId) {
    while node.inputs.len() <= slot {
        node.inputs.push(None);
    }
    node.inputs[slot] = Some(v);
}

fn ints_to_input(graph: &Graph, edit: &mut Edit, i: NodeIndex, name: &str, slot: usize) -> Result<()> {
    let values = graph.node(i).attributes.ints(name)?;
    if let Some(values) = values {
        let tensor = Tensor::from_vec(vec![values.len()], values)?;
        let v = edit.add_initializer(&format!("{}_{name}", graph.label(i)), tensor);
        place_input(edit.node_mut(i), slot, v);
    }
    edit.node_mut(i).attributes.remove(name);
    Ok(())
}

fn floats_to_input(graph: &Graph, edit: &mut Edit, i: NodeIndex, name: &str, slot: usize) -> Result<()> {
    if graph.node(i).attributes.get(name).is_some() {
        let value = graph.node(i).attributes.float(name, 0.0)?;
        let v = edit.add_initializer(&format!("{}_{name}", graph.label(i)), Tensor::scalar(value));
        place_input(edit.node_mut(i), slot, v);
    }
    edit.node_mut(i).attributes.remove(name);
    Ok(())
}

/// Before 13, Softmax flattens to two axes at `axis` (default 1); from 13 on it runs over one axis.
fn softmax(graph: &Graph, edit: &mut Edit, i: NodeIndex, to: i64) -> Result<()> {
    debug_assert!(to >= 13);
    let node = graph.node(i);
    let axis = node.attributes.int("axis", 1)?;
    let (Some(x), Some(y)) = (node.inputs[0], node.outputs[0]) else { return Ok(()) };
    let rank = graph.infer(&|_| None)?.get(x).and_then(|f| f.rank());
    if axis == -1 || rank.is_some_and(|r| ops::axis(axis, r).is_ok_and(|a| a + 1 == r)) {
        edit.node_mut(i).attributes.set("axis", Attr::Int(-1));
        return Ok(());
    }
    let label = graph.label(i);
    let shape =
        edit.add_value(&format!("{label}_shape"), Some(Type::Tensor { dtype: DType::I64, shape: None }));
    edit.add_node(Node::new("Shape", vec![Some(x)], vec![Some(shape)]));
    let flat = edit.add_op(
        "Flatten",
        &[x],
        Attributes::new().with("axis", Attr::Int(axis)),
        &format!("{label}_flat"),
    );
    let soft = edit.add_value(&format!("{label}_soft"), None);
    edit.add_node(Node::new("Reshape", vec![Some(soft), Some(shape)], vec![Some(y)]));
    let node = edit.node_mut(i);
    node.inputs[0] = Some(flat);
    node.outputs[0] = Some(soft);
    node.attributes.set("axis", Attr::Int(-1));
    Ok(())
}
