//! Structured pruning: for every coupling rule, the graph without units gives the outputs of the graph
//! with the same units at zero.

use crate::cache;
use std::path::Path;
use tinsmith::analysis;
use tinsmith::evaluate::parity::parity;
use tinsmith::evaluate::samples::{Batch, Samples};
use tinsmith::execute::Executor;
use tinsmith::formats;
use tinsmith::graph::constants::Constants;
use tinsmith::graph::coupling::Kind;
use tinsmith::graph::{Edit, Graph, Type, ValueId};
use tinsmith::monitor::Silent;
use tinsmith::ops::{Attr, Attributes, Dim};
use tinsmith::passes::prune::{Decision, Settings, decide, decide_with, mask, slice};
use tinsmith::passes::{Ctx, Keep, by_name};
use tinsmith::runtime::{Session, SessionOptions};
use tinsmith::tensor::{DType, Tensor};

/// Numbers between -1 and 1, the same in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 40) as f32) / (1u64 << 23) as f32 - 1.0
    }
    fn tensor(&mut self, shape: &[usize]) -> Tensor {
        let data = (0..shape.iter().product::<usize>()).map(|_| self.next()).collect::<Vec<f32>>();
        Tensor::from_vec(shape.to_vec(), data).unwrap()
    }
}

/// A graph in the making.
struct Net {
    edit: Edit,
    noise: Noise,
    names: usize,
}

fn ints(v: &[i64]) -> Attr {
    Attr::Ints(v.to_vec())
}

impl Net {
    fn new(opset: i64) -> Net {
        Net { edit: Edit::new("net", &[("", opset)]), noise: Noise(7), names: 0 }
    }
    fn input(&mut self, shape: &[i64]) -> ValueId {
        let mut dims: Vec<Dim> = shape.iter().map(|n| Dim::from(*n)).collect();
        dims[0] = Dim::symbol("n");
        self.edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: Some(dims) })
    }
    fn weight(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let tensor = self.noise.tensor(shape);
        self.edit.add_initializer(name, tensor)
    }
    fn constant(&mut self, values: &[i64]) -> ValueId {
        let tensor = Tensor::from_vec(vec![values.len()], values.to_vec()).unwrap();
        self.edit.add_initializer("shape", tensor)
    }
    fn op(&mut self, op: &str, inputs: &[ValueId], attributes: &[(&str, Attr)]) -> ValueId {
        self.names += 1;
        let all = attributes.iter().fold(Attributes::new(), |a, (n, v)| a.with(n, v.clone()));
        self.edit.add_op(op, inputs, all, &format!("{op}_{}", self.names))
    }
    fn ops(
        &mut self,
        op: &str,
        inputs: &[ValueId],
        attributes: &[(&str, Attr)],
        outputs: usize,
    ) -> Vec<ValueId> {
        self.names += 1;
        let all = attributes.iter().fold(Attributes::new(), |a, (n, v)| a.with(n, v.clone()));
        let out: Vec<ValueId> =
            (0..outputs).map(|i| self.edit.add_value(&format!("{op}_{}_{i}", self.names), None)).collect();
        let node = tinsmith::graph::Node::new(
            op,
            inputs.iter().copied().map(Some).collect(),
            out.iter().copied().map(Some).collect(),
        );
        self.edit.add_node(node.with(all).named(format!("{op}_{}", self.names)));
        out
    }
    /// A 3x3 convolution with bias that keeps the image's size.
    fn conv(&mut self, name: &str, x: ValueId, from: usize, to: usize, group: usize) -> ValueId {
        let w = self.weight(&format!("{name}.w"), &[to, from / group, 3, 3]);
        let b = self.weight(&format!("{name}.b"), &[to]);
        let attributes = [("pads", ints(&[1, 1, 1, 1])), ("group", Attr::Int(group as i64))];
        self.op("Conv", &[x, w, b], &attributes)
    }
    fn norm(&mut self, x: ValueId, channels: usize) -> ValueId {
        let mut inputs = vec![x];
        for name in ["scale", "bias", "mean"] {
            inputs.push(self.weight(&format!("bn.{name}"), &[channels]));
        }
        let variance: Vec<f32> = (0..channels).map(|_| self.noise.next().abs() + 0.3).collect();
        inputs.push(self.edit.add_initializer("bn.var", Tensor::from_vec(vec![channels], variance).unwrap()));
        self.op("BatchNormalization", &inputs, &[])
    }
    fn gemm(&mut self, name: &str, x: ValueId, from: usize, to: usize) -> ValueId {
        let w = self.weight(&format!("{name}.w"), &[to, from]);
        let b = self.weight(&format!("{name}.b"), &[to]);
        self.op("Gemm", &[x, w, b], &[("transB", Attr::Int(1))])
    }
    /// Pooled and classified.
    fn head(mut self, x: ValueId, channels: usize) -> Graph {
        let pooled = self.op("GlobalAveragePool", &[x], &[]);
        let flat = self.op("Flatten", &[pooled], &[]);
        let y = self.gemm("head", flat, channels, 5);
        self.done(y)
    }
    fn done(mut self, y: ValueId) -> Graph {
        self.edit.add_output(y);
        self.edit.commit().unwrap()
    }
}

fn settings(text: &str) -> Settings {
    toml::from_str(text).unwrap()
}

fn parameters(graph: &Graph) -> u64 {
    Constants::of(graph).iter().filter(|(_, t)| t.dtype().is_float()).map(|(_, t)| t.len() as u64).sum()
}

