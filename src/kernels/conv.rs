//! Convolution by im2col and matrix product, group by group, in tiles of bounded size. Layouts are
//! those of ONNX: x `[batch, groups*in, d, h, w]`, w `[groups*out, in, kd, kh, kw]`,
//! y `[batch, groups*out, od, oh, ow]`; fewer spatial axes are leading ones.
#![allow(unsafe_code)]

use super::gemm::{Matrix, Shared, product_at};
use super::real::{Real, axpy, sum};
use super::wide::Lanes;
use rayon::prelude::*;

/// Sizes of one convolution; all channel counts are per group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Conv {
    pub batch: usize,
    pub groups: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub input: [usize; 3],
    pub output: [usize; 3],
    pub kernel: [usize; 3],
    pub stride: [usize; 3],
    pub dilation: [usize; 3],
    /// Padding before each axis; that after it follows from the output size.
    pub pad: [usize; 3],
}

/// Elements of one im2col tile: half a MiB of `f32`, which stays in the second-level cache.
const TILE: usize = 128 * 1024;

/// A run of outputs on one output row.
struct Run {
    depth: usize,
    row: usize,
    from: usize,
    to: usize,
}

/// The outputs in `from..to` whose tap `o * stride + offset` lies in `0..size`.
#[inline]
pub(super) fn valid(from: usize, to: usize, stride: usize, offset: isize, size: usize) -> (usize, usize) {
    let stride = stride as isize;
    let low = if offset < 0 { (-offset + stride - 1) / stride } else { 0 };
    let high = if offset >= size as isize { 0 } else { (size as isize - 1 - offset) / stride + 1 };
    let from = from.max(low as usize).min(to);
    (from, to.min(high.max(0) as usize).max(from))
}

impl Conv {
    /// Taps of one output: inner size of the product.
    pub fn taps(&self) -> usize {
        self.inputs * self.kernel.iter().product::<usize>()
    }
    /// Input positions of one channel.
    pub fn area_in(&self) -> usize {
        self.input.iter().product()
    }
    /// Output positions of one channel.
    pub fn area_out(&self) -> usize {
        self.output.iter().product()
    }
    /// Whether the input already is its im2col matrix.
    fn pointwise(&self) -> bool {
        self.kernel == [1; 3] && self.stride == [1; 3] && self.pad == [0; 3] && self.input == self.output
    }
    /// One channel in and out a group: the direct kernels apply.
    pub fn depthwise(&self) -> bool {
        self.inputs == 1 && self.groups > 1
    }
    fn check(&self, x: usize, w: usize, y: usize) {
        assert_eq!(x, self.batch * self.groups * self.inputs * self.area_in(), "x has its size");
        assert_eq!(w, self.groups * self.outputs * self.taps(), "w has its size");
        assert_eq!(y, self.batch * self.groups * self.outputs * self.area_out(), "y has its size");
    }
    fn tile(&self, tasks: usize) -> usize {
        let area = self.area_out();
        let fit = if self.pointwise() { area } else { (TILE / self.taps().max(1)).max(16) };
        let wanted = (2 * rayon::current_num_threads()).div_ceil(tasks.max(1));
        fit.min(area.div_ceil(wanted).max(64)).next_multiple_of(16).min(area.max(1))
    }
    fn runs(&self, from: usize, to: usize) -> Vec<Run> {
        let width = self.output[2];
        let mut runs = Vec::with_capacity((to - from) / width.max(1) + 2);
        let mut at = from;
        while at < to {
            let (line, x) = (at / width, at % width);
            let end = width.min(x + to - at);
            runs.push(Run { depth: line / self.output[1], row: line % self.output[1], from: x, to: end });
            at += end - x;
        }
        runs
    }
    /// Calls `see(tap, place in the tile, run, from, to, index of the first input)` for every run of
    /// valid inputs, and with an empty range where a whole run is padding.
    #[inline]
    fn walk(&self, runs: &[Run], mut see: impl FnMut(usize, usize, &Run, usize, usize, usize)) {
        let [d, h, w] = self.input;
        let mut tap = 0;
        for c in 0..self.inputs {
            for kd in 0..self.kernel[0] {
                for kh in 0..self.kernel[1] {
                    for kw in 0..self.kernel[2] {
                        let offset = (kw * self.dilation[2]) as isize - self.pad[2] as isize;
                        let mut place = 0;
                        for run in runs {
                            let id = run.depth * self.stride[0] + kd * self.dilation[0];
                            let ih = run.row * self.stride[1] + kh * self.dilation[1];
                            let inside = (self.pad[0]..self.pad[0] + d).contains(&id)
                                && (self.pad[1]..self.pad[1] + h).contains(&ih);
                            if inside {
                                let (from, to) = valid(run.from, run.to, self.stride[2], offset, w);
                                let line = ((c * d + id - self.pad[0]) * h + ih - self.pad[1]) * w;
                                let first = if from < to {
                                    (line as isize + (from * self.stride[2]) as isize + offset) as usize
                                } else {
                                    0
                                };
                                see(tap, place, run, from, to, first);
                            } else {
                                see(tap, place, run, run.from, run.from, 0);
                            }
                            place += run.to - run.from;
                        }
                        tap += 1;
                    }
                }
            }
        }
    }
    /// Fills `col` (`[taps, to - from]`) from the channels of one group; padding is the default, zero.
    pub fn im2col<T: Copy + Default>(&self, x: &[T], col: &mut [T], from: usize, to: usize) {
        let n = to - from;
        let stride = self.stride[2];
        self.walk(&self.runs(from, to), |tap, place, run, lo, hi, first| {
            let line = &mut col[tap * n + place..][..run.to - run.from];
            line[..lo - run.from].fill(T::default());
            line[hi - run.from..].fill(T::default());
            let line = &mut line[lo - run.from..hi - run.from];
            if line.is_empty() {
            } else if stride == 1 {
                line.copy_from_slice(&x[first..first + hi - lo]);
            } else {
                for (i, v) in line.iter_mut().enumerate() {
                    *v = x[first + i * stride];
                }
            }
        });
    }
    /// Adds `col` back onto the channels of one group.
    fn col2im<T: Real>(&self, col: &[T], x: &mut [T], from: usize, to: usize) {
        let n = to - from;
        let stride = self.stride[2];
        self.walk(&self.runs(from, to), |tap, place, run, lo, hi, first| {
            let line = &col[tap * n + place..][lo - run.from..hi - run.from];
            if line.is_empty() {
            } else if stride == 1 {
                axpy(T::ONE, line, &mut x[first..first + hi - lo]);
            } else {
                for (i, v) in line.iter().enumerate() {
                    x[first + i * stride] += *v;
                }
            }
        });
    }

