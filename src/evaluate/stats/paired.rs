//! Tests and intervals of proportions, single and paired. Counts and per-item outcomes enter.

use super::{Z_80, Z_975};
use crate::evaluate::measurement::Interval;
use statrs::distribution::{Binomial, ContinuousCDF, DiscreteCDF, Normal};

/// Fewest discordant items with which the exact test can reach 5 % (2 * 0.5^6 = 0.031).
pub const MIN_DISCORDANT: u64 = 6;

/// Items on which two classifiers differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Discordant {
    /// Right in the first, wrong in the second.
    pub first_only: u64,
    /// Wrong in the first, right in the second.
    pub second_only: u64,
    /// Items in all.
    pub n: u64,
}

impl Discordant {
    /// Counts two outcome lists of the same items in the same order; none where the lengths differ or
    /// nothing is there.
    pub fn count(first: &[bool], second: &[bool]) -> Option<Discordant> {
        if first.len() != second.len() || first.is_empty() {
            return None;
        }
        let pairs = || first.iter().zip(second);
        Some(Discordant {
            first_only: pairs().filter(|(a, b)| **a && !**b).count() as u64,
            second_only: pairs().filter(|(a, b)| !**a && **b).count() as u64,
            n: first.len() as u64,
        })
    }

    /// Accuracy of the first minus accuracy of the second.
    pub fn difference(&self) -> f64 {
        (self.first_only as f64 - self.second_only as f64) / self.n as f64
    }

    /// Share of items on which they differ.
    pub fn rate(&self) -> f64 {
        (self.first_only + self.second_only) as f64 / self.n as f64
    }
}

/// Two-sided exact p-value of McNemar's test (McNemar 1947, binomial form) for `b` and `c` discordant
/// items of either kind; 1 where there are none.
pub fn mcnemar_exact(b: u64, c: u64) -> f64 {
    let n = b + c;
    if n == 0 {
        return 1.0;
    }
    match Binomial::new(0.5, n) {
        Ok(binomial) => (2.0 * binomial.cdf(b.min(c))).min(1.0),
        Err(_) => 1.0,
    }
}

/// Score interval (95 %) of a difference of paired proportions, first minus second (Tango 1998). Keeps
/// its coverage at small and at zero counts, where the Wald interval does not.
pub fn paired_difference_ci(d: &Discordant) -> Interval {
    if d.n == 0 {
        return Interval { low: -1.0, high: 1.0 };
    }
    let score = |delta: f64| tango_score(d, delta);
    // The score falls with delta: bisect for z = +1.96 below the estimate and -1.96 above it.
    let solve = |mut low: f64, mut high: f64, target: f64| {
        for _ in 0..100 {
            let middle = 0.5 * (low + high);
            let value = score(middle);
            if value.is_nan() || value < target {
                high = middle;
            } else {
                low = middle;
            }
        }
        0.5 * (low + high)
    };
    let estimate = d.difference();
    Interval { low: solve(-1.0, estimate, Z_975), high: solve(estimate, 1.0, -Z_975) }
}

/// Tango's score of the hypothesis that the first minus the second is `delta`; standard normal under it.
fn tango_score(d: &Discordant, delta: f64) -> f64 {
    let (b, c, n) = (d.first_only as f64, d.second_only as f64, d.n as f64);
    let linear = -b - c + (2.0 * n - b + c) * delta;
    let constant = -c * delta * (1.0 - delta);
    let q = ((linear * linear - 8.0 * n * constant).max(0.0).sqrt() - linear) / (4.0 * n);
    let variance = n * (2.0 * q + delta * (1.0 - delta));
    match b - c - n * delta {
        0.0 => 0.0,
        top if variance <= 0.0 => top.signum() * f64::INFINITY,
        top => top / variance.sqrt(),
    }
}

/// One-sided p-value of the hypothesis that the first is worse than the second by `margin` or more
/// (absolute). At most 0.025 exactly where the interval of [`paired_difference_ci`] lies above the
/// negative margin.
pub fn non_inferiority_p(d: &Discordant, margin: f64) -> f64 {
    if d.n == 0 {
        return 1.0;
    }
    Normal::standard().sf(tango_score(d, -margin.clamp(0.0, 1.0)))
}

/// Score interval (95 %) of the proportion `k / n` (Wilson 1927); the whole range where `n` is 0.
pub fn wilson(k: u64, n: u64) -> Interval {
    if n == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let (n, p) = (n as f64, k.min(n) as f64 / n as f64);
    let z2 = Z_975 * Z_975;
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z_975 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    Interval { low: (centre - half).max(0.0), high: (centre + half).min(1.0) }
}

