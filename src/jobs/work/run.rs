//! Runs a recipe. A recipe and its model enter; a variant, a report of each step and, where the recipe
//! asks for it, measurements leave. Each step begins with what the step before it saved, whether this
//! process computed it or one before a stop, so that both end with the same bits.

mod afford;
mod keep;
mod memo;
mod resolved;
mod steps;
mod stopwatch;

use super::measure::{self, Interleaved};
use super::{Activity, Context, Work};
use crate::data::{DataSet, Shared, TextSet, shared};
use crate::error::{Error, Kind, Result};
use crate::evaluate::samples::Samples;
use crate::export;
use crate::formats::{self, SaveOptions, Tokenizer};
use crate::graph::Graph;
use crate::hardware::Device;
use crate::jobs::request::{Request, Sampling, Subject};
use crate::monitor::{Level, Monitor};
use crate::passes::lower::{Target, lower};
use crate::passes::{self, Ctx, PassReport};
use crate::plan::{Recipe, Step};
use crate::save;
use crate::units::{Bytes, Span};
use afford::Room;
use keep::Inside;
use memo::Remembered;
use resolved::Resolved;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;
use steps::Earlier;
use stopwatch::Trials;

/// The graph in a checkpoint.
const MODEL: &str = "model.onnx";
/// Reasons for what a pass left alone that are spelled out in the log.
const REASONS: usize = 5;

/// The work of [`Request::Run`].
pub(super) struct Run {
    recipe: Recipe,
}

impl Run {
    pub(super) fn new(recipe: &Recipe) -> Run {
        Run { recipe: recipe.clone() }
    }
}

impl Work for Run {
    fn run(&mut self, ctx: &Context<'_>) -> Result<()> {
        let recipe = &self.recipe;
        let notes = recipe.check()?;
        let model = ctx.info.directory.join(&recipe.model);
        ctx.monitor.phase("read the model", None);
        let source = formats::load(&model)?;
        let format = source.facts.format;
        let bind = |field: &str, spec: &Option<String>| -> Result<Option<Samples>> {
            let Some(spec) = spec else { return Ok(None) };
            let tokenizer = || Tokenizer::open(&model);
            Samples::open(spec, &source.graph, &tokenizer, recipe.data.length)
                .map(Some)
                .map_err(|e| e.at_field(format!("data.{field} \"{spec}\"")).file(&model))
        };
        let calibration = bind("calibration", &recipe.data.calibration)?;
        let train = bind("train", &recipe.data.train)?;
        if recipe.measure
            && let Some(eval) = &recipe.data.eval
        {
            labelled(eval)?;
        }
        if let (Some(_), Some(spec), Some(eval)) = (&calibration, &recipe.data.calibration, &recipe.data.eval)
            && let Some(told) = apart(spec, eval)?
        {
            ctx.monitor.log(Level::Warning, &told);
        }
        if ctx.done.is_none() {
            notes.iter().chain(&source.facts.warnings).for_each(|n| ctx.monitor.log(Level::Warning, n));
        }
        let resolved = Resolved::settle(ctx, recipe, &source.facts, calibration.as_ref(), train.as_ref())?;
        save::sweep(&ctx.job.dir.join("artifacts"));
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(resolved.threads)
            .build()
            .map_err(|e| Error::internal("THREADS", format!("cannot start threads: {e}")))?;

        let target = match &recipe.goal.device {
            Some(name) => Some((name.clone(), Device::isa_of(name, ctx.paths)?)),
            None => None,
        };
        let steps = recipe.unrolled()?;
        let original = source.graph.clone();
        let mut saved = ctx.done.map(|c| c.dir.clone());
        let mut graph = match &saved {
            Some(dir) => formats::load(&dir.join(MODEL))?.graph,
            None => source.graph,
        };
        let first = usize::try_from(ctx.first_step()).unwrap_or(usize::MAX);
        let earlier = Earlier::of(ctx, resolved.shared(target.as_ref()));
        for (index, step) in steps.iter().enumerate().skip(first) {
            // What a run ends with is always its own.
            let begun = (index + 1 < steps.len()).then(|| &steps[..=index]);
            if let Some(dir) = begun.and_then(|begun| earlier.take(begun)) {
                graph = formats::load(&dir.join(MODEL))?.graph;
                saved = Some(dir);
                continue;
            }
            let inside = Inside::of(ctx, index as u64)?;
            let memo = Remembered::of(ctx, &graph, resolved.conditions());
            let rebound = |data: &Option<Samples>| data.as_ref().map(|d| d.rebound(&graph)).transpose();
            let (calibration, train) = (rebound(&calibration)?, rebound(&train)?);
            let threads = recipe.threads.unwrap_or(1);
            let trials = Trials::of(ctx, &graph, threads, calibration.as_ref());
            let latency = |pruned: &Graph| trials.part(pruned);
            let mut room = Ctx {
                monitor: ctx.monitor,
                seed: recipe.seed,
                threads: resolved.threads,
                calibration: calibration.as_ref(),
                train: train.as_ref(),
                original: (index > 0).then_some(&original),
                keep: Some(&inside),
                memo: Some(&memo),
                latency: Some(&latency),
                target: target.as_ref().map(|(name, isa)| (name.as_str(), isa.as_str())),
                trial: Some(&trials),
            };
            let dir = pool.install(|| compute(ctx, index, step, &graph, &mut room));
            let dir = dir.map_err(|e| e.file(&model))?;
            inside.clear();
            if let Some(begun) = begun {
                earlier.put(begun, &dir);
            }
            drop(trials);
            graph = formats::load(&dir.join(MODEL))?.graph;
            saved = Some(dir);
        }
        if format != "onnx" {
            // Steps see the operators of the checkpoint whole; a variant is for a runtime.
            let (lowered, report) = lower(&graph, Target::Ort).map_err(|e| e.file(&model))?;
            save::json(&ctx.job.dir.join("artifacts/lower.report.json"), &report)?;
            (graph, saved) = (lowered, None);
        }
        let artifact = publish(ctx, recipe, &graph, saved.as_deref())?;
        let mut notes = Vec::new();
        export::companions(&model, format, &artifact, &mut notes)?;
        notes.iter().for_each(|n| ctx.monitor.log(Level::Warning, n));
        drop(graph);
        if recipe.measure {
            self.measure(ctx, &model, &artifact)?;
        }
        Ok(())
    }
}

