//! Gradients of whole models with respect to every weight, against those that PyTorch computed in double
//! precision (`benches/peer/gradients.py`): norms, and products with seeded numbers.

use crate::architectures::{Fixture, uniform};
use serde_json::Value as Json;
use std::path::Path;
use tinsmith::execute::{Executor, Overrides, loss};
use tinsmith::graph::ValueId;
use tinsmith::tensor::Value;

/// Furthest that a norm or product may be from the reference, relative to the norm.
const TOLERANCE: f64 = 1e-4;

fn check(model: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gradients.json");
    let all: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let reference = &all[model];
    let fixture = Fixture::load(model);
    let graph = fixture.graph();
    let inputs = fixture.inputs(&graph);
    let weights: Vec<(String, ValueId, tinsmith::tensor::Tensor)> = fixture
        .weights()
        .into_iter()
        .map(|(name, tensor)| {
            let v = graph.find(&name).unwrap_or_else(|| panic!("{model} has no {name}"));
            (name, v, tensor)
        })
        .collect();
    let wanted: Vec<ValueId> = weights.iter().map(|w| w.1).collect();
    let executor = Executor::new(&graph).unwrap();
    let tape = executor.forward(&inputs, &Overrides::new(), &wanted).unwrap();
    let at = graph.outputs().iter().position(|v| graph.value_name(*v) == "logits").unwrap();
    let logits = tape.outputs()[at].float().unwrap().clone();
    let (value, seed) = match logits.dims() {
        // The next token at every position but the last.
        [1, n, classes] => {
            let ids = &inputs.iter().find(|(name, _)| name == "input_ids").unwrap().1;
            let labels: Vec<usize> = ids.to_i64s().unwrap()[1..].iter().map(|t| *t as usize).collect();
            let rows = logits.narrow(1, 0, n - 1).unwrap().reshape((n - 1, *classes)).unwrap();
            let (value, grad) = loss::cross_entropy(&rows, &labels, 0.0).unwrap();
            (value, grad.reshape((1, n - 1, *classes)).unwrap().pad_with_zeros(1, 0, 1).unwrap())
        }
        _ => loss::cross_entropy(&logits, &[2, 0], 0.0).unwrap(),
    };
    let expected = reference["loss"].as_f64().unwrap();
    assert!((value - expected).abs() < 1e-5 * expected, "{model}: loss {value} and {expected}");
    let gradients = tape.backward(vec![(at, seed)]).unwrap();
    let norms = reference["weights"].as_object().unwrap().values().map(|w| w[0].as_f64().unwrap());
    let whole = norms.map(|n| n * n).sum::<f64>().sqrt();
    let mut worst = 0f64;
    for (name, v, tensor) in &weights {
        let stored = graph.initializer(*v).unwrap();
        let grad = &gradients[v];
        let own = Value::Float(grad.clone()).to_tensor().unwrap();
        // The graph may hold a weight transposed.
        let straight = stored.same_bits(tensor).unwrap();
        assert!(straight || stored.same_bits(&tensor.transposed(&[1, 0])).unwrap(), "{model}: {name}");
        let g = if straight { own } else { own.transposed(&[1, 0]) }.to_f64s().unwrap();
        let u = uniform(&format!("gradient of {name}"), g.len());
        let norm = g.iter().map(|x| x * x).sum::<f64>().sqrt();
        let product: f64 = g.iter().zip(&u).map(|(g, u)| g * f64::from(*u)).sum();
        let of =
            |i: usize| reference["weights"][name][i].as_f64().unwrap_or_else(|| panic!("{model}: {name}"));
        // What is zero but for rounding has no direction: softmax does not see a bias of the keys.
        let scale = of(0).max(1e-3 * whole);
        let far = ((norm - of(0)).abs() / scale).max((product - of(1)).abs() / scale);
        assert!(far <= TOLERANCE, "{model}: {name} is {far:.1e} off: norm {norm} and {}", of(0));
        worst = worst.max(far);
    }
    println!("{model}: {} gradients within {worst:.1e}", weights.len());
    assert_eq!(weights.len(), reference["weights"].as_object().unwrap().len());
}

#[test]
fn a_decoder_with_shared_keys() {
    check("llama");
}

#[test]
fn a_decoder_with_a_tied_embedding() {
    check("llama-tied");
}

#[test]
fn an_encoder_with_a_classifier() {
    check("bert-classifier");
}
