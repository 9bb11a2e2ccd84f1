//! Attention in ONNX Runtime's operators. A decoder's attention with its rotary embeddings becomes
//! GroupQueryAttention, an encoder's MultiHeadAttention; both take heads side by side, so that the
//! transpositions around them fall away. Limits are those that version 1.32 enforces on CPUs.

use super::emit::{Emit, attributes};
use super::masks::{self, Kind};
use super::{plain, simple};
use crate::error::Result;
use crate::graph::{NodeIndex, ValueId};
use crate::ops::{Attr, Attributes, Dim};
use crate::tensor::DType;
use std::collections::HashMap;

const CONTRIB: &str = "com.microsoft";
const BY_HEAD: [i64; 4] = [0, 2, 1, 3];

/// What masks and positions are, by value: each is proven once.
#[derive(Default)]
struct Known {
    masks: HashMap<ValueId, Option<(Kind, ValueId)>>,
    positions: HashMap<ValueId, Option<ValueId>>,
}

/// Every Attention of the graph.
pub(super) fn attention(emit: &mut Emit<'_>) -> Result<()> {
    let mut known = Known::default();
    for i in 0..emit.graph.nodes().len() {
        if !emit.graph.node(i).is("Attention") {
            continue;
        }
        emit.at(i);
        let why = match Site::of(emit, i)? {
            Ok(site) => match site.grouped(emit, &mut known)? {
                None => continue,
                Some(why) => match site.multi_head(emit, &mut known)? {
                    None => continue,
                    Some(other) => {
                        if site.past.is_some() {
                            why
                        } else {
                            other
                        }
                    }
                },
            },
            Err(why) => why,
        };
        emit.skipped(i, why);
        plain::spell_out(emit, i)?;
        emit.applied(i, "attention in plain operators");
    }
    Ok(())
}

/// One Attention with what is known of it.
struct Site {
    node: NodeIndex,
    qkv: [ValueId; 3],
    mask: Option<ValueId>,
    past: Option<[ValueId; 2]>,
    heads: usize,
    groups: usize,
    head: usize,
    value: usize,
    scale: Option<f32>,
    softcap: f32,
    causal: bool,
    out: ValueId,
}

/// A rotary embedding in front of an attention.
struct Rope {
    x: ValueId,
    tables: [ValueId; 2],
    positions: ValueId,
    rotated: usize,
    interleaved: i64,
}

impl Site {
    /// `Err` says why neither form fits.
    fn of(emit: &Emit<'_>, i: NodeIndex) -> Result<std::result::Result<Site, String>> {
        let a = &emit.graph.node(i).attributes;
        let (Some(q), Some(k), Some(v)) = (emit.input(i, 0), emit.input(i, 1), emit.input(i, 2)) else {
            return Ok(Err("an operand is missing".into()));
        };
        let sizes = |v: ValueId| match emit.shape(v)? {
            [_, h, _, d] => Some((h.size()?, d.size()?)),
            _ => None,
        };
        let (Some((heads, head)), Some((groups, _)), Some((_, value))) = (sizes(q), sizes(k), sizes(v))
        else {
            return Ok(Err("its operands do not have four axes of known heads".into()));
        };
        let windows = a.int("left_window_size", -1)? >= 0 || a.int("right_window_size", -1)? >= 0;
        let other = [
            (emit.wanted(i, 3).is_some(), "its scores are an output"),
            (emit.input(i, 6).is_some(), "it reads numbers of keys"),
            (windows, "it has windows of its own"),
            (emit.dtype(q) != DType::F32, "it is not in f32"),
            (emit.graph.node(i).outputs.first().copied().flatten().is_none(), "nothing takes its result"),
        ];
        if let Some((_, why)) = other.into_iter().find(|(is, _)| *is) {
            return Ok(Err(why.into()));
        }
        Ok(Ok(Site {
            node: i,
            qkv: [q, k, v],
            mask: emit.input(i, 3),
            past: emit.input(i, 4).zip(emit.input(i, 5)).map(|(a, b)| [a, b]),
            heads,
            groups,
            head,
            value,
            scale: a.get("scale").map(|_| a.float("scale", 0.0)).transpose()?,
            softcap: a.float("softcap", 0.0)?,
            causal: a.int("is_causal", 0)? != 0,
            out: emit.graph.node(i).outputs[0].expect("it was just looked at"),
        }))
    }

