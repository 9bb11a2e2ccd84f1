//! Structured pruning of random graphs: every operator that networks are made of, in random order and with
//! random units cut. What is sliced gives what is masked, in double precision, with the shapes and the
//! number of parameters that the cut promises.

use std::collections::{BTreeMap, BTreeSet};
use tinsmith::evaluate::parity::parity;
use tinsmith::execute::Executor;
use tinsmith::graph::constants::Constants;
use tinsmith::graph::coupling::{Costs, Coupled, Group, Kind, Options};
use tinsmith::graph::{Edit, Graph, Node, Type, ValueId};
use tinsmith::monitor::Silent;
use tinsmith::ops::{Attr, Attributes, Dim};
use tinsmith::passes::prune::{Decision, Settings, decide, mask, slice};
use tinsmith::tensor::{DType, Tensor};

/// Graphs, and the seed of the first; graph `i` has seed `SEED + i`.
const GRAPHS: u64 = 200;
const SEED: u64 = 0x7135;
/// Positions of a sequence.
const POSITIONS: usize = 5;
/// Words.
const WORDS: usize = 11;

/// A stream of numbers that depends on the seed alone (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// From 0 to below 1.
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }
    fn half(&mut self) -> bool {
        self.below(2) == 0
    }
    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// A graph in the making.
struct Net {
    edit: Edit,
    random: Random,
    names: usize,
    /// Weight and axis of units that must be free to leave, how many there are, and what they are.
    promised: Vec<(String, usize, usize, Kind)>,
}

fn ints(v: &[i64]) -> Attr {
    Attr::Ints(v.to_vec())
}

fn text(v: &str) -> Attr {
    Attr::Str(v.as_bytes().to_vec())
}

impl Net {
    fn new(seed: u64) -> Net {
        let edit = Edit::new("random", &[("", 23), ("com.microsoft", 1)]);
        Net { edit, random: Random(seed), names: 0, promised: vec![] }
    }
    fn fresh(&mut self, name: &str) -> String {
        self.names += 1;
        format!("{name}_{:03}", self.names)
    }
    fn input(&mut self, name: &str, dtype: DType, shape: &[usize]) -> ValueId {
        let dims = std::iter::once(Dim::symbol("n")).chain(shape.iter().map(|n| Dim::from(*n)));
        self.edit.add_input(name, Type::Tensor { dtype, shape: Some(dims.collect()) })
    }
    fn tensor(&mut self, shape: &[usize], low: f64, high: f64) -> Tensor {
        let n = shape.iter().product::<usize>();
        let data = (0..n).map(|_| low + (high - low) * self.random.part()).collect::<Vec<f64>>();
        Tensor::from_vec(shape.to_vec(), data).unwrap()
    }
    fn weight(&mut self, shape: &[usize], sums: usize) -> ValueId {
        let name = self.fresh("w");
        let most = 1.7 / (sums.max(1) as f64).sqrt();
        let tensor = self.tensor(shape, -most, most);
        self.edit.add_initializer(&name, tensor)
    }
    fn positive(&mut self, n: usize) -> ValueId {
        let name = self.fresh("p");
        let tensor = self.tensor(&[n], 0.4, 1.6);
        self.edit.add_initializer(&name, tensor)
    }
    fn number(&mut self, x: f64) -> ValueId {
        let name = self.fresh("c");
        self.edit.add_initializer(&name, Tensor::scalar(x))
    }
    fn whole(&mut self, values: &[i64]) -> ValueId {
        let name = self.fresh("i");
        self.edit.add_initializer(&name, Tensor::from_vec(vec![values.len()], values.to_vec()).unwrap())
    }
    fn op(&mut self, op: &str, inputs: &[ValueId], with: &[(&str, Attr)]) -> ValueId {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        self.ops("", op, &inputs, with, 1)[0]
    }
    fn ops(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[Option<ValueId>],
        with: &[(&str, Attr)],
        outputs: usize,
    ) -> Vec<ValueId> {
        let name = self.fresh(op);
        let all = with.iter().fold(Attributes::new(), |a, (n, v)| a.with(n, v.clone()));
        let out: Vec<ValueId> =
            (0..outputs).map(|o| self.edit.add_value(&format!("{name}.{o}"), None)).collect();
        let node = Node::new(op, inputs.to_vec(), out.iter().copied().map(Some).collect());
        self.edit.add_node(node.in_domain(domain).with(all).named(name));
        out
    }
    fn done(mut self, y: ValueId) -> (Graph, Vec<(String, usize, usize, Kind)>) {
        self.edit.add_output(y);
        (self.edit.commit().unwrap(), self.promised)
    }
    fn promise(&mut self, weight: ValueId, axis: usize, units: usize, kind: Kind) {
        let name = self.edit.graph().value_name(weight).to_string();
        self.promised.push((name, axis, units, kind));
    }

    // Images.

