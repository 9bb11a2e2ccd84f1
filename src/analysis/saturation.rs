//! What becomes of an int8 model on a processor that holds sums of two 8-bit products in 16 bits: a quantised
//! graph and samples enter; how much saturates in each layer, and how far the model's outputs move, leave.
//! The processor need not be this one.

use crate::error::{Error, Result};
use crate::evaluate::samples::Samples;
use crate::execute::Executor;
use crate::formats::{self, Tokenizer};
use crate::graph::{Graph, NodeIndex, Uses, ValueId};
use crate::hardware::IntegerSet;
use crate::monitor::Monitor;
use crate::ops::saturation::{Counts, Form, Grid, Tally, saturating};
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Version of [`Saturation`].
pub const SCHEMA_VERSION: u32 = 1;

/// A layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SaturatedLayer {
    /// Node.
    pub node: String,
    /// Operator.
    pub operator: String,
    /// Products of two elements that were summed.
    pub products: u64,
    /// Sums of two products that were held in 16 bits; zero where the layer's kernel is exact.
    pub pairs: u64,
    /// Those that saturated.
    pub saturated_pairs: u64,
    /// Their part of all pairs.
    pub share: f64,
    /// Sums that leave the layer.
    pub outputs: u64,
    /// Those that saturation changed.
    pub changed_outputs: u64,
    /// Largest change of such a sum, in units of the product of both scales.
    pub largest_error: i64,
    /// Largest magnitude of an exact sum, in the same units.
    pub largest_sum: i64,
}

impl SaturatedLayer {
    fn of(graph: &Graph, i: NodeIndex, counts: Counts) -> SaturatedLayer {
        SaturatedLayer {
            node: graph.label(i),
            operator: graph.node(i).operator_name(),
            products: counts.products,
            pairs: counts.pairs,
            saturated_pairs: counts.saturated,
            share: counts.saturated as f64 / counts.pairs.max(1) as f64,
            outputs: counts.outputs,
            changed_outputs: counts.changed,
            largest_error: counts.largest_error,
            largest_sum: counts.largest_sum,
        }
    }
}

/// An output of the model, with saturation against without.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MovedOutput {
    /// Name.
    pub name: String,
    /// Cosine of the angle between both, over all samples together.
    pub cosine: f64,
    /// Largest difference of an element.
    pub largest_difference: f64,
    /// Largest magnitude without saturation.
    pub largest: f64,
}

/// All layers of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saturation {
    /// Version of this format.
    pub schema_version: u32,
    /// Instruction set that was simulated.
    pub isa: String,
    /// Whether it saturates; if not, nothing was run.
    pub saturates: bool,
    /// Rows of the data that were read.
    pub samples: u64,
    /// Layers with integer kernels, in order.
    pub layers: Vec<SaturatedLayer>,
    /// The model's outputs.
    pub outputs: Vec<MovedOutput>,
}

/// The constant that a value is, through nothing.
fn constant(graph: &Graph, v: Option<&Option<ValueId>>) -> Option<Tensor> {
    graph.constant((*v?)?).cloned()
}

/// The grid of a value that leaves a DequantizeLinear over constants, whose axis is `axis`, where it has one.
fn grid(graph: &Graph, uses: &Uses, v: ValueId, axis: usize) -> Option<(Grid, NodeIndex)> {
    let (i, _) = uses.producer(v)?;
    let node = graph.node(i);
    if !node.is("DequantizeLinear") || node.attributes.int("block_size", 0).unwrap_or(0) != 0 {
        return None;
    }
    let scales = constant(graph, node.inputs.get(1))?.to_f32s().ok()?;
    let zero = constant(graph, node.inputs.get(2));
    let stored = node.inputs.first().copied().flatten().and_then(|q| graph.constant(q));
    let rank = stored.map(|t| t.shape().len() as i64);
    let own = node.attributes.int("axis", 1).unwrap_or(1);
    let own = rank.map_or(own, |r| if own < 0 { own + r } else { own });
    if scales.is_empty() || (scales.len() > 1 && own != axis as i64) {
        return None;
    }
    let dtype = zero.as_ref().map(Tensor::dtype).or(stored.map(Tensor::dtype)).unwrap_or(DType::U8);
    let zeros = match zero {
        Some(z) => z.to_f32s().ok()?.into_iter().map(|z| z as i32).collect(),
        None => vec![0],
    };
    let bytes = [DType::U8, DType::I8].contains(&dtype);
    let fits = zeros.len() == 1 || zeros.len() == scales.len();
    (bytes && fits).then_some((Grid { scales, zeros, dtype }, i))
}

