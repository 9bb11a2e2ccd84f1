//! Readers and writers of model files, the only code that sees untrusted bytes.

pub mod detect;
pub mod limits;
pub mod onnx;

pub use limits::Limits;
