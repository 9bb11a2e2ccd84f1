//! Each rule on a small graph: where it applies, where it just does not, and that names which others
//! rely on stay.

use super::*;
use crate::execute::Executor;
use crate::graph::{Edit, Node, Type, ValueId};
use crate::monitor::Silent;
use crate::ops::{Attr, Attributes, Dim};
use crate::tensor::{DType, Tensor};

mod fused;
mod merged;

const TERMS: Terms = Terms { fold_limit: 1 << 20, target: Target::Standard };

/// A graph of operator set 17 in the making, with an input `x` of these sizes (0: symbolic).
fn start(shape: &[usize]) -> (Edit, ValueId) {
    let mut edit = Edit::new("g", &[("", 17), ("my.domain", 1)]);
    let dims = shape.iter().enumerate().map(|(i, n)| match n {
        0 => Dim::symbol(&format!("d{i}")),
        n => Dim::from(*n),
    });
    let x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: Some(dims.collect()) });
    (edit, x)
}

fn finish(mut edit: Edit, outputs: &[ValueId]) -> Graph {
    outputs.iter().for_each(|v| edit.add_output(*v));
    edit.commit().unwrap()
}

fn floats(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::from_vec(shape.to_vec(), (0..n).map(|i| ((i * 7 % 11) as f32 - 5.0) / 4.0).collect()).unwrap()
}

fn ints(v: &[i64]) -> Tensor {
    Tensor::from_vec(vec![v.len()], v.to_vec()).unwrap()
}

fn none() -> Attributes {
    Attributes::new()
}

fn perm(p: &[i64]) -> Attributes {
    none().with("perm", Attr::Ints(p.to_vec()))
}

/// Runs the pass with these settings.
fn with(settings: &str, graph: &Graph) -> (Graph, PassReport) {
    let pass = crate::passes::by_name("optimize", &settings.parse().unwrap()).unwrap();
    let mut ctx = Ctx::new(&Silent);
    let (out, report) = pass.run(graph, &mut ctx).unwrap();
    let names = |g: &Graph, v: &[ValueId]| -> Vec<String> {
        v.iter().map(|v| g.value_name(*v).to_string()).collect()
    };
    assert_eq!(names(&out, out.outputs()), names(graph, graph.outputs()));
    assert_eq!(names(&out, out.inputs()), names(graph, graph.inputs()));
    assert_eq!(report.facts["nodes_after"], out.nodes().len() as f64);
    // A second run finds nothing more to do.
    let (_, again) = pass.run(&out, &mut ctx).unwrap();
    assert_eq!(again.applied, vec![]);
    (out, report)
}

/// Runs the pass with one rule, and `drop-dead`.
fn only(rule: &str, graph: &Graph) -> (Graph, PassReport) {
    with(&format!("rules = ['{rule}', 'drop-dead']"), graph)
}

fn operators(graph: &Graph) -> Vec<&str> {
    graph.nodes().iter().map(|n| n.op_type.as_str()).collect()
}

fn applied(report: &PassReport, rule: &str) -> usize {
    report.applied.iter().filter(|a| a.rule == rule).count()
}

/// The reason of the only near miss of a rule.
fn near<'a>(report: &'a PassReport, rule: &str) -> &'a str {
    let found: Vec<&Skipped> = report.skipped.iter().filter(|s| s.rule == rule).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    &found[0].reason
}

/// Largest difference between the outputs of two graphs on an input of this shape, and the largest output.
fn difference(a: &Graph, b: &Graph, shape: &[usize]) -> (f32, f32) {
    let run = |g: &Graph| {
        let out = Executor::new(g).unwrap().run(&[("x".into(), floats(shape))]).unwrap();
        out.into_iter().flat_map(|(_, t)| t.to_f32s().unwrap()).collect::<Vec<f32>>()
    };
    let (a, b) = (run(a), run(b));
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(largest > 0.0);
    (a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max), largest)
}

fn close(a: &Graph, b: &Graph, shape: &[usize]) {
    let (difference, largest) = difference(a, b, shape);
    assert!(difference <= 2e-6 * largest, "{difference} of {largest}");
}

