//! `generate`: text from a causal language model, so that people can look at what it says.

use super::context::Context;
use super::evaluate::threads;
use super::progress::Progress;
use crate::error::{Error, Kind, Result};
use crate::evaluate::generate::{GenerateOptions, Generated, Sampling, Stop, generate};
use crate::evaluate::tasks::Engine;
use crate::export;
use crate::formats;
use crate::monitor::{Level, Monitor};
use crate::report::{Format, Report};
use crate::runtime;
use crate::text::is_unsafe;
use std::io::IsTerminal;
use std::path::PathBuf;

/// Let a language model go on from a prompt
///
/// Takes the most likely token each time, unless a temperature is given. Text goes to stdout as it comes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  tinsmith generate smol.onnx --prompt 'Call me' --max-tokens 50\n  tinsmith generate smol.onnx --chat --prompt 'What is the capital of France?'\n  tinsmith generate smol.gguf --prompt 'Once' --temperature 0.8 --top-p 0.95 --seed 7"
)]
pub(super) struct Args {
    /// ONNX file with tokenizer.json beside it, GGUF file, or directory with safetensors
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Text to go on from; with --chat a question
    #[arg(long, short, value_name = "TEXT")]
    prompt: String,
    /// Spell the prompt out as a conversation, in the format that the model was trained on
    #[arg(long)]
    chat: bool,
    /// System message of the conversation [default: the model's own]
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Most tokens to write
    #[arg(long, value_name = "N", default_value_t = 200)]
    max_tokens: usize,
    /// Draw tokens at this temperature; 0 takes the most likely one
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f64,
    /// Draw from the most likely tokens with this share of the probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f64,
    /// Draw from so many most likely tokens; 0 is no limit
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Compute every token from the whole text, to check the cache
    #[arg(long)]
    no_cache: bool,
    /// Tokenizer [default: tokenizer.json beside the model, or the one inside a GGUF file]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
}

pub(super) fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    std::fs::metadata(&args.model).map_err(|e| Error::io("read the model", &args.model, e))?;
    let fault = |field: &str, found: f64, limit: &str| {
        Error::usage("GENERATE-OPTION", "this is no way to choose tokens")
            .field(field)
            .found(found)
            .limit(limit)
    };
    if !(0.0..=100.0).contains(&args.temperature) {
        return Err(fault("--temperature", args.temperature, "0 to 100").into());
    }
    if !(args.top_p > 0.0 && args.top_p <= 1.0) {
        return Err(fault("--top-p", args.top_p, "more than 0, at most 1").into());
    }
    let progress = Progress::new(context);
    let mut options = GenerateOptions::new(args.prompt, Engine::Executor);
    // A checkpoint is exported once; without a runtime the executor reads it as it is.
    let checkpoint = formats::is_checkpoint(&args.model)?;
    let mut model = args.model;
    match runtime::ensure(&context.paths, &progress) {
        Ok(probe) => {
            model = export::ready(&model, &context.paths, &progress)?;
            options.engine = Engine::OnnxRuntime(probe.library);
        }
        Err(e) if checkpoint && e.kind() != Kind::Stopped => {
            progress.log(Level::Warning, &format!("the text comes from the built-in executor: {e}"));
        }
        Err(e) => return Err(e.into()),
    }
    options.chat = args.chat;
    options.system = args.system;
    options.max_tokens = args.max_tokens;
    options.cache = !args.no_cache;
    options.tokenizer = args.tokenizer;
    options.threads = context.threads()?.unwrap_or_else(threads);
    options.sampling =
        Sampling { temperature: args.temperature, top_p: args.top_p, top_k: args.top_k, seed: context.seed };
    let streams = context.format == Format::Text;
    let terminal = std::io::stdout().is_terminal();
    let mut failed = None;
    let generated = generate(&model, &options, &progress, &mut |piece| {
        if streams && let Err(e) = context.write(&shown(piece, terminal)) {
            failed = Some(e);
            return Err(Error::storage("IO", "cannot write the text"));
        }
        Ok(())
    });
    drop(progress);
    if let Some(e) = failed {
        return Err(e);
    }
    let generated = generated.map_err(|e| match e.kind() {
        Kind::Stopped => Error::new(Kind::Interrupted, "INTERRUPTED", "interrupted"),
        _ => e,
    })?;
    if streams {
        context.write("\n")?;
        context.note(&summary(&generated));
        return Ok(());
    }
    context.print(&report(&generated)?)
}

/// Control characters that the model may write do not reach a terminal.
fn shown(text: &str, terminal: bool) -> String {
    let safe = |c: char| !terminal || matches!(c, '\n' | '\t') || !is_unsafe(c);
    text.chars().map(|c| if safe(c) { c.to_string() } else { c.escape_unicode().to_string() }).collect()
}

fn summary(g: &Generated) -> String {
    let decode = g.tokens_per_s.decode.map_or("-".into(), |d| format!("{d:.1}"));
    let why = match g.stop {
        Stop::End => "the model ended it",
        Stop::MaxTokens => "as many as asked for",
        Stop::Context => "the model is made for no more",
    };
    format!(
        "{} tokens ({why}); prompt {} tokens at {:.1} tokens/s, text at {decode} tokens/s; {}{}",
        g.tokens.len(),
        g.prompt_tokens,
        g.tokens_per_s.prefill,
        g.engine,
        if g.cache { "" } else { ", without cache" }
    )
}

fn report(g: &Generated) -> Result<Report> {
    Ok(Report::new(g)?.facts([
        ("text", g.text.clone()),
        ("tokens", g.tokens.len().to_string()),
        ("prompt tokens", g.prompt_tokens.to_string()),
        ("prefill tokens/s", format!("{:.1}", g.tokens_per_s.prefill)),
        ("decode tokens/s", g.tokens_per_s.decode.map_or_else(String::new, |d| format!("{d:.1}"))),
        ("engine", g.engine.clone()),
    ]))
}
