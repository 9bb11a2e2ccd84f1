//! Real models in fewer steps: what is fused in each, and the same numbers. `benches/execute.rs` times them.

use crate::cache;
use std::collections::BTreeMap;
use tinsmith::execute::{Executor, Overrides, Seen};
use tinsmith::formats;
use tinsmith::graph::Graph;
use tinsmith::passes::lower::{Target, lower};
use tinsmith::tensor::{Tensor, Value};

/// Fused steps by name. Both ways agree.
fn steps(name: &str, graph: &Graph, feed: &[(String, Tensor)]) -> Vec<(String, usize)> {
    let executor = Executor::new(graph).unwrap();
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for step in executor.plan().steps().iter().filter(|s| s.nodes().len() > 1) {
        *kinds.entry(step.name().to_string()).or_default() += 1;
    }
    let none = Overrides::new();
    let by_node = executor.run_tapped(feed, &none, Seen::All, &mut |_, _| Ok(())).unwrap();
    let by_step = executor.run_watched(feed, &none, &mut |_| Ok(())).unwrap();
    let elements = |v: &Value| v.to_tensor().unwrap().to_f64s().unwrap();
    for (a, b) in by_step.iter().zip(&by_node) {
        let (a, b) = (elements(a), elements(b));
        let size = b.iter().fold(0f64, |m, x| m.max(x.abs()));
        let far = a.iter().zip(&b).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(size > 0.0 && far <= 1e-5 * size, "{name}: {far:e} of {size:e}");
    }
    println!("{name}: {} nodes in {} steps, {kinds:?}", graph.nodes().len(), executor.plan().steps().len());
    kinds.into_iter().collect()
}

fn kinds(all: &[(&str, usize)]) -> Vec<(String, usize)> {
    all.iter().map(|(name, n)| (name.to_string(), *n)).collect()
}

#[test]
fn models_of_text_images_run_in_fewer_steps() {
    let images = cache::fetched("ppocr");
    for (part, [h, w], wanted) in [
        ("cls", [48, 192], &[("HardSwish", 18)][..]),
        ("det", [320, 320], &[("HardSwish", 24)]),
        ("rec", [48, 320], &[("Attention", 2), ("HardSwish", 28), ("LayerNormalization", 5), ("Swish", 7)]),
    ] {
        let graph = formats::load(&images.file(&format!("{part}_infer.onnx")).unwrap()).unwrap().graph;
        let pixels = (0..3 * h * w).map(|i| ((i * 37) % 255) as f32 / 127.5 - 1.0).collect::<Vec<f32>>();
        let input = Tensor::from_vec(vec![1, 3, h, w], pixels).unwrap();
        let feed = [(graph.value_name(graph.inputs()[0]).to_string(), input)];
        assert_eq!(steps(part, &graph, &feed), kinds(wanted), "{part}");
    }
}

#[test]
fn an_encoder_in_plain_operators_runs_in_fewer_steps() {
    let graph = formats::load(&cache::fetched("minilm-l6").dir).unwrap().graph;
    let (graph, _) = lower(&graph, Target::Standard).unwrap();
    let (rows, length) = (4, 128);
    let ids = (0..rows * length).map(|i| 1000 + (i as i64 * 7919) % 20000).collect();
    // The second half of the last row is padding.
    let mask = (0..rows * length).map(|i| i64::from(i < rows * length - length / 2)).collect();
    let given = |v: Vec<i64>| Tensor::from_vec(vec![rows, length], v).unwrap();
    let feed = [
        ("input_ids".to_string(), given(ids)),
        ("attention_mask".to_string(), given(mask)),
        ("token_type_ids".to_string(), given(vec![0; rows * length])),
    ];
    assert_eq!(steps("minilm-l6", &graph, &feed), kinds(&[("Attention", 6), ("Gelu", 6)]));
}
