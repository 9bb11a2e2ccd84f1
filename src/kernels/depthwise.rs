//! Direct convolution for groups of one input channel: no im2col, no matrix product. Each plane is first
//! laid out so that the inputs of one tap over a whole row of outputs lie side by side, padding included.

use super::conv::Conv;
use super::real::{LANES, Real};
use super::wide::{Lanes, Loop};
use rayon::prelude::*;

/// Lines of one plane: with padding, and for a stride `s` split into `s` phases, element `i` of phase `p`
/// being position `i * s + p`.
struct Lines {
    /// Elements of one phase.
    length: usize,
    /// Where the inputs of each tap of a row begin in its lines.
    taps: Vec<usize>,
    /// Every row of outputs with every line that it reads.
    reads: Vec<Read>,
}

/// A row of outputs reads a line.
struct Read {
    /// The first output.
    output: usize,
    /// The first weight of the line.
    weight: usize,
    /// The first element of the line.
    line: usize,
}

impl Lines {
    fn of(c: &Conv) -> Lines {
        let (stride, reach) = (c.stride[2], (c.kernel[2] - 1) * c.dilation[2]);
        let length = c.output[2] + reach / stride + 1;
        let tap = |k: usize| {
            let at = k * c.dilation[2];
            at % stride * length + at / stride
        };
        let taps = (0..c.kernel[2]).map(tap).collect();
        let mut lines = Lines { length, taps, reads: vec![] };
        let along = |axis: usize, output: usize, tap: usize| -> Option<usize> {
            let at = (output * c.stride[axis] + tap * c.dilation[axis]).checked_sub(c.pad[axis])?;
            (at < c.input[axis]).then_some(at)
        };
        for (z, y) in (0..c.output[0]).flat_map(|z| (0..c.output[1]).map(move |y| (z, y))) {
            for (kd, kh) in (0..c.kernel[0]).flat_map(|d| (0..c.kernel[1]).map(move |h| (d, h))) {
                if let (Some(id), Some(ih)) = (along(0, z, kd), along(1, y, kh)) {
                    lines.reads.push(Read {
                        output: (z * c.output[1] + y) * c.output[2],
                        weight: (kd * c.kernel[1] + kh) * c.kernel[2],
                        line: (id * c.input[1] + ih) * lines.row(c),
                    });
                }
            }
        }
        lines
    }

    /// Elements of all lines of a plane.
    fn size(&self, c: &Conv) -> usize {
        c.input[0] * c.input[1] * self.row(c)
    }

    fn row(&self, c: &Conv) -> usize {
        c.stride[2] * self.length
    }

    /// The part of phase `p` that is no padding: first element, count, and the position of the first.
    #[inline(always)]
    fn inside(&self, c: &Conv, p: usize) -> (usize, usize, usize) {
        let (stride, pad, width) = (c.stride[2], c.pad[2], c.input[2]);
        let first = pad.saturating_sub(p).div_ceil(stride).min(self.length);
        let end = (pad + width).saturating_sub(p).div_ceil(stride).min(self.length);
        (first, end.saturating_sub(first), (first * stride + p).saturating_sub(pad).min(width))
    }

    /// `plane` laid out. `lines` are empty or those of another plane of the same convolution, whose padding
    /// is zero already.
    #[inline(always)]
    fn fill<T: Real>(&self, c: &Conv, plane: &[T], lines: &mut Vec<T>) {
        lines.resize(self.size(c), T::ZERO);
        let (stride, width) = (c.stride[2], c.input[2]);
        for (x, row) in plane.chunks_exact(width.max(1)).zip(lines.chunks_exact_mut(self.row(c))) {
            if stride == 2 {
                let (even, odd, rest) = self.halves(c, row);
                let pairs = even.iter_mut().zip(odd).zip(x.chunks_exact(2));
                pairs.for_each(|((a, b), pair)| (*a, *b) = (pair[0], pair[1]));
                for (x, at) in x.iter().zip(0..).skip(rest) {
                    self.place(c, at).into_iter().for_each(|i| row[i] = *x);
                }
                continue;
            }
            for p in 0..stride {
                let (first, count, from) = self.inside(c, p);
                let line = &mut row[p * self.length + first..][..count];
                match stride {
                    1 => line.copy_from_slice(&x[from..from + count]),
                    _ => {
                        line.iter_mut().zip(x[from..].iter().step_by(stride)).for_each(|(to, v)| *to = *v);
                    }
                }
            }
        }
    }

