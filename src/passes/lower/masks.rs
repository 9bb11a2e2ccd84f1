//! Recognises attention masks and positions by what they compute: the part of the graph that makes a
//! value is cut out, run on small inputs and held against the definition. It must hang on one padding
//! input, on sizes of graph inputs and on constants alone.

use crate::error::Result;
use crate::execute::Executor;
use crate::graph::{Edit, Graph, NodeIndex, Type, Uses, ValueId};
use crate::ops::spelled::Masking;
use crate::tensor::{DType, Tensor};
use std::collections::{BTreeSet, HashMap};

/// What a mask lets a query reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Real tokens up to its own place.
    Causal,
    /// The last so many of them.
    Window(i64),
    /// Every real token.
    Padding,
}

/// The part of a graph that makes one value from a padding input.
struct Part {
    graph: Graph,
    /// Input of zeros and ones, `[batch, total]`.
    padding: ValueId,
    padding_name: String,
    /// Other inputs, whose sizes alone count, with their ranks.
    sized: Vec<(String, DType, Vec<Option<usize>>)>,
}

/// Sizes of one run.
struct Run {
    mask: Vec<Vec<i64>>,
    new: usize,
}

impl Run {
    fn total(&self) -> usize {
        self.mask[0].len()
    }
    fn past(&self) -> usize {
        self.total() - self.new
    }
}

/// Nodes that are cut out at most; masks take a dozen.
const MOST: usize = 64;

impl Part {
    fn of(graph: &Graph, uses: &Uses, v: ValueId) -> Option<Part> {
        let mut nodes: BTreeSet<NodeIndex> = BTreeSet::new();
        let (mut paddings, mut sized) = (BTreeSet::new(), BTreeSet::new());
        let mut open = vec![v];
        while let Some(v) = open.pop() {
            if graph.constant(v).is_some() {
                continue;
            }
            let Some((i, _)) = uses.producer(v) else {
                paddings.insert(v);
                continue;
            };
            let node = graph.node(i);
            node.op.as_ref()?;
            if !node.bodies.is_empty() || !nodes.insert(i) || nodes.len() > MOST {
                if nodes.len() > MOST || !node.bodies.is_empty() {
                    return None;
                }
                continue;
            }
            if node.is("Shape") {
                let of = node.inputs.first().copied().flatten()?;
                graph.inputs().contains(&of).then_some(())?;
                sized.insert(of);
            } else {
                open.extend(node.inputs.iter().flatten());
            }
        }
        let mut only = paddings.iter().copied();
        let (padding, None) = (only.next()?, only.next()) else { return None };
        let integer = |v: ValueId, rank: usize| matches!(&graph.value(v).ty, Some(Type::Tensor { dtype: DType::I64 | DType::I32, shape: Some(s) }) if s.len() == rank);
        if !integer(padding, 2) || !graph.inputs().contains(&padding) {
            return None;
        }
        let opsets: Vec<(&str, i64)> = graph.opsets().iter().map(|(d, v)| (d.as_str(), *v)).collect();
        let mut edit = Edit::new("part", &opsets);
        let mut map: HashMap<ValueId, ValueId> = HashMap::new();
        let mut sizes = vec![];
        for v in paddings.iter().chain(&sized).copied() {
            let Some(Type::Tensor { dtype, shape: Some(shape) }) = &graph.value(v).ty else { return None };
            if map.contains_key(&v) {
                continue;
            }
            let open = Type::Tensor { dtype: *dtype, shape: None };
            map.insert(v, edit.add_input(graph.value_name(v), open));
            if v != padding {
                let known = shape.iter().map(|d| d.size()).collect();
                sizes.push((graph.value_name(v).to_string(), *dtype, known));
            }
        }
        for i in nodes {
            let mut node = graph.node(i).clone();
            for input in node.inputs.iter_mut().flatten() {
                if let (None, Some(t)) = (map.get(input), graph.constant(*input)) {
                    map.insert(*input, edit.add_initializer(graph.value_name(*input), t.clone()));
                }
                *input = *map.get(input)?;
            }
            for output in node.outputs.iter_mut().flatten() {
                let new = edit.add_value(graph.value_name(*output), None);
                map.insert(*output, new);
                *output = new;
            }
            edit.add_node(node);
        }
        edit.add_output(*map.get(&v)?);
        let padding_name = graph.value_name(padding).to_string();
        Some(Part { graph: edit.commit().ok()?, padding, padding_name, sized: sizes })
    }

