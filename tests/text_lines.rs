//! A text recogniser on integers reads what it reads in float: lines that were rendered by
//! `benches/quantisation/lines.py`, calibrated on other lines.

use crate::cache;
use std::time::Instant;
use tinsmith::evaluate::samples::{Batch, Samples};
use tinsmith::formats;
use tinsmith::graph::Graph;
use tinsmith::monitor::Silent;
use tinsmith::passes::{self, Ctx};
use tinsmith::runtime::{Session, SessionOptions};
use tinsmith::tensor::Tensor;

const HEIGHT: usize = 48;

/// Each line as `[1, 3, 48, 320]`, from -1 to 1.
fn lines() -> Vec<Tensor> {
    let sheet = image::load_from_memory(include_bytes!("fixtures/text_lines.png")).unwrap().to_luma8();
    let width = sheet.width() as usize;
    let pixels: Vec<f32> = sheet.iter().map(|p| f32::from(*p) / 127.5 - 1.0).collect();
    let line = |l: &[f32]| Tensor::from_vec(vec![1, 3, HEIGHT, width], l.repeat(3)).unwrap();
    pixels.chunks(HEIGHT * width).map(line).collect()
}

/// Classes along a line, repetitions and blanks left out.
fn read(session: &mut Session, line: &Tensor) -> Vec<usize> {
    let y = session.run(&[("x".into(), line.clone())]).unwrap().remove(0).1;
    let classes = y.shape()[2];
    let y = y.to_f32s().unwrap();
    let best = |row: &[f32]| (0..classes).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
    let mut path: Vec<usize> = y.chunks(classes).map(best).collect();
    path.dedup();
    path.retain(|c| *c != 0);
    path
}

/// Characters of the one that have to be changed, added or left out to read as the other (Levenshtein).
fn edits(a: &[usize], b: &[usize]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = before + usize::from(x != y);
            before = row[j + 1];
            row[j + 1] = changed.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

fn step(pass: &str, settings: &str, graph: &Graph, data: Option<&Samples>) -> Graph {
    let pass = passes::by_name(pass, &settings.parse().unwrap()).unwrap();
    pass.run(graph, &mut Ctx { calibration: data, ..Ctx::new(&Silent) }).unwrap().0
}

#[test]
fn edits_are_counted() {
    assert_eq!((edits(&[1, 2, 3], &[1, 3]), edits(&[], &[4]), edits(&[5, 6], &[6, 5])), (1, 1, 2));
}

#[test]
fn a_recogniser_on_integers_reads_99_of_100_characters_as_in_float() {
    let file = cache::fetched("ppocr").file("rec_infer.onnx").unwrap();
    let all = lines();
    let (judged, seen) = all.split_at(24);
    let batch =
        |line: &Tensor| Batch { inputs: vec![("x".into(), line.clone())], rows: 1, ..Batch::default() };
    let data = Samples::given(seen.iter().map(batch).collect());
    let graph = step("optimize", "", &formats::load(&file).unwrap().graph, None);
    let settings = std::fs::read_to_string("tests/fixtures/recogniser.toml").unwrap();
    let int8 = step("quantize", &settings, &graph, Some(&data));
    let on_integers = int8.nodes().iter().filter(|n| n.is("QuantizeLinear")).count();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("int8.onnx");
    formats::save(&int8, &path).unwrap();
    let options = SessionOptions { threads: 2, ..SessionOptions::default() };
    let open = |p: &std::path::Path| Session::load(&cache::runtime(), p, &options).unwrap();
    let (mut float, mut integer) = (open(&file), open(&path));
    let (mut characters, mut wrong) = (0, 0);
    let mut ratios = vec![];
    for line in judged {
        let begin = Instant::now();
        let a = read(&mut float, line);
        let middle = Instant::now();
        let b = read(&mut integer, line);
        ratios.push(middle.elapsed().as_secs_f64() / (middle - begin).as_secs_f64());
        characters += a.len();
        wrong += edits(&a, &b);
    }
    ratios.sort_by(f64::total_cmp);
    let ratio = ratios[ratios.len() / 2];
    println!("{on_integers} pairs: {wrong} of {characters} characters differ, {ratio:.2} of the time");
    assert!(characters > 300 && on_integers > 10, "{characters} {on_integers}");
    assert!(wrong * 100 <= characters, "{wrong} of {characters} characters differ");
    // Convolutions whose ranges are found at run time take three to ten times as long as float ones.
    assert!(ratio < 1.1, "{ratio} of the time in float");
}
