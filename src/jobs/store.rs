//! Job directories: ids, creation, listing, opening. Requests enter, directories with fixed file names
//! leave; nothing that a person typed ever becomes a path unchecked.

use super::event::Event;
use super::liveness::{self, Liveness};
use super::log::{self, Log, Tail};
use super::request::Request;
use super::state::JobState;
use super::{clock, lock};
use crate::config::Paths;
use crate::error::{Error, Result};
use crate::passes::PassReport;
use crate::save;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Identity of a job: `20261123-143015-a1b2`. Sorts by time of creation, to the millisecond.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct JobId(String);

impl JobId {
    fn new() -> JobId {
        use std::hash::{BuildHasher, Hasher};
        let now = clock::wall_ms();
        // Milliseconds before chance, so that ids of one second are in order too.
        let random = std::hash::RandomState::new().build_hasher().finish() % 64;
        JobId(format!("{}-{:04x}", clock::stamp(now), now % 1000 * 64 + random))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for JobId {
    type Err = Error;
    fn from_str(text: &str) -> Result<JobId> {
        let parts: Vec<&str> = text.split('-').collect();
        let digits = |t: &str, n| t.len() == n && t.bytes().all(|b| b.is_ascii_digit());
        let good = matches!(parts[..], [date, time, tail] if digits(date, 8) && digits(time, 6)
            && tail.len() == 4 && tail.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
        if good {
            Ok(JobId(text.to_string()))
        } else {
            Err(Error::usage("JOB-ID", "this is not a job id")
                .found(text)
                .hint("`tinsmith jobs list` shows them"))
        }
    }
}

impl<'de> Deserialize<'de> for JobId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<JobId, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What `job.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobInfo {
    /// Version of this format.
    pub schema_version: u32,
    /// The job.
    pub id: JobId,
    /// What sort of job.
    pub what: String,
    /// Name for people.
    pub name: String,
    /// Input model.
    pub model: String,
    /// Size of the model file when the job was submitted.
    pub model_bytes: Option<u64>,
    /// SHA-256 of the model file, from the first start on.
    pub model_sha256: Option<String>,
    /// Machine where it was submitted.
    pub host: String,
    /// Directory that relative paths of the request refer to.
    pub directory: PathBuf,
    /// Wall time of submission, ms.
    pub created_ms: u64,
    /// Version of this program.
    pub version: String,
}

/// Version of `job.json`, `state.json` and `request.json`.
pub const SCHEMA_VERSION: u32 = 1;

/// What `state.json` holds: a state and the place in the log that it stands for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Version of this format.
    pub schema_version: u32,
    /// Offset in `events.jsonl` up to which `state` has read.
    pub offset: u64,
    /// When it was written, `mono_ms`.
    pub beat_ms: u64,
    /// The state.
    pub state: JobState,
}

/// A job on disk. Cheap to clone; holds no file open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobHandle {
    /// The job.
    pub id: JobId,
    /// Its directory.
    pub dir: PathBuf,
}

impl JobHandle {
    /// What the events say, without asking whether the worker lives ([`JobHandle::status`] does).
    pub fn state(&self) -> JobState {
        self.follow().0
    }

    /// The state now and a tail that goes on from there.
    pub fn follow(&self) -> (JobState, Tail) {
        let path = self.dir.join(log::FILE);
        let length = fs::metadata(&path).map_or(0, |m| m.len());
        let snapshot = fs::read(self.dir.join("state.json"))
            .ok()
            .and_then(|text| serde_json::from_slice::<Snapshot>(&text).ok())
            .filter(|s| s.schema_version == SCHEMA_VERSION && s.offset <= length);
        let (mut state, mut tail) = match snapshot {
            Some(s) => {
                let next = s.state.next_seq;
                (s.state, Tail::at(&path, s.offset, next))
            }
            None => (JobState::default(), Tail::new(&path)),
        };
        loop {
            for record in tail.poll() {
                state.apply(&record);
            }
            if tail.is_caught_up() {
                return (state, tail);
            }
        }
    }

    /// A tail from the first event on.
    pub fn tail(&self) -> Tail {
        Tail::new(&self.dir.join(log::FILE))
    }

    /// Where the job stands, its worker checked; notes the death of a worker that is gone.
    pub fn status(&self) -> Liveness {
        liveness::status(self)
    }

    /// What `job.json` holds.
    pub fn info(&self) -> Result<JobInfo> {
        read_json(&self.dir.join("job.json"))
    }

    /// What was asked for.
    pub fn request(&self) -> Result<Request> {
        Request::load(&self.dir)
    }

    /// Where the report of a step (from 0) of a run is.
    pub fn report_path(&self, step: usize, pass: &str) -> PathBuf {
        self.dir.join(format!("artifacts/{:02}-{pass}.report.json", step + 1))
    }

    /// The report of a step (from 0) of a run.
    ///
    /// # Errors
    /// `Invalid` where the step has not come so far, or the file is damaged.
    pub fn report(&self, step: usize, pass: &str) -> Result<PassReport> {
        read_json(&self.report_path(step, pass))
    }

    /// Path of an artefact, which an event or a summary states relative to the job directory. Refuses
    /// anything that leads out of it.
    pub fn artifact(&self, relative: &str) -> Result<PathBuf> {
        let path = Path::new(relative);
        let inside = path.components().all(|c| matches!(c, std::path::Component::Normal(_)));
        if !inside || relative.is_empty() {
            return Err(Error::invalid("JOB-PATH", "path leads out of the job directory")
                .file(&self.dir)
                .found(relative));
        }
        Ok(self.dir.join(path))
    }

    /// The last `lines` lines of the worker's own output, cleaned for a terminal.
    pub fn worker_log(&self, lines: usize) -> Vec<String> {
        worker_log(&self.dir, lines)
    }
}

pub(super) fn worker_log(dir: &Path, lines: usize) -> Vec<String> {
    use std::os::unix::fs::FileExt;
    let Ok(file) = fs::File::open(dir.join("worker.log")) else { return Vec::new() };
    let length = file.metadata().map_or(0, |m| m.len());
    let from = length.saturating_sub(64 << 10);
    let mut bytes = vec![0; (length - from) as usize];
    let read = file.read_at(&mut bytes, from).unwrap_or(0);
    let text = String::from_utf8_lossy(&bytes[..read]).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|l| crate::text::clean(l, 400)).collect()
}

pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    const LIMIT: u64 = 256 << 20;
    let size = fs::metadata(path).map_err(|e| Error::io("read", path, e))?.len();
    if size > LIMIT {
        return Err(Error::limit_exceeded("JOB-FILE", "file is too large")
            .file(path)
            .found(size)
            .limit(LIMIT));
    }
    let text = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    serde_json::from_slice(&text).map_err(|e| {
        Error::invalid("JOB-FILE", format!("file is damaged: {e}"))
            .file(path)
            .hint("delete the job and run it again")
    })
}

/// Makes a directory that only its owner can enter, and its parents.
pub(crate) fn private_directory(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| Error::io("make the directory", path, e))
}

/// Makes the directory of a new job, with its request and its `queued` event; it appears complete or
/// not at all.
pub(super) fn create(paths: &Paths, request: &Request, directory: &Path) -> Result<JobHandle> {
    let jobs = paths.jobs();
    private_directory(&jobs)?;
    use std::os::unix::fs::PermissionsExt;
    let temp = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(&jobs)
        .map_err(|e| Error::io("make a job directory in", &jobs, e))?;
    let dir = temp.path();
    for name in ["control", "checkpoints", "artifacts"] {
        private_directory(&dir.join(name))?;
    }
    let about = request.about();
    request.store(dir)?;
    save::bytes(&dir.join("lock"), b"")?;
    save::bytes(&dir.join(QUEUED), b"")?;
    let mut writer = Log::open(dir, 0)?;
    writer.append(Event::Queued {
        name: about.name.clone(),
        what: about.what.clone(),
        model: about.model.clone(),
        steps: about.steps,
    })?;
    writer.commit()?;
    let model_bytes =
        fs::metadata(directory.join(&about.model)).ok().filter(|m| m.is_file()).map(|m| m.len());
    for _ in 0..64 {
        let id = JobId::new();
        let target = jobs.join(id.as_str());
        if target.exists() {
            continue;
        }
        let info = JobInfo {
            schema_version: SCHEMA_VERSION,
            id: id.clone(),
            what: about.what.clone(),
            name: about.name.clone(),
            model: about.model.clone(),
            model_bytes,
            model_sha256: None,
            host: clock::host(),
            directory: directory.to_path_buf(),
            created_ms: clock::wall_ms(),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        save::json(&dir.join("job.json"), &info)?;
        // A directory that is not empty cannot be replaced, so an id is never taken twice.
        if fs::rename(dir, &target).is_ok() {
            let _ = temp.keep();
            save::sync_directory(&jobs)?;
            return Ok(JobHandle { id, dir: target });
        }
    }
    Err(Error::storage("JOB-CREATE", "no job directory could be made")
        .file(&jobs)
        .hint("check the directory"))
}

/// Marker of a job that waits for its turn.
pub(super) const QUEUED: &str = "queued";

/// All jobs, oldest first. Entries that are not job directories are left out.
pub fn list(paths: &Paths) -> Vec<JobHandle> {
    let jobs = paths.jobs();
    let Ok(entries) = fs::read_dir(&jobs) else { return Vec::new() };
    let mut out: Vec<JobHandle> = entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .filter_map(|e| Some(JobHandle { id: e.file_name().to_str()?.parse().ok()?, dir: e.path() }))
        .collect();
    out.sort_by(|a, b| a.id.cmp(&b.id));
    out
}

/// The job whose id is, begins with or ends with `text` (`a1b2` is enough where it is unambiguous);
/// `last` is the newest.
pub fn open(paths: &Paths, text: &str) -> Result<JobHandle> {
    let mut all = list(paths);
    let unknown = |m: &str| Error::usage("JOB-ID", m).found(text).hint("`tinsmith jobs list` shows them");
    if text == "last" {
        return all.pop().ok_or_else(|| unknown("there is no job"));
    }
    if text.is_empty() {
        return Err(unknown("a job id is missing"));
    }
    if let Some(at) = all.iter().position(|j| j.id.as_str() == text) {
        return Ok(all.swap_remove(at));
    }
    all.retain(|j| j.id.as_str().starts_with(text) || j.id.as_str().ends_with(text));
    match all.len() {
        0 => Err(unknown("no such job")),
        1 => Ok(all.remove(0)),
        _ => Err(unknown("several jobs match")),
    }
}

/// The handle of a job directory given by its path, as the worker gets it.
pub fn at(dir: &Path) -> Result<JobHandle> {
    let dir = std::path::absolute(dir).map_err(|e| Error::io("find the job directory", dir, e))?;
    let name = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let id = name.parse().map_err(|e: Error| e.file(&dir))?;
    Ok(JobHandle { id, dir })
}

/// Whether the job's worker holds its lock.
pub(super) fn is_held(dir: &Path) -> bool {
    lock::held(dir) == lock::Held::Yes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_become_directories() {
        assert!("20261123-143015-a1b2".parse::<JobId>().is_ok());
        for bad in ["", ".", "..", "../x", "20261123-143015-a1b2/..", "20261123-143015-A1B2", "1-2-3", "a\0b"]
        {
            assert!(bad.parse::<JobId>().is_err(), "{bad:?}");
        }
        assert!(JobId::new().as_str().parse::<JobId>().is_ok());
    }

    #[test]
    fn artefact_paths_stay_inside() {
        let job = JobHandle { id: JobId::new(), dir: "/jobs/x".into() };
        assert_eq!(job.artifact("artifacts/a.onnx").unwrap(), Path::new("/jobs/x/artifacts/a.onnx"));
        for bad in ["", "/etc/passwd", "../y", "a/../../b", "./a"] {
            assert!(job.artifact(bad).is_err(), "{bad:?}");
        }
    }
}
