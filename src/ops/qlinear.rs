//! ONNX Runtime's operators on quantised tensors: `QLinear...`, which compute an operator on what integers
//! stand for and quantise the result, and products of integers with a float result.

use super::integer::{at, centred, fits, requantise, scales, zeros};
use super::{Attributes, Barrier, Dim, Fact, Operator, Parse, Spec};
use crate::error::{Error, Result};
use crate::kernels::integer;
use crate::tensor::{DType, Data, Tensor, Value};
use candle_core::{Device, Tensor as Float};
use rayon::prelude::*;
use std::sync::Arc;

const BYTES: &[DType] = &[DType::U8, DType::I8];
/// QLinearConcat begins with the scale of its output.
const SCALE: &[DType] = &[DType::F32];

const fn spec(name: &'static str, dtypes: &'static [DType], parse: Parse) -> Spec {
    Spec { domain: "com.microsoft", name, opsets: (1, 1), dtypes, parse }
}

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    spec("QLinearAdd", BYTES, |a, _| parse("Add", &[0, 3], 6, a)),
    spec("QLinearMul", BYTES, |a, _| parse("Mul", &[0, 3], 6, a)),
    spec("QLinearGlobalAveragePool", BYTES, |a, _| parse("GlobalAveragePool", &[0], 3, a)),
    spec("QLinearAveragePool", BYTES, |a, _| parse("AveragePool", &[0], 3, a)),
    spec("QLinearSigmoid", BYTES, |a, _| parse("Sigmoid", &[0], 3, a)),
    spec("QLinearLeakyRelu", BYTES, |a, _| parse("LeakyRelu", &[0], 3, a)),
    spec("QLinearConcat", SCALE, |a, _| parse("Concat", &[], 0, a)),
    spec("QGemm", BYTES, |a, _| Product::gemm(a)),
    spec("MatMulIntegerToFloat", BYTES, |_, _| Ok(Arc::new(Product { matrix: None }))),
];

fn parse(inner: &str, data: &[usize], output: usize, a: &Attributes) -> Result<Arc<dyn Operator>> {
    if a.int("channels_last", 0)? != 0 {
        return Err(Error::unsupported("ATTR-VALUE", "channels_last is not supported")
            .field("attribute channels_last"));
    }
    let mut plain = a.clone();
    plain.remove("channels_last");
    let spec = super::lookup("", inner, 13).ok_or_else(|| Error::internal("OP-INNER", "no such operator"))?;
    Ok(Arc::new(QLinear { inner: (spec.parse)(&plain, 13)?, data: data.to_vec(), output }))
}

/// A float operator between grids.
#[derive(Debug)]
struct QLinear {
    inner: Arc<dyn Operator>,
    /// Inputs that hold integers, each followed by its scale and its zero point; every third one from 2 on
    /// where empty.
    data: Vec<usize>,
    /// Input that holds the scale of the result, followed by its zero point.
    output: usize,
}

impl QLinear {
    fn slots(&self, inputs: usize) -> Vec<usize> {
        if self.data.is_empty() { (2..inputs).step_by(3).collect() } else { self.data.clone() }
    }

    /// The element type of the result: that of its zero point, or of the data.
    fn dtype(&self, zero: Option<DType>, data: DType) -> Result<DType> {
        let dtype = zero.unwrap_or(data);
        if BYTES.contains(&dtype) {
            return Ok(dtype);
        }
        Err(Error::unsupported("OP-TYPE", "only 8-bit integers are supported").found(dtype))
    }
}

/// What integers stand for.
fn floats(inputs: &[Option<&Value>], slot: usize) -> Result<Value> {
    let x = super::input(inputs, slot)?.host()?;
    let (scale, zero) = (scales(inputs, slot + 1)?, zeros(inputs, slot + 2)?);
    fits("a scale", scale.len(), 1)?;
    fits("a zero point", zero.len(), 1)?;
    let scale = scale[0];
    let values: Vec<f32> = centred(x, |_| zero[0])?.into_par_iter().map(|q| f32::from(q) * scale).collect();
    Ok(Float::from_vec(values, x.shape(), &Device::Cpu)?.into())
}

