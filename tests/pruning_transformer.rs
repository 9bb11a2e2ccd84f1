//! Structured pruning of transformers: whole key heads with their query heads, neurons of gated layers,
//! and the hidden width are the groups; a sliced model gives what the masked one gives.

use crate::cache;
use crate::sample::doubled;
use crate::transformer::{Decoder, Encoder, Noise};
use std::collections::BTreeMap;
use tinsmith::evaluate::parity::parity;
use tinsmith::evaluate::samples::{Batch, Samples};
use tinsmith::execute::Executor;
use tinsmith::formats;
use tinsmith::graph::Graph;
use tinsmith::graph::coupling::{Costs, Coupled, Group, Kind, Options};
use tinsmith::monitor::Silent;
use tinsmith::passes::lower::{Target, lower};
use tinsmith::passes::prune::depth;
use tinsmith::passes::prune::{Settings, decide, mask, slice};
use tinsmith::tensor::{DType, Tensor};

fn coupled(graph: &Graph) -> Coupled {
    Coupled::of(graph, &graph.infer(&|_| None).unwrap(), &Options::default())
}

fn group<'a>(graph: &Graph, coupled: &'a Coupled, weight: &str, axis: usize) -> &'a Group {
    let v = graph.find(weight).unwrap();
    coupled
        .groups()
        .iter()
        .find(|g| g.weights().any(|p| p.value == v && p.axis == axis))
        .unwrap_or_else(|| panic!("no group on {weight}"))
}

fn weights(graph: &Graph, group: &Group) -> Vec<(String, usize, usize)> {
    let mut all: Vec<_> = group
        .weights()
        .map(|p| (graph.value_name(p.value).to_string(), p.axis, p.per_unit))
        .filter(|(name, _, _)| !name.contains("shape"))
        .collect();
    all.sort();
    all
}

#[test]
fn groups_of_a_decoder_are_head_groups_neurons_and_the_hidden_width() {
    for head_norm in [false, true] {
        let net = Decoder { head_norm, ..Decoder::default() };
        let graph = net.graph();
        let coupled = coupled(&graph);
        let heads = group(&graph, &coupled, "layers.0.k.weight", 1);
        assert!(heads.prunable(), "{:?}", heads.pinned_by);
        assert_eq!((heads.units, heads.kind), (net.groups, Kind::Heads));
        let named = |s: &str| s.to_string();
        assert_eq!(
            weights(&graph, heads),
            [
                (named("layers.0.k.weight"), 1, 16),
                (named("layers.0.o.weight"), 0, 32),
                (named("layers.0.q.weight"), 1, 32),
                (named("layers.0.v.weight"), 1, 16),
            ]
        );
        // The cache shrinks with its heads.
        for name in ["past_key_values.0.key", "present.0.value"] {
            let v = graph.find(name).unwrap();
            assert!(heads.places.iter().any(|p| p.value == v && p.axis == 1), "{name}");
        }
        let neurons = group(&graph, &coupled, "layers.1.gate.weight", 1);
        assert!(neurons.prunable() && neurons.units == net.inner && neurons.kind == Kind::Neurons);
        assert_eq!(
            weights(&graph, neurons),
            [
                (named("layers.1.down.weight"), 0, 1),
                (named("layers.1.gate.weight"), 1, 1),
                (named("layers.1.up.weight"), 1, 1),
            ]
        );
        let hidden = group(&graph, &coupled, "embedding.weight", 1);
        assert!(hidden.prunable() && hidden.units == net.hidden && hidden.kind == Kind::Width);
        let all = weights(&graph, hidden);
        for name in ["embedding.weight", "norm.weight", "layers.1.o.weight", "layers.0.q.weight"] {
            assert!(all.iter().any(|(n, _, _)| n == name), "{name} is not in {all:?}");
        }
        assert!(!hidden.statistics.is_empty(), "a norm takes a statistic over it");
        // The vocabulary is what the model is asked about.
        assert!(!group(&graph, &coupled, "embedding.weight", 0).prunable());
    }
}

