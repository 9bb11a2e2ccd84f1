//! The model card and the description of the session: the JSON contracts of a bundle, and the card as
//! Markdown. Every figure stands beside the job that took it.

use super::source::{Records, Variant};
use super::{SCHEMA_VERSION, now_ms};
use crate::analysis::Summary;
use crate::compare::Delta;
use crate::error::Result;
use crate::evaluate::measure::{Recorded, RecordedPort};
use crate::evaluate::measurement::Measurement;
use crate::evaluate::session::Tuned;
use crate::history::{Judged, percent};
use crate::runtime::SessionSettings;
use crate::text::clean;
use crate::units::{Bytes, Count};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write;

/// A tensor of the recorded inference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Port {
    /// Name of the input or output.
    pub name: String,
    /// Element type, `f32`.
    pub dtype: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// File of the elements, little-endian, below the bundle.
    pub file: String,
}

impl Port {
    fn of(port: &RecordedPort) -> Port {
        Port {
            name: port.name.clone(),
            dtype: port.dtype.to_string(),
            shape: port.shape.clone(),
            file: format!("sample/{}", port.file),
        }
    }
}

/// What `session.json` of a bundle holds: how the model is to be run, and on what it was.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Session {
    /// Version of this format.
    pub schema_version: u32,
    /// Model file.
    pub model: String,
    /// Settings.
    pub settings: SessionSettings,
    /// How they were found; none for the default ones.
    pub tuned: Option<Tuned>,
    /// Recorded inputs; empty where no inference could be recorded.
    pub inputs: Vec<Port>,
    /// Recorded outputs.
    pub outputs: Vec<Port>,
    /// Part of the largest recorded element by which outputs may differ.
    pub tolerance: f64,
}

impl Session {
    pub(super) fn new(
        model: &str,
        settings: SessionSettings,
        recorded: Option<&Recorded>,
        tuned: Option<Tuned>,
        tolerance: f64,
    ) -> Session {
        let ports = |of: fn(&Recorded) -> &[RecordedPort]| -> Vec<Port> {
            recorded.map(|r| of(r).iter().map(Port::of).collect()).unwrap_or_default()
        };
        Session {
            schema_version: SCHEMA_VERSION,
            model: model.into(),
            settings,
            tuned,
            inputs: ports(|r| &r.inputs),
            outputs: ports(|r| &r.outputs),
            tolerance,
        }
    }
}

/// Whether records speak against the variant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gate {
    /// Nothing speaks against it; also where nothing was measured.
    pub passed: bool,
    /// Deployed all the same.
    pub forced: bool,
    /// What speaks against it.
    pub reasons: Vec<String>,
}

/// The model file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Model {
    /// Where it was.
    pub path: String,
    /// SHA-256 of the model file.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
    /// Size with external data; none where it was not read.
    pub total_bytes: Option<u64>,
    /// Scalar weights.
    pub parameters: Option<u64>,
    /// Multiply-accumulates of one inference at `bindings`.
    pub macs: Option<u64>,
    /// Bytes of weights as stored.
    pub weight_bytes: Option<u64>,
    /// Peak of live activations by analysis.
    pub peak_activation_bytes: Option<u64>,
    /// Operator sets.
    pub opsets: Vec<(String, i64)>,
    /// Inputs, `x:f32[batch,3]`.
    pub inputs: Vec<String>,
    /// Outputs.
    pub outputs: Vec<String>,
    /// Sizes of open dimensions that the figures are for.
    pub bindings: Vec<(String, i64)>,
    /// Nodes by operator.
    pub operators: Vec<(String, usize)>,
    /// Licence, where the model or its package states one.
    pub licence: Option<String>,
}

/// How the variant was made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Made {
    /// Job.
    pub job: String,
    /// Version of this program.
    pub version: String,
    /// Machine.
    pub host: String,
    /// Wall time, ms.
    pub created_ms: u64,
    /// Model that it was made from.
    pub source: String,
    /// SHA-256 of it.
    pub source_sha256: Option<String>,
    /// Steps, in words, with the figures of their reports.
    pub steps: Vec<(String, Value)>,
    /// The recipe, TOML.
    pub recipe: Option<String>,
    /// What the run was settled on, TOML: digests of its inputs, threads, instruction set.
    pub resolved: Option<String>,
}

