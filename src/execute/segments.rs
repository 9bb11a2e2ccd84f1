//! What a forward pass keeps for its reverse. A plan and the wanted values enter, then where the order of its
//! steps is cut into segments; out comes which values stay from the first pass on and which steps the reverse
//! pass evaluates again (gradient checkpointing: Chen et al. 2016, "Training Deep Nets with Sublinear Memory
//! Cost"). Everything behind the last cut is kept as it is without cuts.

use super::plan::{Plan, Step};
use super::sizes::Sizes;
use crate::graph::{Graph, Node, ValueId};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

/// Segments of the steps, for one plan and one set of wanted values.
#[derive(Debug)]
pub struct Segments {
    pub(super) plan: Arc<Plan>,
    pub(super) wanted: HashSet<ValueId>,
    /// By value: it carries a gradient towards the wanted ones.
    pub(super) carries: Vec<bool>,
    /// By value: the reverse pass reads its elements.
    pub(super) elements: Vec<bool>,
    /// By value: the reverse pass reads its shape.
    pub(super) shapes: Vec<bool>,
    /// By value: it stays from the forward pass on.
    pub(super) stays: Vec<bool>,
    /// By step: the reverse pass evaluates it again.
    again: Vec<bool>,
    /// First step of each segment, from 0 on, and the number of steps.
    bounds: Vec<usize>,
}

impl Segments {
    /// One segment of all nodes, each by itself: nothing is computed twice.
    pub fn whole(graph: &Graph, wanted: &[ValueId]) -> Segments {
        Segments::whole_of(graph, Arc::new(Plan::new(graph, [])), wanted)
    }

    /// One segment of a plan.
    pub(super) fn whole_of(graph: &Graph, plan: Arc<Plan>, wanted: &[ValueId]) -> Segments {
        Segments::at(graph, plan, wanted, &[])
    }

    /// At most `count` segments of nodes, each by itself, that keep about as much each, cut where the fewest
    /// bytes are live.
    pub fn cut(graph: &Graph, wanted: &[ValueId], sizes: &Sizes, count: usize) -> Segments {
        Segments::cut_of(graph, Arc::new(Plan::new(graph, [])), wanted, sizes, count)
    }

    /// As [`Segments::cut`], of a plan.
    pub(super) fn cut_of(
        graph: &Graph,
        plan: Arc<Plan>,
        wanted: &[ValueId],
        sizes: &Sizes,
        count: usize,
    ) -> Segments {
        let whole = Segments::whole_of(graph, plan.clone(), wanted);
        let kept = whole.kept_before(sizes);
        let live = live(graph, &plan, sizes);
        let total = kept.last().copied().unwrap_or(0);
        let mut cuts = Vec::with_capacity(count);
        for k in 1..count as u64 {
            let at = |halves: u64| (u128::from(total) * u128::from(halves) / (2 * count as u128)) as u64;
            let (from, ideal, to) = (at(2 * k - 1), at(2 * k), at(2 * k + 1));
            let first = kept.partition_point(|b| *b < from).max(cuts.last().map_or(1, |c| c + 1));
            let last = kept.partition_point(|b| *b < to).min(plan.steps().len());
            cuts.extend((first..last).min_by_key(|n| (live[*n], kept[*n].abs_diff(ideal))));
        }
        Segments::at(graph, plan, wanted, &cuts)
    }

