//! Repair without training. Where units left the input of a product, what they gave to its output is
//! given back as far as the units that stay can tell: their mean goes into the bias, and with `ridge` the
//! weights of the units that stay are changed so that the output is nearest to what it was on the data.
//!
//! For one product with inputs X (units S stay, R leave), weight W and moments over positions of the
//! original model, `m = E[X]`, `G = E[(X - m)(X - m)^T]`: the weights that stay become
//! `W_S + W_R G_RS (G_SS + l I)^-1`, which minimises the squared error of the output, relative to its size
//! at a position (see [`moments`]), plus `l` times the squared change of the weights, with `l` a part of the mean of diag(G_SS); the bias takes
//! `W m - W'_S m_S`. A product without a place for a bias uses moments about zero (no bias then), unless
//! the repair is `bias`, which adds one. Kept in memory: one moment matrix a product, and as many passes
//! over the data as these need under the cap.
//!
//! Products are fitted one by one, so that no error of theirs tells what becomes of the model. Both ways
//! to weigh positions are tried, and what brings the model's outputs nearest to the original's on the
//! first rows of the data is kept, be it the cut as it was.

mod judge;
mod moments;
mod put;

use super::importance::{Gate, Source, gates};
use super::settings::Settings;
use crate::error::Result;
use crate::graph::Graph;
use crate::graph::constants::Constants;
use crate::kernels::cholesky::Cholesky;
use crate::kernels::gemm::{Matrix, product};
use crate::passes::PassReport;
use crate::passes::look::Moments;
use judge::Judge;
use moments::Weighing;
use put::Place;
use serde::{Deserialize, Serialize};

/// How what is left of a product makes up for what was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Repair {
    /// Not at all.
    #[default]
    None,
    /// The mean of what is gone goes into the bias (FLAP, arXiv 2312.11983).
    Bias,
    /// The units that stay are fitted to the output by ridge regression, and the bias as well.
    Ridge,
}

/// A product that lost inputs.
struct Lost {
    gate: Gate,
    /// Kept and lost indices of the axis that is summed over.
    kept: Vec<usize>,
    gone: Vec<usize>,
    /// Elements of one index: taps of a convolution.
    taps: usize,
    place: Place,
}

/// `pruned` with its weights and biases repaired on the data of `source`, whose graph is the original.
/// `kept` are the indices that stay of every axis that was cut.
pub(super) fn repair(
    source: &Source<'_>,
    kept: &crate::graph::coupling::Kept,
    pruned: Graph,
    settings: &Settings,
    cap: u64,
    report: &mut PassReport,
) -> Result<Graph> {
    let constants = Constants::of(source.graph);
    let mut lost = Vec::new();
    for gate in gates(source) {
        let Some((size, stays)) = kept.get(&(gate.data, gate.at.data.1)) else { continue };
        let gone: Vec<usize> = (0..*size).filter(|i| stays.binary_search(i).is_err()).collect();
        let Some(tensor) = constants.get(gate.weight) else { continue };
        let label = source.graph.label(gate.node);
        let output = source.graph.node(gate.node).outputs.first().copied().flatten();
        let features = output.and_then(|v| kept.get(&(v, gate.at.output))).map(|(_, kept)| kept.clone());
        let place = match put::place(source.graph, &pruned, &gate, features, settings.repair) {
            Ok(place) => place,
            Err(why) => {
                report.skip("repair", label, why);
                continue;
            }
        };
        let features = tensor.shape()[gate.at.features] * size;
        let taps = tensor.len() / features.max(1);
        lost.push(Lost { gate, kept: stays.clone(), gone, taps, place });
    }
    let fitted = |weighing: Weighing| -> Result<(Graph, PassReport)> {
        let mut told = PassReport::new("prune");
        let graph = fitted(source, &lost, &pruned, settings, weighing, cap, &mut told)?;
        Ok((graph, told))
    };
    // Convolutions weigh all positions the same, so that there is nothing to choose from.
    let plain = lost.iter().any(|l| !source.graph.node(l.gate.node).is("Conv"));
    let judge = if plain { Judge::of(source)? } else { None };
    let (graph, told) = fitted(Weighing::Relative)?;
    let distances = match &judge {
        Some(judge) => judge.distance(&pruned)?.zip(judge.distance(&graph)?),
        None => None,
    };
    let (Some(judge), Some((without, relative))) = (judge, distances) else {
        report.absorb(told);
        return Ok(graph);
    };
    let (other, told_by_other) = fitted(Weighing::Alike)?;
    let alike = judge.distance(&other)?.unwrap_or(f64::INFINITY);
    let outcome = format!(
        "distance from the original's outputs on {} rows: {without:.3e} without, {relative:.3e} by relative \
         error, {alike:.3e} by error",
        judge.rows()
    );
    let figures = [("repair_distance_without", without), ("repair_distance", relative.min(alike))];
    // JSON has no infinity.
    report.facts.extend(figures.map(|(k, v)| (k.to_string(), v)).into_iter().filter(|(_, v)| v.is_finite()));
    if without < relative.min(alike) {
        report.skip("repair", "the model", format!("it is nearer without; {outcome}"));
        return Ok(pruned);
    }
    report.apply("repair", "the model", outcome);
    let (graph, told) = if alike < relative { (other, told_by_other) } else { (graph, told) };
    report.absorb(told);
    Ok(graph)
}

