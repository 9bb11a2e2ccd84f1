//! Made-up models, jobs and measurements, and a workbench that is driven by key names.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use std::collections::BTreeMap;
use std::sync::Arc;
use tinsmith::analysis::summary::{EncodingTotal, GroupInfo, KvCache};
use tinsmith::analysis::{Layer, Summary, TensorInfo, Total, ValueInfo};
use tinsmith::compare::compare;
use tinsmith::evaluate::measurement::{Conditions, Interval, Latency, Measurement, Quality};
use tinsmith::formats::About;
use tinsmith::formats::about::Tokenizer;
use tinsmith::graph::coupling::Kind;
use tinsmith::hardware::Device;
use tinsmith::jobs::state::{Artifact, LogLine};
use tinsmith::jobs::{JobState, Phase, Status};
use tinsmith::monitor::Level;
use tinsmith::plan::recommend::Refused;
use tinsmith::plan::{Confidence, Goal, Proposal, Recipe, Recommendation, Step};
use tinsmith::tensor::{Distribution, Tensor};
use tinsmith::tui::action::KeyMap;
use tinsmith::tui::app::{App, Data, Effect, Job, Liveness, Msg, Usage};
use tinsmith::tui::key::Key;
use tinsmith::tui::model::Opened;
use tinsmith::tui::plan::Ranked;
use tinsmith::tui::theme::{Depth, Look, ThemeName};
use tinsmith::tui::update::update;
use tinsmith::tui::view;

pub const PLAIN: Look = Look { theme: ThemeName::Auto, depth: Depth::Ansi16, ascii: false, ssh: false };
pub const BARE: Look = Look { theme: ThemeName::Mono, depth: Depth::None, ascii: true, ssh: true };

/// A workbench without data.
pub fn blank(look: Look) -> App {
    let mut app = App::new(look, KeyMap::new(&BTreeMap::new()).unwrap());
    app.machine = "bench-01".into();
    app.wall_ms = 1_800_000_000_000;
    app
}

/// Types keys by their names, separated by spaces.
pub fn keys(app: &mut App, names: &str) -> Vec<Effect> {
    let mut out = Vec::new();
    for name in names.split_whitespace() {
        let key = Key::parse(name).unwrap();
        let modifiers = if key.ctrl { KeyModifiers::CONTROL } else { KeyModifiers::NONE };
        out.extend(update(app, Msg::Key(KeyEvent::new(key.code, modifiers))));
    }
    out
}

/// Types text letter by letter.
pub fn text(app: &mut App, value: &str) -> Vec<Effect> {
    value
        .chars()
        .flat_map(|c| update(app, Msg::Key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE))))
        .collect()
}

pub fn data(app: &mut App, data: Data) -> Vec<Effect> {
    update(app, Msg::Data(data))
}

/// Holds a screen against its snapshot.
pub fn check(name: &str, text: String) {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_snapshot_path(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tui/snapshots"));
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(format!("tui-{name}"), text));
}

/// The screen as text, rows without trailing spaces.
pub fn screen(app: &App, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view::draw(app, frame.buffer_mut())).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let mut out = String::new();
    for y in 0..height {
        let mut row = String::new();
        let mut skip = 0;
        for x in 0..width {
            if skip > 0 {
                skip -= 1;
                continue;
            }
            let symbol = buffer[(x, y)].symbol();
            skip = unicode_width::UnicodeWidthStr::width(symbol).saturating_sub(1);
            row.push_str(symbol);
        }
        out.push_str(row.trim_end());
        out.push('\n');
    }
    out
}

pub fn layer(
    index: usize,
    name: &str,
    op: &str,
    shape: &[&str],
    parameters: u64,
    macs: Option<u64>,
) -> Layer {
    Layer {
        index,
        name: name.into(),
        op: op.into(),
        role: match op {
            "Conv" => "conv",
            "Gemm" | "MatMul" => "linear",
            "Relu" | "Softmax" => "activation",
            _ => "other",
        }
        .into(),
        dtype: "f32".into(),
        output_shape: Some(shape.iter().map(|s| s.to_string()).collect()),
        parameters,
        weight_bytes: parameters * 4,
        macs,
        traffic_bytes: Some(parameters * 4 + 8192),
        activation_bytes: Some(4096),
        group: (op == "Conv").then_some(index % 3),
        weights: if parameters > 0 {
            vec![(format!("{name}.weight"), "f32".into(), vec![16, 8, 3, 3])]
        } else {
            vec![]
        },
    }
}

