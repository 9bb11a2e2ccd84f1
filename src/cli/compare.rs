//! `compare`: variants side by side with verdicts.

use super::context::Context;
use super::goal::GoalArgs;
use super::{measure, run as runs};
use crate::compare::{self, DEFAULT_MARGIN};
use crate::error::{Error, Result};
use crate::evaluate::measurement::{Measurement, SCHEMA_VERSION};
use crate::jobs;
use std::path::Path;

/// Compare variants: latency, size, memory and quality against a baseline, with tests and verdicts
///
/// Models are measured together, interleaved; files of measurements and jobs bring figures taken before.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  tinsmith compare original.onnx int8.onnx --data digits:test\n  tinsmith compare monday.json tuesday.json --baseline original"
)]
pub(super) struct Args {
    /// Models, files with measurements (JSON of bench, eval or compare), or job ids
    #[arg(required = true, value_name = "A")]
    subjects: Vec<String>,
    /// Variant that the others are compared with [default: the first]
    #[arg(long, value_name = "VARIANT")]
    baseline: Option<String>,
    /// Labelled data to judge the quality of models with
    #[arg(long, value_name = "DATA")]
    data: Option<String>,
    /// Relative loss of quality that still counts as none [default: max_quality_drop, else 0.02]
    #[arg(long, value_name = "PART")]
    margin: Option<f64>,
    #[command(flatten)]
    sampling: measure::SamplingArgs,
    #[command(flatten)]
    goal: GoalArgs,
}

pub(super) fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    context.threads()?;
    let goal = args.goal.parse(None)?;
    let margin = args.margin.or(goal.max_quality_drop).unwrap_or(DEFAULT_MARGIN);
    let all = figures(context, &args.subjects, args.data, &args.sampling)?;
    let comparison = compare::compare(&all, args.baseline.as_deref(), &goal, margin)?;
    context.show(&comparison)?;
    let gated = goal != Default::default();
    match comparison.rows.iter().enumerate().find(|(i, r)| *i != comparison.baseline && !r.missed.is_empty())
    {
        Some((_, row)) if gated => Err(runs::gate(row).into()),
        _ => Ok(()),
    }
}

/// The figures of all subjects in their order; models are measured together.
pub(super) fn figures(
    context: &Context,
    subjects: &[String],
    data: Option<String>,
    sampling: &measure::SamplingArgs,
) -> anyhow::Result<Vec<Measurement>> {
    let sources = subjects.iter().map(|s| source(context, s)).collect::<Result<Vec<_>>>()?;
    let models: Vec<String> = sources
        .iter()
        .filter_map(|s| match s {
            Source::Model(path) => Some(path.clone()),
            Source::Figures(_) => None,
        })
        .collect();
    let mut measured = match models.is_empty() {
        true => Vec::new(),
        false => measure::measure(context, &models, data, sampling)?,
    }
    .into_iter();
    let mut all = Vec::new();
    for source in sources {
        match source {
            Source::Figures(figures) => all.extend(figures),
            Source::Model(_) => all.extend(measured.next()),
        }
    }
    Ok(all)
}

enum Source {
    Model(String),
    Figures(Vec<Measurement>),
}

/// What a subject is: figures in a JSON file, figures of a job, or a model.
fn source(context: &Context, subject: &str) -> Result<Source> {
    let path = Path::new(subject);
    let json = path.extension().is_some_and(|e| e == "json" || e == "jsonl");
    if json {
        return load(path).map(Source::Figures);
    }
    if !path.exists()
        && let Ok(job) = jobs::open(&context.paths, subject)
    {
        let figures = job.state().measurements;
        if figures.is_empty() {
            return Err(Error::usage("JOB-FIGURES", "the job measured nothing")
                .found(subject)
                .hint("run it with --measure, or compare its artefacts"));
        }
        return Ok(Source::Figures(figures));
    }
    std::fs::metadata(path).map_err(|e| Error::io("read the model", path, e))?;
    Ok(Source::Model(subject.to_string()))
}

/// Largest file of measurements that is read.
const LARGEST: u64 = 256 << 20;

/// Reads measurements: one, a list, the document of `bench`, a comparison, or one a line.
fn load(path: &Path) -> Result<Vec<Measurement>> {
    let size = std::fs::metadata(path).map_err(|e| Error::io("read measurements", path, e))?.len();
    if size > LARGEST {
        return Err(Error::limit_exceeded("MEASUREMENTS-SIZE", "this file is too large for measurements")
            .file(path)
            .found(size)
            .limit(LARGEST));
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read measurements", path, e))?;
    parse(&text).map_err(|e| e.file(path))
}

fn parse(text: &str) -> Result<Vec<Measurement>> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Shape {
        Document { measurements: Vec<Measurement> },
        Comparison { rows: Vec<Row> },
        List(Vec<Measurement>),
        One(Box<Measurement>),
    }
    #[derive(serde::Deserialize)]
    struct Row {
        measurement: Measurement,
    }
    let mut out = Vec::new();
    for shape in serde_json::Deserializer::from_str(text).into_iter::<Shape>() {
        match shape {
            Ok(Shape::Document { measurements }) => out.extend(measurements),
            Ok(Shape::Comparison { rows }) => out.extend(rows.into_iter().map(|r| r.measurement)),
            Ok(Shape::List(list)) => out.extend(list),
            Ok(Shape::One(one)) => out.push(*one),
            Err(e) => {
                return Err(Error::invalid("MEASUREMENTS", format!("no measurements here: {e}"))
                    .hint("`tinsmith bench MODEL --format json` writes such a file"));
            }
        }
    }
    for m in &out {
        if m.schema_version != SCHEMA_VERSION {
            return Err(Error::unsupported("MEASUREMENTS-VERSION", "measurements of another version")
                .field("schema_version")
                .found(m.schema_version)
                .limit(SCHEMA_VERSION));
        }
    }
    Ok(out)
}
