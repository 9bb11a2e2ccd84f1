//! Causal decoders: sizes and switches enter as a [`Decoder`], a graph with optional past leaves. The
//! families differ by values of this type and by the names of their weights, nothing else.

use super::mask::{self, Causal};
use super::names::Role;
use super::net::{Activation, Net, Norm};
use super::rope::Rope;
use super::weights::Wanted;
use crate::error::Result;
use crate::graph::ValueId;
use crate::graph::constants::TABLES;
use crate::ops::{Attr, Attributes, Dim};
use crate::tensor::DType;

/// A causal language model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Decoder {
    pub(super) vocabulary: usize,
    pub(super) width: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_size: usize,
    pub(super) mlp_width: usize,
    /// Positions that the graph serves.
    pub(super) context: usize,
    /// Positions in the table of learned positions.
    pub(super) learned_positions: Option<usize>,
    pub(super) norm: Norm,
    pub(super) activation: Activation,
    pub(super) gated: bool,
    /// Rotary embedding, and that of windowed layers where it differs.
    pub(super) rope: Option<Rope>,
    pub(super) window_rope: Option<Rope>,
    /// Window of each layer, in tokens.
    pub(super) windows: Vec<Option<usize>>,
    /// Factor of attention scores.
    pub(super) scale: f64,
    pub(super) attention_cap: Option<f64>,
    pub(super) logit_cap: Option<f64>,
    /// Factor of embeddings.
    pub(super) embedding_scale: Option<f64>,
    pub(super) tied: bool,
    pub(super) query_key_norm: bool,
    /// Norms behind attention and MLP, before the residual.
    pub(super) out_norms: bool,
    /// Rows of queries and keys are stored for interleaved rotation.
    pub(super) permuted: bool,
}

/// Tables and masks that layers share.
struct Shared {
    masks: Vec<(Option<usize>, ValueId)>,
    /// (windowed, cosines, sines)
    tables: Vec<(bool, ValueId, ValueId)>,
    positions: ValueId,
}

impl Decoder {
    fn batch() -> Dim {
        Dim::symbol("batch")
    }

    fn cache_shape(&self, length: &Dim) -> [Dim; 4] {
        [Self::batch(), self.kv_heads.into(), length.clone(), self.head_size.into()]
    }

    /// Puts the whole model into `net`.
    pub(super) fn build(&self, net: &mut Net<'_>) -> Result<()> {
        let (batch, seq, past) = (Self::batch(), Dim::symbol("seq"), Dim::symbol("past"));
        let total = past.clone() + seq.clone();
        let ids = net.input("input_ids", DType::I64, &[batch.clone(), seq.clone()]);
        let attention_mask = net.input("attention_mask", DType::I64, &[batch.clone(), total.clone()]);
        let caches: Vec<(ValueId, ValueId)> = (0..self.layers)
            .map(|i| {
                let shape = self.cache_shape(&past);
                let key = net.input(&format!("past_key_values.{i}.key"), DType::F32, &shape);
                (key, net.input(&format!("past_key_values.{i}.value"), DType::F32, &shape))
            })
            .collect();
        let causal = mask::causal(net, ids, attention_mask)?;
        let shared = self.shared(net, &causal)?;
        let mut x = self.embed(net, ids, causal.positions)?;
        let mut presents = Vec::new();
        for (i, cache) in caches.iter().enumerate() {
            let (next, key, value) = self.layer(net, x, i, *cache, &shared)?;
            x = next;
            presents.extend([key, value]);
        }
        let x = net.norm(x, self.norm, Role::FinalNorm, 0, self.width, "final_norm")?;
        let logits = self.head(net, x, ids)?;
        net.output(logits, DType::F32, &[batch, seq, self.vocabulary.into()]);
        for present in presents {
            net.output(present, DType::F32, &self.cache_shape(&total));
        }
        Ok(())
    }