fn constant(edit: &mut Edit, name: &str, attribute: &str, value: Attr) -> ValueId {
    let v = edit.add_value(name, None);
    edit.add_node(
        Node::new("Constant", vec![], vec![Some(v)]).with(none().with(attribute, value)).named(name),
    );
    v
}

#[test]
fn constants_of_every_form_are_lifted_and_outputs_stay_nodes() {
    let (mut edit, x) = start(&[2, 3]);
    let shape = constant(&mut edit, "shape", "value", Attr::Tensor(ints(&[3, 2])));
    let b = constant(&mut edit, "b", "value_floats", Attr::Floats(vec![1.0, 2.0]));
    let c = constant(&mut edit, "c", "value_float", Attr::Float(1.5));
    let r = edit.add_op("Reshape", &[x, shape], none(), "r");
    let s = edit.add_op("Add", &[r, b], none(), "s");
    let y = edit.add_op("Add", &[s, c], none(), "y");
    let out = constant(&mut edit, "out", "value_ints", Attr::Ints(vec![1, 2]));
    let graph = finish(edit, &[y, out]);
    let (graph, report) = only("lift-constants", &graph);
    assert_eq!(operators(&graph), ["Reshape", "Add", "Add", "Constant"]);
    assert_eq!(applied(&report, "lift-constants"), 3);
    assert_eq!(near(&report, "lift-constants"), "a graph output must be the result of a node");
    assert_eq!(graph.initializer(graph.find("c").unwrap()).unwrap().shape(), [0usize; 0]);
    let out = Executor::new(&graph.edit().commit().unwrap());
    assert!(out.is_err() || operators(&graph).contains(&"Constant"));
}

#[test]
fn constant_branches_are_evaluated_within_the_limit() {
    let (mut edit, x) = start(&[4, 4]);
    let a = edit.add_initializer("a", floats(&[4, 1]));
    let b = edit.add_initializer("b", floats(&[1, 4]));
    let sum = edit.add_op("Add", &[a, b], none(), "sum");
    let positive = edit.add_op("Relu", &[sum], none(), "positive");
    let y = edit.add_op("Add", &[x, positive], none(), "y");
    let graph = finish(edit, &[y]);
    let (folded, report) = with("", &graph);
    assert_eq!(operators(&folded), ["Add"]);
    assert_eq!(applied(&report, "fold-constants"), 2);
    assert_eq!(folded.initializers().count(), 1);
    assert_eq!(difference(&graph, &folded, &[4, 4]).0, 0.0);
    let (kept, report) = with("fold_limit = 63", &graph);
    assert_eq!(operators(&kept), ["Add", "Relu", "Add"]);
    assert!(near(&report, "fold-constants").contains("64 bytes, more than fold_limit (63)"));
}

#[test]
fn large_weights_that_only_move_are_not_spelled_out() {
    let (mut edit, x) = start(&[2, 80]);
    let w = edit.add_initializer("w", floats(&[70, 80]));
    let t = edit.add_op("Transpose", &[w], perm(&[1, 0]), "t");
    let y = edit.add_op("MatMul", &[x, t], none(), "y");
    let graph = finish(edit, &[y]);
    let (folded, _) = with("fold_limit = 0", &graph);
    assert_eq!(operators(&folded), ["MatMul"]);
    assert_eq!(folded.initializer(folded.find("t").unwrap()).unwrap().shape(), [80, 70]);
    assert_eq!(difference(&graph, &folded, &[2, 80]).0, 0.0);
}

#[test]
fn quantised_weights_stay_behind_their_dequantize() {
    let (mut edit, x) = start(&[2, 3]);
    let q = edit.add_initializer("q", Tensor::from_vec(vec![3, 2], vec![1i8, -2, 3, 4, -5, 6]).unwrap());
    let s = edit.add_initializer("s", Tensor::scalar(0.5f32));
    let w = edit.add_op("DequantizeLinear", &[q, s], none(), "w");
    let t = edit.add_op("Transpose", &[w], perm(&[0, 1]), "t");
    let r = edit.add_op("Relu", &[t], none(), "r");
    let y = edit.add_op("MatMul", &[x, r], none(), "y");
    let graph = finish(edit, &[y]);
    let (folded, _) = with("", &graph);
    assert_eq!(operators(&folded), ["DequantizeLinear", "Relu", "MatMul"]);
    assert_eq!(folded.initializer(folded.find("q").unwrap()).unwrap().dtype(), DType::I8);
}

