//! Weights in blocks as constants and operators of ONNX Runtime.

use super::super::blocks::{Blocks, Form, Rounding, Sensitivity, Zero};
use super::super::{Settings, weights};
use super::{Chosen, Lookup};
use crate::error::{Error, Result};
use crate::graph::{Edit, Facts, Graph, Node, NodeIndex, ValueId};
use crate::ops::{Attr, Attributes};
use crate::tensor::Tensor;
use std::collections::BTreeMap;

const DOMAIN: &str = "com.microsoft";

/// A weight that is written.
pub(super) struct Stored {
    pub(super) form: Form,
    weight: ValueId,
    scales: ValueId,
    zeros: Option<ValueId>,
    /// `[blocks, outputs]`, where zero points are real.
    offsets: Option<ValueId>,
    pub(super) told: String,
}

/// A weight to be rounded.
pub(super) struct Matrix {
    /// A node that reads it.
    pub(super) node: NodeIndex,
    pub(super) weight: ValueId,
    /// It is `[outputs, inputs]`.
    pub(super) transposed: bool,
    /// Inputs and outputs.
    pub(super) shape: (usize, usize),
    pub(super) form: Form,
}

/// What is known of the data at a product.
pub(super) enum Known {
    Nothing,
    /// Mean square of each input.
    Power(Vec<f32>),
    Moments(Sensitivity),
}

/// An edit that exchanges products and look-ups.
pub(super) struct Writer<'a> {
    graph: &'a Graph,
    settings: &'a Settings,
    edit: Edit,
    facts: Facts,
    /// Sums over blocks of data, by the data and the size of a block.
    sums: BTreeMap<(ValueId, usize), ValueId>,
}

