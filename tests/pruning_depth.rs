//! Depth pruning: residual blocks are found from structure, a graph without some gives what a shorter
//! network gives, caches stay in order, and blocks that do nothing score lowest.

use crate::cache;
use crate::transformer::{Decoder, Encoder, Net, Noise};
use std::path::Path;
use tinsmith::analysis;
use tinsmith::evaluate::parity::parity;
use tinsmith::evaluate::samples::{Batch, Samples};
use tinsmith::execute::Executor;
use tinsmith::formats;
use tinsmith::graph::{Edit, Graph, Node, Type, ValueId};
use tinsmith::monitor::Silent;
use tinsmith::ops::{Attr, Attributes, Dim};
use tinsmith::passes::lower::{Target, lower};
use tinsmith::passes::prune::depth::{
    Block, Kind, Unit, blocks, in_turn, influences, losses, spelled, without,
};
use tinsmith::runtime::{Session, SessionOptions};
use tinsmith::tensor::{DType, Tensor};

type Named = Vec<(String, Tensor)>;

fn found(graph: &Graph, unit: Unit) -> Vec<Block> {
    blocks(graph, &graph.infer(&|_| None).unwrap(), unit)
}

fn run(graph: &Graph, inputs: &Named) -> Named {
    Executor::new(graph).unwrap().run(inputs).unwrap()
}

fn names(graph: &Graph, values: &[ValueId]) -> Vec<String> {
    values.iter().map(|v| graph.value_name(*v).to_string()).collect()
}

/// Small nets of every order of norms, with the number of their layers.
fn decoders() -> Vec<Decoder> {
    let plain = Decoder { layers: 3, ..Decoder::default() };
    vec![
        plain.clone(),
        Decoder { heads: 6, groups: 3, head: 8, rotated: 8, head_norm: true, bias: true, ..plain.clone() },
        Decoder { classic: true, tied: false, rotated: 0, heads: 4, groups: 4, bias: true, ..plain.clone() },
        Decoder { layers: 4, window: Some(3), softcap: 5.0, hidden: 24, ..plain.clone() },
        Decoder { beside: true, groups: 1, ..plain },
    ]
}

fn encoders() -> Vec<Encoder> {
    let plain = Encoder { layers: 3, ..Encoder::default() };
    vec![plain.clone(), Encoder { patches: true, heads: 2, ..plain.clone() }, Encoder { layers: 4, ..plain }]
}

fn decoder_inputs(net: &Decoder) -> Named {
    net.inputs(&[&[1, 5, 9, 3], &[7, 2, 0, 0]], &[&[1, 1, 1, 1], &[1, 1, 0, 0]], &[])
}

fn encoder_inputs(net: &Encoder) -> Named {
    net.inputs(&[&[1, 5, 9], &[7, 2, 0]], &[&[1, 1, 1], &[1, 1, 0]])
}

/// `short` with the weights of `long`, whose layer `gone` it lacks.
fn with_weights_of(short: &Graph, long: &Graph, gone: usize) -> Graph {
    let mut edit = short.edit();
    for (v, _) in short.initializers() {
        let name = short.value_name(v);
        let parts: Vec<&str> = name.splitn(3, '.').collect();
        let name = match parts.as_slice() {
            ["layers", number, rest] => {
                let number: usize = number.parse().unwrap();
                format!("layers.{}.{rest}", number + usize::from(number >= gone))
            }
            _ => name.to_string(),
        };
        edit.set_initializer(v, long.initializer(long.find(&name).unwrap()).unwrap().clone());
    }
    edit.commit().unwrap()
}

fn same_bits(a: &Named, b: &Named) {
    assert_eq!(a.len(), b.len());
    for ((name, a), (other, b)) in a.iter().zip(b) {
        assert_eq!(name, other);
        assert!(a.same_bits(b).unwrap(), "{name} differs");
    }
}

fn set_zero(edit: &mut Edit, graph: &Graph, name: &str) {
    let Some(v) = graph.find(name) else { return };
    let shape = graph.initializer(v).unwrap().shape().to_vec();
    let zeros = vec![0f32; shape.iter().product()];
    edit.set_initializer(v, Tensor::from_vec(shape, zeros).unwrap());
}

