//! The seam between the worker and what it computes. A request enters; [`Work`] leaves, which reports
//! through its [`Context`] and knows nothing of locks, signals or restarts.

use super::checkpoint::{Checkpoint, Checkpoints};
use super::lock::{self, Activity, Guard};
use super::reporter::JobMonitor;
use super::request::Request;
use super::store::{JobHandle, JobInfo};
use crate::config::Paths;
use crate::error::Result;
use crate::monitor::{Level, Monitor};

mod measure;
mod run;
mod serialize;
#[cfg(debug_assertions)]
pub mod trial;
mod tune;

/// What a job computes. It may be started several times over: after a stop or a crash it is given the
/// newest whole checkpoint and must end with the same artefacts, bit for bit.
pub trait Work: Send {
    /// Runs to the end, or until the monitor asks to stop (kind `Stopped`).
    fn run(&mut self, ctx: &Context<'_>) -> Result<()>;
}

/// What work may use.
pub struct Context<'a> {
    /// The job.
    pub job: &'a JobHandle,
    /// What is known about it.
    pub info: &'a JobInfo,
    /// The house's directories.
    pub paths: &'a Paths,
    /// Where to report.
    pub monitor: &'a JobMonitor,
    /// Where to save.
    pub checkpoints: &'a Checkpoints,
    /// Where to go on from.
    pub done: Option<&'a Checkpoint>,
}

impl Context<'_> {
    /// Waits until this job may compute or measure; the right lasts until the guard is dropped.
    pub fn begin(&self, activity: Activity) -> Result<Guard> {
        let what = match activity {
            Activity::Computing => "waiting until a measurement of another job has ended",
            Activity::Measuring => "waiting until other jobs have stopped computing",
        };
        let waiting = || self.monitor.log(Level::Info, what);
        lock::activity(self.paths, activity, || self.monitor.check(), waiting)
    }

    /// First step that is still to be computed.
    pub fn first_step(&self) -> u64 {
        self.done.map_or(0, |c| c.step + 1)
    }
}

/// The work that answers `request`.
pub(super) fn of(request: &Request) -> Result<Box<dyn Work>> {
    #[cfg(debug_assertions)]
    if let Some(trial) = trial::from_environment()? {
        return Ok(Box::new(trial));
    }
    Ok(match request {
        Request::Run { recipe } => Box::new(run::Run::new(recipe)),
        Request::Measure { models, threads, data, sampling, .. } => Box::new(measure::Measure {
            models: models.clone(),
            threads: threads.clone(),
            data: data.clone(),
            sampling: sampling.clone(),
        }),
        Request::Tune { model, threads, device, sampling } => Box::new(tune::Tune {
            model: model.clone(),
            threads: threads.clone(),
            device: device.clone(),
            sampling: sampling.clone(),
        }),
        Request::Serialize { model, level, ort, data } => Box::new(serialize::Serialized {
            model: model.clone(),
            level: *level,
            ort: *ort,
            data: data.clone(),
        }),
    })
}