    fn conv(&mut self, x: ValueId, from: usize, to: usize, group: usize, kernel: usize) -> ValueId {
        let w = self.weight(&[to, from / group, kernel, kernel], from / group * kernel * kernel);
        let mut inputs = vec![x, w];
        if self.random.half() {
            inputs.push(self.weight(&[to], 4));
        }
        let pad = kernel as i64 / 2;
        self.op("Conv", &inputs, &[("pads", ints(&[pad; 4])), ("group", Attr::Int(group as i64))])
    }
    fn batch_norm(&mut self, x: ValueId, c: usize) -> ValueId {
        let inputs = [x, self.positive(c), self.weight(&[c], 4), self.weight(&[c], 4), self.positive(c)];
        self.op("BatchNormalization", &inputs, &[])
    }
    fn activation(&mut self, x: ValueId, c: usize) -> ValueId {
        match self.random.below(6) {
            0 => self.op("Sigmoid", &[x], &[]),
            1 => self.op("HardSwish", &[x], &[]),
            2 => {
                let (three, low, high) = (self.number(3.0), self.number(0.0), self.number(6.0));
                let y = self.op("Add", &[x, three], &[]);
                let y = self.op("Clip", &[y, low, high], &[]);
                let y = self.op("Mul", &[x, y], &[]);
                self.op("Div", &[y, high], &[])
            }
            3 => self.op("LeakyRelu", &[x], &[]),
            4 => {
                let one = self.weight(&[c, 1, 1], 4);
                self.op("PRelu", &[x, one], &[])
            }
            _ => self.op("Relu", &[x], &[]),
        }
    }
    fn squeeze_excite(&mut self, x: ValueId, c: usize) -> ValueId {
        let inner = self.random.between(2, 4);
        let s = match self.random.half() {
            true => self.op("GlobalAveragePool", &[x], &[]),
            false => {
                let axes = self.whole(&[2, 3]);
                self.op("ReduceMean", &[x, axes], &[])
            }
        };
        let s = self.conv(s, c, inner, 1, 1);
        let s = self.op("Relu", &[s], &[]);
        let s = self.conv(s, inner, c, 1, 1);
        let gate = self.random.one_of(&["Sigmoid", "HardSigmoid"]);
        let s = self.op(gate, &[s], &[]);
        self.op("Mul", &[x, s], &[])
    }
    /// One layer; returns the channels that it leaves.
    fn image_layer(&mut self, x: ValueId, c: usize) -> (ValueId, usize) {
        let width = self.random.between(2, 8);
        match self.random.below(20) {
            0 | 1 => (self.conv(x, c, width, 1, 3), width),
            2 => (self.batch_norm(x, c), c),
            3 => (self.activation(x, c), c),
            4 => {
                let times = self.random.between(1, 2);
                (self.conv(x, c, c * times, c, 3), c * times)
            }
            5 => {
                let y = self.conv(x, c, width, 1, 1);
                let y = self.activation(y, width);
                let y = self.conv(y, width, c, 1, 3);
                (self.op("Add", &[x, y], &[]), c)
            }
            6 => {
                let side = self.conv(x, c, width, 1, 1);
                (self.op("Concat", &[side, x, side], &[("axis", Attr::Int(1))]), c + 2 * width)
            }
            7 if c.is_multiple_of(2) => (self.conv(x, c, 2 * width, 2, 3), 2 * width),
            8 if c > 2 => {
                let first = self.random.between(1, c - 1);
                let sizes = self.whole(&[first as i64, (c - first) as i64]);
                let parts = self.ops("", "Split", &[Some(x), Some(sizes)], &[("axis", Attr::Int(1))], 2);
                let a = self.conv(parts[0], first, width, 1, 1);
                let b = self.conv(parts[1], c - first, width, 1, 3);
                (self.op("Mul", &[a, b], &[]), width)
            }
            9 if c.is_multiple_of(2) => {
                let with = [("axis", Attr::Int(1)), ("num_outputs", Attr::Int(2))];
                let parts = self.ops("", "Split", &[Some(x)], &with, 2);
                (self.op("Add", &parts, &[]), c / 2)
            }
            10 => (self.squeeze_excite(x, c), c),
            11 => {
                let group = if c.is_multiple_of(2) { self.random.between(1, 2) } else { 1 };
                let w = self.weight(&[c, width, 3, 3], c * 9 / group);
                let b = self.weight(&[group * width], 4);
                let with = [("pads", ints(&[1; 4])), ("group", Attr::Int(group as i64))];
                (self.op("ConvTranspose", &[x, w, b], &with), group * width)
            }
            12 if c.is_multiple_of(2) => {
                let to = self.whole(&[0, 2, c as i64 / 2, 6, 6]);
                let y = self.op("Reshape", &[x, to], &[]);
                let y = self.op("Transpose", &[y], &[("perm", ints(&[0, 2, 1, 3, 4]))]);
                let to = self.whole(&[0, c as i64, 6, 6]);
                (self.op("Reshape", &[y, to], &[]), c)
            }
            13 => {
                let inputs = [x, self.positive(c), self.weight(&[c], 4)];
                (self.op("InstanceNormalization", &inputs, &[]), c)
            }
            14 if c.is_multiple_of(2) => {
                let inputs = [x, self.positive(c), self.weight(&[c], 4)];
                (self.op("GroupNormalization", &inputs, &[("num_groups", Attr::Int(2))]), c)
            }
            15 => {
                // Twice the size and back.
                let name = self.fresh("scales");
                let scales = Tensor::from_vec(vec![4], vec![1f32, 1.0, 2.0, 2.0]).unwrap();
                let scales = self.edit.add_initializer(&name, scales);
                let y =
                    self.ops("", "Resize", &[Some(x), None, Some(scales)], &[("mode", text("nearest"))], 1)
                        [0];
                let with = [("kernel_shape", ints(&[2, 2])), ("strides", ints(&[2, 2]))];
                (self.op("MaxPool", &[y], &with), c)
            }
            16 => {
                let y = self.op("SpaceToDepth", &[x], &[("blocksize", Attr::Int(2))]);
                let y = self.conv(y, 4 * c, 4 * width, 1, 1);
                let mode = self.random.one_of(&["CRD", "DCR"]);
                (self.op("DepthToSpace", &[y], &[("blocksize", Attr::Int(2)), ("mode", text(mode))]), width)
            }
            17 => {
                let pads = self.whole(&[0, 0, 1, 1, 0, 0, 1, 1]);
                let y = self.op("Pad", &[x, pads], &[]);
                let w = self.weight(&[width, c, 3, 3], 9 * c);
                (self.op("Conv", &[y, w], &[]), width)
            }
            18 => {
                // Over positions, one after the other, as vision transformers take them.
                let to = self.whole(&[0, c as i64, -1]);
                let y = self.op("Reshape", &[x, to], &[]);
                let y = self.op("Transpose", &[y], &[("perm", ints(&[0, 2, 1]))]);
                let w = self.weight(&[c, width], c);
                let y = self.op("Einsum", &[y, w], &[("equation", text("npc,cw->npw"))]);
                let y = self.op("Transpose", &[y], &[("perm", ints(&[0, 2, 1]))]);
                let to = self.whole(&[0, 0, 6, 6]);
                (self.op("Reshape", &[y, to], &[]), width)
            }
            kind => {
                let pool = if kind == 19 { "MaxPool" } else { "AveragePool" };
                let with = [("kernel_shape", ints(&[3, 3])), ("pads", ints(&[1; 4]))];
                (self.op(pool, &[x], &with), c)
            }
        }
    }
    fn image_head(&mut self, x: ValueId, c: usize) -> ValueId {
        let (flat, n) = match self.random.below(4) {
            0 => (self.op("Flatten", &[x], &[]), 36 * c),
            1 => {
                let to = self.whole(&[0, -1]);
                (self.op("Reshape", &[x, to], &[]), 36 * c)
            }
            2 => {
                let axes = self.whole(&[2, 3]);
                (self.op("ReduceMean", &[x, axes], &[("keepdims", Attr::Int(0))]), c)
            }
            _ => {
                let y = self.op("GlobalAveragePool", &[x], &[]);
                let axes = self.whole(&[2, 3]);
                (self.op("Squeeze", &[y, axes], &[]), c)
            }
        };
        let inner = self.random.between(3, 6);
        let (w, b) = (self.weight(&[inner, n], n), self.weight(&[inner], 4));
        let y = self.op("Gemm", &[flat, w, b], &[("transB", Attr::Int(1))]);
        self.promise(w, 0, inner, Kind::Neurons);
        let y = self.op("Tanh", &[y], &[]);
        let w = self.weight(&[inner, 4], inner);
        self.op("MatMul", &[y, w], &[])
    }

