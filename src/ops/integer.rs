//! Products of quantised tensors: exact 32-bit accumulation, then requantisation where the operator
//! has it.

use super::saturation::Tally;
use super::spatial::Spatial;
use super::{
    Attributes, Barrier, Coupling, Cut, Dim, Fact, Operator, Port, Rewrite, Spec, broadcast, conv, float,
    matmul,
};
use crate::error::{Error, Result};
use crate::kernels::integer;
use crate::tensor::{DType, Data, Tensor, Value};
use rayon::prelude::*;
use std::sync::Arc;

pub(super) const BYTES: &[DType] = &[DType::U8, DType::I8];

macro_rules! spec {
    ($name:literal, $from:literal, $parse:expr) => {
        Spec { domain: "", name: $name, opsets: ($from, super::LAST_OPSET), dtypes: BYTES, parse: $parse }
    };
}

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    spec!("ConvInteger", 10, |a, _| Ok(Arc::new(IntegerConv::parse(a, false)?))),
    spec!("MatMulInteger", 10, |_, _| Ok(Arc::new(IntegerMatMul::new(false)))),
    spec!("QLinearConv", 10, |a, _| Ok(Arc::new(IntegerConv::parse(a, true)?))),
    spec!("QLinearMatMul", 10, |_, _| Ok(Arc::new(IntegerMatMul::new(true)))),
];

/// The elements less their zero point; `zero(i)` gives that of element `i`.
pub(super) fn centred(t: &Tensor, zero: impl Fn(usize) -> i16 + Sync) -> Result<Vec<i16>> {
    Ok(match &*t.data()? {
        Data::U8(v) => v.par_iter().enumerate().map(|(i, x)| i16::from(*x) - zero(i)).collect(),
        Data::I8(v) => v.par_iter().enumerate().map(|(i, x)| i16::from(*x) - zero(i)).collect(),
        _ => return Err(Error::invalid("OP-TYPE", "8-bit integers are needed").found(t.dtype())),
    })
}

pub(super) fn zeros(inputs: &[Option<&Value>], slot: usize) -> Result<Vec<i16>> {
    match inputs.get(slot).copied().flatten() {
        None => Ok(vec![0]),
        Some(v) if BYTES.contains(&v.dtype()) && v.shape().iter().product::<usize>() > 0 => {
            Ok(v.ints()?.into_iter().map(|z| z as i16).collect())
        }
        Some(v) => Err(Error::invalid("OP-TYPE", "a zero point is no 8-bit integer")
            .field(format!("input[{slot}]"))
            .found(format!("{}{:?}", v.dtype(), v.shape()))),
    }
}

pub(super) fn scales(inputs: &[Option<&Value>], slot: usize) -> Result<Vec<f32>> {
    let scales = super::input(inputs, slot)?.to_tensor()?.to_f32s()?;
    if scales.is_empty() {
        return Err(Error::invalid("OP-SCALE", "a scale is empty").field(format!("input[{slot}]")));
    }
    Ok(scales)
}

pub(super) fn fits(what: &str, found: usize, channels: usize) -> Result<()> {
    if found == 1 || found == channels {
        return Ok(());
    }
    Err(Error::invalid("OP-SCALE", format!("{what} fits neither the tensor nor its channels"))
        .found(found)
        .limit(format!("1 or {channels}")))
}

pub(super) fn at<T: Copy>(v: &[T], i: usize) -> T {
    if v.len() == 1 { v[0] } else { v[i] }
}

/// Accumulated sums to quantised bytes: `round(sum * factor) + zero`, saturated, half to even, in f32 as
/// runtimes compute it.
pub(super) fn requantise(
    sums: &[i32],
    factor: impl Fn(usize) -> f32 + Sync,
    zero: i16,
    dtype: DType,
    shape: Vec<usize>,
) -> Result<Value> {
    let (low, high) = if dtype == DType::U8 { (0.0, 255.0) } else { (-128.0, 127.0) };
    let go = |(i, s): (usize, &i32)| {
        ((*s as f32 * factor(i)).round_ties_even() + f32::from(zero)).clamp(low, high)
    };
    let data = match dtype {
        DType::U8 => Data::U8(sums.par_iter().enumerate().map(|p| go(p) as u8).collect()),
        _ => Data::I8(sums.par_iter().enumerate().map(|p| go(p) as i8).collect()),
    };
    Ok(Tensor::new(dtype, shape, data)?.into())
}

