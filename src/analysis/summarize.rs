//! A graph or a file enters, a [`Summary`] leaves. No weight is read unless asked for.

use super::open::{Model, open};
use super::summary::{GroupInfo, Layer, SCHEMA_VERSION, Summary, TensorInfo, ValueInfo};
use super::{cache, role, size, stored, weights};
use crate::error::{Error, Result};
use crate::formats::{About, FileFacts, Opened};
use crate::graph::constants::Constants;
use crate::graph::coupling::{self, Coupled};
use crate::graph::{Facts, Graph, Node, Type, ValueId};
use crate::ops::{Dim, Fact};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

/// Warnings of one kind that are spelled out.
const SHOWN: usize = 20;

/// What to assume and how deep to look.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Sizes of named dimensions.
    pub bindings: BTreeMap<String, i64>,
    /// Size of an open first axis.
    pub batch: i64,
    /// Read all weights and say what their elements are like.
    pub weights: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { bindings: BTreeMap::new(), batch: 1, weights: false }
    }
}

impl Options {
    /// Open dimensions as inputs of these names and shapes have them.
    pub fn like<'a>(graph: &Graph, inputs: impl Iterator<Item = (&'a str, &'a [usize])>) -> Options {
        Options { bindings: size::of_inputs(graph, inputs), ..Options::default() }
    }
}

/// [`summarize`] of a file, with what the file tells besides. It can run in a child process: the result
/// is serialisable and nothing else is touched.
pub fn summarize_file(path: &Path, options: &Options) -> Result<Summary> {
    of_model(&open(path)?, path, options)
}

/// [`summarize_file`] of a model that was opened from `path`.
pub(super) fn of_model(model: &Model, path: &Path, options: &Options) -> Result<Summary> {
    let told = |e: Error| e.file(path);
    match model {
        Model::Graph(opened) => summarize_opened(opened, options).map_err(told),
        Model::Checkpoint { checkpoint, graph: Err(why), .. } => {
            stored::summarize_checkpoint(checkpoint, why, options).map_err(told)
        }
        Model::Checkpoint { checkpoint, graph: Ok(graph), warnings } => {
            let mut summary =
                summarize(graph, &Options { weights: false, ..options.clone() }).map_err(told)?;
            summary.warnings.splice(0..0, warnings.iter().cloned());
            stored::describe(&mut summary, checkpoint, options).map_err(told)?;
            stored::count_as_stored(&mut summary);
            summary.kv_cache = cache::of(&summary.inputs, &summary.about);
            Ok(summary)
        }
    }
}

/// [`summarize`] of a model that was read.
pub fn summarize_opened(opened: &Opened, options: &Options) -> Result<Summary> {
    let mut summary = summarize(&opened.graph, options)?;
    let FileFacts { path, format, warnings, .. } = &opened.facts;
    summary.name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    summary.format = (*format).to_string();
    summary.file_bytes = opened.facts.total_bytes();
    let mut warnings = warnings.clone();
    summary.about = About::beside(path, &mut warnings);
    summary.kv_cache = cache::of(&summary.inputs, &summary.about);
    summary.warnings.splice(0..0, warnings);
    Ok(summary)
}

