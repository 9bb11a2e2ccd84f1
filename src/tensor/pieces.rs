//! Elements of an f32 tensor piece by piece, so that a large weight need not be in memory at once.

use super::stream::Stream;
use super::{DType, Data, Tensor};
use crate::error::{Error, Result};

/// Random access to runs of elements. What lies in a file is read with each call, through lazy steps
/// too; only steps that scatter single elements hold their source in memory.
pub struct Pieces {
    stream: Stream,
    len: usize,
}

impl Tensor {
    /// A reader of runs of elements; an `Internal` error for any type but f32.
    pub fn pieces(&self) -> Result<Pieces> {
        let wrong = || Error::internal("TENSOR-TYPE", format!("tensor is {}, not f32", self.dtype));
        if self.dtype != DType::F32 {
            return Err(wrong());
        }
        Ok(Pieces { stream: self.stream()?.ok_or_else(wrong)?, len: self.len() })
    }
}

impl Pieces {
    /// `n` elements from position `at` in row-major order; `buffer` holds them where they come from a
    /// file. Fails where the run leaves the tensor or the file has changed.
    pub fn get<'a>(&'a self, at: usize, n: usize, buffer: &'a mut Vec<f32>) -> Result<&'a [f32]> {
        let leaves = || Error::internal("TENSOR-RANGE", "a run of elements leaves its tensor");
        if let Some(Data::F32(v)) = self.stream.loaded() {
            return v.get(at..at.saturating_add(n)).ok_or_else(leaves);
        }
        if at.checked_add(n).is_none_or(|end| end > self.len) {
            return Err(leaves());
        }
        buffer.clear();
        let mut data = Data::F32(std::mem::take(buffer));
        let result = self.stream.append(at, n, &mut data);
        if let Data::F32(v) = data {
            *buffer = v;
        }
        result.map(|()| &buffer[..])
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Region, SourceFile};
    use super::*;

    #[test]
    fn runs_come_from_memory_and_from_files_alike() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w");
        let v: Vec<f32> = (0..10).map(|i| i as f32).collect();
        std::fs::write(&path, bytemuck::cast_slice::<f32, u8>(&v)).unwrap();
        let file = SourceFile::open(&path).unwrap();
        let region = Region::new(file, 8, 32).unwrap();
        let stored = Tensor::from_region(DType::F32, vec![2, 4], region).unwrap();
        let owned = Tensor::from_vec(vec![2, 4], v[2..].to_vec()).unwrap();
        for tensor in [stored, owned] {
            let (pieces, mut buffer) = (tensor.pieces().unwrap(), vec![]);
            assert_eq!(pieces.get(3, 2, &mut buffer).unwrap(), [5.0, 6.0]);
            assert_eq!(pieces.get(0, 8, &mut buffer).unwrap(), &v[2..]);
            assert!(pieces.get(7, 2, &mut buffer).is_err());
        }
    }
}
