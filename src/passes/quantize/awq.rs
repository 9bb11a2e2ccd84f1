//! Activation-aware scales (AWQ, Lin et al., arXiv 2306.00978): inputs of products that carry much are made
//! larger in the weight before it is rounded, and as much smaller where they come from, so that the float model
//! stays the same function. Scales are the root mean square of the data to a power, which a search over the
//! error of the outputs finds; second moments tell that error. Nodes are never added: where nothing before
//! a product can take the inverse, it is left out.

use super::blocks::Blocks;
use super::products::{self, Product};
use super::weight_only::{Chosen, chosen, fitting, gather};
use super::{Rounding, Settings};
use crate::error::{Error, Result};
use crate::graph::{Graph, Uses, ValueId};
use crate::kernels::gemm::{Matrix, produced};
use crate::passes::look::Moments;
use crate::passes::{Ctx, PassReport};
use crate::tensor::Tensor;
use std::collections::{BTreeMap, BTreeSet};

/// Powers that are tried, from 0 to 1.
const POWERS: usize = 10;
/// Outputs of a product whose errors are looked at, about.
const LOOKED_AT: usize = 128;
const RULE: &str = "awq";

/// A constant that takes the inverse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Taker {
    /// A vector with an element a channel.
    Vector(ValueId),
    /// Outputs of a product.
    Outputs(ValueId),
}

/// Factors on a weight by input and by output; for a vector the latter alone.
#[derive(Debug, Default)]
struct Factors {
    inputs: Option<Vec<f32>>,
    outputs: Option<Vec<f32>>,
}

/// The same function with scaled weights.
pub(super) fn scaled(
    graph: &Graph,
    settings: &Settings,
    ctx: &Ctx<'_>,
    report: &mut PassReport,
) -> Result<Graph> {
    let (all, uses) = (chosen(graph, settings, None), graph.uses());
    let mut groups: BTreeMap<ValueId, Vec<&Chosen>> = BTreeMap::new();
    all.iter().for_each(|c| groups.entry(c.data).or_default().push(c));
    let mut takers = BTreeMap::new();
    for (data, group) in &groups {
        match of_group(graph, &uses, *data, group) {
            Ok(found) => drop(takers.insert(*data, found)),
            Err(why) => {
                let names: Vec<String> = group.iter().map(|c| graph.label(c.node)).collect();
                report.skip(RULE, names.join(", "), why);
            }
        }
    }
    let mut factors: BTreeMap<ValueId, Factors> = BTreeMap::new();
    let wanted: Vec<Chosen> = all.iter().filter(|c| takers.contains_key(&c.data)).cloned().collect();
    let (mut at, mut done) = (0, BTreeSet::new());
    while at < wanted.len() {
        let upto = at + fitting(&wanted[at..]);
        let moments = gather(graph, &wanted[at..upto], settings, ctx)?;
        ctx.monitor.phase("quantize: activation-aware scales", Some(moments.len() as u64));
        for (i, (data, moments)) in moments.iter().enumerate() {
            ctx.monitor.check()?;
            ctx.monitor.progress(i as u64 + 1);
            let (true, Some(group)) = (done.insert(*data), groups.get(data)) else { continue };
            let names: Vec<String> = group.iter().map(|c| graph.label(c.node)).collect();
            let Some(found) = search(graph, group, moments)? else {
                report.skip(RULE, names.join(", "), "no scale makes the error of its outputs smaller");
                continue;
            };
            let inverse: Vec<f32> = found.scales.iter().map(|s| 1.0 / s).collect();
            for one in group {
                factors.entry(one.product.weight).or_default().inputs = Some(found.scales.clone());
            }
            for taker in takers.get(data).into_iter().flatten() {
                let (Taker::Vector(v) | Taker::Outputs(v)) = taker;
                factors.entry(*v).or_default().outputs = Some(inverse.clone());
            }
            let told = format!(
                "root mean square to the power of {:.1}, error of the outputs {:.1} dB less",
                found.power,
                -10.0 * found.part.max(1e-30).log10()
            );
            report.apply(RULE, names.join(", "), told);
        }
        at = upto;
    }
    let layouts: BTreeMap<ValueId, bool> = (0..graph.nodes().len())
        .filter_map(|i| products::product(graph, i).ok().flatten())
        .map(|p| (p.weight, p.transposed))
        .collect();
    let mut edit = graph.edit();
    for (v, factors) in factors {
        ctx.monitor.check()?;
        let tensor =
            graph.initializer(v).ok_or_else(|| Error::internal("QUANTIZE", "a constant vanished"))?;
        let mut values = tensor.to_f32s()?;
        let by = |of: &Option<Vec<f32>>, i: usize| of.as_ref().map_or(1.0, |f| f[i]);
        match (tensor.shape(), layouts.get(&v)) {
            (&[_, width], Some(transposed)) => {
                values.iter_mut().enumerate().for_each(|(i, x)| {
                    let (row, column) = (i / width, i % width);
                    let (output, input) = if *transposed { (row, column) } else { (column, row) };
                    *x *= by(&factors.inputs, input) * by(&factors.outputs, output);
                });
            }
            _ => values.iter_mut().enumerate().for_each(|(i, x)| *x *= by(&factors.outputs, i)),
        }
        edit.set_initializer(v, Tensor::from_vec(tensor.shape().to_vec(), values)?);
    }
    edit.commit()
}

