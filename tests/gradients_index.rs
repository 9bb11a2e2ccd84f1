//! Gradients of operators that read and write at indices, choose elements or sum labelled products,
//! against central differences in `f64`.

use crate::gradients_nn::{check_values, random};
use candle_core::{Device, Tensor as Float};
use tinsmith::ops::{self, Attr, Attributes, Vjp};
use tinsmith::tensor::{Tensor, Value};

fn ints(shape: &[usize], v: &[i64]) -> Value {
    Tensor::from_vec(shape.to_vec(), v.to_vec()).unwrap().into()
}

fn attributes(pairs: &[(&str, Attr)]) -> Attributes {
    pairs.iter().fold(Attributes::new(), |a, (n, v)| a.with(n, v.clone()))
}

fn check(name: &str, attributes: Attributes, inputs: &[Value]) {
    check_values(name, 18, attributes, inputs);
}

#[test]
fn gathering_adds_up_where_an_index_recurs() {
    let x = || Value::from(random(&[3, 4, 2], 1));
    let axis = |a: i64| attributes(&[("axis", Attr::Int(a))]);
    check("Gather", axis(0), &[x(), ints(&[2, 3], &[0, 2, 2, -1, 0, 1])]);
    check("Gather", axis(1), &[x(), ints(&[5], &[3, 3, 3, 0, -2])]);
    check("Gather", axis(-1), &[x(), ints(&[], &[1])]);
    check("Gather", axis(1), &[x(), ints(&[0], &[])]);
    check("GatherElements", axis(1), &[x(), ints(&[2, 3, 2], &[0, 3, 3, -1, 1, 1, 2, 2, 0, 0, 0, 0])]);
    check("GatherElements", axis(0), &[x(), ints(&[1, 4, 1], &[2, 2, -3, 1])]);
    check("GatherND", Attributes::new(), &[x(), ints(&[3, 2], &[0, 1, 2, -1, 0, 1])]);
    check("GatherND", Attributes::new(), &[x(), ints(&[2, 1, 3], &[0, 1, 1, 0, 1, 1])]);
    let batch = attributes(&[("batch_dims", Attr::Int(1))]);
    check("GatherND", batch.clone(), &[x(), ints(&[3, 1], &[0, 3, -1])]);
    check("GatherND", batch, &[x(), ints(&[3, 2, 1], &[0, 0, 3, 1, -1, 2])]);
}

#[test]
fn of_several_updates_of_one_element_only_those_that_count_get_a_gradient() {
    let x = || Value::from(random(&[3, 4], 1));
    for reduction in ["none", "add"] {
        let how = |a: i64| attributes(&[("axis", Attr::Int(a)), ("reduction", Attr::Str(reduction.into()))]);
        let updates = |shape: &[usize]| Value::from(random(shape, 2));
        check("ScatterElements", how(0), &[x(), ints(&[2, 3], &[0, 2, 1, -3, 0, 1]), updates(&[2, 3])]);
        check(
            "ScatterElements",
            how(1),
            &[x(), ints(&[2, 5], &[3, 3, 0, 3, 1, -1, -1, 0, 0, 0]), updates(&[2, 5])],
        );
        let tuples = attributes(&[("reduction", Attr::Str(reduction.into()))]);
        check("ScatterND", tuples.clone(), &[x(), ints(&[3, 1], &[2, 0, 2]), updates(&[3, 4])]);
        check("ScatterND", tuples, &[x(), ints(&[4, 2], &[0, 0, 2, 3, 0, 0, -1, -1]), updates(&[4])]);
    }
    for reduction in ["mul", "min", "max"] {
        let how = attributes(&[("reduction", Attr::Str(reduction.into()))]);
        let updates = |shape: &[usize]| Value::from(random(shape, 2));
        let rows = ints(&[2, 3], &[0, 2, 1, -3, 0, 1]);
        check("ScatterElements", how.clone(), &[x(), rows, updates(&[2, 3])]);
        check("ScatterND", how, &[x(), ints(&[4, 2], &[0, 0, 2, 3, 0, 0, -1, -1]), updates(&[4])]);
    }
    // Factors that are zero: the others' product counts where there is one zero alone.
    let zeros = Float::from_vec(vec![0.0f64, 2.0, 0.0, 3.0], 4, &Device::Cpu).unwrap();
    let news = Float::from_vec(vec![5.0f64, 0.0, 0.0, 4.0, 7.0], 5, &Device::Cpu).unwrap();
    let how = attributes(&[("reduction", Attr::Str("mul".into()))]);
    check("ScatterElements", how, &[zeros.into(), ints(&[5], &[0, 1, 2, 3, 3]), news.into()]);
}