    /// `y = conv(x, w) + bias`; `bias` has one element per output channel.
    pub fn forward<T: Real + Lanes>(&self, x: &[T], w: &[T], bias: Option<&[T]>, y: &mut [T]) {
        self.check(x.len(), w.len(), y.len());
        if let Some(b) = bias {
            assert_eq!(b.len(), self.groups * self.outputs, "one bias a channel");
        }
        if y.is_empty() {
            return;
        }
        if self.depthwise() {
            return super::depthwise::forward(self, x, w, bias, y);
        }
        let (area, taps) = (self.area_out(), self.taps());
        let (xs, ys) = (self.inputs * self.area_in(), self.outputs * area);
        let images = self.batch * self.groups;
        let tile = self.tile(images);
        let tiles = area.div_ceil(tile);
        let out = Shared(y.as_mut_ptr());
        (0..images * tiles).into_par_iter().for_each_init(Vec::new, |scratch, task| {
            let (image, from) = (task / tiles, task % tiles * tile);
            let (g, to) = (image % self.groups, (from + tile).min(area));
            let n = to - from;
            let x = &x[image * xs..][..xs];
            let weights = Matrix::new(&w[g * self.outputs * taps..], self.outputs, taps);
            let columns = if self.pointwise() {
                Matrix::strided(&x[from..], taps, n, area, 1)
            } else {
                scratch.resize(taps * n, T::ZERO);
                self.im2col(x, scratch, from, to);
                Matrix::new(scratch, taps, n)
            };
            if let Some(bias) = bias {
                for o in 0..self.outputs {
                    // SAFETY: positions `from..to` of the channels of this image and group are this task's.
                    let line =
                        unsafe { std::slice::from_raw_parts_mut(out.at(image * ys + o * area + from), n) };
                    line.fill(bias[g * self.outputs + o]);
                }
            }
            // SAFETY: as above; rows lie `area` apart inside `y`.
            unsafe {
                product_at(T::ONE, weights, columns, out.at(image * ys + from), area, bias.is_some(), false);
            }
        });
    }

