//! Tasks by which the quality of a model is judged: language modelling, embeddings, classification of
//! texts, stored tensors. A model, data and perhaps a reference model enter; an [`Evaluation`] leaves.
//! The work is done in a child process, on ONNX Runtime or on the built-in executor.

mod agree;
mod classify;
mod embed;
mod lm;
mod probe;
mod rank;
mod resample;
pub(super) mod runner;
mod stored;

pub use agree::agreement;
pub(super) use agree::handler as agreement_handler;

use super::measurement::{Interval, Quality};
use crate::child::{Child, Handler, Limits, Link};
use crate::data::TextSet;
use crate::error::{Error, Result};
use crate::formats::Tokenizer;
use crate::monitor::Monitor;
use crate::runtime::{Library, SessionOptions};
use crate::save;
use runner::Runner;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a model is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Predicting the next token of texts.
    Lm,
    /// Vectors of texts: near those of a reference, and fit to tell labels apart.
    Embed,
    /// Labels of texts.
    Classify,
    /// Outputs that were stored.
    Tensor,
}

impl Task {
    /// The names, in the order shown to people.
    pub const NAMES: [(&str, Task); 4] =
        [("lm", Task::Lm), ("embed", Task::Embed), ("classify", Task::Classify), ("tensor", Task::Tensor)];
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = Task::NAMES.iter().find(|(_, t)| t == self).map_or("", |(n, _)| n);
        f.write_str(name)
    }
}

/// What computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// ONNX Runtime, with its library; for ONNX files.
    OnnxRuntime(Library),
    /// The built-in executor; for every model that can be opened.
    Executor,
}

/// How to evaluate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskOptions {
    /// Task.
    pub task: Task,
    /// Data spec.
    pub data: String,
    /// A model to compare with; for texts it must have the same tokenizer.
    pub reference: Option<PathBuf>,
    /// Where the tokenizer is; beside the model, or in it, where absent.
    pub tokenizer: Option<PathBuf>,
    /// What computes.
    pub engine: Engine,
    /// Threads.
    pub threads: usize,
    /// Tokens that the model sees at once.
    pub window: Option<usize>,
    /// Tokens between the beginnings of two windows of language modelling; the window where absent, so
    /// that windows do not overlap.
    pub stride: Option<usize>,
    /// Rows at once, where the task works in batches.
    pub batch: usize,
    /// Seed of the bootstrap.
    pub seed: u64,
    /// Largest relative difference of stored tensors.
    pub tolerance: f64,
    /// Longest time of the whole evaluation.
    pub wall: Duration,
}

impl TaskOptions {
    /// One thread, 16 rows at once, a day at most.
    pub fn new(task: Task, data: impl Into<String>, engine: Engine) -> TaskOptions {
        TaskOptions {
            task,
            data: data.into(),
            reference: None,
            tokenizer: None,
            engine,
            threads: 1,
            window: None,
            stride: None,
            batch: 16,
            seed: 0,
            tolerance: 1e-3,
            wall: Duration::from_secs(86_400),
        }
    }
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Stable name, such as `bits_per_byte`.
    pub name: String,
    /// Value.
    pub value: f64,
    /// 95 % interval, where one is given.
    pub ci95: Option<Interval>,
}

/// A model of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// File or directory.
    pub path: PathBuf,
    /// SHA-256 of the file; none for directories.
    pub sha256: Option<String>,
    /// What computed: `onnxruntime 1.32.0` or `executor`.
    pub engine: String,
}

/// All that was found. The field names are the public JSON contract.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Version of this format.
    pub schema_version: u32,
    /// Task.
    pub task: Task,
    /// The model.
    pub model: Evaluated,
    /// The model that it was compared with.
    pub reference: Option<Evaluated>,
    /// Data spec.
    pub data: String,
    /// Digest of the tokenizer, for tasks on texts.
    pub tokenizer: Option<String>,
    /// Counts and sizes that the figures depend on, such as `window` and `predicted`.
    pub settings: Map<String, Value>,
    /// The figure by which the model is judged.
    pub quality: Quality,
    /// Every figure, the main one included.
    pub metrics: Vec<Metric>,
    /// What should be known about them.
    pub notes: Vec<String>,
    /// Time that it took.
    pub seconds: f64,
}

/// Version of [`Evaluation`].
pub const SCHEMA_VERSION: u32 = 1;

impl Evaluation {
    /// A figure by its name.
    pub fn metric(&self, name: &str) -> Option<&Metric> {
        self.metrics.iter().find(|m| m.name == name)
    }
}

/// What a task hands over; the rest of an [`Evaluation`] is the same for all.
struct Outcome {
    quality: Quality,
    metrics: Vec<Metric>,
    settings: Map<String, Value>,
    notes: Vec<String>,
}

