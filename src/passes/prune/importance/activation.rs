//! Scores from what flows into products, gathered in one pass with memory for sums alone.
//!
//! With X the data at a gate (rows of the batch and positions t, index j of the summed axis) and W its
//! weight, per index and summed over the gates of a group (per distinct value for the first three):
//! `activation` mean |X_j|; `frequency` the part of X_j that is above zero; `minitron` the root of the sum
//! over rows of (mean over t of |X_j|)^2, in the L2 norm over a unit's indices (arXiv 2407.14679);
//! `wanda` the sum over i of W_ij^2 times |X_j|^2, per position (arXiv 2306.11695, its column sums);
//! `flap` variance of X_j times |W_j|^2 (arXiv 2312.11983). A unit's score is the sum over its indices.

use super::gates::{Gate, each_batch, flows, gates};
use super::{Criterion, Source};
use crate::error::{Error, Result};
use crate::evaluate::samples::Positions;
use crate::execute::{Executor, Overrides, Seen};
use crate::graph::ValueId;
use crate::graph::constants::Constants;
use crate::ops::float::elements;
use crate::tensor::{Tensor, Value};
use std::collections::BTreeMap;

/// Sums over positions, by index.
#[derive(Debug, Clone, Default)]
struct Stream {
    count: f64,
    sum: Vec<f64>,
    squares: Vec<f64>,
    magnitude: Vec<f64>,
    positive: Vec<f64>,
    /// Sum over rows of the squared mean magnitude.
    rows: Vec<f64>,
}

impl Stream {
    /// Numbers that [`Stream::save`] writes for `size` indices.
    fn saved(size: usize) -> usize {
        1 + 5 * size
    }

    fn save(&self, into: &mut Vec<f64>) {
        into.push(self.count);
        for sums in [&self.sum, &self.squares, &self.magnitude, &self.positive, &self.rows] {
            into.extend_from_slice(sums);
        }
    }

    /// What [`Stream::save`] wrote for `size` indices.
    fn load(from: &[f64], size: usize) -> Stream {
        let part = |i: usize| from[1 + i * size..][..size].to_vec();
        let (count, sum, squares) = (from[0], part(0), part(1));
        Stream { count, sum, squares, magnitude: part(2), positive: part(3), rows: part(4) }
    }

