//! Submitting, starting and controlling jobs. There is no daemon: every face that looks and every
//! worker that ends calls [`dispatch`], which starts what may start.

use super::event::Event;
use super::liveness;
use super::lock::{self, Holder, JobLock};
use super::log::Log;
use super::request::Request;
use super::state::Status;
use super::store::{self, JobHandle, JobId, QUEUED};
use crate::config::{Paths, Settings};
use crate::error::{Error, Result};
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a started worker may take to hold its job.
const START: Duration = Duration::from_secs(10);
/// What a worker runs with unless the environment says otherwise: the allocator keeps what it freed, since
/// a training asks for the same sizes at each step, and candle's loops start no threads beside the pool.
const WORKER_VARIABLES: [(&str, &str); 2] = [("MIMALLOC_PURGE_DELAY", "-1"), ("CANDLE_NUM_THREADS", "1")];
/// How long a look at a job by somebody else may keep its lock.
const GLANCE: Duration = Duration::from_millis(200);

/// Makes a job for `request` and queues it; [`dispatch`] starts it. Relative paths of the request refer
/// to this process's directory.
pub fn submit(paths: &Paths, request: &Request) -> Result<JobId> {
    let here = std::env::current_dir().map_err(|e| Error::io("find the current directory", ".", e))?;
    Ok(store::create(paths, request, &here)?.id)
}

/// Starts queued jobs, oldest first, while fewer than `settings.concurrent_jobs` are active. Returns
/// those that were started. A job that cannot be started is noted as failed and does not hold up others;
/// neither does one that waits for the end of others.
pub fn dispatch(paths: &Paths, settings: &Settings) -> Result<Vec<JobId>> {
    dispatch_with(paths, settings, &program()?)
}

/// The program that workers run: this one, or `$TINSMITH_WORKER`.
fn program() -> Result<PathBuf> {
    match std::env::var_os("TINSMITH_WORKER").filter(|v| !v.is_empty()) {
        Some(path) => Ok(path.into()),
        None => std::env::current_exe().map_err(|e| Error::io("find this program", "tinsmith", e)),
    }
}

/// [`dispatch`] with the worker program named, which tests need.
pub fn dispatch_with(paths: &Paths, settings: &Settings, program: &Path) -> Result<Vec<JobId>> {
    let mut started = Vec::new();
    let queued = |jobs: Vec<JobHandle>| -> Vec<JobHandle> {
        jobs.into_iter().filter(|j| j.dir.join(QUEUED).exists()).collect()
    };
    if queued(store::list(paths)).is_empty() {
        return Ok(started);
    }
    let _turn = lock::queue(paths, START)?;
    let limit = settings.concurrent_jobs.max(1);
    for job in queued(store::list(paths)) {
        if store::is_held(&job.dir) || waits(paths, &job) {
            continue;
        }
        if lock::active(paths, limit)? >= limit {
            break;
        }
        match start(&job, paths, program) {
            Ok(()) => started.push(job.id),
            Err(e) => refuse(&job, &e),
        }
    }
    Ok(started)
}

/// Whether a job that must come first has not ended. One that is paused will go on; one that was
/// deleted will not.
fn waits(paths: &Paths, job: &JobHandle) -> bool {
    let Ok(request) = job.request() else { return false };
    let ended = |id: &JobId| store::open(paths, id.as_str()).map_or(true, |j| j.status().status.is_final());
    !request.after().iter().all(ended)
}

/// Notes that a job could not be started.
fn refuse(job: &JobHandle, error: &Error) {
    let failed = Event::Failed { message: error.to_string(), exit_code: error.kind().exit_code() };
    if let Ok(lock) = JobLock::acquire(&job.dir, GLANCE) {
        let _ = note(job, &lock, failed);
        let _ = fs::remove_file(job.dir.join(QUEUED));
    }
}

fn note(job: &JobHandle, _lock: &JobLock, event: Event) -> Result<()> {
    let mut log = Log::open(&job.dir, job.state().next_seq)?;
    log.append(event)?;
    log.commit()
}