fn run(graph: &Graph, batch: usize) -> Vec<(String, Tensor)> {
    let mut noise = Noise(99);
    let inputs: Vec<(String, Tensor)> = graph
        .required_inputs()
        .map(|v| {
            let Some(Type::Tensor { shape: Some(shape), .. }) = &graph.value(v).ty else {
                panic!("no shape")
            };
            let shape: Vec<usize> = shape.iter().map(|d| d.size().unwrap_or(batch)).collect();
            (graph.value_name(v).to_string(), noise.tensor(&shape))
        })
        .collect();
    Executor::new(graph).unwrap().run(&inputs).unwrap()
}

/// Prunes, and holds the sliced graph against the masked one, whose outputs are returned too.
fn agreeing(graph: &Graph, text: &str) -> (Graph, Decision, Vec<(String, Tensor)>) {
    let decision = decide(graph, &settings(text), &Silent).unwrap();
    let pruned = slice(graph, &decision).unwrap();
    assert!(decision.removed_parameters > 0);
    assert_eq!(parameters(graph) - parameters(&pruned), decision.removed_parameters, "counted parameters");
    let masked = mask(graph, &decision).unwrap();
    let (reference, sliced) = (run(&masked, 2), run(&pruned, 2));
    let p = parity(&reference, &sliced, 1e-5).unwrap();
    assert!(p.max_rel <= 1e-5 && p.not_finite == 0, "masked and sliced differ: {p:?}");
    (pruned, decision, reference)
}

/// As [`agreeing`], on a graph whose outputs depend on what leaves.
fn checked(graph: &Graph, text: &str) -> (Graph, Decision) {
    let (pruned, decision, reference) = agreeing(graph, text);
    assert!(reference.iter().all(|(_, t)| t.to_f32s().unwrap().iter().any(|x| *x != 0.0)), "all is zero");
    let whole = parity(&run(graph, 2), &run(&pruned, 2), 1e-5).unwrap();
    assert!(whole.max_rel > 1e-4, "nothing that matters was removed: {whole:?}");
    (pruned, decision)
}

/// Units before and after of the group that holds `weight` along `axis`.
fn units(graph: &Graph, decision: &Decision, weight: &str, axis: usize) -> (usize, usize) {
    let v = graph.find(weight).unwrap();
    let group = decision
        .coupled
        .groups()
        .iter()
        .find(|g| g.weights().any(|p| p.value == v && p.axis == axis))
        .unwrap_or_else(|| panic!("no group on {weight}"));
    (group.units, decision.kept(group))
}

fn shape<'a>(graph: &'a Graph, weight: &str) -> &'a [usize] {
    graph.initializer(graph.find(weight).unwrap()).unwrap().shape()
}

const HALF: &str = "ratio = 0.5\nround_to = 2";

#[test]
fn a_chain_with_batch_norms_shrinks() {
    let mut net = Net::new(17);
    let x = net.input(&[1, 3, 8, 8]);
    let a = net.conv("a", x, 3, 16, 1);
    let a = net.norm(a, 16);
    let a = net.op("Relu", &[a], &[]);
    let a = net.op("MaxPool", &[a], &[("kernel_shape", ints(&[2, 2])), ("strides", ints(&[2, 2]))]);
    let b = net.conv("b", a, 16, 24, 1);
    // A norm behind the nonlinearity: its shift makes the masked channel non-zero unless it is masked.
    let b = net.op("Relu", &[b], &[]);
    let b = net.norm(b, 24);
    let graph = net.head(b, 24);
    for text in [HALF, "ratio = 0.5\nscope = 'layer'\ncriterion = 'l1'\nround_to = 4"] {
        let (pruned, decision) = checked(&graph, text);
        let (before, after) = units(&graph, &decision, "a.w", 0);
        assert!(before == 16 && after < 16 && after % 2 == 0);
        assert_eq!(shape(&pruned, "a.w"), [after, 3, 3, 3]);
        assert_eq!(shape(&pruned, "b.w")[1], after);
        assert_eq!(shape(&pruned, "bn.scale"), [after]);
    }
}

#[test]
fn residual_branches_shrink_together() {
    let mut net = Net::new(17);
    let x = net.input(&[1, 3, 8, 8]);
    let stem = net.conv("stem", x, 3, 16, 1);
    let stem = net.op("Relu", &[stem], &[]);
    let inner = net.conv("inner", stem, 16, 12, 1);
    let inner = net.op("Relu", &[inner], &[]);
    let back = net.conv("back", inner, 12, 16, 1);
    let sum = net.op("Add", &[stem, back], &[]);
    // A vector that broadcasts, and one number for all.
    let shift = net.weight("shift", &[16, 1, 1]);
    let sum = net.op("Add", &[sum, shift], &[]);
    let one = net.weight("one", &[1]);
    let sum = net.op("Add", &[sum, one], &[]);
    let graph = net.head(sum, 16);
    let (pruned, decision) = checked(&graph, "ratio = 0.5\nscope = 'layer'\nround_to = 2");
    let (before, after) = units(&graph, &decision, "stem.w", 0);
    assert!(before == 16 && after < 16);
    assert_eq!(shape(&pruned, "back.w")[0], after);
    assert_eq!(shape(&pruned, "shift"), [after, 1, 1]);
    assert_eq!(shape(&pruned, "one"), [1]);
    assert_eq!(shape(&pruned, "head.w"), [5, after]);
}

