//! Mixed precision: which layers take the bits of the scheme, which 8, and which stay in float, so that a
//! budget is kept. Each layer is judged by itself, by what it does to the outputs when it alone is quantised;
//! losses and bytes of layers are taken to add up, a path of assignments from the smallest model to the most
//! exact one follows, and the models on it are run until the budget's is found.

mod search;

pub use search::Search;

use super::{Scheme, Settings, calibrate};
use crate::error::{Error, Result};
use crate::evaluate::objective::{Head, Objective};
use crate::evaluate::samples::Samples;
use crate::graph::{Graph, NodeIndex};
use crate::monitor::{Level, Quiet};
use crate::passes::look::{Judge, Kept};
use crate::passes::{Ctx, PassReport, matches};
use search::Choice;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a layer is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Distance of the outputs from the float model's: KL divergence of scores, else half the squared distance
    /// over the squared length.
    #[default]
    Divergence,
    /// Half the power of the outputs' error over the power of the outputs, scores or not: a signal-to-noise ratio
    /// of `-10 log10(2 loss)` dB.
    Sqnr,
    /// Rise of the negative log-likelihood of labels or next tokens.
    Task,
}

/// Settings of a step's `[step.mixed]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mixed {
    /// Largest loss by `metric` that the result may have; 0 where `max_size` is the budget.
    pub max_loss: f64,
    /// Largest size of all weights as a part of the float model's; 0 where `max_loss` is the budget.
    pub max_size: f64,
    /// What a layer is judged by.
    pub metric: Metric,
    /// How layers are chosen.
    pub search: Search,
    /// Rows of the calibration data that models are judged by.
    pub rows: usize,
}

impl Default for Mixed {
    fn default() -> Mixed {
        Mixed { max_loss: 0.0, max_size: 0.0, metric: Metric::default(), search: Search::default(), rows: 32 }
    }
}

/// Bits of a layer's weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Those of the scheme.
    Scheme,
    /// 8, where the scheme has 4.
    Int8,
    /// It stays as it is.
    Float,
}

/// What was found out about a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Node.
    pub name: String,
    /// What it became.
    pub precision: Precision,
    /// What it does by itself, from the fewest bits on.
    pub options: Vec<OptionReport>,
}

/// What one precision of one layer does while all others stay in float.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OptionReport {
    /// Its bits.
    pub precision: Precision,
    /// Bytes by which the model's weights are smaller.
    pub saved_bytes: f64,
    /// Loss by the metric, which noise may make negative.
    pub loss: f64,
}

/// Layers that do not take the bits of the scheme, by label.
pub(super) type Assignment = BTreeMap<String, Precision>;

impl Mixed {
    pub(super) fn check(&self, scheme: Scheme) -> Result<()> {
        if matches!(scheme, Scheme::Fp16 | Scheme::Bf16) {
            return Err(Error::usage(
                "MIXED-SETTING",
                "layers in 16 bits lose too little to choose among them",
            )
            .field("step.mixed")
            .hint("use a scheme of integers"));
        }
        let refuse = |field: &str, what: &str, found: f64, limit: &str| {
            Err(Error::usage("MIXED-SETTING", what.to_string())
                .field(format!("step.mixed.{field}"))
                .found(found)
                .limit(limit))
        };
        if (self.max_loss > 0.0) == (self.max_size > 0.0) {
            return refuse(
                "max_loss",
                "mixed precision has one budget",
                self.max_loss,
                "max_loss or max_size",
            );
        }
        if !(self.max_loss >= 0.0 && self.max_loss.is_finite()) {
            return refuse("max_loss", "a budget is out of range", self.max_loss, "above 0");
        }
        if !(0.0..1.0).contains(&self.max_size) {
            return refuse("max_size", "a budget is out of range", self.max_size, "above 0, below 1");
        }
        if self.rows == 0 {
            return refuse("rows", "models are judged by rows of data", 0.0, "1 or more");
        }
        Ok(())
    }