/// Figures and the job that took them. Raw samples stay with the job.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Job.
    pub job: String,
    /// Figures.
    pub measurement: Measurement,
}

/// The variant against the first one of a job.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    /// Job.
    pub job: String,
    /// What it is compared with.
    pub baseline: String,
    /// Threads.
    pub threads: usize,
    /// Relative loss of quality that counts as none.
    pub margin: f64,
    /// Size.
    pub size: Option<Delta>,
    /// Median latency.
    pub latency: Option<Delta>,
    /// Peak memory.
    pub memory: Option<Delta>,
    /// Quality.
    pub quality: Option<Delta>,
    /// Gates missed.
    pub missed: Vec<String>,
    /// One line.
    pub conclusion: String,
}

/// What `card.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Card {
    /// Version of this format.
    pub schema_version: u32,
    /// Name of the variant.
    pub name: String,
    /// Version of this program.
    pub version: String,
    /// Wall time of deployment, ms.
    pub deployed_ms: u64,
    /// The file.
    pub model: Model,
    /// How it was made; none where no job of this house did.
    pub made: Option<Made>,
    /// Figures, newest first.
    pub measurements: Vec<Measured>,
    /// Comparisons, newest first.
    pub comparisons: Vec<Compared>,
    /// Whether they speak against it.
    pub gate: Gate,
    /// Settings of the session, in words.
    pub session: String,
    /// Runtime of the recorded inference.
    pub recorded_with: Option<String>,
    /// What the reader must know.
    pub notes: Vec<String>,
}

impl Card {
    pub(super) fn new(
        variant: &Variant,
        known: &Records,
        gate: Gate,
        summary: Option<&Summary>,
        session: &Session,
        recorded: Option<&Recorded>,
        mut notes: Vec<String>,
    ) -> Result<Card> {
        if known.measured.is_empty() {
            notes.push("nothing was measured of this file: run `tinsmith compare ORIGINAL VARIANT`".into());
        } else if known.judged.is_empty() {
            notes.push("it was measured, but never beside what it was made from".into());
        }
        if session.tuned.is_none() {
            notes.push("session settings are not tuned for a machine".into());
        }
        notes.extend(summary.iter().flat_map(|s| s.warnings.iter().cloned()));
        let measured = |(job, m): &(String, Measurement)| {
            let mut measurement = m.clone();
            measurement.latency_ms.iter_mut().for_each(|l| l.samples.clear());
            measurement.quality.iter_mut().for_each(|q| q.correct.clear());
            Measured { job: job.clone(), measurement }
        };
        let compared = |j: &Judged| Compared {
            job: j.job.clone(),
            baseline: j.baseline.clone(),
            threads: j.row.measurement.conditions.threads,
            margin: j.margin,
            size: j.row.size.clone(),
            latency: j.row.latency.clone(),
            memory: j.row.memory.clone(),
            quality: j.row.quality.clone(),
            missed: j.row.missed.clone(),
            conclusion: j.row.conclusion.clone(),
        };
        Ok(Card {
            schema_version: SCHEMA_VERSION,
            name: variant.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            deployed_ms: now_ms(),
            model: model(variant, known, summary),
            made: known.maker.as_ref().map(made).transpose()?,
            measurements: known.measured.iter().map(measured).collect(),
            comparisons: known.judged.iter().map(compared).collect(),
            gate,
            session: session.settings.describe(),
            recorded_with: recorded.map(|r| format!("onnxruntime {}", r.runtime)),
            notes,
        })
    }
}

