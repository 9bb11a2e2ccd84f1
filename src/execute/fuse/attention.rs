//! Scaled dot-product attention:
//!
//! ```text
//! scores  = MatMul(q, Transpose(k))            either may be a product with a constant before
//! scores  = Mul(scores, c) | Div(scores, c)    where it follows
//! scores  = Add(scores, mask) | Where(mask, scores, fill) | Where(mask, fill, scores)
//! y       = MatMul(Softmax(scores), v)
//! ```
//!
//! Two to four axes; those before the last two are the same for queries, keys and values, or one head of
//! keys and values serves all queries. The mask broadcasts to the scores without adding to them; `fill` is
//! negative infinity or so low that it weighs nothing beside a score. Inputs are finite: what a mask rules
//! out is not computed, so that numbers which are not finite there do not show.

use super::sketch::Sketch;
use super::{Form, Found};
use crate::graph::{NodeIndex, ValueId};
use crate::ops::spelled::Masking;
use crate::ops::{Dim, axis};

const NAME: &str = "Attention";

/// Highest score that stands for a key which is ruled out.
const RULED_OUT: f64 = -1e9;

pub(super) fn find(s: &mut Sketch<'_>, i: NodeIndex) -> Option<Found> {
    let (node, output) = s.is(i, &["MatMul"])?;
    s.cover(i);
    let [weights, v] = Sketch::pair(node)?;
    let softmax = s.take(weights, &["Softmax"])?;
    if s.reader(weights).is_none() {
        return s
            .miss(NAME, format!("its weights, {}, are a graph output or read elsewhere", s.called(weights)));
    }
    let masked = softmax.inputs.first().copied().flatten()?;
    let rank = s.shape(masked)?.len();
    let default = if s.opset() >= 13 { -1 } else { 1 };
    let along = axis(softmax.attributes.int("axis", default).ok()?, rank).ok()?;
    if along + 1 != rank || !(2..=4).contains(&rank) {
        return s.miss(NAME, format!("the softmax is over axis {along} of {rank}"));
    }
    let (scaled, mask, masking) = masks(s, masked)?;
    let (scores, mut scale, shift) = s.affine(scaled)?;
    let [q, k] = Sketch::pair(s.take(scores, &["MatMul"])?)?;
    if shift != 0.0 {
        return s.miss(NAME, format!("{shift} is added to its scores"));
    }
    if let Some(mask) = mask {
        let known = s.shape(mask).zip(s.shape(scores));
        if known.is_none_or(|(mask, scores)| fits(mask, scores).is_none()) {
            return s
                .miss(NAME, format!("its mask, {}, is not known to have the scores' shape", s.called(mask)));
        }
    }
    let (q, factor) = s.scaled(q);
    scale *= factor;
    let (k, factor) = s.scaled(k);
    scale *= factor;
    let mut keys: Vec<usize> = (0..rank).collect();
    keys.swap(rank - 2, rank - 1);
    let turned = s.attempt(|s| {
        s.reader(k)?;
        let node = s.take(k, &["Transpose"])?;
        let of = node.inputs.first().copied().flatten()?;
        let perm: Vec<usize> = match node.attributes.ints("perm").ok()? {
            Some(perm) => perm.into_iter().map(|a| axis(a, rank).ok()).collect::<Option<_>>()?,
            None => (0..rank).rev().collect(),
        };
        (perm.len() == rank).then_some((of, perm))
    });
    let k = match turned {
        None => k,
        Some((of, perm)) => {
            keys.iter_mut().for_each(|at| *at = perm[*at]);
            let (of, factor) = s.scaled(of);
            scale *= factor;
            of
        }
    };
    let k_shape: Vec<Dim> = keys.iter().map(|at| s.shape(k)?.get(*at).cloned()).collect::<Option<_>>()?;
    if lead(s.shape(q)?, &k_shape, s.shape(v)?).is_none() {
        return s.miss(NAME, "queries, keys and values are not known to have the same heads");
    }
    let form = Form::Attention { scale, keys, masking };
    Some(Found { form, inputs: vec![Some(q), Some(k), Some(v), mask], output })
}

/// The scores before the mask, the mask, and how it works.
fn masks(s: &mut Sketch<'_>, masked: ValueId) -> Option<(ValueId, Option<ValueId>, Masking)> {
    s.reader(masked)?;
    let scored = |s: &Sketch<'_>, v| {
        s.clone().affine(v).is_some_and(|(base, ..)| s.clone().take(base, &["MatMul"]).is_some())
    };
    let found = s.attempt(|s| {
        let node = s.take(masked, &["Add", "Where"])?;
        if node.is("Add") {
            let [a, b] = Sketch::pair(node)?;
            if s.attempt(|s| s.number(a).or_else(|| s.number(b))).is_some() {
                return None;
            }
            let (scores, mask) = if scored(s, a) { (a, b) } else { (b, a) };
            return Some((scores, Some(mask), Masking::Added));
        }
        let [Some(mask), Some(a), Some(b)] = node.inputs[..] else { return None };
        let (scores, fill, keeps) = match s.attempt(|s| s.number(b)) {
            Some(fill) => (a, fill, true),
            None => (b, s.number(a)?, false),
        };
        (fill <= RULED_OUT).then_some((scores, Some(mask), Masking::Chosen { keeps, fill }))
    });
    Some(found.unwrap_or((masked, None, Masking::None)))
}

/// Whether a mask broadcasts to the scores without making them larger.
fn fits(mask: &[Dim], scores: &[Dim]) -> Option<()> {
    let ends = mask.iter().rev().zip(scores.iter().rev());
    (!mask.is_empty() && mask.len() <= scores.len() && ends.into_iter().all(|(m, n)| m.is(1) || m == n))
        .then_some(())
}

/// Whether the axes before the last two are the same, but that keys and values may have one head.
fn lead(q: &[Dim], k: &[Dim], v: &[Dim]) -> Option<()> {
    let rank = q.len();
    if k.len() != rank || v.len() != rank {
        return None;
    }
    let one = |at: usize| at + 3 == rank && k[at].is(1) && v[at].is(1);
    let all = (0..rank - 2).all(|at| (q[at] == k[at] && k[at] == v[at]) || one(at));
    (all && q[rank - 1] == k[rank - 1]).then_some(())
}