/// A small residual net with one operator that nobody knows.
pub fn summary() -> Summary {
    let mut layers = vec![layer(0, "/stem/Conv", "Conv", &["batch", "16", "8", "8"], 160, Some(9216))];
    for block in [1usize, 2, 10] {
        for (i, op) in ["Conv", "Relu", "Conv", "Add"].into_iter().enumerate() {
            let (parameters, macs) = if op == "Conv" { (2320, Some(147_456)) } else { (0, Some(0)) };
            let name = format!("/layer.{block}/{}/{op}", ["conv1", "relu", "conv2", "add"][i]);
            layers.push(layer(layers.len(), &name, op, &["batch", "16", "8", "8"], parameters, macs));
        }
    }
    layers.push(layer(
        layers.len(),
        "/head/pool/GlobalAveragePool",
        "GlobalAveragePool",
        &["batch", "16", "1", "1"],
        0,
        Some(0),
    ));
    layers.push(layer(layers.len(), "/head/fc/Gemm", "Gemm", &["batch", "10"], 170, Some(160)));
    layers.push(layer(layers.len(), "/head/calibrate/acme:Temper", "acme:Temper", &["batch", "10"], 0, None));
    let value = |name: &str, shape: &[&str]| ValueInfo {
        name: name.into(),
        dtype: "f32".into(),
        shape: Some(shape.iter().map(|s| s.to_string()).collect()),
    };
    let group = |id: usize, pinned: Option<&str>| GroupInfo {
        id,
        kind: Kind::Channels,
        units: 16,
        prunable: pinned.is_none(),
        pinned_by: pinned.map(str::to_string),
        members: vec![("/layer.1/conv1/Conv.weight".into(), 0), ("/layer.1/conv2/Conv.weight".into(), 1)],
        parameters_per_unit: 289,
        bytes_per_unit: 4 * 289,
        macs_per_unit: Some(18_432),
        ms_per_unit: None,
    };
    let tensors = tensors(&layers);
    Summary {
        encodings: vec![EncodingTotal {
            encoding: "f32".into(),
            tensors: tensors.len(),
            parameters: tensors.iter().map(|t| t.parameters).sum(),
            bytes: tensors.iter().map(|t| t.bytes).sum(),
        }],
        tensors,
        by_role: vec![
            Total { kind: "conv".into(), layers: 7, parameters: 14_080, macs: 893_952, ..Total::default() },
            Total { kind: "linear".into(), layers: 1, parameters: 170, macs: 160, ..Total::default() },
        ],
        schema_version: 1,
        name: "digits.onnx".into(),
        format: "onnx".into(),
        producer: "tinsmith 0.1.0".into(),
        opsets: vec![(String::new(), 18), ("acme".into(), 1)],
        inputs: vec![value("image", &["batch", "1", "8", "8"])],
        outputs: vec![value("logits", &["batch", "10"])],
        bindings: vec![("batch".into(), 1)],
        parameters: layers.iter().map(|l| l.parameters).sum(),
        macs: layers.iter().filter_map(|l| l.macs).sum(),
        macs_unknown: 1,
        timing: None,
        weight_bytes: layers.iter().map(|l| l.weight_bytes).sum(),
        file_bytes: 62_310,
        peak_activation_bytes: 12_288,
        groups: vec![group(0, None), group(1, None), group(2, Some("graph output \"logits\""))],
        layers,
        unknown_ops: vec![("acme:Temper".into(), 1)],
        metadata: vec![("license".into(), "MIT".into())],
        warnings: vec!["node \"/head/calibrate/acme:Temper\": operator acme:Temper is unknown".into()],
        ..Summary::default()
    }
}

/// The weights of layers.
fn tensors(layers: &[Layer]) -> Vec<TensorInfo> {
    let of = |l: &Layer| -> Vec<TensorInfo> {
        let tensor = |(name, encoding, shape): &(String, String, Vec<usize>)| TensorInfo {
            name: name.clone(),
            encoding: encoding.clone(),
            shape: shape.clone(),
            parameters: l.parameters,
            bytes: l.weight_bytes,
            role: l.role.clone(),
            distribution: None,
        };
        l.weights.iter().map(tensor).collect()
    };
    layers.iter().flat_map(of).collect()
}

