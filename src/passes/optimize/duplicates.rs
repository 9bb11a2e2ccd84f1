//! `merge-duplicates`: of nodes that compute the same from the same values, the first is kept; so are
//! equal small constants of shapes, axes and scalars. Weights and biases stay apart, so that pruning
//! may cut each by itself.

use super::sweep::Sweep;
use crate::error::Result;
use crate::graph::{Node, ValueId};
use crate::ops::Attr;
use crate::tensor::{Data, Tensor};
use crate::with_data;
use std::collections::HashMap;

/// Largest constant that is compared.
const SMALL: usize = 256;

/// Bits of a small tensor with its type and shape.
fn bits(t: &Tensor) -> Option<Vec<u8>> {
    if t.len() > SMALL {
        return None;
    }
    let mut key = format!("{}{:?}:", t.dtype(), t.shape()).into_bytes();
    match &*t.data().ok()? {
        Data::Str(v) => key.extend(format!("{v:?}").into_bytes()),
        other => with_data!(other, v => key.extend_from_slice(bytemuck::cast_slice(v)), str => {}),
    }
    Some(key)
}

/// An attribute as bytes that are equal exactly where the attributes are; `None` for what is not compared.
fn attribute(attr: &Attr) -> Option<Vec<u8>> {
    Some(match attr {
        Attr::Tensor(t) => bits(t)?,
        Attr::Float(v) => format!("f{}", v.to_bits()).into_bytes(),
        Attr::Floats(v) => format!("F{:?}", v.iter().map(|x| x.to_bits()).collect::<Vec<_>>()).into_bytes(),
        Attr::Int(v) => format!("i{v}").into_bytes(),
        Attr::Ints(v) => format!("I{v:?}").into_bytes(),
        Attr::Str(v) => format!("s{v:?}").into_bytes(),
        Attr::Strs(v) => format!("S{v:?}").into_bytes(),
        Attr::Body(_) | Attr::Opaque(_) => return None,
    })
}

type Key = (String, Vec<Option<ValueId>>, Vec<(String, Vec<u8>)>, Vec<bool>);

/// What a node computes, from which values (`same` maps merged ones to the kept one).
fn key(node: &Node, same: &HashMap<ValueId, ValueId>) -> Option<Key> {
    if !node.op.as_ref()?.deterministic() || !node.bodies.is_empty() {
        return None;
    }
    let inputs = node.inputs.iter().map(|v| v.map(|v| same.get(&v).copied().unwrap_or(v))).collect();
    let mut attributes: Vec<(String, Vec<u8>)> =
        node.attributes.iter().map(|(n, a)| Some((n.to_string(), attribute(a)?))).collect::<Option<_>>()?;
    attributes.sort();
    Some((node.operator_name(), inputs, attributes, node.outputs.iter().map(Option::is_some).collect()))
}

pub(super) fn sweep(sweep: &mut Sweep<'_>) -> Result<()> {
    let mut same: HashMap<ValueId, ValueId> = HashMap::new();
    constants(sweep, &mut same);
    let mut seen: HashMap<Key, usize> = HashMap::new();
    for i in 0..sweep.graph.nodes().len() {
        let node = sweep.graph.node(i);
        let Some(key) = key(node, &same) else { continue };
        let Some(&first) = seen.get(&key) else {
            seen.insert(key, i);
            continue;
        };
        let label = sweep.graph.label(i);
        let kept = sweep.graph.node(first);
        let pairs: Vec<(ValueId, ValueId)> =
            (node.outputs.iter().zip(&kept.outputs)).filter_map(|(y, x)| Some(((*y)?, (*x)?))).collect();
        if pairs.iter().any(|(y, _)| sweep.is_pinned(*y)) {
            sweep.skip(
                label,
                format!("it repeats {}, but must keep its output's name", sweep.graph.label(first)),
            );
            continue;
        }
        for (y, x) in pairs {
            if sweep.replace(y, x).is_ok() {
                same.insert(y, x);
            }
        }
        sweep.remove(i);
        sweep.apply(label, format!("{} repeats {}", node.operator_name(), sweep.graph.label(first)));
    }
    Ok(())
}

/// Merges equal integers and scalars.
fn constants(sweep: &mut Sweep<'_>, same: &mut HashMap<ValueId, ValueId>) {
    let mut seen: HashMap<Vec<u8>, ValueId> = HashMap::new();
    let mut merged = 0usize;
    for (v, t) in sweep.graph.initializers() {
        let shared = t.dtype().is_int() || t.len() == 1;
        if !shared || sweep.is_pinned(v) || sweep.constant(v).is_none() || sweep.graph.inputs().contains(&v) {
            continue;
        }
        // A quantised weight or bias is a parameter as well.
        if t.dtype().bits() < 32 && t.len() > 1 || t.shape().len() > 1 && t.len() > 1 {
            continue;
        }
        let Some(key) = bits(t) else { continue };
        match seen.get(&key) {
            None => {
                seen.insert(key, v);
            }
            Some(first) => {
                let first = *first;
                if !sweep.uses().consumers(v).is_empty() && sweep.replace(v, first).is_ok() {
                    same.insert(v, first);
                    merged += 1;
                }
            }
        }
    }
    if merged > 0 {
        sweep.apply("initializers", format!("{merged} small constants repeat others"));
    }
}
