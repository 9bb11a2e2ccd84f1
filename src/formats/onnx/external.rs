//! External data: a location written in an untrusted file enters, a region of a regular file beneath
//! the model's directory leaves, or the reason why not.

use super::proto::{StringStringEntryProto, TensorProto};
use crate::error::{Error, Result};
use crate::formats::beneath::{Directory, Refusal};
use crate::formats::limits::{Limits, too_large};
use crate::tensor::{Region, SourceFile};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Opens the external data files of one model.
pub(super) struct External<'a> {
    model: &'a Path,
    directory: Option<Directory>,
    files: HashMap<String, Arc<SourceFile>>,
    ranges: HashMap<String, Vec<(u64, u64, String)>>,
    limits: &'a Limits,
    declared: u64,
}

impl<'a> External<'a> {
    pub(super) fn new(model: &'a Path, limits: &'a Limits) -> External<'a> {
        External {
            model,
            directory: None,
            files: HashMap::new(),
            ranges: HashMap::new(),
            limits,
            declared: 0,
        }
    }

    /// The region that holds `need` bytes of `tensor`.
    pub(super) fn region(&mut self, tensor: &TensorProto, need: u64) -> Result<Region> {
        let name = tensor.name.as_deref().unwrap_or_default();
        let keys = Keys::parse(&tensor.external_data)?;
        let file = self.open(&keys.location)?;
        let offset = keys.offset.unwrap_or(0);
        let len = keys.length.unwrap_or(need);
        if len != need {
            return Err(Error::invalid(
                "ONNX-EXTERNAL-LENGTH",
                "external data does not match type and shape",
            )
            .field("external_data.length")
            .found(format!("{len} bytes"))
            .limit(format!("{need} bytes")));
        }
        let inside = offset.checked_add(len).is_some_and(|end| end <= file.len());
        if !inside {
            return Err(Error::invalid("ONNX-EXTERNAL-RANGE", "external data lies outside its file")
                .field("external_data.offset")
                .found(format!("{offset} + {len} bytes in \"{}\"", keys.location))
                .limit(format!("{} bytes", file.len()))
                .hint("the data file is cut off or belongs to another model: get both files again"));
        }
        self.declared = self.declared.saturating_add(len);
        if self.declared > self.limits.external_bytes {
            return Err(too_large(
                "external_bytes",
                "external data",
                self.declared,
                self.limits.external_bytes,
            ));
        }
        if len > 0 {
            self.ranges.entry(keys.location).or_default().push((offset, len, name.to_string()));
        }
        Region::new(file, offset, len)
    }

    /// Checks all regions together, after the last one: a region may serve several tensors (tied
    /// weights), but none may lie across another, and all together may not ask for more than four
    /// times what the files hold. Returns the files with their sizes, by name.
    pub(super) fn finish(mut self) -> Result<Vec<(PathBuf, u64)>> {
        for (location, ranges) in &mut self.ranges {
            ranges.sort();
            for pair in ranges.windows(2) {
                let [(a, a_len, a_name), (b, b_len, b_name)] = pair else { continue };
                if (a, a_len) != (b, b_len) && b - a < *a_len {
                    return Err(Error::invalid("ONNX-EXTERNAL-OVERLAP", "regions of two tensors overlap")
                        .file(self.model)
                        .field(format!("external data of \"{b_name}\" in \"{location}\""))
                        .found(format!("{b}..{} and {a}..{} of \"{a_name}\"", b + b_len, a + a_len))
                        .hint("export the model again"));
                }
            }
        }
        let held: u64 = self.files.values().map(|f| f.len()).fold(0, u64::saturating_add);
        let most = held.saturating_mul(4);
        if self.declared > most {
            return Err(Error::limit_exceeded(
                "ONNX-EXTERNAL-AMPLIFIED",
                "tensors ask for many times the bytes that their external data holds",
            )
            .file(self.model)
            .found(format!("{} bytes", self.declared))
            .limit(format!("{most} bytes"))
            .hint("the same bytes stand for too many tensors; export the model again"));
        }
        let mut files: Vec<_> = self.files.values().map(|f| (f.path().to_path_buf(), f.len())).collect();
        files.sort();
        Ok(files)
    }

    fn open(&mut self, location: &str) -> Result<Arc<SourceFile>> {
        if let Some(file) = self.files.get(location) {
            return Ok(file.clone());
        }
        let refuse = |code: &'static str, reason: &str| {
            Error::invalid(code, format!("external data location is refused: {reason}"))
                .field("external_data.location")
                .found(format!("\"{location}\""))
        };
        let directory = match &self.directory {
            Some(directory) => directory,
            None => {
                let parent = self.model.parent().filter(|p| !p.as_os_str().is_empty());
                let parent = parent.unwrap_or(Path::new("."));
                let directory = Directory::open(parent)
                    .map_err(|e| Error::io("open the model's directory", parent, e.into()))?;
                self.directory.insert(directory)
            }
        };
        let (file, links) = directory.file(location).map_err(|refusal| match refusal {
            Refusal::Name(reason) => refuse("ONNX-EXTERNAL-NAME", reason)
                .hint("keep the data file beside the model, under a name of letters, digits, '.', '_', '-'"),
            Refusal::Link => refuse("ONNX-EXTERNAL-LINK", "it is or passes a symbolic link")
                .hint("put the data file itself beside the model: cp --dereference"),
            Refusal::Missing => refuse("ONNX-EXTERNAL-MISSING", "there is no such file")
                .hint("copy the data file to the model's directory"),
            Refusal::Type(None) => refuse("ONNX-EXTERNAL-TYPE", "it is a socket or a pipe"),
            Refusal::Type(Some(e)) => refuse("ONNX-EXTERNAL-TYPE", "it is not a regular file")
                .hint("use an ordinary file")
                .source(e),
            Refusal::Io(e) => {
                Error::io("open external data", self.model.with_file_name("").join(location), e.into())
            }
        })?;
        if links > 1 && !self.limits.hard_links {
            return Err(refuse("ONNX-EXTERNAL-LINK", "it has several hard links")
                .hint("copy the data file, or set TINSMITH_LIMITS=hard_links=1"));
        }
        self.files.insert(location.to_string(), file.clone());
        Ok(file)
    }
}

