//! One array from a NumPy `.npy` file (format versions 1 to 3, C order, little-endian), with labels
//! from a second one.

use super::{Rows, Spec, csv};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};
use std::path::{Path, PathBuf};

fn dtype(descr: &str) -> Option<DType> {
    Some(match descr {
        "<f4" => DType::F32,
        "<f8" => DType::F64,
        "<f2" => DType::F16,
        "|u1" => DType::U8,
        "|i1" => DType::I8,
        "|b1" => DType::Bool,
        "<i2" => DType::I16,
        "<u2" => DType::U16,
        "<i4" => DType::I32,
        "<u4" => DType::U32,
        "<i8" => DType::I64,
        "<u8" => DType::U64,
        _ => return None,
    })
}

/// The text behind `'key':` in the header, up to the next comma at its level.
fn entry<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let rest = header.split_once(&format!("'{key}':"))?.1.trim_start();
    let end = if rest.starts_with('(') { rest.find(')')? + 1 } else { rest.find([',', '}'])? };
    Some(rest[..end].trim())
}

/// Reads one array.
pub(super) fn array(path: &Path) -> Result<Tensor> {
    parse(&csv::content(path)?, path)
}

/// One array from the bytes of a `.npy` file; `path` is for messages.
pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Tensor> {
    let wrong =
        |what: &str| Error::invalid("DATA-NPY", what.to_string()).file(path).hint("write it with numpy.save");
    let magic = bytes.strip_prefix(b"\x93NUMPY").ok_or_else(|| wrong("this is no .npy file"))?;
    let (length, skip) = match magic {
        [1, _, a, b, ..] => (usize::from(u16::from_le_bytes([*a, *b])), 4),
        [2 | 3, _, a, b, c, d, ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 6),
        _ => return Err(wrong("unknown version of the .npy format")),
    };
    let header =
        magic.get(skip..).and_then(|m| m.get(..length)).ok_or_else(|| wrong("the header is cut off"))?;
    let header = std::str::from_utf8(header).map_err(|_| wrong("the header is no text"))?;
    let descr = entry(header, "descr").unwrap_or_default().trim_matches('\'');
    let dtype = dtype(descr).ok_or_else(|| {
        Error::unsupported("DATA-NPY", "element type is not supported").file(path).field("descr").found(descr)
    })?;
    if entry(header, "fortran_order") != Some("False") {
        return Err(Error::unsupported("DATA-NPY", "column-major arrays are not supported")
            .file(path)
            .hint("save numpy.ascontiguousarray(x)"));
    }
    let shape = entry(header, "shape").unwrap_or_default();
    let shape: Option<Vec<usize>> = shape
        .trim_matches(['(', ')'])
        .split(',')
        .map(str::trim)
        .filter(|d| !d.is_empty())
        .map(|d| d.parse().ok())
        .collect();
    let shape = shape.ok_or_else(|| wrong("the shape cannot be read"))?;
    Tensor::from_raw(dtype, shape, &magic[skip + length..]).map_err(|e| e.file(path))
}

pub(super) fn read(spec: &Spec) -> Result<Rows> {
    let labels: Option<PathBuf> = spec.option("labels")?;
    spec.finish()?;
    let labels = labels.map(|path| array(&path)).transpose()?;
    rows(array(&spec.path())?, labels, &spec.path())
}

/// An array as rows along its first axis, with class indices from another.
pub(super) fn rows(input: Tensor, labels: Option<Tensor>, path: &Path) -> Result<Rows> {
    let Some(count) = input.shape().first().copied() else {
        return Err(Error::invalid("DATA-NPY", "the array has no sample axis").file(path));
    };
    let labels = match labels {
        None => vec![],
        Some(labels) => {
            let found = labels.to_i64s()?;
            if found.len() != count {
                return Err(Error::invalid("DATA-LABEL", "labels do not match the rows")
                    .file(path)
                    .found(found.len())
                    .limit(count));
            }
            let all: Option<Vec<usize>> = found.iter().map(|l| usize::try_from(*l).ok()).collect();
            all.ok_or_else(|| Error::invalid("DATA-LABEL", "a label is a class index").file(path))?
        }
    };
    Ok(Rows { input, labels, classes: vec![], notes: vec![] })
}