/// Kinds of all groups, and how many there are of each.
fn kinds(graph: &Graph) -> BTreeMap<Kind, usize> {
    coupled(graph).groups().iter().fold(BTreeMap::new(), |mut all, g| {
        *all.entry(g.kind).or_default() += 1;
        all
    })
}

#[test]
fn kinds_of_groups_follow_from_structure() {
    let decoder = Decoder { classic: true, tied: false, ..Decoder::default() };
    // Neurons of both layers, and the words that an untied head tells apart.
    assert_eq!(kinds(&decoder.graph()), [(Kind::Heads, 2), (Kind::Neurons, 3), (Kind::Width, 1)].into());
    for patches in [false, true] {
        let graph = Encoder { patches, ..Encoder::default() }.graph();
        let found = kinds(&graph);
        assert_eq!((found[&Kind::Heads], found[&Kind::Neurons], found[&Kind::Width]), (2, 2, 1), "{found:?}");
    }
}

/// Holds the sliced model against the masked one and returns what was removed, by weight.
fn agreeing(graph: &Graph, inputs: &dyn Fn(&Graph) -> Vec<(String, Tensor)>, text: &str) -> Graph {
    let settings: Settings = toml::from_str(text).unwrap();
    let decision = decide(graph, &settings, &Silent).unwrap();
    let (pruned, masked) = (slice(graph, &decision).unwrap(), mask(graph, &decision).unwrap());
    let first = |g: &Graph| vec![Executor::new(g).unwrap().run(&inputs(g)).unwrap().remove(0)];
    let (whole, masked, sliced) = (first(graph), first(&masked), first(&pruned));
    let p = parity(&masked, &sliced, 1e-5).unwrap();
    assert!(p.max_rel <= 1e-5 && p.not_finite == 0, "masked and sliced differ: {p:?}");
    assert!(parity(&whole, &sliced, 1e-5).unwrap().max_rel > 1e-4, "nothing that matters was removed");
    pruned
}

/// Empty caches of the size that a graph declares.
fn decoder_inputs(net: &Decoder, graph: &Graph) -> Vec<(String, Tensor)> {
    let key = graph.infer(&|_| None).unwrap();
    let groups = key.get(graph.find("past_key_values.0.key").unwrap()).unwrap().shape.as_ref().unwrap()[1]
        .size()
        .unwrap();
    let net = Decoder { groups, ..net.clone() };
    net.inputs(&[&[1, 5, 9, 3], &[7, 2, 0, 0]], &[&[1, 1, 1, 1], &[1, 1, 0, 0]], &[])
}

fn size(graph: &Graph, weight: &str, axis: usize) -> usize {
    graph.initializer(graph.find(weight).unwrap()).unwrap().shape()[axis]
}

#[test]
fn head_groups_leave_whole_with_their_cache() {
    // Heads of their own, two to a group, four to a group with norms of the heads.
    for (heads, groups, head_norm) in [(4, 4, false), (8, 4, false), (16, 4, true)] {
        let net = Decoder { layers: 1, heads, groups, head_norm, ..Decoder::default() };
        let graph = net.graph();
        let only =
            "ratio = 0.5\nscope = 'layer'\nround_to = 1\nexclude = ['embedding', 'gate', 'norm.weight']";
        let pruned = agreeing(&graph, &|g| decoder_inputs(&net, g), only);
        assert_eq!(size(&pruned, "layers.0.k.weight", 1), 2 * net.head);
        assert_eq!(size(&pruned, "layers.0.q.weight", 1), 2 * heads / groups * net.head);
        assert_eq!(size(&pruned, "layers.0.o.weight", 0), 2 * heads / groups * net.head);
    }
}

