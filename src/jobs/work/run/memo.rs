//! Results of parts of steps that other runs may want again, in the home's cache: by everything that
//! decides about them. What cannot be read or written is computed again.

use super::Context;
use crate::formats;
use crate::graph::Graph;
use crate::monitor::{Level, Monitor};
use crate::passes::Memo;
use crate::save;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

/// What is kept for one step of a run.
pub(super) struct Remembered<'a> {
    directory: PathBuf,
    graph: &'a Graph,
    /// Digest of the graph, which reads all weights: taken once something is asked for.
    digest: OnceLock<Option<String>>,
    /// Data, seed, threads, program and machine.
    conditions: String,
    monitor: &'a dyn Monitor,
}

impl<'a> Remembered<'a> {
    /// For a step on `graph`.
    pub(super) fn of(ctx: &Context<'a>, graph: &'a Graph, conditions: String) -> Remembered<'a> {
        let directory = ctx.paths.cache().join("steps");
        Remembered { directory, graph, digest: OnceLock::new(), conditions, monitor: ctx.monitor }
    }

    /// Where a result is kept; nowhere while the weights cannot be read.
    fn path(&self, what: &str) -> Option<PathBuf> {
        let digest = self.digest.get_or_init(|| formats::digest(self.graph).ok()).as_ref()?;
        let name = save::sha256(format!("{digest}\n{}\n{what}", self.conditions).as_bytes());
        Some(self.directory.join(name))
    }
}

impl Memo for Remembered<'_> {
    fn recall(&self, what: &str) -> Option<Vec<u8>> {
        fs::read(self.path(what)?).ok()
    }

    fn keep(&self, what: &str, result: &[u8]) {
        let Some(path) = self.path(what) else { return };
        if fs::create_dir_all(&self.directory).is_err() || save::bytes(&path, result).is_err() {
            self.monitor.log(Level::Warning, "what was computed could not be kept for other runs");
        }
    }
}
