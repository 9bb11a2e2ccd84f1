//! Placement and settings of quantisation on graphs built by hand.

use super::*;
use crate::evaluate::samples::{Batch, Samples};
use crate::graph::{Edit, Type};
use crate::monitor::Silent;
use crate::ops::{Attr, Attributes, Dim};
use crate::tensor::Tensor;

fn mlp(op: &str) -> Graph {
    let mut edit = Edit::new("mlp", &[("", 17)]);
    let shape = Some(vec![Dim::symbol("n"), Dim::from(8i64)]);
    let x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape });
    let w: Vec<f32> = (0..32).map(|i| ((i * 7 % 13) as f32 - 6.0) / 6.0).collect();
    let w = edit.add_initializer("w", Tensor::from_vec(vec![8, 4], w).unwrap());
    let mut inputs = vec![x, w];
    if op == "Gemm" {
        inputs.push(
            edit.add_initializer("b", Tensor::from_vec(vec![4], vec![0.5f32, -0.25, 0.0, 1.0]).unwrap()),
        );
    }
    let y = edit.add_op(op, &inputs, Attributes::new(), "y");
    let z = edit.add_op("Relu", &[y], Attributes::new(), "z");
    edit.add_output(z);
    edit.commit().unwrap()
}

fn input() -> Vec<(String, Tensor)> {
    let v: Vec<f32> = (0..24).map(|i| ((i * 5 % 17) as f32 - 8.0) / 4.0).collect();
    vec![("x".into(), Tensor::from_vec(vec![3, 8], v).unwrap())]
}

fn pass(settings: &str) -> Box<dyn Pass> {
    crate::passes::by_name("quantize", &settings.parse().unwrap()).unwrap()
}

fn given(inputs: Vec<(String, Tensor)>) -> Samples {
    let rows = inputs[0].1.shape()[0];
    Samples::given(vec![Batch { inputs, rows, ..Batch::default() }])
}

fn ctx(calibration: Option<&Samples>) -> Ctx<'_> {
    Ctx { calibration, ..Ctx::new(&Silent) }
}

