//! Text to token ids and back. A `tokenizer.json`, or the metadata of a GGUF file, enters; a checked
//! [`Tokenizer`] leaves. Knows the files and no model; a chat template is text here, never run.
//!
//! The work is done by the tokenizers crate inside limits that this room enforces: what a file states
//! is checked before the crate relies on it, and the time for a text grows linearly with the text.

mod build;
mod charsmap;
mod definition;
mod gguf;
mod pre;
mod split;
mod stream;
#[cfg(test)]
mod tests;

pub use stream::TextStream;

use super::Limits;
use super::metadata::Metadata;
use crate::error::{Error, Kind, Result};
use crate::save;
use crate::tensor::SourceFile;
use crate::units::Bytes;
use definition::{Definition, json_file};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Name of the file that holds a tokenizer.
pub const FILE: &str = "tokenizer.json";
/// Name of the file with special tokens and chat template beside it.
const CONFIG: &str = "tokenizer_config.json";
/// Longest text of one call, in bytes.
const LONGEST_TEXT: usize = 256 << 20;
/// Work that added tokens with a say about the text around them may cause, in bytes looked at.
const MOST_LOOKING: usize = 8 << 30;

/// Special tokens by their text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Names {
    pub bos: Option<String>,
    pub eos: Vec<String>,
    pub pad: Option<String>,
    pub unk: Option<String>,
}

/// Ids of special tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Special {
    /// Begins a text.
    pub bos: Option<u32>,
    /// End a text; any of them.
    pub eos: Vec<u32>,
    /// Fills short rows of a batch.
    pub pad: Option<u32>,
    /// Stands for what is not in the vocabulary.
    pub unk: Option<u32>,
}

/// A tokenizer, ready to use. Shared between threads by reference.
pub struct Tokenizer {
    engine: build::Engine,
    definition: Definition,
    names: Names,
    special: Special,
    chat_template: Option<String>,
    longest: Option<usize>,
    vocab_size: usize,
    digest: String,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("kind", &self.kind())
            .field("vocab_size", &self.vocab_size)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Opens the tokenizer that belongs to `path`: a `tokenizer.json`, a directory that holds one, a
    /// GGUF file, or a model file with a `tokenizer.json` beside it.
    ///
    /// # Errors
    /// `Invalid` where there is none or it is damaged, naming the field; `Unsupported` for kinds that
    /// are not known; `Limit` for one that is too large.
    pub fn open(path: &Path) -> Result<Tokenizer> {
        Tokenizer::open_with(path, &Limits::from_env()?)
    }

    /// [`Tokenizer::open`] with limits.
    pub fn open_with(path: &Path, limits: &Limits) -> Result<Tokenizer> {
        if path.is_dir() {
            return Tokenizer::from_file(&path.join(FILE), limits).map_err(|e| missing(e, path));
        }
        let named = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
        if named {
            return Tokenizer::from_file(path, limits);
        }
        let file = SourceFile::open(path)?;
        let mut head = [0u8; 4];
        if file.len() >= 4 {
            file.read_exact_at(0, &mut head)?;
        }
        let beside = beside(path);
        if &head == b"GGUF" {
            // The file's own tokenizer first: what lies beside it need not belong to it.
            let own = super::checkpoint(path, limits)
                .and_then(|c| Tokenizer::from_metadata(&c.metadata))
                .map_err(|e| e.file(path));
            match (own, beside) {
                (Err(e), Some(beside)) if e.kind() == Kind::Unsupported => {
                    return Tokenizer::from_file(&beside, limits);
                }
                (own, _) => return own,
            }
        }
        let beside = beside.ok_or_else(|| {
            Error::invalid("TOKENIZER-NONE", "there is no tokenizer beside the model")
                .file(path)
                .hint("put the model's tokenizer.json into the same directory")
        })?;
        Tokenizer::from_file(&beside, limits)
    }

    /// The tokenizer that the metadata of a GGUF file describe.
    pub fn from_metadata(metadata: &Metadata) -> Result<Tokenizer> {
        let (definition, names) = gguf::read(metadata)?;
        let template = metadata.text("tokenizer.chat_template")?.map(str::to_string);
        let architecture = metadata.text("general.architecture")?.unwrap_or_default();
        let longest = metadata.count(&format!("{architecture}.context_length"))?;
        let longest = longest.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        Tokenizer::new(definition, names, template, longest)
    }

