//! The graph: ONNX semantics, named values, nodes typed by operator, symbolic dimensions. Changes go
//! through [`edit::Edit`] alone, which applies all of them or none and validates the result.

pub mod constants;
pub mod coupling;
pub mod diff;
pub mod edit;
pub mod infer;
pub mod states;
mod part;
mod upgrade;

pub use edit::Edit;
pub use infer::Facts;

use crate::error::{Error, Result};
use crate::ops::{self, Attributes, Dim, Operator};
use crate::tensor::{DType, Tensor};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// A value of one graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

/// Position of a node in [`Graph::nodes`], which is execution order.
pub type NodeIndex = usize;

/// Declared type of a value.
#[derive(Debug, Clone)]
pub enum Type {
    /// A dense tensor.
    Tensor {
        /// Element type.
        dtype: DType,
        /// Shape, where declared.
        shape: Option<Vec<Dim>>,
    },
    /// Sequence, map, optional, sparse: as encoded in the file.
    Opaque(Bytes),
}

/// A named value.
#[derive(Debug, Clone)]
pub struct ValueDef {
    /// Unique name within the graph.
    pub name: String,
    /// Declared type, where the file declares one.
    pub ty: Option<Type>,
    /// What the format keeps of it besides (doc string, metadata), opaque.
    pub carried: Bytes,
}

/// One node.
#[derive(Debug, Clone)]
pub struct Node {
    /// Name; may be empty in files.
    pub name: String,
    /// Domain, empty for the default one.
    pub domain: String,
    /// Operator.
    pub op_type: String,
    /// Inputs; `None` where an optional one is absent.
    pub inputs: Vec<Option<ValueId>>,
    /// Outputs; `None` where not wanted.
    pub outputs: Vec<Option<ValueId>>,
    /// Attributes, the truth that is written back.
    pub attributes: Attributes,
    /// Bodies of If, Loop, Scan: (attribute name, graph). A body names outer values as its own
    /// values without producer.
    pub bodies: Vec<(String, Graph)>,
    /// The typed operator; `None` for one that this version does not know (opaque).
    pub op: Option<Arc<dyn Operator>>,
    /// What the format keeps besides (doc string, metadata, overload), opaque.
    pub carried: Bytes,
}

impl Node {
    /// A node whose operator is parsed from the attributes when the graph is committed.
    pub fn new(op_type: &str, inputs: Vec<Option<ValueId>>, outputs: Vec<Option<ValueId>>) -> Node {
        Node {
            name: String::new(),
            domain: String::new(),
            op_type: op_type.into(),
            inputs,
            outputs,
            attributes: Attributes::new(),
            bodies: vec![],
            op: None,
            carried: Bytes::new(),
        }
    }
    /// The same with a name.
    pub fn named(mut self, name: impl Into<String>) -> Node {
        self.name = name.into();
        self
    }
    /// The same with attributes.
    pub fn with(mut self, attributes: Attributes) -> Node {
        self.attributes = attributes;
        self
    }
    /// The same in another domain.
    pub fn in_domain(mut self, domain: &str) -> Node {
        self.domain = domain.into();
        self
    }
    /// `domain:Op`, or `Op` in the default domain.
    pub fn operator_name(&self) -> String {
        match ops::canonical_domain(&self.domain) {
            "" => self.op_type.clone(),
            domain => format!("{domain}:{}", self.op_type),
        }
    }
    /// Whether this is the default-domain operator `op`.
    pub fn is(&self, op: &str) -> bool {
        self.op_type == op && ops::canonical_domain(&self.domain).is_empty()
    }
}

/// Producers and consumers, computed once for a graph that does not change.
#[derive(Debug, Clone)]
pub struct Uses {
    producer: Vec<Option<(NodeIndex, usize)>>,
    consumers: Vec<Vec<(NodeIndex, usize)>>,
}

