//! The grammar of data specs: `KIND:PLACE[?OPTION=VALUE&...][#FROM..TO]`.

use crate::error::{Error, Result};
use std::{cell::RefCell, collections::BTreeMap, ops::Range, path::PathBuf, str::FromStr};

/// A parsed spec.
#[derive(Debug, Clone)]
pub struct Spec {
    /// What sort of data.
    pub kind: String,
    /// Path, or part of an embedded set.
    pub place: String,
    /// Rows to use.
    pub range: Option<Range<usize>>,
    text: String,
    options: RefCell<BTreeMap<String, String>>,
}

/// The text it was parsed from.
impl std::fmt::Display for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Spec {
    /// Parses a spec; a usage error says which part is wrong.
    pub fn parse(text: &str) -> Result<Spec> {
        let wrong = |what: &str| {
            Error::usage("DATA-SPEC", what.to_string())
                .field(text)
                .hint("specs look like csv:FILE?label=last#0..256")
        };
        let (body, range) = match text.rsplit_once('#') {
            Some((body, range)) => {
                let (from, to) = range.split_once("..").ok_or_else(|| wrong("a range is FROM..TO"))?;
                let number =
                    |s: &str| s.parse::<usize>().map_err(|_| wrong("a range is FROM..TO in row numbers"));
                (body, Some(number(from)?..number(to)?))
            }
            None => (text, None),
        };
        let (kind, rest) = body.split_once(':').ok_or_else(|| wrong("a spec starts with KIND:"))?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        if place.is_empty() {
            return Err(wrong("a spec needs a place behind KIND:"));
        }
        let mut options = BTreeMap::new();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| wrong("an option is NAME=VALUE"))?;
            options.insert(key.to_string(), value.to_string());
        }
        Ok(Spec {
            kind: kind.into(),
            place: place.into(),
            range,
            text: text.into(),
            options: RefCell::new(options),
        })
    }

    /// The place as a path.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(&self.place)
    }

    /// Takes an option; a usage error where it does not parse.
    pub fn option<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        match self.options.borrow_mut().remove(name) {
            None => Ok(None),
            Some(value) => value.parse().map(Some).map_err(|_| {
                Error::usage("DATA-OPTION", "option cannot be read")
                    .field(format!("{} option {name}", self.text))
                    .found(value)
            }),
        }
    }

    /// Takes a comma-separated list of numbers.
    pub fn list<T: FromStr>(&self, name: &str) -> Result<Option<Vec<T>>> {
        let Some(text) = self.option::<String>(name)? else { return Ok(None) };
        let items: std::result::Result<Vec<T>, _> = text.split(',').map(|p| p.trim().parse::<T>()).collect();
        items.map(Some).map_err(|_| {
            Error::usage("DATA-OPTION", "option is a comma-separated list")
                .field(format!("{} option {name}", self.text))
                .found(text)
        })
    }

    /// Fails where an option is left that nobody took.
    pub fn finish(&self) -> Result<()> {
        match self.options.borrow().keys().next() {
            Some(name) => Err(Error::usage("DATA-OPTION", "unknown option").field(&self.text).found(name)),
            None => Ok(()),
        }
    }
}
