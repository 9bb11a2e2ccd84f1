//! `fuse-gemm`: a product of matrices and the constant row that is added to it become one Gemm.

use super::affine;
use super::sweep::Sweep;
use crate::error::Result;
use crate::graph::NodeIndex;
use crate::ops::{Attributes, Dim};
use crate::tensor::DType;

pub(super) fn sweep(sweep: &mut Sweep<'_>) -> Result<()> {
    if sweep.graph.opset("").is_none_or(|v| v < 7) {
        return Ok(());
    }
    for i in 0..sweep.graph.nodes().len() {
        if !sweep.graph.node(i).is("Add") || sweep.is_touched(i) {
            continue;
        }
        let label = sweep.graph.label(i);
        if let Some(why) = affine::refused(sweep, i) {
            sweep.skip(label, why);
            continue;
        }
        match fuse(sweep, i)? {
            Ok(Some(detail)) => {
                sweep.apply(label, detail);
                affine::claim(sweep, i);
            }
            Ok(None) => {}
            Err(why) => sweep.skip(label, why),
        }
    }
    Ok(())
}

fn fuse(sweep: &mut Sweep<'_>, i: NodeIndex) -> Result<std::result::Result<Option<String>, String>> {
    let node = sweep.graph.node(i);
    let ([Some(a), Some(b)], Some(Some(y))) = (&node.inputs[..], node.outputs.first()) else {
        return Ok(Ok(None));
    };
    let (x, bias) = match (sweep.constant(*a).is_some(), sweep.constant(*b).is_some()) {
        (false, true) => (*a, *b),
        (true, false) => (*b, *a),
        _ => return Ok(Ok(None)),
    };
    let Some((p, 0)) = sweep.uses().producer(x) else { return Ok(Ok(None)) };
    let product = sweep.graph.node(p);
    if !product.is("MatMul") || sweep.is_touched(p) {
        return Ok(Ok(None));
    }
    let before = sweep.graph.label(p);
    for v in product.inputs.iter().flatten() {
        match sweep.fact(*v)?.and_then(|f| f.rank()) {
            Some(2) => {}
            Some(_) => return Ok(Ok(None)),
            None => return Ok(Err(format!("the ranks of {before}'s operands are not known"))),
        }
    }
    let Some(fact) = sweep.fact(x)? else { return Ok(Ok(None)) };
    let Some([m, n]) = fact.shape.as_deref() else { return Ok(Ok(None)) };
    if !matches!(fact.dtype, DType::F32 | DType::F64 | DType::F16) {
        return Ok(Err(format!("Gemm is not taken for {}", fact.dtype)));
    }
    let row = sweep.constant(bias).is_some_and(|t| {
        let wanted = [m, n];
        t.shape().len() <= 2
            && t.shape().iter().rev().zip(wanted.iter().rev()).all(|(d, w)| *d == 1 || Dim::from(*d) == **w)
    });
    if !row {
        return Ok(Err(format!("what is added to {before} changes its shape")));
    }
    if sweep.only_reader(x) != Some(i) {
        return Ok(Err(format!("the output of {before} has other readers")));
    }
    let y = *y;
    let node = sweep.change(p);
    node.op_type = "Gemm".into();
    node.attributes = Attributes::new();
    node.inputs.push(Some(bias));
    node.outputs[0] = Some(y);
    sweep.remove(i);
    Ok(Ok(Some(format!("{before} and its bias become a Gemm"))))
}
