//! Metadata of GGUF decoders and encoders: keys enter, the same descriptions leave as from
//! `config.json`.

use super::decoder::Decoder;
use super::encoder::{Encoder, Head, Pooling};
use super::families::{Family, Windows};
use super::names::Role;
use super::net::{Activation, Norm};
use super::rope::{Rope, Scaling, yarn_attention};
use super::weights::Weights;
use crate::error::{Error, Result};
use crate::formats::Checkpoint;

/// Largest count that a key may have.
const LARGEST: u64 = 1 << 28;

/// Keys of one architecture.
pub(super) struct Keys<'a> {
    checkpoint: &'a Checkpoint,
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    /// The keys; `None` for a checkpoint without `general.architecture`.
    pub(super) fn new(checkpoint: &'a Checkpoint) -> Result<Option<Keys<'a>>> {
        let architecture = checkpoint.metadata.text("general.architecture")?;
        Ok(architecture.map(|architecture| Keys { checkpoint, architecture }))
    }

    pub(super) fn architecture(&self) -> &'a str {
        self.architecture
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn count(&self, name: &str) -> Result<Option<usize>> {
        let key = self.key(name);
        match self.checkpoint.metadata.count(&key)? {
            None => Ok(None),
            Some(n) if (1..=LARGEST).contains(&n) => Ok(usize::try_from(n).ok()),
            Some(n) => Err(Error::invalid("METADATA-VALUE", "a metadata value cannot be used")
                .file(&self.checkpoint.path)
                .field(key)
                .found(n)
                .limit(format!("1 to {LARGEST}"))),
        }
    }

    fn need(&self, name: &str) -> Result<usize> {
        self.count(name)?.ok_or_else(|| {
            Error::invalid("METADATA-MISSING", "a metadata key that the architecture needs is not there")
                .file(&self.checkpoint.path)
                .field(self.key(name))
                .hint("convert the model to GGUF again")
        })
    }

    fn positive(&self, name: &str) -> Result<Option<f64>> {
        let key = self.key(name);
        match self.checkpoint.metadata.number(&key)? {
            Some(x) if !(x.is_finite() && x > 0.0) => {
                Err(Error::invalid("METADATA-VALUE", "a metadata value cannot be used")
                    .file(&self.checkpoint.path)
                    .field(key)
                    .found(x)
                    .limit("a finite number above 0"))
            }
            x => Ok(x),
        }
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>> {
        self.checkpoint.metadata.text(&self.key(name))
    }

    fn unsupported(&self, name: &str, found: impl std::fmt::Display, known: &str) -> Error {
        Error::unsupported("METADATA-UNSUPPORTED", "the model asks for what this version does not build")
            .file(&self.checkpoint.path)
            .field(self.key(name))
            .found(found)
            .limit(known)
            .hint("`tinsmith inspect` still shows the weights")
    }
}

/// Reads the sizes and switches of a decoder. `context` caps the number of positions.
pub(super) fn decoder(
    keys: &Keys<'_>,
    family: &Family,
    weights: &Weights<'_>,
    context: Option<usize>,
) -> Result<Decoder> {
    if let Some(n) = keys.count("expert_count")? {
        return Err(keys.unsupported("expert_count", n, "models without experts"));
    }
    let width = keys.need("embedding_length")?;
    let layers = weights.holds_layers(keys.need("block_count")?, "block_count")?;
    let heads = keys.need("attention.head_count")?;
    let kv_heads = keys.count("attention.head_count_kv")?.unwrap_or(heads);
    if heads % kv_heads != 0 {
        return Err(keys.unsupported("attention.head_count_kv", kv_heads, &format!("a divisor of {heads}")));
    }
    let head_size = match keys.count("attention.key_length")? {
        Some(n) => n,
        None if width % heads == 0 => width / heads,
        None => {
            return Err(keys.unsupported("attention.head_count", heads, &format!("a divisor of {width}")));
        }
    };
    if let Some(n) = keys.count("attention.value_length")?
        && n != head_size
    {
        return Err(keys.unsupported("attention.value_length", n, &head_size.to_string()));
    }
    let trained = keys.need("context_length")?;
    let context = context.unwrap_or(trained).min(trained);
    let eps = match family.rms {
        true => keys.positive("attention.layer_norm_rms_epsilon")?,
        false => keys.positive("attention.layer_norm_epsilon")?,
    }
    .unwrap_or(family.eps);
    // The file holds norms ready for use: nothing is added to them.
    let norm = if family.rms { Norm::Rms { eps, offset: 0.0 } } else { Norm::Layer { eps } };
    let vocabulary = weights.shape(Role::Embedding, 0).and_then(|s| s.first().copied()).unwrap_or(0);
    let (rope, window_rope) = match family.rotary {
        true => ropes(keys, family, weights, head_size, trained)?,
        false => (None, None),
    };
    let by_width = family.scaled_by_width == Some(layers);
    let scale = if by_width { width as f64 / heads as f64 } else { head_size as f64 }.powf(-0.5);
    Ok(Decoder {
        vocabulary,
        width,
        layers,
        heads,
        kv_heads,
        head_size,
        mlp_width: keys.need("feed_forward_length")?,
        context,
        learned_positions: (!family.rotary).then_some(trained),
        norm,
        activation: family.activation,
        gated: family.gated,
        rope,
        window_rope,
        windows: windows(keys, family, layers)?,
        scale,
        attention_cap: keys.positive("attn_logit_softcapping")?.or(family.caps.map(|c| c.0)),
        logit_cap: keys.positive("final_logit_softcapping")?.or(family.caps.map(|c| c.1)),
        embedding_scale: family.scaled_embedding.then_some((width as f64).sqrt()),
        tied: !weights.has(Role::Head, 0),
        query_key_norm: family.query_key_norm,
        out_norms: family.out_norms,
        permuted: family.permuted,
    })
}

fn windows(keys: &Keys<'_>, family: &Family, layers: usize) -> Result<Vec<Option<usize>>> {
    let width = keys.count("attention.sliding_window")?;
    let windowed = |i: usize| match family.windows {
        // Files of Mistral call themselves Llama.
        Windows::Never | Windows::All => true,
        Windows::AllBut(n) => !(i + 1).is_multiple_of(n),
        Windows::Switched => false,
    };
    Ok((0..layers).map(|i| width.filter(|_| windowed(i))).collect())
}

fn ropes(
    keys: &Keys<'_>,
    family: &Family,
    weights: &Weights<'_>,
    head_size: usize,
    trained: usize,
) -> Result<(Option<Rope>, Option<Rope>)> {
    let dims = keys.count("rope.dimension_count")?.unwrap_or(head_size);
    if dims % 2 != 0 || dims > head_size {
        return Err(keys.unsupported(
            "rope.dimension_count",
            dims,
            &format!("an even number up to {head_size}"),
        ));
    }
    let base = keys.positive("rope.freq_base")?.unwrap_or(family.base);
    let need = |name: &str| {
        keys.positive(name)?.ok_or_else(|| keys.unsupported(name, "nothing", "a number above 0"))
    };
    let scaling = match keys.text("rope.scaling.type")?.unwrap_or("none") {
        "none" => Scaling::None,
        "linear" => Scaling::Linear(need("rope.scaling.factor")?),
        "yarn" => {
            let factor = need("rope.scaling.factor")?;
            let original = keys.count("rope.scaling.original_context_length")?.unwrap_or(trained) as f64;
            let attention = keys.positive("rope.scaling.attn_factor")?.unwrap_or(1.0);
            let attention = attention * yarn_attention(factor, None, None);
            Scaling::Yarn { factor, original, fast: 32.0, slow: 1.0, attention, truncate: true }
        }
        other => return Err(keys.unsupported("rope.scaling.type", other, "none, linear, yarn")),
    };
    let scaling = match weights.find(Role::RopeFactors, 0, ".weight", &[dims / 2])? {
        None => scaling,
        Some(w) => Scaling::Factors {
            factors: w.tensor.to_f32s()?.into_iter().map(f64::from).collect(),
            attention: 1.0,
        },
    };
    let window_rope = match family.window_base {
        None => None,
        Some(own) => {
            let base = keys.positive("rope.freq_base_swa")?.unwrap_or(own);
            Some(Rope { base, dims, scaling: Scaling::None })
        }
    };
    Ok((Some(Rope { base, dims, scaling }), window_rope))
}

/// Reads the sizes of a BERT encoder.
pub(super) fn encoder(keys: &Keys<'_>, weights: &Weights<'_>) -> Result<Encoder> {
    let first = |role| weights.shape(role, 0).and_then(|s| s.first().copied());
    let pooling = match keys.checkpoint.metadata.count(&keys.key("pooling_type"))? {
        None | Some(0) => None,
        Some(1) => Some(Pooling { cls: false, normalize: true }),
        Some(2) => Some(Pooling { cls: true, normalize: true }),
        Some(other) => {
            return Err(keys.unsupported("pooling_type", other, "0 (none), 1 (mean), 2 (first token)"));
        }
    };
    Ok(Encoder {
        vocabulary: first(Role::Embedding).unwrap_or(0),
        width: keys.need("embedding_length")?,
        layers: keys.need("block_count")?,
        heads: keys.need("attention.head_count")?,
        mlp_width: keys.need("feed_forward_length")?,
        positions: first(Role::Positions).unwrap_or(0),
        position_offset: None,
        token_types: first(Role::TokenTypes),
        eps: keys.positive("attention.layer_norm_epsilon")?.unwrap_or(1e-12),
        activation: Activation::Gelu,
        pooling,
        head: Head::None,
    })
}