/// The graph with branches of layer `k` that add nothing.
fn silenced(graph: &Graph, k: usize, parts: &[&str]) -> Graph {
    let mut edit = graph.edit();
    for part in parts {
        for kind in ["weight", "bias"] {
            set_zero(&mut edit, graph, &format!("layers.{k}.{part}.{kind}"));
        }
    }
    edit.commit().unwrap()
}

#[test]
fn blocks_of_transformers_are_attentions_and_feed_forwards() {
    for net in decoders() {
        let graph = net.graph();
        let all = found(&graph, Unit::Block);
        let kinds: Vec<Kind> = all.iter().map(|b| b.kind).collect();
        assert_eq!(kinds, [Kind::Attention, Kind::FeedForward].repeat(net.layers), "{net:?}");
        let layers = found(&graph, Unit::Layer);
        assert!(layers.len() == net.layers && layers.iter().all(|b| b.kind == Kind::Layer));
        for (k, (layer, parts)) in layers.iter().zip(all.chunks(2)).enumerate() {
            assert_eq!((layer.entry, layer.exit), (parts[0].entry, parts[1].exit));
            // A norm that both read leaves with both.
            let shared = if net.beside { net.hidden as u64 } else { 0 };
            assert_eq!(layer.parameters, parts[0].parameters + parts[1].parameters + shared);
            // All of a layer's nodes and nothing else.
            let own =
                (0..graph.nodes().len()).filter(|i| graph.label(*i).starts_with(&format!("layers.{k}.")));
            assert_eq!(layer.nodes, own.collect::<Vec<_>>());
            assert!(layer.labels.contains(&format!("layers.{k}.attention")));
            let weights = graph.initializers().filter(|(v, t)| {
                graph.value_name(*v).starts_with(&format!("layers.{k}.")) && t.dtype() == DType::F32
            });
            assert_eq!(layer.parameters, weights.map(|(_, t)| t.len() as u64).sum::<u64>());
        }
    }
    for net in encoders() {
        let graph = net.graph();
        let kinds: Vec<Kind> = found(&graph, Unit::Block).iter().map(|b| b.kind).collect();
        assert_eq!(kinds, [Kind::Attention, Kind::FeedForward].repeat(net.layers), "{net:?}");
        assert_eq!(found(&graph, Unit::Layer).len(), net.layers);
    }
}

/// Whichever comes first, and added to each other first or one after the other.
#[test]
fn branches_that_lie_side_by_side_are_blocks() {
    let base = Decoder { layers: 3, beside: true, groups: 1, ..Decoder::default() }.graph();
    let layer = |graph: &Graph, k: usize| {
        let find = |name: &str| graph.find(&format!("layers.{k}.{name}")).unwrap();
        let of = |name: &str| (0..graph.nodes().len()).find(|i| graph.label(*i).ends_with(name)).unwrap();
        let sums = [of(&format!("{k}.attention_residual")), of(&format!("{k}.mlp_residual"))];
        let node = |i: usize| graph.node(i).inputs.iter().flatten().copied().collect::<Vec<_>>();
        let (first, second) = (node(sums[0]), node(sums[1]));
        (sums, first[0], first[1], second[1], find("attention_residual"))
    };
    for joint in [false, true] {
        let mut edit = base.edit();
        for k in 0..3 {
            let (sums, x, a, f, inner) = layer(&base, k);
            // `x + f` and then `+ a`; or `a + f` and then `+ x`.
            let inputs = if joint { [(a, f), (inner, x)] } else { [(x, f), (inner, a)] };
            for (i, (p, q)) in sums.into_iter().zip(inputs) {
                edit.node_mut(i).inputs = vec![Some(p), Some(q)];
            }
        }
        let graph = edit.commit().unwrap();
        let all = found(&graph, Unit::Block);
        let per_layer = if joint { 1 } else { 2 };
        assert_eq!(all.len(), 3 * per_layer, "{joint}: {:?}", all.iter().map(|b| b.kind).collect::<Vec<_>>());
        let layers = found(&graph, Unit::Layer);
        assert_eq!(layers.len(), 3, "{joint}");
        let net = Decoder { layers: 2, beside: true, groups: 1, ..Decoder::default() };
        let cut = without(&graph, &layers, &[1]).unwrap();
        assert_eq!(cut.initializers().count(), net.graph().initializers().count(), "{joint}");
        // The sum is the same in whatever order.
        let short = with_weights_of(&net.graph(), &base, 1);
        let (inputs, wanted) = (decoder_inputs(&net), run(&short, &decoder_inputs(&net)));
        let p = parity(&wanted, &run(&cut, &inputs), 1e-5).unwrap();
        assert!(p.max_rel <= 1e-5 && p.not_finite == 0, "{joint}: {p:?}");
    }
}

