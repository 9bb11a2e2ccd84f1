//! Residual branches from structure: a sum of a value and of something that is computed from it, with
//! nothing in between that is needed elsewhere. Branches of one value that lie side by side, `x + f(norm(x)) +
//! g(norm(x))`, may share what holds no product.

use super::{Block, Kind, Unit};
use crate::graph::constants::Constants;
use crate::graph::{Facts, Graph, Node, NodeIndex, Uses, ValueId, states};
use crate::ops::{Dim, Operator};
use std::cell::Cell;
use std::collections::{BTreeSet, HashSet};

/// Most steps from node to node over one graph; beyond it no more blocks are found.
const BUDGET: usize = 1 << 24;
const NORMS: &[&str] = &[
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
];
/// Sums that take their norm with them.
pub(super) const NORMED_SUMS: &[&str] = &["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"];
const ATTENTIONS: &[&str] = &["Attention", "GroupQueryAttention", "MultiHeadAttention"];

/// Residual branches in execution order, none inside another; merged into layers where `unit` asks for
/// it. Branches whose values are needed elsewhere are none, but for caches ([`super::without`] hands
/// them on). `facts` tell which shapes are equal; multiply-accumulates are counted where they bind all
/// sizes. A norm that is spelled out by other operators stays behind its block, and sums that runtimes
/// fused with the norm of the next branch hide it ([`super::spelled`]).
pub fn blocks(graph: &Graph, facts: &Facts, unit: Unit) -> Vec<Block> {
    let finder = Finder::of(graph, facts);
    let mut found: Vec<Branch> = (0..graph.nodes().len()).filter_map(|i| finder.branch(i)).collect();
    // Inner branches first; what holds one is not a block.
    found.sort_by_key(|b| (b.path.len(), b.sum));
    let mut taken: HashSet<NodeIndex> = HashSet::new();
    found.retain(|b| {
        let free = b.path.iter().all(|i| !taken.contains(i)) && !taken.contains(&b.sum);
        if free {
            taken.extend(b.path.iter().copied().chain([b.sum]));
        }
        free
    });
    found.sort_by_key(|b| b.sum);
    let mut merged: Vec<Vec<Branch>> = vec![];
    for branch in found {
        let joins = |run: &Vec<Branch>| {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { return false };
            let follows = matches!(
                (last.kind, branch.kind),
                (Kind::Attention, Kind::Attention | Kind::FeedForward)
                    | (Kind::FeedForward, Kind::FeedForward)
            );
            let after = follows && first.kind == Kind::Attention || branch.root != branch.entry;
            after && last.exit == branch.entry && (branch.root == branch.entry || branch.root == last.root)
        };
        match merged.last_mut().filter(|run| unit == Unit::Layer && joins(run)) {
            Some(run) => run.push(branch),
            None => merged.push(vec![branch]),
        }
    }
    merged.into_iter().map(|run| finder.block(&run)).collect()
}

/// One residual branch.
struct Branch {
    kind: Kind,
    /// What the branch is computed from; its entry but where branches lie side by side.
    root: ValueId,
    /// What is left in place of the exit.
    entry: ValueId,
    exit: ValueId,
    sum: NodeIndex,
    /// Nodes between entry and sum, and those that only caches need.
    path: BTreeSet<NodeIndex>,
    /// The sum, and the norm behind it that belongs to the branch.
    end: Vec<NodeIndex>,
}

struct Finder<'a> {
    graph: &'a Graph,
    facts: &'a Facts,
    uses: Uses,
    constants: Constants<'a>,
    fixed: Vec<bool>,
    outputs: HashSet<ValueId>,
    presents: HashSet<ValueId>,
    steps: Cell<usize>,
}

fn one_of(names: &[&str], node: &Node) -> bool {
    names.contains(&node.op_type.as_str())
}

