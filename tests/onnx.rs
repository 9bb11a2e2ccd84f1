//! ONNX in and out: what was read is written back unchanged.

use std::fs;
use std::path::{Path, PathBuf};
use tinsmith::analysis::{Options, summarize_file};
use tinsmith::config::Paths;
use tinsmith::error::Kind;
use tinsmith::formats::{self, External, SaveOptions};
use tinsmith::monitor::Silent;
use tinsmith::tensor::{DType, Tensor};

use crate::protobuf::{Msg, chain, model, node, tensor, tensor_f32, value};

/// The directory of a model or data set that `fetch` knows, kept below the build directory. `None` where
/// it cannot be had outside of CI.
pub fn fetched(name: &str) -> Option<PathBuf> {
    let paths = Paths::under(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("home"));
    match tinsmith::fetch::fetch(name, &paths, &Silent) {
        Ok(fetched) => Some(fetched.dir),
        Err(e) => {
            assert!(std::env::var_os("CI").is_none(), "{name} cannot be fetched: {e}");
            println!("skipped: {name} cannot be fetched: {e}");
            None
        }
    }
}

pub fn files_below(dir: &Path, ending: &str, out: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files_below(&path, ending, out);
        } else if path.to_string_lossy().ends_with(ending) {
            out.push(path);
        }
    }
}

#[test]
fn real_models_are_written_back_byte_for_byte() {
    let out = tempfile::tempdir().unwrap();
    for (name, count) in [("magika", 1), ("ppocr", 3)] {
        let Some(dir) = fetched(name) else { continue };
        let mut models = Vec::new();
        files_below(&dir, ".onnx", &mut models);
        assert_eq!(models.len(), count, "{name}");
        for path in models {
            let opened = formats::load(&path).unwrap();
            // Paddle writes -1 for dimensions that are not known.
            let lost = opened.facts.warnings.iter().find(|w| !w.contains("negative dimensions"));
            assert_eq!(lost, None, "{path:?}");
            let copy = out.path().join("copy.onnx");
            let saved = formats::save(&opened.graph, &copy).unwrap();
            let (old, new) = (fs::read(&path).unwrap(), fs::read(&copy).unwrap());
            assert_eq!(saved.bytes, new.len() as u64);
            assert!(old == new, "{path:?}: first difference at {:?}", first_difference(&old, &new));
            assert!(formats::encode(&opened.graph).unwrap() == old);
        }
    }
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    a.iter().zip(b).position(|(x, y)| x != y).or((a.len() != b.len()).then_some(a.len().min(b.len())))
}

#[test]
fn the_backend_test_models_are_written_back_byte_for_byte() {
    let Some(dir) = fetched("onnx-node-tests") else { return };
    let mut models = Vec::new();
    files_below(&dir, ".onnx", &mut models);
    assert!(models.len() > 1000, "{}", models.len());
    for path in &models {
        let old = fs::read(path).unwrap();
        let opened = match formats::load(path) {
            Ok(opened) => opened,
            Err(e) => panic!("{path:?}: {e}"),
        };
        let new = formats::encode(&opened.graph).unwrap();
        assert!(old == new, "{path:?}: first difference at {:?}", first_difference(&old, &new));
    }
    println!("{} models", models.len());
}

