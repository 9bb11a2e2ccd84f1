//! Size of the key-value cache of a causal language model. Facts about inputs or the configuration
//! enter, bytes leave.

use super::summary::{KvCache, ValueInfo};
use crate::formats::About;
use crate::tensor::DType;

/// The cache as the graph's inputs spell it, else as the configuration implies it with 16-bit elements;
/// none for models that keep none.
pub(super) fn of(inputs: &[ValueInfo], about: &About) -> Option<KvCache> {
    let (bytes_per_token, dtype, source) = match from_inputs(inputs) {
        Some((bytes, dtype)) => (bytes, dtype, "inputs"),
        None => (from_configuration(about)?, "f16".to_string(), "configuration"),
    };
    Some(KvCache {
        bytes_per_token,
        context: about.context_length,
        bytes_at_context: about.context_length.and_then(|n| n.checked_mul(bytes_per_token)),
        dtype,
        source: source.to_string(),
    })
}

/// Inputs named `past…` of shape [batch, heads, tokens, width]: bytes of one token over all of them.
fn from_inputs(inputs: &[ValueInfo]) -> Option<(u64, String)> {
    let mut total = 0u64;
    let mut dtype = None;
    for value in inputs.iter().filter(|v| v.name.starts_with("past")) {
        let Some([_, heads, _, width]) = value.shape.as_deref() else { continue };
        let (Ok(heads), Ok(width)) = (heads.parse::<usize>(), width.parse::<usize>()) else { continue };
        let element = DType::ALL.iter().find(|d| d.name() == value.dtype)?;
        total = total.checked_add(element.byte_len(heads.checked_mul(width)?)?)?;
        dtype.get_or_insert_with(|| value.dtype.clone());
    }
    Some((total, dtype?))
}

fn from_configuration(about: &About) -> Option<u64> {
    if about.causal != Some(true) {
        return None;
    }
    let heads = about.kv_heads.or(about.heads)?;
    let key = about.head_size?;
    let value = about.value_size.unwrap_or(key);
    about.blocks?.checked_mul(heads)?.checked_mul(key.checked_add(value)?)?.checked_mul(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_come_before_the_configuration() {
        let about = About {
            causal: Some(true),
            blocks: Some(30),
            heads: Some(9),
            kv_heads: Some(3),
            head_size: Some(64),
            context_length: Some(8192),
            ..About::default()
        };
        let cache = of(&[], &about).unwrap();
        assert_eq!((cache.bytes_per_token, cache.bytes_at_context), (23_040, Some(23_040 * 8192)));
        assert_eq!(cache.source, "configuration");
        let input = |name: &str, dtype: &str| ValueInfo {
            name: name.into(),
            dtype: dtype.into(),
            shape: Some(["batch", "3", "past", "64"].map(String::from).to_vec()),
        };
        let inputs = [input("past_key_values.0.key", "f32"), input("past_key_values.0.value", "f32")];
        let cache = of(&inputs, &about).unwrap();
        assert_eq!((cache.bytes_per_token, cache.dtype.as_str()), (2 * 3 * 64 * 4, "f32"));
        assert_eq!(cache.source, "inputs");
        assert!(of(&[], &About { causal: Some(false), ..about }).is_none());
        assert!(of(&[input("x", "f32")], &About::default()).is_none());
    }
}