#[test]
fn multiply_accumulates_of_a_block_are_those_that_leave() {
    let net = Decoder { layers: 2, ..Decoder::default() };
    let graph = net.graph();
    let size = |s: &str| {
        Some(match s {
            "batch" => 2,
            "seq" | "total" => 6,
            _ => 0,
        })
    };
    let all = blocks(&graph, &graph.infer(&size).unwrap(), Unit::Block);
    let count = |graph: &Graph| {
        let facts = graph.infer(&size).unwrap();
        let macs = (0..graph.nodes().len()).filter_map(|i| {
            let op = graph.node(i).op.as_ref()?;
            op.macs(&facts.inputs(graph, i), &facts.outputs(graph, i)?)?.known()
        });
        macs.sum::<i64>() as u64
    };
    for (k, block) in all.iter().enumerate() {
        let shorter = without(&graph, &all, &[k]).unwrap();
        assert_eq!(block.macs.unwrap(), count(&graph) - count(&shorter), "block {k}");
        assert!(block.macs.unwrap() > 1000);
    }
}

#[test]
fn a_network_without_a_layer_is_the_shorter_network() {
    for net in decoders() {
        let graph = net.graph();
        let layers = found(&graph, Unit::Layer);
        let short = Decoder { layers: net.layers - 1, ..net.clone() };
        for gone in 0..net.layers {
            let cut = without(&graph, &layers, &[gone]).unwrap();
            let built = short.graph();
            assert_eq!(names(&cut, cut.inputs()), names(&built, built.inputs()));
            assert_eq!(names(&cut, cut.outputs()), names(&built, built.outputs()));
            assert_eq!(cut.nodes().len(), built.nodes().len());
            assert_eq!(cut.initializers().count(), built.initializers().count());
            // Windows go by the number of the layer, which is another one in the built network.
            if net.window.is_none() {
                let inputs = decoder_inputs(&short);
                same_bits(&run(&cut, &inputs), &run(&with_weights_of(&built, &graph, gone), &inputs));
            }
        }
    }
    for net in encoders() {
        let graph = net.graph();
        let layers = found(&graph, Unit::Layer);
        for gone in 0..net.layers {
            let cut = without(&graph, &layers, &[gone]).unwrap();
            let built = Encoder { layers: net.layers - 1, ..net.clone() }.graph();
            assert_eq!(cut.nodes().len(), built.nodes().len());
            let inputs = encoder_inputs(&net);
            same_bits(&run(&cut, &inputs), &run(&with_weights_of(&built, &graph, gone), &inputs));
        }
    }
}

#[test]
fn a_branch_that_adds_nothing_can_leave_without_effect() {
    let parts =
        [(Unit::Block, 0, vec!["o"]), (Unit::Block, 1, vec!["down"]), (Unit::Layer, 0, vec!["o", "down"])];
    for net in decoders() {
        for k in 0..net.layers {
            for (unit, at, zeroed) in &parts {
                let graph = silenced(&net.graph(), k, zeroed);
                let all = found(&graph, *unit);
                let per_layer = if *unit == Unit::Layer { 1 } else { 2 };
                let cut = without(&graph, &all, &[per_layer * k + at]).unwrap();
                let caches = if zeroed.contains(&"o") { net.layers - 1 } else { net.layers };
                let short = Decoder { layers: caches, ..net.clone() };
                let whole = run(&graph, &decoder_inputs(&net));
                let p = parity(&whole[..1], &run(&cut, &decoder_inputs(&short))[..1], 1e-6).unwrap();
                assert!(p.max_rel <= 1e-6 && p.not_finite == 0, "{p:?}: {k} {zeroed:?} of {net:?}");
            }
        }
    }
}

