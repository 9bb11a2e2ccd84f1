//! First and second moments of what flows into products, gathered batch by batch.
//!
//! By [`Weighing::Relative`] positions of a plain product weigh `1 / (1 + e / t)`: `e` is the squared norm
//! of its output there, `t` the median of that over the first batch. Behind a product comes a sum and a
//! norm, to which the error relative to the size of a position matters. In transformers a few positions,
//! often the first, have outputs some thousand times as large as the others (massive activations, arXiv
//! 2402.17762); a fit to their squared error is paid for by all the others. Where a model lives on these
//! positions, as decoders do that let all tokens look at the first, [`Weighing::Alike`] may serve better.

use super::super::importance::{Source, each_batch};
use super::{Lost, Repair};
use crate::error::{Error, Result};
use crate::evaluate::samples::Positions;
use crate::execute::{Executor, Overrides, Seen};
use crate::graph::constants::Constants;
use crate::graph::{NodeIndex, ValueId};
use crate::ops::float::elements;
use crate::passes::look::Moments;
use crate::tensor::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// How much each position counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weighing {
    /// By the error relative to the output.
    Relative,
    /// All the same.
    Alike,
}

/// What flows into a plain product, until its outputs are there to weigh the positions by.
struct Held {
    value: Value,
    /// By row, the sum over the products of the squared norm of the output in parts of the typical one.
    sizes: Vec<f64>,
    /// Products that read it, and how many of them have answered.
    readers: usize,
    answers: usize,
}

/// By output of a plain product: what it reads, the axis of its features, and the typical squared norm.
struct Answer {
    data: ValueId,
    features: usize,
    typical: Option<f64>,
}

impl Answer {
    /// Adds to `held` the size of each row in parts of the typical one.
    fn weigh(&mut self, value: &Value, positions: &Positions, held: &mut Held) -> Result<()> {
        let float = value.float()?;
        let shape = float.dims();
        let y = elements::<f32>(float)?;
        let inner: usize = shape[self.features + 1..].iter().product();
        let (features, shown) = (shape[self.features], positions.rows_of(shape, self.features));
        let squared = |(row, shown): (usize, &Option<usize>)| {
            let line =
                y.get(row * features * inner..(row + 1) * features * inner).filter(|_| shown.is_some());
            line.map(|l| l.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>())
        };
        let sizes: Vec<Option<f64>> = shown.iter().enumerate().map(squared).collect();
        let typical = *self.typical.get_or_insert_with(|| {
            let mut known: Vec<f64> = sizes.iter().flatten().copied().collect();
            known.sort_by(f64::total_cmp);
            known.get(known.len() / 2).copied().unwrap_or(0.0)
        });
        held.sizes.resize(sizes.len(), 0.0);
        for (sum, size) in held.sizes.iter_mut().zip(&sizes) {
            *sum += size.filter(|_| typical > 0.0).map_or(1.0, |size| size / typical);
        }
        held.answers += 1;
        Ok(())
    }
}

/// How many of the products, from the first on, have moments that fit under `cap` bytes; one at least.
pub(super) fn fitting(lost: &[Lost], repair: Repair, cap: u64) -> usize {
    let mut bytes = 0u64;
    let need = |l: &Lost| {
        let features = (l.taps * (l.kept.len() + l.gone.len())) as u64;
        if repair == Repair::Ridge { 4 * features * features } else { 8 * features }
    };
    let fits = lost.iter().take_while(|l| {
        bytes += need(l);
        bytes <= cap
    });
    fits.count().max(1)
}

/// What one set of moments is taken of: a value as it is, or as one node unfolds it.
type Flow = (ValueId, Option<NodeIndex>);

