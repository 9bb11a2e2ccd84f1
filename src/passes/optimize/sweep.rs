//! One sweep of one rule: the graph as it is, with its uses and facts, and the edit in the making. Values
//! are replaced through [`Sweep::replace`], which keeps graph outputs and captured values by name.

use super::super::lower::Target;
use super::super::{Applied, Skipped};
use super::trial::{self, Claim, Verdict};
use crate::error::{Error, Result};
use crate::graph::{Edit, Facts, Graph, Node, NodeIndex, Uses, ValueId};
use crate::ops::Fact;
use crate::tensor::Tensor;
use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};

/// A graph with what rules ask of it, computed when first asked.
pub(super) struct Analysis {
    graph: Graph,
    uses: OnceCell<Uses>,
    facts: OnceCell<(Facts, Vec<Error>)>,
    outputs: HashSet<ValueId>,
    captured: HashSet<ValueId>,
}

impl Analysis {
    pub(super) fn of(graph: Graph) -> Analysis {
        let captured = graph
            .nodes()
            .iter()
            .flat_map(|n| &n.bodies)
            .flat_map(|(_, body)| body.captured())
            .filter_map(|name| graph.find(&name))
            .collect();
        let outputs = graph.outputs().iter().copied().collect();
        Analysis { graph, uses: OnceCell::new(), facts: OnceCell::new(), outputs, captured }
    }

    pub(super) fn into_graph(self) -> Graph {
        self.graph
    }

    fn uses(&self) -> &Uses {
        self.uses.get_or_init(|| self.graph.uses())
    }

    fn inferred(&self) -> Result<&(Facts, Vec<Error>)> {
        if let Some(found) = self.facts.get() {
            return Ok(found);
        }
        let mut problems = vec![];
        let facts = super::facts(&self.graph, &mut problems)?;
        Ok(self.facts.get_or_init(|| (facts, problems)))
    }

    /// Nodes whose shapes cannot be, as inference tells.
    pub(super) fn problems(&self) -> Result<&[Error]> {
        Ok(&self.inferred()?.1)
    }
}

/// What a sweep did.
pub(super) struct Outcome {
    /// The changed graph; `None` where nothing changed.
    pub graph: Option<Graph>,
    pub applied: Vec<Applied>,
    pub skipped: Vec<Skipped>,
    /// Of the rewrites that were tried: the part of the largest element by which results differ.
    pub trials: Vec<f64>,
}

/// What every sweep of a run goes by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// Most bytes of a folded constant.
    pub fold_limit: u64,
    /// Whose operators may be written.
    pub target: Target,
}

/// A sweep under way. `graph`, uses and facts are those before the sweep.
pub(super) struct Sweep<'a> {
    rule: &'static str,
    analysis: &'a Analysis,
    /// The graph before the sweep.
    pub graph: &'a Graph,
    pub terms: Terms,
    /// Values whose rewrite was tried and did not give the same.
    refused: &'a HashMap<ValueId, String>,
    /// What is to be tried, by entry of `applied`.
    claims: Vec<(usize, Claim)>,
    edit: Option<Edit>,
    alias: HashMap<ValueId, ValueId>,
    touched: HashSet<NodeIndex>,
    removed: HashSet<NodeIndex>,
    applied: Vec<Applied>,
    skipped: Vec<Skipped>,
}

impl<'a> Sweep<'a> {
    /// Runs one rule over the graph. What it claims to be the same is tried; where it is not, the rule runs
    /// again without that.
    pub(super) fn run(
        analysis: &'a Analysis,
        rule: &'static str,
        terms: Terms,
        sweep: fn(&mut Sweep<'_>) -> Result<()>,
    ) -> Result<Outcome> {
        let mut refused = HashMap::new();
        loop {
            let before = refused.len();
            let outcome = Sweep::once(analysis, rule, terms, sweep, &mut refused)?;
            if refused.len() == before {
                return Ok(outcome);
            }
        }
    }

    fn once(
        analysis: &Analysis,
        rule: &'static str,
        terms: Terms,
        sweep: fn(&mut Sweep<'_>) -> Result<()>,
        refused: &mut HashMap<ValueId, String>,
    ) -> Result<Outcome> {
        let mut state = Sweep {
            rule,
            analysis,
            graph: &analysis.graph,
            terms,
            refused: &*refused,
            claims: vec![],
            edit: None,
            alias: HashMap::new(),
            touched: HashSet::new(),
            removed: HashSet::new(),
            applied: vec![],
            skipped: vec![],
        };
        sweep(&mut state)?;
        let Sweep { edit, alias, mut applied, skipped, claims, .. } = state;
        let mut trials = vec![];
        if edit.is_none() && alias.is_empty() {
            return Ok(Outcome { graph: None, applied, skipped, trials });
        }
        let mut edit = edit.unwrap_or_else(|| analysis.graph.edit());
        edit.redirect_all(|v| follow(&alias, v));
        let graph = edit.commit()?;
        if !claims.is_empty() {
            let uses = graph.uses();
            let before = (&analysis.graph, &analysis.inferred()?.0, analysis.uses());
            for (at, claim) in claims {
                match trial::compare(before, (&graph, &uses), &claim) {
                    Verdict::Same(far) => trials.push(far),
                    Verdict::Untried(why) => applied[at].detail += &format!(" (untried: {why})"),
                    Verdict::Differs(why) => {
                        refused.insert(claim.outputs[0], why);
                    }
                }
            }
        }
        Ok(Outcome { graph: Some(graph), applied, skipped, trials })
    }

    /// Has the rewrite that was noted last tried: `output` must be what it was, made from the same values.
    pub(super) fn claim(&mut self, output: ValueId, from: impl IntoIterator<Item = ValueId>) {
        let becomes = self.graph.value_name(output).to_string();
        let claim = Claim { outputs: vec![output], becomes, from: from.into_iter().collect() };
        self.claims.push((self.applied.len().saturating_sub(1), claim));
    }

    /// As [`Sweep::claim`]: the new value `whole` must be `outputs` side by side on the last axis.
    pub(super) fn claim_beside(&mut self, outputs: Vec<ValueId>, whole: ValueId, from: Vec<ValueId>) {
        let becomes = self.edit().graph().value_name(whole).to_string();
        self.claims.push((self.applied.len().saturating_sub(1), Claim { outputs, becomes, from }));
    }

    /// Why a trial refused the rewrite that gives `output`, or that of which it is the first.
    pub(super) fn refused(&self, output: ValueId) -> Option<&'a str> {
        self.refused.get(&output).map(String::as_str)
    }

    /// Producers and consumers before the sweep.
    pub(super) fn uses(&self) -> &'a Uses {
        self.analysis.uses()
    }

