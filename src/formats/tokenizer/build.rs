//! From a definition to a working tokenizer. Everything that the tokenizers library would take on
//! trust, and fall over, is checked here and refused by name: ids, merges, templates, texts that grow
//! without bound, damaged character maps, words of any length.

use super::charsmap;
use super::definition::{Definition, MOST_ADDED, MOST_TOKENS, Model, Vocab};
use super::split::Splitter;
use crate::error::{Error, Result};
use crate::formats::limits::Limits;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use tokenizers::models::{bpe::BPE, unigram::Unigram, wordlevel::WordLevel, wordpiece::WordPiece};
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, TokenizerImpl,
};

/// The library's tokenizer with our way to cut text.
pub(super) type Engine =
    TokenizerImpl<ModelWrapper, NormalizerWrapper, Splitter, PostProcessorWrapper, DecoderWrapper>;

/// Most that all normalizers together may lengthen a text, and all decoders a token.
const MOST_GROWTH: usize = 64;
/// Most parts of a normalizer or decoder.
const MOST_PARTS: usize = 64;
/// Longest word that WordPiece looks into, in characters: its work grows with the square.
const LONGEST_WORD: u64 = 256;
/// Longest token of a Unigram model, in bytes: its work grows with the square.
const LONGEST_PIECE: usize = 256;
/// Longest token of any other kind, in bytes.
const LONGEST_TOKEN: usize = 64 << 10;

/// A tokenizer that works, and one more than its largest id.
pub(super) fn build(definition: &Definition) -> Result<(Engine, usize)> {
    let added = added(definition)?;
    let (model, mut size) = model(&definition.model, &added)?;
    let mut engine = Engine::new(model);
    if let Some(value) = present(&definition.normalizer) {
        check_growth(value, "normalizer", "normalizers")?;
        let normalizer = NormalizerWrapper::deserialize(value).map_err(|e| broken("normalizer", e))?;
        engine.with_normalizer(Some(normalizer)).map_err(|e| broken("normalizer", e))?;
    }
    if let Some(value) = present(&definition.pre_tokenizer) {
        engine.with_pre_tokenizer(Some(Splitter::build(value)?));
    }
    if let Some(value) = present(&definition.decoder) {
        check_growth(value, "decoder", "decoders")?;
        let decoder = DecoderWrapper::deserialize(value).map_err(|e| broken("decoder", e))?;
        engine.with_decoder(Some(decoder));
    }
    let tokens: Vec<AddedToken> = added
        .iter()
        .map(|(_, a)| AddedToken {
            content: a.content.clone(),
            single_word: a.single_word,
            lstrip: a.lstrip,
            rstrip: a.rstrip,
            normalized: a.normalized,
            special: a.special,
        })
        .collect();
    engine.add_tokens(tokens).map_err(|e| broken("added_tokens", e))?;
    for (id, token) in &added {
        let got = engine.token_to_id(&token.content);
        if got != Some(*id) {
            return Err(Error::unsupported(
                "TOKENIZER-ADDED",
                "an added token cannot have the id that it states",
            )
            .field(format!("added_tokens: \"{}\"", token.content))
            .found(id)
            .limit(got.map_or("none".into(), |n| n.to_string()))
            .hint("the ids of added tokens have a gap; save the tokenizer anew with its library"));
        }
        size = size.max(*id as usize + 1);
    }
    if let Some(value) = present(&definition.post_processor) {
        check_post(value, "post_processor", size, 0)?;
        let post = PostProcessorWrapper::deserialize(value).map_err(|e| broken("post_processor", e))?;
        engine.with_post_processor(Some(post));
    }
    Ok((engine, size))
}

/// A bound on the limits that hold for definitions beside those of files.
pub(super) fn check_size(definition: &Definition, limits: &Limits) -> Result<()> {
    let merges = definition.model.merges.as_ref().map_or(0, Vec::len);
    if merges as u64 > limits.items {
        return Err(
            crate::formats::limits::too_many("items", "the merges", limits.items).field("model.merges")
        );
    }
    Ok(())
}

fn present(part: &Option<Value>) -> Option<&Value> {
    part.as_ref().filter(|v| !v.is_null())
}

