//! What a forward pass keeps for its reverse. A graph and the wanted values enter, then where the node order
//! is cut into segments; out comes which values stay from the first pass on and which nodes the reverse pass
//! evaluates again (gradient checkpointing: Chen et al. 2016, "Training Deep Nets with Sublinear Memory
//! Cost"). Everything behind the last cut is kept as it is without cuts.

use super::backward::captured;
use super::sizes::Sizes;
use crate::graph::{Graph, Node, NodeIndex, Uses, ValueId};
use crate::ops::Barrier;
use std::collections::HashSet;
use std::ops::Range;

/// Segments of the node order, for one graph and one set of wanted values.
#[derive(Debug)]
pub struct Segments {
    pub(super) wanted: HashSet<ValueId>,
    /// By value: it carries a gradient towards the wanted ones.
    pub(super) carries: Vec<bool>,
    /// By value: the reverse pass reads its elements.
    pub(super) elements: Vec<bool>,
    /// By value: the reverse pass reads its shape.
    pub(super) shapes: Vec<bool>,
    /// By value: it stays from the forward pass on.
    pub(super) stays: Vec<bool>,
    /// By node: the reverse pass evaluates it again.
    again: Vec<bool>,
    /// First node of each segment, from 0 on, and the number of nodes.
    bounds: Vec<NodeIndex>,
}

impl Segments {
    /// One segment: nothing is computed twice.
    pub fn whole(graph: &Graph, wanted: &[ValueId]) -> Segments {
        Segments::at(graph, &graph.uses(), wanted, &[])
    }

    /// At most `count` segments that keep about as much each, cut where the fewest bytes are live.
    pub fn cut(graph: &Graph, wanted: &[ValueId], sizes: &Sizes, count: usize) -> Segments {
        let (uses, whole) = (graph.uses(), Segments::whole(graph, wanted));
        let kept = whole.kept_before(graph, sizes);
        let live = live(graph, &uses, sizes);
        let total = kept.last().copied().unwrap_or(0);
        let mut cuts = Vec::with_capacity(count);
        for k in 1..count as u64 {
            let at = |halves: u64| (u128::from(total) * u128::from(halves) / (2 * count as u128)) as u64;
            let (from, ideal, to) = (at(2 * k - 1), at(2 * k), at(2 * k + 1));
            let first = kept.partition_point(|b| *b < from).max(cuts.last().map_or(1, |c| c + 1));
            let last = kept.partition_point(|b| *b < to).min(graph.nodes().len());
            cuts.extend((first..last).min_by_key(|n| (live[*n], kept[*n].abs_diff(ideal))));
        }
        Segments::at(graph, &uses, wanted, &cuts)
    }

    /// Segments that begin at these nodes, beside the first; `cuts` ascend.
    fn at(graph: &Graph, uses: &Uses, wanted: &[ValueId], cuts: &[NodeIndex]) -> Segments {
        let nodes = graph.nodes();
        let bounds: Vec<NodeIndex> = [0].iter().chain(cuts).chain(&[nodes.len()]).copied().collect();
        let mut of = Segments {
            wanted: wanted.iter().copied().collect(),
            carries: vec![false; graph.value_count()],
            elements: vec![false; graph.value_count()],
            shapes: vec![false; graph.value_count()],
            stays: vec![],
            again: vec![false; nodes.len()],
            bounds,
        };
        of.read(graph, wanted);
        let segment = |n: NodeIndex| of.bounds.partition_point(|b| *b <= n);
        // What another segment reads, or cannot be had again.
        let mut fixed: Vec<bool> = (0..graph.value_count() as u32)
            .map(|v| {
                let producer = uses.producer(ValueId(v)).map(|(n, _)| n);
                let elsewhere = |own| uses.consumers(ValueId(v)).iter().any(|(n, _)| segment(*n) != own);
                producer.is_none_or(|n| !repeats(&nodes[n]) || elsewhere(segment(n)))
            })
            .collect();
        graph.outputs().iter().for_each(|v| fixed[v.0 as usize] = true);
        let last = of.bounds[of.bounds.len() - 2];
        let mut read = vec![false; graph.value_count()];
        for n in (0..last).rev() {
            let missing = |v: &ValueId| {
                let v = v.0 as usize;
                !fixed[v] && (of.elements[v] || read[v])
            };
            if nodes[n].outputs.iter().flatten().any(missing) {
                of.again[n] = true;
                inputs(graph, &nodes[n]).for_each(|v| read[v.0 as usize] = true);
            }
        }
        let behind = |v: ValueId| uses.producer(v).is_some_and(|(n, _)| n >= last);
        of.stays = (0..graph.value_count())
            .map(|v| match behind(ValueId(v as u32)) {
                true => of.elements[v],
                false => fixed[v] && (of.elements[v] || read[v]),
            })
            .collect();
        of
    }