#[test]
fn concatenations_keep_offsets() {
    let mut net = Net::new(17);
    let x = net.input(&[1, 3, 8, 8]);
    let a = net.conv("a", x, 3, 8, 1);
    let b = net.conv("b", x, 3, 12, 1);
    let b = net.op("Relu", &[b], &[]);
    let all = net.op("Concat", &[b, x, a, b], &[("axis", Attr::Int(1))]);
    let c = net.conv("c", all, 35, 8, 1);
    let graph = net.head(c, 8);
    let (pruned, decision) = checked(&graph, HALF);
    let (_, a) = units(&graph, &decision, "a.w", 0);
    let (_, b) = units(&graph, &decision, "b.w", 0);
    assert_eq!(shape(&pruned, "c.w")[1], a + 2 * b + 3);
    assert!(a < 8 && b < 12);
}

#[test]
fn splits_follow_with_sizes_given_or_not() {
    // Sizes as input, equal parts without sizes, and a number of parts.
    for (opset, given, parts) in [(17, true, false), (17, false, false), (18, false, true)] {
        let mut net = Net::new(opset);
        let x = net.input(&[1, 3, 8, 8]);
        let a = net.conv("a", x, 3, 24, 1);
        let mut inputs = vec![a];
        if given {
            inputs.push(net.constant(&[8, 16]));
        }
        let mut attributes = vec![("axis", Attr::Int(1))];
        if parts {
            attributes.push(("num_outputs", Attr::Int(2)));
        }
        let halves = net.ops("Split", &inputs, &attributes, 2);
        let (left, right) = if given { (8, 16) } else { (12, 12) };
        let b = net.conv("b", halves[0], left, 10, 1);
        let b = net.op("Relu", &[b], &[]);
        let c = net.conv("c", halves[1], right, 10, 1);
        let sum = net.op("Add", &[b, c], &[]);
        let graph = net.head(sum, 10);
        let (pruned, decision) = checked(&graph, "ratio = 0.4\nround_to = 1");
        let (_, b) = units(&graph, &decision, "b.w", 1);
        let (_, c) = units(&graph, &decision, "c.w", 1);
        assert_eq!((shape(&pruned, "b.w")[1], shape(&pruned, "c.w")[1]), (b, c));
        assert_eq!(shape(&pruned, "a.w")[0], b + c);
    }
}

#[test]
fn grouped_and_depthwise_convolutions_lose_groups() {
    let mut net = Net::new(17);
    let x = net.input(&[1, 3, 8, 8]);
    let a = net.conv("a", x, 3, 16, 1);
    let deep = net.conv("deep", a, 16, 32, 16); // two outputs a channel
    let grouped = net.conv("grouped", deep, 32, 16, 8); // units of four and two channels
    let grouped = net.op("Relu", &[grouped], &[]);
    let b = net.conv("b", grouped, 16, 8, 1);
    let graph = net.head(b, 8);
    let (pruned, decision) = checked(&graph, "ratio = 0.5\nround_to = 1\nscope = 'layer'");
    let (before, after) = units(&graph, &decision, "grouped.w", 0);
    assert!(before == 8 && after < 8);
    assert_eq!(shape(&pruned, "a.w")[0], 2 * after);
    assert_eq!(shape(&pruned, "deep.w"), [4 * after, 1, 3, 3]);
    assert_eq!(shape(&pruned, "grouped.w"), [2 * after, 4, 3, 3]);
}

#[test]
fn transposed_convolutions_shrink_on_both_sides() {
    for group in [1, 4] {
        let mut net = Net::new(17);
        let x = net.input(&[1, 3, 8, 8]);
        let a = net.conv("a", x, 3, 16, 1);
        let w = net.weight("up.w", &[16, 12 / group, 2, 2]);
        let b = net.weight("up.b", &[12]);
        let attributes = [("strides", ints(&[2, 2])), ("group", Attr::Int(group as i64))];
        let up = net.op("ConvTranspose", &[a, w, b], &attributes);
        let up = net.op("Relu", &[up], &[]);
        let c = net.conv("c", up, 12, 6, 1);
        let graph = net.head(c, 6);
        let (pruned, _) = checked(&graph, "ratio = 0.5\nround_to = 1\nscope = 'layer'");
        assert!(shape(&pruned, "up.w")[0] < 16 && shape(&pruned, "c.w")[1] < 12);
    }
}

#[test]
fn flattened_channels_are_blocks_of_the_product() {
    for reshape in [false, true] {
        let mut net = Net::new(17);
        let x = net.input(&[1, 3, 4, 4]);
        let a = net.conv("a", x, 3, 16, 1);
        let flat = if reshape {
            let to = net.constant(&[-1, 256]);
            net.op("Reshape", &[a, to], &[])
        } else {
            net.op("Flatten", &[a], &[])
        };
        let b = net.gemm("b", flat, 256, 12);
        let b = net.op("Relu", &[b], &[]);
        let y = net.gemm("y", b, 12, 3);
        let graph = net.done(y);
        let (pruned, decision) = checked(&graph, HALF);
        let (before, after) = units(&graph, &decision, "a.w", 0);
        assert!(before == 16 && after < 16);
        assert_eq!(shape(&pruned, "b.w")[1], 16 * after);
    }
}

