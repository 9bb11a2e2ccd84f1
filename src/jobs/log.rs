//! `events.jsonl`: an append-only writer and a tailing reader. Events enter, sealed lines leave; and
//! back. Lines carry a CRC-32 so that damage is seen. Readers skip what is damaged and count it; the
//! writer (one at a time, it holds the job's lock) cuts only its own torn tail.

use super::clock;
use super::event::{Event, Record, SCHEMA_VERSION};
use crate::error::{Error, Result};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// File name inside the job directory.
pub const FILE: &str = "events.jsonl";
/// A longer line is damage, not a record.
pub const MAX_LINE: usize = 16 << 20;
/// Bytes kept in memory while they cannot be written; beyond it progress, metrics and log lines drop.
const MAX_PENDING: usize = 4 << 20;
/// Bytes read from the file at once, and about the most that one poll takes.
const CHUNK: usize = 1 << 20;
const MAX_POLL: u64 = 8 << 20;

const SEAL: &str = ",\"crc\":\"";
/// `,"crc":"` + 8 digits + `"}`.
const SEAL_BYTES: usize = SEAL.len() + 10;

/// One line with its newline.
fn encode(record: &Record) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record)
        .map_err(|e| Error::internal("LOG-ENCODE", format!("event cannot be written: {e}")))?;
    let crc = checksum(&line);
    line.pop();
    line.extend_from_slice(format!("{SEAL}{crc:08x}\"}}\n").as_bytes());
    Ok(line)
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

enum Line {
    Record(Box<Record>),
    /// Well formed, of a kind that this version does not know.
    Unknown,
    Damaged,
}

/// A line without its newline. Lines without a checksum are taken as they are.
fn decode(line: &[u8]) -> Line {
    let mut body = line.to_vec();
    if let Some(at) = body.len().checked_sub(SEAL_BYTES)
        && body[at..].starts_with(SEAL.as_bytes())
    {
        let stated = std::str::from_utf8(&body[at + SEAL.len()..at + SEAL.len() + 8])
            .ok()
            .and_then(|t| u32::from_str_radix(t, 16).ok());
        body.truncate(at);
        body.push(b'}');
        if stated != Some(checksum(&body)) {
            return Line::Damaged;
        }
    }
    match serde_json::from_slice::<Record>(&body) {
        Ok(record) if record.schema_version == SCHEMA_VERSION => Line::Record(Box::new(record)),
        Ok(_) => Line::Unknown,
        Err(_) => match serde_json::from_slice::<serde_json::Value>(&body) {
            Ok(v) if v.get("seq").is_some_and(|s| s.is_u64()) && v.get("kind").is_some() => Line::Unknown,
            _ => Line::Damaged,
        },
    }
}

/// The writer of a job's log. Its owner holds the job's lock.
#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
    /// Length of the file up to the last complete batch.
    end: u64,
    next_seq: u64,
    pending: Vec<u8>,
    dropped: u64,
    unsynced: bool,
}

