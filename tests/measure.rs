//! Measuring real and small models in children: sane figures, failures that stay in their row.

use crate::cache;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tinsmith::data::DataSet;
use tinsmith::error::Kind;
use tinsmith::evaluate::measure::{MeasureOptions, VariantSpec, accuracy_of, compare_variants};
use tinsmith::evaluate::stats;
use tinsmith::monitor::{Silent, Switch};

fn options() -> MeasureOptions {
    MeasureOptions { seconds: 0.4, rounds: 5, ..MeasureOptions::new(cache::library()) }
}

fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
    out
}

fn value(name: &str, dims: &[u8]) -> Vec<u8> {
    let shape: Vec<u8> = dims.iter().flat_map(|d| field(1, &[8, *d])).collect();
    let tensor = [vec![8, 1], field(2, &shape)].concat();
    [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat()
}

fn weight(name: &str, dims: &[u8], values: &[f32]) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|d| [8, *d]).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    [dims, vec![16, 1], field(8, name.as_bytes()), field(9, &bytes)].concat()
}

/// One node with inputs `x` and the names of the weights, output `y`; opset 13.
fn model(path: &Path, op: &str, input: &[u8], output: &[u8], weights: &[(&str, Vec<u8>)]) -> PathBuf {
    let inputs = std::iter::once("x").chain(weights.iter().map(|w| w.0));
    let mut node: Vec<u8> = inputs.flat_map(|n| field(1, n.as_bytes())).collect();
    node.extend([field(2, b"y"), field(4, op.as_bytes())].concat());
    let mut graph = [field(1, &node), field(2, b"g")].concat();
    weights.iter().for_each(|(_, w)| graph.extend(field(5, w)));
    graph.extend([field(11, &value("x", input)), field(12, &value("y", output))].concat());
    fs::write(path, [vec![8, 8], field(7, &graph), field(8, &[10, 0, 16, 13])].concat()).unwrap();
    path.to_path_buf()
}

#[test]
fn the_same_file_measured_twice_gives_the_same_figures() {
    let path = cache::fetched("magika").file("model.onnx").unwrap();
    let variants = [VariantSpec::new("a", &path), VariantSpec::new("b", &path).exact()];
    let rows = compare_variants(&variants, &options(), &Silent).unwrap();
    for row in &rows {
        assert!(row.failures.is_empty(), "{:?}", row.failures);
        let latency = row.latency_ms.as_ref().unwrap();
        assert!(latency.n >= 15 && latency.samples.len() == latency.n);
        assert!(latency.ci95.low <= latency.p50 && latency.p50 <= latency.ci95.high);
        assert!(latency.p50 <= latency.p90);
        assert_eq!(row.output_error, Some(0.0));
        assert!(row.peak_rss_bytes.unwrap() > 10 << 20);
        assert_eq!(row.file_bytes, fs::metadata(&path).unwrap().len());
        assert!(row.throughput_per_s.unwrap() > 1.0);
        assert_eq!(row.conditions.inputs, ["bytes:i32[1,2048]"]);
        assert!(row.conditions.runtime.starts_with("onnxruntime 1."));
        assert_eq!(row.conditions.affinity.len(), 1);
    }
    let of = |i: usize| rows[i].latency_ms.as_ref().unwrap();
    let ratio = stats::median(&of(1).samples) / stats::median(&of(0).samples);
    println!(
        "A/A ratio {ratio:.4}; {:.3} ms, n = {}, noise {:?}",
        of(0).p50,
        of(0).n,
        rows[0].conditions.noise
    );
    // Other tests may run beside this one; interleaving keeps the ratio near 1 all the same.
    assert!((0.7..1.4).contains(&ratio), "{ratio}");
}

#[test]
fn a_variant_that_fails_keeps_its_reasons_and_the_others_stand() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let shape = [1, 64];
    let variants = [
        VariantSpec::new("original", model(&at("a.onnx"), "Identity", &shape, &shape, &[])),
        VariantSpec::new("same", model(&at("b.onnx"), "Identity", &shape, &shape, &[])).exact(),
        VariantSpec::new("wrong", model(&at("c.onnx"), "Neg", &shape, &shape, &[])).exact(),
        VariantSpec::new("lossy", model(&at("d.onnx"), "Neg", &shape, &shape, &[])),
        VariantSpec::new("nan", model(&at("e.onnx"), "Log", &shape, &shape, &[])),
        VariantSpec::new("unknown", model(&at("f.onnx"), "NoSuchOperator", &shape, &shape, &[])),
        VariantSpec::new("missing", at("missing.onnx")),
    ];
    let rows = compare_variants(&variants, &options(), &Silent).unwrap();
    let row = |name: &str| rows.iter().find(|r| r.variant == name).unwrap();
    assert_eq!(rows.len(), variants.len());
    for name in ["original", "same", "lossy"] {
        assert!(row(name).failures.is_empty(), "{name}: {:?}", row(name).failures);
        let latency = row(name).latency_ms.as_ref().unwrap();
        assert!(latency.p50 > 0.0 && latency.p50 < 1.0, "{name}: {}", latency.p50);
    }
    assert!((row("lossy").output_error.unwrap() - 2.0).abs() < 1e-6);
    for (name, why) in [
        ("wrong", "outputs differ from the reference"),
        ("nan", "not a finite number"),
        ("unknown", "NoSuchOperator"),
        ("missing", "missing.onnx"),
    ] {
        assert!(row(name).latency_ms.is_none() && row(name).throughput_per_s.is_none(), "{name} has a speed");
        assert!(row(name).failures.iter().any(|f| f.contains(why)), "{name}: {:?}", row(name).failures);
        println!("{name}: {}", row(name).failures[0]);
    }
}

