//! Whether a library can be used, found out in a child process that may die of it.

use super::locate::{Library, Origin, locate};
use super::{Runtime, Session, SessionOptions, install};
use crate::child::{self, Handler, Limits};
use crate::config::Paths;
use crate::error::{Error, Kind, Result};
use crate::monitor::{Level, Monitor};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// A library that loaded and ran a model in a child process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Where it is.
    pub library: Library,
    /// Version, such as `1.32.0`.
    pub version: String,
    /// Build description.
    pub build: String,
    /// Execution providers that it was built with.
    pub providers: Vec<String>,
}

/// ir_version 8, opset 13, y = Identity(x) with one float: shows that sessions work.
const IDENTITY: &[u8] = &[
    0x08, 0x08, 0x3a, 0x2b, 0x0a, 0x10, 0x0a, 0x01, b'x', 0x12, 0x01, b'y', 0x22, 0x08, b'I', b'd', b'e',
    b'n', b't', b'i', b't', b'y', 0x12, 0x01, b'g', 0x5a, 0x09, 0x0a, 0x01, b'x', 0x12, 0x04, 0x0a, 0x02,
    0x08, 0x01, 0x62, 0x09, 0x0a, 0x01, b'y', 0x12, 0x04, 0x0a, 0x02, 0x08, 0x01, 0x42, 0x04, 0x0a, 0x00,
    0x10, 0x0d,
];

pub(super) fn handler() -> Handler {
    Handler::new("runtime.probe", |library: Library, _: &child::Link| -> Result<Probe> {
        let runtime = Runtime::open(&library)?;
        identity_runs(&runtime, &SessionOptions::default())?;
        Ok(Probe {
            version: runtime.version().into(),
            build: runtime.build().into(),
            providers: runtime.available_providers(),
            library,
        })
    })
}

/// Runs a model of one node in a session with `options`.
pub(super) fn identity_runs(runtime: &Runtime, options: &SessionOptions) -> Result<()> {
    let mut session = Session::from_bytes(runtime, IDENTITY, options)?;
    let one = crate::tensor::Tensor::from_vec(vec![1], vec![1.0f32])?;
    let out = session.run(&[("x".to_string(), one)])?;
    match out.first().map(|(_, t)| t.to_f32s()).transpose()? == Some(vec![1.0]) {
        true => Ok(()),
        false => Err(Error::integrity("ORT-WRONG", "the library computes wrong results")),
    }
}

/// Loads the library in a child process and runs a model of one node there.
///
/// # Errors
/// As [`Runtime::open`]; `Invalid` also where the child died or hung on it.
pub fn probe(library: &Library) -> Result<Probe> {
    probe_within(library, Duration::from_secs(20))
}

/// [`probe`] with another time limit.
pub fn probe_within(library: &Library, wall: Duration) -> Result<Probe> {
    check_file(&library.path)?;
    child::call("runtime.probe", library, &Limits::within(wall)).map_err(|e| {
        let what = match (e.kind(), e.code()) {
            (_, "CHILD-START") => return e,
            (Kind::Limit, _) => "loading it does not end".to_string(),
            (Kind::Died, _) => e.message().to_string(),
            (Kind::Internal, "CHILD-PANIC") => "it does not do what its version promises".to_string(),
            _ => return e,
        };
        Error::invalid("ORT-BROKEN", format!("this ONNX Runtime library is broken: {what}"))
            .file(&library.path)
            .hint("run `tinsmith setup` to install a good one, or set TINSMITH_ORT_DYLIB")
            .source(e)
    })
}

/// What can be told without loading: a readable, non-empty file.
fn check_file(path: &Path) -> Result<()> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io("read the ONNX Runtime library", path, e))?;
    if meta.is_file() && meta.len() > 0 {
        return Ok(());
    }
    Err(Error::invalid("ORT-LOAD", "this ONNX Runtime library is not a file with contents")
        .file(path)
        .hint("run `tinsmith setup` to install one, or set TINSMITH_ORT_DYLIB to a good one"))
}

/// The library to use: located and probed; installed where there is none, or where only the system
/// has one and that cannot be used. Takes about 50 ms where one is installed.
///
/// # Errors
/// Those of [`locate`], [`probe`] and [`install`]. A library that the person named is never replaced
/// by another one.
pub fn ensure(paths: &Paths, monitor: &dyn Monitor) -> Result<Probe> {
    match locate(paths)? {
        Some(library) if library.origin == Origin::System => probe(&library).or_else(|e| {
            monitor.log(Level::Warning, &format!("the system's ONNX Runtime is not used: {e}"));
            probe(&install(paths, monitor)?)
        }),
        Some(library) => probe(&library),
        None => probe(&install(paths, monitor)?),
    }
}
