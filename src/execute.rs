//! The executor over `ops`: a plan of steps, forward evaluation with buffers freed after their last use,
//! taps, the reverse pass over the graph, which keeps or computes again what it reads, losses, optimisers and
//! the training loop. Knows no pass and no task.

pub mod backward;
pub mod checkpointing;
pub(crate) mod fuse;
pub mod loss;
pub mod optimizer;
pub mod plan;
pub mod profile;
pub mod segments;
pub mod sizes;
pub mod train;

pub use backward::{Gradient, Gradients, Sink, Tape, Walk, WatchBack};
pub use checkpointing::{Checkpointing, Planner};
pub use plan::{Plan, Step};
pub use segments::Segments;

use crate::error::{Error, Result};
use crate::graph::{Graph, NodeIndex, Type, ValueId};
use crate::ops::Operator;
use crate::tensor::{Tensor, Value};
use fuse::Fusion;
use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

/// Values that replace constants for one run: parameters in training, variants of a weight.
pub type Overrides = HashMap<ValueId, Value>;

/// Sees values as they are computed.
pub type Tap<'a> = dyn FnMut(ValueId, &Value) -> Result<()> + 'a;

/// Which values a run must show to its tap. Steps that would skip one of them run node by node.
#[derive(Clone, Copy)]
pub enum Seen<'a> {
    /// Every value that a node computes.
    All,
    /// Those for which this holds, where nodes compute them. What else the steps compute is shown too.
    Of(&'a dyn Fn(ValueId) -> bool),
}

/// Told of each step once it has run.
pub type Watch<'a> = dyn FnMut(&Step) -> Result<()> + 'a;

/// Values by number, those that are computed and not yet freed.
type Env = Vec<Option<Value>>;

