//! What `events.jsonl` holds: one [`Record`] a line. Written by the worker (and, before it starts, by
//! the face that queues the job), read by everybody, tolerant of a torn tail.

use crate::evaluate::measurement::Measurement;
use crate::monitor::Level;
use serde::{Deserialize, Serialize};

/// Version of the record format.
pub const SCHEMA_VERSION: u32 = 1;

/// One line of the log.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Record {
    /// Version of this format.
    pub schema_version: u32,
    /// Position in the log, from 0, without gaps.
    pub seq: u64,
    /// Monotonic time since boot in milliseconds; order and durations come from here.
    pub mono_ms: u64,
    /// Wall time, milliseconds since the Unix epoch, for display only.
    pub wall_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened to a job.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// Accepted and waiting for its turn.
    Queued {
        /// Name for people.
        name: String,
        /// What sort of job: `run`, `bench`, `eval`, `recommend`, `search`.
        what: String,
        /// Path of the input model.
        model: String,
        /// Names of the steps in order.
        steps: Vec<String>,
    },
    /// The worker began.
    Started {
        /// Process id of the worker.
        pid: u32,
        /// Host name.
        host: String,
    },
    /// The worker began again after a stop; metrics of later steps from the earlier try are void.
    Resumed {
        /// Process id of the new worker.
        pid: u32,
        /// First recipe step (index) that is computed again.
        step: u64,
    },
    /// A phase of work began.
    Phase {
        /// Name, such as `quantize: calibrate`.
        name: String,
        /// Index of the recipe step that it belongs to.
        step: u64,
        /// Units of work, where known.
        total: Option<u64>,
    },
    /// Units of the current phase that are finished.
    Progress {
        /// Finished units.
        done: u64,
    },
    /// One point of a curve.
    Metric {
        /// Curve, such as `loss`.
        name: String,
        /// Abscissa.
        step: u64,
        /// Value; JSON `null` for a value that is not finite.
        #[serde(with = "finite")]
        value: f64,
    },
    /// A line for people.
    Log {
        /// Weight.
        level: Level,
        /// Text.
        message: String,
    },
    /// A file was produced under `artifacts/`.
    Artifact {
        /// Name of the variant, such as `static-int8`.
        name: String,
        /// Path relative to the job directory.
        path: String,
        /// SHA-256, hexadecimal.
        sha256: String,
        /// Size.
        bytes: u64,
    },
    /// Something was measured.
    Measurement {
        /// The figures.
        measurement: Box<Measurement>,
    },
    /// A checkpoint was completed.
    Checkpoint {
        /// Recipe step that the checkpoint completes.
        step: u64,
        /// Path relative to the job directory.
        path: String,
    },
    /// Paused; `reason` says why (`request`, `disk full`).
    Paused {
        /// Reason.
        reason: String,
    },
    /// Cancelled on request; final unless resumed.
    Cancelled,
    /// Records that could not be written and were dropped.
    Dropped {
        /// How many.
        count: u64,
    },
    /// Ended well.
    Finished,
    /// Ended with an error.
    Failed {
        /// The error as text.
        message: String,
        /// Exit code of its kind.
        exit_code: u8,
    },
    /// The worker vanished; written by whoever finds it.
    Dead {
        /// What the kernel tells: `killed by SIGKILL, cause unknown`, `out of memory`, `gone`.
        cause: String,
    },
}

/// Floats that may be NaN or infinite, as `null` in JSON.
mod finite {
    use serde::{Deserialize, Deserializer, Serializer};
    pub(super) fn serialize<S: Serializer>(v: &f64, s: S) -> Result<S::Ok, S::Error> {
        if v.is_finite() { s.serialize_f64(*v) } else { s.serialize_none() }
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(d)?.unwrap_or(f64::NAN))
    }
}
