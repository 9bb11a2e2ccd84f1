//! Channels of a value divided by positive numbers where the value is made, and multiplied back in the weights
//! that read them: what SmoothQuant, AWQ and the equalisation of layers do to a float graph without changing
//! its outputs but by rounding.
//!
//! A graph, a value and its channel axis enter; [`Fold`] says which constants hold the channels, or a reason
//! why nothing can. The producer may be a product with a constant weight, a norm or a constant factor, seen
//! through operators for which `f(c x) = c f(x)` holds in each channel for every `c > 0`. Tensors are scaled
//! lazily ([`Tensor::scaled`]), so that weights in files stay there.

mod reader;

pub(super) use reader::{Reader, reader};

use crate::error::{Error, Result};
use crate::graph::{Edit, Facts, Graph, Node, NodeIndex, Uses, ValueId};
use crate::ops::canonical_domain;
use crate::tensor::{DType, Tensor};

/// Which channel the elements of a constant belong to: element `f` to `channels[f / inner % channels.len()]`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Along {
    pub(super) inner: usize,
    pub(super) channels: Vec<usize>,
}

impl Along {
    /// The channels on one axis of a tensor.
    fn axis(shape: &[usize], axis: usize) -> Along {
        Along { inner: shape[axis + 1..].iter().product(), channels: (0..shape[axis]).collect() }
    }

    /// Largest magnitude of each of `count` channels of an f32 tensor; NaN counts for nothing.
    pub(super) fn magnitudes(&self, tensor: &Tensor, count: usize) -> Result<Vec<f32>> {
        let mut largest = vec![0f32; count];
        tensor.for_each_piece(&mut |at, piece| {
            let mut done = 0;
            while done < piece.len() {
                let block = (at + done) / self.inner;
                let end = ((block + 1) * self.inner - at).min(piece.len());
                let c = self.channels[block % self.channels.len()];
                largest[c] = piece[done..end].iter().fold(largest[c], |m, x| m.max(x.abs()));
                done = end;
            }
            Ok(())
        })?;
        Ok(largest)
    }

    fn scaled(&self, tensor: &Tensor, by: impl Fn(usize) -> f32) -> Result<Tensor> {
        tensor.scaled(self.inner, self.channels.iter().map(|c| by(*c)).collect())
    }
}

/// A constant operand that holds channels.
#[derive(Debug, Clone)]
struct Part {
    node: NodeIndex,
    slot: usize,
    held: Held,
}

#[derive(Debug, Clone)]
enum Held {
    Along(Along),
    /// One number for all channels, to be spread over this shape, whose channel axis is the first.
    Single(Vec<usize>),
}

/// Constants that hold the channels of a value.
#[derive(Debug, Clone)]
pub(super) struct Fold {
    parts: Vec<Part>,
    /// Number of channels.
    pub(super) channels: usize,
}

impl Fold {
    /// The constants whose channels make those of `v` on `axis`. Readers of `v` itself are the caller's to
    /// compensate.
    ///
    /// # Errors
    /// The inner one is the reason, for people, why nothing holds the channels alone.
    pub(super) fn of(
        graph: &Graph,
        uses: &Uses,
        facts: &Facts,
        v: ValueId,
        axis: usize,
    ) -> std::result::Result<Fold, String> {
        let channels = (facts.get(v).and_then(|f| f.shape.as_deref()))
            .and_then(|s| s.get(axis)?.size())
            .filter(|n| *n > 0)
            .ok_or_else(|| format!("the channels of \"{}\" are not known", graph.value_name(v)))?;
        let trace = Trace { graph, uses, facts, channels };
        Ok(Fold { parts: trace.parts(v, axis)?, channels })
    }

    /// The node that holds the channels, or the first of several.
    pub(super) fn node(&self) -> Option<NodeIndex> {
        self.parts.first().map(|p| p.node)
    }

    /// Weights of products among the constants, each with its node and where its channels lie. None where
    /// something else, such as a norm, holds channels.
    pub(super) fn weights(&self, graph: &Graph) -> Option<Vec<(NodeIndex, Along)>> {
        let mut found = Vec::new();
        for part in &self.parts {
            match &part.held {
                Held::Along(along) if part.slot == 1 && is_product(graph.node(part.node)) => {
                    found.push((part.node, along.clone()));
                }
                _ if is_product(graph.node(part.node)) || graph.node(part.node).is("Add") => {}
                _ => return None,
            }
        }
        Some(found)
    }

