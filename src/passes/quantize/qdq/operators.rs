//! From pairs to operators on integers: what ONNX Runtime makes of a QDQ graph when it loads it, done in the
//! file, on the same grids.

use crate::error::{Error, Result};
use crate::graph::{Edit, Graph, Node, NodeIndex, Uses, ValueId};
use crate::ops::canonical_domain;
use crate::tensor::{DType, Tensor};

/// Integers with their scale and zero point.
type Levels = [ValueId; 3];

struct Fold<'g> {
    graph: &'g Graph,
    uses: Uses,
    edit: Edit,
}

/// The graph with integer operators in the place of float ones between pairs.
pub(super) fn fold(graph: &Graph) -> Result<Graph> {
    let mut fold = Fold { graph, uses: graph.uses(), edit: graph.edit() };
    fold.edit.set_opset("com.microsoft", 1);
    for i in 0..graph.nodes().len() {
        if canonical_domain(&graph.node(i).domain).is_empty() {
            fold.node(i)?;
        }
    }
    let mut edit = fold.edit;
    loop {
        let outputs = edit.graph().outputs().iter();
        let read: std::collections::HashSet<ValueId> =
            edit.live_nodes().flat_map(|(_, n)| n.inputs.iter().flatten()).chain(outputs).copied().collect();
        let unread = |n: &Node| n.outputs.iter().flatten().all(|v| !read.contains(v));
        let ours = ["DequantizeLinear", "QuantizeLinear"];
        let dead: Vec<NodeIndex> = edit
            .live_nodes()
            .filter(|(_, n)| ours.contains(&n.op_type.as_str()) && unread(n))
            .map(|(i, _)| i)
            .collect();
        if dead.is_empty() {
            return edit.commit();
        }
        dead.into_iter().for_each(|i| edit.remove_node(i));
    }
}

