//! What quantise steps of runs told, made ready to be shown: layers, ranges, saturation and notes, the worst first;
//! and what changed between two runs that keep other layers in float.

use super::app::Job;
use super::list::{List, Scroll};
use crate::passes::PassReport;
use crate::passes::quantize::{OptionReport, Precision, Scheme, Settings};
use crate::plan::Recipe;
use crate::units::Bytes;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// A table of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sheet {
    /// What each layer became, and what it does to the outputs by itself.
    #[default]
    Layers,
    /// Ranges of calibrated values.
    Ranges,
    /// What saturates on the device that the result is for.
    Saturation,
    /// Repairs, what was left alone and why, figures.
    Notes,
}

impl Sheet {
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Sheet::Layers => "layers",
            Sheet::Ranges => "ranges",
            Sheet::Saturation => "saturation",
            Sheet::Notes => "notes",
        }
    }
}

/// A layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// Node.
    pub name: String,
    /// What it became: `int4`, `int8`, `float`.
    pub got: &'static str,
    /// What the pass says of it.
    pub detail: String,
    /// Loss of what it became while all others stay in float, where that was judged; none of a layer in float.
    pub loss: Option<f64>,
    /// Loss with the fewest bits.
    pub most: Option<f64>,
    /// Bytes that it saves as it is.
    pub saved: Option<f64>,
    /// Part of its sums of two products that saturate, where that was looked for.
    pub saturated: Option<f64>,
    /// What it does with each number of bits.
    pub options: Vec<OptionReport>,
}

/// A quantise step of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantised {
    /// Its job.
    pub job: String,
    /// What was run.
    pub recipe: Recipe,
    /// Scheme of the step.
    pub scheme: Scheme,
    /// What the step told.
    pub report: Arc<PassReport>,
    /// Its layers, the one that loses most as it is first.
    pub layers: Vec<Layer>,
    /// Places of values in the report, the one with the least signal to noise first.
    pub ranges: Vec<usize>,
    /// Places of layers in the report's saturation, the one that saturates most first.
    pub saturation: Vec<usize>,
}

impl Quantised {
    /// Makes a report ready.
    pub fn new(job: &str, recipe: Recipe, settings: &Settings, report: PassReport) -> Quantised {
        let mut ranges: Vec<usize> = (0..report.tensors.len()).collect();
        let ratio = |i: &usize| report.tensors[*i].sqnr_db.unwrap_or(f64::INFINITY);
        ranges.sort_by(|a, b| ratio(a).total_cmp(&ratio(b)));
        let mut saturation: Vec<usize> = (0..report.saturation.len()).collect();
        saturation.sort_by(|a, b| report.saturation[*b].share.total_cmp(&report.saturation[*a].share));
        let layers = layers(&recipe, settings.scheme, &report);
        let (job, scheme, report) = (job.to_string(), settings.scheme, Arc::new(report));
        Quantised { job, recipe, scheme, report, layers, ranges, saturation }
    }

    /// Tables that hold something.
    pub fn sheets(&self) -> Vec<Sheet> {
        let all = [Sheet::Layers, Sheet::Ranges, Sheet::Saturation, Sheet::Notes];
        all.into_iter().filter(|s| *s == Sheet::Notes || self.rows(*s) > 0).collect()
    }

    /// Rows of a table.
    pub fn rows(&self, sheet: Sheet) -> usize {
        match sheet {
            Sheet::Layers => self.layers.len(),
            Sheet::Ranges => self.ranges.len(),
            Sheet::Saturation => self.saturation.len(),
            Sheet::Notes => 0,
        }
    }

    /// A figure of the report.
    pub fn fact(&self, name: &str) -> Option<f64> {
        self.report.facts.get(name).copied()
    }
}

/// Bits of the layers that take those of the scheme.
fn bits(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::WeightInt4 => "int4",
        Scheme::DynamicInt8 | Scheme::StaticInt8 | Scheme::WeightInt8 => "int8",
        Scheme::Fp16 => "fp16",
        Scheme::Bf16 => "bf16",
    }
}

/// The word for what a layer became.
pub fn word(precision: Precision, scheme: Scheme) -> &'static str {
    match precision {
        Precision::Scheme => bits(scheme),
        Precision::Int8 => "int8",
        Precision::Float => "float",
    }
}

