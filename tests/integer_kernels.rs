//! What static int8 becomes inside ONNX Runtime: integer kernels by name, and no pair that none of them reads.

use crate::cache;
use crate::transformer::Noise;
use std::collections::BTreeMap;
use tinsmith::evaluate::samples::{Batch, Samples};
use tinsmith::execute::Executor;
use tinsmith::formats;
use tinsmith::graph::{Edit, Graph, Node, Type, ValueId};
use tinsmith::monitor::Silent;
use tinsmith::ops::{Attr, Attributes, Dim};
use tinsmith::passes::{self, Ctx, PassReport};
use tinsmith::runtime::{Session, SessionOptions};
use tinsmith::tensor::{DType, Tensor};

type Feed = Vec<(String, Tensor)>;

/// A graph under construction, with random weights.
struct Net {
    edit: Edit,
    noise: Noise,
    opset: i64,
}

impl Net {
    fn new(opset: i64) -> Net {
        let mut edit = Edit::new("net", &[("", opset), ("com.microsoft", 1)]);
        edit.header_mut().ir_version = 8;
        Net { edit, noise: Noise(7), opset }
    }
    fn input(&mut self, shape: &[&str]) -> ValueId {
        let dim = |s: &&str| s.parse::<i64>().map_or_else(|_| Dim::symbol(s), Dim::from);
        let shape = Some(shape.iter().map(dim).collect());
        self.edit.add_input("x", Type::Tensor { dtype: DType::F32, shape })
    }
    fn random(&mut self, shape: &[usize], scale: f32) -> ValueId {
        let t = self.noise.tensor(shape, scale);
        self.edit.add_initializer("c", t)
    }
    fn held(&mut self, shape: &[usize], v: &[f32]) -> ValueId {
        self.edit.add_initializer("c", Tensor::from_vec(shape.to_vec(), v.to_vec()).unwrap())
    }
    fn op(&mut self, op: &str, inputs: &[ValueId], attributes: &[(&str, Attr)]) -> ValueId {
        let all = attributes.iter().fold(Attributes::new(), |a, (n, v)| a.with(n, v.clone()));
        self.edit.add_op(op, inputs, all, op)
    }
    fn conv(&mut self, x: ValueId, shape: [usize; 4], stride: i64) -> ValueId {
        let scale = (1.0 / (shape[1] * shape[2] * shape[3]) as f32).sqrt();
        let (w, b) = (self.random(&shape, scale), self.random(&[shape[0]], 0.2));
        let pad = (shape[2] / 2) as i64;
        let attributes = [("pads", Attr::Ints(vec![pad; 4])), ("strides", Attr::Ints(vec![stride; 2]))];
        self.op("Conv", &[x, w, b], &attributes)
    }
    fn dense(&mut self, x: ValueId, shape: [usize; 2]) -> ValueId {
        let w = self.random(&shape, (1.0 / shape[0] as f32).sqrt());
        let y = self.op("MatMul", &[x, w], &[]);
        let b = self.random(&[shape[1]], 0.2);
        self.op("Add", &[y, b], &[])
    }
    fn clip(&mut self, x: ValueId, low: f32, high: f32) -> ValueId {
        if self.opset < 11 {
            return self.op("Clip", &[x], &[("min", Attr::Float(low)), ("max", Attr::Float(high))]);
        }
        let (low, high) = (self.held(&[], &[low]), self.held(&[], &[high]));
        self.op("Clip", &[x, low, high], &[])
    }
    /// `x * Clip(x + 3, 0, 6) / 6`, spelled out.
    fn hard_swish(&mut self, x: ValueId) -> ValueId {
        let (three, six) = (self.held(&[1], &[3.0]), self.held(&[1], &[6.0]));
        let moved = self.op("Add", &[x, three], &[]);
        let gate = self.clip(moved, 0.0, 6.0);
        let product = self.op("Mul", &[x, gate], &[]);
        self.op("Div", &[product, six], &[])
    }
    fn ends(mut self, y: ValueId) -> Graph {
        self.edit.add_output(y);
        self.edit.commit().unwrap()
    }
}

fn feed(shape: &[usize], seed: u64) -> Feed {
    vec![("x".into(), Noise(seed).tensor(shape, 2.0))]
}

