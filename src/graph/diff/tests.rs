//! Renamed, changed and cut graphs against what they came from.

use super::*;
use crate::graph::{Edit, Type};
use crate::ops::{Attributes, Dim};
use crate::tensor::{DType, Tensor};

/// `blocks` equal residual blocks; names begin with `prefix`. `skip` leaves one out, `widened` gives one
/// another inner width.
fn net(prefix: &str, blocks: usize, skip: Option<usize>, widened: Option<usize>) -> Graph {
    let mut e = Edit::new("g", &[("", 17)]);
    let mut x = e.add_input(
        "x",
        Type::Tensor { dtype: DType::F32, shape: Some(vec![Dim::from(2i64), Dim::from(4i64)]) },
    );
    for b in (0..blocks).filter(|b| Some(*b) != skip) {
        let inner = if widened == Some(b) { 8 } else { 6 };
        let name = |s: &str| format!("{prefix}{b}.{s}");
        let w = |n: usize, seed: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 31 + seed * 17) % 101) as f32).collect()
        };
        let up =
            e.add_initializer(&name("up"), Tensor::from_vec(vec![4, inner], w(4 * inner, 2 * b)).unwrap());
        let gate = e.add_initializer(
            &name("gate"),
            Tensor::from_vec(vec![4, inner], w(4 * inner, 2 * b + 50)).unwrap(),
        );
        let down = e.add_initializer(
            &name("down"),
            Tensor::from_vec(vec![inner, 4], w(4 * inner, 2 * b + 1)).unwrap(),
        );
        let h = e.add_op("MatMul", &[x, up], Attributes::new(), &name("h"));
        let g = e.add_op("MatMul", &[x, gate], Attributes::new(), &name("g"));
        let s = e.add_op("Sigmoid", &[g], Attributes::new(), &name("s"));
        let m = e.add_op("Mul", &[s, h], Attributes::new(), &name("m"));
        let d = e.add_op("MatMul", &[m, down], Attributes::new(), &name("d"));
        x = e.add_op("Add", &[d, x], Attributes::new(), &name("y"));
    }
    e.add_output(x);
    e.commit().unwrap()
}

fn nothing(_: ValueId) -> Option<u64> {
    None
}

fn go(a: &Graph, b: &Graph) -> Matching {
    matching(a, b, &Fingerprints { before: &nothing, after: &nothing })
}

fn print(graph: &Graph) -> impl Fn(ValueId) -> Option<u64> + '_ {
    |v| {
        let values = graph.initializer(v)?.to_f64s().ok()?;
        Some(values.iter().fold(7u64, |h, x| h.wrapping_mul(31).wrapping_add(x.to_bits())))
    }
}

/// Every pair is the node at the same place of the same block.
fn right(a: &Graph, b: &Graph, m: &Matching) -> bool {
    let tail = |g: &Graph, i: usize| g.label(i).trim_start_matches(|c: char| c.is_alphabetic()).to_string();
    m.nodes.iter().all(|(i, j, _)| tail(a, *i) == tail(b, *j))
}

#[test]
fn a_graph_matches_itself_under_its_names() {
    let g = net("n", 3, None, None);
    let m = go(&g, &g);
    assert_eq!((m.nodes.len(), m.constants.len()), (18, 9));
    assert!(m.nodes.iter().all(|(a, b, how)| a == b && *how == How::Name));
    assert!(m.removed.is_empty() && m.added.is_empty());
}

#[test]
fn a_renamed_graph_matches_by_structure_alone() {
    let (a, b) = (net("n", 12, None, None), net("other", 12, None, None));
    let m = go(&a, &b);
    assert_eq!((m.nodes.len(), m.constants.len()), (72, 36));
    assert!(right(&a, &b, &m), "gate and up are told apart by what reads them");
    assert!(m.nodes.iter().all(|(.., how)| *how == How::Structure));
}

#[test]
fn changes_in_the_middle_do_not_hide_what_lies_between_them() {
    let (a, b) = (net("n", 9, None, None), net("o", 9, None, Some(2)));
    let both = net("p", 9, None, Some(6));
    for (x, y) in [(&a, &b), (&b, &both)] {
        let m = go(x, y);
        assert_eq!((m.nodes.len(), m.removed.len(), m.added.len()), (54, 0, 0));
        assert!(right(x, y, &m));
    }
}

#[test]
fn a_block_that_left_is_found_by_the_weights_of_the_others() {
    let (a, b) = (net("n", 8, None, None), net("o", 8, Some(3), None));
    let m = matching(&a, &b, &Fingerprints { before: &print(&a), after: &print(&b) });
    assert_eq!((m.nodes.len(), m.removed.len(), m.added.len()), (42, 6, 0));
    assert!(right(&a, &b, &m));
    assert!(m.removed.iter().all(|i| a.label(*i).starts_with("n3.")), "{:?}", m.removed);
}

#[test]
fn graphs_without_anything_in_common_share_nothing() {
    let a = net("n", 1, None, None);
    let mut e = Edit::new("g", &[("", 17)]);
    let x = e.add_input("z", Type::Tensor { dtype: DType::F32, shape: Some(vec![Dim::from(2i64)]) });
    let y = e.add_op("Relu", &[x], Attributes::new(), "r");
    e.add_output(y);
    let m = go(&a, &e.commit().unwrap());
    assert_eq!((m.nodes.len(), m.removed.len(), m.added.len()), (0, 6, 1));
}

#[test]
fn ten_thousand_nodes_match_in_a_moment() {
    let (a, b) = (net("n", 1700, None, None), net("o", 1700, None, Some(800)));
    let start = std::time::Instant::now();
    let m = go(&a, &b);
    assert_eq!(m.nodes.len(), 10_200);
    assert!(right(&a, &b, &m));
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}
