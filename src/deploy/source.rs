//! Which file a variant is, and what the jobs of this house know of it.

use super::card::Gate;
use crate::config::Paths;
use crate::error::{Error, Result};
use crate::evaluate::measurement::Measurement;
use crate::history::{self, Judged, against, judge};
use crate::jobs::store::JobInfo;
use crate::jobs::{self, JobHandle, Request};
use crate::plan::Recipe;
use crate::save;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// A model file that is to be deployed.
#[derive(Debug, Clone)]
pub struct Variant {
    /// Name for people.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of it.
    pub sha256: String,
    /// Size.
    pub bytes: u64,
}

impl Variant {
    /// The model at a path, or the last model that a job made.
    ///
    /// # Errors
    /// `Invalid` where there is neither; `Usage` for a job that made no model; `Integrity` where the job's
    /// file is not the one that it announced.
    pub fn find(text: &str, paths: &Paths) -> Result<Variant> {
        let path = Path::new(text);
        if !path.exists()
            && let Ok(job) = jobs::open(paths, text)
        {
            return Variant::of_job(&job);
        }
        let meta = fs::metadata(path).map_err(|e| Error::io("read the model", path, e))?;
        if meta.is_dir() {
            return Err(Error::unsupported("DEPLOY-FORMAT", "a bundle holds an ONNX model")
                .file(path)
                .found("a directory")
                .hint("make a file of it with `tinsmith import`"));
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Variant::at(name, path)
    }

    fn at(name: String, path: &Path) -> Result<Variant> {
        let path = std::path::absolute(path).map_err(|e| Error::io("find the model", path, e))?;
        let (sha256, bytes) = save::digest(&path)?;
        Ok(Variant { name, path, sha256, bytes })
    }

    fn of_job(job: &JobHandle) -> Result<Variant> {
        let state = job.state();
        let model = |path: &str| path.ends_with(".onnx") || path.ends_with(".ort");
        let made = state.artifacts.iter().rev().find(|a| model(&a.path)).ok_or_else(|| {
            Error::usage("JOB-ARTIFACT", "the job made no model")
                .found(&job.id)
                .hint("name a model file, or a job of run, optimize, quantize or prune")
        })?;
        let variant = Variant::at(made.name.clone(), &job.artifact(&made.path)?)?;
        match variant.sha256 == made.sha256 {
            true => Ok(variant),
            false => Err(Error::integrity("JOB-ARTIFACT", "the file is not the one that the job made")
                .file(&variant.path)
                .found(variant.sha256)
                .limit(&made.sha256)),
        }
    }
}

/// The job that made a variant.
pub(super) struct Maker {
    pub(super) job: JobHandle,
    pub(super) info: JobInfo,
    pub(super) recipe: Option<Recipe>,
    /// `resolved.toml`: digests of what was read, threads, instruction set, choices by measuring.
    pub(super) resolved: Option<String>,
    /// Figures of each step by the name of its pass.
    pub(super) steps: Vec<(String, Value)>,
}

/// What is known of a variant.
pub(super) struct Records {
    pub(super) maker: Option<Maker>,
    /// Figures with the jobs that took them, newest first.
    pub(super) measured: Vec<(String, Measurement)>,
    /// Newest first.
    pub(super) judged: Vec<Judged>,
    /// Where things that belong to the model may lie: beside it, beside what it was made from.
    pub(super) directories: Vec<PathBuf>,
    /// Licence that the fetched package of the source states.
    pub(super) licence: Option<String>,
}

/// Collects what the jobs of this house know of `variant`.
pub(super) fn records(variant: &Variant, paths: &Paths) -> Result<Records> {
    let about = history::sync(paths)?.jobs_about(&variant.sha256)?;
    let (mut maker, mut measured, mut judged) = (None, Vec::new(), Vec::new());
    for id in &about {
        let Ok(job) = jobs::open(paths, id.as_str()) else { continue };
        let state = job.state();
        if maker.is_none() && state.artifacts.iter().any(|a| a.sha256 == variant.sha256) {
            maker = made_by(&job)?;
        }
        let own = |m: &&Measurement| m.model_sha256 == variant.sha256;
        measured.extend(state.measurements.iter().filter(own).map(|m| (id.to_string(), m.clone())));
        judged.extend(judge(&job, &state.measurements, &variant.sha256));
    }
    let mut directories: Vec<PathBuf> = variant.path.parent().map(Path::to_path_buf).into_iter().collect();
    if let Some(maker) = &maker {
        let source = maker.info.directory.join(&maker.info.model);
        let beside = if source.is_dir() { Some(source) } else { source.parent().map(Path::to_path_buf) };
        directories.extend(beside.filter(|d| !directories.contains(d)));
    }
    let licence = directories.iter().rev().find_map(|d| {
        let fetched: Value = serde_json::from_slice(&fs::read(d.join("fetched.json")).ok()?).ok()?;
        fetched["licence"].as_str().map(String::from)
    });
    Ok(Records { maker, measured, judged, directories, licence })
}

fn made_by(job: &JobHandle) -> Result<Option<Maker>> {
    let Ok(info) = job.info() else { return Ok(None) };
    let recipe = match job.request() {
        Ok(Request::Run { recipe }) => Some(recipe),
        _ => None,
    };
    let unrolled = recipe.as_ref().and_then(|r| r.unrolled().ok()).unwrap_or_default();
    let step = |(index, step): (usize, &crate::plan::Step)| {
        let facts = job.report(index, &step.pass).ok().map(|r| serde_json::json!(r.facts));
        (step.describe(), facts.unwrap_or(Value::Null))
    };
    let steps = unrolled.iter().enumerate().map(step).collect();
    let resolved = fs::read_to_string(job.dir.join("resolved.toml")).ok();
    Ok(Some(Maker { job: job.clone(), info, recipe, resolved, steps }))
}

impl Records {
    /// What the newest verdicts on speed and on quality say against shipping, and the gates missed.
    pub(super) fn gate(&self, forced: bool) -> Gate {
        let mut reasons = against(&self.judged, true);
        if let Some(j) = self.judged.first().filter(|j| !j.row.missed.is_empty()) {
            reasons.push(format!("misses {} (job {})", j.row.missed.join(", "), j.job));
        }
        Gate { passed: reasons.is_empty(), forced: forced && !reasons.is_empty(), reasons }
    }
}