impl Operator for QLinear {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let slots = self.slots(inputs.len());
        let data = slots.iter().map(|s| super::input(inputs, *s)).collect::<Result<Vec<_>>>()?;
        let first = data.first().ok_or_else(|| Error::invalid("OP-INPUT", "a required input is missing"))?;
        let zero = inputs.get(self.output + 1).copied().flatten().map(|f| f.dtype);
        let dtype = self.dtype(zero, first.dtype)?;
        let floats: Vec<Fact> =
            data.iter().map(|f| Fact { dtype: DType::F32, ..f.without_value() }).collect();
        let outputs = self.inner.infer(&floats.iter().map(Some).collect::<Vec<_>>())?;
        Ok(outputs.into_iter().take(1).map(|f| Fact { dtype, ..f.without_value() }).collect())
    }

    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let slots = self.slots(inputs.len());
        let data = slots.iter().map(|s| floats(inputs, *s)).collect::<Result<Vec<_>>>()?;
        let result = self.inner.eval(&data.iter().map(Some).collect::<Vec<_>>())?.remove(0);
        let first =
            *slots.first().ok_or_else(|| Error::invalid("OP-INPUT", "a required input is missing"))?;
        let zero = inputs.get(self.output + 1).copied().flatten().map(Value::dtype);
        let dtype = self.dtype(zero, super::input(inputs, first)?.dtype())?;
        let (scale, zero) = (scales(inputs, self.output)?[0], f32::from(zeros(inputs, self.output + 1)?[0]));
        let values = result.to_tensor()?.to_f32s()?;
        let (low, high) = if dtype == DType::U8 { (0.0, 255.0) } else { (-128.0, 127.0) };
        let level = |x: &f32| ((x / scale).round_ties_even() + zero).clamp(low, high);
        let data = match dtype {
            DType::U8 => Data::U8(values.par_iter().map(|x| level(x) as u8).collect()),
            _ => Data::I8(values.par_iter().map(|x| level(x) as i8).collect()),
        };
        Ok(vec![Tensor::new(dtype, result.shape().to_vec(), data)?.into()])
    }

    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Integers)
    }
}

/// Attributes of QGemm.
#[derive(Debug, Clone, Copy)]
struct Matrix {
    transposed: [bool; 2],
    alpha: f32,
}

/// QGemm (a, scale, zero, b, scale, zero, c, y scale, y zero), and MatMulIntegerToFloat (a, b, a scale, b scale,
/// a zero, b zero, bias) with a matrix b.
#[derive(Debug)]
struct Product {
    matrix: Option<Matrix>,
}

/// Inputs of b, the scales and zero points of both, and the bias.
struct Slots {
    b: usize,
    scales: [usize; 2],
    zeros: [usize; 2],
    bias: usize,
}

impl Product {
    fn gemm(a: &Attributes) -> Result<Arc<dyn Operator>> {
        let flag = |name| Ok::<bool, Error>(a.int(name, 0)? != 0);
        let matrix = Matrix { transposed: [flag("transA")?, flag("transB")?], alpha: a.float("alpha", 1.0)? };
        Ok(Arc::new(Product { matrix: Some(matrix) }))
    }

    fn slots(&self) -> Slots {
        match self.matrix {
            Some(_) => Slots { b: 3, scales: [1, 4], zeros: [2, 5], bias: 6 },
            None => Slots { b: 1, scales: [2, 3], zeros: [4, 5], bias: 6 },
        }
    }

    fn turned(&self, which: usize) -> bool {
        self.matrix.is_some_and(|m| m.transposed[which])
    }

    /// Type of the result: floats without a scale of it.
    fn dtype(&self, zero: Option<DType>) -> DType {
        match self.matrix {
            Some(_) => zero.unwrap_or(DType::F32),
            None => DType::F32,
        }
    }
}

