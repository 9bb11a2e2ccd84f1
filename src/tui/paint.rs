//! Painting on the cell buffer: text, boxes, bars. Everything that reaches a cell goes through
//! [`Pen::put`], which cleans it; nothing else in the workbench writes cells. Knows no state.

use super::theme::{Look, Role, Theme};
use crate::text;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use unicode_width::UnicodeWidthStr;

/// Text in a role.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Text, cleaned when it is painted.
    pub text: String,
    /// Style.
    pub role: Role,
}

/// Longest text that a row can show, in bytes; the rest is never looked at.
const LONGEST: usize = 8192;

/// Shorthand for a [`Span`].
pub fn span(text: impl Into<String>, role: Role) -> Span {
    let mut text = text.into();
    text.truncate(text.floor_char_boundary(LONGEST));
    Span { text, role }
}

/// A number of things: `1 layer`, `3 layers`.
pub fn many(n: usize, thing: &str) -> String {
    if n == 1 { format!("1 {thing}") } else { format!("{n} {thing}s") }
}

/// Columns of a row of spans once painted.
pub fn width_of(spans: &[Span]) -> usize {
    spans.iter().map(|s| text::columns(&s.text)).sum()
}

/// A brush over a part of the frame. Coordinates are relative to [`Pen::area`]; what lies outside is cut.
pub struct Pen<'a> {
    buffer: &'a mut Buffer,
    area: Rect,
    theme: Theme,
    ascii: bool,
}

impl<'a> Pen<'a> {
    /// A brush over the whole buffer.
    pub fn new(buffer: &'a mut Buffer, look: Look) -> Pen<'a> {
        let area = buffer.area;
        Pen { buffer, area, theme: Theme::new(look), ascii: look.ascii }
    }

    /// A brush over a part, in absolute coordinates, cut to this brush's area.
    pub fn part(&mut self, area: Rect) -> Pen<'_> {
        let area = area.intersection(self.area);
        Pen { buffer: self.buffer, area, theme: self.theme, ascii: self.ascii }
    }

    /// The absolute area.
    pub fn area(&self) -> Rect {
        self.area
    }
    /// Columns.
    pub fn width(&self) -> usize {
        self.area.width as usize
    }
    /// Rows.
    pub fn height(&self) -> usize {
        self.area.height as usize
    }
    /// Whether only ASCII may be used.
    pub fn ascii(&self) -> bool {
        self.ascii
    }
    /// The theme.
    pub fn theme(&self) -> Theme {
        self.theme
    }

    /// Paints text at a column and row, at most `columns` wide, cut with `…`; returns the columns used.
    pub fn put(&mut self, x: usize, y: usize, columns: usize, value: &str, style: Style) -> usize {
        if y >= self.height() || x >= self.width() {
            return 0;
        }
        let room = columns.min(self.width() - x);
        let mut shown = text::clean(value, room);
        if self.ascii && !shown.is_ascii() {
            shown = to_ascii(&shown);
        }
        let (px, py) = (self.area.x + x as u16, self.area.y + y as u16);
        // What stood there before leaves no colour behind.
        let (end, _) = self.buffer.set_stringn(px, py, &shown, room, Style::reset().patch(style));
        (end - px) as usize
    }

    /// Paints text in a role over the rest of the row; returns the columns used.
    pub fn text(&mut self, x: usize, y: usize, value: &str, role: Role) -> usize {
        let style = self.theme.style(role);
        self.put(x, y, usize::MAX, value, style)
    }

    /// Paints spans one after another within `columns`; returns the columns used.
    pub fn spans(&mut self, x: usize, y: usize, columns: usize, spans: &[Span]) -> usize {
        let mut used = 0;
        for s in spans {
            if used >= columns {
                break;
            }
            let style = self.theme.style(s.role);
            used += self.put(x + used, y, columns - used, &s.text, style);
        }
        used
    }

    /// Paints text so that it ends before column `end`; returns its first column.
    pub fn right(&mut self, end: usize, y: usize, spans: &[Span]) -> usize {
        let width = width_of(spans).min(end);
        let x = end - width;
        self.spans(x, y, width, spans);
        x
    }

