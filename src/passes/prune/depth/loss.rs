//! What a block is worth by the loss without it (BlockPruner, arXiv 2406.10594): slower than block
//! influence, and it sees what the blocks behind make of the change.

use super::{Block, without};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::monitor::Monitor;

/// Gives a loss, lower for better models; whatever it means is the caller's.
pub type Loss<'a> = dyn FnMut(&Graph) -> Result<f64> + 'a;

/// A block that was taken out, and the loss without it and all before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Position of the block.
    pub block: usize,
    /// Loss of the graph without it.
    pub loss: f64,
}

/// By block the loss of `graph` without it alone; infinite where it cannot leave or the loss is no number.
///
/// # Errors
/// Those of `loss`, and a stop that was asked for.
pub fn losses(
    graph: &Graph,
    blocks: &[Block],
    loss: &mut Loss<'_>,
    monitor: &dyn Monitor,
) -> Result<Vec<f64>> {
    monitor.phase("prune: loss without blocks", Some(blocks.len() as u64));
    let mut all = Vec::with_capacity(blocks.len());
    for b in 0..blocks.len() {
        all.push(one(graph, blocks, &[b], loss, monitor)?);
        monitor.progress(all.len() as u64);
    }
    Ok(all)
}

/// Takes `count` blocks out one after the other, each time the one without which the loss is lowest
/// (the first of several), and scores the rest anew. Ends early where none can leave any longer.
///
/// # Errors
/// As [`losses`].
pub fn in_turn(
    graph: &Graph,
    blocks: &[Block],
    count: usize,
    loss: &mut Loss<'_>,
    monitor: &dyn Monitor,
) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = vec![];
    let runs = (0..count.min(blocks.len())).map(|k| (blocks.len() - k) as u64).sum();
    monitor.phase("prune: blocks in turn", Some(runs));
    let mut done = 0;
    while steps.len() < count.min(blocks.len()) {
        let mut best: Option<Step> = None;
        for b in (0..blocks.len()).filter(|b| steps.iter().all(|s| s.block != *b)) {
            let chosen: Vec<usize> = steps.iter().map(|s| s.block).chain([b]).collect();
            let loss = one(graph, blocks, &chosen, loss, monitor)?;
            if loss.is_finite() && best.is_none_or(|s| loss < s.loss) {
                best = Some(Step { block: b, loss });
            }
            done += 1;
            monitor.progress(done);
        }
        let Some(step) = best else { break };
        steps.push(step);
    }
    Ok(steps)
}

fn one(
    graph: &Graph,
    blocks: &[Block],
    chosen: &[usize],
    loss: &mut Loss<'_>,
    monitor: &dyn Monitor,
) -> Result<f64> {
    monitor.check()?;
    let shorter = match without(graph, blocks, chosen) {
        Ok(shorter) => shorter,
        Err(e) if e.kind() == crate::error::Kind::Unsupported => return Ok(f64::INFINITY),
        Err(e) => return Err(e),
    };
    let found = loss(&shorter).map_err(|e: Error| e.field(format!("without blocks {chosen:?}")))?;
    Ok(if found.is_nan() { f64::INFINITY } else { found })
}
