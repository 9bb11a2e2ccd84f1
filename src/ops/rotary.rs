//! Rotary position embedding: pairs of elements of each head are rotated by angles that depend on the
//! position (RoFormer, arXiv 2104.09864).

use super::float::{self, Float, Scalar, real};
use super::{Attr, Attributes, Coupling, Cut, Dim, Fact, Operator, Pattern, Port, Rewrite, Spec, Vjp};
use crate::error::{Error, Result};
use crate::kernels::rotary::Rotary;
use crate::tensor::{DType, Value};
use std::sync::Arc;

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec {
        domain: "",
        name: "RotaryEmbedding",
        opsets: (23, super::LAST_OPSET),
        dtypes: DType::FLOATS,
        parse: |a, _| RotaryEmbedding::parse(a, Order { cos: 1, sin: 2, positions: 3 }),
    },
    Spec {
        domain: "com.microsoft",
        name: "RotaryEmbedding",
        opsets: (1, 1),
        dtypes: DType::FLOATS,
        parse: |a, _| {
            if a.int("is_packed_batching", 0)? != 0 || a.float("scale", 1.0)? != 1.0 {
                return Err(Error::unsupported("OP-ATTR", "ragged batches and scales are not supported"));
            }
            RotaryEmbedding::parse(a, Order { cos: 2, sin: 3, positions: 1 })
        },
    },
];

/// Slots of the inputs behind `X`.
#[derive(Debug, Clone, Copy)]
struct Order {
    cos: usize,
    sin: usize,
    positions: usize,
}

/// `X` is `[batch, heads, positions, size]`, or `[batch, positions, heads * size]` where `num_heads` is
/// given. The tables are `[rows, rotated / 2]`, a row for each position id, or without ids
/// `[batch, positions, rotated / 2]`. One position id alone is that of the first position.
#[derive(Debug)]
struct RotaryEmbedding {
    interleaved: bool,
    rotated: Option<usize>,
    heads: Option<usize>,
    order: Order,
}

/// A rotation with its sizes.
struct Layout {
    rotary: Rotary,
    batch: usize,
    heads: usize,
    positions: usize,
    flat: bool,
    /// Row of the tables for each (batch entry, position).
    angles: Vec<usize>,
}

impl Layout {
    fn rows(&self) -> usize {
        self.batch * self.heads * self.positions
    }
    /// Batch entry, head and position of row `r`, rows lying as in `X`.
    fn place(&self, r: usize) -> (usize, usize, usize) {
        let (h, s) = (self.heads, self.positions);
        match self.flat {
            true => (r / (s * h), r % h, r / h % s),
            false => (r / (h * s), r / s % h, r % s),
        }
    }
    fn angle(&self, r: usize) -> usize {
        let (b, _, s) = self.place(r);
        self.angles[b * self.positions + s] * (self.rotary.rotated / 2)
    }
}

impl RotaryEmbedding {
    fn parse(a: &Attributes, order: Order) -> Result<Arc<dyn Operator>> {
        let count = |name: &str| -> Result<Option<usize>> {
            let n = a.int(name, 0)?;
            let n = usize::try_from(n).map_err(|_| {
                Error::invalid("ATTR-RANGE", "attribute is out of range")
                    .field(format!("attribute {name}"))
                    .found(n)
            })?;
            Ok((n > 0).then_some(n))
        };
        Ok(Arc::new(RotaryEmbedding {
            interleaved: a.int("interleaved", 0)? != 0,
            rotated: count("rotary_embedding_dim")?,
            heads: count("num_heads")?,
            order,
        }))
    }

    /// The size of a head: the last axis, or its part where heads share it. Without the number of heads
    /// the tables tell it.
    fn head(&self, shape: &[Dim], cos: Option<&Dim>) -> Result<Dim> {
        let last = shape.last().cloned().unwrap_or_else(|| Dim::from(0i64));
        let wrong = |what: &str| {
            Error::invalid("OP-SHAPE", what.to_string()).field("input[0]").found(format!("{shape:?}"))
        };
        match (shape.len(), self.heads, cos) {
            (4, _, _) => Ok(last),
            (3, Some(n), _) if last.known().is_none_or(|w| w % n as i64 == 0) => {
                Ok(last.floor_div(&Dim::from(n)))
            }
            (3, Some(_), _) => Err(wrong("heads do not divide the width")),
            (3, None, Some(half)) if self.rotated.is_none() => Ok(half.clone() * Dim::from(2i64)),
            (3, None, _) => Err(wrong("three axes need num_heads")),
            _ => Err(wrong("three or four axes are needed")),
        }
    }

