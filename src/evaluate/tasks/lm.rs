//! Language modelling: how well a causal model predicts the next token, and how far its predictions are
//! from those of a reference.
//!
//! A document of `n` tokens is covered by windows of `window` tokens whose beginnings are `stride`
//! apart; each token is predicted once, in the first window that holds it with a token before it, so
//! without overlap and without a token for the beginning of a text the first token of each window is not
//! predicted. Perplexity is `exp` of the mean negative log-likelihood of the predicted tokens, bits per
//! byte its sum in bits over the bytes of their text. Against a reference P (the model is Q), per
//! predicted token: `KL(P || Q)` in nats, whether both have the same most likely token, and the
//! difference of the probabilities of the token that follows, as llama.cpp defines them.

use super::runner::{Runner, feed};
use super::{Outcome, TaskOptions, metric, resample};
use crate::data::{TextSet, token_batch};
use crate::error::{Error, Result};
use crate::evaluate::measurement::{Interval, Quality};
use crate::evaluate::stats;
use crate::formats::Tokenizer;
use crate::monitor::Monitor;
use crate::tensor::Tensor;
use rayon::prelude::*;
use serde_json::json;

/// Window where none is asked for, unless the model is made for less.
const WINDOW: usize = 512;
/// Documents from which on they are the blocks of the bootstrap; windows below.
const DOCUMENTS: usize = 20;

/// Tokens that the model sees at once, and which of them it is judged by.
#[derive(Debug, PartialEq)]
struct Window {
    document: usize,
    ids: Vec<u32>,
    /// Positions in `ids` that are predicted, each from the one before.
    first: usize,
}

/// What one predicted token tells.
struct Token {
    /// Negative log-likelihood in nats.
    nll: f64,
    against: Option<Against>,
}

struct Against {
    nll: f64,
    divergence: f64,
    same_top: bool,
    /// Probability of the token that follows, minus that of the reference.
    delta: f64,
}

/// Cuts documents into windows. `before` is put before every window.
fn windows(documents: &[Vec<u32>], before: &[u32], window: usize, stride: usize) -> Vec<Window> {
    let room = window - before.len();
    let mut out = Vec::new();
    for (document, tokens) in documents.iter().enumerate() {
        let (mut start, mut predicted) = (0, 0);
        while predicted < tokens.len() {
            let end = tokens.len().min(start + room);
            let ids: Vec<u32> = before.iter().chain(&tokens[start..end]).copied().collect();
            let first = (predicted - start + before.len()).max(1);
            if first < ids.len() {
                out.push(Window { document, ids, first });
            }
            predicted = end;
            start += stride;
        }
    }
    out
}

/// Log of the sum of exponentials, and the index of the largest.
fn normaliser(row: &[f32]) -> (f64, usize) {
    let top = row.iter().enumerate().fold(0, |best, (i, v)| if *v > row[best] { i } else { best });
    let largest = row[top];
    let sum: f64 =
        row.chunks(1024).map(|c| f64::from(c.iter().map(|v| (v - largest).exp()).sum::<f32>())).sum();
    (f64::from(largest) + sum.ln(), top)
}

/// Judges the prediction `row`, and that of the reference, for the token that follows.
fn judge(row: &[f32], reference: Option<&[f32]>, target: usize) -> Token {
    let (norm, top) = normaliser(row);
    let nll = norm - f64::from(row[target]);
    let against = reference.map(|other| {
        let (other_norm, other_top) = normaliser(other);
        let other_nll = other_norm - f64::from(other[target]);
        let divergence = row.chunks(1024).zip(other.chunks(1024)).map(|(q, p)| {
            let part = q.iter().zip(p).map(|(q, p)| {
                let log_p = f64::from(*p) - other_norm;
                if log_p < -60.0 { 0.0 } else { log_p.exp() * (log_p - (f64::from(*q) - norm)) }
            });
            part.sum::<f64>()
        });
        Against {
            nll: other_nll,
            divergence: divergence.sum::<f64>().max(0.0),
            same_top: top == other_top,
            delta: (-nll).exp() - (-other_nll).exp(),
        }
    });
    Token { nll, against }
}

/// Logits `[1, tokens, vocabulary]` of a row of ids, and the vocabulary.
pub(super) fn logits(runner: &mut dyn Runner, ids: &[u32]) -> Result<(Tensor, usize)> {
    let batch = token_batch(&[ids.to_vec()], ids.len(), 0)?;
    let inputs = feed(runner.inputs(), &batch)?;
    let mut outputs = runner.run(&inputs)?;
    let at = outputs.iter().position(|(n, _)| n == "logits").unwrap_or(0);
    if outputs.is_empty() {
        return Err(Error::invalid("EVAL-OUTPUT", "the model has no outputs"));
    }
    let (name, tensor) = outputs.swap_remove(at);
    match *tensor.shape() {
        [1, tokens, width] if tokens == ids.len() => Ok((tensor, width)),
        _ => Err(Error::usage("EVAL-OUTPUT", "the model does not predict a token after each token")
            .found(format!("{name}{:?}", tensor.shape()))
            .limit(format!("logits[1, {}, vocabulary]", ids.len()))
            .hint("this task is for causal language models")),
    }
}

