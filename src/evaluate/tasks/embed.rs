//! Embeddings: vectors of texts. Against a reference: cosine of each pair of vectors, and Spearman's
//! rank correlation of the similarities of all pairs of texts. On labels: accuracy of a linear probe.
//!
//! The vector of a text is the output `sentence_embedding`; else the first output, which is averaged over
//! the tokens of the text where it has one vector for each token.

use super::runner::{Runner, feed};
use super::{Outcome, TaskOptions, metric, probe, rank, resample};
use crate::data::{Padding, TextSet, TokenSet};
use crate::error::{Error, Result};
use crate::evaluate::accuracy;
use crate::evaluate::measurement::{Interval, Quality};
use crate::evaluate::stats;
use crate::formats::Tokenizer;
use crate::monitor::Monitor;
use crate::tensor::Tensor;
use serde_json::json;

/// Longest text where the files state none.
const LONGEST: usize = 256;
/// Texts whose pairs are compared; their number grows with the square.
const PAIRED: usize = 1000;

pub(super) fn run(
    runner: &mut dyn Runner,
    reference: Option<&mut dyn Runner>,
    tokenizer: &Tokenizer,
    texts: &TextSet,
    options: &TaskOptions,
    monitor: &dyn Monitor,
) -> Result<Outcome> {
    if reference.is_none() && texts.labels().is_empty() {
        return Err(Error::usage("EVAL-EMBED", "vectors are judged against a reference, or by labels")
            .field(texts.spec())
            .hint("name a reference with --vs, or data with labels such as jsonl:FILE?text=..&label=.."));
    }
    let longest = options.window.unwrap_or_else(|| tokenizer.longest().unwrap_or(LONGEST).min(512));
    let tokens = TokenSet::of(texts, tokenizer, longest)?;
    let vectors = embed(runner, &tokens, options.batch, "evaluate", monitor)?;
    let mut metrics = Vec::new();
    let mut quality: Option<Quality> = None;
    if let Some(reference) = reference {
        let others = embed(reference, &tokens, options.batch, "evaluate the reference", monitor)?;
        let cosines: Vec<f64> =
            vectors.iter().zip(&others).map(|(a, b)| cosine(a, b)).collect::<Result<_>>()?;
        let blocks: Vec<[f64; 2]> = cosines.iter().map(|c| [*c, 1.0]).collect();
        let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
        let interval = resample::interval(&blocks, options.seed, |s| s[0] / s[1]);
        metrics.push(metric("cosine_mean", mean, interval.clone()));
        metrics.push(metric("cosine_p01", stats::quantile(&cosines, 0.01), None));
        metrics.push(metric("cosine_min", stats::quantile(&cosines, 0.0), None));
        let count = vectors.len().min(PAIRED);
        if let Some(rho) = rank::spearman(&similarities(&vectors[..count])?, &similarities(&others[..count])?)
        {
            metrics.push(metric("spearman", rho, None));
        }
        if !texts.labels().is_empty() {
            let correct = probe::correct(&others, texts.labels())?;
            let share = accuracy::quality(correct, texts.hash());
            metrics.push(metric("reference_probe_accuracy", share.value, Some(share.ci95)));
        }
        quality = Some(Quality {
            metric: "cosine".into(),
            value: mean,
            ci95: interval.unwrap_or(Interval { low: mean, high: mean }),
            n: cosines.len(),
            higher_is_better: true,
            correct: Vec::new(),
            data_hash: texts.hash().into(),
        });
    }
    if !texts.labels().is_empty() {
        let mut probed = accuracy::quality(probe::correct(&vectors, texts.labels())?, texts.hash());
        probed.metric = "probe_accuracy".into();
        metrics.push(metric("probe_accuracy", probed.value, Some(probed.ci95.clone())));
        quality = Some(quality.unwrap_or(probed));
    }
    let quality = quality.ok_or_else(|| Error::internal("EVAL-EMBED", "no figure was computed"))?;
    let settings = [
        ("texts", json!(tokens.len())),
        ("longest", json!(longest)),
        ("cut", json!(tokens.cut())),
        ("width", json!(vectors.first().map_or(0, Vec::len))),
        ("paired", json!(vectors.len().min(PAIRED))),
    ];
    let settings = settings.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
    Ok(Outcome { quality, metrics, settings, notes: Vec::new() })
}

