//! Weights that stay in their file in a block encoding and show as `f32`.

use super::{DType, Region, Storage, Tensor, element_count};
use crate::error::{Error, Result};
use crate::kernels::blocks::Encoding;

/// Bytes that are read at once.
const PIECE: usize = 1 << 18;

/// Blocks in a file, in row-major order of the elements.
#[derive(Debug, Clone)]
pub(super) struct Blocks {
    encoding: Encoding,
    region: Region,
}

impl Tensor {
    /// An `f32` tensor whose elements lie in a file in `encoding`; they are spelled out with each
    /// access. Fails where count or length do not match.
    pub fn from_blocks(encoding: Encoding, shape: Vec<usize>, region: Region) -> Result<Tensor> {
        let blocks = element_count(&shape)
            .filter(|n| n.is_multiple_of(encoding.elements()))
            .map(|n| n as u64 / encoding.elements() as u64);
        if blocks.and_then(|n| n.checked_mul(encoding.bytes() as u64)) != Some(region.len()) {
            return Err(Error::invalid("TENSOR-BYTES", "bytes do not match encoding and shape")
                .file(region.path())
                .offset(region.offset())
                .found(format!("{} bytes", region.len()))
                .limit(format!("{encoding}{shape:?}")));
        }
        Ok(Tensor { dtype: DType::F32, shape, storage: Storage::Blocks(Blocks { encoding, region }) })
    }

    /// The block encoding that the elements are stored in, if they are.
    pub fn encoding(&self) -> Option<Encoding> {
        match &self.storage {
            Storage::Blocks(b) => Some(b.encoding),
            _ => None,
        }
    }
}

impl Blocks {
    /// Appends `n` elements from position `at`.
    pub(super) fn append(&self, at: usize, n: usize, out: &mut Vec<f32>) -> Result<()> {
        let (elements, bytes) = (self.encoding.elements(), self.encoding.bytes());
        let most = (PIECE / bytes).max(1);
        let (mut at, end) = (at, at + n);
        let mut stored = Vec::new();
        let mut edge = Vec::new();
        while at < end {
            let first = at / elements;
            let count = (end.div_ceil(elements) - first).min(most);
            stored.resize(count * bytes, 0);
            self.region.read_at(first as u64 * bytes as u64, &mut stored)?;
            let stop = end.min((first + count) * elements);
            let from = out.len();
            if at == first * elements && stop == (first + count) * elements {
                out.resize(from + count * elements, 0.0);
                self.encoding.dequantize(&stored, &mut out[from..]);
            } else {
                edge.resize(count * elements, 0.0);
                self.encoding.dequantize(&stored, &mut edge);
                out.extend_from_slice(&edge[at - first * elements..stop - first * elements]);
            }
            at = stop;
        }
        Ok(())
    }
}