    fn shared(&self, net: &mut Net<'_>, causal: &Causal) -> Result<Shared> {
        let mut masks: Vec<(Option<usize>, ValueId)> = Vec::new();
        for window in &self.windows {
            if masks.iter().all(|(w, _)| w != window) {
                let mask = match window {
                    None => causal.full(net),
                    Some(width) => causal.window(net, *width),
                };
                masks.push((*window, mask));
            }
        }
        let mut tables = Vec::new();
        for (windowed, rope) in [(false, &self.rope), (true, &self.window_rope)] {
            if let Some(rope) = rope {
                let (cos, sin) = rope.tables(self.context)?;
                let kind = if windowed { "rope.window" } else { "rope" };
                let cos = net.edit.add_initializer(&format!("{kind}.cos"), cos);
                let sin = net.edit.add_initializer(&format!("{kind}.sin"), sin);
                tables.push((windowed, cos, sin));
            }
        }
        let listed: Vec<&str> =
            tables.iter().flat_map(|t| [t.1, t.2]).map(|v| net.edit.graph().value_name(v)).collect();
        let listed = listed.join(" ");
        if !listed.is_empty() {
            net.edit.set_metadata(TABLES, &listed);
        }
        Ok(Shared { masks, tables, positions: causal.positions })
    }

    fn embed(&self, net: &mut Net<'_>, ids: ValueId, positions: ValueId) -> Result<ValueId> {
        let mut x = net.lookup(ids, Role::Embedding, &[self.vocabulary, self.width], "embedding")?;
        if let Some(scale) = self.embedding_scale {
            let scale = net.number(scale as f32);
            x = net.op("Mul", &[x, scale], "embedding.scaled");
        }
        if let Some(n) = self.learned_positions {
            let p = net.lookup(positions, Role::Positions, &[n, self.width], "embedding.positions")?;
            x = net.op("Add", &[x, p], "embedding.sum");
        }
        Ok(x)
    }

    fn layer(
        &self,
        net: &mut Net<'_>,
        x: ValueId,
        i: usize,
        cache: (ValueId, ValueId),
        shared: &Shared,
    ) -> Result<(ValueId, ValueId, ValueId)> {
        let at = |part: &str| format!("layers.{i}.{part}");
        let h = net.norm(x, self.norm, Role::AttentionNorm, i, self.width, &at("attention_norm"))?;
        let (mut h, key, value) = self.attention(net, h, i, cache, shared)?;
        if self.out_norms {
            h = net.norm(h, self.norm, Role::AttentionOutNorm, i, self.width, &at("attention_out_norm"))?;
        }
        let x = net.op("Add", &[x, h], &at("attention_residual"));
        let h = net.norm(x, self.norm, Role::MlpNorm, i, self.width, &at("mlp_norm"))?;
        let mut h = self.mlp(net, h, i)?;
        if self.out_norms {
            h = net.norm(h, self.norm, Role::MlpOutNorm, i, self.width, &at("mlp_out_norm"))?;
        }
        Ok((net.op("Add", &[x, h], &at("mlp_residual")), key, value))
    }

