//! Elements counted by sign, exponent and the first bits of the mantissa: one increment an element, no
//! range to know beforehand. A histogram over a range is made of them at the end.

use serde::{Deserialize, Serialize};

/// Bins of a histogram; odd, so that zero lies in the middle of one.
pub const BINS: usize = 65;
/// Bits of the mantissa that tell buckets apart: a bucket is at most 1/32 of its values wide.
const MANTISSA: u32 = 5;
const SHIFT: u32 = 23 - MANTISSA;
const HALF: usize = 1 << (8 + MANTISSA);
/// Part of the elements that the range of a histogram holds at least.
const HELD: f64 = 0.9995;
/// Outliers that reach no farther than this times the range of the others are within the range.
const NEAR: f64 = 1.5;

/// Elements over equal bins from `-range` to `range`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Upper end; the lower end is its negative. 0 where all elements are zero.
    pub range: f64,
    /// Elements of each bin, lowest first.
    pub counts: Vec<u64>,
    /// Elements below the range.
    pub below: u64,
    /// Elements above the range.
    pub above: u64,
}

impl Histogram {
    /// All elements.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.below + self.above
    }
}

pub(super) struct Buckets(Vec<u64>);

impl Buckets {
    pub(super) fn new() -> Buckets {
        Buckets(vec![0; 2 * HALF])
    }

    pub(super) fn add(&mut self, piece: &[f32]) {
        for x in piece {
            // The index is below 2^14 by the shift.
            if let Some(count) = self.0.get_mut((x.to_bits() >> SHIFT) as usize) {
                *count += 1;
            }
        }
    }

    /// Buckets of magnitudes of finite elements, ascending: (least magnitude, least of the next, count
    /// of positive, count of negative elements).
    fn magnitudes(&self) -> impl DoubleEndedIterator<Item = (f64, f64, u64, u64)> + '_ {
        let edge = |i: usize| f64::from(f32::from_bits((i as u32) << SHIFT));
        // The last exponent is that of infinities and NaN.
        let finite = HALF - (1 << MANTISSA);
        (0..finite).filter_map(move |i| {
            let (plus, minus) = (self.0.get(i)?, self.0.get(i + HALF)?);
            let end = if i + 1 == finite { f64::from(f32::MAX) } else { edge(i + 1) };
            (plus + minus > 0).then_some((edge(i), end, *plus, *minus))
        })
    }

    /// The magnitude below which a part `q` of the finite elements lies, interpolated within a bucket;
    /// 0 where there are none.
    pub(super) fn quantile(&self, q: f64) -> f64 {
        let total: u64 = self.magnitudes().map(|(_, _, p, m)| p + m).sum();
        let wanted = q * total as f64;
        let mut before = 0.0;
        for (lo, hi, plus, minus) in self.magnitudes() {
            let here = (plus + minus) as f64;
            if before + here >= wanted {
                return lo + (hi - lo) * ((wanted - before) / here).clamp(0.0, 1.0);
            }
            before += here;
        }
        0.0
    }

    /// Elements by the exponent of their magnitude, ascending; zeros and denormals are left out.
    pub(super) fn exponents(&self) -> Vec<(i32, u64)> {
        let mut out: Vec<(i32, u64)> = Vec::new();
        for (lo, _, plus, minus) in self.magnitudes().filter(|(lo, ..)| *lo >= f64::from(f32::MIN_POSITIVE)) {
            let exponent = lo.log2().floor() as i32;
            match out.last_mut().filter(|(e, _)| *e == exponent) {
                Some((_, count)) => *count += plus + minus,
                None => out.push((exponent, plus + minus)),
            }
        }
        out
    }

    /// The histogram over the range of nearly all elements, or of all where none lies far outside.
    pub(super) fn histogram(&self, absmax: f64) -> Histogram {
        let range = {
            let held = self.quantile(HELD);
            let edge = self.magnitudes().map(|(_, hi, ..)| hi).find(|hi| *hi >= held).unwrap_or(absmax);
            if absmax <= NEAR * edge { absmax } else { edge }
        };
        let mut bins = [0f64; BINS];
        let (mut below, mut above) = (0u64, 0u64);
        let mut total = 0u64;
        for (lo, hi, plus, minus) in self.magnitudes() {
            if lo > range {
                above += plus;
                below += minus;
                continue;
            }
            total += plus + minus;
            // Zero and what is next to it is a point; the last bucket ends at the range.
            let hi = if lo == 0.0 { 0.0 } else { hi.min(range).max(lo) };
            spread(&mut bins, range, lo, hi, plus as f64);
            spread(&mut bins, range, -hi, -lo, minus as f64);
        }
        // Whole elements in each bin, none lost: round the running sum.
        let (mut sum, mut told) = (0.0, 0u64);
        let mut counts: Vec<u64> = bins
            .iter()
            .map(|b| {
                sum += b;
                let upto = (sum.round() as u64).min(total);
                let here = upto.saturating_sub(told);
                told += here;
                here
            })
            .collect();
        if let Some(last) = counts.last_mut() {
            *last += total - told;
        }
        Histogram { range, counts, below, above }
    }
}

/// Adds `count` elements that lie evenly between `lo` and `hi` to the bins of `-range..range`.
fn spread(bins: &mut [f64; BINS], range: f64, lo: f64, hi: f64, count: f64) {
    if count == 0.0 {
        return;
    }
    let place = |x: f64| if range > 0.0 { (x / range + 1.0) * 0.5 * BINS as f64 } else { BINS as f64 / 2.0 };
    let (from, to) = (place(lo), place(hi));
    let clamp = |p: f64| (p.max(0.0) as usize).min(BINS - 1);
    if to - from < 1e-9 {
        if let Some(bin) = bins.get_mut(clamp(from)) {
            *bin += count;
        }
        return;
    }
    for (i, bin) in bins.iter_mut().enumerate().take(clamp(to) + 1).skip(clamp(from)) {
        let overlap = (to.min(i as f64 + 1.0) - from.max(i as f64)).max(0.0);
        *bin += count * overlap / (to - from);
    }
}
