//! A weight in words and bars: how it is stored, and what its elements are like.

use super::super::action::Action;
use super::super::app::App;
use super::super::model::Weighed;
use super::super::paint::span;
use super::super::theme::Role;
use super::doc::Doc;
use crate::analysis::TensorInfo;
use crate::tensor::Distribution;
use crate::tensor::stats::{Channels, Histogram, OUTLIER};
use crate::units::{Bytes, Count};

/// Rows of a histogram.
const ROWS: usize = 6;
/// Heights of a cell, lowest first.
const LEVELS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Sizes of axes.
pub(super) fn dims(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join("×")
}

/// How a weight is stored.
pub(super) fn stored(doc: &mut Doc, t: &TensorInfo) {
    doc.pair("encoding", &t.encoding, Role::Accent);
    doc.pair("shape", &dims(&t.shape), Role::Text);
    doc.pair("role", &t.role, Role::Text);
    doc.pair("elements", &Count(t.parameters).to_string(), Role::Text);
    let bits = 8.0 * t.bytes as f64 / t.parameters.max(1) as f64;
    doc.pair("stored in", &format!("{}, {bits:.2} bits per element", Bytes(t.bytes)), Role::Text);
}

/// Whether the elements of a weight are known.
pub(super) fn is_read(app: &App, t: &TensorInfo) -> bool {
    t.distribution.is_some() || matches!(app.model.weighed.get(&t.name), Some(Weighed::Ready(_)))
}

/// The elements of a weight as far as they are known, or how to get them.
pub(super) fn elements(doc: &mut Doc, app: &App, t: &TensorInfo) {
    let width = doc.width();
    let known = app.model.weighed.get(&t.name);
    match (known, &t.distribution) {
        (Some(Weighed::Ready(d)), _) => distribution(doc, t, d, width),
        (_, Some(d)) => distribution(doc, t, d, width),
        (Some(Weighed::Reading), _) => doc.item("·", Role::Info, &format!("reading {} …", t.name)),
        (Some(Weighed::Failed(why)), _) => doc.item("!", Role::Warn, why),
        (None, None) => {
            let key = app.keymap.key_name(Action::Weights);
            let text = format!("{key} reads {} of {}", Bytes(t.bytes), t.name);
            doc.item(" ", Role::Dim, &text);
        }
    }
}

fn distribution(doc: &mut Doc, t: &TensorInfo, d: &Distribution, width: usize) {
    doc.heading(&t.name);
    let s = &d.stats;
    histogram(doc, &d.histogram, width);
    doc.pair("mean, std", &format!("{} ± {}", number(s.mean), number(s.std())), Role::Text);
    doc.pair("min, max", &format!("{} to {}", number(s.min), number(s.max)), Role::Text);
    let median = number(d.median_abs);
    let quantiles = format!("median {median}, 99 % {}, 99.9 % {}", number(d.p99_abs), number(d.p999_abs));
    doc.pair("magnitude", &quantiles, Role::Text);
    let part = 100.0 * s.zeros as f64 / t.parameters.max(1) as f64;
    doc.pair("zeros", &format!("{} ({part:.1} %)", s.zeros), Role::Text);
    if s.denormals > 0 {
        doc.pair("denormal", &s.denormals.to_string(), Role::Text);
    }
    if s.nans + s.infinities > 0 {
        doc.pair("damaged", &format!("{} NaN, {} infinite", s.nans, s.infinities), Role::Bad);
    }
    if let Some(c) = &d.channels {
        channels(doc, c);
    }
}

fn channels(doc: &mut Doc, c: &Channels) {
    doc.pair("channels", &format!("{} on axis {}, {} all zero", c.count, c.axis, c.zero), Role::Text);
    doc.pair("median peak", &number(c.median_absmax), Role::Text);
    if c.outliers == 0 {
        doc.pair("outliers", &format!("none beyond {OUTLIER} times the median"), Role::Good);
        return;
    }
    let worst: Vec<String> = c.worst.iter().map(|(i, r)| format!("#{i} {r:.1}×")).collect();
    doc.pair("outliers", &format!("{}: {}", c.outliers, worst.join(", ")), Role::Warn);
}

/// Elements over their range, in bars; what lies outside is counted below.
fn histogram(doc: &mut Doc, h: &Histogram, width: usize) {
    let columns = width.min(h.counts.len());
    let heights = resampled(&h.counts, columns);
    let most = heights.iter().copied().fold(0.0, f64::max);
    if columns == 0 || most <= 0.0 {
        return;
    }
    for row in (0..ROWS).rev() {
        let text: String = heights
            .iter()
            .map(|v| {
                let eighths = (v / most * (ROWS * 8) as f64).ceil() as usize;
                LEVELS[eighths.saturating_sub(row * 8).min(8)]
            })
            .collect();
        doc.line(vec![span(text, Role::Bar)]);
    }
    let (low, high) = (number(-h.range), number(h.range));
    let gap = columns.saturating_sub(low.len() + high.len());
    let zero = gap / 2;
    let middle = match gap {
        0..=2 => " ".repeat(gap.max(1)),
        _ => format!("{}0{}", " ".repeat(zero), " ".repeat(gap - zero - 1)),
    };
    doc.line(vec![span(format!("{low}{middle}{high}"), Role::Dim)]);
    if h.below + h.above > 0 {
        doc.pair("outside", &format!("{} below, {} above", h.below, h.above), Role::Warn);
    }
}

/// Counts spread over another number of columns.
fn resampled(counts: &[u64], columns: usize) -> Vec<f64> {
    let step = counts.len() as f64 / columns.max(1) as f64;
    (0..columns)
        .map(|c| {
            let (from, to) = (c as f64 * step, (c + 1) as f64 * step);
            let last = (to.ceil() as usize).min(counts.len());
            (from as usize..last)
                .map(|i| {
                    let overlap = (to.min(i as f64 + 1.0) - from.max(i as f64)).max(0.0);
                    counts[i] as f64 * overlap
                })
                .sum()
        })
        .collect()
}

/// A number in a few characters.
fn number(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        a if (0.001..10_000.0).contains(&a) => format!("{x:.4}"),
        _ => format!("{x:.2e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_share_all_counts() {
        let counts: Vec<u64> = (0..65).map(|i| i * i).collect();
        let total: u64 = counts.iter().sum();
        for columns in [1, 2, 30, 64, 65] {
            let sum: f64 = resampled(&counts, columns).iter().sum();
            assert!((sum - total as f64).abs() < 1e-6, "{columns}");
        }
        assert!(resampled(&counts, 0).is_empty());
    }
}
