//! Building blocks: each puts a few nodes into the graph and returns the value that they give. They know
//! roles and shapes, no family.

use super::names::Role;
use super::weights::{Wanted, Weight, Weights};
use crate::error::Result;
use crate::graph::{Edit, Node, Type, ValueId};
use crate::ops::{Attr, Attributes, Dim};
use crate::tensor::{DType, Tensor};
use std::collections::HashMap;

/// Norm of hidden states.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Norm {
    /// Root mean square; `offset` is added to the stored weight.
    Rms { eps: f64, offset: f32 },
    /// Mean and variance.
    Layer { eps: f64 },
}

/// Activation of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    Silu,
    Relu,
    Gelu,
    GeluTanh,
    QuickGelu,
}

impl Activation {
    /// By the name that configurations use.
    pub(super) fn named(name: &str) -> Option<Activation> {
        Some(match name {
            "silu" | "swish" => Activation::Silu,
            "relu" => Activation::Relu,
            "gelu" | "gelu_python" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" => Activation::GeluTanh,
            "quick_gelu" => Activation::QuickGelu,
            _ => return None,
        })
    }
}

/// A graph in the making over the weights of a checkpoint.
pub(super) struct Net<'a> {
    pub(super) edit: Edit,
    pub(super) weights: Weights<'a>,
    constants: HashMap<String, ValueId>,
}

