//! Settings for generating text that lie beside a model (`generation_config.json`, `config.json`), and
//! the tokenizer's. Files enter; ids and numbers leave. Nothing here runs a model.

use super::Limits;
use super::tokenizer::{Tokenizer, optional_json};
use crate::error::{Error, Result};
use crate::save;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Name of the file.
pub const FILE: &str = "generation_config.json";

/// How a model's makers want text to be generated.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Generation {
    /// Tokens that end a text.
    pub eos: Vec<u32>,
    /// Token that begins a text.
    pub bos: Option<u32>,
    /// Token that fills rows.
    pub pad: Option<u32>,
    /// Temperature, where sampling is wanted.
    pub temperature: Option<f64>,
    /// Share of the probability that is sampled from.
    pub top_p: Option<f64>,
    /// Number of tokens that are sampled from.
    pub top_k: Option<usize>,
}

impl Generation {
    /// What the files beside `model` say, or those in it where it is a directory, and what the tokenizer
    /// says.
    ///
    /// # Errors
    /// `Invalid` where a file is damaged, or an id is not in the vocabulary.
    pub fn open(model: &Path, tokenizer: &Tokenizer, limits: &Limits) -> Result<Generation> {
        let directory = match model.is_dir() {
            true => model,
            false => model.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")),
        };
        let mut out = Generation {
            eos: tokenizer.special().eos.clone(),
            bos: tokenizer.special().bos,
            pad: tokenizer.special().pad,
            ..Generation::default()
        };
        let gguf = model.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        // A GGUF file is whole by itself: what lies beside it need not belong to it.
        for name in ["config.json", FILE].into_iter().filter(|_| !gguf) {
            let path = directory.join(name);
            let value = optional_json(&path, limits)?;
            out.take(&value, tokenizer.vocab_size()).map_err(|e| e.file(&path))?;
        }
        Ok(out)
    }

    fn take(&mut self, value: &Value, vocabulary: usize) -> Result<()> {
        let id = |value: &Value, key: &str| {
            value
                .as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .filter(|n| (*n as usize) < vocabulary)
                .ok_or_else(|| {
                    Error::invalid("GENERATION-ID", "a token is not in the vocabulary")
                        .field(key)
                        .found(value)
                        .limit(format!("0 to {}", vocabulary.saturating_sub(1)))
                })
        };
        match value.get("eos_token_id") {
            Some(Value::Array(list)) => {
                for item in list {
                    let id = id(item, "eos_token_id")?;
                    if !self.eos.contains(&id) {
                        self.eos.push(id);
                    }
                }
            }
            Some(one @ Value::Number(_)) => {
                let id = id(one, "eos_token_id")?;
                if !self.eos.contains(&id) {
                    self.eos.push(id);
                }
            }
            _ => {}
        }
        for (key, place) in [("bos_token_id", &mut self.bos), ("pad_token_id", &mut self.pad)] {
            if let Some(found @ Value::Number(_)) = value.get(key)
                && place.is_none()
            {
                *place = id(found, key).ok();
            }
        }
        let number = |key: &str| value.get(key).and_then(Value::as_f64);
        self.temperature = number("temperature").filter(|t| (0.0..100.0).contains(t)).or(self.temperature);
        self.top_p = number("top_p").filter(|p| *p > 0.0 && *p <= 1.0).or(self.top_p);
        self.top_k = value.get("top_k").and_then(Value::as_u64).map(|k| k as usize).or(self.top_k);
        Ok(())
    }

    /// Writes `generation_config.json` into a directory.
    pub fn save(&self, directory: &Path) -> Result<PathBuf> {
        let path = directory.join(FILE);
        let mut content = json!({});
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                content[key] = value;
            }
        };
        set("bos_token_id", self.bos.map(|id| json!(id)));
        set(
            "eos_token_id",
            match self.eos.as_slice() {
                [] => None,
                [one] => Some(json!(one)),
                several => Some(json!(several)),
            },
        );
        set("pad_token_id", self.pad.map(|id| json!(id)));
        set("temperature", self.temperature.map(|t| json!(t)));
        set("top_p", self.top_p.map(|p| json!(p)));
        set("top_k", self.top_k.map(|k| json!(k)));
        save::json(&path, &content)?;
        Ok(path)
    }
}
