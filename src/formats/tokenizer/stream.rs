//! Text piece by piece while token ids arrive: bytes of one character may be spread over several
//! tokens, and some decoders treat the first token of a text in a way of its own.

use super::Tokenizer;
use crate::error::Result;

/// Most tokens that are held back while a character is incomplete.
const HELD: usize = 16;

/// Collects ids and gives out text as soon as it is certain.
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    skip_special: bool,
    ids: Vec<u32>,
    /// `ids[..shown]` are given out; they stay as the context of the others.
    shown: usize,
}

impl<'t> TextStream<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer, skip_special: bool) -> TextStream<'t> {
        TextStream { tokenizer, skip_special, ids: Vec::new(), shown: 0 }
    }

    /// Takes an id; the text that is certain now, possibly none.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        self.advance(false)
    }

    /// The rest, with replacement characters where it is incomplete.
    pub fn finish(mut self) -> Result<String> {
        self.advance(true)
    }

    fn advance(&mut self, all: bool) -> Result<String> {
        let context = self.tokenizer.decode(&self.ids[..self.shown], self.skip_special)?;
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        let open = text.ends_with('\u{fffd}') && self.ids.len() - self.shown < HELD;
        if open && !all {
            return Ok(String::new());
        }
        let Some(new) = text.strip_prefix(&context) else {
            // The new tokens changed how the context reads; what is out cannot be taken back.
            let common = text.chars().zip(context.chars()).take_while(|(a, b)| a == b);
            let bytes: usize = common.map(|(c, _)| c.len_utf8()).sum();
            let new = text[bytes..].to_string();
            self.forget();
            return Ok(new);
        };
        let new = new.to_string();
        self.forget();
        Ok(new)
    }

    /// Keeps the tokens of the last piece as context and drops those before it.
    fn forget(&mut self) {
        if self.shown > 0 && self.shown < self.ids.len() {
            self.ids.drain(..self.shown);
        }
        self.shown = self.ids.len();
    }
}
