//! Which nodes of two graphs are the same ones. Two graphs enter, pairs of nodes and of constants
//! leave. Names decide where both graphs have them; else structure: the hash of everything that a node
//! is made from, of everything that is made from it, and the neighbours of nodes that are paired
//! already. Reads no weight; who can tell weights apart gives fingerprints.

mod signature;

use super::constants::Constants;
use super::{Graph, NodeIndex, ValueId};
pub(crate) use signature::spelled;
use signature::{Level, Signatures};
use std::collections::{HashMap, HashSet, VecDeque};

/// Rounds of structural matching; each pairs what lies beyond the changes that the last one crossed.
const ROUNDS: usize = 6;

/// What two nodes were paired by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Their name.
    Name,
    /// Their place in the graph.
    Structure,
}

/// Fingerprints of the constants of both graphs. Equal ones mean equal elements; `None` where nothing
/// is known.
pub struct Fingerprints<'a> {
    /// Of the graph before.
    pub before: &'a dyn Fn(ValueId) -> Option<u64>,
    /// Of the graph after.
    pub after: &'a dyn Fn(ValueId) -> Option<u64>,
}

/// Nodes and constants that belong together.
#[derive(Debug, Clone, Default)]
pub struct Matching {
    /// (node before, node after, by what), in the order before.
    pub nodes: Vec<(NodeIndex, NodeIndex, How)>,
    /// Nodes that only the graph before has.
    pub removed: Vec<NodeIndex>,
    /// Nodes that only the graph after has.
    pub added: Vec<NodeIndex>,
    /// Constants that paired nodes read at the same place, or that have the same name.
    pub constants: Vec<(ValueId, ValueId)>,
}

/// One graph with what is looked up often.
struct Side<'a> {
    graph: &'a Graph,
    uses: super::Uses,
    constants: Constants<'a>,
    paired: Vec<Option<usize>>,
}

impl<'a> Side<'a> {
    fn new(graph: &'a Graph) -> Side<'a> {
        Side {
            graph,
            uses: graph.uses(),
            constants: Constants::of(graph),
            paired: vec![None; graph.nodes().len()],
        }
    }
    /// Nodes that make up the graph, in order: constants are weights, not nodes.
    fn open(&self) -> impl Iterator<Item = NodeIndex> + '_ {
        (0..self.paired.len()).filter(|i| self.paired[*i].is_none() && !self.graph.node(*i).is("Constant"))
    }
}

struct Matcher<'a> {
    before: Side<'a>,
    after: Side<'a>,
    pairs: Vec<(NodeIndex, NodeIndex, How)>,
}

/// Pairs the nodes and constants of two graphs.
pub fn matching(before: &Graph, after: &Graph, prints: &Fingerprints<'_>) -> Matching {
    let mut m = Matcher { before: Side::new(before), after: Side::new(after), pairs: Vec::new() };
    m.by_name();
    m.by_weights(prints);
    for level in [Level::Strict, Level::Loose] {
        for _ in 0..ROUNDS {
            let had = m.pairs.len();
            m.by_hash(level);
            m.by_neighbours();
            if m.pairs.len() == had {
                break;
            }
        }
    }
    m.finish()
}

