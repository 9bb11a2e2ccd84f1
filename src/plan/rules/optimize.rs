//! Graph clean-up: folding and fusing what gives the same outputs.

use super::{Facts, Forecast, Range, Rule};
use crate::plan::cost::Class;
use crate::plan::recipe::Step;

/// Constant folding, dead code, identities, batch norms into convolutions.
pub(super) struct Optimize;

/// Operators that folding and fusing usually remove.
const REMOVABLE: [&str; 10] = [
    "BatchNormalization",
    "Identity",
    "Dropout",
    "Constant",
    "Shape",
    "Unsqueeze",
    "Squeeze",
    "Cast",
    "ConstantOfShape",
    "Range",
];

impl Rule for Optimize {
    fn name(&self) -> String {
        "optimize".into()
    }

    fn refuse(&self, facts: &Facts<'_>, _: &Forecast) -> Option<String> {
        facts.summary.layers.is_empty().then(|| "the model has no nodes".into())
    }

    fn apply(&self, facts: &Facts<'_>, forecast: &mut Forecast) {
        let candidates = facts.summary.layers.iter().filter(|l| REMOVABLE.contains(&l.op.as_str())).count();
        for layer in &mut forecast.layers {
            let op = facts.summary.layers.get(layer.cost.index).map_or("", |l| l.op.as_str());
            if REMOVABLE.contains(&op) && layer.cost.class == Class::Other {
                // The runtime folds most of them when it loads the model, so the gain may be nothing.
                layer.time = Range::new(layer.time.low * 0.1, layer.time.mid * 0.8, layer.time.high);
            }
        }
        forecast.steps.push(Step::new("optimize"));
        forecast.seconds += 0.2 + facts.summary.file_bytes as f64 / 200e6;
        if !forecast.combined {
            forecast.reasons.push(format!(
                "{candidates} of {} nodes can be folded or fused without changing an output",
                facts.summary.layers.len()
            ));
            forecast
                .risks
                .push("ONNX Runtime does most of it when it loads a model; the gain may be nothing".into());
        }
    }
}
