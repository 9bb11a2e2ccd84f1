//! Elements copied by index: permuted axes, and axes indexed independently of each other (slices,
//! padding, tiling, splitting) with the accumulation that reverses it. Any element type.

use super::index::strides;
use super::real::Real;
use rayon::prelude::*;

/// In an axis map: the result takes the fill value here.
pub const FILL: usize = usize::MAX;

const PARALLEL: usize = 1 << 16;
const TILE: usize = 16;

/// Result axis `i` is source axis `perm[i]`. `v` holds the product of `shape` elements.
pub fn permute<T: Clone + Default + Send + Sync>(v: &[T], shape: &[usize], perm: &[usize]) -> Vec<T> {
    assert_eq!(v.len(), shape.iter().product::<usize>(), "elements fill the shape");
    assert_eq!(shape.len(), perm.len(), "one source axis a result axis");
    let source = strides(shape);
    let axes: Vec<(usize, usize)> = perm.iter().map(|p| (shape[*p], source[*p])).collect();
    gather(v, &axes)
}

/// Elements of `v` in row-major order of `axes`, outermost first, each with its size and the distance of
/// neighbours in `v`.
pub fn gather<T: Clone + Default + Send + Sync>(v: &[T], axes: &[(usize, usize)]) -> Vec<T> {
    let count: usize = axes.iter().map(|(n, _)| n).product();
    if count == 0 {
        return vec![];
    }
    let last: usize = axes.iter().map(|(n, step)| (n - 1) * step).sum();
    assert!(last < v.len(), "every element lies inside its slice");
    // Axes of size one vanish and neighbours that stay neighbours merge, so that few loops remain.
    let mut merged: Vec<(usize, usize)> = Vec::new();
    for (n, by) in axes.iter().filter(|(n, _)| *n != 1) {
        match merged.last_mut() {
            Some((size, step)) if *step == by * n => {
                *size *= n;
                *step = *by;
            }
            _ => merged.push((*n, *by)),
        }
    }
    let axes = match merged.as_slice() {
        [] => return vec![v[0].clone()],
        [(n, 1)] => return v[..*n].to_vec(),
        [one] => vec![(1, 0), *one],
        _ => merged,
    };
    let (head, rest) = (axes[0], &axes[1..]);
    let chunk: usize = rest.iter().map(|(n, _)| n).product();
    let mut out = vec![T::default(); count];
    if rest[rest.len() - 1].1 != 1 && head.1 == 1 {
        // The source runs along the outermost result axis: whole tiles of it at a time.
        let rows = TILE.min(head.0);
        let fill = |(t, out): (usize, &mut [T])| {
            let count = out.len() / chunk;
            copy_rows(v, t * rows, count, rest, out, chunk);
        };
        if count >= PARALLEL {
            out.par_chunks_mut(rows * chunk).enumerate().for_each(fill);
        } else {
            out.chunks_mut(rows * chunk).enumerate().for_each(fill);
        }
        return out;
    }
    let fill = |(i, out): (usize, &mut [T])| copy(v, i * head.1, rest, out);
    if count >= PARALLEL {
        out.par_chunks_mut(chunk).enumerate().for_each(fill);
    } else {
        out.chunks_mut(chunk).enumerate().for_each(fill);
    }
    out
}

/// Fills `count` adjacent rows of `out` from sources that differ by one element.
fn copy_rows<T: Clone>(
    v: &[T],
    from: usize,
    count: usize,
    axes: &[(usize, usize)],
    out: &mut [T],
    row: usize,
) {
    fn walk<T: Clone>(
        v: &[T],
        from: usize,
        count: usize,
        axes: &[(usize, usize)],
        out: &mut [T],
        at: usize,
        row: usize,
    ) {
        let [(size, step), rest @ ..] = axes else { return };
        if rest.is_empty() {
            for j in 0..*size {
                let source = &v[from + j * step..][..count];
                for (r, x) in source.iter().enumerate() {
                    out[r * row + at + j] = x.clone();
                }
            }
            return;
        }
        let block: usize = rest.iter().map(|(n, _)| n).product();
        for i in 0..*size {
            walk(v, from + i * step, count, rest, out, at + i * block, row);
        }
    }
    walk(v, from, count, axes, out, 0, row);
}

fn copy<T: Clone>(v: &[T], from: usize, axes: &[(usize, usize)], out: &mut [T]) {
    match axes {
        [] => {}
        [(size, 1)] => out.clone_from_slice(&v[from..from + size]),
        [(_, step)] => {
            for (i, o) in out.iter_mut().enumerate() {
                *o = v[from + i * step].clone();
            }
        }
        // The last two axes swapped: tiles keep both sides in cache.
        [(a, 1), (b, step)] => {
            for i0 in (0..*a).step_by(TILE) {
                for j in 0..*b {
                    let source = from + j * step;
                    for i in i0..(i0 + TILE).min(*a) {
                        out[i * b + j] = v[source + i].clone();
                    }
                }
            }
        }
        [(size, step), rest @ ..] => {
            let block = out.len() / size;
            for (i, part) in out.chunks_mut(block).enumerate() {
                copy(v, from + i * step, rest, part);
            }
        }
    }
}

