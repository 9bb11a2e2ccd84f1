//! What a run was settled on at its first start, kept as `resolved.toml`: everything beside the recipe
//! that decides its result. A later start goes by it, or refuses where something has changed since.

use super::Context;
use crate::error::{Error, Result};
use crate::evaluate::samples::Samples;
use crate::formats::FileFacts;
use crate::hardware::Machine;
use crate::monitor::{Level, Monitor};
use crate::plan::Recipe;
use crate::save;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

const SCHEMA_VERSION: u32 = 1;

/// What `resolved.toml` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Resolved {
    /// Version of this format.
    schema_version: u32,
    /// Version of this program.
    version: String,
    /// Instruction set; another one may round differently.
    isa: String,
    /// Threads to compute with.
    pub(super) threads: usize,
    /// Digest of the model file.
    #[serde(skip_serializing_if = "Option::is_none")]
    model_sha256: Option<String>,
    /// Digest of the calibration rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    calibration_sha256: Option<String>,
    /// Digest of the training rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    train_sha256: Option<String>,
    /// Digests of the model's external data files.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    external_sha256: BTreeMap<String, String>,
    /// Numbers that steps settled by measuring, by `STEP.NAME`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    settled: BTreeMap<String, f64>,
    /// The recipe.
    recipe: Recipe,
}

const FILE: &str = "resolved.toml";

/// A number that a step settled at an earlier start.
pub(super) fn settled(job: &Path, name: &str) -> Result<Option<f64>> {
    Ok(Resolved::load(&job.join(FILE))?.settled.get(name).copied())
}

/// Adds a number that a step settled.
pub(super) fn settle(job: &Path, name: &str, value: f64) -> Result<()> {
    let path = job.join(FILE);
    let mut resolved = Resolved::load(&path)?;
    resolved.settled.insert(name.into(), value);
    resolved.save(&path)
}

impl Resolved {
    /// Everything beside a step's input and settings that decides about what is computed from them.
    pub(super) fn conditions(&self) -> String {
        format!(
            "{:?}",
            (
                (&self.version, &self.isa, self.threads, self.recipe.seed),
                (&self.calibration_sha256, &self.train_sha256, self.recipe.data.length),
            )
        )
    }

    /// Everything beside a run's first steps that decides about what they give, where the model has a digest.
    pub(super) fn shared(&self, target: Option<&(String, String)>) -> Option<String> {
        let model = self.model_sha256.as_ref()?;
        Some(format!("{}{:?}", self.conditions(), (model, &self.external_sha256, target)))
    }

    /// Settles a run, or finds what it was settled on.
    ///
    /// # Errors
    /// `Integrity` where data changed since the first start.
    pub(super) fn settle(
        ctx: &Context<'_>,
        recipe: &Recipe,
        facts: &FileFacts,
        calibration: Option<&Samples>,
        train: Option<&Samples>,
    ) -> Result<Resolved> {
        let machine = Machine::detect();
        let now = Resolved {
            schema_version: SCHEMA_VERSION,
            version: env!("CARGO_PKG_VERSION").into(),
            isa: machine.isa().into(),
            threads: recipe.threads.unwrap_or_else(|| machine.usable_threads()),
            model_sha256: ctx.info.model_sha256.clone(),
            calibration_sha256: calibration.map(|c| c.hash().to_string()),
            train_sha256: train.map(|c| c.hash().to_string()),
            external_sha256: external(facts, ctx.monitor)?,
            settled: BTreeMap::new(),
            recipe: recipe.clone(),
        };
        let path = ctx.job.dir.join(FILE);
        if path.exists() {
            let before = Resolved::load(&path)?;
            before.agree(&now, &path)?;
            for (what, then, here) in
                [("version", &before.version, &now.version), ("isa", &before.isa, &now.isa)]
            {
                if then != here {
                    let message = format!(
                        "the run began with {what} {then} and goes on with {here}: results may differ in the last bits"
                    );
                    ctx.monitor.log(Level::Warning, &message);
                }
            }
            return Ok(before);
        }
        now.save(&path)?;
        Ok(now)
    }

    fn save(&self, path: &Path) -> Result<()> {
        let text = toml::to_string_pretty(self)
            .map_err(|e| Error::internal("RESOLVED", format!("cannot be written: {e}")).file(path))?;
        save::bytes(path, text.as_bytes())
    }

    fn load(path: &Path) -> Result<Resolved> {
        let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let resolved: Resolved = toml::from_str(&text).map_err(|e| {
            Error::invalid("RESOLVED", format!("file is damaged: {}", e.message()))
                .file(path)
                .hint("submit the recipe again")
        })?;
        if resolved.schema_version != SCHEMA_VERSION || resolved.threads == 0 {
            return Err(Error::invalid("RESOLVED", "this run cannot be continued").file(path));
        }
        Ok(resolved)
    }

    fn agree(&self, now: &Resolved, path: &Path) -> Result<()> {
        let fields = [
            ("recipe", self.recipe == now.recipe),
            ("model_sha256", self.model_sha256 == now.model_sha256),
            ("calibration_sha256", self.calibration_sha256 == now.calibration_sha256),
            ("train_sha256", self.train_sha256 == now.train_sha256),
            ("external_sha256", self.external_sha256 == now.external_sha256),
        ];
        match fields.iter().find(|(_, same)| !same) {
            None => Ok(()),
            Some((field, _)) => {
                Err(Error::integrity("JOB-INPUTS", "what the run reads has changed since it began")
                    .file(path)
                    .field(*field)
                    .hint("restore it, or submit a new job"))
            }
        }
    }
}

fn external(facts: &FileFacts, monitor: &dyn Monitor) -> Result<BTreeMap<String, String>> {
    let digest = |(path, _): &(std::path::PathBuf, u64)| {
        let file = File::open(path).map_err(|e| Error::io("read the model's data", path, e))?;
        let (sha256, _) = save::digest_of(file, || monitor.check()).map_err(|e| e.file(path))?;
        Ok((path.to_string_lossy().into_owned(), sha256))
    };
    facts.external.iter().map(digest).collect()
}