    // Sequences.

    /// Product with a weight `[from, to]`, which is returned too.
    fn linear(&mut self, x: ValueId, from: usize, to: usize) -> (ValueId, ValueId) {
        let w = self.weight(&[from, to], from);
        let y = self.op("MatMul", &[x, w], &[]);
        if self.random.half() {
            return (y, w);
        }
        let b = self.weight(&[to], 4);
        (self.op("Add", &[y, b], &[]), w)
    }
    fn heads(&mut self, x: ValueId, heads: usize, perm: &[i64]) -> ValueId {
        let to = match self.random.half() {
            true => self.whole(&[0, 0, heads as i64, -1]),
            false => self.whole(&[0, POSITIONS as i64, heads as i64, HEAD as i64]),
        };
        let y = self.op("Reshape", &[x, to], &[]);
        self.op("Transpose", &[y], &[("perm", ints(perm))])
    }
    fn joined(&mut self, x: ValueId, width: usize) -> ValueId {
        let y = self.op("Transpose", &[x], &[("perm", ints(&[0, 2, 1, 3]))]);
        let to = self.whole(&[0, 0, width as i64]);
        self.op("Reshape", &[y, to], &[])
    }
    /// Turns the pairs of every head of `[n, heads, positions, size]`.
    fn turned(&mut self, x: ValueId, positions: ValueId) -> ValueId {
        let half = HEAD / 2;
        match self.random.below(3) {
            0 => x,
            1 => {
                let (cos, sin) = (self.weight(&[POSITIONS, half], 1), self.weight(&[POSITIONS, half], 1));
                self.op("RotaryEmbedding", &[x, cos, sin, positions], &[])
            }
            _ => {
                let axis = self.whole(&[3]);
                let (zero, middle, end) = (self.whole(&[0]), self.whole(&[half as i64]), self.whole(&[99]));
                let a = self.op("Slice", &[x, zero, middle, axis], &[]);
                let b = self.op("Slice", &[x, middle, end, axis], &[]);
                let b = self.op("Neg", &[b], &[]);
                let other = self.op("Concat", &[b, a], &[("axis", Attr::Int(-1))]);
                let (cos, sin) = (self.weight(&[POSITIONS, HEAD], 1), self.weight(&[POSITIONS, HEAD], 1));
                let x = self.op("Mul", &[x, cos], &[]);
                let y = self.op("Mul", &[other, sin], &[]);
                self.op("Add", &[x, y], &[])
            }
        }
    }
    /// Keys or values of one group for all of its query heads.
    fn repeated(&mut self, x: ValueId, groups: usize, times: usize) -> ValueId {
        if times == 1 {
            return x;
        }
        let axes = self.whole(&[2]);
        let y = self.op("Unsqueeze", &[x, axes], &[]);
        let to = self.whole(&[1, 1, times as i64, 1, 1]);
        let y = self.op("Expand", &[y, to], &[]);
        let to = self.whole(&[0, (groups * times) as i64, POSITIONS as i64, HEAD as i64]);
        self.op("Reshape", &[y, to], &[])
    }
    fn attention(&mut self, x: ValueId, hidden: usize, positions: ValueId) -> ValueId {
        // Heads alone, in groups, or all with one key head: then each may leave by itself.
        let (groups, times) = match self.random.below(4) {
            0 => (1, self.random.between(2, 5)),
            _ => (self.random.between(1, 4), self.random.between(1, 2)),
        };
        let heads = groups * times;
        let units = if groups == 1 { heads } else { groups };
        let (q_width, kv_width) = (heads * HEAD, groups * HEAD);
        let kind = self.random.below(6);
        let counts = [("q_num_heads", Attr::Int(heads as i64)), ("kv_num_heads", Attr::Int(groups as i64))];
        let (q, k, v);
        if kind == 5 {
            // Side by side in one product.
            let (y, w) = self.linear(x, hidden, q_width + 2 * kv_width);
            if units > 1 {
                self.promise(w, 1, units, Kind::Heads);
            }
            let sizes = self.whole(&[q_width as i64, kv_width as i64, kv_width as i64]);
            let parts = self.ops("", "Split", &[Some(y), Some(sizes)], &[("axis", Attr::Int(-1))], 3);
            (q, k, v) = (parts[0], parts[1], parts[2]);
        } else {
            let w;
            (q, w) = self.linear(x, hidden, q_width);
            k = self.linear(x, hidden, kv_width).0;
            v = self.linear(x, hidden, kv_width).0;
            if units > 1 {
                self.promise(w, 1, units, Kind::Heads);
            }
        }
        let y = match kind {
            0 => self.op("Attention", &[q, k, v], &[&counts[..], &[("is_causal", Attr::Int(1))]].concat()),
            1 => {
                let [q, k, v] =
                    [(q, heads), (k, groups), (v, groups)].map(|(x, n)| self.heads(x, n, &[0, 2, 1, 3]));
                let (q, k) = (self.turned(q, positions), self.turned(k, positions));
                let y = self.op("Attention", &[q, k, v], &[]);
                self.joined(y, q_width)
            }
            2 if times == 1 => {
                let bias = self.weight(&[q_width + 2 * kv_width], 4);
                let inputs = [q, k, v, bias].map(Some);
                let with = [("num_heads", Attr::Int(heads as i64))];
                self.ops("com.microsoft", "MultiHeadAttention", &inputs, &with, 1)[0]
            }
            3 => {
                let n = self.fresh("i");
                let last = vec![POSITIONS as i32 - 1; BATCH];
                let last = Tensor::from_vec(vec![BATCH], last).unwrap();
                let last = self.edit.add_initializer(&n, last);
                let n = self.fresh("i");
                let total = Tensor::from_vec(vec![1], vec![POSITIONS as i32]).unwrap();
                let total = self.edit.add_initializer(&n, total);
                let with = [counts_named("num_heads", heads), counts_named("kv_num_heads", groups)];
                let packed = self.random.half();
                let inputs = match packed {
                    true => {
                        let all = self.op("Concat", &[q, k, v], &[("axis", Attr::Int(2))]);
                        [Some(all), None, None, None, None, Some(last), Some(total)]
                    }
                    false => [Some(q), Some(k), Some(v), None, None, Some(last), Some(total)],
                };
                self.ops("com.microsoft", "GroupQueryAttention", &inputs, &with, 3)[0]
            }
            _ => {
                let q = self.heads(q, heads, &[0, 2, 1, 3]);
                let k = self.heads(k, groups, &[0, 2, 1, 3]);
                let v = self.heads(v, groups, &[0, 2, 1, 3]);
                let (q, k) = (self.turned(q, positions), self.turned(k, positions));
                let (k, v) = (self.repeated(k, groups, times), self.repeated(v, groups, times));
                let k = self.op("Transpose", &[k], &[("perm", ints(&[0, 1, 3, 2]))]);
                let scores = self.op("MatMul", &[q, k], &[]);
                let scale = self.number(0.5);
                let scores = self.op("Mul", &[scores, scale], &[]);
                let bias = self.weight(&[1, 1, POSITIONS, POSITIONS], 1);
                let scores = self.op("Add", &[scores, bias], &[]);
                let scores = self.op("Softmax", &[scores], &[("axis", Attr::Int(-1))]);
                let y = self.op("MatMul", &[scores, v], &[]);
                self.joined(y, q_width)
            }
        };
        self.linear(y, q_width, hidden).0
    }
    fn feed_forward(&mut self, x: ValueId, hidden: usize) -> ValueId {
        let inner = self.random.between(3, 9);
        match self.random.below(4) {
            0 => {
                let (gate, w) = self.linear(x, hidden, inner);
                let (up, _) = self.linear(x, hidden, inner);
                self.promise(w, 1, inner, Kind::Neurons);
                let s = self.op("Sigmoid", &[gate], &[]);
                let s = self.op("Mul", &[gate, s], &[]);
                let y = self.op("Mul", &[s, up], &[]);
                self.linear(y, inner, hidden).0
            }
            1 => {
                let (both, w) = self.linear(x, hidden, 2 * inner);
                self.promise(w, 1, inner, Kind::Neurons);
                let with = [("axis", Attr::Int(-1)), ("num_outputs", Attr::Int(2))];
                let parts = self.ops("", "Split", &[Some(both)], &with, 2);
                let gate = self.op("Gelu", &[parts[0]], &[]);
                let y = self.op("Mul", &[gate, parts[1]], &[]);
                self.linear(y, inner, hidden).0
            }
            2 => {
                let to = self.whole(&[-1, hidden as i64]);
                let rows = self.op("Reshape", &[x, to], &[]);
                let (w, b) = (self.weight(&[inner, hidden], hidden), self.weight(&[inner], 4));
                self.promise(w, 0, inner, Kind::Neurons);
                let y = self.op("Gemm", &[rows, w, b], &[("transB", Attr::Int(1))]);
                let y = self.op("Relu", &[y], &[]);
                let w = self.weight(&[inner, hidden], inner);
                let y = self.op("Gemm", &[y, w], &[]);
                let to = self.whole(&[-1, POSITIONS as i64, hidden as i64]);
                self.op("Reshape", &[y, to], &[])
            }
            _ => {
                let (y, w) = self.linear(x, hidden, inner);
                self.promise(w, 1, inner, Kind::Neurons);
                let with = [("approximate", text("tanh"))];
                let y = self.op("Gelu", &[y], &with);
                self.linear(y, inner, hidden).0
            }
        }
    }
    /// An attention and a feed-forward block that read the same, both added.
    fn side_by_side(&mut self, x: ValueId, hidden: usize, positions: ValueId, norms: bool) -> ValueId {
        let h = if norms { self.norm(x, hidden) } else { x };
        let a = self.attention(h, hidden, positions);
        let f = self.feed_forward(h, hidden);
        match self.random.below(4) {
            0 => {
                let y = self.op("Add", &[x, a], &[]);
                self.op("Add", &[y, f], &[])
            }
            1 => {
                let y = self.op("Add", &[f, x], &[]);
                self.op("Add", &[a, y], &[])
            }
            2 => {
                let y = self.op("Add", &[a, f], &[]);
                self.op("Add", &[y, x], &[])
            }
            _ => self.op("Sum", &[x, a, f], &[]),
        }
    }
    fn norm(&mut self, x: ValueId, hidden: usize) -> ValueId {
        let gain = self.positive(hidden);
        match self.random.half() {
            true => {
                let bias = self.weight(&[hidden], 4);
                self.op("LayerNormalization", &[x, gain, bias], &[])
            }
            false => self.op("RMSNormalization", &[x, gain], &[]),
        }
    }
}

