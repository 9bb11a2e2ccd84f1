//! What calibration tells of a value: for the report of a step.

use super::super::Settings;
use super::super::ranges::Range;
use super::{Held, choose};
use crate::tensor::stats::Bin;
use serde::{Deserialize, Serialize};

/// A quantised activation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorReport {
    /// Name of the value.
    pub value: String,
    /// Elements that were seen, padding aside.
    pub elements: u64,
    /// Smallest element.
    pub min: f32,
    /// Largest element.
    pub max: f32,
    /// Lower end of the grid.
    pub low: f32,
    /// Upper end of the grid.
    pub high: f32,
    /// Step of the grid.
    pub scale: f32,
    /// The level that stands for zero.
    pub zero_point: i32,
    /// Part of the elements beyond the ends by more than half a step.
    pub clipped: f64,
    /// Power of the elements over that of the quantisation error, in decibels; none where either is zero.
    pub sqnr_db: Option<f64>,
}

pub(super) fn of(name: &str, held: &Held, range: Range, settings: &Settings) -> TensorReport {
    let levels = settings.levels();
    let grid = range.grid(levels);
    let (low, high) = grid.ends();
    let bins: Vec<Bin> = held.bins.bins().collect();
    let half = f64::from(grid.scale) / 2.0;
    let total = held.bins.total();
    let beyond = |bin: &&Bin| bin.to <= low - half || bin.from >= high + half;
    let clipped: u64 = bins.iter().filter(beyond).map(|b| b.count).sum();
    let power: f64 = bins.iter().map(|b| ((b.from + b.to) / 2.0).powi(2) * b.count as f64).sum();
    let error = choose::squared_error(&bins, range, levels);
    TensorReport {
        value: name.to_string(),
        elements: total,
        min: held.all.min,
        max: held.all.max,
        low: low as f32,
        high: high as f32,
        scale: grid.scale,
        zero_point: grid.zero,
        clipped: clipped as f64 / total.max(1) as f64,
        sqnr_db: (power > 0.0 && error > 0.0).then(|| 10.0 * (power / error).log10()),
    }
}
