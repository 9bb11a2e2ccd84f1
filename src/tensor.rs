//! Element types, dense host tensors of every ONNX type, and where their elements live: owned, in a
//! region of an open file, or derived lazily from another tensor. Knows no operator and no graph.

mod blocks;
mod dtype;
mod each;
mod pieces;
mod source;
pub mod stats;
mod stream;
mod value;

pub use crate::kernels::index::strides;
pub use dtype::{DType, Element};
pub use pieces::Pieces;
pub use source::{Region, SourceFile};
pub use stats::{Distribution, Stats};
pub use value::{Value, candle_dtype};

use crate::error::{Error, Result};
use crate::kernels::movement::permute;
use half::{bf16, f16};
use std::{io::Write, sync::Arc};

/// Elements in memory, by representation. `Bool` and 8-bit floats are `U8`; 4- and 2-bit types are
/// `U8` packed as ONNX packs them (first element in the low bits); complex numbers are pairs.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Data {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    /// Byte strings, not necessarily UTF-8.
    Str(Vec<Vec<u8>>),
}

/// Runs `$body` with `$v` bound to the numeric vector inside a [`Data`]; `Str` runs `$str`.
#[macro_export]
macro_rules! with_data {
    ($data:expr, $v:ident => $body:expr, str => $str:expr) => {
        match $data {
            $crate::tensor::Data::U8($v) => $body,
            $crate::tensor::Data::I8($v) => $body,
            $crate::tensor::Data::U16($v) => $body,
            $crate::tensor::Data::I16($v) => $body,
            $crate::tensor::Data::U32($v) => $body,
            $crate::tensor::Data::I32($v) => $body,
            $crate::tensor::Data::U64($v) => $body,
            $crate::tensor::Data::I64($v) => $body,
            $crate::tensor::Data::F16($v) => $body,
            $crate::tensor::Data::BF16($v) => $body,
            $crate::tensor::Data::F32($v) => $body,
            $crate::tensor::Data::F64($v) => $body,
            $crate::tensor::Data::Str(_) => $str,
        }
    };
}

#[derive(Debug, Clone)]
enum Storage {
    Owned(Arc<Data>),
    Region(Region),
    Blocks(blocks::Blocks),
    Lazy(Arc<(Tensor, Step)>),
}

/// How a lazy tensor follows from its source.
#[derive(Debug, Clone)]
enum Step {
    /// Axes permuted.
    Transpose(Vec<usize>),
    /// Indices of one axis kept, in this order.
    Select { axis: usize, indices: Arc<[usize]> },
    /// Elements converted to the type of the result.
    Cast,
    /// The same elements under the shape of the result.
    Reshape,
    /// Element `f` of an f32 tensor times `factors[f / inner % factors.len()]`.
    Scale { inner: usize, factors: Arc<[f32]> },
}

/// A dense tensor in row-major order. Cloning shares the elements.
#[derive(Debug, Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    storage: Storage,
}

/// Number of elements of a shape; `None` on overflow, which sizes beside a zero must not cause either:
/// strides are products of some of the sizes.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    let whole = shape.iter().filter(|d| **d > 0).try_fold(1usize, |n, d| n.checked_mul(*d))?;
    Some(if shape.contains(&0) { 0 } else { whole })
}

impl Tensor {
    /// A tensor over owned elements. Fails (kind `Invalid`) where representation or count do not fit.
    pub fn new(dtype: DType, shape: Vec<usize>, data: Data) -> Result<Tensor> {
        let count = element_count(&shape)
            .ok_or_else(|| Error::invalid("TENSOR-SIZE", "shape overflows").found(format!("{shape:?}")))?;
        let (length, fits) = match &data {
            Data::Str(v) => (v.len(), dtype == DType::Str),
            other => with_data!(other, v => (v.len(), dtype.is_stored_as(other)), str => (0, false)),
        };
        if !fits || length != dtype.stored_len(count) {
            return Err(Error::invalid(
                "TENSOR-DATA",
                format!("{length} stored elements do not make a {dtype} tensor"),
            )
            .found(format!("{shape:?}")));
        }
        Ok(Tensor { dtype, shape, storage: Storage::Owned(Arc::new(data)) })
    }

