//! Importance from data and slopes, and repair without training: held against figures computed another
//! way, and against nets in which the right answer is known.

use std::collections::BTreeMap;
use tinsmith::evaluate::parity::parity;
use tinsmith::evaluate::samples::{Batch, Samples, Targets};
use tinsmith::execute::{Executor, Overrides, Seen};
use tinsmith::graph::{Edit, Graph, Type, ValueId};
use tinsmith::monitor::Silent;
use tinsmith::ops::{Attributes, Dim};
use tinsmith::passes::prune::{Decision, Settings, decide_with};
use tinsmith::passes::{Ctx, by_name};
use tinsmith::tensor::{DType, Tensor, Value};

/// Numbers between -1 and 1, the same in every run.
fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 40) as f32) / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

const IN: usize = 6;
const HIDDEN: usize = 16;
const OUT: usize = 5;

struct Layers {
    up: Vec<f32>,
    up_bias: Vec<f32>,
    down: Vec<f32>,
}

impl Layers {
    fn new() -> Layers {
        let up_bias = noise(2, HIDDEN);
        Layers { up: noise(1, IN * HIDDEN), up_bias, down: noise(3, HIDDEN * OUT) }
    }

    /// relu(x up + bias) down [+ bias], as MatMul and Add.
    fn graph(&self, bias: bool) -> Graph {
        let mut edit = Edit::new("net", &[("", 17)]);
        let shape = vec![Dim::symbol("n"), Dim::from(IN)];
        let x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: Some(shape) });
        let tensor = |shape: &[usize], v: &[f32]| Tensor::from_vec(shape.to_vec(), v.to_vec()).unwrap();
        let up = edit.add_initializer("up", tensor(&[IN, HIDDEN], &self.up));
        let up_bias = edit.add_initializer("up_bias", tensor(&[HIDDEN], &self.up_bias));
        let down = edit.add_initializer("down", tensor(&[HIDDEN, OUT], &self.down));
        let mut op =
            |name: &str, inputs: &[ValueId], out: &str| edit.add_op(name, inputs, Attributes::new(), out);
        let h = op("MatMul", &[x, up], "h");
        let h = op("Add", &[h, up_bias], "hb");
        let h = op("Relu", &[h], "a");
        let mut y = op("MatMul", &[h, down], "y");
        if bias {
            let b = edit.add_initializer("b", tensor(&[OUT], &noise(4, OUT)));
            y = edit.add_op("Add", &[y, b], Attributes::new(), "z");
        }
        edit.add_output(y);
        edit.commit().unwrap()
    }
}

fn rows(count: usize, seed: u64) -> Vec<(String, Tensor)> {
    vec![("x".into(), Tensor::from_vec(vec![count, IN], noise(seed, count * IN)).unwrap())]
}

fn samples(labelled: bool) -> Samples {
    let batch = |i: usize| {
        let classes = (0..8).map(|r| (i + r) % OUT).collect();
        let targets = if labelled { Targets::Classes(classes) } else { Targets::None };
        Batch { inputs: rows(8, 10 + i as u64), targets, rows: 8, tokens: 8 }
    };
    Samples::given((0..6).map(batch).collect())
}

fn settings(text: &str) -> Settings {
    toml::from_str(&format!("ratio = 0.3\nround_to = 1\n{text}")).unwrap()
}

fn decision(graph: &Graph, text: &str, data: &Samples) -> Decision {
    let ctx = Ctx { calibration: Some(data), ..Ctx::new(&Silent) };
    decide_with(graph, &settings(text), &ctx).unwrap()
}

/// Scores of the one group, by hidden index.
fn scores(graph: &Graph, text: &str, data: &Samples) -> Vec<f64> {
    let decision = decision(graph, text, data);
    let group = decision.coupled.groups().iter().find(|g| g.units == HIDDEN).unwrap();
    decision.scores[group.id].clone().unwrap()
}

