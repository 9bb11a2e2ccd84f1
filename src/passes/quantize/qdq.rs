//! Static int8 as QDQ: QuantizeLinear/DequantizeLinear pairs on activations, int8 weights (symmetric, per
//! channel) and int32 biases behind DequantizeLinear, placed where ONNX Runtime fuses them into integer
//! kernels and nowhere else: no pair between an integer kernel and the Relu or Clip that its grid does by
//! itself, one grid across operators that only move or scale data, no pair around what has no integer kernel.
//!
//! [`roles`] says what part a node can play, [`placement`] which nodes play it and which values have a grid,
//! [`grids`] what those grids are, [`insertion`] writes them into the graph,
//! [`operators`] makes integer operators of the pairs where the file is to hold those, and [`unsigned`] moves weights
//! to where sums are exact.

mod grids;
mod insertion;
mod operators;
mod placement;
mod roles;
mod unsigned;

pub(super) use unsigned::unsigned;

use super::{Form, Settings, calibrate, embeddings, weights};
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, NodeIndex};
use crate::monitor::Level;
use crate::ops::{Attr, Attributes};
use crate::passes::optimize::drop_unused_constants;
use crate::passes::{Ctx, PassReport};
use placement::{Placement, place};
use roles::Role;
use std::collections::{BTreeMap, BTreeSet};

const RULE: &str = "static-int8";
/// Per-axis DequantizeLinear exists from here on.
const OPSET: i64 = 13;

/// Weights with NaN or infinite elements by the node that would be quantised: why they stay in float.
type Refused = BTreeMap<NodeIndex, String>;

/// The graph in the operators that have roles: at an operator set with per-axis grids, and HardSwish as the
/// gate and the product that ONNX Runtime makes of it.
fn prepare(graph: &Graph) -> Result<Graph> {
    let graph = graph.upgrade(OPSET)?;
    let swishes: Vec<NodeIndex> =
        (0..graph.nodes().len()).filter(|i| graph.node(*i).is("HardSwish")).collect();
    if swishes.is_empty() {
        return Ok(graph);
    }
    let mut edit = graph.edit();
    for i in swishes {
        let node = graph.node(i);
        let (Some(Some(x)), Some(Some(y))) = (node.inputs.first(), node.outputs.first()) else { continue };
        let slope = Attributes::new().with("alpha", Attr::Float(1.0 / 6.0)).with("beta", Attr::Float(0.5));
        let label = graph.label(i);
        edit.remove_node(i);
        let gate = edit.add_op("HardSigmoid", &[*x], slope, &format!("{label}_gate"));
        edit.add_node(Node::new("Mul", vec![Some(*x), Some(gate)], vec![Some(*y)]).named(label));
    }
    edit.commit()
}

fn refused(graph: &Graph, settings: &Settings, ctx: &Ctx<'_>) -> Result<Refused> {
    let mut refused = Refused::new();
    let uses = graph.uses();
    for i in 0..graph.nodes().len() {
        let Ok(Some(Role::Weighted(w))) = roles::role(graph, &uses, settings, i) else { continue };
        if settings.excluded(graph, i) {
            continue;
        }
        ctx.monitor.check()?;
        let Some(tensor) = graph.initializer(w.weight) else { continue };
        let bad = weights::not_finite(tensor)?;
        if bad > 0 {
            let why = weights::refusal(graph.value_name(w.weight), bad, tensor.len());
            ctx.monitor.log(Level::Warning, &format!("{}: {why}", graph.label(i)));
            refused.insert(i, why);
        }
    }
    Ok(refused)
}

/// Fails where nothing would be quantised.
pub(super) fn check(graph: &Graph, settings: &Settings) -> Result<()> {
    let graph = prepare(graph)?;
    if place(&graph, settings, &Refused::new(), &BTreeSet::new(), None)?.has_weights() {
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
    known: &calibrate::Known,
    ctx: &Ctx<'_>,
    report: &mut PassReport,
) -> Result<Graph> {
    let graph = prepare(graph)?;
    let refused = refused(&graph, settings, ctx)?;
    let placed = place(&graph, settings, &refused, &BTreeSet::new(), Some(report))?;
    if !placed.has_weights() {
        return Err(super::all_refused(report));
    }
    note_norms(&graph, ctx, report);
    let calibration = known.gather(&graph, &placed.roots(), settings, ctx)?;
    report.facts.insert("calibration_samples".into(), calibration.samples as f64);
    let (placement, ranges) = fitting(&graph, settings, &refused, placed, &calibration, report)?;
    let grids = grids::grids(&graph, &placement, ranges, &calibration, settings, report);
    let edit = insertion::write(&graph, &placement, &grids, settings, ctx)?;
    for (i, role) in &placement.roles {
        let what = match role {
            Role::Scales(_) => "taken into the scale of its input",
            _ => "on integers",
        };
        report.apply(RULE, graph.label(*i), format!("{} {what}", graph.node(*i).op_type));
    }
    report.facts.insert("quantized_nodes".into(), placement.roles.len() as f64);
    report.facts.insert("quantized_values".into(), placement.values.len() as f64);
    let quantized = drop_unused_constants(&graph, edit.commit()?)?;
    let quantized = embeddings::quantize(&quantized, settings, RULE, ctx, report)?;
    match settings.form {
        Form::Qdq => Ok(quantized),
        Form::Qoperator => drop_unused_constants(&quantized, operators::fold(&quantized)?),
    }
}

/// The placement without the nodes whose data no grid fits, and the ranges of its values.
fn fitting(
    graph: &Graph,
    settings: &Settings,
    refused: &Refused,
    mut placement: Placement,
    calibration: &calibrate::Calibration,
    report: &mut PassReport,
) -> Result<(Placement, grids::Ranges)> {
    let mut unfit = BTreeSet::new();
    loop {
        let ranges = grids::ranges(graph, &placement, calibration, settings)?;
        let found = grids::unfit(&placement, &ranges);
        if found.is_empty() {
            return Ok((placement, ranges));
        }
        for i in &found {
            report.skip(RULE, graph.label(*i), "its data hold a mask or numbers too large for a grid");
        }
        unfit.extend(found);
        placement = place(graph, settings, refused, &unfit, None)?;
    }
}
