//! The next token from the scores of a model: the largest, or one drawn at a temperature from the most
//! likely ones. The same seed draws the same tokens.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Divides the scores; 0 always takes the largest.
    pub temperature: f64,
    /// Draws from the smallest set of tokens with this share of the probability.
    pub top_p: f64,
    /// Draws from this many tokens at most; 0 from all.
    pub top_k: usize,
    /// Seed.
    pub seed: u64,
}

impl Default for Sampling {
    /// Always the most likely token.
    fn default() -> Sampling {
        Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 }
    }
}

pub(super) struct Sampler {
    how: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    pub(super) fn new(how: Sampling) -> Sampler {
        Sampler { rng: ChaCha8Rng::seed_from_u64(how.seed), how }
    }

    /// The next token; none where no score is a number. Ties go to the lower id.
    pub(super) fn next(&mut self, scores: &[f32]) -> Option<u32> {
        let finite = |v: &f32| !v.is_nan() && *v > f32::NEG_INFINITY;
        let mut best: Option<usize> = None;
        for (i, v) in scores.iter().enumerate().filter(|(_, v)| finite(v)) {
            if best.is_none_or(|b| *v > scores[b]) {
                best = Some(i);
            }
        }
        let best = best?;
        if self.how.temperature <= 0.0 || scores[best] == f32::INFINITY {
            return Some(best as u32);
        }
        let mut order: Vec<usize> = (0..scores.len()).filter(|i| finite(&scores[*i])).collect();
        let by_score = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
        if self.how.top_k > 0 && self.how.top_k < order.len() {
            order.select_nth_unstable_by(self.how.top_k - 1, by_score);
            order.truncate(self.how.top_k);
        }
        order.sort_unstable_by(by_score);
        let weight = |i: &usize| (f64::from(scores[*i] - scores[best]) / self.how.temperature).exp();
        let mut weights: Vec<f64> = order.iter().map(weight).collect();
        let total: f64 = weights.iter().sum();
        let mut reached = 0.0;
        let kept = weights.iter().position(|w| {
            reached += w / total;
            reached >= self.how.top_p
        });
        weights.truncate(kept.map_or(weights.len(), |n| n + 1));
        let mut left = self.rng.random::<f64>() * weights.iter().sum::<f64>();
        let chosen = weights.iter().position(|w| {
            left -= w;
            left < 0.0
        });
        Some(order[chosen.unwrap_or(weights.len() - 1)] as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(how: Sampling, scores: &[f32], times: usize) -> Vec<usize> {
        let mut sampler = Sampler::new(how);
        let mut counts = vec![0; scores.len()];
        (0..times).for_each(|_| counts[sampler.next(scores).unwrap() as usize] += 1);
        counts
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_limits() {
        let scores = [0.0, (0.5f32).ln(), (0.25f32).ln(), f32::NEG_INFINITY, f32::NAN];
        assert_eq!(drawn(Sampling::default(), &scores, 5), [5, 0, 0, 0, 0]);
        let warm = Sampling { temperature: 1.0, seed: 4, ..Sampling::default() };
        let counts = drawn(warm, &scores, 7000);
        for (count, expected) in counts.iter().zip([4000.0, 2000.0, 1000.0, 0.0, 0.0]) {
            assert!((*count as f64 - expected).abs() < 150.0, "{counts:?}");
        }
        assert_eq!(counts, drawn(warm, &scores, 7000));
        assert_eq!(drawn(Sampling { top_k: 2, ..warm }, &scores, 500)[2], 0);
        assert_eq!(drawn(Sampling { top_p: 0.5, ..warm }, &scores, 500)[0], 500);
        assert_eq!(drawn(Sampling { top_p: 0.6, ..warm }, &scores, 500)[2], 0);
        let cold = drawn(Sampling { temperature: 0.05, ..warm }, &scores, 500);
        assert!(cold[0] > 495, "{cold:?}");
        assert_eq!(Sampler::new(warm).next(&[f32::NAN]), None);
        assert_eq!(Sampler::new(Sampling::default()).next(&[1.0, 1.0]), Some(0));
    }
}
