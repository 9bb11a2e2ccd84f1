//! Quantised real models on ONNX Runtime: they load, run, and stay close to the float models.

use crate::cache;
use crate::optimize::{models, outputs, picture};
use crate::transformer::Noise;
use std::collections::BTreeMap;
use std::path::Path;
use tinsmith::error::{Kind, Result};
use tinsmith::evaluate::samples::{Batch, Samples};
use tinsmith::formats;
use tinsmith::graph::{Edit, Graph, Node, Type};
use tinsmith::monitor::Silent;
use tinsmith::ops::{Attr, Attributes, Dim};
use tinsmith::passes::{self, Ctx, PassReport};
use tinsmith::tensor::{DType, Tensor};

fn run(pass: &str, settings: &str, graph: &Graph, data: Option<&Samples>) -> Result<(Graph, PassReport)> {
    let pass = passes::by_name(pass, &settings.parse().unwrap()).unwrap();
    pass.run(graph, &mut Ctx { calibration: data, ..Ctx::new(&Silent) })
}

/// Cosine of the angle between all outputs of two models on one input.
fn cosine(a: &Path, b: &Path, input: &[(String, Tensor)]) -> f64 {
    let flat =
        |path| outputs(path, input).into_iter().flat_map(|(_, v)| v).map(f64::from).collect::<Vec<_>>();
    let (a, b) = (flat(a), flat(b));
    assert_eq!(a.len(), b.len());
    assert!(b.iter().all(|x| x.is_finite()));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

fn count(graph: &Graph) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    graph.nodes().iter().for_each(|n| *counts.entry(n.op_type.as_str()).or_insert(0) += 1);
    counts
}

#[test]
fn dynamic_int8_runs_stays_close_and_leaves_convolutions_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut quantized = vec![];
    for (name, file, input) in models() {
        let graph = formats::load(&file).unwrap().graph;
        let before = count(&graph);
        let (int8, report) = match run("quantize", "scheme = 'dynamic-int8'", &graph, None) {
            Ok(done) => done,
            Err(e) => {
                // Convolutions only: refused with the way to go on, not copied.
                assert_eq!(
                    (name, e.kind(), e.code()),
                    ("det", Kind::Unsupported, "NOTHING-TO-QUANTIZE"),
                    "{e}"
                );
                assert!(e.to_string().contains("62 convolutions"), "{e}");
                assert!(e.hint_text().is_some_and(|h| h.contains("static-int8")), "{e}");
                continue;
            }
        };
        let path = dir.path().join(format!("{name}.onnx"));
        formats::save(&int8, &path).unwrap();
        let after = count(&int8);
        assert_eq!(before.get("Conv"), after.get("Conv"), "{name}");
        assert_eq!(report.applied.len(), after["MatMulInteger"], "{name}");
        for node in int8.nodes().iter().filter(|n| n.is("Conv")) {
            assert_eq!(int8.initializer(node.inputs[1].unwrap()).unwrap().dtype(), DType::F32, "{name}");
        }
        let similar = cosine(&file, &path, &input);
        println!("{name}: {} products on int8, cosine {similar:.5}", report.applied.len());
        assert!(similar > 0.99, "{name}: {similar}");
        assert!(report.facts["weight_bytes_after"] < report.facts["weight_bytes_before"], "{name}");
        quantized.push(name);
    }
    assert_eq!(quantized, ["magika", "cls", "rec"]);
}

#[test]
fn static_int8_of_a_convolutional_net_runs_and_stays_close() {
    let dir = tempfile::tempdir().unwrap();
    let file = cache::fetched("ppocr").file("cls_infer.onnx").unwrap();
    let graph = formats::load(&file).unwrap().graph;
    let (graph, _) = run("optimize", "", &graph, None).unwrap();
    let batch = |step| Batch { inputs: picture([2, 3, 48, 192], step).to_vec(), rows: 2, ..Batch::default() };
    let feed = Samples::given([3, 5, 8, 9].map(batch).to_vec());
    let (int8, report) = run("quantize", "scheme = 'static-int8'", &graph, Some(&feed)).unwrap();
    assert_eq!(report.facts["calibration_samples"], 8.0);
    let path = dir.path().join("cls.onnx");
    formats::save(&int8, &path).unwrap();
    let convolutions = count(&graph)["Conv"];
    let on_integers = int8.nodes().iter().filter(|n| n.is("Conv")).filter(|n| {
        let dequantized =
            |v| int8.uses().producer(v).is_some_and(|(p, _)| int8.node(p).is("DequantizeLinear"));
        n.inputs.iter().flatten().all(|v| dequantized(*v))
    });
    assert_eq!(on_integers.count(), convolutions);
    let similar = cosine(&file, &path, &picture([1, 3, 48, 192], 6));
    println!("cls: {convolutions} convolutions on int8, cosine {similar:.5}");
    assert!(similar > 0.97, "{similar}");
    let bytes = |p: &Path| std::fs::metadata(p).unwrap().len();
    assert!(bytes(&path) * 2 < bytes(&file), "{} of {}", bytes(&path), bytes(&file));
}

#[test]
fn dynamic_int8_stores_lstm_in_bytes() {
    let (width, hidden) = (40, 48);
    let mut edit = Edit::new("recurrent", &[("", 17)]);
    let [length, batch] = ["length", "batch"].map(Dim::symbol);
    let shape = Some(vec![length, batch, Dim::from(width)]);
    let x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape });
    let mut noise = Noise(3);
    let mut parameter = |name: &str, shape: &[usize]| edit.add_initializer(name, noise.tensor(shape, 0.2));
    let parameters = [
        parameter("w", &[2, 4 * hidden, width]),
        parameter("r", &[2, 4 * hidden, hidden]),
        parameter("b", &[2, 8 * hidden]),
    ];
    let y = edit.add_value("y", None);
    let attributes = Attributes::new()
        .with("hidden_size", Attr::Int(hidden as i64))
        .with("direction", Attr::Str(b"bidirectional".to_vec()));
    let inputs = [vec![x], parameters.to_vec()].concat().into_iter().map(Some).collect();
    edit.add_node(Node::new("LSTM", inputs, vec![Some(y)]).with(attributes).named("recurrent"));
    edit.add_output(y);
    edit.header_mut().ir_version = 8;
    let graph = edit.commit().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [float, bytes] = ["float", "bytes"].map(|n| dir.path().join(n).with_extension("onnx"));
    formats::save(&graph, &float).unwrap();
    let input = [("x".to_string(), Noise(9).tensor(&[20, 3, width], 1.0))];
    let mut far = vec![];
    for per_channel in [true, false] {
        let settings = format!("scheme = 'dynamic-int8'\nreduce_range = true\nper_channel = {per_channel}");
        let (int8, report) = run("quantize", &settings, &graph, None).unwrap();
        assert_eq!(count(&int8).into_iter().collect::<Vec<_>>(), [("DynamicQuantizeLSTM", 1)]);
        assert!(report.facts["weight_bytes_after"] < 0.3 * report.facts["weight_bytes_before"]);
        formats::save(&int8, &bytes).unwrap();
        far.push(1.0 - cosine(&float, &bytes, &input));
    }
    assert!(far[0] < 2e-4 && far[0] < far[1], "a scale a channel is nearer: {far:?}");
    let e = run("quantize", "scheme = 'dynamic-int8'\nexclude = ['recurrent']", &graph, None).unwrap_err();
    assert_eq!(e.code(), "NOTHING-TO-QUANTIZE");
}
