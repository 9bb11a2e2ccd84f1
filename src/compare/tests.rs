//! Behaviour of the comparison on measurements whose truth is known.

use super::*;
use crate::evaluate::measurement::{Conditions, Interval};
use rand::{Rng, SeedableRng};

fn measured(variant: &str, bytes: u64, ms: f64, wrong: std::ops::Range<usize>, seed: u64) -> Measurement {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let samples = (0..100).map(|_| ms * (1.0 + 0.04 * rng.random::<f64>())).collect();
    let correct: Vec<bool> = (0..1000).map(|i| !wrong.contains(&i)).collect();
    let right = correct.iter().filter(|c| **c).count();
    Measurement {
        schema_version: 1,
        variant: variant.into(),
        model_sha256: format!("{seed:064x}"),
        path: format!("{variant}.onnx"),
        parameters: 1000,
        macs: 1000,
        weight_bytes: bytes,
        file_bytes: bytes,
        peak_activation_bytes: 10,
        latency_ms: stats::latency(samples, seed),
        throughput_per_s: Some(1e3 / ms),
        peak_rss_bytes: Some(50_000_000 + bytes),
        energy_j: None,
        quality: Some(Quality {
            metric: "accuracy".into(),
            value: right as f64 / 1000.0,
            ci95: stats::wilson(right as u64, 1000),
            n: 1000,
            higher_is_better: true,
            correct,
            data_hash: "d".into(),
        }),
        output_error: None,
        conditions: Conditions { threads: 1, runtime: "r".into(), ..Conditions::default() },
        failures: Vec::new(),
    }
}

fn verdicts(c: &Comparison, row: usize) -> [Option<Verdict>; 3] {
    let r = &c.rows[row];
    [&r.size, &r.latency, &r.quality].map(|d| d.as_ref().map(|d| d.verdict))
}

#[test]
fn faster_equal_and_worse_variants_are_told_apart() {
    use Verdict::*;
    let all = [
        measured("original", 1000, 10.0, 0..50, 1),
        measured("int8", 300, 5.0, 0..52, 2),
        measured("pruned", 600, 7.0, 0..150, 3),
        measured("slow", 300, 12.0, 0..50, 4),
    ];
    let c = compare(&all, None, &Goal::default(), 0.02).unwrap();
    assert_eq!(verdicts(&c, 0), [Some(Baseline); 3]);
    assert_eq!(verdicts(&c, 1), [Some(Better), Some(Better), Some(NonInferior)]);
    assert_eq!(verdicts(&c, 2), [Some(Better), Some(Better), Some(Worse)]);
    assert_eq!(verdicts(&c, 3)[1], Some(Worse));
    assert_eq!(
        c.rows.iter().map(|r| r.conclusion.as_str()).collect::<Vec<_>>(),
        ["baseline", "recommended: faster and smaller", "loses quality", "slower than the baseline"]
    );
    assert_eq!(c.rows.iter().map(|r| r.pareto).collect::<Vec<_>>(), [true, true, false, false]);
    let latency = c.rows[1].latency.as_ref().unwrap();
    assert!((latency.delta + 0.5).abs() < 0.02 && latency.p_value.unwrap() < 1e-3);
    assert!(latency.ci95.as_ref().unwrap().high < 0.0);
}

#[test]
fn figures_under_unlike_conditions_are_refused() {
    let mut other = measured("two-threads", 900, 5.0, 0..50, 2);
    other.conditions.threads = 2;
    let c =
        compare(&[measured("original", 1000, 10.0, 0..50, 1), other], None, &Goal::default(), 0.02).unwrap();
    assert_eq!(verdicts(&c, 1)[1], Some(Verdict::NotComparable));
    assert_eq!(c.rows[1].latency.as_ref().unwrap().p_value, None);
    assert!(c.notes.iter().any(|n| n.contains("threads 2, 1")), "{:?}", c.notes);
    assert!(!c.rows[1].pareto);
}

#[test]
fn outcomes_on_other_data_are_never_tested() {
    let base = measured("original", 1000, 10.0, 0..50, 1);
    let mut other = measured("b", 900, 5.0, 0..500, 2);
    other.quality.as_mut().unwrap().data_hash = "e".into();
    let c = compare(&[base.clone(), other.clone()], None, &Goal::default(), 0.02).unwrap();
    let quality = c.rows[1].quality.as_ref().unwrap();
    assert_eq!((quality.verdict, quality.p_value), (Verdict::NotComparable, None));
    assert_eq!(c.rows[1].conclusion, "faster and smaller; quality not comparable");

    let quality = other.quality.as_mut().unwrap();
    quality.data_hash = "d".into();
    quality.correct.pop();
    let error = compare(&[base, other], None, &Goal::default(), 0.02).unwrap_err();
    assert_eq!(error.kind().exit_code(), 3);
}

