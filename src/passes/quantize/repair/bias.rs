//! Bias correction (Nagel et al., arXiv 1906.04721, in its empirical form): what quantisation moved the mean of a
//! layer's output by, channel by channel, is taken off its bias. Layers are taken in order, their inputs coming
//! from the quantised graph with the layers before put right; layers that do not depend on each other share a
//! pass over the data.

use super::super::calibrate;
use crate::error::{Error, Result};
use crate::evaluate::samples::{Batch, Positions};
use crate::execute::{Executor, Overrides, Seen};
use crate::graph::{Graph, Node, NodeIndex, Uses, ValueId};
use crate::monitor::Level;
use crate::ops::float::elements;
use crate::ops::{Attr, Attributes};
use crate::passes::{Ctx, PassReport};
use crate::tensor::{DType, Tensor, Value};
use std::collections::{BTreeMap, BTreeSet};

const RULE: &str = "bias-correction";

/// A layer whose bias can be changed.
struct Layer {
    /// Its output in the float graph and in the quantised one.
    float: ValueId,
    quantized: ValueId,
    /// The node that gives the latter.
    at: NodeIndex,
    /// The channel axis is the second, else the last.
    second: bool,
    channels: usize,
    bias: Bias,
}

/// A bias of the quantised graph.
struct Bias {
    constant: ValueId,
    /// Steps of integers, by channel or one for all; none for floats.
    steps: Option<Vec<f32>>,
}

/// `quantized`, which was made of `float`, with its biases corrected on the first `rows` rows of the data.
///
/// # Errors
/// Those of the data and of running the models; `Stopped` when asked to.
pub(super) fn corrected(
    float: &Graph,
    quantized: &Graph,
    rows: usize,
    ctx: &Ctx<'_>,
    report: &mut PassReport,
) -> Result<Graph> {
    let graph = with_biases(quantized)?;
    let layers = layers(float, &graph, report);
    let batches: Vec<Batch> = calibrate::data(ctx)?.first(rows).batches(0).collect::<Result<_>>()?;
    let wanted: BTreeMap<ValueId, &Layer> = layers.iter().map(|l| (l.float, l)).collect();
    ctx.monitor.phase("quantize: means of layers", Some(layers.len() as u64));
    let none = Overrides::new();
    let right = means(&Executor::new(float)?, &batches, &none, &wanted, ctx)?;
    let executor = Executor::new(&graph)?;
    let mut overrides = Overrides::new();
    let mut edit = graph.edit();
    let mut done = 0;
    let mut stays = 0;
    while done < layers.len() {
        let wave = &layers[done..done + wave(&graph, &layers[done..])];
        let wanted: BTreeMap<ValueId, &Layer> = wave.iter().map(|l| (l.quantized, l)).collect();
        let found = means(&executor, &batches, &overrides, &wanted, ctx)?;
        for layer in wave {
            let label = graph.label(layer.at);
            let (Some(a), Some(b)) = (right.get(&layer.float), found.get(&layer.quantized)) else {
                report.skip(RULE, label, "the data give it no elements");
                continue;
            };
            let moved: Vec<f64> = a.mean().iter().zip(b.mean()).map(|(a, b)| a - b).collect();
            let spread = a.deviation();
            let Some(tensor) = corrected_bias(&graph, layer, &moved)? else {
                stays += 1;
                continue;
            };
            overrides.insert(layer.bias.constant, Value::load(&tensor)?);
            edit.set_initializer(layer.bias.constant, tensor);
            let largest = moved.iter().zip(&spread).map(|(m, s)| m.abs() / s.max(1e-12)).fold(0.0, f64::max);
            let told = format!("means moved back by up to {largest:.3} standard deviations of a channel");
            report.apply(RULE, label, told);
        }
        done += wave.len();
        ctx.monitor.progress(done as u64);
    }
    if stays > 0 {
        ctx.monitor.log(Level::Info, &format!("{stays} biases are right as they are"));
    }
    edit.commit()
}

