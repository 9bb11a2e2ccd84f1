//! `SHA256SUMS`: digests of every file of a bundle, in the form that `sha256sum -c` reads.

use crate::error::{Error, Result};
use crate::save;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The file of digests.
pub const FILE: &str = "SHA256SUMS";
/// Largest such file that is read.
const LARGEST: u64 = 16 << 20;

/// A file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct File {
    /// Path below the bundle, with `/`.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// What a bundle is not as it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// File.
    pub path: String,
    /// `differs`, `missing` or `added`.
    pub what: &'static str,
}

/// Writes the digests of all files in `directory`, and returns them.
pub(super) fn write(directory: &Path) -> Result<Vec<File>> {
    let files = digests(directory)?;
    let text: String = files.iter().map(|f| format!("{}  {}\n", f.sha256, f.path)).collect();
    save::bytes(&directory.join(FILE), text.as_bytes())?;
    Ok(files)
}

/// Every file below `directory` but the digests themselves.
fn digests(directory: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut open = vec![(directory.to_path_buf(), String::new())];
    while let Some((at, prefix)) = open.pop() {
        for entry in fs::read_dir(&at).map_err(|e| Error::io("read", &at, e))? {
            let entry = entry.map_err(|e| Error::io("read", &at, e))?;
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type().map_err(|e| Error::io("read", entry.path(), e))?;
            if kind.is_dir() {
                open.push((entry.path(), format!("{path}/")));
            } else if path != FILE {
                if !kind.is_file() {
                    return Err(
                        Error::integrity("BUNDLE-FILE", "a bundle holds files alone").file(entry.path())
                    );
                }
                let (sha256, bytes) = save::digest(&entry.path())?;
                files.push(File { path, bytes, sha256 });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// Holds the files of the bundle in `directory` against its digests; what differs, is missing or was
/// added is returned, beside the files as they are.
///
/// # Errors
/// `Invalid` where the directory is no bundle or its digests cannot be read.
pub fn check(directory: &Path) -> Result<(Vec<File>, Vec<Fault>)> {
    let path = directory.join(FILE);
    let damaged = |why: &str| {
        Error::invalid("BUNDLE-SUMS", format!("the digests of this bundle cannot be read: {why}"))
            .file(&path)
            .hint("deploy the variant again")
    };
    let size = fs::metadata(&path).map_err(|e| Error::io("read the digests of a bundle", &path, e))?.len();
    if size > LARGEST {
        return Err(damaged("the file is too large"));
    }
    let text = fs::read_to_string(&path).map_err(|e| damaged(&e.to_string()))?;
    let mut stated = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let parts = line.split_once("  ").filter(|(hex, name)| {
            hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) && !name.is_empty()
        });
        let (sha256, name) = parts.ok_or_else(|| damaged(&format!("line {}", number + 1)))?;
        stated.insert(name.to_string(), sha256.to_ascii_lowercase());
    }
    if stated.is_empty() {
        return Err(damaged("there are none"));
    }
    let files = digests(directory)?;
    let mut faults = Vec::new();
    let fault = |path: &str, what| Fault { path: path.to_string(), what };
    for file in &files {
        match stated.remove(&file.path) {
            Some(sha256) if sha256 == file.sha256 => {}
            Some(_) => faults.push(fault(&file.path, "differs")),
            None => faults.push(fault(&file.path, "added")),
        }
    }
    faults.extend(stated.keys().map(|path| fault(path, "missing")));
    Ok((files, faults))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_missing_or_new_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        for (name, text) in [("a", "abc"), ("b", "x"), ("sub/c", "y")] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        write(dir.path()).unwrap();
        let (files, faults) = check(dir.path()).unwrap();
        assert_eq!(files.iter().map(|f| f.path.as_str()).collect::<Vec<_>>(), ["a", "b", "sub/c"]);
        assert!(files[0].sha256.starts_with("ba7816bf") && faults.is_empty());
        fs::write(dir.path().join("sub/c"), "z").unwrap();
        fs::remove_file(dir.path().join("b")).unwrap();
        fs::write(dir.path().join("d"), "").unwrap();
        let faults: Vec<(String, &str)> =
            check(dir.path()).unwrap().1.into_iter().map(|f| (f.path, f.what)).collect();
        let of = |path: &str, what| (path.to_string(), what);
        assert_eq!(faults, [of("d", "added"), of("sub/c", "differs"), of("b", "missing")]);
        for bad in ["", "abc  a\n", "zz"] {
            fs::write(dir.path().join(FILE), bad).unwrap();
            assert_eq!(check(dir.path()).unwrap_err().kind().exit_code(), 3, "{bad:?}");
        }
    }
}
