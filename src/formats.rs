//! Readers and writers of model files, the only code that sees untrusted bytes. A path enters and a
//! graph with facts about its files leaves, or the other way round. Knows no pass and no face.

pub mod about;
pub mod architecture;
mod beneath;
pub mod checkpoint;
pub mod detect;
pub mod generation;
mod gguf;
pub mod json;
pub mod limits;
pub mod metadata;
pub mod onnx;
mod safetensors;
pub mod tokenizer;
mod weights;

pub use about::About;
pub use checkpoint::{Checkpoint, Stored};
pub use limits::Limits;
pub use tokenizer::Tokenizer;

use crate::error::{Error, Kind, Result};
use crate::graph::Graph;
use crate::monitor::{Monitor, Silent};
use crate::tensor::SourceFile;
use detect::Content;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A model that was read.
#[derive(Debug)]
pub struct Opened {
    /// The graph. Large weights stay in the file until they are asked for.
    pub graph: Graph,
    /// What the files tell beside it.
    pub facts: FileFacts,
}

/// Facts about the files of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct FileFacts {
    /// The model file.
    pub path: PathBuf,
    /// Format: `onnx`, `safetensors` or `gguf`.
    pub format: &'static str,
    /// Bytes of the model file.
    pub file_bytes: u64,
    /// External data files with their sizes.
    pub external: Vec<(PathBuf, u64)>,
    /// What could not be carried or looks wrong, for people.
    pub warnings: Vec<String>,
}

impl FileFacts {
    /// Bytes of the model file and its external data.
    pub fn total_bytes(&self) -> u64 {
        self.external.iter().fold(self.file_bytes, |sum, (_, n)| sum.saturating_add(*n))
    }
}

/// Opens a model file of any format that this version reads, by content, within the limits of the
/// environment.
///
/// # Errors
/// `Invalid` for what is no model or a damaged one, `Unsupported` for formats and features that are not
/// read, `Limit` where a budget does not suffice, `Integrity` where the file changes meanwhile.
pub fn load(path: &Path) -> Result<Opened> {
    load_with(path, &Limits::from_env()?)
}

/// [`load`] with limits.
pub fn load_with(path: &Path, limits: &Limits) -> Result<Opened> {
    load_for(path, limits, &architecture::Options::default())
}

/// [`load`] with limits and with what the graph of a checkpoint is built for.
pub fn load_for(path: &Path, limits: &Limits, options: &architecture::Options) -> Result<Opened> {
    if path.is_dir() {
        return built(&checkpoint(path, limits)?, options);
    }
    let file = open(path)?;
    match content(&file)? {
        Content::Safetensors | Content::Gguf => return built(&checkpoint(path, limits)?, options),
        // An index of several files of weights.
        Content::Other(detect::Other::Json) => return built(&checkpoint(path, limits)?, options),
        Content::Other(what) => return Err(detect::refuse(path, what)),
        Content::Onnx | Content::Unknown => {}
    }
    let imported = match onnx::import::read(&file, limits) {
        // Damaged first bytes hide what the name still says.
        Err(_) if weights::named(path) => return built(&checkpoint(path, limits)?, options),
        read => read.map_err(|e| e.file(path))?,
    };
    Ok(Opened {
        graph: imported.graph,
        facts: FileFacts {
            path: path.to_path_buf(),
            format: "onnx",
            file_bytes: file.len(),
            external: imported.external,
            warnings: imported.warnings,
        },
    })
}

/// Opens the weights of a model: a safetensors or GGUF file, an index of several safetensors files, or
/// the directory that holds one of these with its `config.json`. Only headers are read.
///
/// # Errors
/// `Invalid` for what is no checkpoint or a damaged one, `Unsupported` for formats and element types that
/// are not read, `Limit` where a budget does not suffice, `Integrity` where a file changes meanwhile.
pub fn checkpoint(path: &Path, limits: &Limits) -> Result<Checkpoint> {
    weights::open(path, limits)
}