/// A graph made ready to run. Constants, those that nodes hold included, are loaded when first needed
/// and kept.
#[derive(Debug)]
pub struct Executor {
    graph: Graph,
    constants: Vec<OnceLock<Value>>,
    fusions: Vec<Arc<Fusion>>,
    /// With all fusions, and with none.
    plan: Arc<Plan>,
    plain: Arc<Plan>,
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
        let fusions = fuse::find(graph);
        let plain = Arc::new(Plan::new(graph, []));
        let plan = match fusions.is_empty() {
            true => Arc::clone(&plain),
            false => Arc::new(Plan::new(graph, fusions.iter().map(|f| &**f))),
        };
        let constants = (0..graph.value_count()).map(|_| OnceLock::new()).collect();
        Ok(Executor { graph: graph.clone(), constants, fusions, plan, plain, bodies })
    }

    /// The same, with other operators in the place of some nodes', which then run one by one. They must take
    /// and give what those do.
    pub fn replacing(mut self, operators: HashMap<NodeIndex, Arc<dyn Operator>>) -> Executor {
        self.fusions.clear();
        self.plain = Arc::new(Plan::new(&self.graph, []).replacing(operators));
        self.plan = Arc::clone(&self.plain);
        self
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The steps in which it runs where no inner value is asked for.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The steps that compute every value for which `seen` holds, and take no constant for granted for
    /// which `changes` does.
    fn plan_for(&self, seen: &dyn Fn(ValueId) -> bool, changes: &dyn Fn(ValueId) -> bool) -> Arc<Plan> {
        let fits = |f: &&Fusion| !f.inner.iter().any(|v| seen(*v)) && !f.fixed.iter().any(|v| changes(*v));
        let fusions: Vec<&Fusion> = self.fusions.iter().map(|f| &**f).filter(fits).collect();
        match fusions.len() {
            n if n == self.fusions.len() => Arc::clone(&self.plan),
            0 => Arc::clone(&self.plain),
            _ => Arc::new(Plan::new(&self.graph, fusions)),
        }
    }

    /// Runs on named inputs and returns the graph outputs in order.
    pub fn run(&self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>> {
        let outputs = self.run_watched(inputs, &Overrides::new(), &mut |_| Ok(()))?;
        self.graph
            .outputs()
            .iter()
            .zip(outputs)
            .map(|(v, value)| Ok((self.graph.value_name(*v).to_string(), value.to_tensor()?)))
            .collect()
    }

    /// Runs and calls `watch` behind each step; its error stops the run. Returns the graph outputs in
    /// order.
    pub fn run_watched(
        &self,
        inputs: &[(String, Tensor)],
        overrides: &Overrides,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<Value>> {
        let plan = self.plan_for(&|_| false, &|v| overrides.contains_key(&v));
        self.run_plan(&plan, inputs, overrides, &mut |step, _| watch(step))
    }

    /// Runs and shows values to `tap`, those of `seen` at least; an error of the tap stops the run.
    pub fn run_tapped(
        &self,
        inputs: &[(String, Tensor)],
        overrides: &Overrides,
        seen: Seen<'_>,
        tap: &mut Tap<'_>,
    ) -> Result<Vec<Value>> {
        let plan = match seen {
            Seen::All => Arc::clone(&self.plain),
            Seen::Of(seen) => self.plan_for(seen, &|v| overrides.contains_key(&v)),
        };
        self.run_plan(&plan, inputs, overrides, &mut |step, env| shown(step, env, tap))
    }

    fn run_plan(
        &self,
        plan: &Plan,
        inputs: &[(String, Tensor)],
        overrides: &Overrides,
        see: &mut dyn FnMut(&Step, &Env) -> Result<()>,
    ) -> Result<Vec<Value>> {
        let mut env = self.environment(inputs)?;
        self.run_steps(plan, plan.all(), &mut env, overrides, &|_| None, &mut |s, env| {
            see(&plan.steps()[s], env)?;
            for v in plan.free_after(s) {
                env[v.0 as usize] = None;
            }
            Ok(())
        })?;
        self.collect(&env, overrides, &|_| None)
    }

    /// The inputs checked against their declarations, each at its place.
    fn environment(&self, inputs: &[(String, Tensor)]) -> Result<Env> {
        let mut env: Env = vec![None; self.graph.value_count()];
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

    /// Evaluates these steps of a plan, which ascend; `after` runs behind each and may free values.
    fn run_steps(
        &self,
        plan: &Plan,
        steps: impl IntoIterator<Item = usize>,
        env: &mut Env,
        overrides: &Overrides,
        outer: &dyn Fn(&str) -> Option<Value>,
        after: &mut dyn FnMut(usize, &mut Env) -> Result<()>,
    ) -> Result<()> {
        for s in steps {
            let step = &plan.steps()[s];
            let at = |e: Error| e.node(self.graph.label(step.at())).field(step.name());
            let mut owned: Vec<Option<Value>> = Vec::with_capacity(step.inputs.len());
            for v in &step.inputs {
                owned.push(match v {
                    None => None,
                    Some(v) => match &env[v.0 as usize] {
                        Some(value) => Some(value.clone()),
                        None => self.constant(*v, overrides, outer)?,
                    },
                });
            }
            for (slot, (v, value)) in step.inputs.iter().zip(&owned).enumerate() {
                if v.is_some() && value.is_none() {
                    return Err(at(Error::internal(
                        "VALUE",
                        format!("input {slot} was freed or never computed"),
                    )));
                }
            }
            let inputs: Vec<Option<&Value>> = owned.iter().map(Option::as_ref).collect();
            let outputs = match &step.op {
                Some(op) if step.inputs.is_empty() && op.deterministic() => {
                    self.held(&step.outputs, &**op).map_err(at)?
                }
                Some(op) => op.eval(&inputs).map_err(at)?,
                None => self.run_if(step.at(), &inputs, env, overrides, outer).map_err(at)?,
            };
            for (v, value) in step.outputs.iter().zip(outputs) {
                if let Some(v) = v {
                    env[v.0 as usize] = Some(value);
                }
            }
            after(s, env)?;
        }
        Ok(())
    }

    /// Outputs of a node that reads nothing, computed once.
    fn held(&self, outputs: &[Option<ValueId>], op: &dyn Operator) -> Result<Vec<Value>> {
        let cell = |v: &Option<ValueId>| v.and_then(|v| self.constants[v.0 as usize].get().cloned());
        let kept: Option<Vec<Value>> = outputs.iter().map(cell).collect();
        if let Some(kept) = kept {
            return Ok(kept);
        }
        let computed = op.eval(&[])?;
        for (v, value) in outputs.iter().zip(&computed) {
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
        let mut inner: Env = vec![None; body.graph.value_count()];
        let none = Overrides::new();
        body.run_steps(&body.plan, body.plan.all(), &mut inner, &none, &lookup, &mut |_, _| Ok(()))?;
        body.collect(&inner, &none, &lookup)
    }
}

/// Shows what a step computed to a tap.
fn shown(step: &Step, env: &Env, tap: &mut Tap<'_>) -> Result<()> {
    for v in step.outputs.iter().flatten() {
        if let Some(value) = &env[v.0 as usize] {
            tap(*v, value)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
