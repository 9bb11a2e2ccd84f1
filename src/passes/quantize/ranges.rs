//! Ranges of activations and the asymmetric u8 grid that covers them.

use serde::Serialize;

/// Smallest and largest value seen.
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

    /// Scale and zero point of u8: `x = s * (q - z)`. Zero is always on the grid, so that padding and
    /// ReLU are exact.
    pub(super) fn grid(self) -> (f32, u8) {
        let (min, max) = (self.min.min(0.0), self.max.max(0.0));
        let span = max - min;
        if !span.is_finite() || span <= f32::MIN_POSITIVE * 255.0 {
            return (1.0, 0);
        }
        let scale = span / 255.0;
        (scale, (-min / scale).round_ties_even().clamp(0.0, 255.0) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_holds_zero_and_covers_the_range() {
        assert_eq!(Range { min: 1.0, max: 255.0 }.grid(), (1.0, 0));
        let (s, z) = Range { min: -1.0, max: 3.0 }.grid();
        assert!((s - 4.0 / 255.0).abs() < 1e-9 && z == 64);
        assert_eq!(Range { min: 0.0, max: 0.0 }.grid(), (1.0, 0));
        assert_eq!(Range::EMPTY.grid(), (1.0, 0));
    }
}