    /// Divides channel `c` by `scales[c]`. Constants that others read too are copied. Nodes and slots are those
    /// of the graph that the fold was made of; constants may have been replaced meanwhile.
    ///
    /// # Errors
    /// `Internal` for scales that are not positive and finite, or of another number.
    pub(super) fn divide(&self, edit: &mut Edit, scales: &[f32]) -> Result<()> {
        sound(scales, self.channels)?;
        for part in &self.parts {
            let old = current(edit, part.node, part.slot)?;
            let new = match &part.held {
                Held::Along(along) => along.scaled(&old, |c| 1.0 / scales[c])?,
                Held::Single(shape) => {
                    let one = old.to_f32s()?.first().copied().unwrap_or(0.0);
                    Tensor::from_vec(shape.clone(), scales.iter().map(|s| one / s).collect())?
                }
            };
            put(edit, part.node, part.slot, new)?;
        }
        Ok(())
    }
}

/// Scales that can be divided and multiplied by, one a channel.
fn sound(scales: &[f32], channels: usize) -> Result<()> {
    if scales.len() != channels || !scales.iter().all(|s| s.is_normal() && *s > 0.0) {
        return Err(Error::internal("FOLD-SCALES", "scales of channels must be positive and finite")
            .found(scales.len())
            .limit(format!("{channels} channels")));
    }
    Ok(())
}

/// The constant that a node of an edit reads now.
fn current(edit: &Edit, node: NodeIndex, slot: usize) -> Result<Tensor> {
    let graph = edit.graph();
    let v = graph.node(node).inputs.get(slot).copied().flatten();
    v.and_then(|v| graph.initializer(v)).cloned().ok_or_else(|| {
        Error::internal("FOLD-CONSTANT", "a constant that holds channels is gone").node(graph.label(node))
    })
}

/// Gives a node another tensor for a constant: in its place where nothing else reads it, else beside it.
fn put(edit: &mut Edit, node: NodeIndex, slot: usize, tensor: Tensor) -> Result<()> {
    let Some(v) = edit.graph().node(node).inputs[slot] else { return Ok(()) };
    let alone = edit.graph().uses().consumers(v).len() == 1 && !edit.graph().outputs().contains(&v);
    if alone {
        edit.set_initializer(v, tensor);
    } else {
        let name = format!("{}_scaled", edit.graph().value_name(v));
        let copy = edit.add_initializer(&name, tensor);
        edit.node_mut(node).inputs[slot] = Some(copy);
    }
    Ok(())
}

fn is_product(node: &Node) -> bool {
    ["Conv", "ConvTranspose", "Gemm", "MatMul"].iter().any(|op| node.is(op))
}

/// A walk from a value up to what holds its channels.
struct Trace<'a> {
    graph: &'a Graph,
    uses: &'a Uses,
    facts: &'a Facts,
    channels: usize,
}

type Found = std::result::Result<Vec<Part>, String>;