/// Visits the runs of source elements that make up the result, in result order: `see(start, length)`,
/// with `start == FILL` for fill elements.
fn runs(shape: &[usize], maps: &[Vec<usize>], see: &mut dyn FnMut(usize, usize)) {
    assert_eq!(shape.len(), maps.len(), "one map an axis");
    if maps.iter().any(Vec::is_empty) {
        return;
    }
    let steps = strides(shape);
    // Trailing axes that are taken whole form one block.
    let mut depth = shape.len();
    while depth > 0 && is_identity(&maps[depth - 1], shape[depth - 1]) {
        depth -= 1;
    }
    let block: usize = shape[depth..].iter().product();
    let Some(last) = depth.checked_sub(1) else { return see(0, block) };
    let mut merged: Vec<(usize, usize)> = Vec::new();
    for &i in &maps[last] {
        match merged.last_mut() {
            Some((start, n)) if (*start == FILL && i == FILL) || (*start != FILL && *start + *n == i) => {
                *n += 1
            }
            _ => merged.push((i, 1)),
        }
    }
    let mut index = vec![0usize; last];
    loop {
        let mut base = Some(0);
        for axis in 0..last {
            let i = maps[axis][index[axis]];
            base = if i == FILL { None } else { base.map(|b| b + i * steps[axis]) };
        }
        for (start, n) in &merged {
            match base {
                Some(b) if *start != FILL => see(b + start * block, n * block),
                _ => see(FILL, n * block),
            }
        }
        let Some(axis) = (0..last).rev().find(|a| index[*a] + 1 < maps[*a].len()) else { return };
        index[axis] += 1;
        index[axis + 1..].fill(0);
    }
}

fn is_identity(map: &[usize], size: usize) -> bool {
    map.len() == size && map.iter().enumerate().all(|(i, m)| i == *m)
}

/// Result index `i` along axis `a` takes source index `maps[a][i]`, or `fill` where that is [`FILL`].
/// Indices must be below the axis size.
pub fn pick<T: Clone>(v: &[T], shape: &[usize], maps: &[Vec<usize>], fill: &T) -> Vec<T> {
    let mut out = Vec::with_capacity(maps.iter().map(Vec::len).product());
    runs(shape, maps, &mut |start, n| {
        if start == FILL {
            out.extend(std::iter::repeat_n(fill, n).cloned());
        } else {
            out.extend_from_slice(&v[start..start + n]);
        }
    });
    out
}

/// Adds each element of a result of [`pick`] back to the source element that it came from.
pub fn unpick<T: Real>(g: &[T], shape: &[usize], maps: &[Vec<usize>]) -> Vec<T> {
    let mut out = vec![T::ZERO; shape.iter().product()];
    let mut at = 0;
    runs(shape, maps, &mut |start, n| {
        if start != FILL {
            for (o, g) in out[start..start + n].iter_mut().zip(&g[at..at + n]) {
                *o += *g;
            }
        }
        at += n;
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_agree_with_the_definition() {
        let shape = [3, 1, 17, 4, 35];
        let v: Vec<u32> = (0..shape.iter().product::<usize>() as u32).collect();
        for perm in [
            [0, 1, 2, 3, 4],
            [4, 3, 2, 1, 0],
            [0, 3, 2, 1, 4],
            [0, 1, 2, 4, 3],
            [4, 0, 1, 2, 3],
            [2, 4, 0, 1, 3],
        ] {
            let dims: Vec<usize> = perm.iter().map(|p| shape[*p]).collect();
            let (source, result) = (strides(&shape), strides(&dims));
            let want: Vec<u32> = (0..v.len())
                .map(|at| (0..5).map(|i| at / result[i] % dims[i] * source[perm[i]]).sum::<usize>())
                .map(|at| v[at])
                .collect();
            assert_eq!(permute(&v, &shape, &perm), want, "{perm:?}");
        }
    }

    #[test]
    fn picking_and_its_reverse() {
        let v = [1.0f32, 2., 3., 4., 5., 6.];
        let maps = [vec![1, 0], vec![FILL, 2, 1, 1]];
        let out = pick(&v, &[2, 3], &maps, &9.0);
        assert_eq!(out, [9., 6., 5., 5., 9., 3., 2., 2.]);
        assert_eq!(unpick(&out, &[2, 3], &maps), [0., 4., 3., 0., 10., 6.]);
    }
}
