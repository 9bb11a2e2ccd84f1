//! Budgets on a graph of four products, of which one is far more sensitive than the others.

use super::*;
use crate::evaluate::samples::{Batch, Targets};
use crate::graph::{Edit, Type, ValueId};
use crate::monitor::Silent;
use crate::ops::{Attributes, Dim};
use crate::passes::{Memo, Pass};
use crate::tensor::{DType, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::cell::RefCell;
use std::sync::Mutex;

const WIDTH: usize = 64;

fn graph() -> Graph {
    chain("Tanh")
}

/// Four products one behind the other; the third one's weights have outliers in every block.
fn chain(activation: &str) -> Graph {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut edit = Edit::new("chain", &[("", 17)]);
    let shape = Some(vec![Dim::symbol("n"), Dim::from(WIDTH as i64)]);
    let mut x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape });
    for layer in 0..4 {
        let mut w: Vec<f32> =
            (0..WIDTH * WIDTH).map(|_| (rng.random::<f32>() - 0.5) / (WIDTH as f32).sqrt() * 3.4).collect();
        if layer == 2 {
            w.iter_mut().step_by(WIDTH * 16 + 1).for_each(|w| *w *= 12.0);
        }
        let w = Tensor::from_vec(vec![WIDTH, WIDTH], w).unwrap();
        let w = edit.add_initializer(&format!("w{layer}"), w);
        let y = edit.add_op("MatMul", &[x, w], Attributes::new(), &format!("y{layer}"));
        x = if layer < 3 {
            edit.add_op(activation, &[y], Attributes::new(), &format!("z{layer}"))
        } else {
            y
        };
    }
    edit.add_output(x);
    edit.commit().unwrap()
}

fn data(labels: bool) -> Samples {
    batches(4, labels)
}

fn batches(count: usize, labels: bool) -> Samples {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let batch = |_| {
        let x: Vec<f32> = (0..8 * WIDTH).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect();
        let inputs = vec![("x".into(), Tensor::from_vec(vec![8, WIDTH], x).unwrap())];
        let targets = if labels { Targets::Classes((0..8).collect()) } else { Targets::None };
        Batch { inputs, targets, rows: 8, tokens: 8 }
    };
    Samples::given((0..count).map(batch).collect())
}

fn pass(settings: &str) -> Box<dyn Pass> {
    crate::passes::by_name("quantize", &settings.parse().unwrap()).unwrap()
}

fn run(settings: &str, memo: Option<&dyn Memo>) -> Result<(Graph, PassReport)> {
    let data = data(false);
    pass(settings).run(&graph(), &mut Ctx { calibration: Some(&data), memo, ..Ctx::new(&Silent) })
}

fn precisions(report: &PassReport) -> Vec<Precision> {
    report.layers.iter().map(|l| l.precision).collect()
}

#[test]
fn the_sensitive_layer_gets_more_bits_within_a_budget_of_loss() {
    let (_, few) = run("scheme = 'weight-int4'\nmixed = { max_loss = 1e9 }", None).unwrap();
    assert_eq!(precisions(&few), [Precision::Scheme; 4]);
    let whole = few.facts["mixed_loss"];
    let of = |l: usize| few.layers[l].options[0].loss;
    assert!((0..4).all(|l| l == 2 || of(l) < of(2)), "{:?}", few.layers);
    for search in ["knapsack", "greedy"] {
        let budget = whole - 0.5 * of(2);
        let settings =
            format!("scheme = 'weight-int4'\nmixed = {{ max_loss = {budget:e}, search = '{search}' }}");
        let (graph, report) = run(&settings, None).unwrap();
        let found = precisions(&report);
        assert_eq!(
            found,
            [Precision::Scheme, Precision::Scheme, Precision::Int8, Precision::Scheme],
            "{search}"
        );
        assert!(report.facts["mixed_loss"] <= budget, "{search}");
        let bits: Vec<i64> = graph
            .nodes()
            .iter()
            .filter(|n| n.op_type == "MatMulNBits")
            .map(|n| n.attributes.int("bits", 0).unwrap())
            .collect();
        assert_eq!(bits, [4, 4, 8, 4], "{search}");
    }
}