fn model(variant: &Variant, known: &Records, summary: Option<&Summary>) -> Model {
    let ports = |of: fn(&Summary) -> &[crate::analysis::ValueInfo]| -> Vec<String> {
        let told = |v: &crate::analysis::ValueInfo| {
            let dims = v.shape.as_ref().map_or("?".into(), |s| s.join(","));
            format!("{}:{}[{dims}]", v.name, v.dtype)
        };
        summary.map(|s| of(s).iter().map(told).collect()).unwrap_or_default()
    };
    let stated = |s: &Summary| {
        let told = s
            .metadata
            .iter()
            .find(|(k, _)| k.eq_ignore_ascii_case("license") || k.eq_ignore_ascii_case("licence"));
        s.about.licence.clone().or_else(|| told.map(|(_, v)| v.clone()))
    };
    Model {
        path: variant.path.display().to_string(),
        sha256: variant.sha256.clone(),
        bytes: variant.bytes,
        total_bytes: summary.map(|s| s.file_bytes),
        parameters: summary.map(|s| s.parameters),
        macs: summary.map(|s| s.macs),
        weight_bytes: summary.map(|s| s.weight_bytes),
        peak_activation_bytes: summary.map(|s| s.peak_activation_bytes),
        opsets: summary.map(|s| s.opsets.clone()).unwrap_or_default(),
        inputs: ports(|s| &s.inputs),
        outputs: ports(|s| &s.outputs),
        bindings: summary.map(|s| s.bindings.clone()).unwrap_or_default(),
        operators: summary
            .map(|s| s.by_operator.iter().map(|t| (t.kind.clone(), t.layers)).collect())
            .unwrap_or_default(),
        licence: summary.and_then(stated).or_else(|| known.licence.clone()),
    }
}

fn made(maker: &super::source::Maker) -> Result<Made> {
    let (info, recipe) = (&maker.info, &maker.recipe);
    Ok(Made {
        job: maker.job.id.to_string(),
        version: info.version.clone(),
        host: info.host.clone(),
        created_ms: info.created_ms,
        source: info.directory.join(&info.model).display().to_string(),
        source_sha256: info.model_sha256.clone(),
        steps: maker.steps.clone(),
        recipe: recipe.as_ref().map(crate::plan::Recipe::to_toml).transpose()?,
        resolved: maker.resolved.clone(),
    })
}

/// A text from a file as a cell of Markdown.
fn cell(text: &str) -> String {
    clean(text, 400).replace('|', "\\|").replace('`', "'")
}

fn delta(d: &Option<Delta>, relative: bool) -> String {
    match d {
        None => "–".into(),
        Some(d) if relative => format!("{}, {}", percent(d), d.verdict.word()),
        Some(d) => {
            let interval =
                d.ci95.as_ref().map(|i| format!(" [{:+.4}, {:+.4}]", i.low, i.high)).unwrap_or_default();
            format!("{:+.4}{interval}, {}", d.delta, d.verdict.word())
        }
    }
}

