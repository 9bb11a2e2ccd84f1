//! Repositories of a model hub: `hf:OWNER/NAME[@REVISION][/FILE]` enters, a checked directory in the
//! cache leaves. The hub is asked which files there are; of these only what a model is made of is
//! fetched: configuration, tokenizer, safetensors or one GGUF file. Pickles are refused. A download
//! that was cut off goes on where it stopped; what the hub gives a SHA-256 for must have it.

mod client;
mod select;

use super::place::{self, Lock, publish};
use super::{Fetched, is_current};
use crate::config::Paths;
use crate::error::{Error, Result};
use crate::monitor::{Level, Monitor};
use crate::units::Bytes;
use client::Client;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// Begins the name of a repository.
pub const PREFIX: &str = "hf:";
/// Where the hub is unless `HF_ENDPOINT` says otherwise.
const ENDPOINT: &str = "https://huggingface.co";
/// Files of a repository that are looked at.
const FILES: usize = 20_000;

/// A repository, a revision of it, and which of its files are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// Owner.
    pub owner: String,
    /// Name.
    pub name: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// A file, or a pattern with `*`; what a model is made of, where none is given.
    pub file: Option<String>,
}

impl Repository {
    /// Parses `hf:OWNER/NAME[@REVISION][/FILE]`.
    ///
    /// # Errors
    /// `Usage` that shows the grammar.
    pub fn parse(text: &str) -> Result<Repository> {
        let bad = || {
            Error::usage("HUB-NAME", "this is not the name of a repository")
                .found(text)
                .limit("hf:OWNER/NAME[@REVISION][/FILE]")
                .hint("for example hf:owner/model or hf:owner/model@main/model-Q4_K_M.gguf")
        };
        let rest = text.strip_prefix(PREFIX).ok_or_else(bad)?;
        let (owner, rest) = rest.split_once('/').ok_or_else(bad)?;
        let (head, file) = match rest.split_once('/') {
            Some((head, file)) => (head, Some(file.to_string())),
            None => (rest, None),
        };
        let (name, revision) = head.split_once('@').unwrap_or((head, "main"));
        let plain = |s: &str| {
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !s.is_empty() && s.len() <= 100 && s.chars().all(fits) && !s.starts_with('.') && !s.contains("..")
        };
        let fine = file.as_ref().is_none_or(|f| select::is_safe(f));
        if !plain(owner) || !plain(name) || !plain(revision) || !fine {
            return Err(bad());
        }
        let (owner, name) = (owner.to_string(), name.to_string());
        Ok(Repository { owner, name, revision: revision.to_string(), file })
    }

    /// Name of its directory in the cache: `OWNER--NAME`, and the revision where it is not `main`.
    fn directory(&self) -> String {
        match self.revision.as_str() {
            "main" => format!("{}--{}", self.owner, self.name),
            other => format!("{}--{}@{other}", self.owner, self.name),
        }
    }

