//! Reductions over any set of axes, in a fixed order: halves are joined as a tree, so that rounding
//! errors stay small and the result does not depend on the number of threads.
#![allow(unsafe_code)]

use super::analytic::Analytic;
use super::movement::permute;
use super::wide::{Lanes, Loop, filled};
use std::mem::MaybeUninit;

/// How elements become one. `join` must be associative up to rounding and have `START` as neutral element.
pub trait Fold<T: Copy>: Copy + Send + Sync {
    /// What is carried along.
    type State: Copy + Send + Sync;
    /// The state of no element.
    fn start(self) -> Self::State;
    /// The state with one element more.
    fn step(self, state: Self::State, x: T) -> Self::State;
    /// The state of two parts.
    fn join(self, a: Self::State, b: Self::State) -> Self::State;
}

/// Axes split into kept and reduced ones.
#[derive(Debug, Clone)]
pub struct Split {
    shape: Vec<usize>,
    reduced: Vec<bool>,
}

const LANES: usize = 16;
const BLOCK: usize = 2048;
const ROWS: usize = 64;

struct Row<'a, T, F>(&'a [T], F);
impl<T: Copy, F: Fold<T>> Loop for Row<'_, T, F> {
    type Out = F::State;
    #[inline(always)]
    fn run(self) -> F::State {
        let Row(x, fold) = self;
        let mut lanes = [fold.start(); LANES];
        let chunks = x.chunks_exact(LANES);
        let mut rest = fold.start();
        for v in chunks.remainder() {
            rest = fold.step(rest, *v);
        }
        for c in chunks {
            for l in 0..LANES {
                lanes[l] = fold.step(lanes[l], c[l]);
            }
        }
        let mut width = LANES / 2;
        while width > 0 {
            for l in 0..width {
                lanes[l] = fold.join(lanes[l], lanes[l + width]);
            }
            width /= 2;
        }
        fold.join(lanes[0], rest)
    }
}

/// One state from adjacent elements.
fn row<T: Lanes, F: Fold<T>>(x: &[T], fold: F) -> F::State {
    if x.len() <= BLOCK {
        return T::launch(Row(x, fold));
    }
    // SAFETY: every element of a piece is written.
    let states = unsafe {
        filled(x.len().div_ceil(BLOCK), 1, BLOCK, &|at, out: &mut [MaybeUninit<F::State>]| {
            for (o, x) in out.iter_mut().zip(x[at * BLOCK..].chunks(BLOCK)) {
                o.write(T::launch(Row(x, fold)));
            }
        })
    };
    joined(states, 1, fold)[0]
}

/// Rows of `inner` states joined as a tree.
fn joined<T: Copy, F: Fold<T>>(mut states: Vec<F::State>, inner: usize, fold: F) -> Vec<F::State> {
    let mut rows = states.len() / inner;
    while rows > 1 {
        let half = rows / 2;
        for r in 0..half {
            for i in 0..inner {
                states[r * inner + i] = fold.join(states[2 * r * inner + i], states[(2 * r + 1) * inner + i]);
            }
        }
        if rows % 2 == 1 {
            states.copy_within((rows - 1) * inner..rows * inner, half * inner);
        }
        rows = rows.div_ceil(2);
    }
    states.truncate(inner);
    states
}

struct Rows<'a, T, S, F>(&'a [T], &'a mut [S], F);
impl<T: Copy, F: Fold<T>> Loop for Rows<'_, T, F::State, F> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        let Rows(x, states, fold) = self;
        for r in x.chunks_exact(states.len()) {
            for (s, x) in states.iter_mut().zip(r) {
                *s = fold.step(*s, *x);
            }
        }
    }
}

/// One state a column from rows of `inner` elements.
fn columns<T: Lanes, F: Fold<T>>(x: &[T], inner: usize, fold: F) -> Vec<F::State> {
    let leaves = (x.len() / inner).div_ceil(ROWS);
    // SAFETY: every element of a piece is written, as `started` shows.
    let states = unsafe {
        filled(leaves * inner, inner, ROWS, &|at, out| {
            let from = at / inner * ROWS * inner;
            for (o, x) in started(out, fold).chunks_exact_mut(inner).zip(x[from..].chunks(ROWS * inner)) {
                T::launch(Rows(x, o, fold));
            }
        })
    };
    joined(states, inner, fold)
}

/// Writes the state of no element everywhere and lends the piece.
fn started<T: Copy, F: Fold<T>>(out: &mut [MaybeUninit<F::State>], fold: F) -> &mut [F::State] {
    out.iter_mut().for_each(|o| {
        o.write(fold.start());
    });
    // SAFETY: every element was just written.
    unsafe { &mut *(out as *mut [MaybeUninit<F::State>] as *mut [F::State]) }
}

impl Split {
    /// Axes of `shape`, those of `axes` reduced.
    pub fn new(shape: &[usize], axes: &[usize]) -> Split {
        let mut reduced = vec![false; shape.len()];
        axes.iter().for_each(|a| reduced[*a] = true);
        Split { shape: shape.to_vec(), reduced }
    }

