//! The reverse pass: a walk over the graph from the outputs to the values whose gradient is wanted.
//! Only values that a vector-Jacobian product reads are kept from the forward pass.

use super::{Executor, Overrides, Tap};
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, NodeIndex, ValueId};
use crate::ops::{Barrier, Vjp};
use crate::tensor::{Tensor, Value};
use candle_core::Tensor as Float;
use std::collections::{HashMap, HashSet};

/// Gradients by value.
pub type Gradients = HashMap<ValueId, Float>;

/// A finished gradient on its way out of the reverse pass.
#[derive(Debug)]
pub struct Gradient<'a> {
    /// The wanted value.
    pub value: ValueId,
    /// What it was in the forward pass.
    pub forward: &'a Value,
    /// Its gradient, shaped like the value.
    pub grad: Float,
}

/// Takes gradients as they become complete; an error stops the pass.
pub type Sink<'a> = dyn FnMut(Gradient<'_>) -> Result<()> + 'a;

/// A forward pass with what its reverse needs.
#[derive(Debug)]
pub struct Tape<'e> {
    executor: &'e Executor,
    env: Vec<Option<Value>>,
    /// Which values carry a gradient towards the wanted ones.
    carries: Vec<bool>,
    wanted: HashSet<ValueId>,
    outputs: Vec<Value>,
}

impl Executor {
    /// Runs forward and keeps what a reverse pass towards `wanted` reads. Wanted values may be constants,
    /// inputs, or computed inside the graph.
    pub fn forward(
        &self,
        inputs: &[(String, Tensor)],
        overrides: &Overrides,
        wanted: &[ValueId],
    ) -> Result<Tape<'_>> {
        self.forward_tapped(inputs, overrides, wanted, &mut |_, _| Ok(()))
    }

    /// As [`Executor::forward`], and shows every computed value to `tap`, whose error stops the run.
    pub fn forward_tapped(
        &self,
        inputs: &[(String, Tensor)],
        overrides: &Overrides,
        wanted: &[ValueId],
        tap: &mut Tap<'_>,
    ) -> Result<Tape<'_>> {
        let graph = self.graph();
        let mut carries = vec![false; graph.value_count()];
        let mut keep = vec![false; graph.value_count()];
        let mut shape_only = vec![false; graph.value_count()];
        for v in wanted {
            carries[v.0 as usize] = true;
            keep[v.0 as usize] = true;
        }
        for node in graph.nodes() {
            let inputs = node.inputs.iter().flatten().copied();
            let shapes = node.op.as_ref().is_some_and(|op| op.barrier() == Some(Barrier::Shapes));
            if shapes || !inputs.chain(captured(graph, node)).any(|v| carries[v.0 as usize]) {
                continue;
            }
            node.outputs.iter().flatten().for_each(|v| carries[v.0 as usize] = true);
            let keeps = node.op.as_ref().map(|op| op.keeps()).unwrap_or_default();
            let ins = if keeps.inputs { &mut keep } else { &mut shape_only };
            node.inputs.iter().flatten().for_each(|v| ins[v.0 as usize] = true);
            if keeps.outputs {
                node.outputs.iter().flatten().for_each(|v| keep[v.0 as usize] = true);
            }
        }
        let mut env = self.environment(inputs)?;
        self.run_nodes(&mut env, overrides, &|_| None, &mut |i, env| {
            for v in graph.node(i).outputs.iter().flatten() {
                if let Some(value) = &env[v.0 as usize] {
                    tap(*v, value)?;
                }
            }
            for v in &self.free_after[i] {
                let slot = &mut env[v.0 as usize];
                if keep[v.0 as usize] {
                    continue;
                }
                *slot = match slot.take() {
                    Some(value) if shape_only[v.0 as usize] => Some(hollow(value)?),
                    _ => None,
                };
            }
            Ok(())
        })?;
        let outputs = self.collect(&env, overrides, &|_| None)?;
        let read = graph.nodes().iter().flat_map(|node| node.inputs.iter().flatten());
        for v in read.chain(wanted) {
            let i = v.0 as usize;
            if env[i].is_none() && (keep[i] || shape_only[i]) {
                env[i] = self.constant(*v, overrides, &|_| None)?;
            }
        }
        Ok(Tape { executor: self, env, carries, wanted: wanted.iter().copied().collect(), outputs })
    }
}

