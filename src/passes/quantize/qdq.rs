//! Static int8 as QDQ: QuantizeLinear/DequantizeLinear pairs on activations (u8, asymmetric), int8
//! weights (symmetric, per channel) and int32 biases behind DequantizeLinear, placed where ONNX
//! Runtime fuses them into integer kernels: no pair between a convolution and its ReLU, one grid
//! across operators that only move data, a pair on each side of residual additions and concatenations.

use super::ranges::{Activations, Grid};
use super::{Settings, calibrate, constant_weight, weights};
use crate::error::{Error, Result};
use crate::graph::{Edit, Graph, Node, NodeIndex, Uses, ValueId};
use crate::monitor::Level;
use crate::ops::{Attr, Attributes};
use crate::passes::optimize::drop_unused_constants;
use crate::passes::{Ctx, PassReport};
use crate::tensor::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet, HashMap};

const RULE: &str = "static-int8";
/// Per-axis DequantizeLinear exists from here on.
const OPSET: i64 = 13;

/// The part that a node plays.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Role {
    /// Conv, Gemm, MatMul with a constant weight, whose channel axis is given.
    Weighted { channel_axis: usize },
    /// Integer kernel with a grid of its own.
    Own,
    /// Moves data: input and output share one grid.
    Moves,
}

fn role(graph: &Graph, i: NodeIndex) -> std::result::Result<Option<Role>, &'static str> {
    let node = graph.node(i);
    let rank2 = |v: ValueId| graph.initializer(v).is_some_and(|t| t.shape().len() == 2);
    if node.is("Conv") {
        return constant_weight(graph, node)
            .map(|_| Some(Role::Weighted { channel_axis: 0 }))
            .ok_or("its weight is no f32 constant");
    }
    if node.is("MatMul") || node.is("Gemm") {
        constant_weight(graph, node).filter(|v| rank2(*v)).ok_or("its weight is no constant f32 matrix")?;
        let flag = |name| node.attributes.int(name, 0).unwrap_or(0) != 0;
        let one = |name| node.attributes.float(name, 1.0).unwrap_or(1.0) == 1.0;
        if node.is("MatMul") {
            return Ok(Some(Role::Weighted { channel_axis: 1 }));
        }
        if flag("transA") || !one("alpha") || !one("beta") {
            return Err("Gemm with transA, alpha or beta");
        }
        return Ok(Some(Role::Weighted { channel_axis: usize::from(!flag("transB")) }));
    }
    if node.is("ConvTranspose") {
        return Err("ONNX Runtime has no integer kernel for it");
    }
    let domain = crate::ops::canonical_domain(&node.domain);
    Ok(match (domain, node.op_type.as_str()) {
        ("", "Add" | "Mul") => {
            let activations = node.inputs.iter().flatten().all(|v| graph.initializer(*v).is_none());
            activations.then_some(Role::Own)
        }
        ("", "GlobalAveragePool" | "AveragePool" | "Concat") => Some(Role::Own),
        ("", "MaxPool" | "Reshape" | "Flatten" | "Transpose" | "Squeeze" | "Unsqueeze" | "Identity") => {
            Some(Role::Moves)
        }
        _ => None,
    })
}

/// Which values get a pair, which nodes are quantised, and which values share a grid.
struct Placement {
    roles: BTreeMap<NodeIndex, Role>,
    values: BTreeSet<ValueId>,
    /// Follows a value to the one whose grid it shares.
    same_grid: BTreeMap<ValueId, ValueId>,
}

impl Placement {
    fn grid_of(&self, mut v: ValueId) -> ValueId {
        while let Some(next) = self.same_grid.get(&v) {
            v = *next;
        }
        v
    }
}

/// The value that leaves a node's fused activation, where the node's output feeds nothing but a Relu.
fn behind_activation(graph: &Graph, uses: &Uses, y: ValueId) -> ValueId {
    match uses.consumers(y) {
        [(c, 0)] if graph.node(*c).is("Relu") && !graph.outputs().contains(&y) => {
            graph.node(*c).outputs[0].unwrap_or(y)
        }
        _ => y,
    }
}

/// Weights with NaN or infinite elements by the node that would be quantised: name, how many, of how many.
type Refused = BTreeMap<NodeIndex, (String, usize, usize)>;