/// Type of the requantised output: that of its zero point.
fn output_type(zero: &Fact, slot: usize) -> Result<DType> {
    if BYTES.contains(&zero.dtype) {
        return Ok(zero.dtype);
    }
    Err(Error::unsupported("OP-TYPE", "only 8-bit outputs are supported")
        .field(format!("input[{slot}]"))
        .found(zero.dtype))
}

/// MatMulInteger (a, b, a zero, b zero), QLinearMatMul (a, scale, zero, b, scale, zero, y scale, zero).
#[derive(Debug)]
pub(super) struct IntegerMatMul {
    pub(super) requantise: bool,
    /// Where sums of two products saturate at 16 bits, what that does is noted here.
    pub(super) tally: Option<Arc<Tally>>,
}

impl IntegerMatMul {
    pub(super) fn new(requantise: bool) -> IntegerMatMul {
        IntegerMatMul { requantise, tally: None }
    }

    /// Inputs of b, a's zero point and b's zero point.
    fn slots(&self) -> (usize, usize, usize) {
        if self.requantise { (3, 2, 5) } else { (1, 2, 3) }
    }

    /// Sums of the product of one shape, in the order of the output.
    pub(super) fn sums(&self, inputs: &[Option<&Value>]) -> Result<Vec<i32>> {
        let (slot, za, zb) = self.slots();
        let (a, b) = (super::input(inputs, 0)?.host()?, super::input(inputs, slot)?.host()?);
        let (za, zb) = (zeros(inputs, za)?, zeros(inputs, zb)?);
        let left = if a.shape().len() == 1 { [&[1], a.shape()].concat() } else { a.shape().to_vec() };
        let right = if b.shape().len() == 1 { [b.shape(), &[1]].concat() } else { b.shape().to_vec() };
        let (ra, rb) = (left.len(), right.len());
        let (m, k, n) = (left[ra - 2], left[ra - 1], right[rb - 1]);
        let rows = left[..ra - 1].iter().product::<usize>();
        // One zero point, one a row (of the matrix or of all), or one a column, batched or not.
        fits("the zero point of a", za.len(), if za.len() == rows { rows } else { m })?;
        fits("the zero point of b", zb.len(), if zb.len() > n { zb.len() } else { n })?;
        let zero_b = |i: usize| {
            let (batch, column) = (i / (k * n).max(1), i % n);
            if zb.len() > n { zb.get(batch * n + column).copied().unwrap_or(0) } else { at(&zb, column) }
        };
        let raw = match &self.tally {
            Some(tally) => tally.raw(a, b)?,
            None => None,
        };
        let a = centred(a, |i| za[(i / k.max(1)) % za.len()])?;
        let b = centred(b, zero_b)?;
        let batch = broadcast::fixed(&[&left[..ra - 2], &right[..rb - 2]])?;
        let offsets = |dims: &[usize], size: usize| {
            let own = &dims[..dims.len() - 2];
            let strides = crate::tensor::strides(own);
            let skip = batch.len() - own.len();
            let mut list = vec![0usize];
            for (i, d) in batch.iter().enumerate() {
                let step = if i < skip || own[i - skip] == 1 { 0 } else { strides[i - skip] * size };
                list = list.iter().flat_map(|o| (0..*d).map(move |j| o + j * step)).collect();
            }
            list
        };
        // b with the inner axis last, one matrix after the other.
        let mut turned = vec![0i16; b.len()];
        if k * n > 0 {
            turned.par_chunks_exact_mut(k * n).zip(b.par_chunks_exact(k * n)).for_each(|(t, b)| {
                for (l, row) in b.chunks_exact(n).enumerate() {
                    row.iter().enumerate().for_each(|(j, x)| t[j * k + l] = *x);
                }
            });
        }
        let mut out = vec![0i32; batch.iter().product::<usize>() * m * n];
        if rb == 2 {
            integer::product(&a, &turned, k, &mut out);
        } else if m * n > 0 {
            let places = offsets(&left, m * k).into_iter().zip(offsets(&right, k * n));
            for (c, (i, j)) in out.chunks_exact_mut(m * n).zip(places) {
                integer::product(&a[i..i + m * k], &turned[j..j + k * n], k, c);
            }
        }
        if let (Some(tally), Some((a, b))) = (&self.tally, raw)
            && m * n * k > 0
        {
            let places = match rb {
                2 => vec![(0, 0)],
                _ => offsets(&left, m * k).into_iter().zip(offsets(&right, k * n)).collect(),
            };
            let size = out.len() / places.len().max(1);
            for (c, (i, j)) in out.chunks_exact_mut(size.max(1)).zip(places) {
                let b = &b[j..j + k * n];
                let turned: Vec<i8> = (0..k * n).map(|at| b[at % k * n + at / k]).collect();
                tally.products(&a[i..i + size / n * k], &turned, k, c);
            }
        } else if let Some(tally) = &self.tally {
            tally.note(&out, (out.len() * k) as u64, 0);
        }
        Ok(out)
    }
}

