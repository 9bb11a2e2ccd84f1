//! Following a job on stderr: a bar on a terminal, lines elsewhere. The first Ctrl-C asks the job for a
//! checkpoint (75), the second ends it (130). The job itself never depends on who follows it.

use super::context::Context;
use crate::error::{Error, Kind, Result};
use crate::jobs::{self, Event, JobHandle, JobState, Status};
use crate::monitor::Level;
use crate::text::clean;
use crate::units::Span;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Between two looks at the log.
const LOOK: Duration = Duration::from_millis(25);
/// Between two looks at the worker itself.
const CHECK: Duration = Duration::from_millis(500);
/// Between two lines about the same phase where there is no bar.
const LINE: Duration = Duration::from_secs(10);
/// Before an estimate of the remaining time is shown.
const ETA_AFTER: f64 = 5.0;

/// Counts interrupts from now on, instead of ending this process.
pub(super) fn interrupts() -> Result<Arc<AtomicUsize>> {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    // Registering a plain counter is all that a handler may do.
    let raised = Arc::new(std::sync::atomic::AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGINT, raised.clone())
        .map_err(|e| Error::internal("SIGNAL", format!("cannot listen for interrupts: {e}")))?;
    std::thread::spawn(move || {
        loop {
            if raised.swap(false, Ordering::Relaxed) {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            std::thread::sleep(LOOK);
        }
    });
    Ok(count)
}

/// Submits `request`, starts what may start, and follows the job to its end.
pub(super) fn submit_and_follow(context: &Context, request: &jobs::Request) -> anyhow::Result<Followed> {
    let job = submit(context, request)?;
    let state = follow(context, &job)?;
    Ok(Followed { job, state })
}

/// Submits `request` and starts what may start.
pub(super) fn submit(context: &Context, request: &jobs::Request) -> anyhow::Result<JobHandle> {
    let id = jobs::submit(&context.paths, request)?;
    jobs::dispatch(&context.paths, &context.settings)?;
    Ok(jobs::open(&context.paths, id.as_str())?)
}

/// A job that ended well, and what it left.
pub(super) struct Followed {
    pub(super) job: JobHandle,
    pub(super) state: JobState,
}

/// Follows one job until it ends; fails with the job's own error.
pub(super) fn follow(context: &Context, job: &JobHandle) -> anyhow::Result<JobState> {
    let mut states = follow_all(context, std::slice::from_ref(job))?;
    let state = states.pop().unwrap_or_default();
    judge(job, &state)?;
    Ok(state)
}

struct Followee<'a> {
    job: &'a JobHandle,
    state: JobState,
    tail: jobs::Tail,
    shown: (u64, String),
    said: Instant,
    ended: bool,
}

/// Follows several jobs until all have ended, whatever their end. An interrupt stops all of them.
pub(super) fn follow_all(context: &Context, all: &[JobHandle]) -> anyhow::Result<Vec<JobState>> {
    let interrupts = interrupts()?;
    let mut handled = 0;
    let mut followees: Vec<Followee<'_>> = all
        .iter()
        .map(|job| {
            let (state, tail) = job.follow();
            Followee {
                job,
                state,
                tail,
                shown: (u64::MAX, String::new()),
                said: Instant::now(),
                ended: false,
            }
        })
        .collect();
    let mut bar = Bar { shown: false };
    for f in &followees {
        context.note(&format!("{}: job {} is {}", f.state.name, f.job.id, f.state.status.word()));
    }
    let mut checked = Instant::now();
    loop {
        for f in &mut followees {
            for record in f.tail.poll() {
                f.state.apply(&record);
                bar.tell(context, f, &record.event);
            }
        }
        if checked.elapsed() >= CHECK {
            checked = Instant::now();
            for f in followees.iter_mut().filter(|f| !f.ended) {
                f.job.status();
            }
            jobs::dispatch(&context.paths, &context.settings)?;
        }
        for f in &mut followees {
            f.ended = has_ended(f);
        }
        if followees.iter().all(|f| f.ended) {
            bar.clear(context);
            return Ok(followees.into_iter().map(|f| f.state).collect());
        }
        bar.draw(context, &followees);
        let asked = interrupts.load(Ordering::Relaxed);
        if asked > handled {
            handled = asked;
            bar.clear(context);
            for f in followees.iter().filter(|f| !f.ended) {
                if asked == 1 {
                    jobs::pause(f.job)?;
                } else {
                    jobs::terminate(f.job);
                }
            }
            if asked > 1 {
                return Err(Error::new(
                    Kind::Interrupted,
                    "INTERRUPTED",
                    "interrupted, the worker was ended",
                )
                .hint("`tinsmith jobs resume last` goes on from the last checkpoint")
                .into());
            }
            context.note("stopping at the next checkpoint; Ctrl-C again ends the worker at once");
        }
        std::thread::sleep(LOOK);
    }
}

/// A paused job has ended for who follows it, unless its worker lives and waits for disk space.
fn has_ended(f: &Followee<'_>) -> bool {
    f.state.status.is_final() || (f.state.status == Status::Paused && !f.job.status().is_live())
}

