//! Checkpoint files built byte by byte, as they should be and as they should not.

use std::path::{Path, PathBuf};

/// A safetensors file with this header text.
pub fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// A safetensors file of `U8` vectors, one behind the other.
pub fn vectors(tensors: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut header, mut data) = (Vec::new(), Vec::new());
    for (name, bytes) in tensors {
        let (from, to) = (data.len(), data.len() + bytes.len());
        let range = format!("\"data_offsets\":[{from},{to}]");
        header.push(format!("\"{name}\":{{\"dtype\":\"U8\",\"shape\":[{}],{range}}}", bytes.len()));
        data.extend_from_slice(bytes);
    }
    safetensors(&format!("{{{}}}", header.join(",")), &data)
}

/// A length and the bytes, as GGUF has strings.
pub fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

/// An array value of GGUF: type, count, elements.
pub fn array(kind: u32, elements: &[Vec<u8>]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(elements.len() as u64).to_le_bytes(), &elements.concat()].concat()
}

/// A GGUF file in the making. Counts follow from what was added unless they are set.
#[derive(Clone)]
pub struct Gguf {
    pub magic: [u8; 4],
    pub version: u32,
    pub entries: Vec<Vec<u8>>,
    pub tensors: Vec<Vec<u8>>,
    pub counts: (Option<u64>, Option<u64>),
    pub alignment: usize,
    pub data: Vec<u8>,
}

impl Gguf {
    pub fn new() -> Gguf {
        Gguf {
            magic: *b"GGUF",
            version: 3,
            entries: Vec::new(),
            tensors: Vec::new(),
            counts: (None, None),
            alignment: 32,
            data: Vec::new(),
        }
    }

    /// A small model: a Q8_0 matrix, a vector, some metadata.
    pub fn small() -> Gguf {
        let mut block = half::f16::from_f32(0.5).to_le_bytes().to_vec();
        block.extend(0..32u8);
        Gguf::new()
            .entry("general.architecture", 8, &string("llama"))
            .entry("llama.block_count", 4, &2u32.to_le_bytes())
            .entry("tokenizer.ggml.tokens", 9, &array(8, &[string("a"), string("b")]))
            .with("blk.0.w", &[32, 2], 8, &block.repeat(2))
            .with("norm", &[3], 0, bytemuck::cast_slice(&[1f32, 2., 3.]))
    }

    pub fn entry(mut self, key: impl AsRef<[u8]>, kind: u32, value: &[u8]) -> Gguf {
        self.entries.push([&string(key)[..], &kind.to_le_bytes(), value].concat());
        self
    }

    /// The entry of a tensor, as it is written.
    pub fn info(mut self, name: impl AsRef<[u8]>, dims: &[u64], kind: u32, offset: u64) -> Gguf {
        let mut info = string(name);
        info.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| info.extend(d.to_le_bytes()));
        info.extend(kind.to_le_bytes());
        info.extend(offset.to_le_bytes());
        self.tensors.push(info);
        self
    }

    /// A tensor with its data, aligned.
    pub fn with(mut self, name: &str, dims: &[u64], kind: u32, data: &[u8]) -> Gguf {
        self.data.resize(self.data.len().next_multiple_of(self.alignment), 0);
        let offset = self.data.len() as u64;
        self.data.extend_from_slice(data);
        self.info(name, dims, kind, offset)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.counts.0.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.counts.1.unwrap_or(self.entries.len() as u64).to_le_bytes());
        out.extend(self.entries.concat());
        out.extend(self.tensors.concat());
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend_from_slice(&self.data);
        out
    }
}

/// Writes a file into a directory.
pub fn put(dir: &Path, name: impl AsRef<Path>, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}
