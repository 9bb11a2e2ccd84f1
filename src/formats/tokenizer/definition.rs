//! A tokenizer as data: the content of a `tokenizer.json`, in the terms of that file. Readers fill it,
//! [`super::build`] checks it and makes it work, and it is written back as it was read.

use super::super::Limits;
use super::super::limits::too_large;
use crate::error::{Error, Result};
use crate::tensor::SourceFile;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::path::Path;

/// Most tokens, and so the largest id, that a tokenizer may have; the largest known ones have 300,000.
pub(super) const MOST_TOKENS: usize = 4 << 20;
/// Most tokens beside the model's own vocabulary.
pub(super) const MOST_ADDED: usize = 100_000;

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Definition {
    #[serde(default = "version")]
    pub version: String,
    #[serde(default)]
    pub truncation: Option<Value>,
    #[serde(default)]
    pub padding: Option<Value>,
    #[serde(default)]
    pub added_tokens: Vec<Added>,
    #[serde(default)]
    pub normalizer: Option<Value>,
    #[serde(default)]
    pub pre_tokenizer: Option<Value>,
    #[serde(default)]
    pub post_processor: Option<Value>,
    #[serde(default)]
    pub decoder: Option<Value>,
    pub model: Model,
}

fn version() -> String {
    "1.0".into()
}

/// A token that is matched in the text before anything else.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Added {
    pub id: i64,
    pub content: String,
    #[serde(default)]
    pub single_word: bool,
    #[serde(default)]
    pub lstrip: bool,
    #[serde(default)]
    pub rstrip: bool,
    #[serde(default)]
    pub normalized: bool,
    #[serde(default)]
    pub special: bool,
}

/// How pieces of text become tokens. Which fields count depends on the type.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Model {
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unk_token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unk_id: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continuing_subword_prefix: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_of_word_suffix: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_input_chars_per_word: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fuse_unk: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub byte_fallback: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore_merges: Option<bool>,
    #[serde(default)]
    pub vocab: Vocab,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merges: Option<Vec<Merge>>,
}

/// Tokens of the model.
#[derive(Debug, Clone)]
pub(super) enum Vocab {
    /// Token and id, as most models list them.
    Ids(Vec<(String, i64)>),
    /// Token and score in the order of the ids, as Unigram models list them.
    Scores(Vec<(String, f64)>),
}

impl Default for Vocab {
    fn default() -> Vocab {
        Vocab::Ids(Vec::new())
    }
}

impl Serialize for Vocab {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Vocab::Scores(list) => list.serialize(to),
            Vocab::Ids(list) => {
                let mut map = to.serialize_map(Some(list.len()))?;
                list.iter().try_for_each(|(token, id)| map.serialize_entry(token, id))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Vocab, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Vocab;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tokens to ids, or a list of tokens with scores")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
                let mut list = Vec::new();
                while let Some(entry) = map.next_entry::<String, i64>()? {
                    list.push(entry);
                }
                Ok(Vocab::Ids(list))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vocab, A::Error> {
                let mut list = Vec::new();
                while let Some(entry) = seq.next_element::<(String, f64)>()? {
                    list.push(entry);
                }
                Ok(Vocab::Scores(list))
            }
        }
        from.deserialize_any(Reader)
    }
}

/// Two neighbours that become one token, by rank. Files write a pair, older ones both in one text with
/// a space between.
#[derive(Debug, Clone)]
pub(super) struct Merge(pub String, pub String);

impl Serialize for Merge {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        (&self.0, &self.1).serialize(to)
    }
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Merge, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Merge;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a pair of tokens, or both in one text with a space between")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Merge, E> {
                Merge::parse(text).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
                let short = |n| serde::de::Error::invalid_length(n, &"a pair of tokens");
                let left = seq.next_element()?.ok_or_else(|| short(0))?;
                let right = seq.next_element()?.ok_or_else(|| short(1))?;
                match seq.next_element::<serde::de::IgnoredAny>()? {
                    None => Ok(Merge(left, right)),
                    Some(_) => Err(short(3)),
                }
            }
        }
        from.deserialize_any(Reader)
    }
}

impl Merge {
    /// `a b`, split at the only space.
    pub(super) fn parse(text: &str) -> Option<Merge> {
        let (left, right) = text.split_once(' ')?;
        let whole = !left.is_empty() && !right.is_empty() && !right.contains(' ');
        whole.then(|| Merge(left.into(), right.into()))
    }
}

impl Definition {
    /// A definition with nothing but a model.
    pub(super) fn of(model: Model) -> Definition {
        Definition {
            version: version(),
            truncation: None,
            padding: None,
            added_tokens: Vec::new(),
            normalizer: None,
            pre_tokenizer: None,
            post_processor: None,
            decoder: None,
            model,
        }
    }

    /// Reads a `tokenizer.json`.
    pub(super) fn read(path: &Path, limits: &Limits) -> Result<Definition> {
        let content = json_file(path, limits)?;
        Definition::parse(&content).map_err(|e| e.file(path))
    }

    /// Reads the content of a `tokenizer.json`.
    pub(super) fn parse(content: &[u8]) -> Result<Definition> {
        let mut definition: Definition = serde_json::from_slice(content).map_err(|e| {
            Error::invalid("TOKENIZER-JSON", format!("this is no tokenizer.json: {e}"))
                .hint("download the file again, or write it anew with the tokenizers library")
        })?;
        if definition.version != "1.0" {
            return Err(Error::unsupported(
                "TOKENIZER-VERSION",
                "unknown version of the tokenizer.json format",
            )
            .field("version")
            .found(&definition.version)
            .limit("1.0"));
        }
        definition.model.kind = Some(definition.model.kind()?.into());
        Ok(definition)
    }

    /// As the bytes of a `tokenizer.json`.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| {
            Error::internal("TOKENIZER-WRITE", format!("a tokenizer cannot be written as JSON: {e}"))
        })
    }
}

impl Model {
    /// The type, told from the fields where an old file does not state it.
    fn kind(&self) -> Result<&'static str> {
        const KINDS: [&str; 4] = ["BPE", "WordPiece", "WordLevel", "Unigram"];
        if let Some(stated) = &self.kind {
            return KINDS.into_iter().find(|k| k == stated).ok_or_else(|| {
                Error::unsupported("TOKENIZER-MODEL", "unknown type of tokenizer model")
                    .field("model.type")
                    .found(stated)
                    .limit(KINDS.join(", "))
            });
        }
        Ok(match (&self.vocab, &self.merges) {
            (Vocab::Scores(_), _) => "Unigram",
            (_, Some(_)) => "BPE",
            _ if self.continuing_subword_prefix.is_some() => "WordPiece",
            _ => "WordLevel",
        })
    }
}

/// The content of a JSON file of bounded size.
pub(super) fn json_file(path: &Path, limits: &Limits) -> Result<Vec<u8>> {
    let file = SourceFile::open(path)?;
    if file.len() > limits.structure_bytes {
        return Err(too_large("structure_bytes", "the file", file.len(), limits.structure_bytes).file(path));
    }
    let mut content = vec![0; usize::try_from(file.len()).unwrap_or(usize::MAX)];
    file.read_exact_at(0, &mut content)?;
    file.unchanged()?;
    Ok(content)
}
