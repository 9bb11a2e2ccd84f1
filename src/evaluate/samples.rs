//! Data bound to the inputs of a model, for whatever learns from it: calibration, importance, training.
//! A data spec and a graph enter; batches of named tensors leave, each with what the model should answer
//! to it. Numbers feed models with one input; texts become token ids, whole windows of documents for
//! causal language models, one row a text for the others.

mod form;
mod positions;

pub use positions::Positions;

use super::accuracy::InputForm;
use super::tasks::runner;
use crate::data::{DataSet, Padding, TextSet, TokenSet};
use crate::error::{Error, Result};
use crate::formats::Tokenizer;
use crate::graph::Graph;
use crate::runtime::Port;
use crate::tensor::Tensor;
use std::sync::Arc;

/// Tokens of a row where neither the caller nor the model states fewer.
pub const LENGTH: usize = 256;
/// Most rows of a batch of numbers where the model leaves that open, and most bytes; the activations of
/// a batch take a multiple of it.
const ROWS: usize = 32;
const BYTES: usize = 4 << 20;
/// Most tokens of a batch where the caller does not say.
const TOKENS: usize = 1024;

/// What a model should answer to a batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Targets {
    /// Nothing is known.
    #[default]
    None,
    /// A class for each row.
    Classes(Vec<usize>),
    /// For each position of `[rows, length]` the token that follows, none at the end of a row.
    Next(Vec<Option<u32>>),
}

/// One batch.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Named inputs.
    pub inputs: Vec<(String, Tensor)>,
    /// What should come out.
    pub targets: Targets,
    /// Rows, without those that fill up a fixed batch.
    pub rows: usize,
    /// Tokens that are not padding, or rows where the data are numbers.
    pub tokens: usize,
}

#[derive(Debug, Clone)]
enum Rows {
    Numbers { data: Arc<DataSet>, input: String, form: InputForm },
    Texts { tokens: Arc<TokenSet>, ports: Vec<Port>, causal: bool },
    Given(Arc<Vec<Batch>>),
}

/// Rows of data as one model takes them.
#[derive(Debug, Clone)]
pub struct Samples {
    rows: Rows,
    /// Rows behind these are left out.
    limit: usize,
    size: usize,
    hash: String,
}

impl Samples {
    /// Binds the data of a spec to a graph and makes the first batch, so that data of the wrong shape
    /// are known before anything is computed. `tokenizer` is asked for where the data are texts;
    /// `length` is the most tokens of a row; without it, long rows of models that predict no next token are
    /// cut to various lengths.
    ///
    /// # Errors
    /// Those of reading the data; `Unsupported` where the model has inputs that the data cannot fill.
    pub fn open(
        spec: &str,
        graph: &Graph,
        tokenizer: &dyn Fn() -> Result<Tokenizer>,
        length: Option<usize>,
    ) -> Result<Samples> {
        let samples = match TextSet::is_text(spec) {
            true => Samples::texts(&TextSet::open(spec)?, graph, &tokenizer()?, length)?,
            false => Samples::numbers(DataSet::open(spec)?, graph)?,
        };
        samples.batch(&[0])?;
        Ok(samples)
    }

    /// Batches as they are; each counts as one row.
    pub fn given(batches: Vec<Batch>) -> Samples {
        let rows = Rows::Given(Arc::new(batches));
        Samples { rows, limit: usize::MAX, size: 1, hash: String::new() }
    }

    fn numbers(data: DataSet, graph: &Graph) -> Result<Samples> {
        let (input, form) = form::only_input(graph)?;
        let width: usize = data.input().shape().iter().skip(1).product();
        let fitting = BYTES / (width * data.input().dtype().byte_len(1).map_or(4, |n| n as usize)).max(1);
        let size = form.batch(fitting.clamp(1, ROWS));
        let hash = data.hash().to_string();
        let rows = Rows::Numbers { data: Arc::new(data), input, form };
        Ok(Samples { rows, limit: usize::MAX, size, hash })
    }

    fn texts(
        texts: &TextSet,
        graph: &Graph,
        tokenizer: &Tokenizer,
        length: Option<usize>,
    ) -> Result<Samples> {
        let ports = runner::ports(graph)?;
        let causal = form::predicts_tokens(graph);
        let longest = length.unwrap_or(LENGTH).min(tokenizer.longest().unwrap_or(usize::MAX));
        let tokens = match causal {
            true => TokenSet::windows(texts, tokenizer, longest)?,
            false if length.is_none() => TokenSet::varied(texts, tokenizer, longest)?,
            false => TokenSet::of(texts, tokenizer, longest)?,
        };
        if tokens.len() == 0 {
            return Err(Error::usage("DATA-EMPTY", "the texts hold no tokens to learn from")
                .field(texts.spec())
                .hint("name longer texts, or another range of rows"));
        }
        let hash = tokens.hash().to_string();
        Ok(Samples {
            size: (TOKENS / longest.max(1)).max(1),
            rows: Rows::Texts { tokens: Arc::new(tokens), ports, causal },
            limit: usize::MAX,
            hash,
        })
    }

