//! The execution plan: the steps in which a graph runs. A graph enters, with the fusions that may stand for
//! nodes of it; steps with what they read and write, and what may be freed behind each, leave. The graph
//! stays as it is.

use super::backward::captured;
use super::fuse::Fusion;
use crate::graph::{Graph, NodeIndex, ValueId};
use crate::ops::{Barrier, Keeps, Operator};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

/// What runs at once, forward and back.
#[derive(Debug, Clone)]
pub struct Step {
    /// Nodes that it covers, ascending; it runs in the place of the last.
    nodes: Vec<NodeIndex>,
    /// Values that it reads, by input of its operator.
    pub(super) inputs: Vec<Option<ValueId>>,
    /// Values that it computes, by output of its operator.
    pub(super) outputs: Vec<Option<ValueId>>,
    /// What evaluates it and gives its gradient; `None` for a node that runs bodies.
    pub(super) op: Option<Arc<dyn Operator>>,
    name: String,
    /// Operators of the nodes, where they are several.
    covers: String,
}

impl Step {
    /// One node by itself.
    fn of(graph: &Graph, i: NodeIndex) -> Step {
        let node = graph.node(i);
        Step {
            nodes: vec![i],
            inputs: node.inputs.clone(),
            outputs: node.outputs.clone(),
            op: node.op.clone().filter(|_| node.bodies.is_empty()),
            name: node.operator_name(),
            covers: String::new(),
        }
    }

    /// The nodes of a fusion.
    fn fused(fusion: &Fusion) -> Step {
        Step {
            nodes: fusion.nodes.clone(),
            inputs: fusion.inputs.clone(),
            outputs: vec![Some(fusion.output)],
            op: Some(Arc::clone(&fusion.op)),
            name: fusion.form.name().into(),
            covers: fusion.covers.clone(),
        }
    }

    /// Nodes that it covers, ascending.
    pub fn nodes(&self) -> &[NodeIndex] {
        &self.nodes
    }

    /// The node in whose place it runs.
    pub fn at(&self) -> NodeIndex {
        self.nodes.last().copied().unwrap_or_default()
    }

    /// The operator's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The operator's name, with the operators of the nodes that it covers where they are several:
    /// `Swish (Sigmoid, Mul)`.
    pub fn title(&self) -> String {
        match self.covers.is_empty() {
            true => self.name.clone(),
            false => format!("{} ({})", self.name, self.covers),
        }
    }

    /// Everything that it reads, through bodies too.
    pub(super) fn reads<'g>(&'g self, graph: &'g Graph) -> impl Iterator<Item = ValueId> + 'g {
        self.inputs.iter().flatten().copied().chain(captured(graph, graph.node(self.at())))
    }

    /// Forward values that its reverse reads.
    pub(super) fn keeps(&self) -> Keeps {
        self.op.as_ref().map(|op| op.keeps()).unwrap_or_default()
    }

    /// Whether nothing flows back through it because it depends on shapes alone.
    pub(super) fn of_shapes(&self) -> bool {
        self.op.as_ref().is_some_and(|op| op.barrier() == Some(Barrier::Shapes))
    }
}

/// The steps of a graph in order. A step of several nodes runs in the place of the last of them: all that
/// it reads is there by then, and nothing reads its result before.
#[derive(Debug)]
pub struct Plan {
    steps: Vec<Step>,
    /// Values that nothing reads behind each step, but for graph outputs.
    free_after: Vec<Vec<ValueId>>,
    /// The step that computes a value, by value.
    made: Vec<Option<usize>>,
    /// The steps that read a value, through bodies too, by value.
    readers: Vec<Vec<usize>>,
}

impl Plan {
    /// Each node by itself, but those of `fusions`, which share none.
    pub(super) fn new<'f>(graph: &Graph, fusions: impl IntoIterator<Item = &'f Fusion>) -> Plan {
        let mut fused: Vec<Option<&Fusion>> = vec![None; graph.nodes().len()];
        for fusion in fusions {
            fusion.nodes.iter().for_each(|i| fused[*i] = Some(fusion));
        }
        let mut steps = Vec::with_capacity(fused.len());
        for (i, fusion) in fused.into_iter().enumerate() {
            match fusion {
                None => steps.push(Step::of(graph, i)),
                Some(fusion) if fusion.nodes.last() == Some(&i) => steps.push(Step::fused(fusion)),
                Some(_) => {}
            }
        }
        let (mut made, mut readers) = (vec![None; graph.value_count()], vec![vec![]; graph.value_count()]);
        for (s, step) in steps.iter().enumerate() {
            step.outputs.iter().flatten().for_each(|v| made[v.0 as usize] = Some(s));
            step.reads(graph).for_each(|v| readers[v.0 as usize].push(s));
        }
        let outputs: HashSet<ValueId> = graph.outputs().iter().copied().collect();
        let mut free_after = vec![vec![]; steps.len()];
        for v in (0..graph.value_count() as u32).map(ValueId).filter(|v| !outputs.contains(v)) {
            let read: Option<usize> = readers[v.0 as usize].iter().copied().max();
            if let Some(last) = read.or(made[v.0 as usize]) {
                free_after[last].push(v);
            }
        }
        Plan { steps, free_after, made, readers }
    }

    /// With other operators in the steps of some nodes.
    pub(super) fn replacing(mut self, mut operators: HashMap<NodeIndex, Arc<dyn Operator>>) -> Plan {
        for step in &mut self.steps {
            if let Some(op) = operators.remove(&step.at()) {
                step.op = Some(op);
            }
        }
        self
    }

    /// Steps in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    pub(super) fn all(&self) -> Range<usize> {
        0..self.steps.len()
    }

    /// The step that computes a value.
    pub fn made(&self, v: ValueId) -> Option<usize> {
        self.made[v.0 as usize]
    }

    /// The steps that read a value, through bodies too.
    pub(super) fn readers(&self, v: ValueId) -> &[usize] {
        &self.readers[v.0 as usize]
    }

    /// Values that nothing reads behind step `s`.
    pub(super) fn free_after(&self, s: usize) -> &[ValueId] {
        &self.free_after[s]
    }
}
