//! Inspection and comparison of models as people and scripts meet them: ONNX files, checkpoints of known
//! and unknown architectures, many tensors, hostile text.

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tinsmith::text::is_unsafe;

const PROGRAM: &str = env!("CARGO_BIN_EXE_tinsmith");

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().unwrap())
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).current_dir(self.0.path()).stdin(Stdio::null());
        command.env("TINSMITH_HOME", self.path("home")).env("XDG_CONFIG_HOME", self.path("config"));
        command.output().unwrap()
    }
    fn stdout(&self, arguments: &[&str]) -> String {
        let out = self.run(arguments);
        assert_eq!(out.status.code(), Some(0), "{arguments:?}: {}", text(&out.stderr));
        text(&out.stdout)
    }
    /// The JSON result, valid under the schema of its name.
    fn json(&self, schema: &str, arguments: &[&str]) -> Value {
        let document: Value =
            serde_json::from_str(&self.stdout(&[arguments, &["--format", "json"]].concat())).unwrap();
        let schema: Value = serde_json::from_str(&self.stdout(&["gen", "schema", schema])).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let errors: Vec<String> =
            validator.iter_errors(&document).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{errors:#?}");
        document
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A safetensors file of f32 tensors: (name, shape), element `i` of tensor `n` is `value(n, i)`.
fn safetensors(
    path: &Path,
    tensors: &[(String, Vec<usize>)],
    metadata: Value,
    value: impl Fn(usize, usize) -> f32,
) {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), metadata);
    let (mut data, mut at) = (Vec::new(), 0usize);
    for (n, (name, shape)) in tensors.iter().enumerate() {
        let count: usize = shape.iter().product();
        header.insert(
            name.clone(),
            json!({"dtype": "F32", "shape": shape, "data_offsets": [at, at + 4 * count]}),
        );
        at += 4 * count;
        data.extend((0..count).flat_map(|i| value(n, i).to_le_bytes()));
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    fs::write(path, bytes).unwrap();
}

fn noise(n: usize, i: usize) -> f32 {
    (((n * 7919 + i * 104_729) % 2003) as f32 / 2003.0 - 0.5) * 0.2
}

/// A Llama of two layers as a directory.
fn llama(dir: &Path, value: impl Fn(usize, usize) -> f32) {
    fs::create_dir_all(dir).unwrap();
    let mut tensors = vec![("model.embed_tokens.weight".to_string(), vec![64, 32])];
    for l in 0..2 {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{l}.{name}.weight"), shape.to_vec()));
        };
        add("self_attn.q_proj", &[32, 32]);
        add("self_attn.k_proj", &[16, 32]);
        add("self_attn.v_proj", &[16, 32]);
        add("self_attn.o_proj", &[32, 32]);
        add("mlp.gate_proj", &[48, 32]);
        add("mlp.up_proj", &[48, 32]);
        add("mlp.down_proj", &[32, 48]);
        add("input_layernorm", &[32]);
        add("post_attention_layernorm", &[32]);
    }
    tensors.push(("model.norm.weight".into(), vec![32]));
    tensors.push(("lm_head.weight".into(), vec![64, 32]));
    safetensors(&dir.join("model.safetensors"), &tensors, json!({"format": "pt"}), value);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

/// Scalar weights of [`llama`].
const PARAMETERS: u64 = 2 * 64 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32) + 32;

