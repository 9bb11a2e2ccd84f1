//! Each pattern in its variants is one step and computes what its nodes do; what only looks like one stays
//! as it is.

use crate::execute::{Executor, Overrides, Seen, Segments};
use crate::graph::{Edit, Graph, Node, Type, ValueId};
use crate::ops::{Attr, Attributes, Dim};
use crate::tensor::{DType, Tensor, Value};
use candle_core::{Device, Tensor as Float};

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

/// The root that divides, as `how` writes it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Root {
    Div,
    Reciprocal,
    OneOver,
    Power,
}

struct Norm {
    centred: bool,
    axes: &'static [i64],
    exponent: f64,
    square_by_mul: bool,
    root: Root,
    scale: bool,
    bias: bool,
}

const LAYER: Norm = Norm {
    centred: true,
    axes: &[-1],
    exponent: 2.0,
    square_by_mul: false,
    root: Root::Div,
    scale: true,
    bias: true,
};

/// Values of a norm that is written out.
struct Parts {
    d: ValueId,
    variance: ValueId,
    y: ValueId,
}

fn norm(net: &mut Net, x: ValueId, n: &Norm) -> Parts {
    let d = match n.centred {
        true => {
            let mean = net.mean(x, n.axes);
            net.op("Sub", &[x, mean])
        }
        false => x,
    };
    let square = match n.square_by_mul {
        true => net.op("Mul", &[d, d]),
        false => net.by("Pow", d, n.exponent),
    };
    let variance = net.mean(square, n.axes);
    let sum = net.by("Add", variance, 1e-3);
    let mut y = match n.root {
        Root::Power => {
            let inverse = net.by("Pow", sum, -0.5);
            net.op("Mul", &[d, inverse])
        }
        how => {
            let root = net.op("Sqrt", &[sum]);
            match how {
                Root::Div => net.op("Div", &[d, root]),
                _ => {
                    let inverse = match how {
                        Root::Reciprocal => net.op("Reciprocal", &[root]),
                        _ => {
                            let one = net.number(1.0);
                            net.op("Div", &[one, root])
                        }
                    };
                    net.op("Mul", &[d, inverse])
                }
            }
        }
    };
    if n.scale {
        let scale = net.weight(&[6]);
        y = net.op("Mul", &[y, scale]);
    }
    if n.bias {
        let bias = net.weight(&[6]);
        y = net.op("Add", &[y, bias]);
    }
    Parts { d, variance, y }
}

#[test]
fn norms_are_one_step_in_all_their_forms() {
    for style in styles() {
        for root in [Root::Div, Root::Reciprocal, Root::OneOver, Root::Power] {
            let of_root = match root {
                Root::Div => 2,
                Root::Power => 2,
                _ => 3,
            };
            for square_by_mul in [false, true] {
                let mut net = Net::new(style);
                let x = net.input(&[-1, -2, 6], 2.0);
                let y = norm(&mut net, x, &Norm { root, square_by_mul, ..LAYER }).y;
                net.ends(y).is("LayerNormalization", 7 + of_root);

                let mut net = Net::new(style);
                let x = net.input(&[-1, -2, 6], 2.0);
                let rms = Norm { centred: false, bias: false, root, square_by_mul, ..LAYER };
                let y = norm(&mut net, x, &rms).y;
                net.ends(y).is("RMSNormalization", 4 + of_root);
            }
        }
        for (scale, bias, nodes) in [(false, false, 7), (true, false, 8), (false, true, 8)] {
            let mut net = Net::new(style);
            let x = net.input(&[3, 6], 2.0);
            let y = norm(&mut net, x, &Norm { scale, bias, ..LAYER }).y;
            net.ends(y).is("LayerNormalization", nodes);
        }
        // Over several axes, named from either end.
        let mut net = Net::new(style);
        let x = net.input(&[-1, 3, 6], 2.0);
        let y = norm(&mut net, x, &Norm { axes: &[-1, 1], ..LAYER }).y;
        net.ends(y).is("LayerNormalization", 9);
    }
}