/// Functions that do not keep zero lie between the units and their consumers: a squeeze-excite gate,
/// a sigmoid, an exponential, a clip that starts above zero.
#[test]
fn gates_and_functions_that_lift_zero_change_nothing() {
    let mut net = Net::new(17);
    let x = net.input(&[1, 3, 8, 8]);
    let a = net.conv("a", x, 3, 16, 1);
    let a = net.op("Sigmoid", &[a], &[]);
    let pooled = net.op("GlobalAveragePool", &[a], &[]);
    let w = net.weight("down.w", &[8, 16, 1, 1]);
    let down = net.op("Conv", &[pooled, w], &[]);
    let down = net.op("Relu", &[down], &[]);
    let w = net.weight("up.w", &[16, 8, 1, 1]);
    let b = net.weight("up.b", &[16]);
    let up = net.op("Conv", &[down, w, b], &[]);
    let gate = net.op("HardSigmoid", &[up], &[]);
    let gated = net.op("Mul", &[a, gate], &[]);
    let divisor = net.weight("divisor", &[16, 1, 1]);
    let gated = net.op("Div", &[gated, divisor], &[]);
    let gated = net.op("Exp", &[gated], &[]);
    let b = net.conv("b", gated, 16, 6, 1);
    let low = net.edit.add_initializer("low", Tensor::scalar(0.25f32));
    let b = net.op("Clip", &[b, low], &[]);
    let graph = net.head(b, 6);
    let (pruned, decision) = checked(&graph, "ratio = 0.5\nround_to = 1\nscope = 'layer'");
    let (before, after) = units(&graph, &decision, "a.w", 0);
    assert!(before == 16 && after < 16);
    assert_eq!(shape(&pruned, "down.w")[1], after);
    assert_eq!(shape(&pruned, "up.w")[0], after);
    assert_eq!(shape(&pruned, "divisor"), [after, 1, 1]);
    assert!(shape(&pruned, "up.w")[1] < 8);
}

#[test]
fn a_statistic_over_the_channels_is_told() {
    let mut net = Net::new(17);
    let x = net.input(&[1, 4, 6]);
    let w = net.weight("a", &[6, 16]);
    let y = net.op("MatMul", &[x, w], &[]);
    let (scale, bias) = (net.weight("scale", &[16]), net.weight("bias", &[16]));
    let y = net.op("LayerNormalization", &[y, scale, bias], &[]);
    let w = net.weight("b", &[16, 3]);
    let y = net.op("MatMul", &[y, w], &[]);
    let graph = net.done(y);
    let mut ctx = Ctx::new(&Silent);
    let pass = by_name("prune", &"ratio = 0.5".parse().unwrap()).unwrap();
    let (pruned, report) = pass.run(&graph, &mut ctx).unwrap();
    assert_eq!(shape(&pruned, "scale"), [8]);
    assert!(
        report.applied[0].detail.contains("\"LayerNormalization_2\" now takes its statistics"),
        "{report:?}"
    );
    run(&pruned, 2);
}

/// Attention: heads are units of the projections, and the size of a head stays.
#[test]
fn heads_leave_whole() {
    let (heads, size, width) = (6usize, 4usize, 10usize);
    let mut net = Net::new(17);
    let x = net.input(&[1, 5, width as i64]);
    let project = |net: &mut Net, name: &str, perm: &[i64]| {
        let w = net.weight(&format!("{name}.w"), &[width, heads * size]);
        let b = net.weight(&format!("{name}.b"), &[heads * size]);
        let y = net.op("MatMul", &[x, w], &[]);
        let y = net.op("Add", &[y, b], &[]);
        let to = net.constant(&[0, -1, heads as i64, size as i64]);
        let y = net.op("Reshape", &[y, to], &[]);
        net.op("Transpose", &[y], &[("perm", ints(perm))])
    };
    let q = project(&mut net, "q", &[0, 2, 1, 3]);
    let k = project(&mut net, "k", &[0, 2, 3, 1]);
    let v = project(&mut net, "v", &[0, 2, 1, 3]);
    let scores = net.op("MatMul", &[q, k], &[]);
    let scores = net.op("Softmax", &[scores], &[]);
    let mixed = net.op("MatMul", &[scores, v], &[]);
    let back = net.op("Transpose", &[mixed], &[("perm", ints(&[0, 2, 1, 3]))]);
    let to = net.constant(&[0, 0, (heads * size) as i64]);
    let joined = net.op("Reshape", &[back, to], &[]);
    let w = net.weight("o.w", &[heads * size, width]);
    let y = net.op("MatMul", &[joined, w], &[]);
    let graph = net.done(y);
    // Two heads are eight channels, so heads leave in pairs unless told otherwise.
    let (_, decision) = checked(&graph, "ratio = 0.3");
    assert_eq!(units(&graph, &decision, "q.w", 1), (6, 4));
    let (pruned, decision) = checked(&graph, "ratio = 0.5\nround_to = 4");
    assert_eq!(units(&graph, &decision, "q.w", 1), (6, 3));
    let (heads, groups) = (graph.find("q.w").unwrap(), decision.coupled.groups());
    let group = groups.iter().find(|g| g.weights().any(|p| (p.value, p.axis) == (heads, 1))).unwrap();
    assert_eq!(group.kind, Kind::Heads);
    for name in ["q.w", "k.w", "v.w"] {
        assert_eq!(shape(&pruned, name), [width, 3 * size]);
    }
    assert_eq!(shape(&pruned, "o.w"), [3 * size, width]);
}

#[test]
fn shuffled_channels_are_followed() {
    let mut net = Net::new(17);
    let x = net.input(&[1, 3, 8, 8]);
    let a = net.conv("a", x, 3, 16, 1);
    let to = net.constant(&[0, 2, 8, 8, 8]);
    let s = net.op("Reshape", &[a, to], &[]);
    let s = net.op("Transpose", &[s], &[("perm", ints(&[0, 2, 1, 3, 4]))]);
    let to = net.constant(&[0, 16, 8, 8]);
    let s = net.op("Reshape", &[s, to], &[]);
    let b = net.conv("b", s, 16, 6, 1);
    let graph = net.head(b, 6);
    let (pruned, decision) = checked(&graph, "ratio = 0.5\nround_to = 1\nscope = 'layer'");
    let (before, after) = units(&graph, &decision, "a.w", 0);
    assert!(before == 8 && after < 8);
    assert_eq!(shape(&pruned, "a.w")[0], 2 * after);
}

