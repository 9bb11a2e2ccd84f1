//! Constant tensors of a graph, wherever the file keeps them: initialisers, and Constant nodes, which
//! some exporters use for weights.

use super::{Graph, NodeIndex, ValueId};
use crate::ops::Attr;
use crate::tensor::{DType, Tensor};
use std::collections::{BTreeMap, HashSet};

/// Constants by value.
#[derive(Debug, Clone)]
pub struct Constants<'a> {
    graph: &'a Graph,
    held: BTreeMap<ValueId, (NodeIndex, &'a Tensor)>,
    tables: HashSet<ValueId>,
}

/// Metadata key under which a graph lists the names of float constants that nobody trained, such as
/// cosines of positions: separated by spaces.
pub const TABLES: &str = "tinsmith.tables";

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
        let listed = graph.header().metadata.iter().find(|(key, _)| key == TABLES);
        let tables = listed.iter().flat_map(|(_, names)| names.split(' ')).filter_map(|n| graph.find(n));
        Constants { graph, held: held.collect(), tables: tables.collect() }
    }

    /// The tensor of a value, if it is constant.
    pub fn get(&self, v: ValueId) -> Option<&'a Tensor> {
        self.graph.initializer(v).or_else(|| self.held.get(&v).map(|(_, t)| *t))
    }

    /// The tensor of a value, if it is a weight: not indices, masks, texts, single numbers or tables.
    pub fn weight(&self, v: ValueId) -> Option<&'a Tensor> {
        self.get(v).filter(|t| self.trained(v, t))
    }

    /// All weights, in the order of [`Constants::iter`].
    pub fn weights(&self) -> impl Iterator<Item = (ValueId, &'a Tensor)> + '_ {
        self.iter().filter(|(v, t)| self.trained(*v, t))
    }

    fn trained(&self, v: ValueId, tensor: &Tensor) -> bool {
        let counted = !matches!(tensor.dtype(), DType::I64 | DType::U64 | DType::Bool | DType::Str);
        counted && !tensor.shape().is_empty() && !self.tables.contains(&v)
    }

    /// The Constant node that holds a value's tensor, if one does.
    pub fn node(&self, v: ValueId) -> Option<NodeIndex> {
        self.held.get(&v).map(|(i, _)| *i)
    }

    /// By value: whether it is the same in every run, a constant or computed from constants alone.
    pub fn fixed(&self) -> Vec<bool> {
        let count = self.graph.value_count() as u32;
        let mut fixed: Vec<bool> = (0..count).map(|v| self.get(ValueId(v)).is_some()).collect();
        for node in self.graph.nodes() {
            let mut inputs = node.inputs.iter().flatten().peekable();
            if node.op.as_ref().is_none_or(|op| op.deterministic())
                && node.bodies.is_empty()
                && inputs.peek().is_some()
                && inputs.all(|v| fixed[v.0 as usize])
            {
                node.outputs.iter().flatten().for_each(|v| fixed[v.0 as usize] = true);
            }
        }
        fixed
    }

    /// All of them: initialisers in file order, then those of nodes in the order of their values.
    pub fn iter(&self) -> impl Iterator<Item = (ValueId, &'a Tensor)> + '_ {
        self.graph.initializers().chain(self.held.iter().map(|(v, (_, t))| (*v, *t)))
    }
}
