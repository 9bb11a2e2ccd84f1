//! `doctor`: what works here and what does not.

use super::context::Context;
use crate::error::{Error, Result};
use crate::jobs;
use crate::report::{Cell, Report, Table};
use crate::runtime;
use crate::units::Bytes;
use serde::Serialize;
use std::path::Path;

/// Report what works on this machine and what does not: runtime, processor, storage, package clients
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tinsmith doctor --format json")]
pub(super) struct Args {}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Ok,
    Warning,
    Failed,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    found: String,
    hint: Option<String>,
}

#[derive(Serialize)]
struct Document {
    schema_version: u32,
    version: &'static str,
    checks: Vec<Check>,
}

fn check(name: &'static str, status: Status, found: impl Into<String>, hint: Option<&str>) -> Check {
    Check { name, status, found: found.into(), hint: hint.map(String::from) }
}

/// Least free space below which a warning is given.
const ROOM: u64 = 1 << 30;

pub(super) fn run(context: &Context, _: Args) -> anyhow::Result<()> {
    let checks = vec![
        processor(),
        runtime_check(context),
        providers(context),
        home(context),
        space(context.paths.home()),
        client("python3", &["-m", "pip", "--version"], "needed by `setup` and most of `fetch`"),
        client("npm", &["--version"], "needed by `fetch` for the text data sets"),
        queue(context),
    ];
    let failed: Vec<&str> = checks.iter().filter(|c| c.status == Status::Failed).map(|c| c.name).collect();
    let failed = failed.join(", ");
    context.print(&report(Document { schema_version: 1, version: env!("CARGO_PKG_VERSION"), checks })?)?;
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Error::gate("DOCTOR", format!("does not work: {failed}")).into()),
    }
}

fn report(document: Document) -> Result<Report> {
    let mut table =
        Table::new(&[("name", "<check"), ("status", "<status"), ("found", "<found"), ("hint", "<next step")]);
    for c in &document.checks {
        let word = match c.status {
            Status::Ok => "ok",
            Status::Warning => "warning",
            Status::Failed => "failed",
        };
        let hint = c.hint.clone().unwrap_or_default();
        table.push([Cell::text(c.name), Cell::text(word), Cell::text(c.found.clone()), Cell::text(hint)]);
    }
    Report::new(&document)?
        .records(&document.checks)
        .map(|r| r.facts([("tinsmith", document.version.to_string())]).table(table))
}

fn processor() -> Check {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    check("processor", Status::Ok, format!("{} threads, {}", threads, std::env::consts::ARCH), None)
}

fn runtime_check(context: &Context) -> Check {
    const NAME: &str = "onnxruntime";
    let install = "`tinsmith setup` installs one";
    match runtime::locate(&context.paths) {
        Ok(None) => check(
            NAME,
            Status::Warning,
            "none found; the first command that needs it installs it",
            Some(install),
        ),
        Err(e) => check(NAME, Status::Failed, e.to_string(), e.hint_text().or(Some(install))),
        Ok(Some(library)) => match runtime::probe(&library) {
            Ok(p) => check(NAME, Status::Ok, format!("{} at {}", p.version, p.library.path.display()), None),
            Err(e) => check(NAME, Status::Failed, e.message(), e.hint_text().or(Some(install))),
        },
    }
}

/// What each execution provider is good for here: those that sessions can have, the others with reasons.
fn providers(context: &Context) -> Check {
    const NAME: &str = "providers";
    let Ok(Some(library)) = runtime::locate(&context.paths) else {
        return check(NAME, Status::Warning, "unknown without a runtime", None);
    };
    let Ok(probe) = runtime::probe(&library) else {
        return check(NAME, Status::Warning, "unknown, the runtime does not work", None);
    };
    let offers = runtime::provider::offers(&library, &probe.providers);
    let usable: Vec<&str> = offers.iter().filter(|o| o.usable).map(|o| o.name.as_str()).collect();
    let told = |o: &runtime::provider::Offer| {
        let built = if o.compiled { "built in, but " } else { "" };
        format!("{}: {built}{}", o.name, o.reason.as_deref().unwrap_or("cannot be used"))
    };
    // Providers that are neither there nor for CPUs are no news.
    let others: Vec<String> =
        offers.iter().filter(|o| !o.usable && (o.compiled || o.for_cpu)).map(told).collect();
    let found = format!("{}; not {}", usable.join(", "), others.join("; "));
    check(NAME, Status::Ok, found, None)
}

fn home(context: &Context) -> Check {
    let home = context.paths.home();
    let writable = std::fs::create_dir_all(home).and_then(|()| tempfile::tempfile_in(home).map(drop));
    match writable {
        Ok(()) => check("home", Status::Ok, home.display().to_string(), None),
        Err(e) => check(
            "home",
            Status::Failed,
            format!("{}: {e}", home.display()),
            Some("set TINSMITH_HOME or pass --home DIR to a directory that can be written"),
        ),
    }
}

fn space(home: &Path) -> Check {
    match rustix::fs::statvfs(home) {
        Ok(s) => {
            let free = s.f_bavail.saturating_mul(s.f_frsize);
            let found = format!("{} free", Bytes(free));
            match free < ROOM {
                true => check("space", Status::Warning, found, Some("jobs pause when the disk is full")),
                false => check("space", Status::Ok, found, None),
            }
        }
        Err(e) => check("space", Status::Warning, format!("unknown: {e}"), None),
    }
}

fn client(program: &'static str, arguments: &[&str], purpose: &str) -> Check {
    let out = std::process::Command::new(program).args(arguments).stdin(std::process::Stdio::null()).output();
    match out {
        Ok(out) if out.status.success() => {
            let text = String::from_utf8_lossy(&out.stdout);
            check(program, Status::Ok, text.lines().next().unwrap_or_default().trim(), None)
        }
        _ => check(program, Status::Warning, "not found", Some(purpose)),
    }
}

fn queue(context: &Context) -> Check {
    let all = jobs::list(&context.paths);
    let running = all.iter().filter(|j| j.status().is_live()).count();
    check("jobs", Status::Ok, format!("{} in all, {running} running", all.len()), None)
}
