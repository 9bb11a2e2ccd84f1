//! Losses on the outputs of a graph, each with its gradient.

use crate::error::{Error, Result};
use crate::kernels::real::Real;
use crate::kernels::softmax::cross_entropy as kernel;
use crate::ops::float::{self, Float, real};

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
    real!(logits.dtype(), T => {
        let scale = 1.0 / rows.max(1) as f64;
        let label = |row: usize| labels.get(row).copied();
        let (sum, grad) = kernel::<T>(classes, &float::elements::<T>(logits)?, &label, epsilon, T::of(scale));
        Ok((sum * scale, float::tensor(grad, logits.dims(), logits.dtype())?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

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
