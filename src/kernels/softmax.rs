//! Softmax and its logarithm along one axis of `[outer, count, inner]`, forward and backward.
#![allow(unsafe_code)]

use super::analytic::Analytic;
use super::wide::{Lanes, Loop, filled};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Where the axis lies.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    /// Elements that are normalised together.
    pub count: usize,
    /// Distance of neighbours.
    pub inner: usize,
}

const LANES: usize = 16;

/// `join` over all elements in sixteen interleaved parts.
#[inline(always)]
fn lanes<T: Analytic>(x: &[T], start: T, join: impl Fn(T, T) -> T) -> T {
    let mut parts = [start; LANES];
    let chunks = x.chunks_exact(LANES);
    let mut rest = start;
    for v in chunks.remainder() {
        rest = join(rest, *v);
    }
    for c in chunks {
        for l in 0..LANES {
            parts[l] = join(parts[l], c[l]);
        }
    }
    parts.iter().fold(rest, |a, b| join(a, *b))
}

struct Forward<'a, T> {
    axis: Axis,
    log: bool,
    x: &'a [T],
    y: &'a mut [MaybeUninit<T>],
}
impl<T: Analytic> Loop for Forward<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        let Axis { count, inner } = self.axis;
        if inner > 1 {
            return columns(self.x, cleared(self.y), count, inner, self.log);
        }
        for (x, y) in self.x.chunks_exact(count).zip(self.y.chunks_exact_mut(count)) {
            // NaN need not win here: it comes back through the exponential.
            let top = lanes(x, T::LOWEST, |a, b| if b > a { b } else { a });
            for (y, x) in y.iter_mut().zip(x) {
                y.write((*x - top).exp());
            }
            // SAFETY: every element was just written.
            let y = unsafe { &mut *(y as *mut [MaybeUninit<T>] as *mut [T]) };
            let sum = lanes(y, T::ZERO, |a, b| a + b);
            if self.log {
                let shift = sum.ln();
                for (y, x) in y.iter_mut().zip(x) {
                    *y = (*x - top) - shift;
                }
            } else {
                let scale = T::ONE / sum;
                y.iter_mut().for_each(|y| *y = *y * scale);
            }
        }
    }
}

#[inline(always)]
fn columns<T: Analytic>(x: &[T], y: &mut [T], count: usize, inner: usize, log: bool) {
    let (mut top, mut sum) = (vec![T::LOWEST; inner], vec![T::ZERO; inner]);
    for (x, y) in x.chunks_exact(count * inner).zip(y.chunks_exact_mut(count * inner)) {
        top.fill(T::LOWEST);
        sum.fill(T::ZERO);
        for x in x.chunks_exact(inner) {
            top.iter_mut().zip(x).for_each(|(t, x)| *t = if x > t { *x } else { *t });
        }
        for (x, y) in x.chunks_exact(inner).zip(y.chunks_exact_mut(inner)) {
            for (((y, x), t), s) in y.iter_mut().zip(x).zip(&top).zip(&mut sum) {
                *y = (*x - *t).exp();
                *s += *y;
            }
        }
        if log {
            sum.iter_mut().for_each(|s| *s = s.ln());
            for (x, y) in x.chunks_exact(inner).zip(y.chunks_exact_mut(inner)) {
                for (((y, x), t), s) in y.iter_mut().zip(x).zip(&top).zip(&sum) {
                    *y = (*x - *t) - *s;
                }
            }
        } else {
            sum.iter_mut().for_each(|s| *s = T::ONE / *s);
            for y in y.chunks_exact_mut(inner) {
                y.iter_mut().zip(&sum).for_each(|(y, s)| *y = *y * *s);
            }
        }
    }
}

/// Writes zeros and lends the piece: rows are passed over more than once.
fn cleared<T: Analytic>(out: &mut [MaybeUninit<T>]) -> &mut [T] {
    out.iter_mut().for_each(|o| {
        o.write(T::ZERO);
    });
    // SAFETY: every element was just written.
    unsafe { &mut *(out as *mut [MaybeUninit<T>] as *mut [T]) }
}

/// `exp(x) / sum(exp(x))`, or its logarithm.
pub fn forward<T: Analytic + Lanes>(axis: Axis, log: bool, x: &[T]) -> Vec<T> {
    let band = axis.count * axis.inner;
    if band == 0 {
        return vec![];
    }
    assert_eq!(x.len() % band, 0, "whole rows");
    // SAFETY: `cleared` writes every element of a piece.
    unsafe {
        filled(x.len(), band, 1, &|at, out| {
            let x = &x[at..at + out.len()];
            T::launch(Forward { axis, log, x, y: out });
        })
    }
}