#[test]
fn a_default_input_is_no_constant() {
    let (mut edit, x) = start(&[2]);
    let b = edit.add_input("b", Type::Tensor { dtype: DType::F32, shape: Some(vec![Dim::from(2usize)]) });
    edit.set_initializer(b, Tensor::from_vec(vec![2], vec![0f32, 0.0]).unwrap());
    let r = edit.add_op("Relu", &[b], none(), "r");
    let y = edit.add_op("Add", &[x, r], none(), "y");
    let z = edit.add_op("Add", &[y, b], none(), "z");
    let graph = finish(edit, &[z]);
    let (folded, report) = with("", &graph);
    assert_eq!(operators(&folded), ["Relu", "Add", "Add"]);
    assert!(near(&report, "fold-constants").contains("a caller may replace them"));
}

#[test]
fn reshape_targets_known_from_shapes_become_constants() {
    // The target is computed from constants by Concat, half of it known from the input alone.
    let (mut edit, x) = start(&[0, 3, 4]);
    let head = edit.add_initializer("head", ints(&[0]));
    let tail = edit.add_initializer("tail", ints(&[12]));
    let axis = none().with("axis", Attr::Int(0));
    let target = edit.add_op("Concat", &[head, tail], axis, "target");
    let y = edit.add_op("Reshape", &[x, target], none(), "y");
    let graph = finish(edit, &[y]);
    let (folded, report) = only("fold-shapes", &graph);
    assert_eq!(operators(&folded), ["Reshape"]);
    assert_eq!(report.applied[0].detail, "Concat is always [0, 12]");
    close(&graph, &folded, &[2, 3, 4]);
    let (_, report) = with("rules = ['fold-shapes']\nfold_limit = 8", &graph);
    assert!(near(&report, "fold-shapes").contains("more than fold_limit"));
}

/// What a target becomes whose content is known as dimensions: an operator for this test gives it.
#[test]
fn a_target_with_one_open_size_is_written_with_zeros_and_minus_one() {
    #[derive(Debug)]
    struct Told(Vec<Dim>);
    impl crate::ops::Operator for Told {
        fn infer(&self, _: &[Option<&crate::ops::Fact>]) -> Result<Vec<crate::ops::Fact>> {
            Ok(vec![crate::ops::Fact::of_dims(DType::I64, self.0.clone(), false)])
        }
        fn eval(&self, _: &[Option<&crate::tensor::Value>]) -> Result<Vec<crate::tensor::Value>> {
            Err(Error::unsupported("TEST", "it only tells"))
        }
    }
    let (n, s) = (Dim::symbol("d0"), Dim::symbol("d1"));
    let case = |op: &str, dims: Vec<Dim>| {
        let (mut edit, x) = start(&[0, 0, 12]);
        let told = edit.add_value("told", None);
        let at = edit.add_node(Node::new("Told", vec![Some(x)], vec![Some(told)]).in_domain("my.domain"));
        let y = edit.add_op(op, &[x, told], none(), "y");
        edit.add_output(y);
        let mut graph = edit.commit().unwrap();
        graph.nodes[at].op = Some(std::sync::Arc::new(Told(dims)));
        let outcome =
            sweep::Sweep::run(&sweep::Analysis::of(graph), "fold-shapes", TERMS, shapes::sweep).unwrap();
        let target = outcome.graph.map(|g| {
            let reader = g.nodes().iter().find(|n| n.is(op)).unwrap();
            g.initializer(reader.inputs[1].unwrap()).unwrap().to_i64s().unwrap()
        });
        (target, outcome.skipped)
    };
    let d = |n: i64| Dim::from(n);
    assert_eq!(case("Reshape", vec![n.clone(), s.clone(), d(3), d(4)]).0, Some(vec![0, 0, 3, 4]));
    assert_eq!(case("Reshape", vec![n.clone() * s.clone(), d(12)]).0, Some(vec![-1, 12]));
    assert_eq!(case("Reshape", vec![n.clone(), d(12), s.clone()]).0, Some(vec![0, 12, -1]));
    let (target, skipped) = case("Reshape", vec![s.clone(), d(12), n.clone()]);
    assert_eq!(target, None);
    assert!(skipped[0].reason.contains("2 sizes"), "{skipped:?}");
    assert_eq!(case("Expand", vec![n.clone(), s.clone(), d(12)]).0, Some(vec![1, 1, 12]));
    assert_eq!(case("Expand", vec![d(5), n.clone(), s.clone(), d(12)]).0, Some(vec![5, 1, 1, 12]));
    assert_eq!(case("Expand", vec![s, n, d(12)]).0, None);
}