#[test]
fn sizes_keep_to_their_budget_and_use_it() {
    let float = weight_bytes(&graph());
    let mut last = f64::INFINITY;
    for size in [0.2, 0.3, 0.5] {
        let (graph, report) =
            run(&format!("scheme = 'weight-int4'\nmixed = {{ max_size = {size} }}"), None).unwrap();
        let part = weight_bytes(&graph) / float;
        assert!(part <= size && part > size - 0.15, "{size}: {part}");
        assert!(report.facts["mixed_loss"] < last, "{size}");
        last = report.facts["mixed_loss"];
    }
    let e = run("scheme = 'weight-int4'\nmixed = { max_size = 0.05 }", None).unwrap_err();
    assert_eq!((e.code(), e.kind().exit_code()), ("MIXED-BUDGET", 4));
    let e = run("scheme = 'weight-int4'\nmixed = { max_loss = 1e-12 }", None).unwrap_err();
    assert_eq!((e.code(), e.kind().exit_code()), ("MIXED-BUDGET", 4));
}

#[test]
fn eight_bits_with_data_as_they_come_know_float_alone() {
    let (_, all) = run("scheme = 'dynamic-int8'\nmixed = { max_loss = 1e9 }", None).unwrap();
    let budget = 0.6 * all.facts["mixed_loss"];
    let (_, report) =
        run(&format!("scheme = 'dynamic-int8'\nmixed = {{ max_loss = {budget:e} }}"), None).unwrap();
    let floats = report.facts["mixed_float_layers"];
    assert!((1.0..4.0).contains(&floats), "{floats}");
    assert!(report.facts["mixed_loss"] <= budget && report.layers.iter().all(|l| l.options.len() == 1));
}

/// Keeps in memory, and counts what is asked for and was there.
#[derive(Default)]
struct Shelf {
    kept: Mutex<BTreeMap<String, Vec<u8>>>,
    found: Mutex<usize>,
}

impl Memo for Shelf {
    fn recall(&self, what: &str) -> Option<Vec<u8>> {
        let found = self.kept.lock().unwrap().get(what).cloned();
        *self.found.lock().unwrap() += usize::from(found.is_some());
        found
    }
    fn keep(&self, what: &str, result: &[u8]) {
        self.kept.lock().unwrap().insert(what.into(), result.into());
    }
}

#[test]
fn what_was_found_out_about_layers_serves_another_budget() {
    let shelf = Shelf::default();
    let (_, first) = run("scheme = 'weight-int4'\nmixed = { max_size = 0.3 }", Some(&shelf)).unwrap();
    // A figure that no run would give shows that it is what was kept that counts.
    let doubled = RefCell::new(0);
    for bytes in shelf.kept.lock().unwrap().values_mut() {
        let loss = f64::from_le_bytes(bytes[8..16].try_into().unwrap());
        bytes[8..16].copy_from_slice(&(2.0 * loss).to_le_bytes());
        *doubled.borrow_mut() += 1;
    }
    assert_eq!(*doubled.borrow(), 1);
    let (_, second) = run("scheme = 'weight-int4'\nmixed = { max_size = 0.5 }", Some(&shelf)).unwrap();
    assert_eq!(*shelf.found.lock().unwrap(), 1);
    assert_eq!(second.layers[0].options[0].loss, 2.0 * first.layers[0].options[0].loss);
    assert_eq!(
        second.layers[1],
        LayerReport { precision: second.layers[1].precision, ..first.layers[1].clone() }
    );
}

#[test]
fn what_was_found_out_about_layers_serves_a_run_that_keeps_some_in_float() {
    let shelf = Shelf::default();
    let settings = |exclude: &str| format!("scheme = 'weight-int4'\nmixed = {{ max_loss = 1e9 }}\n{exclude}");
    let (_, kept) = run(&settings("exclude = ['=y2']"), Some(&shelf)).unwrap();
    let names = |r: &PassReport| r.layers.iter().map(|l| l.name.clone()).collect::<Vec<_>>();
    assert_eq!(
        (names(&kept), kept.facts["mixed_known_layers"]),
        (["y0", "y1", "y3"].map(String::from).to_vec(), 0.0)
    );
    // The layer that was never judged is, and no other.
    let (_, all) = run(&settings(""), Some(&shelf)).unwrap();
    assert_eq!((all.layers.len(), all.facts["mixed_known_layers"]), (4, 3.0));
    let (_, fresh) = run(&settings(""), None).unwrap();
    assert_eq!(all.layers, fresh.layers);
    assert_eq!(kept.layers, [0, 1, 3].map(|l| fresh.layers[l].clone()));
    let (_, none) = run(&settings("exclude = ['=y0', 'y1']"), Some(&shelf)).unwrap();
    assert_eq!((names(&none), none.facts["mixed_known_layers"]), (vec!["y2".into(), "y3".into()], 2.0));
}

