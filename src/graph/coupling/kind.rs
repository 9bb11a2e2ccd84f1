//! What the units of a group are: the places of a group and the operators that touch them enter, a
//! [`Kind`] leaves. Goes by structure alone and knows no names of weights.

use super::Place;
use crate::graph::constants::Constants;
use crate::graph::{Facts, Graph, Node, NodeIndex, Uses, ValueId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// What the units of a group are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Heads of an attention, or key heads with their query heads.
    Heads,
    /// Output features of linear layers, as between the two layers of a feed-forward block.
    Neurons,
    /// Output channels of convolutions.
    Channels,
    /// The width of a residual stream.
    Width,
    /// None of these.
    #[default]
    Other,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 5] = [Kind::Heads, Kind::Neurons, Kind::Channels, Kind::Width, Kind::Other];

    /// The word, as recipes and reports have it.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Heads => "heads",
            Kind::Neurons => "neurons",
            Kind::Channels => "channels",
            Kind::Width => "width",
            Kind::Other => "other",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

const ATTENTIONS: &[&str] = &["Attention", "GroupQueryAttention", "MultiHeadAttention"];
const NORMS: &[&str] = &[
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "LpNormalization",
    "MeanVarianceNormalization",
    "RMSNormalization",
    "ReduceL2",
    "ReduceMean",
    "ReduceSumSquare",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
];
const SUMS: &[&str] = &["Add", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "Sum"];
/// Sums of a residual stream: one block adds once, and one block is no stream.
const STREAM: usize = 2;

/// Tells kinds of the groups of one graph.
pub(super) struct Kinds<'a> {
    graph: &'a Graph,
    facts: &'a Facts,
    uses: &'a Uses,
    /// By value: whether it is the same in every run.
    fixed: Vec<bool>,
}

impl<'a> Kinds<'a> {
    pub(super) fn of(graph: &'a Graph, facts: &'a Facts, uses: &'a Uses, constants: &Constants<'_>) -> Self {
        Kinds { graph, facts, uses, fixed: constants.fixed() }
    }

    /// The kind of a group on `places`, which are sorted, with its `statistics`.
    pub(super) fn tell(&self, places: &[Place], statistics: &[NodeIndex]) -> Kind {
        let on = Touched { kinds: self, places };
        let mut nodes: BTreeSet<NodeIndex> = BTreeSet::new();
        for p in places {
            nodes.extend(self.uses.producer(p.value).map(|(i, _)| i));
            nodes.extend(self.uses.consumers(p.value).iter().map(|(i, _)| *i));
        }
        let nodes: Vec<(NodeIndex, &Node)> = nodes.into_iter().map(|i| (i, self.graph.node(i))).collect();
        let any = |holds: &dyn Fn(&Node) -> bool| nodes.iter().any(|(_, n)| holds(n));
        let softmax = nodes.iter().any(|(i, n)| n.is("Softmax") && !statistics.contains(i));
        if any(&|n| on.attention(n)) || (softmax && any(&|n| on.batched(n))) {
            return Kind::Heads;
        }
        let norm = statistics.iter().any(|i| NORMS.contains(&self.graph.node(*i).op_type.as_str()));
        let sums = nodes.iter().filter(|(_, n)| on.sum(n)).count();
        // Elements of a head are no features.
        if any(&|n| on.mixed(n)) {
            return Kind::Other;
        }
        if any(&|n| on.table(n)) || (norm && sums >= STREAM) {
            return Kind::Width;
        }
        match () {
            () if any(&|n| on.convolved(n)) => Kind::Channels,
            () if any(&|n| on.features(n)) => Kind::Neurons,
            () => Kind::Other,
        }
    }
}

/// The places of one group.
struct Touched<'a> {
    kinds: &'a Kinds<'a>,
    places: &'a [Place],
}

