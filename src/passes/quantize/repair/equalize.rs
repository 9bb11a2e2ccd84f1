//! Cross-layer equalisation (Nagel et al., arXiv 1906.04721): between two layers whose channels pass through
//! nothing but what is positively homogeneous, channel `i` is divided by `s = sqrt(r1 / r2)`, with `r1` the
//! largest magnitude of the weights that make it and `r2` of those that read it, so that both become
//! `sqrt(r1 r2)`. Pairs are taken in turn until none changes; layers in depth triples are in two pairs. Large
//! biases are not absorbed.

use super::super::fold::{self, Along, Fold, Reader};
use super::super::{Settings, weights};
use crate::error::Result;
use crate::graph::{Graph, NodeIndex, ValueId};
use crate::passes::{Ctx, PassReport};
use std::collections::BTreeMap;

const RULE: &str = "equalize";
/// Most rounds over all pairs, and the relative change at which they end.
const ROUNDS: usize = 100;
const ENOUGH: f32 = 1e-3;
/// Most that a channel is divided or multiplied by.
const LIMIT: f32 = 100.0;

struct Pair {
    value: ValueId,
    first: NodeIndex,
    made: Along,
    fold: Fold,
    reader: Reader,
    /// What channels were divided by so far.
    scales: Vec<f32>,
}

fn pairs(graph: &Graph, settings: &Settings, report: &mut PassReport) -> Result<Vec<Pair>> {
    let (uses, facts) = (graph.uses(), graph.infer(&|_| None)?);
    let sound = |i: NodeIndex| -> bool {
        let weight = graph.node(i).inputs.get(1).copied().flatten().and_then(|v| graph.constant(v));
        weight.is_some_and(|t| matches!(weights::not_finite(t), Ok(0)))
    };
    let mut found = Vec::new();
    for i in 0..graph.nodes().len() {
        let Some(reader) = fold::reader(graph, i, 0).filter(|_| !settings.excluded(graph, i)) else {
            continue;
        };
        let Some(value) = graph.node(i).inputs[0] else { continue };
        let Some(axis) = facts.get(value).and_then(|f| f.rank()).and_then(|r| reader.axis.of(r)) else {
            continue;
        };
        if uses.consumers(value).len() != 1 {
            continue;
        }
        let fold = match Fold::of(graph, &uses, &facts, value, axis) {
            Ok(fold) => fold,
            Err(why) => {
                report.skip(RULE, graph.value_name(value), why);
                continue;
            }
        };
        let makers = fold.weights(graph).unwrap_or_default();
        let [(first, made)] = makers.as_slice() else {
            report.skip(RULE, graph.value_name(value), "no single layer makes its channels");
            continue;
        };
        let (first, made) = (*first, made.clone());
        if !sound(first) || !sound(i) || fold.channels != reader.channels {
            report.skip(RULE, graph.value_name(value), "a weight holds values that are not finite");
            continue;
        }
        let scales = vec![1.0; fold.channels];
        found.push(Pair { value, first, made, fold, reader, scales });
    }
    Ok(found)
}

/// The graph with its pairs of layers equalised; none where it has no pair.
pub(super) fn equalized(
    graph: &Graph,
    settings: &Settings,
    ctx: &Ctx<'_>,
    report: &mut PassReport,
) -> Result<Option<Graph>> {
    let mut pairs = pairs(graph, settings, report)?;
    if pairs.is_empty() {
        return Ok(None);
    }
    let mut held: BTreeMap<NodeIndex, Vec<f32>> = BTreeMap::new();
    for i in pairs.iter().flat_map(|p| [p.first, p.reader.node]) {
        let weight = graph.node(i).inputs[1].and_then(|v| graph.initializer(v));
        if let (Some(t), false) = (weight, held.contains_key(&i)) {
            held.insert(i, t.to_vec::<f32>()?);
        }
    }
    ctx.monitor.phase("quantize: equalise", Some(ROUNDS as u64));
    let mut rounds = 0;
    for round in 0..ROUNDS {
        ctx.monitor.check()?;
        ctx.monitor.progress(round as u64);
        let mut change = 0f32;
        for pair in &mut pairs {
            change = change.max(step(pair, &mut held));
        }
        rounds = round + 1;
        if change < ENOUGH {
            break;
        }
    }
    let mut edit = graph.edit();
    for pair in &pairs {
        pair.fold.divide(&mut edit, &pair.scales)?;
        pair.reader.multiply(&mut edit, &pair.scales)?;
        let (least, most) =
            pair.scales.iter().fold((f32::INFINITY, 0f32), |(a, b), s| (a.min(*s), b.max(*s)));
        let told = format!(
            "{} channels between {} and {} divided by {least:.3} to {most:.3}",
            pair.scales.len(),
            graph.label(pair.first),
            graph.label(pair.reader.node)
        );
        report.apply(RULE, graph.value_name(pair.value), told);
    }
    report.facts.insert("equalize_rounds".into(), rounds as f64);
    Ok(Some(edit.commit()?))
}

/// Equalises one pair; the largest relative change of a channel.
fn step(pair: &mut Pair, held: &mut BTreeMap<NodeIndex, Vec<f32>>) -> f32 {
    let magnitudes = |i: NodeIndex, along: &Along| -> Vec<f32> {
        let mut largest = vec![0f32; pair.scales.len()];
        if let Some(w) = held.get(&i) {
            for (at, run) in w.chunks(along.inner).enumerate() {
                let c = along.channels[at % along.channels.len()];
                largest[c] = run.iter().fold(largest[c], |m, x| m.max(x.abs()));
            }
        }
        largest
    };
    let made = magnitudes(pair.first, &pair.made);
    let read = magnitudes(pair.reader.node, &pair.reader.along);
    let mut change = 0f32;
    let steps: Vec<f32> = (made.iter().zip(&read).zip(&pair.scales))
        .map(|((r1, r2), so_far)| {
            // A channel that nothing makes or nothing reads stays as it is.
            if !r1.is_normal() || !r2.is_normal() {
                return 1.0;
            }
            let wanted = (so_far * (r1 / r2).sqrt()).clamp(1.0 / LIMIT, LIMIT);
            let s = wanted / so_far;
            change = change.max((s - 1.0).abs());
            s
        })
        .collect();
    let mut scale = |i: NodeIndex, along: &Along, by: &dyn Fn(f32) -> f32| {
        if let Some(w) = held.get_mut(&i) {
            for (at, run) in w.chunks_mut(along.inner).enumerate() {
                let factor = by(steps[along.channels[at % along.channels.len()]]);
                run.iter_mut().for_each(|x| *x *= factor);
            }
        }
    };
    scale(pair.first, &pair.made, &|s| 1.0 / s);
    scale(pair.reader.node, &pair.reader.along, &|s| s);
    pair.scales.iter_mut().zip(&steps).for_each(|(all, s)| *all *= s);
    change
}
