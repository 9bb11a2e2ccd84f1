//! `fold-batch-norm`: `(x - mean) / sqrt(var + epsilon) * scale + bias` behind a convolution or a product
//! becomes part of its weight and bias (S. Ioffe, C. Szegedy, 2015; the inference form of ONNX'
//! BatchNormalization).

use super::affine;
use super::sweep::Sweep;
use crate::error::Result;
use crate::graph::NodeIndex;
use crate::tensor::DType;

pub(super) fn sweep(sweep: &mut Sweep<'_>) -> Result<()> {
    for i in 0..sweep.graph.nodes().len() {
        let node = sweep.graph.node(i);
        if !node.is("BatchNormalization") || node.op.is_none() || sweep.is_touched(i) {
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

/// Folds one batch norm. `Ok(Ok(None))`: what it needs changed in this sweep already.
fn fold(sweep: &mut Sweep<'_>, i: NodeIndex) -> Result<std::result::Result<Option<String>, String>> {
    let node = sweep.graph.node(i);
    if node.attributes.int("training_mode", 0)? != 0 || node.attributes.int("spatial", 1)? != 1 {
        return Ok(Err("it does not run in inference over channels".into()));
    }
    let read = |v: &crate::graph::ValueId| sweep.is_pinned(*v) || !sweep.uses().consumers(*v).is_empty();
    if node.outputs.iter().skip(1).flatten().any(read) {
        return Ok(Err("its statistics are read".into()));
    }
    let Some(x) = node.inputs.first().copied().flatten() else { return Ok(Ok(None)) };
    let Some((p, 0)) = sweep.uses().producer(x) else {
        return Ok(Err("it follows no convolution or product".into()));
    };
    let product = match affine::product(sweep, p)? {
        None => {
            let op = sweep.graph.node(p).operator_name();
            return Ok(Err(format!("it follows {op}, no convolution or product")));
        }
        Some(Err(why)) => return Ok(Err(why)),
        Some(Ok(product)) => product,
    };
    let before = sweep.graph.label(p);
    if sweep.only_reader(x) != Some(i) {
        return Ok(Err(format!("the output of {before} has other readers")));
    }
    if sweep.is_touched(p) {
        return Ok(Ok(None));
    }
    let mut parameters = vec![];
    for slot in 1..5 {
        let Some(t) = sweep
            .constant_input(node, slot)
            .filter(|t| t.dtype() == DType::F32 && t.len() == product.channels)
        else {
            return Ok(Err(format!("input {slot} is no f32 constant with one value a channel")));
        };
        parameters.push(t.to_vec::<f32>()?);
    }
    let epsilon = f64::from(node.attributes.float("epsilon", 1e-5)?);
    let scale: Vec<f32> = (parameters[0].iter().zip(&parameters[3]))
        .map(|(g, var)| (f64::from(*g) / (f64::from(*var) + epsilon).sqrt()) as f32)
        .collect();
    let shift: Vec<f32> = (0..product.channels)
        .map(|c| (f64::from(parameters[1][c]) - f64::from(parameters[2][c]) * f64::from(scale[c])) as f32)
        .collect();
    Ok(affine::absorb(sweep, &product, i, Some(&scale), &shift)?
        .map(|()| Some(format!("{} channels into {before}", product.channels))))
}
