//! Reading a header from its start: little-endian numbers and length-prefixed strings. A read fails
//! before it allocates, where the file or a budget does not hold what it asks for. Knows no structure.

use crate::error::{Error, Result};
use crate::formats::limits::{Limits, too_large};
use crate::tensor::SourceFile;

/// Bytes that are read ahead.
const AHEAD: usize = 1 << 18;

pub(super) struct Cursor<'a> {
    file: &'a SourceFile,
    buffer: Vec<u8>,
    /// Position of the next byte inside `buffer`.
    next: usize,
    /// Position in the file of the end of `buffer`.
    end: u64,
    limits: &'a Limits,
    memory: u64,
}

macro_rules! numbers {
    ($($name:ident: $t:ty),*) => { $(
        pub(super) fn $name(&mut self) -> Result<$t> {
            Ok(<$t>::from_le_bytes(self.array()?))
        }
    )* };
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a SourceFile, limits: &'a Limits) -> Cursor<'a> {
        Cursor { file, buffer: Vec::new(), next: 0, end: 0, limits, memory: 0 }
    }

    /// Position in the file.
    pub(super) fn at(&self) -> u64 {
        self.end - (self.buffer.len() - self.next) as u64
    }

    /// Bytes from here to the end of the file.
    pub(super) fn left(&self) -> u64 {
        self.file.len() - self.at()
    }

    /// Limits of this parse.
    pub(super) fn limits(&self) -> &'a Limits {
        self.limits
    }

    /// Fails where `count` things of at least `size` bytes each cannot follow.
    pub(super) fn room(&self, what: &str, count: u64, size: u64) -> Result<()> {
        let need = count.checked_mul(size);
        if need.is_some_and(|n| n <= self.left()) {
            return Ok(());
        }
        let need = need.map_or_else(|| "more bytes than any file has".to_string(), |n| format!("{n} bytes"));
        Err(Error::invalid(
            "GGUF-SHORT",
            format!("{what} {count} needs at least {need}, {} left", self.left()),
        )
        .offset(self.at())
        .hint("the file is cut off or damaged: download it again"))
    }

    /// Takes from the memory budget.
    pub(super) fn charge(&mut self, bytes: u64) -> Result<()> {
        self.memory = self.memory.saturating_add(bytes);
        if self.memory > self.limits.memory_bytes {
            return Err(too_large("memory_bytes", "the header", self.memory, self.limits.memory_bytes));
        }
        if self.at() > self.limits.structure_bytes {
            return Err(too_large("structure_bytes", "the header", self.at(), self.limits.structure_bytes));
        }
        Ok(())
    }

    /// The next `n` bytes; `n` was checked against a limit by the caller.
    pub(super) fn bytes(&mut self, n: usize) -> Result<&[u8]> {
        if self.buffer.len() - self.next < n {
            self.fill(n)?;
        }
        let from = self.next;
        self.next += n;
        self.buffer
            .get(from..self.next)
            .ok_or_else(|| Error::internal("GGUF-CURSOR", "a read leaves its buffer"))
    }

    fn fill(&mut self, n: usize) -> Result<()> {
        if n as u64 > self.left() {
            return Err(Error::invalid("GGUF-SHORT", "the file ends inside its header")
                .offset(self.at())
                .found(format!("{} bytes", self.left()))
                .limit(format!("{n} bytes"))
                .hint("the file is cut off: download it again"));
        }
        self.buffer.drain(..self.next);
        self.next = 0;
        let kept = self.buffer.len();
        let rest = self.file.len() - self.end;
        let more = usize::try_from(rest).unwrap_or(usize::MAX).min((n - kept).max(AHEAD));
        self.buffer.resize(kept + more, 0);
        self.file.read_exact_at(self.end, self.buffer.get_mut(kept..).unwrap_or_default())?;
        self.end += more as u64;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.bytes(N)?;
        bytes.try_into().map_err(|_| Error::internal("GGUF-CURSOR", "a read has the wrong length"))
    }

    numbers!(u8: u8, i8: i8, u16: u16, i16: i16, u32: u32, i32: i32, u64: u64, i64: i64, f32: f32, f64: f64);

    /// The bytes of a string of at most `limit` bytes.
    pub(super) fn string(&mut self, what: &str, name: &'static str, limit: u64) -> Result<&[u8]> {
        let at = self.at();
        let length = self.u64()?;
        if length > self.left() {
            return Err(Error::invalid("GGUF-SHORT", format!("{what} is longer than the file"))
                .offset(at)
                .found(format!("{length} bytes"))
                .limit(format!("{} bytes", self.left()))
                .hint("the file is cut off or damaged: download it again"));
        }
        if length > limit {
            return Err(too_large(name, what, length, limit).offset(at));
        }
        self.charge(length)?;
        self.bytes(usize::try_from(length).unwrap_or(usize::MAX))
    }
}
