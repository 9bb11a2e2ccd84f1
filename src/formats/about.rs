//! What the files of a model tell of it beside the weights: architecture, sizes, licence, tokenizer.
//! A checkpoint, or the path of a model with its neighbours, enters; facts leave. Nothing here is
//! needed to run a model, so a missing or odd file is told in a warning and is never an error.

use super::checkpoint::Checkpoint;
use super::metadata::{Fact, Metadata};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

mod neighbours;

use neighbours::Neighbours;
pub use neighbours::Tokenizer;

/// Facts about a model. `None` where no file tells.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct About {
    /// Name that its makers gave it.
    pub title: Option<String>,
    /// Architecture as the files name it: `llama`, `BertModel`.
    pub architecture: Option<String>,
    /// Licence as the files name it.
    pub licence: Option<String>,
    /// How the file as a whole is quantised, as it says itself: `Q4_K_M`, `gptq 4 bits`.
    pub quantisation: Option<String>,
    /// Longest sequence in tokens.
    pub context_length: Option<u64>,
    /// Tokens that the model knows.
    pub vocabulary: Option<u64>,
    /// Blocks, which frameworks call layers.
    pub blocks: Option<u64>,
    /// Hidden width.
    pub width: Option<u64>,
    /// Width of the feed-forward part.
    pub feed_forward: Option<u64>,
    /// Query heads.
    pub heads: Option<u64>,
    /// Key and value heads.
    pub kv_heads: Option<u64>,
    /// Width of one key head.
    pub head_size: Option<u64>,
    /// Width of one value head, where it differs.
    pub value_size: Option<u64>,
    /// Whether it predicts the next token from those before.
    pub causal: Option<bool>,
    /// Its tokenizer.
    pub tokenizer: Option<Tokenizer>,
    /// Settings for generating text: (name, value).
    pub generation: Vec<(String, String)>,
}

impl About {
    /// What a checkpoint and the files beside it tell; what looks wrong goes to `warnings`.
    pub fn of(checkpoint: &Checkpoint, warnings: &mut Vec<String>) -> About {
        let mut about = About::default();
        if let Some(config) = &checkpoint.config {
            about.read_config(config);
        }
        about.read_metadata(&checkpoint.metadata, warnings);
        let dir = match checkpoint.path.is_dir() {
            true => Some(checkpoint.path.as_path()),
            false => checkpoint.path.parent(),
        };
        // A GGUF file is whole by itself, and what lies beside it need not belong to it.
        if let Some(dir) = dir.filter(|_| checkpoint.format != "gguf") {
            about.read_neighbours(&Neighbours::read(dir, warnings));
        }
        about.conclude();
        about
    }

    /// What lies beside a model file tells: `config.json`, tokenizer, model card. Empty without a
    /// `config.json`, because other files need not belong to the model.
    pub fn beside(path: &Path, warnings: &mut Vec<String>) -> About {
        let mut about = About::default();
        let Some(dir) = path.parent() else { return about };
        if let Some(config) = neighbours::json(&dir.join("config.json"), warnings) {
            about.read_config(&config);
            about.read_neighbours(&Neighbours::read(dir, warnings));
        }
        about.conclude();
        about
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        *self == About::default()
    }

    fn read_config(&mut self, config: &Value) {
        // Models of text and images keep the sizes of the text part one level deeper.
        let inner = config.get("text_config").unwrap_or(&Value::Null);
        let count = |names: &[&str]| {
            names
                .iter()
                .find_map(|n| config.get(*n).and_then(Value::as_u64).or_else(|| inner.get(*n)?.as_u64()))
        };
        let text = |name: &str| config.get(name).and_then(Value::as_str).map(short);
        let classes: Vec<&str> = config
            .get("architectures")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        self.architecture = classes.first().map(|c| short(c)).or_else(|| text("model_type"));
        self.title = text("_name_or_path").filter(|t| !t.is_empty());
        self.context_length = count(&["max_position_embeddings", "n_positions", "n_ctx"]);
        self.vocabulary = count(&["vocab_size"]);
        self.blocks = count(&["num_hidden_layers", "n_layer", "n_layers"]);
        self.width = count(&["hidden_size", "n_embd", "dim"]);
        self.feed_forward = count(&["intermediate_size", "n_inner", "hidden_dim"]);
        self.heads = count(&["num_attention_heads", "n_head", "n_heads"]);
        self.kv_heads = count(&["num_key_value_heads"]);
        self.head_size = count(&["head_dim"]);
        if !classes.is_empty() {
            let causal = |c: &&str| {
                c.contains("CausalLM") || c.contains("LMHead") || c.contains("ConditionalGeneration")
            };
            self.causal = Some(classes.iter().any(causal));
        }
        if let Some(q) = config.get("quantization_config") {
            let method = q.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed method");
            let bits = q.get("bits").and_then(Value::as_u64).map_or(String::new(), |b| format!(" {b} bits"));
            self.quantisation = Some(short(&format!("{method}{bits}")));
        }
    }

