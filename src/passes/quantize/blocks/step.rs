//! The grid of one block: how it is found.

use super::{Form, Weighing, Zero};
use crate::kernels::packed::Bits;

/// Grids that a least squares fit starts from, from a step less over the block to a step more.
const STARTS: i32 = 10;

/// Scale, zero point and offset of a block: a level stands for `scale * (level - zero) + offset`. The offset
/// is zero unless zero points are real.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Step {
    pub(super) scale: f32,
    pub(super) zero: u8,
    pub(super) offset: f32,
}

impl Step {
    pub(super) fn level(self, w: f32, bits: Bits) -> u8 {
        let level = nearest((w - self.offset) / self.scale) + f32::from(self.zero);
        level.clamp(0.0, f32::from(bits.most())) as u8
    }

    pub(super) fn value(self, level: u8) -> f32 {
        self.scale * (f32::from(level) - f32::from(self.zero)) + self.offset
    }

    fn whole(scale: f32, zero: u8) -> Step {
        Step { scale, zero, offset: 0.0 }
    }

    /// The grid whose lowest level stands for `least`.
    fn real(scale: f32, least: f32, bits: Bits) -> Step {
        let zero = bits.middle();
        Step { scale, zero, offset: least + scale * f32::from(zero) }
    }

    /// The grid that reaches over all elements of `block`.
    pub(super) fn over(block: &[f32], form: Form) -> Step {
        let most = f32::from(form.bits.most());
        let reach = |start: (f32, f32)| block.iter().fold(start, |(a, b), w| (a.min(*w), b.max(*w)));
        let (min, max) = reach((0.0, 0.0));
        match form.zero {
            Zero::Middle => {
                // One side has a level more; it goes to the furthest element.
                let furthest = if -min > max { min } else { max };
                Step::whole(sound(furthest / -f32::from(form.bits.middle())), form.bits.middle())
            }
            Zero::Whole => {
                let scale = sound((max - min) / most);
                Step::whole(scale, (-min / scale).round_ties_even().clamp(0.0, most) as u8)
            }
            Zero::Real => {
                let first = block.first().copied().unwrap_or(0.0);
                let (min, max) = reach((first, first));
                if max - min < f32::MIN_POSITIVE {
                    return Step { scale: 1.0, zero: form.bits.middle(), offset: min };
                }
                Step::real((max - min) / most, min, form.bits)
            }
        }
    }

    /// The grid with the least squared error among narrower and wider ones.
    pub(super) fn least(block: &[f32], form: Form) -> Step {
        if form.zero == Zero::Real {
            return Step::fitted(block, form, None);
        }
        let whole = Step::over(block, form);
        let cost = |step: Step| -> f32 {
            block.iter().map(|w| (w - step.value(step.level(*w, form.bits))).powi(2)).sum()
        };
        let mut best = (cost(whole), whole);
        for part in (0..14).map(|k| 1.05 - 0.03 * k as f32) {
            let scale = sound(whole.scale * part);
            for zero in near(whole.zero, form) {
                let step = Step::whole(scale, zero);
                let found = cost(step);
                if found < best.0 {
                    best = (found, step);
                }
            }
        }
        best.1
    }

    /// The grid with the least weighted squared error among those that a least squares fit leads to from
    /// narrower and wider ones.
    pub(super) fn fitted(block: &[f32], form: Form, weighing: Option<Weighing<'_>>) -> Step {
        let weight = |i: usize, w: f32| -> f64 {
            let Some(by) = weighing else { return 1.0 };
            let input = by.inputs.map_or(1.0, |of| of[i]);
            f64::from(input * (by.power + w * w).sqrt()) + f64::MIN_POSITIVE
        };
        let weights: Vec<f64> = block.iter().enumerate().map(|(i, w)| weight(i, *w)).collect();
        let cost = |step: Step| -> f64 {
            let error = |w: &f32| f64::from(w - step.value(step.level(*w, form.bits))).powi(2);
            block.iter().zip(&weights).map(|(w, weight)| weight * error(w)).sum()
        };
        let over = Step::over(block, form);
        let mut best = (cost(over), over);
        let most = f32::from(form.bits.most());
        for start in -STARTS..=STARTS {
            let scale = over.scale * most / (most + 0.1 * start as f32);
            let starts = match form.zero {
                // A grid of the same middle.
                Zero::Real => {
                    let middle = over.value(0) + over.scale * most / 2.0;
                    vec![Step::real(scale, middle - scale * most / 2.0, form.bits)]
                }
                _ => near(over.zero, form).map(|zero| Step::whole(scale, zero)).collect(),
            };
            for start in starts {
                let levels = block.iter().map(|w| start.level(*w, form.bits));
                let step = squares(block, &weights, levels, start, form);
                let found = cost(step);
                if found < best.0 {
                    best = (found, step);
                }
            }
        }
        best.1
    }

