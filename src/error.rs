//! The one error type of the house. Every layer reports the same facts (what failed, in which file
//! and field or node, what was found, what is allowed, what to do next), and every face prints them
//! the same way; so one opaque type with a [`Kind`] serves all layers, and the kind is the exit code.

use crate::text;
use serde::{Serialize, Serializer, ser::SerializeMap};
use std::{error::Error as StdError, fmt, path::Path, path::PathBuf};

/// Result with the house's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure this is; it decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A gate or budget was not met (1).
    Gate,
    /// Wrong usage or configuration (2).
    Usage,
    /// The input is not valid (3).
    Invalid,
    /// The input is valid, this version does not support it (4).
    Unsupported,
    /// Refused by a limit (5).
    Limit,
    /// Storage failed: reading, writing, space (6).
    Storage,
    /// Something else holds what is needed (7).
    Busy,
    /// A job, worker or other child process died (8).
    Died,
    /// Content differs from what was promised, or changed while it was read (9).
    Integrity,
    /// A bug of this program (70).
    Internal,
    /// Stopped on request with a checkpoint; can be resumed (75).
    Stopped,
    /// Ended by an interrupt without a checkpoint (130).
    Interrupted,
}

impl Kind {
    /// The process exit code of this kind (DESIGN: exit codes).
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Gate => 1,
            Kind::Usage => 2,
            Kind::Invalid => 3,
            Kind::Unsupported => 4,
            Kind::Limit => 5,
            Kind::Storage => 6,
            Kind::Busy => 7,
            Kind::Died => 8,
            Kind::Integrity => 9,
            Kind::Internal => 70,
            Kind::Stopped => 75,
            Kind::Interrupted => 130,
        }
    }

    /// The kind with this exit code; unknown codes are [`Kind::Internal`].
    pub fn from_exit_code(code: u8) -> Kind {
        use Kind::*;
        [Gate, Usage, Invalid, Unsupported, Limit, Storage, Busy, Died, Integrity, Stopped, Interrupted]
            .into_iter()
            .find(|k| k.exit_code() == code)
            .unwrap_or(Internal)
    }
}

