//! Writes a placement into a graph: weights and biases become integers, values get their pairs.

use super::super::ranges::{Activations, Grid, Range};
use super::super::{Settings, weights};
use super::placement::Placement;
use super::roles::{Bias, Role, Weighted};
use crate::error::{Error, Result};
use crate::graph::{Edit, Graph, Node, NodeIndex, Uses, ValueId};
use crate::ops::{Attr, Attributes};
use crate::passes::Ctx;
use crate::tensor::{DType, Tensor};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The graph with the placement written into it.
pub(super) fn write(
    graph: &Graph,
    placement: &Placement,
    grids: &BTreeMap<ValueId, Grid>,
    settings: &Settings,
    ctx: &Ctx<'_>,
) -> Result<Edit> {
    let mut writer = Writer {
        graph,
        placement,
        grids,
        settings,
        uses: graph.uses(),
        edit: graph.edit(),
        levels: HashMap::new(),
        constants: HashMap::new(),
        zeros: HashMap::new(),
        weights: HashMap::new(),
    };
    ctx.monitor.phase("quantize: weights", Some(placement.roles.len() as u64));
    for (done, (i, role)) in placement.roles.iter().enumerate() {
        ctx.monitor.check()?;
        ctx.monitor.progress(done as u64);
        match role {
            Role::Weighted(weighted) => writer.weighted(*i, weighted)?,
            Role::Own => writer.constants(*i)?,
            Role::Scales(_) => writer.edit.remove_node(*i),
            Role::Moves | Role::Gate { .. } => {}
        }
    }
    // Those that share the levels of another come behind it.
    let (mut shared, own): (Vec<ValueId>, Vec<ValueId>) =
        placement.values.iter().copied().partition(|v| placement.seen_through(*v).is_some());
    for v in own {
        writer.pair(v)?;
    }
    shared.sort_by_key(|v| writer.depth(*v));
    for v in shared {
        writer.view(v)?;
    }
    for (i, role) in &placement.roles {
        if let Role::Gate { alpha, beta } = role {
            writer.gate(*i, *alpha, *beta)?;
        }
    }
    Ok(unread_dropped(graph, writer.edit))
}

/// Without the DequantizeLinear nodes that no one reads: of values whose levels only products with a number see.
fn unread_dropped(graph: &Graph, mut edit: Edit) -> Edit {
    let outputs = edit.graph().outputs().iter();
    let read: HashSet<ValueId> =
        edit.live_nodes().flat_map(|(_, n)| n.inputs.iter().flatten()).chain(outputs).copied().collect();
    let unread = |n: &Node| n.outputs.iter().flatten().all(|v| !read.contains(v));
    let new = edit.live_nodes().filter(|(i, n)| *i >= graph.nodes().len() && n.is("DequantizeLinear"));
    let dead: Vec<NodeIndex> = new.filter(|(_, n)| unread(n)).map(|(i, _)| i).collect();
    dead.into_iter().for_each(|i| edit.remove_node(i));
    edit
}

struct Writer<'g> {
    graph: &'g Graph,
    placement: &'g Placement,
    grids: &'g BTreeMap<ValueId, Grid>,
    settings: &'g Settings,
    uses: Uses,
    edit: Edit,
    /// The integers of each value.
    levels: HashMap<ValueId, ValueId>,
    /// Zero points of data, by what they are.
    zeros: HashMap<i32, ValueId>,
    /// What left the grid of a constant.
    constants: HashMap<ValueId, ValueId>,
    /// Quantised weights by weight and channel axis: value and scales.
    weights: HashMap<(ValueId, usize), (ValueId, Vec<f32>)>,
}

