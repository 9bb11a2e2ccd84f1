//! Weights in several safetensors files: an index enters that says which file holds which tensor, and
//! all weights leave. Index and files must tell the same, and files are opened beneath the directory
//! of the index only.

use super::File;
use crate::error::{Error, Result};
use crate::formats::beneath::{Directory, Refusal};
use crate::formats::checkpoint::Stored;
use crate::formats::json::Reader;
use crate::formats::limits::{Limits, too_large, too_many};
use crate::tensor::SourceFile;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of an index in a directory.
pub(in crate::formats) const NAME: &str = "model.safetensors.index.json";
/// Files that one index may name.
const FILES: usize = 10_000;

/// An index that was read.
#[derive(Debug)]
pub(in crate::formats) struct Index {
    /// Which file holds which tensor.
    map: HashMap<String, String>,
    /// Tensors of each file, by the file's name.
    files: BTreeMap<String, u64>,
    total: Option<u64>,
}

impl Index {
    /// Reads an index file.
    pub(in crate::formats) fn read(file: &SourceFile, limits: &Limits) -> Result<Index> {
        let most = limits.structure_bytes;
        if file.len() > most {
            return Err(too_large("structure_bytes", "the index", file.len(), most).file(file.path()));
        }
        let mut text = vec![0; usize::try_from(file.len()).unwrap_or_default()];
        file.read_exact_at(0, &mut text)?;
        file.unchanged()?;
        Index::parse(&text, limits).map_err(|e| e.file(file.path()))
    }

    /// Reads the text of an index.
    pub(in crate::formats) fn parse(text: &[u8], limits: &Limits) -> Result<Index> {
        let mut index = Index { map: HashMap::new(), files: BTreeMap::new(), total: None };
        let mut found = false;
        let mut reader = Reader::new(text, limits)?;
        reader.object(|r, key| match key {
            "weight_map" => {
                found = true;
                r.object(|r, tensor| {
                    if index.map.len() as u64 >= limits.tensors {
                        return Err(too_many("tensors", "tensors", limits.tensors));
                    }
                    let file = r.string()?;
                    *index.files.entry(file.clone()).or_default() += 1;
                    if index.files.len() > FILES {
                        return Err(
                            Error::limit_exceeded("LIMIT", "the index names too many files").limit(FILES)
                        );
                    }
                    index.map.insert(tensor.to_string(), file);
                    Ok(())
                })
            }
            "metadata" => {
                let value = r.value()?;
                index.total = value.get("total_size").and_then(|v| {
                    v.as_u64()
                        .or_else(|| v.as_f64().filter(|x| *x >= 0.0 && x.fract() == 0.0).map(|x| x as u64))
                });
                Ok(())
            }
            _ => r.value().map(|_| ()),
        })?;
        reader.end()?;
        if !found {
            return Err(Error::invalid("SAFETENSORS-INDEX", "the index has no \"weight_map\"")
                .field("weight_map")
                .hint("pass the model file itself, or the directory that holds it"));
        }
        Ok(index)
    }

    /// Whether the index names this file.
    pub(in crate::formats) fn names(&self, file: &str) -> bool {
        self.files.contains_key(file)
    }

