//! Which files make a checkpoint. The path of a file or a directory enters, a [`Checkpoint`] leaves.
//! Content decides what a file is; names only lead from one file of a model to the others.

use super::checkpoint::{Checkpoint, Stored};
use super::detect::{self, Content, Other};
use super::limits::Limits;
use super::metadata::{Fact, Metadata};
use super::safetensors::index::{self, Index};
use super::{gguf, json, safetensors};
use crate::error::{Error, Kind, Result};
use crate::tensor::SourceFile;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Weights in one file.
const SINGLE: &str = "model.safetensors";
/// What the model is.
const CONFIG: &str = "config.json";
/// Entries of a directory that are looked at.
const ENTRIES: usize = 10_000;

/// Opens the weights at `path`.
pub(super) fn open(path: &Path, limits: &Limits) -> Result<Checkpoint> {
    let mut checkpoint = if path.is_dir() { directory(path, limits)? } else { file(path, limits)? };
    if checkpoint.tensors().is_empty() {
        checkpoint.warnings.push("there are no weights in it".to_string());
    }
    Ok(checkpoint)
}

fn directory(path: &Path, limits: &Limits) -> Result<Checkpoint> {
    let single = path.join(SINGLE);
    if exists(&single) {
        return file(&single, limits).map(|c| asked_as(c, path));
    }
    let index = path.join(index::NAME);
    if exists(&index) {
        return file(&index, limits).map(|c| asked_as(c, path));
    }
    let names = names(path)?;
    let ending = |end: &str| -> Vec<&String> { names.iter().filter(|n| n.ends_with(end)).collect() };
    let (ggufs, tensors) = (ending(".gguf"), ending(".safetensors"));
    match (ggufs.as_slice(), tensors.as_slice()) {
        ([one], []) | ([], [one]) => {
            return file(&path.join(one), limits).map(|c| asked_as(c, path));
        }
        ([], []) => {}
        _ => {
            let found: Vec<&str> = ggufs.iter().chain(&tensors).map(|n| n.as_str()).collect();
            return Err(Error::invalid("CHECKPOINT-SEVERAL", "the directory holds several models")
                .file(path)
                .found(found.join(", "))
                .hint("pass the path of one of the files"));
        }
    }
    if let Some(pickle) =
        names.iter().find(|n| n.ends_with(".bin") || n.ends_with(".pt") || n.ends_with(".pth"))
    {
        return Err(Error::unsupported(
            "FORMAT-PICKLE",
            "the weights are a Python pickle, which is never loaded",
        )
        .file(path.join(pickle))
        .hint("convert it to safetensors on a machine that you trust"));
    }
    if let Some(onnx) = names.iter().find(|n| n.ends_with(".onnx")) {
        return Err(Error::invalid("CHECKPOINT-ONNX", "the directory holds an ONNX model")
            .file(path)
            .hint(format!("pass the path of the file itself: {}", path.join(onnx).display())));
    }
    Err(Error::invalid("CHECKPOINT-NONE", "there are no weights in this directory")
        .file(path)
        .found("a directory")
        .limit(format!("{SINGLE}, {}, or one .gguf file", index::NAME))
        .hint("pass the directory that holds the weights"))
}

/// The checkpoint under the path that a person gave.
fn asked_as(mut checkpoint: Checkpoint, path: &Path) -> Checkpoint {
    checkpoint.path = path.to_path_buf();
    checkpoint
}

/// Whether something has this name; a link that leads nowhere has it too.
fn exists(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

/// Whether a file has the name of weights.
pub(super) fn named(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "safetensors" || e == "gguf")
}

/// Whether a file has the name of an index.
fn is_index(path: &Path) -> bool {
    path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.ends_with(".index.json"))
}

