//! Scores from the slope of a loss, one batch at a time, with memory for one weight's gradient (for
//! `llm-pruner`: for two sums of the size of the weights).
//!
//! `taylor` in gate form uses that for a unit's column of a weight W, `sum_i W_ij dL/dW_ij` equals
//! `sum_t x_tj dL/dx_tj`, so that no weight needs a gradient and a value that several products read is
//! counted once. `group` and `element` take all weights of rank two or more along the axes of the group.

use super::gates::{each_batch, flows, gates, group_of, members};
use super::{Criterion, Source, data};
use crate::error::{Error, Result};
use crate::evaluate::objective::{Head, Loss, Objective};
use crate::evaluate::samples::Positions;
use crate::execute::{Executor, Gradient, Overrides, Planner};
use crate::graph::ValueId;
use crate::ops::float::elements;
use crate::passes::keepable;
use crate::passes::look::Kept;
use crate::passes::prune::criterion::{Form, Power, Slope};
use std::collections::{BTreeMap, BTreeSet};

/// Sums by unit.
pub(super) fn scores(source: &Source<'_>, criterion: Criterion) -> Result<Vec<f64>> {
    let data = data(source.data)?;
    if source.slope == Slope::Task && !data.labelled() {
        return Err(Error::usage(
            "PRUNE-LABELS",
            "the loss of the task needs labels, and the data have none",
        )
        .field("step.slope")
        .hint("use slope = \"reference\", or data with labels such as jsonl:FILE?text=..&label=.."));
    }
    let executor = Executor::new(source.graph)?;
    match (criterion, source.form) {
        (Criterion::Taylor, Form::Gate) => by_gate(source, &executor),
        _ => by_weight(source, &executor, criterion),
    }
}

/// What is kept of a pass of a criterion over `units`.
fn kept<'a>(source: &Source<'a>, criterion: Criterion, units: usize) -> Kept<'a> {
    let pass =
        format!("{criterion:?} {:?} {:?} {:?} {}", source.form, source.power, source.slope, source.seed);
    source.kept(&pass, units)
}

/// Runs every batch but the first `skip` forward and back, beside so many copies of the weights; `each` takes
/// gradients, `end` the end of a batch with the number of batches so far.
fn each_gradient(
    source: &Source<'_>,
    executor: &Executor,
    wanted: &[ValueId],
    skip: usize,
    copies: u64,
    each: &mut dyn FnMut(&Positions, &Gradient<'_>, f64) -> Result<()>,
    end: &mut dyn FnMut(usize),
) -> Result<()> {
    let data = data(source.data)?;
    let head = Head::of(source.graph, data)?;
    let task = source.slope != Slope::Reference && data.labelled();
    let (none, watch) = (Overrides::new(), || source.monitor.check());
    let mut planner = Planner::new(source.checkpointing, keepable(source.monitor, source.graph, copies));
    each_batch(source, "prune: look at gradients", skip, &mut |i, batch| {
        let positions = Positions::of(batch)?;
        let segments = planner.segments(executor, &batch.inputs, &none, wanted, &watch)?;
        let tape = executor.forward_in(&segments, &batch.inputs, &none, &mut |_| watch())?;
        let Loss { seeds, count, .. } = match task {
            true => head.loss(Objective::Likelihood, tape.outputs(), batch, None)?,
            false => head.probe(tape.outputs(), batch, source.seed.wrapping_add(i as u64 + 1))?,
        };
        let mut take = |gradient: Gradient<'_>| {
            let name = source.graph.value_name(gradient.value);
            each(&positions, &gradient, count).map_err(|e| e.field(format!("gradient of \"{name}\"")))
        };
        tape.backward_watched(seeds, &mut take, &mut |_| watch())?;
        end(i + 1);
        Ok(())
    })
}

fn finite(sums: &[f64]) -> Result<()> {
    match sums.iter().all(|s| s.is_finite()) {
        true => Ok(()),
        false => Err(Error::invalid("PRUNE-NAN", "the gradient is not finite")
            .hint("check the weights with `tinsmith inspect --weights`, and the data")),
    }
}

