//! Cutting text into the pieces that a tokenizer model sees. A pre-tokenizer in the terms of
//! `tokenizer.json` enters; what leaves cuts in time linear in the text, or stops with an error.
//!
//! The tokenizers crate runs every pattern on a backtracking engine and takes an engine that gives up
//! for the end of the text. Here patterns with the usual ending `|\s+(?!\S)|\s+` run on an automaton
//! (the look-ahead means: all white space but the last character before a word), patterns without
//! look-around do so anyway, and for the others an engine that gives up is an error.

use crate::error::{Error, Result};
use serde_json::Value;
use std::time::{Duration, Instant};
use tokenizers::pattern::Pattern;
use tokenizers::{
    Offsets, PreTokenizedString, PreTokenizer, PreTokenizerWrapper, SplitDelimiterBehavior as Behavior,
};

/// How GPT-2 cuts text, and the `ByteLevel` pre-tokenizer on its own.
pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// The usual ending.
const TAIL: &str = r"|\s+(?!\S)|\s+";
/// Most steps of a pre-tokenizer.
const MOST_STEPS: usize = 32;
/// Longest pattern, in bytes.
const LONGEST_PATTERN: usize = 64 << 10;
/// Time that one pattern may take for a text, and more for each MiB of it. Sound patterns need a
/// hundredth of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// A pre-tokenizer.
pub(super) struct Splitter(Vec<Step>);

enum Step {
    Split {
        finder: Finder,
        behavior: Behavior,
        invert: bool,
    },
    /// A space before a text that starts with none.
    Space,
    Other(PreTokenizerWrapper),
}

impl Splitter {
    /// Builds from the `pre_tokenizer` of a tokenizer.json.
    pub(super) fn build(definition: &Value) -> Result<Splitter> {
        let mut steps = Vec::new();
        collect(definition, "pre_tokenizer", &mut steps)?;
        let widening =
            steps.iter().filter(|s| matches!(s, Step::Other(PreTokenizerWrapper::ByteLevel(_)))).count();
        if steps.len() > MOST_STEPS || widening > 2 {
            return Err(Error::limit_exceeded("TOKENIZER-STEPS", "the pre-tokenizer has too many steps")
                .field("pre_tokenizer")
                .found(format!("{} steps, {widening} of them ByteLevel", steps.len()))
                .limit(format!("{MOST_STEPS} steps, 2 of them ByteLevel")));
        }
        Ok(Splitter(steps))
    }
}

fn broken(field: &str, what: impl std::fmt::Display) -> Error {
    Error::invalid("TOKENIZER-PART", format!("a part of the tokenizer cannot be read: {what}")).field(field)
}

fn collect(value: &Value, field: &str, steps: &mut Vec<Step>) -> Result<()> {
    let kind = value.get("type").and_then(Value::as_str).ok_or_else(|| {
        Error::unsupported("TOKENIZER-PART", "a part of the tokenizer does not state its type").field(field)
    })?;
    match kind {
        "Sequence" => {
            let parts = value.get("pretokenizers").and_then(Value::as_array);
            let parts = parts.ok_or_else(|| broken(field, "a Sequence without pretokenizers"))?;
            for (i, part) in parts.iter().enumerate() {
                if steps.len() > MOST_STEPS {
                    break;
                }
                collect(part, &format!("{field}.pretokenizers[{i}]"), steps)?;
            }
        }
        "Split" => {
            let pattern = value.get("pattern").ok_or_else(|| broken(field, "a Split without a pattern"))?;
            let regex = pattern.get("Regex").and_then(Value::as_str);
            let text = pattern.get("String").and_then(Value::as_str);
            let finder = match (regex, text) {
                (Some(regex), None) => Finder::new(regex).map_err(|e| e.field(field))?,
                (None, Some(text)) => Finder::new(&regex::escape(text)).map_err(|e| e.field(field))?,
                _ => return Err(broken(field, "a pattern is a String or a Regex")),
            };
            let behavior = value.get("behavior").cloned().unwrap_or(Value::Null);
            let behavior = serde_json::from_value(behavior).map_err(|e| broken(field, e))?;
            let invert = value.get("invert").and_then(Value::as_bool).unwrap_or(false);
            steps.push(Step::Split { finder, behavior, invert });
        }
        "ByteLevel" => {
            let flag = |name: &str, default| value.get(name).and_then(Value::as_bool).unwrap_or(default);
            if flag("add_prefix_space", true) {
                steps.push(Step::Space);
            }
            if flag("use_regex", true) {
                let finder = Finder::new(GPT2)?;
                steps.push(Step::Split { finder, behavior: Behavior::Isolated, invert: false });
            }
            let bytes = tokenizers::pre_tokenizers::byte_level::ByteLevel::new(false, true, false);
            steps.push(Step::Other(PreTokenizerWrapper::ByteLevel(bytes)));
        }
        "FixedLength" if value.get("length").and_then(Value::as_u64) == Some(0) => {
            return Err(broken(field, "pieces of length 0"));
        }
        _ => {
            let other = PreTokenizerWrapper::deserialize(value).map_err(|e| broken(field, e))?;
            steps.push(Step::Other(other));
        }
    }
    Ok(())
}

