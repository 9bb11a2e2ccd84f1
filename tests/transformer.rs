//! Small transformers with random weights, built as importers build them: what tests of attention,
//! pruning and lowering run on.

use tinsmith::graph::{Edit, Graph, Node, Type, ValueId};
use tinsmith::ops::{Attr, Attributes, Dim};
use tinsmith::tensor::{DType, Tensor};

/// Numbers between -1 and 1, the same in every run.
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 40) as f32) / (1u64 << 23) as f32 - 1.0
    }
    pub fn tensor(&mut self, shape: &[usize], scale: f32) -> Tensor {
        let data = (0..shape.iter().product::<usize>()).map(|_| scale * self.next()).collect::<Vec<f32>>();
        Tensor::from_vec(shape.to_vec(), data).unwrap()
    }
}

pub struct Net {
    pub edit: Edit,
    noise: Noise,
}

fn attributes(all: &[(&str, Attr)]) -> Attributes {
    all.iter().fold(Attributes::new(), |a, (n, v)| a.with(n, v.clone()))
}

fn ints(v: &[i64]) -> Attr {
    Attr::Ints(v.to_vec())
}

fn float(dims: &[Dim]) -> Type {
    Type::Tensor { dtype: DType::F32, shape: Some(dims.to_vec()) }
}

fn whole(dims: &[&str]) -> Type {
    Type::Tensor { dtype: DType::I64, shape: Some(dims.iter().map(|d| Dim::symbol(d)).collect()) }
}

impl Net {
    pub fn new(opset: i64) -> Net {
        Net { edit: Edit::new("transformer", &[("", opset)]), noise: Noise(11) }
    }
    fn op(&mut self, op: &str, name: &str, inputs: &[ValueId], with: &[(&str, Attr)]) -> ValueId {
        self.edit.add_op(op, inputs, attributes(with), name)
    }
    /// A node with several outputs and optional inputs.
    fn ops(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[Option<ValueId>],
        with: &[(&str, Attr)],
        out: &[ValueId],
    ) {
        let node = Node::new(op, inputs.to_vec(), out.iter().copied().map(Some).collect());
        self.edit.add_node(node.with(attributes(with)).named(name));
    }
    fn weight(&mut self, name: &str, shape: &[usize]) -> ValueId {
        let scale = 1.6 / (shape[0] as f32).sqrt();
        let tensor = self.noise.tensor(shape, scale);
        self.edit.add_initializer(name, tensor)
    }
    /// Around one.
    fn gain(&mut self, name: &str, n: usize) -> ValueId {
        let data: Vec<f32> = (0..n).map(|_| 1.0 + 0.3 * self.noise.next()).collect();
        self.edit.add_initializer(name, Tensor::from_vec(vec![n], data).unwrap())
    }
    fn constant(&mut self, name: &str, values: &[i64]) -> ValueId {
        self.edit.add_initializer(name, Tensor::from_vec(vec![values.len()], values.to_vec()).unwrap())
    }
    fn number(&mut self, name: &str, value: i64) -> ValueId {
        self.edit.add_initializer(name, Tensor::from_vec(vec![], vec![value]).unwrap())
    }
    fn linear(&mut self, name: &str, x: ValueId, from: usize, to: usize, bias: bool) -> ValueId {
        let w = self.weight(&format!("{name}.weight"), &[from, to]);
        let y = self.op("MatMul", name, &[x, w], &[]);
        if !bias {
            return y;
        }
        let b = self.weight(&format!("{name}.bias"), &[to]);
        self.op("Add", &format!("{name}.biased"), &[y, b], &[])
    }
    fn heads(&mut self, name: &str, x: ValueId, heads: usize, head: usize) -> ValueId {
        let to = self.constant(&format!("{name}.shape"), &[0, 0, heads as i64, head as i64]);
        let y = self.op("Reshape", &format!("{name}.heads"), &[x, to], &[]);
        self.op("Transpose", &format!("{name}.transposed"), &[y], &[("perm", ints(&[0, 2, 1, 3]))])
    }
    fn joined(&mut self, name: &str, x: ValueId, width: usize) -> ValueId {
        let y = self.op("Transpose", &format!("{name}.back"), &[x], &[("perm", ints(&[0, 2, 1, 3]))]);
        let to = self.constant(&format!("{name}.joined_shape"), &[0, 0, width as i64]);
        self.op("Reshape", &format!("{name}.joined"), &[y, to], &[])
    }
    /// The i-th axis of a value's shape, as a vector of one element.
    fn size(&mut self, name: &str, x: ValueId, axis: i64) -> ValueId {
        self.op("Shape", name, &[x], &[("start", Attr::Int(axis)), ("end", Attr::Int(axis + 1))])
    }
    fn range(&mut self, name: &str, size: ValueId, axis: i64) -> ValueId {
        let axes = self.constant(&format!("{name}.axes"), &[0]);
        let n = self.op("Squeeze", &format!("{name}.n"), &[size, axes], &[]);
        let (zero, one) = (self.number(&format!("{name}.zero"), 0), self.number(&format!("{name}.one"), 1));
        let r = self.op("Range", &format!("{name}.range"), &[zero, n, one], &[]);
        let axes = self.constant(&format!("{name}.axis"), &[axis]);
        self.op("Unsqueeze", name, &[r, axes], &[])
    }
}

