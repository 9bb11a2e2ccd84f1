//! Changes to a graph: collected on a copy, applied all or none, validated at the end.

use super::{Graph, Header, Node, NodeIndex, Type, ValueDef, ValueId};
use crate::error::{Error, Kind, Result};
use crate::ops;
use crate::tensor::Tensor;
use bytes::Bytes;
use std::collections::{BTreeMap, HashSet};

/// A change in the making. Node indices stay valid until [`Edit::commit`]; removed nodes leave a hole.
#[derive(Debug)]
pub struct Edit {
    graph: Graph,
    removed: HashSet<NodeIndex>,
}

impl Edit {
    /// An edit of `graph`, which is consumed; use [`Graph::edit`] to keep it.
    pub fn of(graph: Graph) -> Edit {
        Edit { graph, removed: HashSet::new() }
    }

    /// An edit that builds a graph from nothing, with these operator sets.
    pub fn new(name: &str, opsets: &[(&str, i64)]) -> Edit {
        let mut graph = Graph { name: name.into(), ..Graph::default() };
        graph.opsets = opsets.iter().map(|(d, v)| (d.to_string(), *v)).collect();
        graph.header = Header { ir_version: 10, producer: "tinsmith".into(), ..Header::default() };
        graph.header.producer_version = env!("CARGO_PKG_VERSION").into();
        Edit::of(graph)
    }

    /// The graph as it stands, not validated.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Nodes that still stand, with their indices.
    pub fn live_nodes(&self) -> impl Iterator<Item = (NodeIndex, &Node)> {
        self.graph.nodes.iter().enumerate().filter(|(i, _)| !self.removed.contains(i))
    }

    /// Adds a value; a taken name gets a numeric suffix.
    pub fn add_value(&mut self, name: &str, ty: Option<Type>) -> ValueId {
        let mut unique = name.to_string();
        let mut n = 1;
        while unique.is_empty() || self.graph.by_name.contains_key(&unique) {
            unique = format!("{name}_{n}");
            n += 1;
        }
        let id = ValueId(self.graph.values.len() as u32);
        self.graph.by_name.insert(unique.clone(), id);
        self.graph.values.push(ValueDef { name: unique, ty, carried: Bytes::new() });
        id
    }

    /// Adds a constant.
    pub fn add_initializer(&mut self, name: &str, tensor: Tensor) -> ValueId {
        let id = self.add_value(name, None);
        self.set_initializer(id, tensor);
        id
    }

    /// Sets or replaces the tensor of a constant. Other users of the value see the change.
    pub fn set_initializer(&mut self, v: ValueId, tensor: Tensor) {
        if self.graph.initializers.insert(v, tensor).is_none() {
            self.graph.initializer_order.push(v);
        }
    }

    /// Removes a constant; its value must lose its users too, or gain a producer.
    pub fn remove_initializer(&mut self, v: ValueId) {
        self.graph.initializers.remove(&v);
        self.graph.initializer_order.retain(|x| *x != v);
    }

    /// Adds a graph input.
    pub fn add_input(&mut self, name: &str, ty: Type) -> ValueId {
        let id = self.add_value(name, Some(ty));
        self.graph.inputs.push(id);
        id
    }

    /// Removes a graph input.
    pub fn remove_input(&mut self, v: ValueId) {
        self.graph.inputs.retain(|x| *x != v);
    }

    /// Declares a value a graph output.
    pub fn add_output(&mut self, v: ValueId) {
        self.graph.outputs.push(v);
    }

    /// Takes a value out of the graph outputs; it stays a value.
    pub fn remove_output(&mut self, v: ValueId) {
        self.graph.outputs.retain(|x| *x != v);
    }

    /// Gives a value another name. A value that has that name takes this one's. Bodies that capture one
    /// of them by name are the caller's to change.
    pub fn rename(&mut self, v: ValueId, name: &str) {
        let old = std::mem::replace(&mut self.graph.values[v.0 as usize].name, name.to_string());
        if let Some(other) = self.graph.by_name.insert(name.to_string(), v).filter(|other| *other != v) {
            self.graph.values[other.0 as usize].name = old.clone();
            self.graph.by_name.insert(old, other);
        } else if old != name {
            self.graph.by_name.remove(&old);
        }
    }

