//! Symmetric int8 weights: `q = round(w / s)`, `s = max|w| / limit`, one scale per slice of an axis or
//! one for all (round half to even, as ONNX' QuantizeLinear).

use crate::error::{Error, Result};
use crate::tensor::Tensor;
use rayon::prelude::*;

/// A quantised weight.
#[derive(Debug)]
pub(super) struct Quantized {
    /// Elements, in the order of the weight.
    pub values: Vec<i8>,
    /// Scales: one, or one per index of the axis.
    pub scales: Vec<f32>,
}

/// Quantises f32 elements of `shape`. `axis` names the channel axis; `None` uses one scale.
/// `floor[c]` is the smallest scale allowed for a channel (empty: none). Fails (kind `Invalid`) where
/// an element is NaN or infinite, naming the tensor and the count.
pub(super) fn symmetric(
    name: &str,
    tensor: &Tensor,
    axis: Option<usize>,
    limit: f32,
    floor: &[f32],
) -> Result<Quantized> {
    let w = tensor.to_vec::<f32>()?;
    let bad = w.par_chunks(1 << 16).map(|c| c.iter().filter(|x| !x.is_finite()).count()).sum::<usize>();
    if bad > 0 {
        return Err(Error::invalid("WEIGHT-NAN", "the weight holds values that are not finite")
            .field(format!("initializer \"{name}\""))
            .found(format!("{bad} of {}", w.len()))
            .hint("repair or retrain the model, or exclude the nodes that use the weight"));
    }
    let shape = tensor.shape();
    let (channels, inner) = match axis {
        Some(a) => (shape[a], shape[a + 1..].iter().product::<usize>()),
        None => (1, w.len()),
    };
    let mut largest = vec![0f32; channels];
    if inner == 1 {
        let parts: Vec<Vec<f32>> = w
            .par_chunks((channels * 256).max(1))
            .map(|rows| {
                let mut top = vec![0f32; channels];
                for row in rows.chunks(channels) {
                    top.iter_mut().zip(row).for_each(|(t, x)| *t = t.max(x.abs()));
                }
                top
            })
            .collect();
        parts.iter().for_each(|p| largest.iter_mut().zip(p).for_each(|(l, x)| *l = l.max(*x)));
    } else if inner > 0 {
        for (i, block) in w.chunks(inner).enumerate() {
            let top = block
                .par_chunks(1 << 16)
                .map(|c| c.iter().fold(0f32, |m, x| m.max(x.abs())))
                .reduce(|| 0.0, f32::max);
            largest[i % channels] = largest[i % channels].max(top);
        }
    }
    let mut scales: Vec<f32> = largest.iter().map(|m| if *m > 0.0 { m / limit } else { 1.0 }).collect();
    scales.iter_mut().zip(floor).for_each(|(s, f)| *s = s.max(*f));
    // A subnormal scale would have an infinite reciprocal.
    scales.iter_mut().for_each(|s| *s = s.max(f32::MIN_POSITIVE));
    let quantize = |x: f32, s: f32| (x / s).round_ties_even().clamp(-limit, limit) as i8;
    let mut values = vec![0i8; w.len()];
    if inner == 1 {
        values.par_chunks_mut(channels.max(1)).zip(w.par_chunks(channels.max(1))).with_min_len(64).for_each(
            |(q, row)| {
                q.iter_mut().zip(row).zip(&scales).for_each(|((q, x), s)| *q = quantize(*x, *s));
            },
        );
    } else if inner > 0 {
        for (i, (q, block)) in values.chunks_mut(inner).zip(w.chunks(inner)).enumerate() {
            let s = scales[i % channels];
            q.par_iter_mut().with_min_len(1 << 14).zip(block).for_each(|(q, x)| *q = quantize(*x, s));
        }
    }
    Ok(Quantized { values, scales })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_follow_the_channel_axis() {
        let t = Tensor::from_vec(vec![2, 3], vec![1.0f32, -2.0, 0.0, 0.5, 4.0, 0.0]).unwrap();
        let q = symmetric("w", &t, Some(1), 127.0, &[]).unwrap();
        assert_eq!(q.scales, [1.0 / 127.0, 4.0 / 127.0, 1.0]);
        assert_eq!(q.values, [127, -64, 0, 64, 127, 0]);
        let q = symmetric("w", &t, Some(0), 127.0, &[]).unwrap();
        assert_eq!(q.scales, [2.0 / 127.0, 4.0 / 127.0]);
        let q = symmetric("w", &t, None, 63.0, &[]).unwrap();
        assert_eq!((q.scales[0], q.values[4]), (4.0 / 63.0, 63));
    }

    #[test]
    fn values_that_are_not_finite_are_counted_and_named() {
        let t = Tensor::from_vec(vec![3], vec![1.0f32, f32::NAN, f32::INFINITY]).unwrap();
        let e = symmetric("conv1.weight", &t, None, 127.0, &[]).unwrap_err();
        assert!(e.to_string().contains("conv1.weight") && e.to_string().contains("2 of 3"), "{e}");
    }
}
