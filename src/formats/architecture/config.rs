//! `config.json`: a family and its fields enter, a [`Decoder`], [`Encoder`] or [`Vision`] leaves.

use super::decoder::Decoder;
use super::encoder::{Encoder, Head, Pooling};
use super::families::{Family, Windows};
use super::fields::Fields;
use super::net::{Activation, Norm};
use super::rope::{self, Rope};
use super::vision::Vision;
use super::weights::Weights;
use crate::error::Result;

/// Reads the sizes and switches of a decoder. `context` caps the number of positions.
pub(super) fn decoder(
    fields: &Fields<'_>,
    family: &Family,
    weights: &Weights<'_>,
    context: Option<usize>,
) -> Result<Decoder> {
    let width = fields.need_count(&["hidden_size", "n_embd"])?;
    let layers = fields.need_count(&["num_hidden_layers", "n_layer"])?;
    let layers = weights.holds_layers(layers, "num_hidden_layers")?;
    let heads = fields.need_count(&["num_attention_heads", "n_head"])?;
    let kv_heads = fields.count("num_key_value_heads")?.unwrap_or(heads);
    if heads % kv_heads != 0 {
        return Err(fields.unsupported("num_key_value_heads", kv_heads, &format!("a divisor of {heads}")));
    }
    let head_size = match fields.count("head_dim")? {
        Some(n) => n,
        None if width % heads == 0 => width / heads,
        None => {
            return Err(fields.unsupported("num_attention_heads", heads, &format!("a divisor of {width}")));
        }
    };
    let trained = fields.need_count(&["max_position_embeddings", "n_positions"])?;
    let context = context_of(fields, trained, context)?;
    let norm = norm_of(fields, family)?;
    let activation = match fields
        .text("hidden_activation")?
        .or(fields.text("hidden_act")?)
        .or(fields.text("activation_function")?)
    {
        None => family.activation,
        // Gemma's older configurations say "gelu" and mean the tanh form, which the network was trained with.
        Some("gelu") if family.scaled_embedding => Activation::GeluTanh,
        Some(name) => Activation::named(name).ok_or_else(|| {
            fields.unsupported(
                "hidden_act",
                name,
                "silu, gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, relu",
            )
        })?,
    };
    let windows = windows_of(fields, family, layers)?;
    let (rope, window_rope) = match family.rotary {
        true => ropes(fields, family, head_size, context, trained)?,
        false => (None, None),
    };
    let scale = match fields.positive("query_pre_attn_scalar")? {
        Some(scalar) => scalar.powf(-0.5),
        None => (head_size as f64).powf(-0.5),
    };
    for (key, wanted) in [("scale_attn_weights", true), ("scale_attn_by_inverse_layer_idx", false)] {
        if fields.flag(key)?.is_some_and(|v| v != wanted) {
            return Err(fields.unsupported(key, !wanted, if wanted { "true" } else { "false" }));
        }
    }
    let cap = |key: &str, default: Option<f64>| -> Result<Option<f64>> {
        Ok(if fields.has(key) { fields.positive(key)? } else { default.filter(|_| !fields.names(key)) })
    };
    Ok(Decoder {
        vocabulary: fields.need_count(&["vocab_size"])?,
        width,
        layers,
        heads,
        kv_heads,
        head_size,
        mlp_width: match fields.count("intermediate_size")?.or(fields.count("n_inner")?) {
            Some(n) => n,
            None if !family.rotary => 4 * width,
            None => return Err(fields.missing("intermediate_size")),
        },
        context,
        learned_positions: (!family.rotary).then_some(trained),
        norm,
        activation,
        gated: family.gated,
        rope,
        window_rope,
        windows,
        scale,
        attention_cap: cap("attn_logit_softcapping", family.caps.map(|c| c.0))?,
        logit_cap: cap("final_logit_softcapping", family.caps.map(|c| c.1))?,
        embedding_scale: family.scaled_embedding.then_some((width as f64).sqrt()),
        tied: fields.flag("tie_word_embeddings")?.unwrap_or(family.tied),
        query_key_norm: family.query_key_norm,
        out_norms: family.out_norms,
        permuted: false,
    })
}

