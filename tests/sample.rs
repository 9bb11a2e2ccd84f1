//! The shipped sample: what it can, that its gradients are right, that its training can be repeated.

#[allow(dead_code)]
#[path = "../examples/train_digits/net.rs"]
pub(crate) mod net;

use std::path::Path;
use std::process::Command;
use tinsmith::data::DataSet;
use tinsmith::execute::loss::cross_entropy;
use tinsmith::execute::{Executor, Overrides};
use tinsmith::formats;
use tinsmith::graph::{Graph, Type, ValueId};
use tinsmith::ops::Attr;
use tinsmith::tensor::{DType, Tensor, Value};

#[test]
fn the_shipped_net_reads_digits() {
    let graph = formats::load(Path::new("assets/digits-resnet.onnx")).unwrap().graph;
    assert!(graph.unknown_operators().is_empty());
    let parameters: usize = graph.initializers().map(|(_, t)| t.len()).sum();
    assert!((400_000..600_000).contains(&parameters), "{parameters}");
    let data = DataSet::open("digits:test").unwrap();
    assert_eq!(data.len(), 797);
    let outputs = Executor::new(&graph).unwrap().run(&[("image".into(), data.input().clone())]).unwrap();
    let logits = outputs[0].1.to_f32s().unwrap();
    let best = |row: &[f32]| (0..10).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
    let right = logits.chunks(10).zip(data.labels()).filter(|(row, label)| best(row) == **label).count();
    assert!(right >= 790, "{right} of 797");
}

/// The graph with all its floats in double precision.
pub fn doubled(graph: &Graph) -> Graph {
    let mut edit = graph.edit();
    edit.forget_types();
    let inputs: Vec<ValueId> = graph.inputs().to_vec();
    for v in inputs.into_iter().chain(graph.outputs().to_vec()) {
        if let Some(Type::Tensor { shape, dtype: DType::F32 }) = &graph.value(v).ty {
            edit.set_type(v, Some(Type::Tensor { dtype: DType::F64, shape: shape.clone() }));
        }
    }
    let constants: Vec<(ValueId, Tensor)> = graph
        .initializers()
        .filter(|(_, t)| t.dtype() == DType::F32)
        .map(|(v, t)| (v, t.cast_to(DType::F64)))
        .collect();
    for (v, tensor) in constants {
        edit.set_initializer(v, tensor);
    }
    for (i, node) in graph.nodes().iter().enumerate() {
        if let Some(Attr::Tensor(t)) = node.attributes.get("value").filter(|_| node.is("Constant"))
            && t.dtype() == DType::F32
        {
            edit.node_mut(i).attributes.set("value", Attr::Tensor(t.cast_to(DType::F64)));
        }
        // 1 is f32 and 11 f64 in ONNX.
        if node.is("Cast") && matches!(node.attributes.get("to"), Some(Attr::Int(1))) {
            edit.node_mut(i).attributes.set("to", Attr::Int(11));
        }
    }
    edit.commit().unwrap()
}

#[test]
fn gradients_of_the_whole_net_equal_finite_differences() {
    let (graph, parameters) = net::build(3).unwrap();
    let executor = Executor::new(&doubled(&graph)).unwrap();
    let graph = executor.graph();
    let data = DataSet::open("digits:train#0..6").unwrap();
    let inputs = [("image".to_string(), data.input().cast_to(DType::F64))];
    let loss = |overrides: &Overrides, wanted: &[ValueId]| {
        let tape = executor.forward(&inputs, overrides, wanted).unwrap();
        let (loss, seed) = cross_entropy(tape.outputs()[0].float().unwrap(), data.labels(), 0.1).unwrap();
        (loss, tape.backward(vec![(0, seed)]).unwrap())
    };
    let (_, gradients) = loss(&Overrides::new(), &parameters);
    let mut checked = 0;
    for (n, id) in parameters.iter().enumerate() {
        let tensor = graph.initializer(*id).unwrap();
        let gradient = gradients[id].flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let at = (n * 7919) % tensor.len();
        let slope = |h: f64| {
            let mut ends = [h, -h].map(|h| {
                let mut values = tensor.to_f64s().unwrap();
                values[at] += h;
                let moved = Tensor::from_vec(tensor.shape().to_vec(), values).unwrap();
                let overrides = Overrides::from([(*id, Value::load(&moved).unwrap())]);
                loss(&overrides, &[]).0
            });
            ends[1] = ends[0] - ends[1];
            ends[1] / (2.0 * h)
        };
        let found = slope(1e-6);
        // A kink between the two ends makes the difference itself wrong; two widths tell.
        if (found - slope(2e-6)).abs() > 1e-6 {
            continue;
        }
        assert!(
            (found - gradient[at]).abs() <= 1e-6 + 1e-4 * gradient[at].abs(),
            "{}[{at}]: {found} by differences, {} by the reverse pass",
            graph.value_name(*id),
            gradient[at]
        );
        checked += 1;
    }
    assert!(checked * 10 >= parameters.len() * 9, "{checked} of {}", parameters.len());
}

#[test]
fn training_again_gives_the_same_file_whatever_the_cores() {
    // Cargo builds examples for `cargo test`, beside the directory of the test binary.
    let example = std::env::current_exe().unwrap().parent().unwrap().join("../examples/train_digits");
    let dir = tempfile::tempdir().unwrap();
    let digest = |name: &str, threads: &str| {
        let out = dir.path().join(name);
        let run = Command::new(&example)
            .args(["--epochs", "1", "--out"])
            .arg(&out)
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        tinsmith::save::digest(&out).unwrap().0
    };
    assert_eq!(digest("a.onnx", "1"), digest("b.onnx", "4"));
}
