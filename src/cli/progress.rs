//! Progress of work in this process (downloads, installations) on stderr.

use super::context::Context;
use crate::monitor::{Level, Monitor};
use crate::text::clean;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// A monitor that writes to stderr: a moving line on a terminal, else a line per phase. An interrupt
/// stops the work.
pub(super) struct Progress<'a> {
    context: &'a Context,
    interrupts: Option<Arc<AtomicUsize>>,
    phase: Mutex<Phase>,
}

struct Phase {
    name: String,
    total: Option<u64>,
    drawn: Option<Instant>,
}

impl<'a> Progress<'a> {
    pub(super) fn new(context: &'a Context) -> Progress<'a> {
        let phase = Phase { name: String::new(), total: None, drawn: None };
        Progress { context, interrupts: super::follow::interrupts().ok(), phase: Mutex::new(phase) }
    }

    fn clear(&self, phase: &mut Phase) {
        if phase.drawn.take().is_some() {
            let _ = write!(std::io::stderr().lock(), "\r\u{1b}[K");
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        self.clear(&mut phase);
    }
}

impl Monitor for Progress<'_> {
    fn phase(&self, name: &str, total: Option<u64>) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        self.clear(&mut phase);
        phase.name = clean(name, 100);
        phase.total = total.filter(|t| *t > 0);
        self.context.note(&phase.name);
    }

    fn progress(&self, done: u64) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = phase.drawn.is_some_and(|t| t.elapsed() < Duration::from_millis(100));
        if !self.context.live || self.context.quiet || recent {
            return;
        }
        let Some(total) = phase.total else { return };
        let percent = (100.0 * done as f64 / total as f64).min(99.0);
        phase.drawn = Some(Instant::now());
        let _ = write!(std::io::stderr().lock(), "\r\u{1b}[K{}  {percent:.0} %", clean(&phase.name, 60));
        let _ = std::io::stderr().flush();
    }

    fn metric(&self, _: &str, _: u64, _: f64) {}

    fn log(&self, level: Level, message: &str) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        self.clear(&mut phase);
        match level {
            Level::Info => self.context.note(message),
            Level::Warning => self.context.note(&format!("warning: {message}")),
            Level::Error => self.context.note(&format!("error: {message}")),
        }
    }

    fn stop_requested(&self) -> bool {
        self.interrupts.as_ref().is_some_and(|i| i.load(Ordering::Relaxed) > 0)
    }
}
