//! Repairs keep the float outputs, bring quantised ones nearer, and are left where they do not.

use super::*;
use crate::evaluate::samples::{Batch, Samples};
use crate::execute::Executor;
use crate::graph::{Edit, Type, ValueId};
use crate::monitor::Silent;
use crate::ops::{Attr, Attributes, Dim};
use crate::passes::Pass;
use crate::tensor::{DType, Tensor};

fn pass(settings: &str) -> Result<Box<dyn Pass>> {
    crate::passes::by_name("quantize", &settings.parse().unwrap())
}

fn noise(n: usize, seed: usize) -> Vec<f32> {
    let mut state = seed as u64 * 7919 + 1;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 24) as f32) * 2.0 - 1.0
        })
        .collect()
}

fn tensor(shape: &[usize], seed: usize) -> Tensor {
    Tensor::from_vec(shape.to_vec(), noise(shape.iter().product(), seed)).unwrap()
}

fn input(edit: &mut Edit, shape: &[i64]) -> ValueId {
    let shape = Some(shape.iter().map(|n| Dim::from(*n)).collect());
    edit.add_input("x", Type::Tensor { dtype: DType::F32, shape })
}

fn given(shape: &[usize], seeds: std::ops::Range<usize>, change: impl Fn(&mut [f32])) -> Samples {
    let batch = |seed| {
        let mut x = noise(shape.iter().product(), seed);
        change(&mut x);
        let inputs = vec![("x".into(), Tensor::from_vec(shape.to_vec(), x).unwrap())];
        Batch { inputs, rows: shape[0], tokens: shape[0], ..Batch::default() }
    };
    Samples::given(seeds.map(batch).collect())
}

fn outputs(graph: &Graph, data: &Samples) -> Vec<f32> {
    let executor = Executor::new(graph).unwrap();
    let run = |b: Result<Batch>| executor.run(&b.unwrap().inputs).unwrap()[0].1.to_vec::<f32>().unwrap();
    data.batches(0).flat_map(run).collect()
}

/// Squared distance in parts of the squared length.
fn error(a: &[f32], b: &[f32]) -> f64 {
    let squared = |x: f32| f64::from(x).powi(2);
    a.iter().zip(b).map(|(a, b)| squared(a - b)).sum::<f64>() / a.iter().map(|x| squared(*x)).sum::<f64>()
}

fn quantized(graph: &Graph, settings: &str, data: &Samples) -> (Graph, PassReport) {
    let mut ctx = Ctx { calibration: Some(data), ..Ctx::new(&Silent) };
    pass(settings).unwrap().run(graph, &mut ctx).unwrap()
}

/// A norm whose third channel is large and whose fifth is always zero, and two products behind it.
fn outlier(residual: bool) -> Graph {
    let mut edit = Edit::new("outlier", &[("", 17)]);
    let x = input(&mut edit, &[4, 6, 32]);
    let mut gain = vec![1f32; 32];
    (gain[2], gain[4]) = (60.0, 0.0);
    let g = edit.add_initializer("gain", Tensor::from_vec(vec![32], gain).unwrap());
    let h = edit.add_initializer("shift", Tensor::from_vec(vec![32], vec![0f32; 32]).unwrap());
    let n = edit.add_op("LayerNormalization", &[x, g, h], Attributes::new(), "norm");
    let mut sums = vec![];
    for (k, name) in ["a", "b"].into_iter().enumerate() {
        let mut w = noise(32 * 32, k + 20);
        // What meets the large channel is small, as trained models have it.
        w[2 * 32..3 * 32].iter_mut().for_each(|w| *w *= 0.02);
        let w = edit.add_initializer(&format!("{name}.w"), Tensor::from_vec(vec![32, 32], w).unwrap());
        sums.push(edit.add_op("MatMul", &[n, w], Attributes::new(), name));
    }
    let mut y = edit.add_op("Add", &sums, Attributes::new(), "sum");
    if residual {
        y = edit.add_op("Add", &[y, n], Attributes::new(), "residual");
    }
    edit.add_output(y);
    edit.commit().unwrap()
}

