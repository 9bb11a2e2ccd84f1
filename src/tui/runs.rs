//! State of the Runs tab: jobs in groups, selection by id, marks, how curves are shown.

use super::app::{Job, Liveness};
use super::list::{List, Scroll};
use super::quantised::Sheets;
use crate::jobs::{JobState, Status};
use crate::units::Span;
use std::collections::BTreeSet;

/// A group of jobs; the word is its heading.
pub const GROUPS: [(&str, &[Status]); 5] = [
    ("running", &[Status::Running]),
    ("waiting", &[Status::Queued]),
    ("paused", &[Status::Paused]),
    ("stopped", &[Status::Failed, Status::Dead, Status::Cancelled]),
    ("finished", &[Status::Finished]),
];

/// What jobs are ordered by within their group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Newest first.
    #[default]
    Newest,
    /// Name.
    Name,
    /// Kind of job.
    Kind,
}

impl Order {
    /// The next one.
    pub fn next(self) -> Order {
        match self {
            Order::Newest => Order::Name,
            Order::Name => Order::Kind,
            Order::Kind => Order::Newest,
        }
    }
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Order::Newest => "newest first",
            Order::Name => "name",
            Order::Kind => "kind",
        }
    }
}

/// The y axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scale {
    /// As it is.
    #[default]
    Linear,
    /// Logarithm of base ten.
    Log,
    /// Divided by the first value.
    Relative,
}

impl Scale {
    /// The next one.
    pub fn next(self) -> Scale {
        match self {
            Scale::Linear => Scale::Log,
            Scale::Log => Scale::Relative,
            Scale::Relative => Scale::Linear,
        }
    }
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Scale::Linear => "linear",
            Scale::Log => "log",
            Scale::Relative => "relative",
        }
    }
}

/// A line of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Heading of a group with its size.
    Heading(&'static str, usize),
    /// A job, by its place in `shown`.
    Job(usize),
}

/// The tab.
#[derive(Debug, Default)]
pub struct RunsTab {
    /// All jobs.
    pub jobs: Vec<Job>,
    /// Rows: indices of jobs in the order of the list.
    pub shown: Vec<usize>,
    /// Selection among them.
    pub list: List,
    /// Id of the selected job, which stays selected when the list changes.
    pub selected_id: Option<String>,
    /// A job that is to be selected as soon as it is listed.
    wanted: Option<String>,
    /// Marked jobs, by id.
    pub marks: BTreeSet<String>,
    /// Text that names must contain.
    pub filter: String,
    /// Order.
    pub order: Order,
    /// Reversed.
    pub reverse: bool,
    /// Curves of all marked runs at once.
    pub overlay: bool,
    /// Y axis.
    pub scale: Scale,
    /// Doublings of the x axis.
    pub zoom: u32,
    /// Read-out: part of the x axis in thousandths.
    pub cursor: Option<u32>,
    /// Position in the facts.
    pub facts: Scroll,
    /// Lines from the end of the log.
    pub tail: Scroll,
    /// Tables of what a quantise step did.
    pub sheets: Sheets,
    /// Jobs were listed at least once.
    pub listed: bool,
}

impl RunsTab {
    /// New states of all jobs.
    pub fn set(&mut self, jobs: Vec<Job>) {
        self.jobs = jobs;
        self.listed = true;
        self.marks.retain(|id| self.jobs.iter().any(|j| j.id == *id));
        self.refresh();
    }

    /// Orders the rows anew; the selected job stays selected.
    pub fn refresh(&mut self) {
        let needle = self.filter.to_lowercase();
        let mut shown = Vec::new();
        for (_, statuses) in GROUPS {
            let mut group: Vec<usize> = (0..self.jobs.len())
                .filter(|i| statuses.contains(&self.jobs[*i].status()))
                .filter(|i| matches(&self.jobs[*i], &needle))
                .collect();
            group.sort_by(|a, b| {
                let (x, y) = (&self.jobs[*a], &self.jobs[*b]);
                let newest = y.state.created_ms.cmp(&x.state.created_ms).then_with(|| y.id.cmp(&x.id));
                let order = match self.order {
                    Order::Newest => newest,
                    Order::Name => super::tree::natural(x.title(), y.title()).then(newest),
                    Order::Kind => x.state.what.cmp(&y.state.what).then(newest),
                };
                if self.reverse { order.reverse() } else { order }
            });
            shown.extend(group);
        }
        self.shown = shown;
        if self.wanted.as_ref().is_some_and(|w| self.shown.iter().any(|i| self.jobs[*i].id == *w)) {
            self.selected_id = self.wanted.take();
        }
        if let Some(id) = &self.selected_id
            && let Some(at) = self.shown.iter().position(|i| self.jobs[*i].id == *id)
        {
            self.list.selected = at;
        }
        self.list.clamp(self.shown.len());
        self.remember();
    }

