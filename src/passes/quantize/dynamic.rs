//! Dynamic int8. A product `x * W` becomes `DynamicQuantizeLinear(x)`, `MatMulInteger` with int8
//! weights, and a rescaling that ONNX Runtime fuses with it; an embedding `Gather(W, i)` becomes a
//! look-up of int8 rows and of their scales; `LSTM` becomes `DynamicQuantizeLSTM`. Convolutions stay in float: `ConvInteger` is slower than
//! the float convolution on every CPU that was measured.

use super::embeddings::Pair;
use super::products::{self, Product};
use super::{Settings, embeddings, recurrent, weights};
use crate::error::{Error, Result};
use crate::graph::{Edit, Graph, Node, NodeIndex, ValueId};
use crate::monitor::Level;
use crate::ops::{Attr, Attributes};
use crate::passes::optimize::drop_unused_constants;
use crate::passes::{Ctx, PassReport};
use crate::tensor::{DType, Tensor};
use std::collections::{BTreeSet, HashMap};

/// The way in which a node is quantised.
enum Kind {
    Product(Product),
    Embedding { table: ValueId },
    Recurrent(recurrent::Weights),
}

impl Kind {
    /// The weights that become int8.
    fn weights(&self) -> Vec<ValueId> {
        match self {
            Kind::Product(Product { weight: v, .. }) | Kind::Embedding { table: v } => vec![*v],
            Kind::Recurrent(both) => both.to_vec(),
        }
    }
}

const RULE: &str = "dynamic-int8";

/// The graph at an operator set that has DynamicQuantizeLinear.
fn raised(graph: &Graph) -> Result<Graph> {
    if graph.opset("").is_none_or(|v| v >= 11) { Ok(graph.clone()) } else { graph.upgrade(13) }
}

/// What to do with a node; `Err` says why a candidate is left alone, `Ok(None)` that it is none.
fn kind(graph: &Graph, i: NodeIndex) -> std::result::Result<Option<Kind>, &'static str> {
    let node = graph.node(i);
    if let Some(product) = products::product(graph, i)? {
        return Ok(Some(Kind::Product(product)));
    }
    if let Some(weights) = recurrent::candidate(graph, node)? {
        return Ok(Some(Kind::Recurrent(weights)));
    }
    Ok(embeddings::table(graph, node).map(|table| Kind::Embedding { table }))
}

/// Bytes of the weights that become int8.
pub(super) fn covered(graph: &Graph, settings: &Settings) -> u64 {
    let weights: BTreeSet<ValueId> = (0..graph.nodes().len())
        .filter(|i| !settings.excluded(graph, *i))
        .filter_map(|i| kind(graph, i).ok().flatten())
        .flat_map(|kind| kind.weights())
        .collect();
    weights.iter().filter_map(|v| graph.initializer(*v)).map(|t| t.byte_len()).sum()
}

/// Fails where nothing would be quantised.
pub(super) fn check(graph: &Graph, settings: &Settings) -> Result<()> {
    let graph = &raised(graph)?;
    let any = (0..graph.nodes().len())
        .any(|i| !settings.excluded(graph, i) && matches!(kind(graph, i), Ok(Some(_))));
    if any {
        return Ok(());
    }
    let convolutions = graph.nodes().iter().filter(|n| n.is("Conv")).count();
    let error = Error::unsupported(
        "NOTHING-TO-QUANTIZE",
        "no MatMul, Gemm, LSTM or embedding with constant f32 weights is left to quantise",
    );
    Err(match convolutions {
        0 => error.hint("check `exclude`, or whether the model is quantised already"),
        n => error.found(format!("{n} convolutions")).hint(
            "convolutions are never quantised dynamically (integer convolution with ranges found at run time is slower than float); use --scheme static-int8 with calibration data",
        ),
    })
}

