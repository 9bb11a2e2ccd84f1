//! Operators that copy elements by position: Transpose, Concat, Split, Slice, Expand, Tile, Pad,
//! SpaceToDepth, DepthToSpace, Trilu, ReverseSequence.

mod blocks;
mod concat;
mod expand;
mod pad;
mod reverse;
mod slice;
mod split;
mod transpose;
mod trilu;

pub use expand::expanded;
pub use transpose::permuted;

use super::elements::rearrange;
use super::{Spec, Vjp, float};
use crate::error::{Error, Result};
use crate::kernels::movement::{pick, unpick};
use crate::tensor::Value;
use candle_core::Tensor as Float;

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    transpose::SPEC,
    concat::SPEC,
    split::SPEC,
    slice::SPEC,
    expand::SPEC,
    expand::TILE,
    pad::SPEC,
    blocks::SPACE_TO_DEPTH,
    blocks::DEPTH_TO_SPACE,
    trilu::SPEC,
    reverse::SPEC,
];

fn missing(name: &str) -> Error {
    Error::invalid("ATTR-MISSING", "a required attribute is missing").field(format!("attribute {name}"))
}

fn mode(found: &str) -> Error {
    Error::invalid("ATTR-VALUE", "mode is not known").field("attribute mode").found(found)
}

/// Whole axes.
fn identity(shape: &[usize]) -> Vec<Vec<usize>> {
    shape.iter().map(|n| (0..*n).collect()).collect()
}

/// The elements at `maps`; `fill` elsewhere, or the type's zero.
fn picked(x: &Value, maps: &[Vec<usize>], fill: Option<&Value>) -> Result<Value> {
    let out: Vec<usize> = maps.iter().map(Vec::len).collect();
    float::size(&out)?;
    let mut values = vec![x];
    values.extend(fill);
    rearrange!(&values, &out, v => {
        let fill = v.get(1).and_then(|f| f.first()).cloned().unwrap_or_default();
        Ok::<_, Error>(pick(v[0], x.shape(), maps, &fill))
    })
}

/// The gradient of [`picked`] with respect to `x`.
fn unpicked(grad: &Float, shape: &[usize], maps: &[Vec<usize>]) -> Result<Float> {
    float::real!(grad.dtype(), T => {
        float::tensor(unpick::<T>(&float::elements::<T>(grad)?, shape, maps), shape, grad.dtype())
    })
}

/// Gradients of which only the first input's may be present.
fn first(v: &Vjp<'_>, grad: impl FnOnce(&Float) -> Result<Float>) -> Result<Vec<Option<Float>>> {
    let mut grads = vec![None; v.inputs.len()];
    if let (Some(g), true) = (&v.grads[0], v.needs[0]) {
        grads[0] = Some(grad(g)?);
    }
    Ok(grads)
}
