//! Checkpoints: numbered directories whose manifest is written last and lists the digest of every file.
//! What a step computed enters; the newest directory that is whole leaves. Knows no pass.

use super::store::read_json;
use crate::error::{Error, Result};
use crate::save;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

/// Checkpoints that are kept; older ones go once a newer one is safe.
pub const KEEP: usize = 2;

/// The file that lists the others.
pub(in crate::jobs) const MANIFEST: &str = "manifest.json";
const SCHEMA_VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    schema_version: u32,
    /// What the files were computed from; another identity makes the checkpoint useless here.
    identity: String,
    step: u64,
    files: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    path: String,
    bytes: u64,
    sha256: String,
}

/// A checkpoint that was found whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Step that it completes.
    pub step: u64,
    /// Its directory.
    pub dir: PathBuf,
}

/// The checkpoints of one job.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    root: PathBuf,
    identity: String,
}

impl Checkpoints {
    /// Checkpoints below `root` of work with this `identity` (a digest of everything that decides the
    /// result).
    pub fn new(root: &Path, identity: &str) -> Checkpoints {
        Checkpoints { root: root.to_path_buf(), identity: identity.into() }
    }

    /// Checkpoints of the same work inside its step `step`, in a directory of their own.
    pub fn inside(&self, step: u64) -> Result<Checkpoints> {
        let root = self.root.join(format!("inside-{step}"));
        std::fs::create_dir_all(&root).map_err(|e| Error::io("make the directory", &root, e))?;
        Ok(Checkpoints { root, identity: self.identity.clone() })
    }

