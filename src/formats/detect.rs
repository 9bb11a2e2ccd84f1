//! What a file is, by its first bytes; names are never asked. The head of a file enters, a
//! [`Content`] leaves, and for everything that is no model the error that names it and the way out.

use crate::error::Error;
use std::path::Path;

/// Content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// ONNX protobuf, as far as the first field tells.
    Onnx,
    /// safetensors.
    Safetensors,
    /// GGUF.
    Gguf,
    /// Something that is no model, or that is never read.
    Other(Other),
    /// Nothing known.
    Unknown,
}

/// Content that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Other {
    /// Nothing at all.
    Empty,
    /// Too short for any header.
    Short(usize),
    /// Zero bytes.
    Zeros,
    /// A pointer file of Git LFS.
    LfsPointer,
    /// A web page.
    Html,
    /// JSON text.
    Json,
    /// gzip.
    Gzip,
    /// zip, such as PyTorch's `.pt`.
    Zip,
    /// Python pickle.
    Pickle,
    /// TensorFlow Lite.
    TfLite,
    /// HDF5, such as Keras' `.h5`.
    Hdf5,
    /// A program.
    Elf,
    /// PDF.
    Pdf,
    /// The text form of ONNX or another text.
    Text,
}

/// Bytes that [`detect`] wants to see.
pub const HEAD: usize = 512;
/// Fewer bytes than this hold no model.
const SHORTEST: usize = 16;

/// Classifies by the first [`HEAD`] bytes (or all, where there are fewer).
pub fn detect(head: &[u8]) -> Content {
    let other = Content::Other;
    if head.is_empty() {
        return other(Other::Empty);
    }
    if head.starts_with(b"GGUF") || head.starts_with(b"FUGG") {
        return Content::Gguf;
    }
    if head.len() < SHORTEST {
        return other(Other::Short(head.len()));
    }
    let start = head.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(head.len());
    let text = head.get(start..).unwrap_or_default();
    let lower: Vec<u8> = text.iter().take(16).map(u8::to_ascii_lowercase).collect();
    if head.starts_with(b"version https://git-lfs") {
        return other(Other::LfsPointer);
    }
    if [&b"<!doctype"[..], b"<html", b"<head", b"<?xml", b"<svg"].iter().any(|p| lower.starts_with(p)) {
        return other(Other::Html);
    }
    if head.starts_with(&[0x1f, 0x8b]) {
        return other(Other::Gzip);
    }
    if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
        return other(Other::Zip);
    }
    if head.first() == Some(&0x80) && head.get(1).is_some_and(|v| (2..=5).contains(v)) {
        return other(Other::Pickle);
    }
    if head.starts_with(b"\x7fELF") {
        return other(Other::Elf);
    }
    if head.starts_with(b"%PDF") {
        return other(Other::Pdf);
    }
    if head.starts_with(b"\x89HDF") {
        return other(Other::Hdf5);
    }
    if head.get(4..8) == Some(b"TFL3") {
        return other(Other::TfLite);
    }
    if head.iter().all(|b| *b == 0) {
        return other(Other::Zeros);
    }
    let header = head.first_chunk::<8>().map(|b| u64::from_le_bytes(*b));
    if header.is_some_and(|n| n < 1 << 32) && head.get(8) == Some(&b'{') {
        return Content::Safetensors;
    }
    // Fields 1 to 8, 14, 20, 25 and 26 of ModelProto with their wire types.
    let onnx = [0x08, 0x12, 0x1a, 0x22, 0x28, 0x32, 0x3a, 0x42, 0x72, 0xa2, 0xca, 0xd2];
    if head.first().is_some_and(|b| onnx.contains(b)) && !looks_like_text(head) {
        return Content::Onnx;
    }
    if matches!(text.first(), Some(b'{' | b'[')) {
        return other(Other::Json);
    }
    if looks_like_text(head) {
        return other(Other::Text);
    }
    Content::Unknown
}

fn looks_like_text(head: &[u8]) -> bool {
    head.iter().all(|b| (0x20..0x7f).contains(b) || b.is_ascii_whitespace())
}