pub(super) fn run(
    runner: &mut dyn Runner,
    mut reference: Option<&mut dyn Runner>,
    tokenizer: &Tokenizer,
    texts: &TextSet,
    options: &TaskOptions,
    monitor: &dyn Monitor,
) -> Result<Outcome> {
    let window = options.window.unwrap_or_else(|| tokenizer.longest().unwrap_or(WINDOW).min(WINDOW));
    let before = tokenizer.beginning()?;
    let room = window.saturating_sub(before.len());
    let stride = options.stride.unwrap_or(room).min(room);
    if room < 2 || stride == 0 {
        return Err(Error::usage("EVAL-WINDOW", "windows of this size predict nothing")
            .found(format!("window {window}, stride {stride}"))
            .limit("a window of 2 tokens or more, a stride of 1 or more"));
    }
    monitor.phase("tokenise", None);
    let documents =
        texts.documents().map(|text| tokenizer.encode(&text?, false)).collect::<Result<Vec<Vec<u32>>>>()?;
    let cut = windows(&documents, &before, window, stride);
    if cut.is_empty() {
        return Err(
            Error::usage("EVAL-EMPTY", "the texts have no token that could be predicted").field(texts.spec())
        );
    }
    let mut by_document = vec![[0.0; 4]; documents.len()];
    let mut by_window = Vec::with_capacity(cut.len());
    let mut tokens = Distances::default();
    monitor.phase("evaluate", Some(cut.len() as u64));
    for (done, window) in cut.iter().enumerate() {
        monitor.check()?;
        let against: Option<&mut dyn Runner> = match reference.as_mut() {
            Some(reference) => Some(&mut **reference),
            None => None,
        };
        let judged = judge_window(runner, against, window)?;
        let mut sums = [0.0; 4];
        for (id, token) in window.ids[window.first..].iter().zip(&judged) {
            sums[0] += token.nll;
            sums[1] += 1.0;
            sums[2] += tokenizer.token_bytes(*id) as f64;
            sums[3] += token.against.as_ref().map_or(0.0, |a| a.nll);
            tokens.add(token);
        }
        by_document[window.document].iter_mut().zip(&sums).for_each(|(a, b)| *a += b);
        by_window.push(sums);
        monitor.progress(done as u64 + 1);
    }
    by_document.retain(|s| s[1] > 0.0);
    let (blocks, block) =
        if by_document.len() >= DOCUMENTS { (&by_document, "document") } else { (&by_window, "window") };
    let total = resample::sums(&by_window);
    if !total[0].is_finite() {
        return Err(Error::invalid("EVAL-NAN", "the model's predictions are not finite numbers")
            .hint("check the weights with `tinsmith inspect`"));
    }
    let seed = options.seed;
    let interval = |of: &dyn Fn(&[f64; 4]) -> f64| resample::interval(blocks, seed, of);
    let perplexity = |s: &[f64; 4]| (s[0] / s[1]).exp();
    let bits = |s: &[f64; 4]| s[0] / s[2] / std::f64::consts::LN_2;
    let mut metrics = vec![
        metric("perplexity", perplexity(&total), interval(&perplexity)),
        metric("bits_per_byte", bits(&total), interval(&bits)),
        metric("nats_per_token", total[0] / total[1], interval(&|s| s[0] / s[1])),
    ];
    if reference.is_some() {
        let ratio = |s: &[f64; 4]| (s[0] - s[3]) / s[1];
        metrics.push(metric("reference_perplexity", (total[3] / total[1]).exp(), None));
        metrics.push(metric("log_perplexity_ratio", ratio(&total), interval(&ratio)));
        metrics.extend(tokens.metrics());
    }
    let main = &metrics[0];
    let nowhere = Interval { low: main.value, high: main.value };
    let mut notes = Vec::new();
    if main.ci95.is_none() {
        notes.push(format!("no interval: fewer than 8 blocks ({} windows)", cut.len()));
    }
    let quality = Quality {
        metric: "perplexity".into(),
        value: main.value,
        ci95: main.ci95.clone().unwrap_or(nowhere),
        n: total[1] as usize,
        higher_is_better: false,
        correct: Vec::new(),
        data_hash: texts.hash().into(),
    };
    let settings = [
        ("window", json!(window)),
        ("stride", json!(stride)),
        ("begins_with", json!(before)),
        ("documents", json!(documents.len())),
        ("windows", json!(cut.len())),
        ("tokens", json!(documents.iter().map(Vec::len).sum::<usize>())),
        ("predicted", json!(total[1] as u64)),
        ("bytes", json!(total[2] as u64)),
        ("block", json!(block)),
    ];
    let settings = settings.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
    Ok(Outcome { quality, metrics, settings, notes })
}

