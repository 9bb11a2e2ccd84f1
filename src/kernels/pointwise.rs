//! Element-wise loops over one, two or three operands that broadcast against each other.
#![allow(unsafe_code)]

use super::analytic::Analytic;
use super::wide::{Lanes, Loop, filled};
use std::mem::MaybeUninit;

/// A function of one number with its derivative.
pub trait Curve: Copy + std::fmt::Debug + Send + Sync + 'static {
    /// Whether the derivative is given in terms of the function's value, not its argument.
    const OF_OUTPUT: bool = false;
    /// The function.
    fn at<T: Analytic>(self, x: T) -> T;
    /// The derivative at `v` (see [`Curve::OF_OUTPUT`]).
    fn slope<T: Analytic>(self, v: T) -> T;
}

struct Map<'a, A, R, F>(&'a [A], &'a mut [MaybeUninit<R>], F);
impl<A: Copy, R, F: Fn(A) -> R> Loop for Map<'_, A, R, F> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        for (o, x) in self.1.iter_mut().zip(self.0) {
            o.write((self.2)(*x));
        }
    }
}

/// `f` of each element.
pub fn map<A: Lanes, R: Copy + Send>(x: &[A], f: impl Fn(A) -> R + Copy + Sync) -> Vec<R> {
    // SAFETY: a piece and its part of `x` have one length, so that the loop writes all of it.
    unsafe { filled(x.len(), 1, 1, &|at, out| A::launch(Map(&x[at..at + out.len()], out, f))) }
}

struct At<'a, T, C>(&'a [T], &'a mut [MaybeUninit<T>], C);
impl<T: Analytic, C: Curve> Loop for At<'_, T, C> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        for (o, x) in self.1.iter_mut().zip(self.0) {
            o.write(self.2.at(*x));
        }
    }
}

/// The curve at each element.
pub fn at<T: Analytic + Lanes, C: Curve>(curve: C, x: &[T]) -> Vec<T> {
    // SAFETY: as in `map`.
    unsafe { filled(x.len(), 1, 1, &|from, out| T::launch(At(&x[from..from + out.len()], out, curve))) }
}

struct Slope<'a, T, C>(&'a [T], &'a [T], &'a mut [MaybeUninit<T>], C);
impl<T: Analytic, C: Curve> Loop for Slope<'_, T, C> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        for ((o, v), g) in self.2.iter_mut().zip(self.0).zip(self.1) {
            o.write(self.3.slope(*v) * *g);
        }
    }
}

/// The curve's derivative at each element times `grad`.
pub fn slope<T: Analytic + Lanes, C: Curve>(curve: C, v: &[T], grad: &[T]) -> Vec<T> {
    assert_eq!(v.len(), grad.len(), "one gradient an element");
    // SAFETY: as in `map`.
    unsafe {
        filled(v.len(), 1, 1, &|from, out| {
            let to = from + out.len();
            T::launch(Slope(&v[from..to], &grad[from..to], out, curve));
        })
    }
}

/// How `N` row-major operands lie on their common shape, in as few axes as possible.
#[derive(Debug, Clone)]
pub struct Broadcast<const N: usize> {
    /// Elements of the result.
    len: usize,
    /// Size and, for each operand, distance of neighbours (0 where it is repeated), outermost first.
    /// The innermost distances are 0 or 1.
    axes: Vec<(usize, [usize; N])>,
}

impl<const N: usize> Broadcast<N> {
    /// Operands of these shapes on `out`, which they must broadcast to.
    pub fn new(out: &[usize], shapes: [&[usize]; N]) -> Broadcast<N> {
        let mut steps = [1usize; N];
        let mut axes: Vec<(usize, [usize; N])> = vec![];
        for back in 1..=out.len() {
            let size = out[out.len() - back];
            let mut distance = [0; N];
            for (n, shape) in shapes.iter().enumerate() {
                assert!(shape.len() <= out.len(), "operands have no more axes than the result");
                let own = if back <= shape.len() { shape[shape.len() - back] } else { 1 };
                assert!(own == size || own == 1, "operands broadcast to the result");
                if own != 1 {
                    distance[n] = steps[n];
                }
                steps[n] *= own;
            }
            if size == 1 {
                continue;
            }
            match axes.last_mut() {
                Some((inner, near)) if (0..N).all(|n| distance[n] == near[n] * *inner) => *inner *= size,
                _ => axes.push((size, distance)),
            }
        }
        if axes.is_empty() {
            axes.push((1, [0; N]));
        }
        axes.reverse();
        Broadcast { len: out.iter().product(), axes }
    }