    /// Puts a style on a row without changing its text.
    pub fn tint(&mut self, x: usize, y: usize, columns: usize, style: Style) {
        let area = Rect {
            x: self.area.x.saturating_add(x as u16),
            y: self.area.y.saturating_add(y as u16),
            width: columns.min(u16::MAX as usize) as u16,
            height: 1,
        };
        self.buffer.set_style(area.intersection(self.area), style);
    }

    /// Marks a row as the selected one: every cell in one style.
    pub fn select(&mut self, y: usize) {
        if y >= self.height() {
            return;
        }
        let style = self.theme.style(Role::Select);
        for x in 0..self.area.width {
            if let Some(cell) = self.buffer.cell_mut((self.area.x + x, self.area.y + y as u16)) {
                cell.set_style(Style::reset());
                cell.set_style(style);
            }
        }
    }

    /// Marks a part of a row as the selected one.
    pub fn select_part(&mut self, x: usize, y: usize, columns: usize) {
        let style = self.theme.style(Role::Select);
        for x in x..(x + columns).min(self.width()) {
            if y < self.height()
                && let Some(cell) = self.buffer.cell_mut((self.area.x + x as u16, self.area.y + y as u16))
            {
                cell.set_style(Style::reset());
                cell.set_style(style);
            }
        }
    }

    /// Scores from the least on as heights, half a column high at 1; the part `gone` (0 to 1) of them, from
    /// the left, is marked as what leaves.
    pub fn strip(&mut self, x: usize, y: usize, columns: usize, scores: &[f64], gone: f64) {
        let Some(last) = scores.len().checked_sub(1) else { return };
        let levels: [&str; 8] = match self.ascii {
            true => [".", ":", "-", "=", "+", "*", "#", "@"],
            false => ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"],
        };
        let (leaves, stays) = (self.theme.style(Role::Bad), self.theme.style(Role::Bar));
        for c in 0..columns {
            let part = (c as f64 + 0.5) / columns as f64;
            let score = scores[(part * last as f64).round() as usize];
            let level = if score.is_finite() { (score * 4.0).clamp(0.0, 7.0) as usize } else { 7 };
            let style = if part < gone { leaves } else { stays };
            self.put(x + c, y, 1, levels[level], style);
        }
    }

    /// Empties the area.
    pub fn clear(&mut self) {
        for y in self.area.top()..self.area.bottom() {
            for x in self.area.left()..self.area.right() {
                if let Some(cell) = self.buffer.cell_mut((x, y)) {
                    cell.reset();
                }
            }
        }
    }

    /// A horizontal bar of `columns`, filled to `part` (0 to 1) in eighths of a column.
    pub fn bar(&mut self, x: usize, y: usize, columns: usize, part: f64, role: Role) {
        let part = if part.is_finite() { part.clamp(0.0, 1.0) } else { 0.0 };
        let (full, track) = (self.theme.style(role), self.theme.style(Role::Track));
        if self.ascii {
            let filled = (part * columns as f64).round() as usize;
            self.put(x, y, columns, &"#".repeat(filled), full);
            self.put(x + filled, y, columns - filled, &".".repeat(columns - filled), track);
            return;
        }
        let eighths = (part * columns as f64 * 8.0).round() as usize;
        let (filled, rest) = (eighths / 8, eighths % 8);
        self.put(x, y, columns, &"█".repeat(filled), full);
        let mut at = filled;
        if rest > 0 && filled < columns {
            self.put(x + at, y, 1, ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][rest], full);
            at += 1;
        }
        if at < columns {
            self.put(x + at, y, columns - at, &"·".repeat(columns - at), track);
        }
    }

    /// A box with a title on its top edge and a note at the right end of it; returns the inner area.
    /// `joined` draws the top edge as a continuation of the box above.
    pub fn frame(&mut self, title: &[Span], note: &[Span], focused: bool, joined: bool) -> Rect {
        let (w, h) = (self.width(), self.height());
        if w < 2 || h < 2 {
            return self.area;
        }
        let edge = self.theme.style(if focused { Role::Focus } else { Role::Border });
        let (tl, tr) = if joined { ("├", "┤") } else { ("┌", "┐") };
        self.put(0, 0, w, &format!("{tl}{}{tr}", "─".repeat(w - 2)), edge);
        for y in 1..h - 1 {
            self.put(0, y, 1, "│", edge);
            self.put(w - 1, y, 1, "│", edge);
        }
        self.put(0, h - 1, w, &format!("└{}┘", "─".repeat(w - 2)), edge);
        let mut end = w.saturating_sub(1);
        let noted = width_of(note);
        if !note.is_empty() && noted + 4 < w {
            end = end.saturating_sub(noted + 3);
            self.put(end, 0, 1, " ", edge);
            self.spans(end + 1, 0, noted, note);
            self.put(end + 1 + noted, 0, 1, " ", edge);
        }
        let room = end.saturating_sub(4);
        if !title.is_empty() && room > 0 {
            self.put(1, 0, 1, " ", edge);
            let used = self.spans(2, 0, room, title);
            self.put(2 + used, 0, 1, " ", edge);
            if focused {
                self.tint(2, 0, used, edge.add_modifier(ratatui::style::Modifier::BOLD));
            }
        }
        Rect {
            x: self.area.x + 1,
            y: self.area.y + 1,
            width: self.area.width - 2,
            height: self.area.height - 2,
        }
    }
}