    /// Facts before the sweep.
    pub(super) fn facts(&self) -> Result<&'a Facts> {
        Ok(&self.analysis.inferred()?.0)
    }

    /// The fact of a value.
    pub(super) fn fact(&self, v: ValueId) -> Result<Option<&'a Fact>> {
        Ok(self.facts()?.get(v))
    }

    /// The edit; asking for it is a change.
    pub(super) fn edit(&mut self) -> &mut Edit {
        self.edit.get_or_insert_with(|| self.analysis.graph.edit())
    }

    /// The constant that a value is by now.
    pub(super) fn constant(&self, v: ValueId) -> Option<&Tensor> {
        self.edit.as_ref().map_or(self.graph, Edit::graph).constant(v)
    }

    /// The constant at an input of a node.
    pub(super) fn constant_input(&self, node: &Node, slot: usize) -> Option<&Tensor> {
        self.constant(node.inputs.get(slot).copied().flatten()?)
    }

    /// Whether a value is a graph output.
    pub(super) fn is_output(&self, v: ValueId) -> bool {
        self.analysis.outputs.contains(&v)
    }

    /// Whether a value must keep its name: a graph output, or read by a body.
    pub(super) fn is_pinned(&self, v: ValueId) -> bool {
        self.is_output(v) || self.analysis.captured.contains(&v)
    }

    /// The only reader of a value that nobody else can see.
    pub(super) fn only_reader(&self, v: ValueId) -> Option<NodeIndex> {
        match self.uses().consumers(v) {
            [(reader, _)] if !self.is_pinned(v) => Some(*reader),
            _ => None,
        }
    }

    /// Whether the sweep has changed a node already; it then waits for the next sweep.
    pub(super) fn is_touched(&self, i: NodeIndex) -> bool {
        self.touched.contains(&i)
    }

    /// A node to change; it counts as touched.
    pub(super) fn change(&mut self, i: NodeIndex) -> &mut Node {
        self.touched.insert(i);
        self.edit().node_mut(i)
    }

    /// Removes a node, whose outputs must have been replaced or have no readers.
    pub(super) fn remove(&mut self, i: NodeIndex) {
        self.touched.insert(i);
        self.removed.insert(i);
        self.edit().remove_node(i);
    }

    /// Makes `x` stand for `y`. Where `y` must keep its name, the producer of `x` gives its value under
    /// that name. The error says why that cannot be.
    pub(super) fn replace(&mut self, y: ValueId, x: ValueId) -> std::result::Result<(), &'static str> {
        let x = follow(&self.alias, x);
        if !self.is_pinned(y) {
            self.alias.insert(y, x);
            return Ok(());
        }
        if self.is_pinned(x) {
            return Err("both its input and its output must keep their names");
        }
        match self.uses().producer(x) {
            Some((node, slot)) if !self.removed.contains(&node) => {
                let ty = self.graph.value(x).ty.clone();
                self.change(node).outputs[slot] = Some(y);
                if self.graph.value(y).ty.is_none() {
                    self.edit().set_type(y, ty);
                }
                self.alias.insert(x, y);
                Ok(())
            }
            _ => Err("a graph output must be the result of a node"),
        }
    }

    /// Notes a change.
    pub(super) fn apply(&mut self, target: impl Into<String>, detail: impl Into<String>) {
        self.applied.push(Applied { rule: self.rule.into(), target: target.into(), detail: detail.into() });
    }

    /// Notes a near miss.
    pub(super) fn skip(&mut self, target: impl Into<String>, reason: impl Into<String>) {
        self.skipped.push(Skipped { rule: self.rule.into(), target: target.into(), reason: reason.into() });
    }
}

fn follow(alias: &HashMap<ValueId, ValueId>, mut v: ValueId) -> ValueId {
    while let Some(next) = alias.get(&v) {
        v = *next;
    }
    v
}