    /// Adds lines back onto `plane`.
    #[inline(always)]
    fn gather<T: Real>(&self, c: &Conv, lines: &mut [T], plane: &mut [T]) {
        let (stride, width) = (c.stride[2], c.input[2]);
        for (x, row) in plane.chunks_exact_mut(width.max(1)).zip(lines.chunks_exact_mut(self.row(c))) {
            if stride == 2 {
                let (even, odd, rest) = self.halves(c, row);
                let pairs = even.iter().zip(odd).zip(x.chunks_exact_mut(2));
                pairs.for_each(|((a, b), pair)| {
                    pair[0] += *a;
                    pair[1] += *b;
                });
                for (x, at) in x.iter_mut().zip(0..).skip(rest) {
                    self.place(c, at).into_iter().for_each(|i| *x += row[i]);
                }
                continue;
            }
            for p in 0..stride {
                let (first, count, from) = self.inside(c, p);
                let line = &row[p * self.length + first..][..count];
                x[from..].iter_mut().step_by(stride).zip(line).for_each(|(x, v)| *x += *v);
            }
        }
    }

    /// Where position `at` of an input row lies among its lines, if an output reads it.
    #[inline(always)]
    fn place(&self, c: &Conv, at: usize) -> Option<usize> {
        let (phase, i) = ((at + c.pad[2]) % c.stride[2], (at + c.pad[2]) / c.stride[2]);
        (i < self.length).then_some(phase * self.length + i)
    }

    /// For stride 2: what even and what odd positions of a row of inputs have in its lines `row`, and the
    /// first position that is in neither. Pairs of a fixed size become shuffles of vectors.
    #[inline(always)]
    fn halves<'a, T>(&self, c: &Conv, row: &'a mut [T]) -> (&'a mut [T], &'a mut [T], usize) {
        let (pad, length) = (c.pad[2], self.length);
        let (zero, one) = row.split_at_mut(length);
        let (even, odd) = if pad % 2 == 0 { (zero, one) } else { (one, zero) };
        let (from, next) = ((pad / 2).min(length), pad.div_ceil(2).min(length));
        let pairs = (c.input[2] / 2).min(length - from).min(length - next);
        (&mut even[from..][..pairs], &mut odd[next..][..pairs], 2 * pairs)
    }
}

pub(super) fn forward<T: Real + Lanes>(c: &Conv, x: &[T], w: &[T], bias: Option<&[T]>, y: &mut [T]) {
    let lines = Lines::of(c);
    let taps = c.taps();
    y.par_chunks_exact_mut(c.area_out()).enumerate().for_each_init(Vec::new, |scratch, (plane, y)| {
        let channel = plane % (c.groups * c.outputs);
        let x = &x[plane / c.outputs * c.area_in()..][..c.area_in()];
        let w = &w[channel * taps..][..taps];
        y.fill(bias.map_or(T::ZERO, |b| b[channel]));
        T::launch(Forward { c, lines: &lines, x, w, y, scratch });
    });
}

struct Forward<'a, T> {
    c: &'a Conv,
    lines: &'a Lines,
    x: &'a [T],
    w: &'a [T],
    y: &'a mut [T],
    scratch: &'a mut Vec<T>,
}

impl<T: Real> Loop for Forward<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        let Forward { c, lines, x, w, y, scratch } = self;
        lines.fill(c, x, scratch);
        let width = c.output[2];
        for Read { output, weight, line } in &lines.reads {
            let y = &mut y[*output..][..width];
            let w = &w[*weight..][..c.kernel[2]];
            let read = |k: usize| &scratch[line + lines.taps[k]..][..width];
            let mut k = 0;
            while k + 3 <= w.len() {
                let (w0, w1, w2) = (w[k], w[k + 1], w[k + 2]);
                let (a, b, c) = (read(k), read(k + 1), read(k + 2));
                for (((y, a), b), c) in y.iter_mut().zip(a).zip(b).zip(c) {
                    *y += w0 * *a + w1 * *b + w2 * *c;
                }
                k += 3;
            }
            for k in k..w.len() {
                y.iter_mut().zip(read(k)).for_each(|(y, v)| *y += w[k] * *v);
            }
        }
    }
}

