//! Variants against a baseline. Measurements and a goal enter; a [`Comparison`] with verdicts, Pareto
//! marks and one conclusion per variant leaves. Knows no file and no face.

mod conditions;
mod verdict;

pub mod table;
pub use table::{Comparison, Delta, Row, Verdict};
pub use verdict::compare;

/// Non-inferiority margin of quality (relative) where neither a goal nor a person states one.
pub const DEFAULT_MARGIN: f64 = 0.02;
