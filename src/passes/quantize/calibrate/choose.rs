//! From what a value was seen to hold to the range that its grid covers. What lies outside becomes the
//! nearest end, and what lies inside is told apart the better, the narrower the range is.

use super::super::ranges::{Levels, Range};
use super::super::{Calibrator, Settings};
use super::Held;
use crate::tensor::stats::Bin;

/// Ends that a search tries: each is this part of the one before.
const STEP: f64 = 0.955;
/// How many, so that the last is about a twentieth of the range.
const TRIES: i32 = 65;

/// The range that the settings choose.
pub(super) fn range(held: &Held, settings: &Settings) -> Range {
    let within = |min: f64, max: f64| Range {
        min: (min as f32).clamp(held.all.min, held.all.max),
        max: (max as f32).clamp(held.all.min, held.all.max),
    };
    match settings.calibrator {
        Calibrator::Minmax => held.all,
        Calibrator::MovingAverage => held.average,
        Calibrator::Percentile => {
            let tail = (1.0 - settings.percentile / 100.0) / 2.0;
            within(held.bins.quantile(tail), held.bins.quantile(1.0 - tail))
        }
        Calibrator::Entropy => {
            let bins: Vec<Bin> = held.bins.bins().collect();
            search(held, settings.levels(), &|range| {
                divergence(&bins, held.bins.width(), range, settings.levels())
            })
        }
        Calibrator::Mse => {
            let bins: Vec<Bin> = held.bins.bins().collect();
            search(held, settings.levels(), &|range| squared_error(&bins, range, settings.levels()))
        }
    }
}

/// The range of least cost: both ends drawn in together, then one after the other, twice. Of ranges that
/// cost the same the widest is kept.
fn search(held: &Held, levels: Levels, cost: &dyn Fn(Range) -> f64) -> Range {
    let whole = Range { min: held.all.min.min(0.0), max: held.all.max.max(0.0) };
    let mut best = (cost(whole), whole);
    let attempt = |best: &mut (f64, Range), of: &dyn Fn(Range, f32) -> Range| {
        for k in 1..TRIES {
            let range = of(best.1, STEP.powi(k) as f32);
            let found = cost(range);
            if found < best.0 {
                *best = (found, range);
            }
        }
    };
    attempt(&mut best, &|_, part| Range { min: whole.min * part, max: whole.max * part });
    if !levels.symmetric() && whole.min < 0.0 && whole.max > 0.0 {
        for _ in 0..2 {
            attempt(&mut best, &|now, part| Range { max: whole.max * part, ..now });
            attempt(&mut best, &|now, part| Range { min: whole.min * part, ..now });
        }
    }
    best.1
}

/// Sum over elements of the squared distance from what the grid over `range` makes of them; exact zeros,
/// which are on every grid, are in no bin. Elements of a bin stand at its middle, and where a step is
/// narrower than a bin they lie evenly within a step.
pub(super) fn squared_error(bins: &[Bin], range: Range, levels: Levels) -> f64 {
    let grid = range.grid(levels);
    let (least, most) = grid.ends();
    let step = f64::from(grid.scale);
    let error = |bin: &Bin| {
        let x = (bin.from + bin.to) / 2.0;
        let within = (least..=most).contains(&x);
        let squared = match within && step < bin.to - bin.from {
            true => step * step / 12.0,
            false => (x - grid.value(grid.level(x))).powi(2),
        };
        squared * bin.count as f64
    };
    bins.iter().map(error).sum()
}

/// Kullback-Leibler divergence of what the grid over `range` tells of the elements from the elements: P
/// holds those within the range, and at its ends those beyond; Q those within, spread evenly over the bins of
/// each level (S. Migacz, 8-bit inference with TensorRT, GTC 2017). A range of fewer bins than levels tells
/// nothing and costs infinity.
fn divergence(bins: &[Bin], width: f64, range: Range, levels: Levels) -> f64 {
    let grid = range.grid(levels);
    let (least, most) = grid.ends();
    if most - least < width * levels.count() as f64 {
        return f64::INFINITY;
    }
    let middle = |bin: &Bin| (bin.from + bin.to) / 2.0;
    let from = bins.partition_point(|bin| middle(bin) < least);
    let until = bins.partition_point(|bin| middle(bin) <= most);
    let count = |bins: &[Bin]| bins.iter().map(|b| b.count as f64).sum::<f64>();
    let inside = &bins[from..until.max(from)];
    let (below, within, above) = (count(&bins[..from]), count(inside), count(&bins[until.max(from)..]));
    if inside.is_empty() {
        return f64::INFINITY;
    }
    let all = below + within + above;
    let (mut sum, mut at) = (0.0, 0);
    for of_level in inside.chunk_by(|a, b| grid.level(middle(a)) == grid.level(middle(b))) {
        let q = count(of_level) / of_level.len() as f64 / within;
        for bin in of_level {
            let mut p = bin.count as f64;
            p += if at == 0 { below } else { 0.0 };
            at += 1;
            p += if at == inside.len() { above } else { 0.0 };
            sum += p / all * (p / all / q).ln();
        }
    }
    sum
}