    fn check(&self, inputs: &[Option<&Fact>]) -> Result<()> {
        let x = super::input(inputs, 0)?;
        let tables = [self.order.cos, self.order.sin];
        let ids = inputs.get(self.order.positions).copied().flatten();
        for slot in tables {
            let table = super::input(inputs, slot)?;
            let (Some(shape), Some(x)) = (&table.shape, &x.shape) else { continue };
            let head = self.head(x, shape.last())?;
            let rotated = self.rotated.map_or(head.clone(), Dim::from);
            let half = rotated.known().map(|r| r / 2);
            let fits = shape.len() == if ids.is_some() { 2 } else { 3 }
                && shape.last().and_then(Dim::known).zip(half).is_none_or(|(a, b)| a == b);
            if !fits {
                return Err(Error::invalid("OP-SHAPE", "a table does not fit the elements that rotate")
                    .field(format!("input[{slot}]"))
                    .found(format!("{shape:?}"))
                    .limit(format!("{} pairs", half.map_or("?".into(), |h| h.to_string()))));
            }
            let odd = rotated.known().is_some_and(|r| r % 2 != 0)
                || head.known().zip(rotated.known()).is_some_and(|(h, r)| r > h);
            if odd {
                return Err(Error::invalid("OP-SHAPE", "elements that rotate come in pairs within a head")
                    .found(rotated)
                    .limit(head));
            }
        }
        Ok(())
    }

    fn layout(&self, inputs: &[Option<&Value>]) -> Result<Layout> {
        let x = super::input(inputs, 0)?.shape();
        let cos = super::input(inputs, self.order.cos)?.shape();
        let half = cos.last().copied().unwrap_or(0);
        let dims: Vec<Dim> = x.iter().map(|n| Dim::from(*n)).collect();
        let head = self.head(&dims, Some(&Dim::from(half)))?.size().unwrap_or(0);
        let (batch, heads, positions, flat) = match x {
            [b, h, s, _] => (*b, *h, *s, false),
            [b, s, w] => (*b, w / head.max(1), *s, true),
            _ => return Err(Error::invalid("OP-RANK", "three or four axes are needed")),
        };
        let table: usize = cos[..cos.len() - 1].iter().product();
        let angles: Vec<usize> = match inputs.get(self.order.positions).copied().flatten() {
            None => (0..batch * positions).collect(),
            Some(ids) => {
                let given = ids.ints()?;
                let ids: Vec<i64> = match given.as_slice() {
                    [first] if ids.shape().len() == 1 => {
                        (0..batch).flat_map(|_| (0..positions as i64).map(|s| first + s)).collect()
                    }
                    _ => given,
                };
                let found: Option<Vec<usize>> =
                    ids.iter().map(|p| usize::try_from(*p).ok().filter(|p| *p < table)).collect();
                found.ok_or_else(|| {
                    Error::invalid("OP-INDEX", "a position lies outside the tables of angles")
                        .field(format!("input[{}]", self.order.positions))
                        .found(ids.iter().find(|p| **p < 0 || **p >= table as i64).copied().unwrap_or(0))
                        .limit(format!("{table} positions"))
                        .hint("use a shorter text, or import the model for a longer context")
                })?
            }
        };
        if angles.len() != batch * positions || angles.iter().any(|a| *a >= table) {
            return Err(Error::invalid("OP-SHAPE", "there is not one position for each token")
                .field(format!("input[{}]", self.order.positions))
                .found(angles.len())
                .limit(batch * positions));
        }
        let rotary = Rotary { head, rotated: 2 * half, interleaved: self.interleaved };
        Ok(Layout { rotary, batch, heads, positions, flat, angles })
    }

