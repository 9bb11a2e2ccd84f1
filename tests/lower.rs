//! Graphs prepared for runtimes give what they gave: on the executor and in ONNX Runtime, first prompts
//! and tokens behind a cache, rows of different length.

use crate::architectures::Fixture;
use crate::cache;
use crate::transformer::{Decoder, Encoder};
use std::collections::BTreeMap;
use tinsmith::execute::Executor;
use tinsmith::formats;
use tinsmith::graph::Graph;
use tinsmith::monitor::Silent;
use tinsmith::passes::lower::{Target, lower};
use tinsmith::passes::{Ctx, PassReport, by_name};
use tinsmith::runtime::{Session, SessionOptions};
use tinsmith::tensor::Tensor;

type Named = Vec<(String, Tensor)>;

/// Everything that runs a graph.
trait Runs {
    fn run(&mut self, inputs: &Named) -> Named;
}
impl Runs for Executor {
    fn run(&mut self, inputs: &Named) -> Named {
        Executor::run(self, inputs).unwrap()
    }
}
impl Runs for Session {
    fn run(&mut self, inputs: &Named) -> Named {
        Session::run(self, inputs).unwrap()
    }
}

pub(crate) fn session(graph: &Graph) -> Session {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lowered.onnx");
    formats::save(graph, &path).unwrap();
    Session::load(&cache::runtime(), &path, &SessionOptions::default()).unwrap()
}

/// Largest difference at the rows of the last axis that `real` names.
fn far(a: &Tensor, b: &Tensor, real: impl Fn(usize) -> bool) -> f32 {
    assert_eq!(a.shape(), b.shape());
    let width = *a.shape().last().unwrap();
    let (a, b) = (a.to_f32s().unwrap(), b.to_f32s().unwrap());
    assert!(a.iter().all(|x| x.is_finite()));
    let spread = a.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(spread > 0.05, "outputs spread over {spread}");
    (0..a.len()).filter(|i| real(i / width)).map(|i| (a[i] - b[i]).abs()).fold(0.0, f32::max)
}

/// Logits of a padded first prompt of two rows, then of a token behind each, then of two more tokens
/// behind the first row; and the logits of the first row without the other, token by token.
fn story(net: &Decoder, model: &mut dyn Runs) -> Vec<(Tensor, Vec<usize>)> {
    let cache = |out: Named| -> Vec<Tensor> { out.into_iter().skip(1).map(|(_, t)| t).collect() };
    let mut told = vec![];
    let out =
        model.run(&net.inputs(&[&[4, 9, 2, 30, 7], &[8, 1, 3, 0, 0]], &[&[1; 5], &[1, 1, 1, 0, 0]], &[]));
    told.push((out[0].1.clone(), vec![8, 9]));
    // A window reaches over the places of a row, padding between them counted; GroupQueryAttention
    // closes such gaps.
    let gap = if net.window.is_some() { vec![1] } else { vec![] };
    let past = cache(out);
    let out = model.run(&net.inputs(&[&[11], &[12]], &[&[1; 6], &[1, 1, 1, 0, 0, 1]], &past));
    told.push((out[0].1.clone(), gap.clone()));
    let past = cache(out);
    let out = model.run(&net.inputs(&[&[13], &[14]], &[&[1; 7], &[1, 1, 1, 0, 0, 1, 1]], &past));
    told.push((out[0].1.clone(), gap));
    let mut past = vec![];
    for (i, id) in [4i64, 9, 2, 30, 7, 11].iter().enumerate() {
        let out = model.run(&net.inputs(&[&[*id]], &[&vec![1; i + 1]], &past));
        told.push((out[0].1.clone(), vec![]));
        past = cache(out);
    }
    // Several tokens at once behind a cache, of one row.
    let out = model.run(&net.inputs(&[&[21, 22, 23]], &[&[1; 9]], &past));
    told.push((out[0].1.clone(), vec![]));
    // The cache of a row that is whole is laid out the same everywhere.
    told.extend(cache(out).into_iter().map(|t| (t, vec![])));
    told
}

fn operators(graph: &Graph) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    graph.nodes().iter().for_each(|n| *all.entry(n.operator_name()).or_insert(0) += 1);
    all
}