    /// The output that is looked at, and how.
    fn by(&self, graph: &Graph, data: &Samples) -> Result<(Head, Objective)> {
        let head = Head::of(graph, data)?;
        Ok(match self.metric {
            Metric::Divergence => (head, Objective::Reference),
            Metric::Sqnr => (Head { scores: false, ..head }, Objective::Reference),
            Metric::Task => (head, Objective::Likelihood),
        })
    }
}

impl Settings {
    /// The bits that a layer takes, where they are not the scheme's.
    pub(super) fn precision(&self, graph: &Graph, i: NodeIndex) -> Precision {
        self.assigned.get(&graph.label(i)).copied().unwrap_or(Precision::Scheme)
    }

    /// Bits that layers may have, fewest first; float is always the last.
    fn precisions(&self) -> &'static [Precision] {
        match self.scheme {
            Scheme::WeightInt4 => &[Precision::Scheme, Precision::Int8],
            _ => &[Precision::Scheme],
        }
    }
}

fn weight_bytes(graph: &Graph) -> f64 {
    graph.initializers().map(|(_, t)| t.byte_len()).sum::<u64>() as f64
}

/// Builds the variants of one model.
struct Workshop<'a> {
    graph: &'a Graph,
    settings: Settings,
    known: calibrate::Known,
    ctx: Ctx<'a>,
}

impl Workshop<'_> {
    /// What has bits to choose of what the scheme quantised: nodes with weights. Those without follow them.
    fn weighs(&self, label: &str) -> bool {
        let weighs = |n: &crate::graph::Node| ["Conv", "Gemm", "MatMul", "Gather"].iter().any(|op| n.is(op));
        self.settings.scheme != Scheme::StaticInt8
            || (0..self.graph.nodes().len())
                .any(|i| weighs(self.graph.node(i)) && self.graph.label(i) == label)
    }

    fn build(&self, assigned: Assignment, report: &mut PassReport) -> Result<Graph> {
        let settings = Settings { assigned, ..self.settings.clone() };
        super::quantized(self.graph, &settings, &self.known, &self.ctx, report)
    }
}

/// What a search found.
pub(super) struct Found<'a> {
    /// The settings, with bits for each layer.
    pub(super) settings: Settings,
    layers: Vec<LayerReport>,
    judge: Judge<'a>,
    max_loss: f64,
    tried: f64,
    known: f64,
}

impl Found<'_> {
    /// Notes what the result of these settings loses.
    ///
    /// # Errors
    /// Those of running it.
    pub(super) fn judge(&self, quantized: &Graph, ctx: &Ctx<'_>, report: &mut PassReport) -> Result<()> {
        let loss = self.judge.rise_of(quantized)?;
        let of = |p: Precision| self.layers.iter().filter(|l| l.precision == p).count() as f64;
        for (name, value) in [
            ("mixed_loss", loss),
            ("mixed_float_layers", of(Precision::Float)),
            ("mixed_int8_layers", of(Precision::Int8)),
            ("mixed_models_tried", self.tried),
            ("mixed_known_layers", self.known),
        ] {
            report.facts.insert(name.into(), value);
        }
        if self.max_loss > 0.0 && loss > self.max_loss {
            let told = format!("the loss is {loss:.3e}, above the budget of {:.3e}", self.max_loss);
            ctx.monitor.log(Level::Warning, &told);
        }
        report.layers.clone_from(&self.layers);
        Ok(())
    }
}