impl Run {
    /// Measures the model and its variant. The variant stands, whether it can be measured or not.
    fn measure(&self, ctx: &Context<'_>, model: &Path, artifact: &Path) -> Result<()> {
        let recipe = &self.recipe;
        let probe = match crate::runtime::ensure(ctx.paths, ctx.monitor) {
            Ok(probe) => probe,
            Err(e) if matches!(e.kind(), Kind::Stopped | Kind::Interrupted) || save::is_disk_full(&e) => {
                return Err(e);
            }
            Err(e) => {
                let message = format!("measuring was not possible, the variant is complete: {e}");
                ctx.monitor.log(Level::Warning, &message);
                return Ok(());
            }
        };
        let exact = recipe.steps.iter().all(|s| s.pass == "optimize");
        let subject = |name: &str, path: &Path, exact| Subject {
            name: name.into(),
            path: path.to_string_lossy().into_owned(),
            exact,
        };
        let original = export::ready(model, ctx.paths, ctx.monitor)?;
        let models = [subject("original", &original, false), subject(&recipe.name, artifact, exact)];
        measure::interleaved(
            ctx,
            &probe,
            &Interleaved {
                models: &models,
                threads: recipe.threads.as_slice(),
                data: recipe.data.eval.as_deref(),
                sampling: &Sampling::default(),
                sessions: false,
            },
        )
        .map(drop)
    }
}

/// Evaluation data must be there, with labels, before hours are spent on what it shall judge.
fn labelled(spec: &str) -> Result<()> {
    let named = |e: Error| e.at_field(format!("data.eval \"{spec}\""));
    if TextSet::is_text(spec) {
        // Language models are judged on texts without labels.
        return TextSet::open(spec).map(drop).map_err(named);
    }
    let data = DataSet::open(spec).map_err(named)?;
    if data.labels().is_empty() {
        return Err(Error::usage("EVAL-LABELS", "these data have no labels")
            .field(format!("data.eval \"{spec}\""))
            .hint("name the label column or use other data"));
    }
    Ok(())
}

/// Part of the calibration data that may be evaluation data by chance.
const BY_CHANCE: f64 = 0.05;

/// Refuses data that a model is both fitted to and judged by, which shows it better than it is; a note
/// where only a few rows are in both.
fn apart(calibration: &str, eval: &str) -> Result<Option<String>> {
    let Shared { rows, of } = shared(calibration, eval)?;
    if rows as f64 > BY_CHANCE * of as f64 {
        return Err(Error::invalid("DATA-SHARED", "calibration data are evaluation data as well")
            .field("data.calibration")
            .found(format!("{rows} of {of} rows are in \"{eval}\""))
            .hint("name other rows, such as #0..256 for one and #256.. for the other"));
    }
    Ok((rows > 0).then(|| format!("{rows} of {of} calibration rows are evaluation rows as well")))
}

