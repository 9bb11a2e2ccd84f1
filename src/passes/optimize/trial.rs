//! The trial of a rewrite: the nodes that it replaces and those that it put there are run on the same random
//! inputs, and must give the same. Sizes that are not known are small ones; integers are zeros and ones, as
//! masks and ids are. What cannot be run this way is said to be untried.

use crate::error::Result;
use crate::evaluate::parity::parity;
use crate::execute::{Executor, Overrides, Seen};
use crate::graph::{Facts, Graph, Type, Uses, ValueId};
use crate::tensor::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet};

/// Largest difference, relative to the largest magnitude of the result: what is left of f32 after a few sums.
pub(super) const TOLERANCE: f64 = 1e-4;

/// Most elements of all inputs of a trial.
const MOST: usize = 1 << 22;

/// Sizes of open dimensions by order of their names; the second row is for nets that make images smaller.
const SIZES: [[i64; 5]; 2] = [[2, 3, 5, 4, 7], [1, 64, 96, 64, 32]];

/// A value that was made by other nodes before, from the same values.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    /// The values before; several lie side by side on the last axis now.
    pub(super) outputs: Vec<ValueId>,
    /// Its name now.
    pub(super) becomes: String,
    pub(super) from: Vec<ValueId>,
}

/// What a trial tells.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    /// Both give the same but for this part of the largest element.
    Same(f64),
    /// The rewrite must not stand, and why.
    Differs(String),
    /// It cannot be tried, and why.
    Untried(String),
}

/// Tries a rewrite of `before`, whose facts are given, to `after`.
pub(super) fn compare(before: (&Graph, &Facts, &Uses), after: (&Graph, &Uses), claim: &Claim) -> Verdict {
    let (graph, facts, uses) = before;
    let names: BTreeSet<&str> = claim.from.iter().map(|v| graph.value_name(*v)).collect();
    let fact = |name: &str| graph.find(name).and_then(|v| facts.get(v));
    let ty = |name: &str| {
        let fact = fact(name)?;
        Some(Type::Tensor { dtype: fact.dtype, shape: None })
    };
    let part = |g: &Graph, uses: &Uses, output: ValueId| {
        g.part(uses, output, &|v| names.contains(g.value_name(v)), &|v| ty(g.value_name(v)))
    };
    let old = claim.outputs.iter().map(|v| part(graph, uses, *v)).collect::<Option<Vec<Graph>>>();
    let new = after.0.find(&claim.becomes).and_then(|v| part(after.0, after.1, v));
    let (Some(old), Some(new)) = (old, new) else {
        return Verdict::Untried("the types of what it reads are not known".into());
    };
    let inputs = |g: &Graph| g.inputs().iter().map(|v| g.value_name(*v).to_string()).collect::<BTreeSet<_>>();
    let all: BTreeSet<String> = old.iter().chain([&new]).flat_map(inputs).collect();
    let mut why = String::new();
    for sizes in SIZES {
        let feed = match feed(&all, &fact, sizes) {
            Ok(feed) => feed,
            Err(reason) => {
                why = reason;
                continue;
            }
        };
        let given = |g: &Graph| {
            let wanted = inputs(g);
            feed.iter().filter(|(name, _)| wanted.contains(name)).cloned().collect::<Vec<_>>()
        };
        let reference: Result<Vec<_>> = old.iter().map(|g| run(g, &given(g))).collect();
        let reference = match reference.and_then(beside) {
            Ok(out) => out,
            Err(e) => {
                why = format!("it cannot be evaluated: {e}");
                continue;
            }
        };
        return match run(&new, &given(&new)).and_then(|out| parity(&reference, &out, TOLERANCE)) {
            Err(e) => Verdict::Differs(format!("what it becomes cannot be evaluated: {e}")),
            Ok(p) if p.max_rel > TOLERANCE => Verdict::Differs(format!(
                "a trial gives other numbers: {:.1e} of the largest, more than {TOLERANCE:.0e}",
                p.max_rel
            )),
            Ok(p) => Verdict::Same(p.max_rel),
        };
    }
    Verdict::Untried(why)
}

