//! Curves and scatters on a dot raster. Every column shows the smallest and the largest value that fall
//! into it, so that spikes survive; axes are fixed by the caller, so that little changes per frame.

use super::super::paint::{Pen, span, width_of};
use super::super::theme::Role;
use ratatui::style::Style;

/// Dots on cells: 2x4 per cell as braille, or one per cell in ASCII.
pub(super) struct Raster {
    columns: usize,
    rows: usize,
    ascii: bool,
    /// Per cell: dots and the curve that set them last.
    cells: Vec<(u8, usize)>,
}

impl Raster {
    /// An empty raster over `columns` by `rows` cells.
    pub(super) fn new(columns: usize, rows: usize, ascii: bool) -> Raster {
        Raster { columns, rows, ascii, cells: vec![(0, 0); columns * rows] }
    }
    /// Dots across.
    pub(super) fn width(&self) -> usize {
        self.columns * if self.ascii { 1 } else { 2 }
    }
    /// Dots down.
    pub(super) fn height(&self) -> usize {
        self.rows * if self.ascii { 1 } else { 4 }
    }

    /// Sets a dot, `y` from the top.
    pub(super) fn set(&mut self, x: usize, y: usize, series: usize) {
        if x >= self.width() || y >= self.height() {
            return;
        }
        let (cell, bit) = if self.ascii {
            (y * self.columns + x, 1)
        } else {
            const BITS: [[u8; 4]; 2] = [[0x01, 0x02, 0x04, 0x40], [0x08, 0x10, 0x20, 0x80]];
            (y / 4 * self.columns + x / 2, BITS[x % 2][y % 4])
        };
        let (dots, owner) = &mut self.cells[cell];
        *dots |= bit;
        *owner = series;
    }

    /// A line of dots.
    pub(super) fn line(&mut self, from: (usize, usize), to: (usize, usize), series: usize) {
        let (dx, dy) = (to.0 as f64 - from.0 as f64, to.1 as f64 - from.1 as f64);
        let steps = dx.abs().max(dy.abs()).max(1.0);
        for i in 0..=steps as usize {
            let t = i as f64 / steps;
            let (x, y) = (from.0 as f64 + dx * t, from.1 as f64 + dy * t);
            self.set(x.round() as usize, y.round() as usize, series);
        }
    }

    /// Paints the raster at a place of the pen.
    pub(super) fn paint(&self, pen: &mut Pen<'_>, x: usize, y: usize, style: impl Fn(usize) -> Style) {
        const MARKS: [&str; 6] = ["*", "+", "x", "o", "#", "@"];
        for row in 0..self.rows {
            for column in 0..self.columns {
                let (dots, series) = self.cells[row * self.columns + column];
                if dots == 0 {
                    continue;
                }
                if self.ascii {
                    pen.put(x + column, y + row, 1, MARKS[series % 6], style(series));
                } else {
                    let c = char::from_u32(0x2800 + u32::from(dots)).unwrap_or('·');
                    pen.put(x + column, y + row, 1, c.encode_utf8(&mut [0; 4]), style(series));
                }
            }
        }
    }
}

/// A curve.
pub(super) struct Curve<'a> {
    /// Points by ascending x.
    pub(super) points: &'a [(u64, f64)],
    /// Its colour.
    pub(super) series: usize,
}

/// What is drawn.
pub(super) struct Chart<'a> {
    /// Curves.
    pub(super) curves: Vec<Curve<'a>>,
    /// Ends of the x axis.
    pub(super) x: (f64, f64),
    /// What a value becomes before it is drawn.
    pub(super) transform: Transform,
    /// Read-out, part of the x axis.
    pub(super) cursor: Option<f64>,
}

/// The y scale.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Transform {
    /// As it is.
    Linear,
    /// Base ten.
    Log,
    /// Divided by the curve's first value.
    Relative,
}

impl Transform {
    fn apply(self, value: f64, first: f64) -> Option<f64> {
        let out = match self {
            Transform::Linear => value,
            Transform::Log if value > 0.0 => value.log10(),
            Transform::Log => return None,
            Transform::Relative if first != 0.0 => value / first,
            Transform::Relative => return None,
        };
        out.is_finite().then_some(out)
    }
    fn label(self, value: f64) -> String {
        match self {
            Transform::Log => number(10f64.powf(value)),
            Transform::Relative => format!("{value:.2}×"),
            Transform::Linear => number(value),
        }
    }
}

