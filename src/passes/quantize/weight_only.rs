//! Weights of products in blocks of 4 or 8 bits, to `MatMulNBits` of ONNX Runtime; data stay in float.
//! Weights are taken one after the other, so that memory holds one of them beside what is done already. With
//! GPTQ the second moments of what flows into products are gathered in as many passes as the cap asks for.
//! Tables of embeddings become `GatherBlockQuantized`; one that is the output head as well is stored once, in
//! the bits of a table.

use super::blocks::{Blocks, Form, Rounding, Sensitivity};
use super::products::{self, Product};
use super::{Embeddings, Scheme, Settings, calibrate, weights};
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
use crate::tensor::{DType, Tensor, Value};
use std::collections::btree_map::Entry;
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
    form: Form,
}

/// A look-up that is quantised: rows of a table by index.
struct Lookup {
    node: NodeIndex,
    table: ValueId,
    index: ValueId,
    rows: usize,
    width: usize,
}

/// Fewest rows of a table that is worth it.
const ROWS: usize = 256;

impl Settings {
    /// The grid of weights of `weight-int4` and `weight-int8`.
    fn form(&self) -> Form {
        let bits = if self.scheme == Scheme::WeightInt8 { Bits::Eight } else { Bits::Four };
        Form { bits, block: self.block, symmetric: self.symmetric }
    }

    /// The grid of tables of embeddings, if they are quantised.
    fn table_form(&self) -> Option<Form> {
        let bits = match self.embeddings {
            Embeddings::Keep => return None,
            Embeddings::Int8 => Bits::Eight,
            Embeddings::Int4 => Bits::Four,
        };
        Some(Form { bits, ..self.form() })
    }

    fn rule(&self) -> &'static str {
        if self.scheme == Scheme::WeightInt8 { "weight-int8" } else { "weight-int4" }
    }
}

fn lookups(graph: &Graph, settings: &Settings) -> Vec<Lookup> {
    let lookup = |node: NodeIndex| -> Option<Lookup> {
        let n = graph.node(node);
        let input = |slot: usize| n.inputs.get(slot).copied().flatten();
        let (table, index) = (input(0)?, input(1)?);
        let tensor = graph.initializer(table).filter(|t| t.dtype() == DType::F32)?;
        let &[rows, width] = tensor.shape() else { return None };
        let fits = n.is("Gather")
            && n.attributes.int("axis", 0).unwrap_or(0) == 0
            && rows >= ROWS
            && width.is_multiple_of(settings.block)
            && !settings.excluded(graph, node);
        fits.then_some(Lookup { node, table, index, rows, width })
    };
    match settings.table_form() {
        Some(_) => (0..graph.nodes().len()).filter_map(lookup).collect(),
        None => vec![],
    }
}

fn chosen(graph: &Graph, settings: &Settings, mut report: Option<&mut PassReport>) -> Vec<Chosen> {
    let tables: BTreeSet<ValueId> = lookups(graph, settings).iter().map(|l| l.table).collect();
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
        let shared = tables.contains(&product.weight) && product.transposed;
        let form = settings.table_form().filter(|_| shared).unwrap_or(settings.form());
        out.push(Chosen { node, product, data: *data, inputs, outputs, form });
    }
    out
}