/// The same type and shape without the elements.
fn hollow(value: Value) -> Result<Value> {
    match value {
        Value::Float(t) => {
            Ok(Value::Float(Float::zeros((), t.dtype(), t.device())?.broadcast_as(t.shape())?))
        }
        host => Ok(host),
    }
}

impl Tape<'_> {
    /// Graph outputs in order.
    pub fn outputs(&self) -> &[Value] {
        &self.outputs
    }

    /// Gradients of the wanted values: [`Tape::backward_into`] with everything kept.
    pub fn backward(self, seeds: Vec<(usize, Float)>) -> Result<Gradients> {
        let mut all = Gradients::new();
        self.backward_into(seeds, &mut |g| {
            all.insert(g.value, g.grad);
            Ok(())
        })?;
        Ok(all)
    }

    /// Walks back from gradients of graph outputs (`seeds`, by output index). The gradient of a wanted
    /// constant or input goes to `sink` once the first of its readers is behind, that of a computed
    /// value when its producer is reached; neither is held longer. An error of the sink stops the walk.
    /// A path that needs a gradient through an operator without one is an error that names the node.
    /// A wanted value that no path reaches is not handed over.
    pub fn backward_into(self, seeds: Vec<(usize, Float)>, sink: &mut Sink<'_>) -> Result<()> {
        self.backward_watched(seeds, sink, &mut |_| {})
    }

    /// As [`Tape::backward_into`]; `watch` runs behind each node.
    pub(super) fn backward_watched(
        mut self,
        seeds: Vec<(usize, Float)>,
        sink: &mut Sink<'_>,
        watch: &mut dyn FnMut(&Node),
    ) -> Result<()> {
        let graph = self.executor.graph();
        let complete = self.complete_at();
        let mut grads: HashMap<ValueId, Sum> = HashMap::new();
        for (output, grad) in seeds {
            let Some(v) = graph.outputs().get(output) else {
                return Err(Error::internal("SEED", "a seed is for an output that the graph lacks")
                    .found(output)
                    .limit(graph.outputs().len()));
            };
            accumulate(&mut grads, *v, grad)?;
        }
        for (i, node) in graph.nodes().iter().enumerate().rev() {
            for v in node.outputs.iter().flatten().filter(|v| self.wanted.contains(v)) {
                if let (Some(sum), Some(forward)) = (grads.get(v), &self.env[v.0 as usize]) {
                    sink(Gradient { value: *v, forward, grad: sum.grad.clone() })?;
                }
            }
            let out_grads: Vec<Option<Float>> =
                node.outputs.iter().map(|v| grads.remove(&(*v)?).map(|sum| sum.grad)).collect();
            let needs: Vec<bool> =
                node.inputs.iter().map(|v| v.is_some_and(|v| self.carries[v.0 as usize])).collect();
            let reached = out_grads.iter().any(Option::is_some);
            if reached && captured(graph, node).any(|v| self.carries[v.0 as usize]) {
                return Err(no_gradient(graph, i));
            }
            if reached && needs.contains(&true) {
                let at = |e: Error| e.node(graph.label(i)).field(node.operator_name());
                for (v, grad) in node.inputs.iter().zip(self.step_back(i, out_grads, &needs)?) {
                    if let (Some(v), Some(grad)) = (v, grad) {
                        accumulate(&mut grads, *v, grad).map_err(at)?;
                    }
                }
            }
            for v in node.outputs.iter().flatten() {
                self.env[v.0 as usize] = None;
            }
            for v in &complete[i] {
                self.hand_over(*v, &mut grads, sink)?;
            }
            watch(node);
        }
        // What is left was seeded and is read by no node.
        let rest: Vec<ValueId> =
            graph.outputs().iter().copied().filter(|v| self.wanted.contains(v)).collect();
        rest.into_iter().try_for_each(|v| self.hand_over(v, &mut grads, sink))
    }

    /// Wanted values that no node computes, by the first node that reads them.
    fn complete_at(&self) -> Vec<Vec<ValueId>> {
        let nodes = self.executor.graph().nodes();
        let computed: HashSet<ValueId> =
            nodes.iter().flat_map(|n| n.outputs.iter().flatten().copied()).collect();
        let mut seen = HashSet::new();
        let mut first = |v: &ValueId| self.wanted.contains(v) && !computed.contains(v) && seen.insert(*v);
        nodes.iter().map(|n| n.inputs.iter().flatten().copied().filter(|v| first(v)).collect()).collect()
    }

    fn hand_over(&self, v: ValueId, grads: &mut HashMap<ValueId, Sum>, sink: &mut Sink<'_>) -> Result<()> {
        match (grads.remove(&v), &self.env[v.0 as usize]) {
            (Some(sum), Some(forward)) => sink(Gradient { value: v, forward, grad: sum.grad }),
            _ => Ok(()),
        }
    }

    /// Gradients of the inputs of node `i` that `needs` asks for.
    fn step_back(
        &self,
        i: NodeIndex,
        grads: Vec<Option<Float>>,
        needs: &[bool],
    ) -> Result<Vec<Option<Float>>> {
        let graph = self.executor.graph();
        let node = graph.node(i);
        if !node.bodies.is_empty() {
            return Err(no_gradient(graph, i));
        }
        let op = graph.operator(i)?;
        if !op.differentiable() {
            return match op.barrier() {
                Some(Barrier::Shapes) => Ok(vec![None; needs.len()]),
                _ => Err(no_gradient(graph, i)),
            };
        }
        let get = |v: &Option<ValueId>| v.and_then(|v| self.env[v.0 as usize].as_ref());
        let inputs: Vec<Option<&Value>> = node.inputs.iter().map(get).collect();
        let outputs: Vec<Option<&Value>> = node.outputs.iter().map(get).collect();
        let vjp = Vjp { inputs: &inputs, outputs: &outputs, grads: &grads, needs };
        let mut found = op.vjp(&vjp).map_err(|e| e.node(graph.label(i)).field(node.operator_name()))?;
        for (grad, need) in found.iter_mut().zip(needs) {
            if !need {
                *grad = None;
            }
        }
        Ok(found)
    }
}

/// Values that the bodies of a node read from outside.
fn captured<'g>(graph: &'g Graph, node: &'g Node) -> impl Iterator<Item = ValueId> + 'g {
    node.bodies.iter().flat_map(|(_, body)| body.captured()).filter_map(|name| graph.find(&name))
}

fn no_gradient(graph: &Graph, i: NodeIndex) -> Error {
    let node = graph.node(i);
    let why = node.op.as_ref().and_then(|op| op.barrier()).map_or(String::new(), |why| format!(": {why}"));
    Error::unsupported(
        "NO-GRADIENT",
        format!("a gradient is needed through {}, which has none{why}", node.operator_name()),
    )
    .node(graph.label(i))
    .hint("freeze what lies before this node, or choose a criterion without gradients")
}

/// A gradient so far.
#[derive(Debug)]
struct Sum {
    grad: Float,
}

fn accumulate(grads: &mut HashMap<ValueId, Sum>, v: ValueId, grad: Float) -> Result<()> {
    let sum = match grads.remove(&v) {
        Some(before) => (before.grad + grad)?,
        None => grad,
    };
    grads.insert(v, Sum { grad: sum });
    Ok(())
}
