//! The recommendation: considers every combination of rules, predicts it on the device, ranks what is
//! left. A question enters; proposals, and why the others were refused, leave.

use super::cost::{self, DeviceFacts};
use super::goal::Goal;
use super::proposal::{Confidence, Proposal};
use super::recipe::{DataSpec, Recipe, Step};
use super::rules::{Facts, Forecast, Layer, RECIPES, Range, Rule};
use crate::analysis::Summary;
use serde::{Deserialize, Serialize};

/// Version of [`Recommendation`].
pub const SCHEMA_VERSION: u32 = 1;

/// How wrong the roofline may be where the model was not measured on the device.
const ROOFLINE: f64 = 2.0;

/// What a recommendation is made from.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// The model.
    pub summary: &'a Summary,
    /// Path of the model, for the recipes.
    pub model: &'a str,
    /// Where it must run.
    pub device: &'a DeviceFacts,
    /// Gates.
    pub goal: &'a Goal,
    /// Data at hand.
    pub data: &'a DataSpec,
    /// Median latency of the model on the device in milliseconds, where it was measured.
    pub measured_ms: Option<f64>,
    /// What came of recipes that were run on this model before.
    pub tried: &'a [Tried],
    /// Seed of the recipes.
    pub seed: u64,
}

/// What came of a recipe that was run and measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Tried {
    /// Steps of the recipe.
    pub steps: Vec<Step>,
    /// Job that measured it.
    pub job: String,
    /// What speaks against the result, with the job: slower, or worse than its margin. It is not proposed again.
    pub against: Vec<String>,
    /// The conclusion of the comparison.
    pub conclusion: String,
}

/// A combination that is not proposed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// Name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recommendation {
    /// Version of this format.
    pub schema_version: u32,
    /// Name of the device.
    pub device: String,
    /// Predicted or measured latency of the model as it is, in milliseconds: middle, low, high.
    pub original_latency_ms: Option<(f64, f64, f64)>,
    /// Proposals, best first.
    pub proposals: Vec<Proposal>,
    /// Combinations that were refused.
    pub refused: Vec<Refused>,
    /// What the reader must know.
    pub notes: Vec<String>,
}

/// Ranks the recipes at hand.
pub fn recommend(question: &Question<'_>) -> Recommendation {
    let Question { summary, device, goal, .. } = *question;
    let costs = cost::layers(summary, device);
    let roofline: f64 = costs.iter().map(|l| l.ms).sum();
    let counted = summary.macs > 0 && summary.macs_unknown * 5 <= summary.layers.len();
    let base = match question.measured_ms {
        Some(ms) => Some((ms, ms, ms)),
        None => counted.then_some((roofline, roofline / ROOFLINE, roofline * ROOFLINE)),
    };
    let facts = Facts { summary, device, data: question.data, base_ms: base.map_or(roofline, |b| b.0) };
    let start = Forecast {
        layers: costs.into_iter().map(|cost| Layer { cost, time: Range::exactly(1.0) }).collect(),
        file_bytes: summary.file_bytes as f64,
        combined: false,
        drop: (0.0, 0.0),
        seconds: 0.0,
        confidence: Confidence::High,
        steps: Vec::new(),
        reasons: Vec::new(),
        risks: Vec::new(),
    };
    let mut scored: Vec<(f64, Proposal)> = Vec::new();
    let mut refused: Vec<Refused> = Vec::new();
    for rules in RECIPES {
        let name = name(rules);
        match predict(rules, &facts, &start) {
            Ok(forecast) => {
                let mut proposal = propose(question, name, forecast, base, &start);
                if let Some(tried) = question.tried.iter().find(|t| t.steps == proposal.recipe.steps) {
                    if !tried.against.is_empty() {
                        let reason = format!("measured: {}", tried.against.join("; "));
                        refused.push(Refused { name: proposal.name, reason });
                        continue;
                    }
                    proposal.reasons.push(format!("measured in job {}: {}", tried.job, tried.conclusion));
                }
                scored.push((score(&proposal, summary.file_bytes), proposal));
            }
            Err(reason) if rules.len() <= 2 => refused.push(Refused { name, reason }),
            Err(_) => {}
        }
    }
    scored.sort_by(|(a, p), (b, q)| {
        let missed = |p: &Proposal| p.meets_goal == Some(false);
        missed(p).cmp(&missed(q)).then(b.total_cmp(a))
    });
    let proposals = scored
        .into_iter()
        .enumerate()
        .map(|(at, (_, proposal))| Proposal { rank: at + 1, ..proposal })
        .collect();
    let mut notes = Vec::new();
    if !counted {
        notes.push(format!(
            "{} of {} nodes have unknown cost, so no latency is predicted; give input sizes with --bind",
            summary.macs_unknown,
            summary.layers.len()
        ));
    }
    if goal.memory_mb.is_some() {
        notes.push("peak memory is measured, not predicted: memory_mb is judged after a run".into());
    }
    Recommendation {
        schema_version: SCHEMA_VERSION,
        device: device.name.clone(),
        original_latency_ms: base,
        proposals,
        refused,
        notes,
    }
}