    fn path(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

/// The hub and who asks.
#[derive(Clone)]
pub struct Hub {
    endpoint: String,
    token: Option<String>,
}

impl Hub {
    /// The hub of `HF_ENDPOINT`, asked with the token of `HF_TOKEN`.
    ///
    /// # Errors
    /// `Usage` where the endpoint is no address.
    pub fn from_env() -> Result<Hub> {
        let given = |name: &str| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
        Hub::new(&given("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()), given("HF_TOKEN"))
    }

    /// A hub at an address.
    ///
    /// # Errors
    /// As [`Hub::from_env`].
    pub fn new(endpoint: &str, token: Option<String>) -> Result<Hub> {
        let endpoint = endpoint.trim().trim_end_matches('/');
        let printable = endpoint.chars().all(|c| c.is_ascii_graphic());
        if !printable || !(endpoint.starts_with("https://") || endpoint.starts_with("http://")) {
            return Err(Error::usage("HUB-ENDPOINT", "the address of the hub is not one")
                .field("HF_ENDPOINT")
                .found(endpoint)
                .limit("https://HOST or http://HOST:PORT"));
        }
        let token = token.map(|t| t.trim().to_string());
        if token.as_ref().is_some_and(|t| !t.chars().all(|c| c.is_ascii_graphic())) {
            return Err(Error::usage("HUB-TOKEN", "the token of the hub has characters that no token has")
                .field("HF_TOKEN"));
        }
        Ok(Hub { endpoint: endpoint.to_string(), token })
    }
}

/// What the hub tells of a revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Revision {
    /// The commit.
    sha: String,
    siblings: Vec<RemoteFile>,
    #[serde(default, rename = "cardData")]
    card: Option<Card>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Card {
    #[serde(default)]
    license: Option<serde_json::Value>,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct RemoteFile {
    #[serde(rename = "rfilename")]
    path: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    lfs: Option<Large>,
}

/// What is known of a large file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Large {
    #[serde(default)]
    sha256: Option<String>,
    #[serde(default)]
    size: Option<u64>,
}

impl RemoteFile {
    fn bytes(&self) -> Option<u64> {
        self.lfs.as_ref().and_then(|l| l.size).or(self.size)
    }
    fn sha256(&self) -> Option<&str> {
        self.lfs.as_ref().and_then(|l| l.sha256.as_deref())
    }
}

/// Fetches what a model is made of, or finds it in the cache of `paths`. Without a network, what was
/// fetched before serves.
///
/// # Errors
/// `Usage` for repositories, revisions and files that are not there or not open to this token;
/// `Unsupported` where there are only pickles; `Storage` where the hub cannot be reached;
/// `Integrity` where a file is not what the hub says; `Stopped` on request.
pub fn fetch(repository: &Repository, hub: &Hub, paths: &Paths, monitor: &dyn Monitor) -> Result<Fetched> {
    let parent = paths.models().join("hf");
    let name = repository.directory();
    let _lock = Lock::acquire(&parent, &name, monitor)?;
    let client = Client::new(hub);
    let revision = match client.revision(repository, monitor) {
        Ok(revision) => revision,
        Err(e) if e.kind() == crate::error::Kind::Storage => {
            let found = place::manifest(&parent, &name).filter(|f| serves(f, repository)).ok_or(e)?;
            let said =
                format!("{}: the hub cannot be reached; what was fetched before is used", found.version);
            monitor.log(Level::Warning, &said);
            return Ok(found);
        }
        Err(e) => return Err(e),
    };
    if !revision.sha.chars().all(|c| c.is_ascii_hexdigit()) || revision.sha.len() < 7 {
        return Err(client::odd("the commit is none").found(&revision.sha));
    }
    if revision.siblings.len() > FILES {
        return Err(Error::limit_exceeded("HUB-FILES", "the repository has too many files")
            .found(revision.siblings.len())
            .limit(FILES));
    }
    let wanted = select::files(&revision.siblings, repository)?;
    if let Some(found) = is_current(&parent, &name, &revision.sha)
        && wanted.iter().all(|w| found.files.iter().any(|f| f.path == w.path))
    {
        return Ok(found);
    }
    let work = parent.join(format!(".{name}.part"));
    begin(&work, &revision.sha)?;
    let contents = work.join("contents");
    keep(&parent, &name, &revision.sha, &contents)?;
    let total = wanted.iter().map(|f| f.bytes()).sum::<Option<u64>>();
    monitor.phase(&format!("download {}", repository.path()), total);
    let mut done = 0;
    for file in &wanted {
        done += client.file(repository, &revision.sha, file, &contents, done, monitor)?;
    }
    let licence = revision.card.as_ref().and_then(|c| c.license.as_ref()).map(|l| match l {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    });
    let fetched = publish(
        Fetched {
            schema_version: 1,
            name: format!("{PREFIX}{}", repository.path()),
            version: format!("{}@{}", repository.path(), revision.sha.get(..12).unwrap_or(&revision.sha)),
            package_sha256: revision.sha.clone(),
            licence: licence.unwrap_or_else(|| "not stated".into()),
            dir: parent.join(&name),
            files: Vec::new(),
        },
        &contents,
        monitor,
    )?;
    let _ = fs::remove_dir_all(&work);
    let bytes = Bytes(fetched.files.iter().map(|f| f.bytes).sum());
    let said = format!(
        "{}: {bytes} in {} files, licence: {}",
        fetched.version,
        fetched.files.len(),
        fetched.licence
    );
    monitor.log(Level::Info, &said);
    Ok(fetched)
}

/// Whether an earlier download has what is asked for.
fn serves(fetched: &Fetched, repository: &Repository) -> bool {
    match &repository.file {
        Some(pattern) => fetched.files.iter().any(|f| select::fits(pattern, &f.path)),
        None => fetched.files.iter().any(|f| select::is_weights(&f.path)),
    }
}

/// The directory of a download under way. One of another commit is thrown away.
fn begin(work: &Path, sha: &str) -> Result<()> {
    let mark = work.join("commit");
    if fs::read_to_string(&mark).ok().as_deref() != Some(sha) {
        if work.exists() {
            fs::remove_dir_all(work).map_err(|e| Error::io("remove an old download", work, e))?;
        }
        let contents = work.join("contents");
        fs::create_dir_all(&contents).map_err(|e| Error::io("create a directory", &contents, e))?;
        fs::write(&mark, sha).map_err(|e| Error::io("write", &mark, e))?;
    }
    Ok(())
}

/// Takes over files of the same commit that were fetched before.
fn keep(parent: &Path, name: &str, sha: &str, contents: &Path) -> Result<()> {
    let Some(found) = is_current(parent, name, sha) else { return Ok(()) };
    for file in &found.files {
        let (from, to) = (found.dir.join(&file.path), contents.join(&file.path));
        if to.exists() {
            continue;
        }
        directory_of(&to)?;
        if fs::hard_link(&from, &to).is_err() {
            fs::copy(&from, &to).map_err(|e| Error::io("copy", &from, e))?;
        }
    }
    Ok(())
}

fn directory_of(path: &Path) -> Result<()> {
    let dir: PathBuf = path.parent().map(Path::to_path_buf).unwrap_or_default();
    fs::create_dir_all(&dir).map_err(|e| Error::io("create a directory", &dir, e))
}

#[cfg(test)]
#[path = "hub/tests.rs"]
mod tests;
