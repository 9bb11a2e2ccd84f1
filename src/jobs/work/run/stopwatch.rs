//! Latency inside a step: graphs enter, measured in a fresh process beside the step's input; the part of
//! its latency leaves. Files go when the stopwatch does.

use super::measure::{Interleaved, prepared};
use super::{Context, Target, lower};
use crate::error::{Error, Result};
use crate::evaluate::measure::{MeasureOptions, compare_variants};
use crate::evaluate::samples::Samples;
use crate::evaluate::tasks::{Engine, agreement};
use crate::formats::{self, SaveOptions};
use crate::graph::{Graph, Type};
use crate::jobs::request::{Sampling, Subject};
use crate::monitor::{Level, Monitor};
use crate::ops::Dim;
use crate::passes::Trial;
use crate::runtime;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tempfile::TempDir;

/// Seconds of sampling of each of the two models, and rounds.
const SECONDS: f64 = 1.5;
const ROUNDS: usize = 6;

/// Rows of tokens that two models are held against each other on.
const ROWS: usize = 8;
/// Open sizes of a decoder, and what they are while it writes a token.
const TOKEN: [(&str, i64); 2] = [("seq", 1), ("past", 128)];

/// Measures and tries graphs beside the input of a step, which is saved when first asked.
pub(super) struct Trials<'a> {
    ctx: &'a Context<'a>,
    graph: &'a Graph,
    threads: usize,
    calibration: Option<&'a Samples>,
    watch: OnceLock<Stopwatch<'a>>,
}

impl<'a> Trials<'a> {
    pub(super) fn of(
        ctx: &'a Context<'a>,
        graph: &'a Graph,
        threads: usize,
        calibration: Option<&'a Samples>,
    ) -> Trials<'a> {
        Trials { ctx, graph, threads, calibration, watch: OnceLock::new() }
    }

    fn watch(&self) -> Result<&Stopwatch<'a>> {
        if self.watch.get().is_none() {
            let _ = self.watch.set(Stopwatch::of(self.ctx, self.graph, self.threads)?);
        }
        self.watch.get().ok_or_else(|| Error::internal("STOPWATCH", "the stopwatch was not kept"))
    }

    /// Median latency of an inference as a part of the input's.
    pub(super) fn part(&self, graph: &Graph) -> Result<f64> {
        self.watch()?.part(graph, Sampling::default())
    }
}

impl Trial for Trials<'_> {
    fn latency(&self, graph: &Graph) -> Result<f64> {
        let open = |name: &str| {
            self.graph.inputs().iter().any(|v| match &self.graph.value(*v).ty {
                Some(Type::Tensor { shape: Some(shape), .. }) => shape.contains(&Dim::symbol(name)),
                _ => false,
            })
        };
        let mut sampling = Sampling::default();
        if TOKEN.iter().all(|(name, _)| open(name)) {
            sampling.bind = TOKEN.iter().map(|(name, n)| (name.to_string(), *n)).collect();
        }
        self.watch()?.part(graph, sampling)
    }

    fn agreement(&self, graph: &Graph) -> Result<Option<f64>> {
        let rows = self.calibration.and_then(|c| c.token_rows(ROWS));
        rows.map(|rows| self.watch()?.agreement(graph, rows)).transpose()
    }
}

/// Measures graphs against the input of a step.
struct Stopwatch<'a> {
    ctx: &'a Context<'a>,
    threads: usize,
    dir: TempDir,
    base: PathBuf,
}

impl<'a> Stopwatch<'a> {
    /// Beside `graph`, on so many threads.
    fn of(ctx: &'a Context<'a>, graph: &Graph, threads: usize) -> Result<Stopwatch<'a>> {
        let root = ctx.job.dir.join("artifacts");
        let dir = tempfile::Builder::new()
            .prefix(crate::save::TEMP_PREFIX)
            .tempdir_in(&root)
            .map_err(|e| Error::io("make a directory in", &root, e))?;
        let base = dir.path().join("base.onnx");
        let watch = Stopwatch { ctx, threads, dir, base };
        watch.save(graph, &watch.base)?;
        Ok(watch)
    }

    fn save(&self, graph: &Graph, path: &Path) -> Result<()> {
        let (lowered, _) = lower(graph, Target::Ort)?;
        let options = SaveOptions { monitor: self.ctx.monitor, ..SaveOptions::default() };
        formats::save_with(&lowered, path, &options).map(drop)
    }

    /// Part of the positions of `rows` behind which `graph` finds the token that the input does.
    fn agreement(&self, graph: &Graph, rows: Vec<Vec<u32>>) -> Result<f64> {
        let path = self.dir.path().join("try.onnx");
        self.save(graph, &path)?;
        let library = runtime::ensure(self.ctx.paths, self.ctx.monitor)?.library;
        let engine = Engine::OnnxRuntime(library);
        agreement([&self.base, &path], rows, engine, self.threads, self.ctx.monitor)
    }

    /// Median latency of `graph` over that of the input.
    fn part(&self, graph: &Graph, sampling: Sampling) -> Result<f64> {
        let path = self.dir.path().join("try.onnx");
        self.save(graph, &path)?;
        let probe = runtime::ensure(self.ctx.paths, self.ctx.monitor)?;
        let subject = |name: &str, path: &Path| Subject {
            name: name.into(),
            path: path.to_string_lossy().into_owned(),
            exact: false,
        };
        let models = [subject("input", &self.base), subject("pruned", &path)];
        let what =
            Interleaved { models: &models, threads: &[], data: None, sampling: &sampling, sessions: false };
        let (variants, options) = prepared(self.ctx, &probe.library, &what)?;
        let options = MeasureOptions { threads: self.threads, seconds: SECONDS, rounds: ROUNDS, ..options };
        let rows = compare_variants(&variants, &options, self.ctx.monitor)?;
        let p50 = |i: usize| rows.get(i).and_then(|r| r.latency_ms.as_ref()).map(|l| l.p50);
        match (p50(0), p50(1)) {
            (Some(before), Some(after)) if before > 0.0 => {
                let message = format!("measured {before:.3} ms -> {after:.3} ms");
                self.ctx.monitor.log(Level::Info, &message);
                Ok(after / before)
            }
            _ => {
                let failures = rows.iter().flat_map(|r| &r.failures).cloned().collect::<Vec<_>>().join("; ");
                Err(Error::unsupported("PRUNE-LATENCY", "the latency could not be measured")
                    .found(failures)
                    .hint("state target = { macs = .. } instead"))
            }
        }
    }
}