/// How a decoder is built.
#[derive(Debug, Clone)]
pub struct Decoder {
    pub layers: usize,
    pub heads: usize,
    pub groups: usize,
    pub head: usize,
    pub hidden: usize,
    pub inner: usize,
    pub vocabulary: usize,
    pub positions: usize,
    /// Elements of a head that rotate; 0 for none.
    pub rotated: usize,
    pub interleaved: bool,
    pub head_norm: bool,
    pub bias: bool,
    /// Window of every other layer.
    pub window: Option<usize>,
    pub softcap: f32,
    pub final_cap: f32,
    pub tied: bool,
    /// LayerNormalization and Gelu with tanh, as GPT-2 has; else RMS and a gated Silu.
    pub classic: bool,
    pub scale: Option<f32>,
    /// Attention and feed-forward block read one norm and are added one after the other.
    pub beside: bool,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder {
            layers: 2,
            heads: 4,
            groups: 2,
            head: 16,
            hidden: 32,
            inner: 48,
            vocabulary: 50,
            positions: 64,
            rotated: 16,
            interleaved: false,
            head_norm: false,
            bias: false,
            window: None,
            softcap: 0.0,
            final_cap: 0.0,
            tied: true,
            classic: false,
            scale: None,
            beside: false,
        }
    }
}

impl Decoder {
    fn norm(&self, net: &mut Net, name: &str, x: ValueId) -> ValueId {
        let gain = net.gain(&format!("{name}.weight"), self.hidden);
        if self.classic {
            let bias = net.weight(&format!("{name}.bias"), &[self.hidden]);
            return net.op("LayerNormalization", name, &[x, gain, bias], &[("epsilon", Attr::Float(1e-5))]);
        }
        let with = [("axis", Attr::Int(-1)), ("epsilon", Attr::Float(1e-6))];
        net.op("RMSNormalization", name, &[x, gain], &with)
    }

    fn rope(&self, net: &mut Net, name: &str, x: ValueId, tables: [ValueId; 3]) -> ValueId {
        if self.rotated == 0 {
            return x;
        }
        let with = [
            ("interleaved", Attr::Int(self.interleaved.into())),
            (
                "rotary_embedding_dim",
                Attr::Int(if self.rotated == self.head { 0 } else { self.rotated as i64 }),
            ),
        ];
        net.op("RotaryEmbedding", name, &[x, tables[0], tables[1], tables[2]], &with)
    }

