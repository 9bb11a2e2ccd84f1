//! Groups and pins of graphs built by hand.

use super::*;
use crate::graph::{Edit, Node, Type};
use crate::ops::{Attr, Attributes, Dim};
use crate::tensor::{DType, Tensor};

fn image(edit: &mut Edit, channels: i64) -> ValueId {
    let shape = vec![Dim::symbol("n"), Dim::from(channels), Dim::from(8i64), Dim::from(8i64)];
    edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: Some(shape) })
}

fn zeros(edit: &mut Edit, name: &str, shape: &[usize]) -> ValueId {
    let n = shape.iter().product();
    edit.add_initializer(name, Tensor::from_vec(shape.to_vec(), vec![0f32; n]).unwrap())
}

/// A 1x1 convolution.
fn conv(edit: &mut Edit, name: &str, x: ValueId, from: usize, to: usize) -> ValueId {
    let w = zeros(edit, &format!("{name}.w"), &[to, from, 1, 1]);
    edit.add_op("Conv", &[x, w], Attributes::new(), name)
}

fn coupled(graph: &Graph) -> Coupled {
    Coupled::of(graph, &graph.infer(&|_| None).unwrap(), &Options::default())
}

/// Units, members as `name.axis`, and pin of each group.
fn told(graph: &Graph) -> Vec<(usize, String, Option<String>)> {
    let c = coupled(graph);
    let member = |p: &Place| format!("{}:{}", graph.value_name(p.value), p.axis);
    c.groups()
        .iter()
        .map(|g| (g.units, g.weights().map(member).collect::<Vec<_>>().join(" "), g.pinned_by.clone()))
        .collect()
}

fn group(units: usize, members: &str, pin: Option<&str>) -> (usize, String, Option<String>) {
    (units, members.into(), pin.map(String::from))
}

#[test]
fn residual_branches_share_a_group_and_interfaces_pin() {
    let mut edit = Edit::new("g", &[("", 17)]);
    let x = image(&mut edit, 3);
    let a = conv(&mut edit, "a", x, 3, 8);
    let r = edit.add_op("Relu", &[a], Attributes::new(), "r");
    let b = conv(&mut edit, "b", r, 8, 6);
    let c = conv(&mut edit, "c", b, 6, 8);
    let s = edit.add_op("Add", &[r, c], Attributes::new(), "s");
    let y = conv(&mut edit, "y", s, 8, 4);
    edit.add_output(y);
    let graph = edit.commit().unwrap();
    assert_eq!(
        told(&graph),
        [
            group(3, "a.w:1", Some("graph input \"x\"")),
            group(8, "a.w:0 b.w:1 c.w:0 y.w:1", None),
            group(6, "b.w:0 c.w:1", None),
            group(4, "y.w:0", Some("graph output \"y\"")),
        ]
    );
    let c = coupled(&graph);
    let constants = Constants::of(&graph);
    assert_eq!(c.groups()[1].parameters_per_unit(&constants), 3 + 6 + 6 + 4);
    // What comes in has no producer that makes channels of it.
    let kinds = [Kind::Other, Kind::Channels, Kind::Channels, Kind::Channels];
    assert_eq!(c.groups().iter().map(|g| g.kind).collect::<Vec<_>>(), kinds);
    let first = c.groups()[1].first;
    let kept = c.kept(&|u| u == first + 2);
    let r = graph.find("r").unwrap();
    assert_eq!(kept[&(r, 1)], (8, vec![0, 1, 3, 4, 5, 6, 7]));
    assert!(!kept.contains_key(&(graph.find("b").unwrap(), 1)));
}

#[test]
fn concatenated_inputs_are_groups_of_their_own_on_one_axis() {
    let mut edit = Edit::new("g", &[("", 17)]);
    let x = image(&mut edit, 3);
    let a = conv(&mut edit, "a", x, 3, 4);
    let b = conv(&mut edit, "b", x, 3, 5);
    let all = edit.add_op("Concat", &[x, a, b], Attributes::new().with("axis", Attr::Int(1)), "all");
    let y = conv(&mut edit, "y", all, 12, 2);
    edit.add_output(y);
    let graph = edit.commit().unwrap();
    assert_eq!(
        told(&graph),
        [
            group(3, "a.w:1 b.w:1 y.w:1", Some("graph input \"x\"")),
            group(4, "a.w:0 y.w:1", None),
            group(5, "b.w:0 y.w:1", None),
            group(2, "y.w:0", Some("graph output \"y\"")),
        ]
    );
    let c = coupled(&graph);
    let on: Vec<_> = c.on(graph.find("y.w").unwrap(), 1).unwrap().map(Option::unwrap).collect();
    let (a, b) = (c.groups()[1].first, c.groups()[2].first);
    assert_eq!(on[3..], [a, a + 1, a + 2, a + 3, b, b + 1, b + 2, b + 3, b + 4]);
}

