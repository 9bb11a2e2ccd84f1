//! The worker: one process per job, detached from whoever started it. A job directory enters; events,
//! state and artefacts leave, and an exit code. It survives the end of its terminal, stops on request
//! with everything saved, waits when the disk is full, and notes its own failure.

mod detach;
mod ticker;

use super::checkpoint::Checkpoints;
use super::event::Event;
use super::liveness::DISK_FULL;
use super::lock::{self, JobLock};
use super::log::Log;
use super::reporter::{JobMonitor, Stop};
use super::request::Request;
use super::state::{JobState, Status};
use super::store::{self, JobHandle, JobInfo, QUEUED};
use super::work::{self, Context};
use super::{clock, queue};
use crate::config::{Paths, Settings};
use crate::error::{Error, Kind, Result};
use crate::monitor::{Level, Monitor};
use crate::save;
use crate::units::Bytes;
use serde::Serialize;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};
use ticker::Ticker;

/// Exit code of a job that stopped and can be resumed.
const RESUMABLE: u8 = 75;
/// How long to wait for a lock that somebody holds who only looks.
const GLANCE: Duration = Duration::from_millis(500);
/// Space that is given back when the disk is full, so that the pause itself can be noted.
const RESERVE: usize = 64 << 10;

/// Runs as a worker where the arguments of this process (the program's name first) are those that the
/// queue starts workers with, `--home HOME __worker DIR`; returns the exit code then.
pub fn invoked(arguments: impl Iterator<Item = OsString>) -> Option<u8> {
    let arguments: Vec<OsString> = arguments.skip(1).collect();
    let [flag, home, command, dir] = arguments.as_slice() else { return None };
    if flag != "--home" || command != "__worker" {
        return None;
    }
    Some(match Paths::resolve(Some(Path::new(home))) {
        Ok(paths) => main(Path::new(dir), &paths),
        Err(e) => e.kind().exit_code(),
    })
}

/// Works on the job in `dir` until it ends; the exit code is 0, 75 where it can be resumed, 7 where
/// another worker holds it, 70 after a panic, else the code of the error.
pub fn main(dir: &Path, paths: &Paths) -> u8 {
    detach::session();
    match Worker::begin(dir, paths) {
        Ok(worker) => worker.work(),
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "error: {e}");
            e.kind().exit_code()
        }
    }
}

struct Worker<'a> {
    job: JobHandle,
    paths: &'a Paths,
    monitor: JobMonitor,
    ticker: Ticker,
}

/// What ends one try.
enum End {
    Finished,
    Stopped(Stop),
    Full(Error),
    Failed(Error),
    Panicked(String),
}

