//! What 8-bit integers gain over 32-bit floats by instruction set; what the sets do with them stands in
//! `hardware::integer`.

use super::Range;
use crate::hardware::IntegerSet;

/// Speed of an int8 kernel relative to the float one.
pub(in crate::plan) struct Int8Speed {
    /// Products with weights.
    pub(in crate::plan) product: Range,
    /// Convolutions.
    pub(in crate::plan) conv: Range,
    /// Where the figures come from.
    pub(in crate::plan) source: &'static str,
}

/// The figures for an instruction set. Published medians of ONNX Runtime's int8 models (Intel Neural
/// Compressor table, ORT issue 6695, ORT and Hugging Face 2020) and this project's runs on VNNI; the
/// rows without such runs carry wide ranges.
pub(in crate::plan) fn int8_speed(isa: &str) -> Int8Speed {
    let row = |product, conv, source| Int8Speed { product, conv, source };
    match IntegerSet::of(isa).map_or(isa, |s| s.name) {
        "amx" => row(
            Range::new(1.5, 2.6, 4.5),
            Range::new(1.4, 2.4, 4.5),
            "AMX multiplies 8-bit tiles; published medians are near 2x for whole models",
        ),
        "avx512_vnni" | "avx_vnni" => row(
            Range::new(1.4, 2.3, 3.4),
            Range::new(1.3, 2.2, 3.1),
            "VNNI adds four 8-bit products at once; measured 1.9 to 2.8x on whole models",
        ),
        "avx512" => row(
            Range::new(0.9, 1.2, 1.7),
            Range::new(0.8, 1.2, 1.7),
            "AVX-512 without VNNI gains little from 8-bit integers",
        ),
        "avx2" => row(
            Range::new(0.8, 1.15, 1.6),
            Range::new(0.8, 1.15, 1.7),
            "AVX2 has no 8-bit dot product: reported gains run from none to 1.6x",
        ),
        "neon_i8mm" => row(
            Range::new(1.5, 2.6, 4.0),
            Range::new(1.4, 2.3, 3.5),
            "i8mm multiplies 8-bit matrices directly",
        ),
        "neon_dot" => row(
            Range::new(1.3, 2.0, 3.2),
            Range::new(1.2, 1.9, 3.0),
            "NEON dot products add four 8-bit products at once",
        ),
        "neon" => row(
            Range::new(0.8, 1.2, 1.7),
            Range::new(0.8, 1.2, 1.7),
            "NEON without dot products gains little from 8-bit integers",
        ),
        _ => row(
            Range::new(0.5, 0.9, 1.5),
            Range::new(0.5, 0.9, 1.5),
            "nothing is known about 8-bit integers on this instruction set",
        ),
    }
}
