//! Inspection in a child process: a file that defeats its reader takes a child with it, not a face.

use super::{Options, Summary, summarize_file};
use crate::child::{self, Handler, Limits, Link};
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use serde::{Deserialize, Serialize};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the work among the child's handlers.
const KIND: &str = "analysis.summarize";
/// Address space of the child beyond what the program maps at its start.
const MEMORY: u64 = 4 << 30;

#[derive(Serialize, Deserialize)]
struct Request {
    /// Bytes of the path, which need not be UTF-8.
    path: Vec<u8>,
    options: Options,
}

/// What a child of this program can do for this room.
pub fn handlers() -> Vec<Handler> {
    vec![Handler::new(KIND, |request: Request, _: &Link| -> Result<Summary> {
        let path = PathBuf::from(std::ffi::OsString::from_vec(request.path));
        summarize_file(&path, &request.options)
    })]
}

/// [`summarize_file`] in a child process under limits of time and memory, for faces that look at files
/// of unknown origin. `monitor` may end it.
///
/// # Errors
/// As [`summarize_file`]; `Died` where the child died on the file; `Limit` where it took too long.
pub fn summarize_in_child(path: &Path, options: &Options, monitor: &dyn Monitor) -> Result<Summary> {
    let wall = Duration::from_secs(if options.weights { 600 } else { 30 });
    let limits = Limits { memory: Some(MEMORY), reply: 256 << 20, ..Limits::within(wall) };
    let path = std::path::absolute(path).map_err(|e| Error::io("find the model", path, e))?;
    let request = Request { path: path.as_os_str().as_bytes().to_vec(), options: options.clone() };
    child::call_watched(KIND, &request, &limits, monitor).map_err(|e| e.file(&path))
}