impl<'a> Worker<'a> {
    /// Takes the job; from then on its output goes to `worker.log` and its heart beats.
    fn begin(dir: &Path, paths: &'a Paths) -> Result<Worker<'a>> {
        let job = store::at(dir)?;
        // The slot before the job: whoever started this worker counts again once the job is held.
        let slot = lock::slot(paths)?;
        let mut lock = JobLock::acquire(&job.dir, GLANCE)?;
        if !job.dir.join(QUEUED).exists() {
            return Err(Error::busy("JOB-NOT-QUEUED", "the job is not queued")
                .file(&job.dir)
                .found(job.state().status.word())
                .hint("`tinsmith jobs resume` queues it again"));
        }
        lock.claim()?;
        detach::output(&job.dir)?;
        detach::panics();
        save::sweep(&job.dir);
        let state = job.state();
        let log = Log::open(&job.dir, state.next_seq)?;
        let monitor = JobMonitor::new(&job.dir, log, state, super::process::memory_cap());
        let ticker = Ticker::new(&job.dir, lock, slot)?;
        Ok(Worker { job, paths, monitor, ticker })
    }

    fn work(self) -> u8 {
        let end = std::thread::scope(|scope| {
            let beating = scope.spawn(|| self.ticker.run(&self.monitor));
            let code = self.tries();
            self.ticker.end();
            let _ = beating.join();
            code
        });
        let _ = self.monitor.snapshot();
        let paths = self.paths;
        drop(self);
        let settings = Settings::load(&paths.settings()).unwrap_or_default();
        if let Err(e) = queue::dispatch(paths, &settings) {
            let _ = writeln!(std::io::stderr(), "cannot start the next job: {e}");
        }
        end
    }

    /// Tries until the job ends for another reason than a full disk.
    fn tries(&self) -> u8 {
        loop {
            let reserve = self.job.dir.join("reserve");
            let _ = fs::write(&reserve, vec![0; RESERVE]);
            let end = match catch_unwind(AssertUnwindSafe(|| self.one_try())) {
                Ok(end) => end,
                Err(payload) => End::Panicked(detach::message(&*payload)),
            };
            let _ = fs::remove_file(&reserve);
            match end {
                End::Full(error) => match self.wait_for_space(&error) {
                    Ok(()) => continue,
                    Err(stop) => return self.stopped(stop),
                },
                End::Stopped(stop) => return self.stopped(stop),
                End::Finished => {
                    self.summary();
                    return self.last(Event::Finished, 0);
                }
                End::Failed(error) => {
                    let code = error.kind().exit_code();
                    return self.last(Event::Failed { message: error.to_string(), exit_code: code }, code);
                }
                End::Panicked(message) => {
                    let lines = self.job.worker_log(50);
                    self.monitor
                        .log(Level::Error, &format!("last lines of worker.log:\n{}", lines.join("\n")));
                    let code = Kind::Internal.exit_code();
                    let message = format!("internal error: {message}; please report it with worker.log");
                    return self.last(Event::Failed { message, exit_code: code }, code);
                }
            }
        }
    }

    fn stopped(&self, stop: Stop) -> u8 {
        self.last(stop_event(stop), RESUMABLE)
    }

    /// Writes the last event; waits for space if that is what lacks.
    fn last(&self, event: Event, code: u8) -> u8 {
        let begin = Instant::now();
        let mut result = self.monitor.event(event);
        // Whatever ended the job, it does not wait for its turn any more.
        let _ = fs::remove_file(self.job.dir.join(QUEUED));
        while let Err(e) = result {
            let patient = save::is_disk_full(&e) && self.monitor.stopped().is_none();
            if !patient && begin.elapsed() > Duration::from_millis(500) {
                let _ = writeln!(std::io::stderr(), "error: {e}");
                return e.kind().exit_code();
            }
            std::thread::sleep(Duration::from_millis(if patient { 1000 } else { 100 }));
            result = self.monitor.commit();
        }
        code
    }

    fn one_try(&self) -> End {
        match self.prepare_and_run() {
            Ok(()) => End::Finished,
            Err(e) if e.kind() == Kind::Stopped => {
                End::Stopped(self.monitor.stopped().unwrap_or(Stop::Pause))
            }
            Err(e) if save::is_disk_full(&e) => End::Full(e),
            Err(e) => End::Failed(e),
        }
    }

    fn prepare_and_run(&self) -> Result<()> {
        let again = self.monitor.state().pid.is_some();
        let pid = std::process::id();
        if !again {
            self.monitor.event(Event::Started { pid, host: clock::host() })?;
        }
        let request = self.job.request()?;
        let info = self.identify(&request)?;
        let checkpoints = Checkpoints::new(&self.job.dir.join("checkpoints"), &identity(&request, &info)?);
        let done = checkpoints.newest_valid(|warning| self.monitor.log(Level::Warning, &warning));
        if again {
            let step = done.as_ref().map_or(0, |c| c.step + 1);
            self.monitor.event(Event::Resumed { pid, step })?;
        }
        let _ = fs::remove_file(self.job.dir.join(QUEUED));
        self.monitor.check()?;
        let ctx = Context {
            job: &self.job,
            info: &info,
            paths: self.paths,
            monitor: &self.monitor,
            checkpoints: &checkpoints,
            done: done.as_ref(),
        };
        work::of(&request)?.run(&ctx)
    }

    /// Notes the digest of the model on the first start, and insists on it afterwards.
    fn identify(&self, request: &Request) -> Result<JobInfo> {
        let mut info = self.job.info()?;
        let model = info.directory.join(request.about().model);
        if !model.is_file() {
            return Ok(info);
        }
        let file = File::open(&model).map_err(|e| Error::io("read the model", &model, e))?;
        let (digest, _) = save::digest_of(file, || self.monitor.check()).map_err(|e| e.file(&model))?;
        match &info.model_sha256 {
            Some(before) if *before != digest => {
                Err(Error::integrity("JOB-MODEL", "the model has changed since the job began")
                    .file(&model)
                    .found(&digest)
                    .limit(before)
                    .hint("restore the model, or submit a new job"))
            }
            Some(_) => Ok(info),
            None => {
                // Before the first start the size is all that is known of the model as submitted.
                let size = model.metadata().map(|m| m.len()).ok();
                if let (Some(before), Some(now)) = (info.model_bytes, size)
                    && before != now
                {
                    return Err(Error::integrity(
                        "JOB-MODEL",
                        "the model has changed since the job was submitted",
                    )
                    .file(&model)
                    .found(format!("{now} bytes"))
                    .limit(format!("{before} bytes"))
                    .hint("restore the model, or submit a new job"));
                }
                info.model_sha256 = Some(digest);
                save::json(&self.job.dir.join("job.json"), &info)?;
                Ok(info)
            }
        }
    }

    /// Pauses until there is more space than when it ran out, or it is time to look whether it is
    /// enough anyway.
    fn wait_for_space(&self, error: &Error) -> std::result::Result<(), Stop> {
        let before = free(&self.job.dir);
        let reason = format!("{DISK_FULL}: {} free on {}", Bytes(before.0), self.job.dir.display());
        let _ = self.monitor.event(Event::Log { level: Level::Warning, message: error.to_string() });
        let _ = self.monitor.event(Event::Paused { reason });
        let _ = self.monitor.snapshot();
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(60) {
            if let Some(stop) = self.monitor.stopped() {
                return Err(stop);
            }
            let now = free(&self.job.dir);
            if now.0 > before.0 + 2 * RESERVE as u64 || now.1 > before.1 + 8 {
                break;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(())
    }

    fn summary(&self) {
        let state = self.monitor.state();
        if let Err(e) = save::json(&self.job.dir.join("summary.json"), &Summary::of(&self.job, &state)) {
            self.monitor.log(Level::Warning, &format!("no summary: {e}"));
        }
    }
}

/// The event that ends a job for this reason.
fn stop_event(stop: Stop) -> Event {
    match stop {
        Stop::Cancel => Event::Cancelled,
        Stop::Pause => Event::Paused { reason: "request".into() },
        Stop::Signal => Event::Paused { reason: "stopped by a signal".into() },
    }
}

/// Bytes and inodes that are free for this user.
pub(super) fn free(dir: &Path) -> (u64, u64) {
    rustix::fs::statvfs(dir).map_or((0, 0), |s| (s.f_bavail.saturating_mul(s.f_frsize), s.f_favail))
}

/// Digest of everything that decides the result of a request.
fn identity(request: &Request, info: &JobInfo) -> Result<String> {
    let text = serde_json::to_string(&(request, &info.model_sha256, &info.version))
        .map_err(|e| Error::internal("JOB-IDENTITY", e.to_string()))?;
    Ok(save::sha256(text.as_bytes()))
}

/// What `summary.json` holds.
#[derive(Serialize)]
struct Summary<'a> {
    schema_version: u32,
    id: &'a str,
    name: &'a str,
    what: &'a str,
    model: &'a str,
    status: Status,
    artifacts: &'a [super::state::Artifact],
    measurements: &'a [crate::evaluate::measurement::Measurement],
    warnings: u64,
}

impl Summary<'_> {
    fn of<'a>(job: &'a JobHandle, state: &'a JobState) -> Summary<'a> {
        Summary {
            schema_version: store::SCHEMA_VERSION,
            id: job.id.as_str(),
            name: &state.name,
            what: &state.what,
            model: &state.model,
            status: Status::Finished,
            artifacts: &state.artifacts,
            measurements: &state.measurements,
            warnings: state.warnings,
        }
    }
}