impl Log {
    /// Opens the log in `dir` for appending. A torn tail is cut, a complete record that only lacks its
    /// newline gets it. Numbering goes on after the last record and is at least `floor`.
    pub fn open(dir: &Path, floor: u64) -> Result<Log> {
        let path = dir.join(FILE);
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true);
        let file = options.open(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Error::storage("JOB-GONE", "the job directory is gone").file(&path).source(e)
            }
            _ => Error::io("open the event log", &path, e),
        })?;
        let io = |e| Error::io("read the event log", &path, e);
        let length = file.metadata().map_err(io)?.len();
        let mut log = Log {
            file,
            path: path.clone(),
            end: length,
            next_seq: floor,
            pending: vec![],
            dropped: 0,
            unsynced: false,
        };
        log.mend(length).map_err(io)?;
        log.next_seq = log.next_seq.max(log.last_seq().map_err(io)?.map_or(0, |s| s + 1));
        Ok(log)
    }

    /// Cuts or completes what stands after the last newline.
    fn mend(&mut self, length: u64) -> std::io::Result<()> {
        let mut start = length;
        let mut block = vec![0; 64 << 10];
        while start > 0 {
            let from = start.saturating_sub(block.len() as u64);
            let part = &mut block[..(start - from) as usize];
            self.file.read_exact_at(part, from)?;
            match part.iter().rposition(|b| *b == b'\n') {
                Some(at) => {
                    start = from + at as u64 + 1;
                    break;
                }
                None => start = from,
            }
        }
        if start == length {
            return Ok(());
        }
        if length - start <= MAX_LINE as u64 {
            let mut tail = vec![0; (length - start) as usize];
            self.file.read_exact_at(&mut tail, start)?;
            if matches!(decode(&tail), Line::Record(_)) {
                self.file.write_all(b"\n")?;
                self.end = length + 1;
                return Ok(());
            }
        }
        self.file.set_len(start)?;
        self.end = start;
        Ok(())
    }

    /// `seq` of the last good record, looked for from the end.
    fn last_seq(&self) -> std::io::Result<Option<u64>> {
        let mut window: u64 = 64 << 10;
        loop {
            let from = self.end.saturating_sub(window);
            if window > 64 << 20 {
                break;
            }
            let mut bytes = vec![0; (self.end - from) as usize];
            self.file.read_exact_at(&mut bytes, from)?;
            let found =
                bytes.split(|b| *b == b'\n').rev().filter(|l| !l.is_empty()).find_map(|l| match decode(l) {
                    Line::Record(r) => Some(r.seq),
                    _ => None,
                });
            if found.is_some() || from == 0 {
                return Ok(found);
            }
            window *= 16;
        }
        let mut tail = Tail::new(&self.path);
        let mut last = None;
        while !tail.is_caught_up() {
            last = tail.poll().last().map(|r| r.seq).or(last);
        }
        Ok(last)
    }

    /// Takes an event into the next batch and gives it its number. `None` where it was dropped, which
    /// happens only to progress, metrics and log lines while the disk takes nothing.
    pub fn append(&mut self, event: Event) -> Result<Option<Record>> {
        let droppable = matches!(event, Event::Progress { .. } | Event::Metric { .. } | Event::Log { .. });
        if droppable && self.pending.len() > MAX_PENDING {
            self.dropped += 1;
            return Ok(None);
        }
        let record = Record {
            schema_version: SCHEMA_VERSION,
            seq: self.next_seq,
            mono_ms: clock::mono_ms(),
            wall_ms: clock::wall_ms(),
            event,
        };
        let line = encode(&record)?;
        if line.len() > MAX_LINE {
            self.dropped += 1;
            return Ok(None);
        }
        self.pending.extend_from_slice(&line);
        self.next_seq += 1;
        Ok(Some(record))
    }

    /// Writes the batch with one append. What cannot be written stays for the next time.
    pub fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let pending = std::mem::take(&mut self.pending);
        if let Err(e) = self.file.write_all(&pending) {
            // Part of the batch may be in the file: cut back to the last complete one.
            let _ = self.file.set_len(self.end);
            self.pending = pending;
            return Err(Error::io("write the event log", &self.path, e));
        }
        self.end += pending.len() as u64;
        self.unsynced = true;
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            self.append(Event::Dropped { count: dropped })?;
            return self.flush();
        }
        Ok(())
    }

    /// A second handle to wait for the disk with, where something was written since the last call.
    pub fn unsynced(&mut self) -> Option<File> {
        std::mem::take(&mut self.unsynced).then(|| self.file.try_clone().ok()).flatten()
    }

    /// Writes the batch and waits until the disk has it.
    pub fn commit(&mut self) -> Result<()> {
        self.flush()?;
        self.unsynced = false;
        self.file.sync_data().map_err(|e| Error::io("save the event log", &self.path, e))
    }

    /// Length of the complete part.
    pub fn offset(&self) -> u64 {
        self.end
    }
}

/// A damaged place of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// Where the damaged line begins.
    pub offset: u64,
    /// Its length in bytes, as far as it was read.
    pub bytes: u64,
}

/// A reader that remembers where it is. It never reads the whole file twice.
#[derive(Debug, Clone)]
pub struct Tail {
    path: PathBuf,
    /// Begin of the first line that was not read yet.
    offset: u64,
    inode: u64,
    next_seq: u64,
    /// Inside a line that is too long.
    skipping: bool,
    caught_up: bool,
    damaged: Vec<Damage>,
    damage_count: u64,
    unknown: u64,
}

/// Places of damage that are remembered; all are counted.
const DAMAGES: usize = 100;

impl Tail {
    /// Reads `path` from its begin; the file need not exist yet.
    pub fn new(path: &Path) -> Tail {
        Tail::at(path, 0, 0)
    }

