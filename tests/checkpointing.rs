//! Gradient checkpointing: the same bits from less memory, each gradient once, and an end when asked.

use crate::architectures::{Fixture, uniform};
use crate::sample::net;
use crate::transformer::{Decoder, Encoder};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tinsmith::data::DataSet;
use tinsmith::error::{Error, Result};
use tinsmith::evaluate::samples::Samples;
use tinsmith::execute::loss::cross_entropy;
use tinsmith::execute::optimizer::AdamW;
use tinsmith::execute::train::Trainer;
use tinsmith::execute::{Checkpointing, Executor, Overrides, Planner, Segments};
use tinsmith::formats::{self, Tokenizer};
use tinsmith::graph::{Edit, Graph, Node, Type, ValueId};
use tinsmith::monitor::{Level, Monitor, Silent};
use tinsmith::ops::{Attr, Attributes, Dim};
use tinsmith::passes::{Ctx, PassReport, by_name};
use tinsmith::tensor::{DType, Tensor, Value};
use tinsmith::units::Bytes;

type Inputs = Vec<(String, Tensor)>;

/// Float constants, and the middle one of the floats that are computed.
fn wanted(graph: &Graph) -> Vec<ValueId> {
    let floats = |t: &Tensor| t.dtype() == DType::F32 && t.len() > 1;
    let mut wanted: Vec<ValueId> = graph.initializers().filter(|(_, t)| floats(t)).map(|(v, _)| v).collect();
    let adds: Vec<ValueId> =
        graph.nodes().iter().filter(|n| n.is("Add")).filter_map(|n| n.outputs[0]).collect();
    wanted.extend(adds.get(adds.len() / 2));
    wanted
}

/// What a reverse pass gave: value, bits of its gradient and of its forward value, in order.
type Seen = Vec<(ValueId, Vec<u32>, Vec<u32>)>;

/// A pass in these segments: outputs, gradients, most bytes kept, nodes evaluated again.
struct Pass {
    outputs: Vec<Vec<u32>>,
    seen: Seen,
    peak: u64,
    again: Vec<String>,
}

fn bits(value: &Value) -> Vec<u32> {
    value.to_tensor().unwrap().to_f32s().unwrap().iter().map(|x| x.to_bits()).collect()
}

fn seeds(outputs: &[Value]) -> Vec<(usize, candle_core::Tensor)> {
    let float = outputs[0].float().unwrap();
    let numbers = uniform("seed", float.elem_count());
    vec![(0, candle_core::Tensor::from_vec(numbers, float.dims(), float.device()).unwrap())]
}

/// Another number in place of the constant that no gradient is wanted for.
fn overrides(graph: &Graph) -> Overrides {
    let other = || Value::load(&Tensor::from_vec(vec![1], vec![-0.7f32]).unwrap()).unwrap();
    graph.find("scale").map(|v| (v, other())).into_iter().collect()
}

fn pass(executor: &Executor, inputs: &Inputs, segments: &Arc<Segments>) -> Pass {
    let overrides = overrides(executor.graph());
    let tape = executor.forward_in(segments, inputs, &overrides, &mut |_| Ok(())).unwrap();
    let outputs = tape.outputs().iter().filter(|v| v.float().is_ok()).map(bits).collect();
    let seeds = seeds(tape.outputs());
    let (mut seen, mut again, mut peak) = (vec![], vec![], tape.kept_bytes());
    tape.backward_watched(
        seeds,
        &mut |g| {
            seen.push((g.value, bits(&Value::Float(g.grad)), bits(g.forward)));
            Ok(())
        },
        &mut |step| {
            if step.again {
                again.push(step.node.op_type.clone());
            } else {
                peak = peak.max(step.kept_bytes());
            }
            Ok(())
        },
    )
    .unwrap();
    Pass { outputs, seen, peak, again }
}