impl Operator for IntegerMatMul {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (a, b) = (super::input(inputs, 0)?, super::input(inputs, self.slots().0)?);
        let dtype = if self.requantise { output_type(super::input(inputs, 7)?, 7)? } else { DType::I32 };
        Ok(vec![match (&a.shape, &b.shape) {
            (Some(x), Some(y)) => Fact::new(dtype, matmul::product_shape(x, y)?),
            _ => Fact::unranked(dtype),
        }])
    }
    fn macs(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Option<Dim> {
        matmul::product_macs(*inputs.first()?, outputs.first()?)
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.remove(0);
        let sums = self.sums(inputs)?;
        if !self.requantise {
            return Ok(vec![Tensor::from_vec(shape, sums)?.into()]);
        }
        let (sa, sb, sy) = (scales(inputs, 1)?, scales(inputs, 4)?, scales(inputs, 6)?);
        let a = super::input(inputs, 0)?.shape();
        let columns =
            if super::input(inputs, 3)?.shape().len() > 1 { shape.last().copied().unwrap_or(1) } else { 1 };
        let rows = if a.len() > 1 { a[a.len() - 2] } else { 1 };
        fits("the scale of a", sa.len(), rows)?;
        fits("the scale of b", sb.len(), columns)?;
        fits("the scale of y", sy.len(), 1)?;
        let factor =
            |i: usize| at(&sa, i / columns.max(1) % rows.max(1)) * at(&sb, i % columns.max(1)) / sy[0];
        let zero = zeros(inputs, 7)?[0];
        Ok(vec![requantise(&sums, factor, zero, super::input(inputs, 7)?.dtype(), shape)?])
    }
    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Integers)
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling = Coupling::default();
        let (slot, za, zb) = self.slots();
        let (Ok(a), Ok(b)) = (super::input(inputs, 0), super::input(inputs, slot)) else { return coupling };
        matmul::couple_product((0, a), (slot, b), &outputs[0], &mut coupling);
        let per_column = if self.requantise { vec![zb, zb - 1] } else { vec![zb] };
        let per_row = if self.requantise { vec![za, za - 1] } else { vec![za] };
        for (slots, own, axis) in [
            (per_column, b, b.rank().unwrap_or(0).wrapping_sub(1)),
            (per_row, a, a.rank().unwrap_or(0).wrapping_sub(2)),
        ] {
            let port = Port::In(if std::ptr::eq(own, b) { slot } else { 0 });
            for s in slots {
                let shape = inputs.get(s).copied().flatten().and_then(|f| f.shape.as_ref());
                if let (Some([d]), Some(size)) =
                    (shape.map(Vec::as_slice), own.shape.as_ref().and_then(|s| s.get(axis)))
                    && d == size
                    && !d.is(1)
                {
                    coupling.same((port, axis), (Port::In(s), 0));
                }
            }
        }
        coupling
    }
}

/// ConvInteger (x, w, x zero, w zero), QLinearConv (x, scale, zero, w, scale, zero, y scale, zero, bias).
#[derive(Debug)]
pub(super) struct IntegerConv {
    pub(super) spatial: Spatial,
    pub(super) group: usize,
    pub(super) requantise: bool,
    /// As of [`IntegerMatMul`].
    pub(super) tally: Option<Arc<Tally>>,
}