fn near(name: &str, got: &[f64], want: &[f64]) {
    let largest = want.iter().copied().fold(0.0, f64::max);
    assert!(largest > 0.0, "{name}: nothing to compare");
    for (i, (a, b)) in got.iter().zip(want).enumerate() {
        assert!((a - b).abs() <= 2e-5 * largest, "{name} {i}: {a} and {b}");
    }
}

/// What flows into the second product, `[48, HIDDEN]`.
fn flow(graph: &Graph) -> Vec<f32> {
    let (executor, a) = (Executor::new(graph).unwrap(), graph.find("a").unwrap());
    let mut out = Vec::new();
    for batch in samples(false).batches(0) {
        let mut tap = |v: ValueId, value: &Value| {
            if v == a {
                out.extend(value.to_tensor()?.to_f32s()?);
            }
            Ok(())
        };
        executor.run_tapped(&batch.unwrap().inputs, &Overrides::new(), Seen::All, &mut tap).unwrap();
    }
    out
}

#[test]
fn criteria_of_activations_are_what_their_definitions_say() {
    let layers = Layers::new();
    let graph = layers.graph(true);
    let x = flow(&graph);
    let n = (x.len() / HIDDEN) as f64;
    let column = |j: usize| x.iter().skip(j).step_by(HIDDEN).map(|v| f64::from(*v));
    let norm = |j: usize| layers.down[j * OUT..][..OUT].iter().map(|w| f64::from(w * w)).sum::<f64>();
    let of = |f: &dyn Fn(usize) -> f64| -> Vec<f64> { (0..HIDDEN).map(f).collect() };
    let mean = |j: usize| column(j).sum::<f64>() / n;
    let square = |j: usize| column(j).map(|v| v * v).sum::<f64>() / n;
    let data = samples(false);
    let want: [(&str, Vec<f64>); 5] = [
        ("activation", of(&mean)),
        ("frequency", of(&|j| column(j).filter(|v| *v > 0.0).count() as f64 / n)),
        ("wanda", of(&|j| square(j) * norm(j))),
        ("flap", of(&|j| (square(j) - mean(j) * mean(j)) * norm(j))),
        // Every row is one position here.
        ("minitron", of(&|j| column(j).map(|v| v * v).sum::<f64>().sqrt())),
    ];
    for (name, want) in want {
        near(name, &scores(&graph, &format!("criterion = \"{name}\""), &data), &want);
    }
}

/// Gradient of the mean loss of each batch for one weight, by batch.
fn gradients(graph: &Graph, weight: &str, row_by_row: bool) -> Vec<Vec<f64>> {
    use tinsmith::execute::loss::cross_entropy;
    let (executor, v) = (Executor::new(graph).unwrap(), graph.find(weight).unwrap());
    let mut out = Vec::new();
    for batch in samples(true).batches(0) {
        let batch = batch.unwrap();
        let Targets::Classes(labels) = batch.targets else { panic!("labelled") };
        let singles: Vec<Vec<usize>> = match row_by_row {
            true => (0..8).map(|r| vec![r]).collect(),
            false => vec![(0..8).collect()],
        };
        for rows in singles {
            let x = batch.inputs[0].1.selected(0, &rows);
            let labels: Vec<usize> = rows.iter().map(|r| labels[*r]).collect();
            let tape = executor.forward(&[("x".into(), x)], &Overrides::new(), &[v]).unwrap();
            let logits = tape.outputs()[0].float().unwrap().clone();
            let (_, grad) = cross_entropy(&logits, &labels, 0.0).unwrap();
            let grads = tape.backward(vec![(0, grad)]).unwrap();
            let grad = grads[&v].flatten_all().unwrap().to_vec1::<f32>().unwrap();
            out.push(grad.iter().map(|g| f64::from(*g)).collect());
        }
    }
    out
}

