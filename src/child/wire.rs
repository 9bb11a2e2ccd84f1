//! What passes between parent and child: frames as JSON lines of limited length.

use super::Limits;
use crate::error::{Error, Kind, Result};
use crate::monitor::Level;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::BufRead;
use std::sync::Mutex;

/// First line from the parent.
#[derive(Debug, Serialize, Deserialize)]
pub struct Opening {
    pub protocol: u32,
    pub kind: String,
    pub parent: u32,
    pub limits: Limits,
}

/// A line from the child.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frame {
    /// The answer; the child waits for the next request.
    Reply(Value),
    /// The request failed; the child waits for the next request.
    Error(Value),
    /// A part of a streamed answer.
    Item(Value),
    Phase {
        name: String,
        total: Option<u64>,
    },
    Progress(u64),
    Metric {
        name: String,
        step: u64,
        value: f64,
    },
    Log {
        level: Level,
        message: String,
    },
}

/// Why a line could not be read.
pub enum LineFault {
    TooLong,
    Io(std::io::Error),
}

/// Reads one line of at most `cap` bytes; `None` at the end of the stream.
pub fn read_line(from: &mut impl BufRead, cap: usize) -> Result<Option<Vec<u8>>, LineFault> {
    let mut line = Vec::new();
    loop {
        let chunk = match from.fill_buf() {
            Ok(chunk) => chunk,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(LineFault::Io(e)),
        };
        if chunk.is_empty() {
            return Ok(if line.is_empty() { None } else { Some(line) });
        }
        let (part, end) = match chunk.iter().position(|&b| b == b'\n') {
            Some(at) => (&chunk[..at], Some(at + 1)),
            None => (chunk, None),
        };
        if line.len() + part.len() > cap {
            return Err(LineFault::TooLong);
        }
        line.extend_from_slice(part);
        let used = end.unwrap_or(chunk.len());
        from.consume(used);
        if end.is_some() {
            return Ok(Some(line));
        }
    }
}

/// Codes that came from a child. Parent and child are the same program, so that the set is small; the
/// bound holds it small whatever a child sends.
static CODES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

fn intern(code: &str) -> &'static str {
    let mut codes = CODES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(known) = codes.get(code) {
        return known;
    }
    if codes.len() >= 1000 || code.len() > 64 {
        return "CHILD";
    }
    let kept: &'static str = Box::leak(code.to_string().into_boxed_str());
    codes.insert(kept);
    kept
}

/// Restores an error that a child serialised.
pub fn restore(value: &Value) -> Error {
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    let kind = value.get("exit_code").and_then(Value::as_u64).map_or(Kind::Internal, |code| {
        Kind::from_exit_code(u8::try_from(code).unwrap_or(Kind::Internal.exit_code()))
    });
    let mut error =
        Error::new(kind, intern(text("code").unwrap_or("CHILD")), text("message").unwrap_or("failed"));
    if let Some(file) = text("file") {
        error = error.file(file);
    }
    if let Some(field) = text("field") {
        error = error.field(field);
    }
    if let Some(node) = text("node") {
        error = error.node(node);
    }
    if let Some(offset) = value.get("offset").and_then(Value::as_u64) {
        error = error.offset(offset);
    }
    if let Some(found) = text("found") {
        error = error.found(found);
    }
    if let Some(limit) = text("limit") {
        error = error.limit(limit);
    }
    if let Some(hint) = text("hint") {
        error = error.hint(hint);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_crosses_the_pipe_with_all_its_facts() {
        let sent = Error::invalid("ONNX-DIMS", "dimension is negative")
            .file("m.onnx")
            .field("graph.input[0]")
            .node("conv1")
            .offset(16)
            .found(-3)
            .limit("0 or more")
            .hint("export it again");
        let got = restore(&serde_json::to_value(&sent).unwrap());
        assert_eq!(sent.to_string(), got.to_string());
        assert_eq!(sent.kind(), got.kind());
        assert_eq!(got.code(), "ONNX-DIMS");
    }

    #[test]
    fn lines_are_cut_off_at_the_cap() {
        let mut input: &[u8] = b"abc\ndefgh\n";
        assert_eq!(read_line(&mut input, 4).ok().flatten().as_deref(), Some(&b"abc"[..]));
        assert!(matches!(read_line(&mut input, 4), Err(LineFault::TooLong)));
    }
}
