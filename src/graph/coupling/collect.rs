//! What the operators say of the axes of a graph's values, put together: axes that are the same index
//! by index become classes; other ties, pins and statistics are noted between classes.

use super::Options;
use super::union::Union;
use crate::graph::constants::Constants;
use crate::graph::{Facts, Graph, NodeIndex, ValueId, states};
use crate::ops::{Dim, Fact, Pattern, Port};
use std::collections::{BTreeMap, BTreeSet};

/// Longest axis that is tied unit by unit.
pub(super) const LONGEST: usize = 1 << 22;

/// Ties `count` units of two axes.
pub(super) struct Tie {
    pub(super) a: usize,
    pub(super) a_units: Pattern,
    pub(super) b: usize,
    pub(super) b_units: Pattern,
    pub(super) count: usize,
    pub(super) node: NodeIndex,
}

/// Which indices of an axis may not leave.
pub(super) enum Pinned {
    All,
    These(Vec<usize>),
}

/// Axes are numbered value by value.
pub(super) struct Collected {
    /// Number of the first axis of each value; the next entry ends it.
    base: Vec<usize>,
    /// Value of each axis.
    pub(super) owner: Vec<(ValueId, usize)>,
    /// Axes that are the same index by index.
    pub(super) same: Union,
    /// Size of a class, at its root.
    pub(super) size: Vec<Option<usize>>,
    pub(super) ties: Vec<Tie>,
    /// Axis, indices, reason; interfaces first, then nodes in order.
    pub(super) pins: Vec<(usize, Pinned, String)>,
    /// Axes that a node takes statistics over.
    pub(super) statistics: Vec<(usize, NodeIndex)>,
    /// Values that hold a state before and after a node.
    states: Vec<(ValueId, ValueId)>,
}

/// An end of a link.
enum End {
    Axis(usize),
    /// An optional input or output that is not there.
    Absent,
    /// A value of unknown rank, or an axis that it does not have.
    Unknown,
}

impl Collected {
    pub(super) fn of(
        graph: &Graph,
        facts: &Facts,
        constants: &Constants<'_>,
        options: &Options,
    ) -> Collected {
        let mut base = Vec::with_capacity(graph.value_count() + 1);
        let (mut owner, mut size) = (Vec::new(), Vec::new());
        for v in (0..graph.value_count() as u32).map(ValueId) {
            base.push(owner.len());
            let fact = facts.get(v).cloned().or_else(|| constants.get(v).map(Fact::constant));
            for (axis, d) in fact.and_then(|f| f.shape).unwrap_or_default().iter().enumerate() {
                owner.push((v, axis));
                size.push(Dim::size(d));
            }
        }
        base.push(owner.len());
        let same = Union::new(owner.len());
        let mut all = Collected {
            base,
            owner,
            same,
            size,
            ties: vec![],
            pins: vec![],
            statistics: vec![],
            states: vec![],
        };
        for (v, tensor) in constants.iter() {
            if tensor.dtype().is_packed() {
                let name = graph.value_name(v);
                all.pin_value(v, &format!("weight \"{name}\": packed {} elements", tensor.dtype()));
            }
        }
        for i in 0..graph.nodes().len() {
            if graph.node(i).outputs.iter().flatten().all(|v| constants.node(*v) != Some(i)) {
                all.node(graph, facts, i);
            }
        }
        if !options.allow_interface_change {
            let nodes = std::mem::take(&mut all.pins);
            all.pin_interface(graph);
            all.pins.extend(nodes);
        }
        all
    }

    /// Pins graph inputs and outputs, but for states that the caller only hands on from run to run.
    fn pin_interface(&mut self, graph: &Graph) {
        let mut states = std::mem::take(&mut self.states);
        states.extend(self.named_states(graph));
        let (inputs, outputs): (BTreeSet<ValueId>, BTreeSet<ValueId>) =
            (graph.required_inputs().collect(), graph.outputs().iter().copied().collect());
        let free: BTreeSet<ValueId> = states
            .into_iter()
            .filter(|(past, present)| inputs.contains(past) && outputs.contains(present))
            .flat_map(|(past, present)| [past, present])
            .collect();
        for v in inputs.difference(&free) {
            self.pin_value(*v, &format!("graph input \"{}\"", graph.value_name(*v)));
        }
        for v in outputs.difference(&free) {
            self.pin_value(*v, &format!("graph output \"{}\"", graph.value_name(*v)));
        }
    }

    /// States by name whose axes are the same before and after, but for the one that grows.
    fn named_states(&mut self, graph: &Graph) -> Vec<(ValueId, ValueId)> {
        let pairs = states::of(graph).into_values().map(|s| (s.past, s.present));
        pairs
            .filter(|(past, present)| {
                let (a, b) = (self.axes(*past), self.axes(*present));
                let same = a.clone().zip(b.clone()).filter(|(a, b)| self.same.root(*a) == self.same.root(*b));
                a.len() == b.len() && same.count() + 1 >= a.len()
            })
            .collect()
    }

    /// Axes of a value.
    pub(super) fn axes(&self, v: ValueId) -> std::ops::Range<usize> {
        self.base[v.0 as usize]..self.base[v.0 as usize + 1]
    }

    fn pin_value(&mut self, v: ValueId, reason: &str) {
        for axis in self.axes(v) {
            self.pins.push((axis, Pinned::All, reason.to_string()));
        }
    }

    fn pin(&mut self, graph: &Graph, i: NodeIndex, axis: usize, which: Pinned, why: &str) {
        self.pins.push((axis, which, format!("node \"{}\": {why}", graph.label(i))));
    }

