//! Element types of ONNX, their encodings and conversions.

use super::Data;
use crate::error::{Error, Result};
use half::{bf16, f16};
use std::fmt;

macro_rules! dtypes {
    ($($(#[$doc:meta])* $name:ident = $onnx:literal, $text:literal, $bits:literal;)*) => {
        /// Element type; discriminants are ONNX `TensorProto.DataType`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[allow(non_camel_case_types)]
        pub enum DType { $($(#[$doc])* $name = $onnx,)* }

        impl DType {
            /// Every type.
            pub const ALL: &[DType] = &[$(DType::$name),*];
            /// The type with this ONNX number.
            pub fn from_onnx(number: i32) -> Option<DType> {
                match number { $($onnx => Some(DType::$name),)* _ => None }
            }
            /// Short name, as printed: `f32`, `i8`, `bool`.
            pub fn name(self) -> &'static str {
                match self { $(DType::$name => $text,)* }
            }
            /// Bits of one element; 0 for strings.
            pub fn bits(self) -> u32 {
                match self { $(DType::$name => $bits,)* }
            }
        }
    };
}

dtypes! {
    /// 32-bit float.
    F32 = 1, "f32", 32;
    /// Unsigned 8-bit integer.
    U8 = 2, "u8", 8;
    /// Signed 8-bit integer.
    I8 = 3, "i8", 8;
    /// Unsigned 16-bit integer.
    U16 = 4, "u16", 16;
    /// Signed 16-bit integer.
    I16 = 5, "i16", 16;
    /// Signed 32-bit integer.
    I32 = 6, "i32", 32;
    /// Signed 64-bit integer.
    I64 = 7, "i64", 64;
    /// Byte string.
    Str = 8, "string", 0;
    /// Boolean, one byte each.
    Bool = 9, "bool", 8;
    /// IEEE half.
    F16 = 10, "f16", 16;
    /// 64-bit float.
    F64 = 11, "f64", 64;
    /// Unsigned 32-bit integer.
    U32 = 12, "u32", 32;
    /// Unsigned 64-bit integer.
    U64 = 13, "u64", 64;
    /// Complex of two f32.
    C64 = 14, "c64", 64;
    /// Complex of two f64.
    C128 = 15, "c128", 128;
    /// Brain float.
    BF16 = 16, "bf16", 16;
    /// 8-bit float E4M3FN.
    F8E4M3FN = 17, "f8e4m3fn", 8;
    /// 8-bit float E4M3FNUZ.
    F8E4M3FNUZ = 18, "f8e4m3fnuz", 8;
    /// 8-bit float E5M2.
    F8E5M2 = 19, "f8e5m2", 8;
    /// 8-bit float E5M2FNUZ.
    F8E5M2FNUZ = 20, "f8e5m2fnuz", 8;
    /// Unsigned 4-bit integer, two in a byte.
    U4 = 21, "u4", 4;
    /// Signed 4-bit integer, two in a byte.
    I4 = 22, "i4", 4;
    /// 4-bit float E2M1, two in a byte.
    F4E2M1 = 23, "f4e2m1", 4;
    /// 8-bit exponent.
    F8E8M0 = 24, "f8e8m0", 8;
    /// Unsigned 2-bit integer, four in a byte.
    U2 = 25, "u2", 2;
    /// Signed 2-bit integer, four in a byte.
    I2 = 26, "i2", 2;
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl DType {
    /// The types that the executor computes in.
    pub const FLOATS: &[DType] = &[DType::F32, DType::F64, DType::F16, DType::BF16];
    /// Floats and integers of 8 to 64 bits.
    pub const NUMBERS: &[DType] = &[
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
    ];
    /// Integers of 8 to 64 bits.
    pub const INTS: &[DType] =
        &[DType::U8, DType::I8, DType::U16, DType::I16, DType::U32, DType::I32, DType::U64, DType::I64];

    /// ONNX number.
    pub fn onnx(self) -> i32 {
        self as i32
    }
    /// f16, bf16, f32, f64: the types that the executor computes in.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F16 | DType::BF16 | DType::F32 | DType::F64)
    }
    /// Integers of 8 to 64 bits.
    pub fn is_int(self) -> bool {
        use DType::*;
        matches!(self, U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
    }
    /// Signed integers of 8 to 64 bits.
    pub fn is_signed_int(self) -> bool {
        matches!(self, DType::I8 | DType::I16 | DType::I32 | DType::I64)
    }
    /// Whether several elements share a byte.
    pub fn is_packed(self) -> bool {
        matches!(self.bits(), 2 | 4)
    }
    /// Bytes of `n` elements; `None` for strings and on overflow.
    pub fn byte_len(self, n: usize) -> Option<u64> {
        if self == DType::Str {
            return None;
        }
        let bits = (n as u64).checked_mul(u64::from(self.bits()))?;
        Some(bits.div_ceil(8))
    }
    /// Entries of the representing vector for `n` elements.
    pub fn stored_len(self, n: usize) -> usize {
        match self {
            DType::C64 | DType::C128 => n.saturating_mul(2),
            t if t.is_packed() => (n * t.bits() as usize).div_ceil(8),
            _ => n,
        }
    }
    /// Whether `data` is the representation of this type.
    pub fn is_stored_as(self, data: &Data) -> bool {
        std::mem::discriminant(&self.empty()) == std::mem::discriminant(data)
    }
    /// The representing vector, without entries.
    pub(super) fn empty(self) -> Data {
        use DType::*;
        match self {
            I8 => Data::I8(vec![]),
            U16 => Data::U16(vec![]),
            I16 => Data::I16(vec![]),
            U32 => Data::U32(vec![]),
            I32 => Data::I32(vec![]),
            U64 => Data::U64(vec![]),
            I64 => Data::I64(vec![]),
            F16 => Data::F16(vec![]),
            BF16 => Data::BF16(vec![]),
            F32 | C64 => Data::F32(vec![]),
            F64 | C128 => Data::F64(vec![]),
            Str => Data::Str(vec![]),
            _ => Data::U8(vec![]),
        }
    }
    /// Little-endian bytes to elements; the length must be a whole number of entries.
    pub fn decode(self, bytes: &[u8]) -> Result<Data> {
        fn typed<T: bytemuck::Pod>(bytes: &[u8]) -> Option<Vec<T>> {
            if !bytes.len().is_multiple_of(size_of::<T>()) {
                return None;
            }
            let mut out = vec![T::zeroed(); bytes.len() / size_of::<T>()];
            bytemuck::cast_slice_mut::<T, u8>(&mut out).copy_from_slice(bytes);
            Some(out)
        }
        let data = match self.empty() {
            Data::U8(_) => Some(Data::U8(bytes.to_vec())),
            Data::I8(_) => typed(bytes).map(Data::I8),
            Data::U16(_) => typed(bytes).map(Data::U16),
            Data::I16(_) => typed(bytes).map(Data::I16),
            Data::U32(_) => typed(bytes).map(Data::U32),
            Data::I32(_) => typed(bytes).map(Data::I32),
            Data::U64(_) => typed(bytes).map(Data::U64),
            Data::I64(_) => typed(bytes).map(Data::I64),
            Data::F16(_) => typed(bytes).map(Data::F16),
            Data::BF16(_) => typed(bytes).map(Data::BF16),
            Data::F32(_) => typed(bytes).map(Data::F32),
            Data::F64(_) => typed(bytes).map(Data::F64),
            Data::Str(_) => None,
        };
        data.ok_or_else(|| {
            Error::invalid("TENSOR-BYTES", format!("{} bytes do not hold whole {self} elements", bytes.len()))
        })
    }
}

/// A Rust type that a tensor can hold directly.
pub trait Element: bytemuck::Pod + PartialEq + PartialOrd + fmt::Debug + Send + Sync {
    /// Its element type.
    const DTYPE: DType;
    /// Wraps a vector.
    fn wrap(v: Vec<Self>) -> Data;
    /// The vector, where the representation matches.
    fn unwrap(data: Data) -> Option<Vec<Self>>;
    /// A view, where the representation matches.
    fn view(data: &Data) -> Option<&[Self]>;
}

macro_rules! elements {
    ($($t:ty => $variant:ident),*) => { $(
        impl Element for $t {
            const DTYPE: DType = DType::$variant;
            fn wrap(v: Vec<Self>) -> Data { Data::$variant(v) }
            fn unwrap(data: Data) -> Option<Vec<Self>> {
                match data { Data::$variant(v) => Some(v), _ => None }
            }
            fn view(data: &Data) -> Option<&[Self]> {
                match data { Data::$variant(v) => Some(v), _ => None }
            }
        } )*
    };
}
elements!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64,
          f16 => F16, bf16 => BF16, f32 => F32, f64 => F64);

/// Conversion between the numeric representations by `as`, with halves through `f32`.
trait Number: Copy {
    fn to_f64(self) -> f64;
    fn to_i128(self) -> i128;
    const FLOAT: bool;
}
macro_rules! numbers {
    (int $($t:ty),*) => { $(impl Number for $t {
        fn to_f64(self) -> f64 { self as f64 }
        fn to_i128(self) -> i128 { self as i128 }
        const FLOAT: bool = false;
    })* };
    (float $($t:ty),*) => { $(impl Number for $t {
        fn to_f64(self) -> f64 { self.into() }
        fn to_i128(self) -> i128 { f64::from(self) as i128 }
        const FLOAT: bool = true;
    })* };
}
numbers!(int u8, i8, u16, i16, u32, i32, u64, i64);
numbers!(float f16, bf16, f32, f64);

/// See [`super::cast`]. Packed integers unpack; 8-bit floats and complex numbers are refused.
pub(super) fn cast(data: &Data, from: DType, to: DType) -> Result<Data> {
    if from == to {
        return Ok(data.clone());
    }
    let refuse = || Error::unsupported("CAST", format!("conversion from {from} to {to} is not supported"));
    let plain = |t: DType| t.is_float() || t.is_int() || t == DType::Bool;
    if matches!(from, DType::U4 | DType::I4 | DType::U2 | DType::I2) && plain(to) {
        let Data::U8(packed) = data else { return Err(refuse()) };
        let bits = from.bits();
        let signed = matches!(from, DType::I4 | DType::I2);
        let unpacked: Vec<i8> = packed
            .iter()
            .flat_map(|b| (0..8 / bits).map(move |i| (b >> (i * bits)) & ((1 << bits) - 1)))
            .map(|v| if signed && v >> (bits - 1) == 1 { v as i8 - (1 << bits) } else { v as i8 })
            .collect();
        return cast(&Data::I8(unpacked), DType::I8, to);
    }
    if !plain(from) || !plain(to) {
        return Err(refuse());
    }
    match (data, to) {
        (Data::BF16(v), DType::F32) => return Ok(Data::F32(widened(v))),
        (Data::F16(v), DType::F32) => return Ok(Data::F32(widened(v))),
        _ => {}
    }
    fn widened<T>(v: &[T]) -> Vec<f32>
    where
        [T]: half::slice::HalfFloatSliceExt,
    {
        let mut out = vec![0.0; v.len()];
        half::slice::HalfFloatSliceExt::convert_to_f32_slice(v, &mut out);
        out
    }
    fn go<T: Number>(v: &[T], to: DType) -> Data {
        macro_rules! ints {
            ($t:ty, $variant:ident) => {
                Data::$variant(
                    v.iter().map(|x| if T::FLOAT { x.to_f64() as $t } else { x.to_i128() as $t }).collect(),
                )
            };
        }
        match to {
            DType::U8 => ints!(u8, U8),
            DType::I8 => ints!(i8, I8),
            DType::U16 => ints!(u16, U16),
            DType::I16 => ints!(i16, I16),
            DType::U32 => ints!(u32, U32),
            DType::I32 => ints!(i32, I32),
            DType::U64 => ints!(u64, U64),
            DType::I64 => ints!(i64, I64),
            DType::F16 => Data::F16(v.iter().map(|x| f16::from_f64(x.to_f64())).collect()),
            DType::BF16 => Data::BF16(v.iter().map(|x| bf16::from_f64(x.to_f64())).collect()),
            DType::F32 => Data::F32(v.iter().map(|x| x.to_f64() as f32).collect()),
            DType::F64 => Data::F64(v.iter().map(|x| x.to_f64()).collect()),
            _ => Data::U8(v.iter().map(|x| u8::from(x.to_f64() != 0.0)).collect()),
        }
    }
    Ok(crate::with_data!(data, v => go(v, to), str => return Err(refuse())))
}
