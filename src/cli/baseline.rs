//! `baseline`: the regression gate. Figures are kept under a name; later ones are tested against them.

use super::context::Context;
use super::measure::SamplingArgs;
use super::{compare as sources, goal};
use crate::compare::{self, Comparison, DEFAULT_MARGIN, Verdict};
use crate::error::{Error, Result};
use crate::evaluate::measurement::Measurement;
use crate::history::baselines;
use crate::plan::Goal;
use crate::report::{Cell, Report, Table};

/// Keep figures under a name and test later ones against them
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Measure models (or take figures of a file or job) and keep them
    #[command(after_help = "Example:\n  tinsmith baseline set nightly model.onnx --data digits:test")]
    Set {
        /// Name
        name: String,
        /// Models, files with measurements, or job ids
        #[arg(required = true)]
        subjects: Vec<String>,
        #[command(flatten)]
        sampling: SamplingArgs,
        #[command(flatten)]
        data: goal::DataArgs,
    },
    /// Measure again and fail (exit code 1) where a variant got slower, larger or worse
    #[command(
        after_help = "Example:\n  tinsmith baseline check nightly model.onnx --data digits:test --tolerance 0.05"
    )]
    Check {
        /// Name
        name: String,
        /// Models, files with measurements, or job ids
        #[arg(required = true)]
        subjects: Vec<String>,
        /// Slowdown and growth (relative) that still pass; runs on different days differ by some percent
        #[arg(long, value_name = "PART", default_value_t = 0.05)]
        tolerance: f64,
        #[command(flatten)]
        sampling: SamplingArgs,
        #[command(flatten)]
        data: goal::DataArgs,
    },
    /// Names that are kept
    #[command(after_help = "Example:\n  tinsmith baseline list")]
    List,
}

pub(super) fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    match args.command {
        What::Set { name, subjects, sampling, data } => {
            let figures = sources::figures(context, &subjects, data.data, &sampling)?;
            let baseline = baselines::set(&context.paths, &name, figures)?;
            context.note(&format!("kept {} measurements as {name}", baseline.measurements.len()));
            Ok(())
        }
        What::Check { name, subjects, tolerance, sampling, data } => {
            if !(0.0..10.0).contains(&tolerance) {
                return Err(Error::usage("TOLERANCE", "the tolerance is a relative change")
                    .found(tolerance)
                    .limit("0 to 10")
                    .into());
            }
            let kept = baselines::load(&context.paths, &name)?;
            let figures = sources::figures(context, &subjects, data.data, &sampling)?;
            check(context, &name, &kept.measurements, &figures, tolerance)
        }
        What::List => context.print(&list(context)?),
    }
}

fn check(
    context: &Context,
    name: &str,
    kept: &[Measurement],
    figures: &[Measurement],
    tolerance: f64,
) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    for new in figures {
        let old = counterpart(kept, new, figures.len()).ok_or_else(|| {
            let names: Vec<_> = kept.iter().map(|m| m.variant.as_str()).collect();
            Error::usage("BASELINE-VARIANT", "the baseline holds no variant of this name")
                .found(&new.variant)
                .limit(names.join(", "))
        })?;
        let mut old = old.clone();
        old.variant = format!("{name}: {}", old.variant);
        let comparison = compare::compare(&[old, new.clone()], None, &Goal::default(), DEFAULT_MARGIN)?;
        failures.extend(regressions(&comparison, tolerance));
        context.show(&comparison)?;
    }
    if failures.is_empty() {
        context.note("no regression beyond the tolerance is shown");
        return Ok(());
    }
    Err(Error::gate("REGRESSION", failures.join("; ")).into())
}

fn counterpart<'a>(kept: &'a [Measurement], new: &Measurement, count: usize) -> Option<&'a Measurement> {
    kept.iter()
        .find(|m| m.variant == new.variant && m.conditions.threads == new.conditions.threads)
        .or_else(|| kept.iter().find(|m| m.variant == new.variant))
        .or_else(|| kept.first().filter(|_| kept.len() == 1 && count == 1))
}

/// What got worse by more than the tolerance, shown by an interval where one exists.
fn regressions(comparison: &Comparison, tolerance: f64) -> Vec<String> {
    let Some(row) = comparison.rows.last() else { return Vec::new() };
    let name = &row.measurement.variant;
    let mut out = Vec::new();
    if let Some(latency) = &row.latency
        && latency.verdict == Verdict::Worse
        && latency.ci95.as_ref().is_some_and(|i| i.low > tolerance)
    {
        out.push(format!("{name} is {:.1} % slower", 100.0 * latency.delta));
    }
    if row.quality.as_ref().is_some_and(|q| q.verdict == Verdict::Worse) {
        out.push(format!("{name} lost quality"));
    }
    if let Some(size) = row.size.as_ref().filter(|s| s.delta > tolerance) {
        out.push(format!("{name} is {:.1} % larger", 100.0 * size.delta));
    }
    out
}

fn list(context: &Context) -> Result<Report> {
    let mut table =
        Table::new(&[("name", "<baseline"), ("measurements", "measurements"), ("variants", "<variants")]);
    let names = baselines::list(&context.paths);
    for name in &names {
        let kept = baselines::load(&context.paths, name)?;
        let variants: Vec<_> = kept.measurements.iter().map(|m| m.variant.as_str()).collect();
        table.push([
            Cell::text(name.clone()),
            Cell::value(kept.measurements.len(), kept.measurements.len()),
            Cell::text(variants.join(", ")),
        ]);
    }
    Ok(Report::new(&serde_json::json!({"schema_version": 1, "baselines": names}))?.table(table))
}
