//! Weights of two models against each other: which belong together, and how far their elements are
//! apart. Elements are read in pieces, several weights at a time.

use super::{ChangeKind, WeightChange};
use crate::analysis::open::Model;
use crate::error::Result;
use crate::graph::constants::Constants;
use crate::graph::diff::Matching;
use crate::graph::{Graph, ValueId};
use crate::monitor::Monitor;
use crate::ops::Attr;
use crate::tensor::{DType, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Elements that are compared at a time.
const PIECE: usize = 1 << 16;
/// Elements at the beginning, middle and end that make a fingerprint.
const SAMPLE: usize = 16;

/// Elements of two weights against each other.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Difference {
    /// Whether all elements have the same bits.
    pub identical: bool,
    /// Elements that differ.
    pub differing: u64,
    /// Largest difference of two finite elements.
    pub max_abs: f64,
    /// Euclidean norm of the difference over that of the weight before; `None` where that is zero.
    pub relative_l2: Option<f64>,
    /// Cosine of the angle between both; `None` where one is zero.
    pub cosine: Option<f64>,
    /// Elements that are NaN or infinite on one side and not the same on the other.
    pub odd: u64,
}

/// A weight of a model.
pub(super) struct Weight<'a> {
    name: String,
    encoding: String,
    shape: Vec<usize>,
    tensor: Option<&'a Tensor>,
}

/// Weights of a model in the order of the file.
pub(super) struct Held<'a> {
    weights: Vec<Weight<'a>>,
    by_name: HashMap<String, usize>,
}

impl<'a> Held<'a> {
    /// Those of a graph, else those of a checkpoint.
    pub(super) fn of(model: &'a Model) -> Held<'a> {
        let weights: Vec<Weight<'a>> = match (model.graph(), model) {
            (Some(graph), _) => Constants::of(graph)
                .weights()
                .map(|(v, t)| {
                    let name = graph.value_name(v).to_string();
                    let stored = match model {
                        Model::Checkpoint { checkpoint, .. } => checkpoint.get(&name),
                        Model::Graph(_) => None,
                    };
                    let encoding = stored.map_or(t.dtype().name().to_string(), |s| s.encoding.clone());
                    Weight { name, encoding, shape: t.shape().to_vec(), tensor: Some(t) }
                })
                .collect(),
            (None, Model::Checkpoint { checkpoint, .. }) => checkpoint
                .tensors()
                .iter()
                .map(|t| Weight {
                    name: t.name.clone(),
                    encoding: t.encoding.clone(),
                    shape: t.shape.clone(),
                    tensor: t.tensor.as_ref(),
                })
                .collect(),
            (None, Model::Graph(_)) => Vec::new(),
        };
        let by_name = weights.iter().enumerate().map(|(i, w)| (w.name.clone(), i)).collect();
        Held { weights, by_name }
    }
}

/// A hash of a few elements of a weight and its shape, where they can be had without reading it whole.
pub(super) fn fingerprint(graph: &Graph, v: ValueId) -> Option<u64> {
    let tensor = graph.initializer(v)?;
    if tensor.in_file() && tensor.region().is_none() || !tensor.dtype().is_float() {
        return None;
    }
    let n = tensor.len();
    let floats = tensor.cast_to(DType::F32);
    let pieces = floats.pieces().ok()?;
    let mut hasher = DefaultHasher::new();
    tensor.shape().hash(&mut hasher);
    let (take, mut buffer) = (SAMPLE.min(n), Vec::new());
    for at in [0, (n - take) / 2, n - take] {
        for x in pieces.get(at, take, &mut buffer).ok()? {
            x.to_bits().hash(&mut hasher);
        }
    }
    Some(hasher.finish())
}

/// A pair of weights, and whether one is the other transposed.
pub(super) struct Pair {
    before: usize,
    after: usize,
    transposed: bool,
}

