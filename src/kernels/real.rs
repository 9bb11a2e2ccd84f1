//! The two element types that kernels compute in. Slices in, slices or scalars out.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// `f32` or `f64`; finite differences run the very same code in `f64`.
pub trait Real:
    Copy
    + Default
    + PartialOrd
    + Send
    + Sync
    + std::fmt::Debug
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Negative infinity.
    const LOWEST: Self;
    /// Nearest value.
    fn of(x: f64) -> Self;
    /// The same number.
    fn wide(self) -> f64;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Magnitude.
    fn abs(self) -> Self;
}

macro_rules! reals {
    ($($t:ty),*) => { $(impl Real for $t {
        const ZERO: $t = 0.0;
        const ONE: $t = 1.0;
        const LOWEST: $t = <$t>::NEG_INFINITY;
        fn of(x: f64) -> $t { x as $t }
        fn wide(self) -> f64 { self.into() }
        fn sqrt(self) -> $t { <$t>::sqrt(self) }
        fn abs(self) -> $t { <$t>::abs(self) }
    })* };
}
reals!(f32, f64);

/// `y += a * x`.
#[inline]
pub fn axpy<T: Real>(a: T, x: &[T], y: &mut [T]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * *x;
    }
}

/// Partial sums of a fold.
pub(super) const LANES: usize = 16;

/// Sum of `f(x, y)` in sixteen interleaved partial sums, a fixed order that vectorises.
#[inline]
pub fn fold<T: Real>(x: &[T], y: &[T], f: impl Fn(T, T) -> T) -> T {
    let n = x.len().min(y.len());
    let (x, y) = (&x[..n], &y[..n]);
    let mut lanes = [T::ZERO; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let (mut rest, tail) = (T::ZERO, (xs.remainder(), ys.remainder()));
    for (x, y) in xs.zip(ys) {
        for l in 0..LANES {
            lanes[l] += f(x[l], y[l]);
        }
    }
    for (x, y) in tail.0.iter().zip(tail.1) {
        rest += f(*x, *y);
    }
    lanes.iter().fold(rest, |s, l| s + *l)
}

/// Inner product.
#[inline]
pub fn dot<T: Real>(x: &[T], y: &[T]) -> T {
    fold(x, y, |a, b| a * b)
}

/// Sum.
#[inline]
pub fn sum<T: Real>(x: &[T]) -> T {
    fold(x, x, |a, _| a)
}
