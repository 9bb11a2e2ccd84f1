//! Small models of every architecture against the outputs that an independent implementation computed for
//! them (`benches/peer/architectures.py`). Weights are a function of their names.

use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tinsmith::execute::Executor;
use tinsmith::formats::architecture::{self, Options};
use tinsmith::formats::metadata::Fact;
use tinsmith::formats::{Checkpoint, Stored};
use tinsmith::graph::Graph;
use tinsmith::tensor::{DType, Tensor};

/// Numbers in [-1, 1) from splitmix64, seeded with the FNV-1a hash of the name.
pub(crate) fn uniform(name: &str, count: usize) -> Vec<f32> {
    let seed =
        name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3));
    (1..=count as u64)
        .map(|i| {
            let z = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        })
        .collect()
}

fn weight(name: &str, shape: &[usize]) -> Tensor {
    let u = uniform(name, shape.iter().product());
    let values = match shape {
        [.., last] if shape.len() >= 2 => {
            let scale = (1.7 / (*last as f64).sqrt()) as f32;
            u.iter().map(|u| u * scale).collect()
        }
        _ if name.ends_with("bias") => u.iter().map(|u| u * 0.1f32).collect(),
        _ => u.iter().map(|u| 1.0 + u * 0.2f32).collect(),
    };
    Tensor::from_vec(shape.to_vec(), values).unwrap()
}

pub(crate) struct Fixture(Value);

impl Fixture {
    pub(crate) fn directory() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/architectures")
    }

    pub(crate) fn load(name: &str) -> Fixture {
        let path = Fixture::directory().join(format!("{name}.json"));
        Fixture(serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
    }

    pub(crate) fn names() -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(Fixture::directory())
            .unwrap()
            .map(|e| e.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    pub(crate) fn weights(&self) -> Vec<(String, Tensor)> {
        let list = self.0["weights"].as_array().unwrap();
        list.iter()
            .map(|w| {
                let name = w[0].as_str().unwrap();
                (name.to_string(), weight(name, &shape(&w[1])))
            })
            .collect()
    }

    /// A decoder in the layout of Llama with heads of another size: ones that an attention turns itself.
    pub(crate) fn with_heads_of(mut self, size: usize) -> Fixture {
        let count = |name: &str| usize::try_from(self.0["config"][name].as_u64().unwrap()).unwrap();
        let (heads, groups) = (count("num_attention_heads"), count("num_key_value_heads"));
        self.0["config"]["head_dim"] = size.into();
        for weight in self.0["weights"].as_array_mut().unwrap() {
            let name = weight[0].as_str().unwrap();
            let (axis, parts) = match name {
                n if n.contains("q_proj.") => (0, heads),
                n if n.contains("k_proj.") || n.contains("v_proj.") => (0, groups),
                n if n.contains("o_proj.weight") => (1, heads),
                _ => continue,
            };
            weight[1][axis] = (parts * size).into();
        }
        self
    }

    pub(crate) fn config(&self) -> Value {
        self.0["config"].clone()
    }

    /// The same model as a GGUF file would hold it, where the fixture tells how.
    fn gguf(&self) -> Option<Checkpoint> {
        let form = self.0.get("gguf")?;
        let plain: HashMap<String, Tensor> = self.weights().into_iter().collect();
        let config = self.config();
        let stored = form["weights"].as_array().unwrap().iter().map(|w| {
            let text = |i: usize| w[i].as_str().unwrap();
            let tensor = changed(&plain[text(1)], text(2), &config, text(1));
            Stored {
                name: text(0).into(),
                shape: tensor.shape().to_vec(),
                encoding: "F32".into(),
                bytes: tensor.byte_len(),
                tensor: Some(tensor),
            }
        });
        let mut checkpoint = Checkpoint::new("gguf", "model.gguf".into(), stored.collect());
        for (key, value) in form["metadata"].as_object().unwrap() {
            let fact = match value {
                Value::String(s) => Fact::Text(s.clone()),
                v if v.is_i64() => Fact::Int(v.as_i64().unwrap().into()),
                v => Fact::Float(v.as_f64().unwrap()),
            };
            assert!(checkpoint.metadata.insert(key, fact));
        }
        Some(checkpoint)
    }

    /// Writes the model as a directory of a checkpoint.
    pub(crate) fn write(&self, directory: &Path) {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, tensor) in self.weights() {
            let from = data.len();
            tensor.write_raw(&mut data).unwrap();
            let entry = serde_json::json!({
                "dtype": "F32", "shape": tensor.shape(), "data_offsets": [from, data.len()],
            });
            header.insert(name, entry);
        }
        let mut header = serde_json::to_vec(&header).unwrap();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header);
        file.extend(data);
        std::fs::create_dir_all(directory).unwrap();
        std::fs::write(directory.join("model.safetensors"), file).unwrap();
        std::fs::write(directory.join("config.json"), serde_json::to_vec(&self.config()).unwrap()).unwrap();
    }

    fn checkpoint(&self) -> Checkpoint {
        let stored = self.weights().into_iter().map(|(name, tensor)| Stored {
            name,
            shape: tensor.shape().to_vec(),
            encoding: "F32".into(),
            bytes: tensor.byte_len(),
            tensor: Some(tensor),
        });
        let mut checkpoint = Checkpoint::new("safetensors", "model".into(), stored.collect());
        checkpoint.config = Some(self.config());
        checkpoint
    }

    pub(crate) fn graph(&self) -> Graph {
        architecture::build(&self.checkpoint(), &Options::default()).unwrap().graph
    }

    pub(crate) fn inputs(&self, graph: &Graph) -> Vec<(String, Tensor)> {
        let mut inputs = Vec::new();
        for (name, given) in self.0["inputs"].as_object().unwrap() {
            let values = given["values"].as_array().unwrap();
            let tensor = match values[0].is_i64() {
                true => Tensor::from_vec(
                    shape(&given["shape"]),
                    values.iter().map(|v| v.as_i64().unwrap()).collect(),
                ),
                false => Tensor::from_vec(
                    shape(&given["shape"]),
                    values.iter().map(|v| v.as_f64().unwrap() as f32).collect(),
                ),
            };
            inputs.push((name.clone(), tensor.unwrap()));
        }
        let batch = inputs[0].1.shape()[0];
        inputs.extend(empty_caches(graph, batch));
        inputs
    }

    pub(crate) fn expected(&self) -> Vec<(String, Tensor)> {
        let outputs = self.0["outputs"].as_object().unwrap();
        outputs
            .iter()
            .map(|(name, t)| {
                let values =
                    t["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
                (name.clone(), Tensor::from_vec(shape(&t["shape"]), values).unwrap())
            })
            .collect()
    }
}