fn quantized(graph: &Graph, settings: &str, shape: &[usize]) -> (Graph, PassReport) {
    let batch = |seed| Batch { inputs: feed(shape, seed), rows: shape[0], ..Batch::default() };
    let data = Samples::given((1..5).map(batch).collect());
    // Sums of 8-bit products would saturate on a processor without VNNI.
    let settings = format!("{settings}\nreduce_range = true");
    let pass = passes::by_name("quantize", &settings.parse().unwrap()).unwrap();
    let mut ctx = Ctx { calibration: Some(&data), ..Ctx::new(&Silent) };
    pass.run(graph, &mut ctx).unwrap_or_else(|e| panic!("{settings}: {e}"))
}

/// Kernels that ran, by operator, and the outputs.
fn kernels(graph: &Graph, feed: &Feed, sizes: &[(&str, i64)]) -> (BTreeMap<String, usize>, Feed) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net.onnx");
    formats::save(graph, &path).unwrap();
    let options = SessionOptions {
        profile: Some(dir.path().join("profile")),
        dimensions: sizes.iter().map(|(n, d)| (n.to_string(), *d)).collect(),
        ..SessionOptions::default()
    };
    let mut session = Session::load(&cache::runtime(), &path, &options).unwrap();
    let outputs = session.run(feed).unwrap();
    let mut counts = BTreeMap::new();
    for kernel in session.end_profile().unwrap() {
        *counts.entry(kernel.op).or_insert(0) += 1;
    }
    (counts, outputs)
}

