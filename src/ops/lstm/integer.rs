//! DynamicQuantizeLSTM: weights in 8 bits, one scale a direction or one a column, and data quantised to
//! 8 bits as they come, all rows of a product with one range.

use super::super::float::{self, Float};
use super::super::integer::{at, centred, fits, scales, zeros};
use super::super::quantize::dynamic;
use super::super::{Barrier, Dim, Fact, Operator};
use super::Lstm;
use crate::error::Result;
use crate::kernels::integer::product;
use crate::tensor::Value;
use candle_core::Device;

/// As LSTM, with W `[directions, inputs, 4 hidden]` and R `[directions, hidden, 4 hidden]` in 8 bits, and
/// after the peepholes the scale and the zero point of each.
#[derive(Debug)]
pub(super) struct DynamicLstm(pub(super) Lstm);

/// The weights of one product, by direction.
struct Bytes {
    /// `[directions, 4 hidden, inputs]`, less their zero points.
    levels: Vec<i16>,
    scales: Vec<f32>,
    inner: usize,
    columns: usize,
}

impl Bytes {
    fn of(inputs: &[Option<&Value>], slot: usize, scale: usize) -> Result<Bytes> {
        let weight = super::super::input(inputs, slot)?.host()?;
        let [directions, inner, columns] = [0, 1, 2].map(|axis| weight.shape()[axis]);
        let (scales, zeros) = (scales(inputs, scale)?, zeros(inputs, scale + 1)?);
        for found in [scales.len(), zeros.len()].into_iter().filter(|n| *n != directions) {
            fits("a scale or zero point", found, directions * columns)?;
        }
        let one = |n: usize, i: usize| if n == directions * columns { i } else { i / columns };
        let whole = centred(weight, |i| {
            let (direction, column) = (i / (inner * columns).max(1), i % columns.max(1));
            at(&zeros, one(zeros.len(), direction * columns + column))
        })?;
        let mut levels = vec![0i16; whole.len()];
        let matrices =
            levels.chunks_exact_mut((inner * columns).max(1)).zip(whole.chunks((inner * columns).max(1)));
        for (turned, rows) in matrices {
            for (k, row) in rows.chunks_exact(columns.max(1)).enumerate() {
                row.iter().enumerate().for_each(|(j, w)| turned[j * inner + k] = *w);
            }
        }
        let scales = (0..directions * columns).map(|i| at(&scales, one(scales.len(), i))).collect();
        Ok(Bytes { levels, scales, inner, columns })
    }

    /// Rows of data by the weights of a direction.
    fn product(&self, n: usize, x: &Float) -> Result<Float> {
        let rows = x.dim(0)?;
        let data = float::elements::<f32>(x)?;
        let (bytes, scale, zero) = dynamic(&data);
        let bytes: Vec<i16> = bytes.iter().map(|b| i16::from(*b) - i16::from(zero)).collect();
        let mut sums = vec![0i32; rows * self.columns];
        let size = self.inner * self.columns;
        product(&bytes, &self.levels[n * size..(n + 1) * size], self.inner, &mut sums);
        let scales = &self.scales[n * self.columns..(n + 1) * self.columns];
        let spelled =
            sums.iter().enumerate().map(|(i, s)| *s as f32 * (scale * scales[i % self.columns])).collect();
        Ok(Float::from_vec(spelled, (rows, self.columns), &Device::Cpu)?)
    }
}

impl Operator for DynamicLstm {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        for slot in [8, 10] {
            super::super::input(inputs, slot)?;
        }
        self.0.facts(inputs, true)
    }
    fn macs(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Option<Dim> {
        self.0.products(inputs)
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shapes = float::shapes(self, inputs)?;
        let weights = [Bytes::of(inputs, 1, 8)?, Bytes::of(inputs, 2, 10)?];
        self.0.run(inputs, &shapes, &|slot, n, x| weights[slot - 1].product(n, x))
    }
    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Integers)
    }
}
