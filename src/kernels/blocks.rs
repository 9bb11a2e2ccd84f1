//! Block encodings of GGUF files: fixed numbers of elements that share scales. Stored bytes enter, `f32`
//! leave, bit for bit as ggml's reference arithmetic gives them (products before sums, no fused
//! operations). Knows no file and no tensor.
//!
//! Layouts: `ggml-common.h` and `ggml-quants.c` of the ggml project.

mod codebook;
mod grids;
mod small;
mod superblock;

use std::fmt;

macro_rules! encodings {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $elements:literal, $bytes:literal, $kernel:path;)*) => {
        /// A block encoding.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(non_camel_case_types)]
        pub enum Encoding { $($(#[$doc])* $name,)* }

        impl Encoding {
            /// Every encoding.
            pub const ALL: &[Encoding] = &[$(Encoding::$name),*];
            /// Name as GGUF tools print it.
            pub fn name(self) -> &'static str {
                match self { $(Encoding::$name => $text,)* }
            }
            /// Elements of one block.
            pub fn elements(self) -> usize {
                match self { $(Encoding::$name => $elements,)* }
            }
            /// Bytes of one block.
            pub fn bytes(self) -> usize {
                match self { $(Encoding::$name => $bytes,)* }
            }
            /// Spells whole blocks out. `out` holds exactly the elements of the blocks in `bytes`.
            pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
                assert_eq!(bytes.len() % self.bytes(), 0, "whole blocks enter");
                assert_eq!(bytes.len() / self.bytes() * self.elements(), out.len(), "their elements leave");
                match self { $(Encoding::$name => each::<$bytes, $elements>(bytes, out, $kernel),)* }
            }
        }
    };
}

encodings! {
    /// One bit, one scale.
    Q1_0 = "Q1_0", 128, 18, small::q1_0;
    /// Two bits, one scale.
    Q2_0 = "Q2_0", 64, 18, small::q2_0;
    /// Four bits, one scale.
    Q4_0 = "Q4_0", 32, 18, small::q4_0;
    /// Four bits, scale and minimum.
    Q4_1 = "Q4_1", 32, 20, small::q4_1;
    /// Five bits, one scale.
    Q5_0 = "Q5_0", 32, 22, small::q5_0;
    /// Five bits, scale and minimum.
    Q5_1 = "Q5_1", 32, 24, small::q5_1;
    /// Eight bits, one scale.
    Q8_0 = "Q8_0", 32, 34, small::q8_0;
    /// Four-bit float, power-of-two scale.
    MXFP4 = "MXFP4", 32, 17, small::mxfp4;
    /// Four-bit float, an 8-bit float scale for each 16.
    NVFP4 = "NVFP4", 64, 36, small::nvfp4;
    /// Four bits on a curve, one scale.
    IQ4_NL = "IQ4_NL", 32, 18, small::iq4_nl;
    /// Four bits on a curve, 6-bit scales.
    IQ4_XS = "IQ4_XS", 256, 136, superblock::iq4_xs;
    /// Two bits, 4-bit scales and minima.
    Q2_K = "Q2_K", 256, 84, superblock::q2_k;
    /// Three bits, 6-bit scales.
    Q3_K = "Q3_K", 256, 110, superblock::q3_k;
    /// Four bits, 6-bit scales and minima.
    Q4_K = "Q4_K", 256, 144, superblock::q4_k;
    /// Five bits, 6-bit scales and minima.
    Q5_K = "Q5_K", 256, 176, superblock::q5_k;
    /// Six bits, 8-bit scales.
    Q6_K = "Q6_K", 256, 210, superblock::q6_k;
    /// Eight bits, one scale, sums beside them.
    Q8_K = "Q8_K", 256, 292, superblock::q8_k;
    /// Ternary, five in a byte.
    TQ1_0 = "TQ1_0", 256, 54, superblock::tq1_0;
    /// Ternary, four in a byte.
    TQ2_0 = "TQ2_0", 256, 66, superblock::tq2_0;
    /// Codebook of 2048, 1.56 bits.
    IQ1_S = "IQ1_S", 256, 50, codebook::iq1_s;
    /// Codebook of 2048, 1.75 bits.
    IQ1_M = "IQ1_M", 256, 56, codebook::iq1_m;
    /// Codebook of 256, 2.06 bits.
    IQ2_XXS = "IQ2_XXS", 256, 66, codebook::iq2_xxs;
    /// Codebook of 512, 2.31 bits.
    IQ2_XS = "IQ2_XS", 256, 74, codebook::iq2_xs;
    /// Codebook of 1024, 2.56 bits.
    IQ2_S = "IQ2_S", 256, 82, codebook::iq2_s;
    /// Codebook of 256, 3.06 bits.
    IQ3_XXS = "IQ3_XXS", 256, 98, codebook::iq3_xxs;
    /// Codebook of 512, 3.44 bits.
    IQ3_S = "IQ3_S", 256, 110, codebook::iq3_s;
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[inline]
fn each<const BYTES: usize, const ELEMENTS: usize>(
    bytes: &[u8],
    out: &mut [f32],
    kernel: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    let (results, _) = out.as_chunks_mut::<ELEMENTS>();
    blocks.iter().zip(results).for_each(|(block, result)| kernel(block, result));
}

/// The half-precision scale at byte `at`.
#[inline]
fn half_at(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[inline]
fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

#[inline]
fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}
