//! Block influence: how far a block turns the vectors that pass it (ShortGPT, arXiv 2403.03853). Blocks and
//! batches enter, a score each leaves; of every batch only the entries of blocks under way are held.

use super::{Block, Kind};
use crate::error::{Error, Result};
use crate::evaluate::samples::Samples;
use crate::execute::{Executor, Overrides, Seen};
use crate::graph::{Graph, ValueId};
use crate::monitor::Monitor;
use crate::tensor::{Tensor, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The input that says which tokens are real, `[batch, earlier + new]`.
const MASK: &str = "attention_mask";

/// By block `1 - E[x . y / (|x| |y|)]` over the tokens of all batches: `x` enters the block, `y` leaves it.
/// A token is a vector along the last axis, in feature maps of convolutions along axis 1; tokens that
/// `attention_mask` rules out do not count. 0 where a block does nothing, at most 2.
///
/// # Errors
/// Those of running the graph and of `data`; `Invalid` where there is no data or a value is not finite.
pub fn influences(
    graph: &Graph,
    blocks: &[Block],
    data: &Samples,
    monitor: &dyn Monitor,
) -> Result<Vec<f64>> {
    let executor = Executor::new(graph)?;
    let none = Overrides::new();
    let entries: BTreeSet<ValueId> = blocks.iter().map(|b| b.entry).collect();
    let mut sums = vec![Mean::default(); blocks.len()];
    let mut batches = 0;
    monitor.phase("prune: influence of blocks", None);
    for batch in data.batches(0) {
        monitor.check()?;
        let batch = &batch?.inputs;
        let mask = match batch.iter().find(|(name, _)| name == MASK) {
            Some((_, t)) if t.shape().len() == 2 => Some((t.shape()[1], t.to_i64s()?)),
            _ => None,
        };
        // Values that entered blocks, with the blocks that they have not left yet.
        let mut held: BTreeMap<ValueId, (Tensor, Vec<usize>)> = BTreeMap::new();
        let mut see = |v: ValueId, value: &Value| -> Result<()> {
            let ends: Vec<usize> = (0..blocks.len()).filter(|b| blocks[*b].exit == v).collect();
            if ends.is_empty() && !entries.contains(&v) {
                return Ok(());
            }
            let y = value.to_tensor()?;
            for b in ends {
                let entry = blocks[b].entry;
                let Some((x, waiting)) = held.get_mut(&entry) else { continue };
                let axis = match (blocks[b].kind, y.shape().len()) {
                    (_, 0) => continue,
                    (Kind::Convolution, rank) if rank > 1 => 1,
                    (_, rank) => rank - 1,
                };
                sums[b]
                    .take(x, &y, axis, mask.as_ref().map(|(width, m)| (*width, m.as_slice())))
                    .map_err(|e| e.field(format!("value \"{}\"", graph.value_name(v))))?;
                waiting.retain(|w| *w != b);
                if waiting.is_empty() {
                    held.remove(&entry);
                }
            }
            if entries.contains(&v) {
                let waiting = (0..blocks.len()).filter(|b| blocks[*b].entry == v).collect();
                held.insert(v, (y, waiting));
            }
            Ok(())
        };
        for (name, tensor) in batch {
            if let Some(v) = graph.find(name).filter(|v| entries.contains(v)) {
                see(v, &Value::load(tensor)?)?;
            }
        }
        let ends = |v| entries.contains(&v) || blocks.iter().any(|b| b.exit == v);
        executor.run_tapped(batch, &none, Seen::Of(&ends), &mut see)?;
        batches += 1;
        monitor.progress(batches);
    }
    if let Some(b) = sums.iter().position(|s| s.tokens == 0) {
        return Err(Error::invalid("PRUNE-DEPTH-DATA", "no token passes a block")
            .field(format!("block {b}"))
            .found(format!("{batches} batches"))
            .hint("give data with at least one row"));
    }
    Ok(sums.iter().map(|s| (1.0 - s.cosines / s.tokens as f64).max(0.0)).collect())
}

/// Cosines of the tokens so far.
#[derive(Debug, Clone, Default)]
struct Mean {
    cosines: f64,
    tokens: u64,
}

impl Mean {
    fn take(&mut self, x: &Tensor, y: &Tensor, axis: usize, mask: Option<(usize, &[i64])>) -> Result<()> {
        if x.shape() != y.shape() {
            return Err(Error::invalid("PRUNE-DEPTH-SHAPE", "a block changes the shape of what passes it")
                .found(format!("{:?} and {:?}", x.shape(), y.shape())));
        }
        let (dims, a, b) = (y.shape(), x.to_f64s()?, y.to_f64s()?);
        if a.iter().chain(&b).any(|v| !v.is_finite()) {
            return Err(Error::invalid("PRUNE-DEPTH-NAN", "a value that passes a block is not finite"));
        }
        let (width, inner) = (dims[axis], dims[axis + 1..].iter().product::<usize>());
        // Masks speak of positions: the new ones are the last of all.
        let mask = mask.filter(|(total, m)| {
            dims.len() == 3 && axis == 2 && *total >= dims[1] && m.len() == dims[0] * total
        });
        let tokens = a.len().checked_div(width).unwrap_or(0);
        for t in 0..tokens {
            if let Some((total, m)) = mask
                && m[t / dims[1] * total + total - dims[1] + t % dims[1]] == 0
            {
                continue;
            }
            let start = t / inner * inner * width + t % inner;
            let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
            for i in (0..width).map(|c| start + c * inner) {
                xy += a[i] * b[i];
                xx += a[i] * a[i];
                yy += b[i] * b[i];
            }
            self.cosines += match xx * yy > 0.0 {
                true => (xy / (xx * yy).sqrt()).clamp(-1.0, 1.0),
                // Nothing came in and nothing goes out, or one of both.
                false => f64::from(u8::from(xx == yy)),
            };
            self.tokens += 1;
        }
        Ok(())
    }
}
