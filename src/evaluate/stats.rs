//! Statistics of measurements. Plain numbers enter; intervals, p-values and detectable effects leave.
//! Every random choice comes from a seed. Knows no model and no measurement format beyond
//! [`Interval`] and [`Latency`].
//!
//! Definitions and their sources stand at each function; the normal quantiles are those of a
//! two-sided 5 % test with 80 % power.

mod bootstrap;
mod paired;

pub use bootstrap::{MIN_SAMPLES, RatioTest, median_ci, ratio_of_medians, ratio_of_medians_ci};
pub use paired::{
    Discordant, MIN_DISCORDANT, mcnemar_exact, minimum_detectable_difference, non_inferiority_p,
    paired_difference_ci, wilson,
};

use crate::evaluate::measurement::{Interval, Latency};

/// 97.5 % quantile of the standard normal distribution.
pub(crate) const Z_975: f64 = 1.959_963_984_540_054;
/// 80 % quantile of the standard normal distribution.
pub(crate) const Z_80: f64 = 0.841_621_233_572_914_3;

/// Fewest samples for which an upper bound of the 99th percentile exists at 95 % confidence
/// (0.99^n <= 0.05).
pub const MIN_SAMPLES_P99: usize = 299;

/// The `q` quantile (0 to 1) by linear interpolation between order statistics (type 7 of Hyndman and
/// Fan 1996). NaN samples are ignored; NaN where nothing is left.
pub fn quantile(samples: &[f64], q: f64) -> f64 {
    quantile_sorted(&sorted(samples), q)
}

/// The median; see [`quantile`].
pub fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut out: Vec<f64> = samples.iter().copied().filter(|v| !v.is_nan()).collect();
    out.sort_by(f64::total_cmp);
    out
}

fn quantile_sorted(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = q.clamp(0.0, 1.0) * last as f64;
    let low = (at.floor() as usize).min(last);
    let part = at - low as f64;
    let high = (low + 1).min(last);
    if part == 0.0 { sorted[low] } else { sorted[low] + part * (sorted[high] - sorted[low]) }
}

/// The latency record of raw samples in milliseconds, in the order taken. `p99` stays empty below
/// [`MIN_SAMPLES_P99`] samples. None where no finite sample is left.
pub fn latency(samples: Vec<f64>, seed: u64) -> Option<Latency> {
    let samples: Vec<f64> = samples.into_iter().filter(|v| v.is_finite()).collect();
    if samples.is_empty() {
        return None;
    }
    let order = sorted(&samples);
    let n = samples.len();
    Some(Latency {
        p50: quantile_sorted(&order, 0.5),
        p90: quantile_sorted(&order, 0.9),
        p99: (n >= MIN_SAMPLES_P99).then(|| quantile_sorted(&order, 0.99)),
        mean: order.iter().sum::<f64>() / n as f64,
        ci95: median_ci(&samples, seed),
        n,
        samples,
    })
}

/// Holm's step-down adjustment (Holm 1979): adjusted p-values in the order given, so that rejecting
/// those at most alpha keeps the family-wise error at alpha whatever the dependence. NaN counts as 1.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let m = p.len();
    let value = |i: usize| if p[i].is_nan() { 1.0 } else { p[i] };
    let mut order: Vec<usize> = (0..m).collect();
    order.sort_by(|a, b| value(*a).total_cmp(&value(*b)));
    let mut out = vec![1.0; m];
    let mut floor: f64 = 0.0;
    for (rank, &i) in order.iter().enumerate() {
        floor = floor.max(((m - rank) as f64 * value(i)).min(1.0));
        out[i] = floor;
    }
    out
}

/// Whether `value` lies inside the interval, ends included.
pub fn contains(interval: &Interval, value: f64) -> bool {
    interval.low <= value && value <= interval.high
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate_and_ignore_nan() {
        let x = [4.0, 1.0, f64::NAN, 3.0, 2.0];
        assert_eq!(quantile(&x, 0.0), 1.0);
        assert_eq!(quantile(&x, 0.5), 2.5);
        assert_eq!(quantile(&x, 0.9), 3.7);
        assert_eq!(quantile(&x, 1.0), 4.0);
        assert!(quantile(&[], 0.5).is_nan());
        assert_eq!(quantile(&[7.0], 0.3), 7.0);
    }

    #[test]
    fn holm_matches_hand_values() {
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.005]);
        let expected = [0.03, 0.06, 0.06, 0.02];
        for (a, e) in adjusted.iter().zip(expected) {
            assert!((a - e).abs() < 1e-12, "{adjusted:?}");
        }
        assert_eq!(holm(&[0.9, f64::NAN]), vec![1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }

    #[test]
    fn p99_needs_299_samples() {
        let ramp = |n: usize| (0..n).map(|i| i as f64).collect::<Vec<_>>();
        assert_eq!(latency(ramp(298), 1).unwrap().p99, None);
        assert!(latency(ramp(299), 1).unwrap().p99.is_some());
        assert!(latency(vec![f64::NAN], 1).is_none());
        let one = latency(vec![3.0], 1).unwrap();
        assert_eq!((one.p50, one.ci95.low, one.ci95.high, one.n), (3.0, 3.0, 3.0, 1));
    }

    /// 20 variants without an effect, 1,000 times: any rejection is a family-wise error.
    #[test]
    fn holm_keeps_the_family_wise_error_at_five_percent() {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(12);
        let mut errors = 0;
        for _ in 0..1000 {
            let p: Vec<f64> = (0..20).map(|_| rng.random()).collect();
            errors += usize::from(holm(&p).iter().any(|p| *p <= 0.05));
        }
        // 99.9 % binomial bound of 1,000 tries at 5 %.
        assert!((25..=72).contains(&errors), "{errors} families of 1000 rejected");
    }
}
