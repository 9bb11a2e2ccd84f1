//! Peak memory of live activations. Byte sizes of values enter, the peak over execution order leaves.
//! A value lives from its producer to its last reader; outputs of operators that only rename elements
//! (Reshape and the like) share the memory of their input.

use crate::graph::{Graph, Uses, ValueId};
use std::collections::HashSet;

/// Operators whose first output is their first input under another shape.
const VIEWS: [&str; 6] = ["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"];

/// Peak bytes; `bytes` gives the size of an activation, 0 for constants and unknown sizes.
pub(super) fn peak(graph: &Graph, uses: &Uses, bytes: &dyn Fn(ValueId) -> u64) -> u64 {
    let n = graph.value_count();
    let mut root: Vec<usize> = (0..n).collect();
    for node in graph.nodes() {
        if let (true, Some(Some(input)), Some(Some(output))) =
            (VIEWS.iter().any(|v| node.is(v)), node.inputs.first(), node.outputs.first())
            && let Some(r) = root.get(input.0 as usize).copied()
            && let Some(slot) = root.get_mut(output.0 as usize)
        {
            *slot = r;
        }
    }
    let end = graph.nodes().len();
    let outputs: HashSet<ValueId> = graph.outputs().iter().copied().collect();
    // Last node that reads each root; `None` where nobody does.
    let mut last: Vec<Option<usize>> = vec![None; n];
    for i in 0..n {
        let v = ValueId(i as u32);
        let mut read = uses.consumers(v).iter().map(|(node, _)| *node).max();
        if outputs.contains(&v) {
            read = Some(end);
        }
        let r = root.get(i).copied().unwrap_or(i);
        if let Some(slot) = last.get_mut(r) {
            *slot = (*slot).max(read);
        }
    }
    let mut freed: Vec<Vec<usize>> = vec![Vec::new(); end + 1];
    let size = |i: usize| bytes(ValueId(i as u32));
    let mut live = 0u64;
    for v in graph.required_inputs() {
        let i = v.0 as usize;
        if let Some(at) = last.get(i).copied().flatten() {
            live = live.saturating_add(size(i));
            if let Some(list) = freed.get_mut(at) {
                list.push(i);
            }
        }
    }
    let mut most = live;
    for (step, node) in graph.nodes().iter().enumerate() {
        for v in node.outputs.iter().flatten() {
            let i = v.0 as usize;
            if root.get(i) != Some(&i) {
                continue;
            }
            live = live.saturating_add(size(i));
            if let Some(list) = freed.get_mut(last.get(i).copied().flatten().unwrap_or(step)) {
                list.push(i);
            }
        }
        most = most.max(live);
        for i in freed.get(step).into_iter().flatten() {
            live = live.saturating_sub(size(*i));
        }
    }
    most
}