    /// GroupQueryAttention; or why not.
    fn grouped(&self, emit: &mut Emit<'_>, known: &mut Known) -> Result<Option<String>> {
        let (kind, padding) = match self.mask.map(|m| known.mask(emit, m)) {
            Some(Some(found)) if !self.causal => found,
            Some(_) => return Ok(Some("its mask is none that is recognised".into())),
            None => return Ok(Some("it has no mask that is made from a padding input".into())),
        };
        let window = match kind {
            Kind::Causal => None,
            Kind::Window(w) => Some(w),
            Kind::Padding => return Ok(Some("it is not causal".into())),
        };
        if self.head != self.value {
            return Ok(Some("keys and values differ in size".into()));
        }
        if !self.head.is_multiple_of(8) {
            return Ok(Some(format!("the size of a head, {}, is no multiple of 8", self.head)));
        }
        let ropes = [self.rope(emit, 0)?, self.rope(emit, 1)?];
        let mut tables = None;
        let mut operands = self.qkv;
        let mut detail = String::from("GroupQueryAttention");
        let [q_heads, k_heads] = [self.heads, self.groups];
        match &ropes {
            [Some(a), Some(b)]
                if self.inside(a, b) && known.positions(emit, a.positions) == Some(padding) =>
            {
                operands = [a.x, b.x, self.qkv[2]];
                tables = Some((a.tables, a.interleaved));
                detail += " with rotary embedding";
            }
            [Some(_), Some(_)] => detail += " behind its rotary embeddings",
            _ => {}
        }
        let mut flat: Vec<ValueId> = vec![];
        for (part, heads) in operands.into_iter().zip([q_heads, k_heads, k_heads]) {
            let own = if tables.is_some() { None } else { ropes.get(flat.len()).and_then(Option::as_ref) };
            flat.push(match own.filter(|r| emit.dtype(r.positions) == DType::I64) {
                Some(rope) => {
                    let x = beside(emit, rope.x, heads, self.head);
                    let out = emit.value(if flat.is_empty() { "q_turned" } else { "k_turned" });
                    let ids = [rope.positions, rope.tables[0], rope.tables[1]];
                    let sizes = (heads, self.head, rope.rotated);
                    simple::rotate(emit, x, ids, sizes, rope.interleaved, out);
                    out
                }
                None => beside(emit, part, heads, self.head),
            });
        }
        let (lengths, total) = lengths(emit, padding);
        let mut inputs: Vec<Option<ValueId>> = flat.into_iter().map(Some).collect();
        inputs.extend(match self.past {
            Some(past) => past.map(Some),
            None => [None, None],
        });
        inputs.extend([Some(lengths), Some(total)]);
        let mut with = attributes(&[
            ("num_heads", Attr::Int(self.heads as i64)),
            ("kv_num_heads", Attr::Int(self.groups as i64)),
            ("scale", Attr::Float(self.scale.unwrap_or(1.0 / (self.head as f32).sqrt()))),
        ]);
        if let Some((tables, interleaved)) = tables {
            inputs.extend(tables.map(Some));
            with.set("do_rotary", Attr::Int(1));
            with.set("rotary_interleaved", Attr::Int(interleaved));
        }
        if let Some(w) = window {
            with.set("local_window_size", Attr::Int(w));
        }
        if self.softcap > 0.0 {
            with.set("softcap", Attr::Float(self.softcap));
        }
        let presents = [1, 2].map(|slot| {
            let given = emit.graph.node(self.node).outputs.get(slot).copied().flatten();
            given.unwrap_or_else(|| emit.value(if slot == 1 { "present_key" } else { "present_value" }))
        });
        let y = self.result(emit);
        let outputs = vec![Some(y), Some(presents[0]), Some(presents[1])];
        let made = emit.node(CONTRIB, "GroupQueryAttention", inputs, outputs, with);
        emit.inherit(made);
        emit.applied(self.node, detail);
        Ok(None)
    }

    /// MultiHeadAttention; or why not.
    fn multi_head(&self, emit: &mut Emit<'_>, known: &mut Known) -> Result<Option<String>> {
        if self.past.is_some() || (1..3).any(|slot| emit.wanted(self.node, slot).is_some()) {
            return Ok(Some("it has a cache".into()));
        }
        if self.heads != self.groups {
            return Ok(Some("its heads share keys".into()));
        }
        if self.softcap > 0.0 || self.causal {
            return Ok(Some("it is causal, or has a soft cap".into()));
        }
        let padding = match self.mask {
            None => None,
            Some(m) => match known.mask(emit, m) {
                Some((Kind::Padding, padding)) => Some(padding),
                _ => return Ok(Some("its mask is none that is recognised".into())),
            },
        };
        let mut inputs: Vec<Option<ValueId>> = vec![];
        for (part, size) in self.qkv.into_iter().zip([self.head, self.head, self.value]) {
            inputs.push(Some(beside(emit, part, self.heads, size)));
        }
        if let Some(padding) = padding {
            let mask = emit.shared(format!("padding_{}", padding.0), |e, _| {
                let to = [("to", Attr::Int(i64::from(DType::I32.onnx())))];
                e.op("Cast", &[padding], &to, "key_padding")
            });
            inputs.extend([None, Some(mask)]);
        }
        let mut with = attributes(&[("num_heads", Attr::Int(self.heads as i64))]);
        if let Some(scale) = self.scale {
            with.set("scale", Attr::Float(scale));
        }
        let y = self.result(emit);
        let made = emit.into(CONTRIB, "MultiHeadAttention", inputs, &[y], with);
        emit.inherit(made);
        emit.applied(self.node, "MultiHeadAttention");
        Ok(None)
    }

