//! Numbers from CSV files, one row a sample.
//!
//! Options: `label` = `last`, `first`, `none` or a column index (default `last`); `shape` of one sample
//! (default: the columns); `scale` divides the features; `mean` and `std` normalise them after that;
//! `header=1` skips the first line.

use super::{Rows, Spec};
use crate::error::{Error, Result};
use crate::tensor::{SourceFile, Tensor, element_count};
use flate2::read::GzDecoder;
use std::{io::Read, path::Path};

/// Most bytes that a text file may have, unpacked.
const LIMIT: u64 = 4 << 30;

/// The content, unpacked where it is gzip.
pub(super) fn unpacked(content: &[u8], path: &Path) -> Result<Vec<u8>> {
    if !content.starts_with(&[0x1f, 0x8b]) {
        return Ok(content.to_vec());
    }
    let mut out = Vec::new();
    let mut reader = GzDecoder::new(content).take(LIMIT + 1);
    reader
        .read_to_end(&mut out)
        .map_err(|e| Error::invalid("DATA-GZIP", format!("gzip stream is damaged: {e}")).file(path))?;
    if out.len() as u64 > LIMIT {
        return Err(Error::limit_exceeded("DATA-SIZE", "the unpacked data is too large")
            .file(path)
            .limit(format!("{LIMIT} bytes")));
    }
    Ok(out)
}

/// The whole file; refuses pipes, devices and what is too large.
pub(super) fn content(path: &Path) -> Result<Vec<u8>> {
    let file = SourceFile::open(path)?;
    if file.len() > LIMIT {
        return Err(Error::limit_exceeded("DATA-SIZE", "the data is too large")
            .file(path)
            .found(file.len())
            .limit(LIMIT));
    }
    let mut out = vec![0; file.len() as usize];
    file.read_exact_at(0, &mut out)?;
    file.unchanged()?;
    unpacked(&out, path)
}

/// Rows of numbers, all of one length.
pub(super) fn parse(content: &[u8], path: &Path) -> Result<Vec<Vec<f64>>> {
    let mut rows: Vec<Vec<f64>> = Vec::new();
    for (number, line) in content.split(|b| *b == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let at = |column: usize| format!("row {}, column {}", number + 1, column + 1);
        let mut row = Vec::with_capacity(rows.last().map_or(0, Vec::len));
        for (column, cell) in line.split(|b| *b == b',').enumerate() {
            let text = String::from_utf8_lossy(cell);
            let value: f64 = text.trim().trim_matches('"').parse().map_err(|_| {
                Error::invalid("DATA-CSV", "not a number")
                    .file(path)
                    .field(at(column))
                    .found(&text)
                    .hint("add ?header=1 where the first line names the columns")
            })?;
            row.push(value);
        }
        if let Some(first) = rows.first()
            && first.len() != row.len()
        {
            return Err(Error::invalid("DATA-CSV", "rows differ in length")
                .file(path)
                .field(format!("row {}", number + 1))
                .found(row.len())
                .limit(first.len()));
        }
        rows.push(row);
    }
    Ok(rows)
}

pub(super) fn read(spec: &Spec) -> Result<Rows> {
    let path = spec.path();
    let label: Option<String> = spec.option("label")?;
    let shape: Option<Vec<usize>> = spec.list("shape")?;
    let scale: f64 = spec.option("scale")?.unwrap_or(1.0);
    let (mean, std): (f64, f64) = (spec.option("mean")?.unwrap_or(0.0), spec.option("std")?.unwrap_or(1.0));
    let header: u8 = spec.option("header")?.unwrap_or(0);
    spec.finish()?;
    if scale == 0.0 || std == 0.0 {
        return Err(Error::usage("DATA-OPTION", "scale and std must not be zero").file(&path));
    }
    let content = content(&path)?;
    let start = if header != 0 {
        content.iter().position(|b| *b == b'\n').map_or(content.len(), |n| n + 1)
    } else {
        0
    };
    let table = parse(&content[start..], &path)?;
    let columns = table.first().map_or(0, Vec::len);
    let column = match label.as_deref() {
        Some("none") => None,
        None | Some("last") => columns.checked_sub(1),
        Some("first") => Some(0),
        Some(text) => Some(text.parse::<usize>().ok().filter(|c| *c < columns).ok_or_else(|| {
            Error::usage("DATA-OPTION", "no such label column")
                .file(&path)
                .found(text)
                .limit(format!("last, first, none, 0 to {}", columns.saturating_sub(1)))
        })?),
    };
    let features = columns - usize::from(column.is_some());
    let shape = shape.unwrap_or_else(|| vec![features]);
    if element_count(&shape) != Some(features) {
        return Err(Error::usage("DATA-SHAPE", "shape does not hold the columns of a row")
            .file(&path)
            .found(format!("{shape:?}"))
            .limit(format!("{features} values")));
    }
    let mut labels = Vec::new();
    let mut values = Vec::with_capacity(table.len() * features);
    for (number, row) in table.iter().enumerate() {
        for (c, value) in row.iter().enumerate() {
            if Some(c) != column {
                values.push(((value / scale - mean) / std) as f32);
            } else if *value < 0.0 || value.fract() != 0.0 || *value > 1e6 {
                return Err(Error::invalid("DATA-LABEL", "a label is a class index")
                    .file(&path)
                    .field(format!("row {}", number + 1))
                    .found(value));
            } else {
                labels.push(*value as usize);
            }
        }
    }
    let full = [&[table.len()], shape.as_slice()].concat();
    Ok(Rows { input: Tensor::from_vec(full, values)?, labels, classes: vec![], notes: vec![] })
}
