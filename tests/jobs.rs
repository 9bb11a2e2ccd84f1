//! Jobs as processes: workers that are killed, stopped, raced and cut off from their terminal.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tinsmith::config::{Paths, Settings};
use tinsmith::jobs::lock::{Holder, JobLock};
use tinsmith::jobs::{self, Event, JobHandle, JobState, Request, Status, queue};
use tinsmith::plan::{Recipe, Step};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tinsmith");

/// A home with one queued job.
struct Home {
    dir: tempfile::TempDir,
    paths: Paths,
}

impl Home {
    fn new() -> Home {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        fs::write(dir.path().join("model.onnx"), "a model").unwrap();
        Home { dir, paths }
    }

    fn submit(&self) -> JobHandle {
        let mut recipe = Recipe::new("trial", self.dir.path().join("model.onnx").to_str().unwrap());
        recipe.steps.push(Step::new("optimize"));
        let id = jobs::submit(&self.paths, &Request::Run { recipe }).unwrap();
        jobs::open(&self.paths, id.as_str()).unwrap()
    }

    fn command(&self, job: &JobHandle, trial: &str) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("--home").arg(self.paths.home()).arg("__worker").arg(&job.dir);
        command.env("TINSMITH_TRIAL", trial).stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn start(&self, job: &JobHandle, trial: &str) -> Child {
        self.command(job, trial).spawn().unwrap()
    }

    fn run(&self, job: &JobHandle, trial: &str) -> ExitStatus {
        self.start(job, trial).wait().unwrap()
    }

    /// Digest of the artefact that an undisturbed run of `trial` gives.
    fn reference(&self, trial: &str) -> String {
        let job = self.submit();
        assert_eq!(self.run(&job, trial).code(), Some(0), "{:?}", job.worker_log(20));
        artifact(&job)
    }
}

fn artifact(job: &JobHandle) -> String {
    let state = job.state();
    assert_eq!(state.status, Status::Finished, "{state:?}");
    let made = &state.artifacts[0];
    let (sha256, bytes) = tinsmith::save::digest(&job.artifact(&made.path).unwrap()).unwrap();
    assert_eq!((&sha256, bytes), (&made.sha256, made.bytes));
    sha256
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(20), "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn kill(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

fn replay(job: &JobHandle) -> JobState {
    let mut state = JobState::default();
    job.tail().poll().iter().for_each(|r| state.apply(r));
    state
}

const SHORT: &str = r#"{"steps":3,"millis":20}"#;
const LONG: &str = r#"{"steps":3,"millis":400}"#;
const ENDLESS: &str = r#"{"steps":1,"millis":60000}"#;

#[test]
fn a_job_runs_to_its_end_and_keeps_what_it_did() {
    let home = Home::new();
    let job = home.submit();
    assert_eq!(job.status().word(), "queued");
    assert_eq!(home.run(&job, SHORT).code(), Some(0));
    let state = job.state();
    assert_eq!(state.status, Status::Finished);
    assert_eq!(state, replay(&job), "state.json and a replay agree");
    assert_eq!(state.checkpoint.as_ref().unwrap().0, 2);
    assert_eq!(job.info().unwrap().model_sha256.unwrap(), tinsmith::save::sha256(b"a model"));
    assert!(job.dir.join("summary.json").exists());
    assert_eq!(fs::read_dir(job.dir.join("checkpoints")).unwrap().count(), 2);
    let mode = fs::metadata(&job.dir).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "others cannot read it");
    assert_eq!(
        job.tail().poll().iter().map(|r| r.seq).collect::<Vec<_>>(),
        (0..state.next_seq).collect::<Vec<_>>()
    );
    let e = jobs::resume(&job).unwrap_err();
    assert_eq!(e.kind().exit_code(), 2);
}

