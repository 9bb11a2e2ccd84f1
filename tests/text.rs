//! Tokenizers of real models against reference tokenizers (`benches/peer/tokenize_reference.py` writes
//! `tests/tokens/reference.json`).

use crate::cache;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;
use tinsmith::formats::Tokenizer;

fn digest(tokenizer: &Tokenizer, special: bool, texts: &[String]) -> Value {
    let mut hash = Sha256::new();
    let mut count = 0;
    for text in texts {
        let ids = tokenizer.encode(text, special).unwrap();
        count += ids.len();
        ids.iter().chain([&u32::MAX]).for_each(|id| hash.update(id.to_le_bytes()));
    }
    let sha256: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    serde_json::json!({"texts": texts.len(), "tokens": count, "sha256": sha256})
}

fn matches_reference(name: &str, tokenizer: &Tokenizer) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tokens");
    let reference: Value =
        serde_json::from_slice(&std::fs::read(here.join("reference.json")).unwrap()).unwrap();
    let sample = std::fs::read_to_string(here.join("sample.txt")).unwrap();
    let lines: Vec<String> = sample.split('\n').map(str::to_string).collect();
    let mut chapters: Vec<_> =
        std::fs::read_dir(cache::fetched("moby-dick").dir).unwrap().map(|e| e.unwrap().path()).collect();
    chapters.retain(|p| p.extension().is_some_and(|e| e == "txt"));
    chapters.sort();
    let chapters: Vec<String> = chapters.iter().map(|p| std::fs::read_to_string(p).unwrap()).collect();
    for special in [false, true] {
        let expected = &reference["models"][format!("{name}{}", if special { "+special" } else { "" })];
        for case in expected["samples"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let ids = tokenizer.encode(text, special).unwrap();
            assert_eq!(serde_json::json!(ids), case["ids"], "{name}: {text:?}");
        }
        for (case, decoded) in
            expected["samples"].as_array().unwrap().iter().zip(expected["decoded"].as_array().unwrap())
        {
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), decoded.as_str().unwrap(), "{name}");
        }
        assert_eq!(digest(tokenizer, special, &lines), expected["lines"], "{name}: lines of the sample");
        let whole = std::slice::from_ref(&sample);
        assert_eq!(digest(tokenizer, special, whole), expected["sample"], "{name}: sample");
        assert_eq!(digest(tokenizer, special, &chapters), expected["moby-dick"], "{name}: moby-dick");
    }
}

#[test]
fn smollm2_tokenises_as_the_reference_does() {
    let model = cache::fetched("smollm2-135m").file(".gguf").unwrap();
    let tokenizer = Tokenizer::open(&model).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.longest()), (49152, Some(8192)));
    assert_eq!((tokenizer.special().bos, tokenizer.special().eos.as_slice()), (Some(1), [2].as_slice()));
    assert!(tokenizer.chat_template().unwrap().contains("<|im_start|>"));
    matches_reference("smollm2-135m", &tokenizer);

    // What is written beside an export is the same tokenizer.
    let directory = tempfile::tempdir().unwrap();
    tokenizer.save(directory.path()).unwrap();
    let again = Tokenizer::open(directory.path()).unwrap();
    assert_eq!(again.digest(), tokenizer.digest());
    assert_eq!(again.chat_template(), tokenizer.chat_template());
    let text = "A whale, 1851: 🐋 <|im_end|>";
    assert_eq!(again.encode(text, true).unwrap(), tokenizer.encode(text, true).unwrap());
}

#[test]
fn minilm_tokenises_as_the_reference_does() {
    let tokenizer = Tokenizer::open(&cache::fetched("minilm-l6").dir).unwrap();
    assert_eq!((tokenizer.kind(), tokenizer.vocab_size()), ("WordPiece", 30522));
    assert_eq!(tokenizer.special().pad, Some(0));
    matches_reference("minilm-l6", &tokenizer);
}