const HEAD: usize = 4;
const BATCH: usize = 2;

fn counts_named(name: &'static str, n: usize) -> (&'static str, Attr) {
    (name, Attr::Int(n as i64))
}

fn image_net(seed: u64) -> (Graph, Vec<(String, usize, usize, Kind)>) {
    let mut net = Net::new(seed);
    let x = net.input("x", DType::F64, &[3, 6, 6]);
    let mut c = net.random.between(2, 8);
    let mut y = net.conv(x, 3, c, 1, 3);
    for _ in 0..net.random.between(2, 7) {
        (y, c) = net.image_layer(y, c);
    }
    let y = net.image_head(y, c);
    net.done(y)
}

fn token_net(seed: u64) -> (Graph, Vec<(String, usize, usize, Kind)>) {
    let mut net = Net::new(seed);
    let ids = net.input("ids", DType::I64, &[POSITIONS]);
    let positions = net.input("positions", DType::I64, &[POSITIONS]);
    let hidden = net.random.between(4, 12);
    // Without norms nothing takes a statistic over the width, and it can be held against the mask too.
    let norms = net.random.half();
    let table = net.weight(&[WORDS, hidden], 2);
    let mut x = net.op("Gather", &[table, ids], &[]);
    if net.random.half() {
        let places = net.weight(&[POSITIONS, hidden], 2);
        let p = net.op("Gather", &[places, positions], &[]);
        x = net.op("Add", &[x, p], &[]);
    }
    for _ in 0..net.random.between(1, 2) {
        if net.random.below(3) == 0 {
            x = net.side_by_side(x, hidden, positions, norms);
            continue;
        }
        for part in 0..2 {
            let before = norms && net.random.half();
            let h = if before { net.norm(x, hidden) } else { x };
            let y = if part == 0 { net.attention(h, hidden, positions) } else { net.feed_forward(h, hidden) };
            match norms && !before && net.random.half() {
                true => {
                    let (gain, op) = (net.positive(hidden), "SkipSimplifiedLayerNormalization");
                    x = net.ops("com.microsoft", op, &[Some(y), Some(x), Some(gain)], &[], 1)[0];
                }
                false => {
                    x = net.op("Add", &[x, y], &[]);
                    if norms && !before {
                        x = net.norm(x, hidden);
                    }
                }
            }
        }
    }
    let y = match net.random.below(3) {
        0 => {
            let turned = net.op("Transpose", &[table], &[("perm", ints(&[1, 0]))]);
            net.op("MatMul", &[x, turned], &[])
        }
        1 => {
            let to = net.whole(&[-1, hidden as i64]);
            let rows = net.op("Reshape", &[x, to], &[]);
            net.op("Gemm", &[rows, table], &[("transB", Attr::Int(1))])
        }
        _ => net.linear(x, hidden, 7).0,
    };
    net.done(y)
}

