//! Latency, memory, accuracy and output error of model files on ONNX Runtime. Each variant lives in a
//! fresh child process of its own; rounds go through the variants in rotating order, so that what
//! disturbs the machine disturbs all of them alike. Raw samples are kept.
//!
//! A variant that fails gets its reasons in `failures`; the others stand. A variant that is meant to
//! compute the same as the reference and does not, or that yields what is not a number, has no speed.

mod profile;
mod record;
mod rewrite;
mod subject;

pub use profile::{Profile, profile};
pub use record::{Recorded, RecordedPort, record};
pub use rewrite::rewrite;
pub(super) use subject::handler;

use super::measurement::{Conditions, Measurement, SCHEMA_VERSION};
use super::noise::Watch;
use super::parity::parity;
use super::tasks::{self, Engine, Task, TaskOptions};
use super::{accuracy, stats};
use crate::child::{Child, Limits};
use crate::data::{DataSet, TextSet};
use crate::error::{Error, Kind, Result};
use crate::hardware::Machine;
use crate::monitor::{Monitor, Quiet};
use crate::runtime::{Library, Optimization, SessionOptions, SessionSettings, provider};
use crate::save;
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use subject::{Answer, Bound, Loaded, Question};

/// What analysis knows of a file and measuring does not; copied into the measurement.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Scalar weights.
    pub parameters: u64,
    /// Multiply-accumulates of one inference.
    pub macs: u64,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Peak of live activations.
    pub peak_activation_bytes: u64,
    /// Bytes of the external data files.
    pub external_bytes: u64,
}

/// A model file to measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VariantSpec {
    /// Name, such as `static-int8`.
    pub name: String,
    /// ONNX file.
    pub path: PathBuf,
    /// Whether it is meant to compute the same as the reference, which is the first variant.
    pub exact: bool,
    /// What analysis knows of it.
    pub facts: Facts,
    /// Session settings of its own, in the place of those of the options.
    pub session: Option<SessionSettings>,
}

impl VariantSpec {
    /// A variant that may differ from the reference.
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>) -> VariantSpec {
        VariantSpec {
            name: name.into(),
            path: path.into(),
            exact: false,
            facts: Facts::default(),
            session: None,
        }
    }
    /// The same, meant to compute what the reference computes.
    pub fn exact(mut self) -> VariantSpec {
        self.exact = true;
        self
    }
}

/// How to measure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeasureOptions {
    /// The runtime library, probed before.
    pub library: Library,
    /// Threads within an operator.
    pub threads: usize,
    /// Whether threads are pinned, each to a CPU of its own, where there are enough.
    pub pin: bool,
    /// Whether idle threads of the runtime spin.
    pub spinning: bool,
    /// Graph rewriting by the runtime.
    pub optimization: Optimization,
    /// Execution provider of the runtime.
    pub provider: String,
    /// Rounds through all variants.
    pub rounds: usize,
    /// Seconds of sampling for each variant over all rounds.
    pub seconds: f64,
    /// Shapes of inputs by name. An input that is not named has 1 where its batch varies and what
    /// `dimensions` says elsewhere.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Sizes of named dimensions. One that is neither here nor fixed by a shape is an error that names
    /// it, the first dimension aside.
    pub dimensions: BTreeMap<String, usize>,
    /// Labelled data for accuracy; none is measured without.
    pub eval: Option<String>,
    /// Rows in a batch of the evaluation.
    pub eval_batch: usize,
    /// Difference from the reference, relative to the largest output, that an exact variant may have.
    pub tolerance: f64,
    /// Seed of random inputs and of the bootstrap.
    pub seed: u64,
    /// Address space of each child, unlimited when absent.
    pub memory: Option<u64>,
    /// Longest time of one answer of a child.
    pub wall: Duration,
}

impl MeasureOptions {
    /// One thread, pinned; 10 rounds of 3 seconds a variant in all; no data.
    pub fn new(library: Library) -> MeasureOptions {
        MeasureOptions {
            library,
            threads: 1,
            pin: true,
            spinning: true,
            optimization: Optimization::All,
            provider: provider::CPU.into(),
            rounds: 10,
            seconds: 3.0,
            shapes: BTreeMap::new(),
            dimensions: BTreeMap::new(),
            eval: None,
            eval_batch: 32,
            tolerance: 1e-4,
            seed: 7,
            memory: None,
            wall: Duration::from_secs(600),
        }
    }

    /// The settings of a session of its own, or those that the options state.
    fn settings(&self, own: Option<&SessionSettings>) -> SessionSettings {
        own.cloned().unwrap_or_else(|| SessionSettings {
            provider: self.provider.clone(),
            threads: self.threads,
            spinning: self.spinning,
            optimization: self.optimization,
            ..SessionSettings::default()
        })
    }

