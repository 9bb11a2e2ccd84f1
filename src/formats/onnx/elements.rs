//! Tensor elements between ONNX' eight ways of storing them and [`Tensor`]. Sizes are checked against
//! the shape before anything is allocated.

use super::proto::{SparseTensorProto, TensorProto, tensor_proto::DataLocation};
use super::wire::{Payload, unpack};
use crate::error::{Error, Result};
use crate::formats::limits::{Limits, too_large};
use crate::tensor::{DType, Data, Region, SourceFile, Tensor, element_count};
use bytes::Bytes;
use half::{bf16, f16};
use std::sync::Arc;

/// Field of `TensorProto` that holds raw bytes.
pub(super) const RAW: u64 = 9;

/// Instead of a field number: no field at all, as some exporters store empty tensors.
pub(super) const NOTHING: u64 = 0;

/// A decoded model's large fields.
pub(super) struct Payloads {
    pub file: Arc<SourceFile>,
    pub list: Vec<Payload>,
}

impl Payloads {
    fn get(&self, number: u64) -> Result<Payload> {
        let found = usize::try_from(number).ok().and_then(|n| self.list.get(n));
        found.copied().ok_or_else(|| Error::internal("ONNX-PAYLOAD", "a payload number is out of range"))
    }

    fn region(&self, payload: Payload) -> Result<Region> {
        Region::new(self.file.clone(), payload.offset, payload.len)
    }

    /// Puts large fields back into a tensor that is carried as it is. `budget` shrinks by the bytes.
    pub(super) fn inline(&self, tensor: &mut TensorProto, budget: &mut u64) -> Result<()> {
        for number in std::mem::take(&mut tensor.payload) {
            let payload = self.get(number)?;
            *budget = budget.checked_sub(payload.len).ok_or_else(|| {
                Error::limit_exceeded("ONNX-CARRIED", "functions and opaque attributes hold too much data")
                    .limit("256 MiB in all")
            })?;
            let bytes = self.region(payload)?.read()?;
            let numbers = || {
                unpack(&bytes, bytes.len()).ok_or_else(|| {
                    Error::invalid("ONNX-VARINT", "packed numbers are damaged").offset(payload.offset)
                })
            };
            match payload.field {
                4 => tensor.float_data.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes(fixed(b)))),
                5 => tensor.int32_data.extend(numbers()?.iter().map(|v| *v as i32)),
                7 => tensor.int64_data.extend(numbers()?.iter().map(|v| *v as i64)),
                10 => tensor.double_data.extend(bytes.chunks_exact(8).map(|b| f64::from_le_bytes(fixed(b)))),
                11 => tensor.uint64_data.extend(numbers()?),
                _ => tensor.raw_data = Some(bytes.into()),
            }
        }
        Ok(())
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk::<N>().copied().unwrap_or([0; N])
}

/// Shape and element type of a tensor, checked.
pub(super) fn head(tensor: &TensorProto, limits: &Limits) -> Result<(DType, Vec<usize>)> {
    let shape = shape(&tensor.dims, limits)?;
    if tensor.segment.is_some() {
        return Err(
            Error::unsupported("ONNX-SEGMENT", "segmented tensors are not supported").field("segment")
        );
    }
    let number = tensor.data_type.unwrap_or(0);
    if number == 0 {
        return Err(Error::invalid("ONNX-DTYPE", "the tensor has no element type")
            .field("data_type")
            .found(0));
    }
    let dtype = DType::from_onnx(number).ok_or_else(|| {
        Error::unsupported("ONNX-DTYPE", "the element type is not known")
            .field("data_type")
            .found(number)
            .limit("1 to 26")
            .hint("the file is newer than this version, or damaged")
    })?;
    Ok((dtype, shape))
}

