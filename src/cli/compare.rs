//! `compare`: variants side by side with verdicts.

use super::context::Context;
use crate::compare::{self, DEFAULT_MARGIN};
use crate::error::{Error, Result};
use crate::evaluate::measurement::{Measurement, SCHEMA_VERSION};
use crate::plan::Goal;
use std::path::Path;

/// Compare variants: latency, size, memory and quality against a baseline, with tests and verdicts
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  tinsmith compare original.onnx int8.onnx --data digits:test\n  tinsmith compare monday.json tuesday.json --baseline original"
)]
pub(super) struct Args {
    /// Files with measurements (JSON of `bench` or `eval`)
    #[arg(required = true, value_name = "A")]
    subjects: Vec<String>,
    /// Variant that the others are compared with [default: the first]
    #[arg(long, value_name = "VARIANT")]
    baseline: Option<String>,
    /// Relative loss of quality that still counts as none
    #[arg(long, value_name = "PART", default_value_t = DEFAULT_MARGIN)]
    margin: f64,
}

pub(super) fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let mut measurements = Vec::new();
    for subject in &args.subjects {
        measurements.extend(load(Path::new(subject))?);
    }
    let comparison =
        compare::compare(&measurements, args.baseline.as_deref(), &Goal::default(), args.margin)?;
    context.show(&comparison)
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
