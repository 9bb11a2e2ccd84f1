//! Each pattern in its variants is one step and computes what its nodes do; what only looks like one stays
//! as it is.

mod activation;
mod attention;
mod norm;

use crate::execute::{Executor, Overrides, Seen, Segments};
use crate::graph::{Edit, Graph, Node, Type, ValueId};
use crate::ops::{Attr, Attributes, Dim};
use crate::tensor::{DType, Tensor, Value};
use activation::gelu_by_erf;
use candle_core::{Device, Tensor as Float};
use norm::{LAYER, norm};

/// How a pattern is written.
#[derive(Debug, Clone, Copy)]
struct Style {
    /// From 18 on, axes are an input.
    opset: i64,
    dtype: DType,
    /// Constants are in nodes instead of initialisers.
    held: bool,
    /// Operands of sums and products change sides.
    swapped: bool,
}

const PLAIN: Style = Style { opset: 18, dtype: DType::F32, held: false, swapped: false };

fn styles() -> Vec<Style> {
    let mut all = vec![];
    for opset in [13, 18] {
        for dtype in [DType::F32, DType::F64] {
            for (held, swapped) in [(false, false), (true, true)] {
                all.push(Style { opset, dtype, held, swapped });
            }
        }
    }
    all
}

/// A graph in the making, with the elements of its inputs.
struct Net {
    edit: Edit,
    style: Style,
    inputs: Vec<(String, Tensor)>,
    wanted: Vec<ValueId>,
    count: u64,
}

/// Numbers between -1 and 1.
fn noise(n: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0
        })
        .collect()
}

impl Net {
    fn new(style: Style) -> Net {
        let edit = Edit::new("g", &[("", style.opset)]);
        Net { edit, style, inputs: vec![], wanted: vec![], count: 0 }
    }
    fn floats(&self, shape: &[usize], v: Vec<f64>) -> Tensor {
        match self.style.dtype {
            DType::F64 => Tensor::from_vec(shape.to_vec(), v).unwrap(),
            _ => {
                Tensor::from_vec(shape.to_vec(), v.into_iter().map(|x| x as f32).collect::<Vec<_>>()).unwrap()
            }
        }
    }
    fn fresh(&mut self) -> String {
        self.count += 1;
        format!("v{}", self.count)
    }
    /// An input whose sizes below zero are symbols; it is given as three there.
    fn input(&mut self, shape: &[i64], scale: f64) -> ValueId {
        let name = self.fresh();
        let dim = |n: &i64| if *n < 0 { Dim::symbol(&format!("n{n}")) } else { Dim::from(*n) };
        let ty = Type::Tensor { dtype: self.style.dtype, shape: Some(shape.iter().map(dim).collect()) };
        let v = self.edit.add_input(&name, ty);
        let sizes: Vec<usize> = shape.iter().map(|n| if *n < 0 { 3 } else { *n as usize }).collect();
        let data = noise(sizes.iter().product(), self.count).into_iter().map(|x| scale * x).collect();
        self.inputs.push((name, self.floats(&sizes, data)));
        self.wanted.push(v);
        v
    }
    fn weight(&mut self, shape: &[usize]) -> ValueId {
        let name = self.fresh();
        let data = noise(shape.iter().product(), self.count);
        let tensor = self.floats(shape, data);
        let v = self.edit.add_initializer(&name, tensor);
        self.wanted.push(v);
        v
    }
    fn constant(&mut self, tensor: Tensor) -> ValueId {
        let name = self.fresh();
        match self.style.held {
            false => self.edit.add_initializer(&name, tensor),
            true => self.edit.add_op(
                "Constant",
                &[],
                Attributes::new().with("value", Attr::Tensor(tensor)),
                &name,
            ),
        }
    }
    fn number(&mut self, x: f64) -> ValueId {
        let tensor = self.floats(&[], vec![x]);
        self.constant(tensor)
    }
    fn with(&mut self, op: &str, inputs: &[ValueId], attributes: Attributes) -> ValueId {
        let name = self.fresh();
        self.edit.add_op(op, inputs, attributes, &name)
    }
    fn op(&mut self, op: &str, inputs: &[ValueId]) -> ValueId {
        match (op, inputs) {
            ("Add" | "Mul", [a, b]) if self.style.swapped => self.with(op, &[*b, *a], Attributes::new()),
            _ => self.with(op, inputs, Attributes::new()),
        }
    }
    /// A node with a constant number as its second operand.
    fn by(&mut self, op: &str, x: ValueId, number: f64) -> ValueId {
        let number = self.number(number);
        self.op(op, &[x, number])
    }
    fn mean(&mut self, x: ValueId, axes: &[i64]) -> ValueId {
        if self.style.opset < 18 {
            return self.with("ReduceMean", &[x], Attributes::new().with("axes", Attr::Ints(axes.to_vec())));
        }
        let axes = self.constant(Tensor::from_vec(vec![axes.len()], axes.to_vec()).unwrap());
        self.op("ReduceMean", &[x, axes])
    }
    fn turned(&mut self, x: ValueId, perm: &[i64]) -> ValueId {
        self.with("Transpose", &[x], Attributes::new().with("perm", Attr::Ints(perm.to_vec())))
    }
    fn softmax(&mut self, x: ValueId, axis: i64) -> ValueId {
        self.with("Softmax", &[x], Attributes::new().with("axis", Attr::Int(axis)))
    }
    fn ends(mut self, y: ValueId) -> Made {
        self.edit.add_output(y);
        Made {
            graph: self.edit.commit().unwrap(),
            inputs: self.inputs,
            wanted: self.wanted,
            style: self.style,
        }
    }
}

