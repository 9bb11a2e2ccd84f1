//! What `optimize` does for ONNX Runtime beside rewriting the graph: session settings by measuring, and
//! models as the library rewrites them.

use super::context::Context;
use super::{follow, measure, run};
use crate::error::{Error, Result};
use crate::evaluate::session::{SessionFile, Trial};
use crate::jobs::Request;
use crate::jobs::request::{Sampling, Subject};
use crate::plan::Goal;
use crate::report::{Cell, Report, Table};
use crate::runtime::Optimization;
use crate::save;
use clap::ValueEnum;
use std::path::Path;

/// How far ONNX Runtime rewrites a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    /// Constants folded, what is redundant removed
    Basic,
    /// Fusions for the CPU too
    Extended,
    /// Layouts too: for this machine alone
    All,
}

/// Flags of `optimize`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "ONNX Runtime")]
pub(super) struct Prepare {
    /// Choose session settings by measuring and write them to MODEL.session.json, which bench, eval and
    /// deploy use; the model is that of -o, which is made first, or MODEL as it is
    #[arg(long, conflicts_with = "serialize")]
    pub(super) tune: bool,
    /// Device whose cores bound --tune [default: host]
    #[arg(long, value_name = "DEVICE", requires = "tune")]
    device: Option<String>,
    /// Write the model as ONNX Runtime rewrites it when it loads it, in ONNX or, where -o ends in .ort, in its
    /// own format; our own rewriting is left out
    #[arg(long, value_name = "LEVEL", conflicts_with_all = ["measure", "save_recipe"])]
    serialize: Option<Level>,
}

impl Prepare {
    /// Whether a model is to be written by the runtime.
    pub(super) fn serializes(&self) -> bool {
        self.serialize.is_some()
    }

    /// Writes `model` as the runtime rewrites it.
    pub(super) fn serialize(
        &self,
        context: &Context,
        model: &str,
        output: Option<&Path>,
        data: Option<String>,
        detach: bool,
    ) -> anyhow::Result<()> {
        let level = match self.serialize {
            Some(Level::Basic) => Optimization::Basic,
            Some(Level::Extended) | None => Optimization::Extended,
            Some(Level::All) => Optimization::All,
        };
        let ort = output.is_some_and(|o| o.extension().is_some_and(|e| e == "ort"));
        let mut subject = subject(model)?;
        subject.name = format!("{}-{}", subject.name, level.word());
        let request = Request::Serialize { model: subject, level, ort, data };
        if detach {
            return context.print(&run::detached(&follow::submit(context, &request)?)?);
        }
        let followed = follow::submit_and_follow(context, &request)?;
        let outcome = run::Outcome::new(&followed, &Goal::default())?;
        if let (Some(output), Some(made)) = (output, followed.state.artifacts.last()) {
            let made = followed.job.artifact(&made.path)?;
            if ort {
                save::bytes(
                    output,
                    &std::fs::read(&made).map_err(|e| Error::io("read the result", &made, e))?,
                )?;
            } else {
                run::copy(&made, output)?;
            }
            context.note(&format!("wrote {}", output.display()));
        }
        context.show(&outcome)
    }

    /// Tunes the sessions of `model`.
    pub(super) fn tune(&self, context: &Context, model: &str, detach: bool) -> anyhow::Result<()> {
        let request = Request::Tune {
            model: subject(model)?,
            threads: context.thread_list().to_vec(),
            device: self.device.clone(),
            sampling: Sampling::default(),
        };
        if detach {
            return context.print(&run::detached(&follow::submit(context, &request)?)?);
        }
        follow::submit_and_follow(context, &request)?;
        let file = SessionFile::beside(Path::new(model))?
            .ok_or_else(|| Error::internal("TUNE", "the job left no settings").file(model))?;
        context.print(&report(&file)?)
    }
}

fn subject(model: &str) -> Result<Subject> {
    std::fs::metadata(model).map_err(|e| Error::io("read the model", model, e))?;
    let path = std::path::absolute(model).map_err(|e| Error::io("find the model", model, e))?;
    let name = measure::names(&[model.to_string()]).pop().unwrap_or_default();
    let kept = |c: char| if c.is_ascii_alphanumeric() || "-_.+".contains(c) { c } else { '-' };
    let name: String = name.trim_start_matches('.').chars().take(80).map(kept).collect();
    Ok(Subject::new(if name.is_empty() { "model".into() } else { name }, path.to_string_lossy()))
}

fn report(file: &SessionFile) -> Result<Report> {
    let mut table = Table::new(&[
        ("factor", "<factor"),
        ("tried", "<settings"),
        ("ratio", "latency"),
        ("ci95", "95 % interval"),
        ("outcome", "<outcome"),
    ]);
    let tuned = file.tuned.as_ref();
    for t in tuned.map(|t| t.trials.as_slice()).unwrap_or_default() {
        let Trial { factor, tried, ratio, ci95, taken, reason } = t;
        table.push([
            Cell::text(factor.clone()),
            Cell::text(tried.clone()),
            Cell::maybe(*ratio, |r| format!("{r:.3}x")),
            ci95.as_ref().map_or_else(Cell::empty, |i| Cell::text(format!("{:.3}..{:.3}", i.low, i.high))),
            Cell::text(if *taken { "taken".into() } else { reason.clone().unwrap_or_default() }),
        ]);
    }
    let gain = tuned.map(|t| {
        format!("{:.3} ms -> {:.3} ms, {:.3}x of {}", t.start_ms, t.tuned_ms, t.ratio, t.start.describe())
    });
    Ok(Report::new(file)?.table(table).facts([
        ("settings", file.settings.describe()),
        ("latency", gain.unwrap_or_default()),
        ("device", tuned.map(|t| t.device.clone()).unwrap_or_default()),
        ("job", tuned.map(|t| t.job.clone()).unwrap_or_default()),
    ]))
}