/// A model that uses every part of the format that is carried rather than understood.
pub fn rich() -> Vec<u8> {
    let entry = |k: &str, v: &str| Msg::new().text(1, k).text(2, v);
    let attr = |name: &str, ty: i64| Msg::new().text(1, name).int(20, ty);
    let typed = |f: u32, dtype: i64, bytes: &[u8], n: i64, name: &str| {
        Msg::new().int(1, n).int(2, dtype).bytes(f, bytes).text(8, name).sorted()
    };
    let body = Msg::new()
        .msg(1, node("Add", "inner", &["x", "k"], &["o"]).text(6, "doc of a node in a body"))
        .text(2, "then")
        .msg(5, tensor_f32("k", &[1], &[0.5]))
        .text(10, "doc of a body")
        .msg(12, value("o", &[4]));
    let wide: Vec<u8> = (0..5000i32).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let sequence = Msg::new().msg(4, Msg::new().msg(1, Msg::new().msg(1, Msg::new().int(1, 1))));
    let graph = Msg::new()
        .msg(
            1,
            node("Foo", "foo", &["x", "", "w"], &["a", "", "b"])
                .msg(5, attr("f", 1).f32(2, 1.5).sorted())
                .msg(5, attr("i", 2).int(3, -7).sorted())
                .msg(5, attr("s", 3).bytes(4, &[0xff, 0]).sorted())
                .msg(5, attr("t", 4).msg(5, tensor_f32("named", &[2], &[1., 2.]).text(12, "doc")).sorted())
                .msg(5, attr("fs", 6).f32(7, 1.).f32(7, 2.).sorted())
                .msg(5, attr("is", 7).int(8, 1).int(8, -2).sorted())
                .msg(5, attr("ss", 8).bytes(9, b"p").bytes(9, b"").sorted())
                .msg(5, attr("ts", 9).msg(10, tensor("big", 1, &[5000], &wide)).sorted())
                .msg(5, attr("type", 13).msg(14, sequence.clone()).sorted())
                .msg(5, attr("doc", 2).int(3, 1).text(13, "doc of an attribute").sorted())
                .text(6, "doc of a node")
                .text(7, "my.domain")
                .text(8, "overload")
                .msg(9, entry("node", "metadata"))
                .msg(10, Msg::new().text(1, "config").int(3, 1)),
        )
        .msg(1, node("If", "if", &["c"], &["y"]).msg(5, attr("then_branch", 5).msg(6, body).sorted()))
        .msg(1, Msg::new().text(1, "a").text(2, "z").text(3, "").text(4, "Relu").text(6, "").text(7, ""))
        .text(2, "g")
        .msg(5, tensor_f32("w", &[2], &[1., 2.]).text(12, "doc of a weight").msg(16, entry("a", "b")))
        .msg(5, typed(5, 3, &[1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], 2, "i8"))
        .msg(5, typed(7, 7, &[3, 4], 2, "i64"))
        .msg(5, typed(11, 12, &[3, 4], 2, "u32"))
        .msg(5, typed(10, 11, &[0; 16], 2, "f64"))
        .msg(5, typed(4, 1, &wide, 5000, "wide"))
        .msg(5, Msg::new().int(1, 2).int(2, 8).bytes(6, b"s").bytes(6, &[0xff]).text(8, "str"))
        .msg(5, Msg::new().int(1, 0).int(2, 1).text(8, "none"))
        .text(10, "doc of the graph")
        .msg(11, value("x", &[-1, 4]).text(3, "doc of an input").msg(4, entry("v", "m")))
        .msg(11, value("c", &[]))
        .msg(12, value("y", &[4]))
        .msg(12, Msg::new().text(1, "z"))
        .msg(13, Msg::new().text(1, "b").msg(2, sequence))
        .msg(13, value("stale", &[3]))
        .msg(14, Msg::new().text(1, "x").msg(2, entry("SCALE_TENSOR", "w")))
        .msg(16, entry("graph", "metadata"));
    let function = Msg::new()
        .text(1, "Fn")
        .text(4, "in")
        .text(5, "out")
        .msg(
            7,
            node("Constant", "", &[], &["out"])
                .msg(5, attr("value", 4).msg(5, tensor("", 1, &[5000], &wide)).sorted()),
        )
        .msg(9, Msg::new().text(1, "").int(2, 17))
        .text(10, "my.domain");
    Msg::new()
        .int(1, 10)
        .text(2, "maker")
        .text(3, "")
        .text(4, "org.example")
        .int(5, 0)
        .text(6, "doc of the model")
        .msg(7, graph)
        .msg(8, Msg::new().text(1, "").int(2, 17))
        .msg(8, Msg::new().text(1, "my.domain").int(2, 1))
        .msg(14, entry("key", "value"))
        .msg(20, Msg::new().msg(1, Msg::new().text(2, "init").msg(5, tensor("t", 1, &[5000], &wide))))
        .msg(25, function)
        .msg(26, Msg::new().text(1, "config").int(2, 2))
        .0
}

#[test]
fn what_is_not_understood_is_carried_byte_for_byte() {
    let bytes = rich();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rich.onnx");
    fs::write(&path, &bytes).unwrap();
    let opened = formats::load(&path).unwrap();
    assert_eq!(opened.facts.warnings, Vec::<String>::new());
    let new = formats::encode(&opened.graph).unwrap();
    assert!(new == bytes, "first difference at {:?}", first_difference(&bytes, &new));
    assert_eq!(formats::digest(&opened.graph).unwrap(), formats::digest(&opened.graph).unwrap());

    // A change of one weight leaves everything else as it was.
    let w = opened.graph.find("w").unwrap();
    let mut edit = opened.graph.edit();
    edit.set_initializer(w, Tensor::from_vec(vec![2], vec![1f32, 3.]).unwrap());
    let changed = formats::encode(&edit.commit().unwrap()).unwrap();
    assert_eq!(changed.len(), bytes.len());
    let differing = changed.iter().zip(&bytes).filter(|(a, b)| a != b).count();
    assert!((1..=4).contains(&differing), "{differing} bytes differ");
}

