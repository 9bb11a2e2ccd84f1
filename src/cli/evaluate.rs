//! `eval`: the quality of models. Labelled numbers are measured by a job, with speed and memory; tasks
//! on texts and stored tensors run in a child process of this one.

use super::context::Context;
use super::measure::{self, SamplingArgs};
use super::progress::Progress;
use crate::data::{TextSet, located};
use crate::error::{Error, Kind, Result};
use crate::evaluate::tasks::{Engine, Evaluation, Task, TaskOptions, evaluate};
use crate::export;
use crate::runtime;
use clap::ValueEnum;
use std::path::{Path, PathBuf};

/// Measure the quality of models: accuracy on labelled data, perplexity, embeddings, stored outputs
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  tinsmith eval model.onnx --data digits:test\n  tinsmith eval smol-int4.onnx --task lm --data text:moby-dick --vs smol.onnx\n  tinsmith eval minilm.onnx --task embed --data 'jsonl:mails.jsonl?text=body&label=class'\n\nTasks and data specs: docs/tasks.md, docs/data.md"
)]
pub(super) struct Args {
    /// Models
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    /// Data, such as digits:test, csv:FILE?label=last, text:FILE, jsonl:FILE?text=FIELD&label=FIELD
    #[arg(long, value_name = "DATA")]
    data: String,
    /// What texts are used for; labelled numbers need no task
    #[arg(long, value_name = "TASK")]
    task: Option<TaskName>,
    #[command(flatten)]
    on: TaskArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TaskName {
    /// Perplexity, bits per byte; with --vs KL divergence and same-top rate
    Lm,
    /// Vectors against a reference, or a linear probe on labels
    Embed,
    /// Accuracy on labelled texts
    Classify,
    /// Outputs against stored ones (npz:FILE)
    Tensor,
}

/// How a task is run.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Tasks")]
struct TaskArgs {
    /// A reference model to compare with
    #[arg(long, value_name = "MODEL")]
    vs: Option<PathBuf>,
    /// Tokens that the model sees at once [default: 512, or what the model is made for]
    #[arg(long, value_name = "TOKENS")]
    window: Option<usize>,
    /// Tokens between the beginnings of two windows [default: the window, without overlap]
    #[arg(long, value_name = "TOKENS")]
    stride: Option<usize>,
    /// Rows at once [default: 16]
    #[arg(long, value_name = "ROWS")]
    batch: Option<usize>,
    /// The tokenizer of all models [default: tokenizer.json beside a model, or the one inside a GGUF file]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// What computes; models that are no ONNX files run on the executor
    #[arg(long, value_name = "ENGINE", default_value = "onnxruntime")]
    engine: EngineName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum EngineName {
    /// ONNX Runtime
    #[default]
    Onnxruntime,
    /// The built-in executor
    Executor,
}

impl TaskArgs {
    fn given(&self) -> bool {
        self.vs.is_some() || self.window.is_some() || self.stride.is_some() || self.tokenizer.is_some()
    }
}

pub(super) fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let data = located(&args.data, &context.paths)?;
    let task = match args.task {
        Some(TaskName::Lm) => Task::Lm,
        Some(TaskName::Embed) => Task::Embed,
        Some(TaskName::Classify) if TextSet::is_text(&data) => Task::Classify,
        Some(TaskName::Tensor) => Task::Tensor,
        Some(TaskName::Classify) => return measure::accuracy(context, &args.models, data, &args.sampling),
        None if TextSet::is_text(&data) => {
            return Err(Error::usage("EVAL-TASK", "these data are texts; say what they are for")
                .field("--task")
                .limit("lm, embed, classify")
                .hint("--task lm for language models, --task embed for encoders")
                .into());
        }
        None if args.on.given() => {
            return Err(Error::usage("EVAL-TASK", "this option belongs to a task").field("--task").into());
        }
        None => return measure::accuracy(context, &args.models, data, &args.sampling),
    };
    let mut options = TaskOptions::new(task, data, Engine::Executor);
    options.threads = context.threads()?.unwrap_or_else(threads);
    options.seed = context.seed;
    options.reference = args.on.vs;
    options.window = args.on.window;
    options.stride = args.on.stride;
    options.tokenizer = args.on.tokenizer;
    options.batch = args.on.batch.unwrap_or(options.batch).max(1);
    let progress = Progress::new(context);
    if args.on.engine == EngineName::Onnxruntime {
        options.engine = Engine::OnnxRuntime(runtime::ensure(&context.paths, &progress)?.library);
    }
    // ONNX Runtime takes checkpoints as exports; the executor reads them as they are.
    let ready = |model: &Path| -> Result<PathBuf> {
        std::fs::metadata(model).map_err(|e| Error::io("read the model", model, e))?;
        match args.on.engine {
            EngineName::Onnxruntime => export::ready(model, &context.paths, &progress),
            EngineName::Executor => Ok(model.to_path_buf()),
        }
    };
    options.reference = options.reference.as_deref().map(ready).transpose()?;
    let evaluated = args
        .models
        .iter()
        .map(|model| {
            let mut found = evaluate(&ready(Path::new(model))?, &options, &progress).map_err(interrupted)?;
            found.model.path = PathBuf::from(model);
            Ok(found)
        })
        .collect::<Result<Vec<Evaluation>>>()?;
    drop(progress);
    context.show(evaluated.as_slice())
}

/// Nothing is kept of an evaluation that was stopped.
fn interrupted(e: Error) -> Error {
    match e.kind() {
        Kind::Stopped => Error::new(Kind::Interrupted, "INTERRUPTED", "interrupted"),
        _ => e,
    }
}

/// As many threads as this process may use.
pub(super) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