/// Whether a path holds weights without a graph, judged by content; only the first bytes are read.
///
/// # Errors
/// Storage errors, and `Invalid` for what is no regular file.
pub fn is_checkpoint(path: &Path) -> Result<bool> {
    if path.is_dir() {
        return Ok(true);
    }
    let checkpoints = [Content::Safetensors, Content::Gguf, Content::Other(detect::Other::Json)];
    Ok(checkpoints.contains(&content(&*open(path)?)?))
}

/// The graph of a checkpoint.
fn built(checkpoint: &Checkpoint, options: &architecture::Options) -> Result<Opened> {
    let built = architecture::build(checkpoint, options)?;
    let (path, file_bytes) = checkpoint.files.first().cloned().unwrap_or((checkpoint.path.clone(), 0));
    Ok(Opened {
        graph: built.graph,
        facts: FileFacts {
            path: if checkpoint.path.is_dir() { checkpoint.path.clone() } else { path },
            format: checkpoint.format,
            file_bytes,
            external: checkpoint.files.iter().skip(1).cloned().collect(),
            warnings: checkpoint.warnings.iter().cloned().chain(built.warnings).collect(),
        },
    })
}

/// What a file is, by its first bytes.
fn content(file: &SourceFile) -> Result<Content> {
    let mut head = [0u8; detect::HEAD];
    let n = usize::try_from(file.len()).unwrap_or(usize::MAX).min(head.len());
    let head = head.get_mut(..n).unwrap_or_default();
    file.read_exact_at(0, head)?;
    Ok(detect::detect(head))
}

fn open(path: &Path) -> Result<Arc<SourceFile>> {
    SourceFile::open(path).map_err(|e| {
        let not_a_file = std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir());
        if e.kind() == Kind::Storage && not_a_file {
            return Error::invalid("FILE-TYPE", "a regular file is needed")
                .file(path)
                .found("a socket or a pipe")
                .hint("pass the path of the model file itself");
        }
        e
    })
}

/// Where large tensors go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum External {
    /// Into the model file as long as it stays below 1.9 GB, else beside it.
    #[default]
    Auto,
    /// Into a file beside the model.
    Always,
    /// Into the model file, or not at all.
    Never,
}

/// How [`save_with`] writes.
#[derive(Clone, Copy)]
pub struct SaveOptions<'a> {
    /// Where large tensors go.
    pub external: External,
    /// Asked before every large tensor whether to stop.
    pub monitor: &'a dyn Monitor,
}

impl Default for SaveOptions<'_> {
    fn default() -> Self {
        SaveOptions { external: External::Auto, monitor: &Silent }
    }
}

/// Files that were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The model file.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: u64,
    /// External data file and its bytes.
    pub data: Option<(PathBuf, u64)>,
}

impl Saved {
    /// Bytes of all files.
    pub fn total_bytes(&self) -> u64 {
        self.bytes + self.data.as_ref().map_or(0, |(_, n)| *n)
    }
}

/// Writes a graph as ONNX, all or nothing, tensor by tensor. The path may be that of the file which the
/// graph was read from: it is replaced by a rename, and open regions go on reading the old one.
///
/// # Errors
/// Storage errors; `Integrity` where a file that still holds tensors has changed; `Stopped` on request.
pub fn save(graph: &Graph, path: &Path) -> Result<Saved> {
    save_with(graph, path, &SaveOptions::default())
}

/// [`save`] with options.
pub fn save_with(graph: &Graph, path: &Path, options: &SaveOptions<'_>) -> Result<Saved> {
    onnx::export::write(graph, path, options).map_err(|e| e.file(path))
}

/// The graph as an ONNX file in memory, for models that fit there twice.
pub fn encode(graph: &Graph) -> Result<Vec<u8>> {
    onnx::export::encode(graph)
}

/// SHA-256 in hexadecimal of everything that [`save`] would write, whatever way it is stored.
pub fn digest(graph: &Graph) -> Result<String> {
    onnx::export::digest(graph)
}
