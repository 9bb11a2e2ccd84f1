//! 8-bit integers: dynamic for products with weights, static with calibration for convolutional nets.

use super::isa::int8_speed;
use super::{Facts, Forecast, Layer, Range, Rule, is_conv, percent};
use crate::hardware::IntegerSet;
use crate::plan::cost::Class;
use crate::plan::proposal::Confidence;
use crate::plan::recipe::Step;

/// Smallest share of the time in quantisable work for which the overhead around it pays.
const WORTH: f64 = 0.3;
/// Batches of calibration that the static scheme runs through the executor, and how much slower than
/// the runtime the executor is.
const CALIBRATION: f64 = 100.0;
const EXECUTOR: f64 = 4.0;

/// Weights in 8 bits, activations quantised on the fly.
pub(super) struct Dynamic;

/// Weights and activations in 8 bits with ranges from calibration data (QDQ form).
pub(super) struct Static;

fn product(layer: &Layer) -> bool {
    layer.cost.class == Class::Product && !layer.cost.quantized
}

fn conv(layer: &Layer) -> bool {
    is_conv(layer) && !layer.cost.quantized
}

pub(super) fn already(now: &Forecast) -> bool {
    now.layers.iter().any(|l| l.cost.quantized)
}

impl Rule for Dynamic {
    fn name(&self) -> String {
        "dynamic-int8".into()
    }

    fn refuse(&self, _: &Facts<'_>, now: &Forecast) -> Option<String> {
        let (products, convs) = (now.share(product), now.share(conv));
        if already(now) {
            Some("the model is quantised already".into())
        } else if convs > products {
            Some(format!(
                "{} of the time is convolution; dynamic int8 leaves convolutions in float because \
                 ConvInteger is several times slower",
                percent(convs)
            ))
        } else if products < WORTH {
            Some(format!("only {} of the time is in products with weights", percent(products)))
        } else {
            None
        }
    }

    fn apply(&self, facts: &Facts<'_>, forecast: &mut Forecast) {
        let speed = int8_speed(&facts.device.isa);
        forecast.reasons.push(format!(
            "{} of the predicted time is in products with weights; {}",
            percent(forecast.share(product)),
            speed.source
        ));
        let share = forecast.share(product);
        quantize(forecast, product, speed.product, 1.15);
        forecast.steps.push(Step::new("quantize").with("scheme", "dynamic-int8"));
        forecast.seconds += 0.3 + facts.summary.file_bytes as f64 / 300e6;
        forecast.lose(0.0, 0.015);
        forecast.trust(Confidence::Medium);
        saturation(facts, forecast);
        if share < 0.6 {
            forecast.risks.push("quantising activations at run time costs a pass over each of them".into());
        }
    }
}

impl Rule for Static {
    fn name(&self) -> String {
        "static-int8".into()
    }

    fn refuse(&self, facts: &Facts<'_>, now: &Forecast) -> Option<String> {
        let (products, convs) = (now.share(product), now.share(conv));
        if already(now) {
            Some("the model is quantised already".into())
        } else if convs < WORTH {
            Some(format!(
                "only {} of the time is convolution, {} is products with weights, where dynamic int8 \
                 needs no calibration",
                percent(convs),
                percent(products)
            ))
        } else if facts.data.calibration.is_none() && facts.data.train.is_none() {
            Some("it needs calibration data: pass --calibration".into())
        } else {
            None
        }
    }

    fn apply(&self, facts: &Facts<'_>, forecast: &mut Forecast) {
        let speed = int8_speed(&facts.device.isa);
        let depthwise = forecast.share(|l| l.cost.class == Class::Depthwise);
        forecast.reasons.push(format!(
            "{} of the predicted time is convolution; {}",
            percent(forecast.share(conv)),
            speed.source
        ));
        quantize(forecast, |l| l.cost.class == Class::Conv && !l.cost.quantized, speed.conv, 1.1);
        quantize(forecast, product, speed.product, 1.1);
        let little = Range::new(0.8, 1.1, 1.8);
        quantize(forecast, |l| l.cost.class == Class::Depthwise && !l.cost.quantized, little, 1.1);
        forecast.steps.push(Step::new("quantize").with("scheme", "static-int8").with("calibrator", "mse"));
        forecast.seconds += 0.5 + CALIBRATION * EXECUTOR * facts.base_ms / 1e3;
        forecast.lose(0.0, if depthwise > 0.1 { 0.04 } else { 0.015 });
        forecast.trust(Confidence::Medium);
        saturation(facts, forecast);
        if depthwise > 0.1 {
            forecast.risks.push(format!(
                "{} of the time is depthwise convolution, which gains little and loses most in 8 bits",
                percent(depthwise)
            ));
        }
    }
}

fn saturation(facts: &Facts<'_>, forecast: &mut Forecast) {
    if IntegerSet::of(&facts.device.isa).is_some_and(|s| s.saturates) {
        forecast.risks.push(format!(
            "{} adds pairs of 8-bit products in 16 bits, which can saturate; weights get 7 bits for it, which \
             costs some accuracy",
            facts.device.isa
        ));
    }
}

/// Divides the time of the chosen layers by `speed`, their weights by four; `overhead` is what the
/// pessimistic case pays for conversions at the borders.
fn quantize(forecast: &mut Forecast, chosen: impl Fn(&Layer) -> bool, speed: Range, overhead: f64) {
    for layer in forecast.layers.iter_mut().filter(|l| chosen(l)) {
        let bytes = layer.cost.weight_bytes as f64;
        forecast.file_bytes -= bytes * 0.74;
        layer.cost.weight_bytes = (bytes * 0.26) as u64;
        layer.time = Range::new(
            layer.time.low / speed.high,
            layer.time.mid / speed.mid,
            layer.time.high / speed.low * overhead,
        );
    }
}