/// The error of a job that did not end well.
pub(super) fn judge(job: &JobHandle, state: &JobState) -> Result<()> {
    let reason = || state.reason.clone().unwrap_or_else(|| "no reason is known".into());
    let log = format!("`tinsmith jobs log {}` shows what happened", job.id);
    let resume = format!("`tinsmith jobs resume {}` goes on from the last checkpoint", job.id);
    match state.status {
        Status::Finished => Ok(()),
        Status::Failed => {
            Err(Error::new(failure_kind(job), "JOB-FAILED", format!("job {}: {}", job.id, reason()))
                .hint(log))
        }
        Status::Paused | Status::Running | Status::Queued => {
            Err(Error::stopped("JOB-STOPPED", format!("job {} is stopped: {}", job.id, reason()))
                .hint(resume))
        }
        Status::Cancelled => {
            Err(Error::stopped("JOB-CANCELLED", format!("job {} was cancelled", job.id)).hint(resume))
        }
        Status::Dead => {
            Err(Error::died("JOB-DIED", format!("job {}: the worker died: {}", job.id, reason()))
                .hint(resume))
        }
    }
}

/// The kind of the error that ended the job, from its last `failed` record.
fn failure_kind(job: &JobHandle) -> Kind {
    let mut tail = job.tail();
    let mut code = None;
    loop {
        for record in tail.poll() {
            if let Event::Failed { exit_code, .. } = record.event {
                code = Some(exit_code);
            }
        }
        if tail.is_caught_up() {
            return code.map_or(Kind::Internal, Kind::from_exit_code);
        }
    }
}

/// The moving line at the bottom of a terminal, or lines where there is none.
struct Bar {
    shown: bool,
}

impl Bar {
    fn clear(&mut self, context: &Context) {
        if self.shown && context.live && !context.quiet {
            let _ = write!(std::io::stderr().lock(), "\r\u{1b}[K");
            self.shown = false;
        }
    }

    fn tell(&mut self, context: &Context, f: &mut Followee<'_>, event: &Event) {
        let name = clean(&f.state.name, 40);
        let line = match event {
            Event::Resumed { step, .. } => format!("{name}: resumed at step {step}"),
            Event::Phase { name: phase, .. } if !context.live => format!("{name}: {phase}"),
            Event::Log { level: Level::Info, message } => format!("{name}: {message}"),
            Event::Log { level, message } => {
                let level = if *level == Level::Error { "error" } else { "warning" };
                format!("{name}: {level}: {message}")
            }
            Event::Artifact { path, bytes, .. } => {
                format!("{name}: wrote {path} ({})", crate::units::Bytes(*bytes))
            }
            Event::Finished => format!("{name}: finished"),
            Event::Paused { reason } => format!("{name}: paused ({reason})"),
            Event::Cancelled => format!("{name}: cancelled"),
            _ => return,
        };
        self.clear(context);
        context.note(&line);
        f.said = Instant::now();
    }

    fn draw(&mut self, context: &Context, all: &[Followee<'_>]) {
        let Some(f) = all.iter().find(|f| f.state.status == Status::Running && !f.ended) else { return };
        if context.quiet {
            return;
        }
        if !context.live {
            return lines(context, f);
        }
        let text = progress(&f.state);
        if self.shown && f.shown.1 == text {
            return;
        }
        let width =
            rustix::termios::tcgetwinsize(std::io::stderr()).map_or(80, |s| usize::from(s.ws_col.max(20)));
        let _ = write!(std::io::stderr().lock(), "\r\u{1b}[K{}", clean(&text, width - 1));
        let _ = std::io::stderr().flush();
        self.shown = true;
    }
}

fn lines(context: &Context, f: &Followee<'_>) {
    // The interval is kept per process: one line in ten seconds, whatever runs.
    static LAST: std::sync::Mutex<Option<Instant>> = std::sync::Mutex::new(None);
    let Ok(mut last) = LAST.lock() else { return };
    if f.said.elapsed() >= LINE && last.is_none_or(|t| t.elapsed() >= LINE) {
        *last = Some(Instant::now());
        context.note(&progress(&f.state));
    }
}

/// `static-int8: quantize: calibrate  [######----] 62 %  1m 03s left`.
fn progress(state: &JobState) -> String {
    let mut line = format!("{}: {}", clean(&state.name, 40), clean(&state.phase.name, 60));
    if let Some(fraction) = state.fraction() {
        let filled = (10.0 * fraction) as usize;
        // A phase is not over before its worker says so.
        let percent = (100.0 * fraction).min(99.0);
        line.push_str(&format!("  [{:-<10}] {percent:.0} %", "#".repeat(filled)));
        let spent = crate::jobs::clock::mono_ms().saturating_sub(state.phase.since_ms) as f64 / 1e3;
        if spent >= ETA_AFTER && fraction > 0.02 {
            line.push_str(&format!("  {} left", Span(spent * (1.0 - fraction) / fraction)));
        }
    }
    line
}