/// Weights that belong together: those that paired nodes read, then those of one name.
pub(super) fn pairs(
    before: &Held<'_>,
    after: &Held<'_>,
    matched: Option<((&Matching, &Graph), &Graph)>,
) -> Vec<Pair> {
    let mut out: Vec<Pair> = Vec::new();
    let (mut left, mut right) = (HashSet::new(), HashSet::new());
    let mut add = |a: usize, b: usize, transposed: bool| {
        if !left.contains(&a) && !right.contains(&b) {
            left.insert(a);
            right.insert(b);
            out.push(Pair { before: a, after: b, transposed });
        }
    };
    if let Some(((m, old), new)) = matched {
        let (turned_before, turned_after) = (turned(old), turned(new));
        for (v, w) in &m.constants {
            let a = before.by_name.get(old.value_name(*v));
            let b = after.by_name.get(new.value_name(*w));
            if let (Some(a), Some(b)) = (a, b) {
                add(*a, *b, turned_before.contains(v) != turned_after.contains(w));
            }
        }
    }
    for (a, weight) in before.weights.iter().enumerate() {
        if let Some(b) = after.by_name.get(&weight.name) {
            add(a, *b, false);
        }
    }
    out.sort_by_key(|p| p.before);
    out
}

/// Names before and after of weights that belong together, and whether one is the other transposed.
pub(super) fn names<'a>(
    before: &'a Held<'_>,
    after: &'a Held<'_>,
    pairs: &[Pair],
) -> Vec<(&'a str, &'a str, bool)> {
    let of = |p: &Pair| {
        (before.weights[p.before].name.as_str(), after.weights[p.after].name.as_str(), p.transposed)
    };
    pairs.iter().map(of).collect()
}

/// Weights that are kept with their output channels first, as Gemm may have them.
fn turned(graph: &Graph) -> HashSet<ValueId> {
    let first = |n: &crate::graph::Node| matches!(n.attributes.get("transB"), Some(Attr::Int(t)) if *t != 0);
    let nodes = graph.nodes().iter().filter(|n| n.is("Gemm") && first(n));
    nodes.filter_map(|n| n.inputs.get(1).copied().flatten()).collect()
}

/// All weights of both models with what differs.
pub(super) fn changes(
    before: &Held<'_>,
    after: &Held<'_>,
    pairs: &[Pair],
    elements: bool,
    monitor: &dyn Monitor,
) -> Result<Vec<WeightChange>> {
    monitor.phase("compare weights", Some(pairs.len() as u64));
    let done = std::sync::atomic::AtomicU64::new(0);
    let compared: Vec<WeightChange> = pairs
        .par_iter()
        .map(|pair| {
            monitor.check()?;
            let (a, b) = (&before.weights[pair.before], &after.weights[pair.after]);
            let found = compare(a, b, pair.transposed, elements, monitor)?;
            monitor.progress(done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1);
            Ok(found)
        })
        .collect::<Result<_>>()?;
    let mut by_before: HashMap<usize, WeightChange> = pairs.iter().map(|p| p.before).zip(compared).collect();
    let paired: HashSet<usize> = pairs.iter().map(|p| p.after).collect();
    let alone = |w: &Weight<'_>, change: ChangeKind| {
        let text = Some(words(w));
        let (was, is) = if change == ChangeKind::Removed { (text, None) } else { (None, text) };
        WeightChange {
            name: w.name.clone(),
            change: Some(change),
            renamed: None,
            before: was,
            after: is,
            difference: None,
        }
    };
    let mut out: Vec<WeightChange> = before
        .weights
        .iter()
        .enumerate()
        .map(|(i, w)| by_before.remove(&i).unwrap_or_else(|| alone(w, ChangeKind::Removed)))
        .collect();
    out.extend(
        after
            .weights
            .iter()
            .enumerate()
            .filter(|(i, _)| !paired.contains(i))
            .map(|(_, w)| alone(w, ChangeKind::Added)),
    );
    Ok(out)
}

