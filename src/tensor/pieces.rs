//! Elements of an f32 tensor piece by piece, so that a large weight need not be in memory at once.

use super::{DType, Data, Region, Storage, Tensor};
use crate::error::{Error, Result};
use std::sync::Arc;

enum Source {
    Region(Region),
    Loaded(Arc<Data>),
}

/// Random access to runs of elements. What lies in a file is read with each call; lazy tensors are
/// computed once, when the reader is made.
pub struct Pieces {
    source: Source,
}

impl Tensor {
    /// A reader of runs of elements; an `Internal` error for any type but f32.
    pub fn pieces(&self) -> Result<Pieces> {
        if self.dtype != DType::F32 {
            return Err(Error::internal("TENSOR-TYPE", format!("tensor is {}, not f32", self.dtype)));
        }
        let source = match &self.storage {
            Storage::Region(r) => Source::Region(r.clone()),
            _ => Source::Loaded(self.data()?),
        };
        Ok(Pieces { source })
    }
}

impl Pieces {
    /// `n` elements from position `at` in row-major order; `buffer` holds them where they come from a
    /// file. Fails where the run leaves the tensor or the file has changed.
    pub fn get<'a>(&'a self, at: usize, n: usize, buffer: &'a mut Vec<f32>) -> Result<&'a [f32]> {
        match &self.source {
            Source::Loaded(data) => match &**data {
                Data::F32(v) => v.get(at..at.saturating_add(n)),
                _ => None,
            }
            .ok_or_else(|| Error::internal("TENSOR-RANGE", "a run of elements leaves its tensor")),
            Source::Region(region) => {
                buffer.resize(n, 0.0);
                region.read_at(at as u64 * 4, bytemuck::cast_slice_mut(buffer))?;
                Ok(buffer)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::SourceFile;
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