fn by_gate(source: &Source<'_>, executor: &Executor) -> Result<Vec<f64>> {
    let gates = gates(source);
    let flows = flows(&gates);
    let wanted: BTreeSet<ValueId> = flows.keys().map(|(v, _)| *v).collect();
    let wanted: Vec<ValueId> = wanted.into_iter().collect();
    let mut sums = vec![0f64; source.coupled.units()];
    let mut kept = kept(source, Criterion::Taylor, sums.len());
    let (skip, seen) = kept.seen();
    if skip > 0 {
        sums.copy_from_slice(seen);
    }
    // Change of the loss by row of the batch and unit: a unit's gates count together.
    let mut rows: BTreeMap<(usize, usize), f64> = BTreeMap::new();
    let rows_ref = std::cell::RefCell::new(&mut rows);
    let mut each = |positions: &Positions, g: &Gradient<'_>, count: f64| -> Result<()> {
        let forward = g.forward.float()?;
        let shape = forward.dims();
        let (x, d) = (elements::<f32>(forward)?, elements::<f32>(&g.grad)?);
        for ((_, axis), readers) in flows.range((g.value, 0)..=(g.value, usize::MAX)) {
            let inner: usize = shape[axis + 1..].iter().product();
            let units = &gates[readers[0]].units;
            let mut rows = rows_ref.borrow_mut();
            let mut here: Vec<f64> = vec![0.0; shape[*axis]];
            let mut flush = |row: usize, here: &mut Vec<f64>| {
                for (unit, change) in units.iter().zip(here.iter_mut()) {
                    if let Some(u) = unit {
                        *rows.entry((row, *u)).or_default() += *change * count;
                    }
                    *change = 0.0;
                }
            };
            let mut current = None;
            for (at, owner) in positions.rows_of(shape, *axis).into_iter().enumerate() {
                let Some(owner) = owner else { continue };
                if current.is_some_and(|c| c != owner) {
                    flush(current.unwrap_or_default(), &mut here);
                }
                current = Some(owner);
                let span = at * here.len() * inner..(at + 1) * here.len() * inner;
                let (x, d) = (&x[span.clone()], &d[span]);
                for ((x, d), change) in
                    x.chunks(inner.max(1)).zip(d.chunks(inner.max(1))).zip(here.iter_mut())
                {
                    *change += f64::from(crate::kernels::real::dot(x, d));
                }
            }
            if let Some(row) = current {
                flush(row, &mut here);
            }
        }
        Ok(())
    };
    let power = source.power;
    let mut end = |batches: usize| {
        let mut rows = rows_ref.borrow_mut();
        for ((_, unit), change) in std::mem::take(&mut **rows) {
            sums[unit] += raised(change, power);
        }
        kept.note(batches, || sums.clone());
    };
    let outcome = each_gradient(source, executor, &wanted, skip, 1, &mut each, &mut end);
    kept.write();
    outcome?;
    finite(&sums)?;
    Ok(sums)
}

fn raised(change: f64, power: Power) -> f64 {
    match power {
        Power::Squared => change * change,
        Power::Absolute => change.abs(),
    }
}

/// Running sums over batches for each element of one weight.
#[derive(Default)]
struct Elements {
    slope: Vec<f32>,
    squares: Vec<f32>,
}

