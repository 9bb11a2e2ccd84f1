//! Accuracy of a classifier on labelled data: a model is anything that turns a batch of inputs into
//! scores.

use super::measurement::Quality;
use super::stats;
use crate::data::DataSet;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// What a model wants its input to be.
#[derive(Debug, Clone, PartialEq)]
pub struct InputForm {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, the batch first; none where they vary.
    pub dims: Vec<Option<usize>>,
}

impl InputForm {
    /// Rows as this input: cast, and reshaped where the model's own dimensions are known and hold as
    /// many elements as a row.
    ///
    /// # Errors
    /// `Usage` where they do not.
    pub fn fit(&self, rows: &Tensor) -> Result<Tensor> {
        let count = rows.shape().first().copied().unwrap_or(0);
        let item = rows.shape().get(1..).unwrap_or_default();
        let width: usize = item.iter().product();
        let wanted = self.dims.get(1..).unwrap_or_default();
        let agrees = wanted.len() == item.len()
            && wanted.iter().zip(item).all(|(want, have)| want.is_none_or(|w| w == *have));
        let fixed: Option<Vec<usize>> = wanted.iter().copied().collect();
        let shape = match fixed {
            _ if agrees => item.to_vec(),
            Some(fixed) if fixed.iter().product::<usize>() == width => fixed,
            _ => {
                let wanted: Vec<String> =
                    self.dims.iter().map(|d| d.map_or("?".into(), |d| d.to_string())).collect();
                return Err(Error::usage(
                    "EVAL-SHAPE",
                    "the rows of the data do not have the shape of the model's input",
                )
                .found(format!("{item:?}"))
                .limit(wanted.join(","))
                .hint("state the shape of one row in the data spec, such as shape=1,8,8"));
            }
        };
        let shape: Vec<usize> = std::iter::once(count).chain(shape).collect();
        let rows = rows.reshaped(shape)?;
        Ok(if rows.dtype() == self.dtype { rows } else { rows.cast_to(self.dtype) })
    }

    /// Rows of a batch: what the model is fixed to, else `wanted`.
    pub fn batch(&self, wanted: usize) -> usize {
        self.dims.first().copied().flatten().unwrap_or(wanted).max(1)
    }
}

/// Runs the data through `model`, which maps a tensor of rows to scores `[rows, classes]` (further
/// axes of size 1 are allowed), and counts the rows whose largest score stands at the label. Ties go to the lower class; a
/// row with a score that is not a number is wrong. A model with a fixed batch gets its last batch
/// filled up with copies of the last row.
///
/// # Errors
/// `Usage` for data without labels; `Invalid` where a label has no score; whatever `model` returns.
pub fn classify(
    data: &DataSet,
    form: &InputForm,
    batch: usize,
    model: &mut dyn FnMut(Tensor) -> Result<Tensor>,
) -> Result<Quality> {
    if data.labels().is_empty() {
        return Err(Error::usage("EVAL-LABELS", "these data have no labels")
            .field(data.spec())
            .hint("name the label column or use other data"));
    }
    let size = form.batch(batch);
    let mut correct = Vec::with_capacity(data.len());
    for part in data.batches(size) {
        let part = part?;
        let rows = form.fit(&part.input)?;
        let scores = model(filled(rows, form, size)?)?;
        let classes = classes_of(&scores, size, part.labels.len(), form)?;
        let values = scores.to_f32s()?;
        for (row, &label) in values.chunks(classes).zip(&part.labels) {
            if label >= classes {
                return Err(Error::invalid("EVAL-CLASSES", "a label has no score in the model's output")
                    .field(data.spec())
                    .found(label)
                    .limit(format!("0 to {}", classes - 1))
                    .hint("check that the data belong to this model"));
            }
            let finite = row.iter().all(|v| !v.is_nan());
            let best = row.iter().enumerate().fold(0, |best, (i, v)| if *v > row[best] { i } else { best });
            correct.push(finite && best == label);
        }
    }
    Ok(quality(correct, data.hash()))
}