impl<'a> Finder<'a> {
    fn of(graph: &'a Graph, facts: &'a Facts) -> Finder<'a> {
        let constants = Constants::of(graph);
        Finder {
            graph,
            facts,
            uses: graph.uses(),
            fixed: constants.fixed(),
            constants,
            outputs: graph.outputs().iter().copied().collect(),
            presents: states::of(graph).into_keys().collect(),
            steps: Cell::new(0),
        }
    }

    /// Whether there is budget for another step.
    fn step(&self) -> bool {
        self.steps.set(self.steps.get() + 1);
        self.steps.get() <= BUDGET
    }

    fn producer(&self, v: ValueId) -> Option<NodeIndex> {
        self.uses.producer(v).map(|(i, _)| i)
    }

    fn outputs_of(&self, i: NodeIndex) -> impl Iterator<Item = ValueId> + 'a {
        self.graph.node(i).outputs.iter().flatten().copied()
    }

    /// The branch that ends at node `i`, if one does.
    fn branch(&self, i: NodeIndex) -> Option<Branch> {
        self.alone(i).or_else(|| self.beside(i))
    }

    /// A branch that is computed from what it is added to.
    fn alone(&self, i: NodeIndex) -> Option<Branch> {
        let node = self.graph.node(i);
        let normed = one_of(NORMED_SUMS, node);
        if !(node.is("Add") || normed) {
            return None;
        }
        let (a, b) = (node.inputs.first().copied().flatten()?, node.inputs.get(1).copied().flatten()?);
        let sum = node.outputs.first().copied().flatten()?;
        // The sum itself is read too: its norm cannot stay behind without it (`spelled` takes them apart).
        if normed && node.outputs.iter().skip(1).flatten().any(|v| self.is_read(*v)) {
            return None;
        }
        let (entry, from) = [(a, b), (b, a)].into_iter().find(|(r, y)| {
            let earlier = self.producer(*y).is_some_and(|p| self.producer(*r).is_none_or(|q| q < p));
            earlier && !self.fixed[r.0 as usize] && self.fits(*r, *y) && self.fits(*r, sum)
        })?;
        let mut path = self.between(entry, from)?;
        let mut kind = self.kind(&path)?;
        // An attention and a feed-forward block that are added to each other first are a layer.
        let parts = self.terms(from, false);
        let forward = |v: &ValueId| {
            self.between(entry, *v).is_some_and(|part| self.kind(&part) == Some(Kind::FeedForward))
        };
        if kind == Kind::Attention && parts.len() > 1 && parts.iter().any(forward) {
            kind = Kind::Layer;
        }
        path.extend(self.escapes(&path, i)?);
        let (exit, norm) = if normed { (sum, None) } else { self.behind(entry, from, sum, &path) };
        // A body reads by name, which no change of the graph around it reaches.
        if self.uses.consumers(exit).iter().any(|(_, slot)| *slot == usize::MAX) {
            return None;
        }
        let end = [i].into_iter().chain(norm).collect();
        Some(Branch { kind, root: entry, entry, exit, sum: i, path, end })
    }

    /// A branch that is added to the sum of others of the same value.
    fn beside(&self, i: NodeIndex) -> Option<Branch> {
        let [a, b] = self.addends(i)?;
        let mut top = i;
        while let Some((next, sum)) = self.single_reader(top).and_then(|n| Some((n, self.addends(n)?)))
            && sum.iter().any(|v| self.producer(*v) == Some(top))
        {
            top = next;
        }
        let terms = self.terms(self.outputs_of(top).next()?, true);
        let root = *terms.iter().min_by_key(|v| self.producer(**v).map_or(0, |p| p + 1))?;
        let holds = |v: ValueId| self.terms(v, false).contains(&root);
        let (entry, from) = match (holds(a), holds(b)) {
            (true, false) => (a, b),
            (false, true) => (b, a),
            _ => return None,
        };
        let sum = self.outputs_of(i).next()?;
        if terms.len() < 3 || !self.fits(entry, from) || !self.fits(entry, sum) {
            return None;
        }
        self.single_reader(self.producer(from)?)?;
        let whole = self.between(root, from)?;
        let mut path = self.owned(&whole, from)?;
        let shared: BTreeSet<NodeIndex> = whole.difference(&path).copied().collect();
        let kind = self.kind(&path).filter(|_| self.kind(&shared).is_none())?;
        if !path.contains(&self.producer(from)?)
            || self.uses.consumers(sum).iter().any(|(_, s)| *s == usize::MAX)
        {
            return None;
        }
        path.extend(self.escapes(&path, i)?);
        Some(Branch { kind, root, entry, exit: sum, sum: i, path, end: vec![i] })
    }

    /// Both operands of a sum of two computed values of one shape.
    fn addends(&self, i: NodeIndex) -> Option<[ValueId; 2]> {
        let node = self.graph.node(i);
        let operand = |slot: usize| node.inputs.get(slot).copied().flatten();
        let (a, b) = (operand(0)?, operand(1)?);
        let computed = !self.fixed[a.0 as usize] && !self.fixed[b.0 as usize];
        (node.is("Add") && computed && self.fits(a, b)).then_some([a, b])
    }

    /// The one node that reads what node `i` gives, where nothing else does.
    fn single_reader(&self, i: NodeIndex) -> Option<NodeIndex> {
        let v = self.outputs_of(i).next()?;
        match self.uses.consumers(v) {
            [(reader, slot)] if *slot != usize::MAX && !self.outputs.contains(&v) => Some(*reader),
            _ => None,
        }
    }

    /// What a value is the sum of, through sums that only the next one reads; `v` itself, where `whole`,
    /// may have more readers.
    fn terms(&self, v: ValueId, whole: bool) -> Vec<ValueId> {
        let (mut terms, mut work) = (vec![], vec![(v, whole)]);
        while let Some((v, whole)) = work.pop() {
            let sum = self.producer(v).filter(|p| whole || self.single_reader(*p).is_some());
            match sum.and_then(|p| self.addends(p)).filter(|_| self.step()) {
                Some(two) => work.extend(two.map(|v| (v, false))),
                None => terms.push(v),
            }
        }
        terms
    }

    /// The nodes of a path to `y`, which one node reads, that only the path and caches need.
    fn owned(&self, path: &BTreeSet<NodeIndex>, y: ValueId) -> Option<BTreeSet<NodeIndex>> {
        let first = *path.first()?;
        // By node from the first of the path on: whether something else needs it, not by way of the path.
        let mut needed = vec![false; self.graph.nodes().len() - first];
        let mut owned = path.clone();
        for i in (first..self.graph.nodes().len()).rev() {
            let mut out = false;
            for v in self.outputs_of(i) {
                out |= self.outputs.contains(&v) && !self.presents.contains(&v);
                for (reader, slot) in self.uses.consumers(v) {
                    if !self.step() {
                        return None;
                    }
                    let through = v == y || owned.contains(reader);
                    out |= *slot == usize::MAX || (!through && needed[*reader - first]);
                }
            }
            needed[i - first] = out;
            if out {
                owned.remove(&i);
            }
        }
        Some(owned)
    }

    fn is_read(&self, v: ValueId) -> bool {
        self.outputs.contains(&v) || !self.uses.consumers(v).is_empty()
    }

    /// Whether `b` can take the place of `a`: no axis is known to differ, none is broadcast.
    fn fits(&self, a: ValueId, b: ValueId) -> bool {
        let shape = |v: ValueId| self.facts.get(v).and_then(|f| f.shape.as_deref());
        let (Some(a), Some(b)) = (shape(a), shape(b)) else { return false };
        let same = |(a, b): (&Dim, &Dim)| match (a.known(), b.known()) {
            (Some(a), Some(b)) => a == b,
            (Some(1), None) | (None, Some(1)) => false,
            _ => true,
        };
        a.len() == b.len() && !a.is_empty() && a.iter().zip(b).all(same)
    }

    /// Nodes that are computed from `entry` and needed for `y`, where there are any. What only asks for
    /// a shape does not count.
    fn between(&self, entry: ValueId, y: ValueId) -> Option<BTreeSet<NodeIndex>> {
        let first = self.producer(entry).map_or(0, |p| p + 1);
        let last = self.producer(y)?;
        let mut behind: BTreeSet<NodeIndex> = BTreeSet::from([last]);
        let mut work = vec![last];
        while let Some(i) = work.pop() {
            let inputs = self.graph.node(i).inputs.iter().flatten();
            for p in inputs.filter_map(|v| self.producer(*v)).filter(|p| *p >= first) {
                if !self.step() {
                    return None;
                }
                if behind.insert(p) {
                    work.push(p);
                }
            }
        }
        let mut path: BTreeSet<NodeIndex> = BTreeSet::new();
        for i in behind {
            let node = self.graph.node(i);
            let reads = |v: &ValueId| *v == entry || self.producer(*v).is_some_and(|p| path.contains(&p));
            if !(node.is("Shape") || node.is("Size")) && node.inputs.iter().flatten().any(reads) {
                path.insert(i);
            }
        }
        // What a body captures is not followed.
        let plain = path.iter().all(|i| self.graph.node(*i).bodies.is_empty());
        (path.contains(&last) && plain).then_some(path)
    }

    /// Nodes beside the path that read values of it. None may lead to anything but back to the path and
    /// to caches.
    fn escapes(&self, path: &BTreeSet<NodeIndex>, sum: NodeIndex) -> Option<BTreeSet<NodeIndex>> {
        let mut beside: BTreeSet<NodeIndex> = BTreeSet::new();
        let mut work: Vec<NodeIndex> = path.iter().copied().collect();
        while let Some(i) = work.pop() {
            for v in self.outputs_of(i) {
                if self.outputs.contains(&v) && !self.presents.contains(&v) {
                    return None;
                }
                for (reader, slot) in self.uses.consumers(v) {
                    if !self.step() || *slot == usize::MAX {
                        return None;
                    }
                    if *reader != sum && !path.contains(reader) && beside.insert(*reader) {
                        work.push(*reader);
                    }
                }
            }
        }
        Some(beside)
    }

    fn kind(&self, path: &BTreeSet<NodeIndex>) -> Option<Kind> {
        let any = |holds: &dyn Fn(&Node) -> bool| path.iter().any(|i| holds(self.graph.node(*i)));
        let weighted = |n: &Node| n.inputs.iter().take(2).flatten().any(|v| self.fixed[v.0 as usize]);
        let product = |n: &Node| n.is("MatMul") || n.is("Einsum");
        if any(&|n| one_of(ATTENTIONS, n))
            || (any(&|n| n.is("Softmax")) && any(&|n| product(n) && !weighted(n)))
        {
            return Some(Kind::Attention);
        }
        match () {
            () if any(&|n| (n.is("Conv") || n.is("ConvTranspose")) && weighted(n)) => Some(Kind::Convolution),
            () if any(&|n| (n.is("Gemm") || product(n)) && weighted(n)) => Some(Kind::FeedForward),
            () => None,
        }
    }

    /// Where the branch ends: at the sum, or behind the norm that alone reads it. A norm behind a branch
    /// that begins or ends with one of its own belongs to what follows.
    fn behind(
        &self,
        entry: ValueId,
        from: ValueId,
        sum: ValueId,
        path: &BTreeSet<NodeIndex>,
    ) -> (ValueId, Option<NodeIndex>) {
        let norm = |i: NodeIndex| one_of(NORMS, self.graph.node(i));
        let begins = self.uses.consumers(entry).iter().any(|(i, _)| path.contains(i) && norm(*i));
        let ends = self.producer(from).is_some_and(norm);
        let [(i, 0)] = self.uses.consumers(sum) else { return (sum, None) };
        if begins || ends || !norm(*i) || self.outputs.contains(&sum) {
            return (sum, None);
        }
        let mut outputs = self.outputs_of(*i);
        match outputs.next() {
            Some(y) if self.fits(sum, y) && outputs.all(|v| !self.is_read(v)) => (y, Some(*i)),
            _ => (sum, None),
        }
    }

    /// Branches that follow each other as one block.
    fn block(&self, run: &[Branch]) -> Block {
        let (first, last) = (&run[0], &run[run.len() - 1]);
        let mut nodes: BTreeSet<NodeIndex> =
            run.iter().flat_map(|b| b.path.iter().chain(&b.end)).copied().collect();
        // With them go the nodes that only they read.
        let stays = self.producer(first.entry);
        let mut work: Vec<NodeIndex> = nodes.iter().copied().collect();
        while let Some(i) = work.pop() {
            for p in self.graph.node(i).inputs.iter().flatten().filter_map(|v| self.producer(*v)) {
                let only = self.outputs_of(p).all(|v| {
                    !self.outputs.contains(&v)
                        && self.uses.consumers(v).iter().all(|(r, _)| nodes.contains(r))
                });
                if Some(p) != stays && !nodes.contains(&p) && only {
                    nodes.insert(p);
                    work.push(p);
                }
            }
        }
        let weights: BTreeSet<ValueId> = nodes
            .iter()
            .flat_map(|i| self.graph.node(*i).inputs.iter().flatten().copied())
            .filter(|v| self.uses.consumers(*v).iter().all(|(r, _)| nodes.contains(r)))
            .collect();
        let parameters =
            weights.iter().filter_map(|v| self.constants.weight(*v)).map(|t| t.len() as u64).sum();
        let macs = nodes.iter().map(|i| self.macs(*i)).sum();
        Block {
            kind: if run.len() == 1 { first.kind } else { Kind::Layer },
            entry: first.entry,
            exit: last.exit,
            labels: nodes.iter().map(|i| self.graph.label(*i)).collect(),
            nodes: nodes.into_iter().collect(),
            parameters,
            macs,
        }
    }

    fn macs(&self, i: NodeIndex) -> Option<u64> {
        let node = self.graph.node(i);
        if node.is("Constant") {
            return Some(0);
        }
        let op: &dyn Operator = node.op.as_deref()?;
        let macs = op.macs(&self.facts.inputs(self.graph, i), &self.facts.outputs(self.graph, i)?)?;
        u64::try_from(macs.known()?).ok()
    }
}
