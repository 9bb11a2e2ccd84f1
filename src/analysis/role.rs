//! What a layer is for, told by its name and operator. A name and an operator enter, a word leaves.

use super::summary::{Layer, Total};

/// Words that are tried on the parts of a name, in this order: the first that fits decides. A norm
/// within an attention block is a norm, a projection within it is attention.
const NAMES: [(&str, &[&str]); 7] = [
    ("norm", &["norm", "layernorm", "ln", "rmsnorm", "bn", "batchnorm", "ln_1", "ln_2", "ln_f"]),
    ("attention", &["attn", "attention", "q_proj", "k_proj", "v_proj", "o_proj", "qkv", "rotary", "rope"]),
    (
        "mlp",
        &[
            "mlp",
            "ffn",
            "feed_forward",
            "feedforward",
            "intermediate",
            "gate_proj",
            "up_proj",
            "down_proj",
            "fc1",
            "fc2",
            "c_fc",
        ],
    ),
    ("head", &["lm_head", "classifier", "qa_outputs", "cls", "head", "pooler", "score"]),
    ("embedding", &["embed", "embedding", "embeddings", "wte", "wpe", "token_embd", "position_embd"]),
    ("conv", &["conv", "conv1", "conv2", "conv3"]),
    // Of BERT and its kin: `layer.0.output.dense`, where `attention.output` was attention already.
    ("mlp", &["layer.output.dense"]),
];

/// The role of a layer or weight. `op` is empty for weights.
pub(super) fn of(name: &str, op: &str) -> &'static str {
    if let Some(role) = certain(op) {
        return role;
    }
    let lower = name.to_ascii_lowercase();
    let parts: Vec<&str> = lower.split(['/', '.', ':']).filter(|p| !p.is_empty()).collect();
    for (role, words) in NAMES {
        if parts.iter().any(|part| words.iter().any(|word| fits(part, word))) {
            return role;
        }
    }
    if let [.., "output", "dense", _] | [.., "output", "dense"] = parts[..] {
        return "mlp";
    }
    // The output projection of a GGUF file.
    if let ["output", "weight" | "bias"] = parts[..] {
        return "head";
    }
    by_operator(op)
}

/// Whether a part of a name is the word, or contains it as a word of its own: `attn_q`, `self_attn`,
/// `input_layernorm`.
fn fits(part: &str, word: &str) -> bool {
    let bounded = |at: usize| {
        let before = part[..at].chars().next_back();
        let after = part[at + word.len()..].chars().next();
        let edge = |c: Option<char>| c.is_none_or(|c| !c.is_ascii_alphanumeric());
        edge(before) && (edge(after) || after.is_some_and(|c| c.is_ascii_digit()))
    };
    part.match_indices(word).any(|(at, _)| bounded(at) || (word == "norm" && part.ends_with("norm")))
}

/// Operators that leave no doubt.
fn certain(op: &str) -> Option<&'static str> {
    let base = op.rsplit(':').next().unwrap_or(op);
    Some(match base {
        "Conv" | "ConvTranspose" | "ConvInteger" | "QLinearConv" => "conv",
        "BatchNormalization"
        | "LayerNormalization"
        | "InstanceNormalization"
        | "GroupNormalization"
        | "RMSNormalization"
        | "SimplifiedLayerNormalization"
        | "SkipLayerNormalization"
        | "SkipSimplifiedLayerNormalization"
        | "LpNormalization"
        | "LRN" => "norm",
        "Attention" | "MultiHeadAttention" | "GroupQueryAttention" | "RotaryEmbedding" => "attention",
        "MaxPool" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool" | "LpPool" | "GlobalLpPool" => {
            "pool"
        }
        "QuantizeLinear" | "DequantizeLinear" | "DynamicQuantizeLinear" => "quantize",
        "LSTM" | "GRU" | "RNN" => "recurrent",
        _ => return None,
    })
}

