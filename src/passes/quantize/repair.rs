//! Repairs around quantisation, none of which trains: ranges of channels are evened out in the float graph
//! before ([`equalize`], [`smooth`]); after, weights are rounded by data ([`rounding`]) and means of layers are put
//! right in biases ([`bias`]). The float
//! graph enters with what quantises it; the quantised graph leaves. Each repair is judged by how far the
//! quantised model's outputs are from the float model's on the first rows of the calibration data, and one that
//! brings them no nearer is not applied.

mod bias;
mod equalize;
mod rounding;
mod smooth;

use super::{Rounding, Scheme, Settings, calibrate};
use crate::error::{Error, Kind, Result};
use crate::evaluate::objective::{Head, Objective};
use crate::graph::Graph;
use crate::monitor::{Level, Monitor};
use crate::passes::look::Judge;
use crate::passes::optimize::lifted;
use crate::passes::{Ctx, PassReport};
use serde::{Deserialize, Serialize};

/// How much of the difficulty of data moves into weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Smooth {
    /// The exponent of the data's range, from 0 to 1.
    Strength(f64),
    /// The one of several exponents that brings the outputs nearest to the float model's.
    Auto(Auto),
}

/// The word `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Auto {
    /// Search.
    Auto,
}

/// Repairs of `static-int8` and `dynamic-int8`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Repair {
    /// Ranges of channels between neighbouring layers are made equal (cross-layer equalisation, arXiv
    /// 1906.04721).
    pub equalize: bool,
    /// Ranges of the channels of data are moved into weights (SmoothQuant, arXiv 2211.10438): a number from 0
    /// to 1, or `auto`.
    pub smooth: Option<Smooth>,
    /// Means of layers' outputs that quantisation moved are moved back by biases (arXiv 1906.04721).
    pub bias_correction: bool,
}

/// Exponents that `auto` tries.
const STRENGTHS: [f64; 5] = [0.3, 0.5, 0.6, 0.7, 0.85];

/// Positions that a judgement looks at, and the fewest and most rows that it takes for them.
const POSITIONS: usize = 2048;
const ROWS: (usize, usize) = (4, 128);

impl Repair {
    fn any(&self) -> bool {
        *self != Repair::default()
    }

    pub(super) fn check(&self, scheme: Scheme) -> Result<()> {
        if let Some(Smooth::Strength(a)) = self.smooth
            && !(0.0..=1.0).contains(&a)
        {
            return Err(Error::usage("QUANTIZE-SETTING", "a setting of quantize is out of range")
                .field("step.repair.smooth")
                .found(a)
                .limit("0 to 1, or \"auto\""));
        }
        if self.any() && !matches!(scheme, Scheme::StaticInt8 | Scheme::DynamicInt8) {
            return Err(Error::usage("QUANTIZE-REPAIR", "these repairs are for data on integers")
                .field("step.repair")
                .hint("use scheme static-int8 or dynamic-int8; for weights in blocks choose a rounding"));
        }
        Ok(())
    }
}

impl Settings {
    /// What of the repairs looks at calibration data, for people.
    pub(super) fn repairs(&self) -> Option<&'static str> {
        match self.scheme {
            Scheme::StaticInt8 | Scheme::DynamicInt8 if self.repair.any() => Some("repair"),
            Scheme::StaticInt8 | Scheme::DynamicInt8 if self.rounding == Rounding::Gptq => {
                Some("rounding gptq")
            }
            _ => None,
        }
    }
}

/// The float graph with neighbouring layers equalised, and what was done: the same outputs but for rounding.
///
/// # Errors
/// Those of reading weights; `Stopped` when asked to.
pub fn equalized(graph: &Graph, monitor: &dyn Monitor) -> Result<(Graph, PassReport)> {
    let graph = lifted(graph)?;
    let mut report = PassReport::new("quantize");
    let even = equalize::equalized(&graph, &Settings::default(), &Ctx::new(monitor), &mut report)?;
    Ok((even.unwrap_or(graph), report))
}

/// What makes a quantised graph of a float one.
pub(super) type Make<'a> = dyn Fn(&Graph, &Ctx<'_>, &mut PassReport) -> Result<Graph> + 'a;

/// A float graph, what became of it, and how far that is off; none where no distance can be told.
struct Variant {
    float: Graph,
    quantized: Graph,
    report: PassReport,
    distance: Option<f64>,
}

struct Run<'a, 'c> {
    ctx: &'a Ctx<'c>,
    judge: Option<Judge<'a>>,
    make: &'a Make<'a>,
}