#[test]
fn what_only_resembles_a_norm_stays() {
    let made = |n: Norm| {
        let mut net = Net::new(PLAIN);
        let x = net.input(&[-1, 6, 6], 2.0);
        let y = norm(&mut net, x, &n).y;
        net.ends(y)
    };
    made(Norm { exponent: 3.0, ..LAYER }).stays();
    made(Norm { axes: &[1], ..LAYER }).stays();
    made(Norm { axes: &[0, -1], ..LAYER }).stays();
    // The variance is used elsewhere, or is an output.
    let mut net = Net::new(PLAIN);
    let x = net.input(&[-1, 6], 2.0);
    let parts = norm(&mut net, x, &LAYER);
    let y = net.op("Add", &[parts.y, parts.variance]);
    net.ends(y).stays();
    let mut net = Net::new(PLAIN);
    let x = net.input(&[-1, 6], 2.0);
    let parts = norm(&mut net, x, &LAYER);
    net.edit.add_output(parts.variance);
    net.ends(parts.y).stays();
    // The centred value is: what is left is the root mean square of it.
    let mut net = Net::new(PLAIN);
    let x = net.input(&[-1, 6], 2.0);
    let parts = norm(&mut net, x, &LAYER);
    let y = net.op("Add", &[parts.y, parts.d]);
    net.ends(y).is("RMSNormalization", 7);
    // The epsilon may be replaced by the caller.
    let mut net = Net::new(PLAIN);
    let x = net.input(&[-1, 6], 2.0);
    let parts = norm(&mut net, x, &LAYER);
    let epsilon =
        net.edit.graph().initializers().find(|(_, t)| t.shape().is_empty() && t.to_f64s().unwrap()[0] < 0.1);
    let epsilon = epsilon.unwrap().0;
    let made = net.ends(parts.y);
    let mut edit = made.graph.edit();
    let name = edit.graph().value_name(epsilon).to_string();
    let tensor = edit.graph().initializer(epsilon).unwrap().clone();
    let v = edit.add_input("epsilon", Type::Tensor { dtype: DType::F32, shape: Some(vec![]) });
    edit.set_initializer(v, tensor);
    edit.redirect(epsilon, v);
    edit.remove_initializer(epsilon);
    assert_eq!(fused(&edit.commit().unwrap()), [], "{name}");
    // A scale that makes the result larger stays outside.
    let mut net = Net::new(PLAIN);
    let x = net.input(&[3, 6], 2.0);
    let y = norm(&mut net, x, &Norm { scale: false, bias: false, ..LAYER }).y;
    let wide = net.weight(&[2, 1, 6]);
    let y = net.op("Mul", &[y, wide]);
    net.ends(y).is("LayerNormalization", 7);
    // Halves are rounded between nodes.
    let mut net = Net::new(PLAIN);
    let x = net.input(&[3, 6], 2.0);
    let half = net.with("Cast", &[x], Attributes::new().with("to", Attr::Int(10)));
    let gate = net.op("Sigmoid", &[half]);
    let y = net.op("Mul", &[half, gate]);
    net.ends(y).stays();
}

fn gelu_by_erf(net: &mut Net, x: ValueId, order: usize) -> ValueId {
    let inner = match order {
        0 => net.by("Div", x, std::f64::consts::SQRT_2),
        _ => net.by("Mul", x, std::f64::consts::FRAC_1_SQRT_2),
    };
    let bent = net.op("Erf", &[inner]);
    let lifted = net.by("Add", bent, 1.0);
    match order {
        0 => {
            let y = net.op("Mul", &[x, lifted]);
            net.by("Mul", y, 0.5)
        }
        1 => {
            let half = net.by("Mul", x, 0.5);
            net.op("Mul", &[half, lifted])
        }
        _ => {
            let half = net.by("Div", lifted, 2.0);
            net.op("Mul", &[x, half])
        }
    }
}

fn gelu_by_tanh(net: &mut Net, x: ValueId, order: usize) -> ValueId {
    let root = std::f64::consts::FRAC_2_PI.sqrt();
    let inner = match order {
        0 => {
            let cube = net.by("Pow", x, 3.0);
            let cubic = net.by("Mul", cube, 0.044715);
            let sum = net.op("Add", &[x, cubic]);
            net.by("Mul", sum, root)
        }
        _ => {
            let square = net.op("Mul", &[x, x]);
            let square = net.by("Mul", square, 0.044715);
            let lifted = net.by("Add", square, 1.0);
            let line = net.by("Mul", x, root);
            net.op("Mul", &[line, lifted])
        }
    };
    let bent = net.op("Tanh", &[inner]);
    let lifted = net.by("Add", bent, 1.0);
    let y = net.op("Mul", &[x, lifted]);
    net.by("Mul", y, 0.5)
}

