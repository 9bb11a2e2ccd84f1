//! The real program in a pseudo terminal: what it writes is kept and shown on a screen of its own.

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, SlavePty, native_pty_system};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The program: the one that was built with these tests, or `$TINSMITH_PROGRAM`.
pub fn program() -> String {
    std::env::var("TINSMITH_PROGRAM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_tinsmith").into())
}
/// How long a screen may take on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);
/// Begins every frame.
const FRAME: &[u8] = b"\x1b[?2026h";

struct Seen {
    parser: vt100::Parser,
    bytes: Vec<u8>,
}

/// A terminal with the workbench on it.
pub struct Desk {
    master: Option<Box<dyn MasterPty + Send>>,
    slave: Option<Box<dyn SlavePty + Send>>,
    writer: Option<Box<dyn Write + Send>>,
    child: Box<dyn Child + Send + Sync>,
    seen: Arc<Mutex<Seen>>,
    closing: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
    before: String,
}

/// How the workbench is started.
pub struct Start<'a> {
    home: &'a Path,
    size: (u16, u16),
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    shell: Option<&'a str>,
}

/// On a home, at 80x24.
pub fn start(home: &Path) -> Start<'_> {
    Start { home, size: (80, 24), arguments: vec![], environment: vec![], shell: None }
}

impl<'a> Start<'a> {
    pub fn size(mut self, width: u16, height: u16) -> Self {
        self.size = (width, height);
        self
    }
    pub fn open(mut self, model: &Path) -> Self {
        self.arguments.extend(["--open".into(), model.to_str().unwrap().into()]);
        self
    }
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }
    /// Through a shell that runs this first; `$0` is the program, `$@` its arguments.
    pub fn through(mut self, script: &'a str) -> Self {
        self.shell = Some(script);
        self
    }

    pub fn run(self) -> Desk {
        let (cols, rows) = self.size;
        let pair = native_pty_system()
            .openpty(PtySize { rows, cols, pixel_width: 0, pixel_height: 0 })
            .expect("a pseudo terminal");
        let before = modes(&*pair.master);
        let mut command = match self.shell {
            Some(script) => {
                let mut command = CommandBuilder::new("bash");
                command.args(["--norc", "-c", script, &program()]);
                command
            }
            None => CommandBuilder::new(program()),
        };
        command.args(&self.arguments);
        command.cwd(self.home);
        command.env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        for (name, value) in [("TERM", "xterm-256color"), ("LANG", "C.UTF-8"), ("PS1", "prompt> ")] {
            command.env(name, value);
        }
        for name in ["HOME", "XDG_CONFIG_HOME", "TINSMITH_HOME"] {
            command.env(name, self.home);
        }
        for (name, value) in &self.environment {
            command.env(name, value);
        }
        let child = pair.slave.spawn_command(command).expect("the program");
        let size = |n: u16| NonZeroU16::new(n.max(1)).unwrap();
        let seen = Arc::new(Mutex::new(Seen {
            parser: vt100::Parser::new(size(rows), size(cols), 0),
            bytes: Vec::new(),
        }));
        let closing = Arc::new(AtomicBool::new(false));
        let mut from = pair.master.try_clone_reader().unwrap();
        let reader = std::thread::spawn({
            let (seen, closing) = (seen.clone(), closing.clone());
            move || {
                let mut buffer = [0; 1 << 16];
                while let Ok(n) = from.read(&mut buffer) {
                    if n == 0 || closing.load(Ordering::SeqCst) {
                        return;
                    }
                    let mut seen = seen.lock().unwrap();
                    seen.parser.process(&buffer[..n]);
                    seen.bytes.extend(&buffer[..n]);
                }
            }
        });
        Desk {
            writer: Some(pair.master.take_writer().unwrap()),
            master: Some(pair.master),
            slave: Some(pair.slave),
            child,
            seen,
            closing,
            reader: Some(reader),
            before,
        }
    }
}