/// Looks for the bits of each layer of `graph` within the budget of `mixed`.
///
/// # Errors
/// `Usage` without data; `Unsupported` where no layer can be quantised within the budget, or none at all;
/// those of running the model; `Stopped`.
pub(super) fn choose<'a>(
    graph: &Graph,
    settings: &Settings,
    mixed: &Mixed,
    ctx: &Ctx<'a>,
) -> Result<Found<'a>> {
    let data = calibrate::data(ctx)?;
    if mixed.metric == Metric::Task && !data.labelled() {
        return Err(Error::usage(
            "MIXED-LABELS",
            "the loss of the task needs labels, and the data have none",
        )
        .field("data.calibration")
        .hint("use metric = \"divergence\", or data with labels"));
    }
    let quiet = Quiet(ctx.monitor);
    let workshop = Workshop {
        graph,
        // Layers are told apart by the nearest level: rounding that looks at data would pass over them for each.
        settings: Settings { rounding: settings.rounding.without_data(), mixed: None, ..settings.clone() },
        known: calibrate::Known::default(),
        ctx: Ctx { monitor: &quiet, ..*ctx },
    };
    ctx.monitor.phase("quantize: run the float model", None);
    let judge = Judge::new(graph, data, mixed.rows, 0, mixed.by(graph, data)?, ctx.monitor)?;
    let (layers, known) = layers(&workshop, data, &judge, mixed, ctx)?;
    let float = weight_bytes(graph);
    let choices: Vec<Vec<Choice>> = layers.iter().map(|l| choices(&l.options)).collect();
    let path = search::path(&choices, mixed.search);
    let assigned = |at: &[usize]| -> Assignment {
        let named = layers.iter().zip(at).map(|(l, k)| (l.name.clone(), l.options.get(*k)));
        let precision = |o: Option<&OptionReport>| o.map_or(Precision::Float, |o| o.precision);
        named.map(|(name, o)| (name, precision(o))).filter(|(_, p)| *p != Precision::Scheme).collect()
    };
    let mut tried = 0.0;
    ctx.monitor.phase("quantize: look for the budget", None);
    let mut fits = |at: &[usize]| -> Result<bool> {
        ctx.monitor.check()?;
        let all_float = at.iter().zip(&layers).all(|(k, l)| *k == l.options.len());
        if all_float {
            return Ok(mixed.max_size == 0.0);
        }
        let variant = workshop.build(assigned(at), &mut PassReport::new("quantize"))?;
        tried += 1.0;
        match mixed.max_size > 0.0 {
            true => Ok(weight_bytes(&variant) <= mixed.max_size * float),
            false => Ok(judge.rise_of(&variant)? <= mixed.max_loss),
        }
    };
    // Along the path losses fall and sizes rise: the first that is exact enough, or the last that is small enough.
    let found = match mixed.max_size > 0.0 {
        false => first(path.len(), |i| fits(&path[i]))?,
        true => first(path.len(), |i| Ok(!fits(&path[i])?))?.checked_sub(1).ok_or_else(|| {
            Error::unsupported("MIXED-BUDGET", "the model is larger than that with all layers in few bits")
                .field("step.mixed.max_size")
                .found(mixed.max_size)
                .hint("a larger budget, fewer bits, or embeddings in fewer bits")
        })?,
    };
    let chosen = path.get(found).map(|at| assigned(at)).unwrap_or_default();
    let floats = chosen.values().filter(|p| **p == Precision::Float).count();
    if floats == layers.len() {
        return Err(Error::unsupported("MIXED-BUDGET", "no layer can be quantised within the budget")
            .field("step.mixed.max_loss")
            .found(mixed.max_loss)
            .hint("a larger budget, or a scheme with more bits"));
    }
    let of = |name: &str| chosen.get(name).copied().unwrap_or(Precision::Scheme);
    let layers = layers.into_iter().map(|l| LayerReport { precision: of(&l.name), ..l }).collect();
    let settings = Settings { assigned: chosen, ..settings.clone() };
    Ok(Found { settings, layers, judge, max_loss: mixed.max_loss, tried, known })
}

/// The first of `n` for which `holds`, which stays true from there on; `n` where it never does.
fn first(n: usize, mut holds: impl FnMut(usize) -> Result<bool>) -> Result<usize> {
    let (mut low, mut high) = (0, n);
    while low < high {
        let middle = low.midpoint(high);
        if holds(middle)? { high = middle } else { low = middle + 1 }
    }
    Ok(low)
}

/// What there is to choose from for a layer: its options, and float.
fn choices(options: &[OptionReport]) -> Vec<Choice> {
    let most = options.iter().map(|o| o.saved_bytes).fold(0.0, f64::max);
    let quantised = options.iter().map(|o| Choice { bytes: most - o.saved_bytes, loss: o.loss.max(0.0) });
    quantised.chain([Choice { bytes: most, loss: 0.0 }]).collect()
}