/// Quantises `graph` by `make`, with the repairs of the settings.
///
/// # Errors
/// Those of `make`, of the data and of running the model; `Stopped` when asked to.
pub(super) fn run(
    graph: &Graph,
    settings: &Settings,
    ctx: &Ctx<'_>,
    report: &mut PassReport,
    make: &Make<'_>,
) -> Result<Graph> {
    let repair = settings.repair;
    if settings.repairs().is_none() {
        return make(graph, ctx, report);
    }
    let data = calibrate::data(ctx)?;
    let one = data.batch(&[0])?;
    let rows = POSITIONS.div_ceil(one.tokens.max(1)).clamp(ROWS.0, ROWS.1).min(data.len());
    let judge = |head| Judge::new(graph, data, rows, 0, (head, Objective::Reference), ctx.monitor);
    let judge = match Head::of(graph, data).and_then(judge) {
        Ok(judge) => Some(judge),
        Err(e) if e.kind() == Kind::Unsupported => None,
        Err(e) => return Err(e),
    };
    let run = Run { ctx, judge, make };
    let mut told = PassReport::new("quantize");
    let quantized = make(graph, ctx, &mut told)?;
    let distance = run.distance(&quantized)?;
    let mut best = Variant { float: graph.clone(), quantized, report: told, distance };
    note(report, "repair_distance_without", distance);
    if repair.equalize {
        let mut told = PassReport::new("quantize");
        let float = equalize::equalized(&best.float, settings, ctx, &mut told)?;
        best = run.better(best, float, "equalize", told, report)?;
    }
    if let Some(wanted) = repair.smooth {
        let seen = smooth::Seen::of(&best.float, settings, ctx)?;
        let strengths = match wanted {
            Smooth::Strength(a) => vec![a],
            Smooth::Auto(_) => STRENGTHS.to_vec(),
        };
        let mut tried: Option<(Variant, f64)> = None;
        for strength in &strengths {
            let mut told = PassReport::new("quantize");
            let float = seen.smoothed(&best.float, *strength, &mut told)?;
            if let Some(variant) = run.variant(&best, float, told)? {
                let nearer = |(t, _): &(Variant, f64)| off(variant.distance) < off(t.distance);
                if tried.as_ref().is_none_or(nearer) {
                    tried = Some((variant, *strength));
                }
            } else {
                break;
            }
        }
        match tried {
            Some((mut variant, strength)) => {
                variant.report.facts.insert("smooth_strength".into(), strength);
                best = run.kept(best, variant, "smooth", report);
            }
            None => report.skip("smooth", "the model", "no product reads data whose channels can be scaled"),
        }
    }
    if settings.rounding == Rounding::Gptq {
        let mut told = PassReport::new("quantize");
        let quantized = rounding::rounded(&best.float, &best.quantized, settings, ctx, &mut told)?;
        best = run.after(best, quantized, "gptq", told, report)?;
    }
    if repair.bias_correction {
        let mut told = PassReport::new("quantize");
        let quantized = bias::corrected(&best.float, &best.quantized, rows, ctx, &mut told)?;
        best = run.after(best, quantized, "bias-correction", told, report)?;
    }
    note(report, "repair_distance", best.distance);
    report.tensors.append(&mut best.report.tensors);
    report.absorb(best.report);
    Ok(best.quantized)
}

fn note(report: &mut PassReport, name: &str, distance: Option<f64>) {
    // JSON has no infinity.
    if let Some(d) = distance.filter(|d| d.is_finite()) {
        report.facts.insert(name.into(), d);
    }
}

fn off(distance: Option<f64>) -> f64 {
    distance.unwrap_or(f64::INFINITY)
}

impl Run<'_, '_> {
    /// How far the outputs of a graph are from the float model's, infinite where they are not finite.
    fn distance(&self, graph: &Graph) -> Result<Option<f64>> {
        let Some(judge) = &self.judge else { return Ok(None) };
        match judge.rise_of(graph) {
            Ok(distance) => Ok(Some(distance)),
            Err(e) if e.kind() == Kind::Invalid && e.code() == "LOSS-NAN" => Ok(Some(f64::INFINITY)),
            Err(e) => Err(e),
        }
    }

    /// What becomes of a changed float graph; none where nothing was changed.
    fn variant(&self, before: &Variant, float: Option<Graph>, told: PassReport) -> Result<Option<Variant>> {
        let Some(float) = float else { return Ok(None) };
        // What is remembered of the data was seen of another graph.
        let ctx = Ctx {
            monitor: self.ctx.monitor,
            seed: self.ctx.seed,
            threads: self.ctx.threads,
            calibration: self.ctx.calibration,
            ..Ctx::new(self.ctx.monitor)
        };
        let mut report = PassReport::new("quantize");
        let quantized = (self.make)(&float, &ctx, &mut report)?;
        let distance = self.distance(&quantized)?;
        // Changes of the float graph that led here stay told.
        let earlier = before.report.applied.iter().filter(|a| REPAIRS.contains(&a.rule.as_str()));
        report.applied.extend(earlier.cloned());
        report.absorb(told);
        Ok(Some(Variant { float, quantized, report, distance }))
    }

    fn better(
        &self,
        before: Variant,
        float: Option<Graph>,
        rule: &str,
        told: PassReport,
        report: &mut PassReport,
    ) -> Result<Variant> {
        let reasons = told.skipped.clone();
        match self.variant(&before, float, told)? {
            Some(variant) => Ok(self.kept(before, variant, rule, report)),
            None => {
                report.skipped.extend(reasons);
                report.skip(rule, "the model", "there is nothing that it could change");
                Ok(before)
            }
        }
    }

    /// A change of the quantised graph, where it brings it nearer.
    fn after(
        &self,
        before: Variant,
        quantized: Graph,
        rule: &str,
        told: PassReport,
        report: &mut PassReport,
    ) -> Result<Variant> {
        let distance = self.distance(&quantized)?;
        let mut whole = before.report.clone();
        whole.absorb(told);
        let variant = Variant { float: before.float.clone(), quantized, report: whole, distance };
        Ok(self.kept(before, variant, rule, report))
    }

    /// The nearer of both.
    fn kept(&self, before: Variant, after: Variant, rule: &str, report: &mut PassReport) -> Variant {
        let (Some(a), Some(b)) = (before.distance, after.distance) else {
            report.apply(rule, "the model", "not judged: the model has no output of floats");
            return after;
        };
        let outcome = format!("distance from the float model's outputs {a:.4e} without, {b:.4e} with");
        if b < a {
            report.apply(rule, "the model", outcome);
            return after;
        }
        self.ctx.monitor.log(Level::Warning, &format!("{rule} is not applied: {outcome}"));
        report.skip(rule, "the model", outcome);
        before
    }
}

/// Rules of changes to the float graph.
const REPAIRS: [&str; 2] = ["equalize", "smooth"];

#[cfg(test)]
mod tests;