#[test]
fn slopes_of_gates_equal_those_of_the_weights_that_read_them() {
    let layers = Layers::new();
    let graph = layers.graph(true);
    let data = samples(true);
    let change = |g: &[f64], j: usize| -> f64 {
        (0..OUT).map(|i| f64::from(layers.down[j * OUT + i]) * g[j * OUT + i]).sum()
    };
    let by_row = gradients(&graph, "down", true);
    let sum = |of: &dyn Fn(f64) -> f64| -> Vec<f64> {
        (0..HIDDEN).map(|j| by_row.iter().map(|g| of(change(g, j))).sum()).collect()
    };
    near("squared", &scores(&graph, "criterion = \"taylor\"", &data), &sum(&|c| c * c));
    let absolute = "criterion = \"taylor\"\npower = \"absolute\"";
    near("absolute", &scores(&graph, absolute, &data), &sum(&f64::abs));
}

#[test]
fn slopes_by_element_follow_their_definitions() {
    let layers = Layers::new();
    let graph = layers.graph(true);
    let data = samples(true);
    let (up, down) = (gradients(&graph, "up", false), gradients(&graph, "down", false));
    let batches = up.len() as f64;
    // Elements of a unit: a column of `up`, a row of `down`, as (w, gradients by batch).
    let elements = |j: usize| -> Vec<(f64, Vec<f64>)> {
        let of = |w: &[f32], g: &[Vec<f64>], i: usize| (f64::from(w[i]), g.iter().map(|g| g[i]).collect());
        (0..IN)
            .map(|i| of(&layers.up, &up, i * HIDDEN + j))
            .chain((0..OUT).map(|i| of(&layers.down, &down, j * OUT + i)))
            .collect()
    };
    let of = |f: &dyn Fn(&[(f64, Vec<f64>)]) -> f64| -> Vec<f64> {
        (0..HIDDEN).map(|j| f(&elements(j))).collect()
    };
    let squares = |w: f64, g: &[f64]| g.iter().map(|g| (g * w).powi(2)).sum::<f64>();
    let obd = of(&|e| e.iter().map(|(w, g)| 0.5 * squares(*w, g) / batches).sum());
    near("obd", &scores(&graph, "criterion = \"obd\"", &data), &obd);
    let pruner = of(&|e| {
        e.iter()
            .map(|(w, g)| ((g.iter().map(|g| g * w).sum::<f64>() - 0.5 * squares(*w, g)) / batches).abs())
            .sum()
    });
    near("llm-pruner", &scores(&graph, "criterion = \"llm-pruner\"", &data), &pruner);
    let group = of(&|e| (0..up.len()).map(|b| e.iter().map(|(w, g)| w * g[b]).sum::<f64>().powi(2)).sum());
    near("group", &scores(&graph, "criterion = \"taylor\"\nform = \"group\"", &data), &group);
    let element = of(&|e| e.iter().map(|(w, g)| g.iter().map(|g| (g * w).abs()).sum::<f64>()).sum());
    let text = "criterion = \"taylor\"\nform = \"element\"\npower = \"absolute\"";
    near("element", &scores(&graph, text, &data), &element);
}

#[test]
fn without_labels_the_curvature_of_the_output_decides() {
    let layers = Layers::new();
    let graph = layers.graph(true);
    // Many draws: the mean over directions of (r . dy)^2 is |dy|^2 over the squared length of y.
    let drawn: Vec<Batch> =
        (0..60).flat_map(|_| samples(false).batches(0).map(Result::unwrap).collect::<Vec<_>>()).collect();
    let got = scores(&graph, "criterion = \"taylor\"\nsamples = 0", &Samples::given(drawn));
    let x = flow(&graph);
    let bias = noise(4, OUT);
    let mut want = vec![0f64; HIDDEN];
    for row in x.chunks(HIDDEN) {
        let y = |i: usize| (0..HIDDEN).map(|j| row[j] * layers.down[j * OUT + i]).sum::<f32>() + bias[i];
        let length: f64 = (0..OUT).map(|i| f64::from(y(i)).powi(2)).sum();
        for (j, want) in want.iter_mut().enumerate() {
            let change: f64 = (0..OUT).map(|i| f64::from(row[j] * layers.down[j * OUT + i]).powi(2)).sum();
            *want += 60.0 * change / length;
        }
    }
    let largest = want.iter().copied().fold(0.0, f64::max);
    for (j, (a, b)) in got.iter().zip(&want).enumerate() {
        assert!((a - b).abs() < 0.15 * b + 0.01 * largest, "{j}: {a} and {b}");
    }
}

