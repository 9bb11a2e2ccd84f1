//! Where the library may lie: the environment, the installed ones, the system.

use super::install;
use crate::config::Paths;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// How a library was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Named by `TINSMITH_ORT_DYLIB` or `ORT_DYLIB_PATH`; binds.
    Environment,
    /// Below `$TINSMITH_HOME/runtimes`.
    Installed,
    /// In a library directory of the system.
    System,
}

/// A library file that was found, not yet loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Library {
    /// Absolute path.
    pub path: PathBuf,
    /// How it was found.
    pub origin: Origin,
}

/// The first library in the order environment, installed (newest first), system.
///
/// # Errors
/// `Usage` when the environment names a file that is not there.
pub fn locate(paths: &Paths) -> Result<Option<Library>> {
    for name in ["TINSMITH_ORT_DYLIB", "ORT_DYLIB_PATH"] {
        if let Some(value) = std::env::var_os(name).filter(|v| !v.is_empty()) {
            return named(name, Path::new(&value)).map(Some);
        }
    }
    if let Some(path) = install::installed(&paths.runtimes()) {
        return Ok(Some(Library { path, origin: Origin::Installed }));
    }
    Ok(system().map(|path| Library { path, origin: Origin::System }))
}

fn named(variable: &str, value: &Path) -> Result<Library> {
    let path = std::path::absolute(value).map_err(|e| Error::io("resolve", value, e))?;
    let fault = |what: &str| {
        Err(Error::usage("ORT-PATH", format!("{variable} names {what}"))
            .file(&path)
            .hint(format!("correct {variable}, or unset it to use the installed library")))
    };
    match std::fs::metadata(&path) {
        Err(_) => fault("a file that does not exist"),
        Ok(m) if m.is_dir() => match library_in(&path) {
            Some(path) => Ok(Library { path, origin: Origin::Environment }),
            None => fault("a directory without an ONNX Runtime library"),
        },
        Ok(_) => Ok(Library { path, origin: Origin::Environment }),
    }
}

/// Whether a file name is that of the library itself, with or without a version.
pub(super) fn is_library_name(name: &str) -> bool {
    name == "onnxruntime.dll"
        || name.strip_prefix("libonnxruntime.").is_some_and(|rest| {
            rest == "dylib" || rest == "so" || rest.starts_with("so.") || rest.ends_with(".dylib")
        })
}

/// The library in a directory; the longest name, which carries the version, wins.
pub(super) fn library_in(dir: &Path) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(is_library_name) && p.is_file())
        .collect();
    found.sort_by_key(|p| (p.as_os_str().len(), p.clone()));
    found.pop()
}

fn system() -> Option<PathBuf> {
    let variable = if cfg!(target_os = "macos") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };
    let named = std::env::var_os(variable).unwrap_or_default();
    let fixed: &[&str] = if cfg!(target_os = "macos") {
        &["/opt/homebrew/lib", "/usr/local/lib"]
    } else {
        &[
            "/usr/local/lib",
            "/usr/local/lib64",
            "/usr/lib",
            "/usr/lib64",
            "/usr/lib/x86_64-linux-gnu",
            "/usr/lib/aarch64-linux-gnu",
        ]
    };
    std::env::split_paths(&named)
        .filter(|p| p.is_absolute())
        .chain(fixed.iter().map(PathBuf::from))
        .find_map(|dir| library_in(&dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versioned_file_is_taken_and_provider_libraries_are_not() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["libonnxruntime.so", "libonnxruntime.so.1.32.0", "libonnxruntime_providers_shared.so"] {
            std::fs::write(dir.path().join(name), b"x").unwrap();
        }
        let found = library_in(dir.path()).unwrap();
        assert_eq!(found.file_name().unwrap(), "libonnxruntime.so.1.32.0");
        assert!(is_library_name("libonnxruntime.1.32.0.dylib") && is_library_name("onnxruntime.dll"));
        assert!(!is_library_name("libonnxruntime_providers_shared.so"));
    }
}
