//! The tokenizer that the metadata of a GGUF file describes (keys `tokenizer.ggml.*`), as a
//! [`Definition`]. Byte-level BPE (`gpt2`), SentencePiece BPE (`llama`) and WordPiece (`bert`).

use super::Names;
use super::definition::{Added, Definition, MOST_TOKENS, Merge, Model, Vocab};
use super::pre;
use crate::error::{Error, Result};
use crate::formats::metadata::Metadata;
use serde_json::{Value, json};
use std::collections::HashMap;

/// Kinds of tokens (`tokenizer.ggml.token_type`).
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const BYTE: i64 = 6;

/// The sign for a space in SentencePiece vocabularies.
pub(super) const SPACE: &str = "\u{2581}";

const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

/// The facts that all kinds share, checked.
struct Facts<'a> {
    metadata: &'a Metadata,
    tokens: &'a [String],
    types: Option<&'a [i64]>,
    ids: HashMap<&'a str, i64>,
}

/// Reads the tokenizer that `metadata` describes, and its special tokens.
///
/// # Errors
/// `Invalid` for metadata that contradict themselves, naming key and index; `Unsupported` for kinds of
/// tokenizers and pre-tokenizers that are not known.
pub(super) fn read(metadata: &Metadata) -> Result<(Definition, Names)> {
    let kind = metadata.text("tokenizer.ggml.model")?.ok_or_else(|| {
        Error::unsupported("TOKENIZER-NONE", "the file holds no tokenizer")
            .field("tokenizer.ggml.model")
            .hint("put the model's tokenizer.json beside it")
    })?;
    if !matches!(kind, "gpt2" | "llama" | "bert") {
        return Err(Error::unsupported("TOKENIZER-KIND", "this kind of tokenizer is not supported")
            .field("tokenizer.ggml.model")
            .found(kind)
            .limit("gpt2, llama, bert")
            .hint("put the model's tokenizer.json beside it"));
    }
    let facts = Facts::read(metadata)?;
    let definition = match kind {
        "gpt2" => facts.byte_level()?,
        "llama" => facts.sentence_piece()?,
        _ => facts.word_piece()?,
    };
    Ok((definition, facts.names(kind)?))
}

impl<'a> Facts<'a> {
    fn read(metadata: &'a Metadata) -> Result<Facts<'a>> {
        let tokens = metadata.texts(TOKENS)?.unwrap_or_default();
        if tokens.is_empty() || tokens.len() > MOST_TOKENS {
            return Err(Error::invalid("TOKENIZER-TOKENS", "the vocabulary is empty or too large")
                .field(TOKENS)
                .found(tokens.len())
                .limit(format!("1 to {MOST_TOKENS}")));
        }
        let types = metadata.ints(TYPES)?;
        let lengths =
            [(TYPES, types.map(<[i64]>::len)), (SCORES, metadata.floats(SCORES)?.map(<[f32]>::len))];
        for (key, length) in lengths {
            if let Some(length) = length.filter(|n| *n != tokens.len()) {
                return Err(Error::invalid("TOKENIZER-LENGTH", "there is not one entry for each token")
                    .field(key)
                    .found(length)
                    .limit(tokens.len()));
            }
        }
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if let Some(first) = ids.insert(token.as_str(), id as i64) {
                return Err(Error::invalid("TOKENIZER-TWICE", "a token is listed twice")
                    .field(format!("{TOKENS}[{id}]"))
                    .found(token)
                    .hint(format!("it is number {first} too; convert the model again")));
            }
        }
        Ok(Facts { metadata, tokens, types, ids })
    }

