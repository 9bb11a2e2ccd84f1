//! Text from causal language models. A model, its tokenizer and a prompt enter; text leaves piece by
//! piece. On ONNX Runtime the cache of keys and values stays with the library from one token to the
//! next; models that are no ONNX files run on the built-in executor.

mod chat;
mod sample;

pub use sample::Sampling;

use super::tasks::{Engine, runner};
use crate::child::{Child, Handler, Limits, Link};
use crate::error::{Error, Result};
use crate::formats::generation::ends;
use crate::formats::{Limits as FileLimits, Tokenizer};
use crate::monitor::Monitor;
use crate::runtime::{Kept, SessionOptions};
use crate::tensor::Tensor;
use chat::Chat;
use runner::Runner;
use sample::Sampler;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What to generate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateOptions {
    /// Text to go on from.
    pub prompt: String,
    /// Whether the prompt is a question of a conversation, to be spelled out in the model's format.
    pub chat: bool,
    /// System message of the conversation; the model's own where absent.
    pub system: Option<String>,
    /// Most tokens.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Whether keys and values of earlier tokens are kept.
    pub cache: bool,
    /// Where the tokenizer is; beside the model, or in it, where absent.
    pub tokenizer: Option<PathBuf>,
    /// What computes.
    pub engine: Engine,
    /// Threads.
    pub threads: usize,
    /// Longest time.
    pub wall: Duration,
}

impl GenerateOptions {
    /// 200 tokens, the most likely ones, with cache, on one thread.
    pub fn new(prompt: impl Into<String>, engine: Engine) -> GenerateOptions {
        GenerateOptions {
            prompt: prompt.into(),
            chat: false,
            system: None,
            max_tokens: 200,
            sampling: Sampling::default(),
            cache: true,
            tokenizer: None,
            engine,
            threads: 1,
            wall: Duration::from_secs(86_400),
        }
    }
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The model ended it.
    End,
    /// As many tokens as were asked for.
    MaxTokens,
    /// The model is not made for longer texts.
    Context,
}

/// Tokens per second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Reading the prompt.
    pub prefill: f64,
    /// Writing; none where fewer than two tokens were written.
    pub decode: Option<f64>,
}

/// A text and how it came about. The field names are the public JSON contract.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generated {
    /// Version of this format.
    pub schema_version: u32,
    /// The model.
    pub model: PathBuf,
    /// The text behind the prompt.
    pub text: String,
    /// Ids of its tokens, the one that ended it included.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Why it ended.
    pub stop: Stop,
    /// Whether keys and values were kept.
    pub cache: bool,
    /// Whether they stayed in one place, or were copied with each token.
    pub cache_in_place: bool,
    /// How tokens were chosen.
    pub sampling: Sampling,
    /// Speed.
    pub tokens_per_s: Speed,
    /// `onnxruntime 1.32.0` or `executor`.
    pub engine: String,
}

const KIND: &str = "evaluate.generate";
/// Positions behind the prompt that a cache in one place has at first; it grows where they do not do.
const ROOM: usize = 1024;

#[derive(Serialize, Deserialize)]
struct Question {
    model: PathBuf,
    options: GenerateOptions,
}

