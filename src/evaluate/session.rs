//! Session settings beside a model, `MODEL.session.json`: written by tuning, read by whatever measures or
//! deploys that model. They belong to one content of the model file; for another one they do not count.

use super::measurement::Interval;
use crate::error::{Error, Result};
use crate::runtime::SessionSettings;
use crate::save;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Version of [`SessionFile`].
pub const SCHEMA_VERSION: u32 = 1;
/// Largest file that is read.
const LARGEST: u64 = 4 << 20;

/// What `MODEL.session.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionFile {
    /// Version of this format.
    pub schema_version: u32,
    /// SHA-256 of the model file that the settings are for.
    pub model_sha256: String,
    /// The settings.
    pub settings: SessionSettings,
    /// How they were found; none where a person wrote them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuned: Option<Tuned>,
}

/// How settings were found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    /// Job that measured them.
    pub job: String,
    /// Machine.
    pub host: String,
    /// CPU model.
    pub cpu: String,
    /// Instruction set.
    pub isa: String,
    /// `onnxruntime 1.32.0`.
    pub runtime: String,
    /// Device whose limits the search kept to.
    pub device: String,
    /// Inputs, `name:f32[1,8,8]`.
    pub inputs: Vec<String>,
    /// Where the search began.
    pub start: SessionSettings,
    /// Median latency at the start, of the last comparison.
    pub start_ms: f64,
    /// Median latency with the settings, of the last comparison.
    pub tuned_ms: f64,
    /// Their ratio, below 1 where tuning gained.
    pub ratio: f64,
    /// 95 % interval of the ratio.
    pub ci95: Interval,
    /// Every comparison, in order.
    pub trials: Vec<Trial>,
}

/// One setting tried against the best one so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// What was varied, such as `threads`.
    pub factor: String,
    /// The settings tried, in words.
    pub tried: String,
    /// Ratio of median latencies to the best so far; none where it could not be measured.
    pub ratio: Option<f64>,
    /// Whether the search went on from it.
    pub taken: bool,
    /// Why it could not be measured, or was not taken.
    pub reason: Option<String>,
    /// 95 % interval of the ratio.
    pub ci95: Option<Interval>,
}

/// Where the settings of `model` are.
pub fn path_beside(model: &Path) -> PathBuf {
    let mut name = model.file_name().unwrap_or_default().to_os_string();
    name.push(".session.json");
    model.with_file_name(name)
}

impl SessionFile {
    /// The settings beside `model`, if there are any.
    ///
    /// # Errors
    /// `Invalid` where the file is damaged, `Unsupported` for another version, those of
    /// [`SessionSettings::check`].
    pub fn beside(model: &Path) -> Result<Option<SessionFile>> {
        let path = path_beside(model);
        match std::fs::metadata(&path) {
            Err(_) => Ok(None),
            Ok(m) if m.is_file() && m.len() <= LARGEST => SessionFile::load(&path).map(Some),
            Ok(_) => Err(damaged(&path, "it is no file of at most 4 MiB")),
        }
    }

    fn load(path: &Path) -> Result<SessionFile> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read session settings", path, e))?;
        let document: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| damaged(path, &e.to_string()))?;
        let version = &document["schema_version"];
        if version.as_u64() != Some(u64::from(SCHEMA_VERSION)) {
            return Err(Error::unsupported("SESSION-VERSION", "session settings of another version")
                .file(path)
                .field("schema_version")
                .found(version)
                .limit(SCHEMA_VERSION));
        }
        let file: SessionFile =
            serde_json::from_value(document).map_err(|e| damaged(path, &e.to_string()))?;
        file.settings.check().map_err(|e| e.file(path))?;
        Ok(file)
    }

    /// Writes the settings beside `model`.
    pub fn save(&self, model: &Path) -> Result<PathBuf> {
        let path = path_beside(model);
        save::json(&path, self)?;
        Ok(path)
    }
}

fn damaged(path: &Path, why: &str) -> Error {
    Error::invalid("SESSION-FILE", format!("these session settings cannot be read: {why}"))
        .file(path)
        .hint("delete the file, or tune the model again with `tinsmith optimize MODEL --tune`")
}

/// The settings beside `model` that count for the file as it is now, and what must be said about them.
///
/// # Errors
/// Those of [`SessionFile::beside`] and of reading the model.
pub fn applicable(model: &Path) -> Result<(Option<SessionFile>, Option<String>)> {
    let Some(file) = SessionFile::beside(model)? else { return Ok((None, None)) };
    let name = path_beside(model).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (sha256, _) = save::digest(model)?;
    if sha256 != file.model_sha256 {
        let told = format!("session settings in {name} are for another content of the model: not used");
        return Ok((None, Some(told)));
    }
    let told = format!("session settings of {name}: {}", file.settings.describe());
    Ok((Some(file), Some(told)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_count_for_one_content_of_the_model() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("m.onnx");
        std::fs::write(&model, b"abc").unwrap();
        assert_eq!(applicable(&model).unwrap(), (None, None));
        let file = SessionFile {
            schema_version: SCHEMA_VERSION,
            model_sha256: save::sha256(b"abc"),
            settings: SessionSettings { threads: 2, ..SessionSettings::default() },
            tuned: None,
        };
        let path = file.save(&model).unwrap();
        assert_eq!(path.file_name().unwrap(), "m.onnx.session.json");
        let (found, told) = applicable(&model).unwrap();
        assert_eq!(found, Some(file));
        assert!(told.unwrap().contains("2 threads"));
        std::fs::write(&model, b"abd").unwrap();
        let (found, told) = applicable(&model).unwrap();
        assert!(found.is_none() && told.unwrap().contains("another content"));
        for (text, code) in [("{", 3), (r#"{"schema_version": 9}"#, 4), (r#"{"schema_version": 1}"#, 3)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(applicable(&model).unwrap_err().kind().exit_code(), code, "{text}");
        }
    }
}