    /// Half-quadratic search for the zero point (Badri and Shaji 2023): what is left of the errors when those
    /// of the norm of 0.7 are shrunk moves it. Errors are taken in steps of the grid, so that the unit of the
    /// weights is none to it. The iteration has real zero points; whole ones are the nearest to its end.
    pub(super) fn half_quadratic(block: &[f32], form: Form) -> Step {
        const POWER: f32 = 0.7;
        const ROUNDS: usize = 20;
        let (most, over) = (f32::from(form.bits.most()), Step::over(block, form));
        if form.zero == Zero::Middle {
            return over;
        }
        let scaled: Vec<f32> = block.iter().map(|w| w / over.scale).collect();
        let mut zero = f32::from(over.zero) - over.offset / over.scale;
        let (mut beta, mut best) = (10f32, (f32::INFINITY, zero));
        for _ in 0..ROUNDS {
            let (mut error, mut sum) = (0.0, 0.0);
            for w in &scaled {
                let level = nearest(w + zero).clamp(0.0, most);
                let off = w - (level - zero);
                error += off.abs().powf(POWER);
                let kept = (off.abs() - off.abs().max(1e-6).powf(POWER - 1.0) / beta).max(0.0);
                sum += level - (w - kept.copysign(off));
            }
            if error < best.0 {
                best = (error, zero);
            }
            zero = sum / scaled.len().max(1) as f32;
            beta *= 1.01;
        }
        match form.zero {
            Zero::Real => Step::real(over.scale, -best.1 * over.scale, form.bits),
            _ => Step::whole(over.scale, best.1.round_ties_even().clamp(0.0, most) as u8),
        }
    }
}

/// Zero points around one.
fn near(zero: u8, form: Form) -> impl Iterator<Item = u8> {
    let around = if form.zero == Zero::Whole { -1..=1 } else { 0..=0 };
    around.filter_map(move |d| zero.checked_add_signed(d)).filter(move |z| *z <= form.bits.most())
}

/// The grid of least weighted squared error for elements at these levels; `start` where they tell none.
fn squares(
    block: &[f32],
    weights: &[f64],
    levels: impl Iterator<Item = u8>,
    start: Step,
    form: Form,
) -> Step {
    let (mut n, mut l, mut x, mut ll, mut lx) = (0f64, 0f64, 0f64, 0f64, 0f64);
    for ((w, weight), level) in block.iter().zip(weights).zip(levels) {
        let (w, level) = (f64::from(*w), f64::from(level) - f64::from(start.zero));
        n += weight;
        l += weight * level;
        x += weight * w;
        ll += weight * level * level;
        lx += weight * level * w;
    }
    let (scale, offset) = match form.zero {
        Zero::Real => {
            let determinant = n * ll - l * l;
            let scale = (n * lx - l * x) / determinant;
            (scale, (ll * x - l * lx) / determinant)
        }
        _ => (lx / ll, 0.0),
    };
    let found = Step { scale: scale as f32, zero: start.zero, offset: offset as f32 };
    let fine = found.scale.abs() >= f32::MIN_POSITIVE && found.scale.is_finite() && found.offset.is_finite();
    if fine { found } else { start }
}

/// The nearest integer, halves to even, of what lies within 2^22 of zero; any integer as far of what lies
/// further. Adding 1.5 * 2^23 leaves no bits for fractions, and is an instruction on every processor.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    const ALL_WHOLE: f32 = 12_582_912.0;
    (x.clamp(-4_194_304.0, 4_194_303.0) + ALL_WHOLE) - ALL_WHOLE
}

/// A scale that can be divided by.
fn sound(scale: f32) -> f32 {
    if scale.abs() < f32::MIN_POSITIVE || !scale.is_finite() { 1.0 } else { scale }
}
