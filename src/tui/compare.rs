//! State of the Compare tab: which variants, the table, baseline, order, axes.

use super::app::{App, Failure};
use super::list::{List, Scroll};
use crate::compare::{Comparison, Row};
use crate::evaluate::measurement::Measurement;
use std::path::PathBuf;

/// What variants are ordered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// As given, baseline first.
    #[default]
    Given,
    /// Median latency.
    Latency,
    /// File size.
    Size,
    /// Peak memory.
    Memory,
    /// Quality, best first.
    Quality,
}

impl Order {
    /// The next one.
    pub fn next(self) -> Order {
        match self {
            Order::Given => Order::Latency,
            Order::Latency => Order::Size,
            Order::Size => Order::Memory,
            Order::Memory => Order::Quality,
            Order::Quality => Order::Given,
        }
    }
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Order::Given => "given order",
            Order::Latency => "latency",
            Order::Size => "size",
            Order::Memory => "memory",
            Order::Quality => "quality",
        }
    }
}

/// What the scatter plots against quality.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Axis {
    /// Median latency in milliseconds.
    #[default]
    Latency,
    /// File size in MiB.
    Size,
    /// Peak memory in MiB.
    Memory,
}

impl Axis {
    /// The next one.
    pub fn next(self) -> Axis {
        match self {
            Axis::Latency => Axis::Size,
            Axis::Size => Axis::Memory,
            Axis::Memory => Axis::Latency,
        }
    }
    /// Name with unit.
    pub fn title(self) -> &'static str {
        match self {
            Axis::Latency => "latency p50 ms",
            Axis::Size => "file MiB",
            Axis::Memory => "peak memory MiB",
        }
    }
    /// The figure of a variant.
    pub fn value(self, m: &Measurement) -> Option<f64> {
        match self {
            Axis::Latency => m.latency_ms.as_ref().map(|l| l.p50),
            Axis::Size => Some(m.file_bytes as f64 / f64::from(1 << 20)),
            Axis::Memory => m.peak_rss_bytes.map(|b| b as f64 / f64::from(1 << 20)),
        }
    }
}

/// Which measurements are compared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Source {
    /// Nothing was measured.
    #[default]
    None,
    /// Of the marked runs.
    Marked(usize),
    /// Of all runs on one model.
    Model(PathBuf),
}

/// The tab.
#[derive(Debug, Default)]
pub struct CompareTab {
    /// Where the variants come from.
    pub source: Source,
    /// What was asked to be compared.
    pub measurements: Vec<Measurement>,
    /// The table.
    pub comparison: Option<Comparison>,
    /// Rows: indices into the table.
    pub rows: Vec<usize>,
    /// Selection.
    pub list: List,
    /// The baseline that was chosen: variant and hash.
    pub baseline: Option<(String, String)>,
    /// Newest request.
    pub generation: u64,
    /// A request is under way.
    pub loading: bool,
    /// Why there is no table.
    pub failure: Option<Failure>,
    /// Order.
    pub order: Order,
    /// Reversed.
    pub reverse: bool,
    /// Hide columns that are equal in all rows.
    pub only_differences: bool,
    /// Scatter axis.
    pub axis: Axis,
    /// Position in the details.
    pub details: Scroll,
}

impl CompareTab {
    /// A new table.
    pub fn set(&mut self, comparison: Comparison) {
        self.loading = false;
        self.failure = None;
        self.comparison = Some(comparison);
        self.refresh();
    }

