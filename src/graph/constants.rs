//! Constant tensors of a graph, wherever the file keeps them: initialisers, and Constant nodes, which
//! some exporters use for weights.

use super::{Graph, NodeIndex, ValueId};
use crate::ops::Attr;
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;

/// Constants by value.
#[derive(Debug, Clone)]
pub struct Constants<'a> {
    graph: &'a Graph,
    held: BTreeMap<ValueId, (NodeIndex, &'a Tensor)>,
}

impl<'a> Constants<'a> {
    /// The constants of `graph`.
    pub fn of(graph: &'a Graph) -> Constants<'a> {
        let held = graph.nodes().iter().enumerate().filter_map(|(i, node)| {
            let output = node.outputs.first().copied().flatten()?;
            match node.attributes.get("value") {
                Some(Attr::Tensor(t)) if node.is("Constant") => Some((output, (i, t))),
                _ => None,
            }
        });
        Constants { graph, held: held.collect() }
    }

    /// The tensor of a value, if it is constant.
    pub fn get(&self, v: ValueId) -> Option<&'a Tensor> {
        self.graph.initializer(v).or_else(|| self.held.get(&v).map(|(_, t)| *t))
    }

    /// The Constant node that holds a value's tensor, if one does.
    pub fn node(&self, v: ValueId) -> Option<NodeIndex> {
        self.held.get(&v).map(|(i, _)| *i)
    }

    /// All of them: initialisers in file order, then those of nodes in the order of their values.
    pub fn iter(&self) -> impl Iterator<Item = (ValueId, &'a Tensor)> + '_ {
        self.graph.initializers().chain(self.held.iter().map(|(v, (_, t))| (*v, *t)))
    }
}

/// Whether a constant counts as weight: not indices, masks, texts or single numbers.
pub fn is_weight(tensor: &Tensor) -> bool {
    let counted = !matches!(tensor.dtype(), DType::I64 | DType::U64 | DType::Bool | DType::Str);
    counted && !tensor.shape().is_empty()
}
