//! Rounding held against its definition, GPTQ against optimal brain surgery done step by step.

use super::*;
use crate::passes::look::Moments;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn form(bits: Bits, block: usize, symmetric: bool) -> Form {
    Form { bits, block, zero: if symmetric { Zero::Middle } else { Zero::Whole } }
}

fn real(bits: Bits, block: usize) -> Form {
    Form { bits, block, zero: Zero::Real }
}

fn rounded(w: &[f32], inputs: usize, form: Form, rounding: Rounding) -> Blocks {
    Blocks::rounded(w, inputs, form, rounding, None)
}

fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| (0..6).map(|_| rng.random::<f32>()).sum::<f32>() - 3.0).collect()
}

fn power(of: impl Iterator<Item = f32>, p: f32) -> f32 {
    of.map(|x| x.abs().powf(p)).sum()
}

#[test]
fn what_lies_on_a_grid_stays_and_the_rest_is_at_most_half_a_step_off() {
    for bits in [Bits::Four, Bits::Eight] {
        for symmetric in [false, true] {
            let form = form(bits, 16, symmetric);
            // A last block that is not full.
            let w = noise(3 * 40, 1);
            let blocks = rounded(&w, 40, form, Rounding::Rtn);
            let once = blocks.spelled(40, form);
            for (row, (w, once)) in w.chunks(40).zip(once.chunks(40)).enumerate() {
                for (i, (w, once)) in w.iter().zip(once).enumerate() {
                    let scale = blocks.scales[row * 3 + i / 16].abs();
                    // The side with a level less may be cut by half a step more.
                    let most = if symmetric { 1.001 } else { 0.5001 };
                    assert!((w - once).abs() <= most * scale, "{bits:?} {symmetric} {w} {once} {scale}");
                }
            }
            let again = rounded(&once, 40, form, Rounding::Rtn).spelled(40, form);
            let far = once.iter().zip(&again).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(symmetric || far < 1e-5, "{bits:?} {far}");
        }
    }
    let form = form(Bits::Four, 16, false);
    for w in [vec![0.0; 32], vec![3.5; 32], vec![-1e-40; 32]] {
        let spelled = rounded(&w, 32, form, Rounding::Hqq).spelled(32, form);
        assert!(spelled.iter().zip(&w).all(|(a, b)| (a - b).abs() < 1e-6), "{w:?}");
    }
}

#[test]
fn each_grid_has_the_least_of_its_error() {
    let mut w = noise(64 * 128, 2);
    w.iter_mut().step_by(61).for_each(|w| *w *= 3.0);
    let error = |form, rounding, p| {
        let spelled = rounded(&w, 128, form, rounding).spelled(128, form);
        power(w.iter().zip(&spelled).map(|(a, b)| a - b), p)
    };
    for form in [form(Bits::Four, 64, true), form(Bits::Four, 64, false), real(Bits::Four, 64)] {
        let of = |rounding| error(form, rounding, 2.0);
        assert!(of(Rounding::Mse) < 0.98 * of(Rounding::Rtn), "{form:?}");
        // What weighs all about the same is nearly the least of all.
        assert!(of(Rounding::KQuant) < 0.99 * of(Rounding::Rtn), "{form:?}");
    }
    let form = real(Bits::Four, 64);
    assert!(error(form, Rounding::Hqq, 0.7) < 0.99 * error(form, Rounding::Rtn, 0.7));
    let whole = self::form(Bits::Four, 64, false);
    assert!(error(form, Rounding::Mse, 2.0) < 0.95 * error(whole, Rounding::Mse, 2.0));
}

#[test]
fn inputs_that_weigh_more_are_nearer() {
    let w = noise(32 * 64, 8);
    let weights: Vec<f32> = (0..64).map(|i| if i % 8 == 0 { 100.0 } else { 1.0 }).collect();
    for form in [form(Bits::Four, 32, false), real(Bits::Four, 32)] {
        let error = |weights: Option<&[f32]>| -> f32 {
            let spelled = Blocks::rounded(&w, 64, form, Rounding::KQuant, weights).spelled(64, form);
            let pairs = w.iter().zip(&spelled).enumerate().filter(|(i, _)| i % 8 == 0);
            pairs.map(|(_, (a, b))| (a - b).powi(2)).sum()
        };
        assert!(error(Some(&weights)) < 0.7 * error(None), "{form:?}");
    }
}

