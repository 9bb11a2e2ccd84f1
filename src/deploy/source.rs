//! Which file a variant is, and what the jobs of this house know of it.

use super::card::Gate;
use crate::compare::{self, DEFAULT_MARGIN, Delta, Row, Verdict};
use crate::config::Paths;
use crate::error::{Error, Result};
use crate::evaluate::measurement::Measurement;
use crate::history;
use crate::jobs::store::JobInfo;
use crate::jobs::{self, JobHandle, Request};
use crate::plan::{Goal, Recipe};
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

/// A comparison that a job allows.
pub(super) struct Judged {
    pub(super) job: String,
    pub(super) baseline: String,
    pub(super) margin: f64,
    pub(super) row: Row,
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

/// What a job's figures say of the file: against the first variant of the job, at each thread count.
fn judge(job: &JobHandle, all: &[Measurement], sha256: &str) -> Vec<Judged> {
    let goal = match job.request() {
        Ok(Request::Run { recipe }) => recipe.goal,
        _ => Goal::default(),
    };
    let margin = goal.max_quality_drop.unwrap_or(DEFAULT_MARGIN);
    let Some(first) = all.first().filter(|m| m.model_sha256 != sha256) else { return Vec::new() };
    let mut threads: Vec<usize> = all.iter().map(|m| m.conditions.threads).collect();
    threads.sort_unstable();
    threads.dedup();
    let mut out = Vec::new();
    for threads in threads {
        let same: Vec<Measurement> =
            all.iter().filter(|m| m.conditions.threads == threads).cloned().collect();
        let Some(at) = same.iter().position(|m| m.model_sha256 == first.model_sha256) else { continue };
        // A baseline is named by its place, as variants may share names.
        let mut ordered = vec![same[at].clone()];
        ordered.extend(same.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, m)| m.clone()));
        let Ok(found) = compare::compare(&ordered, None, &goal, margin) else { continue };
        let own = |(i, r): &(usize, Row)| *i > 0 && r.measurement.model_sha256 == sha256;
        out.extend(found.rows.into_iter().enumerate().filter(own).map(|(_, row)| Judged {
            job: job.id.to_string(),
            baseline: first.variant.clone(),
            margin,
            row,
        }));
    }
    out
}

impl Records {
    /// What the newest verdicts on speed and on quality say against shipping, and the gates missed.
    pub(super) fn gate(&self, forced: bool) -> Gate {
        let mut reasons = Vec::new();
        let decided = |d: &Option<Delta>| {
            d.as_ref().is_some_and(|d| !matches!(d.verdict, Verdict::NotComparable | Verdict::Baseline))
        };
        if let Some(j) = self.judged.iter().find(|j| decided(&j.row.latency)) {
            // Every thread count of the newest job counts.
            let of_job = self.judged.iter().filter(|o| o.job == j.job);
            for (j, d) in of_job.filter_map(|j| Some((j, j.row.latency.as_ref()?))) {
                if d.verdict == Verdict::Worse {
                    let threads = j.row.measurement.conditions.threads;
                    reasons.push(format!(
                        "slower than {} by {} on {threads} thread{} (job {})",
                        j.baseline,
                        percent(d),
                        if threads == 1 { "" } else { "s" },
                        j.job
                    ));
                }
            }
        }
        if let Some(j) = self.judged.iter().find(|j| decided(&j.row.quality))
            && let Some(d) = j.row.quality.as_ref().filter(|d| d.verdict == Verdict::Worse)
        {
            let metric = j.row.measurement.quality.as_ref().map_or("quality", |q| q.metric.as_str());
            reasons.push(format!(
                "{metric} worse than that of {} by {:.4}, beyond the margin of {:.1} % (job {})",
                j.baseline,
                d.delta.abs(),
                100.0 * j.margin,
                j.job
            ));
        }
        if let Some(j) = self.judged.first().filter(|j| !j.row.missed.is_empty()) {
            reasons.push(format!("misses {} (job {})", j.row.missed.join(", "), j.job));
        }
        Gate { passed: reasons.is_empty(), forced: forced && !reasons.is_empty(), reasons }
    }
}

/// A relative change with its interval.
pub(super) fn percent(d: &Delta) -> String {
    match &d.ci95 {
        Some(i) => format!("{:+.1} % [{:+.1}, {:+.1}]", 100.0 * d.delta, 100.0 * i.low, 100.0 * i.high),
        None => format!("{:+.1} %", 100.0 * d.delta),
    }
}