impl<'a> Writer<'a> {
    pub(super) fn of(graph: &'a Graph, settings: &'a Settings) -> Result<Writer<'a>> {
        let facts = graph.infer(&|_| None)?;
        Ok(Writer { graph, settings, edit: graph.edit(), facts, sums: BTreeMap::new() })
    }

    pub(super) fn commit(mut self) -> Result<Graph> {
        self.edit.set_opset(DOMAIN, 1);
        self.edit.commit()
    }

    /// Rounds a weight and adds what it becomes; `Err` says why it stays as it is.
    pub(super) fn stored(
        &mut self,
        one: &Matrix,
        known: &Known,
    ) -> Result<std::result::Result<Stored, String>> {
        let (graph, settings) = (self.graph, self.settings);
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
        let (inputs, outputs) = one.shape;
        let (form, blocks) = match (settings.rounding, known) {
            (Rounding::Lossless, _) => {
                let real = inputs.is_multiple_of(one.form.block) && !settings.symmetric;
                match Blocks::lossless(&w, inputs, one.form.block, real) {
                    Some(found) => found,
                    None => return Ok(Err(format!("it lies on no grid of blocks of {}", one.form.block))),
                }
            }
            (_, Known::Moments(sensitivity)) => (one.form, sensitivity.rounded(&w, one.form)),
            (rounding, known) => {
                let power = if let Known::Power(power) = known { Some(power.as_slice()) } else { None };
                (one.form, Blocks::rounded(&w, inputs, one.form, rounding, power))
            }
        };
        let spelled = blocks.spelled(inputs, form);
        let told = match known {
            Known::Moments(sensitivity) => decibels("outputs", sensitivity.error(&w, &spelled)),
            _ => {
                let squared = |x: f32| f64::from(x).powi(2);
                let error = w.iter().zip(&spelled).map(|(a, b)| squared(a - b)).sum();
                decibels("weight", (error, w.iter().copied().map(squared).sum()))
            }
        };
        let told = match settings.rounding {
            Rounding::Lossless => "its values as they are".to_string(),
            _ => told,
        };
        let zero = match form.zero {
            Zero::Real => ", real zero points",
            _ => "",
        };
        let told = format!("{} bits in blocks of {}{zero}, {told}", form.bits.width(), form.block);
        let per_row = inputs.div_ceil(form.block);
        let packed = Tensor::from_vec(
            vec![outputs, per_row, form.bits.bytes(form.block)],
            blocks.packed(inputs, form),
        )?;
        let mut part =
            |what: &str, tensor: Tensor| self.edit.add_initializer(&format!("{name}_{what}"), tensor);
        let zeros = match form.zero {
            Zero::Whole => {
                let zeros = blocks.packed_zeros(inputs, form);
                Some(part("zero_points", Tensor::from_vec(vec![zeros.len()], zeros)?))
            }
            _ => None,
        };
        let offsets = match form.zero {
            Zero::Real => {
                let offsets = Tensor::from_vec(vec![outputs, per_row], blocks.offsets)?.transposed(&[1, 0]);
                // Spelled out, so that a file that is read again gives the same bits.
                let offsets = Tensor::from_vec(vec![per_row, outputs], offsets.to_f32s()?)?;
                Some(part("offsets", offsets))
            }
            _ => None,
        };
        let scales = Tensor::from_vec(vec![outputs * per_row], blocks.scales)?;
        let (weight, scales) = (part("quantized", packed), part("scales", scales));
        Ok(Ok(Stored { form, weight, scales, zeros, offsets, told }))
    }

    /// Exchanges a product.
    pub(super) fn product(&mut self, one: &Chosen, stored: &Stored) -> Result<()> {
        let (node, form) = (self.graph.node(one.node), stored.form);
        let mut inputs = vec![Some(one.data), Some(stored.weight), Some(stored.scales), stored.zeros];
        inputs.extend(one.product.bias.map(|bias| [None, Some(bias)]).into_iter().flatten());
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        let sizes =
            [("K", one.inputs), ("N", one.outputs), ("bits", form.bits.width()), ("block_size", form.block)];
        let attributes = numbers(&sizes);
        let attributes = match self.settings.accuracy_level {
            0 => attributes,
            level => attributes.with("accuracy_level", Attr::Int(level)),
        };
        let label = self.graph.label(one.node);
        self.edit.remove_node(one.node);
        let outputs = match stored.offsets {
            None => node.outputs.clone(),
            Some(offsets) => {
                let sums = self.sums(one, form.block)?;
                let part = self.edit.add_op(
                    "MatMul",
                    &[sums, offsets],
                    Attributes::new(),
                    &format!("{label}_of_offsets"),
                );
                let levels = self.edit.add_value(&format!("{label}_of_levels"), None);
                self.edit.add_node(
                    Node::new("Add", vec![Some(levels), Some(part)], node.outputs.clone())
                        .named(format!("{label}_with_offsets")),
                );
                vec![Some(levels)]
            }
        };
        self.edit.add_node(
            Node::new("MatMulNBits", inputs, outputs)
                .with(attributes)
                .in_domain(DOMAIN)
                .named(format!("{label}_MatMulNBits")),
        );
        Ok(())
    }

    /// Sums over blocks of what flows into a product.
    fn sums(&mut self, one: &Chosen, block: usize) -> Result<ValueId> {
        if let Some(sums) = self.sums.get(&(one.data, block)) {
            return Ok(*sums);
        }
        let blocks = one.inputs / block;
        let (graph, edit) = (self.graph, &mut self.edit);
        let name = format!("{}_in_blocks", graph.value_name(one.data));
        let rank = self.facts.get(one.data).and_then(|f| f.rank()).filter(|rank| *rank > 0);
        let sums = match rank.filter(|_| graph.opset("").is_some_and(|v| v >= 13)) {
            Some(rank) => {
                // Leading axes as they are.
                let shape: Vec<i64> = (1..rank).map(|_| 0).chain([blocks as i64, block as i64]).collect();
                let shape =
                    edit.add_initializer(&format!("{name}_shape"), Tensor::from_vec(vec![rank + 1], shape)?);
                let axis = edit
                    .add_initializer(&format!("{name}_axis"), Tensor::from_vec(vec![1], vec![rank as i64])?);
                let split = edit.add_op("Reshape", &[one.data, shape], Attributes::new(), &name);
                let once = Attributes::new().with("keepdims", Attr::Int(0));
                edit.add_op("ReduceSum", &[split, axis], once, &format!("{name}_sums"))
            }
            None => {
                let of = |i: usize| if i / blocks / block == i % blocks { 1f32 } else { 0.0 };
                let ones: Vec<f32> = (0..one.inputs * blocks).map(of).collect();
                let ones = Tensor::from_vec(vec![one.inputs, blocks], ones)?;
                let ones = edit.add_initializer(&format!("{name}_ones"), ones);
                edit.add_op("MatMul", &[one.data, ones], Attributes::new(), &format!("{name}_sums"))
            }
        };
        self.sums.insert((one.data, block), sums);
        Ok(sums)
    }

    /// Exchanges a look-up in a stored table, whose parts have the axes that a product wants: here they are
    /// `[rows, ..]`.
    pub(super) fn look_up(&mut self, one: &Lookup, stored: &Stored) -> Result<()> {
        let (graph, edit, form) = (self.graph, &mut self.edit, stored.form);
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
        let attributes = numbers(&[
            ("bits", form.bits.width()),
            ("block_size", form.block),
            ("gather_axis", 0),
            ("quantize_axis", 1),
        ]);
        edit.add_node(
            Node::new("GatherBlockQuantized", inputs, outputs)
                .with(attributes)
                .in_domain(DOMAIN)
                .named(format!("{label}_GatherBlockQuantized")),
        );
        Ok(())
    }
}

fn numbers(of: &[(&str, usize)]) -> Attributes {
    of.iter().fold(Attributes::new(), |a, (name, n)| a.with(name, Attr::Int(*n as i64)))
}

/// An error and what it is an error of, for people.
fn decibels(of: &str, (error, power): (f64, f64)) -> String {
    format!("error of the {of} {:.1} dB", 10.0 * (error / power.max(f64::MIN_POSITIVE)).max(1e-30).log10())
}