impl<'a> Net<'a> {
    /// An empty graph of operator set 23, whose operators keep attention and norms whole.
    pub(super) fn new(name: &str, weights: Weights<'a>) -> Net<'a> {
        Net { edit: Edit::new(name, &[("", 23)]), weights, constants: HashMap::new() }
    }

    /// A graph input.
    pub(super) fn input(&mut self, name: &str, dtype: DType, shape: &[Dim]) -> ValueId {
        self.edit.add_input(name, Type::Tensor { dtype, shape: Some(shape.to_vec()) })
    }

    /// A value as output of the graph under a name and with a declared shape.
    pub(super) fn output(&mut self, v: ValueId, dtype: DType, shape: &[Dim]) {
        self.edit.set_type(v, Some(Type::Tensor { dtype, shape: Some(shape.to_vec()) }));
        self.edit.add_output(v);
    }

    /// One operator without attributes.
    pub(super) fn op(&mut self, op: &str, inputs: &[ValueId], name: &str) -> ValueId {
        self.edit.add_op(op, inputs, Attributes::new(), name)
    }

    /// One operator.
    pub(super) fn op_with(
        &mut self,
        op: &str,
        inputs: &[ValueId],
        attributes: Attributes,
        name: &str,
    ) -> ValueId {
        self.edit.add_op(op, inputs, attributes, name)
    }

    /// One operator with optional inputs and several outputs.
    pub(super) fn op_many(
        &mut self,
        op: &str,
        inputs: &[Option<ValueId>],
        outputs: &[&str],
        attributes: Attributes,
        name: &str,
    ) -> Vec<ValueId> {
        let outputs: Vec<ValueId> = outputs.iter().map(|o| self.edit.add_value(o, None)).collect();
        let slots = outputs.iter().copied().map(Some).collect();
        self.edit.add_node(Node::new(op, inputs.to_vec(), slots).with(attributes).named(name));
        outputs
    }

    /// A constant integer vector; equal ones are shared.
    pub(super) fn ints(&mut self, values: &[i64]) -> Result<ValueId> {
        let key = format!("ints{values:?}");
        let tensor = Tensor::from_vec(vec![values.len()], values.to_vec())?;
        Ok(self.constant(key, tensor))
    }

    /// A constant integer without axes.
    pub(super) fn int(&mut self, value: i64) -> ValueId {
        self.constant(format!("int.{value}"), Tensor::scalar(value))
    }

    /// A constant number without axes.
    pub(super) fn number(&mut self, value: f32) -> ValueId {
        self.constant(format!("number.{value}"), Tensor::scalar(value))
    }

    fn constant(&mut self, key: String, tensor: Tensor) -> ValueId {
        if let Some(v) = self.constants.get(&key) {
            return *v;
        }
        let name: String = key.chars().map(|c| if c.is_alphanumeric() { c } else { '.' }).collect();
        let v = self.edit.add_initializer(&format!("constant.{}", name.trim_matches('.')), tensor);
        self.constants.insert(key, v);
        v
    }

    /// A weight of the checkpoint; the same one is shared.
    pub(super) fn weight(&mut self, weight: Weight) -> ValueId {
        let key = format!("weight {} {:?}", weight.name, weight.tensor.shape());
        if let Some(v) = self.constants.get(&key) {
            return *v;
        }
        let v = self.edit.add_initializer(&weight.name, weight.tensor);
        self.constants.insert(key, v);
        v
    }

    /// `x · W + b` over the last axis.
    pub(super) fn linear(&mut self, x: ValueId, wanted: Wanted, name: &str) -> Result<ValueId> {
        let linear = self.weights.linear(wanted)?;
        let matrix = self.weight(linear.matrix);
        let product = match linear.bias {
            None => return Ok(self.op("MatMul", &[x, matrix], name)),
            Some(_) => self.op("MatMul", &[x, matrix], &format!("{name}.product")),
        };
        let bias = linear.bias.map(|b| self.weight(b));
        Ok(bias.map_or(product, |b| self.op("Add", &[product, b], name)))
    }

    /// The norm of a role over the last axis.
    pub(super) fn norm(
        &mut self,
        x: ValueId,
        norm: Norm,
        role: Role,
        layer: usize,
        size: usize,
        name: &str,
    ) -> Result<ValueId> {
        let mut weight = self.weights.need(role, layer, ".weight", &[size])?;
        match norm {
            Norm::Rms { eps, offset } => {
                if offset != 0.0 {
                    let shifted: Vec<f32> = weight.tensor.to_f32s()?.iter().map(|w| w + offset).collect();
                    weight.tensor = Tensor::from_vec(vec![size], shifted)?;
                }
                let scale = self.weight(weight);
                let attributes =
                    Attributes::new().with("axis", Attr::Int(-1)).with("epsilon", Attr::Float(eps as f32));
                Ok(self.op_with("RMSNormalization", &[x, scale], attributes, name))
            }
            Norm::Layer { eps } => {
                let scale = self.weight(weight);
                let bias = self.weights.find(role, layer, ".bias", &[size])?.map(|b| self.weight(b));
                let attributes =
                    Attributes::new().with("axis", Attr::Int(-1)).with("epsilon", Attr::Float(eps as f32));
                let inputs: Vec<ValueId> = [Some(x), Some(scale), bias].into_iter().flatten().collect();
                Ok(self.op_with("LayerNormalization", &inputs, attributes, name))
            }
        }
    }

    /// An activation.
    pub(super) fn activation(&mut self, x: ValueId, activation: Activation, name: &str) -> ValueId {
        let gelu = |kind: &str| Attributes::new().with("approximate", Attr::Str(kind.as_bytes().to_vec()));
        match activation {
            Activation::Relu => self.op("Relu", &[x], name),
            Activation::Gelu => self.op_with("Gelu", &[x], gelu("none"), name),
            Activation::GeluTanh => self.op_with("Gelu", &[x], gelu("tanh"), name),
            Activation::Silu => {
                let gate = self.op("Sigmoid", &[x], &format!("{name}.sigmoid"));
                self.op("Mul", &[x, gate], name)
            }
            Activation::QuickGelu => {
                let factor = self.number(1.702);
                let scaled = self.op("Mul", &[x, factor], &format!("{name}.scaled"));
                let gate = self.op("Sigmoid", &[scaled], &format!("{name}.sigmoid"));
                self.op("Mul", &[x, gate], name)
            }
        }
    }

    /// `[batch, seq, heads * size]` as `[batch, heads, seq, size]`.
    pub(super) fn split_heads(
        &mut self,
        x: ValueId,
        heads: usize,
        size: usize,
        name: &str,
    ) -> Result<ValueId> {
        let y = self.in_heads(x, heads, size, name)?;
        Ok(self.heads_first(y, name))
    }

    /// `[batch, seq, heads * size]` as `[batch, seq, heads, size]`.
    fn in_heads(&mut self, x: ValueId, heads: usize, size: usize, name: &str) -> Result<ValueId> {
        let shape = self.ints(&[0, 0, heads as i64, size as i64])?;
        Ok(self.op("Reshape", &[x, shape], &format!("{name}.heads")))
    }

    /// `[batch, seq, heads, size]` as `[batch, heads, seq, size]`, or back.
    fn heads_first(&mut self, x: ValueId, name: &str) -> ValueId {
        let perm = Attributes::new().with("perm", Attr::Ints(vec![0, 2, 1, 3]));
        self.op_with("Transpose", &[x], perm, &format!("{name}.transposed"))
    }

    /// The way back from [`Net::split_heads`].
    pub(super) fn join_heads(&mut self, x: ValueId, width: usize, name: &str) -> Result<ValueId> {
        let y = self.heads_first(x, name);
        let shape = self.ints(&[0, 0, width as i64])?;
        Ok(self.op("Reshape", &[y, shape], &format!("{name}.joined")))
    }

    /// `x[.., :]` looked up in the table of a role.
    pub(super) fn lookup(
        &mut self,
        ids: ValueId,
        role: Role,
        shape: &[usize],
        name: &str,
    ) -> Result<ValueId> {
        let table = self.weights.need(role, 0, ".weight", shape)?;
        let table = self.weight(table);
        Ok(self.op("Gather", &[table, ids], name))
    }

    /// Size of one axis of a value, without axes.
    pub(super) fn size_of(&mut self, x: ValueId, axis: i64, name: &str) -> ValueId {
        let shape = self.op("Shape", &[x], &format!("{name}.shape"));
        let axis = self.int(axis);
        self.op("Gather", &[shape, axis], name)
    }
}
