//! Executor behaviour on small graphs.

use super::*;
use crate::graph::{Edit, Node};
use crate::ops::{Attributes, Dim};
use crate::tensor::DType;

fn f32s(shape: &[usize], v: Vec<f32>) -> Tensor {
    Tensor::from_vec(shape.to_vec(), v).unwrap()
}

fn residual() -> Graph {
    let mut edit = Edit::new("g", &[("", 17)]);
    let x = edit.add_input(
        "x",
        Type::Tensor { dtype: DType::F32, shape: Some(vec![Dim::symbol("n"), Dim::from(2i64)]) },
    );
    let b = edit.add_initializer("b", f32s(&[2], vec![1.0, -3.0]));
    let y = edit.add_op("Add", &[x, b], Attributes::new(), "y");
    let r = edit.add_op("Relu", &[y], Attributes::new(), "r");
    let z = edit.add_op("Add", &[r, x], Attributes::new(), "z");
    edit.add_output(z);
    edit.commit().unwrap()
}

#[test]
fn runs_checks_inputs_and_taps() {
    let graph = residual();
    let executor = Executor::new(&graph).unwrap();
    let out = executor.run(&[("x".into(), f32s(&[1, 2], vec![1.0, 2.0]))]).unwrap();
    assert_eq!(out[0].1.to_vec::<f32>().unwrap(), [3.0, 2.0]);
    let mut seen = vec![];
    let x = [("x".to_string(), f32s(&[1, 2], vec![1.0, 2.0]))];
    executor
        .run_tapped(&x, &Overrides::new(), &mut |v, _| {
            seen.push(graph.value_name(v).to_string());
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, ["y", "r", "z"]);
    assert_eq!(executor.run(&[]).unwrap_err().code(), "INPUT-MISSING");
    assert_eq!(executor.run(&[("q".into(), f32s(&[1], vec![1.0]))]).unwrap_err().code(), "INPUT-NAME");
    assert_eq!(executor.run(&[("x".into(), f32s(&[1, 3], vec![1.0; 3]))]).unwrap_err().code(), "INPUT-SHAPE");
}

#[test]
fn gradients_flow_through_both_branches_of_a_residual() {
    let graph = residual();
    let executor = Executor::new(&graph).unwrap();
    let (x, b) = (graph.find("x").unwrap(), graph.find("b").unwrap());
    let input = [("x".to_string(), f32s(&[2, 2], vec![1.0, 2.0, -5.0, 4.0]))];
    let tape = executor.forward(&input, &Overrides::new(), &[x, b]).unwrap();
    let seed = candle_core::Tensor::ones((2, 2), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    let grads = tape.backward(vec![(0, seed)]).unwrap();
    assert_eq!(grads[&x].to_vec2::<f32>().unwrap(), [[2.0, 1.0], [1.0, 2.0]]);
    assert_eq!(grads[&b].to_vec1::<f32>().unwrap(), [1.0, 1.0]);
}

#[test]
fn an_unknown_operator_is_named() {
    let mut edit = residual().edit();
    let z = edit.graph().find("z").unwrap();
    let w = edit.add_value("w", None);
    edit.add_node(Node::new("Frobnicate", vec![Some(z)], vec![Some(w)]).named("frob").in_domain("my.domain"));
    edit.add_output(w);
    let error = Executor::new(&edit.commit().unwrap()).unwrap_err();
    assert_eq!((error.code(), error.node_name()), ("OP-UNKNOWN", Some("frob")));
}
