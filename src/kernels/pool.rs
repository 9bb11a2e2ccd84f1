//! Pooling over windows, forward and backward. Planes of `input` positions in, planes of `output`
//! positions out; fewer spatial axes are leading ones.

use super::real::Real;
use rayon::prelude::*;

/// Valid taps of one output along one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    /// Input index of the first valid tap.
    first: usize,
    /// Valid taps.
    taps: usize,
    /// Taps that lie in the input or its padding.
    padded: usize,
}

/// Sizes of one pooling.
#[derive(Debug, Clone)]
pub struct Pool {
    input: [usize; 3],
    output: [usize; 3],
    dilation: [usize; 3],
    windows: [Vec<Window>; 3],
}

impl Pool {
    /// Windows of `kernel` taps. `pad` is (before, after) per axis.
    pub fn new(
        input: [usize; 3],
        output: [usize; 3],
        kernel: [usize; 3],
        stride: [usize; 3],
        dilation: [usize; 3],
        pad: [(usize, usize); 3],
    ) -> Pool {
        let windows = std::array::from_fn(|a| {
            (0..output[a])
                .map(|o| {
                    let start = (o * stride[a]) as isize - pad[a].0 as isize;
                    let step = dilation[a] as isize;
                    let below = |end: isize| {
                        ((end - start + step - 1).div_euclid(step)).clamp(0, kernel[a] as isize) as usize
                    };
                    let (skipped, inside) = (below(0), below(input[a] as isize));
                    Window {
                        first: (start + skipped as isize * step).max(0) as usize,
                        taps: inside - skipped,
                        padded: below((input[a] + pad[a].1) as isize),
                    }
                })
                .collect()
        });
        Pool { input, output, dilation, windows }
    }

    fn area_in(&self) -> usize {
        self.input.iter().product()
    }
    fn area_out(&self) -> usize {
        self.output.iter().product()
    }

    /// Calls `see(output, padded taps, window)` for each output in order.
    #[inline]
    fn each(&self, mut see: impl FnMut(usize, usize, [Window; 3])) {
        let mut o = 0;
        for z in &self.windows[0] {
            for y in &self.windows[1] {
                for x in &self.windows[2] {
                    see(o, z.padded * y.padded * x.padded, [*z, *y, *x]);
                    o += 1;
                }
            }
        }
    }
    /// Calls `see(input)` for each valid tap.
    #[inline]
    fn taps(&self, w: [Window; 3], mut see: impl FnMut(usize)) {
        for z in 0..w[0].taps {
            for y in 0..w[1].taps {
                let line =
                    ((w[0].first + z * self.dilation[0]) * self.input[1] + w[1].first + y * self.dilation[1])
                        * self.input[2]
                        + w[2].first;
                for x in 0..w[2].taps {
                    see(line + x * self.dilation[2]);
                }
            }
        }
    }

    /// Largest element of each window; `lowest` where a window is all padding. `indices`, where wanted,
    /// receives the winning position within the plane (the first of equals).
    pub fn max<T: Copy + PartialOrd + Send + Sync>(
        &self,
        x: &[T],
        lowest: T,
        y: &mut [T],
        indices: Option<&mut [i64]>,
    ) {
        let (a, b) = (self.area_in(), self.area_out());
        if b == 0 {
            return;
        }
        let plane = |p: usize, y: &mut [T], mut places: Option<&mut [i64]>| {
            let x = &x[p * a..][..a];
            self.each(|o, _, w| {
                let (mut best, mut place) = (lowest, usize::MAX);
                self.taps(w, |i| {
                    if x[i] > best || place == usize::MAX {
                        (best, place) = (x[i], i);
                    }
                });
                y[o] = best;
                if let Some(places) = places.as_mut() {
                    places[o] = if place == usize::MAX { 0 } else { place as i64 };
                }
            });
        };
        match indices {
            None => y.par_chunks_exact_mut(b).enumerate().for_each(|(p, y)| plane(p, y, None)),
            Some(places) => y
                .par_chunks_exact_mut(b)
                .zip(places.par_chunks_exact_mut(b))
                .enumerate()
                .for_each(|(p, (y, places))| plane(p, y, Some(places))),
        }
    }

