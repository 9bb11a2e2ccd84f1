//! The child's end: imposes its limits, answers requests until its stdin ends, and dies at once when
//! that happens in the middle of one, because its parent is gone.

use super::wire::{Frame, LineFault, Opening, read_line};
use super::{ARGUMENT, PROTOCOL};
use crate::error::{Error, Kind, Result};
use crate::monitor::{Level, Monitor};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::fs::File;
use std::io::{BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

/// Longest request.
const REQUEST: usize = 64 << 20;

type Service = Box<dyn FnMut(Value, &Link) -> Result<Value>>;

/// One kind of work that a child can do.
pub struct Handler {
    kind: &'static str,
    open: Box<dyn Fn() -> Service>,
}

fn decode<Req: DeserializeOwned>(request: Value) -> Result<Req> {
    serde_json::from_value(request)
        .map_err(|e| Error::internal("CHILD-REQUEST", format!("a request cannot be understood: {e}")))
}
fn encode<Rep: Serialize>(reply: &Rep) -> Result<Value> {
    serde_json::to_value(reply)
        .map_err(|e| Error::internal("CHILD-REPLY", format!("an answer cannot be written: {e}")))
}

impl Handler {
    /// Work that answers each request for itself.
    pub fn new<Req, Rep>(kind: &'static str, work: fn(Req, &Link) -> Result<Rep>) -> Handler
    where
        Req: DeserializeOwned + 'static,
        Rep: Serialize + 'static,
    {
        Handler {
            kind,
            open: Box::new(move || Box::new(move |request, link| encode(&work(decode(request)?, link)?))),
        }
    }

    /// Work with a state that lives as long as the child.
    pub fn stateful<State, Req, Rep>(
        kind: &'static str,
        work: fn(&mut State, Req, &Link) -> Result<Rep>,
    ) -> Handler
    where
        State: Default + 'static,
        Req: DeserializeOwned + 'static,
        Rep: Serialize + 'static,
    {
        Handler {
            kind,
            open: Box::new(move || {
                let mut state = State::default();
                Box::new(move |request, link| encode(&work(&mut state, decode(request)?, link)?))
            }),
        }
    }
}

/// The child's way to its parent while it works. As a [`Monitor`] it forwards everything; a stop
/// arrives as the child's end, never through [`Monitor::stop_requested`].
pub struct Link {
    out: Mutex<File>,
}

impl Link {
    fn send(&self, frame: &Frame) {
        let Ok(mut line) = serde_json::to_vec(frame) else { return };
        line.push(b'\n');
        // A parent that is gone is noticed at stdin.
        let _ = self.out.lock().unwrap_or_else(std::sync::PoisonError::into_inner).write_all(&line);
    }

    /// Sends a part of a streamed answer.
    pub fn item(&self, value: &impl Serialize) -> Result<()> {
        self.send(&Frame::Item(encode(value)?));
        Ok(())
    }
}

impl Monitor for Link {
    fn phase(&self, name: &str, total: Option<u64>) {
        self.send(&Frame::Phase { name: name.into(), total });
    }
    fn progress(&self, done: u64) {
        self.send(&Frame::Progress(done));
    }
    fn metric(&self, name: &str, step: u64, value: f64) {
        self.send(&Frame::Metric { name: name.into(), step, value });
    }
    fn log(&self, level: Level, message: &str) {
        self.send(&Frame::Log { level, message: message.into() });
    }
    fn stop_requested(&self) -> bool {
        false
    }
}

static SERVES: AtomicBool = AtomicBool::new(false);

/// Whether this program would serve if it were started as a child.
pub(super) fn serves() -> bool {
    SERVES.load(Ordering::Relaxed)
}

/// Serves and returns the exit code if this process was started as a child; `None` otherwise. To be
/// called first in `main`.
pub fn serve_if_asked(handlers: impl FnOnce() -> Vec<Handler>) -> Option<ExitCode> {
    SERVES.store(true, Ordering::Relaxed);
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    Some(match serve(handlers) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "{e}");
            ExitCode::from(e.kind().exit_code())
        }
    })
}