use serde::Deserialize;

impl PreTokenizer for Splitter {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        for step in &self.0 {
            match step {
                Step::Other(other) => other.pre_tokenize(text)?,
                Step::Space => text.normalize(|piece| {
                    if !piece.get().starts_with(' ') {
                        piece.prepend(" ");
                    }
                    Ok(())
                })?,
                Step::Split { finder, behavior, invert } => {
                    let finder = Directed { finder, invert: *invert };
                    text.split(|_, piece| piece.split(&finder, *behavior))?;
                }
            }
        }
        Ok(())
    }
}

/// Finds the matches of one pattern.
enum Finder {
    /// `HEAD|(\s+)`, for patterns with the usual ending. `head` alone may be less than the whole where
    /// it matches white space too.
    Tailed(regex::Regex),
    /// Any other pattern.
    General(Box<fancy_regex::Regex>),
}

impl Finder {
    fn new(pattern: &str) -> Result<Finder> {
        if pattern.len() > LONGEST_PATTERN {
            return Err(Error::limit_exceeded("TOKENIZER-PATTERN", "a pattern is too long")
                .found(pattern.len())
                .limit(LONGEST_PATTERN));
        }
        if let Some(head) = pattern.strip_suffix(TAIL)
            && regex::Regex::new(head).is_ok()
            && let Ok(whole) = regex::Regex::new(&format!(r"(?:{head})|(?<space>\s+)"))
        {
            return Ok(Finder::Tailed(whole));
        }
        let general = fancy_regex::RegexBuilder::new(pattern).backtrack_limit(100_000).build();
        general.map(|r| Finder::General(Box::new(r))).map_err(|e| {
            Error::invalid("TOKENIZER-PATTERN", format!("a pattern cannot be read: {e}")).found(pattern)
        })
    }

    /// Calls `found` with the bounds of every match, in order.
    fn each(&self, text: &str, found: &mut dyn FnMut(usize, usize)) -> Result<()> {
        match self {
            Finder::Tailed(whole) => {
                let mut at = 0;
                while let Some(m) = whole.find_at(text, at) {
                    let (start, mut end) = (m.start(), m.end());
                    if end < text.len() && is_white(m.as_str()) && by_space(whole, text, start) {
                        // White space before a word leaves its last character to the word.
                        let last = m.as_str().char_indices().next_back().map_or(0, |(i, _)| i);
                        if last > 0 {
                            end = start + last;
                        }
                    }
                    found(start, end);
                    at = end;
                    if start == end {
                        match text[end..].chars().next() {
                            Some(c) => at += c.len_utf8(),
                            None => break,
                        }
                    }
                }
                Ok(())
            }
            Finder::General(pattern) => {
                let limit = PATIENCE * (1 + (text.len() >> 20) as u32);
                let begin = Instant::now();
                for (count, m) in pattern.find_iter(text).enumerate() {
                    let m = m.map_err(|e| slow(pattern.as_str(), &e.to_string()))?;
                    if count % 64 == 0 && begin.elapsed() > limit {
                        return Err(slow(pattern.as_str(), "it takes too long"));
                    }
                    found(m.start(), m.end());
                }
                Ok(())
            }
        }
    }
}

