//! Elements of values of any type as slices: one generic body serves every element type. Values enter,
//! slices of a Rust type are lent out, a value of the same element type leaves. Four- and two-bit
//! elements are lent as bytes, complex numbers as pairs, strings as byte vectors.

use super::Fact;
use crate::error::{Error, Result};
use crate::tensor::{DType, Data, Element, Tensor, Value};
use candle_core::{Device, Storage, Tensor as Float};

/// The Rust type behind the elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Rust {
    F32,
    F64,
    F16,
    BF16,
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    Str,
    Pair32,
    Pair64,
    Packed,
}

/// The Rust type of the elements of all `values`, which must have one element type.
pub fn rust_type(values: &[&Value]) -> Result<Rust> {
    let dtype = values.first().map_or(DType::F32, |v| v.dtype());
    if let Some(other) = values.iter().find(|v| v.dtype() != dtype) {
        return Err(differing(dtype, other.dtype()));
    }
    Ok(match dtype {
        DType::F32 => Rust::F32,
        DType::F64 => Rust::F64,
        DType::F16 => Rust::F16,
        DType::BF16 => Rust::BF16,
        DType::I8 => Rust::I8,
        DType::U16 => Rust::U16,
        DType::I16 => Rust::I16,
        DType::U32 => Rust::U32,
        DType::I32 => Rust::I32,
        DType::U64 => Rust::U64,
        DType::I64 => Rust::I64,
        DType::Str => Rust::Str,
        DType::C64 => Rust::Pair32,
        DType::C128 => Rust::Pair64,
        t if t.is_packed() => Rust::Packed,
        _ => Rust::U8,
    })
}

/// The error for operands of different types.
pub fn differing(a: DType, b: DType) -> Error {
    Error::invalid("OP-TYPE", "operands differ in type").found(format!("{a} and {b}"))
}

/// The error for an element type that an operator does not take.
pub fn refused(dtype: DType) -> Error {
    Error::invalid("OP-TYPE", "the operator is not defined for this element type").found(dtype)
}

/// Checks that all present inputs have the type of the first and gives it.
pub fn common_type(inputs: &[Option<&Fact>]) -> Result<DType> {
    let first = super::input(inputs, 0)?.dtype;
    match inputs.iter().flatten().find(|f| f.dtype != first) {
        Some(other) => Err(differing(first, other.dtype)),
        None => Ok(first),
    }
}

/// Lends float elements.
pub fn floats<T: candle_core::WithDType, R>(
    values: &[&Value],
    f: impl FnOnce(&[&[T]]) -> Result<R>,
) -> Result<R> {
    let held: Vec<Float> = values.iter().map(|v| Ok(v.float()?.contiguous()?)).collect::<Result<_>>()?;
    let guards: Vec<_> = held.iter().map(|t| t.storage_and_layout()).collect();
    let slices: Vec<&[T]> = guards
        .iter()
        .zip(&held)
        .map(|((storage, layout), t)| match &**storage {
            Storage::Cpu(s) => Ok(&s.as_slice::<T>()?[layout.start_offset()..][..t.elem_count()]),
            _ => Err(Error::internal("VALUE", "a tensor does not live on the CPU")),
        })
        .collect::<Result<_>>()?;
    f(&slices)
}

/// Lends elements of a host type.
pub fn hosts<T: Element, R>(values: &[&Value], f: impl FnOnce(&[&[T]]) -> Result<R>) -> Result<R> {
    let data = values.iter().map(|v| v.host()?.data()).collect::<Result<Vec<_>>>()?;
    let wrong = || Error::internal("VALUE", "a tensor holds other elements than its type says");
    let slices: Vec<&[T]> = data.iter().map(|d| T::view(d).ok_or_else(wrong)).collect::<Result<_>>()?;
    f(&slices)
}

/// Lends strings.
pub fn strings<R>(values: &[&Value], f: impl FnOnce(&[&[Vec<u8>]]) -> Result<R>) -> Result<R> {
    let data = values.iter().map(|v| v.host()?.data()).collect::<Result<Vec<_>>>()?;
    let slices: Vec<&[Vec<u8>]> = data
        .iter()
        .map(|d| match &**d {
            Data::Str(v) => Ok(v.as_slice()),
            _ => Err(Error::internal("VALUE", "a string tensor holds other elements")),
        })
        .collect::<Result<_>>()?;
    f(&slices)
}

