//! New nodes beside old ones: the graph as it is with its facts and uses, and the edit in the making.
//! Constants and values that several nodes need are made once.

use super::super::PassReport;
use crate::error::Result;
use crate::graph::{Edit, Facts, Graph, Node, NodeIndex, Uses, ValueId};
use crate::ops::{Attr, Attributes, Dim};
use crate::tensor::{DType, Tensor};
use std::collections::{HashMap, HashSet};

pub(super) struct Emit<'g> {
    pub(super) graph: &'g Graph,
    pub(super) facts: Facts,
    pub(super) uses: Uses,
    pub(super) report: PassReport,
    pub(super) edit: Edit,
    outputs: HashSet<ValueId>,
    captured: HashSet<ValueId>,
    shared: HashMap<String, ValueId>,
    /// Name of the node that is being replaced; new ones are named after it.
    base: String,
}

/// Attributes from a list.
pub(super) fn attributes(all: &[(&str, Attr)]) -> Attributes {
    all.iter().fold(Attributes::new(), |a, (name, value)| a.with(name, value.clone()))
}

impl<'g> Emit<'g> {
    pub(super) fn of(graph: &'g Graph, report: PassReport) -> Result<Emit<'g>> {
        let bodies = graph.nodes().iter().flat_map(|n| &n.bodies);
        Ok(Emit {
            facts: graph.infer_noting(&|_| None, |_| None, &mut |_| Ok(()))?,
            uses: graph.uses(),
            edit: graph.edit(),
            outputs: graph.outputs().iter().copied().collect(),
            captured: bodies
                .flat_map(|(_, body)| body.captured())
                .filter_map(|name| graph.find(&name))
                .collect(),
            shared: HashMap::new(),
            base: String::new(),
            graph,
            report,
        })
    }

    pub(super) fn finish(self) -> Result<(Graph, PassReport)> {
        let mut edit = self.edit;
        edit.forget_types();
        Ok((edit.commit()?, self.report))
    }

    /// Names new nodes after node `i`.
    pub(super) fn at(&mut self, i: NodeIndex) {
        self.base = self.graph.label(i);
    }

    /// Notes that node `i` became something else.
    pub(super) fn applied(&mut self, i: NodeIndex, detail: impl Into<String>) {
        self.report.apply("lower", self.graph.label(i), detail);
    }

    /// Notes why node `i` did not become what it might have.
    pub(super) fn skipped(&mut self, i: NodeIndex, reason: impl Into<String>) {
        self.report.skip("lower", self.graph.label(i), reason);
    }

    /// A new value beside the node that is being replaced.
    pub(super) fn value(&mut self, name: &str) -> ValueId {
        let name = format!("{}/{name}", self.base);
        self.edit.add_value(&name, None)
    }

    /// A node of the default domain with one output.
    pub(super) fn op(&mut self, op: &str, inputs: &[ValueId], with: &[(&str, Attr)], name: &str) -> ValueId {
        let out = self.value(name);
        self.into("", op, inputs.iter().copied().map(Some).collect(), &[out], attributes(with));
        out
    }

    /// A node whose outputs are these values.
    pub(super) fn into(
        &mut self,
        domain: &str,
        op: &str,
        inputs: Vec<Option<ValueId>>,
        outputs: &[ValueId],
        with: Attributes,
    ) -> NodeIndex {
        self.node(domain, op, inputs, outputs.iter().copied().map(Some).collect(), with)
    }

    /// Gives the name of the node that is being replaced to the one that does its work.
    pub(super) fn inherit(&mut self, i: NodeIndex) {
        self.edit.node_mut(i).name = self.base.clone();
    }

    /// A node whose outputs are these values, some of which may be unwanted.
    pub(super) fn node(
        &mut self,
        domain: &str,
        op: &str,
        inputs: Vec<Option<ValueId>>,
        outputs: Vec<Option<ValueId>>,
        with: Attributes,
    ) -> NodeIndex {
        if !domain.is_empty() && self.edit.graph().opset(domain).is_none() {
            self.edit.set_opset(domain, 1);
        }
        let name = match outputs.iter().flatten().next() {
            Some(v) => self.edit.graph().value_name(*v).to_string(),
            None => format!("{}/{op}", self.base),
        };
        self.edit.add_node(Node::new(op, inputs, outputs).with(with).in_domain(domain).named(name))
    }

    /// What `make` gives, made once for each key.
    pub(super) fn shared(&mut self, key: String, make: impl FnOnce(&mut Self, &str) -> ValueId) -> ValueId {
        if let Some(v) = self.shared.get(&key) {
            return *v;
        }
        let base = std::mem::replace(&mut self.base, "lowered".into());
        let v = make(self, &key);
        self.base = base;
        self.shared.insert(key, v);
        v
    }

    /// A constant of whole numbers.
    pub(super) fn ints(&mut self, values: &[i64]) -> ValueId {
        let text = values.iter().map(|v| v.to_string().replace('-', "m")).collect::<Vec<_>>().join("_");
        let values = values.to_vec();
        self.shared(format!("ints_{text}"), |e, key| {
            let tensor = Tensor::from_vec(vec![values.len()], values)
                .expect("a vector has as many elements as it has");
            e.edit.add_initializer(&format!("lowered/{key}"), tensor)
        })
    }

    /// One whole number.
    pub(super) fn int(&mut self, value: i64) -> ValueId {
        self.shared(format!("int_{}", value.to_string().replace('-', "m")), |e, key| {
            e.edit.add_initializer(&format!("lowered/{key}"), Tensor::scalar(value))
        })
    }

    /// One number of a float type.
    pub(super) fn number(&mut self, value: f64, dtype: DType) -> ValueId {
        self.shared(format!("{dtype}_{value:?}"), |e, key| {
            let tensor = Tensor::scalar(value).cast_to(dtype);
            e.edit.add_initializer(&format!("lowered/{key}"), tensor)
        })
    }

    /// The node that makes a value, where it is this operator of the default domain.
    pub(super) fn made_by(&self, v: ValueId, op: &str) -> Option<NodeIndex> {
        let (i, slot) = self.uses.producer(v)?;
        (slot == 0 && self.graph.node(i).is(op)).then_some(i)
    }

    /// Input of a node.
    pub(super) fn input(&self, i: NodeIndex, slot: usize) -> Option<ValueId> {
        self.graph.node(i).inputs.get(slot).copied().flatten()
    }

    /// Output of a node, where anything reads it.
    pub(super) fn wanted(&self, i: NodeIndex, slot: usize) -> Option<ValueId> {
        let v = self.graph.node(i).outputs.get(slot).copied().flatten()?;
        let read = !self.uses.consumers(v).is_empty() || self.outputs.contains(&v);
        (read || self.captured.contains(&v)).then_some(v)
    }

    /// The only node that reads a value, where it is this operator of the default domain, at slot 0.
    pub(super) fn only_reader(&self, v: ValueId, op: &str) -> Option<NodeIndex> {
        if self.outputs.contains(&v) || self.captured.contains(&v) {
            return None;
        }
        match self.uses.consumers(v) {
            [(i, 0)] if self.graph.node(*i).is(op) => Some(*i),
            _ => None,
        }
    }

    /// Readers of a value, graph outputs counted.
    pub(super) fn readers(&self, v: ValueId) -> usize {
        self.uses.consumers(v).len()
            + usize::from(self.outputs.contains(&v))
            + usize::from(self.captured.contains(&v))
    }

    pub(super) fn shape(&self, v: ValueId) -> Option<&[Dim]> {
        self.facts.get(v)?.shape.as_deref()
    }

    pub(super) fn dtype(&self, v: ValueId) -> DType {
        self.facts.get(v).map_or(DType::F32, |f| f.dtype)
    }

    /// The permutation of a Transpose that makes `v`, and what it moves.
    pub(super) fn transposed(&self, v: ValueId, perm: &[i64]) -> Option<ValueId> {
        let i = self.made_by(v, "Transpose")?;
        let found = self.graph.node(i).attributes.ints("perm").ok().flatten()?;
        (found == perm).then(|| self.input(i, 0)).flatten()
    }
}
