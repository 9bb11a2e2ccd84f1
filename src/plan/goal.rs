//! What a variant must meet to be recommended.

use serde::{Deserialize, Serialize};

/// Gates. A missing one does not bind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Goal {
    /// Device profile, `host` when none is named.
    pub device: Option<String>,
    /// Largest median latency in milliseconds.
    pub latency_ms: Option<f64>,
    /// Largest file size in megabytes (10^6 bytes).
    pub size_mb: Option<f64>,
    /// Largest peak resident memory in megabytes (10^6 bytes).
    pub memory_mb: Option<f64>,
    /// Largest relative loss of quality: the non-inferiority margin.
    pub max_quality_drop: Option<f64>,
}
