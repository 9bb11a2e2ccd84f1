//! Operators that become others one by one: norms, rotary embeddings, activations.

use super::emit::{Emit, attributes};
use super::plain;
use crate::error::{Error, Result};
use crate::graph::{NodeIndex, ValueId};
use crate::ops::{Attr, Attributes, Dim};
use crate::tensor::DType;

const CONTRIB: &str = "com.microsoft";

/// For ONNX Runtime.
pub(super) fn ort(emit: &mut Emit<'_>) -> Result<()> {
    for i in 0..emit.graph.nodes().len() {
        let node = emit.graph.node(i);
        emit.at(i);
        if node.is("RMSNormalization") {
            if last_axis(emit, i)? {
                replace(emit, i, "", "SimplifiedLayerNormalization", &["axis", "epsilon", "stash_type"]);
                emit.applied(i, "SimplifiedLayerNormalization");
            } else {
                rms(emit, i)?;
                emit.applied(i, "root mean square in plain operators");
            }
        } else if node.is("RotaryEmbedding") {
            if !contrib_rotary(emit, i)? {
                plain::rotary(emit, i)?;
                emit.applied(i, "rotary embedding in plain operators");
            }
        } else if node.is("Swish") {
            let alpha = Attr::Float(node.attributes.float("alpha", 1.0)?);
            let (inputs, outputs) = (node.inputs.clone(), node.outputs.clone());
            emit.node(CONTRIB, "QuickGelu", inputs, outputs, attributes(&[("alpha", alpha)]));
            emit.edit.remove_node(i);
            emit.applied(i, "com.microsoft QuickGelu");
        }
    }
    Ok(())
}

/// For the default domain alone.
///
/// # Errors
/// `Unsupported` where an operator of another domain cannot be written in it.
pub(super) fn standard(emit: &mut Emit<'_>) -> Result<()> {
    for i in 0..emit.graph.nodes().len() {
        let name = emit.graph.node(i).operator_name();
        emit.at(i);
        match name.as_str() {
            "RMSNormalization" | "SimplifiedLayerNormalization" => rms(emit, i)?,
            "RotaryEmbedding" => plain::rotary(emit, i)?,
            "Gelu" | "com.microsoft:Gelu" | "com.microsoft:BiasGelu" | "com.microsoft:FastGelu" => {
                gelu(emit, i)?;
            }
            "Swish" | "com.microsoft:QuickGelu" => swish(emit, i)?,
            "Mish" => mish(emit, i)?,
            "com.microsoft:SkipLayerNormalization" | "com.microsoft:SkipSimplifiedLayerNormalization" => {
                skip_norm(emit, i)?;
            }
            _ if name.contains(':') => {
                return Err(Error::unsupported(
                    "LOWER-DOMAIN",
                    format!("{name} cannot be written in operators of the default domain"),
                )
                .node(emit.graph.label(i))
                .hint("use `--target ort`, or start from the checkpoint that the model was made from"));
            }
            _ => continue,
        }
        emit.applied(i, format!("{name} in plain operators"));
    }
    Ok(())
}

/// The same inputs and outputs with another operator, which takes over these attributes.
fn replace(emit: &mut Emit<'_>, i: NodeIndex, domain: &str, op: &str, keep: &[&str]) {
    let node = emit.graph.node(i);
    let mut with = Attributes::new();
    for (name, value) in node.attributes.iter().filter(|(n, _)| keep.contains(n)) {
        with.set(name, value.clone());
    }
    emit.node(domain, op, node.inputs.clone(), node.outputs.clone(), with);
    emit.edit.remove_node(i);
}

/// Whether a norm is over the last axis alone, with one factor an element.
fn last_axis(emit: &Emit<'_>, i: NodeIndex) -> Result<bool> {
    let axis = emit.graph.node(i).attributes.int("axis", -1)?;
    let rank = emit.input(i, 0).and_then(|v| emit.shape(v)).map(<[_]>::len);
    let gain = emit.input(i, 1).and_then(|v| emit.shape(v)).map(<[_]>::len);
    Ok((axis == -1 || rank.is_some_and(|r| axis + 1 == r as i64)) && gain == Some(1))
}

fn operand(emit: &Emit<'_>, i: NodeIndex, slot: usize) -> Result<ValueId> {
    emit.input(i, slot).ok_or_else(|| {
        Error::invalid("OP-INPUT", "a required input is missing")
            .node(emit.graph.label(i))
            .field(format!("input[{slot}]"))
    })
}

fn result(emit: &Emit<'_>, i: NodeIndex) -> Result<ValueId> {
    emit.graph.node(i).outputs.first().copied().flatten().ok_or_else(|| {
        Error::unsupported("LOWER-OUTPUT", "nothing takes the result of this node").node(emit.graph.label(i))
    })
}

