//! What makes this process independent of whoever started it: session, streams, file mode, signals.

use crate::error::{Error, Result};
use rustix::fs::Mode;
use std::any::Any;
use std::fs::{File, OpenOptions};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A session of its own, so that the end of a terminal does not reach this process, and files that
/// only the owner can read. A leader of a process group cannot leave it; it then stays in its session.
pub(super) fn session() {
    let _ = rustix::process::setsid();
    rustix::process::umask(Mode::from_raw_mode(0o077));
}

/// Standard input from nowhere, both outputs to `worker.log`.
pub(super) fn output(dir: &Path) -> Result<()> {
    let path = dir.join("worker.log");
    let io = |e: std::io::Error| Error::io("open the worker's log", &path, e);
    let log = OpenOptions::new().append(true).create(true).open(&path).map_err(io)?;
    let nowhere = File::open("/dev/null").map_err(io)?;
    rustix::stdio::dup2_stdin(&nowhere)
        .and_then(|()| rustix::stdio::dup2_stdout(&log))
        .and_then(|()| rustix::stdio::dup2_stderr(&log))
        .map_err(|e| io(e.into()))?;
    // Records of libraries go to the same place. A subscriber that is already there stays.
    let _ = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .try_init();
    Ok(())
}

/// Keeps the report of a panic's place in `worker.log`, whatever a face installed.
pub(super) fn panics() {
    let _ = std::panic::take_hook();
}

/// What a panic says of itself.
pub(super) fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_string());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".into())
}

/// Signals that ask the worker to stop, as a flag; those that must not end it are taken and forgotten.
#[derive(Debug)]
pub(super) struct Signals {
    stop: Arc<AtomicBool>,
}

impl Signals {
    /// Registers the handlers. A write beyond a file size limit becomes an error instead of the end.
    pub(super) fn register() -> Result<Signals> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
        let stop = Arc::new(AtomicBool::new(false));
        let forgotten = Arc::new(AtomicBool::new(false));
        let all = [(SIGTERM, &stop), (SIGINT, &stop), (SIGHUP, &forgotten), (SIGXFSZ, &forgotten)];
        for (signal, flag) in all {
            signal_hook::flag::register(signal, flag.clone())
                .map_err(|e| Error::internal("WORKER-SIGNALS", format!("cannot take signals: {e}")))?;
        }
        Ok(Signals { stop })
    }

    /// Whether one came that asks to stop.
    pub(super) fn stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