#[test]
fn nodes_that_do_nothing_go_and_output_names_stay() {
    let (mut edit, x) = start(&[0, 4]);
    let zeros = edit.add_initializer("zeros", Tensor::from_vec(vec![4], vec![0f32; 4]).unwrap());
    let wide = edit.add_initializer("wide", Tensor::from_vec(vec![3, 1, 1], vec![0f32; 3]).unwrap());
    let pads = edit.add_initializer("pads", ints(&[0, 0, 0, 0]));
    let as_is = edit.add_initializer("as_is", ints(&[-1, 4]));
    let a = edit.add_op("Identity", &[x], none(), "a");
    let b = edit.add_op("Identity", &[a], none(), "b");
    let c = edit.add_op("Relu", &[b], none(), "c");
    let d = edit.add_op("Add", &[zeros, c], none(), "d");
    let e = edit.add_op("Transpose", &[d], perm(&[0, 1]), "e");
    let f = edit.add_op("Pad", &[e, pads], none(), "f");
    let g = edit.add_op("Reshape", &[f, as_is], none(), "g");
    let h = edit.add_op("Concat", &[g], none().with("axis", Attr::Int(0)), "h");
    let i = edit.add_op("Dropout", &[h], none(), "i");
    let y = edit.add_op("Identity", &[i], none(), "y");
    let z = edit.add_op("Add", &[y, wide], none(), "z");
    let graph = finish(edit, &[y, z]);
    let (small, report) = only("remove-identities", &graph);
    assert_eq!(operators(&small), ["Relu", "Add"]);
    assert_eq!(applied(&report, "remove-identities"), 9);
    assert_eq!(small.value_name(small.nodes()[0].outputs[0].unwrap()), "y");
    close(&graph, &small, &[2, 4]);
}

#[test]
fn an_identity_between_input_and_output_stays_and_a_read_mask_keeps_its_dropout() {
    let (mut edit, x) = start(&[2]);
    let y = edit.add_op("Identity", &[x], none(), "y");
    let graph = finish(edit, &[y]);
    let (same, report) = only("remove-identities", &graph);
    assert_eq!(operators(&same), ["Identity"]);
    assert_eq!(near(&report, "remove-identities"), "a graph output must be the result of a node");

    let (mut edit, x) = start(&[2]);
    let (kept, mask) = (edit.add_value("kept", None), edit.add_value("mask", None));
    edit.add_node(Node::new("Dropout", vec![Some(x)], vec![Some(kept), Some(mask)]));
    let y = edit.add_op("Relu", &[kept], none(), "y");
    let (same, report) = only("remove-identities", &finish(edit, &[y, mask]));
    assert_eq!(operators(&same), ["Dropout", "Relu"]);
    assert_eq!(near(&report, "remove-identities"), "its second output is read");
}

#[test]
fn one_value_under_two_output_names_keeps_both() {
    let (mut edit, x) = start(&[2]);
    let r = edit.add_op("Relu", &[x], none(), "r");
    let a = edit.add_op("Identity", &[r], none(), "a");
    let b = edit.add_op("Identity", &[r], none(), "b");
    let graph = finish(edit, &[a, b]);
    let (small, _) = with("", &graph);
    assert_eq!(operators(&small), ["Relu", "Identity"]);
    close(&graph, &small, &[2]);
}

