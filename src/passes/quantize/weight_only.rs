//! Weights of products in blocks of 4 or 8 bits, to `MatMulNBits` of ONNX Runtime; data stay in float.
//! Weights are taken one after the other, so that memory holds one of them beside what is done already. With
//! GPTQ the second moments of what flows into products are gathered in as many passes as the cap asks for.
//! Tables of embeddings become `GatherBlockQuantized`; one that is the output head as well is stored once, in
//! the bits of a table.

use super::awq;
use super::blocks::{Form, Rounding, Sensitivity, Zero, ZeroPoints};
use super::products::{self, Product};
use super::{Embeddings, Scheme, Settings};
use crate::error::{Error, Result};
use crate::graph::{Graph, NodeIndex, ValueId};
use crate::kernels::packed::Bits;
use crate::monitor::Level;
use crate::passes::optimize::drop_unused_constants;
use crate::passes::{Ctx, PassReport};
use crate::tensor::{DType, Tensor};
use moments::CAP;
pub(super) use moments::{fitting, gather};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use write::{Known, Matrix, Stored, Writer};

mod moments;
mod write;

/// A product that is quantised.
#[derive(Debug, Clone)]
pub(super) struct Chosen {
    pub(super) node: NodeIndex,
    pub(super) product: Product,
    pub(super) data: ValueId,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) form: Form,
}

/// A look-up that is quantised: rows of a table by index.
struct Lookup {
    node: NodeIndex,
    table: ValueId,
    index: ValueId,
    rows: usize,
    width: usize,
    form: Form,
}

/// Smallest block that ONNX Runtime takes.
const LEAST_BLOCK: usize = 16;

/// Fewest rows of a table that is worth it.
const ROWS: usize = 256;

impl Chosen {
    fn matrix(&self) -> Matrix {
        let Product { weight, transposed, .. } = self.product;
        Matrix { node: self.node, weight, transposed, shape: (self.inputs, self.outputs), form: self.form }
    }
}

impl Settings {
    /// The grid of weights of `weight-int4` and `weight-int8`.
    fn form(&self) -> Form {
        let bits = if self.scheme == Scheme::WeightInt8 { Bits::Eight } else { Bits::Four };
        let zero = match self.zero_points {
            _ if self.symmetric => Zero::Middle,
            ZeroPoints::Whole => Zero::Whole,
            ZeroPoints::Real => Zero::Real,
        };
        Form { bits, block: self.block, zero }
    }

    /// The grid of tables of embeddings, if they are quantised: rows are whole blocks, so that blocks are
    /// halved until they are.
    fn table_form(&self, width: usize) -> Option<Form> {
        let bits = match self.embeddings {
            Embeddings::Keep => return None,
            Embeddings::Int8 => Bits::Eight,
            Embeddings::Int4 => Bits::Four,
        };
        // Rows that are looked up get nothing added.
        let zero = if self.symmetric { Zero::Middle } else { Zero::Whole };
        let halves = std::iter::successors(Some(self.block), |block| Some(block / 2));
        let block =
            halves.take_while(|block| *block >= LEAST_BLOCK).find(|block| width.is_multiple_of(*block))?;
        Some(Form { bits, block, zero })
    }

    /// The grid of a node's weight.
    fn form_of(&self, graph: &Graph, i: NodeIndex) -> Form {
        let form = self.form();
        if self.wide(graph, i) { Form { bits: Bits::Eight, ..form } } else { form }
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
            && !settings.excluded(graph, node);
        let form = settings.table_form(width).filter(|_| fits)?;
        Some(Lookup { node, table, index, rows, width, form })
    };
    (0..graph.nodes().len()).filter_map(lookup).collect()
}

