//! What the weights of each family are called. A role and a layer enter, a name leaves; `{}` stands for the
//! layer. Names are without `.weight` and `.bias`.

/// What a weight does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Role {
    Embedding,
    Positions,
    TokenTypes,
    EmbeddingNorm,
    AttentionNorm,
    Query,
    Key,
    Value,
    /// Query, key and value in one matrix.
    Fused,
    QueryNorm,
    KeyNorm,
    AttentionOut,
    /// Norm of what attention gives, before (decoders) or after (encoders) the residual.
    AttentionOutNorm,
    MlpNorm,
    Gate,
    Up,
    /// Gate and up in one matrix.
    GateUp,
    Down,
    /// Norm of what the MLP gives, before (decoders) or after (encoders) the residual.
    MlpOutNorm,
    FinalNorm,
    Head,
    HeadDense,
    Patches,
    ClassToken,
    /// Factors that divide the rotary frequencies.
    RopeFactors,
}

/// Names of one spelling.
pub(super) type Names = &'static [(Role, &'static str)];

use Role::{
    AttentionNorm, AttentionOut, AttentionOutNorm, ClassToken, Down, Embedding, EmbeddingNorm, FinalNorm,
    Fused, Gate, GateUp, Head, HeadDense, Key, KeyNorm, MlpNorm, MlpOutNorm, Patches, Positions, Query,
    QueryNorm, RopeFactors, TokenTypes, Up, Value,
};

/// Llama, Mistral, Qwen and Phi-3.
pub(super) const LLAMA: Names = &[
    (Embedding, "embed_tokens"),
    (AttentionNorm, "layers.{}.input_layernorm"),
    (Query, "layers.{}.self_attn.q_proj"),
    (Key, "layers.{}.self_attn.k_proj"),
    (Value, "layers.{}.self_attn.v_proj"),
    (Fused, "layers.{}.self_attn.qkv_proj"),
    (QueryNorm, "layers.{}.self_attn.q_norm"),
    (KeyNorm, "layers.{}.self_attn.k_norm"),
    (AttentionOut, "layers.{}.self_attn.o_proj"),
    (MlpNorm, "layers.{}.post_attention_layernorm"),
    (Gate, "layers.{}.mlp.gate_proj"),
    (Up, "layers.{}.mlp.up_proj"),
    (GateUp, "layers.{}.mlp.gate_up_proj"),
    (Down, "layers.{}.mlp.down_proj"),
    (FinalNorm, "norm"),
    (Head, "lm_head"),
];

/// Gemma 2 and 3, which have norms behind attention and MLP too.
pub(super) const GEMMA: Names = &[
    (Embedding, "embed_tokens"),
    (AttentionNorm, "layers.{}.input_layernorm"),
    (Query, "layers.{}.self_attn.q_proj"),
    (Key, "layers.{}.self_attn.k_proj"),
    (Value, "layers.{}.self_attn.v_proj"),
    (QueryNorm, "layers.{}.self_attn.q_norm"),
    (KeyNorm, "layers.{}.self_attn.k_norm"),
    (AttentionOut, "layers.{}.self_attn.o_proj"),
    (AttentionOutNorm, "layers.{}.post_attention_layernorm"),
    (MlpNorm, "layers.{}.pre_feedforward_layernorm"),
    (Gate, "layers.{}.mlp.gate_proj"),
    (Up, "layers.{}.mlp.up_proj"),
    (Down, "layers.{}.mlp.down_proj"),
    (MlpOutNorm, "layers.{}.post_feedforward_layernorm"),
    (FinalNorm, "norm"),
    (Head, "lm_head"),
];

/// GPT-2.
pub(super) const GPT2: Names = &[
    (Embedding, "wte"),
    (Positions, "wpe"),
    (AttentionNorm, "h.{}.ln_1"),
    (Fused, "h.{}.attn.c_attn"),
    (AttentionOut, "h.{}.attn.c_proj"),
    (MlpNorm, "h.{}.ln_2"),
    (Up, "h.{}.mlp.c_fc"),
    (Down, "h.{}.mlp.c_proj"),
    (FinalNorm, "ln_f"),
    (Head, "lm_head"),
];

/// Decoders in GGUF files.
pub(super) const GGUF: Names = &[
    (Embedding, "token_embd"),
    (Positions, "position_embd"),
    (AttentionNorm, "blk.{}.attn_norm"),
    (Query, "blk.{}.attn_q"),
    (Key, "blk.{}.attn_k"),
    (Value, "blk.{}.attn_v"),
    (Fused, "blk.{}.attn_qkv"),
    (QueryNorm, "blk.{}.attn_q_norm"),
    (KeyNorm, "blk.{}.attn_k_norm"),
    (AttentionOut, "blk.{}.attn_output"),
    (AttentionOutNorm, "blk.{}.post_attention_norm"),
    (MlpNorm, "blk.{}.ffn_norm"),
    (Gate, "blk.{}.ffn_gate"),
    (Up, "blk.{}.ffn_up"),
    (GateUp, "blk.{}.ffn_up"),
    (Down, "blk.{}.ffn_down"),
    (MlpOutNorm, "blk.{}.post_ffw_norm"),
    (FinalNorm, "output_norm"),
    (Head, "output"),
    (RopeFactors, "rope_freqs"),
];

