//! QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear: `q = saturate(round(x / s) + z)`, half to
//! even, and `x = (q - z) * s`, with one scale, one per index of an axis, or one per block of an axis.

use super::{Attributes, Barrier, Coupling, Dim, Fact, LAST_OPSET, Operator, Port, Spec};
use crate::error::{Error, Result};
use crate::tensor::{DType, Data, Tensor, Value, element_count};
use candle_core::{Device, Tensor as Float};
use rayon::prelude::*;
use std::sync::Arc;

const FLOATS: &[DType] = &[DType::F32];
const INTS: &[DType] =
    &[DType::U8, DType::I8, DType::U16, DType::I16, DType::I32, DType::U4, DType::I4, DType::U2, DType::I2];

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec {
        domain: "",
        name: "QuantizeLinear",
        opsets: (10, LAST_OPSET),
        dtypes: FLOATS,
        parse: QuantizeLinear::parse,
    },
    Spec {
        domain: "",
        name: "DequantizeLinear",
        opsets: (10, LAST_OPSET),
        dtypes: INTS,
        parse: DequantizeLinear::parse,
    },
    Spec {
        domain: "",
        name: "DynamicQuantizeLinear",
        opsets: (11, LAST_OPSET),
        dtypes: FLOATS,
        parse: DynamicQuantizeLinear::parse,
    },
];

/// Smallest and largest value of an integer type that scales map to.
fn bounds(dtype: DType) -> Result<(f32, f32)> {
    Ok(match dtype {
        DType::U8 => (0.0, 255.0),
        DType::I8 => (-128.0, 127.0),
        DType::U16 => (0.0, 65535.0),
        DType::I16 => (-32768.0, 32767.0),
        DType::U4 => (0.0, 15.0),
        DType::I4 => (-8.0, 7.0),
        DType::U2 => (0.0, 3.0),
        DType::I2 => (-2.0, 1.0),
        other => {
            return Err(
                Error::unsupported("OP-TYPE", "quantised values of this type are not supported").found(other)
            );
        }
    })
}

/// Where the scale of element `i` lies.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// Elements inside one index of the axis.
    inner: usize,
    /// Size of the axis.
    size: usize,
    /// Indices of the axis that share a scale.
    block: usize,
    /// Scales along the axis.
    scales: usize,
    /// Whether scales vary with the position inside and outside the axis too (blocked form).
    dense: bool,
}

impl Layout {
    fn of(shape: &[usize], scale: &[usize], axis: i64, block: i64) -> Result<Layout> {
        if element_count(scale) == Some(1) && (scale.len() < 2 || shape.len() != scale.len()) {
            return Ok(Layout { inner: 1, size: 1, block: 1, scales: 1, dense: false });
        }
        let axis = super::axis(axis, shape.len())?;
        let inner = shape[axis + 1..].iter().product();
        let wrong = || {
            Error::invalid("OP-SCALE", "scale does not fit the tensor")
                .found(format!("{scale:?}"))
                .limit(format!("{shape:?} along axis {axis}"))
        };
        if scale.len() == 1 {
            if scale[0] != shape[axis] {
                return Err(wrong());
            }
            return Ok(Layout { inner, size: shape[axis], block: 1, scales: scale[0], dense: false });
        }
        let same = scale.len() == shape.len() && (0..shape.len()).all(|i| i == axis || scale[i] == shape[i]);
        let block = usize::try_from(block).unwrap_or(0);
        if !same || block == 0 || shape[axis].div_ceil(block) != scale[axis] {
            return Err(wrong());
        }
        Ok(Layout { inner, size: shape[axis], block, scales: scale[axis], dense: true })
    }

    /// Index of the scale of element `i`.
    fn at(self, i: usize) -> usize {
        let along = (i / self.inner) % self.size;
        match self.dense {
            false => along % self.scales,
            true => {
                let outer = i / (self.inner * self.size);
                (outer * self.scales + along / self.block) * self.inner + i % self.inner
            }
        }
    }

    fn scalar(self) -> bool {
        self.scales == 1 && !self.dense
    }
}

fn floats(value: &Value) -> Result<Vec<f32>> {
    Ok(value.float()?.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?)
}

/// Integer values as the representation of `dtype`, packed where it is.
fn store(dtype: DType, values: &[f32]) -> Data {
    match dtype {
        DType::U8 => Data::U8(values.iter().map(|v| *v as u8).collect()),
        DType::I8 => Data::I8(values.iter().map(|v| *v as i8).collect()),
        DType::U16 => Data::U16(values.iter().map(|v| *v as u16).collect()),
        DType::I16 => Data::I16(values.iter().map(|v| *v as i16).collect()),
        packed => {
            let bits = packed.bits() as usize;
            let per = 8 / bits;
            let mask = (1u8 << bits) - 1;
            let byte = |c: &[f32]| {
                c.iter().enumerate().fold(0u8, |b, (i, v)| b | ((*v as i8 as u8 & mask) << (i * bits)))
            };
            Data::U8(values.chunks(per).map(byte).collect())
        }
    }
}

