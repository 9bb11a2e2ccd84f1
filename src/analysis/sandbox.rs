//! Inspection in a child process: a file that defeats its reader takes a child with it, not a face.

use super::diff::{self, Diff};
use super::saturation::{Saturation, saturation_of};
use super::weights::distribution;
use super::{Options, Summary, summarize_file};
use crate::child::{self, Handler, Limits, Link};
use crate::error::{Error, Result};
use crate::monitor::{Monitor, Silent};
use crate::tensor::Distribution;
use serde::{Deserialize, Serialize};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the work among the child's handlers.
const KIND: &str = "analysis.summarize";
/// The same for one weight.
const WEIGHT: &str = "analysis.weight";
/// Two models against each other.
const DIFF: &str = "analysis.diff";
/// Saturation of an int8 model.
const SATURATION: &str = "analysis.saturation";
/// Address space of the child beyond what the program maps at its start.
const MEMORY: u64 = 4 << 30;

#[derive(Serialize, Deserialize)]
struct Request {
    /// Bytes of the path, which need not be UTF-8.
    path: Vec<u8>,
    options: Options,
}

#[derive(Serialize, Deserialize)]
struct OneWeight {
    path: Vec<u8>,
    name: String,
}

#[derive(Serialize, Deserialize)]
struct TwoModels {
    before: Vec<u8>,
    after: Vec<u8>,
    options: Options,
}

#[derive(Serialize, Deserialize)]
struct Saturates {
    path: Vec<u8>,
    data: String,
    isa: String,
    rows: usize,
    threads: usize,
}

fn path(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// What a child of this program can do for this room.
pub fn handlers() -> Vec<Handler> {
    vec![
        Handler::new(KIND, |request: Request, _: &Link| -> Result<Summary> {
            summarize_file(&path(request.path), &request.options)
        }),
        Handler::new(WEIGHT, |request: OneWeight, _: &Link| -> Result<Distribution> {
            distribution(&path(request.path), &request.name)
        }),
        Handler::new(DIFF, |request: TwoModels, _: &Link| -> Result<Diff> {
            let (before, after) = (path(request.before), path(request.after));
            diff::diff(&before, &after, &request.options, true, &Silent)
        }),
        Handler::new(SATURATION, |request: Saturates, link: &Link| -> Result<Saturation> {
            let Saturates { path: model, data, isa, rows, threads } = request;
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .map_err(|e| Error::internal("THREADS", format!("cannot start threads: {e}")))?;
            pool.install(|| saturation_of(&path(model), &data, &isa, rows, link))
        }),
    ]
}

/// [`distribution`] of one weight of a model file in a child process under the same limits.
///
/// # Errors
/// As [`distribution`]; `Died` where the child died on the file; `Limit` where it took too long.
pub fn weight_in_child(path: &Path, name: &str, monitor: &dyn Monitor) -> Result<Distribution> {
    let limits = Limits { memory: Some(MEMORY), reply: 1 << 20, ..Limits::within(Duration::from_secs(300)) };
    let path = std::path::absolute(path).map_err(|e| Error::io("find the model", path, e))?;
    let request = OneWeight { path: path.as_os_str().as_bytes().to_vec(), name: name.to_string() };
    child::call_watched(WEIGHT, &request, &limits, monitor).map_err(|e| e.file(&path))
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

/// [`diff::diff`] of two model files, elements included, in a child process under the same limits.
///
/// # Errors
/// As [`diff::diff`]; `Died` where the child died on a file; `Limit` where it took too long.
pub fn diff_in_child(before: &Path, after: &Path, options: &Options, monitor: &dyn Monitor) -> Result<Diff> {
    let limits =
        Limits { memory: Some(MEMORY), reply: 256 << 20, ..Limits::within(Duration::from_secs(900)) };
    let absolute = |p: &Path| -> Result<Vec<u8>> {
        let path = std::path::absolute(p).map_err(|e| Error::io("find the model", p, e))?;
        Ok(path.as_os_str().as_bytes().to_vec())
    };
    let request = TwoModels { before: absolute(before)?, after: absolute(after)?, options: options.clone() };
    child::call_watched(DIFF, &request, &limits, monitor)
}

/// [`saturation_of`] in a child process; `threads` 0 takes as many as there are.
///
/// # Errors
/// As [`saturation_of`]; `Died` where the child died.
pub fn saturation_in_child(
    model: &Path,
    data: &str,
    isa: &str,
    rows: usize,
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<Saturation> {
    let limits = Limits { reply: 64 << 20, ..Limits::within(Duration::from_secs(24 * 3600)) };
    let model = std::path::absolute(model).map_err(|e| Error::io("find the model", model, e))?;
    let path = model.as_os_str().as_bytes().to_vec();
    let request = Saturates { path, data: data.into(), isa: isa.into(), rows, threads };
    child::call_watched(SATURATION, &request, &limits, monitor).map_err(|e| e.file(&model))
}