/// The ASCII twin of every glyph that the workbench uses; `?` for other characters. The width stays.
pub fn to_ascii(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        let twin = match c {
            ' '..='~' => c,
            '…' => '~',
            '·' => '.',
            '–' | '─' | '⋯' => '-',
            '│' | '┆' => '|',
            '┌' | '┐' | '└' | '┘' | '├' | '┤' | '┬' | '┴' | '┼' => '+',
            '●' | '◆' => '*',
            '○' | '◇' => 'o',
            '▲' => '^',
            '▼' | '▾' => 'v',
            '▸' | '→' | '›' => '>',
            '◂' | '←' => '<',
            '✓' => 'v',
            '✗' | '×' => 'x',
            '≤' => '<',
            '≥' => '>',
            '±' => '~',
            '█' | '▉' | '▊' | '▋' | '▌' => '#',
            '▍' | '▎' | '▏' => '|',
            '▀' | '▄' | '▃' => '=',
            '▁' | '▂' => '.',
            '▅' | '▆' | '▇' => '#',
            'µ' => 'u',
            '¼' => '4',
            '┊' => ':',
            _ => {
                let width = c.to_string().width();
                for _ in 0..width {
                    out.push('?');
                }
                continue;
            }
        };
        out.push(twin);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::theme::{Depth, ThemeName};
    use super::*;

    fn look(ascii: bool) -> Look {
        Look { theme: ThemeName::Auto, depth: Depth::Ansi16, ascii, ssh: false }
    }

    #[test]
    fn text_is_cut_to_the_area_and_cleaned() {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 8, 2));
        let mut pen = Pen::new(&mut buffer, look(false));
        assert_eq!(pen.put(5, 0, 99, "abcdef", Style::new()), 3);
        assert_eq!(pen.put(9, 0, 99, "x", Style::new()), 0);
        assert_eq!(pen.put(0, 5, 99, "x", Style::new()), 0);
        pen.put(0, 1, 99, "\u{1b}[2J", Style::new());
        let row: String = (0..8).map(|x| buffer[(x, 0)].symbol().to_string()).collect();
        assert_eq!(row, "     ab…");
        assert!((0..8).all(|x| !buffer[(x, 1)].symbol().chars().any(crate::text::is_unsafe)));
    }

    #[test]
    fn ascii_keeps_the_width() {
        for text in ["a…b", "日本", "┌─┐", "✓ ok", "e\u{301}"] {
            assert_eq!(to_ascii(text).len(), text.width(), "{text}");
        }
    }

    #[test]
    fn bars_and_boxes_fit_any_area() {
        for w in 0..12 {
            for h in 0..5 {
                for ascii in [false, true] {
                    let mut buffer = Buffer::empty(Rect::new(0, 0, w, h));
                    let mut pen = Pen::new(&mut buffer, look(ascii));
                    pen.frame(&[span("Title", Role::Title)], &[span("9", Role::Dim)], true, false);
                    pen.bar(1, 1, 6, f64::NAN, Role::Bar);
                    pen.bar(1, 1, 6, 0.55, Role::Bar);
                    pen.select(1);
                }
            }
        }
    }
}
