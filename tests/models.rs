//! Real models on the executor and in ONNX Runtime: the same outputs at several input sizes, files that
//! come back as they were, summaries that know every operator.

use crate::cache;
use std::fs;
use std::path::{Path, PathBuf};
use tinsmith::analysis::{self, Options};
use tinsmith::data::DataSet;
use tinsmith::evaluate::parity::parity;
use tinsmith::execute::{Executor, Overrides, Seen};
use tinsmith::formats;
use tinsmith::runtime::{Session, SessionOptions};
use tinsmith::tensor::Tensor;

type Named = Vec<(String, Tensor)>;

fn magika() -> PathBuf {
    cache::fetched("magika").file("model.onnx").unwrap()
}

fn ppocr(part: &str) -> PathBuf {
    cache::fetched("ppocr").file(&format!("{part}_infer.onnx")).unwrap()
}

/// Rows of the letters of a word, five pixels wide.
const LETTERS: [[u8; 7]; 8] = [
    [0b11111, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100], // T
    [0b01110, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110], // I
    [0b10001, 0b11001, 0b10101, 0b10011, 0b10001, 0b10001, 0b10001], // N
    [0b01111, 0b10000, 0b10000, 0b01110, 0b00001, 0b00001, 0b11110], // S
    [0b10001, 0b11011, 0b10101, 0b10101, 0b10001, 0b10001, 0b10001], // M
    [0b01110, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110], // I
    [0b11111, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100], // T
    [0b10001, 0b10001, 0b10001, 0b11111, 0b10001, 0b10001, 0b10001], // H
];

/// Dark letters on bright, slightly noisy paper, in the range of normalised pixels: a line that fills
/// a low image, several lines on a high one.
fn image(shape: [usize; 4]) -> Tensor {
    let [n, c, h, w] = shape;
    let scale = if h <= 48 { h / 9 } else { 3 };
    let mut state = 1u32;
    let mut pixels = Vec::with_capacity(n * c * h * w);
    for i in 0..n {
        for _ in 0..c {
            for y in 0..h {
                for x in 0..w {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let noise = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
                    let (row, column) = ((y / scale) % 11, x / scale);
                    let letter = LETTERS[(column / 6 + i) % LETTERS.len()];
                    let inside = (1..8).contains(&row) && column % 6 < 5;
                    let ink = inside && letter[row - 1] >> (4 - column % 6) & 1 == 1;
                    pixels.push(if ink { -0.9 } else { 0.9 } + 0.1 * noise);
                }
            }
        }
    }
    Tensor::from_vec(shape.to_vec(), pixels).unwrap()
}

fn session(model: &Path) -> Session {
    Session::load(&cache::runtime(), model, &SessionOptions { threads: 2, ..SessionOptions::default() })
        .unwrap()
}

/// The executor's outputs are the runtime's, within 1e-3 of the largest.
fn agrees(executor: &Executor, session: &mut Session, input: Tensor) {
    let shape = input.shape().to_vec();
    let feed = vec![(session.inputs()[0].name.clone(), input)];
    let wanted = session.run(&feed).unwrap();
    let found = executor.run(&feed).unwrap_or_else(|e| panic!("{shape:?}: {e}"));
    let distance = parity(&wanted, &found, 1e-3).unwrap();
    let values = wanted[0].1.to_f64s().unwrap();
    let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    println!(
        "{shape:?}: {:.2e} of the largest output, which spread {low:.3e} to {high:.3e}",
        distance.max_rel
    );
    assert!(distance.first.is_none() && distance.not_finite == 0, "{shape:?}: {distance:?}");
    // A model that answers the same to everything would agree with anything.
    assert!(high - low > 0.1, "{shape:?}: outputs spread over {}", high - low);
}

fn agree_on_images(part: &str, shapes: &[[usize; 4]]) {
    let path = ppocr(part);
    let (executor, mut session) =
        (Executor::new(&formats::load(&path).unwrap().graph).unwrap(), session(&path));
    for shape in shapes {
        agrees(&executor, &mut session, image(*shape));
    }
}

#[test]
fn text_direction_agrees_with_the_runtime_at_every_size() {
    agree_on_images("cls", &[[1, 3, 48, 192], [3, 3, 48, 192], [1, 3, 48, 100]]);
}

#[test]
fn text_detection_agrees_with_the_runtime_at_every_size() {
    agree_on_images("det", &[[1, 3, 64, 96], [2, 3, 96, 64], [1, 3, 320, 320]]);
}

#[test]
fn text_recognition_agrees_with_the_runtime_at_every_size() {
    agree_on_images("rec", &[[1, 3, 48, 320], [2, 3, 48, 96]]);
}