    fn kind_of(&self, id: usize) -> i64 {
        self.types.and_then(|t| t.get(id).copied()).unwrap_or(1)
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.metadata.flag(&format!("tokenizer.ggml.{key}"))?.unwrap_or(default))
    }

    /// The id under a key such as `bos_token_id`; ids beyond the vocabulary are errors, but for the
    /// largest number, which some writers use for none.
    fn id(&self, name: &str) -> Result<Option<usize>> {
        let key = format!("tokenizer.ggml.{name}");
        match self.metadata.count(&key)? {
            None => Ok(None),
            Some(id) if id == u64::from(u32::MAX) => Ok(None),
            Some(id) if id < self.tokens.len() as u64 => Ok(Some(id as usize)),
            Some(id) => Err(Error::invalid("TOKENIZER-ID", "a special token is not in the vocabulary")
                .field(key)
                .found(id)
                .limit(format!("0 to {}", self.tokens.len() - 1))),
        }
    }

    fn vocab(&self) -> Vocab {
        Vocab::Ids(self.tokens.iter().enumerate().map(|(id, t)| (t.clone(), id as i64)).collect())
    }

    /// Tokens that are matched in the text as they are. Those of Phi-3 swallow the white space behind
    /// them, which no key tells.
    fn added(&self) -> Result<Vec<Added>> {
        let named = |key: &str| self.metadata.text(key).map(|t| t.unwrap_or_default().to_lowercase());
        let phi3 = named("general.architecture")? == "phi3" || named("general.name")?.contains("phi-3");
        let added = |(id, content): (usize, &String)| {
            let kind = self.kind_of(id);
            let special = matches!(kind, CONTROL | UNKNOWN);
            let swallows = phi3
                && (kind == CONTROL || content == "</s>")
                && !matches!(content.as_str(), "<unk>" | "<s>" | "<|endoftext|>");
            (special || kind == USER_DEFINED).then(|| Added {
                id: id as i64,
                content: content.clone(),
                single_word: false,
                lstrip: false,
                rstrip: swallows,
                normalized: false,
                special,
            })
        };
        Ok(self.tokens.iter().enumerate().filter(|(_, t)| !t.is_empty()).filter_map(added).collect())
    }

    /// The template that puts tokens before and behind a text.
    fn around(&self, before: Option<usize>, behind: Option<usize>) -> Option<Value> {
        let piece = |id: usize| json!({"SpecialToken": {"id": self.tokens[id], "type_id": 0}});
        let mut single: Vec<Value> = before.map(piece).into_iter().collect();
        single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
        single.extend(behind.map(piece));
        let mut special = serde_json::Map::new();
        for id in [before, behind].into_iter().flatten() {
            let token = &self.tokens[id];
            special.insert(token.clone(), json!({"id": token, "ids": [id], "tokens": [token]}));
        }
        let pair: Vec<Value> = single
            .iter()
            .cloned()
            .chain([json!({"Sequence": {"id": "B", "type_id": 1}})])
            .chain(behind.map(|id| json!({"SpecialToken": {"id": self.tokens[id], "type_id": 1}})))
            .collect();
        (!special.is_empty()).then(|| {
            json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special})
        })
    }

    fn byte_level(&self) -> Result<Definition> {
        let name = self.metadata.text("tokenizer.ggml.pre")?.unwrap_or("default");
        let pre = pre::find(name).ok_or_else(|| {
            Error::unsupported("TOKENIZER-PRE", "this pre-tokenizer is not known")
                .field("tokenizer.ggml.pre")
                .found(name)
                .limit(pre::names())
                .hint("put the model's tokenizer.json beside it")
        })?;
        let listed = self
            .metadata
            .texts(MERGES)?
            .ok_or_else(|| Error::invalid("TOKENIZER-MERGES", "the tokenizer has no merges").field(MERGES))?;
        let mut merges = Vec::with_capacity(listed.len());
        for (i, text) in listed.iter().enumerate() {
            let at = || format!("{MERGES}[{i}]");
            let merge = Merge::parse(text).ok_or_else(|| {
                Error::invalid("TOKENIZER-MERGE", "a merge is not a pair of tokens").field(at()).found(text)
            })?;
            let whole = format!("{}{}", merge.0, merge.1);
            if let Some(missing) =
                [&merge.0, &merge.1, &whole].into_iter().find(|t| !self.ids.contains_key(t.as_str()))
            {
                return Err(Error::invalid("TOKENIZER-MERGE", "a merge is about an unknown token")
                    .field(at())
                    .found(missing));
            }
            merges.push(merge);
        }
        let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let bytes =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let steps: Vec<Value> = pre.patterns.iter().map(split).chain([bytes.clone()]).collect();
        let bos = self.flag("add_bos_token", pre.add_bos)?;
        let eos = self.flag("add_eos_token", false)?;
        let mut definition = Definition::of(Model {
            kind: Some("BPE".into()),
            fuse_unk: Some(false),
            byte_fallback: Some(false),
            ignore_merges: Some(pre.ignore_merges),
            vocab: self.vocab(),
            merges: Some(merges),
            ..Model::default()
        });
        definition.added_tokens = self.added()?;
        if self.flag("add_space_prefix", false)? {
            definition.normalizer = Some(json!({"type": "Prepend", "prepend": " "}));
        }
        definition.pre_tokenizer = Some(json!({"type": "Sequence", "pretokenizers": steps}));
        definition.decoder = Some(bytes);
        let before = if bos { self.id("bos_token_id")? } else { None };
        let behind = if eos { self.id("eos_token_id")? } else { None };
        definition.post_processor = self.around(before, behind);
        Ok(definition)
    }

    fn sentence_piece(&self) -> Result<Definition> {
        let scores = self.metadata.floats(SCORES)?.ok_or_else(|| {
            Error::invalid("TOKENIZER-SCORES", "a SentencePiece tokenizer needs scores").field(SCORES)
        })?;
        if let Some(i) = scores.iter().position(|s| !s.is_finite()) {
            return Err(Error::invalid("TOKENIZER-SCORES", "a score is not a number")
                .field(format!("{SCORES}[{i}]"))
                .found(scores[i]));
        }
        let mut bytes = 0;
        for (id, token) in self.tokens.iter().enumerate().filter(|(id, _)| self.kind_of(*id) == BYTE) {
            let hex = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
            let fits = hex.is_some_and(|h| h.len() == 2 && h.bytes().all(|c| c.is_ascii_hexdigit()));
            if !fits {
                return Err(Error::invalid("TOKENIZER-BYTE", "a token for a byte does not name one")
                    .field(format!("{TOKENS}[{id}]"))
                    .found(token)
                    .limit("<0x00> to <0xFF>"));
            }
            bytes += 1;
        }
        let prefix = self.flag("add_space_prefix", true)?;
        let unknown = self.id("unknown_token_id")?.or((self.kind_of(0) == UNKNOWN).then_some(0));
        let mut definition = Definition::of(Model {
            kind: Some("BPE".into()),
            unk_token: unknown.map(|id| self.tokens[id].clone()),
            fuse_unk: Some(true),
            byte_fallback: Some(bytes > 0),
            ignore_merges: Some(false),
            vocab: self.vocab(),
            merges: Some(self.merges_by_score(scores)),
            ..Model::default()
        });
        definition.added_tokens = self.added()?;
        let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
        let first = prefix.then(|| json!({"type": "Prepend", "prepend": SPACE}));
        let steps: Vec<Value> = first.into_iter().chain([spaces]).collect();
        definition.normalizer = Some(json!({"type": "Sequence", "normalizers": steps}));
        let mut steps = vec![
            json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefix {
            steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        definition.decoder = Some(json!({"type": "Sequence", "decoders": steps}));
        let before = if self.flag("add_bos_token", true)? { self.id("bos_token_id")? } else { None };
        let behind = if self.flag("add_eos_token", false)? { self.id("eos_token_id")? } else { None };
        definition.post_processor = self.around(before, behind);
        Ok(definition)
    }

    /// SentencePiece joins the neighbours whose union has the highest score. As merges: every way to
    /// cut a token into two others, by falling score of the token, longer left parts first.
    fn merges_by_score(&self, scores: &[f32]) -> Vec<Merge> {
        let mut found: Vec<(f32, usize, usize, &str, &str)> = Vec::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if matches!(self.kind_of(id), CONTROL | UNKNOWN | BYTE) {
                continue;
            }
            for (count, (at, _)) in token.char_indices().enumerate().skip(1) {
                let (left, right) = token.split_at(at);
                if self.ids.contains_key(left) && self.ids.contains_key(right) {
                    found.push((scores[id], count, id, left, right));
                }
            }
        }
        found.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(a.2.cmp(&b.2)));
        found.into_iter().map(|(_, _, _, left, right)| Merge(left.into(), right.into())).collect()
    }

    /// GGUF writes `word` as `▁word` and `##piece` as `piece`; tokens in brackets stay.
    fn word_piece(&self) -> Result<Definition> {
        let plain = |token: &String| match token.strip_prefix(SPACE) {
            Some(word) => word.to_string(),
            None if token.starts_with('[') && token.ends_with(']') && token.len() > 2 => token.clone(),
            None => format!("##{token}"),
        };
        let mut ids = HashMap::with_capacity(self.tokens.len());
        let mut vocab = Vec::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            let token = plain(token);
            if ids.insert(token.clone(), id).is_some() {
                return Err(Error::invalid("TOKENIZER-TWICE", "a token is listed twice")
                    .field(format!("{TOKENS}[{id}]"))
                    .found(token));
            }
            vocab.push((token, id as i64));
        }
        let unknown = self.id("unknown_token_id")?.map_or("[UNK]".into(), |id| self.tokens[id].clone());
        if !ids.contains_key(&unknown) {
            return Err(Error::invalid("TOKENIZER-ID", "the token for unknown words is missing")
                .field("tokenizer.ggml.unknown_token_id")
                .found(unknown));
        }
        let mut definition = Definition::of(Model {
            kind: Some("WordPiece".into()),
            unk_token: Some(unknown),
            continuing_subword_prefix: Some("##".into()),
            max_input_chars_per_word: Some(100),
            vocab: Vocab::Ids(vocab),
            ..Model::default()
        });
        definition.added_tokens = self.added()?.into_iter().filter(|a| a.content.starts_with('[')).collect();
        definition.normalizer = Some(json!({
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true,
        }));
        definition.pre_tokenizer = Some(json!({"type": "BertPreTokenizer"}));
        definition.decoder = Some(json!({"type": "WordPiece", "prefix": "##", "cleanup": true}));
        let (first, last) = self.bert_ends()?;
        definition.post_processor = self.around(first, last);
        Ok(definition)
    }

    fn bert_ends(&self) -> Result<(Option<usize>, Option<usize>)> {
        let named = |token: &str| self.ids.get(token).map(|id| *id as usize);
        let first = self.id("cls_token_id")?.or(self.id("bos_token_id")?).or_else(|| named("[CLS]"));
        // The misspelt key is the one that writers use.
        let last = self.id("seperator_token_id")?.or(self.id("eos_token_id")?).or_else(|| named("[SEP]"));
        let first = if self.flag("add_bos_token", true)? { first } else { None };
        let last = if self.flag("add_eos_token", true)? { last } else { None };
        Ok((first, last))
    }

    fn names(&self, kind: &str) -> Result<Names> {
        let text = |id: Option<usize>| id.map(|id| self.tokens[id].clone());
        let end = [self.id("eos_token_id")?, self.id("eot_token_id")?, self.id("eom_token_id")?];
        let mut eos: Vec<String> = Vec::new();
        for token in end.into_iter().filter_map(text) {
            if !eos.contains(&token) {
                eos.push(token);
            }
        }
        let bos =
            self.id("bos_token_id")?.or((kind == "llama").then_some(1).filter(|id| *id < self.tokens.len()));
        Ok(Names {
            bos: text(bos),
            eos,
            pad: text(self.id("padding_token_id")?),
            unk: text(self.id("unknown_token_id")?),
        })
    }
}
