//! One inference on ONNX Runtime kept as files, in a child process: what a deployed model is checked with.

use super::subject::{Answer, Bound, Question};
use super::{MeasureOptions, check};
use crate::child::{Child, Limits};
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::runtime::{SessionOptions, SessionSettings};
use crate::tensor::DType;
use std::path::Path;

/// A tensor as a file of its elements, little-endian, outermost axis first, booleans as bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedPort {
    /// Name of the input or output.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
    /// File below the directory.
    pub file: String,
}

/// An inference.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// Version of the library.
    pub runtime: String,
    /// Random inputs of the seed of the options.
    pub inputs: Vec<RecordedPort>,
    /// Outputs; those of strings are left out.
    pub outputs: Vec<RecordedPort>,
}

/// Runs `model` once in a session with `settings`, on random inputs of the shapes that `options` state, and
/// writes inputs and outputs below `directory`.
///
/// # Errors
/// `Usage` for shapes that are open; those of loading and running the model, and of writing.
pub fn record(
    model: &Path,
    settings: &SessionSettings,
    options: &MeasureOptions,
    directory: &Path,
    monitor: &dyn Monitor,
) -> Result<Recorded> {
    check(options)?;
    let limits = Limits { memory: options.memory, wall: options.wall, ..Limits::default() };
    let mut child = Child::start("evaluate.measure", &limits)?;
    let session = SessionOptions { ..settings.options() };
    let question =
        Question::Record { model: Bound::of(model, session, options), directory: directory.to_path_buf() };
    let answer = child.ask(&question, monitor, &mut |_| Ok(()))?;
    child.finish();
    let ports = |side: &str, all: Vec<(String, DType, Vec<usize>)>| -> Vec<RecordedPort> {
        let port = |(index, (name, dtype, shape))| RecordedPort {
            name,
            dtype,
            shape,
            file: format!("{side}/{index}"),
        };
        all.into_iter().enumerate().map(port).collect()
    };
    match answer {
        Answer::Recorded { runtime, inputs, outputs } => {
            Ok(Recorded { runtime, inputs: ports("inputs", inputs), outputs: ports("outputs", outputs) })
        }
        _ => Err(Error::internal("MEASURE-ANSWER", "a child gave another answer than asked for")),
    }
}