/// Every layer reads the width of the stream: it stays unless it is asked for.
#[test]
fn the_width_shrinks_only_when_asked_to() {
    let net = Decoder { layers: 1, ..Decoder::default() };
    let graph = net.graph();
    let width = |text: &str| {
        let settings: Settings = toml::from_str(text).unwrap();
        let decision = decide(&graph, &settings, &Silent).unwrap();
        let group = decision.coupled.groups().iter().find(|g| g.kind == Kind::Width).unwrap();
        (decision.kept(group), decision.stays[group.id].clone().unwrap_or_default())
    };
    let (kept, why) = width("ratio = 0.4\nround_to = 1");
    assert_eq!(kept, net.hidden);
    assert!(why.contains("width = true"), "{why}");
    for text in ["ratio = 0.4\nround_to = 1\nwidth = true", "round_to = 1\nratios = { width = 0.25 }"] {
        let (kept, why) = width(text);
        assert!(kept < net.hidden, "{text}: {why}");
    }
}

/// Of query heads that share one key head each may leave; the key head and its cache stay.
#[test]
fn query_heads_of_one_key_head_leave_alone() {
    for beside in [false, true] {
        let net = Decoder { layers: 2, heads: 6, groups: 1, beside, ..Decoder::default() };
        let graph = net.graph();
        for graph in
            [graph.clone(), lower(&graph, Target::Ort).unwrap().0, lower(&graph, Target::Standard).unwrap().0]
        {
            let only =
                "ratio = 0.5\nscope = 'layer'\nround_to = 1\nexclude = ['embedding', 'gate', 'norm.weight']";
            let inputs = |g: &Graph| {
                let all = net.inputs(&[&[1, 5, 9, 3], &[7, 2, 0, 0]], &[&[1, 1, 1, 1], &[1, 1, 0, 0]], &[]);
                all.into_iter().take(2).chain(crate::architectures::empty_caches(g, 2)).collect()
            };
            let pruned = agreeing(&graph, &inputs, only);
            for i in 0..2 {
                assert_eq!(size(&pruned, &format!("layers.{i}.k.weight"), 1), net.head);
                assert_eq!(size(&pruned, &format!("layers.{i}.q.weight"), 1), 3 * net.head);
                assert_eq!(size(&pruned, &format!("layers.{i}.o.weight"), 0), 3 * net.head);
            }
        }
    }
}

#[test]
fn neurons_of_a_gated_layer_leave_together() {
    let net = Decoder { layers: 1, ..Decoder::default() };
    let graph = net.graph();
    let only =
        "ratio = 0.5\nscope = 'layer'\nround_to = 8\nexclude = ['embedding', 'k.weight', 'norm.weight']";
    let pruned = agreeing(&graph, &|g| decoder_inputs(&net, g), only);
    assert_eq!(size(&pruned, "layers.0.gate.weight", 1), 24);
    assert_eq!(size(&pruned, "layers.0.up.weight", 1), 24);
    assert_eq!(size(&pruned, "layers.0.down.weight", 0), 24);
}

#[test]
fn heads_and_neurons_of_an_encoder_leave() {
    for patches in [false, true] {
        let net = Encoder { layers: 1, patches, ..Encoder::default() };
        let graph = net.graph();
        let inputs = |_: &Graph| net.inputs(&[&[1, 5, 9], &[7, 2, 0]], &[&[1, 1, 1], &[1, 1, 0]]);
        let only = "ratio = 0.5\nscope = 'layer'\nround_to = 1\nexclude = ['embedding', 'norm*']";
        let pruned = agreeing(&graph, &inputs, only);
        assert_eq!(size(&pruned, "layers.0.q.bias", 0), 2 * net.head);
        assert_eq!(size(&pruned, "layers.0.up.bias", 0), 20);
    }
}

