//! What a model costs with fewer units: multiply-accumulates as a function of how many units each group
//! keeps. Exact, as every operator counts its own products on the shortened shapes; which units stay does
//! not matter. Cuts nothing and knows no criterion.

use super::Coupled;
use crate::error::{Error, Result};
use crate::graph::{Facts, Graph, NodeIndex, ValueId};
use crate::ops::{self, Cut, Dim, Fact, Operator, Port};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Multiply-accumulates of a graph for numbers of kept units. A change of one group asks only the nodes
/// around it again.
pub struct Costs<'a> {
    graph: &'a Graph,
    facts: &'a Facts,
    coupled: &'a Coupled,
    /// By class of axes: groups on it with their indices a unit, and indices that always stay.
    classes: BTreeMap<usize, (Vec<(usize, usize)>, usize)>,
    /// By group: nodes with products on whose axes it lies.
    around: Vec<Vec<NodeIndex>>,
    /// By group: units that stay.
    kept: Vec<usize>,
    macs: BTreeMap<NodeIndex, u64>,
    unknown: usize,
    /// Products of a node by the sizes around it.
    counted: HashMap<(NodeIndex, Vec<usize>), u64>,
}

impl<'a> Costs<'a> {
    /// All units stay. `facts` should bind all sizes; nodes whose products are not known do not count.
    pub fn of(graph: &'a Graph, facts: &'a Facts, coupled: &'a Coupled) -> Costs<'a> {
        let groups = coupled.groups();
        let mut owner = vec![usize::MAX; coupled.units()];
        groups.iter().for_each(|g| owner[g.first..g.first + g.units].fill(g.id));
        let classes = coupled.classes.iter().map(|(class, units)| {
            let (mut on, mut rest): (BTreeMap<usize, usize>, usize) = (BTreeMap::new(), 0);
            for u in units {
                match owner.get(*u as usize) {
                    Some(group) => *on.entry(*group).or_default() += 1,
                    None => rest += 1,
                }
            }
            (*class, (on.into_iter().map(|(g, n)| (g, n / groups[g].units)).collect(), rest))
        });
        let mut costs = Costs {
            graph,
            facts,
            coupled,
            classes: classes.collect(),
            around: vec![vec![]; groups.len()],
            kept: groups.iter().map(|g| g.units).collect(),
            macs: BTreeMap::new(),
            unknown: 0,
            counted: HashMap::new(),
        };
        for i in 0..graph.nodes().len() {
            let Some(op) = &graph.node(i).op else { continue };
            match costs.whole(i, op) {
                None => costs.unknown += 1,
                Some(0) => {}
                Some(n) => {
                    costs.macs.insert(i, n);
                    for group in costs.groups_at(i) {
                        costs.around[group].push(i);
                    }
                }
            }
        }
        costs
    }

    /// Multiply-accumulates of one evaluation with the units that stay now.
    pub fn macs(&self) -> u64 {
        self.macs.values().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// Multiply-accumulates of one node with the units that stay now; none where they are not known.
    pub fn of_node(&self, i: NodeIndex) -> Option<u64> {
        match self.macs.get(&i) {
            Some(n) => Some(*n),
            None => self.whole(i, self.graph.node(i).op.as_ref()?),
        }
    }

    /// Bytes that a node reads and writes with the units that stay now; none where a shape is not known.
    pub fn traffic(&self, i: NodeIndex) -> Option<u64> {
        self.ports(i).try_fold(0u64, |sum, (_, v)| {
            let fact = self.facts.get(v)?;
            let mut shape = fact.fixed_shape()?;
            for (axis, class) in self.classes_of(v).filter(|(_, class)| self.is_cut(*class)) {
                *shape.get_mut(axis)? = self.size(class);
            }
            let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
            sum.checked_add(fact.dtype.byte_len(elements)?)
        })
    }

    /// Nodes whose products the shapes do not tell.
    pub fn unknown(&self) -> usize {
        self.unknown
    }

    /// By group, how many units stay now.
    pub fn kept(&self) -> &[usize] {
        &self.kept
    }

    /// Keeps `units` of a group and returns the new multiply-accumulates.
    ///
    /// # Errors
    /// `Usage` for no such group or number of units; `Unsupported` where a node cannot take the sizes.
    pub fn keep(&mut self, group: usize, units: usize) -> Result<u64> {
        self.set(group, units)?;
        Ok(self.macs())
    }

    fn set(&mut self, group: usize, units: usize) -> Result<()> {
        let most = self.coupled.groups().get(group).map_or(0, |g| g.units);
        if units == 0 || units > most {
            return Err(Error::usage("COSTS-UNITS", "a group cannot keep so many units")
                .field(format!("group {group}"))
                .found(units)
                .limit(format!("1 to {most}")));
        }
        let before = std::mem::replace(&mut self.kept[group], units);
        let around = self.around[group].clone();
        let counted: Result<Vec<u64>> = around.iter().map(|i| self.count(*i)).collect();
        match counted {
            Ok(counted) => {
                self.macs.extend(around.into_iter().zip(counted));
                Ok(())
            }
            Err(e) => {
                self.kept[group] = before;
                Err(e)
            }
        }
    }

    /// Keeps these numbers of units, by group.
    ///
    /// # Errors
    /// As [`Costs::keep`].
    pub fn keep_all(&mut self, units: &[usize]) -> Result<u64> {
        for (group, units) in units.iter().enumerate() {
            if self.kept.get(group) != Some(units) {
                self.set(group, *units)?;
            }
        }
        Ok(self.macs())
    }

    /// Multiply-accumulates that leave with one more unit of a group, the others as they are now; 0 where
    /// one unit is left.
    ///
    /// # Errors
    /// As [`Costs::keep`].
    pub fn per_unit(&mut self, group: usize) -> Result<u64> {
        let kept = self.kept.get(group).copied().unwrap_or(0);
        if kept == 1 {
            return Ok(0);
        }
        let now = self.macs_around(group);
        self.set(group, kept.saturating_sub(1))?;
        let less = self.macs_around(group);
        self.set(group, kept)?;
        Ok(now.saturating_sub(less))
    }

    /// By group, the part of each node's work that leaves with one more unit of it, the others as they are
    /// now: of its multiply-accumulates, or of the bytes that it reads and writes where it has none.
    /// Nodes whose work is not known and groups of one unit have no parts.
    pub fn parts(&mut self) -> Vec<Vec<(NodeIndex, f64)>> {
        let mut touched: Vec<Vec<NodeIndex>> = vec![vec![]; self.kept.len()];
        for i in 0..self.graph.nodes().len() {
            self.groups_at(i).into_iter().for_each(|group| touched[group].push(i));
        }
        touched.into_iter().enumerate().map(|(group, nodes)| self.parts_of(group, &nodes)).collect()
    }

    fn parts_of(&mut self, group: usize, nodes: &[NodeIndex]) -> Vec<(NodeIndex, f64)> {
        let kept = self.kept[group];
        let work = |costs: &Costs<'_>, i: NodeIndex| match costs.of_node(i) {
            Some(macs) if macs > 0 => Some(macs),
            _ => costs.traffic(i),
        };
        let before: Vec<Option<u64>> = nodes.iter().map(|i| work(self, *i)).collect();
        if kept < 2 || self.set(group, kept - 1).is_err() {
            return Vec::new();
        }
        let part = |(i, before): (&NodeIndex, &Option<u64>)| {
            let (before, after) = ((*before)?, work(self, *i)?);
            (before > after).then(|| (*i, (before - after) as f64 / before as f64))
        };
        let parts = nodes.iter().zip(&before).filter_map(part).collect();
        // What it was is always possible.
        let _ = self.set(group, kept);
        parts
    }

    fn macs_around(&self, group: usize) -> u64 {
        let around = self.around.get(group).into_iter().flatten();
        around.filter_map(|i| self.macs.get(i)).fold(0, |sum, n| sum.saturating_add(*n))
    }

    fn ports(&self, i: NodeIndex) -> impl Iterator<Item = (Port, ValueId)> + use<'a> {
        let node = self.graph.node(i);
        let inputs = node.inputs.iter().enumerate().filter_map(|(n, v)| Some((Port::In(n), (*v)?)));
        inputs.chain(node.outputs.iter().enumerate().filter_map(|(n, v)| Some((Port::Out(n), (*v)?))))
    }