fn broken(field: &str, what: impl std::fmt::Display) -> Error {
    Error::invalid("TOKENIZER-PART", format!("a part of the tokenizer cannot be read: {what}")).field(field)
}

/// The added tokens by rising id, checked.
fn added(definition: &Definition) -> Result<Vec<(u32, &super::definition::Added)>> {
    if definition.added_tokens.len() > MOST_ADDED {
        return Err(Error::limit_exceeded("TOKENIZER-ADDED", "there are too many added tokens")
            .field("added_tokens")
            .found(definition.added_tokens.len())
            .limit(MOST_ADDED));
    }
    let mut seen = HashSet::new();
    let mut out = Vec::with_capacity(definition.added_tokens.len());
    for (i, token) in definition.added_tokens.iter().enumerate() {
        let at = || format!("added_tokens[{i}]");
        let id = id_of(token.id).map_err(|e| e.field(at()))?;
        if token.content.is_empty() || token.content.len() > LONGEST_TOKEN {
            return Err(Error::invalid("TOKENIZER-ADDED", "an added token is empty or too long")
                .field(at())
                .found(token.content.len())
                .limit(format!("1 to {LONGEST_TOKEN} bytes")));
        }
        if !seen.insert(token.content.as_str()) {
            return Err(Error::invalid("TOKENIZER-TWICE", "a token is listed twice")
                .field(at())
                .found(&token.content));
        }
        out.push((id, token));
    }
    out.sort_by_key(|(id, _)| *id);
    Ok(out)
}

fn id_of(id: i64) -> Result<u32> {
    u32::try_from(id).ok().filter(|id| (*id as usize) < MOST_TOKENS).ok_or_else(|| {
        Error::invalid("TOKENIZER-ID", "the id of a token is out of range")
            .found(id)
            .limit(format!("0 to {}", MOST_TOKENS - 1))
    })
}

fn too_many_tokens(count: usize) -> Error {
    Error::limit_exceeded("TOKENIZER-TOKENS", "the vocabulary is too large")
        .field("model.vocab")
        .found(count)
        .limit(MOST_TOKENS)
}

/// The vocabulary by token, every token and id once.
fn ids(model: &Model) -> Result<HashMap<&str, u32>> {
    let Vocab::Ids(list) = &model.vocab else {
        return Err(Error::invalid(
            "TOKENIZER-VOCAB",
            "this type of model has ids for its tokens, not scores",
        )
        .field("model.vocab"));
    };
    if list.len() > MOST_TOKENS {
        return Err(too_many_tokens(list.len()));
    }
    let mut tokens = HashMap::with_capacity(list.len());
    let mut taken = HashMap::with_capacity(list.len());
    for (token, id) in list {
        let at = || format!("model.vocab: \"{}\"", token.chars().take(80).collect::<String>());
        let id = id_of(*id).map_err(|e| e.field(at()))?;
        if token.len() > LONGEST_TOKEN {
            return Err(Error::invalid("TOKENIZER-TOKEN", "a token is too long")
                .field(at())
                .found(token.len())
                .limit(format!("{LONGEST_TOKEN} bytes")));
        }
        if tokens.insert(token.as_str(), id).is_some() {
            return Err(Error::invalid("TOKENIZER-TWICE", "a token is listed twice").field(at()));
        }
        if let Some(other) = taken.insert(id, token) {
            return Err(Error::invalid("TOKENIZER-TWICE", "two tokens have the same id")
                .field(at())
                .found(format!("{id}, the id of \"{other}\"")));
        }
    }
    Ok(tokens)
}

