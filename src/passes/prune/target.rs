//! How much must leave: a part of the parameters at once, or whatever brings another figure of the model
//! to what is asked for, found by trying.

use super::room::Room;
use super::{Decision, Settings, slice};
use crate::analysis::{self, Options};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::passes::Ctx;
use serde::{Deserialize, Serialize};

/// What may remain of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// A part of what the original has.
    Part(f64),
    /// So much: bytes, parameters, multiply-accumulates.
    Number(u64),
}

/// What the pruned model may still have: a part of what the original has, or a number with a unit, such
/// as `bytes = "20MB"`. One figure is given.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Target {
    /// Parameters.
    #[serde(alias = "params", skip_serializing_if = "Option::is_none", with = "counted")]
    pub parameters: Option<Amount>,
    /// Multiply-accumulates.
    #[serde(skip_serializing_if = "Option::is_none", with = "counted")]
    pub macs: Option<Amount>,
    /// Bytes of the weights.
    #[serde(skip_serializing_if = "Option::is_none", with = "sized")]
    pub bytes: Option<Amount>,
    /// A part of the latency, measured on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<f64>,
}

/// As it is written: a number is a part, a text a number with a unit.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "a part such as 0.5, or a number with a unit such as \"20MB\" or \"25M\"")]
enum Written {
    Part(f64),
    Number(String),
}

macro_rules! written {
    ($name:ident, $unit:ident, $like:literal) => {
        mod $name {
            use super::{Amount, Written};
            use crate::units::$unit;
            use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

            pub(super) fn serialize<S: Serializer>(
                amount: &Option<Amount>,
                to: S,
            ) -> Result<S::Ok, S::Error> {
                let written = amount.map(|amount| match amount {
                    Amount::Part(part) => Written::Part(part),
                    Amount::Number(n) => Written::Number(n.to_string()),
                });
                written.serialize(to)
            }

            pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Option<Amount>, D::Error> {
                match Written::deserialize(from)? {
                    Written::Part(part) => Ok(Some(Amount::Part(part))),
                    Written::Number(text) => match $unit::parse(&text) {
                        Some(n) => Ok(Some(Amount::Number(n.0))),
                        None => Err(D::Error::custom(format!(
                            concat!("\"{}\" is no number with a unit, such as \"", $like, "\""),
                            text
                        ))),
                    },
                }
            }
        }
    };
}
written!(sized, Bytes, "20MB");
written!(counted, Count, "25M");

/// A figure of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Figure {
    Parameters,
    Macs,
    Bytes,
    Latency,
}

impl Target {
    /// The one figure that is asked for and what may remain of it; none where there is not exactly one.
    pub(super) fn one(&self) -> Option<(Figure, Amount)> {
        let all = [
            (Figure::Parameters, self.parameters),
            (Figure::Macs, self.macs),
            (Figure::Bytes, self.bytes),
            (Figure::Latency, self.latency.map(Amount::Part)),
        ];
        let mut given = all.into_iter().filter_map(|(figure, amount)| Some((figure, amount?)));
        given.next().filter(|_| given.next().is_none())
    }

    /// Names of the figures that are given.
    pub(super) fn names(&self) -> String {
        let all = [
            ("parameters", self.parameters.is_some()),
            ("macs", self.macs.is_some()),
            ("bytes", self.bytes.is_some()),
            ("latency", self.latency.is_some()),
        ];
        let given: Vec<&str> = all.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect();
        if given.is_empty() { "none".into() } else { given.join(", ") }
    }

    /// The figure that is asked for, and which part of the graph's may remain; none where nothing is. A
    /// number is come to in `rounds` steps of one part, of which this is the first.
    ///
    /// # Errors
    /// `Usage` where the graph has no more than that already; those of [`Gauge::of`].
    pub(super) fn part(&self, graph: &Graph, rounds: usize, ctx: &Ctx<'_>) -> Result<Option<(Figure, f64)>> {
        let (figure, n) = match self.one() {
            None => return Ok(None),
            Some((figure, Amount::Part(part))) => return Ok(Some((figure, part))),
            Some((figure, Amount::Number(n))) => (figure, n),
        };
        let whole = Gauge::of(graph, figure, ctx)?.whole;
        if n as f64 >= whole {
            return Err(Error::usage(ENOUGH, "the model has no more than the target already")
                .field("step.target")
                .found(n)
                .limit(format!("below {whole}"))
                .hint("nothing has to leave; or ask for less"));
        }
        Ok(Some((figure, (n as f64 / whole).powf(1.0 / rounds.max(1) as f64))))
    }
}

/// Tries of a search; latency is measured, so there are fewer.
const TRIES: usize = 12;
const MEASURED: usize = 6;
/// How near the figure is to come, as a part of the original's.
const NEAR: f64 = 0.003;
const NEAR_MEASURED: f64 = 0.02;

/// The code of the error of a target that is met before anything leaves.
pub(super) const ENOUGH: &str = "PRUNE-ENOUGH";

/// Under which name the parameters that a latency asks for are settled.
const SETTLED: &str = "parameters";

