//! Prepares a graph for a runtime: operators that it lacks, or runs badly, are written in others. A graph
//! of any origin enters; one leaves whose inputs, outputs and their names are the same. Nodes that are
//! fine as they are stay as they are.
//!
//! `ort` uses ONNX Runtime's own operators (attention with a cache, norms), `standard` those of the
//! default domain at operator set 17 alone. Masks and positions are recognised by what they compute, not
//! by how they are written (module `masks`); where a node does not fit, it is spelled out in plain operators.

mod emit;
pub(in crate::passes) mod masks;
mod ort;
mod plain;
mod simple;
mod versions;

use super::{Ctx, Estimate, Pass, PassReport};
use crate::error::{Error, Result};
use crate::graph::{Graph, ValueId};
use crate::units::Bytes;
use emit::Emit;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// What a graph is prepared for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// ONNX Runtime 1.17 or later, with its own operators.
    #[default]
    Ort,
    /// Any runtime: the default domain at operator set 17.
    Standard,
}

impl Target {
    /// Name, as in settings and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Target::Ort => "ort",
            Target::Standard => "standard",
        }
    }
    /// The operator set that is aimed at.
    fn opset(self) -> i64 {
        match self {
            Target::Ort => 20,
            Target::Standard => 17,
        }
    }
}

/// Settings of the pass.
#[derive(Debug, Clone, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What the graph is prepared for.
    pub target: Target,
    /// Takes residual sums into the norms behind them (SkipLayerNormalization and its simplified form).
    /// Off, because ONNX Runtime 1.32 runs sum and norm apart as fast or faster on CPUs.
    pub join_residuals: bool,
}

/// The pass.
#[derive(Debug)]
pub struct Lower {
    settings: Settings,
}

/// Builds the pass from a recipe step.
pub(super) fn build(table: &toml::Table) -> Result<Box<dyn Pass>> {
    Ok(Box::new(Lower { settings: super::settings("lower", table)? }))
}

/// The graph for `target`, and what was done.
///
/// # Errors
/// `Unsupported` where a node cannot be written for the target, naming it.
pub fn lower(graph: &Graph, target: Target) -> Result<(Graph, PassReport)> {
    run(graph, &Settings { target, ..Settings::default() })
}

fn run(graph: &Graph, settings: &Settings) -> Result<(Graph, PassReport)> {
    let mut report = PassReport::new("lower");
    report.facts.insert("nodes_before".into(), graph.nodes().len() as f64);
    report.facts.insert("opset_before".into(), graph.opset("").unwrap_or(0) as f64);
    let mut now = graph.clone();
    let rules: &[fn(&mut Emit<'_>) -> Result<()>] = match (settings.target, settings.join_residuals) {
        (Target::Ort, false) => &[ort::attention, simple::ort],
        (Target::Ort, true) => &[ort::attention, simple::ort, ort::residuals],
        (Target::Standard, _) => &[plain::attention, simple::standard],
    };
    for rule in rules {
        let mut emit = Emit::of(&now, std::mem::take(&mut report))?;
        rule(&mut emit)?;
        let (next, said) = emit.finish()?;
        report = said;
        now = without_dead(&now, next)?;
    }
    let (now, said) = versions::lowered(&now, settings.target, report)?;
    report = said;
    report.facts.insert("nodes_after".into(), now.nodes().len() as f64);
    report.facts.insert("opset_after".into(), now.opset("").unwrap_or(0) as f64);
    Ok((now, report))
}

/// Values of nodes that nothing needs.
fn dead(graph: &Graph) -> HashSet<ValueId> {
    let mut read: HashSet<ValueId> = graph.outputs().iter().copied().collect();
    let mut dead = HashSet::new();
    for node in graph.nodes().iter().rev() {
        let outputs = || node.outputs.iter().flatten().copied();
        if outputs().any(|v| read.contains(&v)) || node.outputs.is_empty() {
            read.extend(node.inputs.iter().flatten().copied());
            let captured = node.bodies.iter().flat_map(|(_, body)| body.captured());
            read.extend(captured.filter_map(|name| graph.find(&name)));
        } else {
            dead.extend(outputs());
        }
    }
    dead
}

/// `after` without the nodes that were needed in `before` and are no longer, and their constants.
fn without_dead(before: &Graph, after: Graph) -> Result<Graph> {
    let (then, now) = (dead(before), dead(&after));
    let mut edit = after.edit();
    for (i, node) in after.nodes().iter().enumerate() {
        let mut outputs = node.outputs.iter().flatten().peekable();
        if outputs.peek().is_some() && outputs.all(|v| now.contains(v) && !then.contains(v)) {
            edit.remove_node(i);
        }
    }
    super::optimize::drop_unused_constants(before, edit.commit()?)
}

impl Pass for Lower {
    fn name(&self) -> &'static str {
        "lower"
    }

    fn check(&self, graph: &Graph, _: &Ctx<'_>) -> Result<()> {
        if graph.nodes().is_empty() {
            return Err(Error::unsupported("NOTHING-TO-LOWER", "the model has no nodes"));
        }
        Ok(())
    }

    fn estimate(&self, graph: &Graph) -> Estimate {
        let weights: u64 = graph.initializers().map(|(_, t)| t.byte_len()).sum();
        let nodes = graph.nodes().len() as u64;
        Estimate {
            seconds: 1e-3 * nodes as f64,
            memory: Bytes(16384 * nodes),
            disk: Bytes(weights + 4096 * nodes),
        }
    }

    fn run(&self, graph: &Graph, ctx: &mut Ctx<'_>) -> Result<(Graph, PassReport)> {
        self.check(graph, ctx)?;
        ctx.monitor.phase(&format!("lower: {}", self.settings.target.name()), None);
        ctx.monitor.check()?;
        run(graph, &self.settings)
    }
}