/// Facts about a graph: layers, parameters, multiply-accumulates, bytes, peak of live activations.
/// Dimensions that the graph leaves open are bound by `options`, else to stated defaults, and listed in
/// `bindings`. Fails only where reading weights was asked for and fails.
pub fn summarize(graph: &Graph, options: &Options) -> Result<Summary> {
    let mut warnings = Vec::new();
    let named = size::name_open_dimensions(graph);
    let bound_graph = named.as_ref().unwrap_or(graph);
    let bindings = size::bindings(bound_graph, &options.bindings, options.batch);
    let facts = infer(bound_graph, &bindings, &options.bindings, &mut warnings)?;
    let known: HashSet<&str> = bindings.iter().map(|(s, _)| s.as_str()).collect();
    for name in options.bindings.keys().filter(|n| !known.contains(n.as_str())) {
        warnings.push(format!("no input has a dimension \"{name}\""));
    }
    let uses = graph.uses();
    let constants = Constants::of(graph);
    let bytes = |v: ValueId| {
        let activation = constants.get(v).is_none();
        activation.then(|| facts.get(v).and_then(fact_bytes)).flatten().unwrap_or(0)
    };
    let mut seen = HashSet::new();
    let mut layers: Vec<Layer> =
        (0..graph.nodes().len()).map(|i| layer(graph, i, &facts, &constants, &mut seen)).collect();
    // Open dimensions stay open for the groups, as they do when the graph is pruned.
    let groups = match bindings.is_empty() {
        true => groups(graph, &facts, &facts, &constants, &mut layers),
        false => {
            let open = graph.infer_noting(&|_| None, |_| None, &mut |_| Ok(()))?;
            groups(graph, &open, &facts, &constants, &mut layers)
        }
    };
    let sum = |f: &dyn Fn(&Layer) -> u64| layers.iter().fold(0u64, |s, l| s.saturating_add(f(l)));
    let macs_unknown = layers.iter().filter(|l| l.macs.is_none()).count();
    let unknown_ops = graph.unknown_operators();
    if !unknown_ops.is_empty() {
        warnings.push(format!("operators that this version does not know: {}", listed(&unknown_ops)));
    }
    let shapeless = layers.iter().filter(|l| l.output_shape.is_none()).count();
    if shapeless > 0 {
        warnings.push(format!("{shapeless} of {} nodes have outputs of unknown shape", layers.len()));
    }
    let mut found = weights::of_graph(graph, &constants, &layers);
    if options.weights {
        weights::measure(&mut found, &mut warnings)?;
    }
    let tensors: Vec<TensorInfo> = found.into_iter().map(|w| w.info).collect();
    let inputs: Vec<ValueInfo> = graph.required_inputs().map(|v| interface(graph, v, &facts)).collect();
    let header = graph.header();
    Ok(Summary {
        schema_version: SCHEMA_VERSION,
        name: graph.name().to_string(),
        format: "graph".into(),
        producer: producer(graph),
        opsets: graph
            .opsets()
            .iter()
            .map(|(d, v)| (if d.is_empty() { "ai.onnx".into() } else { d.clone() }, *v))
            .collect(),
        kv_cache: cache::of(&inputs, &About::default()),
        inputs,
        outputs: graph.outputs().iter().map(|v| interface(graph, *v, &facts)).collect(),
        parameters: sum(&|l| l.parameters),
        macs: sum(&|l| l.macs.unwrap_or(0)),
        macs_unknown,
        weight_bytes: sum(&|l| l.weight_bytes),
        file_bytes: 0,
        peak_activation_bytes: super::live::peak(graph, &uses, &bytes),
        by_operator: role::totals(&layers, |l| l.op.as_str()),
        by_role: role::totals(&layers, |l| l.role.as_str()),
        encodings: weights::encodings(&tensors),
        tensors,
        about: About::default(),
        no_graph: None,
        bindings,
        layers,
        groups,
        timing: None,
        unknown_ops,
        metadata: header.metadata.clone(),
        warnings,
    })
}

/// Facts about `graph` with sizes for all open dimensions, those that [`summarize`] counts with.
///
/// # Errors
/// Those of inference.
pub fn bound(graph: &Graph, options: &Options) -> Result<Facts> {
    let named = size::name_open_dimensions(graph);
    let graph = named.as_ref().unwrap_or(graph);
    let bindings = size::bindings(graph, &options.bindings, options.batch);
    infer(graph, &bindings, &options.bindings, &mut Vec::new())
}