    /// A tensor of a plain Rust element type.
    pub fn from_vec<T: Element>(shape: Vec<usize>, data: Vec<T>) -> Result<Tensor> {
        Tensor::new(T::DTYPE, shape, T::wrap(data))
    }

    /// A rank-0 tensor.
    pub fn scalar<T: Element>(value: T) -> Tensor {
        Tensor { dtype: T::DTYPE, shape: vec![], storage: Storage::Owned(Arc::new(T::wrap(vec![value]))) }
    }

    /// A boolean tensor.
    pub fn from_bools(shape: Vec<usize>, data: Vec<bool>) -> Result<Tensor> {
        Tensor::new(DType::Bool, shape, Data::U8(data.into_iter().map(u8::from).collect()))
    }

    /// A tensor over little-endian bytes as ONNX `raw_data` holds them; not for strings.
    pub fn from_raw(dtype: DType, shape: Vec<usize>, bytes: &[u8]) -> Result<Tensor> {
        let want = element_count(&shape).and_then(|n| dtype.byte_len(n));
        if want != Some(bytes.len() as u64) {
            return Err(Error::invalid("TENSOR-BYTES", "bytes do not match type and shape")
                .found(format!("{} bytes", bytes.len()))
                .limit(format!("{dtype}{shape:?}")));
        }
        Tensor::new(dtype, shape, dtype.decode(bytes)?)
    }

    /// A tensor whose little-endian bytes lie in a file. Fails where the length does not match.
    pub fn from_region(dtype: DType, shape: Vec<usize>, region: Region) -> Result<Tensor> {
        let want = element_count(&shape).and_then(|n| dtype.byte_len(n));
        if want != Some(region.len()) || dtype == DType::Str {
            return Err(Error::invalid("TENSOR-BYTES", "bytes do not match type and shape")
                .file(region.path())
                .offset(region.offset())
                .found(format!("{} bytes", region.len()))
                .limit(format!("{dtype}{shape:?}")));
        }
        Ok(Tensor { dtype, shape, storage: Storage::Region(region) })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// Shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    /// Number of elements.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    /// Bytes of the stored encoding; strings count their characters.
    pub fn byte_len(&self) -> u64 {
        match &self.storage {
            Storage::Owned(d) if self.dtype == DType::Str => match &**d {
                Data::Str(v) => v.iter().map(|s| s.len() as u64).sum(),
                _ => 0,
            },
            _ => self.dtype.byte_len(self.len()).unwrap_or(u64::MAX),
        }
    }
    /// The file region that holds the bytes, if one does.
    pub fn region(&self) -> Option<&Region> {
        match &self.storage {
            Storage::Region(r) => Some(r),
            _ => None,
        }
    }

    /// The elements; read or computed now where they are not in memory. Nothing is cached.
    pub fn data(&self) -> Result<Arc<Data>> {
        match &self.storage {
            Storage::Owned(d) => Ok(d.clone()),
            Storage::Region(r) => Ok(Arc::new(self.dtype.decode(&r.read()?)?)),
            Storage::Blocks(_) => match self.stream()? {
                Some(stream) => stream.all(self.len()).map(Arc::new),
                None => Err(Error::internal("TENSOR-TYPE", "blocks give f32")),
            },
            Storage::Lazy(lazy) => {
                if let Some(stream) = self.stream()? {
                    return stream.all(self.len()).map(Arc::new);
                }
                let (source, step) = &**lazy;
                let data = source.data()?;
                Ok(Arc::new(match step {
                    Step::Transpose(perm) => transpose(&data, &source.shape, perm),
                    Step::Select { axis, indices } => select(&data, &source.shape, *axis, indices),
                    Step::Cast => return source.converted(self.dtype).map(Arc::new),
                    Step::Reshape => return Ok(data),
                    Step::Scale { .. } => return Err(Error::internal("TENSOR-TYPE", "only f32 is scaled")),
                }))
            }
        }
    }

    /// Whether the elements, or what they follow from, lie in a file.
    pub fn in_file(&self) -> bool {
        match &self.storage {
            Storage::Owned(_) => false,
            Storage::Region(_) | Storage::Blocks(_) => true,
            Storage::Lazy(lazy) => lazy.0.in_file(),
        }
    }

    /// The elements as exactly this Rust type; an `Internal` error for any other type.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        let data = self.data()?;
        match Arc::try_unwrap(data) {
            Ok(data) => T::unwrap(data),
            Err(shared) => T::view(&shared).map(<[T]>::to_vec),
        }
        .ok_or_else(|| Error::internal("TENSOR-TYPE", format!("tensor is {}, not {}", self.dtype, T::DTYPE)))
    }