fn largest_error(graph: &Graph, quantized: &Graph) -> f32 {
    let run = |g: &Graph| {
        let out = crate::execute::Executor::new(g).unwrap().run(&input()).unwrap();
        out[0].1.to_vec::<f32>().unwrap()
    };
    let (a, b) = (run(graph), run(quantized));
    a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn dynamic_products_stay_close_and_lose_their_float_weights() {
    for op in ["MatMul", "Gemm"] {
        let graph = mlp(op);
        let (quantized, report) = pass("scheme = 'dynamic-int8'").run(&graph, &mut ctx(None)).unwrap();
        assert_eq!(report.applied.len(), 1);
        assert!(quantized.find("w").is_none_or(|w| quantized.initializer(w).is_none()));
        let error = largest_error(&graph, &quantized);
        assert!(error > 0.0 && error < 0.05, "{op}: {error}");
    }
}

#[test]
fn what_a_product_gives_stays_in_float_where_no_integer_kernel_reads_it() {
    let graph = mlp("Gemm");
    let feed = given(input().to_vec());
    let (quantized, report) = pass("scheme = 'static-int8'").run(&graph, &mut ctx(Some(&feed))).unwrap();
    assert_eq!(report.facts["calibration_samples"], 3.0);
    let count = |op: &str| quantized.nodes().iter().filter(|n| n.is(op)).count();
    // The data, the weight and the bias.
    assert_eq!((count("QuantizeLinear"), count("DequantizeLinear")), (1, 3));
    assert_eq!(quantized.value_name(quantized.outputs()[0]), "z");
    let error = largest_error(&graph, &quantized);
    assert!(error > 0.0 && error < 0.05, "{error}");
}

#[test]
fn refusals_say_what_to_do() {
    let graph = mlp("Gemm");
    let e = pass("scheme = 'static-int8'").run(&graph, &mut ctx(None)).unwrap_err();
    assert_eq!((e.code(), e.kind().exit_code()), ("CALIBRATION", 2));
    let e = pass("exclude = ['*']").run(&graph, &mut ctx(None)).unwrap_err();
    assert_eq!(e.code(), "NOTHING-TO-QUANTIZE");
    let empty = Samples::given(vec![]);
    let e = pass("scheme = 'static-int8'").run(&graph, &mut ctx(Some(&empty))).unwrap_err();
    assert_eq!(e.code(), "CALIBRATION-EMPTY");
    let (quantized, _) = pass("").run(&graph, &mut ctx(None)).unwrap();
    assert_eq!(pass("").run(&quantized, &mut ctx(None)).unwrap_err().code(), "QUANTIZE-TWICE");
    let e = crate::passes::by_name("quantize", &"schema = 'x'".parse().unwrap()).err().unwrap();
    assert_eq!(e.kind().exit_code(), 2);
    let bad = given(vec![("x".into(), Tensor::from_vec(vec![1, 8], vec![f32::NAN; 8]).unwrap())]);
    let e = pass("scheme = 'static-int8'").run(&graph, &mut ctx(Some(&bad))).unwrap_err();
    assert_eq!(e.code(), "CALIBRATION-NAN");
}

/// Two products of which the first one's weight holds values that are not finite.
fn damaged(both: bool) -> Graph {
    let graph = mlp("MatMul");
    let mut edit = graph.edit();
    let z = graph.find("z").unwrap();
    let mut bad = vec![0.5f32; 8];
    (bad[1], bad[6]) = (f32::NAN, f32::INFINITY);
    let bad = Tensor::from_vec(vec![4, 2], bad).unwrap();
    let v = edit.add_initializer("v", bad);
    if both {
        let w = graph.find("w").unwrap();
        edit.set_initializer(w, Tensor::from_vec(vec![8, 4], vec![f32::NAN; 32]).unwrap());
    }
    edit.add_op("MatMul", &[z, v], Attributes::new(), "damaged");
    edit.commit().unwrap()
}

#[test]
fn a_weight_that_is_not_finite_stays_in_float_and_is_reported() {
    let feed = given(input().to_vec());
    for settings in ["scheme = 'dynamic-int8'", "scheme = 'static-int8'"] {
        let (quantized, report) = pass(settings).run(&damaged(false), &mut ctx(Some(&feed))).unwrap();
        assert_eq!(report.applied.len(), 1);
        let skipped = report.skipped.iter().find(|s| s.target == "damaged").unwrap();
        assert!(skipped.reason.contains("\"v\" holds 2 of 8 values"), "{}", skipped.reason);
        assert!(quantized.initializer(quantized.find("v").unwrap()).is_some());
        for (_, t) in quantized.initializers().filter(|(v, _)| quantized.value_name(*v).ends_with("_scale")) {
            assert!(t.to_f32s().unwrap().iter().all(|s| s.is_finite() && *s > 0.0));
        }
        let e = pass(settings).run(&damaged(true), &mut ctx(Some(&feed))).unwrap_err();
        assert_eq!((e.code(), e.kind().exit_code()), ("WEIGHT-NAN", 3), "{e}");
        assert!(e.to_string().contains("of 32"), "{e}");
    }
}

#[test]
fn a_table_that_is_a_product_as_well_has_scales_for_each() {
    let mut edit = Edit::new("tied", &[("", 17)]);
    let dims = |n: usize| Some(vec![Dim::symbol("n"), Dim::from(n)]);
    let x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: dims(300) });
    let i = edit.add_input("i", Type::Tensor { dtype: DType::I64, shape: dims(1) });
    let table: Vec<f32> = (0..300 * 8).map(|i| (i % 97) as f32 / 10.0 - 4.0).collect();
    let w = edit.add_initializer("w", Tensor::from_vec(vec![300, 8], table).unwrap());
    let rows = edit.add_op("Gather", &[w, i], Attributes::new(), "rows");
    let product = edit.add_op("MatMul", &[x, w], Attributes::new(), "product");
    edit.add_output(rows);
    edit.add_output(product);
    let (quantized, report) = pass("").run(&edit.commit().unwrap(), &mut ctx(None)).unwrap();
    assert_eq!(report.applied.len(), 2);
    let shape = |name: &str| quantized.initializer(quantized.find(name).unwrap()).unwrap().shape().to_vec();
    assert_eq!((shape("w_scale"), shape("w_row_scale")), (vec![8], vec![300, 1]));
    assert!(quantized.find("w").is_none_or(|w| quantized.initializer(w).is_none()));
}