fn model(model: &Model, added: &[(u32, &super::definition::Added)]) -> Result<(ModelWrapper, usize)> {
    let failed = |e: tokenizers::Error| broken("model", e);
    if model.kind.as_deref() == Some("Unigram") {
        return unigram(model);
    }
    let mut tokens = ids(model)?;
    let owned = |tokens: &HashMap<&str, u32>| -> HashMap<String, u32> {
        tokens.iter().map(|(t, id)| ((*t).to_string(), *id)).collect()
    };
    let unknown = || model.unk_token.clone().unwrap_or_else(|| "[UNK]".into());
    let wrapper = match model.kind.as_deref() {
        Some("BPE") => {
            let merges = merges(model, &tokens)?;
            // The library numbers added tokens by itself, one after the other; a token that is in the
            // vocabulary keeps its number. BPE reaches a token by merges alone, so this changes nothing
            // else.
            let used: HashSet<u32> = tokens.values().copied().collect();
            for (id, token) in added {
                if !tokens.contains_key(token.content.as_str()) && !used.contains(id) {
                    tokens.insert(&token.content, *id);
                }
            }
            let mut builder = BPE::builder()
                .vocab_and_merges(owned(&tokens).into_iter().collect::<Map>(), merges)
                .fuse_unk(model.fuse_unk.unwrap_or(false))
                .byte_fallback(model.byte_fallback.unwrap_or(false))
                .ignore_merges(model.ignore_merges.unwrap_or(false));
            if let Some(unk) = &model.unk_token {
                builder = builder.unk_token(unk.clone());
            }
            if let Some(prefix) = &model.continuing_subword_prefix {
                builder = builder.continuing_subword_prefix(prefix.clone());
            }
            if let Some(suffix) = &model.end_of_word_suffix {
                builder = builder.end_of_word_suffix(suffix.clone());
            }
            ModelWrapper::BPE(builder.build().map_err(failed)?)
        }
        Some("WordPiece") => {
            let longest = model.max_input_chars_per_word.unwrap_or(100);
            if longest > LONGEST_WORD {
                return Err(Error::limit_exceeded(
                    "TOKENIZER-WORD",
                    "words may be too long for this model type",
                )
                .field("model.max_input_chars_per_word")
                .found(longest)
                .limit(LONGEST_WORD));
            }
            let unknown = unknown();
            needs(&tokens, &unknown)?;
            let built = WordPiece::builder()
                .vocab(owned(&tokens).into_iter().collect::<Map>())
                .unk_token(unknown)
                .continuing_subword_prefix(
                    model.continuing_subword_prefix.clone().unwrap_or_else(|| "##".into()),
                )
                .max_input_chars_per_word(longest as usize)
                .build();
            ModelWrapper::WordPiece(built.map_err(failed)?)
        }
        _ => {
            let unknown = unknown();
            needs(&tokens, &unknown)?;
            let vocab = owned(&tokens).into_iter().collect::<Map>();
            let built = WordLevel::builder().vocab(vocab).unk_token(unknown).build();
            ModelWrapper::WordLevel(built.map_err(failed)?)
        }
    };
    let size = tokens.values().max().map_or(0, |id| *id as usize + 1);
    if size == 0 {
        return Err(Error::invalid("TOKENIZER-TOKENS", "the vocabulary is empty").field("model.vocab"));
    }
    Ok((wrapper, size))
}

/// The map type that the library takes.
type Map = tokenizers::models::bpe::Vocab;

fn needs(tokens: &HashMap<&str, u32>, unknown: &str) -> Result<()> {
    if tokens.contains_key(unknown) {
        return Ok(());
    }
    Err(Error::invalid("TOKENIZER-UNKNOWN", "the token for unknown words is not in the vocabulary")
        .field("model.unk_token")
        .found(unknown))
}

fn merges(model: &Model, tokens: &HashMap<&str, u32>) -> Result<Vec<(String, String)>> {
    let prefix = model.continuing_subword_prefix.as_deref().unwrap_or_default();
    let listed = model.merges.as_ref().ok_or_else(|| {
        Error::invalid("TOKENIZER-MERGES", "a BPE model needs its merges").field("model.merges")
    })?;
    let mut whole = String::new();
    for (i, merge) in listed.iter().enumerate() {
        let at = || format!("model.merges[{i}]");
        let unknown = |token: &str| {
            Error::invalid("TOKENIZER-MERGE", "a merge is about an unknown token").field(at()).found(token)
        };
        let tail = merge.1.strip_prefix(prefix).ok_or_else(|| {
            Error::invalid("TOKENIZER-MERGE", "the second part of a merge does not continue a word")
                .field(at())
                .found(&merge.1)
                .limit(format!("\"{prefix}\" before it"))
        })?;
        whole.clear();
        whole.push_str(&merge.0);
        whole.push_str(tail);
        for token in [merge.0.as_str(), merge.1.as_str(), whole.as_str()] {
            if !tokens.contains_key(token) {
                return Err(unknown(token));
            }
        }
    }
    Ok(listed.iter().map(|m| (m.0.clone(), m.1.clone())).collect())
}

