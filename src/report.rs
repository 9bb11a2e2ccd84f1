//! Results as people and scripts read them. A schema struct enters (summary, comparison, proposals,
//! measurements); a [`Report`] holds it as JSON and as tables; [`Report::render`] gives one of the five
//! formats. Each format is a file, each subject is a file, and neither knows the other. Knows no
//! terminal: the caller says how wide a line may be.

mod comparison;
mod csv;
mod diff;
mod evaluations;
mod json;
mod jsonl;
mod markdown;
mod measurements;
mod proposals;
mod saturation;
mod summary;
mod table;
mod text;

pub use diff::differences;
pub use summary::{Section, Sections, inspection};
pub use table::{Align, Cell, Column, Table};

use crate::error::{Error, Result};
use serde::Serialize;
use serde_json::Value;

/// How a result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Aligned tables for people.
    #[default]
    Text,
    /// One JSON document.
    Json,
    /// One JSON object a line and record.
    Jsonl,
    /// Comma-separated values of the main table (RFC 4180).
    Csv,
    /// Markdown tables.
    Md,
}

impl Format {
    /// The names, in the order shown to people.
    pub const NAMES: [(&str, Format); 5] = [
        ("text", Format::Text),
        ("json", Format::Json),
        ("jsonl", Format::Jsonl),
        ("csv", Format::Csv),
        ("md", Format::Md),
    ];
}

/// A piece of a report for people.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// A heading.
    Heading(String),
    /// Name and value pairs.
    Facts(Vec<(String, String)>),
    /// A table; the first one of a report is its main table.
    Table(Table),
    /// A line of prose.
    Line(String),
}

/// A result in all its forms.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    document: Value,
    records: Vec<Value>,
    parts: Vec<Part>,
}

impl Report {
    /// A report of `document`, whose JSONL form is the document itself until
    /// [`Report::records`] says otherwise.
    pub fn new(document: &impl Serialize) -> Result<Report> {
        Ok(Report { document: value(document)?, records: Vec::new(), parts: Vec::new() })
    }

    /// Sets the records of the JSONL form.
    pub fn records<T: Serialize>(mut self, records: &[T]) -> Result<Report> {
        self.records = records.iter().map(value).collect::<Result<_>>()?;
        Ok(self)
    }

    /// Adds a heading.
    pub fn heading(mut self, text: impl Into<String>) -> Report {
        self.parts.push(Part::Heading(text.into()));
        self
    }
    /// Adds name and value pairs; those without a value are left out.
    pub fn facts<const N: usize>(mut self, facts: [(&str, String); N]) -> Report {
        let facts = facts.into_iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k.into(), v));
        self.parts.push(Part::Facts(facts.collect()));
        self
    }
    /// Adds a table.
    pub fn table(mut self, table: Table) -> Report {
        self.parts.push(Part::Table(table));
        self
    }
    /// Adds a line of prose.
    pub fn line(mut self, text: impl Into<String>) -> Report {
        self.parts.push(Part::Line(text.into()));
        self
    }

    /// Adds the parts of another report; its JSON is left out.
    pub fn append(mut self, other: Report) -> Report {
        self.parts.extend(other.parts);
        self
    }

    /// The report in `format`, ending in a newline. `width` is the longest line of the text form, where
    /// there is a limit; the others ignore it. Text from files is made fit for a terminal in all forms.
    pub fn render(&self, format: Format, width: Option<usize>) -> String {
        match format {
            Format::Text => text::render(&self.parts, width),
            Format::Json => json::render(&self.document),
            Format::Jsonl => jsonl::render(&self.document, &self.records),
            Format::Csv => csv::render(&self.parts),
            Format::Md => markdown::render(&self.parts),
        }
    }
}

fn value(of: &impl Serialize) -> Result<Value> {
    serde_json::to_value(of)
        .map_err(|e| Error::internal("REPORT", format!("a result cannot be written as JSON: {e}")))
}

/// What can be reported.
pub trait Present {
    /// The report.
    fn report(&self) -> Result<Report>;
}

/// `value` as one line of JSON without characters that change a terminal.
pub fn json_line(value: &impl Serialize) -> Result<String> {
    Ok(jsonl::render(&self::value(value)?, &[]))
}

#[cfg(test)]
#[path = "report/tests.rs"]
mod tests;