#[test]
fn file_types_of_real_files_are_recognised_as_the_runtime_does() {
    let path = magika();
    let (executor, mut session) =
        (Executor::new(&formats::load(&path).unwrap().graph).unwrap(), session(&path));
    let labels = cache::fetched("magika").file("config.min.json").unwrap();
    let (root, named) = (Path::new(env!("CARGO_MANIFEST_DIR")), tempfile::tempdir().unwrap());
    let sources =
        ["src/lib.rs", "src/ops.rs", "src/graph.rs", "src/tensor.rs", "src/error.rs", "src/execute.rs"];
    let files = sources.map(|f| ("rust", f)).into_iter().chain([
        ("toml", "Cargo.toml"),
        ("toml", "deny.toml"),
        ("markdown", "README.md"),
        ("markdown", "docs/architecture.md"),
    ]);
    for (class, file) in files {
        let folder = named.path().join(class);
        fs::create_dir_all(&folder).unwrap();
        fs::copy(root.join(file), folder.join(file.replace('/', "_"))).unwrap();
    }
    let real: DataSet =
        DataSet::open(&format!("bytes:{}?labels={}", named.path().display(), labels.display())).unwrap();
    assert_eq!(real.len(), 10);
    agrees(&executor, &mut session, real.input().clone());
    let out = executor.run(&[("bytes".into(), real.input().clone())]).unwrap().remove(0).1;
    let (classes, out) = (out.shape()[1], out.to_f32s().unwrap());
    let hits = real.labels().iter().enumerate().filter(|(row, label)| {
        let row = &out[row * classes..(row + 1) * classes];
        row.iter().all(|v| *v <= row[**label])
    });
    assert!(hits.count() >= 9, "of 10 files");
    // Any bytes, one file and several.
    for n in [1, 5] {
        let mut state = 7u32;
        let tokens = (0..n * 2048).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as i32
        });
        let input = Tensor::from_vec(vec![n, 2048], tokens.collect::<Vec<i32>>()).unwrap();
        agrees(&executor, &mut session, input);
    }
}

/// Name and input of every ONNX model that can be fetched.
fn all() -> Vec<(PathBuf, Tensor)> {
    let tokens = (0..2048).map(|i| if i < 1800 { (i * 31 + i / 7) % 256 } else { 256 }).collect::<Vec<i32>>();
    vec![
        (magika(), Tensor::from_vec(vec![1, 2048], tokens).unwrap()),
        (ppocr("cls"), image([1, 3, 48, 192])),
        (ppocr("det"), image([1, 3, 64, 96])),
        (ppocr("rec"), image([1, 3, 48, 160])),
    ]
}

#[test]
fn a_model_that_is_read_and_written_gives_the_same_bits_on_the_runtime() {
    let dir = tempfile::tempdir().unwrap();
    for (i, (path, input)) in all().into_iter().enumerate() {
        let graph = formats::load(&path).unwrap().graph;
        let outputs = |model: &Path| -> Named {
            let mut session = session(model);
            let name = session.inputs()[0].name.clone();
            session.run(&[(name, input.clone())]).unwrap()
        };
        let wanted = outputs(&path);
        let same = |written: &Path| {
            for ((name, a), (_, b)) in wanted.iter().zip(&outputs(written)) {
                assert!(a.same_bits(b).unwrap(), "{}: output {name} differs", written.display());
            }
        };
        let copy = dir.path().join(format!("{i}.onnx"));
        formats::save(&graph, &copy).unwrap();
        assert!(fs::read(&path).unwrap() == fs::read(&copy).unwrap(), "{}: other bytes", path.display());
        same(&copy);
        // An edit of one node leaves the others as they are.
        let mut edit = graph.edit();
        let name = format!("{}_renamed", graph.label(0));
        edit.node_mut(0).name = name;
        let edited = dir.path().join(format!("{i}_edited.onnx"));
        formats::save(&edit.commit().unwrap(), &edited).unwrap();
        assert!(fs::read(&path).unwrap() != fs::read(&edited).unwrap());
        same(&edited);
    }
}

#[test]
fn summaries_of_real_models_know_every_operator_and_count_every_product() {
    for (path, input) in all() {
        let opened = formats::load(&path).unwrap();
        let sizes = input.shape().iter().map(|n| *n as i64);
        let first = opened.graph.inputs()[0];
        let probe = analysis::summarize_file(&path, &Options::default()).unwrap();
        assert_eq!(probe.unknown_ops, [], "{}", path.display());
        // Bind every open dimension of the input, whatever its name is.
        let named = probe.inputs[0].shape.clone().unwrap();
        let bindings = probe
            .bindings
            .iter()
            .enumerate()
            .map(|(at, (symbol, _))| {
                let axis = named.iter().position(|d| d == symbol);
                let open: Vec<usize> =
                    (0..named.len()).filter(|a| named[*a].parse::<i64>().is_err()).collect();
                (symbol.clone(), sizes.clone().nth(axis.unwrap_or(open[at])).unwrap())
            })
            .collect();
        let summary = analysis::summarize_file(&path, &Options { bindings, ..Options::default() }).unwrap();
        println!(
            "{}: {} nodes, {} parameters, {} MACs, peak {}, bindings {:?}, {:?}",
            summary.name,
            summary.layers.len(),
            summary.parameters,
            summary.macs,
            summary.peak_activation_bytes,
            summary.bindings,
            summary.warnings
        );
        assert_eq!(summary.macs_unknown, 0, "{}", path.display());
        let about_sizes = |w: &&String| !w.contains("negative dimensions were read as unknown");
        let others: Vec<&String> = summary.warnings.iter().filter(about_sizes).collect();
        assert!(others.is_empty(), "{}: {others:?}", path.display());
        assert_eq!(summary.macs, counted(&opened.graph, &[(opened.graph.value_name(first).into(), input)]));
    }
}

