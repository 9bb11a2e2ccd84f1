//! Importance of units: a graph, its coupling and what is known of its data enter, one score a unit
//! leaves. Weights alone (`magnitude`), what flows into products (`activation`), or the slope of the loss
//! (`gradient`) decide. Knows no ratio and cuts nothing.

mod activation;
pub(super) mod gates;
mod gradient;
mod magnitude;

pub(super) use gates::{Gate, each_batch, gates};

use super::criterion::{Criterion, Family, Form, Power, Slope};
use crate::error::{Error, Result};
use crate::evaluate::samples::Samples;
use crate::execute::Checkpointing;
use crate::graph::constants::Constants;
use crate::graph::coupling::Coupled;
use crate::graph::{Facts, Graph};
use crate::monitor::Monitor;
use crate::passes::look::Kept;
use crate::passes::{Ctx, Memo};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What scores are taken from.
pub(super) struct Source<'a> {
    pub(super) graph: &'a Graph,
    pub(super) facts: &'a Facts,
    pub(super) coupled: &'a Coupled,
    /// By group: whether its units are to be ranked.
    pub(super) ranked: &'a [bool],
    /// Data, for criteria that look at some.
    pub(super) data: Option<&'a Samples>,
    /// Most rows to look at; 0 for all.
    pub(super) samples: usize,
    /// Rows at once; 0 leaves it to the data.
    pub(super) batch: usize,
    pub(super) slope: Slope,
    pub(super) form: Form,
    pub(super) power: Power,
    pub(super) checkpointing: Checkpointing,
    pub(super) seed: u64,
    pub(super) monitor: &'a dyn Monitor,
    /// Where sums over data are kept that a run may want again.
    pub(super) memo: Option<&'a dyn Memo>,
}

impl<'a> Source<'a> {
    /// What is kept of `pass`, which has `length` sums and looks at the units that are ranked.
    fn kept(&self, pass: &str, length: usize) -> Kept<'a> {
        let ranked: Vec<u8> = self.ranked.iter().map(|r| u8::from(*r)).collect();
        let (samples, batch, units) = (self.samples, self.batch, crate::save::sha256(&ranked));
        let what = format!("importance {pass} {samples} {batch} {length} {units}");
        Kept::of(self.memo, self.monitor, what, |sums| sums.len() == length)
    }
}

/// Scores by group, none for groups that are not ranked. They are finite and not negative.
pub(super) fn scores(source: &Source<'_>, criterion: Criterion) -> Result<Vec<Option<Vec<f64>>>> {
    let sums = match criterion.family() {
        Family::Magnitude => magnitude::scores(source, criterion)?,
        Family::Activation => activation::scores(source, criterion)?,
        Family::Gradient => gradient::scores(source, criterion)?,
        Family::Blocks => {
            return Err(Error::internal("PRUNE-BLOCKS", "blocks are not scored as units are"));
        }
        Family::Random => {
            let constants = Constants::of(source.graph);
            for v in gates::members(source).into_keys() {
                source.monitor.check()?;
                if let Some(tensor) = constants.get(v) {
                    magnitude::finite(source.graph, v, &tensor.to_f32s()?)?;
                }
            }
            let mut rng = ChaCha8Rng::seed_from_u64(source.seed);
            (0..source.coupled.units()).map(|_| rng.random::<f64>()).collect()
        }
    };
    let of = |g: &crate::graph::coupling::Group| source.ranked[g.id].then(|| sums[g.numbers()].to_vec());
    Ok(source.coupled.groups().iter().map(of).collect())
}

/// An error of numbers that are none, as that of what is to blame, where something is: the first weight with
/// NaN, else the first with infinity, else the data.
pub(super) fn blamed(graph: &Graph, ctx: &Ctx<'_>, e: Error) -> Error {
    if !["LOSS-NAN", "PRUNE-NAN", "PRUNE-DEPTH-NAN", "RECOVER-DIVERGED"].contains(&e.code()) {
        return e;
    }
    let constants = Constants::of(graph);
    let mut infinite = None;
    for (v, tensor) in constants.weights().filter(|(_, t)| t.dtype().is_float()) {
        let Ok(w) = tensor.to_f32s() else { continue };
        if let Err(found) = magnitude::finite(graph, v, &w) {
            if w.iter().any(|x| x.is_nan()) {
                return found.source(e);
            }
            infinite.get_or_insert(found);
        }
    }
    if let Some(found) = infinite {
        return found.source(e);
    }
    for (field, data) in [("data.calibration", ctx.calibration), ("data.train", ctx.train)] {
        if let Some(row) = data.and_then(Samples::first_not_finite) {
            return Error::invalid("DATA-NAN", "the data hold a number that is not finite")
                .field(field)
                .found(format!("row {row}"))
                .hint("fill or leave out such rows")
                .source(e);
        }
    }
    e
}

/// The data, or which field of the recipe is missing.
pub(super) fn data(data: Option<&Samples>) -> Result<&Samples> {
    let data = data.ok_or_else(|| {
        Error::usage("PRUNE-DATA", "this criterion looks at data, and there are none")
            .field("data.calibration")
            .hint("pass --calibration SPEC, or set [data] calibration in the recipe; l1 and l2 need none")
    })?;
    match data.len() {
        0 => Err(Error::invalid("PRUNE-DATA", "the calibration data are empty").field("data.calibration")),
        _ => Ok(data),
    }
}
