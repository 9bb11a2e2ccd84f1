//! Graph clean-up that leaves the outputs as they are, up to the rounding of floats: constants and shape
//! arithmetic folded, what does nothing removed, batch norms and channel constants taken into the
//! products before them, duplicates merged, what nothing reads dropped. A graph enters and a smaller one
//! leaves; its interface (names, order, types of inputs and outputs) and whatever its bodies capture stay.
//!
//! Operators that are spelled out in primitives become themselves; with target `ort` also those that are ONNX
//! Runtime's own.
//!
//! Each rule is a file here that sweeps over the graph once; sweeps repeat until none changes anything. A
//! rewrite that computes anew is tried on random inputs (module `trial`) and does not stand where it differs.

mod affine;
mod batch_norm;
mod channels;
mod constants;
mod dead;
mod duplicates;
mod fold;
mod fused;
mod gemm;
mod heads;
mod identities;
mod inputs;
mod merged;
mod movers;
mod pairs;
mod shapes;
mod sweep;
mod trial;

pub(super) use dead::drop_unused_constants;

use super::lower::Target;
use super::{Ctx, Estimate, Pass, PassReport, Skipped};
use crate::error::{Error, Result};
use crate::execute::fuse::{self, Form};
use crate::graph::{Facts, Graph};
use crate::units::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use sweep::{Analysis, Sweep, Terms};

/// Domain of ONNX Runtime's own operators.
const CONTRIB: &str = "com.microsoft";

/// One rule.
struct Rule {
    /// Name, as in settings and reports.
    name: &'static str,
    /// Applies the rule wherever it fits; what almost fits is noted as a near miss.
    sweep: fn(&mut Sweep<'_>) -> Result<()>,
}

/// All rules, in the order of a round.
const RULES: &[Rule] = &[
    Rule { name: "lift-constants", sweep: constants::sweep },
    Rule { name: "fold-constants", sweep: fold::sweep },
    Rule { name: "fold-shapes", sweep: shapes::sweep },
    Rule { name: "remove-identities", sweep: identities::sweep },
    Rule { name: "cancel-pairs", sweep: pairs::sweep },
    Rule { name: "move-integers", sweep: movers::sweep },
    Rule { name: "merge-duplicates", sweep: duplicates::sweep },
    Rule { name: "fuse-attention", sweep: fused::attention },
    Rule { name: "fuse-norms", sweep: fused::norms },
    Rule { name: "fuse-activations", sweep: fused::activations },
    Rule { name: "fuse-gemm", sweep: gemm::sweep },
    Rule { name: "merge-products", sweep: merged::sweep },
    Rule { name: "fold-batch-norm", sweep: batch_norm::sweep },
    Rule { name: "fold-channels", sweep: channels::sweep },
    Rule { name: "fold-inputs", sweep: inputs::sweep },
    Rule { name: "fold-pads", sweep: inputs::sweep_pads },
    Rule { name: "drop-dead", sweep: dead::sweep },
];

/// Every rule makes the graph smaller or its constants simpler, so rounds end by themselves; this
/// bounds them if one should not.
const ROUNDS: usize = 64;

/// Settings of the pass.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Rules to apply; all where empty.
    pub rules: Vec<String>,
    /// Rules to leave out.
    pub skip: Vec<String>,
    /// Most bytes that a folded constant may have, unless it replaces constants of the same size.
    pub fold_limit: u64,
    /// Whose operators may be written: `standard` (the default domain alone) or `ort` (ONNX Runtime's too).
    pub target: Target,
    /// Raise the operator set to 17 where a rule needs it. Target `ort` does so unasked.
    pub upgrade: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            rules: vec![],
            skip: vec![],
            fold_limit: 1 << 20,
            target: Target::Standard,
            upgrade: false,
        }
    }
}

/// The pass.
#[derive(Debug)]
pub struct Optimize {
    settings: Settings,
}