/// Multiply-accumulates counted from the tensors that an evaluation sees: for convolutions each output
/// element costs the weights of one output channel, for matrix products the inner size.
fn counted(graph: &tinsmith::graph::Graph, feed: &[(String, Tensor)]) -> u64 {
    let executor = Executor::new(graph).unwrap();
    let mut shapes = vec![None; graph.value_count()];
    for (v, t) in graph.initializers() {
        shapes[v.0 as usize] = Some(t.shape().to_vec());
    }
    for (name, t) in feed {
        shapes[graph.find(name).unwrap().0 as usize] = Some(t.shape().to_vec());
    }
    executor
        .run_tapped(feed, &Overrides::new(), Seen::All, &mut |v, value| {
            shapes[v.0 as usize] = Some(value.shape().to_vec());
            Ok(())
        })
        .unwrap();
    let shape = |v: Option<tinsmith::graph::ValueId>| shapes[v.unwrap().0 as usize].clone().unwrap();
    let count = |s: &[usize]| s.iter().product::<usize>() as u64;
    graph
        .nodes()
        .iter()
        .map(|node| match node.op_type.as_str() {
            "Conv" => {
                let (w, y) = (shape(node.inputs[1]), shape(node.outputs[0]));
                count(&y) * count(&w[1..])
            }
            // Each input element meets the weights of its channel.
            "ConvTranspose" => {
                let (x, w) = (shape(node.inputs[0]), shape(node.inputs[1]));
                count(&x) * count(&w[1..])
            }
            "MatMul" => {
                let (a, y) = (shape(node.inputs[0]), shape(node.outputs[0]));
                count(&y) * *a.last().unwrap() as u64
            }
            "Gemm" | "Einsum" | "If" => panic!("count {} too", node.op_type),
            _ => 0,
        })
        .sum()
}

/// The text direction classifier on 48 x 192 pixels, layer by layer from its published structure
/// (MobileNetV3-small at 0.35 of its width, the height halved in stages): weights, and places that each
/// is used at.
const DIRECTION: &[(u64, u64)] = &[
    (8 * 3 * 9, 24 * 96), // stem
    (8 * 8, 24 * 96),
    (8 * 9, 12 * 96),
    (2 * 8 * 2, 1), // squeeze and excite
    (8 * 8, 12 * 96),
    (8 * 24, 12 * 96),
    (24 * 9, 6 * 96),
    (24 * 8, 6 * 96),
    (8 * 32, 6 * 96),
    (32 * 9, 6 * 96),
    (32 * 8, 6 * 96),
    (8 * 32, 6 * 96),
    (32 * 25, 3 * 96),
    (2 * 32 * 8, 1),
    (32 * 16, 3 * 96),
    (16 * 88, 3 * 96),
    (88 * 25, 3 * 96),
    (2 * 88 * 22, 1),
    (88 * 16, 3 * 96),
    (16 * 88, 3 * 96),
    (88 * 25, 3 * 96),
    (2 * 88 * 22, 1),
    (88 * 16, 3 * 96),
    (16 * 40, 3 * 96),
    (40 * 25, 3 * 96),
    (2 * 40 * 10, 1),
    (40 * 16, 3 * 96),
    (16 * 48, 3 * 96),
    (48 * 25, 3 * 96),
    (2 * 48 * 12, 1),
    (48 * 16, 3 * 96),
    (16 * 104, 3 * 96),
    (104 * 25, 2 * 96),
    (2 * 104 * 26, 1),
    (104 * 32, 2 * 96),
    (32 * 200, 2 * 96),
    (200 * 25, 2 * 96),
    (2 * 200 * 50, 1),
    (200 * 32, 2 * 96),
    (32 * 200, 2 * 96),
    (200 * 25, 2 * 96),
    (2 * 200 * 50, 1),
    (200 * 32, 2 * 96),
    (32 * 200, 2 * 96), // last convolution
    (200 * 2, 1),       // classifier
];

#[test]
fn the_products_of_the_text_direction_classifier_are_those_counted_by_hand() {
    let by_hand: u64 = DIRECTION.iter().map(|(weights, places)| weights * places).sum();
    let path = ppocr("cls");
    let probe = analysis::summarize_file(&path, &Options::default()).unwrap();
    let sizes = [1, 48, 192];
    assert_eq!(probe.bindings.len(), sizes.len(), "{:?}", probe.bindings);
    let bindings = probe.bindings.iter().zip(sizes).map(|((symbol, _), n)| (symbol.clone(), n)).collect();
    let summary = analysis::summarize_file(&path, &Options { bindings, ..Options::default() }).unwrap();
    assert_eq!(summary.macs, by_hand);
}