/// What takes the inverse of scales of the data of products, or why nothing does.
fn of_group(
    graph: &Graph,
    uses: &Uses,
    data: ValueId,
    group: &[&Chosen],
) -> std::result::Result<Vec<Taker>, String> {
    let nodes: BTreeSet<usize> = group.iter().map(|c| c.node).collect();
    if graph.outputs().contains(&data)
        || uses.consumers(data).iter().any(|(n, slot)| *slot != 0 || !nodes.contains(n))
    {
        return Err("something else reads its data".into());
    }
    if group.iter().any(|c| uses.consumers(c.product.weight).len() != 1) {
        return Err("its weight is read elsewhere as well".into());
    }
    let width = group.first().map_or(0, |c| c.inputs);
    takers(graph, uses, data, width)
}

/// Constants that make a value smaller by channel.
fn takers(graph: &Graph, uses: &Uses, v: ValueId, width: usize) -> std::result::Result<Vec<Taker>, String> {
    let (node, _) = uses.producer(v).ok_or("its data are an input of the model")?;
    let n = graph.node(node);
    let own = |v: ValueId| uses.consumers(v).len() == 1 && !graph.outputs().contains(&v);
    let vector = |v: ValueId| own(v) && graph.initializer(v).is_some_and(|t| t.shape() == [width]);
    let taken = |v: ValueId| match vector(v) {
        true => Ok(Taker::Vector(v)),
        false => Err(format!("a constant of {} has other readers, or another shape", graph.label(node))),
    };
    let inputs: Vec<ValueId> = n.inputs.iter().copied().flatten().collect();
    let beneath = |v: ValueId| match own(v) {
        true => takers(graph, uses, v, width),
        false => Err(format!("something else reads what {} reads", graph.label(node))),
    };
    match (n.op_type.as_str(), inputs.as_slice()) {
        ("RMSNormalization" | "SimplifiedLayerNormalization" | "LayerNormalization", [_, rest @ ..])
            if matches!(n.attributes.int("axis", -1), Ok(-1)) && n.outputs.iter().flatten().count() == 1 =>
        {
            rest.iter().map(|v| taken(*v)).collect()
        }
        ("MatMul" | "Gemm", _) => {
            let Ok(Some(Product { weight, bias, .. })) = products::product(graph, node) else {
                return Err(format!("{} has no constant weight", graph.label(node)));
            };
            let own_weight = own(weight).then_some(Taker::Outputs(weight));
            let weight =
                own_weight.ok_or_else(|| format!("the weight of {} has other readers", graph.label(node)))?;
            bias.map(taken).into_iter().chain([Ok(weight)]).collect()
        }
        ("Mul", [a, b]) => match [*a, *b].into_iter().find(|v| vector(*v)) {
            Some(constant) => Ok(vec![Taker::Vector(constant)]),
            None => beneath(*a).or_else(|_| beneath(*b)),
        },
        ("Add", [a, b]) => {
            let (constant, other) = if vector(*a) { (*a, *b) } else { (*b, *a) };
            let mut found = beneath(other)?;
            found.push(taken(constant)?);
            Ok(found)
        }
        _ => Err(format!("{} before it takes no scale", n.operator_name())),
    }
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
