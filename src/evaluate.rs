//! Tasks, metrics, parity and statistics. Models and data enter; measurements with raw samples and
//! intervals leave. Knows no job and no recipe.

pub mod measurement;
pub mod stats;