/// A weight as llama.cpp's converter stores it.
fn changed(tensor: &Tensor, change: &str, config: &Value, name: &str) -> Tensor {
    match change {
        "" => tensor.clone(),
        "transpose" => tensor.transposed(&[1, 0]),
        "add_one" => {
            let v = tensor.to_f32s().unwrap().iter().map(|x| x + 1.0).collect();
            Tensor::from_vec(tensor.shape().to_vec(), v).unwrap()
        }
        "interleave" => {
            let key = if name.contains("q_proj") { "num_attention_heads" } else { "num_key_value_heads" };
            let (rows, heads) = (tensor.shape()[0], config[key].as_u64().unwrap() as usize);
            let size = rows / heads;
            let order: Vec<usize> =
                (0..rows).map(|r| r / size * size + r % 2 * (size / 2) + r % size / 2).collect();
            tensor.selected(0, &order)
        }
        other => panic!("{other}"),
    }
}

fn shape(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect()
}

/// Caches without tokens for every cache input of a decoder.
pub(crate) fn empty_caches(graph: &Graph, batch: usize) -> Vec<(String, Tensor)> {
    let facts = graph.infer(&|_| None).unwrap();
    graph
        .inputs()
        .iter()
        .filter(|v| graph.value_name(**v).starts_with("past_key_values."))
        .map(|v| {
            let shape = facts.get(*v).unwrap().shape.clone().unwrap();
            let (heads, size) = (shape[1].size().unwrap(), shape[3].size().unwrap());
            let tensor = Tensor::from_vec(vec![batch, heads, 0, size], Vec::<f32>::new()).unwrap();
            (graph.value_name(*v).to_string(), tensor)
        })
        .collect()
}

pub(crate) fn named<'a>(list: &'a [(String, Tensor)], name: &str) -> &'a Tensor {
    &list.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}")).1
}

