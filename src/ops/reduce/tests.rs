//! Reductions in every form and type.

use super::*;
use crate::ops::Attr;
use crate::tensor::Tensor;

fn op(name: &str, opset: i64, attributes: Attributes) -> Arc<dyn Operator> {
    (crate::ops::lookup("", name, opset).unwrap().parse)(&attributes, opset).unwrap()
}

fn floats(shape: &[usize], v: Vec<f32>) -> Value {
    Value::load(&Tensor::from_vec(shape.to_vec(), v).unwrap()).unwrap()
}

fn ints(v: Vec<i64>) -> Value {
    Tensor::from_vec(vec![v.len()], v).unwrap().into()
}

fn run(op: &dyn Operator, inputs: &[&Value]) -> (Vec<usize>, Vec<f32>) {
    let refs: Vec<Option<&Value>> = inputs.iter().map(|v| Some(*v)).collect();
    let y = op.eval(&refs).unwrap().remove(0).to_tensor().unwrap();
    (y.shape().to_vec(), y.to_f32s().unwrap())
}

#[test]
fn empty_sets_give_the_neutral_element() {
    let x = floats(&[2, 0, 1], vec![]);
    for (name, wanted) in [
        ("ReduceSum", 0.0),
        ("ReduceProd", 1.0),
        ("ReduceMax", f32::NEG_INFINITY),
        ("ReduceMin", f32::INFINITY),
        ("ReduceL1", 0.0),
        ("ReduceL2", 0.0),
        ("ReduceSumSquare", 0.0),
        ("ReduceLogSum", f32::NEG_INFINITY),
        ("ReduceLogSumExp", f32::NEG_INFINITY),
    ] {
        let (shape, y) = run(&*op(name, 18, Attributes::new()), &[&x, &ints(vec![1])]);
        assert_eq!((shape, y), (vec![2, 1, 1], vec![wanted; 2]), "{name}");
    }
    let truth: Value = Tensor::from_bools(vec![0], vec![]).unwrap().into();
    assert_eq!(run(&*op("ReduceMin", 20, Attributes::new()), &[&truth]).1, [1.0]);
    assert_eq!(run(&*op("ReduceMax", 20, Attributes::new()), &[&truth]).1, [0.0]);
}

#[test]
fn axes_come_from_attribute_or_input_and_empty_ones_follow_the_flag() {
    let x = floats(&[2, 3], vec![1., 2., 3., 4., 5., 6.]);
    let attribute = Attributes::new().with("axes", Attr::Ints(vec![-1])).with("keepdims", Attr::Int(0));
    assert_eq!(run(&*op("ReduceSum", 11, attribute), &[&x]), (vec![2], vec![6., 15.]));
    let sum = op("ReduceSum", 13, Attributes::new());
    assert_eq!(run(&*sum, &[&x, &ints(vec![0])]), (vec![1, 3], vec![5., 7., 9.]));
    assert_eq!(run(&*sum, &[&x, &ints(vec![])]), (vec![1, 1], vec![21.]));
    let none = op("ReduceSumSquare", 18, Attributes::new().with("noop_with_empty_axes", Attr::Int(1)));
    assert_eq!(run(&*none, &[&x]), (vec![2, 3], vec![1., 4., 9., 16., 25., 36.]));
    assert!(sum.eval(&[Some(&x), Some(&ints(vec![0, -2]))]).is_err());
    assert!(sum.eval(&[Some(&x), Some(&ints(vec![2]))]).is_err());
}

#[test]
fn extremes_hand_on_nan_and_logarithms_of_sums_do_not_overflow() {
    let x = floats(&[3], vec![1.0, f32::NAN, 3.0]);
    assert!(run(&*op("ReduceMax", 18, Attributes::new()), &[&x]).1[0].is_nan());
    assert!(run(&*op("ReduceMin", 18, Attributes::new()), &[&x]).1[0].is_nan());
    let x = floats(&[2], vec![1000.0, 1000.0]);
    let y = run(&*op("ReduceLogSumExp", 18, Attributes::new()), &[&x]).1[0];
    assert!((y - 1_000.693_1).abs() < 1e-3);
}

#[test]
fn integers_stay_exact() {
    let x: Value = Tensor::from_vec(vec![2], vec![i64::MAX, 1]).unwrap().into();
    let one = |name| op(name, 18, Attributes::new()).eval(&[Some(&x)]).unwrap().remove(0).ints().unwrap()[0];
    assert_eq!((one("ReduceMax"), one("ReduceMin"), one("ReduceSum")), (i64::MAX, 1, i64::MIN));
    let x: Value = Tensor::from_vec(vec![3], vec![u64::MAX, 1, 5]).unwrap().into();
    let y = op("ReduceMax", 18, Attributes::new()).eval(&[Some(&x)]).unwrap().remove(0);
    assert_eq!(y.host().unwrap().to_vec::<u64>().unwrap(), [u64::MAX]);
}

#[test]
fn products_of_shapes_stay_symbolic() {
    let (b, s) = (Dim::symbol("batch"), Dim::symbol("seq"));
    let x = Fact::of_dims(DType::I64, vec![b.clone(), s.clone(), Dim::from(4i64)], false);
    let keep = Attributes::new().with("keepdims", Attr::Int(0));
    let y = op("ReduceProd", 13, keep).infer(&[Some(&x)]).unwrap().remove(0);
    assert_eq!(y.dims, Some(vec![b * s * Dim::from(4i64)]));
    assert_eq!(y.rank(), Some(0));
}

#[test]
fn kept_axes_are_tied_and_reduced_ones_are_free_or_statistics() {
    let x = Fact::fixed(DType::F32, &[2, 3, 4]);
    let attributes =
        |keep| Attributes::new().with("axes", Attr::Ints(vec![1])).with("keepdims", Attr::Int(keep));
    for (name, statistic) in [("ReduceSum", false), ("ReduceMean", true), ("ReduceMax", true)] {
        for (keep, last) in [(1, 2), (0, 1)] {
            let op = op(name, 11, attributes(keep));
            let out = op.infer(&[Some(&x)]).unwrap();
            let c = op.couple(&[Some(&x)], &out);
            assert_eq!(c.links.len(), 2);
            assert!(c.links.iter().any(|l| l.a == (Port::In(0), 2) && l.b == (Port::Out(0), last)));
            assert_eq!(c.free, [(Port::In(0), 1)]);
            assert_eq!(c.statistics.contains(&(Port::In(0), 1)), statistic);
        }
    }
}
