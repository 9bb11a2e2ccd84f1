//! Tokenizers of real models against reference tokenizers (`benches/peer/tokenize_reference.py` writes
//! `tests/tokens/reference.json`); tasks on texts and generation on a small decoder.

use crate::cache;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;
use tinsmith::evaluate::generate::{GenerateOptions, Sampling, generate};
use tinsmith::evaluate::tasks::{Engine, Evaluation, Task, TaskOptions, evaluate};
use tinsmith::export::{Plan, Storage};
use tinsmith::formats::Tokenizer;
use tinsmith::monitor::Silent;
use tinsmith::tensor::Tensor;

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

/// A directory with a small decoder of random weights, a tokenizer of 40 words, and what belongs to it.
fn small_decoder(to: &Path) {
    let fixture = crate::architectures::Fixture::load("llama");
    let weights = fixture.weights();
    let mut header = serde_json::Map::new();
    let mut content: Vec<u8> = Vec::new();
    for (name, tensor) in &weights {
        let start = content.len();
        content.extend(tensor.to_vec::<f32>().unwrap().iter().flat_map(|v| v.to_le_bytes()));
        let entry = serde_json::json!({
            "dtype": "F32", "shape": tensor.shape(), "data_offsets": [start, content.len()],
        });
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(content);
    std::fs::write(to.join("model.safetensors"), file).unwrap();
    std::fs::write(to.join("config.json"), fixture.config().to_string()).unwrap();
    let words: serde_json::Map<String, Value> = (0..40)
        .map(|i| (if i == 0 { "[UNK]".into() } else { format!("w{i}") }, serde_json::json!(i)))
        .collect();
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    });
    std::fs::write(to.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// The decoder as a directory and as an exported file.
fn decoder() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (source, to) = (dir.path().join("source"), dir.path().join("exported/model.onnx"));
    std::fs::create_dir_all(&source).unwrap();
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    small_decoder(&source);
    let _ = cache::paths();
    let plan = Plan { model: source.clone(), target: None, storage: Storage::default(), context: None };
    tinsmith::export::export(&plan, &to, &Silent).unwrap();
    (dir, source, to)
}

#[test]
fn text_is_the_same_with_and_without_cache_on_either_engine() {
    let (_dir, source, exported) = decoder();
    let native = Engine::OnnxRuntime(cache::library());
    let written = |model: &Path, engine: &Engine, cache: bool, sampling: Sampling| {
        let mut options = GenerateOptions::new("w5 w7 w9", engine.clone());
        (options.cache, options.max_tokens, options.sampling) = (cache, 30, sampling);
        let mut streamed = String::new();
        let out = generate(model, &options, &Silent, &mut |piece| {
            streamed.push_str(piece);
            Ok(())
        })
        .unwrap();
        assert_eq!(out.text, streamed);
        assert_eq!((out.cache, out.prompt_tokens), (cache, 3));
        // Each cache of an export for ONNX Runtime has one reader, which needs no copy of it.
        assert_eq!(out.cache_in_place, cache && model == exported.as_path() && *engine != Engine::Executor);
        out
    };
    let greedy = Sampling::default();
    let first = written(&exported, &native, true, greedy);
    assert!(first.engine.starts_with("onnxruntime") && first.tokens.len() > 3, "{first:?}");
    for (model, engine, cache) in
        [(&exported, &native, false), (&source, &Engine::Executor, true), (&source, &Engine::Executor, false)]
    {
        let other = written(model, engine, cache, greedy);
        assert_eq!((&other.tokens, &other.text, other.stop), (&first.tokens, &first.text, first.stop));
    }
    let warm = Sampling { temperature: 1.5, top_p: 0.9, seed: 3, ..greedy };
    let drawn = written(&exported, &native, true, warm);
    // Caches that are joined by operators of the standard are copied, and give the same text.
    let standard = exported.with_file_name("standard.onnx");
    let target = Some(tinsmith::passes::lower::Target::Standard);
    let plan = Plan { model: source.clone(), target, storage: Storage::default(), context: None };
    tinsmith::export::export(&plan, &standard, &Silent).unwrap();
    assert_eq!(written(&standard, &native, true, greedy).tokens, first.tokens);
    assert_eq!(drawn.tokens, written(&exported, &native, false, warm).tokens);
    assert_ne!(drawn.tokens, written(&exported, &native, true, Sampling { seed: 4, ..warm }).tokens);
}

