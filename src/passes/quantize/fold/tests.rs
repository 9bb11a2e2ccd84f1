//! Folding keeps the outputs of a graph, whatever holds the channels, and refuses what it must.

use super::*;
use crate::execute::Executor;
use crate::graph::{Graph, Type};
use crate::ops::{Attr, Attributes, Dim};

fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 + seed * 11) % 101) as f32 / 25.0 - 2.0).collect()
}

fn tensor(shape: &[usize], seed: usize) -> Tensor {
    Tensor::from_vec(shape.to_vec(), numbers(shape.iter().product(), seed)).unwrap()
}

/// `[2, 4, 5, 5]` for images, `[2, 3, 8]` for rows.
fn graph(images: bool, build: impl FnOnce(&mut Edit, ValueId) -> ValueId) -> Graph {
    let mut edit = Edit::new("g", &[("", 17), ("com.microsoft", 1)]);
    let shape: &[i64] = if images { &[2, 4, 5, 5] } else { &[2, 3, 8] };
    let shape = Some(shape.iter().map(|n| Dim::from(*n)).collect());
    let x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape });
    let y = build(&mut edit, x);
    edit.add_output(y);
    edit.commit().unwrap()
}

fn output(graph: &Graph, images: bool) -> Vec<f32> {
    let shape: &[usize] = if images { &[2, 4, 5, 5] } else { &[2, 3, 8] };
    let out = Executor::new(graph).unwrap().run(&[("x".into(), tensor(shape, 3))]).unwrap();
    out[0].1.to_vec::<f32>().unwrap()
}

fn fold(graph: &Graph, name: &str, axis: usize) -> std::result::Result<Fold, String> {
    let facts = graph.infer(&|_| None).unwrap();
    Fold::of(graph, &graph.uses(), &facts, graph.find(name).unwrap(), axis)
}

/// Divides the channels of "v" and multiplies them back in its only reader.
fn kept(graph: &Graph, axis: usize, images: bool) {
    let fold = fold(graph, "v", axis).unwrap();
    let uses = graph.uses();
    let readers = uses.consumers(graph.find("v").unwrap());
    let reader = reader(graph, readers[0].0, readers[0].1).unwrap();
    assert_eq!((readers.len(), reader.channels), (1, fold.channels));
    let scales: Vec<f32> = (0..fold.channels).map(|c| 0.25 + 0.7 * c as f32).collect();
    let mut edit = graph.edit();
    fold.divide(&mut edit, &scales).unwrap();
    reader.multiply(&mut edit, &scales).unwrap();
    let changed = edit.commit().unwrap();
    let (a, b) = (output(graph, images), output(&changed, images));
    let top = a.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(top > 0.1);
    for (a, b) in a.iter().zip(&b) {
        assert!((a - b).abs() <= 2e-6 * top, "{a} {b} of {top}");
    }
    let changed_value = |g: &Graph| {
        let v = g.find("v").unwrap();
        let mut edit = g.edit();
        edit.add_output(v);
        let g = edit.commit().unwrap();
        let shape: &[usize] = if images { &[2, 4, 5, 5] } else { &[2, 3, 8] };
        let out = Executor::new(&g).unwrap().run(&[("x".into(), tensor(shape, 3))]).unwrap();
        out[1].1.to_vec::<f32>().unwrap()
    };
    assert_ne!(changed_value(graph), changed_value(&changed));
}

fn conv(edit: &mut Edit, x: ValueId, shape: &[usize], group: i64, bias: bool, name: &str) -> ValueId {
    let mut inputs = vec![x, edit.add_initializer(&format!("{name}.w"), tensor(shape, 5))];
    if bias {
        inputs.push(edit.add_initializer(&format!("{name}.b"), tensor(&[shape[0]], 7)));
    }
    let attributes = Attributes::new().with("group", Attr::Int(group));
    edit.add_op("Conv", &inputs, attributes, name)
}

fn through(edit: &mut Edit, op: &str, x: ValueId) -> ValueId {
    edit.add_op(op, &[x], Attributes::new(), "v")
}

#[test]
fn convolutions_pass_channels_on_through_what_is_homogeneous() {
    for (group, shape) in [(1, [6usize, 4, 2, 2]), (4, [8, 1, 2, 2]), (2, [6, 2, 2, 2])] {
        for op in ["Relu", "LeakyRelu", "Identity", "Abs", "Neg"] {
            for (next, wide) in [(1, vec![3, shape[0], 1, 1]), (2, vec![4, shape[0] / 2, 2, 1])] {
                let g = graph(true, |e, x| {
                    let y = conv(e, x, &shape, group, true, "first");
                    let v = through(e, op, y);
                    conv(e, v, &wide, next, true, "second")
                });
                kept(&g, 1, true);
            }
        }
    }
}

