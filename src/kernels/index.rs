//! Blocks of elements copied or added at computed positions. Positions are element offsets; each block
//! must lie inside its slice.

use super::real::Real;

/// Row-major strides of a shape.
pub fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        out[i - 1] = out[i] * shape[i];
    }
    out
}

/// The blocks of `block` elements at `positions`, one after the other.
pub fn take<T: Clone>(v: &[T], positions: &[usize], block: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(positions.len() * block);
    if block == 1 {
        out.extend(positions.iter().map(|p| v[*p].clone()));
    } else {
        for p in positions {
            out.extend_from_slice(&v[*p..*p + block]);
        }
    }
    out
}

/// Adds the n-th block of `g` to `out` at the n-th position. The reverse of [`take`].
pub fn add<T: Real>(g: &[T], positions: &[usize], block: usize, out: &mut [T]) {
    assert_eq!(g.len(), positions.len() * block, "one block a position");
    for (n, p) in positions.iter().enumerate() {
        for (o, g) in out[*p..*p + block].iter_mut().zip(&g[n * block..]) {
            *o += *g;
        }
    }
}

/// Combines the n-th block of `updates` into `out` at the n-th position, in order.
pub fn put<T: Clone>(
    updates: &[T],
    positions: &[usize],
    block: usize,
    out: &mut [T],
    combine: impl Fn(&T, &T) -> T,
) {
    assert_eq!(updates.len(), positions.len() * block, "one block a position");
    for (n, p) in positions.iter().enumerate() {
        for (o, u) in out[*p..*p + block].iter_mut().zip(&updates[n * block..]) {
            *o = combine(o, u);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_taken_added_and_put_where_they_belong() {
        let v = [1.0f32, 2., 3., 4., 5., 6.];
        let at = [4, 0, 4];
        let taken = take(&v, &at, 2);
        assert_eq!(taken, [5., 6., 1., 2., 5., 6.]);
        let mut sum = [0.0; 6];
        add(&taken, &at, 2, &mut sum);
        assert_eq!(sum, [1., 2., 0., 0., 10., 12.]);
        let mut out = v;
        put(&[9., 8., 7., 6., 5., 4.], &at, 2, &mut out, |_, u| *u);
        assert_eq!(out, [7., 6., 3., 4., 5., 4.]);
    }
}
