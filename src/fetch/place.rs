//! A directory of the cache: one writer at a time, complete or absent, described by its manifest.

use super::{Fetched, FetchedFile};
use crate::error::{Error, Result};
use crate::monitor::{Level, Monitor};
use crate::save;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

const MANIFEST: &str = "fetched.json";

/// Exclusive right to write one entry of a cache directory, until dropped.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the right to write `name` below `parent`, which is created.
    pub fn acquire(parent: &Path, name: &str, monitor: &dyn Monitor) -> Result<Lock> {
        fs::create_dir_all(parent).map_err(|e| Error::io("create a directory", parent, e))?;
        let path = parent.join(format!(".{name}.lock"));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|e| Error::io("open a lock", &path, e))?;
        let mut told = false;
        loop {
            match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Error::io("lock", &path, e.into())),
            }
            if !told {
                monitor.log(Level::Info, &format!("waiting for another process that gets {name}"));
                told = true;
            }
            monitor.check()?;
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// A temporary directory beside the final one, removed when dropped.
pub(super) fn work_directory(parent: &Path, name: &str) -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .tempdir_in(parent)
        .map_err(|e| Error::io("create a directory", parent, e))
}

/// The entry, if it is there, complete by size, and made from the package with this digest.
pub fn is_current(parent: &Path, name: &str, package_sha256: &str) -> Option<Fetched> {
    manifest(parent, name).filter(|f| f.package_sha256 == package_sha256)
}

/// The entry, if it is there and complete by size, whatever it was made from.
pub(super) fn manifest(parent: &Path, name: &str) -> Option<Fetched> {
    let dir = parent.join(name);
    let bytes = fs::read(dir.join(MANIFEST)).ok()?;
    let mut found: Fetched = serde_json::from_slice(&bytes).ok()?;
    let complete = found.schema_version == 1
        && found.files.iter().all(|f| fs::metadata(dir.join(&f.path)).is_ok_and(|m| m.len() == f.bytes));
    found.dir = dir;
    complete.then_some(found)
}

/// Moves `contents` to `fetched.dir`, with a manifest of every file in it. What was there before is
/// replaced. The caller holds the [`Lock`].
pub fn publish(mut fetched: Fetched, contents: &Path, monitor: &dyn Monitor) -> Result<Fetched> {
    let mut files = Vec::new();
    list(contents, "", &mut files)?;
    files.sort();
    for path in files {
        monitor.check()?;
        let (sha256, bytes) = save::digest(&contents.join(&path))?;
        fetched.files.push(FetchedFile { path, bytes, sha256 });
    }
    save::json(&contents.join(MANIFEST), &fetched)?;
    // Names may hold dots, so the ending is appended, not replaced.
    let mut old = fetched.dir.clone().into_os_string();
    old.push(".old");
    let old = std::path::PathBuf::from(old);
    let _ = fs::remove_dir_all(&old);
    if fetched.dir.exists() {
        fs::rename(&fetched.dir, &old).map_err(|e| Error::io("replace", &fetched.dir, e))?;
    }
    fs::rename(contents, &fetched.dir).map_err(|e| Error::io("move into place", &fetched.dir, e))?;
    let _ = fs::remove_dir_all(&old);
    if let Some(parent) = fetched.dir.parent() {
        save::sync_directory(parent)?;
    }
    Ok(fetched)
}

fn list(dir: &Path, prefix: &str, out: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
        let entry = entry.map_err(|e| Error::io("list", dir, e))?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            list(&entry.path(), &format!("{name}/"), out)?;
        } else {
            out.push(name);
        }
    }
    Ok(())
}
