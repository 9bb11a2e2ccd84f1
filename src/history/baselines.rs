//! Baselines: named sets of measurements with their raw samples, one JSON file each, against which later
//! ones are tested. Measurements enter and leave; what they say is the business of `compare`.

use crate::config::Paths;
use crate::error::{Error, Result};
use crate::evaluate::measurement::Measurement;
use crate::jobs::clock;
use crate::save;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::PathBuf;

/// Version of the file format.
pub const SCHEMA_VERSION: u32 = 1;
/// Largest file that is read.
const LIMIT: u64 = 256 << 20;

/// A named set of measurements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Version of this format.
    pub schema_version: u32,
    /// Name.
    pub name: String,
    /// Wall time of creation, ms.
    pub created_ms: u64,
    /// The figures.
    pub measurements: Vec<Measurement>,
}

/// Keeps `measurements` under `name`, replacing what was kept there.
pub fn set(paths: &Paths, name: &str, measurements: Vec<Measurement>) -> Result<Baseline> {
    let path = path(paths, name)?;
    if measurements.is_empty() {
        return Err(Error::usage("BASELINE-EMPTY", "nothing was measured").found(name));
    }
    let directory = directory(paths);
    fs::create_dir_all(&directory).map_err(|e| Error::io("make the directory", &directory, e))?;
    let baseline = Baseline {
        schema_version: SCHEMA_VERSION,
        name: name.into(),
        created_ms: clock::wall_ms(),
        measurements,
    };
    save::json(&path, &baseline)?;
    Ok(baseline)
}

/// The baseline of this name.
pub fn load(paths: &Paths, name: &str) -> Result<Baseline> {
    let path = path(paths, name)?;
    let size = match fs::metadata(&path) {
        Ok(meta) => meta.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::usage("BASELINE", "no such baseline")
                .found(name)
                .hint("`tinsmith baseline list` shows them, `tinsmith baseline set` makes one"));
        }
        Err(e) => return Err(Error::io("read the baseline", &path, e)),
    };
    if size > LIMIT {
        return Err(Error::limit_exceeded("BASELINE-SIZE", "the baseline is too large")
            .file(&path)
            .found(size)
            .limit(LIMIT));
    }
    let text = fs::read(&path).map_err(|e| Error::io("read the baseline", &path, e))?;
    let baseline: Baseline = serde_json::from_slice(&text).map_err(|e| {
        Error::invalid("BASELINE", format!("the baseline is damaged: {e}")).file(&path).hint("set it again")
    })?;
    if baseline.schema_version != SCHEMA_VERSION {
        return Err(Error::unsupported("BASELINE-VERSION", "baseline of another version")
            .file(&path)
            .field("schema_version")
            .found(baseline.schema_version)
            .limit(SCHEMA_VERSION));
    }
    Ok(baseline)
}

/// Names of all baselines, sorted.
pub fn list(paths: &Paths) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory(paths)) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|e| Some(e.file_name().to_str()?.strip_suffix(".json")?.to_string()))
        .filter(|name| is_name(name))
        .collect();
    names.sort();
    names
}

/// Forgets a baseline.
pub fn remove(paths: &Paths, name: &str) -> Result<()> {
    load(paths, name).map(drop).or_else(|e| match e.kind() {
        crate::error::Kind::Usage => Err(e),
        _ => Ok(()),
    })?;
    let path = path(paths, name)?;
    fs::remove_file(&path).map_err(|e| Error::io("remove the baseline", &path, e))
}

fn directory(paths: &Paths) -> PathBuf {
    paths.home().join("baselines")
}

/// Letters, digits, `.`, `_` and `-`, no dot in front: such a name stays in its directory.
fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn path(paths: &Paths, name: &str) -> Result<PathBuf> {
    if !is_name(name) {
        return Err(Error::usage("BASELINE-NAME", "this cannot be the name of a baseline")
            .found(name)
            .limit("1 to 64 letters, digits, '.', '_', '-'"));
    }
    Ok(directory(paths).join(format!("{name}.json")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::tests::measurement;

    #[test]
    fn baselines_are_kept_with_their_samples() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        assert_eq!(load(&paths, "main").unwrap_err().kind().exit_code(), 2);
        let made = set(&paths, "main", vec![measurement("original", "aa")]).unwrap();
        assert_eq!(load(&paths, "main").unwrap(), made);
        assert_eq!(list(&paths), ["main"]);
        for bad in ["", "..", "../x", "a/b", ".hidden", "a\u{1b}b"] {
            assert_eq!(set(&paths, bad, made.measurements.clone()).unwrap_err().kind().exit_code(), 2);
        }
        fs::write(dir.path().join("baselines/main.json"), "{").unwrap();
        assert_eq!(load(&paths, "main").unwrap_err().kind().exit_code(), 3);
        remove(&paths, "main").unwrap();
        assert!(list(&paths).is_empty());
    }
}