/// `pruned` with the products of `lost` fitted.
fn fitted(
    source: &Source<'_>,
    lost: &[Lost],
    pruned: &Graph,
    settings: &Settings,
    weighing: Weighing,
    cap: u64,
    report: &mut PassReport,
) -> Result<Graph> {
    let mut edit = pruned.edit();
    let mut done = 0;
    let mut left = lost;
    while !left.is_empty() {
        let fits = moments::fitting(left, settings.repair, cap);
        let (now, later) = left.split_at(fits);
        left = later;
        let moments = moments::gather(source, now, settings.repair, weighing)?;
        source.monitor.phase("prune: repair", Some(lost.len() as u64));
        for (lost, moments) in now.iter().zip(moments) {
            source.monitor.check()?;
            let fitted = fit(source, lost, &moments, settings)?;
            put::put(pruned, &mut edit, lost, fitted, report)?;
            done += 1;
            source.monitor.progress(done);
        }
    }
    edit.commit()
}

/// New weight `[features, kept inputs]` and what the bias gains.
struct Fitted {
    weight: Option<Vec<f32>>,
    bias: Option<Vec<f64>>,
    /// Part of the output's variance that the cut takes, and that is still missing after the repair.
    missing: (f64, f64),
}

/// Rows `[features, inputs]` of the weight that the pruned graph would have without a cut of its inputs.
fn rows(source: &Source<'_>, lost: &Lost) -> Result<(usize, Vec<f32>)> {
    let constants = Constants::of(source.graph);
    let tensor = constants.get(lost.gate.weight).ok_or_else(|| {
        crate::error::Error::internal("REPAIR-WEIGHT", "the weight of a product is missing")
    })?;
    let at = lost.gate.at;
    let tensor = match &lost.place.features {
        Some(kept) => tensor.selected(at.features, kept),
        None => tensor.clone(),
    };
    let flat = tensor.to_f32s()?;
    let features = tensor.shape()[at.features];
    let inputs = flat.len() / features.max(1);
    if at.features == 0 {
        return Ok((features, flat));
    }
    // [inputs, features] of a plain product.
    let turned = (0..flat.len()).map(|i| flat[i % inputs * features + i / inputs]).collect();
    Ok((features, turned))
}

