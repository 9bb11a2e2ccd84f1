//! A model looked at in a child process: what it foretells is what the pass makes of the file.

use std::path::Path;
use tinsmith::analysis::{Options, summarize};
use tinsmith::formats;
use tinsmith::monitor::{Silent, Switch};
use tinsmith::passes::prune::Criterion;
use tinsmith::passes::{Ctx, by_name};
use tinsmith::plan::study::{Question, Session};

const SAMPLE: &str = "assets/digits-resnet.onnx";

fn open(path: &Path) -> (Session, tinsmith::plan::study::Study) {
    tinsmith::child::set_program(env!("CARGO_BIN_EXE_tinsmith"));
    Session::open(path, Criterion::L2, &Silent).unwrap()
}

#[test]
fn a_child_foretells_the_file_that_a_run_writes() {
    let (mut session, study) = open(Path::new(SAMPLE));
    let opened = formats::load(Path::new(SAMPLE)).unwrap();
    let before = summarize(&opened.graph, &Options::default()).unwrap();
    assert_eq!((study.parameters, study.macs), (before.parameters, before.macs));
    assert_eq!((study.file_bytes, study.groups.len()), (opened.facts.total_bytes(), before.groups.len()));
    let dir = tempfile::tempdir().unwrap();
    for text in ["ratio = 0.2", "ratio = 0.3\nscope = 'layer'\nround_to = 4", "ratios = { 'group 1' = 0.5 }"]
    {
        let table: toml::Table = toml::from_str(text).unwrap();
        let settings = tinsmith::passes::settings("prune", &table).unwrap();
        let question = Question { settings, curves: vec![], device: None };
        let foretold = session.ask(&question, &Silent).unwrap();
        let pass = by_name("prune", &table).unwrap();
        let (pruned, report) = pass.run(&opened.graph, &mut Ctx::new(&Silent)).unwrap();
        let kept: Vec<usize> = report.groups.iter().map(|g| g.kept).collect();
        assert_eq!(foretold.kept, kept, "{text}");
        assert_eq!(foretold.parameters as f64, report.facts["parameters_after"], "{text}");
        assert_eq!(foretold.macs as f64, report.facts["macs_after"], "{text}");
        let path = dir.path().join("pruned.onnx");
        formats::save(&pruned, &path).unwrap();
        let written = std::fs::metadata(&path).unwrap().len() as f64;
        let off = (foretold.file_bytes as f64 / written - 1.0).abs();
        println!("{text:?}: foretold {} bytes, written {written}", foretold.file_bytes);
        assert!(off < 0.02, "{text}: foretold {}, written {written}", foretold.file_bytes);
        assert!(foretold.exact && foretold.parameters < study.parameters);
    }
    // A wrong question is an error, and the child goes on answering.
    let wrong = Question { settings: toml::from_str("ratio = 0.99").unwrap(), curves: vec![], device: None };
    assert_eq!(session.ask(&wrong, &Silent).unwrap_err().code(), "PRUNE-RATIO");
    let nothing = Question { settings: Default::default(), curves: vec![], device: None };
    assert_eq!(session.ask(&nothing, &Silent).unwrap().parameters, study.parameters);
}

#[test]
fn reading_can_be_stopped_and_a_bad_file_is_an_error() {
    tinsmith::child::set_program(env!("CARGO_BIN_EXE_tinsmith"));
    let stopped = Switch(std::sync::atomic::AtomicBool::new(true));
    let e = Session::open(Path::new(SAMPLE), Criterion::L2, &stopped).err().unwrap();
    assert_eq!(e.kind(), tinsmith::error::Kind::Stopped);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.onnx");
    std::fs::write(&path, b"no model").unwrap();
    let e = Session::open(&path, Criterion::L2, &Silent).err().unwrap();
    assert_eq!(e.kind(), tinsmith::error::Kind::Invalid, "{e}");
}

/// A decoder-like graph of so many blocks: each four products with their biases and norms.
fn blocks(count: usize) -> tinsmith::graph::Graph {
    use tinsmith::graph::{Edit, Type, ValueId};
    use tinsmith::ops::{Attributes, Dim};
    use tinsmith::tensor::{DType, Tensor};
    let mut edit = Edit::new("large", &[("", 17)]);
    let shape = vec![Dim::symbol("n"), Dim::from(16i64)];
    let mut at = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: Some(shape) });
    let weight = |edit: &mut Edit, name: String, shape: &[usize]| -> ValueId {
        let n: usize = shape.iter().product();
        let salt = name.len();
        let data: Vec<f32> = (0..n).map(|i| ((i * 7919 + salt) % 97) as f32 / 97.0 - 0.5).collect();
        edit.add_initializer(&name, Tensor::from_vec(shape.to_vec(), data).unwrap())
    };
    for b in 0..count {
        let name = |part: &str| format!("layers.{b}.{part}");
        let mut h = at;
        for (part, from, to) in [("up", 16, 32), ("mid", 32, 32), ("down", 32, 16)] {
            let w = weight(&mut edit, name(&format!("{part}.weight")), &[from, to]);
            let bias = weight(&mut edit, name(&format!("{part}.bias")), &[to]);
            h = edit.add_op("MatMul", &[h, w], Attributes::new(), &name(&format!("{part}.MatMul")));
            h = edit.add_op("Add", &[h, bias], Attributes::new(), &name(&format!("{part}.Add")));
            if part != "down" {
                h = edit.add_op("Relu", &[h], Attributes::new(), &name(&format!("{part}.Relu")));
            }
        }
        at = edit.add_op("Add", &[at, h], Attributes::new(), &name("add"));
    }
    edit.add_output(at);
    edit.commit().unwrap()
}

#[test]
fn ten_thousand_tensors_are_looked_at_and_foretold() {
    let graph = blocks(1667);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.onnx");
    formats::save(&graph, &path).unwrap();
    assert!(graph.initializers().count() >= 10_000);
    let begin = std::time::Instant::now();
    let (mut session, study) = open(&path);
    let opened = begin.elapsed();
    let ids: Vec<usize> = study.groups.iter().filter(|g| g.never.is_none()).map(|g| g.id).collect();
    assert!(ids.len() > 3000, "{}", ids.len());
    let ratios = |n: usize| ids.iter().take(n).map(|id| (format!("group {id}"), 0.25)).collect();
    for (what, count, ratio) in [("overall", 0, 0.3), ("one group", 1, 0.3), ("a thousand groups", 1000, 0.1)]
    {
        let settings =
            tinsmith::passes::prune::Settings { ratio, ratios: ratios(count), ..Default::default() };
        let question = Question { settings, curves: vec![], device: None };
        let begin = std::time::Instant::now();
        let foretold = session.ask(&question, &Silent).unwrap();
        println!("{what}: foretold in {:?}", begin.elapsed());
        assert!(foretold.parameters < study.parameters);
    }
    println!(
        "{} groups of {} tensors opened in {opened:?}",
        study.groups.len(),
        graph.initializers().count()
    );
}