#[test]
fn activations_are_one_step_in_all_their_forms() {
    for style in styles() {
        for order in 0..3 {
            let mut net = Net::new(style);
            let x = net.input(&[-1, 40], 4.0);
            let y = gelu_by_erf(&mut net, x, order);
            net.ends(y).is("Gelu", 5);
        }
        for (order, nodes) in [(0, 8), (1, 9)] {
            let mut net = Net::new(style);
            let x = net.input(&[-1, 40], 3.0);
            let y = gelu_by_tanh(&mut net, x, order);
            net.ends(y).is("Gelu", nodes);
        }
        // SiLU, QuickGelu, and the gate of SwiGLU.
        let mut net = Net::new(style);
        let x = net.input(&[-1, 40], 4.0);
        let gate = net.op("Sigmoid", &[x]);
        let y = net.op("Mul", &[x, gate]);
        net.ends(y).is("Swish", 2);
        let mut net = Net::new(style);
        let (x, up) = (net.input(&[-1, 40], 4.0), net.input(&[-1, 40], 1.0));
        let inner = net.by("Mul", x, 1.702);
        let gate = net.op("Sigmoid", &[inner]);
        let y = net.op("Mul", &[x, gate]);
        let y = net.op("Mul", &[y, up]);
        net.ends(y).is("Swish", 3);
        // Hard forms, bounds as attributes and as inputs.
        for (slope, divided_last) in [(1.0, true), (2.0, false)] {
            let mut net = Net::new(style);
            let x = net.input(&[-1, 40], 5.0);
            let moved = net.by("Mul", x, slope);
            let moved = net.by("Add", moved, 3.0 * slope);
            let (low, high) = (net.number(0.0), net.number(6.0 * slope));
            let gate = net.with("Clip", &[moved, low, high], Attributes::new());
            let y = match divided_last {
                true => {
                    let y = net.op("Mul", &[x, gate]);
                    net.by("Div", y, 6.0 * slope)
                }
                false => {
                    let gate = net.by("Div", gate, 6.0 * slope);
                    net.op("Mul", &[gate, x])
                }
            };
            net.ends(y).is("HardSwish", 5);
        }
        let mut net = Net::new(style);
        let x = net.input(&[-1, 40], 5.0);
        let moved = net.by("Add", x, 3.0);
        let (low, high) = (net.number(0.0), net.number(6.0));
        let gate = net.with("Clip", &[moved, low, high], Attributes::new());
        let y = net.by("Div", gate, 6.0);
        net.ends(y).is("HardSigmoid", 3);
        let mut net = Net::new(style);
        let x = net.input(&[-1, 40], 5.0);
        let with = Attributes::new().with("alpha", Attr::Float(0.25));
        let gate = net.with("HardSigmoid", &[x], with);
        let y = net.op("Mul", &[x, gate]);
        net.ends(y).is("HardSwish", 2);
    }
    let old = Style { opset: 10, ..PLAIN };
    let mut net = Net::new(old);
    let x = net.input(&[-1, 40], 5.0);
    let moved = net.by("Add", x, 3.0);
    let with = Attributes::new().with("min", Attr::Float(0.0)).with("max", Attr::Float(6.0));
    let gate = net.with("Clip", &[moved], with);
    let y = net.op("Mul", &[x, gate]);
    let y = net.by("Div", y, 6.0);
    net.ends(y).is("HardSwish", 4);
}

#[test]
fn slopes_at_kinks_are_those_of_the_nodes() {
    for gate_by_clip in [false, true] {
        for alone in [false, true] {
            if alone && !gate_by_clip {
                continue;
            }
            let mut net = Net::new(PLAIN);
            let x = net.input(&[2], 1.0);
            let gate = match gate_by_clip {
                true => {
                    let moved = net.by("Add", x, 3.0);
                    let (low, high) = (net.number(0.0), net.number(6.0));
                    let gate = net.with("Clip", &[moved, low, high], Attributes::new());
                    net.by("Div", gate, 6.0)
                }
                false => net.with("HardSigmoid", &[x], Attributes::new().with("alpha", Attr::Float(0.25))),
            };
            let y = if alone { gate } else { net.op("Mul", &[x, gate]) };
            let kink = if gate_by_clip { 3f32 } else { 2.0 };
            let mut made = net.ends(y);
            made.inputs[0].1 = Tensor::from_vec(vec![2], vec![-kink, kink]).unwrap();
            assert_eq!(fused(&made.graph).len(), 1);
            made.agrees();
        }
    }
}

