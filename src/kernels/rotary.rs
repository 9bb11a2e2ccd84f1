//! Rotation of pairs of elements by angles that depend on the position (RoFormer, arXiv 2104.09864).

use super::real::Real;
use rayon::prelude::*;

/// Which elements of a row make pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotary {
    /// Elements of a row.
    pub head: usize,
    /// Elements that rotate, the first ones; even.
    pub rotated: usize,
    /// Whether pairs are neighbours; else element `i` goes with `i + rotated / 2`.
    pub interleaved: bool,
}

impl Rotary {
    /// Places of the two elements of pair `i`.
    #[inline(always)]
    fn pair(&self, i: usize) -> (usize, usize) {
        if self.interleaved { (2 * i, 2 * i + 1) } else { (i, i + self.rotated / 2) }
    }

    /// Rows of `head` elements, one after another. Row `r` starts at `row(r)` in `x`, its angles at
    /// `angle(r)` in `cos` and `sin`; `back` turns the other way.
    pub fn rotate<T: Real>(
        &self,
        rows: usize,
        x: &[T],
        row: impl Fn(usize) -> usize + Sync,
        angle: impl Fn(usize) -> usize + Sync,
        (cos, sin): (&[T], &[T]),
        back: bool,
    ) -> Vec<T> {
        assert!(self.rotated.is_multiple_of(2) && self.rotated <= self.head, "pairs within a row");
        let mut out = vec![T::ZERO; rows * self.head];
        if out.is_empty() {
            return out;
        }
        let each = (super::wide::PARALLEL / self.head).max(1);
        let half = self.rotated / 2;
        out.par_chunks_mut(each * self.head).enumerate().for_each(|(i, out)| {
            for (j, out) in out.chunks_exact_mut(self.head).enumerate() {
                let r = i * each + j;
                let x = &x[row(r)..][..self.head];
                let (cos, sin) = (&cos[angle(r)..][..half], &sin[angle(r)..][..half]);
                if self.interleaved {
                    for p in 0..half {
                        let (a, b) = self.pair(p);
                        let s = if back { -sin[p] } else { sin[p] };
                        out[a] = cos[p] * x[a] - s * x[b];
                        out[b] = s * x[a] + cos[p] * x[b];
                    }
                } else {
                    let (left, right) = out[..self.rotated].split_at_mut(half);
                    let (a, b) = x[..self.rotated].split_at(half);
                    for p in 0..half {
                        let s = if back { -sin[p] } else { sin[p] };
                        left[p] = cos[p] * a[p] - s * b[p];
                        right[p] = s * a[p] + cos[p] * b[p];
                    }
                }
                out[self.rotated..].copy_from_slice(&x[self.rotated..]);
            }
        });
        out
    }

    /// Gradients of the tables of cosines and sines, which have `table` elements, from contiguous rows.
    pub fn table_gradients<T: Real>(
        &self,
        rows: usize,
        (x, dy): (&[T], &[T]),
        row: impl Fn(usize) -> usize,
        angle: impl Fn(usize) -> usize,
        table: usize,
    ) -> (Vec<T>, Vec<T>) {
        let (mut cos, mut sin) = (vec![T::ZERO; table], vec![T::ZERO; table]);
        for r in 0..rows {
            let (x, dy) = (&x[row(r)..][..self.head], &dy[r * self.head..][..self.head]);
            for p in 0..self.rotated / 2 {
                let (a, b) = self.pair(p);
                cos[angle(r) + p] += x[a] * dy[a] + x[b] * dy[b];
                sin[angle(r) + p] += x[a] * dy[b] - x[b] * dy[a];
            }
        }
        (cos, sin)
    }
}
