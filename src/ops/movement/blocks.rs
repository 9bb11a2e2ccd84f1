//! SpaceToDepth and DepthToSpace.

use super::super::{
    Attributes, Coupling, Dim, Fact, Keeps, Operator, Pattern, Port, Spec, Vjp, float, reshape,
};
use super::{first, mode, transpose::permuted};
use crate::error::{Error, Result};
use crate::ops;
use crate::tensor::{DType, Value};
use candle_core::Tensor as Float;
use std::sync::Arc;

/// Claim of SpaceToDepth.
pub(super) const SPACE_TO_DEPTH: Spec =
    Spec::new("SpaceToDepth", 1, DType::ALL, |a, _| Blocks::parse(a, Layout::SpaceToDepth));

/// Claim of DepthToSpace.
pub(super) const DEPTH_TO_SPACE: Spec =
    Spec::new("DepthToSpace", 1, DType::ALL, |a, _| match a.str("mode", "DCR")?.as_str() {
        "DCR" => Blocks::parse(a, Layout::Dcr),
        "CRD" => Blocks::parse(a, Layout::Crd),
        other => Err(mode(other)),
    });

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    SpaceToDepth,
    Dcr,
    Crd,
}

/// Square blocks of an image to channels and back, as a reshape, a permutation and a reshape.
#[derive(Debug)]
struct Blocks {
    size: usize,
    layout: Layout,
}

impl Blocks {
    fn parse(a: &Attributes, layout: Layout) -> Result<Arc<dyn Operator>> {
        match a.int("blocksize", 0)? {
            size @ 1..=65536 => Ok(Arc::new(Blocks { size: size as usize, layout })),
            other => Err(Error::invalid("ATTR-RANGE", "blocksize is out of range")
                .field("attribute blocksize")
                .found(other)
                .limit("1 to 65536")),
        }
    }

    /// The shape in between and the permutation.
    fn plan(&self, s: &[usize]) -> ([usize; 6], [usize; 6]) {
        let b = self.size;
        match self.layout {
            Layout::SpaceToDepth => ([s[0], s[1], s[2] / b, b, s[3] / b, b], [0, 3, 5, 1, 2, 4]),
            Layout::Dcr => ([s[0], b, b, s[1] / (b * b), s[2], s[3]], [0, 3, 4, 1, 5, 2]),
            Layout::Crd => ([s[0], s[1] / (b * b), b, b, s[2], s[3]], [0, 1, 4, 2, 5, 3]),
        }
    }
}

impl Operator for Blocks {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = ops::input(inputs, 0)?;
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let [n, c, h, w] = shape.as_slice() else {
            return Err(Error::invalid("OP-RANK", "the input must have four axes").found(shape.len()));
        };
        let b = Dim::from(self.size);
        let divide = |d: &Dim, by: &Dim, axis: usize| match (d.known(), by.known()) {
            (Some(a), Some(k)) if a % k != 0 => {
                Err(Error::invalid("OP-BLOCKS", "the axis is not a multiple of the block")
                    .field(format!("axis {axis}"))
                    .found(a)
                    .limit(k))
            }
            _ => Ok(d.floor_div(by)),
        };
        let area = b.clone() * b.clone();
        let out = match self.layout {
            Layout::SpaceToDepth => vec![n.clone(), c.clone() * area, divide(h, &b, 2)?, divide(w, &b, 3)?],
            _ => vec![n.clone(), divide(c, &area, 1)?, h.clone() * b.clone(), w.clone() * b],
        };
        Ok(vec![Fact::new(x.dtype, out)])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let out = float::shapes(self, inputs)?.swap_remove(0);
        let x = ops::input(inputs, 0)?;
        let (between, perm) = self.plan(x.shape());
        Ok(vec![reshape::with_shape(&permuted(&reshape::with_shape(x, &between)?, &perm)?, &out)?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        first(v, |g| {
            let shape = ops::input(v.inputs, 0)?.shape();
            let (between, perm) = self.plan(shape);
            let mut inverse = [0; 6];
            for (i, p) in perm.iter().enumerate() {
                inverse[*p] = i;
            }
            let moved: Vec<usize> = perm.iter().map(|p| between[*p]).collect();
            let g = permuted(&Value::from(g.reshape(moved)?), &inverse)?;
            Ok(g.float()?.reshape(shape)?)
        })
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let reason = Some("blocks of an image move between axes".into());
        let mut coupling = Coupling { reason, ..Coupling::default() };
        coupling.same((Port::In(0), 0), (Port::Out(0), 0));
        let channels =
            |f: Option<&Fact>| f.and_then(|f| f.shape.as_ref()).and_then(|s| s.get(1)).and_then(Dim::size);
        let area = self.size * self.size;
        let (Some(from), Some(to)) = (channels(inputs[0]), channels(outputs.first())) else {
            return coupling;
        };
        let (a, b, count) = match self.layout {
            Layout::SpaceToDepth => (Pattern::from(0), Pattern::recurring(from, area), from),
            Layout::Dcr => (Pattern::recurring(to, area), Pattern::from(0), to),
            Layout::Crd => (Pattern::blocks(area), Pattern::from(0), to),
        };
        coupling.link((Port::In(0), 1), a, (Port::Out(0), 1), b, count);
        coupling
    }
}
