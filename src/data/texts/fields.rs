//! Texts that are fields of structured rows: JSON lines and CSV columns.

use super::super::{Spec, csv};
use super::{Content, File, Found, Row, index_labels};
use crate::error::{Error, Result};
use crate::save;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// A field by its name, or by names with dots between where objects lie in objects.
fn lookup<'a>(object: &'a Value, field: &str) -> Option<&'a Value> {
    object.get(field).or_else(|| field.split('.').try_fold(object, |o, name| o.get(name)))
}

fn parsed(line: &str) -> Result<Value> {
    serde_json::from_str(line).map_err(|e| Error::invalid("DATA-JSONL", format!("this is no JSON: {e}")))
}

/// The text in a JSON line.
pub(super) fn text_of(line: &str, field: &str) -> Result<String> {
    let object = parsed(line)?;
    match lookup(&object, field) {
        Some(Value::String(text)) => Ok(text.clone()),
        other => Err(Error::invalid("DATA-JSONL", "the field is missing or no text")
            .field(field)
            .found(other.map_or("nothing".to_string(), |v| v.to_string().chars().take(60).collect()))),
    }
}

pub(super) fn json_lines(spec: &Spec) -> Result<Found> {
    let field: String = spec.option("text")?.unwrap_or_else(|| "text".into());
    let label: Option<String> = spec.option("label")?;
    spec.finish()?;
    let path = spec.path();
    let content = Content::open(&path)?;
    let mut found = Found::default();
    let mut labels = Vec::new();
    let mut hash = Sha256::new();
    let mut number = 0;
    content
        .lines(&mut hash, &mut |start, line| {
            number += 1;
            if line.iter().all(u8::is_ascii_whitespace) {
                return Ok(());
            }
            let at = |e: Error| e.at_field(format!("line {number}"));
            let text = std::str::from_utf8(line)
                .map_err(|_| at(Error::invalid("DATA-UTF8", "the line is not UTF-8")))?;
            let object = parsed(text).map_err(at)?;
            if !lookup(&object, &field).is_some_and(Value::is_string) {
                let known: Vec<&str> =
                    object.as_object().into_iter().flatten().map(|(k, _)| k.as_str()).take(20).collect();
                return Err(at(Error::invalid("DATA-JSONL", "the field is missing or no text"))
                    .found(format!("fields {}", known.join(", ")))
                    .limit(&field)
                    .hint("name it as ?text=FIELD"));
            }
            if let Some(name) = &label {
                labels.push(lookup(&object, name).cloned().ok_or_else(|| {
                    at(Error::invalid("DATA-JSONL", "the field of the label is missing")).limit(name)
                })?);
            }
            found.rows.push(Row { file: 0, start, end: start + line.len() as u64 });
            Ok(())
        })
        .map_err(|e| e.file(&path))?;
    (found.labels, found.classes) = index_labels(&labels).map_err(|e| e.file(&path))?;
    found.field = Some(field);
    found.digests.push(save::sha256(&hash.finalize()));
    found.files.push(File { path, content, span: (0, 0) });
    Ok(found)
}

pub(super) fn columns(spec: &Spec) -> Result<Found> {
    let text: String = spec.option("text")?.unwrap_or_default();
    let label: Option<String> = spec.option("label")?;
    // The columns are named, so the first line is always the header.
    let _: Option<u8> = spec.option("header")?;
    spec.finish()?;
    let path = spec.path();
    let content = csv::content(&path)?;
    let digest = save::sha256(&content);
    let mut rows = records(&content).map_err(|e| e.file(&path))?.into_iter();
    let header = rows
        .next()
        .ok_or_else(|| Error::invalid("DATA-CSV", "the file has no first line with names").file(&path))?;
    let column = |name: &str| {
        header
            .iter()
            .position(|c| c == name)
            .or_else(|| name.parse().ok().filter(|i| *i < header.len()))
            .ok_or_else(|| {
                Error::usage("DATA-OPTION", "no such column").file(&path).found(name).limit(header.join(", "))
            })
    };
    let (text, label) = (column(&text)?, label.as_deref().map(column).transpose()?);
    let mut bytes: Vec<u8> = Vec::with_capacity(content.len());
    let mut found = Found::default();
    let mut labels = Vec::new();
    for (number, row) in rows.enumerate() {
        if row.len() != header.len() {
            return Err(Error::invalid("DATA-CSV", "rows differ in length")
                .file(&path)
                .field(format!("row {}", number + 2))
                .found(row.len())
                .limit(header.len()));
        }
        let start = bytes.len() as u64;
        bytes.extend(row[text].as_bytes());
        found.rows.push(Row { file: 0, start, end: bytes.len() as u64 });
        if let Some(label) = label {
            labels.push(
                serde_json::from_str::<u64>(row[label].trim())
                    .map_or_else(|_| Value::String(row[label].clone()), |n| Value::Number(n.into())),
            );
        }
    }
    // One text among numbers makes all labels names.
    if labels.iter().any(Value::is_string) {
        labels.iter_mut().filter(|l| l.is_number()).for_each(|l| *l = Value::String(l.to_string()));
    }
    (found.labels, found.classes) = index_labels(&labels).map_err(|e| e.file(&path))?;
    found.digests.push(digest);
    found.files.push(File { path, content: Content::Memory(bytes.into()), span: (0, 0) });
    Ok(found)
}

/// Records of a CSV file (RFC 4180: quotes around fields, doubled inside; lines may end in CRLF).
fn records(content: &[u8]) -> Result<Vec<Vec<String>>> {
    let text = std::str::from_utf8(content)
        .map_err(|e| Error::invalid("DATA-UTF8", "the file is not UTF-8").offset(e.valid_up_to() as u64))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut rows = Vec::new();
    let mut row: Vec<String> = Vec::new();
    let mut field = String::new();
    let (mut quoted, mut was_quoted, mut line) = (false, false, 1);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                field.push('"');
                chars.next();
            }
            '"' if quoted => quoted = false,
            '"' if field.is_empty() && !was_quoted => (quoted, was_quoted) = (true, true),
            ',' if !quoted => {
                row.push(std::mem::take(&mut field));
                was_quoted = false;
            }
            '\r' if !quoted && chars.peek() == Some(&'\n') => {}
            '\n' if !quoted => {
                row.push(std::mem::take(&mut field));
                was_quoted = false;
                line += 1;
                match row.as_slice() {
                    [only] if only.is_empty() => row.clear(),
                    _ => rows.push(std::mem::take(&mut row)),
                }
            }
            c => {
                line += usize::from(c == '\n');
                field.push(c);
            }
        }
    }
    if quoted {
        return Err(
            Error::invalid("DATA-CSV", "a quoted field has no end").field(format!("before line {line}"))
        );
    }
    if !field.is_empty() || !row.is_empty() {
        row.push(field);
        rows.push(row);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_fields_may_hold_anything_in_quotes() {
        let rows = records(b"a,b\r\n\"x, \"\"y\"\"\nz\",1\n\n,\nlast,2").unwrap();
        assert_eq!(rows, [vec!["a", "b"], vec!["x, \"y\"\nz", "1"], vec!["", ""], vec!["last", "2"]]);
        assert!(records(b"\"open").is_err());
    }
}
