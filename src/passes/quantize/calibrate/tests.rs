//! Range rules held against the elements themselves, and passes over data that stop and go on.

use super::super::{Activations, Calibrator};
use super::*;
use crate::evaluate::samples::Batch;
use crate::graph::{Edit, Type};
use crate::monitor::Monitor;
use crate::ops::{Attributes, Dim};
use crate::passes::Memo;
use crate::tensor::{DType, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// About normal elements, and a few far ones.
fn bell(n: usize, far: &[f32]) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut one = || (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
    (0..n).map(|_| one()).chain(far.iter().copied()).collect()
}

fn held(elements: &[f32]) -> Held {
    let mut held = Held::new(SIDE);
    elements.chunks(997).for_each(|c| held.add(c, 0.5).unwrap());
    held
}

fn settings(calibrator: Calibrator) -> Settings {
    Settings { calibrator, ..Settings::default() }
}

/// Mean squared error of the elements on the grid over a range, from its definition.
fn error(elements: &[f32], range: Range, settings: &Settings) -> f64 {
    let grid = range.grid(settings.levels());
    let squared = |x: &f32| (f64::from(*x) - grid.value(grid.level(f64::from(*x)))).powi(2);
    elements.iter().map(squared).sum::<f64>() / elements.len() as f64
}

#[test]
fn the_range_of_least_error_is_found() {
    for (far, symmetric) in [(&[30.0, -25.0][..], false), (&[5.0], false), (&[30.0, -3.0], true)] {
        let x = bell(3000, far);
        let settings = Settings { symmetric, ..settings(Calibrator::Mse) };
        let held = held(&x);
        let found = error(&x, choose::range(&held, &settings), &settings);
        // Both ends in steps of a fortieth of the range, by the elements.
        let ends = |of: f32| (1..=40).map(move |k| of * k as f32 / 40.0);
        let all = ends(held.all.min).flat_map(|min| ends(held.all.max).map(move |max| Range { min, max }));
        let least = all.map(|range| error(&x, range, &settings)).fold(f64::INFINITY, f64::min);
        assert!(found < 1.03 * least, "{far:?}: {found}, at best {least}");
    }
    // One element far out of many is not worth its range.
    let x = bell(600_000, &[60.0]);
    let (settings, held) = (settings(Calibrator::Mse), held(&x));
    let found = error(&x, choose::range(&held, &settings), &settings);
    assert!(found < 0.7 * error(&x, held.all, &settings), "{found}");
}

#[test]
fn predicted_error_is_that_of_the_elements() {
    let x = bell(20_000, &[9.0]);
    let held = held(&x);
    for (kind, symmetric, part) in
        [(Activations::U8, false, 1.0), (Activations::S8, true, 0.5), (Activations::S8, false, 0.2)]
    {
        let settings = Settings { activations: kind, symmetric, ..Settings::default() };
        let range = Range { min: held.all.min * part, max: held.all.max * part };
        let told = report::of("x", &held, range, &settings);
        let power = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
        let want = 10.0 * (power / error(&x, range, &settings)).log10();
        assert!((told.sqnr_db.unwrap() - want).abs() < 0.1, "{told:?}, {want}");
        let (low, high, half) = (told.low, told.high, told.scale / 2.0);
        let beyond = x.iter().filter(|x| **x < low - half || **x > high + half).count() as f64;
        assert!((told.clipped - beyond / x.len() as f64).abs() < 2e-3, "{told:?}, {beyond}");
    }
}

#[test]
fn entropy_lets_go_of_what_is_far_and_keeps_what_is_even() {
    let settings = settings(Calibrator::Entropy);
    let far = choose::range(&held(&bell(50_000, &[100.0])), &settings);
    assert!(far.max > 2.0 && far.max < 20.0 && far.min < -2.0, "{far:?}");
    let even: Vec<f32> = (0..50_000).map(|i| (i % 1000) as f32 / 1000.0).collect();
    let kept = choose::range(&held(&even), &settings);
    assert!(kept.max > 0.9, "{kept:?}");
}

#[test]
fn percentiles_are_those_of_the_sorted_elements() {
    let x = bell(20_000, &[40.0; 30]);
    let mut sorted = x.clone();
    sorted.sort_by(f32::total_cmp);
    for percentile in [90.0, 99.0, 99.9] {
        let settings = Settings { percentile, ..settings(Calibrator::Percentile) };
        let found = choose::range(&held(&x), &settings);
        let at = |q: f64| sorted[(q * sorted.len() as f64) as usize];
        let tail = (100.0 - percentile) / 200.0;
        assert!((found.min - at(tail)).abs() < 0.1, "{found:?}");
        assert!((found.max - at(1.0 - tail)).abs() < 0.1, "{found:?} {}", at(1.0 - tail));
    }
}

#[test]
fn moving_averages_go_part_of_the_way() {
    let mut held = Held::new(16);
    for batch in [[-1.0f32, 4.0], [-3.0, 8.0], [0.0, 0.0]] {
        held.add(&batch, 0.25).unwrap();
    }
    let range = choose::range(&held, &settings(Calibrator::MovingAverage));
    assert_eq!(range, Range { min: -1.125, max: 3.75 });
    assert_eq!(held.all, Range { min: -3.0, max: 8.0 });
}

#[test]
fn many_values_have_wider_bins_under_the_cap() {
    assert_eq!(side(1), SIDE);
    assert!(side(20_000) < SIDE && held_bytes(20_000) <= CAP as u64);
    assert!(memory(1_000_000) > 0);
}

/// `[n, t, 2] -> Relu`, with a mask of `[n, t]`.
fn masked() -> (Graph, ValueId) {
    let mut edit = Edit::new("masked", &[("", 17)]);
    let open = |last: &[i64]| {
        let dims = [Dim::symbol("n"), Dim::symbol("t")].into_iter();
        Some(dims.chain(last.iter().map(|d| Dim::from(*d))).collect())
    };
    let x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: open(&[2]) });
    edit.add_input("attention_mask", Type::Tensor { dtype: DType::I64, shape: open(&[]) });
    let y = edit.add_op("Relu", &[x], Attributes::new(), "y");
    edit.add_output(y);
    (edit.commit().unwrap(), y)
}