fn shape(dims: &[i64], limits: &Limits) -> Result<Vec<usize>> {
    if dims.len() > limits.rank {
        return Err(Error::limit_exceeded("LIMIT", "the tensor has too many axes")
            .field("dims")
            .found(dims.len())
            .limit(limits.rank));
    }
    let sizes: Option<Vec<usize>> = dims.iter().map(|d| usize::try_from(*d).ok()).collect();
    let sizes = sizes.ok_or_else(|| {
        Error::invalid("ONNX-DIMS", "a dimension is negative")
            .field("dims")
            .found(format!("{dims:?}"))
            .limit("0 or more")
    })?;
    let count = element_count(&sizes).filter(|n| *n <= isize::MAX as usize / 16);
    if count.is_none() {
        return Err(Error::invalid("ONNX-DIMS", "the shape overflows")
            .field("dims")
            .found(format!("{dims:?}")));
    }
    Ok(sizes)
}

/// The bytes that type and shape ask for; `None` for strings.
pub(super) fn need(dtype: DType, shape: &[usize]) -> Option<u64> {
    dtype.byte_len(element_count(shape)?)
}

fn mismatch(dtype: DType, shape: &[usize], field: &str, found: String, wanted: String) -> Error {
    Error::invalid("ONNX-BYTES", "the data does not match type and shape")
        .field(field)
        .found(found)
        .limit(format!("{wanted} for {dtype}{shape:?}"))
        .hint("the file is damaged: download or export it again")
}

/// A tensor that is stored in the file itself, and the field that its elements stood in.
pub(super) fn stored(tensor: &TensorProto, payloads: &Payloads, limits: &Limits) -> Result<(Tensor, u64)> {
    let (dtype, shape) = head(tensor, limits)?;
    if tensor.data_location == Some(DataLocation::External as i32) {
        return Err(Error::internal("ONNX-EXTERNAL", "external data reached the reader of stored data"));
    }
    if !tensor.external_data.is_empty() {
        return Err(Error::invalid("ONNX-DATA", "external data is named, but the tensor is stored here")
            .field("data_location"));
    }
    let small = [
        (4, tensor.float_data.len()),
        (5, tensor.int32_data.len()),
        (6, tensor.string_data.len()),
        (7, tensor.int64_data.len()),
        (RAW, tensor.raw_data.as_ref().map_or(0, Bytes::len)),
        (10, tensor.double_data.len()),
        (11, tensor.uint64_data.len()),
    ];
    let mut fields = small.iter().filter(|(_, n)| *n > 0).map(|(f, _)| *f);
    let (first, second) = (fields.next(), fields.next());
    if second.is_some() || tensor.payload.len() > 1 || (first.is_some() && !tensor.payload.is_empty()) {
        return Err(Error::invalid("ONNX-DATA", "the tensor holds its data twice, in different fields")
            .field("raw_data")
            .hint("readers disagree on which one counts; export the model again"));
    }
    if let Some(number) = tensor.payload.first() {
        return large(dtype, shape, payloads, payloads.get(*number)?);
    }
    let field = first.unwrap_or(if tensor.raw_data.is_some() { RAW } else { NOTHING });
    let count: usize = shape.iter().product();
    let bytes: &[u8] = tensor.raw_data.as_deref().unwrap_or_default();
    let built = match field {
        RAW | NOTHING if dtype == DType::Str && count == 0 => Tensor::new(dtype, shape, Data::Str(vec![]))?,
        RAW | NOTHING => raw(dtype, shape, bytes)?,
        6 => {
            let strings: Vec<Vec<u8>> = tensor.string_data.iter().map(|b| b.to_vec()).collect();
            if dtype != DType::Str || strings.len() != count {
                let found = format!("{} strings", strings.len());
                return Err(mismatch(dtype, &shape, "string_data", found, format!("{count} strings")));
            }
            Tensor::new(dtype, shape, Data::Str(strings))?
        }
        4 => typed(dtype, shape, "float_data", Numbers::F32(&tensor.float_data))?,
        5 => {
            let wide: Vec<i64> = tensor.int32_data.iter().map(|v| i64::from(*v)).collect();
            typed(dtype, shape, "int32_data", Numbers::Int(&wide))?
        }
        7 => typed(dtype, shape, "int64_data", Numbers::I64(&tensor.int64_data))?,
        10 => typed(dtype, shape, "double_data", Numbers::F64(&tensor.double_data))?,
        _ => typed(dtype, shape, "uint64_data", Numbers::U64(&tensor.uint64_data))?,
    };
    Ok((built, field))
}

