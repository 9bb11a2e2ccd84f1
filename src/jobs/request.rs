//! What a job is asked to do. Runs are kept as `recipe.toml`, everything else as `request.json`.

use super::store::{JobId, SCHEMA_VERSION, read_json};
use crate::error::{Error, Result};
use crate::plan::{Recipe, Step};
use crate::runtime::Optimization;
use crate::save;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Work for a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Request {
    /// Run a recipe on its model.
    Run {
        /// The recipe.
        recipe: Recipe,
    },
    /// Measure model files against each other, interleaved; the first is the reference.
    Measure {
        /// Name for people.
        name: String,
        /// The variants.
        models: Vec<Subject>,
        /// Threads within an operator; several are measured one after the other. Empty: a sensible one.
        #[serde(default)]
        threads: Vec<usize>,
        /// Data spec to judge quality with; none measures speed and memory alone.
        #[serde(default)]
        data: Option<String>,
        /// How long, and on what input.
        #[serde(default)]
        sampling: Sampling,
        /// Jobs whose end, whatever it is, must come first: they make the models.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        after: Vec<JobId>,
    },
    /// Choose session settings for a model by measuring, and write them beside it.
    Tune {
        /// The model.
        model: Subject,
        /// Thread counts to try; empty for all that the machine and the device allow.
        #[serde(default)]
        threads: Vec<usize>,
        /// Device whose limits hold; this machine where none is named.
        #[serde(default)]
        device: Option<String>,
        /// How long, and on what input.
        #[serde(default)]
        sampling: Sampling,
    },
    /// Write a model as ONNX Runtime rewrites it.
    Serialize {
        /// The model; its name is that of the result.
        model: Subject,
        /// How far it is rewritten.
        level: Optimization,
        /// In `.ort` format instead of ONNX.
        #[serde(default)]
        ort: bool,
        /// Data to hold the result against the model on; random inputs where none are named.
        #[serde(default)]
        data: Option<String>,
    },
}

/// A model file to measure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// Variant name.
    pub name: String,
    /// Path.
    pub path: String,
    /// Whether it is meant to compute the same as the first one; it then has no speed if it does not.
    #[serde(default)]
    pub exact: bool,
}

impl Subject {
    /// A model that may differ from the first one.
    pub fn new(name: impl Into<String>, path: impl Into<String>) -> Subject {
        Subject { name: name.into(), path: path.into(), exact: false }
    }
}

/// How long to measure, and on what input. What is not stated is chosen.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// Seconds of sampling for each variant over all rounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Rounds through all variants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounds: Option<usize>,
    /// Sizes of open dimensions of the inputs, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub bind: BTreeMap<String, i64>,
    /// Execution provider, or `auto`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
}

/// What the list of jobs shows of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct About {
    /// Name for people.
    pub name: String,
    /// What sort of job.
    pub what: String,
    /// Input model.
    pub model: String,
    /// Steps in order.
    pub steps: Vec<String>,
}

const RECIPE: &str = "recipe.toml";
const REQUEST: &str = "request.json";

#[derive(Serialize, Deserialize)]
struct Stored {
    schema_version: u32,
    #[serde(flatten)]
    request: Request,
}

/// The steps as they run; as written where their settings are wrong, which running tells.
fn steps(recipe: &Recipe) -> Vec<Step> {
    recipe.unrolled().unwrap_or_else(|_| recipe.steps.clone())
}

impl Request {
    /// For lists.
    pub fn about(&self) -> About {
        match self {
            Request::Run { recipe } => About {
                name: recipe.name.clone(),
                what: "run".into(),
                model: recipe.model.clone(),
                steps: steps(recipe).iter().map(|s| s.describe()).collect(),
            },
            Request::Measure { name, models, data, .. } => About {
                name: name.clone(),
                what: if data.is_some() { "eval" } else { "bench" }.into(),
                model: models.first().map(|m| m.path.clone()).unwrap_or_default(),
                steps: models.iter().map(|m| format!("measure {}", m.name)).collect(),
            },
            Request::Tune { model, .. } => About {
                name: format!("tune {}", model.name),
                what: "tune".into(),
                model: model.path.clone(),
                steps: vec![format!("tune {}", model.name)],
            },
            Request::Serialize { model, level, .. } => About {
                name: model.name.clone(),
                what: "serialize".into(),
                model: model.path.clone(),
                steps: vec![format!("serialize {}", level.word())],
            },
        }
    }

