//! Sizes that an inspection binds where the model leaves a dimension open, and inputs of these sizes.

use super::Summary;
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

/// Sizes of named dimensions as analysis bound them, so that figures and counts are of one input.
pub fn dimensions(summaries: &[Summary]) -> BTreeMap<String, usize> {
    let bound = summaries.iter().flat_map(|s| &s.bindings);
    bound.filter_map(|(name, size)| Some((name.clone(), usize::try_from(*size).ok()?))).collect()
}

/// Shapes of the inputs that all models have, with open dimensions bound as analysis bound them, and a
/// line for each that was open.
pub fn input_shapes(summaries: &[Summary]) -> (BTreeMap<String, Vec<usize>>, Vec<String>) {
    let (mut shapes, mut lines) = (BTreeMap::new(), Vec::new());
    let Some(first) = summaries.first() else { return (shapes, lines) };
    for input in &first.inputs {
        let common =
            summaries.iter().all(|s| s.inputs.iter().any(|i| i.name == input.name && i.shape == input.shape));
        let Some(dims) = input.shape.as_ref().filter(|_| common) else { continue };
        let bound = |symbol: &str| first.bindings.iter().find(|(s, _)| s == symbol).map(|(_, n)| *n);
        let size = |(axis, dim): (usize, &String)| {
            let open = format!("{}.{axis}", input.name);
            let size = bound(dim).or_else(|| Dim::parse(dim).eval(&bound)).or_else(|| bound(&open))?;
            usize::try_from(size).ok()
        };
        let Some(shape) = dims.iter().enumerate().map(size).collect::<Option<Vec<usize>>>() else { continue };
        if dims.iter().skip(1).any(|d| d.parse::<i64>().is_err()) {
            let text = |d: &[String]| d.join(",");
            let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
            lines.push(format!(
                "input \"{}\" [{}] is measured as [{}]; --bind chooses other sizes",
                input.name,
                text(dims),
                text(&sizes)
            ));
        }
        shapes.insert(input.name.clone(), shape);
    }
    (shapes, lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::{Options, ValueInfo, summarize};
    use crate::graph::Edit;
    use crate::ops::Attributes;
    use crate::tensor::DType;

    fn summary(dims: &[Dim]) -> Summary {
        let mut edit = Edit::new("g", &[("", 17)]);
        let x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: Some(dims.to_vec()) });
        let y = edit.add_op("Relu", &[x], Attributes::new(), "y");
        edit.add_output(y);
        summarize(&edit.commit().unwrap(), &Options::default()).unwrap()
    }

    #[test]
    fn open_dimensions_are_measured_as_they_are_counted() {
        let dims = [Dim::symbol("batch"), Dim::from(3i64), Dim::unknown(), Dim::symbol("width")];
        let (all, lines) = input_shapes(&[summary(&dims), summary(&dims)]);
        assert_eq!(all["x"], [1, 3, 224, 224]);
        assert!(lines[0].contains("[1,3,224,224]"), "{lines:?}");
        let (all, lines) = input_shapes(&[summary(&[Dim::symbol("batch"), Dim::from(64i64)])]);
        assert!(all["x"] == [1, 64] && lines.is_empty(), "{lines:?}");
    }

    #[test]
    fn inputs_that_differ_between_models_are_left_to_each_model() {
        let (a, mut b) = (summary(&[Dim::from(1i64)]), summary(&[Dim::from(1i64)]));
        b.inputs = vec![ValueInfo { name: "z".into(), dtype: "f32".into(), shape: None }];
        assert!(input_shapes(&[a, b]).0.is_empty());
        assert!(input_shapes(&[]).0.is_empty());
    }
}