fn metric(name: &str, value: f64, ci95: Option<Interval>) -> Metric {
    Metric { name: name.into(), value, ci95: ci95.filter(|i| i.low.is_finite() && i.high.is_finite()) }
}

#[derive(Serialize, Deserialize)]
struct Question {
    model: PathBuf,
    options: TaskOptions,
}

/// Evaluates `model`, a file or directory, in a child process.
///
/// # Errors
/// Those of opening models, tokenizer and data; `Usage` where they do not belong together; `Died` where
/// the child did.
pub fn evaluate(model: &Path, options: &TaskOptions, monitor: &dyn Monitor) -> Result<Evaluation> {
    let limits = Limits { wall: options.wall, ..Limits::default() };
    let mut child = Child::start(KIND, &limits)?;
    let question = Question { model: model.to_path_buf(), options: options.clone() };
    let answer = child.ask(&question, monitor, &mut |_| Ok(()))?;
    child.finish();
    Ok(answer)
}

const KIND: &str = "evaluate.task";

/// Serves [`evaluate`].
pub(super) fn handler() -> Handler {
    Handler::new(KIND, |question: Question, link: &Link| run(&question.model, &question.options, link))
}

/// [`evaluate`] in this process. For children, and for tests on the executor.
pub fn run(model: &Path, options: &TaskOptions, monitor: &dyn Monitor) -> Result<Evaluation> {
    let start = Instant::now();
    let reference = options.reference.as_deref();
    let (outcome, tokenizer, used) = match options.task {
        Task::Tensor => {
            let mut runner = open(model, options, monitor)?;
            let outcome = stored::run(runner.as_mut(), options)?;
            (outcome, None, [Some(evaluated(model, runner.as_ref())), None])
        }
        task => {
            let tokenizer = tokenizer(model, options)?;
            let texts = TextSet::open(&options.data)?;
            let mut runner = open(model, options, monitor)?;
            let mut other = reference.map(|path| open(path, options, monitor)).transpose()?;
            if let Some(path) = reference {
                same_tokenizer(&tokenizer, path, options)?;
            }
            let against = other.as_mut().map(|r| r.as_mut() as &mut dyn Runner);
            let outcome = match task {
                Task::Lm => lm::run(runner.as_mut(), against, &tokenizer, &texts, options, monitor)?,
                Task::Embed => embed::run(runner.as_mut(), against, &tokenizer, &texts, options, monitor)?,
                _ => classify::run(runner.as_mut(), against, &tokenizer, &texts, options, monitor)?,
            };
            let second = reference.zip(other.as_ref()).map(|(p, r)| evaluated(p, r.as_ref()));
            (outcome, Some(tokenizer.digest().to_string()), [Some(evaluated(model, runner.as_ref())), second])
        }
    };
    let [first, reference] = used;
    let model = first.ok_or_else(|| Error::internal("EVAL-MODEL", "an evaluation without a model"))?;
    let Outcome { quality, metrics, settings, notes } = outcome;
    Ok(Evaluation {
        schema_version: SCHEMA_VERSION,
        task: options.task,
        model,
        reference,
        data: options.data.clone(),
        tokenizer,
        settings,
        quality,
        metrics,
        notes,
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn open(model: &Path, options: &TaskOptions, monitor: &dyn Monitor) -> Result<Box<dyn Runner>> {
    let name = model.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    monitor.phase(&format!("load {name}"), None);
    let session =
        SessionOptions { threads: options.threads, memory_pattern: false, ..SessionOptions::default() };
    runner::open(model, &options.engine, &session)
}

fn evaluated(path: &Path, runner: &dyn Runner) -> Evaluated {
    let sha256 = path.is_file().then(|| save::digest(path).ok()).flatten().map(|(sha256, _)| sha256);
    Evaluated { path: path.to_path_buf(), sha256, engine: runner.engine() }
}

fn tokenizer(model: &Path, options: &TaskOptions) -> Result<Tokenizer> {
    Tokenizer::open(options.tokenizer.as_deref().unwrap_or(model))
}

/// Distances between models are about the same tokens.
fn same_tokenizer(tokenizer: &Tokenizer, reference: &Path, options: &TaskOptions) -> Result<()> {
    if options.tokenizer.is_some() {
        return Ok(());
    }
    let other = Tokenizer::open(reference)?;
    let differ = ["The whale, 1851.", "naïve café — 汉字 🙂\n\n  x"]
        .iter()
        .map(|text| Ok(tokenizer.encode(text, true)? != other.encode(text, true)?))
        .collect::<Result<Vec<bool>>>()?;
    if other.digest() == tokenizer.digest()
        || (other.vocab_size() == tokenizer.vocab_size() && !differ.contains(&true))
    {
        return Ok(());
    }
    Err(Error::usage("EVAL-TOKENIZER", "model and reference have different tokenizers")
        .file(reference)
        .hint("compare models of one family, or name the tokenizer of both with --tokenizer"))
}