/// A row of an image as a sequence and back, its width asked of another value whose size is spelled in
/// another way.
#[test]
fn channels_behind_open_axes_that_do_not_tell_are_followed() {
    let mut net = Net::new(17);
    let dims = [Dim::symbol("n"), Dim::from(3i64), Dim::from(4i64), Dim::symbol("w")];
    let x = net.edit.add_input("x", Type::Tensor { dtype: DType::F32, shape: Some(dims.to_vec()) });
    let a = net.conv("a", x, 3, 16, 1);
    let half = [("kernel_shape", ints(&[2, 2])), ("strides", ints(&[2, 2]))];
    let y = net.op("MaxPool", &[a], &half);
    let to = net.constant(&[0, 16, -1]);
    let y = net.op("Reshape", &[y, to], &[]);
    let y = net.op("Transpose", &[y], &[("perm", ints(&[0, 2, 1]))]);
    let half = [("kernel_shape", ints(&[1, 1])), ("strides", ints(&[1, 2]))];
    let other = net.op("MaxPool", &[x], &half);
    let batch = net.op("Shape", &[x], &[("end", Attr::Int(1))]);
    let width = net.op("Shape", &[other], &[("start", Attr::Int(3))]);
    let (rows, channels) = (net.constant(&[2]), net.constant(&[16]));
    let to = net.op("Concat", &[batch, rows, width, channels], &[("axis", Attr::Int(0))]);
    let y = net.op("Reshape", &[y, to], &[]);
    let y = net.op("Transpose", &[y], &[("perm", ints(&[0, 3, 1, 2]))]);
    let graph = net.head(y, 16);
    let (pruned, decision) = checked(&graph, HALF);
    assert_eq!(units(&graph, &decision, "a.w", 0), (16, 8));
    assert_eq!(shape(&pruned, "head.w"), [5, 8]);
}

#[test]
fn moved_and_resampled_channels_are_followed() {
    let mut net = Net::new(17);
    let x = net.input(&[1, 3, 4, 4]);
    let a = net.conv("a", x, 3, 16, 1);
    let wide = net.op("SpaceToDepth", &[a], &[("blocksize", Attr::Int(2))]);
    let b = net.conv("b", wide, 64, 32, 1);
    let back =
        net.op("DepthToSpace", &[b], &[("blocksize", Attr::Int(2)), ("mode", Attr::Str(b"CRD".into()))]);
    let starts = net.constant(&[2, 0]);
    let ends = net.constant(&[7, 4]);
    let axes = net.constant(&[1, 2]);
    let part = net.op("Slice", &[back, starts, ends, axes], &[]);
    let pads = net.constant(&[0, 1, 0, 0, 0, 2, 0, 0]);
    let padded = net.op("Pad", &[part, pads], &[]);
    let c = net.conv("c", padded, 8, 8, 1);
    let d = net.conv("d", back, 8, 8, 1);
    let sum = net.op("Add", &[c, d], &[]);
    let graph = net.head(sum, 8);
    let (pruned, decision) = checked(&graph, "ratio = 0.4\nround_to = 1\nscope = 'layer'");
    let (before, after) = units(&graph, &decision, "a.w", 0);
    assert!(before == 16 && after < 16);
    assert_eq!(shape(&pruned, "b.w")[1], 4 * after);
    assert!(shape(&pruned, "b.w")[0] < 32 && shape(&pruned, "c.w")[1] < 8);
}

#[test]
fn a_weight_that_is_used_twice_is_cut_once() {
    let mut net = Net::new(17);
    let x = net.input(&[1, 3, 8, 8]);
    let a = net.conv("a", x, 3, 16, 1);
    let shared = net.weight("shared", &[16, 16, 1, 1]);
    let b = net.op("Conv", &[a, shared], &[]);
    let b = net.op("Relu", &[b], &[]);
    let c = net.op("Conv", &[b, shared], &[]);
    let graph = net.head(c, 16);
    let (pruned, decision) = checked(&graph, HALF);
    let (before, after) = units(&graph, &decision, "a.w", 0);
    // Both sides of the weight are one group, for what leaves it enters it again.
    assert!(before == 16 && after < 16);
    assert_eq!(shape(&pruned, "shared"), [after, after, 1, 1]);
}

#[test]
fn constants_in_nodes_are_cut_too() {
    let mut net = Net::new(17);
    let x = net.input(&[1, 6]);
    let hidden = net.gemm("a", x, 6, 16);
    let hidden = net.op("Relu", &[hidden], &[]);
    let w = net.noise.tensor(&[16, 4]);
    let w = net.op("Constant", &[], &[("value", Attr::Tensor(w))]);
    let y = net.op("MatMul", &[hidden, w], &[]);
    let graph = net.done(y);
    let (pruned, _) = checked(&graph, HALF);
    let held = pruned.nodes().iter().find(|n| n.is("Constant")).unwrap();
    assert_eq!(held.attributes.tensor("value").unwrap().unwrap().shape(), [8, 4]);
}