#[test]
fn budgets_and_data_that_cannot_be_are_refused_by_name() {
    let refused = |settings: &str| {
        let built = crate::passes::by_name("quantize", &settings.parse().unwrap());
        let e = built.err().unwrap();
        assert_eq!(e.kind().exit_code(), 2, "{settings}");
        e.to_string()
    };
    assert!(refused("mixed = {}").contains("step.mixed.max_loss"));
    assert!(refused("mixed = { max_loss = 1, max_size = 0.5 }").contains("one budget"));
    assert!(refused("mixed = { max_size = 1.5 }").contains("step.mixed.max_size"));
    assert!(refused("mixed = { max_size = 0.5, rows = 0 }").contains("step.mixed.rows"));
    assert!(refused("scheme = 'fp16'\nmixed = { max_size = 0.5 }").contains("step.mixed"));
    assert!(refused("recover = { steps = 5 }").contains("step.recover"));
    let e = pass("mixed = { max_size = 0.5 }").run(&graph(), &mut Ctx::new(&Silent)).unwrap_err();
    assert_eq!((e.code(), e.kind().exit_code()), ("CALIBRATION", 2));
    let e = run("mixed = { max_loss = 0.5, metric = 'task' }", None).unwrap_err();
    assert_eq!((e.code(), e.kind().exit_code()), ("MIXED-LABELS", 2));
}

#[test]
fn scales_of_blocks_are_trained_towards_the_float_model() {
    let data = batches(64, false);
    let mut ctx = Ctx { train: Some(&data), ..Ctx::new(&Silent) };
    let settings =
        "scheme = 'weight-int4'\nblock = 64\nrecover = { steps = 150, rate = 2e-4, weight_decay = 0.0 }";
    let (graph, report) = pass(settings).run(&graph(), &mut ctx).unwrap();
    let (before, after) = (report.facts["recover_held_out_before"], report.facts["recover_held_out_after"]);
    assert!(after < 0.95 * before, "{before} -> {after}");
    assert!(graph.nodes().iter().any(|n| n.op_type == "MatMulNBits"));
}

#[test]
fn the_signal_to_noise_ratio_is_that_of_the_outputs() {
    let graph = graph();
    let (quantized, report) =
        run("scheme = 'dynamic-int8'\nmixed = { max_loss = 1e9, metric = 'sqnr', rows = 4 }", None).unwrap();
    let (mut noise, mut rows) = (0.0, 0.0);
    for batch in data(false).batches(0) {
        let inputs = batch.unwrap().inputs;
        let of = |g: &Graph| {
            crate::execute::Executor::new(g).unwrap().run(&inputs).unwrap()[0].1.to_f64s().unwrap()
        };
        let (a, b) = (of(&graph), of(&quantized));
        for (a, b) in a.chunks(WIDTH).zip(b.chunks(WIDTH)) {
            let error: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
            noise += error / a.iter().map(|a| a * a).sum::<f64>();
            rows += 1.0;
        }
    }
    let expected = 0.5 * noise / rows;
    let found = report.facts["mixed_loss"];
    assert!((found - expected).abs() < 1e-5 * expected, "{found} {expected}");
}

#[test]
fn layers_on_integers_are_judged_one_by_one_on_ranges_that_were_looked_for_once() {
    let (graph, data) = (chain("Sigmoid"), data(false));
    let ctx = Ctx { calibration: Some(&data), ..Ctx::new(&Silent) };
    let quantized = |settings: &str| pass(settings).run(&graph, &mut Ctx { ..ctx }).unwrap();
    let (whole, report) = quantized("scheme = 'static-int8'\nmixed = { max_loss = 1e9 }");
    // The activations between products follow these; by themselves there is nothing to judge.
    let names: Vec<&str> = report.layers.iter().map(|l| l.name.as_str()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(whole.nodes().iter().any(|n| n.is("Sigmoid")));
    let budget = 0.5 * report.facts["mixed_loss"];
    let (_, within) = quantized(&format!("scheme = 'static-int8'\nmixed = {{ max_loss = {budget:e} }}"));
    assert!(within.facts["mixed_loss"] <= budget && within.facts["mixed_float_layers"] > 0.0);

    let settings: Settings = toml::from_str("scheme = 'static-int8'").unwrap();
    let known = calibrate::Known::default();
    let value = |v: ValueId| std::iter::once(v).collect();
    let (x, y) = (graph.inputs()[0], graph.outputs()[0]);
    known.gather(&graph, &value(x), &settings, &ctx).unwrap();
    let blind = Ctx::new(&Silent);
    assert_eq!(known.gather(&graph, &value(x), &settings, &blind).unwrap().samples, 32);
    let e = known.gather(&graph, &value(y), &settings, &blind).err().unwrap();
    assert_eq!(e.code(), "CALIBRATION");
}