    /// Reads `path` from `offset`, a begin of a line, and ignores records below `next_seq`.
    pub fn at(path: &Path, offset: u64, next_seq: u64) -> Tail {
        Tail {
            path: path.to_path_buf(),
            offset,
            inode: 0,
            next_seq,
            skipping: false,
            caught_up: false,
            damaged: Vec::new(),
            damage_count: 0,
            unknown: 0,
        }
    }

    /// Records that were completed since the last call, in order, each once; at most about 8 MiB of the
    /// file, [`Tail::is_caught_up`] tells whether there is more. A file that cannot be read gives none.
    pub fn poll(&mut self) -> Vec<Record> {
        let mut out = Vec::new();
        self.caught_up = true;
        let Ok(meta) = fs::metadata(&self.path) else { return out };
        let replaced = self.inode != 0 && meta.ino() != self.inode;
        self.inode = meta.ino();
        if replaced || meta.len() < self.offset {
            self.offset = 0;
            self.skipping = false;
        }
        if meta.len() == self.offset {
            return out;
        }
        let Ok(file) = File::open(&self.path) else { return out };
        let begin = self.offset;
        let mut buffer = vec![0; CHUNK];
        loop {
            let wanted = usize::try_from(meta.len() - self.offset).unwrap_or(usize::MAX).min(buffer.len());
            if wanted == 0 {
                return out;
            }
            let Ok(n) = file.read_at(&mut buffer[..wanted], self.offset) else { return out };
            if n == 0 {
                return out;
            }
            match buffer[..n].iter().rposition(|b| *b == b'\n') {
                Some(last) => self.lines(&buffer[..=last], &mut out),
                None if self.skipping => {
                    self.offset += n as u64;
                    self.grow_damage(n as u64);
                }
                None if n >= MAX_LINE => {
                    self.damage(self.offset, n as u64);
                    self.offset += n as u64;
                    self.skipping = true;
                }
                None if n < buffer.len() => return out,
                None => buffer.resize((buffer.len() * 4).min(MAX_LINE), 0),
            }
            if self.offset - begin > MAX_POLL {
                self.caught_up = self.offset >= meta.len();
                return out;
            }
        }
    }

    /// Takes complete lines.
    fn lines(&mut self, bytes: &[u8], out: &mut Vec<Record>) {
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let at = self.offset;
            self.offset += line.len() as u64;
            if std::mem::take(&mut self.skipping) {
                self.grow_damage(line.len() as u64);
                continue;
            }
            let text = line.trim_ascii();
            // Some file systems leave a block of NULs where a crash lost data.
            let body = &text[text.iter().take_while(|b| **b == 0).count()..];
            if body.len() != text.len() {
                self.damage(at, (text.len() - body.len()) as u64);
            }
            if body.is_empty() {
                continue;
            }
            match decode(body) {
                Line::Record(record) if record.seq >= self.next_seq => {
                    self.next_seq = record.seq + 1;
                    out.push(*record);
                }
                Line::Record(_) => {}
                Line::Unknown => self.unknown += 1,
                Line::Damaged => self.damage(at, line.len() as u64),
            }
        }
    }

    fn damage(&mut self, offset: u64, bytes: u64) {
        self.damage_count += 1;
        if self.damaged.len() < DAMAGES {
            self.damaged.push(Damage { offset, bytes });
        }
    }

    fn grow_damage(&mut self, bytes: u64) {
        if let Some(last) = self.damaged.last_mut() {
            last.bytes += bytes;
        }
    }

    /// Whether the last poll reached the end of what was there.
    pub fn is_caught_up(&self) -> bool {
        self.caught_up
    }
    /// The first places of damage that were met.
    pub fn damaged(&self) -> &[Damage] {
        &self.damaged
    }
    /// How many damaged lines were met.
    pub fn damage_count(&self) -> u64 {
        self.damage_count
    }
    /// Lines of a kind or version that this program does not know.
    pub fn unknown(&self) -> u64 {
        self.unknown
    }
    /// Begin of the first line that was not read yet.
    pub fn offset(&self) -> u64 {
        self.offset
    }
    /// One line for people where something was damaged: `1 damaged record at byte 120`.
    pub fn damage_note(&self) -> Option<String> {
        let first = self.damaged.first()?;
        let plural = if self.damage_count == 1 { "record" } else { "records" };
        Some(format!("{} damaged {plural} at byte {}", self.damage_count, first.offset))
    }
}

#[cfg(test)]
mod tests;
