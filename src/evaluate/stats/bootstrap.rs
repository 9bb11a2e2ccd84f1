//! Intervals of medians and of their ratio by circular block bootstrap. Samples in the order taken
//! enter: consecutive timings are not independent (drift, frequency steps), so blocks are drawn, their
//! length chosen from the lag-1 correlation.

use super::{Z_80, Z_975, median, quantile_sorted, sorted};
use crate::evaluate::measurement::Interval;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Fewest samples for which a bootstrap is made. Below, intervals span all samples and no test is made.
pub const MIN_SAMPLES: usize = 8;

const RESAMPLES: usize = 2000;

/// 95 % interval of the median by percentile bootstrap, widened for the number of blocks. Below
/// [`MIN_SAMPLES`] the range of the samples. NaN ends where there is no sample.
pub fn median_ci(samples: &[f64], seed: u64) -> Interval {
    let clean: Vec<f64> = samples.iter().copied().filter(|v| !v.is_nan()).collect();
    if clean.len() < MIN_SAMPLES {
        let order = sorted(&clean);
        return Interval {
            low: order.first().copied().unwrap_or(f64::NAN),
            high: order.last().copied().unwrap_or(f64::NAN),
        };
    }
    let block = block_length(&clean);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = vec![0.0; clean.len()];
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            positions(&mut rng, clean.len(), block, |to, from| draw[to] = clean[from]);
            median_in_place(&mut draw)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let middle = median(&clean);
    let blocks = Blocks::new(clean.len(), block, 1);
    let wider = blocks.inflation * blocks.t.inverse_cdf(0.975) / Z_975;
    Interval {
        low: middle - wider * (middle - quantile_sorted(&medians, 0.025)),
        high: middle + wider * (quantile_sorted(&medians, 0.975) - middle),
    }
}

/// A ratio of medians with everything said about it.
#[derive(Debug, Clone, PartialEq)]
pub struct RatioTest {
    /// Median of `a` over median of `b`.
    pub ratio: f64,
    /// 95 % interval of the ratio.
    pub ci95: Interval,
    /// Two-sided p-value against a ratio of one; none below [`MIN_SAMPLES`].
    pub p_value: Option<f64>,
    /// Smallest relative change that these samples show with 80 % power at 5 %.
    pub minimum_detectable: Option<f64>,
}

/// Median of `a` over median of `b`. Series of one length are resampled at the same places, because
/// interleaved runs share what disturbs them; others independently. None where a series has no sample
/// or a median is not positive.
pub fn ratio_of_medians(a: &[f64], b: &[f64], seed: u64) -> Option<RatioTest> {
    let usable = |s: &[f64]| !s.is_empty() && s.iter().all(|v| v.is_finite()) && median(s) > 0.0;
    if !usable(a) || !usable(b) {
        return None;
    }
    let ratio = median(a) / median(b);
    if a.len().min(b.len()) < MIN_SAMPLES {
        let (a, b) = (sorted(a), sorted(b));
        let (low, high) = (a[0] / b[b.len() - 1], a[a.len() - 1] / b[0]);
        return Some(RatioTest {
            ratio,
            ci95: Interval { low, high },
            p_value: None,
            minimum_detectable: None,
        });
    }
    let block = block_length(a).max(block_length(b));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut draw_a, mut draw_b) = (vec![0.0; a.len()], vec![0.0; b.len()]);
    let logs: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            if a.len() == b.len() {
                positions(&mut rng, a.len(), block, |to, from| {
                    draw_a[to] = a[from];
                    draw_b[to] = b[from];
                });
            } else {
                positions(&mut rng, a.len(), block, |to, from| draw_a[to] = a[from]);
                positions(&mut rng, b.len(), block, |to, from| draw_b[to] = b[from]);
            }
            (median_in_place(&mut draw_a) / median_in_place(&mut draw_b)).ln()
        })
        .collect();
    let mean = logs.iter().sum::<f64>() / logs.len() as f64;
    let variance = logs.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (logs.len() - 1) as f64;
    let blocks = Blocks::new(a.len().min(b.len()), block, 2);
    let error = blocks.inflation * variance.sqrt();
    let half = blocks.t.inverse_cdf(0.975) * error;
    let p = match ratio.ln().abs() {
        0.0 => 1.0,
        distance => 2.0 * blocks.t.cdf(-distance / error),
    };
    Some(RatioTest {
        ratio,
        ci95: Interval { low: (ratio.ln() - half).exp(), high: (ratio.ln() + half).exp() },
        p_value: Some(p.min(1.0)),
        minimum_detectable: Some(((Z_975 + Z_80) * error).exp_m1()),
    })
}

/// What few blocks cost: Student's distribution instead of the normal one, and the missing degree of
/// freedom of the spread between blocks.
struct Blocks {
    t: StudentsT,
    inflation: f64,
}

impl Blocks {
    fn new(n: usize, block: usize, series: usize) -> Blocks {
        let blocks = (n as f64 / block as f64).max(2.0);
        let freedom = series as f64 * (blocks - 1.0);
        Blocks {
            t: StudentsT::new(0.0, 1.0, freedom).expect("degrees of freedom are at least one"),
            inflation: (blocks / (blocks - 1.0)).sqrt(),
        }
    }
}