    fn add(&mut self, value: &Value, axis: usize, positions: &Positions) -> Result<()> {
        let float = value.float()?;
        let shape = float.dims().to_vec();
        let (size, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
        for sums in
            [&mut self.sum, &mut self.squares, &mut self.magnitude, &mut self.positive, &mut self.rows]
        {
            sums.resize(size, 0.0);
        }
        let x = elements::<f32>(float)?;
        let mut row = None;
        let (mut of_row, mut seen) = (vec![0f64; size], 0.0);
        for (at, owner) in positions.rows_of(&shape, axis).into_iter().enumerate() {
            let Some(owner) = owner else { continue };
            if row != Some(owner) {
                self.close(&mut of_row, &mut seen);
                row = Some(owner);
            }
            seen += inner as f64;
            let x = &x[at * size * inner..][..size * inner];
            for (j, line) in x.chunks(inner.max(1)).enumerate() {
                let (mut sum, mut squares, mut magnitude, mut positive) = (0f32, 0f32, 0f32, 0u32);
                for v in line {
                    sum += v;
                    squares += v * v;
                    magnitude += v.abs();
                    positive += u32::from(*v > 0.0);
                }
                self.sum[j] += f64::from(sum);
                self.squares[j] += f64::from(squares);
                self.magnitude[j] += f64::from(magnitude);
                self.positive[j] += f64::from(positive);
                of_row[j] += f64::from(magnitude);
            }
            self.count += inner as f64;
        }
        self.close(&mut of_row, &mut seen);
        match self.squares.iter().all(|s| s.is_finite()) {
            true => Ok(()),
            false => Err(Error::invalid("PRUNE-NAN", "the model computes numbers that are not finite")
                .hint("check the weights with `tinsmith inspect --weights`, and the data")),
        }
    }

    /// Ends a row of the batch.
    fn close(&mut self, of_row: &mut [f64], seen: &mut f64) {
        if *seen > 0.0 {
            for (sum, magnitude) in self.rows.iter_mut().zip(of_row.iter_mut()) {
                *sum += (*magnitude / *seen).powi(2);
                *magnitude = 0.0;
            }
            *seen = 0.0;
        }
    }

    fn mean(&self, of: &[f64], j: usize) -> f64 {
        of[j] / self.count.max(1.0)
    }

    fn variance(&self, j: usize) -> f64 {
        (self.mean(&self.squares, j) - self.mean(&self.sum, j).powi(2)).max(0.0)
    }
}

/// Sums by unit.
pub(super) fn scores(source: &Source<'_>, criterion: Criterion) -> Result<Vec<f64>> {
    let gates = gates(source);
    let flows = flows(&gates);
    let sizes = flows.iter().map(|(at, readers)| (*at, gates[readers[0]].units.len())).collect();
    let streams = streams(source, &sizes)?;
    let mut sums = vec![0f64; source.coupled.units()];
    for (at, readers) in &flows {
        let stream = &streams[at];
        if stream.count == 0.0 {
            return Err(Error::invalid("PRUNE-DATA", "the calibration data hold padding only"));
        }
        let norms = match criterion {
            Criterion::Wanda | Criterion::Flap => column_norms(source, &gates, readers)?,
            _ => Vec::new(),
        };
        let mut own: BTreeMap<usize, f64> = BTreeMap::new();
        for (j, unit) in gates[readers[0]].units.iter().enumerate() {
            let Some(u) = unit else { continue };
            *own.entry(*u).or_default() += match criterion {
                Criterion::Frequency => stream.mean(&stream.positive, j),
                Criterion::Minitron => stream.rows[j],
                Criterion::Wanda => stream.mean(&stream.squares, j) * norms[j],
                Criterion::Flap => stream.variance(j) * norms[j],
                _ => stream.mean(&stream.magnitude, j),
            };
        }
        for (u, sum) in own {
            sums[u] += if criterion == Criterion::Minitron { sum.sqrt() } else { sum };
        }
    }
    Ok(sums)
}

/// Statistics of what flows into gates, by value and axis of a size. All criteria of this file read the
/// same, so that one pass serves them all.
fn streams(
    source: &Source<'_>,
    sizes: &BTreeMap<(ValueId, usize), usize>,
) -> Result<BTreeMap<(ValueId, usize), Stream>> {
    let executor = Executor::new(source.graph)?;
    let mut streams: BTreeMap<(ValueId, usize), Stream> =
        sizes.keys().map(|w| (*w, Stream::default())).collect();
    let mut kept = source.kept("activations", sizes.values().map(|n| Stream::saved(*n)).sum());
    let (skip, mut sums) = kept.seen();
    for (stream, size) in streams.values_mut().zip(sizes.values()).filter(|_| skip > 0) {
        *stream = Stream::load(sums, *size);
        sums = &sums[Stream::saved(*size)..];
    }
    let read = |v| sizes.range((v, 0)..=(v, usize::MAX)).next().is_some();
    let none = Overrides::new();
    let outcome = each_batch(source, "prune: look at activations", skip, &mut |i, batch| {
        let positions = Positions::of(batch)?;
        let mut note = |v: ValueId, value: &Value| -> Result<()> {
            source.monitor.check()?;
            for ((_, axis), stream) in streams.range_mut((v, 0)..=(v, usize::MAX)) {
                let at = |e: Error| e.field(format!("value \"{}\"", source.graph.value_name(v)));
                stream.add(value, *axis, &positions).map_err(at)?;
            }
            Ok(())
        };
        for (name, tensor) in &batch.inputs {
            if let Some(v) = source.graph.find(name).filter(|_| tensor.dtype().is_float()) {
                note(v, &Value::load(tensor)?)?;
            }
        }
        executor.run_tapped(&batch.inputs, &none, Seen::Of(&read), &mut note)?;
        kept.note(i + 1, || {
            let mut sums = Vec::new();
            streams.values().for_each(|stream| stream.save(&mut sums));
            sums
        });
        Ok(())
    });
    kept.write();
    outcome.map(|()| streams)
}

/// Squared norms of the columns that one flow meets, summed over its gates.
fn column_norms(source: &Source<'_>, gates: &[Gate], readers: &[usize]) -> Result<Vec<f64>> {
    let constants = Constants::of(source.graph);
    let mut norms = vec![0f64; gates[readers[0]].units.len()];
    for gate in readers.iter().map(|r| &gates[*r]) {
        let Some(tensor) = constants.get(gate.weight) else { continue };
        let at = |e: Error| e.field(format!("weight \"{}\"", source.graph.value_name(gate.weight)));
        for (norm, sum) in norms.iter_mut().zip(squares_along(tensor, gate.at.weight.1).map_err(at)?) {
            *norm += sum;
        }
    }
    Ok(norms)
}

/// Sums of squares over all axes but one.
pub(super) fn squares_along(tensor: &Tensor, axis: usize) -> Result<Vec<f64>> {
    let shape = tensor.shape();
    let inner: usize = shape[axis + 1..].iter().product();
    let mut out = vec![0f64; shape[axis]];
    for (i, line) in tensor.to_f32s()?.chunks(inner.max(1)).enumerate() {
        out[i % shape[axis].max(1)] += line.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
    }
    match out.iter().all(|s| s.is_finite()) {
        true => Ok(out),
        false => Err(Error::invalid("PRUNE-WEIGHT", "the weight holds an element that is not finite")
            .hint("`tinsmith inspect --weights` lists damaged weights; export the model again")),
    }
}
