//! Markdown: headings, lists and pipe tables.

use super::{Align, Part};
use crate::text::clean;

pub(super) fn render(parts: &[Part]) -> String {
    let mut out = String::new();
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        match part {
            Part::Heading(text) => out.push_str(&format!("## {}\n", escape(text))),
            Part::Line(text) => out.push_str(&format!("{}\n", escape(text))),
            Part::Facts(facts) => {
                for (name, value) in facts {
                    out.push_str(&format!("- {}: {}\n", escape(name), escape(value)));
                }
            }
            Part::Table(table) => {
                row(&mut out, table.columns.iter().map(|c| escape(&c.title)));
                let rule = |a| if a == Align::Left { "---" } else { "---:" }.to_string();
                row(&mut out, table.columns.iter().map(|c| rule(c.align)));
                for cells in &table.rows {
                    row(&mut out, cells.iter().map(|c| escape(&c.text)));
                }
            }
        }
    }
    out
}

fn row(out: &mut String, cells: impl Iterator<Item = String>) {
    out.push('|');
    for cell in cells {
        out.push_str(&format!(" {cell} |"));
    }
    out.push('\n');
}

fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in clean(text, usize::MAX).chars() {
        if matches!(c, '|' | '<' | '>' | '`' | '*' | '_' | '[' | ']' | '\\' | '#') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
