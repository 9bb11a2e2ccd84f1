//! First and second moments of what flows into products, gathered batch by batch.

use super::super::importance::{Positions, Source, each_batch};
use super::{Lost, Repair};
use crate::error::{Error, Result};
use crate::execute::{Executor, Overrides, Seen};
use crate::graph::constants::Constants;
use crate::graph::{NodeIndex, ValueId};
use crate::kernels::gemm::{Matrix, product};
use crate::ops::float::elements;
use crate::tensor::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Sums over positions.
#[derive(Debug, Default)]
pub(super) struct Moments {
    count: f64,
    sum: Vec<f64>,
    /// Sum of products `[features, features]`, where it was asked for.
    pub(super) gram: Option<Vec<f32>>,
}

impl Moments {
    fn of(features: usize, gram: bool) -> Moments {
        let gram = gram.then(|| vec![0f32; features * features]);
        Moments { count: 0.0, sum: vec![0.0; features], gram }
    }

    /// Mean by feature.
    pub(super) fn mean(&self) -> Vec<f64> {
        self.sum.iter().map(|s| s / self.count.max(1.0)).collect()
    }

    /// Mean product of two features, about their means where `centred`.
    pub(super) fn about(&self, i: usize, j: usize, centred: bool) -> f64 {
        let n = self.count.max(1.0);
        let raw = self.gram.as_ref().map_or(0.0, |g| f64::from(g[i * self.sum.len() + j])) / n;
        if centred { raw - self.sum[i] / n * (self.sum[j] / n) } else { raw }
    }

    /// Adds positions: `x` holds one feature a row where `by_feature`, else one position a row.
    fn add(&mut self, x: &[f32], positions: usize, by_feature: bool) {
        let features = self.sum.len();
        self.count += positions as f64;
        let matrix = match by_feature {
            true => Matrix::new(x, features, positions),
            false => Matrix::new(x, positions, features).t(),
        };
        if by_feature {
            for (sum, line) in self.sum.iter_mut().zip(x.chunks(positions.max(1))) {
                *sum += line.iter().map(|v| f64::from(*v)).sum::<f64>();
            }
        } else {
            for line in x.chunks(features.max(1)) {
                self.sum.iter_mut().zip(line).for_each(|(s, v)| *s += f64::from(*v));
            }
        }
        if let Some(gram) = &mut self.gram {
            product(1.0, matrix, matrix.t(), gram, true, true);
        }
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
pub(super) fn gather(source: &Source<'_>, lost: &[Lost], repair: Repair) -> Result<Vec<Rc<Moments>>> {
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
    let read: BTreeSet<ValueId> = flows.keys().map(|(v, _)| *v).collect();
    let executor = Executor::new(graph)?;
    let none = Overrides::new();
    each_batch(source, "prune: look at what products read", 0, &mut |_, batch| {
        let positions = Positions::of(batch)?;
        executor
            .run_tapped(&batch.inputs, &none, Seen::Of(&|v| read.contains(&v)), &mut |v, value| {
                source.monitor.check()?;
                for ((_, node), moments) in flows.range_mut((v, None)..=(v, Some(usize::MAX))) {
                    let at = |e: Error| e.field(format!("value \"{}\"", graph.value_name(v)));
                    match node {
                        None => plain(value, &positions, moments).map_err(at)?,
                        Some(node) => {
                            let op = graph.operator(*node)?;
                            let inputs = [Some(value), weights.get(node)];
                            let real = batch.rows;
                            let unfolded = op
                                .unfold(&inputs, &mut |row, columns, count| {
                                    if row < real {
                                        moments.add(columns, count, true);
                                    }
                                })
                                .map_err(at)?;
                            if !unfolded {
                                return Err(Error::internal(
                                    "REPAIR-UNFOLD",
                                    "a convolution is not unfolded",
                                )
                                .node(graph.label(*node)));
                            }
                        }
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

/// A value whose last axis holds the features.
fn plain(value: &Value, positions: &Positions, moments: &mut Moments) -> Result<()> {
    let float = value.float()?;
    let shape = float.dims();
    let axis = shape.len() - 1;
    let x = elements::<f32>(float)?;
    let features = shape[axis].max(1);
    let shown = positions.rows_of(shape, axis);
    if shown.iter().all(Option::is_some) {
        moments.add(&x, shown.len(), false);
        return Ok(());
    }
    let kept: Vec<f32> = x
        .chunks(features)
        .zip(&shown)
        .filter(|(_, s)| s.is_some())
        .flat_map(|(line, _)| line.iter().copied())
        .collect();
    moments.add(&kept, kept.len() / features, false);
    Ok(())
}