    /// Segments that begin at these steps, beside the first; `cuts` ascend.
    fn at(graph: &Graph, plan: Arc<Plan>, wanted: &[ValueId], cuts: &[usize]) -> Segments {
        let steps = plan.steps();
        let bounds: Vec<usize> = [0].iter().chain(cuts).chain(&[steps.len()]).copied().collect();
        let mut of = Segments {
            plan: plan.clone(),
            wanted: wanted.iter().copied().collect(),
            carries: vec![false; graph.value_count()],
            elements: vec![false; graph.value_count()],
            shapes: vec![false; graph.value_count()],
            stays: vec![],
            again: vec![false; steps.len()],
            bounds,
        };
        of.read(graph, wanted);
        let segment = |n: usize| of.bounds.partition_point(|b| *b <= n);
        // What another segment reads, or cannot be had again.
        let mut fixed: Vec<bool> = (0..graph.value_count() as u32)
            .map(|v| {
                let elsewhere = |own| plan.readers(ValueId(v)).iter().any(|n| segment(*n) != own);
                plan.made(ValueId(v)).is_none_or(|n| !repeats(graph, &steps[n]) || elsewhere(segment(n)))
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
            if steps[n].outputs.iter().flatten().any(missing) {
                of.again[n] = true;
                steps[n].reads(graph).for_each(|v| read[v.0 as usize] = true);
            }
        }
        let behind = |v: ValueId| plan.made(v).is_some_and(|n| n >= last);
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
        let plan = self.plan.clone();
        for step in plan.steps() {
            if step.of_shapes() || !step.reads(graph).any(|v| self.carries[v.0 as usize]) {
                continue;
            }
            step.outputs.iter().flatten().for_each(|v| self.carries[v.0 as usize] = true);
            let keeps = step.keeps();
            let ins = if keeps.inputs { &mut self.elements } else { &mut self.shapes };
            step.inputs.iter().flatten().for_each(|v| ins[v.0 as usize] = true);
            if keeps.outputs {
                step.outputs.iter().flatten().for_each(|v| self.elements[v.0 as usize] = true);
            }
        }
    }

    /// Number of segments.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.bounds.len() - 1
    }

    /// The steps in which a pass goes.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The segment that ends with step `i` and has to be evaluated again: its steps that are.
    pub(super) fn ending(&self, i: usize) -> Vec<usize> {
        match self.bounds.binary_search(&(i + 1)) {
            Ok(end) if end > 0 => (self.bounds[end - 1]..=i).filter(|n| self.again[*n]).collect(),
            _ => vec![],
        }
    }

    fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
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
            let values = |n: usize| self.plan.steps()[n].outputs.iter().flatten().copied();
            below += range.clone().flat_map(values).filter(stay).map(|v| take(v, &mut held)).sum::<u64>();
            let inside = range.flat_map(values).filter(|v| self.elements[v.0 as usize]);
            let mut with_segment = held.clone();
            most = most.max(below + inside.map(|v| take(v, &mut with_segment)).sum::<u64>());
        }
        most
    }

    /// Bytes that a reverse pass reads of what lies before each step, and of all.
    fn kept_before(&self, sizes: &Sizes) -> Vec<u64> {
        let mut held = vec![false; sizes.len()];
        let mut sums = vec![0];
        for step in self.plan.steps() {
            let mut sum = sums.last().copied().unwrap_or(0);
            for v in step.outputs.iter().flatten().filter(|v| self.elements[v.0 as usize]) {
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

/// Whether a step gives the same again.
fn repeats(graph: &Graph, step: &Step) -> bool {
    match &step.op {
        Some(op) => op.deterministic(),
        None => same_again(graph.node(step.at())),
    }
}

/// Whether a node and its bodies give the same again.
fn same_again(node: &Node) -> bool {
    node.op.as_ref().is_none_or(|op| op.deterministic())
        && node.bodies.iter().all(|(_, body)| body.nodes().iter().all(same_again))
}

/// Bytes of computed buffers that are made before each step and read by it or behind it.
fn live(graph: &Graph, plan: &Plan, sizes: &Sizes) -> Vec<u64> {
    let mut spans: Vec<Option<(usize, usize)>> = vec![None; sizes.len()];
    for v in (0..graph.value_count() as u32).map(ValueId) {
        let (Some(made), Some((buffer, _))) = (plan.made(v), sizes.of(v)) else { continue };
        let read = plan.readers(v).iter().copied().max().unwrap_or(made);
        let (first, last) = spans[buffer].unwrap_or((made, read));
        spans[buffer] = Some((first.min(made), last.max(read)));
    }
    let mut live = vec![0u64; plan.steps().len() + 1];
    for (buffer, span) in spans.into_iter().enumerate() {
        if let Some((made, read)) = span {
            (made + 1..=read).for_each(|n| live[n] += sizes.bytes(buffer));
        }
    }
    live
}

#[cfg(test)]
mod tests;
