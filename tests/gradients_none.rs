//! Operators that have no gradient by nature: each is named, with the reason, where one is asked for
//! through it. What depends on shapes alone is no such place.

use std::collections::BTreeSet;
use tinsmith::execute::{Executor, Overrides};
use tinsmith::graph::{Edit, Graph, Type};
use tinsmith::ops::{self, Attr, Attributes, Barrier, Dim};
use tinsmith::tensor::{DType, Tensor};

fn f32s(shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>();
    Tensor::from_vec(shape.to_vec(), (0..n).map(|i| i as f32 + 1.0).collect()).unwrap()
}

fn u8s(shape: &[usize]) -> Tensor {
    Tensor::from_vec(shape.to_vec(), vec![1u8; shape.iter().product()]).unwrap()
}

fn bools() -> Tensor {
    Tensor::from_bools(vec![2, 2], vec![true, false, true, true]).unwrap()
}

/// What the operator reads, by its name.
fn inputs(name: &str) -> Vec<Tensor> {
    let (f, u) = (f32s(&[2, 2]), u8s(&[2, 2]));
    let (scale, zero) = (f32s(&[]), u8s(&[]));
    let image = (u8s(&[1, 1, 2, 2]), u8s(&[1, 1, 1, 1]));
    let quantised = |a: Tensor, b: Tensor| {
        let (scale, zero) = (&scale, &zero);
        [&a, scale, zero, &b, scale, zero, scale, zero].map(Tensor::clone).to_vec()
    };
    match name {
        "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => vec![f.clone(), f],
        "And" | "Or" | "Xor" => vec![bools(), bools()],
        "Not" => vec![bools()],
        "BitShift" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" => vec![u.clone(), u],
        "BitwiseNot" => vec![u],
        "MatMulInteger" => vec![u.clone(), u],
        "ConvInteger" => vec![image.0, image.1],
        "QLinearMatMul" | "QLinearAdd" | "QLinearMul" => quantised(u.clone(), u),
        "QLinearGlobalAveragePool" | "QLinearAveragePool" => {
            vec![image.0, scale.clone(), zero.clone(), scale, zero]
        }
        "QLinearSigmoid" | "QLinearLeakyRelu" => vec![u, scale.clone(), zero.clone(), scale, zero],
        "QLinearConcat" => [&scale, &zero, &u, &scale, &zero].map(Tensor::clone).to_vec(),
        "QGemm" => {
            let bias = Tensor::from_vec(vec![2], vec![1i32, 2]).unwrap();
            [&u, &scale, &zero, &u, &scale, &zero, &bias, &scale, &zero].map(Tensor::clone).to_vec()
        }
        "MatMulIntegerToFloat" => [&u, &u, &scale, &scale, &zero, &zero].map(Tensor::clone).to_vec(),
        "DynamicQuantizeLSTM" => {
            let length = Tensor::from_vec(vec![1], vec![1i32]).unwrap();
            let (state, of_one) = (f32s(&[1, 1, 1]), [f32s(&[1]), u8s(&[1])]);
            let weights = [u8s(&[1, 2, 4]), u8s(&[1, 1, 4])];
            [vec![f32s(&[1, 1, 2])], weights.to_vec(), vec![f32s(&[1, 8]), length, state.clone(), state]]
                .into_iter()
                .flatten()
                .chain([f32s(&[1, 3])].into_iter().chain(of_one.clone()).chain(of_one))
                .collect()
        }
        "QLinearConv" => quantised(image.0, image.1),
        "QuantizeLinear" => vec![f, scale, zero],
        "DequantizeLinear" => vec![u, scale, zero],
        _ => vec![f],
    }
}

/// What one operator or another must have.
fn attributes(name: &str) -> Attributes {
    let some = Attributes::new().with("axis", Attr::Int(0)).with("kernel_shape", Attr::Ints(vec![1, 1]));
    match name {
        "BitShift" => some.with("direction", Attr::Str(b"LEFT".to_vec())),
        _ => some,
    }
}