#[test]
fn smoothing_evens_out_what_products_read() {
    let data = given(&[4, 6, 32], 0..4, |_| ());
    for residual in [false, true] {
        let graph = outlier(residual);
        let settings: Settings = toml::from_str("scheme = 'static-int8'").unwrap();
        let ctx = Ctx { calibration: Some(&data), ..Ctx::new(&Silent) };
        let mut told = PassReport::new("quantize");
        let seen = smooth::Seen::of(&graph, &settings, &ctx).unwrap();
        let float = seen.smoothed(&graph, 0.5, &mut told).unwrap().unwrap();
        let right = outputs(&graph, &data);
        assert!(error(&right, &outputs(&float, &data)) < 1e-12);
        // Where others read the norm, a multiplication stands in front of the products.
        let muls = float.nodes().iter().filter(|n| n.is("Mul")).count();
        assert_eq!((muls, told.applied.len()), (usize::from(residual), 1), "{:?}", told.applied);
        for scheme in ["static-int8", "dynamic-int8"] {
            let (plain, _) = quantized(&graph, &format!("scheme = '{scheme}'"), &data);
            for smooth in ["0.5", "'auto'"] {
                let with = format!("scheme = '{scheme}'\nrepair = {{ smooth = {smooth} }}");
                let (smoothed, report) = quantized(&graph, &with, &data);
                // The residual holds the large channel in any case.
                let (a, b) =
                    (error(&right, &outputs(&plain, &data)), error(&right, &outputs(&smoothed, &data)));
                assert!(b < a * if residual { 1.0 } else { 0.5 }, "{scheme} {smooth} {residual}: {a} {b}");
                assert!(report.facts["repair_distance"] < report.facts["repair_distance_without"]);
            }
        }
    }
}

/// Convolutions in a depth triple whose channels differ by up to a thousand, one of them dead.
fn uneven() -> Graph {
    let mut edit = Edit::new("uneven", &[("", 17)]);
    let mut y = input(&mut edit, &[2, 3, 9, 9]);
    let layers: [(&str, &[usize], i64); 3] =
        [("first", &[8, 3, 3, 3], 1), ("depth", &[8, 1, 3, 3], 8), ("last", &[5, 8, 1, 1], 1)];
    for (k, (name, shape, group)) in layers.into_iter().enumerate() {
        let (inner, mut w) = (shape[1..].iter().product::<usize>(), noise(shape.iter().product(), k + 3));
        if shape[0] == 8 {
            for (c, row) in w.chunks_mut(inner).enumerate() {
                row.iter_mut()
                    .for_each(|x| *x *= if c == 6 { 0.0 } else { 0.02 * 3f32.powi((c * 3 % 7) as i32) });
            }
        }
        let w = edit.add_initializer(&format!("{name}.w"), Tensor::from_vec(shape.to_vec(), w).unwrap());
        let b = edit.add_initializer(&format!("{name}.b"), tensor(&[shape[0]], k + 30));
        let attributes = Attributes::new().with("group", Attr::Int(group));
        y = edit.add_op("Conv", &[y, w, b], attributes, name);
        if name != "last" {
            y = edit.add_op("Relu", &[y], Attributes::new(), &format!("{name}.relu"));
        }
    }
    edit.add_output(y);
    edit.commit().unwrap()
}

#[test]
fn equalised_layers_give_the_same_outputs_from_even_weights() {
    let (graph, data) = (uneven(), given(&[2, 3, 9, 9], 0..6, |_| ()));
    let settings = Settings::default();
    let mut told = PassReport::new("quantize");
    let float = equalize::equalized(&graph, &settings, &Ctx::new(&Silent), &mut told).unwrap().unwrap();
    assert_eq!(told.applied.len(), 2, "{:?}", told.skipped);
    let (a, b) = (outputs(&graph, &data), outputs(&float, &data));
    let top = a.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-5 * top));
    // Channels that live are alike in both weights of a pair.
    let rows = |g: &Graph, name: &str| -> Vec<f32> {
        let t = g.initializer(g.find(name).unwrap()).unwrap();
        let inner = t.len() / 8;
        let w = t.to_f32s().unwrap();
        w.chunks(inner).map(|r| r.iter().fold(0f32, |m, x| m.max(x.abs()))).collect()
    };
    let columns = |g: &Graph| -> Vec<f32> {
        let w = g.initializer(g.find("last.w").unwrap()).unwrap().to_f32s().unwrap();
        (0..8).map(|c| w.iter().skip(c).step_by(8).fold(0f32, |m, x| m.max(x.abs()))).collect()
    };
    for (c, ((a, b), d)) in
        rows(&float, "first.w").iter().zip(rows(&float, "depth.w")).zip(columns(&float)).enumerate()
    {
        if c != 6 {
            assert!((a / b - 1.0).abs() < 0.02 && (b / d - 1.0).abs() < 0.02, "{c}: {a} {b} {d}");
        }
    }
    let plain = "scheme = 'static-int8'\nper_channel = false";
    let (without, _) = quantized(&graph, plain, &data);
    let (with, report) = quantized(&graph, &format!("{plain}\nrepair = {{ equalize = true }}"), &data);
    let (x, y) = (error(&a, &outputs(&without, &data)), error(&a, &outputs(&with, &data)));
    assert!(y < 0.9 * x, "{x} {y}");
    assert!(report.applied.iter().any(|a| a.rule == "equalize" && a.target == "the model"));
}