/// Conv, MatMul or Gemm that the runtime computes on integers because of the pairs around it.
fn dequantized(graph: &Graph, uses: &Uses, i: NodeIndex) -> Option<Form> {
    let node = graph.node(i);
    let (x, w) = ((*node.inputs.first()?)?, (*node.inputs.get(1)?)?);
    let rank = |v: ValueId| {
        let (i, _) = uses.producer(v)?;
        graph.constant((*graph.node(i).inputs.first()?)?).map(|t| t.shape().len())
    };
    let flag = |name| node.attributes.int(name, 0).unwrap_or(0) != 0;
    let one = |name| node.attributes.float(name, 1.0).unwrap_or(1.0) == 1.0;
    let axis = match node.op_type.as_str() {
        "Conv" => 0,
        "MatMul" => rank(w)?.checked_sub(1)?,
        "Gemm" if flag("transA") || !one("alpha") || !one("beta") => return None,
        "Gemm" => usize::from(!flag("transB")),
        _ => return None,
    };
    let (data, from) = grid(graph, uses, x, usize::MAX)?;
    let (weight, _) = grid(graph, uses, w, axis)?;
    if data.scales.len() != 1 {
        return None;
    }
    if let Some(bias) = node.inputs.get(2).copied().flatten() {
        let (b, _) = uses.producer(bias)?;
        let stored = graph.node(b).inputs.first().copied().flatten().and_then(|q| graph.constant(q));
        if !graph.node(b).is("DequantizeLinear") || stored.is_none_or(|t| t.dtype() != DType::I32) {
            return None;
        }
    }
    if node.is("Conv") && !requantized(graph, uses, node.outputs.first().copied().flatten()?) {
        return None;
    }
    // Signed data that a QuantizeLinear made are made unsigned, beside signed weights.
    let quantize = graph.node(from).inputs.first().copied().flatten().and_then(|q| uses.producer(q));
    let made = quantize.is_some_and(|(q, _)| graph.node(q).is("QuantizeLinear"));
    let moved = data.dtype == DType::I8 && weight.dtype == DType::I8 && made;
    Some(Form::Dequantized { data, weight, moved })
}

/// Whether a value goes into one QuantizeLinear alone, at most through a Relu.
fn requantized(graph: &Graph, uses: &Uses, v: ValueId) -> bool {
    if graph.outputs().contains(&v) {
        return false;
    }
    match uses.consumers(v) {
        [(i, 0)] if graph.node(*i).is("QuantizeLinear") => true,
        [(i, 0)] if graph.node(*i).is("Relu") => {
            let y = graph.node(*i).outputs.first().copied().flatten();
            y.is_some_and(|y| {
                let next = uses.consumers(y);
                matches!(next, [(q, 0)] if graph.node(*q).is("QuantizeLinear"))
                    && !graph.outputs().contains(&y)
            })
        }
        _ => false,
    }
}