impl IntegerConv {
    pub(super) fn parse(a: &Attributes, requantise: bool) -> Result<IntegerConv> {
        Ok(IntegerConv { spatial: Spatial::parse(a)?, group: conv::group(a)?, requantise, tally: None })
    }
    /// Inputs of w, x's zero point and w's zero point.
    fn slots(&self) -> (usize, usize, usize) {
        if self.requantise { (3, 2, 5) } else { (1, 2, 3) }
    }
    pub(super) fn sums(&self, inputs: &[Option<&Value>], shape: &[usize]) -> Result<Vec<i32>> {
        let (slot, zx, zw) = self.slots();
        let (x, w) = (super::input(inputs, 0)?.host()?, super::input(inputs, slot)?.host()?);
        let axes = self.spatial.resolve(&w.shape()[2..], &x.shape()[2..], &shape[2..])?;
        let kernel = conv::kernel_of(x.shape(), w.shape(), shape, self.group, &axes);
        let (zx, zw) = (zeros(inputs, zx)?, zeros(inputs, zw)?);
        fits("the zero point of x", zx.len(), 1)?;
        fits("the zero point of w", zw.len(), shape[1])?;
        let (taps, area) = (kernel.taps(), kernel.area_out());
        let zero = zx[0];
        let held = match &self.tally {
            Some(tally) => tally.filters(&kernel, x.dtype(), w)?,
            None => None,
        };
        let (x, w) = (centred(x, |_| zx[0])?, centred(w, |i| at(&zw, i / taps.max(1)))?);
        let mut out = vec![0i32; float::size(shape)?];
        let (xs, ys) = (kernel.inputs * kernel.area_in(), kernel.outputs * area);
        if ys == 0 || xs == 0 {
            return Ok(out);
        }
        out.par_chunks_exact_mut(ys).enumerate().for_each_init(
            || (vec![], vec![], vec![]),
            |(columns, turned, sums), (image, out)| {
                let tile = ((1 << 18) / taps).clamp(16, 4096).min(area);
                let weights = &w[image % self.group * kernel.outputs * taps..][..kernel.outputs * taps];
                for from in (0..area).step_by(tile) {
                    let n = tile.min(area - from);
                    columns.resize(taps * n, 0i16);
                    turned.resize(taps * n, 0i16);
                    sums.resize(kernel.outputs * n, 0i32);
                    kernel.im2col(&x[image * xs..][..xs], columns, from, from + n);
                    for (l, row) in columns.chunks_exact(n).enumerate() {
                        row.iter().enumerate().for_each(|(j, v)| turned[j * taps + l] = *v);
                    }
                    integer::product(weights, turned, taps, sums);
                    if let (Some(tally), Some(held)) = (&self.tally, &held) {
                        tally.tile(&held[image % self.group], turned, taps, zero, sums);
                    }
                    for (o, sums) in sums.chunks_exact(n).enumerate() {
                        out[o * area + from..][..n].copy_from_slice(sums);
                    }
                }
            },
        );
        Ok(out)
    }
}