    /// The CPUs that a session with `settings` is pinned to. Threads of branches run where they like.
    fn cpus(&self, settings: &SessionSettings, machine: &Machine) -> Vec<usize> {
        match self.pin && settings.branches <= 1 {
            true => cpus_for(settings.threads, machine),
            false => Vec::new(),
        }
    }
}

/// A variant while it is measured.
struct Subject<'a> {
    spec: &'a VariantSpec,
    child: Option<Child>,
    watch: Watch,
    loaded: Option<Loaded>,
    samples: Vec<f64>,
    outputs: Option<Vec<(String, Tensor)>>,
    row: Measurement,
}

impl Subject<'_> {
    fn fail(&mut self, what: &str, e: &Error) -> Result<()> {
        if matches!(e.kind(), Kind::Stopped | Kind::Interrupted) {
            return Err(Error::new(e.kind(), e.code(), e.message()));
        }
        self.row.failures.push(format!("failed: {what}: {e}"));
        self.child = None;
        Ok(())
    }

    fn ask(&mut self, question: &Question, monitor: &dyn Monitor) -> Option<Result<Answer>> {
        let child = self.child.as_mut()?;
        Some(child.ask(question, &Quiet(monitor), &mut |_| Ok(())))
    }
}

/// Measures every variant. The first one is the reference for outputs. Rows come in the order of
/// `variants`, whatever became of them.
///
/// # Errors
/// `Usage` for options that cannot hold; `Stopped` when asked. What goes wrong with one variant stands
/// in its row.
pub fn compare_variants(
    variants: &[VariantSpec],
    options: &MeasureOptions,
    monitor: &dyn Monitor,
) -> Result<Vec<Measurement>> {
    check(options)?;
    if let Some(eval) = &options.eval {
        // Data that cannot be used are one error, not one for each variant.
        if TextSet::is_text(eval) {
            TextSet::open(eval)?;
        } else {
            DataSet::open(eval)?;
        }
    }
    let machine = Machine::detect();
    let work = tempfile::tempdir()
        .map_err(|e| Error::io("create a directory for outputs", std::env::temp_dir(), e))?;
    let rounds = options.rounds.max(1);
    let total = (variants.len() * (rounds + 2)) as u64;
    monitor.phase("measure", Some(total));
    let mut done = 0;
    let mut step = || {
        done += 1;
        monitor.progress(done);
    };

    let mut subjects: Vec<Subject<'_>> = Vec::with_capacity(variants.len());
    for (index, spec) in variants.iter().enumerate() {
        monitor.check()?;
        subjects.push(load(spec, index, options, &machine, work.path(), monitor)?);
        step();
    }
    check_outputs(&mut subjects, options);
    for round in 0..rounds {
        for offset in 0..subjects.len() {
            monitor.check()?;
            let at = (round + offset) % subjects.len();
            sample(&mut subjects[at], options, rounds, monitor)?;
            step();
        }
    }
    for subject in &mut subjects {
        monitor.check()?;
        finish(subject, options, monitor)?;
        step();
    }
    Ok(subjects.into_iter().map(|s| s.row).collect())
}

fn check(options: &MeasureOptions) -> Result<()> {
    let fault = |field: &str, found: String, limit: &str| {
        Err(Error::usage("MEASURE-OPTION", "this cannot be measured").field(field).found(found).limit(limit))
    };
    if options.threads == 0 || options.threads > 1024 {
        return fault("threads", options.threads.to_string(), "1 to 1024");
    }
    if !(options.seconds > 0.0 && options.seconds <= 3600.0) {
        return fault("seconds", options.seconds.to_string(), "more than 0, at most 3600");
    }
    if options.rounds > 10_000 {
        return fault("rounds", options.rounds.to_string(), "10000");
    }
    Ok(())
}

/// CPUs to pin `threads` threads to: one of each core first, then their siblings; none where there
/// are not enough.
fn cpus_for(threads: usize, machine: &Machine) -> Vec<usize> {
    let mut taken = Vec::new();
    let mut cpus: Vec<(usize, usize)> = machine
        .limits
        .cpus
        .iter()
        .map(|&cpu| {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            let core = std::fs::read_to_string(path).unwrap_or_else(|_| cpu.to_string());
            let turn = taken.iter().filter(|c| **c == core).count();
            taken.push(core);
            (turn, cpu)
        })
        .collect();
    cpus.sort_unstable();
    if cpus.len() < threads {
        Vec::new()
    } else {
        cpus.into_iter().take(threads).map(|(_, cpu)| cpu).collect()
    }
}

