//! Structured pruning of transformers: whole key heads with their query heads, neurons of gated layers,
//! and the hidden width are the groups; a sliced model gives what the masked one gives.

use crate::transformer::{Decoder, Encoder};
use std::collections::BTreeMap;
use tinsmith::evaluate::parity::parity;
use tinsmith::execute::Executor;
use tinsmith::graph::Graph;
use tinsmith::graph::coupling::{Coupled, Group, Kind, Options};
use tinsmith::monitor::Silent;
use tinsmith::passes::prune::{Settings, decide, mask, slice};
use tinsmith::tensor::Tensor;

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
