//! `move-integers`: what only moves elements and stands between a DequantizeLinear and a QuantizeLinear of the
//! same grid moves the integers instead, and both fall away.

use super::pairs::{same_grid, same_type};
use super::sweep::Sweep;
use crate::error::Result;
use crate::graph::{Node, NodeIndex};

/// Operators that give elements of their first input and nothing else, for any element type.
const MOVERS: [&str; 9] =
    ["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Expand", "Tile"];

pub(super) fn sweep(sweep: &mut Sweep<'_>) -> Result<()> {
    for i in 0..sweep.graph.nodes().len() {
        let quantize = sweep.graph.node(i);
        if !quantize.is("QuantizeLinear") || sweep.is_touched(i) {
            continue;
        }
        let made = |v: Option<crate::graph::ValueId>| sweep.uses().producer(v?).map(|(p, _)| p);
        let Some(m) = made(quantize.inputs.first().copied().flatten()) else { continue };
        let mover = sweep.graph.node(m);
        if !MOVERS.iter().any(|op| mover.is(op)) || mover.op.is_none() || sweep.is_touched(m) {
            continue;
        }
        let Some(d) = made(mover.inputs.first().copied().flatten()) else { continue };
        let dequantize = sweep.graph.node(d);
        if !dequantize.is("DequantizeLinear") || sweep.is_touched(d) {
            continue;
        }
        let label = sweep.graph.label(m);
        match fits(sweep, d, m, i)? {
            Ok(()) => {
                let (x, y) = (dequantize.inputs[0], quantize.outputs[0]);
                let node = sweep.change(m);
                node.inputs[0] = x;
                node.outputs[0] = y;
                sweep.remove(i);
                sweep.apply(label, format!("{} moves the integers", mover.op_type));
                if let Some(y) = y {
                    sweep.claim(y, x);
                }
            }
            Err(why) => sweep.skip(label, why),
        }
    }
    Ok(())
}

/// Whether integers can be moved in the place of what they stand for.
fn fits(
    sweep: &Sweep<'_>,
    d: NodeIndex,
    m: NodeIndex,
    q: NodeIndex,
) -> Result<std::result::Result<(), String>> {
    let (dequantize, mover, quantize) = (sweep.graph.node(d), sweep.graph.node(m), sweep.graph.node(q));
    let one = |n: &Node| -> Result<bool> {
        let scale = n.inputs.get(1).copied().flatten();
        let fact = scale.map(|v| sweep.fact(v)).transpose()?.flatten();
        Ok(n.attributes.int("block_size", 0)? == 0
            && fact.and_then(|f| f.fixed_shape()).is_some_and(|s| s.iter().all(|d| *d == 1)))
    };
    let (Some(source), Some(moved), Some(y)) = (
        dequantize.inputs.first().copied().flatten(),
        mover.outputs.first().copied().flatten(),
        quantize.outputs.first().copied().flatten(),
    ) else {
        return Ok(Err("an operand is missing".into()));
    };
    if let Some(why) = sweep.refused(y) {
        return Ok(Err(why.into()));
    }
    if !one(dequantize)? || !one(quantize)? {
        return Ok(Err("the grids have a scale for each channel".into()));
    }
    if !same_grid(sweep, dequantize, quantize) || !same_type(sweep, source, quantize)? {
        return Ok(Err("it stands between two different grids".into()));
    }
    if sweep.only_reader(moved) != Some(q) {
        return Ok(Err("what it gives is read as floats too".into()));
    }
    Ok(Ok(()))
}
