//! The criteria by which units are ranked, and how scores are read.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What makes a unit unimportant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Criterion {
    /// Mean over the members of the sum of |w|.
    L1,
    /// Mean over the members of the sum of w^2 (Torch-Pruning's group magnitude).
    #[default]
    L2,
    /// First-order change of the loss without the unit (Molchanov et al. 2019, arXiv 1906.10771).
    Taylor,
    /// |g w - 1/2 mean_j (g_j w)^2| by element (LLM-Pruner, arXiv 2305.11627).
    LlmPruner,
    /// 1/2 w^2 mean_j g_j^2 by element: optimal brain damage with the Fisher diagonal (LeCun et al. 1989).
    Obd,
    /// Mean magnitude of what flows through the unit.
    Activation,
    /// How often what flows through the unit is above zero (Hu et al. 2016, arXiv 1607.03250).
    Frequency,
    /// Variance of what flows through, times the squared weights that it meets (FLAP, arXiv 2312.11983).
    Flap,
    /// Mean square of what flows through, times the squared weights that it meets (Wanda,
    /// arXiv 2306.11695, summed over columns).
    Wanda,
    /// L2 norm over rows of the mean magnitude within a row (Minitron, arXiv 2407.14679).
    Minitron,
    /// Of whole blocks: one minus the mean cosine of what enters and leaves (ShortGPT, arXiv 2403.03853).
    BlockInfluence,
    /// Of whole blocks: the loss without them (BlockPruner, arXiv 2406.10594).
    LossOnRemoval,
    /// A drawn number: what every other criterion has to beat.
    Random,
}

/// What a criterion looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Magnitude,
    Activation,
    Gradient,
    /// Of blocks, not of units.
    Blocks,
    Random,
}

impl fmt::Display for Criterion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Criterion::NAMES.iter().find(|(_, c)| c == self).map_or("", |(n, _)| n))
    }
}

impl Criterion {
    /// All, by name.
    pub const NAMES: [(&str, Criterion); 13] = [
        ("l1", Criterion::L1),
        ("l2", Criterion::L2),
        ("taylor", Criterion::Taylor),
        ("llm-pruner", Criterion::LlmPruner),
        ("obd", Criterion::Obd),
        ("activation", Criterion::Activation),
        ("frequency", Criterion::Frequency),
        ("flap", Criterion::Flap),
        ("wanda", Criterion::Wanda),
        ("minitron", Criterion::Minitron),
        ("block-influence", Criterion::BlockInfluence),
        ("loss-on-removal", Criterion::LossOnRemoval),
        ("random", Criterion::Random),
    ];

    pub(super) fn family(self) -> Family {
        match self {
            Criterion::L1 | Criterion::L2 => Family::Magnitude,
            Criterion::Taylor | Criterion::LlmPruner | Criterion::Obd => Family::Gradient,
            Criterion::BlockInfluence | Criterion::LossOnRemoval => Family::Blocks,
            Criterion::Random => Family::Random,
            _ => Family::Activation,
        }
    }

    /// Whether it looks at data.
    pub fn needs_data(self) -> bool {
        matches!(self.family(), Family::Activation | Family::Gradient | Family::Blocks)
    }

    /// Whether whole blocks leave by it, not units.
    pub fn removes_blocks(self) -> bool {
        self.family() == Family::Blocks
    }

    /// How scores of different groups are made comparable where the settings do not say. Changes of the
    /// loss are comparable as they are; all others stand on scales of their own.
    pub(super) fn normalize(self) -> Normalize {
        match self.family() {
            Family::Gradient => Normalize::Cost,
            _ => Normalize::Mean,
        }
    }
}

/// What the first-order change is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// What flows through the unit times its gradient, summed over positions: equal to the sum over the
    /// weights that it meets, without computing their gradients.
    #[default]
    Gate,
    /// The sum over all weights of the unit, those that make it and those that read it.
    Group,
    /// Each element of those weights for itself.
    Element,
}

/// How changes of the loss are accumulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    /// Squared, row by row (gate) or batch by batch.
    #[default]
    Squared,
    /// Their magnitude.
    Absolute,
}

/// The loss whose slope is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Slope {
    /// The task's where the data are labelled (a text labels itself), else the reference's.
    #[default]
    Auto,
    /// Likelihood of the labels.
    Task,
    /// Divergence from the unpruned model. Its slope is zero where nothing is pruned yet, so random
    /// directions are drawn whose squares are its curvature.
    Reference,
}

/// What a score is divided by before groups are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalize {
    /// Nothing.
    None,
    /// The group's mean.
    Mean,
    /// The group's largest.
    Max,
    /// The parameters that leave with the unit.
    Cost,
}