/// A graph of one node `asked`, all of whose inputs come from outside.
fn alone(spec: &ops::Spec) -> (Graph, Vec<(String, Tensor)>) {
    let mut edit = Edit::new("alone", &[(spec.domain, spec.opsets.1)]);
    let given: Vec<(String, Tensor)> =
        inputs(spec.name).into_iter().enumerate().map(|(i, t)| (format!("x{i}"), t)).collect();
    let ids: Vec<_> = given
        .iter()
        .map(|(name, t)| {
            let shape = t.shape().iter().map(|n| Dim::from(*n)).collect();
            edit.add_input(name, Type::Tensor { dtype: t.dtype(), shape: Some(shape) })
        })
        .collect();
    let y = edit.add_op(spec.name, &ids, attributes(spec.name), "asked");
    edit.node_mut(0).domain = spec.domain.into();
    edit.add_output(y);
    (edit.commit().unwrap(), given)
}

#[test]
fn each_is_named_with_its_reason_where_a_gradient_is_asked_for() {
    let mut seen = BTreeSet::new();
    for spec in ops::specs() {
        let Ok(op) = (spec.parse)(&attributes(spec.name), spec.opsets.1) else { continue };
        let Some(why) = op.barrier().filter(|b| *b != Barrier::Shapes) else { continue };
        assert!(!op.differentiable(), "{} has a gradient and a reason for none", spec.name);
        let (graph, given) = alone(spec);
        let wanted: Vec<_> = given.iter().map(|(name, _)| graph.find(name).unwrap()).collect();
        let executor = Executor::new(&graph).unwrap();
        let tape = executor.forward(&given, &Overrides::new(), &wanted).unwrap();
        let shape = tape.outputs()[0].shape().to_vec();
        let seed = candle_core::Tensor::ones(shape, candle_core::DType::F32, &candle_core::Device::Cpu);
        let e = tape.backward(vec![(0, seed.unwrap())]).unwrap_err();
        assert_eq!((e.code(), e.kind().exit_code()), ("NO-GRADIENT", 4), "{e}");
        let text = e.to_string();
        assert!(text.contains(spec.name) && text.contains(&why.to_string()), "{text}");
        assert!(text.contains("asked"), "the node is named: {text}");
        seen.insert(spec.name);
    }
    assert!(seen.len() >= 29, "{} operators: {seen:?}", seen.len());
}

/// What is filled to the shape of a hidden value is multiplied with it: the gradient flows past it.
#[test]
fn constants_of_a_computed_shape_stop_no_gradient() {
    let mut edit = Edit::new("shapes", &[("", 17)]);
    let ty = Type::Tensor { dtype: DType::F32, shape: Some(vec![Dim::symbol("n"), Dim::from(2usize)]) };
    let x = edit.add_input("x", ty);
    let w = edit.add_initializer("w", Tensor::from_vec(vec![2, 2], vec![1f32, 2.0, 3.0, 4.0]).unwrap());
    let h = edit.add_op("MatMul", &[x, w], Attributes::new(), "h");
    let shape = edit.add_op("Shape", &[h], Attributes::new(), "shape");
    let value = Attr::Tensor(Tensor::from_vec(vec![1], vec![3f32]).unwrap());
    let filled = edit.add_op("ConstantOfShape", &[shape], Attributes::new().with("value", value), "filled");
    let eye = edit.add_op("EyeLike", &[h], Attributes::new(), "eye");
    let product = edit.add_op("Mul", &[h, filled], Attributes::new(), "product");
    let y = edit.add_op("Add", &[product, eye], Attributes::new(), "y");
    edit.add_output(y);
    let graph = edit.commit().unwrap();
    let executor = Executor::new(&graph).unwrap();
    let given = [("x".to_string(), Tensor::from_vec(vec![1, 2], vec![1f32, 10.0]).unwrap())];
    let w = graph.find("w").unwrap();
    let tape = executor.forward(&given, &Overrides::new(), &[w]).unwrap();
    let ones = candle_core::Tensor::ones((1, 2), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    let grads = tape.backward(vec![(0, ones)]).unwrap();
    assert_eq!(grads[&w].to_vec2::<f32>().unwrap(), [[3.0, 3.0], [30.0, 30.0]]);
}