    /// Elements of the innermost axis.
    fn inner(&self) -> usize {
        self.axes[self.axes.len() - 1].0
    }

    /// Whether operand `n` runs along the innermost axis.
    fn runs(&self, n: usize) -> bool {
        self.axes[self.axes.len() - 1].1[n] != 0
    }

    /// Calls `f(first, length, operand positions)` for the stretches of the innermost axis that make up
    /// the result from `from` to `to`.
    #[inline(always)]
    fn stretches(&self, from: usize, to: usize, mut f: impl FnMut(usize, usize, [usize; N])) {
        let outer = &self.axes[..self.axes.len() - 1];
        let (inner, near) = self.axes[self.axes.len() - 1];
        if from >= to || inner == 0 {
            return;
        }
        let (mut row, mut column) = (from / inner, from % inner);
        let mut index = vec![0; outer.len()];
        let mut at = [0usize; N];
        for (axis, (size, steps)) in outer.iter().enumerate().rev() {
            index[axis] = row % size;
            row /= size;
            for n in 0..N {
                at[n] += index[axis] * steps[n];
            }
        }
        let mut first = from;
        while first < to {
            let length = (inner - column).min(to - first);
            let mut here = at;
            for n in 0..N {
                here[n] += column * near[n];
            }
            f(first, length, here);
            first += length;
            column = 0;
            for (axis, (size, steps)) in outer.iter().enumerate().rev() {
                index[axis] += 1;
                for n in 0..N {
                    at[n] += steps[n];
                }
                if index[axis] < *size {
                    break;
                }
                for n in 0..N {
                    at[n] -= steps[n] * size;
                }
                index[axis] = 0;
            }
        }
    }
}

struct Zip<'a, A, B, R, F> {
    plan: &'a Broadcast<2>,
    a: &'a [A],
    b: &'a [B],
    from: usize,
    out: &'a mut [MaybeUninit<R>],
    f: F,
}
impl<A: Copy, B: Copy, R, F: Fn(A, B) -> R> Loop for Zip<'_, A, B, R, F> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        let Zip { plan, a, b, from, out, f } = self;
        let runs = (plan.runs(0), plan.runs(1));
        plan.stretches(from, from + out.len(), |first, n, [i, j]| {
            let out = &mut out[first - from..][..n];
            match runs {
                (true, true) => {
                    for ((o, a), b) in out.iter_mut().zip(&a[i..i + n]).zip(&b[j..j + n]) {
                        o.write(f(*a, *b));
                    }
                }
                (true, false) => {
                    let b = b[j];
                    for (o, a) in out.iter_mut().zip(&a[i..i + n]) {
                        o.write(f(*a, b));
                    }
                }
                (false, true) => {
                    let a = a[i];
                    for (o, b) in out.iter_mut().zip(&b[j..j + n]) {
                        o.write(f(a, *b));
                    }
                }
                (false, false) => {
                    let (a, b) = (a[i], b[j]);
                    for o in out.iter_mut() {
                        o.write(f(a, b));
                    }
                }
            }
        });
    }
}

/// `f` of each pair.
pub fn zip<A, B, R, F>(plan: &Broadcast<2>, a: &[A], b: &[B], f: F) -> Vec<R>
where
    A: Copy + Sync,
    B: Lanes,
    R: Copy + Send,
    F: Fn(A, B) -> R + Copy + Sync,
{
    // SAFETY: the stretches cover a piece without gaps, and each is written whole or the slices panic.
    unsafe {
        filled(plan.len, unit(plan.inner()), 1, &|from, out| B::launch(Zip { plan, a, b, from, out, f }))
    }
}

struct Zip3<'a, A, B, C, R, F> {
    plan: &'a Broadcast<3>,
    a: &'a [A],
    b: &'a [B],
    c: &'a [C],
    from: usize,
    out: &'a mut [MaybeUninit<R>],
    f: F,
}
impl<A: Copy, B: Copy, C: Copy, R, F: Fn(A, B, C) -> R> Loop for Zip3<'_, A, B, C, R, F> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        let Zip3 { plan, a, b, c, from, out, f } = self;
        let steps = plan.axes[plan.axes.len() - 1].1;
        plan.stretches(from, from + out.len(), |first, n, [i, j, k]| {
            let out = &mut out[first - from..][..n];
            match steps {
                [1, 1, 1] => {
                    let operands = a[i..i + n].iter().zip(&b[j..j + n]).zip(&c[k..k + n]);
                    for (o, ((a, b), c)) in out.iter_mut().zip(operands) {
                        o.write(f(*a, *b, *c));
                    }
                }
                [1, 1, 0] => {
                    let c = c[k];
                    for (o, (a, b)) in out.iter_mut().zip(a[i..i + n].iter().zip(&b[j..j + n])) {
                        o.write(f(*a, *b, c));
                    }
                }
                [1, 0, 1] => {
                    let b = b[j];
                    for (o, (a, c)) in out.iter_mut().zip(a[i..i + n].iter().zip(&c[k..k + n])) {
                        o.write(f(*a, b, *c));
                    }
                }
                _ => {
                    for (l, o) in out.iter_mut().enumerate() {
                        o.write(f(a[i + l * steps[0]], b[j + l * steps[1]], c[k + l * steps[2]]));
                    }
                }
            }
        });
    }
}