/// The bias that moves the means; none where it is the one that is there.
fn corrected_bias(graph: &Graph, layer: &Layer, moved: &[f64]) -> Result<Option<Tensor>> {
    let gone = || Error::internal("BIAS", "a bias is gone").node(graph.label(layer.at));
    let old = graph.initializer(layer.bias.constant).ok_or_else(gone)?;
    if !moved.iter().all(|m| m.is_finite()) {
        return Ok(None);
    }
    let new = match &layer.bias.steps {
        Some(steps) => {
            let step = |c: usize| f64::from(steps[c % steps.len()]);
            let ends = (f64::from(i32::MIN), f64::from(i32::MAX));
            let by = |(c, q): (usize, i32)| {
                (f64::from(q) + (moved[c] / step(c)).round_ties_even()).clamp(ends.0, ends.1) as i32
            };
            Tensor::from_vec(
                old.shape().to_vec(),
                old.to_vec::<i32>()?.into_iter().enumerate().map(by).collect(),
            )?
        }
        None => {
            let by = |(b, m): (f32, &f64)| (f64::from(b) + m) as f32;
            Tensor::from_vec(
                old.shape().to_vec(),
                old.to_vec::<f32>()?.into_iter().zip(moved).map(by).collect(),
            )?
        }
    };
    Ok(if new.same_bits(old)? { None } else { Some(new) })
}

/// The tensor that a node reads as a constant, through DequantizeLinear of a constant, with its scales.
pub(super) fn dequantized(graph: &Graph, uses: &Uses, v: ValueId) -> Option<(ValueId, Vec<f32>)> {
    let (i, _) = uses.producer(v)?;
    let node = graph.node(i);
    let levels = (*node.inputs.first()?)?;
    let scales = graph.initializer((*node.inputs.get(1)?)?)?.to_f32s().ok()?;
    (node.is("DequantizeLinear") && graph.initializer(levels).is_some()).then_some((levels, scales))
}

/// Convolutions and products on integers that have no bias get one of zeros, on the grid that kernels want it.
fn with_biases(graph: &Graph) -> Result<Graph> {
    let uses = graph.uses();
    let mut edit = graph.edit();
    for i in 0..graph.nodes().len() {
        let node = graph.node(i);
        if !(node.is("Conv") || node.is("Gemm")) || node.inputs.get(2).copied().flatten().is_some() {
            continue;
        }
        let (Some(Some(x)), Some(Some(w))) = (node.inputs.first(), node.inputs.get(1)) else { continue };
        let Some((levels, scales)) = dequantized(graph, &uses, *w) else { continue };
        let data = uses.producer(*x).filter(|(p, _)| graph.node(*p).is("DequantizeLinear"));
        let data = data.and_then(|(p, _)| graph.node(p).inputs.get(1).copied().flatten());
        let data = data.and_then(|s| graph.initializer(s)).map(Tensor::to_f32s).transpose()?;
        let Some(data) = data.and_then(|s| s.first().copied()) else { continue };
        let shape = graph.initializer(levels).map(Tensor::shape).unwrap_or_default();
        let transposed = node.attributes.int("transB", 0).unwrap_or(0) != 0;
        let axis = usize::from(node.is("Gemm") && !transposed);
        let Some(&channels) = shape.get(axis) else { continue };
        let steps: Vec<f32> = scales.iter().map(|s| s * data).collect();
        if !steps.iter().all(|s| s.is_normal()) || (steps.len() != 1 && steps.len() != channels) {
            continue;
        }
        let label = graph.label(i);
        let zeros = Tensor::from_vec(vec![steps.len()], vec![0i32; steps.len()])?;
        let count = steps.len();
        let steps = Tensor::from_vec(vec![count], steps)?;
        let (steps, zeros, attributes) = match count {
            1 if channels != 1 => (steps.reshaped(vec![])?, zeros.reshaped(vec![])?, Attributes::new()),
            _ => (steps, zeros, Attributes::new().with("axis", Attr::Int(0))),
        };
        let q = edit.add_initializer(
            &format!("{label}_bias_quantized"),
            Tensor::from_vec(vec![channels], vec![0i32; channels])?,
        );
        let s = edit.add_initializer(&format!("{label}_bias_scale"), steps);
        let z = edit.add_initializer(&format!("{label}_bias_zero_point"), zeros);
        let d = edit.add_op("DequantizeLinear", &[q, s, z], attributes, &format!("{label}_bias_dequantized"));
        let node = edit.node_mut(i);
        node.inputs.resize(3, None);
        node.inputs[2] = Some(d);
    }
    edit.commit()
}