impl Trace<'_> {
    fn rank(&self, v: ValueId) -> Option<usize> {
        self.facts.get(v)?.rank()
    }

    /// Whether `v` has all the channels on `axis`.
    fn full(&self, v: ValueId, axis: usize) -> bool {
        let shape = self.facts.get(v).and_then(|f| f.shape.as_deref());
        shape.and_then(|s| s.get(axis)).is_some_and(|d| d.is(self.channels as i64))
    }

    /// A value on the way: nothing else may read it.
    fn inner(&self, v: ValueId, axis: usize) -> Found {
        if self.uses.consumers(v).len() != 1 {
            return Err(format!("\"{}\" has other readers", self.graph.value_name(v)));
        }
        self.parts(v, axis)
    }

    fn parts(&self, v: ValueId, axis: usize) -> Found {
        let name = self.graph.value_name(v);
        if self.graph.outputs().contains(&v) {
            return Err(format!("\"{name}\" is an output of the model"));
        }
        let Some((i, slot)) = self.uses.producer(v) else {
            return Err(format!("\"{name}\" is not computed"));
        };
        let node = self.graph.node(i);
        let label = self.graph.label(i);
        let nothing = || format!("{label} ({}) does not pass scales of channels on", node.operator_name());
        if slot != 0 || !node.bodies.is_empty() {
            return Err(nothing());
        }
        let rank = self.rank(v).ok_or_else(nothing)?;
        let input = |slot: usize| node.inputs.get(slot).copied().flatten();
        let first = input(0).ok_or_else(nothing)?;
        match (canonical_domain(&node.domain), node.op_type.as_str()) {
            ("", "Conv" | "ConvTranspose" | "Gemm" | "MatMul") => self.product(i, axis, rank),
            ("", "BatchNormalization" | "InstanceNormalization") if axis == 1 => self.norm(i, [1, 2]),
            ("", "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization")
                if axis + 1 == rank && self.over_last(node, rank) =>
            {
                self.norm(i, [1, 2])
            }
            ("com.microsoft", "SkipLayerNormalization") if axis + 1 == rank => self.norm(i, [2, 3]),
            // Slot 3 is a bias in front of the norm.
            ("com.microsoft", "SkipSimplifiedLayerNormalization") if axis + 1 == rank => self.norm(i, [2, 2]),
            ("", "Relu" | "LeakyRelu" | "Identity" | "Abs" | "Neg" | "PRelu") => self.inner(first, axis),
            ("", "Dropout") if node.outputs.iter().flatten().count() == 1 => self.inner(first, axis),
            ("", "MaxPool" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool")
                if axis == 1 && node.outputs.iter().flatten().count() == 1 =>
            {
                self.inner(first, axis)
            }
            ("", "Clip") if self.is_relu(node) => self.inner(first, axis),
            ("", "Transpose") => {
                let perm = node.attributes.ints("perm").ok().flatten();
                let from = perm.map_or(Some(rank - 1 - axis), |p| p.get(axis).map(|a| *a as usize));
                self.inner(first, from.ok_or_else(nothing)?)
            }
            ("", "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze") => {
                self.inner(first, self.before_reshape(first, v, axis).ok_or_else(nothing)?)
            }
            ("", "Add" | "Sub") => {
                let second = input(1).ok_or_else(nothing)?;
                let mut parts = self.operand(i, 0, first, axis, rank)?;
                parts.extend(self.operand(i, 1, second, axis, rank)?);
                Ok(parts)
            }
            ("", "Mul") => {
                let second = input(1).ok_or_else(nothing)?;
                self.factor(i, [first, second], axis, rank)
            }
            ("", "Div")
                if self.graph.constant(first).is_none()
                    && self.full(first, self.aligned(first, axis, rank)?) =>
            {
                self.inner(first, self.aligned(first, axis, rank)?)
            }
            ("com.microsoft", "MultiHeadAttention") if axis == 2 && rank == 3 => {
                let values = input(2).ok_or_else(nothing)?;
                let more = (5..node.inputs.len()).any(|slot| input(slot).is_some() && slot != 5)
                    || node.outputs.iter().flatten().count() > 1;
                if input(5).is_some() || more || self.rank(values) != Some(3) || !self.full(values, 2) {
                    return Err(format!("{label} has biases, caches or packed values"));
                }
                self.inner(values, 2)
            }
            _ => Err(nothing()),
        }
    }

    /// The axis of an operand that is broadcast against a value of `rank`.
    fn aligned(&self, v: ValueId, axis: usize, rank: usize) -> std::result::Result<usize, String> {
        let own = self.rank(v);
        own.and_then(|own| (axis + own).checked_sub(rank))
            .ok_or_else(|| format!("\"{}\" is spread over the channels", self.graph.value_name(v)))
    }

    /// An operand that adds to the value.
    fn operand(&self, node: NodeIndex, slot: usize, v: ValueId, axis: usize, rank: usize) -> Found {
        if self.graph.initializer(v).is_some() {
            return self.constant(node, slot, v, axis, rank);
        }
        let axis = self.aligned(v, axis, rank)?;
        if !self.full(v, axis) {
            return Err(format!("\"{}\" is spread over the channels", self.graph.value_name(v)));
        }
        self.inner(v, axis)
    }

    /// A product by element: the channels of one of its factors are those of the result.
    fn factor(&self, node: NodeIndex, operands: [ValueId; 2], axis: usize, rank: usize) -> Found {
        let mut why = String::new();
        let per_channel = |v: ValueId| {
            let shape = self.graph.initializer(v).map(Tensor::shape);
            shape.is_some_and(|s| (axis + s.len()).checked_sub(rank).is_some_and(|a| s[a] == self.channels))
        };
        let rank_of = |v: ValueId| match self.graph.initializer(v) {
            Some(_) if per_channel(v) => 0,
            None => 1,
            Some(_) => 2,
        };
        let mut order = [0, 1];
        order.sort_by_key(|slot| rank_of(operands[*slot]));
        for slot in order {
            match self.operand(node, slot, operands[slot], axis, rank) {
                Ok(parts) => return Ok(parts),
                Err(reason) => why = reason,
            }
        }
        Err(why)
    }

    /// A constant that is broadcast against a value of `rank`.
    fn constant(&self, node: NodeIndex, slot: usize, v: ValueId, axis: usize, rank: usize) -> Found {
        let name = self.graph.value_name(v);
        let tensor = self.float(v)?;
        let shape = tensor.shape();
        let held = match (axis + shape.len()).checked_sub(rank) {
            Some(own) if shape[own] == self.channels => Held::Along(Along::axis(shape, own)),
            _ if tensor.len() == 1 => {
                let mut spread = vec![1; rank - axis];
                spread[0] = self.channels;
                Held::Single(spread)
            }
            _ => return Err(format!("\"{name}\" is spread over the channels")),
        };
        Ok(vec![Part { node, slot, held }])
    }

    fn float(&self, v: ValueId) -> std::result::Result<&Tensor, String> {
        let tensor = self.graph.constant(v).filter(|t| t.dtype() == DType::F32);
        tensor.ok_or_else(|| format!("\"{}\" is no f32 constant", self.graph.value_name(v)))
    }

    fn product(&self, i: NodeIndex, axis: usize, rank: usize) -> Found {
        let node = self.graph.node(i);
        let label = self.graph.label(i);
        let weight = node.inputs.get(1).copied().flatten().ok_or_else(|| format!("{label} has no weight"))?;
        let shape = self.float(weight)?.shape();
        let flag = |name| node.attributes.int(name, 0).unwrap_or(0) != 0;
        let wrong = || format!("the channels of {label} are not those of its weight");
        let along = match node.op_type.as_str() {
            "Conv" if axis == 1 && shape.len() > 2 => Along::axis(shape, 0),
            "ConvTranspose" if axis == 1 && shape.len() > 2 => {
                let group = node.attributes.int("group", 1).unwrap_or(1).max(1) as usize;
                let (n, per) = (shape[1], (shape[0] / group).max(1));
                let channels = (0..shape[0] * n).map(|k| k / n / per * n + k % n).collect();
                Along { inner: shape[2..].iter().product(), channels }
            }
            "Gemm" if axis == 1 && shape.len() == 2 => Along::axis(shape, usize::from(!flag("transB"))),
            "MatMul" if axis + 1 == rank && shape.len() == 2 && rank >= 2 => Along::axis(shape, 1),
            _ => return Err(wrong()),
        };
        if along.inner == 0 || along.channels.iter().max().is_none_or(|m| m + 1 != self.channels) {
            return Err(wrong());
        }
        let mut parts = vec![Part { node: i, slot: 1, held: Held::Along(along) }];
        if let Some(bias) = node.inputs.get(2).copied().flatten() {
            match node.is("Gemm") {
                true => parts.extend(self.constant(i, 2, bias, axis, rank)?),
                false => parts.extend(self.vector(i, 2, bias)?),
            }
        }
        Ok(parts)
    }

    /// A constant of one number a channel.
    fn vector(&self, node: NodeIndex, slot: usize, v: ValueId) -> Found {
        let tensor = self.float(v)?;
        if tensor.shape() != [self.channels] {
            return Err(format!("\"{}\" has not one number a channel", self.graph.value_name(v)));
        }
        Ok(vec![Part { node, slot, held: Held::Along(Along::axis(tensor.shape(), 0)) }])
    }

    /// A norm with its gain and its shift in these slots.
    fn norm(&self, i: NodeIndex, [gain, shift]: [usize; 2]) -> Found {
        let node = self.graph.node(i);
        let trains = node.is("BatchNormalization") && node.outputs.iter().flatten().count() > 1;
        let input = |slot: usize| node.inputs.get(slot).copied().flatten();
        let Some(v) = input(gain).filter(|_| !trains) else {
            return Err(format!("{} has no gain of its own", self.graph.label(i)));
        };
        let mut parts = self.vector(i, gain, v)?;
        if let Some(v) = input(shift).filter(|_| shift != gain) {
            parts.extend(self.vector(i, shift, v)?);
        }
        Ok(parts)
    }

    /// Whether a norm goes over the last axis alone.
    fn over_last(&self, node: &Node, rank: usize) -> bool {
        let axis = node.attributes.int("axis", -1).unwrap_or(0);
        axis == -1 || axis + 1 == rank as i64
    }

    /// Whether a Clip is a Relu: from zero to no end.
    fn is_relu(&self, node: &Node) -> bool {
        let end = |slot: usize, name: &str, absent: f32| -> Option<f32> {
            match node.inputs.get(slot).copied().flatten() {
                Some(v) => self.graph.constant(v)?.to_f32s().ok()?.first().copied(),
                None => node.attributes.float(name, absent).ok(),
            }
        };
        let whole = f32::MAX;
        end(1, "min", -whole) == Some(0.0) && end(2, "max", whole).is_some_and(|max| max >= whole)
    }

    /// The axis of `from` that holds the channels which lie on `axis` of `to`, the same elements in
    /// another shape.
    fn before_reshape(&self, from: ValueId, to: ValueId, axis: usize) -> Option<usize> {
        let behind = |v: ValueId, axis: usize| -> Option<usize> {
            self.facts.get(v)?.shape.as_deref()?.get(axis + 1..)?.iter().map(crate::ops::Dim::size).product()
        };
        let wanted = behind(to, axis)?;
        (0..self.rank(from)?).rev().find(|a| self.full(from, *a) && behind(from, *a) == Some(wanted))
    }
}

#[cfg(test)]
mod tests;
