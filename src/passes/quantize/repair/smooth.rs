//! SmoothQuant (Xiao et al., arXiv 2211.10438): channels of data with large magnitudes spoil the grid of all the
//! others. What products read is divided by channel, `s = max|X|^a / max|W|^(1 - a)`, and their weights are
//! multiplied by as much. All products that read a value take part in its scales. They go into what makes the
//! value where nothing else reads it, else into a multiplication in front of the products.
//!
//! Scales are taken relative to their geometric mean, which changes no grid but keeps the size of norms.

use super::super::fold::{self, Fold, Reader};
use super::super::{Scheme, Settings, calibrate, weights};
use crate::error::{Error, Result};
use crate::evaluate::samples::Positions;
use crate::execute::{Executor, Overrides, Seen as Shown};
use crate::graph::{Edit, Facts, Graph, NodeIndex, Uses, ValueId};
use crate::ops::Attributes;
use crate::ops::float::elements;
use crate::passes::look::Look;
use crate::passes::{Ctx, PassReport};
use crate::tensor::{Tensor, Value};
use std::collections::{BTreeMap, BTreeSet};

const RULE: &str = "smooth";
/// Scales beyond these, relative to their mean, are cut: a channel that is all but dead says nothing.
const LIMIT: f64 = 1e3;

/// What products read, and the largest magnitude of each channel on the data.
pub(super) struct Seen {
    values: Vec<Smoothed>,
}

struct Smoothed {
    value: ValueId,
    readers: Vec<Reader>,
    /// Largest magnitude by channel of the data, and of the weights that meet it.
    data: Vec<f32>,
    weights: Vec<f32>,
}

/// Products that become integers, by the value that they read.
fn readers(graph: &Graph, settings: &Settings) -> Result<BTreeMap<ValueId, Vec<Reader>>> {
    let mut found: BTreeMap<ValueId, Vec<Reader>> = BTreeMap::new();
    for i in 0..graph.nodes().len() {
        let node = graph.node(i);
        let taken = settings.scheme == Scheme::StaticInt8 || node.is("MatMul") || node.is("Gemm");
        let Some(Some(x)) = node.inputs.first().filter(|_| taken && !settings.excluded(graph, i)) else {
            continue;
        };
        let Some(reader) = fold::reader(graph, i, 0) else { continue };
        let tensor = graph.initializer(reader.weight);
        if graph.initializer(*x).is_some() || tensor.is_none_or(|t| !matches!(weights::not_finite(t), Ok(0)))
        {
            continue;
        }
        found.entry(*x).or_default().push(reader);
    }
    // Products that take the channels of one value on different axes are not scaled.
    found.retain(|_, r| r.iter().all(|o| (o.axis, o.channels) == (r[0].axis, r[0].channels)));
    Ok(found)
}

impl Seen {
    /// Looks at what products read on the calibration data.
    pub(super) fn of(graph: &Graph, settings: &Settings, ctx: &Ctx<'_>) -> Result<Seen> {
        let readers = readers(graph, settings)?;
        let mut largest: BTreeMap<ValueId, Vec<f32>> =
            readers.iter().map(|(v, r)| (*v, vec![0f32; r[0].channels])).collect();
        let wanted: BTreeSet<ValueId> = largest.keys().copied().collect();
        let look = Look { data: calibrate::data(ctx)?, samples: settings.samples, batch: 0 };
        let (executor, none) = (Executor::new(graph)?, Overrides::new());
        look.each("quantize: look at channels", ctx.monitor, 0, &mut |_, batch| {
            let positions = Positions::of(batch)?;
            let mut add = |v: ValueId, value: &Value| -> Result<()> {
                ctx.monitor.check()?;
                let (Some(largest), Some(readers)) = (largest.get_mut(&v), readers.get(&v)) else {
                    return Ok(());
                };
                note(largest, value, &positions, &readers[0])
                    .map_err(|e| e.field(format!("value \"{}\"", graph.value_name(v))))
            };
            for (name, tensor) in &batch.inputs {
                if let Some(v) = graph.find(name).filter(|v| wanted.contains(v)) {
                    add(v, &Value::load(tensor)?)?;
                }
            }
            let seen = |v: ValueId| wanted.contains(&v);
            executor.run_tapped(&batch.inputs, &none, Shown::Of(&seen), &mut add).map(drop)
        })?;
        let mut values = Vec::new();
        for (value, readers) in readers {
            let mut weights = vec![0f32; readers[0].channels];
            for reader in &readers {
                let Some(tensor) = graph.initializer(reader.weight) else { continue };
                let of = reader.along.magnitudes(tensor, reader.channels)?;
                weights.iter_mut().zip(of).for_each(|(w, m)| *w = w.max(m));
            }
            let data = largest.remove(&value).unwrap_or_default();
            values.push(Smoothed { value, readers, data, weights });
        }
        Ok(Seen { values })
    }

