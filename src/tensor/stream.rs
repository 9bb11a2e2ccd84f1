//! Runs of elements of any tensor, so that a weight in a file passes through its lazy steps piece by
//! piece. A tensor enters, a [`Stream`] with random access to its runs leaves. Only a step that
//! scatters runs into single elements holds its source in memory.

use super::blocks::Blocks;
use super::{DType, Data, Region, Step, Storage, Tensor, dtype, strides};
use crate::error::{Error, Result};
use crate::kernels::movement::permute;
use crate::{map_data, with_data};
use std::sync::Arc;

/// Elements that pass through a step at once.
pub(super) const PIECE: usize = 1 << 16;
/// Rows of a permuted tensor that are made together, and the most elements of them.
const TOGETHER: usize = 16;
const MOST: usize = 1 << 21;
/// Runs shorter than this are not worth a read each.
const SHORTEST: usize = 64;

/// Random access to runs of elements in row-major order.
pub(super) struct Stream {
    dtype: DType,
    source: Source,
}

enum Source {
    Loaded(Arc<Data>),
    Region(Region),
    Blocks(Blocks),
    Cast(Box<Stream>),
    /// Indices kept of an axis of `size`, with `inner` elements an index.
    Select {
        source: Box<Stream>,
        size: usize,
        inner: usize,
        indices: Arc<[usize]>,
    },
    /// Elements of f32 times a factor each, which `inner` neighbours share.
    Scale {
        source: Box<Stream>,
        inner: usize,
        factors: Arc<[f32]>,
    },
    /// Axes permuted; the last `run` elements stay together. `dims` and `steps` tell of the axes before.
    Permute {
        source: Box<Stream>,
        dims: Vec<usize>,
        steps: Vec<usize>,
        run: usize,
    },
    /// Axes permuted down to single elements of a source in memory.
    Scatter {
        data: Arc<Data>,
        shape: Vec<usize>,
        perm: Vec<usize>,
    },
}

/// Whether a type stores one entry an element.
fn is_plain(dtype: DType) -> bool {
    !dtype.is_packed() && !matches!(dtype, DType::Str | DType::C64 | DType::C128)
}

impl Tensor {
    /// The stream of the elements; `None` for types whose elements are not entries of a vector.
    pub(super) fn stream(&self) -> Result<Option<Stream>> {
        if !is_plain(self.dtype) {
            return Ok(None);
        }
        let source = match &self.storage {
            Storage::Owned(data) => Source::Loaded(data.clone()),
            Storage::Region(region) => Source::Region(region.clone()),
            Storage::Blocks(blocks) => Source::Blocks(blocks.clone()),
            Storage::Lazy(lazy) => {
                let (tensor, step) = &**lazy;
                let Some(source) = tensor.stream()? else {
                    // Only a conversion leads from packed elements to plain ones.
                    let data = tensor.converted(self.dtype)?;
                    return Ok(Some(Stream { dtype: self.dtype, source: Source::Loaded(Arc::new(data)) }));
                };
                match step {
                    Step::Reshape => return Ok(Some(source)),
                    Step::Cast => Source::Cast(Box::new(source)),
                    Step::Select { axis, indices } => Source::Select {
                        source: Box::new(source),
                        size: tensor.shape[*axis],
                        inner: tensor.shape[axis + 1..].iter().product(),
                        indices: indices.clone(),
                    },
                    Step::Transpose(perm) => permuted(source, tensor, perm)?,
                    Step::Scale { inner, factors } => {
                        Source::Scale { source: Box::new(source), inner: *inner, factors: factors.clone() }
                    }
                }
            }
        };
        Ok(Some(Stream { dtype: self.dtype, source }))
    }
}

fn permuted(source: Stream, tensor: &Tensor, perm: &[usize]) -> Result<Source> {
    let steps = strides(&tensor.shape);
    let fixed = perm.iter().enumerate().rev().take_while(|(i, p)| i == *p).count();
    let moved = perm.len() - fixed;
    let run: usize = tensor.shape[moved..].iter().product();
    let dims = |n: usize| -> Vec<usize> { perm[..n].iter().map(|p| tensor.shape[*p]).collect() };
    if run >= SHORTEST || moved == 0 {
        let steps = perm[..moved].iter().map(|p| steps[*p]).collect();
        return Ok(Source::Permute { source: Box::new(source), dims: dims(moved), steps, run });
    }
    let data = match source.source {
        Source::Loaded(data) => data,
        _ => Arc::new(source.all(tensor.len())?),
    };
    Ok(Source::Scatter { data, shape: tensor.shape.clone(), perm: perm.to_vec() })
}

