//! `deploy`: a variant as a directory that runs elsewhere.

use super::context::Context;
use super::progress::Progress;
use crate::deploy::{self, Fault, File, SCHEMA_VERSION, Variant};
use crate::error::{Error, Result};
use crate::report::{Cell, Report, Table};
use crate::units::Bytes;
use serde::Serialize;
use std::path::PathBuf;

/// Write a variant as a directory with all that running it takes: model, tokenizer, session settings,
/// model card, examples, digests; or check such a directory
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tinsmith deploy int8.onnx --to bundle\n  tinsmith deploy a1b2 --to bundle --force\n  tinsmith deploy --check bundle"
)]
pub(super) struct Args {
    /// Model, or a job whose last model is meant
    #[arg(required_unless_present = "check")]
    variant: Option<String>,
    /// Directory to write
    #[arg(long, value_name = "DIR", required_unless_present = "check")]
    to: Option<PathBuf>,
    /// Replace a bundle that is there, and deploy what measured slower or worse
    #[arg(long, conflicts_with = "check")]
    force: bool,
    /// Hold the files of a bundle against its digests
    #[arg(long, value_name = "DIR", conflicts_with_all = ["variant", "to"])]
    check: Option<PathBuf>,
}

#[derive(Serialize)]
struct Document<'a> {
    schema_version: u32,
    directory: String,
    files: &'a [File],
    /// What differs from the digests; always empty for a bundle that was just written.
    faults: &'a [Fault],
    /// What speaks against the variant; of a bundle that is checked, nothing is said.
    reasons: &'a [String],
    notes: &'a [String],
}

pub(super) fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    if let Some(directory) = &args.check {
        let (files, faults) = deploy::check(directory)?;
        let document = Document {
            schema_version: SCHEMA_VERSION,
            directory: directory.display().to_string(),
            files: &files,
            faults: &faults,
            reasons: &[],
            notes: &[],
        };
        context.print(&report(&document)?)?;
        return match faults.first() {
            None => Ok(()),
            Some(first) => Err(Error::integrity("BUNDLE-CHECK", "the bundle is not as it was made")
                .file(directory.join(&first.path))
                .found(format!("{} of its files: {} {}", faults.len(), first.path, first.what))
                .hint("deploy the variant again")
                .into()),
        };
    }
    let (Some(variant), Some(to)) = (&args.variant, &args.to) else {
        return Err(Error::usage("DEPLOY", "a variant and --to are needed").into());
    };
    let progress = Progress::new(context);
    let variant = Variant::find(variant, &context.paths)?;
    let bundle = deploy::write(&variant, to, args.force, &context.paths, &progress)?;
    drop(progress);
    context.print(&report(&Document {
        schema_version: SCHEMA_VERSION,
        directory: bundle.directory.display().to_string(),
        files: &bundle.files,
        faults: &[],
        reasons: &bundle.card.gate.reasons,
        notes: &bundle.card.notes,
    })?)
}

fn report(document: &Document<'_>) -> Result<Report> {
    let mut table =
        Table::new(&[("path", "<file"), ("bytes", "size"), ("sha256", "?<sha256"), ("state", "<state")]);
    let state = |path: &str| document.faults.iter().find(|f| f.path == path).map_or("ok", |f| f.what);
    for f in document.files {
        table.push([
            Cell::text(f.path.clone()),
            Cell::value(f.bytes, Bytes(f.bytes)),
            Cell::text(f.sha256.clone()),
            Cell::text(state(&f.path)),
        ]);
    }
    for f in document.faults.iter().filter(|f| f.what == "missing") {
        table.push([Cell::text(f.path.clone()), Cell::empty(), Cell::empty(), Cell::text(f.what)]);
    }
    let mut report = Report::new(document)?.facts([("directory", document.directory.clone())]).table(table);
    for line in
        document.reasons.iter().map(|r| format!("by force: {r}")).chain(document.notes.iter().cloned())
    {
        report = report.line(line);
    }
    Ok(report)
}
