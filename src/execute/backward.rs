//! The reverse pass: a walk over the graph from the outputs to the values whose gradient is wanted.
//! Only values that a vector-Jacobian product reads are kept from the forward pass.

use super::{Executor, Overrides};
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, NodeIndex, ValueId};
use crate::ops::Vjp;
use crate::tensor::{Tensor, Value};
use candle_core::Tensor as Float;
use std::collections::{HashMap, HashSet};

/// Gradients by value.
pub type Gradients = HashMap<ValueId, Float>;

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
    /// Runs forward and keeps what a reverse pass towards `wanted` (constants or inputs) reads.
    pub fn forward(
        &self,
        inputs: &[(String, Tensor)],
        overrides: &Overrides,
        wanted: &[ValueId],
    ) -> Result<Tape<'_>> {
        let graph = self.graph();
        let mut carries = vec![false; graph.value_count()];
        for v in wanted {
            carries[v.0 as usize] = true;
        }
        let mut keep = vec![false; graph.value_count()];
        let mut shape_only = vec![false; graph.value_count()];
        for node in graph.nodes() {
            let inputs = node.inputs.iter().flatten().copied();
            if !inputs.chain(captured(graph, node)).any(|v| carries[v.0 as usize]) {
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
        for node in graph.nodes() {
            for v in node.inputs.iter().flatten().filter(|v| keep[v.0 as usize] || shape_only[v.0 as usize]) {
                if env[v.0 as usize].is_none() {
                    env[v.0 as usize] = self.constant(*v, overrides, &|_| None)?;
                }
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

    /// Gradients of the wanted values, from gradients of graph outputs (`seeds`, by output index).
    /// A path that needs a gradient through an operator without one is an error that names the node.
    /// A wanted value that no path reaches gets no entry.
    pub fn backward(mut self, seeds: Vec<(usize, Float)>) -> Result<Gradients> {
        let graph = self.executor.graph();
        let mut grads: Gradients = HashMap::new();
        for (output, grad) in seeds {
            accumulate(&mut grads, graph.outputs()[output], grad)?;
        }
        for (i, node) in graph.nodes().iter().enumerate().rev() {
            let needs: Vec<bool> =
                node.inputs.iter().map(|v| v.is_some_and(|v| self.carries[v.0 as usize])).collect();
            let reached = node.outputs.iter().flatten().any(|v| grads.contains_key(v));
            if reached && captured(graph, node).any(|v| self.carries[v.0 as usize]) {
                return Err(no_gradient(graph, i));
            }
            if reached && needs.contains(&true) {
                if !node.bodies.is_empty() {
                    return Err(no_gradient(graph, i));
                }
                let op = graph.operator(i)?;
                let at = |e: Error| e.node(graph.label(i)).field(node.operator_name());
                if !op.differentiable() {
                    return Err(no_gradient(graph, i));
                }
                let get = |v: &Option<ValueId>| v.and_then(|v| self.env[v.0 as usize].as_ref());
                let inputs: Vec<Option<&Value>> = node.inputs.iter().map(get).collect();
                let outputs: Vec<Option<&Value>> = node.outputs.iter().map(get).collect();
                let out_grads: Vec<Option<Float>> =
                    node.outputs.iter().map(|v| v.and_then(|v| grads.get(&v).cloned())).collect();
                let vjp = Vjp { inputs: &inputs, outputs: &outputs, grads: &out_grads, needs: &needs };
                let found = op.vjp(&vjp).map_err(at)?;
                for ((v, need), grad) in node.inputs.iter().zip(&needs).zip(found) {
                    if let (Some(v), true, Some(grad)) = (v, *need, grad) {
                        accumulate(&mut grads, *v, grad).map_err(at)?;
                    }
                }
            }
            for v in node.outputs.iter().flatten() {
                self.env[v.0 as usize] = None;
                if !self.wanted.contains(v) {
                    grads.remove(v);
                }
            }
        }
        grads.retain(|v, _| self.wanted.contains(v));
        Ok(grads)
    }
}

/// Values that the bodies of a node read from outside.
fn captured<'g>(graph: &'g Graph, node: &'g Node) -> impl Iterator<Item = ValueId> + 'g {
    node.bodies.iter().flat_map(|(_, body)| body.captured()).filter_map(|name| graph.find(&name))
}

fn no_gradient(graph: &Graph, i: NodeIndex) -> Error {
    Error::unsupported(
        "NO-GRADIENT",
        format!("a gradient is needed through {}, which has none", graph.node(i).operator_name()),
    )
    .node(graph.label(i))
    .hint("freeze what lies before this node, or choose a criterion without gradients")
}

fn accumulate(grads: &mut Gradients, v: ValueId, grad: Float) -> Result<()> {
    let sum = match grads.remove(&v) {
        Some(before) => (before + grad)?,
        None => grad,
    };
    grads.insert(v, sum);
    Ok(())
}
