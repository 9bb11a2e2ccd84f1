//! Files as byte classifiers read them (Magika, arXiv 2409.13768): of the first 4096 bytes, stripped of
//! leading white space, the first `beg`; of the last 4096, stripped of trailing white space, the last
//! `end`; padded with token 256 behind the first and before the second part. Element type i32.
//!
//! Options: `labels` names the model's `config.min.json`, which lists the classes and sizes; a file's
//! class is the name of the folder below DIR that holds it, or else its extension, where that is a class.
//! Files of no known class are left out and counted. `most` limits the number of files (default 10,000).

use super::{Rows, Spec};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use serde::Deserialize;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

#[derive(Deserialize)]
struct Config {
    beg_size: usize,
    end_size: usize,
    block_size: usize,
    padding_token: i32,
    min_file_size_for_dl: u64,
    target_labels_space: Vec<String>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            beg_size: 1024,
            end_size: 1024,
            block_size: 4096,
            padding_token: 256,
            min_file_size_for_dl: 8,
            target_labels_space: vec![],
        }
    }
}

fn features(path: &Path, c: &Config) -> Result<Option<Vec<i32>>> {
    let file = crate::tensor::SourceFile::open(path)?;
    if file.len() < c.min_file_size_for_dl {
        return Ok(None);
    }
    let block = file.len().min(c.block_size as u64);
    let mut head = vec![0; block as usize];
    file.read_exact_at(0, &mut head)?;
    let mut tail = vec![0; block as usize];
    file.read_exact_at(file.len() - block, &mut tail)?;
    // Python's bytes.strip() also takes the vertical tab, which ASCII white space leaves out.
    let white = |b: &u8| b.is_ascii_whitespace() || *b == 0x0b;
    let start = head.iter().position(|b| !white(b)).unwrap_or(head.len());
    let stop = tail.iter().rposition(|b| !white(b)).map_or(0, |p| p + 1);
    let mut out: Vec<i32> = head[start..].iter().take(c.beg_size).map(|b| i32::from(*b)).collect();
    out.resize(c.beg_size, c.padding_token);
    let tail = &tail[stop.saturating_sub(c.end_size)..stop];
    out.extend(std::iter::repeat_n(c.padding_token, c.end_size - tail.len()));
    out.extend(tail.iter().map(|b| i32::from(*b)));
    Ok(Some(out))
}

/// Regular files below a folder, in name order, links not followed.
fn files(dir: &Path, most: usize, out: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))?;
    let mut entries: Vec<_> = entries.filter_map(|e| e.ok()).collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        if out.len() >= most {
            return Ok(());
        }
        match entry.file_type() {
            Ok(t) if t.is_dir() => files(&entry.path(), most, out)?,
            Ok(t) if t.is_file() => out.push(entry.path()),
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn read(spec: &Spec) -> Result<Rows> {
    let labels: Option<PathBuf> = spec.option("labels")?;
    let most: usize = spec.option("most")?.unwrap_or(10_000);
    spec.finish()?;
    let config = match &labels {
        None => Config::default(),
        Some(path) => {
            let text =
                std::fs::read_to_string(path).map_err(|e| Error::io("read the label list", path, e))?;
            serde_json::from_str(&text)
                .map_err(|e| Error::invalid("DATA-LABELS", e.to_string()).file(path))?
        }
    };
    if config.block_size > 1 << 20 || config.beg_size.max(config.end_size) > config.block_size {
        return Err(Error::invalid("DATA-LABELS", "sizes in the label list are out of range")
            .file(labels.unwrap_or_default()));
    }
    let root = spec.path();
    let classes: HashMap<&str, usize> =
        config.target_labels_space.iter().enumerate().map(|(i, n)| (n.as_str(), i)).collect();
    let class = |path: &Path| -> Option<usize> {
        let folder = path.strip_prefix(&root).ok()?.iter().next()?.to_str();
        let extension = path.extension().and_then(|e| e.to_str());
        [folder, extension].into_iter().flatten().find_map(|n| classes.get(n).copied())
    };
    let mut found = vec![];
    files(&root, most, &mut found)?;
    let (mut values, mut targets, mut left) = (vec![], vec![], 0usize);
    for path in found {
        let label = class(&path);
        if !classes.is_empty() && label.is_none() {
            left += 1;
            continue;
        }
        match features(&path, &config) {
            Ok(Some(row)) => {
                values.extend(row);
                targets.extend(label);
            }
            Ok(None) | Err(_) => left += 1,
        }
    }
    let width = config.beg_size + config.end_size;
    let notes = if left > 0 {
        vec![format!("{left} files were left out: no known class, too short or unreadable")]
    } else {
        vec![]
    };
    let rows = values.len() / width.max(1);
    Ok(Rows {
        input: Tensor::from_vec(vec![rows, width], values)?,
        labels: targets,
        classes: config.target_labels_space,
        notes,
    })
}
