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
