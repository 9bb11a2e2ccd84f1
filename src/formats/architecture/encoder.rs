//! Encoders of the BERT kind: sizes enter as an [`Encoder`], a graph leaves. Norms stand behind the
//! residuals.

use super::mask;
use super::names::Role;
use super::net::{Activation, Net, Norm};
use super::weights::Wanted;
use crate::error::Result;
use crate::graph::ValueId;
use crate::ops::{Attr, Attributes, Dim};
use crate::tensor::DType;

/// How the hidden states of a sentence become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pooling {
    /// The first token; else the mean of the real ones.
    pub(super) cls: bool,
    /// Scaled to length 1.
    pub(super) normalize: bool,
}

/// Classifier on the first token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// None.
    None,
    /// A dense layer with tanh or relu, then the scores.
    Classifier {
        /// Number of classes.
        classes: usize,
        /// Activation of the dense layer: tanh, else relu.
        tanh: bool,
    },
}

/// A bidirectional encoder.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Encoder {
    pub(super) vocabulary: usize,
    pub(super) width: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) mlp_width: usize,
    /// Rows of the table of positions.
    pub(super) positions: usize,
    /// Positions count real tokens from this number on, padding stands before it (RoBERTa); else they count
    /// from zero.
    pub(super) position_offset: Option<usize>,
    pub(super) token_types: Option<usize>,
    pub(super) eps: f64,
    pub(super) activation: Activation,
    pub(super) pooling: Option<Pooling>,
    pub(super) head: Head,
}

impl Encoder {
    /// Most tokens that fit into the table of positions.
    pub(super) fn context(&self) -> usize {
        self.positions.saturating_sub(self.position_offset.map_or(0, |p| p + 1))
    }

    fn norm(&self) -> Norm {
        Norm::Layer { eps: self.eps }
    }

    /// Puts the whole model into `net`.
    pub(super) fn build(&self, net: &mut Net<'_>) -> Result<()> {
        let (batch, seq) = (Dim::symbol("batch"), Dim::symbol("seq"));
        let tokens = [batch.clone(), seq.clone()];
        let ids = net.input("input_ids", DType::I64, &tokens);
        let attention_mask = net.input("attention_mask", DType::I64, &tokens);
        // One type for all tokens needs no input.
        let types = match self.token_types {
            Some(n) if n > 1 => Some(net.input("token_type_ids", DType::I64, &tokens)),
            _ => None,
        };
        let padding = mask::padding(net, attention_mask)?;
        let mut x = self.embed(net, ids, attention_mask, types)?;
        for i in 0..self.layers {
            x = self.layer(net, x, i, padding)?;
        }
        let hidden = net.op("Identity", &[x], "last_hidden_state");
        net.output(hidden, DType::F32, &[batch.clone(), seq, self.width.into()]);
        if let Head::Classifier { classes, tanh } = self.head {
            let first = first_token(net, x, "head.first")?;
            let h =
                net.linear(first, Wanted::new(Role::HeadDense, 0, (self.width, self.width)), "head.dense")?;
            let h = net.op(if tanh { "Tanh" } else { "Relu" }, &[h], "head.activation");
            let logits = net.linear(h, Wanted::new(Role::Head, 0, (self.width, classes)), "logits")?;
            net.output(logits, DType::F32, &[batch.clone(), classes.into()]);
        }
        if let Some(pooling) = self.pooling {
            let v = pool(net, x, attention_mask, pooling)?;
            net.output(v, DType::F32, &[batch, self.width.into()]);
        }
        Ok(())
    }

    fn embed(
        &self,
        net: &mut Net<'_>,
        ids: ValueId,
        attention_mask: ValueId,
        types: Option<ValueId>,
    ) -> Result<ValueId> {
        let words = net.lookup(ids, Role::Embedding, &[self.vocabulary, self.width], "embedding")?;
        let positions = self.positions(net, ids, attention_mask)?;
        let table = [self.positions, self.width];
        let places = net.lookup(positions, Role::Positions, &table, "embedding.positions")?;
        let mut x = net.op("Add", &[words, places], "embedding.placed");
        if let Some(n) = self.token_types {
            let types = match types {
                Some(types) => types,
                None => net.ints(&[0])?,
            };
            let kinds = net.lookup(types, Role::TokenTypes, &[n, self.width], "embedding.types")?;
            x = net.op("Add", &[x, kinds], "embedding.sum");
        }
        net.norm(x, self.norm(), Role::EmbeddingNorm, 0, self.width, "embedding_norm")
    }

