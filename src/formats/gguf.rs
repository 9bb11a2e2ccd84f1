//! GGUF, versions 2 and 3: an open file enters, its weights leave as regions of it, with the metadata.
//! Only the header is read; the data section must consist of the tensors and their padding.
//!
//! Format: `docs/gguf.md` of the ggml project.

mod cursor;
mod types;
mod values;

use super::checkpoint::Stored;
use super::limits::{Limits, too_many};
use super::metadata::{Fact, Metadata};
use crate::error::{Error, Result};
use crate::tensor::{Region, SourceFile, Tensor};
use crate::units::Bytes;
use cursor::Cursor;
use std::collections::HashMap;
use std::sync::Arc;
use types::Form;

/// Axes that the format allows.
const AXES: u32 = 4;
/// Largest alignment that is believed.
const ALIGNMENT: u64 = 1 << 20;
/// Metadata entries.
const ENTRIES: u64 = 100_000;
/// The key that says how tensors are aligned.
const KEY: &str = "general.alignment";

/// One file.
#[derive(Debug)]
pub(super) struct File {
    /// Weights in header order.
    pub tensors: Vec<Stored>,
    /// Metadata in order.
    pub metadata: Metadata,
    /// What looks wrong.
    pub warnings: Vec<String>,
}

/// A tensor of the header.
struct Entry {
    name: String,
    /// As frameworks have it, outermost first.
    shape: Vec<usize>,
    elements: u64,
    number: u32,
    offset: u64,
    /// Position of the entry in the file.
    at: u64,
}

/// Reads the header of `file` and checks all of it.
///
/// # Errors
/// `Invalid` where the header is damaged or tensors do not fit it, `Unsupported` for other versions and
/// split models, `Limit` where a budget does not suffice.
pub(super) fn read(file: &Arc<SourceFile>, limits: &Limits) -> Result<File> {
    header(file, limits).map_err(|e| e.file(file.path()))
}

fn header(file: &Arc<SourceFile>, limits: &Limits) -> Result<File> {
    if file.len() < 24 {
        return Err(Error::invalid(
            "GGUF-SHORT",
            format!("too short for a GGUF header: {} of 24 bytes", file.len()),
        )
        .hint("the file is cut off: download it again"));
    }
    let mut cursor = Cursor::new(file, limits);
    let magic = cursor.u32()?.to_le_bytes();
    version(&magic, cursor.u32()?)?;
    let tensors = cursor.u64()?;
    let entries = cursor.u64()?;
    // An entry has a name length, a type and a value; a tensor a name length, axes, a type, an offset.
    cursor.room("the tensor count", tensors, 24).map_err(|e| e.field("tensor_count").offset(8))?;
    cursor.room("the metadata count", entries, 13).map_err(|e| e.field("metadata_kv_count").offset(16))?;
    if tensors > limits.tensors {
        return Err(too_many("tensors", "tensors", limits.tensors).field("tensor_count").found(tensors));
    }
    if entries > ENTRIES {
        return Err(Error::limit_exceeded("LIMIT", "there are too many metadata entries")
            .field("metadata_kv_count")
            .found(entries)
            .limit(ENTRIES));
    }
    let mut warnings = Vec::new();
    let metadata = metadata(&mut cursor, entries, &mut warnings)?;
    let alignment = alignment(&metadata)?;
    unsplit(&metadata)?;
    let infos = infos(&mut cursor, tensors)?;
    let end = cursor.at();
    let start = end
        .checked_next_multiple_of(alignment)
        .ok_or_else(|| Error::invalid("GGUF-DATA", "the data section begins beyond any file"))?;
    // Without data the padding may be missing.
    if start > file.len() && infos.iter().any(|e| e.elements > 0) {
        return Err(Error::invalid("GGUF-SHORT", "the file ends before its data section")
            .offset(end)
            .found(format!("{} bytes", file.len()))
            .limit(format!("{start} bytes or more"))
            .hint("the file is cut off: download it again"));
    }
    let start = start.min(file.len());
    let sizes = sizes(&infos, file.len() - start, alignment)?;
    file.unchanged()?;
    let tensors = infos
        .into_iter()
        .zip(sizes)
        .map(|(e, bytes)| stored(e, bytes, file, start, &mut warnings))
        .collect::<Result<_>>()?;
    Ok(File { tensors, metadata, warnings })
}

fn version(magic: &[u8; 4], version: u32) -> Result<()> {
    let swapped = magic == b"FUGG" || (version != 0 && version & 0xffff == 0);
    if swapped {
        return Err(Error::unsupported("GGUF-ENDIAN", "the file is written in big-endian order")
            .field("version")
            .offset(4)
            .found(version.swap_bytes())
            .hint("big-endian file? convert it with gguf-convert-endian of the gguf package"));
    }
    if magic != b"GGUF" {
        return Err(Error::invalid("GGUF-MAGIC", "the file does not begin with GGUF").offset(0));
    }
    match version {
        2 | 3 => Ok(()),
        0 => Err(Error::invalid("GGUF-VERSION", "there is no version 0").field("version").offset(4)),
        other => Err(Error::unsupported("GGUF-VERSION", "this version of GGUF is not read")
            .field("version")
            .offset(4)
            .found(other)
            .limit("2 or 3")
            .hint("convert the model again with a current converter")),
    }
}