/// A number in at most seven columns.
pub(super) fn number(v: f64) -> String {
    let a = v.abs();
    if !v.is_finite() {
        "n/a".into()
    } else if v == 0.0 {
        "0".into()
    } else if !(1e-3..1e6).contains(&a) {
        format!("{v:.1e}")
    } else if a >= 1000.0 {
        format!("{:.1}k", v / 1e3)
    } else if a >= 100.0 {
        format!("{v:.0}")
    } else if a >= 10.0 {
        format!("{v:.1}")
    } else if a >= 0.1 {
        format!("{v:.3}")
    } else {
        format!("{v:.4}")
    }
}

/// A round number that is not below `v`: 1, 2 or 5 times a power of ten.
pub(super) fn round_up(v: f64) -> f64 {
    if !(v.is_finite() && v > 0.0) {
        return 1.0;
    }
    let power = 10f64.powf(v.log10().floor());
    for step in [1.0, 2.0, 5.0, 10.0] {
        if step * power >= v * (1.0 - 1e-9) {
            return step * power;
        }
    }
    10.0 * power
}

const GUTTER: usize = 8;

/// Draws a chart on the whole pen: labels left, the x axis in the last row.
pub(super) fn draw(pen: &mut Pen<'_>, chart: &Chart<'_>, x_unit: &str) {
    let (w, h) = (pen.width(), pen.height());
    if w < GUTTER + 6 || h < 3 {
        return;
    }
    let (columns, rows) = (w - GUTTER - 1, h - 1);
    let mut raster = Raster::new(columns, rows, pen.ascii());
    let (x0, x1) = chart.x;
    let span_x = (x1 - x0).max(f64::MIN_POSITIVE);
    let dots = raster.width();
    // Smallest, largest, first and last value per dot column and curve.
    let mut envelopes: Vec<(usize, Vec<Option<[f64; 4]>>)> = Vec::new();
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for curve in &chart.curves {
        let first = curve.points.first().map_or(1.0, |p| p.1);
        let mut columns: Vec<Option<[f64; 4]>> = vec![None; dots];
        for (x, value) in curve.points {
            let part = (*x as f64 - x0) / span_x;
            if !(0.0..=1.0).contains(&part) {
                continue;
            }
            let Some(v) = chart.transform.apply(*value, first) else { continue };
            low = low.min(v);
            high = high.max(v);
            let at = ((part * (dots - 1) as f64).round() as usize).min(dots - 1);
            columns[at] = Some(match columns[at] {
                Some([min, max, begin, _]) => [min.min(v), max.max(v), begin, v],
                None => [v, v, v, v],
            });
        }
        envelopes.push((curve.series, columns));
    }
    let edge = pen.theme().style(Role::Border);
    for y in 0..rows {
        pen.put(GUTTER - 1, y, 1, "│", edge);
    }
    pen.put(GUTTER - 1, rows, 1, "└", edge);
    if low > high {
        pen.text(GUTTER + 1, rows / 2, "no points yet", Role::Dim);
        return;
    }
    let pad = if high > low { (high - low) * 0.04 } else { high.abs().max(1e-9) * 0.1 };
    // What cannot be negative gets no negative axis.
    let (low, high) = (if low >= 0.0 { (low - pad).max(0.0) } else { low - pad }, high + pad);
    let tall = raster.height() - 1;
    let place = |v: f64| -> usize {
        let part = ((v - low) / (high - low)).clamp(0.0, 1.0);
        tall - (part * tall as f64).round() as usize
    };
    for (series, columns) in &envelopes {
        let mut before: Option<(usize, usize)> = None;
        for (x, column) in columns.iter().enumerate() {
            let Some([min, max, begin, end]) = column else { continue };
            if let Some(from) = before {
                raster.line(from, (x, place(*begin)), *series);
            }
            raster.line((x, place(*max)), (x, place(*min)), *series);
            before = Some((x, place(*end)));
        }
    }
    if let Some(part) = chart.cursor {
        let at = GUTTER + (part.clamp(0.0, 1.0) * (columns - 1) as f64).round() as usize;
        let style = pen.theme().style(Role::Key);
        for y in 0..rows {
            pen.put(at, y, 1, "┆", style);
        }
    }
    let theme = pen.theme();
    raster.paint(pen, GUTTER, 0, |series| theme.series(series));
    let mut labels = vec![(0, high), (rows - 1, low)];
    if rows >= 7 {
        labels.push((rows / 2, (high + low) / 2.0));
    }
    for (y, value) in labels {
        let text = chart.transform.label(value);
        let text = [span(text, Role::Dim)];
        pen.right(GUTTER - 1, y, &text);
    }
    let end = [span(format!("{} {x_unit}", number_of_steps(x1)), Role::Dim)];
    pen.text(GUTTER, rows, &number_of_steps(x0), Role::Dim);
    if columns > width_of(&end) + 8 {
        pen.right(w, rows, &end);
        if columns > 50 {
            let middle = number_of_steps((x0 + x1) / 2.0);
            pen.text(GUTTER + columns / 2 - middle.len() / 2, rows, &middle, Role::Dim);
        }
    }
}

