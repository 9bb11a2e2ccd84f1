//! The worker's [`Monitor`]: what work reports enters, events and the state in memory leave, at a
//! bounded rate. Knows no pass.

use super::clock;
use super::event::{Event, Record};
use super::log::Log;
use super::state::JobState;
use super::store::{SCHEMA_VERSION, Snapshot};
use crate::error::{Error, Result};
use crate::evaluate::measurement::Measurement;
use crate::monitor::{Level, Monitor};
use crate::save;
use crate::units::Bytes;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Shortest time between two progress events.
const PROGRESS: Duration = Duration::from_millis(100);
/// Shortest time between two points of one curve.
const METRIC: Duration = Duration::from_millis(50);
/// Longest message of a log line, in bytes.
const MESSAGE: usize = 64 << 10;

/// Why a worker stops before its work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stop {
    /// A person wants to go on later.
    Pause = 1,
    /// A signal ended the worker.
    Signal = 2,
    /// A person wants no more of it.
    Cancel = 3,
}

struct Inner {
    log: Log,
    state: JobState,
    progress: Option<u64>,
    progress_at: Instant,
    metrics: BTreeMap<String, Curve>,
}

struct Curve {
    waiting: Option<(u64, f64)>,
    written: Instant,
}

/// Receiver of what a job's work says.
pub struct JobMonitor {
    inner: Mutex<Inner>,
    dir: PathBuf,
    step: AtomicU64,
    stop: AtomicU8,
    cap: Option<Bytes>,
}

impl JobMonitor {
    /// A monitor that writes to `log` of the job in `dir`, which stands at `state`.
    pub(super) fn new(dir: &Path, log: Log, state: JobState, cap: Option<Bytes>) -> JobMonitor {
        let inner =
            Inner { log, state, progress: None, progress_at: Instant::now(), metrics: BTreeMap::new() };
        JobMonitor {
            inner: Mutex::new(inner),
            dir: dir.into(),
            step: AtomicU64::new(0),
            stop: AtomicU8::new(0),
            cap,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Index of the recipe step that phases belong to from now on.
    pub fn set_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    /// Writes an event that must not be lost, with everything that was held back before it, and waits
    /// for the disk. While the disk is full it is kept in memory and written later.
    pub fn event(&self, event: Event) -> Result<()> {
        let mut inner = self.inner();
        inner.release(true);
        inner.push(event);
        inner.log.commit()
    }

    /// Writes what is still kept in memory and waits for the disk.
    pub(super) fn commit(&self) -> Result<()> {
        self.inner().log.commit()
    }

    /// Announces a complete file of the job; `path` lies inside the job directory. Returns its digest.
    pub fn artifact(&self, name: &str, path: &Path) -> Result<String> {
        let relative = path
            .strip_prefix(&self.dir)
            .map_err(|_| Error::internal("JOB-ARTIFACT", "artefact outside the job directory").file(path))?;
        let (sha256, bytes) = save::digest(path)?;
        self.keep(self.event(Event::Artifact {
            name: name.into(),
            path: relative.to_string_lossy().into_owned(),
            sha256: sha256.clone(),
            bytes,
        }))?;
        Ok(sha256)
    }

    /// Announces figures.
    pub fn measurement(&self, measurement: Measurement) -> Result<()> {
        self.keep(self.event(Event::Measurement { measurement: Box::new(measurement) }))
    }

    /// Announces the checkpoint that completes `step`.
    pub fn checkpoint(&self, step: u64, path: &Path) -> Result<()> {
        let path = path.strip_prefix(&self.dir).unwrap_or(path).to_string_lossy().into_owned();
        self.keep(self.event(Event::Checkpoint { step, path }))
    }

    /// An event that could not be written for want of space is still queued: no reason to fail for.
    fn keep(&self, result: Result<()>) -> Result<()> {
        result.or_else(|e| if save::is_disk_full(&e) { Ok(()) } else { Err(e) })
    }

    /// Asks the work to stop. A stronger reason replaces a weaker one.
    pub(super) fn stop(&self, why: Stop) {
        self.stop.fetch_max(why as u8, Ordering::Relaxed);
    }

    /// Why the work was asked to stop.
    pub(super) fn stopped(&self) -> Option<Stop> {
        match self.stop.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(Stop::Pause),
            2 => Some(Stop::Signal),
            _ => Some(Stop::Cancel),
        }
    }

    /// Writes what is due; called ten times a second. The disk is waited for outside the lock, so that
    /// the work never waits for it.
    pub(super) fn tick(&self) {
        let file = {
            let mut inner = self.inner();
            inner.release(false);
            let _ = inner.log.flush();
            inner.log.unsynced()
        };
        if let Some(file) = file {
            let _ = file.sync_data();
        }
    }

    /// Saves the state for readers that come later.
    pub(super) fn snapshot(&self) -> Result<()> {
        let snapshot = {
            let inner = self.inner();
            Snapshot {
                schema_version: SCHEMA_VERSION,
                offset: inner.log.offset(),
                beat_ms: clock::mono_ms(),
                state: inner.state.clone(),
            }
        };
        save::json_unsynced(&self.dir.join("state.json"), &snapshot)
    }

    /// The state so far.
    pub fn state(&self) -> JobState {
        self.inner().state.clone()
    }
}

impl Inner {
    fn push(&mut self, event: Event) {
        let record: Option<Record> = self.log.append(event).ok().flatten();
        if let Some(record) = record {
            self.state.apply(&record);
        }
    }

