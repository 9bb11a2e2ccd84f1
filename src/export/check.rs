//! An exported file on ONNX Runtime against the executor on the graph that it was made from: a short
//! input, and for decoders a token behind its cache. Where they differ, the first node that does is
//! looked for.

use super::{Plan, read};
use crate::data::{InputShape, random_inputs};
use crate::error::{Error, Result};
use crate::evaluate::parity::parity;
use crate::execute::{Executor, Overrides, Seen};
use crate::formats;
use crate::graph::{Facts, Graph, Type, ValueId};
use crate::monitor::Monitor;
use crate::ops::Dim;
use crate::runtime::{Library, Runtime, Session, SessionOptions};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

type Named = Vec<(String, Tensor)>;

/// Tokens, or positions of whatever kind, of the first run.
const LENGTH: i64 = 6;
/// Names of caches, by which inputs and outputs belong together.
const PAST: &str = "past_key_values.";
const PRESENT: &str = "present.";

/// What is held against what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// The model and how it was exported.
    pub plan: Plan,
    /// The file.
    pub exported: PathBuf,
    /// The runtime library, probed before.
    pub library: Library,
    /// Difference that is allowed, relative to the largest magnitude of each output.
    pub tolerance: f64,
    /// Seed of the inputs.
    pub seed: u64,
}

/// How far the file is from the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether every run is within the tolerance.
    pub passed: bool,
    /// Largest absolute difference of any output.
    pub max_abs: f64,
    /// Largest difference of an output, relative to its largest magnitude.
    pub max_rel: f64,
    /// What was allowed.
    pub tolerance: f64,
    /// Elements compared.
    pub elements: usize,
    /// Inputs of each run, as `input_ids:i64[1,6]`.
    pub runs: Vec<Vec<String>>,
    /// Version of the runtime.
    pub runtime: String,
    /// The first node that differs, where the runs do.
    pub first: Option<Divergence>,
}

/// Where results part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Between what: `runtime` is the exported graph on the executor and on ONNX Runtime, `lowering` the
    /// graph before and after it was lowered, both on the executor.
    pub between: String,
    /// Node of the exported graph.
    pub node: String,
    /// Its operator.
    pub operator: String,
    /// Output that differs.
    pub value: String,
    /// Difference relative to the largest magnitude of that output; infinite differences are not stated.
    pub max_rel: Option<f64>,
}

/// Runs both sides.
pub(super) fn run(check: &Check, monitor: &dyn Monitor) -> Result<Verdict> {
    monitor.phase("check against the executor", None);
    let graph = read(&check.plan)?.graph;
    let first = inputs(&graph, check.seed)?;
    // One side after the other, so that the weights are in memory once.
    let executor = Executor::new(&graph)?;
    let wanted = story(first.clone(), &mut |inputs| executor.run(inputs))?;
    drop(executor);
    let runtime = Runtime::open(&check.library)?;
    let mut session = Session::load(&runtime, &check.exported, &options())?;
    let found = story(first, &mut |inputs| session.run(inputs))?;
    drop(session);
    let mut verdict = Verdict {
        passed: true,
        max_abs: 0.0,
        max_rel: 0.0,
        tolerance: check.tolerance,
        elements: 0,
        runs: vec![],
        runtime: runtime.version().into(),
        first: None,
    };
    let mut failing = None;
    for ((inputs, a), (_, b)) in wanted.iter().zip(&found) {
        let p = parity(a, b, check.tolerance)?;
        verdict.max_abs = verdict.max_abs.max(p.max_abs);
        verdict.max_rel = verdict.max_rel.max(p.max_rel);
        verdict.elements += p.elements;
        verdict.runs.push(inputs.iter().map(|(n, t)| format!("{n}:{}{:?}", t.dtype(), t.shape())).collect());
        if (p.first.is_some() || p.not_finite > 0) && failing.is_none() {
            failing = Some(inputs);
        }
    }
    // JSON has no infinity.
    verdict.max_abs = verdict.max_abs.min(f64::MAX);
    verdict.max_rel = verdict.max_rel.min(f64::MAX);
    if let Some(inputs) = failing {
        verdict.passed = false;
        monitor.phase("look for the first node that differs", None);
        verdict.first = diverging(check, &graph, inputs, &runtime)?;
    }
    Ok(verdict)
}