/// Prepared for a runtime, a decoder has the same groups, and what is sliced gives what is masked.
#[test]
fn groups_survive_the_lowering_for_runtimes() {
    for net in [
        Decoder { heads: 8, groups: 4, ..Decoder::default() },
        Decoder { heads: 4, groups: 4, classic: true, tied: false, bias: true, ..Decoder::default() },
        Decoder { heads: 6, groups: 3, head_norm: true, bias: true, ..Decoder::default() },
        Decoder { heads: 4, groups: 1, beside: true, ..Decoder::default() },
    ] {
        let graph = net.graph();
        let wanted = kinds(&graph);
        for target in [Target::Ort, Target::Standard] {
            let lowered = lower(&graph, target).unwrap().0;
            let found = coupled(&lowered);
            let free = |kind: Kind| {
                found.groups().iter().filter(|g| g.prunable() && g.kind == kind).collect::<Vec<_>>()
            };
            let told: Vec<_> = found.groups().iter().map(|g| (g.kind, g.units, &g.pinned_by)).collect();
            assert_eq!(free(Kind::Heads).len(), wanted[&Kind::Heads], "{target:?} of {net:?}: {told:?}");
            let units = if net.groups == 1 { net.heads } else { net.groups };
            assert!(free(Kind::Heads).iter().all(|g| g.units == units));
            assert_eq!(free(Kind::Neurons).len(), net.layers, "{target:?} of {net:?}");
            assert_eq!(free(Kind::Width).len(), 1, "{target:?} of {net:?}");
            let text = "ratio = 0.4\nscope = 'layer'\nround_to = 1\nexclude = ['embedding']";
            // Layers may keep different numbers of heads.
            let inputs = |g: &Graph| {
                let all = net.inputs(&[&[1, 5, 9, 3], &[7, 2, 0, 0]], &[&[1, 1, 1, 1], &[1, 1, 0, 0]], &[]);
                all.into_iter().take(2).chain(crate::architectures::empty_caches(g, 2)).collect()
            };
            let pruned = agreeing(&lowered, &inputs, text);
            assert!(size(&pruned, "layers.0.down.weight", 0) < net.inner);
        }
    }
}

/// A fifth of what may leave without a change of statistics leaves a real model, heads and neurons both.
fn a_fifth_leaves(
    graph: &Graph,
    scope: &str,
    exclude: &str,
    precise: bool,
    inputs: &dyn Fn(&Graph) -> Vec<(String, Tensor)>,
) {
    let text = format!("ratio = 0.2\nscope = '{scope}'\nround_to = 1\nexclude = ['{exclude}']");
    let settings: Settings = toml::from_str(&text).unwrap();
    let decision = decide(graph, &settings, &Silent).unwrap();
    let cut = |kind: Kind| {
        let groups = decision.coupled.groups().iter().filter(|g| g.kind == kind);
        groups.filter(|g| decision.kept(g) < g.units).count()
    };
    println!("{} groups of heads, {} of neurons", cut(Kind::Heads), cut(Kind::Neurons));
    assert!(cut(Kind::Heads) > 0 && cut(Kind::Neurons) > 0);
    let pruned = slice(graph, &decision).unwrap();
    let masked = mask(graph, &decision).unwrap();
    // In double precision where norms amplify rounding.
    let first = |g: &Graph| {
        let (g, inputs) = match precise {
            true => (&doubled(g), inputs(g).into_iter().map(|(n, t)| (n, t.cast_to(DType::F64))).collect()),
            false => (g, inputs(g)),
        };
        vec![Executor::new(g).unwrap().run(&inputs).unwrap().remove(0)]
    };
    let (whole, masked, sliced) = (first(graph), first(&masked), first(&pruned));
    let p = parity(&masked, &sliced, 1e-5).unwrap();
    println!("masked to sliced {:.1e}", p.max_rel);
    assert!(p.max_rel <= 1e-5 && p.not_finite == 0, "masked and sliced differ: {p:?}");
    assert!(parity(&whole, &sliced, 1e-5).unwrap().max_rel > 1e-3);
    // Products are foretold exactly.
    let bind = |s: &str| Some(if s.starts_with("past") { 0 } else { 96 });
    let facts = graph.infer(&bind).unwrap();
    let mut costs = Costs::of(graph, &facts, &decision.coupled);
    let kept: Vec<usize> = decision.coupled.groups().iter().map(|g| decision.kept(g)).collect();
    let before = costs.macs();
    let start = std::time::Instant::now();
    let foretold = costs.keep_all(&kept).unwrap();
    println!("{before} -> {foretold} products, told in {:?}", start.elapsed());
    let after = pruned.infer(&bind).unwrap();
    assert_eq!(foretold, Costs::of(&pruned, &after, &coupled(&pruned)).macs());
    assert!(foretold < before);
    // An image has axes without a name, which nothing binds.
    assert!(costs.unknown() == 0 || graph.find("input_ids").is_none());
    let count = |g: &Graph| -> u64 {
        tinsmith::graph::constants::Constants::of(g).weights().map(|(_, t)| t.len() as u64).sum()
    };
    assert_eq!(count(graph) - count(&pruned), decision.removed_parameters);
}

