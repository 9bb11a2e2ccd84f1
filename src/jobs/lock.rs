//! Locks: who works on a job, how many jobs compute, who measures. All are `flock`s on files that are
//! never removed or renamed, so that a lock ends with its holder, whatever ends the holder.

use super::{clock, process::Identity, process::MemoryGroup};
use crate::config::Paths;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a lock that is held is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// Who holds, or held last, a job's lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Version of this format.
    pub schema_version: u32,
    /// The worker.
    pub process: Identity,
    /// Wall time of its start.
    pub since_ms: u64,
    /// Its memory cgroup at the start.
    pub memory: Option<MemoryGroup>,
    /// Last heartbeat, `mono_ms`, as digits of a fixed number: a beat overwrites the file in place and
    /// so needs no disk space.
    beat: String,
}

impl Holder {
    fn own() -> Holder {
        Holder {
            schema_version: 1,
            process: Identity::own(),
            since_ms: clock::wall_ms(),
            memory: MemoryGroup::own(Path::new("/")),
            beat: digits(clock::mono_ms()),
        }
    }

    /// The holder noted in a job's lock file; none where it is empty or garbage.
    pub fn read(dir: &Path) -> Option<Holder> {
        let text = fs::read_to_string(dir.join("lock")).ok()?;
        serde_json::from_str(text.trim()).ok().filter(|h: &Holder| h.schema_version == 1)
    }

    /// Last heartbeat, `mono_ms`.
    pub fn beat_ms(&self) -> u64 {
        self.beat.parse().unwrap_or(0)
    }
}

fn digits(ms: u64) -> String {
    format!("{ms:020}")
}

/// Exclusive right to work on a job directory and to write its log.
#[derive(Debug)]
pub struct JobLock {
    file: File,
    holder: Option<Holder>,
}

impl JobLock {
    /// Takes the lock of `dir`, trying for `wait`. A look at a job takes its lock for a moment, so
    /// even a worker waits a little.
    ///
    /// # Errors
    /// Kind `Busy`, naming the worker's pid and start.
    pub fn acquire(dir: &Path, wait: Duration) -> Result<JobLock> {
        let path = dir.join("lock");
        let file = open(&path)?;
        let until = Instant::now() + wait;
        loop {
            match attempt(&file) {
                Attempt::Taken => return Ok(JobLock { file, holder: None }),
                Attempt::NoLocking => {
                    // Where the file system cannot lock, the noted process decides.
                    match Holder::read(dir).filter(|h| h.process.is_alive()) {
                        Some(holder) if holder.process != Identity::own() => {
                            return Err(busy(&path, Some(&holder)));
                        }
                        _ => return Ok(JobLock { file, holder: None }),
                    }
                }
                Attempt::Failed(e) => return Err(Error::io("lock the job", &path, e)),
                Attempt::Held => {
                    let holder = Holder::read(dir).filter(|h| h.process.is_alive());
                    if Instant::now() >= until {
                        return Err(busy(&path, holder.as_ref()));
                    }
                    std::thread::sleep(RETRY);
                }
            }
        }
    }

    /// Notes this process as the worker.
    pub fn claim(&mut self) -> Result<()> {
        self.holder = Some(Holder::own());
        self.file.set_len(0).and_then(|()| self.note()).map_err(|e| Error::io("note the worker", "lock", e))
    }

    /// A heartbeat. A failure shows by itself as a worker that is silent.
    pub fn beat(&mut self) {
        if let Some(holder) = &mut self.holder {
            holder.beat = digits(clock::mono_ms());
            let _ = self.note();
        }
    }

    fn note(&self) -> std::io::Result<()> {
        use std::os::unix::fs::FileExt;
        let Some(holder) = &self.holder else { return Ok(()) };
        let mut line = serde_json::to_vec(holder)?;
        line.push(b'\n');
        self.file.write_all_at(&line, 0)
    }
}

/// Whether somebody works on the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The lock is held.
    Yes,
    /// The lock is free.
    No,
}

