//! Small JSON files beside a model, read whole and with a bound.

use crate::error::{Error, Kind, Result};
use crate::tensor::SourceFile;
use crate::units::Bytes;
use serde_json::Value;
use std::path::Path;

/// Largest configuration that is read.
const LARGEST: u64 = 16 << 20;

/// The content of a JSON file; `None` where there is no such file.
///
/// # Errors
/// `Invalid` for what is no JSON, with line and column; `Limit` for files that no configuration is as
/// large as.
pub(super) fn read_optional(path: &Path) -> Result<Option<Value>> {
    let file = match SourceFile::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == Kind::Storage && !path.exists() => return Ok(None),
        Err(e) => return Err(e),
    };
    if file.len() > LARGEST {
        return Err(Error::limit_exceeded("JSON-SIZE", "this is too large for a configuration")
            .file(path)
            .found(Bytes(file.len()))
            .limit(Bytes(LARGEST)));
    }
    let mut bytes = vec![0; usize::try_from(file.len()).unwrap_or(0)];
    file.read_exact_at(0, &mut bytes)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|e| {
        Error::invalid("JSON", "this is not valid JSON")
            .file(path)
            .field(format!("line {}, column {}", e.line(), e.column()))
            .found(e)
            .hint("download the file again")
    })
}