/// BERT and RoBERTa.
pub(super) const BERT: Names = &[
    (Embedding, "embeddings.word_embeddings"),
    (Positions, "embeddings.position_embeddings"),
    (TokenTypes, "embeddings.token_type_embeddings"),
    (EmbeddingNorm, "embeddings.LayerNorm"),
    (Query, "encoder.layer.{}.attention.self.query"),
    (Key, "encoder.layer.{}.attention.self.key"),
    (Value, "encoder.layer.{}.attention.self.value"),
    (AttentionOut, "encoder.layer.{}.attention.output.dense"),
    (AttentionOutNorm, "encoder.layer.{}.attention.output.LayerNorm"),
    (Up, "encoder.layer.{}.intermediate.dense"),
    (Down, "encoder.layer.{}.output.dense"),
    (MlpOutNorm, "encoder.layer.{}.output.LayerNorm"),
    (HeadDense, "pooler.dense"),
    (Head, "classifier"),
];

/// RoBERTa has the layers of BERT and a head of its own.
pub(super) const ROBERTA_HEAD: Names = &[(HeadDense, "classifier.dense"), (Head, "classifier.out_proj")];

/// DistilBERT.
pub(super) const DISTILBERT: Names = &[
    (Embedding, "embeddings.word_embeddings"),
    (Positions, "embeddings.position_embeddings"),
    (EmbeddingNorm, "embeddings.LayerNorm"),
    (Query, "transformer.layer.{}.attention.q_lin"),
    (Key, "transformer.layer.{}.attention.k_lin"),
    (Value, "transformer.layer.{}.attention.v_lin"),
    (AttentionOut, "transformer.layer.{}.attention.out_lin"),
    (AttentionOutNorm, "transformer.layer.{}.sa_layer_norm"),
    (Up, "transformer.layer.{}.ffn.lin1"),
    (Down, "transformer.layer.{}.ffn.lin2"),
    (MlpOutNorm, "transformer.layer.{}.output_layer_norm"),
    (HeadDense, "pre_classifier"),
    (Head, "classifier"),
];

/// BERT in GGUF files.
pub(super) const GGUF_BERT: Names = &[
    (Embedding, "token_embd"),
    (Positions, "position_embd"),
    (TokenTypes, "token_types"),
    (EmbeddingNorm, "token_embd_norm"),
    (Query, "blk.{}.attn_q"),
    (Key, "blk.{}.attn_k"),
    (Value, "blk.{}.attn_v"),
    (AttentionOut, "blk.{}.attn_output"),
    (AttentionOutNorm, "blk.{}.attn_output_norm"),
    (Up, "blk.{}.ffn_up"),
    (Down, "blk.{}.ffn_down"),
    (MlpOutNorm, "blk.{}.layer_output_norm"),
];

/// ViT.
pub(super) const VIT: Names = &[
    (ClassToken, "embeddings.cls_token"),
    (Positions, "embeddings.position_embeddings"),
    (Patches, "embeddings.patch_embeddings.projection"),
    (AttentionNorm, "encoder.layer.{}.layernorm_before"),
    (Query, "encoder.layer.{}.attention.attention.query"),
    (Key, "encoder.layer.{}.attention.attention.key"),
    (Value, "encoder.layer.{}.attention.attention.value"),
    (AttentionOut, "encoder.layer.{}.attention.output.dense"),
    (MlpNorm, "encoder.layer.{}.layernorm_after"),
    (Up, "encoder.layer.{}.intermediate.dense"),
    (Down, "encoder.layer.{}.output.dense"),
    (FinalNorm, "layernorm"),
    (HeadDense, "pooler.dense"),
    (Head, "classifier"),
];

/// Weights that stand beside the network and do not take part in it: buffers, masks, heads of pre-training.
pub(super) fn is_beside(name: &str) -> bool {
    const ENDS: [&str; 6] = [
        "rotary_emb.inv_freq",
        ".attn.bias",
        ".attn.masked_bias",
        "position_ids",
        "token_type_ids",
        "rope_freqs.weight",
    ];
    const STARTS: [&str; 6] =
        ["cls.", "lm_head.", "vocab_", "mlm_", "embeddings.mask_token", "vit.embeddings.mask_token"];
    ENDS.iter().any(|e| name.ends_with(e))
        || STARTS.iter().any(|s| name.starts_with(s))
        || name.contains("pooler.")
}
