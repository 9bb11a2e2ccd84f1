//! Products whose output channels can be scaled and shifted through their constants: what batch norms
//! and channel constants are folded into. Knows no rule.

use super::sweep::Sweep;
use crate::error::Result;
use crate::graph::{NodeIndex, ValueId};
use crate::tensor::{DType, Tensor};

/// How the weight is laid out.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Layout {
    /// `[channels, ...]`.
    First,
    /// `[inputs, channels / group, ...]` in `group` blocks of inputs.
    Grouped(usize),
    /// `[inputs, channels]`.
    Last,
}

/// A product with constant weight and bias.
#[derive(Debug)]
pub(super) struct Product {
    node: NodeIndex,
    layout: Layout,
    weight: ValueId,
    bias: Option<ValueId>,
    /// Factor on the bias (Gemm's `beta`).
    beta: f32,
    /// Output channels, on axis 1 of the result.
    pub channels: usize,
    /// Rank of the result.
    pub rank: usize,
}

/// The product at node `i`. `Ok(None)` where the node is none; `Err` says why one cannot absorb anything.
pub(super) fn product(
    sweep: &Sweep<'_>,
    i: NodeIndex,
) -> Result<Option<std::result::Result<Product, String>>> {
    let node = sweep.graph.node(i);
    let matmul = node.is("MatMul");
    if !(matmul || ["Conv", "ConvTranspose", "Gemm"].iter().any(|op| node.is(op))) || node.op.is_none() {
        return Ok(None);
    }
    let label = sweep.graph.label(i);
    let weight = node.inputs.get(1).copied().flatten();
    let Some((weight, shape)) = weight.and_then(|w| {
        let t = sweep.constant(w).filter(|t| t.dtype() == DType::F32)?;
        Some((w, t.shape().to_vec()))
    }) else {
        return Ok(Some(Err(format!("the weight of {label} is no f32 constant"))));
    };
    let group = usize::try_from(node.attributes.int("group", 1)?).unwrap_or(1);
    let flag = |name| -> Result<bool> { Ok(node.attributes.int(name, 0)? != 0) };
    let (layout, channels, rank) = match node.op_type.as_str() {
        "Conv" if shape.len() > 2 => (Layout::First, shape[0], shape.len()),
        "ConvTranspose" if shape.len() > 2 => (Layout::Grouped(group), shape[1] * group, shape.len()),
        "Gemm" if shape.len() == 2 && flag("transB")? => (Layout::First, shape[0], 2),
        "Gemm" | "MatMul" if shape.len() == 2 => (Layout::Last, shape[1], 2),
        _ => return Ok(Some(Err(format!("the weight of {label} has rank {}", shape.len())))),
    };
    if matmul {
        let flat = match node.inputs[0] {
            Some(x) => sweep.fact(x)?.and_then(|f| f.rank()) == Some(2),
            None => false,
        };
        if !flat {
            return Ok(Some(Err(format!("the input of {label} is not known to be a matrix"))));
        }
    }
    let bias = node.inputs.get(2).copied().flatten();
    if let Some(b) = bias {
        let fits = sweep.constant(b).is_some_and(|t| {
            let row = t.shape().split_last().is_none_or(|(_, rest)| rest.iter().all(|d| *d == 1));
            t.dtype() == DType::F32 && (t.len() == 1 || (t.len() == channels && row))
        });
        if !fits {
            return Ok(Some(Err(format!("the bias of {label} is no f32 constant with one value a channel"))));
        }
    }
    let beta = if node.is("Gemm") { node.attributes.float("beta", 1.0)? } else { 1.0 };
    Ok(Some(Ok(Product { node: i, layout, weight, bias, beta, channels, rank })))
}