/// Bytes of the weights that become integers.
pub(super) fn covered(graph: &Graph, settings: &Settings) -> u64 {
    let mut weights: BTreeSet<ValueId> =
        chosen(graph, settings, None).iter().map(|c| c.product.weight).collect();
    weights.extend(lookups(graph, settings).iter().map(|l| l.table));
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
    if chosen(graph, settings, None).is_empty() && lookups(graph, settings).is_empty() {
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
    let refused = |report: &mut PassReport, node: NodeIndex, why: String| {
        ctx.monitor.log(Level::Warning, &format!("{}: {why}", graph.label(node)));
        report.skip(settings.rule(), graph.label(node), why);
    };
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
            at += 1;
            ctx.monitor.progress(at as u64);
            let stored = match done.entry((one.product.weight, one.product.transposed)) {
                Entry::Occupied(stored) => stored.into_mut(),
                Entry::Vacant(place) => {
                    if known.as_ref().is_none_or(|(v, _)| *v != one.data) {
                        let of = moments.get(&one.data).and_then(|m| Sensitivity::of(m, settings.damping));
                        known = Some((one.data, of));
                    }
                    let sensitivity = known.as_ref().and_then(|(_, s)| s.as_ref());
                    match stored(graph, &mut edit, &one.matrix(), settings, sensitivity)? {
                        Ok(stored) => place.insert(stored),
                        Err(why) => {
                            refused(report, one.node, why);
                            continue;
                        }
                    }
                }
            };
            write(graph, &mut edit, one, settings, stored);
            report.apply(settings.rule(), graph.label(one.node), stored.told.clone());
            used += 1;
        }
    }
    for lookup in lookups(graph, settings) {
        ctx.monitor.check()?;
        let Some(form) = settings.table_form() else { break };
        let stored = match done.entry((lookup.table, true)) {
            Entry::Occupied(stored) => stored.into_mut(),
            Entry::Vacant(place) => {
                let shape = (lookup.width, lookup.rows);
                let table = Matrix { node: lookup.node, weight: lookup.table, transposed: true, shape, form };
                match stored(graph, &mut edit, &table, settings, None)? {
                    Ok(stored) => place.insert(stored),
                    Err(why) => {
                        refused(report, lookup.node, why);
                        continue;
                    }
                }
            }
        };
        look_up(graph, &mut edit, &lookup, form, stored)?;
        report.apply(settings.rule(), graph.label(lookup.node), format!("a table, {}", stored.told));
        used += 1;
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

/// A weight to be rounded.
struct Matrix {
    /// A node that reads it.
    node: NodeIndex,
    weight: ValueId,
    /// It is `[outputs, inputs]`.
    transposed: bool,
    /// Inputs and outputs.
    shape: (usize, usize),
    form: Form,
}

impl Chosen {
    fn matrix(&self) -> Matrix {
        let Product { weight, transposed, .. } = self.product;
        Matrix { node: self.node, weight, transposed, shape: (self.inputs, self.outputs), form: self.form }
    }
}

fn stored(
    graph: &Graph,
    edit: &mut Edit,
    one: &Matrix,
    settings: &Settings,
    sensitivity: Option<&Sensitivity>,
) -> Result<std::result::Result<Stored, String>> {
    let name = graph.value_name(one.weight);
    let tensor = graph
        .initializer(one.weight)
        .ok_or_else(|| Error::internal("QUANTIZE", "weight vanished").node(graph.label(one.node)))?;
    let bad = weights::not_finite(tensor)?;
    if bad > 0 {
        return Ok(Err(weights::refusal(name, bad, tensor.len())));
    }
    let w = match one.transposed {
        true => tensor.to_f32s()?,
        false => tensor.transposed(&[1, 0]).to_f32s()?,
    };
    let (form, (inputs, outputs)) = (one.form, one.shape);
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
    let (rows, per_row) = (outputs, inputs.div_ceil(form.block));
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
    let (node, form) = (graph.node(one.node), one.form);
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

/// A look-up in a stored table, whose parts have the axes that a product wants: here they are `[rows, ..]`.
fn look_up(graph: &Graph, edit: &mut Edit, one: &Lookup, form: Form, stored: &Stored) -> Result<()> {
    let (label, outputs) = (graph.label(one.node), graph.node(one.node).outputs.clone());
    let blocks = one.width / form.block;
    edit.remove_node(one.node);
    let mut by_row = |part: ValueId, what: &str, width: usize| -> Result<ValueId> {
        let shape = Tensor::from_vec(vec![2], vec![one.rows as i64, width as i64])?;
        let shape = edit.add_initializer(&format!("{label}_{what}_shape"), shape);
        Ok(edit.add_op("Reshape", &[part, shape], Attributes::new(), &format!("{label}_{what}")))
    };
    let table = by_row(stored.weight, "table", form.bits.bytes(one.width))?;
    let scales = by_row(stored.scales, "scales", blocks)?;
    let zeros =
        stored.zeros.map(|zeros| by_row(zeros, "zero_points", form.bits.bytes(blocks))).transpose()?;
    let mut inputs = vec![Some(table), Some(one.index), Some(scales)];
    inputs.extend(zeros.map(Some));
    let numbers =
        [("bits", form.bits.width()), ("block_size", form.block), ("gather_axis", 0), ("quantize_axis", 1)];
    let attributes =
        numbers.into_iter().fold(Attributes::new(), |a, (name, n)| a.with(name, Attr::Int(n as i64)));
    edit.add_node(
        Node::new("GatherBlockQuantized", inputs, outputs)
            .with(attributes)
            .in_domain(DOMAIN)
            .named(format!("{label}_GatherBlockQuantized")),
    );
    Ok(())
}