fn slow(pattern: &str, why: &str) -> Error {
    Error::limit_exceeded(
        "TOKENIZER-PATTERN",
        format!("a pattern of the tokenizer gives up on this text: {why}"),
    )
    .found(pattern)
    .hint("the tokenizer's pattern backtracks without end; use the model's original tokenizer.json")
}

fn is_white(text: &str) -> bool {
    text.chars().all(char::is_whitespace)
}

fn by_space(whole: &regex::Regex, text: &str, at: usize) -> bool {
    whole.captures_at(text, at).is_some_and(|c| c.name("space").is_some())
}

struct Directed<'a> {
    finder: &'a Finder,
    invert: bool,
}

impl Pattern for &Directed<'_> {
    fn find_matches(&self, text: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        if text.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let mut out = Vec::new();
        let mut before = 0;
        self.finder.each(text, &mut |start, end| {
            if before != start {
                out.push(((before, start), self.invert));
            }
            out.push(((start, end), !self.invert));
            before = end;
        })?;
        if before != text.len() {
            out.push(((before, text.len()), self.invert));
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_fancy(pattern: &str, text: &str) -> Vec<(usize, usize)> {
        let regex = fancy_regex::Regex::new(pattern).unwrap();
        regex.find_iter(text).map(|m| m.unwrap()).map(|m| (m.start(), m.end())).collect()
    }

    fn by_us(pattern: &str, text: &str) -> Vec<(usize, usize)> {
        let finder = Finder::new(pattern).unwrap();
        assert!(matches!(finder, Finder::Tailed(_)));
        let mut out = vec![];
        finder.each(text, &mut |a, b| out.push((a, b))).unwrap();
        out
    }

    #[test]
    fn the_automaton_cuts_as_the_backtracking_engine_does() {
        let llama3 = super::super::pre::LLAMA3;
        let texts = [
            "",
            " ",
            "  ",
            "a  b",
            "a \n b",
            "a\u{3000}\u{3000}b c",
            "  leading, trailing  ",
            "x\n\n\ny  \n z\t\t1234567 it's  IT'S\r\n\r\n  ",
            "tab\t\tword\t \tword \u{a0}\u{a0}é ",
            "汉字 かな  한국어 🙂🙂  x",
        ];
        for pattern in [GPT2, llama3] {
            for text in texts {
                assert_eq!(by_us(pattern, text), by_fancy(pattern, text), "{pattern} on {text:?}");
            }
        }
    }

    #[test]
    fn a_pattern_that_gives_up_is_an_error_and_a_long_text_is_none() {
        let hostile = Finder::new(r"(?:(a+)+\1$)|b(?!c)").unwrap();
        let text = "a".repeat(40) + "b";
        let e = hostile.each(&text, &mut |_, _| ()).unwrap_err();
        assert_eq!((e.code(), e.kind().exit_code()), ("TOKENIZER-PATTERN", 5));
        for text in ["a".repeat(1 << 20), " ".repeat(1 << 20) + "a", "a ".repeat(1 << 19)] {
            let mut bytes = 0;
            Finder::new(GPT2).unwrap().each(&text, &mut |a, b| bytes += b - a).unwrap();
            assert_eq!(bytes, text.len());
        }
    }

    #[test]
    fn parts_without_type_and_bad_patterns_are_named() {
        for (json, code) in [
            (r#"{"add_prefix_space": true}"#, "TOKENIZER-PART"),
            (r#"{"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}"#, "TOKENIZER-PATTERN"),
            (r#"{"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Elsewhere"}"#, "TOKENIZER-PART"),
            (r#"{"type": "Nothing"}"#, "TOKENIZER-PART"),
            (r#"{"type": "FixedLength", "length": 0}"#, "TOKENIZER-PART"),
        ] {
            let value: Value = serde_json::from_str(json).unwrap();
            let e = Splitter::build(&value).err().unwrap();
            assert_eq!(e.code(), code, "{json}: {e}");
            assert!(e.to_string().contains("pre_tokenizer"), "{e}");
        }
        let many = serde_json::json!({"type": "Sequence", "pretokenizers": vec![serde_json::json!({"type": "ByteLevel"}); 40]});
        assert_eq!(Splitter::build(&many).err().unwrap().kind().exit_code(), 5);
    }
}