/// Computes one step and saves its result; returns the directory of the checkpoint.
fn compute(
    ctx: &Context<'_>,
    index: usize,
    step: &Step,
    graph: &Graph,
    room: &mut Ctx<'_>,
) -> Result<PathBuf> {
    let number = index as u64;
    let pass = passes::by_name(&step.pass, &step.settings).map_err(|e| e.field(format!("step[{index}]")))?;
    ctx.monitor.set_step(number);
    let activity = if pass.measures() { Activity::Measuring } else { Activity::Computing };
    let _busy = ctx.begin(activity)?;
    ctx.monitor.phase(pass.name(), None);
    pass.check(graph, room)?;
    let estimate = pass.estimate(graph);
    ctx.monitor.log(
        Level::Info,
        &format!(
            "{} needs about {} of time, {} of memory and {} of disk",
            pass.name(),
            Span(estimate.seconds),
            estimate.memory,
            estimate.disk
        ),
    );
    Room::here(ctx).fits(pass.name(), &estimate)?;
    let begin = Instant::now();
    let (graph, report) = pass.run(graph, room)?;
    tell(ctx.monitor, &report, begin.elapsed().as_secs_f64());
    save::json(&ctx.job.report_path(index, pass.name()), &report)?;
    ctx.monitor.phase("save", None);
    let options = SaveOptions { monitor: ctx.monitor, ..SaveOptions::default() };
    let checkpoint = ctx
        .checkpoints
        .save(number, |dir| formats::save_with(&graph, &dir.join(MODEL), &options).map(drop))?;
    ctx.monitor.checkpoint(number, &checkpoint.dir)?;
    ctx.monitor.check()?;
    Ok(checkpoint.dir)
}

/// What a pass did, in a few lines.
fn tell(monitor: &dyn Monitor, report: &PassReport, seconds: f64) {
    let PassReport { pass, applied, skipped, facts, .. } = report;
    let mut by_rule: BTreeMap<&str, usize> = BTreeMap::new();
    applied.iter().for_each(|a| *by_rule.entry(&a.rule).or_default() += 1);
    let rules: Vec<String> = by_rule.iter().map(|(rule, n)| format!("{n} x {rule}")).collect();
    let done = if rules.is_empty() { "changed nothing".to_string() } else { rules.join(", ") };
    let level = if applied.is_empty() { Level::Warning } else { Level::Info };
    monitor.log(level, &format!("{pass}: {done}; {} left alone; {}", skipped.len(), Span(seconds)));
    let mut reasons: BTreeMap<(&str, &str), (usize, &str)> = BTreeMap::new();
    for s in skipped {
        reasons.entry((&s.rule, &s.reason)).or_insert((0, &s.target)).0 += 1;
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
    for ((rule, reason), (count, target)) in reasons.iter().take(REASONS) {
        monitor.log(Level::Info, &format!("{pass}: {rule} left {count} alone ({target}): {reason}"));
    }
    if reasons.len() > REASONS {
        monitor.log(Level::Info, &format!("{pass}: further reasons are in the report"));
    }
    let facts: Vec<String> = facts.iter().map(|(name, value)| fact(name, *value)).collect();
    if !facts.is_empty() {
        monitor.log(Level::Info, &format!("{pass}: {}", facts.join(", ")));
    }
}

fn fact(name: &str, value: f64) -> String {
    match name.contains("bytes") && value >= 0.0 {
        true => format!("{name} {}", Bytes(value as u64)),
        false => format!("{name} {value}"),
    }
}

/// Puts the result under its name and announces it. A checkpoint of one file is linked, not copied.
fn publish(ctx: &Context<'_>, recipe: &Recipe, graph: &Graph, saved: Option<&Path>) -> Result<PathBuf> {
    let path = ctx.job.dir.join(Request::artifact_of(recipe));
    ctx.monitor.phase("write the variant", None);
    let data = match saved.filter(|dir| link(dir, &path)) {
        Some(_) => None,
        None => {
            let options = SaveOptions { monitor: ctx.monitor, ..SaveOptions::default() };
            formats::save_with(graph, &path, &options)?.data
        }
    };
    if let Some((data, _)) = data {
        ctx.monitor.artifact(&recipe.name, &data)?;
    }
    ctx.monitor.artifact(&recipe.name, &path)?;
    Ok(path)
}

/// Links the model of a checkpoint to `path`, where it has no further files and the file system can.
fn link(checkpoint: &Path, path: &Path) -> bool {
    let own = |name: &std::ffi::OsStr| name == MODEL || name == "manifest.json";
    let alone = fs::read_dir(checkpoint).is_ok_and(|mut d| d.all(|e| e.is_ok_and(|e| own(&e.file_name()))));
    if !alone {
        return false;
    }
    let _ = fs::remove_file(path);
    fs::hard_link(checkpoint.join(MODEL), path).is_ok()
        && path.parent().is_some_and(|p| save::sync_directory(p).is_ok())
}