fn by_operator(op: &str) -> &'static str {
    let base = op.rsplit(':').next().unwrap_or(op);
    match base {
        "MatMul" | "Gemm" | "MatMulInteger" | "MatMulNBits" | "QLinearMatMul" | "Einsum" | "FusedMatMul" => {
            "linear"
        }
        "Relu" | "LeakyRelu" | "PRelu" | "Sigmoid" | "Tanh" | "Gelu" | "FastGelu" | "BiasGelu"
        | "QuickGelu" | "Softmax" | "LogSoftmax" | "HardSwish" | "HardSigmoid" | "Elu" | "Selu" | "Celu"
        | "Erf" | "Clip" | "Softplus" | "Softsign" | "Mish" | "Swish" | "ThresholdedRelu" => "activation",
        "GatherBlockQuantized" => "embedding",
        "Reshape" | "Transpose" | "Shape" | "Gather" | "Slice" | "Concat" | "Split" | "Squeeze"
        | "Unsqueeze" | "Flatten" | "Expand" | "Tile" | "Pad" | "Identity" | "Cast" | "Constant"
        | "ConstantOfShape" | "Range" | "Resize" | "DepthToSpace" | "SpaceToDepth" | "GatherElements"
        | "GatherND" | "Size" => "shape",
        _ => "other",
    }
}

/// Sums of layers by what `kind` says of each, most multiply-accumulates first, then most weights.
pub(super) fn totals<'a>(layers: &'a [Layer], kind: impl Fn(&'a Layer) -> &'a str) -> Vec<Total> {
    let mut sums: std::collections::BTreeMap<&str, Total> = std::collections::BTreeMap::new();
    for layer in layers {
        let key = kind(layer);
        let sum = sums.entry(key).or_insert_with(|| Total { kind: key.to_string(), ..Total::default() });
        sum.layers += 1;
        sum.parameters = sum.parameters.saturating_add(layer.parameters);
        sum.macs = sum.macs.saturating_add(layer.macs.unwrap_or(0));
        sum.weight_bytes = sum.weight_bytes.saturating_add(layer.weight_bytes);
        sum.activation_bytes = sum.activation_bytes.saturating_add(layer.activation_bytes.unwrap_or(0));
    }
    let mut totals: Vec<Total> = sums.into_values().collect();
    totals.sort_by_key(|t| std::cmp::Reverse((t.macs, t.parameters, t.layers)));
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_usual_exporters_tell_their_role() {
        for (name, op, role) in [
            ("/model/layers.0/self_attn/q_proj/MatMul", "MatMul", "attention"),
            ("/model/layers.0/mlp/gate_proj/MatMul", "MatMul", "mlp"),
            ("/model/layers.11/input_layernorm/Mul", "Mul", "norm"),
            ("blk.0.attn_norm.weight", "", "norm"),
            ("blk.0.attn_q.weight", "", "attention"),
            ("blk.17.ffn_down.weight", "", "mlp"),
            ("token_embd.weight", "", "embedding"),
            ("output.weight", "", "head"),
            ("output_norm.weight", "", "norm"),
            ("encoder.layer.0.attention.output.dense.weight", "", "attention"),
            ("encoder.layer.0.attention.output.LayerNorm.weight", "", "norm"),
            ("encoder.layer.0.output.dense.weight", "", "mlp"),
            ("bert.embeddings.word_embeddings.weight", "", "embedding"),
            ("lm_head.weight", "", "head"),
            ("transformer.h.3.ln_1.bias", "", "norm"),
            ("transformer.wte.weight", "", "embedding"),
            ("/stem/conv/Conv", "Conv", "conv"),
            ("head", "Gemm", "head"),
            ("layers.0.attention.heads", "Reshape", "attention"),
            ("n7", "MatMul", "linear"),
            ("n8", "com.microsoft:GroupQueryAttention", "attention"),
            ("relu", "Relu", "activation"),
            ("/normalise/Odd", "my:Odd", "other"),
        ] {
            assert_eq!(of(name, op), role, "{name} {op}");
        }
    }
}
