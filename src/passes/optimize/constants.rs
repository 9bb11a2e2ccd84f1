//! `lift-constants`: the tensor of a Constant node becomes an initialiser under the same name.

use super::sweep::Sweep;
use crate::error::Result;
use crate::graph::Node;
use crate::ops::Attr;
use crate::tensor::{DType, Data, Tensor};

/// The tensor that a Constant node holds; `None` for sparse and unreadable ones.
fn held(node: &Node) -> Option<Tensor> {
    let (_, attr) = node.attributes.iter().find(|(name, _)| name.starts_with("value"))?;
    let strings = |v: Vec<Vec<u8>>, shape: Vec<usize>| Tensor::new(DType::Str, shape, Data::Str(v)).ok();
    match attr {
        Attr::Tensor(t) => Some(t.clone()),
        Attr::Int(v) => Some(Tensor::scalar(*v)),
        Attr::Float(v) => Some(Tensor::scalar(*v)),
        Attr::Str(v) => strings(vec![v.clone()], vec![]),
        Attr::Ints(v) => Tensor::from_vec(vec![v.len()], v.clone()).ok(),
        Attr::Floats(v) => Tensor::from_vec(vec![v.len()], v.clone()).ok(),
        Attr::Strs(v) => strings(v.clone(), vec![v.len()]),
        Attr::Body(_) | Attr::Opaque(_) => None,
    }
}

pub(super) fn sweep(sweep: &mut Sweep<'_>) -> Result<()> {
    for i in 0..sweep.graph.nodes().len() {
        let node = sweep.graph.node(i);
        if !node.is("Constant") {
            continue;
        }
        let label = sweep.graph.label(i);
        let [Some(y)] = node.outputs[..] else { continue };
        let Some(tensor) = held(node) else {
            sweep.skip(label, "its value is sparse");
            continue;
        };
        if sweep.is_output(y) {
            sweep.skip(label, "a graph output must be the result of a node");
            continue;
        }
        let detail = format!("{}{:?} becomes an initialiser", tensor.dtype(), tensor.shape());
        sweep.remove(i);
        sweep.edit().set_initializer(y, tensor);
        sweep.apply(label, detail);
    }
    Ok(())
}
