//! Between float tensors and slices: borrowed elements where the layout allows it, element type
//! dispatch, sizes that are refused. Halves are computed in `f32`.

use super::{Fact, Operator};
use crate::error::{Error, Kind, Result};
use crate::kernels::movement;
use crate::kernels::real::Real;
use crate::kernels::wide::Lanes;
use crate::tensor::Value;
use candle_core::{CpuStorage, DType, Device, Layout, Storage, StorageRef};
use std::cell::RefCell;
use std::marker::PhantomData;

pub use candle_core::Tensor as Float;

/// An element type of both the kernels and the tensor library.
pub trait Scalar: Real + Lanes + candle_core::WithDType {
    /// The elements of a storage of this type.
    fn stored(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}
impl Scalar for f32 {
    fn stored(storage: &mut CpuStorage) -> Option<&mut [f32]> {
        if let CpuStorage::F32(v) = storage { Some(v) } else { None }
    }
}
impl Scalar for f64 {
    fn stored(storage: &mut CpuStorage) -> Option<&mut [f64]> {
        if let CpuStorage::F64(v) = storage { Some(v) } else { None }
    }
}

/// Runs `$body` with `$t` bound to the type that a tensor of `$dtype` is computed in.
macro_rules! real {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F64 => {
                type $t = f64;
                $body
            }
            _ => {
                type $t = f32;
                $body
            }
        }
    };
}
pub(crate) use real;

/// Elements of a tensor, borrowed where they lie in memory as wanted.
pub enum Elements<'a, T> {
    /// A range of the tensor's storage.
    Borrowed(StorageRef<'a>, usize, usize),
    /// A converted or rearranged copy.
    Owned(Vec<T>),
}

impl<T: Scalar> std::ops::Deref for Elements<'_, T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match self {
            Elements::Owned(v) => v,
            Elements::Borrowed(guard, from, to) => match &**guard {
                Storage::Cpu(s) => {
                    &s.as_slice::<T>().expect("the type was checked when the range was borrowed")[*from..*to]
                }
                _ => unreachable!("all tensors live on the CPU"),
            },
        }
    }
}

/// The elements in row-major order.
pub fn elements<T: Scalar>(t: &Float) -> Result<Elements<'_, T>> {
    if t.dtype() == T::DTYPE {
        let (guard, layout) = t.storage_and_layout();
        if let Some((from, to)) = layout.contiguous_offsets() {
            return Ok(Elements::Borrowed(guard, from, to));
        }
        if let Storage::Cpu(s) = &*guard {
            let axes: Vec<(usize, usize)> =
                t.dims().iter().copied().zip(layout.stride().iter().copied()).collect();
            let from = layout.start_offset();
            return Ok(Elements::Owned(movement::gather(&s.as_slice::<T>()?[from..], &axes)));
        }
    }
    Ok(Elements::Owned(t.to_dtype(T::DTYPE)?.flatten_all()?.to_vec1::<T>()?))
}

/// The elements from the first on, and the stride of each axis.
pub fn strided<T: Scalar>(t: &Float) -> Result<(Elements<'_, T>, Vec<usize>)> {
    if t.dtype() == T::DTYPE && t.elem_count() > 0 {
        let (guard, layout) = t.storage_and_layout();
        if let Storage::Cpu(s) = &*guard {
            let (from, to) = (layout.start_offset(), s.as_slice::<T>()?.len());
            let strides = layout.stride().to_vec();
            return Ok((Elements::Borrowed(guard, from, to), strides));
        }
    }
    Ok((elements(t)?, crate::tensor::strides(t.dims())))
}

/// Elements of an optional input.
pub fn optional<'a, T: Scalar>(inputs: &[Option<&'a Value>], n: usize) -> Result<Option<Elements<'a, T>>> {
    inputs.get(n).copied().flatten().map(|v| elements::<T>(v.float()?)).transpose()
}

/// A tensor over `data`, in the type of `like`.
pub fn tensor<T: Scalar>(data: Vec<T>, shape: &[usize], like: DType) -> Result<Float> {
    let t = Float::from_vec(data, shape, &Device::Cpu)?;
    Ok(if t.dtype() == like { t } else { t.to_dtype(like)? })
}

/// Runs `change` on the elements of a contiguous tensor where they lie. Every tensor that shares them
/// changes, so that only whoever made the tensor and gave it to nobody for keeping may call this.
pub fn change<T: Scalar, R>(t: &Float, change: impl FnOnce(&mut [T]) -> R) -> Result<R> {
    let work = Change(RefCell::new((Some(change), None)), PhantomData::<T>);
    t.inplace_op1(&work)?;
    work.0.into_inner().1.ok_or_else(|| Error::internal("CHANGE", "elements were not changed"))
}

struct Change<F, R, T>(RefCell<(Option<F>, Option<R>)>, PhantomData<T>);

impl<T: Scalar, R, F: FnOnce(&mut [T]) -> R> candle_core::InplaceOp1 for Change<F, R, T> {
    fn name(&self) -> &'static str {
        "change"
    }
    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (from, to) = layout
            .contiguous_offsets()
            .ok_or_else(|| candle_core::Error::Msg("elements in one piece are needed".into()))?;
        let mut held = self.0.borrow_mut();
        if let (Some(elements), Some(change)) = (T::stored(storage), held.0.take()) {
            held.1 = Some(change(&mut elements[from..to]));
        }
        Ok(())
    }
}

/// Most elements that one result may have.
pub const MAX_ELEMENTS: usize = 1 << 33;

/// Number of elements of a result. Fails with kind `Limit` above [`MAX_ELEMENTS`].
pub fn size(shape: &[usize]) -> Result<usize> {
    crate::tensor::element_count(shape).filter(|n| *n <= MAX_ELEMENTS).ok_or_else(|| {
        Error::new(Kind::Limit, "OP-SIZE", "a result is too large")
            .found(format!("{shape:?}"))
            .limit(format!("{MAX_ELEMENTS} elements"))
            .hint("evaluate with a smaller batch or shorter inputs")
    })
}

/// What is known of given values; small ones with their content.
pub fn facts(inputs: &[Option<&Value>]) -> Result<Vec<Option<Fact>>> {
    inputs
        .iter()
        .map(|v| match v {
            None => Ok(None),
            Some(v) if v.shape().len() <= 1 && v.shape().iter().product::<usize>() <= 16 => {
                Ok(Some(Fact::constant(&v.to_tensor()?)))
            }
            Some(v) => Ok(Some(Fact::fixed(v.dtype(), v.shape()))),
        })
        .collect()
}

/// Checks the inputs of an evaluation with the operator's own inference and gives the output shapes,
/// none of which is too large.
pub fn shapes(op: &dyn Operator, inputs: &[Option<&Value>]) -> Result<Vec<Vec<usize>>> {
    let facts = facts(inputs)?;
    let refs: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
    op.infer(&refs)?
        .iter()
        .map(|f| {
            let shape = f.fixed_shape().ok_or_else(|| {
                Error::invalid("OP-SHAPE", "the output shape does not follow from the inputs")
                    .found(format!("{:?}", f.shape))
            })?;
            size(&shape)?;
            Ok(shape)
        })
        .collect()
}