    /// The shape with reduced axes of size one.
    pub fn kept(&self) -> Vec<usize> {
        self.shape.iter().zip(&self.reduced).map(|(n, r)| if *r { 1 } else { *n }).collect()
    }

    /// Elements that become one.
    pub fn count(&self) -> usize {
        self.shape.iter().zip(&self.reduced).filter(|(_, r)| **r).map(|(n, _)| *n).product()
    }

    /// Runs of axes of one kind, sizes of one left out, as (size, reduced).
    fn runs(&self) -> Vec<(usize, bool)> {
        let mut runs: Vec<(usize, bool)> = vec![];
        for (n, r) in self.shape.iter().zip(&self.reduced).filter(|(n, _)| **n != 1) {
            match runs.last_mut() {
                Some((size, kind)) if kind == r => *size *= n,
                _ => runs.push((*n, *r)),
            }
        }
        runs
    }

    /// The state of each kept position, in order.
    pub fn fold<T, F>(&self, x: &[T], fold: F) -> Vec<F::State>
    where
        T: Lanes + Default,
        F: Fold<T>,
    {
        assert_eq!(x.len(), self.shape.iter().product::<usize>(), "elements fill the shape");
        let kept: usize = self.kept().iter().product();
        if x.is_empty() {
            return vec![fold.start(); kept];
        }
        let (outer, count, inner) = match self.runs()[..] {
            [] => (1, 1, 1),
            [(n, false)] => (n, 1, 1),
            [(r, true)] => (1, r, 1),
            [(n, false), (r, true)] => (n, r, 1),
            [(r, true), (n, false)] => (1, r, n),
            [(o, false), (r, true), (i, false)] => (o, r, i),
            _ => {
                let axes = 0..self.shape.len();
                let order: Vec<usize> = axes
                    .clone()
                    .filter(|a| !self.reduced[*a])
                    .chain(axes.filter(|a| self.reduced[*a]))
                    .collect();
                return bands(&permute(x, &self.shape, &order), kept, self.count(), 1, fold);
            }
        };
        bands(x, outer, count, inner, fold)
    }
}

fn bands<T: Lanes, F: Fold<T>>(x: &[T], outer: usize, count: usize, inner: usize, fold: F) -> Vec<F::State> {
    let band = count * inner;
    if outer == 1 {
        return if inner == 1 { vec![row(x, fold)] } else { columns(x, inner, fold) };
    }
    // SAFETY: every element of a piece is written; pieces are whole bands.
    unsafe {
        filled(outer * inner, inner, count, &|at, out: &mut [MaybeUninit<F::State>]| {
            let from = at / inner * band;
            for (out, x) in out.chunks_exact_mut(inner).zip(x[from..].chunks_exact(band)) {
                if inner == 1 {
                    out[0].write(row(x, fold));
                } else {
                    out.iter_mut().zip(columns(x, inner, fold)).for_each(|(o, s)| {
                        o.write(s);
                    });
                }
            }
        })
    }
}

/// The position of the element that `better` prefers along the axis of `[outer, count, inner]`: the first
/// of equals, or the last. `better(a, b)` says that `a` beats `b`. Nothing for an empty axis.
pub fn extremes<T: Copy + Send + Sync>(
    x: &[T],
    count: usize,
    inner: usize,
    better: impl Fn(T, T) -> bool + Sync,
    last: bool,
) -> Vec<i64> {
    let band = count * inner;
    if band == 0 {
        return vec![];
    }
    // SAFETY: every element of a piece is written; pieces are whole bands.
    unsafe {
        filled(x.len() / count, inner, count, &|at, out: &mut [MaybeUninit<i64>]| {
            let from = at / inner * band;
            for (out, x) in out.chunks_exact_mut(inner).zip(x[from..].chunks_exact(band)) {
                for (i, o) in out.iter_mut().enumerate() {
                    let (mut at, mut best) = (0, x[i]);
                    for c in 1..count {
                        let v = x[c * inner + i];
                        if better(v, best) || (last && !better(best, v)) {
                            (at, best) = (c, v);
                        }
                    }
                    o.write(at as i64);
                }
            }
        })
    }
}

/// Running totals along the axis of `[outer, count, inner]`: with the element itself or without, from the
/// front or from the back.
pub fn cumulate<T: Copy + Send + Sync>(
    x: &[T],
    count: usize,
    inner: usize,
    (exclusive, reverse): (bool, bool),
    zero: T,
    add: impl Fn(T, T) -> T + Sync,
) -> Vec<T> {
    let band = count * inner;
    if band == 0 {
        return vec![];
    }
    // SAFETY: every element of a piece is written; pieces are whole bands.
    unsafe {
        filled(x.len(), band, 1, &|at, out: &mut [MaybeUninit<T>]| {
            for (out, x) in out.chunks_exact_mut(band).zip(x[at..].chunks_exact(band)) {
                let mut totals = vec![zero; inner];
                for step in 0..count {
                    let c = if reverse { count - 1 - step } else { step };
                    let (x, out) = (&x[c * inner..][..inner], &mut out[c * inner..][..inner]);
                    for ((o, x), t) in out.iter_mut().zip(x).zip(&mut totals) {
                        let next = add(*t, *x);
                        o.write(if exclusive { *t } else { next });
                        *t = next;
                    }
                }
            }
        })
    }
}