/// A string that must be UTF-8.
fn name(cursor: &mut Cursor<'_>, what: &str) -> Result<String> {
    let (at, limit) = (cursor.at(), cursor.limits().name_bytes);
    let bytes = cursor.string(what, "name_bytes", limit)?;
    let text = std::str::from_utf8(bytes).map_err(|_| {
        Error::invalid("GGUF-NAME", format!("{what} is not valid UTF-8"))
            .offset(at)
            .found(String::from_utf8_lossy(bytes).into_owned())
    })?;
    Ok(text.to_string())
}

fn metadata(cursor: &mut Cursor<'_>, count: u64, warnings: &mut Vec<String>) -> Result<Metadata> {
    let mut metadata = Metadata::default();
    for i in 0..count {
        let at = cursor.at();
        let key = name(cursor, "a metadata key").map_err(|e| e.field(format!("metadata[{i}]")))?;
        let field = || format!("metadata[{i}] \"{key}\"");
        cursor.charge(96)?;
        let kind = cursor.u32().map_err(|e| e.field(field()))?;
        if key == KEY && kind != 4 {
            return Err(Error::invalid("GGUF-ALIGNMENT", "the alignment must be a uint32")
                .field(KEY)
                .offset(at)
                .found(values::kind_name(kind)));
        }
        let fact = values::read(cursor, kind, warnings).map_err(|e| {
            let inside = e.field_path().map(str::to_string).unwrap_or_default();
            e.at_field(format!("{}{inside}", field()))
        })?;
        if !metadata.insert(&key, fact) {
            return Err(Error::invalid("GGUF-DUPLICATE", "a metadata key occurs twice")
                .field(field())
                .offset(at)
                .hint("a file that means two things is not read; write it again"));
        }
    }
    Ok(metadata)
}

fn alignment(metadata: &Metadata) -> Result<u64> {
    let Some(Fact::Int(n)) = metadata.get(KEY) else { return Ok(32) };
    match u64::try_from(*n) {
        Ok(n) if n.is_power_of_two() && n <= ALIGNMENT => Ok(n),
        _ => Err(Error::invalid("GGUF-ALIGNMENT", "the alignment is no power of two in range")
            .field(KEY)
            .found(n)
            .limit(format!("powers of two from 1 to {ALIGNMENT}"))),
    }
}

/// One file must hold the whole model.
fn unsplit(metadata: &Metadata) -> Result<()> {
    match metadata.get("split.count") {
        Some(Fact::Int(n)) if *n > 1 => {
            Err(Error::unsupported("GGUF-SPLIT", "the model is split into several files")
                .field("split.count")
                .found(n)
                .hint("join the files first: llama-gguf-split --merge FIRST.gguf WHOLE.gguf"))
        }
        _ => Ok(()),
    }
}

fn infos(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut seen: HashMap<String, u64> = HashMap::new();
    for i in 0..count {
        let at = cursor.at();
        let name = name(cursor, "a tensor name").map_err(|e| e.field(format!("tensors[{i}]")))?;
        let field = format!("tensors[{i}](\"{name}\")");
        if let Some(other) = seen.insert(name.clone(), i) {
            return Err(Error::invalid("GGUF-DUPLICATE", "a tensor name occurs twice")
                .field(field)
                .offset(at)
                .found(format!("tensors[{other}] has it too"))
                .hint("a file that means two things is not read; write it again"));
        }
        cursor.charge(256)?;
        entries.push(entry(cursor, name, at, &field).map_err(|e| e.field(field))?);
    }
    Ok(entries)
}

fn entry(cursor: &mut Cursor<'_>, name: String, at: u64, field: &str) -> Result<Entry> {
    let position = cursor.at();
    let axes = cursor.u32()?;
    if axes > AXES {
        return Err(Error::invalid("GGUF-DIMS", "a tensor has too many axes")
            .field(format!("{field}.n_dims"))
            .offset(position)
            .found(axes)
            .limit(AXES));
    }
    let (mut shape, mut elements) = (Vec::new(), 1u64);
    for axis in 0..axes {
        let position = cursor.at();
        let size = cursor.u64()?;
        let total = elements.checked_mul(size).filter(|n| i64::try_from(*n).is_ok());
        let (Some(total), Ok(size)) = (total, usize::try_from(size)) else {
            return Err(Error::invalid("GGUF-DIMS", "the size of a tensor overflows")
                .field(format!("{field}.ne[{axis}]"))
                .offset(position)
                .found(size));
        };
        elements = total;
        shape.push(size);
    }
    let number = cursor.u32()?;
    if let Some((kind, Form::Blocks(encoding))) = types::find(number) {
        let row = shape.first().copied().unwrap_or(1);
        if !row.is_multiple_of(encoding.elements()) {
            return Err(Error::invalid("GGUF-DIMS", "a row does not consist of whole blocks")
                .field(format!("{field}.ne[0]"))
                .found(row)
                .limit(format!("multiples of {} for {kind}", encoding.elements())));
        }
    }
    shape.reverse();
    Ok(Entry { name, shape, elements, number, offset: cursor.u64()?, at })
}