#[test]
fn the_sample_is_inspected_in_its_schema_with_every_weight_looked_at() {
    let home = Home::new();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/digits-resnet.onnx");
    let d = home.json("summary", &["inspect", model, "--weights"]);
    let sum = |rows: &Value, field: &str| -> u64 {
        rows.as_array().unwrap().iter().map(|r| r[field].as_u64().unwrap()).sum()
    };
    for totals in ["by_operator", "by_role"] {
        assert_eq!(sum(&d[totals], "parameters"), d["parameters"].as_u64().unwrap(), "{totals}");
        assert_eq!(sum(&d[totals], "macs"), d["macs"].as_u64().unwrap(), "{totals}");
        assert_eq!(sum(&d[totals], "layers"), d["layers"].as_array().unwrap().len() as u64);
    }
    assert_eq!(sum(&d["encodings"], "bytes"), sum(&d["tensors"], "bytes"));
    // A filter of one 3 x 3 convolution over 32 channels of 8 x 8, and what reads it in the next.
    let inner = &d["groups"][1];
    assert_eq!(inner["bytes_per_unit"].as_u64(), inner["parameters_per_unit"].as_u64().map(|n| 4 * n));
    assert_eq!(inner["macs_per_unit"], 2 * 32 * 9 * 64);
    for t in d["tensors"].as_array().unwrap() {
        let s = &t["distribution"]["stats"];
        assert_eq!(s["count"], t["parameters"], "{t}");
        assert!(s["min"].as_f64() <= s["mean"].as_f64() && s["mean"].as_f64() <= s["max"].as_f64());
        let h = &t["distribution"]["histogram"];
        let held: u64 = h["counts"].as_array().unwrap().iter().map(|c| c.as_u64().unwrap()).sum();
        assert_eq!(
            held + h["below"].as_u64().unwrap() + h["above"].as_u64().unwrap(),
            t["parameters"].as_u64().unwrap()
        );
    }
    let conv = &d["tensors"].as_array().unwrap().iter().find(|t| t["name"] == "stem.conv.weight").unwrap()["distribution"];
    assert_eq!((conv["channels"]["axis"].as_u64(), conv["channels"]["count"].as_u64()), (Some(0), Some(32)));
    let plain = home.json("summary", &["inspect", model]);
    assert!(plain["tensors"][0]["distribution"].is_null(), "no weight is read unless asked for");
}

#[test]
fn sections_and_filters_leave_what_was_asked_for() {
    let home = Home::new();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/digits-resnet.onnx");
    let layers = home.stdout(&["inspect", model, "--layers=conv", "--format", "csv"]);
    assert!(layers.starts_with("index,name,op,role,"), "{layers}");
    assert!(layers.lines().skip(1).all(|l| l.contains("onv")) && layers.lines().count() == 16, "{layers}");
    let tensors = home.stdout(&["inspect", model, "--tensors"]);
    assert!(tensors.contains("stem.conv.weight") && !tensors.contains("coupling groups"));
    assert!(home.stdout(&["inspect", model, "--groups"]).contains("graph output \"logits\""));
    let all = home.stdout(&["inspect", model, "--format", "csv"]);
    assert_eq!(all.lines().count(), 53, "CSV holds every layer");
    assert_eq!(home.run(&["inspect", model, "--layers", "--tensors"]).status.code(), Some(2));
}

#[test]
fn a_checkpoint_of_a_known_architecture_has_costs_cache_and_roles() {
    let home = Home::new();
    llama(&home.path("m"), noise);
    let d = home.json("summary", &["inspect", "m", "--weights"]);
    assert_eq!(d["parameters"].as_u64(), Some(PARAMETERS));
    assert_eq!((d["format"].as_str(), d["no_graph"].is_null()), (Some("safetensors"), true));
    // Two layers, two heads of eight, key and value, four bytes.
    assert_eq!(d["kv_cache"]["bytes_per_token"].as_u64(), Some(2 * 2 * 8 * 2 * 4));
    assert_eq!(d["kv_cache"]["bytes_at_context"].as_u64(), Some(256 * 256));
    // Products with weights of one prefill of 128 tokens, and the scores of four heads of eight.
    let hand = 128 * (2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32) + 64 * 32) + 2 * 2 * 128 * 128 * 32;
    let macs = d["macs"].as_f64().unwrap();
    assert!((macs / f64::from(hand) - 1.0).abs() < 0.01, "{macs} for {hand}");
    let role = |name: &str| {
        let rows = d["by_role"].as_array().unwrap();
        rows.iter().find(|r| r["kind"] == name).map_or(0, |r| r["parameters"].as_u64().unwrap())
    };
    assert_eq!(role("mlp"), 2 * 3 * 48 * 32);
    assert_eq!(role("embedding"), 64 * 32);
    assert_eq!(role("norm"), 5 * 32);
    assert_eq!(
        d["encodings"],
        json!([{"encoding": "F32", "tensors": 21, "parameters": PARAMETERS, "bytes": 4 * PARAMETERS}])
    );
    assert_eq!(d["about"]["causal"], true);
    let shown = home.stdout(&["inspect", "m"]);
    assert!(shown.contains("kv cache") && shown.contains("LlamaForCausalLM"), "{shown}");
}