struct Keys {
    location: String,
    offset: Option<u64>,
    length: Option<u64>,
}

impl Keys {
    fn parse(entries: &[StringStringEntryProto]) -> Result<Keys> {
        let mut found: [Option<&str>; 4] = [None; 4];
        const NAMES: [&str; 4] = ["location", "offset", "length", "checksum"];
        for entry in entries {
            let key = entry.key.as_deref().unwrap_or_default();
            let value = entry.value.as_deref().unwrap_or_default();
            let Some(slot) = NAMES.iter().position(|n| *n == key).and_then(|i| found.get_mut(i)) else {
                return Err(Error::invalid(
                    "ONNX-EXTERNAL-KEY",
                    "external data has a key that does not exist",
                )
                .field(format!("external_data \"{key}\""))
                .found(key)
                .limit(NAMES.join(", ")));
            };
            if slot.replace(value).is_some() {
                return Err(Error::invalid("ONNX-EXTERNAL-KEY", "external data has a key twice")
                    .field(format!("external_data \"{key}\""))
                    .found(key)
                    .limit("once"));
            }
        }
        let number = |i: usize| -> Result<Option<u64>> {
            let Some(text) = found.get(i).copied().flatten() else { return Ok(None) };
            let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            let value = text.parse::<u64>().ok().filter(|v| plain && *v <= i64::MAX as u64);
            value.map(Some).ok_or_else(|| {
                let name = NAMES.get(i).copied().unwrap_or_default();
                Error::invalid(
                    "ONNX-EXTERNAL-NUMBER",
                    format!("external data {name} is not a position in a file"),
                )
                .field(format!("external_data.{name}"))
                .found(format!("\"{text}\""))
                .limit("0 to 9223372036854775807")
            })
        };
        Ok(Keys {
            location: found.first().copied().flatten().unwrap_or_default().to_string(),
            offset: number(1)?,
            length: number(2)?,
        })
    }
}
