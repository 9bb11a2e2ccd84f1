//! Where an inference on ONNX Runtime spends its time, node by node, in a child process.

use super::subject::{Answer, Bound, Question};
use super::{MeasureOptions, check};
use crate::child::{Child, Limits};
use crate::error::{Error, Result};
use crate::hardware::Machine;
use crate::monitor::Monitor;
use crate::runtime::{OpTime, SessionOptions};
use std::path::Path;

/// Times of the nodes of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Runs.
    pub runs: u64,
    /// Median time of a run in milliseconds, the profiler's own share included.
    pub run_ms: f64,
    /// Nodes as the library rewrote them, slowest first.
    pub nodes: Vec<OpTime>,
}

/// Runs `model` for `options.seconds` with every node timed, on random inputs. Rounds, data and tolerance
/// of `options` do not matter.
///
/// # Errors
/// `Usage` for options that cannot hold and shapes that are open; those of loading and running the model;
/// `Stopped` when asked.
pub fn profile(model: &Path, options: &MeasureOptions, monitor: &dyn Monitor) -> Result<Profile> {
    check(options)?;
    let machine = Machine::detect();
    let settings = options.settings(None);
    let cpus = options.cpus(&settings, &machine);
    let work = tempfile::tempdir()
        .map_err(|e| Error::io("create a directory for the profile", std::env::temp_dir(), e))?;
    let limits = Limits { memory: options.memory, wall: options.wall, ..Limits::default() };
    monitor.phase("load the model to time its nodes", None);
    let mut child = Child::start("evaluate.measure", &limits)?;
    let session = SessionOptions { cpus, profile: Some(work.path().join("profile")), ..settings.options() };
    let model = Bound::of(model, session, options);
    let question = Question::Profile { model, budget_ms: options.seconds * 1e3 };
    let answer = child.ask(&question, monitor, &mut |_| Ok(()))?;
    child.finish();
    match answer {
        Answer::Profile { runs, run_ms, nodes } => Ok(Profile { runs, run_ms, nodes }),
        _ => Err(Error::internal("MEASURE-ANSWER", "a child gave another answer than asked for")),
    }
}
