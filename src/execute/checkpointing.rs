//! When gradient checkpointing is worth its time: a policy and what memory there is enter, the segments
//! of a pass leave. Gradients have the same bits either way.

use super::segments::Segments;
use super::{Executor, Overrides};
use crate::error::Result;
use crate::graph::{Graph, Type, ValueId};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;

/// Most segments that [`Checkpointing::Auto`] tries.
const MOST: usize = 32;

/// Whether a forward pass keeps only what lies between segments of the graph, and its reverse pass
/// computes the rest again: `"auto"`, `"off"` or a number of segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(try_from = "Written", into = "Written")]
pub enum Checkpointing {
    /// Where a pass would keep more than it may: as few segments as fit, else those that keep the least.
    #[default]
    Auto,
    /// Everything is kept.
    Off,
    /// So many segments, two at least.
    Segments(usize),
}

/// As it is written.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "\"auto\", \"off\" or a number of segments, 2 or more")]
enum Written {
    Number(usize),
    Word(String),
}

impl TryFrom<Written> for Checkpointing {
    type Error = String;
    fn try_from(written: Written) -> std::result::Result<Checkpointing, String> {
        match written {
            Written::Number(n) if n >= 2 => Ok(Checkpointing::Segments(n)),
            Written::Word(word) if word == "auto" => Ok(Checkpointing::Auto),
            Written::Word(word) if word == "off" => Ok(Checkpointing::Off),
            Written::Number(n) => Err(format!("checkpointing: {n} segments save nothing, 2 are the fewest")),
            Written::Word(word) => {
                Err(format!("checkpointing is \"auto\", \"off\" or a number of segments, not \"{word}\""))
            }
        }
    }
}

impl From<Checkpointing> for Written {
    fn from(policy: Checkpointing) -> Written {
        match policy {
            Checkpointing::Auto => Written::Word("auto".into()),
            Checkpointing::Off => Written::Word("off".into()),
            Checkpointing::Segments(n) => Written::Number(n),
        }
    }
}

/// Segments for the passes of one executor towards the same wanted values with the same constants
/// overridden, chosen at the first and again
/// where inputs are larger.
#[derive(Debug, Default)]
pub struct Planner {
    policy: Checkpointing,
    /// Most bytes that a tape may keep, where that is limited.
    budget: Option<u64>,
    /// Elements of the inputs that the segments were chosen for, and these.
    chosen: Option<(usize, Arc<Segments>)>,
}

impl Planner {
    /// `budget`: most bytes that a tape may keep, where that is limited.
    pub fn new(policy: Checkpointing, budget: Option<u64>) -> Planner {
        Planner { policy, budget, chosen: None }
    }

    /// Segments of the last pass; 1 where nothing is computed twice.
    pub fn count(&self) -> usize {
        self.chosen.as_ref().map_or(1, |(_, segments)| segments.len())
    }

    /// The segments for a pass on these inputs. They may take a run to choose, at whose values `watch` is
    /// asked.
    pub fn segments(
        &mut self,
        executor: &Executor,
        inputs: &[(String, Tensor)],
        overrides: &Overrides,
        wanted: &[ValueId],
        watch: &dyn Fn() -> Result<()>,
    ) -> Result<Arc<Segments>> {
        let elements = inputs.iter().map(|(_, t)| t.len()).sum();
        if let Some((most, segments)) = &self.chosen
            && elements <= *most
        {
            return Ok(segments.clone());
        }
        let plan = executor.plan_towards(wanted, overrides);
        let whole = Segments::whole_of(executor.graph(), plan.clone(), wanted);
        let segments = Arc::new(match (self.policy, self.budget) {
            (Checkpointing::Off, _) | (Checkpointing::Auto, None) => whole,
            (Checkpointing::Auto, Some(budget))
                if at_most(executor.graph(), &whole, inputs).is_some_and(|most| most <= budget) =>
            {
                whole
            }
            (policy, budget) => {
                let graph = executor.graph();
                let sizes = executor.sizes(inputs, overrides, &mut |_, _| watch())?;
                let cut = |n| Segments::cut_of(graph, plan.clone(), wanted, &sizes, n);
                match (policy, budget) {
                    (Checkpointing::Segments(n), _) => cut(n),
                    (_, Some(budget)) => fewest(whole, &cut, &|s| s.kept_bytes(graph, &sizes), budget),
                    _ => whole,
                }
            }
        });
        self.chosen = Some((elements, segments.clone()));
        Ok(segments)
    }
}

/// The fewest segments that keep at most `budget` bytes, else those that keep the least.
fn fewest(
    whole: Segments,
    cut: &dyn Fn(usize) -> Segments,
    kept: &dyn Fn(&Segments) -> u64,
    budget: u64,
) -> Segments {
    let mut least = (kept(&whole), whole);
    for n in 2..=MOST {
        if least.0 <= budget {
            break;
        }
        let segments = cut(n);
        let bytes = kept(&segments);
        if bytes < least.0 {
            least = (bytes, segments);
        }
    }
    least.1
}

/// No less than a whole tape keeps, from shapes alone; none where these do not tell.
fn at_most(graph: &Graph, whole: &Segments, inputs: &[(String, Tensor)]) -> Option<u64> {
    let mut sizes: HashMap<&str, i64> = HashMap::new();
    let mut bytes = 0;
    for (name, tensor) in inputs {
        bytes += tensor.byte_len();
        if let Some(Type::Tensor { shape: Some(shape), .. }) = &graph.value(graph.find(name)?).ty {
            let symbols = shape.iter().zip(tensor.shape());
            sizes.extend(symbols.filter_map(|(d, n)| Some((d.as_symbol()?, *n as i64))));
        }
    }
    let facts = graph.infer(&|symbol| sizes.get(symbol).copied()).ok()?;
    let computed = whole.plan().steps().iter().flat_map(|s| s.outputs.iter().flatten());
    for v in computed.filter(|v| whole.stays[v.0 as usize] || graph.outputs().contains(v)) {
        let fact = facts.get(*v)?;
        let elements = fact.fixed_shape()?.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64))?;
        bytes += fact.dtype.byte_len(usize::try_from(elements).ok()?)?;
    }
    Some(bytes)
}
