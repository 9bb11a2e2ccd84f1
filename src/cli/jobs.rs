//! `jobs`: what runs, what ran, and control over it.

use super::context::Context;
use super::follow;
use super::run::{Outcome, detached};
use crate::error::{Error, Result};
use crate::jobs::{self, Event, JobHandle};
use crate::plan::Goal;
use crate::report::{Cell, Report, Table, json_line};
use crate::units::Span;
use serde::Serialize;
use std::time::Duration;

/// List, show, follow and control jobs
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// All jobs, oldest first
    #[command(after_help = "Example:\n  tinsmith jobs list --format json")]
    List,
    /// One job: state, steps, artefacts, figures
    #[command(after_help = "Example:\n  tinsmith jobs show last")]
    Show(Id),
    /// The log of a job
    #[command(after_help = "Example:\n  tinsmith jobs log a1b2 -f")]
    Log {
        #[command(flatten)]
        job: Id,
        /// Go on while the job runs
        #[arg(long, short)]
        follow: bool,
        /// Output of the worker process instead of the events
        #[arg(long)]
        worker: bool,
    },
    /// Follow a job until it ends
    #[command(after_help = "Example:\n  tinsmith jobs attach last")]
    Attach(Id),
    /// Stop a job at its next checkpoint
    #[command(after_help = "Example:\n  tinsmith jobs pause a1b2")]
    Pause(Id),
    /// Continue a job that was paused, cancelled, failed or died
    #[command(after_help = "Example:\n  tinsmith jobs resume a1b2")]
    Resume {
        #[command(flatten)]
        job: Id,
        /// Return as soon as it is queued
        #[arg(long)]
        detach: bool,
    },
    /// Stop a job for good
    #[command(after_help = "Example:\n  tinsmith jobs cancel a1b2")]
    Cancel(Id),
    /// Delete a job and all its files
    #[command(after_help = "Example:\n  tinsmith jobs delete a1b2 --yes")]
    Delete {
        #[command(flatten)]
        job: Id,
        /// Really delete
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Id {
    /// Id, its beginning or end, or `last`
    job: String,
}

pub(super) fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let open = |id: &Id| jobs::open(&context.paths, &id.job);
    // Whoever looks moves the queue on.
    jobs::dispatch(&context.paths, &context.settings)?;
    match args.command {
        What::List => context.print(&list(&jobs::list(&context.paths))?),
        What::Show(id) => context.print(&show(&open(&id)?)?),
        What::Log { job, worker: true, .. } => {
            let lines = open(&job)?.worker_log(1000);
            context.write(&lines.iter().map(|l| format!("{l}\n")).collect::<String>())
        }
        What::Log { job, follow, .. } => log(context, &open(&job)?, follow),
        What::Attach(id) => attach(context, &open(&id)?),
        What::Pause(id) => {
            let job = open(&id)?;
            jobs::pause(&job)?;
            settled(context, &job)
        }
        What::Cancel(id) => {
            let job = open(&id)?;
            jobs::cancel(&job)?;
            settled(context, &job)
        }
        What::Resume { job, detach } => {
            let job = open(&job)?;
            jobs::resume(&job)?;
            jobs::dispatch(&context.paths, &context.settings)?;
            if detach { context.print(&detached(&job)?) } else { attach(context, &job) }
        }
        What::Delete { job, yes } => {
            let job = open(&job)?;
            if !yes {
                return Err(Error::usage("JOB-DELETE", "deleting removes the job's artefacts and figures")
                    .file(&job.dir)
                    .hint("repeat with --yes")
                    .into());
            }
            jobs::delete(&context.paths, &job)?;
            context.note(&format!("deleted job {}", job.id));
            Ok(())
        }
    }
}

fn attach(context: &Context, job: &JobHandle) -> anyhow::Result<()> {
    let state = follow::follow(context, job)?;
    let goal = match job.request() {
        Ok(jobs::Request::Run { recipe }) => recipe.goal,
        _ => Goal::default(),
    };
    let outcome = Outcome::new(&follow::Followed { job: job.clone(), state }, &goal)?;
    context.show(&outcome)?;
    outcome.gate()
}

