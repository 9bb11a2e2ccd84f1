//! The executor over `ops`: forward evaluation with buffers freed after their last use, taps, the
//! reverse pass over the graph, which keeps or computes again what it reads, losses, optimisers and the
//! training loop. Knows no pass and no task.

pub mod backward;
pub mod checkpointing;
pub mod loss;
pub mod optimizer;
pub mod profile;
pub mod segments;
pub mod sizes;
pub mod train;

pub use backward::{Gradient, Gradients, Sink, Step, Tape, Watch};
pub use checkpointing::{Checkpointing, Planner};
pub use segments::Segments;

use crate::error::{Error, Result};
use crate::graph::{Graph, Node, NodeIndex, Type, ValueId};
use crate::ops::Operator;
use crate::tensor::{Tensor, Value};
use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::OnceLock,
};

/// Values that replace constants for one run: parameters in training, variants of a weight.
pub type Overrides = HashMap<ValueId, Value>;

/// Sees every value as it is computed.
pub type Tap<'a> = dyn FnMut(ValueId, &Value) -> Result<()> + 'a;

/// A graph made ready to run. Constants, those that nodes hold included, are loaded when first needed
/// and kept.
#[derive(Debug)]
pub struct Executor {
    graph: Graph,
    constants: Vec<OnceLock<Value>>,
    /// Values to free after each node.
    free_after: Vec<Vec<ValueId>>,
    /// Executors of the bodies of each node.
    bodies: Vec<Vec<Executor>>,
}

