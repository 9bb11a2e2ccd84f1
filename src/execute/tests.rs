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
        .run_tapped(&x, &Overrides::new(), Seen::All, &mut |v, _| {
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

fn ones(shape: (usize, usize)) -> candle_core::Tensor {
    candle_core::Tensor::ones(shape, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap()
}

#[test]
fn gradients_stream_with_their_forward_values_and_a_sink_may_stop_them() {
    // y = x W1; r = relu(y); z = r W2; out = z W1, so that W1 is complete only at the start.
    let ty = || Type::Tensor { dtype: DType::F32, shape: Some(vec![Dim::from(2i64), Dim::from(2i64)]) };
    let mut edit = Edit::new("g", &[("", 17)]);
    let x = edit.add_input("x", ty());
    let w1 = edit.add_initializer("w1", f32s(&[2, 2], vec![1.0, 0.5, -1.0, 2.0]));
    let w2 = edit.add_initializer("w2", f32s(&[2, 2], vec![0.5, 1.0, 3.0, -1.0]));
    let unread = edit.add_initializer("unread", f32s(&[2], vec![1.0, 1.0]));
    let y = edit.add_op("MatMul", &[x, w1], Attributes::new(), "y");
    let r = edit.add_op("Relu", &[y], Attributes::new(), "r");
    let z = edit.add_op("MatMul", &[r, w2], Attributes::new(), "z");
    let out = edit.add_op("MatMul", &[z, w1], Attributes::new(), "out");
    edit.add_output(out);
    let graph = edit.commit().unwrap();
    let executor = Executor::new(&graph).unwrap();
    let input = [("x".to_string(), f32s(&[2, 2], vec![1.0, 2.0, -3.0, 1.0]))];
    let wanted = [w1, w2, r, z, out, unread];
    let forward = |tap: &mut Tap<'_>| executor.forward_tapped(&input, &Overrides::new(), &wanted, tap);

    let mut tapped = HashMap::new();
    let tape = forward(&mut |v, value| {
        tapped.insert(v, value.to_tensor()?.to_vec::<f32>()?);
        Ok(())
    })
    .unwrap();
    assert_eq!(tapped.len(), 4);
    let mut seen = vec![];
    let mut streamed = HashMap::new();
    tape.backward_into(vec![(0, ones((2, 2)))], &mut |g| {
        seen.push(g.value);
        if let Some(value) = tapped.get(&g.value) {
            assert_eq!(&g.forward.to_tensor()?.to_vec::<f32>()?, value);
        }
        streamed.insert(g.value, g.grad.to_vec2::<f32>()?);
        Ok(())
    })
    .unwrap();
    assert_eq!(seen, [out, z, w2, r, w1]);
    let all = forward(&mut |_, _| Ok(())).unwrap().backward(vec![(0, ones((2, 2)))]).unwrap();
    assert_eq!(all.len(), streamed.len());
    all.iter().for_each(|(v, g)| assert_eq!(g.to_vec2::<f32>().unwrap(), streamed[v]));
    // d out / d z = ones W1^T, then through W2, the rectifier and both uses of W1, by hand.
    assert_eq!(streamed[&z], [[1.5, 1.0], [1.5, 1.0]]);
    assert_eq!(streamed[&r], [[1.75, 3.5], [1.75, 3.5]]);
    assert_eq!(streamed[&w1], [[15.0, 15.0 - 7.0], [-5.0, -5.0 + 10.5]]);

    let stop = || Error::invalid("STOP", "stopped");
    let mut calls = 0;
    let stopped = forward(&mut |_, _| Ok(())).unwrap().backward_into(vec![(0, ones((2, 2)))], &mut |_| {
        calls += 1;
        if calls == 2 { Err(stop()) } else { Ok(()) }
    });
    assert_eq!((stopped.unwrap_err().code(), calls), ("STOP", 2));
    assert_eq!(forward(&mut |v, _| if v == r { Err(stop()) } else { Ok(()) }).unwrap_err().code(), "STOP");
}

#[test]
fn sums_of_gradients_leave_what_came_in_as_it_was() {
    // r is read four times; what flows into additions is one tensor for both sides.
    let mut edit = residual().edit();
    let (z, r) = (edit.graph().find("z").unwrap(), edit.graph().find("r").unwrap());
    let a = edit.add_op("Add", &[r, r], Attributes::new(), "a");
    let b = edit.add_op("Add", &[a, r], Attributes::new(), "b");
    let c = edit.add_op("Add", &[b, z], Attributes::new(), "c");
    edit.add_output(c);
    let graph = edit.commit().unwrap();
    let executor = Executor::new(&graph).unwrap();
    let input = [("x".to_string(), f32s(&[1, 2], vec![1.0, 4.0]))];
    let wanted = [r, a, b, z];
    let tape = executor.forward(&input, &Overrides::new(), &wanted).unwrap();
    let seed = ones((1, 2));
    let grads = tape.backward(vec![(1, seed.clone())]).unwrap();
    let of = |v: ValueId| grads[&v].to_vec2::<f32>().unwrap();
    assert_eq!([of(r), of(a), of(b), of(z)], [4.0, 1.0, 1.0, 1.0].map(|g| [[g; 2]]));
    assert_eq!(seed.to_vec2::<f32>().unwrap(), [[1.0; 2]]);
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
