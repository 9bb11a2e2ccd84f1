//! What the workbench needs from the rooms above, behind a trait, so that the state can be tested on
//! fixtures and all I/O happens on worker threads.

use super::app::{Control, Job};
use super::map::Ran;
use super::plan::Ranked;
use super::quantised::Quantised;
use crate::analysis::Summary;
use crate::analysis::diff::Diff;
use crate::compare::Comparison;
use crate::error::Result;
use crate::evaluate::generate::Generated;
use crate::evaluate::measurement::Measurement;
use crate::passes::prune::Criterion;
use crate::plan::study::{Forecast, Question, Study};
use crate::plan::{DataSpec, Goal, Recipe};
use crate::tensor::Distribution;
use std::path::{Path, PathBuf};

/// The rooms above, as the workbench uses them. Every call may block; none is made on the UI thread but
/// [`Backend::clock`].
pub trait Backend: Send + Sync + 'static {
    /// Facts about a model file. A later call ends an earlier one that is still under way.
    fn analyse(&self, path: &Path) -> Result<Summary>;
    /// What the elements of one weight of a model file are like.
    fn weight(&self, path: &Path, name: &str) -> Result<Distribution>;
    /// What changed between two model files.
    fn diff(&self, before: &Path, after: &Path) -> Result<Diff>;
    /// Reads a model for the map of what pruning can take, its units scored by a criterion that looks at no
    /// data; `tell` gets phase, units done and in all. A request of a higher number ends it, and
    /// [`Backend::end_study`].
    fn study(
        &self,
        generation: u64,
        path: &Path,
        criterion: Criterion,
        tell: &(dyn Fn(&str, u64, Option<u64>) + Sync),
    ) -> Result<Study>;
    /// Lets go what [`Backend::study`] reads or has read on requests up to this number.
    fn end_study(&self, generation: u64);
    /// What a cut of the model that was read last would bring.
    fn foresee(&self, question: &Question) -> Result<Forecast>;
    /// What the pruning steps of a job told.
    fn ran(&self, job: &str) -> Result<Vec<Ran>>;
    /// What the quantise step of a job told, where it has come so far.
    fn quantised(&self, job: &str) -> Result<Option<Quantised>>;
    /// Names of device profiles, this machine first.
    fn devices(&self) -> Result<Vec<String>>;
    /// Ranked recipes for the device of the goal. `measured_ms` is the median latency of the model on this
    /// machine, where it was measured.
    fn recommend(
        &self,
        summary: &Summary,
        path: &Path,
        goal: &Goal,
        data: &DataSpec,
        measured_ms: Option<f64>,
    ) -> Result<Ranked>;
    /// Variants against the one at `baseline`.
    fn compare(&self, measurements: &[Measurement], baseline: usize, goal: &Goal) -> Result<Comparison>;
    /// What a language model says to a prompt, at most `most` tokens, the most likely ones; `piece` gets
    /// the text as it comes, and its error ends the model.
    fn say(
        &self,
        model: &Path,
        prompt: &str,
        most: usize,
        piece: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<Generated>;
    /// Queues a job and starts it when its turn comes; returns its id.
    fn submit(&self, recipe: &Recipe) -> Result<String>;
    /// Asks something of a job.
    fn control(&self, id: &str, control: Control) -> Result<()>;
    /// A look at all jobs that goes on.
    fn watch(&self) -> Box<dyn Watch>;
    /// Model files for the open dialog: recent and nearby ones where nothing is typed, else completions.
    fn find_models(&self, typed: &str) -> Vec<String>;
    /// A model was opened.
    fn remember(&self, path: &Path);
    /// Writes a file into the current directory under a name that is free; returns its path.
    fn export(&self, name: &str, text: &str) -> Result<PathBuf>;
    /// Whether jobs cannot be written.
    fn read_only(&self) -> bool;
    /// Name of this machine.
    fn machine(&self) -> String;
    /// Wall clock, ms since 1970.
    fn clock(&self) -> u64;
}

/// A look at all jobs that goes on.
pub trait Watch: Send {
    /// All jobs, if anything changed since the last look.
    fn poll(&mut self) -> Option<Vec<Job>>;
}