/// The same bits in any number of segments; the most bytes that are kept in `few` of them are below `part`
/// of those of a whole tape, and are what was foretold.
fn same_from_less(name: &str, graph: &Graph, inputs: &Inputs, few: usize, part: f64) {
    let (executor, wanted) = (Executor::new(graph).unwrap(), wanted(graph));
    let sizes = executor.sizes(inputs, &Overrides::new(), &mut |_, _| Ok(())).unwrap();
    let whole = Segments::whole(graph, &wanted);
    let plain = pass(&executor, inputs, &Arc::new(Segments::whole(graph, &wanted)));
    assert!(plain.again.is_empty());
    // A number for each float whose shape alone is read.
    let shapes = 4 * graph.value_count() as u64;
    let foretold = whole.kept_bytes(graph, &sizes);
    assert!((foretold..=foretold + shapes).contains(&plain.peak), "{name}: {} of {foretold}", plain.peak);
    assert!(plain.seen.len() > 4 && plain.seen.iter().any(|(_, grad, _)| grad.iter().any(|b| *b != 0)));
    for count in [2, 3, few, 1000] {
        let segments = Arc::new(Segments::cut(graph, &wanted, &sizes, count));
        assert!(segments.len() > 1, "{name}: {count}");
        let found = pass(&executor, inputs, &segments);
        assert!(found.outputs == plain.outputs, "{name}: outputs in {count} segments");
        let order = |p: &Pass| p.seen.iter().map(|(v, ..)| *v).collect::<Vec<_>>();
        assert_eq!(order(&found), order(&plain), "{name}: {count} segments");
        assert!(found.seen == plain.seen, "{name}: gradients in {count} segments");
        assert!(!found.again.is_empty() && found.again.len() < graph.nodes().len());
        let (foretold, peak) = (segments.kept_bytes(graph, &sizes), found.peak);
        println!("{name}: {count} segments keep {peak} of {} bytes, foretold {foretold}", plain.peak);
        assert!(peak <= foretold + shapes, "{name}: {peak} bytes, foretold {foretold}");
        if count == few {
            assert!((peak as f64) < part * plain.peak as f64, "{name}: {peak} of {}", plain.peak);
        }
    }
}

fn tokens(rows: usize, length: usize) -> (Vec<Vec<i64>>, Vec<Vec<i64>>) {
    let ids = |r: usize| (0..length).map(|t| ((r * 7 + t * 3) % 50) as i64).collect();
    ((0..rows).map(ids).collect(), vec![vec![1; length]; rows])
}

fn slices(rows: &[Vec<i64>]) -> Vec<&[i64]> {
    rows.iter().map(Vec::as_slice).collect()
}

#[test]
fn a_decoder_has_the_same_gradients_from_less_memory() {
    let decoder = Decoder { layers: 8, ..Decoder::default() };
    let (ids, mask) = tokens(4, 16);
    same_from_less("decoder", &decoder.graph(), &decoder.inputs(&slices(&ids), &slices(&mask), &[]), 4, 0.5);
    let llama = Fixture::load("llama");
    let graph = llama.graph();
    same_from_less("llama", &graph, &llama.inputs(&graph), 2, 1.0);
}

#[test]
fn an_encoder_has_the_same_gradients_from_less_memory() {
    let encoder = Encoder { layers: 8, ..Encoder::default() };
    let (ids, mask) = tokens(4, 16);
    same_from_less("encoder", &encoder.graph(), &encoder.inputs(&slices(&ids), &slices(&mask)), 4, 0.5);
    let bert = Fixture::load("bert-classifier");
    let graph = bert.graph();
    same_from_less("bert", &graph, &bert.inputs(&graph), 2, 1.0);
}

#[test]
fn convolutions_have_the_same_gradients_from_less_memory() {
    let graph = formats::load(Path::new("assets/digits-resnet.onnx")).unwrap().graph;
    let data = DataSet::open("digits:train#0..6").unwrap();
    same_from_less("convolutions", &graph, &vec![("image".into(), data.input().clone())], 3, 0.7);
}