#[test]
fn several_blocks_leave_at_once() {
    let net = Decoder { layers: 4, ..Decoder::default() };
    let graph = net.graph();
    let layers = found(&graph, Unit::Layer);
    let both = without(&graph, &layers, &[1, 2]).unwrap();
    let one = without(&graph, &layers, &[2]).unwrap();
    let again = without(&one, &found(&one, Unit::Layer), &[1]).unwrap();
    let inputs = decoder_inputs(&Decoder { layers: 2, ..net.clone() });
    same_bits(&run(&both, &inputs), &run(&again, &inputs));
    // Chosen in any order, and more than once.
    let other = without(&graph, &layers, &[2, 1, 2]).unwrap();
    same_bits(&run(&both, &inputs), &run(&other, &inputs));

    let blocks = found(&graph, Unit::Block);
    let all: Vec<usize> = (0..blocks.len()).collect();
    let empty = without(&graph, &blocks, &all).unwrap();
    assert_eq!(names(&empty, empty.inputs()), ["input_ids", "attention_mask"]);
    assert_eq!(names(&empty, empty.outputs()), ["logits"]);
    // Learned positions are counted from the length of a cache.
    let learned = decoders()[2].graph();
    let attentions: Vec<usize> = (0..6).step_by(2).collect();
    let e = without(&learned, &found(&learned, Unit::Block), &attentions).map(|_| ()).unwrap_err();
    assert_eq!((e.code(), e.kind().exit_code()), ("PRUNE-DEPTH-CACHE", 4), "{e}");
    let e = without(&graph, &blocks, &[8]).map(|_| ()).unwrap_err();
    assert_eq!((e.code(), e.kind().exit_code()), ("PRUNE-DEPTH-BLOCK", 2), "{e}");
}

/// Logits of tokens read one after the other, each behind the cache of those before.
fn one_by_one(graph: &Graph, net: &Decoder, ids: &[i64]) -> Vec<f32> {
    let executor = Executor::new(graph).unwrap();
    let (mut past, mut all) = (vec![], vec![]);
    for (i, id) in ids.iter().enumerate() {
        let out = executor.run(&net.inputs(&[&[*id]], &[&vec![1; i + 1]], &past)).unwrap();
        all.extend(out[0].1.to_f32s().unwrap());
        past = out.into_iter().skip(1).map(|(_, t)| t).collect();
    }
    all
}

#[test]
fn decoding_behind_a_cache_equals_reading_at_once_without_any_layer() {
    let ids = [4i64, 9, 2, 30, 7, 11];
    for net in decoders() {
        let graph = net.graph();
        for (unit, count) in [(Unit::Layer, net.layers), (Unit::Block, 2 * net.layers)] {
            let all = found(&graph, unit);
            for k in 0..count {
                let cut = without(&graph, &all, &[k]).unwrap();
                let caches = cut.inputs().len() / 2 - 1;
                assert_eq!(caches, net.layers - usize::from(unit == Unit::Layer || k % 2 == 0));
                let short = Decoder { layers: caches, ..net.clone() };
                let whole = run(&cut, &short.inputs(&[&ids], &[&[1; 6]], &[]));
                let steps = one_by_one(&cut, &short, &ids);
                let whole = whole[0].1.to_f32s().unwrap();
                let apart = steps.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(apart < 1e-4, "{apart:e} without {k} of {net:?}");
            }
        }
    }
}

#[test]
fn what_is_left_runs_on_the_runtime() {
    let net = Decoder { layers: 3, ..Decoder::default() };
    let graph = net.graph();
    let cut = without(&graph, &found(&graph, Unit::Layer), &[0]).unwrap();
    let inputs = decoder_inputs(&Decoder { layers: 2, ..net.clone() });
    let wanted = run(&cut, &inputs);
    for target in [Target::Ort, Target::Standard] {
        let lowered = lower(&cut, target).unwrap().0;
        agrees_on_runtime(&lowered, &inputs, &wanted);
        // What was lowered before has the same blocks.
        let before = lower(&graph, target).unwrap().0;
        let layers = found(&before, Unit::Layer);
        assert_eq!(layers.len(), 3, "{target:?}");
        let after = without(&before, &layers, &[0]).unwrap();
        agrees_on_runtime(&after, &inputs, &wanted);
    }
    for net in encoders() {
        let graph = net.graph();
        let cut = without(&graph, &found(&graph, Unit::Block), &[1]).unwrap();
        let inputs = encoder_inputs(&net);
        agrees_on_runtime(&lower(&cut, Target::Ort).unwrap().0, &inputs, &run(&cut, &inputs));
    }
}

