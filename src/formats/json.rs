//! JSON of untrusted files. Bytes enter; a pull reader leaves that knows its depth, refuses a key that
//! comes twice, and names the path and the byte where something is wrong. Knows no format.

use super::limits::{Limits, too_large, too_many};
use crate::error::{Error, Result};
use crate::tensor::SourceFile;
use std::collections::HashSet;
use std::path::Path;

/// Nested objects and arrays.
const DEPTH: usize = 64;

/// Reads one JSON text from its start to its end.
pub struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    items: u64,
    limits: &'a Limits,
}

impl<'a> Reader<'a> {
    /// A reader; fails where the bytes are not UTF-8.
    pub fn new(bytes: &'a [u8], limits: &'a Limits) -> Result<Reader<'a>> {
        let text = std::str::from_utf8(bytes).map_err(|e| {
            Error::invalid("JSON-UTF8", "JSON text is not valid UTF-8").offset(e.valid_up_to() as u64)
        })?;
        Ok(Reader { text, at: 0, depth: 0, items: 0, limits })
    }

    /// Fails unless only white space is left.
    pub fn end(&mut self) -> Result<()> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.wrong("the end of the text")),
        }
    }

    /// Calls `member` with each key of an object; it must read the value. A failure inside names the
    /// path of keys that leads to it.
    pub fn object(&mut self, mut member: impl FnMut(&mut Self, &str) -> Result<()>) -> Result<()> {
        self.open(b'{', "an object")?;
        let mut keys = HashSet::new();
        if self.peek() != Some(b'}') {
            loop {
                if self.peek() != Some(b'"') {
                    return Err(self.wrong("a key"));
                }
                let at = self.at;
                let key = self.text_within(self.limits.name_bytes.max(1 << 16))?;
                self.count()?;
                if !keys.insert(key.clone()) {
                    return Err(Error::invalid("JSON-DUPLICATE", "a key occurs twice")
                        .field(quoted(&key))
                        .offset(at as u64)
                        .hint("a file that means two things is not read; write it again"));
                }
                self.expect(b':', "':'")?;
                member(self, &key).map_err(|e| within(e, &quoted(&key)))?;
                if !self.more(b'}', "',' or '}'")? {
                    break;
                }
            }
        } else {
            self.at += 1;
        }
        self.depth -= 1;
        Ok(())
    }

    /// Calls `element` with each position of an array; it must read the value.
    pub fn array(&mut self, mut element: impl FnMut(&mut Self, usize) -> Result<()>) -> Result<()> {
        self.open(b'[', "an array")?;
        if self.peek() != Some(b']') {
            let mut index = 0;
            loop {
                self.count()?;
                element(self, index).map_err(|e| within(e, &format!("[{index}]")))?;
                index += 1;
                if !self.more(b']', "',' or ']'")? {
                    break;
                }
            }
        } else {
            self.at += 1;
        }
        self.depth -= 1;
        Ok(())
    }

    /// A string.
    pub fn string(&mut self) -> Result<String> {
        if self.peek() != Some(b'"') {
            return Err(self.wrong("a string"));
        }
        self.text_within(self.limits.text_bytes)
    }

    /// An integer that is not negative.
    pub fn unsigned(&mut self) -> Result<u64> {
        self.peek();
        let at = self.at;
        let digits = self.number_text()?;
        let plain = digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse().ok().filter(|_| plain).ok_or_else(|| {
            Error::invalid("JSON-NUMBER", "a non-negative integer is needed")
                .offset(at as u64)
                .found(digits)
                .limit(format!("0 to {}", u64::MAX))
        })
    }

    /// Any value, spelled out.
    pub fn value(&mut self) -> Result<serde_json::Value> {
        use serde_json::Value;
        match self.peek() {
            Some(b'{') => {
                let mut map = serde_json::Map::new();
                self.object(|r, key| {
                    let value = r.value()?;
                    map.insert(key.to_string(), value);
                    Ok(())
                })?;
                Ok(Value::Object(map))
            }
            Some(b'[') => {
                let mut list = Vec::new();
                self.array(|r, _| {
                    list.push(r.value()?);
                    Ok(())
                })?;
                Ok(Value::Array(list))
            }
            Some(b'"') => self.string().map(Value::String),
            Some(b't') => self.word("true").map(|()| Value::Bool(true)),
            Some(b'f') => self.word("false").map(|()| Value::Bool(false)),
            Some(b'n') => self.word("null").map(|()| Value::Null),
            Some(b'-' | b'0'..=b'9') => {
                let at = self.at;
                let digits = self.number_text()?;
                // The grammar was checked, so a failure means that the number is too large.
                digits
                    .parse()
                    .ok()
                    .filter(|n: &serde_json::Number| n.as_f64().is_some_and(f64::is_finite))
                    .map(Value::Number)
                    .ok_or_else(|| {
                        Error::invalid("JSON-NUMBER", "the number is too large")
                            .offset(at as u64)
                            .found(digits)
                    })
            }
            _ => Err(self.wrong("a value")),
        }
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        while matches!(self.byte(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
        self.byte()
    }

    fn expect(&mut self, byte: u8, what: &str) -> Result<()> {
        if self.peek() != Some(byte) {
            return Err(self.wrong(what));
        }
        self.at += 1;
        Ok(())
    }

    fn open(&mut self, byte: u8, what: &str) -> Result<()> {
        self.expect(byte, what)?;
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(Error::limit_exceeded("JSON-DEPTH", "JSON is nested too deeply")
                .offset(self.at as u64)
                .found(format!("more than {DEPTH} levels"))
                .limit(DEPTH));
        }
        Ok(())
    }

    /// Whether another element follows; takes the comma or the closing byte.
    fn more(&mut self, close: u8, what: &str) -> Result<bool> {
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            Some(b) if b == close => {
                self.at += 1;
                Ok(false)
            }
            _ => Err(self.wrong(what)),
        }
    }

    fn count(&mut self) -> Result<()> {
        self.items += 1;
        if self.items > self.limits.items {
            return Err(too_many("items", "JSON keys and values", self.limits.items).offset(self.at as u64));
        }
        Ok(())
    }

    fn word(&mut self, word: &str) -> Result<()> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        if !rest.starts_with(word) {
            return Err(self.wrong("a value"));
        }
        self.at += word.len();
        Ok(())
    }

    /// The characters of a number, as the grammar allows them.
    fn number_text(&mut self) -> Result<&'a str> {
        let start = self.at;
        if self.byte() == Some(b'-') {
            self.at += 1;
        }
        match self.byte() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return Err(self.wrong("a number")),
        }
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.some_digits()?;
        }
        if matches!(self.byte(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.byte(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.some_digits()?;
        }
        let text = self.text;
        text.get(start..self.at).ok_or_else(|| self.wrong("a number"))
    }

    fn digits(&mut self) {
        while self.byte().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
    }

    fn some_digits(&mut self) -> Result<()> {
        if !self.byte().is_some_and(|b| b.is_ascii_digit()) {
            return Err(self.wrong("a digit"));
        }
        self.digits();
        Ok(())
    }

    /// A string of at most `limit` bytes; the opening quote is next.
    fn text_within(&mut self, limit: u64) -> Result<String> {
        let start = self.at;
        self.at += 1;
        let mut out = String::new();
        loop {
            let rest = self.text.get(self.at..).unwrap_or_default();
            let plain = rest.bytes().take_while(|b| *b >= 0x20 && *b != b'"' && *b != b'\\').count();
            if (out.len() + plain) as u64 > limit {
                return Err(Error::limit_exceeded("JSON-STRING", "a JSON string is too long")
                    .offset(start as u64)
                    .found(format!("{} bytes or more", out.len() + plain))
                    .limit(format!("{limit} bytes")));
            }
            out.push_str(rest.get(..plain).unwrap_or_default());
            self.at += plain;
            match self.byte() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => out.push(self.escape()?),
                None => return Err(self.wrong("the end of the string")),
                Some(_) => return Err(self.wrong("an escaped control character")),
            }
        }
    }

    fn escape(&mut self) -> Result<char> {
        self.at += 1;
        let kind = self.byte();
        self.at += 1;
        Ok(match kind {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let first = self.hex()?;
                let code = match first {
                    0xd800..0xdc00 if self.text.get(self.at..).is_some_and(|t| t.starts_with("\\u")) => {
                        self.at += 2;
                        let second = self.hex()?;
                        match second {
                            0xdc00..0xe000 => 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00),
                            _ => return Err(self.wrong("the second half of a surrogate pair")),
                        }
                    }
                    code => code,
                };
                char::from_u32(code).ok_or_else(|| self.wrong("a whole surrogate pair"))?
            }
            _ => {
                self.at -= 1;
                return Err(self.wrong("an escape"));
            }
        })
    }

    fn hex(&mut self) -> Result<u32> {
        let digits = self.text.get(self.at..self.at + 4);
        let code = digits
            .filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|d| u32::from_str_radix(d, 16).ok())
            .ok_or_else(|| self.wrong("four hexadecimal digits"))?;
        self.at += 4;
        Ok(code)
    }

    fn wrong(&self, wanted: &str) -> Error {
        let found = match self.text.get(self.at..).and_then(|t| t.chars().next()) {
            Some(c) => format!("'{c}'"),
            None => "the end of the text".to_string(),
        };
        Error::invalid("JSON-SYNTAX", format!("JSON is damaged: {wanted} is needed"))
            .offset(self.at as u64)
            .found(found)
    }
}

