//! Arrays by name from a NumPy `.npz` file, a zip archive of `.npy` members. What an archive claims is
//! not believed: members and all of them together are limited while they are unpacked.

use super::{Rows, Spec, npy};
use crate::error::{Error, Result};
use crate::tensor::{SourceFile, Tensor};
use std::io::Read;
use std::path::Path;

/// Most members.
const MEMBERS: usize = 10_000;
/// Most bytes of all members together.
const TOTAL: u64 = 4 << 30;
/// Most bytes of a member for each byte that it takes in the archive; arrays of zeros reach a thousand.
const RATIO: u64 = 2000;

/// Every array of a file, in the order of the archive.
///
/// # Errors
/// `Invalid` for a damaged archive or array, `Limit` for one that unpacks to too much.
pub fn arrays(path: &Path) -> Result<Vec<(String, Tensor)>> {
    SourceFile::open(path)?;
    let file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
    let broken = |e: &dyn std::fmt::Display| {
        Error::invalid("DATA-NPZ", format!("the archive cannot be read: {e}"))
            .file(path)
            .hint("write it with numpy.savez")
    };
    let mut zip = zip::ZipArchive::new(std::io::BufReader::new(file)).map_err(|e| broken(&e))?;
    if zip.len() > MEMBERS {
        return Err(Error::limit_exceeded("DATA-NPZ", "the archive has too many members")
            .file(path)
            .found(zip.len())
            .limit(MEMBERS));
    }
    let mut out = Vec::new();
    let mut total = 0;
    for index in 0..zip.len() {
        let mut member = zip.by_index(index).map_err(|e| broken(&e))?;
        let name = member.name().map_err(|e| broken(&e))?.into_owned();
        let Some(stem) = name.strip_suffix(".npy").filter(|_| member.is_file()) else { continue };
        let most = (member.compressed_size().saturating_mul(RATIO) + (1 << 16)).min(TOTAL - total);
        let mut bytes = Vec::new();
        (&mut member).take(most + 1).read_to_end(&mut bytes).map_err(|e| broken(&e).field(stem))?;
        if bytes.len() as u64 > most {
            return Err(Error::limit_exceeded("DATA-NPZ", "an array unpacks to too much")
                .file(path)
                .field(stem)
                .limit(format!("{most} bytes")));
        }
        total += bytes.len() as u64;
        out.push((stem.to_string(), npy::parse(&bytes, path).map_err(|e| e.field(stem))?));
    }
    if out.is_empty() {
        return Err(Error::invalid("DATA-NPZ", "the archive holds no arrays").file(path));
    }
    Ok(out)
}

pub(super) fn read(spec: &Spec) -> Result<Rows> {
    let input: Option<String> = spec.option("input")?;
    let labels: Option<String> = spec.option("labels")?;
    spec.finish()?;
    let path = spec.path();
    let mut all = arrays(&path)?;
    let names = all.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>().join(", ");
    let mut take = |name: &str| {
        let at = all.iter().position(|(n, _)| n == name).ok_or_else(|| {
            Error::usage("DATA-OPTION", "the archive has no array of this name")
                .file(&path)
                .found(name)
                .limit(&names)
        })?;
        Ok::<_, Error>(all.swap_remove(at).1)
    };
    let labels = labels.map(|name| take(&name)).transpose()?;
    let input = match input {
        Some(name) => take(&name)?,
        None if all.len() == 1 => all.swap_remove(0).1,
        None => {
            return Err(Error::usage("DATA-OPTION", "several arrays: name the one that is the input")
                .file(&path)
                .limit(&names)
                .hint("as in npz:FILE?input=NAME&labels=NAME"));
        }
    };
    npy::rows(input, labels, &path)
}
