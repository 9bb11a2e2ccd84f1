//! Gradients of objectives against finite differences, and the curvature of a reference.

use super::*;

fn float(shape: &[usize], v: &[f64]) -> Value {
    Value::Float(Float::from_slice(v, shape, &Device::Cpu).unwrap())
}

fn tokens(mask: Vec<i64>, targets: Targets) -> Batch {
    let shape = vec![2, 2];
    let ids = Tensor::from_vec(shape.clone(), vec![0i64; 4]).unwrap();
    let mask = Tensor::from_vec(shape, mask).unwrap();
    let inputs = vec![("input_ids".into(), ids), ("attention_mask".into(), mask)];
    Batch { inputs, targets, rows: 2, tokens: 4 }
}

const Z: [f64; 12] = [0.3, -1.2, 0.5, 2.0, 0.1, -0.4, 1.0, 1.1, 0.9, -0.3, 0.6, 0.2];
const P: [f64; 12] = [1.0, 0.2, -0.5, 0.0, 0.4, 0.9, 3.0, 2.0, 1.0, 0.4, 0.1, -0.7];

fn holds(head: Head, objective: Objective, shape: &[usize], batch: &Batch, counts: f64) {
    let reference = [float(shape, &P)];
    let reference = (objective == Objective::Reference).then_some(&reference[..]);
    let of = |z: &[f64]| head.loss(objective, &[float(shape, z)], batch, reference).unwrap();
    let loss = of(&Z);
    assert_eq!(loss.count, counts);
    let grad = loss.seeds[0].1.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    for i in 0..Z.len() {
        let at = |by: f64| {
            let mut z = Z;
            z[i] += by;
            of(&z).mean()
        };
        let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
        assert!((slope - grad[i]).abs() < 1e-8, "{objective:?} {i}: {slope} and {}", grad[i]);
    }
}

#[test]
fn gradients_of_the_mean_equal_finite_differences() {
    let scores = Head { output: 0, scores: true };
    let vectors = Head { output: 0, scores: false };
    let next = Targets::Next(vec![Some(2), None, Some(0), Some(1)]);
    holds(scores, Objective::Likelihood, &[2, 2, 3], &tokens(vec![1, 1, 1, 0], next), 2.0);
    holds(scores, Objective::Reference, &[2, 2, 3], &tokens(vec![1, 1, 1, 0], Targets::None), 3.0);
    holds(vectors, Objective::Reference, &[2, 2, 3], &tokens(vec![1, 1, 1, 0], Targets::None), 3.0);
    let rows = |targets, rows| Batch { inputs: vec![], targets, rows, tokens: 4 };
    holds(scores, Objective::Likelihood, &[4, 3], &rows(Targets::Classes(vec![0, 2, 1, 1]), 3), 3.0);
    holds(vectors, Objective::Reference, &[4, 3], &rows(Targets::None, 4), 4.0);
    holds(vectors, Objective::Reference, &[2, 3, 2, 1], &rows(Targets::None, 2), 2.0);
}

#[test]
fn a_reference_judged_by_itself_has_no_loss_but_a_curvature() {
    let head = Head { output: 0, scores: true };
    let batch = Batch { inputs: vec![], targets: Targets::None, rows: 4, tokens: 4 };
    let y = [float(&[4, 3], &P)];
    let same = head.loss(Objective::Reference, &y, &batch, Some(&y)).unwrap();
    assert!(same.sum < 1e-12);
    // The mean of the outer product of drawn gradients is diag(p) - p p^T, the Fisher information.
    let mut fisher = [0.0; 3];
    let trials = 4000;
    for seed in 0..trials {
        let grad = head.probe(&y, &batch, seed).unwrap().seeds[0].1.flatten_all().unwrap();
        let grad = grad.to_vec1::<f64>().unwrap();
        (0..3).for_each(|i| fisher[i] += (grad[i] * 4.0).powi(2) / trials as f64);
    }
    let sum: f64 = P[..3].iter().map(|z| z.exp()).sum();
    for i in 0..3 {
        let p = P[i].exp() / sum;
        assert!((fisher[i] - p * (1.0 - p)).abs() < 0.02, "{i}: {} and {}", fisher[i], p * (1.0 - p));
    }
}

#[test]
fn labels_that_are_no_classes_are_refused() {
    let head = Head { output: 0, scores: true };
    let batch = Batch { inputs: vec![], targets: Targets::Classes(vec![0, 1, 3, 0]), rows: 4, tokens: 4 };
    let e = head.loss(Objective::Likelihood, &[float(&[4, 3], &Z)], &batch, None).unwrap_err();
    assert_eq!((e.kind().exit_code(), e.code()), (2, "LOSS-LABELS"));
    let short = Batch { targets: Targets::Classes(vec![0]), ..batch };
    assert!(head.loss(Objective::Likelihood, &[float(&[4, 3], &Z)], &short, None).is_err());
}