    fn from_file(path: &Path, limits: &Limits) -> Result<Tokenizer> {
        let definition = Definition::read(path, limits)?;
        build::check_size(&definition, limits).map_err(|e| e.file(path))?;
        let directory = path.parent().unwrap_or(Path::new("."));
        let config_path = directory.join(CONFIG);
        let config = optional_json(&config_path, limits)?;
        let names = names_of(&config, &definition);
        let mut template = chat_template(&config);
        let apart = directory.join("chat_template.jinja");
        if template.is_none() && apart.is_file() {
            let content = json_file(&apart, limits)?;
            template = String::from_utf8(content).ok();
        }
        let truncated =
            definition.truncation.as_ref().and_then(|t| t.get("max_length")).and_then(Value::as_u64);
        let longest = config.get("model_max_length").and_then(Value::as_f64);
        let longest = longest.filter(|n| (1.0..1e9).contains(n)).map(|n| n as usize);
        let longest = longest.or(truncated.and_then(|n| usize::try_from(n).ok()));
        Tokenizer::new(definition, names, template, longest).map_err(|e| e.file(path))
    }

    fn new(
        definition: Definition,
        names: Names,
        chat_template: Option<String>,
        longest: Option<usize>,
    ) -> Result<Tokenizer> {
        let (engine, vocab_size) = build::build(&definition)?;
        let id = |token: &Option<String>| token.as_ref().and_then(|t| engine.token_to_id(t));
        let special = Special {
            bos: id(&names.bos),
            eos: names.eos.iter().filter_map(|t| engine.token_to_id(t)).collect(),
            pad: id(&names.pad),
            unk: id(&names.unk),
        };
        let mut content = definition.to_bytes()?;
        content.extend(format!("{special:?}").into_bytes());
        let digest = save::sha256(&content);
        Ok(Tokenizer { engine, definition, names, special, chat_template, longest, vocab_size, digest })
    }

    /// Token ids of a text; `special` adds what the tokenizer puts around every text, such as a token
    /// for its beginning. Special tokens that are spelled out in the text count as such.
    ///
    /// # Errors
    /// `Limit` for a text that is too long, or one that makes a pattern of the tokenizer give up;
    /// `Invalid` for a character that has no token where the tokenizer has none for unknown ones.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        if text.len() > LONGEST_TEXT {
            return Err(Error::limit_exceeded("TOKENIZER-TEXT", "the text is too long for one call")
                .found(Bytes(text.len() as u64))
                .limit(Bytes(LONGEST_TEXT as u64))
                .hint("split it into documents"));
        }
        self.check_looking(text)?;
        match self.engine.encode_fast(text, special) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(e) => Err(match e.downcast::<Error>() {
                Ok(ours) => *ours,
                Err(e) => Error::invalid("TOKENIZER-ENCODE", format!("the text has no tokens: {e}"))
                    .hint("the tokenizer lacks a token for unknown characters; is it the model's own?"),
            }),
        }
    }

    /// Each match of an added token that must stand alone, or swallows spaces before it, makes the
    /// library look at the whole text before the match.
    fn check_looking(&self, text: &str) -> Result<()> {
        let looking = self.definition.added_tokens.iter().filter(|a| a.single_word || a.lstrip);
        for token in looking {
            let work = text.matches(&token.content).count().saturating_mul(text.len() / 2);
            if work > MOST_LOOKING {
                return Err(Error::limit_exceeded(
                    "TOKENIZER-TEXT",
                    "the text holds an added token too often for its length",
                )
                .field(format!("added_tokens: \"{}\"", token.content))
                .hint("split it into documents"));
            }
        }
        Ok(())
    }

    /// The text of token ids; `skip_special` leaves special tokens out. Bytes that are no UTF-8 become
    /// replacement characters, ids beyond the vocabulary nothing.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.engine
            .decode(ids, skip_special)
            .map_err(|e| Error::invalid("TOKENIZER-DECODE", format!("the tokens have no text: {e}")))
    }

    /// Text piece by piece while ids arrive.
    pub fn stream(&self, skip_special: bool) -> TextStream<'_> {
        TextStream::new(self, skip_special)
    }

    /// The id of a token by its text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.engine.token_to_id(token)
    }

    /// The token of an id, as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.engine.id_to_token(id)
    }

    /// Bytes of text that a token stands for: of a byte-level token those that its characters spell, of
    /// a SentencePiece token with the space sign as one byte, of a word piece without its mark.
    pub fn token_bytes(&self, id: u32) -> usize {
        let Some(token) = self.token(id) else { return 0 };
        let byte_level = self.definition.decoder.as_ref().is_some_and(|d| d["type"] == "ByteLevel");
        let added = self.engine.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id);
        match () {
            () if added => token.len(),
            () if byte_level => token.chars().count(),
            () if token.len() == 6 && token.starts_with("<0x") => 1,
            () if self.kind() == "WordPiece" => token.strip_prefix("##").unwrap_or(&token).len(),
            () => token.replace(gguf::SPACE, " ").len(),
        }
    }

    /// Ids of the special tokens.
    pub fn special(&self) -> &Special {
        &self.special
    }

    /// The tokens that it puts before every text: the one for the beginning, where it does.
    pub fn beginning(&self) -> Result<Vec<u32>> {
        let first = self.encode("a", true)?.first().copied();
        Ok(self.special().bos.filter(|bos| first == Some(*bos)).into_iter().collect())
    }

    /// Type of the model: `BPE`, `WordPiece`, `WordLevel`, `Unigram`.
    pub fn kind(&self) -> &str {
        self.definition.model.kind.as_deref().unwrap_or("BPE")
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Longest text that the model is made for, in tokens, where the files say so.
    pub fn longest(&self) -> Option<usize> {
        self.longest
    }

    /// The chat template as it was found. It is a program in a template language: for recognising
    /// known formats, never to be run.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// SHA-256 of everything that decides about ids.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// As the bytes of a `tokenizer.json`.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        self.definition.to_bytes()
    }

    /// Writes `tokenizer.json`, and `tokenizer_config.json` with special tokens and chat template, into
    /// a directory; [`Tokenizer::open`] reads the same tokenizer from there.
    pub fn save(&self, directory: &Path) -> Result<Vec<PathBuf>> {
        let (tokenizer, config) = (directory.join(FILE), directory.join(CONFIG));
        save::bytes(&tokenizer, &self.to_json()?)?;
        let mut content = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
        });
        let mut set = |key: &str, value: Value| content[key] = value;
        if let Some(token) = &self.names.bos {
            set("bos_token", json!(token));
        }
        if let Some(token) = self.names.eos.first() {
            set("eos_token", json!(token));
        }
        if self.names.eos.len() > 1 {
            set("eos_tokens", json!(self.names.eos));
        }
        if let Some(token) = &self.names.pad {
            set("pad_token", json!(token));
        }
        if let Some(token) = &self.names.unk {
            set("unk_token", json!(token));
        }
        if let Some(longest) = self.longest {
            set("model_max_length", json!(longest));
        }
        if let Some(template) = &self.chat_template {
            set("chat_template", json!(template));
        }
        save::json(&config, &content)?;
        Ok(vec![tokenizer, config])
    }
}

