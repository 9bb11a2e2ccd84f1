//! Gradients of attention and of rotary embeddings against central differences in `f64`.

use crate::gradients_nn::{check, check_slots, check_values, random};
use candle_core::{Device, Tensor as Float};
use tinsmith::ops::{self, Attr, Attributes, Vjp};
use tinsmith::tensor::{Tensor, Value};

fn ints(pairs: &[(&str, i64)]) -> Attributes {
    pairs.iter().fold(Attributes::new(), |a, (n, v)| a.with(n, Attr::Int(*v)))
}

fn bools(shape: &[usize], f: impl Fn(usize) -> bool) -> Value {
    let n = shape.iter().product();
    Tensor::from_bools(shape.to_vec(), (0..n).map(f).collect()).unwrap().into()
}

fn values(floats: &[Float]) -> Vec<Value> {
    floats.iter().map(|t| t.clone().into()).collect()
}

#[test]
fn attention_has_exact_gradients() {
    // Heads alone, in groups, one for all; values of another size than keys.
    for (heads, groups) in [(2, 2), (4, 2), (3, 1)] {
        let q = random(&[2, heads, 3, 4], 1);
        let (k, v) = (random(&[2, groups, 5, 4], 2), random(&[2, groups, 5, 3], 3));
        check("Attention", 23, Attributes::new(), &[q.clone(), k.clone(), v.clone()]);
        check("Attention", 23, ints(&[("is_causal", 1)]), &[q.clone(), k.clone(), v.clone()]);
        let soft = Attributes::new().with("softcap", Attr::Float(0.7)).with("scale", Attr::Float(0.9));
        check("Attention", 23, soft, &[q.clone(), k.clone(), v.clone()]);
        let windows = ints(&[("left_window_size", 1), ("right_window_size", 2)]);
        check("Attention", 25, windows, &[q.clone(), k.clone(), v.clone()]);
        // Masks; one query reaches nothing.
        let mask = bools(&[2, 1, 3, 5], |i| !(5..10).contains(&i) && i % 3 != 1);
        let all = [values(&[q.clone(), k.clone(), v.clone()]), vec![mask]].concat();
        check_values("Attention", 23, Attributes::new(), &all);
        for shape in [&[2, heads, 3, 5][..], &[heads, 3, 5], &[1, 1, 1, 5], &[3, 1]] {
            let mask = random(shape, 4);
            let soft = Attributes::new().with("softcap", Attr::Float(1.5));
            check("Attention", 23, soft, &[q.clone(), k.clone(), v.clone(), mask]);
        }
    }
    let flat = ints(&[("q_num_heads", 4), ("kv_num_heads", 2)]);
    check("Attention", 23, flat, &[random(&[2, 3, 12], 1), random(&[2, 5, 6], 2), random(&[2, 5, 8], 3)]);
}

/// Long enough for several blocks of queries and of keys.
#[test]
fn gradients_hold_across_blocks() {
    let inputs = [random(&[1, 2, 40, 2], 1), random(&[1, 1, 300, 2], 2), random(&[1, 1, 300, 1], 3)];
    check("Attention", 23, ints(&[("is_causal", 1)]), &inputs);
}

#[test]
fn a_mask_that_ends_early_has_exact_gradients() {
    let (q, k, v) = (random(&[1, 2, 3, 4], 1), random(&[1, 2, 5, 4], 2), random(&[1, 2, 5, 4], 3));
    check("Attention", 24, Attributes::new(), &[q, k, v, random(&[3, 4], 4)]);
}

