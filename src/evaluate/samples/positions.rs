//! Which positions of a batch are padding. A batch enters; for the elements of a value computed of it,
//! the rows that they belong to leave.

use super::Batch;
use crate::error::Result;
use crate::tensor::Tensor;

/// Which positions of a batch are no padding; all where the batch has no mask.
#[derive(Debug)]
pub struct Positions {
    rows: usize,
    tokens: usize,
    mask: Option<Vec<bool>>,
    real: usize,
}

impl Positions {
    /// Those of a batch; an input named `attention_mask` of `[rows, tokens]` tells padding.
    ///
    /// # Errors
    /// Those of reading the mask.
    pub fn of(batch: &Batch) -> Result<Positions> {
        let mask = batch.inputs.iter().find(|(n, _)| n == "attention_mask").map(|(_, t)| t);
        let shape = mask.map(Tensor::shape).unwrap_or_default();
        let (rows, tokens) = match *shape {
            [rows, tokens] => (rows, tokens),
            _ => (batch.rows, 0),
        };
        let mask = match mask.filter(|_| tokens > 0) {
            Some(t) => Some(t.to_i64s()?.iter().map(|m| *m != 0).collect()),
            None => None,
        };
        Ok(Positions { rows, tokens, mask, real: batch.rows })
    }

    /// For each element in front of `axis` of a value of this shape: the row of the batch that it
    /// belongs to, none for padding.
    pub fn rows_of(&self, shape: &[usize], axis: usize) -> Vec<Option<usize>> {
        let outer: usize = shape[..axis].iter().product();
        let first = shape.first().copied().unwrap_or(1).max(1);
        let by_token = match *shape {
            [rows, tokens, ..] if axis >= 2 => (rows, tokens) == (self.rows, self.tokens),
            _ => false,
        };
        let flat = axis >= 1 && self.tokens > 0 && first == self.rows * self.tokens;
        let in_front: usize = shape[..axis.min(if flat { 1 } else { 2 })].iter().product();
        (0..outer)
            .map(|o| {
                let row = match flat {
                    true => o / (outer / first).max(1) / self.tokens.max(1),
                    false if axis == 0 => 0,
                    false => o / (outer / first).max(1),
                };
                let shown = match &self.mask {
                    Some(mask) if flat || by_token => {
                        mask.get(o / (outer / in_front.max(1)).max(1)).copied().unwrap_or(true)
                    }
                    _ => true,
                };
                (shown && row < self.real).then_some(row)
            })
            .collect()
    }
}