#[test]
fn weights_in_constant_nodes_are_found() {
    let mut edit = mlp("MatMul").edit();
    let w = edit.graph().find("w").unwrap();
    let tensor = edit.graph().initializer(w).unwrap().clone();
    edit.remove_initializer(w);
    let held = Attributes::new().with("value", Attr::Tensor(tensor));
    edit.add_node(crate::graph::Node::new("Constant", vec![], vec![Some(w)]).with(held));
    let (quantized, report) = pass("").run(&edit.commit().unwrap(), &mut ctx(None)).unwrap();
    assert_eq!(report.applied.len(), 1);
    assert!(quantized.nodes().iter().any(|n| n.is("MatMulInteger")));
}

#[test]
fn name_patterns_match_parts_and_stars() {
    assert!(matches("conv", "layer1/conv2"));
    assert!(matches("layer1*", "layer1/conv2") && !matches("conv*", "layer1/conv2"));
    assert!(matches("*conv*2", "layer1/conv2") && !matches("a*b*a", "aba_"));
    assert!(!matches("ab*ba", "aba"));
}

#[test]
fn an_old_graph_is_raised_for_per_channel_weights() {
    let mut edit = Edit::new("old", &[("", 11)]);
    let x = edit.add_input(
        "x",
        Type::Tensor { dtype: DType::F32, shape: Some(vec![Dim::from(2i64), Dim::from(3i64)]) },
    );
    let y = edit.add_op("Unsqueeze", &[x], Attributes::new().with("axes", Attr::Ints(vec![0])), "y");
    let z = edit.add_op("Softmax", &[y], Attributes::new().with("axis", Attr::Int(1)), "z");
    edit.add_output(z);
    let graph = edit.commit().unwrap();
    let raised = graph.upgrade(13).unwrap();
    let run = |g: &Graph| {
        let v = Tensor::from_vec(vec![2, 3], vec![0.1f32, 0.5, -0.3, 1.0, 2.0, 0.0]).unwrap();
        crate::execute::Executor::new(g).unwrap().run(&[("x".into(), v)]).unwrap()[0]
            .1
            .to_vec::<f32>()
            .unwrap()
    };
    let (a, b) = (run(&graph), run(&raised));
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-6), "{a:?} {b:?}");
}

/// `[n, 40] @ [40, 6] (+ bias) -> Relu -> @ [6, 40]^T`.
fn wide(op: &str, bad: Option<f32>) -> Graph {
    let mut edit = Edit::new("wide", &[("", 17)]);
    let shape = Some(vec![Dim::symbol("n"), Dim::from(40i64)]);
    let x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape });
    let weight = |edit: &mut Edit, name: &str, shape: [usize; 2], bad: Option<f32>| {
        let mut w: Vec<f32> = (0..240).map(|i| ((i * 73 % 101) as f32 - 50.0) / 70.0).collect();
        bad.into_iter().for_each(|bad| w[7] = bad);
        edit.add_initializer(name, Tensor::from_vec(shape.to_vec(), w).unwrap())
    };
    let w = weight(&mut edit, "w", [40, 6], None);
    let mut inputs = vec![x, w];
    if op == "Gemm" {
        inputs.push(edit.add_initializer("b", Tensor::from_vec(vec![6], vec![0.5f32; 6]).unwrap()));
    }
    let y = edit.add_op(op, &inputs, Attributes::new(), "y");
    let z = edit.add_op("Relu", &[y], Attributes::new(), "z");
    let back = weight(&mut edit, "back", [6, 40], bad);
    let out = edit.add_op("MatMul", &[z, back], Attributes::new(), "out");
    let again = weight(&mut edit, "again", [6, 40], None);
    let last = edit.add_op("Gemm", &[out, again], Attributes::new().with("transB", Attr::Int(1)), "last");
    edit.add_output(last);
    edit.commit().unwrap()
}