/// Elements of an encoding of GGUF files as it spells them out.
fn stored(encoding: &str, n: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let mut half = |from: f32, to: f32| half::f16::from_f32(rng.random_range(from..to)).to_f32();
    let grids: Vec<(f32, f32)> = (0..n.div_ceil(32)).map(|_| (half(0.001, 0.1), half(-0.7, 0.1))).collect();
    let most = if encoding == "Q8_0" { 255 } else { 15 };
    let one = |i: usize| {
        let ((d, m), q) = (grids[i / 32], rng.random_range(0..=most) as f32);
        match encoding {
            "Q4_0" => -d * (q - 8.0),
            "Q8_0" => d * (q - 128.0),
            _ => d * q + m,
        }
    };
    (0..n).map(one).collect()
}

#[test]
fn weights_on_a_grid_keep_their_values() {
    for (encoding, bits, zero) in [
        ("Q4_0", Bits::Four, Zero::Middle),
        ("Q4_1", Bits::Four, Zero::Real),
        ("Q8_0", Bits::Eight, Zero::Middle),
    ] {
        let w = stored(encoding, 6 * 96);
        let (form, blocks) = Blocks::lossless(&w, 96, 32, true).expect(encoding);
        assert_eq!((form.bits, form.zero), (bits, zero), "{encoding}");
        for (i, w) in w.iter().enumerate() {
            let step = blocks.step(i / 32);
            // As real numbers, not only once they are rounded.
            let value = f64::from(step.scale) * (f64::from(blocks.levels[i]) - f64::from(step.zero));
            assert_eq!(value + f64::from(step.offset), f64::from(*w), "{encoding} {i}");
        }
    }
    // Whole zero points, a block of one value and one of zeros.
    let mut whole: Vec<f32> = (0..96).map(|i| 0.25 * ((i * 7 % 16) as f32 - 3.0)).collect();
    whole[32..64].fill(1.75);
    whole[64..].fill(0.0);
    let (form, blocks) = Blocks::lossless(&whole, 96, 32, true).unwrap();
    assert_eq!((form.bits, form.zero), (Bits::Four, Zero::Whole));
    assert_eq!(blocks.spelled(96, form), whole);
    assert!(Blocks::lossless(&stored("Q4_1", 96), 96, 32, false).is_none_or(|(f, _)| f.zero != Zero::Real));
    assert!(Blocks::lossless(&noise(96, 10), 96, 32, true).is_none());
    // Blocks of another size cut across grids.
    assert!(Blocks::lossless(&stored("Q4_1", 192), 192, 64, true).is_none());
}

/// Data whose features are mixtures of a few.
fn moments(features: usize, positions: usize) -> (Moments, Vec<f32>) {
    let (few, mix) = (noise(positions * 8, 3), noise(8 * features, 4));
    let own = noise(positions * features, 5);
    let x: Vec<f32> = (0..positions * features)
        .map(|i| {
            let (p, f) = (i / features, i % features);
            (0..8).map(|k| few[p * 8 + k] * mix[k * features + f]).sum::<f32>() + 0.3 * own[i]
        })
        .collect();
    let mut moments = Moments::of(features, true);
    moments.add_rows(x.clone(), &vec![1.0; positions]);
    (moments, x)
}

