//! Calibration: runs the float graph on the data and notes the range of each wanted value. Memory is
//! one range per value and one batch, whatever the number of samples.

use super::ranges::Range;
use crate::error::{Error, Result};
use crate::evaluate::samples::Samples;
use crate::execute::{Executor, Overrides, Seen};
use crate::graph::{Graph, ValueId};
use crate::monitor::Monitor;
use crate::tensor::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Ranges by value, and how many samples (rows of the first input's first axis) were read.
pub(super) struct Calibration {
    pub ranges: BTreeMap<ValueId, Range>,
    pub samples: usize,
}

fn range(value: &Value) -> Result<Option<Range>> {
    let Value::Float(t) = value else { return Ok(None) };
    let flat = t.flatten_all()?.to_dtype(candle_core::DType::F32)?.to_vec1::<f32>()?;
    let mut found = Range::EMPTY;
    let mut finite = true;
    for x in &flat {
        finite &= x.is_finite();
        found.min = found.min.min(*x);
        found.max = found.max.max(*x);
    }
    if !finite {
        return Err(Error::invalid("CALIBRATION-NAN", "calibration met a value that is not finite"));
    }
    Ok((!flat.is_empty()).then_some(found))
}

/// Reads at most `limit` samples (0: all). Fails where the data is empty or a value is not finite.
pub(super) fn ranges(
    graph: &Graph,
    wanted: &BTreeSet<ValueId>,
    data: &Samples,
    limit: usize,
    monitor: &dyn Monitor,
) -> Result<Calibration> {
    let executor = Executor::new(graph)?;
    let mut found: BTreeMap<ValueId, Range> = BTreeMap::new();
    let mut samples = 0usize;
    let none = Overrides::new();
    monitor.phase("quantize: calibrate", (limit > 0).then_some(limit as u64));
    for batch in data.batches(0) {
        monitor.check()?;
        let batch = batch?;
        let mut note = |v: ValueId, value: &Value| -> Result<()> {
            if wanted.contains(&v)
                && let Some(r) =
                    range(value).map_err(|e| e.field(format!("value \"{}\"", graph.value_name(v))))?
            {
                let entry = found.entry(v).or_insert(Range::EMPTY);
                *entry = entry.union(r);
            }
            Ok(())
        };
        for (name, tensor) in &batch.inputs {
            if let Some(v) = graph.find(name) {
                note(v, &Value::load(tensor)?)?;
            }
        }
        executor.run_tapped(&batch.inputs, &none, Seen::Of(&|v| wanted.contains(&v)), &mut note)?;
        samples += batch.inputs.first().and_then(|(_, t)| t.shape().first().copied()).unwrap_or(1);
        monitor.progress(samples as u64);
        if limit > 0 && samples >= limit {
            break;
        }
    }
    if samples == 0 {
        return Err(
            Error::invalid("CALIBRATION-EMPTY", "the calibration data is empty").field("data.calibration")
        );
    }
    Ok(Calibration { ranges: found, samples })
}