/// An executor of `graph` that saturates as such processors do, and what it notes, by node.
///
/// # Errors
/// Those of [`Executor::new`]; `Unsupported` where no layer has an integer kernel.
pub fn simulated(graph: &Graph) -> Result<(Executor, Vec<(NodeIndex, Arc<Tally>)>)> {
    let uses = graph.uses();
    let (mut operators, mut tallies) = (HashMap::new(), vec![]);
    for (i, node) in graph.nodes().iter().enumerate() {
        if !node.domain.is_empty() && node.domain != "ai.onnx" {
            continue;
        }
        let form = dequantized(graph, &uses, i).unwrap_or(Form::Integers);
        let Ok(float) = graph.operator(i) else { continue };
        if let Some((op, tally)) = saturating(&node.op_type, &node.attributes, form, float)? {
            operators.insert(i, op);
            tallies.push((i, tally));
        }
    }
    if tallies.is_empty() {
        return Err(Error::unsupported("SATURATION", "no layer of the model multiplies 8-bit integers")
            .hint("quantise it first: tinsmith quantize --scheme dynamic-int8 or static-int8"));
    }
    Ok((Executor::new(graph)?.replacing(operators), tallies))
}

/// Sums over pairs of outputs.
#[derive(Default)]
struct Sums {
    dot: f64,
    exact: f64,
    held: f64,
    difference: f64,
    largest: f64,
}

/// Runs `graph` over the samples with exact sums and with those of `isa`.
///
/// # Errors
/// `Usage` where nothing is known of the instruction set; those of [`simulated`] and of the data; `Stopped`
/// when asked to.
pub fn saturation(graph: &Graph, samples: &Samples, isa: &str, monitor: &dyn Monitor) -> Result<Saturation> {
    let set = IntegerSet::of(isa).ok_or_else(|| {
        let known: Vec<&str> = crate::hardware::integer::INTEGER_SETS.iter().map(|s| s.name).collect();
        Error::usage("ISA", "unknown instruction set").found(isa).limit(known.join(", "))
    })?;
    let mut found = Saturation {
        schema_version: SCHEMA_VERSION,
        isa: set.name.into(),
        saturates: set.saturates,
        samples: 0,
        layers: vec![],
        outputs: vec![],
    };
    let (held, tallies) = simulated(graph)?;
    if !set.saturates {
        return Ok(found);
    }
    let exact = Executor::new(graph)?;
    let mut sums: Vec<Sums> = graph.outputs().iter().map(|_| Sums::default()).collect();
    monitor.phase("saturation", Some(samples.len() as u64));
    for batch in samples.batches(0) {
        monitor.check()?;
        let batch = batch?;
        let (exact, held) = (exact.run(&batch.inputs)?, held.run(&batch.inputs)?);
        for (sums, ((_, a), (_, b))) in sums.iter_mut().zip(exact.iter().zip(&held)) {
            for (a, b) in a.to_f64s()?.into_iter().zip(b.to_f64s()?) {
                sums.dot += a * b;
                sums.exact += a * a;
                sums.held += b * b;
                sums.difference = sums.difference.max((a - b).abs());
                sums.largest = sums.largest.max(a.abs());
            }
        }
        found.samples += batch.rows as u64;
        monitor.progress(found.samples);
    }
    found.layers = tallies.iter().map(|(i, t)| SaturatedLayer::of(graph, *i, t.counts())).collect();
    found.outputs = graph
        .outputs()
        .iter()
        .zip(sums)
        .map(|(v, s)| MovedOutput {
            name: graph.value_name(*v).into(),
            cosine: if s.exact * s.held > 0.0 { s.dot / (s.exact * s.held).sqrt() } else { 1.0 },
            largest_difference: s.difference,
            largest: s.largest,
        })
        .collect();
    Ok(found)
}

/// [`saturation`] of a model file on the first `rows` rows of a data spec (0: all).
///
/// # Errors
/// Those of reading both, and of [`saturation`].
pub fn saturation_of(
    model: &Path,
    data: &str,
    isa: &str,
    rows: usize,
    monitor: &dyn Monitor,
) -> Result<Saturation> {
    let graph = formats::load(model)?.graph;
    let samples = Samples::open(data, &graph, &|| Tokenizer::open(model), None)?;
    let samples = if rows == 0 { samples } else { samples.first(rows) };
    saturation(&graph, &samples, isa, monitor)
}
