//! What the fuzzer runs, and what `cargo test` replays over the committed corpus. Any bytes enter each
//! target; it must return, without a panic and without an error that says the program is at fault.

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::cell::OnceCell;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tinsmith::error::{Kind, Result};
use tinsmith::formats::architecture::Options;
use tinsmith::formats::tokenizer::Tokenizer;
use tinsmith::formats::{self, Checkpoint, Limits, Opened};
use tinsmith::tensor::{Stats, Tensor};

/// A target: its name, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// Every target by name.
pub const TARGETS: &[Target] = &[
    ("safetensors", safetensors),
    ("safetensors_index", safetensors_index),
    ("gguf", gguf),
    ("onnx", onnx),
    ("config_json", config_json),
    ("tokenizer_json", tokenizer_json),
];

/// Most positions of a decoder. A file may state as many as the limit of the tables allows: half a gigabyte
/// that takes seconds to compute under the sanitizer, rightly.
const CONTEXT: usize = 4096;

/// Tensors that are read, and the most elements of each.
const READ: (usize, usize) = (16, 4096);

/// A safetensors file.
pub fn safetensors(data: &[u8]) {
    in_memory(data, |path| checked(checkpoint(path)));
}

/// A GGUF file, with the graph and the tokenizer that are built from it.
pub fn gguf(data: &[u8]) {
    in_memory(data, |path| {
        if checked(checkpoint(path)).is_some() {
            checked(graph(path));
            checked(tokens(path));
        }
    });
}

/// An ONNX file.
pub fn onnx(data: &[u8]) {
    in_memory(data, |path| checked(graph(path)));
}

/// An index over two files of weights.
pub fn safetensors_index(data: &[u8]) {
    let files = [
        ("a.safetensors", weights(&[("w", 4), ("b", 2)])),
        ("b.safetensors", weights(&[("v", 3)])),
        ("model.safetensors.index.json", data.to_vec()),
    ];
    in_directory(&files, |path| checked(checkpoint(path)));
}

/// A configuration beside the weights of a small model, and the graph that is built from both.
pub fn config_json(data: &[u8]) {
    let files = [("config.json", data.to_vec()), ("model.safetensors", small_llama())];
    in_directory(&files, |path| {
        if checked(checkpoint(path)).is_some() {
            checked(graph(path));
        }
    });
}

/// A tokenizer, and what it makes of some texts.
pub fn tokenizer_json(data: &[u8]) {
    in_directory(&[("tokenizer.json", data.to_vec())], |path| checked(tokens(path)));
}

fn tokens(path: &Path) -> Result<()> {
    let tokenizer = Tokenizer::open_with(path, &Limits::default())?;
    for text in
        ["", "Hello  world, 123 caf\u{e9}!\n", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "\u{1f600} <s>[CLS]"]
    {
        for special in [false, true] {
            if let Some(ids) = checked(tokenizer.encode(text, special)) {
                checked(tokenizer.decode(&ids, special));
            }
        }
    }
    Ok(())
}

fn checkpoint(path: &Path) -> Result<()> {
    let checkpoint: Checkpoint = formats::checkpoint(path, &Limits::default())?;
    for stored in checkpoint.tensors().iter().take(READ.0) {
        assert!(stored.shape.len() <= Limits::default().rank, "axes are limited");
        if let Ok(tensor) = stored.tensor() {
            read(tensor)?;
        }
    }
    Ok(())
}

fn graph(path: &Path) -> Result<()> {
    let options = Options { context: Some(CONTEXT) };
    let opened: Opened = formats::load_for(path, &Limits::default(), &options)?;
    for (_, tensor) in opened.graph.initializers().take(READ.0) {
        read(tensor)?;
    }
    Ok(())
}

fn read(tensor: &Tensor) -> Result<()> {
    if tensor.len() > READ.1 {
        return Ok(());
    }
    tensor.data()?;
    if tensor.dtype().is_float() {
        Stats::of(tensor)?;
        let reversed: Vec<usize> = (0..tensor.shape().len()).rev().collect();
        assert_eq!(tensor.transposed(&reversed).to_f32s()?.len(), tensor.len());
    }
    Ok(())
}

/// The value, where there is one. An error must not say that the program is at fault.
fn checked<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(e) => {
            assert_ne!(e.kind(), Kind::Internal, "{e}");
            assert!(!e.to_string().contains('\u{1b}'), "an error is fit for a terminal");
            None
        }
    }
}

/// Runs `f` on the path of a file in memory that holds `data`.
fn in_memory<T>(data: &[u8], f: impl FnOnce(&Path) -> T) {
    thread_local!(static FILE: OnceCell<File> = const { OnceCell::new() });
    FILE.with(|cell| {
        let file = cell.get_or_init(|| {
            File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("the system has files in memory"))
        });
        ftruncate(file, 0).expect("a file in memory can be emptied");
        file.write_all_at(data, 0).expect("a file in memory can be written");
        f(&PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())));
    });
}

/// Runs `f` on a directory with these files.
fn in_directory<T>(files: &[(&str, Vec<u8>)], f: impl FnOnce(&Path) -> T) {
    thread_local!(static DIR: tempfile::TempDir = directory());
    DIR.with(|dir| {
        for (name, bytes) in files {
            std::fs::write(dir.path().join(name), bytes).expect("a temporary file can be written");
        }
        f(dir.path());
        for (name, _) in files {
            std::fs::remove_file(dir.path().join(name)).expect("a temporary file can be removed");
        }
    });
}

/// A temporary directory, in memory where the system offers that.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

/// A safetensors file of `f32` vectors of zeros.
fn weights(tensors: &[(&str, usize)]) -> Vec<u8> {
    let shapes: Vec<(&str, Vec<usize>)> = tensors.iter().map(|(n, len)| (*n, vec![*len])).collect();
    zeros(&shapes)
}

fn zeros(tensors: &[(&str, Vec<usize>)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let begin = end;
        end += shape.iter().product::<usize>() * 4;
        header.insert(
            name.to_string(),
            serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, end] }),
        );
    }
    let header = serde_json::to_vec(&header).expect("a header is JSON");
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.resize(out.len() + end, 0);
    out
}

/// A decoder of one layer with width 4, two heads and six tokens.
pub fn small_llama() -> Vec<u8> {
    let layer = |part: &str| format!("model.layers.0.{part}.weight");
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_string(), vec![6, 4]),
        ("model.norm.weight".to_string(), vec![4]),
        ("lm_head.weight".to_string(), vec![6, 4]),
        (layer("input_layernorm"), vec![4]),
        (layer("post_attention_layernorm"), vec![4]),
        (layer("mlp.gate_proj"), vec![8, 4]),
        (layer("mlp.up_proj"), vec![8, 4]),
        (layer("mlp.down_proj"), vec![4, 8]),
    ];
    for part in ["q", "k", "v", "o"] {
        tensors.push((layer(&format!("self_attn.{part}_proj")), vec![4, 4]));
    }
    let borrowed: Vec<(&str, Vec<usize>)> = tensors.iter().map(|(n, s)| (&**n, s.clone())).collect();
    zeros(&borrowed)
}