    fn classes_of(&self, v: ValueId) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.coupled.axes.range((v, 0)..=(v, usize::MAX)).map(|((_, axis), class)| (*axis, *class))
    }

    fn groups_at(&self, i: NodeIndex) -> BTreeSet<usize> {
        let classes = self.ports(i).flat_map(|(_, v)| self.classes_of(v)).map(|(_, class)| class);
        classes.flat_map(|c| self.classes[&c].0.iter().map(|(group, _)| *group)).collect()
    }

    fn size(&self, class: usize) -> usize {
        let (on, rest) = &self.classes[&class];
        rest + on.iter().map(|(group, per_unit)| per_unit * self.kept[*group]).sum::<usize>()
    }

    fn is_cut(&self, class: usize) -> bool {
        let groups = self.coupled.groups();
        self.classes[&class].0.iter().any(|(group, _)| self.kept[*group] < groups[*group].units)
    }

    /// Indices of a class that stay where the first units of each group do.
    fn staying(&self, class: usize) -> Vec<usize> {
        let groups = self.coupled.groups();
        let units = &self.coupled.classes[&class];
        let stays = |u: u32| {
            let at = groups.partition_point(|g| g.first <= u as usize);
            u == u32::MAX || at == 0 || u as usize - groups[at - 1].first < self.kept[at - 1]
        };
        (0..units.len()).filter(|i| stays(units[*i])).collect()
    }

    fn whole(&self, i: NodeIndex, op: &Arc<dyn Operator>) -> Option<u64> {
        let macs = op.macs(&self.facts.inputs(self.graph, i), &self.facts.outputs(self.graph, i)?)?;
        u64::try_from(macs.known()?).ok()
    }

    /// Products of a node under the sizes of now.
    fn count(&mut self, i: NodeIndex) -> Result<u64> {
        let cut: Vec<(Port, ValueId, usize, usize)> = self
            .ports(i)
            .flat_map(|(port, v)| self.classes_of(v).map(move |(axis, class)| (port, v, axis, class)))
            .filter(|(_, _, _, class)| self.is_cut(*class))
            .collect();
        let sizes = cut.iter().map(|(_, _, _, class)| self.size(*class)).collect();
        let key = (i, sizes);
        if let Some(known) = self.counted.get(&key) {
            return Ok(*known);
        }
        let found = self.counted_anew(i, &cut)?;
        self.counted.insert(key, found);
        Ok(found)
    }

    fn counted_anew(&self, i: NodeIndex, cut: &[(Port, ValueId, usize, usize)]) -> Result<u64> {
        let (graph, node) = (self.graph, self.graph.node(i));
        let at = |e: Error| e.node(graph.label(i)).field(node.operator_name());
        let unknown = || Error::unsupported("COSTS-NODE", "the products of a node are not known");
        let op = node.op.as_ref().ok_or_else(|| at(unknown()))?;
        let inputs = self.facts.inputs(graph, i);
        let outputs = self.facts.outputs(graph, i).ok_or_else(|| at(unknown()))?;
        let shortened = |port: Port, fact: &Fact| -> Fact {
            let mut fact = fact.clone();
            for (_, _, axis, class) in cut.iter().filter(|(p, ..)| *p == port) {
                fact = fact.without_value();
                if let Some(size) = fact.shape.as_mut().and_then(|s| s.get_mut(*axis)) {
                    *size = Dim::from(self.size(*class));
                }
            }
            fact
        };
        let rewrite = {
            let kept = cut.iter().map(|(port, _, axis, class)| {
                ((*port, *axis), self.coupled.classes[class].len(), self.staying(*class))
            });
            op.resize(&inputs, &outputs, &Cut { kept: kept.collect() }).map_err(at)?
        };
        let mut short: Vec<Option<Fact>> =
            inputs.iter().enumerate().map(|(n, f)| f.map(|f| shortened(Port::In(n), f))).collect();
        for (slot, tensor) in &rewrite.inputs {
            short.resize(short.len().max(slot + 1), None);
            short[*slot] = Some(Fact::constant(tensor));
        }
        let outputs: Vec<Fact> =
            outputs.iter().enumerate().map(|(n, f)| shortened(Port::Out(n), f)).collect();
        let mut resized = op.clone();
        if !(rewrite.attributes.is_empty() && rewrite.remove.is_empty()) {
            let mut attributes = node.attributes.clone();
            rewrite.attributes.into_iter().for_each(|(name, value)| attributes.set(&name, value));
            rewrite.remove.iter().for_each(|name| {
                attributes.remove(name);
            });
            let version = graph.opset(&node.domain).ok_or_else(|| at(unknown()))?;
            let spec = ops::lookup(&node.domain, &node.op_type, version).ok_or_else(|| at(unknown()))?;
            resized = (spec.parse)(&attributes.for_outputs(node.outputs.len()), version).map_err(at)?;
        }
        let short: Vec<Option<&Fact>> = short.iter().map(Option::as_ref).collect();
        let macs = resized.macs(&short, &outputs).as_ref().and_then(Dim::known);
        macs.and_then(|n| u64::try_from(n).ok()).ok_or_else(|| at(unknown()))
    }
}
