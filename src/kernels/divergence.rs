//! Softmax rows against those of a reference: divergence and gradient in one go.

use super::analytic::Analytic;
use super::softmax::{Axis, forward};
use super::wide::{Lanes, Loop};
use rayon::prelude::*;

/// One row of a divergence.
struct Divergence<'a, T> {
    p: &'a [T],
    q: &'a mut [T],
    scale: T,
}
impl<T: Analytic> Loop for Divergence<'_, T> {
    type Out = f64;
    #[inline(always)]
    fn run(self) -> f64 {
        let mut sum = 0.0;
        for (p, q) in self.p.chunks(64).zip(self.q.chunks_mut(64)) {
            let mut part = T::ZERO;
            for (p, q) in p.iter().zip(q) {
                let e = p.exp();
                part += e * (*p - *q);
                *q = (q.exp() - e) * self.scale;
            }
            sum += part.wide();
        }
        sum
    }
}

/// `KL(softmax(reference) || softmax(logits))` in nats, summed over the rows that `counts`, and `scale`
/// times its gradient with respect to `logits`, zero in the other rows.
pub fn divergence<T: Analytic + Lanes>(
    logits: &[T],
    reference: &[T],
    width: usize,
    counts: &(dyn Fn(usize) -> bool + Sync),
    scale: T,
) -> (f64, Vec<T>) {
    assert_eq!(logits.len(), reference.len(), "both are of one shape");
    let axis = Axis { count: width, inner: 1 };
    let p = forward(axis, true, reference);
    let mut out = forward(axis, true, logits);
    let width = width.max(1);
    let losses: Vec<f64> = out
        .par_chunks_mut(width)
        .zip(p.par_chunks(width))
        .enumerate()
        .map(|(row, (q, p))| {
            if !counts(row) {
                q.fill(T::ZERO);
                return 0.0;
            }
            T::launch(Divergence { p, q, scale })
        })
        .collect();
    (losses.iter().sum::<f64>().max(0.0), out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::softmax::cross_entropy;

    fn slopes(at: &[f64], loss: &dyn Fn(&[f64]) -> f64) -> Vec<f64> {
        let shifted = |i: usize, by: f64| {
            let mut v = at.to_vec();
            v[i] += by;
            loss(&v)
        };
        (0..at.len()).map(|i| (shifted(i, 1e-5) - shifted(i, -1e-5)) / 2e-5).collect()
    }

    #[test]
    fn gradients_equal_finite_differences_and_rows_that_do_not_count_are_zero() {
        let z = [0.3, -1.2, 0.5, 2.0, 0.1, -0.4, 1.0, 1.0, 1.0];
        let p = [1.0, 0.2, -0.5, 0.0, 0.4, 0.9, 3.0, 2.0, 1.0];
        let target = |row: usize| [Some(2), None, Some(0)][row];
        let (_, grad) = cross_entropy(3, &z, &target, 0.1, 0.5);
        let want = slopes(&z, &|v| 0.5 * cross_entropy(3, v, &target, 0.1, 1.0).0);
        assert!(grad.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-8), "{grad:?} {want:?}");
        assert_eq!(grad[3..6], [0.0; 3]);
        let counts = |row: usize| row != 1;
        let (loss, grad) = divergence(&z, &p, 3, &counts, 0.5);
        let want = slopes(&z, &|v| 0.5 * divergence(v, &p, 3, &counts, 1.0).0);
        assert!(grad.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-8), "{grad:?} {want:?}");
        assert!(loss > 0.1 && grad[3..6] == [0.0; 3]);
        assert!(divergence(&p, &p, 3, &counts, 1.0).0 < 1e-12);
    }
}