    /// The graph: `input_ids`, `attention_mask`, past keys and values; `logits` and present ones.
    pub fn graph(&self) -> Graph {
        let mut net = Net::new(23);
        let ids = net.edit.add_input("input_ids", whole(&["batch", "seq"]));
        let given = net.edit.add_input("attention_mask", whole(&["batch", "total"]));
        let cache = |length: &str| {
            float(&[Dim::symbol("batch"), Dim::from(self.groups), Dim::symbol(length), Dim::from(self.head)])
        };
        let past: Vec<[ValueId; 2]> = (0..self.layers)
            .map(|i| {
                ["key", "value"]
                    .map(|part| net.edit.add_input(&format!("past_key_values.{i}.{part}"), cache("past")))
            })
            .collect();

        // Positions.
        let axis = net.number("positions.axis", 1);
        let counted = net.op("CumSum", "positions.counted", &[given, axis], &[]);
        let (one, zero) = (net.number("positions.one", 1), net.number("positions.zero", 0));
        let from_zero = net.op("Sub", "positions.from_zero", &[counted, one], &[]);
        let clipped = net.op("Clip", "positions.clipped", &[from_zero, zero], &[]);
        let seq = net.size("sizes.seq", ids, 1);
        let total = net.size("sizes.total", given, 1);
        let length = net.size("sizes.past", past[0][0], 2);
        let axes = net.constant("positions.axes", &[1]);
        let position_ids = net.op("Slice", "position_ids", &[clipped, length, total, axes], &[]);

        // Masks.
        let k = net.range("mask.keys", total, 0);
        let q = net.range("mask.new", seq, 1);
        let q = net.op("Add", "mask.queries", &[q, length], &[]);
        let ordered = net.op("LessOrEqual", "mask.ordered", &[k, q], &[]);
        let real = net.op("Cast", "mask.real", &[given], &[("to", Attr::Int(9))]);
        let axes = net.constant("mask.axes", &[1, 2]);
        let real = net.op("Unsqueeze", "mask.spread", &[real, axes], &[]);
        let causal = net.op("And", "mask.causal", &[ordered, real], &[]);
        let window = self.window.map(|w| {
            let w_value = net.number("mask.window_size", w as i64);
            let start = net.op("Sub", "mask.window_start", &[q, w_value], &[]);
            let near = net.op("Greater", "mask.near", &[k, start], &[]);
            let both = net.op("And", "mask.near_ordered", &[ordered, near], &[]);
            net.op("And", &format!("mask.window.{w}"), &[both, real], &[])
        });

        // Tables of angles.
        let half = self.rotated / 2;
        let angles: Vec<f32> = (0..self.positions)
            .flat_map(|p| (0..half).map(move |i| p as f32 / 100f32.powf(i as f32 / half as f32)))
            .collect();
        let table = |net: &mut Net, name: &str, f: fn(f32) -> f32| {
            let data: Vec<f32> = angles.iter().map(|a| f(*a)).collect();
            net.edit.add_initializer(name, Tensor::from_vec(vec![self.positions, half], data).unwrap())
        };
        let tables =
            [table(&mut net, "rope.cos", f32::cos), table(&mut net, "rope.sin", f32::sin), position_ids];

        let embedding = net.weight("embedding.weight", &[self.vocabulary, self.hidden]);
        let mut x = net.op("Gather", "embedding", &[embedding, ids], &[]);
        if self.classic {
            let table = net.weight("positions.weight", &[self.positions, self.hidden]);
            let p = net.op("Gather", "positions", &[table, position_ids], &[]);
            x = net.op("Add", "embedded", &[x, p], &[]);
        }
        for i in 0..self.layers {
            let mask = if i % 2 == 1 { window.unwrap_or(causal) } else { causal };
            x = self.layer(&mut net, i, x, mask, tables, past[i]);
        }
        let x = self.norm(&mut net, "norm", x);
        let mut logits = if self.tied {
            let flat = net.constant("head.flat", &[-1, self.hidden as i64]);
            let rows = net.op("Reshape", "head.rows", &[x, flat], &[]);
            let y = net.op("Gemm", "head.product", &[rows, embedding], &[("transB", Attr::Int(1))]);
            let batch = net.size("sizes.batch", ids, 0);
            let open = net.constant("head.open", &[-1]);
            let width = net.constant("head.width", &[self.vocabulary as i64]);
            let shape = net.op("Concat", "head.shape", &[batch, open, width], &[("axis", Attr::Int(0))]);
            let name = if self.final_cap > 0.0 { "head.scores" } else { "logits" };
            net.op("Reshape", name, &[y, shape], &[])
        } else {
            let w = net.weight("head.weight", &[self.hidden, self.vocabulary]);
            let name = if self.final_cap > 0.0 { "head.scores" } else { "logits" };
            net.op("MatMul", name, &[x, w], &[])
        };
        if self.final_cap > 0.0 {
            let cap = net.edit.add_initializer("head.cap", Tensor::scalar(self.final_cap));
            let y = net.op("Div", "head.divided", &[logits, cap], &[]);
            let y = net.op("Tanh", "head.squeezed", &[y], &[]);
            logits = net.op("Mul", "logits", &[y, cap], &[]);
        }
        let dims = ["batch", "seq"].map(Dim::symbol);
        net.edit.set_type(logits, Some(float(&[&dims[..], &[Dim::from(self.vocabulary)]].concat())));
        net.edit.add_output(logits);
        for i in 0..self.layers {
            for part in ["key", "value"] {
                let v = net.edit.graph().find(&format!("present.{i}.{part}")).unwrap();
                net.edit.set_type(v, Some(cache("total")));
                net.edit.add_output(v);
            }
        }
        net.edit.commit().unwrap()
    }

