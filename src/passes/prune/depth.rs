//! Depth pruning: residual branches of a float graph are found ([`blocks`]), scored on data
//! ([`influences`]) or by a loss without each ([`losses`], [`in_turn`]), and taken out ([`without`]). What
//! leaves is a graph with fewer layers, its caches renumbered. Knows no data set and no loss: both are
//! handed in.

mod find;
mod influence;
mod loss;
mod remove;
mod spell;

pub use find::blocks;
pub use influence::influences;
pub use loss::{Step, in_turn, losses};
pub use remove::without;
pub use spell::spelled;

use crate::graph::{NodeIndex, ValueId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An attention.
    Attention,
    /// Linear layers and no attention.
    FeedForward,
    /// Convolutions and no attention.
    Convolution,
    /// An attention and the feed-forward block behind it.
    Layer,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Attention => "attention",
            Kind::FeedForward => "feed-forward",
            Kind::Convolution => "convolution",
            Kind::Layer => "layer",
        })
    }
}

/// What leaves at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// An attention together with the feed-forward block behind it (ShortGPT, arXiv 2403.03853).
    #[default]
    Layer,
    /// Every residual branch by itself (BlockPruner, arXiv 2406.10594).
    Block,
}

/// A part of a graph that adds to a value and can be left out: `exit` becomes `entry`.
#[derive(Debug, Clone)]
pub struct Block {
    /// What it holds.
    pub kind: Kind,
    /// The value that it adds to.
    pub entry: ValueId,
    /// The value behind it, of the same shape: a sum, or the norm that alone reads the sum.
    pub exit: ValueId,
    /// Nodes that leave with it, ascending.
    pub nodes: Vec<NodeIndex>,
    /// Their names.
    pub labels: Vec<String>,
    /// Parameters that leave with it: of weights that nothing else reads.
    pub parameters: u64,
    /// Multiply-accumulates of its nodes under the facts that it was found with; `None` where a size is open.
    pub macs: Option<u64>,
}
