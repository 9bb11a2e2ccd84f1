//! Texts as token ids: rows that a [`Tokenizer`] made, in batches of named tensors as models of text
//! take them (`input_ids`, `attention_mask`, `token_type_ids`). Knows no model.

use super::TextSet;
use crate::error::{Error, Result};
use crate::formats::Tokenizer;
use crate::tensor::Tensor;
use rayon::prelude::*;

/// How rows of a batch come to one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// To the longest row of the batch.
    Longest,
    /// To this length.
    To(usize),
}

/// Rows of token ids.
#[derive(Debug, Clone)]
pub struct TokenSet {
    rows: Vec<Vec<u32>>,
    labels: Vec<usize>,
    pad: u32,
    cut: usize,
    hash: String,
}

impl TokenSet {
    /// Tokenises every row, with the special tokens that the tokenizer puts around a text. Rows longer
    /// than `longest` tokens are cut; the tokens that end a row stay at its end.
    pub fn of(texts: &TextSet, tokenizer: &Tokenizer, longest: usize) -> Result<TokenSet> {
        TokenSet::cut_to(texts, tokenizer, longest, &|_| longest, &format!("{longest}"))
    }

    /// As [`TokenSet::of`], but rows that are longer than `longest` are cut to different lengths from an
    /// eighth of it on, evenly by their logarithm. Some units tell how long a row is: over rows of one
    /// length they look constant.
    pub fn varied(texts: &TextSet, tokenizer: &Tokenizer, longest: usize) -> Result<TokenSet> {
        const GOLDEN: f64 = 0.618_033_988_749_895;
        let length = |row: usize| {
            let part = ((row + 1) as f64 * GOLDEN).fract();
            ((longest as f64 * 0.125f64.powf(part)).round() as usize).clamp(longest.min(8), longest)
        };
        TokenSet::cut_to(texts, tokenizer, longest, &length, &format!("varied{longest}"))
    }

    /// Rows longer than `longest` are cut to `length` of their number.
    fn cut_to(
        texts: &TextSet,
        tokenizer: &Tokenizer,
        longest: usize,
        length: &dyn Fn(usize) -> usize,
        how: &str,
    ) -> Result<TokenSet> {
        let ending = ending(tokenizer)?;
        if longest <= ending.len() {
            return Err(Error::usage("TOKENS-LENGTH", "rows of this length hold no text")
                .found(longest)
                .limit(format!("more than {}", ending.len())));
        }
        let mut rows = (0..texts.len())
            .into_par_iter()
            .map(|row| {
                tokenizer.encode(&texts.text(row)?, true).map_err(|e| e.field(format!("row {}", row + 1)))
            })
            .collect::<Result<Vec<Vec<u32>>>>()?;
        let mut cut = 0;
        for (i, row) in rows.iter_mut().enumerate().filter(|(_, row)| row.len() > longest) {
            cut += 1;
            row.truncate(length(i).max(ending.len() + 1) - ending.len());
            row.extend(&ending);
        }
        let special = tokenizer.special();
        let pad = special.pad.or(special.eos.first().copied()).unwrap_or(0);
        let hash = crate::save::sha256(format!("{}{}{how}", texts.hash(), tokenizer.digest()).as_bytes());
        Ok(TokenSet { rows, labels: texts.labels().to_vec(), pad, cut, hash })
    }

    /// Cuts documents into rows of `length` tokens that follow each other without overlap, each begun
    /// with the token that begins a text where the tokenizer puts one there. What is left of a document
    /// is a row too, unless it is a single token.
    pub fn windows(texts: &TextSet, tokenizer: &Tokenizer, length: usize) -> Result<TokenSet> {
        let before = tokenizer.beginning()?;
        let room = length.saturating_sub(before.len());
        if room < 2 {
            return Err(Error::usage("TOKENS-LENGTH", "rows of this length predict nothing")
                .found(length)
                .limit(format!("{} or more", before.len() + 2)));
        }
        let mut rows = Vec::new();
        for text in texts.documents() {
            let ids = tokenizer.encode(&text?, false)?;
            let cut = ids.chunks(room).filter(|c| c.len() > 1);
            rows.extend(cut.map(|c| before.iter().chain(c).copied().collect::<Vec<u32>>()));
        }
        let special = tokenizer.special();
        let pad = special.pad.or(special.eos.first().copied()).unwrap_or(0);
        let content = format!("windows{}{}{length}", texts.hash(), tokenizer.digest());
        let hash = crate::save::sha256(content.as_bytes());
        Ok(TokenSet { rows, labels: Vec::new(), pad, cut: 0, hash })
    }

    /// Number of rows.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.rows.len()
    }
    /// Ids of each row.
    pub fn rows(&self) -> &[Vec<u32>] {
        &self.rows
    }
    /// Class indices, one a row; empty where the data has none.
    pub fn labels(&self) -> &[usize] {
        &self.labels
    }
    /// Rows that were cut.
    pub fn cut(&self) -> usize {
        self.cut
    }
    /// SHA-256 over data, tokenizer and length.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// These rows, in this order, as [`TokenSet::batch`] gives them.
    pub fn batch_of(&self, rows: &[usize], padding: Padding) -> Result<Vec<(String, Tensor)>> {
        let rows: Vec<Vec<u32>> = rows.iter().map(|r| self.rows[*r].clone()).collect();
        self.padded(&rows, padding)
    }

    /// Rows `from..to` as `input_ids` and `attention_mask` `[rows, length]`, i64, padded at the end.
    pub fn batch(&self, from: usize, to: usize, padding: Padding) -> Result<Vec<(String, Tensor)>> {
        self.padded(&self.rows[from..to.min(self.rows.len())], padding)
    }

    fn padded(&self, rows: &[Vec<u32>], padding: Padding) -> Result<Vec<(String, Tensor)>> {
        let length = match padding {
            Padding::Longest => rows.iter().map(Vec::len).max().unwrap_or(0).max(1),
            Padding::To(length) => length,
        };
        batch(rows, length, self.pad)
    }
}

/// Rows as `input_ids`, `attention_mask` and `token_type_ids` `[rows, length]`, i64, padded at the end
/// with `pad`.
pub(crate) fn batch(rows: &[Vec<u32>], length: usize, pad: u32) -> Result<Vec<(String, Tensor)>> {
    let mut ids = Vec::with_capacity(rows.len() * length);
    let mut mask = Vec::with_capacity(rows.len() * length);
    for row in rows {
        let used = row.len().min(length);
        ids.extend(row[..used].iter().map(|id| i64::from(*id)));
        ids.extend(std::iter::repeat_n(i64::from(pad), length - used));
        mask.extend(std::iter::repeat_n(1i64, used));
        mask.extend(std::iter::repeat_n(0i64, length - used));
    }
    let shape = vec![rows.len(), length];
    let types = vec![0i64; ids.len()];
    Ok(vec![
        ("input_ids".into(), Tensor::from_vec(shape.clone(), ids)?),
        ("attention_mask".into(), Tensor::from_vec(shape.clone(), mask)?),
        ("token_type_ids".into(), Tensor::from_vec(shape, types)?),
    ])
}

/// The tokens behind every text.
fn ending(tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let (plain, full) = (tokenizer.encode("a", false)?, tokenizer.encode("a", true)?);
    let behind = full.windows(plain.len().max(1)).rposition(|w| w == plain.as_slice());
    Ok(behind.map_or_else(Vec::new, |at| full[at + plain.len()..].to_vec()))
}
