//! Differences of models on disk.

use super::*;
use crate::formats::save;
use crate::graph::{Edit, Graph, Type};
use crate::monitor::Silent;
use crate::ops::{Attr, Attributes, Dim};
use crate::tensor::{DType, Tensor};

/// `y = Relu(x W1) W2`; the second product as Gemm with the weight turned, where asked.
fn model(prefix: &str, w1: Vec<f32>, inner: usize, w2: Vec<f32>, gemm: bool) -> Graph {
    let mut e = Edit::new("g", &[("", 17)]);
    let shape = vec![Dim::from(1i64), Dim::from(2i64)];
    let x = e.add_input("x", Type::Tensor { dtype: DType::F32, shape: Some(shape) });
    let name = |s: &str| format!("{prefix}{s}");
    let a = e.add_initializer(&name("w1"), Tensor::from_vec(vec![2, inner], w1).unwrap());
    let h = e.add_op("MatMul", &[x, a], Attributes::new(), &name("h"));
    let r = e.add_op("Relu", &[h], Attributes::new(), &name("r"));
    let y = if gemm {
        let turned: Vec<f32> = (0..3 * inner).map(|i| w2[i % inner * 3 + i / inner]).collect();
        let b = e.add_initializer(&name("w2"), Tensor::from_vec(vec![3, inner], turned).unwrap());
        e.add_op("Gemm", &[r, b], Attributes::new().with("transB", Attr::Int(1)), &name("y"))
    } else {
        let b = e.add_initializer(&name("w2"), Tensor::from_vec(vec![inner, 3], w2).unwrap());
        e.add_op("MatMul", &[r, b], Attributes::new(), &name("y"))
    };
    e.add_output(y);
    e.commit().unwrap()
}

fn go(a: &Graph, b: &Graph) -> Diff {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("a.onnx"), dir.path().join("b.onnx"));
    save(a, &old).unwrap();
    save(b, &new).unwrap();
    diff(&old, &new, &Options::default(), true, &Silent).unwrap()
}

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32 - 3.5).collect()
}

#[test]
fn a_model_does_not_differ_from_itself() {
    let g = model("", ramp(8), 4, ramp(12), false);
    let d = go(&g, &g);
    assert!(d.layers.is_empty(), "{:?}", d.layers);
    assert_eq!((d.layer_counts.same, d.weight_counts.same), (3, 2));
    assert!(d.weights.iter().all(|w| w.difference.is_some_and(|d| d.identical && d.cosine == Some(1.0))));
}

#[test]
fn renamed_weights_are_compared_by_their_place() {
    let mut changed = ramp(12);
    changed[5] += 0.5;
    let d = go(&model("a.", ramp(8), 4, ramp(12), false), &model("b.", ramp(8), 4, changed, false));
    assert_eq!((d.by_name, d.by_structure), (0, 3));
    assert_eq!(d.layer_counts, Counts { renamed: 3, ..Counts::default() });
    assert_eq!(d.weight_counts, Counts { renamed: 1, changed: 1, ..Counts::default() });
    let w = d.weights.iter().find(|w| w.name == "a.w2").unwrap();
    assert_eq!((w.renamed.as_deref(), w.change), (Some("b.w2"), Some(ChangeKind::Changed)));
    let e = w.difference.unwrap();
    let norm = ramp(12).iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
    assert_eq!((e.differing, e.max_abs, e.identical), (1, 0.5, false));
    assert!((e.relative_l2.unwrap() - 0.5 / norm).abs() < 1e-12);
    assert!(e.cosine.unwrap() < 1.0 && e.cosine.unwrap() > 0.99);
}

#[test]
fn another_width_is_a_change_of_shapes_without_numbers() {
    let d = go(&model("", ramp(8), 4, ramp(12), false), &model("", ramp(6), 3, ramp(9), false));
    let what: Vec<&[String]> = d.layers.iter().map(|l| l.what.as_slice()).collect();
    assert_eq!(
        what,
        [&["output".to_string(), "weights".into()][..], &["output".into()], &["weights".into()]]
    );
    assert!(d.weights.iter().all(|w| w.difference.is_none() && w.change == Some(ChangeKind::Changed)));
    assert_eq!(d.totals.iter().find(|t| t.name == "parameters").map(|t| (t.before, t.after)), Some((20, 15)));
}

#[test]
fn a_turned_weight_is_compared_as_it_is_used() {
    let d = go(&model("", ramp(8), 4, ramp(12), false), &model("", ramp(8), 4, ramp(12), true));
    let w = d.weights.iter().find(|w| w.name == "w2").unwrap();
    assert_eq!(w.difference.map(|d| (d.differing, d.cosine)), Some((0, Some(1.0))));
    assert_eq!(w.change, Some(ChangeKind::Recoded), "it is stored another way");
    assert!(d.layers[0].what.contains(&"operator".to_string()));
}
