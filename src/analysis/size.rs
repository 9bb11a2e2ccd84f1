//! Sizes that an inspection binds where the model leaves a dimension open.

use crate::formats::architecture::keys;
use crate::graph::{Graph, Type, ValueId};
use crate::ops::Dim;
use std::collections::{BTreeMap, HashSet};

/// Height and width of an image whose size is open.
const IMAGE: i64 = 224;
/// Length of a sequence whose length is open.
const SEQUENCE: i64 = 128;

/// `graph` with every open input dimension named, or `None` where all have names already. Open
/// dimensions are called `INPUT.AXIS`.
pub(super) fn name_open_dimensions(graph: &Graph) -> Option<Graph> {
    let open = |v: &ValueId| match &graph.value(*v).ty {
        Some(Type::Tensor { shape: Some(shape), .. }) => shape.iter().any(Dim::is_unknown),
        _ => false,
    };
    if !graph.required_inputs().any(|v| open(&v)) {
        return None;
    }
    let mut named = graph.clone();
    for v in graph.required_inputs() {
        let Some(value) = named.values.get_mut(v.0 as usize) else { continue };
        let name = value.name.clone();
        if let Some(Type::Tensor { shape: Some(shape), .. }) = &mut value.ty {
            for (axis, dim) in shape.iter_mut().enumerate() {
                if dim.is_unknown() {
                    *dim = Dim::symbol(&format!("{name}.{axis}"));
                }
            }
        }
    }
    Some(named)
}

/// Sizes of the open dimensions of a graph as inputs of these names and shapes have them.
pub(super) fn of_inputs<'a>(
    graph: &Graph,
    inputs: impl Iterator<Item = (&'a str, &'a [usize])>,
) -> BTreeMap<String, i64> {
    let named = name_open_dimensions(graph);
    let graph = named.as_ref().unwrap_or(graph);
    let mut sizes = BTreeMap::new();
    for (name, given) in inputs {
        let input = graph.required_inputs().find(|v| graph.value_name(*v) == name);
        let Some(Type::Tensor { shape: Some(shape), .. }) = input.and_then(|v| graph.value(v).ty.as_ref())
        else {
            continue;
        };
        for (dim, size) in shape.iter().zip(given) {
            if let (Some(symbol), Ok(size)) = (dim.as_symbol(), i64::try_from(*size)) {
                sizes.insert(symbol.to_string(), size);
            }
        }
    }
    sizes
}

/// A size for every symbol of the graph's inputs: what the caller gives, else `batch` for the first
/// axis, none for tokens in a cache, an image size for the last two of four axes, and a sequence length
/// elsewhere, at most what a built graph says that it serves.
pub(super) fn bindings(graph: &Graph, given: &BTreeMap<String, i64>, batch: i64) -> Vec<(String, i64)> {
    let mut bound: Vec<(String, i64)> = Vec::new();
    let mut seen = HashSet::new();
    let mut cached = HashSet::new();
    let stated = graph.header().metadata.iter().find(|(key, _)| key == keys::CONTEXT);
    let context = stated.and_then(|(_, n)| n.parse::<i64>().ok()).filter(|n| *n > 0);
    let sequence = context.map_or(SEQUENCE, |n| n.min(SEQUENCE));
    for v in graph.required_inputs().filter(|v| graph.value_name(*v).starts_with("past")) {
        if let Some(Type::Tensor { shape: Some(shape), .. }) = &graph.value(v).ty
            && let [_, _, tokens, _] = shape.as_slice()
        {
            tokens.symbols(&mut |symbol| {
                cached.insert(symbol.to_string());
            });
        }
    }
    for v in graph.required_inputs() {
        let Some(Type::Tensor { shape: Some(shape), .. }) = &graph.value(v).ty else { continue };
        for (axis, dim) in shape.iter().enumerate() {
            dim.symbols(&mut |symbol| {
                if !seen.insert(symbol.to_string()) {
                    return;
                }
                let size = match given.get(symbol) {
                    Some(size) => *size,
                    None if axis == 0 => batch,
                    // One inference is a prefill: nothing is in the cache yet.
                    None if cached.contains(symbol) => 0,
                    None if shape.len() == 4 && axis >= 2 => IMAGE,
                    None if shape.len() == 4 => 3,
                    None => sequence,
                };
                bound.push((symbol.to_string(), size));
            });
        }
    }
    bound
}