#[test]
fn what_only_resembles_an_activation_stays() {
    let gelu = |root: f64, one: f64, half: f64, other: bool| {
        let mut net = Net::new(PLAIN);
        let (x, z) = (net.input(&[3, 4], 2.0), net.input(&[3, 4], 2.0));
        let inner = net.by("Div", x, root);
        let bent = net.op("Erf", &[inner]);
        let lifted = net.by("Add", bent, one);
        let y = net.op("Mul", &[if other { z } else { x }, lifted]);
        let y = net.by("Mul", y, half);
        net.ends(y)
    };
    let root = std::f64::consts::SQRT_2;
    gelu(root, 1.0, 0.5, true).stays();
    gelu(1.4, 1.0, 0.5, false).stays();
    gelu(root, 1.1, 0.5, false).stays();
    gelu(root, 1.0, 0.6, false).stays();
    assert_eq!(fused(&gelu(root, 1.0, 0.5, false).graph), [("Gelu".to_string(), 5)]);
    // An inner value is an output, or is used elsewhere.
    let mut net = Net::new(PLAIN);
    let x = net.input(&[3, 4], 2.0);
    let gate = net.op("Sigmoid", &[x]);
    let y = net.op("Mul", &[x, gate]);
    net.edit.add_output(gate);
    net.ends(y).stays();
    let mut net = Net::new(PLAIN);
    let x = net.input(&[3, 4], 2.0);
    let gate = net.op("Sigmoid", &[x]);
    let y = net.op("Mul", &[x, gate]);
    let y = net.op("Sub", &[y, gate]);
    net.ends(y).stays();
    // A number that adds an axis.
    let mut net = Net::new(PLAIN);
    let x = net.input(&[4], 2.0);
    let one = Tensor::from_vec(vec![1, 1], vec![1f32]).unwrap();
    let one = net.constant(one);
    let inner = net.op("Mul", &[x, one]);
    let gate = net.op("Sigmoid", &[inner]);
    let y = net.op("Mul", &[x, gate]);
    net.ends(y).stays();
    // A body reads the gate.
    let mut net = Net::new(PLAIN);
    let x = net.input(&[3, 4], 2.0);
    let gate = net.op("Sigmoid", &[x]);
    let y = net.op("Mul", &[x, gate]);
    let body = |name: &str| {
        let mut inner = Edit::new("body", &[("", 18)]);
        let outer = inner.add_value(name, None);
        let z = inner.add_op("Neg", &[outer], Attributes::new(), "z");
        inner.add_output(z);
        inner.commit_body().unwrap()
    };
    let name = net.edit.graph().value_name(gate).to_string();
    let yes = net.constant(Tensor::from_bools(vec![], vec![true]).unwrap());
    let out = net.edit.add_value("chosen", None);
    let mut choice = Node::new("If", vec![Some(yes)], vec![Some(out)]);
    choice.bodies = vec![("then_branch".into(), body(&name)), ("else_branch".into(), body(&name))];
    net.edit.add_node(choice);
    net.edit.add_output(out);
    net.ends(y).stays();
}

/// How an attention is written out.
#[derive(Clone, Copy)]
struct Parted {
    /// Axes.
    rank: usize,
    /// Keys come as `[batch, positions, heads, size]`.
    flat_keys: bool,
    /// Where the scale is: 0 behind the scores, 1 in front of queries, 2 in front of both.
    scale: usize,
    /// 0 none, 1 added, 2 chosen, 3 chosen the other way round.
    mask: usize,
    axis: i64,
    one_head: bool,
}

const PARTED: Parted = Parted { rank: 4, flat_keys: false, scale: 0, mask: 0, axis: -1, one_head: false };

impl Parted {
    fn nodes(&self) -> usize {
        4 + [1, 1, 2][self.scale] + usize::from(self.mask > 0)
    }
}

