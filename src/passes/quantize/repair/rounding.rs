//! Rounding of 8-bit weights that looks at data: a layer's weights are rounded one input after the other by GPTQ
//! (arXiv 2210.17323) on the scales that they have, and kept where the layer's error on the calibration data
//! falls. One layer is taken at a time; second moments of several are gathered in one pass as far as they fit.

use super::super::blocks::Sensitivity;
use super::super::{Settings, calibrate, fold};
use super::bias::dequantized;
use crate::error::Result;
use crate::evaluate::samples::Positions;
use crate::execute::{Executor, Overrides, Seen};
use crate::graph::{Graph, NodeIndex, ValueId};
use crate::passes::look::{Look, Moments};
use crate::passes::{Ctx, PassReport};
use crate::tensor::{DType, Tensor, Value};
use std::collections::{BTreeMap, BTreeSet, HashMap};

const RULE: &str = "gptq";
/// Most memory for second moments at once, and most inputs of a layer.
const CAP: u64 = 512 << 20;
const INPUTS: usize = 4096;

/// A layer of the float graph with 8-bit weights in the quantised one.
struct Layer {
    node: NodeIndex,
    data: ValueId,
    /// It is a convolution, whose inputs are columns of its data.
    unfolds: bool,
    weight: ValueId,
    /// The weight is `[inputs, outputs]` in the float graph, and in the quantised one.
    turned: (bool, bool),
    inputs: usize,
    levels: ValueId,
    scales: Vec<f32>,
}

fn layers(float: &Graph, quantized: &Graph, report: &mut PassReport) -> Vec<Layer> {
    let uses = quantized.uses();
    let by_name: HashMap<String, NodeIndex> =
        (0..quantized.nodes().len()).map(|i| (quantized.label(i), i)).collect();
    let mut found = Vec::new();
    for node in 0..float.nodes().len() {
        let Some(reader) = fold::reader(float, node, 0) else { continue };
        let (n, label) = (float.node(node), float.label(node));
        let Some(tensor) = float.initializer(reader.weight).filter(|_| !n.is("ConvTranspose")) else {
            continue;
        };
        let stored = by_name.get(&label).and_then(|i| {
            let (levels, scales) =
                dequantized(quantized, &uses, quantized.node(*i).inputs.get(1).copied()??)?;
            Some((levels, scales, false))
        });
        // Ranges found as the data come: weights are `[inputs, outputs]`, their scales beside them.
        let dynamic = || {
            let i = by_name.get(&format!("{label}_MatMulInteger"))?;
            let levels = quantized.node(*i).inputs.get(1).copied()??;
            let scales = format!("{}_scale", quantized.value_name(levels).strip_suffix("_quantized")?);
            let scales = quantized.initializer(quantized.find(&scales)?)?.to_f32s().ok()?;
            quantized.initializer(levels)?;
            Some((levels, scales, true))
        };
        let Some((levels, scales, dynamic)) = stored.or_else(dynamic) else { continue };
        let shape = tensor.shape();
        let (turned, outputs) = match n.op_type.as_str() {
            "Conv" => (false, shape[0]),
            _ if reader.along.channels.len() == shape[0] && reader.along.inner == shape[1] => {
                (true, shape[1])
            }
            _ => (false, shape[0]),
        };
        let inputs = tensor.len() / outputs.max(1);
        let mut skip = |why: &str| report.skip(RULE, label.clone(), why);
        let levels_of = quantized.initializer(levels).map(Tensor::dtype);
        if levels_of != Some(DType::I8) || (scales.len() != 1 && scales.len() != outputs) {
            continue;
        } else if n.attributes.int("group", 1).unwrap_or(1) != 1 {
            skip("a convolution of groups has few inputs to make up with");
            continue;
        } else if inputs > INPUTS {
            skip("it has more inputs than moments are held for");
            continue;
        } else if uses.consumers(levels).len() != 1 {
            skip("its weight is read by several nodes");
            continue;
        }
        let Some(data) = n.inputs[0] else { continue };
        let unfolds = n.is("Conv");
        let turned = (turned, turned || dynamic);
        found.push(Layer { node, data, unfolds, weight: reader.weight, turned, inputs, levels, scales });
    }
    found
}

