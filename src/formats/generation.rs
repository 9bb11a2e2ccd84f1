//! Which tokens end a text: what the settings beside a model (`generation_config.json`, `config.json`)
//! and its tokenizer say. Files enter, ids leave. Nothing here runs a model.

use super::Limits;
use super::tokenizer::{Tokenizer, optional_json};
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// Every token that ends a text of `model`, by the files beside it, or in it where it is a directory,
/// and by its tokenizer.
///
/// # Errors
/// `Invalid` where a file is damaged, or an id is not in the vocabulary.
pub fn ends(model: &Path, tokenizer: &Tokenizer, limits: &Limits) -> Result<Vec<u32>> {
    let directory = match model.is_dir() {
        true => model,
        false => model.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")),
    };
    let mut out = tokenizer.special().eos.clone();
    let gguf = model.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    // A GGUF file is whole by itself: what lies beside it need not belong to it.
    for name in ["config.json", "generation_config.json"].into_iter().filter(|_| !gguf) {
        let path = directory.join(name);
        let settings = optional_json(&path, limits)?;
        let listed = match settings.get("eos_token_id") {
            Some(Value::Array(list)) => list.as_slice(),
            Some(one @ Value::Number(_)) => std::slice::from_ref(one),
            _ => &[],
        };
        for value in listed {
            let id = value.as_u64().and_then(|n| u32::try_from(n).ok());
            let id = id.filter(|n| (*n as usize) < tokenizer.vocab_size()).ok_or_else(|| {
                Error::invalid("GENERATION-ID", "a token is not in the vocabulary")
                    .file(&path)
                    .field("eos_token_id")
                    .found(value)
                    .limit(format!("0 to {}", tokenizer.vocab_size().saturating_sub(1)))
            })?;
            if !out.contains(&id) {
                out.push(id);
            }
        }
    }
    Ok(out)
}