macro_rules! fold {
    ($(#[$doc:meta])* $name:ident<$($bound:path),+>: $start:expr, |$s:ident, $x:ident| $step:expr, |$a:ident, $b:ident| $join:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;
        impl<T: $($bound +)+> Fold<T> for $name {
            type State = T;
            #[inline(always)]
            fn start(self) -> T { $start }
            #[inline(always)]
            fn step(self, $s: T, $x: T) -> T { $step }
            #[inline(always)]
            fn join(self, $a: T, $b: T) -> T { $join }
        }
    };
}
fold!(/// Sum.
    Sum<Analytic>: T::ZERO, |s, x| s + x, |a, b| a + b);
fold!(/// Sum of magnitudes.
    Magnitudes<Analytic>: T::ZERO, |s, x| s + x.abs(), |a, b| a + b);
fold!(/// Sum of squares.
    Squares<Analytic>: T::ZERO, |s, x| s + x * x, |a, b| a + b);
fold!(/// Product.
    Product<Analytic>: T::ONE, |s, x| s * x, |a, b| a * b);
fold!(/// Largest; NaN if one is.
    Largest<Analytic>: T::LOWEST, |s, x| x.larger(s), |a, b| a.larger(b));
fold!(/// Smallest; NaN if one is.
    Smallest<Analytic>: T::HIGHEST, |s, x| x.smaller(s), |a, b| a.smaller(b));

/// The same folds of integers, wrapping.
pub mod whole {
    use super::Fold;
    use crate::kernels::whole::Whole;

    macro_rules! whole_fold {
        ($($(#[$doc:meta])* $name:ident: $start:expr, |$s:ident, $x:ident| $step:expr, |$a:ident, $b:ident| $join:expr;)*) => { $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy)]
            pub struct $name;
            impl<T: Whole> Fold<T> for $name {
                type State = T;
                #[inline(always)]
                fn start(self) -> T { $start }
                #[inline(always)]
                fn step(self, $s: T, $x: T) -> T { $step }
                #[inline(always)]
                fn join(self, $a: T, $b: T) -> T { $join }
            }
        )* };
    }
    whole_fold! {
        /// Sum.
        Sum: T::default(), |s, x| s.add(x), |a, b| a.add(b);
        /// Sum of magnitudes.
        Magnitudes: T::default(), |s, x| s.add(x.abs()), |a, b| a.add(b);
        /// Sum of squares.
        Squares: T::default(), |s, x| s.add(x.mul(x)), |a, b| a.add(b);
        /// Product.
        Product: T::narrow(1.0), |s, x| s.mul(x), |a, b| a.mul(b);
        /// Largest.
        Largest: T::LOWEST, |s, x| s.max(x), |a, b| a.max(b);
        /// Smallest.
        Smallest: T::HIGHEST, |s, x| s.min(x), |a, b| a.min(b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_of_axes_sums_what_it_should() {
        for shape in [&[2usize, 3, 4, 5][..], &[1, 70, 3], &[3, 1, 200], &[7], &[], &[2, 0, 3]] {
            let n: usize = shape.iter().product();
            let x: Vec<f64> = (0..n).map(|i| ((i * 37) % 101) as f64).collect();
            for set in 0..1usize << shape.len() {
                let axes: Vec<usize> = (0..shape.len()).filter(|a| set >> a & 1 == 1).collect();
                let split = Split::new(shape, &axes);
                let found = split.fold(&x, Sum);
                let kept = split.kept();
                let mut wanted = vec![0.0; kept.iter().product()];
                for (i, x) in x.iter().enumerate() {
                    let (mut at, mut flat, mut step) = (i, 0, 1);
                    for a in (0..shape.len()).rev() {
                        let k = at % shape[a];
                        at /= shape[a];
                        if kept[a] != 1 {
                            flat += k * step;
                        }
                        step *= kept[a];
                    }
                    wanted[flat] += x;
                }
                assert_eq!(found, wanted, "{shape:?} {axes:?}");
            }
        }
    }

    #[test]
    fn large_sums_are_exact_to_a_few_units() {
        let n = 1 << 22;
        let x: Vec<f32> = (0..n).map(|i| 1.0 + (i % 1000) as f32 * 1e-3).collect();
        let exact: f64 = x.iter().map(|x| f64::from(*x)).sum();
        let (along, across) =
            (Split::new(&[n], &[0]).fold(&x, Sum)[0], Split::new(&[n / 2, 2], &[0]).fold(&x, Sum));
        assert!((f64::from(along) - exact).abs() / exact < 1e-6);
        assert!((f64::from(across[0] + across[1]) - exact).abs() / exact < 1e-6);
    }
}
