//! The shape of a comparison. The field names are the public JSON contract of `compare`.

use crate::evaluate::measurement::{Interval, Measurement};
use serde::{Deserialize, Serialize};

/// Version of [`Comparison`].
pub const SCHEMA_VERSION: u32 = 1;

/// What the figures say, after correction for the number of variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The row all others are compared with.
    Baseline,
    /// The interval excludes no change, in the good direction.
    Better,
    /// The interval excludes no change, in the bad direction.
    Worse,
    /// Within the stated margin, shown by the interval.
    NonInferior,
    /// Neither shown.
    Undecided,
    /// Not measured, or measured under unlike conditions.
    NotComparable,
}

impl Verdict {
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Baseline => "baseline",
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::NonInferior => "non-inferior",
            Verdict::Undecided => "undecided",
            Verdict::NotComparable => "n/a",
        }
    }
}

/// A figure against the baseline's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// Relative change (ratio minus one) for latency, size and memory; absolute difference for quality.
    pub delta: f64,
    /// 95 % interval of the same quantity.
    pub ci95: Option<Interval>,
    /// Two-sided p-value, Holm-corrected over the variants; none where no test applies.
    pub p_value: Option<f64>,
    /// Smallest change that this many samples could have shown (80 % power, 5 %), same unit as `delta`.
    pub minimum_detectable: Option<f64>,
    /// What it says.
    pub verdict: Verdict,
}

/// One variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The variant's figures.
    pub measurement: Measurement,
    /// File size against the baseline's.
    pub size: Option<Delta>,
    /// Median latency against the baseline's.
    pub latency: Option<Delta>,
    /// Peak memory against the baseline's.
    pub memory: Option<Delta>,
    /// Quality against the baseline's.
    pub quality: Option<Delta>,
    /// On the Pareto front of latency and quality.
    pub pareto: bool,
    /// Gates of the goal that it misses.
    pub missed: Vec<String>,
    /// One line: `recommended`, `slower than the baseline`, `misses latency_ms`.
    pub conclusion: String,
}

/// All variants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Version of this format.
    pub schema_version: u32,
    /// Index of the baseline row.
    pub baseline: usize,
    /// Non-inferiority margin of quality (relative).
    pub margin: f64,
    /// Rows, the baseline among them.
    pub rows: Vec<Row>,
    /// What the reader must know: noise, unlike conditions, low power.
    pub notes: Vec<String>,
}
