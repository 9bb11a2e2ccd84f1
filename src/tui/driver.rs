//! The event loop: input, signals, job watcher and workers send to one channel; messages are folded into
//! the state, effects are handed to threads, frames are drawn at the pace that the terminal deserves.

use super::app::{App, Control, Data, Effect, Failure, Msg};
use super::backend::Backend;
use super::model::Opened;
use super::update::{open_model, update};
use super::{ExitSummary, terminal, view};
use crate::error::{Error, Result};
use crate::units::Bytes;
use crossterm::event::{Event, KeyEventKind};
use crossterm::queue;
use crossterm::terminal::{BeginSynchronizedUpdate, Clear, ClearType, EndSynchronizedUpdate};
use ratatui::backend::CrosstermBackend;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use std::io::{BufWriter, Stdout, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

/// Messages that wait at most; senders of input wait, senders of data try again later.
const QUEUE: usize = 1024;
/// Least time between frames after a key.
const KEY_PACE: Duration = Duration::from_millis(16);
/// Least time between frames after data.
const DATA_PACE: Duration = Duration::from_millis(100);
/// The same over SSH.
const SSH_PACE: Duration = Duration::from_millis(250);
/// Time between looks at the jobs.
const LOOK: Duration = Duration::from_millis(500);

enum Incoming {
    Msg(Msg),
    /// The process goes on after a stop.
    Continued,
    /// The keyboard is gone.
    Deaf(String),
}

type Screen = ratatui::Terminal<CrosstermBackend<BufWriter<Stdout>>>;

/// Runs the workbench on this terminal until it is quit.
pub fn run(mut app: App, backend: Arc<dyn Backend>, model: Option<PathBuf>) -> Result<ExitSummary> {
    terminal::check()?;
    crossterm::style::force_color_output(app.look.depth != super::theme::Depth::None);
    terminal::install_panic_hook();
    let done = {
        let _guard = terminal::enter(app.mouse)?;
        catch_unwind(AssertUnwindSafe(|| drive(&mut app, &backend, model)))
    };
    let _ = std::panic::take_hook();
    match done {
        Ok(result) => result,
        Err(_) => Err(Error::internal(
            "PANIC",
            format!(
                "the workbench failed: {}",
                terminal::panic_message().unwrap_or_else(|| "no message".into())
            ),
        )
        .hint("jobs go on; report this message")),
    }
}

fn drive(app: &mut App, backend: &Arc<dyn Backend>, model: Option<PathBuf>) -> Result<ExitSummary> {
    let broken = |e: std::io::Error| Error::io("draw on the terminal", "tty", e);
    let output = BufWriter::with_capacity(1 << 16, std::io::stdout());
    let mut screen = Screen::new(CrosstermBackend::new(output)).map_err(broken)?;
    let start = Instant::now();
    if let Ok((w, h)) = crossterm::terminal::size() {
        app.size = (w, h);
    }
    app.wall_ms = backend.clock();
    let mut first = Vec::new();
    let tab = app.tab;
    if let Some(path) = model {
        open_model(app, path, &mut first);
        app.tab = tab;
    }
    let (sender, receiver) = sync_channel(QUEUE);
    // Whoever sees the first frame may send a signal.
    spawn_signals(sender.clone())?;
    // Nothing is read before the first frame stands.
    draw(app, &mut screen).map_err(broken)?;
    #[cfg(debug_assertions)]
    fault("draw");
    spawn_input(sender.clone());
    terminal::watch_hangup();
    spawn_facts(backend.clone(), sender.clone());
    spawn_watch(backend.clone(), sender.clone());

    let mut last = Instant::now();
    let mut due: Option<Instant> = None;
    if let Some(summary) = perform(app, first, backend, &sender, &mut screen) {
        return Ok(summary);
    }
    loop {
        let now_ms = start.elapsed().as_millis() as u64;
        let tick = app.deadline().map(|at| Instant::now() + Duration::from_millis(at.saturating_sub(now_ms)));
        let wake = [due, tick].into_iter().flatten().min();
        let mut batch = Vec::new();
        match receive(&receiver, wake) {
            Ok(message) => batch.push(message),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(ExitSummary::default()),
        }
        while batch.len() < 256 {
            match receiver.try_recv() {
                Ok(message) => batch.push(message),
                Err(_) => break,
            }
        }
        app.now_ms = start.elapsed().as_millis() as u64;
        app.wall_ms = backend.clock();
        let mut soonest: Option<Duration> = None;
        let mut want = |pace: Duration| soonest = Some(soonest.map_or(pace, |s| s.min(pace)));
        if tick.is_some_and(|at| at <= Instant::now()) {
            batch.push(Incoming::Msg(Msg::Tick));
        }
        for message in batch {
            let message = match message {
                Incoming::Msg(message) => message,
                Incoming::Continued => {
                    terminal::reenter(app.mouse);
                    wipe(&mut screen);
                    want(Duration::ZERO);
                    continue;
                }
                Incoming::Deaf(why) => {
                    return Err(Error::storage("KEYBOARD", format!("keys can no longer be read: {why}"))
                        .hint("open the workbench again; jobs go on"));
                }
            };
            want(match &message {
                Msg::Data(_) if app.look.ssh => SSH_PACE,
                Msg::Data(_) => DATA_PACE,
                _ => KEY_PACE,
            });
            let effects = update(app, message);
            if let Some(summary) = perform(app, effects, backend, &sender, &mut screen) {
                return Ok(summary);
            }
        }
        if let Some(pace) = soonest {
            let at = last + pace;
            due = Some(due.map_or(at, |d| d.min(at)));
        }
        if due.is_some_and(|at| at <= Instant::now()) {
            draw(app, &mut screen).map_err(broken)?;
            last = Instant::now();
            due = None;
        }
    }
}

/// Fails on purpose where `$TINSMITH_FAULT` names this place; for tests of what a panic leaves behind.
#[cfg(debug_assertions)]
#[allow(clippy::panic)]
fn fault(place: &str) {
    if std::env::var_os("TINSMITH_FAULT").is_some_and(|v| v == place) {
        panic!("a fault was asked for");
    }
}

fn receive(receiver: &Receiver<Incoming>, wake: Option<Instant>) -> Result<Incoming, RecvTimeoutError> {
    match wake {
        Some(at) => receiver.recv_timeout(at.saturating_duration_since(Instant::now())),
        None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
    }
}

fn draw(app: &App, screen: &mut Screen) -> std::io::Result<()> {
    let _frame = terminal::drawing();
    queue!(screen.backend_mut(), BeginSynchronizedUpdate)?;
    screen.draw(|frame| view::draw(app, frame.buffer_mut()))?;
    queue!(screen.backend_mut(), EndSynchronizedUpdate)?;
    Write::flush(screen.backend_mut())
}

/// Clears the terminal and forgets what stands on it, so that the next frame is drawn whole. Ratatui's
/// own way asks the terminal for its cursor first, and the answer would go to the input thread.
fn wipe(screen: &mut Screen) {
    // Where the terminal takes nothing, the next frame fails too, and says so.
    let _ = queue!(screen.backend_mut(), Clear(ClearType::All));
    screen.swap_buffers();
}

/// Does what the state asks for; a summary ends the loop.
fn perform(
    app: &mut App,
    effects: Vec<Effect>,
    backend: &Arc<dyn Backend>,
    sender: &SyncSender<Incoming>,
    screen: &mut Screen,
) -> Option<ExitSummary> {
    for effect in effects {
        match effect {
            Effect::Quit { summary } => {
                return Some(if summary { summarise(app) } else { ExitSummary::default() });
            }
            Effect::Mouse(on) => terminal::mouse(on),
            Effect::Copy(text) => terminal::copy(&text),
            Effect::Redraw => wipe(screen),
            Effect::Suspend => {
                if terminal::suspend(app.mouse) {
                    wipe(screen);
                } else {
                    app.say(crate::monitor::Level::Info, "cannot stop: no shell would bring it back");
                }
            }
            other => spawn_worker(other, app.plan.goal.clone(), backend.clone(), sender.clone()),
        }
    }
    None
}

/// Does an effect on a thread of its own and sends back what came of it; a panic there is an error here.
fn spawn_worker(
    effect: Effect,
    goal: crate::plan::Goal,
    backend: Arc<dyn Backend>,
    sender: SyncSender<Incoming>,
) {
    let failed = failure_of(&effect);
    let pieces = sender.clone();
    let spawned = std::thread::Builder::new().name("work".into()).spawn(move || {
        let data = catch_unwind(AssertUnwindSafe(|| {
            #[cfg(debug_assertions)]
            fault("work");
            match effect {
                Effect::Say { generation, models, prompt } => {
                    say(&*backend, generation, &models, &prompt, &pieces);
                    None
                }
                effect => {
                    let send = |data: Data| drop(pieces.send(Incoming::Msg(Msg::Data(data))));
                    work(effect, &goal, &*backend, &send)
                }
            }
        }))
        .unwrap_or_else(|_| failed("this failed inside; the log has no more".into()));
        if let Some(data) = data {
            let _ = sender.send(Incoming::Msg(Msg::Data(data)));
        }
    });
    // A machine without a thread to spare shows it by nothing happening; the next key tries again.
    drop(spawned);
}

/// Tokens that a model writes for a look at it.
const TOKENS: usize = 100;

/// Lets models write, one after the other so that each has the whole machine.
fn say(
    backend: &dyn Backend,
    generation: u64,
    models: &[PathBuf],
    prompt: &str,
    sender: &SyncSender<Incoming>,
) {
    let send = |data: Data| sender.send(Incoming::Msg(Msg::Data(data))).is_ok();
    for (side, model) in models.iter().enumerate() {
        let mut piece = |text: &str| match send(Data::Wrote { generation, side, text: text.to_string() }) {
            true => Ok(()),
            false => Err(Error::stopped("STOPPED", "nobody looks any more")),
        };
        let said = backend.say(model, prompt, TOKENS, &mut piece);
        let result = said.map_err(Failure::from).map(|said| {
            let decode =
                said.tokens_per_s.decode.map_or_else(String::new, |d| format!(" at {d:.1} tokens/s"));
            format!("{} tokens{decode}", said.tokens.len())
        });
        if !send(Data::Said { generation, side, result }) {
            return;
        }
    }
}

fn failure_of(effect: &Effect) -> Box<dyn Fn(String) -> Option<Data> + Send> {
    let failure = |message: String| Failure { message };
    match effect {
        Effect::Analyse { generation, path } => {
            let (generation, path) = (*generation, path.clone());
            Box::new(move |m| {
                Some(Data::Analysed { generation, path: path.clone(), result: Err(failure(m)) })
            })
        }
        Effect::Weigh { generation, name, .. } => {
            let (generation, name) = (*generation, name.clone());
            Box::new(move |m| Some(Data::Weighed { generation, name: name.clone(), result: Err(failure(m)) }))
        }
        Effect::Differ { generation, after, .. } => {
            let (generation, after) = (*generation, after.clone());
            Box::new(move |m| {
                Some(Data::Differed { generation, after: after.clone(), result: Err(failure(m)) })
            })
        }
        Effect::Study { generation, .. } => {
            let generation = *generation;
            Box::new(move |m| Some(Data::Studied { generation, result: Err(failure(m)) }))
        }
        Effect::Foresee { generation, .. } => {
            let generation = *generation;
            Box::new(move |m| Some(Data::Foreseen { generation, result: Err(failure(m)) }))
        }
        Effect::Recommend { generation, .. } => {
            let generation = *generation;
            Box::new(move |m| Some(Data::Proposed { generation, result: Err(failure(m)) }))
        }
        Effect::Compare { generation, .. } => {
            let generation = *generation;
            Box::new(move |m| Some(Data::Compared { generation, result: Err(failure(m)) }))
        }
        _ => Box::new(move |m| Some(Data::Done(Err(failure(m))))),
    }
}

fn work(
    effect: Effect,
    goal: &crate::plan::Goal,
    backend: &dyn Backend,
    send: &(dyn Fn(Data) + Sync),
) -> Option<Data> {
    Some(match effect {
        Effect::Analyse { generation, path } => {
            // Jobs, recipes and the list of recent files name the model independently of this directory.
            let path = std::path::absolute(&path).unwrap_or(path);
            let result = backend.analyse(&path).map(|summary| Arc::new(Opened::new(summary)));
            if result.is_ok() {
                backend.remember(&path);
            }
            Data::Analysed { generation, path, result: result.map_err(Failure::from) }
        }
        Effect::Weigh { generation, path, name } => {
            let result = backend.weight(&path, &name).map(Box::new).map_err(Failure::from);
            Data::Weighed { generation, name, result }
        }
        Effect::Study { generation, path, criterion } => {
            let tell = |phase: &str, done: u64, total: Option<u64>| {
                send(Data::Studying { generation, phase: phase.to_string(), done, total });
            };
            let result =
                backend.study(generation, &path, criterion, &tell).map(Arc::new).map_err(Failure::from);
            Data::Studied { generation, result }
        }
        Effect::EndStudy { generation } => {
            backend.end_study(generation);
            return None;
        }
        Effect::Foresee { generation, question } => {
            let result = backend.foresee(&question).map(Box::new).map_err(Failure::from);
            Data::Foreseen { generation, result }
        }
        Effect::ReadRuns { generation, jobs } => {
            let mut runs = Vec::new();
            for job in jobs {
                match backend.ran(&job) {
                    Ok(found) => runs.extend(found),
                    Err(e) => send(Data::Noted(Failure::from(e))),
                }
            }
            Data::Ran { generation, runs }
        }
        Effect::ReadQuantised(jobs) => {
            let mut read = Vec::new();
            for job in jobs {
                match backend.quantised(&job) {
                    Ok(found) => read.extend(found),
                    Err(e) => send(Data::Noted(Failure::from(e))),
                }
            }
            Data::Quantised(read)
        }
        Effect::Differ { generation, before, after } => {
            let result = backend.diff(&before, &after).map(Box::new).map_err(Failure::from);
            Data::Differed { generation, after, result }
        }
        Effect::Recommend { generation, summary, path, goal, data, measured_ms } => Data::Proposed {
            generation,
            result: backend
                .recommend(&summary, &path, &goal, &data, measured_ms)
                .map(Box::new)
                .map_err(Failure::from),
        },
        Effect::FindModels { generation, typed } => {
            Data::Models { generation, paths: backend.find_models(&typed) }
        }
        Effect::Submit(recipe) => Data::Submitted(backend.submit(&recipe).map_err(Failure::from)),
        Effect::Control { id, control } => {
            let said = match control {
                Control::Cancel => "asked to cancel",
                Control::Pause => "asked to pause at the next checkpoint",
                Control::Resume => "queued again",
                Control::Delete => "deleted",
            };
            let done = backend.control(&id, control).map(|()| format!("job {id}: {said}"));
            Data::Done(done.map_err(Failure::from))
        }
        Effect::Compare { generation, measurements, baseline } => Data::Compared {
            generation,
            result: backend.compare(&measurements, baseline, goal).map_err(Failure::from),
        },
        Effect::Export { name, text, command } => {
            let done = backend.export(&name, &text).map(|path| {
                let shown = super::plan::quoted(&path.to_string_lossy());
                format!(
                    "wrote {shown} ({}); same: {}",
                    Bytes(text.len() as u64),
                    command.replace("{}", &shown)
                )
            });
            Data::Done(done.map_err(Failure::from))
        }
        Effect::Say { .. } => return None,
        Effect::Copy(_) | Effect::Mouse(_) | Effect::Redraw | Effect::Suspend | Effect::Quit { .. } => {
            return None;
        }
    })
}

fn spawn_input(sender: SyncSender<Incoming>) {
    std::thread::spawn(move || {
        loop {
            let message = match crossterm::event::read() {
                Ok(Event::Key(key)) if key.kind == KeyEventKind::Release => continue,
                Ok(Event::Key(key)) => Incoming::Msg(Msg::Key(key)),
                Ok(Event::Paste(text)) => Incoming::Msg(Msg::Paste(text)),
                Ok(Event::Mouse(event)) => match event.kind {
                    crossterm::event::MouseEventKind::Moved => continue,
                    _ => Incoming::Msg(Msg::Mouse(event)),
                },
                Ok(Event::Resize(w, h)) => Incoming::Msg(Msg::Resize(w, h)),
                Ok(Event::FocusGained | Event::FocusLost) => continue,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    let _ = sender.send(Incoming::Deaf(e.to_string()));
                    return;
                }
            };
            if sender.send(message).is_err() {
                return;
            }
        }
    });
}