impl Matcher<'_> {
    fn pair(&mut self, a: NodeIndex, b: NodeIndex, how: How) {
        self.before.paired[a] = Some(self.pairs.len());
        self.after.paired[b] = Some(self.pairs.len());
        self.pairs.push((a, b, how));
    }

    /// Names that are unique in both graphs.
    fn by_name(&mut self) {
        fn unique(side: &Side<'_>) -> HashMap<String, Option<NodeIndex>> {
            let mut names: HashMap<String, Option<NodeIndex>> = HashMap::new();
            for i in side.open() {
                names.entry(side.graph.label(i)).and_modify(|at| *at = None).or_insert(Some(i));
            }
            names
        }
        let (old, new) = (unique(&self.before), unique(&self.after));
        let mut found: Vec<(NodeIndex, NodeIndex)> =
            old.iter().filter_map(|(name, a)| Some(((*a)?, (*new.get(name)?)?))).collect();
        found.sort_unstable();
        found.into_iter().for_each(|(a, b)| self.pair(a, b, How::Name));
    }

    /// Nodes of one operator with weights that nobody else has.
    fn by_weights(&mut self, prints: &Fingerprints<'_>) {
        type Key = (String, Vec<(usize, u64)>);
        fn keys(side: &Side<'_>, print: &dyn Fn(ValueId) -> Option<u64>) -> HashMap<Key, Option<NodeIndex>> {
            let mut keys: HashMap<Key, Option<NodeIndex>> = HashMap::new();
            for i in side.open() {
                let node = side.graph.node(i);
                let held: Vec<(usize, u64)> = node
                    .inputs
                    .iter()
                    .enumerate()
                    .filter_map(|(slot, v)| {
                        let v = (*v)?;
                        side.constants.weight(v)?;
                        Some((slot, print(v)?))
                    })
                    .collect();
                if !held.is_empty() {
                    let key = (node.operator_name(), held);
                    keys.entry(key).and_modify(|at| *at = None).or_insert(Some(i));
                }
            }
            keys
        }
        let (old, new) = (keys(&self.before, prints.before), keys(&self.after, prints.after));
        let mut found: Vec<(NodeIndex, NodeIndex)> =
            old.iter().filter_map(|(key, a)| Some(((*a)?, (*new.get(key)?)?))).collect();
        found.sort_unstable();
        found.into_iter().for_each(|(a, b)| self.pair(a, b, How::Structure));
    }

    /// Nodes whose ancestors and descendants agree up to nodes that are paired; then those of which one
    /// side agrees. Nodes that nothing tells apart are paired in order, where both graphs have as many.
    fn by_hash(&mut self, level: Level) {
        let old = Signatures::new(&self.before, level);
        let new = Signatures::new(&self.after, level);
        let both = |s: &Signatures, i: usize| Some((s.made_from[i], s.makes[i]));
        self.by_key(|s, i| both(s, i), &old, &new);
        self.by_key(|s, i| Some((s.made_from[i], 0)), &old, &new);
        self.by_key(|s, i| Some((0, s.makes[i])), &old, &new);
    }

    fn by_key(
        &mut self,
        key: impl Fn(&Signatures, NodeIndex) -> Option<(u64, u64)>,
        old: &Signatures,
        new: &Signatures,
    ) {
        let mut groups: HashMap<(u64, u64), (Vec<NodeIndex>, Vec<NodeIndex>)> = HashMap::new();
        for i in self.before.open() {
            if let Some(k) = key(old, i) {
                groups.entry(k).or_default().0.push(i);
            }
        }
        for i in self.after.open() {
            if let Some(k) = key(new, i) {
                groups.entry(k).or_default().1.push(i);
            }
        }
        let mut found: Vec<(NodeIndex, NodeIndex)> = groups
            .into_values()
            .filter(|(a, b)| a.len() == b.len())
            .flat_map(|(a, b)| a.into_iter().zip(b))
            .collect();
        found.sort_unstable();
        found.into_iter().for_each(|(a, b)| self.pair(a, b, How::Structure));
    }

    /// From each pair to the nodes of the same operator that stand at the same place beside it.
    fn by_neighbours(&mut self) {
        let mut queue: VecDeque<(NodeIndex, NodeIndex)> =
            self.pairs.iter().map(|(a, b, _)| (*a, *b)).collect();
        while let Some((a, b)) = queue.pop_front() {
            for (x, y) in self.beside(a, b) {
                let free = self.before.paired[x].is_none() && self.after.paired[y].is_none();
                let alike =
                    self.before.graph.node(x).operator_name() == self.after.graph.node(y).operator_name();
                if free && alike {
                    self.pair(x, y, How::Structure);
                    queue.push_back((x, y));
                }
            }
        }
    }

    /// Producers at equal inputs and, where there is one of an operator, consumers of equal outputs.
    fn beside(&self, a: NodeIndex, b: NodeIndex) -> Vec<(NodeIndex, NodeIndex)> {
        let (old, new) = (self.before.graph.node(a), self.after.graph.node(b));
        let mut out = Vec::new();
        for (v, w) in old.inputs.iter().zip(&new.inputs) {
            if let (Some(v), Some(w)) = (v, w)
                && let (Some((x, p)), Some((y, q))) =
                    (self.before.uses.producer(*v), self.after.uses.producer(*w))
                && p == q
            {
                out.push((x, y));
            }
        }
        for (v, w) in old.outputs.iter().zip(&new.outputs) {
            let (Some(v), Some(w)) = (v, w) else { continue };
            let only = |side: &Side<'_>, v: ValueId| {
                let mut by: HashMap<(String, usize), Option<NodeIndex>> = HashMap::new();
                let open = side.uses.consumers(v).iter().filter(|(i, _)| side.paired[*i].is_none());
                for (i, slot) in open {
                    let key = (side.graph.node(*i).operator_name(), *slot);
                    by.entry(key).and_modify(|at| *at = None).or_insert(Some(*i));
                }
                by
            };
            let (old, new) = (only(&self.before, *v), only(&self.after, *w));
            let mut found: Vec<(NodeIndex, NodeIndex)> =
                old.iter().filter_map(|(k, x)| Some(((*x)?, (*new.get(k)?)?))).collect();
            found.sort_unstable();
            out.append(&mut found);
        }
        out
    }

    fn finish(mut self) -> Matching {
        self.pairs.sort_unstable_by_key(|(a, b, _)| (*a, *b));
        let (mut seen, mut constants) = (HashSet::new(), Vec::new());
        let mut taken = HashSet::new();
        let mut add = |v: ValueId, w: ValueId| {
            if !seen.contains(&v) && !taken.contains(&w) {
                seen.insert(v);
                taken.insert(w);
                constants.push((v, w));
            }
        };
        let constant = |side: &Side<'_>, v: &Option<ValueId>| v.filter(|v| side.constants.get(*v).is_some());
        for (a, b, _) in &self.pairs {
            let (old, new) = (self.before.graph.node(*a), self.after.graph.node(*b));
            for (v, w) in old.inputs.iter().zip(&new.inputs) {
                if let (Some(v), Some(w)) = (constant(&self.before, v), constant(&self.after, w)) {
                    add(v, w);
                }
            }
        }
        for (v, _) in self.before.constants.iter() {
            let w = self.after.graph.find(self.before.graph.value_name(v));
            if let Some(w) = w.filter(|w| self.after.constants.get(*w).is_some()) {
                add(v, w);
            }
        }
        Matching {
            removed: self.before.open().collect(),
            added: self.after.open().collect(),
            nodes: self.pairs,
            constants,
        }
    }
}

#[cfg(test)]
#[path = "diff/tests.rs"]
mod tests;
