//! Tables whose columns leave by priority where the room is short. Numbers stand right.

use super::super::paint::{Pen, Span, span, width_of};
use super::super::theme::Role;

/// A column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Heading, unit included.
    pub title: &'static str,
    /// Columns of the screen; for the flexible column the least.
    pub width: usize,
    /// Takes what is left.
    pub flexible: bool,
    /// Contents end at the right edge.
    pub right: bool,
    /// Columns with a higher number leave first; 0 stays.
    pub priority: u8,
}

/// A column of fixed width with its contents at the left.
pub const fn left(title: &'static str, width: usize, priority: u8) -> Column {
    Column { title, width, flexible: false, right: false, priority }
}
/// A column of fixed width with its contents at the right.
pub const fn right(title: &'static str, width: usize, priority: u8) -> Column {
    Column { title, width, flexible: false, right: true, priority }
}
/// The column that takes what is left.
pub const fn flexible(title: &'static str, least: usize) -> Column {
    Column { title, width: least, flexible: true, right: false, priority: 0 }
}

/// What stands in a row at a column.
pub enum Cell {
    /// Text.
    Spans(Vec<Span>),
    /// A bar, filled by this part.
    Bar(f64, Role),
}

/// Text in a role.
pub fn cell(text: impl Into<String>, role: Role) -> Cell {
    Cell::Spans(vec![span(text, role)])
}

const GAP: usize = 2;

/// Where columns stand: index, first screen column, width. Whether some left for want of room.
pub struct Grid {
    places: Vec<(usize, usize, usize)>,
    cut: bool,
}

impl Grid {
    /// Places the columns in `room`, starting at column 1.
    pub fn new(columns: &[Column], room: usize) -> Grid {
        let mut kept: Vec<usize> = (0..columns.len()).collect();
        let need = |kept: &[usize]| -> usize { kept.iter().map(|i| columns[*i].width + GAP).sum::<usize>() };
        while need(&kept) > room + GAP.min(room) {
            let leaving = kept
                .iter()
                .enumerate()
                .filter(|(_, i)| columns[**i].priority > 0)
                .max_by_key(|(_, i)| columns[**i].priority)
                .map(|(at, _)| at);
            match leaving {
                Some(at) => kept.remove(at),
                None => break,
            };
        }
        let cut = kept.len() < columns.len();
        // The mark of a cut stands apart from the last heading.
        let room = if cut { room.saturating_sub(1) } else { room };
        let spare = room.saturating_sub(need(&kept).saturating_sub(GAP));
        let mut places = Vec::with_capacity(kept.len());
        let mut x = 1;
        for i in &kept {
            let column = columns[*i];
            let width = column.width + if column.flexible { spare } else { 0 };
            places.push((*i, x, width));
            x += width + GAP;
        }
        Grid { places, cut }
    }

    /// Screen columns of a column; none where it left.
    pub fn width(&self, column: usize) -> usize {
        self.places.iter().find(|p| p.0 == column).map_or(0, |p| p.2)
    }

    /// Paints the headings; `sorted` is the column that the rows are ordered by.
    pub fn header(&self, pen: &mut Pen<'_>, y: usize, columns: &[Column], sorted: Option<(usize, bool)>) {
        for (i, x, width) in &self.places {
            let column = columns[*i];
            let mut title = column.title.to_string();
            if let Some((by, reverse)) = sorted
                && by == *i
            {
                title.push_str(if reverse { " ▲" } else { " ▼" });
            }
            let spans = [span(title, Role::Dim)];
            place(pen, *x, y, *width, column.right, &spans);
        }
        if self.cut {
            let end = pen.width();
            pen.right(end, y, &[span("…", Role::Dim)]);
        }
    }

    /// Paints a row; `cells` are asked for by column.
    pub fn row(&self, pen: &mut Pen<'_>, y: usize, columns: &[Column], mut cells: impl FnMut(usize) -> Cell) {
        for (i, x, width) in &self.places {
            match cells(*i) {
                Cell::Spans(spans) => place(pen, *x, y, *width, columns[*i].right, &spans),
                Cell::Bar(part, role) => pen.bar(*x, y, *width, part, role),
            }
        }
    }
}

fn place(pen: &mut Pen<'_>, x: usize, y: usize, width: usize, right: bool, spans: &[Span]) {
    let offset = if right { width.saturating_sub(width_of(spans)) } else { 0 };
    pen.spans(x + offset, y, width - offset, spans);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_leave_by_priority_and_fit_the_room() {
        let columns = [flexible("name", 10), left("op", 8, 3), right("n", 6, 1), right("m", 6, 2)];
        let all = Grid::new(&columns, 60);
        assert_eq!((all.places.len(), all.cut), (4, false));
        let last = all.places.last().unwrap();
        assert_eq!(last.1 + last.2, 61, "the room is used");
        let some = Grid::new(&columns, 28);
        assert_eq!(some.places.iter().map(|p| p.0).collect::<Vec<_>>(), [0, 2, 3]);
        assert!(some.cut);
        assert_eq!(Grid::new(&columns, 0).places.len(), 1);
    }
}