#[test]
fn a_killed_worker_is_shown_dead_and_resumed_to_the_same_artefact() {
    let home = Home::new();
    let expected = home.reference(LONG);
    let job = home.submit();
    let mut worker = home.start(&job, LONG);
    until("the second step", || job.state().checkpoint.is_some());
    assert_eq!(job.status().word(), "running");
    assert_eq!(job.status().pid, Some(worker.id()));
    kill(worker.id(), rustix::process::Signal::KILL);
    worker.wait().unwrap();
    let status = job.status();
    assert_eq!(status.status, Status::Dead);
    assert_eq!(status.reason.as_deref(), Some("killed, cause unknown"), "nobody calls this out of memory");
    job.status();
    let deaths = job.tail().poll().iter().filter(|r| matches!(r.event, Event::Dead { .. })).count();
    assert_eq!(deaths, 1, "noted once");
    jobs::resume(&job).unwrap();
    assert_eq!(home.run(&job, LONG).code(), Some(0));
    assert!(job.tail().poll().iter().any(|r| matches!(r.event, Event::Resumed { step: 1.., .. })));
    assert_eq!(artifact(&job), expected);
}

#[test]
fn a_signal_stops_a_worker_within_two_seconds_resumable() {
    let home = Home::new();
    let expected = home.reference(LONG);
    for trial in [LONG, r#"{"steps":3,"millis":400,"fault":"deaf"}"#] {
        let job = home.submit();
        let deaf = trial.contains("deaf");
        let text = if deaf { trial.replace("400", "5000") } else { trial.to_string() };
        let mut worker = home.start(&job, &text);
        until("work", || job.state().phase.done > 0);
        let begin = Instant::now();
        kill(worker.id(), rustix::process::Signal::TERM);
        kill(worker.id(), rustix::process::Signal::TERM);
        assert_eq!(worker.wait().unwrap().code(), Some(75), "{trial}");
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
        let status = job.status();
        assert_eq!((status.status, status.reason.as_deref()), (Status::Paused, Some("stopped by a signal")));
        jobs::resume(&job).unwrap();
        assert_eq!(home.run(&job, LONG).code(), Some(0));
        assert_eq!(artifact(&job), expected);
    }
}

#[test]
fn pause_and_cancel_reach_a_worker_and_a_queued_job() {
    let home = Home::new();
    for (ask, status) in
        [(jobs::pause as fn(&JobHandle) -> _, Status::Paused), (jobs::cancel, Status::Cancelled)]
    {
        let job = home.submit();
        ask(&job).unwrap();
        assert_eq!(job.status().status, status);
        assert_eq!(home.run(&job, SHORT).code(), Some(7), "it is not queued any more");
        jobs::resume(&job).unwrap();
        assert_eq!(job.status().status, Status::Queued);
        let mut worker = home.start(&job, ENDLESS);
        until("work", || job.state().phase.done > 0);
        ask(&job).unwrap();
        assert_eq!(worker.wait().unwrap().code(), Some(75));
        assert_eq!(job.status().status, status);
        jobs::resume(&job).unwrap();
        assert_eq!(home.run(&job, SHORT).code(), Some(0));
    }
}

#[test]
fn of_many_workers_on_one_job_exactly_one_wins() {
    let home = Home::new();
    let job = home.submit();
    let trial = r#"{"steps":1,"millis":3000}"#;
    let workers: Vec<Child> = (0..24).map(|_| home.start(&job, trial)).collect();
    let outputs: Vec<_> = workers.into_iter().map(|w| w.wait_with_output().unwrap()).collect();
    let won = outputs.iter().filter(|o| o.status.code() == Some(0)).count();
    assert_eq!(won, 1);
    for output in outputs.iter().filter(|o| o.status.code() != Some(0)) {
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(7), "{text}");
        assert!(text.contains("pid ") && text.contains("started "), "{text}");
    }
    let starts = job.tail().poll().iter().filter(|r| matches!(r.event, Event::Started { .. })).count();
    assert_eq!(starts, 1);
}

