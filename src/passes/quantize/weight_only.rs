//! Weights of products in blocks of 4 or 8 bits, to `MatMulNBits` of ONNX Runtime; data stay in float.
//! Weights are taken one after the other, so that memory holds one of them beside what is done already. With
//! GPTQ the second moments of what flows into products are gathered in as many passes as the cap asks for.
//! Embeddings stay in float; a weight that an embedding and a product share is stored twice.

use super::blocks::{Blocks, Form, Rounding, Sensitivity};
use super::products::{self, Product};
use super::{Scheme, Settings, calibrate, weights};
use crate::error::{Error, Result};
use crate::evaluate::samples::Positions;
use crate::execute::{Executor, Overrides, Seen};
use crate::graph::{Edit, Graph, Node, NodeIndex, ValueId};
use crate::kernels::packed::Bits;
use crate::monitor::Level;
use crate::ops::float::elements;
use crate::ops::{Attr, Attributes};
use crate::passes::look::{Look, Moments};
use crate::passes::optimize::drop_unused_constants;
use crate::passes::{Ctx, PassReport};
use crate::tensor::{Tensor, Value};
use std::collections::{BTreeMap, BTreeSet};

const DOMAIN: &str = "com.microsoft";
/// Most memory for second moments at once.
const CAP: u64 = 1 << 30;

/// A product that is quantised.
struct Chosen {
    node: NodeIndex,
    product: Product,
    data: ValueId,
    inputs: usize,
    outputs: usize,
}

impl Settings {
    /// The grid of weights of `weight-int4` and `weight-int8`.
    fn form(&self) -> Form {
        let bits = if self.scheme == Scheme::WeightInt8 { Bits::Eight } else { Bits::Four };
        Form { bits, block: self.block, symmetric: self.symmetric }
    }

    fn rule(&self) -> &'static str {
        if self.scheme == Scheme::WeightInt8 { "weight-int8" } else { "weight-int4" }
    }
}

fn chosen(graph: &Graph, settings: &Settings, mut report: Option<&mut PassReport>) -> Vec<Chosen> {
    let mut out = Vec::new();
    for node in 0..graph.nodes().len() {
        let mut skip = |why: &str| {
            if let Some(report) = report.as_deref_mut() {
                report.skip(settings.rule(), graph.label(node), why);
            }
        };
        let product = match products::product(graph, node) {
            Ok(Some(product)) => product,
            Ok(None) => continue,
            Err(why) => {
                skip(why);
                continue;
            }
        };
        if settings.excluded(graph, node) {
            skip("excluded by name");
            continue;
        }
        let (Some(shape), Some(Some(data))) =
            (graph.initializer(product.weight).map(Tensor::shape), graph.node(node).inputs.first())
        else {
            continue;
        };
        let (outputs, inputs) = match product.transposed {
            true => (shape[0], shape[1]),
            false => (shape[1], shape[0]),
        };
        if inputs < settings.block {
            skip("it sums over fewer inputs than a block has");
            continue;
        }
        let vector = |b: ValueId| graph.initializer(b).is_some_and(|t| t.shape() == [outputs]);
        if product.bias.is_some_and(|b| !vector(b)) {
            skip("its bias is no constant vector");
            continue;
        }
        out.push(Chosen { node, product, data: *data, inputs, outputs });
    }
    out
}

/// Bytes of the weights that become integers.
pub(super) fn covered(graph: &Graph, settings: &Settings) -> u64 {
    let weights: BTreeSet<ValueId> = chosen(graph, settings, None).iter().map(|c| c.product.weight).collect();
    weights.iter().filter_map(|v| graph.initializer(*v)).map(|t| t.byte_len()).sum()
}

/// Memory for second moments, where the rounding looks at data.
pub(super) fn memory(graph: &Graph, settings: &Settings) -> u64 {
    if settings.rounding != Rounding::Gptq {
        return 0;
    }
    let largest = chosen(graph, settings, None).iter().map(|c| c.inputs).max().unwrap_or(0) as u64;
    // One matrix of f32 a value, and five of f64 while one is turned into a factor.
    CAP + 44 * largest * largest
}

/// Fails where nothing would be quantised.
pub(super) fn check(graph: &Graph, settings: &Settings) -> Result<()> {
    if chosen(graph, settings, None).is_empty() {
        return Err(Error::unsupported(
            "NOTHING-TO-QUANTIZE",
            "no MatMul or Gemm with a constant f32 matrix is left to quantise",
        )
        .hint("check `exclude` and `block`, or whether the model is quantised already"));
    }
    Ok(())
}

