//! One ranked proposal. The field names are the public JSON contract of `recommend`.

use super::recipe::Recipe;
use serde::{Deserialize, Serialize};

/// How far a prediction can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// Follows from the structure.
    High,
    /// Usual for models of this kind.
    Medium,
    /// To be measured before anybody believes it.
    Low,
}

/// A recipe with what it should bring.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// Rank, from 1.
    pub rank: usize,
    /// Short name.
    pub name: String,
    /// The recipe to run.
    pub recipe: Recipe,
    /// Predicted file size.
    pub predicted_file_bytes: u64,
    /// Predicted latency on the device, in milliseconds: middle, low, high.
    pub predicted_latency_ms: Option<(f64, f64, f64)>,
    /// Predicted latency relative to the original on the same device.
    pub predicted_speedup: Option<f64>,
    /// Expected relative loss of quality: low, high.
    pub expected_quality_drop: (f64, f64),
    /// Estimated time to produce it, in seconds.
    pub cost_seconds: f64,
    /// Trust.
    pub confidence: Confidence,
    /// Whether the prediction meets the goal.
    pub meets_goal: Option<bool>,
    /// Why it was proposed.
    pub reasons: Vec<String>,
    /// What is uncertain or may go wrong.
    pub risks: Vec<String>,
}