    /// Reads all files that the index names, in `directory`. Returns the weights and the files.
    pub(in crate::formats) fn load(
        &self,
        directory: &Path,
        limits: &Limits,
    ) -> Result<(File, Vec<(PathBuf, u64)>)> {
        let folder = Directory::open(directory).map_err(|e| Error::io("open", directory, e.into()))?;
        let mut all = File { tensors: Vec::new(), metadata: Vec::new(), warnings: Vec::new() };
        let mut files = Vec::new();
        let mut held = HashMap::new();
        for name in self.files.keys() {
            let shard = open(&folder, directory, name).map_err(|e| e.field(self.field(name)))?;
            files.push((shard.path().to_path_buf(), shard.len()));
            let part = super::read(&shard, limits)?;
            for tensor in &part.tensors {
                self.place(tensor, name, &mut held).map_err(|e| e.file(shard.path()))?;
            }
            if (all.tensors.len() + part.tensors.len()) as u64 > limits.tensors {
                return Err(too_many("tensors", "tensors", limits.tensors));
            }
            all.tensors.extend(part.tensors);
            all.warnings.extend(part.warnings);
            for (key, value) in part.metadata {
                if !all.metadata.iter().any(|(k, _)| *k == key) {
                    all.metadata.push((key, value));
                }
            }
        }
        let lost = self.map.iter().filter(|(tensor, _)| !held.contains_key(*tensor)).min();
        if let Some((tensor, file)) = lost {
            return Err(Error::invalid(
                "SAFETENSORS-INDEX",
                "the index names a tensor that its file does not hold",
            )
            .field(format!("weight_map.\"{tensor}\""))
            .found(format!("no such tensor in \"{file}\""))
            .hint("index and files belong to different models: get all of them again"));
        }
        let bytes: u64 = all.tensors.iter().map(|t| t.bytes).fold(0, u64::saturating_add);
        if let Some(total) = self.total.filter(|t| *t != bytes) {
            all.warnings.push(format!("the index promises {total} bytes of weights, its files hold {bytes}"));
        }
        Ok((all, files))
    }

    /// A tensor must be where the index says, and nowhere else.
    fn place(&self, tensor: &Stored, file: &str, held: &mut HashMap<String, String>) -> Result<()> {
        if let Some(other) = held.insert(tensor.name.clone(), file.to_string()) {
            return Err(Error::invalid("SAFETENSORS-INDEX", "two files hold the same tensor")
                .field(format!("\"{}\"", tensor.name))
                .found(format!("in \"{other}\" and \"{file}\""))
                .hint("remove the files that belong to another model"));
        }
        match self.map.get(&tensor.name) {
            Some(named) if named == file => Ok(()),
            Some(named) => {
                Err(Error::invalid("SAFETENSORS-INDEX", "a tensor lies in another file than the index says")
                    .field(format!("weight_map.\"{}\"", tensor.name))
                    .found(format!("in \"{file}\""))
                    .limit(format!("in \"{named}\"")))
            }
            None => {
                Err(Error::invalid("SAFETENSORS-INDEX", "a file holds a tensor that the index does not name")
                    .field(format!("\"{}\"", tensor.name))
                    .found(format!("in \"{file}\""))
                    .hint("index and files belong to different models: get all of them again"))
            }
        }
    }

    /// The first entry of the index that names a file.
    fn field(&self, file: &str) -> String {
        let first = self.map.iter().filter(|(_, f)| *f == file).map(|(tensor, _)| tensor).min();
        format!("weight_map.\"{}\"", first.map_or("", String::as_str))
    }
}

fn open(folder: &Directory, directory: &Path, name: &str) -> Result<Arc<SourceFile>> {
    let refuse = |code: &'static str, reason: &str| {
        Error::invalid(code, format!("a file of the index is refused: {reason}")).found(format!("\"{name}\""))
    };
    match folder.file(name) {
        Ok((file, _)) => Ok(file),
        Err(Refusal::Link) => match folder.cached(name) {
            Some(file) => file,
            None => Err(refuse("SAFETENSORS-LINK", "it is or passes a symbolic link")
                .hint("put the file itself beside the index: cp --dereference")),
        },
        Err(Refusal::Name(reason)) => Err(refuse("SAFETENSORS-NAME", reason)
            .hint("files lie beside the index, under names of letters, digits, '.', '_', '-'")),
        Err(Refusal::Missing) => {
            Err(refuse("SAFETENSORS-MISSING", "there is no such file")
                .hint("download all files of the model"))
        }
        Err(Refusal::Type(e)) => {
            let refused = refuse("SAFETENSORS-TYPE", "it is not a regular file").hint("use an ordinary file");
            Err(match e {
                Some(e) => refused.source(e),
                None => refused,
            })
        }
        Err(Refusal::Io(e)) => Err(Error::io("open", directory.join(name), e.into())),
    }
}