fn number_of_steps(v: f64) -> String {
    if v >= 10_000.0 {
        crate::units::Count(v.round() as u64).to_string().replace(' ', "").to_lowercase()
    } else {
        format!("{}", v.round() as u64)
    }
}

/// A point of a scatter.
pub(super) struct Dot<'a> {
    /// Place.
    pub(super) x: f64,
    /// Place.
    pub(super) y: f64,
    /// Name.
    pub(super) label: &'a str,
    /// On the front.
    pub(super) front: bool,
    /// The baseline.
    pub(super) baseline: bool,
    /// Selected.
    pub(super) selected: bool,
}

/// Draws points with names, and the front as a line. `up` says whether a larger y is better.
pub(super) fn scatter(pen: &mut Pen<'_>, dots: &[Dot<'_>], x_title: &str, y_title: &str) {
    let (w, h) = (pen.width(), pen.height());
    if w < GUTTER + 16 || h < 5 || dots.is_empty() {
        return;
    }
    let (top, columns, rows) = (1, w - GUTTER - 1, h - 2);
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        let (mut a, mut b) = (f64::INFINITY, f64::NEG_INFINITY);
        for v in values {
            a = a.min(v);
            b = b.max(v);
        }
        let pad = if b > a { (b - a) * 0.12 } else { b.abs().max(1e-9) * 0.1 };
        (a - pad, b + pad)
    };
    let (x0, x1) = ends(&mut dots.iter().map(|d| d.x));
    let (y0, y1) = ends(&mut dots.iter().map(|d| d.y));
    let x0 = x0.max(0.0);
    // Parts of a whole get no axis beyond it.
    let part = dots.iter().all(|d| (0.0..=1.0).contains(&d.y));
    let (y0, y1) = if part { (y0.max(0.0), y1.min(1.0)) } else { (y0, y1) };
    let mut raster = Raster::new(columns, rows, pen.ascii());
    let (across, down) = (raster.width() - 1, raster.height() - 1);
    let at = |d: &Dot<'_>, across: usize, down: usize| -> (usize, usize) {
        let px = ((d.x - x0) / (x1 - x0)).clamp(0.0, 1.0);
        let py = ((d.y - y0) / (y1 - y0)).clamp(0.0, 1.0);
        ((px * across as f64).round() as usize, down - (py * down as f64).round() as usize)
    };
    let mut front: Vec<&Dot<'_>> = dots.iter().filter(|d| d.front).collect();
    front.sort_by(|a, b| a.x.total_cmp(&b.x));
    for pair in front.windows(2) {
        raster.line(at(pair[0], across, down), at(pair[1], across, down), 0);
    }
    let theme = pen.theme();
    let edge = theme.style(Role::Border);
    pen.text(1, 0, y_title, Role::Dim);
    for y in 0..rows {
        pen.put(GUTTER - 1, top + y, 1, "│", edge);
    }
    pen.put(GUTTER - 1, top + rows, 1, "└", edge);
    if !pen.ascii() {
        raster.paint(pen, GUTTER, top, |_| theme.style(Role::Border));
    }
    for (y, value) in [(0, y1), (rows / 2, (y0 + y1) / 2.0), (rows - 1, y0)] {
        pen.right(GUTTER - 1, top + y, &[span(number(value), Role::Dim)]);
    }
    pen.text(GUTTER, top + rows, &number(x0), Role::Dim);
    let end = w;
    pen.right(end, top + rows, &[span(format!("{} {x_title}", number(x1)), Role::Dim)]);
    // Names beside the points, in the first free place.
    let mut taken: Vec<(usize, usize, usize)> = Vec::new();
    let places: Vec<(usize, usize)> = dots.iter().map(|d| at(d, columns - 1, rows - 1)).collect();
    for (x, y) in &places {
        taken.push((*y, *x, *x + 1));
    }
    let free = |taken: &[(usize, usize, usize)], y: usize, a: usize, b: usize| {
        b <= columns && !taken.iter().any(|(ty, ta, tb)| *ty == y && a < *tb + 1 && *ta < b + 1)
    };
    let mut order: Vec<usize> = (0..dots.len()).collect();
    // Where points fall on each other, the baseline and the selected one are seen.
    order.sort_by_key(|i| (dots[*i].selected, dots[*i].baseline, dots[*i].front));
    for i in &order {
        let dot = &dots[*i];
        let (x, y) = places[*i];
        let (mark, role) = match (dot.baseline, dot.front) {
            (true, _) => ("◆", Role::Strong),
            (_, true) => ("●", Role::Good),
            _ => ("○", Role::Dim),
        };
        let role = if dot.selected { Role::Key } else { role };
        pen.text(GUTTER + x, top + y, mark, role);
    }
    for i in order.into_iter().rev() {
        let dot = &dots[i];
        let (x, y) = places[i];
        let label = crate::text::clean(dot.label, 24);
        let wide = crate::text::columns(&label);
        let mut candidates = vec![(y, x + 2)];
        if x > wide {
            candidates.push((y, x - wide - 1));
        }
        for ny in [y.checked_sub(1), Some(y + 1)].into_iter().flatten().filter(|ny| *ny < rows) {
            candidates.push((ny, x + 1));
            candidates.push((ny, x.saturating_sub(wide / 2)));
        }
        if let Some((ly, lx)) = candidates.into_iter().find(|(ly, lx)| free(&taken, *ly, *lx, lx + wide)) {
            taken.push((ly, lx, lx + wide));
            let role = if dot.selected { Role::Key } else { Role::Text };
            pen.spans(GUTTER + lx, top + ly, wide, &[span(label, role)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::theme::{Depth, Look, ThemeName};
    use super::*;
    use ratatui::buffer::Buffer;
    use ratatui::layout::Rect;

    fn painted(w: u16, h: u16, chart: &Chart<'_>) -> Vec<String> {
        let look = Look { theme: ThemeName::Mono, depth: Depth::None, ascii: true, ssh: false };
        let mut buffer = Buffer::empty(Rect::new(0, 0, w, h));
        draw(&mut Pen::new(&mut buffer, look), chart, "step");
        (0..h).map(|y| (0..w).map(|x| buffer[(x, y)].symbol().to_string()).collect()).collect()
    }

    #[test]
    fn a_single_spike_among_many_points_is_drawn() {
        let mut points: Vec<(u64, f64)> = (0..100_000).map(|i| (i, 1.0)).collect();
        points[60_123].1 = 50.0;
        let chart = Chart {
            curves: vec![Curve { points: &points, series: 0 }],
            x: (0.0, 100_000.0),
            transform: Transform::Linear,
            cursor: None,
        };
        let rows = painted(60, 12, &chart);
        assert!(rows[0].contains('*') || rows[1].contains('*'), "{rows:#?}");
    }

    #[test]
    fn charts_of_any_size_and_odd_values_do_not_panic() {
        let points = [(0, f64::NAN), (1, f64::INFINITY), (2, -1.0), (u64::MAX, 1e300), (5, 0.0)];
        for transform in [Transform::Linear, Transform::Log, Transform::Relative] {
            for (w, h) in [(0, 0), (1, 1), (14, 3), (80, 20), (200, 60)] {
                for x in [(0.0, 10.0), (5.0, 5.0), (0.0, f64::MAX)] {
                    let curves = vec![Curve { points: &points, series: 3 }, Curve { points: &[], series: 1 }];
                    painted(w, h, &Chart { curves, x, transform, cursor: Some(0.5) });
                }
            }
        }
    }

    #[test]
    fn axis_ends_are_round() {
        assert_eq!(
            [round_up(0.0), round_up(7.0), round_up(10.0), round_up(1200.0)],
            [1.0, 10.0, 10.0, 2000.0]
        );
        assert_eq!(number(0.4123), "0.412");
        assert_eq!(number(1234.0), "1.2k");
    }
}
