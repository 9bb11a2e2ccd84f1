//! The reverse pass: a walk over the graph from the outputs to the values whose gradient is wanted.
//! Only values that a vector-Jacobian product reads are kept from the forward pass, or computed again from
//! such ones, segment by segment.

use super::{Env, Executor, Overrides, Plan, Segments, Step, Tap, Watch, shown};
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, ValueId};
use crate::ops::{Vjp, float};
use crate::tensor::{Tensor, Value};
use candle_core::{DType, Tensor as Float};
use std::collections::{HashMap, HashSet, hash_map::Entry};
use std::sync::Arc;

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

/// Where the reverse pass is.
pub struct Walk<'a> {
    /// The step that is behind.
    pub step: &'a Step,
    /// The node in whose place it runs.
    pub node: &'a Node,
    /// Whether it was evaluated again, and not walked back through.
    pub again: bool,
    tape: (&'a Executor, &'a [Option<Value>], &'a Overrides),
}

impl Walk<'_> {
    /// As [`Tape::kept_bytes`], now.
    pub fn kept_bytes(&self) -> u64 {
        let (executor, env, overrides) = self.tape;
        executor.kept_bytes(env, overrides)
    }
}

/// Sees every step of the reverse pass; an error stops it.
pub type WatchBack<'a> = dyn FnMut(Walk<'_>) -> Result<()> + 'a;

/// A forward pass with what its reverse needs.
#[derive(Debug)]
pub struct Tape<'e> {
    executor: &'e Executor,
    segments: Arc<Segments>,
    env: Env,
    overrides: Overrides,
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
        let plan = self.plan_towards(wanted, overrides);
        let segments = Arc::new(Segments::whole_of(self.graph(), plan, wanted));
        self.forward_in(&segments, inputs, overrides, &mut |_| Ok(()))
    }

    /// As [`Executor::forward`], and shows every value that a node computes to `tap`, whose error stops the
    /// run: each node runs by itself.
    pub fn forward_tapped(
        &self,
        inputs: &[(String, Tensor)],
        overrides: &Overrides,
        wanted: &[ValueId],
        tap: &mut Tap<'_>,
    ) -> Result<Tape<'_>> {
        let segments = Arc::new(Segments::whole_of(self.graph(), self.plain.clone(), wanted));
        self.forward_seen(&segments, inputs, overrides, &mut |step, env| shown(step, env, tap))
    }

    /// As [`Executor::forward`], and keeps only what `segments` say, which are of this graph. `watch` is
    /// asked behind each step, and its error stops the run; what the reverse pass evaluates again is not
    /// told to it again.
    pub fn forward_in(
        &self,
        segments: &Arc<Segments>,
        inputs: &[(String, Tensor)],
        overrides: &Overrides,
        watch: &mut Watch<'_>,
    ) -> Result<Tape<'_>> {
        self.forward_seen(segments, inputs, overrides, &mut |step, _| watch(step))
    }

    /// The steps that compute every wanted value and take no constant for granted that is wanted or
    /// overridden.
    pub(super) fn plan_towards(&self, wanted: &[ValueId], overrides: &Overrides) -> Arc<Plan> {
        let wanted: HashSet<ValueId> = wanted.iter().copied().collect();
        let changes = |v: ValueId| overrides.contains_key(&v) || wanted.contains(&v);
        self.plan_for(&|v| wanted.contains(&v), &changes)
    }

    fn forward_seen(
        &self,
        segments: &Arc<Segments>,
        inputs: &[(String, Tensor)],
        overrides: &Overrides,
        see: &mut dyn FnMut(&Step, &Env) -> Result<()>,
    ) -> Result<Tape<'_>> {
        let plan = segments.plan();
        let mut env = self.environment(inputs)?;
        self.run_steps(plan, plan.all(), &mut env, overrides, &|_| None, &mut |s, env| {
            see(&plan.steps()[s], env)?;
            let leave = plan.free_after(s).iter().filter(|v| !segments.stays[v.0 as usize]);
            leave.into_iter().try_for_each(|v| segments.leave(*v, env))
        })?;
        let outputs = self.collect(&env, overrides, &|_| None)?;
        let read = plan.steps().iter().flat_map(|step| step.inputs.iter().flatten());
        for v in read.chain(&segments.wanted) {
            let i = v.0 as usize;
            if env[i].is_none() && (segments.elements[i] || segments.shapes[i]) {
                env[i] = self.constant(*v, overrides, &|_| None)?;
            }
        }
        Ok(Tape { executor: self, segments: segments.clone(), env, overrides: overrides.clone(), outputs })
    }
}