fn cosine(a: &Feed, b: &Feed) -> f64 {
    let (a, b) = (a[0].1.to_f64s().unwrap(), b[0].1.to_f64s().unwrap());
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    assert_eq!(a.len(), b.len());
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

fn floats(graph: &Graph, feed: &Feed) -> Feed {
    Executor::new(graph).unwrap().run(feed).unwrap()
}

fn at(counts: &BTreeMap<String, usize>, op: &str) -> usize {
    counts.get(op).copied().unwrap_or(0)
}

/// Hard-swish, squeeze and excite, a residual, a concatenation and a head.
fn mobile(opset: i64) -> Graph {
    let mut net = Net::new(opset);
    let x = net.input(&["n", "3", "h", "w"]);
    let y = net.conv(x, [16, 3, 3, 3], 2);
    let y = net.hard_swish(y);
    let squeezed = net.op("GlobalAveragePool", &[y], &[]);
    let squeezed = net.conv(squeezed, [8, 16, 1, 1], 1);
    let squeezed = net.op("Relu", &[squeezed], &[]);
    let gate = net.conv(squeezed, [16, 8, 1, 1], 1);
    let gate = net.op("HardSigmoid", &[gate], &[("alpha", Attr::Float(0.2)), ("beta", Attr::Float(0.5))]);
    let excited = net.op("Mul", &[y, gate], &[]);
    let z = net.conv(excited, [16, 16, 3, 3], 1);
    let z = net.op("Add", &[z, y], &[]);
    let z = net.op("Relu", &[z], &[]);
    let narrow = net.conv(z, [8, 16, 1, 1], 1);
    let both = net.op("Concat", &[z, narrow], &[("axis", Attr::Int(1))]);
    let window = [("kernel_shape", Attr::Ints(vec![2, 2])), ("strides", Attr::Ints(vec![2, 2]))];
    let pooled = net.op("MaxPool", &[both], &window);
    let last = net.conv(pooled, [10, 24, 1, 1], 1);
    let all = net.op("GlobalAveragePool", &[last], &[]);
    let flat = net.op("Flatten", &[all], &[]);
    let (w, b) = (net.random(&[10, 6], 0.3), net.random(&[6], 0.2));
    let y = net.op("Gemm", &[flat, w, b], &[]);
    net.ends(y)
}

#[test]
fn a_mobile_net_runs_on_integers_from_the_first_kernel_to_the_last() {
    let (graph, shape) = (mobile(17), [2, 3, 32, 32]);
    let (int8, report) = quantized(&graph, "scheme = 'static-int8'", &shape);
    let (counts, found) = kernels(&int8, &feed(&shape, 9), &[]);
    println!("{counts:?}");
    for (op, n) in [
        ("QLinearConv", 6),
        // Those of the gates are additions; the residual is one.
        ("QLinearAdd", 3),
        ("QLinearMul", 2),
        ("QLinearConcat", 1),
        ("QLinearGlobalAveragePool", 2),
        ("QGemm", 1),
        // The input alone.
        ("QuantizeLinear", 1),
        ("DequantizeLinear", 0),
        ("Relu", 0),
        ("Clip", 0),
        ("Div", 0),
        ("HardSigmoid", 0),
        ("Conv", 0),
    ] {
        assert_eq!(at(&counts, op), n, "{op} of {counts:?}");
    }
    let similar = cosine(&floats(&graph, &feed(&shape, 9)), &found);
    assert!(similar > 0.995, "{similar}");
    // The executor computes the same integers.
    let own = cosine(&floats(&int8, &feed(&shape, 9)), &found);
    assert!(own > 0.9999, "{own}");
    assert!(report.applied.iter().any(|a| a.detail.contains("scale of its input")), "{report:?}");
}

/// One layer behind a norm, with a mask of positions added to its scores.
fn encoder() -> Graph {
    let mut net = Net::new(17);
    let x = net.input(&["batch", "seq", "32"]);
    let norm = |net: &mut Net, x: ValueId| {
        let (scale, bias) = (net.random(&[32], 1.0), net.random(&[32], 0.1));
        net.op("LayerNormalization", &[x, scale, bias], &[])
    };
    let x = norm(&mut net, x);
    let [q, k, v] = [0; 3].map(|_| net.dense(x, [32, 32]));
    let turned = net.op("Transpose", &[k], &[("perm", Attr::Ints(vec![0, 2, 1]))]);
    let scores = net.op("MatMul", &[q, turned], &[]);
    let mask = net.held(&[1, 1, 6], &[0.0, 0.0, 0.0, 0.0, -1e9, f32::MIN]);
    let scores = net.op("Add", &[scores, mask], &[]);
    let part = net.op("Softmax", &[scores], &[("axis", Attr::Int(-1))]);
    let mixed = net.op("MatMul", &[part, v], &[]);
    let y = net.dense(mixed, [32, 32]);
    let y = net.op("Add", &[y, x], &[]);
    let y = norm(&mut net, y);
    let wide = net.dense(y, [32, 64]);
    let out = net.edit.add_value("gelu", None);
    net.edit.add_node(Node::new("Gelu", vec![Some(wide)], vec![Some(out)]).in_domain("com.microsoft"));
    let narrow = net.dense(out, [64, 32]);
    let z = net.op("Add", &[narrow, y], &[]);
    let z = norm(&mut net, z);
    net.ends(z)
}

#[test]
fn an_encoder_multiplies_integers_and_keeps_the_rest_in_float() {
    let (graph, shape) = (encoder(), [2, 6, 32]);
    let (int8, report) = quantized(&graph, "scheme = 'static-int8'", &shape);
    // One pair for each value that products read, and none for the mask.
    let pairs = int8.nodes().iter().filter(|n| n.is("QuantizeLinear")).count();
    assert_eq!(pairs, 4, "{report:?}");
    for (v, t) in int8.initializers().filter(|(v, _)| int8.value_name(*v).ends_with("_scale")) {
        assert!(t.to_f32s().unwrap().iter().all(|s| *s < 1.0), "{}", int8.value_name(v));
    }
    let x = feed(&shape, 9);
    let wanted = floats(&graph, &x);
    let (open, found) = kernels(&int8, &x, &[]);
    println!("open {open:?}");
    assert_eq!((at(&open, "MatMulIntegerToFloat"), at(&open, "QuantizeLinear")), (6, 4), "{open:?}");
    // Norms take the residual and the bias in.
    assert_eq!((at(&open, "SkipLayerNormalization"), at(&open, "BiasGelu")), (2, 1), "{open:?}");
    assert!(cosine(&wanted, &found) > 0.999, "{}", cosine(&wanted, &found));
    // With sizes that are known the runtime makes Gemms of products and biases, and these are on integers too.
    let (fixed, found) = kernels(&int8, &x, &[("batch", 2), ("seq", 6)]);
    println!("fixed {fixed:?}");
    assert_eq!((at(&fixed, "QGemm"), at(&fixed, "QuantizeLinear")), (6, 4), "{fixed:?}");
    assert_eq!((at(&fixed, "DequantizeLinear"), at(&fixed, "Gemm")), (0, 0), "{fixed:?}");
    assert!(cosine(&wanted, &found) > 0.999, "{}", cosine(&wanted, &found));
}

#[test]
fn both_forms_give_the_same_numbers() {
    for (graph, shape) in [(mobile(17), vec![2, 3, 32, 32]), (encoder(), vec![2, 6, 32])] {
        let x = feed(&shape, 9);
        let [pairs, operators] = ["qdq", "qoperator"]
            .map(|form| quantized(&graph, &format!("scheme = 'static-int8'\nform = '{form}'"), &shape).0);
        let count = |g: &Graph, op: &str| g.nodes().iter().filter(|n| n.op_type == op).count();
        println!("{:?}", operators.nodes().iter().map(|n| n.op_type.as_str()).collect::<Vec<_>>());
        // What is quantised at run time, and nothing else, keeps its float form.
        assert_eq!(count(&operators, "DequantizeLinear"), 0);
        assert!(count(&operators, "QuantizeLinear") <= 4);
        let (_, a) = kernels(&pairs, &x, &[]);
        let (counts, b) = kernels(&operators, &x, &[]);
        let products = ["QLinearConv", "QGemm", "MatMulIntegerToFloat"].map(|op| count(&operators, op));
        assert_eq!(products, if shape.len() == 4 { [6, 1, 0] } else { [0, 0, 6] }, "{counts:?}");
        // Those of the executor, which computes both exactly.
        let (own_a, own_b) = (floats(&pairs, &x), floats(&operators, &x));
        for (name, a, b) in [("runtime", &a, &b), ("executor", &own_a, &own_b), ("across", &b, &own_b)] {
            let (a, b) = (a[0].1.to_f32s().unwrap(), b[0].1.to_f32s().unwrap());
            let most = b.iter().fold(0f32, |m, x| m.max(x.abs()));
            let far = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / most;
            println!("{name}: {far:e}");
            // A sum may round to the next level where both add floats in another order.
            assert!(far < 2e-2, "{name}: {far}");
        }
    }
}

#[test]
fn data_with_a_mask_stay_in_float() {
    let mut net = Net::new(17);
    let x = net.input(&["n", "4", "8", "8"]);
    let y = net.conv(x, [4, 4, 3, 3], 1);
    // A mask that the data make themselves.
    let most = net.held(&[1], &[-1e9]);
    let mask = net.op("Mul", &[x, most], &[]);
    let z = net.conv(y, [4, 4, 1, 1], 1);
    let masked = net.op("Add", &[z, mask], &[]);
    let masked = net.conv(masked, [4, 4, 1, 1], 1);
    net.edit.add_output(masked);
    let w = net.conv(y, [4, 4, 1, 1], 1);
    let z = net.op("Add", &[w, y], &[]);
    let z = net.conv(z, [4, 4, 1, 1], 1);
    let graph = net.ends(z);
    let (int8, report) = quantized(&graph, "scheme = 'static-int8'", &[2, 4, 8, 8]);
    let left = report.skipped.iter().filter(|s| s.reason.contains("mask")).count();
    let adds = int8.nodes().iter().filter(|n| n.is("Add")).count();
    assert_eq!((left, adds), (1, 2), "{:?}", report.skipped);
}

#[test]
fn operator_sets_from_7_on_are_raised_and_quantised() {
    for opset in 7..=23 {
        let (graph, shape) = (mobile(opset), [2, 3, 16, 16]);
        let wanted = floats(&graph, &feed(&shape, 9));
        for scheme in ["static-int8", "dynamic-int8"] {
            let (int8, _) = quantized(&graph, &format!("scheme = '{scheme}'"), &shape);
            let (counts, found) = kernels(&int8, &feed(&shape, 9), &[]);
            let integer = if scheme == "static-int8" { "QLinearConv" } else { "DynamicQuantizeMatMul" };
            assert!(at(&counts, integer) > 0, "{opset} {scheme}: {counts:?}");
            let similar = cosine(&wanted, &found);
            assert!(similar > 0.99, "{opset} {scheme}: {similar}");
        }
    }
    let graph = mobile(6);
    let data = Samples::given(vec![Batch { inputs: feed(&[2, 3, 16, 16], 1), rows: 2, ..Batch::default() }]);
    for scheme in ["static-int8", "dynamic-int8"] {
        let pass = passes::by_name("quantize", &format!("scheme = '{scheme}'").parse().unwrap()).unwrap();
        let mut ctx = Ctx { calibration: Some(&data), ..Ctx::new(&Silent) };
        let e = pass.run(&graph, &mut ctx).unwrap_err();
        assert!(e.code().starts_with("OPSET") && e.to_string().contains('6'), "{e}");
    }
}