    /// Sends each output gradient to the (first) largest input of its window, added onto `dx`.
    pub fn max_backward<T: Real>(&self, x: &[T], dy: &[T], dx: &mut [T]) {
        let (a, b) = (self.area_in(), self.area_out());
        if a == 0 {
            return;
        }
        dx.par_chunks_exact_mut(a).enumerate().for_each(|(p, dx)| {
            let (x, dy) = (&x[p * a..][..a], &dy[p * b..][..b]);
            self.each(|o, _, w| {
                let mut place = usize::MAX;
                self.taps(w, |i| {
                    if place == usize::MAX || x[i] > x[place] {
                        place = i;
                    }
                });
                if place != usize::MAX {
                    dx[place] += dy[o];
                }
            });
        });
    }

    fn divisor<T: Real>(padded: usize, w: [Window; 3], include_pad: bool) -> T {
        let n = if include_pad { padded } else { w.iter().map(|w| w.taps).product() };
        T::of(n.max(1) as f64)
    }

    /// Mean of each window, over its valid taps or, where `include_pad`, padding too.
    pub fn mean<T: Real>(&self, x: &[T], include_pad: bool, y: &mut [T]) {
        let (a, b) = (self.area_in(), self.area_out());
        if b == 0 {
            return;
        }
        y.par_chunks_exact_mut(b).enumerate().for_each(|(p, y)| {
            let x = &x[p * a..][..a];
            self.each(|o, padded, w| {
                let mut sum = T::ZERO;
                self.taps(w, |i| sum += x[i]);
                y[o] = sum / Self::divisor(padded, w, include_pad);
            });
        });
    }

    /// Gradient of [`Pool::mean`], added onto `dx`.
    pub fn mean_backward<T: Real>(&self, dy: &[T], include_pad: bool, dx: &mut [T]) {
        let (a, b) = (self.area_in(), self.area_out());
        if a == 0 {
            return;
        }
        dx.par_chunks_exact_mut(a).enumerate().for_each(|(p, dx)| {
            let dy = &dy[p * b..][..b];
            self.each(|o, padded, w| {
                let g = dy[o] / Self::divisor(padded, w, include_pad);
                self.taps(w, |i| dx[i] += g);
            });
        });
    }

    /// p-norm of each window.
    pub fn norm<T: Real>(&self, x: &[T], power: f64, y: &mut [T]) {
        let (a, b) = (self.area_in(), self.area_out());
        if b == 0 {
            return;
        }
        y.par_chunks_exact_mut(b).enumerate().for_each(|(p, y)| {
            let x = &x[p * a..][..a];
            self.each(|o, _, w| {
                let mut sum = 0.0;
                self.taps(w, |i| sum += x[i].wide().abs().powf(power));
                y[o] = T::of(sum.powf(1.0 / power));
            });
        });
    }

    /// Gradient of [`Pool::norm`], added onto `dx`; zero where a whole window is.
    pub fn norm_backward<T: Real>(&self, x: &[T], power: f64, dy: &[T], dx: &mut [T]) {
        let (a, b) = (self.area_in(), self.area_out());
        if a == 0 {
            return;
        }
        dx.par_chunks_exact_mut(a).enumerate().for_each(|(p, dx)| {
            let (x, dy) = (&x[p * a..][..a], &dy[p * b..][..b]);
            self.each(|o, _, w| {
                let mut sum = 0.0;
                self.taps(w, |i| sum += x[i].wide().abs().powf(power));
                let norm = sum.powf(1.0 / power);
                self.taps(w, |i| {
                    let x = x[i].wide();
                    if x != 0.0 {
                        dx[i] += T::of(dy[o].wide() * x.signum() * (x.abs() / norm).powf(power - 1.0));
                    }
                });
            });
        });
    }
}