/// Builds the pass from a recipe step.
pub(super) fn build(table: &toml::Table) -> Result<Box<dyn Pass>> {
    let settings: Settings = super::settings("optimize", table)?;
    for (field, names) in [("rules", &settings.rules), ("skip", &settings.skip)] {
        if let Some(unknown) = names.iter().find(|n| RULES.iter().all(|r| r.name != n.as_str())) {
            return Err(Error::usage("OPTIMIZE-RULE", "unknown rule")
                .field(format!("step \"optimize\" {field}"))
                .found(unknown)
                .limit(RULES.iter().map(|r| r.name).collect::<Vec<_>>().join(", ")));
        }
    }
    Ok(Box::new(Optimize { settings }))
}

impl Settings {
    fn wants(&self, rule: &str) -> bool {
        (self.rules.is_empty() || self.rules.iter().any(|r| r == rule))
            && !self.skip.iter().any(|r| r == rule)
    }
}

/// The graph with the tensors of its Constant nodes as initialisers: where other passes look for weights.
pub(super) fn lifted(graph: &Graph) -> Result<Graph> {
    if !graph.nodes().iter().any(|n| n.is("Constant")) {
        return Ok(graph.clone());
    }
    let analysis = Analysis::of(graph.clone());
    let terms = Terms { fold_limit: 0, target: Target::Standard };
    let lifted = Sweep::run(&analysis, "lift-constants", terms, constants::sweep)?.graph;
    Ok(lifted.unwrap_or_else(|| analysis.into_graph()))
}

fn weight_bytes(graph: &Graph) -> u64 {
    graph.initializers().map(|(_, t)| t.byte_len()).sum()
}

/// What the pass leaves alone as a whole.
fn barriers(graph: &Graph, report: &mut PassReport) {
    for i in 0..graph.nodes().len() {
        let node = graph.node(i);
        if !node.bodies.is_empty() {
            let reason = format!("the bodies of {} are left as they are", node.operator_name());
            report.skip("bodies", graph.label(i), reason);
        }
    }
    let defaults: Vec<&str> = graph
        .initializers()
        .filter(|(v, _)| graph.constant(*v).is_none())
        .map(|(v, _)| graph.value_name(v))
        .collect();
    if let Some(first) = defaults.first() {
        let reason = format!(
            "{} initialisers are inputs too, so that a caller may replace them: they are not folded",
            defaults.len()
        );
        report.skip("fold-constants", *first, reason);
    }
}

/// Facts that hold whatever a caller passes: the content of default inputs is not part of them.
fn facts(graph: &Graph, problems: &mut Vec<Error>) -> Result<Facts> {
    let defaults: Vec<_> =
        graph.initializers().map(|(v, _)| v).filter(|v| graph.constant(*v).is_none()).collect();
    let without;
    let graph = if defaults.is_empty() {
        graph
    } else {
        let mut edit = graph.edit();
        defaults.into_iter().for_each(|v| edit.remove_initializer(v));
        without = edit.commit()?;
        &without
    };
    graph.infer_noting(&|_| None, |_| None, &mut |e| {
        problems.push(e);
        Ok(())
    })
}

/// The operator set that has every norm that is written.
const NORMS: i64 = 17;

impl Optimize {
    /// The graph at an operator set that has LayerNormalization, where it spells some out and may be raised.
    fn raised(&self, graph: &Graph, report: &mut PassReport) -> Result<Graph> {
        let now = graph.opset("").unwrap_or(0);
        let may = self.settings.upgrade || self.settings.target == Target::Ort;
        if !may || !self.settings.wants("fuse-norms") || now >= NORMS {
            return Ok(graph.clone());
        }
        let (fusions, _) = fuse::find_in(graph, &facts(graph, &mut vec![])?, &graph.uses());
        if !fusions.iter().any(|f| matches!(f.form, Form::Norm { centred: true, .. })) {
            return Ok(graph.clone());
        }
        match graph.upgrade(NORMS) {
            Ok(raised) => {
                report.apply("upgrade", "the model", format!("operator set {now} -> {NORMS}"));
                Ok(raised)
            }
            Err(e) => {
                report.skip("upgrade", e.node_name().unwrap_or("").to_string(), e.to_string());
                Ok(graph.clone())
            }
        }
    }
}