    fn turn<T: Scalar>(&self, inputs: &[Option<&Value>], x: &Float, back: bool) -> Result<Float> {
        let layout = self.layout(inputs)?;
        let table = |slot: usize| float::elements::<T>(super::input(inputs, slot)?.float()?);
        let (cos, sin) = (table(self.order.cos)?, table(self.order.sin)?);
        let (data, strides) = float::strided::<T>(x)?;
        let (rows, head) = (layout.rows(), layout.rotary.head);
        let angle = |r| layout.angle(r);
        // Heads that another operator moved are read where they lie.
        let y = if !layout.flat && strides[3] == 1 {
            let at = |r| {
                let (b, h, s) = layout.place(r);
                b * strides[0] + h * strides[1] + s * strides[2]
            };
            layout.rotary.rotate(rows, &data, at, angle, (&cos, &sin), back)
        } else {
            drop(data);
            let data = float::elements::<T>(x)?;
            layout.rotary.rotate(rows, &data, |r| r * head, angle, (&cos, &sin), back)
        };
        float::tensor(y, x.dims(), x.dtype())
    }

    fn back<T: Scalar>(&self, v: &Vjp<'_>, dy: &Float) -> Result<Vec<Option<Float>>> {
        let mut out = vec![None; v.inputs.len()];
        if v.needs[0] {
            out[0] = Some(self.turn::<T>(v.inputs, dy, true)?);
        }
        let (cos, sin) = (self.order.cos, self.order.sin);
        if v.needs[cos] || v.needs[sin] {
            let (layout, x) = (self.layout(v.inputs)?, super::input(v.inputs, 0)?.float()?);
            let like = super::input(v.inputs, cos)?.float()?;
            let head = layout.rotary.head;
            let (dcos, dsin) = layout.rotary.table_gradients(
                layout.rows(),
                (&float::elements::<T>(x)?, &float::elements::<T>(dy)?),
                |r| r * head,
                |r| layout.angle(r),
                like.elem_count(),
            );
            for (slot, d) in [(cos, dcos), (sin, dsin)] {
                if v.needs[slot] {
                    out[slot] = Some(float::tensor(d, like.dims(), like.dtype())?);
                }
            }
        }
        Ok(out)
    }
}

impl Operator for RotaryEmbedding {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        self.check(inputs)?;
        Ok(vec![super::input(inputs, 0)?.without_value()])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        float::shapes(self, inputs)?;
        let x = super::input(inputs, 0)?.float()?;
        Ok(vec![real!(x.dtype(), T => self.turn::<T>(inputs, x, false))?.into()])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        match &v.grads[0] {
            Some(dy) => real!(dy.dtype(), T => self.back::<T>(v, dy)),
            None => Ok(vec![None; v.inputs.len()]),
        }
    }
    /// Heads leave whole: the pairs of one head stay.
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut c = Coupling {
            reason: Some("the pairs that rotate stay within a head".into()),
            ..Coupling::default()
        };
        let (x, y) = (Port::In(0), Port::Out(0));
        match outputs[0].shape.as_deref() {
            Some([_, _, _, _]) => (0..3).for_each(|axis| c.same((x, axis), (y, axis))),
            Some([_, _, width]) => {
                (0..2).for_each(|axis| c.same((x, axis), (y, axis)));
                let cos = inputs.get(self.order.cos).copied().flatten().and_then(|f| f.shape.as_ref());
                let shape = outputs[0].shape.as_deref().unwrap_or_default();
                let head = self.head(shape, cos.and_then(|s| s.last())).ok().and_then(|h| h.size());
                if let (Some(head), Some(width)) = (head.filter(|h| *h > 0), width.size()) {
                    c.link((x, 2), Pattern::blocks(head), (y, 2), Pattern::blocks(head), width / head);
                }
            }
            _ => {}
        }
        c
    }
    fn resize(&self, inputs: &[Option<&Fact>], _: &[Fact], cut: &Cut) -> Result<Rewrite> {
        let axis = if inputs[0].and_then(Fact::rank) == Some(3) { 2 } else { 1 };
        let (Some(heads), Some((before, kept))) = (self.heads, cut.of(Port::In(0), axis)) else {
            return Ok(Rewrite::default());
        };
        let heads = Attr::Int((kept.len() * heads / before.max(1)) as i64);
        Ok(Rewrite { attributes: vec![("num_heads".into(), heads)], ..Rewrite::default() })
    }
}
