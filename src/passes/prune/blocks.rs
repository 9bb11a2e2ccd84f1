//! Depth: whole blocks leave, those of least influence or without which the loss is lowest.

use super::depth::{self, Block};
use super::settings::Settings;
use super::target::Gauge;
use super::{Criterion, Of, Slope, importance};
use crate::error::{Error, Result};
use crate::evaluate::objective::{Head, Objective};
use crate::evaluate::samples::{Batch, Samples};
use crate::execute::{Executor, Overrides};
use crate::graph::Graph;
use crate::graph::constants::Constants;
use crate::passes::{Ctx, PassReport};
use crate::tensor::Value;

/// The graph with all sums spelled out, and what may leave of it; or why nothing can.
pub(super) fn found(graph: &Graph, settings: &Settings) -> Result<(Graph, Vec<Block>)> {
    // Sums that a runtime fused with norms are borders of blocks.
    let graph = depth::spelled(graph)?;
    let facts = graph.infer(&|_| None)?;
    let mut blocks = depth::blocks(&graph, &facts, settings.unit);
    let excluded = |b: &Block| {
        settings.exclude.iter().any(|pattern| b.labels.iter().any(|l| crate::passes::matches(pattern, l)))
    };
    blocks.retain(|b| b.parameters > 0 && !excluded(b));
    if blocks.len() < 2 {
        return Err(Error::unsupported("PRUNE-NOTHING", "no blocks can leave this model")
            .found(format!("{} residual blocks", blocks.len()))
            .hint("choose a criterion for channels and heads, such as l2"));
    }
    Ok((graph, blocks))
}

/// Scores by block, lowest leaves first.
fn scores(graph: &Graph, blocks: &[Block], settings: &Settings, ctx: &Ctx<'_>) -> Result<Vec<f64>> {
    let data = importance::data(ctx.calibration)?;
    let rows = if settings.samples == 0 { data.len() } else { settings.samples };
    if settings.criterion == Criterion::BlockInfluence {
        return depth::influences(graph, blocks, &data.first(rows), ctx.monitor);
    }
    let mut judge = Judge::of(graph, data, rows, settings)?;
    depth::losses(graph, blocks, &mut |g| judge.loss(g, ctx), ctx.monitor)
}

/// The mean loss of variants of one graph on a few rows.
struct Judge<'a> {
    data: &'a Samples,
    batches: Vec<Vec<usize>>,
    head: Head,
    objective: Objective,
    /// Outputs of the graph itself, by batch, where it is the reference.
    reference: Vec<Option<Vec<Value>>>,
}

impl<'a> Judge<'a> {
    fn of(graph: &Graph, data: &'a Samples, rows: usize, settings: &Settings) -> Result<Judge<'a>> {
        let head = Head::of(graph, data)?;
        let task = settings.slope != Slope::Reference && data.labelled();
        let all: Vec<usize> = (0..data.len().min(rows)).collect();
        let batches: Vec<Vec<usize>> = all.chunks(data.batch_size()).map(<[usize]>::to_vec).collect();
        let mut reference = vec![None; batches.len()];
        if !task {
            let executor = Executor::new(graph)?;
            for (rows, kept) in batches.iter().zip(&mut reference) {
                *kept = Some(outputs(&executor, &data.batch(rows)?)?);
            }
        }
        let objective = if task { Objective::Likelihood } else { Objective::Reference };
        Ok(Judge { data, batches, head, objective, reference })
    }

    fn loss(&mut self, graph: &Graph, ctx: &Ctx<'_>) -> Result<f64> {
        let data = self.data.rebound(graph)?;
        let executor = Executor::new(graph)?;
        let (mut sum, mut count) = (0.0, 0.0);
        for (rows, reference) in self.batches.iter().zip(&self.reference) {
            ctx.monitor.check()?;
            let batch = data.batch(rows)?;
            let y = outputs(&executor, &batch)?;
            let loss = self.head.loss(self.objective, &y, &batch, reference.as_deref())?;
            (sum, count) = (sum + loss.sum, count + loss.count);
        }
        Ok(sum / f64::max(count, 1.0))
    }
}

fn outputs(executor: &Executor, batch: &Batch) -> Result<Vec<Value>> {
    executor.run_watched(&batch.inputs, &Overrides::new(), &mut |_| Ok(()))
}

/// The graph without the blocks that score lowest.
pub(super) fn cut(
    graph: &Graph,
    settings: &Settings,
    ctx: &Ctx<'_>,
    report: &mut PassReport,
) -> Result<Graph> {
    let (graph, blocks) = &found(graph, settings)?;
    let scores = scores(graph, blocks, settings, ctx)?;
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b)));
    order.retain(|b| scores[*b].is_finite());
    let chosen = enough(graph, settings, ctx, blocks, &order)?;
    let pruned = depth::without(graph, blocks, &chosen)?;
    for (b, block) in blocks.iter().enumerate() {
        let target = format!("{} {b}", block.kind);
        let first = block.labels.first().cloned().unwrap_or_default();
        let detail =
            format!("score {:.4e}; {first} and {} more", scores[b], block.labels.len().saturating_sub(1));
        match chosen.contains(&b) {
            true => report.apply("prune", target, format!("leaves; {detail}")),
            false => report.skip("prune", target, format!("scores higher than those that leave ({detail})")),
        }
    }
    Ok(pruned)
}

/// The first of `order` that together are what the settings ask for.
fn enough(
    graph: &Graph,
    settings: &Settings,
    ctx: &Ctx<'_>,
    blocks: &[Block],
    order: &[usize],
) -> Result<Vec<usize>> {
    // One block stays, else nothing is left of the model.
    let most = order.len().min(blocks.len() - 1);
    let refuse = |found: f64, lowest: f64| {
        Error::usage("PRUNE-TARGET", "the model cannot be brought so low by removing blocks")
            .field("step")
            .found(found)
            .limit(format!("{lowest:.3}"))
            .hint("ask for less, or prune channels and heads")
    };
    let Some((figure, part)) =
        settings.target.map(|t| t.part(graph, settings.rounds, ctx)).transpose()?.flatten()
    else {
        let whole: u64 = match settings.of {
            Of::Prunable => blocks.iter().map(|b| b.parameters).sum(),
            Of::Total => Constants::of(graph).weights().map(|(_, t)| t.len() as u64).sum(),
        };
        let target = settings.ratio * whole as f64;
        let (mut gone, mut count) = (0f64, 0);
        while count < most && gone + blocks[order[count]].parameters as f64 / 2.0 < target {
            gone += blocks[order[count]].parameters as f64;
            count += 1;
        }
        let count = count.max(1);
        let next = order.get(count).map_or(0.0, |b| blocks[*b].parameters as f64);
        if count == most && target - gone > next.max(0.02 * whole as f64) {
            return Err(refuse(settings.ratio, gone / whole as f64));
        }
        return Ok(order[..count].to_vec());
    };
    let gauge = Gauge::of(graph, figure, ctx)?;
    let mut lowest = f64::INFINITY;
    for count in 1..=most {
        ctx.monitor.check()?;
        let pruned = depth::without(graph, blocks, &order[..count])?;
        let now = gauge.part(&pruned)?;
        lowest = lowest.min(now);
        if now <= part {
            return Ok(order[..count].to_vec());
        }
    }
    Err(refuse(part, lowest))
}
