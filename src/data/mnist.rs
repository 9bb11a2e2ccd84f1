//! Handwritten digits of 28 x 28 pixels, scaled to 0..1: a directory with the four idx files of the
//! original distribution (packed or not; `set=train` or `set=test`, the default), or a CSV file with
//! 784 pixels and a label a row.

use super::{Rows, Spec, csv};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use std::path::{Path, PathBuf};

const SIDE: usize = 28;

pub(super) fn read(spec: &Spec) -> Result<Rows> {
    let set: Option<String> = spec.option("set")?;
    spec.finish()?;
    let path = spec.path();
    let (pixels, labels) = if path.is_dir() {
        let prefix = match set.as_deref() {
            Some("train") => "train",
            None | Some("test") => "t10k",
            Some(other) => {
                return Err(Error::usage("DATA-OPTION", "there are two sets")
                    .field(format!("{spec} option set"))
                    .found(other)
                    .limit("train, test"));
            }
        };
        let images = idx(&find(&path, &format!("{prefix}-images"))?, 3)?;
        let labels = idx(&find(&path, &format!("{prefix}-labels"))?, 1)?;
        if images.0[1..] != [SIDE, SIDE] || images.0[0] != labels.0[0] {
            return Err(Error::invalid("DATA-MNIST", "images and labels do not belong together")
                .file(&path)
                .found(format!("images {:?}, labels {:?}", images.0, labels.0)));
        }
        let pixels = images.1.iter().map(|p| f32::from(*p) / 255.0).collect::<Vec<f32>>();
        (pixels, labels.1.into_iter().map(usize::from).collect::<Vec<usize>>())
    } else {
        if set.is_some() {
            return Err(Error::usage("DATA-OPTION", "a CSV file is one set")
                .field(format!("{spec} option set"))
                .hint("split it with ?split=test&part=0.2"));
        }
        table(&path)?
    };
    if let Some(bad) = labels.iter().find(|l| **l > 9) {
        return Err(Error::invalid("DATA-LABEL", "a label is no digit").file(&path).found(bad));
    }
    Ok(Rows {
        input: Tensor::from_vec(vec![labels.len(), 1, SIDE, SIDE], pixels)?,
        labels,
        classes: (0..10).map(|d| d.to_string()).collect(),
        notes: vec![],
    })
}

fn table(path: &Path) -> Result<(Vec<f32>, Vec<usize>)> {
    let rows = csv::parse(&csv::content(path)?, path)?;
    let (mut pixels, mut labels) = (Vec::with_capacity(rows.len() * SIDE * SIDE), Vec::new());
    for (number, row) in rows.iter().enumerate() {
        let (label, row) = match row.split_last() {
            Some((label, row)) if row.len() == SIDE * SIDE && label.fract() == 0.0 && *label >= 0.0 => {
                (label, row)
            }
            _ => {
                return Err(Error::invalid("DATA-MNIST", "a row is 784 pixels and a label")
                    .file(path)
                    .field(format!("row {}", number + 1))
                    .found(format!("{} columns", row.len())));
            }
        };
        pixels.extend(row.iter().map(|p| (*p / 255.0) as f32));
        labels.push(*label as usize);
    }
    Ok((pixels, labels))
}

/// The file whose name begins so, whatever its ending.
fn find(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let listed = std::fs::read_dir(directory).map_err(|e| Error::io("list", directory, e))?;
    let mut found: Vec<PathBuf> = listed
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix)))
        .collect();
    found.sort();
    found.into_iter().next().ok_or_else(|| {
        Error::invalid("DATA-MNIST", "the directory lacks a file")
            .file(directory)
            .limit(format!("{prefix}-idx*-ubyte or {prefix}-idx*-ubyte.gz"))
    })
}

/// Shape and bytes of an idx file of unsigned bytes.
fn idx(path: &Path, rank: usize) -> Result<(Vec<usize>, Vec<u8>)> {
    let bytes = csv::content(path)?;
    let wrong = |what: &str| Error::invalid("DATA-MNIST", format!("this is no idx file: {what}")).file(path);
    let header = 4 + 4 * rank;
    if bytes.len() < header || bytes[..3] != [0, 0, 8] || usize::from(bytes[3]) != rank {
        return Err(wrong("its first bytes are others"));
    }
    let shape: Vec<usize> = bytes[4..header]
        .chunks_exact(4)
        .map(|c| u32::from_be_bytes([c[0], c[1], c[2], c[3]]) as usize)
        .collect();
    let count = crate::tensor::element_count(&shape);
    if count != Some(bytes.len() - header) {
        return Err(wrong("its length does not fit its shape").found(format!("{shape:?}")));
    }
    Ok((shape, bytes[header..].to_vec()))
}
