//! What a unit of a coupling group costs in time: measured times of nodes enter, milliseconds that leave
//! with one unit of each group are noted in the summary.

use super::summarize::{Options, bound};
use super::{Summary, summary};
use crate::error::Result;
use crate::evaluate::measure::Profile;
use crate::graph::coupling::{self, Costs, Coupled};
use crate::graph::{Graph, NodeIndex};
use std::collections::HashMap;

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
    let (times, nodes_ms, known_ms) = by_node(graph, profile);
    for (group, parts) in summary.groups.iter_mut().zip(&parts).filter(|(g, _)| g.prunable) {
        let ms = parts.iter().map(|(i, part)| times.get(i).copied().unwrap_or(0.0) * part).sum::<f64>();
        group.ms_per_unit = Some(ms).filter(|ms| *ms > 0.0);
    }
    summary.timing = Some(summary::Timing { runs: profile.runs, run_ms: profile.run_ms, nodes_ms, known_ms });
    Ok(())
}

/// Milliseconds of one run by node of `graph`; those of all nodes that ran; and those of the nodes that the
/// runtime kept or named after one of the graph, which are the ones in the first figure.
fn by_node(graph: &Graph, profile: &Profile) -> (HashMap<NodeIndex, f64>, f64, f64) {
    let names = names(graph);
    let mut times: HashMap<NodeIndex, f64> = HashMap::new();
    let (mut all, mut known) = (0.0, 0.0);
    for node in &profile.nodes {
        // A node within a loop occurs more than once in a run.
        let ms = node.typical_us / 1e3 * node.count as f64 / profile.runs.max(1) as f64;
        all += ms;
        if let Some(i) = origin(&node.node, &names) {
            *times.entry(i).or_default() += ms;
            known += ms;
        }
    }
    (times, all, known)
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

/// The node that the runtime named one of its own after: it keeps names, and where it fuses nodes or
/// changes their layout it appends to the name of a node or of an output, behind `_` or `/`.
fn origin(name: &str, names: &HashMap<&str, Option<NodeIndex>>) -> Option<NodeIndex> {
    let ends = name.char_indices().rev().filter(|(_, c)| matches!(c, '_' | '/')).map(|(at, _)| at);
    let found = std::iter::once(name.len()).chain(ends).find_map(|end| names.get(&name[..end]));
    // `Slice_token_3` was made by the runtime and named after its operator alone.
    found.copied().flatten().filter(|_| !name.contains("_token_"))
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
        let names = HashMap::from([("MatMul_1", a), ("MatMul_12", b), ("conv.tmp_0", a), ("twice", None)]);
        for (name, node) in [
            ("MatMul_1", a),
            ("MatMul_12", b),
            ("MatMul_12/MatMulAddFusion", b),
            ("conv.tmp_0_nchwc", a),
            ("MatMul_123", None),
            ("MatMul_1_token_4", None),
            ("twice", None),
            ("Slice", None),
        ] {
            assert_eq!(origin(name, &names), node, "{name}");
        }
    }
}
