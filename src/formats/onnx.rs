//! ONNX files: untrusted bytes in, graphs out, and back. Knows protobuf and file layout; what an
//! operator means is none of its business.

pub mod proto;
mod wire;