#[test]
fn an_unknown_architecture_shows_its_weights_and_what_is_missing() {
    let home = Home::new();
    llama(&home.path("m"), noise);
    let config = json!({"model_type": "perceptor", "architectures": ["PerceptorModel"]});
    fs::write(home.path("m/config.json"), config.to_string()).unwrap();
    let d = home.json("summary", &["inspect", "m"]);
    assert!(d["no_graph"].as_str().unwrap().contains("perceptor"), "{}", d["no_graph"]);
    assert_eq!((d["layers"].as_array().unwrap().len(), d["parameters"].as_u64()), (21, Some(PARAMETERS)));
    let shown = home.stdout(&["inspect", "m"]);
    assert!(shown.contains("cannot be converted") && shown.contains("model.norm.weight"), "{shown}");
}

#[test]
fn differences_of_two_checkpoints_are_measured_in_their_schema() {
    let home = Home::new();
    llama(&home.path("a"), noise);
    llama(&home.path("b"), |n, i| noise(n, i) * if n == 5 && i < 4 { 3.0 } else { 1.0 });
    let same = home.json("diff", &["diff", "a", "a"]);
    assert_eq!(same["layers"].as_array().unwrap().len(), 0);
    assert_eq!(same["weight_counts"]["changed"].as_u64(), Some(0));
    let d = home.json("diff", &["diff", "a", "b"]);
    let changed: Vec<&Value> =
        d["weights"].as_array().unwrap().iter().filter(|w| !w["change"].is_null()).collect();
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert_eq!(changed[0]["name"], "model.layers.0.mlp.gate_proj.weight");
    let numbers = &changed[0]["difference"];
    assert_eq!(numbers["differing"].as_u64(), Some((0..4).filter(|i| noise(5, *i) != 0.0).count() as u64));
    let most = (0..4).map(|i| f64::from(noise(5, i) * 3.0 - noise(5, i)).abs()).fold(0.0, f64::max);
    assert!((numbers["max_abs"].as_f64().unwrap() - most).abs() < 1e-6);
    let shown = home.stdout(&["diff", "a", "b"]);
    assert!(shown.contains("mlp.gate_proj") && shown.contains("rel. L2"), "{shown}");
    assert!(home.json("diff", &["diff", "a", "b", "--shapes"])["weights"][0]["difference"].is_null());
    assert_eq!(home.run(&["diff", "a", "nowhere"]).status.code(), Some(3));
}