    /// Adds a node; its place in the order is found at commit. An empty name is made from the operator.
    pub fn add_node(&mut self, mut node: Node) -> NodeIndex {
        if node.name.is_empty() {
            node.name = format!("{}_{}", node.op_type, self.graph.nodes.len());
        }
        self.graph.nodes.push(node);
        self.graph.nodes.len() - 1
    }

    /// Adds a node with one new output, after which it is named, and returns that output.
    pub fn add_op(
        &mut self,
        op_type: &str,
        inputs: &[ValueId],
        attributes: ops::Attributes,
        output: &str,
    ) -> ValueId {
        let out = self.add_value(output, None);
        let inputs = inputs.iter().copied().map(Some).collect();
        let name = self.graph.value_name(out).to_string();
        self.add_node(Node::new(op_type, inputs, vec![Some(out)]).with(attributes).named(name));
        out
    }

    /// Removes a node.
    pub fn remove_node(&mut self, i: NodeIndex) {
        self.removed.insert(i);
    }

    /// Changes a node in place; its operator is parsed again at commit.
    pub fn node_mut(&mut self, i: NodeIndex) -> &mut Node {
        let node = &mut self.graph.nodes[i];
        node.op = None;
        node
    }

    /// Makes every reader of `old` (graph outputs and bodies excepted) read `new`.
    pub fn redirect(&mut self, old: ValueId, new: ValueId) {
        for node in &mut self.graph.nodes {
            for input in node.inputs.iter_mut().flatten() {
                if *input == old {
                    *input = new;
                }
            }
        }
    }

    /// Makes every node read `to(v)` wherever it reads `v` (graph outputs and bodies excepted).
    pub fn redirect_all(&mut self, to: impl Fn(ValueId) -> ValueId) {
        for input in self.graph.nodes.iter_mut().flat_map(|n| n.inputs.iter_mut().flatten()) {
            *input = to(*input);
        }
    }

    /// Sets the declared type of a value (graph inputs and outputs, opaque results).
    pub fn set_type(&mut self, v: ValueId, ty: Option<Type>) {
        self.graph.values[v.0 as usize].ty = ty;
    }

    /// Forgets the declared types of all values that are neither inputs nor outputs, so that stale
    /// shapes do not survive a change of sizes.
    pub fn forget_types(&mut self) {
        let keep: HashSet<ValueId> = self.graph.inputs.iter().chain(&self.graph.outputs).copied().collect();
        let opaque: HashSet<ValueId> = self
            .graph
            .nodes
            .iter()
            .filter(|n| n.op.is_none())
            .flat_map(|n| n.outputs.iter().flatten().copied())
            .collect();
        for (i, value) in self.graph.values.iter_mut().enumerate() {
            let id = ValueId(i as u32);
            if !keep.contains(&id) && !opaque.contains(&id) {
                value.ty = None;
            }
        }
    }

    /// Imports an operator set, or raises the version of one.
    pub fn set_opset(&mut self, domain: &str, version: i64) {
        let domain = ops::canonical_domain(domain);
        match self.graph.opsets.iter_mut().find(|(d, _)| ops::canonical_domain(d) == domain) {
            Some((_, v)) => *v = (*v).max(version),
            None => self.graph.opsets.push((domain.to_string(), version)),
        }
        for node in &mut self.graph.nodes {
            if ops::canonical_domain(&node.domain) == domain {
                node.op = None;
            }
        }
    }

    /// Imports an older version of a domain's operator set; nodes whose form changed are the caller's to
    /// rewrite. All its operators are parsed again at commit.
    pub fn lower_opset(&mut self, domain: &str, version: i64) {
        self.set_opset(domain, version);
        let domain = ops::canonical_domain(domain);
        for (d, v) in &mut self.graph.opsets {
            if ops::canonical_domain(d) == domain {
                *v = version;
            }
        }
    }