impl Touched<'_> {
    fn rank(&self, v: ValueId) -> Option<usize> {
        self.kinds.facts.get(v).and_then(|f| f.rank())
    }
    fn is_fixed(&self, v: ValueId) -> bool {
        self.kinds.fixed[v.0 as usize]
    }
    fn value(&self, v: ValueId) -> bool {
        let at = self.places.partition_point(|p| p.value < v);
        self.places.get(at).is_some_and(|p| p.value == v)
    }
    fn axis(&self, v: ValueId, axis: usize) -> bool {
        self.places.binary_search_by_key(&(v, axis), |p| (p.value, p.axis)).is_ok()
    }
    /// The axis counted from the last one on.
    fn counted_back(&self, v: ValueId, back: usize) -> bool {
        self.rank(v).and_then(|r| r.checked_sub(back)).is_some_and(|axis| self.axis(v, axis))
    }

    /// Lies on the axis of an attention's heads.
    fn attention(&self, n: &Node) -> bool {
        let ends = n.inputs.iter().take(3).chain(n.outputs.first()).flatten();
        ATTENTIONS.contains(&n.op_type.as_str())
            && ends.into_iter().any(|v| match self.rank(*v) {
                Some(4) => self.axis(*v, 1),
                Some(rank) => rank > 0 && self.axis(*v, rank - 1),
                None => false,
            })
    }
    /// Counts products of activations: an axis of both operands and of the result.
    fn batched(&self, n: &Node) -> bool {
        (n.is("MatMul") || n.is("Einsum"))
            && n.inputs.iter().flatten().count() == 2
            && n.inputs.iter().flatten().all(|v| !self.is_fixed(*v) && self.value(*v))
            && n.outputs.iter().flatten().any(|v| self.value(*v))
    }
    /// Multiplies activations with each other as matrices, attends, or turns what will.
    fn mixed(&self, n: &Node) -> bool {
        ATTENTIONS.contains(&n.op_type.as_str())
            || n.op_type == "RotaryEmbedding"
            || (n.is("MatMul") && n.inputs.iter().flatten().all(|v| !self.is_fixed(*v)))
    }
    /// Adds activations to each other.
    fn sum(&self, n: &Node) -> bool {
        SUMS.contains(&n.op_type.as_str())
            && n.inputs.iter().take(2).flatten().filter(|v| !self.is_fixed(**v) && self.value(**v)).count()
                == 2
    }
    /// Is what the rows of an embedding hold.
    fn table(&self, n: &Node) -> bool {
        let (true, Some(Some(v))) = (n.is("Gather"), n.inputs.first()) else { return false };
        let rank = self.rank(*v).unwrap_or(0) as i64;
        let axis = n.attributes.int("axis", 0).unwrap_or(0);
        let axis = if axis < 0 { axis + rank } else { axis };
        self.is_fixed(*v) && (0..rank).any(|a| a != axis && self.axis(*v, a as usize))
    }
    fn convolved(&self, n: &Node) -> bool {
        let weight = |slot: usize| n.inputs.get(slot).copied().flatten();
        match n.op_type.as_str() {
            "Conv" | "ConvInteger" | "DeformConv" => weight(1).is_some_and(|w| self.axis(w, 0)),
            "QLinearConv" => weight(3).is_some_and(|w| self.axis(w, 0)),
            // Groups share the outputs among them, so the result tells more than the weight.
            "ConvTranspose" => {
                weight(1).is_some_and(|w| self.axis(w, 1))
                    || n.outputs.iter().flatten().any(|y| self.axis(*y, 1))
            }
            _ => false,
        }
    }
    /// Is a free axis of a weight in a product.
    fn features(&self, n: &Node) -> bool {
        let operand = |slot: usize| n.inputs.get(slot).copied().flatten().filter(|v| self.is_fixed(*v));
        let turned = |name: &str| n.attributes.int(name, 0).unwrap_or(0) != 0;
        match n.op_type.as_str() {
            "MatMul" | "MatMulInteger" => {
                operand(1).is_some_and(|w| self.counted_back(w, 1))
                    || operand(0).is_some_and(|w| self.counted_back(w, 2))
            }
            "Gemm" => {
                operand(1).is_some_and(|w| self.counted_back(w, if turned("transB") { 2 } else { 1 }))
                    || operand(0).is_some_and(|w| self.counted_back(w, if turned("transA") { 1 } else { 2 }))
            }
            "Einsum" => {
                n.inputs.iter().flatten().any(|v| self.is_fixed(*v) && self.value(*v))
                    && n.outputs.iter().flatten().any(|v| self.value(*v))
            }
            _ => false,
        }
    }
}