/// Node by node, so that nothing stands for what is tried.
fn run(graph: &Graph, feed: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>> {
    let executor = Executor::new(graph)?;
    let out = executor.run_tapped(feed, &Overrides::new(), Seen::All, &mut |_, _| Ok(()))?;
    out.into_iter().map(|v| Ok((String::new(), v.to_tensor()?))).collect()
}

/// The first results of several parts side by side on the last axis; all results of one.
fn beside(mut results: Vec<Vec<(String, Tensor)>>) -> Result<Vec<(String, Tensor)>> {
    if results.len() == 1 {
        return Ok(results.remove(0));
    }
    let parts: Vec<Tensor> = results.into_iter().filter_map(|mut r| r.pop().map(|(_, t)| t)).collect();
    let width = |t: &Tensor| t.shape().last().copied().unwrap_or(1);
    let Some(first) = parts.first() else { return Ok(vec![]) };
    let rows = first.len() / width(first).max(1);
    let elements: Vec<Vec<f32>> = parts.iter().map(Tensor::to_f32s).collect::<Result<_>>()?;
    let row = |r: usize| {
        elements
            .iter()
            .zip(&parts)
            .flat_map(move |(v, t)| v.iter().copied().skip(r * width(t)).take(width(t)))
    };
    let mut shape = first.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = parts.iter().map(width).sum();
    }
    let whole = Tensor::from_vec(shape, (0..rows).flat_map(row).collect::<Vec<f32>>())?;
    Ok(vec![(String::new(), whole.cast_to(first.dtype()))])
}

/// Random elements for each input.
fn feed<'a>(
    names: &BTreeSet<String>,
    fact: &dyn Fn(&str) -> Option<&'a crate::ops::Fact>,
    sizes: [i64; 5],
) -> std::result::Result<Vec<(String, Tensor)>, String> {
    let mut symbols: BTreeMap<String, i64> = BTreeMap::new();
    for dim in names.iter().filter_map(|n| fact(n)?.shape.as_ref()).flatten() {
        dim.symbols(&mut |s| {
            symbols.insert(s.to_string(), 0);
        });
    }
    symbols.values_mut().enumerate().for_each(|(at, n)| *n = sizes[at % sizes.len()]);
    let bind = |s: &str| symbols.get(s).copied();
    let mut left = MOST;
    let mut out = vec![];
    for (seed, name) in names.iter().enumerate() {
        let unknown = || format!("the shape of {name} is not known");
        let fact = fact(name).ok_or_else(unknown)?;
        let shape: Vec<usize> = (fact.shape.as_ref())
            .and_then(|s| s.iter().map(|d| usize::try_from(d.eval(&bind)?).ok().filter(|n| *n > 0)).collect())
            .ok_or_else(unknown)?;
        let n = crate::tensor::element_count(&shape).filter(|n| *n <= left);
        let n = n.ok_or_else(|| format!("{name} is too large to be tried on"))?;
        left -= n;
        let tensor = elements(fact.dtype, &shape, n, seed as u64).map_err(|e| e.to_string())?;
        out.push((name.clone(), tensor));
    }
    Ok(out)
}

/// Floats between -2 and 2; zeros and ones otherwise, the first of each row a one.
fn elements(dtype: DType, shape: &[usize], n: usize, seed: u64) -> Result<Tensor> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    if dtype.is_float() {
        let data: Vec<f32> = (0..n).map(|_| 4.0 * next() - 2.0).collect();
        return Ok(Tensor::from_vec(shape.to_vec(), data)?.cast_to(dtype));
    }
    let width = shape.last().copied().unwrap_or(1).max(1);
    let data: Vec<i64> = (0..n).map(|i| i64::from(i.is_multiple_of(width) || next() < 0.6)).collect();
    match dtype {
        DType::Bool => Tensor::from_bools(shape.to_vec(), data.into_iter().map(|x| x != 0).collect()),
        _ => Ok(Tensor::from_vec(shape.to_vec(), data)?.cast_to(dtype)),
    }
}
