//! Operators that are spelled out: what they become for which target, and what keeps them as they are.

use super::*;

/// A graph of this operator set in the making.
fn at(opset: i64, shape: &[usize]) -> (Edit, ValueId) {
    let mut edit = Edit::new("g", &[("", opset)]);
    let dims = shape.iter().enumerate().map(|(i, n)| match n {
        0 => Dim::symbol(&format!("d{i}")),
        n => Dim::from(*n),
    });
    let x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: Some(dims.collect()) });
    (edit, x)
}

fn number(edit: &mut Edit, x: f32) -> ValueId {
    edit.add_initializer("c", Tensor::scalar(x))
}

fn op(edit: &mut Edit, op: &str, inputs: &[ValueId]) -> ValueId {
    edit.add_op(op, inputs, none(), "v")
}

fn by(edit: &mut Edit, name: &str, x: ValueId, c: f32) -> ValueId {
    let c = number(edit, c);
    op(edit, name, &[x, c])
}

fn mean(edit: &mut Edit, x: ValueId, axes: &[i64]) -> ValueId {
    edit.add_op("ReduceMean", &[x], none().with("axes", Attr::Ints(axes.to_vec())), "mean")
}

/// `(x - mean) / sqrt(variance + 1e-5) * scale + bias`, centred or not, and the variance.
fn norm(edit: &mut Edit, x: ValueId, centred: bool, axes: &[i64], scale: &[usize]) -> (ValueId, ValueId) {
    let mut d = x;
    if centred {
        let m = mean(edit, x, axes);
        d = op(edit, "Sub", &[x, m]);
    }
    let squares = by(edit, "Pow", d, 2.0);
    let variance = mean(edit, squares, axes);
    let shifted = by(edit, "Add", variance, 1e-5);
    let root = op(edit, "Sqrt", &[shifted]);
    let y = op(edit, "Div", &[d, root]);
    let scale = edit.add_initializer("scale", floats(scale));
    let y = op(edit, "Mul", &[y, scale]);
    let bias = edit.add_initializer("bias", floats(&[8]));
    (op(edit, "Add", &[y, bias]), variance)
}

fn gelu(edit: &mut Edit, x: ValueId, tanh: bool, cubic: f32) -> ValueId {
    let bent = match tanh {
        true => {
            let cube = by(edit, "Pow", x, 3.0);
            let cube = by(edit, "Mul", cube, cubic);
            let sum = op(edit, "Add", &[x, cube]);
            let inner = by(edit, "Mul", sum, (2.0 / std::f32::consts::PI).sqrt());
            op(edit, "Tanh", &[inner])
        }
        false => {
            let inner = by(edit, "Div", x, std::f32::consts::SQRT_2);
            op(edit, "Erf", &[inner])
        }
    };
    let lifted = by(edit, "Add", bent, 1.0);
    let y = op(edit, "Mul", &[x, lifted]);
    by(edit, "Mul", y, 0.5)
}

fn hard_swish(edit: &mut Edit, x: ValueId) -> ValueId {
    let shifted = by(edit, "Add", x, 3.0);
    let (low, high) = (number(edit, 0.0), number(edit, 6.0));
    let clipped = op(edit, "Clip", &[shifted, low, high]);
    let y = op(edit, "Mul", &[x, clipped]);
    by(edit, "Div", y, 6.0)
}

fn names(graph: &Graph) -> Vec<String> {
    graph.nodes().iter().map(Node::operator_name).collect()
}

#[test]
fn norms_become_themselves_where_the_operator_set_has_them() {
    let build = |opset, centred: bool| {
        let (mut edit, x) = at(opset, &[0, 3, 8]);
        let (y, _) = norm(&mut edit, x, centred, &[-1], &[8]);
        finish(edit, &[y])
    };
    let graph = build(17, true);
    let (whole, report) = with("", &graph);
    assert_eq!(names(&whole), ["LayerNormalization"]);
    close(&graph, &whole, &[2, 3, 8]);
    assert_eq!(report.facts["trials"], 1.0);
    assert!(report.facts["largest_trial_difference"] < 1e-6);

    let graph = build(14, true);
    let (left, report) = with("", &graph);
    assert_eq!(left.nodes().len(), graph.nodes().len());
    let why = "no LayerNormalization: LayerNormalization needs operator set 17, the model has 14";
    assert_eq!(near(&report, "fuse-norms"), why);
    for settings in ["upgrade = true", "target = 'ort'"] {
        let (raised, report) = with(settings, &graph);
        assert_eq!((names(&raised), raised.opset("")), (vec!["LayerNormalization".into()], Some(17)));
        assert_eq!(applied(&report, "upgrade"), 1);
        close(&graph, &raised, &[2, 3, 8]);
    }

    let graph = build(17, false);
    assert!(near(&with("", &graph).1, "fuse-norms").contains("RMSNormalization needs operator set 23"));
    let (whole, _) = with("target = 'ort'", &graph);
    assert_eq!(names(&whole), ["SimplifiedLayerNormalization", "Add"]);
    close(&graph, &whole, &[2, 3, 8]);
}

