//! Variants against a baseline. Measurements enter; a [`Comparison`] with verdicts leaves.

pub mod table;
pub use table::{Comparison, Row, Verdict};