impl Segments {
    /// Frees a value, but for its shape where that is read.
    fn leave(&self, v: ValueId, env: &mut [Option<Value>]) -> Result<()> {
        let slot = &mut env[v.0 as usize];
        *slot = match slot.take() {
            Some(value) if self.shapes[v.0 as usize] => Some(hollow(value)?),
            _ => None,
        };
        Ok(())
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

    /// Bytes that are held for the reverse pass, constants aside; what shares a buffer is counted once.
    pub fn kept_bytes(&self) -> u64 {
        self.executor.kept_bytes(&self.env, &self.overrides)
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
        self.backward_watched(seeds, sink, &mut |_| Ok(()))
    }

    /// As [`Tape::backward_into`]; `watch` is asked behind each step, those that are evaluated again too.
    pub fn backward_watched(
        mut self,
        seeds: Vec<(usize, Float)>,
        sink: &mut Sink<'_>,
        watch: &mut WatchBack<'_>,
    ) -> Result<()> {
        let graph = self.executor.graph();
        let segments = self.segments.clone();
        self.outputs.clear();
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
        for (s, step) in segments.plan().steps().iter().enumerate().rev() {
            self.evaluate_again(&segments.ending(s), watch)?;
            for v in step.outputs.iter().flatten().filter(|v| segments.wanted.contains(v)) {
                if let (Some(sum), Some(forward)) = (grads.get(v), &self.env[v.0 as usize]) {
                    sink(Gradient { value: *v, forward, grad: sum.grad.clone() })?;
                }
            }
            let out_grads: Vec<Option<Float>> =
                step.outputs.iter().map(|v| grads.remove(&(*v)?).map(|sum| sum.grad)).collect();
            let needs: Vec<bool> =
                step.inputs.iter().map(|v| v.is_some_and(|v| segments.carries[v.0 as usize])).collect();
            let reached = out_grads.iter().any(Option::is_some);
            if reached && captured(graph, graph.node(step.at())).any(|v| segments.carries[v.0 as usize]) {
                return Err(no_gradient(graph, step));
            }
            if reached && needs.contains(&true) {
                let at = |e: Error| e.node(graph.label(step.at())).field(step.name());
                for (v, grad) in step.inputs.iter().zip(self.step_back(step, out_grads, &needs)?) {
                    if let (Some(v), Some(grad)) = (v, grad) {
                        accumulate(&mut grads, *v, grad).map_err(at)?;
                    }
                }
            }
            for v in step.outputs.iter().flatten() {
                self.env[v.0 as usize] = None;
            }
            for v in &complete[s] {
                self.hand_over(*v, &mut grads, sink)?;
            }
            let node = graph.node(step.at());
            watch(Walk { step, node, again: false, tape: (self.executor, &self.env, &self.overrides) })?;
        }
        // What is left was seeded and is read by no node.
        let rest: Vec<ValueId> =
            graph.outputs().iter().copied().filter(|v| segments.wanted.contains(v)).collect();
        rest.into_iter().try_for_each(|v| self.hand_over(v, &mut grads, sink))
    }

    /// Evaluates steps of a segment from what stayed, and keeps what walking back through it reads.
    fn evaluate_again(&mut self, again: &[usize], watch: &mut WatchBack<'_>) -> Result<()> {
        let Tape { executor, segments, env, overrides, .. } = self;
        let graph = executor.graph();
        let plan = segments.plan();
        let mut last: HashMap<ValueId, usize> = HashMap::new();
        for s in again {
            let step = &plan.steps()[*s];
            for v in step.reads(graph) {
                last.entry(v).and_modify(|last| *last = *s);
            }
            for v in step.outputs.iter().flatten().filter(|v| !segments.stays[v.0 as usize]) {
                env[v.0 as usize] = None;
                last.insert(*v, *s);
            }
        }
        let mut free: HashMap<usize, Vec<ValueId>> = HashMap::new();
        for (v, s) in last.into_iter().filter(|(v, _)| !segments.elements[v.0 as usize]) {
            free.entry(s).or_default().push(v);
        }
        executor.run_steps(plan, again.iter().copied(), env, overrides, &|_| None, &mut |s, env| {
            free.remove(&s).into_iter().flatten().try_for_each(|v| segments.leave(v, env))?;
            let step = &plan.steps()[s];
            watch(Walk { step, node: graph.node(step.at()), again: true, tape: (executor, env, overrides) })
        })
    }

    /// Wanted values that no step computes, by the first step that reads them.
    fn complete_at(&self) -> Vec<Vec<ValueId>> {
        let steps = self.segments.plan().steps();
        let computed: HashSet<ValueId> =
            steps.iter().flat_map(|n| n.outputs.iter().flatten().copied()).collect();
        let mut seen = HashSet::new();
        let mut first =
            |v: &ValueId| self.segments.wanted.contains(v) && !computed.contains(v) && seen.insert(*v);
        steps.iter().map(|n| n.inputs.iter().flatten().copied().filter(|v| first(v)).collect()).collect()
    }

    fn hand_over(&self, v: ValueId, grads: &mut HashMap<ValueId, Sum>, sink: &mut Sink<'_>) -> Result<()> {
        match (grads.remove(&v), &self.env[v.0 as usize]) {
            (Some(sum), Some(forward)) => sink(Gradient { value: v, forward, grad: sum.grad }),
            _ => Ok(()),
        }
    }

    /// Gradients of the inputs of a step that `needs` asks for.
    fn step_back(
        &self,
        step: &Step,
        grads: Vec<Option<Float>>,
        needs: &[bool],
    ) -> Result<Vec<Option<Float>>> {
        let graph = self.executor.graph();
        let Some(op) = &step.op else { return Err(no_gradient(graph, step)) };
        if !op.differentiable() {
            return match step.of_shapes() {
                true => Ok(vec![None; needs.len()]),
                false => Err(no_gradient(graph, step)),
            };
        }
        let get = |v: &Option<ValueId>| v.and_then(|v| self.env[v.0 as usize].as_ref());
        let inputs: Vec<Option<&Value>> = step.inputs.iter().map(get).collect();
        let outputs: Vec<Option<&Value>> = step.outputs.iter().map(get).collect();
        let vjp = Vjp { inputs: &inputs, outputs: &outputs, grads: &grads, needs };
        let mut found = op.vjp(&vjp).map_err(|e| e.node(graph.label(step.at())).field(step.name()))?;
        for (grad, need) in found.iter_mut().zip(needs) {
            if !need {
                *grad = None;
            }
        }
        Ok(found)
    }
}

/// Values that the bodies of a node read from outside.
pub(super) fn captured<'g>(graph: &'g Graph, node: &'g Node) -> impl Iterator<Item = ValueId> + 'g {
    node.bodies.iter().flat_map(|(_, body)| body.captured()).filter_map(|name| graph.find(&name))
}

fn no_gradient(graph: &Graph, step: &Step) -> Error {
    let why = step.op.as_ref().and_then(|op| op.barrier()).map_or(String::new(), |why| format!(": {why}"));
    Error::unsupported(
        "NO-GRADIENT",
        format!("a gradient is needed through {}, which has none{why}", step.name()),
    )
    .node(graph.label(step.at()))
    .hint("freeze what lies before this node, or choose a criterion without gradients")
}

/// A gradient so far.
#[derive(Debug)]
struct Sum {
    grad: Float,
    /// Whether its elements were summed here, so that nothing else shares them. What a vector-Jacobian
    /// product returns may be what came in.
    own: bool,
}

fn accumulate(grads: &mut HashMap<ValueId, Sum>, v: ValueId, grad: Float) -> Result<()> {
    match grads.entry(v) {
        Entry::Vacant(entry) => {
            entry.insert(Sum { grad, own: false });
        }
        Entry::Occupied(mut entry) => {
            let sum = entry.get_mut();
            let alike = sum.grad.shape() == grad.shape() && sum.grad.dtype() == grad.dtype();
            match grad.dtype() {
                DType::F32 if sum.own && alike => add_to::<f32>(&sum.grad, &grad)?,
                DType::F64 if sum.own && alike => add_to::<f64>(&sum.grad, &grad)?,
                _ => *sum = Sum { grad: (&sum.grad + grad)?, own: true },
            }
        }
    }
    Ok(())
}

/// Adds to the elements of a sum where they lie.
fn add_to<T: float::Scalar>(sum: &Float, grad: &Float) -> Result<()> {
    let grad = float::elements::<T>(grad)?;
    float::change::<T, _>(sum, |sum| sum.iter_mut().zip(grad.iter()).for_each(|(s, g)| *s += *g))
}