#[test]
fn norms_that_differ_in_one_condition_are_told() {
    let (mut edit, x) = at(17, &[0, 8, 8]);
    let (y, _) = norm(&mut edit, x, true, &[1], &[8]);
    let (_, report) = with("", &finish(edit, &[y]));
    assert!(
        report.skipped.iter().any(|s| s.reason.contains("the mean is over axes [1], not over the last ones"))
    );

    let (mut edit, x) = at(17, &[0, 3, 8]);
    let (y, variance) = norm(&mut edit, x, true, &[-1], &[8]);
    let name = edit.graph().value_name(variance).to_string();
    let (left, report) = with("", &finish(edit, &[y, variance]));
    assert!(!names(&left).contains(&"LayerNormalization".to_string()));
    let why = format!("{name} between its nodes is a graph output");
    assert!(report.skipped.iter().any(|s| s.reason.contains(&why)), "{:?}", report.skipped);

    let (mut edit, x) = at(17, &[0, 3, 8]);
    let (y, _) = norm(&mut edit, x, true, &[-1], &[1]);
    let (_, report) = with("", &finish(edit, &[y]));
    assert!(near(&report, "fuse-norms").contains("its scale has not the shape [8]"));
}

#[test]
fn activations_become_what_the_target_has() {
    let cases: [(i64, &str, bool, &[&str]); 6] = [
        (20, "", false, &["Gelu"]),
        (20, "", true, &["Gelu"]),
        (17, "target = 'ort'", false, &["com.microsoft:Gelu"]),
        (17, "target = 'ort'", true, &["com.microsoft:FastGelu"]),
        (17, "", false, &["Div", "Erf", "Add", "Mul", "Mul"]),
        (17, "skip = ['fuse-activations']\ntarget = 'ort'", false, &["Div", "Erf", "Add", "Mul", "Mul"]),
    ];
    for (opset, settings, tanh, wanted) in cases {
        let (mut edit, x) = at(opset, &[0, 8]);
        let y = gelu(&mut edit, x, tanh, 0.044715);
        let graph = finish(edit, &[y]);
        let (whole, _) = with(settings, &graph);
        assert_eq!(names(&whole), wanted);
        close(&graph, &whole, &[3, 8]);
    }
    let (mut edit, x) = at(17, &[0, 8]);
    let gate = op(&mut edit, "Sigmoid", &[x]);
    let y = op(&mut edit, "Mul", &[x, gate]);
    let graph = finish(edit, &[y]);
    assert!(near(&with("", &graph).1, "fuse-activations").contains("Swish needs operator set 24"));
    let (whole, _) = with("target = 'ort'", &graph);
    assert_eq!(names(&whole), ["com.microsoft:QuickGelu"]);
    close(&graph, &whole, &[3, 8]);

    let (mut edit, x) = at(12, &[0, 8]);
    let y = hard_swish(&mut edit, x);
    let graph = finish(edit, &[y]);
    let (gated, _) = with("", &graph);
    assert_eq!(names(&gated), ["HardSigmoid", "Mul"]);
    close(&graph, &gated, &[3, 8]);
}

#[test]
fn a_coefficient_that_is_off_is_told() {
    let (mut edit, x) = at(20, &[0, 8]);
    let y = gelu(&mut edit, x, true, 0.0447);
    let (left, report) = with("", &finish(edit, &[y]));
    assert!(names(&left).contains(&"Tanh".to_string()));
    assert!(near(&report, "fuse-activations").contains("no Gelu: a coefficient is 0.0356"));
}