    /// Notes what carries a gradient and what its vector-Jacobian products read.
    fn read(&mut self, graph: &Graph, wanted: &[ValueId]) {
        for v in wanted {
            self.carries[v.0 as usize] = true;
            self.elements[v.0 as usize] = true;
        }
        for node in graph.nodes() {
            let shapes = node.op.as_ref().is_some_and(|op| op.barrier() == Some(Barrier::Shapes));
            if shapes || !inputs(graph, node).any(|v| self.carries[v.0 as usize]) {
                continue;
            }
            node.outputs.iter().flatten().for_each(|v| self.carries[v.0 as usize] = true);
            let keeps = node.op.as_ref().map(|op| op.keeps()).unwrap_or_default();
            let ins = if keeps.inputs { &mut self.elements } else { &mut self.shapes };
            node.inputs.iter().flatten().for_each(|v| ins[v.0 as usize] = true);
            if keeps.outputs {
                node.outputs.iter().flatten().for_each(|v| self.elements[v.0 as usize] = true);
            }
        }
    }

    /// Number of segments.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.bounds.len() - 1
    }

    /// The segment that ends with node `i` and has to be evaluated again: its nodes that are.
    pub(super) fn ending(&self, i: NodeIndex) -> Vec<NodeIndex> {
        match self.bounds.binary_search(&(i + 1)) {
            Ok(end) if end > 0 => (self.bounds[end - 1]..=i).filter(|n| self.again[*n]).collect(),
            _ => vec![],
        }
    }

    fn ranges(&self) -> impl Iterator<Item = Range<NodeIndex>> + '_ {
        self.bounds.windows(2).map(|w| w[0]..w[1])
    }

    /// Most bytes that a tape holds at once: those that stay so far, and what one segment keeps.
    pub fn kept_bytes(&self, graph: &Graph, sizes: &Sizes) -> u64 {
        let mut held = vec![false; sizes.len()];
        let take = |v: ValueId, held: &mut Vec<bool>| match sizes.of(v) {
            Some((buffer, bytes)) if !std::mem::replace(&mut held[buffer], true) => bytes,
            _ => 0,
        };
        let stay = |v: &ValueId| {
            let host = self.shapes[v.0 as usize] && sizes.host(*v);
            self.stays[v.0 as usize] || host || graph.outputs().contains(v)
        };
        let mut below: u64 = graph.inputs().iter().copied().filter(stay).map(|v| take(v, &mut held)).sum();
        let mut most = below;
        for range in self.ranges() {
            let values = |n: NodeIndex| graph.node(n).outputs.iter().flatten().copied();
            below += range.clone().flat_map(values).filter(stay).map(|v| take(v, &mut held)).sum::<u64>();
            let inside = range.flat_map(values).filter(|v| self.elements[v.0 as usize]);
            let mut with_segment = held.clone();
            most = most.max(below + inside.map(|v| take(v, &mut with_segment)).sum::<u64>());
        }
        most
    }

    /// Bytes that a reverse pass reads of what lies before each node, and of all.
    fn kept_before(&self, graph: &Graph, sizes: &Sizes) -> Vec<u64> {
        let mut held = vec![false; sizes.len()];
        let mut sums = vec![0];
        for node in graph.nodes() {
            let mut sum = sums.last().copied().unwrap_or(0);
            for v in node.outputs.iter().flatten().filter(|v| self.elements[v.0 as usize]) {
                if let Some((buffer, bytes)) = sizes.of(*v)
                    && !std::mem::replace(&mut held[buffer], true)
                {
                    sum += bytes;
                }
            }
            sums.push(sum);
        }
        sums
    }
}

/// Everything that a node reads, through its bodies too.
pub(super) fn inputs<'g>(graph: &'g Graph, node: &'g Node) -> impl Iterator<Item = ValueId> + 'g {
    node.inputs.iter().flatten().copied().chain(captured(graph, node))
}

/// Whether a node gives the same again.
fn repeats(node: &Node) -> bool {
    node.op.as_ref().is_none_or(|op| op.deterministic())
        && node.bodies.iter().all(|(_, body)| body.nodes().iter().all(repeats))
}

/// Bytes of computed buffers that are made before each node and read by it or behind it.
fn live(graph: &Graph, uses: &Uses, sizes: &Sizes) -> Vec<u64> {
    let mut spans: Vec<Option<(NodeIndex, NodeIndex)>> = vec![None; sizes.len()];
    for v in (0..graph.value_count() as u32).map(ValueId) {
        let (Some((made, _)), Some((buffer, _))) = (uses.producer(v), sizes.of(v)) else { continue };
        let read = uses.consumers(v).iter().map(|(n, _)| *n).max().unwrap_or(made);
        let (first, last) = spans[buffer].unwrap_or((made, read));
        spans[buffer] = Some((first.min(made), last.max(read)));
    }
    let mut live = vec![0u64; graph.nodes().len() + 1];
    for (buffer, span) in spans.into_iter().enumerate() {
        if let Some((made, read)) = span {
            (made + 1..=read).for_each(|n| live[n] += sizes.bytes(buffer));
        }
    }
    live
}

#[cfg(test)]
mod tests;
