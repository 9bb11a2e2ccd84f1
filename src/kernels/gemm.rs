//! Matrix products through the `gemm` crate. Matrices are views of slices with strides, so that a
//! transposed operand is never copied; products are written into row-major slices.
#![allow(unsafe_code)]

use super::real::Real;
use ::gemm::Parallelism;
use rayon::prelude::*;

/// A strided view of a matrix.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Element (i, j) is `data[i * row_stride + j * col_stride]`. Panics where that leaves `data`.
    pub fn strided(
        data: &'a [T],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Matrix<'a, T> {
        if rows > 0 && cols > 0 {
            let last = (rows - 1)
                .checked_mul(row_stride)
                .zip((cols - 1).checked_mul(col_stride))
                .and_then(|(a, b)| a.checked_add(b));
            assert!(last.is_some_and(|l| l < data.len()), "a matrix lies inside its slice");
        }
        Matrix { data, rows, cols, row_stride, col_stride }
    }
    /// A row-major matrix over the start of `data`.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Matrix<'a, T> {
        Matrix::strided(data, rows, cols, cols, 1)
    }
    /// The `count` rows from row `from` on.
    fn rows_from(self, from: usize, count: usize) -> Matrix<'a, T> {
        Matrix { data: &self.data[from * self.row_stride..], rows: count, ..self }
    }
    /// The transposed view.
    pub fn t(self) -> Matrix<'a, T> {
        Matrix {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// A pointer that tasks share; each writes elements that no other touches.
#[derive(Clone, Copy)]
pub(super) struct Shared<T>(pub(super) *mut T);
// SAFETY: every user hands disjoint element sets to its tasks and joins them before the slice is used.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}
impl<T> Shared<T> {
    /// Pointer to element `i`.
    ///
    /// # Safety
    /// `i` must lie inside the slice that the pointer was taken from.
    pub(super) unsafe fn at(&self, i: usize) -> *mut T {
        // SAFETY: by contract.
        unsafe { self.0.add(i) }
    }
}

/// `c = alpha * a * b`, or `c += alpha * a * b` where `add`.
///
/// # Safety
/// `c` must be valid for `a.rows` rows of `b.cols` elements at distance `c_stride`, and nobody else may
/// touch those elements meanwhile.
pub(super) unsafe fn product_at<T: Real>(
    alpha: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    c: *mut T,
    c_stride: usize,
    add: bool,
    parallel: bool,
) {
    assert_eq!(a.cols, b.rows, "inner sizes of a product agree");
    let (m, n, k) = (a.rows, b.cols, a.cols);
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if !add {
            for i in 0..m {
                // SAFETY: row `i` of `c` is ours by contract.
                unsafe { std::slice::from_raw_parts_mut(c.add(i * c_stride), n) }.fill(T::ZERO);
            }
        }
        return;
    }
    // One contiguous part of the longer side for each thread, which packs its own operands: the threads of
    // the crate share packed operands and wait for each other, which costs a quarter of the speed.
    let threads = if parallel { rayon::current_num_threads() } else { 1 };
    let by_rows = m >= n;
    let side = if by_rows { m } else { n };
    let part = match threads {
        1 => side,
        n => side.div_ceil(n).min(LONGEST).next_multiple_of(PART),
    };
    let c = Shared(c);
    let one = |i: usize| {
        let from = i * part;
        let size = part.min(side - from);
        // SAFETY: `Matrix` keeps (rows, cols, strides) inside its slice; `c` is ours by contract, and parts
        // are disjoint.
        unsafe {
            match by_rows {
                true => serial(alpha, a.rows_from(from, size), b, c.at(from * c_stride), c_stride, add),
                false => serial(alpha, a, b.t().rows_from(from, size).t(), c.at(from), c_stride, add),
            }
        }
    };
    match side.div_ceil(part) {
        1 => one(0),
        parts => (0..parts).into_par_iter().with_max_len(1).for_each(one),
    }
}

/// Sizes of parts are multiples of this, a common multiple of the tiles of the crate's kernels, and at most
/// about that. The last bits of some products still depend on the number of threads: parts of other sizes
/// are summed in other blocks.
const PART: usize = 48;
const LONGEST: usize = 1008;