/// Waits until the worker has stopped, and says where the job stands.
fn settled(context: &Context, job: &JobHandle) -> anyhow::Result<()> {
    for _ in 0..100 {
        if !job.status().is_live() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    context.note(&format!("job {} is {}", job.id, job.status().word()));
    Ok(())
}

#[derive(Serialize)]
struct Document {
    schema_version: u32,
    jobs: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    id: String,
    name: String,
    what: String,
    model: String,
    status: &'static str,
    phase: String,
    fraction: Option<f64>,
    created_ms: u64,
    updated_ms: u64,
    reason: Option<String>,
    artifacts: Vec<String>,
    directory: String,
}

fn line(job: &JobHandle) -> Line {
    let live = job.status();
    let state = job.state();
    Line {
        id: job.id.to_string(),
        fraction: state.fraction(),
        name: state.name,
        what: state.what,
        model: state.model,
        status: live.status.word(),
        phase: state.phase.name,
        created_ms: state.created_ms,
        updated_ms: state.updated_ms,
        reason: live.reason.or(state.reason),
        artifacts: state.artifacts.into_iter().map(|a| a.path).collect(),
        directory: job.dir.display().to_string(),
    }
}

fn list(all: &[JobHandle]) -> Result<Report> {
    let document = Document { schema_version: 1, jobs: all.iter().map(line).collect() };
    let mut table = Table::new(&[
        ("id", "<job"),
        ("status", "<status"),
        ("what", "<what"),
        ("name", "<name"),
        ("model", "<model"),
        ("fraction", "done %"),
        ("phase", "<phase"),
        ("took_s", "took"),
    ]);
    for l in &document.jobs {
        let took = l.updated_ms.saturating_sub(l.created_ms) as f64 / 1e3;
        table.push([
            Cell::text(l.id.clone()),
            Cell::text(l.status),
            Cell::text(l.what.clone()),
            Cell::text(l.name.clone()),
            Cell::text(l.model.clone()),
            Cell::maybe(l.fraction.filter(|_| l.status == "running"), |f| format!("{:.0}", 100.0 * f)),
            Cell::text(l.reason.clone().unwrap_or_else(|| l.phase.clone())),
            Cell::value(took, Span(took)),
        ]);
    }
    let report = Report::new(&document)?.records(&document.jobs)?.table(table);
    Ok(if all.is_empty() { report.line("no jobs yet; `tinsmith demo` makes some") } else { report })
}

fn show(job: &JobHandle) -> Result<Report> {
    let l = line(job);
    let state = job.state();
    let mut report = Report::new(&serde_json::json!({
        "schema_version": 1, "job": &l, "steps": &state.steps, "artifacts": &state.artifacts,
        "measurements": &state.measurements, "warnings": state.warnings,
    }))?
    .facts([
        ("job", l.id.clone()),
        ("name", l.name.clone()),
        ("status", l.status.to_string()),
        ("reason", l.reason.clone().unwrap_or_default()),
        ("model", l.model.clone()),
        ("phase", l.phase.clone()),
        ("directory", l.directory.clone()),
    ]);
    for (index, step) in state.steps.iter().enumerate() {
        report = report.line(format!("step {}: {step}", index + 1));
    }
    for a in &state.artifacts {
        report = report.line(format!(
            "artefact {}: {} ({}, sha256 {})",
            a.name,
            a.path,
            crate::units::Bytes(a.bytes),
            a.sha256
        ));
    }
    if !state.measurements.is_empty() {
        use crate::report::Present;
        report = report.append(state.measurements.as_slice().report()?);
    }
    Ok(report)
}

/// The events as text lines or as they are.
fn log(context: &Context, job: &JobHandle, follow: bool) -> anyhow::Result<()> {
    let json = matches!(context.format, crate::report::Format::Json | crate::report::Format::Jsonl);
    let mut tail = job.tail();
    let mut state = jobs::JobState::default();
    loop {
        for record in tail.poll() {
            state.apply(&record);
            if json {
                context.write(&json_line(&record)?)?;
            } else if let Some(text) = words(&record.event) {
                let stamp = jobs::clock::stamp(record.wall_ms);
                context.write(&format!("{stamp}  {}\n", crate::text::clean(&text, 1000)))?;
            }
        }
        if tail.is_caught_up() && (!follow || state.status.is_final() || !job.status().is_live()) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A line for people; progress and curve points have none.
fn words(event: &Event) -> Option<String> {
    Some(match event {
        Event::Queued { name, what, model, .. } => format!("queued {what} \"{name}\" on {model}"),
        Event::Started { pid, host } => format!("started as process {pid} on {host}"),
        Event::Resumed { pid, step } => format!("resumed as process {pid} at step {step}"),
        Event::Phase { name, .. } => format!("phase {name}"),
        Event::Log { message, level } => match level {
            crate::monitor::Level::Info => message.clone(),
            other => format!(
                "{}: {message}",
                if *other == crate::monitor::Level::Error { "error" } else { "warning" }
            ),
        },
        Event::Artifact { path, sha256, bytes, .. } => {
            format!("artefact {path}, {bytes} bytes, sha256 {sha256}")
        }
        Event::Measurement { measurement: m } => format!("measured {}", m.variant),
        Event::Checkpoint { step, path } => format!("checkpoint of step {step} in {path}"),
        Event::Paused { reason } => format!("paused: {reason}"),
        Event::Cancelled => "cancelled".into(),
        Event::Dropped { count } => format!("{count} records were dropped"),
        Event::Finished => "finished".into(),
        Event::Failed { message, exit_code } => format!("failed ({exit_code}): {message}"),
        Event::Dead { cause } => format!("dead: {cause}"),
        Event::Progress { .. } | Event::Metric { .. } => return None,
    })
}
