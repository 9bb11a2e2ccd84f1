//! Structured pruning: whole channels and neurons leave, so that the shapes really shrink.

use super::{Facts, Forecast, Range, Rule, percent};
use crate::plan::proposal::Confidence;
use crate::plan::recipe::Step;

/// Removes a part of the parameters of the prunable layers, smallest L2 norm first.
pub(super) struct Prune {
    /// Part of the prunable parameters, 0 to 1.
    pub(super) ratio: f64,
}

/// Smallest share of the parameters that must be prunable.
const WORTH: f64 = 0.1;

impl Rule for Prune {
    fn name(&self) -> String {
        format!("prune-{:.0}", 100.0 * self.ratio)
    }

    fn refuse(&self, facts: &Facts<'_>, now: &Forecast) -> Option<String> {
        let groups = facts.summary.groups.iter().filter(|g| g.prunable && g.units > 8).count();
        let part = part(now);
        if groups == 0 {
            let pin = facts.summary.groups.iter().find_map(|g| g.pinned_by.as_deref());
            Some(match pin {
                Some(pin) => format!("no channels can leave: {pin}"),
                None => "no group of channels can leave".into(),
            })
        } else if part < WORTH {
            Some(format!("only {} of the weights are in layers that can shrink", percent(part)))
        } else {
            None
        }
    }

    fn apply(&self, facts: &Facts<'_>, forecast: &mut Forecast) {
        let groups = facts.summary.groups.iter().filter(|g| g.prunable).count();
        forecast.reasons.push(format!(
            "{groups} coupling groups hold {} of the weights; {} of those leave",
            percent(part(forecast)),
            percent(self.ratio)
        ));
        for layer in forecast.layers.iter_mut().filter(|l| l.cost.prunable) {
            let bytes = layer.cost.weight_bytes as f64;
            forecast.file_bytes -= bytes * self.ratio;
            layer.cost.weight_bytes = (bytes * (1.0 - self.ratio)) as u64;
            // Narrow layers lose efficiency, so time falls less than work.
            let keep = |of: f64| 1.0 - of * self.ratio;
            layer.time = Range::new(
                layer.time.low * keep(1.1),
                layer.time.mid * keep(0.8),
                layer.time.high * keep(0.3),
            );
        }
        // Without training after it, a cut of the smallest norms of the whole net takes too much of a few
        // layers: on the digits sample 20 % cost 85 points of accuracy that way, and 6 spread evenly.
        forecast.steps.push(
            Step::new("prune").with("criterion", "l2").with("ratio", self.ratio).with("scope", "layer"),
        );
        forecast.seconds += 0.3 + facts.summary.file_bytes as f64 / 200e6;
        // One shot by norm without retraining: published losses grow faster than the ratio.
        let (low, high) = expected_loss(self.ratio);
        forecast.lose(low, high);
        forecast.trust(Confidence::Low);
        forecast.risks.push(
            "how much a cut by weight norm costs without retraining depends on the model: measure it".into(),
        );
    }
}

/// Relative loss of quality, low and high, that a cut of a part of the parameters is expected to cost
/// without training behind it.
pub(crate) fn expected_loss(part: f64) -> (f64, f64) {
    (0.05 * part, 1.6 * part.max(0.0).powf(1.5))
}

/// Part of the weights in layers that can shrink.
fn part(forecast: &Forecast) -> f64 {
    let all: u64 = forecast.layers.iter().map(|l| l.cost.weight_bytes).sum();
    let prunable: u64 = forecast.layers.iter().filter(|l| l.cost.prunable).map(|l| l.cost.weight_bytes).sum();
    if all == 0 { 0.0 } else { prunable as f64 / all as f64 }
}
