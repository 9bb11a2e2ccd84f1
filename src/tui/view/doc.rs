//! Text in a pane: headings, pairs, paragraphs, wrapped to the pane and scrolled.

use super::super::list::Scroll;
use super::super::paint::{Pen, Span, span};
use super::super::theme::Role;
use crate::text;

/// Lines of spans.
pub struct Doc {
    width: usize,
    lines: Vec<Vec<Span>>,
}

impl Doc {
    /// An empty text for a pane.
    pub fn new(pen: &Pen<'_>) -> Doc {
        Doc { width: pen.width().saturating_sub(2), lines: Vec::new() }
    }

    /// Columns of a line.
    pub fn width(&self) -> usize {
        self.width
    }

    /// A line as it is.
    pub fn line(&mut self, spans: Vec<Span>) {
        self.lines.push(spans);
    }

    /// A heading, with an empty line before it unless it is the first line.
    pub fn heading(&mut self, title: &str) {
        if !self.lines.is_empty() {
            self.lines.push(Vec::new());
        }
        self.lines.push(vec![span(title, Role::Title)]);
    }

    /// A label and its value, which wraps under itself.
    pub fn pair(&mut self, label: &str, value: &str, role: Role) {
        const LABEL: usize = 13;
        let room = self.width.saturating_sub(LABEL).max(8);
        for (i, part) in wrap(value, room).into_iter().enumerate() {
            let label = if i == 0 { label } else { "" };
            self.lines.push(vec![span(format!("{label:<LABEL$}"), Role::Dim), span(part, role)]);
        }
    }

    /// A paragraph.
    pub fn text(&mut self, value: &str, role: Role) {
        for part in wrap(value, self.width) {
            self.lines.push(vec![span(part, role)]);
        }
    }

    /// A paragraph behind a mark.
    pub fn item(&mut self, mark: &str, mark_role: Role, value: &str) {
        let room = self.width.saturating_sub(2);
        for (i, part) in wrap(value, room).into_iter().enumerate() {
            let mark = if i == 0 { mark } else { " " };
            self.lines.push(vec![span(format!("{mark} "), mark_role), span(part, Role::Text)]);
        }
    }

    /// Paints the part that the position asks for, with a mark where more follows.
    pub fn draw(&self, pen: &mut Pen<'_>, scroll: &Scroll) {
        let height = pen.height();
        let window = scroll.window(self.lines.len(), height);
        let more = window.end < self.lines.len();
        for (y, at) in window.enumerate() {
            let room = pen.width().saturating_sub(2);
            pen.spans(1, y, room, &self.lines[at]);
        }
        if more && height > 0 {
            let end = pen.width();
            pen.right(end, height - 1, &[span("▼", Role::Dim)]);
        }
    }
}

/// Breaks text at spaces into lines of at most `width` columns; longer words are broken anywhere.
/// The text is cleaned first, so that what is measured is what is painted. At least one line.
pub fn wrap(value: &str, width: usize) -> Vec<String> {
    const MOST: usize = 4000;
    let width = width.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut used = 0;
    // What no pane can show is never looked at.
    let value = &value[..value.floor_char_boundary(4 * MOST)];
    let cleaned = text::clean(value, MOST);
    for word in cleaned.split(' ') {
        let columns = text::columns(word);
        if used > 0 && used + 1 + columns > width {
            lines.push(std::mem::take(&mut line));
            used = 0;
        }
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        if columns <= width - used.min(width) {
            line.push_str(word);
            used += columns;
            continue;
        }
        for c in word.chars() {
            let wide = unicode_width::UnicodeWidthChar::width(c).unwrap_or(0);
            if used + wide > width && used > 0 {
                lines.push(std::mem::take(&mut line));
                used = 0;
            }
            line.push(c);
            used += wide;
        }
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_wraps_at_spaces_and_breaks_long_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrap("", 5), [""]);
        assert_eq!(wrap("a\u{1b}b", 20), ["a\\u{1b}b"]);
        for width in 0..10 {
            for line in wrap("日本語 text e\u{301}\u{301} longerword", width) {
                assert!(text::columns(&line) <= width.max(2), "{line:?} at {width}");
            }
        }
    }
}
