//! `fold-inputs`: Add, Sub, Mul, Div by a constant with one value a channel, in front of a convolution or a
//! product, become part of its weight and bias. What is added does not reach the border of a convolution that
//! pads, so that only factors go into one.

use super::sweep::Sweep;
use crate::error::Result;
use crate::graph::{Node, NodeIndex, ValueId};
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
        match fold(sweep, i)? {
            Ok(Some((detail, output, from))) => {
                sweep.apply(label, detail);
                sweep.claim(output, from);
            }
            Ok(None) => {}
            Err(why) => sweep.skip(label, why),
        }
    }
    Ok(())
}

type Outcome = std::result::Result<Option<(String, ValueId, [ValueId; 1])>, String>;

/// Folds one node. `Ok(Ok(None))`: it is no candidate, or must wait for the next sweep.
fn fold(sweep: &mut Sweep<'_>, i: NodeIndex) -> Result<Outcome> {
    let node = sweep.graph.node(i);
    let ([Some(a), Some(b)], Some(Some(y))) = (&node.inputs[..], node.outputs.first()) else {
        return Ok(Ok(None));
    };
    let (x, constant, slot) = match (sweep.constant(*a), sweep.constant(*b)) {
        (None, Some(t)) => (*a, t.clone(), 1),
        (Some(t), None) => (*b, t.clone(), 0),
        _ => return Ok(Ok(None)),
    };
    let op = node.op_type.clone();
    let Some(p) = sweep.only_reader(*y) else { return Ok(Ok(None)) };
    let reader = sweep.graph.node(p);
    if let Some(why) = reader.outputs.first().copied().flatten().and_then(|y| sweep.refused(y)) {
        return Ok(Err(why.into()));
    }
    if sweep.is_touched(p) || !reader.is("Conv") || reader.op.is_none() {
        return Ok(Ok(None));
    }
    let (Some(Some(output)), Some(weight)) =
        (reader.outputs.first().copied(), reader.inputs.get(1).copied().flatten())
    else {
        return Ok(Ok(None));
    };
    let behind = sweep.graph.label(p);
    let Some(stored) = sweep.constant(weight).filter(|t| t.dtype() == DType::F32).cloned() else {
        return Ok(Err(format!("the weight of {behind} is no f32 constant")));
    };
    if reader.inputs.first().copied().flatten() != Some(*y) || weight == *y {
        return Ok(Ok(None));
    }
    let group = usize::try_from(reader.attributes.int("group", 1)?).unwrap_or(1).max(1);
    let (rank, channels) = (stored.shape().len(), stored.shape()[1] * group);
    if sweep
        .fact(x)?
        .and_then(|f| f.shape.as_ref())
        .is_none_or(|s| s.len() != rank || !s[1].is(channels as i64))
    {
        return Ok(Err(format!("what reaches {behind} through it is not known to have {channels} channels")));
    }
    let Some(values) = per_channel(&constant, rank, channels)? else {
        return Ok(Err(format!("{:?} does not run along the channels of {behind}", constant.shape())));
    };
    let (scale, shift): (Vec<f32>, Vec<f32>) = match (op.as_str(), slot) {
        ("Add", _) => (vec![1.0; channels], values),
        ("Sub", 1) => (vec![1.0; channels], values.iter().map(|v| -v).collect()),
        ("Sub", _) => (vec![-1.0; channels], values),
        ("Mul", _) => (values, vec![0.0; channels]),
        ("Div", 1) => (values.iter().map(|v| 1.0 / v).collect(), vec![0.0; channels]),
        _ => return Ok(Err("a constant divided by the data is no scale".into())),
    };
    let shifts = shift.iter().any(|s| *s != 0.0);
    if shifts && pads(reader)? {
        return Ok(Err(format!("{behind} pads with zeros, to which nothing would be added")));
    }
    let Some((new, bias)) = taken(sweep, &stored, reader, group, &scale, &shift)? else {
        return Ok(Err(format!("the weights or the bias of {behind} would not be finite f32 constants")));
    };
    let name = format!("{}_folded", sweep.graph.value_name(weight));
    let new = sweep.edit().add_initializer(&name, Tensor::from_vec(stored.shape().to_vec(), new)?);
    let bias = match shifts {
        true => {
            let tensor = Tensor::from_vec(vec![bias.len()], bias)?;
            Some(sweep.edit().add_initializer(&format!("{behind}_bias"), tensor))
        }
        false => None,
    };
    let node = sweep.change(p);
    node.inputs[0] = Some(x);
    node.inputs[1] = Some(new);
    if let Some(bias) = bias {
        node.inputs.resize(node.inputs.len().max(3), None);
        node.inputs[2] = Some(bias);
    }
    sweep.remove(i);
    Ok(Ok(Some((format!("{op} by {channels} channels into {behind} behind it"), output, [x]))))
}

/// Whether a convolution reads zeros beyond its input.
fn pads(conv: &Node) -> Result<bool> {
    let auto = conv.attributes.str("auto_pad", "NOTSET")?;
    let some = conv.attributes.ints("pads")?.is_some_and(|p| p.iter().any(|n| *n != 0));
    Ok(auto.starts_with("SAME") || auto == "NOTSET" && some)
}

/// One value a channel from a constant that broadcasts along axis 1 of `rank`.
fn per_channel(t: &Tensor, rank: usize, channels: usize) -> Result<Option<Vec<f32>>> {
    let Some(skip) = rank.checked_sub(t.shape().len()) else { return Ok(None) };
    let along = t.shape().iter().enumerate().all(|(k, d)| *d == 1 || (k + skip == 1 && *d == channels));
    if t.dtype() != DType::F32 || !along {
        return Ok(None);
    }
    let values = t.to_vec::<f32>()?;
    Ok(match values.as_slice() {
        [one] => Some(vec![*one; channels]),
        many if many.len() == channels => Some(values),
        _ => None,
    })
}