fn conditions(settings: &SessionSettings, machine: &Machine, cpus: &[usize]) -> Conditions {
    Conditions {
        host: machine.host.clone(),
        cpu: machine.cpu.clone(),
        isa: machine.isa().into(),
        runtime: String::new(),
        threads: settings.threads,
        affinity: cpus.to_vec(),
        session: settings.differences(),
        inputs: Vec::new(),
        noise: Vec::new(),
    }
}

fn load<'a>(
    spec: &'a VariantSpec,
    index: usize,
    options: &MeasureOptions,
    machine: &Machine,
    work: &Path,
    monitor: &dyn Monitor,
) -> Result<Subject<'a>> {
    let (sha256, bytes) = save::digest(&spec.path).unwrap_or_default();
    let settings = options.settings(spec.session.as_ref());
    let cpus = options.cpus(&settings, machine);
    let row = Measurement {
        schema_version: SCHEMA_VERSION,
        variant: spec.name.clone(),
        model_sha256: sha256,
        path: spec.path.to_string_lossy().into_owned(),
        parameters: spec.facts.parameters,
        macs: spec.facts.macs,
        weight_bytes: spec.facts.weight_bytes,
        file_bytes: bytes + spec.facts.external_bytes,
        peak_activation_bytes: spec.facts.peak_activation_bytes,
        latency_ms: None,
        throughput_per_s: None,
        peak_rss_bytes: None,
        energy_j: None,
        quality: None,
        output_error: None,
        conditions: conditions(&settings, machine, &cpus),
        failures: Vec::new(),
    };
    let mut subject = Subject {
        spec,
        child: None,
        watch: Watch::new(0),
        loaded: None,
        samples: Vec::new(),
        outputs: None,
        row,
    };
    let limits = Limits { memory: options.memory, wall: options.wall, ..Limits::default() };
    match Child::start("evaluate.measure", &limits) {
        Ok(child) => {
            subject.watch = Watch::new(child.id());
            subject.child = Some(child);
        }
        Err(e) => {
            subject.fail("start", &e)?;
            return Ok(subject);
        }
    }
    let session = SessionOptions { cpus, ..settings.options() };
    let question = Question::Load {
        model: Bound::of(&spec.path, session, options),
        eval: options.eval.clone().filter(|spec| !TextSet::is_text(spec)),
        outputs: work.join(index.to_string()),
    };
    match subject.ask(&question, monitor) {
        Some(Ok(Answer::Loaded(loaded))) => {
            subject.row.conditions.runtime = format!("onnxruntime {}", loaded.runtime);
            subject.row.conditions.inputs = loaded.inputs.clone();
            match loaded.read_outputs(&work.join(index.to_string())) {
                Ok(outputs) => subject.outputs = Some(outputs),
                Err(e) => subject.fail("outputs", &e)?,
            }
            subject.loaded = Some(loaded);
        }
        Some(Err(e)) => subject.fail("load", &e)?,
        _ => {}
    }
    Ok(subject)
}