/// Attention of two heads of four; 0: no mask, 1: from a padding input, 2: anything added, 3: as 2, of one row.
fn attention(mask: usize) -> Graph {
    let mut edit = Edit::new("g", &[("", 17)]);
    let dims = |d: &[i64]| {
        let dim = |n: &i64| if *n < 0 { Dim::symbol(&format!("n{n}")) } else { Dim::from(*n) };
        Some(d.iter().map(dim).collect::<Vec<Dim>>())
    };
    let x = edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: dims(&[-1, -2, 8]) });
    let split = edit.add_initializer("split", ints(&[0, 0, 2, 4]));
    let head = |edit: &mut Edit, name: &str, p: &[i64]| {
        let w = edit.add_initializer(name, floats(&[8, 8]));
        let rows = edit.add_op("MatMul", &[x, w], none(), "rows");
        let four = edit.add_op("Reshape", &[rows, split], none(), "four");
        edit.add_op("Transpose", &[four], perm(p), "by_head")
    };
    let q = head(&mut edit, "wq", &[0, 2, 1, 3]);
    let k = head(&mut edit, "wk", &[0, 2, 3, 1]);
    let v = head(&mut edit, "wv", &[0, 2, 1, 3]);
    let scores = op(&mut edit, "MatMul", &[q, k]);
    let mut scores = by(&mut edit, "Div", scores, 2.0);
    if mask == 1 {
        let padding = edit.add_input("padding", Type::Tensor { dtype: DType::I64, shape: dims(&[-1, -2]) });
        let axes = edit.add_initializer("axes", ints(&[1, 2]));
        let four = op(&mut edit, "Unsqueeze", &[padding, axes]);
        let float = edit.add_op("Cast", &[four], none().with("to", Attr::Int(1)), "float");
        let one = number(&mut edit, 1.0);
        let out = op(&mut edit, "Sub", &[one, float]);
        let low = by(&mut edit, "Mul", out, -10000.0);
        scores = op(&mut edit, "Add", &[scores, low]);
    } else if mask > 1 {
        let rows = if mask == 2 { -2 } else { 1 };
        let bias =
            edit.add_input("bias", Type::Tensor { dtype: DType::F32, shape: dims(&[-1, 1, rows, -2]) });
        scores = op(&mut edit, "Add", &[scores, bias]);
    }
    let weights = edit.add_op("Softmax", &[scores], none().with("axis", Attr::Int(-1)), "weights");
    let y = op(&mut edit, "MatMul", &[weights, v]);
    let y = edit.add_op("Transpose", &[y], perm(&[0, 2, 1, 3]), "by_position");
    let whole = edit.add_initializer("whole", ints(&[0, 0, 8]));
    let y = edit.add_op("Reshape", &[y, whole], none(), "y");
    finish(edit, &[y])
}

#[test]
fn attention_becomes_one_operator_with_its_mask() {
    let feeds = |mask: usize| {
        let mut feed = vec![("x".to_string(), floats(&[2, 5, 8]))];
        match mask {
            1 => feed.push((
                "padding".into(),
                Tensor::from_vec(vec![2, 5], vec![1i64, 1, 1, 0, 1, 1, 1, 0, 0, 0]).unwrap(),
            )),
            2 => feed.push(("bias".into(), floats(&[2, 1, 5, 5]))),
            3 => feed.push(("bias".into(), floats(&[2, 1, 1, 5]))),
            _ => {}
        }
        feed
    };
    for mask in 0..4 {
        let graph = attention(mask);
        let (whole, report) = with("target = 'ort'", &graph);
        let made = names(&whole).contains(&"com.microsoft:MultiHeadAttention".to_string());
        assert_eq!(made, mask < 3, "{mask}: {:?}", report.skipped);
        assert!(report.applied.iter().all(|a| !a.detail.contains("untried")), "{:?}", report.applied);
        let run = |g: &Graph| Executor::new(g).unwrap().run(&feeds(mask)).unwrap()[0].1.to_f32s().unwrap();
        let far = run(&graph).iter().zip(run(&whole)).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(far < 1e-5, "{mask}: {far}");
        if mask == 3 {
            assert_eq!(near(&report, "fuse-attention"), "no Attention: its mask, bias, has an unknown form");
        }
    }
    assert!(near(&with("", &attention(0)).1, "fuse-attention").contains("target = \"ort\""));
}

/// A rule that is wrong: Relu for Abs.
fn wrong(sweep: &mut Sweep<'_>) -> Result<()> {
    for i in 0..sweep.graph.nodes().len() {
        let (x, y) = (sweep.graph.node(i).inputs[0].unwrap(), sweep.graph.node(i).outputs[0].unwrap());
        if let Some(why) = sweep.refused(y) {
            sweep.skip("node", why);
        } else {
            sweep.change(i).op_type = "Relu".into();
            sweep.apply("node", "wrong");
            sweep.claim(y, [x]);
        }
    }
    Ok(())
}

#[test]
fn a_rewrite_that_gives_other_numbers_does_not_stand() {
    let (mut edit, x) = at(17, &[0, 8]);
    let a = op(&mut edit, "Abs", &[x]);
    let b = op(&mut edit, "Abs", &[a]);
    let graph = finish(edit, &[b]);
    let outcome = Sweep::run(&Analysis::of(graph), "wrong", TERMS, wrong).unwrap();
    // Of what is never negative Relu and Abs are the same, but a trial of one node does not know that.
    assert_eq!(outcome.graph.map(|g| names(&g)), None);
    assert_eq!((outcome.applied.len(), outcome.skipped.len()), (0, 2));
    assert!(outcome.skipped[0].reason.starts_with("a trial gives other numbers"));
}

