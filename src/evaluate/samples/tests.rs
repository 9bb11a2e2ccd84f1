//! Data bound to graphs: shapes of batches, labels beside their rows, errors that name what is wrong.

use super::*;
use crate::graph::{Edit, Type};
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

fn no_tokenizer() -> Result<Tokenizer> {
    Err(Error::usage("TEST", "no tokenizer"))
}

fn shapes(spec: &str, dims: &[i64]) -> Vec<Vec<usize>> {
    let samples = Samples::open(spec, &graph(&[dims]), &no_tokenizer, None).unwrap();
    let batches: Vec<Batch> = samples.batches(0).map(Result::unwrap).collect();
    assert!(batches.iter().all(|b| b.inputs[0].0 == "x0"));
    assert!(samples.labelled());
    batches.iter().map(|b| b.inputs[0].1.shape().to_vec()).collect()
}

#[test]
fn rows_come_in_batches_of_the_models_shape() {
    assert_eq!(shapes("digits:train#0..40", &[-1, 1, 8, 8]), [vec![32, 1, 8, 8], vec![8, 1, 8, 8]]);
    assert_eq!(shapes("digits:train#0..5", &[4, 64]), [vec![4, 64], vec![4, 64]]);
}

#[test]
fn labels_go_with_their_rows_and_fill_up_with_them() {
    let samples = Samples::open("digits:train#0..9", &graph(&[&[4, 64]]), &no_tokenizer, None).unwrap();
    let all = samples.batch(&[0, 1, 2, 3]).unwrap();
    let Targets::Classes(labels) = &all.targets else { panic!("digits have labels") };
    let back = samples.batch(&[3, 1]).unwrap();
    assert_eq!(back.targets, Targets::Classes(vec![labels[3], labels[1], labels[1], labels[1]]));
    assert_eq!((back.rows, back.inputs[0].1.shape()), (2, &[4, 64][..]));
    let row = |b: &Batch, r: usize| b.inputs[0].1.to_f32s().unwrap()[r * 64..][..64].to_vec();
    assert!(row(&back, 0) == row(&all, 3) && row(&back, 1) == row(&all, 1));
}

#[test]
fn the_next_token_ends_with_the_row() {
    let rows: [&[u32]; 2] = [&[5, 6, 7], &[8]];
    assert_eq!(following(&rows, 3), [Some(6), Some(7), None, None, None, None]);
}

#[test]
fn data_that_do_not_fit_are_named_before_anything_runs() {
    for (inputs, code) in [(&[&[-1i64, 3, 8, 8][..]][..], 2), (&[&[-1, 64], &[-1, 64]], 4), (&[], 4)] {
        let e = Samples::open("digits:train#0..8", &graph(inputs), &no_tokenizer, None).unwrap_err();
        assert_eq!(e.kind().exit_code(), code, "{e}");
    }
    let e = Samples::open("digits:nope", &graph(&[&[-1, 64]]), &no_tokenizer, None).unwrap_err();
    assert!(e.kind().exit_code() == 2 && e.to_string().contains("digits:nope"), "{e}");
}
