//! Budgets of one parse. A parser takes from them before it allocates; a refusal names the limit and
//! how to raise it. Knows no format.

use crate::error::{Error, Result};
use crate::units::Bytes;

/// Largest amounts that a file may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Nested messages.
    pub depth: usize,
    /// Graph nodes, those of bodies and functions included.
    pub nodes: u64,
    /// Tensors.
    pub tensors: u64,
    /// Elements of repeated fields that are decoded one by one: names, strings, integers.
    pub items: u64,
    /// Bytes of one name.
    pub name_bytes: u64,
    /// Bytes of one free text (documentation, metadata value).
    pub text_bytes: u64,
    /// Bytes of everything but large tensors, as encoded.
    pub structure_bytes: u64,
    /// Bytes of the decoded structure in memory, estimated beforehand.
    pub memory_bytes: u64,
    /// Axes of a tensor.
    pub rank: usize,
    /// Bytes of all external data together, as declared; and at most four times what the files hold.
    pub external_bytes: u64,
    /// Whether external data files may have several hard links, as some download caches make them.
    pub hard_links: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            depth: 100,
            nodes: 1_000_000,
            tensors: 1_000_000,
            items: 5_000_000,
            name_bytes: 4 << 10,
            text_bytes: 16 << 20,
            structure_bytes: 256 << 20,
            memory_bytes: 1 << 30,
            rank: 32,
            external_bytes: 1 << 40,
            hard_links: false,
        }
    }
}

/// The environment variable that raises limits: `nodes=2000000,structure_bytes=536870912`.
pub const VARIABLE: &str = "TINSMITH_LIMITS";

impl Limits {
    /// The defaults, changed by `TINSMITH_LIMITS` where that is set. The depth stays: deeper files would
    /// not survive any protobuf reader.
    pub fn from_env() -> Result<Limits> {
        match std::env::var(VARIABLE) {
            Ok(text) => Limits::parse(&text),
            Err(_) => Ok(Limits::default()),
        }
    }

    fn parse(text: &str) -> Result<Limits> {
        let mut limits = Limits::default();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let bad = |why: &str| {
                Error::usage("LIMITS", format!("{VARIABLE} {why}"))
                    .found(part)
                    .hint("write it as nodes=2000000,structure_bytes=536870912")
            };
            let (name, value) = part.split_once('=').ok_or_else(|| bad("needs NAME=NUMBER"))?;
            let value: u64 = value.trim().parse().map_err(|_| bad("needs a number"))?;
            match name.trim() {
                "nodes" => limits.nodes = value,
                "tensors" => limits.tensors = value,
                "items" => limits.items = value,
                "name_bytes" => limits.name_bytes = value,
                "text_bytes" => limits.text_bytes = value,
                "structure_bytes" => limits.structure_bytes = value.min(1 << 30),
                "memory_bytes" => limits.memory_bytes = value,
                "external_bytes" => limits.external_bytes = value,
                "hard_links" => limits.hard_links = value != 0,
                _ => return Err(bad("knows no such limit")),
            }
        }
        Ok(limits)
    }
}

/// The refusal of a count.
pub(crate) fn too_many(name: &'static str, what: &str, limit: u64) -> Error {
    Error::limit_exceeded("LIMIT", format!("{what} exceed the limit \"{name}\""))
        .found(format!("more than {limit}"))
        .limit(limit)
        .hint(format!("if the file is really yours, raise it with {VARIABLE}={name}=NUMBER"))
}

/// The refusal of a number of bytes.
pub(crate) fn too_large(name: &'static str, what: &str, found: u64, limit: u64) -> Error {
    Error::limit_exceeded("LIMIT", format!("{what} exceeds the limit \"{name}\""))
        .found(Bytes(found))
        .limit(Bytes(limit))
        .hint(format!("if the file is really yours, raise it with {VARIABLE}={name}=NUMBER"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_raised_by_name_and_wrong_names_are_refused() {
        assert_eq!(Limits::parse("nodes=5, items = 7").unwrap().nodes, 5);
        assert_eq!(Limits::parse("").unwrap(), Limits::default());
        assert_eq!(Limits::parse("x=1").unwrap_err().kind().exit_code(), 2);
        assert_eq!(Limits::parse("nodes=-1").unwrap_err().kind().exit_code(), 2);
    }
}