#[test]
fn gptq_makes_up_for_its_errors_on_the_data() {
    let (inputs, outputs, positions) = (96, 40, 400);
    let (moments, x) = moments(inputs, positions);
    let w = noise(outputs * inputs, 6);
    let form = form(Bits::Four, 32, false);
    let sensitivity = Sensitivity::of(&moments, 0.01).unwrap();
    let error = |spelled: &[f32]| -> f64 {
        let mut sum = 0.0;
        for x in x.chunks(inputs) {
            for (a, b) in w.chunks(inputs).zip(spelled.chunks(inputs)) {
                let off: f32 = x.iter().zip(a.iter().zip(b)).map(|(x, (a, b))| x * (a - b)).sum();
                sum += f64::from(off).powi(2);
            }
        }
        sum / positions as f64
    };
    let rtn = rounded(&w, inputs, form, Rounding::Rtn).spelled(inputs, form);
    let gptq = sensitivity.rounded(&w, form).spelled(inputs, form);
    assert!(error(&gptq) < 0.3 * error(&rtn), "{} {}", error(&gptq), error(&rtn));
    // What is told of the error is what the data say, up to the scale of the moments.
    let ratio = sensitivity.error(&w, &gptq).0 / sensitivity.error(&w, &rtn).0;
    assert!((ratio / (error(&gptq) / error(&rtn)) - 1.0).abs() < 1e-3, "{ratio}");
}

/// Optimal brain surgery: after each input is rounded, the rest moves by what the inverse of the moments says,
/// and the input leaves the inverse by one step of elimination.
fn surgery(w: &[f32], moments: &Moments, damping: f64, form: Form) -> Vec<u8> {
    let n = moments.sum.len();
    let mut a: Vec<f64> = (0..n * n).map(|i| moments.about(i / n, i % n, false)).collect();
    let mean = (0..n).map(|i| a[i * n + i]).sum::<f64>() / n as f64;
    a.iter_mut().for_each(|x| *x /= mean);
    (0..n).for_each(|i| a[i * n + i] += damping);
    // Gauss-Jordan.
    let mut inverse = vec![0f64; n * n];
    (0..n).for_each(|i| inverse[i * n + i] = 1.0);
    for i in 0..n {
        let pivot = a[i * n + i];
        for j in 0..n {
            a[i * n + j] /= pivot;
            inverse[i * n + j] /= pivot;
        }
        for k in (0..n).filter(|k| *k != i) {
            let f = a[k * n + i];
            for j in 0..n {
                a[k * n + j] -= f * a[i * n + j];
                inverse[k * n + j] -= f * inverse[i * n + j];
            }
        }
    }
    let mut rows: Vec<Vec<f64>> = w.chunks(n).map(|r| r.iter().map(|x| f64::from(*x)).collect()).collect();
    let mut levels = vec![0u8; w.len()];
    let mut steps = vec![Step { scale: 1.0, zero: 0, offset: 0.0 }; rows.len()];
    for i in 0..n {
        for (r, row) in rows.iter_mut().enumerate() {
            if i % form.block == 0 {
                let block: Vec<f32> = row[i..(i + form.block).min(n)].iter().map(|x| *x as f32).collect();
                steps[r] = Step::least(&block, form);
            }
            let level = steps[r].level(row[i] as f32, form.bits);
            levels[r * n + i] = level;
            let error = (row[i] - f64::from(steps[r].value(level))) / inverse[i * n + i];
            (i..n).for_each(|j| row[j] -= error * inverse[i * n + j]);
        }
        for k in i + 1..n {
            let f = inverse[k * n + i] / inverse[i * n + i];
            (i..n).for_each(|j| inverse[k * n + j] -= f * inverse[i * n + j]);
        }
    }
    levels
}

#[test]
fn gptq_is_optimal_brain_surgery() {
    let (moments, _) = moments(48, 300);
    let w = noise(20 * 48, 7);
    for symmetric in [false, true] {
        let form = form(Bits::Four, 16, symmetric);
        let found = Sensitivity::of(&moments, 0.05).unwrap().rounded(&w, form).levels;
        let wanted = surgery(&w, &moments, 0.05, form);
        let apart = found.iter().zip(&wanted).filter(|(a, b)| a != b).count();
        // A tie that rounding decides otherwise moves what follows in its row.
        assert!(apart <= 10, "{apart} of {}", wanted.len());
    }
}

#[test]
fn moments_that_tell_nothing_are_none() {
    assert!(Sensitivity::of(&Moments::of(8, true), 0.01).is_none());
    let mut one = Moments::of(2, true);
    one.add_rows(vec![1.0, 1.0, 2.0, 2.0], &[1.0; 2]);
    // Singular, but for the damping.
    assert!(Sensitivity::of(&one, 1e-9).is_some());
}
