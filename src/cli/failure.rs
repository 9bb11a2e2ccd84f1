//! How failures are told: one line or, under `--format json`, one object on stderr; the exit code.

use crate::error::{Error, Kind};
use crate::report::json_line;
use crate::text::clean;
use serde::Serialize;
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

#[derive(Serialize)]
struct Document<'a> {
    schema_version: u32,
    #[serde(flatten)]
    error: &'a Error,
}

/// Whether the arguments ask for JSON, known before they are parsed.
pub(super) fn wants_json(arguments: &[OsString]) -> bool {
    let is_json = |v: &str| v == "json" || v == "jsonl";
    arguments.iter().enumerate().any(|(i, a)| match a.to_str() {
        Some("--format") => arguments.get(i + 1).and_then(|v| v.to_str()).is_some_and(is_json),
        Some(a) => a.strip_prefix("--format=").is_some_and(is_json),
        None => false,
    })
}

/// Help and version go to stdout and are no failure; the rest is a usage error.
pub(super) fn of_arguments(e: &clap::Error, json: bool) -> ExitCode {
    if !e.use_stderr() {
        return match e.print() {
            Err(io) if io.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::from(6),
            _ => ExitCode::SUCCESS,
        };
    }
    if !json {
        // The message repeats what was typed, so it is told without colours and cleaned.
        let text: String = e.to_string().lines().map(|l| format!("{}\n", clean(l, usize::MAX))).collect();
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
        return ExitCode::from(Kind::Usage.exit_code());
    }
    let text = e.to_string();
    let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_string();
    let error = Error::usage("USAGE", first).hint("`--help` shows the arguments");
    say(&error, true, false);
    ExitCode::from(Kind::Usage.exit_code())
}

/// Tells a failure and returns its exit code. A reader that went away is no failure.
pub(super) fn report(e: &anyhow::Error, json: bool, color: bool) -> ExitCode {
    if let Some(io) = e.downcast_ref::<std::io::Error>() {
        if io.kind() == std::io::ErrorKind::BrokenPipe {
            return ExitCode::SUCCESS;
        }
        let error = Error::storage("IO", format!("cannot write the result: {io}"));
        say(&error, json, color);
        return ExitCode::from(error.kind().exit_code());
    }
    match e.downcast_ref::<Error>() {
        Some(error) => {
            say(error, json, color);
            ExitCode::from(error.kind().exit_code())
        }
        None => {
            let error = Error::internal("BUG", e.to_string())
                .hint("please report this with the command line that led to it");
            say(&error, json, color);
            ExitCode::from(Kind::Internal.exit_code())
        }
    }
}

fn say(error: &Error, json: bool, color: bool) {
    let line = match json_line(&Document { schema_version: 1, error }) {
        Ok(line) if json => line,
        _ if color => format!("\u{1b}[1;31merror\u{1b}[0m{}\n", clean(&error.to_string(), usize::MAX)),
        _ => format!("error{}\n", clean(&error.to_string(), usize::MAX)),
    };
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}