/// All layers that the scheme quantises, each judged by itself, and how many an earlier run had judged.
fn layers(
    workshop: &Workshop<'_>,
    data: &Samples,
    judge: &Judge<'_>,
    mixed: &Mixed,
    ctx: &Ctx<'_>,
) -> Result<(Vec<LayerReport>, f64)> {
    // What is found out about a layer holds whichever others stay in float, and counts for runs that exclude others.
    let exclude = &workshop.settings.exclude;
    let all = Settings { exclude: vec![], ..workshop.settings.clone() };
    let mut whole = PassReport::new("quantize");
    super::quantized(workshop.graph, &all, &workshop.known, &workshop.ctx, &mut whole)?;
    let rule = workshop.settings.rule();
    let applied = whole.applied.into_iter().filter(|a| a.rule == rule).map(|a| a.target);
    let names: Vec<String> = applied.filter(|target| workshop.weighs(target)).collect();
    let excluded = |name: &str| exclude.iter().any(|p| matches(p, name));
    let nodes = (0..workshop.graph.nodes().len()).map(|i| workshop.graph.label(i));
    let others: Vec<String> = nodes.filter(|n| excluded(n) && !names.contains(n)).collect();
    let options = workshop.settings.precisions();
    let settings = serde_json::to_string(&all).unwrap_or_default();
    let what = format!("layers {:?} {} {} {settings} {others:?}", mixed.metric, mixed.rows, data.len());
    let total = names.len() * options.len();
    let mut kept = Kept::of(ctx.memo, ctx.monitor, what, |sums| sums.len() == 2 * total);
    // Loss and saved bytes of each option of each layer; not a number where they were not asked for so far.
    let mut sums = match kept.seen().1 {
        [] => vec![f64::NAN; 2 * total],
        seen => seen.to_vec(),
    };
    let asked: Vec<usize> = (0..names.len()).filter(|l| !excluded(&names[*l])).collect();
    let known = asked.iter().filter(|l| !sums[2 * *l * options.len()].is_nan()).count();
    if known > 0 {
        let told = format!("{known} of {} layers were judged by an earlier run", asked.len());
        ctx.monitor.log(Level::Info, &format!("quantize: {told}"));
    }
    let float = weight_bytes(workshop.graph);
    ctx.monitor.phase("quantize: judge each layer", Some((asked.len() * options.len()) as u64));
    let tries = asked.iter().flat_map(|l| (0..options.len()).map(|k| (*l, k)));
    for (done, (layer, k)) in tries.enumerate() {
        ctx.monitor.progress(done as u64);
        let at = 2 * (layer * options.len() + k);
        if !sums[at].is_nan() {
            continue;
        }
        let outcome = ctx.monitor.check().and_then(|()| {
            let mut assigned: Assignment =
                names.iter().map(|name| (name.clone(), Precision::Float)).collect();
            assigned.insert(names[layer].clone(), options[k]);
            let variant = workshop.build(assigned, &mut PassReport::new("quantize"))?;
            Ok([judge.rise_of(&variant)?, float - weight_bytes(&variant)])
        });
        match outcome {
            Ok(found) => sums[at..at + 2].copy_from_slice(&found),
            Err(e) => {
                kept.write();
                return Err(e);
            }
        }
        kept.note(sums.iter().filter(|s| !s.is_nan()).count(), || sums.clone());
    }
    kept.write();
    let found = |layer: usize| -> Vec<OptionReport> {
        let of = |(k, precision): (usize, &Precision)| {
            let at = 2 * (layer * options.len() + k);
            OptionReport { precision: *precision, loss: sums[at], saved_bytes: sums[at + 1] }
        };
        options.iter().enumerate().map(of).collect()
    };
    let report =
        |l: &usize| LayerReport { name: names[*l].clone(), precision: Precision::Scheme, options: found(*l) };
    Ok((asked.iter().map(report).collect(), known as f64))
}

#[cfg(test)]
mod tests;