fn filled(rows: Tensor, form: &InputForm, size: usize) -> Result<Tensor> {
    let count = rows.shape()[0];
    if count == size || form.dims.first().copied().flatten().is_none() {
        return Ok(rows);
    }
    let indices: Vec<usize> = (0..size).map(|i| i.min(count - 1)).collect();
    Ok(rows.selected(0, &indices))
}

fn classes_of(scores: &Tensor, size: usize, rows: usize, form: &InputForm) -> Result<usize> {
    let fixed = form.dims.first().copied().flatten().is_some();
    let expected = if fixed { size } else { rows };
    let shape: Vec<usize> = scores.shape().to_vec();
    let wide = shape.iter().skip(1).filter(|d| **d != 1).count();
    let classes: usize = shape.iter().skip(1).product();
    if shape.len() < 2 || shape[0] != expected || wide > 1 || classes == 0 {
        return Err(Error::usage(
            "EVAL-OUTPUT",
            "the model's first output is not one row of scores for each input",
        )
        .found(format!("{shape:?}"))
        .limit(format!("[{expected}, classes]"))
        .hint("this task is for classifiers"));
    }
    Ok(classes)
}

/// Accuracy with its Wilson interval.
pub fn quality(correct: Vec<bool>, data_hash: &str) -> Quality {
    let n = correct.len();
    let right = correct.iter().filter(|c| **c).count();
    Quality {
        metric: "accuracy".into(),
        value: right as f64 / n.max(1) as f64,
        ci95: stats::wilson(right as u64, n as u64),
        n,
        higher_is_better: true,
        correct,
        data_hash: data_hash.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(batch: Option<usize>) -> InputForm {
        InputForm { dtype: DType::F32, dims: vec![batch, Some(64)] }
    }

    #[test]
    fn a_model_that_knows_the_answers_is_right_and_one_that_does_not_is_not() {
        let data = DataSet::open("digits:test").unwrap();
        let labels = data.labels().to_vec();
        for batch in [None, Some(50)] {
            let mut at = 0;
            let quality = classify(&data, &form(batch), 32, &mut |rows| {
                let n = rows.shape()[0];
                assert_eq!(rows.shape(), [n, 64]);
                let mut scores = vec![0f32; n * 10];
                for (i, row) in scores.chunks_mut(10).enumerate() {
                    let Some(&label) = labels.get(at + i) else { continue };
                    // Wrong for the first 36.
                    row[if at + i < 36 { (label + 1) % 10 } else { label }] = 1.0;
                }
                at += n;
                Tensor::from_vec(vec![n, 10], scores)
            })
            .unwrap();
            assert_eq!(quality.n, data.len());
            assert_eq!(quality.correct.iter().filter(|c| !**c).count(), 36);
            assert!(quality.ci95.low < quality.value && quality.value < quality.ci95.high);
            assert_eq!(quality.data_hash, data.hash());
        }
    }

    #[test]
    fn scores_that_are_not_numbers_are_wrong_answers() {
        let data = DataSet::open("digits:test#0..4").unwrap();
        let quality = classify(&data, &form(None), 4, &mut |rows| {
            Tensor::from_vec(vec![rows.shape()[0], 10], vec![f32::NAN; rows.shape()[0] * 10])
        })
        .unwrap();
        assert_eq!(quality.value, 0.0);
    }

    #[test]
    fn outputs_that_are_no_scores_are_refused() {
        let data = DataSet::open("digits:test#0..4").unwrap();
        for shape in [vec![4], vec![4, 2, 5], vec![2, 20], vec![4, 3]] {
            let count = shape.iter().product();
            assert!(
                classify(&data, &form(None), 4, &mut |_| Tensor::from_vec(shape.clone(), vec![0f32; count]))
                    .is_err()
            );
        }
        let image = InputForm { dtype: DType::F32, dims: vec![None, Some(3), Some(8), Some(8)] };
        let e = image.fit(data.input()).unwrap_err();
        assert!(e.to_string().contains("shape="), "{e}");
        let good = InputForm { dims: vec![None, Some(1), Some(8), Some(8)], ..image };
        assert_eq!(good.fit(data.input()).unwrap().shape(), [4, 1, 8, 8]);
    }
}
