//! A model as far as it can be read: a path enters, a graph, a checkpoint, or both leave.

use crate::error::{Kind, Result};
use crate::formats::{self, Checkpoint, Limits, Opened, architecture};
use crate::graph::Graph;
use std::path::Path;

/// What was read.
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and it is taken apart at once")]
pub(super) enum Model {
    /// A file that holds a graph.
    Graph(Opened),
    /// Weights with the graph that was built over them, or why there is none.
    Checkpoint {
        /// The weights.
        checkpoint: Checkpoint,
        /// The graph, or what is missing for one.
        graph: std::result::Result<Graph, String>,
        /// What building left out.
        warnings: Vec<String>,
    },
}

impl Model {
    /// The graph, where there is one.
    pub(super) fn graph(&self) -> Option<&Graph> {
        match self {
            Model::Graph(opened) => Some(&opened.graph),
            Model::Checkpoint { graph, .. } => graph.as_ref().ok(),
        }
    }
}

/// Opens a model file, or the directory of a checkpoint. An architecture that is not known leaves the
/// weights to be looked at.
///
/// # Errors
/// Those of the readers; those of the builders but for `Unsupported`.
pub(super) fn open(path: &Path) -> Result<Model> {
    let limits = Limits::from_env()?;
    let checkpoint = match formats::checkpoint(path, &limits) {
        Ok(checkpoint) => checkpoint,
        Err(e) if path.is_dir() => return Err(e),
        Err(_) => return formats::load_with(path, &limits).map(Model::Graph),
    };
    match architecture::build(&checkpoint, &architecture::Options::default()) {
        Ok(built) => Ok(Model::Checkpoint { checkpoint, graph: Ok(built.graph), warnings: built.warnings }),
        Err(e) if e.kind() == Kind::Unsupported => {
            let why = match e.found_text() {
                Some(found) => format!("{} ({found})", e.message()),
                None => e.message().to_string(),
            };
            Ok(Model::Checkpoint { checkpoint, graph: Err(why), warnings: Vec::new() })
        }
        Err(e) => Err(e),
    }
}
