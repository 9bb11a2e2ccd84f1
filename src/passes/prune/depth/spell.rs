//! Sums and norms apart: runtimes fuse the sum of a residual branch with the norm of the next one, which
//! leaves no place where a branch ends. Runtimes fuse them again when they load the result.

use super::find::NORMED_SUMS;
use crate::error::{Error, Result};
use crate::graph::{Edit, Graph, Node, NodeIndex, Uses, ValueId};
use crate::ops::{Attr, Attributes, SKIP_NORM_EPSILON};

/// `graph` with SkipLayerNormalization and SkipSimplifiedLayerNormalization as sums and norms, where one
/// gives its sum to others; elsewhere ([`super::blocks`] knows a norm behind a branch) it is left as it is.
/// Outputs are the same up to rounding.
///
/// # Errors
/// `Unsupported` where something reads mean or deviation, or the operator set has no LayerNormalization.
pub fn spelled(graph: &Graph) -> Result<Graph> {
    let uses = graph.uses();
    let read = |v: &ValueId| !uses.consumers(*v).is_empty() || graph.outputs().contains(v);
    let fused: Vec<NodeIndex> =
        (0..graph.nodes().len()).filter(|i| NORMED_SUMS.contains(&graph.node(*i).op_type.as_str())).collect();
    if !fused.iter().any(|i| graph.node(*i).outputs.iter().skip(3).flatten().any(read)) {
        return Ok(graph.clone());
    }
    let mut edit = graph.edit();
    for i in fused {
        let node = graph.node(i);
        let refuse = |what: &str| Error::unsupported("PRUNE-DEPTH-NORM", what).node(graph.label(i));
        if node.outputs.iter().skip(1).take(2).flatten().any(read) {
            return Err(refuse("the moments of a fused norm are read"));
        }
        let centred = node.op_type == "SkipLayerNormalization";
        if centred && graph.opset("").unwrap_or(0) < 17 {
            return Err(refuse("a norm of its own needs operator set 17")
                .found(graph.opset("").unwrap_or(0))
                .hint("raise the operator set, or start from the model before it was optimised"));
        }
        spell(&mut edit, graph, &uses, i, centred)?;
    }
    edit.forget_types();
    edit.commit()
}

fn spell(edit: &mut Edit, graph: &Graph, uses: &Uses, i: NodeIndex, centred: bool) -> Result<()> {
    let (node, label) = (graph.node(i), graph.label(i));
    let input = |slot: usize| node.inputs.get(slot).copied().flatten();
    let missing = || Error::invalid("OP-INPUT", "a required input is missing").node(graph.label(i));
    let (mut a, mut b) = (input(0).ok_or_else(missing)?, input(1).ok_or_else(missing)?);
    let gain = input(2).ok_or_else(missing)?;
    let (shift, bias) = if centred { (input(3), input(4)) } else { (None, input(3)) };
    // The bias belongs to the branch, which is computed later than what it adds to.
    if uses.producer(a) > uses.producer(b) {
        std::mem::swap(&mut a, &mut b);
    }
    if let Some(bias) = bias {
        b = edit.add_op("Add", &[b, bias], Attributes::new(), &format!("{label}.biased"));
    }
    edit.remove_node(i);
    let sum = node.outputs.get(3).copied().flatten();
    let sum = sum.unwrap_or_else(|| edit.add_value(&format!("{label}.sum"), None));
    edit.add_node(Node::new("Add", vec![Some(a), Some(b)], vec![Some(sum)]).named(format!("{label}.sum")));
    if let Some(y) = node.outputs.first().copied().flatten() {
        let op = if centred { "LayerNormalization" } else { "SimplifiedLayerNormalization" };
        let epsilon = node.attributes.float("epsilon", SKIP_NORM_EPSILON)?;
        let with = Attributes::new().with("axis", Attr::Int(-1)).with("epsilon", Attr::Float(epsilon));
        let inputs = [Some(sum), Some(gain)].into_iter().chain(shift.map(Some)).collect();
        edit.add_node(Node::new(op, inputs, vec![Some(y)]).with(with).named(label));
    }
    Ok(())
}
