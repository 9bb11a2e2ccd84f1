//! Small files beside the weights: tokenizer, generation settings, model card. Each is read within a
//! limit; the vocabulary is counted, not kept.

use super::super::metadata::{Fact, Metadata};
use super::short;
use crate::tensor::SourceFile;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::path::Path;

/// Longest file that is read for facts.
const LONGEST: u64 = 64 << 20;
/// Settings that are listed.
const SETTINGS: usize = 64;

/// Facts about a tokenizer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Tokenizer {
    /// Kind as the file names it: `BPE`, `WordPiece`, `gpt2`, `llama`.
    pub kind: String,
    /// Rule that splits text first, where a GGUF file names one.
    pub pre: Option<String>,
    /// Tokens.
    pub tokens: u64,
    /// Special tokens: (`bos`, text).
    pub special: Vec<(String, String)>,
    /// Whether there is a template for conversations. It is text here and is never evaluated.
    pub chat_template: bool,
}

const SPECIAL: [&str; 8] = ["bos", "eos", "unk", "sep", "pad", "cls", "mask", "eot"];

impl Tokenizer {
    pub(super) fn of_metadata(metadata: &Metadata) -> Option<Tokenizer> {
        let tokens = metadata.texts("tokenizer.ggml.tokens").ok().flatten()?;
        let text = |key: &str| metadata.text(key).ok().flatten().map(short);
        let id = |name: &str| -> Option<String> {
            let full = ["unknown", "seperator", "padding"].iter().find(|f| f.starts_with(&name[..2]));
            let names = [Some(name), full.copied(), (name == "sep").then_some("separator")];
            let id = names
                .iter()
                .flatten()
                .find_map(|n| metadata.count(&format!("tokenizer.ggml.{n}_token_id")).ok().flatten())?;
            tokens.get(usize::try_from(id).ok()?).map(|t| short(t))
        };
        Some(Tokenizer {
            kind: text("tokenizer.ggml.model").unwrap_or_else(|| "unnamed".into()),
            pre: text("tokenizer.ggml.pre"),
            tokens: tokens.len() as u64,
            special: SPECIAL.iter().filter_map(|n| Some((n.to_string(), id(n)?))).collect(),
            chat_template: matches!(metadata.get("tokenizer.chat_template"), Some(Fact::Text(_))),
        })
    }
}

/// What lies beside the weights.
pub(super) struct Neighbours {
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) licence: Option<String>,
    pub(super) generation: Vec<(String, String)>,
}

impl Neighbours {
    pub(super) fn read(dir: &Path, warnings: &mut Vec<String>) -> Neighbours {
        let counted: Option<Counted> = parsed(&dir.join("tokenizer.json"), warnings);
        let settings = json(&dir.join("tokenizer_config.json"), warnings).unwrap_or(Value::Null);
        let template = settings.get("chat_template").is_some_and(|t| !t.is_null())
            || dir.join("chat_template.jinja").is_file();
        let special = |name: &&str| {
            let token = settings.get(format!("{name}_token"))?;
            let text = token.as_str().or_else(|| token.get("content")?.as_str())?;
            Some((name.to_string(), short(text)))
        };
        let tokenizer = counted.map(|c| Tokenizer {
            kind: c.model.kind,
            pre: None,
            tokens: c.model.vocab.0.max(c.added_tokens.0),
            special: SPECIAL.iter().filter_map(special).collect(),
            chat_template: template,
        });
        let generation = match json(&dir.join("generation_config.json"), warnings) {
            Some(Value::Object(map)) => map
                .into_iter()
                .filter(|(k, v)| !k.starts_with('_') && !v.is_null() && k != "transformers_version")
                .take(SETTINGS)
                .map(|(k, v)| (short(&k), short(v.as_str().map_or(v.to_string(), str::to_string).as_str())))
                .collect(),
            _ => Vec::new(),
        };
        Neighbours { tokenizer, licence: licence(&dir.join("README.md")), generation }
    }
}

/// A JSON file, where there is one; what cannot be read is told.
pub(super) fn json(path: &Path, warnings: &mut Vec<String>) -> Option<Value> {
    parsed(path, warnings)
}

fn parsed<T: for<'a> Deserialize<'a>>(path: &Path, warnings: &mut Vec<String>) -> Option<T> {
    if !path.exists() {
        return None;
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let result = bytes(path, LONGEST).and_then(|b| serde_json::from_slice(&b).map_err(|e| e.to_string()));
    result.map_err(|why| warnings.push(format!("{name} beside the model is not used: {why}"))).ok()
}

fn bytes(path: &Path, longest: u64) -> Result<Vec<u8>, String> {
    let file = SourceFile::open(path).map_err(|e| e.to_string())?;
    if file.len() > longest {
        return Err(format!("{} bytes, more than {longest}", file.len()));
    }
    let mut out = vec![0; file.len() as usize];
    file.read_exact_at(0, &mut out).map_err(|e| e.to_string())?;
    Ok(out)
}

/// The licence in the front matter of a model card.
fn licence(path: &Path) -> Option<String> {
    let file = SourceFile::open(path).ok()?;
    let mut head = vec![0; file.len().min(16 << 10) as usize];
    file.read_exact_at(0, &mut head).ok()?;
    let text = String::from_utf8_lossy(&head);
    let mut lines = text.lines();
    if lines.next()?.trim() != "---" {
        return None;
    }
    lines
        .take_while(|l| l.trim() != "---")
        .find_map(|l| l.strip_prefix("license:"))
        .map(|l| short(l.trim().trim_matches(['"', '\''])))
        .filter(|l| !l.is_empty())
}

/// `tokenizer.json` with its vocabulary counted.
#[derive(Deserialize)]
struct Counted {
    #[serde(default)]
    model: Model,
    #[serde(default)]
    added_tokens: HighestId,
}

#[derive(Deserialize, Default)]
struct Model {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    vocab: Entries,
}

/// Number of entries of a map or list.
#[derive(Default)]
struct Entries(u64);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Entries, D::Error> {
        struct Count;
        impl<'de> Visitor<'de> for Count {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut n = 0;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    n += 1;
                }
                Ok(Entries(n))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entries, A::Error> {
                let mut n = 0;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    n += 1;
                }
                Ok(Entries(n))
            }
        }
        d.deserialize_any(Count)
    }
}

/// One more than the highest id of added tokens.
#[derive(Default)]
struct HighestId(u64);

impl<'de> Deserialize<'de> for HighestId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<HighestId, D::Error> {
        #[derive(Deserialize)]
        struct Added {
            id: u64,
        }
        struct Most;
        impl<'de> Visitor<'de> for Most {
            type Value = HighestId;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of tokens")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<HighestId, A::Error> {
                let mut most = 0;
                while let Some(added) = list.next_element::<Added>()? {
                    most = most.max(added.id.saturating_add(1));
                }
                Ok(HighestId(most))
            }
        }
        d.deserialize_any(Most)
    }
}