/// Lends complex numbers as pairs of `T`.
pub fn pairs<T: Element, R>(values: &[&Value], f: impl FnOnce(&[&[[T; 2]]]) -> Result<R>) -> Result<R> {
    hosts::<T, R>(values, |v| {
        let cast: Vec<&[[T; 2]]> = v.iter().map(|s| bytemuck::cast_slice(s)).collect();
        f(&cast)
    })
}

/// Lends packed elements, one a byte, as unsigned bits.
pub fn packed<R>(values: &[&Value], f: impl FnOnce(&[&[u8]]) -> Result<R>) -> Result<R> {
    let spread: Vec<Vec<u8>> = values.iter().map(|v| unpack(v.host()?)).collect::<Result<_>>()?;
    let slices: Vec<&[u8]> = spread.iter().map(Vec::as_slice).collect();
    f(&slices)
}

fn unpack(t: &Tensor) -> Result<Vec<u8>> {
    let bits = t.dtype().bits();
    let Data::U8(bytes) = &*t.data()? else {
        return Err(Error::internal("VALUE", "a packed tensor does not hold bytes"));
    };
    let mask = (1u8 << bits) - 1;
    let mut out: Vec<u8> =
        bytes.iter().flat_map(|b| (0..8 / bits).map(move |i| (b >> (i * bits)) & mask)).collect();
    out.truncate(t.len());
    Ok(out)
}

/// A tensor of a packed type from one element a byte.
pub fn pack(dtype: DType, shape: &[usize], elements: &[u8]) -> Result<Tensor> {
    let bits = dtype.bits();
    let bytes = elements
        .chunks((8 / bits) as usize)
        .map(|c| {
            c.iter().enumerate().fold(0u8, |b, (i, v)| b | ((v & ((1u8 << bits) - 1)) << (i as u32 * bits)))
        })
        .collect();
    Tensor::new(dtype, shape.to_vec(), Data::U8(bytes))
}

/// A float value over `data`.
pub fn float_value<T: candle_core::WithDType>(shape: &[usize], data: Vec<T>) -> Result<Value> {
    if data.len() != shape.iter().product::<usize>() {
        return Err(Error::internal("VALUE", "elements do not fill the shape").found(format!("{shape:?}")));
    }
    Ok(Float::from_vec(data, shape, &Device::Cpu)?.into())
}

/// A host value over `data`; `dtype` decides between types of one representation (`u8` and `bool`).
pub fn host_value<T: Element>(dtype: DType, shape: &[usize], data: Vec<T>) -> Result<Value> {
    Ok(Tensor::new(dtype, shape.to_vec(), T::wrap(data))?.into())
}

/// A boolean value.
pub fn bool_value(shape: &[usize], data: Vec<u8>) -> Result<Value> {
    host_value(DType::Bool, shape, data)
}

/// Runs `$body`, which yields `Result<Vec<T>>`, with `$v: &[&[T]]` the elements of `$values`, whatever
/// their common type; gives a `Result<Value>` of the same element type and shape `$shape`.
macro_rules! rearrange {
    ($values:expr, $shape:expr, $v:ident => $body:expr) => {{
        use $crate::ops::elements as e;
        let values: &[&$crate::tensor::Value] = $values;
        let shape: &[usize] = $shape;
        let dtype = values.first().map_or($crate::tensor::DType::F32, |v| v.dtype());
        match e::rust_type(values)? {
            e::Rust::F32 => e::floats::<f32, _>(values, |$v| e::float_value(shape, $body?)),
            e::Rust::F64 => e::floats::<f64, _>(values, |$v| e::float_value(shape, $body?)),
            e::Rust::F16 => e::floats::<half::f16, _>(values, |$v| e::float_value(shape, $body?)),
            e::Rust::BF16 => e::floats::<half::bf16, _>(values, |$v| e::float_value(shape, $body?)),
            e::Rust::U8 => e::hosts::<u8, _>(values, |$v| e::host_value(dtype, shape, $body?)),
            e::Rust::I8 => e::hosts::<i8, _>(values, |$v| e::host_value(dtype, shape, $body?)),
            e::Rust::U16 => e::hosts::<u16, _>(values, |$v| e::host_value(dtype, shape, $body?)),
            e::Rust::I16 => e::hosts::<i16, _>(values, |$v| e::host_value(dtype, shape, $body?)),
            e::Rust::U32 => e::hosts::<u32, _>(values, |$v| e::host_value(dtype, shape, $body?)),
            e::Rust::I32 => e::hosts::<i32, _>(values, |$v| e::host_value(dtype, shape, $body?)),
            e::Rust::U64 => e::hosts::<u64, _>(values, |$v| e::host_value(dtype, shape, $body?)),
            e::Rust::I64 => e::hosts::<i64, _>(values, |$v| e::host_value(dtype, shape, $body?)),
            e::Rust::Str => e::strings(values, |$v| {
                let data = $crate::tensor::Data::Str($body?);
                Ok($crate::tensor::Tensor::new(dtype, shape.to_vec(), data)?.into())
            }),
            e::Rust::Pair32 => e::pairs::<f32, _>(values, |$v| e::host_pairs(dtype, shape, $body?)),
            e::Rust::Pair64 => e::pairs::<f64, _>(values, |$v| e::host_pairs(dtype, shape, $body?)),
            e::Rust::Packed => e::packed(values, |$v| Ok(e::pack(dtype, shape, &$body?)?.into())),
        }
    }};
}
pub(crate) use rearrange;