/// Weights are not copied into another layout: speed is not asked for here, and memory is.
fn options() -> SessionOptions {
    let config = [("session.disable_prepacking".to_string(), "1".to_string())].into();
    SessionOptions { config, ..SessionOptions::default() }
}

/// The first run, and for a decoder a second one of one token behind the cache of the first.
fn story(
    first: Named,
    run: &mut dyn FnMut(&[(String, Tensor)]) -> Result<Named>,
) -> Result<Vec<(Named, Named)>> {
    let outputs = run(&first)?;
    let Some(second) = behind(&first, &outputs)? else { return Ok(vec![(first, outputs)]) };
    let next = run(&second)?;
    Ok(vec![(first, outputs), (second, next)])
}

/// Inputs of one more token, where every cache that enters leaves too.
fn behind(first: &Named, outputs: &Named) -> Result<Option<Named>> {
    let caches = |name: &str| name.strip_prefix(PAST).map(|rest| format!("{PRESENT}{rest}"));
    if !first.iter().any(|(n, _)| caches(n).is_some()) {
        return Ok(None);
    }
    let mut second = vec![];
    for (name, tensor) in first {
        let next = match caches(name) {
            Some(present) => match outputs.iter().find(|(n, _)| *n == present) {
                Some((_, cache)) => cache.clone(),
                None => return Ok(None),
            },
            None if name.contains("mask") => {
                let [batch, length] = *tensor.shape() else { return Ok(None) };
                Tensor::from_vec(vec![batch, length + 1], vec![1i64; batch * (length + 1)])?
                    .cast_to(tensor.dtype())
            }
            None if tensor.shape().len() == 2 => tensor.selected(1, &[0]),
            None => return Ok(None),
        };
        second.push((name.clone(), next));
    }
    Ok(Some(second))
}

/// A short input: one row of six positions without a cache; integers below the rows of the table that
/// they choose from.
fn inputs(graph: &Graph, seed: u64) -> Result<Named> {
    let facts = graph.infer(&|_| None)?;
    let mut shapes = vec![];
    for v in graph.required_inputs() {
        let name = graph.value_name(v).to_string();
        let Some(Type::Tensor { dtype, shape: Some(shape) }) = &graph.value(v).ty else {
            return Err(Error::unsupported("CHECK-INPUT", "an input has no shape to try it with")
                .field(format!("input \"{name}\"")));
        };
        let image = dtype.is_float() && shape.len() == 4 && !name.starts_with(PAST);
        let size = |(axis, d): (usize, &Dim)| -> usize {
            let open = if image { 32 } else { LENGTH };
            let bound = d.eval(&|symbol| {
                Some(match symbol {
                    s if s.contains("past") => 0,
                    s if s.contains("batch") || s == "N" => 1,
                    _ => open,
                })
            });
            let n = if axis == 0 && d.known().is_none() { 1 } else { bound.unwrap_or(open) };
            usize::try_from(n).unwrap_or(1)
        };
        let shape = shape.iter().enumerate().map(size).collect();
        shapes.push((v, InputShape { name, dtype: *dtype, shape }));
    }
    let forms: Vec<InputShape> = shapes.iter().map(|(_, s)| s.clone()).collect();
    let mut all = random_inputs(&forms, seed)?;
    for ((v, form), (_, tensor)) in shapes.iter().zip(&mut all) {
        if let Some(rows) = rows_of_table(graph, &facts, *v).filter(|_| form.dtype.is_int()) {
            let ids: Vec<i64> = tensor.to_i64s()?.iter().map(|x| x % rows).collect();
            *tensor = Tensor::from_vec(form.shape.clone(), ids)?.cast_to(form.dtype);
        }
    }
    Ok(all)
}

