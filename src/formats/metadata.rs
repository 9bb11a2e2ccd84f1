//! Key-value facts of a checkpoint file in file order. Values enter as the file types them; readers
//! ask for them by key and kind, and a value of another kind is an error that names the key.

use crate::error::{Error, Result};
use std::collections::HashMap;

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// Any integer type.
    Int(i128),
    /// Any float type.
    Float(f64),
    /// Boolean.
    Bool(bool),
    /// Text.
    Text(String),
    /// Array of integers.
    Ints(Vec<i64>),
    /// Array of floats.
    Floats(Vec<f32>),
    /// Array of booleans.
    Bools(Vec<bool>),
    /// Array of texts.
    Texts(Vec<String>),
    /// Nested arrays and whatever else is only shown.
    Other(String),
}

impl Fact {
    /// What kind of value it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Fact::Int(_) => "an integer",
            Fact::Float(_) => "a float",
            Fact::Bool(_) => "a boolean",
            Fact::Text(_) => "a text",
            Fact::Ints(_) => "an array of integers",
            Fact::Floats(_) => "an array of floats",
            Fact::Bools(_) => "an array of booleans",
            Fact::Texts(_) => "an array of texts",
            Fact::Other(_) => "a nested array",
        }
    }
}

/// Facts in file order.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    entries: Vec<(String, Fact)>,
    by_key: HashMap<String, usize>,
}

impl Metadata {
    /// Adds a fact; `false` where the key is there already.
    pub fn insert(&mut self, key: &str, fact: Fact) -> bool {
        if self.by_key.contains_key(key) {
            return false;
        }
        self.by_key.insert(key.to_string(), self.entries.len());
        self.entries.push((key.to_string(), fact));
        true
    }

    /// All facts in file order.
    pub fn entries(&self) -> &[(String, Fact)] {
        &self.entries
    }

    /// The fact of a key.
    pub fn get(&self, key: &str) -> Option<&Fact> {
        Some(&self.entries.get(*self.by_key.get(key)?)?.1)
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.get(key).map_or(Ok(None), |f| match f {
            Fact::Text(t) => Ok(Some(t.as_str())),
            other => Err(wrong(key, other, "a text")),
        })
    }

    /// A count: an integer that is not negative.
    pub fn count(&self, key: &str) -> Result<Option<u64>> {
        self.get(key).map_or(Ok(None), |f| match f {
            Fact::Int(n) => u64::try_from(*n).map(Some).map_err(|_| wrong(key, f, "a count")),
            other => Err(wrong(key, other, "a count")),
        })
    }

    /// A number, integer or float.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map_or(Ok(None), |f| match f {
            Fact::Int(n) => Ok(Some(*n as f64)),
            Fact::Float(x) => Ok(Some(*x)),
            other => Err(wrong(key, other, "a number")),
        })
    }

    /// A boolean.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key).map_or(Ok(None), |f| match f {
            Fact::Bool(b) => Ok(Some(*b)),
            other => Err(wrong(key, other, "a boolean")),
        })
    }

    /// An array of texts.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        self.get(key).map_or(Ok(None), |f| match f {
            Fact::Texts(t) => Ok(Some(t.as_slice())),
            other => Err(wrong(key, other, "an array of texts")),
        })
    }

    /// An array of integers.
    pub fn ints(&self, key: &str) -> Result<Option<&[i64]>> {
        self.get(key).map_or(Ok(None), |f| match f {
            Fact::Ints(v) => Ok(Some(v.as_slice())),
            other => Err(wrong(key, other, "an array of integers")),
        })
    }

    /// An array of floats.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        self.get(key).map_or(Ok(None), |f| match f {
            Fact::Floats(v) => Ok(Some(v.as_slice())),
            other => Err(wrong(key, other, "an array of floats")),
        })
    }
}

fn wrong(key: &str, found: &Fact, wanted: &str) -> Error {
    Error::invalid("METADATA-KIND", "a metadata value has the wrong kind")
        .field(key)
        .found(found.kind())
        .limit(wanted)
}
