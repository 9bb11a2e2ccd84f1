//! Weights by role: names, fused matrices, permuted rows and stored layouts are settled here, so that the
//! builders see matrices `[in, out]` of the expected shape. What nobody asked for is found at the end.

use super::names::{Names, Role, is_beside};
use crate::error::{Error, Result};
use crate::formats::{Checkpoint, Stored};
use crate::tensor::{DType, Tensor};
use std::cell::RefCell;
use std::collections::HashSet;

/// A weight under its name in the checkpoint.
#[derive(Debug, Clone)]
pub(super) struct Weight {
    pub(super) name: String,
    pub(super) tensor: Tensor,
}

/// A linear map: matrix `[in, out]` and bias `[out]`.
#[derive(Debug, Clone)]
pub(super) struct Linear {
    pub(super) matrix: Weight,
    pub(super) bias: Option<Weight>,
}

/// Part of a fused matrix: offset and size along its outputs, and all of its outputs.
type Part = (usize, usize, usize);

/// Which linear map is wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    role: Role,
    layer: usize,
    inputs: usize,
    outputs: usize,
    fused: Option<(Role, usize, usize)>,
    permuted: Option<(usize, usize)>,
}

impl Wanted {
    /// The map of a role in a layer, from `inputs` to `outputs`.
    pub(super) fn new(role: Role, layer: usize, (inputs, outputs): (usize, usize)) -> Wanted {
        Wanted { role, layer, inputs, outputs, fused: None, permuted: None }
    }
    /// Cut out of a fused matrix, where the checkpoint has that: at `offset` of `total` outputs.
    pub(super) fn part_of(mut self, whole: Role, offset: usize, total: usize) -> Wanted {
        self.fused = Some((whole, offset, total));
        self
    }
    /// Heads of this size, whose rows are stored for interleaved rotation where `permuted`.
    pub(super) fn permuted(mut self, permuted: bool, heads: usize, size: usize) -> Wanted {
        self.permuted = permuted.then_some((heads, size));
        self
    }
}

/// Access by role.
pub(super) struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    /// Tried in order.
    names: Vec<Names>,
    prefix: &'static str,
    /// Matrices are stored `[in, out]`, as GPT-2's are.
    transposed: bool,
    used: RefCell<HashSet<String>>,
}

/// What may stand before the names of the network itself.
const PREFIXES: [&str; 8] =
    ["", "model.", "transformer.", "bert.", "roberta.", "distilbert.", "vit.", "language_model.model."];