/// A net whose hidden units 3 and 7 never matter: nothing reads 3, and 7 is always zero.
fn with_dead_units() -> Graph {
    let mut layers = Layers::new();
    layers.down[3 * OUT..4 * OUT].fill(0.0);
    (0..IN).for_each(|i| layers.up[i * HIDDEN + 7] = 0.0);
    layers.up_bias[7] = -1.0;
    layers.graph(true)
}

#[test]
fn units_that_do_nothing_leave_first_by_every_criterion_that_looks() {
    let graph = with_dead_units();
    for criterion in ["taylor", "wanda", "flap"] {
        for labelled in [true, false] {
            let data = samples(labelled);
            let text = format!("criterion = \"{criterion}\"\nratio = 0.125");
            let ctx = Ctx { calibration: Some(&data), ..Ctx::new(&Silent) };
            let decision =
                decide_with(&graph, &toml::from_str(&format!("round_to = 1\n{text}")).unwrap(), &ctx)
                    .unwrap();
            let group = decision.coupled.groups().iter().find(|g| g.units == HIDDEN).unwrap();
            let gone: Vec<usize> =
                group.numbers().filter(|u| decision.leaves[*u]).map(|u| u - group.first).collect();
            assert_eq!(gone, [3, 7], "{criterion}, labelled {labelled}");
        }
    }
}

fn pruned(graph: &Graph, text: &str, data: &Samples) -> (Graph, BTreeMap<String, String>) {
    let table: toml::Table = toml::from_str(&format!("round_to = 1\nmin_keep = 0.0\n{text}")).unwrap();
    let pass = by_name("prune", &table).unwrap();
    let mut ctx = Ctx { calibration: Some(data), ..Ctx::new(&Silent) };
    let (pruned, report) = pass.run(graph, &mut ctx).unwrap();
    let told =
        report.applied.iter().filter(|a| a.rule == "repair").map(|a| (a.target.clone(), a.detail.clone()));
    (pruned, told.collect())
}

fn error(a: &Graph, b: &Graph, inputs: &[(String, Tensor)]) -> f64 {
    let run = |g: &Graph| Executor::new(g).unwrap().run(inputs).unwrap();
    let (x, y) = (run(a), run(b));
    let shared = y.into_iter().map(|(_, t)| (x[0].0.clone(), t)).collect::<Vec<_>>();
    parity(&x, &shared, 1e-5).unwrap().max_rel
}

#[test]
fn ridge_brings_back_what_other_units_tell() {
    // Units 8 to 15 repeat units 0 to 7, with weights of their own behind them.
    let mut layers = Layers::new();
    for i in 0..IN {
        (0..8).for_each(|j| layers.up[i * HIDDEN + 8 + j] = layers.up[i * HIDDEN + j]);
    }
    (0..8).for_each(|j| layers.up_bias[8 + j] = layers.up_bias[j]);
    // A tenth of what the others give, so that one of a pair is never as cheap as the other.
    for i in 0..8 * OUT {
        layers.down[8 * OUT + i] = 0.1 * layers.down[i];
    }
    for bias in [true, false] {
        let graph = layers.graph(bias);
        let data = samples(false);
        let text = "ratio = 0.2\ncriterion = \"wanda\"";
        let (plain, _) = pruned(&graph, text, &data);
        let (repaired, told) = pruned(&graph, &format!("{text}\nrepair = \"ridge\"\nridge = 1e-5"), &data);
        let fresh = rows(50, 999);
        let (before, after) = (error(&graph, &plain, &fresh), error(&graph, &repaired, &fresh));
        assert!(before > 0.005, "the cut does nothing: {before}");
        assert!(after < 0.01 * before, "bias {bias}: {before} -> {after}");
        assert_eq!(told.len(), 2, "{told:?}");
    }
}