/// Rows of a product, gated by what an If makes of values in front of it and in its own segment.
fn branching() -> Graph {
    let ty = |shape: &[usize]| Type::Tensor {
        dtype: DType::F32,
        shape: Some(shape.iter().map(|n| Dim::from(*n)).collect()),
    };
    let mut edit = Edit::new("g", &[("", 17)]);
    let x = edit.add_input("x", ty(&[6, 8]));
    let condition = edit.add_input("c", Type::Tensor { dtype: DType::Bool, shape: Some(vec![]) });
    let early = edit.add_op("Abs", &[x], Attributes::new(), "early");
    let scale = edit.add_initializer("scale", Tensor::from_vec(vec![1], vec![0.3f32]).unwrap());
    let mut y = x;
    for i in 0..6 {
        let w = uniform(&format!("w{i}"), 64).iter().map(|u| 0.5 * u).collect();
        let w = edit.add_initializer(&format!("w{i}"), Tensor::from_vec(vec![8, 8], w).unwrap());
        let late = edit.add_op("Mul", &[x, scale], Attributes::new(), &format!("late{i}"));
        let body = |name: &str, op: &str| {
            let mut body = Edit::new(name, &[("", 17)]);
            let reads = [early, late].map(|v| body.add_value(edit.graph().value_name(v), None));
            let out = body.add_op(op, &reads, Attributes::new(), &format!("{name}.out"));
            body.add_output(out);
            body.commit_body().unwrap()
        };
        let bodies =
            vec![("then_branch".into(), body("then", "Add")), ("else_branch".into(), body("else", "Sub"))];
        let gate = edit.add_value(&format!("gate{i}"), None);
        let mut node = Node::new("If", vec![Some(condition)], vec![Some(gate)]).named(format!("if{i}"));
        node.bodies = bodies;
        node.attributes =
            Attributes::new().with("then_branch", Attr::Body(0)).with("else_branch", Attr::Body(1));
        edit.add_node(node);
        let product = edit.add_op("MatMul", &[y, w], Attributes::new(), &format!("product{i}"));
        let gated = edit.add_op("Mul", &[product, gate], Attributes::new(), &format!("gated{i}"));
        y = edit.add_op("Add", &[gated, y], Attributes::new(), &format!("y{i}"));
    }
    edit.add_output(y);
    edit.commit().unwrap()
}

#[test]
fn branches_that_read_from_outside_give_the_same_again() {
    let graph = branching();
    for condition in [true, false] {
        let x = Tensor::from_vec(vec![6, 8], uniform("x", 48)).unwrap();
        let condition = Tensor::from_bools(vec![], vec![condition]).unwrap();
        let inputs = vec![("x".into(), x), ("c".into(), condition)];
        same_from_less("branches", &graph, &inputs, 3, 0.9);
        let (executor, wanted) = (Executor::new(&graph).unwrap(), wanted(&graph));
        let sizes = executor.sizes(&inputs, &Overrides::new(), &mut |_, _| Ok(())).unwrap();
        let found = pass(&executor, &inputs, &Arc::new(Segments::cut(&graph, &wanted, &sizes, 3)));
        assert!(found.again.iter().any(|op| op == "If"), "{:?}", found.again);
    }
}

#[test]
fn sink_and_watch_end_the_walk_where_they_are() {
    let decoder = Decoder { layers: 4, ..Decoder::default() };
    let (graph, (ids, mask)) = (decoder.graph(), tokens(2, 8));
    let inputs = decoder.inputs(&slices(&ids), &slices(&mask), &[]);
    let (executor, wanted) = (Executor::new(&graph).unwrap(), wanted(&graph));
    let sizes = executor.sizes(&inputs, &Overrides::new(), &mut |_, _| Ok(())).unwrap();
    let segments = Arc::new(Segments::cut(&graph, &wanted, &sizes, 4));
    let whole = pass(&executor, &inputs, &segments);
    let stop = || Error::stopped("STOPPED", "stopped");
    for at in [0, whole.seen.len() / 2] {
        let tape = executor.forward_in(&segments, &inputs, &Overrides::new(), &mut |_| Ok(())).unwrap();
        let (seeds, mut taken, mut behind) = (seeds(tape.outputs()), 0, 0);
        let stopped = std::cell::Cell::new(false);
        let e = tape.backward_watched(
            seeds,
            &mut |_| {
                taken += 1;
                stopped.set(taken > at);
                if stopped.get() { Err(stop()) } else { Ok(()) }
            },
            &mut |_| {
                behind += usize::from(stopped.get());
                Ok(())
            },
        );
        assert_eq!((e.unwrap_err().code(), taken, behind), ("STOPPED", at + 1, 0));
    }
    for at in [1, whole.again.len() / 2] {
        let tape = executor.forward_in(&segments, &inputs, &Overrides::new(), &mut |_| Ok(())).unwrap();
        let (seeds, mut again) = (seeds(tape.outputs()), 0);
        let e = tape.backward_watched(seeds, &mut |_| Ok(()), &mut |step| {
            again += usize::from(step.again);
            if again == at { Err(stop()) } else { Ok(()) }
        });
        assert_eq!((e.unwrap_err().code(), again), ("STOPPED", at));
    }
}

