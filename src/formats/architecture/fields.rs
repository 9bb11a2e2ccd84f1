//! `config.json` read with suspicion: every value has a kind and a range, and an error names the key.
//! Counts, numbers, texts and flags leave; no architecture is known here.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Largest count that any key may have; beyond it sizes cannot be meant.
const LARGEST: u64 = 1 << 28;

/// One object of a configuration file.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    file: PathBuf,
    /// Path of this object inside the file, with a trailing dot.
    at: String,
}

impl<'a> Fields<'a> {
    /// The root object; `Invalid` where the file holds something else.
    pub(super) fn new(value: &'a Value, file: &Path) -> Result<Fields<'a>> {
        let map = value.as_object().ok_or_else(|| {
            Error::invalid("CONFIG-KIND", "the configuration is not a JSON object").file(file)
        })?;
        Ok(Fields { map, file: file.to_path_buf(), at: String::new() })
    }

    /// The value of a key; `null` counts as absent.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether a key has a value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Whether a key is spelled out, be it as `null`.
    pub(super) fn names(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Number of keys.
    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    fn wrong(&self, key: &str, found: &Value, wanted: &str) -> Error {
        let mut text = found.to_string();
        if text.len() > 60 {
            text = format!("{}…", text.chars().take(60).collect::<String>());
        }
        Error::invalid("CONFIG-VALUE", "a configuration value cannot be used")
            .file(&self.file)
            .field(format!("{}{key}", self.at))
            .found(text)
            .limit(wanted)
    }

    /// The error for a key that must be there.
    pub(super) fn missing(&self, key: &str) -> Error {
        Error::invalid("CONFIG-MISSING", "the configuration lacks a key")
            .file(&self.file)
            .field(format!("{}{key}", self.at))
            .hint("use the config.json that belongs to these weights")
    }

    /// The error for a value that is valid but not supported.
    pub(super) fn unsupported(&self, key: &str, found: impl std::fmt::Display, known: &str) -> Error {
        Error::unsupported(
            "CONFIG-UNSUPPORTED",
            "the configuration asks for what this version does not build",
        )
        .file(&self.file)
        .field(format!("{}{key}", self.at))
        .found(found)
        .limit(known)
        .hint("`tinsmith inspect` still shows the weights")
    }

    /// A positive integer.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>> {
        let Some(v) = self.get(key) else { return Ok(None) };
        match v.as_u64() {
            Some(n) if (1..=LARGEST).contains(&n) => Ok(usize::try_from(n).ok()),
            _ => Err(self.wrong(key, v, &format!("an integer from 1 to {LARGEST}"))),
        }
    }

    /// The first of several spellings of a positive integer, or an error that names the first.
    pub(super) fn need_count(&self, keys: &[&str]) -> Result<usize> {
        for key in keys {
            if let Some(n) = self.count(key)? {
                return Ok(n);
            }
        }
        Err(self.missing(keys.first().copied().unwrap_or_default()))
    }

    /// A finite number.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(v) = self.get(key) else { return Ok(None) };
        match v.as_f64() {
            Some(x) if x.is_finite() && x.abs() < 1e30 => Ok(Some(x)),
            _ => Err(self.wrong(key, v, "a finite number")),
        }
    }

    /// A number above zero.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>> {
        match (self.number(key)?, self.get(key)) {
            (Some(x), Some(v)) if x <= 0.0 => Err(self.wrong(key, v, "a number above 0")),
            (x, _) => Ok(x),
        }
    }

    /// A text.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(v) = self.get(key) else { return Ok(None) };
        v.as_str().map(Some).ok_or_else(|| self.wrong(key, v, "a text"))
    }

    /// A truth value.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(v) = self.get(key) else { return Ok(None) };
        v.as_bool().map(Some).ok_or_else(|| self.wrong(key, v, "true or false"))
    }

    /// A list of texts.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        let Some(v) = self.get(key) else { return Ok(None) };
        let list = v.as_array().and_then(|a| a.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        list.map(Some).ok_or_else(|| self.wrong(key, v, "a list of texts"))
    }

    /// A list of finite numbers.
    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(v) = self.get(key) else { return Ok(None) };
        let list = v
            .as_array()
            .and_then(|a| a.iter().map(|x| x.as_f64().filter(|x| x.is_finite())).collect::<Option<Vec<_>>>());
        list.map(Some).ok_or_else(|| self.wrong(key, v, "a list of finite numbers"))
    }

    /// An integer or a pair of equal integers, as image and patch sizes are spelled.
    pub(super) fn square(&self, key: &str) -> Result<Option<(usize, usize)>> {
        let Some(v) = self.get(key) else { return Ok(None) };
        if let Some(pair) = v.as_array() {
            let side = |n: usize| {
                pair.get(n).and_then(Value::as_u64).filter(|n| (1..=1 << 16).contains(n)).map(|n| n as usize)
            };
            return match (pair.len(), side(0), side(1)) {
                (2, Some(h), Some(w)) => Ok(Some((h, w))),
                _ => Err(self.wrong(key, v, "an integer or a pair of integers")),
            };
        }
        Ok(self.count(key)?.map(|n| (n, n)))
    }

    /// A nested object.
    pub(super) fn section(&self, key: &str) -> Result<Option<Fields<'a>>> {
        let Some(v) = self.get(key) else { return Ok(None) };
        let map = v.as_object().ok_or_else(|| self.wrong(key, v, "an object"))?;
        Ok(Some(Fields { map, file: self.file.clone(), at: format!("{}{key}.", self.at) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_wrong_kind_or_size_are_refused_by_key() {
        let value: Value = serde_json::from_str(
            r#"{"a": "7", "b": 0, "c": 1099511627776, "d": -1, "e": 1.5, "f": [4, 4], "g": null,
                "h": {"i": "x"}, "j": 1e40}"#,
        )
        .unwrap();
        let fields = Fields::new(&value, Path::new("config.json")).unwrap();
        for key in ["a", "b", "c", "d", "e"] {
            let e = fields.count(key).unwrap_err();
            assert_eq!((e.code(), e.field_path()), ("CONFIG-VALUE", Some(key)));
        }
        assert!(fields.number("j").is_err());
        assert_eq!(fields.square("f").unwrap(), Some((4, 4)));
        assert_eq!(fields.count("g").unwrap(), None);
        let inner = fields.section("h").unwrap().unwrap();
        assert_eq!(inner.flag("i").unwrap_err().field_path(), Some("h.i"));
        assert!(Fields::new(&Value::Null, Path::new("config.json")).is_err());
    }
}