impl<'a> Weights<'a> {
    /// Names and layout of one spelling; the prefix is the one under which `anchor` is found.
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        names: &[Names],
        anchor: Role,
        transposed: bool,
    ) -> Result<Weights<'a>> {
        let mut weights = Weights {
            checkpoint,
            names: names.to_vec(),
            prefix: "",
            transposed,
            used: RefCell::new(HashSet::new()),
        };
        let plain = weights.pattern(anchor).unwrap_or_default();
        let found = PREFIXES.iter().find(|p| {
            ["", ".weight"].iter().any(|end| checkpoint.get(&format!("{p}{plain}{end}")).is_some())
        });
        weights.prefix = found.ok_or_else(|| missing(checkpoint, &format!("{plain}.weight")))?;
        Ok(weights)
    }

    /// Checks a stated number of layers before anything is made for each: every layer has a weight.
    pub(super) fn holds_layers(&self, layers: usize, key: &str) -> Result<usize> {
        let tensors = self.checkpoint.tensors().len();
        if layers <= tensors {
            return Ok(layers);
        }
        Err(Error::invalid("CONFIG-LAYERS", "the configuration has more layers than the checkpoint weights")
            .field(key)
            .found(layers)
            .limit(format!("at most {tensors}"))
            .hint("the file is damaged, or part of it is missing"))
    }

    fn pattern(&self, role: Role) -> Option<&'static str> {
        self.names.iter().flat_map(|n| n.iter()).find(|(r, _)| *r == role).map(|(_, p)| *p)
    }

    /// The checkpoint's name for a role, with suffix; heads stand outside the prefix of the body.
    fn name(&self, role: Role, layer: usize, suffix: &str) -> Option<String> {
        let all = self.names.iter().flat_map(|n| n.iter()).filter(|(r, _)| *r == role);
        let mut first = None;
        for (_, pattern) in all {
            let body = pattern.replace("{}", &layer.to_string());
            for name in [format!("{}{body}{suffix}", self.prefix), format!("{body}{suffix}")] {
                if self.checkpoint.get(&name).is_some() {
                    return Some(name);
                }
                first.get_or_insert(name);
            }
        }
        first
    }

    /// A stored weight, where there is one.
    fn stored(&self, role: Role, layer: usize, suffix: &str) -> Option<&'a Stored> {
        self.checkpoint.get(&self.name(role, layer, suffix)?)
    }

    /// Whether the checkpoint has a weight for a role.
    pub(super) fn has(&self, role: Role, layer: usize) -> bool {
        self.stored(role, layer, ".weight").is_some()
    }

    /// Stored shape of a role's weight.
    pub(super) fn shape(&self, role: Role, layer: usize) -> Option<&'a [usize]> {
        self.stored(role, layer, ".weight").map(|s| s.shape.as_slice())
    }

    /// Marks a role's weight as used without using it.
    pub(super) fn skip(&self, role: Role) {
        for suffix in [".weight", ".bias"] {
            if let Some(stored) = self.stored(role, 0, suffix) {
                self.used.borrow_mut().insert(stored.name.clone());
            }
        }
    }

    fn take(&self, stored: &Stored, shape: &[usize]) -> Result<Tensor> {
        self.used.borrow_mut().insert(stored.name.clone());
        if stored.shape != shape {
            return Err(Error::invalid(
                "CHECKPOINT-SHAPE",
                "a weight does not have the shape that the configuration says",
            )
            .file(&self.checkpoint.path)
            .field(&stored.name)
            .found(format!("{:?}", stored.shape))
            .limit(format!("{shape:?}"))
            .hint("use the configuration that belongs to these weights"));
        }
        let tensor = stored.tensor.as_ref().ok_or_else(|| {
            Error::unsupported("ENCODING", "weights of this encoding cannot be read")
                .file(&self.checkpoint.path)
                .field(&stored.name)
                .found(&stored.encoding)
                .hint("use a file in another quantisation; `tinsmith inspect` shows the encodings")
        })?;
        Ok(if tensor.dtype() == DType::F32 { tensor.clone() } else { tensor.cast_to(DType::F32) })
    }

    /// A weight of exactly this shape, or `None` where there is none. `suffix` is `.weight`, `.bias` or empty.
    pub(super) fn find(
        &self,
        role: Role,
        layer: usize,
        suffix: &str,
        shape: &[usize],
    ) -> Result<Option<Weight>> {
        self.stored(role, layer, suffix)
            .map(|s| Ok(Weight { name: s.name.clone(), tensor: self.take(s, shape)? }))
            .transpose()
    }

    /// As [`Weights::find`], where there must be one.
    pub(super) fn need(&self, role: Role, layer: usize, suffix: &str, shape: &[usize]) -> Result<Weight> {
        self.find(role, layer, suffix, shape)?.ok_or_else(|| {
            missing(self.checkpoint, &self.name(role, layer, suffix).unwrap_or_else(|| format!("{role:?}")))
        })
    }

    /// A linear map; a part of a fused matrix where the checkpoint has no matrix of its own for the role.
    pub(super) fn linear(&self, wanted: Wanted) -> Result<Linear> {
        let Wanted { role, layer, inputs, outputs, fused, permuted } = wanted;
        let (from, part) = match fused {
            Some((whole, offset, total)) if !self.fits(role, layer, outputs) && self.has(whole, layer) => {
                (whole, Some((offset, outputs, total)))
            }
            _ => (role, None),
        };
        let rows = part.map_or(outputs, |p: Part| p.2);
        let shape = if self.transposed { [inputs, rows] } else { [rows, inputs] };
        let mut matrix = self.need(from, layer, ".weight", &shape)?;
        let mut bias = self.find(from, layer, ".bias", &[rows])?;
        let axis = usize::from(self.transposed);
        let order: Option<Vec<usize>> = match (part, permuted) {
            (Some((offset, size, _)), _) => Some((offset..offset + size).collect()),
            (None, Some((heads, size))) => Some(rotated_rows(heads, size)),
            (None, None) => None,
        };
        if let Some(order) = &order {
            let suffix = if part.is_some() { format!("{role:?}").to_lowercase() } else { String::new() };
            let rename = |name: &mut String| {
                if !suffix.is_empty() {
                    name.push_str(&format!(".{suffix}"));
                }
            };
            matrix.tensor = matrix.tensor.selected(axis, order);
            rename(&mut matrix.name);
            if let Some(b) = &mut bias {
                b.tensor = b.tensor.selected(0, order);
                rename(&mut b.name);
            }
        }
        if !self.transposed {
            matrix.tensor = matrix.tensor.transposed(&[1, 0]);
        }
        Ok(Linear { matrix, bias })
    }

    /// Whether a role has a matrix of its own: in some spellings the fused one goes by the same name.
    fn fits(&self, role: Role, layer: usize, outputs: usize) -> bool {
        let axis = usize::from(self.transposed);
        self.shape(role, layer).is_some_and(|s| s.get(axis) == Some(&outputs))
    }

    /// Fails where weights are left that nobody asked for: a graph without them would not be this model.
    /// Those that stand beside the network come back for a warning.
    pub(super) fn finish(self) -> Result<Vec<String>> {
        let used = self.used.into_inner();
        let (beside, strange): (Vec<_>, Vec<_>) = self
            .checkpoint
            .tensors()
            .iter()
            .map(|t| t.name.clone())
            .filter(|name| !used.contains(name))
            .partition(|name| is_beside(name));
        match strange.first() {
            None => Ok(beside),
            Some(first) => Err(Error::unsupported(
                "CHECKPOINT-UNUSED",
                format!("{} weights have no place in this architecture", strange.len()),
            )
            .file(&self.checkpoint.path)
            .field(first)
            .hint("the model is a variant that this version does not build; `tinsmith inspect` shows its weights")),
        }
    }
}

fn missing(checkpoint: &Checkpoint, name: &str) -> Error {
    Error::invalid("CHECKPOINT-MISSING", "a weight that the architecture needs is not there")
        .file(&checkpoint.path)
        .field(name)
        .found(format!("{} other weights", checkpoint.tensors().len()))
        .hint("check that all files of the model are there, and that the configuration belongs to them")
}

/// Row order that undoes the storage of `heads` heads of `size` rows for interleaved rotation: pairs
/// `(2i, 2i + 1)` become pairs `(i, i + size / 2)`.
fn rotated_rows(heads: usize, size: usize) -> Vec<usize> {
    let half = size / 2;
    (0..heads)
        .flat_map(|h| (0..size).map(move |r| h * size + if r < half { 2 * r } else { 2 * (r - half) + 1 }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_become_halves() {
        assert_eq!(rotated_rows(2, 4), [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