fn refused(graph: &Graph, settings: &Settings, ctx: &Ctx<'_>) -> Result<Refused> {
    let mut refused = Refused::new();
    for i in 0..graph.nodes().len() {
        if !matches!(role(graph, i), Ok(Some(Role::Weighted { .. }))) || settings.excluded(graph, i) {
            continue;
        }
        ctx.monitor.check()?;
        let weight = constant_weight(graph, graph.node(i));
        let Some((v, tensor)) = weight.and_then(|v| Some((v, graph.initializer(v)?))) else { continue };
        let bad = weights::not_finite(tensor)?;
        if bad > 0 {
            let name = graph.value_name(v).to_string();
            let why = weights::refusal(&name, bad, tensor.len());
            ctx.monitor.log(Level::Warning, &format!("{}: {why}", graph.label(i)));
            refused.insert(i, (name, bad, tensor.len()));
        }
    }
    Ok(refused)
}

fn place(
    graph: &Graph,
    settings: &Settings,
    refused: &Refused,
    mut report: Option<&mut PassReport>,
) -> Result<Placement> {
    let uses = graph.uses();
    let facts = graph.infer(&|_| None)?;
    let is_f32 = |v: ValueId| facts.get(v).is_some_and(|f| f.dtype == DType::F32);
    let mut placement =
        Placement { roles: BTreeMap::new(), values: BTreeSet::new(), same_grid: BTreeMap::new() };
    let mut skip = |i: NodeIndex, why: &str| {
        if let Some(report) = report.as_deref_mut() {
            report.skip(RULE, graph.label(i), why);
        }
    };
    for i in 0..graph.nodes().len() {
        let node = graph.node(i);
        let role = match role(graph, i) {
            Ok(Some(role)) => role,
            Ok(None) => continue,
            Err(why) => {
                skip(i, why);
                continue;
            }
        };
        if settings.excluded(graph, i) {
            skip(i, "excluded by name");
            continue;
        }
        if let Some((name, bad, of)) = refused.get(&i) {
            skip(i, &weights::refusal(name, *bad, *of));
            continue;
        }
        let (Some(Some(x)), Some(Some(y))) = (node.inputs.first(), node.outputs.first()) else { continue };
        let activations: Vec<ValueId> = match role {
            Role::Own => node.inputs.iter().flatten().copied().collect(),
            _ => vec![*x],
        };
        if !is_f32(*y) || activations.iter().any(|v| !is_f32(*v) || graph.initializer(*v).is_some()) {
            if matches!(role, Role::Weighted { .. }) {
                skip(i, "its input is no f32 activation");
            }
            continue;
        }
        let quantized_before = activations.iter().filter(|v| placement.values.contains(v)).count();
        let worth = match role {
            Role::Weighted { .. } => true,
            Role::Own => quantized_before > 0,
            Role::Moves => quantized_before == 1 && node.outputs.len() == 1,
        };
        if !worth {
            continue;
        }
        let out = if role == Role::Moves { *y } else { behind_activation(graph, &uses, *y) };
        placement.values.extend(activations.iter().copied());
        placement.values.insert(out);
        if role == Role::Moves {
            let root = placement.grid_of(*x);
            placement.same_grid.insert(out, root);
        }
        placement.roles.insert(i, role);
    }
    Ok(placement)
}

/// Fails where nothing would be quantised.
pub(super) fn check(graph: &Graph, settings: &Settings) -> Result<()> {
    let graph = graph.upgrade(OPSET)?;
    let placement = place(&graph, settings, &Refused::new(), None)?;
    if placement.roles.values().any(|r| matches!(r, Role::Weighted { .. })) {
        return Ok(());
    }
    Err(Error::unsupported(
        "NOTHING-TO-QUANTIZE",
        "no Conv, Gemm or MatMul with constant f32 weights is left to quantise",
    )
    .hint("check `exclude`, or whether the model is quantised already"))
}

/// Says so where norms behind convolutions keep them from becoming integer kernels.
fn note_norms(graph: &Graph, ctx: &Ctx<'_>, report: &mut PassReport) {
    let uses = graph.uses();
    let behind_conv = |i: &NodeIndex| {
        let node = graph.node(*i);
        let source = node.inputs.first().copied().flatten().and_then(|v| uses.producer(v));
        node.is("BatchNormalization") && source.is_some_and(|(from, _)| graph.node(from).is("Conv"))
    };
    let norms: Vec<NodeIndex> = (0..graph.nodes().len()).filter(behind_conv).collect();
    for i in &norms {
        report.skip("fold-batch-norm", graph.label(*i), "a norm behind a convolution stays in float");
    }
    if !norms.is_empty() {
        ctx.monitor.log(
            Level::Warning,
            &format!(
                "{} batch norms stand between convolutions and their activations and cost speed and accuracy \
                 there: put `optimize`, which folds them, before `quantize`",
                norms.len()
            ),
        );
    }
}

