//! What a job is asked to do. Runs are kept as `recipe.toml`, everything else as `request.json`.

use super::store::{SCHEMA_VERSION, read_json};
use crate::error::{Error, Result};
use crate::plan::Recipe;
use crate::save;
use serde::{Deserialize, Serialize};
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
    },
}

/// A model file to measure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// Variant name.
    pub name: String,
    /// Path.
    pub path: String,
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

impl Request {
    /// For lists.
    pub fn about(&self) -> About {
        match self {
            Request::Run { recipe } => About {
                name: recipe.name.clone(),
                what: "run".into(),
                model: recipe.model.clone(),
                steps: recipe.steps.iter().map(|s| s.describe()).collect(),
            },
            Request::Measure { name, models, data, .. } => About {
                name: name.clone(),
                what: if data.is_some() { "eval" } else { "bench" }.into(),
                model: models.first().map(|m| m.path.clone()).unwrap_or_default(),
                steps: models.iter().map(|m| format!("measure {}", m.name)).collect(),
            },
        }
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
    use crate::plan::Step;

    #[test]
    fn requests_survive_the_disk() {
        let mut recipe = Recipe::new("small", "m.onnx");
        recipe.steps.push(Step::new("prune").with("ratio", 0.3));
        let subject = Subject { name: "a".into(), path: "a.onnx".into() };
        let measure =
            Request::Measure { name: "b".into(), models: vec![subject], threads: vec![1, 2], data: None };
        for request in [Request::Run { recipe }, measure] {
            let dir = tempfile::tempdir().unwrap();
            request.store(dir.path()).unwrap();
            assert_eq!(Request::load(dir.path()).unwrap(), request);
        }
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
