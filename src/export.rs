//! From a model of any format to an ONNX file that a runtime takes: read, weights in half precision where
//! asked, lowered, saved, with the tokenizer and settings beside it; then the file held against the model
//! that it was made from. Both parts work in child processes: the one reads untrusted files, the other
//! loads native code. Knows no job and no face.

mod beside;
mod cache;
pub mod check;

pub use beside::companions;
pub use cache::ready;
pub use check::{Check, Divergence, Verdict};

use crate::child::{self, Handler, Limits as ChildLimits, Link};
use crate::error::{Error, Result};
use crate::formats::architecture::Options;
use crate::formats::{self, Limits};
use crate::graph::Graph;
use crate::monitor::{Level, Monitor};
use crate::passes::PassReport;
use crate::passes::lower::{Target, lower};
use crate::passes::quantize;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

const EXPORT: &str = "export.write";
const CHECK: &str = "export.check";
/// Longest time that either part may take.
const WALL: Duration = Duration::from_secs(3600);

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// As they are; those of checkpoints in f32.
    #[default]
    F32,
    /// In f16, computed in f32.
    F16,
}

/// What is made from a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Model file, or directory of a checkpoint.
    pub model: PathBuf,
    /// What it is made for. Without one, an ONNX file stays as it is and checkpoints are made for ONNX
    /// Runtime.
    pub target: Option<Target>,
    /// How weights are stored.
    pub storage: Storage,
    /// Most positions that a decoder serves.
    pub context: Option<usize>,
}

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exported {
    /// The model file.
    pub path: PathBuf,
    /// Bytes of the model file and its data file.
    pub bytes: u64,
    /// External data file.
    pub data: Option<PathBuf>,
    /// Format that was read.
    pub format: String,
    /// What it was made for; none where it stayed as it was.
    pub target: Option<Target>,
    /// Default operator set of the file.
    pub opset: i64,
    /// Nodes by operator.
    pub operators: BTreeMap<String, usize>,
    /// What lowering did and left alone.
    pub lowered: Option<PassReport>,
    /// Files that were written beside the model.
    pub beside: Vec<PathBuf>,
    /// For people.
    pub warnings: Vec<String>,
}

/// What a child of this program does for this room.
pub fn handlers() -> Vec<Handler> {
    vec![
        Handler::new(EXPORT, |(plan, output): (Plan, PathBuf), link: &Link| write(&plan, &output, link)),
        Handler::new(CHECK, |check: Check, link: &Link| check::run(&check, link)),
    ]
}

/// Writes `output` in a child process.
///
/// # Errors
/// Those of reading, lowering and saving; `Usage` for a context that an ONNX file cannot have.
pub fn export(plan: &Plan, output: &Path, monitor: &dyn Monitor) -> Result<Exported> {
    let request = (Plan { model: absolute(&plan.model)?, ..plan.clone() }, absolute(output)?);
    child::call_watched(EXPORT, &request, &ChildLimits::within(WALL), monitor)
}

/// Holds an exported file against its model, in a child process that may die of the runtime.
///
/// # Errors
/// Those of loading and running either side. Outputs that differ are no error but a [`Verdict`].
pub fn verify(check: &Check, monitor: &dyn Monitor) -> Result<Verdict> {
    let plan = Plan { model: absolute(&check.plan.model)?, ..check.plan.clone() };
    let request = Check { plan, exported: absolute(&check.exported)?, ..check.clone() };
    // The executor's weights go back to the system before the runtime, which has an allocator of its own,
    // loads the same.
    let env = vec![("MIMALLOC_PURGE_DELAY".into(), "0".into())];
    child::call_watched(CHECK, &request, &ChildLimits { env, ..ChildLimits::within(WALL) }, monitor)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Error::io("find", path, e))
}

/// A model as it is read for a plan, before it is lowered.
struct Source {
    graph: Graph,
    target: Option<Target>,
    format: &'static str,
    warnings: Vec<String>,
}

fn read(plan: &Plan) -> Result<Source> {
    let options = Options { context: plan.context };
    let opened = formats::load_for(&plan.model, &Limits::from_env()?, &options)?;
    let onnx = opened.facts.format == "onnx";
    if onnx && plan.context.is_some() {
        return Err(Error::usage("CONTEXT", "the positions of an ONNX file are fixed")
            .file(&plan.model)
            .field("--context")
            .hint("start from the checkpoint that the file was made from"));
    }
    let target = plan.target.or((!onnx).then_some(Target::Ort));
    let mut warnings = opened.facts.warnings;
    let graph = match plan.storage {
        Storage::F32 => opened.graph,
        Storage::F16 => {
            let mut report = PassReport::new("quantize");
            let silent = crate::monitor::Silent;
            let half = quantize::stored_in_half(&opened.graph, quantize::Half::F16, &silent, &mut report)?;
            // Small tensors and tables stay by rule; what the type cannot hold is news.
            let news = report.skipped.into_iter().map(|s| s.reason).filter(|r| r.contains("weight \""));
            warnings.extend(news);
            half
        }
    };
    Ok(Source { graph, target, format: opened.facts.format, warnings })
}

/// Writes `output` in this process.
pub fn write(plan: &Plan, output: &Path, monitor: &dyn Monitor) -> Result<Exported> {
    monitor.phase("read the model", None);
    let Source { mut graph, target, format, mut warnings } = read(plan)?;
    let mut lowered = None;
    if let Some(target) = target {
        monitor.phase(&format!("lower for {}", target.name()), None);
        let (next, report) = lower(&graph, target).map_err(|e| e.file(&plan.model))?;
        graph = next;
        lowered = Some(report);
    }
    monitor.check()?;
    monitor.phase("write", None);
    // What belongs to one model wants a directory of its own, so it is made.
    if let Some(parent) = output.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|e| Error::io("create the directory", parent, e))?;
    }
    let saved = formats::save(&graph, output)?;
    let beside = companions(&plan.model, format, output, &mut warnings)?;
    warnings.iter().for_each(|w| monitor.log(Level::Warning, w));
    let mut operators = BTreeMap::new();
    graph.nodes().iter().for_each(|n| *operators.entry(n.operator_name()).or_insert(0) += 1);
    Ok(Exported {
        bytes: saved.total_bytes(),
        path: saved.path,
        data: saved.data.map(|(path, _)| path),
        format: format.into(),
        target,
        opset: graph.opset("").unwrap_or(0),
        operators,
        lowered,
        beside,
        warnings,
    })
}