fn raw(dtype: DType, shape: Vec<usize>, bytes: &[u8]) -> Result<Tensor> {
    match need(dtype, &shape) {
        Some(n) if n == bytes.len() as u64 => Tensor::from_raw(dtype, shape, bytes),
        wanted => Err(mismatch(
            dtype,
            &shape,
            "raw_data",
            format!("{} bytes", bytes.len()),
            wanted.map_or("string_data".into(), |n| format!("{n} bytes")),
        )),
    }
}

/// A field that stayed in the file: fixed-width data is the tensor's region, varints are decoded.
fn large(dtype: DType, shape: Vec<usize>, payloads: &Payloads, payload: Payload) -> Result<(Tensor, u64)> {
    let field = u64::from(payload.field);
    let same = match field {
        RAW => true,
        4 => matches!(dtype, DType::F32 | DType::C64),
        10 => matches!(dtype, DType::F64 | DType::C128),
        _ => false,
    };
    if same {
        let wanted = need(dtype, &shape);
        if wanted != Some(payload.len) {
            let wanted = wanted.map_or("string_data".into(), |n| format!("{n} bytes"));
            let name = if field == RAW { "raw_data" } else { "float_data" };
            return Err(mismatch(dtype, &shape, name, format!("{} bytes", payload.len), wanted)
                .offset(payload.offset));
        }
        return Ok((Tensor::from_region(dtype, shape, payloads.region(payload)?)?, field));
    }
    let stored = dtype.stored_len(shape.iter().product());
    // A varint takes one to ten bytes; the count is checked before anything is read.
    let plausible = payload.len >= stored as u64 && payload.len / 10 <= stored as u64;
    if !plausible || matches!(field, 4 | 10) {
        let name = field_name(field);
        return Err(mismatch(
            dtype,
            &shape,
            name,
            format!("{} bytes", payload.len),
            format!("{stored} numbers"),
        )
        .offset(payload.offset));
    }
    let bytes = payloads.region(payload)?.read()?;
    let numbers = unpack(&bytes, stored).filter(|n| n.len() == stored).ok_or_else(|| {
        Error::invalid("ONNX-BYTES", "packed numbers are damaged or of another count")
            .field(field_name(field))
            .offset(payload.offset)
            .limit(format!("{stored} numbers for {dtype}{shape:?}"))
    })?;
    drop(bytes);
    let tensor = match field {
        5 => {
            let wide: Vec<i64> = numbers.iter().map(|v| i64::from(*v as i32)).collect();
            typed(dtype, shape, "int32_data", Numbers::Int(&wide))?
        }
        7 => typed(dtype, shape, "int64_data", Numbers::I64(bytemuck::cast_slice(&numbers)))?,
        _ => typed(dtype, shape, "uint64_data", Numbers::U64(&numbers))?,
    };
    Ok((tensor, RAW))
}

fn field_name(field: u64) -> &'static str {
    match field {
        4 => "float_data",
        5 => "int32_data",
        7 => "int64_data",
        10 => "double_data",
        11 => "uint64_data",
        _ => "raw_data",
    }
}