fn wide_rows() -> Samples {
    let x: Vec<f32> = (0..40 * 50).map(|i| ((i * 31 % 97) as f32 - 48.0) / 40.0).collect();
    given(vec![("x".into(), Tensor::from_vec(vec![50, 40], x).unwrap())])
}

#[test]
fn weights_in_blocks_are_near_and_gptq_is_nearer() {
    for op in ["MatMul", "Gemm"] {
        let (graph, data) = (wide(op, None), wide_rows());
        let outputs = |g: &Graph| {
            let batch = data.batch(&[0]).unwrap();
            crate::execute::Executor::new(g).unwrap().run(&batch.inputs).unwrap()[0]
                .1
                .to_vec::<f32>()
                .unwrap()
        };
        let wanted = outputs(&graph);
        let off = |text: &str| {
            let pass = pass(text);
            let (quantized, report) = pass.run(&graph, &mut ctx(Some(&data))).unwrap();
            assert_eq!(report.applied.len(), 2, "{report:?}");
            // The middle one sums over six inputs.
            assert!(report.skipped.iter().any(|s| s.reason.contains("fewer inputs")), "{report:?}");
            let count = |op: &str| quantized.nodes().iter().filter(|n| n.is(op)).count();
            assert_eq!((count("MatMulNBits"), count("MatMul") + count("Gemm")), (0, 1));
            let blocks = |n: &&Node| n.op_type == "MatMulNBits" && n.domain == "com.microsoft";
            assert_eq!(quantized.nodes().iter().filter(blocks).count(), 2);
            assert_eq!(quantized.opset("com.microsoft"), Some(1));
            let power: f32 = wanted.iter().map(|w| w * w).sum();
            outputs(&quantized).iter().zip(&wanted).map(|(a, b)| (a - b).powi(2)).sum::<f32>() / power
        };
        let int8 = off("scheme = 'weight-int8'\nblock = 16");
        let [rtn, gptq] = ["rtn", "gptq"].map(|rounding| {
            off(&format!("scheme = 'weight-int4'\nblock = 16\nrounding = '{rounding}'\nsymmetric = true"))
        });
        assert!(int8 < 2e-4 && rtn < 0.03 && gptq < rtn, "{op}: {int8} {rtn} {gptq}");
    }
}

#[test]
fn weights_in_blocks_refuse_with_reasons() {
    let graph = wide("Gemm", Some(f32::NAN));
    let (quantized, report) = pass("scheme = 'weight-int4'\nblock = 16").run(&graph, &mut ctx(None)).unwrap();
    assert_eq!(report.applied.len(), 2);
    let same = pass("scheme = 'weight-int4'\nblock = 16\nexclude = ['y']");
    assert_eq!(same.run(&graph, &mut ctx(None)).unwrap().1.applied.len(), 1);
    let twice = pass("scheme = 'weight-int4'\nblock = 16").check(&quantized, &ctx(None)).unwrap_err();
    assert_eq!(twice.code(), "QUANTIZE-TWICE");
    let none = pass("scheme = 'weight-int4'\nblock = 128").check(&graph, &ctx(None)).unwrap_err();
    assert_eq!(none.code(), "NOTHING-TO-QUANTIZE");
    let e = pass("scheme = 'weight-int4'\nrounding = 'gptq'").check(&graph, &ctx(None)).unwrap_err();
    assert!(e.to_string().contains("data.calibration"), "{e}");
    for (setting, field) in [
        ("block = 48", "step.block"),
        ("percentile = 10.0", "step.percentile"),
        ("averaging = 0.0", "step.averaging"),
        ("damping = -1.0", "step.damping"),
        ("accuracy_level = 5", "step.accuracy_level"),
    ] {
        let e = crate::passes::by_name("quantize", &setting.parse().unwrap()).err().unwrap();
        assert!(e.kind() == crate::error::Kind::Usage && e.to_string().contains(field), "{e}");
    }
}

