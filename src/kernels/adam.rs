//! The AdamW update in place, and sums of squares of gradients. Results do not depend on threads.

use super::wide::{Loop, widest};
use rayon::prelude::*;

/// Elements of one task.
const PIECE: usize = 1 << 15;

/// Factors of one update (Loshchilov & Hutter 2019, algorithm 2, with the bias corrections taken out).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factors {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Learning rate over the bias correction of the first moment.
    pub rate: f32,
    /// Reciprocal bias correction of the second moment.
    pub scale2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// What a parameter is multiplied with first.
    pub shrink: f32,
    /// What a gradient is multiplied with first.
    pub gradient: f32,
}

struct Piece<'a> {
    factors: Factors,
    w: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    g: &'a [f32],
}

impl Loop for Piece<'_> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        let Factors { beta1, beta2, rate, scale2, eps, shrink, gradient } = self.factors;
        for (((w, g), m), v) in self.w.iter_mut().zip(self.g).zip(self.m).zip(self.v) {
            let g = *g * gradient;
            *m = beta1 * *m + (1.0 - beta1) * g;
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            *w = *w * shrink - rate * *m / ((*v * scale2).sqrt() + eps);
        }
    }
}

/// One update of parameters `w` with moments `m` and `v` from gradients `g`.
pub fn step(factors: Factors, w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
    assert!(w.len() == m.len() && w.len() == v.len() && w.len() == g.len(), "one size");
    w.par_chunks_mut(PIECE)
        .zip(m.par_chunks_mut(PIECE))
        .zip(v.par_chunks_mut(PIECE))
        .zip(g.par_chunks(PIECE))
        .for_each(|(((w, m), v), g)| widest(Piece { factors, w, m, v, g }));
}

struct Squares<'a>(&'a [f32]);

impl Loop for Squares<'_> {
    type Out = f64;
    #[inline(always)]
    fn run(self) -> f64 {
        let mut parts = [0f64; 16];
        let chunks = self.0.chunks_exact(16);
        let rest: f64 = chunks.remainder().iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        for c in chunks {
            for (p, x) in parts.iter_mut().zip(c) {
                *p += f64::from(*x) * f64::from(*x);
            }
        }
        parts.iter().sum::<f64>() + rest
    }
}

/// Sum of squares.
pub fn squares(x: &[f32]) -> f64 {
    let parts: Vec<f64> = x.par_chunks(PIECE).map(|x| widest(Squares(x))).collect();
    parts.iter().sum()
}