#[test]
fn training_takes_the_same_steps() {
    let (graph, parameters) = net::build(3).unwrap();
    let data = DataSet::open("digits:train#0..12").unwrap();
    let inputs = vec![("image".to_string(), data.input().clone())];
    let train = |checkpointing, budget| {
        let mut trainer = Trainer::new(&graph, &parameters, AdamW::new(0.01)).unwrap();
        trainer.planner = Planner::new(checkpointing, budget);
        let mut loss = |outputs: &[Value]| {
            let (loss, seed) = cross_entropy(outputs[0].float()?, data.labels(), 0.1)?;
            Ok((loss, vec![(0, seed)]))
        };
        let losses: Vec<u64> =
            (0..3).map(|_| trainer.step(&inputs, 1e-2, &mut loss).unwrap().to_bits()).collect();
        let constants: Vec<Vec<u32>> = trainer
            .graph(&graph)
            .unwrap()
            .initializers()
            .filter(|(_, t)| t.dtype() == DType::F32)
            .map(|(_, t)| t.to_f32s().unwrap().iter().map(|x| x.to_bits()).collect())
            .collect();
        (losses, constants, trainer.planner.count(), trainer.profile().again.is_zero())
    };
    let plain = train(Checkpointing::Off, None);
    assert!(plain.2 == 1 && plain.3 && plain.0[2] != plain.0[0]);
    for (checkpointing, budget, count) in [
        (Checkpointing::Segments(4), None, 4),
        (Checkpointing::Auto, None, 1),
        (Checkpointing::Auto, Some(1 << 30), 1),
        (Checkpointing::Off, Some(1), 1),
    ] {
        let found = train(checkpointing, budget);
        assert!(found.0 == plain.0 && found.1 == plain.1, "{checkpointing:?}: other steps");
        assert_eq!((found.2, found.3), (count, count == 1), "{checkpointing:?}, {budget:?}");
    }
    let tight = train(Checkpointing::Auto, Some(1));
    assert!(tight.2 > 2 && tight.0 == plain.0 && tight.1 == plain.1, "{} segments", tight.2);
}

#[test]
fn as_few_segments_as_fit_are_chosen() {
    let decoder = Decoder { layers: 8, ..Decoder::default() };
    let (graph, (ids, mask)) = (decoder.graph(), tokens(4, 16));
    let inputs = decoder.inputs(&slices(&ids), &slices(&mask), &[]);
    let (executor, wanted, none) = (Executor::new(&graph).unwrap(), wanted(&graph), Overrides::new());
    let sizes = executor.sizes(&inputs, &none, &mut |_, _| Ok(())).unwrap();
    let kept = |s: &Segments| s.kept_bytes(&graph, &sizes);
    let whole = kept(&Segments::whole(&graph, &wanted));
    let chosen = |budget| {
        let mut planner = Planner::new(Checkpointing::Auto, Some(budget));
        planner.segments(&executor, &inputs, &none, &wanted, &|| Ok(())).unwrap()
    };
    assert_eq!(chosen(whole).len(), 1);
    let two = kept(&Segments::cut(&graph, &wanted, &sizes, 2));
    assert!(two < whole && chosen(two).len() == 2);
    let tight = chosen(whole / 2);
    assert!(kept(&tight) <= whole / 2 && tight.len() > 2, "{} segments", tight.len());
    // Where nothing fits, the least.
    assert!(kept(&chosen(0)) <= kept(&tight));
    // Larger inputs are looked at anew, smaller ones are not.
    let mut planner = Planner::new(Checkpointing::Auto, Some(whole));
    let mut looks = |rows: usize| {
        let (ids, mask) = tokens(rows, 16);
        let inputs = decoder.inputs(&slices(&ids), &slices(&mask), &[]);
        planner.segments(&executor, &inputs, &none, &wanted, &|| Ok(())).unwrap().len()
    };
    assert_eq!(looks(4), 1);
    assert!(looks(16) > 1);
    assert!(looks(4) > 1);
}

/// Stops at the n-th check, and states a memory cap.
struct Watched {
    left: AtomicUsize,
    checks: AtomicUsize,
    cap: Option<Bytes>,
}

impl Watched {
    fn new(left: usize, cap: Option<u64>) -> Watched {
        Watched { left: left.into(), checks: 0.into(), cap: cap.map(Bytes) }
    }
}

