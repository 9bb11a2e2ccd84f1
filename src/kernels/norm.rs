//! Normalisation of rows with scale and bias in one pass over memory each way, and the per-channel
//! affine map that batch normalisation is at inference.

use super::real::{Real, axpy, dot, fold, sum};
use rayon::prelude::*;

/// Rows of `width` elements that are normalised on their own. A row holds `channels` runs of
/// `width / channels` elements that share one scale and bias; row `r` uses parameters from
/// `(r % cycle) * channels`.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// Elements of a row.
    pub width: usize,
    /// Runs of a row with parameters of their own.
    pub channels: usize,
    /// Rows after which the parameters repeat.
    pub cycle: usize,
    /// Whether the mean is taken off; else the root mean square alone divides.
    pub centred: bool,
    /// Added to the variance.
    pub epsilon: f64,
}

/// Gradients that a backward pass may produce.
#[derive(Debug, Default)]
pub struct Gradients<T> {
    /// With respect to x.
    pub x: Option<Vec<T>>,
    /// With respect to the scale.
    pub scale: Option<Vec<T>>,
    /// With respect to the bias.
    pub bias: Option<Vec<T>>,
}

impl Rows {
    /// Mean (0 where not centred) and reciprocal standard deviation of a row.
    pub fn statistics<T: Real>(&self, x: &[T]) -> (T, T) {
        let n = T::of(x.len().max(1) as f64);
        let mean = if self.centred { sum(x) / n } else { T::ZERO };
        let variance = fold(x, x, |a, _| (a - mean) * (a - mean)) / n;
        (mean, T::ONE / (variance + T::of(self.epsilon)).sqrt())
    }

    /// Adds to `dx` what flows back through the mean and the reciprocal standard deviation of each row,
    /// given their gradients.
    pub fn statistics_backward<T: Real>(
        &self,
        x: &[T],
        mean: Option<&[T]>,
        inverse: Option<&[T]>,
        dx: &mut [T],
    ) {
        assert_eq!(x.len(), dx.len(), "x and dx have one size");
        if self.width == 0 {
            return;
        }
        let n = T::of(self.width as f64);
        for (r, (dx, x)) in dx.chunks_exact_mut(self.width).zip(x.chunks_exact(self.width)).enumerate() {
            let (centre, inv) = self.statistics(x);
            let flat = mean.filter(|_| self.centred).map_or(T::ZERO, |g| g[r] / n);
            let slope = inverse.map_or(T::ZERO, |g| T::ZERO - g[r] * inv * inv * inv / n);
            dx.iter_mut().zip(x).for_each(|(d, x)| *d += flat + slope * (*x - centre));
        }
    }

    fn parameters(&self) -> usize {
        self.cycle * self.channels
    }

