//! Files named by untrusted files. A directory and a name enter, an open regular file beneath that
//! directory leaves, or the reason why not. Names must match a narrow grammar, no link is followed, and
//! what was opened is what is checked. Knows no format; callers say it in their own words.

use crate::error::Result;
use crate::tensor::SourceFile;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, fstat, openat, readlinkat};
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Parts that a name may have.
const PARTS: usize = 4;

/// Why a name is not opened.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The name itself, and what is wrong with it.
    Name(&'static str),
    /// It is or passes a symbolic link.
    Link,
    /// There is nothing.
    Missing,
    /// It is something else than a regular file, and what the check said of it, if it came that far.
    Type(Option<crate::error::Error>),
    /// The system refused.
    Io(Errno),
}

/// An open directory.
#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens the directory that a person named; links in its path are theirs.
    pub(super) fn open(path: &Path) -> rustix::io::Result<Directory> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = openat(CWD, path, flags, Mode::empty())?;
        Ok(Directory { fd, path: path.to_path_buf() })
    }

    /// Opens a file that an untrusted file names, and tells its number of hard links.
    pub(super) fn file(&self, name: &str) -> std::result::Result<(Arc<SourceFile>, u64), Refusal> {
        check_grammar(name).map_err(Refusal::Name)?;
        let fd = open_beneath(&self.fd, name).map_err(|e| match e {
            Errno::LOOP | Errno::XDEV | Errno::MLINK => Refusal::Link,
            Errno::NOENT | Errno::NOTDIR => Refusal::Missing,
            Errno::NXIO => Refusal::Type(None),
            e => Refusal::Io(e),
        })?;
        let links = fstat(&fd).map_err(Refusal::Io)?.st_nlink;
        let path = self.path.join(name);
        let file = SourceFile::from_file(fd.into(), &path).map_err(|e| Refusal::Type(Some(e)))?;
        // The count has fewer bits on other systems.
        #[allow(clippy::useless_conversion)]
        let links = u64::from(links);
        Ok((file, links))
    }

    /// The file behind a link as the cache of the Hugging Face hub makes them: `../../blobs/HASH`, seen
    /// from the directory. `None` for any other link; the blob itself may be no link.
    pub(super) fn cached(&self, name: &str) -> Option<Result<Arc<SourceFile>>> {
        let target = readlinkat(&self.fd, name, Vec::new()).ok()?;
        let hash = target.to_str().ok()?.strip_prefix("../../blobs/")?.to_string();
        if !(40..=64).contains(&hash.len()) || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let blobs = openat(&self.fd, "../../blobs", flags, Mode::empty()).ok()?;
        let fd = openat(&blobs, &hash, READ, Mode::empty()).ok()?;
        Some(SourceFile::from_file(fd.into(), &self.path.join(name)))
    }
}

fn check_grammar(location: &str) -> std::result::Result<(), &'static str> {
    if location.is_empty() {
        return Err("it is empty");
    }
    if location.starts_with('/') {
        return Err("it is an absolute path");
    }
    let mut parts = 0;
    for part in location.split('/') {
        parts += 1;
        match part {
            "" => return Err("it has an empty part"),
            "." | ".." => return Err("it leaves the model's directory or names it"),
            p if p.starts_with('.') => return Err("it names a hidden file"),
            p if p.len() > 255 => return Err("a part is too long"),
            p if !p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) => {
                return Err("it has characters other than letters, digits, '.', '_', '-'");
            }
            _ => {}
        }
    }
    if parts > PARTS { Err("it has too many parts") } else { Ok(()) }
}

const READ: OFlags = OFlags::RDONLY
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::NOFOLLOW);

#[cfg(any(target_os = "linux", target_os = "android"))]
fn open_beneath(directory: &OwnedFd, location: &str) -> rustix::io::Result<OwnedFd> {
    use rustix::fs::{ResolveFlags, openat2};
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    for _ in 0..16 {
        match openat2(directory, location, READ, Mode::empty(), resolve) {
            // The kernel could not make sure that no rename interfered.
            Err(Errno::AGAIN) => {}
            Err(Errno::NOSYS | Errno::PERM | Errno::INVAL) => return open_stepwise(directory, location),
            other => return other,
        }
    }
    open_stepwise(directory, location)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn open_beneath(directory: &OwnedFd, location: &str) -> rustix::io::Result<OwnedFd> {
    open_stepwise(directory, location)
}

/// One directory at a time, no part of which may be a link.
fn open_stepwise(directory: &OwnedFd, location: &str) -> rustix::io::Result<OwnedFd> {
    let mut parts: Vec<&str> = location.split('/').collect();
    let last = parts.pop().unwrap_or_default();
    let mut at: Option<OwnedFd> = None;
    for part in parts {
        let here = at.as_ref().map_or(directory.as_fd(), |fd| fd.as_fd());
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let next = openat(here, part, flags, Mode::empty());
        // NOFOLLOW with DIRECTORY says "not a directory" of a link.
        at = Some(next?);
    }
    openat(at.as_ref().map_or(directory.as_fd(), |fd| fd.as_fd()), last, READ, Mode::empty())
}