struct Backward<'a, T> {
    axis: Axis,
    log: bool,
    y: &'a [T],
    dy: &'a [T],
    dx: &'a mut [T],
}
impl<T: Analytic> Loop for Backward<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        let Axis { count, inner } = self.axis;
        let band = count * inner;
        let mut sums = vec![T::ZERO; inner];
        for ((y, dy), dx) in
            self.y.chunks_exact(band).zip(self.dy.chunks_exact(band)).zip(self.dx.chunks_exact_mut(band))
        {
            sums.fill(T::ZERO);
            if inner == 1 {
                sums[0] = match self.log {
                    true => super::real::sum(dy),
                    false => super::real::dot(y, dy),
                };
            } else {
                for (y, dy) in y.chunks_exact(inner).zip(dy.chunks_exact(inner)) {
                    for ((s, y), g) in sums.iter_mut().zip(y).zip(dy) {
                        *s += if self.log { *g } else { *y * *g };
                    }
                }
            }
            if inner == 1 {
                let s = sums[0];
                for ((dx, y), g) in dx.iter_mut().zip(y).zip(dy) {
                    *dx = if self.log { *g - y.exp() * s } else { *y * (*g - s) };
                }
                continue;
            }
            for ((y, dy), dx) in
                y.chunks_exact(inner).zip(dy.chunks_exact(inner)).zip(dx.chunks_exact_mut(inner))
            {
                for (((dx, y), g), s) in dx.iter_mut().zip(y).zip(dy).zip(&sums) {
                    *dx = if self.log { *g - y.exp() * *s } else { *y * (*g - *s) };
                }
            }
        }
    }
}

/// The gradient of [`forward`] from its result and the gradient of that.
pub fn backward<T: Analytic + Lanes>(axis: Axis, log: bool, y: &[T], dy: &[T]) -> Vec<T> {
    let band = axis.count * axis.inner;
    if band == 0 {
        return vec![];
    }
    assert!(y.len() == dy.len() && y.len().is_multiple_of(band), "whole rows of one size");
    // SAFETY: `cleared` writes every element of a piece.
    unsafe {
        filled(y.len(), band, 1, &|at, out| {
            let to = at + out.len();
            T::launch(Backward { axis, log, y: &y[at..to], dy: &dy[at..to], dx: cleared(out) });
        })
    }
}

/// One row against its label.
struct CrossEntropy<'a, T> {
    /// Part of the target that all classes share, and part of the labelled one alone.
    shared: T,
    own: T,
    /// The gradient is multiplied with this.
    scale: T,
    label: usize,
    x: &'a [T],
    dx: &'a mut [MaybeUninit<T>],
}
impl<T: Analytic> Loop for CrossEntropy<'_, T> {
    type Out = f64;
    #[inline(always)]
    fn run(self) -> f64 {
        let x = self.x;
        let top = lanes(x, T::LOWEST, |a, b| if b > a { b } else { a });
        for (d, x) in self.dx.iter_mut().zip(x) {
            d.write((*x - top).exp());
        }
        // SAFETY: every element was just written; both are one row long.
        let dx = unsafe { &mut *(self.dx as *mut [MaybeUninit<T>] as *mut [T]) };
        let sum = lanes(dx, T::ZERO, |a, b| a + b);
        let log_sum = top.wide() + sum.wide().ln();
        let mut loss = self.own.wide() * (log_sum - x[self.label].wide());
        if self.shared != T::ZERO {
            let total = lanes(x, T::ZERO, |a, b| a + b).wide();
            loss += self.shared.wide() * (x.len() as f64 * log_sum - total);
        }
        let (by, off) = (self.scale / sum, self.scale * self.shared);
        dx.iter_mut().for_each(|d| *d = *d * by - off);
        dx[self.label] = dx[self.label] - self.scale * self.own;
        loss
    }
}

/// Softmax cross entropy of rows of `classes` logits against their labels, smoothed by `epsilon`: summed
/// over the rows that have one (in row order whatever the number of threads), and its gradient times
/// `scale`, zero in the other rows.
///
/// # Panics
/// Where `x` does not hold whole rows, or a label is no class.
pub fn cross_entropy<T: Analytic + Lanes>(
    classes: usize,
    x: &[T],
    label: &(dyn Fn(usize) -> Option<usize> + Sync),
    epsilon: f64,
    scale: T,
) -> (f64, Vec<T>) {
    if x.is_empty() {
        return (0.0, vec![]);
    }
    assert!(x.len().is_multiple_of(classes), "whole rows");
    let mut dx: Vec<T> = Vec::with_capacity(x.len());
    let losses: Vec<f64> = dx.spare_capacity_mut()[..x.len()]
        .par_chunks_exact_mut(classes)
        .zip(x.par_chunks_exact(classes))
        .enumerate()
        .map(|(row, (dx, x))| match label(row) {
            None => {
                cleared(dx);
                0.0
            }
            Some(label) => {
                let (shared, own) = (T::of(epsilon / classes as f64), T::of(1.0 - epsilon));
                T::launch(CrossEntropy { shared, own, scale, label, x, dx })
            }
        })
        .collect();
    // SAFETY: every row was written.
    unsafe { dx.set_len(x.len()) };
    (losses.iter().sum(), dx)
}