/// As runtimes fuse it: every sum with the norm that reads it.
fn fused(graph: &Graph) -> Graph {
    let uses = graph.uses();
    let mut edit = graph.edit();
    let mut count = 0;
    for (i, node) in graph.nodes().iter().enumerate().filter(|(_, n)| n.is("Add")) {
        let sum = node.outputs[0].unwrap();
        let norm = uses.consumers(sum).iter().find(|(r, slot)| {
            *slot == 0
                && ["SimplifiedLayerNormalization", "LayerNormalization"]
                    .contains(&graph.node(*r).op_type.as_str())
        });
        let Some((norm, _)) = norm else { continue };
        let old = graph.node(*norm);
        let inputs = node.inputs.iter().chain(&old.inputs[1..]).copied().collect();
        let others = uses.consumers(sum).len() > 1;
        let outputs = vec![old.outputs[0], None, None, others.then_some(sum)];
        let epsilon = old.attributes.get("epsilon").unwrap().clone();
        let fused = Node::new(&format!("Skip{}", old.op_type), inputs, outputs)
            .in_domain("com.microsoft")
            .with(Attributes::new().with("epsilon", epsilon));
        edit.remove_node(i);
        edit.remove_node(*norm);
        edit.add_node(fused);
        count += 1;
    }
    assert!(count > 2);
    edit.set_opset("com.microsoft", 1);
    edit.commit().unwrap()
}

#[test]
fn sums_fused_with_norms_are_taken_apart() {
    for net in decoders() {
        let graph = lower(&net.graph(), Target::Ort).unwrap().0;
        let fused = fused(&graph);
        let inputs = decoder_inputs(&net);
        let wanted = run(&graph, &inputs);
        agrees_on_runtime(&fused, &inputs, &wanted);
        assert!(found(&fused, Unit::Block).len() < 2 * net.layers);
        let apart = spelled(&fused).unwrap();
        let all = found(&apart, Unit::Block);
        assert_eq!(all.len(), 2 * net.layers, "{net:?}");
        let of_plain = found(&graph, Unit::Block);
        for k in 0..all.len() {
            let a = without(&apart, &all, &[k]).unwrap();
            let b = without(&graph, &of_plain, &[k]).unwrap();
            let caches = net.layers - usize::from(k % 2 == 0);
            let inputs = decoder_inputs(&Decoder { layers: caches, ..net.clone() });
            let p = parity(&run(&a, &inputs), &run(&b, &inputs), 1e-6).unwrap();
            assert!(p.max_rel <= 1e-6 && p.not_finite == 0, "{p:?} without {k} of {net:?}");
        }
    }
    // A norm behind every branch needs nothing of the kind.
    let net = &encoders()[0];
    let graph = lower(&net.graph(), Target::Ort).unwrap().0;
    let fused = fused(&graph);
    assert_eq!(spelled(&fused).unwrap().nodes().len(), fused.nodes().len());
    assert_eq!(found(&fused, Unit::Block).len(), 2 * net.layers);
    let (a, b) = (without(&fused, &found(&fused, Unit::Layer), &[1]), found(&graph, Unit::Layer));
    let inputs = encoder_inputs(net);
    let p = parity(&run(&a.unwrap(), &inputs), &run(&without(&graph, &b, &[1]).unwrap(), &inputs), 1e-6);
    assert!(p.as_ref().is_ok_and(|p| p.max_rel <= 1e-6), "{p:?}");
}

fn agrees_on_runtime(graph: &Graph, inputs: &Named, wanted: &Named) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.onnx");
    formats::save(graph, &path).unwrap();
    let mut session = Session::load(&cache::runtime(), &path, &SessionOptions::default()).unwrap();
    let found = session.run(inputs).unwrap();
    assert_eq!(found.len(), wanted.len());
    // Rows of padding, the last two of the second, are nobody's business.
    let (a, b) = (found[0].1.to_f32s().unwrap(), wanted[0].1.to_f32s().unwrap());
    let half = a.len() / 2;
    let apart = a[..half].iter().zip(&b[..half]).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    assert!(apart < 1e-4, "{apart:e}");
}