fn fit(source: &Source<'_>, lost: &Lost, moments: &Moments, settings: &Settings) -> Result<Fitted> {
    let (features, w) = rows(source, lost)?;
    let taps = lost.taps;
    let spread = |of: &[usize]| -> Vec<usize> {
        of.iter().flat_map(|i| (0..taps).map(move |t| i * taps + t)).collect()
    };
    let (stay, gone) = (spread(&lost.kept), spread(&lost.gone));
    let inputs = stay.len() + gone.len();
    let centred = lost.place.bias.is_some();
    let mean = moments.mean();
    let pick = |of: &[usize]| -> Vec<f64> {
        (0..features)
            .flat_map(|f| of.iter().map(move |i| (f, *i)))
            .map(|(f, i)| f64::from(w[f * inputs + i]))
            .collect()
    };
    let gone_weights = pick(&gone);
    if settings.repair == Repair::Bias || moments.gram.is_none() {
        let bias = (0..features)
            .map(|f| gone.iter().enumerate().map(|(k, i)| gone_weights[f * gone.len() + k] * mean[*i]).sum())
            .collect();
        return Ok(Fitted { weight: None, bias: Some(bias), missing: (0.0, 0.0) });
    }
    let about = |i: usize, j: usize| moments.about(i, j, centred);
    let block = |rows: &[usize], columns: &[usize]| -> Vec<f64> {
        rows.iter().flat_map(|i| columns.iter().map(move |j| (*i, *j))).map(|(i, j)| about(i, j)).collect()
    };
    let (s, r) = (stay.len(), gone.len());
    let mut kept = block(&stay, &stay);
    let trace: f64 = (0..s).map(|i| kept[i * s + i]).sum::<f64>() / s.max(1) as f64;
    let smallest = trace.max(1e-30) * 1e-9;
    let mut penalty = (trace * settings.ridge).max(smallest);
    let between = block(&stay, &gone);
    let mut answer = between.clone();
    // Rounding may leave a matrix that is not positive definite; a larger penalty makes it so.
    let factor = loop {
        let mut shifted = kept.clone();
        (0..s).for_each(|i| shifted[i * s + i] += penalty);
        match Cholesky::of(shifted, s) {
            Some(factor) => break factor,
            None if penalty < trace.max(1e-30) * 1e3 => penalty *= 10.0,
            None => return Ok(Fitted { weight: None, bias: None, missing: (0.0, 0.0) }),
        }
    };
    factor.solve(&mut answer, r);
    let mut change = vec![0f64; features * s];
    let (gone_matrix, answer_matrix) = (Matrix::new(&gone_weights, features, r), Matrix::new(&answer, s, r));
    product(1.0, gone_matrix, answer_matrix.t(), &mut change, false, true);
    let missing =
        missing(&gone_weights, &change, &block(&gone, &gone), &between, &mut kept, (features, s, r));
    let stay_weights = pick(&stay);
    let weight: Vec<f64> = stay_weights.iter().zip(&change).map(|(w, c)| w + c).collect();
    let bias = centred.then(|| {
        (0..features)
            .map(|f| {
                let gone: f64 =
                    gone.iter().enumerate().map(|(k, i)| gone_weights[f * r + k] * mean[*i]).sum();
                let change: f64 = stay.iter().enumerate().map(|(k, i)| change[f * s + k] * mean[*i]).sum();
                gone - change
            })
            .collect()
    });
    Ok(Fitted { weight: Some(weight.iter().map(|w| *w as f32).collect()), bias, missing })
}

/// Mean squared error of the output without repair and with it: `tr(W_R G_RR W_R^T)`, and that of
/// `W_R X_R - C X_S`.
fn missing(
    gone: &[f64],
    change: &[f64],
    of_gone: &[f64],
    between: &[f64],
    of_kept: &mut [f64],
    (features, s, r): (usize, usize, usize),
) -> (f64, f64) {
    let quadratic = |a: &[f64], m: &[f64], b: &[f64], (rows, columns): (usize, usize)| -> f64 {
        // trace of a m b^T; a is [features, rows], m [rows, columns], b [features, columns].
        let mut am = vec![0f64; features * columns];
        product(1.0, Matrix::new(a, features, rows), Matrix::new(m, rows, columns), &mut am, false, true);
        am.iter().zip(b).map(|(x, y)| x * y).sum()
    };
    let before = quadratic(gone, of_gone, gone, (r, r));
    let cross = quadratic(change, between, gone, (s, r));
    let own = quadratic(change, of_kept, change, (s, s));
    (before.max(0.0), (before - 2.0 * cross + own).max(0.0))
}
