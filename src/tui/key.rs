//! Keys as people write them in the settings (`q`, `ctrl-u`, `shift-tab`, `F1`) and as the terminal
//! reports them. Knows no action.

use crate::error::{Error, Result};
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use std::fmt;

/// One key with its modifiers. A letter carries its own shift: `G`, never `shift-g`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// The key.
    pub code: KeyCode,
    /// Held with Ctrl.
    pub ctrl: bool,
}

const NAMES: [(&str, KeyCode); 17] = [
    ("Enter", KeyCode::Enter),
    ("Esc", KeyCode::Esc),
    ("Tab", KeyCode::Tab),
    ("Shift-Tab", KeyCode::BackTab),
    ("Space", KeyCode::Char(' ')),
    ("Backspace", KeyCode::Backspace),
    ("Delete", KeyCode::Delete),
    ("Up", KeyCode::Up),
    ("Down", KeyCode::Down),
    ("Left", KeyCode::Left),
    ("Right", KeyCode::Right),
    ("Home", KeyCode::Home),
    ("End", KeyCode::End),
    ("PgUp", KeyCode::PageUp),
    ("PgDn", KeyCode::PageDown),
    ("Insert", KeyCode::Insert),
    ("F1", KeyCode::F(1)),
];

impl Key {
    /// A plain key.
    pub const fn plain(code: KeyCode) -> Key {
        Key { code, ctrl: false }
    }

    /// What the terminal reported.
    pub fn of(event: &KeyEvent) -> Key {
        let ctrl = event.modifiers.contains(KeyModifiers::CONTROL);
        let code = match event.code {
            KeyCode::Tab if event.modifiers.contains(KeyModifiers::SHIFT) => KeyCode::BackTab,
            KeyCode::Char(c) if ctrl => KeyCode::Char(c.to_ascii_lowercase()),
            KeyCode::Char(c) if event.modifiers.contains(KeyModifiers::SHIFT) && c.is_ascii_lowercase() => {
                KeyCode::Char(c.to_ascii_uppercase())
            }
            code => code,
        };
        Key { code, ctrl }
    }

    /// Parses `q`, `?`, `Ctrl-u`, `Shift-Tab`, `F1`, `PgUp`; names ignore case.
    pub fn parse(text: &str) -> Result<Key> {
        let unknown = || {
            Error::usage("KEY", "this is not a key")
                .found(text)
                .hint("write a character, a name such as `Enter`, `PgUp`, `F1`, or `Ctrl-` and a letter")
        };
        if let Some((_, code)) = NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)) {
            return Ok(Key::plain(*code));
        }
        let mut chars = text.chars();
        if let (Some(c), None) = (chars.next(), chars.next()) {
            return if c.is_control() { Err(unknown()) } else { Ok(Key::plain(KeyCode::Char(c))) };
        }
        if let Some(rest) = strip_prefix_ignoring_case(text, "ctrl-") {
            let key = Key::parse(rest)?;
            return match key.code {
                KeyCode::Char(c) if c.is_ascii_alphabetic() => {
                    Ok(Key { code: KeyCode::Char(c.to_ascii_lowercase()), ctrl: true })
                }
                _ => Err(unknown()),
            };
        }
        match strip_prefix_ignoring_case(text, "f").and_then(|n| n.parse::<u8>().ok()) {
            Some(n @ 1..=12) => Ok(Key::plain(KeyCode::F(n))),
            _ => Err(unknown()),
        }
    }
}

fn strip_prefix_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ctrl {
            f.write_str("Ctrl-")?;
        }
        if let Some((name, _)) = NAMES.iter().find(|(_, code)| *code == self.code) {
            return f.write_str(name);
        }
        match self.code {
            KeyCode::Char(c) => write!(f, "{c}"),
            KeyCode::F(n) => write!(f, "F{n}"),
            other => write!(f, "{other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_as_they_are_written() {
        for text in ["q", "?", "G", "Ctrl-u", "Shift-Tab", "F1", "F12", "PgUp", "Space", "*"] {
            assert_eq!(Key::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Key::parse("ctrl-U").unwrap(), Key::parse("Ctrl-u").unwrap());
        for text in ["", "ctrl-", "F99", "nonsense", "\u{1b}", "Ctrl-é"] {
            assert!(Key::parse(text).is_err(), "{text:?}");
        }
    }
}
