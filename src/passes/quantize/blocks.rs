//! Weights in blocks of few bits: each block along the inner axis of a product has a scale and a zero
//! point, `w = scale * (q - zero)`, or an offset, `w = scale * (q - middle) + offset`. How a block's grid is
//! found, and how elements are rounded to it.

mod gptq;
mod lossless;
mod step;

pub(super) use gptq::Sensitivity;

use crate::kernels::packed::Bits;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use step::Step;

/// How weights are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    /// To the nearest level of a grid over all elements of the block.
    #[default]
    Rtn,
    /// To the nearest level of the grid with the least squared error.
    Mse,
    /// Half-quadratic: the zero point moves to where the errors lie that are left when large ones are
    /// shrunk, by the norm of 0.7 (HQQ, Badri and Shaji 2023).
    Hqq,
    /// Scale and minimum by least squares, each element weighing the mean square of its input on calibration
    /// data, where there are any, and more where it is large: the search of llama.cpp's k-quants.
    KQuant,
    /// On the grid of `mse`, one input after the other, what is wrong made up for by those that follow, so
    /// that the output of the product is right on calibration data (GPTQ, arXiv 2210.17323).
    Gptq,
    /// On the grid of `mse`, inputs that carry much made larger before and smaller where they come from
    /// (AWQ, arXiv 2306.00978).
    Awq,
    /// `gptq` on the weights that `awq` has scaled.
    AwqGptq,
    /// Weights that lie on a grid of blocks already keep their values; others stay in float.
    Lossless,
}

impl Rounding {
    /// It needs calibration data.
    pub(super) fn needs_data(self) -> bool {
        matches!(self, Rounding::Gptq | Rounding::Awq | Rounding::AwqGptq)
    }

    /// Weights are scaled before they are rounded.
    pub(super) fn scales(self) -> bool {
        matches!(self, Rounding::Awq | Rounding::AwqGptq)
    }

    /// Weights are rounded by what is known of the data, where there are any.
    pub(super) fn uses_data(self) -> bool {
        matches!(self, Rounding::Gptq | Rounding::AwqGptq | Rounding::KQuant)
    }
}

/// What zero points may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum ZeroPoints {
    /// One of the levels.
    #[default]
    Whole,
    /// Any number: a block has an f32 that is added to its elements instead, and the product gets sums over
    /// blocks of its data times these.
    Real,
}

/// Where the zero point of a block may lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Zero {
    Middle,
    Whole,
    Real,
}

impl Rounding {
    /// The nearest to it that needs no data.
    pub(super) fn without_data(self) -> Rounding {
        if self == Rounding::Gptq { Rounding::Mse } else { self }
    }
}

/// The shape of a grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) bits: Bits,
    /// Elements of a block.
    pub(super) block: usize,
    pub(super) zero: Zero,
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
    /// What is added to each element of a block, `[outputs, blocks]`; zeros unless zero points are real.
    pub(super) offsets: Vec<f32>,
}

/// What an element weighs in a search for a grid.
#[derive(Debug, Clone, Copy)]
struct Weighing<'a> {
    /// Mean square of each input of the block, where it is known.
    inputs: Option<&'a [f32]>,
    /// Mean square of the row.
    power: f32,
}

impl Blocks {
    fn empty(outputs: usize, inputs: usize, form: Form) -> Blocks {
        let blocks = outputs * inputs.div_ceil(form.block);
        Blocks {
            levels: vec![0; outputs * inputs],
            scales: vec![0.0; blocks],
            zeros: vec![0; blocks],
            offsets: vec![0.0; blocks],
        }
    }

    fn step(&self, at: usize) -> Step {
        Step { scale: self.scales[at], zero: self.zeros[at], offset: self.offsets[at] }
    }

    fn set(&mut self, at: usize, step: Step) {
        (self.scales[at], self.zeros[at], self.offsets[at]) = (step.scale, step.zero, step.offset);
    }

    /// `w` `[outputs, inputs]` rounded block by block. `power` is the mean square of each input, where it is
    /// known; the rounding `k-quant` goes by it.
    pub(super) fn rounded(
        w: &[f32],
        inputs: usize,
        form: Form,
        rounding: Rounding,
        power: Option<&[f32]>,
    ) -> Blocks {
        let mut out = Blocks::empty(w.len() / inputs, inputs, form);
        let steps: Vec<Vec<Step>> = out
            .levels
            .par_chunks_mut(inputs)
            .zip(w.par_chunks(inputs))
            .map(|(levels, w)| {
                let row = w.iter().map(|w| w * w).sum::<f32>() / inputs as f32;
                let blocks = levels.chunks_mut(form.block).zip(w.chunks(form.block)).enumerate();
                let one = |(at, (levels, w)): (usize, (&mut [u8], &[f32]))| -> Step {
                    let step = match rounding {
                        Rounding::Rtn => Step::over(w, form),
                        Rounding::Hqq => Step::half_quadratic(w, form),
                        Rounding::KQuant => {
                            let of = power.map(|p| &p[at * form.block..][..w.len()]);
                            Step::fitted(w, form, Some(Weighing { inputs: of, power: row }))
                        }
                        Rounding::Mse
                        | Rounding::Awq
                        | Rounding::Gptq
                        | Rounding::AwqGptq
                        | Rounding::Lossless => Step::least(w, form),
                    };
                    levels.iter_mut().zip(w).for_each(|(q, w)| *q = step.level(*w, form.bits));
                    step
                };
                blocks.map(one).collect()
            })
            .collect();
        steps.into_iter().flatten().enumerate().for_each(|(at, step)| out.set(at, step));
        out
    }

    /// The weight that is left, `[outputs, inputs]`.
    pub(super) fn spelled(&self, inputs: usize, form: Form) -> Vec<f32> {
        let per_row = inputs.div_ceil(form.block);
        let one = |(i, q): (usize, &u8)| {
            let at = i / inputs * per_row + i % inputs / form.block;
            self.step(at).value(*q)
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