/// Names in a directory, sorted.
fn names(path: &Path) -> Result<Vec<String>> {
    let list = std::fs::read_dir(path).map_err(|e| Error::io("list", path, e))?;
    let mut names = Vec::new();
    for entry in list.take(ENTRIES) {
        let entry = entry.map_err(|e| Error::io("list", path, e))?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn file(path: &Path, limits: &Limits) -> Result<Checkpoint> {
    let file = super::open(path)?;
    match super::content(&file)? {
        Content::Gguf => from_gguf(path, &file, limits),
        Content::Safetensors => from_safetensors(path, &file, limits),
        Content::Other(Other::Json) => match Index::read(&file, limits) {
            Ok(index) => from_index(path, &index, limits),
            // Of any other JSON, what it is says more than what is wrong with it.
            Err(e) if e.kind() == Kind::Invalid && !is_index(path) => Err(detect::refuse(path, Other::Json)),
            Err(e) => Err(e),
        },
        // A damaged length hides the format, so the name must speak.
        Content::Unknown | Content::Onnx if path.extension().is_some_and(|e| e == "safetensors") => {
            from_safetensors(path, &file, limits)
        }
        Content::Unknown if path.extension().is_some_and(|e| e == "gguf") => from_gguf(path, &file, limits),
        Content::Other(what) => Err(detect::refuse(path, what)),
        Content::Onnx => {
            Err(Error::invalid("CHECKPOINT-ONNX", "this is an ONNX model, not a checkpoint").file(path))
        }
        Content::Unknown => Err(Error::invalid("FORMAT-UNKNOWN", "this is no model that is known here")
            .file(path)
            .limit("safetensors, GGUF")
            .hint("pass a model file, or the directory that holds config.json and the weights")),
    }
}

fn from_gguf(path: &Path, file: &Arc<SourceFile>, limits: &Limits) -> Result<Checkpoint> {
    let read = gguf::read(file, limits)?;
    let mut checkpoint = Checkpoint::new("gguf", path.to_path_buf(), read.tensors);
    checkpoint.files = vec![(path.to_path_buf(), file.len())];
    checkpoint.metadata = read.metadata;
    checkpoint.warnings = read.warnings;
    Ok(checkpoint)
}

fn from_safetensors(path: &Path, file: &Arc<SourceFile>, limits: &Limits) -> Result<Checkpoint> {
    // One file of several stands for all of them.
    let beside = path.with_file_name(index::NAME);
    if exists(&beside) {
        let index = Index::read(&*SourceFile::open(&beside)?, limits)?;
        if path.file_name().and_then(|n| n.to_str()).is_some_and(|n| index.names(n)) {
            return from_index(&beside, &index, limits).map(|c| asked_as(c, path));
        }
    }
    let read = safetensors::read(file, limits)?;
    finish(path, read, vec![(path.to_path_buf(), file.len())], limits)
}

fn from_index(path: &Path, index: &Index, limits: &Limits) -> Result<Checkpoint> {
    let directory = parent(path);
    let (read, files) = index.load(directory, limits).map_err(|e| e.file(path))?;
    finish(path, read, files, limits)
}

fn finish(
    path: &Path,
    read: safetensors::File,
    files: Vec<(PathBuf, u64)>,
    limits: &Limits,
) -> Result<Checkpoint> {
    let tensors: Vec<Stored> = read.tensors;
    let mut checkpoint = Checkpoint::new("safetensors", path.to_path_buf(), tensors);
    let mut metadata = Metadata::default();
    for (key, value) in read.metadata {
        metadata.insert(&key, Fact::Text(value));
    }
    checkpoint.files = files;
    checkpoint.metadata = metadata;
    checkpoint.warnings = read.warnings;
    checkpoint.config = config(&parent(path).join(CONFIG), limits, &mut checkpoint.warnings)?;
    Ok(checkpoint)
}

/// The configuration beside the weights, if there is one. Hooks for foreign code are named and ignored.
fn config(path: &Path, limits: &Limits, warnings: &mut Vec<String>) -> Result<Option<serde_json::Value>> {
    let Some(value) = json::read_optional_within(path, limits)? else { return Ok(None) };
    let Some(object) = value.as_object() else {
        return Err(Error::invalid("CONFIG", "the configuration must be a JSON object").file(path));
    };
    for hook in ["auto_map", "trust_remote_code", "custom_pipelines"] {
        if object.contains_key(hook) {
            warnings.push(format!("config.json asks for foreign code (\"{hook}\"), which is never run"));
        }
    }
    Ok(Some(value))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