fn feed(batches: Vec<Named>) -> Samples {
    let batch = |inputs| Batch { inputs, ..Batch::default() };
    Samples::given(batches.into_iter().map(batch).collect())
}

#[test]
fn a_block_that_does_nothing_scores_zero_and_leaves_first() {
    for (k, net) in decoders().into_iter().enumerate() {
        let idle = k % net.layers;
        let graph = silenced(&net.graph(), idle, &["o", "down"]);
        let inputs = decoder_inputs(&net);
        for unit in [Unit::Layer, Unit::Block] {
            let all = found(&graph, unit);
            let scores = influences(&graph, &all, &feed(vec![inputs.clone()]), &Silent).unwrap();
            for (b, score) in scores.iter().enumerate() {
                let layer = if unit == Unit::Layer { b } else { b / 2 };
                assert_eq!(*score < 1e-9, layer == idle, "block {b} of {net:?}: {scores:?}");
                assert!(*score <= 2.0);
            }
            let wanted = run(&graph, &inputs)[0].1.to_f64s().unwrap();
            let mut calls = 0;
            let mut loss = |g: &Graph| {
                calls += 1;
                let caches = g.inputs().len() / 2 - 1;
                let found = run(g, &decoder_inputs(&Decoder { layers: caches, ..net.clone() }));
                let found = found[0].1.to_f64s().unwrap();
                Ok(found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max))
            };
            let single = losses(&graph, &all, &mut loss, &Silent).unwrap();
            assert_eq!(single.len(), all.len());
            let steps = in_turn(&graph, &all, 2, &mut loss, &Silent).unwrap();
            assert_eq!(calls, all.len() + all.len() + all.len() - 1);
            let first = if unit == Unit::Layer { idle } else { 2 * idle };
            assert_eq!((steps.len(), steps[0].block), (2, first), "{single:?} {steps:?}");
            assert!(steps[0].loss < 1e-5 && steps[0].loss == single[first]);
            // The other branch of the layer is as idle, a layer beside it is not.
            assert_eq!(steps[1].block == first + 1 && steps[1].loss < 1e-5, unit == Unit::Block);
        }
    }
}

/// One residual layer without norm: influence by hand, padding left out.
#[test]
fn influence_is_the_mean_angle_of_real_tokens() {
    let mut net = Net::new(17);
    let dims = [Dim::symbol("batch"), Dim::symbol("seq"), Dim::from(4i64)];
    let float = Type::Tensor { dtype: DType::F32, shape: Some(dims.to_vec()) };
    let x = net.edit.add_input("x", float);
    let mask = Type::Tensor { dtype: DType::I64, shape: Some(dims[..2].to_vec()) };
    net.edit.add_input("attention_mask", mask);
    let w = Noise(3).tensor(&[4, 4], 1.0);
    let weight = net.edit.add_initializer("w", w.clone());
    let y = net.edit.add_op("MatMul", &[x, weight], Attributes::new(), "y");
    let z = net.edit.add_op("Add", &[y, x], Attributes::new(), "z");
    net.edit.add_output(z);
    let graph = net.edit.commit().unwrap();
    let all = found(&graph, Unit::Layer);
    assert_eq!((all.len(), all[0].kind, all[0].parameters), (1, Kind::FeedForward, 16));
    let batch = |seed: u64, mask: &[i64]| -> Named {
        let x = Noise(seed).tensor(&[2, 3, 4], 1.0);
        let mask = Tensor::from_vec(vec![2, 3], mask.to_vec()).unwrap();
        vec![("x".into(), x), ("attention_mask".into(), mask)]
    };
    let batches = vec![batch(1, &[1, 1, 0, 1, 0, 0]), batch(2, &[1, 1, 1, 1, 1, 0])];
    let (mut sum, mut tokens) = (0.0, 0);
    for b in &batches {
        let (x, m) = (b[0].1.to_f64s().unwrap(), b[1].1.to_i64s().unwrap());
        let y = run(&graph, b)[0].1.to_f64s().unwrap();
        for t in (0..6).filter(|t| m[*t] == 1) {
            let dot = |a: &[f64], b: &[f64]| (0..4).map(|i| a[4 * t + i] * b[4 * t + i]).sum::<f64>();
            sum += dot(&x, &y) / (dot(&x, &x) * dot(&y, &y)).sqrt();
            tokens += 1;
        }
    }
    assert_eq!(tokens, 8);
    let score = influences(&graph, &all, &feed(batches), &Silent).unwrap()[0];
    assert!((score - (1.0 - sum / 8.0)).abs() < 1e-12, "{score} and {}", 1.0 - sum / 8.0);
    assert!(score > 0.05);
    let e = influences(&graph, &all, &feed(vec![]), &Silent).unwrap_err();
    assert_eq!(e.code(), "PRUNE-DEPTH-DATA");
    let nan = Tensor::from_vec(vec![1, 1, 4], vec![f32::NAN; 4]).unwrap();
    let mask = Tensor::from_vec(vec![1, 1], vec![1i64]).unwrap();
    let bad: Named = vec![("x".into(), nan), ("attention_mask".into(), mask)];
    assert_eq!(influences(&graph, &all, &feed(vec![bad]), &Silent).unwrap_err().code(), "PRUNE-DEPTH-NAN");
    // The output keeps its name where it becomes what comes in.
    let cut = without(&graph, &all, &[0]).unwrap();
    assert_eq!(names(&cut, cut.outputs()), ["z"]);
    assert_eq!(names(&cut, cut.inputs()), ["x", "attention_mask"]);
    let given = batch(5, &[1; 6]);
    assert!(run(&cut, &given)[0].1.same_bits(&given[0].1).unwrap());
}

