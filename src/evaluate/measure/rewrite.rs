//! A model as ONNX Runtime rewrites it, written by the library itself, in a child process.

use super::subject::{Answer, Question};
use crate::child::{Child, Limits};
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::runtime::{Library, Optimization, SessionOptions};
use crate::save;
use std::path::Path;
use std::time::Duration;

/// Writes `model`, rewritten at `level`, to `output`: in `.ort` format where its name ends so, else in ONNX,
/// with weights in the file `data` beside it where one is named.
///
/// # Errors
/// Those of loading the model; `Storage` where the library wrote nothing.
pub fn rewrite(
    library: &Library,
    model: &Path,
    level: Optimization,
    output: &Path,
    data: Option<&str>,
    monitor: &dyn Monitor,
) -> Result<()> {
    let parent = output.parent().unwrap_or(Path::new("."));
    // The library writes in place; only a whole file gets its name.
    let aside = tempfile::Builder::new()
        .prefix(save::TEMP_PREFIX)
        .tempdir_in(parent)
        .map_err(|e| Error::io("create a directory", parent, e))?;
    let name = output.file_name().unwrap_or_default();
    let written = aside.path().join(name);
    let mut session = SessionOptions {
        optimization: level,
        optimized_model: Some(written.clone()),
        ..SessionOptions::default()
    };
    if let Some(data) = data {
        let key = "session.optimized_model_external_initializers_file_name";
        session.config.insert(key.into(), data.into());
    }
    if output.extension().is_some_and(|e| e == "ort") {
        session.config.insert("session.save_model_format".into(), "ORT".into());
    }
    let mut child = Child::start("evaluate.measure", &Limits::within(Duration::from_secs(3600)))?;
    let question = Question::Rewrite { library: library.clone(), model: model.to_path_buf(), session };
    let _: Answer = child.ask(&question, monitor, &mut |_| Ok(()))?;
    child.finish();
    let length = std::fs::metadata(&written).map_or(0, |m| m.len());
    if length == 0 {
        return Err(Error::storage("SERIALIZE-EMPTY", "ONNX Runtime wrote no model")
            .file(output)
            .hint("check the disk and try again"));
    }
    let moved = |from: &Path, to: &Path| std::fs::rename(from, to).map_err(|e| Error::io("save", to, e));
    if let Some(data) = data.map(|d| aside.path().join(d)).filter(|d| d.exists()) {
        moved(&data, &parent.join(data.file_name().unwrap_or_default()))?;
    }
    moved(&written, output)?;
    save::sync_directory(parent)
}