/// Finds the decision whose model has at most `part` of the original's figure and removes as little as
/// possible for that. `cut` decides for a number of parameters.
///
/// # Errors
/// `Usage` where the figure cannot be brought so low, with the lowest that was found.
pub(super) fn search(
    graph: &Graph,
    room: &Room<'_>,
    (figure, part): (Figure, f64),
    cut: &dyn Fn(u64) -> Decision,
    ctx: &Ctx<'_>,
) -> Result<Decision> {
    let gauge = Gauge::of(graph, figure, ctx)?;
    let of = |decision: &Decision| -> Result<f64> {
        ctx.monitor.check()?;
        gauge.part(&slice(graph, decision)?)
    };
    let keep = ctx.keep.filter(|_| figure == Figure::Latency);
    if let Some(parameters) = keep.map(|k| k.settled(SETTLED)).transpose()?.flatten() {
        return Ok(cut(parameters as u64));
    }
    let (tries, near) = match figure {
        Figure::Latency => (MEASURED, NEAR_MEASURED),
        _ => (TRIES, NEAR),
    };
    ctx.monitor.phase("prune: find how much must leave", Some(tries as u64));
    let most = room.survey.bounds.at_most(&room.candidates);
    let (mut low, mut high) = (0u64, most);
    let mut best: Option<(f64, u64, Decision)> = None;
    let mut lowest = f64::INFINITY;
    let mut next = (most as f64 * (1.0 - part)).round() as u64;
    for tried in 0..tries {
        let decision = cut(next.clamp(1, most));
        let now = of(&decision)?;
        ctx.monitor.progress(tried as u64 + 1);
        ctx.monitor.metric("remaining", tried as u64, now);
        lowest = lowest.min(now);
        if now <= part {
            high = next;
            best = Some((now, next, decision));
            if part - now <= near {
                break;
            }
        } else {
            low = next;
        }
        if high - low <= most / 2000 {
            break;
        }
        // The figure falls about evenly with what leaves; the middle keeps the search honest.
        next = if tried == 0 && best.is_none() { most } else { low + (high - low) / 2 };
    }
    if let (Some(keep), Some((_, parameters, _))) = (keep, &best) {
        keep.settle(SETTLED, *parameters as f64)?;
    }
    best.map(|(.., decision)| decision).ok_or_else(|| {
        Error::usage("PRUNE-TARGET", "the model cannot be brought so low by pruning")
            .field("step.target")
            .found(part)
            .limit(format!("{:.3} or more", lowest + 0.0005))
            .hint("raise the target, or lower min_keep, min_units and round_to")
    })
}

/// A figure of models, as a part of that of one of them.
pub(super) struct Gauge<'a> {
    figure: Figure,
    whole: f64,
    options: Options,
    ctx: &'a Ctx<'a>,
}

impl<'a> Gauge<'a> {
    /// # Errors
    /// `Unsupported` where the figure cannot be had: operations of open sizes, latency where nobody measures.
    pub(super) fn of(graph: &Graph, figure: Figure, ctx: &'a Ctx<'a>) -> Result<Gauge<'a>> {
        if figure == Figure::Latency && ctx.latency.is_none() {
            return Err(Error::unsupported("PRUNE-LATENCY", "latency cannot be measured here")
                .field("step.target.latency")
                .hint("run the recipe as a job, or state target = { macs = .. }"));
        }
        let options = counted(graph, ctx)?;
        let whole = size(graph, figure, &options)?;
        if whole <= 0.0 && figure == Figure::Macs {
            return Err(Error::unsupported(
                "PRUNE-MACS",
                "operations cannot be counted while sizes are open",
            )
            .field("step.target.macs")
            .hint(
                "name calibration data of the sizes that are used, or state target = { parameters = .. }",
            ));
        }
        Ok(Gauge { figure, whole: whole.max(1.0), options, ctx })
    }

    /// That of a graph.
    pub(super) fn part(&self, graph: &Graph) -> Result<f64> {
        match self.ctx.latency.filter(|_| self.figure == Figure::Latency) {
            Some(meter) => meter(graph),
            None => Ok(size(graph, self.figure, &self.options)? / self.whole),
        }
    }
}

/// What to assume of a model when it is counted: open dimensions are as the data have them.
pub(super) fn counted(graph: &Graph, ctx: &Ctx<'_>) -> Result<Options> {
    let Some(data) = ctx.calibration.or(ctx.train).filter(|d| d.len() > 0) else {
        return Ok(Options::default());
    };
    let row = data.batch(&[0])?;
    Ok(Options::like(graph, row.inputs.iter().map(|(name, t)| (name.as_str(), t.shape()))))
}

fn size(graph: &Graph, figure: Figure, options: &Options) -> Result<f64> {
    let summary = analysis::summarize(graph, options)?;
    Ok(match figure {
        Figure::Parameters => summary.parameters,
        Figure::Bytes => summary.weight_bytes,
        Figure::Macs | Figure::Latency => summary.macs,
    } as f64)
}

impl Settings {
    /// Whether anything says how much is to leave.
    pub(super) fn says_how_much(&self) -> bool {
        self.ratio > 0.0 || self.target.is_some() || self.ratios.values().any(|r| *r > 0.0)
    }
}
