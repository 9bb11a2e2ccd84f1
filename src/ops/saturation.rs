//! Integer products as processors compute them that hold sums of two products in 16 bits
//! (`kernels::pairs`), in the order in which ONNX Runtime's kernels pair them: neighbours along the inner axis
//! of a matrix product, neighbouring channels of one tap in a convolution. What saturates is noted in a
//! [`Tally`]. Products of floats that stand between quantisation pairs are turned back into integers first.
//!
//! Only unsigned data with signed weights is held in 16 bits. Depthwise convolution is exact; so is
//! `ConvInteger`, but for signed data with unsigned weights, whose sides ONNX Runtime exchanges.

use super::integer::{BYTES, IntegerConv, IntegerMatMul};
use super::{Attributes, Fact, Operator, float};
use crate::error::{Error, Result};
use crate::kernels::conv::Conv as Kernel;
use crate::kernels::pairs::Pairs;
use crate::tensor::{DType, Data, Tensor, Value};
use candle_core::Device;
use rayon::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// What saturation did to one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Products of two elements.
    pub products: u64,
    /// Sums of two products that were held in 16 bits; zero where the layer is exact.
    pub pairs: u64,
    /// Those that saturated.
    pub saturated: u64,
    /// Sums of the layer's output.
    pub outputs: u64,
    /// Those that saturation changed.
    pub changed: u64,
    /// Largest change of one, before scales.
    pub largest_error: i64,
    /// Largest magnitude of an exact one.
    pub largest_sum: i64,
}

/// Adds up what saturates in one layer; threads share it.
#[derive(Debug, Default)]
pub struct Tally {
    /// The data's zero point and elements are moved by 128, as the runtime does with signed ones.
    moved: bool,
    /// The layer is a `ConvInteger`.
    exchanged: bool,
    products: AtomicU64,
    pairs: AtomicU64,
    saturated: AtomicU64,
    outputs: AtomicU64,
    changed: AtomicU64,
    largest_error: AtomicI64,
    largest_sum: AtomicI64,
}

/// The filters of a group, ready for data.
#[derive(Debug)]
pub(super) enum Held {
    /// Pairs of channels, channels of a tap, and what moves the data into 0 to 255.
    Filters { pairs: Pairs, channels: usize, shift: i16 },
    /// Filters stand where data do, `[outputs, taps]`.
    Exchanged(Vec<u8>),
    /// Nothing is held in 16 bits.
    Exact,
}

fn unsigned(t: &Tensor, moved: bool) -> Result<Option<Vec<u8>>> {
    Ok(match &*t.data()? {
        Data::U8(v) => Some(v.to_vec()),
        Data::I8(v) if moved => Some(v.iter().map(|x| (*x as u8) ^ 0x80).collect()),
        _ => None,
    })
}

fn signed(t: &Tensor) -> Result<Option<Vec<i8>>> {
    Ok(match &*t.data()? {
        Data::I8(v) => Some(v.to_vec()),
        _ => None,
    })
}

