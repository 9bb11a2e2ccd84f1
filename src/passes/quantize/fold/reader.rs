//! Products that read the channels of a value through a constant weight: what is divided where a value is made is
//! multiplied back here.

use super::Along;
use crate::error::Result;
use crate::graph::{Edit, Graph, NodeIndex, ValueId};
use crate::tensor::DType;

/// A product whose weight meets the channels of a value.
#[derive(Debug, Clone)]
pub(in super::super) struct Reader {
    pub(in super::super) node: NodeIndex,
    pub(in super::super) weight: ValueId,
    /// The channel axis of the value, from its end for products of matrices.
    pub(in super::super) axis: Axis,
    /// Where the channels lie in the weight.
    pub(in super::super) along: Along,
    pub(in super::super) channels: usize,
}

/// Which axis of a value holds channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Axis {
    Second,
    Last,
}

impl Axis {
    pub(in super::super) fn of(self, rank: usize) -> Option<usize> {
        match self {
            Axis::Second => (rank > 1).then_some(1),
            Axis::Last => rank.checked_sub(1),
        }
    }
}

/// The reader that a node is at this input slot; none where another kind of node reads, or through a weight that
/// is no f32 constant.
pub(in super::super) fn reader(graph: &Graph, node: NodeIndex, slot: usize) -> Option<Reader> {
    let n = graph.node(node);
    let weight = (*n.inputs.get(1)?)?;
    let shape = graph.constant(weight).filter(|t| t.dtype() == DType::F32 && slot == 0)?.shape();
    let flag = |name| n.attributes.int(name, 0).unwrap_or(0) != 0;
    let (axis, channels, along) = if n.is("Conv") && shape.len() > 2 {
        let group = usize::try_from(n.attributes.int("group", 1).ok()?).ok().filter(|g| *g > 0)?;
        let (per, outputs) = (shape[1], shape[0] / group);
        let inner = shape[2..].iter().product();
        let channels = match group {
            1 => (0..per).collect(),
            _ => (0..shape[0] * per).map(|k| k / per / outputs.max(1) * per + k % per).collect(),
        };
        (Axis::Second, per * group, Along { inner, channels })
    } else if n.is("ConvTranspose") && shape.len() > 2 {
        (Axis::Second, shape[0], Along::axis(shape, 0))
    } else if n.is("MatMul") && shape.len() == 2 {
        (Axis::Last, shape[0], Along::axis(shape, 0))
    } else if n.is("Gemm") && shape.len() == 2 && !flag("transA") {
        let at = usize::from(flag("transB"));
        (Axis::Last, shape[at], Along::axis(shape, at))
    } else {
        return None;
    };
    (along.inner > 0 && channels > 0).then_some(Reader { node, weight, axis, along, channels })
}

impl Reader {
    /// Multiplies what the weight has for channel `c` by `scales[c]`.
    ///
    /// # Errors
    /// `Internal` for scales that are not positive and finite, or of another number.
    pub(in super::super) fn multiply(&self, edit: &mut Edit, scales: &[f32]) -> Result<()> {
        super::sound(scales, self.channels)?;
        let old = super::current(edit, self.node, 1)?;
        let new = self.along.scaled(&old, |c| scales[c])?;
        super::put(edit, self.node, 1, new)
    }
}
