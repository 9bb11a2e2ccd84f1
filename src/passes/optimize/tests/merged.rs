//! `merge-products`: what is merged, and what keeps three products apart.

use super::*;
use crate::kernels::packed::Bits;

/// Attention of two heads over queries, keys and values that `make` makes of `x`, `[1, 3, 16]`.
fn attention(make: impl Fn(&mut Edit, ValueId, usize) -> ValueId) -> Graph {
    let mut edit = Edit::new("g", &[("", 17), ("com.microsoft", 1)]);
    let dims = [1usize, 3, 16].map(Dim::from);
    let x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: Some(dims.to_vec()) });
    let mut inputs: Vec<Option<ValueId>> = (0..3).map(|part| Some(make(&mut edit, x, part))).collect();
    let last = edit.add_initializer("last", Tensor::from_vec(vec![1], vec![2i32]).unwrap());
    let total = edit.add_initializer("total", Tensor::scalar(3i32));
    inputs.extend([None, None, Some(last), Some(total)]);
    let outputs: Vec<ValueId> = ["y", "k", "v"].map(|name| edit.add_value(name, None)).to_vec();
    let heads = none().with("num_heads", Attr::Int(2)).with("kv_num_heads", Attr::Int(2));
    edit.add_node(
        Node::new("GroupQueryAttention", inputs, outputs.iter().copied().map(Some).collect())
            .with(heads)
            .in_domain("com.microsoft")
            .named("attention"),
    );
    finish(edit, &outputs)
}

fn product(edit: &mut Edit, x: ValueId, part: usize) -> ValueId {
    let weight = edit.add_initializer(
        &format!("w{part}"),
        floats(&[16, 16 + part]).selected(1, &(part..16 + part).collect::<Vec<_>>()),
    );
    edit.add_op("MatMul", &[x, weight], none(), &format!("p{part}"))
}

/// A product of blocks of 16 with so many bits.
fn blocks(edit: &mut Edit, x: ValueId, part: usize, bits: Bits) -> ValueId {
    let bytes = bits.bytes(16);
    let levels = (0..16 * bytes).map(|i| (i * 37 + part * 11) as u8).collect();
    let scales = (0..16).map(|i| 0.01 * (1 + i + part) as f32).collect();
    let weight =
        edit.add_initializer(&format!("b{part}"), Tensor::from_vec(vec![16, 1, bytes], levels).unwrap());
    let scales = edit.add_initializer(&format!("s{part}"), Tensor::from_vec(vec![16], scales).unwrap());
    let out = edit.add_value(&format!("p{part}"), None);
    let numbers = [("K", 16), ("N", 16), ("bits", bits.width() as i64), ("block_size", 16)];
    let with = numbers.iter().fold(none(), |a, (name, n)| a.with(name, Attr::Int(*n)));
    edit.add_node(
        Node::new("MatMulNBits", vec![Some(x), Some(weight), Some(scales)], vec![Some(out)])
            .with(with)
            .in_domain("com.microsoft")
            .named(format!("n{part}")),
    );
    out
}

fn biased(edit: &mut Edit, y: ValueId, part: usize, size: usize) -> ValueId {
    let bias = edit.add_initializer(&format!("c{part}"), floats(&[size]));
    edit.add_op("Add", &[y, bias], none(), &format!("a{part}"))
}

#[test]
fn products_of_the_same_data_become_one_and_are_tried() {
    type Make = fn(&mut Edit, ValueId, usize) -> ValueId;
    let makes: [(Make, usize); 3] = [
        (product, 3),
        (|e, x, part| blocks(e, x, part, Bits::Four), 3),
        (
            |e, x, part| {
                let y = blocks(e, x, part, Bits::Eight);
                biased(e, y, part, 16)
            },
            6,
        ),
    ];
    for (make, nodes) in makes {
        let graph = attention(make);
        assert_eq!(graph.nodes().len(), nodes + 1);
        let (one, report) = with("rules = ['merge-products', 'fold-constants', 'drop-dead']", &graph);
        assert_eq!((one.nodes().len(), applied(&report, "merge-products")), (nodes / 3 + 1, 1));
        let attention = one.nodes().last().unwrap();
        assert_eq!(attention.inputs[1..3], [None, None]);
        assert_eq!(report.facts["trials"], 1.0, "{:?}", report.applied);
        close(&graph, &one, &[1, 3, 16]);
    }
}

#[test]
fn what_is_not_made_alike_stays_apart() {
    let stays = |why: &str, graph: &Graph| {
        let (out, report) = only("merge-products", graph);
        assert_eq!(out.nodes().len(), graph.nodes().len());
        let found = near(&report, "merge-products");
        assert!(found.contains(why), "{found}, not {why}");
    };
    stays(
        "not made from the same data",
        &attention(|e, x, part| {
            let x = if part == 2 { e.add_op("Relu", &[x], none(), "r") } else { x };
            product(e, x, part)
        }),
    );
    stays(
        "do not compute alike",
        &attention(|e, x, part| blocks(e, x, part, if part == 1 { Bits::Eight } else { Bits::Four })),
    );
    stays(
        "p1 has other readers",
        &attention(|e, x, part| {
            let y = product(e, x, part);
            if part == 1 {
                e.add_output(y);
            }
            y
        }),
    );
    // One number for all is no vector to put beside others.
    stays(
        "c0 is not of the size",
        &attention(|e, x, part| {
            let y = product(e, x, part);
            biased(e, y, part, 1)
        }),
    );
    let shared = std::cell::Cell::new(None);
    stays(
        "has other readers",
        &attention(|e, x, part| match shared.get() {
            Some(weight) if part == 1 => e.add_op("MatMul", &[x, weight], none(), "p"),
            _ if part == 0 => {
                let weight = e.add_initializer("w", floats(&[16, 16]));
                shared.set(Some(weight));
                e.add_op("MatMul", &[x, weight], none(), "p")
            }
            _ => product(e, x, part),
        }),
    );
}