impl Writer<'_> {
    fn missing(&self, i: NodeIndex) -> Error {
        Error::internal("QUANTIZE", "operand vanished").node(self.graph.label(i))
    }

    fn grid(&self, v: ValueId) -> Result<Grid> {
        let missing = || Error::internal("QUANTIZE", "a value has no grid").field(self.graph.value_name(v));
        self.grids.get(&v).copied().ok_or_else(missing)
    }

    /// How many values lie between this one and the one whose levels it shares.
    fn depth(&self, mut v: ValueId) -> usize {
        let mut depth = 0;
        while let Some((next, _)) = self.placement.seen_through(v) {
            (v, depth) = (next, depth + 1);
        }
        depth
    }

    fn scale_and_zero(&mut self, name: &str, grid: Grid) -> (ValueId, ValueId) {
        let s = self.edit.add_initializer(&format!("{name}_scale"), Tensor::scalar(grid.scale));
        if let Some(z) = self.zeros.get(&grid.zero) {
            return (s, *z);
        }
        let zero = match self.settings.activations {
            Activations::U8 => Tensor::scalar(grid.zero as u8),
            Activations::S8 => Tensor::scalar(grid.zero as i8),
        };
        let z = self.edit.add_initializer(&format!("zero_point_{}", grid.zero), zero);
        self.zeros.insert(grid.zero, z);
        (s, z)
    }

    /// Whether what left the grid of `v` leaves the graph.
    fn leaves(&self, v: ValueId) -> bool {
        self.placement.integer.contains(&v) && self.graph.outputs().contains(&v)
    }

    /// The value that holds what left the grid of `v`, for whoever is to read it: `v` itself where it leaves
    /// the graph.
    fn target(&mut self, v: ValueId) -> ValueId {
        if self.leaves(v) {
            return v;
        }
        let name = format!("{}_dequantized", self.graph.value_name(v));
        let d = self.edit.add_value(&name, None);
        if self.placement.integer.contains(&v) {
            self.edit.redirect(v, d);
            return d;
        }
        // Others read the floats that are there.
        for (i, slot) in self.uses.consumers(v) {
            if self.placement.data.get(i).is_some_and(|data| data.contains(&v)) {
                self.edit.node_mut(*i).inputs[*slot] = Some(d);
            }
        }
        d
    }

    /// Puts a pair on a value.
    fn pair(&mut self, v: ValueId) -> Result<()> {
        let grid = self.grid(v)?;
        let name = self.graph.value_name(v).to_string();
        let ramp = self.placement.ramps.get(&v).map(|(node, _)| *node);
        let leaves = self.leaves(v);
        let source = match (ramp, self.uses.producer(v)) {
            (Some(ramp), _) => {
                self.edit.remove_node(ramp);
                self.graph.node(ramp).inputs[0].ok_or_else(|| self.missing(ramp))?
            }
            // The graph output keeps its name and is what leaves the pair.
            (None, Some((node, slot))) if leaves => {
                let raw = self.edit.add_value(&format!("{name}_raw"), None);
                self.edit.node_mut(node).outputs[slot] = Some(raw);
                raw
            }
            _ => v,
        };
        let (s, z) = self.scale_and_zero(&name, grid);
        let q = self.edit.add_value(&format!("{name}_quantized"), None);
        let target = self.target(v);
        self.levels.insert(v, q);
        self.edit.add_node(
            Node::new("QuantizeLinear", vec![Some(source), Some(s), Some(z)], vec![Some(q)])
                .named(format!("{name}_QuantizeLinear")),
        );
        self.dequantize_levels(&name, q, s, z, target);
        Ok(())
    }

    fn dequantize_levels(&mut self, name: &str, q: ValueId, s: ValueId, z: ValueId, target: ValueId) {
        self.edit.add_node(
            Node::new("DequantizeLinear", vec![Some(q), Some(s), Some(z)], vec![Some(target)])
                .named(format!("{name}_DequantizeLinear")),
        );
    }

    /// What a product with a number gives: the levels of its operand with another scale.
    fn view(&mut self, v: ValueId) -> Result<()> {
        let missing = || Error::internal("QUANTIZE", "levels vanished").field(self.graph.value_name(v));
        let (of, _) = self.placement.seen_through(v).ok_or_else(missing)?;
        let q = *self.levels.get(&of).ok_or_else(missing)?;
        self.levels.insert(v, q);
        let (name, grid) = (self.graph.value_name(v).to_string(), self.grid(v)?);
        let (s, z) = self.scale_and_zero(&name, grid);
        let target = self.target(v);
        self.dequantize_levels(&name, q, s, z, target);
        Ok(())
    }

    /// A constant on a grid of its own, behind DequantizeLinear.
    fn constant(&mut self, name: &str, tensor: &Tensor) -> Result<ValueId> {
        let x = tensor.to_f32s()?;
        let seen = |r: Range, x: &f32| Range { min: r.min.min(*x), max: r.max.max(*x) };
        let grid = x.iter().fold(Range::EMPTY, seen).grid(self.settings.levels());
        let levels = x.iter().map(|x| grid.level(f64::from(*x)));
        let stored = match self.settings.activations {
            Activations::U8 => Tensor::from_vec(tensor.shape().to_vec(), levels.map(|q| q as u8).collect())?,
            Activations::S8 => Tensor::from_vec(tensor.shape().to_vec(), levels.map(|q| q as i8).collect())?,
        };
        let (s, z) = self.scale_and_zero(name, grid);
        let q = self.edit.add_initializer(&format!("{name}_quantized"), stored);
        Ok(self.edit.add_op(
            "DequantizeLinear",
            &[q, s, z],
            Attributes::new(),
            &format!("{name}_dequantized"),
        ))
    }

    fn constants(&mut self, i: NodeIndex) -> Result<()> {
        for (slot, v) in self.graph.node(i).inputs.iter().enumerate() {
            let Some((v, tensor)) = v.and_then(|v| Some((v, self.graph.initializer(v)?.clone()))) else {
                continue;
            };
            let d = match self.constants.get(&v) {
                Some(d) => *d,
                None => {
                    let name = self.graph.value_name(v).to_string();
                    let d = self.constant(&name, &tensor)?;
                    self.constants.insert(v, d);
                    d
                }
            };
            self.edit.node_mut(i).inputs[slot] = Some(d);
        }
        Ok(())
    }

    /// `alpha * x + beta`; the product is a scale.
    fn gate(&mut self, i: NodeIndex, alpha: f32, beta: f32) -> Result<()> {
        let x = self.graph.node(i).inputs[0].ok_or_else(|| self.missing(i))?;
        let q = *self.levels.get(&x).ok_or_else(|| self.missing(i))?;
        let label = self.graph.label(i);
        let mut grid = self.grid(x)?;
        grid.scale *= alpha;
        let (s, z) = self.scale_and_zero(&format!("{label}_input"), grid);
        let d =
            self.edit.add_op("DequantizeLinear", &[q, s, z], Attributes::new(), &format!("{label}_input"));
        let offset = self.constant(&format!("{label}_offset"), &Tensor::scalar(beta))?;
        let node = self.edit.node_mut(i);
        node.op_type = "Add".into();
        node.attributes = Attributes::new();
        node.inputs = vec![Some(d), Some(offset)];
        Ok(())
    }

    fn dequantize(
        &mut self,
        name: &str,
        values: Tensor,
        scales: Vec<f32>,
        axis: Option<usize>,
    ) -> Result<ValueId> {
        let zeros = match values.dtype() {
            DType::I32 => Tensor::from_vec(vec![scales.len()], vec![0i32; scales.len()])?,
            _ => Tensor::from_vec(vec![scales.len()], vec![0i8; scales.len()])?,
        };
        let scales = Tensor::from_vec(vec![scales.len()], scales)?;
        let (scales, zeros, attributes) = match axis {
            Some(a) => (scales, zeros, Attributes::new().with("axis", Attr::Int(a as i64))),
            None => (scales.reshaped(vec![])?, zeros.reshaped(vec![])?, Attributes::new()),
        };
        let q = self.edit.add_initializer(&format!("{name}_quantized"), values);
        let s = self.edit.add_initializer(&format!("{name}_scale"), scales);
        let z = self.edit.add_initializer(&format!("{name}_zero_point"), zeros);
        Ok(self.edit.add_op("DequantizeLinear", &[q, s, z], attributes, &format!("{name}_dequantized")))
    }

    /// The elements of a bias, where it can be one on integers.
    fn bias(&self, bias: Option<Bias>, channels: usize) -> Result<Option<(Bias, Vec<f32>, Vec<usize>)>> {
        let Some((bias, t)) = bias.and_then(|b| Some((b, self.graph.initializer(b.value)?))) else {
            return Ok(None);
        };
        let fits = t.dtype() == DType::F32 && t.len() == channels && t.shape().last() == Some(&channels);
        let values = if fits { t.to_vec::<f32>()? } else { vec![] };
        let finite = fits && values.iter().all(|x| x.is_finite());
        Ok(finite.then(|| (bias, values, t.shape().to_vec())))
    }

    fn weighted(&mut self, i: NodeIndex, weighted: &Weighted) -> Result<()> {
        let (w, axis) = (weighted.weight, weighted.channel_axis);
        let x = self.graph.node(i).inputs[0].ok_or_else(|| self.missing(i))?;
        let input_scale = self.grid(x)?.scale;
        let tensor = self.graph.initializer(w).ok_or_else(|| self.missing(i))?.clone();
        let bias = self.bias(weighted.bias, tensor.shape()[axis])?;
        let per_channel = self.settings.per_channel.then_some(axis);
        let (value, scales) = match self.weights.get(&(w, axis)) {
            Some((value, scales)) => (*value, scales.clone()),
            None => {
                // A bias must fit 32 bits on the grid `input_scale * weight_scale`.
                let floor: Vec<f32> = match &bias {
                    Some((_, b, _)) if per_channel.is_some() => {
                        b.iter().map(|b| b.abs() / (input_scale * 1e9)).collect()
                    }
                    Some((_, b, _)) => vec![b.iter().fold(0f32, |m, b| m.max(b.abs())) / (input_scale * 1e9)],
                    None => vec![],
                };
                let name = self.graph.value_name(w).to_string();
                let limit = self.settings.weight_limit();
                let q = weights::symmetric(&name, &tensor, per_channel, limit, &floor)?
                    .map_err(|why| Error::integrity("WEIGHT-NAN", why).node(self.graph.label(i)))?;
                let stored = Tensor::from_vec(tensor.shape().to_vec(), q.values)?;
                let value = self.dequantize(&name, stored, q.scales.clone(), per_channel)?;
                self.weights.insert((w, axis), (value, q.scales.clone()));
                (value, q.scales)
            }
        };
        self.edit.node_mut(i).inputs[1] = Some(value);
        let Some((bias, values, shape)) = bias else { return Ok(()) };
        let scale = |c: usize| input_scale * scales[c % scales.len()];
        let q: Vec<i32> =
            values.iter().enumerate().map(|(c, b)| (b / scale(c)).round_ties_even() as i32).collect();
        let bias_scales: Vec<f32> = (0..scales.len()).map(scale).collect();
        let name = format!("{}_bias", self.graph.label(i));
        let axis = (bias_scales.len() > 1).then(|| shape.len() - 1);
        let d = self.dequantize(&name, Tensor::from_vec(shape, q)?, bias_scales, axis)?;
        self.edit.node_mut(bias.node).inputs[bias.slot] = Some(d);
        Ok(())
    }
}