fn unigram(model: &Model) -> Result<(ModelWrapper, usize)> {
    let Vocab::Scores(list) = &model.vocab else {
        return Err(Error::invalid("TOKENIZER-VOCAB", "a Unigram model lists its tokens with scores")
            .field("model.vocab"));
    };
    if list.is_empty() || list.len() > MOST_TOKENS {
        return Err(too_many_tokens(list.len()));
    }
    let mut seen = HashSet::with_capacity(list.len());
    for (i, (token, score)) in list.iter().enumerate() {
        let at = || format!("model.vocab[{i}]");
        if !score.is_finite() {
            return Err(Error::invalid("TOKENIZER-SCORES", "a score is not a number").field(at()));
        }
        if token.len() > LONGEST_PIECE {
            return Err(Error::limit_exceeded("TOKENIZER-TOKEN", "a token is too long for this model type")
                .field(at())
                .found(token.len())
                .limit(format!("{LONGEST_PIECE} bytes")));
        }
        if !seen.insert(token.as_str()) {
            return Err(Error::invalid("TOKENIZER-TWICE", "a token is listed twice")
                .field(at())
                .found(token));
        }
    }
    let unknown = match model.unk_id {
        None => None,
        Some(id) => Some(usize::try_from(id).ok().filter(|id| *id < list.len()).ok_or_else(|| {
            Error::invalid("TOKENIZER-UNKNOWN", "the token for unknown words is not in the vocabulary")
                .field("model.unk_id")
                .found(id)
                .limit(format!("0 to {}", list.len() - 1))
        })?),
    };
    let built = Unigram::from(list.clone(), unknown, model.byte_fallback.unwrap_or(false));
    Ok((ModelWrapper::Unigram(built.map_err(|e| broken("model", e))?), list.len()))
}

/// Refuses normalizers and decoders that could blow a text up, are damaged, or may never end.
fn check_growth(value: &Value, field: &str, list: &str) -> Result<()> {
    let mut parts = 0;
    let growth = growth(value, field, list, &mut parts)?;
    if growth > MOST_GROWTH {
        return Err(Error::limit_exceeded("TOKENIZER-GROWTH", "a text could become too much longer")
            .field(field)
            .found(format!("{growth} times"))
            .limit(format!("{MOST_GROWTH} times")));
    }
    Ok(())
}

/// The most that a part lengthens a text.
fn growth(value: &Value, field: &str, list: &str, parts: &mut usize) -> Result<usize> {
    *parts += 1;
    if *parts > MOST_PARTS {
        return Err(Error::limit_exceeded("TOKENIZER-STEPS", "there are too many parts")
            .field(field)
            .limit(MOST_PARTS));
    }
    let kind = value.get("type").and_then(Value::as_str).ok_or_else(|| {
        Error::unsupported("TOKENIZER-PART", "a part of the tokenizer does not state its type").field(field)
    })?;
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    Ok(match kind {
        "Sequence" => {
            let inner = value.get(list).and_then(Value::as_array);
            let inner = inner.ok_or_else(|| broken(field, format!("a Sequence without {list}")))?;
            let mut total = 1usize;
            for (i, part) in inner.iter().enumerate() {
                let at = format!("{field}.{list}[{i}]");
                total = total.saturating_mul(growth(part, &at, list, parts)?);
            }
            total
        }
        "Prepend" => 1 + text("prepend").len() / 16,
        "Replace" => {
            let content = text("content").len();
            let pattern = value.get("pattern").unwrap_or(&Value::Null);
            match (
                pattern.get("String").and_then(Value::as_str),
                pattern.get("Regex").and_then(Value::as_str),
            ) {
                (Some(""), _) => return Err(broken(field, "an empty pattern is replaced everywhere")),
                (Some(literal), _) => content.div_ceil(literal.len()).max(1),
                (None, Some(regex)) => {
                    if regex::Regex::new(regex).is_err() {
                        return Err(Error::unsupported(
                            "TOKENIZER-PATTERN",
                            "a pattern that is replaced needs look-around, or cannot be read",
                        )
                        .field(field)
                        .found(regex));
                    }
                    content + 1
                }
                _ => return Err(broken(field, "a pattern is a String or a Regex")),
            }
        }
        "Precompiled" => {
            charsmap::check(text("precompiled_charsmap"), field)?;
            // A compatibility character may stand for up to 18 others.
            4
        }
        "Strip" if list == "decoders" && value.get("stop").and_then(Value::as_u64).unwrap_or(0) != 0 => {
            return Err(Error::unsupported("TOKENIZER-PART", "stripping the end of tokens is not supported")
                .field(format!("{field}.stop"))
                .found(value.get("stop").unwrap_or(&Value::Null))
                .limit(0));
        }
        "ByteLevel" => 2,
        _ => 1,
    })
}

