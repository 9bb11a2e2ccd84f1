//! What the pre-tokenizer names of GGUF files mean (`tokenizer.ggml.pre`, as llama.cpp defines them).
//! A name enters; patterns in the order in which they cut, and the habits of the family, leave.

use super::split::GPT2;

/// How a family of byte-level BPE tokenizers cuts text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pre {
    /// Patterns; each cuts out its matches from what those before it have left.
    pub patterns: &'static [&'static str],
    /// Whether a piece that is a token as a whole stays one, whatever the merges say.
    pub ignore_merges: bool,
    /// Whether texts begin with the token for their beginning, where the file does not say.
    pub add_bos: bool,
}

const fn pre(patterns: &'static [&'static str]) -> Pre {
    Pre { patterns, ignore_merges: false, add_bos: false }
}

const fn whole_words(patterns: &'static [&'static str]) -> Pre {
    Pre { patterns, ignore_merges: true, add_bos: true }
}

/// Llama 3: up to three digits, a leading character that is no letter joins a word.
pub(super) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2: as Llama 3, with single digits.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 3.5: as Qwen 2, with combining marks as letters.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-4o: words by case, contractions at their end.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's tekken: as GPT-4o, without contractions, single digits.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const CJK: &str = "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
const KANA: &str = "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+";
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const DIGIT: &str = r"\p{N}";

const GPT2_FAMILY: Pre = pre(&[GPT2]);
const DIGITS_APART: Pre = pre(&[DIGIT, GPT2]);
const LLAMA3_FAMILY: Pre = pre(&[LLAMA3]);
const QWEN2_FAMILY: Pre = pre(&[QWEN2]);

/// Every name that is known.
const TABLE: &[(&str, Pre)] = &[
    ("gpt-2", GPT2_FAMILY),
    ("phi-2", GPT2_FAMILY),
    ("mpt", GPT2_FAMILY),
    ("olmo", GPT2_FAMILY),
    ("jais", GPT2_FAMILY),
    ("trillion", GPT2_FAMILY),
    ("exaone4", GPT2_FAMILY),
    ("granite-docling", GPT2_FAMILY),
    ("jina-es", GPT2_FAMILY),
    ("jina-de", GPT2_FAMILY),
    ("jina-v2-es", GPT2_FAMILY),
    ("jina-v2-de", GPT2_FAMILY),
    ("gigachat", GPT2_FAMILY),
    ("smollm", DIGITS_APART),
    ("starcoder", DIGITS_APART),
    ("refact", DIGITS_APART),
    ("command-r", DIGITS_APART),
    ("codeshell", DIGITS_APART),
    ("exaone", DIGITS_APART),
    ("minerva-7b", DIGITS_APART),
    ("llama-bpe", whole_words(&[LLAMA3])),
    ("llama3", whole_words(&[LLAMA3])),
    ("llama-v3", whole_words(&[LLAMA3])),
    ("falcon3", whole_words(&[LLAMA3])),
    ("falcon-h1", whole_words(&[LLAMA3])),
    ("pixtral", whole_words(&[LLAMA3])),
    ("midm-2.0", whole_words(&[LLAMA3])),
    ("lfm2", whole_words(&[LLAMA3])),
    ("dbrx", LLAMA3_FAMILY),
    ("smaug-bpe", LLAMA3_FAMILY),
    ("glm4", LLAMA3_FAMILY),
    ("chatglm-bpe", LLAMA3_FAMILY),
    ("qwen2", QWEN2_FAMILY),
    ("deepseek-r1-qwen", QWEN2_FAMILY),
    ("stablelm2", QWEN2_FAMILY),
    ("hunyuan", QWEN2_FAMILY),
    ("megrez", QWEN2_FAMILY),
    ("qwen35", pre(&[QWEN35])),
    ("gpt-4o", pre(&[GPT4O])),
    ("llama4", pre(&[GPT4O])),
    ("tekken", whole_words(&[TEKKEN])),
    ("seed-coder", pre(&[SEED_CODER])),
    ("deepseek-v3", pre(&[r"\p{N}{1,3}", KANA, DEEPSEEK3])),
    ("deepseek-coder", pre(&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, DIGIT])),
    ("falcon", pre(&[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"])),
    ("bloom", pre(&[BLOOM])),
    ("poro-chat", pre(&[BLOOM])),
    ("gpt3-finnish", pre(&[BLOOM])),
    ("viking", pre(&[BLOOM, DIGIT])),
];

/// What a name means.
pub(super) fn find(name: &str) -> Option<Pre> {
    TABLE.iter().find(|(known, _)| *known == name).map(|(_, pre)| *pre)
}

/// All names that are known, for messages.
pub(super) fn names() -> String {
    TABLE.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}
