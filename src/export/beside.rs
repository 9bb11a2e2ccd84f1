//! Files that belong beside an exported model: tokenizer, its settings, settings of generation, and the
//! configuration of the checkpoint. Those of a GGUF file are written from its metadata. A file that is
//! there already and says something else is left alone.

use crate::error::{Error, Result};
use crate::formats::tokenizer::Tokenizer;
use crate::formats::{self, Limits};
use crate::save;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Files that are copied where they exist.
const FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
];
/// Largest file that is copied.
const LARGEST: u64 = 256 << 20;

/// Writes what the model, a file or directory of this format, has beside it into the directory of `output`
/// and returns the paths.
pub fn companions(
    model: &Path,
    format: &str,
    output: &Path,
    warnings: &mut Vec<String>,
) -> Result<Vec<PathBuf>> {
    let directory = |path: &Path| {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        parent.unwrap_or(Path::new(".")).to_path_buf()
    };
    let to = directory(output);
    let from = if model.is_dir() { model.to_path_buf() } else { directory(model) };
    let mut written = vec![];
    if format == "gguf" {
        if let Err(e) = from_metadata(model, &to, &mut written, warnings) {
            if save::is_disk_full(&e) {
                return Err(e);
            }
            warnings.push(format!("no tokenizer is written: {e}"));
        }
        return Ok(written);
    }
    let same =
        |a: &Path, b: &Path| a.canonicalize().ok().is_some_and(|a| b.canonicalize().is_ok_and(|b| a == b));
    if same(&from, &to) {
        return Ok(written);
    }
    for name in FILES {
        let path = from.join(name);
        match std::fs::metadata(&path) {
            Ok(m) if m.is_file() && m.len() <= LARGEST => {
                let content = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
                place(&to.join(name), &content, &mut written, warnings)?;
            }
            Ok(_) => warnings.push(format!("{name} is not copied: it is no file of at most 256 MiB")),
            Err(_) => {}
        }
    }
    Ok(written)
}

fn place(path: &Path, content: &[u8], written: &mut Vec<PathBuf>, warnings: &mut Vec<String>) -> Result<()> {
    match std::fs::read(path) {
        Ok(there) if there == content => {}
        Ok(_) => {
            warnings.push(format!(
                "{} is there already and differs: left as it is; export into a directory of its own",
                path.display()
            ));
            return Ok(());
        }
        Err(_) => save::bytes(path, content)?,
    }
    written.push(path.to_path_buf());
    Ok(())
}

/// The tokenizer that the metadata of a GGUF file describe, and which tokens begin and end a text.
fn from_metadata(
    model: &Path,
    to: &Path,
    written: &mut Vec<PathBuf>,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let checkpoint = formats::checkpoint(model, &Limits::from_env()?)?;
    let tokenizer = Tokenizer::from_metadata(&checkpoint.metadata)?;
    let aside = tempfile::tempdir().map_err(|e| Error::io("create a directory", std::env::temp_dir(), e))?;
    for path in tokenizer.save(aside.path())? {
        let content = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        if let Some(name) = path.file_name() {
            place(&to.join(name), &content, written, warnings)?;
        }
    }
    let special = tokenizer.special();
    let mut settings = Map::new();
    if let Some(id) = special.bos {
        settings.insert("bos_token_id".into(), json!(id));
    }
    match special.eos.as_slice() {
        [] => {}
        [one] => drop(settings.insert("eos_token_id".into(), json!(one))),
        many => drop(settings.insert("eos_token_id".into(), json!(many))),
    }
    if let Some(id) = special.pad {
        settings.insert("pad_token_id".into(), json!(id));
    }
    let mut text = serde_json::to_vec_pretty(&Value::Object(settings))
        .map_err(|e| Error::internal("JSON", e.to_string()))?;
    text.push(b'\n');
    place(&to.join("generation_config.json"), &text, written, warnings)
}