/// Elements that tie for an extreme share the gradient, as they do in reductions.
#[test]
fn updates_that_tie_share_their_gradient() {
    let op = (ops::lookup("", "ScatterElements", 18).unwrap().parse)(
        &attributes(&[("reduction", Attr::Str("max".into()))]),
        18,
    )
    .unwrap();
    let of = |v: Vec<f64>| Value::from(Float::from_vec(v.clone(), v.len(), &Device::Cpu).unwrap());
    let (x, at, new) = (of(vec![1.0, 5.0]), ints(&[3], &[0, 0, 1]), of(vec![1.0, 0.0, 4.0]));
    let grads = [Some(Float::from_vec(vec![6.0f64, 3.0], 2, &Device::Cpu).unwrap())];
    let inputs = [Some(&x), Some(&at), Some(&new)];
    let v = Vjp { inputs: &inputs, outputs: &[None], grads: &grads, needs: &[true, false, true] };
    let found = op.vjp(&v).unwrap();
    let flat = |g: &Option<Float>| -> Vec<f64> { g.as_ref().unwrap().to_vec1().unwrap() };
    assert_eq!((flat(&found[0]), flat(&found[2])), (vec![3.0, 3.0], vec![3.0, 0.0, 0.0]));
}

#[test]
fn moved_elements_get_their_gradient_back() {
    let x = |shape: &[usize]| Value::from(random(shape, 1));
    let int = |n: &str, v: i64| attributes(&[(n, Attr::Int(v))]);
    for axis in [0, 1, -1] {
        let joined = [x(&[2, 3, 4]), random(&[2, 3, 4], 2).into(), random(&[2, 3, 4], 3).into()];
        check("Concat", int("axis", axis), &joined);
    }
    check("Concat", int("axis", 1), &[x(&[2, 1]), random(&[2, 3], 2).into()]);
    check("SpaceToDepth", int("blocksize", 2), &[x(&[2, 3, 4, 6])]);
    for mode in ["DCR", "CRD"] {
        let how = int("blocksize", 2).with("mode", Attr::Str(mode.into()));
        check("DepthToSpace", how, &[x(&[2, 8, 3, 2])]);
    }
    for (batch, time, shape, lengths) in
        [(1, 0, [4, 3, 2], [4, 0, 2].as_slice()), (0, 1, [3, 4, 2], &[1, 4, 3]), (1, 0, [2, 1, 5], &[2])]
    {
        let how = int("batch_axis", batch).with("time_axis", Attr::Int(time));
        check("ReverseSequence", how, &[x(&shape), ints(&[lengths.len()], lengths)]);
    }
}

#[test]
fn numbers_that_are_spread_out_get_the_sum_of_their_gradients() {
    for axis in [-1, 0, 1] {
        let how = attributes(&[("axis", Attr::Int(axis))]);
        let at = ints(&[2, 3], &[0, 3, -1, 9, 1, 1]);
        check("OneHot", how, &[at, ints(&[], &[4]), random(&[2], 1).into()]);
    }
    let number = |x: f64| Value::from(Float::new(x, &Device::Cpu).unwrap());
    for (start, limit, delta) in [(0.5, 4.2, 0.9), (3.0, -2.1, -0.7), (1.0, 0.5, 2.0)] {
        check("Range", Attributes::new(), &[number(start), number(limit), number(delta)]);
    }
}

#[test]
fn chosen_elements_get_their_gradient_back() {
    for (axis, largest, k) in [(-1, 1, 2), (0, 0, 1), (1, 1, 4)] {
        let how = attributes(&[("axis", Attr::Int(axis)), ("largest", Attr::Int(largest))]);
        check("TopK", how, &[random(&[3, 4, 2], 7).into(), ints(&[1], &[k])]);
    }
    let condition = |v: &[bool]| Value::from(Tensor::from_bools(vec![v.len()], v.to_vec()).unwrap());
    let x = || Value::from(random(&[3, 4], 1));
    check("Compress", attributes(&[("axis", Attr::Int(1))]), &[x(), condition(&[true, false, true])]);
    check("Compress", Attributes::new(), &[x(), condition(&[false, true, true, false, false, true])]);
}

#[test]
fn labelled_sums_have_exact_gradients() {
    let cases: &[(&str, &[&[usize]])] = &[
        ("ij,jk->ik", &[&[3, 4], &[4, 2]]),
        ("ij,kj->ki", &[&[3, 4], &[2, 4]]),
        ("bij,bjk->bik", &[&[2, 3, 4], &[2, 4, 2]]),
        ("bqhd,bkhd->bhqk", &[&[2, 3, 2, 4], &[2, 5, 2, 4]]),
        ("ij->ji", &[&[3, 4]]),
        ("ij->j", &[&[3, 4]]),
        ("ij->", &[&[3, 4]]),
        ("ii->i", &[&[3, 3]]),
        ("ijj,jk->ki", &[&[2, 3, 3], &[3, 2]]),
        ("i,j->ij", &[&[3], &[4]]),
        ("ij,ij->ij", &[&[3, 4], &[3, 4]]),
        ("ij,ij->i", &[&[3, 4], &[1, 4]]),
        ("...ij,...jk->...ik", &[&[2, 3, 4], &[4, 2]]),
        ("...,...->...", &[&[2, 1], &[3]]),
        ("ab,bc,cd->ad", &[&[2, 3], &[3, 4], &[4, 2]]),
        ("ab,cd->c", &[&[2, 3], &[3, 4]]),
        ("i,i,i->", &[&[4], &[4], &[4]]),
    ];
    for (equation, shapes) in cases {
        let inputs: Vec<Value> =
            shapes.iter().enumerate().map(|(i, s)| random(s, 3 + i as u64).into()).collect();
        check("Einsum", attributes(&[("equation", Attr::Str((*equation).into()))]), &inputs);
    }
}
