//! Comma-separated values (RFC 4180) of the first table: field names, then raw values.

use super::Part;
use crate::text::clean;
use serde_json::Value;

pub(super) fn render(parts: &[Part]) -> String {
    let Some(table) = parts.iter().find_map(|p| match p {
        Part::Table(t) => Some(t),
        _ => None,
    }) else {
        return facts(parts);
    };
    let mut out = String::new();
    row(&mut out, table.columns.iter().map(|c| c.field.to_string()));
    for cells in &table.rows {
        row(
            &mut out,
            cells.iter().map(|c| match &c.value {
                Value::Null => String::new(),
                Value::String(text) => clean(text, usize::MAX),
                other => other.to_string(),
            }),
        );
    }
    out
}

fn facts(parts: &[Part]) -> String {
    let mut out = String::new();
    row(&mut out, ["name".to_string(), "value".to_string()].into_iter());
    for part in parts {
        if let Part::Facts(facts) = part {
            for (name, value) in facts {
                row(&mut out, [clean(name, usize::MAX), clean(value, usize::MAX)].into_iter());
            }
        }
    }
    out
}

fn row(out: &mut String, fields: impl Iterator<Item = String>) {
    for (index, field) in fields.enumerate() {
        if index > 0 {
            out.push(',');
        }
        if field.contains([',', '"', '\n', '\r']) {
            out.push_str(&format!("\"{}\"", field.replace('"', "\"\"")));
        } else {
            out.push_str(&field);
        }
    }
    out.push('\n');
}