impl Fold<'_> {
    /// What a value left the grid as.
    fn levels(&self, v: ValueId) -> Option<Levels> {
        let node = self.graph.node(self.uses.producer(v)?.0);
        match node.inputs[..] {
            [Some(q), Some(s), Some(z)] if node.is("DequantizeLinear") => Some([q, s, z]),
            _ => None,
        }
    }

    /// The only reader of a value that is not a graph output.
    fn reader(&self, v: ValueId) -> Option<NodeIndex> {
        match self.uses.consumers(v) {
            [(i, slot)] if *slot != usize::MAX && !self.graph.outputs().contains(&v) => Some(*i),
            _ => None,
        }
    }

    /// The pair's first half behind a value, and the integers that it gives.
    fn goes_to(&self, v: ValueId) -> Option<(NodeIndex, Levels)> {
        let i = self.reader(v)?;
        let node = self.graph.node(i);
        match (&node.inputs[..], &node.outputs[..]) {
            ([Some(_), Some(s), Some(z)], [Some(q)]) if node.is("QuantizeLinear") => Some((i, [*q, *s, *z])),
            _ => None,
        }
    }

    /// Puts another operator in the place of a node.
    fn becomes(&mut self, i: NodeIndex, op: &str, domain: &str, inputs: Vec<ValueId>, output: ValueId) {
        let node = self.edit.node_mut(i);
        node.op_type = op.into();
        node.domain = domain.into();
        node.inputs = inputs.into_iter().map(Some).collect();
        node.outputs = vec![Some(output)];
    }

    fn node(&mut self, i: NodeIndex) -> Result<()> {
        let node = self.graph.node(i);
        let [Some(y)] = node.outputs[..] else { return Ok(()) };
        let Some(data) = node.inputs.iter().map(|v| self.levels((*v)?)).collect::<Option<Vec<_>>>() else {
            return self.moved(i);
        };
        let Some(&[x, xs, xz]) = data.first() else { return Ok(()) };
        let gone = self.goes_to(y);
        let contrib = "com.microsoft";
        match (node.op_type.as_str(), &data[..], gone) {
            ("Conv", [_, [w, ws, wz], bias @ ..], Some((q, [to, s, z]))) => {
                let bias = bias.iter().map(|b| b[0]);
                let inputs = [x, xs, xz, *w, *ws, *wz, s, z].into_iter().chain(bias).collect();
                self.edit.remove_node(q);
                self.becomes(i, "QLinearConv", "", inputs, to);
            }
            ("Gemm", [_, [w, ws, wz], [c, ..]], gone) => {
                let mut inputs = vec![x, xs, xz, *w, *ws, *wz, *c];
                let mut out = y;
                if let Some((q, [to, s, z])) = gone {
                    inputs.extend([s, z]);
                    out = to;
                    self.edit.remove_node(q);
                }
                self.becomes(i, "QGemm", contrib, inputs, out);
                self.edit.node_mut(i).attributes.remove("beta");
            }
            ("MatMul", [_, [w, ws, wz]], Some((q, [to, s, z]))) => {
                self.edit.remove_node(q);
                self.becomes(i, "QLinearMatMul", "", vec![x, xs, xz, *w, *ws, *wz, s, z], to);
            }
            ("MatMul", [_, [w, ws, wz]], None) => {
                let mut inputs = vec![x, *w, xs, *ws, xz, *wz];
                let mut out = y;
                if let Some((add, bias)) = self.bias(y)? {
                    inputs.push(bias);
                    out = self.graph.node(add).outputs[0].unwrap_or(y);
                    self.edit.remove_node(add);
                }
                self.becomes(i, "MatMulIntegerToFloat", contrib, inputs, out);
            }
            ("Add" | "Mul", [_, [b, bs, bz]], Some((q, [to, s, z]))) => {
                self.edit.remove_node(q);
                let op = format!("QLinear{}", node.op_type);
                self.becomes(i, &op, contrib, vec![x, xs, xz, *b, *bs, *bz, s, z], to);
            }
            ("GlobalAveragePool" | "AveragePool" | "Sigmoid" | "LeakyRelu", [_], Some((q, [to, s, z]))) => {
                self.edit.remove_node(q);
                let op = format!("QLinear{}", node.op_type);
                self.becomes(i, &op, contrib, vec![x, xs, xz, s, z], to);
            }
            ("Concat", parts, Some((q, [to, s, z]))) => {
                self.edit.remove_node(q);
                let inputs = [s, z].into_iter().chain(parts.iter().flatten().copied()).collect();
                self.becomes(i, "QLinearConcat", contrib, inputs, to);
            }
            _ => return self.moved(i),
        }
        Ok(())
    }

    /// An operator that moves data between two halves of pairs on one grid moves integers.
    fn moved(&mut self, i: NodeIndex) -> Result<()> {
        let node = self.graph.node(i);
        let moves = [
            "MaxPool",
            "Reshape",
            "Flatten",
            "Transpose",
            "Squeeze",
            "Unsqueeze",
            "Identity",
            "Slice",
            "Resize",
        ];
        let ([Some(x), ..], [Some(y)]) = (&node.inputs[..], &node.outputs[..]) else { return Ok(()) };
        let (Some([q, s, z]), Some((second, [to, s2, z2]))) = (self.levels(*x), self.goes_to(*y)) else {
            return Ok(());
        };
        if moves.contains(&node.op_type.as_str()) && self.same(s, s2)? && self.same(z, z2)? {
            self.edit.remove_node(second);
            let node = self.edit.node_mut(i);
            node.inputs[0] = Some(q);
            node.outputs[0] = Some(to);
        }
        Ok(())
    }

    fn same(&self, a: ValueId, b: ValueId) -> Result<bool> {
        match (self.graph.initializer(a), self.graph.initializer(b)) {
            (Some(a), Some(b)) => a.same_bits(b),
            _ => Ok(false),
        }
    }

    /// The Add behind a product that adds a constant on integers, and the constant in floats.
    fn bias(&mut self, y: ValueId) -> Result<Option<(NodeIndex, ValueId)>> {
        let Some(add) = self.reader(y).filter(|i| self.graph.node(*i).is("Add")) else { return Ok(None) };
        let others = self.graph.node(add).inputs.iter().flatten().copied().find(|v| *v != y);
        let Some([q, s, _]) = others.and_then(|v| self.levels(v)) else { return Ok(None) };
        let (Some(q), Some(s)) = (self.graph.initializer(q), self.graph.initializer(s)) else {
            return Ok(None);
        };
        if q.dtype() != DType::I32 || q.shape().len() != 1 {
            return Ok(None);
        }
        let (levels, scales) = (q.to_vec::<i32>()?, s.to_f32s()?);
        if scales.is_empty() {
            return Err(Error::internal("QUANTIZE", "a bias has no scale").node(self.graph.label(add)));
        }
        let floats = levels.iter().enumerate().map(|(c, q)| *q as f32 * scales[c % scales.len()]);
        let tensor = Tensor::from_vec(vec![levels.len()], floats.collect())?;
        let name = format!("{}_bias", self.graph.label(add));
        Ok(Some((add, self.edit.add_initializer(&name, tensor))))
    }
}
