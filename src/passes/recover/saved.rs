//! What a training saves on its way.

use super::Course;
use crate::error::{Error, Result};
use crate::execute::train::Trainer;
use crate::monitor::Level;
use crate::passes::Ctx;
use crate::save;
use std::fs;

const COURSE: &str = "course.json";

/// Bytes that [`save`] writes.
pub(super) fn bytes(trainer: &Trainer) -> u64 {
    trainer.state_bytes()
}

/// Saves weights, moments, best weights and the course.
pub(super) fn save(ctx: &Ctx<'_>, trainer: &Trainer, course: &Course) -> Result<()> {
    let Some(keep) = ctx.keep else { return Ok(()) };
    keep.save(course.step, &mut |dir| {
        trainer.save(dir)?;
        save::json(&dir.join(COURSE), course)
    })
}

/// Goes on from the newest that was saved of the same course.
pub(super) fn restore(ctx: &Ctx<'_>, trainer: &mut Trainer, course: &mut Course) -> Result<()> {
    let Some((_, dir)) = ctx.keep.and_then(|k| k.newest()) else { return Ok(()) };
    let path = dir.join(COURSE);
    let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
    let before: Course = serde_json::from_str(&text).map_err(|e| {
        Error::invalid("RECOVER-SAVED", format!("the checkpoint is damaged: {e}")).file(&path)
    })?;
    if !course.continues(&before) {
        ctx.monitor
            .log(Level::Warning, "what an earlier training saved is of another course: it begins anew");
        return Ok(());
    }
    trainer.restore(&dir)?;
    ctx.monitor.log(Level::Info, &format!("training goes on from step {} of {}", before.step, before.steps));
    *course = before;
    Ok(())
}