fn by_weight(source: &Source<'_>, executor: &Executor, criterion: Criterion) -> Result<Vec<f64>> {
    let members = members(source);
    let wanted: Vec<ValueId> = members.keys().copied().collect();
    let group_of = group_of(source);
    let units = source.coupled.units();
    let mut sums = vec![0f64; units];
    let of_batch = std::cell::RefCell::new(vec![0f64; units]);
    let mut held: BTreeMap<ValueId, Elements> = BTreeMap::new();
    let mut shapes: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
    // The sums of `llm-pruner` are as large as the weights: it begins anew.
    let goes_on = criterion != Criterion::LlmPruner;
    let mut kept = kept(source, criterion, units);
    let (skip, seen) = kept.seen();
    if skip > 0 {
        sums.copy_from_slice(seen);
    }
    let mut batches = skip;
    // Adds `change`, one number an element of weight `v`, to the units on each axis of its groups.
    let spread = |v: ValueId, shape: &[usize], change: &[f32], into: &mut [f64]| {
        for axis in members.get(&v).into_iter().flatten() {
            let inner: usize = shape[axis + 1..].iter().product();
            let Some(on) = source.coupled.on(v, *axis) else { continue };
            let on: Vec<Option<usize>> = on.map(|u| u.filter(|u| source.ranked[group_of[*u]])).collect();
            for (line, change) in change.chunks(inner.max(1)).enumerate() {
                if let Some(u) = on[line % shape[*axis].max(1)] {
                    into[u] += change.iter().map(|c| f64::from(*c)).sum::<f64>();
                }
            }
        }
    };
    let mut each = |_: &Positions, g: &Gradient<'_>, _: f64| -> Result<()> {
        let forward = g.forward.float()?;
        let shape = forward.dims();
        let (w, d) = (elements::<f32>(forward)?, elements::<f32>(&g.grad)?);
        let mut into = of_batch.borrow_mut();
        match (criterion, source.form, source.power) {
            (Criterion::LlmPruner, ..) => {
                let held = held.entry(g.value).or_default();
                held.slope.resize(w.len(), 0.0);
                held.squares.resize(w.len(), 0.0);
                for (((slope, squares), w), d) in
                    held.slope.iter_mut().zip(&mut held.squares).zip(w.iter()).zip(d.iter())
                {
                    *slope += w * d;
                    *squares += (w * d) * (w * d);
                }
                shapes.entry(g.value).or_insert_with(|| shape.to_vec());
            }
            (Criterion::Obd, ..) | (_, Form::Element, Power::Squared) => {
                let change: Vec<f32> = w.iter().zip(d.iter()).map(|(w, d)| (w * d) * (w * d)).collect();
                spread(g.value, shape, &change, &mut into);
            }
            (_, Form::Element, Power::Absolute) => {
                let change: Vec<f32> = w.iter().zip(d.iter()).map(|(w, d)| (w * d).abs()).collect();
                spread(g.value, shape, &change, &mut into);
            }
            _ => {
                let change: Vec<f32> = w.iter().zip(d.iter()).map(|(w, d)| w * d).collect();
                spread(g.value, shape, &change, &mut into);
            }
        }
        Ok(())
    };
    let whole = criterion == Criterion::Taylor && source.form == Form::Group;
    let power = source.power;
    let mut end = |done: usize| {
        batches = done;
        for (sum, change) in sums.iter_mut().zip(of_batch.borrow_mut().iter_mut()) {
            *sum += if whole { raised(*change, power) } else { *change };
            *change = 0.0;
        }
        if goes_on {
            kept.note(done, || sums.clone());
        }
    };
    let copies = if criterion == Criterion::LlmPruner { 3 } else { 1 };
    let outcome = each_gradient(source, executor, &wanted, skip, copies, &mut each, &mut end);
    kept.write();
    outcome?;
    let (seen, batches) = (batches, batches.max(1) as f64);
    for (v, Elements { slope, squares }) in held {
        let change: Vec<f32> =
            slope.iter().zip(&squares).map(|(s, q)| ((s - 0.5 * q) / batches as f32).abs()).collect();
        spread(v, &shapes[&v], &change, &mut sums);
    }
    if !goes_on {
        kept.note(seen, || sums.clone());
        kept.write();
    }
    if criterion == Criterion::Obd {
        sums.iter_mut().for_each(|s| *s *= 0.5 / batches);
    }
    finite(&sums)?;
    Ok(sums)
}
