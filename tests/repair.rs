//! Repairs of quantisation on real models: what does not quantise changes nothing on ONNX Runtime, and what is
//! stored in 16 bits stays close.

use crate::cache;
use crate::optimize::{models, outputs};
use std::path::Path;
use tinsmith::formats;
use tinsmith::graph::Graph;
use tinsmith::monitor::Silent;
use tinsmith::passes::{self, Ctx, PassReport, quantize};
use tinsmith::tensor::{DType, Tensor};

fn run(pass: &str, settings: &str, graph: &Graph) -> (Graph, PassReport) {
    let pass = passes::by_name(pass, &settings.parse().unwrap()).unwrap();
    pass.run(graph, &mut Ctx::new(&Silent)).unwrap()
}

/// Largest difference of outputs in parts of the largest output.
fn apart(a: &Path, b: &Path, input: &[(String, Tensor)]) -> f32 {
    let (a, b) = (outputs(a, input), outputs(b, input));
    assert_eq!(a.len(), b.len());
    let mut worst = 0f32;
    for ((_, a), (_, b)) in a.iter().zip(&b) {
        let top = a.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
        let far = a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(far.is_finite() && a.len() == b.len());
        worst = worst.max(far / top);
    }
    worst
}

#[test]
fn equalised_float_models_give_the_same_outputs_on_the_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let mut pairs = 0;
    for (name, file, input) in models() {
        let (graph, _) = run("optimize", "", &formats::load(&file).unwrap().graph);
        let (even, report) = quantize::equalized(&graph, &Silent).unwrap();
        pairs += report.applied.len();
        let (before, after) = (dir.path().join("before.onnx"), dir.path().join("after.onnx"));
        formats::save(&graph, &before).unwrap();
        formats::save(&even, &after).unwrap();
        let far = apart(&before, &after, &input);
        println!("{name}: {} pairs equalised, outputs apart by {far:.2e}", report.applied.len());
        assert!(far < 1e-5, "{name}: {far}");
    }
    assert!(pairs > 10, "{pairs}");
}

#[test]
fn weights_in_sixteen_bits_load_and_stay_close() {
    let dir = tempfile::tempdir().unwrap();
    let file = cache::fetched("magika").file("model.onnx").unwrap();
    let graph = formats::load(&file).unwrap().graph;
    let (_, _, input) = models().into_iter().find(|(name, _, _)| *name == "magika").unwrap();
    for (scheme, dtype, most) in [("fp16", DType::F16, 2e-3), ("bf16", DType::BF16, 2e-2)] {
        let (half, report) = run("quantize", &format!("scheme = '{scheme}'"), &graph);
        let path = dir.path().join(format!("{scheme}.onnx"));
        formats::save(&half, &path).unwrap();
        let stored = half.initializers().filter(|(_, t)| t.dtype() == dtype).count();
        assert_eq!((stored > 0, stored), (true, report.applied.len()));
        assert!(report.skipped.iter().all(|s| !s.reason.is_empty()));
        let bytes = |p: &Path| std::fs::metadata(p).unwrap().len() as f64;
        let part = bytes(&path) / bytes(&file);
        let far = apart(&file, &path, &input);
        let relative = report.facts["largest_relative_error"];
        println!(
            "{scheme}: {stored} weights, {part:.3} of the size, outputs apart by {far:.2e}, weights by {relative:.2e}"
        );
        assert!(part < 0.6 && far < most, "{scheme}: {part} {far}");
        assert!(relative <= if scheme == "fp16" { 4.9e-4 } else { 4e-3 });
    }
}
