//! What cannot be computed again is kept.

use super::*;
use crate::error::Result;
use crate::execute::{Executor, Overrides, Tape};
use crate::graph::{Edit, Type};
use crate::ops::Barrier;
use crate::ops::{Attributes, Dim, Fact, Operator};
use crate::tensor::{DType, Tensor, Value};
use candle_core::Tensor as Float;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Another number at each evaluation.
#[derive(Debug)]
struct Draw(Arc<AtomicU32>);

impl Operator for Draw {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        Ok(vec![crate::ops::input(inputs, 0)?.without_value()])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let x = crate::ops::input(inputs, 0)?.float()?;
        let drawn = f64::from(self.0.fetch_add(1, Ordering::Relaxed) + 1);
        Ok(vec![Value::Float((x.ones_like()? * drawn)?)])
    }
    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Shapes)
    }
    fn deterministic(&self) -> bool {
        false
    }
}

/// Products with what is drawn, one behind another; the constants, and the draws so far.
fn drawing() -> (Graph, Vec<ValueId>, Arc<AtomicU32>) {
    let draws = Arc::new(AtomicU32::new(0));
    let mut edit = Edit::new("g", &[("", 17)]);
    let shape = Some(vec![Dim::from(2i64), Dim::from(3i64)]);
    let mut x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape });
    let mut wanted = vec![];
    for i in 0..6 {
        let w = Tensor::from_vec(vec![3, 3], (0..9).map(|k| 0.1 * (k + i) as f32 - 0.4).collect()).unwrap();
        wanted.push(edit.add_initializer(&format!("w{i}"), w));
        let y = edit.add_op("MatMul", &[x, wanted[i]], Attributes::new(), &format!("y{i}"));
        let drawn = edit.add_value(&format!("drawn{i}"), None);
        let mut node = Node::new("Draw", vec![Some(x)], vec![Some(drawn)]);
        node.op = Some(Arc::new(Draw(draws.clone())));
        edit.add_node(node);
        x = edit.add_op("Mul", &[y, drawn], Attributes::new(), &format!("z{i}"));
    }
    edit.add_output(x);
    (edit.commit().unwrap(), wanted, draws)
}

#[test]
fn what_is_drawn_is_kept() {
    let (graph, wanted, draws) = drawing();
    let executor = Executor::new(&graph).unwrap();
    let inputs =
        [("x".to_string(), Tensor::from_vec(vec![2, 3], vec![1f32, -2.0, 0.5, 3.0, 1.5, -1.0]).unwrap())];
    let none = Overrides::new();
    let sizes = executor.sizes(&inputs, &none, &mut |_, _| Ok(())).unwrap();
    let gradients = |count: usize| {
        draws.store(0, Ordering::Relaxed);
        let segments = match count {
            1 => Segments::whole(&graph, &wanted),
            _ => Segments::cut(&graph, &wanted, &sizes, count),
        };
        assert_eq!(segments.len() > 1, count > 1);
        let tape: Tape<'_> =
            executor.forward_in(&Arc::new(segments), &inputs, &none, &mut |_| Ok(())).unwrap();
        let (mut found, mut again) = (vec![], 0);
        let seed = tape.outputs()[0].float().unwrap().ones_like().unwrap();
        let mut take = |g: crate::execute::Gradient<'_>| {
            let grad: Float = g.grad;
            found.push((g.value, grad.flatten_all()?.to_vec1::<f32>()?));
            Ok(())
        };
        tape.backward_watched(vec![(0, seed)], &mut take, &mut |step| {
            again += usize::from(step.again);
            assert!(!(step.again && step.node.is("Draw")));
            Ok(())
        })
        .unwrap();
        assert_eq!((draws.load(Ordering::Relaxed), again > 0), (6, count > 1));
        found
    };
    let plain = gradients(1);
    assert_eq!(plain.len(), 6);
    [2, 3, 5].into_iter().for_each(|count| assert_eq!(gradients(count), plain, "{count} segments"));
}
