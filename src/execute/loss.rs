//! Losses on the outputs of a graph, each with its gradient.

use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor as Float};

/// Softmax cross entropy of `logits` [n, classes] against class indices, averaged over the rows, with
/// optional label smoothing `epsilon` (Szegedy et al. 2016). Returns the loss and its gradient, whose
/// type is that of the logits.
pub fn cross_entropy(logits: &Float, labels: &[usize], epsilon: f64) -> Result<(f64, Float)> {
    let (rows, classes) = logits.dims2().map_err(|_| {
        Error::invalid("LOSS-SHAPE", "cross entropy needs logits of rank 2")
            .found(format!("{:?}", logits.dims()))
    })?;
    if labels.len() != rows {
        return Err(Error::invalid("LOSS-LABELS", "labels do not match the rows of the logits")
            .found(labels.len())
            .limit(rows));
    }
    if let Some(bad) = labels.iter().find(|l| **l >= classes) {
        return Err(Error::invalid("LOSS-LABELS", "label is not a class")
            .found(bad)
            .limit(format!("below {classes}")));
    }
    let values = logits.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let mut grad = vec![0f64; values.len()];
    let mut loss = 0.0;
    let off = epsilon / classes as f64;
    for ((row, out), label) in values.chunks(classes).zip(grad.chunks_mut(classes)).zip(labels) {
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|z| (z - top).exp()).sum();
        let log_sum = top + sum.ln();
        for (class, (z, g)) in row.iter().zip(out.iter_mut()).enumerate() {
            let target = off + if class == *label { 1.0 - epsilon } else { 0.0 };
            loss -= target * (z - log_sum);
            *g = ((z - log_sum).exp() - target) / rows as f64;
        }
    }
    let grad = Float::from_vec(grad, (rows, classes), &Device::Cpu)?.to_dtype(logits.dtype())?;
    Ok((loss / rows as f64, grad))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradient_equals_finite_differences() {
        let at = |v: Vec<f64>| Float::from_vec(v, (2, 3), &Device::Cpu).unwrap();
        let base = vec![0.3, -1.2, 0.5, 2.0, 0.1, -0.4];
        let labels = [2, 0];
        let (_, grad) = cross_entropy(&at(base.clone()), &labels, 0.1).unwrap();
        let grad = grad.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for i in 0..base.len() {
            let (mut up, mut down) = (base.clone(), base.clone());
            up[i] += 1e-5;
            down[i] -= 1e-5;
            let slope = (cross_entropy(&at(up), &labels, 0.1).unwrap().0
                - cross_entropy(&at(down), &labels, 0.1).unwrap().0)
                / 2e-5;
            assert!((slope - grad[i]).abs() < 1e-9, "{i}: {slope} and {}", grad[i]);
        }
        assert!(cross_entropy(&at(base), &[3, 0], 0.0).is_err());
    }
}
