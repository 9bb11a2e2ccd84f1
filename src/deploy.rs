//! Bundles: a directory with everything that running one variant takes, and the record of where it comes
//! from. A variant and the history enter; a directory leaves, whole or not at all. Only the recorded
//! inference needs the runtime, in a child process. Knows no face.

mod card;
mod examples;
mod source;
mod sums;

pub use card::{Card, Gate, Session};
pub use source::Variant;
pub use sums::{Fault, File, check};

use crate::analysis::{self, Options, Summary};
use crate::config::Paths;
use crate::error::{Error, Kind, Result};
use crate::evaluate::measure::{self, MeasureOptions, Recorded};
use crate::evaluate::session;
use crate::export;
use crate::jobs::clock;
use crate::monitor::{Level, Monitor};
use crate::runtime::{self, SessionSettings};
use crate::save;
use std::fs;
use std::path::{Path, PathBuf};

/// Version of `card.json`, `session.json` and of what `deploy` writes.
pub const SCHEMA_VERSION: u32 = 1;
/// Part of the largest output by which the examples' outputs may differ from the recorded ones: rounding of
/// other kernels, on another processor, and of 8-bit sums after it.
const TOLERANCE: f64 = 1e-2;
/// Seed of the recorded inputs.
const SEED: u64 = 7;

/// Files that go along beside those of [`export::companions`]: labels, tables, terms.
const BESIDE: &[&str] = &[
    "labels.txt",
    "classes.txt",
    "vocab.txt",
    "merges.txt",
    "config.yaml",
    "config.min.json",
    "content_types_kb.min.json",
    "preprocessor_config.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "LICENSE",
    "NOTICE",
];
/// Largest of them.
const LARGEST: u64 = 64 << 20;

/// A bundle that was written.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Where it is.
    pub directory: PathBuf,
    /// Its files with digests, sorted.
    pub files: Vec<File>,
    /// What is known of the variant.
    pub card: Card,
}

/// Writes the bundle of `variant` as the directory `to`. `force` replaces a bundle that is there, and
/// ships a variant that its records speak against, which the card then says.
///
/// # Errors
/// `Gate` where records say that the variant is slower or worse than what it was made from; `Usage` where
/// `to` exists; `Invalid` for a file that is no model; `Storage` where it cannot be written, with nothing
/// left behind.
pub fn write(
    variant: &Variant,
    to: &Path,
    force: bool,
    paths: &Paths,
    monitor: &dyn Monitor,
) -> Result<Bundle> {
    let to = std::path::absolute(to).map_err(|e| Error::io("find", to, e))?;
    vacant(&to, force)?;
    monitor.phase("look at the model", None);
    let known = source::records(variant, paths)?;
    let gate = known.gate(force);
    if !gate.reasons.is_empty() && !force {
        return Err(Error::gate(
            "DEPLOY-GATE",
            format!("this variant is not deployed: {}", gate.reasons.join("; ")),
        )
        .file(&variant.path)
        .hint("deploy another variant, or repeat with --force, which the model card then says"));
    }
    let ort = variant.path.extension().is_some_and(|e| e == "ort");
    let summary = match ort {
        true => None,
        false => Some(analysis::summarize_in_child(&variant.path, &Options::default(), monitor)?),
    };
    if let Some(summary) = summary.as_ref().filter(|s| s.format != "onnx") {
        return Err(Error::unsupported("DEPLOY-FORMAT", "a bundle holds an ONNX model")
            .file(&variant.path)
            .found(&summary.format)
            .hint("make one with `tinsmith import`"));
    }
    let parent = to.parent().unwrap_or(Path::new("/"));
    let work = tempfile::Builder::new()
        .prefix(save::TEMP_PREFIX)
        .tempdir_in(parent)
        .map_err(|e| stored(parent, e))?;
    let inside = work.path().join("bundle");
    fs::create_dir(&inside).map_err(|e| stored(&inside, e))?;
    monitor.phase("copy", None);
    let mut notes = Vec::new();
    let model = if ort { "model.ort" } else { "model.onnx" };
    copy(&variant.path, &inside.join(model))?;
    if !ort {
        external(&variant.path, &inside)?;
    }
    for directory in &known.directories {
        beside(directory, &inside, model, &mut notes)?;
    }
    let (file, told) = session::applicable(&variant.path)?;
    notes.extend(told.filter(|_| file.is_none()));
    let settings = file.as_ref().map_or_else(SessionSettings::default, |f| f.settings.clone());
    let ran = match runtime::ensure(paths, monitor) {
        Ok(probe) => recorded(&inside, model, &settings, summary.as_ref(), probe.library, monitor),
        // A runtime that cannot be had is no reason to ship nothing.
        Err(e) if !matches!(e.kind(), Kind::Stopped | Kind::Interrupted) => {
            Err(Error::unsupported("DEPLOY-RUNTIME", e.to_string()))
        }
        Err(e) => Err(e),
    };
    let recorded = match ran {
        Ok(recorded) => Some(recorded),
        Err(e) if matches!(e.kind(), Kind::Stopped | Kind::Interrupted | Kind::Storage) => return Err(e),
        Err(e) => {
            let note = format!("no inference is recorded: {e}");
            monitor.log(Level::Warning, &note);
            notes.push(note);
            None
        }
    };
    let described = Session::new(model, settings, recorded.as_ref(), file.and_then(|f| f.tuned), TOLERANCE);
    let card = Card::new(variant, &known, gate, summary.as_ref(), &described, recorded.as_ref(), notes)?;
    write_texts(&inside, &described, &card)?;
    let files = sums::write(&inside)?;
    monitor.check()?;
    publish(&inside, &to)?;
    Ok(Bundle { directory: to, files, card })
}