/// The past and the new keys get their parts, and what flows back from the present is added.
#[test]
fn gradients_reach_the_past_and_come_from_the_present() {
    let attributes = ints(&[("is_causal", 1)]);
    let op =
        (ops::lookup("", "Attention", 23).unwrap().parse)(&attributes.clone().for_outputs(3), 23).unwrap();
    let inputs = [
        random(&[2, 4, 3, 2], 1),
        random(&[2, 2, 3, 2], 2),
        random(&[2, 2, 3, 2], 3),
        random(&[2, 2, 4, 2], 4),
        random(&[2, 2, 4, 2], 5),
    ];
    let flat = |t: &Float| -> Vec<f64> { t.flatten_all().unwrap().to_vec1().unwrap() };
    let shapes = [[2, 4, 3, 2], [2, 2, 7, 2], [2, 2, 7, 2]];
    let dy: Vec<Float> = shapes.iter().enumerate().map(|(i, s)| random(s, 50 + i as u64)).collect();
    let spread = |inputs: &[Float]| -> Vec<Value> { values(inputs) };
    let slots = |v: &[Value]| -> Vec<Option<Value>> {
        vec![
            Some(v[0].clone()),
            Some(v[1].clone()),
            Some(v[2].clone()),
            None,
            Some(v[3].clone()),
            Some(v[4].clone()),
        ]
    };
    let loss = |inputs: &[Float]| -> f64 {
        let all = slots(&spread(inputs));
        let refs: Vec<Option<&Value>> = all.iter().map(Option::as_ref).collect();
        let out = op.eval(&refs).unwrap();
        assert_eq!(out.len(), 3);
        out.iter()
            .zip(&dy)
            .map(|(y, d)| flat(y.float().unwrap()).iter().zip(flat(d)).map(|(a, b)| a * b).sum::<f64>())
            .sum()
    };
    let all = slots(&spread(&inputs));
    let refs: Vec<Option<&Value>> = all.iter().map(Option::as_ref).collect();
    let grads: Vec<Option<Float>> = dy.iter().cloned().map(Some).collect();
    let needs = [true, true, true, false, true, true];
    let found = op.vjp(&Vjp { inputs: &refs, outputs: &[], grads: &grads, needs: &needs }).unwrap();
    assert!(found[3].is_none());
    for (i, slot) in [0, 1, 2, 4, 5].into_iter().enumerate() {
        let (grad, base) = (flat(found[slot].as_ref().unwrap()), flat(&inputs[i]));
        assert_eq!(grad.len(), base.len());
        for k in 0..base.len() {
            let moved = |by: f64| {
                let (mut v, mut all) = (base.clone(), inputs.to_vec());
                v[k] += by;
                all[i] = Float::from_vec(v, inputs[i].dims(), &Device::Cpu).unwrap();
                loss(&all)
            };
            let expected = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!(
                (grad[k] - expected).abs() < 1e-6,
                "input {slot} element {k}: {} not {expected}",
                grad[k]
            );
        }
    }
}

#[test]
fn rotary_embeddings_have_exact_gradients() {
    let ids: Value = Tensor::from_vec(vec![2, 3], vec![0i64, 1, 4, 2, 2, 3]).unwrap().into();
    for interleaved in [0, 1] {
        let way = ints(&[("interleaved", interleaved)]);
        let x = random(&[2, 2, 3, 6], 1);
        let tables = [random(&[5, 3], 2), random(&[5, 3], 3)];
        let all = [values(std::slice::from_ref(&x)), values(&tables), vec![ids.clone()]].concat();
        check_values("RotaryEmbedding", 23, way.clone(), &all);
        // Some of the elements; tables by batch entry and position.
        let part = way.clone().with("rotary_embedding_dim", Attr::Int(4));
        check("RotaryEmbedding", 23, part, &[x, random(&[2, 3, 2], 2), random(&[2, 3, 2], 3)]);
        let flat = way.with("num_heads", Attr::Int(2));
        let all = [values(&[random(&[2, 3, 12], 1)]), values(&tables), vec![ids.clone()]].concat();
        check_values("RotaryEmbedding", 23, flat, &all);
    }
}

/// A value for each slot that is named; the others are absent.
fn slots(count: usize, given: Vec<(usize, Value)>) -> Vec<Option<Value>> {
    let mut all = vec![None; count];
    given.into_iter().for_each(|(slot, value)| all[slot] = Some(value));
    all
}

fn whole(shape: &[usize], v: &[i32]) -> Value {
    Tensor::from_vec(shape.to_vec(), v.to_vec()).unwrap().into()
}

