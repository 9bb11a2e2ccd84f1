//! Symmetric int8 weights: `q = round(w / s)`, `s = max|w| / limit`, one scale per slice of an axis or
//! one for all (round half to even, as ONNX' QuantizeLinear). A weight is read twice, piece by piece; only
//! its int8 elements are ever in memory whole.

use crate::error::Result;
use crate::tensor::{Pieces, Tensor};
use rayon::prelude::*;

/// A quantised weight.
#[derive(Debug)]
pub(super) struct Quantized {
    /// Elements, in the order of the weight.
    pub values: Vec<i8>,
    /// Scales: one, or one per index of the axis.
    pub scales: Vec<f32>,
}

/// Elements that are read at once.
const PIECE: usize = 1 << 16;

/// How elements belong to channels: element `f` to channel `f / inner % channels`.
#[derive(Debug, Clone, Copy)]
struct Layout {
    channels: usize,
    inner: usize,
    /// Elements of a piece: whole rows of channels where neighbours differ in channel.
    piece: usize,
}

impl Layout {
    fn of(shape: &[usize], axis: Option<usize>) -> Layout {
        let (channels, inner) = match axis {
            Some(a) => (shape[a], shape[a + 1..].iter().product::<usize>()),
            None => (1, shape.iter().product()),
        };
        let piece = if inner == 1 && channels > 0 { channels * (PIECE / channels).max(1) } else { PIECE };
        Layout { channels, inner: inner.max(1), piece }
    }

    /// Calls `f(channel, start, end)` for the runs of equal channel in a piece that starts at `at`.
    fn runs(self, at: usize, n: usize, mut f: impl FnMut(usize, usize, usize)) {
        let mut done = 0;
        while done < n {
            let block = (at + done) / self.inner;
            let end = ((block + 1) * self.inner - at).min(n);
            f(block % self.channels, done, end);
            done = end;
        }
    }
}

/// Largest magnitude of each channel, and how many elements are NaN or infinite.
struct Magnitudes {
    largest: Vec<f32>,
    bad: usize,
}

fn magnitudes(pieces: &Pieces, len: usize, layout: Layout) -> Result<Magnitudes> {
    let empty = || Magnitudes { largest: vec![0f32; layout.channels], bad: 0 };
    (0..len.div_ceil(layout.piece))
        .into_par_iter()
        .with_min_len(4)
        .try_fold(
            || (empty(), Vec::new()),
            |(mut m, mut buffer), i| -> Result<_> {
                let at = i * layout.piece;
                let w = pieces.get(at, layout.piece.min(len - at), &mut buffer)?;
                m.bad += w.iter().filter(|x| !x.is_finite()).count();
                if layout.inner == 1 {
                    for row in w.chunks(layout.channels) {
                        m.largest.iter_mut().zip(row).for_each(|(t, x)| *t = t.max(x.abs()));
                    }
                } else {
                    layout.runs(at, w.len(), |c, start, end| {
                        // Eight maxima side by side, so that the loop has no chain.
                        let (blocks, rest) = w[start..end].as_chunks::<8>();
                        let mut top = [0f32; 8];
                        for block in blocks {
                            top.iter_mut().zip(block).for_each(|(t, x)| *t = t.max(x.abs()));
                        }
                        let top = top.iter().fold(0f32, |m, x| m.max(*x));
                        m.largest[c] = rest.iter().fold(m.largest[c].max(top), |m, x| m.max(x.abs()));
                    });
                }
                Ok((m, buffer))
            },
        )
        .map(|found| found.map(|(m, _)| m))
        .try_reduce(empty, |mut a, b| {
            a.largest.iter_mut().zip(&b.largest).for_each(|(a, b)| *a = a.max(*b));
            a.bad += b.bad;
            Ok(a)
        })
}

/// How many elements of an f32 tensor are NaN or infinite.
pub(super) fn not_finite(tensor: &Tensor) -> Result<usize> {
    Ok(magnitudes(&tensor.pieces()?, tensor.len(), Layout::of(tensor.shape(), None))?.bad)
}

/// Why a weight with such elements is left alone.
pub(super) fn refusal(name: &str, bad: usize, of: usize) -> String {
    format!("its weight \"{name}\" holds {bad} of {of} values that are not finite, and stays in float")
}

/// `x / s` rounded half to even and limited, for `|limit| <= 127`. Adding 1.5 * 2^23 leaves the rounded
/// number in the low bits of the mantissa, in two's complement.
fn quantized(x: f32, s: f32, limit: f32) -> i8 {
    ((x / s).clamp(-limit, limit) + 12_582_912.0).to_bits() as i8
}

