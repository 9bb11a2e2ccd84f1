//! Resampling of one axis as a sparse matrix: each output is a weighted sum of a few inputs. Elements
//! are `[outer, axis, inner]`; the backward pass is the transposed matrix.

use super::real::{Real, axpy};
use rayon::prelude::*;

/// The matrix of one axis.
#[derive(Debug, Clone)]
pub struct Taps {
    /// Inputs along the axis.
    pub inputs: usize,
    /// For each output: (input, weight); `None` where the output lies outside the input.
    pub rows: Vec<Option<Vec<(usize, f64)>>>,
}

impl Taps {
    /// Fills `y` (`[outer, rows, inner]`) from `x` (`[outer, inputs, inner]`); outputs without input
    /// become `outside`.
    pub fn apply<T: Real>(&self, x: &[T], inner: usize, outside: T, y: &mut [T]) {
        let (from, to) = (self.inputs * inner, self.rows.len() * inner);
        if to == 0 {
            return;
        }
        assert_eq!(x.len() / from.max(1), y.len() / to, "x and y have one outer size");
        y.par_chunks_exact_mut(to).enumerate().for_each(|(o, y)| {
            let x = &x[o * from..][..from];
            for (row, y) in self.rows.iter().zip(y.chunks_exact_mut(inner)) {
                let Some(taps) = row else {
                    y.fill(outside);
                    continue;
                };
                match taps.as_slice() {
                    [(i, w)] if *w == 1.0 => y.copy_from_slice(&x[i * inner..][..inner]),
                    taps => {
                        y.fill(T::ZERO);
                        taps.iter().for_each(|(i, w)| axpy(T::of(*w), &x[i * inner..][..inner], y));
                    }
                }
            }
        });
    }

    /// Adds the gradient of [`Taps::apply`] onto `dx`.
    pub fn backward<T: Real>(&self, dy: &[T], inner: usize, dx: &mut [T]) {
        let (from, to) = (self.inputs * inner, self.rows.len() * inner);
        if from == 0 {
            return;
        }
        dx.par_chunks_exact_mut(from).enumerate().for_each(|(o, dx)| {
            let dy = &dy[o * to..][..to];
            for (row, dy) in self.rows.iter().zip(dy.chunks_exact(inner)) {
                for (i, w) in row.iter().flatten() {
                    axpy(T::of(*w), dy, &mut dx[i * inner..][..inner]);
                }
            }
        });
    }
}