    /// The elements converted to `f64`, any numeric type.
    pub fn to_f64s(&self) -> Result<Vec<f64>> {
        match self.converted(DType::F64)? {
            Data::F64(v) => Ok(v),
            _ => Err(Error::internal("TENSOR-TYPE", "cast gave another type")),
        }
    }

    /// The elements converted to `f32`, any numeric type.
    pub fn to_f32s(&self) -> Result<Vec<f32>> {
        if self.dtype == DType::F32 {
            return self.to_vec::<f32>();
        }
        match self.converted(DType::F32)? {
            Data::F32(v) => Ok(v),
            _ => Err(Error::internal("TENSOR-TYPE", "cast gave another type")),
        }
    }

    /// The elements converted to `i64`, any integer or boolean type (floats are truncated).
    pub fn to_i64s(&self) -> Result<Vec<i64>> {
        match self.converted(DType::I64)? {
            Data::I64(v) => Ok(v),
            _ => Err(Error::internal("TENSOR-TYPE", "cast gave another type")),
        }
    }

    /// Writes the little-endian bytes. What lies in a file passes in pieces, also through lazy steps, so
    /// that memory stays small.
    pub fn write_raw(&self, out: &mut dyn Write) -> Result<()> {
        match &self.storage {
            Storage::Region(r) => r.copy_to(out),
            Storage::Blocks(_) | Storage::Lazy(_) if !self.dtype.is_packed() => self.each_piece(|piece| {
                let bytes: &[u8] = with_data!(piece, v => bytemuck::cast_slice(v), str => &[]);
                out.write_all(bytes).map_err(|e| Error::io("write tensor bytes", "", e))
            }),
            _ => {
                let data = self.data()?;
                let bytes: &[u8] = match &*data {
                    Data::Str(_) => return Err(Error::internal("TENSOR-RAW", "strings have no raw form")),
                    other => with_data!(other, v => bytemuck::cast_slice(v), str => &[]),
                };
                out.write_all(bytes).map_err(|e| Error::io("write tensor bytes", "", e))
            }
        }
    }

    /// Axes permuted, lazily. `perm[i]` is the source axis of result axis `i`.
    pub fn transposed(&self, perm: &[usize]) -> Tensor {
        let shape = perm.iter().map(|p| self.shape[*p]).collect();
        self.lazy(self.dtype, shape, Step::Transpose(perm.to_vec()))
    }

    /// The given indices of `axis`, in order, lazily. Indices must be below the axis size.
    pub fn selected(&self, axis: usize, indices: &[usize]) -> Tensor {
        let mut shape = self.shape.clone();
        shape[axis] = indices.len();
        self.lazy(self.dtype, shape, Step::Select { axis, indices: indices.into() })
    }

    /// Elements converted, lazily. Float to integer truncates towards zero and saturates.
    pub fn cast_to(&self, dtype: DType) -> Tensor {
        if dtype == self.dtype {
            return self.clone();
        }
        self.lazy(dtype, self.shape.clone(), Step::Cast)
    }

    /// Element `f` times `factors[f / inner % factors.len()]`, lazily: an axis, or several that follow each
    /// other, with a factor an index. An `Internal` error for any type but f32 and for no factors.
    pub fn scaled(&self, inner: usize, factors: Vec<f32>) -> Result<Tensor> {
        if self.dtype != DType::F32 || inner == 0 || factors.is_empty() {
            return Err(Error::internal("TENSOR-TYPE", format!("a tensor of {} is not scaled", self.dtype)));
        }
        Ok(self.lazy(self.dtype, self.shape.clone(), Step::Scale { inner, factors: factors.into() }))
    }

