//! Sliding windows as Conv and the pools declare them: kernel, strides, dilations, padding, ceiling.

use super::{Attributes, Dim};
use crate::error::{Error, Result};

/// `auto_pad`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AutoPad {
    NotSet,
    SameUpper,
    SameLower,
    Valid,
}

/// Largest kernel size, stride, dilation or padding that is read.
const MAX: i64 = 1 << 24;

/// Attributes of a sliding window; absent ones are empty.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Spatial {
    pub kernel: Vec<usize>,
    pub strides: Vec<usize>,
    pub dilations: Vec<usize>,
    /// Before all axes, then after all axes.
    pub pads: Vec<usize>,
    pub auto: AutoPad,
    pub ceil: bool,
}

/// One axis, resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Axis {
    pub kernel: usize,
    pub stride: usize,
    pub dilation: usize,
    pub pad: (usize, usize),
}

impl Axis {
    /// Inputs that a window spans.
    pub fn extent(self) -> usize {
        (self.kernel - 1) * self.dilation + 1
    }
}

/// Integers of an attribute, each from `low` to a sane limit.
pub fn sizes(attributes: &Attributes, name: &str, low: i64) -> Result<Vec<usize>> {
    let values = attributes.ints(name)?.unwrap_or_default();
    if let Some(v) = values.iter().find(|v| **v < low || **v > MAX) {
        return Err(Error::invalid("ATTR-RANGE", "attribute is out of range")
            .field(format!("attribute {name}"))
            .found(v)
            .limit(format!("{low} to {MAX}")));
    }
    Ok(values.into_iter().map(|v| v as usize).collect())
}

/// `auto_pad` of a node.
pub fn auto_pad(attributes: &Attributes) -> Result<AutoPad> {
    match attributes.str("auto_pad", "NOTSET")?.as_str() {
        "NOTSET" | "" => Ok(AutoPad::NotSet),
        "SAME_UPPER" => Ok(AutoPad::SameUpper),
        "SAME_LOWER" => Ok(AutoPad::SameLower),
        "VALID" => Ok(AutoPad::Valid),
        other => Err(Error::invalid("ATTR-RANGE", "attribute auto_pad is not known").found(other)),
    }
}

/// Up to three axes as exactly three, leading ones filled with `fill`.
pub fn three<T: Copy>(v: &[T], fill: T) -> [T; 3] {
    let mut out = [fill; 3];
    out[3 - v.len()..].copy_from_slice(v);
    out
}

impl Spatial {
    /// Reads the attributes.
    pub fn parse(attributes: &Attributes) -> Result<Spatial> {
        Ok(Spatial {
            kernel: sizes(attributes, "kernel_shape", 1)?,
            strides: sizes(attributes, "strides", 1)?,
            dilations: sizes(attributes, "dilations", 1)?,
            pads: sizes(attributes, "pads", 0)?,
            auto: auto_pad(attributes)?,
            ceil: attributes.int("ceil_mode", 0)? != 0,
        })
    }

    /// The axes for a kernel, explicit padding only. Fails where attribute lengths or rank do not fit.
    pub fn axes(&self, kernel: &[usize]) -> Result<Vec<Axis>> {
        let rank = kernel.len();
        if !(1..=3).contains(&rank) {
            return Err(Error::unsupported("OP-RANK", "only 1 to 3 spatial axes are supported").found(rank));
        }
        for (name, v, n) in [
            ("kernel_shape", &self.kernel, rank),
            ("strides", &self.strides, rank),
            ("dilations", &self.dilations, rank),
            ("pads", &self.pads, 2 * rank),
        ] {
            if !v.is_empty() && v.len() != n {
                return Err(Error::invalid("ATTR-LENGTH", "attribute has the wrong length")
                    .field(format!("attribute {name}"))
                    .found(v.len())
                    .limit(n));
            }
        }
        if !self.kernel.is_empty() && self.kernel != kernel {
            return Err(Error::invalid("OP-SHAPE", "kernel_shape differs from the weights")
                .found(format!("{:?}", self.kernel))
                .limit(format!("{kernel:?}")));
        }
        let explicit = self.auto == AutoPad::NotSet;
        let at = |v: &[usize], i: usize, default| v.get(i).copied().unwrap_or(default);
        Ok((0..rank)
            .map(|i| Axis {
                kernel: kernel[i],
                stride: at(&self.strides, i, 1),
                dilation: at(&self.dilations, i, 1),
                pad: match explicit {
                    true => (at(&self.pads, i, 0), at(&self.pads, rank + i, 0)),
                    false => (0, 0),
                },
            })
            .collect())
    }

    /// Output sizes. Fails where a window does not fit.
    pub fn outputs(&self, kernel: &[usize], input: &[Dim]) -> Result<Vec<Dim>> {
        let axes = self.axes(kernel)?;
        if axes.len() != input.len() {
            return Err(Error::invalid("OP-RANK", "kernel and input differ in spatial rank")
                .found(input.len())
                .limit(axes.len()));
        }
        axes.iter().zip(input).map(|(a, d)| self.output(*a, d)).collect()
    }

    fn output(&self, a: Axis, input: &Dim) -> Result<Dim> {
        let stride = Dim::from(a.stride);
        if matches!(self.auto, AutoPad::SameUpper | AutoPad::SameLower) {
            return Ok(input.ceil_div(&stride));
        }
        let room = input.clone() + Dim::from(a.pad.0 + a.pad.1) - Dim::from(a.extent());
        if room.known().is_some_and(|r| r < 0) {
            return Err(Error::invalid("OP-SHAPE", "the window is larger than the padded input").found(
                format!("window {}, input {input}, padding {} and {}", a.extent(), a.pad.0, a.pad.1),
            ));
        }
        let one = Dim::from(1i64);
        if !self.ceil || a.stride == 1 || self.auto == AutoPad::Valid {
            return Ok(room.floor_div(&stride) + one);
        }
        // A last window that would start in the padding after the input is dropped.
        let full = room.ceil_div(&stride) + one.clone();
        if a.pad.1 + a.stride - 1 < a.extent() {
            return Ok(full);
        }
        Ok(match (full.known(), input.known()) {
            (Some(n), Some(size)) if (n - 1) * a.stride as i64 >= size + a.pad.0 as i64 => full - one,
            (Some(_), Some(_)) => full,
            _ => Dim::unknown(),
        })
    }

    /// The axes with `auto_pad` resolved for fixed sizes.
    pub fn resolve(&self, kernel: &[usize], input: &[usize], output: &[usize]) -> Result<Vec<Axis>> {
        let mut axes = self.axes(kernel)?;
        if matches!(self.auto, AutoPad::SameUpper | AutoPad::SameLower) {
            for ((a, i), o) in axes.iter_mut().zip(input).zip(output) {
                let total = (o.saturating_sub(1) * a.stride + a.extent()).saturating_sub(*i);
                a.pad = match self.auto {
                    AutoPad::SameUpper => (total / 2, total - total / 2),
                    _ => (total - total / 2, total / 2),
                };
            }
        }
        Ok(axes)
    }
}
