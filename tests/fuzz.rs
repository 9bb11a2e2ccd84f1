//! Replays the corpus of the fuzz targets: what the fuzzer once found must stay harmless. Where a
//! fuzzer has run here, what it collected is replayed as well.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use crate::checkpoint::files::{Gguf, array, safetensors, string, vectors};
use crate::protobuf::{Msg, model, node, tensor, tensor_f32, value};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tinsmith::tensor::Tensor;

fn corpus(target: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus")).join(target)
}

#[test]
fn the_corpus_does_no_harm() {
    for (target, run) in targets::TARGETS {
        let mut inputs = 0;
        for entry in fs::read_dir(corpus(target)).unwrap() {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            let start = Instant::now();
            run(&bytes);
            assert!(start.elapsed() < Duration::from_secs(10), "{path:?} took {:?}", start.elapsed());
            inputs += 1;
        }
        assert!(inputs >= 3, "{target} has a corpus");
    }
}

/// A few damaged copies of every seed, the same in each run; `FUZZ_ROUNDS` makes more of them.
#[test]
fn damaged_seeds_do_no_harm() {
    let rounds = std::env::var("FUZZ_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    for (target, run) in targets::TARGETS {
        let seeds: Vec<Vec<u8>> =
            seeds().into_iter().filter(|(t, ..)| t == target).map(|(.., bytes)| bytes).collect();
        let mut slowest = Duration::ZERO;
        for round in 0..rounds {
            let mut random = ChaCha8Rng::seed_from_u64(round);
            for seed in &seeds {
                let damaged = damage(seed.clone(), &seeds, &mut random);
                let start = Instant::now();
                let result = std::panic::catch_unwind(|| run(&damaged));
                if result.is_err() {
                    let path = std::env::temp_dir().join(format!("{target}-{round}"));
                    fs::write(&path, &damaged).unwrap();
                    panic!("{target}, round {round}: the input is in {path:?}");
                }
                slowest = slowest.max(start.elapsed());
            }
        }
        println!("{target}: {} inputs, slowest {slowest:?}", rounds as usize * seeds.len());
        assert!(slowest < Duration::from_secs(10), "{target} took {slowest:?}");
    }
}

