//! What long work reports to and asks: progress, metrics, cancellation, memory cap. Knows no job and
//! no face; a job's worker, a command line and a test each bring their own [`Monitor`].

use crate::error::{Error, Result};
use crate::units::Bytes;
use std::sync::atomic::{AtomicBool, Ordering};

/// Weight of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Worth a line in the log.
    Info,
    /// Something the person should read.
    Warning,
    /// Something failed.
    Error,
}

/// Receiver of what long work has to say. All calls are cheap; implementations limit their own rate.
pub trait Monitor: Send + Sync {
    /// A new phase begins, with `total` units of work if that is known.
    fn phase(&self, name: &str, total: Option<u64>);
    /// `done` units of the current phase are finished.
    fn progress(&self, done: u64);
    /// A value of a curve (`loss`, `accuracy`) at `step`.
    fn metric(&self, name: &str, step: u64, value: f64);
    /// A line for people.
    fn log(&self, level: Level, message: &str);
    /// Whether the work was asked to stop at the next safe point.
    fn stop_requested(&self) -> bool;
    /// Most memory that the work may use, if that is limited.
    fn memory_cap(&self) -> Option<Bytes> {
        None
    }

    /// `Err` of kind `Stopped` once a stop was requested. Long loops call it at every safe point.
    fn check(&self) -> Result<()> {
        if self.stop_requested() {
            return Err(Error::stopped("STOPPED", "stopped on request")
                .hint("resume continues from the last checkpoint"));
        }
        Ok(())
    }
}

/// A monitor that listens to nothing and never stops the work.
#[derive(Debug, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn phase(&self, _: &str, _: Option<u64>) {}
    fn progress(&self, _: u64) {}
    fn metric(&self, _: &str, _: u64, _: f64) {}
    fn log(&self, _: Level, _: &str) {}
    fn stop_requested(&self) -> bool {
        false
    }
}

/// Lets warnings, stops and limits through and nothing else: phases of a part of the work are no news.
pub struct Quiet<'a>(pub &'a dyn Monitor);

impl Monitor for Quiet<'_> {
    fn phase(&self, _: &str, _: Option<u64>) {}
    fn progress(&self, _: u64) {}
    fn metric(&self, _: &str, _: u64, _: f64) {}
    fn log(&self, level: Level, message: &str) {
        self.0.log(level, message);
    }
    fn stop_requested(&self) -> bool {
        self.0.stop_requested()
    }
    fn memory_cap(&self) -> Option<Bytes> {
        self.0.memory_cap()
    }
}

/// A silent monitor with a switch that stops the work.
#[derive(Debug, Default)]
pub struct Switch(pub AtomicBool);

impl Monitor for Switch {
    fn phase(&self, _: &str, _: Option<u64>) {}
    fn progress(&self, _: u64) {}
    fn metric(&self, _: &str, _: u64, _: f64) {}
    fn log(&self, _: Level, _: &str) {}
    fn stop_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
