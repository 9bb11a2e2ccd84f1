//! Behaviour of the recommendation on described models and devices.

use super::*;
use crate::analysis::summary::{GroupInfo, Layer as SummaryLayer};
use crate::graph::coupling::Kind;

fn layer(index: usize, op: &str, macs: u64, shape: &[usize], group: Option<usize>) -> SummaryLayer {
    let parameters: u64 = shape.iter().map(|d| *d as u64).product::<u64>() * u64::from(!shape.is_empty());
    SummaryLayer {
        index,
        name: format!("n{index}"),
        op: op.into(),
        role: "other".into(),
        dtype: "f32".into(),
        output_shape: None,
        parameters,
        weight_bytes: 4 * parameters,
        macs: Some(macs),
        traffic_bytes: Some(4 * parameters + 10_000),
        activation_bytes: Some(1000),
        group,
        weights: if shape.is_empty() {
            vec![]
        } else {
            vec![(format!("w{index}"), "f32".into(), shape.to_vec())]
        },
    }
}

fn model(layers: Vec<SummaryLayer>, prunable: bool) -> Summary {
    let parameters = layers.iter().map(|l| l.parameters).sum();
    Summary {
        schema_version: 1,
        name: "m".into(),
        format: "onnx".into(),
        producer: String::new(),
        opsets: vec![],
        inputs: vec![],
        outputs: vec![],
        bindings: vec![],
        groups: vec![GroupInfo {
            id: 0,
            kind: Kind::Channels,
            units: 64,
            prunable,
            pinned_by: (!prunable).then(|| "graph output \"y\"".into()),
            members: vec![],
            parameters_per_unit: 100,
            bytes_per_unit: 400,
            macs_per_unit: None,
            ms_per_unit: None,
        }],
        parameters,
        macs: layers.iter().filter_map(|l| l.macs).sum(),
        macs_unknown: 0,
        timing: None,
        weight_bytes: 4 * parameters,
        file_bytes: 4 * parameters + 5000,
        peak_activation_bytes: 1000,
        unknown_ops: vec![],
        metadata: vec![],
        warnings: vec![],
        layers,
        ..Summary::default()
    }
}

fn convnet() -> Summary {
    let mut layers: Vec<SummaryLayer> =
        (0..6).map(|i| layer(i, "Conv", 200_000_000, &[64, 64, 3, 3], Some(0))).collect();
    layers.push(layer(6, "Gemm", 64_000, &[10, 64], None));
    model(layers, true)
}

fn encoder() -> Summary {
    let layers = (0..8).map(|i| layer(i, "MatMul", 300_000_000, &[384, 1536], None)).collect();
    model(layers, false)
}

fn device(isa: &str) -> DeviceFacts {
    DeviceFacts {
        name: "host".into(),
        isa: isa.into(),
        threads: 2,
        peak_gflops: 200.0,
        bandwidth_gbs: 20.0,
        ram_bytes: None,
    }
}

fn ask(summary: &Summary, isa: &str, goal: &Goal, data: &DataSpec) -> Recommendation {
    recommend(&Question {
        summary,
        model: "m.onnx",
        device: &device(isa),
        goal,
        data,
        measured_ms: None,
        tried: &[],
        seed: 0,
    })
}

fn data() -> DataSpec {
    DataSpec {
        calibration: Some("digits:train".into()),
        eval: Some("digits:test".into()),
        ..DataSpec::default()
    }
}

fn names(r: &Recommendation) -> Vec<&str> {
    r.proposals.iter().map(|p| p.name.as_str()).collect()
}