/// Layers of the float graph that have a bias in the quantised one, in the order of the latter.
fn layers(float: &Graph, graph: &Graph, report: &mut PassReport) -> Vec<Layer> {
    let (of, uses) = (float.uses(), graph.uses());
    let mut found = Vec::new();
    for i in 0..float.nodes().len() {
        let node = float.node(i);
        let weight = node.inputs.get(1).copied().flatten().and_then(|v| float.initializer(v));
        let (Some(weight), Some(Some(y))) = (weight, node.outputs.first()) else { continue };
        let shape = weight.shape();
        let transposed = node.attributes.int("transB", 0).unwrap_or(0) != 0;
        let (second, channels) = match node.op_type.as_str() {
            "Conv" if shape.len() > 2 => (true, shape[0]),
            "Gemm" if shape.len() == 2 => (false, shape[usize::from(!transposed)]),
            "MatMul" if shape.len() == 2 => (false, shape[1]),
            _ => continue,
        };
        // A product of matrices has its bias in the sum behind it.
        let value = match node.is("MatMul") {
            true => match of.consumers(*y) {
                [(next, _)] if float.node(*next).is("Add") => float.node(*next).outputs[0].unwrap_or(*y),
                _ => continue,
            },
            false => *y,
        };
        match layer(float, graph, &uses, value, second, channels) {
            Some(layer) => found.push(layer),
            None => report.skip(RULE, float.label(i), "it has no bias that can be changed"),
        }
    }
    found.sort_by_key(|l| l.at);
    // A bias that several layers share cannot be right for all.
    let mut seen: BTreeMap<ValueId, usize> = BTreeMap::new();
    found.iter().for_each(|l| *seen.entry(l.bias.constant).or_default() += 1);
    found.retain(|l| seen[&l.bias.constant] == 1 && uses.consumers(l.bias.constant).len() == 1);
    found
}

fn layer(
    float: &Graph,
    graph: &Graph,
    uses: &Uses,
    value: ValueId,
    second: bool,
    channels: usize,
) -> Option<Layer> {
    let mut quantized = graph.find(float.value_name(value))?;
    let (mut at, _) = uses.producer(quantized)?;
    // An output of the model is what left a grid.
    for op in ["DequantizeLinear", "QuantizeLinear"] {
        if graph.node(at).is(op) {
            quantized = (*graph.node(at).inputs.first()?)?;
            at = uses.producer(quantized)?.0;
        }
    }
    let node = graph.node(at);
    let slots: &[usize] = match node.op_type.as_str() {
        "Conv" | "Gemm" => &[2],
        "Add" => &[0, 1],
        "MatMulNBits" => &[5],
        _ => return None,
    };
    let bias = slots.iter().find_map(|slot| bias(graph, uses, node, *slot, channels))?;
    Some(Layer { float: value, quantized, at, second, channels, bias })
}

fn bias(graph: &Graph, uses: &Uses, node: &Node, slot: usize, channels: usize) -> Option<Bias> {
    let v = node.inputs.get(slot).copied().flatten()?;
    let vector = |t: &Tensor| t.len() == channels && t.shape().last() == Some(&channels);
    if let Some(t) = graph.constant(v) {
        return (t.dtype() == DType::F32 && vector(t)).then_some(Bias { constant: v, steps: None });
    }
    let (levels, steps) = dequantized(graph, uses, v)?;
    let t = graph.constant(levels)?;
    let fits = t.dtype() == DType::I32 && vector(t) && (steps.len() == 1 || steps.len() == channels);
    fits.then_some(Bias { constant: levels, steps: Some(steps) })
}