#[test]
fn neighbours_that_undo_each_other_go() {
    let (mut edit, x) = start(&[2, 3, 4]);
    let a = edit.add_op("Transpose", &[x], perm(&[1, 2, 0]), "a");
    let b = edit.add_op("Transpose", &[a], perm(&[2, 0, 1]), "b");
    let c = edit.add_op("Transpose", &[b], perm(&[0, 2, 1]), "c");
    let d = edit.add_op("Transpose", &[c], perm(&[2, 0, 1]), "d");
    let flat = edit.add_initializer("flat", ints(&[-1]));
    let end = edit.add_initializer("end", ints(&[6, 4]));
    let e = edit.add_op("Reshape", &[d, flat], none(), "e");
    let f = edit.add_op("Reshape", &[e, end], none(), "f");
    let axes = edit.add_initializer("axes", ints(&[1]));
    let g = edit.add_op("Unsqueeze", &[f, axes], none(), "g");
    let h = edit.add_op("Squeeze", &[g, axes], none(), "h");
    let y = edit.add_op("Relu", &[h], none(), "y");
    let graph = finish(edit, &[y]);
    let (small, _) = only("cancel-pairs", &graph);
    assert_eq!(operators(&small), ["Transpose", "Reshape", "Relu"]);
    assert_eq!(small.nodes()[0].attributes.ints("perm").unwrap(), Some(vec![1, 0, 2]));
    close(&graph, &small, &[2, 3, 4]);
    assert_eq!(difference(&graph, &small, &[2, 3, 4]).0, 0.0);
}

#[test]
fn quantising_again_on_the_same_grid_is_dropped_and_on_another_is_not() {
    for (second, expected) in [(0.5f32, 3), (0.25, 5)] {
        let (mut edit, x) = start(&[4]);
        let s = edit.add_initializer("s", Tensor::scalar(0.5f32));
        let t = edit.add_initializer("t", Tensor::scalar(second));
        let z = edit.add_initializer("z", Tensor::scalar(7u8));
        let a = edit.add_op("QuantizeLinear", &[x, s, z], none(), "a");
        let b = edit.add_op("DequantizeLinear", &[a, s, z], none(), "b");
        let c = edit.add_op("QuantizeLinear", &[b, t, z], none(), "c");
        let d = edit.add_op("DequantizeLinear", &[c, t, z], none(), "d");
        let y = edit.add_op("Relu", &[d], none(), "y");
        let graph = finish(edit, &[y]);
        let (small, _) = only("cancel-pairs", &graph);
        assert_eq!(small.nodes().len(), expected);
        assert_eq!(difference(&graph, &small, &[4]).0, 0.0);
    }
}

/// `BatchNormalization` over `x` with made-up statistics.
fn batch_norm(edit: &mut Edit, x: ValueId, channels: usize, output: &str) -> ValueId {
    let mut inputs = vec![x];
    for (i, name) in ["scale", "shift", "mean", "var"].into_iter().enumerate() {
        let v = (0..channels).map(|c| ((c * 5 + i * 3) % 7) as f32 / 5.0 + 0.3).collect();
        let t = Tensor::from_vec(vec![channels], v).unwrap();
        inputs.push(edit.add_initializer(&format!("{output}_{name}"), t));
    }
    edit.add_op("BatchNormalization", &inputs, none().with("epsilon", Attr::Float(1e-3)), output)
}

#[test]
fn batch_norms_go_into_convolutions_of_every_kind() {
    // (operator, weight, group, bias): plain, grouped, depthwise, transposed with groups.
    let cases = [
        ("Conv", vec![6, 4, 3, 3], 1, true),
        ("Conv", vec![6, 2, 3, 3], 2, false),
        ("Conv", vec![4, 1, 3, 3], 4, true),
        ("ConvTranspose", vec![4, 3, 2, 2], 1, false),
        ("ConvTranspose", vec![4, 3, 2, 2], 2, true),
    ];
    for (op, shape, group, biased) in cases {
        let (mut edit, x) = start(&[0, 4, 5, 5]);
        let channels = if op == "Conv" { shape[0] } else { shape[1] * group };
        let mut inputs = vec![x, edit.add_initializer("w", floats(&shape))];
        if biased {
            inputs.push(edit.add_initializer("b", floats(&[channels])));
        }
        let c = edit.add_op(op, &inputs, none().with("group", Attr::Int(group as i64)), "c");
        let y = batch_norm(&mut edit, c, channels, "y");
        let graph = finish(edit, &[y]);
        let (small, report) = only("fold-batch-norm", &graph);
        assert_eq!(operators(&small), [op], "{:?}", report.skipped);
        assert_eq!(small.initializers().count(), 2);
        close(&graph, &small, &[2, 4, 5, 5]);
    }
}

