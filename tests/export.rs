//! Models exported for a runtime: the file gives what the model gives, and where it does not, the node is
//! named; weights in half precision; what belongs beside a model.

use crate::cache;
use crate::transformer::{Decoder, Encoder, Noise};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tinsmith::execute::Executor;
use tinsmith::export::{self, Check, Plan, Storage, Verdict};
use tinsmith::formats;
use tinsmith::graph::Graph;
use tinsmith::monitor::Silent;
use tinsmith::ops::Attr;
use tinsmith::passes::lower::Target;
use tinsmith::tensor::DType;

fn saved(graph: &Graph, directory: &Path) -> PathBuf {
    let path = directory.join("model.onnx");
    formats::save(graph, &path).unwrap();
    path
}

fn plan(model: &Path, target: Target) -> Plan {
    // Says which program is started as a child.
    let _ = cache::paths();
    Plan { model: model.into(), target: Some(target), storage: Storage::F32, context: None }
}

fn verdict(plan: &Plan, exported: &Path) -> Verdict {
    let library = cache::library();
    let check = Check { plan: plan.clone(), exported: exported.into(), library, tolerance: 1e-3, seed: 1 };
    export::verify(&check, &Silent).unwrap()
}

#[test]
fn exported_files_give_what_the_model_gives() {
    let decoder = Decoder { hidden: 64, vocabulary: 40, ..Decoder::default() };
    for (graph, caches) in [(decoder.graph(), true), (Encoder::default().graph(), false)] {
        let dir = tempfile::tempdir().unwrap();
        let model = saved(&graph, dir.path());
        for target in [Target::Ort, Target::Standard] {
            for storage in [Storage::F32, Storage::F16] {
                let plan = Plan { storage, ..plan(&model, target) };
                let path = dir.path().join(format!("new/{}-{storage:?}.onnx", target.name()));
                let exported = export::export(&plan, &path, &Silent).unwrap();
                assert_eq!(exported.target, Some(target));
                let v = verdict(&plan, &path);
                assert!(v.passed && v.max_rel < 1e-4 && v.first.is_none(), "{plan:?}: {v:?}");
                // A decoder goes on behind its cache.
                assert_eq!(v.runs.len(), if caches { 2 } else { 1 });
                assert!(v.elements > 100);
                let own = exported.operators.keys().any(|n| n.contains(':'));
                assert_eq!(own, target == Target::Ort);
            }
            let size = |s: &str| {
                let path = dir.path().join(format!("new/{}-{s}.onnx", target.name()));
                fs::metadata(path).unwrap().len() as f64
            };
            let part = size("F16") / size("F32");
            assert!(part < 0.75, "half precision takes {part} of the bytes");
        }
    }
}

#[test]
fn weights_in_half_precision_are_computed_in_single() {
    let dir = tempfile::tempdir().unwrap();
    let net = Decoder { hidden: 64, ..Decoder::default() };
    let mut edit = net.graph().edit();
    // One weight that half precision cannot hold.
    let large = net.graph().find("layers.0.up.weight").unwrap();
    let mut wide = Noise(3).tensor(&[64, 48], 1.0).to_f32s().unwrap();
    wide[5] = 1e6;
    edit.set_initializer(large, tinsmith::tensor::Tensor::from_vec(vec![64, 48], wide).unwrap());
    let model = saved(&edit.commit().unwrap(), dir.path());
    let plan = Plan { target: None, storage: Storage::F16, ..plan(&model, Target::Ort) };
    let path = dir.path().join("half.onnx");
    let exported = export::export(&plan, &path, &Silent).unwrap();
    assert!(exported.warnings.iter().any(|w| w.contains("layers.0.up.weight")), "{:?}", exported.warnings);
    let graph = formats::load(&path).unwrap().graph;
    let dtype = |name: &str| graph.find(name).and_then(|v| graph.initializer(v)).map(|t| t.dtype());
    assert_eq!(dtype("layers.0.gate.weight.f16"), Some(DType::F16));
    assert_eq!(dtype("layers.0.up.weight"), Some(DType::F32));
    // Angles and gains stay as they are.
    assert_eq!(dtype("rope.cos"), Some(DType::F32));
    assert_eq!(dtype("norm.weight"), Some(DType::F32));
    let inputs = net.inputs(&[&[1, 2, 3]], &[&[1; 3]], &[]);
    let out = Executor::new(&graph).unwrap().run(&inputs).unwrap();
    assert_eq!(out[0].1.dtype(), DType::F32);
}

