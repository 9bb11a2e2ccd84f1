//! Calibration data bound to the input of a model. A data spec and a graph enter; batches under the
//! input's name leave, a few rows at a time.

use crate::data::DataSet;
use crate::error::{Error, Result};
use crate::evaluate::accuracy::InputForm;
use crate::graph::{Graph, Type};
use crate::passes::Sink;
use crate::tensor::Tensor;

/// Most rows of a batch where the model leaves that open.
const ROWS: usize = 32;
/// Most bytes of a batch's input; the activations of a batch take a multiple of it.
const BYTES: usize = 4 << 20;

/// Rows for the one input of a model.
#[derive(Debug)]
pub(super) struct Calibration {
    data: DataSet,
    input: String,
    form: InputForm,
    rows: usize,
}

impl Calibration {
    /// Binds the data to the model and fits the first rows, so that data of the wrong shape are known
    /// before anything is computed. Errors name `data.calibration` and the spec.
    pub(super) fn open(spec: &str, graph: &Graph) -> Result<Calibration> {
        let named = |e: Error| e.at_field(format!("data.calibration \"{spec}\""));
        let data = DataSet::open(spec).map_err(named)?;
        let inputs: Vec<_> = graph.required_inputs().collect();
        let [input] = inputs.as_slice() else {
            return Err(named(
                Error::unsupported("CALIBRATION-INPUTS", "calibration data feed models with one input")
                    .found(format!("{} inputs", inputs.len()))
                    .limit(1)
                    .hint("use a scheme without calibration, such as dynamic-int8"),
            ));
        };
        let name = graph.value_name(*input).to_string();
        let form = match &graph.value(*input).ty {
            Some(Type::Tensor { dtype, shape: Some(shape) }) => {
                InputForm { dtype: *dtype, dims: shape.iter().map(|d| d.size()).collect() }
            }
            _ => {
                return Err(named(
                    Error::unsupported(
                        "CALIBRATION-INPUT",
                        "the model does not state the shape of its input",
                    )
                    .found(format!("input \"{name}\"")),
                ));
            }
        };
        let width: usize = data.input().shape().iter().skip(1).product();
        let fitting = BYTES / (width * data.input().dtype().byte_len(1).map_or(4, |n| n as usize)).max(1);
        let rows = form.batch(fitting.clamp(1, ROWS));
        let calibration = Calibration { data, input: name, form, rows };
        calibration.batches().next().transpose().map_err(named)?;
        Ok(calibration)
    }

    /// Digest of the rows.
    pub(super) fn hash(&self) -> &str {
        self.data.hash()
    }

    /// Hands over all batches, in order.
    pub(super) fn feed(&self, sink: &mut Sink<'_>) -> Result<()> {
        for rows in self.batches() {
            sink(&[(self.input.clone(), rows?)])?;
        }
        Ok(())
    }

    /// Rows as the model wants them; a model with a fixed batch gets its last one filled up with copies
    /// of the last row.
    fn batches(&self) -> impl Iterator<Item = Result<Tensor>> + '_ {
        let fixed = self.form.dims.first().copied().flatten();
        self.data.batches(self.rows).map(move |batch| {
            let rows = self.form.fit(&batch?.input)?;
            let count = rows.shape().first().copied().unwrap_or(0);
            match fixed.filter(|size| *size != count) {
                Some(size) => {
                    let indices: Vec<usize> = (0..size).map(|i| i.min(count.saturating_sub(1))).collect();
                    Ok(rows.selected(0, &indices))
                }
                None => Ok(rows),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Edit;
    use crate::ops::{Attributes, Dim};
    use crate::tensor::DType;

    fn graph(inputs: &[&[i64]]) -> Graph {
        let mut edit = Edit::new("g", &[("", 17)]);
        for (i, dims) in inputs.iter().enumerate() {
            let dims = dims.iter().map(|d| if *d < 0 { Dim::symbol("n") } else { Dim::from(*d) }).collect();
            let x = edit.add_input(&format!("x{i}"), Type::Tensor { dtype: DType::F32, shape: Some(dims) });
            let y = edit.add_op("Relu", &[x], Attributes::new(), &format!("y{i}"));
            edit.add_output(y);
        }
        edit.commit().unwrap()
    }

    fn shapes(spec: &str, dims: &[i64]) -> Vec<Vec<usize>> {
        let calibration = Calibration::open(spec, &graph(&[dims])).unwrap();
        let mut shapes = Vec::new();
        calibration
            .feed(&mut |batch| {
                assert_eq!(batch[0].0, "x0");
                shapes.push(batch[0].1.shape().to_vec());
                Ok(())
            })
            .unwrap();
        shapes
    }

    #[test]
    fn rows_come_in_batches_of_the_models_shape() {
        assert_eq!(shapes("digits:train#0..40", &[-1, 1, 8, 8]), [vec![32, 1, 8, 8], vec![8, 1, 8, 8]]);
        assert_eq!(shapes("digits:train#0..5", &[4, 64]), [vec![4, 64], vec![4, 64]]);
    }

    #[test]
    fn data_that_do_not_fit_are_named_before_anything_runs() {
        for (inputs, code) in [(&[&[-1i64, 3, 8, 8][..]][..], 2), (&[&[-1, 64], &[-1, 64]], 4), (&[], 4)] {
            let e = Calibration::open("digits:train#0..8", &graph(inputs)).unwrap_err();
            assert_eq!(e.kind().exit_code(), code, "{e}");
            assert!(e.to_string().contains("data.calibration \"digits:train#0..8\""), "{e}");
        }
        let e = Calibration::open("digits:nope", &graph(&[&[-1, 64]])).unwrap_err();
        assert!(e.kind().exit_code() == 2 && e.to_string().contains("digits:nope"), "{e}");
    }
}
