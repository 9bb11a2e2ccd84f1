//! The thread that keeps a worker in touch: heartbeat, state, batches of events, requests to stop. It
//! runs beside the work, so that work that computes for long is neither silent nor deaf.

use super::detach::Signals;
use super::stop_event;
use crate::error::Result;
use crate::jobs::lock::{Guard, JobLock};
use crate::jobs::queue::Ask;
use crate::jobs::reporter::{JobMonitor, Stop};
use crate::jobs::store::QUEUED;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(100);
/// Time between two heartbeats.
const BEAT: Duration = Duration::from_secs(5);
/// How long work may take to stop by itself. Everything it saves is complete or absent at any moment,
/// so ending the process then loses no more than the current step.
const GRACE: Duration = Duration::from_millis(1400);
/// The same for a pause, which is in no hurry and lets work save where it is.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the thread works with. Dropping it gives the job and the slot back.
pub(super) struct Ticker {
    dir: PathBuf,
    signals: Signals,
    lock: Mutex<JobLock>,
    _slot: Guard,
    ended: Mutex<bool>,
    wake: Condvar,
}

impl Ticker {
    pub(super) fn new(dir: &Path, lock: JobLock, slot: Guard) -> Result<Ticker> {
        Ok(Ticker {
            dir: dir.into(),
            signals: Signals::register()?,
            lock: Mutex::new(lock),
            _slot: slot,
            ended: Mutex::new(false),
            wake: Condvar::new(),
        })
    }

    /// Ends [`Ticker::run`].
    pub(super) fn end(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.wake.notify_all();
    }

    /// Ticks until [`Ticker::end`]. Ends the process itself where work does not stop in time.
    pub(super) fn run(&self, monitor: &JobMonitor) {
        let mut beat: Option<Instant> = None;
        let mut asked: Option<(Stop, Instant)> = None;
        loop {
            monitor.tick();
            if beat.is_none_or(|at| at.elapsed() >= BEAT) {
                beat = Some(Instant::now());
                self.lock.lock().unwrap_or_else(PoisonError::into_inner).beat();
                let _ = monitor.snapshot();
            }
            if let Some(stop) = self.asked() {
                monitor.stop(stop);
            }
            if let Some(stop) = monitor.stopped() {
                let since = match asked {
                    Some((before, since)) if before == stop => since,
                    _ => asked.insert((stop, Instant::now())).1,
                };
                let limit = if stop == Stop::Pause { PATIENCE } else { GRACE };
                if since.elapsed() >= limit {
                    let _ = monitor.event(stop_event(stop));
                    let _ = monitor.snapshot();
                    let _ = std::fs::remove_file(self.dir.join(QUEUED));
                    std::process::exit(super::RESUMABLE.into());
                }
            }
            let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            if *ended {
                return;
            }
            let (ended, _) = self.wake.wait_timeout(ended, TICK).unwrap_or_else(PoisonError::into_inner);
            if *ended {
                return;
            }
        }
    }

    fn asked(&self) -> Option<Stop> {
        match Ask::read(&self.dir) {
            Some(Ask::Cancel) => Some(Stop::Cancel),
            _ if self.signals.stop() => Some(Stop::Signal),
            Some(Ask::Pause) => Some(Stop::Pause),
            None => None,
        }
    }
}
