//! `demo`: the whole loop on the sample that ships with the program, as ordinary jobs: one for each
//! variant, and one that measures all of them together and waits in the queue for the others to end.

use super::context::Context;
use super::follow;
use super::measure::Effort;
use super::{OtherFace, Workbench};
use crate::analysis::{self, Options, Summary};
use crate::compare::{self, DEFAULT_MARGIN};
use crate::error::{Error, Kind, Result};
use crate::fetch;
use crate::hardware::Device;
use crate::jobs::request::Subject;
use crate::jobs::{self, JobHandle, JobState, Request, Status};
use crate::plan::{self, DataSpec, DeviceFacts, Goal, Question, Recipe, Step};
use crate::units::{Bytes, Count};
use std::io::IsTerminal;
use std::path::Path;

/// The whole loop on a sample: inspect, recommend, optimise, quantise, prune, measure, compare
///
/// A small residual net on handwritten digits ships with the program. The workbench opens on it with
/// the runs under way; without a terminal, or with --headless, progress goes to stderr and the final
/// table to stdout.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tinsmith demo\n  tinsmith demo --headless --format md > demo.md")]
pub(super) struct Args {
    /// Do not open the workbench: print progress and the final table
    #[arg(long)]
    headless: bool,
    #[command(flatten)]
    effort: Effort,
}

const CALIBRATION: &str = "digits:train#0..256";
const EVALUATION: &str = "digits:test";
/// Proposals that are told of.
const TOLD: usize = 3;

pub(super) fn run(
    context: &Context,
    args: Args,
    workbench: OtherFace,
    color: Option<bool>,
) -> anyhow::Result<()> {
    let sampling = args.effort.sampling()?;
    let model = fetch::sample(&context.paths)?;
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if args.headless || !terminal {
        introduce(context, &model)?;
    }
    let (runs, measure) = submit(context, &model, sampling)?;
    jobs::dispatch(&context.paths, &context.settings)?;
    if args.headless || !terminal {
        return headless(context, &runs, &measure);
    }
    let lines = (workbench.open)(Workbench {
        paths: context.paths.clone(),
        settings: context.settings.clone(),
        model: Some(model),
        color,
        runs: true,
        data: data(),
    })?;
    lines.iter().try_for_each(|line| context.write(&format!("{line}\n")))
}

fn data() -> DataSpec {
    DataSpec { calibration: Some(CALIBRATION.into()), eval: Some(EVALUATION.into()), ..DataSpec::default() }
}

/// What the model is, and what is proposed for it on this machine.
fn introduce(context: &Context, model: &Path) -> Result<()> {
    let progress = super::progress::Progress::new(context);
    let summary: Summary = analysis::summarize_in_child(model, &Options::default(), &progress)?;
    context.note(&format!(
        "{}: {} nodes, {} parameters, {} multiply-accumulates, {} file, {} of activations",
        summary.name,
        summary.layers.len(),
        Count(summary.parameters),
        Count(summary.macs),
        Bytes(summary.file_bytes),
        Bytes(summary.peak_activation_bytes),
    ));
    let device = Device::named("host", &context.paths)?;
    let answer = plan::recommend(&Question {
        summary: &summary,
        model: &model.to_string_lossy(),
        device: &DeviceFacts::from(&device),
        goal: &Goal::default(),
        data: &data(),
        measured_ms: None,
        tried: &[],
        seed: context.seed,
    });
    for p in answer.proposals.iter().take(TOLD) {
        let speed = p.predicted_speedup.map_or(String::new(), |s| format!("{s:.1}x as fast, "));
        context.note(&format!(
            "proposal {}: {}: predicted {speed}{}",
            p.rank,
            p.name,
            Bytes(p.predicted_file_bytes)
        ));
    }
    Ok(())
}

/// Variants of the demo: name, steps, and whether they must compute what the original computes. Norms
/// are folded before the quantiser sees the graph; a cut without training after it is spread over all
/// layers, because one that picks the smallest norms of the whole net takes too much of a few.
fn variants() -> Vec<(&'static str, Vec<Step>, bool)> {
    let optimize = || Step::new("optimize");
    let prune =
        |ratio: f64| Step::new("prune").with("criterion", "l2").with("ratio", ratio).with("scope", "layer");
    let int8 = || Step::new("quantize").with("scheme", "static-int8");
    vec![
        ("optimized", vec![optimize()], true),
        ("static-int8", vec![optimize(), int8()], false),
        ("pruned-20", vec![prune(0.2), optimize()], false),
        ("pruned-40", vec![prune(0.4), optimize()], false),
        ("pruned-20+static-int8", vec![prune(0.2), optimize(), int8()], false),
    ]
}

/// Queues a job for each variant and one that measures all, after them.
fn submit(
    context: &Context,
    model: &Path,
    sampling: jobs::request::Sampling,
) -> Result<(Vec<JobHandle>, JobHandle)> {
    let path = model.to_string_lossy();
    let queue = |request: &Request| {
        let id = jobs::submit(&context.paths, request)?;
        jobs::open(&context.paths, id.as_str())
    };
    let mut models = vec![Subject::new("original", path.clone())];
    let mut runs = Vec::new();
    for (name, steps, exact) in variants() {
        let mut recipe = Recipe::new(name, &path);
        recipe.seed = context.seed;
        recipe.threads = context.threads()?;
        recipe.data = data();
        recipe.steps = steps;
        let artifact = Request::artifact_of(&recipe);
        let job = queue(&Request::Run { recipe })?;
        let path = job.dir.join(artifact).to_string_lossy().into_owned();
        models.push(Subject { name: name.into(), path, exact });
        runs.push(job);
    }
    let measure = queue(&Request::Measure {
        name: "compare all".into(),
        models,
        threads: context.threads()?.into_iter().collect(),
        data: Some(EVALUATION.into()),
        sampling,
        after: runs.iter().map(|j| j.id.clone()).collect(),
    })?;
    Ok((runs, measure))
}

/// Follows all jobs and shows the comparison. Fails with the first job that failed, after the table.
fn headless(context: &Context, runs: &[JobHandle], measure: &JobHandle) -> anyhow::Result<()> {
    let all: Vec<JobHandle> = runs.iter().chain([measure]).cloned().collect();
    let states = follow::follow_all(context, &all)?;
    let judged = |(job, state): (&JobHandle, &JobState)| follow::judge(job, state);
    let (last, made) = states.split_last().ok_or_else(|| Error::internal("DEMO", "no job was followed"))?;
    if last.status == Status::Finished {
        let comparison = compare::compare(&last.measurements, None, &Goal::default(), DEFAULT_MARGIN)?;
        context.show(&comparison)?;
    }
    runs.iter().zip(made).try_for_each(judged)?;
    judged((measure, last))?;
    match last.measurements.iter().find(|m| m.latency_ms.is_none()) {
        Some(m) => Err(Error::new(Kind::Gate, "DEMO", format!("{} could not be measured", m.variant)).into()),
        None => Ok(()),
    }
}