/// `x / sqrt(mean(x^2) + epsilon) * scale`, in the form that runtimes recognise.
fn rms(emit: &mut Emit<'_>, i: NodeIndex) -> Result<()> {
    let a = emit.graph.node(i).attributes.clone();
    let (x, gain, out) = (operand(emit, i, 0)?, operand(emit, i, 1)?, result(emit, i)?);
    let axis = a.int("axis", -1)?;
    let rank = emit.shape(x).map(|s| s.len() as i64);
    let axes: Vec<i64> = match (axis, rank) {
        (-1, _) => vec![-1],
        (axis, Some(rank)) => (if axis < 0 { axis + rank } else { axis }..rank).collect(),
        (_, None) => {
            return Err(Error::unsupported("LOWER-NORM", "the rank of what is normalised is not known")
                .node(emit.graph.label(i)));
        }
    };
    let (dtype, epsilon) = (emit.dtype(x), a.float("epsilon", 1e-5)?);
    let y = root_mean_square(emit, x, dtype, &axes, epsilon.into());
    emit.into("", "Mul", vec![Some(y), Some(gain)], &[out], Attributes::new());
    emit.edit.remove_node(i);
    Ok(())
}

/// `x / sqrt(mean(x^2) + epsilon)`.
fn root_mean_square(emit: &mut Emit<'_>, x: ValueId, dtype: DType, axes: &[i64], epsilon: f64) -> ValueId {
    let two = emit.number(2.0, dtype);
    let squares = emit.op("Pow", &[x, two], &[], "squares");
    let mean = if emit.graph.opset("").unwrap_or(0) >= 18 {
        let axes = emit.ints(axes);
        emit.op("ReduceMean", &[squares, axes], &[("keepdims", Attr::Int(1))], "mean")
    } else {
        let with = [("axes", Attr::Ints(axes.to_vec())), ("keepdims", Attr::Int(1))];
        emit.op("ReduceMean", &[squares], &with, "mean")
    };
    let epsilon = emit.number(epsilon, dtype);
    let shifted = emit.op("Add", &[mean, epsilon], &[], "mean_shifted");
    let root = emit.op("Sqrt", &[shifted], &[], "root");
    emit.op("Div", &[x, root], &[], "normalised")
}

/// Both forms of Gelu, with the bias that ONNX Runtime's take.
fn gelu(emit: &mut Emit<'_>, i: NodeIndex) -> Result<()> {
    let node = emit.graph.node(i).clone();
    let (mut x, out) = (operand(emit, i, 0)?, result(emit, i)?);
    let dtype = emit.dtype(x);
    if let Some(bias) = emit.input(i, 1) {
        x = emit.op("Add", &[x, bias], &[], "biased");
    }
    let tanh = node.op_type == "FastGelu" || node.attributes.str("approximate", "none")? == "tanh";
    let (one, half) = (emit.number(1.0, dtype), emit.number(0.5, dtype));
    let bent = if tanh {
        let (c, three) = (emit.number(0.044715, dtype), emit.number(3.0, dtype));
        let root = emit.number((2.0 / std::f64::consts::PI).sqrt(), dtype);
        let cube = emit.op("Pow", &[x, three], &[], "cube");
        let part = emit.op("Mul", &[cube, c], &[], "cubic");
        let sum = emit.op("Add", &[x, part], &[], "sum");
        let inner = emit.op("Mul", &[sum, root], &[], "inner");
        emit.op("Tanh", &[inner], &[], "bent")
    } else {
        let root = emit.number(std::f64::consts::SQRT_2, dtype);
        let inner = emit.op("Div", &[x, root], &[], "inner");
        emit.op("Erf", &[inner], &[], "bent")
    };
    let lifted = emit.op("Add", &[bent, one], &[], "lifted");
    let product = emit.op("Mul", &[x, lifted], &[], "product");
    emit.into("", "Mul", vec![Some(product), Some(half)], &[out], Attributes::new());
    emit.edit.remove_node(i);
    Ok(())
}

/// `x * sigmoid(alpha * x)`.
fn swish(emit: &mut Emit<'_>, i: NodeIndex) -> Result<()> {
    let node = emit.graph.node(i);
    let default = if node.is("Swish") { 1.0 } else { 1.702 };
    let alpha = node.attributes.float("alpha", default)?;
    let (x, out) = (operand(emit, i, 0)?, result(emit, i)?);
    let mut inner = x;
    if alpha != 1.0 {
        let alpha = emit.number(alpha.into(), emit.dtype(x));
        inner = emit.op("Mul", &[x, alpha], &[], "scaled");
    }
    let gate = emit.op("Sigmoid", &[inner], &[], "gate");
    emit.into("", "Mul", vec![Some(x), Some(gate)], &[out], Attributes::new());
    emit.edit.remove_node(i);
    Ok(())
}

