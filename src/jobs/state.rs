//! The one reducer: [`JobState::apply`] folds records into what every face shows.

use super::event::{Event, Record};
use crate::evaluate::measurement::Measurement;
use crate::monitor::Level;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where a job stands. The words are shown to people as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waiting for its turn.
    #[default]
    Queued,
    /// A worker computes.
    Running,
    /// Paused; resumes on request or by itself.
    Paused,
    /// Ended well.
    Finished,
    /// Ended with an error.
    Failed,
    /// Cancelled on request.
    Cancelled,
    /// The worker vanished.
    Dead,
}

impl Status {
    /// Nothing more happens unless somebody resumes the job.
    pub fn is_final(self) -> bool {
        matches!(self, Status::Finished | Status::Failed | Status::Cancelled | Status::Dead)
    }
    /// A resume makes sense.
    pub fn is_resumable(self) -> bool {
        matches!(self, Status::Paused | Status::Failed | Status::Cancelled | Status::Dead)
    }
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Status::Queued => "queued",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Finished => "finished",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
            Status::Dead => "dead",
        }
    }
}

/// The phase that runs now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct Phase {
    /// Name.
    pub name: String,
    /// Index of the recipe step.
    pub step: u64,
    /// Units of work, where known.
    pub total: Option<u64>,
    /// Finished units.
    pub done: u64,
    /// When it began, `mono_ms`.
    pub since_ms: u64,
}

/// A produced file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Artifact {
    /// Variant name.
    pub name: String,
    /// Path relative to the job directory.
    pub path: String,
    /// SHA-256.
    pub sha256: String,
    /// Size.
    pub bytes: u64,
}

/// A line of the job's log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// Position of the record.
    pub seq: u64,
    /// Wall time in ms.
    pub wall_ms: u64,
    /// Weight.
    pub level: Level,
    /// Text.
    pub message: String,
}

/// Log lines kept in a state.
pub const LOG_LINES: usize = 500;
/// Points kept of one curve; beyond it every second one is dropped in min/max pairs.
pub const CURVE_POINTS: usize = 4096;

/// Everything that the faces show of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct JobState {
    /// Version of this format.
    pub schema_version: u32,
    /// Name for people.
    pub name: String,
    /// What sort of job.
    pub what: String,
    /// Input model.
    pub model: String,
    /// Step names.
    pub steps: Vec<String>,
    /// Where it stands.
    pub status: Status,
    /// Why it paused, failed or died.
    pub reason: Option<String>,
    /// Worker's process id, while or after one ran.
    pub pid: Option<u32>,
    /// Current or last phase.
    pub phase: Phase,
    /// Curves by name: (step, value).
    pub curves: BTreeMap<String, Vec<(u64, f64)>>,
    /// Values that were not finite, by curve.
    pub not_finite: BTreeMap<String, u64>,
    /// Produced files.
    pub artifacts: Vec<Artifact>,
    /// Figures measured.
    pub measurements: Vec<Measurement>,
    /// Last lines of the log.
    pub log: Vec<LogLine>,
    /// Lines of weight `Warning` and above, in all.
    pub warnings: u64,
    /// Last completed checkpoint: (step, path).
    pub checkpoint: Option<(u64, String)>,
    /// Records that the writer dropped.
    pub dropped: u64,
    /// Wall time of the first and the last record, ms.
    pub created_ms: u64,
    /// Wall time of the last record, ms.
    pub updated_ms: u64,
    /// `mono_ms` at start and of the last record.
    pub started_mono_ms: u64,
    /// `mono_ms` of the last record.
    pub updated_mono_ms: u64,
    /// Next `seq` expected; records below it are ignored, so that a replay changes nothing.
    pub next_seq: u64,
}

