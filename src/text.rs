//! Untrusted text made fit for a terminal: control and direction characters escaped, cut by columns.

use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

/// Whether a character may change the terminal or hide text: C0, DEL, C1, direction controls,
/// zero-width joiners and spaces, line and paragraph separators, tag characters.
pub fn is_unsafe(c: char) -> bool {
    matches!(c as u32,
        0x00..=0x1f | 0x7f..=0x9f | 0x61c | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f
        | 0xfe00..=0xfe0f | 0xfeff | 0xfff9..=0xfffb | 0xe0000..=0xe01ef)
}

/// `s` with every unsafe character spelled as `\u{1b}`, at most `columns` wide; a cut ends in `…`.
/// Combining marks beyond four on one base character are dropped.
pub fn clean(s: &str, columns: usize) -> String {
    let mut out = String::new();
    let mut width = 0;
    for cluster in s.graphemes(true) {
        let mut piece = String::new();
        for (i, c) in cluster.chars().enumerate() {
            if is_unsafe(c) {
                piece.push_str(&format!("\\u{{{:x}}}", c as u32));
            } else if i <= 4 {
                piece.push(c);
            }
        }
        let w = piece.width();
        if width + w > columns {
            while width + 1 > columns {
                match out.pop() {
                    Some(c) => width -= c.to_string().width().min(width),
                    None => return out,
                }
            }
            out.push('…');
            return out;
        }
        width += w;
        out.push_str(&piece);
    }
    out
}

/// Columns that `s` takes once [`clean`]ed.
pub fn columns(s: &str) -> usize {
    clean(s, usize::MAX).width()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_and_cuts() {
        assert_eq!(clean("a\u{1b}[2J", 80), "a\\u{1b}[2J");
        assert_eq!(clean("abcdef", 4), "abc…");
        assert_eq!(clean("日本語", 5), "日本…");
        assert_eq!(clean("", 0), "");
        assert!(clean(&format!("e{}", "\u{301}".repeat(1000)), 10).len() < 20);
        assert!(!clean("x\u{202e}y\u{9b}z", 80).chars().any(is_unsafe));
    }
}
