//! Recipes: an ordered list of steps, each a pass with its settings, as versioned TOML.

use super::goal::Goal;
use crate::error::{Error, Result};
use crate::passes;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Version of the recipe format.
pub const SCHEMA_VERSION: u32 = 1;

/// Data of a recipe, each a data spec (`csv:FILE?label=last#0..256`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct DataSpec {
    /// Training data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<String>,
    /// Calibration data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
    /// Evaluation data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<String>,
    /// Most tokens of a row, where the data are texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
}

/// Four significant digits.
fn short(f: f64) -> f64 {
    format!("{f:.3e}").parse().unwrap_or(f)
}

/// One step: the pass and its settings, which the pass itself reads and checks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Name of the pass: `optimize`, `quantize`, `prune`.
    pub pass: String,
    /// Its settings.
    #[serde(flatten)]
    pub settings: toml::Table,
}

impl Step {
    /// A step without settings.
    pub fn new(pass: &str) -> Step {
        Step { pass: pass.into(), settings: toml::Table::new() }
    }
    /// The same step with one more setting.
    pub fn with(mut self, key: &str, value: impl Into<toml::Value>) -> Step {
        self.settings.insert(key.into(), value.into());
        self
    }
    /// One line for people: `prune ratio=0.3 criterion=l2`.
    pub fn describe(&self) -> String {
        let mut out = self.pass.clone();
        for (k, v) in &self.settings {
            out.push_str(&match v {
                toml::Value::String(s) => format!(" {k}={s}"),
                toml::Value::Float(f) => format!(" {k}={}", short(*f)),
                other => format!(" {k}={other}"),
            });
        }
        out
    }
}

/// A recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Version of the format.
    pub schema_version: u32,
    /// Name; artefacts carry it.
    pub name: String,
    /// Path of the input model.
    pub model: String,
    /// Seed of everything random.
    #[serde(default)]
    pub seed: u64,
    /// Threads to compute with; all that the machine offers where none is stated. The same recipe with
    /// the same number gives the same bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Whether the result (and the original) is measured at the end.
    #[serde(default)]
    pub measure: bool,
    /// Data.
    #[serde(default)]
    pub data: DataSpec,
    /// Gates.
    #[serde(default)]
    pub goal: Goal,
    /// Steps in order.
    #[serde(default, rename = "step")]
    pub steps: Vec<Step>,
}

impl Recipe {
    /// An empty recipe for a model.
    pub fn new(name: &str, model: &str) -> Recipe {
        Recipe {
            schema_version: SCHEMA_VERSION,
            name: name.into(),
            model: model.into(),
            seed: 0,
            threads: None,
            measure: false,
            data: DataSpec::default(),
            goal: Goal::default(),
            steps: Vec::new(),
        }
    }

    /// Reads a recipe; the error names the file and the line.
    pub fn load(path: &Path) -> Result<Recipe> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read the recipe", path, e))?;
        Recipe::parse(&text).map_err(|e| e.file(path))
    }

    /// Parses a recipe.
    pub fn parse(text: &str) -> Result<Recipe> {
        let recipe: Recipe = toml::from_str(text).map_err(|e| {
            let line = e.span().map(|s| text.bytes().take(s.start).filter(|b| *b == b'\n').count() + 1);
            let error = Error::usage("RECIPE", e.message().to_string())
                .hint("`tinsmith gen schema recipe` shows the fields");
            match line {
                Some(line) => error.field(format!("line {line}")),
                None => error,
            }
        })?;
        if recipe.schema_version != SCHEMA_VERSION {
            return Err(Error::usage("RECIPE-VERSION", "recipe of another version")
                .field("schema_version")
                .found(recipe.schema_version)
                .limit(SCHEMA_VERSION));
        }
        Ok(recipe)
    }

    /// The steps as they run: one that states rounds is as many steps.
    ///
    /// # Errors
    /// `Usage` where settings of a step are wrong.
    pub fn unrolled(&self) -> Result<Vec<Step>> {
        let mut steps = Vec::with_capacity(self.steps.len());
        for (index, step) in self.steps.iter().enumerate() {
            let pass =
                passes::by_name(&step.pass, &step.settings).map_err(|e| e.field(format!("step[{index}]")))?;
            match pass.rounds()? {
                Some(rounds) => steps
                    .extend(rounds.into_iter().map(|settings| Step { pass: step.pass.clone(), settings })),
                None => steps.push(step.clone()),
            }
        }
        Ok(steps)
    }

    /// The recipe as TOML.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self)
            .map_err(|e| Error::internal("RECIPE-WRITE", format!("recipe cannot be written: {e}")))
    }
}