fn name(rules: &[&dyn Rule]) -> String {
    // Optimising goes without saying where there is more.
    let mut names: Vec<String> = rules.iter().map(|r| r.name()).collect();
    if names.len() > 1 {
        names.retain(|n| n != "optimize");
    }
    names.join("+")
}

fn predict(rules: &[&dyn Rule], facts: &Facts<'_>, start: &Forecast) -> Result<Forecast, String> {
    let mut forecast = Forecast { combined: rules.len() > 1, ..start.clone() };
    for rule in rules {
        if let Some(reason) = rule.refuse(facts, &forecast) {
            return Err(reason);
        }
        rule.apply(facts, &mut forecast);
    }
    Ok(forecast)
}

fn propose(
    question: &Question<'_>,
    name: String,
    mut forecast: Forecast,
    base: Option<(f64, f64, f64)>,
    start: &Forecast,
) -> Proposal {
    let total = |of: fn(&Layer) -> f64| forecast.layers.iter().map(of).sum::<f64>();
    let all: f64 = start.layers.iter().map(|l| l.cost.ms).sum::<f64>().max(f64::MIN_POSITIVE);
    let low = total(|l| l.cost.ms * l.time.low) / all;
    let mid = total(|l| l.cost.ms * l.time.mid) / all;
    let high = total(|l| l.cost.ms * l.time.high) / all;
    let latency = base.map(|(m, l, h)| (m * mid, l * low, h * high));
    let file_bytes = forecast.file_bytes.max(0.0) as u64;
    let mut recipe = Recipe::new(&name, question.model);
    recipe.seed = question.seed;
    recipe.measure = true;
    recipe.data = question.data.clone();
    if recipe.data.calibration.is_none() {
        recipe.data.calibration = recipe.data.train.clone();
    }
    recipe.goal = question.goal.clone();
    recipe.steps = std::mem::take(&mut forecast.steps);
    if base.is_some() && mid > 0.98 {
        forecast.reasons.push("no gain in speed is expected on this device".into());
    }
    if question.data.eval.is_none() {
        forecast.risks.push("without evaluation data the loss of quality stays unknown: pass --data".into());
    }
    Proposal {
        rank: 0,
        meets_goal: meets(question.goal, file_bytes, latency.map(|l| l.0), forecast.drop),
        predicted_file_bytes: file_bytes,
        predicted_latency_ms: latency,
        predicted_speedup: base.map(|_| 1.0 / mid),
        expected_quality_drop: forecast.drop,
        cost_seconds: forecast.seconds,
        confidence: forecast.confidence,
        reasons: forecast.reasons,
        risks: forecast.risks,
        name,
        recipe,
    }
}

/// Whether the middle of each prediction meets its gate; none where no predictable gate is set.
fn meets(goal: &Goal, file_bytes: u64, latency: Option<f64>, drop: (f64, f64)) -> Option<bool> {
    let gates = [
        goal.size_mb.map(|limit| file_bytes as f64 / 1e6 <= limit),
        goal.latency_ms.and_then(|limit| Some(latency? <= limit)),
        goal.max_quality_drop.map(|limit| (drop.0 + drop.1) / 2.0 <= limit),
    ];
    let set: Vec<bool> = gates.into_iter().flatten().collect();
    (!set.is_empty()).then(|| set.iter().all(|met| *met))
}

/// Benefit in doublings of speed, a quarter as much for size, less what the loss of quality is worth;
/// a prediction counts by how far it can be trusted.
fn score(p: &Proposal, original_bytes: u64) -> f64 {
    let speed = p.predicted_speedup.unwrap_or(1.0).ln();
    let size = (original_bytes.max(1) as f64 / p.predicted_file_bytes.max(1) as f64).ln();
    let trust = match p.confidence {
        Confidence::High => 1.0,
        Confidence::Medium => 0.85,
        Confidence::Low => 0.65,
    };
    let drop = (p.expected_quality_drop.0 + p.expected_quality_drop.1) / 2.0;
    trust * (speed + 0.25 * size) - 6.0 * drop
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
