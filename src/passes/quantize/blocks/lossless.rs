//! Weights that lie on a grid of few bits in blocks already, as those do that a GGUF file stores in Q4_0, Q4_1,
//! Q5_0, Q5_1 or Q8_0. The grid is found from the values alone: elements of a block are whole multiples of a
//! power of two, and the greatest common divisor of their differences is the step.

use super::step::Step;
use super::{Blocks, Form, Zero};
use crate::kernels::packed::Bits;
use rayon::prelude::*;

/// Elements of one block in units of a power of two.
struct Whole {
    unit: f64,
    elements: Vec<i64>,
}

fn whole(block: &[f32]) -> Option<Whole> {
    let parts = |w: f32| -> (i64, i32) {
        let bits = w.to_bits();
        let exponent = (bits >> 23 & 0xff) as i32;
        let mantissa = i64::from(bits & 0x7f_ffff) | if exponent > 0 { 1 << 23 } else { 0 };
        let shift = mantissa.trailing_zeros() as i32;
        let signed = if w < 0.0 { -mantissa } else { mantissa };
        if mantissa == 0 { (0, i32::MAX) } else { (signed >> shift, exponent.max(1) - 150 + shift) }
    };
    let parts: Vec<(i64, i32)> = block.iter().map(|w| parts(*w)).collect();
    let least = parts.iter().map(|p| p.1).min().filter(|e| *e < i32::MAX).unwrap_or(0);
    // An element has 24 bits and a difference one more: what does not fit is no grid of few bits.
    let element = |(mantissa, exponent): &(i64, i32)| match exponent {
        _ if *mantissa == 0 => Some(0),
        e if e - least <= 38 => Some(mantissa << (e - least)),
        _ => None,
    };
    let elements = parts.iter().map(element).collect::<Option<Vec<i64>>>()?;
    Some(Whole { unit: 2f64.powi(least), elements })
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a.abs() } else { gcd(b, a % b) }
}

/// The grids of a block, by the kind of zero point: the first that suffices for all blocks is taken.
fn grids(block: &[f32], bits: Bits) -> Option<[Option<Step>; 3]> {
    let Whole { unit, elements } = whole(block)?;
    let (least, most) = (*elements.iter().min()?, *elements.iter().max()?);
    let middle = bits.middle();
    let fits = |step: i64, zero: u8, offset: f64, sign: f32| -> Option<Step> {
        let step = Step { scale: sign * (step as f64 * unit) as f32, zero, offset: offset as f32 };
        let exact = |w: &f32| {
            let level = f64::from(step.level(*w, bits)) - f64::from(step.zero);
            f64::from(step.scale) * level + f64::from(step.offset) == f64::from(*w)
        };
        (step.scale != 0.0 && step.scale.is_finite() && block.iter().all(exact)).then_some(step)
    };
    // From zero on, and from the least element on.
    let step = elements.iter().fold(0, |g, e| gcd(g, *e)).max(1);
    let apart = elements.iter().fold(0, |g, e| gcd(g, e - least)).max(1);
    let zero = (-least / step).clamp(0, i64::from(bits.most())) as u8;
    let lowest = (least + apart * i64::from(middle)) as f64 * unit;
    let found = [
        fits(step, middle, 0.0, 1.0).or_else(|| fits(step, middle, 0.0, -1.0)),
        fits(step, zero, 0.0, 1.0),
        ((most - least) / apart <= i64::from(bits.most()))
            .then(|| fits(apart, middle, lowest, 1.0))
            .flatten(),
    ];
    found.iter().any(Option::is_some).then_some(found)
}

impl Blocks {
    /// `w` `[outputs, inputs]` with its values as they are, on 4 bits where they suffice, else on 8. None where
    /// it does not lie on such a grid. Real zero points only where `real`.
    pub(in super::super) fn lossless(
        w: &[f32],
        inputs: usize,
        block: usize,
        real: bool,
    ) -> Option<(Form, Blocks)> {
        [Bits::Four, Bits::Eight].into_iter().find_map(|bits| {
            let found = w
                .par_chunks(inputs)
                .map(|row| row.chunks(block).map(|b| grids(b, bits)).collect::<Option<Vec<_>>>())
                .collect::<Option<Vec<_>>>()?;
            let zeros = [(Zero::Middle, true), (Zero::Whole, true), (Zero::Real, real)];
            let one = |(zero, may): (Zero, bool)| {
                // A grid with fewer freedoms serves where more are allowed.
                let of = |[middle, whole, real]: &[Option<Step>; 3]| match zero {
                    Zero::Middle => *middle,
                    Zero::Whole => whole.or(*middle),
                    Zero::Real => middle.or(*real),
                };
                let steps = found.iter().flatten().map(of).collect::<Option<Vec<Step>>>();
                steps.filter(|_| may).map(|steps| (zero, steps))
            };
            let (zero, steps) = zeros.into_iter().find_map(one)?;
            let form = Form { bits, block, zero };
            let mut out = Blocks::empty(w.len() / inputs, inputs, form);
            steps.iter().enumerate().for_each(|(at, step)| out.set(at, *step));
            let per_row = inputs.div_ceil(block);
            out.levels
                .par_chunks_mut(inputs)
                .zip(w.par_chunks(inputs))
                .zip(steps.par_chunks(per_row))
                .for_each(|((levels, w), steps)| {
                    let blocks = levels.chunks_mut(block).zip(w.chunks(block)).zip(steps);
                    blocks.for_each(|((levels, w), step)| {
                        levels.iter_mut().zip(w).for_each(|(q, w)| *q = step.level(*w, bits));
                    });
                });
            Some((form, out))
        })
    }
}