/// Products to quantise; the report gets those that cannot be.
pub(super) fn chosen(graph: &Graph, settings: &Settings, mut report: Option<&mut PassReport>) -> Vec<Chosen> {
    let tables: BTreeMap<ValueId, Form> =
        lookups(graph, settings).iter().map(|l| (l.table, l.form)).collect();
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
        let shared = tables.get(&product.weight).filter(|_| product.transposed);
        let form = shared.copied().unwrap_or_else(|| settings.form_of(graph, node));
        if inputs < form.block {
            skip("it sums over fewer inputs than a block has");
            continue;
        }
        if form.zero == Zero::Real && inputs % form.block != 0 {
            skip("its inputs are no multiple of a block, as real zero points ask for");
            continue;
        }
        let vector = |b: ValueId| graph.initializer(b).is_some_and(|t| t.shape() == [outputs]);
        if product.bias.is_some_and(|b| !vector(b)) {
            skip("its bias is no constant vector");
            continue;
        }
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
pub(super) fn memory(graph: &Graph, settings: &Settings, data: bool) -> u64 {
    let rounding = settings.rounding;
    if !(rounding.uses_data() || rounding.scales()) || !data {
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
    let scaled = match settings.rounding.scales() {
        true => Some(awq::scaled(graph, settings, ctx, report)?),
        false => None,
    };
    let graph = scaled.as_ref().unwrap_or(graph);
    let chosen = chosen(graph, settings, Some(report));
    let look = settings.rounding.uses_data() && ctx.calibration.is_some();
    let mut writer = Writer::of(graph, settings)?;
    let mut done: BTreeMap<(ValueId, bool), Stored> = BTreeMap::new();
    let (mut used, mut at) = (0u64, 0);
    let refused = |report: &mut PassReport, node: NodeIndex, why: String| {
        ctx.monitor.log(Level::Warning, &format!("{}: {why}", graph.label(node)));
        report.skip(settings.rule(), graph.label(node), why);
    };
    while at < chosen.len() {
        let upto = if look { at + fitting(&chosen[at..]) } else { chosen.len() };
        let moments = match look {
            true => gather(graph, &chosen[at..upto], settings, ctx)?,
            false => BTreeMap::new(),
        };
        let mut known: Option<(ValueId, Known)> = None;
        ctx.monitor.phase("quantize: weights", Some(chosen.len() as u64));
        for one in &chosen[at..upto] {
            ctx.monitor.check()?;
            at += 1;
            ctx.monitor.progress(at as u64);
            let stored = match done.entry((one.product.weight, one.product.transposed)) {
                Entry::Occupied(stored) => stored.into_mut(),
                Entry::Vacant(place) => {
                    let known = match &mut known {
                        Some((v, known)) if *v == one.data => known,
                        slot => {
                            let found = match (moments.get(&one.data), settings.rounding) {
                                (None, _) => Known::Nothing,
                                (Some(m), Rounding::KQuant) => Known::Power(m.power()),
                                (Some(m), _) => Sensitivity::of(m, settings.damping)
                                    .map_or(Known::Nothing, Known::Moments),
                            };
                            &mut slot.insert((one.data, found)).1
                        }
                    };
                    match writer.stored(&one.matrix(), known)? {
                        Ok(stored) => place.insert(stored),
                        Err(why) => {
                            refused(report, one.node, why);
                            continue;
                        }
                    }
                }
            };
            writer.product(one, stored)?;
            report.apply(settings.rule(), graph.label(one.node), stored.told.clone());
            used += 1;
        }
    }
    for lookup in lookups(graph, settings) {
        ctx.monitor.check()?;
        let stored = match done.entry((lookup.table, true)) {
            Entry::Occupied(stored) => stored.into_mut(),
            Entry::Vacant(place) => {
                let shape = (lookup.width, lookup.rows);
                let (node, weight, form) = (lookup.node, lookup.table, lookup.form);
                let table = Matrix { node, weight, transposed: true, shape, form };
                match writer.stored(&table, &Known::Nothing)? {
                    Ok(stored) => place.insert(stored),
                    Err(why) => {
                        refused(report, lookup.node, why);
                        continue;
                    }
                }
            }
        };
        if stored.form.zero == Zero::Real {
            refused(report, lookup.node, "rows of a grid with real zero points cannot be looked up".into());
            continue;
        }
        writer.look_up(&lookup, stored)?;
        report.apply(settings.rule(), graph.label(lookup.node), format!("a table, {}", stored.told));
        used += 1;
    }
    if used == 0 {
        return Err(match settings.rounding {
            Rounding::Lossless => {
                Error::unsupported("NOTHING-TO-QUANTIZE", "no weight lies on a grid of blocks")
                    .hint("choose the `block` that the weights were stored in, or another `rounding`")
            }
            _ => super::all_refused(report),
        });
    }
    report.facts.insert("quantized_nodes".into(), used as f64);
    drop_unused_constants(graph, writer.commit()?)
}