impl Uses {
    /// The node and output slot that produce a value.
    pub fn producer(&self, v: ValueId) -> Option<(NodeIndex, usize)> {
        self.producer[v.0 as usize]
    }
    /// The nodes and input slots that read a value, in order. A node whose body captures the value
    /// reads it at slot `usize::MAX`.
    pub fn consumers(&self, v: ValueId) -> &[(NodeIndex, usize)] {
        &self.consumers[v.0 as usize]
    }
}

/// What a file carries besides the graph proper.
#[derive(Debug, Clone, Default)]
pub struct Header {
    /// Format version (`ir_version`).
    pub ir_version: i64,
    /// Producer.
    pub producer: String,
    /// Producer's version.
    pub producer_version: String,
    /// Domain of the model.
    pub domain: String,
    /// Version of the model.
    pub model_version: i64,
    /// Key-value metadata in order.
    pub metadata: Vec<(String, String)>,
    /// Functions, training info and whatever else is kept opaque, encoded by the format.
    pub carried: Bytes,
}

/// A graph. Cloning is cheap in weights: tensors share their elements.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    pub(crate) name: String,
    pub(crate) values: Vec<ValueDef>,
    pub(crate) by_name: HashMap<String, ValueId>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) initializers: BTreeMap<ValueId, Tensor>,
    /// Order in which the file lists them; edits append.
    pub(crate) initializer_order: Vec<ValueId>,
    pub(crate) inputs: Vec<ValueId>,
    pub(crate) outputs: Vec<ValueId>,
    pub(crate) opsets: Vec<(String, i64)>,
    pub(crate) header: Header,
    /// Graph-level content that the format keeps opaque (doc string, quantisation annotations, ...).
    pub(crate) carried: Bytes,
}

