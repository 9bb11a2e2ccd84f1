//! One JSON object a line: the records of a report, or its document where it has none.

use super::json::escape;
use serde_json::Value;

pub(super) fn render(document: &Value, records: &[Value]) -> String {
    let mut out = String::new();
    let own = std::slice::from_ref(document);
    for record in if records.is_empty() { own } else { records } {
        out.push_str(&escape(&record.to_string()));
        out.push('\n');
    }
    out
}