pub(super) fn run(
    graph: &Graph,
    settings: &Settings,
    ctx: &Ctx<'_>,
    report: &mut PassReport,
) -> Result<Graph> {
    let graph = graph.upgrade(OPSET)?;
    let refused = refused(&graph, settings, ctx)?;
    let placement = place(&graph, settings, &refused, Some(report))?;
    if !placement.roles.values().any(|r| matches!(r, Role::Weighted { .. })) {
        return Err(super::all_refused(report));
    }
    note_norms(&graph, ctx, report);
    let roots: BTreeSet<ValueId> = placement.values.iter().map(|v| placement.grid_of(*v)).collect();
    let calibration = calibrate::gather(&graph, &roots, settings, ctx)?;
    report.facts.insert("calibration_samples".into(), calibration.samples as f64);
    let mut grids: BTreeMap<ValueId, Grid> = BTreeMap::new();
    for root in &roots {
        ctx.monitor.check()?;
        let range = calibration.range(&graph, *root, settings)?;
        grids.insert(*root, range.grid(settings.levels()));
        report.tensors.extend(calibration.report(&graph, *root, range, settings));
    }
    let mut writer = Writer {
        graph: &graph,
        uses: graph.uses(),
        settings,
        edit: graph.edit(),
        grids: HashMap::new(),
        weights: HashMap::new(),
    };
    ctx.monitor.phase("quantize: weights", Some(placement.roles.len() as u64));
    for v in &placement.values {
        if let Some(grid) = grids.get(&placement.grid_of(*v)) {
            writer.pair(*v, *grid)?;
        }
    }
    for (done, (i, role)) in placement.roles.iter().enumerate() {
        ctx.monitor.check()?;
        ctx.monitor.progress(done as u64);
        if let Role::Weighted { channel_axis } = role {
            writer.weighted(*i, *channel_axis)?;
        }
        report.apply(RULE, graph.label(*i), format!("{} on integers", graph.node(*i).op_type));
    }
    report.facts.insert("quantized_nodes".into(), placement.roles.len() as f64);
    report.facts.insert("quantized_values".into(), placement.values.len() as f64);
    drop_unused_constants(&graph, writer.edit.commit()?)
}

struct Writer<'g> {
    graph: &'g Graph,
    uses: Uses,
    settings: &'g Settings,
    edit: Edit,
    /// Scale of each quantised activation.
    grids: HashMap<ValueId, f32>,
    /// Quantised weights by weight and channel axis: value and scales.
    weights: HashMap<(ValueId, usize), (ValueId, Vec<f32>)>,
}