impl Operator for IntegerConv {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (x, w) = (super::input(inputs, 0)?, super::input(inputs, self.slots().0)?);
        let dtype = if self.requantise { output_type(super::input(inputs, 7)?, 7)? } else { DType::I32 };
        let (Some(xs), Some(ws)) = (&x.shape, &w.shape) else { return Ok(vec![Fact::unranked(dtype)]) };
        let kernel = conv::check_shapes(xs, ws, self.group, false)?;
        let mut shape = vec![xs[0].clone(), ws[0].clone()];
        shape.extend(self.spatial.outputs(&kernel, &xs[2..])?);
        Ok(vec![Fact::new(dtype, shape)])
    }
    fn macs(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Option<Dim> {
        let w = super::input(inputs, self.slots().0).ok()?.shape.as_ref()?;
        Some(outputs.first()?.elements()? * Dim::product(&w[1..]))
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.remove(0);
        let mut sums = self.sums(inputs, &shape)?;
        if !self.requantise {
            return Ok(vec![Tensor::from_vec(shape, sums)?.into()]);
        }
        let area = shape[2..].iter().product::<usize>().max(1);
        let channels = shape[1].max(1);
        if let Some(bias) = inputs.get(8).copied().flatten() {
            let bias = bias.host()?.to_vec::<i32>()?;
            if bias.len() != shape[1] {
                return Err(Error::invalid("OP-SHAPE", "the bias has not one element a channel")
                    .field("input[8]")
                    .found(bias.len())
                    .limit(shape[1]));
            }
            sums.par_chunks_mut(area)
                .enumerate()
                .for_each(|(c, s)| s.iter_mut().for_each(|s| *s = s.wrapping_add(bias[c % channels])));
        }
        let (sx, sw, sy) = (scales(inputs, 1)?, scales(inputs, 4)?, scales(inputs, 6)?);
        fits("the scale of x", sx.len(), 1)?;
        fits("the scale of w", sw.len(), shape[1])?;
        fits("the scale of y", sy.len(), 1)?;
        let factor = |i: usize| sx[0] * at(&sw, i / area % channels) / sy[0];
        let zero = zeros(inputs, 7)?[0];
        Ok(vec![requantise(&sums, factor, zero, super::input(inputs, 7)?.dtype(), shape)?])
    }
    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Integers)
    }
    fn couple(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        let mut coupling = Coupling::default();
        let (w, _, zw) = self.slots();
        let mut slots = if self.requantise { vec![zw - 1, zw, 8] } else { vec![zw] };
        // A single scale or zero point serves all channels and is not cut.
        slots.retain(|s| {
            inputs
                .get(*s)
                .copied()
                .flatten()
                .and_then(|f| f.shape.as_ref())
                .is_some_and(|s| s.len() == 1 && !s[0].is(1))
        });
        conv::couple_channels(inputs, self.group, 0, w, &slots, &mut coupling);
        coupling
    }
    fn resize(&self, _: &[Option<&Fact>], _: &[Fact], cut: &Cut) -> Result<Rewrite> {
        Ok(conv::resize_groups(self.group, 0, cut))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(shape: &[usize], seed: usize) -> Value {
        let n = shape.iter().product::<usize>();
        Tensor::from_vec(shape.to_vec(), (0..n).map(|i| ((i * 37 + seed * 11) % 256) as u8).collect())
            .unwrap()
            .into()
    }

    #[test]
    fn grouped_integer_convolution_equals_float_convolution() {
        let attributes = Attributes::new()
            .with("group", crate::ops::Attr::Int(2))
            .with("pads", crate::ops::Attr::Ints(vec![1, 0, 1, 1]))
            .with("strides", crate::ops::Attr::Ints(vec![2, 1]));
        let (x, w) = (bytes(&[2, 4, 6, 5], 1), bytes(&[6, 2, 3, 2], 2));
        let (zx, zw): (Value, Value) = (
            Tensor::scalar(7u8).into(),
            Tensor::from_vec(vec![6], vec![1u8, 2, 3, 4, 5, 250]).unwrap().into(),
        );
        let op = IntegerConv::parse(&attributes, false).unwrap();
        let sums = op.eval(&[Some(&x), Some(&w), Some(&zx), Some(&zw)]).unwrap().remove(0).ints().unwrap();
        let wide = |v: &Value, zero: &dyn Fn(usize) -> f64| -> Value {
            let v64: Vec<f64> =
                v.ints().unwrap().iter().enumerate().map(|(i, x)| *x as f64 - zero(i)).collect();
            Value::load(&Tensor::from_vec(v.shape().to_vec(), v64).unwrap()).unwrap()
        };
        let zero = zw.ints().unwrap();
        let (fx, fw) = (wide(&x, &|_| 7.0), wide(&w, &|i| zero[i / 12] as f64));
        let conv = (super::super::lookup("", "Conv", 11).unwrap().parse)(&attributes, 11).unwrap();
        let expected =
            conv.eval(&[Some(&fx), Some(&fw)]).unwrap().remove(0).to_tensor().unwrap().to_i64s().unwrap();
        assert_eq!(sums, expected);
    }

    #[test]
    fn batched_integer_products_broadcast_and_take_zero_points_by_row_and_column() {
        let (a, b) = (bytes(&[2, 1, 3, 4], 3), bytes(&[2, 4, 5], 4));
        let za: Value = Tensor::from_vec(vec![3], vec![1u8, 2, 3]).unwrap().into();
        let zb: Value = Tensor::from_vec(vec![5], vec![9u8, 8, 7, 6, 5]).unwrap().into();
        let op = IntegerMatMul::new(false);
        let y = op.eval(&[Some(&a), Some(&b), Some(&za), Some(&zb)]).unwrap().remove(0);
        assert_eq!(y.shape(), [2, 2, 3, 5]);
        let (va, vb, y) = (a.ints().unwrap(), b.ints().unwrap(), y.ints().unwrap());
        for (i, y) in y.iter().enumerate() {
            let (p, q, r, c) = (i / 30, i / 15 % 2, i / 5 % 3, i % 5);
            let sum: i64 = (0..4)
                .map(|k| (va[(p * 3 + r) * 4 + k] - r as i64 - 1) * (vb[(q * 4 + k) * 5 + c] - 9 + c as i64))
                .sum();
            assert_eq!(*y, sum);
        }
    }

    #[test]
    fn zero_points_that_fit_nothing_are_refused() {
        let (a, b) = (bytes(&[3, 4], 3), bytes(&[4, 5], 4));
        let bad: Value = Tensor::from_vec(vec![2], vec![1u8, 2]).unwrap().into();
        let op = IntegerMatMul::new(false);
        assert_eq!(op.eval(&[Some(&a), Some(&b), Some(&bad)]).unwrap_err().code(), "OP-SCALE");
        assert_eq!(op.eval(&[Some(&a), Some(&b), None, Some(&bad)]).unwrap_err().code(), "OP-SCALE");
    }
}