/// What one pass over a weight of 2,320 elements with outliers tells.
pub fn distribution() -> Distribution {
    let mut v: Vec<f32> = (0..2320)
        .map(|i| {
            let u = |k: usize| ((i * k) % 997) as f32 / 997.0 - 0.5;
            0.1 * (u(7919) + u(104_729) + u(31))
        })
        .collect();
    v[145 * 3 + 7] = 1.5;
    v[9] = 0.0;
    let tensor = Tensor::from_vec(vec![16, 145], v).unwrap();
    Distribution::of(&tensor, Some(0), &|| Ok(())).unwrap()
}

/// A small language model in a GGUF file, as far as the Model tab shows it.
pub fn language() -> Summary {
    let mut layers = Vec::new();
    for block in 0..3 {
        for (part, role, parameters) in [
            ("attention.q", "attention", 331_776),
            ("mlp.up", "mlp", 884_736),
            ("attention_norm", "norm", 576),
        ] {
            let name = format!("layers.{block}.{part}");
            let mut l = layer(
                layers.len(),
                &name,
                "MatMul",
                &["1", "128", "576"],
                parameters,
                Some(parameters * 128),
            );
            l.role = role.into();
            l.weight_bytes = parameters * 5 / 8;
            l.weights = vec![(
                format!("blk.{block}.{part}.weight"),
                "Q4_1".into(),
                vec![576, parameters as usize / 576],
            )];
            layers.push(l);
        }
    }
    let tensors = tensors(&layers);
    let parameters = layers.iter().map(|l| l.parameters).sum();
    let total = |kind: &str| Total {
        kind: kind.into(),
        layers: 3,
        parameters: layers.iter().filter(|l| l.role == kind).map(|l| l.parameters).sum(),
        macs: layers.iter().filter(|l| l.role == kind).filter_map(|l| l.macs).sum(),
        ..Total::default()
    };
    Summary {
        name: "small-q4_1.gguf".into(),
        format: "gguf".into(),
        producer: "tinsmith 0.1.0".into(),
        parameters,
        macs: layers.iter().filter_map(|l| l.macs).sum(),
        weight_bytes: layers.iter().map(|l| l.weight_bytes).sum(),
        file_bytes: 98 << 20,
        by_role: vec![total("mlp"), total("attention"), total("norm")],
        encodings: vec![
            EncodingTotal { encoding: "Q4_1".into(), tensors: 6, parameters: 3_649_536, bytes: 2_280_960 },
            EncodingTotal { encoding: "F32".into(), tensors: 3, parameters: 1_728, bytes: 6_912 },
        ],
        kv_cache: Some(KvCache {
            bytes_per_token: 23_040,
            context: Some(8192),
            bytes_at_context: Some(23_040 * 8192),
            dtype: "f16".into(),
            source: "configuration".into(),
        }),
        about: About {
            title: Some("Small 3 block".into()),
            architecture: Some("llama".into()),
            licence: Some("apache-2.0".into()),
            quantisation: Some("Q4_1".into()),
            context_length: Some(8192),
            vocabulary: Some(49_152),
            blocks: Some(3),
            width: Some(576),
            heads: Some(9),
            kv_heads: Some(3),
            head_size: Some(64),
            causal: Some(true),
            tokenizer: Some(Tokenizer {
                kind: "gpt2".into(),
                pre: Some("smollm".into()),
                tokens: 49_152,
                special: vec![("bos".into(), "<|im_start|>".into())],
                chat_template: true,
            }),
            ..About::default()
        },
        metadata: vec![("general.architecture".into(), "llama".into())],
        tensors,
        layers,
        groups: vec![],
        warnings: vec![],
        unknown_ops: vec![],
        macs_unknown: 0,
        timing: None,
        ..summary()
    }
}

/// A summary of `n` layers in nested groups.
pub fn large(n: usize) -> Summary {
    let mut s = summary();
    s.layers = (0..n)
        .map(|i| {
            let name = format!("/model/layers.{}/block.{}/op{}", i / 100, i / 10 % 10, i % 10);
            layer(i, &name, ["MatMul", "Add", "Softmax"][i % 3], &["1", "128", "384"], 1000, Some(128_000))
        })
        .collect();
    s.tensors = tensors(&s.layers);
    s
}