/// `x * 2 + 3` by channel in front of a convolution of 4 channels in `group` groups, with these pads.
fn in_front(group: i64, pad: i64) -> Graph {
    let (mut edit, x) = start(&[0, 4, 6, 6]);
    let scale = edit.add_initializer("scale", floats(&[4, 1, 1]));
    let y = op(&mut edit, "Mul", &[scale, x]);
    let shift = edit.add_initializer("shift", floats(&[1, 4, 1, 1]));
    let y = op(&mut edit, "Sub", &[y, shift]);
    let w = edit.add_initializer("w", floats(&[8, 4 / group as usize, 3, 3]));
    let b = edit.add_initializer("b", floats(&[8]));
    let attributes = none().with("group", Attr::Int(group)).with("pads", Attr::Ints(vec![pad; 4]));
    let y = edit.add_op("Conv", &[y, w, b], attributes, "y");
    finish(edit, &[y])
}

#[test]
fn channels_are_scaled_and_shifted_within_the_convolution_behind() {
    for group in [1, 2, 4] {
        let graph = in_front(group, 0);
        let (folded, report) = with("", &graph);
        assert_eq!(operators(&folded), ["Conv"], "{:?}", report.skipped);
        assert_eq!(applied(&report, "fold-inputs"), 2);
        close(&graph, &folded, &[2, 4, 6, 6]);
        let graph = in_front(group, 1);
        let (kept, report) = with("", &graph);
        assert_eq!(operators(&kept), ["Mul", "Sub", "Conv"]);
        assert!(near(&report, "fold-inputs").contains("pads with zeros"));
    }
}

#[test]
fn zeros_around_a_convolution_become_its_pads() {
    let build = |pads: &[i64], value: f32| {
        let (mut edit, x) = start(&[0, 2, 5, 5]);
        let pads = edit.add_initializer("pads", ints(pads));
        let value = number(&mut edit, value);
        let y = op(&mut edit, "Pad", &[x, pads, value]);
        let w = edit.add_initializer("w", floats(&[3, 2, 3, 3]));
        let own = none().with("pads", Attr::Ints(vec![1, 0, 0, 2]));
        let y = edit.add_op("Conv", &[y, w], own, "y");
        finish(edit, &[y])
    };
    let graph = build(&[0, 0, 1, 2, 0, 0, 3, 0], 0.0);
    let (folded, _) = with("", &graph);
    assert_eq!(operators(&folded), ["Conv"]);
    assert_eq!(folded.node(0).attributes.ints("pads").unwrap(), Some(vec![2, 2, 3, 2]));
    close(&graph, &folded, &[2, 2, 5, 5]);
    for (pads, value, why) in [
        ([0, 0, 1, 2, 0, 0, 3, 0], 1.0, "it does not pad with zeros"),
        ([0, 0, -1, 2, 0, 0, 3, 0], 0.0, "it pads batch or channels, or cuts"),
    ] {
        let (kept, report) = with("", &build(&pads, value));
        assert_eq!((operators(&kept).len(), near(&report, "fold-pads")), (2, why));
    }
}

#[test]
fn integers_are_moved_as_they_are() {
    let build = |other: bool| {
        let (mut edit, x) = start(&[0, 4, 6]);
        let grid = |edit: &mut Edit, s: f32| {
            let scale = edit.add_initializer("scale", Tensor::scalar(s));
            (scale, edit.add_initializer("zero", Tensor::scalar(7u8)))
        };
        let ((s, z), (s2, z2)) = (grid(&mut edit, 0.25), grid(&mut edit, if other { 0.5 } else { 0.25 }));
        let q = op(&mut edit, "QuantizeLinear", &[x, s, z]);
        let d = op(&mut edit, "DequantizeLinear", &[q, s, z]);
        let t = edit.add_op("Transpose", &[d], perm(&[0, 2, 1]), "t");
        let q = op(&mut edit, "QuantizeLinear", &[t, s2, z2]);
        let y = op(&mut edit, "DequantizeLinear", &[q, s2, z2]);
        finish(edit, &[y])
    };
    let graph = build(false);
    let (moved, _) = with("", &graph);
    assert_eq!(operators(&moved), ["QuantizeLinear", "Transpose", "DequantizeLinear"]);
    assert_eq!(difference(&graph, &moved, &[2, 4, 6]).0, 0.0);
    let (kept, report) = with("", &build(true));
    assert_eq!(operators(&kept).len(), 5);
    assert_eq!(near(&report, "move-integers"), "it stands between two different grids");
}