/// Compares outputs with those of the first variant; withholds the speed where that is due.
fn check_outputs(subjects: &mut [Subject<'_>], options: &MeasureOptions) {
    let reference = subjects.first_mut().and_then(|s| s.outputs.take());
    for (index, subject) in subjects.iter_mut().enumerate() {
        if subject.loaded.is_none() || !subject.row.failures.is_empty() {
            continue;
        }
        let mut refuse = |why: String| {
            subject.row.failures.push(format!("failed: {why}"));
            subject.child = None;
        };
        let Some(reference) = &reference else {
            if subject.spec.exact {
                refuse("outputs cannot be checked: the reference failed".into());
            }
            continue;
        };
        let outputs = if index == 0 { reference } else { subject.outputs.as_ref().unwrap_or(reference) };
        let bad = outputs.iter().any(|(_, t)| t.to_f64s().is_ok_and(|v| v.iter().any(|x| !x.is_finite())));
        match parity(reference, outputs, options.tolerance) {
            Ok(p) => {
                // JSON has no infinity.
                subject.row.output_error = Some(p.max_rel).filter(|e| e.is_finite());
                if bad && (index == 0 || p.not_finite > 0) {
                    refuse("an output is not a finite number".into());
                } else if subject.spec.exact && p.max_rel > options.tolerance {
                    let place = p.first.map_or(String::new(), |f| {
                        format!(
                            ", first at element {} of \"{}\": {} instead of {}",
                            f.element, f.output, f.value, f.reference
                        )
                    });
                    refuse(format!(
                        "outputs differ from the reference by {:.2e} of the largest, {:.0e} is allowed{place}",
                        p.max_rel, options.tolerance
                    ));
                }
            }
            Err(e) if subject.spec.exact => refuse(format!("outputs: {e}")),
            Err(e) => subject.row.failures.push(format!("outputs not comparable: {e}")),
        }
    }
}

fn sample(
    subject: &mut Subject<'_>,
    options: &MeasureOptions,
    rounds: usize,
    monitor: &dyn Monitor,
) -> Result<()> {
    let Some(loaded) = &subject.loaded else { return Ok(()) };
    let budget = options.seconds * 1e3 / rounds as f64;
    let question =
        Question::Sample { budget_ms: budget, most: 2000usize.div_ceil(rounds), inner: loaded.inner };
    subject.watch.start();
    let answer = subject.ask(&question, monitor);
    match answer {
        Some(Ok(Answer::Samples { ms, reference_ms })) => {
            subject.watch.stop(Some(reference_ms));
            subject.samples.extend(ms);
        }
        Some(Err(e)) => subject.fail("run", &e)?,
        _ => {}
    }
    Ok(())
}

fn finish(subject: &mut Subject<'_>, options: &MeasureOptions, monitor: &dyn Monitor) -> Result<()> {
    match subject.ask(&Question::Peak, monitor) {
        Some(Ok(Answer::Peak { rss_bytes })) => subject.row.peak_rss_bytes = rss_bytes,
        Some(Err(e)) => subject.fail("memory", &e)?,
        _ => {}
    }
    subject.row.conditions.noise = subject.watch.flags();
    if subject.child.is_some() {
        let batch = subject.loaded.as_ref().map_or(1, |l| l.batch);
        subject.row.latency_ms = stats::latency(std::mem::take(&mut subject.samples), options.seed);
        subject.row.throughput_per_s =
            subject.row.latency_ms.as_ref().filter(|l| l.p50 > 0.0).map(|l| batch as f64 * 1e3 / l.p50);
    }
    if let Some(eval) = options.eval.as_ref().filter(|spec| TextSet::is_text(spec)) {
        judge_on_texts(subject, eval, options, monitor)?;
    } else if let Some(eval) = &options.eval {
        let question = Question::Accuracy { data: eval.clone(), batch: options.eval_batch };
        match subject.ask(&question, monitor) {
            Some(Ok(Answer::Accuracy { correct, data_hash })) => {
                subject.row.quality = Some(accuracy::quality(correct, &data_hash));
            }
            Some(Err(e)) => {
                if matches!(e.kind(), Kind::Stopped | Kind::Interrupted) {
                    return Err(e);
                }
                subject.row.failures.push(format!("failed: quality: {e}"));
            }
            _ => {}
        }
    }
    if let Some(child) = subject.child.take() {
        child.finish();
    }
    Ok(())
}

/// Quality on texts: by the task that the model's first output is for.
fn judge_on_texts(
    subject: &mut Subject<'_>,
    eval: &str,
    options: &MeasureOptions,
    monitor: &dyn Monitor,
) -> Result<()> {
    let Some((name, rank)) = subject.loaded.as_ref().and_then(Loaded::first_output) else { return Ok(()) };
    let task = match rank {
        3 if name == "logits" => Task::Lm,
        2 if name == "logits" => Task::Classify,
        _ => Task::Embed,
    };
    let task_options = TaskOptions {
        threads: options.threads,
        batch: options.eval_batch,
        seed: options.seed,
        wall: options.wall,
        ..TaskOptions::new(task, eval, Engine::OnnxRuntime(options.library.clone()))
    };
    match tasks::evaluate(&subject.spec.path, &task_options, monitor) {
        Ok(evaluation) => subject.row.quality = Some(evaluation.quality),
        Err(e) if matches!(e.kind(), Kind::Stopped | Kind::Interrupted) => return Err(e),
        Err(e) => subject.row.failures.push(format!("failed: quality: {e}")),
    }
    Ok(())
}

/// Accuracy of one model file on ONNX Runtime, in a child process.
///
/// # Errors
/// Those of loading, of the data and of [`accuracy::classify`].
pub fn accuracy_of(
    model: &Path,
    data: &str,
    options: &MeasureOptions,
    monitor: &dyn Monitor,
) -> Result<super::measurement::Quality> {
    let limits = Limits { memory: options.memory, wall: options.wall, ..Limits::default() };
    let mut child = Child::start("evaluate.measure", &limits)?;
    let session = SessionOptions { threads: options.threads, ..SessionOptions::default() };
    let open = Question::Open { library: options.library.clone(), model: model.to_path_buf(), session };
    let _: Answer = child.ask(&open, monitor, &mut |_| Ok(()))?;
    let question = Question::Accuracy { data: data.into(), batch: options.eval_batch };
    match child.ask(&question, monitor, &mut |_| Ok(()))? {
        Answer::Accuracy { correct, data_hash } => Ok(accuracy::quality(correct, &data_hash)),
        _ => Err(Error::internal("MEASURE-ANSWER", "a child gave another answer than asked for")),
    }
}
