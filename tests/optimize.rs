//! The optimiser on real models: fewer nodes, and on ONNX Runtime the outputs that the original gives.

use crate::cache;
use std::path::{Path, PathBuf};
use tinsmith::formats;
use tinsmith::graph::Graph;
use tinsmith::monitor::Silent;
use tinsmith::passes::lower::{Target, lower};
use tinsmith::passes::{self, Ctx, PassReport};
use tinsmith::runtime::{Optimization, Session, SessionOptions};
use tinsmith::tensor::Tensor;

/// Real models with an input that they take: (name, file, input).
pub fn models() -> Vec<(&'static str, PathBuf, Vec<(String, Tensor)>)> {
    let bytes: Vec<i32> = (0..4096).map(|i| if i % 2048 < 1500 { (i * 7) % 256 } else { 256 }).collect();
    let mut models = vec![(
        "magika",
        cache::fetched("magika").file("model.onnx").unwrap(),
        vec![("bytes".to_string(), Tensor::from_vec(vec![2, 2048], bytes).unwrap())],
    )];
    let ppocr = cache::fetched("ppocr");
    for (name, shape) in [("cls", [2, 3, 48, 192]), ("det", [1, 3, 64, 96]), ("rec", [1, 3, 48, 160])] {
        models.push((name, ppocr.file(&format!("{name}_infer.onnx")).unwrap(), picture(shape, 37)));
    }
    models
}

/// A made-up line of text for the ppocr models: dark strokes on a light page, without which the detector
/// gives nothing but zeros.
pub fn picture(shape: [usize; 4], step: usize) -> Vec<(String, Tensor)> {
    let (height, width) = (shape[2], shape[3]);
    let pixel = |at: usize| {
        let (i, j) = (at / width % height, at % width);
        let inside = i.abs_diff(height / 2) < 8 && j > 8 && j + 8 < width;
        let stroke = (j / 3) % 3 != 0 && ((i * 7 + j * 5 + step) / 11).is_multiple_of(2);
        if inside && stroke { -2.0f32 } else { 2.2 }
    };
    let pixels = (0..shape.iter().product()).map(pixel).collect();
    vec![("x".to_string(), Tensor::from_vec(shape.to_vec(), pixels).unwrap())]
}

/// All outputs on ONNX Runtime, which optimises nothing by itself.
pub fn outputs(model: &Path, input: &[(String, Tensor)]) -> Vec<(String, Vec<f32>)> {
    let options = SessionOptions { optimization: Optimization::None, ..SessionOptions::default() };
    let mut session = Session::load(&cache::runtime(), model, &options).unwrap();
    let out = session.run(input).unwrap();
    out.into_iter().map(|(name, t)| (name, t.to_f32s().unwrap())).collect()
}

fn optimized(graph: &Graph) -> (Graph, PassReport) {
    let pass = passes::by_name("optimize", &"".parse().unwrap()).unwrap();
    pass.run(graph, &mut Ctx::new(&Silent)).unwrap()
}

#[test]
fn real_models_get_smaller_and_give_the_same_outputs() {
    let dir = tempfile::tempdir().unwrap();
    for (name, file, input) in models() {
        let graph = formats::load(&file).unwrap().graph;
        let (small, report) = optimized(&graph);
        let path = dir.path().join(format!("{name}.onnx"));
        formats::save(&small, &path).unwrap();
        let (before, after) = (graph.nodes().len(), small.nodes().len());
        let (a, b) = (outputs(&file, &input), outputs(&path, &input));
        let mut worst = 0f32;
        for ((x, a), (y, b)) in a.iter().zip(&b) {
            assert_eq!((x, a.len()), (y, b.len()));
            let (least, most) = a.iter().fold((f32::MAX, f32::MIN), |(l, m), v| (l.min(*v), m.max(*v)));
            assert!(most - least > 0.01, "{name}: the outputs tell nothing: {least} to {most}");
            worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(worst, f32::max);
        }
        println!("{name}: {before} nodes to {after}, largest difference {worst:e}");
        let mut rules = std::collections::BTreeMap::new();
        report.applied.iter().for_each(|a| *rules.entry(a.rule.as_str()).or_insert(0) += 1);
        println!("  {rules:?}, {} near misses", report.skipped.len());
        // What an operator that is not known does to shapes is not known either.
        let known = graph.unknown_operators().is_empty();
        assert!(after < before || !known, "{name}: {before} nodes to {after}");
        assert!(worst <= 1e-4, "{name}: {worst}");
        assert_eq!(report.facts["nodes_after"], after as f64);
        assert!(
            !small.nodes().iter().any(|n| ["Constant", "Identity", "Dropout"].contains(&n.op_type.as_str()))
        );
    }
}