    /// The value on one run's inputs: shape and elements.
    fn run(&self, run: &Run) -> Result<(Vec<usize>, Vec<f64>)> {
        let batch = run.mask.len();
        let padding = Tensor::from_vec(vec![batch, run.total()], run.mask.concat())?;
        let dtype = match &self.graph.value(self.graph.inputs()[0]).ty {
            Some(Type::Tensor { dtype, .. }) => *dtype,
            _ => DType::I64,
        };
        let mut feed = vec![(self.padding_name.clone(), padding.cast_to(dtype))];
        for (name, dtype, known) in &self.sized {
            let shape: Vec<usize> = known
                .iter()
                .enumerate()
                .map(|(axis, size)| match (size, axis) {
                    (Some(n), _) => *n,
                    (None, 0) => batch,
                    // Tokens, or embedded tokens; a cache has its length behind the heads.
                    (None, 1) if known.len() < 4 => run.new,
                    (None, 2) if known.len() == 4 => run.past(),
                    _ => 1,
                })
                .collect();
            let zeros = Tensor::from_vec(shape.clone(), vec![0f32; shape.iter().product()])?;
            feed.push((name.clone(), zeros.cast_to(*dtype)));
        }
        let out = Executor::new(&self.graph)?.run(&feed)?.remove(0).1;
        let elements = match out.dtype().is_float() {
            true => out.to_f64s()?,
            false => out.to_i64s()?.into_iter().map(|x| x as f64).collect(),
        };
        Ok((out.shape().to_vec(), elements))
    }

    /// Whether all runs give `[batch, 1, queries, keys]` as `reaches(run, row, query, key)` says.
    fn is(&self, runs: &[Run], one_query: bool, reaches: impl Fn(&Run, usize, usize, usize) -> bool) -> bool {
        self.says(runs, one_query, &|x| x != 0.0, reaches)
    }

    /// As [`Part::is`], where `reads` tells of an element whether it lets a query reach a key.
    fn says(
        &self,
        runs: &[Run],
        one_query: bool,
        reads: &dyn Fn(f64) -> bool,
        reaches: impl Fn(&Run, usize, usize, usize) -> bool,
    ) -> bool {
        runs.iter().all(|run| {
            let Ok((shape, found)) = self.run(run) else { return false };
            let queries = if one_query { 1 } else { run.new };
            let (batch, total) = (run.mask.len(), run.total());
            let wanted = (0..batch).flat_map(|b| {
                (0..queries)
                    .flat_map(move |q| (0..total).map(move |k| (b, q, k)))
                    .map(|(b, q, k)| reaches(run, b, q, k) && run.mask[b][k] != 0)
            });
            shape == [batch, 1, queries, total] && found.iter().map(|x| reads(*x)).eq(wanted)
        })
    }
}

/// Masks with holes anywhere, with and without a past.
fn runs() -> Vec<Run> {
    vec![
        Run { mask: vec![vec![1, 1, 1, 1, 1], vec![1, 0, 1, 1, 0]], new: 5 },
        Run { mask: vec![vec![1, 1, 0, 1, 1, 1, 0], vec![0, 1, 1, 1, 1, 1, 1]], new: 3 },
        Run { mask: vec![vec![1, 1, 1, 0, 1, 1]], new: 1 },
    ]
}

/// What a boolean mask lets queries reach, and the padding input that it is made from.
pub(super) fn kind(graph: &Graph, uses: &Uses, v: ValueId) -> Option<(Kind, ValueId)> {
    let part = Part::of(graph, uses, v)?;
    let causal = |run: &Run, q: usize, k: usize| k <= run.past() + q;
    if part.is(&runs(), false, |run, _, q, k| causal(run, q, k)) {
        // A window that is wider than these runs looks the same; the width is in the value's name, or
        // among the constants that make it.
        let widths = widths(graph, v, &part);
        for w in widths {
            if let Some(true) = windowed(&part, w) {
                return Some((Kind::Window(w), part.padding));
            }
        }
        return Some((Kind::Causal, part.padding));
    }
    for w in widths(graph, v, &part) {
        let near =
            |run: &Run, _, q: usize, k: usize| causal(run, q, k) && (k as i64) > (run.past() + q) as i64 - w;
        if part.is(&runs(), false, near) && windowed(&part, w) == Some(true) {
            return Some((Kind::Window(w), part.padding));
        }
    }
    part.is(&padded(), true, |_, _, _, _| true).then_some((Kind::Padding, part.padding))
}