/// Generates in a child process; `piece` gets the text as it comes.
///
/// # Errors
/// Those of opening model and tokenizer; `Unsupported` for a model that does not predict tokens, or a
/// chat format that is not known; `Usage` for an empty prompt or one longer than the model is made for.
pub fn generate(
    model: &Path,
    options: &GenerateOptions,
    monitor: &dyn Monitor,
    piece: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<Generated> {
    let limits = Limits { wall: options.wall, ..Limits::default() };
    let mut child = Child::start(KIND, &limits)?;
    let question = Question { model: model.to_path_buf(), options: options.clone() };
    let answer = child.ask(&question, monitor, &mut |item| match item {
        Value::String(text) => piece(&text),
        _ => Ok(()),
    })?;
    child.finish();
    Ok(answer)
}

/// Serves [`generate`].
pub(super) fn handler() -> Handler {
    Handler::new(KIND, |question: Question, link: &Link| {
        run(&question.model, &question.options, link, &mut |text| link.item(&text))
    })
}

/// [`generate`] in this process. For children, and for tests on the executor.
pub fn run(
    model: &Path,
    options: &GenerateOptions,
    monitor: &dyn Monitor,
    piece: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<Generated> {
    let tokenizer = Tokenizer::open(options.tokenizer.as_deref().unwrap_or(model))?;
    let ends = ends(model, &tokenizer, &FileLimits::from_env()?)?;
    let prompt = prompt(&tokenizer, options)?;
    let longest = tokenizer.longest().unwrap_or(usize::MAX);
    if prompt.is_empty() || prompt.len() >= longest {
        return Err(Error::usage(
            "GENERATE-PROMPT",
            "the prompt is empty, or longer than the model is made for",
        )
        .found(format!("{} tokens", prompt.len()))
        .limit(format!("1 to {} tokens", longest.saturating_sub(1)))
        .hint("give a --prompt of a few words"));
    }
    let name = model.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    monitor.phase(&format!("load {name}"), None);
    let session =
        SessionOptions { threads: options.threads, memory_pattern: false, ..SessionOptions::default() };
    let mut decoder = Decoder::new(runner::open(model, &options.engine, &session)?, options.cache)?;
    let room = longest.min(prompt.len().saturating_add(options.max_tokens));
    decoder.make_room(room.min(prompt.len().saturating_add(ROOM)));
    let mut sampler = Sampler::new(options.sampling);
    let mut stream = tokenizer.stream(true);
    let (mut text, mut tokens) = (String::new(), Vec::new());
    let mut sequence = prompt.clone();
    let (mut prefill, mut decode) = (Duration::ZERO, Duration::ZERO);
    let stop = loop {
        if tokens.len() >= options.max_tokens {
            break Stop::MaxTokens;
        }
        if sequence.len() >= longest {
            break Stop::Context;
        }
        monitor.check()?;
        let start = Instant::now();
        let scores = decoder.next(&sequence)?;
        *if tokens.is_empty() { &mut prefill } else { &mut decode } += start.elapsed();
        let token = sampler.next(&scores).ok_or_else(|| {
            Error::invalid("GENERATE-NAN", "the model's scores are not numbers")
                .hint("check the weights with `tinsmith inspect`")
        })?;
        tokens.push(token);
        sequence.push(token);
        if ends.contains(&token) {
            break Stop::End;
        }
        let new = stream.push(token)?;
        if !new.is_empty() {
            piece(&new)?;
            text.push_str(&new);
        }
    };
    let rest = stream.finish()?;
    if !rest.is_empty() {
        piece(&rest)?;
        text.push_str(&rest);
    }
    let rate = |count: usize, time: Duration| count as f64 / time.as_secs_f64().max(1e-9);
    Ok(Generated {
        schema_version: 1,
        model: model.to_path_buf(),
        text,
        prompt_tokens: prompt.len(),
        stop,
        cache: decoder.cached,
        cache_in_place: decoder.kept.is_in_place(),
        sampling: options.sampling,
        tokens_per_s: Speed {
            prefill: rate(prompt.len(), prefill),
            decode: (tokens.len() > 1).then(|| rate(tokens.len() - 1, decode)),
        },
        tokens,
        engine: decoder.runner.engine(),
    })
}

/// The tokens to go on from: without those that the tokenizer puts behind a text.
fn prompt(tokenizer: &Tokenizer, options: &GenerateOptions) -> Result<Vec<u32>> {
    let spelled = match options.chat {
        false => options.prompt.clone(),
        true => {
            let template = tokenizer.chat_template().ok_or_else(|| {
                Error::unsupported("CHAT-NONE", "this model has no chat template")
                    .hint("leave out --chat; base models go on from a text")
            })?;
            let chat = Chat::recognise(template)?;
            let eos = tokenizer.special().eos.first().and_then(|id| tokenizer.token(*id));
            let system = options.system.as_deref().or_else(|| chat.default_system(template));
            chat.spell(system, &options.prompt, &eos.unwrap_or_default())
        }
    };
    let mut ids = tokenizer.encode(&spelled, true)?;
    let plain = tokenizer.encode(&spelled, false)?;
    // What stands before the text stays, what stands behind it goes.
    if let Some(at) = ids.windows(plain.len().max(1)).position(|w| w == plain.as_slice()) {
        ids.truncate(at + plain.len());
    }
    Ok(ids)
}

/// A model that is asked for one token after the other.
struct Decoder {
    runner: Box<dyn Runner>,
    output: String,
    /// Outputs that are kept, and the inputs that they are for.
    keep: Vec<(String, String)>,
    cached: bool,
    kept: Kept,
    own: Vec<(String, Tensor)>,
    /// Tokens that the cache holds.
    held: usize,
}

impl Decoder {
    fn new(runner: Box<dyn Runner>, cache: bool) -> Result<Decoder> {
        let outputs = runner.outputs();
        let output = outputs.iter().find(|n| *n == "logits").or(outputs.first()).cloned();
        let output = output.ok_or_else(|| Error::invalid("EVAL-OUTPUT", "the model has no outputs"))?;
        let has_ids = runner.inputs().iter().any(|p| p.name == "input_ids");
        if !has_ids {
            let names: Vec<&str> = runner.inputs().iter().map(|p| p.name.as_str()).collect();
            return Err(Error::unsupported("GENERATE-MODEL", "the model does not take tokens")
                .found(names.join(", "))
                .limit("input_ids")
                .hint("generate is for causal language models"));
        }
        let keep: Vec<(String, String)> = outputs
            .iter()
            .filter_map(|name| {
                let input = format!("past_key_values{}", name.strip_prefix("present")?);
                runner.inputs().iter().any(|p| p.name == input).then(|| (name.clone(), input))
            })
            .collect();
        let pasts = runner.inputs().iter().filter(|p| runner::is_cache(&p.name)).count();
        let cached = cache && !keep.is_empty() && keep.len() == pasts;
        Ok(Decoder { runner, output, keep, cached, kept: Kept::default(), own: Vec::new(), held: 0 })
    }

    /// Lets the caches stay in one place with room for so many positions, where the model can.
    fn make_room(&mut self, positions: usize) {
        if self.cached && self.runner.in_place() {
            self.kept = Kept::in_place(positions);
        }
    }

    /// Scores of the token that follows.
    fn next(&mut self, sequence: &[u32]) -> Result<Vec<f32>> {
        let new = if self.cached { &sequence[self.held..] } else { sequence };
        let ids: Vec<i64> = new.iter().map(|id| i64::from(*id)).collect();
        let positions: Vec<i64> = (sequence.len() - new.len()..sequence.len()).map(|p| p as i64).collect();
        let shape = vec![1, new.len()];
        let zeros = vec![0i64; new.len()];
        let batch = vec![
            ("input_ids".to_string(), Tensor::from_vec(shape.clone(), ids)?),
            (
                "attention_mask".to_string(),
                Tensor::from_vec(vec![1, sequence.len()], vec![1i64; sequence.len()])?,
            ),
            ("token_type_ids".to_string(), Tensor::from_vec(shape.clone(), zeros)?),
            ("position_ids".to_string(), Tensor::from_vec(shape, positions)?),
        ];
        let mut inputs = runner::feed(self.runner.inputs(), &batch)?;
        let keep: &[(String, String)] = if self.cached { &self.keep } else { &[] };
        if self.cached && self.held > 0 {
            inputs.retain(|(name, _)| !runner::is_cache(name));
            inputs.append(&mut self.own);
        }
        self.kept.reserve(sequence.len());
        let row = self.runner.step(&inputs, &mut self.kept, &mut self.own, keep, &self.output)?;
        self.held = sequence.len();
        Ok(row)
    }
}
