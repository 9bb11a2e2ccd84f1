//! ONNX files: untrusted bytes in, graphs out, and back. Knows protobuf and file layout; what an
//! operator means is none of its business.

mod carried;
mod elements;
pub(crate) mod export;
mod external;
mod functions;
pub(crate) mod import;
pub mod proto;
mod wire;
