//! Ranges of activations and the grids that cover them.

use serde::{Deserialize, Serialize};

/// Element type of quantised activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Activations {
    /// 0 to 255.
    #[default]
    U8,
    /// -128 to 127.
    S8,
}

/// The whole numbers that elements become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Levels {
    least: i32,
    most: i32,
    /// The zero point is in the middle, and both sides reach equally far.
    symmetric: bool,
}

impl Levels {
    pub(super) fn new(kind: Activations, symmetric: bool) -> Levels {
        match kind {
            Activations::U8 => Levels { least: 0, most: 255, symmetric },
            Activations::S8 => Levels { least: -128, most: 127, symmetric },
        }
    }

    pub(super) fn count(self) -> usize {
        self.most.abs_diff(self.least) as usize + 1
    }

    pub(super) fn symmetric(self) -> bool {
        self.symmetric
    }
}

/// Whole numbers and what they stand for: `x = scale * (q - zero)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Grid {
    pub(super) scale: f32,
    pub(super) zero: i32,
    levels: Levels,
}

impl Grid {
    /// The level of `x`, rounded half to even, as ONNX' QuantizeLinear.
    pub(super) fn level(&self, x: f64) -> i32 {
        let q = (x / f64::from(self.scale)).round_ties_even() + f64::from(self.zero);
        q.clamp(f64::from(self.levels.least), f64::from(self.levels.most)) as i32
    }

    /// What a level stands for.
    pub(super) fn value(&self, level: i32) -> f64 {
        f64::from(self.scale) * f64::from(level - self.zero)
    }

    /// The least and the largest value.
    pub(super) fn ends(&self) -> (f64, f64) {
        (self.value(self.levels.least), self.value(self.levels.most))
    }
}

/// Smallest and largest value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Range {
    /// Smallest.
    pub min: f32,
    /// Largest.
    pub max: f32,
}

impl Range {
    /// Nothing seen.
    pub(super) const EMPTY: Range = Range { min: f32::INFINITY, max: f32::NEG_INFINITY };

    /// Covers both.
    pub(super) fn union(self, other: Range) -> Range {
        Range { min: self.min.min(other.min), max: self.max.max(other.max) }
    }

    /// The grid that covers the range. Zero is always on it, so that padding and ReLU are exact.
    pub(super) fn grid(self, levels: Levels) -> Grid {
        let (min, max) = (self.min.min(0.0), self.max.max(0.0));
        let (span, steps) = match levels.symmetric {
            true => (2.0 * max.max(-min), levels.most - levels.least - 1),
            false => (max - min, levels.most - levels.least),
        };
        let steps = steps as f32;
        let middle = (levels.least + levels.most + 1) / 2;
        if !span.is_finite() || span <= f32::MIN_POSITIVE * steps {
            return Grid { scale: 1.0, zero: if levels.symmetric { middle } else { levels.least }, levels };
        }
        let scale = span / steps;
        let zero = match levels.symmetric {
            true => middle,
            false => levels.least + (-min / scale).round_ties_even().clamp(0.0, steps) as i32,
        };
        Grid { scale, zero, levels }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_holds_zero_and_covers_the_range() {
        let grid = |min, max, kind, symmetric| {
            let g = Range { min, max }.grid(Levels::new(kind, symmetric));
            assert_eq!(g.value(g.level(0.0)), 0.0);
            (g.scale, g.zero)
        };
        let u8s = |min, max| grid(min, max, Activations::U8, false);
        assert_eq!(u8s(1.0, 255.0), (1.0, 0));
        let (s, z) = u8s(-1.0, 3.0);
        assert!((s - 4.0 / 255.0).abs() < 1e-9 && z == 64);
        assert_eq!(u8s(0.0, 0.0), (1.0, 0));
        assert_eq!(u8s(f32::INFINITY, f32::NEG_INFINITY), (1.0, 0));
        assert_eq!(grid(-1.0, 3.0, Activations::S8, false).1, 64 - 128);
        assert_eq!(grid(-254.0, 3.0, Activations::S8, true), (2.0, 0));
        assert_eq!(grid(-254.0, 3.0, Activations::U8, true), (2.0, 128));
        assert_eq!(grid(0.0, 0.0, Activations::U8, true), (1.0, 128));
    }

    #[test]
    fn levels_round_half_to_even_and_end_at_the_ends() {
        let grid = Range { min: 0.0, max: 255.0 }.grid(Levels::new(Activations::U8, false));
        let levels: Vec<i32> = [0.5, 1.5, -3.0, 254.4, 900.0].map(|x| grid.level(x)).to_vec();
        assert_eq!(levels, [0, 2, 0, 254, 255]);
        assert_eq!(grid.ends(), (0.0, 255.0));
    }
}