impl Operator for Product {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let slots = self.slots();
        let (a, b) = (super::input(inputs, 0)?, super::input(inputs, slots.b)?);
        let dtype = self.dtype(inputs.get(8).copied().flatten().map(|f| f.dtype));
        let (Some(x), Some(y)) = (&a.shape, &b.shape) else { return Ok(vec![Fact::unranked(dtype)]) };
        let turn = |shape: &[Dim], turn: bool| match (turn, shape) {
            (true, [m, n]) => vec![n.clone(), m.clone()],
            _ => shape.to_vec(),
        };
        if self.matrix.is_some() && (x.len() != 2 || y.len() != 2) || y.len() != 2 || x.is_empty() {
            return Err(Error::unsupported("OP-SHAPE", "only products with a matrix are supported"));
        }
        let shape = super::matmul::product_shape(&turn(x, self.turned(0)), &turn(y, self.turned(1)))?;
        Ok(vec![Fact::new(dtype, shape)])
    }

    fn macs(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Option<Dim> {
        let b = inputs.get(self.slots().b)?.as_ref()?.shape.as_ref()?;
        Some(outputs.first()?.elements()? * b.get(usize::from(self.turned(1)))?.clone())
    }

    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let slots = self.slots();
        let shape = super::float::shapes(self, inputs)?.remove(0);
        let (a, b) = (super::input(inputs, 0)?.host()?, super::input(inputs, slots.b)?.host()?);
        let [za, zb] = [zeros(inputs, slots.zeros[0])?, zeros(inputs, slots.zeros[1])?];
        let [sa, sb] = [scales(inputs, slots.scales[0])?, scales(inputs, slots.scales[1])?];
        let columns = shape.last().copied().unwrap_or(1);
        fits("the zero point of a", za.len(), 1)?;
        fits("the scale of a", sa.len(), 1)?;
        fits("the zero point of b", zb.len(), columns)?;
        fits("the scale of b", sb.len(), columns)?;
        // a row by row, b column by column.
        let a = if self.turned(0) { a.transposed(&[1, 0]) } else { a.clone() };
        let b = if self.turned(1) { b.clone() } else { b.transposed(&[1, 0]) };
        let k = b.shape().last().copied().unwrap_or(0);
        let (a, b) = (centred(&a, |_| za[0])?, centred(&b, |i| at(&zb, i / k.max(1)))?);
        let mut sums = vec![0i32; shape.iter().product()];
        integer::product(&a, &b, k, &mut sums);
        let alpha = self.matrix.map_or(1.0, |m| m.alpha);
        let factor = |i: usize| alpha * sa[0] * at(&sb, i % columns.max(1));
        let bias = inputs.get(slots.bias).copied().flatten();
        let y = if self.matrix.is_some() { inputs.get(7).copied().flatten() } else { None };
        if let (Some(_), Some(c)) = (self.matrix, bias) {
            let c = c.host()?.to_vec::<i32>()?;
            let rows = sums.len() / columns.max(1);
            let fit = c.len() == 1 || c.len() == columns || c.len() == sums.len() || c.len() == rows;
            if !fit || c.is_empty() {
                return Err(Error::invalid("OP-SHAPE", "the bias does not fit the product").found(c.len()));
            }
            let per_row = c.len() == rows && c.len() != columns && rows > 1;
            let of = |i: usize| if per_row { c[i / columns.max(1)] } else { c[i % c.len()] };
            sums.par_iter_mut().enumerate().for_each(|(i, s)| *s = s.wrapping_add(of(i)));
        }
        if y.is_some() {
            let sy = scales(inputs, 7)?[0];
            let zero = inputs.get(8).copied().flatten();
            let dtype = zero.map_or(DType::U8, Value::dtype);
            return Ok(vec![requantise(&sums, |i| factor(i) / sy, zeros(inputs, 8)?[0], dtype, shape)?]);
        }
        let added = match (self.matrix, bias) {
            (None, Some(bias)) => bias.to_tensor()?.to_f32s()?,
            _ => vec![],
        };
        let add = |i: usize| if added.is_empty() { 0.0 } else { added[i % added.len()] };
        let values: Vec<f32> =
            sums.par_iter().enumerate().map(|(i, s)| *s as f32 * factor(i) + add(i)).collect();
        Ok(vec![Float::from_vec(values, shape, &Device::Cpu)?.into()])
    }

    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Integers)
    }
}
