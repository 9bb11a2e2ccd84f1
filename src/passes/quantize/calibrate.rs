//! Calibration: runs the float graph on the data and notes what each wanted value holds. Memory is one
//! batch and one histogram a value, whatever the number of samples; a run that was stopped goes on behind its
//! last batch.

mod choose;
mod report;

pub use report::TensorReport;

use super::Settings;
use super::ranges::Range;
use crate::error::{Error, Result};
use crate::evaluate::samples::{Positions, Samples};
use crate::execute::{Executor, Overrides, Seen};
use crate::graph::{Graph, ValueId};
use crate::monitor::Level;
use crate::ops::float::elements;
use crate::passes::Ctx;
use crate::passes::look::{Kept, Look};
use crate::tensor::Value;
use crate::tensor::stats::{SIDE, Uniform};
use std::cell::{Ref, RefCell};
use std::collections::{BTreeMap, BTreeSet};

/// Most memory for histograms; with more values than fit, bins are wider. It follows from the graph alone, so
/// that ranges do not depend on the machine.
const CAP: usize = 256 << 20;
/// Histograms that are copied behind each batch; larger ones only when they are written.
const SMALL: u64 = 4 << 20;

/// Bins on a side of zero of each of `values` histograms.
fn side(values: usize) -> usize {
    let bytes = |side: usize| values.saturating_mul(2 * 8 * side);
    (0..6).map(|halved| SIDE >> halved).find(|side| bytes(*side) <= CAP).unwrap_or(SIDE >> 6)
}

/// Most bytes that the histograms of `values` values take.
fn held_bytes(values: usize) -> u64 {
    (values * 2 * 8 * side(values)) as u64
}

/// Most bytes that a calibration of `values` values takes beside the model: its histograms, and twice as
/// much while they are saved.
pub(super) fn memory(values: usize) -> u64 {
    3 * held_bytes(values)
}

/// What a value was seen to hold, padding aside.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Held {
    /// Smallest and largest element.
    all: Range,
    /// Moving average over batches of the smallest and the largest.
    average: Range,
    bins: Uniform,
}

impl Held {
    fn new(side: usize) -> Held {
        Held { all: Range::EMPTY, average: Range::EMPTY, bins: Uniform::new(side) }
    }

    /// Adds the elements that one batch shows.
    fn add(&mut self, elements: &[f32], averaging: f32) -> Result<()> {
        let (mut seen, mut finite) = (Range::EMPTY, true);
        for x in elements {
            finite &= x.is_finite();
            seen = Range { min: seen.min.min(*x), max: seen.max.max(*x) };
        }
        if !finite {
            return Err(Error::invalid("CALIBRATION-NAN", "calibration met a value that is not finite"));
        }
        if elements.is_empty() {
            return Ok(());
        }
        let toward = |old: f32, new: f32| if old.is_finite() { old + averaging * (new - old) } else { new };
        self.average =
            Range { min: toward(self.average.min, seen.min), max: toward(self.average.max, seen.max) };
        self.all = self.all.union(seen);
        self.bins.add(elements, seen.min, seen.max);
        Ok(())
    }

    fn save(&self, into: &mut Vec<f64>) {
        let ends = [self.all.min, self.all.max, self.average.min, self.average.max];
        into.extend(ends.map(f64::from));
        self.bins.save(into);
    }

    fn load(from: &mut &[f64]) -> Option<Held> {
        let (ends, rest) = from.split_at_checked(4)?;
        *from = rest;
        let range = |at: usize| Range { min: ends[at] as f32, max: ends[at + 1] as f32 };
        Some(Held { all: range(0), average: range(2), bins: Uniform::load(from)? })
    }
}

/// What was seen of each value.
#[derive(Default)]
pub(super) struct Calibration {
    held: BTreeMap<ValueId, Held>,
    /// Rows of the data that were read.
    pub samples: usize,
}

impl Calibration {
    /// The range that the settings choose for a value.
    ///
    /// # Errors
    /// `Invalid` where the data gave it no elements.
    pub(super) fn range(&self, graph: &Graph, v: ValueId, settings: &Settings) -> Result<Range> {
        let held = self.held.get(&v).filter(|h| h.bins.total() > 0).ok_or_else(|| {
            Error::invalid("CALIBRATION-EMPTY", "the calibration data gives a value no elements")
                .field(format!("value \"{}\"", graph.value_name(v)))
                .hint("use samples with at least one element on every axis")
        })?;
        Ok(choose::range(held, settings))
    }

    /// What a grid over `range` does to a value.
    pub(super) fn report(
        &self,
        graph: &Graph,
        v: ValueId,
        range: Range,
        settings: &Settings,
    ) -> Option<TensorReport> {
        self.held.get(&v).map(|held| report::of(graph.value_name(v), held, range, settings))
    }
}