#[test]
fn batch_norms_go_into_products_of_matrices() {
    for (trans, beta, bias) in [(0, 1.0, vec![5]), (1, 0.5, vec![1, 5]), (0, 2.0, vec![]), (1, 1.0, vec![1])]
    {
        let (mut edit, x) = start(&[0, 3]);
        let w = edit.add_initializer("w", floats(if trans == 1 { &[5, 3] } else { &[3, 5] }));
        let b = edit.add_initializer("b", floats(&bias));
        let attributes = none()
            .with("transB", Attr::Int(trans))
            .with("beta", Attr::Float(beta))
            .with("alpha", Attr::Float(0.75));
        let c = edit.add_op("Gemm", &[x, w, b], attributes, "c");
        let y = batch_norm(&mut edit, c, 5, "y");
        let graph = finish(edit, &[y]);
        let (small, report) = only("fold-batch-norm", &graph);
        assert_eq!(operators(&small), ["Gemm"], "{:?}", report.skipped);
        close(&graph, &small, &[4, 3]);
    }
    let (mut edit, x) = start(&[0, 3]);
    let w = edit.add_initializer("w", floats(&[3, 5]));
    let b = edit.add_initializer("b", floats(&[5]));
    let c = edit.add_op("MatMul", &[x, w], none(), "c");
    let d = batch_norm(&mut edit, c, 5, "d");
    let e = edit.add_op("MatMul", &[x, w], none(), "e");
    let f = edit.add_op("Add", &[b, e], none(), "f");
    let g = batch_norm(&mut edit, f, 5, "g");
    let y = edit.add_op("Add", &[d, g], none(), "y");
    let graph = finish(edit, &[y]);
    let (small, _) = with("skip = ['merge-duplicates']", &graph);
    assert_eq!(operators(&small), ["Gemm", "Gemm", "Add"]);
    close(&graph, &small, &[4, 3]);
}

#[test]
fn a_batch_norm_that_cannot_go_says_why() {
    let conv = |edit: &mut Edit, x| {
        let w = edit.add_initializer("w", floats(&[4, 4, 3, 3]));
        edit.add_op("Conv", &[x, w], none(), "c")
    };
    let (mut edit, x) = start(&[0, 4, 5, 5]);
    let c = conv(&mut edit, x);
    let y = batch_norm(&mut edit, c, 4, "y");
    let z = edit.add_op("Add", &[y, c], none(), "z");
    let (same, report) = only("fold-batch-norm", &finish(edit, &[z]));
    assert_eq!(operators(&same), ["Conv", "BatchNormalization", "Add"]);
    assert_eq!(near(&report, "fold-batch-norm"), "the output of c has other readers");

    let (mut edit, x) = start(&[0, 4, 5, 5]);
    let c = conv(&mut edit, x);
    let r = edit.add_op("Relu", &[c], none(), "r");
    let y = batch_norm(&mut edit, r, 4, "y");
    let (_, report) = only("fold-batch-norm", &finish(edit, &[y]));
    assert_eq!(near(&report, "fold-batch-norm"), "it follows Relu, no convolution or product");

    let (mut edit, x) = start(&[0, 4, 5, 5]);
    let c = conv(&mut edit, x);
    let y = batch_norm(&mut edit, c, 4, "y");
    let var = edit.graph().find("y_var").unwrap();
    edit.set_initializer(var, Tensor::from_vec(vec![4], vec![1f32, -1.0, 1.0, 1.0]).unwrap());
    let (same, report) = only("fold-batch-norm", &finish(edit, &[y]));
    assert_eq!(operators(&same).len(), 2);
    assert_eq!(near(&report, "fold-batch-norm"), "the folded weights would not be finite");
}

#[test]
fn a_weight_that_others_read_is_copied_not_changed() {
    let (mut edit, x) = start(&[0, 4, 5, 5]);
    let w = edit.add_initializer("w", floats(&[4, 4, 3, 3]));
    let a = edit.add_op("Conv", &[x, w], none(), "a");
    let b = batch_norm(&mut edit, a, 4, "b");
    let r = edit.add_op("Relu", &[x], none(), "r");
    let c = edit.add_op("Conv", &[r, w], none(), "c");
    let y = edit.add_op("Add", &[b, c], none(), "y");
    let graph = finish(edit, &[y]);
    let (small, _) = with("", &graph);
    assert_eq!(operators(&small).iter().filter(|o| **o == "BatchNormalization").count(), 0);
    assert!(small.initializer(small.find("w").unwrap()).unwrap().same_bits(&floats(&[4, 4, 3, 3])).unwrap());
    close(&graph, &small, &[1, 4, 5, 5]);
}