enum Numbers<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
    I64(&'a [i64]),
    U64(&'a [u64]),
    /// `int32_data`, which also holds narrower integers, booleans and the bits of halves.
    Int(&'a [i64]),
}

fn typed(dtype: DType, shape: Vec<usize>, field: &'static str, numbers: Numbers<'_>) -> Result<Tensor> {
    let stored = dtype.stored_len(shape.iter().product());
    let count = match &numbers {
        Numbers::F32(v) => v.len(),
        Numbers::F64(v) => v.len(),
        Numbers::I64(v) | Numbers::Int(v) => v.len(),
        Numbers::U64(v) => v.len(),
    };
    if count != stored {
        return Err(mismatch(dtype, &shape, field, format!("{count} numbers"), format!("{stored} numbers")));
    }
    let outside = |low: i64, high: i64, v: &[i64]| -> Result<()> {
        match v.iter().find(|x| !(low..=high).contains(x)) {
            None => Ok(()),
            Some(x) => Err(Error::invalid("ONNX-VALUE", "a stored number does not fit the element type")
                .field(field)
                .found(x)
                .limit(format!("{low} to {high} for {dtype}"))),
        }
    };
    let byte = |v: &[i64]| -> Vec<u8> { v.iter().map(|x| *x as u8).collect() };
    let data = match (numbers, dtype) {
        (Numbers::F32(v), DType::F32 | DType::C64) => Data::F32(v.to_vec()),
        (Numbers::F64(v), DType::F64 | DType::C128) => Data::F64(v.to_vec()),
        (Numbers::I64(v), DType::I64) => Data::I64(v.to_vec()),
        (Numbers::U64(v), DType::U64) => Data::U64(v.to_vec()),
        (Numbers::U64(v), DType::U32) => {
            let narrow: Option<Vec<u32>> = v.iter().map(|x| u32::try_from(*x).ok()).collect();
            Data::U32(narrow.ok_or_else(|| {
                Error::invalid("ONNX-VALUE", "a stored number does not fit the element type").field(field)
            })?)
        }
        (Numbers::Int(v), DType::I32) => Data::I32(v.iter().map(|x| *x as i32).collect()),
        (Numbers::Int(v), DType::I16) => {
            outside(-32_768, 32_767, v)?;
            Data::I16(v.iter().map(|x| *x as i16).collect())
        }
        (Numbers::Int(v), DType::U16) => {
            outside(0, 65_535, v)?;
            Data::U16(v.iter().map(|x| *x as u16).collect())
        }
        (Numbers::Int(v), DType::I8) => {
            outside(-128, 127, v)?;
            Data::I8(v.iter().map(|x| *x as i8).collect())
        }
        (Numbers::Int(v), DType::F16) => {
            outside(0, 65_535, v)?;
            Data::F16(v.iter().map(|x| f16::from_bits(*x as u16)).collect())
        }
        (Numbers::Int(v), DType::BF16) => {
            outside(0, 65_535, v)?;
            Data::BF16(v.iter().map(|x| bf16::from_bits(*x as u16)).collect())
        }
        (Numbers::Int(v), DType::U8 | DType::Bool) => {
            outside(0, 255, v)?;
            Data::U8(byte(v))
        }
        // Packed 2- and 4-bit types and 8-bit floats: one byte a number, written signed by some.
        (Numbers::Int(v), t) if t.bits() <= 8 && t.bits() > 0 => {
            outside(-128, 255, v)?;
            Data::U8(byte(v))
        }
        _ => {
            return Err(Error::invalid("ONNX-DATA", "elements of this type are not stored in this field")
                .field(field)
                .found(dtype));
        }
    };
    Tensor::new(dtype, shape, data)
}

/// Writes a small tensor's elements into `proto`, in the typed field `form` where the type allows it.
pub(super) fn store(tensor: &Tensor, form: Option<u64>, proto: &mut TensorProto) -> Result<()> {
    if form == Some(NOTHING) && tensor.shape().contains(&0) {
        return Ok(());
    }
    let data = tensor.data()?;
    let ints = |v: Vec<i32>| (Some(5), v);
    let (fits, narrow) = match (&*data, tensor.dtype()) {
        (Data::Str(v), _) => {
            proto.string_data = v.iter().map(|s| Bytes::from(s.clone())).collect();
            return Ok(());
        }
        (Data::F32(_), _) => (Some(4), vec![]),
        (Data::F64(_), _) => (Some(10), vec![]),
        (Data::I64(_), _) => (Some(7), vec![]),
        (Data::U64(_) | Data::U32(_), _) => (Some(11), vec![]),
        (Data::I32(v), _) => ints(v.clone()),
        (Data::I16(v), _) => ints(v.iter().map(|x| i32::from(*x)).collect()),
        (Data::U16(v), _) => ints(v.iter().map(|x| i32::from(*x)).collect()),
        (Data::I8(v), _) => ints(v.iter().map(|x| i32::from(*x)).collect()),
        (Data::U8(v), _) => ints(v.iter().map(|x| i32::from(*x)).collect()),
        (Data::F16(v), _) => ints(v.iter().map(|x| i32::from(x.to_bits())).collect()),
        (Data::BF16(v), _) => ints(v.iter().map(|x| i32::from(x.to_bits())).collect()),
    };
    if form != fits || form.is_none() {
        let mut bytes = Vec::new();
        tensor.write_raw(&mut bytes)?;
        proto.raw_data = Some(bytes.into());
        return Ok(());
    }
    match &*data {
        Data::F32(v) => proto.float_data = v.clone(),
        Data::F64(v) => proto.double_data = v.clone(),
        Data::I64(v) => proto.int64_data = v.clone(),
        Data::U64(v) => proto.uint64_data = v.clone(),
        Data::U32(v) => proto.uint64_data = v.iter().map(|x| u64::from(*x)).collect(),
        _ => proto.int32_data = narrow,
    }
    Ok(())
}

/// The field that a large tensor is written to: fixed-width typed data where it was read from there.
pub(super) fn large_field(dtype: DType, form: Option<u64>) -> u32 {
    match (form, dtype) {
        (Some(4), DType::F32 | DType::C64) => 4,
        (Some(10), DType::F64 | DType::C128) => 10,
        _ => 9,
    }
}

/// A sparse tensor spelled out.
pub(super) fn dense(sparse: &SparseTensorProto, payloads: &Payloads, limits: &Limits) -> Result<Tensor> {
    let bad = |message: &str| Error::invalid("ONNX-SPARSE", message.to_string());
    let (Some(values), Some(indices)) = (&sparse.values, &sparse.indices) else {
        return Err(bad("a sparse tensor needs values and indices"));
    };
    let shape = shape(&sparse.dims, limits)?;
    let dtype = head(values, limits)?.0;
    let bytes = need(dtype, &shape).ok_or_else(|| bad("sparse tensors of strings do not exist"))?;
    if bytes > limits.structure_bytes {
        return Err(too_large(
            "structure_bytes",
            "a sparse tensor spelled out",
            bytes,
            limits.structure_bytes,
        )
        .field("dims"));
    }
    let width = u64::from(dtype.bits() / 8) as usize;
    if width == 0 {
        return Err(Error::unsupported("ONNX-SPARSE", "sparse tensors of packed types are not supported"));
    }
    let (values, _) = stored(values, payloads, limits)?;
    let (indices, _) = stored(indices, payloads, limits)?;
    let (count, rank) = (values.len(), shape.len());
    let linear = indices.shape() == [count];
    if !linear && indices.shape() != [count, rank] {
        return Err(bad("indices do not match the values").found(format!("{:?}", indices.shape())));
    }
    let positions = indices.to_vec::<i64>().map_err(|_| bad("indices must be 64-bit integers"))?;
    let mut source = Vec::new();
    values.write_raw(&mut source)?;
    let mut out = vec![0u8; usize::try_from(bytes).map_err(|_| bad("the shape overflows"))?];
    for (i, value) in source.chunks_exact(width).enumerate() {
        let outside = || bad("an index lies outside the shape").field(format!("indices[{i}]"));
        let at = if linear {
            positions.get(i).and_then(|p| usize::try_from(*p).ok())
        } else {
            positions.get(i * rank..(i + 1) * rank).and_then(|index| {
                index.iter().zip(&shape).try_fold(0usize, |at, (p, size)| {
                    let p = usize::try_from(*p).ok().filter(|p| p < size)?;
                    at.checked_mul(*size)?.checked_add(p)
                })
            })
        };
        let start = at.and_then(|a| a.checked_mul(width)).ok_or_else(outside)?;
        let end = start.checked_add(width).ok_or_else(outside)?;
        out.get_mut(start..end).ok_or_else(outside)?.copy_from_slice(value);
    }
    Tensor::from_raw(dtype, shape, &out)
}
