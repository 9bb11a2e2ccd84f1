//! What a unit of a coupling group costs in time: measured times of nodes enter, milliseconds that leave
//! with one unit of each group are noted in the summary.

use super::summarize::{Options, bound};
use super::{Summary, summary};
use crate::error::Result;
use crate::evaluate::measure::Profile;
use crate::graph::coupling::{self, Costs, Coupled};
use crate::graph::{Graph, NodeIndex};
use std::collections::{BTreeSet, HashMap};

/// Notes in `summary`, which is that of `graph` under `options`, what a unit of each prunable group takes:
/// of the time of every node the part of its work (multiply-accumulates, else bytes) that leaves with one
/// unit. It is the slope at the whole model. What really leaves comes in steps of the vector width.
///
/// # Errors
/// Those of inference.
pub fn time_units(summary: &mut Summary, graph: &Graph, options: &Options, profile: &Profile) -> Result<()> {
    let facts = bound(graph, options)?;
    let open = graph.infer_noting(&|_| None, |_| None, &mut |_| Ok(()))?;
    let coupled = Coupled::of(graph, &open, &coupling::Options::default());
    let parts = Costs::of(graph, &facts, &coupled).parts();
    let spent = by_node(graph, profile);
    let ms = |i: &NodeIndex| spent.nodes.get(i).map_or(0.0, |(ms, _)| *ms);
    for (group, parts) in summary.groups.iter_mut().zip(&parts).filter(|(g, _)| g.prunable) {
        let ms = parts.iter().map(|(i, part)| ms(i) * part).sum::<f64>();
        group.ms_per_unit = Some(ms).filter(|ms| *ms > 0.0);
    }
    summary.timing = Some(spent.timing(profile));
    Ok(())
}

/// Where the time of a run goes.
pub(super) struct Spent<'p> {
    /// Milliseconds of one run by node, and the operators that the runtime ran for it.
    pub(super) nodes: HashMap<NodeIndex, (f64, BTreeSet<&'p str>)>,
    /// Milliseconds of all nodes that ran.
    pub(super) all_ms: f64,
    /// Of those that the runtime kept or named after one of the graph's, which are the ones in `nodes`.
    pub(super) known_ms: f64,
}

impl Spent<'_> {
    pub(super) fn timing(&self, profile: &Profile) -> summary::Timing {
        summary::Timing {
            runs: profile.runs,
            run_ms: profile.run_ms,
            nodes_ms: self.all_ms,
            known_ms: self.known_ms,
        }
    }
}

/// The time of a run by node of `graph`, which is the model that ran or the one that it was made from: passes
/// name what they put in a node's place after it, as the runtime does.
pub(super) fn by_node<'p>(graph: &Graph, profile: &'p Profile) -> Spent<'p> {
    let names = names(graph);
    let mut spent = Spent { nodes: HashMap::new(), all_ms: 0.0, known_ms: 0.0 };
    for node in &profile.nodes {
        // A node within a loop occurs more than once in a run.
        let ms = node.typical_us / 1e3 * node.count as f64 / profile.runs.max(1) as f64;
        spent.all_ms += ms;
        if let Some(i) = origin(&node.node, &node.op, &names) {
            let (sum, operators) = spent.nodes.entry(i).or_default();
            *sum += ms;
            operators.insert(&node.op);
            spent.known_ms += ms;
        }
    }
    spent
}

/// Nodes by their own names and by those of their outputs; a name that means several means none.
fn names(graph: &Graph) -> HashMap<&str, Option<NodeIndex>> {
    let mut names: HashMap<&str, Option<NodeIndex>> = HashMap::new();
    for (i, node) in graph.nodes().iter().enumerate() {
        let outputs = node.outputs.iter().flatten().map(|v| graph.value_name(*v));
        for name in std::iter::once(node.name.as_str()).chain(outputs).filter(|n| !n.is_empty()) {
            names.entry(name).and_modify(|at| *at = at.filter(|at| *at == i)).or_insert(Some(i));
        }
    }
    names
}

