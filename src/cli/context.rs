//! What every command gets: paths, format, colours, seed, and the only ways to write.

use super::{FormatName, Global, When};
use crate::config::{Paths, Settings};
use crate::error::{Error, Result};
use crate::report::{Format, Present, Report};
use crate::text::clean;
use std::io::{IsTerminal, Write};

/// The checked global flags.
pub(super) struct Context {
    pub(super) paths: Paths,
    pub(super) settings: Settings,
    pub(super) format: Format,
    pub(super) quiet: bool,
    pub(super) seed: u64,
    /// The seed, where one was given.
    pub(super) seed_given: Option<u64>,
    threads: Vec<usize>,
    /// Progress on stderr may move the cursor.
    pub(super) live: bool,
}

impl Context {
    pub(super) fn new(global: &Global) -> Result<Context> {
        let paths = Paths::resolve(global.home.as_deref())?;
        let settings = Settings::load(&paths.settings())?;
        Ok(Context {
            settings,
            paths,
            format: match global.format {
                FormatName::Text => Format::Text,
                FormatName::Json => Format::Json,
                FormatName::Jsonl => Format::Jsonl,
                FormatName::Csv => Format::Csv,
                FormatName::Md => Format::Md,
            },
            quiet: global.quiet,
            seed: global.seed.unwrap_or(0),
            seed_given: global.seed,
            threads: global.threads.iter().map(|t| usize::from(*t)).collect(),
            live: std::io::stderr().is_terminal() && !dumb(),
        })
    }

    /// The one thread count, where one was given.
    pub(super) fn threads(&self) -> Result<Option<usize>> {
        match self.threads.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(*one)),
            many => Err(Error::usage("THREADS", "this command takes one thread count")
                .found(format!("{many:?}"))
                .hint("only `bench` takes a list")),
        }
    }

    /// All thread counts given.
    pub(super) fn thread_list(&self) -> &[usize] {
        &self.threads
    }

    /// Writes a result to stdout in the chosen format.
    pub(super) fn show(&self, subject: &(impl Present + ?Sized)) -> anyhow::Result<()> {
        self.print(&subject.report()?)
    }

    /// Writes a report to stdout in the chosen format.
    pub(super) fn print(&self, report: &Report) -> anyhow::Result<()> {
        self.write(&report.render(self.format, width()))
    }

    /// Writes text to stdout as it is.
    pub(super) fn write(&self, text: &str) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        Ok(())
    }

    /// A line for people on stderr; nothing under `--quiet`. A closed stderr is no failure.
    pub(super) fn note(&self, line: &str) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr().lock(), "{}", clean(line, usize::MAX));
        }
    }
}

fn dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|t| t.is_empty() || t == "dumb")
}

/// Columns of the terminal behind stdout; none where there is no terminal.
fn width() -> Option<usize> {
    let out = std::io::stdout();
    if !out.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&out).ok()?;
    (size.ws_col >= 20).then_some(usize::from(size.ws_col))
}

/// Whether stderr gets colours: `auto` means a terminal that is not dumb, without `NO_COLOR`.
pub(super) fn color_on_stderr(when: When) -> bool {
    match when {
        When::Always => true,
        When::Never => false,
        When::Auto => {
            let refused = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
            !refused && !dumb() && std::io::stderr().is_terminal()
        }
    }
}