/// One vector for each row.
fn embed(
    runner: &mut dyn Runner,
    tokens: &TokenSet,
    batch: usize,
    phase: &str,
    monitor: &dyn Monitor,
) -> Result<Vec<Vec<f32>>> {
    let mut out = Vec::with_capacity(tokens.len());
    monitor.phase(phase, Some(tokens.len() as u64));
    let names = runner.outputs();
    let chosen = names.iter().position(|n| n == "sentence_embedding").unwrap_or(0);
    while out.len() < tokens.len() {
        monitor.check()?;
        let (from, to) = (out.len(), (out.len() + batch.max(1)).min(tokens.len()));
        let rows = tokens.batch(from, to, Padding::Longest)?;
        let mut outputs = runner.run(&feed(runner.inputs(), &rows)?)?;
        if chosen >= outputs.len() {
            return Err(Error::invalid("EVAL-OUTPUT", "the model has no outputs"));
        }
        let (name, tensor) = outputs.swap_remove(chosen);
        let lengths = tokens.rows()[from..to].iter().map(Vec::len);
        out.extend(pooled(&tensor, lengths).ok_or_else(|| {
            Error::usage("EVAL-OUTPUT", "the output is no vector for each text or token")
                .found(format!("{name}{:?}", tensor.shape()))
                .limit(format!("[{}, width] or [{0}, tokens, width]", to - from))
                .hint("this task is for encoders of text")
        })??);
        monitor.progress(out.len() as u64);
    }
    Ok(out)
}

/// Rows of `[rows, width]`, or means over the first tokens of `[rows, tokens, width]`.
fn pooled(tensor: &Tensor, lengths: impl ExactSizeIterator<Item = usize>) -> Option<Result<Vec<Vec<f32>>>> {
    let count = lengths.len();
    let (tokens, width) = match *tensor.shape() {
        [rows, width] if rows == count && width > 0 => (0, width),
        [rows, tokens, width] if rows == count && width > 0 && tokens > 0 => (tokens, width),
        _ => return None,
    };
    let values = match tensor.to_f32s() {
        Ok(values) => values,
        Err(e) => return Some(Err(e)),
    };
    if tokens == 0 {
        return Some(Ok(values.chunks(width).map(<[f32]>::to_vec).collect()));
    }
    let rows = values.chunks(tokens * width).zip(lengths).map(|(row, length)| {
        let length = length.clamp(1, tokens);
        let mut sum = vec![0f64; width];
        for token in row.chunks(width).take(length) {
            sum.iter_mut().zip(token).for_each(|(s, v)| *s += f64::from(*v));
        }
        sum.into_iter().map(|s| (s / length as f64) as f32).collect()
    });
    Some(Ok(rows.collect()))
}

fn cosine(a: &[f32], b: &[f32]) -> Result<f64> {
    if a.len() != b.len() {
        return Err(Error::usage("EVAL-WIDTH", "model and reference give vectors of different widths")
            .found(a.len())
            .limit(b.len())
            .hint("judge models of another width by data with labels"));
    }
    let product =
        |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let cosine = product(a, b) / (product(a, a) * product(b, b)).sqrt();
    if cosine.is_finite() {
        return Ok(cosine);
    }
    Err(Error::invalid("EVAL-NAN", "a vector is zero or not finite")
        .hint("check the weights with `tinsmith inspect`"))
}

/// Cosines of all pairs.
fn similarities(vectors: &[Vec<f32>]) -> Result<Vec<f32>> {
    let mut out = Vec::with_capacity(vectors.len() * vectors.len() / 2);
    for (i, a) in vectors.iter().enumerate() {
        for b in &vectors[..i] {
            out.push(cosine(a, b)? as f32);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_left_out_of_the_mean() {
        let tensor =
            Tensor::from_vec(vec![2, 3, 2], vec![1f32, 2., 3., 4., 99., 99., 5., 6., 7., 8., 9., 10.])
                .unwrap();
        let means = pooled(&tensor, [2, 3].into_iter()).unwrap().unwrap();
        assert_eq!(means, [vec![2., 3.], vec![7., 8.]]);
        assert!(pooled(&tensor, [2].into_iter()).is_none());
        assert!((cosine(&[1., 0.], &[1., 1.]).unwrap() - 0.5f64.sqrt()).abs() < 1e-9);
        assert_eq!(cosine(&[1.], &[1., 2.]).unwrap_err().code(), "EVAL-WIDTH");
    }
}