    /// Gradient with respect to x, added onto `dx`. With `dy` as input this is a transposed convolution.
    pub fn backward_input<T: Real + Lanes>(&self, w: &[T], dy: &[T], dx: &mut [T]) {
        self.check(dx.len(), w.len(), dy.len());
        if dx.is_empty() || dy.is_empty() {
            return;
        }
        if self.depthwise() {
            return super::depthwise::backward_input(self, w, dy, dx);
        }
        let (area, taps) = (self.area_out(), self.taps());
        let (xs, ys) = (self.inputs * self.area_in(), self.outputs * area);
        let side_by_side = self.batch * self.groups >= rayon::current_num_threads();
        let tile = if self.pointwise() { area } else { self.tile(usize::MAX) };
        let one = |scratch: &mut Vec<T>, image: usize, dx: &mut [T]| {
            let weights =
                Matrix::new(&w[image % self.groups * self.outputs * taps..], self.outputs, taps).t();
            let dy = &dy[image * ys..][..ys];
            for from in (0..area).step_by(tile) {
                let to = (from + tile).min(area);
                let n = to - from;
                let grad = Matrix::strided(&dy[from..], self.outputs, n, area, 1);
                if self.pointwise() {
                    // SAFETY: `dx` holds `taps` rows of `area` elements and is borrowed exclusively.
                    unsafe {
                        product_at(
                            T::ONE,
                            weights,
                            grad,
                            dx.as_mut_ptr().add(from),
                            area,
                            true,
                            !side_by_side,
                        )
                    };
                } else {
                    scratch.resize(taps * n, T::ZERO);
                    super::gemm::product(T::ONE, weights, grad, scratch, false, !side_by_side);
                    self.col2im(scratch, dx, from, to);
                }
            }
        };
        if side_by_side {
            dx.par_chunks_exact_mut(xs)
                .enumerate()
                .for_each_init(Vec::new, |scratch, (image, dx)| one(scratch, image, dx));
        } else {
            let mut scratch = vec![];
            dx.chunks_exact_mut(xs).enumerate().for_each(|(image, dx)| one(&mut scratch, image, dx));
        }
    }

    /// Gradient with respect to w, added onto `dw`. The order of additions depends on the number of
    /// threads alone.
    pub fn backward_weights<T: Real + Lanes>(&self, x: &[T], dy: &[T], dw: &mut [T]) {
        self.check(x.len(), dw.len(), dy.len());
        if dw.is_empty() || dy.is_empty() {
            return;
        }
        if self.depthwise() {
            return super::depthwise::backward_weights(self, x, dy, dw);
        }
        let (area, taps) = (self.area_out(), self.taps());
        let (xs, ys) = (self.inputs * self.area_in(), self.outputs * area);
        let images = self.batch * self.groups;
        let tile = if self.pointwise() { area } else { self.tile(images) };
        let tiles = area.div_ceil(tile);
        let tasks = images * tiles;
        let parts = rayon::current_num_threads().min(tasks).min((1 << 26) / dw.len()).max(1);
        let work = |tasks: std::ops::Range<usize>, dw: &mut [T]| {
            let mut scratch = vec![];
            for task in tasks {
                let (image, from) = (task / tiles, task % tiles * tile);
                let to = (from + tile).min(area);
                let n = to - from;
                let x = &x[image * xs..][..xs];
                let columns = if self.pointwise() {
                    Matrix::strided(&x[from..], taps, n, area, 1)
                } else {
                    scratch.resize(taps * n, T::ZERO);
                    self.im2col(x, &mut scratch, from, to);
                    Matrix::new(&scratch, taps, n)
                };
                let grad = Matrix::strided(&dy[image * ys + from..], self.outputs, n, area, 1);
                let size = self.outputs * taps;
                let dw = &mut dw[image % self.groups * size..][..size];
                super::gemm::product(T::ONE, grad, columns.t(), dw, true, parts == 1);
            }
        };
        if parts == 1 {
            return work(0..tasks, dw);
        }
        let partial: Vec<Vec<T>> = (0..parts)
            .into_par_iter()
            .map(|p| {
                let mut dw = vec![T::ZERO; dw.len()];
                work(p * tasks / parts..(p + 1) * tasks / parts, &mut dw);
                dw
            })
            .collect();
        for p in partial {
            axpy(T::ONE, &p, dw);
        }
    }

    /// Gradient with respect to the bias, added onto `db`.
    pub fn backward_bias<T: Real>(&self, dy: &[T], db: &mut [T]) {
        let area = self.area_out();
        let channels = db.len();
        if area == 0 || channels == 0 {
            return;
        }
        db.par_iter_mut().enumerate().for_each(|(c, db)| {
            for image in dy.chunks_exact(channels * area) {
                *db += sum(&image[c * area..][..area]);
            }
        });
    }
}