struct Made {
    graph: Graph,
    inputs: Vec<(String, Tensor)>,
    wanted: Vec<ValueId>,
    style: Style,
}

fn fused(graph: &Graph) -> Vec<(String, usize)> {
    let executor = Executor::new(graph).unwrap();
    let steps = executor.plan().steps().iter().filter(|s| s.nodes().len() > 1);
    steps.map(|s| (s.name().to_string(), s.nodes().len())).collect()
}

fn flat(t: &Float) -> Vec<f64> {
    t.to_dtype(candle_core::DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

impl Made {
    /// One step of this name covers so many nodes, and outputs and gradients are those of the nodes.
    fn is(&self, name: &str, nodes: usize) {
        assert_eq!(fused(&self.graph), [(name.to_string(), nodes)], "{:?}", self.style);
        self.agrees();
    }
    fn stays(&self) {
        assert_eq!(fused(&self.graph), [], "{:?}", self.style);
    }
    fn agrees(&self) {
        let tolerance = if self.style.dtype == DType::F64 { 1e-12 } else { 1e-6 };
        let near = |what: &str, a: &Float, b: &Float| {
            assert_eq!(a.dims(), b.dims(), "{what}");
            let (a, b) = (flat(a), flat(b));
            let size = b.iter().map(|x| x * x).sum::<f64>().sqrt();
            let far = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
            assert!(size > 0.0 && far <= tolerance * size, "{what}: {far:e} of {size:e}, {:?}", self.style);
        };
        let executor = Executor::new(&self.graph).unwrap();
        let none = Overrides::new();
        let mut shown = 0;
        let plain = executor.run_tapped(&self.inputs, &none, Seen::All, &mut |_, _| {
            shown += 1;
            Ok(())
        });
        let plain = plain.unwrap();
        assert_eq!(shown, self.graph.nodes().len());
        let own = Value::load(&executor.run(&self.inputs).unwrap()[0].1).unwrap();
        near("output", own.float().unwrap(), plain[0].float().unwrap());

        let y = plain[0].float().unwrap();
        let seed = Float::from_vec(noise(y.elem_count(), 77), y.dims(), &Device::Cpu).unwrap();
        let seed = seed.to_dtype(y.dtype()).unwrap();
        let tape = executor.forward_tapped(&self.inputs, &none, &self.wanted, &mut |_, _| Ok(())).unwrap();
        let plain = tape.backward(vec![(0, seed.clone())]).unwrap();
        let tape = executor.forward(&self.inputs, &none, &self.wanted).unwrap();
        let own = tape.backward(vec![(0, seed)]).unwrap();
        assert_eq!((own.len(), plain.len()), (self.wanted.len(), self.wanted.len()), "{:?}", self.style);
        for v in &self.wanted {
            near(&format!("gradient of {}", self.graph.value_name(*v)), &own[v], &plain[v]);
        }
    }
}

/// Segments are of steps: what is computed again is fused too, with the same bits.
#[test]
fn steps_are_evaluated_again_as_steps() {
    let mut net = Net::new(PLAIN);
    let mut y = net.input(&[3, 6], 2.0);
    for _ in 0..4 {
        y = norm(&mut net, y, &LAYER).y;
        let w = net.weight(&[6, 6]);
        y = net.op("MatMul", &[y, w]);
        y = gelu_by_erf(&mut net, y, 0);
    }
    let made = net.ends(y);
    let executor = Executor::new(&made.graph).unwrap();
    let none = Overrides::new();
    assert_eq!(executor.plan().steps().len(), 12);
    let sizes = executor.sizes(&made.inputs, &none, &mut |_, _| Ok(())).unwrap();
    let gradients = |count: usize| {
        let plan = executor.plan_towards(&made.wanted, &none);
        let segments = Segments::cut_of(&made.graph, plan, &made.wanted, &sizes, count);
        assert_eq!(segments.len(), count);
        let tape = executor.forward_in(&segments.into(), &made.inputs, &none, &mut |_| Ok(())).unwrap();
        let seed = tape.outputs()[0].float().unwrap().ones_like().unwrap();
        let (mut found, mut again) = (vec![], vec![]);
        let mut take = |g: crate::execute::Gradient<'_>| {
            found.push((g.value, g.grad.flatten_all()?.to_vec1::<f32>()?));
            Ok(())
        };
        let mut watch = |walk: crate::execute::Walk<'_>| {
            again.extend(walk.again.then(|| walk.step.name().to_string()));
            Ok(())
        };
        tape.backward_watched(vec![(0, seed)], &mut take, &mut watch).unwrap();
        (found, again)
    };
    let (plain, again) = gradients(1);
    assert_eq!((plain.len(), again.len()), (made.wanted.len(), 0));
    for count in [2, 3] {
        let (found, again) = gradients(count);
        assert!(found == plain, "{count} segments");
        assert!(again.iter().any(|n| n == "LayerNormalization" || n == "Gelu"), "{again:?}");
        assert!(!again.iter().any(|n| n == "Erf" || n == "Sqrt"), "{again:?}");
    }
}