fn spawn_signals(sender: SyncSender<Incoming>) -> Result<()> {
    let mut signals =
        signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGCONT])
            .map_err(|e| Error::io("listen for signals", "process", e))?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            match signal {
                SIGTSTP => {
                    let _ = sender.try_send(Incoming::Msg(Msg::Suspend));
                }
                SIGCONT => {
                    let _ = sender.try_send(Incoming::Continued);
                }
                // The loop may be stuck in a write to a terminal that takes nothing: end from here.
                signal => terminal::end(128 + signal),
            }
        }
    });
    Ok(())
}

fn spawn_facts(backend: Arc<dyn Backend>, sender: SyncSender<Incoming>) {
    std::thread::spawn(move || {
        let devices = backend.devices().unwrap_or_else(|e| {
            let _ = sender.send(Incoming::Msg(Msg::Data(Data::Done(Err(e.into())))));
            vec!["host".into()]
        });
        let _ = sender.send(Incoming::Msg(Msg::Data(Data::Devices(devices))));
        if backend.read_only() {
            let _ = sender.send(Incoming::Msg(Msg::Data(Data::ReadOnly(true))));
        }
    });
}

fn spawn_watch(backend: Arc<dyn Backend>, sender: SyncSender<Incoming>) {
    std::thread::spawn(move || {
        let mut watch = backend.watch();
        let mut held = None;
        loop {
            let look = catch_unwind(AssertUnwindSafe(|| watch.poll()));
            match look {
                Ok(Some(jobs)) => held = Some(jobs),
                Ok(None) => {}
                Err(_) => {
                    let failure = Failure { message: "looking at the jobs failed; trying again".into() };
                    let _ = sender.try_send(Incoming::Msg(Msg::Data(Data::Done(Err(failure)))));
                    watch = backend.watch();
                    std::thread::sleep(LOOK * 10);
                }
            }
            if let Some(jobs) = held.take() {
                match sender.try_send(Incoming::Msg(Msg::Data(Data::Jobs(jobs)))) {
                    Ok(()) => {}
                    Err(TrySendError::Full(Incoming::Msg(Msg::Data(Data::Jobs(jobs))))) => held = Some(jobs),
                    Err(TrySendError::Full(_)) => {}
                    Err(TrySendError::Disconnected(_)) => return,
                }
            }
            std::thread::sleep(LOOK);
        }
    });
}