pub(crate) fn lowered(graph: &Graph, target: Target) -> (Graph, PassReport) {
    let (lowered, report) = lower(graph, target).unwrap();
    let names = |g: &Graph, v: &[tinsmith::graph::ValueId]| -> Vec<String> {
        v.iter().map(|v| g.value_name(*v).to_string()).collect()
    };
    assert_eq!(names(graph, graph.inputs()), names(&lowered, lowered.inputs()));
    assert_eq!(names(graph, graph.outputs()), names(&lowered, lowered.outputs()));
    assert_eq!(lowered.unknown_operators(), []);
    assert!(lowered.opset("").unwrap() <= if target == Target::Ort { 20 } else { 17 });
    assert!(lowered.header().ir_version <= 9);
    if target == Target::Standard {
        assert!(lowered.nodes().iter().all(|n| n.domain.is_empty()), "{:?}", operators(&lowered));
    }
    (lowered, report)
}

/// Both targets tell the story of the canonical graph, on the executor and in ONNX Runtime.
fn same_story(net: &Decoder) -> [Graph; 2] {
    let graph = net.graph();
    let wanted = story(net, &mut Executor::new(&graph).unwrap());
    // Token by token gives what the whole prompt gives.
    let rows = wanted[0].0.to_f32s().unwrap();
    let alone: Vec<f32> = wanted[3..8].iter().flat_map(|(t, _)| t.to_f32s().unwrap()).collect();
    let apart = alone.iter().zip(&rows).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart < 1e-4, "with and without cache: {apart:e}");
    [Target::Ort, Target::Standard].map(|target| {
        let (lowered, _) = lowered(&graph, target);
        let runs: [(&str, Box<dyn Runs>); 2] = [
            ("executor", Box::new(Executor::new(&lowered).unwrap())),
            ("ONNX Runtime", Box::new(session(&lowered))),
        ];
        for (name, mut model) in runs {
            for (i, ((a, padding), (b, _))) in wanted.iter().zip(story(net, &mut *model)).enumerate() {
                let d = far(a, &b, |row| !padding.contains(&row));
                assert!(d < 1e-4, "{target:?} on {name}, run {i}: {d:e} of {net:?}");
            }
        }
        lowered
    })
}

#[test]
fn a_llama_like_decoder_is_lowered_to_both_targets() {
    let [ort, standard] = same_story(&Decoder::default());
    let found = operators(&ort);
    assert_eq!(found["com.microsoft:GroupQueryAttention"], 2);
    assert_eq!(found["SimplifiedLayerNormalization"], 5);
    for gone in
        ["Attention", "RotaryEmbedding", "com.microsoft:RotaryEmbedding", "Transpose", "CumSum", "And"]
    {
        assert!(!found.contains_key(gone), "{gone} stays: {found:?}");
    }
    let found = operators(&standard);
    assert!(!found.contains_key("Attention") && !found.contains_key("RMSNormalization"));
    // Tables are looked up once for all layers.
    assert_eq!(found["Gather"], 3, "{found:?}");
    let gqa = ort.nodes().iter().find(|n| n.op_type == "GroupQueryAttention").unwrap();
    assert_eq!(gqa.attributes.int("do_rotary", 0).unwrap(), 1);
}

#[test]
fn other_decoders_are_lowered_to_both_targets() {
    let base = Decoder::default();
    let grouped = |g: &Graph| operators(g).get("com.microsoft:GroupQueryAttention").copied().unwrap_or(0);
    let turned = |g: &Graph| operators(g).get("com.microsoft:RotaryEmbedding").copied().unwrap_or(0);
    // Norms of heads, biases, all heads alone, an untied and capped head.
    let net = Decoder { head_norm: true, bias: true, tied: false, final_cap: 3.0, ..base.clone() };
    let [ort, _] = same_story(&net);
    assert_eq!((grouped(&ort), turned(&ort)), (2, 0));
    let net = Decoder { groups: 4, window: Some(3), softcap: 2.0, scale: Some(0.11), ..base.clone() };
    let [ort, _] = same_story(&net);
    assert_eq!((grouped(&ort), turned(&ort)), (2, 0));
    let windows: Vec<i64> = ort
        .nodes()
        .iter()
        .filter(|n| n.op_type == "GroupQueryAttention")
        .map(|n| n.attributes.int("local_window_size", -1).unwrap())
        .collect();
    assert_eq!(windows, [-1, 3]);
    // Part of a head rotates: in multiples of 16 inside the attention, others before it.
    let [ort, _] = same_story(&Decoder { head: 32, ..base.clone() });
    assert_eq!((grouped(&ort), turned(&ort)), (2, 0));
    let [ort, _] = same_story(&Decoder { rotated: 8, ..base.clone() });
    assert_eq!((grouped(&ort), turned(&ort)), (2, 4));
    let [ort, _] =
        same_story(&Decoder { head: 8, rotated: 8, interleaved: true, head_norm: true, ..base.clone() });
    assert_eq!((grouped(&ort), turned(&ort)), (2, 4));
    let [ort, _] = same_story(&Decoder { interleaved: true, ..base.clone() });
    assert_eq!((grouped(&ort), turned(&ort)), (2, 0));
    // Heads of a size that GroupQueryAttention refuses.
    let [ort, _] = same_story(&Decoder { head: 6, rotated: 4, ..base.clone() });
    assert_eq!((grouped(&ort), turned(&ort)), (0, 4));
    // GPT-2's kind.
    let [ort, _] = same_story(&Decoder { classic: true, bias: true, rotated: 0, groups: 4, ..base });
    assert_eq!((grouped(&ort), turned(&ort)), (2, 0));
}