#[test]
fn the_ratio_is_met_within_one_rounding_unit() {
    let mut net = Net::new(17);
    let x = net.input(&[1, 3, 8, 8]);
    let mut y = x;
    for (i, (from, to)) in [(3, 64), (64, 96), (96, 128), (128, 64)].into_iter().enumerate() {
        y = net.conv(&format!("c{i}"), y, from, to, 1);
        y = net.op("Relu", &[y], &[]);
    }
    let graph = net.head(y, 64);
    let all = parameters(&graph);
    for (of, scope) in [("prunable", "global"), ("total", "global"), ("prunable", "layer")] {
        for ratio in [0.1, 0.3, 0.5, 0.7] {
            let text = format!("ratio = {ratio}\nof = '{of}'\nscope = '{scope}'");
            let decision = decide(&graph, &settings(&text), &Silent).unwrap();
            let whole = if of == "total" { all } else { decision.prunable_parameters };
            assert_eq!(decision.whole_parameters, whole);
            assert!(decision.prunable_parameters < all);
            let missed = decision.removed_parameters as f64 - ratio * whole as f64;
            // The largest step: eight channels between the two widest layers.
            let largest = 8.0 * (96.0 * 9.0 + 64.0 * 9.0 + 1.0);
            assert!(missed.abs() <= largest, "{text}: missed by {missed}");
            for group in decision.coupled.groups().iter().filter(|g| g.prunable()) {
                assert_eq!(decision.kept(group) % 8, 0);
                assert!(decision.kept(group) * 10 >= group.units);
            }
            if scope == "layer" {
                let part = |g: &tinsmith::graph::coupling::Group| decision.kept(g) as f64 / g.units as f64;
                let parts: Vec<f64> =
                    decision.coupled.groups().iter().filter(|g| g.prunable()).map(part).collect();
                let spread =
                    parts.iter().fold(0.0f64, |m, p| m.max(*p)) - parts.iter().fold(1.0f64, |m, p| m.min(*p));
                assert!(spread <= 0.25, "{parts:?}");
            }
        }
    }
}

/// What was settled by measuring, as a job keeps it.
#[derive(Default)]
struct Settled(std::sync::Mutex<std::collections::BTreeMap<String, f64>>);

impl Keep for Settled {
    fn save(
        &self,
        _: u64,
        _: &mut dyn FnMut(&Path) -> tinsmith::error::Result<()>,
    ) -> tinsmith::error::Result<()> {
        Ok(())
    }
    fn newest(&self) -> Option<(u64, std::path::PathBuf)> {
        None
    }
    fn settled(&self, name: &str) -> tinsmith::error::Result<Option<f64>> {
        Ok(self.0.lock().unwrap().get(name).copied())
    }
    fn settle(&self, name: &str, value: f64) -> tinsmith::error::Result<()> {
        self.0.lock().unwrap().insert(name.into(), value);
        Ok(())
    }
}

#[test]
fn a_latency_is_met_by_measuring_and_settled_for_good() {
    let mut net = Net::new(17);
    let x = net.input(&[1, 3, 8, 8]);
    let mut y = x;
    for (i, (from, to)) in [(3, 64), (64, 96), (96, 64)].into_iter().enumerate() {
        y = net.conv(&format!("c{i}"), y, from, to, 1);
        y = net.op("Relu", &[y], &[]);
    }
    let graph = net.head(y, 64);
    let whole = parameters(&graph) as f64;
    // A machine on which a fifth of the time does not depend on the weights.
    let measured = std::sync::atomic::AtomicUsize::new(0);
    let latency = |g: &Graph| {
        measured.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(0.2 + 0.8 * parameters(g) as f64 / whole)
    };
    let keep = Settled::default();
    let ctx = Ctx { latency: Some(&latency), keep: Some(&keep), ..Ctx::new(&Silent) };
    let wanted = settings("target = { latency = 0.6 }");
    let decision = decide_with(&graph, &wanted, &ctx).unwrap();
    let part = latency(&slice(&graph, &decision).unwrap()).unwrap();
    assert!((0.5..=0.6).contains(&part), "{part}");
    let tries = measured.swap(0, std::sync::atomic::Ordering::Relaxed);
    assert!((2..=8).contains(&tries), "{tries}");
    // Another start goes by what was settled and measures nothing.
    let again = decide_with(&graph, &wanted, &ctx).unwrap();
    assert_eq!(again.leaves, decision.leaves);
    assert_eq!(measured.load(std::sync::atomic::Ordering::Relaxed), 0);
    // Below what the machine can do, the error names the least that was found.
    let e =
        decide_with(&graph, &settings("target = { latency = 0.1 }"), &Ctx { keep: None, ..ctx }).unwrap_err();
    assert_eq!((e.code(), e.field_path()), ("PRUNE-TARGET", Some("step.target")), "{e}");
    let e = decide(&graph, &wanted, &Silent).unwrap_err();
    assert_eq!(e.code(), "PRUNE-LATENCY");
}

/// What is assumed of open sizes does not fit every model; data have sizes that do.
#[test]
fn operations_of_open_sizes_are_counted_as_the_data_have_them() {
    let mut net = Net::new(17);
    let ty = Type::Tensor {
        dtype: DType::F32,
        shape: Some(vec![Dim::from(1usize), Dim::from(3usize), Dim::unknown(), Dim::symbol("w")]),
    };
    let x = net.edit.add_input("x", ty);
    let mut y = net.conv("c0", x, 3, 64, 1);
    y = net.op("Relu", &[y], &[]);
    y = net.conv("c1", y, 64, 64, 1);
    // Fits no size but this one.
    let plane = net.weight("plane", &[1, 1, 12, 10]);
    y = net.op("Add", &[y, plane], &[]);
    let graph = net.head(y, 64);
    let wanted = settings("target = { macs = 0.7 }\nround_to = 1");
    let inputs = vec![("x".to_string(), Noise(3).tensor(&[1, 3, 12, 10]))];
    let batch = Batch { inputs, rows: 1, tokens: 1, ..Batch::default() };
    let data = Samples::given(vec![batch]);
    let ctx = Ctx { calibration: Some(&data), ..Ctx::new(&Silent) };
    let pruned = slice(&graph, &decide_with(&graph, &wanted, &ctx).unwrap()).unwrap();
    let sizes =
        analysis::Options { bindings: [("x.2".into(), 12), ("w".into(), 10)].into(), ..Default::default() };
    let macs = |g: &Graph| analysis::summarize(g, &sizes).unwrap().macs as f64;
    assert!((0.65..=0.7).contains(&(macs(&pruned) / macs(&graph))), "{}", macs(&pruned) / macs(&graph));
}

