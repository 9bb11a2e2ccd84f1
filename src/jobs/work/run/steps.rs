//! Results of whole steps, kept for other runs that begin with the same steps: a recipe of which a later step was
//! changed computes from there on alone. They lie in the home's cache under a name that says everything they
//! depend on, as further links to the files of checkpoints, so that they take no room while their job is there.

use super::Context;
use crate::jobs::checkpoint::MANIFEST;
use crate::monitor::{Level, Monitor};
use crate::passes;
use crate::plan::Step;
use crate::save;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Most bytes that results of steps take in all; those not used for longest go first.
const MOST: u64 = 4 << 30;
/// Ends the names of results of steps.
const ENDING: &str = "step";
const REPORT: &str = "report.json";
/// Its time tells when a result was used last.
const USED: &str = "used";

/// The results that runs under the same conditions share.
pub(super) struct Earlier<'a> {
    ctx: &'a Context<'a>,
    root: PathBuf,
    /// Model, data, seed, threads, program, machine and target; none where the model has no digest.
    conditions: Option<String>,
}

impl<'a> Earlier<'a> {
    /// Under these conditions, which say everything beside the steps that decides about results.
    pub(super) fn of(ctx: &'a Context<'a>, conditions: Option<String>) -> Earlier<'a> {
        Earlier { ctx, root: ctx.paths.cache().join("steps"), conditions }
    }

    /// Where the result of the last of `steps`, all from the first one on, is kept. Nowhere where one of them goes
    /// by measurements, which are not the same twice.
    fn place(&self, steps: &[Step]) -> Option<PathBuf> {
        let measures = |s: &Step| {
            passes::by_name(&s.pass, &s.settings).map_or(true, |p| p.measures())
                || s.settings.get("tune").and_then(toml::Value::as_bool) == Some(true)
        };
        let conditions = self.conditions.as_ref().filter(|_| !steps.iter().any(measures))?;
        let steps = serde_json::to_string(steps).ok()?;
        let name = save::sha256(format!("{conditions}\n{steps}").as_bytes());
        Some(self.root.join(name).with_extension(ENDING))
    }

    /// Takes what another run made of `steps` as this one's checkpoint and report of the last of them; the
    /// directory of the checkpoint. What is not whole counts as none.
    pub(super) fn take(&self, steps: &[Step]) -> Option<PathBuf> {
        let (place, step) = (self.place(steps)?, steps.last()?);
        let report = fs::read(place.join(REPORT)).ok()?;
        let number = steps.len() as u64 - 1;
        let ctx = self.ctx;
        ctx.monitor.set_step(number);
        ctx.monitor.phase(&format!("{}: take what an earlier run made", step.pass), None);
        let taken = ctx.checkpoints.adopt(number, &place).and_then(|checkpoint| {
            save::bytes(&ctx.job.report_path(steps.len() - 1, &step.pass), &report)?;
            ctx.monitor.checkpoint(number, &checkpoint.dir)?;
            Ok(checkpoint.dir)
        });
        match taken {
            Ok(dir) => {
                let _ = fs::write(place.join(USED), b"");
                let said = format!("step {}, {}: as an earlier run made it", number + 1, step.pass);
                ctx.monitor.log(Level::Info, &said);
                Some(dir)
            }
            Err(e) => {
                let _ = fs::remove_dir_all(&place);
                let said = format!("{} is computed again, what was kept of it is not whole: {e}", step.pass);
                ctx.monitor.log(Level::Warning, &said);
                None
            }
        }
    }

    /// Keeps the result of the last of `steps`, which lies in the checkpoint `dir`. Where the file system has no
    /// links it is not kept.
    pub(super) fn put(&self, steps: &[Step], dir: &Path) {
        let (Some(place), Some(step)) = (self.place(steps), steps.last()) else { return };
        let report = self.ctx.job.report_path(steps.len() - 1, &step.pass);
        if !place.exists() && self.link(dir, &report, &place).is_some() {
            self.evict(MOST);
        }
    }

    fn link(&self, dir: &Path, report: &Path, place: &Path) -> Option<()> {
        fs::create_dir_all(&self.root).ok()?;
        let temp = tempfile::Builder::new().prefix(save::TEMP_PREFIX).tempdir_in(&self.root).ok()?;
        for entry in fs::read_dir(dir).ok()? {
            let entry = entry.ok()?;
            fs::hard_link(entry.path(), temp.path().join(entry.file_name())).ok()?;
        }
        fs::copy(report, temp.path().join(REPORT)).ok()?;
        fs::write(temp.path().join(USED), b"").ok()?;
        fs::rename(temp.path(), place).ok()?;
        let _ = temp.keep();
        Some(())
    }

    /// Removes results until the rest takes no more than `most` bytes.
    fn evict(&self, most: u64) {
        let Ok(entries) = fs::read_dir(&self.root) else { return };
        let kept = |path: &PathBuf| path.extension().is_some_and(|e| e == ENDING);
        let mut all: Vec<(SystemTime, u64, PathBuf)> = entries
            .flatten()
            .map(|e| e.path())
            .filter(kept)
            .map(|path| {
                let used = fs::metadata(path.join(USED)).and_then(|m| m.modified());
                (used.unwrap_or(SystemTime::UNIX_EPOCH), size(&path), path)
            })
            .collect();
        all.sort();
        let mut sum: u64 = all.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in all {
            if sum <= most {
                return;
            }
            let _ = fs::remove_dir_all(path);
            sum -= bytes;
        }
    }
}

/// Bytes of the files of a checkpoint.
fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let of = |e: &fs::DirEntry| e.file_name() != MANIFEST;
    entries.filter(of).filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum()
}