fn run(graph: &Graph) -> Vec<(String, Tensor)> {
    let mut random = Random(5);
    let inputs: Vec<(String, Tensor)> = graph
        .required_inputs()
        .map(|v| {
            let Some(Type::Tensor { dtype, shape: Some(shape) }) = &graph.value(v).ty else {
                panic!("no shape")
            };
            let shape: Vec<usize> = shape.iter().map(|d| d.size().unwrap_or(BATCH)).collect();
            let n = shape.iter().product::<usize>();
            let tensor = match dtype {
                DType::I64 => {
                    Tensor::from_vec(shape, (0..n).map(|i| i as i64 % POSITIONS as i64).collect::<Vec<_>>())
                }
                _ => Tensor::from_vec(shape, (0..n).map(|_| 2.0 * random.part() - 1.0).collect::<Vec<_>>()),
            };
            (graph.value_name(v).to_string(), tensor.unwrap())
        })
        .collect();
    Executor::new(graph).unwrap().run(&inputs).unwrap()
}

fn parameters(graph: &Graph) -> u64 {
    Constants::of(graph).iter().filter(|(_, t)| t.dtype().is_float()).map(|(_, t)| t.len() as u64).sum()
}

/// Parameters that are left where these units leave.
fn promised(graph: &Graph, decision: &Decision) -> u64 {
    let kept = decision.coupled.kept(&|u| decision.leaves[u]);
    Constants::of(graph)
        .iter()
        .filter(|(_, t)| t.dtype().is_float())
        .map(|(v, t)| {
            let size = |(axis, n): (usize, &usize)| kept.get(&(v, axis)).map_or(*n, |(_, kept)| kept.len());
            t.shape().iter().enumerate().map(size).product::<usize>() as u64
        })
        .sum()
}