/// `f` of each triple.
pub fn zip3<A, B, C, R, F>(plan: &Broadcast<3>, a: &[A], b: &[B], c: &[C], f: F) -> Vec<R>
where
    A: Copy + Sync,
    B: Copy + Sync,
    C: Lanes,
    R: Copy + Send,
    F: Fn(A, B, C) -> R + Copy + Sync,
{
    // SAFETY: as in `zip`.
    unsafe {
        filled(plan.len, unit(plan.inner()), 1, &|from, out| {
            C::launch(Zip3 { plan, a, b, c, from, out, f });
        })
    }
}

/// The piece size that keeps short rows whole.
fn unit(inner: usize) -> usize {
    if inner <= 1 << 12 { inner.max(1) } else { 1 }
}

/// Elements of an operand repeated to the result's shape, any type.
pub fn spread<T: Clone>(plan: &Broadcast<1>, x: &[T]) -> Vec<T> {
    let mut out = Vec::with_capacity(plan.len);
    plan.stretches(0, plan.len, |_, n, [i]| match plan.runs(0) {
        true => out.extend_from_slice(&x[i..i + n]),
        false => out.extend(std::iter::repeat_n(&x[i], n).cloned()),
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::wide::PARALLEL;

    fn index(mut at: usize, out: &[usize], shape: &[usize]) -> usize {
        let (mut flat, mut step) = (0, 1);
        for back in 1..=out.len() {
            let i = at % out[out.len() - back];
            at /= out[out.len() - back];
            if back <= shape.len() {
                let own = shape[shape.len() - back];
                flat += step * if own == 1 { 0 } else { i };
                step *= own;
            }
        }
        flat
    }

    #[test]
    fn every_broadcast_reads_the_right_elements() {
        for (out, a, b) in [
            (&[][..], &[][..], &[][..]),
            (&[3], &[3], &[]),
            (&[2, 3, 4], &[2, 3, 4], &[2, 3, 4]),
            (&[2, 3, 4], &[4], &[3, 1]),
            (&[2, 3, 4], &[2, 1, 4], &[1, 3, 1]),
            (&[2, 3, 4, 5], &[3, 1, 1], &[2, 3, 4, 5]),
            (&[5, 1, 7], &[1, 1, 7], &[5, 1, 1]),
            (&[0, 4], &[4], &[0, 1]),
            (&[PARALLEL / 4, 3, 7], &[3, 1], &[PARALLEL / 4, 3, 7]),
            (&[3, PARALLEL + 9], &[3, 1], &[1, PARALLEL + 9]),
        ] {
            let count = |s: &[usize]| s.iter().product::<usize>();
            let (x, y): (Vec<u64>, Vec<u64>) =
                ((0..count(a) as u64).collect(), (0..count(b) as u64).map(|i| i << 32).collect());
            let found = zip(&Broadcast::new(out, [a, b]), &x, &y, |a, b| a + b);
            let wanted: Vec<u64> =
                (0..count(out)).map(|i| x[index(i, out, a)] + y[index(i, out, b)]).collect();
            assert!(found == wanted, "{out:?} {a:?} {b:?}");
            let three = zip3(&Broadcast::new(out, [a, b, a]), &x, &y, &x, |a, b, c| a + b + 2 * c);
            assert!(three.iter().zip(&wanted).zip(0..).all(|((t, w), i)| *t == w + 2 * x[index(i, out, a)]));
            let other = zip3(&Broadcast::new(out, [a, a, b]), &x, &x, &y, |a, b, c| a + 2 * b + c);
            assert!(other == three, "{out:?} {a:?} {b:?}");
            let wide = spread(&Broadcast::new(out, [a]), &x);
            assert!(wide.len() == count(out) && wide.iter().zip(0..).all(|(w, i)| *w == x[index(i, out, a)]));
        }
    }
}
