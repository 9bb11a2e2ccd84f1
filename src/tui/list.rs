//! Where a list or a text stands: selection, first row shown, page size. The page size is what the last
//! frame showed, kept in a cell because drawing does not change the state.

use std::cell::Cell;
use std::ops::Range;

/// Selection in a list.
#[derive(Debug, Default, Clone)]
pub struct List {
    /// Selected row.
    pub selected: usize,
    offset: Cell<usize>,
    height: Cell<usize>,
}

impl List {
    /// The rows to show of `len` on `height` lines, with the selected one among them.
    pub fn window(&self, len: usize, height: usize) -> Range<usize> {
        self.window_around(self.selected, len, height)
    }

    /// The rows to show where the selected one stands on line `selected` of `len` lines, because
    /// headings stand between the rows.
    pub fn window_around(&self, selected: usize, len: usize, height: usize) -> Range<usize> {
        self.height.set(height);
        let selected = selected.min(len.saturating_sub(1));
        let mut offset = self.offset.get().min(len.saturating_sub(height));
        if selected < offset {
            offset = selected;
        } else if height > 0 && selected >= offset + height {
            offset = selected + 1 - height;
        }
        self.offset.set(offset);
        offset..(offset + height).min(len)
    }

    /// Moves by `by` rows of `len`.
    pub fn step(&mut self, by: isize, len: usize) {
        self.selected = self.selected.min(len.saturating_sub(1)).saturating_add_signed(by);
        self.selected = self.selected.min(len.saturating_sub(1));
    }

    /// Moves by a page.
    pub fn page(&mut self, direction: isize, len: usize) {
        self.step(direction * (self.height.get().max(2) as isize - 1), len);
    }

    /// Keeps the selection inside `len` rows.
    pub fn clamp(&mut self, len: usize) {
        self.selected = self.selected.min(len.saturating_sub(1));
    }

    /// First row of the last frame.
    pub fn offset(&self) -> usize {
        self.offset.get()
    }
}

/// Position in a text that has no selection.
#[derive(Debug, Default, Clone)]
pub struct Scroll {
    /// First line wanted.
    pub top: usize,
    height: Cell<usize>,
    len: Cell<usize>,
}

impl Scroll {
    /// The lines to show of `len` on `height` rows.
    pub fn window(&self, len: usize, height: usize) -> Range<usize> {
        self.height.set(height);
        self.len.set(len);
        let top = self.top.min(len.saturating_sub(height));
        top..(top + height).min(len)
    }

    fn most(&self) -> usize {
        self.len.get().saturating_sub(self.height.get())
    }

    /// Scrolls by `by` lines.
    pub fn step(&mut self, by: isize) {
        self.top = self.top.min(self.most()).saturating_add_signed(by).min(self.most());
    }

    /// Scrolls by a page.
    pub fn page(&mut self, direction: isize) {
        self.step(direction * (self.height.get().max(2) as isize - 1));
    }

    /// Goes to the end.
    pub fn end(&mut self) {
        self.top = self.most();
    }

    /// Whether the last frame showed the end.
    pub fn at_end(&self) -> bool {
        self.top >= self.most()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_selected_row_is_always_in_the_window() {
        let mut list = List::default();
        for len in [0, 1, 3, 10, 1000] {
            for height in [0, 1, 4, 50] {
                for step in [1, -1, 7, -3, 5000, -5000] {
                    list.step(step, len);
                    let window = list.window(len, height);
                    assert!(window.end <= len);
                    assert!(len == 0 || height == 0 || window.contains(&list.selected));
                }
            }
        }
    }

    #[test]
    fn a_text_scrolls_no_further_than_its_end() {
        let mut scroll = Scroll::default();
        scroll.window(100, 10);
        scroll.step(500);
        assert_eq!(scroll.window(100, 10), 90..100);
        scroll.page(-1);
        assert_eq!(scroll.window(100, 10), 81..91);
        assert_eq!(scroll.window(3, 10), 0..3);
    }
}