/// One whole text as a value.
pub fn parse(bytes: &[u8], limits: &Limits) -> Result<serde_json::Value> {
    let mut reader = Reader::new(bytes, limits)?;
    let value = reader.value()?;
    reader.end()?;
    Ok(value)
}

/// The content of a small JSON file, such as a configuration; `None` where there is no such file.
///
/// # Errors
/// `Invalid` for what is no JSON, with path and byte; `Limit` for files that no configuration is as large as.
pub(super) fn read_optional(path: &Path) -> Result<Option<serde_json::Value>> {
    read_optional_within(path, &Limits::default())
}

/// [`read_optional`] with limits.
pub(super) fn read_optional_within(path: &Path, limits: &Limits) -> Result<Option<serde_json::Value>> {
    // A link that leads nowhere is a broken model, not one without the file.
    if std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
        return Ok(None);
    }
    let file = SourceFile::open(path)?;
    if file.len() > limits.text_bytes {
        return Err(too_large("text_bytes", "the JSON file", file.len(), limits.text_bytes).file(path));
    }
    let mut text = vec![0; usize::try_from(file.len()).unwrap_or_default()];
    file.read_exact_at(0, &mut text)?;
    file.unchanged()?;
    parse(&text, limits).map(Some).map_err(|e| e.file(path).hint("download the file again"))
}