fn layers(recipe: &Recipe, scheme: Scheme, report: &PassReport) -> Vec<Layer> {
    let share: BTreeMap<&str, f64> = report.saturation.iter().map(|l| (l.node.as_str(), l.share)).collect();
    let saturated = |name: &str| share.get(name).copied();
    let detail: BTreeMap<&str, &str> =
        report.applied.iter().map(|a| (a.target.as_str(), a.detail.as_str())).collect();
    let mut out: Vec<Layer> = report
        .layers
        .iter()
        .map(|l| {
            let own = l.options.iter().find(|o| o.precision == l.precision);
            Layer {
                name: l.name.clone(),
                got: word(l.precision, scheme),
                detail: detail.get(l.name.as_str()).map_or(String::new(), |d| d.to_string()),
                loss: own.map(|o| o.loss),
                most: l.options.first().map(|o| o.loss),
                saved: own.map(|o| o.saved_bytes),
                saturated: saturated(&l.name),
                options: l.options.clone(),
            }
        })
        .collect();
    let plain = |name: &str, got: &'static str, detail: &str| Layer {
        name: name.to_string(),
        got,
        detail: detail.to_string(),
        loss: None,
        most: None,
        saved: None,
        saturated: saturated(name),
        options: vec![],
    };
    // The rules of the schemes bear their names; other rules prepare or repair.
    let rule = serde_json::to_value(scheme).unwrap_or_default();
    if out.is_empty() {
        let own = report.applied.iter().filter(|a| rule.as_str() == Some(&a.rule));
        out.extend(own.map(|a| {
            let eight = scheme == Scheme::WeightInt4 && a.detail.starts_with("8 bits");
            plain(&a.target, if eight { "int8" } else { bits(scheme) }, &a.detail)
        }));
    }
    let kept = recipe.in_float().into_iter().filter_map(|p| p.strip_prefix('=').map(String::from));
    out.extend(kept.map(|name| plain(&name, "float", "the recipe keeps it in float")));
    let key = |l: &Layer| (l.loss.unwrap_or(-1.0), l.most.unwrap_or(-1.0), l.saturated.unwrap_or(-1.0));
    out.sort_by(|a, b| {
        let (a, b) = (key(a), key(b));
        b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)).then(b.2.total_cmp(&a.2))
    });
    out
}

/// How the tables of a step are looked at.
#[derive(Debug, Default)]
pub struct Sheets {
    /// The one in front, where it holds something.
    pub sheet: Sheet,
    /// Selection in it.
    pub list: List,
    /// Position in the notes.
    pub notes: Scroll,
}

impl Sheets {
    /// The table in front: the chosen one, else the first that holds something.
    pub fn front(&self, run: &Quantised) -> Sheet {
        let all = run.sheets();
        if all.contains(&self.sheet) { self.sheet } else { all[0] }
    }

    /// Goes to the next (`1`) or the previous (`-1`) table; whether there is one.
    pub fn turn(&mut self, run: &Quantised, by: isize) -> bool {
        let all = run.sheets();
        let at = all.iter().position(|s| *s == self.front(run)).unwrap_or(0);
        let to = at.checked_add_signed(by).and_then(|at| all.get(at));
        if let Some(to) = to {
            *self = Sheets { sheet: *to, ..Sheets::default() };
        }
        to.is_some()
    }

    /// The name of what is selected, and whether it is a layer.
    pub fn selected<'a>(&self, run: &'a Quantised) -> Option<(&'a str, bool)> {
        let at = self.list.selected;
        match self.front(run) {
            Sheet::Layers => run.layers.get(at).map(|l| (l.name.as_str(), true)),
            Sheet::Saturation => {
                run.saturation.get(at).map(|i| (run.report.saturation[*i].node.as_str(), true))
            }
            Sheet::Ranges => run.ranges.get(at).map(|i| (run.report.tensors[*i].value.as_str(), false)),
            Sheet::Notes => None,
        }
    }
}

/// A recipe whose layers in float were changed in this session.
#[derive(Debug, Clone, PartialEq)]
pub struct Pending {
    /// The model that it is for.
    pub model: PathBuf,
    /// The recipe as it stands.
    pub recipe: Recipe,
    /// The run that its result is held against.
    pub former: Option<String>,
    /// The job that runs it, once it is queued.
    pub job: Option<String>,
    /// What became of that job was told.
    pub told: bool,
}

/// What quantise steps of runs told, as far as it was read.
#[derive(Debug, Default)]
pub struct Told {
    /// What was asked for: job, and how far it was then.
    asked: BTreeMap<String, Option<u64>>,
    /// Newest first.
    pub runs: Vec<Arc<Quantised>>,
    /// What is being changed.
    pub pending: Option<Pending>,
}

/// Runs whose reports are read at most.
const READ: usize = 60;