#[test]
fn ten_thousand_tensors_are_inspected_without_delay() {
    let home = Home::new();
    let tensors: Vec<(String, Vec<usize>)> = (0..10_000)
        .map(|i| (format!("model.layers.{}.mlp.w{}.weight", i / 10, i % 10), vec![2, 3]))
        .collect();
    safetensors(&home.path("many.safetensors"), &tensors, json!({}), noise);
    let start = Instant::now();
    let csv = home.stdout(&["inspect", "many.safetensors", "--format", "csv"]);
    assert_eq!(csv.lines().count(), 10_001);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn hostile_text_is_shown_escaped_everywhere() {
    let home = Home::new();
    let evil = "\u{1b}]52;c;aGk=\u{7}\u{9d}x\u{202e}\r\n";
    let tensors = vec![(format!("a{evil}.weight"), vec![2, 2]), ("b".to_string(), vec![3])];
    let metadata = json!({"chat_template": format!("{{{{ evil() }}}}{evil}"), format!("k{evil}"): "v"});
    safetensors(&home.path("m.safetensors"), &tensors, metadata, noise);
    for format in ["text", "json", "jsonl", "csv", "md"] {
        for section in [&[][..], &["--metadata"], &["--tensors"], &["--weights"]] {
            let arguments = [&["inspect", "m.safetensors", "--format", format], section].concat();
            let out = home.stdout(&arguments);
            let bad = out.chars().find(|c| is_unsafe(*c) && *c != '\n');
            assert_eq!(bad, None, "{arguments:?}");
        }
    }
    let shown = home.stdout(&["inspect", "m.safetensors", "--metadata"]);
    assert!(shown.contains("{{ evil() }}\\u{1b}]52"), "{shown}");
    let out = home.run(&["diff", "m.safetensors", "m.safetensors", "--all"]);
    assert!(!text(&out.stdout).contains('\u{1b}'));
}

#[test]
fn units_are_timed_and_take_what_a_cut_saves() {
    let home = Home::new();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/digits-resnet.onnx");
    let d = home.json("summary", &["inspect", model, "--groups", "--measure"]);
    let ms = |name: &str| d["timing"][name].as_f64().unwrap();
    let known = ms("known_ms");
    assert!(known > 0.3 * ms("nodes_ms") && known <= ms("nodes_ms"), "{}", d["timing"]);
    assert!(ms("nodes_ms") < 1.1 * ms("run_ms"), "{}", d["timing"]);
    let groups = d["groups"].as_array().unwrap();
    for g in groups {
        let all = g["ms_per_unit"].as_f64().unwrap_or(0.0) * g["units"].as_f64().unwrap();
        assert_eq!(all > 0.0, g["prunable"] == true, "{g}");
        assert!(all < 1.01 * known, "{g}");
    }
    let text = home.stdout(&["inspect", model, "--groups", "--measure", "--bind", "batch=4"]);
    assert!(text.contains("ms/unit") && text.contains("with every node timed"), "{text}");
    let alone = home.run(&["inspect", model, "--measure"]);
    assert_eq!(alone.status.code(), Some(2));
    let checkpoint = home.path("llama");
    fs::create_dir(&checkpoint).unwrap();
    llama(&checkpoint, |_, _| 0.5);
    let refused = home.run(&["inspect", checkpoint.to_str().unwrap(), "--groups", "--measure"]);
    assert_eq!(refused.status.code(), Some(4), "{}", String::from_utf8_lossy(&refused.stderr));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("tinsmith import"));
}

#[test]
fn layers_are_timed_before_and_after_quantisation() {
    let home = Home::new();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/digits-resnet.onnx");
    let small = home.path("int8.onnx");
    let small = small.to_str().unwrap();
    home.stdout(&[
        "quantize",
        model,
        "--scheme",
        "static-int8",
        "--calibration",
        "digits:train#0..32",
        "-o",
        small,
        "--quiet",
    ]);
    let d = home.json("diff", &["diff", model, small, "--measure"]);
    let layers = d["times"]["layers"].as_array().unwrap();
    let sum = |of: &str| layers.iter().map(|l| l[of].as_f64().unwrap()).sum::<f64>();
    for (side, of) in [("before", "before_ms"), ("after", "after_ms")] {
        let known = d["times"][side]["known_ms"].as_f64().unwrap();
        assert!(known > 0.0 && (sum(of) - known).abs() < 1e-6, "{side}: {known} {}", sum(of));
    }
    // Norms that stay between convolutions and their activations keep the names of what was fused before.
    let integer = |l: &&serde_json::Value| l["after"].as_str().unwrap().contains("QLinearConv");
    assert!(layers.iter().filter(integer).count() >= 10, "{layers:?}");
    let shown = home.stdout(&["diff", model, small, "--measure"]);
    assert!(shown.contains("time by layer") && shown.contains("QLinearConv"), "{shown}");
    let refused = home.run(&["diff", model, home.path("nowhere").to_str().unwrap(), "--measure"]);
    assert_eq!(refused.status.code(), Some(3));
}