/// Any units of the groups that `cuts` allows, at least one of each group staying.
fn drawn(graph: &Graph, random: &mut Random, cuts: &dyn Fn(&Group) -> bool) -> Decision {
    let facts = graph.infer(&|_| None).unwrap();
    let coupled = Coupled::of(graph, &facts, &Options::default());
    let mut leaves = vec![false; coupled.units()];
    for group in coupled.groups().iter().filter(|g| g.prunable() && cuts(g)) {
        let count = random.between(1, (group.units - 1).min(1 + group.units / 2));
        let mut units: Vec<usize> = group.numbers().collect();
        for _ in 0..count {
            leaves[units.swap_remove(random.below(units.len()))] = true;
        }
    }
    let groups = coupled.groups().len();
    Decision {
        coupled,
        leaves,
        scores: vec![None; groups],
        curves: vec![None; groups],
        stays: vec![None; groups],
        prunable_parameters: 0,
        whole_parameters: 0,
        removed_parameters: 0,
    }
}

/// Operators around which an axis was cut, with what makes a rule of its own of a convolution.
fn operators(graph: &Graph, decision: &Decision) -> BTreeSet<String> {
    let kept = decision.coupled.kept(&|u| decision.leaves[u]);
    let values: BTreeSet<ValueId> = kept.keys().map(|(v, _)| *v).collect();
    let shape = |v: ValueId| Constants::of(graph).get(v).map(|t| t.shape().to_vec());
    graph
        .nodes()
        .iter()
        .filter(|n| n.inputs.iter().chain(&n.outputs).flatten().any(|v| values.contains(v)))
        .map(|n| match n.attributes.int("group", 1).unwrap() {
            1 => n.op_type.clone(),
            _ if n.inputs[1].and_then(shape).is_some_and(|s| s[1] == 1) => format!("{} depthwise", n.op_type),
            _ => format!("{} grouped", n.op_type),
        })
        .collect()
}

