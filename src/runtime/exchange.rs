//! Tensors between this program and the library.

use crate::error::{Error, Result};
use crate::tensor::{DType, Data, Tensor};
use ort::value::{DynValue, Shape, TensorElementType, ValueType};

/// The library's element type as ours; `None` for complex and unknown ones.
pub fn dtype(ty: TensorElementType) -> Option<DType> {
    use TensorElementType as T;
    Some(match ty {
        T::Float32 => DType::F32,
        T::Float64 => DType::F64,
        T::Float16 => DType::F16,
        T::Bfloat16 => DType::BF16,
        T::Int8 => DType::I8,
        T::Int16 => DType::I16,
        T::Int32 => DType::I32,
        T::Int64 => DType::I64,
        T::Uint8 => DType::U8,
        T::Uint16 => DType::U16,
        T::Uint32 => DType::U32,
        T::Uint64 => DType::U64,
        T::Bool => DType::Bool,
        T::String => DType::Str,
        T::Float8E4M3FN => DType::F8E4M3FN,
        T::Float8E4M3FNUZ => DType::F8E4M3FNUZ,
        T::Float8E5M2 => DType::F8E5M2,
        T::Float8E5M2FNUZ => DType::F8E5M2FNUZ,
        T::Uint4 => DType::U4,
        T::Int4 => DType::I4,
        _ => return None,
    })
}

fn unsupported(what: impl std::fmt::Display) -> Error {
    Error::unsupported("ORT-TYPE", "tensors of this type cannot pass between this program and ONNX Runtime")
        .found(what)
        .hint("cast the model's inputs and outputs to f32 or an integer type")
}

/// The elements of one tensor, ready to be handed over. The data are copied once.
pub fn to_native(tensor: &Tensor) -> Result<DynValue> {
    let shape: Vec<i64> = tensor
        .shape()
        .iter()
        .map(|&d| i64::try_from(d))
        .collect::<Result<_, _>>()
        .map_err(|_| Error::limit_exceeded("ORT-SHAPE", "a dimension is too large"))?;
    let data = tensor.data()?;
    macro_rules! pass {
        ($v:expr) => {
            ort::value::Tensor::from_array((shape, $v.clone())).map(|t| t.into_dyn())
        };
    }
    let value = match (&*data, tensor.dtype()) {
        (Data::U8(v), DType::Bool) => {
            let v: Vec<bool> = v.iter().map(|&b| b != 0).collect();
            ort::value::Tensor::from_array((shape, v)).map(|t| t.into_dyn())
        }
        (Data::U8(v), DType::U8) => pass!(v),
        (Data::I8(v), _) => pass!(v),
        (Data::U16(v), _) => pass!(v),
        (Data::I16(v), _) => pass!(v),
        (Data::U32(v), _) => pass!(v),
        (Data::I32(v), _) => pass!(v),
        (Data::U64(v), _) => pass!(v),
        (Data::I64(v), _) => pass!(v),
        (Data::F16(v), _) => pass!(v),
        (Data::BF16(v), _) => pass!(v),
        (Data::F32(v), DType::F32) => pass!(v),
        (Data::F64(v), DType::F64) => pass!(v),
        (Data::Str(v), _) => {
            let strings: Vec<String> =
                v.iter().map(|s| String::from_utf8(s.clone())).collect::<Result<_, _>>().map_err(|_| {
                    Error::invalid("ORT-STRING", "a string element is not UTF-8")
                        .hint("ONNX Runtime takes UTF-8 strings only")
                })?;
            ort::value::Tensor::from_string_array((shape, strings.as_slice())).map(|t| t.into_dyn())
        }
        (_, other) => return Err(unsupported(other)),
    };
    value.map_err(|e| super::session::fault(&e, "hand a tensor over"))
}

fn shape_of(shape: &Shape) -> Vec<usize> {
    shape.iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect()
}

/// Shape of a tensor of the library.
pub fn shape(value: &DynValue) -> Result<Vec<usize>> {
    match value.dtype() {
        ValueType::Tensor { shape, .. } => Ok(shape_of(shape)),
        other => Err(unsupported(format!("{other:?}"))),
    }
}

/// A copy of a tensor that the library made.
pub fn from_native(value: &DynValue) -> Result<Tensor> {
    let ValueType::Tensor { ty, .. } = value.dtype() else {
        return Err(unsupported(format!("{:?}", value.dtype())));
    };
    macro_rules! take {
        ($t:ty) => {{
            let (shape, data) =
                value.try_extract_tensor::<$t>().map_err(|e| super::session::fault(&e, "read an output"))?;
            Tensor::from_vec(shape_of(shape), data.to_vec())
        }};
    }
    use TensorElementType as T;
    match ty {
        T::Float32 => take!(f32),
        T::Float64 => take!(f64),
        T::Float16 => take!(half::f16),
        T::Bfloat16 => take!(half::bf16),
        T::Int8 => take!(i8),
        T::Int16 => take!(i16),
        T::Int32 => take!(i32),
        T::Int64 => take!(i64),
        T::Uint8 => take!(u8),
        T::Uint16 => take!(u16),
        T::Uint32 => take!(u32),
        T::Uint64 => take!(u64),
        T::Bool => {
            let (shape, data) = value
                .try_extract_tensor::<bool>()
                .map_err(|e| super::session::fault(&e, "read an output"))?;
            Tensor::from_bools(shape_of(shape), data.to_vec())
        }
        T::String => {
            let (shape, data) =
                value.try_extract_strings().map_err(|e| super::session::fault(&e, "read an output"))?;
            let bytes = data.into_iter().map(String::into_bytes).collect();
            Tensor::new(DType::Str, shape_of(shape), Data::Str(bytes))
        }
        other => Err(unsupported(format!("{other:?}"))),
    }
}

/// The last row of a tensor `[1, rows, width]` of floats, without a copy of the others.
pub fn last_row(value: &DynValue) -> Result<Vec<f32>> {
    fn last<'a, T>(shape: &Shape, data: &'a [T]) -> Result<&'a [T]> {
        match *shape_of(shape) {
            [1, rows, width] if rows > 0 && width > 0 => Ok(&data[(rows - 1) * width..rows * width]),
            ref other => Err(Error::invalid("ORT-ROWS", "the output is not one row for each token")
                .found(format!("{other:?}"))
                .limit("[1, tokens, width]")),
        }
    }
    macro_rules! take {
        ($t:ty, $to:expr) => {{
            let (shape, data) =
                value.try_extract_tensor::<$t>().map_err(|e| super::session::fault(&e, "read an output"))?;
            Ok(last(shape, data)?.iter().map($to).collect())
        }};
    }
    let ValueType::Tensor { ty, .. } = value.dtype() else {
        return Err(unsupported(format!("{:?}", value.dtype())));
    };
    match ty {
        TensorElementType::Float32 => take!(f32, |v| *v),
        TensorElementType::Float16 => take!(half::f16, |v| v.to_f32()),
        TensorElementType::Bfloat16 => take!(half::bf16, |v| v.to_f32()),
        other => Err(unsupported(format!("{other:?}"))),
    }
}