fn serve(handlers: impl FnOnce() -> Vec<Handler>) -> Result<()> {
    let pipe = |e: std::io::Error| Error::internal("CHILD-PIPE", format!("cannot set up the pipes: {e}"));
    // Native libraries print to stdout; the answers go through a descriptor of their own.
    let out = rustix::io::fcntl_dupfd_cloexec(std::io::stdout(), 3).map_err(|e| pipe(e.into()))?;
    rustix::stdio::dup2_stdout(std::io::stderr()).map_err(|e| pipe(e.into()))?;
    let link = Link { out: Mutex::new(File::from(out)) };

    let mut stdin = BufReader::new(std::io::stdin());
    let unusable = || {
        Error::usage("CHILD-OPENING", "this is how tinsmith starts itself; it is not meant for people")
            .hint("run `tinsmith --help`")
    };
    let line = read_line(&mut stdin, REQUEST).ok().flatten().ok_or_else(unusable)?;
    let opening: Opening = serde_json::from_slice(&line).map_err(|_| unusable())?;
    if opening.protocol != PROTOCOL {
        return Err(Error::internal("CHILD-VERSION", "parent and child are different versions")
            .found(opening.protocol)
            .limit(PROTOCOL)
            .hint("restart tinsmith"));
    }
    for refused in opening.limits.impose(opening.parent) {
        link.log(Level::Warning, &format!("a limit could not be imposed: {refused}"));
    }
    let handler = handlers()
        .into_iter()
        .find(|h| h.kind == opening.kind)
        .ok_or_else(|| Error::internal("CHILD-KIND", "no such work").found(&opening.kind))?;

    let busy = Arc::new(AtomicBool::new(false));
    let (to, requests) = channel();
    let at_work = Arc::clone(&busy);
    std::thread::Builder::new()
        .name("stdin".into())
        .spawn(move || {
            loop {
                match read_line(&mut stdin, REQUEST) {
                    Ok(Some(line)) => {
                        at_work.store(true, Ordering::SeqCst);
                        if to.send(line).is_err() {
                            return;
                        }
                    }
                    Ok(None) | Err(LineFault::TooLong | LineFault::Io(_)) => {
                        if at_work.load(Ordering::SeqCst) {
                            let me = rustix::process::getpid();
                            let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
                        }
                        return;
                    }
                }
            }
        })
        .map_err(pipe)?;

    let mut service = (handler.open)();
    while let Ok(line) = requests.recv() {
        let answer = serde_json::from_slice(&line)
            .map_err(|e| Error::internal("CHILD-REQUEST", format!("a request is not JSON: {e}")))
            .and_then(|request| {
                catch_unwind(AssertUnwindSafe(|| service(request, &link))).unwrap_or_else(|panic| {
                    let what = panic
                        .downcast_ref::<String>()
                        .map(String::as_str)
                        .or_else(|| panic.downcast_ref::<&str>().copied())
                        .unwrap_or("no message");
                    Err(Error::internal(
                        "CHILD-PANIC",
                        format!("the {} process failed: {what}", opening.kind),
                    )
                    .hint("report this as a bug"))
                })
            });
        busy.store(false, Ordering::SeqCst);
        link.send(&match answer {
            Ok(value) => Frame::Reply(value),
            Err(e) => Frame::Error(serde_json::to_value(&e).unwrap_or(Value::Null)),
        });
    }
    Ok(())
}

/// Faults on request, for tests of what a parent sees.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Fault {
    /// Answers with the same text.
    Echo(String),
    /// Answers after so many milliseconds.
    Sleep(u64),
    /// Ends by this signal.
    Signal(i32),
    /// Ends with this exit code.
    Exit(i32),
    /// Answers with so many bytes.
    Reply(usize),
    /// Allocates and touches so many bytes.
    Allocate(usize),
    /// Prints to stdout, as native libraries do.
    Print(String),
    /// Fails as an error with facts.
    Fail,
    /// Panics by an index out of range.
    Index(usize),
}

/// A handler (`fault`) that misbehaves as asked.
pub fn fault_handler() -> Handler {
    Handler::new("fault", |fault: Fault, link: &Link| -> Result<String> {
        match fault {
            Fault::Echo(text) => Ok(text),
            Fault::Sleep(ms) => {
                link.progress(1);
                std::thread::sleep(std::time::Duration::from_millis(ms));
                Ok(String::new())
            }
            Fault::Signal(number) => {
                // Rust's stack guard swallows the first SIGSEGV that no memory access caused.
                for _ in 0..3 {
                    if let Some(signal) = rustix::process::Signal::from_named_raw(number) {
                        let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
                    }
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                Ok(String::new())
            }
            Fault::Exit(code) => std::process::exit(code),
            Fault::Reply(bytes) => Ok("x".repeat(bytes)),
            Fault::Allocate(bytes) => {
                let memory = vec![1u8; bytes];
                Ok(memory.iter().step_by(4096).map(|&b| u64::from(b)).sum::<u64>().to_string())
            }
            Fault::Print(text) => {
                let _ = writeln!(std::io::stdout(), "{text}");
                Ok(text)
            }
            Fault::Fail => {
                Err(Error::new(Kind::Invalid, "FAULT", "as asked").field("fault").hint("ask for less"))
            }
            Fault::Index(at) => {
                Ok([1u8, 2][..].get(..at).map_or_else(|| [1u8, 2][at % 9].to_string(), |_| String::new()))
            }
        }
    })
}