/// Looks at `wanted` on the calibration data.
///
/// # Errors
/// `Usage` without data; `Invalid` for empty data and for values that are not finite; `Stopped` when asked to.
pub(super) fn gather(
    graph: &Graph,
    wanted: &BTreeSet<ValueId>,
    settings: &Settings,
    ctx: &Ctx<'_>,
) -> Result<Calibration> {
    let data = data(ctx)?;
    if data.len() < settings.samples {
        let asked = settings.samples;
        let told = format!("{asked} calibration samples were asked for, the data has {}", data.len());
        ctx.monitor.log(Level::Warning, &told);
    }
    let names: Vec<&str> = wanted.iter().map(|v| graph.value_name(*v)).collect();
    let side = side(wanted.len());
    let mut held: BTreeMap<ValueId, Held> = wanted.iter().map(|v| (*v, Held::new(side))).collect();
    let what = format!(
        "calibration {} {side} {} {}",
        settings.samples,
        settings.averaging,
        crate::save::sha256(names.join("\n").as_bytes())
    );
    let load = |sums: &[f64]| -> Option<BTreeMap<ValueId, Held>> {
        let mut rest = sums;
        let loaded = wanted.iter().map(|v| Some((*v, Held::load(&mut rest)?))).collect::<Option<_>>()?;
        rest.is_empty().then_some(loaded)
    };
    let mut kept = Kept::of(ctx.memo, ctx.monitor, what, |sums| load(sums).is_some());
    let (skip, sums) = kept.seen();
    if let Some(loaded) = load(sums).filter(|_| skip > 0) {
        held = loaded;
    }
    let executor = Executor::new(graph)?;
    let none = Overrides::new();
    let look = Look { data, samples: settings.samples, batch: 0 };
    let last = look.batches();
    let outcome = look.each("quantize: calibrate", ctx.monitor, skip, &mut |i, batch| {
        let positions = Positions::of(batch)?;
        let mut note = |v: ValueId, value: &Value| -> Result<()> {
            ctx.monitor.check()?;
            let Some(held) = held.get_mut(&v) else { return Ok(()) };
            add(held, value, &positions, settings)
                .map_err(|e| e.field(format!("value \"{}\"", graph.value_name(v))))
        };
        for (name, tensor) in &batch.inputs {
            if let Some(v) = graph.find(name).filter(|v| wanted.contains(v)) {
                note(v, &Value::load(tensor)?)?;
            }
        }
        executor.run_tapped(&batch.inputs, &none, Seen::Of(&|v| wanted.contains(&v)), &mut note)?;
        if kept.due() || held_bytes(wanted.len()) < SMALL || i + 1 == last {
            kept.note(i + 1, || {
                let mut sums = Vec::new();
                held.values().for_each(|h| h.save(&mut sums));
                sums
            });
        }
        Ok(())
    });
    kept.write();
    Ok(Calibration { held, samples: outcome? })
}

/// What was seen of one graph's values, for all its variants: a value is looked at once.
#[derive(Default)]
pub(super) struct Known(RefCell<Calibration>);

impl Known {
    /// [`gather`], which passes over the data for values alone that were not seen yet.
    ///
    /// # Errors
    /// Those of [`gather`].
    pub(super) fn gather(
        &self,
        graph: &Graph,
        wanted: &BTreeSet<ValueId>,
        settings: &Settings,
        ctx: &Ctx<'_>,
    ) -> Result<Ref<'_, Calibration>> {
        let seen = |v: &ValueId| self.0.borrow().held.contains_key(v);
        let missing: BTreeSet<ValueId> = wanted.iter().filter(|v| !seen(v)).copied().collect();
        if !missing.is_empty() {
            let found = gather(graph, &missing, settings, ctx)?;
            let mut known = self.0.borrow_mut();
            known.held.extend(found.held);
            known.samples = found.samples;
        }
        Ok(self.0.borrow())
    }
}

/// The data of a run.
pub(super) fn data<'a>(ctx: &Ctx<'a>) -> Result<&'a Samples> {
    let data = ctx.calibration.ok_or_else(|| {
        Error::usage("CALIBRATION", "this quantisation needs calibration data")
            .field("data.calibration")
            .hint("pass --calibration SPEC, or set [data] calibration in the recipe")
    })?;
    match data.len() {
        0 => {
            Err(Error::invalid("CALIBRATION-EMPTY", "the calibration data is empty")
                .field("data.calibration"))
        }
        _ => Ok(data),
    }
}

/// Adds what a batch shows of a value, without its padding.
fn add(held: &mut Held, value: &Value, positions: &Positions, settings: &Settings) -> Result<()> {
    let Value::Float(float) = value else { return Ok(()) };
    let shape = float.dims();
    let x = elements::<f32>(float)?;
    // Where positions lie on the second axis, elements of a position follow behind it.
    let axis = if shape.len() > 2 { 2 } else { shape.len().min(1) };
    let shown = positions.rows_of(shape, axis);
    if shown.iter().all(Option::is_some) {
        return held.add(&x, settings.averaging);
    }
    let inner: usize = shape[axis..].iter().product();
    let real = x.chunks(inner.max(1)).zip(&shown).filter(|(_, row)| row.is_some());
    let real: Vec<f32> = real.flat_map(|(line, _)| line.iter().copied()).collect();
    held.add(&real, settings.averaging)
}

#[cfg(test)]
mod tests;
