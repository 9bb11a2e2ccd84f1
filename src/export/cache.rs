//! Exports that are kept, so that a checkpoint can be measured, evaluated or asked for text like an ONNX
//! file. A model enters, the path of an ONNX file for ONNX Runtime leaves: the model itself, or an export of
//! just these files made by just this version of the program.

use super::{Exported, Plan, Storage, export};
use crate::config::Paths;
use crate::error::{Error, Result};
use crate::fetch::Lock;
use crate::formats;
use crate::monitor::{Level, Monitor};
use crate::passes::lower::Target;
use crate::save;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// File of an entry.
const MODEL: &str = "model.onnx";
/// Entries that are kept; the ones used last stay.
const KEPT: usize = 4;

/// `model` as a file that ONNX Runtime takes. What is ONNX already is returned as it is.
///
/// # Errors
/// Those of [`export`]; storage errors of the cache.
pub fn ready(model: &Path, paths: &Paths, monitor: &dyn Monitor) -> Result<PathBuf> {
    if !formats::is_checkpoint(model)? {
        return Ok(model.to_path_buf());
    }
    let parent = paths.cache().join("exports");
    let key = key(model)?;
    let entry = parent.join(&key);
    let file = entry.join(MODEL);
    if file.exists() {
        touch(&entry);
        return Ok(file);
    }
    let _lock = Lock::acquire(&parent, &key, monitor)?;
    if file.exists() {
        return Ok(file);
    }
    let work = tempfile::Builder::new()
        .prefix(".export.")
        .tempdir_in(&parent)
        .map_err(|e| Error::io("create a directory", &parent, e))?;
    let plan =
        Plan { model: model.to_path_buf(), target: Some(Target::Ort), storage: Storage::F32, context: None };
    monitor.log(Level::Info, &format!("{} becomes ONNX once; the export is kept", model.display()));
    let made: Exported = export(&plan, &work.path().join(MODEL), monitor)?;
    made.warnings.iter().for_each(|w| monitor.log(Level::Warning, w));
    let finished = work.keep();
    fs::rename(&finished, &entry).map_err(|e| Error::io("put the export into the cache", &entry, e))?;
    save::sync_directory(&parent)?;
    forget(&parent, &key);
    Ok(file)
}

/// What an export depends on: the files of the model as they are now, and this program.
fn key(model: &Path) -> Result<String> {
    let model = model.canonicalize().map_err(|e| Error::io("find the model", model, e))?;
    let directory = if model.is_dir() { model.as_path() } else { model.parent().unwrap_or(Path::new("/")) };
    let mut text = format!("{}\n{}\n", env!("CARGO_PKG_VERSION"), model.display());
    let mut seen: Vec<PathBuf> = vec![model.clone()];
    for sub in ["", "1_Pooling"] {
        let Ok(entries) = fs::read_dir(directory.join(sub)) else { continue };
        let json = |p: &PathBuf| p.extension().is_some_and(|e| e == "json");
        let weights = |p: &PathBuf| p.extension().is_some_and(|e| e == "safetensors" || e == "gguf");
        let mut files: Vec<PathBuf> =
            entries.flatten().map(|e| e.path()).filter(|p| json(p) || (weights(p) && *p != model)).collect();
        files.sort();
        seen.extend(files);
    }
    for path in seen {
        if let Ok(m) = fs::metadata(&path) {
            text.push_str(&format!(
                "{} {} {}.{} {}\n",
                path.display(),
                m.len(),
                m.mtime(),
                m.mtime_nsec(),
                m.ino()
            ));
        }
    }
    Ok(save::sha256(text.as_bytes()).chars().take(32).collect())
}

/// Marks an entry as used now.
fn touch(entry: &Path) {
    let used = entry.join("used");
    let _ = fs::write(&used, b"");
}

/// Removes the entries that were not used for longest, all but a few.
fn forget(parent: &Path, newest: &str) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let used = |path: &Path| {
        let of = |p: PathBuf| fs::metadata(p).and_then(|m| m.modified()).ok();
        of(path.join("used")).or_else(|| of(path.join(MODEL)))
    };
    let mut found: Vec<_> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| {
            p.is_dir() && p.file_name().is_some_and(|n| n != newest && !n.to_string_lossy().starts_with('.'))
        })
        .map(|p| (used(&p), p))
        .collect();
    found.sort();
    let surplus = found.len().saturating_sub(KEPT - 1);
    for (_, path) in found.into_iter().take(surplus) {
        let _ = fs::remove_dir_all(path);
    }
}
