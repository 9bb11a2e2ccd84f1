//! Readers and writers of model files, the only code that sees untrusted bytes.
