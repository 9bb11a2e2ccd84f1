//! Writes a model as ONNX Runtime rewrites it when it loads it, so that this work is done once and not at
//! every start. A model enters; the rewritten one leaves, held against the input, with a count of what
//! nodes went in and came out.

use super::measure::{Interleaved, interleaved};
use super::{Activity, Context, Work};
use crate::error::{Error, Result};
use crate::evaluate::measure::rewrite;
use crate::formats;
use crate::hardware::Machine;
use crate::jobs::request::{Sampling, Subject};
use crate::monitor::{Level, Monitor};
use crate::runtime::{self, Optimization};
use crate::save;
use crate::units::Bytes;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Size above which weights go to a file of their own: a protobuf holds less than 2 GB.
const SPLIT: u64 = 1 << 30;
/// Seconds and rounds of measuring it beside the input.
const SECONDS: f64 = 1.5;
const ROUNDS: usize = 6;

/// The work of [`crate::jobs::Request::Serialize`].
pub(super) struct Serialized {
    pub(super) model: Subject,
    pub(super) level: Optimization,
    pub(super) ort: bool,
    pub(super) data: Option<String>,
}

/// What became of the nodes, `serialize.report.json`.
#[derive(Serialize)]
struct Report {
    schema_version: u32,
    level: &'static str,
    isa: String,
    runtime: String,
    /// (operator, nodes before, nodes after), in order of names.
    operators: Vec<(String, usize, usize)>,
    warnings: Vec<String>,
}

impl Work for Serialized {
    fn run(&mut self, ctx: &Context<'_>) -> Result<()> {
        let path = ctx.info.directory.join(&self.model.path);
        let input = formats::load(&path)?;
        if input.facts.format != "onnx" {
            return Err(Error::unsupported("SERIALIZE-FORMAT", "ONNX Runtime reads ONNX models")
                .file(&path)
                .found(input.facts.format)
                .hint("make one with `tinsmith import`"));
        }
        let probe = runtime::ensure(ctx.paths, ctx.monitor)?;
        let dir = ctx.job.dir.join("artifacts");
        save::sweep(&dir);
        let split = input.facts.total_bytes() > SPLIT;
        if split && self.ort {
            return Err(Error::limit_exceeded(
                "SERIALIZE-SIZE",
                "a file in .ort format holds its weights itself",
            )
            .file(&path)
            .found(Bytes(input.facts.total_bytes()))
            .limit(Bytes(SPLIT))
            .hint("write ONNX instead"));
        }
        ctx.monitor.phase("rewrite", None);
        // The nodes are counted in ONNX, whatever the format of the result: the other cannot be read here.
        let onnx = dir.join(format!("{}.onnx", self.model.name));
        let data = split.then(|| format!("{}.onnx.data", self.model.name));
        {
            let _busy = ctx.begin(Activity::Computing)?;
            rewrite(&probe.library, &path, self.level, &onnx, data.as_deref(), ctx.monitor)?;
        }
        let before = operators(&input.graph);
        let after = operators(&formats::load(&onnx)?.graph);
        let report = self.report(&before, &after, &probe.version);
        self.tell(ctx, &report);
        save::json(&dir.join("serialize.report.json"), &report)?;
        let result = match self.ort {
            false => onnx,
            true => {
                let ort = dir.join(format!("{}.ort", self.model.name));
                rewrite(&probe.library, &path, self.level, &ort, None, ctx.monitor)?;
                std::fs::remove_file(&onnx).map_err(|e| Error::io("remove", &onnx, e))?;
                ort
            }
        };
        self.hold(ctx, &probe, &path, &result)?;
        if let Some(data) = data.map(|d| dir.join(d)).filter(|d| d.exists()) {
            ctx.monitor.artifact(&self.model.name, &data)?;
        }
        ctx.monitor.artifact(&self.model.name, &result)?;
        Ok(())
    }
}

fn operators(graph: &crate::graph::Graph) -> BTreeMap<String, usize> {
    let mut out = BTreeMap::new();
    graph.nodes().iter().for_each(|n| *out.entry(n.operator_name()).or_insert(0) += 1);
    out
}

impl Serialized {
    fn report(
        &self,
        before: &BTreeMap<String, usize>,
        after: &BTreeMap<String, usize>,
        runtime: &str,
    ) -> Report {
        let isa = Machine::detect().isa().to_string();
        let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
        names.sort_unstable();
        names.dedup();
        let count = |of: &BTreeMap<String, usize>, name: &String| of.get(name).copied().unwrap_or(0);
        let operators: Vec<(String, usize, usize)> =
            names.into_iter().map(|n| (n.clone(), count(before, n), count(after, n))).collect();
        let mut warnings = Vec::new();
        if self.level == Optimization::All {
            warnings.push(format!(
                "level all is tied to the instruction set that it was written on, {isa}: for another machine write it there, or take level extended"
            ));
        }
        let laid_out: Vec<&str> = operators
            .iter()
            .filter(|(n, _, after)| *after > 0 && n.contains("nchwc"))
            .map(|(n, _, _)| n.as_str())
            .collect();
        if !laid_out.is_empty() {
            warnings.push(format!(
                "it holds tensors in blocks of channels of this processor: {}",
                laid_out.join(", ")
            ));
        }
        Report {
            schema_version: 1,
            level: self.level.word(),
            isa,
            runtime: format!("onnxruntime {runtime}"),
            operators,
            warnings,
        }
    }

    fn tell(&self, ctx: &Context<'_>, report: &Report) {
        let sum = |of: fn(&(String, usize, usize)) -> usize| report.operators.iter().map(of).sum::<usize>();
        let changed: Vec<String> = report
            .operators
            .iter()
            .filter(|(_, before, after)| before != after)
            .map(|(name, before, after)| format!("{name} {before} -> {after}"))
            .collect();
        let told = if changed.is_empty() { "no operator changed".into() } else { changed.join(", ") };
        let line = format!("level {}: {} nodes -> {}: {told}", report.level, sum(|o| o.1), sum(|o| o.2));
        ctx.monitor.log(Level::Info, &line);
        report.warnings.iter().for_each(|w| ctx.monitor.log(Level::Warning, w));
    }

    /// Measures the result beside the input. Outputs that differ are an error, and the result goes.
    fn hold(&self, ctx: &Context<'_>, probe: &runtime::Probe, input: &Path, result: &Path) -> Result<()> {
        let subject = |name: &str, path: &Path, exact| Subject {
            name: name.into(),
            path: path.to_string_lossy().into_owned(),
            exact,
        };
        let models = [subject("original", input, false), subject(&self.model.name, result, true)];
        let sampling = Sampling { seconds: Some(SECONDS), rounds: Some(ROUNDS), ..Sampling::default() };
        let what = Interleaved {
            models: &models,
            threads: &[],
            data: self.data.as_deref(),
            sampling: &sampling,
            sessions: false,
        };
        let rows = interleaved(ctx, probe, &what)?;
        match rows.last() {
            Some(row) if row.failures.is_empty() => {
                let off = row.output_error.unwrap_or(0.0);
                ctx.monitor.log(
                    Level::Info,
                    &format!("outputs differ from the input's by {off:.1e} of the largest"),
                );
                Ok(())
            }
            row => {
                let why = row.map_or("it could not be measured".into(), |r| r.failures.join("; "));
                let _ = std::fs::remove_file(result);
                Err(Error::integrity("SERIALIZE-PARITY", format!("the rewritten model is not kept: {why}"))
                    .file(input)
                    .hint("take a lower level"))
            }
        }
    }
}