    fn layer(
        &self,
        net: &mut Net,
        i: usize,
        x: ValueId,
        mask: ValueId,
        tables: [ValueId; 3],
        past: [ValueId; 2],
    ) -> ValueId {
        let at = |s: &str| format!("layers.{i}.{s}");
        let (q_width, kv_width) = (self.heads * self.head, self.groups * self.head);
        let h = self.norm(net, &at("attention_norm"), x);
        let mut projected =
            [("q", q_width, self.heads), ("k", kv_width, self.groups), ("v", kv_width, self.groups)].map(
                |(part, width, heads)| {
                    let y = net.linear(&at(part), h, self.hidden, width, self.bias);
                    net.heads(&at(part), y, heads, self.head)
                },
            );
        for (j, part) in [(0, "q"), (1, "k")] {
            if self.head_norm {
                let gain = net.gain(&at(&format!("{part}_norm.weight")), self.head);
                let with = [("axis", Attr::Int(-1)), ("epsilon", Attr::Float(1e-6))];
                projected[j] =
                    net.op("RMSNormalization", &at(&format!("{part}_norm")), &[projected[j], gain], &with);
            }
            projected[j] = self.rope(net, &at(&format!("attention.rope_{part}")), projected[j], tables);
        }
        let [q, k, v] = projected;
        let y = net.edit.add_value(&at("attention"), None);
        let present = ["key", "value"].map(|part| net.edit.add_value(&format!("present.{i}.{part}"), None));
        let mut with = vec![];
        if let Some(scale) = self.scale {
            with.push(("scale", Attr::Float(scale)));
        }
        if self.softcap > 0.0 {
            with.push(("softcap", Attr::Float(self.softcap)));
        }
        let inputs = [q, k, v, mask, past[0], past[1]].map(Some);
        net.ops("Attention", &at("attention"), &inputs, &with, &[y, present[0], present[1]]);
        let y = net.joined(&at("attention"), y, q_width);
        let y = net.linear(&at("o"), y, q_width, self.hidden, self.bias);
        let x = net.op("Add", &at("attention_residual"), &[x, y], &[]);
        let h = if self.beside { h } else { self.norm(net, &at("mlp_norm"), x) };
        let y = if self.classic {
            let y = net.linear(&at("up"), h, self.hidden, self.inner, true);
            let y = net.op("Gelu", &at("gelu"), &[y], &[("approximate", Attr::Str(b"tanh".to_vec()))]);
            net.linear(&at("down"), y, self.inner, self.hidden, true)
        } else {
            let gate = net.linear(&at("gate"), h, self.hidden, self.inner, false);
            let up = net.linear(&at("up"), h, self.hidden, self.inner, false);
            let s = net.op("Sigmoid", &at("sigmoid"), &[gate], &[]);
            let s = net.op("Mul", &at("silu"), &[gate, s], &[]);
            let y = net.op("Mul", &at("gated"), &[s, up], &[]);
            net.linear(&at("down"), y, self.inner, self.hidden, false)
        };
        net.op("Add", &at("mlp_residual"), &[x, y], &[])
    }

    /// Inputs of one run: token ids, which of all tokens so far are real, the cache.
    pub fn inputs(&self, ids: &[&[i64]], mask: &[&[i64]], cache: &[Tensor]) -> Vec<(String, Tensor)> {
        let rows =
            |rows: &[&[i64]]| Tensor::from_vec(vec![rows.len(), rows[0].len()], rows.concat()).unwrap();
        let mut all = vec![("input_ids".to_string(), rows(ids)), ("attention_mask".to_string(), rows(mask))];
        for i in 0..self.layers {
            for (j, part) in ["key", "value"].into_iter().enumerate() {
                let empty = || {
                    Tensor::from_vec(vec![ids.len(), self.groups, 0, self.head], Vec::<f32>::new()).unwrap()
                };
                let tensor = cache.get(2 * i + j).cloned().unwrap_or_else(empty);
                all.push((format!("past_key_values.{i}.{part}"), tensor));
            }
        }
        all
    }
}

