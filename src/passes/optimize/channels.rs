//! `fold-channels`: Add, Sub, Mul, Div by a constant with one value a channel, behind a convolution or a
//! Gemm, become part of its weight and bias.

use super::affine::{self, Product};
use super::sweep::Sweep;
use crate::error::Result;
use crate::graph::NodeIndex;
use crate::tensor::{DType, Tensor};

pub(super) fn sweep(sweep: &mut Sweep<'_>) -> Result<()> {
    // Before operator set 7 an attribute says how operands align.
    if sweep.graph.opset("").is_none_or(|v| v < 7) {
        return Ok(());
    }
    for i in 0..sweep.graph.nodes().len() {
        let node = sweep.graph.node(i);
        if !["Add", "Sub", "Mul", "Div"].iter().any(|op| node.is(op)) || sweep.is_touched(i) {
            continue;
        }
        let label = sweep.graph.label(i);
        if let Some(why) = affine::refused(sweep, i) {
            sweep.skip(label, why);
            continue;
        }
        match fold(sweep, i)? {
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

/// One value a channel from a constant that broadcasts along axis 1 of the product's result.
fn per_channel(t: &Tensor, product: &Product) -> Result<Option<Vec<f32>>> {
    let Some(skip) = product.rank.checked_sub(t.shape().len()) else { return Ok(None) };
    let along =
        t.shape().iter().enumerate().all(|(k, d)| *d == 1 || (k + skip == 1 && *d == product.channels));
    if t.dtype() != DType::F32 || !along {
        return Ok(None);
    }
    let values = t.to_vec::<f32>()?;
    Ok(match values.as_slice() {
        [one] => Some(vec![*one; product.channels]),
        many if many.len() == product.channels => Some(values),
        _ => None,
    })
}

/// Folds one node. `Ok(Ok(None))`: it is no candidate, or must wait for the next sweep.
fn fold(sweep: &mut Sweep<'_>, i: NodeIndex) -> Result<std::result::Result<Option<String>, String>> {
    let node = sweep.graph.node(i);
    let [Some(a), Some(b)] = node.inputs[..] else { return Ok(Ok(None)) };
    let (x, constant, slot) = match (sweep.constant(a), sweep.constant(b)) {
        (None, Some(t)) => (a, t.clone(), 1),
        (Some(t), None) => (b, t.clone(), 0),
        _ => return Ok(Ok(None)),
    };
    let Some((p, 0)) = sweep.uses().producer(x) else { return Ok(Ok(None)) };
    // A MatMul takes no bias; with one it is a Gemm, which another rule makes.
    if sweep.graph.node(p).is("MatMul") {
        return Ok(Ok(None));
    }
    let product = match affine::product(sweep, p)? {
        None => return Ok(Ok(None)),
        Some(Err(why)) => return Ok(Err(why)),
        Some(Ok(product)) => product,
    };
    let before = sweep.graph.label(p);
    let Some(values) = per_channel(&constant, &product)? else {
        return Ok(Err(format!("{:?} does not run along the channels of {before}", constant.shape())));
    };
    if sweep.only_reader(x) != Some(i) {
        return Ok(Err(format!("the output of {before} has other readers")));
    }
    if sweep.is_touched(p) {
        return Ok(Ok(None));
    }
    let zeros = vec![0f32; product.channels];
    let done = match (node.op_type.as_str(), slot) {
        ("Add", _) => affine::absorb(sweep, &product, i, None, &values)?,
        ("Sub", 1) => {
            let shift: Vec<f32> = values.iter().map(|v| -v).collect();
            affine::absorb(sweep, &product, i, None, &shift)?
        }
        ("Sub", _) => {
            let scale = vec![-1f32; product.channels];
            affine::absorb(sweep, &product, i, Some(&scale), &values)?
        }
        ("Mul", _) => affine::absorb(sweep, &product, i, Some(&values), &zeros)?,
        ("Div", 1) => {
            let scale: Vec<f32> = values.iter().map(|v| 1.0 / v).collect();
            affine::absorb(sweep, &product, i, Some(&scale), &zeros)?
        }
        _ => return Ok(Err("a constant divided by the product is no scale".into())),
    };
    Ok(done.map(|()| Some(format!("{} by {} channels into {before}", node.op_type, product.channels))))
}