/// The node that the runtime named one of its own, an `op`, after: it keeps names, and where it fuses nodes or
/// changes their layout it appends to the name of a node or of an output, behind `_` or `/`. What it makes anew is
/// named after its operator alone: `Slice_token_3`.
fn origin(name: &str, op: &str, names: &HashMap<&str, Option<NodeIndex>>) -> Option<NodeIndex> {
    let base = name.rsplit_once("_token_").map_or(name, |(base, _)| base);
    let ends = base.char_indices().rev().filter(|(_, c)| matches!(c, '_' | '/')).map(|(at, _)| at);
    let found = std::iter::once(base.len()).chain(ends).find_map(|end| names.get(&base[..end]));
    found.copied().flatten().filter(|_| base == name || base != op)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::summarize;
    use crate::graph::{Edit, Type};
    use crate::ops::{Attributes, Dim};
    use crate::runtime::OpTime;
    use crate::tensor::{DType, Tensor};

    /// `[n, 8] @ [8, 16] -> Relu -> @ [16, 4]`.
    fn graph() -> Graph {
        let mut edit = Edit::new("g", &[("", 17)]);
        let shape = vec![Dim::symbol("n"), Dim::from(8i64)];
        let x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: Some(shape) });
        let weight = |edit: &mut Edit, name: &str, shape: [usize; 2]| {
            let values = vec![1f32; shape[0] * shape[1]];
            edit.add_initializer(name, Tensor::from_vec(shape.to_vec(), values).unwrap())
        };
        let (a, b) = (weight(&mut edit, "a", [8, 16]), weight(&mut edit, "b", [16, 4]));
        let up = edit.add_op("MatMul", &[x, a], Attributes::new(), "up");
        let gate = edit.add_op("Relu", &[up], Attributes::new(), "gate");
        let down = edit.add_op("MatMul", &[gate, b], Attributes::new(), "down");
        edit.add_output(down);
        edit.commit().unwrap()
    }

    fn time(node: &str, us: f64) -> OpTime {
        let text = String::new();
        OpTime { node: node.into(), op: text.clone(), provider: text, count: 10, total_us: 0, typical_us: us }
    }

    #[test]
    fn a_unit_takes_its_part_of_every_node_that_it_is_in() {
        let graph = graph();
        let options = Options::default();
        let mut summary = summarize(&graph, &options).unwrap();
        let nodes =
            vec![time("up", 160.0), time("gate", 32.0), time("down_nchwc", 80.0), time("Cast_token_1", 50.0)];
        let profile = Profile { runs: 10, run_ms: 0.4, nodes };
        time_units(&mut summary, &graph, &options, &profile).unwrap();
        let group = summary.groups.iter().find(|g| g.units == 16).unwrap();
        let expected = (160.0 + 32.0 + 80.0) / 16.0 / 1e3;
        assert!((group.ms_per_unit.unwrap() - expected).abs() < 1e-12, "{group:?}");
        assert!(summary.groups.iter().filter(|g| !g.prunable).all(|g| g.ms_per_unit.is_none()));
        let timing = summary.timing.unwrap();
        assert!(
            (timing.known_ms - 0.272).abs() < 1e-12 && (timing.nodes_ms - 0.322).abs() < 1e-12,
            "{timing:?}"
        );
    }

    #[test]
    fn names_of_the_runtime_lead_to_their_nodes() {
        let (a, b) = (Some(1), Some(2));
        let names = HashMap::from([
            ("MatMul_1", a),
            ("MatMul_12", b),
            ("conv.tmp_0", a),
            ("twice", None),
            ("Slice", b),
        ]);
        for (name, node) in [
            ("MatMul_1", a),
            ("MatMul_12", b),
            ("MatMul_12/MatMulAddFusion", b),
            ("conv.tmp_0_nchwc", a),
            ("MatMul_123", None),
            ("MatMul_1_token_4", a),
            ("conv.tmp_0_token_7", a),
            ("Slice_token_7", None),
            ("twice", None),
            ("Slice", b),
        ] {
            assert_eq!(origin(name, "Slice", &names), node, "{name}");
        }
    }
}