pub fn measurement(variant: &str, latency: Option<f64>, bytes: u64, accuracy: Option<f64>) -> Measurement {
    let correct: Vec<bool> =
        accuracy.map_or(vec![], |a| (0..360).map(|i| (i * 7919 % 360) as f64 / 360.0 < a).collect());
    Measurement {
        schema_version: 1,
        variant: variant.into(),
        model_sha256: format!("{:064x}", bytes),
        path: format!("/models/{variant}.onnx"),
        parameters: bytes / 4,
        macs: 900_000,
        weight_bytes: bytes,
        file_bytes: bytes,
        peak_activation_bytes: 12_288,
        latency_ms: latency.map(|p50| Latency {
            p50,
            p90: p50 * 1.1,
            p99: None,
            mean: p50 * 1.02,
            ci95: Interval { low: p50 * 0.98, high: p50 * 1.03 },
            n: 40,
            samples: (0..40).map(|i| p50 * (1.0 + (i % 5) as f64 * 0.004)).collect(),
        }),
        throughput_per_s: latency.map(|l| 1000.0 / l),
        peak_rss_bytes: Some(40 << 20),
        energy_j: None,
        quality: accuracy.map(|value| Quality {
            metric: "accuracy".into(),
            value: correct.iter().filter(|c| **c).count() as f64 / 360.0,
            ci95: Interval { low: value - 0.02, high: value + 0.015 },
            n: 360,
            higher_is_better: true,
            correct,
            data_hash: "d1".into(),
        }),
        output_error: Some(0.012),
        conditions: Conditions {
            host: "bench-01".into(),
            cpu: "Example CPU".into(),
            isa: "avx512_vnni".into(),
            runtime: "onnxruntime 1.23.2".into(),
            threads: 1,
            affinity: vec![0],
            session: vec![],
            inputs: vec!["image:f32[1,1,8,8]".into()],
            noise: vec![],
        },
        failures: vec![],
    }
}

pub fn variants() -> Vec<Measurement> {
    vec![
        measurement("original", Some(0.412), 62_310, Some(0.972)),
        measurement("optimised", Some(0.298), 60_120, Some(0.972)),
        measurement("static-int8", Some(0.171), 18_430, Some(0.961)),
        measurement("prune-l2 30%", Some(0.244), 38_900, Some(0.953)),
        measurement("prune-l1 50%", Some(0.190), 27_100, Some(0.842)),
        measurement("prune+int8", Some(0.132), 12_040, Some(0.944)),
    ]
}

pub fn proposal(
    rank: usize,
    name: &str,
    bytes: u64,
    latency: f64,
    drop: (f64, f64),
    c: Confidence,
) -> Proposal {
    let mut recipe = Recipe::new(name, "/models/digits.onnx");
    recipe.steps = name.split('+').map(|p| Step::new(p).with("ratio", 0.3)).collect();
    Proposal {
        rank,
        name: name.into(),
        recipe,
        predicted_file_bytes: bytes,
        predicted_latency_ms: Some((latency, latency * 0.8, latency * 1.3)),
        predicted_speedup: Some(0.412 / latency),
        expected_quality_drop: drop,
        cost_seconds: 12.0 * rank as f64,
        confidence: c,
        meets_goal: Some(rank < 3),
        reasons: vec![
            "94 % of the MACs are in Conv, which this CPU computes in int8 with VNNI".into(),
            "weights shrink to a quarter".into(),
        ],
        risks: vec!["per-tensor activations can lose accuracy in the first layer".into()],
    }
}

pub fn proposals() -> Vec<Proposal> {
    vec![
        proposal(1, "static-int8", 18_000, 0.17, (0.0, 0.012), Confidence::Medium),
        proposal(2, "optimize", 60_000, 0.30, (0.0, 0.0), Confidence::High),
        proposal(3, "prune+static-int8", 12_000, 0.12, (0.01, 0.05), Confidence::Low),
    ]
}

pub fn ranked() -> Ranked {
    Ranked {
        device: Device {
            schema_version: 1,
            name: "host".into(),
            description: "Example CPU, this machine".into(),
            isa: "avx512_vnni".into(),
            cores: 2,
            gflops_per_core: 61.5,
            bandwidth_gbs: 18.25,
            ram_mb: 8_000,
            watts: None,
            uncertainty: 0.3,
            source: "measured on this machine".into(),
        },
        recommendation: Recommendation {
            schema_version: 1,
            device: "host".into(),
            original_latency_ms: Some((0.41, 0.2, 0.82)),
            proposals: proposals(),
            refused: vec![Refused {
                name: "dynamic-int8".into(),
                reason: "the time is in convolutions, whose dynamic form (ConvInteger) is slow".into(),
            }],
            notes: vec!["peak memory is measured, not predicted: memory_mb is judged after a run".into()],
        },
    }
}