#[test]
fn a_file_that_differs_is_told_with_the_first_node() {
    let dir = tempfile::tempdir().unwrap();
    let model = saved(&Decoder::default().graph(), dir.path());
    let plan = plan(&model, Target::Ort);
    let path = dir.path().join("exported.onnx");
    export::export(&plan, &path, &Silent).unwrap();
    // Another epsilon in one norm.
    let graph = formats::load(&path).unwrap().graph;
    let at = graph.nodes().iter().position(|n| n.name == "layers.1.mlp_norm").unwrap();
    let mut edit = graph.edit();
    edit.node_mut(at).attributes.set("epsilon", Attr::Float(0.5));
    formats::save(&edit.commit().unwrap(), &path).unwrap();
    let v = verdict(&plan, &path);
    assert!(!v.passed && v.max_rel > 1e-3);
    let first = v.first.unwrap();
    assert_eq!((first.node.as_str(), first.between.as_str()), ("layers.1.mlp_norm", "lowering"));
    assert_eq!(first.operator, "SimplifiedLayerNormalization");
}

#[test]
fn what_belongs_to_a_model_goes_with_it_and_nothing_is_overwritten() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let model = saved(&Encoder::default().graph(), from.path());
    for name in ["tokenizer.json", "config.json", "unrelated.json"] {
        fs::write(from.path().join(name), format!("{{\"of\": \"{name}\"}}")).unwrap();
    }
    fs::write(to.path().join("config.json"), "{\"mine\": true}").unwrap();
    let path = to.path().join("model.onnx");
    let exported = export::export(&plan(&model, Target::Standard), &path, &Silent).unwrap();
    assert_eq!(exported.beside, [to.path().join("tokenizer.json")]);
    assert!(exported.warnings.iter().any(|w| w.contains("config.json")), "{:?}", exported.warnings);
    assert_eq!(fs::read_to_string(to.path().join("config.json")).unwrap(), "{\"mine\": true}");
    assert!(!to.path().join("unrelated.json").exists());
    // Again: what is the same stays without a word.
    let again = export::export(&plan(&model, Target::Standard), &path, &Silent).unwrap();
    assert_eq!(again.beside, exported.beside);
}

#[test]
fn the_command_reports_target_and_parity() {
    let dir = tempfile::tempdir().unwrap();
    let model = saved(&Decoder::default().graph(), dir.path());
    let out = dir.path().join("out/decoder.onnx");
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tinsmith"));
        command.arg("import").arg(&model).arg("-o").arg(&out).args(more);
        command.env("TINSMITH_HOME", dir.path().join("home"));
        command.env("TINSMITH_ORT_DYLIB", &cache::library().path).output().unwrap()
    };
    let done = run(&["--target", "ort", "--format", "json"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let told: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(told["target"], "ort");
    assert_eq!(told["operators"]["com.microsoft:GroupQueryAttention"], 2);
    assert_eq!(told["parity"]["passed"], true);
    assert!(told["parity"]["max_rel"].as_f64().unwrap() < 1e-4);
    let done = run(&["--target", "standard"]);
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success() && text.contains("same on ONNX Runtime"), "{text}");
    // A file for its own sake is not run.
    let done = run(&["--format", "json"]);
    let told: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert!(told["target"].is_null() && told["parity"].is_null(), "{told}");
    assert_eq!(fs::read(&model).unwrap(), fs::read(&out).unwrap());
    let done = run(&["--context", "64"]);
    assert_eq!(done.status.code(), Some(2), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(String::from_utf8_lossy(&done.stderr).contains("CONTEXT"));
}
