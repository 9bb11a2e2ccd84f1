//! Aligned text. Numbers lean right; where a line is too long, names and prose are cut with a mark.

use super::{Align, Part, Table};
use crate::text::{clean, columns};

const GAP: usize = 2;
const NARROWEST: usize = 8;
/// Width of names and prose for which optional columns give way.
const READABLE: usize = 24;

pub(super) fn render(parts: &[Part], width: Option<usize>) -> String {
    let mut out = String::new();
    for (index, part) in parts.iter().enumerate() {
        let after_table = index > 0 && matches!(parts[index - 1], Part::Table(_));
        let opens = after_table || matches!(part, Part::Heading(_) | Part::Table(_) | Part::Facts(_));
        let after_heading = index > 0 && matches!(parts[index - 1], Part::Heading(_));
        if index > 0 && opens && !after_heading {
            out.push('\n');
        }
        match part {
            Part::Heading(text) => line(&mut out, text, width),
            Part::Line(text) => wrapped(&mut out, text, width),
            Part::Facts(facts) => {
                let widest = facts.iter().map(|(name, _)| columns(name)).max().unwrap_or(0);
                for (name, value) in facts {
                    line(&mut out, &format!("{name:<widest$}  {value}"), width);
                }
            }
            Part::Table(t) => table(&mut out, t, width),
        }
    }
    out
}

fn line(out: &mut String, text: &str, width: Option<usize>) {
    out.push_str(clean(text, width.unwrap_or(usize::MAX)).trim_end());
    out.push('\n');
}

/// Breaks prose between words; continuation lines are indented by two.
fn wrapped(out: &mut String, text: &str, width: Option<usize>) {
    let Some(width) = width.filter(|w| *w >= 20) else { return line(out, text, width) };
    let text = clean(text, usize::MAX);
    let indent = text.len() - text.trim_start().len();
    let mut current = " ".repeat(indent);
    let mut empty = true;
    for word in text.split_whitespace() {
        if !empty && columns(&current) + 1 + columns(word) > width {
            out.push_str(current.trim_end());
            out.push('\n');
            current = " ".repeat(indent + 2);
            empty = true;
        }
        if !empty {
            current.push(' ');
        }
        current.push_str(word);
        empty = false;
    }
    line(out, &current, Some(width));
}

fn table(out: &mut String, table: &Table, limit: Option<usize>) {
    let titles = table.columns.iter().map(|c| clean(&c.title, usize::MAX)).collect::<Vec<_>>();
    let cells: Vec<Vec<String>> =
        table.rows.iter().map(|r| r.iter().map(|c| clean(&c.text, usize::MAX)).collect()).collect();
    let mut widths: Vec<usize> = titles.iter().map(|t| columns(t)).collect();
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(columns(cell));
        }
    }
    let mut shown: Vec<usize> = (0..widths.len()).collect();
    if let Some(limit) = limit {
        narrow(&mut widths, &mut shown, table, limit);
    }
    let mut row = |cells: &[String]| {
        let mut text = String::new();
        for &i in &shown {
            let cell = clean(&cells[i], widths[i]);
            let fill = " ".repeat(widths[i].saturating_sub(columns(&cell)));
            match table.columns[i].align {
                Align::Left => text.extend([cell.as_str(), &fill]),
                Align::Right => text.extend([fill.as_str(), &cell]),
            }
            text.push_str(&" ".repeat(GAP));
        }
        line(out, text.trim_end(), limit);
    };
    row(&titles);
    for cells in &cells {
        row(cells);
    }
    if shown.len() < widths.len() {
        let left: Vec<&str> =
            (0..widths.len()).filter(|i| !shown.contains(i)).map(|i| table.columns[i].field).collect();
        wrapped(out, &format!("(not shown at this width: {})", left.join(", ")), limit);
    }
}

/// Leaves out optional columns from the right until names and prose, cut as far as they may be, fit;
/// then takes what is over from the widest of these, one column of text at a time.
fn narrow(widths: &mut [usize], shown: &mut Vec<usize>, table: &Table, limit: usize) {
    let gives = |i: usize| table.columns[i].align == Align::Left;
    let total = |shown: &[usize], width: &dyn Fn(usize) -> usize| {
        shown.iter().map(|i| width(*i)).sum::<usize>() + GAP * shown.len().saturating_sub(1)
    };
    // Prose may give way, but not to nothing while optional figures stay.
    let least = |widths: &[usize], i: usize| if gives(i) { widths[i].min(READABLE) } else { widths[i] };
    while total(shown, &|i| least(widths, i)) > limit {
        match shown.iter().rposition(|i| table.columns[*i].optional) {
            Some(at) => drop(shown.remove(at)),
            None => break,
        }
    }
    while total(shown, &|i| widths[i]) > limit {
        let widest =
            shown.iter().copied().filter(|i| gives(*i) && widths[*i] > NARROWEST).max_by_key(|i| widths[*i]);
        match widest {
            Some(i) => widths[i] -= 1,
            None => return,
        }
    }
}