/// Shape of a mask, and whether any row rules every key out.
fn attention(net: &mut Net, p: Parted, mask_shape: &[usize], lost: bool, fill: f64) -> ValueId {
    let lead: &[i64] = &[-1, 4][..p.rank - 2];
    let shape = |lead: &[i64], rest: [i64; 2]| [lead, &rest].concat();
    let heads = if p.one_head { vec![-1, 1] } else { lead.to_vec() };
    let mut q = net.input(&shape(lead, [5, 8]), 1.0);
    let mut k = match p.flat_keys {
        true => net.input(&[-1, 7, heads[1], 8], 1.0),
        false => net.input(&shape(&heads, [7, 8]), 1.0),
    };
    let v = net.input(&shape(&heads, [7, 6]), 1.0);
    if p.scale > 0 {
        q = net.by("Mul", q, 0.5);
    }
    if p.scale == 2 {
        k = net.by("Div", k, 2.0);
    }
    let perm: &[i64] = match (p.flat_keys, p.rank) {
        (true, _) => &[0, 2, 3, 1],
        (_, 2) => &[1, 0],
        (_, 3) => &[0, 2, 1],
        _ => &[0, 1, 3, 2],
    };
    let k = net.turned(k, perm);
    let mut scores = net.op("MatMul", &[q, k]);
    if p.scale == 0 {
        scores = net.by("Div", scores, 8f64.sqrt());
    }
    let n: usize = mask_shape.iter().product();
    let width = mask_shape.last().copied().unwrap_or(1);
    let out = |i: usize| i % 3 == 1 && !i.is_multiple_of(width) || lost && i / width == 1;
    match p.mask {
        0 => {}
        1 => {
            let tensor = net.floats(
                mask_shape,
                noise(n, 9).iter().enumerate().map(|(i, x)| if out(i) { fill } else { *x }).collect(),
            );
            let mask = net.constant(tensor);
            scores = net.op("Add", &[scores, mask]);
        }
        way => {
            let keeps = way == 2;
            let bools = (0..n).map(|i| out(i) != keeps).collect();
            let mask = net.constant(Tensor::from_bools(mask_shape.to_vec(), bools).unwrap());
            let fill = net.number(fill);
            scores = net.op("Where", &if keeps { [mask, scores, fill] } else { [mask, fill, scores] });
        }
    }
    let weights = net.softmax(scores, p.axis);
    net.op("MatMul", &[weights, v])
}

#[test]
fn attention_is_one_step_in_all_its_forms() {
    for style in styles() {
        for rank in 2..=4 {
            for scale in 0..3 {
                let mut net = Net::new(style);
                let p = Parted { rank, scale, axis: rank as i64 - 1, ..PARTED };
                let y = attention(&mut net, p, &[], false, 0.0);
                net.ends(y).is("Attention", p.nodes());
            }
        }
        for (flat_keys, one_head) in [(true, false), (false, true), (true, true)] {
            let mut net = Net::new(style);
            let p = Parted { flat_keys, one_head, scale: 2, ..PARTED };
            let y = attention(&mut net, p, &[], false, 0.0);
            net.ends(y).is("Attention", p.nodes());
        }
        for mask in 1..=3 {
            for shape in [&[7][..], &[5, 7], &[5, 1], &[4, 5, 7], &[1, 1, 1, 7], &[1, 4, 5, 7]] {
                for fill in [-1e9, f64::from(f32::MIN)] {
                    let mut net = Net::new(style);
                    let p = Parted { mask, ..PARTED };
                    let y = attention(&mut net, p, shape, false, fill);
                    net.ends(y).is("Attention", p.nodes());
                }
            }
        }
    }
}