/// An encoder: BERT's order of norms, or ViT's on patches that come embedded.
#[derive(Debug, Clone)]
pub struct Encoder {
    pub layers: usize,
    pub heads: usize,
    pub head: usize,
    pub hidden: usize,
    pub inner: usize,
    /// Embedded patches instead of tokens: no mask, norms before the sublayers, Gelu with erf.
    pub patches: bool,
}

impl Default for Encoder {
    fn default() -> Encoder {
        Encoder { layers: 2, heads: 4, head: 8, hidden: 32, inner: 40, patches: false }
    }
}

impl Encoder {
    pub fn graph(&self) -> Graph {
        let mut net = Net::new(23);
        let (mut x, mask) = if self.patches {
            let dims = [Dim::symbol("batch"), Dim::symbol("seq"), Dim::from(self.hidden)];
            (net.edit.add_input("patches", float(&dims)), None)
        } else {
            let ids = net.edit.add_input("input_ids", whole(&["batch", "seq"]));
            let given = net.edit.add_input("attention_mask", whole(&["batch", "seq"]));
            let real = net.op("Cast", "mask.real", &[given], &[("to", Attr::Int(9))]);
            let axes = net.constant("mask.axes", &[1, 2]);
            let mask = net.op("Unsqueeze", "mask.padding", &[real, axes], &[]);
            let table = net.weight("embedding.weight", &[50, self.hidden]);
            (net.op("Gather", "embedding", &[table, ids], &[]), Some(mask))
        };
        let norm = |net: &mut Net, name: &str, x: ValueId| {
            let (gain, bias) = (
                net.gain(&format!("{name}.weight"), self.hidden),
                net.weight(&format!("{name}.bias"), &[self.hidden]),
            );
            net.op("LayerNormalization", name, &[x, gain, bias], &[("epsilon", Attr::Float(1e-12))])
        };
        let width = self.heads * self.head;
        for i in 0..self.layers {
            let at = |s: &str| format!("layers.{i}.{s}");
            let h = if self.patches { norm(&mut net, &at("norm1"), x) } else { x };
            let [q, k, v] = ["q", "k", "v"].map(|part| {
                let y = net.linear(&at(part), h, self.hidden, width, true);
                net.heads(&at(part), y, self.heads, self.head)
            });
            let y = net.edit.add_value(&at("attention"), None);
            net.ops("Attention", &at("attention"), &[Some(q), Some(k), Some(v), mask], &[], &[y]);
            let y = net.joined(&at("attention"), y, width);
            let y = net.linear(&at("o"), y, width, self.hidden, true);
            x = net.op("Add", &at("attention_residual"), &[x, y], &[]);
            let h = if self.patches {
                norm(&mut net, &at("norm2"), x)
            } else {
                x = norm(&mut net, &at("norm1"), x);
                x
            };
            let y = net.linear(&at("up"), h, self.hidden, self.inner, true);
            let y = net.op("Gelu", &at("gelu"), &[y], &[]);
            let y = net.linear(&at("down"), y, self.inner, self.hidden, true);
            x = net.op("Add", &at("mlp_residual"), &[x, y], &[]);
            if !self.patches {
                x = norm(&mut net, &at("norm2"), x);
            }
        }
        let out = net.op("Identity", "last_hidden_state", &[x], &[]);
        let dims = [Dim::symbol("batch"), Dim::symbol("seq"), Dim::from(self.hidden)];
        net.edit.set_type(out, Some(float(&dims)));
        net.edit.add_output(out);
        net.edit.commit().unwrap()
    }

    pub fn inputs(&self, ids: &[&[i64]], mask: &[&[i64]]) -> Vec<(String, Tensor)> {
        if self.patches {
            let shape = [ids.len(), ids[0].len(), self.hidden];
            return vec![("patches".into(), Noise(5).tensor(&shape, 1.0))];
        }
        let rows =
            |rows: &[&[i64]]| Tensor::from_vec(vec![rows.len(), rows[0].len()], rows.concat()).unwrap();
        vec![("input_ids".into(), rows(ids)), ("attention_mask".into(), rows(mask))]
    }
}
