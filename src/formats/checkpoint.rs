//! A checkpoint: named weights with facts about the model, but no graph. What the readers of
//! safetensors and GGUF give, and what the architectures build graphs from. Knows no architecture.

use super::metadata::Metadata;
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use std::collections::HashMap;
use std::path::PathBuf;

/// One weight as it is stored.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Name in the file.
    pub name: String,
    /// Shape, outermost axis first, as frameworks spell it (GGUF files spell it the other way round).
    pub shape: Vec<usize>,
    /// Encoding as the format names it: `F32`, `BF16`, `Q4_K`.
    pub encoding: String,
    /// Bytes in the file.
    pub bytes: u64,
    /// The weight. Blocks show as `f32` and are spelled out only when they are asked for; `None` for
    /// encodings that are recognised but cannot be read.
    pub tensor: Option<Tensor>,
}

impl Stored {
    /// The weight, or the reason why it cannot be read.
    ///
    /// # Errors
    /// `Unsupported` for encodings that are only recognised.
    pub fn tensor(&self) -> Result<&Tensor> {
        self.tensor.as_ref().ok_or_else(|| {
            Error::unsupported("ENCODING", "the encoding of a weight is not read")
                .field(format!("\"{}\"", self.name))
                .found(&self.encoding)
                .hint("convert the model to another encoding")
        })
    }
}

/// Named weights of a model.
#[derive(Debug)]
pub struct Checkpoint {
    /// Format: `safetensors` or `gguf`.
    pub format: &'static str,
    /// The file or directory that was asked for.
    pub path: PathBuf,
    /// Files that hold the weights, with their sizes.
    pub files: Vec<(PathBuf, u64)>,
    /// Key-value facts that the files carry beside the weights, in order.
    pub metadata: Metadata,
    /// `config.json` beside the weights.
    pub config: Option<serde_json::Value>,
    /// What looks wrong but does no harm, for people.
    pub warnings: Vec<String>,
    tensors: Vec<Stored>,
    by_name: HashMap<String, usize>,
}

impl Checkpoint {
    /// A checkpoint over weights in file order. Names must be unique.
    pub fn new(format: &'static str, path: PathBuf, tensors: Vec<Stored>) -> Checkpoint {
        let by_name = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Checkpoint {
            format,
            path,
            files: Vec::new(),
            metadata: Metadata::default(),
            config: None,
            warnings: Vec::new(),
            tensors,
            by_name,
        }
    }

    /// Weights in file order.
    pub fn tensors(&self) -> &[Stored] {
        &self.tensors
    }

    /// The weight of a name.
    pub fn get(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(*self.by_name.get(name)?)
    }

    /// Elements of all weights together.
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(|t| t.shape.iter().map(|d| *d as u64).product::<u64>()).sum()
    }
}