/// How many of the layers, from the first on, do not depend on each other.
fn wave(graph: &Graph, layers: &[Layer]) -> usize {
    let mut reached: BTreeSet<ValueId> = BTreeSet::new();
    let mut next = 0;
    for (i, node) in graph.nodes().iter().enumerate() {
        let depends = node.inputs.iter().flatten().any(|v| reached.contains(v));
        if layers.get(next).is_some_and(|l| l.at == i) {
            if depends {
                return next;
            }
            next += 1;
            reached.extend(node.outputs.iter().flatten());
        } else if depends {
            reached.extend(node.outputs.iter().flatten());
        }
    }
    next.max(1)
}

/// Sums of a layer's output by channel.
#[derive(Default)]
struct Means {
    count: f64,
    sum: Vec<f64>,
    squares: Vec<f64>,
}

impl Means {
    fn mean(&self) -> Vec<f64> {
        self.sum.iter().map(|s| s / self.count).collect()
    }

    fn deviation(&self) -> Vec<f64> {
        let one = |(s, q): (&f64, &f64)| (q / self.count - (s / self.count).powi(2)).max(0.0).sqrt();
        self.sum.iter().zip(&self.squares).map(one).collect()
    }

    fn add(&mut self, value: &Value, positions: &Positions, layer: &Layer) -> Result<()> {
        let float = value.float()?;
        let shape = float.dims();
        let axis = if layer.second { 1 } else { shape.len().saturating_sub(1) };
        if shape.get(axis) != Some(&layer.channels) {
            return Ok(());
        }
        let x = elements::<f32>(float)?;
        let inner: usize = shape[axis + 1..].iter().product();
        self.sum.resize(layer.channels, 0.0);
        self.squares.resize(layer.channels, 0.0);
        let shown = positions.rows_of(shape, axis);
        let lines = x.chunks((layer.channels * inner).max(1)).zip(&shown).filter(|(_, s)| s.is_some());
        for (line, _) in lines {
            self.count += inner as f64;
            let sums = self.sum.iter_mut().zip(&mut self.squares);
            for ((sum, squares), channel) in sums.zip(line.chunks(inner.max(1))) {
                *sum += channel.iter().map(|x| f64::from(*x)).sum::<f64>();
                *squares += channel.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            }
        }
        Ok(())
    }
}

/// Says that a run has shown what it was run for.
const SHOWN: &str = "BIAS-SHOWN";

/// Means of the wanted values over the batches; a run ends behind the last of them.
fn means(
    executor: &Executor,
    batches: &[Batch],
    overrides: &Overrides,
    wanted: &BTreeMap<ValueId, &Layer>,
    ctx: &Ctx<'_>,
) -> Result<BTreeMap<ValueId, Means>> {
    let mut found: BTreeMap<ValueId, Means> = BTreeMap::new();
    for batch in batches {
        ctx.monitor.check()?;
        let positions = Positions::of(batch)?;
        let mut left = wanted.len();
        let seen = |v: ValueId| wanted.contains_key(&v);
        let ran = executor.run_tapped(&batch.inputs, overrides, Seen::Of(&seen), &mut |v, value| {
            ctx.monitor.check()?;
            let Some(layer) = wanted.get(&v) else { return Ok(()) };
            found.entry(v).or_default().add(value, &positions, layer)?;
            left -= 1;
            if left == 0 { Err(Error::internal(SHOWN, "all that was wanted is seen")) } else { Ok(()) }
        });
        if let Err(e) = ran
            && e.code() != SHOWN
        {
            return Err(e);
        }
    }
    found.retain(|_, m| m.count > 0.0);
    Ok(found)
}
