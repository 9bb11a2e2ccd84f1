//! Weights one by one: what is stored, in which encoding, and, when asked, what their elements are
//! like. Weights are read piece by piece and several at a time; no large one is ever whole in memory
//! where it lies in a file.

use super::open::{Model, open};
use super::role;
use super::summary::{EncodingTotal, Layer, TensorInfo};
use crate::error::{Error, Result};
use crate::graph::constants::Constants;
use crate::graph::{Graph, Node, ValueId};
use crate::ops::Attr;
use crate::tensor::{Distribution, Tensor};
use rayon::prelude::*;
use std::collections::HashMap;
use std::path::Path;

/// Warnings of one kind that are spelled out.
const SHOWN: usize = 20;

/// A weight with what is needed to read it.
pub(super) struct Weight<'a> {
    /// What is told of it.
    pub info: TensorInfo,
    /// Its elements; none where the encoding cannot be read.
    pub tensor: Option<&'a Tensor>,
    /// Axis of its output channels.
    pub axis: Option<usize>,
}

/// The weights of a graph in the order of the file. `layers` are those of its nodes.
pub(super) fn of_graph<'a>(graph: &'a Graph, constants: &Constants<'a>, layers: &[Layer]) -> Vec<Weight<'a>> {
    let mut first: HashMap<ValueId, (usize, usize)> = HashMap::new();
    for (i, node) in graph.nodes().iter().enumerate() {
        for (slot, v) in node.inputs.iter().enumerate() {
            if let Some(v) = v {
                first.entry(*v).or_insert((i, slot));
            }
        }
    }
    constants
        .weights()
        .map(|(v, tensor)| {
            let name = graph.value_name(v).to_string();
            let used = first.get(&v).copied();
            let node = used.map(|(i, slot)| (graph.node(i), slot));
            let own = role::of(&name, "");
            let role = match used.and_then(|(i, _)| layers.get(i)).map(|l| l.role.as_str()) {
                // Without a telling name of its own a weight is for what its layer is for.
                Some(of_layer) if own == "other" => of_layer,
                _ => own,
            };
            Weight {
                info: TensorInfo {
                    encoding: tensor.dtype().name().to_string(),
                    shape: tensor.shape().to_vec(),
                    parameters: tensor.len() as u64,
                    bytes: tensor.byte_len(),
                    role: role.to_string(),
                    distribution: None,
                    name,
                },
                tensor: Some(tensor),
                axis: channel_axis(node, tensor.shape().len()),
            }
        })
        .collect()
}

/// Axis of the output channels of a weight of a rank at an input of a node; of a weight that no node
/// reads, the first one, as frameworks keep them.
pub(super) fn channel_axis(used: Option<(&Node, usize)>, rank: usize) -> Option<usize> {
    if rank < 2 {
        return None;
    }
    let Some((node, slot)) = used else { return Some(0) };
    let set = |name: &str| matches!(node.attributes.get(name), Some(Attr::Int(n)) if *n != 0);
    Some(match node.op_type.as_str() {
        "ConvTranspose" => 1,
        "Gemm" if slot == 1 => usize::from(!set("transB")),
        "MatMul" | "MatMulInteger" if slot == 1 => rank - 1,
        _ => 0,
    })
}

/// Sums by encoding, most bytes first.
pub(super) fn encodings(tensors: &[TensorInfo]) -> Vec<EncodingTotal> {
    let mut sums: Vec<EncodingTotal> = Vec::new();
    for t in tensors {
        let at = sums.iter().position(|s| s.encoding == t.encoding).unwrap_or_else(|| {
            sums.push(EncodingTotal { encoding: t.encoding.clone(), ..EncodingTotal::default() });
            sums.len() - 1
        });
        let sum = &mut sums[at];
        sum.tensors += 1;
        sum.parameters = sum.parameters.saturating_add(t.parameters);
        sum.bytes = sum.bytes.saturating_add(t.bytes);
    }
    sums.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.encoding.cmp(&b.encoding)));
    sums
}

/// Reads all weights that are numbers and says what they are like; warns of damaged ones.
pub(super) fn measure(weights: &mut [Weight<'_>], warnings: &mut Vec<String>) -> Result<()> {
    weights.par_iter_mut().try_for_each(|w| -> Result<()> {
        let Some(tensor) = w.tensor.filter(|t| readable(t)) else { return Ok(()) };
        let found = Distribution::of(tensor, w.axis, &|| Ok(()))
            .map_err(|e| e.field(format!("weight \"{}\"", w.info.name)))?;
        w.info.distribution = Some(found);
        Ok(())
    })?;
    let mut found: Vec<String> = weights.iter().filter_map(|w| damage(&w.info)).collect();
    let more = found.len().saturating_sub(SHOWN);
    found.truncate(SHOWN);
    warnings.extend(found);
    if more > 0 {
        warnings.push(format!("{more} more weights with such elements"));
    }
    Ok(())
}

/// Whether the elements are numbers that statistics make sense of.
pub(super) fn readable(tensor: &Tensor) -> bool {
    let t = tensor.dtype();
    (t.is_float() || t.is_int() || t.is_packed()) && !tensor.shape().contains(&0)
}

/// What the elements of one weight of a model file are like. `name` is that of [`TensorInfo`].
///
/// # Errors
/// `Usage` where there is no such weight; `Unsupported` where its elements are no numbers or cannot be
/// read; those of reading the file.
pub fn distribution(path: &Path, name: &str) -> Result<Distribution> {
    let (tensor, encoding, axis) = match open(path)? {
        Model::Graph(opened) => {
            let constants = Constants::of(&opened.graph);
            let mut all = of_graph(&opened.graph, &constants, &[]).into_iter();
            let found = all.find(|w| w.info.name == name).ok_or_else(|| absent(path, name))?;
            (found.tensor.cloned(), found.info.encoding, found.axis)
        }
        Model::Checkpoint { checkpoint, .. } => {
            let found = checkpoint.get(name).ok_or_else(|| absent(path, name))?;
            (found.tensor.clone(), found.encoding.clone(), channel_axis(None, found.shape.len()))
        }
    };
    let tensor = tensor.filter(readable).ok_or_else(|| {
        Error::unsupported("WEIGHT-ENCODING", "the elements of this weight cannot be read as numbers")
            .file(path)
            .field(name)
            .found(encoding)
    })?;
    Distribution::of(&tensor, axis, &|| Ok(())).map_err(|e| e.field(name))
}

fn absent(path: &Path, name: &str) -> Error {
    Error::usage("WEIGHT-NAME", "the model has no weight of this name").file(path).found(name)
}

fn damage(info: &TensorInfo) -> Option<String> {
    let stats = &info.distribution.as_ref()?.stats;
    if stats.nans + stats.infinities > 0 {
        return Some(format!(
            "weight \"{}\": {} NaN and {} infinite of {} elements",
            info.name, stats.nans, stats.infinities, info.parameters
        ));
    }
    (stats.zeros == info.parameters && info.shape.len() > 1)
        .then(|| format!("weight \"{}\": all {} elements are zero", info.name, info.parameters))
}