/// Left padding is not what GroupQueryAttention knows, but plain operators take it.
#[test]
fn the_standard_target_takes_padding_anywhere() {
    let net = Decoder::default();
    let graph = net.graph();
    let inputs = net.inputs(&[&[4, 9, 2, 30], &[0, 0, 8, 1]], &[&[1; 4], &[0, 0, 1, 1]], &[]);
    let wanted = Executor::new(&graph).unwrap().run(&inputs).unwrap().remove(0).1;
    let (lowered, _) = lowered(&graph, Target::Standard);
    let found = Session::run(&mut session(&lowered), &inputs).unwrap().remove(0).1;
    let d = far(&wanted, &found, |row| row != 4 && row != 5);
    assert!(d < 1e-4, "{d:e}");
}

#[test]
fn encoders_are_lowered_to_both_targets() {
    for patches in [false, true] {
        let net = Encoder { patches, ..Encoder::default() };
        let graph = net.graph();
        let inputs = net.inputs(&[&[4, 9, 2, 30], &[8, 1, 0, 0]], &[&[1; 4], &[1, 1, 0, 0]]);
        let wanted = Executor::new(&graph).unwrap().run(&inputs).unwrap().remove(0).1;
        for target in [Target::Ort, Target::Standard] {
            let (lowered, _) = lowered(&graph, target);
            let on_executor = Executor::new(&lowered).unwrap().run(&inputs).unwrap().remove(0).1;
            let on_runtime = Session::run(&mut session(&lowered), &inputs).unwrap().remove(0).1;
            for found in [on_executor, on_runtime] {
                let d = far(&wanted, &found, |_| true);
                assert!(d < 1e-4, "{target:?}, patches {patches}: {d:e}");
            }
            let found = operators(&lowered);
            assert!(!found.contains_key("Attention"));
            if target == Target::Ort {
                assert_eq!(found["com.microsoft:MultiHeadAttention"], 2);
                assert!(!found.contains_key("Transpose"));
            } else {
                assert!(!found.contains_key("Gelu"));
            }
        }
    }
}

#[test]
fn masks_that_say_something_else_are_spelled_out() {
    let net = Decoder::default();
    let graph = net.graph();
    // A mask of the same name that also lets queries look ahead.
    let mut edit = graph.edit();
    let at = graph.nodes().iter().position(|n| n.name == "mask.ordered").unwrap();
    edit.node_mut(at).op_type = "NotUsed".into();
    let compare = graph.nodes()[at].clone();
    edit.remove_node(at);
    let one = edit.add_initializer("one", Tensor::from_vec(vec![1], vec![1i64]).unwrap());
    let ahead = edit.add_op("Add", &[compare.inputs[1].unwrap(), one], Default::default(), "ahead");
    let mut wider = tinsmith::graph::Node::new(
        "LessOrEqual",
        vec![compare.inputs[0], Some(ahead)],
        compare.outputs.clone(),
    );
    wider.name = "mask.wider".into();
    edit.add_node(wider);
    let changed = edit.commit().unwrap();
    let (lowered, report) = lowered(&changed, Target::Ort);
    assert!(!operators(&lowered).contains_key("com.microsoft:GroupQueryAttention"));
    assert!(report.skipped.iter().any(|s| s.reason.contains("mask")), "{:?}", report.skipped);
    let inputs = net.inputs(&[&[4, 9, 2, 30]], &[&[1; 4]], &[]);
    let wanted = Executor::new(&changed).unwrap().run(&inputs).unwrap().remove(0).1;
    let found = Session::run(&mut session(&lowered), &inputs).unwrap().remove(0).1;
    assert!(far(&wanted, &found, |_| true) < 1e-4);
}

