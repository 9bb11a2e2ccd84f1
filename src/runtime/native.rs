//! The library, loaded into this process.

use super::Library;
use super::provider::{KNOWN, Known};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Lowest minor version of the library (1.x) whose interface this program can use.
pub const MINIMUM_MINOR: u32 = 17;

/// The library, loaded into this process with its environment. A process loads one library, once.
#[derive(Clone)]
pub struct Runtime {
    pub(super) environment: ort::environment::Environment,
    version: String,
    build: String,
    path: PathBuf,
}

/// The outcome of the only attempt to load a library into this process. After a failed attempt the
/// bindings panic on any further use; remembering the failure keeps everybody away from them.
static LOADED: OnceLock<Result<Runtime, (PathBuf, String)>> = OnceLock::new();

/// The messages of an error and its causes, outermost first.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let message = e.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = e.source();
    }
    text
}

impl Runtime {
    /// Loads the library at an absolute path. For worker and child processes only, after [`super::probe`]
    /// succeeded on the same path: a file that only looks like a library can kill the process.
    ///
    /// # Errors
    /// `Unsupported` where it is too old; `Invalid` where it cannot be loaded, with the reasons of the
    /// system's loader; `Internal` where another one is loaded already.
    pub fn open(library: &Library) -> Result<Runtime> {
        let path = &library.path;
        let loaded = LOADED.get_or_init(|| load(path).map_err(|message| (path.clone(), message)));
        match loaded {
            Ok(runtime) if runtime.path == *path => Ok(runtime.clone()),
            Ok(runtime) => {
                Err(Error::internal("ORT-TWICE", "another ONNX Runtime is loaded in this process")
                    .file(path)
                    .found(runtime.path.display()))
            }
            Err((tried, message)) => Err(fault(tried, message)),
        }
    }

    /// Version, such as `1.32.0`.
    pub fn version(&self) -> &str {
        &self.version
    }
    /// Build description of the library.
    pub fn build(&self) -> &str {
        &self.build
    }
    /// The library file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Execution providers that the library was built with, by their ONNX Runtime names.
    pub fn available_providers(&self) -> Vec<String> {
        let built_in = |k: &&Known| k.is_built_in();
        KNOWN.iter().filter(built_in).map(|k| k.native.to_string()).collect()
    }
}

fn fault(path: &Path, message: &str) -> Error {
    let error = if let Some((_, found)) = message.split_once("but got ") {
        Error::unsupported("ORT-OLD", "this ONNX Runtime is too old")
            .found(found.trim_matches('\''))
            .limit(format!("1.{MINIMUM_MINOR} or newer"))
    } else {
        Error::invalid("ORT-LOAD", format!("this ONNX Runtime library cannot be loaded: {message}"))
    };
    error.file(path).hint("run `tinsmith setup` to install one, or set TINSMITH_ORT_DYLIB to a good one")
}

fn load(path: &Path) -> Result<Runtime, String> {
    let builder = ort::init_from(path).map_err(|e| match e {
        ort::LoadDynamicError::Dlopen { error, .. } => chain(&error),
        ort::LoadDynamicError::MissingApi { .. } => "it is another library, without OrtGetApiBase".into(),
        other => chain(&other),
    })?;
    let environment = builder.with_name("tinsmith").with_telemetry(false).build().map_err(|e| chain(&e))?;
    let build = ort::info().to_string();
    let version = version_of(path, &build);
    Ok(Runtime { environment, version, build, path: path.to_path_buf() })
}

/// The version from the build description (`git-branch=rel-1.32.0`) or from the file's name.
fn version_of(path: &Path, build: &str) -> String {
    let numbers = |text: &str| {
        let digits: String = text.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        let digits = digits.trim_end_matches('.').to_string();
        (digits.matches('.').count() >= 1).then_some(digits)
    };
    let name = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let name = name.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let from_name = name
        .strip_prefix("libonnxruntime.so.")
        .or_else(|| name.strip_prefix("libonnxruntime."))
        .and_then(numbers);
    let from_build = build.split("rel-").nth(1).and_then(numbers);
    let from_directory =
        path.parent().and_then(|p| p.file_name()).and_then(|n| numbers(&n.to_string_lossy()));
    from_build.or(from_name).or(from_directory).unwrap_or_else(|| "unknown".into())
}
