//! The same decision with all shapes kept: the units that leave are zeroed wherever a constant holds
//! them, so that they are zero behind their producers (bias and normalisation included) and weigh
//! nothing in their consumers. Whatever function lies between, the outputs are those of the sliced
//! graph; only statistics over such an axis (LayerNormalization, Softmax) differ.

use super::Decision;
use crate::error::{Error, Result};
use crate::graph::constants::Constants;
use crate::graph::{Graph, ValueId};
use crate::ops::Attr;
use crate::tensor::Tensor;
use crate::with_data;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Inputs at which a zero makes infinities or is no neutral element; they lie on the axis of a unit
/// without being a part of it that has to vanish.
const NOT_ZEROED: &[(&str, usize)] = &[
    ("BatchNormalization", 3),
    ("BatchNormalization", 4),
    ("Div", 1),
    ("Pow", 0),
    ("Pow", 1),
    ("Log", 0),
    ("Reciprocal", 0),
    ("Mod", 1),
];

/// The graph with the units that leave at zero.
///
/// # Errors
/// Those of reading weights.
pub fn mask(graph: &Graph, decision: &Decision) -> Result<Graph> {
    let constants = Constants::of(graph);
    let uses = graph.uses();
    let kept = decision.coupled.kept(&|u| decision.leaves[u]);
    let vanishes = |v: ValueId| {
        let read = |(i, slot): &(usize, usize)| (graph.node(*i).op_type.as_str(), *slot);
        constants.get(v).is_some_and(|t| t.dtype().is_float() && !t.dtype().is_packed())
            && !uses.consumers(v).iter().any(|c| NOT_ZEROED.contains(&read(c)))
    };
    let mut axes: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
    for (v, axis) in kept.keys().filter(|(v, _)| vanishes(*v)) {
        axes.entry(*v).or_default().push(*axis);
    }
    let mut edit = graph.edit();
    for (v, axes) in axes {
        let Some(mut tensor) = constants.get(v).cloned() else { continue };
        for axis in axes {
            let gone = |u: Option<usize>| u.is_some_and(|u| decision.leaves[u]);
            let on = decision.coupled.on(v, axis).into_iter().flatten();
            let gone: Vec<bool> = on.map(gone).collect();
            let at = |e: Error| e.field(format!("weight \"{}\"", graph.value_name(v)));
            tensor = zeroed(&tensor, axis, &gone).map_err(at)?;
        }
        match constants.node(v).filter(|_| graph.initializer(v).is_none()) {
            Some(i) => edit.node_mut(i).attributes.set("value", Attr::Tensor(tensor)),
            None => edit.set_initializer(v, tensor),
        }
    }
    edit.commit()
}

pub(super) fn zeroed(tensor: &Tensor, axis: usize, gone: &[bool]) -> Result<Tensor> {
    fn go<T: Default + Clone>(v: &mut [T], inner: usize, gone: &[bool]) {
        for (i, line) in v.chunks_mut(inner.max(1)).enumerate() {
            if gone[i % gone.len()] {
                line.fill(T::default());
            }
        }
    }
    let inner: usize = tensor.shape()[axis + 1..].iter().product();
    let mut data = Arc::unwrap_or_clone(tensor.data()?);
    with_data!(&mut data, v => go(v, inner, gone), str => ());
    Tensor::new(tensor.dtype(), tensor.shape().to_vec(), data)
}