impl JobState {
    /// Folds one record in. Idempotent: a record whose `seq` was seen is ignored.
    pub fn apply(&mut self, record: &Record) {
        if record.seq < self.next_seq {
            return;
        }
        if self.next_seq == 0 {
            self.schema_version = super::event::SCHEMA_VERSION;
            self.created_ms = record.wall_ms;
        }
        self.next_seq = record.seq + 1;
        self.updated_ms = record.wall_ms;
        self.updated_mono_ms = record.mono_ms;
        match &record.event {
            Event::Queued { name, what, model, steps } => {
                self.name.clone_from(name);
                self.what.clone_from(what);
                self.model.clone_from(model);
                self.steps.clone_from(steps);
                self.status = Status::Queued;
                self.reason = None;
            }
            Event::Started { pid, .. } => {
                self.status = Status::Running;
                self.reason = None;
                self.pid = Some(*pid);
                self.started_mono_ms = record.mono_ms;
            }
            Event::Resumed { pid, step } => self.resume(*pid, *step, record.mono_ms),
            Event::Phase { name, step, total } => {
                self.phase = Phase {
                    name: name.clone(),
                    step: *step,
                    total: *total,
                    done: 0,
                    since_ms: record.mono_ms,
                };
            }
            Event::Progress { done } => self.phase.done = *done,
            Event::Metric { name, step, value } => self.point(name, *step, *value),
            Event::Log { level, message } => self.line(record, *level, message.clone()),
            Event::Artifact { name, path, sha256, bytes } => {
                self.artifacts.retain(|a| a.path != *path);
                self.artifacts.push(Artifact {
                    name: name.clone(),
                    path: path.clone(),
                    sha256: sha256.clone(),
                    bytes: *bytes,
                });
            }
            Event::Measurement { measurement } => {
                self.measurements.retain(|m| !m.same_subject(measurement));
                self.measurements.push((**measurement).clone());
            }
            Event::Checkpoint { step, path } => self.checkpoint = Some((*step, path.clone())),
            Event::Paused { reason } => {
                self.status = Status::Paused;
                self.reason = Some(reason.clone());
            }
            Event::Cancelled => self.status = Status::Cancelled,
            Event::Dropped { count } => self.dropped += count,
            Event::Finished => {
                self.status = Status::Finished;
                self.reason = None;
            }
            Event::Failed { message, .. } => {
                self.status = Status::Failed;
                self.reason = Some(message.clone());
                self.line(record, Level::Error, message.clone());
            }
            Event::Dead { cause } => {
                self.status = Status::Dead;
                self.reason = Some(cause.clone());
            }
        }
    }

    fn resume(&mut self, pid: u32, step: u64, mono_ms: u64) {
        self.status = Status::Running;
        self.reason = None;
        self.pid = Some(pid);
        self.started_mono_ms = mono_ms;
        if self.phase.step >= step {
            self.curves.clear();
            self.not_finite.clear();
        }
    }

    fn point(&mut self, name: &str, step: u64, value: f64) {
        if !value.is_finite() {
            *self.not_finite.entry(name.to_string()).or_default() += 1;
            return;
        }
        let curve = self.curves.entry(name.to_string()).or_default();
        curve.push((step, value));
        if curve.len() > CURVE_POINTS {
            *curve = halve(curve);
        }
    }

    fn line(&mut self, record: &Record, level: Level, message: String) {
        if level >= Level::Warning {
            self.warnings += 1;
        }
        self.log.push(LogLine { seq: record.seq, wall_ms: record.wall_ms, level, message });
        if self.log.len() > LOG_LINES {
            self.log.drain(..self.log.len() - LOG_LINES);
        }
    }

    /// Part of the current phase that is done, 0 to 1, where the total is known.
    pub fn fraction(&self) -> Option<f64> {
        let total = self.phase.total.filter(|t| *t > 0)?;
        Some((self.phase.done as f64 / total as f64).min(1.0))
    }
}

/// Half the points, keeping the smallest and the largest of each run of four, so that spikes stay.
fn halve(points: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let by_value = |a: &&(u64, f64), b: &&(u64, f64)| a.1.total_cmp(&b.1);
    let mut out = Vec::with_capacity(points.len() / 2 + 2);
    for run in points.chunks(4) {
        let (Some(low), Some(high)) = (run.iter().min_by(by_value), run.iter().max_by(by_value)) else {
            continue;
        };
        let (a, b) = if low.0 <= high.0 { (low, high) } else { (high, low) };
        out.push(*a);
        if a != b {
            out.push(*b);
        }
    }
    out
}
