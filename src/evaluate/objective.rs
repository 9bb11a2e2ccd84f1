//! What a model is asked to do well, as a number with a gradient. Outputs of a graph, a batch and
//! perhaps the outputs of the model that it came from enter; a loss and gradients of outputs leave.

use super::samples::{Batch, Samples, Targets};
use crate::error::{Error, Result};
use crate::graph::{Graph, Type};
use crate::kernels::divergence;
use crate::kernels::softmax::cross_entropy;
use crate::ops::float::{Float, Scalar, elements, real};
use crate::tensor::{Tensor, Value};
use candle_core::Device;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// What is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Negative log-likelihood of the labels: of each next token, or of the class of a row.
    Likelihood,
    /// Distance from the outputs of a reference: `KL(reference || model)` of scores, else half the
    /// squared distance over the squared length of the reference's vector.
    Reference,
}

/// A loss on one batch.
#[derive(Debug)]
pub struct Loss {
    /// Sum over what counts.
    pub sum: f64,
    /// Tokens or rows that count.
    pub count: f64,
    /// Gradient of the mean, by output.
    pub seeds: Vec<(usize, Float)>,
}

impl Loss {
    /// Mean over what counts; zero where nothing does.
    pub fn mean(&self) -> f64 {
        if self.count > 0.0 { self.sum / self.count } else { 0.0 }
    }
}

/// The output by which a model is judged, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Position among the graph's outputs.
    pub output: usize,
    /// Whether its last axis holds scores of classes or tokens.
    pub scores: bool,
}

impl Head {
    /// Of a graph, judged on `samples`: `logits`, else `sentence_embedding`, else the first float output,
    /// which holds scores where the data are labelled.
    ///
    /// # Errors
    /// `Unsupported` where the graph has no float output.
    pub fn of(graph: &Graph, samples: &Samples) -> Result<Head> {
        let named = |name: &str| graph.outputs().iter().position(|v| graph.value_name(*v) == name);
        let float = |v: &crate::graph::ValueId| match &graph.value(*v).ty {
            Some(Type::Tensor { dtype, .. }) => dtype.is_float(),
            _ => true,
        };
        if let Some(output) = named("logits") {
            return Ok(Head { output, scores: true });
        }
        if let Some(output) = named("sentence_embedding") {
            return Ok(Head { output, scores: false });
        }
        let output =
            graph.outputs().iter().position(float).ok_or_else(|| {
                Error::unsupported("LOSS-OUTPUT", "the model has no output of floats to judge")
            })?;
        Ok(Head { output, scores: samples.labelled() })
    }

    fn float<'v>(&self, outputs: &'v [Value]) -> Result<&'v Float> {
        outputs
            .get(self.output)
            .ok_or_else(|| Error::internal("LOSS-OUTPUT", "the judged output is missing"))?
            .float()
    }

    /// The loss of a batch. `reference` are the outputs of the other model on it.
    ///
    /// # Errors
    /// `Usage` where the labels are no classes of the output, `Invalid` for outputs that are not finite.
    pub fn loss(
        &self,
        objective: Objective,
        outputs: &[Value],
        batch: &Batch,
        reference: Option<&[Value]>,
    ) -> Result<Loss> {
        let y = self.float(outputs)?;
        let rows = Rows::of(y, batch, self.scores)?;
        let reference = match (objective, reference) {
            (Objective::Reference, Some(r)) => Some(self.float(r)?),
            (Objective::Reference, None) => {
                return Err(Error::internal("LOSS-REFERENCE", "the reference's outputs are missing"));
            }
            _ => None,
        };
        let (sum, grad) = real!(y.dtype(), T => self.of_rows::<T>(y, reference, &rows)?);
        if !sum.is_finite() {
            return Err(Error::invalid("LOSS-NAN", "the loss is not finite")
                .found(sum)
                .hint("check the weights with `tinsmith inspect --weights`, or lower the learning rate"));
        }
        Ok(Loss { sum, count: rows.count, seeds: vec![(self.output, grad.to_dtype(y.dtype())?)] })
    }

    fn of_rows<T: Scalar + crate::kernels::analytic::Analytic>(
        &self,
        y: &Float,
        reference: Option<&Float>,
        rows: &Rows<'_>,
    ) -> Result<(f64, Float)> {
        let values = elements::<T>(y)?;
        let scale = T::of(1.0 / rows.count.max(1.0));
        let (sum, grad) = match (reference, self.scores) {
            (None, _) => {
                let target = |row: usize| rows.target(row);
                cross_entropy(rows.width, &values, &target, 0.0, scale)
            }
            (Some(r), true) => {
                let counts = |row: usize| rows.counts(row);
                divergence::divergence(&values, &elements::<T>(r)?, rows.width, &counts, scale)
            }
            (Some(r), false) => distance(&values, &elements::<T>(r)?, rows, scale),
        };
        Ok((sum, Float::from_vec(grad, y.shape(), &Device::Cpu)?))
    }

    /// Gradients of the output along a random direction: their squares, averaged, are the curvature of
    /// [`Objective::Reference`] at the reference itself, where its gradient is zero. For scores the
    /// labels are drawn from the model's own predictions (the Fisher information), for vectors the
    /// direction is one of signs over the vector's length (Hutchinson's estimate of J^T J).
    pub fn probe(&self, outputs: &[Value], batch: &Batch, seed: u64) -> Result<Loss> {
        let y = self.float(outputs)?;
        let rows = Rows::of(y, batch, self.scores)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let flat = y.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let scale = 1.0 / rows.count.max(1.0) as f32;
        let mut grad = vec![0f32; flat.len()];
        let mut sum = 0.0;
        for (row, (y, g)) in flat.chunks(rows.width).zip(grad.chunks_mut(rows.width)).enumerate() {
            if !rows.counts(row) {
                continue;
            }
            if self.scores {
                let top = y.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let total: f32 = y.iter().map(|v| (v - top).exp()).sum();
                let mut left = rng.random::<f32>() * total;
                let mut drawn = y.len() - 1;
                for (i, v) in y.iter().enumerate() {
                    left -= (v - top).exp();
                    if left <= 0.0 {
                        drawn = i;
                        break;
                    }
                }
                sum += f64::from(total.ln() - (y[drawn] - top));
                for (i, (g, v)) in g.iter_mut().zip(y).enumerate() {
                    *g = ((v - top).exp() / total - f32::from(u8::from(i == drawn))) * scale;
                }
            } else {
                let length = y.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
                for (g, v) in g.iter_mut().zip(y) {
                    *g = if rng.random::<bool>() { scale } else { -scale } / length;
                    sum += f64::from(*g * v);
                }
            }
        }
        if !sum.is_finite() {
            return Err(Error::invalid("LOSS-NAN", "the model's outputs are not finite")
                .hint("check the weights with `tinsmith inspect --weights`"));
        }
        let grad = Float::from_vec(grad, y.shape(), &Device::Cpu)?.to_dtype(y.dtype())?;
        Ok(Loss { sum, count: rows.count, seeds: vec![(self.output, grad)] })
    }
}

