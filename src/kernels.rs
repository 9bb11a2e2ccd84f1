//! Hot numeric loops on slices. Slices enter and leave; no tensor, operator or graph is known here.
//! Sizes are the caller's contract: every kernel asserts them before it touches memory.

pub mod adam;
pub mod analytic;
pub mod attention;
pub mod blocks;
pub mod cholesky;
pub mod conv;
pub mod depthwise;
pub mod divergence;
pub mod gemm;
pub mod index;
pub mod integer;
pub mod movement;
pub mod norm;
pub mod packed;
pub mod pairs;
pub mod pointwise;
pub mod pool;
pub mod real;
pub mod reduce;
pub mod resample;
pub mod rotary;
pub mod softmax;
pub mod whole;
pub mod wide;