#[derive(Debug)]
struct Inner {
    kind: Kind,
    code: &'static str,
    message: String,
    file: Option<PathBuf>,
    field: Option<String>,
    node: Option<String>,
    offset: Option<u64>,
    found: Option<String>,
    limit: Option<String>,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// An error of any layer. Build one with a constructor per kind and add facts:
/// `Error::invalid("ONNX-DIMS", "dimension is negative").file(p).field("graph.input[0]").found(-3).hint("re-export the model")`.
pub struct Error(Box<Inner>);

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident),* $(,)?) => {
        $($(#[$doc])*
        pub fn $name(code: &'static str, message: impl Into<String>) -> Error { Error::new(Kind::$kind, code, message) })*
    };
}

impl Error {
    /// An error of `kind`. `code` is a short stable identifier such as `ONNX-DIMS`.
    pub fn new(kind: Kind, code: &'static str, message: impl Into<String>) -> Error {
        Error(Box::new(Inner {
            kind,
            code,
            message: message.into(),
            file: None,
            field: None,
            node: None,
            offset: None,
            found: None,
            limit: None,
            hint: None,
            source: None,
        }))
    }

    constructors! {
        /// A gate was not met (1).
        gate => Gate,
        /// Usage or configuration (2).
        usage => Usage,
        /// Invalid input (3).
        invalid => Invalid,
        /// Valid but unsupported (4).
        unsupported => Unsupported,
        /// Refused by a limit (5).
        limit_exceeded => Limit,
        /// Storage error (6).
        storage => Storage,
        /// Busy (7).
        busy => Busy,
        /// A child died (8).
        died => Died,
        /// Integrity mismatch (9).
        integrity => Integrity,
        /// Internal bug (70).
        internal => Internal,
        /// Stopped, resumable (75).
        stopped => Stopped,
    }

    /// An I/O failure while doing `what` (for example `read model`) on `path`.
    pub fn io(what: &str, path: impl AsRef<Path>, e: std::io::Error) -> Error {
        let kind = if e.kind() == std::io::ErrorKind::NotFound { Kind::Invalid } else { Kind::Storage };
        let hint = match e.kind() {
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::PermissionDenied => "check the permissions of the file and its directory",
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                "free some space and try again"
            }
            _ => "check the disk and try again",
        };
        Error::new(kind, "IO", format!("cannot {what}: {e}")).file(path.as_ref()).hint(hint).source(e)
    }

    /// The file concerned. The first one set stays.
    pub fn file(mut self, path: impl AsRef<Path>) -> Error {
        self.0.file.get_or_insert_with(|| path.as_ref().to_path_buf());
        self
    }
    /// Path of the field inside the file, such as `graph.node[3].input[1]`. The first one set stays.
    pub fn field(mut self, field: impl Into<String>) -> Error {
        self.0.field.get_or_insert_with(|| field.into());
        self
    }
    /// As [`Error::field`], replacing a field that is set: for a caller that knows the path around it.
    pub fn at_field(mut self, field: impl Into<String>) -> Error {
        self.0.field = Some(field.into());
        self
    }
    /// The graph node concerned. The first one set stays.
    pub fn node(mut self, node: impl Into<String>) -> Error {
        self.0.node.get_or_insert_with(|| node.into());
        self
    }
    /// Byte offset inside the file.
    pub fn offset(mut self, offset: u64) -> Error {
        self.0.offset = Some(offset);
        self
    }
    /// The value that was found.
    pub fn found(mut self, found: impl fmt::Display) -> Error {
        self.0.found = Some(found.to_string());
        self
    }
    /// What is allowed.
    pub fn limit(mut self, limit: impl fmt::Display) -> Error {
        self.0.limit = Some(limit.to_string());
        self
    }
    /// The next step for the person who reads this. The first one set stays.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.0.hint.get_or_insert_with(|| hint.into());
        self
    }
    /// The underlying error.
    pub fn source(mut self, source: impl StdError + Send + Sync + 'static) -> Error {
        self.0.source = Some(Box::new(source));
        self
    }

    /// What sort of failure this is.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }
    /// The stable identifier.
    pub fn code(&self) -> &'static str {
        self.0.code
    }
    /// The graph node concerned, if one is.
    pub fn node_name(&self) -> Option<&str> {
        self.0.node.as_deref()
    }
    /// The field concerned, if one is.
    pub fn field_path(&self) -> Option<&str> {
        self.0.field.as_deref()
    }
    /// The sentence that says what failed, without the facts around it.
    pub fn message(&self) -> &str {
        &self.0.message
    }
    /// What was found instead, if it is told.
    pub fn found_text(&self) -> Option<&str> {
        self.0.found.as_deref()
    }
    /// The next step, if one is known.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &self.0;
        write!(f, "[{}] ", e.code)?;
        if let Some(file) = &e.file {
            write!(f, "{}: ", text::clean(&file.to_string_lossy(), 240))?;
        }
        if let Some(field) = &e.field {
            write!(f, "{}: ", text::clean(field, 120))?;
        }
        if let Some(node) = &e.node {
            write!(f, "node \"{}\": ", text::clean(node, 120))?;
        }
        write!(f, "{}", text::clean(&e.message, 600))?;
        if let Some(offset) = e.offset {
            write!(f, " at byte {offset} ({offset:#x})")?;
        }
        match (&e.found, &e.limit) {
            (Some(a), Some(b)) => {
                write!(f, " (found {}, allowed {})", text::clean(a, 120), text::clean(b, 120))?
            }
            (Some(a), None) => write!(f, " (found {})", text::clean(a, 120))?,
            (None, Some(b)) => write!(f, " (allowed {})", text::clean(b, 120))?,
            (None, None) => {}
        }
        if let Some(hint) = &e.hint {
            write!(f, "; {}", text::clean(hint, 400))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {self}", self.0.kind)?;
        let mut cause = StdError::source(self);
        while let Some(e) = cause {
            write!(f, "\n  caused by: {}", text::clean(&e.to_string(), 400))?;
            cause = e.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|s| &**s as &(dyn StdError + 'static))
    }
}

/// As an object: `code, exit_code, message, file, field, node, offset, found, limit, hint`.
impl Serialize for Error {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let e = &self.0;
        let mut map = s.serialize_map(None)?;
        map.serialize_entry("code", e.code)?;
        map.serialize_entry("exit_code", &e.kind.exit_code())?;
        map.serialize_entry("message", &text::clean(&e.message, 600))?;
        map.serialize_entry("file", &e.file.as_ref().map(|p| text::clean(&p.to_string_lossy(), 4096)))?;
        map.serialize_entry("field", &e.field.as_ref().map(|t| text::clean(t, 240)))?;
        map.serialize_entry("node", &e.node.as_ref().map(|t| text::clean(t, 240)))?;
        map.serialize_entry("offset", &e.offset)?;
        map.serialize_entry("found", &e.found.as_ref().map(|t| text::clean(t, 240)))?;
        map.serialize_entry("limit", &e.limit.as_ref().map(|t| text::clean(t, 240)))?;
        map.serialize_entry("hint", &e.hint.as_ref().map(|t| text::clean(t, 400)))?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_file_field_values_and_next_step() {
        let e = Error::invalid("ONNX-DIMS", "dimension is negative")
            .file("m.onnx")
            .field("graph.input[0]")
            .offset(16)
            .found(-3)
            .limit("0 or more")
            .hint("export the model again");
        assert_eq!(
            e.to_string(),
            "[ONNX-DIMS] m.onnx: graph.input[0]: dimension is negative at byte 16 (0x10) (found -3, allowed 0 or more); export the model again"
        );
        assert_eq!(e.kind().exit_code(), 3);
        assert_eq!(Kind::from_exit_code(3), Kind::Invalid);
    }

    #[test]
    fn control_bytes_from_a_file_never_reach_the_terminal() {
        let e = Error::invalid("X", "bad").node("a\u{1b}]52;c;x\u{7}");
        assert!(!e.to_string().contains('\u{1b}'));
    }
}