/// Rows of an output, and which of them count.
struct Rows<'b> {
    width: usize,
    /// Rows of the output for each row of the batch.
    inner: usize,
    real: usize,
    mask: Option<Vec<bool>>,
    targets: &'b Targets,
    count: f64,
}

impl Rows<'_> {
    fn of<'b>(y: &Float, batch: &'b Batch, scores: bool) -> Result<Rows<'b>> {
        let shape = y.dims();
        let outer = shape.first().copied().unwrap_or(1).max(1);
        // Scores may end in axes of size 1; without tokens or steps a vector is all of a row.
        let mask = mask(batch, shape)?;
        let width = match shape {
            [.., last] if mask.is_some() || (scores && shape.len() == 3) => *last,
            _ => shape.iter().skip(1).product(),
        };
        let total: usize = shape.iter().product();
        let rows = total / width.max(1);
        let mut out =
            Rows { width, inner: rows / outer, real: batch.rows, mask, targets: &batch.targets, count: 0.0 };
        let bad = match &batch.targets {
            Targets::None => None,
            Targets::Classes(labels) => {
                if labels.len() != rows {
                    return Err(Error::usage(
                        "LOSS-LABELS",
                        "the model does not give one row of scores a label",
                    )
                    .found(format!("{shape:?}"))
                    .limit(format!("[{}, classes]", labels.len()))
                    .hint("train on data without labels, or name the task's own data"));
                }
                labels.iter().copied().find(|l| *l >= width)
            }
            Targets::Next(next) => next.iter().flatten().map(|t| *t as usize).find(|t| *t >= width),
        };
        if let Some(bad) = bad {
            return Err(Error::usage("LOSS-LABELS", "a label has no score in the model's output")
                .found(bad)
                .limit(format!("0 to {}", width.saturating_sub(1)))
                .hint("check that the data belong to this model"));
        }
        out.count = (0..rows).filter(|r| out.counts(*r)).count() as f64;
        Ok(out)
    }

    fn counts(&self, row: usize) -> bool {
        row / self.inner.max(1) < self.real
            && self.mask.as_ref().is_none_or(|m| m.get(row).copied().unwrap_or(true))
            && !matches!(self.targets, Targets::Next(next) if next.get(row).copied().flatten().is_none())
    }

    fn target(&self, row: usize) -> Option<usize> {
        if !self.counts(row) {
            return None;
        }
        match self.targets {
            Targets::None => None,
            Targets::Classes(labels) => labels.get(row).copied(),
            Targets::Next(next) => next.get(row).copied().flatten().map(|t| t as usize),
        }
    }
}

/// Which rows of `[rows, tokens, width]` are no padding.
fn mask(batch: &Batch, shape: &[usize]) -> Result<Option<Vec<bool>>> {
    let given = |name: &str| batch.inputs.iter().find(|(n, _)| n == name).map(|(_, t)| t);
    let [rows, tokens, _] = *shape else { return Ok(None) };
    let fits = |t: &&Tensor| t.shape() == [rows, tokens];
    match given("attention_mask").filter(fits) {
        Some(mask) => Ok(Some(mask.to_i64s()?.iter().map(|m| *m != 0).collect())),
        None => Ok(given("input_ids").filter(fits).map(|_| vec![true; rows * tokens])),
    }
}

/// Half the squared distance over the squared length, summed over rows, and its gradient times `scale`.
fn distance<T: Scalar>(y: &[T], r: &[T], rows: &Rows<'_>, scale: T) -> (f64, Vec<T>) {
    let mut grad = vec![T::ZERO; y.len()];
    let mut sum = 0.0;
    for (row, g) in grad.chunks_mut(rows.width.max(1)).enumerate() {
        if !rows.counts(row) {
            continue;
        }
        let (y, r) = (&y[row * rows.width..][..g.len()], &r[row * rows.width..][..g.len()]);
        let length: f64 = r.iter().map(|v| v.wide() * v.wide()).sum::<f64>().max(1e-24);
        for ((g, y), r) in g.iter_mut().zip(y).zip(r) {
            let off = y.wide() - r.wide();
            sum += 0.5 * off * off / length;
            *g = T::of(off / length) * scale;
        }
    }
    (sum, grad)
}

#[cfg(test)]
mod tests;