    fn read_metadata(&mut self, metadata: &Metadata, warnings: &mut Vec<String>) {
        let text = |key: &str| metadata.text(key).ok().flatten().map(short);
        let Some(architecture) = text("general.architecture") else { return };
        self.title = text("general.name").or_else(|| self.title.take());
        self.licence = text("general.license");
        self.quantisation = metadata.count("general.file_type").ok().flatten().map(file_type);
        let mut count = |name: &str| {
            let key = format!("{architecture}.{name}");
            match metadata.get(&key)? {
                // One number for each block: the cache needs their sum, people the usual one.
                Fact::Ints(each) => each.iter().copied().max().and_then(|n| u64::try_from(n).ok()),
                _ => metadata.count(&key).unwrap_or_else(|e| {
                    warnings.push(e.to_string());
                    None
                }),
            }
        };
        self.context_length = count("context_length");
        self.blocks = count("block_count");
        self.width = count("embedding_length");
        self.feed_forward = count("feed_forward_length");
        self.heads = count("attention.head_count");
        self.kv_heads = count("attention.head_count_kv");
        self.head_size = count("attention.key_length");
        self.value_size = count("attention.value_length");
        self.vocabulary = count("vocab_size");
        let causal = metadata.flag(&format!("{architecture}.attention.causal")).ok().flatten();
        self.tokenizer = Tokenizer::of_metadata(metadata);
        self.vocabulary = self.vocabulary.or(self.tokenizer.as_ref().map(|t| t.tokens));
        self.causal = Some(causal.unwrap_or_else(|| !architecture.contains("bert")));
        self.architecture = Some(architecture);
    }

    fn read_neighbours(&mut self, neighbours: &Neighbours) {
        self.tokenizer = neighbours.tokenizer.clone().or_else(|| self.tokenizer.take());
        self.licence = neighbours.licence.clone().or_else(|| self.licence.take());
        self.generation.clone_from(&neighbours.generation);
    }

    /// What follows from the rest.
    fn conclude(&mut self) {
        self.kv_heads = self.kv_heads.or(self.heads);
        if let (None, Some(width), Some(heads @ 1..)) = (self.head_size, self.width, self.heads) {
            self.head_size = Some(width / heads);
        }
    }
}

/// A value for people: the first part of what may be megabytes.
fn short(text: &str) -> String {
    text[..text.floor_char_boundary(256)].to_string()
}

/// Names of `general.file_type` (`llama_ftype` of llama.cpp).
fn file_type(number: u64) -> String {
    match number {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4_MOE",
        other => return format!("file type {other}"),
    }
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn gguf_metadata_tells_sizes_tokenizer_and_licence() {
        let mut c = Checkpoint::new("gguf", PathBuf::from("/nowhere/m.gguf"), vec![]);
        let facts = [
            ("general.architecture", Fact::Text("llama".into())),
            ("general.license", Fact::Text("apache-2.0".into())),
            ("general.file_type", Fact::Int(3)),
            ("llama.context_length", Fact::Int(8192)),
            ("llama.embedding_length", Fact::Int(576)),
            ("llama.block_count", Fact::Int(30)),
            ("llama.attention.head_count", Fact::Int(9)),
            ("llama.attention.head_count_kv", Fact::Int(3)),
            ("tokenizer.ggml.model", Fact::Text("gpt2".into())),
            ("tokenizer.ggml.tokens", Fact::Texts(vec!["<a>".into(), "b".into()])),
            ("tokenizer.ggml.bos_token_id", Fact::Int(0)),
            ("tokenizer.chat_template", Fact::Text("{{ cycler.__init__.__globals__ }}".into())),
        ];
        for (key, fact) in facts {
            assert!(c.metadata.insert(key, fact));
        }
        let mut warnings = vec![];
        let about = About::of(&c, &mut warnings);
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(about.quantisation.as_deref(), Some("Q4_1"));
        assert_eq!((about.head_size, about.kv_heads, about.vocabulary), (Some(64), Some(3), Some(2)));
        assert_eq!((about.causal, about.licence.as_deref()), (Some(true), Some("apache-2.0")));
        let t = about.tokenizer.unwrap();
        assert_eq!((t.kind.as_str(), t.tokens, t.chat_template), ("gpt2", 2, true));
        assert_eq!(t.special, [("bos".to_string(), "<a>".to_string())]);
    }

    #[test]
    fn a_directory_tells_by_its_neighbours_and_odd_ones_warn() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            "tokenizer.json",
            r#"{"model":{"type":"WordPiece","vocab":{"a":0,"b":1,"c":2}},"added_tokens":[{"id":3,"content":"[X]"},{"id":0,"content":"a"}]}"#,
        );
        write(
            "tokenizer_config.json",
            r#"{"chat_template":"{{ x }}","bos_token":"a","eos_token":{"content":"b"}}"#,
        );
        write("generation_config.json", r#"{"temperature":0.6,"top_p":0.9,"eos_token_id":[1,2]}"#);
        write("README.md", "---\nlanguage: en\nlicense: mit\n---\n# M\nlicense: not this one\n");
        write("model.onnx", "");
        write(
            "config.json",
            r#"{"architectures":["LlamaForCausalLM"],"hidden_size":64,"num_attention_heads":4,"num_hidden_layers":2,"vocab_size":4,"max_position_embeddings":"many","quantization_config":{"quant_method":"gptq","bits":4}}"#,
        );
        let mut warnings = vec![];
        let about = About::beside(&dir.path().join("model.onnx"), &mut warnings);
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!((about.causal, about.head_size, about.kv_heads), (Some(true), Some(16), Some(4)));
        assert_eq!((about.licence.as_deref(), about.context_length), (Some("mit"), None));
        assert_eq!(about.quantisation.as_deref(), Some("gptq 4 bits"));
        let t = about.tokenizer.unwrap();
        assert_eq!((t.kind.as_str(), t.tokens, t.chat_template), ("WordPiece", 4, true));
        assert_eq!(t.special, [("bos".to_string(), "a".to_string()), ("eos".to_string(), "b".to_string())]);
        assert_eq!(about.generation[0], ("temperature".to_string(), "0.6".to_string()));
        write("tokenizer.json", "{");
        About::beside(&dir.path().join("model.onnx"), &mut warnings);
        assert!(warnings.iter().any(|w| w.contains("tokenizer.json")), "{warnings:?}");
        std::fs::remove_file(dir.path().join("config.json")).unwrap();
        assert!(About::beside(&dir.path().join("model.onnx"), &mut warnings).is_empty());
    }
}
