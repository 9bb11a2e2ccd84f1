//! Conversion between element types: Cast, CastLike. Floats to integers truncate and saturate (to those of
//! 4 and 2 bits they wrap, as in the standard's own cases), integers wrap, any number but zero is true,
//! text is read and written as decimals. 8-bit and 4-bit floats and complex numbers are not converted.

use super::{Barrier, Coupling, Fact, Keeps, Operator, Spec, Vjp, broadcast, elements, float};
use crate::error::{Error, Result};
use crate::tensor::{DType, Data, Tensor, Value, candle_dtype};
use candle_core::Tensor as Float;
use std::sync::Arc;

const TYPES: &[DType] = &[
    DType::F32,
    DType::F64,
    DType::F16,
    DType::BF16,
    DType::U8,
    DType::I8,
    DType::U16,
    DType::I16,
    DType::U32,
    DType::I32,
    DType::U64,
    DType::I64,
    DType::Bool,
    DType::Str,
    DType::U4,
    DType::I4,
    DType::U2,
    DType::I2,
];

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec::new("Cast", 6, TYPES, |a, _| {
        let number = a.opt_int("to")?.ok_or_else(|| {
            Error::invalid("ATTR-MISSING", "a required attribute is missing").field("attribute to")
        })?;
        let to = i32::try_from(number).ok().and_then(DType::from_onnx).ok_or_else(|| {
            Error::invalid("ATTR-RANGE", "no element type has this number")
                .field("attribute to")
                .found(number)
        })?;
        check(to)?;
        Ok(Arc::new(Cast { to: Some(to) }))
    }),
    Spec::new("CastLike", 15, TYPES, |_, _| Ok(Arc::new(Cast { to: None }))),
];

fn check(dtype: DType) -> Result<()> {
    match TYPES.contains(&dtype) {
        true => Ok(()),
        false => Err(Error::unsupported("CAST", "conversion to this type is not supported").found(dtype)),
    }
}

/// To a given type, or to that of the second input.
#[derive(Debug)]
struct Cast {
    to: Option<DType>,
}

/// The same number or text in another element type.
fn convert(x: &Value, to: DType) -> Result<Value> {
    let from = x.dtype();
    if from == to {
        return Ok(x.clone());
    }
    if let (Value::Float(x), Some(to)) = (x, candle_dtype(to)) {
        return Ok(x.to_dtype(to)?.into());
    }
    let tensor = x.to_tensor()?;
    let done = match (from, to) {
        (DType::Str, _) => from_text(&tensor, to)?,
        (_, DType::Str) => to_text(&tensor)?,
        (_, to) if to.is_packed() => pack(&tensor, to)?,
        _ => tensor.cast_to(to),
    };
    Value::load(&done)
}

/// Numbers without their fraction keep their low bits.
fn pack(x: &Tensor, to: DType) -> Result<Tensor> {
    let bytes: Vec<u8> = x.to_i64s()?.into_iter().map(|v| v as u8).collect();
    elements::pack(to, x.shape(), &bytes)
}

fn to_text(x: &Tensor) -> Result<Tensor> {
    let text: Vec<String> = match x.dtype() {
        DType::F64 => {
            x.to_f64s()?.into_iter().map(|v| decimal(v, format!("{v}"), format!("{v:e}"))).collect()
        }
        DType::F32 => {
            x.to_f32s()?.into_iter().map(|v| decimal(v.into(), format!("{v}"), format!("{v:e}"))).collect()
        }
        t if t.is_float() => {
            // The shortest decimal that is this half again is that of its exact value cut to 5 digits.
            x.to_f64s()?.into_iter().map(|v| shortest(v, t)).collect()
        }
        DType::U64 => x.to_vec::<u64>()?.into_iter().map(|v| v.to_string()).collect(),
        DType::Bool => x.to_i64s()?.into_iter().map(|v| if v != 0 { "1" } else { "0" }.to_string()).collect(),
        _ => x.to_i64s()?.into_iter().map(|v| v.to_string()).collect(),
    };
    Tensor::new(DType::Str, x.shape().to_vec(), Data::Str(text.into_iter().map(String::into_bytes).collect()))
}

/// The decimal of a half with the fewest digits that reads as the same half.
fn shortest(v: f64, dtype: DType) -> String {
    let same = |text: &str| {
        let read: f64 = text.parse().unwrap_or(f64::NAN);
        match dtype {
            DType::BF16 => half::bf16::from_f64(read) == half::bf16::from_f64(v),
            _ => half::f16::from_f64(read) == half::f16::from_f64(v),
        }
    };
    let digits = (0..8).map(|n| format!("{v:.n$e}")).find(|t| same(t)).unwrap_or_else(|| format!("{v:e}"));
    let short: f64 = digits.parse().unwrap_or(v);
    decimal(v, format!("{short}"), format!("{short:e}"))
}

