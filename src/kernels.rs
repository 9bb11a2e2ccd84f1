//! Hot numeric loops on slices. Slices enter and leave; no tensor, operator or graph is known here.
//! Sizes are the caller's contract: every kernel asserts them before it touches memory.

pub mod conv;
pub mod depthwise;
pub mod gemm;
pub mod integer;
pub mod movement;
pub mod norm;
pub mod pool;
pub mod real;
pub mod resample;