/// 95 % interval of [`ratio_of_medians`]; NaN ends where there is none.
pub fn ratio_of_medians_ci(a: &[f64], b: &[f64], seed: u64) -> Interval {
    ratio_of_medians(a, b, seed).map(|t| t.ci95).unwrap_or(Interval { low: f64::NAN, high: f64::NAN })
}

/// Fills places `0..n` from circular blocks of `block` consecutive places.
fn positions(rng: &mut ChaCha8Rng, n: usize, block: usize, mut put: impl FnMut(usize, usize)) {
    let mut to = 0;
    while to < n {
        let start = rng.random_range(0..n);
        for step in 0..block.min(n - to) {
            put(to, (start + step) % n);
            to += 1;
        }
    }
}

fn median_in_place(values: &mut [f64]) -> f64 {
    let n = values.len();
    let (below, middle, _) = values.select_nth_unstable_by(n / 2, f64::total_cmp);
    let middle = *middle;
    if n % 2 == 1 {
        return middle;
    }
    let lower = below.iter().copied().max_by(f64::total_cmp).unwrap_or(middle);
    (lower + middle) / 2.0
}

/// Block length `2 n^(1/3) (2 r / (1 - r^2))^(2/3)`, `r` the lag-1 correlation: twice what the
/// first-order autoregressive rule of Carlstein 1986 gives, which simulation showed to be too short for
/// medians of fewer than 200 samples. Between 1 and n/4.
fn block_length(samples: &[f64]) -> usize {
    let n = samples.len();
    let m = median(samples);
    let signs: Vec<f64> =
        samples.iter().map(|v| if *v > m { 1.0 } else { f64::from(-i8::from(*v < m)) }).collect();
    let power = signs.iter().map(|s| s * s).sum::<f64>();
    if power == 0.0 {
        return 1;
    }
    // Signs of a Gaussian series correlate by (2 / pi) asin(r).
    let of_signs = signs.windows(2).map(|w| w[0] * w[1]).sum::<f64>() / power;
    let r = (std::f64::consts::FRAC_PI_2 * of_signs).sin().clamp(0.0, 0.95);
    let r = if of_signs > 0.0 { r } else { 0.0 };
    let length = 2.0 * (n as f64).cbrt() * (2.0 * r / (1.0 - r * r)).powf(2.0 / 3.0);
    (length.round() as usize).clamp(1, (n / 4).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::stats::contains;

    /// Log-normal timings about `scale` with correlation `r` between neighbours.
    fn timings(rng: &mut ChaCha8Rng, n: usize, scale: f64, r: f64) -> Vec<f64> {
        let mut gauss = || (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
        let mut state = gauss();
        (0..n)
            .map(|_| {
                state = r * state + (1.0 - r * r).sqrt() * gauss();
                scale * (0.05 * state).exp()
            })
            .collect()
    }

    #[test]
    fn the_interval_of_the_median_covers_it_as_often_as_it_says() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let covered = (0..200)
            .filter(|seed| contains(&median_ci(&timings(&mut rng, 60, 10.0, 0.0), *seed), 10.0))
            .count();
        assert!((180..=200).contains(&covered), "{covered} of 200");
    }

    /// A binary against itself, 200 times: 10 rejections are expected, 18 is the 99 % bound.
    #[test]
    fn a_against_a_is_called_different_no_more_often_than_five_percent() {
        for (r, bound) in [(0.0, 18), (0.5, 22)] {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let rejected = (0..200)
                .filter(|seed| {
                    let a = timings(&mut rng, 80, 10.0, r);
                    let b = timings(&mut rng, 80, 10.0, r);
                    ratio_of_medians(&a, &b, *seed).unwrap().p_value.unwrap() <= 0.05
                })
                .count();
            assert!(rejected <= bound, "correlation {r}: {rejected} of 200");
        }
    }

    #[test]
    fn a_slowdown_of_five_percent_is_found() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut found = 0;
        let mut covered = 0;
        for seed in 0..100 {
            let a = timings(&mut rng, 80, 10.5, 0.0);
            let b = timings(&mut rng, 80, 10.0, 0.0);
            let test = ratio_of_medians(&a, &b, seed).unwrap();
            found += usize::from(test.p_value.unwrap() <= 0.05);
            covered += usize::from(contains(&test.ci95, 1.05));
            assert!((0.01..0.06).contains(&test.minimum_detectable.unwrap()));
        }
        assert!(found >= 90, "found {found}");
        assert!(covered >= 88, "covered {covered}");
    }

    #[test]
    fn few_or_useless_samples_make_no_claim() {
        let test = ratio_of_medians(&[2.0, 2.2], &[1.0, 1.1], 0).unwrap();
        assert_eq!(test.p_value, None);
        assert_eq!(test.ci95, Interval { low: 2.0 / 1.1, high: 2.2 });
        assert!(ratio_of_medians(&[], &[1.0], 0).is_none());
        assert!(ratio_of_medians(&[0.0; 9], &[1.0; 9], 0).is_none());
        let same = ratio_of_medians(&[1.0; 20], &[1.0; 20], 0).unwrap();
        assert_eq!(same.p_value, Some(1.0));
        assert_eq!(median_ci(&[5.0, 1.0], 0), Interval { low: 1.0, high: 5.0 });
    }

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        let samples: Vec<f64> = (0..50).map(|i| ((i * 37) % 50) as f64 + 1.0).collect();
        assert_eq!(median_ci(&samples, 7), median_ci(&samples, 7));
        assert_ne!(median_ci(&samples, 7), median_ci(&samples, 8));
    }
}