    /// The float graph with its channels scaled; none where there is nothing to scale.
    pub(super) fn smoothed(
        &self,
        graph: &Graph,
        strength: f64,
        report: &mut PassReport,
    ) -> Result<Option<Graph>> {
        let (uses, facts) = (graph.uses(), graph.infer(&|_| None)?);
        let mut edit = graph.edit();
        let mut changed = 0;
        for one in &self.values {
            let name = graph.value_name(one.value);
            let Some(scales) = one.scales(strength) else {
                report.skip(RULE, name, "no channel of it has both data and weights");
                continue;
            };
            let place = one.divide(graph, &uses, &facts, &mut edit, &scales)?;
            let Some(place) = place else {
                report.skip(RULE, name, "the rank of it is not known");
                continue;
            };
            for reader in &one.readers {
                reader.multiply(&mut edit, &scales)?;
            }
            report.apply(RULE, name, format!("{}, {place}", one.told(&scales)));
            changed += 1;
        }
        Ok(if changed > 0 { Some(edit.commit()?) } else { None })
    }
}

/// Largest magnitudes by channel, padding aside.
fn note(largest: &mut [f32], value: &Value, positions: &Positions, reader: &Reader) -> Result<()> {
    let float = value.float()?;
    let shape = float.dims();
    let Some(axis) = reader.axis.of(shape.len()).filter(|a| shape[*a] == largest.len()) else {
        return Err(Error::internal("SMOOTH-SHAPE", "a value has not the channels that are read of it"));
    };
    let x = elements::<f32>(float)?;
    let inner: usize = shape[axis + 1..].iter().product();
    let shown = positions.rows_of(shape, axis);
    for (line, _) in x.chunks((largest.len() * inner).max(1)).zip(&shown).filter(|(_, s)| s.is_some()) {
        for (top, channel) in largest.iter_mut().zip(line.chunks(inner.max(1))) {
            for x in channel {
                if !x.is_finite() {
                    return Err(Error::invalid(
                        "CALIBRATION-NAN",
                        "calibration met a value that is not finite",
                    ));
                }
                *top = top.max(x.abs());
            }
        }
    }
    Ok(())
}

impl Smoothed {
    /// What each channel is divided by: one where it holds nothing, or nothing meets it.
    fn scales(&self, strength: f64) -> Option<Vec<f32>> {
        let log = |x: f32| f64::from(x).ln();
        let raw: Vec<Option<f64>> = (self.data.iter().zip(&self.weights))
            .map(|(x, w)| {
                let alive = x.is_normal() && w.is_normal();
                alive.then(|| strength * log(*x) - (1.0 - strength) * log(*w))
            })
            .collect();
        let known: Vec<f64> = raw.iter().flatten().copied().collect();
        if known.is_empty() {
            return None;
        }
        let mean = known.iter().sum::<f64>() / known.len() as f64;
        let scale = |s: &Option<f64>| s.map_or(1.0, |s| (s - mean).exp().clamp(1.0 / LIMIT, LIMIT) as f32);
        Some(raw.iter().map(scale).collect())
    }

    fn told(&self, scales: &[f32]) -> String {
        let top = |v: &mut dyn Iterator<Item = f32>| v.fold(0f32, f32::max);
        let data =
            (top(&mut self.data.iter().copied()), top(&mut self.data.iter().zip(scales).map(|(x, s)| x / s)));
        let weights = (
            top(&mut self.weights.iter().copied()),
            top(&mut self.weights.iter().zip(scales).map(|(w, s)| w * s)),
        );
        let typical = |scaled: bool| -> f32 {
            let mut of: Vec<f32> =
                self.data.iter().zip(scales).map(|(x, s)| if scaled { x / s } else { *x }).collect();
            of.sort_by(f32::total_cmp);
            of[of.len() / 2]
        };
        format!(
            "data up to {:.3} (median channel {:.3}) -> {:.3} ({:.3}), weights up to {:.3} -> {:.3}",
            data.0,
            typical(false),
            data.1,
            typical(true),
            weights.0,
            weights.1
        )
    }

    /// Divides the value for its products; says where. None where nothing is known of its shape.
    fn divide(
        &self,
        graph: &Graph,
        uses: &Uses,
        facts: &Facts,
        edit: &mut Edit,
        scales: &[f32],
    ) -> Result<Option<String>> {
        let Some(rank) = facts.get(self.value).and_then(|f| f.rank()) else { return Ok(None) };
        let Some(axis) = self.readers[0].axis.of(rank) else { return Ok(None) };
        let nodes: BTreeSet<NodeIndex> = self.readers.iter().map(|r| r.node).collect();
        let others = uses.consumers(self.value).iter().any(|(i, slot)| *slot != 0 || !nodes.contains(i));
        let why = match others {
            true => "others read it too".to_string(),
            false => match Fold::of(graph, uses, facts, self.value, axis) {
                Ok(fold) => {
                    fold.divide(edit, scales)?;
                    let into = fold.node().map(|i| graph.label(i)).unwrap_or_default();
                    return Ok(Some(format!("divided in {into}")));
                }
                Err(why) => why,
            },
        };
        let name = graph.value_name(self.value);
        let mut shape = vec![1; rank - axis];
        shape[0] = scales.len();
        let factors = Tensor::from_vec(shape, scales.iter().map(|s| 1.0 / s).collect())?;
        let factors = edit.add_initializer(&format!("{name}_smooth"), factors);
        let divided =
            edit.add_op("Mul", &[self.value, factors], Attributes::new(), &format!("{name}_smoothed"));
        for node in nodes {
            edit.node_mut(node).inputs[0] = Some(divided);
        }
        Ok(Some(format!("divided by a multiplication in front of the products: {why}")))
    }
}
