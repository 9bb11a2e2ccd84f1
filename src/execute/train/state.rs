//! What decides about the next step of a trainer: parameters, moments, running statistics, and the best
//! parameters so far. Kept in memory, in files, and brought back bit by bit.

use super::Trainer;
use crate::error::{Error, Result};
use crate::graph::{Edit, Graph};
use crate::ops::float;
use crate::save;
use crate::tensor::{Tensor, Value};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

const STATE: &str = "trainer.json";
const NUMBERS: &str = "trainer.bin";
const SCHEMA_VERSION: u32 = 1;

/// What [`NUMBERS`] holds, as f32 in little-endian order: for each parameter its values and, once there
/// was a step, both moments; then the running statistics; then the best of both where they were marked.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct State {
    schema_version: u32,
    steps: i32,
    /// Name and elements of each parameter.
    parameters: Vec<(String, usize)>,
    running: Vec<(String, usize)>,
    best: bool,
}

/// Values of parameters and running statistics.
pub(super) type Marked = (Vec<Vec<f32>>, Vec<Tensor>);

impl Trainer {
    /// Trained parameters.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.parameters.len()
    }

    fn values(&self) -> Result<Vec<Vec<f32>>> {
        self.parameters.iter().map(|p| Ok(float::elements::<f32>(&p.value)?.to_vec())).collect()
    }

    fn statistics(&self) -> Result<Vec<Tensor>> {
        let of = |constant: &crate::graph::ValueId| match self.overrides.get(constant) {
            Some(value) => value.to_tensor(),
            None => self
                .executor
                .graph()
                .initializer(*constant)
                .cloned()
                .ok_or_else(|| Error::internal("TRAIN-RUNNING", "a running statistic is no constant")),
        };
        self.running.iter().map(|(constant, _)| of(constant)).collect()
    }

    /// Marks the parameters as the best so far.
    pub fn mark(&mut self) -> Result<()> {
        self.best = Some((self.values()?, self.statistics()?));
        Ok(())
    }

    /// `original` with the best parameters in place, or as it is where none were marked.
    pub fn best(&self, original: &Graph) -> Result<Graph> {
        let Some((values, statistics)) = &self.best else { return Ok(original.clone()) };
        let mut edit: Edit = original.edit();
        for (p, values) in self.parameters.iter().zip(values) {
            edit.set_initializer(p.id, Tensor::from_vec(p.value.dims().to_vec(), values.clone())?);
        }
        for ((constant, _), tensor) in self.running.iter().zip(statistics) {
            edit.set_initializer(*constant, tensor.clone());
        }
        edit.commit()
    }

    /// Outputs of the model as it is now.
    pub fn outputs(&self, inputs: &[(String, Tensor)]) -> Result<Vec<Value>> {
        let mut outputs = self.executor.run_watched(inputs, &self.overrides, &mut |_| Ok(()))?;
        outputs.truncate(outputs.len() - self.running.len());
        Ok(outputs)
    }

    /// Bytes that [`Trainer::save`] writes.
    pub fn state_bytes(&self) -> u64 {
        let all: usize = self.parameters.iter().map(|p| p.value.elem_count()).sum();
        let best = usize::from(self.best.is_some());
        4 * ((3 + best) * all) as u64
    }

    fn state(&self) -> Result<State> {
        let graph = self.executor.graph();
        let name = |v| graph.value_name(v).to_string();
        Ok(State {
            schema_version: SCHEMA_VERSION,
            steps: self.optimizer.steps(),
            parameters: self.parameters.iter().map(|p| (name(p.id), p.value.elem_count())).collect(),
            running: self
                .running
                .iter()
                .zip(self.statistics()?)
                .map(|((v, _), t)| (name(*v), t.len()))
                .collect(),
            best: self.best.is_some(),
        })
    }

    /// Writes everything that decides about the next step into a directory.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let path = dir.join(NUMBERS);
        let io = |e| Error::io("save the training's state in", &path, e);
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(io)?);
        let mut put = |v: &[f32]| out.write_all(bytemuck::cast_slice(v)).map_err(io);
        for (i, values) in self.values()?.iter().enumerate() {
            put(values)?;
            if let Some((m, v)) = self.optimizer.moments(i) {
                put(m)?;
                put(v)?;
            }
        }
        for tensor in self.statistics()? {
            put(&tensor.to_f32s()?)?;
        }
        if let Some((values, statistics)) = &self.best {
            values.iter().try_for_each(|v| put(v))?;
            statistics.iter().try_for_each(|t| put(&t.to_f32s()?))?;
        }
        out.into_inner().map_err(|e| io(e.into_error()))?.sync_all().map_err(io)?;
        save::json(&dir.join(STATE), &self.state()?)
    }

    /// Goes on from what [`Trainer::save`] wrote.
    ///
    /// # Errors
    /// `Integrity` where it belongs to another model.
    pub fn restore(&mut self, dir: &Path) -> Result<()> {
        let path = dir.join(STATE);
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        let before: State = serde_json::from_str(&text)
            .map_err(|e| Error::invalid("TRAIN-STATE", format!("the file is damaged: {e}")).file(&path))?;
        let now = self.state()?;
        if (before.schema_version, &before.parameters, &before.running)
            != (SCHEMA_VERSION, &now.parameters, &now.running)
        {
            return Err(Error::integrity("TRAIN-STATE", "the saved training is of another model").file(&path));
        }
        let path = dir.join(NUMBERS);
        let io = |e| Error::io("read the training's state", &path, e);
        let mut file = BufReader::with_capacity(1 << 20, File::open(&path).map_err(io)?);
        let mut take = |n: usize| -> Result<Vec<f32>> {
            let mut v = vec![0f32; n];
            file.read_exact(bytemuck::cast_slice_mut(&mut v)).map_err(io)?;
            Ok(v)
        };
        let mut moments = Vec::new();
        for p in &self.parameters {
            let n = p.value.elem_count();
            let values = take(n)?;
            float::change(&p.value, |w| w.copy_from_slice(&values))?;
            if before.steps > 0 {
                moments.push((take(n)?, take(n)?));
            }
        }
        let shapes: Vec<Vec<usize>> = self.statistics()?.iter().map(|t| t.shape().to_vec()).collect();
        let statistics = |take: &mut dyn FnMut(usize) -> Result<Vec<f32>>| -> Result<Vec<Tensor>> {
            shapes.iter().map(|s| Tensor::from_vec(s.clone(), take(s.iter().product())?)).collect()
        };
        for ((constant, _), tensor) in self.running.iter().zip(statistics(&mut take)?) {
            self.overrides.insert(*constant, Value::load(&tensor)?);
        }
        self.best = match before.best {
            false => None,
            true => {
                let sizes = self.parameters.iter().map(|p| p.value.elem_count());
                let values = sizes.map(&mut take).collect::<Result<_>>()?;
                Some((values, statistics(&mut take)?))
            }
        };
        self.optimizer.go_on(before.steps, moments);
        Ok(())
    }
}
