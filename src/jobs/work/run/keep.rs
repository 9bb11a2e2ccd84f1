//! Checkpoints inside a step, beside those of whole steps. They go once the step is whole.

use super::{Context, resolved};
use crate::error::{Error, Result};
use crate::jobs::checkpoint::Checkpoints;
use crate::monitor::{Level, Monitor};
use crate::passes::Keep;
use std::fs;
use std::path::{Path, PathBuf};

/// What is kept inside one step.
pub(super) struct Inside<'a> {
    checkpoints: Checkpoints,
    monitor: &'a dyn Monitor,
    job: &'a Path,
    step: u64,
}

impl<'a> Inside<'a> {
    /// Of the step with this number.
    pub(super) fn of(ctx: &Context<'a>, step: u64) -> Result<Inside<'a>> {
        let checkpoints = ctx.checkpoints.inside(step)?;
        Ok(Inside { checkpoints, monitor: ctx.monitor, job: &ctx.job.dir, step })
    }

    /// Removes all; what stays behind is never read again.
    pub(super) fn clear(&self) {
        let _ = fs::remove_dir_all(self.checkpoints.root());
    }
}

impl Keep for Inside<'_> {
    fn save(&self, step: u64, fill: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()> {
        let root = self.checkpoints.root();
        fs::create_dir_all(root).map_err(|e| Error::io("make the directory", root, e))?;
        self.checkpoints.save(step, fill).map(drop)
    }

    fn newest(&self) -> Option<(u64, PathBuf)> {
        let found = self.checkpoints.newest_valid(|w| self.monitor.log(Level::Warning, &w))?;
        Some((found.step, found.dir))
    }

    fn settled(&self, name: &str) -> Result<Option<f64>> {
        resolved::settled(self.job, &format!("{}.{name}", self.step))
    }

    fn settle(&self, name: &str, value: f64) -> Result<()> {
        resolved::settle(self.job, &format!("{}.{name}", self.step), value)
    }
}
