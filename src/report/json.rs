//! One JSON document.

use crate::text::is_unsafe;
use serde_json::Value;

pub(super) fn render(document: &Value) -> String {
    // A `Value` has string keys and finite numbers, so writing it cannot fail.
    let mut out = escape(&serde_json::to_string_pretty(document).unwrap_or_default());
    out.push('\n');
    out
}

/// JSON text with DEL, C1 and direction characters as `\u` escapes; they occur only inside strings, so
/// the value stays the same. C0 is escaped already.
pub(super) fn escape(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c as u32 >= 0x7f && is_unsafe(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(c);
        }
    }
    out
}