#[test]
fn stale_locks_do_not_hold_a_job_and_nothing_foreign_is_signalled() {
    let home = Home::new();
    let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
    let job = home.submit();
    {
        let mut lock = JobLock::acquire(&job.dir, Duration::ZERO).unwrap();
        lock.claim().unwrap();
    }
    let own = Holder::read(&job.dir).unwrap();
    let mut noted = serde_json::to_value(&own).unwrap();
    let mut cases = vec![String::new(), "garbage".into(), "\0\0\0".into()];
    for (pid, boot) in
        [(4_000_000, None), (sleeper.id(), None), (2, None), (sleeper.id(), Some("other-boot"))]
    {
        noted["process"]["pid"] = pid.into();
        if let Some(boot) = boot {
            noted["process"]["boot"] = boot.into();
        }
        cases.push(noted.to_string());
    }
    for text in cases {
        fs::write(job.dir.join("lock"), &text).unwrap();
        assert_eq!(job.status().word(), "queued", "{text}");
        assert!(!jobs::terminate(&job), "{text}");
    }
    // The same, with a log that says a worker was running.
    let mut log = jobs::log::Log::open(&job.dir, 0).unwrap();
    log.append(Event::Started { pid: sleeper.id(), host: "here".into() }).unwrap();
    log.commit().unwrap();
    let status = job.status();
    assert_eq!(status.status, Status::Dead);
    assert_eq!(status.reason.as_deref(), Some("gone: the machine was started again"));
    assert!(sleeper.try_wait().unwrap().is_none(), "the foreign process lives");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    jobs::resume(&job).unwrap();
    assert_eq!(home.run(&job, SHORT).code(), Some(0));
}

#[test]
fn a_panic_is_a_failed_job_with_its_last_words() {
    let home = Home::new();
    let job = home.submit();
    let trial = r#"{"fault":"panic","fault_step":1}"#;
    assert_eq!(home.run(&job, trial).code(), Some(70));
    let state = job.state();
    assert_eq!(state.status, Status::Failed);
    assert!(state.reason.as_ref().unwrap().contains("trial panic"), "{:?}", state.reason);
    assert!(state.log.iter().any(|l| l.message.contains("trial.rs")), "the place is in the log");
    jobs::resume(&job).unwrap();
    assert_eq!(home.run(&job, trial).code(), Some(0), "the second try goes on from the checkpoint");
    assert_eq!(artifact(&job), home.reference("{}"));
}