/// A stem, two residual branches (the second with a gate), a long shortcut, a head.
fn residual_images(idle: bool) -> Graph {
    let mut edit = Edit::new("images", &[("", 17)]);
    let mut noise = Noise(9);
    let shape = vec![Dim::symbol("n"), Dim::from(3i64), Dim::from(6i64), Dim::from(6i64)];
    let x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: Some(shape) });
    let mut conv = |edit: &mut Edit, name: &str, x: ValueId, from: usize, to: usize, zero: bool| {
        let w = noise.tensor(&[to, from, 3, 3], if zero { 0.0 } else { 0.3 });
        let w = edit.add_initializer(&format!("{name}.w"), w);
        let pads = Attributes::new().with("pads", Attr::Ints(vec![1; 4]));
        edit.add_op("Conv", &[x, w], pads, name)
    };
    let plain = Attributes::new;
    let stem = conv(&mut edit, "stem", x, 3, 8, false);
    let stem = edit.add_op("Relu", &[stem], plain(), "stem.relu");
    let a = conv(&mut edit, "a", stem, 8, 6, false);
    let a = edit.add_op("Relu", &[a], plain(), "a.relu");
    let a = conv(&mut edit, "b", a, 6, 8, idle);
    let first = edit.add_op("Add", &[a, stem], plain(), "first");
    let first = edit.add_op("Relu", &[first], plain(), "first.relu");
    let c = conv(&mut edit, "c", first, 8, 8, false);
    let gate = edit.add_op("GlobalAveragePool", &[c], plain(), "gate.pool");
    let gate = edit.add_op("Sigmoid", &[gate], plain(), "gate");
    let c = edit.add_op("Mul", &[c, gate], plain(), "gated");
    let second = edit.add_op("Add", &[first, c], plain(), "second");
    let long = edit.add_op("Add", &[second, stem], plain(), "long");
    let y = conv(&mut edit, "y", long, 8, 4, false);
    edit.add_output(y);
    edit.commit().unwrap()
}