/// `x * tanh(softplus(x))`.
fn mish(emit: &mut Emit<'_>, i: NodeIndex) -> Result<()> {
    let (x, out) = (operand(emit, i, 0)?, result(emit, i)?);
    let soft = emit.op("Softplus", &[x], &[], "soft");
    let gate = emit.op("Tanh", &[soft], &[], "gate");
    emit.into("", "Mul", vec![Some(x), Some(gate)], &[out], Attributes::new());
    emit.edit.remove_node(i);
    Ok(())
}

/// ONNX Runtime's norms of a residual sum.
fn skip_norm(emit: &mut Emit<'_>, i: NodeIndex) -> Result<()> {
    let node = emit.graph.node(i).clone();
    let centred = node.op_type == "SkipLayerNormalization";
    let (x, skip, gain) = (operand(emit, i, 0)?, operand(emit, i, 1)?, operand(emit, i, 2)?);
    if emit.wanted(i, 1).is_some() || emit.wanted(i, 2).is_some() {
        return Err(Error::unsupported("LOWER-NORM", "the statistics of this norm are outputs")
            .node(emit.graph.label(i)));
    }
    let bias = emit.input(i, if centred { 4 } else { 3 });
    let sum = emit.wanted(i, 3).unwrap_or_else(|| emit.value("sum"));
    match bias {
        Some(bias) => {
            let y = emit.op("Add", &[x, skip], &[], "residual");
            emit.into("", "Add", vec![Some(y), Some(bias)], &[sum], Attributes::new());
        }
        None => {
            emit.into("", "Add", vec![Some(x), Some(skip)], &[sum], Attributes::new());
        }
    }
    let out = emit.wanted(i, 0);
    let epsilon = node.attributes.float("epsilon", crate::ops::SKIP_NORM_EPSILON)?;
    if let (Some(out), true) = (out, centred) {
        let with = attributes(&[("axis", Attr::Int(-1)), ("epsilon", Attr::Float(epsilon))]);
        let inputs = vec![Some(sum), Some(gain), emit.input(i, 3)];
        emit.into("", "LayerNormalization", inputs, &[out], with);
    } else if let Some(out) = out {
        let dtype = emit.dtype(x);
        let y = root_mean_square(emit, sum, dtype, &[-1], epsilon.into());
        emit.into("", "Mul", vec![Some(y), Some(gain)], &[out], Attributes::new());
    }
    emit.edit.remove_node(i);
    Ok(())
}

/// ONNX Runtime's own rotary embedding, where it takes this one.
fn contrib_rotary(emit: &mut Emit<'_>, i: NodeIndex) -> Result<bool> {
    let node = emit.graph.node(i);
    let (Some(x), Some(cos), Some(sin), Some(ids)) =
        (emit.input(i, 0), emit.input(i, 1), emit.input(i, 2), emit.input(i, 3))
    else {
        return Ok(false);
    };
    let a = node.attributes.clone();
    let heads = match emit.shape(x) {
        Some([_, h, _, _]) => h.size(),
        Some([_, _, _]) => usize::try_from(a.int("num_heads", 0)?).ok().filter(|n| *n > 0),
        _ => None,
    };
    let half = emit.shape(cos).and_then(|s| s.last()).and_then(Dim::size);
    let width = emit.shape(x).and_then(|s| s.last()).and_then(Dim::size);
    let (Some(heads), Some(half), Some(width)) = (heads, half, width) else { return Ok(false) };
    if emit.dtype(ids) != DType::I64 || emit.dtype(x) != DType::F32 {
        return Ok(false);
    }
    let out = result(emit, i)?;
    let head = if emit.shape(x).map(<[_]>::len) == Some(4) { width } else { width / heads };
    rotate(emit, x, [ids, cos, sin], (heads, head, 2 * half), a.int("interleaved", 0)?, out);
    emit.edit.remove_node(i);
    emit.applied(i, "com.microsoft RotaryEmbedding");
    Ok(true)
}

/// Writes ONNX Runtime's rotary embedding of `x` into `out`; sizes are heads, a head, what rotates of it.
pub(super) fn rotate(
    emit: &mut Emit<'_>,
    x: ValueId,
    [ids, cos, sin]: [ValueId; 3],
    (heads, head, rotated): (usize, usize, usize),
    interleaved: i64,
    out: ValueId,
) {
    let mut with =
        attributes(&[("num_heads", Attr::Int(heads as i64)), ("interleaved", Attr::Int(interleaved))]);
    if rotated < head {
        with.set("rotary_embedding_dim", Attr::Int(rotated as i64));
    }
    let inputs = vec![Some(x), Some(ids), Some(cos), Some(sin)];
    emit.into(CONTRIB, "RotaryEmbedding", inputs, &[out], with);
}