#[test]
fn depthwise_readers_transposed_producers_pools_and_norms() {
    let g = graph(true, |e, x| {
        let y = conv(e, x, &[4, 4, 1, 1], 1, false, "first");
        let v = through(e, "Relu", y);
        conv(e, v, &[8, 1, 2, 2], 4, false, "second")
    });
    kept(&g, 1, true);
    let g = graph(true, |e, x| {
        let w = e.add_initializer("w", tensor(&[4, 3, 2, 2], 2));
        let attributes = Attributes::new().with("group", Attr::Int(2));
        let v = e.add_op("ConvTranspose", &[x, w], attributes, "v");
        conv(e, v, &[2, 6, 1, 1], 1, false, "second")
    });
    kept(&g, 1, true);
    let g = graph(true, |e, x| {
        let parts = [("g", 4), ("h", 5), ("m", 6)].map(|(n, s)| e.add_initializer(n, tensor(&[4], s)));
        let spread = e.add_initializer("s", Tensor::from_vec(vec![4], vec![0.5f32, 1.0, 2.0, 0.1]).unwrap());
        let inputs = [x, parts[0], parts[1], parts[2], spread];
        let y = e.add_op("BatchNormalization", &inputs, Attributes::new(), "norm");
        let p = e.add_op("GlobalAveragePool", &[y], Attributes::new(), "pool");
        let v = e.add_op("Flatten", &[p], Attributes::new(), "v");
        let w = e.add_initializer("w", tensor(&[3, 4], 2));
        e.add_op("Gemm", &[v, w], Attributes::new().with("transB", Attr::Int(1)), "z")
    });
    kept(&g, 1, true);
}

#[test]
fn rows_pass_channels_on_through_norms_biases_gates_and_values() {
    let product = |e: &mut Edit, v: ValueId| {
        let w = e.add_initializer("w", tensor(&[8, 3], 2));
        e.add_op("MatMul", &[v, w], Attributes::new(), "z")
    };
    let g = graph(false, |e, x| {
        let (gain, shift) =
            (e.add_initializer("g", tensor(&[8], 4)), e.add_initializer("h", tensor(&[8], 5)));
        let v = e.add_op("LayerNormalization", &[x, gain, shift], Attributes::new(), "v");
        product(e, v)
    });
    kept(&g, 2, false);
    // A bias of one number becomes one a channel.
    for bias in [vec![8], vec![]] {
        let g = graph(false, |e, x| {
            let (w, b) =
                (e.add_initializer("u", tensor(&[8, 8], 4)), e.add_initializer("b", tensor(&bias, 5)));
            let y = e.add_op("MatMul", &[x, w], Attributes::new(), "y");
            let v = e.add_op("Add", &[b, y], Attributes::new(), "v");
            product(e, v)
        });
        kept(&g, 2, false);
    }
    let g = graph(false, |e, x| {
        let (w, u) =
            (e.add_initializer("gate", tensor(&[8, 8], 4)), e.add_initializer("up", tensor(&[8, 8], 9)));
        let gate = e.add_op("MatMul", &[x, w], Attributes::new(), "g");
        let gate = e.add_op("Sigmoid", &[gate], Attributes::new(), "s");
        let up = e.add_op("MatMul", &[x, u], Attributes::new(), "u");
        let v = e.add_op("Mul", &[gate, up], Attributes::new(), "v");
        product(e, v)
    });
    kept(&g, 2, false);
    let g = graph(false, |e, x| {
        let three = ["q", "k", "v0"].map(|n| {
            let w = e.add_initializer(&format!("{n}.w"), tensor(&[8, 8], n.len()));
            Some(e.add_op("MatMul", &[x, w], Attributes::new(), n))
        });
        let v = e.add_value("v", None);
        let node = Node::new("MultiHeadAttention", three.to_vec(), vec![Some(v)]);
        e.add_node(node.with(Attributes::new().with("num_heads", Attr::Int(2))).in_domain("com.microsoft"));
        product(e, v)
    });
    kept(&g, 2, false);
}

#[test]
fn what_cannot_be_divided_says_why() {
    let g = graph(false, |e, x| {
        let w = e.add_initializer("w", tensor(&[8, 8], 2));
        let y = e.add_op("MatMul", &[x, w], Attributes::new(), "y");
        let r = e.add_op("Relu", &[y], Attributes::new(), "r");
        let s = e.add_op("Sigmoid", &[y], Attributes::new(), "s");
        e.add_op("Add", &[r, s], Attributes::new(), "z")
    });
    assert!(fold(&g, "r", 2).unwrap_err().contains("\"y\" has other readers"));
    assert!(fold(&g, "s", 2).unwrap_err().contains("Sigmoid"));
    assert!(fold(&g, "z", 2).unwrap_err().contains("output"));
    assert!(fold(&g, "x", 2).unwrap_err().contains("not computed"));
    assert!(fold(&g, "y", 1).unwrap_err().contains("not those of its weight"));
    let y = fold(&g, "y", 2).unwrap();
    for bad in [vec![1.0; 7], vec![0.0; 8], vec![f32::NAN; 8], vec![-1.0; 8]] {
        assert_eq!(y.divide(&mut g.edit(), &bad).unwrap_err().code(), "FOLD-SCALES");
    }
}

#[test]
fn a_weight_that_another_reads_is_copied() {
    let g = graph(false, |e, x| {
        let w = e.add_initializer("w", tensor(&[8, 8], 2));
        let v = e.add_op("MatMul", &[x, w], Attributes::new(), "v");
        e.add_op("MatMul", &[v, w], Attributes::new(), "z")
    });
    kept(&g, 2, false);
}