/// Whether the lock of `dir` is held; where files cannot be locked, whether the noted process lives.
pub fn held(dir: &Path) -> Held {
    let Ok(file) = File::open(dir.join("lock")) else { return Held::No };
    // A shared attempt, so that two that look at once do not take each other for a worker.
    match file.try_lock_shared() {
        Ok(()) => Held::No,
        Err(TryLockError::WouldBlock) => Held::Yes,
        Err(TryLockError::Error(_)) => match Holder::read(dir).is_some_and(|h| h.process.is_alive()) {
            true => Held::Yes,
            false => Held::No,
        },
    }
}

enum Attempt {
    Taken,
    Held,
    NoLocking,
    Failed(std::io::Error),
}

fn attempt(file: &File) -> Attempt {
    match file.try_lock() {
        Ok(()) => Attempt::Taken,
        Err(TryLockError::WouldBlock) => Attempt::Held,
        Err(TryLockError::Error(e)) => {
            let code = e.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
            match code {
                Some(rustix::io::Errno::NOLCK | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
                    Attempt::NoLocking
                }
                _ => Attempt::Failed(e),
            }
        }
    }
}

fn busy(path: &Path, holder: Option<&Holder>) -> Error {
    let error = Error::busy("JOB-BUSY", "a worker holds this job").file(path);
    match holder {
        Some(h) => error
            .found(format!("pid {}, started {} UTC", h.process.pid, clock::stamp(h.since_ms)))
            .hint("attach to it, or cancel it first"),
        None => error.hint("try again in a moment"),
    }
}

/// Opens a lock file; locks live on files that are never truncated by opening.
fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).map_err(|e| {
        if e.kind() == std::io::ErrorKind::NotFound {
            Error::storage("JOB-GONE", "the directory is gone").file(path).source(e)
        } else {
            Error::io("open the lock", path, e)
        }
    })
}

/// A lock of the home directory that is held until it is dropped.
#[derive(Debug)]
pub struct Guard {
    _files: Vec<File>,
}

/// The right to start jobs. Waits for at most `wait`.
pub fn queue(paths: &Paths, wait: Duration) -> Result<Guard> {
    let path = home(paths)?.join("queue.lock");
    let file = open(&path)?;
    let until = Instant::now() + wait;
    loop {
        match attempt(&file) {
            Attempt::Taken | Attempt::NoLocking => return Ok(Guard { _files: vec![file] }),
            Attempt::Failed(e) => return Err(Error::io("lock the queue", &path, e)),
            Attempt::Held if Instant::now() >= until => {
                return Err(Error::busy("QUEUE-BUSY", "somebody else starts jobs right now")
                    .file(&path)
                    .hint("try again in a moment"));
            }
            Attempt::Held => std::thread::sleep(RETRY),
        }
    }
}

/// What a job is about to do, as far as other jobs are disturbed by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Any number of jobs may compute at once.
    Computing,
    /// A measuring job is alone on the machine.
    Measuring,
}

/// Waits until `activity` may begin; `check` runs meanwhile and may stop the wait, `waiting` is called
/// once if there is a wait. A measuring job that waits holds back those that want to begin computing.
pub fn activity(
    paths: &Paths,
    activity: Activity,
    check: impl Fn() -> Result<()>,
    waiting: impl FnOnce(),
) -> Result<Guard> {
    let home = home(paths)?;
    let (turn, gate) = (open(&home.join("measure.turn"))?, open(&home.join("measure.lock"))?);
    let mut waiting = Some(waiting);
    let mut take = |file: &File, exclusive: bool| -> Result<()> {
        loop {
            let result = if exclusive { file.try_lock() } else { file.try_lock_shared() };
            match result {
                Err(TryLockError::WouldBlock) => {}
                // Without locking measurements may be disturbed; they say so in their noise figures.
                Ok(()) | Err(TryLockError::Error(_)) => return Ok(()),
            }
            if let Some(tell) = waiting.take() {
                tell();
            }
            check()?;
            std::thread::sleep(RETRY);
        }
    };
    match activity {
        Activity::Computing => {
            take(&turn, false)?;
            take(&gate, false)?;
            Ok(Guard { _files: vec![gate] })
        }
        Activity::Measuring => {
            take(&turn, true)?;
            take(&gate, true)?;
            Ok(Guard { _files: vec![gate] })
        }
    }
}