    /// The rotary embedding that makes an operand.
    fn rope(&self, emit: &Emit<'_>, slot: usize) -> Result<Option<Rope>> {
        let Some(i) = emit.made_by(self.qkv[slot], "RotaryEmbedding") else { return Ok(None) };
        let (Some(x), Some(cos), Some(sin), Some(positions)) =
            (emit.input(i, 0), emit.input(i, 1), emit.input(i, 2), emit.input(i, 3))
        else {
            return Ok(None);
        };
        let half = match emit.shape(cos) {
            Some([_, half]) => half.size(),
            _ => None,
        };
        let interleaved = emit.graph.node(i).attributes.int("interleaved", 0)?;
        Ok(half.map(|half| Rope { x, tables: [cos, sin], positions, rotated: 2 * half, interleaved }))
    }

    /// Whether the attention itself can rotate so: the same way for queries and keys, heads of a
    /// multiple of 16 elements, a multiple of 16 of which rotate.
    fn inside(&self, q: &Rope, k: &Rope) -> bool {
        q.tables == k.tables
            && q.positions == k.positions
            && q.interleaved == k.interleaved
            && self.head.is_multiple_of(16)
            && q.rotated.is_multiple_of(16)
            && q.rotated <= self.head
    }

    /// The value that the new node writes its result to, `[batch, positions, heads * value]`: what the
    /// heads are joined into behind the old one, else a value that the old result is made from.
    fn result(&self, emit: &mut Emit<'_>) -> ValueId {
        emit.edit.remove_node(self.node);
        let width = Dim::from(self.heads * self.value);
        if let Some(moved) = emit.only_reader(self.out, "Transpose")
            && let Some(by) = emit.graph.node(moved).outputs.first().copied().flatten()
            && emit.transposed(by, &BY_HEAD) == Some(self.out)
            && let Some(joined) = emit.only_reader(by, "Reshape")
            && let Some(out) = emit.graph.node(joined).outputs.first().copied().flatten()
            && let (Some([b, s, w]), Some([b0, _, s0, _])) = (emit.shape(out), emit.shape(self.out))
            && (*w == width && b == b0 && s == s0)
        {
            emit.edit.remove_node(moved);
            emit.edit.remove_node(joined);
            return out;
        }
        let y = emit.value("joined");
        let to = emit.ints(&[0, 0, self.heads as i64, self.value as i64]);
        let split = emit.op("Reshape", &[y, to], &[], "split");
        let perm = attributes(&[("perm", Attr::Ints(BY_HEAD.to_vec()))]);
        emit.into("", "Transpose", vec![Some(split)], &[self.out], perm);
        y
    }
}

impl Known {
    fn mask(&mut self, emit: &Emit<'_>, v: ValueId) -> Option<(Kind, ValueId)> {
        *self.masks.entry(v).or_insert_with(|| masks::kind(emit.graph, &emit.uses, v))
    }
    fn positions(&mut self, emit: &Emit<'_>, v: ValueId) -> Option<ValueId> {
        *self.positions.entry(v).or_insert_with(|| masks::positions(emit.graph, &emit.uses, v))
    }
}

