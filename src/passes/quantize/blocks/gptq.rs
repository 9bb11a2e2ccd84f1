//! GPTQ (Frantar et al., arXiv 2210.17323): inputs of a product are rounded one after the other, and the
//! error of each is made up for by those that are still to come, as the second moments of the data tell.

use super::step::Step;
use super::{Blocks, Form};
use crate::kernels::cholesky::Cholesky;
use crate::kernels::gemm::{Matrix, produced};
use crate::passes::look::Moments;
use rayon::prelude::*;

/// Rows that go through the columns together, so that a row of the factor is read once for all of them.
const TILE: usize = 16;

/// Outputs whose errors are told, about.
const LOOKED_AT: usize = 512;

/// What an error at each input of a product costs its outputs.
pub(in super::super) struct Sensitivity {
    inputs: usize,
    /// Second moments of the data `[inputs, inputs]`, in parts of their mean diagonal.
    moments: Vec<f64>,
    /// Upper triangle `U` with `U^T U` the inverse of the moments plus the damping.
    upper: Vec<f32>,
}

impl Sensitivity {
    /// From the moments of the data, their diagonal raised by `damping` of its mean. None where they tell
    /// nothing.
    pub(in super::super) fn of(moments: &Moments, damping: f64) -> Option<Sensitivity> {
        let n = moments.sum.len();
        let mut a = vec![0f64; n * n];
        for (i, row) in a.chunks_mut(n.max(1)).enumerate() {
            row.iter_mut().enumerate().for_each(|(j, a)| *a = moments.about(i, j, false));
        }
        let mean = (0..n).map(|i| a[i * n + i]).sum::<f64>() / n as f64;
        if mean.is_nan() || mean <= 0.0 || !mean.is_finite() {
            return None;
        }
        a.iter_mut().for_each(|a| *a /= mean);
        let moments = a.clone();
        // Rounding may leave a matrix that is not positive definite; more damping makes it so.
        let mut damping = damping.max(1e-6);
        let factor = loop {
            let mut damped = a.clone();
            (0..n).for_each(|i| damped[i * n + i] += damping);
            match Cholesky::of(damped, n) {
                Some(factor) => break factor,
                None if damping < 1e3 => damping *= 10.0,
                None => return None,
            }
        };
        let mut inverse = vec![0f64; n * n];
        (0..n).for_each(|i| inverse[i * n + i] = 1.0);
        factor.solve(&mut inverse, n);
        let lower = Cholesky::of(inverse, n)?;
        let mut upper = vec![0f32; n * n];
        for (i, row) in upper.chunks_mut(n).enumerate() {
            row.iter_mut().enumerate().skip(i).for_each(|(j, u)| *u = lower.at(j, i) as f32);
        }
        Some(Sensitivity { inputs: n, moments, upper })
    }

    /// `w` `[outputs, inputs]` rounded.
    pub(in super::super) fn rounded(&self, w: &[f32], form: Form) -> Blocks {
        let n = self.inputs;
        let mut out = Blocks::empty(w.len() / n, n, form);
        let per_row = n.div_ceil(form.block);
        let start = Step { scale: 1.0, zero: 0, offset: 0.0 };
        let grids: Vec<Vec<Step>> = out
            .levels
            .par_chunks_mut(TILE * n)
            .zip(w.par_chunks(TILE * n))
            .map(|(levels, w)| {
                let mut w = w.to_vec();
                let mut grids = vec![start; w.len() / n * per_row];
                for i in 0..n {
                    let upper = &self.upper[i * n + i..(i + 1) * n];
                    let at = i / form.block;
                    for (row, (w, grid)) in w.chunks_mut(n).zip(grids.chunks_mut(per_row)).enumerate() {
                        if i % form.block == 0 {
                            // The grid of a block is settled when the errors of all before are in it.
                            grid[at] = Step::least(&w[i..(i + form.block).min(n)], form);
                        }
                        let level = grid[at].level(w[i], form.bits);
                        levels[row * n + i] = level;
                        let error = (w[i] - grid[at].value(level)) / upper[0];
                        w[i..].iter_mut().zip(upper).for_each(|(w, u)| *w -= error * u);
                    }
                }
                grids
            })
            .collect();
        grids.into_iter().flatten().enumerate().for_each(|(at, step)| out.set(at, step));
        out
    }

    /// Sum over outputs, some of them where there are many, of the mean squared error where `w` becomes
    /// `rounded`, and of the mean square.
    pub(in super::super) fn error(&self, w: &[f32], rounded: &[f32]) -> (f64, f64) {
        let n = self.inputs;
        let every = (w.len() / n / LOOKED_AT).max(1);
        let rows = || w.chunks(n).zip(rounded.chunks(n)).step_by(every);
        let quadratic = |x: Vec<f64>| -> f64 {
            let rows = x.len() / n;
            let by = produced(1.0, Matrix::new(&x, rows, n), Matrix::new(&self.moments, n, n), true);
            x.iter().zip(&by).map(|(x, y)| x * y).sum()
        };
        let of = |pair: (&f32, &f32)| f64::from(*pair.0) - f64::from(*pair.1);
        let error = rows().flat_map(|(w, r)| w.iter().zip(r).map(of)).collect();
        let wide = rows().flat_map(|(w, _)| w.iter().map(|x| f64::from(*x))).collect();
        (quadratic(error), quadratic(wide))
    }
}

impl Sensitivity {
    /// `w` `[outputs, inputs]` rounded to steps of a scale a row, `limit` at most from zero.
    pub(in super::super) fn rounded_rows(&self, w: &[f32], scales: &[f32], limit: f32) -> Vec<i8> {
        let n = self.inputs;
        let mut out = vec![0i8; w.len()];
        let tiles = out.par_chunks_mut(TILE * n).zip(w.par_chunks(TILE * n)).zip(scales.par_chunks(TILE));
        tiles.for_each(|((out, w), scales)| {
            let mut w = w.to_vec();
            for i in 0..n {
                let upper = &self.upper[i * n + i..(i + 1) * n];
                for ((out, w), scale) in out.chunks_mut(n).zip(w.chunks_mut(n)).zip(scales) {
                    let level = (w[i] / scale).round_ties_even().clamp(-limit, limit);
                    out[i] = level as i8;
                    let error = (w[i] - level * scale) / upper[0];
                    w[i..].iter_mut().zip(upper).for_each(|(w, u)| *w -= error * u);
                }
            }
        });
        out
    }
}