/// Most jobs that ever compute at once.
const SLOTS: usize = 256;

/// Takes the lowest free slot; its lock counts this job as active until the guard is dropped.
pub fn slot(paths: &Paths) -> Result<Guard> {
    for index in 0..SLOTS {
        let file = open(&slot_path(paths, index)?)?;
        if !matches!(attempt(&file), Attempt::Held) {
            return Ok(Guard { _files: vec![file] });
        }
    }
    Err(Error::limit_exceeded("JOBS-ACTIVE", "too many jobs are active").limit(SLOTS))
}

/// How many jobs are active, counted up to `most`.
pub fn active(paths: &Paths, most: usize) -> Result<usize> {
    let mut count = 0;
    for index in 0..SLOTS {
        let path = slot_path(paths, index)?;
        let Ok(file) = File::open(&path) else { break };
        if matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
            count += 1;
        }
        if count >= most {
            break;
        }
    }
    Ok(count)
}

fn slot_path(paths: &Paths, index: usize) -> Result<PathBuf> {
    Ok(home(paths)?.join(format!("slot-{index}.lock")))
}

/// The directory of the house's own locks, made if it is missing.
fn home(paths: &Paths) -> Result<PathBuf> {
    let path = paths.home().join("locks");
    super::store::private_directory(&path)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_held_lock_names_pid_and_start() {
        let dir = tempfile::tempdir().unwrap();
        let mut lock = JobLock::acquire(dir.path(), Duration::ZERO).unwrap();
        lock.claim().unwrap();
        let size = fs::metadata(dir.path().join("lock")).unwrap().len();
        lock.beat();
        assert_eq!(fs::metadata(dir.path().join("lock")).unwrap().len(), size, "a beat needs no space");
        assert_eq!(held(dir.path()), Held::Yes);
        let e = JobLock::acquire(dir.path(), Duration::ZERO).unwrap_err();
        assert_eq!(e.kind().exit_code(), 7);
        assert!(e.to_string().contains(&format!("pid {}", std::process::id())), "{e}");
        drop(lock);
        assert_eq!(held(dir.path()), Held::No);
    }

    #[test]
    fn garbage_in_the_lock_file_does_not_lock() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "garbage", "\0\0\0\0", "{\"pid\":1}", "99999999999999999999"] {
            fs::write(dir.path().join("lock"), text).unwrap();
            assert_eq!(Holder::read(dir.path()), None);
            assert_eq!(held(dir.path()), Held::No);
            JobLock::acquire(dir.path(), Duration::ZERO).unwrap().claim().unwrap();
            assert!(Holder::read(dir.path()).unwrap().process.is_alive());
        }
    }

    #[test]
    fn measuring_is_alone_and_goes_before_new_computing() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        let free = || Ok(());
        let first = activity(&paths, Activity::Computing, free, || ()).unwrap();
        let second = activity(&paths, Activity::Computing, free, || ()).unwrap();
        let told = AtomicBool::new(false);
        let stopped = || Err(Error::stopped("X", "enough"));
        let tell = || told.store(true, Ordering::Relaxed);
        assert!(activity(&paths, Activity::Measuring, stopped, tell).is_err());
        assert!(told.load(Ordering::Relaxed));
        std::thread::scope(|s| {
            let measuring = s.spawn(|| activity(&paths, Activity::Measuring, free, || ()).unwrap());
            std::thread::sleep(Duration::from_millis(100));
            assert!(
                activity(&paths, Activity::Computing, stopped, || ()).is_err(),
                "a waiting measurement holds back new work"
            );
            drop((first, second));
            drop(measuring.join().unwrap());
        });
        drop(activity(&paths, Activity::Computing, stopped, || ()).unwrap());
    }

    #[test]
    fn slots_count_active_jobs() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        assert_eq!(active(&paths, 9).unwrap(), 0);
        let one = slot(&paths).unwrap();
        let two = slot(&paths).unwrap();
        assert_eq!(active(&paths, 9).unwrap(), 2);
        drop(one);
        assert_eq!(active(&paths, 9).unwrap(), 1);
        drop(two);
    }
}