    fn pin_node(&mut self, graph: &Graph, i: NodeIndex, why: &str) {
        let node = graph.node(i);
        let captured: Vec<ValueId> = node
            .bodies
            .iter()
            .flat_map(|(_, body)| body.captured())
            .filter_map(|name| graph.find(&name))
            .collect();
        let reason = format!("node \"{}\": {why}", graph.label(i));
        for v in node.inputs.iter().chain(&node.outputs).flatten().copied().chain(captured) {
            self.pin_value(v, &reason);
        }
    }

    fn end(&self, graph: &Graph, i: NodeIndex, (port, axis): (Port, usize)) -> End {
        let node = graph.node(i);
        let value = match port {
            Port::In(n) => node.inputs.get(n),
            Port::Out(n) => node.outputs.get(n),
        };
        let Some(v) = value.copied().flatten() else { return End::Absent };
        match self.axes(v).nth(axis) {
            Some(id) => End::Axis(id),
            None => End::Unknown,
        }
    }

    fn node(&mut self, graph: &Graph, facts: &Facts, i: NodeIndex) {
        let node = graph.node(i);
        if !node.bodies.is_empty() {
            return self.pin_node(graph, i, &format!("{} has a body", node.operator_name()));
        }
        let Some(op) = &node.op else {
            return self.pin_node(graph, i, &format!("operator {} is not known", node.operator_name()));
        };
        let inputs = facts.inputs(graph, i);
        let known = node.inputs.iter().zip(&inputs).all(|(v, f)| v.is_none() || f.is_some());
        // A rule may rely on what inference checks, so it is asked only where inference succeeds.
        let (Some(outputs), Ok(inferred), true) = (facts.outputs(graph, i), op.infer(&inputs), known) else {
            return self.pin_node(graph, i, "shapes around it are not known");
        };
        let fits = node.outputs.iter().zip(&outputs).zip(&inferred).all(|((v, a), b)| {
            v.is_none() || a.rank().is_none() || b.rank().is_none() || a.rank() == b.rank()
        });
        if !fits || outputs.is_empty() {
            return self.pin_node(graph, i, "shapes around it are not known");
        }
        let said = op.couple(&inputs, &outputs);
        let why = said.reason.as_deref().unwrap_or("the axis keeps its size");
        let mut vouched: BTreeSet<(Port, usize)> = said.free.iter().copied().collect();
        let mut reached: BTreeMap<(Port, usize), Vec<bool>> = BTreeMap::new();
        for link in &said.links {
            vouched.extend([link.a, link.b]);
            let extent = |p: Pattern| link.count.checked_mul(p.block)?.checked_mul(p.repeat);
            let long = |p: Pattern| extent(p).is_none_or(|n| n > LONGEST);
            if !link.same && (long(link.a_units) || long(link.b_units)) {
                for end in [link.a, link.b] {
                    if let End::Axis(id) = self.end(graph, i, end) {
                        self.pin(graph, i, id, Pinned::All, "the axis is too long to be tied unit by unit");
                    }
                }
                continue;
            }
            if !link.same {
                for (end, units) in [(link.a, link.a_units), (link.b, link.b_units)] {
                    if let (Port::Out(_), End::Axis(id)) = (end.0, self.end(graph, i, end)) {
                        let size = self.size[id].unwrap_or(0).min(LONGEST);
                        let of = reached.entry(end).or_insert_with(|| vec![false; size]);
                        units.each(link.count, |_, index| {
                            if let Some(reached) = of.get_mut(index) {
                                *reached = true;
                            }
                        });
                    }
                }
            }
            let (a, b) = match (self.end(graph, i, link.a), self.end(graph, i, link.b)) {
                (End::Axis(a), End::Axis(b)) => (a, b),
                (End::Axis(one), End::Unknown) | (End::Unknown, End::Axis(one)) => {
                    self.pin(graph, i, one, Pinned::All, "a shape beside it is not known");
                    continue;
                }
                _ => continue,
            };
            if link.same {
                self.join(graph, i, a, b);
            } else {
                let (a_units, b_units, count) = (link.a_units, link.b_units, link.count);
                self.ties.push(Tie { a, a_units, b, b_units, count, node: i });
            }
        }
        for (end, reached) in reached {
            let whole = said.links.iter().any(|l| l.same && (l.a == end || l.b == end));
            let (false, End::Axis(id)) = (whole, self.end(graph, i, end)) else { continue };
            // What no input reaches is made by the operator itself, in a number that it alone knows.
            let missing: Vec<usize> = (0..reached.len()).filter(|k| !reached[*k]).collect();
            if !missing.is_empty() {
                self.pin(graph, i, id, Pinned::These(missing), why);
            }
        }
        for (past, present) in said.state {
            let past = node.inputs.get(past).copied().flatten();
            let present = node.outputs.get(present).copied().flatten();
            self.states.extend(past.zip(present));
        }
        for end in said.statistics {
            if let End::Axis(id) = self.end(graph, i, end) {
                self.statistics.push((id, i));
            }
        }
        let ports = (0..node.inputs.len()).map(Port::In).chain((0..node.outputs.len()).map(Port::Out));
        for port in ports {
            for axis in 0.. {
                let End::Axis(id) = self.end(graph, i, (port, axis)) else { break };
                if !vouched.contains(&(port, axis)) {
                    self.pin(graph, i, id, Pinned::All, why);
                }
            }
        }
    }

    fn join(&mut self, graph: &Graph, i: NodeIndex, a: usize, b: usize) {
        let (ra, rb) = (self.same.root(a), self.same.root(b));
        match (self.size[ra], self.size[rb]) {
            (Some(x), Some(y)) if x != y => {
                for axis in [a, b] {
                    self.pin(graph, i, axis, Pinned::All, "sizes beside it differ");
                }
            }
            (x, y) => {
                let root = self.same.join(ra, rb);
                self.size[root] = x.or(y);
            }
        }
    }
}