#[test]
fn channel_constants_go_into_convolutions_and_others_say_why() {
    let (mut edit, x) = start(&[0, 3, 6, 4]);
    let w = edit.add_initializer("w", floats(&[4, 3, 3, 1]));
    let shift = edit.add_initializer("shift", floats(&[1, 4, 1, 1]));
    let one = edit.add_initializer("one", Tensor::scalar(2.5f32));
    // Four values as well, but along the last axis.
    let columns = edit.add_initializer("columns", floats(&[4]));
    let c = edit.add_op("Conv", &[x, w], none(), "c");
    let a = edit.add_op("Add", &[shift, c], none(), "a");
    let b = edit.add_op("Add", &[a, one], none(), "b");
    let y = edit.add_op("Add", &[b, columns], none(), "y");
    let graph = finish(edit, &[y]);
    let (small, report) = only("fold-channels", &graph);
    assert_eq!(operators(&small), ["Conv", "Add"]);
    assert_eq!(near(&report, "fold-channels"), "[4] does not run along the channels of c");
    close(&graph, &small, &[2, 3, 6, 4]);
}

#[test]
fn a_product_and_its_bias_become_a_gemm_only_at_rank_two() {
    for (shape, ops) in [(vec![0, 3], vec!["Gemm"]), (vec![0, 2, 3], vec!["MatMul", "Add"])] {
        let (mut edit, x) = start(&shape);
        let w = edit.add_initializer("w", floats(&[3, 5]));
        let b = edit.add_initializer("b", floats(&[5]));
        let m = edit.add_op("MatMul", &[x, w], none(), "m");
        let y = edit.add_op("Add", &[b, m], none(), "y");
        let graph = finish(edit, &[y]);
        let (small, _) = only("fuse-gemm", &graph);
        assert_eq!(operators(&small), ops);
        let sizes: Vec<usize> = shape.iter().map(|d| (*d).max(2)).collect();
        close(&graph, &small, &sizes);
    }
    let (mut edit, x) = start(&[1, 3]);
    let w = edit.add_initializer("w", floats(&[3, 5]));
    let b = edit.add_initializer("b", floats(&[4, 5]));
    let m = edit.add_op("MatMul", &[x, w], none(), "m");
    let y = edit.add_op("Add", &[m, b], none(), "y");
    let (same, report) = only("fuse-gemm", &finish(edit, &[y]));
    assert_eq!(operators(&same), ["MatMul", "Add"]);
    assert_eq!(near(&report, "fuse-gemm"), "what is added to m changes its shape");
}

#[test]
fn repeated_nodes_and_small_constants_are_merged_but_weights_are_not() {
    let (mut edit, x) = start(&[2, 6]);
    let (t, u) = (edit.add_initializer("t", ints(&[3, 4])), edit.add_initializer("u", ints(&[3, 4])));
    let (v, w) = (edit.add_initializer("v", floats(&[4])), edit.add_initializer("w", floats(&[4])));
    let a = edit.add_op("Reshape", &[x, t], none(), "a");
    let b = edit.add_op("Reshape", &[x, u], none(), "b");
    let c = edit.add_op("Add", &[a, v], none(), "c");
    let d = edit.add_op("Add", &[b, w], none(), "d");
    let y = edit.add_op("Add", &[c, d], none(), "y");
    let p = edit.add_op("Transpose", &[y], perm(&[1, 0]), "p");
    let q = edit.add_op("Transpose", &[y], perm(&[1, 0]), "q");
    let graph = finish(edit, &[p, q]);
    let (small, report) = only("merge-duplicates", &graph);
    assert_eq!(operators(&small), ["Reshape", "Add", "Add", "Add", "Transpose", "Transpose"]);
    assert!(near(&report, "merge-duplicates").starts_with("it repeats p"));
    assert_eq!(small.initializers().count(), 3);
    assert_eq!(difference(&graph, &small, &[2, 6]).0, 0.0);
}