/// `Err` of kind `Unsupported` that lists the operators which this version does not know, with their
/// domains and counts; for whoever must run the graph.
pub fn require_known(graph: &Graph) -> Result<()> {
    let unknown = graph.unknown_operators();
    if unknown.is_empty() {
        return Ok(());
    }
    let first = graph.first_unknown().map(|i| graph.label(i));
    let opsets: Vec<String> = graph
        .opsets()
        .iter()
        .map(|(d, v)| format!("{} {v}", if d.is_empty() { "ai.onnx" } else { d }))
        .collect();
    Err(Error::unsupported("OP-UNKNOWN", "the model has operators that this version does not know")
        .node(first.unwrap_or_default())
        .found(listed(&unknown))
        .limit(format!(
            "operator set {} or older; the model imports {}",
            crate::ops::LAST_OPSET,
            opsets.join(", ")
        ))
        .hint("inspection and export still work"))
}

fn listed(operators: &[(String, usize)]) -> String {
    let mut text: Vec<String> = operators.iter().take(SHOWN).map(|(o, n)| format!("{o} ({n})")).collect();
    if operators.len() > SHOWN {
        text.push(format!("and {} more", operators.len() - SHOWN));
    }
    text.join(", ")
}

fn producer(graph: &Graph) -> String {
    let h = graph.header();
    let mut text = [h.producer.as_str(), h.producer_version.as_str()].join(" ").trim().to_string();
    if h.ir_version > 0 {
        text.push_str(&format!("{}ir {}", if text.is_empty() { "" } else { ", " }, h.ir_version));
    }
    text
}

/// Facts under the bindings. Where the default sizes do not fit the model (a fixed classifier behind an
/// open image size), the dimensions that nobody gave stay symbolic.
fn infer(
    graph: &Graph,
    bindings: &[(String, i64)],
    given: &BTreeMap<String, i64>,
    warnings: &mut Vec<String>,
) -> Result<Facts> {
    let sizes: HashMap<&str, i64> = bindings.iter().map(|(s, n)| (s.as_str(), *n)).collect();
    let mut failed: Vec<Error> = Vec::new();
    let facts = graph.infer_noting(&|s| sizes.get(s).copied(), |_| None, &mut |e| {
        failed.push(e);
        Ok(())
    })?;
    if failed.is_empty() {
        return Ok(facts);
    }
    let mut without: Vec<Error> = Vec::new();
    let symbolic = graph.infer_noting(&|s| given.get(s).copied(), |_| None, &mut |e| {
        without.push(e);
        Ok(())
    })?;
    if without.len() < failed.len() {
        warnings.push(format!(
            "the assumed sizes of open dimensions do not fit the model ({}); give them to count operations",
            bindings.iter().map(|(s, n)| format!("{s}={n}")).collect::<Vec<_>>().join(", ")
        ));
    }
    let (facts, failed) = if without.len() < failed.len() { (symbolic, without) } else { (facts, failed) };
    warnings.extend(failed.iter().take(SHOWN).map(|e| format!("shape inference: {e}")));
    if failed.len() > SHOWN {
        warnings.push(format!("shape inference: {} more nodes", failed.len() - SHOWN));
    }
    Ok(facts)
}

/// Scalars and bytes of the weights inside a node's bodies, nested ones included.
fn inside(node: &Node) -> (u64, u64) {
    let mut work: Vec<&Graph> = node.bodies.iter().map(|(_, g)| g).collect();
    let (mut parameters, mut bytes) = (0u64, 0u64);
    while let Some(body) = work.pop() {
        let held = Constants::of(body);
        for (_, tensor) in held.weights() {
            parameters = parameters.saturating_add(tensor.len() as u64);
            bytes = bytes.saturating_add(tensor.byte_len());
        }
        work.extend(body.nodes().iter().flat_map(|n| n.bodies.iter().map(|(_, g)| g)));
    }
    (parameters, bytes)
}