/// `ids -> Gather(table) -> @ table^T`.
fn tied() -> Graph {
    let mut edit = Edit::new("tied", &[("", 17)]);
    let ids = edit.add_input("ids", Type::Tensor { dtype: DType::I64, shape: Some(vec![Dim::symbol("n")]) });
    let table: Vec<f32> = (0..300 * 32).map(|i| ((i * 73 % 1009) as f32 - 500.0) / 700.0).collect();
    let table = edit.add_initializer("table", Tensor::from_vec(vec![300, 32], table).unwrap());
    let rows = edit.add_op("Gather", &[table, ids], Attributes::new(), "rows");
    let transposed = Attributes::new().with("transB", Attr::Int(1));
    let logits = edit.add_op("Gemm", &[rows, table], transposed, "logits");
    edit.add_output(logits);
    edit.commit().unwrap()
}

#[test]
fn a_table_that_is_the_head_as_well_is_stored_once() {
    let graph = tied();
    let ids = vec![("ids".to_string(), Tensor::from_vec(vec![3], vec![7i64, 299, 0]).unwrap())];
    let outputs = |g: &Graph| {
        crate::execute::Executor::new(g).unwrap().run(&ids).unwrap()[0].1.to_vec::<f32>().unwrap()
    };
    let wanted = outputs(&graph);
    for (embeddings, bits, look_ups, most) in [("int8", 8, 1, 0.04), ("int4", 4, 1, 0.7), ("keep", 4, 0, 0.5)]
    {
        for symmetric in [false, true] {
            let text =
                format!("scheme = 'weight-int4'\nembeddings = '{embeddings}'\nsymmetric = {symmetric}");
            let (quantized, report) = pass(&text).run(&graph, &mut ctx(None)).unwrap();
            assert_eq!(report.applied.len(), 1 + look_ups, "{report:?}");
            let of = |op: &str| quantized.nodes().iter().filter(|n| n.op_type == op).collect::<Vec<_>>();
            assert_eq!(of("GatherBlockQuantized").len(), look_ups);
            assert_eq!(of("MatMulNBits")[0].attributes.int("bits", 0).unwrap(), bits);
            let far = outputs(&quantized).iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < most, "{embeddings} {symmetric}: {far}");
            // Levels, scales and zero points, and for `keep` the table.
            let stored: u64 = quantized.initializers().map(|(_, t)| t.byte_len()).sum();
            let one = 300 * 32 * bits as u64 / 8 + 300 * 5 + 100;
            let table = if look_ups == 0 { 300 * 32 * 4 } else { 0 };
            assert!(stored <= one + table, "{stored} {one} {table}");
        }
    }
    // Rows of 32 elements are no whole block of 128: the table has smaller ones, and so has the head.
    let (quantized, _) = pass("scheme = 'weight-int4'\nblock = 128").run(&graph, &mut ctx(None)).unwrap();
    for op in ["GatherBlockQuantized", "MatMulNBits"] {
        let node = quantized.nodes().iter().find(|n| n.op_type == op).unwrap();
        assert_eq!(node.attributes.int("block_size", 0).unwrap(), 32, "{op}");
    }
}