    fn attention(
        &self,
        net: &mut Net<'_>,
        x: ValueId,
        i: usize,
        (past_key, past_value): (ValueId, ValueId),
        shared: &Shared,
    ) -> Result<(ValueId, ValueId, ValueId)> {
        let at = |part: &str| format!("layers.{i}.attention{part}");
        let (queries, keys) = (self.heads * self.head_size, self.kv_heads * self.head_size);
        let all = queries + 2 * keys;
        let w = self.width;
        let wanted =
            |role, outputs, offset| Wanted::new(role, i, (w, outputs)).part_of(Role::Fused, offset, all);
        let heads = |wanted: Wanted, n| wanted.permuted(self.permuted, n, self.head_size);
        let q = net.linear(x, heads(wanted(Role::Query, queries, 0), self.heads), &at(".q"))?;
        let k = net.linear(x, heads(wanted(Role::Key, keys, queries), self.kv_heads), &at(".k"))?;
        let v = net.linear(x, wanted(Role::Value, keys, queries + keys), &at(".v"))?;
        let mut q = net.split_heads(q, self.heads, self.head_size, &at(".q"))?;
        let mut k = net.split_heads(k, self.kv_heads, self.head_size, &at(".k"))?;
        let v = net.split_heads(v, self.kv_heads, self.head_size, &at(".v"))?;
        if self.query_key_norm {
            q = net.norm(q, self.norm, Role::QueryNorm, i, self.head_size, &at(".q_norm"))?;
            k = net.norm(k, self.norm, Role::KeyNorm, i, self.head_size, &at(".k_norm"))?;
        }
        let window = self.windows.get(i).copied().flatten();
        let table = shared
            .tables
            .iter()
            .find(|t| t.0 == window.is_some())
            .or_else(|| shared.tables.iter().find(|t| !t.0));
        if let (Some((_, cos, sin)), Some(rope)) = (table, &self.rope) {
            let mut attributes = Attributes::new();
            if rope.dims != self.head_size {
                attributes.set("rotary_embedding_dim", Attr::Int(rope.dims as i64));
            }
            let mut rotate = |x, name: &str| {
                net.op_with("RotaryEmbedding", &[x, *cos, *sin, shared.positions], attributes.clone(), name)
            };
            q = rotate(q, &at(".rope_q"));
            k = rotate(k, &at(".rope_k"));
        }
        let mask = shared.masks.iter().find(|(w, _)| *w == window).map(|(_, m)| *m);
        let mut attributes = Attributes::new().with("scale", Attr::Float(self.scale as f32));
        if let Some(cap) = self.attention_cap {
            attributes.set("softcap", Attr::Float(cap as f32));
        }
        let present = [format!("present.{i}.key"), format!("present.{i}.value")];
        let outputs = [at(""), present[0].clone(), present[1].clone()];
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let made = net.op_many(
            "Attention",
            &[Some(q), Some(k), Some(v), mask, Some(past_key), Some(past_value)],
            &outputs,
            attributes,
            &at(""),
        );
        let y = net.join_heads(made[0], queries, &at(".out"))?;
        let y = net.linear(y, Wanted::new(Role::AttentionOut, i, (queries, w)), &at(".out"))?;
        Ok((y, made[1], made[2]))
    }

    fn mlp(&self, net: &mut Net<'_>, x: ValueId, i: usize) -> Result<ValueId> {
        let at = |part: &str| format!("layers.{i}.mlp.{part}");
        let (w, m) = (self.width, self.mlp_width);
        let h = if self.gated {
            let wanted = |role, offset| Wanted::new(role, i, (w, m)).part_of(Role::GateUp, offset, 2 * m);
            let gate = net.linear(x, wanted(Role::Gate, 0), &at("gate"))?;
            let up = net.linear(x, wanted(Role::Up, m), &at("up"))?;
            let gate = net.activation(gate, self.activation, &at("activation"));
            net.op("Mul", &[gate, up], &at("gated"))
        } else {
            let up = net.linear(x, Wanted::new(Role::Up, i, (w, m)), &at("up"))?;
            net.activation(up, self.activation, &at("activation"))
        };
        net.linear(h, Wanted::new(Role::Down, i, (m, w)), &at("down"))
    }

    /// Logits; where the matrix is the embedding table, it is read as it lies, never transposed.
    fn head(&self, net: &mut Net<'_>, x: ValueId, ids: ValueId) -> Result<ValueId> {
        let capped = self.logit_cap.is_some();
        let name = if capped { "head.raw" } else { "logits" };
        let mut y = if self.tied {
            net.weights.skip(Role::Head);
            let table = net.weights.need(Role::Embedding, 0, ".weight", &[self.vocabulary, self.width])?;
            let table = net.weight(table);
            let rows = net.ints(&[-1, self.width as i64])?;
            let flat = net.op("Reshape", &[x, rows], "head.rows");
            let attributes = Attributes::new().with("transB", Attr::Int(1));
            let product = net.op_with("Gemm", &[flat, table], attributes, "head");
            let shape = net.op("Shape", &[ids], "head.shape");
            let width = net.ints(&[self.vocabulary as i64])?;
            let axis = Attributes::new().with("axis", Attr::Int(0));
            let shape = net.op_with("Concat", &[shape, width], axis, "head.full_shape");
            net.op("Reshape", &[product, shape], name)
        } else {
            net.linear(x, Wanted::new(Role::Head, 0, (self.width, self.vocabulary)), name)?
        };
        if let Some(cap) = self.logit_cap {
            let cap = net.number(cap as f32);
            let small = net.op("Div", &[y, cap], "head.scaled");
            let bent = net.op("Tanh", &[small], "head.tanh");
            y = net.op("Mul", &[bent, cap], "logits");
        }
        Ok(y)
    }
}