/// A value of `[batch, heads, positions, size]` with its heads side by side, `[batch, positions, heads *
/// size]`: what it was split from, where it was; a norm of each head is taken along.
fn beside(emit: &mut Emit<'_>, v: ValueId, heads: usize, size: usize) -> ValueId {
    let width = heads * size;
    if let Some(split) = emit.transposed(v, &BY_HEAD) {
        if let Some(i) = emit.made_by(split, "Reshape")
            && let Some(whole) = emit.input(i, 0)
            && let (Some([b, s, w]), Some([b0, s0, _, _])) = (emit.shape(whole), emit.shape(split))
            && (w.is(width as i64) && b == b0 && s == s0)
        {
            return whole;
        }
        return joined(emit, split, width);
    }
    for norm in ["RMSNormalization", "LayerNormalization"] {
        let Some(i) = emit.made_by(v, norm) else { continue };
        let node = emit.graph.node(i).clone();
        let last = matches!(node.attributes.int("axis", -1), Ok(-1 | 3));
        let by_element = node.inputs[1..].iter().flatten().all(|p| emit.shape(*p).map(<[_]>::len) == Some(1));
        let split = emit.input(i, 0).and_then(|x| emit.transposed(x, &BY_HEAD));
        if let (true, true, Some(split)) = (last, by_element, split) {
            let mut inputs = node.inputs.clone();
            inputs[0] = Some(split);
            let out = emit.value("normed");
            emit.into("", norm, inputs, &[out], node.attributes.clone());
            return joined(emit, out, width);
        }
    }
    let moved = emit.op("Transpose", &[v], &[("perm", Attr::Ints(BY_HEAD.to_vec()))], "by_position");
    joined(emit, moved, width)
}

fn joined(emit: &mut Emit<'_>, v: ValueId, width: usize) -> ValueId {
    let to = emit.ints(&[0, 0, width as i64]);
    emit.op("Reshape", &[v, to], &[], "side_by_side")
}

/// The last position of each row, and the number of positions in all, both in i32: what
/// GroupQueryAttention reads, made once for all layers.
fn lengths(emit: &mut Emit<'_>, padding: ValueId) -> (ValueId, ValueId) {
    let narrow = [("to", Attr::Int(i64::from(DType::I32.onnx())))];
    let rows = emit.shared(format!("seqlens_k_{}", padding.0), |e, key| {
        let (axes, one) = (e.ints(&[1]), e.int(1));
        let wide = e.op("Cast", &[padding], &[("to", Attr::Int(i64::from(DType::I64.onnx())))], "padding");
        let count = e.op("ReduceSum", &[wide, axes], &[("keepdims", Attr::Int(0))], "row_tokens");
        let last = e.op("Sub", &[count, one], &[], "row_last");
        e.op("Cast", &[last], &narrow, key)
    });
    let total = emit.shared(format!("total_sequence_length_{}", padding.0), |e, key| {
        let ends = [("start", Attr::Int(1)), ("end", Attr::Int(2))];
        let size = e.op("Shape", &[padding], &ends, "total");
        let axes = e.ints(&[0]);
        let one = e.op("Squeeze", &[size, axes], &[], "total_number");
        e.op("Cast", &[one], &narrow, key)
    });
    (rows, total)
}

/// Takes residual sums into the norms behind them.
pub(super) fn residuals(emit: &mut Emit<'_>) -> Result<()> {
    let mut taken: Vec<NodeIndex> = vec![];
    for i in 0..emit.graph.nodes().len() {
        let node = emit.graph.node(i).clone();
        let centred = node.is("LayerNormalization");
        if !centred && !node.is("SimplifiedLayerNormalization") {
            continue;
        }
        let (Some(sum), Some(gain)) = (emit.input(i, 0), emit.input(i, 1)) else { continue };
        let Some(add) = emit.made_by(sum, "Add").filter(|a| !taken.contains(a)) else { continue };
        let (Some(a), Some(b)) = (emit.input(add, 0), emit.input(add, 1)) else { continue };
        let shape = |v: ValueId| emit.shape(v).map(<[Dim]>::to_vec);
        let (Some(x), Some(y)) = (shape(a), shape(b)) else { continue };
        let last = matches!(node.attributes.int("axis", -1), Ok(-1 | 2));
        let statistics = node.outputs.len() > 1;
        if x != y || x.len() != 3 || !last || statistics || shape(gain).is_none_or(|g| g.len() != 1) {
            continue;
        }
        emit.at(i);
        let mut inputs = vec![Some(a), Some(b), Some(gain)];
        if centred {
            inputs.push(emit.input(i, 2));
        }
        let kept = (emit.readers(sum) > 1).then_some(sum);
        let op = if centred { "SkipLayerNormalization" } else { "SkipSimplifiedLayerNormalization" };
        let epsilon = Attr::Float(node.attributes.float("epsilon", 1e-5)?);
        let outputs = vec![node.outputs[0], None, None, kept];
        emit.node(CONTRIB, op, inputs, outputs, Attributes::new().with("epsilon", epsilon));
        emit.edit.remove_node(i);
        emit.edit.remove_node(add);
        taken.push(add);
        emit.applied(i, format!("{op} with the sum before it"));
    }
    Ok(())
}