impl Told {
    /// Jobs of which more can be read than was.
    pub fn to_read(&mut self, jobs: &[Job]) -> Vec<String> {
        let mut quantising: Vec<&Job> = jobs.iter().filter(|j| j.quantises()).collect();
        quantising.sort_by(|a, b| (b.state.created_ms, &b.id).cmp(&(a.state.created_ms, &a.id)));
        quantising.truncate(READ);
        self.runs.retain(|r| jobs.iter().any(|j| j.id == r.job));
        self.asked.retain(|id, _| quantising.iter().any(|j| j.id == *id));
        let mut out = Vec::new();
        for job in quantising {
            // A report is there before its step's checkpoint is.
            let far = job.state.checkpoint.as_ref().map(|c| c.0);
            let known = self.asked.insert(job.id.clone(), far);
            if far.is_some() && known != Some(far) {
                out.push(job.id.clone());
            }
        }
        out
    }

    /// Reports were read.
    pub fn set(&mut self, read: Vec<Quantised>) {
        for run in read {
            self.runs.retain(|r| r.job != run.job);
            self.runs.push(Arc::new(run));
        }
        self.runs.sort_by(|a, b| b.job.cmp(&a.job));
    }

    /// Of a job.
    pub fn of(&self, job: &str) -> Option<&Arc<Quantised>> {
        self.runs.iter().find(|r| r.job == job)
    }

    /// The newest run on a model, by a recipe that differs in nothing but the layers in float where one is given.
    pub fn newest(
        &self,
        jobs: &[Job],
        model: &std::path::Path,
        like: Option<&Recipe>,
    ) -> Option<&Arc<Quantised>> {
        let on = |r: &Quantised| jobs.iter().any(|j| j.id == r.job && j.model == model);
        self.runs.iter().find(|r| on(r) && like.is_none_or(|l| l.alike_but_in_float(&r.recipe)))
    }

    /// The newest run before `run` on the same model that differs from it in the layers in float alone.
    pub fn former(&self, jobs: &[Job], run: &Quantised) -> Option<&Arc<Quantised>> {
        let model = |id: &str| jobs.iter().find(|j| j.id == id).map(|j| &j.model);
        let own = model(&run.job)?;
        self.runs.iter().find(|r| {
            r.job < run.job
                && model(&r.job) == Some(own)
                && r.recipe.alike_but_in_float(&run.recipe)
                && r.recipe.in_float() != run.recipe.in_float()
        })
    }
}

/// A figure of two runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// What it is.
    pub what: String,
    /// Of the former run.
    pub before: String,
    /// Of the later one.
    pub after: String,
    /// Whether the later one is better, where they differ.
    pub better: Option<bool>,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} → {}", self.what, self.before, self.after)
    }
}

/// Size, loss, latency and quality of a run against a former one. Latencies are parts of the original's, which each
/// job measured beside its variant.
pub fn changes(former: (&Job, Option<&Quantised>), later: (&Job, Option<&Quantised>)) -> Vec<Change> {
    let mut out = Vec::new();
    let mut add = |what: &str, pair: (Option<f64>, Option<f64>), less: bool, show: &dyn Fn(f64) -> String| {
        if let (Some(a), Some(b)) = pair {
            let (before, after) = (show(a), show(b));
            let better = (before != after).then_some((b < a) == less);
            out.push(Change { what: what.into(), before, after, better });
        }
    };
    let size =
        |j: &Job| j.state.artifacts.iter().rfind(|a| a.path.ends_with(".onnx")).map(|a| a.bytes as f64);
    add("size", (size(former.0), size(later.0)), true, &|v| Bytes(v as u64).to_string());
    let loss = |q: Option<&Quantised>| q.and_then(|q| q.fact("mixed_loss"));
    add("loss", (loss(former.1), loss(later.1)), true, &|v| format!("{v:.2e}"));
    let part = |j: &Job| {
        let of = |m: &crate::evaluate::measurement::Measurement| m.latency_ms.as_ref().map(|l| l.p50);
        let base = j.state.measurements.iter().find(|m| m.variant == "original").and_then(of)?;
        let own = j.state.measurements.iter().rfind(|m| m.variant != "original").and_then(of)?;
        (base > 0.0).then_some(own / base)
    };
    add("latency / original", (part(former.0), part(later.0)), true, &|v| format!("{v:.2}"));
    let quality = |j: &Job| {
        j.state.measurements.iter().rfind(|m| m.variant != "original").and_then(|m| m.quality.clone())
    };
    if let (Some(a), Some(b)) = (quality(former.0), quality(later.0))
        && a.metric == b.metric
    {
        add(&a.metric, (Some(a.value), Some(b.value)), !a.higher_is_better, &|v| format!("{v:.4}"));
    }
    out
}