#[test]
fn grouped_attention_with_a_cache_has_exact_gradients() {
    let name = "com.microsoft:GroupQueryAttention";
    let x = |shape: &[usize], seed: u64| Value::from(random(shape, seed));
    let heads = ints(&[("num_heads", 4), ("kv_num_heads", 2)]);
    let turned = |interleaved: i64| {
        heads.clone().with("do_rotary", Attr::Int(1)).with("rotary_interleaved", Attr::Int(interleaved))
    };
    let tables = || vec![(7, x(&[9, 2], 7)), (8, x(&[9, 2], 8))];
    // A first prompt of three positions, one row of which is shorter; apart and side by side.
    let prompt = || vec![(5, whole(&[2], &[2, 1])), (6, whole(&[], &[3]))];
    let apart = || vec![(0, x(&[2, 3, 16], 1)), (1, x(&[2, 3, 8], 2)), (2, x(&[2, 3, 8], 3))];
    let packed = || vec![(0, x(&[2, 3, 32], 1))];
    for operands in [apart(), packed()] {
        let all = [operands.clone(), prompt()].concat();
        check_slots(name, 1, heads.clone(), &slots(7, all.clone()), &[0]);
        check_slots(name, 1, heads.clone(), &slots(7, all.clone()), &[0, 1, 2]);
        for interleaved in [0, 1] {
            let all = [all.clone(), tables()].concat();
            check_slots(name, 1, turned(interleaved), &slots(9, all), &[0, 1, 2]);
        }
    }
    // Two new positions behind caches that are filled to different lengths; the last holds room to spare.
    let past = |room: usize| vec![(3, x(&[2, 2, room, 4], 4)), (4, x(&[2, 2, room, 4], 5))];
    let apart = || vec![(0, x(&[2, 2, 16], 1)), (1, x(&[2, 2, 8], 2)), (2, x(&[2, 2, 8], 3))];
    for room in [3, 8] {
        let at = vec![(5, whole(&[2], &[4, 2])), (6, whole(&[], &[5]))];
        let all = [apart(), past(room), at, tables()].concat();
        check_slots(name, 1, turned(0), &slots(9, all.clone()), &[0, 1, 2]);
        let window = turned(1).with("local_window_size", Attr::Int(2));
        let capped = window.with("softcap", Attr::Float(0.8)).with("scale", Attr::Float(0.6));
        check_slots(name, 1, capped, &slots(9, all.clone()), &[0]);
        let keys = room.max(5);
        for shape in [[2, 4, 2, keys], [1, 1, 2, keys]] {
            let all = [all.clone(), vec![(10, x(&shape, 10))]].concat();
            check_slots(name, 1, turned(0), &slots(11, all), &[0]);
        }
    }
}

#[test]
fn flat_attention_has_exact_gradients() {
    let name = "com.microsoft:MultiHeadAttention";
    let x = |shape: &[usize], seed: u64| Value::from(random(shape, seed));
    let heads = |more: &[(&str, i64)]| ints(&[&[("num_heads", 2)], more].concat());
    let operands = || vec![(0, x(&[2, 3, 8], 1)), (1, x(&[2, 5, 8], 2)), (2, x(&[2, 5, 6], 3))];
    check_slots(name, 1, heads(&[]), &slots(3, operands()), &[0]);
    check_slots(name, 1, heads(&[("unidirectional", 1)]), &slots(3, operands()), &[0, 1, 2]);
    let biased = [operands(), vec![(3, x(&[22], 4))]].concat();
    check_slots(name, 1, heads(&[]).with("scale", Attr::Float(0.4)), &slots(4, biased), &[0, 1, 2]);
    let mask = |shape: &[usize], v: &[i32]| vec![(4, whole(shape, v))];
    let filter = || heads(&[]).with("mask_filter_value", Attr::Float(-0.5));
    for padding in [mask(&[2], &[5, 2]), mask(&[2, 5], &[1, 1, 0, 1, 1, 0, 1, 1, 1, 1])] {
        let all = [operands(), padding.clone()].concat();
        check_slots(name, 1, filter(), &slots(5, all.clone()), &[0]);
        for shape in [[2, 2, 3, 5], [1, 2, 3, 5], [2, 1, 3, 5]] {
            let all = [all.clone(), vec![(5, x(&shape, 6))]].concat();
            check_slots(name, 1, filter(), &slots(6, all), &[0]);
        }
    }
    let past = vec![(6, x(&[2, 2, 4, 4], 7)), (7, x(&[2, 2, 4, 3], 8))];
    let all = [operands(), past].concat();
    check_slots(name, 1, heads(&[("unidirectional", 1)]), &slots(8, all), &[0, 1, 2]);
    // Keys and values that come by heads, as those of an encoder do.
    let by_heads = vec![(0, x(&[2, 3, 8], 1)), (1, x(&[2, 2, 5, 4], 2)), (2, x(&[2, 2, 5, 3], 3))];
    check_slots(name, 1, heads(&[]), &slots(3, by_heads), &[0]);
}
