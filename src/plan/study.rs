//! A model looked at for pruning: a path enters, its coupling groups with importance leave; settings enter
//! as often as one likes, and what a `prune` step with them would keep and bring leaves. The model is
//! opened in a child process, which stays to answer, because files are of unknown origin and their
//! weights are read. Nothing is cut here.

mod serve;

pub use serve::handlers;

use super::cost::DeviceFacts;
use crate::child::{Child, Limits};
use crate::error::{Error, Result};
use crate::graph::coupling::Kind;
use crate::monitor::Monitor;
use crate::passes::prune::{Criterion, Curve, Settings, Steps};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// Address space of the child beyond what the program maps at its start.
const MEMORY: u64 = 8 << 30;
/// Time for opening and scoring a model.
const OPEN: Duration = Duration::from_secs(1800);
/// Time for one answer.
const ANSWER: Duration = Duration::from_secs(60);

/// Scores of a group's units in brief.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// From the least to the largest, at even parts of the units.
    pub quantiles: Vec<f64>,
    /// Mean over the units.
    pub mean: f64,
}

/// A coupling group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StudyGroup {
    /// Position among the groups, as `inspect` and reports number them.
    pub id: usize,
    /// What its units are.
    pub kind: Kind,
    /// Units.
    pub units: usize,
    /// Nodes that read its weights: the first few and the last.
    pub nodes: Vec<String>,
    /// How many nodes that are.
    pub readers: usize,
    /// Parameters that leave with the first unit.
    pub parameters_per_unit: u64,
    /// Multiply-accumulates that leave with the first unit; none where they cannot be told.
    pub macs_per_unit: Option<u64>,
    /// Why no settings let it shrink.
    pub never: Option<String>,
    /// Scores of its units, where it can shrink.
    pub scores: Option<Scores>,
}

/// A model as the map of its groups shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Study {
    /// What the scores are.
    pub criterion: Criterion,
    /// All groups, in the order in which nodes first read them.
    pub groups: Vec<StudyGroup>,
    /// Parameters.
    pub parameters: u64,
    /// Multiply-accumulates of one inference, of the nodes that could be counted.
    pub macs: u64,
    /// Nodes whose multiply-accumulates are not known.
    pub macs_unknown: usize,
    /// Bytes of the weights as the graph holds them.
    pub weight_bytes: u64,
    /// Bytes of the file and external data.
    pub file_bytes: u64,
    /// Format of the file: `onnx`, `safetensors`, `gguf`.
    pub format: String,
    /// Why nothing can be pruned, if so.
    pub refusal: Option<String>,
}

/// What is asked of a study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// Settings of the step; none of them need say how much.
    pub settings: Settings,
    /// By group, curves that a run measured, for `scope = "sensitivity"`.
    pub curves: Vec<Option<Curve>>,
    /// Where the time of an inference is predicted for.
    pub device: Option<DeviceFacts>,
}

/// What a step would bring.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// By group: units that stay.
    pub kept: Vec<usize>,
    /// By group: why it stays whole, where it does.
    pub stays: Vec<Option<String>>,
    /// By group: the numbers of units that it may keep, where it may shrink.
    pub steps: Vec<Option<Steps>>,
    /// Parameters that are left.
    pub parameters: u64,
    /// Parameters that `ratio` is a part of.
    pub whole_parameters: u64,
    /// Multiply-accumulates that are left.
    pub macs: u64,
    /// Bytes of the weights that are left, as the graph holds them.
    pub weight_bytes: u64,
    /// Bytes of the variant's file.
    pub file_bytes: u64,
    /// Time of an inference by the roofline of the device in milliseconds, before and after; none without
    /// a device or where too little of the model can be counted.
    pub roofline_ms: Option<(f64, f64)>,
    /// Whether a run would keep exactly these numbers of units.
    pub exact: bool,
    /// For groups that the settings name by number: a name that means them alone.
    pub addresses: BTreeMap<usize, String>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Bytes of the path, which need not be UTF-8.
    Open(Vec<u8>, Criterion),
    Ask(Box<Question>),
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    Study(Box<Study>),
    Forecast(Box<Forecast>),
}

/// A model that is open for questions. Dropping it ends the child.
pub struct Session {
    child: Child,
}

impl Session {
    /// Opens a model file or checkpoint and scores its units; `criterion` looks at no data. `monitor` is
    /// told how far the reading is and may end it.
    ///
    /// # Errors
    /// Those of reading the model; `Died` where the child died on it; `Stopped`.
    pub fn open(path: &Path, criterion: Criterion, monitor: &dyn Monitor) -> Result<(Session, Study)> {
        let path = std::path::absolute(path).map_err(|e| Error::io("find the model", path, e))?;
        let limits = Limits { memory: Some(MEMORY), reply: 256 << 20, ..Limits::within(OPEN) };
        let mut child = Child::start(serve::KIND, &limits)?;
        let request = Request::Open(path.as_os_str().as_bytes().to_vec(), criterion);
        let reply = child.ask(&request, monitor, &mut |_| Ok(())).map_err(|e: Error| e.file(&path))?;
        child.set_wall(ANSWER);
        match reply {
            Reply::Study(study) => Ok((Session { child }, *study)),
            Reply::Forecast(_) => Err(unexpected()),
        }
    }

    /// What a step would bring.
    ///
    /// # Errors
    /// Those of the pass for settings that cannot be met. After `Died`, `Limit` or `Stopped` the session
    /// is gone.
    pub fn ask(&mut self, question: &Question, monitor: &dyn Monitor) -> Result<Forecast> {
        let request = Request::Ask(Box::new(question.clone()));
        match self.child.ask(&request, monitor, &mut |_| Ok(()))? {
            Reply::Forecast(forecast) => Ok(*forecast),
            Reply::Study(_) => Err(unexpected()),
        }
    }
}

fn unexpected() -> Error {
    Error::internal("STUDY-REPLY", "unexpected answer of a child process").hint("report this as a bug")
}