impl Stream {
    /// All of the `n` elements.
    pub(super) fn all(&self, n: usize) -> Result<Data> {
        let mut out = self.empty(n);
        self.append(0, n, &mut out)?;
        Ok(out)
    }

    /// A vector for `n` elements.
    pub(super) fn empty(&self, n: usize) -> Data {
        let data = self.dtype.empty();
        map_data!(data, v => { let mut v = v; v.reserve_exact(n); v })
    }

    /// Elements that are best asked for at once.
    pub(super) fn piece(&self) -> usize {
        match &self.source {
            Source::Scatter { shape, perm, .. } => {
                let row = perm.last().map_or(1, |p| shape[*p]).max(1);
                if row > MOST / TOGETHER { PIECE } else { (PIECE / row).max(TOGETHER) * row }
            }
            Source::Cast(source) | Source::Scale { source, .. } => source.piece(),
            _ => PIECE,
        }
    }

    /// The elements where they lie in memory.
    pub(super) fn loaded(&self) -> Option<&Data> {
        match &self.source {
            Source::Loaded(data) => Some(data),
            _ => None,
        }
    }

    /// Appends `n` elements from position `at`.
    pub(super) fn append(&self, at: usize, n: usize, out: &mut Data) -> Result<()> {
        let leaves = || Error::internal("TENSOR-RANGE", "a run of elements leaves its tensor");
        let end = at.checked_add(n).ok_or_else(leaves)?;
        if n == 0 {
            return Ok(());
        }
        match &self.source {
            Source::Loaded(data) => extend(out, data, at, end).ok_or_else(leaves),
            Source::Region(region) => read(region, self.dtype, at, n, out),
            Source::Blocks(blocks) => match out {
                Data::F32(out) => blocks.append(at, n, out),
                _ => Err(Error::internal("TENSOR-TYPE", "blocks give f32")),
            },
            Source::Cast(source) => {
                let most = source.piece();
                let mut piece = source.empty(n.min(most));
                for from in (at..end).step_by(most) {
                    clear(&mut piece);
                    let count = most.min(end - from);
                    source.append(from, count, &mut piece)?;
                    let cast = dtype::cast(&piece, source.dtype, self.dtype)?;
                    extend(out, &cast, 0, count).ok_or_else(leaves)?;
                }
                Ok(())
            }
            Source::Select { source, size, inner, indices } => {
                select(source, *size, *inner, indices, at, end, out)
            }
            Source::Scale { source, inner, factors } => {
                let from = with_data!(&mut *out, v => v.len(), str => 0);
                source.append(at, n, out)?;
                let Data::F32(out) = out else {
                    return Err(Error::internal("TENSOR-TYPE", "only f32 is scaled"));
                };
                let mut made = &mut out[from..];
                let mut at = at;
                while !made.is_empty() {
                    let (run, rest) = made.split_at_mut((inner - at % inner).min(made.len()));
                    let factor = factors[at / inner % factors.len()];
                    run.iter_mut().for_each(|x| *x *= factor);
                    at += run.len();
                    made = rest;
                }
                Ok(())
            }
            Source::Permute { source, dims, steps, run } => {
                let mut at = at;
                while at < end {
                    let (row, within) = (at / run, at % run);
                    let take = (run - within).min(end - at);
                    source.append(offset(row, dims, steps) + within, take, out)?;
                    at += take;
                }
                Ok(())
            }
            Source::Scatter { data, shape, perm } => scatter(data, shape, perm, at, end, out),
        }
    }
}

/// Where the `row`-th run of a permuted tensor begins in its source.
fn offset(mut row: usize, dims: &[usize], steps: &[usize]) -> usize {
    let mut at = 0;
    for (d, s) in dims.iter().zip(steps).rev() {
        at += row % d * s;
        row /= d;
    }
    at
}