/// `quantized`, which was made of `float`, with the levels of its weights rounded by data.
///
/// # Errors
/// Those of the data and of running the float model; `Stopped` when asked to.
pub(super) fn rounded(
    float: &Graph,
    quantized: &Graph,
    settings: &Settings,
    ctx: &Ctx<'_>,
    report: &mut PassReport,
) -> Result<Graph> {
    let layers = layers(float, quantized, report);
    let mut edit = quantized.edit();
    let mut left = &layers[..];
    let (mut before, mut after) = (0.0, 0.0);
    while !left.is_empty() {
        let (now, later) = left.split_at(fitting(left));
        left = later;
        let moments = gather(float, now, settings, ctx)?;
        ctx.monitor.phase("quantize: rounding", Some(layers.len() as u64));
        for (done, layer) in now.iter().enumerate() {
            ctx.monitor.check()?;
            ctx.monitor.progress((layers.len() - left.len() - now.len() + done) as u64);
            let label = float.label(layer.node);
            let sensitivity = moments.get(&flow(layer)).and_then(|m| Sensitivity::of(m, settings.damping));
            let (Some(sensitivity), Some(tensor), Some(old)) =
                (sensitivity, float.initializer(layer.weight), quantized.initializer(layer.levels))
            else {
                report.skip(RULE, label, "the data tell nothing of it");
                continue;
            };
            let w = match layer.turned.0 {
                true => tensor.transposed(&[1, 0]).to_f32s()?,
                false => tensor.to_f32s()?,
            };
            let nearest = match layer.turned.1 {
                true => old.transposed(&[1, 0]).to_vec::<i8>()?,
                false => old.to_vec::<i8>()?,
            };
            let n = layer.inputs;
            let scale = |row: usize| layer.scales[row % layer.scales.len()];
            let scales: Vec<f32> = (0..w.len() / n).map(scale).collect();
            let levels = sensitivity.rounded_rows(&w, &scales, settings.weight_limit());
            let spelled = |q: &[i8]| -> Vec<f32> {
                q.iter().enumerate().map(|(i, q)| f32::from(*q) * scales[i / n]).collect()
            };
            let (a, whole) = sensitivity.error(&w, &spelled(&nearest));
            let (b, _) = sensitivity.error(&w, &spelled(&levels));
            let decibels = |e: f64| 10.0 * (e / whole.max(f64::MIN_POSITIVE)).max(1e-30).log10();
            let told =
                format!("error of the outputs {:.1} dB to the nearest, {:.1} dB", decibels(a), decibels(b));
            if b >= a {
                report.skip(RULE, label, told);
                continue;
            }
            (before, after) = (before + decibels(a), after + decibels(b));
            let new = match layer.turned.1 {
                true => Tensor::from_vec(vec![w.len() / n, n], levels)?.transposed(&[1, 0]),
                false => Tensor::from_vec(old.shape().to_vec(), levels)?,
            };
            edit.set_initializer(layer.levels, new);
            report.apply(RULE, label, told);
        }
    }
    let count = report.applied.iter().filter(|a| a.rule == RULE).count().max(1) as f64;
    report.facts.insert("gptq_decibels_nearest".into(), before / count);
    report.facts.insert("gptq_decibels".into(), after / count);
    edit.commit()
}

/// What one set of moments is taken of: a value, as it is or as one node unfolds it.
type Flow = (ValueId, Option<NodeIndex>);

fn flow(layer: &Layer) -> Flow {
    (layer.data, layer.unfolds.then_some(layer.node))
}

/// How many layers, from the first on, have moments that fit; one at least.
fn fitting(layers: &[Layer]) -> usize {
    let (mut bytes, mut seen) = (0u64, BTreeSet::new());
    let fits = layers.iter().take_while(|l| {
        if seen.insert(flow(l)) {
            bytes += 4 * (l.inputs * l.inputs) as u64;
        }
        bytes <= CAP
    });
    fits.count().max(1)
}

/// Second moments of what flows into layers.
fn gather(
    graph: &Graph,
    layers: &[Layer],
    settings: &Settings,
    ctx: &Ctx<'_>,
) -> Result<BTreeMap<Flow, Moments>> {
    let mut moments: BTreeMap<Flow, Moments> =
        layers.iter().map(|l| (flow(l), Moments::of(l.inputs, true))).collect();
    let wanted: BTreeSet<ValueId> = layers.iter().map(|l| l.data).collect();
    let mut kernels: BTreeMap<NodeIndex, Value> = BTreeMap::new();
    for l in layers.iter().filter(|l| l.unfolds) {
        if let Some(t) = graph.initializer(l.weight) {
            kernels.insert(l.node, Value::load(t)?);
        }
    }
    let look = Look { data: calibrate::data(ctx)?, samples: settings.samples, batch: 0 };
    let (executor, none) = (Executor::new(graph)?, Overrides::new());
    look.each("quantize: look at what layers read", ctx.monitor, 0, &mut |_, batch| {
        let positions = Positions::of(batch)?;
        let mut add = |v: ValueId, value: &Value| -> Result<()> {
            ctx.monitor.check()?;
            for ((_, node), moments) in moments.range_mut((v, None)..=(v, Some(usize::MAX))) {
                match node {
                    Some(node) => {
                        let inputs = [Some(value), kernels.get(node)];
                        graph.operator(*node)?.unfold(&inputs, &mut |row, columns, count| {
                            if row < batch.rows {
                                moments.add_columns(columns, count);
                            }
                        })?;
                    }
                    None => moments.add_value(value, &positions)?,
                }
            }
            Ok(())
        };
        for (name, tensor) in &batch.inputs {
            if let Some(v) = graph.find(name).filter(|v| wanted.contains(v)) {
                add(v, &Value::load(tensor)?)?;
            }
        }
        executor.run_tapped(&batch.inputs, &none, Seen::Of(&|v| wanted.contains(&v)), &mut add).map(drop)
    })?;
    Ok(moments)
}