/// A curve that falls with a spike.
pub fn curve(points: u64, start: f64) -> Vec<(u64, f64)> {
    (0..points)
        .map(|i| {
            let x = i as f64 / points as f64;
            let spike = if i == points * 2 / 3 { start * 0.6 } else { 0.0 };
            (i * 10, start * (0.15 + 0.85 * (-4.0 * x).exp()) + spike)
        })
        .collect()
}

pub fn job(id: &str, name: &str, status: Status) -> Job {
    let minute = id.as_bytes()[12] as u64;
    let log = (0..12)
        .map(|i| LogLine {
            seq: i,
            wall_ms: 1_800_000_000_000 + i * 1500,
            level: if i == 7 { Level::Warning } else { Level::Info },
            message: format!("{name}: step {i} of the work, everything as expected so far"),
        })
        .collect();
    let state = JobState {
        schema_version: 1,
        name: name.into(),
        what: "run".into(),
        model: "/models/digits.onnx".into(),
        steps: vec!["prune ratio=0.3 criterion=l2".into(), "quantize scheme=static-int8".into()],
        status,
        phase: Phase {
            name: "prune: recover".into(),
            step: 0,
            total: Some(2000),
            done: 820,
            since_ms: 1_000,
        },
        started_mono_ms: 1_000,
        updated_mono_ms: 301_000,
        created_ms: 1_800_000_000_000 + minute * 1000,
        updated_ms: 1_800_000_300_000,
        pid: Some(4242),
        log,
        warnings: 1,
        next_seq: 40,
        ..JobState::default()
    };
    Job {
        id: id.into(),
        dir: format!("/home/ada/.local/share/tinsmith/jobs/{id}").into(),
        model: "/models/digits.onnx".into(),
        state: Arc::new(state),
        liveness: Liveness::Fine,
        usage: None,
        against: vec![],
    }
}

pub fn jobs() -> Vec<Job> {
    let mut running = job("20261123-143015-a1b2", "prune-distil-int8", Status::Running);
    let state = Arc::make_mut(&mut running.state);
    state.curves.insert("loss".into(), curve(83, 2.4));
    state.curves.insert("accuracy".into(), curve(83, 0.9).into_iter().map(|(x, y)| (x, 1.0 - y)).collect());
    state.not_finite.insert("loss".into(), 2);
    running.usage = Some(Usage { rss: 3 << 30, memory: 24 << 30, cpu: 187.0 });
    let mut stalled = job("20261123-142011-0c0d", "search-budget", Status::Running);
    stalled.liveness = Liveness::Stalled(42);
    let mut done = job("20261123-141500-beef", "static-int8", Status::Finished);
    let state = Arc::make_mut(&mut done.state);
    state.measurements = variants();
    state.artifacts = vec![Artifact {
        name: "static-int8".into(),
        path: "artifacts/static-int8.onnx".into(),
        sha256: "ab".repeat(32),
        bytes: 18_430,
    }];
    let mut failed = job("20261123-140700-dead", "distil-tiny", Status::Failed);
    Arc::make_mut(&mut failed.state).reason = Some("layer 7: NaN in gradient".into());
    let mut gone = job("20261123-140600-0666", "prune-half", Status::Running);
    gone.liveness = Liveness::Gone;
    Arc::make_mut(&mut gone.state).reason = Some("killed by SIGKILL, cause unknown".into());
    let queued = job("20261123-143100-aaaa", "int4-weights", Status::Queued);
    vec![running, stalled, done, failed, gone, queued]
}

/// A workbench with a model, proposals, jobs and a comparison.
pub fn full(look: Look) -> App {
    let mut app = blank(look);
    let opened = Arc::new(Opened::new(summary()));
    app.model.generation = 1;
    let path = std::path::PathBuf::from("/models/digits.onnx");
    data(&mut app, Data::Analysed { generation: 1, path, result: Ok(opened) });
    data(&mut app, Data::Devices(vec!["host".into(), "raspberry-pi-5".into(), "jetson-nano".into()]));
    data(&mut app, Data::Jobs(jobs()));
    let generation = app.plan.generation;
    data(&mut app, Data::Proposed { generation, result: Ok(Box::new(ranked())) });
    let table = compare(&variants(), Some("original"), &Goal::default(), 0.01).unwrap();
    let generation = app.compare.generation;
    data(&mut app, Data::Compared { generation, result: Ok(table) });
    app
}
