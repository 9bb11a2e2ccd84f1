//! Gradients of element-wise operators, reductions, softmax and conversions against central differences
//! in `f64`, with every attribute that changes them.

use crate::gradients_nn::{between, check, check_values, random};
use candle_core::{Device, Tensor as Float};
use tinsmith::ops::{self, Attr, Attributes, Keeps, Vjp};
use tinsmith::tensor::{Tensor, Value};

fn none() -> Attributes {
    Attributes::new()
}

fn with(pairs: &[(&str, f32)]) -> Attributes {
    pairs.iter().fold(none(), |a, (n, v)| a.with(n, Attr::Float(*v)))
}

fn host(v: &[i64]) -> Value {
    Tensor::from_vec(vec![v.len()], v.to_vec()).unwrap().into()
}

#[test]
fn functions_of_one_element_have_exact_gradients() {
    let wide = between(&[3, 17], 1, -4.0, 4.0);
    for name in [
        "Abs",
        "Neg",
        "Sign",
        "Ceil",
        "Floor",
        "Round",
        "Exp",
        "Erf",
        "Sin",
        "Cos",
        "Sinh",
        "Cosh",
        "Asinh",
        "Atan",
        "Reciprocal",
    ] {
        check(name, 13, none(), std::slice::from_ref(&wide));
    }
    for name in ["Tan", "Asin", "Acos", "Atanh"] {
        check(name, 13, none(), &[between(&[20], 2, -0.9, 0.9)]);
    }
    for name in ["Sqrt", "Log"] {
        check(name, 13, none(), &[between(&[20], 2, 0.1, 4.0)]);
    }
    check("Acosh", 13, none(), &[between(&[20], 2, 1.1, 4.0)]);
}

#[test]
fn activations_have_exact_gradients() {
    let wide = between(&[3, 17], 1, -5.0, 5.0);
    let one = |name: &str, attributes: Attributes| check(name, 24, attributes, std::slice::from_ref(&wide));
    for name in ["Relu", "Sigmoid", "Tanh", "HardSwish", "Softplus", "Softsign", "Mish", "Gelu"] {
        one(name, none());
    }
    one("Gelu", none().with("approximate", Attr::Str(b"tanh".to_vec())));
    for alpha in [0.3, 1.0, 2.5] {
        for name in ["LeakyRelu", "Elu", "Celu", "ThresholdedRelu", "Swish"] {
            one(name, with(&[("alpha", alpha)]));
        }
        one("Selu", with(&[("alpha", alpha), ("gamma", 0.7)]));
        one("HardSigmoid", with(&[("alpha", alpha), ("beta", 0.4)]));
        one("Shrink", with(&[("lambd", alpha), ("bias", 0.2)]));
    }
    one("Selu", none());
    check("Clip", 6, with(&[("min", -1.0), ("max", 2.0)]), std::slice::from_ref(&wide));
    let bound = |v: f64| Float::new(v, &Device::Cpu).unwrap();
    check("Clip", 13, none(), std::slice::from_ref(&wide));
    check("Clip", 13, none(), &[wide.clone(), bound(-1.0)]);
    check("Clip", 13, none(), &[wide.clone(), bound(-1.0), bound(2.0)]);
    check("Clip", 13, none(), &[wide, bound(2.0), bound(-1.0)]);
}

#[test]
fn arithmetic_has_exact_gradients_in_every_broadcast() {
    for (a, b) in [
        (&[2usize, 3, 4][..], &[2usize, 3, 4][..]),
        (&[2, 3, 4], &[4]),
        (&[3, 1], &[2, 3, 4]),
        (&[2, 1, 4], &[1, 3, 1]),
        (&[], &[2, 3]),
        (&[2, 3], &[1]),
    ] {
        for name in ["Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum"] {
            let b = match name {
                "Div" => between(b, 2, 0.3, 2.0),
                _ => random(b, 2),
            };
            check(name, 13, none(), &[random(a, 1), b]);
        }
        check("Pow", 13, none(), &[between(a, 1, 0.2, 2.0), between(b, 2, -2.0, 2.0)]);
        let fmod = none().with("fmod", Attr::Int(1));
        check("Mod", 13, fmod, &[between(a, 1, -9.0, 9.0), between(b, 2, 1.0, 2.0)]);
    }
    for b in [&[4usize][..], &[3, 1], &[1, 1, 4], &[2, 3, 4], &[1]] {
        check("PRelu", 16, none(), &[random(&[2, 3, 4], 1), random(b, 2)]);
    }
    for name in ["Max", "Min", "Mean", "Sum"] {
        check(name, 13, none(), &[random(&[2, 3], 1)]);
        check(name, 13, none(), &[random(&[2, 3], 1), random(&[3], 2), random(&[2, 1], 3)]);
    }
}

#[test]
fn powers_by_constants_of_any_type_have_exact_gradients() {
    for e in [-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0] {
        let exponent = Float::from_vec(vec![e], 1, &Device::Cpu).unwrap();
        check("Pow", 13, none(), &[between(&[9], 1, 0.2, 2.0), exponent]);
    }
    for e in [-1, 0, 1, 2, 3] {
        check_values("Pow", 13, none(), &[between(&[9], 1, -2.0, -0.2).into(), host(&[e])]);
    }
}