pub(super) fn run(
    graph: &Graph,
    settings: &Settings,
    ctx: &Ctx<'_>,
    report: &mut PassReport,
) -> Result<Graph> {
    let chosen = chosen(graph, settings, Some(report));
    let mut edit = graph.edit();
    let mut done: BTreeMap<(ValueId, bool), Stored> = BTreeMap::new();
    let (mut used, mut at) = (0u64, 0);
    while at < chosen.len() {
        let upto = at + fitting(&chosen[at..], settings);
        let moments = match settings.rounding {
            Rounding::Gptq => gather(graph, &chosen[at..upto], settings, ctx)?,
            _ => BTreeMap::new(),
        };
        let mut known: Option<(ValueId, Option<Sensitivity>)> = None;
        ctx.monitor.phase("quantize: weights", Some(chosen.len() as u64));
        for one in &chosen[at..upto] {
            ctx.monitor.check()?;
            let key = (one.product.weight, one.product.transposed);
            if !done.contains_key(&key) {
                if known.as_ref().is_none_or(|(v, _)| *v != one.data) {
                    let of = moments.get(&one.data).and_then(|m| Sensitivity::of(m, settings.damping));
                    known = Some((one.data, of));
                }
                let sensitivity = known.as_ref().and_then(|(_, s)| s.as_ref());
                match stored(graph, &mut edit, one, settings, sensitivity)? {
                    Ok(stored) => drop(done.insert(key, stored)),
                    Err(why) => {
                        ctx.monitor.log(Level::Warning, &format!("{}: {why}", graph.label(one.node)));
                        report.skip(settings.rule(), graph.label(one.node), why);
                        at += 1;
                        continue;
                    }
                }
            }
            if let Some(stored) = done.get(&key) {
                write(graph, &mut edit, one, settings, stored);
                report.apply(settings.rule(), graph.label(one.node), stored.told.clone());
                used += 1;
            }
            at += 1;
            ctx.monitor.progress(at as u64);
        }
    }
    if used == 0 {
        return Err(super::all_refused(report));
    }
    report.facts.insert("quantized_nodes".into(), used as f64);
    edit.set_opset(DOMAIN, 1);
    drop_unused_constants(graph, edit.commit()?)
}

/// How many of the products, from the first on, have moments that fit under the cap; one at least.
fn fitting(chosen: &[Chosen], settings: &Settings) -> usize {
    if settings.rounding != Rounding::Gptq {
        return chosen.len();
    }
    let (mut bytes, mut seen) = (0u64, BTreeSet::new());
    let fits = chosen.iter().take_while(|c| {
        if seen.insert(c.data) {
            bytes += 4 * (c.inputs * c.inputs) as u64;
        }
        bytes <= CAP
    });
    fits.count().max(1)
}

/// Second moments of what flows into products.
fn gather(
    graph: &Graph,
    chosen: &[Chosen],
    settings: &Settings,
    ctx: &Ctx<'_>,
) -> Result<BTreeMap<ValueId, Moments>> {
    let look = Look { data: calibrate::data(ctx)?, samples: settings.samples, batch: 0 };
    let mut moments: BTreeMap<ValueId, Moments> = BTreeMap::new();
    for c in chosen {
        moments.entry(c.data).or_insert_with(|| Moments::of(c.inputs, true));
    }
    let wanted: BTreeSet<ValueId> = moments.keys().copied().collect();
    let executor = Executor::new(graph)?;
    let none = Overrides::new();
    look.each("quantize: look at what products read", ctx.monitor, 0, &mut |_, batch| {
        let positions = Positions::of(batch)?;
        let mut add = |v: ValueId, value: &Value| -> Result<()> {
            ctx.monitor.check()?;
            let Some(moments) = moments.get_mut(&v) else { return Ok(()) };
            let float = value.float()?;
            let shape = float.dims();
            let axis = shape.len().saturating_sub(1);
            let x = elements::<f32>(float)?;
            let shown = positions.rows_of(shape, axis);
            let lines = x.chunks(shape[axis].max(1)).zip(&shown).filter(|(_, row)| row.is_some());
            let rows: Vec<f32> = lines.flat_map(|(line, _)| line.iter().copied()).collect();
            let count = rows.len() / shape[axis].max(1);
            moments.add_rows(rows, &vec![1.0; count]);
            Ok(())
        };
        for (name, tensor) in &batch.inputs {
            if let Some(v) = graph.find(name).filter(|v| wanted.contains(v)) {
                add(v, &Value::load(tensor)?)?;
            }
        }
        executor.run_tapped(&batch.inputs, &none, Seen::Of(&|v| wanted.contains(&v)), &mut add).map(drop)
    })?;
    for (v, m) in &moments {
        if !m.sum.iter().all(|s| s.is_finite()) {
            return Err(Error::invalid("CALIBRATION-NAN", "calibration met a value that is not finite")
                .field(format!("value \"{}\"", graph.value_name(*v))));
        }
    }
    Ok(moments)
}