#[test]
fn bias_brings_back_a_constant_and_an_add_is_made_where_there_is_none() {
    let mut layers = Layers::new();
    // Unit 5 is always 0.7.
    (0..IN).for_each(|i| layers.up[i * HIDDEN + 5] = 0.0);
    layers.up_bias[5] = 0.7;
    for bias in [true, false] {
        let graph = layers.graph(bias);
        let text = "ratio = 0.06\ncriterion = \"flap\"";
        let (plain, _) = pruned(&graph, text, &samples(false));
        let fresh = rows(50, 999);
        assert!(error(&graph, &plain, &fresh) > 0.01);
        if bias {
            let (repaired, _) = pruned(&graph, &format!("{text}\nrepair = \"bias\""), &samples(false));
            assert!(error(&graph, &repaired, &fresh) < 1e-5);
        } else {
            // The product is the model's output: there is no place for a bias.
            let table: toml::Table =
                toml::from_str(&format!("round_to = 1\nrepair = \"bias\"\n{text}")).unwrap();
            let data = samples(false);
            let mut ctx = Ctx { calibration: Some(&data), ..Ctx::new(&Silent) };
            let (_, report) = by_name("prune", &table).unwrap().run(&graph, &mut ctx).unwrap();
            assert!(report.skipped.iter().any(|s| s.rule == "repair" && s.reason.contains("no bias")));
        }
    }
}

/// Unit 3 fires at one row in eight alone, with an output that dwarfs all others, and nothing else tells of
/// these rows; unit 5 is always 0.7. What unit 3 gave must not be made up for at the expense of the other
/// rows, what unit 5 gave must.
#[test]
fn rows_of_massive_output_do_not_spoil_the_others() {
    let mut layers = Layers::new();
    layers.up_bias = vec![0.5; HIDDEN];
    layers.up[..HIDDEN].fill(0.0);
    (1..IN).for_each(|i| [3, 5].iter().for_each(|u| layers.up[i * HIDDEN + u] = 0.0));
    layers.up[3] = 0.1;
    (layers.up_bias[3], layers.up_bias[5]) = (-1.0, 0.7);
    (0..OUT).for_each(|o| [3, 5].iter().for_each(|u| layers.down[u * OUT + o] = 0.2));
    let batch = |i: u64| {
        let mut x = noise(10 + i, 8 * IN);
        x[0] = 10_000.0;
        let inputs = vec![("x".to_string(), Tensor::from_vec(vec![8, IN], x).unwrap())];
        Batch { inputs, targets: Targets::None, rows: 8, tokens: 8 }
    };
    let data = Samples::given((0..6).map(batch).collect());
    let graph = layers.graph(true);
    let cut = |repair: &str| {
        let text = format!("ratio = 0.12\ncriterion = \"l1\"\nrepair = \"{repair}\"");
        let (model, told) = pruned(&graph, &text, &data);
        (error(&graph, &model, &rows(50, 999)), told)
    };
    let (without, _) = cut("none");
    for repair in ["bias", "ridge"] {
        let (far, told) = cut(repair);
        assert!(
            told.contains_key("the model") && far < 0.5 * without,
            "{repair}: {without} -> {far}, {told:?}"
        );
    }
}