fn layer(
    graph: &Graph,
    index: usize,
    facts: &Facts,
    constants: &Constants<'_>,
    seen: &mut HashSet<ValueId>,
) -> Layer {
    let node = graph.node(index);
    let mut weights = Vec::new();
    let (mut parameters, mut weight_bytes) = inside(node);
    for v in node.inputs.iter().flatten() {
        if let Some(tensor) = constants.weight(*v) {
            weights.push((
                graph.value_name(*v).to_string(),
                tensor.dtype().name().to_string(),
                tensor.shape().to_vec(),
            ));
            if seen.insert(*v) {
                parameters = parameters.saturating_add(tensor.len() as u64);
                weight_bytes = weight_bytes.saturating_add(tensor.byte_len());
            }
        }
    }
    let first = node.outputs.iter().flatten().next().and_then(|v| facts.get(*v));
    let outputs = facts.outputs(graph, index);
    let macs = match (&node.op, &outputs) {
        (Some(op), Some(outputs)) => op.macs(&facts.inputs(graph, index), outputs),
        _ => None,
    };
    let is_constant = node.is("Constant");
    let output_bytes = node
        .outputs
        .iter()
        .flatten()
        .try_fold(0u64, |sum, v| sum.checked_add(facts.get(*v).and_then(fact_bytes)?));
    let input_bytes = node
        .inputs
        .iter()
        .flatten()
        .try_fold(0u64, |sum, v| sum.checked_add(facts.get(*v).and_then(fact_bytes)?));
    Layer {
        index,
        name: graph.label(index),
        role: role::of(&graph.label(index), &node.operator_name()).to_string(),
        op: node.operator_name(),
        dtype: first.map_or_else(|| "?".to_string(), |f| f.dtype.name().to_string()),
        output_shape: first.and_then(|f| f.shape.as_ref()).map(|s| s.iter().map(Dim::to_string).collect()),
        parameters,
        weight_bytes,
        macs: if is_constant { Some(0) } else { macs.and_then(|m| u64::try_from(m.known()?).ok()) },
        traffic_bytes: match (is_constant, input_bytes, output_bytes) {
            (true, _, _) => Some(0),
            (_, Some(a), Some(b)) => a.checked_add(b),
            _ => None,
        },
        activation_bytes: if is_constant { Some(0) } else { output_bytes },
        group: None,
        weights,
    }
}

/// The coupling groups, as pruning will see them. Each layer is told the prunable group that holds most
/// indices of one axis of its first output. Multiply-accumulates are counted under the facts `bound`.
fn groups(
    graph: &Graph,
    facts: &Facts,
    bound: &Facts,
    constants: &Constants<'_>,
    layers: &mut [Layer],
) -> Vec<GroupInfo> {
    let coupled = Coupled::of(graph, facts, &coupling::Options::default());
    let mut costs = coupling::Costs::of(graph, bound, &coupled);
    let mut largest: HashMap<ValueId, (usize, usize)> = HashMap::new();
    for group in coupled.groups().iter().filter(|g| g.prunable()) {
        for place in &group.places {
            let indices = group.units * place.per_unit;
            let best = largest.entry(place.value).or_insert((indices, group.id));
            if indices > best.0 {
                *best = (indices, group.id);
            }
        }
    }
    for (layer, node) in layers.iter_mut().zip(graph.nodes()) {
        let output = node.outputs.iter().flatten().next();
        layer.group = output.and_then(|v| largest.get(v)).map(|(_, id)| *id);
    }
    coupled
        .groups()
        .iter()
        .map(|g| GroupInfo {
            id: g.id,
            kind: g.kind,
            units: g.units,
            prunable: g.prunable(),
            pinned_by: g.pinned_by.clone(),
            members: g.weights().map(|p| (graph.value_name(p.value).to_string(), p.axis)).collect(),
            parameters_per_unit: g.parameters_per_unit(constants),
            bytes_per_unit: g.bytes_per_unit(constants),
            macs_per_unit: costs.per_unit(g.id).ok().filter(|n| g.prunable() && *n > 0),
            ms_per_unit: None,
        })
        .collect()
}

/// Bytes of a value of known shape.
fn fact_bytes(fact: &Fact) -> Option<u64> {
    let elements = fact.fixed_shape()?.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    fact.dtype.byte_len(elements)
}

