//! How far the outputs of two models on the same inputs are apart.

use crate::error::{Error, Result};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Where two sets of outputs begin to differ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FirstDifference {
    /// Output.
    pub output: String,
    /// Index of the element in row-major order.
    pub element: usize,
    /// Value in the reference.
    pub reference: f64,
    /// Value in the other.
    pub value: f64,
}

/// Distance of outputs from a reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parity {
    /// Largest absolute difference.
    pub max_abs: f64,
    /// The largest, over the outputs, of an output's largest difference divided by the largest
    /// magnitude of that output in the reference. Infinite where the reference is all zeros and the
    /// other is not, or where one is not a number and the other is.
    pub max_rel: f64,
    /// The first element that differs by more than the tolerance.
    pub first: Option<FirstDifference>,
    /// Elements compared.
    pub elements: usize,
    /// Elements of the other that are not finite where the reference is.
    pub not_finite: usize,
}

/// Compares `other` with `reference`, output by output in order; names may differ, number and shapes
/// may not. `tolerance` is relative to the largest magnitude of each output.
///
/// # Errors
/// `Integrity` where the outputs cannot be compared: another number of them, another shape.
pub fn parity(reference: &[(String, Tensor)], other: &[(String, Tensor)], tolerance: f64) -> Result<Parity> {
    if reference.len() != other.len() {
        return Err(Error::integrity("PARITY-OUTPUTS", "the models have different numbers of outputs")
            .found(other.len())
            .limit(reference.len()));
    }
    let mut out = Parity { max_abs: 0.0, max_rel: 0.0, first: None, elements: 0, not_finite: 0 };
    for ((name, a), (_, b)) in reference.iter().zip(other) {
        if a.shape() != b.shape() {
            return Err(Error::integrity("PARITY-SHAPE", "an output has another shape")
                .field(name.as_str())
                .found(format!("{:?}", b.shape()))
                .limit(format!("{:?}", a.shape())));
        }
        let (a, b) = (a.to_f64s()?, b.to_f64s()?);
        let largest = a.iter().filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs()));
        let mut worst = 0.0f64;
        for (element, (&reference, &value)) in a.iter().zip(&b).enumerate() {
            let same = reference == value || (reference.is_nan() && value.is_nan());
            let difference = match (reference.is_finite(), value.is_finite()) {
                _ if same => 0.0,
                (true, true) => (reference - value).abs(),
                _ => f64::INFINITY,
            };
            out.not_finite += usize::from(reference.is_finite() && !value.is_finite());
            worst = worst.max(difference);
            if out.first.is_none() && difference > tolerance * largest {
                out.first = Some(FirstDifference { output: name.clone(), element, reference, value });
            }
        }
        out.elements += a.len();
        out.max_abs = out.max_abs.max(worst);
        let relative = match (worst, largest) {
            (0.0, _) => 0.0,
            (_, 0.0) => f64::INFINITY,
            (worst, largest) => worst / largest,
        };
        out.max_rel = out.max_rel.max(relative);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs(values: &[f32]) -> Vec<(String, Tensor)> {
        vec![("y".into(), Tensor::from_vec(vec![values.len()], values.to_vec()).unwrap())]
    }

    #[test]
    fn differences_are_relative_to_the_largest_output() {
        let p = parity(&outputs(&[0.0, 1.0, -10.0]), &outputs(&[0.0, 1.5, -10.0]), 1e-4).unwrap();
        assert_eq!((p.max_abs, p.max_rel, p.elements), (0.5, 0.05, 3));
        let first = p.first.unwrap();
        assert_eq!((first.element, first.value), (1, 1.5));
        let same = parity(&outputs(&[1.0]), &outputs(&[1.0]), 0.0).unwrap();
        assert!(same.max_rel == 0.0 && same.first.is_none());
    }

    #[test]
    fn what_is_not_a_number_is_an_infinite_difference() {
        let p = parity(&outputs(&[1.0, 2.0]), &outputs(&[1.0, f32::NAN]), 1e-4).unwrap();
        assert!(p.max_rel.is_infinite() && p.not_finite == 1 && p.first.is_some());
        let p = parity(&outputs(&[0.0]), &outputs(&[1e-9]), 1e-4).unwrap();
        assert!(p.max_rel.is_infinite());
        let both = parity(&outputs(&[f32::NAN]), &outputs(&[f32::NAN]), 0.0).unwrap();
        assert_eq!(both.max_rel, 0.0);
    }

    #[test]
    fn other_shapes_are_no_comparison() {
        assert_eq!(parity(&outputs(&[1.0]), &outputs(&[1.0, 2.0]), 0.0).unwrap_err().code(), "PARITY-SHAPE");
        assert_eq!(parity(&outputs(&[1.0]), &[], 0.0).unwrap_err().code(), "PARITY-OUTPUTS");
    }
}