#[test]
fn a_small_evaluation_says_what_it_cannot_show() {
    let few = |variant: &str, ms: f64, wrong: std::ops::Range<usize>, seed| {
        let mut m = measured(variant, 100, ms, wrong, seed);
        let quality = m.quality.as_mut().unwrap();
        quality.correct.truncate(60);
        quality.n = 60;
        quality.value = quality.correct.iter().filter(|c| **c).count() as f64 / 60.0;
        m
    };
    let c =
        compare(&[few("a", 10.0, 0..3, 1), few("b", 5.0, 0..4, 2)], None, &Goal::default(), 0.02).unwrap();
    assert_eq!(verdicts(&c, 1)[2], Some(Verdict::Undecided));
    assert_eq!(c.rows[1].conclusion, "faster; quality undecided, needs 10.0 points to show");
    assert!(c.notes.iter().any(|n| n.contains("60 items")), "{:?}", c.notes);
}

#[test]
fn gates_are_named_where_they_are_missed() {
    let goal = Goal {
        latency_ms: Some(4.0),
        size_mb: Some(0.0005),
        memory_mb: Some(51.0),
        max_quality_drop: Some(0.02),
        ..Goal::default()
    };
    let mut unmeasured = measured("c", 300, 3.0, 0..50, 5);
    unmeasured.latency_ms = None;
    let all = [measured("a", 1000, 10.0, 0..50, 1), measured("b", 300, 5.0, 0..50, 2), unmeasured];
    let c = compare(&all, Some("a"), &goal, 0.02).unwrap();
    assert_eq!(c.rows[0].missed, ["size_mb", "latency_ms"]);
    assert_eq!(c.rows[1].conclusion, "misses latency_ms");
    assert_eq!(c.rows[2].missed, ["latency_ms (not measured)"]);
    let elsewhere = Goal { device: Some("raspberry-pi-5".into()), latency_ms: Some(4.0), ..Goal::default() };
    let c = compare(&all, Some("a"), &elsewhere, 0.02).unwrap();
    assert!(c.rows[1].missed.is_empty() && c.notes.iter().any(|n| n.contains("raspberry-pi-5")));
}

#[test]
fn bad_questions_are_usage_errors() {
    let one = [measured("a", 10, 1.0, 0..5, 1)];
    for (list, baseline, margin) in [
        (&one[..0], None, 0.02),
        (&one[..], Some("x"), 0.02),
        (&one[..], None, f64::NAN),
        (&one[..], None, 1.5),
    ] {
        let error = compare(list, baseline, &Goal::default(), margin).unwrap_err();
        assert_eq!(error.kind().exit_code(), 2);
    }
}

#[test]
fn a_failed_measurement_leaves_the_others_standing() {
    let mut broken = measured("broken", 500, 1.0, 0..0, 3);
    broken.latency_ms = None;
    broken.quality = None;
    broken.failures = vec!["failed: the runtime refused the model".into()];
    let all = [measured("a", 1000, 10.0, 0..50, 1), broken, measured("b", 300, 5.0, 0..50, 2)];
    let c = compare(&all, None, &Goal::default(), 0.02).unwrap();
    assert_eq!(c.rows[1].conclusion, "failed: the runtime refused the model");
    assert_eq!(c.rows[2].conclusion, "recommended: faster and smaller");
}

/// Four copies of one binary, 60 times: 3 families are expected to name a difference, 8 is the 99 % bound.
#[test]
fn copies_of_one_model_have_no_winner() {
    let mut named = 0;
    for round in 0..60 {
        let all: Vec<Measurement> =
            (0..4).map(|v| measured(&format!("v{v}"), 1000, 10.0, 0..50, 1000 + round * 10 + v)).collect();
        let c = compare(&all, None, &Goal::default(), 0.02).unwrap();
        named += usize::from(c.rows[1..].iter().any(|r| r.conclusion != "no gain shown"));
    }
    assert!(named <= 8, "{named} of 60 comparisons named a difference");
}

#[test]
fn a_comparison_survives_json() {
    let all = [measured("a", 1000, 10.0, 0..50, 1), measured("b", 300, 5.0, 0..52, 2)];
    let c = compare(&all, None, &Goal::default(), 0.02).unwrap();
    let text = serde_json::to_string(&c).unwrap();
    assert_eq!(serde_json::from_str::<Comparison>(&text).unwrap(), c);
    let _: Interval = c.rows[1].latency.clone().unwrap().ci95.unwrap();
}