/// Scores 2 m.x - |m|^2 for the mean m of each class: nearest mean, in one Gemm.
fn nearest_mean(path: &Path) -> PathBuf {
    let train = DataSet::open("digits:train").unwrap();
    let values = train.input().to_f32s().unwrap();
    let (mut sums, mut counts) = (vec![0f32; 640], [0f32; 10]);
    for (row, &label) in values.chunks(64).zip(train.labels()) {
        counts[label] += 1.0;
        row.iter().enumerate().for_each(|(i, v)| sums[i * 10 + label] += v);
    }
    let mean = |i: usize, class: usize| sums[i * 10 + class] / counts[class];
    let weights: Vec<f32> = (0..640).map(|at| 2.0 * mean(at / 10, at % 10)).collect();
    let bias: Vec<f32> = (0..10).map(|c| -(0..64).map(|i| mean(i, c).powi(2)).sum::<f32>()).collect();
    let weights = [("w", weight("w", &[64, 10], &weights)), ("b", weight("b", &[10], &bias))];
    model(path, "Gemm", &[8, 64], &[8, 10], &weights)
}

#[test]
fn accuracy_on_digits_is_that_of_a_nearest_mean_classifier() {
    let dir = tempfile::tempdir().unwrap();
    let path = nearest_mean(&dir.path().join("m.onnx"));
    let options = MeasureOptions { eval: Some("digits:test".into()), ..options() };
    let variants = [VariantSpec::new("original", &path), VariantSpec::new("again", &path).exact()];
    let rows = compare_variants(&variants, &options, &Silent).unwrap();
    let quality = rows[0].quality.as_ref().unwrap_or_else(|| panic!("{:?}", rows[0].failures));
    println!(
        "nearest mean: {:.4} [{:.4}, {:.4}], n = {}",
        quality.value, quality.ci95.low, quality.ci95.high, quality.n
    );
    assert!((0.85..0.95).contains(&quality.value), "{}", quality.value);
    let data = DataSet::open("digits:test").unwrap();
    assert_eq!((quality.n, quality.data_hash.as_str()), (data.len(), data.hash()));
    assert_eq!(rows[1].quality.as_ref().unwrap().correct, quality.correct);
    assert_eq!(rows[1].output_error, Some(0.0));
    let alone = accuracy_of(&path, "digits:test", &options, &Silent).unwrap();
    assert_eq!(alone.correct, quality.correct);
    let e =
        compare_variants(&variants, &MeasureOptions { eval: Some("digits:nope".into()), ..options }, &Silent);
    assert_eq!(e.unwrap_err().kind(), Kind::Usage);
}

#[test]
fn shapes_that_vary_must_be_stated_and_must_fit() {
    let path = cache::fetched("ppocr").file("cls_infer.onnx").unwrap();
    let run = |shapes: BTreeMap<String, Vec<usize>>| {
        let options = MeasureOptions { shapes, seconds: 0.05, rounds: 1, ..options() };
        compare_variants(&[VariantSpec::new("cls", &path)], &options, &Silent).unwrap().remove(0)
    };
    let row = run(BTreeMap::new());
    assert!(row.failures[0].contains("state the shape"), "{:?}", row.failures);
    let row = run(BTreeMap::from([("x".into(), vec![1, 4, 48, 192])]));
    assert!(!row.failures.is_empty());
    let row = run(BTreeMap::from([("x".into(), vec![2, 3, 48, 192])]));
    assert!(row.failures.is_empty(), "{:?}", row.failures);
    assert_eq!(row.conditions.inputs, ["x:f32[2,3,48,192]"]);
}

#[test]
fn too_little_memory_is_a_failure_of_the_variant() {
    let path = cache::fetched("ppocr").file("rec_infer.onnx").unwrap();
    let options = MeasureOptions {
        memory: Some(120 << 20),
        shapes: BTreeMap::from([("x".into(), vec![64, 3, 48, 640])]),
        seconds: 0.05,
        rounds: 1,
        ..options()
    };
    let row = compare_variants(&[VariantSpec::new("rec", &path)], &options, &Silent).unwrap().remove(0);
    println!("{:?}", row.failures);
    assert!(row.latency_ms.is_none() && !row.failures.is_empty());
}

#[test]
fn a_stop_ends_a_measurement() {
    let path = cache::fetched("magika").file("model.onnx").unwrap();
    let switch = Switch(AtomicBool::new(false));
    let start = std::time::Instant::now();
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            switch.0.store(true, Ordering::Relaxed);
        });
        let options = MeasureOptions { seconds: 60.0, ..options() };
        compare_variants(&[VariantSpec::new("a", &path)], &options, &switch)
    });
    assert_eq!(result.unwrap_err().kind(), Kind::Stopped);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_variant_is_measured_with_session_settings_of_its_own() {
    use tinsmith::runtime::SessionSettings;
    let path = cache::fetched("magika").file("model.onnx").unwrap();
    let settings = SessionSettings { threads: 2, spinning: false, ..SessionSettings::default() };
    let own = VariantSpec { session: Some(settings), ..VariantSpec::new("b", &path).exact() };
    let rows = compare_variants(&[VariantSpec::new("a", &path), own], &options(), &Silent).unwrap();
    assert_eq!((rows[0].conditions.threads, rows[1].conditions.threads), (1, 2));
    assert_eq!(rows[0].conditions.session, Vec::<String>::new());
    assert_eq!(rows[1].conditions.session, ["no spinning"]);
    assert!(rows[1].failures.is_empty() && rows[1].latency_ms.is_some(), "{:?}", rows[1].failures);
}