#[test]
fn perplexity_is_that_of_the_executor_and_a_model_is_no_distance_from_itself() {
    let (dir, source, exported) = decoder();
    let corpus = dir.path().join("corpus.txt");
    let words: Vec<String> = (0..900usize).map(|i| format!("w{}", 1 + (i * i + i / 7) % 39)).collect();
    std::fs::write(&corpus, words.chunks(45).map(|c| c.join(" ")).collect::<Vec<_>>().join("\n\n")).unwrap();
    let evaluated = |model: &Path, engine: Engine, reference: Option<&Path>, stride: usize| {
        let mut options = TaskOptions::new(Task::Lm, format!("text:{}", corpus.display()), engine);
        options.reference = reference.map(Path::to_path_buf);
        (options.window, options.stride) = (Some(32), Some(stride));
        evaluate(model, &options, &Silent).unwrap()
    };
    let value = |e: &Evaluation, name: &str| e.metric(name).unwrap_or_else(|| panic!("{name}")).value;
    let native = Engine::OnnxRuntime(cache::library());
    let own = evaluated(&source, Engine::Executor, None, 32);
    let on_runtime = evaluated(&exported, native.clone(), Some(&source), 32);
    assert!((value(&own, "perplexity") / value(&on_runtime, "perplexity") - 1.0).abs() < 1e-4);
    assert!(value(&on_runtime, "kl_max") < 1e-6 && value(&on_runtime, "same_top") == 1.0);
    assert!(value(&on_runtime, "log_perplexity_ratio").abs() < 1e-5);
    // 900 tokens in windows of 32: 29 windows, the first token of each is not predicted.
    assert_eq!((own.quality.n, own.settings["windows"].as_u64()), (900 - 29, Some(29)));
    assert!(own.quality.ci95.low < own.quality.value && own.quality.value < own.quality.ci95.high);
    // With overlap every token but the first is predicted, and with more before it.
    assert_eq!(evaluated(&exported, native, None, 16).quality.n, 899);

    // By hand, with one run of the executor for each window.
    let graph = tinsmith::formats::load(&source).unwrap().graph;
    let executor = tinsmith::execute::Executor::new(&graph).unwrap();
    let tokenizer = Tokenizer::open(&source).unwrap();
    let ids = tokenizer.encode(&std::fs::read_to_string(&corpus).unwrap(), false).unwrap();
    let (mut sum, mut count) = (0.0, 0);
    for window in ids.chunks(32) {
        let n = window.len();
        let tensor = |v: Vec<i64>| Tensor::from_vec(vec![1, v.len()], v).unwrap();
        let mut inputs = vec![
            ("input_ids".to_string(), tensor(window.iter().map(|i| i64::from(*i)).collect())),
            ("attention_mask".to_string(), tensor(vec![1; n])),
        ];
        for layer in 0..2 {
            for part in ["key", "value"] {
                let empty = Tensor::from_vec::<f32>(vec![1, 2, 0, 8], vec![]).unwrap();
                inputs.push((format!("past_key_values.{layer}.{part}"), empty));
            }
        }
        let logits = executor.run(&inputs).unwrap().remove(0).1.to_f64s().unwrap();
        for (row, next) in logits.chunks(40).zip(&window[1..]) {
            let total: f64 = row.iter().map(|v| v.exp()).sum();
            sum += total.ln() - row[*next as usize];
            count += 1;
        }
    }
    assert!((value(&own, "perplexity") / (sum / f64::from(count)).exp() - 1.0).abs() < 1e-5);
}

#[test]
fn models_and_data_that_do_not_belong_together_are_named() {
    let (dir, source, exported) = decoder();
    let refused = |model: &Path, task: Task, data: &str| {
        let options = TaskOptions::new(task, data, Engine::Executor);
        let e = evaluate(model, &options, &Silent).unwrap_err();
        (e.code(), e.kind().exit_code())
    };
    std::fs::write(dir.path().join("a.txt"), "w1 w2 w3 w4").unwrap();
    let text = format!("text:{}", dir.path().join("a.txt").display());
    assert_eq!(refused(&source, Task::Embed, &text), ("EVAL-EMBED", 2));
    assert_eq!(refused(&source, Task::Classify, &text), ("EVAL-LABELS", 2));
    assert_eq!(refused(&source, Task::Tensor, &text), ("EVAL-DATA", 2));
    assert_eq!(refused(&source, Task::Lm, "digits:test"), ("DATA-KIND", 2));
    assert_eq!(refused(&source, Task::Lm, "text:/nonexistent"), ("IO", 3));
    std::fs::remove_file(exported.parent().unwrap().join("tokenizer.json")).unwrap();
    assert_eq!(refused(&exported, Task::Lm, &text), ("TOKENIZER-NONE", 3));
    let mut options = GenerateOptions::new("w1", Engine::Executor);
    options.chat = true;
    let e = generate(&source, &options, &Silent, &mut |_| Ok(())).unwrap_err();
    assert_eq!((e.code(), e.kind().exit_code()), ("CHAT-NONE", 4));
}

#[test]
fn long_rows_are_cut_to_various_lengths_and_short_ones_stay() {
    use tinsmith::data::{TextSet, TokenSet};
    let dir = tempfile::tempdir().unwrap();
    small_decoder(dir.path());
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let words = |n: usize| (0..n).map(|i| format!("w{}", 1 + i % 39)).collect::<Vec<_>>().join(" ");
    let lines: Vec<String> = (0..40)
        .map(|i| serde_json::json!({ "text": words(if i % 8 == 0 { 20 } else { 300 }) }).to_string())
        .collect();
    let file = dir.path().join("rows.jsonl");
    std::fs::write(&file, lines.join("\n")).unwrap();
    let texts = TextSet::open(&format!("jsonl:{}?text=text", file.display())).unwrap();
    let even = TokenSet::of(&texts, &tokenizer, 128).unwrap();
    let varied = TokenSet::varied(&texts, &tokenizer, 128).unwrap();
    assert_ne!(even.hash(), varied.hash(), "other rows, other digest");
    assert_eq!((even.cut(), varied.cut()), (35, 35));
    let mut lengths = Vec::new();
    for (i, (even, varied)) in even.rows().iter().zip(varied.rows()).enumerate() {
        assert_eq!(even[..varied.len()], varied[..], "the beginning stays");
        match i % 8 {
            0 => assert_eq!(varied.len(), 20),
            _ => lengths.push(varied.len()),
        }
    }
    assert!(lengths.iter().all(|n| (16..=128).contains(n)), "{lengths:?}");
    let below = |n: usize| lengths.iter().filter(|l| **l < n).count();
    for (n, part) in [(32, 1.0 / 3.0), (64, 2.0 / 3.0)] {
        assert!((below(n) as f64 / 35.0 - part).abs() < 0.1, "{} of 35 rows are shorter than {n}", below(n));
    }
}
