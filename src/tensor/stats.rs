//! Statistics of one tensor in one pass.

use super::{Data, Tensor, cast, dtype::DType};
use crate::error::Result;

/// What one pass over the elements tells.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stats {
    /// Finite elements.
    pub count: u64,
    /// Smallest finite element.
    pub min: f64,
    /// Largest finite element.
    pub max: f64,
    /// Mean of the finite elements.
    pub mean: f64,
    /// Population variance of the finite elements (Welford).
    pub variance: f64,
    /// Exact zeros.
    pub zeros: u64,
    /// NaN elements.
    pub nans: u64,
    /// Infinite elements.
    pub infinities: u64,
}

impl Stats {
    /// Folds one element in.
    pub fn add(&mut self, x: f64) {
        if x.is_nan() {
            self.nans += 1;
        } else if x.is_infinite() {
            self.infinities += 1;
        } else {
            if self.count == 0 {
                (self.min, self.max) = (x, x);
            }
            self.count += 1;
            self.min = self.min.min(x);
            self.max = self.max.max(x);
            self.zeros += u64::from(x == 0.0);
            let d = x - self.mean;
            self.mean += d / self.count as f64;
            self.variance += (d * (x - self.mean) - self.variance) / self.count as f64;
        }
    }

    /// Statistics of a numeric tensor; a temporary `f64` copy of 64 Ki elements at most.
    pub fn of(tensor: &Tensor) -> Result<Stats> {
        let mut stats = Stats::default();
        tensor.each_piece(|piece| {
            if let Data::F32(v) = piece {
                v.iter().for_each(|x| stats.add(f64::from(*x)));
            } else if let Data::F64(v) = cast(piece, tensor.dtype(), DType::F64)? {
                v.iter().for_each(|x| stats.add(*x));
            }
            Ok(())
        })?;
        Ok(stats)
    }
}
