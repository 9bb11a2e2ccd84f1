//! Tensor types of GGUF by number: their names, and how their bytes become elements.

use crate::kernels::blocks::Encoding;
use crate::tensor::DType;

/// How a tensor type is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Plain elements.
    Plain(DType),
    /// Blocks that are spelled out as `f32`.
    Blocks(Encoding),
    /// Known by name; its bytes are not read.
    Named,
}

/// Name and form of a type number.
pub(super) fn find(number: u32) -> Option<(&'static str, Form)> {
    use Encoding as E;
    let blocks = |e: E| Some((e.name(), Form::Blocks(e)));
    let plain = |name, dtype| Some((name, Form::Plain(dtype)));
    let named = |name| Some((name, Form::Named));
    match number {
        0 => plain("F32", DType::F32),
        1 => plain("F16", DType::F16),
        2 => blocks(E::Q4_0),
        3 => blocks(E::Q4_1),
        4 => named("Q4_2"),
        5 => named("Q4_3"),
        6 => blocks(E::Q5_0),
        7 => blocks(E::Q5_1),
        8 => blocks(E::Q8_0),
        // Only an intermediate of computations; its block has had two sizes.
        9 => named("Q8_1"),
        10 => blocks(E::Q2_K),
        11 => blocks(E::Q3_K),
        12 => blocks(E::Q4_K),
        13 => blocks(E::Q5_K),
        14 => blocks(E::Q6_K),
        15 => blocks(E::Q8_K),
        16 => blocks(E::IQ2_XXS),
        17 => blocks(E::IQ2_XS),
        18 => blocks(E::IQ3_XXS),
        19 => blocks(E::IQ1_S),
        20 => blocks(E::IQ4_NL),
        21 => blocks(E::IQ3_S),
        22 => blocks(E::IQ2_S),
        23 => blocks(E::IQ4_XS),
        24 => plain("I8", DType::I8),
        25 => plain("I16", DType::I16),
        26 => plain("I32", DType::I32),
        27 => plain("I64", DType::I64),
        28 => plain("F64", DType::F64),
        29 => blocks(E::IQ1_M),
        30 => plain("BF16", DType::BF16),
        31 => named("Q4_0_4_4"),
        32 => named("Q4_0_4_8"),
        33 => named("Q4_0_8_8"),
        34 => blocks(E::TQ1_0),
        35 => blocks(E::TQ2_0),
        36 => named("IQ4_NL_4_4"),
        37 => named("IQ4_NL_4_8"),
        38 => named("IQ4_NL_8_8"),
        39 => blocks(E::MXFP4),
        40 => blocks(E::NVFP4),
        41 => blocks(E::Q1_0),
        42 => blocks(E::Q2_0),
        _ => None,
    }
}
