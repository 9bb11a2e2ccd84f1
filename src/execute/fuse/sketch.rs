//! A pattern that is being matched: the nodes that it covers so far and the constants that it relies on.

use super::{Found, Fusion};
use crate::graph::{Facts, Graph, Node, NodeIndex, Uses, ValueId};
use crate::ops::{Barrier, Dim, spelled};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};
use std::rc::Rc;

/// Furthest that constants may be from what they stand for, relative: what is left of a number that was
/// written as an f32 or f64, and computed with once.
const CLOSE: [f64; 2] = [4e-7, 1e-15];

/// Deepest nesting that is looked into.
const DEEP: usize = 8;

#[derive(Debug, Clone)]
pub(super) struct Sketch<'g> {
    graph: &'g Graph,
    uses: &'g Uses,
    facts: &'g Facts,
    outputs: &'g HashSet<ValueId>,
    nodes: BTreeSet<NodeIndex>,
    fixed: BTreeSet<ValueId>,
    /// Highest rank of a constant number.
    rank: usize,
    /// Operators that all but one condition spell out, and that condition.
    notes: Notes,
}

/// Shared by the ways that are tried.
type Notes = Rc<RefCell<Vec<(&'static str, String)>>>;

impl<'g> Sketch<'g> {
    pub(super) fn new(
        graph: &'g Graph,
        uses: &'g Uses,
        facts: &'g Facts,
        outputs: &'g HashSet<ValueId>,
    ) -> Sketch<'g> {
        let notes = Notes::default();
        Sketch { graph, uses, facts, outputs, nodes: BTreeSet::new(), fixed: BTreeSet::new(), rank: 0, notes }
    }

    /// Notes the one condition that keeps an operator from being found; gives nothing.
    pub(super) fn miss<T>(&self, name: &'static str, why: impl Into<String>) -> Option<T> {
        self.notes.borrow_mut().push((name, why.into()));
        None
    }

    /// Near misses so far and to come.
    pub(super) fn notes(&self) -> Notes {
        Rc::clone(&self.notes)
    }

    /// The name of a value, for a note.
    pub(super) fn called(&self, v: ValueId) -> &'g str {
        self.graph.value_name(v)
    }

    /// Tries a way to match; what it covered is forgotten where it fails.
    pub(super) fn attempt<T>(&mut self, way: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let before = (self.nodes.clone(), self.fixed.clone(), self.rank);
        let found = way(self);
        if found.is_none() {
            (self.nodes, self.fixed, self.rank) = before;
        }
        found
    }

    /// Node `i`, where it is of the default domain, is one of `ops` and has one output.
    pub(super) fn is(&self, i: NodeIndex, ops: &[&str]) -> Option<(&'g Node, ValueId)> {
        let node = self.graph.node(i);
        let output = node.outputs.first().copied().flatten()?;
        let one = node.outputs.iter().flatten().count() == 1;
        (one && node.op.is_some() && ops.iter().any(|op| node.is(op))).then_some((node, output))
    }

    /// Covers node `i`.
    pub(super) fn cover(&mut self, i: NodeIndex) {
        self.nodes.insert(i);
    }

    /// Covers the node that computes `v`, where it is one of `ops`.
    pub(super) fn take(&mut self, v: ValueId, ops: &[&str]) -> Option<&'g Node> {
        let (i, _) = self.uses.producer(v)?;
        let (node, _) = self.is(i, ops)?;
        self.cover(i);
        Some(node)
    }

    /// The only node that reads `v`, once, where `v` is no output.
    pub(super) fn reader(&self, v: ValueId) -> Option<NodeIndex> {
        match self.uses.consumers(v) {
            [(i, slot)] if *slot != usize::MAX && !self.outputs.contains(&v) => Some(*i),
            _ => None,
        }
    }

    /// Whether only covered nodes read `v`.
    pub(super) fn within(&self, v: ValueId) -> bool {
        let covered = |(i, slot): &(NodeIndex, usize)| *slot != usize::MAX && self.nodes.contains(i);
        !self.outputs.contains(&v) && self.uses.consumers(v).iter().all(covered)
    }

    /// Both inputs of a node of two.
    pub(super) fn pair(node: &Node) -> Option<[ValueId; 2]> {
        match node.inputs[..] {
            [Some(a), Some(b)] => Some([a, b]),
            _ => None,
        }
    }

    pub(super) fn shape(&self, v: ValueId) -> Option<&'g [Dim]> {
        self.facts.get(v)?.shape.as_deref()
    }

    /// Whether `v` is of floats that are computed as they are.
    pub(super) fn whole(&self, v: ValueId) -> bool {
        self.facts.get(v).is_some_and(|f| spelled::whole_precision(f.dtype))
    }

    /// Whether two numbers are the same up to the rounding of `v`'s type.
    pub(super) fn close_to(&self, v: ValueId, a: f64, b: f64) -> bool {
        let double = self.facts.get(v).is_some_and(|f| f.dtype == crate::tensor::DType::F64);
        (a - b).abs() <= CLOSE[usize::from(double)] * b.abs()
    }

    /// The one number that `v` is in every run. Relies on the constants that it comes from.
    pub(super) fn number(&mut self, v: ValueId) -> Option<f64> {
        let tensor = self.facts.get(v)?.value.as_ref().filter(|t| t.len() == 1)?;
        let number = tensor.to_f64s().ok()?.first().copied()?;
        self.rely(v, DEEP)?;
        self.rank = self.rank.max(tensor.shape().len());
        Some(number)
    }

    /// Whole numbers that `v` is in every run.
    pub(super) fn integers(&mut self, v: ValueId) -> Option<Vec<i64>> {
        let found = self.facts.get(v)?.ints()?;
        self.rely(v, DEEP)?;
        Some(found)
    }

    /// Notes the constants that `v` is computed from; none may be an input, which a caller can replace.
    fn rely(&mut self, v: ValueId, deep: usize) -> Option<()> {
        if self.graph.inputs().contains(&v) || deep == 0 {
            return None;
        }
        self.fixed.insert(v);
        let Some((i, _)) = self.uses.producer(v) else {
            return self.graph.initializer(v).map(|_| ());
        };
        let node = self.graph.node(i);
        // What depends on shapes alone is known where the shape is.
        if node.op.as_ref()?.barrier() == Some(Barrier::Shapes) {
            return Some(());
        }
        node.inputs.iter().flatten().try_for_each(|v| self.rely(*v, deep - 1))
    }

    /// `v` as `factor * base + shift`, as far back as values that nothing else uses reach.
    pub(super) fn affine(&mut self, v: ValueId) -> Option<(ValueId, f64, f64)> {
        let (mut base, mut factor, mut shift) = (v, 1.0, 0.0);
        for _ in 0..DEEP {
            let step = self.attempt(|s| {
                if base != v {
                    s.reader(base)?;
                }
                let (i, _) = s.uses.producer(base)?;
                let (node, _) = s.is(i, &["Add", "Sub", "Mul", "Div"])?;
                let [a, b] = Self::pair(node)?;
                let (inner, number, second) = match s.attempt(|s| s.number(b)) {
                    Some(n) => (a, n, true),
                    None => (b, s.number(a)?, false),
                };
                let (k, c) = match (node.op_type.as_str(), second) {
                    ("Add", _) => (1.0, number),
                    ("Sub", true) => (1.0, -number),
                    ("Sub", false) => (-1.0, number),
                    ("Mul", _) => (number, 0.0),
                    ("Div", true) if number != 0.0 => (1.0 / number, 0.0),
                    _ => return None,
                };
                s.cover(i);
                Some((inner, k, c))
            });
            let Some((inner, k, c)) = step else { break };
            (base, factor, shift) = (inner, factor * k, shift + factor * c);
        }
        Some((base, factor, shift))
    }

    /// `v` as a constant times a value, where nothing else uses it.
    pub(super) fn scaled(&mut self, v: ValueId) -> (ValueId, f64) {
        let found = self.attempt(|s| {
            s.reader(v)?;
            s.affine(v).filter(|(_, _, shift)| *shift == 0.0)
        });
        found.map_or((v, 1.0), |(base, factor, _)| (base, factor))
    }

    /// Version of the default domain's operators.
    pub(super) fn opset(&self) -> i64 {
        self.graph.opset("").unwrap_or_default()
    }

    /// `v` as a constant times other values, through products that nothing else uses.
    pub(super) fn product(&mut self, v: ValueId) -> Option<(f64, Vec<ValueId>)> {
        let (mut factor, mut leaves, mut open) = (1.0, vec![], vec![v]);
        let mut steps = 0;
        while let Some(at) = open.pop() {
            steps += 1;
            if steps > 2 * DEEP {
                return None;
            }
            if at != v
                && let Some(n) = self.attempt(|s| s.number(at))
            {
                factor *= n;
                continue;
            }
            let inner = self.attempt(|s| {
                if at != v {
                    s.reader(at)?;
                }
                let node = s.take(at, &["Mul", "Div"])?;
                let [a, b] = Self::pair(node)?;
                match node.is("Mul") {
                    true => Some((1.0, vec![a, b])),
                    false => Some((1.0 / s.number(b).filter(|n| *n != 0.0)?, vec![a])),
                }
            });
            match inner {
                Some((k, inner)) => {
                    factor *= k;
                    open.extend(inner);
                }
                None => leaves.push(at),
            }
        }
        Some((factor, leaves))
    }

    /// `v` as a polynomial in `x` up to the third power, lowest first.
    pub(super) fn polynomial(&mut self, v: ValueId, x: ValueId) -> Option<[f64; 4]> {
        self.power_series(v, x, DEEP)
    }

    fn power_series(&mut self, v: ValueId, x: ValueId, deep: usize) -> Option<[f64; 4]> {
        if v == x {
            return Some([0.0, 1.0, 0.0, 0.0]);
        }
        if let Some(n) = self.attempt(|s| s.number(v)) {
            return Some([n, 0.0, 0.0, 0.0]);
        }
        if deep == 0 {
            return None;
        }
        let node = self.take(v, &["Add", "Sub", "Mul", "Div", "Pow"])?;
        let [a, b] = Self::pair(node)?;
        if node.is("Pow") || node.is("Div") {
            let n = self.number(b)?;
            let a = self.power_series(a, x, deep - 1)?;
            return match n {
                n if node.is("Div") => (n != 0.0).then(|| a.map(|c| c / n)),
                2.0 => multiplied(&a, &a),
                3.0 => multiplied(&a, &multiplied(&a, &a)?),
                _ => None,
            };
        }
        let (a, b) = (self.power_series(a, x, deep - 1)?, self.power_series(b, x, deep - 1)?);
        match node.op_type.as_str() {
            "Add" => Some(std::array::from_fn(|i| a[i] + b[i])),
            "Sub" => Some(std::array::from_fn(|i| a[i] - b[i])),
            _ => multiplied(&a, &b),
        }
    }

    /// The fusion, where nothing else uses what lies between the covered nodes, and no constant number
    /// adds axes to the first input.
    pub(super) fn close(self, found: Found) -> Option<Fusion> {
        let Found { form, inputs, output } = found;
        let (name, op) = (form.name(), form.operator());
        let first = inputs.first().copied().flatten()?;
        if self.nodes.len() < 2 {
            return None;
        }
        if !self.whole(first) {
            return self.miss(name, "its elements are rounded between the nodes (neither f32 nor f64)");
        }
        if self.shape(first)?.len() < self.rank {
            return self.miss(name, "a constant adds axes");
        }
        let last = self.uses.producer(output)?.0;
        if self.nodes.last() != Some(&last) {
            return None;
        }
        let mut inner = vec![];
        for v in self.nodes.iter().flat_map(|i| self.graph.node(*i).outputs.iter().flatten()) {
            if *v == output {
                continue;
            }
            if self.outputs.contains(v) {
                return self.miss(name, format!("{} between its nodes is a graph output", self.called(*v)));
            }
            if !self.within(*v) || inputs.contains(&Some(*v)) {
                return self.miss(name, format!("{} between its nodes is read elsewhere", self.called(*v)));
            }
            inner.push(*v);
        }
        let covers: Vec<String> = self.nodes.iter().map(|i| self.graph.node(*i).operator_name()).collect();
        Some(Fusion {
            form,
            op,
            inputs,
            output,
            covers: covers.join(", "),
            nodes: self.nodes.into_iter().collect(),
            inner,
            fixed: self.fixed.into_iter().collect(),
        })
    }
}

/// The product, where its powers stay within the third.
fn multiplied(a: &[f64; 4], b: &[f64; 4]) -> Option<[f64; 4]> {
    let mut out = [0.0; 4];
    for (i, a) in a.iter().enumerate().filter(|(_, a)| **a != 0.0) {
        for (j, b) in b.iter().enumerate().filter(|(_, b)| **b != 0.0) {
            *out.get_mut(i + j)? += a * b;
        }
    }
    Some(out)
}