impl Graph {
    /// Graph name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Nodes in execution order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }
    /// One node.
    pub fn node(&self, i: NodeIndex) -> &Node {
        &self.nodes[i]
    }
    /// Graph inputs in order, those with an initialiser (defaults) included.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }
    /// Inputs that the caller must give: those without an initialiser.
    pub fn required_inputs(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.inputs.iter().copied().filter(|v| !self.initializers.contains_key(v))
    }
    /// Graph outputs in order.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }
    /// Number of values; ids run below it.
    pub fn value_count(&self) -> usize {
        self.values.len()
    }
    /// A value's definition.
    pub fn value(&self, v: ValueId) -> &ValueDef {
        &self.values[v.0 as usize]
    }
    /// A value's name.
    pub fn value_name(&self, v: ValueId) -> &str {
        &self.values[v.0 as usize].name
    }
    /// The value of a name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.by_name.get(name).copied()
    }
    /// A constant's tensor.
    pub fn initializer(&self, v: ValueId) -> Option<&Tensor> {
        self.initializers.get(&v)
    }
    /// The tensor of a value that is the same in every run: an initialiser that no caller can replace.
    /// From IR version 4 on, an initialiser that is an input too is only a default.
    pub fn constant(&self, v: ValueId) -> Option<&Tensor> {
        let tensor = self.initializers.get(&v)?;
        (self.header.ir_version < 4 || !self.inputs.contains(&v)).then_some(tensor)
    }
    /// Constants in file order.
    pub fn initializers(&self) -> impl Iterator<Item = (ValueId, &Tensor)> {
        self.initializer_order.iter().filter_map(|v| Some((*v, self.initializers.get(v)?)))
    }
    /// Operator sets.
    pub fn opsets(&self) -> &[(String, i64)] {
        &self.opsets
    }
    /// Version of a domain's operator set, if imported.
    pub fn opset(&self, domain: &str) -> Option<i64> {
        let domain = ops::canonical_domain(domain);
        self.opsets.iter().find(|(d, _)| ops::canonical_domain(d) == domain).map(|(_, v)| *v)
    }
    /// What the file carries besides.
    pub fn header(&self) -> &Header {
        &self.header
    }
    /// A node's name for people: its own, or that of its first output.
    pub fn label(&self, i: NodeIndex) -> String {
        let node = &self.nodes[i];
        if !node.name.is_empty() {
            return node.name.clone();
        }
        match node.outputs.iter().flatten().next() {
            Some(v) => self.value_name(*v).to_string(),
            None => format!("{}#{i}", node.op_type),
        }
    }

    /// Producers and consumers.
    pub fn uses(&self) -> Uses {
        let mut uses =
            Uses { producer: vec![None; self.values.len()], consumers: vec![vec![]; self.values.len()] };
        for (n, node) in self.nodes.iter().enumerate() {
            for (slot, v) in node.inputs.iter().enumerate() {
                if let Some(v) = v {
                    uses.consumers[v.0 as usize].push((n, slot));
                }
            }
            for (slot, v) in node.outputs.iter().enumerate() {
                if let Some(v) = v {
                    uses.producer[v.0 as usize] = Some((n, slot));
                }
            }
            for (_, body) in &node.bodies {
                for name in body.captured() {
                    if let Some(v) = self.find(&name) {
                        uses.consumers[v.0 as usize].push((n, usize::MAX));
                    }
                }
            }
        }
        uses
    }

    /// Names of outer values that this graph reads as a body, those of nested bodies included.
    pub fn captured(&self) -> Vec<String> {
        let mut defined = vec![false; self.values.len()];
        for v in self.inputs.iter().chain(self.initializers.keys()) {
            defined[v.0 as usize] = true;
        }
        for v in self.nodes.iter().flat_map(|n| n.outputs.iter().flatten()) {
            defined[v.0 as usize] = true;
        }
        let reads = self.nodes.iter().flat_map(|n| n.inputs.iter().flatten()).chain(&self.outputs);
        let mut names: Vec<String> =
            reads.filter(|v| !defined[v.0 as usize]).map(|v| self.value_name(*v).to_string()).collect();
        for (_, body) in self.nodes.iter().flat_map(|n| &n.bodies) {
            for name in body.captured() {
                if self.find(&name).is_none_or(|v| !defined[v.0 as usize]) {
                    names.push(name);
                }
            }
        }
        names.sort();
        names.dedup();
        names
    }

    /// Starts a change.
    pub fn edit(&self) -> Edit {
        Edit::of(self.clone())
    }

    /// Operators of the default domain and others that this version does not know, with their counts.
    /// `If` is known by its bodies; those of other nodes stay closed.
    pub fn unknown_operators(&self) -> Vec<(String, usize)> {
        fn count(graph: &Graph, counts: &mut BTreeMap<String, usize>) {
            for node in graph.nodes.iter().filter(|n| n.op.is_none()) {
                match node.is("If") {
                    true => node.bodies.iter().for_each(|(_, body)| count(body, counts)),
                    false => *counts.entry(node.operator_name()).or_insert(0) += 1,
                }
            }
        }
        let mut counts = BTreeMap::new();
        count(self, &mut counts);
        counts.into_iter().collect()
    }

    /// The first node that [`Graph::unknown_operators`] counts, or the `If` that holds it.
    pub fn first_unknown(&self) -> Option<NodeIndex> {
        self.nodes.iter().position(|n| match n.op {
            Some(_) => false,
            None if n.is("If") => n.bodies.iter().any(|(_, body)| body.first_unknown().is_some()),
            None => true,
        })
    }

    /// `Err` of kind `Unsupported` naming the node, where a node must be known but is not.
    pub fn operator(&self, i: NodeIndex) -> Result<&Arc<dyn Operator>> {
        let node = &self.nodes[i];
        node.op.as_ref().ok_or_else(|| {
            let opset =
                self.opset(&node.domain).map_or("no operator set".into(), |v| format!("operator set {v}"));
            Error::unsupported(
                "OP-UNKNOWN",
                format!("operator {} ({opset}) is not known", node.operator_name()),
            )
            .node(self.label(i))
            .hint("inspection and export still work; passes treat the node as a barrier")
        })
    }
}