/// Softmax over keys that are all ruled out is even where the fill is finite, and not a number where it is
/// not.
#[test]
fn queries_without_keys_get_what_softmax_gives() {
    for style in styles() {
        for (mask, shape) in [(2, &[5, 7][..]), (3, &[4, 5, 7]), (2, &[5, 1])] {
            let mut net = Net::new(style);
            let p = Parted { mask, ..PARTED };
            let y = attention(&mut net, p, shape, true, f64::from(f32::MIN));
            net.ends(y).is("Attention", p.nodes());
        }
        for mask in [1, 2] {
            let mut net = Net::new(style);
            let p = Parted { mask, ..PARTED };
            let y = attention(&mut net, p, &[5, 7], true, f64::NEG_INFINITY);
            let made = net.ends(y);
            assert_eq!(fused(&made.graph).len(), 1);
            let executor = Executor::new(&made.graph).unwrap();
            let none = Overrides::new();
            let plain = executor.run_tapped(&made.inputs, &none, Seen::All, &mut |_, _| Ok(())).unwrap();
            let own = executor.run(&made.inputs).unwrap()[0].1.to_f64s().unwrap();
            let plain = plain[0].to_tensor().unwrap().to_f64s().unwrap();
            assert!(plain.iter().any(|x| x.is_nan()) && plain.iter().any(|x| x.is_finite()));
            for (a, b) in own.iter().zip(&plain) {
                assert!(a.is_nan() == b.is_nan() && (a.is_nan() || (a - b).abs() < 1e-5), "{a} {b}");
            }
        }
    }
}

#[test]
fn a_score_that_is_no_number_shows() {
    let mut net = Net::new(PLAIN);
    let y = attention(&mut net, PARTED, &[], false, 0.0);
    let mut made = net.ends(y);
    let nans = vec![f32::NAN; made.inputs[0].1.len()];
    made.inputs[0].1 = Tensor::from_vec(made.inputs[0].1.shape().to_vec(), nans).unwrap();
    let out = Executor::new(&made.graph).unwrap().run(&made.inputs).unwrap()[0].1.to_f32s().unwrap();
    assert!(out.iter().all(|x| x.is_nan()));
}

#[test]
fn what_only_resembles_an_attention_stays() {
    let made = |p: Parted, shape: &[usize], fill: f64| {
        let mut net = Net::new(PLAIN);
        let y = attention(&mut net, p, shape, false, fill);
        net.ends(y)
    };
    // Over the queries; a fill that could weigh something; a mask that makes the scores larger.
    let axis = |net: &mut Net| {
        let (q, k) = (net.input(&[2, 7, 8], 1.0), net.input(&[2, 8, 7], 1.0));
        let v = net.input(&[2, 7, 6], 1.0);
        let scores = net.op("MatMul", &[q, k]);
        (scores, v)
    };
    let mut net = Net::new(PLAIN);
    let (scores, v) = axis(&mut net);
    let weights = net.softmax(scores, 1);
    let y = net.op("MatMul", &[weights, v]);
    net.ends(y).stays();
    made(Parted { mask: 2, ..PARTED }, &[5, 7], -100.0).stays();
    let mut net = Net::new(PLAIN);
    let (scores, v) = axis(&mut net);
    let mask = net.weight(&[3, 2, 7, 7]);
    let scores = net.op("Add", &[scores, mask]);
    let weights = net.softmax(scores, -1);
    let y = net.op("MatMul", &[weights, v]);
    net.ends(y).stays();
    // Weights are an output, or are used twice.
    let mut net = Net::new(PLAIN);
    let (scores, v) = axis(&mut net);
    let weights = net.softmax(scores, -1);
    let y = net.op("MatMul", &[weights, v]);
    net.edit.add_output(weights);
    net.ends(y).stays();
    let mut net = Net::new(PLAIN);
    let (scores, v) = axis(&mut net);
    let weights = net.softmax(scores, -1);
    let y = net.op("MatMul", &[weights, v]);
    let z = net.op("MatMul", &[weights, v]);
    let y = net.op("Sub", &[y, z]);
    net.ends(y).stays();
    // Without its keys transposed in the graph it is one too.
    let mut net = Net::new(PLAIN);
    let (scores, v) = axis(&mut net);
    let weights = net.softmax(scores, -1);
    let y = net.op("MatMul", &[weights, v]);
    net.ends(y).is("Attention", 3);
    // Keys that serve two batches by broadcasting.
    let mut net = Net::new(PLAIN);
    let (q, k, v) =
        (net.input(&[2, 4, 5, 8], 1.0), net.input(&[1, 4, 8, 7], 1.0), net.input(&[2, 4, 7, 6], 1.0));
    let scores = net.op("MatMul", &[q, k]);
    let weights = net.softmax(scores, -1);
    let y = net.op("MatMul", &[weights, v]);
    net.ends(y).stays();
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
