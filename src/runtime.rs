//! ONNX Runtime: finding and installing the library, sessions, threads, per-operator profile.