/// `tokenizer.json` beside a file.
fn beside(path: &Path) -> Option<PathBuf> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Some(directory.join(FILE)).filter(|p| p.is_file())
}

fn missing(e: Error, directory: &Path) -> Error {
    if directory.join(FILE).exists() {
        return e;
    }
    Error::invalid("TOKENIZER-NONE", "the directory holds no tokenizer.json")
        .file(directory)
        .hint("put the model's tokenizer.json there; older vocab.json and tokenizer.model files are not read")
}

/// A JSON object, empty where there is no such file.
pub(super) fn optional_json(path: &Path, limits: &Limits) -> Result<Value> {
    if !path.exists() {
        return Ok(Value::Null);
    }
    let content = json_file(path, limits)?;
    let value: Value = serde_json::from_slice(&content)
        .map_err(|e| Error::invalid("JSON", format!("this is no JSON: {e}")).file(path))?;
    Ok(value)
}

/// Special tokens by `tokenizer_config.json`, or by the usual names among the added tokens.
fn names_of(config: &Value, definition: &Definition) -> Names {
    let token = |key: &str| match config.get(key) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Object(o)) => o.get("content").and_then(Value::as_str).map(str::to_string),
        _ => None,
    };
    let usual = |names: &[&str]| {
        let added = |n: &&str| definition.added_tokens.iter().any(|a| a.special && a.content == *n);
        names.iter().copied().find(added).map(str::to_string)
    };
    let listed = config.get("eos_tokens").and_then(Value::as_array);
    let mut eos: Vec<String> =
        listed.into_iter().flatten().filter_map(Value::as_str).map(str::to_string).collect();
    if eos.is_empty() {
        eos.extend(token("eos_token").or_else(|| usual(&["</s>", "<|endoftext|>", "<eos>", "[SEP]"])));
    }
    Names {
        bos: token("bos_token").or_else(|| usual(&["<s>", "<bos>", "[CLS]"])),
        eos,
        pad: token("pad_token").or_else(|| usual(&["<pad>", "[PAD]"])),
        unk: token("unk_token").or_else(|| definition.model.unk_token.clone()),
    }
}

/// The template for ordinary conversations; files may list several by name.
fn chat_template(config: &Value) -> Option<String> {
    match config.get("chat_template")? {
        Value::String(text) => Some(text.clone()),
        Value::Array(list) => {
            let named =
                |name: &str| list.iter().find(|t| t.get("name").and_then(Value::as_str) == Some(name));
            let chosen = named("default").or_else(|| list.first())?;
            chosen.get("template").and_then(Value::as_str).map(str::to_string)
        }
        _ => None,
    }
}