    /// `y = (x - mean) / std * scale + bias`. Gives (mean, reciprocal std) of each row.
    pub fn forward<T: Real>(
        &self,
        x: &[T],
        scale: Option<&[T]>,
        bias: Option<&[T]>,
        y: &mut [T],
    ) -> Vec<(T, T)> {
        for p in [scale, bias].into_iter().flatten() {
            assert_eq!(p.len(), self.parameters(), "one parameter a run");
        }
        assert_eq!(x.len(), y.len(), "x and y have one size");
        if self.width == 0 {
            return vec![];
        }
        let run = self.width / self.channels;
        y.par_chunks_exact_mut(self.width)
            .zip(x.par_chunks_exact(self.width))
            .enumerate()
            .with_min_len((8192 / self.width).max(1))
            .map(|(r, (y, x))| {
                let (mean, inv) = self.statistics(x);
                let base = r % self.cycle * self.channels;
                if run == 1 {
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = (*x - mean) * inv);
                    if let Some(s) = scale {
                        y.iter_mut().zip(&s[base..]).for_each(|(y, s)| *y = *y * *s);
                    }
                    if let Some(b) = bias {
                        y.iter_mut().zip(&b[base..]).for_each(|(y, b)| *y += *b);
                    }
                } else {
                    for (c, (y, x)) in y.chunks_exact_mut(run).zip(x.chunks_exact(run)).enumerate() {
                        let s = scale.map_or(T::ONE, |s| s[base + c]) * inv;
                        let b = bias.map_or(T::ZERO, |b| b[base + c]);
                        y.iter_mut().zip(x).for_each(|(y, x)| *y = (*x - mean) * s + b);
                    }
                }
                (mean, inv)
            })
            .collect()
    }

    /// Gradients of [`Rows::forward`]; `needs` are those of x, scale, bias. The order of additions
    /// depends on the number of threads alone.
    pub fn backward<T: Real>(
        &self,
        x: &[T],
        scale: Option<&[T]>,
        dy: &[T],
        needs: [bool; 3],
    ) -> Gradients<T> {
        assert_eq!(x.len(), dy.len(), "x and dy have one size");
        let parameters = self.parameters();
        let mut dx = if needs[0] { vec![T::ZERO; x.len()] } else { vec![] };
        let rows = x.len().checked_div(self.width).unwrap_or(0);
        let parts = rayon::current_num_threads().clamp(1, rows.max(1));
        let per = rows.div_ceil(parts).max(1);
        let run = self.width.checked_div(self.channels).unwrap_or(0);
        let mut slices: Vec<&mut [T]> = dx.chunks_mut((per * self.width).max(1)).collect();
        slices.resize_with(parts, Default::default);
        let partial: Vec<(Vec<T>, Vec<T>)> = slices
            .into_par_iter()
            .enumerate()
            .map(|(p, dx)| {
                let mut ds = vec![T::ZERO; if needs[1] { parameters } else { 0 }];
                let mut db = vec![T::ZERO; if needs[2] { parameters } else { 0 }];
                let mut normal = vec![T::ZERO; self.width];
                let mut grad = vec![T::ZERO; self.width];
                for (i, r) in (p * per..((p + 1) * per).min(rows)).enumerate() {
                    let (x, dy) = (&x[r * self.width..][..self.width], &dy[r * self.width..][..self.width]);
                    let base = r % self.cycle * self.channels;
                    let (mean, inv) = self.statistics(x);
                    normal.iter_mut().zip(x).for_each(|(n, x)| *n = (*x - mean) * inv);
                    if needs[1] && run == 1 {
                        ds[base..].iter_mut().zip(dy).zip(&normal).for_each(|((s, g), n)| *s += *g * *n);
                    } else if needs[1] {
                        for c in 0..self.channels {
                            ds[base + c] += dot(&dy[c * run..][..run], &normal[c * run..][..run]);
                        }
                    }
                    if needs[2] && run == 1 {
                        axpy(T::ONE, dy, &mut db[base..base + self.width]);
                    } else if needs[2] {
                        for c in 0..self.channels {
                            db[base + c] += sum(&dy[c * run..][..run]);
                        }
                    }
                    if !needs[0] {
                        continue;
                    }
                    match scale {
                        None => grad.copy_from_slice(dy),
                        Some(s) if run == 1 => {
                            grad.iter_mut().zip(dy).zip(&s[base..]).for_each(|((o, g), s)| *o = *g * *s)
                        }
                        Some(s) => {
                            for c in 0..self.channels {
                                let (o, g) = (&mut grad[c * run..][..run], &dy[c * run..][..run]);
                                o.iter_mut().zip(g).for_each(|(o, g)| *o = *g * s[base + c]);
                            }
                        }
                    }
                    let n = T::of(self.width as f64);
                    let along = dot(&grad, &normal) / n;
                    let mean = if self.centred { sum(&grad) / n } else { T::ZERO };
                    let dx = &mut dx[i * self.width..][..self.width];
                    for ((o, g), n) in dx.iter_mut().zip(&grad).zip(&normal) {
                        *o = (*g - mean - *n * along) * inv;
                    }
                }
                (ds, db)
            })
            .collect();
        let total = |wanted: bool, of: fn(&(Vec<T>, Vec<T>)) -> &Vec<T>| {
            wanted.then(|| {
                let mut total = vec![T::ZERO; parameters];
                partial.iter().for_each(|p| axpy(T::ONE, of(p), &mut total));
                total
            })
        };
        Gradients {
            scale: total(needs[1], |p| &p.0),
            bias: total(needs[2], |p| &p.1),
            x: needs[0].then_some(dx),
        }
    }
}

/// Local response normalisation (Krizhevsky et al. 2012): each element of `[outer, channels, inner]` over
/// a power of the squares of its neighbours along the channels.
#[derive(Debug, Clone, Copy)]
pub struct Response {
    /// Channels.
    pub channels: usize,
    /// Elements of a channel.
    pub inner: usize,
    /// Channels of a neighbourhood.
    pub size: usize,
    /// Factor of the mean of the squares.
    pub alpha: f64,
    /// Power.
    pub beta: f64,
    /// Added to the mean.
    pub bias: f64,
}

