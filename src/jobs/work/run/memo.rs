//! Results of parts of steps that other runs may want again, in the home's cache: by everything that
//! decides about them. What cannot be read or written is computed again.

use super::resolved::Resolved;
use crate::monitor::{Level, Monitor};
use crate::passes::Memo;
use crate::plan::Step;
use crate::save;
use std::fs;
use std::path::PathBuf;

/// What is kept for one step of a run.
pub(super) struct Remembered<'a> {
    directory: PathBuf,
    /// Model, data, program, machine, seed and the steps before.
    before: String,
    monitor: &'a dyn Monitor,
}

impl<'a> Remembered<'a> {
    /// For the step behind `before`.
    pub(super) fn of(
        directory: PathBuf,
        resolved: &Resolved,
        before: &[Step],
        monitor: &'a dyn Monitor,
    ) -> Remembered<'a> {
        Remembered { directory, before: resolved.identity(before), monitor }
    }

    fn path(&self, what: &str) -> PathBuf {
        self.directory.join(save::sha256(format!("{}\n{what}", self.before).as_bytes()))
    }
}

impl Memo for Remembered<'_> {
    fn recall(&self, what: &str) -> Option<Vec<u8>> {
        fs::read(self.path(what)).ok()
    }

    fn keep(&self, what: &str, result: &[u8]) {
        let kept =
            fs::create_dir_all(&self.directory).is_ok() && save::bytes(&self.path(what), result).is_ok();
        if !kept {
            self.monitor.log(Level::Warning, "what was computed could not be kept for other runs");
        }
    }
}