#[test]
fn a_model_whose_output_has_no_distance_is_repaired_all_the_same() {
    let mut edit = Layers::new().graph(true).edit();
    let z = edit.graph().find("z").unwrap();
    let y = edit.add_op("ArgMax", &[z], Attributes::new().with("axis", tinsmith::ops::Attr::Int(1)), "class");
    edit.remove_output(z);
    edit.add_output(y);
    let graph = edit.commit().unwrap();
    let (_, told) = pruned(&graph, "ratio = 0.2\ncriterion = \"wanda\"\nrepair = \"ridge\"", &samples(false));
    assert!(told.len() == 1 && told.contains_key("y"), "{told:?}");
}

/// conv 3x3 -> relu -> conv 3x3, the second half of the channels repeating the first.
fn convolutions() -> Graph {
    let mut edit = Edit::new("net", &[("", 17)]);
    let shape = vec![Dim::symbol("n"), Dim::from(2i64), Dim::from(7i64), Dim::from(6i64)];
    let x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: Some(shape) });
    let mut first = noise(21, 4 * 2 * 9);
    first.extend(first.clone());
    let mut second = noise(22, 3 * 8 * 9);
    for o in 0..3 {
        (0..36).for_each(|i| second[o * 72 + 36 + i] = 0.5 * second[o * 72 + i]);
    }
    let w1 = edit.add_initializer("w1", Tensor::from_vec(vec![8, 2, 3, 3], first).unwrap());
    let w2 = edit.add_initializer("w2", Tensor::from_vec(vec![3, 8, 3, 3], second).unwrap());
    let pads = || Attributes::new().with("pads", tinsmith::ops::Attr::Ints(vec![1, 1, 1, 1]));
    let h = edit.add_op("Conv", &[x, w1], pads(), "h");
    let h = edit.add_op("Relu", &[h], Attributes::new(), "a");
    let y = edit.add_op("Conv", &[h, w2], pads(), "y");
    edit.add_output(y);
    edit.commit().unwrap()
}

#[test]
fn ridge_repairs_convolutions_over_their_taps() {
    let graph = convolutions();
    let picture =
        |seed| vec![("x".to_string(), Tensor::from_vec(vec![2, 2, 7, 6], noise(seed, 168)).unwrap())];
    let batch = |i: u64| Batch { inputs: picture(30 + i), targets: Targets::None, rows: 2, tokens: 2 };
    let data = Samples::given((0..8).map(batch).collect());
    let text = "ratio = 0.2\ncriterion = \"wanda\"";
    let (plain, _) = pruned(&graph, text, &data);
    let (repaired, told) = pruned(&graph, &format!("{text}\nrepair = \"ridge\"\nridge = 1e-5"), &data);
    let (before, after) = (error(&graph, &plain, &picture(77)), error(&graph, &repaired, &picture(77)));
    assert!(before > 0.01 && after < 0.01 * before, "{before} -> {after}, {told:?}");
}

#[test]
fn what_is_missing_or_damaged_is_named() {
    let graph = Layers::new().graph(true);
    let refused = |text: &str, data: Option<&Samples>| {
        let ctx = Ctx { calibration: data, ..Ctx::new(&Silent) };
        decide_with(&graph, &settings(text), &ctx).unwrap_err()
    };
    let e = refused("criterion = \"taylor\"", None);
    assert!(e.code() == "PRUNE-DATA" && e.kind().exit_code() == 2, "{e}");
    let empty = Samples::given(vec![]);
    assert_eq!(refused("criterion = \"wanda\"", Some(&empty)).code(), "PRUNE-DATA");
    let e = refused("criterion = \"taylor\"\nslope = \"task\"", Some(&samples(false)));
    assert!(e.code() == "PRUNE-LABELS" && e.to_string().contains("slope"), "{e}");
    let mut layers = Layers::new();
    layers.up_bias[0] = f32::NAN;
    let damaged = layers.graph(true);
    for criterion in ["activation", "taylor", "obd"] {
        let data = samples(true);
        let ctx = Ctx { calibration: Some(&data), ..Ctx::new(&Silent) };
        let text = format!("criterion = \"{criterion}\"");
        let e = decide_with(&damaged, &settings(&text), &ctx).unwrap_err();
        assert_eq!(e.kind().exit_code(), 3, "{criterion}: {e}");
    }
    for (text, field) in
        [("ratio = 0.1\nridge = -1.0", "ridge"), ("ratio = 1.0", "ratio"), ("criterion = \"best\"", "best")]
    {
        let table: toml::Table = toml::from_str(text).unwrap();
        let e = by_name("prune", &table).err().unwrap_or_else(|| panic!("{text} is refused"));
        assert!(e.kind().exit_code() == 2 && format!("{e:?}").contains(field), "{e:?}");
    }
}