/// Quantises f32 elements. `axis` names the channel axis; `None` uses one scale. `floor[c]` is the
/// smallest scale allowed for a channel (empty: none). The inner error says why a weight with NaN or
/// infinite elements is refused, with the tensor and the count.
pub(super) fn symmetric(
    name: &str,
    tensor: &Tensor,
    axis: Option<usize>,
    limit: f32,
    floor: &[f32],
) -> Result<std::result::Result<Quantized, String>> {
    let (len, layout) = (tensor.len(), Layout::of(tensor.shape(), axis));
    let pieces = tensor.pieces()?;
    let Magnitudes { largest, bad } = magnitudes(&pieces, len, layout)?;
    if bad > 0 {
        return Ok(Err(refusal(name, bad, len)));
    }
    let mut scales: Vec<f32> = largest.iter().map(|m| if *m > 0.0 { m / limit } else { 1.0 }).collect();
    scales.iter_mut().zip(floor).for_each(|(s, f)| *s = s.max(*f));
    // A subnormal scale would have an infinite reciprocal.
    scales.iter_mut().for_each(|s| *s = s.max(f32::MIN_POSITIVE));
    let mut values = vec![0i8; len];
    values.par_chunks_mut(layout.piece).enumerate().with_min_len(4).try_for_each_init(
        Vec::new,
        |buffer, (i, q)| {
            let at = i * layout.piece;
            let w = pieces.get(at, q.len(), buffer)?;
            if layout.inner == 1 {
                for (q, row) in q.chunks_mut(layout.channels).zip(w.chunks(layout.channels)) {
                    q.iter_mut().zip(row).zip(&scales).for_each(|((q, x), s)| *q = quantized(*x, *s, limit));
                }
            } else {
                layout.runs(at, w.len(), |c, start, end| {
                    let s = scales[c];
                    q[start..end]
                        .iter_mut()
                        .zip(&w[start..end])
                        .for_each(|(q, x)| *q = quantized(*x, s, limit));
                });
            }
            Ok::<_, crate::error::Error>(())
        },
    )?;
    Ok(Ok(Quantized { values, scales }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn scales_follow_the_channel_axis() {
        let t = Tensor::from_vec(vec![2, 3], vec![1.0f32, -2.0, 0.0, 0.5, 4.0, 0.0]).unwrap();
        let q = |axis, limit| symmetric("w", &t, axis, limit, &[]).unwrap().unwrap();
        assert_eq!(q(Some(1), 127.0).scales, [1.0 / 127.0, 4.0 / 127.0, 1.0]);
        assert_eq!(q(Some(1), 127.0).values, [127, -64, 0, 64, 127, 0]);
        assert_eq!(q(Some(0), 127.0).scales, [2.0 / 127.0, 4.0 / 127.0]);
        let one = q(None, 63.0);
        assert_eq!((one.scales[0], one.values[4]), (4.0 / 63.0, 63));
    }

    #[test]
    fn pieces_runs_and_rounding_agree_with_the_definition() {
        // Several pieces, and channels that end inside them.
        let shape = [37, 50, 101];
        let n: usize = shape.iter().product();
        let w: Vec<f32> = (0..n).map(|i| ((i * 2_654_435_761) % 10_007) as f32 / 700.0 - 7.0).collect();
        let t = Tensor::from_vec(shape.to_vec(), w.clone()).unwrap();
        for axis in [None, Some(0), Some(1), Some(2)] {
            let q = symmetric("w", &t, axis, 127.0, &[]).unwrap().unwrap();
            let inner = axis.map_or(n, |a| shape[a + 1..].iter().product());
            let channels = axis.map_or(1, |a| shape[a]);
            let mut largest = vec![0f32; channels];
            w.iter().enumerate().for_each(|(i, x)| {
                let c = i / inner % channels;
                largest[c] = largest[c].max(x.abs());
            });
            let scales: Vec<f32> = largest.iter().map(|m| m / 127.0).collect();
            assert_eq!(q.scales, scales);
            for (i, (x, q)) in w.iter().zip(&q.values).enumerate() {
                assert_eq!(*q, (x / scales[i / inner % channels]).round_ties_even() as i8, "{axis:?} {i}");
            }
        }
        let halves = Tensor::from_vec(vec![5], vec![0.5f32, 1.5, -0.5, -2.5, 127.0]).unwrap();
        assert_eq!(symmetric("w", &halves, None, 127.0, &[]).unwrap().unwrap().values, [0, 2, 0, -2, 127]);
    }

    #[test]
    fn values_that_are_not_finite_are_counted_and_named() {
        let t = Tensor::from_vec(vec![3], vec![1.0f32, f32::NAN, f32::INFINITY]).unwrap();
        let why = symmetric("conv1.weight", &t, None, 127.0, &[]).unwrap().unwrap_err();
        assert!(why.contains("conv1.weight") && why.contains("2 of 3"), "{why}");
        assert_eq!(not_finite(&t).unwrap(), 2);
    }

    #[test]
    fn zero_constant_subnormal_and_empty_channels_have_sound_scales() {
        let tiny = f32::from_bits(3);
        let t = Tensor::from_vec(vec![4, 2], vec![0.0, 0.0, 3.0, 3.0, tiny, -tiny, 3e38, -3e38]).unwrap();
        let q = symmetric("w", &t, Some(0), 127.0, &[]).unwrap().unwrap();
        assert!(q.scales.iter().all(|s| s.is_finite() && *s >= f32::MIN_POSITIVE), "{:?}", q.scales);
        assert_eq!(q.values, [0, 0, 127, 127, 0, 0, 127, -127]);
        for shape in [vec![0, 3], vec![3, 0]] {
            let t = Tensor::new(DType::F32, shape, crate::tensor::Data::F32(vec![])).unwrap();
            for axis in [None, Some(0), Some(1)] {
                assert_eq!(symmetric("w", &t, axis, 127.0, &[]).unwrap().unwrap().values, [0i8; 0]);
            }
        }
    }
}