impl Tally {
    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        Counts {
            products: self.products.load(Relaxed),
            pairs: self.pairs.load(Relaxed),
            saturated: self.saturated.load(Relaxed),
            outputs: self.outputs.load(Relaxed),
            changed: self.changed.load(Relaxed),
            largest_error: self.largest_error.load(Relaxed),
            largest_sum: self.largest_sum.load(Relaxed),
        }
    }

    /// Data and weights of a matrix product as the kernel reads them, where it holds pairs.
    pub(super) fn raw(&self, a: &Tensor, b: &Tensor) -> Result<Option<(Vec<u8>, Vec<i8>)>> {
        Ok(unsigned(a, self.moved)?.zip(signed(b)?))
    }

    /// Takes from `c` `[m, n]` what a product of `a` `[m, k]` and `b` `[n, k]` loses.
    pub(super) fn products(&self, a: &[u8], b: &[i8], k: usize, c: &mut [i32]) {
        let (pairs, n) = (Pairs::of(b, k), b.len() / k);
        self.note(c, (a.len() * n) as u64, pairs.per_row() * (a.len() / k) as u64);
        if pairs.safe() {
            return;
        }
        let rows = c.par_chunks_mut(n).zip(a.par_chunks(k));
        let saturated = rows.map(|(c, a)| pairs.row(a, |j, loss| self.lose(&mut c[j], loss))).sum();
        self.saturated.fetch_add(saturated, Relaxed);
    }

    /// The filters of each group, from `w` `[groups * outputs, inputs, taps...]`.
    pub(super) fn filters(&self, kernel: &Kernel, x: DType, w: &Tensor) -> Result<Option<Vec<Held>>> {
        let (taps, size) = (kernel.taps(), kernel.outputs * kernel.taps());
        let channels = kernel.inputs;
        let depthwise = kernel.inputs == 1 && kernel.outputs == 1;
        if size == 0 {
            return Ok(None);
        }
        if self.exchanged {
            let filters = unsigned(w, false)?.filter(|_| x == DType::I8);
            return Ok(filters.map(|w| w.chunks(size).map(|w| Held::Exchanged(w.to_vec())).collect()));
        }
        // A signed element beside a moved zero point is an unsigned one.
        let takes = x == DType::U8 || (x == DType::I8 && self.moved);
        let Some(w) = signed(w)?.filter(|_| takes && !depthwise) else {
            return Ok(Some((0..kernel.groups).map(|_| Held::Exact).collect()));
        };
        let shift = if x == DType::I8 { 128 } else { 0 };
        let area = taps / channels.max(1);
        let group = |w: &[i8]| {
            // From [outputs, channels, area] to [outputs, area, channels].
            let order = |i: usize| i / taps * taps + i % taps % channels * area + i % taps / channels;
            let ordered: Vec<i8> = (0..size).map(|i| w[order(i)]).collect();
            Held::Filters { pairs: Pairs::of(&ordered, taps), channels, shift }
        };
        Ok(Some(w.chunks(size).map(group).collect()))
    }

    /// Takes from `sums` `[outputs, n]` what a tile of a convolution loses; `turned` holds its columns
    /// `[n, taps]` less their zero point.
    pub(super) fn tile(&self, held: &Held, turned: &[i16], taps: usize, zero: i16, sums: &mut [i32]) {
        let n = turned.len() / taps.max(1);
        let products = (sums.len() * taps) as u64;
        match held {
            _ if n == 0 || sums.is_empty() => {}
            Held::Exact => self.note(sums, products, 0),
            Held::Filters { pairs, channels, shift } => {
                self.note(sums, products, pairs.per_row() * n as u64);
                if pairs.safe() {
                    return;
                }
                let (area, mut row) = (taps / channels, vec![0u8; taps]);
                for (j, column) in turned.chunks_exact(taps).enumerate() {
                    for (i, x) in row.iter_mut().enumerate() {
                        *x = (column[i % channels * area + i / channels] + zero + shift) as u8;
                    }
                    let saturated = pairs.row(&row, |o, loss| self.lose(&mut sums[o * n + j], loss));
                    self.saturated.fetch_add(saturated, Relaxed);
                }
            }
            Held::Exchanged(filters) => {
                let columns: Vec<i8> = turned.iter().map(|x| (x + zero) as i8).collect();
                let pairs = Pairs::of(&columns, taps);
                self.note(sums, products, pairs.per_row() * (sums.len() / n) as u64);
                for (sums, row) in sums.chunks_exact_mut(n).zip(filters.chunks_exact(taps)) {
                    let saturated = pairs.row(row, |j, loss| self.lose(&mut sums[j], loss));
                    self.saturated.fetch_add(saturated, Relaxed);
                }
            }
        }
    }

    pub(super) fn note(&self, exact: &[i32], products: u64, pairs: u64) {
        let largest = exact.iter().map(|c| i64::from(*c).abs()).max().unwrap_or(0);
        self.largest_sum.fetch_max(largest, Relaxed);
        self.outputs.fetch_add(exact.len() as u64, Relaxed);
        self.products.fetch_add(products, Relaxed);
        self.pairs.fetch_add(pairs, Relaxed);
    }

    fn lose(&self, sum: &mut i32, loss: i32) {
        *sum = sum.wrapping_add(loss);
        if loss != 0 {
            self.changed.fetch_add(1, Relaxed);
            self.largest_error.fetch_max(i64::from(loss).abs(), Relaxed);
        }
    }
}

/// How one side of a product became floats: `(q - zero) * scale`.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// One scale, or one per output feature.
    pub scales: Vec<f32>,
    /// As many zero points, or one.
    pub zeros: Vec<i32>,
    /// U8 or I8.
    pub dtype: DType,
}

impl Grid {
    fn zero(&self, i: usize) -> i32 {
        self.zeros[i % self.zeros.len()]
    }

    /// The integers that `value` was made of; `feature(i)` is the output feature of element `i`.
    fn integers(&self, value: &Value, feature: impl Fn(usize) -> usize) -> Result<Value> {
        let x = value.to_tensor()?.to_f32s()?;
        let q = x.iter().enumerate().map(|(i, x)| {
            let f = feature(i) % self.scales.len();
            (x / self.scales[f]).round_ties_even() as i32 + self.zero(f)
        });
        let data = match self.dtype {
            DType::U8 => Data::U8(q.map(|q| q as u8).collect()),
            _ => Data::I8(q.map(|q| q as i8).collect()),
        };
        Ok(Tensor::new(self.dtype, value.shape().to_vec(), data)?.into())
    }

    fn zero_tensor(&self) -> Result<Value> {
        let shape = if self.zeros.len() == 1 { vec![] } else { vec![self.zeros.len()] };
        let data = match self.dtype {
            DType::U8 => Data::U8(self.zeros.iter().map(|z| *z as u8).collect()),
            _ => Data::I8(self.zeros.iter().map(|z| *z as i8).collect()),
        };
        Ok(Tensor::new(self.dtype, shape, data)?.into())
    }
}

