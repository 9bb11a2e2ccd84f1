//! Weights in blocks of few bits: each block along the inner axis of a product has a scale and a zero
//! point, `w = scale * (q - zero)`. How a block's grid is found, and how elements are rounded to it.

mod gptq;

pub(super) use gptq::Sensitivity;

use crate::kernels::packed::Bits;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How weights are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    /// To the nearest level of a grid over all elements of the block.
    #[default]
    Rtn,
    /// To the nearest level of the grid with the least squared error.
    Mse,
    /// To the nearest level of the grid with the least sum of errors to the power of 0.7, which lets few
    /// elements be wrong so that the others are right (the objective of HQQ, Badri and Shaji 2023, over
    /// whole zero points).
    Hqq,
    /// On the grid of `mse`, one input after the other, what is wrong made up for by those that follow, so
    /// that the output of the product is right on calibration data (GPTQ, arXiv 2210.17323).
    Gptq,
}

/// The shape of a grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) bits: Bits,
    /// Elements of a block.
    pub(super) block: usize,
    /// The zero point is in the middle.
    pub(super) symmetric: bool,
}

/// A quantised weight `[outputs, inputs]`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Blocks {
    /// `[outputs, inputs]`.
    pub(super) levels: Vec<u8>,
    /// `[outputs, blocks]`.
    pub(super) scales: Vec<f32>,
    /// `[outputs, blocks]`.
    pub(super) zeros: Vec<u8>,
}

/// Scale and zero point of a block.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Step {
    scale: f32,
    zero: u8,
}

impl Step {
    fn level(self, w: f32, bits: Bits) -> u8 {
        let level = (w / self.scale).round_ties_even() + f32::from(self.zero);
        level.clamp(0.0, f32::from(bits.most())) as u8
    }

    fn value(self, level: u8) -> f32 {
        self.scale * (f32::from(level) - f32::from(self.zero))
    }

    /// The grid that reaches over all elements of `block`.
    fn over(block: &[f32], form: Form) -> Step {
        let (min, max) = block.iter().fold((0f32, 0f32), |(a, b), w| (a.min(*w), b.max(*w)));
        let most = f32::from(form.bits.most());
        if form.symmetric {
            // One side has a level more; it goes to the furthest element.
            let furthest = if -min > max { min } else { max };
            let scale = furthest / -f32::from(form.bits.middle());
            return Step { scale: sound(scale), zero: form.bits.middle() };
        }
        let scale = sound((max - min) / most);
        Step { scale, zero: (-min / scale).round_ties_even().clamp(0.0, most) as u8 }
    }

    /// The grid with the least sum of `cost` of errors among narrower and wider ones.
    fn least(block: &[f32], form: Form, cost: impl Fn(f32) -> f32) -> Step {
        let whole = Step::over(block, form);
        let cost = |step: Step| -> f32 {
            block.iter().map(|w| cost(w - step.value(step.level(*w, form.bits)))).sum()
        };
        let mut best = (cost(whole), whole);
        for part in (0..14).map(|k| 1.05 - 0.03 * k as f32) {
            let scale = sound(whole.scale * part);
            let near = if form.symmetric { 0..=0 } else { -1..=1 };
            for zero in
                near.filter_map(|d| whole.zero.checked_add_signed(d)).filter(|z| *z <= form.bits.most())
            {
                let step = Step { scale, zero };
                let found = cost(step);
                if found < best.0 {
                    best = (found, step);
                }
            }
        }
        best.1
    }
}

/// A scale that can be divided by.
fn sound(scale: f32) -> f32 {
    if scale.abs() < f32::MIN_POSITIVE || !scale.is_finite() { 1.0 } else { scale }
}

impl Blocks {
    fn empty(outputs: usize, inputs: usize, form: Form) -> Blocks {
        let blocks = outputs * inputs.div_ceil(form.block);
        Blocks { levels: vec![0; outputs * inputs], scales: vec![0.0; blocks], zeros: vec![0; blocks] }
    }

    /// `w` `[outputs, inputs]` rounded block by block.
    pub(super) fn rounded(w: &[f32], inputs: usize, form: Form, rounding: Rounding) -> Blocks {
        let mut out = Blocks::empty(w.len() / inputs, inputs, form);
        let per_row = inputs.div_ceil(form.block);
        out.levels
            .par_chunks_mut(inputs)
            .zip(out.scales.par_chunks_mut(per_row).zip(out.zeros.par_chunks_mut(per_row)))
            .zip(w.par_chunks(inputs))
            .for_each(|((levels, (scales, zeros)), w)| {
                let grids = scales.iter_mut().zip(zeros);
                let blocks = levels.chunks_mut(form.block).zip(w.chunks(form.block)).zip(grids);
                for ((levels, w), (scale, zero)) in blocks {
                    let step = match rounding {
                        Rounding::Rtn => Step::over(w, form),
                        Rounding::Hqq => Step::least(w, form, |e| e.abs().powf(0.7)),
                        Rounding::Mse | Rounding::Gptq => Step::least(w, form, |e| e * e),
                    };
                    levels.iter_mut().zip(w).for_each(|(q, w)| *q = step.level(*w, form.bits));
                    (*scale, *zero) = (step.scale, step.zero);
                }
            });
        out
    }

    /// The weight that is left, `[outputs, inputs]`.
    pub(super) fn spelled(&self, inputs: usize, form: Form) -> Vec<f32> {
        let per_row = inputs.div_ceil(form.block);
        let one = |(i, q): (usize, &u8)| {
            let at = i / inputs * per_row + i % inputs / form.block;
            Step { scale: self.scales[at], zero: self.zeros[at] }.value(*q)
        };
        self.levels.par_iter().enumerate().map(one).collect()
    }

    /// Levels as bytes `[outputs, blocks, bytes of a block]`, the last block of a row filled up.
    pub(super) fn packed(&self, inputs: usize, form: Form) -> Vec<u8> {
        let bytes = form.bits.bytes(form.block);
        let per_row = inputs.div_ceil(form.block) * bytes;
        let mut out = vec![0u8; self.levels.len() / inputs * per_row];
        out.par_chunks_mut(per_row).zip(self.levels.par_chunks(inputs)).for_each(|(out, levels)| {
            let blocks = out.chunks_mut(bytes).zip(levels.chunks(form.block));
            blocks.for_each(|(out, levels)| form.bits.pack(levels, out));
        });
        out
    }

    /// Zero points as bytes, each row of its own bytes.
    pub(super) fn packed_zeros(&self, inputs: usize, form: Form) -> Vec<u8> {
        let blocks = inputs.div_ceil(form.block);
        let per_row = form.bits.bytes(blocks);
        let mut out = vec![0u8; self.zeros.len() / blocks * per_row];
        let rows = out.chunks_mut(per_row).zip(self.zeros.chunks(blocks));
        rows.for_each(|(out, zeros)| form.bits.pack(zeros, out));
        out
    }
}

#[cfg(test)]
mod tests;
