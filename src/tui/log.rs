//! State of the Log tab: lines of the jobs and of the workbench itself, merged by time.

use super::app::App;
use super::list::List;
use crate::monitor::Level;

/// Lines of the workbench that are kept.
const OWN_LINES: usize = 500;
/// Lines that are shown at most.
const SHOWN_LINES: usize = 5000;
/// Jobs, latest first, whose lines are merged.
const JOBS: usize = 40;

/// Where the lines come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Source {
    /// Everything.
    #[default]
    All,
    /// The run selected on the Runs tab.
    Run,
    /// The workbench.
    Own,
}

impl Source {
    /// The next one.
    pub fn next(self) -> Source {
        match self {
            Source::All => Source::Run,
            Source::Run => Source::Own,
            Source::Own => Source::All,
        }
    }
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Source::All => "all",
            Source::Run => "selected run",
            Source::Own => "workbench",
        }
    }
}

/// A line.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Wall time, ms.
    pub wall_ms: u64,
    /// Weight.
    pub level: Level,
    /// Name of the job, or `workbench`.
    pub source: String,
    /// Text.
    pub message: String,
}

/// The tab.
#[derive(Debug)]
pub struct LogTab {
    own: Vec<Entry>,
    shown: Vec<Entry>,
    /// Selection.
    pub list: List,
    /// Lowest weight that is shown.
    pub level: Level,
    /// Where from.
    pub source: Source,
    /// Wrap long lines.
    pub wrap: bool,
    /// Stay at the newest line.
    pub follow: bool,
    /// Text that lines must contain.
    pub filter: String,
}

impl Default for LogTab {
    fn default() -> LogTab {
        LogTab {
            own: Vec::new(),
            shown: Vec::new(),
            list: List::default(),
            level: Level::Info,
            source: Source::All,
            wrap: false,
            follow: true,
            filter: String::new(),
        }
    }
}

impl LogTab {
    /// Keeps a line of the workbench.
    pub fn note(&mut self, wall_ms: u64, level: Level, message: String) {
        let entry = Entry { wall_ms, level, source: "workbench".into(), message };
        if self.source != Source::Run && entry.level >= self.level && self.passes(&entry) {
            self.shown.push(entry.clone());
        }
        self.own.push(entry);
        if self.own.len() > OWN_LINES {
            self.own.drain(..self.own.len() - OWN_LINES);
        }
        self.settle();
    }

    /// The lines that are shown, oldest first.
    pub fn lines(&self) -> &[Entry] {
        &self.shown
    }

    /// The selected line.
    pub fn current(&self) -> Option<Entry> {
        self.shown.get(self.list.selected).cloned()
    }

    /// How many lines are shown.
    pub fn count(&self) -> usize {
        self.shown.len()
    }

    /// The next lowest weight.
    pub fn next_level(&mut self) {
        self.level = match self.level {
            Level::Info => Level::Warning,
            Level::Warning => Level::Error,
            Level::Error => Level::Info,
        };
    }

    /// Takes over lines gathered by [`gather`].
    pub fn set(&mut self, lines: Vec<Entry>) {
        self.shown = lines;
        self.settle();
    }

    fn settle(&mut self) {
        if self.follow {
            self.list.selected = self.shown.len().saturating_sub(1);
        }
        self.list.clamp(self.shown.len());
    }

    fn passes(&self, entry: &Entry) -> bool {
        if self.filter.is_empty() {
            return true;
        }
        let needle = self.filter.to_lowercase();
        entry.message.to_lowercase().contains(&needle) || entry.source.to_lowercase().contains(&needle)
    }
}

/// Merges the lines that the tab shows.
pub fn gather(app: &App) -> Vec<Entry> {
    let log = &app.log;
    let mut out: Vec<Entry> = Vec::new();
    if log.source != Source::Run {
        out.extend(log.own.iter().filter(|e| e.level >= log.level && log.passes(e)).cloned());
    }
    if log.source != Source::Own {
        let mut jobs: Vec<_> = match log.source {
            Source::Run => app.runs.selected().into_iter().collect(),
            _ => app.runs.jobs.iter().collect(),
        };
        jobs.sort_by_key(|j| std::cmp::Reverse(j.state.updated_ms));
        for job in jobs.into_iter().take(JOBS) {
            for line in job.state.log.iter().filter(|l| l.level >= log.level) {
                let entry = Entry {
                    wall_ms: line.wall_ms,
                    level: line.level,
                    source: job.title().to_string(),
                    message: line.message.clone(),
                };
                if log.passes(&entry) {
                    out.push(entry);
                }
            }
        }
    }
    out.sort_by_key(|e| e.wall_ms);
    if out.len() > SHOWN_LINES {
        out.drain(..out.len() - SHOWN_LINES);
    }
    out
}

/// `12:34:56` of a wall time, UTC.
pub fn clock(wall_ms: u64) -> String {
    let s = wall_ms / 1000 % 86_400;
    format!("{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
}
