//! `import`: a model file becomes ONNX. An ONNX file stays as it is: what is read is written back.

use super::context::Context;
use crate::error::Error;
use crate::formats;
use crate::report::Report;
use crate::units::Bytes;
use std::path::PathBuf;

/// Write a model as ONNX; an ONNX model keeps its outputs bit for bit
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tinsmith import model.onnx -o copy.onnx")]
pub(super) struct Args {
    /// Model
    model: PathBuf,
    /// ONNX file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

pub(super) fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    if args.model.canonicalize().ok().is_some_and(|m| args.output.canonicalize().is_ok_and(|o| o == m)) {
        return Err(Error::usage("OUTPUT", "the output would replace the model").file(&args.output).into());
    }
    let opened = formats::load(&args.model)?;
    for warning in &opened.facts.warnings {
        context.note(&format!("warning: {warning}"));
    }
    let saved = formats::save(&opened.graph, &args.output)?;
    let data = saved.data.as_ref().map(|(path, _)| path.display().to_string()).unwrap_or_default();
    let document = serde_json::json!({
        "schema_version": 1, "path": saved.path, "file_bytes": saved.total_bytes(),
        "data": saved.data.as_ref().map(|(path, _)| path), "warnings": opened.facts.warnings,
    });
    context.print(&Report::new(&document)?.facts([
        ("file", saved.path.display().to_string()),
        ("data", data),
        ("size", Bytes(saved.total_bytes()).to_string()),
    ]))
}