/// Refuses post-processors that would look for what is not there.
fn check_post(value: &Value, field: &str, size: usize, depth: usize) -> Result<()> {
    if depth > 8 {
        return Err(broken(field, "it is nested too deeply"));
    }
    match value.get("type").and_then(Value::as_str) {
        Some("Sequence") => {
            let parts = value.get("processors").and_then(Value::as_array);
            let parts = parts.ok_or_else(|| broken(field, "a Sequence without processors"))?;
            if parts.len() > MOST_PARTS {
                return Err(broken(field, "it has too many parts"));
            }
            parts
                .iter()
                .enumerate()
                .try_for_each(|(i, p)| check_post(p, &format!("{field}.processors[{i}]"), size, depth + 1))
        }
        Some("TemplateProcessing") => check_template(value, field, size),
        Some("BertProcessing" | "RobertaProcessing") => ["sep", "cls"].into_iter().try_for_each(|name| {
            let id = value.get(name).and_then(|p| p.get(1)).and_then(Value::as_i64);
            let id = id.ok_or_else(|| broken(field, format!("\"{name}\" is no pair of token and id")))?;
            in_vocabulary(id, size, &format!("{field}.{name}"))
        }),
        Some(_) => Ok(()),
        None => Err(Error::unsupported("TOKENIZER-PART", "a part of the tokenizer does not state its type")
            .field(field)),
    }
}

fn in_vocabulary(id: i64, size: usize, field: &str) -> Result<()> {
    if usize::try_from(id).is_ok_and(|id| id < size) {
        return Ok(());
    }
    Err(Error::invalid("TOKENIZER-ID", "a special token is not in the vocabulary")
        .field(field)
        .found(id)
        .limit(format!("0 to {}", size.saturating_sub(1))))
}

fn check_template(value: &Value, field: &str, size: usize) -> Result<()> {
    const MOST: usize = 64;
    let single = value.get("single").and_then(Value::as_array);
    let single = single.ok_or_else(|| broken(field, "a template without \"single\""))?;
    let special = value.get("special_tokens").and_then(Value::as_object);
    let mut texts = 0;
    if single.len() > MOST {
        return Err(broken(field, format!("a template of more than {MOST} pieces")));
    }
    for (i, piece) in single.iter().enumerate() {
        let at = format!("{field}.single[{i}]");
        if let Some(sequence) = piece.get("Sequence") {
            texts += 1;
            if sequence.get("id").and_then(Value::as_str) != Some("A") {
                return Err(broken(&at, "the template for one text asks for a second one"));
            }
            continue;
        }
        let name = piece.get("SpecialToken").and_then(|t| t.get("id")).and_then(Value::as_str);
        let name = name.ok_or_else(|| broken(&at, "a piece is a Sequence or a SpecialToken"))?;
        let entry = special.and_then(|s| s.get(name)).ok_or_else(|| {
            Error::invalid("TOKENIZER-TEMPLATE", "the template uses a special token that is not defined")
                .field(at.clone())
                .found(name)
        })?;
        let list = |key: &str| entry.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        let (numbers, tokens) = (list("ids"), list("tokens"));
        if numbers.len() != tokens.len() || numbers.len() > MOST {
            return Err(broken(&at, "a special token does not have one id for each of its tokens"));
        }
        for number in numbers {
            in_vocabulary(number.as_i64().unwrap_or(-1), size, &format!("{field}.special_tokens.{name}"))?;
        }
    }
    if texts != 1 {
        return Err(broken(field, "the template for one text must hold it once"));
    }
    Ok(())
}
