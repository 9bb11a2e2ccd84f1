//! Norms that are written out.

use super::*;

/// The root that divides, as `how` writes it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Root {
    Div,
    Reciprocal,
    OneOver,
    Power,
}

pub(super) struct Norm {
    centred: bool,
    axes: &'static [i64],
    exponent: f64,
    square_by_mul: bool,
    root: Root,
    scale: bool,
    bias: bool,
}

pub(super) const LAYER: Norm = Norm {
    centred: true,
    axes: &[-1],
    exponent: 2.0,
    square_by_mul: false,
    root: Root::Div,
    scale: true,
    bias: true,
};

/// Values of a norm that is written out.
pub(super) struct Parts {
    d: ValueId,
    pub(super) variance: ValueId,
    pub(super) y: ValueId,
}

pub(super) fn norm(net: &mut Net, x: ValueId, n: &Norm) -> Parts {
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
