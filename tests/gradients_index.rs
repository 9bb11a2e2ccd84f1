//! Gradients of operators that read and write at indices, choose elements or sum labelled products,
//! against central differences in `f64`.

use candle_core::{Device, Tensor as Float};
use rand::{Rng, SeedableRng};
use tinsmith::ops::{self, Attr, Attributes, Vjp};
use tinsmith::tensor::{Tensor, Value};

fn random(shape: &[usize], seed: u64) -> Float {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let n = shape.iter().product();
    let v: Vec<f64> = (0..n).map(|_| rng.random_range(-1.0..1.0)).collect();
    Float::from_vec(v, shape, &Device::Cpu).unwrap()
}

fn ints(shape: &[usize], v: &[i64]) -> Value {
    Tensor::from_vec(shape.to_vec(), v.to_vec()).unwrap().into()
}

fn flat(t: &Float) -> Vec<f64> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn attributes(pairs: &[(&str, Attr)]) -> Attributes {
    pairs.iter().fold(Attributes::new(), |a, (n, v)| a.with(n, v.clone()))
}

fn op(name: &str, attributes: &Attributes) -> std::sync::Arc<dyn ops::Operator> {
    (ops::lookup("", name, 18).unwrap().parse)(attributes, 18).unwrap()
}

/// Compares the gradient of the first output with respect to every float input with central
/// differences, and checks that each input alone gets its gradient and no other does.
fn check(name: &str, attributes: Attributes, inputs: &[Value]) {
    let op = op(name, &attributes);
    assert!(op.differentiable(), "{name}");
    let run = |inputs: &[Value]| {
        let refs: Vec<Option<&Value>> = inputs.iter().map(Some).collect();
        op.eval(&refs).unwrap()
    };
    let outputs = run(inputs);
    let dy = random(outputs[0].shape(), 99);
    let weights = flat(&dy);
    let loss = |inputs: &[Value]| -> f64 {
        flat(run(inputs)[0].float().unwrap()).iter().zip(&weights).map(|(a, b)| a * b).sum()
    };
    let refs: Vec<Option<&Value>> = inputs.iter().map(Some).collect();
    let kept: Vec<Option<&Value>> = outputs.iter().map(Some).collect();
    let mut given = vec![None; outputs.len()];
    given[0] = Some(dy.clone());
    for i in 0..inputs.len() {
        let Value::Float(input) = &inputs[i] else { continue };
        let mut needs = vec![false; inputs.len()];
        needs[i] = true;
        let found = op.vjp(&Vjp { inputs: &refs, outputs: &kept, grads: &given, needs: &needs }).unwrap();
        for (j, g) in found.iter().enumerate() {
            assert_eq!(g.is_some(), i == j, "{name}: gradient of input {j} when {i} is needed");
        }
        let grad = found[i].as_ref().unwrap();
        assert_eq!(grad.dims(), input.dims(), "{name}: shape of gradient {i}");
        let (grad, base) = (flat(grad), flat(input));
        for k in 0..base.len() {
            let moved = |by: f64| {
                let mut v = base.clone();
                v[k] += by;
                let mut inputs = inputs.to_vec();
                inputs[i] = Float::from_vec(v, input.dims(), &Device::Cpu).unwrap().into();
                loss(&inputs)
            };
            let expected = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!(
                (grad[k] - expected).abs() <= 1e-6 * (1.0 + expected.abs()),
                "{name}: input {i} element {k}: {} is not {expected}",
                grad[k]
            );
        }
    }
    // Where nothing flows back, nothing is asked for.
    let none = vec![None; outputs.len()];
    let needs = vec![true; inputs.len()];
    let found = op.vjp(&Vjp { inputs: &refs, outputs: &kept, grads: &none, needs: &needs }).unwrap();
    assert!(found.iter().all(Option::is_none), "{name}");
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
        assert!(!op("ScatterElements", &how).differentiable() && !op("ScatterND", &how).differentiable());
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