#[test]
fn the_least_important_channels_leave_first() {
    let mut net = Net::new(17);
    let x = net.input(&[1, 3, 8, 8]);
    let a = net.conv("a", x, 3, 16, 1);
    let graph = net.head(a, 16);
    let mut edit = graph.edit();
    let w = graph.find("a.w").unwrap();
    // Channels 3 and 11 are next to nothing on both sides; channel 5 is small before its norm only.
    let quiet = |name: &str, edit: &mut Edit, at: &dyn Fn(usize) -> usize| {
        let v = graph.find(name).unwrap();
        let t = graph.initializer(v).unwrap();
        let mut data = t.to_f32s().unwrap();
        for (i, x) in data.iter_mut().enumerate() {
            if [3, 11].contains(&at(i)) {
                *x *= 0.01;
            }
        }
        edit.set_initializer(v, Tensor::from_vec(t.shape().to_vec(), data).unwrap());
    };
    quiet("a.w", &mut edit, &|i| i / 27);
    quiet("head.w", &mut edit, &|i| i % 16);
    let graph = edit.commit().unwrap();
    for criterion in ["l1", "l2"] {
        let text = format!("ratio = 0.12\nround_to = 1\ncriterion = '{criterion}'");
        let decision = decide(&graph, &settings(&text), &Silent).unwrap();
        let on: Vec<usize> = decision.coupled.on(w, 0).unwrap().map(Option::unwrap).collect();
        let gone: Vec<usize> = (0..16).filter(|c| decision.leaves[on[*c]]).collect();
        assert_eq!(gone, [3, 11], "{criterion}");
    }
}

#[test]
fn a_batch_norm_behind_a_convolution_has_its_say() {
    let mut net = Net::new(17);
    let x = net.input(&[1, 3, 8, 8]);
    let a = net.conv("a", x, 3, 8, 1);
    let n = net.norm(a, 8);
    let graph = net.head(n, 8);
    let mut edit = graph.edit();
    let scale: Vec<f32> = (0..8).map(|c| if c == 6 { 1e-4 } else { 1.0 }).collect();
    edit.set_initializer(graph.find("bn.scale").unwrap(), Tensor::from_vec(vec![8], scale).unwrap());
    edit.set_initializer(graph.find("bn.var").unwrap(), Tensor::from_vec(vec![8], vec![1f32; 8]).unwrap());
    edit.set_initializer(
        graph.find("head.w").unwrap(),
        Tensor::from_vec(vec![5, 8], vec![1f32; 40]).unwrap(),
    );
    let graph = edit.commit().unwrap();
    let decision = decide(&graph, &settings("ratio = 0.12\nround_to = 1"), &Silent).unwrap();
    let on: Vec<usize> =
        decision.coupled.on(graph.find("a.w").unwrap(), 0).unwrap().map(Option::unwrap).collect();
    assert_eq!((0..8).filter(|c| decision.leaves[on[*c]]).collect::<Vec<_>>(), [6]);
}

#[test]
fn refusals_name_what_stands_in_the_way() {
    let build = |text: &str| by_name("prune", &text.parse().unwrap());
    for (text, field) in [
        ("ratio = 1.5", "step.ratio"),
        ("ratio = 0.0", "step.ratio"),
        ("", "step.ratio"),
        ("ratio = nan", "step.ratio"),
        ("ratio = 0.2\nmin_keep = 1.0", "step.min_keep"),
        ("ratio = 0.2\nround_to = 0", "step.round_to"),
    ] {
        let e = build(text).err().unwrap_or_else(|| panic!("{text} is accepted"));
        assert_eq!((e.kind().exit_code(), e.to_string().contains(field)), (2, true), "{e}");
    }
    assert!(build("ratio = 0.2\nbogus = 1").is_err());

    let ctx = Ctx::new(&Silent);
    let mut net = Net::new(17);
    let x = net.input(&[1, 6]);
    let y = net.gemm("only", x, 6, 16);
    let graph = net.done(y);
    let e = build("ratio = 0.2").unwrap().check(&graph, &ctx).unwrap_err();
    assert_eq!((e.code(), e.kind().exit_code()), ("PRUNE-NOTHING", 4));
    assert!(e.to_string().contains("graph input \"x\"; graph output \"Gemm_1\""), "{e}");

    let mut net = Net::new(17);
    let x = net.input(&[1, 6]);
    let y = net.gemm("a", x, 6, 16);
    let y = net.gemm("b", y, 16, 4);
    let graph = net.done(y);
    let e = build("ratio = 0.9\nmin_keep = 0.5").unwrap().check(&graph, &ctx).unwrap_err();
    assert_eq!((e.code(), e.kind().exit_code()), ("PRUNE-RATIO", 2), "{e}");
    assert!(e.to_string().contains("step.ratio") && e.to_string().contains("0.5"), "{e}");
    let e = build("ratio = 0.2\nexclude = ['a.w']").unwrap().check(&graph, &ctx).unwrap_err();
    assert!(e.to_string().contains("\"a.w\" is excluded by \"a.w\""), "{e}");

    // Interfaces may change on request: the input loses features, and says so in its declaration.
    let (pruned, _) = build("ratio = 0.3\nround_to = 1\nallow_interface_change = true")
        .unwrap()
        .run(&graph, &mut Ctx::new(&Silent))
        .unwrap();
    let x = pruned.inputs()[0];
    let Some(Type::Tensor { shape: Some(declared), .. }) = &pruned.value(x).ty else { panic!("no type") };
    assert_eq!(declared[1].size().unwrap(), shape(&pruned, "a.w")[1]);
    run(&pruned, 2);
}