fn read(region: &Region, dtype: DType, at: usize, n: usize, out: &mut Data) -> Result<()> {
    let width = u64::from(dtype.bits() / 8);
    let position = at as u64 * width;
    let from = with_data!(&mut *out, v => v.len(), str => 0);
    with_data!(out, v => {
        v.resize(from + n, Default::default());
        region.read_at(position, bytemuck::cast_slice_mut(&mut v[from..]))
    }, str => Err(Error::internal("TENSOR-TYPE", "strings do not lie in a file")))
}

/// Appends `from[at..end]`; `None` where it is not there or of another type.
fn extend(out: &mut Data, from: &Data, at: usize, end: usize) -> Option<()> {
    macro_rules! go {
        ($($variant:ident),*) => {
            match (out, from) {
                $((Data::$variant(out), Data::$variant(from)) => out.extend_from_slice(from.get(at..end)?),)*
                _ => return None,
            }
        };
    }
    go!(U8, I8, U16, I16, U32, I32, U64, I64, F16, BF16, F32, F64);
    Some(())
}

fn clear(data: &mut Data) {
    with_data!(data, v => v.clear(), str => ());
}

/// Runs `at..end` of a selection: neighbours that stay neighbours are read together, and where single
/// elements are picked, whole rows of the source are read.
fn select(
    source: &Stream,
    size: usize,
    inner: usize,
    indices: &[usize],
    at: usize,
    end: usize,
    out: &mut Data,
) -> Result<()> {
    let row = indices.len() * inner;
    if inner < SHORTEST && source.loaded().is_none() {
        let mut whole = source.empty(size * inner);
        let mut at = at;
        while at < end {
            let (outer, within) = (at / row, at % row);
            let take = (row - within).min(end - at);
            clear(&mut whole);
            source.append(outer * size * inner, size * inner, &mut whole)?;
            for i in within..within + take {
                let from = indices[i / inner] * inner + i % inner;
                extend(out, &whole, from, from + 1)
                    .ok_or_else(|| Error::internal("TENSOR-RANGE", "an index leaves its axis"))?;
            }
            at += take;
        }
        return Ok(());
    }
    let mut at = at;
    while at < end {
        let (outer, within) = (at / row, at % row);
        let (first, skip) = (within / inner, within % inner);
        let mut last = first;
        while last + 1 < indices.len()
            && (last + 1 - first) * inner < end - at + skip
            && indices[last + 1] == indices[last] + 1
        {
            last += 1;
        }
        let take = ((last + 1 - first) * inner - skip).min(end - at);
        source.append((outer * size + indices[first]) * inner + skip, take, out)?;
        at += take;
    }
    Ok(())
}

/// Runs `at..end` of a permutation of single elements. Whole rows of the result are made together where
/// their elements are neighbours in the source.
fn scatter(
    data: &Data,
    shape: &[usize],
    perm: &[usize],
    at: usize,
    end: usize,
    out: &mut Data,
) -> Result<()> {
    macro_rules! go {
        ($($variant:ident),*) => {
            match (out, data) {
                $((Data::$variant(out), Data::$variant(v)) => {
                    if at == 0 && end == v.len() && out.is_empty() {
                        *out = permute(v, shape, perm);
                    } else {
                        scatter_rows(v, shape, perm, at, end, out);
                    }
                })*
                _ => return Err(Error::internal("TENSOR-TYPE", "a permutation changes no type")),
            }
        };
    }
    go!(U8, I8, U16, I16, U32, I32, U64, I64, F16, BF16, F32, F64);
    Ok(())
}