    /// Sets a metadata key.
    pub fn set_metadata(&mut self, key: &str, value: &str) {
        let metadata = &mut self.graph.header.metadata;
        match metadata.iter_mut().find(|(k, _)| k == key) {
            Some((_, v)) => *v = value.into(),
            None => metadata.push((key.into(), value.into())),
        }
    }

    /// The header, for formats that fill it.
    pub fn header_mut(&mut self) -> &mut Header {
        &mut self.graph.header
    }

    /// Graph-level opaque content, for formats.
    pub fn set_carried(&mut self, carried: Bytes) {
        self.graph.carried = carried;
    }

    /// Opaque content of a value, for formats.
    pub fn set_value_carried(&mut self, v: ValueId, carried: Bytes) {
        self.graph.values[v.0 as usize].carried = carried;
    }

    /// Validates and returns the changed graph. Nodes are put into execution order, stably. Unused
    /// values and constants stay; `passes::optimize` removes them.
    pub fn commit(self) -> Result<Graph> {
        self.commit_inner(false)
    }

    /// As [`Edit::commit`] for the body of an If, Loop or Scan: values without producer are captured.
    pub fn commit_body(self) -> Result<Graph> {
        self.commit_inner(true)
    }

    fn commit_inner(self, body: bool) -> Result<Graph> {
        let Edit { mut graph, removed } = self;
        let mut index = 0;
        graph.nodes.retain(|_| {
            index += 1;
            !removed.contains(&(index - 1))
        });
        graph.check_definitions(body)?;
        graph.sort_nodes()?;
        graph.parse_operators()?;
        Ok(graph)
    }
}