    /// Sorts the rows anew; the selected variant stays selected.
    pub fn refresh(&mut self) {
        let Some(table) = &self.comparison else { return };
        let kept = self.rows.get(self.list.selected).copied();
        let key = |i: usize| -> f64 {
            let m = &table.rows[i].measurement;
            match self.order {
                Order::Given => -1.0,
                Order::Latency => m.latency_ms.as_ref().map_or(f64::INFINITY, |l| l.p50),
                Order::Size => m.file_bytes as f64,
                Order::Memory => m.peak_rss_bytes.map_or(f64::INFINITY, |b| b as f64),
                Order::Quality => m
                    .quality
                    .as_ref()
                    .map_or(f64::INFINITY, |q| if q.higher_is_better { -q.value } else { q.value }),
            }
        };
        let mut rows: Vec<usize> = (0..table.rows.len()).collect();
        rows.sort_by(|a, b| key(*a).total_cmp(&key(*b)).then(a.cmp(b)));
        if self.reverse {
            rows.reverse();
        }
        self.rows = rows;
        if let Some(at) = kept.and_then(|k| self.rows.iter().position(|r| *r == k)) {
            self.list.selected = at;
        }
        self.list.clamp(self.rows.len());
    }

    /// The selected variant.
    pub fn selected(&self) -> Option<&Row> {
        self.comparison.as_ref()?.rows.get(*self.rows.get(self.list.selected)?)
    }

    /// Index of the baseline among the measurements: the chosen one, else `original`, else the first.
    pub fn baseline_index(&self) -> usize {
        let chosen = self.baseline.as_ref().and_then(|(variant, hash)| {
            self.measurements.iter().position(|m| m.variant == *variant && m.model_sha256 == *hash)
        });
        chosen.or_else(|| self.measurements.iter().position(|m| m.variant == "original")).unwrap_or(0)
    }
}

/// The measurements to compare now: of the marked runs; else of the runs on the model in front; else of
/// the runs on the model that was measured last. A later measurement of one subject replaces an earlier.
pub fn gather(app: &App) -> (Source, Vec<Measurement>) {
    let runs = &app.runs;
    let mut jobs: Vec<_> = runs.jobs.iter().filter(|j| !j.state.measurements.is_empty()).collect();
    jobs.sort_by_key(|j| j.state.updated_ms);
    let source = if jobs.iter().any(|j| runs.marks.contains(&j.id)) {
        jobs.retain(|j| runs.marks.contains(&j.id));
        Source::Marked(jobs.len())
    } else if let Some(last) = jobs.last() {
        let model = match &app.model.path {
            Some(open) if jobs.iter().any(|j| j.model == *open) => open.clone(),
            _ => last.model.clone(),
        };
        jobs.retain(|j| j.model == model);
        Source::Model(model)
    } else {
        Source::None
    };
    let mut out: Vec<Measurement> = Vec::new();
    for m in jobs.iter().flat_map(|j| &j.state.measurements) {
        match out.iter_mut().find(|o| o.same_subject(m)) {
            Some(earlier) => *earlier = m.clone(),
            None => out.push(m.clone()),
        }
    }
    tell_apart(&mut out);
    (source, out)
}

/// Median latency of the model in front on this machine, as it was measured last.
pub fn measured_ms(app: &App) -> Option<f64> {
    let model = app.model.path.as_ref()?;
    let jobs = app.runs.jobs.iter().filter(|j| j.model == *model);
    let all = jobs.flat_map(|j| j.state.measurements.iter().map(move |m| (j.state.updated_ms, m)));
    all.filter(|(_, m)| m.variant == "original" && m.conditions.host == app.machine)
        .filter_map(|(at, m)| Some((at, m.latency_ms.as_ref()?.p50)))
        .max_by_key(|(at, _)| *at)
        .map(|(_, p50)| p50)
}

/// Gives variants of one name a name each: the first keeps it, others add their threads, else their hash.
fn tell_apart(measurements: &mut [Measurement]) {
    for i in 1..measurements.len() {
        let (before, rest) = measurements.split_at_mut(i);
        let m = &mut rest[0];
        let Some(first) = before.iter().find(|b| b.variant == m.variant) else { continue };
        let threads = format!("{}, {} threads", m.variant, m.conditions.threads);
        let other = first.conditions.threads != m.conditions.threads;
        m.variant = if other && !before.iter().any(|b| b.variant == threads) {
            threads
        } else {
            format!("{} #{i} {}", m.variant, &m.model_sha256[..m.model_sha256.floor_char_boundary(6)])
        };
    }
}