/// Positions of the graph: as trained, or fewer. Models whose frequencies change beyond their first context
/// serve that one unless more is asked for.
fn context_of(fields: &Fields<'_>, trained: usize, asked: Option<usize>) -> Result<usize> {
    let section = fields.section("rope_scaling")?.or(fields.section("rope_parameters")?);
    let original = match &section {
        Some(s) => s
            .count("original_max_position_embeddings")?
            .or(fields.count("original_max_position_embeddings")?)
            .filter(|_| s.has("short_factor")),
        None => None,
    };
    Ok(asked.unwrap_or(original.unwrap_or(trained)).min(trained))
}

fn norm_of(fields: &Fields<'_>, family: &Family) -> Result<Norm> {
    let key = if family.rms { "rms_norm_eps" } else { "layer_norm_epsilon" };
    let eps = fields.positive(key)?.unwrap_or(family.eps);
    Ok(match family.rms {
        true => Norm::Rms { eps, offset: family.norm_offset },
        false => Norm::Layer { eps },
    })
}

fn windows_of(fields: &Fields<'_>, family: &Family, layers: usize) -> Result<Vec<Option<usize>>> {
    let width = fields.count("sliding_window")?;
    let Some(width) = width else { return Ok(vec![None; layers]) };
    if let Some(types) = fields.texts("layer_types")? {
        if types.len() != layers {
            return Err(fields.unsupported("layer_types", types.len(), &format!("{layers} entries")));
        }
        return types
            .iter()
            .map(|t| match *t {
                "full_attention" => Ok(None),
                "sliding_attention" => Ok(Some(width)),
                other => Err(fields.unsupported("layer_types", other, "full_attention, sliding_attention")),
            })
            .collect();
    }
    let windowed: Box<dyn Fn(usize) -> bool> = match family.windows {
        Windows::Never => Box::new(|_| false),
        Windows::All => Box::new(|_| true),
        Windows::AllBut(n) => {
            let n = fields.count("sliding_window_pattern")?.unwrap_or(n);
            Box::new(move |i| (i + 1) % n != 0)
        }
        Windows::Switched => {
            let on = fields.flag("use_sliding_window")?.unwrap_or(false);
            let from = fields.number("max_window_layers")?.unwrap_or(0.0).max(0.0) as usize;
            Box::new(move |i| on && i >= from)
        }
    };
    Ok((0..layers).map(|i| windowed(i).then_some(width)).collect())
}

fn ropes(
    fields: &Fields<'_>,
    family: &Family,
    head_size: usize,
    context: usize,
    trained: usize,
) -> Result<(Option<Rope>, Option<Rope>)> {
    let parameters = fields.section("rope_parameters")?;
    let inner = |key: &str| parameters.as_ref().map_or(Ok(None), |p| p.section(key));
    let (full, sliding) = (inner("full_attention")?, inner("sliding_attention")?);
    let scaling = fields.section("rope_scaling")?;
    let section = full.or(scaling).or(parameters);
    let part = match &section {
        Some(s) => s.positive("partial_rotary_factor")?,
        None => None,
    };
    let part = part.or(fields.positive("partial_rotary_factor")?).unwrap_or(1.0);
    let dims = (head_size as f64 * part) as usize;
    if dims == 0 || !dims.is_multiple_of(2) || dims > head_size {
        return Err(fields.unsupported(
            "partial_rotary_factor",
            part,
            "an even number of dimensions of a head",
        ));
    }
    let rope = rope::from_config(fields, section.as_ref(), family.base, dims, context, trained)?;
    let window_rope = match (family.window_base, &sliding) {
        (None, _) => None,
        (Some(base), Some(own)) => Some(rope::from_config(fields, Some(own), base, dims, context, trained)?),
        (Some(base), None) => {
            let base = fields.positive("rope_local_base_freq")?.unwrap_or(base);
            Some(Rope { base, dims, scaling: rope::Scaling::None })
        }
    };
    Ok((Some(rope), window_rope))
}

