//! Small tokenizers of every kind, and what is refused.

use super::*;
use crate::formats::metadata::Fact;
use std::time::{Duration, Instant};

fn tokenizer(value: &Value) -> Result<Tokenizer> {
    let definition = Definition::parse(&serde_json::to_vec(value).unwrap())?;
    let names = names_of(&Value::Null, &definition);
    Tokenizer::new(definition, names, None, None)
}

/// Byte-level BPE over single bytes and the merges that are given.
fn byte_level(merges: &[(&str, &str)]) -> Value {
    let mut alphabet: Vec<char> =
        tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut vocab = serde_json::Map::new();
    for c in alphabet {
        let id = vocab.len();
        vocab.insert(c.to_string(), json!(id));
    }
    for (a, b) in merges {
        let id = vocab.len();
        vocab.insert(format!("{a}{b}"), json!(id));
    }
    let end = vocab.len();
    vocab.insert("<|end|>".into(), json!(end));
    json!({
        "version": "1.0",
        "added_tokens": [{"id": end, "content": "<|end|>", "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    })
}

fn word_piece() -> Value {
    json!({
        "version": "1.0",
        "added_tokens": [
            {"id": 0, "content": "[PAD]", "special": true}, {"id": 1, "content": "[UNK]", "special": true},
            {"id": 2, "content": "[CLS]", "special": true}, {"id": 3, "content": "[SEP]", "special": true},
        ],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "play": 4, "##ing": 5, "cafe": 6, "!": 7}},
    })
}

#[test]
fn tokenizers_encode_decode_and_keep_their_file() {
    let bpe = tokenizer(&byte_level(&[("h", "i"), ("Ġ", "hi")])).unwrap();
    let ids = bpe.encode("hi hi<|end|>é", false).unwrap();
    let end = bpe.id("<|end|>").unwrap();
    assert_eq!(
        ids,
        [bpe.id("hi").unwrap(), bpe.id("Ġhi").unwrap(), end, bpe.id("Ã").unwrap(), bpe.id("©").unwrap()]
    );
    assert_eq!(bpe.decode(&ids, true).unwrap(), "hi hié");
    assert_eq!((bpe.kind(), bpe.vocab_size()), ("BPE", end as usize + 1));

    let bert = tokenizer(&word_piece()).unwrap();
    assert_eq!(bert.encode("Playing CAFÉ ! zzz", true).unwrap(), [2, 4, 5, 6, 7, 1, 3]);
    assert_eq!(bert.encode("Playing", false).unwrap(), [4, 5]);
    assert_eq!(bert.special().unk, Some(1));

    let directory = tempfile::tempdir().unwrap();
    bert.save(directory.path()).unwrap();
    for path in [directory.path().to_path_buf(), directory.path().join(FILE), directory.path().join("m.onnx")]
    {
        std::fs::write(directory.path().join("m.onnx"), "a model").unwrap();
        let again = Tokenizer::open(&path).unwrap();
        assert_eq!((again.digest(), again.special()), (bert.digest(), bert.special()));
    }
    assert_ne!(bpe.digest(), bert.digest());
}

#[test]
fn characters_that_span_tokens_are_streamed_whole() {
    let bpe = tokenizer(&byte_level(&[])).unwrap();
    for text in ["a🙂é汉", "ends in the middle", ""] {
        let mut stream = bpe.stream(true);
        let mut pieces = Vec::new();
        for id in bpe.encode(text, false).unwrap() {
            pieces.push(stream.push(id).unwrap());
        }
        assert!(pieces.iter().all(|p| !p.contains('\u{fffd}')));
        pieces.push(stream.finish().unwrap());
        assert_eq!(pieces.concat(), text);
    }
    let half: Vec<u32> = bpe.encode("a🙂", false).unwrap();
    let mut stream = bpe.stream(true);
    let shown: String = half[..3].iter().map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!((shown.as_str(), stream.finish().unwrap().as_str()), ("a", "\u{fffd}"));
}

#[test]
fn long_texts_take_linear_time() {
    let merges = [("a", "a"), ("aa", "aa"), ("aaaa", "aaaa"), ("Ġ", "Ġ")];
    let bpe = tokenizer(&byte_level(&merges)).unwrap();
    for text in ["a".repeat(1 << 20), " ".repeat(1 << 20), "ab ".repeat(350_000), "\u{4e00}".repeat(350_000)]
    {
        let start = Instant::now();
        let ids = bpe.encode(&text, false).unwrap();
        // An optimised build needs a fifth of a second; quadratic work would take hours.
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        assert_eq!(bpe.decode(&ids, false).unwrap(), text);
    }
    let bert = tokenizer(&word_piece()).unwrap();
    assert_eq!(bert.encode(&"a".repeat(1 << 20), false).unwrap(), [1]);
}

/// The error of a definition in which one place was changed.
fn refused(mut value: Value, change: impl FnOnce(&mut Value)) -> (&'static str, u8, String) {
    change(&mut value);
    let e = tokenizer(&value).err().unwrap_or_else(|| panic!("accepted: {value}"));
    (e.code(), e.kind().exit_code(), e.to_string())
}

#[test]
fn files_that_would_break_the_library_are_refused_by_name() {
    let bpe = || byte_level(&[("h", "i")]);
    let cases: Vec<((&str, u8, String), &str, u8, &str)> = vec![
        (refused(bpe(), |v| v["model"]["merges"][0] = json!(["h", "x"])), "TOKENIZER-MERGE", 3, "merges[0]"),
        (
            refused(bpe(), |v| v["model"]["merges"] = json!([["h".repeat(5000), "i"]])),
            "TOKENIZER-MERGE",
            3,
            "merges[0]",
        ),
        (refused(bpe(), |v| v["model"]["merges"] = json!(["h  i"])), "TOKENIZER-JSON", 3, "pair of tokens"),
        (refused(bpe(), |v| v["model"]["vocab"]["hi"] = json!(1u64 << 31)), "TOKENIZER-ID", 3, "hi"),
        (refused(bpe(), |v| v["model"]["vocab"]["hi"] = json!(-1)), "TOKENIZER-ID", 3, "hi"),
        (refused(bpe(), |v| v["model"]["vocab"]["hi"] = json!(0)), "TOKENIZER-TWICE", 3, "same id"),
        (refused(bpe(), |v| v["added_tokens"][0]["id"] = json!(-1)), "TOKENIZER-ID", 3, "added_tokens[0]"),
        (refused(bpe(), |v| v["added_tokens"][0]["id"] = json!(7)), "TOKENIZER-ADDED", 4, "<|end|>"),
        (
            refused(bpe(), |v| v["added_tokens"][0]["content"] = json!("")),
            "TOKENIZER-ADDED",
            3,
            "added_tokens[0]",
        ),
        (
            refused(bpe(), |v| {
                let token = v["added_tokens"][0].clone();
                v["added_tokens"] = json!(vec![token; MANY]);
            }),
            "TOKENIZER-ADDED",
            5,
            "too many",
        ),
        (refused(bpe(), |v| v["version"] = json!("2.0")), "TOKENIZER-VERSION", 4, "2.0"),
        (refused(bpe(), |v| v["model"]["type"] = json!("Other")), "TOKENIZER-MODEL", 4, "Other"),
        (
            refused(bpe(), |v| {
                let bomb = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
                v["normalizer"] = json!({"type": "Sequence", "normalizers": vec![bomb; 20]});
            }),
            "TOKENIZER-GROWTH",
            5,
            "times",
        ),
        (
            refused(bpe(), |v| {
                v["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="});
            }),
            "TOKENIZER-CHARSMAP",
            3,
            "normalizer",
        ),
        (
            refused(bpe(), |v| {
                v["normalizer"] = json!({"type": "Replace", "pattern": {"Regex": "(?=a)"}, "content": "b"});
            }),
            "TOKENIZER-PATTERN",
            4,
            "normalizer",
        ),
        (
            refused(bpe(), |v| {
                v["decoder"] = json!({"type": "Strip", "content": " ", "start": 0, "stop": 1})
            }),
            "TOKENIZER-PART",
            4,
            "decoder.stop",
        ),
        (
            refused(word_piece(), |v| {
                v["post_processor"]["special_tokens"] = json!({});
            }),
            "TOKENIZER-TEMPLATE",
            3,
            "single[0]",
        ),
        (
            refused(word_piece(), |v| {
                v["post_processor"]["special_tokens"]["[CLS]"]["ids"] = json!([4_000_000_000u32]);
            }),
            "TOKENIZER-ID",
            3,
            "[CLS]",
        ),
        (
            refused(word_piece(), |v| {
                v["post_processor"]["single"][1] = json!({"Sequence": {"id": "B", "type_id": 0}});
            }),
            "TOKENIZER-PART",
            3,
            "second",
        ),
        (
            refused(word_piece(), |v| v["model"]["max_input_chars_per_word"] = json!(1 << 30)),
            "TOKENIZER-WORD",
            5,
            "max_input_chars_per_word",
        ),
        (
            refused(word_piece(), |v| v["model"]["unk_token"] = json!("?")),
            "TOKENIZER-UNKNOWN",
            3,
            "unk_token",
        ),
        (
            refused(
                json!({"version": "1.0", "model": {"type": "Unigram", "unk_id": 5, "vocab": [["a", 0.0]]}}),
                |_| (),
            ),
            "TOKENIZER-UNKNOWN",
            3,
            "unk_id",
        ),
        (
            refused(json!({"version": "1.0", "model": {"type": "Unigram", "vocab": []}}), |_| ()),
            "TOKENIZER-TOKENS",
            5,
            "vocab",
        ),
    ];
    for ((code, exit, message), want, want_exit, part) in cases {
        assert_eq!((code, exit), (want, want_exit), "{message}");
        assert!(message.contains(part), "{message}");
    }
    let depth = "[".repeat(100_000);
    let bomb = format!("{{\"version\": \"1.0\", \"normalizer\": {depth}");
    assert_eq!(Definition::parse(bomb.as_bytes()).unwrap_err().code(), "TOKENIZER-JSON");
}

const MANY: usize = super::definition::MOST_ADDED + 1;

#[test]
fn a_token_that_must_stand_alone_cannot_make_a_text_slow() {
    let mut value = byte_level(&[]);
    let id = value["model"]["vocab"]["a"].clone();
    let token = json!({"id": id, "content": "a", "single_word": true});
    value["added_tokens"].as_array_mut().unwrap().push(token);
    let e = tokenizer(&value).unwrap().encode(&"a".repeat(1 << 20), false).unwrap_err();
    assert_eq!((e.code(), e.kind().exit_code()), ("TOKENIZER-TEXT", 5));
}

fn metadata(facts: &[(&str, Fact)]) -> Metadata {
    let mut metadata = Metadata::default();
    facts.iter().for_each(|(key, fact)| assert!(metadata.insert(key, fact.clone())));
    metadata
}

fn texts(list: &[&str]) -> Fact {
    Fact::Texts(list.iter().map(ToString::to_string).collect())
}

/// A SentencePiece vocabulary: unknown, begin, end, three bytes, characters, joined pieces.
fn sentence_piece() -> Vec<(&'static str, Fact)> {
    let tokens = [
        "<unk>",
        "<s>",
        "</s>",
        "<0xC3>",
        "<0xA9>",
        "<0x0A>",
        "\u{2581}",
        "a",
        "b",
        "\u{2581}a",
        "ab",
        "\u{2581}ab",
    ];
    let scores = [0., 0., 0., 0., 0., 0., -9., -9., -9., -3., -2., -1.];
    vec![
        ("tokenizer.ggml.model", Fact::Text("llama".into())),
        ("tokenizer.ggml.tokens", texts(&tokens)),
        ("tokenizer.ggml.scores", Fact::Floats(scores.to_vec())),
        ("tokenizer.ggml.token_type", Fact::Ints(vec![2, 3, 3, 6, 6, 6, 1, 1, 1, 1, 1, 1])),
        ("tokenizer.ggml.bos_token_id", Fact::Int(1)),
        ("tokenizer.ggml.eos_token_id", Fact::Int(2)),
        ("tokenizer.ggml.unknown_token_id", Fact::Int(0)),
    ]
}

#[test]
fn sentence_piece_joins_by_score_and_falls_back_to_bytes() {
    let t = Tokenizer::from_metadata(&metadata(&sentence_piece())).unwrap();
    // "▁ab": the pair "ab" has the higher score, so it is joined before "▁a" could be.
    assert_eq!(t.encode("ab ab", true).unwrap(), [1, 11, 11]);
    assert_eq!(t.encode("aé\n", false).unwrap(), [9, 3, 4, 5]);
    assert_eq!(t.encode("<s>b", false).unwrap(), [1, 6, 8]);
    assert_eq!(t.decode(&[1, 11, 11, 3, 4], true).unwrap(), "ab abé");
    assert_eq!((t.special().bos, t.special().eos.as_slice()), (Some(1), [2].as_slice()));
    let again = Definition::parse(&t.to_json().unwrap()).unwrap();
    assert_eq!(again.to_bytes().unwrap(), t.to_json().unwrap());
    let mut facts = sentence_piece();
    facts.push(("tokenizer.ggml.add_space_prefix", Fact::Bool(false)));
    facts.push(("tokenizer.ggml.add_bos_token", Fact::Bool(false)));
    let t = Tokenizer::from_metadata(&metadata(&facts)).unwrap();
    assert_eq!(t.encode("ab ab", true).unwrap(), [10, 11]);
}

#[test]
fn word_pieces_of_gguf_get_their_marks_back() {
    let facts = [
        ("tokenizer.ggml.model", Fact::Text("bert".into())),
        (
            "tokenizer.ggml.tokens",
            texts(&["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u{2581}play", "ing", "\u{2581}["]),
        ),
        ("tokenizer.ggml.token_type", Fact::Ints(vec![3, 2, 3, 3, 1, 1, 1])),
        ("tokenizer.ggml.unknown_token_id", Fact::Int(1)),
        ("tokenizer.ggml.cls_token_id", Fact::Int(2)),
        ("tokenizer.ggml.seperator_token_id", Fact::Int(3)),
    ];
    let t = Tokenizer::from_metadata(&metadata(&facts)).unwrap();
    assert_eq!(t.encode("Playing [ x", true).unwrap(), [2, 4, 5, 6, 1, 3]);
    assert_eq!(t.decode(&[2, 4, 5, 3], true).unwrap(), "playing");
}

#[test]
fn metadata_that_contradict_themselves_are_refused_by_key_and_index() {
    let refused = |change: &dyn Fn(&mut Vec<(&str, Fact)>)| {
        let mut facts = sentence_piece();
        change(&mut facts);
        let e = Tokenizer::from_metadata(&metadata(&facts)).unwrap_err();
        format!("{} {} {e}", e.code(), e.kind().exit_code())
    };
    let set = |facts: &mut Vec<(&str, Fact)>, key: &str, fact: Fact| {
        let at = facts.iter().position(|(k, _)| *k == key).unwrap();
        facts[at].1 = fact;
    };
    let byte = refused(&|f| {
        let Fact::Texts(list) = &mut f[1].1 else { panic!() };
        list[3] = "<0x-1>".into();
    });
    assert!(byte.starts_with("TOKENIZER-BYTE 3") && byte.contains("tokens[3]"), "{byte}");
    let scores = refused(&|f| set(f, "tokenizer.ggml.scores", Fact::Floats(vec![0.0; 5])));
    assert!(scores.starts_with("TOKENIZER-LENGTH 3") && scores.contains("scores"), "{scores}");
    let scores = refused(&|f| {
        let Fact::Floats(list) = &mut f[2].1 else { panic!() };
        list[4] = f32::NAN;
    });
    assert!(scores.starts_with("TOKENIZER-SCORES 3") && scores.contains("scores[4]"), "{scores}");
    let id = refused(&|f| set(f, "tokenizer.ggml.bos_token_id", Fact::Int(99)));
    assert!(id.starts_with("TOKENIZER-ID 3") && id.contains("bos_token_id"), "{id}");
    let twice = refused(&|f| {
        let Fact::Texts(list) = &mut f[1].1 else { panic!() };
        list[8] = "a".into();
    });
    assert!(twice.starts_with("TOKENIZER-TWICE 3") && twice.contains("tokens[8]"), "{twice}");
    let kind = refused(&|f| set(f, "tokenizer.ggml.model", Fact::Text("rwkv".into())));
    assert!(kind.starts_with("TOKENIZER-KIND 4") && kind.contains("rwkv"), "{kind}");
    let wrong = refused(&|f| set(f, "tokenizer.ggml.tokens", Fact::Int(1)));
    assert!(wrong.starts_with("METADATA-KIND 3"), "{wrong}");

    let bpe = |pre: &str, merge: &str| {
        Tokenizer::from_metadata(&metadata(&[
            ("tokenizer.ggml.model", Fact::Text("gpt2".into())),
            ("tokenizer.ggml.pre", Fact::Text(pre.into())),
            ("tokenizer.ggml.tokens", texts(&["a", "b", "ab"])),
            ("tokenizer.ggml.merges", texts(&["a b", merge])),
        ]))
        .unwrap_err()
    };
    let e = bpe("smollm", "b a");
    assert!(e.code() == "TOKENIZER-MERGE" && e.to_string().contains("merges[1]"), "{e}");
    let e = bpe("no-such", "a b");
    assert!(e.kind().exit_code() == 4 && e.to_string().contains("no-such"), "{e}");
}

#[test]
fn every_known_pre_tokenizer_can_be_built() {
    for name in pre::names().split(", ") {
        let facts = [
            ("tokenizer.ggml.model", Fact::Text("gpt2".into())),
            ("tokenizer.ggml.pre", Fact::Text(name.into())),
            ("tokenizer.ggml.tokens", texts(&["a", "b", "ab"])),
            ("tokenizer.ggml.merges", texts(&["a b"])),
        ];
        let t = Tokenizer::from_metadata(&metadata(&facts)).unwrap();
        assert_eq!(t.encode("ab", true).unwrap(), [2], "{name}");
    }
}
