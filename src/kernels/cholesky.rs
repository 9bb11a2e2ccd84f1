//! Symmetric positive definite systems by Cholesky's factorisation, in blocks whose products run on all
//! threads.
#![allow(unsafe_code)]

use super::gemm::{Matrix, product_at};
use rayon::prelude::*;

/// Rows of a block.
const BLOCK: usize = 64;

/// Factor `L` of a symmetric positive definite matrix `L L^T`, in the lower triangle of `n` rows.
#[derive(Debug, Clone)]
pub struct Cholesky {
    n: usize,
    lower: Vec<f64>,
}

impl Cholesky {
    /// Factorises `a` `[n, n]`, row-major, of which only the lower triangle is read. None where it is not
    /// positive definite.
    ///
    /// # Panics
    /// Where `a` has not `n * n` elements.
    pub fn of(mut a: Vec<f64>, n: usize) -> Option<Cholesky> {
        assert_eq!(a.len(), n * n, "a square matrix");
        for from in (0..n).step_by(BLOCK) {
            let to = (from + BLOCK).min(n);
            for j in from..to {
                let pivot = a[j * n + j] - (from..j).map(|k| a[j * n + k].powi(2)).sum::<f64>();
                if pivot.is_nan() || pivot <= 0.0 {
                    return None;
                }
                let pivot = pivot.sqrt();
                a[j * n + j] = pivot;
                for i in j + 1..to {
                    let sum: f64 = (from..j).map(|k| a[i * n + k] * a[j * n + k]).sum();
                    a[i * n + j] = (a[i * n + j] - sum) / pivot;
                }
            }
            let (done, below) = a.split_at_mut(to * n);
            below.par_chunks_exact_mut(n).for_each(|row| {
                for j in from..to {
                    let sum: f64 = (from..j).map(|k| row[k] * done[j * n + k]).sum();
                    row[j] = (row[j] - sum) / done[j * n + j];
                }
            });
            let rows = n - to;
            if rows == 0 {
                continue;
            }
            let width = to - from;
            let panel: Vec<f64> = below.chunks_exact(n).flat_map(|row| row[from..to].to_vec()).collect();
            let panel = Matrix::new(&panel, rows, width);
            // SAFETY: the block from (to, to) on has `rows` rows of `rows` elements at distance `n` inside
            // `below`, which is borrowed exclusively; the panel is a copy.
            unsafe { product_at(-1.0, panel, panel.t(), below.as_mut_ptr().add(to), n, true, rows > 64) };
        }
        Some(Cholesky { n, lower: a })
    }

    /// The element of the factor at a row and a column that is not above the diagonal.
    pub fn at(&self, row: usize, column: usize) -> f64 {
        self.lower[row * self.n + column]
    }

    /// Solves `A X = B` in place; `b` is `[n, columns]`, row-major.
    ///
    /// # Panics
    /// Where `b` has not `n * columns` elements.
    pub fn solve(&self, b: &mut [f64], columns: usize) {
        assert_eq!(b.len(), self.n * columns, "as many rows as the matrix");
        let (n, l) = (self.n, &self.lower);
        let starts: Vec<usize> = (0..n).step_by(BLOCK).collect();
        for &from in &starts {
            let to = (from + BLOCK).min(n);
            let (done, rest) = b.split_at_mut(from * columns);
            let block = &mut rest[..(to - from) * columns];
            if from > 0 {
                let left = Matrix::strided(&l[from * n..], to - from, from, n, 1);
                // SAFETY: `block` is borrowed exclusively and has `to - from` rows of `columns` elements.
                unsafe {
                    product_at(
                        -1.0,
                        left,
                        Matrix::new(done, from, columns),
                        block.as_mut_ptr(),
                        columns,
                        true,
                        true,
                    );
                }
            }
            for i in 0..to - from {
                let (above, row) = block.split_at_mut(i * columns);
                let row = &mut row[..columns];
                for (k, above) in above.chunks_exact(columns).enumerate() {
                    let f = l[(from + i) * n + from + k];
                    row.iter_mut().zip(above).for_each(|(r, a)| *r -= f * a);
                }
                let pivot = l[(from + i) * n + from + i];
                row.iter_mut().for_each(|r| *r /= pivot);
            }
        }
        for &from in starts.iter().rev() {
            let to = (from + BLOCK).min(n);
            let (front, done) = b.split_at_mut(to * columns);
            let block = &mut front[from * columns..];
            if to < n {
                let below = Matrix::strided(&l[to * n + from..], n - to, to - from, n, 1);
                let done = Matrix::new(done, n - to, columns);
                // SAFETY: `block` is borrowed exclusively and has `to - from` rows of `columns` elements.
                unsafe { product_at(-1.0, below.t(), done, block.as_mut_ptr(), columns, true, true) };
            }
            for i in (0..to - from).rev() {
                let (row, under) = block[i * columns..].split_at_mut(columns);
                for (k, under) in under.chunks_exact(columns).enumerate() {
                    let f = l[(from + i + 1 + k) * n + from + i];
                    row.iter_mut().zip(under).for_each(|(r, u)| *r -= f * u);
                }
                let pivot = l[(from + i) * n + from + i];
                row.iter_mut().for_each(|r| *r /= pivot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn solutions_satisfy_their_systems_at_every_block_border() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        for n in [1, 2, 63, 64, 65, 150] {
            let m: Vec<f64> = (0..n * n).map(|_| rng.random_range(-1.0..1.0)).collect();
            let a: Vec<f64> = (0..n * n)
                .map(|i| {
                    let (r, c) = (i / n, i % n);
                    (0..n).map(|k| m[r * n + k] * m[c * n + k]).sum::<f64>() + f64::from(u8::from(r == c))
                })
                .collect();
            let b: Vec<f64> = (0..n * 3).map(|_| rng.random_range(-1.0..1.0)).collect();
            let mut x = b.clone();
            Cholesky::of(a.clone(), n).unwrap().solve(&mut x, 3);
            for (i, b) in b.iter().enumerate() {
                let (r, c) = (i / 3, i % 3);
                let product: f64 = (0..n).map(|k| a[r * n + k] * x[k * 3 + c]).sum();
                assert!((product - b).abs() < 1e-8, "{n}: {product} and {b}");
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_has_no_factor() {
        assert!(Cholesky::of(vec![1.0, 0.0, 2.0, 1.0], 2).is_none());
        assert!(Cholesky::of(vec![f64::NAN], 1).is_none());
    }
}