/// Changes a few places: bits, numbers that lie at borders, pieces cut out, doubled or taken from others.
fn damage(mut bytes: Vec<u8>, others: &[Vec<u8>], random: &mut ChaCha8Rng) -> Vec<u8> {
    const BORDERS: [u64; 10] = [0, 1, 2, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, 1 << 32, 1 << 62, u64::MAX];
    for _ in 0..random.random_range(1..5) {
        if bytes.is_empty() {
            return bytes;
        }
        let at = random.random_range(0..bytes.len());
        let end = (at + random.random_range(1..24)).min(bytes.len());
        match random.random_range(0..7) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = random.random(),
            2 => {
                let border = BORDERS[random.random_range(0..BORDERS.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.random_range(0..4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&border[..width]);
            }
            3 => drop(bytes.drain(at..end)),
            4 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            5 => {
                let other = &others[random.random_range(0..others.len())];
                let from = random.random_range(0..other.len().max(1));
                let piece = other[from..(from + 16).min(other.len())].to_vec();
                bytes.splice(at..end, piece);
            }
            // A digit of a text, which is how JSON has its numbers.
            _ => match bytes.iter().skip(at).position(u8::is_ascii_digit) {
                Some(i) => bytes[at + i] = b"0123456789-.e"[random.random_range(0..13)],
                None => bytes.truncate(at),
            },
        }
    }
    bytes
}

#[test]
fn every_target_has_a_program() {
    let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/Cargo.toml")).unwrap();
    for (target, _) in targets::TARGETS {
        let path = format!("fuzz_targets/{target}.rs");
        assert!(manifest.contains(&format!("name = \"{target}\"\npath = \"{path}\"")), "{target}");
        let program = fs::read_to_string(format!("{}/fuzz/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        assert!(program.contains(&format!("tinsmith_fuzz::{target}(data)")), "{program}");
    }
}

/// The fuzzer must start from models, or it only finds what every first check refuses.
#[test]
fn some_seeds_are_whole_models() {
    let load = |path: PathBuf| tinsmith::formats::load(&path).unwrap();
    assert!(load(corpus("gguf").join("seed-llama")).graph.nodes().len() > 10);
    assert_eq!(load(corpus("onnx").join("seed-two-nodes")).graph.nodes().len(), 2);
    for seed in ["seed-word-piece", "seed-bpe", "seed-unigram"] {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(corpus("tokenizer_json").join(seed), dir.path().join("tokenizer.json")).unwrap();
        let tokenizer = tinsmith::formats::tokenizer::Tokenizer::open(dir.path()).unwrap();
        assert!(!tokenizer.encode("aaaa", false).unwrap().is_empty());
    }
    for seed in ["seed-llama", "seed-plain"] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("model.safetensors"), targets::small_llama()).unwrap();
        fs::copy(corpus("config_json").join(seed), dir.path().join("config.json")).unwrap();
        assert!(load(dir.path().to_path_buf()).graph.nodes().len() > 10);
    }
}

/// `UPDATE_CORPUS=1` writes the seeds.
#[test]
fn seeds_are_those_that_are_committed() {
    for (target, name, bytes) in seeds() {
        let path = corpus(target).join(format!("seed-{name}"));
        if std::env::var_os("UPDATE_CORPUS").is_some() {
            fs::create_dir_all(corpus(target)).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        assert_eq!(fs::read(&path).unwrap(), bytes, "{path:?} is old; UPDATE_CORPUS=1 writes it");
    }
}

/// A decoder of one layer with width 4 and six tokens.
fn decoder() -> Gguf {
    let count = |file: Gguf, key: &str, n: u32| file.entry(format!("llama.{key}"), 4, &n.to_le_bytes());
    let zeros = |file: Gguf, name: &str, dims: &[u64]| {
        file.with(&format!("{name}.weight"), dims, 0, &vec![0; dims.iter().product::<u64>() as usize * 4])
    };
    let mut file = Gguf::new().entry("general.architecture", 8, &string("llama"));
    for (key, n) in [
        ("block_count", 1),
        ("context_length", 16),
        ("embedding_length", 4),
        ("feed_forward_length", 8),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("rope.dimension_count", 2),
    ] {
        file = count(file, key, n);
    }
    file = file.entry("llama.attention.layer_norm_rms_epsilon", 6, &1e-5f32.to_le_bytes()).entry(
        "llama.rope.freq_base",
        6,
        &1e4f32.to_le_bytes(),
    );
    for (name, dims) in [
        ("token_embd", &[4, 6][..]),
        ("output_norm", &[4]),
        ("output", &[4, 6]),
        ("blk.0.attn_norm", &[4]),
        ("blk.0.ffn_norm", &[4]),
        ("blk.0.attn_q", &[4, 4]),
        ("blk.0.attn_k", &[4, 2]),
        ("blk.0.attn_v", &[4, 2]),
        ("blk.0.attn_output", &[4, 4]),
        ("blk.0.ffn_gate", &[4, 8]),
        ("blk.0.ffn_up", &[4, 8]),
        ("blk.0.ffn_down", &[8, 4]),
    ] {
        file = zeros(file, name, dims);
    }
    file
}

fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let types = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]},"c":{"dtype":"F4","shape":[4],"data_offsets":[22,24]},"e":{"dtype":"F6_E2M3","shape":[0,4],"data_offsets":[24,24]}}"#;
    let le = |v: u32| v.to_le_bytes();
    let nested = array(9, &[array(4, &[le(1).to_vec(), le(2).to_vec()]), array(8, &[string("x")])]);
    let values = Gguf::new()
        .entry("general.alignment", 4, &le(32))
        .entry("a", 0, &[1])
        .entry("b", 7, &[1])
        .entry("c", 8, &string("text"))
        .entry("d", 12, &1f64.to_le_bytes())
        .entry("e", 9, &array(6, &[le(0).to_vec()]))
        .entry("f", 9, &nested)
        .with("w", &[2, 3], 0, &[0; 24])
        .with("half", &[4], 1, &[0; 8])
        .with("odd", &[5], 77, &[1; 3]);
    let graph = Msg::new()
        .msg(1, node("Add", "add", &["x", "w"], &["a"]))
        .msg(1, node("Relu", "relu", &["a"], &["y"]))
        .text(2, "g")
        .msg(5, tensor_f32("w", &[4], &[1., 2., 3., 4.]))
        .msg(11, value("x", &[-1, 4]))
        .msg(12, value("y", &[-1, 4]));
    let raw = Msg::new()
        .msg(1, node("Cast", "cast", &["x"], &["y"]).msg(5, Msg::new().text(1, "to").int(3, 7).int(20, 2)))
        .text(2, "raw")
        .msg(5, tensor("w", 2, &[6], &[1; 6]))
        .msg(11, value("x", &[2]))
        .msg(12, value("y", &[2]));
    let external = Msg::new()
        .msg(1, node("Identity", "i", &["w"], &["y"]))
        .msg(
            5,
            Msg::new()
                .int(1, 4)
                .int(2, 1)
                .text(8, "w")
                .int(14, 1)
                .msg(13, Msg::new().text(1, "location").text(2, "w.bin")),
        )
        .msg(12, value("y", &[4]));
    let llama = r#"{"model_type":"llama","hidden_size":4,"intermediate_size":8,"num_attention_heads":2,"num_key_value_heads":2,"num_hidden_layers":1,"vocab_size":6,"max_position_embeddings":16,"rms_norm_eps":1e-5,"rope_theta":1e4,"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8},"tie_word_embeddings":false}"#;
    let word_piece = r###"{"added_tokens":[{"id":0,"content":"[UNK]","special":true},{"id":1,"content":"[CLS]","special":true}],"normalizer":{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true},"pre_tokenizer":{"type":"BertPreTokenizer"},"decoder":{"type":"WordPiece","prefix":"##","cleanup":true},"model":{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,"vocab":{"[UNK]":0,"[CLS]":1,"hel":2,"##lo":3,"!":4}}}"###;
    let bpe = r#"{"added_tokens":[],"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\p{N}{1,3}| ?[^\\s]+|\\s+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]},"decoder":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false},"model":{"type":"BPE","unk_token":"a","vocab":{"a":0,"b":1,"aa":2,"aaaa":3,"H":4},"merges":["a a","aa aa"]}}"#;
    let unigram = r#"{"added_tokens":[{"id":0,"content":"<unk>","special":true},{"id":1,"content":"<s>","special":true}],"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"\u2581"},{"type":"Replace","pattern":{"String":" "},"content":"\u2581"}]},"decoder":{"type":"Metaspace","replacement":"\u2581","prepend_scheme":"always"},"model":{"type":"Unigram","unk_id":0,"byte_fallback":false,"vocab":[["<unk>",0.0],["<s>",0.0],["a",-1.5],["\u2581",-2.0],["aa",-2.5]]}}"#;
    let plain = r#"{"model_type":"llama","hidden_size":4,"intermediate_size":8,"num_attention_heads":2,"num_hidden_layers":1,"vocab_size":6,"max_position_embeddings":16}"#;
    let map = |files: [&str; 3]| {
        let [w, b, v] = files.map(|f| format!("{f}.safetensors"));
        format!(r#"{{"metadata":{{"total_size":36}},"weight_map":{{"w":"{w}","b":"{b}","v":"{v}"}}}}"#)
    };
    vec![
        ("safetensors", "vectors", vectors(&[("first", &[1; 40]), ("second", &[2; 7])])),
        ("safetensors", "types", safetensors(types, &[7; 24])),
        ("safetensors", "empty", safetensors("{}      ", &[])),
        ("gguf", "small", Gguf::small().bytes()),
        ("gguf", "values", values.bytes()),
        ("gguf", "llama", decoder().bytes()),
        ("gguf", "version-2", Gguf { version: 2, ..Gguf::small() }.bytes()),
        ("onnx", "two-nodes", model(graph.sorted(), 17).0),
        ("onnx", "raw-data", model(raw.sorted(), 17).0),
        ("onnx", "external", model(external.sorted(), 17).0),
        ("safetensors_index", "good", map(["a", "a", "b"]).into_bytes()),
        ("safetensors_index", "swapped", map(["b", "a", "a"]).into_bytes()),
        ("safetensors_index", "outside", map(["../x", "a", "b"]).into_bytes()),
        ("config_json", "llama", llama.as_bytes().to_vec()),
        ("config_json", "plain", plain.as_bytes().to_vec()),
        ("tokenizer_json", "word-piece", word_piece.as_bytes().to_vec()),
        ("tokenizer_json", "bpe", bpe.as_bytes().to_vec()),
        ("tokenizer_json", "unigram", unigram.as_bytes().to_vec()),
        ("config_json", "bert", br#"{"model_type":"bert","hidden_size":4}"#.to_vec()),
    ]
}

#[test]
fn sizes_that_overflow_beside_a_zero_are_refused() {
    let huge = usize::MAX / 2;
    assert_eq!(tinsmith::tensor::element_count(&[4, 0, huge, huge]), None);
    assert_eq!(tinsmith::tensor::element_count(&[4, 0, 7]), Some(0));
    assert!(Tensor::from_vec::<f32>(vec![4, 0, huge, huge], vec![]).is_err());
}

#[test]
fn layers_that_no_weight_backs_are_refused_before_they_are_built() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("many.gguf");
    fs::copy(corpus("gguf").join("seed-many-layers"), &path).unwrap();
    let e = tinsmith::formats::load(&path).unwrap_err();
    assert!(e.code() == "CONFIG-LAYERS" && e.kind().exit_code() == 3, "{e}");
}

#[test]
fn tables_of_too_many_positions_are_refused_before_they_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.gguf");
    fs::copy(corpus("gguf").join("seed-long-context"), &path).unwrap();
    let e = tinsmith::formats::load(&path).unwrap_err();
    assert!(e.code() == "CONTEXT-LONG" && e.kind().exit_code() == 5, "{e}");
    assert!(e.to_string().contains("--context"), "{e}");
}