/// Weight and bias of a convolution that has scaled and shifted its input channels before.
fn taken(
    sweep: &Sweep<'_>,
    stored: &Tensor,
    conv: &Node,
    group: usize,
    scale: &[f32],
    shift: &[f32],
) -> Result<Option<(Vec<f32>, Vec<f32>)>> {
    let shape = stored.shape();
    let (outputs, inputs) = (shape[0], shape[1]);
    let kernel: usize = shape[2..].iter().product();
    let mut weight = stored.to_vec::<f32>()?;
    let mut bias = match conv.inputs.get(2).copied().flatten() {
        None => vec![0f32; outputs],
        Some(b) => match sweep.constant(b).filter(|t| t.dtype() == DType::F32 && t.len() == outputs) {
            Some(t) => t.to_vec::<f32>()?,
            None => return Ok(None),
        },
    };
    let each = (outputs / group).max(1);
    for (o, rows) in weight.chunks_mut((inputs * kernel).max(1)).enumerate() {
        let mut added = 0f64;
        for (c, taps) in rows.chunks_mut(kernel.max(1)).enumerate() {
            let from = o / each * inputs + c;
            added += taps.iter().map(|w| f64::from(*w)).sum::<f64>() * f64::from(shift[from]);
            taps.iter_mut().for_each(|w| *w *= scale[from]);
        }
        bias[o] += added as f32;
    }
    Ok((weight.iter().chain(&bias).all(|x| x.is_finite())).then_some((weight, bias)))
}

/// `fold-pads`: zeros put around the input of a convolution become its own.
pub(super) fn sweep_pads(sweep: &mut Sweep<'_>) -> Result<()> {
    for i in 0..sweep.graph.nodes().len() {
        let node = sweep.graph.node(i);
        if !node.is("Pad") || node.op.is_none() || sweep.is_touched(i) {
            continue;
        }
        let (Some(Some(x)), Some(Some(y))) = (node.inputs.first().copied(), node.outputs.first().copied())
        else {
            continue;
        };
        let Some(p) =
            sweep.only_reader(y).filter(|p| sweep.graph.node(*p).is("Conv") && !sweep.is_touched(*p))
        else {
            continue;
        };
        let label = sweep.graph.label(i);
        let output = sweep.graph.node(p).outputs.first().copied().flatten();
        if let Some(why) = output.and_then(|y| sweep.refused(y)) {
            sweep.skip(label, why);
            continue;
        }
        match padded(sweep, i, p)? {
            Ok(both) => {
                let behind = sweep.graph.label(p);
                let conv = sweep.change(p);
                conv.inputs[0] = Some(x);
                conv.attributes.set("pads", crate::ops::Attr::Ints(both));
                conv.attributes.remove("auto_pad");
                sweep.remove(i);
                sweep.apply(label, format!("into the pads of {behind}"));
                if let Some(output) = output {
                    sweep.claim(output, [x]);
                }
            }
            Err(why) => sweep.skip(label, why),
        }
    }
    Ok(())
}

/// The pads of a convolution with those of the Pad before it.
fn padded(sweep: &Sweep<'_>, i: NodeIndex, p: NodeIndex) -> Result<std::result::Result<Vec<i64>, String>> {
    let (pad, conv) = (sweep.graph.node(i), sweep.graph.node(p));
    if conv.inputs.first().copied().flatten() != pad.outputs.first().copied().flatten() || conv.op.is_none() {
        return Ok(Err("it pads no data".into()));
    }
    let Some(rank) = sweep.constant_input(conv, 1).map(|t| t.shape().len()).filter(|r| *r > 2) else {
        return Ok(Err("the weight behind it is no constant".into()));
    };
    let given = match pad.attributes.ints("pads")? {
        Some(pads) => Some(pads),
        None => sweep.constant_input(pad, 1).and_then(|t| t.to_i64s().ok()),
    };
    let value = match pad.inputs.get(2).copied().flatten() {
        None => Some(f64::from(pad.attributes.float("value", 0.0)?)),
        Some(v) => sweep.constant(v).and_then(|t| t.to_f64s().ok()).and_then(|v| v.first().copied()),
    };
    let Some(given) = given.filter(|g| g.len() == 2 * rank) else {
        return Ok(Err("what it pads is no constant, or not of every axis".into()));
    };
    if pad.attributes.str("mode", "constant")? != "constant" || value != Some(0.0) {
        return Ok(Err("it does not pad with zeros".into()));
    }
    if pad.inputs.get(3).copied().flatten().is_some() {
        return Ok(Err("it names axes".into()));
    }
    let outer = [0, 1, rank, rank + 1].iter().any(|at| given[*at] != 0);
    if outer || given.iter().any(|n| *n < 0) {
        return Ok(Err("it pads batch or channels, or cuts".into()));
    }
    let spatial = rank - 2;
    let own = match conv.attributes.str("auto_pad", "NOTSET")?.as_str() {
        "NOTSET" => conv.attributes.ints("pads")?.unwrap_or_else(|| vec![0; 2 * spatial]),
        "VALID" => vec![0; 2 * spatial],
        auto => return Ok(Err(format!("the convolution behind it pads by itself ({auto})"))),
    };
    let both =
        (0..2 * spatial).map(|at| own[at] + given[if at < spatial { at + 2 } else { at + 4 }]).collect();
    Ok(Ok(both))
}