/// [`product_at`] on this thread; no size is zero.
unsafe fn serial<T: Real>(
    alpha: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    c: *mut T,
    c_stride: usize,
    add: bool,
) {
    // SAFETY: that of `product_at`.
    unsafe {
        ::gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            c,
            1,
            c_stride as isize,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            T::ONE,
            alpha,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// `c = alpha * a * b`, or `c += alpha * a * b` where `add`; `c` is row-major.
pub fn product<T: Real>(
    alpha: T,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    c: &mut [T],
    add: bool,
    parallel: bool,
) {
    assert_eq!(c.len(), a.rows * b.cols, "the result slice holds the product");
    // SAFETY: the assertion and the exclusive borrow.
    unsafe { product_at(alpha, a, b, c.as_mut_ptr(), b.cols, add, parallel) }
}

/// `alpha * a * b` as a new row-major slice.
pub fn produced<T: Real>(alpha: T, a: Matrix<'_, T>, b: Matrix<'_, T>, parallel: bool) -> Vec<T> {
    let mut c = Vec::with_capacity(a.rows * b.cols);
    // SAFETY: the capacity holds the product, all of which is written where nothing is added.
    unsafe {
        product_at(alpha, a, b, c.as_mut_ptr(), b.cols, false, parallel);
        c.set_len(a.rows * b.cols);
    }
    c
}

/// `count` independent products one behind the other; `operands(i)` gives those of the i-th.
/// Small matrices run side by side, large ones one after another on all threads.
pub fn batched<'a, T: Real>(
    (m, n, k): (usize, usize, usize),
    operands: impl Fn(usize) -> (Matrix<'a, T>, Matrix<'a, T>) + Sync,
    count: usize,
) -> Vec<T> {
    let mut c: Vec<T> = Vec::with_capacity(count * m * n);
    let start = Shared(c.as_mut_ptr());
    let work = m as f64 * n as f64 * k as f64;
    let side_by_side = count >= rayon::current_num_threads() && work < 1e8 && work * count as f64 > 3e4;
    let one = |i: usize| {
        let (a, b) = operands(i);
        assert_eq!((a.rows, b.cols), (m, n), "every product has the stated size");
        // SAFETY: part `i` lies inside the capacity and belongs to this call alone.
        unsafe { product_at(T::ONE, a, b, start.at(i * m * n), n, false, !side_by_side && work > 1e5) };
    };
    if side_by_side {
        (0..count).into_par_iter().for_each(one);
    } else {
        (0..count).for_each(one);
    }
    // SAFETY: every part was written.
    unsafe { c.set_len(count * m * n) };
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposed_views_multiply_without_a_copy() {
        let a = [1f64, 2., 3., 4., 5., 6.];
        let b = [1f64, 0., 2., 1., 0., 3.];
        let mut c = [0f64; 4];
        product(2.0, Matrix::new(&a, 2, 3), Matrix::new(&b, 2, 3).t(), &mut c, false, false);
        assert_eq!(c, [14.0, 20.0, 32.0, 44.0]);
        product(1.0, Matrix::new(&a, 2, 3), Matrix::new(&b, 3, 2), &mut c, true, true);
        assert_eq!(c, [19.0, 31.0, 46.0, 66.0 + 1.0]);
    }

    #[test]
    fn parts_on_several_threads_are_the_product() {
        fn checked<T: Real>((m, n, k): (usize, usize, usize)) {
            let noise = |count: usize| -> Vec<T> {
                (0..count).map(|i| T::of((i * 7919 % 1013) as f64 / 1013.0 - 0.5)).collect()
            };
            let (a, b) = (noise(m * k), noise(n * k));
            for (a, b) in [
                (Matrix::new(&a, m, k), Matrix::new(&b, n, k).t()),
                (Matrix::new(&a, k, m).t(), Matrix::new(&b, k, n)),
            ] {
                let one = T::ONE;
                let alone = produced(one, a, b, false);
                for threads in [2, 3, 5] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let parts = pool.install(|| produced(one, a, b, true));
                    let far = |(x, y): (&T, &T)| (x.wide() - y.wide()).abs() > 1e-5;
                    assert!(!alone.iter().zip(&parts).any(far), "{m} x {n} x {k} on {threads} threads");
                    assert!(parts == pool.install(|| produced(one, a, b, true)), "the same each time");
                }
            }
        }
        for size in [(130, 50, 70), (50, 130, 70), (1100, 33, 300), (7, 400, 129), (2, 90, 40)] {
            checked::<f32>(size);
            checked::<f64>(size);
        }
    }

    #[test]
    fn batches_side_by_side_and_one_by_one_are_products() {
        let noise =
            |n: usize| -> Vec<f64> { (0..n).map(|i| (i * 7919 % 1013) as f64 / 1013.0 - 0.5).collect() };
        for (m, n, k, count) in [(3, 5, 2, 4), (40, 30, 50, 6), (70, 64, 33, 1)] {
            let (a, b) = (noise(count * m * k), noise(count * n * k));
            let pair =
                |i: usize| (Matrix::new(&a[i * m * k..], m, k), Matrix::new(&b[i * n * k..], n, k).t());
            let c = batched((m, n, k), pair, count);
            assert_eq!(c.len(), count * m * n);
            for (at, found) in c.iter().enumerate() {
                let (i, r, j) = (at / (m * n), at / n % m, at % n);
                let want: f64 = (0..k).map(|l| a[(i * m + r) * k + l] * b[(i * n + j) * k + l]).sum();
                assert!((found - want).abs() < 1e-12, "{m} {n} {k} at {at}");
            }
            let (x, y) = pair(0);
            assert_eq!(produced(1.0, x, y, true), c[..m * n]);
        }
    }

    #[test]
    fn an_empty_inner_size_gives_zeros() {
        let mut c = [7f32; 4];
        product(1.0, Matrix::new(&[], 2, 0), Matrix::new(&[], 0, 2), &mut c, false, true);
        assert_eq!(c, [0.0; 4]);
    }

    #[test]
    #[should_panic(expected = "inside its slice")]
    fn a_view_beyond_its_slice_is_refused() {
        Matrix::strided(&[0f32; 5], 2, 3, 3, 1);
    }
}