impl Monitor for Watched {
    fn phase(&self, _: &str, _: Option<u64>) {}
    fn progress(&self, _: u64) {}
    fn metric(&self, _: &str, _: u64, _: f64) {}
    fn log(&self, _: Level, _: &str) {}
    fn stop_requested(&self) -> bool {
        self.checks.fetch_add(1, Ordering::Relaxed) >= self.left.load(Ordering::Relaxed)
    }
    fn memory_cap(&self) -> Option<Bytes> {
        self.cap
    }
}

fn prune(settings: &str, monitor: &dyn Monitor) -> Result<(Graph, PassReport)> {
    let graph = formats::load(Path::new("assets/digits-resnet.onnx")).unwrap().graph;
    let none = || -> Result<Tokenizer> { unreachable!("numbers need no tokenizer") };
    let data = Samples::open("digits:train#0..32", &graph, &none, None).unwrap();
    let table: toml::Table = toml::from_str(&format!("ratio = 0.4\nbatch = 8\n{settings}")).unwrap();
    let mut ctx = Ctx { train: Some(&data), calibration: Some(&data), seed: 3, ..Ctx::new(monitor) };
    by_name("prune", &table)?.run(&graph, &mut ctx)
}

fn weights(graph: &Graph) -> Vec<Vec<u32>> {
    let floats = graph.initializers().filter(|(_, t)| t.dtype() == DType::F32);
    floats.map(|(_, t)| t.to_f32s().unwrap().iter().map(|x| x.to_bits()).collect()).collect()
}

#[test]
fn slopes_and_training_of_a_pass_have_the_same_bits() {
    let settings = |criterion: &str, how: &str| {
        format!(
            "criterion = \"{criterion}\"\ncheckpointing = {how}\n[recover]\nbatch = 8\nsteps = 3\nrate = 1e-3\n"
        )
    };
    for criterion in ["taylor", "llm-pruner"] {
        let (plain, report) = prune(&settings(criterion, "\"off\""), &Silent).unwrap();
        assert_eq!(report.facts["recover_segments"], 1.0);
        let tight = Watched::new(usize::MAX, Some(1 << 20));
        for (how, monitor) in [("3", &Silent as &dyn Monitor), ("\"auto\"", &tight)] {
            let (found, report) = prune(&settings(criterion, how), monitor).unwrap();
            assert!(report.facts["recover_segments"] > 1.0, "{criterion}, {how}: {:?}", report.facts);
            assert!(weights(&found) == weights(&plain), "{criterion}, {how}: other weights");
        }
        let (found, report) = prune(&settings(criterion, "\"auto\""), &Silent).unwrap();
        assert!(report.facts["recover_segments"] == 1.0 && weights(&found) == weights(&plain));
    }
}

#[test]
fn a_pass_that_computes_again_stops_at_every_value() {
    let settings = "criterion = \"taylor\"\ncheckpointing = 3";
    let all = Watched::new(usize::MAX, None);
    prune(settings, &all).unwrap();
    let plain = Watched::new(usize::MAX, None);
    prune("criterion = \"taylor\"\ncheckpointing = \"off\"", &plain).unwrap();
    let checks = |w: &Watched| w.checks.load(Ordering::Relaxed);
    // A check at each value of the run that the cuts are chosen by, and at each that is computed again, in
    // four batches.
    let nodes = formats::load(Path::new("assets/digits-resnet.onnx")).unwrap().graph.nodes().len();
    assert!(checks(&all) > checks(&plain) + 2 * nodes, "{} and {}", checks(&all), checks(&plain));
    for left in [checks(&all) / 3, checks(&all) / 2, checks(&all) - 40] {
        let monitor = Watched::new(left, None);
        let e = prune(settings, &monitor).unwrap_err();
        assert_eq!((e.kind().exit_code(), checks(&monitor)), (75, left + 1), "{e}");
    }
}

#[test]
fn settings_say_what_they_are() {
    for (how, wanted) in
        [("1", "2 are the fewest"), ("\"always\"", "\"auto\", \"off\" or a number"), ("1.5", "")]
    {
        let table = toml::from_str(&format!("ratio = 0.4\ncheckpointing = {how}")).unwrap();
        let e = by_name("prune", &table).err().unwrap();
        assert!(e.kind().exit_code() == 2 && e.to_string().contains(wanted), "{how}: {e}");
        assert!(e.to_string().contains("checkpointing") || how == "1.5", "{e}");
    }
}