/// The error for content that is not read: kind `Invalid`, for Python pickles `Unsupported`.
pub fn refuse(path: &Path, what: Other) -> Error {
    let invalid = |code, message: &str, hint: &str| Error::invalid(code, message).hint(hint);
    let e = match what {
        Other::Empty => invalid("FORMAT-EMPTY", "the file is empty", "download or export the model again")
            .found("0 bytes")
            .limit(format!("{SHORTEST} bytes or more")),
        Other::Short(n) => invalid(
            "FORMAT-SHORT",
            &format!("too short for a model header: {n} of {SHORTEST} bytes"),
            "download or export the model again",
        ),
        Other::Zeros => invalid(
            "FORMAT-ZEROS",
            "the file starts with zero bytes, as unfinished downloads and sparse files do",
            "download or copy the model again",
        ),
        Other::LfsPointer => invalid(
            "FORMAT-LFS",
            "this is a Git LFS pointer, not the model itself",
            "run `git lfs pull` in the repository that it comes from",
        ),
        Other::Html => invalid(
            "FORMAT-HTML",
            "this is a web page, not a model",
            "the download got a page instead of the file; use the link of the raw file",
        ),
        Other::Json => invalid(
            "FORMAT-JSON",
            "this is a JSON file, not a model",
            "pass the model file itself, or the directory that holds config.json and model.safetensors",
        ),
        Other::Gzip => invalid("FORMAT-GZIP", "this is a gzip file", "unpack it first: gunzip FILE"),
        Other::Zip => invalid(
            "FORMAT-ZIP",
            "this is a zip archive, as PyTorch's .pt files are; it is never unpacked or executed",
            "export the model to ONNX or safetensors on a machine that you trust",
        ),
        Other::Pickle => {
            Error::unsupported("FORMAT-PICKLE", "this is a Python pickle, which is never loaded")
                .hint("convert it to ONNX or safetensors on a machine that you trust")
        }
        Other::TfLite => Error::unsupported("FORMAT-TFLITE", "this is a TensorFlow Lite model")
            .hint("convert it to ONNX, for example with tflite2onnx"),
        Other::Hdf5 => Error::unsupported("FORMAT-HDF5", "this is an HDF5 file, as Keras saves them")
            .hint("export the model to ONNX, for example with tf2onnx"),
        Other::Elf => invalid("FORMAT-ELF", "this is a program, not a model", "pass a model file"),
        Other::Pdf => invalid("FORMAT-PDF", "this is a PDF document, not a model", "pass a model file"),
        Other::Text => invalid("FORMAT-TEXT", "this is a text file, not a model", "pass a model file"),
    };
    e.file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_named_by_its_first_bytes() {
        let pad = |b: &[u8]| [b, &[7u8; 32][..]].concat();
        assert_eq!(detect(b""), Content::Other(Other::Empty));
        assert_eq!(detect(b"1234567"), Content::Other(Other::Short(7)));
        assert_eq!(detect(&[0; 64]), Content::Other(Other::Zeros));
        assert_eq!(
            detect(b"version https://git-lfs.github.com/spec/v1\n"),
            Content::Other(Other::LfsPointer)
        );
        assert_eq!(detect(b"  \n<!DOCTYPE html><html></html>"), Content::Other(Other::Html));
        assert_eq!(detect(&pad(&[0x1f, 0x8b, 8])), Content::Other(Other::Gzip));
        assert_eq!(detect(&pad(b"PK\x03\x04")), Content::Other(Other::Zip));
        assert_eq!(detect(&pad(&[0x80, 4])), Content::Other(Other::Pickle));
        assert_eq!(detect(&pad(&[0x80, 0x80])), Content::Unknown);
        assert_eq!(detect(b"{\"a\": 1, \"b\": 22}"), Content::Other(Other::Json));
        assert_eq!(detect(b"\x08\0\0\0\0\0\0\0{\"a\": {}}"), Content::Safetensors);
        assert_eq!(detect(b"GGUF"), Content::Gguf);
        assert_eq!(detect(&pad(&[8, 7, 0x12, 4])), Content::Onnx);
    }
}
