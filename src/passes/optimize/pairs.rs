//! `cancel-pairs`: neighbours that undo each other or can be one: Transpose of Transpose, reshapes of
//! reshapes, a cast there and back, quantising what was dequantised on the same grid.

use super::sweep::Sweep;
use crate::error::Result;
use crate::graph::{Node, NodeIndex, ValueId};
use crate::ops::Attr;
use crate::tensor::{DType, Tensor};

/// Operators that keep the elements and their order.
const RESHAPES: [&str; 4] = ["Reshape", "Flatten", "Squeeze", "Unsqueeze"];

/// The permutation of a Transpose of this rank; `None` where the attribute is none.
pub(super) fn permutation(node: &Node, rank: usize) -> Option<Vec<usize>> {
    let Some(perm) = node.attributes.ints("perm").ok()? else { return Some((0..rank).rev().collect()) };
    let perm: Vec<usize> = perm.iter().map(|p| usize::try_from(*p).ok()).collect::<Option<_>>()?;
    let mut sorted = perm.clone();
    sorted.sort_unstable();
    (sorted.iter().copied().eq(0..rank)).then_some(perm)
}

/// What becomes of the second node of a pair.
enum Change {
    /// Its output is the first one's input.
    Cancel(ValueId, &'static str),
    /// It reads the first one's input, with other attributes where given.
    Skip(ValueId, Option<(&'static str, Attr)>, &'static str),
}

pub(super) fn sweep(sweep: &mut Sweep<'_>) -> Result<()> {
    for i in 0..sweep.graph.nodes().len() {
        let second = sweep.graph.node(i);
        let Some(x) = second.inputs.first().copied().flatten() else { continue };
        let Some((p, 0)) = sweep.uses().producer(x) else { continue };
        if sweep.is_touched(i) || sweep.is_touched(p) {
            continue;
        }
        let Some(change) = change(sweep, p, i)? else { continue };
        let label = sweep.graph.label(i);
        match change {
            Change::Cancel(source, why) => {
                let Some(Some(y)) = second.outputs.first() else { continue };
                match sweep.replace(*y, source) {
                    Ok(()) => {
                        sweep.remove(i);
                        sweep.apply(label, why);
                    }
                    Err(reason) => sweep.skip(label, reason),
                }
            }
            Change::Skip(source, attribute, why) => {
                let node = sweep.change(i);
                node.inputs[0] = Some(source);
                if let Some((name, value)) = attribute {
                    node.attributes.set(name, value);
                }
                sweep.apply(label, why);
            }
        }
    }
    Ok(())
}

fn change(sweep: &Sweep<'_>, p: NodeIndex, i: NodeIndex) -> Result<Option<Change>> {
    let (first, second) = (sweep.graph.node(p), sweep.graph.node(i));
    let plain = |n: &Node| crate::ops::canonical_domain(&n.domain).is_empty();
    if !plain(first) || !plain(second) || first.op.is_none() || second.op.is_none() {
        return Ok(None);
    }
    let Some(source) = first.inputs.first().copied().flatten() else { return Ok(None) };
    match (first.op_type.as_str(), second.op_type.as_str()) {
        ("Transpose", "Transpose") => transposes(sweep, first, second, source),
        (a, b) if RESHAPES.contains(&a) && RESHAPES.contains(&b) => reshapes(sweep, second, source),
        ("Cast", "Cast") => casts(sweep, first, second, source),
        ("DequantizeLinear", "QuantizeLinear") => {
            let same = second.attributes.int("axis", 1)? == first.attributes.int("axis", 1)?
                && second.attributes.int("block_size", 0)? == first.attributes.int("block_size", 0)?
                && same_grid(sweep, first, second)
                && same_type(sweep, source, second)?;
            Ok(same.then_some(Change::Cancel(source, "quantises what was dequantised on the same grid")))
        }
        _ => Ok(None),
    }
}

fn transposes(sweep: &Sweep<'_>, first: &Node, second: &Node, source: ValueId) -> Result<Option<Change>> {
    let Some(rank) = sweep.fact(source)?.and_then(|f| f.rank()) else { return Ok(None) };
    let (Some(a), Some(b)) = (permutation(first, rank), permutation(second, rank)) else { return Ok(None) };
    let both: Vec<usize> = b.iter().map(|axis| a[*axis]).collect();
    if both.iter().copied().eq(0..rank) {
        return Ok(Some(Change::Cancel(source, "undoes the transpose before it")));
    }
    let perm = Attr::Ints(both.iter().map(|axis| *axis as i64).collect());
    Ok(Some(Change::Skip(source, Some(("perm", perm)), "two transposes become one")))
}

fn reshapes(sweep: &Sweep<'_>, second: &Node, source: ValueId) -> Result<Option<Change>> {
    let Some(Some(y)) = second.outputs.first() else { return Ok(None) };
    let shape = |v| -> Result<_> { Ok(sweep.fact(v)?.and_then(|f| f.shape.clone())) };
    if let (Some(from), Some(to)) = (shape(source)?, shape(*y)?)
        && from == to
    {
        return Ok(Some(Change::Cancel(source, "restores the shape before")));
    }
    if second.op_type != "Reshape" {
        return Ok(None);
    }
    // A zero in the target copies an axis of the direct input.
    let target = sweep.constant_input(second, 1).and_then(|t| t.to_i64s().ok());
    let whole = target.is_some_and(|t| t.iter().all(|n| *n != 0));
    Ok(whole.then_some(Change::Skip(source, None, "reads what the reshape before it reads")))
}

/// Whether every value of `from` is a value of `to`.
fn widens(from: DType, to: DType) -> bool {
    use DType::{BF16, Bool, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32};
    let wider: &[DType] = match from {
        F16 | BF16 => &[F32, F64],
        F32 | U32 | I32 => &[F64],
        Bool => &[U8, I8, U16, I16, U32, I32, I64, F16, F32, F64],
        U8 => &[U16, I16, U32, F16, F32, F64],
        I8 => &[I16, F16, F32, F64],
        U16 | I16 => &[F32, F64],
        _ => &[],
    };
    let integers: &[DType] = match from {
        U8 | I8 | U16 | I16 => &[I32, I64],
        U32 | I32 => &[I64],
        _ => &[],
    };
    wider.contains(&to) || integers.contains(&to)
}

fn casts(sweep: &Sweep<'_>, first: &Node, second: &Node, source: ValueId) -> Result<Option<Change>> {
    let Some(from) = sweep.fact(source)?.map(|f| f.dtype) else { return Ok(None) };
    let through = DType::from_onnx(i32::try_from(first.attributes.int("to", 0)?).unwrap_or(0));
    let back = i64::from(from.onnx()) == second.attributes.int("to", 0)?;
    let whole = through.is_some_and(|t| widens(from, t));
    Ok((whole && back).then_some(Change::Cancel(source, "casts back to the type before")))
}

/// Whether two nodes of a pair have the same scale and zero point, by name or by bits.
pub(super) fn same_grid(sweep: &Sweep<'_>, a: &Node, b: &Node) -> bool {
    (1..3).all(|slot| {
        let (x, y) = (a.inputs.get(slot).copied().flatten(), b.inputs.get(slot).copied().flatten());
        match (x, y) {
            (None, None) => true,
            (Some(x), Some(y)) if x == y => true,
            (Some(x), Some(y)) => {
                let (Some(x), Some(y)) = (sweep.constant(x), sweep.constant(y)) else { return false };
                small(x) && small(y) && x.same_bits(y).unwrap_or(false)
            }
            _ => false,
        }
    })
}

fn small(t: &Tensor) -> bool {
    t.len() <= crate::ops::fact::FOLD_LIMIT
}

/// Whether quantising gives the type that was dequantised.
pub(super) fn same_type(sweep: &Sweep<'_>, source: ValueId, second: &Node) -> Result<bool> {
    let Some(Some(y)) = second.outputs.first() else { return Ok(false) };
    Ok(match (sweep.fact(source)?, sweep.fact(*y)?) {
        (Some(a), Some(b)) => a.dtype == b.dtype,
        _ => false,
    })
}
