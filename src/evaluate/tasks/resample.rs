//! Intervals of ratios of sums by bootstrap over blocks (documents or windows): items of a block
//! depend on each other, blocks do not.

use crate::evaluate::measurement::Interval;
use crate::evaluate::stats;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const RESAMPLES: usize = 2000;
/// Fewest blocks for an interval.
const FEWEST: usize = 8;

/// 95 % percentile interval of `of(sums)`, where `sums` adds up the columns of blocks drawn with
/// replacement; none below 8 blocks.
pub(super) fn interval<const N: usize>(
    blocks: &[[f64; N]],
    seed: u64,
    of: impl Fn(&[f64; N]) -> f64,
) -> Option<Interval> {
    if blocks.len() < FEWEST {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut sums = [0.0; N];
            for _ in 0..blocks.len() {
                let block = &blocks[rng.random_range(0..blocks.len())];
                sums.iter_mut().zip(block).for_each(|(s, b)| *s += b);
            }
            of(&sums)
        })
        .collect();
    Some(Interval { low: stats::quantile(&values, 0.025), high: stats::quantile(&values, 0.975) })
}

/// The columns added up.
pub(super) fn sums<const N: usize>(blocks: &[[f64; N]]) -> [f64; N] {
    blocks.iter().fold([0.0; N], |mut total, block| {
        total.iter_mut().zip(block).for_each(|(s, b)| *s += b);
        total
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_a_mean_is_that_of_its_standard_error() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let blocks: Vec<[f64; 2]> = (0..400).map(|_| [rng.random_range(-1.0..1.0), 1.0]).collect();
        let i = interval(&blocks, 1, |s| s[0] / s[1]).unwrap();
        // Standard deviation of a uniform variable on [-1, 1) is 1/sqrt(3).
        let expected = 1.96 * (1.0f64 / 3.0).sqrt() / 20.0;
        assert!(((i.high - i.low) / 2.0 - expected).abs() < 0.1 * expected, "{i:?} {expected}");
        assert_eq!(interval(&blocks, 1, |s| s[0] / s[1]), Some(i));
        assert!(interval(&blocks[..7], 1, |s| s[0]).is_none());
    }
}