/// Kinds of encoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bert,
    Roberta,
    DistilBert,
}

/// Number of classes of a classifier, as configurations state it: by labels, or by number.
fn classes(fields: &Fields<'_>) -> Result<usize> {
    let labels = fields.section("id2label")?.map(|labels| labels.len());
    Ok(labels.or(fields.count("num_labels")?).unwrap_or(2).max(1))
}

/// Whether the checkpoint is that of a model whose class ends like this.
fn is_for(fields: &Fields<'_>, purpose: &str) -> Result<bool> {
    Ok(fields.texts("architectures")?.unwrap_or_default().iter().any(|a| a.ends_with(purpose)))
}

/// Reads the sizes of an encoder.
pub(super) fn encoder(fields: &Fields<'_>, kind: Kind, pooling: Option<Pooling>) -> Result<Encoder> {
    let width = fields.need_count(&["hidden_size", "dim"])?;
    let heads = fields.need_count(&["num_attention_heads", "n_heads"])?;
    if width % heads != 0 {
        return Err(fields.unsupported("num_attention_heads", heads, &format!("a divisor of {width}")));
    }
    if let Some(other) = fields.text("position_embedding_type")?.filter(|t| *t != "absolute") {
        return Err(fields.unsupported("position_embedding_type", other, "absolute"));
    }
    let padding = fields.number("pad_token_id")?.map_or(1, |n| n.clamp(0.0, 1e6) as usize);
    let head = match is_for(fields, "ForSequenceClassification")? {
        true => Head::Classifier { classes: classes(fields)?, tanh: kind != Kind::DistilBert },
        false => Head::None,
    };
    let types = match kind {
        Kind::DistilBert => None,
        _ => Some(fields.count("type_vocab_size")?.unwrap_or(2)),
    };
    Ok(Encoder {
        vocabulary: fields.need_count(&["vocab_size"])?,
        width,
        layers: fields.need_count(&["num_hidden_layers", "n_layers"])?,
        heads,
        mlp_width: fields.need_count(&["intermediate_size", "hidden_dim"])?,
        positions: fields.need_count(&["max_position_embeddings"])?,
        position_offset: (kind == Kind::Roberta).then_some(padding),
        token_types: types,
        eps: fields.positive("layer_norm_eps")?.unwrap_or(1e-12),
        activation: plain_activation(fields, &["hidden_act", "activation"])?,
        pooling,
        head,
    })
}

fn plain_activation(fields: &Fields<'_>, keys: &[&str]) -> Result<Activation> {
    for key in keys {
        if let Some(name) = fields.text(key)? {
            return Activation::named(name)
                .ok_or_else(|| fields.unsupported(key, name, "gelu, gelu_new, relu, silu, quick_gelu"));
        }
    }
    Ok(Activation::Gelu)
}

/// Reads the sizes of a vision transformer.
pub(super) fn vision(fields: &Fields<'_>) -> Result<Vision> {
    let width = fields.need_count(&["hidden_size"])?;
    let heads = fields.need_count(&["num_attention_heads"])?;
    if width % heads != 0 {
        return Err(fields.unsupported("num_attention_heads", heads, &format!("a divisor of {width}")));
    }
    let image = fields.square("image_size")?.unwrap_or((224, 224));
    let patch = fields.square("patch_size")?.unwrap_or((16, 16));
    if image.0 < patch.0 || image.1 < patch.1 {
        return Err(fields.unsupported("patch_size", format!("{patch:?}"), &format!("up to {image:?}")));
    }
    Ok(Vision {
        width,
        layers: fields.need_count(&["num_hidden_layers"])?,
        heads,
        mlp_width: fields.need_count(&["intermediate_size"])?,
        image,
        patch,
        channels: fields.count("num_channels")?.unwrap_or(3),
        eps: fields.positive("layer_norm_eps")?.unwrap_or(1e-12),
        activation: plain_activation(fields, &["hidden_act"])?,
        classes: match is_for(fields, "ForImageClassification")? {
            true => Some(classes(fields)?),
            false => None,
        },
    })
}