pub(crate) fn worst(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.shape(), b.shape());
    let (a, b) = (a.to_f32s().unwrap(), b.to_f32s().unwrap());
    a.iter().zip(&b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

#[test]
fn every_architecture_gives_the_outputs_of_the_reference() {
    let mut failed = Vec::new();
    let fixtures: Vec<(String, Fixture)> =
        Fixture::names().into_iter().map(|n| (n.clone(), Fixture::load(&n))).collect();
    let built = fixtures.iter().flat_map(|(name, f)| {
        let gguf = f.gguf().map(|c| (format!("{name} (GGUF)"), f, c));
        [Some((name.clone(), f, f.checkpoint())), gguf].into_iter().flatten()
    });
    let mut count = 0;
    for (name, fixture, checkpoint) in built {
        let graph = architecture::build(&checkpoint, &Options::default()).unwrap().graph;
        count += 1;
        let outputs = Executor::new(&graph).unwrap().run(&fixture.inputs(&graph)).unwrap();
        for (output, expected) in fixture.expected() {
            let got = named(&outputs, &output);
            let expected_rows = expected.shape()[0] * expected.shape().get(1).copied().unwrap_or(1);
            let (got, expected) = real_rows(fixture, got, &expected, expected_rows);
            let difference = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{name} {output}: {difference:.1e}");
            if difference.is_nan() || difference > 1e-4 {
                failed.push(format!("{name} {output}: {difference:.1e}"));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
    assert!(count >= 34, "{count}");
}

/// Values of real tokens: what stands at padding is nobody's business.
fn real_rows(fixture: &Fixture, got: &Tensor, expected: &Tensor, rows: usize) -> (Vec<f32>, Vec<f32>) {
    assert_eq!(got.shape(), expected.shape());
    let mask = &fixture.0["inputs"]["attention_mask"]["values"];
    let mask: Option<Vec<bool>> = mask
        .as_array()
        .filter(|m| m.len() == rows)
        .map(|m| m.iter().map(|v| v.as_i64() == Some(1)).collect());
    let (got, expected) = (got.to_f32s().unwrap(), expected.to_f32s().unwrap());
    let Some(mask) = mask else { return (got, expected) };
    let width = got.len() / rows;
    let keep = |v: Vec<f32>| {
        v.chunks(width)
            .zip(&mask)
            .filter(|(_, real)| **real)
            .flat_map(|(r, _)| r.to_vec())
            .collect::<Vec<f32>>()
    };
    (keep(got), keep(expected))
}

#[test]
fn decoding_with_a_cache_equals_reading_at_once() {
    for name in ["llama", "gemma3", "gpt2", "mistral", "phi3"] {
        let fixture = Fixture::load(name);
        let graph = fixture.graph();
        let executor = Executor::new(&graph).unwrap();
        let inputs = fixture.inputs(&graph);
        let whole = executor.run(&inputs).unwrap();
        let ids = named(&inputs, "input_ids");
        let mut caches = empty_caches(&graph, 1);
        let mut logits: Vec<f32> = Vec::new();
        for range in [0..6usize, 6..7, 7..8, 8..10] {
            let part: Vec<usize> = range.clone().collect();
            let mask = Tensor::from_vec(vec![1, range.end], vec![1i64; range.end]).unwrap();
            let mut step =
                vec![("input_ids".to_string(), ids.selected(1, &part)), ("attention_mask".to_string(), mask)];
            step.extend(caches);
            let out = executor.run(&step).unwrap();
            logits.extend(named(&out, "logits").to_f32s().unwrap());
            caches = out
                .iter()
                .filter(|(n, _)| n.starts_with("present."))
                .map(|(n, t)| (n.replace("present.", "past_key_values."), t.clone()))
                .collect();
        }
        let whole = named(&whole, "logits");
        let steps = Tensor::from_vec(whole.shape().to_vec(), logits).unwrap();
        assert!(worst(whole, &steps) < 1e-4, "{name}: {}", worst(whole, &steps));
    }
}

#[test]
fn shapes_are_known_and_every_node_has_a_known_operator() {
    for name in Fixture::names() {
        let graph = Fixture::load(&name).graph();
        assert_eq!(graph.unknown_operators(), [], "{name}");
        let facts = graph.infer(&|_| None).unwrap();
        for v in graph.outputs() {
            let fact = facts.get(*v).unwrap();
            assert_eq!(fact.dtype, DType::F32, "{name}");
            let shape = fact.shape.as_ref().unwrap_or_else(|| panic!("{name} {}", graph.value_name(*v)));
            assert!(shape.iter().all(|d| !d.is_unknown()), "{name} {}: {shape:?}", graph.value_name(*v));
        }
        let logits =
            graph.find("logits").map(|v| format!("{:?}", facts.get(v).unwrap().shape.clone().unwrap()));
        if graph.find("present.0.key").is_some() {
            assert_eq!(logits.as_deref(), Some("[batch, seq, 40]"), "{name}");
        }
    }
}

#[test]
fn configurations_that_contradict_the_weights_are_refused_by_name() {
    let with = |change: &dyn Fn(&mut Value)| {
        let fixture = Fixture::load("llama");
        let mut checkpoint = fixture.checkpoint();
        change(checkpoint.config.as_mut().unwrap());
        let e = architecture::build(&checkpoint, &Options::default()).unwrap_err();
        (e.kind().exit_code(), e.code(), e.field_path().unwrap_or_default().to_string())
    };
    let cases: &[(&dyn Fn(&mut Value), u8, &str, &str)] = &[
        (&|c| c["hidden_size"] = 0.into(), 3, "CONFIG-VALUE", "hidden_size"),
        (&|c| c["hidden_size"] = (1u64 << 40).into(), 3, "CONFIG-VALUE", "hidden_size"),
        (&|c| c["num_hidden_layers"] = "2".into(), 3, "CONFIG-VALUE", "num_hidden_layers"),
        (&|c| c["rms_norm_eps"] = (-1.0).into(), 3, "CONFIG-VALUE", "rms_norm_eps"),
        (&|c| c["vocab_size"] = 41.into(), 3, "CHECKPOINT-SHAPE", "model.embed_tokens.weight"),
        (
            &|c| c["num_hidden_layers"] = 3.into(),
            3,
            "CHECKPOINT-MISSING",
            "model.layers.2.input_layernorm.weight",
        ),
        (
            &|c| c["num_hidden_layers"] = 1.into(),
            4,
            "CHECKPOINT-UNUSED",
            "model.layers.1.input_layernorm.weight",
        ),
        (&|c| c["num_key_value_heads"] = 3.into(), 4, "CONFIG-UNSUPPORTED", "num_key_value_heads"),
        (&|c| c["model_type"] = "mamba".into(), 4, "ARCHITECTURE", "model_type"),
        (&|c| c["hidden_act"] = "sine".into(), 4, "CONFIG-UNSUPPORTED", "hidden_act"),
        (
            &|c| c["rope_parameters"]["rope_type"] = "new".into(),
            4,
            "CONFIG-UNSUPPORTED",
            "rope_parameters.rope_type",
        ),
    ];
    for (change, exit, code, field) in cases {
        assert_eq!(with(change), (*exit, *code, (*field).to_string()));
    }
}

#[test]
fn checkpoints_are_measured_and_made_smaller_like_any_model() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["llama", "bert"] {
        let model = dir.path().join(name);
        Fixture::load(name).write(&model);
        let run = |arguments: &[&str]| {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tinsmith"));
            command.arg("--home").arg(dir.path().join("home")).args(["--quiet", "--format", "json"]);
            command.env("TINSMITH_ORT_DYLIB", crate::cache::library().path);
            let out = command.args(arguments).output().unwrap();
            assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
            serde_json::from_slice::<Value>(&out.stdout).unwrap()
        };
        let model = model.to_str().unwrap();
        let small = dir.path().join(format!("{name}.onnx"));
        let small = small.to_str().unwrap();
        run(&["quantize", model, "--scheme", "dynamic-int8", "-o", small]);
        assert!(Path::new(small).with_file_name("config.json").exists());
        let rows = run(&["bench", model, small, "--seconds", "0.05", "--rounds", "2"]);
        let rows = rows["measurements"].as_array().unwrap().clone();
        assert_eq!(rows.len(), 2, "{rows:?}");
        for row in &rows {
            assert_eq!(row["failures"], serde_json::json!([]), "{name}: {row}");
            assert!(row["latency_ms"]["p50"].as_f64().unwrap() > 0.0);
        }
        assert!(rows[1]["weight_bytes"].as_u64() < rows[0]["weight_bytes"].as_u64(), "{name}");
        let kept = std::fs::read_dir(dir.path().join("home/cache/exports")).unwrap();
        assert!(kept.count() >= 1);
    }
}

/// Parameters as the reference counts them, and multiply-accumulates of 128 tokens by hand.
#[test]
fn totals_of_real_models_are_those_of_the_reference() {
    use tinsmith::analysis::{Options, summarize_file};
    let tokens = 128u64;
    let of = |path: &Path| summarize_file(path, &Options::default()).unwrap();
    let smollm2 = crate::cache::fetched("smollm2-135m");
    let summary = of(&smollm2.file(".gguf").unwrap());
    let layer = 576 * 576 + 2 * 576 * 192 + 576 * 576 + 3 * 576 * 1536;
    let attention = 2 * 9 * 64 * tokens * tokens;
    let macs = 30 * (layer * tokens + attention) + 576 * 49_152 * tokens;
    assert_eq!((summary.parameters, summary.macs), (134_515_008, macs));
    // The pooler counts, though it has no part in sentence embeddings.
    let minilm = of(&crate::cache::fetched("minilm-l6").dir);
    let layer = 4 * 384 * 384 + 2 * 384 * 1536;
    let macs = 6 * (layer * tokens + 2 * 384 * tokens * tokens);
    assert_eq!((minilm.parameters, minilm.macs), (22_713_216, macs));
}