#[test]
fn a_convolutional_net_on_vnni_gets_static_int8_and_never_dynamic() {
    let r = ask(&convnet(), "avx512_vnni", &Goal::default(), &data());
    assert_eq!(r.proposals[0].name, "static-int8");
    assert_eq!(r.proposals.iter().map(|p| p.rank).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert!(!names(&r).iter().any(|n| n.contains("dynamic")), "{:?}", names(&r));
    let why = &r.refused.iter().find(|r| r.name == "dynamic-int8").unwrap().reason;
    assert!(why.contains("ConvInteger"), "{why}");
    let p = &r.proposals[0];
    assert!((1.5..3.1).contains(&p.predicted_speedup.unwrap()), "{p:?}");
    let (mid, low, high) = p.predicted_latency_ms.unwrap();
    assert!(low < mid && mid < high);
    assert!(p.predicted_file_bytes < 300_000 && p.predicted_file_bytes > 200_000, "{p:?}");
    assert_eq!(p.confidence, Confidence::Medium);
    let combined = r.proposals.iter().find(|p| p.name == "prune-20+static-int8").unwrap();
    let passes: Vec<_> = combined.recipe.steps.iter().map(|s| s.pass.as_str()).collect();
    assert_eq!(passes, ["prune", "optimize", "quantize"]);
    assert!(combined.predicted_speedup > p.predicted_speedup);
}

#[test]
fn without_calibration_data_static_int8_is_refused_with_the_next_step() {
    let r = ask(&convnet(), "avx512_vnni", &Goal::default(), &DataSpec::default());
    assert!(!names(&r).iter().any(|n| n.contains("int8")));
    assert!(r.refused.iter().any(|r| r.name == "static-int8" && r.reason.contains("--calibration")));
    assert!(r.proposals[0].risks.iter().any(|r| r.contains("--data")));
}

#[test]
fn an_encoder_gets_dynamic_int8_and_no_pruning_of_pinned_groups() {
    let r = ask(&encoder(), "avx512_vnni", &Goal::default(), &data());
    assert_eq!(names(&r), ["dynamic-int8", "optimize"]);
    assert!(r.refused.iter().any(|r| r.name == "prune-20" && r.reason.contains("graph output")));
}

#[test]
fn int8_on_avx2_is_modest_and_names_saturation() {
    let r = ask(&encoder(), "avx2", &Goal::default(), &data());
    let p = r.proposals.iter().find(|p| p.name == "dynamic-int8").unwrap();
    assert!(p.predicted_speedup.unwrap() < 1.3);
    assert!(p.predicted_latency_ms.unwrap().2 > r.original_latency_ms.unwrap().0);
    assert!(p.risks.iter().any(|r| r.contains("saturate")), "{:?}", p.risks);
}

#[test]
fn proposals_that_miss_the_goal_come_last() {
    let goal = Goal { max_quality_drop: Some(0.001), ..Goal::default() };
    let r = ask(&convnet(), "avx512_vnni", &goal, &data());
    assert_eq!(r.proposals[0].name, "optimize");
    assert_eq!(r.proposals[0].meets_goal, Some(true));
    assert!(r.proposals[1..].iter().all(|p| p.meets_goal == Some(false)));
}

#[test]
fn a_model_of_unknown_cost_gets_no_latency() {
    let mut summary = convnet();
    summary.macs_unknown = 7;
    let r = ask(&summary, "avx2", &Goal::default(), &data());
    assert_eq!(r.original_latency_ms, None);
    assert!(r.proposals.iter().all(|p| p.predicted_latency_ms.is_none() && p.predicted_speedup.is_none()));
    assert!(r.notes[0].contains("--bind"));
    let empty = model(vec![], false);
    assert!(ask(&empty, "avx2", &Goal::default(), &data()).proposals.is_empty());
}

#[test]
fn a_measured_latency_replaces_the_roofline() {
    let summary = convnet();
    let r = recommend(&Question {
        summary: &summary,
        model: "m.onnx",
        device: &device("avx512_vnni"),
        goal: &Goal::default(),
        data: &data(),
        measured_ms: Some(12.0),
        tried: &[],
        seed: 0,
    });
    assert_eq!(r.original_latency_ms, Some((12.0, 12.0, 12.0)));
    let p = &r.proposals[0];
    let expected = 12.0 / p.predicted_speedup.unwrap();
    assert!((p.predicted_latency_ms.unwrap().0 - expected).abs() < 1e-9);
}

#[test]
fn what_was_measured_to_be_slower_is_not_proposed_again() {
    let summary = convnet();
    let asked = |tried: &[Tried]| {
        recommend(&Question {
            summary: &summary,
            model: "m.onnx",
            device: &device("avx512_vnni"),
            goal: &Goal::default(),
            data: &data(),
            measured_ms: None,
            tried,
            seed: 0,
        })
    };
    let first = asked(&[]).proposals[0].clone();
    let mut tried = Tried {
        steps: first.recipe.steps.clone(),
        job: "20260101-000000-abcd".into(),
        against: vec!["slower than the original by +12 % (job 20260101-000000-abcd)".into()],
        conclusion: "slower than the baseline".into(),
    };
    let again = asked(std::slice::from_ref(&tried));
    assert!(again.proposals.iter().all(|p| p.name != first.name));
    let refused = again.refused.iter().find(|r| r.name == first.name).unwrap();
    assert!(refused.reason.contains("20260101-000000-abcd") && refused.reason.contains("+12 %"));
    (tried.against, tried.conclusion) = (vec![], "recommended: faster and smaller".into());
    let good = asked(&[tried]);
    assert_eq!(good.proposals[0].name, first.name);
    assert!(good.proposals[0].reasons.last().unwrap().ends_with("recommended: faster and smaller"));
}

#[test]
fn steps_that_do_not_exist_are_named_with_their_place() {
    let mut recipe = Recipe::new("r", "m.onnx");
    recipe.steps = vec![crate::plan::Step::new("sharpen")];
    let error = recipe.check().unwrap_err();
    assert_eq!(error.kind().exit_code(), 2);
    assert!(error.to_string().contains("step[0]") && error.to_string().contains("sharpen"), "{error}");
    recipe.steps.clear();
    recipe.data = DataSpec { calibration: Some("a".into()), eval: Some("a".into()), ..DataSpec::default() };
    assert!(recipe.check().unwrap()[0].contains("same data"));
    recipe.goal.latency_ms = Some(-1.0);
    assert_eq!(recipe.check().unwrap_err().field_path(), Some("goal.latency_ms"));
}
