//! `import`: a model of any format becomes an ONNX file for a runtime. An ONNX file stays as it is unless
//! a target is named: what is read is written back.

use super::context::Context;
use super::progress::Progress;
use crate::error::{Error, Kind, Result};
use crate::export::{self, Check, Exported, Plan, Storage, Verdict};
use crate::passes::lower::Target;
use crate::report::Report;
use crate::runtime;
use crate::units::Bytes;
use std::path::{Path, PathBuf};

/// Difference from the executor that an exported file may have, relative to the largest output.
const TOLERANCE: f64 = 1e-3;

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum TargetName {
    /// ONNX Runtime 1.17 or later, with its own operators; checkpoints default to it
    Ort,
    /// Any runtime: plain operators of operator set 17
    Standard,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Dtype {
    /// Single precision
    F32,
    /// Weights in half precision, computed in single
    F16,
}

/// Write a model as ONNX for a runtime; an ONNX model without a target keeps its outputs bit for bit
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tinsmith import model.gguf -o out/model.onnx\n  tinsmith import checkpoint/ -o out/model.onnx --target standard --dtype f16\n  tinsmith import model.onnx -o copy.onnx"
)]
pub(super) struct Args {
    /// Model file (ONNX, safetensors, GGUF), or directory of a checkpoint
    model: PathBuf,
    /// ONNX file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Runtime that the file is for
    #[arg(long, value_enum, value_name = "TARGET")]
    target: Option<TargetName>,
    /// How weights are stored [default: f32]
    #[arg(long, value_enum, value_name = "TYPE")]
    dtype: Option<Dtype>,
    /// Most positions of a decoder [default: what it was trained for]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Do not run the file against the executor
    #[arg(long)]
    no_check: bool,
}

pub(super) fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    if args.model.canonicalize().ok().is_some_and(|m| args.output.canonicalize().is_ok_and(|o| o == m)) {
        return Err(Error::usage("OUTPUT", "the output would replace the model").file(&args.output).into());
    }
    let plan = Plan {
        model: args.model,
        target: args.target.map(|t| match t {
            TargetName::Ort => Target::Ort,
            TargetName::Standard => Target::Standard,
        }),
        storage: match args.dtype {
            Some(Dtype::F16) => Storage::F16,
            _ => Storage::F32,
        },
        context: args.context,
    };
    let exported = {
        let progress = Progress::new(context);
        export::export(&plan, &args.output, &progress)?
    };
    let changed = exported.target.is_some() || plan.storage == Storage::F16;
    let checked = match changed && !args.no_check {
        true => Some(check(context, &plan, &exported.path)),
        false => None,
    };
    show(context, &exported, checked.as_ref())?;
    match checked {
        Some(Ok(verdict)) if !verdict.passed => Err(failed(&exported.path, &verdict).into()),
        Some(Err(e)) if e.kind() != Kind::Unsupported => Err(e.into()),
        _ => Ok(()),
    }
}

/// Runs the file in ONNX Runtime, in a child. `Unsupported` where there is no runtime to run it in.
fn check(context: &Context, plan: &Plan, exported: &Path) -> Result<Verdict> {
    let Some(library) = runtime::locate(&context.paths)? else {
        return Err(Error::unsupported("ORT-NONE", "there is no ONNX Runtime to check the file with")
            .hint("run `tinsmith setup`, then import again"));
    };
    let library = runtime::probe(&library)?.library;
    let check = Check {
        plan: plan.clone(),
        exported: exported.to_path_buf(),
        library,
        tolerance: TOLERANCE,
        seed: context.seed,
    };
    export::verify(&check, &Progress::new(context))
}

fn failed(path: &Path, verdict: &Verdict) -> Error {
    let e = Error::integrity("PARITY", "the file is written, but gives other outputs than the model")
        .file(path)
        .found(format!("{:.2e} of the largest output", verdict.max_rel))
        .limit(format!("{:.0e}", verdict.tolerance));
    match &verdict.first {
        Some(first) => e.node(&first.node).field(&first.operator).hint(format!(
            "results part at this node, between the two sides of \"{}\"; try the other target",
            first.between
        )),
        None => e.hint("no single node differs by that much; try the other target, or f32"),
    }
}

fn show(context: &Context, exported: &Exported, checked: Option<&Result<Verdict>>) -> anyhow::Result<()> {
    let parity = match checked {
        None => None,
        Some(Ok(v)) => Some(format!(
            "{} on ONNX Runtime {}: max abs difference {:.2e}, {:.2e} of the largest output",
            if v.passed { "same" } else { "DIFFERENT" },
            v.runtime,
            v.max_abs,
            v.max_rel
        )),
        Some(Err(e)) => Some(format!("not checked: {e}")),
    };
    let first = checked.and_then(|c| c.as_ref().ok()).and_then(|v| v.first.as_ref());
    let document = serde_json::json!({
        "schema_version": 1, "path": exported.path, "file_bytes": exported.bytes, "data": exported.data,
        "format": exported.format, "target": exported.target, "opset": exported.opset,
        "operators": exported.operators, "beside": exported.beside, "warnings": exported.warnings,
        "lowered": exported.lowered, "parity": checked.and_then(|c| c.as_ref().ok()),
    });
    let names = |paths: &[PathBuf]| -> String {
        let name = |p: &PathBuf| p.file_name().map(|n| n.to_string_lossy().into_owned());
        paths.iter().filter_map(name).collect::<Vec<_>>().join(", ")
    };
    let own: Vec<String> =
        exported.operators.iter().filter(|(n, _)| n.contains(':')).map(|(n, c)| format!("{c} {n}")).collect();
    let mut report = Report::new(&document)?.facts([
        ("file", exported.path.display().to_string()),
        ("data", exported.data.as_ref().map(|p| p.display().to_string()).unwrap_or_default()),
        ("size", Bytes(exported.bytes).to_string()),
        ("target", exported.target.map_or(String::new(), |t| t.name().to_string())),
        ("operator set", exported.opset.to_string()),
        ("runtime's own", own.join(", ")),
        ("beside it", names(&exported.beside)),
        ("parity", parity.unwrap_or_default()),
        (
            "first difference",
            first.map_or(String::new(), |f| {
                format!("{} ({}), value {}, {}", f.node, f.operator, f.value, f.between)
            }),
        ),
    ]);
    let skipped = exported.lowered.iter().flat_map(|r| &r.skipped);
    for s in skipped.take(10) {
        report = report.line(format!("left: {}: {}", s.target, s.reason));
    }
    context.print(&report)
}
