//! Saving without ever leaving half a file: temporary file beside the target, fsync, rename, fsync of
//! the directory. Bytes and a path enter; a complete file or the untouched old one is there afterwards,
//! whenever the process dies. Also the digest of a file. Knows no format.

use crate::error::{Error, Kind, Result};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Prefix of temporary files; whoever owns a directory may remove what a dead process left of them.
pub const TEMP_PREFIX: &str = ".tinsmith-tmp-";

/// Writes `path` by `write`, all or nothing. An existing file keeps its mode; a symbolic link keeps
/// pointing, its target is replaced. After a failure the old content is untouched.
///
/// # Errors
/// What `write` returned, or a storage error that names `path`. An fsync that failed is not repeated.
pub fn atomic<T>(path: &Path, write: impl FnOnce(&mut File) -> Result<T>) -> Result<T> {
    replace(path, true, write)
}

/// [`atomic`] for bytes at hand.
pub fn bytes(path: &Path, content: &[u8]) -> Result<()> {
    atomic(path, |file| file.write_all(content).map_err(|e| Error::io("write", path, e)))
}

/// [`atomic`] for pretty JSON, with a final newline.
pub fn json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    bytes(path, &json_bytes(path, value)?)
}

/// Replaces `path` by JSON without waiting for the disk: for what can be rebuilt. Readers never see
/// half a file while the system runs; after a power loss they may see the old, the new or an empty one.
pub fn json_unsynced(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let content = json_bytes(path, value)?;
    replace(path, false, |file| file.write_all(&content).map_err(|e| Error::io("write", path, e)))
}

fn json_bytes(path: &Path, value: &impl serde::Serialize) -> Result<Vec<u8>> {
    let mut out = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::internal("SAVE-JSON", format!("value cannot be written: {e}")).file(path))?;
    out.push(b'\n');
    Ok(out)
}

fn replace<T>(path: &Path, sync: bool, write: impl FnOnce(&mut File) -> Result<T>) -> Result<T> {
    let target = follow(path)?;
    let parent = parent(&target);
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMP_PREFIX);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(&target).map(|m| m.permissions().mode() & 0o7777);
        builder.permissions(fs::Permissions::from_mode(mode.unwrap_or(0o666)));
    }
    let mut temp = builder.tempfile_in(parent).map_err(|e| stored("create a file beside", path, e))?;
    let value = write(temp.as_file_mut())?;
    if sync {
        temp.as_file().sync_all().map_err(|e| stored("save", path, e))?;
    }
    temp.persist(&target).map_err(|e| stored("save", path, e.error))?;
    if sync {
        sync_directory(parent)?;
    }
    Ok(value)
}

/// An I/O error of the saving side: a missing directory is a storage error here, not invalid input.
fn stored(what: &str, path: &Path, e: io::Error) -> Error {
    if e.kind() == io::ErrorKind::NotFound {
        return Error::storage("IO", format!("cannot {what}: {e}"))
            .file(path)
            .hint("create the directory first")
            .source(e);
    }
    Error::io(what, path, e)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Where a chain of symbolic links ends, so that the rename does not replace the link itself.
fn follow(path: &Path) -> Result<PathBuf> {
    let mut at = path.to_path_buf();
    for _ in 0..40 {
        match fs::read_link(&at) {
            Ok(next) => at = parent(&at).join(next),
            Err(_) => return Ok(at),
        }
    }
    Err(Error::storage("SAVE-LINKS", "too many symbolic links").file(path))
}

/// Makes renames and creations in `directory` survive a power loss.
pub fn sync_directory(directory: &Path) -> Result<()> {
    let handle = File::open(directory).map_err(|e| stored("open the directory", directory, e))?;
    match handle.sync_all() {
        // Some network file systems do not know fsync on directories.
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        other => other.map_err(|e| stored("save the directory", directory, e)),
    }
}

/// Removes temporary files that a killed process left in `directory`. Only for directories with one
/// writer, by that writer.
pub fn sweep(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(TEMP_PREFIX) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// SHA-256 of a file in hexadecimal, read in pieces of 1 MiB, and its size in bytes.
pub fn digest(path: &Path) -> Result<(String, u64)> {
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    digest_of(file, || Ok(())).map_err(|e| e.file(path))
}

/// SHA-256 in hexadecimal and length of everything that `from` yields; `check` runs before each piece
/// and may stop the work.
pub fn digest_of(mut from: impl Read, check: impl Fn() -> Result<()>) -> Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut length = 0;
    loop {
        check()?;
        match from.read(&mut buffer) {
            Ok(0) => return Ok((hex(&hash.finalize()), length)),
            Ok(n) => {
                hash.update(&buffer[..n]);
                length += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => {
                return Err(Error::storage("IO", format!("cannot read: {e}"))
                    .hint("check the disk and try again")
                    .source(e));
            }
        }
    }
}

/// SHA-256 of bytes in hexadecimal.
pub fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// Whether `error` comes from a full disk or an exhausted quota, which waiting may cure.
pub fn is_disk_full(error: &Error) -> bool {
    let full = |e: &io::Error| matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let mut at = std::error::Error::source(error);
    while let Some(e) = at {
        if e.downcast_ref::<io::Error>().is_some_and(full) {
            return error.kind() == Kind::Storage;
        }
        at = e.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        bytes(&path, b"old").unwrap();
        let result: Result<()> = atomic(&path, |f| {
            f.write_all(b"half").unwrap();
            Err(Error::storage("X", "no space").source(io::Error::from(io::ErrorKind::StorageFull)))
        });
        assert!(is_disk_full(&result.unwrap_err()));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn links_and_modes_survive() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        bytes(&real, b"old").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("real", &link).unwrap();
        bytes(&link, b"new").unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn a_missing_directory_is_a_storage_error() {
        let e = bytes(Path::new("/nonexistent/dir/file"), b"x").unwrap_err();
        assert_eq!(e.kind(), Kind::Storage);
        assert!(!is_disk_full(&e));
    }

    #[test]
    fn digest_matches_the_standard_vector() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        fs::write(&path, "abc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest(&path).unwrap(), (expected.to_string(), 3));
        assert_eq!(sha256(b"abc"), expected);
    }

    #[test]
    fn sweep_removes_only_temporary_files() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(format!("{TEMP_PREFIX}x")), "").unwrap();
        fs::write(dir.path().join("keep"), "").unwrap();
        sweep(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