#[test]
fn an_error_keeps_its_exit_code() {
    let home = Home::new();
    let job = home.submit();
    assert_eq!(home.run(&job, r#"{"fault":"error"}"#).code(), Some(5));
    assert!(job.status().reason.unwrap().contains("refused by the trial"));
}

#[test]
fn native_crashes_leave_a_dead_job_that_says_so() {
    let home = Home::new();
    for (fault, cause) in [("abort", "killed by SIGABRT"), ("overflow", "stack overflow")] {
        let job = home.submit();
        // Started by the queue, so that the parent learns the signal.
        let mut launcher = launcher(&home, &format!(r#"{{"fault":"{fault}"}}"#));
        until("the death", || job.status().status == Status::Dead);
        assert_eq!(job.status().reason.as_deref(), Some(cause), "{fault}");
        launcher.kill().unwrap();
        launcher.wait().unwrap();
    }
}

/// A process that dispatches the queue and stays, as a face does. Its standard input ends it.
fn launcher(home: &Home, trial: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "jobs::launcher_process", "--nocapture", "--ignored"])
        .env("TINSMITH_TRIAL", trial)
        .env("LAUNCHER_HOME", home.paths.home())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "started by other tests as a process of its own"]
fn launcher_process() {
    let Some(home) = std::env::var_os("LAUNCHER_HOME") else { return };
    let paths = Paths::under(Path::new(&home));
    queue::dispatch_with(&paths, &Settings::default(), Path::new(PROGRAM)).unwrap();
    std::thread::sleep(Duration::from_secs(30));
}

#[test]
fn dispatch_starts_jobs_in_order_up_to_the_limit_and_workers_start_the_next() {
    let home = Home::new();
    let queued: Vec<JobHandle> = (0..3)
        .map(|_| {
            std::thread::sleep(Duration::from_millis(1100));
            home.submit()
        })
        .collect();
    let mut launcher = launcher(&home, r#"{"steps":2,"millis":150}"#);
    let mut most = 0;
    until("the end of all", || {
        let running = queued.iter().filter(|j| j.status().is_live()).count();
        most = most.max(running);
        queued.iter().all(|j| j.state().status == Status::Finished)
    });
    assert_eq!(most, 1, "one at a time");
    let begins: Vec<u64> = queued.iter().map(|j| j.state().started_mono_ms).collect();
    assert!(begins.is_sorted(), "{begins:?}");
    launcher.kill().unwrap();
    launcher.wait().unwrap();
}

#[test]
fn a_job_whose_worker_cannot_start_fails_and_does_not_block_the_queue() {
    let home = Home::new();
    let job = home.submit();
    let settings = Settings::default();
    let started = queue::dispatch_with(&home.paths, &settings, Path::new("/nonexistent/program")).unwrap();
    assert_eq!(started, []);
    let state = job.state();
    assert_eq!(state.status, Status::Failed);
    assert!(state.reason.unwrap().contains("cannot start the worker"));
    assert!(queue::dispatch_with(&home.paths, &settings, Path::new("/bin/false")).unwrap().is_empty());
}

#[test]
fn a_live_job_is_not_deleted_and_a_dead_one_is() {
    let home = Home::new();
    let job = home.submit();
    let mut worker = home.start(&job, ENDLESS);
    until("work", || job.state().phase.done > 0);
    let e = jobs::delete(&home.paths, &job).unwrap_err();
    assert_eq!(e.kind().exit_code(), 7);
    assert!(e.to_string().contains(&worker.id().to_string()), "{e}");
    assert_eq!(jobs::resume(&job).unwrap_err().kind().exit_code(), 7);
    assert!(jobs::terminate(&job));
    assert_eq!(worker.wait().unwrap().signal(), Some(9));
    jobs::delete(&home.paths, &job).unwrap();
    assert!(jobs::list(&home.paths).is_empty());
    assert_eq!(fs::read_dir(home.paths.jobs()).unwrap().count(), 0);
}

#[test]
fn a_stopped_process_is_stalled_and_recovers() {
    let home = Home::new();
    let job = home.submit();
    let mut worker = home.start(&job, r#"{"steps":1,"millis":1500}"#);
    until("work", || job.state().phase.done > 0);
    kill(worker.id(), rustix::process::Signal::STOP);
    // As if the last heartbeat were long ago: the worker overwrites it when it goes on.
    let path = job.dir.join("lock");
    let text = fs::read_to_string(&path).unwrap();
    let beat = Holder::read(&job.dir).unwrap().beat_ms();
    let (now, old) = (format!("{beat:020}"), format!("{:020}", beat.saturating_sub(60_000)));
    fs::write(&path, text.replace(&now, &old)).unwrap();
    let status = job.status();
    assert_eq!(status.word(), "stalled");
    assert!(status.stalled_ms.unwrap() >= 60_000);
    kill(worker.id(), rustix::process::Signal::CONT);
    assert_eq!(worker.wait().unwrap().code(), Some(0), "a stalled worker is not killed");
    assert_eq!(job.status().word(), "finished");
}

#[test]
fn a_worker_survives_the_end_of_its_launchers_terminal() {
    use portable_pty::{CommandBuilder, PtySize, native_pty_system};
    let home = Home::new();
    let expected = home.reference(LONG);
    let job = home.submit();
    let pty = native_pty_system().openpty(PtySize::default()).unwrap();
    let mut command = CommandBuilder::new(std::env::current_exe().unwrap());
    command.args(["--exact", "jobs::launcher_process", "--nocapture", "--ignored"]);
    command.env("TINSMITH_TRIAL", LONG);
    command.env("LAUNCHER_HOME", home.paths.home());
    let mut launcher = pty.slave.spawn_command(command).unwrap();
    drop(pty.slave);
    until("work", || job.state().phase.done > 0);
    let worker = job.status().pid.unwrap();
    let stat = fs::read_to_string(format!("/proc/{worker}/stat")).unwrap();
    let session: u32 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert_eq!(session, worker, "a session of its own");
    let seen = job.state().next_seq;
    drop(pty.master);
    launcher.wait().unwrap();
    until("the end", || job.status().status == Status::Finished);
    assert!(job.state().next_seq > seen);
    assert_eq!(artifact(&job), expected);
}

#[test]
fn a_damaged_checkpoint_falls_back_and_names_the_file() {
    let home = Home::new();
    let expected = home.reference(LONG);
    let job = home.submit();
    let mut worker = home.start(&job, LONG);
    until("two steps", || job.state().checkpoint.is_some_and(|c| c.0 >= 1));
    kill(worker.id(), rustix::process::Signal::KILL);
    worker.wait().unwrap();
    job.status();
    fs::write(job.dir.join("checkpoints/step-1/data"), "damaged").unwrap();
    jobs::resume(&job).unwrap();
    assert_eq!(home.run(&job, LONG).code(), Some(0));
    let state = job.state();
    assert!(state.log.iter().any(|l| l.message.contains("step-1/data")), "{:?}", state.log);
    assert_eq!(artifact(&job), expected);
}

#[test]
fn a_model_that_changed_is_refused_on_resume() {
    let home = Home::new();
    let job = home.submit();
    let mut worker = home.start(&job, ENDLESS);
    until("work", || job.state().phase.done > 0);
    jobs::pause(&job).unwrap();
    worker.wait().unwrap();
    fs::write(home.dir.path().join("model.onnx"), "another model").unwrap();
    jobs::resume(&job).unwrap();
    assert_eq!(home.run(&job, SHORT).code(), Some(9));
    assert!(job.status().reason.unwrap().contains("model.onnx"));
}

#[test]
fn closed_streams_and_file_size_limits_do_not_kill_a_worker() {
    let home = Home::new();
    let job = home.submit();
    let shell = |limit: &str, trial: &str, job: &JobHandle| {
        Command::new("sh")
            .arg("-c")
            .arg(format!("{limit}exec \"$0\" --home \"$1\" __worker \"$2\" <&- >&- 2>&-"))
            .arg(PROGRAM)
            .arg(home.paths.home())
            .arg(&job.dir)
            .env("TINSMITH_TRIAL", trial)
            .status()
            .unwrap()
    };
    assert_eq!(shell("", SHORT, &job).code(), Some(0));
    let job = home.submit();
    let big = r#"{"bytes":3000000}"#;
    assert_eq!(shell("ulimit -f 2000; ", big, &job).code(), Some(6), "{:?}", job.status());
    let reason = job.status().reason.unwrap();
    assert!(reason.to_lowercase().contains("large"), "{reason}");
}

/// A directory on a file system of `size` that is unmounted afterwards; none without the right to mount.
pub struct SmallDisk(pub PathBuf);

impl SmallDisk {
    pub fn new(dir: &Path, size: &str) -> Option<SmallDisk> {
        fs::create_dir_all(dir).unwrap();
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"])
            .arg(dir)
            .stderr(Stdio::null())
            .status();
        done.is_ok_and(|s| s.success()).then(|| SmallDisk(dir.into()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_pauses_a_job_that_goes_on_by_itself() {
    let outer = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::new(&outer.path().join("disk"), "4m") else {
        assert!(std::env::var_os("CI").is_none() || !rustix::process::geteuid().is_root(), "cannot mount");
        return;
    };
    let trial = r#"{"steps":3,"millis":20,"bytes":800000}"#;
    let expected = Home::new().reference(trial);
    let paths = Paths::under(&disk.0);
    let model = outer.path().join("model.onnx");
    fs::write(&model, "a model").unwrap();
    let mut recipe = Recipe::new("trial", model.to_str().unwrap());
    recipe.steps.push(Step::new("optimize"));
    let id = jobs::submit(&paths, &Request::Run { recipe }).unwrap();
    let job = jobs::open(&paths, id.as_str()).unwrap();
    let ballast = disk.0.join("ballast");
    fs::write(&ballast, vec![1u8; 2_500_000]).unwrap();
    let mut worker = Command::new(PROGRAM)
        .arg("--home")
        .arg(paths.home())
        .arg("__worker")
        .arg(&job.dir)
        .env("TINSMITH_TRIAL", trial)
        .spawn()
        .unwrap();
    until("the pause", || job.state().status == Status::Paused);
    let status = job.status();
    assert!(status.reason.as_ref().unwrap().starts_with("disk full: "), "{status:?}");
    assert_eq!(status.pid, Some(worker.id()), "the worker waits");
    fs::remove_file(&ballast).unwrap();
    assert_eq!(worker.wait().unwrap().code(), Some(0), "{:?}", job.state());
    assert_eq!(artifact(&job), expected);
}
