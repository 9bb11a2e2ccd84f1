//! The terminal's modes: entered once, left exactly once on every way out (return, panic, signal, end of
//! the terminal). Owns the process-wide state that this needs; knows nothing of what is shown.

use crate::error::{Error, Result};
use crossterm::event::{
    DisableBracketedPaste, DisableMouseCapture, EnableBracketedPaste, EnableMouseCapture,
};
use crossterm::terminal::{
    EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use crossterm::{cursor, queue, style};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

static ENTERED: AtomicBool = AtomicBool::new(false);
static OUTPUT: Mutex<()> = Mutex::new(());
static PANICS: AtomicUsize = AtomicUsize::new(0);
static PANIC_MESSAGE: Mutex<Option<String>> = Mutex::new(None);

/// Refuses where the workbench cannot run: no terminal on either side, or one that cannot place a cursor.
pub fn check() -> Result<()> {
    let refuse = |message: &str| {
        Error::usage("NO-TERMINAL", message).hint(
            "use a command instead: `tinsmith --help` lists them; `tinsmith demo --headless` runs the loop",
        )
    };
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Err(refuse("the workbench needs a terminal on input and output"));
    }
    match std::env::var("TERM").unwrap_or_default().as_str() {
        "" => Err(refuse("the workbench needs to know the terminal; TERM is not set")),
        "dumb" => Err(refuse("the workbench cannot draw on this terminal").found("TERM=dumb")),
        _ => Ok(()),
    }
}

/// Held while the terminal is in the workbench's modes; leaves them when dropped.
pub struct Guard(());

/// Enters raw mode and the alternate screen.
pub fn enter(mouse: bool) -> Result<Guard> {
    enable_raw_mode().map_err(|e| Error::io("set up the terminal", "tty", e))?;
    ENTERED.store(true, Ordering::SeqCst);
    let guard = Guard(());
    let mut out = std::io::stdout().lock();
    let entered = queue!(out, EnterAlternateScreen, cursor::Hide, EnableBracketedPaste)
        .and_then(|()| if mouse { queue!(out, EnableMouseCapture) } else { Ok(()) })
        .and_then(|()| out.flush());
    entered.map_err(|e| Error::io("set up the terminal", "tty", e))?;
    Ok(guard)
}

impl Drop for Guard {
    fn drop(&mut self) {
        leave();
    }
}

/// Leaves the workbench's modes, if they were entered and not left yet. Safe on any thread.
pub fn leave() {
    if !ENTERED.swap(false, Ordering::SeqCst) {
        return;
    }
    let mut bytes: Vec<u8> = Vec::new();
    let _ = queue!(
        bytes,
        EndSynchronizedUpdate,
        style::SetAttribute(style::Attribute::Reset),
        DisableMouseCapture,
        DisableBracketedPaste,
        LeaveAlternateScreen,
        cursor::Show
    );
    // Not through the locked handle of the standard library: a thread that was stopped while drawing may
    // hold it.
    let _ = disable_raw_mode();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        match rustix::io::write(rustix::stdio::stdout(), rest) {
            Ok(n) if n > 0 => rest = &rest[n..],
            Err(rustix::io::Errno::INTR) => {}
            _ => break,
        }
    }
}

/// Keeps a frame in one piece: held while it is written.
pub fn drawing() -> MutexGuard<'static, ()> {
    OUTPUT.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Turns the mouse on or off.
pub fn mouse(on: bool) {
    let _frame = drawing();
    let mut out = std::io::stdout().lock();
    let _ = if on { queue!(out, EnableMouseCapture) } else { queue!(out, DisableMouseCapture) };
    let _ = out.flush();
}

/// Puts text on the terminal's clipboard.
pub fn copy(text: &str) {
    let _frame = drawing();
    let mut out = std::io::stdout().lock();
    let _ = queue!(out, crossterm::clipboard::CopyToClipboard::to_clipboard_from(text));
    let _ = out.flush();
}

/// Leaves the modes and ends the process, within 200 ms even where the terminal takes no more bytes.
pub fn end(code: i32) -> ! {
    let until = Instant::now() + Duration::from_millis(60);
    while matches!(OUTPUT.try_lock(), Err(TryLockError::WouldBlock)) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    let writer = std::thread::spawn(leave);
    let until = Instant::now() + Duration::from_millis(80);
    while !writer.is_finished() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    signal_hook::low_level::exit(code)
}

/// Ends the process when the terminal hangs up, whatever else it does: crossterm's reader never returns
/// then. `events` stays empty, so that the poll wakes for hang-up and error alone.
pub fn watch_hangup() {
    std::thread::spawn(|| {
        loop {
            let stdin = std::io::stdin();
            let mut fds = [PollFd::new(&stdin, PollFlags::empty())];
            let second = Timespec { tv_sec: 1, tv_nsec: 0 };
            let gone = match poll(&mut fds, Some(&second)) {
                Ok(0) => false,
                Ok(_) => fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL),
                Err(rustix::io::Errno::INTR) => false,
                Err(_) => true,
            };
            if gone {
                end(129);
            }
        }
    });
}

/// Makes panics leave the terminal first. On this thread the message is kept for [`panic_message`], and
/// printed at once only where a second panic would lose it; panics of other threads are left to whoever
/// catches them.
pub fn install_panic_hook() {
    let ui = std::thread::current().id();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() != ui {
            return;
        }
        let message = format!("{info}");
        leave();
        let again = PANICS.fetch_add(1, Ordering::SeqCst) > 0;
        let first = PANIC_MESSAGE.lock().ok().and_then(|mut kept| kept.replace(message.clone()));
        if again {
            let text = format!("{}\n{message}\n", first.unwrap_or_default());
            let _ = std::io::stderr().write_all(crate::text::clean(&text, 4000).as_bytes());
        }
    }));
}

/// The message of the panic that [`install_panic_hook`] saw.
pub fn panic_message() -> Option<String> {
    PANIC_MESSAGE.lock().ok().and_then(|mut kept| kept.take())
}

/// Stops the process group as Ctrl-Z does, and enters the modes again after `fg`. `false` where nobody
/// could bring the process back: no shell with job control stands behind it.
pub fn suspend(mouse: bool) -> bool {
    use rustix::process::{Signal, getpgrp, getppid, getsid, kill_process_group};
    let parent = getppid().and_then(|p| getsid(Some(p)).ok());
    if parent.is_none() || parent != getsid(None).ok() {
        return false;
    }
    let _frame = drawing();
    leave();
    let _ = kill_process_group(getpgrp(), Signal::STOP);
    // The stop is not instant for every thread; the modes must not come back before it.
    std::thread::sleep(Duration::from_millis(30));
    reenter(mouse);
    true
}

/// Enters the modes again after the process was stopped.
pub fn reenter(mouse: bool) {
    if let Ok(guard) = enter(mouse) {
        std::mem::forget(guard);
    }
}
