//! Statistics of one tensor in one pass, piece by piece. A tensor enters; counts, moments, a histogram
//! and the sizes of its channels leave. Memory is bounded whatever the size of the tensor.

mod buckets;
mod channels;
mod uniform;

pub use buckets::{BINS, Histogram};
pub use channels::{Channels, OUTLIER};
pub use uniform::{Bin, SIDE, Uniform};

use super::{DType, Tensor};
use crate::error::Result;
use buckets::Buckets;
use serde::{Deserialize, Serialize};

/// What one pass over the elements tells.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Finite elements.
    pub count: u64,
    /// Smallest finite element.
    pub min: f64,
    /// Largest finite element.
    pub max: f64,
    /// Mean of the finite elements.
    pub mean: f64,
    /// Population variance of the finite elements (Chan, Golub and LeVeque 1979, merged by pieces).
    pub variance: f64,
    /// Exact zeros.
    pub zeros: u64,
    /// NaN elements.
    pub nans: u64,
    /// Infinite elements.
    pub infinities: u64,
    /// Elements below the smallest normal number of the stored type, zeros excluded.
    pub denormals: u64,
}

impl Stats {
    /// Statistics of a numeric tensor; wider types are looked at as `f32`.
    pub fn of(tensor: &Tensor) -> Result<Stats> {
        let (mut stats, normal) = (Stats::default(), smallest_normal(tensor.dtype()));
        tensor.for_each_piece(&mut |_, piece| {
            stats.piece(piece, normal);
            Ok(())
        })?;
        Ok(stats)
    }

    /// Standard deviation.
    pub fn std(&self) -> f64 {
        self.variance.sqrt()
    }
    /// Largest magnitude of a finite element.
    pub fn absmax(&self) -> f64 {
        self.min.abs().max(self.max.abs())
    }

    /// Folds a piece in.
    fn piece(&mut self, piece: &[f32], normal: f32) {
        let (mut count, mut nans, mut zeros, mut small) = (0u64, 0u64, 0u64, 0u64);
        let (mut min, mut max, mut sum) = (f32::INFINITY, f32::NEG_INFINITY, 0f64);
        for &x in piece {
            let finite = x.is_finite();
            count += u64::from(finite);
            nans += u64::from(x.is_nan());
            zeros += u64::from(x == 0.0);
            small += u64::from(x.abs() < normal);
            min = if finite && x < min { x } else { min };
            max = if finite && x > max { x } else { max };
            sum += if finite { f64::from(x) } else { 0.0 };
        }
        self.nans += nans;
        self.infinities += piece.len() as u64 - count - nans;
        self.zeros += zeros;
        self.denormals += small - zeros;
        if count == 0 {
            return;
        }
        let mean = sum / count as f64;
        let squares: f64 = piece
            .iter()
            .map(|&x| if x.is_finite() { (f64::from(x) - mean) * (f64::from(x) - mean) } else { 0.0 })
            .sum();
        let (had, has) = (self.count as f64, count as f64);
        let (all, d) = (had + has, mean - self.mean);
        self.variance = (self.variance * had + squares + d * d * had * has / all) / all;
        self.mean += d * has / all;
        let first = self.count == 0;
        self.min = if first { f64::from(min) } else { self.min.min(f64::from(min)) };
        self.max = if first { f64::from(max) } else { self.max.max(f64::from(max)) };
        self.count += count;
    }
}

/// Smallest normal number of a type, as `f32`; zero for types without denormals.
fn smallest_normal(dtype: DType) -> f32 {
    match dtype {
        DType::F16 => half::f16::MIN_POSITIVE.to_f32(),
        DType::F32 | DType::BF16 => f32::MIN_POSITIVE,
        // What `f32` cannot hold has become zero or a denormal of it.
        DType::F64 => f32::MIN_POSITIVE,
        _ => 0.0,
    }
}

/// Everything that one pass tells of a weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Counts and moments.
    pub stats: Stats,
    /// Median of the magnitudes of finite elements, to 1/32 of itself.
    pub median_abs: f64,
    /// 99th percentile of the magnitudes, likewise.
    pub p99_abs: f64,
    /// 99.9th percentile of the magnitudes, likewise.
    pub p999_abs: f64,
    /// Elements over their range.
    pub histogram: Histogram,
    /// Magnitudes by powers of two: (exponent `e`, elements with `2^e <= |x| < 2^(e+1)`), ascending.
    /// Zeros and denormals are left out.
    pub exponents: Vec<(i32, u64)>,
    /// Output channels, where the tensor has them.
    pub channels: Option<Channels>,
}

