//! Whether a job's worker lives. The lock, the process noted in it and its heartbeat are judged
//! together; a worker that is gone is noted in the log once, under the lock, with the cause if the
//! kernel tells one. Nothing here signals anything.

use super::clock;
use super::event::Event;
use super::lock::{self, Held, Holder, JobLock};
use super::log::Log;
use super::state::{JobState, Status};
use super::store::{self, JobHandle};
use crate::monitor::Level;
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// Silence after which a worker counts as stalled, in ms: three heartbeats.
pub const STALL_MS: u64 = 15_000;

/// Where a job stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Liveness {
    /// By the events, a death that was just found included.
    pub status: Status,
    /// Ms since the last heartbeat of a worker that holds the job but is silent.
    pub stalled_ms: Option<u64>,
    /// Process id of the living worker.
    pub pid: Option<u32>,
    /// Wall time of that worker's start, ms.
    pub since_ms: Option<u64>,
    /// Why it paused, failed or died.
    pub reason: Option<String>,
}

impl Liveness {
    /// The word for people: the status, or `stalled`.
    pub fn word(&self) -> &'static str {
        if self.stalled_ms.is_some() { "stalled" } else { self.status.word() }
    }

    /// Whether a worker holds the job.
    pub fn is_live(&self) -> bool {
        self.pid.is_some()
    }
}

/// Judges `job`; see [`JobHandle::status`].
pub(super) fn status(job: &JobHandle) -> Liveness {
    let state = job.state();
    if lock::held(&job.dir) == Held::Yes {
        return live(&state, Holder::read(&job.dir), clock::mono_ms());
    }
    let foreign = Holder::read(&job.dir).is_some_and(|h| h.process.host != clock::host());
    let looks_alive =
        state.status == Status::Running || (state.status == Status::Paused && was_waiting(&state));
    if looks_alive && !foreign {
        bury(job, None);
        return ended(&job.state());
    }
    if state.status == Status::Queued && !job.dir.join(store::QUEUED).exists() {
        // The marker of a job that was queued by somebody who died right then.
        if let Ok(_lock) = JobLock::acquire(&job.dir, Duration::ZERO)
            && job.state().status == Status::Queued
        {
            let _ = std::fs::File::create(job.dir.join(store::QUEUED));
        }
    }
    ended(&state)
}

/// A worker that waits for disk space says `paused` and lives; the reason tells it from others.
fn was_waiting(state: &JobState) -> bool {
    state.reason.as_deref().is_some_and(|r| r.starts_with(DISK_FULL))
}

/// How the reason of a pause for want of disk space begins.
pub const DISK_FULL: &str = "disk full";

fn live(state: &JobState, holder: Option<Holder>, now: u64) -> Liveness {
    let mut out = ended(state);
    // Between taking the lock and noting itself a worker shows its predecessor's note.
    let current = |h: &Holder| !h.process.is_local() || h.process.is_alive();
    let Some(holder) = holder.filter(current) else { return out };
    out.pid = Some(holder.process.pid);
    out.since_ms = Some(holder.since_ms);
    if holder.process.is_local() {
        out.stalled_ms = now.checked_sub(holder.beat_ms()).filter(|silent| *silent > STALL_MS);
    }
    out
}

fn ended(state: &JobState) -> Liveness {
    Liveness {
        status: state.status,
        stalled_ms: None,
        pid: None,
        since_ms: None,
        reason: state.reason.clone(),
    }
}

/// Notes in the log that the worker is gone, if nobody did and no new one began. `signal` is what its
/// parent learned, where this process is that parent. Tells whether a note was written.
pub(super) fn bury(job: &JobHandle, signal: Option<i32>) -> bool {
    let Ok(_lock) = JobLock::acquire(&job.dir, Duration::from_millis(200)) else { return false };
    let state = job.state();
    if state.status.is_final() || state.status == Status::Queued {
        return false;
    }
    if state.status == Status::Paused && !was_waiting(&state) {
        return false;
    }
    let holder = Holder::read(&job.dir);
    let Ok(mut log) = Log::open(&job.dir, state.next_seq) else { return false };
    let last = store::worker_log(&job.dir, 50);
    let signal = signal.or_else(|| holder.as_ref().and_then(|h| h.process.killed_by()));
    let cause = cause(holder.as_ref(), signal, &last);
    if !last.is_empty() {
        let message = format!("last lines of worker.log:\n{}", last.join("\n"));
        let _ = log.append(Event::Log { level: Level::Error, message });
    }
    let _ = log.append(Event::Dead { cause });
    log.commit().is_ok()
}

/// What is known about the end of a worker.
fn cause(holder: Option<&Holder>, signal: Option<i32>, output: &[String]) -> String {
    let local = holder.filter(|h| h.process.is_local());
    if holder.is_some() && local.is_none() {
        return "gone: the machine was started again".into();
    }
    let killed = signal.is_none_or(|s| s == 9);
    if killed && let Some(told) = local.and_then(|h| h.memory.as_ref()).and_then(|m| m.killed_since()) {
        return told;
    }
    if output.iter().any(|l| l.contains("has overflowed its stack")) {
        return "stack overflow".into();
    }
    match signal.map(name) {
        Some("SIGKILL") => "killed by SIGKILL, cause unknown".into(),
        Some(name) => format!("killed by {name}"),
        None => "killed, cause unknown".into(),
    }
}

fn name(signal: i32) -> &'static str {
    match signal {
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        31 => "SIGSYS",
        _ => "a signal",
    }
}

/// Whether `dir` lies on a machine that this one cannot judge, because its worker ran elsewhere.
pub fn ran_elsewhere(dir: &Path) -> bool {
    Holder::read(dir).is_some_and(|h| h.process.host != clock::host())
}