#[test]
fn ties_share_their_gradient_and_kinks_have_the_documented_slope() {
    let x = Float::from_vec(vec![1.0f64, 0.0, 1.0], 3, &Device::Cpu).unwrap();
    let gradient = |name: &str, attributes: Attributes, inputs: &[&Float]| -> Vec<f64> {
        let op = (ops::lookup("", name, 20).unwrap().parse)(&attributes, 20).unwrap();
        let values: Vec<Value> = inputs.iter().map(|t| (*t).clone().into()).collect();
        let refs: Vec<Option<&Value>> = values.iter().map(Some).collect();
        let y = op.eval(&refs).unwrap();
        let ones = y[0].float().unwrap().ones_like().unwrap();
        let mut needs = vec![false; inputs.len()];
        needs[0] = true;
        let outputs = [Some(&y[0])];
        let v = Vjp { inputs: &refs, outputs: &outputs, grads: &[Some(ones)], needs: &needs };
        op.vjp(&v).unwrap()[0].as_ref().unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    assert_eq!(gradient("ReduceMax", none(), &[&x]), [0.5, 0.0, 0.5]);
    assert_eq!(gradient("Max", none(), &[&x, &x]), [0.5, 0.5, 0.5]);
    assert_eq!(gradient("Relu", none(), &[&x]), [1.0, 0.0, 1.0]);
    assert_eq!(gradient("Abs", none(), &[&x]), [1.0, 0.0, 1.0]);
    assert_eq!(gradient("LeakyRelu", with(&[("alpha", 0.25)]), &[&x]), [1.0, 0.25, 1.0]);
    assert_eq!(gradient("ReduceProd", none(), &[&x]), [0.0, 1.0, 0.0]);
    let zeros = x.zeros_like().unwrap();
    assert_eq!(gradient("ReduceL2", none(), &[&zeros]), [0.0, 0.0, 0.0]);
    assert_eq!(gradient("ReduceProd", none(), &[&zeros]), [0.0, 0.0, 0.0]);
    let two = Float::new(2.0f64, &Device::Cpu).unwrap();
    assert_eq!(gradient("Pow", none(), &[&x, &two]), [2.0, 0.0, 2.0]);
}

#[test]
fn a_choice_sends_the_gradient_where_it_took_from() {
    let condition = |shape: &[usize]| -> Value {
        let n = shape.iter().product::<usize>();
        Tensor::from_bools(shape.to_vec(), (0..n).map(|i| i % 3 != 1).collect()).unwrap().into()
    };
    for (c, x, y) in [
        (&[2usize, 3][..], &[2usize, 3][..], &[2usize, 3][..]),
        (&[3], &[2, 1], &[2, 3]),
        (&[2, 3, 1], &[4], &[]),
        (&[], &[3], &[2, 1]),
    ] {
        check_values("Where", 16, none(), &[condition(c), random(x, 1).into(), random(y, 2).into()]);
    }
}

#[test]
fn softmax_has_an_exact_gradient_along_every_axis() {
    for name in ["Softmax", "LogSoftmax"] {
        for axis in [0, 1, -1] {
            for opset in [11, 13] {
                let attributes = none().with("axis", Attr::Int(axis));
                check(name, opset, attributes, &[random(&[2, 3, 4], 1)]);
            }
        }
        check(name, 9, none(), &[random(&[2, 3, 2], 1)]);
    }
}

#[test]
fn reductions_have_exact_gradients_over_every_set_of_axes() {
    for name in [
        "ReduceSum",
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceSumSquare",
    ] {
        let x = match name {
            "ReduceLogSum" => between(&[2, 3, 4], 1, 0.2, 2.0),
            _ => random(&[2, 3, 4], 1),
        };
        for axes in [&[0i64][..], &[1], &[-1], &[0, 2], &[1, 2], &[0, 1, 2]] {
            for keep in [0, 1] {
                let keepdims = none().with("keepdims", Attr::Int(keep));
                let old = keepdims.clone().with("axes", Attr::Ints(axes.to_vec()));
                check(name, 11, old, std::slice::from_ref(&x));
                check_values(name, 18, keepdims, &[x.clone().into(), host(axes)]);
            }
        }
        check(name, 18, none(), std::slice::from_ref(&x));
        check(name, 18, none().with("noop_with_empty_axes", Attr::Int(1)), &[x]);
    }
}

#[test]
fn running_totals_have_exact_gradients() {
    for exclusive in [0, 1] {
        for reverse in [0, 1] {
            for axis in [0, 1, -1] {
                let attributes =
                    none().with("exclusive", Attr::Int(exclusive)).with("reverse", Attr::Int(reverse));
                let axis: Value = Tensor::scalar(axis as i64).into();
                check_values("CumSum", 14, attributes, &[random(&[2, 3, 4], 1).into(), axis]);
            }
        }
    }
}

#[test]
fn conversions_between_floats_hand_the_gradient_on() {
    check("Cast", 13, none().with("to", Attr::Int(11)), &[random(&[5], 1)]);
    let to =
        |n: i64| (ops::lookup("", "Cast", 13).unwrap().parse)(&none().with("to", Attr::Int(n)), 13).unwrap();
    assert!(!to(7).differentiable());
    let x: Value = random(&[3], 1).into();
    let half = to(10);
    assert_eq!(half.keeps(), Keeps::default());
    let dy = random(&[3], 2).to_dtype(candle_core::DType::F16).unwrap();
    let inputs = [Some(&x)];
    let v = Vjp { inputs: &inputs, outputs: &[None], grads: &[Some(dy)], needs: &[true] };
    assert_eq!(half.vjp(&v).unwrap()[0].as_ref().unwrap().dtype(), candle_core::DType::F64);
}
