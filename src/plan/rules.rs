//! The families of recipes as small rules. A forecast of the model on the device enters a rule, the
//! forecast after its steps leaves; so a combination of rules is their composition in order.

mod blocks;
mod int8;
pub(super) mod isa;
mod optimize;
mod prune;

pub(crate) use prune::expected_loss;

use super::cost::{Class, DeviceFacts, LayerCost};
use super::proposal::Confidence;
use super::recipe::{DataSpec, Step};
use crate::analysis::Summary;

/// A quantity with its uncertainty.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Range {
    pub(super) low: f64,
    pub(super) mid: f64,
    pub(super) high: f64,
}

impl Range {
    pub(super) const fn new(low: f64, mid: f64, high: f64) -> Range {
        Range { low, mid, high }
    }
    pub(super) const fn exactly(value: f64) -> Range {
        Range::new(value, value, value)
    }
}

/// A layer as it will be after the steps so far.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) cost: LayerCost,
    /// Factor on its time: optimistic, middle, pessimistic.
    pub(super) time: Range,
}

/// What is expected of the model after the steps so far.
#[derive(Debug, Clone)]
pub(super) struct Forecast {
    pub(super) layers: Vec<Layer>,
    pub(super) file_bytes: f64,
    /// Whether other rules belong to the recipe.
    pub(super) combined: bool,
    /// Relative loss of quality.
    pub(super) drop: (f64, f64),
    /// Time to produce it.
    pub(super) seconds: f64,
    pub(super) confidence: Confidence,
    pub(super) steps: Vec<Step>,
    pub(super) reasons: Vec<String>,
    pub(super) risks: Vec<String>,
}

impl Forecast {
    pub(super) fn share(&self, of: impl Fn(&Layer) -> bool) -> f64 {
        let ms = |l: &Layer| l.cost.ms * l.time.mid;
        let all: f64 = self.layers.iter().map(ms).sum();
        if all <= 0.0 { 0.0 } else { self.layers.iter().filter(|l| of(l)).map(ms).sum::<f64>() / all }
    }

    /// Adds a loss of quality that comes on top of the others.
    fn lose(&mut self, low: f64, high: f64) {
        self.drop = (self.drop.0 + low, (self.drop.1 + high).min(1.0));
    }

    fn trust(&mut self, confidence: Confidence) {
        let rank = |c: Confidence| match c {
            Confidence::High => 0,
            Confidence::Medium => 1,
            Confidence::Low => 2,
        };
        if rank(confidence) > rank(self.confidence) {
            self.confidence = confidence;
        }
    }
}

/// What all rules may look at.
pub(super) struct Facts<'a> {
    pub(super) summary: &'a Summary,
    pub(super) device: &'a DeviceFacts,
    pub(super) data: &'a DataSpec,
    /// Predicted or measured time of the model as it is, ms.
    pub(super) base_ms: f64,
}

/// A family of recipes.
pub(super) trait Rule: Sync {
    /// Part of the proposal's name.
    fn name(&self) -> String;
    /// Why it is not proposed for this model, device and data.
    fn refuse(&self, facts: &Facts<'_>, now: &Forecast) -> Option<String>;
    /// Its step, and what the step changes in the forecast.
    fn apply(&self, facts: &Facts<'_>, forecast: &mut Forecast);
}

/// Combinations to consider, each in the order of its steps: prune, then optimise, then quantise, so that
/// the quantiser sees convolutions with their norms folded in.
pub(super) const RECIPES: &[&[&dyn Rule]] = &[
    &[&optimize::Optimize],
    &[&optimize::Optimize, &int8::Dynamic],
    &[&blocks::Blocks],
    &[&optimize::Optimize, &int8::Static],
    &[&prune::Prune { ratio: 0.2 }, &optimize::Optimize],
    &[&prune::Prune { ratio: 0.4 }, &optimize::Optimize],
    &[&prune::Prune { ratio: 0.2 }, &optimize::Optimize, &int8::Static],
    &[&prune::Prune { ratio: 0.2 }, &optimize::Optimize, &int8::Dynamic],
];

fn percent(part: f64) -> String {
    // An empty sum is minus zero.
    format!("{:.0} %", 100.0 * part + 0.0)
}

fn is_conv(layer: &Layer) -> bool {
    matches!(layer.cost.class, Class::Conv | Class::Depthwise)
}