fn judge_window(
    runner: &mut dyn Runner,
    reference: Option<&mut dyn Runner>,
    window: &Window,
) -> Result<Vec<Token>> {
    let (tensor, width) = logits(runner, &window.ids)?;
    let rows = tensor.to_f32s()?;
    drop(tensor);
    let other = match reference {
        None => None,
        Some(reference) => {
            let (tensor, other) = logits(reference, &window.ids)?;
            if other != width {
                return Err(Error::usage(
                    "EVAL-VOCABULARY",
                    "model and reference have vocabularies of different sizes",
                )
                .found(width)
                .limit(other));
            }
            Some(tensor.to_f32s()?)
        }
    };
    let target = |at: usize| {
        usize::try_from(window.ids[at]).ok().filter(|t| *t < width).ok_or_else(|| {
            Error::usage("EVAL-VOCABULARY", "a token of the text is not in the model's vocabulary")
                .found(window.ids[at])
                .limit(width)
                .hint("the tokenizer is not that of the model")
        })
    };
    (window.first..window.ids.len())
        .into_par_iter()
        .map(|at| {
            let row = (at - 1) * width..at * width;
            Ok(judge(&rows[row.clone()], other.as_ref().map(|o| &o[row]), target(at)?))
        })
        .collect()
}

/// Distances from the reference, token by token.
#[derive(Default)]
struct Distances {
    divergence: Vec<f64>,
    same: usize,
    delta: f64,
    delta_squared: f64,
}

impl Distances {
    fn add(&mut self, token: &Token) {
        let Some(a) = &token.against else { return };
        self.divergence.push(a.divergence);
        self.same += usize::from(a.same_top);
        self.delta += a.delta;
        self.delta_squared += a.delta * a.delta;
    }

    fn metrics(&mut self) -> Vec<super::Metric> {
        let n = self.divergence.len();
        let mean = self.divergence.iter().sum::<f64>() / n.max(1) as f64;
        self.divergence.sort_by(f64::total_cmp);
        let at = |q: f64| stats::quantile(&self.divergence, q);
        let share = self.same as f64 / n.max(1) as f64;
        vec![
            metric("kl_mean", mean, None),
            metric("kl_p50", at(0.5), None),
            metric("kl_p90", at(0.9), None),
            metric("kl_p95", at(0.95), None),
            metric("kl_p99", at(0.99), None),
            metric("kl_p999", at(0.999), None),
            metric("kl_max", at(1.0), None),
            metric("same_top", share, Some(stats::wilson(self.same as u64, n as u64))),
            metric("delta_p_mean", self.delta / n.max(1) as f64, None),
            metric("delta_p_rms", (self.delta_squared / n.max(1) as f64).sqrt(), None),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_predicted_once() {
        let documents = [(0..10).collect::<Vec<u32>>(), vec![15], vec![], (20..24).collect()];
        for (window, stride) in [(4, 4), (4, 2), (4, 1), (100, 100), (2, 2)] {
            for before in [vec![], vec![99]] {
                let stride = stride.min(window - before.len());
                let cut = windows(&documents, &before, window, stride);
                let mut predicted = [0; 24];
                for w in &cut {
                    assert!(w.ids.len() <= window && w.ids.starts_with(&before));
                    w.ids[w.first..].iter().for_each(|id| predicted[*id as usize] += 1);
                }
                assert!(predicted.iter().all(|n| *n <= 1));
                if !before.is_empty() {
                    assert_eq!(predicted.iter().sum::<i32>(), 15, "{window} {stride}");
                } else if stride < window {
                    // All but the first of each document.
                    assert_eq!(predicted.iter().sum::<i32>(), 9 + 3, "{window} {stride}");
                }
            }
        }
        let cut = windows(&documents[..1], &[], 4, 4);
        assert_eq!(cut.iter().map(|w| w.ids.len() - w.first).collect::<Vec<_>>(), [3, 3, 1]);
    }

    #[test]
    fn likelihood_and_divergence_are_those_of_the_definitions() {
        let p = [0.7f64, 0.2, 0.1];
        let q = [0.5f64, 0.3, 0.2];
        // Logits may be shifted by any constant.
        let row = |d: &[f64; 3], shift: f64| d.iter().map(|x| (x.ln() + shift) as f32).collect::<Vec<f32>>();
        let token = judge(&row(&q, 3.0), Some(&row(&p, -50.0)), 1);
        let against = token.against.unwrap();
        let kl: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        assert!((token.nll + 0.3f64.ln()).abs() < 1e-5);
        assert!((against.nll + 0.2f64.ln()).abs() < 1e-5);
        assert!((against.divergence - kl).abs() < 1e-5, "{} {kl}", against.divergence);
        assert!(against.same_top && (against.delta - 0.1).abs() < 1e-5);
        let same = judge(&row(&p, 0.0), Some(&row(&p, 0.0)), 0).against.unwrap();
        assert!(same.divergence < 1e-9);
        let other = judge(&row(&[0.1, 0.2, 0.7], 0.0), Some(&row(&p, 0.0)), 0).against.unwrap();
        assert!(!other.same_top);
    }
}