#[test]
fn residual_sums_are_joined_where_asked() {
    for (graph, inputs, op) in [
        (
            Decoder::default().graph(),
            Decoder::default().inputs(&[&[4, 9, 2]], &[&[1; 3]], &[]),
            "com.microsoft:SkipSimplifiedLayerNormalization",
        ),
        (
            Encoder::default().graph(),
            Encoder::default().inputs(&[&[4, 9, 2]], &[&[1; 3]]),
            "com.microsoft:SkipLayerNormalization",
        ),
    ] {
        let settings: toml::Table = toml::from_str("target = 'ort'\njoin_residuals = true").unwrap();
        let mut ctx = Ctx::new(&Silent);
        let (lowered, _) = by_name("lower", &settings).unwrap().run(&graph, &mut ctx).unwrap();
        assert_eq!(operators(&lowered)[op], 4);
        let wanted = Executor::new(&graph).unwrap().run(&inputs).unwrap().remove(0).1;
        let on_executor = Executor::new(&lowered).unwrap().run(&inputs).unwrap().remove(0).1;
        let on_runtime = Session::run(&mut session(&lowered), &inputs).unwrap().remove(0).1;
        assert!(far(&wanted, &on_executor, |_| true) < 1e-4 && far(&wanted, &on_runtime, |_| true) < 1e-4);
        // Back to plain operators.
        let (plain, _) = match lower(&lowered, Target::Standard) {
            Ok(plain) => plain,
            Err(e) => {
                assert_eq!((e.code(), e.kind()), ("LOWER-DOMAIN", tinsmith::error::Kind::Unsupported));
                continue;
            }
        };
        assert!(plain.nodes().iter().all(|n| n.domain.is_empty()));
    }
}

#[test]
fn a_graph_that_is_fine_stays_as_it_is() {
    let path = cache::fetched("ppocr").file("cls_infer.onnx").unwrap();
    let graph = formats::load(&path).unwrap().graph;
    for target in [Target::Ort, Target::Standard] {
        let (lowered, report) = lower(&graph, target).unwrap();
        assert!(report.applied.is_empty() && report.skipped.is_empty(), "{report:?}");
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("copy.onnx");
        formats::save(&lowered, &copy).unwrap();
        assert!(std::fs::read(&path).unwrap() == std::fs::read(&copy).unwrap());
    }
}

#[test]
fn settings_are_checked() {
    let bad: toml::Table = toml::from_str("target = 'tpu'").unwrap();
    assert_eq!(by_name("lower", &bad).err().unwrap().kind(), tinsmith::error::Kind::Usage);
}

/// Every architecture that checkpoints are built from, against its own graph.
#[test]
fn every_architecture_is_lowered_to_both_targets() {
    for name in Fixture::names() {
        let fixture = Fixture::load(&name);
        let graph = fixture.graph();
        let inputs = fixture.inputs(&graph);
        let wanted = Executor::new(&graph).unwrap().run(&inputs).unwrap();
        let mask = inputs.iter().find(|(n, _)| n == "attention_mask").map(|(_, t)| t.to_i64s().unwrap());
        for target in [Target::Ort, Target::Standard] {
            let (lowered, report) = lowered(&graph, target);
            let found = operators(&lowered);
            let attentions = operators(&graph)["Attention"];
            if target == Target::Ort {
                let own = ["GroupQueryAttention", "MultiHeadAttention"];
                let count: usize =
                    own.iter().filter_map(|op| found.get(&format!("com.microsoft:{op}"))).sum();
                let odd = report.skipped.iter().filter(|s| s.reason.contains("no multiple of 8")).count();
                assert_eq!(count + odd, attentions, "{name}: {:?}", report.skipped);
            }
            let on_executor = Executor::new(&lowered).unwrap().run(&inputs).unwrap();
            let on_runtime = Session::run(&mut session(&lowered), &inputs).unwrap();
            for found in [on_executor, on_runtime] {
                let d = far(&wanted[0].1, &found[0].1, |row| {
                    let rows = wanted[0].1.shape().iter().rev().skip(1).product::<usize>();
                    mask.as_ref().is_none_or(|m| m.len() != rows || m[row] != 0)
                });
                assert!(d < 1e-4, "{name} for {target:?}: {d:e}");
            }
        }
    }
}
