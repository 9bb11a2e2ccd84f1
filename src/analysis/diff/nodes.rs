//! Layers that differ between paired graphs.

use super::{ChangeKind, Counts, LayerChange};
use crate::analysis::summary::{Layer, Summary};
use crate::graph::Graph;
use crate::graph::constants::Constants;
use crate::graph::diff::{Matching, spelled};
use crate::tensor::DType;
use std::collections::HashMap;

#[derive(Default)]
pub(super) struct Found {
    pub(super) counts: Counts,
    pub(super) changes: Vec<LayerChange>,
}

/// Compares paired nodes and lists the others. A summary's layers are its graph's nodes, in order.
pub(super) fn changes(m: &Matching, before: (&Graph, &Summary), after: (&Graph, &Summary)) -> Found {
    let mut found = Found::default();
    let partner: HashMap<usize, usize> = m.nodes.iter().map(|(a, b, _)| (*a, *b)).collect();
    let mut rows: Vec<(usize, LayerChange)> = Vec::new();
    let (uses_a, uses_b) = (before.0.uses(), after.0.uses());
    let (held_a, held_b) = (Constants::of(before.0), Constants::of(after.0));
    for (a, b, _) in &m.nodes {
        let (Some(old), Some(new)) = (before.1.layers.get(*a), after.1.layers.get(*b)) else { continue };
        let mut what = differences((before.0, &held_a, *a, old), (after.0, &held_b, *b, new));
        let rewired = before.0.node(*a).inputs.iter().zip(&after.0.node(*b).inputs).any(|(v, w)| {
            let from = |uses: &crate::graph::Uses, v: &Option<crate::graph::ValueId>| {
                v.and_then(|v| uses.producer(v)).map(|(node, _)| node)
            };
            match (from(&uses_a, v), from(&uses_b, w)) {
                (Some(x), Some(y)) => partner.get(&x).is_some_and(|p| *p != y),
                _ => false,
            }
        });
        if rewired || before.0.node(*a).inputs.len() != after.0.node(*b).inputs.len() {
            what.push("inputs".to_string());
        }
        let renamed = (old.name != new.name).then(|| new.name.clone());
        let change = match (what.is_empty(), &renamed) {
            (false, _) => Some(ChangeKind::Changed),
            (true, Some(_)) => Some(ChangeKind::Renamed),
            (true, None) => None,
        };
        found.counts.count(change);
        if let Some(change) = change {
            rows.push((*a, row(change, what, renamed, Some(old), Some(new))));
        }
    }
    for a in &m.removed {
        found.counts.count(Some(ChangeKind::Removed));
        rows.push((*a, row(ChangeKind::Removed, Vec::new(), None, before.1.layers.get(*a), None)));
    }
    rows.sort_by_key(|(at, _)| *at);
    found.changes = rows.into_iter().map(|(_, change)| change).collect();
    for b in &m.added {
        found.counts.count(Some(ChangeKind::Added));
        found.changes.push(row(ChangeKind::Added, Vec::new(), None, None, after.1.layers.get(*b)));
    }
    found
}

/// A node in its graph, with its layer.
type Placed<'a> = (&'a Graph, &'a Constants<'a>, usize, &'a Layer);

fn differences((a, held_a, i, old): Placed<'_>, (b, held_b, j, new): Placed<'_>) -> Vec<String> {
    let mut what = Vec::new();
    let mut note = |differs: bool, word: &str| {
        if differs {
            what.push(word.to_string());
        }
    };
    note(old.op != new.op, "operator");
    let attributes = |g: &Graph, i: usize| {
        let mut all: Vec<(String, String)> =
            g.node(i).attributes.iter().map(|(n, v)| (n.to_string(), spelled(v))).collect();
        all.sort();
        all
    };
    note(old.op == new.op && attributes(a, i) != attributes(b, j), "attributes");
    note((&old.dtype, &old.output_shape) != (&new.dtype, &new.output_shape), "output");
    // As the graph sees them: how they are stored is a matter of the weights.
    fn weights(g: &Graph, held: &Constants<'_>, i: usize) -> Vec<(DType, Vec<usize>)> {
        let inputs = g.node(i).inputs.iter().flatten();
        inputs.filter_map(|v| held.weight(*v)).map(|t| (t.dtype(), t.shape().to_vec())).collect()
    }
    note(weights(a, held_a, i) != weights(b, held_b, j), "weights");
    what
}

fn row(
    change: ChangeKind,
    what: Vec<String>,
    renamed: Option<String>,
    old: Option<&Layer>,
    new: Option<&Layer>,
) -> LayerChange {
    LayerChange {
        name: old.or(new).map_or(String::new(), |l| l.name.clone()),
        change,
        renamed,
        what,
        before: old.map(words),
        after: new.map(words),
        parameters_before: old.map_or(0, |l| l.parameters),
        parameters_after: new.map_or(0, |l| l.parameters),
    }
}

fn words(l: &Layer) -> String {
    let shapes: Vec<String> = l.weights.iter().map(|(_, t, s)| format!("{t}{s:?}")).collect();
    let output = l.output_shape.as_ref().map_or("?".into(), |s| s.join("x"));
    format!("{} -> {output} {}", l.op, shapes.join(" ")).trim_end().to_string()
}