/// `y = norm(x); (y @ up * silu(y @ gate)) @ down`, with 32 channels and 48 units.
fn gated() -> Graph {
    let mut edit = Edit::new("gated", &[("", 23)]);
    let shape = Some(vec![Dim::symbol("n"), Dim::symbol("s"), Dim::from(32i64)]);
    let x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape });
    let mut seed = 1u32;
    let mut weight = |edit: &mut Edit, name: &str, shape: &[usize]| {
        let mut one = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let w: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| one() + one() + one()).collect();
        edit.add_initializer(name, Tensor::from_vec(shape.to_vec(), w).unwrap())
    };
    let gamma: Vec<f32> = (0..32).map(|i| if i % 11 == 3 { 8.0 } else { 0.7 }).collect();
    let gamma = edit.add_initializer("gamma", Tensor::from_vec(vec![32], gamma).unwrap());
    let y = edit.add_op("RMSNormalization", &[x, gamma], Attributes::new(), "y");
    let [up, gate] = ["up", "gate"].map(|name| {
        let w = weight(&mut edit, &format!("{name}_weight"), &[32, 48]);
        edit.add_op("MatMul", &[y, w], Attributes::new(), name)
    });
    let sigmoid = edit.add_op("Sigmoid", &[gate], Attributes::new(), "sigmoid");
    let silu = edit.add_op("Mul", &[gate, sigmoid], Attributes::new(), "silu");
    let hidden = edit.add_op("Mul", &[silu, up], Attributes::new(), "hidden");
    let down = weight(&mut edit, "down_weight", &[48, 32]);
    let down = edit.add_op("MatMul", &[hidden, down], Attributes::new(), "down");
    edit.add_output(down);
    edit.commit().unwrap()
}

fn gated_rows() -> Samples {
    let x: Vec<f32> = (0..2 * 40 * 32).map(|i| ((i * 31 % 97) as f32 - 48.0) / 40.0).collect();
    given(vec![("x".into(), Tensor::from_vec(vec![2, 40, 32], x).unwrap())])
}

fn gated_outputs(graph: &Graph) -> Vec<f32> {
    let batch = gated_rows().batch(&[0]).unwrap();
    let found = crate::execute::Executor::new(graph).unwrap().run(&batch.inputs).unwrap();
    found[0].1.to_vec::<f32>().unwrap()
}

/// Power of the difference of outputs as a part of their power.
fn apart(graph: &Graph, from: &Graph) -> f32 {
    let (found, wanted) = (gated_outputs(graph), gated_outputs(from));
    let power: f32 = wanted.iter().map(|w| w * w).sum();
    found.iter().zip(&wanted).map(|(a, b)| (a - b).powi(2)).sum::<f32>() / power
}

#[test]
fn real_zero_points_add_what_they_stand_for() {
    let (graph, data) = (gated(), gated_rows());
    for rounding in ["rtn", "mse", "hqq", "k-quant", "gptq", "awq", "awq-gptq"] {
        let text =
            format!("scheme = 'weight-int4'\nzero_points = 'real'\nblock = 16\nrounding = '{rounding}'");
        let (quantized, report) = pass(&text).run(&graph, &mut ctx(Some(&data))).unwrap();
        let count = |op: &str| quantized.nodes().iter().filter(|n| n.is(op) || n.op_type == op).count();
        assert_eq!((count("MatMulNBits"), count("Add"), count("MatMul")), (3, 3, 3), "{report:?}");
        // Two products read the same sums.
        assert_eq!(count("ReduceSum"), 2);
        let off = apart(&quantized, &graph);
        assert!(off < 0.03, "{rounding} {off}");
    }
}

#[test]
fn weights_that_lie_in_blocks_keep_their_values() {
    let (graph, data) = (gated(), gated_rows());
    let pass = pass("scheme = 'weight-int4'\nblock = 16\nrounding = 'lossless'");
    assert_eq!(pass.run(&graph, &mut ctx(Some(&data))).unwrap_err().code(), "NOTHING-TO-QUANTIZE");
    let mut edit = graph.edit();
    for (v, tensor) in graph.initializers().filter(|(_, t)| t.shape().len() == 2) {
        let on = |w: &f32| (w * 8.0).round().clamp(-7.0, 7.0) / 64.0 + 0.503;
        let w: Vec<f32> = tensor.to_f32s().unwrap().iter().map(on).collect();
        edit.set_initializer(v, Tensor::from_vec(tensor.shape().to_vec(), w).unwrap());
    }
    let graph = edit.commit().unwrap();
    let (stored, report) = pass.run(&graph, &mut ctx(None)).unwrap();
    assert!(report.applied.iter().all(|a| a.detail.contains("as they are")), "{report:?}");
    assert_eq!(report.applied.len(), 3);
    let off = apart(&stored, &graph);
    assert!(off < 1e-10, "{off}");
}