impl Card {
    /// The card for people.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).map_or_else(|_| String::new(), |()| out)
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let m = &self.model;
        writeln!(out, "# {}\n", cell(&self.name))?;
        if !self.gate.passed {
            writeln!(out, "**Deployed by force, although it {}.**\n", cell(&self.gate.reasons.join("; ")))?;
        }
        writeln!(out, "| model | |\n|---|---|")?;
        let mut row = |name: &str, value: String| match value.is_empty() {
            true => Ok(()),
            false => writeln!(out, "| {name} | {} |", cell(&value)),
        };
        let count = |n: Option<u64>| n.map(|n| Count(n).to_string()).unwrap_or_default();
        let bytes = |n: Option<u64>| n.map(|n| Bytes(n).to_string()).unwrap_or_default();
        row("SHA-256", m.sha256.clone())?;
        row("size", bytes(Some(m.total_bytes.unwrap_or(m.bytes))))?;
        row("parameters", count(m.parameters))?;
        row("multiply-accumulates", count(m.macs))?;
        row("weights", bytes(m.weight_bytes))?;
        row("peak of activations", bytes(m.peak_activation_bytes))?;
        row("inputs", m.inputs.join(" "))?;
        row("outputs", m.outputs.join(" "))?;
        let pairs = |all: &[(String, i64)]| {
            all.iter().map(|(k, v)| format!("{k} {v}").trim().to_string()).collect::<Vec<_>>().join(", ")
        };
        row("figures are for", pairs(&m.bindings))?;
        row("operator sets", pairs(&m.opsets))?;
        let operators: Vec<String> = m.operators.iter().map(|(op, n)| format!("{n} {op}")).collect();
        row("nodes", operators.join(", "))?;
        row("licence", m.licence.clone().unwrap_or_else(|| "unknown".into()))?;
        row("session", self.session.clone())?;
        row("recorded with", self.recorded_with.clone().unwrap_or_default())?;
        writeln!(out, "\n## Figures\n")?;
        if !self.measurements.is_empty() {
            writeln!(
                out,
                "| variant | threads | p50 ms [95 %] | peak memory | quality [95 %] | machine | job |\n|---|---|---|---|---|---|---|"
            )?;
        }
        for Measured { job, measurement } in &self.measurements {
            let latency = measurement.latency_ms.as_ref().map_or("–".into(), |l| {
                format!("{:.3} [{:.3}, {:.3}], n = {}", l.p50, l.ci95.low, l.ci95.high, l.n)
            });
            let quality = measurement.quality.as_ref().map_or("–".into(), |q| {
                format!("{} {:.4} [{:.4}, {:.4}], n = {}", q.metric, q.value, q.ci95.low, q.ci95.high, q.n)
            });
            let c = &measurement.conditions;
            writeln!(
                out,
                "| {} | {} | {latency} | {} | {} | {} | {job} |",
                cell(&measurement.variant),
                c.threads,
                measurement.peak_rss_bytes.map_or("–".into(), |b| Bytes(b).to_string()),
                cell(&quality),
                cell(
                    &std::iter::once(format!("{} ({})", c.cpu, c.isa))
                        .chain([c.runtime.clone()])
                        .chain(c.session.iter().cloned())
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            )?;
        }
        if !self.comparisons.is_empty() {
            writeln!(
                out,
                "\n## Against what it was measured with\n\n| baseline | threads | size | latency | memory | quality | conclusion | job |\n|---|---|---|---|---|---|---|---|"
            )?;
        }
        for c in &self.comparisons {
            writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} | {} |",
                cell(&c.baseline),
                c.threads,
                delta(&c.size, true),
                delta(&c.latency, true),
                delta(&c.memory, true),
                delta(&c.quality, false),
                cell(&c.conclusion),
                c.job
            )?;
        }
        for note in &self.notes {
            writeln!(out, "\n- {}", cell(note))?;
        }
        if let Some(made) = &self.made {
            writeln!(
                out,
                "\n## How it was made\n\nJob {} of version {} on {}, from `{}`",
                made.job,
                cell(&made.version),
                cell(&made.host),
                cell(&made.source)
            )?;
            writeln!(out, "(SHA-256 {}).\n", made.source_sha256.as_deref().unwrap_or("unknown"))?;
            for (step, facts) in &made.steps {
                let facts = facts
                    .as_object()
                    .map(|f| f.iter().map(|(k, v)| format!("{k} {v}")).collect::<Vec<_>>().join(", "));
                writeln!(out, "- {}: {}", cell(step), cell(&facts.unwrap_or_default()))?;
            }
            let settled = made.resolved.as_ref().or(made.recipe.as_ref());
            if let Some(text) = settled {
                writeln!(out, "\n```toml\n{}\n```", text.trim().replace("```", "'''"))?;
            }
        }
        writeln!(
            out,
            "\n## How to run it\n\n`python example.py` with the packages onnxruntime and numpy; `ORT_DYLIB_PATH=… cargo run --release` for\n`example.rs`; `example.cpp` is not tested. `sha256sum -c SHA256SUMS` or `tinsmith deploy --check DIR` checks the files.\n\nWritten by tinsmith {}.",
            self.version
        )
    }
}
