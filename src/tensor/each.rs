//! All elements of a numeric tensor in order, a piece at a time, as `f32`, whatever their type and
//! wherever they lie.

use super::{DType, Data, Tensor, cast, stream::PIECE};
use crate::error::{Error, Result};

impl Tensor {
    /// Calls `f` with the position of the first element and with the elements of each piece, in
    /// row-major order. Wider types lose what `f32` does not hold. What lies in a file is read in pieces.
    ///
    /// # Errors
    /// Those of `f`; `Unsupported` for texts, complex numbers and 8-bit floats; those of reading.
    pub fn for_each_piece(&self, f: &mut dyn FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        let (mut at, n) = (0, self.len());
        let mut visit = |v: &[f32]| {
            // Packed types have room for more elements in their last byte.
            let v = v.get(..v.len().min(n - at)).unwrap_or_default();
            for part in v.chunks(PIECE) {
                f(at, part)?;
                at += part.len();
            }
            Ok(())
        };
        self.each_piece(|piece| match piece {
            Data::F32(v) if self.dtype == DType::F32 => visit(v),
            other => match cast(other, self.dtype, DType::F32)? {
                Data::F32(v) => visit(&v),
                _ => Err(Error::internal("TENSOR-TYPE", "cast gave another type")),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Region, SourceFile};
    use super::*;
    use half::{bf16, f16};

    fn all(t: &Tensor) -> Vec<f32> {
        let mut out = Vec::new();
        t.for_each_piece(&mut |at, piece| {
            assert_eq!(at, out.len());
            out.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
        out
    }

    #[test]
    fn pieces_cover_every_element_once_whatever_the_storage() {
        let n = 2 * PIECE + 17;
        let v: Vec<f32> = (0..n).map(|i| (i % 251) as f32 - 100.0).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w");
        let halves: Vec<f16> = v.iter().map(|x| f16::from_f32(*x)).collect();
        std::fs::write(&path, bytemuck::cast_slice::<f16, u8>(&halves)).unwrap();
        let region = Region::new(SourceFile::open(&path).unwrap(), 0, 2 * n as u64).unwrap();
        for t in [
            Tensor::from_region(DType::F16, vec![n], region).unwrap(),
            Tensor::from_vec(vec![n], v.clone()).unwrap(),
            Tensor::from_vec(vec![n], v.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>()).unwrap(),
            Tensor::from_vec(vec![n], v.iter().map(|x| *x as i16).collect::<Vec<_>>()).unwrap(),
            Tensor::from_vec(vec![n], v.iter().map(|x| f64::from(*x)).collect::<Vec<_>>()).unwrap(),
            Tensor::from_vec(vec![n], v.clone()).unwrap().selected(0, &(0..n).collect::<Vec<_>>()),
        ] {
            assert_eq!(all(&t), v, "{}", t.dtype());
        }
        let packed = Tensor::new(DType::I4, vec![3], Data::U8(vec![0xf1, 0x07])).unwrap();
        assert_eq!(all(&packed), [1.0, -1.0, 7.0]);
        assert!(
            Tensor::new(DType::Str, vec![1], Data::Str(vec![vec![]]))
                .is_ok_and(|t| { t.for_each_piece(&mut |_, _| Ok(())).is_err() })
        );
    }
}