impl Writer<'_> {
    /// Puts a QuantizeLinear/DequantizeLinear pair on a value; its readers read the second's output.
    fn pair(&mut self, v: ValueId, grid: Grid) -> Result<()> {
        let name = self.graph.value_name(v).to_string();
        self.grids.insert(v, grid.scale);
        let zero = match self.settings.activations {
            Activations::U8 => Tensor::scalar(grid.zero as u8),
            Activations::S8 => Tensor::scalar(grid.zero as i8),
        };
        let s = self.edit.add_initializer(&format!("{name}_scale"), Tensor::scalar(grid.scale));
        let z = self.edit.add_initializer(&format!("{name}_zero_point"), zero);
        let q = self.edit.add_value(&format!("{name}_quantized"), None);
        let is_output = self.graph.outputs().contains(&v);
        let producer = self.uses.producer(v);
        let (source, target) = match producer {
            // The graph output keeps its name and is what leaves the pair.
            Some((node, slot)) if is_output => {
                let raw = self.edit.add_value(&format!("{name}_raw"), None);
                self.edit.node_mut(node).outputs[slot] = Some(raw);
                (raw, v)
            }
            _ => {
                let d = self.edit.add_value(&format!("{name}_dequantized"), None);
                self.edit.redirect(v, d);
                (v, d)
            }
        };
        self.edit.add_node(
            Node::new("QuantizeLinear", vec![Some(source), Some(s), Some(z)], vec![Some(q)])
                .named(format!("{name}_QuantizeLinear")),
        );
        self.edit.add_node(
            Node::new("DequantizeLinear", vec![Some(q), Some(s), Some(z)], vec![Some(target)])
                .named(format!("{name}_DequantizeLinear")),
        );
        Ok(())
    }

    fn dequantize(
        &mut self,
        name: &str,
        values: Tensor,
        scales: Vec<f32>,
        axis: Option<usize>,
    ) -> Result<ValueId> {
        let zeros = match values.dtype() {
            DType::I32 => Tensor::from_vec(vec![scales.len()], vec![0i32; scales.len()])?,
            _ => Tensor::from_vec(vec![scales.len()], vec![0i8; scales.len()])?,
        };
        let scales = Tensor::from_vec(vec![scales.len()], scales)?;
        let (scales, zeros, attributes) = match axis {
            Some(a) => (scales, zeros, Attributes::new().with("axis", Attr::Int(a as i64))),
            None => (scales.reshaped(vec![])?, zeros.reshaped(vec![])?, Attributes::new()),
        };
        let q = self.edit.add_initializer(&format!("{name}_quantized"), values);
        let s = self.edit.add_initializer(&format!("{name}_scale"), scales);
        let z = self.edit.add_initializer(&format!("{name}_zero_point"), zeros);
        Ok(self.edit.add_op("DequantizeLinear", &[q, s, z], attributes, &format!("{name}_dequantized")))
    }

    fn weighted(&mut self, i: NodeIndex, axis: usize) -> Result<()> {
        let node = self.graph.node(i);
        let missing = || Error::internal("QUANTIZE", "operand vanished").node(self.graph.label(i));
        let (x, w) = (node.inputs[0].ok_or_else(missing)?, node.inputs[1].ok_or_else(missing)?);
        let bias = node.inputs.get(2).copied().flatten();
        let input_scale = *self.grids.get(&x).ok_or_else(missing)?;
        let tensor = self.graph.initializer(w).ok_or_else(missing)?.clone();
        let channels = tensor.shape()[axis];
        let bias_values = match bias {
            Some(b) => match self.graph.initializer(b) {
                Some(t)
                    if t.dtype() == DType::F32
                        && t.len() == channels
                        && t.shape().last() == Some(&channels) =>
                {
                    Some(t.to_vec::<f32>()?).filter(|v| v.iter().all(|x| x.is_finite()))
                }
                _ => None,
            },
            None => None,
        };
        let per_channel = self.settings.per_channel.then_some(axis);
        let (value, scales) = match self.weights.get(&(w, axis)) {
            Some((value, scales)) => (*value, scales.clone()),
            None => {
                // A bias must fit 32 bits on the grid `input_scale * weight_scale`.
                let floor: Vec<f32> = match &bias_values {
                    Some(b) if per_channel.is_some() => {
                        b.iter().map(|b| b.abs() / (input_scale * 1e9)).collect()
                    }
                    Some(b) => vec![b.iter().fold(0f32, |m, b| m.max(b.abs())) / (input_scale * 1e9)],
                    None => vec![],
                };
                let name = self.graph.value_name(w).to_string();
                let limit = self.settings.weight_limit();
                let q = weights::symmetric(&name, &tensor, per_channel, limit, &floor)?
                    .map_err(|why| Error::integrity("WEIGHT-NAN", why).node(self.graph.label(i)))?;
                let stored = Tensor::from_vec(tensor.shape().to_vec(), q.values)?;
                let value = self.dequantize(&name, stored, q.scales.clone(), per_channel)?;
                self.weights.insert((w, axis), (value, q.scales.clone()));
                (value, q.scales)
            }
        };
        let bias_value = match (bias, bias_values) {
            (Some(b), Some(values)) => {
                let scale = |c: usize| input_scale * scales[c % scales.len()];
                let q: Vec<i32> =
                    values.iter().enumerate().map(|(c, b)| (b / scale(c)).round_ties_even() as i32).collect();
                let bias_scales: Vec<f32> = (0..scales.len()).map(scale).collect();
                let shape = self.graph.initializer(b).ok_or_else(missing)?.shape().to_vec();
                let name = format!("{}_bias", self.graph.label(i));
                let axis = (bias_scales.len() > 1).then(|| shape.len() - 1);
                Some(self.dequantize(&name, Tensor::from_vec(shape, q)?, bias_scales, axis)?)
            }
            _ => None,
        };
        let changed = self.edit.node_mut(i);
        changed.inputs[1] = Some(value);
        if let Some(bias) = bias_value {
            changed.inputs[2] = Some(bias);
        }
        Ok(())
    }
}