/// No past: the padding of an encoder.
fn padded() -> Vec<Run> {
    runs().into_iter().map(|r| Run { new: r.total(), ..r }).collect()
}

/// The padding input that a mask of `[batch, 1, one or all queries, keys]` is made from, where it lets every
/// query reach every real token, and what a score becomes, or has added to it, where it does not.
pub(in crate::passes) fn padding(
    graph: &Graph,
    uses: &Uses,
    v: ValueId,
    masking: Masking,
) -> Option<(ValueId, f64)> {
    let part = Part::of(graph, uses, v)?;
    let runs = padded();
    let (reads, fill): (Box<dyn Fn(f64) -> bool>, f64) = match masking {
        Masking::None => return None,
        Masking::Chosen { keeps, fill } => (Box::new(move |x| (x != 0.0) == keeps), fill),
        Masking::Added => {
            let mut fill = f64::NAN;
            for run in &runs {
                for x in part.run(run).ok()?.1.into_iter().filter(|x| *x != 0.0) {
                    if x.is_nan() || x > 0.0 || fill.is_finite() && x != fill {
                        return None;
                    }
                    fill = x;
                }
            }
            (Box::new(|x| x == 0.0), fill)
        }
    };
    let any = |one_query| part.says(&runs, one_query, &reads, |_, _, _, _| true);
    (any(true) || any(false)).then_some((part.padding, fill))
}

/// Whether keys further back than `w` are out of reach, on a past that is long enough to tell.
fn windowed(part: &Part, w: i64) -> Option<bool> {
    let past = usize::try_from(w).ok()?.checked_add(3)?;
    let long = [Run { mask: vec![vec![1; past + 2]], new: 2 }];
    let inside = |run: &Run, _, q: usize, k: usize| {
        let at = run.past() + q;
        k <= at && (k as i64) > at as i64 - w
    };
    Some(part.is(&long, false, inside))
}

/// Window widths that a mask may have: whole numbers among the constants that make it.
fn widths(graph: &Graph, v: ValueId, part: &Part) -> Vec<i64> {
    let mut all: BTreeSet<i64> = part
        .graph
        .initializers()
        .filter(|(_, t)| t.len() == 1 && t.dtype().is_int())
        .filter_map(|(_, t)| t.to_i64s().ok()?.first().map(|x| x.abs()))
        .flat_map(|w| [w, w + 1])
        .collect();
    all.extend(graph.value_name(v).rsplit('.').next().and_then(|w| w.parse::<i64>().ok()));
    all.into_iter().filter(|w| (2..1 << 22).contains(w)).collect()
}

/// The padding input whose real tokens a value counts: the position of each new token is the number of
/// real tokens before it.
pub(super) fn positions(graph: &Graph, uses: &Uses, v: ValueId) -> Option<ValueId> {
    let part = Part::of(graph, uses, v)?;
    let right = [
        Run { mask: vec![vec![1, 1, 1, 1, 1], vec![1, 1, 1, 0, 0]], new: 5 },
        Run { mask: vec![vec![1, 1, 0, 0, 1], vec![1, 1, 1, 1, 1]], new: 1 },
        Run { mask: vec![vec![1, 1, 1, 1, 1, 1]], new: 3 },
    ];
    let counts = right.iter().all(|run| {
        let Ok((shape, found)) = part.run(run) else { return false };
        shape == [run.mask.len(), run.new]
            && run.mask.iter().enumerate().all(|(b, mask)| {
                (0..run.new).filter(|s| mask[run.past() + s] != 0).all(|s| {
                    let before: i64 = mask[..run.past() + s].iter().sum();
                    found[b * run.new + s] == before as f64
                })
            })
    });
    counts.then_some(part.padding)
}
