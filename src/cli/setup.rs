//! `setup`, `fetch`: what is brought onto this machine.

use super::context::Context;
use super::progress::Progress;
use crate::error::{Error, Result};
use crate::fetch;
use crate::report::{Cell, Report, Table};
use crate::runtime;
use crate::units::Bytes;

/// Install ONNX Runtime, or check the one that is there
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tinsmith setup")]
pub(super) struct Setup {}

/// Fetch a known model or data set, or a model from the hub; without a name, list the known ones
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The hub is at HF_ENDPOINT [default: https://huggingface.co]; HF_TOKEN opens private and gated models.\n\nExamples:\n  tinsmith fetch magika\n  tinsmith fetch hf:OWNER/NAME\n  tinsmith fetch 'hf:OWNER/NAME@main/*Q4_K_M.gguf'"
)]
pub(super) struct Fetch {
    /// Known name, or hf:OWNER/NAME[@REVISION][/FILE]
    name: Option<String>,
}

pub(super) fn setup(context: &Context, _: Setup) -> anyhow::Result<()> {
    let probe = runtime::ensure(&context.paths, &Progress::new(context))?;
    let document = serde_json::json!({"schema_version": 1, "runtime": &probe});
    context.print(&Report::new(&document)?.facts([
        ("ONNX Runtime", probe.version.clone()),
        ("library", probe.library.path.display().to_string()),
        ("providers", probe.providers.join(", ")),
    ]))
}

pub(super) fn run(context: &Context, args: Fetch) -> anyhow::Result<()> {
    let Some(name) = args.name else { return context.print(&known()?) };
    let fetched =
        fetch::fetch(&name, &context.paths, &Progress::new(context)).map_err(|e| match e.kind() {
            crate::error::Kind::Stopped => {
                Error::new(crate::error::Kind::Interrupted, "INTERRUPTED", "interrupted")
                    .hint("fetch it again")
            }
            _ => e,
        })?;
    let mut table = Table::new(&[("path", "<file"), ("bytes", "size"), ("sha256", "?<sha256")]);
    for f in &fetched.files {
        let path = fetched.dir.join(&f.path).display().to_string();
        table.push([Cell::text(path), Cell::value(f.bytes, Bytes(f.bytes)), Cell::text(f.sha256.clone())]);
    }
    context.print(
        &Report::new(&serde_json::json!({
            "schema_version": 1, "fetched": &fetched, "directory": fetched.dir,
        }))?
        .facts([
            ("name", fetched.name.clone()),
            ("from", fetched.version.clone()),
            ("licence", fetched.licence.clone()),
            ("directory", fetched.dir.display().to_string()),
        ])
        .table(table),
    )
}

fn known() -> Result<Report> {
    let mut table = Table::new(&[("name", "<name"), ("licence", "<licence"), ("about", "<what")]);
    for k in fetch::known() {
        table.push([Cell::text(k.name), Cell::text(k.licence), Cell::text(k.about)]);
    }
    let names: Vec<&str> = fetch::known().iter().map(|k| k.name).collect();
    Ok(Report::new(&serde_json::json!({"schema_version": 1, "known": names}))?.table(table))
}