/// A graph input or output as declared, else as inferred.
fn interface(graph: &Graph, v: ValueId, facts: &Facts) -> ValueInfo {
    let name = graph.value_name(v).to_string();
    let text = |s: &[Dim]| s.iter().map(Dim::to_string).collect();
    match &graph.value(v).ty {
        Some(Type::Tensor { dtype, shape: Some(shape) }) => {
            ValueInfo { name, dtype: dtype.name().into(), shape: Some(text(shape)) }
        }
        Some(Type::Opaque(_)) => ValueInfo { name, dtype: "other".into(), shape: None },
        declared => {
            let fact = facts.get(v);
            let dtype = match (declared, fact) {
                (Some(Type::Tensor { dtype, .. }), _) => dtype.name(),
                (_, Some(f)) => f.dtype.name(),
                _ => "?",
            };
            let shape = fact.and_then(|f| f.shape.as_deref()).map(text);
            ValueInfo { name, dtype: dtype.into(), shape }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Edit;
    use crate::ops::Attributes;
    use crate::tensor::{DType, Tensor};

    fn graph() -> Graph {
        let mut edit = Edit::new("g", &[("", 17), ("my.domain", 1)]);
        let shape = vec![Dim::symbol("n"), Dim::unknown(), Dim::from(4i64)];
        let x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: Some(shape) });
        let b = edit.add_initializer("b", Tensor::from_vec(vec![4], vec![0f32; 4]).unwrap());
        let a = edit.add_op("Add", &[x, b], Attributes::new(), "a");
        let c = edit.add_op("Add", &[a, b], Attributes::new(), "c");
        let y = edit.add_op("Relu", &[c], Attributes::new(), "y");
        let z = edit.add_value("z", None);
        let odd = Node::new("Odd", vec![Some(y)], vec![Some(z)]).in_domain("my.domain").named("odd");
        edit.add_node(odd);
        edit.add_output(z);
        edit.commit().unwrap()
    }

    #[test]
    fn weights_count_once_and_open_dimensions_are_bound_and_told() {
        let options = Options { bindings: [("x.1".to_string(), 10)].into(), batch: 2, weights: false };
        let s = summarize(&graph(), &options).unwrap();
        assert_eq!(s.bindings, [("n".to_string(), 2), ("x.1".to_string(), 10)]);
        assert_eq!((s.parameters, s.weight_bytes), (4, 16));
        assert_eq!(s.layers.iter().map(|l| l.parameters).collect::<Vec<_>>(), [4, 0, 0, 0]);
        assert_eq!(
            s.layers[0].output_shape.as_deref(),
            Some(&["2".into(), "10".into(), "4".to_string()][..])
        );
        assert_eq!(s.layers[0].traffic_bytes, Some(320 + 16 + 320));
        // Two of the three activations live at any time.
        assert_eq!(s.peak_activation_bytes, 2 * 320);
        assert_eq!(s.unknown_ops, [("my.domain:Odd".to_string(), 1)]);
        assert_eq!((s.macs, s.macs_unknown), (0, 1));
        assert_eq!(s.inputs[0].shape.as_deref(), Some(&["n".into(), "?".into(), "4".to_string()][..]));
        let json = serde_json::to_string(&s).unwrap();
        assert_eq!(serde_json::from_str::<Summary>(&json).unwrap(), s);
    }

    #[test]
    fn unknown_operators_are_listed_with_domain_and_count() {
        let e = require_known(&graph()).unwrap_err();
        assert_eq!((e.kind().exit_code(), e.node_name()), (4, Some("odd")));
        assert!(e.to_string().contains("my.domain:Odd (1)"), "{e}");
    }

    #[test]
    fn damaged_weights_are_told_when_asked_for() {
        let mut edit = graph().edit();
        let b = edit.graph().find("b").unwrap();
        edit.set_initializer(b, Tensor::from_vec(vec![4], vec![1f32, f32::NAN, f32::INFINITY, 0.]).unwrap());
        let graph = edit.commit().unwrap();
        let told = |weights| {
            let s = summarize(&graph, &Options { weights, ..Options::default() }).unwrap();
            s.warnings.iter().any(|w| w.contains("\"b\": 1 NaN and 1 infinite of 4"))
        };
        assert!(told(true) && !told(false));
    }
}