fn words(w: &Weight<'_>) -> String {
    let dims: Vec<String> = w.shape.iter().map(usize::to_string).collect();
    format!("{} [{}]", w.encoding, dims.join(","))
}

fn compare(
    a: &Weight<'_>,
    b: &Weight<'_>,
    transposed: bool,
    elements: bool,
    monitor: &dyn Monitor,
) -> Result<WeightChange> {
    let turned = transposed && a.shape.len() == 2;
    let alike = match turned {
        true => a.shape.iter().rev().eq(b.shape.iter()),
        false => a.shape == b.shape,
    };
    let difference = match (a.tensor, b.tensor) {
        (Some(x), Some(y)) if elements && alike && comparable(x, y) => {
            let y = if turned { y.transposed(&[1, 0]) } else { y.clone() };
            Some(apart(x, &y, monitor).map_err(|e| e.field(format!("weight \"{}\"", a.name)))?)
        }
        _ => None,
    };
    // Formats spell the plain types in their own way.
    let stored_alike = a.shape == b.shape && a.encoding.eq_ignore_ascii_case(&b.encoding);
    let renamed = (a.name != b.name).then(|| b.name.clone());
    let change = match (stored_alike, difference.map(|d| d.identical)) {
        (_, Some(false)) | (false, None) => Some(ChangeKind::Changed),
        (false, Some(true)) => Some(ChangeKind::Recoded),
        (true, _) if renamed.is_some() => Some(ChangeKind::Renamed),
        (true, _) => None,
    };
    Ok(WeightChange {
        name: a.name.clone(),
        change,
        renamed,
        before: Some(words(a)),
        after: Some(words(b)),
        difference,
    })
}

/// Whether elements of both mean the same: both real numbers, or both of one type.
fn comparable(a: &Tensor, b: &Tensor) -> bool {
    let number = |t: &Tensor| t.dtype().is_float() || t.dtype().is_int();
    number(a) && number(b) && (a.dtype().is_float() && b.dtype().is_float() || a.dtype() == b.dtype())
}

/// How far two weights of one shape are apart.
fn apart(a: &Tensor, b: &Tensor, monitor: &dyn Monitor) -> Result<Difference> {
    let (left, right) = (a.cast_to(DType::F32), b.cast_to(DType::F32));
    let (left, right) = (left.pieces()?, right.pieces()?);
    let (mut one, mut two) = (Vec::new(), Vec::new());
    let mut d = Difference::default();
    let (mut aa, mut bb, mut ab, mut dd) = (0f64, 0f64, 0f64, 0f64);
    let n = a.len();
    for at in (0..n).step_by(PIECE) {
        monitor.check()?;
        let count = PIECE.min(n - at);
        let (x, y) = (left.get(at, count, &mut one)?, right.get(at, count, &mut two)?);
        let (mut paa, mut pbb, mut pab, mut pdd) = (0f64, 0f64, 0f64, 0f64);
        for (x, y) in x.iter().zip(y) {
            d.differing += u64::from(x.to_bits() != y.to_bits());
            let (p, q) = (f64::from(*x), f64::from(*y));
            if !x.is_finite() || !y.is_finite() {
                d.odd += u64::from(x.to_bits() != y.to_bits());
                continue;
            }
            d.max_abs = d.max_abs.max((p - q).abs());
            paa += p * p;
            pbb += q * q;
            pab += p * q;
            pdd += (p - q) * (p - q);
        }
        (aa, bb, ab, dd) = (aa + paa, bb + pbb, ab + pab, dd + pdd);
    }
    d.identical = a.dtype() == b.dtype() && d.differing == 0;
    d.relative_l2 = (aa > 0.0).then(|| (dd / aa).sqrt());
    d.cosine = (aa > 0.0 && bb > 0.0).then(|| (ab / (aa.sqrt() * bb.sqrt())).clamp(-1.0, 1.0));
    Ok(d)
}