    /// Notes which job is selected.
    pub fn remember(&mut self) {
        let id = self.selected().map(|j| j.id.clone());
        if id != self.selected_id {
            self.selected_id = id;
            self.facts = Scroll::default();
            self.tail = Scroll::default();
            self.sheets = Sheets { sheet: self.sheets.sheet, ..Sheets::default() };
            self.cursor = None;
            self.zoom = 0;
        }
    }

    /// Selects a job by its id, now or as soon as it is listed.
    pub fn want(&mut self, id: &str) {
        self.wanted = Some(id.to_string());
        self.refresh();
    }

    /// The selected job.
    pub fn selected(&self) -> Option<&Job> {
        self.jobs.get(*self.shown.get(self.list.selected)?)
    }

    /// Lines of the list with their headings, and the line of the selected job.
    pub fn lines(&self) -> (Vec<Line>, usize) {
        let mut lines = Vec::with_capacity(self.shown.len() + GROUPS.len());
        let mut selected = 0;
        let mut row = 0;
        for (word, statuses) in GROUPS {
            let start = row;
            while row < self.shown.len() && statuses.contains(&self.jobs[self.shown[row]].status()) {
                row += 1;
            }
            if row > start {
                lines.push(Line::Heading(word, row - start));
                for at in start..row {
                    if at == self.list.selected {
                        selected = lines.len();
                    }
                    lines.push(Line::Job(at));
                }
            }
        }
        (lines, selected)
    }

    /// How many jobs compute, and how many ended badly.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |f: fn(Status) -> bool| self.jobs.iter().filter(|j| f(j.status())).count();
        (
            count(|s| s == Status::Running),
            count(|s| s == Status::Queued),
            count(|s| matches!(s, Status::Failed | Status::Dead)),
        )
    }

    /// Jobs whose curves are drawn: the marked ones under `overlay`, else the selected one.
    pub fn drawn(&self) -> Vec<&Job> {
        if self.overlay && !self.marks.is_empty() {
            self.jobs.iter().filter(|j| self.marks.contains(&j.id)).collect()
        } else {
            self.selected().into_iter().collect()
        }
    }
}

fn matches(job: &Job, needle: &str) -> bool {
    needle.is_empty()
        || [job.title(), &job.id, &job.state.model, &job.state.what, job.status().word()]
            .iter()
            .any(|t| t.to_lowercase().contains(needle))
}

/// Progress within the phase: `41%`, never 100 before the job has ended well.
pub fn percent(state: &JobState) -> Option<String> {
    let part = if state.status == Status::Finished { 1.0 } else { state.fraction()?.min(0.99) };
    Some(format!("{}%", (part * 100.0) as u32))
}

/// Time left in the phase, once ten units and thirty seconds have passed.
pub fn time_left(state: &JobState) -> Option<Span> {
    let total = state.phase.total?;
    let elapsed = state.updated_mono_ms.saturating_sub(state.phase.since_ms) as f64 / 1e3;
    if state.status != Status::Running || state.phase.done < 10 || elapsed < 30.0 || state.phase.done >= total
    {
        return None;
    }
    Some(Span(elapsed * (total - state.phase.done) as f64 / state.phase.done as f64))
}

/// `41% · 1h 12m left`, `stalled 00:42`, `resume with R · killed`, or the reason of a stop.
pub fn progress(job: &Job) -> String {
    let state = &job.state;
    if let (Status::Running, Liveness::Stalled(s)) = (job.status(), job.liveness) {
        return format!("stalled {:02}:{:02}", s / 60, s % 60);
    }
    match job.status() {
        Status::Dead => match &state.reason {
            Some(cause) => format!("resume with R · {cause}"),
            None => "resume with R".into(),
        },
        Status::Running => match (percent(state), time_left(state)) {
            (Some(p), Some(left)) => format!("{p} · {left} left"),
            (Some(p), None) => p,
            (None, _) if state.phase.done > 0 => format!("{} done", state.phase.done),
            (None, _) => "started".into(),
        },
        Status::Queued => "waits for its turn".into(),
        Status::Finished => elapsed(state).map_or(String::new(), |t| format!("in {t}")),
        Status::Paused | Status::Failed | Status::Cancelled => state.reason.clone().unwrap_or_default(),
    }
}

/// Time from the start of the last try to the last record.
pub fn elapsed(state: &JobState) -> Option<Span> {
    (state.started_mono_ms > 0)
        .then(|| Span(state.updated_mono_ms.saturating_sub(state.started_mono_ms) as f64 / 1e3))
}