/// Everything that a random net is made of and a unit passes.
const RULES: &[&str] = &[
    "Add",
    "Attention",
    "AveragePool",
    "BatchNormalization",
    "Clip",
    "Concat",
    "Conv",
    "Conv depthwise",
    "Conv grouped",
    "ConvTranspose",
    "ConvTranspose grouped",
    "DepthToSpace",
    "Div",
    "Einsum",
    "Expand",
    "Flatten",
    "Gather",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GroupNormalization",
    "GroupQueryAttention",
    "HardSigmoid",
    "HardSwish",
    "InstanceNormalization",
    "LayerNormalization",
    "LeakyRelu",
    "MatMul",
    "MaxPool",
    "Mul",
    "MultiHeadAttention",
    "Neg",
    "PRelu",
    "Pad",
    "RMSNormalization",
    "ReduceMean",
    "Relu",
    "Reshape",
    "Resize",
    "RotaryEmbedding",
    "Sigmoid",
    "SkipSimplifiedLayerNormalization",
    "Slice",
    "Softmax",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Sum",
    "Tanh",
    "Transpose",
    "Unsqueeze",
];

/// Multiply-accumulates of a graph, counted node by node.
fn macs(graph: &Graph) -> u64 {
    let facts = graph.infer(&|_| Some(BATCH as i64)).unwrap();
    let of = |i: usize| {
        let op = graph.node(i).op.as_ref().unwrap();
        op.macs(&facts.inputs(graph, i), &facts.outputs(graph, i).unwrap()).unwrap().known().unwrap()
    };
    (0..graph.nodes().len()).map(of).sum::<i64>() as u64
}

struct Tally {
    /// Cuts that save products.
    cheaper: usize,
    cut: BTreeMap<String, usize>,
    groups: usize,
    decided: usize,
}

impl Tally {
    /// Holds the sliced graph against the masked one.
    fn agree(&mut self, graph: &Graph, decision: &Decision, seed: u64) {
        let pruned = slice(graph, decision).unwrap_or_else(|e| panic!("seed {seed:#x}: {e}"));
        assert_eq!(parameters(&pruned), promised(graph, decision), "seed {seed:#x}: parameters");
        let masked = mask(graph, decision).unwrap();
        let p = parity(&run(&masked), &run(&pruned), 1e-9).unwrap();
        assert!(p.max_rel <= 1e-9 && p.not_finite == 0, "seed {seed:#x}: masked and sliced differ: {p:?}");
        for op in operators(graph, decision) {
            *self.cut.entry(op).or_default() += 1;
        }
        self.count(graph, decision, &pruned, seed);
        let gone = |g: &&Group| g.numbers().any(|u| decision.leaves[u]);
        self.groups += decision.coupled.groups().iter().filter(gone).count();
    }

    /// The costs that are foretold are those of the sliced graph.
    fn count(&mut self, graph: &Graph, decision: &Decision, pruned: &Graph, seed: u64) {
        let bind = |_: &str| Some(BATCH as i64);
        let facts = graph.infer(&bind).unwrap();
        let mut costs = Costs::of(graph, &facts, &decision.coupled);
        assert_eq!((costs.macs(), costs.unknown()), (macs(graph), 0), "seed {seed:#x}");
        let kept: Vec<usize> = decision.coupled.groups().iter().map(|g| decision.kept(g)).collect();
        let foretold = costs.keep_all(&kept).unwrap_or_else(|e| panic!("seed {seed:#x}: {e}"));
        assert_eq!(foretold, macs(pruned), "seed {seed:#x}: products");
        self.cheaper += usize::from(foretold < macs(graph));
        // One unit more or less, and back.
        for group in decision.coupled.groups().iter().filter(|g| decision.kept(g) < g.units) {
            let kept = decision.kept(group);
            let unit = costs.per_unit(group.id).unwrap();
            assert_eq!(costs.macs(), foretold, "seed {seed:#x}: asking changes nothing");
            if kept > 1 {
                assert_eq!(costs.keep(group.id, kept - 1).unwrap() + unit, foretold, "seed {seed:#x}");
            }
            assert!(costs.keep(group.id, kept + 1).unwrap() >= foretold, "seed {seed:#x}");
            assert_eq!(costs.keep(group.id, kept).unwrap(), foretold, "seed {seed:#x}");
            assert_eq!(costs.keep(group.id, group.units + 1).unwrap_err().code(), "COSTS-UNITS");
        }
    }

