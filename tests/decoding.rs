//! Decoding with caches that stay in one place, beside caches that each step makes anew.

use crate::architectures::{Fixture, empty_caches, named};
use crate::lower::{lowered, session};
use tinsmith::graph::{Graph, states};
use tinsmith::monitor::Silent;
use tinsmith::ops::Attributes;
use tinsmith::passes::lower::Target;
use tinsmith::passes::{self, Ctx, PassReport};
use tinsmith::runtime::Kept;
use tinsmith::tensor::Tensor;

const DECODERS: [&str; 5] = ["llama", "gemma3", "gpt2", "mistral", "phi3"];

/// Scores of the last of each part of ten tokens.
fn decoded(graph: &Graph, ids: &Tensor, mut kept: Kept) -> Vec<Vec<f32>> {
    let mut session = session(graph);
    let keep: Vec<(String, String)> = states::of(graph)
        .into_values()
        .map(|s| (graph.value_name(s.present).to_string(), graph.value_name(s.past).to_string()))
        .collect();
    let mut rows = Vec::new();
    for part in [0..4usize, 4..5, 5..6, 6..8, 8..9, 9..10] {
        let tokens: Vec<usize> = part.clone().collect();
        let mask = Tensor::from_vec(vec![1, part.end], vec![1i64; part.end]).unwrap();
        let mut inputs =
            vec![("input_ids".to_string(), ids.selected(1, &tokens)), ("attention_mask".to_string(), mask)];
        if part.start == 0 {
            inputs.extend(empty_caches(graph, 1));
        }
        kept.reserve(part.end);
        rows.push(session.step(&inputs, &mut kept, &keep, "logits").unwrap());
    }
    rows
}

#[test]
fn caches_in_one_place_give_the_scores_of_caches_that_are_copied() {
    let mut in_place = 0;
    for name in DECODERS {
        let fixture = Fixture::load(name);
        let graph = fixture.graph();
        let inputs = fixture.inputs(&graph);
        let ids = named(&inputs, "input_ids");
        let (graph, _) = lowered(&graph, Target::Ort);
        if !states::in_place(&graph) {
            continue;
        }
        in_place += 1;
        let copied = decoded(&graph, ids, Kept::default());
        assert!(copied.windows(2).all(|w| w[0] != w[1]), "{name}: the scores do not depend on the tokens");
        // Enough room from the start, and room that grows three times.
        for room in [64, 10, 4, 1] {
            assert_eq!(decoded(&graph, ids, Kept::in_place(room)), copied, "{name} with room for {room}");
        }
    }
    assert!(in_place >= 3, "{in_place} of {} decoders keep their caches in one place", DECODERS.len());
}

#[test]
fn a_cache_whose_length_is_read_is_not_kept_in_one_place() {
    let graph = Fixture::load("llama").graph();
    let (plain, _) = lowered(&graph, Target::Standard);
    assert!(!states::in_place(&graph) && !states::in_place(&plain));
    let (graph, _) = lowered(&graph, Target::Ort);
    assert!(states::in_place(&graph));
    // The length of a past, or of a present, as an output of its own.
    for name in ["past_key_values.1.key", "present.1.value"] {
        let mut edit = graph.edit();
        let length = edit.add_op("Shape", &[graph.find(name).unwrap()], Attributes::new(), "length");
        edit.add_output(length);
        let edited = edit.commit().unwrap();
        assert!(!states::in_place(&edited), "{name}");
    }
    // A past whose present is no output.
    let mut edit = graph.edit();
    edit.remove_output(graph.find("present.0.key").unwrap());
    assert!(!states::in_place(&edit.commit().unwrap()));
}

fn pass(name: &str, settings: &str, graph: &Graph) -> (Graph, PassReport) {
    let pass = passes::by_name(name, &settings.parse().unwrap()).unwrap();
    pass.run(graph, &mut Ctx::new(&Silent)).unwrap()
}

/// Attentions that take queries, keys and values as one value.
fn merged(graph: &Graph) -> usize {
    graph.nodes().iter().filter(|n| n.op_type == "GroupQueryAttention" && n.inputs[1].is_none()).count()
}

#[test]
fn queries_keys_and_values_of_one_product_give_the_same_scores() {
    // With biases, without, and with one product in the file.
    for name in ["llama", "mistral", "gpt2"] {
        let fixture = Fixture::load(name);
        let fixture = if name == "gpt2" { fixture } else { fixture.with_heads_of(16) };
        let graph = fixture.graph();
        let inputs = fixture.inputs(&graph);
        let ids = named(&inputs, "input_ids");
        let (float, _) = lowered(&graph, Target::Ort);
        let attentions = float.nodes().iter().filter(|n| n.op_type == "GroupQueryAttention").count();
        let blocks = "scheme = 'weight-int4'\nblock = 16\nembeddings = 'keep'";
        let (int4, _) = pass("quantize", blocks, &float);
        let (real, _) = pass("quantize", &format!("{blocks}\nzero_points = 'real'"), &float);
        for (kind, graph) in [("float", &float), ("int4", &int4), ("real zero points", &real)] {
            let before = merged(graph);
            let (one, report) =
                pass("optimize", "rules = ['merge-products', 'fold-constants', 'drop-dead']", graph);
            assert_eq!((before, merged(&one)), (0, attentions), "{name}, {kind}: {:?}", report.skipped);
            // No part of a weight is put together when the model runs, and none is left behind.
            assert!(
                one.nodes().iter().all(|n| !n
                    .outputs
                    .iter()
                    .flatten()
                    .any(|v| one.value_name(*v).ends_with("weight_merged")))
            );
            let bytes = |g: &Graph| g.initializers().map(|(_, t)| t.byte_len()).sum::<u64>();
            assert!(bytes(&one) <= bytes(graph), "{name}, {kind}: {} bytes of {}", bytes(&one), bytes(graph));
            assert!(one.nodes().len() < graph.nodes().len());
            let (wanted, found) =
                (decoded(graph, ids, Kept::default()), decoded(&one, ids, Kept::in_place(10)));
            let far = |(a, b): (&Vec<f32>, &Vec<f32>)| {
                a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max)
            };
            let worst = wanted.iter().zip(&found).map(far).fold(0f32, f32::max);
            assert!(worst < 1e-5, "{name}, {kind}: {worst}");
        }
    }
}