/// Smallest accuracy difference that McNemar's test shows with 80 % power at 5 % among `n` items of
/// which a share `discordant` differs (Connor 1987), never below what [`MIN_DISCORDANT`] items make.
/// 1 where `n` is 0.
pub fn minimum_detectable_difference(discordant: f64, n: u64) -> f64 {
    if n == 0 {
        return 1.0;
    }
    let n = n as f64;
    let share = discordant.clamp(0.0, 1.0).max(MIN_DISCORDANT as f64 / n);
    let mut d: f64 = 0.0;
    for _ in 0..50 {
        d = (Z_975 * share.sqrt() + Z_80 * (share - d * d).max(0.0).sqrt()) / n.sqrt();
        d = d.min(share);
    }
    d.max(MIN_DISCORDANT as f64 / n).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64, tolerance: f64) {
        assert!((a - b).abs() <= tolerance, "{a} is not {b}");
    }

    #[test]
    fn mcnemar_matches_hand_values() {
        assert_eq!(mcnemar_exact(0, 0), 1.0);
        near(mcnemar_exact(1, 0), 1.0, 1e-12);
        near(mcnemar_exact(5, 0), 0.0625, 1e-12);
        near(mcnemar_exact(6, 0), 0.03125, 1e-12);
        near(mcnemar_exact(1, 9), 2.0 * 11.0 / 1024.0, 1e-12);
        near(mcnemar_exact(500, 500), 1.0, 1e-9);
        near(mcnemar_exact(460, 540), 0.0124, 3e-4);
        assert!(mcnemar_exact(2_000_000, 1_000_000) < 1e-12);
    }

    #[test]
    fn wilson_matches_published_values() {
        // Newcombe 1998, table I, method 3.
        let i = wilson(81, 263);
        near(i.low, 0.2553, 5e-5);
        near(i.high, 0.3662, 5e-5);
        let i = wilson(0, 20);
        near(i.low, 0.0, 1e-12);
        near(i.high, 0.1611, 5e-5);
        assert_eq!(wilson(0, 0), Interval { low: 0.0, high: 1.0 });
    }

    #[test]
    fn tango_covers_and_holds_its_estimate() {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
        let covered = (0..1000)
            .filter(|_| {
                let mut d = Discordant { first_only: 0, second_only: 0, n: 200 };
                for _ in 0..200 {
                    match rng.random::<f64>() {
                        x if x < 0.05 => d.first_only += 1,
                        x if x < 0.08 => d.second_only += 1,
                        _ => {}
                    }
                }
                let i = paired_difference_ci(&d);
                assert!(i.low <= d.difference() && d.difference() <= i.high);
                i.low <= 0.02 && 0.02 <= i.high
            })
            .count();
        assert!((930..=970).contains(&covered), "{covered} of 1000");
    }

    #[test]
    fn tango_is_symmetric_and_open_at_zero_discordants() {
        let none = paired_difference_ci(&Discordant { first_only: 0, second_only: 0, n: 100 });
        near(none.low, -none.high, 1e-9);
        // z^2 / (n + z^2), the score bound of a proportion of zero.
        near(none.high, 0.036_995, 1e-5);
        let a = paired_difference_ci(&Discordant { first_only: 9, second_only: 2, n: 100 });
        let b = paired_difference_ci(&Discordant { first_only: 2, second_only: 9, n: 100 });
        near(a.low, -b.high, 1e-9);
        near(a.high, -b.low, 1e-9);
    }

    #[test]
    fn non_inferiority_agrees_with_the_interval() {
        for (b, c) in [(0, 0), (3, 9), (1, 12), (5, 5), (20, 2)] {
            let d = Discordant { first_only: b, second_only: c, n: 400 };
            let low = paired_difference_ci(&d).low;
            for margin in [0.005, 0.01, 0.02, 0.05] {
                assert_eq!(non_inferiority_p(&d, margin) <= 0.025, low >= -margin, "{d:?} {margin} {low}");
            }
        }
    }

    #[test]
    fn detectable_drops_match_the_table() {
        for (share, n, points) in [
            (0.05, 408, 3.1),
            (0.05, 872, 2.1),
            (0.05, 2000, 1.4),
            (0.05, 5000, 0.9),
            (0.05, 50_000, 0.28),
            (0.02, 408, 2.0),
            (0.02, 872, 1.3),
            (0.02, 2000, 0.9),
            (0.02, 5000, 0.56),
            (0.02, 50_000, 0.18),
        ] {
            near(100.0 * minimum_detectable_difference(share, n), points, 0.05);
        }
        near(minimum_detectable_difference(0.0, 100), 0.06, 1e-9);
        assert_eq!(minimum_detectable_difference(0.1, 0), 1.0);
    }

    #[test]
    fn outcomes_of_different_items_are_not_paired() {
        assert_eq!(Discordant::count(&[true], &[true, false]), None);
        assert_eq!(Discordant::count(&[], &[]), None);
        let d = Discordant::count(&[true, true, false, false], &[true, false, true, true]).unwrap();
        assert_eq!((d.first_only, d.second_only, d.n), (1, 2, 4));
        assert_eq!(d.difference(), -0.25);
    }
}