    fn graph(&mut self, seed: u64) {
        let (graph, wanted) = if seed.is_multiple_of(2) { image_net(seed) } else { token_net(seed) };
        let mut random = Random(seed ^ 0xabcd);
        // Any units of all groups whose cut changes no statistic.
        let decision = drawn(&graph, &mut random, &|g| g.statistics.is_empty());
        for (weight, axis, units, kind) in wanted {
            let v = graph.find(&weight).unwrap();
            let on = |g: &&Group| g.places.iter().any(|p| (p.value, p.axis) == (v, axis));
            let found: Vec<_> = decision.coupled.groups().iter().filter(on).collect();
            let told: Vec<_> = found.iter().map(|g| (g.units, g.kind, &g.pinned_by)).collect();
            // Beside query heads may lie the elements of the one key head that they share.
            let free: Vec<_> = told.iter().filter(|(_, kind, _)| *kind != Kind::Other).collect();
            assert_eq!(free, [&(units, kind, &None)], "seed {seed:#x}: {weight} along axis {axis}: {told:?}");
        }
        // Nodes hold positions, pixels and elements of a head, and nothing that a network may lose.
        for group in decision.coupled.groups() {
            let pin = group.pinned_by.as_ref().filter(|p| !p.starts_with("graph "));
            let inside = group.kind == Kind::Other || [HEAD, HEAD / 2].contains(&group.units);
            assert!(pin.is_none() || inside, "seed {seed:#x}: {} {:?} {pin:?}", group.units, group.kind);
        }
        self.agree(&graph, &decision, seed);
        // Each group by itself, so that no error hides behind another cut.
        for id in 0..decision.coupled.groups().len() {
            let one = drawn(&graph, &mut random, &|g| g.id == id && g.statistics.is_empty());
            if one.leaves.contains(&true) {
                self.agree(&graph, &one, seed);
            }
        }
        self.by_score(&graph, &mut random, seed);
        // With statistics: a norm is named, shapes are as promised, and the result is a number.
        let all = drawn(&graph, &mut random, &|_| true);
        for group in all.coupled.groups().iter().filter(|g| g.prunable()) {
            for i in &group.statistics {
                let op = &graph.node(*i).op_type;
                assert!(op.contains("Normalization"), "seed {seed:#x}: {op} takes a statistic");
            }
        }
        let pruned = slice(&graph, &all).unwrap_or_else(|e| panic!("seed {seed:#x}: {e}"));
        assert_eq!(parameters(&pruned), promised(&graph, &all), "seed {seed:#x}: parameters");
        let finite = |t: &Tensor| t.to_f64s().unwrap().iter().all(|x| x.is_finite());
        assert!(run(&pruned).iter().all(|(_, t)| finite(t)), "seed {seed:#x}");
        for op in operators(&graph, &all) {
            *self.cut.entry(op).or_default() += 1;
        }
    }

    /// As the pass decides: by score, with a ratio and rounding.
    fn by_score(&mut self, graph: &Graph, random: &mut Random, seed: u64) {
        let constants = Constants::of(graph);
        let coupled = Coupled::of(graph, &graph.infer(&|_| None).unwrap(), &Options::default());
        let statistics = coupled.groups().iter().filter(|g| !g.statistics.is_empty());
        let exclude: Vec<String> =
            statistics.flat_map(|g| g.weights()).map(|p| graph.value_name(p.value).to_string()).collect();
        let text = format!(
            "ratio = {}\nround_to = {}\nscope = '{}'\nexclude = {exclude:?}",
            0.1 + 0.5 * random.part(),
            random.between(1, 4),
            random.one_of(&["global", "layer"])
        );
        let settings: Settings = toml::from_str(&text).unwrap();
        match decide(graph, &settings, &Silent) {
            Ok(decision) => {
                let all: u64 =
                    constants.iter().filter(|(_, t)| t.dtype().is_float()).map(|(_, t)| t.len() as u64).sum();
                assert_eq!(all - decision.removed_parameters, promised(graph, &decision), "seed {seed:#x}");
                self.agree(graph, &decision, seed);
                self.decided += 1;
            }
            Err(e) => assert!(["PRUNE-RATIO", "PRUNE-NOTHING"].contains(&e.code()), "seed {seed:#x}: {e}"),
        }
    }
}

#[test]
fn random_graphs_slice_as_they_mask() {
    let mut tally = Tally { cheaper: 0, cut: BTreeMap::new(), groups: 0, decided: 0 };
    for seed in SEED..SEED + GRAPHS {
        tally.graph(seed);
    }
    println!("{GRAPHS} graphs from seed {SEED:#x}: {} groups cut, {} by score", tally.groups, tally.decided);
    println!("{} cuts save products", tally.cheaper);
    assert!(tally.cheaper > 500, "{} cuts save products", tally.cheaper);
    println!("cuts by operator: {:?}", tally.cut);
    let never: Vec<_> = RULES.iter().filter(|r| !tally.cut.contains_key(**r)).collect();
    assert!(never.is_empty(), "never cut: {never:?}");
    assert!(tally.decided > GRAPHS as usize / 2, "only {} decided by score", tally.decided);
}
