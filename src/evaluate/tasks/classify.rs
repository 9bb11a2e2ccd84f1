//! Classification of texts: the share of texts whose label has the largest score of the first output.

use super::runner::{Runner, feed};
use super::{Outcome, TaskOptions, metric};
use crate::data::{Padding, TextSet, TokenSet};
use crate::error::{Error, Result};
use crate::evaluate::accuracy;
use crate::formats::Tokenizer;
use crate::monitor::Monitor;
use serde_json::json;

/// Longest text where the files state none.
const LONGEST: usize = 512;

pub(super) fn run(
    runner: &mut dyn Runner,
    reference: Option<&mut dyn Runner>,
    tokenizer: &Tokenizer,
    texts: &TextSet,
    options: &TaskOptions,
    monitor: &dyn Monitor,
) -> Result<Outcome> {
    if texts.labels().is_empty() {
        return Err(Error::usage("EVAL-LABELS", "these data have no labels")
            .field(texts.spec())
            .hint("name the label, as in jsonl:FILE?text=..&label=.. or text:DIR?label=folder"));
    }
    let longest = options.window.unwrap_or_else(|| tokenizer.longest().unwrap_or(LONGEST).min(LONGEST));
    let tokens = TokenSet::of(texts, tokenizer, longest)?;
    let chosen = classes(runner, &tokens, options.batch, "evaluate", monitor)?;
    let right = |chosen: &[usize]| chosen.iter().zip(texts.labels()).map(|(c, l)| c == l).collect();
    let quality = accuracy::quality(right(&chosen), texts.hash());
    let mut metrics = vec![metric("accuracy", quality.value, Some(quality.ci95.clone()))];
    if let Some(reference) = reference {
        let others = classes(reference, &tokens, options.batch, "evaluate the reference", monitor)?;
        let other = accuracy::quality(right(&others), texts.hash());
        let same = chosen.iter().zip(&others).filter(|(a, b)| a == b).count();
        metrics.push(metric("reference_accuracy", other.value, Some(other.ci95)));
        metrics.push(metric("agreement", same as f64 / chosen.len() as f64, None));
    }
    let settings = [
        ("texts", json!(tokens.len())),
        ("longest", json!(longest)),
        ("cut", json!(tokens.cut())),
        ("classes", json!(texts.classes())),
    ];
    let settings = settings.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
    Ok(Outcome { quality, metrics, settings, notes: Vec::new() })
}

/// The class of the largest score of each row; none that exists where a score is not a number.
fn classes(
    runner: &mut dyn Runner,
    tokens: &TokenSet,
    batch: usize,
    phase: &str,
    monitor: &dyn Monitor,
) -> Result<Vec<usize>> {
    let mut out = Vec::with_capacity(tokens.len());
    monitor.phase(phase, Some(tokens.len() as u64));
    while out.len() < tokens.len() {
        monitor.check()?;
        let (from, to) = (out.len(), (out.len() + batch.max(1)).min(tokens.len()));
        let rows = tokens.batch(from, to, Padding::Longest)?;
        let outputs = runner.run(&feed(runner.inputs(), &rows)?)?;
        let (name, scores) = outputs
            .into_iter()
            .next()
            .ok_or_else(|| Error::invalid("EVAL-OUTPUT", "the model has no outputs"))?;
        let width = match *scores.shape() {
            [rows, width] if rows == to - from && width > 0 => width,
            _ => {
                return Err(Error::usage(
                    "EVAL-OUTPUT",
                    "the model's first output is not one row of scores for each text",
                )
                .found(format!("{name}{:?}", scores.shape()))
                .limit(format!("[{}, classes]", to - from))
                .hint("this task is for classifiers of text"));
            }
        };
        if let Some(label) = tokens.labels()[from..to].iter().find(|l| **l >= width) {
            return Err(Error::invalid("EVAL-CLASSES", "a label has no score in the model's output")
                .found(label)
                .limit(format!("0 to {}", width - 1))
                .hint("check that the data belong to this model"));
        }
        out.extend(scores.to_f32s()?.chunks(width).map(|row| match row.iter().any(|v| v.is_nan()) {
            true => usize::MAX,
            false => row.iter().enumerate().fold(0, |best, (i, v)| if *v > row[best] { i } else { best }),
        }));
        monitor.progress(out.len() as u64);
    }
    Ok(out)
}
