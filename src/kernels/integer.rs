//! Products of quantised matrices with exact 32-bit accumulation. Operands are integers with their zero
//! point taken off, as `i16`; sums wrap as 32-bit integers do.

use rayon::prelude::*;

/// Sum of products; the pattern that compiles to multiply-add of pairs.
#[inline]
fn dot(a: &[i16], b: &[i16]) -> i32 {
    a.iter().zip(b).fold(0i32, |s, (x, y)| s.wrapping_add(i32::from(*x) * i32::from(*y)))
}

/// `c[i, j] = sum over k of a[i, k] * b[j, k]` for row-major `a` `[m, k]` and `b` `[n, k]`.
pub fn product(a: &[i16], b: &[i16], k: usize, c: &mut [i32]) {
    if k == 0 {
        c.fill(0);
        return;
    }
    let (m, n) = (a.len() / k, b.len() / k);
    assert_eq!(c.len(), m * n, "the result slice holds the product");
    if n == 0 {
        return;
    }
    // Rows of b that stay in the second-level cache while rows of a pass by.
    let block = ((1 << 17) / k).clamp(4, 256);
    let rows = m.div_ceil(4 * rayon::current_num_threads()).clamp(1, 64);
    c.par_chunks_mut(rows * n).zip(a.par_chunks(rows * k)).for_each(|(c, a)| {
        for (from, b) in b.chunks(block * k).enumerate().map(|(i, b)| (i * block, b)) {
            for (a, c) in a.chunks_exact(k).zip(c.chunks_exact_mut(n)) {
                for (b, c) in b.chunks_exact(k).zip(&mut c[from..]) {
                    *c = dot(a, b);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_rows_cover_every_size() {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (17, 300, 64), (2, 9, 40000), (0, 3, 2), (3, 0, 2)] {
            let a: Vec<i16> = (0..m * k).map(|i| (i * 7 % 511) as i16 - 255).collect();
            let b: Vec<i16> = (0..n * k).map(|i| (i * 13 % 511) as i16 - 255).collect();
            let mut c = vec![0; m * n];
            product(&a, &b, k, &mut c);
            for i in 0..m {
                for j in 0..n {
                    let sum: i64 = (0..k).map(|l| i64::from(a[i * k + l]) * i64::from(b[j * k + l])).sum();
                    assert_eq!(c[i * n + j], sum as i32);
                }
            }
        }
    }
}