/// What stays in the scrollback after a quit with summary.
fn summarise(app: &App) -> ExitSummary {
    let clean = |s: &str| crate::text::clean(s, 60);
    let mut lines = Vec::new();
    if let (Some(path), Some(opened)) = (&app.model.path, &app.model.opened) {
        let s = &opened.summary;
        lines.push(format!(
            "model     {}  {} parameters, {} MACs, {}",
            clean(&path.to_string_lossy()),
            crate::units::Count(s.parameters),
            crate::units::Count(s.macs),
            Bytes(s.file_bytes)
        ));
    }
    for job in app.runs.shown.iter().take(20).map(|i| &app.runs.jobs[*i]) {
        lines.push(format!(
            "{:<9} {}  {}  {}",
            job.status().word(),
            clean(&job.id),
            clean(job.title()),
            clean(&super::runs::progress(job))
        ));
    }
    if let Some(table) = &app.compare.comparison {
        for row in &table.rows {
            let m = &row.measurement;
            let latency =
                m.latency_ms.as_ref().map_or("n/a".into(), |l| crate::units::Millis(l.p50).to_string());
            let quality = m.quality.as_ref().map_or("n/a".into(), |q| format!("{:.4}", q.value));
            lines.push(format!(
                "variant   {:<24} {latency:>10} {:>10} {quality:>8}  {}",
                clean(&m.variant),
                Bytes(m.file_bytes).to_string(),
                clean(&row.conclusion)
            ));
        }
    }
    let running = app.runs.jobs.iter().filter(|j| !j.status().is_final()).count();
    if running > 0 {
        let jobs = super::paint::many(running, "job");
        lines.push(format!("{jobs} under way; `tinsmith jobs list` shows them"));
    }
    ExitSummary { lines }
}
