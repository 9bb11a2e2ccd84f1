//! safetensors: an open file enters, its weights leave as regions of it. Only the header is read, and
//! every byte of the file must belong to the header or to exactly one tensor.
//!
//! Format: 8 bytes of header length, a JSON header of names with type, shape and byte range, then data.

pub(super) mod index;

use super::checkpoint::Stored;
use super::json::Reader;
use super::limits::{Limits, too_large, too_many};
use crate::error::{Error, Result};
use crate::tensor::{DType, Region, SourceFile, Tensor};
use crate::units::Bytes;
use std::sync::Arc;

/// Longest header that the format allows.
const HEADER: u64 = 100_000_000;

/// One file.
#[derive(Debug)]
pub(super) struct File {
    /// Weights in header order.
    pub tensors: Vec<Stored>,
    /// `__metadata__` in order.
    pub metadata: Vec<(String, String)>,
    /// What looks wrong.
    pub warnings: Vec<String>,
}

/// An entry of the header.
struct Entry {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    range: (u64, u64),
}

/// Element types by their names in the format, with bits; those that no tensor can hold have no type.
const TYPES: &[(&str, u32, Option<DType>)] = &[
    ("F64", 64, Some(DType::F64)),
    ("F32", 32, Some(DType::F32)),
    ("F16", 16, Some(DType::F16)),
    ("BF16", 16, Some(DType::BF16)),
    ("I64", 64, Some(DType::I64)),
    ("I32", 32, Some(DType::I32)),
    ("I16", 16, Some(DType::I16)),
    ("I8", 8, Some(DType::I8)),
    ("U64", 64, Some(DType::U64)),
    ("U32", 32, Some(DType::U32)),
    ("U16", 16, Some(DType::U16)),
    ("U8", 8, Some(DType::U8)),
    ("BOOL", 8, Some(DType::Bool)),
    ("C64", 64, Some(DType::C64)),
    ("F8_E4M3", 8, Some(DType::F8E4M3FN)),
    ("F8_E5M2", 8, Some(DType::F8E5M2)),
    ("F8_E4M3FNUZ", 8, Some(DType::F8E4M3FNUZ)),
    ("F8_E5M2FNUZ", 8, Some(DType::F8E5M2FNUZ)),
    ("F8_E8M0", 8, Some(DType::F8E8M0)),
    ("F6_E2M3", 6, None),
    ("F6_E3M2", 6, None),
    ("F4", 4, Some(DType::F4E2M1)),
];

/// Reads the header of `file` and checks all of it.
///
/// # Errors
/// `Invalid` where header, shapes and ranges disagree, `Unsupported` for element types that the format
/// does not know (after every other check), `Limit` where the header is larger than allowed.
pub(super) fn read(file: &Arc<SourceFile>, limits: &Limits) -> Result<File> {
    header(file, limits).map_err(|e| e.file(file.path()))
}