/// A weight that is written.
struct Stored {
    weight: ValueId,
    scales: ValueId,
    zeros: Option<ValueId>,
    told: String,
}

fn stored(
    graph: &Graph,
    edit: &mut Edit,
    one: &Chosen,
    settings: &Settings,
    sensitivity: Option<&Sensitivity>,
) -> Result<std::result::Result<Stored, String>> {
    let name = graph.value_name(one.product.weight);
    let tensor = graph
        .initializer(one.product.weight)
        .ok_or_else(|| Error::internal("QUANTIZE", "weight vanished").node(graph.label(one.node)))?;
    let bad = weights::not_finite(tensor)?;
    if bad > 0 {
        return Ok(Err(weights::refusal(name, bad, tensor.len())));
    }
    let w = match one.product.transposed {
        true => tensor.to_f32s()?,
        false => tensor.transposed(&[1, 0]).to_f32s()?,
    };
    let (form, inputs) = (settings.form(), one.inputs);
    let blocks = match sensitivity {
        Some(s) => s.rounded(&w, form),
        None => Blocks::rounded(&w, inputs, form, settings.rounding),
    };
    let spelled = blocks.spelled(inputs, form);
    let part = match sensitivity {
        Some(s) => s.error(&w, &spelled),
        None => {
            let squared = |x: f32| f64::from(x).powi(2);
            (w.iter().zip(&spelled).map(|(a, b)| squared(a - b)).sum(), w.iter().copied().map(squared).sum())
        }
    };
    let of = if sensitivity.is_some() { "outputs" } else { "weight" };
    let told = format!(
        "{} bits in blocks of {}, error of the {of} {:.1} dB",
        form.bits.width(),
        form.block,
        10.0 * (part.0 / part.1.max(f64::MIN_POSITIVE)).max(1e-30).log10()
    );
    let (rows, per_row) = (one.outputs, inputs.div_ceil(form.block));
    let bytes = form.bits.bytes(form.block);
    let packed = Tensor::from_vec(vec![rows, per_row, bytes], blocks.packed(inputs, form))?;
    let zeros = match form.symmetric {
        true => None,
        false => {
            let zeros =
                Tensor::from_vec(vec![rows * form.bits.bytes(per_row)], blocks.packed_zeros(inputs, form))?;
            Some(edit.add_initializer(&format!("{name}_zero_points"), zeros))
        }
    };
    let scales = Tensor::from_vec(vec![rows * per_row], blocks.scales)?;
    Ok(Ok(Stored {
        weight: edit.add_initializer(&format!("{name}_quantized"), packed),
        scales: edit.add_initializer(&format!("{name}_scales"), scales),
        zeros,
        told,
    }))
}

fn write(graph: &Graph, edit: &mut Edit, one: &Chosen, settings: &Settings, stored: &Stored) {
    let (node, form) = (graph.node(one.node), settings.form());
    let mut inputs = vec![Some(one.data), Some(stored.weight), Some(stored.scales), stored.zeros];
    inputs.extend(one.product.bias.map(|bias| [None, Some(bias)]).into_iter().flatten());
    while inputs.last() == Some(&None) {
        inputs.pop();
    }
    let sizes =
        [("K", one.inputs), ("N", one.outputs), ("bits", form.bits.width()), ("block_size", form.block)];
    let attributes =
        sizes.into_iter().fold(Attributes::new(), |a, (name, n)| a.with(name, Attr::Int(n as i64)));
    let attributes = match settings.accuracy_level {
        0 => attributes,
        level => attributes.with("accuracy_level", Attr::Int(level)),
    };
    let label = graph.label(one.node);
    edit.remove_node(one.node);
    edit.add_node(
        Node::new("MatMulNBits", inputs, node.outputs.clone())
            .with(attributes)
            .in_domain(DOMAIN)
            .named(format!("{label}_MatMulNBits")),
    );
}