#[test]
fn corrected_biases_bring_the_means_of_outputs_back() {
    let (graph, data) = (uneven(), given(&[2, 3, 9, 9], 0..6, |_| ()));
    let right = outputs(&graph, &data);
    let mean = |y: &[f32]| -> Vec<f64> {
        let inner = 25;
        (0..5)
            .map(|c| {
                let of = y.chunks(inner).skip(c).step_by(5).flatten();
                of.clone().map(|x| f64::from(*x)).sum::<f64>() / of.count() as f64
            })
            .collect()
    };
    let plain = "scheme = 'static-int8'\nper_channel = false\ncalibrator = 'minmax'";
    let off = |g: &Graph| -> f64 {
        let found = mean(&outputs(g, &data));
        mean(&right).iter().zip(found).map(|(a, b)| (a - b).abs()).sum()
    };
    let (without, _) = quantized(&graph, plain, &data);
    let (with, report) = quantized(&graph, &format!("{plain}\nrepair = {{ bias_correction = true }}"), &data);
    assert!(report.applied.iter().any(|a| a.rule == "bias-correction"), "{:?}", report.skipped);
    assert!(off(&with) < 0.3 * off(&without), "{} {}", off(&without), off(&with));
    assert!(error(&right, &outputs(&with, &data)) < error(&right, &outputs(&without, &data)));
}

#[test]
fn layers_without_a_bias_get_one_that_fuses() {
    let mut edit = Edit::new("bare", &[("", 17)]);
    let x = input(&mut edit, &[2, 3, 9, 9]);
    let w = edit.add_initializer("w", tensor(&[4, 3, 3, 3], 1));
    let y = edit.add_op("Conv", &[x, w], Attributes::new(), "y");
    let z = edit.add_op("Relu", &[y], Attributes::new(), "z");
    edit.add_output(z);
    let graph = edit.commit().unwrap();
    let data = given(&[2, 3, 9, 9], 0..4, |x| x.iter_mut().for_each(|x| *x = x.abs() + 3.0));
    let settings = "scheme = 'static-int8'\nper_channel = false\nreduce_range = true";
    let (with, _) = quantized(&graph, &format!("{settings}\nrepair = {{ bias_correction = true }}"), &data);
    let conv = with.nodes().iter().find(|n| n.is("Conv")).unwrap();
    let uses = with.uses();
    let bias = uses.producer(conv.inputs[2].unwrap()).unwrap();
    let levels = with.initializer(with.node(bias.0).inputs[0].unwrap()).unwrap();
    assert_eq!((levels.dtype(), levels.shape()), (DType::I32, &[4usize][..]));
}

#[test]
fn bad_inputs_are_refused_or_left_alone() {
    let graph = uneven();
    let with = "scheme = 'dynamic-int8'\nrepair = { smooth = 0.5 }";
    let e = pass(with).unwrap().run(&outlier(false), &mut Ctx::new(&Silent)).unwrap_err();
    assert_eq!((e.code(), e.kind().exit_code()), ("CALIBRATION", 2));
    let empty = Samples::given(vec![]);
    for repair in ["smooth = 0.5", "equalize = true", "bias_correction = true"] {
        let settings = format!("scheme = 'static-int8'\nrepair = {{ {repair} }}");
        let mut ctx = Ctx { calibration: Some(&empty), ..Ctx::new(&Silent) };
        assert_eq!(pass(&settings).unwrap().run(&graph, &mut ctx).unwrap_err().code(), "CALIBRATION-EMPTY");
    }
    for bad in ["smooth = 1.5", "smooth = -0.1", "smooth = 'much'", "strength = 1"] {
        assert_eq!(pass(&format!("repair = {{ {bad} }}")).err().unwrap().kind().exit_code(), 2, "{bad}");
    }
    let e = pass("scheme = 'weight-int4'\nrepair = { smooth = 0.5 }").err().unwrap();
    assert_eq!(e.code(), "QUANTIZE-REPAIR");
    // A weight that is not finite stays, and so do the channels around it.
    let mut edit = graph.edit();
    edit.set_initializer(
        graph.find("depth.w").unwrap(),
        Tensor::from_vec(vec![8, 1, 3, 3], vec![f32::NAN; 72]).unwrap(),
    );
    let damaged = edit.commit().unwrap();
    let mut told = PassReport::new("quantize");
    let none = equalize::equalized(&damaged, &Settings::default(), &Ctx::new(&Silent), &mut told).unwrap();
    assert!(none.is_none());
    assert!(told.skipped.iter().any(|s| s.reason.contains("not finite")), "{:?}", told.skipped);
}

#[test]
fn constant_data_and_repairs_that_do_not_help_change_nothing() {
    // Data that are always the same, so that ranges are single numbers.
    let data = given(&[2, 3, 9, 9], 0..2, |x| x.fill(0.0));
    let graph = uneven();
    let all = "repair = { smooth = 'auto', equalize = true, bias_correction = true }";
    let (quantized, report) = quantized(&graph, &format!("scheme = 'static-int8'\n{all}"), &data);
    assert!(outputs(&quantized, &data).iter().all(|x| x.is_finite()));
    assert!(report.facts["repair_distance"] <= report.facts["repair_distance_without"]);
}