/// Moments of the data of each product, in their order; products that read the same data share one.
pub(super) fn gather(
    source: &Source<'_>,
    lost: &[Lost],
    repair: Repair,
    weighing: Weighing,
) -> Result<Vec<Rc<Moments>>> {
    let graph = source.graph;
    let constants = Constants::of(graph);
    let mut weights: BTreeMap<NodeIndex, Value> = BTreeMap::new();
    let mut flows: BTreeMap<Flow, Moments> = BTreeMap::new();
    let flow = |l: &Lost| (l.gate.data, graph.node(l.gate.node).is("Conv").then_some(l.gate.node));
    for l in lost {
        if let (_, Some(node)) = flow(l)
            && let Some(tensor) = constants.get(l.gate.weight)
        {
            weights.insert(node, Value::load(tensor)?);
        }
        let features = l.taps * (l.kept.len() + l.gone.len());
        flows.entry(flow(l)).or_insert_with(|| Moments::of(features, repair == Repair::Ridge));
    }
    let mut answers: BTreeMap<ValueId, Answer> = BTreeMap::new();
    for l in lost.iter().filter(|l| flow(l).1.is_none()) {
        let output = graph.node(l.gate.node).outputs.first().copied().flatten();
        if let Some(output) = output {
            let features = l.gate.at.output;
            answers.insert(output, Answer { data: l.gate.data, features, typical: None });
        }
    }
    let read: BTreeSet<ValueId> = flows.keys().map(|(v, _)| *v).chain(answers.keys().copied()).collect();
    let executor = Executor::new(graph)?;
    let none = Overrides::new();
    each_batch(source, "prune: look at what products read", 0, &mut |_, batch| {
        let positions = Positions::of(batch)?;
        let mut waiting: BTreeMap<ValueId, Held> = BTreeMap::new();
        executor
            .run_tapped(&batch.inputs, &none, Seen::Of(&|v| read.contains(&v)), &mut |v, value| {
                source.monitor.check()?;
                let at = |e: Error| e.field(format!("value \"{}\"", graph.value_name(v)));
                if let Some(answer) = answers.get_mut(&v)
                    && let Some(held) = waiting.get_mut(&answer.data)
                {
                    answer.weigh(value, &positions, held).map_err(at)?;
                    if held.answers == held.readers
                        && let (Some(held), Some(moments)) =
                            (waiting.remove(&answer.data), flows.get_mut(&(answer.data, None)))
                    {
                        plain(&held, &positions, weighing, moments).map_err(at)?;
                    }
                }
                if flows.contains_key(&(v, None)) {
                    let readers = answers.values().filter(|a| a.data == v).count();
                    waiting.insert(v, Held { value: value.clone(), sizes: vec![], readers, answers: 0 });
                }
                for ((_, node), moments) in flows.range_mut((v, Some(0))..=(v, Some(usize::MAX))) {
                    let Some(node) = node else { continue };
                    let op = graph.operator(*node)?;
                    let inputs = [Some(value), weights.get(node)];
                    let real = batch.rows;
                    let unfolded = op
                        .unfold(&inputs, &mut |row, columns, count| {
                            if row < real {
                                moments.add_columns(columns, count);
                            }
                        })
                        .map_err(at)?;
                    if !unfolded {
                        return Err(Error::internal("REPAIR-UNFOLD", "a convolution is not unfolded")
                            .node(graph.label(*node)));
                    }
                }
                Ok(())
            })
            .map(drop)
    })?;
    for (flow, moments) in &flows {
        if !moments.sum.iter().all(|s| s.is_finite()) {
            return Err(Error::invalid("PRUNE-NAN", "the model computes numbers that are not finite")
                .field(format!("value \"{}\"", graph.value_name(flow.0))));
        }
    }
    let shared: BTreeMap<Flow, Rc<Moments>> = flows.into_iter().map(|(k, m)| (k, Rc::new(m))).collect();
    Ok(lost.iter().map(|l| Rc::clone(&shared[&flow(l)])).collect())
}

/// A value whose last axis holds the features, its positions weighed by the outputs made of them.
fn plain(held: &Held, positions: &Positions, weighing: Weighing, moments: &mut Moments) -> Result<()> {
    let float = held.value.float()?;
    let shape = float.dims();
    let axis = shape.len() - 1;
    let x = elements::<f32>(float)?;
    let features = shape[axis].max(1);
    let shown = positions.rows_of(shape, axis);
    let readers = held.readers.max(1) as f64;
    // Where outputs have other positions than the data, all weigh the same.
    let by_size = weighing == Weighing::Relative && held.sizes.len() == shown.len();
    let weight = |row: usize| if by_size { 1.0 / (1.0 + held.sizes[row] / readers) } else { 1.0 };
    let (mut rows, mut weights) = (Vec::with_capacity(x.len()), Vec::with_capacity(shown.len()));
    for (row, line) in x.chunks(features).enumerate().filter(|(row, _)| shown[*row].is_some()) {
        rows.extend_from_slice(line);
        weights.push(weight(row));
    }
    moments.add_rows(rows, &weights);
    Ok(())
}