    /// Jobs that must have ended before this one starts.
    pub fn after(&self) -> &[JobId] {
        match self {
            Request::Measure { after, .. } => after,
            _ => &[],
        }
    }

    /// Path of the model that a run of `recipe` leaves, relative to the job directory.
    pub fn artifact_of(recipe: &Recipe) -> String {
        let kept = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
        let name: String = recipe.name.chars().take(80).map(|c| if kept(c) { c } else { '-' }).collect();
        let name = name.trim_start_matches('.');
        format!("artifacts/{}.onnx", if name.is_empty() { "variant" } else { name })
    }

    /// Writes the request into a job directory.
    pub(super) fn store(&self, dir: &Path) -> Result<()> {
        match self {
            Request::Run { recipe } => save::bytes(&dir.join(RECIPE), recipe.to_toml()?.as_bytes()),
            other => save::json(
                &dir.join(REQUEST),
                &Stored { schema_version: SCHEMA_VERSION, request: other.clone() },
            ),
        }
    }

    /// Reads the request of a job directory.
    pub(super) fn load(dir: &Path) -> Result<Request> {
        let recipe = dir.join(RECIPE);
        if recipe.exists() {
            return Ok(Request::Run { recipe: Recipe::load(&recipe)? });
        }
        let path = dir.join(REQUEST);
        let stored: Stored = read_json(&path)?;
        if stored.schema_version != SCHEMA_VERSION {
            return Err(Error::unsupported("JOB-VERSION", "request of another version")
                .file(&path)
                .field("schema_version")
                .found(stored.schema_version)
                .limit(SCHEMA_VERSION));
        }
        Ok(stored.request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_disk() {
        let mut recipe = Recipe::new("small", "m.onnx");
        recipe.steps.push(Step::new("prune").with("ratio", 0.3));
        let measure = Request::Measure {
            name: "b".into(),
            models: vec![Subject::new("a", "a.onnx")],
            threads: vec![1, 2],
            data: None,
            sampling: Sampling { seconds: Some(0.5), ..Sampling::default() },
            after: vec!["20261123-143015-a1b2".parse().unwrap()],
        };
        let tune = Request::Tune {
            model: Subject::new("a", "a.onnx"),
            threads: vec![2],
            device: Some("raspberry-pi-5".into()),
            sampling: Sampling::default(),
        };
        let serialize = Request::Serialize {
            model: Subject::new("a", "a.onnx"),
            level: Optimization::Extended,
            ort: true,
            data: None,
        };
        for request in [Request::Run { recipe }, measure, tune, serialize] {
            let dir = tempfile::tempdir().unwrap();
            request.store(dir.path()).unwrap();
            assert_eq!(Request::load(dir.path()).unwrap(), request);
        }
    }

    #[test]
    fn a_name_never_leads_out_of_the_job_directory() {
        let path = |name: &str| Request::artifact_of(&Recipe::new(name, "m"));
        assert_eq!(path("prune-20+int8"), "artifacts/prune-20+int8.onnx");
        assert_eq!(path("../../etc/x y"), "artifacts/-..-etc-x-y.onnx");
        assert_eq!(
            (path(""), path("..")),
            ("artifacts/variant.onnx".into(), "artifacts/variant.onnx".into())
        );
        assert!(path(&"ü".repeat(300)).len() < 120);
    }

    #[test]
    fn a_damaged_request_names_its_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(REQUEST), "{").unwrap();
        let e = Request::load(dir.path()).unwrap_err();
        assert_eq!(e.kind().exit_code(), 3);
        assert!(e.to_string().contains("request.json"));
    }
}