    /// The same rows for a graph that was made from the one they were bound to: its inputs may be fewer or
    /// of other sizes, such as the caches of heads that are gone.
    pub fn rebound(&self, graph: &Graph) -> Result<Samples> {
        let mut rebound = self.clone();
        match &mut rebound.rows {
            Rows::Numbers { input, form, .. } => (*input, *form) = form::only_input(graph)?,
            Rows::Texts { ports, .. } => *ports = runner::ports(graph)?,
            Rows::Given(_) => {}
        }
        Ok(rebound)
    }

    /// The first `rows` of them; the hash stays that of the whole.
    pub fn first(&self, rows: usize) -> Samples {
        Samples { limit: self.limit.min(rows), ..self.clone() }
    }

    /// Rows.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        let all = match &self.rows {
            Rows::Numbers { data, .. } => data.len(),
            Rows::Texts { tokens, .. } => tokens.len(),
            Rows::Given(batches) => batches.len(),
        };
        all.min(self.limit)
    }

    /// The first row of numbers with one that is not finite, counted from 0.
    pub fn first_not_finite(&self) -> Option<usize> {
        let Rows::Numbers { data, .. } = &self.rows else { return None };
        let width = data.input().len().checked_div(data.len()).filter(|w| *w > 0)?;
        let at = data.input().to_f32s().ok()?.iter().position(|x| !x.is_finite())?;
        Some(at / width).filter(|row| *row < self.len())
    }

    /// The first `most` rows of token ids, where each position tells the next one; none for other data.
    pub fn token_rows(&self, most: usize) -> Option<Vec<Vec<u32>>> {
        match &self.rows {
            Rows::Texts { tokens, causal: true, .. } => {
                Some(tokens.rows().iter().take(self.len().min(most)).cloned().collect())
            }
            _ => None,
        }
    }

    /// Rows of a batch that fits into memory beside its activations.
    pub fn batch_size(&self) -> usize {
        self.size
    }

    /// Digest of the rows, and of the tokenizer that made them.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Whether the data say what the model should answer.
    pub fn labelled(&self) -> bool {
        match &self.rows {
            Rows::Numbers { data, .. } => !data.labels().is_empty(),
            Rows::Texts { tokens, causal, .. } => *causal || !tokens.labels().is_empty(),
            Rows::Given(batches) => batches.iter().all(|b| b.targets != Targets::None),
        }
    }

    /// The batch of these rows, in this order.
    pub fn batch(&self, rows: &[usize]) -> Result<Batch> {
        match &self.rows {
            Rows::Numbers { data, input, form } => {
                let labels = data.labels();
                let count = form.dims.first().copied().flatten().unwrap_or(rows.len()).max(rows.len());
                let filled: Vec<usize> = (0..count).map(|i| rows[i.min(rows.len() - 1)]).collect();
                let targets = match labels.is_empty() {
                    true => Targets::None,
                    false => Targets::Classes(filled.iter().map(|r| labels[*r]).collect()),
                };
                let tensor = form.fit(&data.input().selected(0, &filled))?;
                let inputs = vec![(input.clone(), tensor)];
                Ok(Batch { inputs, targets, rows: rows.len(), tokens: rows.len() })
            }
            Rows::Texts { tokens, ports, causal } => {
                let of: Vec<&[u32]> = rows.iter().map(|r| tokens.rows()[*r].as_slice()).collect();
                let length = of.iter().map(|r| r.len()).max().unwrap_or(0).max(1);
                let inputs = runner::feed(ports, &tokens.batch_of(rows, Padding::To(length))?)?;
                let targets = match (causal, tokens.labels().is_empty()) {
                    (true, _) => Targets::Next(following(&of, length)),
                    (_, true) => Targets::None,
                    _ => Targets::Classes(rows.iter().map(|r| tokens.labels()[*r]).collect()),
                };
                let tokens = of.iter().map(|r| r.len()).sum();
                Ok(Batch { inputs, targets, rows: rows.len(), tokens })
            }
            Rows::Given(batches) => match rows {
                [row] => Ok(batches[*row].clone()),
                _ => Err(Error::internal("SAMPLES", "given batches are taken one at a time")),
            },
        }
    }

    fn at_once(&self, size: usize) -> usize {
        if size == 0 || matches!(self.rows, Rows::Given(_)) { self.size } else { size }
    }

    /// How many batches [`Samples::batches`] gives.
    pub fn batch_count(&self, size: usize) -> usize {
        self.len().div_ceil(self.at_once(size).max(1))
    }

    /// Batches of `size` rows (of [`Samples::batch_size`] where that is 0), in the order of the data.
    pub fn batches(&self, size: usize) -> impl Iterator<Item = Result<Batch>> + '_ {
        let size = self.at_once(size);
        let rows: Vec<usize> = (0..self.len()).collect();
        (0..self.len()).step_by(size).map(move |at| self.batch(&rows[at..(at + size).min(self.len())]))
    }
}

/// For each position the token behind it.
fn following(rows: &[&[u32]], length: usize) -> Vec<Option<u32>> {
    rows.iter().flat_map(|row| (1..=length).map(|at| row.get(at).copied())).collect()
}

#[cfg(test)]
mod tests;