impl Graph {
    /// Every read value is defined once: an input, a constant or one node's output.
    fn check_definitions(&self, body: bool) -> Result<()> {
        let inputs: HashSet<ValueId> = self.inputs.iter().copied().collect();
        let mut producer: BTreeMap<ValueId, usize> = BTreeMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            for v in node.outputs.iter().flatten() {
                if producer.insert(*v, i).is_some() || self.initializers.contains_key(v) || inputs.contains(v)
                {
                    return Err(Error::invalid("GRAPH-DUPLICATE", "value is defined twice")
                        .node(self.label(i))
                        .found(self.value_name(*v))
                        .hint("every value must have one producer"));
                }
            }
        }
        if body {
            return Ok(());
        }
        let defined =
            |v: &ValueId| producer.contains_key(v) || inputs.contains(v) || self.initializers.contains_key(v);
        for (i, node) in self.nodes.iter().enumerate() {
            for (slot, v) in node.inputs.iter().enumerate() {
                if let Some(v) = v
                    && !defined(v)
                {
                    return Err(Error::invalid("GRAPH-DANGLING", "node reads a value that nothing defines")
                        .node(self.label(i))
                        .field(format!("input[{slot}]"))
                        .found(self.value_name(*v)));
                }
            }
        }
        for v in &self.outputs {
            if !defined(v) {
                return Err(Error::invalid("GRAPH-DANGLING", "graph output that nothing defines")
                    .field(format!("graph.output \"{}\"", self.value_name(*v))));
            }
        }
        Ok(())
    }

    /// Puts nodes into execution order (Kahn, lowest index first); fails on a cycle, naming a node of it.
    fn sort_nodes(&mut self) -> Result<()> {
        let uses = self.uses();
        let mut waiting = vec![0usize; self.nodes.len()];
        let mut readers: Vec<Vec<usize>> = vec![vec![]; self.nodes.len()];
        for v in 0..self.values.len() {
            if let Some((p, _)) = uses.producer[v] {
                for (c, _) in &uses.consumers[v] {
                    readers[p].push(*c);
                    waiting[*c] += 1;
                }
            }
        }
        if (0..self.nodes.len()).all(|p| readers[p].iter().all(|c| *c > p)) {
            return Ok(());
        }
        let mut ready: std::collections::BinaryHeap<std::cmp::Reverse<usize>> =
            (0..self.nodes.len()).filter(|i| waiting[*i] == 0).map(std::cmp::Reverse).collect();
        let mut order = Vec::with_capacity(self.nodes.len());
        while let Some(std::cmp::Reverse(i)) = ready.pop() {
            order.push(i);
            for c in &readers[i] {
                waiting[*c] -= 1;
                if waiting[*c] == 0 {
                    ready.push(std::cmp::Reverse(*c));
                }
            }
        }
        if order.len() < self.nodes.len() {
            let stuck = (0..self.nodes.len()).find(|i| waiting[*i] > 0).unwrap_or(0);
            return Err(Error::invalid("GRAPH-CYCLE", "the graph has a cycle")
                .node(self.label(stuck))
                .hint("export the model again; an ONNX graph must not have cycles"));
        }
        let mut slots: Vec<Option<Node>> = std::mem::take(&mut self.nodes).into_iter().map(Some).collect();
        self.nodes = order.into_iter().filter_map(|i| slots[i].take()).collect();
        Ok(())
    }

    /// Parses the operators of nodes that have none yet. Unknown ones and those with attributes that are
    /// not supported stay opaque; attributes that cannot be are errors naming the node.
    fn parse_operators(&mut self) -> Result<()> {
        for i in 0..self.nodes.len() {
            let node = &self.nodes[i];
            if node.op.is_some() {
                continue;
            }
            let Some(version) = self.opset(&node.domain) else { continue };
            if let Some(spec) = ops::lookup(&node.domain, &node.op_type, version) {
                match (spec.parse)(&node.attributes.clone().for_outputs(node.outputs.len()), version) {
                    Ok(op) => self.nodes[i].op = Some(op),
                    Err(e) if e.kind() == Kind::Unsupported => {}
                    Err(e) => return Err(e.node(self.label(i)).field(node.operator_name())),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Attributes, Dim};
    use crate::tensor::DType;

    fn small() -> Edit {
        let mut edit = Edit::new("g", &[("", 17)]);
        let x = edit.add_input(
            "x",
            Type::Tensor { dtype: DType::F32, shape: Some(vec![Dim::symbol("n"), Dim::from(3i64)]) },
        );
        let b = edit.add_initializer("b", Tensor::from_vec(vec![3], vec![1f32, 2., 3.]).unwrap());
        let y = edit.add_op("Add", &[x, b], Attributes::new(), "y");
        let z = edit.add_op("Relu", &[y], Attributes::new(), "z");
        edit.add_output(z);
        edit
    }

    #[test]
    fn builds_infers_and_sorts() {
        let graph = small().commit().unwrap();
        let facts = graph.infer(&|_| None).unwrap();
        let z = graph.find("z").unwrap();
        assert_eq!(format!("{:?}", facts.get(z).unwrap().shape), "Some([n, 3])");
        let mut edit = graph.edit();
        let x = graph.find("x").unwrap();
        let w = edit.add_op("Relu", &[x], Attributes::new(), "w");
        edit.node_mut(0).inputs[0] = Some(w);
        let graph = edit.commit().unwrap();
        assert_eq!(graph.nodes().iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["w", "y", "z"]);
    }

    #[test]
    fn a_cycle_a_dangling_input_and_a_second_producer_are_refused_by_name() {
        let mut edit = small();
        let z = edit.graph().find("z").unwrap();
        edit.node_mut(0).inputs[0] = Some(z);
        assert_eq!(edit.commit().unwrap_err().code(), "GRAPH-CYCLE");
        let mut edit = small();
        let nowhere = edit.add_value("nowhere", None);
        edit.node_mut(1).inputs[0] = Some(nowhere);
        let e = edit.commit().unwrap_err();
        assert_eq!((e.code(), e.node_name()), ("GRAPH-DANGLING", Some("z")));
        let mut edit = small();
        let y = edit.graph().find("y").unwrap();
        edit.node_mut(1).outputs[0] = Some(y);
        assert_eq!(edit.commit().unwrap_err().code(), "GRAPH-DUPLICATE");
    }
}