fn quoted(key: &str) -> String {
    format!("\"{key}\"")
}

fn within(e: Error, outer: &str) -> Error {
    let path = match e.field_path() {
        Some(inner) if inner.starts_with('[') => format!("{outer}{inner}"),
        Some(inner) => format!("{outer}.{inner}"),
        None => outer.to_string(),
    };
    e.at_field(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<serde_json::Value> {
        parse(text.as_bytes(), &Limits::default())
    }

    #[test]
    fn values_are_those_that_the_reference_parser_gives() {
        for text in [
            r#"{"a": [1, -2, 3.5e2, true, false, null, "x\u00e9\ud83d\ude00\n\"\\\/\b\f\r\t"], "b": {}}"#,
            "[]",
            " 12345678901234567890 ",
            "-0",
            "1e-7",
            "\"\"",
        ] {
            assert_eq!(
                read(text).unwrap(),
                serde_json::from_str::<serde_json::Value>(text).unwrap(),
                "{text}"
            );
        }
    }

    #[test]
    fn damage_is_named_with_its_byte_and_path() {
        for (text, code, field) in [
            ("", "JSON-SYNTAX", None),
            ("{\"a\": 1} x", "JSON-SYNTAX", None),
            ("{\"a\": 1, \"a\": 2}", "JSON-DUPLICATE", Some("\"a\"")),
            ("{\"a\": [0, {\"b\": 1e999}]}", "JSON-NUMBER", Some("\"a\"[1].\"b\"")),
            ("{\"a\": NaN}", "JSON-SYNTAX", Some("\"a\"")),
            ("[01]", "JSON-SYNTAX", None),
            ("[1,]", "JSON-SYNTAX", Some("[1]")),
            ("\"\\ud800\"", "JSON-SYNTAX", None),
            ("\"\\ud800\\u0041\"", "JSON-SYNTAX", None),
            ("\"\u{1}\"", "JSON-SYNTAX", None),
            ("\"abc", "JSON-SYNTAX", None),
            ("tru", "JSON-SYNTAX", None),
        ] {
            let e = read(text).unwrap_err();
            assert_eq!((e.code(), e.field_path()), (code, field), "{text}: {e}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(read(&deep).unwrap_err().kind().exit_code(), 5);
        assert!(read(&format!("{}{}", "[".repeat(64), "]".repeat(64))).is_ok());
        assert!(parse(b"\"\xff\"", &Limits::default()).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_judged_as_the_reference_parser_judges_it(text in "[\\[\\]{},:\"a\\\\u0-9eE+. tn-]{0,24}") {
            let ours = read(&text);
            let theirs = serde_json::from_str::<serde_json::Value>(&text);
            match (ours, theirs) {
                (Ok(a), Ok(b)) => prop_assert_eq!(a, b),
                (Err(_), Err(_)) => {}
                // Only duplicate keys are judged differently.
                (Err(e), Ok(_)) => prop_assert_eq!(e.code(), "JSON-DUPLICATE"),
                (Ok(a), Err(e)) => prop_assert!(false, "{} {}", a, e),
            }
        }
    }
}