#[test]
fn scales_of_inputs_leave_the_function_and_lower_the_error() {
    let (graph, data) = (gated(), gated_rows());
    let run = |graph: &Graph, rounding: &str| {
        let text = format!("scheme = 'weight-int4'\nblock = 16\nrounding = '{rounding}'");
        pass(&text).run(graph, &mut ctx(Some(&data))).unwrap()
    };
    let settings =
        Settings { scheme: Scheme::WeightInt4, block: 16, rounding: Rounding::Awq, ..Settings::default() };
    let mut report = PassReport::new("quantize");
    let scaled = awq::scaled(&graph, &settings, &ctx(Some(&data)), &mut report).unwrap();
    assert_eq!(report.applied.len(), 2, "{report:?}");
    let changed = |name: &str| {
        let of = |g: &Graph| g.initializer(g.find(name).unwrap()).unwrap().to_f32s().unwrap();
        of(&graph) != of(&scaled)
    };
    assert!(["gamma", "up_weight", "gate_weight", "down_weight"].into_iter().all(changed));
    let off = apart(&scaled, &graph);
    assert!(off < 1e-10, "{off}");
    let [mse, awq, both] = ["mse", "awq", "awq-gptq"].map(|r| apart(&run(&graph, r).0, &graph));
    assert!(awq < 0.9 * mse && both < awq, "{mse} {awq} {both}");

    // Another reader of the data keeps them as they are.
    let mut edit = graph.edit();
    let (y, down) = (graph.find("y").unwrap(), graph.find("down").unwrap());
    let sum = edit.add_op("Add", &[down, y], Attributes::new(), "sum");
    edit.remove_output(down);
    edit.add_output(sum);
    let (_, report) = run(&edit.commit().unwrap(), "awq");
    let reason = |why: &str| report.skipped.iter().any(|s| s.rule == "awq" && s.reason.contains(why));
    assert!(reason("something else reads its data"), "{report:?}");
}

/// Accuracy level 4 takes half the time, larger blocks a little less; both lose tokens.
struct Told;

impl crate::passes::Trial for Told {
    fn latency(&self, graph: &Graph) -> Result<f64> {
        let (block, level) = grid(graph);
        Ok(if level == 4 { 0.5 } else { 1.0 } - block as f64 / 1e4)
    }
    fn agreement(&self, graph: &Graph) -> Result<Option<f64>> {
        let (block, level) = grid(graph);
        Ok(Some(1.0 - block as f64 / 4e3 - if level == 4 { 0.004 } else { 0.0 }))
    }
}

/// Block size and accuracy level of a graph's first weight in blocks.
fn grid(graph: &Graph) -> (i64, i64) {
    let first = graph.nodes().iter().find(|n| n.op_type == "MatMulNBits").unwrap();
    let of = |name| first.attributes.int(name, 0).unwrap();
    (of("block_size"), of("accuracy_level"))
}

#[test]
fn block_and_accuracy_level_are_the_fastest_of_those_that_agree() {
    let graph = tied();
    let text = "scheme = 'weight-int4'
embeddings = 'keep'
tune = true";
    let pass = pass(text);
    let (quantized, report) = pass.run(&graph, &mut Ctx { trial: Some(&Told), ..ctx(None) }).unwrap();
    assert_eq!(grid(&quantized), (32, 4), "{report:?}");
    let tried: Vec<_> = report.applied.iter().filter(|a| a.rule == "tune").collect();
    assert_eq!(tried.len(), 2, "{report:?}");
    assert!(tried[1].detail.contains("latency 0.497") && tried[1].detail.contains("98.8 %"), "{tried:?}");
    // The product sums over 32.
    assert_eq!(report.skipped.iter().filter(|s| s.rule == "tune").count(), 2);
    assert_eq!(report.facts["tuned_accuracy_level"], 4.0);
    let e = pass.run(&graph, &mut ctx(None)).unwrap_err();
    assert_eq!((e.code(), e.kind()), ("QUANTIZE-TUNE", crate::error::Kind::Unsupported));
}