#[test]
fn convolutions_are_blocks_along_channels() {
    let graph = residual_images(true);
    let all = found(&graph, Unit::Layer);
    let told: Vec<(Kind, &str, &str)> =
        all.iter().map(|b| (b.kind, graph.value_name(b.entry), graph.value_name(b.exit))).collect();
    // The long shortcut holds the other two, and is none.
    let kind = Kind::Convolution;
    assert_eq!(told, [(kind, "stem.relu", "first"), (kind, "first.relu", "second")]);
    let input: Named = vec![("x".into(), Noise(4).tensor(&[2, 3, 6, 6], 1.0))];
    let scores = influences(&graph, &all, &feed(vec![input.clone()]), &Silent).unwrap();
    assert!(scores[0] < 1e-12 && scores[1] > 1e-3, "{scores:?}");
    // By hand: a vector is what the channels hold at one pixel.
    let mut edit = graph.edit();
    all[1..].iter().for_each(|b| [b.entry, b.exit].into_iter().for_each(|v| edit.add_output(v)));
    let seen = run(&edit.commit().unwrap(), &input);
    let (x, y) = (seen[1].1.to_f64s().unwrap(), seen[2].1.to_f64s().unwrap());
    let at = |n: usize, c: usize, p: usize| (n * 8 + c) * 36 + p;
    let cosine = |k: usize| {
        let (n, p) = (k / 36, k % 36);
        let dot = |a: &[f64], b: &[f64]| (0..8).map(|c| a[at(n, c, p)] * b[at(n, c, p)]).sum::<f64>();
        dot(&x, &y) / (dot(&x, &x) * dot(&y, &y)).sqrt()
    };
    let mean = (0..72).map(cosine).sum::<f64>() / 72.0;
    assert!((scores[1] - (1.0 - mean)).abs() < 1e-12, "{scores:?} and {mean}");
    let cut = without(&graph, &all, &[0]).unwrap();
    assert!(cut.find("a.w").is_none_or(|v| cut.initializer(v).is_none()));
    let p = parity(&run(&graph, &input), &run(&cut, &input), 1e-6).unwrap();
    assert!(p.max_rel <= 1e-6 && p.not_finite == 0, "{p:?}");
    let none = without(&graph, &all, &[0, 1]).unwrap();
    assert_eq!(none.nodes().len(), 5, "{:?}", none.nodes().iter().map(|n| &n.name).collect::<Vec<_>>());
}

#[test]
fn what_is_needed_elsewhere_is_no_block() {
    // An inner value that is an output, or read behind the sum.
    for output in [true, false] {
        let graph = residual_images(false);
        let mut edit = graph.edit();
        let inner = graph.find("a.relu").unwrap();
        if output {
            edit.add_output(inner);
        } else {
            let y = edit.add_op("Sigmoid", &[inner], Attributes::new(), "other");
            edit.add_output(y);
        }
        let open = edit.commit().unwrap();
        let exits: Vec<&str> = found(&open, Unit::Block).iter().map(|b| open.value_name(b.exit)).collect();
        assert_eq!(exits, ["second"]);
    }
    // A function of a value that is added to it has no weights to save.
    let mut edit = Edit::new("plain", &[("", 17)]);
    let shape = vec![Dim::symbol("n"), Dim::from(4i64)];
    let x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: Some(shape) });
    let y = edit.add_op("Tanh", &[x], Attributes::new(), "y");
    let z = edit.add_op("Add", &[x, y], Attributes::new(), "z");
    edit.add_output(z);
    assert!(found(&edit.commit().unwrap(), Unit::Block).is_empty());
}

#[test]
fn the_digits_sample_loses_a_block_and_runs_on_the_runtime() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/digits-resnet.onnx");
    let graph = formats::load(&path).unwrap().graph;
    let all = found(&graph, Unit::Layer);
    println!("{:?}", all.iter().map(|b| (b.kind, b.parameters, b.macs, &b.labels)).collect::<Vec<_>>());
    assert!(!all.is_empty());
    let Some(Type::Tensor { shape: Some(dims), .. }) = &graph.value(graph.inputs()[0]).ty else {
        panic!("no type")
    };
    let dims: Vec<usize> = dims.iter().map(|d| d.size().unwrap_or(2)).collect();
    let input: Named = vec![(graph.value_name(graph.inputs()[0]).to_string(), Noise(3).tensor(&dims, 1.0))];
    for (k, block) in all.iter().enumerate() {
        assert_eq!(block.kind, Kind::Convolution);
        let cut = without(&graph, &all, &[k]).unwrap();
        let of = |g: &Graph| analysis::summarize(g, &analysis::Options::default()).unwrap();
        assert_eq!(of(&graph).parameters - of(&cut).parameters, block.parameters);
        agrees_on_runtime(&cut, &input, &run(&cut, &input));
    }
}