#[test]
fn an_optimised_model_has_nothing_left_to_do_and_is_the_same_each_time() {
    for (name, file, _) in models() {
        let graph = formats::load(&file).unwrap().graph;
        let (small, _) = optimized(&graph);
        let (again, report) = optimized(&small);
        assert_eq!(report.applied, vec![], "{name}");
        assert_eq!(formats::digest(&small).unwrap(), formats::digest(&again).unwrap(), "{name}");
        assert_eq!(
            formats::digest(&small).unwrap(),
            formats::digest(&optimized(&graph).0).unwrap(),
            "{name}"
        );
    }
}

fn pass(name: &str, settings: &str, graph: &Graph) -> (Graph, PassReport) {
    passes::by_name(name, &settings.parse().unwrap()).unwrap().run(graph, &mut Ctx::new(&Silent)).unwrap()
}

fn count(graph: &Graph, operator: &str) -> usize {
    graph.nodes().iter().filter(|n| n.operator_name() == operator).count()
}

/// MiniLM in operators of the default domain alone, and two rows of tokens, the second padded.
fn encoder() -> (Graph, Vec<(String, Tensor)>) {
    let graph = formats::load(&cache::fetched("minilm-l6").dir).unwrap().graph;
    let (graph, _) = lower(&graph, Target::Standard).unwrap();
    let given = |v: Vec<i64>| Tensor::from_vec(vec![2, 24], v).unwrap();
    let feed = vec![
        ("input_ids".to_string(), given((0..48).map(|i| 1000 + (i * 7919) % 20000).collect())),
        ("attention_mask".to_string(), given((0..48).map(|i| i64::from(i < 40)).collect())),
        ("token_type_ids".to_string(), given(vec![0; 48])),
    ];
    (graph, feed)
}

fn run(graph: &Graph, dir: &Path, name: &str, feed: &[(String, Tensor)]) -> Vec<(String, Vec<f32>)> {
    let path = dir.join(name);
    formats::save(graph, &path).unwrap();
    outputs(&path, feed)
}

/// Largest difference of two sets of outputs, relative to the largest output.
fn apart(a: &[(String, Vec<f32>)], b: &[(String, Vec<f32>)]) -> f32 {
    let pairs = || a.iter().zip(b).flat_map(|((_, a), (_, b))| a.iter().zip(b));
    let most = pairs().fold(0f32, |m, (a, _)| m.max(a.abs()));
    assert!(most > 0.0 && a.len() == b.len());
    pairs().fold(0f32, |m, (a, b)| m.max((a - b).abs())) / most
}

#[test]
fn an_encoder_that_is_spelled_out_becomes_the_runtimes_operators() {
    let dir = tempfile::tempdir().unwrap();
    let (graph, feed) = encoder();
    let (fused, report) = pass("optimize", "target = 'ort'", &graph);
    let (attention, gelu) =
        (count(&fused, "com.microsoft:MultiHeadAttention"), count(&fused, "com.microsoft:Gelu"));
    assert_eq!((attention, gelu), (6, 6), "{:?}", report.skipped);
    assert!(report.facts["trials"] >= 12.0);
    assert!(report.applied.iter().all(|a| !a.detail.contains("untried")), "{:?}", report.applied);
    let far = apart(&run(&graph, dir.path(), "a.onnx", &feed), &run(&fused, dir.path(), "b.onnx", &feed));
    println!("{} nodes to {}, {far:e} of the largest output", graph.nodes().len(), fused.nodes().len());
    assert!(far < 1e-5, "{far:e}");
    // The default domain at operator set 17 has neither.
    let (plain, report) = pass("optimize", "", &graph);
    assert!(plain.nodes().iter().all(|n| n.domain.is_empty()));
    let told = |rule: &str| report.skipped.iter().filter(|s| s.rule == rule).count();
    assert_eq!((told("fuse-attention"), told("fuse-activations")), (6, 6));
}

#[test]
fn weights_are_found_before_and_after_fusion() {
    let dir = tempfile::tempdir().unwrap();
    let (graph, feed) = encoder();
    let (fused, _) = pass("optimize", "target = 'ort'", &graph);
    let wanted = run(&graph, dir.path(), "float.onnx", &feed);
    for (settings, operator) in [
        ("scheme = 'dynamic-int8'", "MatMulInteger"),
        ("scheme = 'weight-int8'", "com.microsoft:MatMulNBits"),
    ] {
        let (late, _) = pass("quantize", settings, &fused);
        let (early, _) = pass("quantize", settings, &graph);
        let (early, report) = pass("optimize", "target = 'ort'", &early);
        assert_eq!((count(&late, operator), count(&early, operator)), (36, 36));
        let attention = |g: &Graph| count(g, "com.microsoft:MultiHeadAttention");
        assert_eq!((attention(&late), attention(&early)), (6, 6), "{:?}", report.skipped);
        for (name, graph) in [("late", &late), ("early", &early)] {
            let far = apart(&wanted, &run(graph, dir.path(), "q.onnx", &feed));
            println!("{settings}, {name}: {far:e} of the largest output");
            assert!(far < 0.15, "{settings}, {name}: {far:e}");
        }
    }
}
