//! What the figures of a job say of a model that it made: against the first variant of the job, and whether that
//! speaks for or against it.

use super::sync;
use crate::compare::{self, DEFAULT_MARGIN, Delta, Row, Verdict};
use crate::config::Paths;
use crate::error::Result;
use crate::evaluate::measurement::Measurement;
use crate::jobs::{self, JobHandle, Request};
use crate::plan::{Goal, Tried};
use crate::save;
use std::path::Path;

/// A comparison that a job allows.
pub struct Judged {
    /// Job.
    pub job: String,
    /// Variant that it is held against.
    pub baseline: String,
    /// Relative loss of quality that still counts as none.
    pub margin: f64,
    /// The model's row.
    pub row: Row,
}

/// What a job's figures say of the file: against the first variant of the job, at each thread count.
pub fn judge(job: &JobHandle, all: &[Measurement], sha256: &str) -> Vec<Judged> {
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

/// What the newest verdicts on speed (where `speed` counts) and on quality say against a model. `judged` are newest
/// first.
pub fn against(judged: &[Judged], speed: bool) -> Vec<String> {
    let mut reasons = Vec::new();
    let decided = |d: &Option<Delta>| {
        d.as_ref().is_some_and(|d| !matches!(d.verdict, Verdict::NotComparable | Verdict::Baseline))
    };
    if let Some(j) = judged.iter().filter(|_| speed).find(|j| decided(&j.row.latency)) {
        // Every thread count of the newest job counts.
        let of_job = judged.iter().filter(|o| o.job == j.job);
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
    if let Some(j) = judged.iter().find(|j| decided(&j.row.quality))
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
    reasons
}

/// What came of the recipes that were run on a model file and measured, newest first. `speed` says whether
/// verdicts on speed count, which hold for this machine alone.
///
/// # Errors
/// Those of reading the model and of the index.
pub fn tried(paths: &Paths, model: &Path, speed: bool) -> Result<Vec<Tried>> {
    if !model.is_file() {
        return Ok(Vec::new());
    }
    let history = sync(paths)?;
    let runs = super::Query { what: Some("run".into()), ..super::Query::default() };
    let runs: Vec<_> =
        history.query(&runs)?.into_iter().filter(|e| e.artifacts > 0 && e.model_sha256.is_some()).collect();
    if runs.is_empty() {
        return Ok(Vec::new());
    }
    let (sha256, _) = save::digest(model)?;
    let mut out = Vec::new();
    for entry in runs.iter().filter(|e| e.model_sha256.as_deref() == Some(&sha256)) {
        let Ok(job) = jobs::open(paths, &entry.id) else { continue };
        let Ok(Request::Run { recipe }) = job.request() else { continue };
        let state = job.state();
        let Some(made) = state.artifacts.last() else { continue };
        // A model is measured by the job that makes it, or by others later.
        let about = history.jobs_about(&made.sha256)?;
        let measuring = about.iter().filter_map(|id| jobs::open(paths, id.as_str()).ok());
        let judged: Vec<Judged> =
            measuring.flat_map(|job| judge(&job, &job.state().measurements, &made.sha256)).collect();
        let Some(first) = judged.first() else { continue };
        out.push(Tried {
            steps: recipe.steps.clone(),
            job: first.job.clone(),
            against: against(&judged, speed),
            conclusion: first.row.conclusion.clone(),
        });
    }
    Ok(out)
}

/// A relative change with its interval.
pub fn percent(d: &Delta) -> String {
    match &d.ci95 {
        Some(i) => format!("{:+.1} % [{:+.1}, {:+.1}]", 100.0 * d.delta, 100.0 * i.low, 100.0 * i.high),
        None => format!("{:+.1} %", 100.0 * d.delta),
    }
}