    /// The same elements under another shape of equal count.
    pub fn reshaped(&self, shape: Vec<usize>) -> Result<Tensor> {
        if element_count(&shape) != Some(self.len()) {
            return Err(Error::internal(
                "TENSOR-RESHAPE",
                format!("{:?} does not become {shape:?}", self.shape),
            ));
        }
        match &self.storage {
            _ if shape == self.shape => Ok(self.clone()),
            Storage::Lazy(_) => Ok(self.lazy(self.dtype, shape, Step::Reshape)),
            other => Ok(Tensor { dtype: self.dtype, shape, storage: other.clone() }),
        }
    }

    /// Runs `f` over the elements in order, in pieces.
    fn each_piece(&self, mut f: impl FnMut(&Data) -> Result<()>) -> Result<()> {
        let Some(stream) = self.stream()? else { return f(&*self.data()?) };
        let n = self.len();
        let most = stream.piece();
        let mut piece = stream.empty(n.min(most));
        for at in (0..n).step_by(most) {
            with_data!(&mut piece, v => v.clear(), str => ());
            stream.append(at, most.min(n - at), &mut piece)?;
            f(&piece)?;
        }
        Ok(())
    }

    /// The elements as another type; packed ones lose the padding of their last byte.
    fn converted(&self, to: DType) -> Result<Data> {
        let data = cast(&*self.data()?, self.dtype, to)?;
        if !self.dtype.is_packed() || to.is_packed() {
            return Ok(data);
        }
        let n = self.len();
        Ok(crate::map_data!(data, v => v.into_iter().take(n).collect()))
    }

    fn lazy(&self, dtype: DType, shape: Vec<usize>, step: Step) -> Tensor {
        Tensor { dtype, shape, storage: Storage::Lazy(Arc::new((self.clone(), step))) }
    }

    /// Whether both have the same type, shape and bits. Reads the elements.
    pub fn same_bits(&self, other: &Tensor) -> Result<bool> {
        if self.dtype != other.dtype || self.shape != other.shape {
            return Ok(false);
        }
        let (a, b) = (self.data()?, other.data()?);
        Ok(match (&*a, &*b) {
            (Data::F32(a), Data::F32(b)) => {
                bytemuck::cast_slice::<f32, u8>(a) == bytemuck::cast_slice::<f32, u8>(b)
            }
            (Data::F64(a), Data::F64(b)) => {
                bytemuck::cast_slice::<f64, u8>(a) == bytemuck::cast_slice::<f64, u8>(b)
            }
            (Data::F16(a), Data::F16(b)) => {
                bytemuck::cast_slice::<f16, u8>(a) == bytemuck::cast_slice::<f16, u8>(b)
            }
            (a, b) => a == b,
        })
    }
}

/// Runs `$body` on the vector inside a [`Data`], strings included, and wraps the result in the same variant.
#[macro_export]
macro_rules! map_data {
    ($data:expr, $v:ident => $body:expr) => {
        match $data {
            $crate::tensor::Data::U8($v) => $crate::tensor::Data::U8($body),
            $crate::tensor::Data::I8($v) => $crate::tensor::Data::I8($body),
            $crate::tensor::Data::U16($v) => $crate::tensor::Data::U16($body),
            $crate::tensor::Data::I16($v) => $crate::tensor::Data::I16($body),
            $crate::tensor::Data::U32($v) => $crate::tensor::Data::U32($body),
            $crate::tensor::Data::I32($v) => $crate::tensor::Data::I32($body),
            $crate::tensor::Data::U64($v) => $crate::tensor::Data::U64($body),
            $crate::tensor::Data::I64($v) => $crate::tensor::Data::I64($body),
            $crate::tensor::Data::F16($v) => $crate::tensor::Data::F16($body),
            $crate::tensor::Data::BF16($v) => $crate::tensor::Data::BF16($body),
            $crate::tensor::Data::F32($v) => $crate::tensor::Data::F32($body),
            $crate::tensor::Data::F64($v) => $crate::tensor::Data::F64($body),
            $crate::tensor::Data::Str($v) => $crate::tensor::Data::Str($body),
        }
    };
}