impl Executor {
    /// Prepares a graph. Every node must be of a known operator, or If; the error names the first
    /// that is not.
    pub fn new(graph: &Graph) -> Result<Executor> {
        let mut bodies = Vec::with_capacity(graph.nodes().len());
        for (i, node) in graph.nodes().iter().enumerate() {
            if node.is("If") {
                bodies.push(node.bodies.iter().map(|(_, b)| Executor::new(b)).collect::<Result<_>>()?);
            } else if !node.bodies.is_empty() {
                return Err(Error::unsupported(
                    "OP-BODY",
                    format!("{} is not executed here", node.operator_name()),
                )
                .node(graph.label(i))
                .hint("measure this model on ONNX Runtime"));
            } else {
                graph.operator(i)?;
                bodies.push(vec![]);
            }
        }
        let uses = graph.uses();
        let outputs: HashSet<ValueId> = graph.outputs().iter().copied().collect();
        let mut free_after = vec![vec![]; graph.nodes().len()];
        for v in (0..graph.value_count() as u32).map(ValueId).filter(|v| !outputs.contains(v)) {
            let produced = uses.producer(v).map(|(n, _)| n);
            if let Some(last) = uses.consumers(v).iter().map(|(n, _)| *n).max().or(produced) {
                free_after[last].push(v);
            }
        }
        let constants = (0..graph.value_count()).map(|_| OnceLock::new()).collect();
        Ok(Executor { graph: graph.clone(), constants, free_after, bodies })
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Runs on named inputs and returns the graph outputs in order.
    pub fn run(&self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>> {
        let outputs = self.run_tapped(inputs, &Overrides::new(), &mut |_, _| Ok(()))?;
        self.graph
            .outputs()
            .iter()
            .zip(outputs)
            .map(|(v, value)| Ok((self.graph.value_name(*v).to_string(), value.to_tensor()?)))
            .collect()
    }

    /// Runs and shows every computed value to `tap`; an error of the tap stops the run.
    pub fn run_tapped(
        &self,
        inputs: &[(String, Tensor)],
        overrides: &Overrides,
        tap: &mut Tap<'_>,
    ) -> Result<Vec<Value>> {
        let mut env = self.environment(inputs)?;
        self.run_nodes(&mut env, self.all(), overrides, &|_| None, &mut |i, env| {
            for v in self.graph.node(i).outputs.iter().flatten() {
                if let Some(value) = &env[v.0 as usize] {
                    tap(*v, value)?;
                }
            }
            for v in &self.free_after[i] {
                env[v.0 as usize] = None;
            }
            Ok(())
        })?;
        self.collect(&env, overrides, &|_| None)
    }

    /// The inputs checked against their declarations, each at its place.
    fn environment(&self, inputs: &[(String, Tensor)]) -> Result<Vec<Option<Value>>> {
        let mut env: Vec<Option<Value>> = vec![None; self.graph.value_count()];
        for (name, tensor) in inputs {
            let known = self.graph.find(name).filter(|v| self.graph.inputs().contains(v));
            let Some(v) = known else {
                let names: Vec<&str> =
                    self.graph.inputs().iter().map(|v| self.graph.value_name(*v)).collect();
                return Err(Error::invalid("INPUT-NAME", "the model has no such input")
                    .found(name)
                    .limit(names.join(", ")));
            };
            if let Some(Type::Tensor { dtype, shape }) = &self.graph.value(v).ty {
                let fits = shape.as_ref().is_none_or(|s| {
                    s.len() == tensor.shape().len()
                        && s.iter().zip(tensor.shape()).all(|(d, n)| d.known().is_none_or(|k| k == *n as i64))
                });
                if tensor.dtype() != *dtype || !fits {
                    return Err(Error::invalid("INPUT-SHAPE", "input does not fit its declaration")
                        .field(format!("input \"{name}\""))
                        .found(format!("{}{:?}", tensor.dtype(), tensor.shape()))
                        .limit(format!("{dtype}{shape:?}")));
                }
            }
            env[v.0 as usize] = Some(Value::load(tensor)?);
        }
        for v in self.graph.required_inputs() {
            if env[v.0 as usize].is_none() {
                return Err(
                    Error::invalid("INPUT-MISSING", "an input is missing").found(self.graph.value_name(v))
                );
            }
        }
        Ok(env)
    }

    /// A value that is not computed here: an override, a constant, or captured from outside.
    fn constant<'a>(
        &'a self,
        v: ValueId,
        overrides: &'a Overrides,
        outer: &dyn Fn(&str) -> Option<Value>,
    ) -> Result<Option<Value>> {
        if let Some(value) = overrides.get(&v) {
            return Ok(Some(value.clone()));
        }
        let cell = &self.constants[v.0 as usize];
        if let Some(value) = cell.get() {
            return Ok(Some(value.clone()));
        }
        match self.graph.initializer(v) {
            Some(tensor) => {
                let value = Value::load(tensor)
                    .map_err(|e| e.field(format!("initializer \"{}\"", self.graph.value_name(v))))?;
                Ok(Some(cell.get_or_init(|| value).clone()))
            }
            None => Ok(outer(self.graph.value_name(v))),
        }
    }

    fn collect(
        &self,
        env: &[Option<Value>],
        overrides: &Overrides,
        outer: &dyn Fn(&str) -> Option<Value>,
    ) -> Result<Vec<Value>> {
        let missing = |v: ValueId| {
            Error::internal("OUTPUT", format!("output {} was not computed", self.graph.value_name(v)))
        };
        self.graph
            .outputs()
            .iter()
            .map(|v| match &env[v.0 as usize] {
                Some(value) => Ok(value.clone()),
                None => self.constant(*v, overrides, outer)?.ok_or_else(|| missing(*v)),
            })
            .collect()
    }

    fn all(&self) -> Range<NodeIndex> {
        0..self.graph.nodes().len()
    }

    /// Evaluates nodes, which ascend; `after` runs behind each and may free values.
    fn run_nodes(
        &self,
        env: &mut Vec<Option<Value>>,
        nodes: impl IntoIterator<Item = NodeIndex>,
        overrides: &Overrides,
        outer: &dyn Fn(&str) -> Option<Value>,
        after: &mut dyn FnMut(NodeIndex, &mut Vec<Option<Value>>) -> Result<()>,
    ) -> Result<()> {
        for i in nodes {
            let node = self.graph.node(i);
            let at = |e: Error| e.node(self.graph.label(i)).field(node.operator_name());
            let mut owned: Vec<Option<Value>> = Vec::with_capacity(node.inputs.len());
            for v in &node.inputs {
                owned.push(match v {
                    None => None,
                    Some(v) => match &env[v.0 as usize] {
                        Some(value) => Some(value.clone()),
                        None => self.constant(*v, overrides, outer)?,
                    },
                });
            }
            for (slot, (v, value)) in node.inputs.iter().zip(&owned).enumerate() {
                if v.is_some() && value.is_none() {
                    return Err(at(Error::internal(
                        "VALUE",
                        format!("input {slot} was freed or never computed"),
                    )));
                }
            }
            let inputs: Vec<Option<&Value>> = owned.iter().map(Option::as_ref).collect();
            let outputs = match &node.op {
                Some(op) if node.inputs.is_empty() && op.deterministic() => {
                    self.held(node, &**op).map_err(at)?
                }
                Some(op) if node.bodies.is_empty() => op.eval(&inputs).map_err(at)?,
                _ => self.run_if(i, &inputs, env, overrides, outer).map_err(at)?,
            };
            for (v, value) in node.outputs.iter().zip(outputs) {
                if let Some(v) = v {
                    env[v.0 as usize] = Some(value);
                }
            }
            after(i, env)?;
        }
        Ok(())
    }

    /// Outputs of a node that reads nothing, computed once.
    fn held(&self, node: &Node, op: &dyn Operator) -> Result<Vec<Value>> {
        let cell = |v: &Option<ValueId>| v.and_then(|v| self.constants[v.0 as usize].get().cloned());
        let kept: Option<Vec<Value>> = node.outputs.iter().map(cell).collect();
        if let Some(kept) = kept {
            return Ok(kept);
        }
        let computed = op.eval(&[])?;
        for (v, value) in node.outputs.iter().zip(&computed) {
            if let Some(v) = v {
                self.constants[v.0 as usize].get_or_init(|| value.clone());
            }
        }
        Ok(computed)
    }

    fn run_if(
        &self,
        i: NodeIndex,
        inputs: &[Option<&Value>],
        env: &[Option<Value>],
        overrides: &Overrides,
        outer: &dyn Fn(&str) -> Option<Value>,
    ) -> Result<Vec<Value>> {
        let condition = crate::ops::input(inputs, 0)?.ints()?.first().copied().unwrap_or(0) != 0;
        let wanted = if condition { "then_branch" } else { "else_branch" };
        let at = self.graph.node(i).bodies.iter().position(|(name, _)| name == wanted);
        let body = at
            .and_then(|b| self.bodies[i].get(b))
            .ok_or_else(|| Error::invalid("OP-BODY", format!("If has no {wanted}")))?;
        let lookup = |name: &str| -> Option<Value> {
            let v = self.graph.find(name)?;
            match &env[v.0 as usize] {
                Some(value) => Some(value.clone()),
                None => self.constant(v, overrides, outer).ok().flatten().or_else(|| outer(name)),
            }
        };
        let mut inner: Vec<Option<Value>> = vec![None; body.graph.value_count()];
        let none = Overrides::new();
        body.run_nodes(&mut inner, body.all(), &none, &lookup, &mut |_, _| Ok(()))?;
        body.collect(&inner, &none, &lookup)
    }
}

#[cfg(test)]
mod tests;
