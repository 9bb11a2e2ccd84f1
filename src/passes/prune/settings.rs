//! Settings of the pass, as a recipe's step has them.

use super::criterion::{Criterion, Family, Form, Normalize, Power, Slope};
use super::depth::Unit;
use super::repair::Repair;
use super::target::{Amount, Target};
use crate::error::{Error, Result};
use crate::execute::Checkpointing;
use crate::passes::recover::Recover;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Between which units is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// All units of the graph, by score over the mean score of their group: groups of little use shrink
    /// more.
    #[default]
    Global,
    /// The units of each group; every group loses the same part.
    Layer,
    /// All units of the graph, group by group where the loss rises least for a parameter, by curves that
    /// are measured on the data.
    Sensitivity,
}

/// What `ratio` is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Of {
    /// The parameters that would leave if every unit that may leave did.
    #[default]
    Prunable,
    /// All parameters of the graph.
    Total,
}

/// Most rounds of a step.
const MOST_ROUNDS: usize = 100;

/// Settings of the pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What makes a unit unimportant.
    pub criterion: Criterion,
    /// Part of the parameters to remove, between 0 and 1; met to within one rounding unit of one group.
    pub ratio: f64,
    /// What the result may still have, in place of `ratio`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// Part of the units to remove from some groups, whatever their scores beside others: by kind
    /// (`heads`, `neurons`, `channels`, `width`), by a name pattern of a node or weight, or by number
    /// (`group 12`, as `inspect` numbers them). `ratio` and `target` are then about the other groups.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ratios: BTreeMap<String, f64>,
    /// What `ratio` is a part of.
    pub of: Of,
    /// Between which units is chosen.
    pub scope: Scope,
    /// Channel counts that are cut stay multiples of this. A group with fewer than twice as many falls
    /// back to the half, the quarter and so on.
    pub round_to: usize,
    /// Fewest units that a group keeps.
    pub min_units: usize,
    /// Smallest part of its units that a group keeps.
    pub min_keep: f64,
    /// Name patterns (substrings, `*` wild) of nodes and weights whose groups stay as they are, or
    /// numbers of groups (`group 12`).
    #[serde(alias = "protect")]
    pub exclude: Vec<String>,
    /// Let axes of graph inputs and outputs shrink.
    pub allow_interface_change: bool,
    /// What the first-order change is taken over (`taylor`).
    pub form: Form,
    /// How changes of the loss are accumulated (`taylor`).
    pub power: Power,
    /// The loss whose slope is taken (`taylor`, `llm-pruner`, `obd`).
    pub slope: Slope,
    /// How scores of different groups are made comparable; the criterion's own way where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalize: Option<Normalize>,
    /// What leaves at once, by criteria of blocks.
    pub unit: Unit,
    /// Whether the width of a residual stream shrinks with the rest. Every layer reads it through a norm, so
    /// that a cut changes all of them at once, and criteria that look at one layer do not see that. A
    /// ratio of its own in `ratios` cuts it in any case.
    pub width: bool,
    /// How many times is cut, repaired and trained, each time by the same part, until `ratio` or `target` is
    /// met.
    pub rounds: usize,
    /// How what is left makes up for what was taken.
    pub repair: Repair,
    /// Penalty of `repair = "ridge"` on changes, relative to the mean square of what the product reads.
    pub ridge: f64,
    /// Training behind the cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recover: Option<Recover>,
    /// Whether reverse passes (of criteria by slope, and of training) compute again what they need of the
    /// forward pass, in less memory: `auto`, `off` or a number of segments. The result is the same.
    pub checkpointing: Checkpointing,
    /// Most rows of the calibration data to look at; 0 for all.
    pub samples: usize,
    /// Rows at once; 0 leaves it to the data.
    pub batch: usize,
    /// Most rows that a point of a sensitivity curve looks at.
    pub sensitivity_samples: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            criterion: Criterion::default(),
            ratio: 0.0,
            target: None,
            ratios: BTreeMap::new(),
            of: Of::default(),
            scope: Scope::default(),
            round_to: 8,
            min_units: 1,
            min_keep: 0.1,
            exclude: vec![],
            allow_interface_change: false,
            form: Form::default(),
            power: Power::default(),
            slope: Slope::default(),
            normalize: None,
            unit: Unit::default(),
            width: false,
            rounds: 1,
            repair: Repair::default(),
            ridge: 0.01,
            recover: None,
            checkpointing: Checkpointing::default(),
            samples: 128,
            batch: 0,
            sensitivity_samples: 8,
        }
    }
}

impl Settings {
    /// `Usage` where a setting is out of range, naming the step's field.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |field: &str, what: &str, found: String, limit: &str| {
            Err(Error::usage("PRUNE-SETTINGS", what.to_string())
                .field(format!("step.{field}"))
                .found(found)
                .limit(limit)
                .hint("`tinsmith prune --help` tells what the settings are"))
        };
        if let Some(target) = &self.target {
            let (found, fits) = match target.one() {
                None => {
                    let what = "one target is needed";
                    return refuse("target", what, target.names(), "parameters, macs, bytes or latency");
                }
                Some((_, Amount::Part(part))) => (part.to_string(), part > 0.0 && part < 1.0),
                Some((_, Amount::Number(n))) => (n.to_string(), n > 0),
            };
            if !fits {
                let what = "what may remain is out of range";
                return refuse(
                    "target",
                    what,
                    found,
                    "a part above 0 and below 1, or a size such as \"20MB\"",
                );
            }
            if self.ratio != 0.0 {
                let what = "ratio and target contradict each other";
                return refuse("ratio", what, self.ratio.to_string(), "one of both");
            }
        }
        if let Some((name, ratio)) = self.ratios.iter().find(|(_, r)| !(0.0..1.0).contains(*r)) {
            let what = "the part of the units to remove is out of range";
            return refuse(&format!("ratios.{name}"), what, ratio.to_string(), "from 0, below 1");
        }
        if !(0.0..1.0).contains(&self.ratio) {
            let what = "the part of the parameters to remove is out of range";
            return refuse("ratio", what, self.ratio.to_string(), "above 0, below 1");
        }
        if !self.says_how_much() {
            let what = "nothing says how much is to leave";
            return refuse(
                "ratio",
                what,
                self.ratio.to_string(),
                "a ratio above 0 and below 1, target or ratios",
            );
        }
        if !(0.0..1.0).contains(&self.min_keep) {
            let what = "the part of the units to keep is out of range";
            return refuse("min_keep", what, self.min_keep.to_string(), "from 0, below 1");
        }
        if let Some(recover) = &self.recover {
            recover.check()?;
        }
        if self.criterion.family() == Family::Blocks && self.repair != Repair::None {
            let what = "what is left of whole blocks has nothing to repair";
            return refuse("repair", what, format!("{:?}", self.repair).to_lowercase(), "none");
        }
        if !(self.ridge >= 0.0 && self.ridge.is_finite()) {
            return refuse("ridge", "the penalty is out of range", self.ridge.to_string(), "0 or more");
        }
        if !(1..=MOST_ROUNDS).contains(&self.rounds) {
            let limit = format!("from 1 to {MOST_ROUNDS}");
            return refuse("rounds", "the number of rounds is out of range", self.rounds.to_string(), &limit);
        }
        if self.round_to == 0 {
            return refuse("round_to", "counts cannot be multiples of zero", "0".into(), "at least 1");
        }
        Ok(())
    }
}
