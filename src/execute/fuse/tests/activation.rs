//! Activations that are written out.

use super::*;

pub(super) fn gelu_by_erf(net: &mut Net, x: ValueId, order: usize) -> ValueId {
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
