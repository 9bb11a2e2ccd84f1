//! Bytes that stay in their file until they are needed. Positioned reads, no mapping: a file that
//! shrinks under a map would kill the process, here it is an error.

use crate::error::{Error, Result};
use rustix::fs::{FileType, Mode, OFlags, fstat};
use std::{
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// An open file and what it was when it was opened.
#[derive(Debug)]
pub struct SourceFile {
    file: std::fs::File,
    path: PathBuf,
    len: u64,
    identity: (u64, u64, i64, u64),
}

fn identity(file: &std::fs::File) -> std::io::Result<(u64, u64, u64, i64, u64)> {
    let s = fstat(file)?;
    Ok((s.st_size as u64, s.st_dev as u64, s.st_ino as u64, s.st_mtime as i64, s.st_mtime_nsec as u64))
}

impl SourceFile {
    /// Opens a regular file for reading; never blocks on a pipe or device, which are refused by name.
    pub fn open(path: &Path) -> Result<Arc<SourceFile>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error::io("open", path, e.into()))?;
        SourceFile::from_file(fd.into(), path)
    }

    /// Takes over an open descriptor; `path` is for messages.
    pub fn from_file(file: std::fs::File, path: &Path) -> Result<Arc<SourceFile>> {
        let stat = fstat(&file).map_err(|e| Error::io("examine", path, e.into()))?;
        let what = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => None,
            FileType::Directory => Some("a directory"),
            FileType::Fifo => Some("a pipe"),
            FileType::Socket => Some("a socket"),
            FileType::CharacterDevice | FileType::BlockDevice => Some("a device"),
            _ => Some("not a regular file"),
        };
        if let Some(what) = what {
            return Err(Error::invalid("FILE-TYPE", "a regular file is needed")
                .file(path)
                .found(what)
                .hint("pass the path of the model file itself"));
        }
        let (len, dev, ino, mtime, nsec) = identity(&file).map_err(|e| Error::io("examine", path, e))?;
        Ok(Arc::new(SourceFile { file, path: path.to_path_buf(), len, identity: (dev, ino, mtime, nsec) }))
    }

    /// Length when opened.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.len
    }
    /// Path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fails with kind `Integrity` where size, time or inode changed since the file was opened.
    pub fn unchanged(&self) -> Result<()> {
        let (len, dev, ino, mtime, nsec) =
            identity(&self.file).map_err(|e| Error::io("examine", &self.path, e))?;
        if len != self.len || (dev, ino, mtime, nsec) != self.identity {
            return Err(Error::integrity("FILE-CHANGED", "the file changed while it was read")
                .file(&self.path)
                .found(format!("{len} bytes"))
                .limit(format!("{} bytes", self.len))
                .hint("wait until it is written, then open it again"));
        }
        Ok(())
    }

    /// Fills `out` from `offset`. Fails where the file is too short or changed.
    pub fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        match self.file.read_exact_at(out, offset) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                self.unchanged()?;
                Err(Error::invalid("FILE-SHORT", "the file ends too early")
                    .file(&self.path)
                    .offset(offset)
                    .found(format!("{} bytes", self.len.saturating_sub(offset)))
                    .limit(format!("{} bytes", out.len())))
            }
            Err(e) => Err(Error::io("read", &self.path, e)),
        }
    }
}

/// A range of bytes of an open file.
#[derive(Debug, Clone)]
pub struct Region {
    file: Arc<SourceFile>,
    offset: u64,
    len: u64,
}

impl Region {
    /// A range; fails where it leaves the file.
    pub fn new(file: Arc<SourceFile>, offset: u64, len: u64) -> Result<Region> {
        match offset.checked_add(len) {
            Some(end) if end <= file.len => Ok(Region { file, offset, len }),
            _ => Err(Error::invalid("REGION", "data lies outside the file")
                .file(&file.path)
                .offset(offset)
                .found(format!("{len} bytes"))
                .limit(format!("{} bytes", file.len))),
        }
    }
    /// Length in bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.len
    }
    /// Position in the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }
    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.file.path
    }
    /// All bytes; the file is rechecked afterwards.
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut out = vec![0; self.len as usize];
        self.file.read_exact_at(self.offset, &mut out)?;
        self.file.unchanged()?;
        Ok(out)
    }
    /// Fills `out` from position `at` of the region. Fails where it leaves the region or the file changed.
    pub fn read_at(&self, at: u64, out: &mut [u8]) -> Result<()> {
        if at.checked_add(out.len() as u64).is_none_or(|end| end > self.len) {
            return Err(Error::internal("REGION", "a read leaves its region").file(self.path()).offset(at));
        }
        self.file.read_exact_at(self.offset + at, out)?;
        self.file.unchanged()
    }
    /// Copies the bytes in pieces of 1 MiB.
    pub fn copy_to(&self, out: &mut dyn Write) -> Result<()> {
        let mut piece = vec![0u8; (1 << 20).min(self.len as usize)];
        let mut done = 0;
        while done < self.len {
            let n = (self.len - done).min(piece.len() as u64) as usize;
            self.file.read_exact_at(self.offset + done, &mut piece[..n])?;
            out.write_all(&piece[..n]).map_err(|e| Error::io("copy tensor bytes", self.path(), e))?;
            done += n as u64;
        }
        self.file.unchanged()
    }
}