fn scatter_rows<T: Copy + Default>(
    v: &[T],
    shape: &[usize],
    perm: &[usize],
    at: usize,
    end: usize,
    out: &mut Vec<T>,
) {
    let source = strides(shape);
    let dims: Vec<usize> = perm.iter().map(|p| shape[*p]).collect();
    let steps: Vec<usize> = perm.iter().map(|p| source[*p]).collect();
    let Some((&row, outer)) = dims.split_last() else { return out.extend_from_slice(&v[at..end]) };
    let step = steps[outer.len()];
    let start = |r: usize| offset(r, outer, &steps);
    let mut at = at;
    while at < end {
        let (r, within) = (at / row, at % row);
        let whole = if within == 0 { ((end - at) / row).min(TOGETHER) } else { 0 };
        let first = start(r);
        let together = (1..whole).take_while(|k| start(r + k) == first + k).count() + 1;
        if whole > 0 && together > 1 {
            let from = out.len();
            out.resize(from + together * row, T::default());
            let made = &mut out[from..];
            for i in 0..row {
                let near = &v[first + i * step..][..together];
                for (k, x) in near.iter().enumerate() {
                    made[k * row + i] = *x;
                }
            }
            at += together * row;
        } else {
            let take = (row - within).min(end - at);
            out.extend((within..within + take).map(|i| v[first + i * step]));
            at += take;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{SourceFile, select as select_eager, transpose};
    use super::*;
    use crate::kernels::blocks::Encoding;

    fn stored(dir: &std::path::Path, name: &str, bytes: &[u8]) -> Region {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        let file = SourceFile::open(&path).unwrap();
        let len = file.len();
        Region::new(file, 0, len).unwrap()
    }

    fn sources(dir: &std::path::Path) -> Vec<Tensor> {
        let n = 6 * 4 * 160;
        let floats: Vec<f32> = (0..n).map(|i| (i * 37 % 1001) as f32 - 500.0).collect();
        let halves: Vec<half::bf16> = floats.iter().map(|x| half::bf16::from_f32(*x)).collect();
        let mut blocks = Vec::new();
        for i in 0..n / 32 {
            blocks.extend(half::f16::from_f32(0.25 + i as f32 / 64.0).to_le_bytes());
            blocks.extend((0..32u8).map(|j| j.wrapping_mul(i as u8 | 1)));
        }
        let shape = vec![6, 4, 160];
        vec![
            Tensor::from_vec(shape.clone(), floats.clone()).unwrap(),
            Tensor::from_region(DType::F32, shape.clone(), stored(dir, "f", bytemuck::cast_slice(&floats)))
                .unwrap(),
            Tensor::from_region(DType::BF16, shape.clone(), stored(dir, "h", bytemuck::cast_slice(&halves)))
                .unwrap()
                .cast_to(DType::F32),
            Tensor::from_blocks(Encoding::Q8_0, shape, stored(dir, "q", &blocks)).unwrap(),
        ]
    }

    #[test]
    fn factors_follow_their_elements_through_pieces_and_files() {
        let dir = tempfile::tempdir().unwrap();
        for source in sources(dir.path()).into_iter().filter(|t| t.dtype() == DType::F32) {
            for (inner, count) in [(1, 160), (160, 4), (640, 6), (160, 24), (7, 3)] {
                let factors: Vec<f32> = (0..count).map(|i| i as f32 - 1.5).collect();
                let scaled = source.scaled(inner, factors.clone()).unwrap();
                let (a, b) = (source.to_f32s().unwrap(), scaled.to_f32s().unwrap());
                for (f, (a, b)) in a.iter().zip(&b).enumerate() {
                    assert_eq!(a * factors[f / inner % count], *b);
                }
                let mut buffer = vec![];
                let run = scaled.pieces().unwrap().get(333, 500, &mut buffer).unwrap().to_vec();
                assert_eq!(run, b[333..833]);
                assert_eq!(scaled.transposed(&[2, 0, 1]).to_f32s().unwrap()[5], b[5 * 160]);
            }
        }
        assert!(Tensor::from_vec(vec![1], vec![1i64]).unwrap().scaled(1, vec![1.0]).is_err());
    }

    #[test]
    fn steps_over_files_equal_the_same_steps_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        for t in sources(dir.path()) {
            let data = t.data().unwrap();
            let cases: Vec<(Tensor, Data)> = vec![
                (t.transposed(&[1, 0, 2]), transpose(&data, t.shape(), &[1, 0, 2])),
                (t.transposed(&[2, 0, 1]), transpose(&data, t.shape(), &[2, 0, 1])),
                (t.transposed(&[0, 1, 2]), (*data).clone()),
                (t.selected(0, &[5, 0, 1, 2]), select_eager(&data, t.shape(), 0, &[5, 0, 1, 2])),
                (t.selected(1, &[2, 3, 0]), select_eager(&data, t.shape(), 1, &[2, 3, 0])),
                (t.selected(2, &[159, 3, 4]), select_eager(&data, t.shape(), 2, &[159, 3, 4])),
                (
                    t.reshaped(vec![24, 160]).unwrap().transposed(&[1, 0]),
                    transpose(&data, &[24, 160], &[1, 0]),
                ),
                (
                    t.transposed(&[1, 0, 2]).reshaped(vec![24, 160]).unwrap().selected(0, &[7, 8]),
                    select_eager(&transpose(&data, t.shape(), &[1, 0, 2]), &[24, 160], 0, &[7, 8]),
                ),
            ];
            for (lazy, want) in cases {
                assert!(lazy.in_file() == t.in_file());
                let Data::F32(want) = want else { unreachable!() };
                assert_eq!(lazy.to_vec::<f32>().unwrap(), want);
                let mut raw = Vec::new();
                lazy.write_raw(&mut raw).unwrap();
                assert_eq!(raw, bytemuck::cast_slice::<f32, u8>(&want));
                let (pieces, mut buffer) = (lazy.pieces().unwrap(), Vec::new());
                for (at, n) in [(0, 1), (31, 2), (5, 170), (want.len() - 3, 3), (want.len(), 0)] {
                    let n = n.min(want.len() - at);
                    assert_eq!(pieces.get(at, n, &mut buffer).unwrap(), &want[at..at + n]);
                }
                assert!(pieces.get(want.len() - 1, 2, &mut buffer).is_err());
            }
        }
    }

    #[test]
    fn pieces_of_transposed_matrices_are_whole() {
        for shape in [vec![40, 3], vec![300, 500], vec![3, 70_000], vec![5, 33, 21], vec![2, 3, 4, 50]] {
            let n: usize = shape.iter().product();
            let v: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let t = Tensor::from_vec(shape.clone(), v).unwrap();
            let perms: Vec<Vec<usize>> = vec![
                (0..shape.len()).rev().collect(),
                (1..shape.len()).chain([0]).collect(),
                [vec![shape.len() - 1], (0..shape.len() - 1).collect()].concat(),
            ];
            for perm in perms {
                let dims: Vec<usize> = perm.iter().map(|p| shape[*p]).collect();
                let (from, to) = (strides(&shape), strides(&dims));
                let want: Vec<f32> = (0..n)
                    .map(|at| {
                        (0..dims.len()).map(|i| at / to[i] % dims[i] * from[perm[i]]).sum::<usize>() as f32
                    })
                    .collect();
                let lazy = t.transposed(&perm);
                assert_eq!(lazy.to_vec::<f32>().unwrap(), want);
                for lazy in [lazy.clone(), lazy.cast_to(DType::F64).cast_to(DType::F32)] {
                    let mut raw = Vec::new();
                    lazy.write_raw(&mut raw).unwrap();
                    assert_eq!(raw, bytemuck::cast_slice::<f32, u8>(&want), "{shape:?} {perm:?}");
                }
                let (pieces, mut buffer) = (lazy.pieces().unwrap(), Vec::new());
                for (at, len) in [(1, n / 2), (n / 3, n - n / 3), (n - 1, 1)] {
                    assert_eq!(pieces.get(at, len, &mut buffer).unwrap(), &want[at..at + len]);
                }
            }
        }
    }

    #[test]
    fn empty_and_scalar_tensors_pass_every_step() {
        let empty = Tensor::from_vec(vec![0, 3], Vec::<f32>::new()).unwrap();
        assert_eq!(empty.transposed(&[1, 0]).cast_to(DType::F64).len(), 0);
        assert!(empty.transposed(&[1, 0]).to_vec::<f32>().unwrap().is_empty());
        let one = Tensor::scalar(3.5f32);
        assert_eq!(one.transposed(&[]).to_vec::<f32>().unwrap(), [3.5]);
        assert_eq!(one.cast_to(DType::I32).reshaped(vec![1, 1]).unwrap().to_vec::<i32>().unwrap(), [3]);
    }
}
