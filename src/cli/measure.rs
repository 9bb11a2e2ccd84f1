//! `bench`, and `eval` on labelled numbers: model files measured by a job, interleaved.

use super::context::Context;
use super::follow;
use super::inspect::Binding;
use crate::error::{Error, Result};
use crate::evaluate::measurement::Measurement;
use crate::jobs::Request;
use crate::jobs::request::{Sampling, Subject};
use crate::runtime::provider;
use std::path::Path;

/// How long to measure.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Measuring")]
pub(super) struct Effort {
    /// Seconds of sampling for each model over all rounds [default: 3]
    #[arg(long, value_name = "N")]
    seconds: Option<f64>,
    /// Rounds through all models [default: 10]
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Execution provider of the runtime: cpu, xnnpack, dnnl, openvino, ... or auto [default: cpu]
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
}

impl Effort {
    /// As a request states it.
    pub(super) fn sampling(&self) -> Result<Sampling> {
        let fault = |field: &str, found: String, limit: &str| {
            Err(Error::usage("SAMPLING", "this is no way to measure").field(field).found(found).limit(limit))
        };
        if let Some(seconds) = self.seconds.filter(|s| !(*s > 0.0 && *s <= 3600.0)) {
            return fault("--seconds", seconds.to_string(), "more than 0, at most 3600");
        }
        if let Some(rounds) = self.rounds.filter(|r| !(1..=10_000).contains(r)) {
            return fault("--rounds", rounds.to_string(), "1 to 10000");
        }
        if let Some(provider) = &self.provider {
            provider::check(provider)?;
        }
        Ok(Sampling {
            seconds: self.seconds,
            rounds: self.rounds,
            provider: self.provider.clone(),
            ..Sampling::default()
        })
    }
}

/// How long to measure, and on what input.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct SamplingArgs {
    #[command(flatten)]
    effort: Effort,
    #[command(flatten)]
    binding: Binding,
}

impl SamplingArgs {
    fn sampling(&self) -> Result<Sampling> {
        Ok(Sampling { bind: self.binding.sizes()?, ..self.effort.sampling()? })
    }
}

/// Measure latency, throughput and memory of models, interleaved, each in processes of its own
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  tinsmith bench model.onnx int8.onnx --threads 1,2\n  tinsmith bench model.onnx --format json > monday.json"
)]
pub(super) struct Bench {
    /// Models; outputs are checked against the first
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub(super) fn bench(context: &Context, args: Bench) -> anyhow::Result<()> {
    finish(context, &measure(context, &args.models, None, &args.sampling)?)
}

/// Quality, latency and memory of models on labelled data.
pub(super) fn accuracy(
    context: &Context,
    models: &[String],
    data: String,
    sampling: &SamplingArgs,
) -> anyhow::Result<()> {
    finish(context, &measure(context, models, Some(data), sampling)?)
}

/// Shows the figures; fails where nothing could be measured.
fn finish(context: &Context, measurements: &[Measurement]) -> anyhow::Result<()> {
    context.show(measurements)?;
    match measurements.iter().find(|m| m.latency_ms.is_none() && !m.failures.is_empty()) {
        Some(m) if measurements.iter().all(|m| m.latency_ms.is_none() && m.quality.is_none()) => {
            Err(Error::unsupported("MEASURE", format!("{}: {}", m.variant, m.failures.join("; "))).into())
        }
        _ => Ok(()),
    }
}

/// Measures `models` against each other in one job.
pub(super) fn measure(
    context: &Context,
    models: &[String],
    data: Option<String>,
    sampling: &SamplingArgs,
) -> anyhow::Result<Vec<Measurement>> {
    let request = request(models, context.thread_list(), data, sampling.sampling()?)?;
    Ok(follow::submit_and_follow(context, &request)?.state.measurements)
}

fn request(
    models: &[String],
    threads: &[usize],
    data: Option<String>,
    sampling: Sampling,
) -> Result<Request> {
    for model in models {
        std::fs::metadata(model).map_err(|e| Error::io("read the model", model, e))?;
    }
    let names = names(models);
    let subjects = models.iter().zip(&names).map(|(path, name)| Subject::new(name, path)).collect();
    Ok(Request::Measure {
        name: names.join(" "),
        models: subjects,
        threads: threads.to_vec(),
        data,
        sampling,
        after: Vec::new(),
    })
}

/// A name for each path: the file's stem, with as many directories before it as tell them apart.
pub(super) fn names(paths: &[String]) -> Vec<String> {
    let parts = |path: &str, count: usize| {
        let path = Path::new(path);
        let mut names: Vec<String> = path
            .with_extension("")
            .components()
            .rev()
            .filter(|c| matches!(c, std::path::Component::Normal(_)))
            .take(count)
            .map(|c| c.as_os_str().to_string_lossy().into_owned())
            .collect();
        names.reverse();
        names.join("/")
    };
    let mut names = Vec::new();
    for count in 1..=8 {
        names = paths.iter().map(|p| parts(p, count)).collect::<Vec<_>>();
        let unique: std::collections::HashSet<&String> = names.iter().collect();
        if unique.len() == names.len() {
            return names;
        }
    }
    names.iter().enumerate().map(|(i, n)| format!("{n}#{}", i + 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_named_by_what_tells_them_apart() {
        let names = |paths: &[&str]| names(&paths.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(names(&["a/m.onnx", "int8.onnx"]), ["m", "int8"]);
        assert_eq!(names(&["a/m.onnx", "b/m.onnx"]), ["a/m", "b/m"]);
        assert_eq!(names(&["m.onnx", "m.onnx"]), ["m#1", "m#2"]);
    }
}