/// Bytes of a tensor by its type; `None` where the type does not tell.
fn size(entry: &Entry) -> Option<u64> {
    match types::find(entry.number)?.1 {
        Form::Plain(dtype) => entry.elements.checked_mul(u64::from(dtype.bits() / 8)),
        Form::Blocks(e) => (entry.elements / e.elements() as u64).checked_mul(e.bytes() as u64),
        Form::Named => None,
    }
}

/// Bytes of every tensor, in header order. Tensors must lie one behind the other, each aligned, with
/// padding only, in the `data` bytes of their section. A tensor of a type without a known size has all
/// bytes up to the next one.
fn sizes(entries: &[Entry], data: u64, alignment: u64) -> Result<Vec<u64>> {
    let field = |e: &Entry, i: usize| format!("tensors[{i}](\"{}\").offset", e.name);
    let mut order: Vec<usize> = (0..entries.len()).collect();
    let offset = |i: &usize| entries.get(*i).map_or(0, |e| e.offset);
    order.sort_by_key(|i| (offset(i), entries.get(*i).map_or(0, |e| size(e).unwrap_or(1))));
    let mut sizes = vec![0; entries.len()];
    let mut at = 0u64;
    let mut last: Option<&Entry> = None;
    for (rank, i) in order.iter().enumerate() {
        let Some(e) = entries.get(*i) else { continue };
        let bad = |code: &'static str, why: &str| {
            Error::invalid(code, why.to_string()).field(field(e, *i)).offset(e.at).found(e.offset)
        };
        if e.offset % alignment != 0 {
            return Err(
                bad("GGUF-ALIGNMENT", "a tensor is not aligned").limit(format!("multiples of {alignment}"))
            );
        }
        if e.offset > data {
            return Err(bad("GGUF-RANGE", "a tensor begins outside the file")
                .limit(format!("{data} bytes of data"))
                .hint("the file is cut off or damaged: download it again"));
        }
        let padded = at.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        if e.offset < at {
            let other = last.map_or("another", |l| &l.name);
            return Err(bad("GGUF-OVERLAP", "a tensor overlaps another")
                .limit(format!("{at}, where \"{other}\" ends"))
                .hint("the file is damaged: download or write it again"));
        }
        if e.offset > padded {
            return Err(gap(at, e.offset).field(field(e, *i)));
        }
        let next = order.get(rank + 1).map_or(data, offset);
        let bytes = size(e).unwrap_or(next.saturating_sub(e.offset));
        let end = e.offset.checked_add(bytes).filter(|end| *end <= data).ok_or_else(|| {
            bad("GGUF-RANGE", "a tensor lies outside the file")
                .found(format!("{} + {bytes} bytes", e.offset))
                .limit(format!("{data} bytes of data"))
                .hint("the file is cut off or damaged: download it again")
        })?;
        if let Some(slot) = sizes.get_mut(*i) {
            *slot = bytes;
        }
        at = end;
        last = Some(e);
    }
    // Writers pad the last tensor or do not.
    if data > at.checked_next_multiple_of(alignment).unwrap_or(u64::MAX) {
        return Err(gap(at, data).field("data"));
    }
    Ok(sizes)
}

fn gap(from: u64, to: u64) -> Error {
    Error::invalid("GGUF-GAP", format!("bytes not covered by any tensor: {from}..{to} of the data"))
        .found(Bytes(to - from))
        .hint("something else is hidden in this file, or it is damaged: download or write it again")
}

fn stored(
    e: Entry,
    bytes: u64,
    file: &Arc<SourceFile>,
    start: u64,
    warnings: &mut Vec<String>,
) -> Result<Stored> {
    let region = Region::new(file.clone(), start + e.offset, bytes)?;
    let place = |error: Error| error.field(format!("\"{}\"", e.name));
    let (encoding, tensor) = match types::find(e.number) {
        Some((kind, Form::Plain(dtype))) => {
            (kind.to_string(), Some(Tensor::from_region(dtype, e.shape.clone(), region).map_err(place)?))
        }
        Some((kind, Form::Blocks(blocks))) => {
            (kind.to_string(), Some(Tensor::from_blocks(blocks, e.shape.clone(), region).map_err(place)?))
        }
        Some((kind, Form::Named)) => (kind.to_string(), None),
        None => (format!("type {}", e.number), None),
    };
    if tensor.is_none() && warnings.len() < 100 {
        warnings.push(format!("tensor \"{}\" is stored as {encoding}, which is not read", e.name));
    }
    Ok(Stored { name: e.name, shape: e.shape, encoding, bytes, tensor })
}