impl Distribution {
    /// One pass over a numeric tensor. `axis` is that of its output channels. `check` is asked before
    /// every piece whether to stop.
    ///
    /// # Errors
    /// Those of reading and of `check`; `Unsupported` for types that are no numbers.
    pub fn of(tensor: &Tensor, axis: Option<usize>, check: &dyn Fn() -> Result<()>) -> Result<Distribution> {
        let (mut stats, normal) = (Stats::default(), smallest_normal(tensor.dtype()));
        let mut buckets = Buckets::new();
        let mut channels = axis.and_then(|a| channels::Gather::new(tensor.shape(), a));
        tensor.for_each_piece(&mut |at, piece| {
            check()?;
            stats.piece(piece, normal);
            buckets.add(piece);
            if let Some(channels) = channels.as_mut() {
                channels.add(at, piece);
            }
            Ok(())
        })?;
        // Interpolation ends at the end of the last bucket, the elements before.
        let within = |q: f64| buckets.quantile(q).min(stats.absmax());
        Ok(Distribution {
            median_abs: within(0.5),
            p99_abs: within(0.99),
            p999_abs: within(0.999),
            histogram: buckets.histogram(stats.absmax()),
            exponents: buckets.exponents(),
            channels: channels.map(channels::Gather::finish),
            stats,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    fn go(v: &[f32]) -> Distribution {
        let t = Tensor::from_vec(vec![v.len()], v.to_vec()).unwrap();
        Distribution::of(&t, None, &|| Ok(())).unwrap()
    }

    #[test]
    fn moments_equal_those_of_two_passes_over_several_pieces() {
        let n = 200_000;
        let v: Vec<f32> = (0..n).map(|i| 1000.0 + ((i * 7919) % 10_007) as f32 / 10_007.0).collect();
        let mean = v.iter().map(|x| f64::from(*x)).sum::<f64>() / n as f64;
        let variance = v.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n as f64;
        let s = go(&v).stats;
        assert!((s.mean - mean).abs() < 1e-9 && (s.variance - variance).abs() < 1e-9, "{s:?}");
        assert_eq!((s.count, s.zeros, s.nans), (n as u64, 0, 0));
        let (min, max) = v.iter().fold((f32::MAX, f32::MIN), |(a, b), x| (a.min(*x), b.max(*x)));
        assert_eq!((s.min, s.max), (f64::from(min), f64::from(max)));
    }

    #[test]
    fn odd_elements_are_counted_apart() {
        let d = go(&[0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40, -3.0, 2.0]);
        let s = d.stats;
        assert_eq!((s.count, s.zeros, s.nans, s.infinities, s.denormals), (5, 2, 1, 2, 1));
        assert_eq!((s.min, s.max, s.absmax()), (-3.0, 2.0, 3.0));
        assert_eq!(d.exponents, [(1, 2)]);
        assert_eq!(d.histogram.total(), 5);
        let halves = Tensor::from_vec(vec![2], vec![f16::from_f32(1e-6), f16::from_f32(1.0)]).unwrap();
        assert_eq!(Stats::of(&halves).unwrap().denormals, 1, "1e-6 is denormal as f16");
        assert_eq!(go(&[]).stats.count, 0);
        assert_eq!(go(&[f32::NAN]).histogram.total(), 0);
    }

    #[test]
    fn quantiles_and_the_histogram_are_close_to_sorting() {
        let n = 100_001u64;
        let mut v: Vec<f32> = (0..n).map(|i| (i as f32 / n as f32 - 0.5) * 4.0).collect();
        v.push(500.0);
        let d = go(&v);
        let mut sorted: Vec<f64> = v.iter().map(|x| f64::from(x.abs())).collect();
        sorted.sort_by(f64::total_cmp);
        for (q, found) in [(0.5, d.median_abs), (0.99, d.p99_abs), (0.999, d.p999_abs)] {
            let exact = sorted[(q * n as f64) as usize];
            assert!((found / exact - 1.0).abs() < 1.0 / 32.0, "{q}: {found} for {exact}");
        }
        let h = &d.histogram;
        assert_eq!((h.counts.len(), h.total()), (BINS, n + 1));
        assert_eq!(h.above, 1, "the outlier lies outside the range: {h:?}");
        assert!(h.range < 3.0 && h.range >= 2.0, "{}", h.range);
        let width = 2.0 * h.range / BINS as f64;
        for (i, count) in h.counts.iter().enumerate() {
            let (lo, hi) = (i as f64 * width - h.range, (i + 1) as f64 * width - h.range);
            let exact = v.iter().filter(|x| f64::from(**x) >= lo && f64::from(**x) < hi).count() as f64;
            assert!(
                (*count as f64 - exact).abs() < 0.6 * n as f64 / BINS as f64,
                "bin {i}: {count} for {exact}"
            );
        }
    }

    #[test]
    fn constant_and_zero_tensors_have_one_place() {
        assert_eq!(go(&[0.0; 9]).histogram.counts[BINS / 2], 9);
        let d = go(&[2.0; 10]);
        assert_eq!((d.histogram.total(), d.histogram.counts[BINS - 1]), (10, 10));
        assert_eq!(d.stats.variance, 0.0);
    }
}
