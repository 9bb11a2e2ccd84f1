//! The parent's end: starts a child, asks, watches the clock and the monitor, explains a death.

use super::wire::{Frame, LineFault, Opening, read_line, restore};
use super::{ARGUMENT, Limits, PROTOCOL, program};
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::text;
use crate::units::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::collections::VecDeque;
use std::io::{BufReader, Read, Write};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// How often a waiting parent looks at its monitor.
const TICK: Duration = Duration::from_millis(50);
/// Most of the error output that is kept.
const ERROR_OUTPUT: usize = 16 << 10;

/// A child that stays alive and answers requests one after the other. Dropping it kills it.
pub struct Child {
    kind: String,
    process: std::process::Child,
    stdin: Option<ChildStdin>,
    frames: Receiver<Result<Frame, Error>>,
    errors: Arc<Mutex<VecDeque<u8>>>,
    errors_done: Receiver<()>,
    wall: Duration,
    ended: Option<ExitStatus>,
}

type Spawn = (Command, Sender<std::io::Result<std::process::Child>>);

/// Starts a process from a thread that lives as long as this process does: the kernel sends a death
/// signal when the *thread* that started a child ends.
fn spawn(command: Command) -> std::io::Result<std::process::Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Spawn>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (to, from) = channel::<Spawn>();
        let _ = std::thread::Builder::new().name("spawner".into()).spawn(move || {
            while let Ok((mut command, answer)) = from.recv() {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(to)
    });
    let (to, answer) = channel();
    let gone = || std::io::Error::other("the thread that starts processes is gone");
    spawner
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .send((command, to))
        .map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

impl Child {
    /// Starts a child that serves `kind`.
    pub fn start(kind: &str, limits: &Limits) -> Result<Child> {
        let program = program()?;
        let mut command = Command::new(&program);
        command
            .arg(ARGUMENT)
            .arg(kind)
            // The worker's own way with memory is not that of what is measured.
            .env_remove("MIMALLOC_PURGE_DELAY")
            .envs(limits.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if limits.memory.is_some() {
            // The allocator reserves 1 GiB at once by default, which a limit on address space counts.
            command.env("MIMALLOC_ARENA_RESERVE", "65536");
        }
        #[cfg(unix)]
        std::os::unix::process::CommandExt::arg0(&mut command, "tinsmith");
        let mut process = spawn(command).map_err(|e| {
            Error::died("CHILD-START", format!("cannot start a child process: {e}"))
                .file(&program)
                .hint("check that the program still exists and that more processes are allowed")
        })?;
        let (Some(mut stdin), Some(stdout), Some(mut stderr)) =
            (process.stdin.take(), process.stdout.take(), process.stderr.take())
        else {
            return Err(Error::internal("CHILD-PIPE", "a child has no pipes"));
        };
        let errors = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&errors);
        let (errors_end, errors_done) = channel();
        let reader = std::thread::Builder::new().name("child-stderr".into()).spawn(move || {
            let mut chunk = [0u8; 4096];
            while let Ok(n @ 1..) = stderr.read(&mut chunk) {
                let mut kept = kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                kept.extend(&chunk[..n]);
                let excess = kept.len().saturating_sub(ERROR_OUTPUT);
                kept.drain(..excess);
            }
            let _ = errors_end.send(());
        });
        let cap = limits.reply;
        let (to, frames) = sync_channel(64);
        let frame_reader = std::thread::Builder::new().name("child-stdout".into()).spawn(move || {
            let mut from = BufReader::with_capacity(64 << 10, stdout);
            loop {
                let frame = match read_line(&mut from, cap) {
                    Ok(None) => return,
                    Ok(Some(line)) => serde_json::from_slice::<Frame>(&line).map_err(|e| {
                        Error::died("CHILD-PROTOCOL", format!("a child sent what is not a frame: {e}"))
                            .hint("report this as a bug")
                    }),
                    Err(LineFault::TooLong) => {
                        Err(Error::limit_exceeded("CHILD-REPLY", "a child's answer is too long")
                            .limit(Bytes(cap as u64))
                            .hint("ask for less at once"))
                    }
                    Err(LineFault::Io(e)) => {
                        Err(Error::died("CHILD-PIPE", format!("cannot read from a child: {e}")))
                    }
                };
                let last = frame.is_err();
                if to.send(frame).is_err() || last {
                    return;
                }
            }
        });
        let opening = Opening {
            protocol: PROTOCOL,
            kind: kind.into(),
            parent: std::process::id(),
            limits: limits.clone(),
        };
        let sent = send(&mut stdin, &opening);
        let mut child = Child {
            kind: kind.into(),
            process,
            stdin: Some(stdin),
            frames,
            errors,
            errors_done,
            wall: limits.wall,
            ended: None,
        };
        if reader.is_err() || frame_reader.is_err() {
            return Err(Error::died("CHILD-START", "cannot start the threads that listen to a child")
                .hint("more threads must be allowed"));
        }
        sent.map_err(|_| child.death())?;
        Ok(child)
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Another time limit for the next answers.
    pub fn set_wall(&mut self, wall: Duration) {
        self.wall = wall;
    }

    /// Asks and waits for the answer. `item` gets each part of a streamed answer; its error ends the
    /// child. After an error of kind `Died`, `Limit` or `Stopped` the child is gone.
    pub fn ask<Req: Serialize, Rep: DeserializeOwned>(
        &mut self,
        request: &Req,
        monitor: &dyn Monitor,
        item: &mut dyn FnMut(Value) -> Result<()>,
    ) -> Result<Rep> {
        let deadline = Instant::now() + self.wall;
        let sent = match self.stdin.as_mut() {
            Some(stdin) => send(stdin, request).is_ok(),
            None => false,
        };
        if !sent {
            return Err(self.death());
        }
        loop {
            if let Err(stop) = monitor.check() {
                self.kill();
                return Err(stop);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.kill();
                return Err(Error::limit_exceeded(
                    "CHILD-TIME",
                    format!("the {} process took too long and was ended", self.kind),
                )
                .limit(format!("{:.1} s", self.wall.as_secs_f64()))
                .hint("allow more time, or give it a smaller task"));
            }
            match self.frames.recv_timeout(left.min(TICK)) {
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(self.death()),
                Ok(Err(fault)) => {
                    self.kill();
                    return Err(fault);
                }
                Ok(Ok(Frame::Reply(value))) => {
                    return serde_json::from_value(value).map_err(|e| {
                        Error::internal("CHILD-REPLY", format!("unexpected answer of {}: {e}", self.kind))
                    });
                }
                Ok(Ok(Frame::Error(value))) => return Err(restore(&value)),
                Ok(Ok(Frame::Item(value))) => item(value).inspect_err(|_| self.kill())?,
                Ok(Ok(Frame::Phase { name, total })) => monitor.phase(&text::clean(&name, 240), total),
                Ok(Ok(Frame::Progress(done))) => monitor.progress(done),
                Ok(Ok(Frame::Metric { name, step, value })) => {
                    monitor.metric(&text::clean(&name, 120), step, value);
                }
                Ok(Ok(Frame::Log { level, message })) => monitor.log(level, &text::clean(&message, 2000)),
            }
        }
    }

    /// Lets the child end by itself, within a second.
    pub fn finish(mut self) {
        self.stdin = None;
        let _ = self.wait(Duration::from_secs(1));
    }

    /// Kills the child at once.
    pub fn kill(&mut self) {
        self.stdin = None;
        if self.ended.is_none() {
            let _ = self.process.kill();
            self.ended = self.process.wait().ok();
        }
    }

    fn wait(&mut self, longest: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + longest;
        let mut pause = Duration::from_micros(200);
        while self.ended.is_none() {
            self.ended = self.process.try_wait().ok().flatten();
            if self.ended.is_some() || Instant::now() >= until {
                break;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
        self.ended
    }

    /// Says how the child died; its pipe is closed.
    fn death(&mut self) -> Error {
        let status = self.wait(Duration::from_secs(1));
        self.kill();
        let _ = self.errors_done.recv_timeout(Duration::from_millis(200));
        let said = {
            let mut kept = self.errors.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            text::clean(&String::from_utf8_lossy(kept.make_contiguous()), 2000).to_string()
        };
        let mut message = format!("the {} process died: {}", self.kind, describe(status));
        let last = said.trim();
        if !last.is_empty() {
            let start = last.char_indices().rev().nth(300).map_or(0, |(at, _)| at);
            message.push_str(": ");
            message.push_str(&last[start..]);
        }
        let hint = match signal(status) {
            Some(9) => "the system may be out of memory; try a smaller model or close other programs",
            Some(6) => "it may have reached its memory limit",
            _ => "the native library or the model may be at fault; try another runtime version",
        };
        Error::died("CHILD-DIED", message).hint(hint)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

fn send(stdin: &mut ChildStdin, value: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stdin.write_all(&line)?;
    stdin.flush()
}

#[cfg(unix)]
fn signal(status: Option<ExitStatus>) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status?)
}
#[cfg(not(unix))]
fn signal(_: Option<ExitStatus>) -> Option<i32> {
    None
}

fn describe(status: Option<ExitStatus>) -> String {
    let name = |number| match number {
        4 => "SIGILL: illegal instruction",
        6 => "SIGABRT: aborted",
        7 => "SIGBUS: bus error",
        8 => "SIGFPE: arithmetic fault",
        9 => "SIGKILL: killed",
        11 => "SIGSEGV: invalid memory access",
        15 => "SIGTERM: terminated",
        24 => "SIGXCPU: CPU time used up",
        _ => "",
    };
    match (signal(status), status.and_then(|s| s.code())) {
        (Some(number), _) if name(number).is_empty() => format!("signal {number}"),
        (Some(number), _) => name(number).to_string(),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => "it closed its pipe without ending".to_string(),
    }
}
