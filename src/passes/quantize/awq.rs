//! Activation-aware scales (AWQ, Lin et al., arXiv 2306.00978): inputs of products that carry much are made
//! larger in the weight before it is rounded, and as much smaller where they come from, so that the float model
//! stays the same function. Scales are the root mean square of the data to a power, which a search over the
//! error of the outputs finds; second moments tell that error. Nodes are never added: where nothing before
//! a product can take the inverse, it is left out.

use super::blocks::Blocks;
use super::fold::{Fold, reader};
use super::weight_only::{Chosen, chosen, fitting, gather};
use super::{Rounding, Settings};
use crate::error::{Error, Result};
use crate::graph::{Facts, Graph, Uses, ValueId};
use crate::kernels::gemm::{Matrix, produced};
use crate::passes::look::Moments;
use crate::passes::{Ctx, PassReport};
use std::collections::{BTreeMap, BTreeSet};

/// Powers that are tried, from 0 to 1.
const POWERS: usize = 10;
/// Outputs of a product whose errors are looked at, about.
const LOOKED_AT: usize = 128;
const RULE: &str = "awq";

/// The same function with scaled weights.
pub(super) fn scaled(
    graph: &Graph,
    settings: &Settings,
    ctx: &Ctx<'_>,
    report: &mut PassReport,
) -> Result<Graph> {
    let (all, uses, facts) = (chosen(graph, settings, None), graph.uses(), graph.infer(&|_| None)?);
    let mut groups: BTreeMap<ValueId, Vec<&Chosen>> = BTreeMap::new();
    all.iter().for_each(|c| groups.entry(c.data).or_default().push(c));
    let names = |group: &[&Chosen]| group.iter().map(|c| graph.label(c.node)).collect::<Vec<_>>().join(", ");
    let mut folds = BTreeMap::new();
    for (data, group) in &groups {
        match fold(graph, &uses, &facts, *data, group) {
            Ok(found) => drop(folds.insert(*data, found)),
            Err(why) => report.skip(RULE, names(group), why),
        }
    }
    let wanted: Vec<Chosen> = all.iter().filter(|c| folds.contains_key(&c.data)).cloned().collect();
    let (mut edit, mut at, mut done) = (graph.edit(), 0, BTreeSet::new());
    while at < wanted.len() {
        let upto = at + fitting(&wanted[at..]);
        let moments = gather(graph, &wanted[at..upto], settings, ctx)?;
        ctx.monitor.phase("quantize: activation-aware scales", Some(moments.len() as u64));
        for (i, (data, moments)) in moments.iter().enumerate() {
            ctx.monitor.check()?;
            ctx.monitor.progress(i as u64 + 1);
            let (true, Some(group), Some(fold)) = (done.insert(*data), groups.get(data), folds.get(data))
            else {
                continue;
            };
            let Some(found) = search(graph, group, moments)? else {
                report.skip(RULE, names(group), "no scale makes the error of its outputs smaller");
                continue;
            };
            fold.divide(&mut edit, &found.scales)?;
            for one in group {
                let reader = reader(graph, one.node, 0)
                    .ok_or_else(|| Error::internal("QUANTIZE", "a product reads no channels"))?;
                reader.multiply(&mut edit, &found.scales)?;
            }
            let told = format!(
                "root mean square to the power of {:.1}, error of the outputs {:.1} dB less",
                found.power,
                -10.0 * found.part.max(1e-30).log10()
            );
            report.apply(RULE, names(group), told);
        }
        at = upto;
    }
    edit.commit()
}

/// What takes the inverse of scales of the data of products, or why nothing does.
fn fold(
    graph: &Graph,
    uses: &Uses,
    facts: &Facts,
    data: ValueId,
    group: &[&Chosen],
) -> std::result::Result<Fold, String> {
    let nodes: BTreeSet<usize> = group.iter().map(|c| c.node).collect();
    if uses.consumers(data).iter().any(|(node, slot)| *slot != 0 || !nodes.contains(node)) {
        return Err("something else reads its data".into());
    }
    if group.iter().any(|c| uses.consumers(c.product.weight).len() != 1) {
        return Err("its weight is read elsewhere as well".into());
    }
    let last = facts.get(data).and_then(|f| f.rank()).and_then(|rank| rank.checked_sub(1));
    Fold::of(graph, uses, facts, data, last.ok_or("the rank of its data is not known")?)
}

/// Scales that were found.
struct Found {
    power: f32,
    scales: Vec<f32>,
    /// The error that is left, as a part of that without scales.
    part: f64,
}

/// The power with the least error of the outputs, if one is better than none.
fn search(graph: &Graph, group: &[&Chosen], moments: &Moments) -> Result<Option<Found>> {
    let n = moments.sum.len();
    let power = moments.power();
    let mean = power.iter().sum::<f32>() / n.max(1) as f32;
    if mean.is_nan() || mean <= 0.0 {
        return Ok(None);
    }
    let gram: Vec<f32> = (0..n * n).map(|i| moments.about(i / n, i % n, false) as f32 / mean).collect();
    let magnitudes: Vec<f32> = power.iter().map(|p| (p / mean).max(1e-6).sqrt()).collect();
    let mut rows = Vec::new();
    for one in group {
        let tensor = graph
            .initializer(one.product.weight)
            .ok_or_else(|| Error::internal("QUANTIZE", "weight vanished").node(graph.label(one.node)))?;
        let every = (one.outputs / LOOKED_AT).max(1);
        let at: Vec<usize> = (0..one.outputs).step_by(every).collect();
        let w = match one.product.transposed {
            true => tensor.selected(0, &at).to_f32s()?,
            false => tensor.selected(1, &at).transposed(&[1, 0]).to_f32s()?,
        };
        rows.push((one.form, w));
    }
    let error = |scales: &[f32]| -> f64 {
        let mut sum = 0.0;
        for (form, w) in &rows {
            let larger: Vec<f32> = w.iter().enumerate().map(|(i, w)| w * scales[i % n]).collect();
            let rounded = Blocks::rounded(&larger, n, *form, Rounding::Mse, None).spelled(n, *form);
            let off: Vec<f32> =
                rounded.iter().zip(w).enumerate().map(|(i, (r, w))| r / scales[i % n] - w).collect();
            let count = off.len() / n.max(1);
            let through = produced(1.0, Matrix::new(&off, count, n), Matrix::new(&gram, n, n), true);
            sum += off.iter().zip(&through).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        }
        sum
    };
    let without = error(&vec![1.0; n]);
    let mut best: Option<Found> = None;
    for i in 1..=POWERS {
        let power = i as f32 / POWERS as f32;
        let raw: Vec<f32> = magnitudes.iter().map(|m| m.powf(power)).collect();
        let (least, most) = raw.iter().fold((f32::INFINITY, 0f32), |(a, b), s| (a.min(*s), b.max(*s)));
        let scales: Vec<f32> = raw.iter().map(|s| s / (least * most).sqrt()).collect();
        let part = error(&scales) / without.max(f64::MIN_POSITIVE);
        if part < best.as_ref().map_or(1.0, |b| b.part) && scales.iter().all(|s| s.is_normal()) {
            best = Some(Found { power, scales, part });
        }
    }
    Ok(best)
}