/// A float as text: plain from 0.0001 up to 10^16, scientific beyond.
fn decimal(v: f64, plain: String, scientific: String) -> String {
    if v.is_nan() {
        return "NaN".into();
    }
    if v.is_infinite() {
        return if v > 0.0 { "INF" } else { "-INF" }.into();
    }
    if v != 0.0 && !(1e-4..1e16).contains(&v.abs()) {
        let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let (sign, digits) = match exponent.strip_prefix('-') {
            Some(d) => ('-', d),
            None => ('+', exponent),
        };
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

fn from_text(x: &Tensor, to: DType) -> Result<Tensor> {
    let data = x.data()?;
    let Data::Str(text) = &*data else {
        return Err(Error::internal("VALUE", "a string tensor holds other elements"));
    };
    let wrong = |t: &str| {
        Error::invalid("CAST-TEXT", "text is not a number")
            .found(t.chars().take(40).collect::<String>())
            .limit("a decimal number, NaN, INF or -INF")
    };
    let texts = text.iter().map(|t| String::from_utf8_lossy(t).trim().to_string());
    if to.is_int() {
        let whole = |t: String| -> Result<i128> {
            if let Ok(n) = t.parse::<i128>() {
                return Ok(n);
            }
            t.parse::<f64>().map(|v| v as i128).map_err(|_| wrong(&t))
        };
        let whole: Vec<i128> = texts.map(whole).collect::<Result<_>>()?;
        if to == DType::U64 {
            return Tensor::from_vec(x.shape().to_vec(), whole.into_iter().map(|n| n as u64).collect());
        }
        let wide: Vec<i64> = whole.into_iter().map(|n| n as i64).collect();
        return Ok(Tensor::from_vec(x.shape().to_vec(), wide)?.cast_to(to));
    }
    let numbers: Vec<f64> = texts.map(|t| t.parse::<f64>().map_err(|_| wrong(&t))).collect::<Result<_>>()?;
    let wide = Tensor::from_vec(x.shape().to_vec(), numbers)?;
    if to.is_packed() { pack(&wide, to) } else { Ok(wide.cast_to(to)) }
}

impl Cast {
    fn target(&self, like: Option<DType>) -> Result<DType> {
        let to = match (self.to, like) {
            (Some(to), _) | (None, Some(to)) => to,
            (None, None) => {
                return Err(Error::invalid("OP-INPUT", "a required input is missing").field("input[1]"));
            }
        };
        check(to)?;
        Ok(to)
    }
}

impl Operator for Cast {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        let to = self.target(inputs.get(1).copied().flatten().map(|f| f.dtype))?;
        let out = Fact { dtype: to, ..x.without_value() };
        let wide = |t: DType| matches!(t, DType::I64 | DType::I32);
        if wide(x.dtype) && wide(to) {
            return Ok(vec![broadcast::content(to, &inputs[..1], |d| Some(d[0].clone()))?]);
        }
        Ok(vec![out])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let to = self.target(inputs.get(1).copied().flatten().map(Value::dtype))?;
        let x = super::input(inputs, 0)?;
        float::size(x.shape())?;
        Ok(vec![convert(x, to)?])
    }
    fn differentiable(&self) -> bool {
        self.to.is_none_or(DType::is_float)
    }
    fn barrier(&self) -> Option<Barrier> {
        (!self.differentiable()).then_some(Barrier::Whole)
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    /// Between floats the gradient is converted back; nothing flows through other types.
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let mut out = vec![None; v.inputs.len()];
        if let (Some(grad), true, Value::Float(x)) = (&v.grads[0], v.needs[0], super::input(v.inputs, 0)?) {
            out[0] = Some(grad.to_dtype(x.dtype())?);
        }
        Ok(out)
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        broadcast::couple(&inputs[..1], &outputs[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cast(x: Tensor, to: DType) -> Tensor {
        convert(&Value::load(&x).unwrap(), to).unwrap().to_tensor().unwrap()
    }

    #[test]
    fn text_reads_back_as_the_same_number() {
        let values = vec![0.1f32, -2.5, 1e-7, 3.0, 1e20, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0];
        let text = cast(Tensor::from_vec(vec![9], values.clone()).unwrap(), DType::Str);
        let Data::Str(found) = &*text.data().unwrap() else { panic!() };
        let found: Vec<String> = found.iter().map(|t| String::from_utf8(t.clone()).unwrap()).collect();
        assert_eq!(found, ["0.1", "-2.5", "1e-07", "3.0", "1e+20", "NaN", "INF", "-INF", "0.0"]);
        let back = cast(text, DType::F32).to_vec::<f32>().unwrap();
        for (a, b) in back.iter().zip(&values) {
            assert!(a == b || (a.is_nan() && b.is_nan()));
        }
        let half = Tensor::from_vec(vec![1], vec![half::f16::from_f32(0.1)]).unwrap();
        let Data::Str(text) = &*cast(half, DType::Str).data().unwrap() else { panic!() };
        assert_eq!(text[0], b"0.1");
        let words = Tensor::new(DType::Str, vec![1], Data::Str(vec![b"one".to_vec()])).unwrap();
        assert!(convert(&words.into(), DType::F32).is_err());
    }

    #[test]
    fn narrow_integers_pack_and_unpack() {
        let x = Tensor::from_vec(vec![5], vec![-9.0f32, -8.0, 0.6, 7.4, 20.0]).unwrap();
        let y = cast(x, DType::I4);
        assert_eq!(y.dtype(), DType::I4);
        assert_eq!(cast(y, DType::I64).to_vec::<i64>().unwrap(), [7, -8, 0, 7, 4]);
        let x = Tensor::from_vec(vec![3], vec![1i32, 3, 4]).unwrap();
        assert_eq!(cast(cast(x, DType::U2), DType::I32).to_vec::<i32>().unwrap(), [1, 3, 0]);
    }

    #[test]
    fn shapes_stay_symbolic_between_integer_types() {
        let x = Fact::of_dims(DType::I64, vec![crate::ops::Dim::symbol("n")], true);
        let y = Cast { to: Some(DType::I32) }.infer(&[Some(&x)]).unwrap().remove(0);
        assert_eq!((y.dtype, y.rank(), y.dims), (DType::I32, Some(0), x.dims));
    }
}
