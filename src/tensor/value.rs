//! What flows between operators: floats as candle tensors, everything else as host tensors.

use super::{DType, Data, Tensor};
use crate::error::{Error, Result};
use candle_core::{CpuStorage, Device, Storage};

/// An evaluated tensor.
#[derive(Debug, Clone)]
pub enum Value {
    /// f16, bf16, f32, f64.
    Float(candle_core::Tensor),
    /// All other element types.
    Host(Tensor),
}

/// Wraps an error of the kernel library.
impl From<candle_core::Error> for Error {
    fn from(e: candle_core::Error) -> Error {
        Error::internal("KERNEL", e.to_string().lines().next().unwrap_or("kernel failed").to_string())
    }
}

/// The kernel library's name of a float type.
pub fn candle_dtype(dtype: DType) -> Option<candle_core::DType> {
    match dtype {
        DType::F16 => Some(candle_core::DType::F16),
        DType::BF16 => Some(candle_core::DType::BF16),
        DType::F32 => Some(candle_core::DType::F32),
        DType::F64 => Some(candle_core::DType::F64),
        _ => None,
    }
}

impl Value {
    /// Loads a tensor for evaluation.
    pub fn load(tensor: &Tensor) -> Result<Value> {
        if !tensor.dtype().is_float() {
            let data = tensor.data()?;
            return Ok(Value::Host(Tensor {
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
                storage: super::Storage::Owned(data),
            }));
        }
        let shape = tensor.shape().to_vec();
        let cpu = &Device::Cpu;
        let data = tensor.data()?;
        Ok(Value::Float(match std::sync::Arc::try_unwrap(data).unwrap_or_else(|shared| (*shared).clone()) {
            Data::F16(v) => candle_core::Tensor::from_vec(v, shape, cpu)?,
            Data::BF16(v) => candle_core::Tensor::from_vec(v, shape, cpu)?,
            Data::F32(v) => candle_core::Tensor::from_vec(v, shape, cpu)?,
            Data::F64(v) => candle_core::Tensor::from_vec(v, shape, cpu)?,
            _ => return Err(Error::internal("VALUE", "a float tensor holds other elements")),
        }))
    }

    /// The value as an owned tensor.
    pub fn to_tensor(&self) -> Result<Tensor> {
        match self {
            Value::Host(t) => Ok(t.clone()),
            Value::Float(t) => {
                let (shape, flat) = (t.dims().to_vec(), t.flatten_all()?);
                match t.dtype() {
                    candle_core::DType::F16 => Tensor::from_vec(shape, flat.to_vec1::<half::f16>()?),
                    candle_core::DType::BF16 => Tensor::from_vec(shape, flat.to_vec1::<half::bf16>()?),
                    candle_core::DType::F64 => Tensor::from_vec(shape, flat.to_vec1::<f64>()?),
                    _ => Tensor::from_vec(shape, flat.to_vec1::<f32>()?),
                }
            }
        }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match self {
            Value::Host(t) => t.dtype(),
            Value::Float(t) => match t.dtype() {
                candle_core::DType::F16 => DType::F16,
                candle_core::DType::BF16 => DType::BF16,
                candle_core::DType::F64 => DType::F64,
                _ => DType::F32,
            },
        }
    }

    /// Shape.
    pub fn shape(&self) -> &[usize] {
        match self {
            Value::Host(t) => t.shape(),
            Value::Float(t) => t.dims(),
        }
    }

    /// Where the elements lie in memory, and how many bytes are held there. Values that share their elements
    /// have the same, whatever part of them is theirs.
    pub fn buffer(&self) -> (usize, u64) {
        match self {
            Value::Host(t) => match &t.storage {
                super::Storage::Owned(data) => (std::sync::Arc::as_ptr(data) as usize, t.byte_len()),
                _ => (std::ptr::from_ref(t) as usize, 0),
            },
            Value::Float(t) => {
                let (guard, _) = t.storage_and_layout();
                let bytes = match &*guard {
                    Storage::Cpu(CpuStorage::F16(v)) => size_of_val(v.as_slice()),
                    Storage::Cpu(CpuStorage::BF16(v)) => size_of_val(v.as_slice()),
                    Storage::Cpu(CpuStorage::F32(v)) => size_of_val(v.as_slice()),
                    Storage::Cpu(CpuStorage::F64(v)) => size_of_val(v.as_slice()),
                    _ => t.elem_count() * t.dtype().size_in_bytes(),
                };
                (std::ptr::from_ref(&*guard) as usize, bytes as u64)
            }
        }
    }

    /// The float inside, or an error that says which type was found.
    pub fn float(&self) -> Result<&candle_core::Tensor> {
        match self {
            Value::Float(t) => Ok(t),
            Value::Host(t) => Err(Error::invalid("OP-TYPE", "a float tensor is needed").found(t.dtype())),
        }
    }

    /// The host tensor inside, or an error that says which type was found.
    pub fn host(&self) -> Result<&Tensor> {
        match self {
            Value::Host(t) => Ok(t),
            Value::Float(t) => Err(Error::invalid("OP-TYPE", "an integer or boolean tensor is needed")
                .found(format!("{:?}", t.dtype()))),
        }
    }

    /// Integer contents, for shapes, axes and indices.
    pub fn ints(&self) -> Result<Vec<i64>> {
        self.host()?.to_i64s()
    }
}

impl From<candle_core::Tensor> for Value {
    fn from(t: candle_core::Tensor) -> Value {
        Value::Float(t)
    }
}

impl From<Tensor> for Value {
    /// Host types only; floats go through [`Value::load`].
    fn from(t: Tensor) -> Value {
        Value::Host(t)
    }
}
