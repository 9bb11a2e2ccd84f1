//! A table: columns with units, cells with a text for people and a value for machines.

use serde_json::Value;

/// Side that a column's text leans on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Names and prose; such columns give way where a line is too long.
    Left,
    /// Numbers.
    Right,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Field name in CSV.
    pub field: &'static str,
    /// Heading for people, the unit included.
    pub title: String,
    /// Side.
    pub align: Align,
    /// Left out of text where the line is too long.
    pub optional: bool,
}

/// A cell.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// For people.
    pub text: String,
    /// For machines.
    pub value: Value,
}

impl Cell {
    /// A cell whose text and value are the same.
    pub fn text(text: impl Into<String>) -> Cell {
        let text = text.into();
        Cell { value: Value::String(text.clone()), text }
    }
    /// A value with its text for people.
    pub fn value(value: impl Into<Value>, text: impl ToString) -> Cell {
        Cell { text: text.to_string(), value: value.into() }
    }
    /// A cell without a value.
    pub fn empty() -> Cell {
        Cell { text: "-".into(), value: Value::Null }
    }
    /// [`Cell::value`] of what is there, else [`Cell::empty`].
    pub fn maybe<T: Into<Value> + Copy>(value: Option<T>, text: impl Fn(T) -> String) -> Cell {
        value.map_or_else(Cell::empty, |v| Cell::value(v, text(v)))
    }
}

/// A table.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    /// Columns.
    pub columns: Vec<Column>,
    /// Rows, each as long as `columns`.
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table without rows. A `title` that starts with `?` is optional where space is short; one that
    /// starts with `<` (after it) leans left, others right.
    pub fn new(columns: &[(&'static str, &str)]) -> Table {
        let columns = columns.iter().map(|(field, title)| {
            let (optional, title) = title.strip_prefix('?').map_or((false, *title), |t| (true, t));
            let (align, title) = title.strip_prefix('<').map_or((Align::Right, title), |t| (Align::Left, t));
            Column { field, title: title.into(), align, optional }
        });
        Table { columns: columns.collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn push(&mut self, row: impl Into<Vec<Cell>>) {
        let row = row.into();
        debug_assert_eq!(row.len(), self.columns.len(), "a row has a cell for each column");
        self.rows.push(row);
    }
}