fn header(file: &Arc<SourceFile>, limits: &Limits) -> Result<File> {
    let total = file.len();
    if total < 10 {
        return Err(Error::invalid(
            "SAFETENSORS-SHORT",
            format!("too short for a safetensors header: {total} of 10 bytes"),
        )
        .hint("download the model again"));
    }
    let mut length = [0; 8];
    file.read_exact_at(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    let wrong = |why: &str| {
        Error::invalid("SAFETENSORS-HEADER", why.to_string()).field("header length").offset(0).found(length)
    };
    if length > HEADER {
        return Err(wrong("the header is longer than the format allows")
            .limit(HEADER)
            .hint("this is no safetensors file, or it is damaged: download it again"));
    }
    if length > total - 8 {
        return Err(wrong("the header is longer than the file")
            .limit(format!("{} bytes", total - 8))
            .hint("the file is cut off: download it again"));
    }
    if length > limits.structure_bytes {
        return Err(too_large("structure_bytes", "the header", length, limits.structure_bytes));
    }
    let mut text = vec![0; usize::try_from(length).map_err(|_| wrong("the header does not fit in memory"))?];
    file.read_exact_at(8, &mut text)?;
    if text.first() != Some(&b'{') {
        return Err(Error::invalid("SAFETENSORS-HEADER", "the header must begin with '{'").offset(8));
    }
    let parsed = parse(&text, limits)?;
    drop(text);
    let start = 8 + length;
    let data = total - start;
    covered(&parsed.entries, data)?;
    file.unchanged()?;
    let tensors = parsed.entries.into_iter().map(|e| stored(e, file, start)).collect::<Result<Vec<_>>>()?;
    Ok(File { tensors, metadata: parsed.metadata, warnings: parsed.warnings })
}

struct Header {
    entries: Vec<Entry>,
    metadata: Vec<(String, String)>,
    warnings: Vec<String>,
}

fn parse(text: &[u8], limits: &Limits) -> Result<Header> {
    let mut header = Header { entries: Vec::new(), metadata: Vec::new(), warnings: Vec::new() };
    let mut reader = Reader::new(text, limits)?;
    reader.object(|r, name| {
        if name == "__metadata__" {
            return r.object(|r, key| {
                let value = r.string()?;
                header.metadata.push((key.to_string(), value));
                Ok(())
            });
        }
        if header.entries.len() as u64 >= limits.tensors {
            return Err(too_many("tensors", "tensors", limits.tensors));
        }
        if name.len() as u64 > limits.name_bytes {
            return Err(too_large("name_bytes", "a tensor name", name.len() as u64, limits.name_bytes));
        }
        let (mut dtype, mut shape, mut range) = (None, None, None);
        r.object(|r, key| {
            match key {
                "dtype" => dtype = Some(r.string()?),
                "shape" => shape = Some(dimensions(r, limits)?),
                "data_offsets" => {
                    let mut ends = Vec::new();
                    r.array(|r, _| {
                        ends.push(r.unsigned()?);
                        if ends.len() > 2 { Err(two_ends()) } else { Ok(()) }
                    })?;
                    range = Some(<[u64; 2]>::try_from(ends).map_err(|_| two_ends())?);
                }
                _ => {
                    r.value()?;
                    header.warnings.push(format!("tensor \"{name}\" has an unknown key \"{key}\""));
                }
            }
            Ok(())
        })?;
        let missing = |key: &str| Error::invalid("SAFETENSORS-ENTRY", format!("the entry has no \"{key}\""));
        let [begin, end] = range.ok_or_else(|| missing("data_offsets"))?;
        header.entries.push(Entry {
            name: name.to_string(),
            dtype: dtype.ok_or_else(|| missing("dtype"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
            range: (begin, end),
        });
        Ok(())
    })?;
    reader.end()?;
    if let Some(odd) = header.entries.iter().find(|e| !e.name.is_ascii()) {
        header.warnings.push(format!(
            "the tensor name \"{}\" has characters beyond ASCII; it may look like another name",
            odd.name
        ));
    }
    Ok(header)
}

fn two_ends() -> Error {
    Error::invalid("SAFETENSORS-ENTRY", "a byte range needs two ends")
}

fn dimensions(r: &mut Reader<'_>, limits: &Limits) -> Result<Vec<u64>> {
    let mut shape = Vec::new();
    r.array(|r, axis| {
        if axis >= limits.rank {
            return Err(Error::limit_exceeded("LIMIT", "a tensor has too many axes").limit(limits.rank));
        }
        shape.push(r.unsigned()?);
        Ok(())
    })?;
    Ok(shape)
}

/// Every range fits its type and shape, and together they are the `data` bytes, each once.
fn covered(entries: &[Entry], data: u64) -> Result<()> {
    let field = |e: &Entry| format!("\"{}\".data_offsets", e.name);
    let span = |e: &Entry| format!("{}..{}", e.range.0, e.range.1);
    let mut unknown = None;
    for e in entries {
        let (begin, end) = e.range;
        if begin > end {
            return Err(Error::invalid("SAFETENSORS-RANGE", "a byte range is reversed")
                .field(field(e))
                .found(span(e)));
        }
        if end > data {
            return Err(Error::invalid("SAFETENSORS-RANGE", "a tensor lies outside the file")
                .field(field(e))
                .found(span(e))
                .limit(format!("0..{data}"))
                .hint("the file is cut off or damaged: download it again"));
        }
        let count = e.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let overflows = || {
            Error::invalid("SAFETENSORS-SHAPE", "the shape overflows")
                .field(format!("\"{}\".shape", e.name))
                .found(format!("{:?}", e.shape))
        };
        let count = count.filter(|n| usize::try_from(*n).is_ok()).ok_or_else(overflows)?;
        let Some((_, bits, _)) = TYPES.iter().find(|(name, ..)| *name == e.dtype) else {
            unknown.get_or_insert(e);
            continue;
        };
        let bits = count.checked_mul(u64::from(*bits)).ok_or_else(overflows)?;
        if bits % 8 != 0 || bits / 8 != end - begin {
            let need = if bits % 8 == 0 {
                format!("{} bytes", bits / 8)
            } else {
                format!("{bits} bits, which are no whole bytes")
            };
            return Err(Error::invalid("SAFETENSORS-SIZE", "a byte range does not match type and shape")
                .field(field(e))
                .found(format!("{} bytes", end - begin))
                .limit(format!("{need} for {} {:?}", e.dtype, e.shape))
                .hint("the file is damaged: download or write it again"));
        }
    }
    let mut order: Vec<&Entry> = entries.iter().collect();
    order.sort_by_key(|e| e.range);
    let gap = |from: u64, to: u64| {
        Error::invalid("SAFETENSORS-GAP", format!("bytes not covered by any tensor: {from}..{to}"))
            .field("data_offsets")
            .found(Bytes(to - from))
            .hint("something else is hidden in this file, or it is damaged: download or write it again")
    };
    let mut at = 0;
    let mut last: Option<&Entry> = None;
    for e in order {
        let (begin, end) = e.range;
        if begin < at {
            let other = last.map_or_else(String::new, |l| format!(", {} of \"{}\"", span(l), l.name));
            return Err(Error::invalid("SAFETENSORS-OVERLAP", "byte ranges of two tensors overlap")
                .field(field(e))
                .found(format!("{}{other}", span(e)))
                .hint("the file is damaged: download or write it again"));
        }
        if begin > at {
            return Err(gap(at, begin));
        }
        at = end;
        last = Some(e);
    }
    if at < data {
        return Err(gap(at, data));
    }
    match unknown {
        Some(e) => Err(Error::unsupported("SAFETENSORS-DTYPE", "the element type is not known")
            .field(format!("\"{}\".dtype", e.name))
            .found(&e.dtype)
            .limit(TYPES.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", "))
            .hint("convert the weights to one of these types")),
        None => Ok(()),
    }
}

fn stored(e: Entry, file: &Arc<SourceFile>, start: u64) -> Result<Stored> {
    let shape = e
        .shape
        .iter()
        .map(|d| usize::try_from(*d))
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|_| Error::invalid("SAFETENSORS-SHAPE", "the shape overflows").field(e.name.clone()))?;
    let bytes = e.range.1 - e.range.0;
    let dtype = TYPES.iter().find(|(name, ..)| *name == e.dtype).and_then(|(.., t)| *t);
    let tensor = match dtype {
        Some(dtype) => {
            let region = Region::new(file.clone(), start + e.range.0, bytes)?;
            Some(Tensor::from_region(dtype, shape.clone(), region)?)
        }
        None => None,
    };
    Ok(Stored { name: e.name, shape, encoding: e.dtype, bytes, tensor })
}
