//! Datasets for calibration and evaluation. A data spec enters; batches of named tensors, labels and a
//! hash of the content leave. Knows no model; whoever binds a dataset to one passes the input's name.
//!
//! Specs: `KIND:PLACE[?OPTION=VALUE&...][#FROM..TO]`, where any spec may choose rows by
//! `shuffle=SEED`, `split=train|test` and `part=SHARE`; docs/data.md has them all.
//!
//! | spec | rows |
//! |---|---|
//! | `digits:train`, `digits:test` | the embedded sample, fixed split |
//! | `mnist:FILE`, `mnist:DIR` | handwritten digits as CSV or idx files |
//! | `csv:FILE?label=last&shape=1,8,8&scale=16` | numbers, one row a sample, `.gz` too |
//! | `npy:FILE?labels=FILE`, `npz:FILE?input=NAME&labels=NAME` | one array, first axis is the sample |
//! | `images:DIR?size=224,224` | PNG and JPEG pictures, folders are classes |
//! | `bytes:DIR?labels=CONFIG.json` | first and last bytes of files, as byte classifiers read them |
//! | `text:FILE`, `jsonl:FILE`, `csv:FILE?text=COLUMN` | texts, see [`TextSet`] |

mod bytes;
mod csv;
mod digits;
mod images;
mod mnist;
mod npy;
mod npz;
mod place;
mod random;
mod select;
mod shared;
mod spec;
mod texts;
mod tokens;

pub use npz::arrays;
pub use place::located;
pub use random::{InputShape, random_inputs};
pub use shared::{Shared, shared};
pub use spec::Spec;
pub use texts::TextSet;
pub(crate) use tokens::batch as token_batch;
pub use tokens::{Padding, TokenSet};

use crate::error::{Error, Result};
use crate::save;
use crate::tensor::Tensor;
use select::Selection;
use std::ops::Range;

/// Rows of one input, labelled or not.
#[derive(Debug, Clone)]
pub struct DataSet {
    spec: String,
    input: Tensor,
    labels: Vec<usize>,
    classes: Vec<String>,
    hash: String,
    notes: Vec<String>,
}

/// A batch: input tensor and its labels (empty where the data has none).
#[derive(Debug, Clone)]
pub struct Batch {
    /// Rows, first axis is the sample.
    pub input: Tensor,
    /// Class indices.
    pub labels: Vec<usize>,
}

/// What a reader gives before the range is applied.
struct Rows {
    input: Tensor,
    labels: Vec<usize>,
    classes: Vec<String>,
    notes: Vec<String>,
}

impl Rows {
    /// The chosen rows, in their order; all where none is chosen.
    fn chosen(mut self, chosen: Option<Vec<usize>>) -> Rows {
        if let Some(chosen) = chosen {
            self.input = self.input.selected(0, &chosen);
            if !self.labels.is_empty() {
                self.labels = chosen.iter().map(|i| self.labels[*i]).collect();
            }
        }
        self
    }
}

impl DataSet {
    /// Reads the data that a spec names. Errors name file, row and column or the faulty option.
    pub fn open(text: &str) -> Result<DataSet> {
        DataSet::read(text).map_err(|e| e.field(text))
    }

    fn read(text: &str) -> Result<DataSet> {
        let spec = Spec::parse(text)?;
        if TextSet::is_text(text) {
            return Err(Error::usage("DATA-TEXT", "these data are texts, and numbers are needed")
                .field(text)
                .hint("texts are for models with a tokenizer: `tinsmith eval MODEL --task lm --data ...`"));
        }
        let selection = Selection::take(&spec)?;
        let rows = match spec.kind.as_str() {
            "digits" => digits::read(&spec)?,
            "csv" => csv::read(&spec)?,
            "npy" => npy::read(&spec)?,
            "npz" => npz::read(&spec)?,
            "bytes" => bytes::read(&spec)?,
            "images" => {
                // The rows are chosen before they are decoded.
                let rows = images::read(&spec, &selection)?;
                return DataSet::assemble(text, rows);
            }
            "mnist" => mnist::read(&spec)?,
            other => {
                return Err(Error::usage("DATA-KIND", "unknown kind of data")
                    .field(text)
                    .found(other)
                    .limit("digits, mnist, csv, npy, npz, images, bytes; text and jsonl for tasks on texts")
                    .hint("for example csv:FILE?label=last or digits:test"));
            }
        };
        let count = rows.input.shape().first().copied().unwrap_or(0);
        let chosen = selection.apply(count, &rows.labels)?;
        DataSet::assemble(text, rows.chosen(chosen))
    }

    fn assemble(text: &str, rows: Rows) -> Result<DataSet> {
        let Rows { input, labels, classes, notes } = rows;
        if input.shape().first().copied().unwrap_or(0) == 0 {
            return Err(Error::invalid("DATA-EMPTY", "the data have no rows")
                .field(text)
                .hint("name data that hold something"));
        }
        let mut content = Vec::with_capacity(input.byte_len() as usize + labels.len() * 8);
        content.extend(format!("{}{:?}", input.dtype(), input.shape()).into_bytes());
        input.write_raw(&mut content)?;
        labels.iter().for_each(|l| content.extend((*l as u64).to_le_bytes()));
        let hash = save::sha256(&content);
        Ok(DataSet { spec: text.into(), input, labels, classes, hash, notes })
    }

    /// The spec it was read from.
    pub fn spec(&self) -> &str {
        &self.spec
    }
    /// Number of rows.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.input.shape()[0]
    }
    /// All rows.
    pub fn input(&self) -> &Tensor {
        &self.input
    }
    /// Class indices, one a row; empty where the data has none.
    pub fn labels(&self) -> &[usize] {
        &self.labels
    }
    /// Class names, where known.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }
    /// SHA-256 of type, shape, elements and labels.
    pub fn hash(&self) -> &str {
        &self.hash
    }
    /// What the reader skipped.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Batches of at most `size` rows, in order.
    pub fn batches(&self, size: usize) -> impl Iterator<Item = Result<Batch>> + '_ {
        let size = size.max(1);
        (0..self.len()).step_by(size).map(move |start| {
            let rows = start..(start + size).min(self.len());
            let labels = if self.labels.is_empty() { vec![] } else { self.labels[rows.clone()].to_vec() };
            Ok(Batch { input: rows_of(&self.input, rows)?, labels })
        })
    }
}

/// A range of rows as a tensor of its own.
fn rows_of(input: &Tensor, rows: Range<usize>) -> Result<Tensor> {
    let inner: usize = input.shape()[1..].iter().product();
    let mut shape = input.shape().to_vec();
    shape[0] = rows.len();
    let data = crate::map_data!(&*input.data()?, v => v[rows.start * inner..rows.end * inner].to_vec());
    Tensor::new(input.dtype(), shape, data)
}

#[cfg(test)]
mod tests;