    /// Where they lie.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, step: u64) -> PathBuf {
        self.root.join(format!("step-{step}"))
    }

    /// Saves what `fill` writes into the directory that it is given as the checkpoint of `step`, then
    /// removes all but the newest [`KEEP`]. A crash at any point leaves the old or the new one.
    pub fn save(&self, step: u64, fill: impl FnOnce(&Path) -> Result<()>) -> Result<Checkpoint> {
        let io = |e| Error::io("save the checkpoint in", &self.root, e);
        let temp = tempfile::Builder::new().prefix(save::TEMP_PREFIX).tempdir_in(&self.root).map_err(io)?;
        fill(temp.path())?;
        let mut files = Vec::new();
        for entry in fs::read_dir(temp.path()).map_err(io)? {
            let entry = entry.map_err(io)?;
            let path = entry.path();
            File::open(&path).and_then(|f| f.sync_all()).map_err(|e| Error::io("save", &path, e))?;
            let (sha256, bytes) = save::digest(&path)?;
            files.push(Entry { path: entry.file_name().to_string_lossy().into_owned(), bytes, sha256 });
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let manifest =
            Manifest { schema_version: SCHEMA_VERSION, identity: self.identity.clone(), step, files };
        save::json(&temp.path().join(MANIFEST), &manifest)?;
        let target = self.path(step);
        if target.exists() {
            // Only one that is not whole is ever computed again.
            let bad = self.root.join(format!("bad-{step}-{}", super::clock::mono_ms()));
            fs::rename(&target, bad).map_err(io)?;
        }
        fs::rename(temp.path(), &target).map_err(io)?;
        let _ = temp.keep();
        save::sync_directory(&self.root)?;
        self.prune();
        Ok(Checkpoint { step, dir: target })
    }

    /// The newest checkpoint that is whole and of this identity. `warn` is told of each newer one that
    /// is not, with the file that is to blame.
    pub fn newest_valid(&self, mut warn: impl FnMut(String)) -> Option<Checkpoint> {
        for step in self.steps() {
            match self.verify(step) {
                Ok(()) => return Some(Checkpoint { step, dir: self.path(step) }),
                Err(e) => warn(format!("checkpoint of step {step} is not used: {e}")),
            }
        }
        None
    }

    /// Numbers of what looks like a checkpoint, newest first.
    fn steps(&self) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(&self.root) else { return Vec::new() };
        let mut steps: Vec<u64> = entries
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.strip_prefix("step-")?.parse().ok())
            .collect();
        steps.sort_unstable_by(|a, b| b.cmp(a));
        steps
    }

    /// Takes a checkpoint that other work left in `from` as that of `step`: its files are linked, or copied where they
    /// cannot be. Whoever asks vouches that it is what this work would have computed.
    ///
    /// # Errors
    /// `Integrity` where it is not whole; those of reading and writing.
    pub fn adopt(&self, step: u64, from: &Path) -> Result<Checkpoint> {
        let manifest = manifest(from)?;
        whole(from, &manifest)?;
        self.save(step, |dir| {
            for entry in &manifest.files {
                let (old, new) = (from.join(&entry.path), dir.join(&entry.path));
                if fs::hard_link(&old, &new).is_err() {
                    fs::copy(&old, &new).map_err(|e| Error::io("copy to", &new, e))?;
                }
            }
            Ok(())
        })
    }

    /// Checks every file of a checkpoint against its manifest.
    fn verify(&self, step: u64) -> Result<()> {
        let dir = self.path(step);
        let manifest = manifest(&dir)?;
        if manifest.identity != self.identity || manifest.step != step {
            return Err(
                Error::integrity("CHECKPOINT-OTHER", "checkpoint of other work").file(dir.join(MANIFEST))
            );
        }
        whole(&dir, &manifest)
    }

    fn prune(&self) {
        for step in self.steps().into_iter().skip(KEEP) {
            let _ = fs::remove_dir_all(self.path(step));
        }
        let Ok(entries) = fs::read_dir(&self.root) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(save::TEMP_PREFIX) || name.starts_with("bad-") {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// What a checkpoint says that it holds.
fn manifest(dir: &Path) -> Result<Manifest> {
    let path = dir.join(MANIFEST);
    let manifest: Manifest = read_json(&path)?;
    if manifest.schema_version != SCHEMA_VERSION {
        return Err(Error::unsupported("CHECKPOINT-VERSION", "checkpoint of another version")
            .file(&path)
            .found(manifest.schema_version)
            .limit(SCHEMA_VERSION));
    }
    Ok(manifest)
}

/// Checks every file of a directory against a manifest.
fn whole(dir: &Path, manifest: &Manifest) -> Result<()> {
    for entry in &manifest.files {
        let mut parts = Path::new(&entry.path).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(
                Error::invalid("CHECKPOINT-NAME", "file name leads elsewhere").file(dir.join(MANIFEST))
            );
        }
        let file = dir.join(&entry.path);
        let (sha256, bytes) = save::digest(&file)?;
        if (bytes, &sha256) != (entry.bytes, &entry.sha256) {
            return Err(Error::integrity("CHECKPOINT-CONTENT", "file differs from what was saved")
                .file(&file)
                .found(format!("{bytes} bytes, {sha256}"))
                .limit(format!("{} bytes, {}", entry.bytes, entry.sha256)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(content: &'static str) -> impl FnOnce(&Path) -> Result<()> {
        move |dir| save::bytes(&dir.join("data"), content.as_bytes())
    }

    #[test]
    fn the_newest_whole_one_wins_and_two_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let all = Checkpoints::new(dir.path(), "id");
        assert_eq!(all.newest_valid(|_| ()), None);
        for step in 0..4 {
            all.save(step, fill("content")).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), KEEP);
        assert_eq!(all.newest_valid(|w| panic!("{w}")).unwrap().step, 3);

        fs::write(dir.path().join("step-3/data"), "c0ntent").unwrap();
        let mut warnings = Vec::new();
        assert_eq!(all.newest_valid(|w| warnings.push(w)).unwrap().step, 2);
        assert!(warnings[0].contains("step-3/data"), "{warnings:?}");

        all.save(3, fill("again")).unwrap();
        let newest = all.newest_valid(|w| panic!("{w}")).unwrap();
        assert_eq!(fs::read(newest.dir.join("data")).unwrap(), b"again");
        fs::remove_file(newest.dir.join(MANIFEST)).unwrap();
        assert_eq!(all.newest_valid(|_| ()).unwrap().step, 2);
    }

    #[test]
    fn what_other_work_left_is_taken_where_it_is_whole() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let left = Checkpoints::new(other.path(), "other").save(4, fill("content")).unwrap();
        let own = Checkpoints::new(dir.path(), "own");
        let taken = own.adopt(0, &left.dir).unwrap();
        assert_eq!(fs::read(taken.dir.join("data")).unwrap(), b"content");
        assert_eq!(own.newest_valid(|w| panic!("{w}")), Some(taken));
        fs::write(left.dir.join("data"), "c0ntent").unwrap();
        assert_eq!(own.adopt(1, &left.dir).unwrap_err().code(), "CHECKPOINT-CONTENT");
    }

    #[test]
    fn work_with_another_identity_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        Checkpoints::new(dir.path(), "a").save(0, fill("x")).unwrap();
        let mut warnings = Vec::new();
        assert_eq!(Checkpoints::new(dir.path(), "b").newest_valid(|w| warnings.push(w)), None);
        assert!(warnings[0].contains("other work"), "{warnings:?}");
    }

    #[test]
    fn a_hostile_manifest_reads_nothing_outside() {
        let dir = tempfile::tempdir().unwrap();
        let all = Checkpoints::new(dir.path(), "a");
        all.save(0, fill("x")).unwrap();
        let path = dir.path().join("step-0").join(MANIFEST);
        let text = fs::read_to_string(&path).unwrap().replace("\"data\"", "\"../../etc/passwd\"");
        fs::write(&path, text).unwrap();
        let mut warnings = Vec::new();
        assert_eq!(all.newest_valid(|w| warnings.push(w)), None);
        assert!(warnings[0].contains("leads elsewhere"), "{warnings:?}");
    }
}