/// Gathers elements by a strided walk: result index `i` along each axis steps `steps` elements in the
/// source, from `start`. With a zero step an axis broadcasts. Not for packed types.
pub fn strided<T: Clone>(v: &[T], start: usize, dims: &[usize], steps: &[isize]) -> Vec<T> {
    let count: usize = dims.iter().product();
    let mut out = Vec::with_capacity(count);
    if count == 0 {
        return out;
    }
    let Some((&inner, outer)) = dims.split_last() else { return vec![v[start].clone()] };
    let inner_step = steps[outer.len()];
    let mut index = vec![0usize; outer.len()];
    let mut at = start as isize;
    loop {
        if inner_step == 1 {
            out.extend_from_slice(&v[at as usize..at as usize + inner]);
        } else {
            out.extend((0..inner as isize).map(|i| v[(at + i * inner_step) as usize].clone()));
        }
        let mut axis = outer.len();
        loop {
            if axis == 0 {
                return out;
            }
            axis -= 1;
            index[axis] += 1;
            at += steps[axis];
            if index[axis] < outer[axis] {
                break;
            }
            at -= steps[axis] * outer[axis] as isize;
            index[axis] = 0;
        }
    }
}

/// Rearranges elements so that result axis `i` is source axis `perm[i]`. Not for packed types.
pub fn transpose(data: &Data, shape: &[usize], perm: &[usize]) -> Data {
    map_data!(data, v => permute(v, shape, perm))
}

/// Keeps `indices` of one axis, in order. Not for packed types.
pub fn select(data: &Data, shape: &[usize], axis: usize, indices: &[usize]) -> Data {
    fn go<T: Clone>(v: &[T], outer: usize, size: usize, inner: usize, indices: &[usize]) -> Vec<T> {
        let mut out = Vec::with_capacity(outer * indices.len() * inner);
        for o in 0..outer {
            for i in indices {
                let at = (o * size + i) * inner;
                out.extend_from_slice(&v[at..at + inner]);
            }
        }
        out
    }
    let (outer, inner): (usize, usize) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product());
    map_data!(data, v => go(v, outer, shape[axis], inner, indices))
}

/// Converts elements between numeric types (booleans count as 0 and 1; a non-zero number is true).
/// Float to integer truncates towards zero and saturates; integer to integer wraps.
pub fn cast(data: &Data, from: DType, to: DType) -> Result<Data> {
    dtype::cast(data, from, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lazy_steps_equal_eager_ones() {
        let t = Tensor::from_vec(vec![2, 3], vec![1f32, 2., 3., 4., 5., 6.]).unwrap();
        assert_eq!(t.transposed(&[1, 0]).to_vec::<f32>().unwrap(), [1., 4., 2., 5., 3., 6.]);
        assert_eq!(t.selected(1, &[2, 0]).to_vec::<f32>().unwrap(), [3., 1., 6., 4.]);
        assert_eq!(
            t.transposed(&[1, 0]).selected(0, &[1]).cast_to(DType::I32).to_vec::<i32>().unwrap(),
            [2, 5]
        );
    }

    #[test]
    fn shape_and_data_must_agree() {
        assert!(Tensor::from_vec(vec![2, 2], vec![1f32; 3]).is_err());
        assert!(Tensor::new(DType::I4, vec![3], Data::U8(vec![0x21, 0x03])).is_ok());
        assert!(Tensor::new(DType::Bool, vec![1], Data::F32(vec![1.0])).is_err());
        assert!(Tensor::from_vec(vec![usize::MAX, 2], vec![1f32; 3]).is_err());
    }

    #[test]
    fn packed_integers_unpack_to_their_count() {
        let t = Tensor::new(DType::I4, vec![3], Data::U8(vec![0xf1, 0x07])).unwrap();
        assert_eq!(t.cast_to(DType::I8).to_vec::<i8>().unwrap(), [1, -1, 7]);
        assert_eq!(t.to_i64s().unwrap(), [1, -1, 7]);
    }

    #[test]
    fn casts_saturate_floats_and_wrap_integers() {
        let f = Tensor::from_vec(vec![3], vec![300.7f32, -1.5, f32::NAN]).unwrap();
        assert_eq!(f.cast_to(DType::U8).to_vec::<u8>().unwrap(), [255, 0, 0]);
        let i = Tensor::from_vec(vec![1], vec![257i64]).unwrap();
        assert_eq!(i.cast_to(DType::U8).to_vec::<u8>().unwrap(), [1]);
        assert_eq!(f.cast_to(DType::Bool).to_vec::<u8>().unwrap(), [1, 1, 1]);
    }
}
