//! `drop-dead`: nodes whose results nothing reads, and constants that nothing reads. Operators of other
//! domains that are not known stay, since they may do more than compute; default inputs stay, since they
//! are part of the interface.

use super::sweep::Sweep;
use crate::error::Result;
use crate::graph::{Edit, Graph, ValueId};
use crate::ops;

pub(super) fn sweep(sweep: &mut Sweep<'_>) -> Result<()> {
    let graph = sweep.graph;
    let mut readers: Vec<usize> =
        (0..graph.value_count() as u32).map(|v| sweep.uses().consumers(ValueId(v)).len()).collect();
    graph.outputs().iter().for_each(|v| readers[v.0 as usize] += 1);
    let captured = |i: usize| -> Vec<ValueId> {
        let bodies = graph.node(i).bodies.iter();
        bodies.flat_map(|(_, b)| b.captured()).filter_map(|name| graph.find(&name)).collect()
    };
    let mut dead = vec![];
    for i in (0..graph.nodes().len()).rev() {
        let node = graph.node(i);
        if node.outputs.iter().flatten().any(|v| readers[v.0 as usize] > 0) {
            continue;
        }
        if node.op.is_none() && !ops::canonical_domain(&node.domain).is_empty() {
            let reason = format!("nothing reads it, but {} is not known", node.operator_name());
            sweep.skip(graph.label(i), reason);
            continue;
        }
        for v in node.inputs.iter().flatten().copied().chain(captured(i)) {
            readers[v.0 as usize] = readers[v.0 as usize].saturating_sub(1);
        }
        dead.push(i);
    }
    for i in dead.into_iter().rev() {
        sweep.remove(i);
        sweep.apply(graph.label(i), format!("nothing reads this {}", graph.node(i).operator_name()));
    }
    let inputs = graph.inputs();
    let unused: Vec<(ValueId, u64)> = graph
        .initializers()
        .filter(|(v, _)| readers[v.0 as usize] == 0)
        .filter(|(v, _)| graph.constant(*v).is_some() || !inputs.contains(v))
        .map(|(v, t)| (v, t.byte_len()))
        .collect();
    for (v, bytes) in unused {
        let edit = sweep.edit();
        edit.remove_initializer(v);
        edit.remove_input(v);
        sweep.apply(graph.value_name(v), format!("nothing reads this constant of {bytes} bytes"));
    }
    Ok(())
}

/// `graph` without the constants that were read in `before`, from which it was edited, and are no longer
/// (and without their entries among the inputs): what a pass calls that has put others in their place.
pub(in crate::passes) fn drop_unused_constants(before: &Graph, graph: Graph) -> Result<Graph> {
    let (then, now) = (before.uses(), graph.uses());
    let unused: Vec<ValueId> = before
        .initializers()
        .map(|(v, _)| v)
        .filter(|v| !then.consumers(*v).is_empty() && now.consumers(*v).is_empty())
        .filter(|v| !graph.outputs().contains(v))
        .collect();
    let mut edit = Edit::of(graph);
    for v in unused {
        edit.remove_initializer(v);
        edit.remove_input(v);
    }
    edit.commit()
}
