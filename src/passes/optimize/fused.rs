//! `fuse-norms`, `fuse-activations`, `fuse-attention`: operators that are spelled out in primitives (as
//! `execute::fuse` recognises them) become themselves. What the graph's operator set lacks is left spelled out,
//! unless the target is ONNX Runtime and has it as its own.

use super::sweep::Sweep;
use super::{CONTRIB, heads};
use crate::error::Result;
use crate::execute::fuse::{self, Form, Fusion};
use crate::graph::{Node, NodeIndex, ValueId};
use crate::ops::{Attr, Attributes, Dim};
use crate::passes::lower::Target;
use crate::tensor::{DType, Tensor};

/// What became of a fusion: said in one line, or why nothing did. `Ok(None)`: it is as it should be.
pub(super) type Outcome = std::result::Result<Option<Written>, String>;

/// A fusion that was written into the graph.
pub(super) struct Written {
    pub(super) detail: String,
    /// The value that the new node gives, and what it is made from.
    pub(super) output: ValueId,
    pub(super) from: Vec<ValueId>,
}

pub(super) fn norms(sweep: &mut Sweep<'_>) -> Result<()> {
    each(sweep, &["LayerNormalization", "RMSNormalization"], norm)
}

pub(super) fn activations(sweep: &mut Sweep<'_>) -> Result<()> {
    each(sweep, &["Gelu", "Swish", "HardSwish", "HardSigmoid"], activation)
}

pub(super) fn attention(sweep: &mut Sweep<'_>) -> Result<()> {
    each(sweep, &["Attention"], heads::attention)
}

