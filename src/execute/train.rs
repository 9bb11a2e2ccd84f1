//! The training loop's unit: one optimiser step on one batch, parameters changed where they lie.

mod state;

use super::{
    Executor, Gradient, Gradients, Overrides, Planner,
    optimizer::{AdamW, clip},
    profile::{Clock, Profile},
};
use crate::error::{Error, Result};
use crate::graph::{Edit, Graph, ValueId};
use crate::kernels::adam;
use crate::ops::float;
use crate::tensor::{DType, Tensor, Value};
use candle_core::{Device, Tensor as Float};

/// Computes a loss from the graph outputs: its value and the gradients of outputs by index.
pub type Loss<'a> = dyn FnMut(&[Value]) -> Result<(f64, Vec<(usize, Float)>)> + 'a;

#[derive(Debug)]
struct Parameter {
    id: ValueId,
    /// Shared with the overrides and changed in place between steps.
    value: Float,
    decay: bool,
}

/// Trains the f32 constants of a graph. Batch-normalisation nodes in training mode update their
/// running statistics.
#[derive(Debug)]
pub struct Trainer {
    executor: Executor,
    parameters: Vec<Parameter>,
    /// (constant, output that holds its next value).
    running: Vec<(ValueId, ValueId)>,
    overrides: Overrides,
    optimizer: AdamW,
    profile: Profile,
    /// The best values so far, where some were marked.
    best: Option<state::Marked>,
    /// Largest joint norm of the gradients.
    pub clip_norm: f64,
    /// What a step keeps of its forward pass.
    pub planner: Planner,
}

impl Trainer {
    /// Trains `wanted` constants of `graph`. Those of rank 1 do not decay.
    pub fn new(graph: &Graph, wanted: &[ValueId], optimizer: AdamW) -> Result<Trainer> {
        let mut edit = graph.edit();
        let mut running = vec![];
        for node in graph.nodes().iter().filter(|n| n.is("BatchNormalization") && n.outputs.len() >= 3) {
            for (input, output) in [(3, 1), (4, 2)] {
                if let (Some(Some(i)), Some(Some(o))) = (node.inputs.get(input), node.outputs.get(output)) {
                    running.push((*i, *o));
                    edit.add_output(*o);
                }
            }
        }
        let graph = edit.commit()?;
        let mut parameters = Vec::with_capacity(wanted.len());
        for v in wanted {
            let tensor = graph.initializer(*v).filter(|t| t.dtype() == DType::F32).ok_or_else(|| {
                Error::invalid("TRAIN-PARAMETER", "only f32 constants can be trained")
                    .found(graph.value_name(*v))
            })?;
            let value = Float::from_vec(tensor.to_vec::<f32>()?, tensor.shape(), &Device::Cpu)?;
            parameters.push(Parameter { id: *v, decay: value.rank() > 1, value });
        }
        let overrides = parameters.iter().map(|p| (p.id, Value::Float(p.value.clone()))).collect();
        Ok(Trainer {
            executor: Executor::new(&graph)?,
            parameters,
            running,
            overrides,
            optimizer,
            profile: Profile::default(),
            best: None,
            clip_norm: f64::INFINITY,
            planner: Planner::default(),
        })
    }

    /// Where the last step spent its time.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// One step on one batch. Returns the loss. A loss or gradient that is not finite is an error
    /// (kind `Invalid`, code `TRAIN-NAN`) before any parameter changes. `loss` must not keep outputs.
    pub fn step(&mut self, inputs: &[(String, Tensor)], rate: f64, loss: &mut Loss<'_>) -> Result<f64> {
        self.step_watched(inputs, rate, loss, &|| Ok(()))
    }

    /// As [`Trainer::step`]; an error of `watch`, which is asked at every step of both passes, ends
    /// the step before any parameter changes.
    pub fn step_watched(
        &mut self,
        inputs: &[(String, Tensor)],
        rate: f64,
        loss: &mut Loss<'_>,
        watch: &dyn Fn() -> Result<()>,
    ) -> Result<f64> {
        let graph = self.executor.graph();
        let mut profile = Profile::default();
        let wanted: Vec<ValueId> = self.parameters.iter().map(|p| p.id).collect();
        let segments = self.planner.segments(&self.executor, inputs, &self.overrides, &wanted, watch)?;
        let mut clock = Clock::start();
        let tape = self.executor.forward_in(&segments, inputs, &self.overrides, &mut |step| {
            clock.lap(profile.forward_operators.entry(step.title()).or_default());
            watch()
        })?;
        clock.total(&mut profile.forward);
        let (value, seeds) = loss(tape.outputs())?;
        clock.total(&mut profile.loss);
        let first_running = graph.outputs().len() - self.running.len();
        let running: Vec<Value> = tape.outputs()[first_running..].to_vec();
        let mut gradients = Gradients::new();
        let mut take = |g: Gradient<'_>| {
            gradients.insert(g.value, g.grad);
            Ok(())
        };
        tape.backward_watched(seeds, &mut take, &mut |walk| {
            clock.lap(match walk.again {
                true => &mut profile.again,
                false => profile.backward_operators.entry(walk.step.title()).or_default(),
            });
            watch()
        })?;
        clock.total(&mut profile.backward);
        let mut squares = 0.0;
        for p in &self.parameters {
            let grad = gradients.get(&p.id).ok_or_else(|| {
                Error::invalid("TRAIN-UNREACHED", "no gradient reaches the parameter")
                    .found(graph.value_name(p.id))
            })?;
            squares += adam::squares(&float::elements::<f32>(grad)?);
        }
        let norm = squares.sqrt();
        if !value.is_finite() || !norm.is_finite() {
            return Err(Error::invalid("TRAIN-NAN", "loss or gradient is not finite")
                .found(format!("loss {value}, gradient norm {norm}"))
                .hint("lower the learning rate"));
        }
        let mut update = self.optimizer.update(rate, clip(norm, self.clip_norm));
        for (i, p) in self.parameters.iter().enumerate() {
            if let Some(grad) = gradients.remove(&p.id) {
                let grad = float::elements::<f32>(&grad)?;
                float::change(&p.value, |w| update.apply(i, w, &grad, p.decay))?;
            }
        }
        for ((constant, _), value) in self.running.iter().zip(running) {
            self.overrides.insert(*constant, value);
        }
        clock.total(&mut profile.optimizer);
        self.profile = profile;
        Ok(value)
    }

    /// The graph with the trained values in place (running statistics too), outputs as they were.
    pub fn graph(&self, original: &Graph) -> Result<Graph> {
        let mut edit: Edit = original.edit();
        for (v, value) in &self.overrides {
            edit.set_initializer(*v, value.to_tensor()?);
        }
        edit.commit()
    }
}