pub(super) fn run(
    graph: &Graph,
    settings: &Settings,
    ctx: &Ctx<'_>,
    report: &mut PassReport,
) -> Result<Graph> {
    let graph = &raised(graph)?;
    let mut edit = graph.edit();
    let mut inputs: HashMap<ValueId, (ValueId, ValueId, ValueId)> = HashMap::new();
    // A weight may be a product's and an embedding's at once: each has scales along its own axis.
    let mut quantized: HashMap<(ValueId, Use), std::result::Result<Pair, String>> = HashMap::new();
    ctx.monitor.phase("quantize: weights", Some(graph.nodes().len() as u64));
    let mut used = 0u64;
    for i in 0..graph.nodes().len() {
        ctx.monitor.check()?;
        ctx.monitor.progress(i as u64);
        let node = graph.node(i);
        if node.is("Conv") || node.is("ConvTranspose") {
            report.skip(
                RULE,
                graph.label(i),
                "integer convolution with ranges found at run time is slower than float",
            );
            continue;
        }
        let kind = match kind(graph, i) {
            Ok(Some(kind)) => kind,
            Ok(None) => continue,
            Err(why) => {
                report.skip(RULE, graph.label(i), why);
                continue;
            }
        };
        if settings.excluded(graph, i) {
            report.skip(RULE, graph.label(i), "excluded by name");
            continue;
        }
        match kind {
            Kind::Product(Product { weight, transposed, bias }) => {
                let (Some(Some(x)), Some(Some(y))) = (node.inputs.first(), node.outputs.first()) else {
                    continue;
                };
                let (x, y) = (*x, *y);
                let key = (weight, Use::Product { transposed });
                let pair = match quantized.get(&key) {
                    Some(pair) => pair.clone(),
                    None => {
                        let pair = product_weight(graph, &mut edit, weight, transposed, settings)?;
                        quantized.entry(key).or_insert(pair).clone()
                    }
                };
                let pair = match pair {
                    Ok(pair) => pair,
                    Err(why) => {
                        refused(graph, i, why, ctx, report);
                        continue;
                    }
                };
                used += 1;
                let triple = *inputs.entry(x).or_insert_with(|| quantize_input(&mut edit, x));
                product(&mut edit, graph, i, y, triple, pair, bias);
                report.apply(RULE, graph.label(i), format!("{} with int8 weight", node.op_type));
            }
            Kind::Embedding { table } => {
                let (Some(Some(index)), Some(Some(y))) = (node.inputs.get(1), node.outputs.first()) else {
                    continue;
                };
                let key = (table, Use::Embedding);
                let pair = match quantized.get(&key) {
                    Some(pair) => pair.clone(),
                    None => {
                        let pair = embeddings::levels(graph, &mut edit, table)?;
                        quantized.entry(key).or_insert(pair).clone()
                    }
                };
                let pair = match pair {
                    Ok(pair) => pair,
                    Err(why) => {
                        refused(graph, i, why, ctx, report);
                        continue;
                    }
                };
                used += 1;
                embeddings::look_up(&mut edit, graph, i, *index, *y, pair);
                report.apply(RULE, graph.label(i), "int8 rows with a scale each");
            }
            Kind::Recurrent(weights) => match recurrent::exchange(graph, &mut edit, i, weights, settings)? {
                Ok(()) => {
                    used += 1;
                    report.apply(RULE, graph.label(i), "LSTM with int8 weights");
                }
                Err(why) => refused(graph, i, why, ctx, report),
            },
        }
    }
    if used == 0 {
        return Err(super::all_refused(report));
    }
    report.facts.insert("quantized_nodes".into(), used as f64);
    drop_unused_constants(graph, edit.commit()?)
}

/// Notes that a node's weight cannot be quantised, in the report and for whoever watches.
fn refused(graph: &Graph, i: NodeIndex, why: String, ctx: &Ctx<'_>, report: &mut PassReport) {
    ctx.monitor.log(Level::Warning, &format!("{}: {why}", graph.label(i)));
    report.skip(RULE, graph.label(i), why);
}

/// What a weight is quantised for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Use {
    Product { transposed: bool },
    Embedding,
}

fn product_weight(
    graph: &Graph,
    edit: &mut Edit,
    weight: ValueId,
    transposed: bool,
    settings: &Settings,
) -> Result<std::result::Result<Pair, String>> {
    let name = graph.value_name(weight).to_string();
    let stored = graph.initializer(weight).ok_or_else(|| Error::internal("QUANTIZE", "weight vanished"))?;
    let axis = settings.per_channel.then_some(usize::from(!transposed));
    let q = match weights::symmetric(&name, stored, axis, settings.weight_limit(), &[])? {
        Ok(q) => q,
        Err(why) => return Ok(Err(why)),
    };
    let scales = if axis.is_some() { vec![q.scales.len()] } else { vec![] };
    let values = Tensor::from_vec(stored.shape().to_vec(), q.values)?;
    let values = if transposed { values.transposed(&[1, 0]) } else { values };
    Ok(Ok((
        edit.add_initializer(&format!("{name}_quantized"), values),
        edit.add_initializer(&format!("{name}_scale"), Tensor::from_vec(scales, q.scales)?),
    )))
}

/// Quantised input, its scale and its zero point, shared by all readers of the value.
fn quantize_input(edit: &mut Edit, x: ValueId) -> (ValueId, ValueId, ValueId) {
    let name = edit.graph().value_name(x).to_string();
    let outputs =
        ["quantized", "scale", "zero_point"].map(|part| edit.add_value(&format!("{name}_{part}"), None));
    let [q, s, z] = outputs;
    edit.add_node(
        Node::new("DynamicQuantizeLinear", vec![Some(x)], vec![Some(q), Some(s), Some(z)])
            .named(format!("{name}_DynamicQuantizeLinear")),
    );
    (q, s, z)
}

fn product(
    edit: &mut Edit,
    graph: &Graph,
    i: NodeIndex,
    y: ValueId,
    (q, s, z): (ValueId, ValueId, ValueId),
    (weight, scale): (ValueId, ValueId),
    bias: Option<ValueId>,
) {
    let label = graph.label(i);
    edit.remove_node(i);
    let sum = edit.add_value(&format!("{label}_int32"), None);
    edit.add_node(
        Node::new("MatMulInteger", vec![Some(q), Some(weight), Some(z)], vec![Some(sum)])
            .named(format!("{label}_MatMulInteger")),
    );
    let to_float = Attributes::new().with("to", Attr::Int(i64::from(DType::F32.onnx())));
    let float = edit.add_op("Cast", &[sum], to_float, &format!("{label}_float"));
    let scales = edit.add_op("Mul", &[s, scale], Attributes::new(), &format!("{label}_scales"));
    let scaled = if bias.is_some() { edit.add_value(&format!("{label}_scaled"), None) } else { y };
    edit.add_node(
        Node::new("Mul", vec![Some(float), Some(scales)], vec![Some(scaled)])
            .named(format!("{label}_rescale")),
    );
    if let Some(bias) = bias {
        edit.add_node(
            Node::new("Add", vec![Some(scaled), Some(bias)], vec![Some(y)]).named(format!("{label}_bias")),
        );
    }
}