/// Starts the worker of `job` and waits until it holds the job or has ended.
fn start(job: &JobHandle, paths: &Paths, program: &Path) -> Result<()> {
    let output = OpenOptions::new()
        .append(true)
        .create(true)
        .open(job.dir.join("worker.log"))
        .map_err(|e| Error::io("open the worker's log", &job.dir, e))?;
    let errors = output.try_clone().map_err(|e| Error::io("open the worker's log", &job.dir, e))?;
    let directory = job.info()?.directory;
    let mut command = Command::new(program);
    command.arg("--home").arg(paths.home()).arg("__worker").arg(&job.dir);
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    for (name, value) in WORKER_VARIABLES.iter().filter(|(name, _)| std::env::var_os(name).is_none()) {
        command.env(name, value);
    }
    command.current_dir(if directory.is_dir() { directory.as_path() } else { Path::new("/") });
    let mut child = command.spawn().map_err(|e| {
        Error::died("WORKER-START", format!("cannot start the worker: {e}"))
            .file(program)
            .hint("check memory and process limits")
    })?;
    let until = Instant::now() + START;
    let mut ended = None;
    while Instant::now() < until {
        if store::is_held(&job.dir) && Holder::read(&job.dir).is_some_and(|h| h.process.pid == child.id()) {
            break;
        }
        ended = child.try_wait().ok().flatten();
        if ended.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    match ended {
        // It may have done all its work already; the marker tells whether it got that far.
        Some(status) if job.dir.join(QUEUED).exists() && !store::is_held(&job.dir) => {
            let last = job.worker_log(3).join(" | ");
            Err(Error::died("WORKER-START", format!("the worker ended at once ({status}): {last}"))
                .file(program))
        }
        Some(_) => Ok(()),
        None => {
            let job = job.clone();
            // Takes the child's exit status, so that no zombie stays and a signal is known by its name.
            std::thread::spawn(move || reap(&job, child));
            Ok(())
        }
    }
}

/// The child stays a zombie until its death is noted, so that whoever looks meanwhile can see what killed it.
fn reap(job: &JobHandle, mut child: Child) {
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
        && let Ok(Some(ended)) = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        && let Some(signal) = ended.terminating_signal()
    {
        liveness::bury(job, Some(signal));
    }
    let _ = child.wait();
}

/// What a worker can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Stop for good.
    Cancel,
    /// Stop with a checkpoint.
    Pause,
}

impl Ask {
    fn file(self) -> &'static str {
        match self {
            Ask::Cancel => "cancel",
            Ask::Pause => "pause",
        }
    }

    /// What the control files of `dir` ask for.
    pub(super) fn read(dir: &Path) -> Option<Ask> {
        [Ask::Cancel, Ask::Pause].into_iter().find(|a| dir.join("control").join(a.file()).exists())
    }
}

/// Asks the worker to stop for good; a job without one is cancelled at once. Cancelling twice is fine.
pub fn cancel(job: &JobHandle) -> Result<()> {
    ask(job, Ask::Cancel)
}

/// Asks the worker to stop with a checkpoint; a queued job is taken out of the queue.
pub fn pause(job: &JobHandle) -> Result<()> {
    ask(job, Ask::Pause)
}

fn ask(job: &JobHandle, ask: Ask) -> Result<()> {
    match JobLock::acquire(&job.dir, GLANCE) {
        Ok(lock) => {
            let status = job.state().status;
            match (ask, status) {
                (Ask::Pause, Status::Queued) => {
                    let _ = fs::remove_file(job.dir.join(QUEUED));
                    note(job, &lock, Event::Paused { reason: "request".into() })
                }
                (Ask::Cancel, Status::Queued | Status::Paused) => {
                    let _ = fs::remove_file(job.dir.join(QUEUED));
                    note(job, &lock, Event::Cancelled)
                }
                (_, Status::Running) => {
                    drop(lock);
                    liveness::bury(job, None);
                    Ok(())
                }
                _ => Ok(()),
            }
        }
        Err(e) if e.kind() == crate::error::Kind::Busy => {
            let path = job.dir.join("control").join(ask.file());
            fs::write(&path, b"").map_err(|e| Error::io("ask the worker", &path, e))
        }
        Err(e) => Err(e),
    }
}

/// Queues a job again that was paused, cancelled, failed or died; [`dispatch`] starts it, and it goes
/// on from its newest valid checkpoint. A queued job stays queued.
///
/// # Errors
/// `Busy` where a worker holds it, `Usage` where it has ended well.
pub fn resume(job: &JobHandle) -> Result<()> {
    job.status();
    let lock = JobLock::acquire(&job.dir, GLANCE)?;
    let status = job.state().status;
    if status == Status::Queued {
        return Ok(());
    }
    if !status.is_resumable() {
        return Err(Error::usage("JOB-ENDED", "the job has nothing left to do")
            .found(status.word())
            .hint("submit it again for another run"));
    }
    for ask in [Ask::Cancel, Ask::Pause] {
        let _ = fs::remove_file(job.dir.join("control").join(ask.file()));
    }
    let about = job.request()?.about();
    let queued = Event::Queued { name: about.name, what: about.what, model: about.model, steps: about.steps };
    note(job, &lock, queued)?;
    let marker = job.dir.join(QUEUED);
    fs::write(&marker, b"").map_err(|e| Error::io("queue the job", &marker, e))
}

/// Removes a job and all its files.
///
/// # Errors
/// `Busy` where a worker holds it.
pub fn delete(paths: &Paths, job: &JobHandle) -> Result<()> {
    let lock = JobLock::acquire(&job.dir, GLANCE)?;
    // Out of sight first, so that a half removed job is never listed.
    let trash = paths.jobs().join(format!(".deleted-{}", job.id));
    fs::rename(&job.dir, &trash).map_err(|e| Error::io("delete the job", &job.dir, e))?;
    drop(lock);
    fs::remove_dir_all(&trash).map_err(|e| Error::io("delete the job", &trash, e))
}

/// Kills a worker that does not react, after checking that it is the one that holds the job. The job
/// is then dead and can be resumed. Tells whether there was one.
pub fn terminate(job: &JobHandle) -> bool {
    store::is_held(&job.dir)
        && Holder::read(&job.dir).is_some_and(|h| h.process.signal(rustix::process::Signal::KILL))
}
