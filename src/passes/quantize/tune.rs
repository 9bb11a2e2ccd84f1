//! Block size and accuracy level of weights in blocks, by trying them on the runtime of this machine: the fastest
//! that finds the float model's next token about as often as the best does. What is found is settled, so that a
//! run that goes on, goes by it.

use super::blocks::Rounding;
use super::{Scheme, Settings, weight_only};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::passes::{Ctx, PassReport};

const TRIED: [usize; 3] = [32, 64, 128];
const RULE: &str = "tune";
/// Agreement that may be lost against the best that was tried.
const NEAR: f64 = 0.01;

/// One that was tried.
struct Tried {
    block: usize,
    level: i64,
    latency: f64,
    agreement: Option<f64>,
}

/// Settings with the block size and the accuracy level that serve best here.
///
/// # Errors
/// `Unsupported` where nobody can measure, or nothing could be tried; those of measuring.
pub(super) fn tuned(
    graph: &Graph,
    settings: &Settings,
    ctx: &Ctx<'_>,
    report: &mut PassReport,
) -> Result<Settings> {
    let with =
        |block: usize, level: i64| Settings { block, accuracy_level: level, tune: false, ..settings.clone() };
    let settled = |name: &str| ctx.keep.map_or(Ok(None), |k| k.settled(name));
    if let (Some(block), Some(level)) = (settled("block")?, settled("accuracy_level")?) {
        return Ok(with(block as usize, level as i64));
    }
    let trial = ctx.trial.ok_or_else(|| {
        Error::unsupported("QUANTIZE-TUNE", "nothing can be measured here")
            .field("step.tune")
            .hint("run the recipe as a job, or state block and accuracy_level")
    })?;
    let blocks = match settings.rounding {
        Rounding::Lossless => vec![settings.block],
        _ => TRIED.to_vec(),
    };
    // Weights on 8 bits have no other kernel.
    let levels: &[i64] = if settings.scheme == Scheme::WeightInt8 { &[4] } else { &[1, 4] };
    let mut tried: Vec<Tried> = Vec::new();
    for block in blocks {
        if let Err(e) = weight_only::check(graph, &with(block, 4)) {
            report.skip(RULE, format!("blocks of {block}"), e.to_string());
            continue;
        }
        for level in levels {
            ctx.monitor.check()?;
            let mut one = with(block, *level);
            if one.rounding.needs_data() || one.rounding.uses_data() {
                one.rounding = Rounding::Mse;
            }
            let name = format!("blocks of {block}, accuracy level {level}");
            let quantized = weight_only::run(graph, &one, ctx, &mut PassReport::new("quantize"))?;
            ctx.monitor.phase("quantize: try on this machine", None);
            let latency = trial.latency(&quantized)?;
            let agreement = trial.agreement(&quantized)?;
            let same = agreement.map_or(String::new(), |a| format!(", same next token {:.1} %", 100.0 * a));
            report.apply(RULE, name, format!("latency {latency:.3} of the input's{same}"));
            tried.push(Tried { block, level: *level, latency, agreement });
        }
    }
    let most = tried.iter().filter_map(|t| t.agreement).fold(0.0, f64::max);
    let near = tried.iter().filter(|t| t.agreement.is_none_or(|a| a >= most - NEAR));
    let best = near.min_by(|a, b| a.latency.total_cmp(&b.latency)).ok_or_else(|| {
        Error::unsupported("QUANTIZE-TUNE", "no block size fits this model").field("step.tune")
    })?;
    report.facts.insert("tuned_block".into(), best.block as f64);
    report.facts.insert("tuned_accuracy_level".into(), best.level as f64);
    if let Some(keep) = ctx.keep {
        keep.settle("block", best.block as f64)?;
        keep.settle("accuracy_level", best.level as f64)?;
    }
    Ok(with(best.block, best.level))
}