#[test]
fn dead_nodes_and_constants_go_and_unknown_operators_stay() {
    let (mut edit, x) = start(&[2]);
    let b = edit.add_initializer("b", floats(&[2]));
    let a = edit.add_op("Add", &[x, b], none(), "a");
    edit.add_op("Relu", &[a], none(), "dead");
    let odd = edit.add_value("odd", None);
    edit.add_node(Node::new("Odd", vec![Some(x)], vec![Some(odd)]).in_domain("my.domain").named("odd"));
    let y = edit.add_op("Relu", &[x], none(), "y");
    let (small, report) = only("drop-dead", &finish(edit, &[y]));
    assert_eq!(operators(&small), ["Odd", "Relu"]);
    assert_eq!(small.initializers().count(), 0);
    assert_eq!(near(&report, "drop-dead"), "nothing reads it, but my.domain:Odd is not known");
}

#[test]
fn what_a_body_captures_keeps_its_name_and_its_producer() {
    let body = |reads: &str| {
        let mut edit = Edit::new("branch", &[("", 17)]);
        let v = edit.add_value(reads, None);
        let y = edit.add_op("Relu", &[v], none(), "branch_out");
        edit.add_output(y);
        edit.commit_body().unwrap()
    };
    let (mut edit, x) = start(&[2]);
    let r = edit.add_op("Relu", &[x], none(), "r");
    let i = edit.add_op("Identity", &[r], none(), "i");
    let _ = edit.add_op("Identity", &[x], none(), "j");
    let condition = edit.add_initializer("condition", Tensor::from_bools(vec![], vec![true]).unwrap());
    let y = edit.add_value("y", None);
    let mut node = Node::new("If", vec![Some(condition)], vec![Some(y)]).named("choice");
    node.attributes = none().with("then_branch", Attr::Body(0)).with("else_branch", Attr::Body(1));
    node.bodies = vec![("then_branch".into(), body("i")), ("else_branch".into(), body("j"))];
    edit.add_node(node);
    let z = edit.add_op("Add", &[y, i], none(), "z");
    let graph = finish(edit, &[z]);
    let (small, report) = with("", &graph);
    assert_eq!(operators(&small), ["Relu", "Identity", "If", "Add"]);
    assert_eq!(small.value_name(small.nodes()[0].outputs[0].unwrap()), "i");
    assert_eq!(near(&report, "bodies"), "the bodies of If are left as they are");
    close(&graph, &small, &[2]);
}

#[test]
fn settings_name_rules_that_exist() {
    let build = |s: &str| crate::passes::by_name("optimize", &s.parse().unwrap());
    let e = build("rules = ['fold']").err().unwrap();
    assert_eq!((e.code(), e.kind().exit_code()), ("OPTIMIZE-RULE", 2));
    assert_eq!(build("fold = 1").err().unwrap().kind().exit_code(), 2);
    let all: Vec<String> = RULES.iter().map(|r| format!("'{}'", r.name)).collect();
    let pass = build(&format!("skip = [{}]", all.join(", "))).unwrap();
    let (mut edit, x) = start(&[2]);
    let y = edit.add_op("Relu", &[x], none(), "y");
    let graph = finish(edit, &[y]);
    let ctx = Ctx::new(&Silent);
    assert_eq!(pass.check(&graph, &ctx).unwrap_err().code(), "OPTIMIZE-RULES");
    let empty = finish(Edit::new("g", &[("", 17)]), &[]);
    assert_eq!(build("").unwrap().check(&empty, &ctx).unwrap_err().code(), "NOTHING-TO-OPTIMIZE");
}

#[test]
fn a_stop_request_is_honoured() {
    let (mut edit, x) = start(&[2]);
    let y = edit.add_op("Relu", &[x], none(), "y");
    let graph = finish(edit, &[y]);
    let stopped = crate::monitor::Switch(true.into());
    let mut ctx = Ctx::new(&stopped);
    let pass = crate::passes::by_name("optimize", &"".parse().unwrap()).unwrap();
    assert_eq!(pass.run(&graph, &mut ctx).unwrap_err().code(), "STOPPED");
}