fn write_texts(inside: &Path, described: &Session, card: &Card) -> Result<()> {
    save::json(&inside.join("session.json"), described)?;
    save::json(&inside.join("card.json"), card)?;
    save::bytes(&inside.join("MODEL_CARD.md"), card.markdown().as_bytes())?;
    for (name, text) in examples::of(described) {
        save::bytes(&inside.join(name), text.as_bytes())?;
    }
    Ok(())
}

/// A directory that cannot be made or written is a matter of storage, a missing one too.
fn stored(path: &Path, e: std::io::Error) -> Error {
    Error::storage("IO", format!("cannot write the bundle: {e}"))
        .file(path)
        .hint("name a place below a directory that exists, can be written and has room")
        .source(e)
}

/// Refuses what is there and is not to be replaced. Only a bundle ever is.
fn vacant(to: &Path, force: bool) -> Result<()> {
    let Ok(meta) = fs::symlink_metadata(to) else { return Ok(()) };
    let refuse = |what: &str, hint: &str| {
        Err(Error::usage("DEPLOY-EXISTS", what.to_string()).file(to).field("--to").hint(hint))
    };
    let empty = meta.is_dir() && fs::read_dir(to).is_ok_and(|mut d| d.next().is_none());
    if empty {
        return Ok(());
    }
    let bundle = meta.is_dir() && to.join("card.json").is_file() && to.join(sums::FILE).is_file();
    match (bundle, force) {
        (false, _) => refuse("this exists and is no bundle", "name another directory"),
        (true, false) => {
            refuse("there is a bundle already", "name another directory, or repeat with --force")
        }
        (true, true) => Ok(()),
    }
}

/// Moves the finished directory to its place. What was there before is moved aside first and comes back
/// where that fails.
fn publish(inside: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().unwrap_or(Path::new("/"));
    let aside = inside.with_file_name("old");
    let replaced = fs::symlink_metadata(to).is_ok();
    if replaced {
        fs::rename(to, &aside).map_err(|e| stored(to, e))?;
    }
    if let Err(e) = fs::rename(inside, to) {
        if replaced {
            let _ = fs::rename(&aside, to);
        }
        return Err(stored(to, e));
    }
    save::sync_directory(parent)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    save::atomic(to, |file| {
        let mut source = fs::File::open(from).map_err(|e| Error::io("read", from, e))?;
        std::io::copy(&mut source, file).map_err(|e| Error::io("write", to, e)).map(drop)
    })
}

/// The external data of an ONNX file, under the names by which the file knows them.
fn external(model: &Path, inside: &Path) -> Result<()> {
    let facts = crate::formats::load(model)?.facts;
    let base = model.parent().unwrap_or(Path::new("."));
    let base = base.canonicalize().unwrap_or_else(|_| base.to_path_buf());
    for (path, _) in &facts.external {
        let full = path.canonicalize().map_err(|e| Error::io("read the model's data", path, e))?;
        let name = full.strip_prefix(&base).map_err(|_| {
            Error::unsupported("DEPLOY-EXTERNAL", "the model's data lie outside of its directory")
                .file(path)
                .hint("save the model anew with `tinsmith optimize MODEL -o F.onnx`")
        })?;
        let target = inside.join(name);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(|e| stored(parent, e))?;
        }
        copy(&full, &target)?;
    }
    Ok(())
}

/// Tokenizer, labels and terms that lie in `directory`; the first of a name stays.
fn beside(directory: &Path, inside: &Path, model: &str, notes: &mut Vec<String>) -> Result<()> {
    export::companions(&directory.join(model), "onnx", &inside.join(model), notes)?;
    for name in BESIDE {
        let (from, to) = (directory.join(name), inside.join(name));
        let fits = fs::metadata(&from).is_ok_and(|m| m.is_file() && m.len() <= LARGEST);
        if !fits || to.exists() {
            continue;
        }
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(|e| stored(parent, e))?;
        }
        copy(&from, &to)?;
    }
    Ok(())
}

/// One inference of the copied model with the settings of the bundle.
fn recorded(
    inside: &Path,
    model: &str,
    settings: &SessionSettings,
    summary: Option<&Summary>,
    library: runtime::Library,
    monitor: &dyn Monitor,
) -> Result<Recorded> {
    monitor.phase("record an inference", None);
    let summaries: Vec<Summary> = summary.into_iter().cloned().collect();
    let options = MeasureOptions {
        shapes: analysis::input_shapes(&summaries).0,
        dimensions: analysis::dimensions(&summaries),
        seed: SEED,
        ..MeasureOptions::new(library)
    };
    measure::record(&inside.join(model), settings, &options, &inside.join("sample"), monitor)
}

/// Now, for the card.
fn now_ms() -> u64 {
    clock::wall_ms()
}