pub(super) fn backward_input<T: Real + Lanes>(c: &Conv, w: &[T], dy: &[T], dx: &mut [T]) {
    let lines = Lines::of(c);
    let (area, taps) = (c.area_out(), c.taps());
    dx.par_chunks_exact_mut(c.area_in()).enumerate().for_each_init(Vec::new, |scratch, (plane, dx)| {
        for o in 0..c.outputs {
            let channel = plane % c.groups * c.outputs + o;
            let dy = &dy[(plane * c.outputs + o) * area..][..area];
            let w = &w[channel * taps..][..taps];
            T::launch(BackwardInput { c, lines: &lines, w, dy, dx, scratch });
        }
    });
}

struct BackwardInput<'a, T> {
    c: &'a Conv,
    lines: &'a Lines,
    w: &'a [T],
    dy: &'a [T],
    dx: &'a mut [T],
    scratch: &'a mut Vec<T>,
}

impl<T: Real> Loop for BackwardInput<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        let BackwardInput { c, lines, w, dy, dx, scratch } = self;
        scratch.clear();
        scratch.resize(lines.size(c), T::ZERO);
        let width = c.output[2];
        for Read { output, weight, line } in &lines.reads {
            let dy = &dy[*output..][..width];
            for (w, tap) in w[*weight..][..c.kernel[2]].iter().zip(&lines.taps) {
                let line = &mut scratch[line + tap..][..width];
                line.iter_mut().zip(dy).for_each(|(x, d)| *x += *w * *d);
            }
        }
        lines.gather(c, scratch, dx);
    }
}

pub(super) fn backward_weights<T: Real + Lanes>(c: &Conv, x: &[T], dy: &[T], dw: &mut [T]) {
    let lines = Lines::of(c);
    let (area, taps) = (c.area_out(), c.taps());
    let channels = c.groups * c.outputs;
    dw.par_chunks_exact_mut(taps).enumerate().for_each_init(Vec::new, |scratch, (channel, dw)| {
        let mut sums = vec![[T::ZERO; LANES]; taps];
        for image in 0..c.batch {
            let dy = &dy[(image * channels + channel) * area..][..area];
            let x = &x[(image * c.groups + channel / c.outputs) * c.area_in()..][..c.area_in()];
            T::launch(BackwardWeights { c, lines: &lines, x, dy, sums: &mut sums, scratch });
        }
        for (dw, sums) in dw.iter_mut().zip(&sums) {
            *dw += sums.iter().fold(T::ZERO, |s, v| s + *v);
        }
    });
}

struct BackwardWeights<'a, T> {
    c: &'a Conv,
    lines: &'a Lines,
    x: &'a [T],
    dy: &'a [T],
    /// Partial sums of each weight.
    sums: &'a mut [[T; LANES]],
    scratch: &'a mut Vec<T>,
}

impl<T: Real> Loop for BackwardWeights<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        let BackwardWeights { c, lines, x, dy, sums, scratch } = self;
        lines.fill(c, x, scratch);
        let width = c.output[2];
        for Read { output, weight, line } in &lines.reads {
            let dy = &dy[*output..][..width];
            for (sums, tap) in sums[*weight..][..c.kernel[2]].iter_mut().zip(&lines.taps) {
                let line = &scratch[line + tap..][..width];
                let (xs, ys) = (line.chunks_exact(LANES), dy.chunks_exact(LANES));
                let tail = (xs.remainder(), ys.remainder());
                let mut own = *sums;
                for (x, y) in xs.zip(ys) {
                    for l in 0..LANES {
                        own[l] += x[l] * y[l];
                    }
                }
                for (s, (x, y)) in own.iter_mut().zip(tail.0.iter().zip(tail.1)) {
                    *s += *x * *y;
                }
                *sums = own;
            }
        }
    }
}
