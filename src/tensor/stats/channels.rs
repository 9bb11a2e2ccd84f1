//! Magnitudes of output channels, gathered while the elements stream by.

use serde::{Deserialize, Serialize};

/// A channel is an outlier whose largest magnitude is more than this times that of the median channel.
pub const OUTLIER: f64 = 4.0;
/// Outliers that are listed.
const LISTED: usize = 8;
/// Channels that are gathered at most; beyond, the axis is no axis of channels.
const MOST: usize = 1 << 22;

/// Channels by their largest magnitude.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Channels {
    /// Their axis.
    pub axis: usize,
    /// How many there are.
    pub count: usize,
    /// Largest magnitude of the median channel.
    pub median_absmax: f64,
    /// Channels with nothing but zeros.
    pub zero: usize,
    /// Channels beyond [`OUTLIER`] times the median.
    pub outliers: usize,
    /// The worst of them: (channel, largest magnitude over the median's), worst first.
    pub worst: Vec<(usize, f64)>,
}

pub(super) struct Gather {
    axis: usize,
    inner: usize,
    absmax: Vec<f32>,
}

impl Gather {
    /// Channels along `axis`; none where the shape has no such axis or no elements.
    pub(super) fn new(shape: &[usize], axis: usize) -> Option<Gather> {
        let size = *shape.get(axis)?;
        let inner: usize = shape.get(axis + 1..)?.iter().product();
        (inner > 0 && (1..=MOST).contains(&size)).then(|| Gather { axis, inner, absmax: vec![0.0; size] })
    }

    /// Elements from position `at` in row-major order.
    pub(super) fn add(&mut self, at: usize, mut piece: &[f32]) {
        let size = self.absmax.len();
        let mut at = at;
        while !piece.is_empty() {
            let channel = at / self.inner % size;
            let n = match self.inner {
                // Neighbours are neighbouring channels.
                1 => {
                    let n = piece.len().min(size - channel);
                    for (most, x) in self.absmax[channel..].iter_mut().zip(&piece[..n]) {
                        let x = x.abs();
                        *most = if x.is_finite() && x > *most { x } else { *most };
                    }
                    n
                }
                inner => {
                    let n = piece.len().min(inner - at % inner);
                    let finite = piece[..n].iter().map(|x| x.abs()).filter(|x| x.is_finite());
                    self.absmax[channel] = finite.fold(self.absmax[channel], f32::max);
                    n
                }
            };
            piece = &piece[n..];
            at += n;
        }
    }

    pub(super) fn finish(self) -> Channels {
        let mut sorted = self.absmax.clone();
        sorted.sort_by(f32::total_cmp);
        let median = f64::from(sorted[sorted.len() / 2]);
        let mut beyond: Vec<(usize, f64)> = self
            .absmax
            .iter()
            .enumerate()
            .filter(|(_, m)| median > 0.0 && f64::from(**m) > OUTLIER * median)
            .map(|(i, m)| (i, f64::from(*m) / median))
            .collect();
        beyond.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let outliers = beyond.len();
        beyond.truncate(LISTED);
        Channels {
            axis: self.axis,
            count: self.absmax.len(),
            median_absmax: median,
            zero: self.absmax.iter().filter(|m| **m == 0.0).count(),
            outliers,
            worst: beyond,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_are_found_on_any_axis_and_across_pieces() {
        let shape = [3, 50, 2];
        let v: Vec<f32> = (0..300)
            .map(|i| match (i / 2 % 50, i % 7) {
                (17, _) => 9.0,
                (3, 0) => f32::NAN,
                (4, _) => 0.0,
                (_, r) => r as f32 / 6.0,
            })
            .collect();
        for step in [1, 3, 7, 300] {
            let mut g = Gather::new(&shape, 1).unwrap();
            v.chunks(step).enumerate().for_each(|(i, p)| g.add(i * step, p));
            let c = g.finish();
            assert_eq!((c.count, c.outliers, c.zero), (50, 1, 1), "{c:?}");
            assert_eq!(c.worst[0].0, 17);
        }
        let mut g = Gather::new(&[100, 5], 1).unwrap();
        let w: Vec<f32> = (0..500).map(|i| if i % 5 == 2 { 10.0 } else { 1.0 }).collect();
        w.chunks(13).enumerate().for_each(|(i, p)| g.add(i * 13, p));
        assert_eq!(g.finish().worst, [(2, 10.0)]);
        assert!(Gather::new(&[3], 1).is_none() && Gather::new(&[0, 4], 0).is_none());
    }
}