/// Scales (where given) and shifts the channels of a product and lets it give the follower's output.
/// Returns why not, where a result would not be finite; then nothing has changed.
pub(super) fn absorb(
    sweep: &mut Sweep<'_>,
    product: &Product,
    follower: NodeIndex,
    scale: Option<&[f32]>,
    shift: &[f32],
) -> Result<std::result::Result<(), String>> {
    let (p, channels) = (product.node, product.channels);
    let Some(stored) = sweep.constant(product.weight).cloned() else {
        return Ok(Err("its weight is no constant".into()));
    };
    let weight = match scale {
        Some(scale) => {
            let mut values = stored.to_vec::<f32>()?;
            scale_channels(&mut values, stored.shape(), product.layout, scale);
            Some(values)
        }
        None => None,
    };
    let old = match product.bias.and_then(|b| sweep.constant(b)) {
        Some(t) => t.to_vec::<f32>()?,
        None => vec![],
    };
    let bias: Vec<f32> = (0..channels)
        .map(|c| {
            let before = old.get(c % old.len().max(1)).copied().unwrap_or(0.0) * product.beta;
            before * scale.map_or(1.0, |s| s[c]) + shift[c]
        })
        .collect();
    let finite = |v: &[f32]| v.iter().all(|x| x.is_finite());
    if !finite(&bias) || weight.as_ref().is_some_and(|w| !finite(w)) {
        return Ok(Err("the folded weights would not be finite".into()));
    }
    if let Some(values) = weight {
        let tensor = Tensor::from_vec(stored.shape().to_vec(), values)?;
        let v = place(sweep, product.weight, tensor);
        sweep.change(p).inputs[1] = Some(v);
    }
    // Before operator set 11 a Gemm must have a bias.
    let matmul = sweep.graph.node(p).is("MatMul");
    if product.bias.is_some() || matmul || bias.iter().any(|b| *b != 0.0) {
        let tensor = Tensor::from_vec(vec![channels], bias)?;
        let v = match product.bias {
            Some(b) if sweep.constant(b).is_some_and(|t| t.shape() == [channels]) => place(sweep, b, tensor),
            _ => {
                let name = format!("{}_bias", sweep.graph.label(p));
                sweep.edit().add_initializer(&name, tensor)
            }
        };
        let node = sweep.change(p);
        node.inputs.resize(node.inputs.len().max(3), None);
        node.inputs[2] = Some(v);
    }
    let y = sweep.graph.node(follower).outputs[0];
    let node = sweep.change(p);
    if matmul {
        node.op_type = "Gemm".into();
    }
    node.attributes.remove("beta");
    node.outputs[0] = y;
    sweep.remove(follower);
    Ok(Ok(()))
}

/// Has it tried that a product gives what its `follower` gave, whose folding was noted last.
pub(super) fn claim(sweep: &mut Sweep<'_>, follower: NodeIndex) {
    let (graph, uses) = (sweep.graph, sweep.uses());
    let node = graph.node(follower);
    let made = |v: &ValueId| {
        let before = graph.node(uses.producer(*v)?.0);
        ["Conv", "ConvTranspose", "Gemm", "MatMul"].iter().any(|op| before.is(op)).then_some(before)
    };
    if let (Some(Some(y)), Some(before)) = (node.outputs.first(), node.inputs.iter().flatten().find_map(made))
    {
        sweep.claim(*y, before.inputs.iter().flatten().copied());
    }
}

/// Why a trial refused that a product gives what its `follower` gave.
pub(super) fn refused(sweep: &Sweep<'_>, follower: NodeIndex) -> Option<String> {
    let y = sweep.graph.node(follower).outputs.first().copied().flatten()?;
    sweep.refused(y).map(str::to_string)
}

/// Writes a new tensor for a constant: in its place where nothing else reads it, else beside it.
fn place(sweep: &mut Sweep<'_>, v: ValueId, tensor: Tensor) -> ValueId {
    if sweep.only_reader(v).is_some() {
        sweep.edit().set_initializer(v, tensor);
        return v;
    }
    let name = format!("{}_folded", sweep.graph.value_name(v));
    sweep.edit().add_initializer(&name, tensor)
}

fn scale_channels(w: &mut [f32], shape: &[usize], layout: Layout, scale: &[f32]) {
    let inner = |axis: usize| shape[axis + 1..].iter().product::<usize>().max(1);
    match layout {
        Layout::First => {
            for (row, s) in w.chunks_mut(inner(0)).zip(scale) {
                row.iter_mut().for_each(|x| *x *= s);
            }
        }
        Layout::Last => {
            for row in w.chunks_mut(scale.len().max(1)) {
                row.iter_mut().zip(scale).for_each(|(x, s)| *x *= s);
            }
        }
        Layout::Grouped(group) => {
            let per_group = (shape[0] / group.max(1)).max(1);
            let (block, n) = (inner(1), shape[1].max(1));
            for (at, kernel) in w.chunks_mut(block).enumerate() {
                let s = scale[(at / n / per_group) * n + at % n];
                kernel.iter_mut().for_each(|x| *x *= s);
            }
        }
    }
}