/// Rows of the table from which an input chooses.
fn rows_of_table(graph: &Graph, facts: &Facts, v: ValueId) -> Option<i64> {
    let read = |node: &crate::graph::Node| {
        let chosen = node.is("Gather") && node.inputs.get(1) == Some(&Some(v));
        chosen.then(|| node.inputs[0]).flatten()
    };
    let table = graph.nodes().iter().find_map(read)?;
    facts.get(table)?.shape.as_ref()?.first()?.known().filter(|n| *n > 0)
}

/// Every float that a graph computes, in order.
fn taps(graph: &Graph, inputs: &[(String, Tensor)]) -> Result<Vec<(ValueId, Tensor)>> {
    let mut all = vec![];
    Executor::new(graph)?.run_tapped(inputs, &Overrides::new(), Seen::All, &mut |v, value| {
        if value.dtype().is_float() {
            all.push((v, value.to_tensor()?));
        }
        Ok(())
    })?;
    Ok(all)
}

fn diverging(
    check: &Check,
    source: &Graph,
    inputs: &[(String, Tensor)],
    runtime: &Runtime,
) -> Result<Option<Divergence>> {
    let lowered = formats::load(&check.exported)?.graph;
    let tapped = taps(&lowered, inputs)?;
    let found = on_runtime(check, &lowered, &tapped, inputs, runtime)?;
    let mut by_name: HashMap<String, Tensor> = found.into_iter().collect();
    let differs = |reference: &Tensor, other: &Tensor| -> Option<f64> {
        let named = |t: &Tensor| vec![(String::new(), t.clone())];
        match parity(&named(reference), &named(other), check.tolerance) {
            Ok(p) if p.first.is_none() && p.not_finite == 0 => None,
            Ok(p) => Some(p.max_rel),
            Err(_) => Some(f64::INFINITY),
        }
    };
    for (v, reference) in &tapped {
        if let Some(far) = by_name.get(lowered.value_name(*v)).and_then(|t| differs(reference, t)) {
            return Ok(Some(named(&lowered, *v, "runtime", far)));
        }
    }
    drop(std::mem::take(&mut by_name));
    let before: HashMap<String, Tensor> =
        taps(source, inputs)?.into_iter().map(|(v, t)| (source.value_name(v).to_string(), t)).collect();
    for (v, after) in &tapped {
        if let Some(far) = before.get(lowered.value_name(*v)).and_then(|t| differs(t, after)) {
            return Ok(Some(named(&lowered, *v, "lowering", far)));
        }
    }
    Ok(None)
}

fn named(graph: &Graph, v: ValueId, between: &str, far: f64) -> Divergence {
    let node = graph.uses().producer(v).map(|(i, _)| i);
    Divergence {
        between: between.into(),
        node: node.map_or_else(String::new, |i| graph.label(i)),
        operator: node.map_or_else(String::new, |i| graph.node(i).operator_name()),
        value: graph.value_name(v).into(),
        max_rel: Some(far).filter(|f| f.is_finite()),
    }
}

/// The values of `tapped` as ONNX Runtime computes them: a copy of the model gives them all out.
fn on_runtime(
    check: &Check,
    graph: &Graph,
    tapped: &[(ValueId, Tensor)],
    inputs: &[(String, Tensor)],
    runtime: &Runtime,
) -> Result<Named> {
    let mut edit = graph.edit();
    for (v, tensor) in tapped.iter().filter(|(v, _)| !graph.outputs().contains(v)) {
        edit.set_type(*v, Some(Type::Tensor { dtype: tensor.dtype(), shape: None }));
        edit.add_output(*v);
    }
    let beside = check.exported.parent().unwrap_or(Path::new("."));
    let aside = tempfile::tempdir_in(beside).map_err(|e| Error::io("create a directory", beside, e))?;
    let path = aside.path().join("tapped.onnx");
    formats::save(&edit.commit()?, &path)?;
    Session::load(runtime, &path, &options())?.run(inputs)
}