#[test]
fn values_that_a_run_needs_are_computed() {
    let mut net = Net::new(PLAIN);
    let x = net.input(&[3, 6], 2.0);
    let first = norm(&mut net, x, &LAYER);
    let gate = net.op("Sigmoid", &[first.y]);
    let y = net.op("Mul", &[first.y, gate]);
    let mut made = net.ends(y);
    assert_eq!(fused(&made.graph), [("LayerNormalization".to_string(), 9), ("Swish".to_string(), 2)]);
    let executor = Executor::new(&made.graph).unwrap();
    let none = Overrides::new();
    let count = |seen: Seen<'_>| {
        let mut shown = vec![];
        let mut tap = |v: ValueId, _: &Value| {
            shown.push(v);
            Ok(())
        };
        executor.run_tapped(&made.inputs, &none, seen, &mut tap).unwrap();
        shown
    };
    assert_eq!(count(Seen::All).len(), made.graph.nodes().len());
    assert_eq!(count(Seen::Of(&|_| false)), [first.y, y]);
    assert_eq!(count(Seen::Of(&|v| v == gate)), [first.y, gate, y]);
    assert!(count(Seen::Of(&|v| v == first.variance)).contains(&first.variance));
    let mut steps = vec![];
    executor
        .run_watched(&made.inputs, &none, &mut |step| {
            steps.push(step.title());
            Ok(())
        })
        .unwrap();
    assert_eq!(
        steps,
        [
            "LayerNormalization (ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, Mul, Add)",
            "Swish (Sigmoid, Mul)"
        ]
    );
    // A gradient of an inner value, and of a number that the pattern relies on.
    let epsilon = made
        .graph
        .initializers()
        .find(|(_, t)| t.shape().is_empty() && t.to_f64s().unwrap()[0] < 0.1)
        .unwrap()
        .0;
    made.wanted.extend([first.variance, gate, epsilon]);
    made.agrees();
    // A caller's epsilon counts.
    let other: Overrides = [(epsilon, Value::load(&Tensor::scalar(4f32)).unwrap())].into();
    let plain = executor.run_tapped(&made.inputs, &other, Seen::All, &mut |_, _| Ok(())).unwrap();
    let own = executor.run_watched(&made.inputs, &other, &mut |_| Ok(())).unwrap();
    let elements = |v: &[Value]| v[0].to_tensor().unwrap().to_f32s().unwrap();
    assert_eq!(elements(&own), elements(&plain));
    assert_ne!(elements(&own), executor.run(&made.inputs).unwrap()[0].1.to_f32s().unwrap());
}