/// Writes every fusion of these operators.
fn each(
    sweep: &mut Sweep<'_>,
    names: &[&str],
    write: fn(&mut Sweep<'_>, &Fusion) -> Result<Outcome>,
) -> Result<()> {
    let (fusions, misses) = fuse::find_in(sweep.graph, sweep.facts()?, sweep.uses());
    for miss in misses.into_iter().filter(|m| names.contains(&m.name)) {
        sweep.skip(sweep.graph.label(miss.node), format!("no {}: {}", miss.name, miss.why));
    }
    for fusion in fusions.iter().filter(|f| names.contains(&f.form.name())) {
        let Some(last) = fusion.nodes.last() else { continue };
        let label = sweep.graph.label(*last);
        if let Some(why) = sweep.refused(fusion.output) {
            sweep.skip(label, why);
            continue;
        }
        if fusion.nodes.iter().any(|i| sweep.is_touched(*i)) {
            continue;
        }
        match write(sweep, fusion)? {
            Ok(None) => {}
            Ok(Some(Written { detail, output, from })) => {
                sweep.apply(label, detail);
                sweep.claim(output, from);
            }
            Err(why) => sweep.skip(label, format!("no {}: {why}", fusion.form.name())),
        }
    }
    Ok(())
}

/// An operator that is to stand in the place of a fusion.
pub(super) struct New {
    pub(super) domain: &'static str,
    pub(super) op: &'static str,
    pub(super) inputs: Vec<Option<ValueId>>,
    pub(super) attributes: Attributes,
}

/// Turns node `at` into `new`; its output stays.
pub(super) fn become_one(sweep: &mut Sweep<'_>, at: NodeIndex, new: New) {
    if !new.domain.is_empty() {
        sweep.edit().set_opset(new.domain, 1);
    }
    let node = sweep.change(at);
    node.domain = new.domain.into();
    node.op_type = new.op.into();
    node.inputs = new.inputs;
    node.attributes = new.attributes;
}

/// Turns the last node of a fusion into `new` and removes the others.
fn replace(sweep: &mut Sweep<'_>, fusion: &Fusion, new: New) {
    if let Some((last, others)) = fusion.nodes.split_last() {
        others.iter().for_each(|i| sweep.remove(*i));
        become_one(sweep, *last, new);
    }
}

fn written(fusion: &Fusion, op: &str) -> Written {
    Written {
        detail: format!("{} becomes {op}", fusion.covers),
        output: fusion.output,
        from: fusion.inputs.iter().flatten().copied().collect(),
    }
}

/// Why the graph's operator set does not have an operator, where it does not.
fn needs(sweep: &Sweep<'_>, op: &str, since: i64) -> std::result::Result<(), String> {
    let now = sweep.graph.opset("").unwrap_or(0);
    match now >= since {
        true => Ok(()),
        false => Err(format!("{op} needs operator set {since}, the model has {now}")),
    }
}

fn norm(sweep: &mut Sweep<'_>, fusion: &Fusion) -> Result<Outcome> {
    let Form::Norm { centred, axis, epsilon } = fusion.form else { return Ok(Ok(None)) };
    let (op, since) = match (centred, sweep.terms.target) {
        (true, _) => ("LayerNormalization", 17),
        (false, Target::Ort) => ("SimplifiedLayerNormalization", 1),
        (false, Target::Standard) => ("RMSNormalization", 23),
    };
    if let Err(why) = needs(sweep, op, since) {
        return Ok(Err(why));
    }
    let [Some(x), scale, bias] = fusion.inputs[..] else { return Ok(Ok(None)) };
    let facts = sweep.facts()?;
    let Some((dtype, shape)) = facts.get(x).and_then(|f| Some((f.dtype, f.shape.as_ref()?))) else {
        return Ok(Err("the shape of what is normalised is not known".into()));
    };
    let normal = &shape[shape.len() - axis.unsigned_abs() as usize..];
    for (what, v) in [("scale", scale), ("bias", bias)] {
        let Some(v) = v else { continue };
        if facts.get(v).and_then(|f| f.shape.as_deref()) != Some(normal) {
            return Ok(Err(format!("its {what} has not the shape {normal:?} of what is normalised")));
        }
    }
    if op == "SimplifiedLayerNormalization" && (axis != -1 || dtype != DType::F32) {
        return Ok(Err("it is not over the last axis alone, or not in f32".into()));
    }
    let scale = match scale {
        Some(scale) => scale,
        None => {
            let Some(sizes) = normal.iter().map(Dim::size).collect::<Option<Vec<usize>>>() else {
                return Ok(Err("it has no scale, and its size is not known".into()));
            };
            let ones = Tensor::from_vec(sizes.clone(), vec![1f32; sizes.iter().product()])?.cast_to(dtype);
            let name = format!("{}_ones", sweep.graph.value_name(fusion.output));
            sweep.edit().add_initializer(&name, ones)
        }
    };
    let attributes =
        Attributes::new().with("axis", Attr::Int(axis)).with("epsilon", Attr::Float(epsilon as f32));
    let mut inputs = vec![Some(x), Some(scale)];
    match (centred, bias) {
        (false, Some(bias)) => {
            // The operator takes no bias: the last sum stays.
            let name = format!("{}_norm", sweep.graph.value_name(fusion.output));
            let y = sweep.edit().add_value(&name, None);
            let node = Node::new(op, inputs, vec![Some(y)]).with(attributes).named(name);
            sweep.edit().add_node(node);
            let sum = New {
                domain: "",
                op: "Add",
                inputs: vec![Some(y), Some(bias)],
                attributes: Attributes::new(),
            };
            replace(sweep, fusion, sum);
        }
        _ => {
            inputs.extend(bias.map(Some));
            replace(sweep, fusion, New { domain: "", op, inputs, attributes });
        }
    }
    Ok(Ok(Some(written(fusion, op))))
}

fn activation(sweep: &mut Sweep<'_>, fusion: &Fusion) -> Result<Outcome> {
    let Some(x) = fusion.inputs.first().copied().flatten() else { return Ok(Ok(None)) };
    let dtype = sweep.fact(x)?.map(|f| f.dtype);
    let plain = Attributes::new;
    let ort = sweep.terms.target == Target::Ort && dtype == Some(DType::F32);
    let (domain, op, attributes) = match fusion.form {
        Form::Gelu { tanh } => match (needs(sweep, "Gelu", 20), ort, tanh) {
            (Ok(()), _, true) => ("", "Gelu", plain().with("approximate", Attr::Str(b"tanh".to_vec()))),
            (Ok(()), _, false) => ("", "Gelu", plain()),
            (_, true, true) => (CONTRIB, "FastGelu", plain()),
            (_, true, false) => (CONTRIB, "Gelu", plain()),
            (Err(why), ..) => return Ok(Err(why)),
        },
        Form::Swish { alpha } => {
            let attributes = plain().with("alpha", Attr::Float(alpha as f32));
            match (needs(sweep, "Swish", 24), ort) {
                (Ok(()), _) => ("", "Swish", attributes),
                (_, true) => (CONTRIB, "QuickGelu", attributes),
                (Err(why), _) => return Ok(Err(why)),
            }
        }
        Form::HardSwish | Form::HardSigmoid { .. } => {
            if let Err(why) = needs(sweep, "HardSigmoid", 6) {
                return Ok(Err(why));
            }
            if dtype != Some(DType::F32) {
                return Ok(Err("its numbers are attributes in f32".into()));
            }
            let (alpha, beta) = match fusion.form {
                Form::HardSigmoid { alpha, beta } => (alpha, beta),
                _ => (1.0 / 6.0, 0.5),
            };
            let ramp =
                plain().with("alpha", Attr::Float(alpha as f32)).with("beta", Attr::Float(beta as f32));
            if fusion.form == Form::HardSwish {
                // As a gate: every operator set has it, and ONNX Runtime 1.32 runs it faster than HardSwish.
                let name = format!("{}_gate", sweep.graph.value_name(fusion.output));
                let gate = sweep.edit().add_value(&name, None);
                let node = Node::new("HardSigmoid", vec![Some(x)], vec![Some(gate)]).with(ramp).named(name);
                sweep.edit().add_node(node);
                let product =
                    New { domain: "", op: "Mul", inputs: vec![Some(x), Some(gate)], attributes: plain() };
                replace(sweep, fusion, product);
                return Ok(Ok(Some(written(fusion, "x * HardSigmoid(x)"))));
            }
            ("", "HardSigmoid", ramp)
        }
        _ => return Ok(Ok(None)),
    };
    replace(sweep, fusion, New { domain, op, inputs: vec![Some(x)], attributes });
    Ok(Ok(Some(written(fusion, op))))
}