/// A complex value over pairs.
pub fn host_pairs<T: Element>(dtype: DType, shape: &[usize], data: Vec<[T; 2]>) -> Result<Value> {
    host_value(dtype, shape, data.into_iter().flatten().collect::<Vec<T>>())
}

/// Runs `$body` with `$v: &[&[T]]` the elements of `$values`, numbers or booleans of one type; halves
/// as `f32`, integers as [`whole!`] has them. `$body` is a `Result` of one type for all.
macro_rules! numeric {
    ($values:expr, $v:ident => $body:expr) => {{
        use $crate::ops::elements as e;
        use $crate::tensor::DType;
        let values: &[&$crate::tensor::Value] = $values;
        e::rust_type(values)?;
        match values.first().map_or(DType::F32, |v| v.dtype()) {
            DType::F64 => e::floats::<f64, _>(values, |$v| $body),
            t if t.is_float() => {
                let held: Vec<$crate::ops::float::Elements<'_, f32>> = values
                    .iter()
                    .map(|v| $crate::ops::float::elements::<f32>(v.float()?))
                    .collect::<$crate::error::Result<_>>()?;
                let slices: Vec<&[f32]> = held.iter().map(|s| &**s).collect();
                let $v: &[&[f32]] = &slices;
                $body
            }
            _ => e::whole!(values, $v => $body),
        }
    }};
}
pub(crate) use numeric;

/// Lends integers and booleans widened to `i64`; of 64-bit unsigned ones the bits.
pub fn widened<R>(values: &[&Value], f: impl FnOnce(&[&[i64]]) -> Result<R>) -> Result<R> {
    let wide: Vec<Vec<i64>> = values.iter().map(|v| v.ints()).collect::<Result<_>>()?;
    let slices: Vec<&[i64]> = wide.iter().map(Vec::as_slice).collect();
    f(&slices)
}

/// An integer or boolean value of type `dtype` from wide elements, which wrap.
pub fn narrowed<T: Element>(dtype: DType, shape: &[usize], data: Vec<T>) -> Result<Value> {
    Value::load(&Tensor::from_vec(shape.to_vec(), data)?.cast_to(dtype))
}

/// Runs `$body` with `$v: &[&[T]]` the elements of `$values`, integers or booleans of one type: `T` is
/// `u64` for that type and `i64` for all others, so that few loops serve them all.
macro_rules! whole {
    ($values:expr, $v:ident => $body:expr) => {{
        use $crate::ops::elements as e;
        use $crate::tensor::DType;
        let values: &[&$crate::tensor::Value] = $values;
        let dtype = values.first().map_or(DType::F32, |v| v.dtype());
        e::rust_type(values)?;
        match dtype {
            DType::U64 => e::hosts::<u64, _>(values, |$v| $body),
            t if t.is_int() || t == DType::Bool => e::widened(values, |$v| $body),
            t => Err(e::refused(t)),
        }
    }};
}
pub(crate) use whole;