fn tokens(graph: &Graph, ids: &[i64]) -> Vec<(String, Tensor)> {
    let row = |v: Vec<i64>| Tensor::from_vec(vec![1, v.len()], v).unwrap();
    let mut all = vec![];
    for v in graph.required_inputs() {
        match graph.value_name(v) {
            "input_ids" => all.push(("input_ids".to_string(), row(ids.to_vec()))),
            "attention_mask" => all.push(("attention_mask".to_string(), row(vec![1; ids.len()]))),
            "token_type_ids" => all.push(("token_type_ids".to_string(), row(vec![0; ids.len()]))),
            _ => {}
        }
    }
    all.extend(crate::architectures::empty_caches(graph, 1));
    all
}

#[test]
fn a_sentence_encoder_shrinks() {
    let dir = cache::fetched("minilm-l6").dir;
    let graph = formats::load(&dir).unwrap().graph;
    let text = |g: &Graph| tokens(g, &[101, 7592, 2088, 2003, 1037, 102]);
    a_fifth_leaves(&graph, "layer", "embeddings", false, &text);
    // Its layers are blocks too; each turns what passes it a little.
    let layers = depth::blocks(&graph, &graph.infer(&|_| None).unwrap(), depth::Unit::Layer);
    let scores = depth::influences(
        &graph,
        &layers,
        &Samples::given(vec![Batch { inputs: text(&graph).to_vec(), ..Batch::default() }]),
        &Silent,
    )
    .unwrap();
    println!("influence of the layers: {scores:.3?}");
    assert!(scores.len() == 6 && scores.iter().all(|s| *s > 0.001 && *s < 1.0));
    let short = depth::without(&graph, &layers, &[0, 3]).unwrap();
    assert_eq!(depth::blocks(&short, &short.infer(&|_| None).unwrap(), depth::Unit::Layer).len(), 4);
    let y = Executor::new(&short).unwrap().run(&text(&short)).unwrap();
    assert!(y[0].1.to_f32s().unwrap().iter().all(|x| x.is_finite()));
}

/// Four layers of thirty: more of them amplify the last bits of single precision.
#[test]
fn a_language_model_shrinks() {
    let path = cache::fetched("smollm2-135m").file(".gguf").unwrap();
    let graph = formats::load(&path).unwrap().graph;
    let layers = depth::blocks(&graph, &graph.infer(&|_| None).unwrap(), depth::Unit::Layer);
    assert_eq!(layers.len(), 30);
    let gone: Vec<usize> = (0..30).filter(|k| ![0, 9, 19, 29].contains(k)).collect();
    let short = depth::without(&graph, &layers, &gone).unwrap();
    a_fifth_leaves(&short, "global", "token_embd", false, &|g| tokens(g, &[504, 2643, 282, 4649, 314]));
}

#[test]
fn text_recognition_shrinks() {
    let path = cache::fetched("ppocr").file("rec_infer.onnx").unwrap();
    let image = Noise(3).tensor(&[1, 3, 48, 96], 1.0);
    let feed = |g: &Graph| {
        let x = g.required_inputs().next().unwrap();
        vec![(g.value_name(x).to_string(), image.clone())]
    };
    let graph = formats::load(&path).unwrap().graph;
    a_fifth_leaves(&graph, "layer", "layer_norm", true, &feed);
    // The width of its sequence may shrink too, though norms take their statistics over it.
    let found = coupled(&graph);
    let width: Vec<_> = found.groups().iter().filter(|g| g.kind == Kind::Width).collect();
    assert!(width.len() == 1 && width[0].prunable() && !width[0].statistics.is_empty(), "{width:?}");
}