    /// Hands over what was held back and is due, or all of it.
    fn release(&mut self, all: bool) {
        let now = Instant::now();
        if (all || now - self.progress_at >= PROGRESS)
            && let Some(done) = self.progress.take()
        {
            self.progress_at = now;
            self.push(Event::Progress { done });
        }
        let mut due = Vec::new();
        for (name, curve) in &mut self.metrics {
            if (all || now - curve.written >= METRIC)
                && let Some((step, value)) = curve.waiting.take()
            {
                curve.written = now;
                due.push(Event::Metric { name: name.clone(), step, value });
            }
        }
        for event in due {
            self.push(event);
        }
    }
}

impl Monitor for JobMonitor {
    fn phase(&self, name: &str, total: Option<u64>) {
        let step = self.step.load(Ordering::Relaxed);
        let mut inner = self.inner();
        inner.release(true);
        inner.push(Event::Phase { name: name.into(), step, total });
        let _ = inner.log.flush();
    }

    fn progress(&self, done: u64) {
        let mut inner = self.inner();
        if inner.progress_at.elapsed() < PROGRESS {
            inner.progress = Some(done);
            return;
        }
        inner.progress = None;
        inner.progress_at = Instant::now();
        inner.push(Event::Progress { done });
    }

    fn metric(&self, name: &str, step: u64, value: f64) {
        let mut inner = self.inner();
        let now = Instant::now();
        if let Some(curve) = inner.metrics.get_mut(name) {
            // A value that is not finite is news at any rate.
            if value.is_finite() && now - curve.written < METRIC {
                curve.waiting = Some((step, value));
                return;
            }
            *curve = Curve { waiting: None, written: now };
        } else {
            inner.metrics.insert(name.into(), Curve { waiting: None, written: now });
        }
        inner.push(Event::Metric { name: name.into(), step, value });
    }

    fn log(&self, level: Level, message: &str) {
        let mut message = message.to_string();
        if message.len() > MESSAGE {
            message.truncate(message.floor_char_boundary(MESSAGE));
            message.push('…');
        }
        self.inner().push(Event::Log { level, message });
    }

    fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Relaxed) != 0
    }

    fn memory_cap(&self) -> Option<Bytes> {
        self.cap
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::log::{FILE, Tail};

    #[test]
    fn progress_is_thinned_and_the_last_value_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let monitor =
            JobMonitor::new(dir.path(), Log::open(dir.path(), 0).unwrap(), JobState::default(), None);
        monitor.phase("work", Some(100_000));
        for i in 0..=100_000 {
            monitor.progress(i);
            monitor.metric("loss", i, i as f64);
        }
        monitor.metric("loss", 100_001, f64::NAN);
        monitor.event(Event::Finished).unwrap();
        let records = Tail::new(&dir.path().join(FILE)).poll();
        assert!(records.len() < 200, "{} records", records.len());
        let mut replayed = JobState::default();
        records.iter().for_each(|r| replayed.apply(r));
        assert_eq!(replayed, monitor.state());
        assert_eq!(replayed.phase.done, 100_000);
        assert_eq!(replayed.not_finite["loss"], 1);
    }

    #[test]
    fn a_stronger_reason_to_stop_replaces_a_weaker_one() {
        let dir = tempfile::tempdir().unwrap();
        let monitor =
            JobMonitor::new(dir.path(), Log::open(dir.path(), 0).unwrap(), JobState::default(), None);
        assert!(monitor.check().is_ok());
        monitor.stop(Stop::Cancel);
        monitor.stop(Stop::Pause);
        assert_eq!(monitor.stopped(), Some(Stop::Cancel));
        assert_eq!(monitor.check().unwrap_err().kind().exit_code(), 75);
    }
}