impl Pass for Optimize {
    fn name(&self) -> &'static str {
        "optimize"
    }

    fn check(&self, graph: &Graph, _: &Ctx<'_>) -> Result<()> {
        if !RULES.iter().any(|r| self.settings.wants(r.name)) {
            return Err(Error::usage("OPTIMIZE-RULES", "every rule is left out")
                .field("step \"optimize\" skip")
                .hint("name fewer rules in `skip`, or remove the step"));
        }
        if graph.nodes().is_empty() {
            return Err(Error::unsupported("NOTHING-TO-OPTIMIZE", "the model has no nodes"));
        }
        Ok(())
    }

    fn estimate(&self, graph: &Graph) -> Estimate {
        let lifted = lifted(graph);
        let graph = lifted.as_ref().unwrap_or(graph);
        let bytes = weight_bytes(graph);
        let nodes = graph.nodes().len() as f64;
        // Only products that absorb what follows them are read, and stay in memory once changed.
        let read: u64 = graph
            .nodes()
            .iter()
            .filter(|n| ["Conv", "ConvTranspose", "Gemm"].contains(&n.op_type.as_str()))
            .filter_map(|n| n.inputs.get(1).copied().flatten().and_then(|v| graph.initializer(v)))
            .map(|t| t.byte_len())
            .sum();
        let merged = if self.settings.wants("merge-products") { merged::bytes(graph) } else { 0 };
        let read = read + merged;
        let largest = graph.initializers().map(|(_, t)| t.byte_len()).max().unwrap_or(0);
        Estimate {
            seconds: 2e-4 * nodes + read as f64 / 5e8,
            memory: Bytes(read + 2 * largest + 4096 * graph.nodes().len() as u64),
            disk: Bytes(bytes + self.settings.fold_limit.min(bytes / 10)),
        }
    }

    fn run(&self, graph: &Graph, ctx: &mut Ctx<'_>) -> Result<(Graph, PassReport)> {
        self.check(graph, ctx)?;
        let mut report = PassReport::new("optimize");
        report.facts.insert("nodes_before".into(), graph.nodes().len() as f64);
        report.facts.insert("weight_bytes_before".into(), weight_bytes(graph) as f64);
        barriers(graph, &mut report);

        let terms = Terms { fold_limit: self.settings.fold_limit, target: self.settings.target };
        let graph = &self.raised(graph, &mut report)?;
        let rules: Vec<&Rule> = RULES.iter().filter(|r| self.settings.wants(r.name)).collect();
        let mut analysis = Analysis::of(graph.clone());
        let mut near: BTreeMap<usize, Vec<Skipped>> = BTreeMap::new();
        let mut rounds = 0;
        let mut trials: Vec<f64> = vec![];
        loop {
            rounds += 1;
            ctx.monitor.phase(&format!("optimize: round {rounds}"), Some(rules.len() as u64));
            let mut changed = false;
            for (done, rule) in rules.iter().enumerate() {
                ctx.monitor.check()?;
                ctx.monitor.progress(done as u64);
                let outcome = Sweep::run(&analysis, rule.name, terms, rule.sweep)?;
                near.insert(done, outcome.skipped);
                trials.extend(outcome.trials);
                if let Some(next) = outcome.graph {
                    report.applied.extend(outcome.applied);
                    analysis = Analysis::of(next);
                    changed = true;
                }
            }
            if !changed || rounds == ROUNDS {
                break;
            }
        }
        for e in analysis.problems()? {
            let node = e.node_name().unwrap_or("").to_string();
            report.skip("infer", node, format!("shapes are not known from here on: {e}"));
        }
        report.skipped.extend(near.into_values().flatten());
        let graph = analysis.into_graph();
        report.facts.insert("rounds".into(), rounds as f64);
        if !trials.is_empty() {
            report.facts.insert("trials".into(), trials.len() as f64);
            report.facts.insert("largest_trial_difference".into(), trials.into_iter().fold(0.0, f64::max));
        }
        report.facts.insert("nodes_after".into(), graph.nodes().len() as f64);
        report.facts.insert("weight_bytes_after".into(), weight_bytes(&graph) as f64);
        Ok((graph, report))
    }
}

#[cfg(test)]
mod tests;