fn zero_points(value: Option<&Value>) -> Result<Option<Vec<f32>>> {
    value.map(|z| z.host()?.to_f32s()).transpose()
}

/// Ties scale and zero point of one axis to the tensor's axis, everything else through.
fn couple(inputs: &[Option<&Fact>], outputs: &[Fact], axis: i64) -> Coupling {
    let mut coupling = Coupling::default();
    let Some(shape) = inputs.first().copied().flatten().and_then(|f| f.shape.as_ref()) else {
        return coupling;
    };
    if outputs.first().and_then(Fact::rank) != Some(shape.len()) {
        return coupling;
    }
    for a in 0..shape.len() {
        coupling.same((Port::In(0), a), (Port::Out(0), a));
    }
    if let Ok(axis) = super::axis(axis, shape.len()) {
        for slot in 1..inputs.len() {
            if inputs[slot]
                .is_some_and(|f| f.rank() == Some(1) && f.shape.as_ref().is_some_and(|s| s[0] == shape[axis]))
            {
                coupling.same((Port::In(slot), 0), (Port::In(0), axis));
            }
        }
    }
    coupling
}

#[derive(Debug)]
struct QuantizeLinear {
    axis: i64,
    block: i64,
    output: Option<DType>,
}

impl QuantizeLinear {
    fn parse(a: &Attributes, _: i64) -> Result<Arc<dyn Operator>> {
        let output = match a.int("output_dtype", 0)? {
            0 => None,
            n => Some(i32::try_from(n).ok().and_then(DType::from_onnx).ok_or_else(|| {
                Error::invalid("ATTR-VALUE", "no such element type").field("attribute output_dtype").found(n)
            })?),
        };
        Ok(Arc::new(QuantizeLinear { axis: a.int("axis", 1)?, block: a.int("block_size", 0)?, output }))
    }
    fn dtype(&self, zero: Option<DType>) -> DType {
        zero.or(self.output).unwrap_or(DType::U8)
    }
}

impl Operator for QuantizeLinear {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        super::input(inputs, 1)?;
        let dtype = self.dtype(inputs.get(2).copied().flatten().map(|f| f.dtype));
        bounds(dtype)?;
        Ok(vec![Fact { dtype, ..x.without_value() }])
    }

    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let (x, scale) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
        let zero = inputs.get(2).copied().flatten();
        let dtype = self.dtype(zero.map(Value::dtype));
        let (low, high) = bounds(dtype)?;
        let layout = Layout::of(x.shape(), scale.shape(), self.axis, self.block)?;
        let (values, scales, zeros) = (floats(x)?, floats(scale)?, zero_points(zero)?);
        if zeros.as_ref().is_some_and(|z| z.len() != scales.len()) {
            return Err(Error::invalid("OP-SCALE", "zero point and scale differ in shape"));
        }
        let quantize = |x: f32, s: usize| {
            let z = zeros.as_ref().map_or(0.0, |z| z[s]);
            ((x / scales[s]).round_ties_even() + z).clamp(low, high)
        };
        let result: Vec<f32> = match layout.scalar() {
            true => values.par_iter().with_min_len(1 << 14).map(|x| quantize(*x, 0)).collect(),
            false => values
                .par_iter()
                .enumerate()
                .with_min_len(1 << 14)
                .map(|(i, x)| quantize(*x, layout.at(i)))
                .collect(),
        };
        Ok(vec![Tensor::new(dtype, x.shape().to_vec(), store(dtype, &result))?.into()])
    }

    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Integers)
    }

    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        couple(inputs, outputs, self.axis)
    }
}

#[derive(Debug)]
struct DequantizeLinear {
    axis: i64,
    block: i64,
}

impl DequantizeLinear {
    fn parse(a: &Attributes, _: i64) -> Result<Arc<dyn Operator>> {
        Ok(Arc::new(DequantizeLinear { axis: a.int("axis", 1)?, block: a.int("block_size", 0)? }))
    }
}