fn batches(count: usize) -> Samples {
    let batch = |b: usize| {
        let x: Vec<f32> = (0..12).map(|i| (b * 12 + i) as f32).collect();
        let x = Tensor::from_vec(vec![2, 3, 2], x).unwrap();
        let mask = Tensor::from_vec(vec![2, 3], vec![1i64, 1, 0, 1, 0, 0]).unwrap();
        let inputs = vec![("x".to_string(), x), ("attention_mask".to_string(), mask)];
        Batch { inputs, rows: 2, ..Batch::default() }
    };
    Samples::given((0..count).map(batch).collect())
}

#[test]
fn padding_is_not_looked_at() {
    let (graph, y) = masked();
    let data = batches(1);
    let ctx = Ctx { calibration: Some(&data), ..Ctx::new(&crate::monitor::Silent) };
    let found = gather(&graph, &BTreeSet::from([y]), &Settings::default(), &ctx).unwrap();
    assert_eq!(found.samples, 2);
    let held = &found.held[&y];
    assert_eq!((held.bins.total(), held.all), (6, Range { min: 0.0, max: 7.0 }));
}

#[derive(Default)]
struct Shelf(Mutex<HashMap<String, Vec<u8>>>);

impl Memo for Shelf {
    fn recall(&self, what: &str) -> Option<Vec<u8>> {
        self.0.lock().unwrap().get(what).cloned()
    }
    fn keep(&self, what: &str, result: &[u8]) {
        self.0.lock().unwrap().insert(what.to_string(), result.to_vec());
    }
}

/// Stops once `left` batches were reported.
struct Until(AtomicUsize);

impl Monitor for Until {
    fn phase(&self, _: &str, _: Option<u64>) {}
    fn progress(&self, _: u64) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
    fn metric(&self, _: &str, _: u64, _: f64) {}
    fn log(&self, _: Level, _: &str) {}
    fn stop_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

#[test]
fn a_stopped_calibration_goes_on_behind_its_last_batch() {
    let (graph, y) = masked();
    let (data, wanted) = (batches(5), BTreeSet::from([y]));
    let shelf = Shelf::default();
    let run = |batches: usize, memo| {
        let until = Until(AtomicUsize::new(batches));
        let ctx = Ctx { calibration: Some(&data), memo, ..Ctx::new(&until) };
        (gather(&graph, &wanted, &Settings::default(), &ctx), until.0.into_inner())
    };
    let whole = run(100, None).0.unwrap();
    assert_eq!(run(3, Some(&shelf as &dyn Memo)).0.err().unwrap().kind(), crate::error::Kind::Stopped);
    let resumed = run(100, Some(&shelf)).0.unwrap();
    assert_eq!((resumed.samples, &resumed.held), (10, &whole.held));
    let (name, kept) = shelf.0.lock().unwrap().iter().next().map(|(k, v)| (k.clone(), v.clone())).unwrap();
    assert_eq!(u64::from_le_bytes(kept[..8].try_into().unwrap()), 5);
    shelf.keep(&name, &kept[..kept.len() - 8]);
    assert_eq!(run(100, Some(&shelf)).0.unwrap().held, whole.held);
}
