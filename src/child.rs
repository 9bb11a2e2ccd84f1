//! This binary again as a child process: a request enters as JSON, a reply or an error leaves, and
//! nothing that happens in the child (a native crash, an endless loop, a flood of output, running
//! out of memory) reaches the parent as more than an [`Error`]. Used for measuring, for the native
//! runtime and for parsing on behalf of the faces. Knows no kind of work; rooms bring [`Handler`]s.
//!
//! Protocol: `tinsmith __child KIND`; JSON lines on stdin (opening, then requests) and on the stdout
//! pipe (frames). The child limits itself before it reads a request, dies with its parent (death
//! signal, and end of its stdin), gains no privileges, dumps no core, and is what the kernel's
//! out-of-memory killer takes first.

mod limits;
mod parent;
mod serve;
mod wire;

pub use limits::{Limits, pin};
pub use parent::Child;
pub use serve::{Handler, Link, fault_handler, serve_if_asked};

use crate::error::{Error, Result};
use crate::monitor::{Monitor, Silent};
use serde::{Serialize, de::DeserializeOwned};
use std::path::PathBuf;
use std::sync::OnceLock;

/// First argument that makes the binary serve as a child.
pub const ARGUMENT: &str = "__child";

/// Version of the protocol; parent and child are the same file, so that they differ only when a
/// binary was replaced while it ran.
pub(crate) const PROTOCOL: u32 = 1;

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Sets the program that is started as a child, for programs that are not `tinsmith` itself (tests,
/// examples). The first call stays.
pub fn set_program(path: impl Into<PathBuf>) {
    let _ = PROGRAM.set(path.into());
}

/// The program that is started as a child: [`set_program`], `$TINSMITH_EXE`, or this executable if it
/// is one that calls [`serve_if_asked`].
pub fn program() -> Result<PathBuf> {
    if let Some(path) = PROGRAM.get() {
        return Ok(path.clone());
    }
    if let Some(path) = std::env::var_os("TINSMITH_EXE").filter(|v| !v.is_empty()) {
        return Ok(PathBuf::from(path));
    }
    if !serve::serves() {
        return Err(Error::internal("CHILD-EXE", "this program cannot serve as its own child")
            .hint("set TINSMITH_EXE to the path of the tinsmith binary"));
    }
    // The link stays valid when the file is replaced by an upgrade while this process runs.
    #[cfg(target_os = "linux")]
    if std::path::Path::new("/proc/self/exe").exists() {
        return Ok(PathBuf::from("/proc/self/exe"));
    }
    std::env::current_exe().map_err(|e| {
        Error::internal("CHILD-EXE", format!("cannot find this program: {e}"))
            .hint("set TINSMITH_EXE to the path of the tinsmith binary")
    })
}

/// Starts a child, asks once, ends it. Errors: what the handler returned; kind `Died` when the child
/// died (with the signal and the end of its error output); kind `Limit` when it took longer than
/// `limits.wall` or said more than `limits.reply` bytes.
pub fn call<Req: Serialize, Rep: DeserializeOwned>(
    kind: &str,
    request: &Req,
    limits: &Limits,
) -> Result<Rep> {
    call_watched(kind, request, limits, &Silent)
}

/// [`call`] that forwards the child's phases, progress, metrics and log lines to `monitor` and ends
/// the child within 50 ms when the monitor asks to stop.
pub fn call_watched<Req: Serialize, Rep: DeserializeOwned>(
    kind: &str,
    request: &Req,
    limits: &Limits,
    monitor: &dyn Monitor,
) -> Result<Rep> {
    let mut child = Child::start(kind, limits)?;
    let reply = child.ask(request, monitor, &mut |_| Ok(()))?;
    child.finish();
    Ok(reply)
}