    fn positions(&self, net: &mut Net<'_>, ids: ValueId, attention_mask: ValueId) -> Result<ValueId> {
        let one = net.int(1);
        match self.position_offset {
            None => {
                let (zero, seq) = (net.int(0), net.size_of(ids, 1, "sizes.seq"));
                Ok(net.op("Range", &[zero, seq, one], mask::POSITIONS))
            }
            Some(padding) => {
                let counted = net.op("CumSum", &[attention_mask, one], "positions.counted");
                let real = net.op("Mul", &[counted, attention_mask], "positions.real");
                let padding = net.int(padding as i64);
                Ok(net.op("Add", &[real, padding], mask::POSITIONS))
            }
        }
    }

    fn layer(&self, net: &mut Net<'_>, x: ValueId, i: usize, padding: ValueId) -> Result<ValueId> {
        let at = |part: &str| format!("layers.{i}.{part}");
        let h = attention(net, x, i, self.width, self.heads, Some(padding))?;
        let x = net.op("Add", &[h, x], &at("attention_residual"));
        let x = net.norm(x, self.norm(), Role::AttentionOutNorm, i, self.width, &at("attention_out_norm"))?;
        let h = mlp(net, x, i, (self.width, self.mlp_width), self.activation)?;
        let x = net.op("Add", &[h, x], &at("mlp_residual"));
        net.norm(x, self.norm(), Role::MlpOutNorm, i, self.width, &at("mlp_out_norm"))
    }
}

/// Attention of all tokens to all, projections included.
pub(super) fn attention(
    net: &mut Net<'_>,
    x: ValueId,
    i: usize,
    width: usize,
    heads: usize,
    mask: Option<ValueId>,
) -> Result<ValueId> {
    let at = |part: &str| format!("layers.{i}.attention{part}");
    let size = width / heads;
    let mut project = |role, part: &str| -> Result<ValueId> {
        let y = net.linear(x, Wanted::new(role, i, (width, width)), &at(part))?;
        net.split_heads(y, heads, size, &at(part))
    };
    let (q, k, v) = (project(Role::Query, ".q")?, project(Role::Key, ".k")?, project(Role::Value, ".v")?);
    let scale = Attributes::new().with("scale", Attr::Float((size as f64).powf(-0.5) as f32));
    let made = net.op_many("Attention", &[Some(q), Some(k), Some(v), mask], &[&at("")], scale, &at(""));
    let y = net.join_heads(made[0], width, &at(".out"))?;
    net.linear(y, Wanted::new(Role::AttentionOut, i, (width, width)), &at(".out"))
}

/// Two linear maps with an activation between.
pub(super) fn mlp(
    net: &mut Net<'_>,
    x: ValueId,
    i: usize,
    (width, inner): (usize, usize),
    activation: Activation,
) -> Result<ValueId> {
    let at = |part: &str| format!("layers.{i}.mlp.{part}");
    let h = net.linear(x, Wanted::new(Role::Up, i, (width, inner)), &at("up"))?;
    let h = net.activation(h, activation, &at("activation"));
    net.linear(h, Wanted::new(Role::Down, i, (inner, width)), &at("down"))
}

/// `x[:, 0, :]`.
pub(super) fn first_token(net: &mut Net<'_>, x: ValueId, name: &str) -> Result<ValueId> {
    let zero = net.int(0);
    Ok(net.op_with("Gather", &[x, zero], Attributes::new().with("axis", Attr::Int(1)), name))
}

/// One vector a sentence, as sentence-transformers defines it: `sentence_embedding`.
fn pool(net: &mut Net<'_>, x: ValueId, attention_mask: ValueId, pooling: Pooling) -> Result<ValueId> {
    let name = if pooling.normalize { "pooling.vector" } else { "sentence_embedding" };
    let v = if pooling.cls {
        first_token(net, x, name)?
    } else {
        let to = Attributes::new().with("to", Attr::Int(i64::from(DType::F32.onnx())));
        let real = net.op_with("Cast", &[attention_mask], to, "pooling.real");
        let (last, middle) = (net.ints(&[-1])?, net.ints(&[1])?);
        let real = net.op("Unsqueeze", &[real, last], "pooling.weights");
        let kept = net.op("Mul", &[x, real], "pooling.kept");
        let flat = Attributes::new().with("keepdims", Attr::Int(0));
        let sum = net.op_with("ReduceSum", &[kept, middle], flat.clone(), "pooling.sum");
        let count = net.op_with("ReduceSum", &[real, middle], flat, "pooling.count");
        let least = net.number(1e-9);
        let count = net.op("Max", &[count, least], "pooling.at_least");
        net.op("Div", &[sum, count], name)
    };
    if !pooling.normalize {
        return Ok(v);
    }
    let last = net.ints(&[-1])?;
    let length = net.op("ReduceL2", &[v, last], "pooling.length");
    let least = net.number(1e-12);
    let length = net.op("Max", &[length, least], "pooling.safe_length");
    Ok(net.op("Div", &[v, length], "sentence_embedding"))
}
