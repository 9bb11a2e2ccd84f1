//! Weights in blocks of 4 bits, for models that write one token at a time and wait for weights.

use super::int8::already;
use super::{Facts, Forecast, Layer, Range, Rule, percent};
use crate::plan::cost::Class;
use crate::plan::proposal::Confidence;
use crate::plan::recipe::Step;

/// Least part of the file that must be weights of products.
const WORTH: f64 = 0.3;
/// Bytes of 4 bits, a scale of 32 bits and a zero point in blocks of 32, as a part of those of f32.
const LEFT: f64 = 0.165;

/// Weights of products and tables in blocks.
pub(super) struct Blocks;

fn product(layer: &Layer) -> bool {
    layer.cost.class == Class::Product && !layer.cost.quantized
}

impl Rule for Blocks {
    fn name(&self) -> String {
        "weight-int4".into()
    }

    fn refuse(&self, facts: &Facts<'_>, now: &Forecast) -> Option<String> {
        let part = weights(now) / now.file_bytes.max(1.0);
        if already(now) {
            Some("the model is quantised already".into())
        } else if facts.summary.kv_cache.is_none() {
            Some(
                "it pays where tokens are written one at a time, and the model has no key-value cache".into(),
            )
        } else if facts.summary.file_bytes * 2 < facts.summary.parameters * 3 {
            Some("its weights are stored in few bits already".into())
        } else if part < WORTH {
            Some(format!("only {} of the file are weights of products", percent(part)))
        } else {
            None
        }
    }

    fn apply(&self, _: &Facts<'_>, forecast: &mut Forecast) {
        let bytes = weights(forecast);
        forecast.reasons.push(format!(
            "writing a token reads all weights, {:.1} times fewer bytes of products in 4 bits; text that is read \
             at once gains little",
            1.0 / LEFT
        ));
        forecast.file_bytes -= bytes * (1.0 - LEFT);
        for layer in forecast.layers.iter_mut().filter(|l| product(l)) {
            layer.cost.weight_bytes = (layer.cost.weight_bytes as f64 * LEFT) as u64;
            // Levels are spelled out beside the products of a long text.
            let time = layer.time;
            layer.time = Range::new(time.low * 0.8, time.mid, time.high * 1.3);
        }
        forecast.steps.push(Step::new("quantize").with("scheme", "weight-int4").with("rounding", "mse"));
        forecast.seconds += 1.0 + bytes / 50e6;
        forecast.lose(0.0, 0.05);
        forecast.trust(Confidence::Medium);
        forecast.risks.push(
            "4 bits cost quality that depends on the model: compare perplexity, and round by gptq with \
             calibration data where it is too much"
                .into(),
        );
    }
}

/// Bytes of the weights of products.
fn weights(forecast: &Forecast) -> f64 {
    forecast.layers.iter().filter(|l| product(l)).map(|l| l.cost.weight_bytes as f64).sum()
}
