//! The training loop's unit: one optimiser step on one batch, parameters kept as plain vectors.

use super::{
    Executor, Overrides,
    optimizer::{AdamW, clip},
};
use crate::error::{Error, Result};
use crate::graph::{Edit, Graph, ValueId};
use crate::tensor::{DType, Tensor, Value};
use candle_core::{Device, Tensor as Float};

/// Computes a loss from the graph outputs: its value and the gradients of outputs by index.
pub type Loss<'a> = dyn FnMut(&[Value]) -> Result<(f64, Vec<(usize, Float)>)> + 'a;

#[derive(Debug)]
struct Parameter {
    id: ValueId,
    shape: Vec<usize>,
    values: Vec<f32>,
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
    /// Largest joint norm of the gradients.
    pub clip_norm: f64,
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
            let shape = tensor.shape().to_vec();
            parameters.push(Parameter { id: *v, decay: shape.len() > 1, shape, values: tensor.to_vec()? });
        }
        let mut trainer = Trainer {
            executor: Executor::new(&graph)?,
            parameters,
            running,
            overrides: Overrides::new(),
            optimizer,
            clip_norm: f64::INFINITY,
        };
        trainer.publish()?;
        Ok(trainer)
    }

    fn publish(&mut self) -> Result<()> {
        for p in &self.parameters {
            let value = Float::from_slice(&p.values, p.shape.as_slice(), &Device::Cpu)?;
            self.overrides.insert(p.id, Value::Float(value));
        }
        Ok(())
    }

    /// One step on one batch. Returns the loss. A loss or gradient that is not finite is an error
    /// (kind `Invalid`, code `TRAIN-NAN`) before any parameter changes.
    pub fn step(&mut self, inputs: &[(String, Tensor)], rate: f64, loss: &mut Loss<'_>) -> Result<f64> {
        let wanted: Vec<ValueId> = self.parameters.iter().map(|p| p.id).collect();
        let tape = self.executor.forward(inputs, &self.overrides, &wanted)?;
        let (value, seeds) = loss(tape.outputs())?;
        let graph = self.executor.graph();
        let first_running = graph.outputs().len() - self.running.len();
        let running: Vec<Value> = tape.outputs()[first_running..].to_vec();
        let gradients = tape.backward(seeds)?;
        let mut flat = Vec::with_capacity(self.parameters.len());
        for p in &self.parameters {
            let grad = gradients.get(&p.id).ok_or_else(|| {
                Error::invalid("TRAIN-UNREACHED", "no gradient reaches the parameter")
                    .found(graph.value_name(p.id))
            })?;
            flat.push(grad.flatten_all()?.to_vec1::<f32>()?);
        }
        let norm = clip(&mut flat, self.clip_norm);
        if !value.is_finite() || !norm.is_finite() {
            return Err(Error::invalid("TRAIN-NAN", "loss or gradient is not finite")
                .found(format!("loss {value}, gradient norm {norm}"))
                .hint("lower the learning rate"));
        }
        let decay: Vec<bool> = self.parameters.iter().map(|p| p.decay).collect();
        let mut slices: Vec<&mut [f32]> =
            self.parameters.iter_mut().map(|p| p.values.as_mut_slice()).collect();
        let gradients: Vec<&[f32]> = flat.iter().map(Vec::as_slice).collect();
        self.optimizer.step(rate, &mut slices, &gradients, &decay);
        for ((constant, _), value) in self.running.iter().zip(running) {
            self.overrides.insert(*constant, value);
        }
        self.publish()?;
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