#[test]
fn unknown_operators_and_made_up_channels_pin_with_a_reason() {
    let mut edit = Edit::new("g", &[("", 17), ("my", 1)]);
    let x = image(&mut edit, 3);
    let a = conv(&mut edit, "a", x, 3, 4);
    let b = conv(&mut edit, "b", x, 3, 4);
    let pads = Tensor::from_vec(vec![8], vec![0i64, 2, 0, 0, 0, 1, 0, 0]).unwrap();
    let pads = edit.add_initializer("pads", pads);
    let p = edit.add_op("Pad", &[a, pads], Attributes::new(), "p");
    let y = conv(&mut edit, "y", p, 7, 2);
    let z = edit.add_value("z", None);
    edit.add_node(Node::new("Odd", vec![Some(b)], vec![Some(z)]).in_domain("my").named("odd"));
    edit.add_output(y);
    edit.add_output(z);
    let graph = edit.commit().unwrap();
    let told = told(&graph);
    assert!(told.contains(&group(4, "a.w:0 y.w:1", None)), "{told:?}");
    let odd = Some("node \"odd\": operator my:Odd is not known");
    assert!(told.contains(&group(4, "b.w:0", odd)), "{told:?}");
    let pad = Some("node \"p\": padding keeps its size");
    assert!(told.contains(&group(3, "y.w:1", pad)), "{told:?}");
}

#[test]
fn a_captured_value_is_pinned() {
    let mut edit = Edit::new("g", &[("", 17)]);
    let x = image(&mut edit, 3);
    let condition = edit.add_initializer("if", Tensor::from_bools(vec![], vec![true]).unwrap());
    let a = conv(&mut edit, "a", x, 3, 4);
    let y = conv(&mut edit, "y", a, 4, 2);
    let body = |name: &str| {
        let mut inner = Edit::new(name, &[("", 17)]);
        let outer = inner.add_value("a", None);
        let out = inner.add_op("Relu", &[outer], Attributes::new(), name);
        inner.add_output(out);
        inner.commit_body().unwrap()
    };
    let z = edit.add_value("z", None);
    let mut node = Node::new("If", vec![Some(condition)], vec![Some(z)]).named("branch");
    node.bodies = vec![("then_branch".into(), body("t")), ("else_branch".into(), body("e"))];
    node.attributes = Attributes::new().with("then_branch", Attr::Body(0)).with("else_branch", Attr::Body(1));
    edit.add_node(node);
    edit.add_output(y);
    edit.add_output(z);
    let graph = edit.commit().unwrap();
    let pin = Some("node \"branch\": If has a body");
    assert!(told(&graph).contains(&group(4, "a.w:0 y.w:1", pin)), "{:?}", told(&graph));
}

#[test]
fn huge_declared_axes_cost_nothing() {
    let mut edit = Edit::new("g", &[("", 17)]);
    let shape = vec![Dim::from(1i64), Dim::from(1i64 << 50), Dim::from(2i64)];
    let x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: Some(shape) });
    let two = edit.add_op("Concat", &[x, x], Attributes::new().with("axis", Attr::Int(1)), "two");
    let w = zeros(&mut edit, "w", &[2, 3]);
    let y = edit.add_op("MatMul", &[two, w], Attributes::new(), "y");
    edit.add_output(y);
    let graph = edit.commit().unwrap();
    assert_eq!(told(&graph).len(), 2);
}

#[test]
fn a_thousand_wide_nodes_are_coupled_at_once() {
    let mut edit = Edit::new("g", &[("", 17)]);
    let shape = vec![Dim::symbol("n"), Dim::from(2048i64)];
    let mut x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: Some(shape) });
    let w = zeros(&mut edit, "w", &[2048, 2048]);
    let (a, b) = (zeros(&mut edit, "a", &[2048, 1024]), zeros(&mut edit, "b", &[1024, 2048]));
    for i in 0..170 {
        let y = edit.add_op("MatMul", &[x, w], Attributes::new(), &format!("y{i}"));
        let z = edit.add_op("MatMul", &[y, a], Attributes::new(), &format!("z{i}"));
        let r = edit.add_op("Relu", &[z], Attributes::new(), &format!("r{i}"));
        let s = edit.add_op("MatMul", &[r, b], Attributes::new(), &format!("s{i}"));
        let both =
            edit.add_op("Concat", &[s, y], Attributes::new().with("axis", Attr::Int(1)), &format!("c{i}"));
        let parts: Vec<ValueId> = (0..2).map(|o| edit.add_value(&format!("p{i}.{o}"), None)).collect();
        let split = Node::new("Split", vec![Some(both)], parts.iter().copied().map(Some).collect());
        edit.add_node(split.named(format!("split{i}")).with(Attributes::new().with("axis", Attr::Int(1))));
        x = edit.add_op("Add", &parts, Attributes::new(), &format!("x{i}"));
    }
    let y = edit.add_op("Relu", &[x], Attributes::new(), "y");
    edit.add_output(y);
    let graph = edit.commit().unwrap();
    let facts = graph.infer(&|_| None).unwrap();
    let start = std::time::Instant::now();
    let c = Coupled::of(&graph, &facts, &Options::default());
    eprintln!("{} nodes in {:?}", graph.nodes().len(), start.elapsed());
    let inner = c.groups().iter().find(|g| g.prunable()).unwrap();
    assert_eq!((inner.units, inner.weights().count()), (1024, 2));
    assert_eq!(c.units(), 2048 + 1024);
}