impl Operator for DequantizeLinear {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (x, scale) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
        if scale.dtype != DType::F32 {
            return Err(
                Error::unsupported("OP-TYPE", "scales of this type are not supported").found(scale.dtype)
            );
        }
        Ok(vec![Fact { dtype: scale.dtype, ..x.without_value() }])
    }

    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let (x, scale) = (super::input(inputs, 0)?.host()?, super::input(inputs, 1)?);
        let layout = Layout::of(x.shape(), scale.shape(), self.axis, self.block)?;
        let (scales, zeros) = (floats(scale)?, zero_points(inputs.get(2).copied().flatten())?);
        if zeros.as_ref().is_some_and(|z| z.len() != scales.len()) {
            return Err(Error::invalid("OP-SCALE", "zero point and scale differ in shape"));
        }
        let zero = |s: usize| zeros.as_ref().map_or(0.0, |z| z[s]);
        let go = |q: f32, s: usize| (q - zero(s)) * scales[s];
        // i32 exceeds the integers of f32, so its conversion comes last.
        let result: Vec<f32> = match &*x.data()? {
            Data::I32(v) if zeros.is_none() || layout.scalar() => {
                let z = |s: usize| zero(s) as i64;
                v.iter()
                    .enumerate()
                    .map(|(i, q)| (i64::from(*q) - z(layout.at(i))) as f32 * scales[layout.at(i)])
                    .collect()
            }
            _ => {
                let values = x.to_f32s()?;
                match layout.scalar() {
                    true => values.par_iter().with_min_len(1 << 14).map(|q| go(*q, 0)).collect(),
                    false => values
                        .par_iter()
                        .enumerate()
                        .with_min_len(1 << 14)
                        .map(|(i, q)| go(*q, layout.at(i)))
                        .collect(),
                }
            }
        };
        Ok(vec![Float::from_vec(result, x.shape(), &Device::Cpu)?.into()])
    }

    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Integers)
    }

    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        couple(inputs, outputs, self.axis)
    }
}

/// Bytes of data whose range is found as they come, with the scale and the zero point that they have.
pub(super) fn dynamic(values: &[f32]) -> (Vec<u8>, f32, u8) {
    let (min, max) = values.iter().fold((0f32, 0f32), |(a, b), x| (a.min(*x), b.max(*x)));
    let scale = (max - min) / 255.0;
    let (scale, zero) = match scale > 0.0 {
        true => (scale, (-min / scale).round_ties_even().clamp(0.0, 255.0)),
        false => (if max == min { 0.0 } else { scale }, 0.0),
    };
    let quantize = |x: &f32| ((x / scale).round_ties_even() + zero).clamp(0.0, 255.0) as u8;
    (values.par_iter().with_min_len(1 << 14).map(quantize).collect(), scale, zero as u8)
}

#[derive(Debug)]
struct DynamicQuantizeLinear;

impl DynamicQuantizeLinear {
    fn parse(_: &Attributes, _: i64) -> Result<Arc<dyn Operator>> {
        Ok(Arc::new(DynamicQuantizeLinear))
    }
}

impl Operator for DynamicQuantizeLinear {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        let scalar = |dtype| Fact::new(dtype, Vec::<Dim>::new());
        Ok(vec![Fact { dtype: DType::U8, ..x.without_value() }, scalar(DType::F32), scalar(DType::U8)])
    }

    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let x = super::input(inputs, 0)?;
        let values = floats(x)?;
        let (q, scale, zero) = dynamic(&values);
        Ok(vec![
            Tensor::from_vec(x.shape().to_vec(), q)?.into(),
            Float::from_vec(vec![scale], (), &Device::Cpu)?.into(),
            Tensor::scalar(zero).into(),
        ])
    }
    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Integers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f(shape: &[usize], v: Vec<f32>) -> Value {
        Value::load(&Tensor::from_vec(shape.to_vec(), v).unwrap()).unwrap()
    }

    #[test]
    fn quantises_half_to_even_and_saturates_along_an_axis() {
        let op = QuantizeLinear { axis: 1, block: 0, output: None };
        let (x, s) = (f(&[2, 2], vec![0.5, 10.0, 1.5, -900.0]), f(&[2], vec![1.0, 4.0]));
        let z: Value = Tensor::from_vec(vec![2], vec![0i8, 1]).unwrap().into();
        let y = op.eval(&[Some(&x), Some(&s), Some(&z)]).unwrap();
        assert_eq!(y[0].host().unwrap().to_vec::<i8>().unwrap(), [0, 3, 2, -128]);
    }

    #[test]
    fn blocks_share_a_scale_and_wrong_scales_are_refused() {
        let op = DequantizeLinear { axis: 0, block: 2 };
        let q: Value = Tensor::from_vec(vec![3, 2], vec![1i8, 2, 3, 4, 5, 6]).unwrap().into();
        let s = f(&[2, 2], vec![1.0, 10.0, 100.0, 1000.0]);
        let y = op.eval(&[Some(&q), Some(&s)]).unwrap();
        assert_eq!(y[0].to_tensor().unwrap().to_vec::<f32>().unwrap(), [1.0, 20.0, 3.0, 40.0, 500.0, 6000.0]);
        let s = f(&[5], vec![1.0; 5]);
        assert_eq!(op.eval(&[Some(&q), Some(&s)]).unwrap_err().code(), "OP-SCALE");
    }

    #[test]
    fn dynamic_ranges_hold_zero() {
        let y = DynamicQuantizeLinear.eval(&[Some(&f(&[3], vec![1.0, 2.0, 4.0]))]).unwrap();
        let scale = y[1].to_tensor().unwrap().to_vec::<f32>().unwrap()[0];
        assert!((scale - 4.0 / 255.0).abs() < 1e-9);
        assert_eq!(y[2].ints().unwrap(), [0]);
    }
}