#[test]
fn elements_of_every_storage_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rich.onnx");
    fs::write(&path, rich()).unwrap();
    let graph = formats::load(&path).unwrap().graph;
    let tensor = |name: &str| graph.initializer(graph.find(name).unwrap()).unwrap();
    assert_eq!(tensor("i8").to_vec::<i8>().unwrap(), [1, -1]);
    assert_eq!(tensor("i64").to_vec::<i64>().unwrap(), [3, 4]);
    assert_eq!(tensor("u32").to_vec::<u32>().unwrap(), [3, 4]);
    assert_eq!(tensor("f64").to_vec::<f64>().unwrap(), [0., 0.]);
    assert_eq!(tensor("wide").to_vec::<f32>().unwrap()[4999], 4999.);
    assert!(tensor("wide").region().is_some(), "large data stays in the file");
    assert_eq!(tensor("none").shape(), [0]);
    assert_eq!(tensor("str").dtype(), DType::Str);
}

fn large_model(dir: &Path) -> PathBuf {
    let path = dir.join("large.onnx");
    let weights: Vec<u8> = (0..50_000u32).flat_map(|i| i.to_le_bytes()).collect();
    let graph = Msg::new()
        .msg(1, node("Add", "", &["x", "first"], &["a"]))
        .msg(1, node("Add", "", &["a", "second"], &["y"]))
        .text(2, "g")
        .msg(5, tensor("first", 1, &[50_000], &weights))
        .msg(5, tensor("second", 1, &[50_000], &weights))
        .msg(5, tensor_f32("small", &[2], &[1., 2.]))
        .msg(11, value("x", &[50_000]))
        .msg(12, value("y", &[50_000]));
    fs::write(&path, model(graph, 17).0).unwrap();
    path
}

#[test]
fn large_tensors_go_to_an_aligned_file_beside_the_model_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let source = large_model(dir.path());
    let opened = formats::load(&source).unwrap();
    let out = dir.path().join("out put.onnx");
    let options = SaveOptions { external: External::Always, ..SaveOptions::default() };
    let saved = formats::save_with(&opened.graph, &out, &options).unwrap();
    let (data, bytes) = saved.data.unwrap();
    assert_eq!(data, dir.path().join("out_put.onnx.data"));
    assert_eq!(bytes, 4 * 65_536 + 200_000);
    assert!(saved.bytes < 600);

    let again = formats::load(&out).unwrap();
    assert_eq!(again.facts.external, [(data.clone(), bytes)]);
    for name in ["first", "second", "small"] {
        let find = |g: &tinsmith::graph::Graph| g.initializer(g.find(name).unwrap()).unwrap().clone();
        assert!(find(&opened.graph).same_bits(&find(&again.graph)).unwrap(), "{name}");
    }
    // Writing over the model never touches data that an older model names.
    let before = fs::read(&data).unwrap();
    let second = formats::save_with(&again.graph, &out, &options).unwrap();
    assert_eq!(second.data.unwrap().0, dir.path().join("out_put.onnx.1.data"));
    assert!(fs::read(&data).unwrap() == before);
    // And back into one file.
    let inline = formats::save(&again.graph, &out).unwrap();
    assert_eq!(inline.data, None);
    assert!(fs::read(&out).unwrap() == fs::read(&source).unwrap());
}

#[test]
fn a_file_of_two_gibibytes_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse.onnx");
    crate::protobuf::sparse_model(&path, 2100);
    let opened = formats::load(&path).unwrap();
    let out = dir.path().join("out.onnx");
    let options = SaveOptions { external: External::Never, ..SaveOptions::default() };
    let e = formats::save_with(&opened.graph, &out, &options).unwrap_err();
    assert_eq!((e.kind(), e.code()), (Kind::Limit, "ONNX-2GIB"));
    assert!(!out.exists());
}

#[test]
fn saving_stops_on_request_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let opened = formats::load(&large_model(dir.path())).unwrap();
    let stop = tinsmith::monitor::Switch(true.into());
    for external in [External::Never, External::Always] {
        let options = SaveOptions { external, monitor: &stop };
        let e = formats::save_with(&opened.graph, &dir.path().join("out.onnx"), &options).unwrap_err();
        assert_eq!(e.kind(), Kind::Stopped);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn ten_thousand_nodes_are_inspected_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep.onnx");
    fs::write(&path, chain(10_000)).unwrap();
    let summary = summarize_file(&path, &Options::default()).unwrap();
    assert_eq!(summary.layers.len(), 10_000);
    assert_eq!(summary.parameters, 10 * (64 * 64 + 64));
    assert_eq!(summary.bindings, [("s1".to_string(), 1)]);
}