impl Response {
    fn image(&self) -> usize {
        self.channels * self.inner
    }

    /// Sums over channels `c - before..=c + after` of every element.
    fn window(&self, v: &[f64], before: usize, after: usize) -> Vec<f64> {
        let mut out = vec![0.0; v.len()];
        for (c, out) in out.chunks_exact_mut(self.inner).enumerate() {
            for k in c.saturating_sub(before)..=(c + after).min(self.channels - 1) {
                axpy(1.0, &v[k * self.inner..][..self.inner], out);
            }
        }
        out
    }

    /// What is raised to the power, of one image.
    fn scales<T: Real>(&self, x: &[T]) -> Vec<f64> {
        let squares: Vec<f64> = x.iter().map(|x| x.wide().powi(2)).collect();
        let mut sums = self.window(&squares, (self.size - 1) / 2, self.size / 2);
        let factor = self.alpha / self.size as f64;
        sums.iter_mut().for_each(|s| *s = self.bias + factor * *s);
        sums
    }

    /// `y = x / (bias + alpha / size * sum of x^2)^beta`.
    pub fn forward<T: Real>(&self, x: &[T], y: &mut [T]) {
        assert_eq!(x.len(), y.len(), "x and y have one size");
        if self.image() == 0 {
            return;
        }
        y.par_chunks_exact_mut(self.image()).zip(x.par_chunks_exact(self.image())).for_each(|(y, x)| {
            for ((y, x), s) in y.iter_mut().zip(x).zip(self.scales(x)) {
                *y = *x * T::of(s.powf(-self.beta));
            }
        });
    }

    /// Gradient of [`Response::forward`]; an element takes part in every neighbourhood that it lies in.
    pub fn backward<T: Real>(&self, x: &[T], dy: &[T], dx: &mut [T]) {
        assert!(x.len() == dy.len() && x.len() == dx.len(), "x, dy and dx have one size");
        if self.image() == 0 {
            return;
        }
        let factor = -2.0 * self.alpha * self.beta / self.size as f64;
        dx.par_chunks_exact_mut(self.image())
            .zip(x.par_chunks_exact(self.image()))
            .zip(dy.par_chunks_exact(self.image()))
            .for_each(|((dx, x), dy)| {
                let scales = self.scales(x);
                let along = x.iter().zip(dy).zip(&scales);
                let slopes: Vec<f64> =
                    along.map(|((x, g), s)| g.wide() * x.wide() * s.powf(-self.beta - 1.0)).collect();
                let met = self.window(&slopes, self.size / 2, (self.size - 1) / 2);
                for (i, dx) in dx.iter_mut().enumerate() {
                    let own = dy[i].wide() * scales[i].powf(-self.beta);
                    *dx = T::of(own + factor * x[i].wide() * met[i]);
                }
            });
    }
}

/// `y = x * a[c] + b[c]` over `[outer, channels, inner]`.
pub fn channel_affine<T: Real>(x: &[T], inner: usize, a: &[T], b: &[T], y: &mut [T]) {
    assert!(x.len() == y.len() && a.len() == b.len(), "x, y and a, b have one size each");
    if inner == 0 {
        return;
    }
    y.par_chunks_exact_mut(inner)
        .zip(x.par_chunks_exact(inner))
        .enumerate()
        .with_min_len((8192 / inner).max(1))
        .for_each(|(i, (y, x))| {
            let (a, b) = (a[i % a.len()], b[i % b.len()]);
            y.iter_mut().zip(x).for_each(|(y, x)| *y = *x * a + b);
        });
}

/// For each channel of `[outer, channels, inner]`: (sum of dy, sum of dy * (x - centre)).
pub fn channel_sums<T: Real>(x: &[T], dy: &[T], centre: &[T], inner: usize) -> Vec<(T, T)> {
    assert_eq!(x.len(), dy.len(), "x and dy have one size");
    let channels = centre.len();
    (0..channels)
        .into_par_iter()
        .map(|c| {
            let (mut total, mut along) = (T::ZERO, T::ZERO);
            let mut at = c * inner;
            while inner > 0 && at < x.len() {
                let (x, dy) = (&x[at..at + inner], &dy[at..at + inner]);
                total += sum(dy);
                along += fold(x, dy, |x, g| (x - centre[c]) * g);
                at += channels * inner;
            }
            (total, along)
        })
        .collect()
}
