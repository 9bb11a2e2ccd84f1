//! What a linear classifier makes of vectors: ridge regression on the classes, one output each, by
//! cross-validation, so that every row is judged by a classifier that has not seen it. Deterministic.

use crate::error::{Error, Result};

/// Parts of the cross-validation.
const FOLDS: usize = 5;
/// Weight of the penalty, relative to the mean square of the features times the rows.
const PENALTY: f64 = 1e-2;

/// For each row whether the class of the largest output is its label. Rows are scaled to unit length;
/// row `i` of each class belongs to part `i mod 5`.
///
/// # Errors
/// `Usage` where there are fewer than five rows of a class, or only one class.
pub(super) fn correct(vectors: &[Vec<f32>], labels: &[usize]) -> Result<Vec<bool>> {
    let classes = labels.iter().max().map_or(0, |m| m + 1);
    let mut seen = vec![0usize; classes];
    let part: Vec<usize> = labels
        .iter()
        .map(|l| {
            seen[*l] += 1;
            (seen[*l] - 1) % FOLDS
        })
        .collect();
    let used = seen.iter().filter(|n| **n > 0).count();
    if used < 2 || seen.iter().any(|n| *n > 0 && *n < FOLDS) {
        return Err(Error::usage("EVAL-PROBE", "a linear probe needs two classes and five rows of each")
            .found(format!("{seen:?} rows of each class"))
            .hint("use more rows, or fewer classes"));
    }
    let width = vectors.first().map_or(0, Vec::len) + 1;
    let rows: Vec<Vec<f64>> = vectors
        .iter()
        .map(|v| {
            let length = v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-12);
            v.iter().map(|x| f64::from(*x) / length).chain([1.0]).collect()
        })
        .collect();
    let mut out = vec![false; rows.len()];
    for fold in 0..FOLDS {
        let train: Vec<usize> = (0..rows.len()).filter(|i| part[*i] != fold).collect();
        let weights = fit(&rows, labels, &train, width, classes)?;
        for i in (0..rows.len()).filter(|i| part[*i] == fold) {
            let score =
                |class: usize| -> f64 { (0..width).map(|k| rows[i][k] * weights[k * classes + class]).sum() };
            let best = (0..classes).fold(0, |best, c| if score(c) > score(best) { c } else { best });
            out[i] = best == labels[i];
        }
    }
    Ok(out)
}

/// Ridge regression of the class indicators: `(X'X + aI) W = X'Y`, solved by Cholesky's method. The
/// last feature, the constant, is not penalised.
fn fit(
    rows: &[Vec<f64>],
    labels: &[usize],
    train: &[usize],
    width: usize,
    classes: usize,
) -> Result<Vec<f64>> {
    let mut gram = vec![0.0; width * width];
    let mut right = vec![0.0; width * classes];
    for i in train {
        let x = &rows[*i];
        for a in 0..width {
            for b in 0..=a {
                gram[a * width + b] += x[a] * x[b];
            }
            right[a * classes + labels[*i]] += x[a];
        }
    }
    let trace: f64 = (0..width - 1).map(|k| gram[k * width + k]).sum();
    let penalty = (PENALTY * trace / (width - 1).max(1) as f64).max(1e-12);
    (0..width - 1).for_each(|k| gram[k * width + k] += penalty);
    for a in 0..width {
        for b in 0..=a {
            let sum: f64 =
                gram[a * width + b] - (0..b).map(|k| gram[a * width + k] * gram[b * width + k]).sum::<f64>();
            gram[a * width + b] = if a != b {
                sum / gram[b * width + b]
            } else if sum > 0.0 {
                sum.sqrt()
            } else {
                return Err(Error::invalid("EVAL-PROBE", "the vectors are not finite numbers"));
            };
        }
    }
    for class in 0..classes {
        for a in 0..width {
            let sum: f64 = (0..a).map(|k| gram[a * width + k] * right[k * classes + class]).sum();
            right[a * classes + class] = (right[a * classes + class] - sum) / gram[a * width + a];
        }
        for a in (0..width).rev() {
            let sum: f64 = (a + 1..width).map(|k| gram[k * width + a] * right[k * classes + class]).sum();
            right[a * classes + class] = (right[a * classes + class] - sum) / gram[a * width + a];
        }
    }
    Ok(right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn separable_classes_are_told_apart_and_noise_is_not() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let labels: Vec<usize> = (0..300).map(|i| i % 3).collect();
        let mut vector = |bias: f32| -> Vec<Vec<f32>> {
            labels
                .iter()
                .map(|l| {
                    (0..8).map(|k| rng.random_range(-1.0..1.0) + if k == *l { bias } else { 0.0 }).collect()
                })
                .collect()
        };
        let share = |v: &[bool]| v.iter().filter(|c| **c).count() as f64 / v.len() as f64;
        assert!(share(&correct(&vector(4.0), &labels).unwrap()) > 0.97);
        let noise = share(&correct(&vector(0.0), &labels).unwrap());
        assert!((0.2..0.47).contains(&noise), "{noise}");
        assert_eq!(correct(&vector(4.0)[..3], &labels[..3]).unwrap_err().code(), "EVAL-PROBE");
    }
}