/// Modes of the terminal line, for comparison.
fn modes(master: &(dyn MasterPty + Send)) -> String {
    let t = master.get_termios().expect("termios");
    format!("{:?} {:?} {:?}", t.input_flags, t.output_flags, t.local_flags)
}

impl Desk {
    /// The screen as text.
    pub fn screen(&self) -> String {
        self.seen.lock().unwrap().parser.screen().contents()
    }

    /// Waits until the screen contains a text.
    pub fn wait_for(&self, what: &str) -> String {
        self.wait_until(what, |screen| screen.contains(what))
    }

    /// Waits until the screen is as wanted.
    pub fn wait_until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen();
            if wanted(&screen) {
                return screen;
            }
            assert!(Instant::now() < until, "waited in vain for {what:?}:\n{screen}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) {
        let writer = self.writer.as_mut().unwrap();
        writer.write_all(keys.as_bytes()).unwrap();
        writer.flush().unwrap();
    }

    pub fn resize(&mut self, width: u16, height: u16) {
        if let (Some(w), Some(h)) = (NonZeroU16::new(width), NonZeroU16::new(height)) {
            self.seen.lock().unwrap().parser.screen_mut().set_size(h, w);
        }
        let size = PtySize { rows: height, cols: width, pixel_width: 0, pixel_height: 0 };
        self.master.as_ref().unwrap().resize(size).unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.process_id().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// Everything that was written so far.
    pub fn bytes(&self) -> Vec<u8> {
        self.seen.lock().unwrap().bytes.clone()
    }

    /// Bytes of each frame that is drawn during a time.
    pub fn frames(&self, time: Duration) -> Vec<usize> {
        let from = self.bytes().len();
        std::thread::sleep(time);
        let bytes = self.bytes()[from..].to_vec();
        let starts: Vec<usize> = (0..bytes.len().saturating_sub(FRAME.len() - 1))
            .filter(|i| bytes[*i..].starts_with(FRAME))
            .collect();
        let ends = starts.iter().skip(1).copied().chain([bytes.len()]);
        starts.iter().zip(ends).map(|(a, b)| b - a).collect()
    }

    /// The exit code, if the program ends in time.
    pub fn ended_within(&mut self, time: Duration) -> Option<u32> {
        let until = Instant::now() + time;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status.exit_code());
            }
            if Instant::now() >= until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether the terminal is in the workbench's modes.
    pub fn is_taken(&self) -> bool {
        let seen = self.seen.lock().unwrap();
        let screen = seen.parser.screen();
        screen.alternate_screen()
            && screen.hide_cursor()
            && modes(&**self.master.as_ref().unwrap()) != self.before
    }

    /// Fails unless the terminal is as it was before the start.
    pub fn assert_restored(&self) {
        // The last bytes may still be on their way.
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let modes = modes(&**self.master.as_ref().unwrap());
            let seen = self.seen.lock().unwrap();
            let screen = seen.parser.screen();
            let state = (
                screen.alternate_screen(),
                screen.hide_cursor(),
                screen.bracketed_paste(),
                format!("{:?}", screen.mouse_protocol_mode()),
                modes,
            );
            let wanted = (false, false, false, "None".to_string(), self.before.clone());
            if state == wanted {
                return;
            }
            assert!(Instant::now() < until, "left behind {state:?}, wanted {wanted:?}");
            drop(seen);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Closes the terminal as a lost connection does. Output is provoked first, so that the reader wakes
    /// and gives its descriptor back.
    pub fn hang_up(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        self.press("\u{c}");
        let until = Instant::now() + PATIENCE;
        while !self.reader.as_ref().unwrap().is_finished() {
            assert!(Instant::now() < until, "no output on a full redraw");
            std::thread::sleep(Duration::from_millis(2));
        }
        drop((self.slave.take(), self.writer.take(), self.master.take()));
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// Whether a process of this id is there and not a zombie.
pub fn lives(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.rsplit(") ").next().unwrap_or("").starts_with('Z'),
        Err(_) => false,
    }
}

/// Processor time of a process so far.
pub fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}