/// Keeps in memory, and stops after some checks.
#[derive(Default)]
struct Watched {
    kept: std::sync::Mutex<BTreeMap<String, Vec<u8>>>,
    /// Checks that are left before the run is to stop.
    left: std::sync::atomic::AtomicI64,
}

impl tinsmith::passes::Memo for Watched {
    fn recall(&self, what: &str) -> Option<Vec<u8>> {
        self.kept.lock().unwrap().get(what).cloned()
    }
    fn keep(&self, what: &str, result: &[u8]) {
        self.kept.lock().unwrap().insert(what.into(), result.to_vec());
    }
}

impl tinsmith::monitor::Monitor for Watched {
    fn phase(&self, _: &str, _: Option<u64>) {}
    fn progress(&self, _: u64) {}
    fn metric(&self, _: &str, _: u64, _: f64) {}
    fn log(&self, _: tinsmith::monitor::Level, _: &str) {}
    fn stop_requested(&self) -> bool {
        self.left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) <= 0
    }
}

#[test]
fn a_stopped_pass_goes_on_behind_its_last_batch_with_the_same_bits() {
    use std::sync::atomic::Ordering::SeqCst;
    let (graph, data) = (Layers::new().graph(true), samples(true));
    let bits =
        |d: &Decision| -> Vec<u64> { d.scores.iter().flatten().flatten().map(|s| s.to_bits()).collect() };
    for criterion in ["activation", "flap", "taylor", "obd", "llm-pruner"] {
        let text = format!("criterion = \"{criterion}\"\nbatch = 8");
        let whole = decision(&graph, &text, &data);
        let watched = Watched::default();
        let run = |checks: i64| {
            watched.left.store(checks, SeqCst);
            let ctx = Ctx { calibration: Some(&data), memo: Some(&watched), ..Ctx::new(&watched) };
            decide_with(&graph, &settings(&text), &ctx)
        };
        let checks = |left: i64| i64::MAX - left;
        let alone = {
            let fresh = Watched::default();
            fresh.left.store(i64::MAX, SeqCst);
            let ctx = Ctx { calibration: Some(&data), ..Ctx::new(&fresh) };
            decide_with(&graph, &settings(&text), &ctx).unwrap();
            checks(fresh.left.load(SeqCst))
        };
        let stopped = run(alone * 2 / 3).unwrap_err();
        assert_eq!(stopped.code(), "STOPPED", "{criterion}: {stopped}");
        let kept = watched.kept.lock().unwrap().values().next().map(|v| v[0]);
        match criterion {
            "llm-pruner" => assert_eq!(kept, None, "its sums are not kept before the end"),
            _ => assert!(kept.is_some_and(|batches| (1..6).contains(&batches)), "{criterion}: {kept:?}"),
        }
        let resumed = run(i64::MAX).unwrap();
        assert_eq!(bits(&resumed), bits(&whole), "{criterion}");
        let spent = checks(watched.left.load(SeqCst));
        assert!(criterion == "llm-pruner" || spent < alone, "{criterion}: {spent} checks of {alone}");
        // Another ratio asks for the same scores: no batch runs.
        assert_eq!(bits(&run(i64::MAX).unwrap()), bits(&whole), "{criterion}");
        let again = checks(watched.left.load(SeqCst));
        assert!(again < alone / 2, "{criterion}: {again} checks of {alone}");
    }
}