#[test]
fn the_report_tells_groups_scores_and_figures() {
    let mut net = Net::new(17);
    let x = net.input(&[1, 3, 8, 8]);
    let a = net.conv("a", x, 3, 32, 1);
    let b = net.conv("b", a, 32, 32, 1);
    let graph = net.head(b, 32);
    let mut ctx = Ctx::new(&Silent);
    let pass = by_name("prune", &"ratio = 0.5".parse().unwrap()).unwrap();
    let (pruned, report) = pass.run(&graph, &mut ctx).unwrap();
    assert_eq!(report.facts["parameters_before"], parameters(&graph) as f64);
    assert_eq!(report.facts["parameters_after"], parameters(&pruned) as f64);
    assert!(report.facts["macs_after"] < 0.7 * report.facts["macs_before"]);
    assert!((report.facts["ratio"] - 0.5).abs() < 0.15, "{:?}", report.facts);
    let line = report.applied.iter().find(|a| a.detail.contains("Conv_2")).unwrap();
    assert!(line.detail.starts_with("32 -> "), "{line:?}");
    assert!(line.detail.contains("score min/median/max kept"), "{line:?}");
    assert!(report.skipped.iter().any(|s| s.reason.contains("graph input \"x\"")), "{:?}", report.skipped);
    // The same settings give the same bits.
    let (again, _) = pass.run(&graph, &mut ctx).unwrap();
    for ((_, a), (_, b)) in pruned.initializers().zip(again.initializers()) {
        assert!(a.same_bits(b).unwrap());
    }
}

/// A fifth of the prunable parameters leaves a real model: sliced and masked agree on the executor, the
/// written file is smaller, and ONNX Runtime gives the executor's outputs.
fn shrinks_for_real(path: &Path, input: Tensor) {
    let graph = formats::load(path).unwrap().graph;
    let feed = vec![(graph.value_name(graph.required_inputs().next().unwrap()).to_string(), input)];
    let decision = decide(&graph, &settings("ratio = 0.2"), &Silent).unwrap();
    let (pruned, masked) = (slice(&graph, &decision).unwrap(), mask(&graph, &decision).unwrap());
    let of = |g: &Graph| Executor::new(g).unwrap().run(&feed).unwrap();
    let sliced = of(&pruned);
    let p = parity(&of(&masked), &sliced, 1e-5).unwrap();
    let original = of(&graph);
    let whole = parity(&original, &sliced, 1e-5).unwrap();
    assert!(whole.max_rel > 1e-4, "{whole:?}");
    let figures = |g: &Graph| {
        let s = analysis::summarize(g, &analysis::Options::default()).unwrap();
        (s.parameters, s.macs)
    };
    let (before, after) = (figures(&graph), figures(&pruned));
    println!(
        "{}: parameters {} -> {}, MACs {} -> {}, masked to sliced {:.1e}, cut to whole {:.1e}",
        path.display(),
        before.0,
        after.0,
        before.1,
        after.1,
        p.max_rel,
        whole.max_rel
    );
    assert!(p.max_rel <= 1e-5 && p.not_finite == 0, "{}: {p:?}", path.display());
    assert_eq!(before.0 - after.0, decision.removed_parameters);
    let part = decision.removed_parameters as f64 / decision.prunable_parameters as f64;
    assert!((part - 0.2).abs() < 0.03, "{part} of the prunable parameters left");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pruned.onnx");
    formats::save(&pruned, &file).unwrap();
    let size = |p: &Path| std::fs::metadata(p).unwrap().len();
    let removed = 4 * decision.removed_parameters;
    assert!(size(&file) < size(path) - removed * 9 / 10, "{} bytes -> {}", size(path), size(&file));
    let mut session = Session::load(&cache::runtime(), &file, &SessionOptions::default()).unwrap();
    let on_runtime = session.run(&feed).unwrap();
    let p = parity(&on_runtime, &sliced, 1e-3).unwrap();
    let largest = original.iter().flat_map(|(_, t)| t.to_f64s().unwrap()).fold(0.0f64, |m, x| m.max(x.abs()));
    assert!(p.max_abs < 1e-3 * largest && p.not_finite == 0, "{}: {p:?}", path.display());
}

#[test]
fn the_digits_sample_shrinks_and_runs_on_the_runtime() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/digits-resnet.onnx");
    let graph = formats::load(&path).unwrap().graph;
    let Some(Type::Tensor { shape: Some(dims), .. }) = &graph.value(graph.inputs()[0]).ty else {
        panic!("no type")
    };
    let dims: Vec<usize> = dims.iter().map(|d| d.size().unwrap_or(3)).collect();
    shrinks_for_real(&path, Noise(3).tensor(&dims));
}

#[test]
fn text_direction_shrinks_and_runs_on_the_runtime() {
    let path = cache::fetched("ppocr").file("cls_infer.onnx").unwrap();
    shrinks_for_real(&path, Noise(3).tensor(&[2, 3, 48, 192]));
}

#[test]
fn text_detection_shrinks_and_runs_on_the_runtime() {
    let path = cache::fetched("ppocr").file("det_infer.onnx").unwrap();
    shrinks_for_real(&path, Noise(3).tensor(&[1, 3, 64, 96]));
}