/// Conv, MatMul or Gemm over floats that were integers, multiplied as integers.
#[derive(Debug)]
struct Dequantized {
    float: Arc<dyn Operator>,
    product: Product,
    data: Grid,
    weight: Grid,
}

#[derive(Debug)]
enum Product {
    Conv(IntegerConv),
    Matrix { inner: IntegerMatMul, turned: bool },
}

impl Operator for Dequantized {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        self.float.infer(inputs)
    }

    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let (x, w) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
        let shape = float::shapes(&*self.float, inputs)?.remove(0);
        let x = self.data.integers(x, |_| 0)?;
        let (zx, zw) = (self.data.zero_tensor()?, self.weight.zero_tensor()?);
        let last = w.shape().last().copied().unwrap_or(1).max(1);
        let inner: usize = w.shape().iter().skip(1).product::<usize>().max(1);
        let (sums, feature): (Vec<i32>, Box<dyn Fn(usize) -> usize>) = match &self.product {
            Product::Conv(conv) => {
                let w = self.weight.integers(w, |i| i / inner)?;
                let (area, channels) = (shape[2..].iter().product::<usize>().max(1), shape[1].max(1));
                let sums = conv.sums(&[Some(&x), Some(&w), Some(&zx), Some(&zw)], &shape)?;
                (sums, Box::new(move |i| i / area % channels))
            }
            Product::Matrix { inner: product, turned } => {
                let w = match turned {
                    true => {
                        let w = self.weight.integers(w, |i| i / inner)?;
                        w.host()?.transposed(&[1, 0]).into()
                    }
                    false => self.weight.integers(w, |i| i % last)?,
                };
                let columns = shape.last().copied().unwrap_or(1).max(1);
                let sums = product.sums(&[Some(&x), Some(&w), Some(&zx), Some(&zw)])?;
                (sums, Box::new(move |i| i % columns))
            }
        };
        let scale = |f: usize| self.data.scales[0] * self.weight.scales[f % self.weight.scales.len()];
        // A bias is an integer on the grid of the sums.
        let bias = inputs.get(2).copied().flatten().map(|b| b.to_tensor()?.to_f32s()).transpose()?;
        let bias = |f: usize| match &bias {
            Some(b) if !b.is_empty() => (b[f % b.len()] / scale(f)).round_ties_even() as i32,
            _ => 0,
        };
        let y: Vec<f32> = sums
            .iter()
            .enumerate()
            .map(|(i, s)| {
                let f = feature(i);
                s.wrapping_add(bias(f)) as f32 * scale(f)
            })
            .collect();
        Ok(vec![float::Float::from_vec(y, shape, &Device::Cpu)?.into()])
    }
}

/// What the runtime does before it multiplies.
#[derive(Debug, Clone)]
pub enum Form {
    /// The operator's inputs are integers.
    Integers,
    /// They are floats that were integers; signed data become unsigned where `moved`.
    Dequantized {
        /// Grid of input 0.
        data: Grid,
        /// Grid of input 1.
        weight: Grid,
        /// Signed data are moved by 128.
        moved: bool,
    },
}

/// An operator of the default domain with sums of two products held in 16 bits, and where it notes what
/// saturates; none where it is no product.
///
/// # Errors
/// Those of attributes that cannot be.
pub fn saturating(
    name: &str,
    attributes: &Attributes,
    form: Form,
    float: &Arc<dyn Operator>,
) -> Result<Option<(Arc<dyn Operator>, Arc<Tally>)>> {
    let moved = matches!(&form, Form::Dequantized { moved: true, .. });
    let tally = Arc::new(Tally { moved, exchanged: name == "ConvInteger", ..Tally::default() });
    let matrix = |requantise| IntegerMatMul { tally: Some(tally.clone()), ..IntegerMatMul::new(requantise) };
    let conv = |requantise| -> Result<IntegerConv> {
        Ok(IntegerConv { tally: Some(tally.clone()), ..IntegerConv::parse(attributes, requantise)? })
    };
    let op: Arc<dyn Operator> = match (name, form) {
        ("MatMulInteger" | "QLinearMatMul", Form::Integers) => Arc::new(matrix(name == "QLinearMatMul")),
        ("ConvInteger" | "QLinearConv", Form::Integers) => Arc::new(conv(name == "QLinearConv")?),
        ("Conv" | "MatMul" | "Gemm", Form::Dequantized { data, weight, .. }) => {
            let bytes = |g: &Grid| BYTES.contains(&g.dtype) && !g.scales.is_empty() && !g.zeros.is_empty();
            if !bytes(&data) || !bytes(&weight) {
                return Err(Error::internal("SATURATION", "a grid is not of bytes"));
            }
            let product = match name {
                "Conv" => Product::Conv(conv(false)?),
                _ => Product::Matrix { inner: matrix(false), turned: attributes.int("transB", 0)? != 0 },
            };
            Arc::new(Dequantized { float: Arc::clone(float), product, data, weight })
        }
        _ => return Ok(None),
    };
    Ok(Some((op, tally)))
}
