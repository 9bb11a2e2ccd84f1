//! Direct convolution for groups of one input channel: no im2col, no matrix product.

use super::conv::{Conv, valid};
use super::real::{Real, axpy, dot};
use rayon::prelude::*;

/// Calls `see(weight, first output, outputs, first input)` for every row of one channel plane.
#[inline]
fn rows(c: &Conv, mut see: impl FnMut(usize, usize, usize, usize)) {
    let ([d, h, w], [od, oh, ow]) = (c.input, c.output);
    for z in 0..od {
        for y in 0..oh {
            for kd in 0..c.kernel[0] {
                let id = z * c.stride[0] + kd * c.dilation[0];
                if !(c.pad[0]..c.pad[0] + d).contains(&id) {
                    continue;
                }
                for kh in 0..c.kernel[1] {
                    let ih = y * c.stride[1] + kh * c.dilation[1];
                    if !(c.pad[1]..c.pad[1] + h).contains(&ih) {
                        continue;
                    }
                    let line = ((id - c.pad[0]) * h + ih - c.pad[1]) * w;
                    for kw in 0..c.kernel[2] {
                        let offset = (kw * c.dilation[2]) as isize - c.pad[2] as isize;
                        let (from, to) = valid(0, ow, c.stride[2], offset, w);
                        if from < to {
                            let first = (line + from * c.stride[2]) as isize + offset;
                            let weight = (kd * c.kernel[1] + kh) * c.kernel[2] + kw;
                            see(weight, (z * oh + y) * ow + from, to - from, first as usize);
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn forward<T: Real>(c: &Conv, x: &[T], w: &[T], bias: Option<&[T]>, y: &mut [T]) {
    let (area, taps, stride) = (c.area_out(), c.taps(), c.stride[2]);
    y.par_chunks_exact_mut(area).enumerate().for_each(|(plane, y)| {
        let channel = plane % (c.groups * c.outputs);
        let x = &x[plane / c.outputs * c.area_in()..][..c.area_in()];
        let w = &w[channel * taps..][..taps];
        y.fill(bias.map_or(T::ZERO, |b| b[channel]));
        rows(c, |k, at, n, first| {
            let y = &mut y[at..at + n];
            if stride == 1 {
                axpy(w[k], &x[first..first + n], y);
            } else {
                let w = w[k];
                y.iter_mut().zip(x[first..].iter().step_by(stride)).for_each(|(y, x)| *y += w * *x);
            }
        });
    });
}

pub(super) fn backward_input<T: Real>(c: &Conv, w: &[T], dy: &[T], dx: &mut [T]) {
    let (area, taps, stride) = (c.area_out(), c.taps(), c.stride[2]);
    dx.par_chunks_exact_mut(c.area_in()).enumerate().for_each(|(plane, dx)| {
        for o in 0..c.outputs {
            let channel = plane % c.groups * c.outputs + o;
            let dy = &dy[(plane * c.outputs + o) * area..][..area];
            let w = &w[channel * taps..][..taps];
            rows(c, |k, at, n, first| {
                let dy = &dy[at..at + n];
                if stride == 1 {
                    axpy(w[k], dy, &mut dx[first..first + n]);
                } else {
                    let w = w[k];
                    dx[first..].iter_mut().step_by(stride).zip(dy).for_each(|(x, y)| *x += w * *y);
                }
            });
        }
    });
}

pub(super) fn backward_weights<T: Real>(c: &Conv, x: &[T], dy: &[T], dw: &mut [T]) {
    let (area, taps, stride) = (c.area_out(), c.taps(), c.stride[2]);
    let channels = c.groups * c.outputs;
    dw.par_chunks_exact_mut(taps).enumerate().for_each(|(channel, dw)| {
        for image in 0..c.batch {
            let dy = &dy[(image * channels + channel) * area..][..area];
            let x = &x[(image * c.groups + channel / c.outputs) * c.area_in()..][..c.area_in()];
            rows(c, |k, at, n, first| {
                let dy = &dy[at..at + n];
                dw[k] += if stride == 1 {
                    dot(&x[first..first + n], dy)
                } else {
                    x[first..].iter().step_by(stride).zip(dy).fold(T::ZERO, |s, (x, y)| s + *x * *y)
                };
            });
        }
    });
}
