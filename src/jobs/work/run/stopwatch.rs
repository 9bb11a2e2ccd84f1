//! Latency inside a step: graphs enter, measured in a fresh process beside the step's input; the part of
//! its latency leaves. Files go when the stopwatch does.

use super::measure::{Interleaved, prepared};
use super::{Context, Target, lower};
use crate::error::{Error, Result};
use crate::evaluate::measure::{MeasureOptions, compare_variants};
use crate::formats::{self, SaveOptions};
use crate::graph::Graph;
use crate::jobs::request::{Sampling, Subject};
use crate::monitor::{Level, Monitor};
use crate::runtime;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Seconds of sampling of each of the two models, and rounds.
const SECONDS: f64 = 1.5;
const ROUNDS: usize = 6;

/// Measures graphs against the input of a step.
pub(super) struct Stopwatch<'a> {
    ctx: &'a Context<'a>,
    threads: usize,
    dir: TempDir,
    base: PathBuf,
}

impl<'a> Stopwatch<'a> {
    /// Beside `graph`, on so many threads.
    pub(super) fn of(ctx: &'a Context<'a>, graph: &Graph, threads: usize) -> Result<Stopwatch<'a>> {
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

    /// Median latency of `graph` over that of the input.
    pub(super) fn part(&self, graph: &Graph) -> Result<f64> {
        let path = self.dir.path().join("try.onnx");
        self.save(graph, &path)?;
        let probe = runtime::ensure(self.ctx.paths, self.ctx.monitor)?;
        let subject = |name: &str, path: &Path| Subject {
            name: name.into(),
            path: path.to_string_lossy().into_owned(),
            exact: false,
        };
        let models = [subject("input", &self.base), subject("pruned", &path)];
        let sampling = Sampling::default();
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
