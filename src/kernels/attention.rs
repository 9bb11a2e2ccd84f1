//! Scaled dot-product attention over heads that may share keys and values. Queries, keys and values
//! enter as `[batch, heads, positions, size]`, row-major; weighted sums or scores leave. Query heads of
//! one key head are worked on as one tall matrix, so that keys and values are never repeated, and keys
//! are taken in blocks with a running softmax (Milakov and Gimelshein, arXiv 1805.02867), so that the
//! scores of a long text are never held at once.

use super::analytic::Analytic;
use super::gemm::{Matrix, product};
use super::real::axpy;
use super::wide::{Lanes, Loop};
use rayon::prelude::*;

/// Query rows that one task takes.
const ROWS: usize = 64;
/// Keys of one block.
const KEYS: usize = 256;

/// Sizes of one attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Batch entries.
    pub batch: usize,
    /// Query heads, a multiple of `groups`.
    pub heads: usize,
    /// Key and value heads.
    pub groups: usize,
    /// Query positions.
    pub queries: usize,
    /// Key positions.
    pub keys: usize,
    /// Elements of a query or key.
    pub head: usize,
    /// Elements of a value.
    pub value: usize,
}

impl Sizes {
    /// Query rows that share one key head.
    fn rows(&self) -> usize {
        self.heads / self.groups.max(1) * self.queries
    }
    /// Elements of the scores.
    pub fn scores(&self) -> usize {
        self.batch * self.heads * self.queries * self.keys
    }
    fn check(&self, q: usize, k: usize, v: usize) {
        assert!(self.groups == 0 || self.heads.is_multiple_of(self.groups), "whole groups of heads");
        assert_eq!(q, self.batch * self.heads * self.queries * self.head, "queries fill their slice");
        assert_eq!(k, self.batch * self.groups * self.keys * self.head, "keys fill their slice");
        assert_eq!(v, self.batch * self.groups * self.keys * self.value, "values fill their slice");
    }
}

/// What is added to the scores, or which of them count: rows of keys, found by batch entry, head and
/// query. Keys beyond the width of a row do not count.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a, T> {
    /// Every key counts.
    All,
    /// Keys whose byte is not zero count.
    Allowed(&'a [u8], Rows),
    /// Added to the scores; negative infinity rules a key out.
    Bias(&'a [T], Rows),
}

/// Where the rows of a mask lie.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// Distance of batch entries, heads and queries; zero where one row serves all.
    pub strides: [usize; 3],
    /// Keys in a row.
    pub width: usize,
}

impl Rows {
    fn at(&self, b: usize, h: usize, s: usize) -> std::ops::Range<usize> {
        let from = b * self.strides[0] + h * self.strides[1] + s * self.strides[2];
        from..from + self.width
    }
}

/// How scores are made and which of them count.
#[derive(Debug, Clone)]
pub struct Rules<'a, T> {
    /// Factor of the products.
    pub scale: T,
    /// Scores are squeezed into plus or minus this by `cap * tanh(score / cap)`; zero for none.
    pub softcap: T,
    /// Mask.
    pub mask: Mask<'a, T>,
    /// Position of the first query among the keys, by batch entry; one for all where it has one element.
    pub offset: Vec<i64>,
    /// Keys behind a query's position that it reaches; `None` for all.
    pub left: Option<i64>,
    /// Keys ahead of a query's position that it reaches; 0 is causal, `None` for all.
    pub right: Option<i64>,
    /// Keys that count, by batch entry; empty where all do.
    pub valid: Vec<i64>,
}

impl<T: Analytic> Rules<'_, T> {
    /// First key that a row reaches and the first behind the last; none lies in between where both are
    /// equal. Masks count, so that what a causal mask rules out is never computed.
    fn reach(&self, sizes: &Sizes, b: usize, h: usize, s: usize) -> (usize, usize) {
        let keys = sizes.keys as i64;
        let at = self.offset.get(if self.offset.len() == 1 { 0 } else { b }).copied().unwrap_or(0) + s as i64;
        let width = match self.mask {
            Mask::All => keys,
            Mask::Allowed(_, rows) | Mask::Bias(_, rows) => rows.width as i64,
        };
        let right = self.right.map_or(keys, |r| at.saturating_add(r).saturating_add(1));
        let valid = self.valid.get(b).copied().unwrap_or(keys);
        let high = keys.min(width).min(right).min(valid).max(0);
        let low = self.left.map_or(0, |l| at.saturating_sub(l)).clamp(0, high);
        let (low, high) = (low as usize, high as usize);
        match self.mask {
            Mask::All => (low, high),
            Mask::Allowed(m, rows) => narrowed(&m[rows.at(b, h, s)], low, high, |a| *a != 0),
            Mask::Bias(m, rows) => narrowed(&m[rows.at(b, h, s)], low, high, |a| *a != T::LOWEST),
        }
    }
}

/// The shortest range that holds all of `low..high` which count.
fn narrowed<A>(row: &[A], low: usize, high: usize, counts: impl Fn(&A) -> bool) -> (usize, usize) {
    match row[low..high].iter().position(&counts) {
        None => (low, low),
        Some(first) => {
            let behind = row[low..high].iter().rev().position(&counts).unwrap_or(0);
            (low + first, high - behind)
        }
    }
}

/// Rows of one task: their place in the group, and the keys that any of them reaches.
struct Block {
    /// Batch entry, key head.
    b: usize,
    g: usize,
    /// First row within the group, and number.
    first: usize,
    count: usize,
    reach: Vec<(usize, usize)>,
    low: usize,
    high: usize,
}

impl Block {
    fn of<T: Analytic>(sizes: &Sizes, rules: &Rules<'_, T>, bg: usize, first: usize, count: usize) -> Block {
        let (b, g) = (bg / sizes.groups, bg % sizes.groups);
        let repeat = sizes.heads / sizes.groups;
        let reach: Vec<_> = (first..first + count)
            .map(|r| rules.reach(sizes, b, g * repeat + r / sizes.queries, r % sizes.queries))
            .collect();
        let low = reach.iter().filter(|(l, h)| l < h).map(|(l, _)| *l).min().unwrap_or(0);
        let high = reach.iter().filter(|(l, h)| l < h).map(|(_, h)| *h).max().unwrap_or(0);
        Block { b, g, first, count, reach, low, high }
    }
    /// (batch entry, head, query) of a row.
    fn row(&self, sizes: &Sizes, r: usize) -> (usize, usize, usize) {
        let at = self.first + r;
        let repeat = sizes.heads / sizes.groups;
        (self.b, self.g * repeat + at / sizes.queries, at % sizes.queries)
    }
    /// The mask's rows, one for each row of the block.
    fn masks<'a, T: Analytic>(&self, sizes: &Sizes, rules: &Rules<'a, T>) -> Vec<Row<'a, T>> {
        (0..self.count)
            .map(|r| {
                let (b, h, s) = self.row(sizes, r);
                let (low, high) = self.reach[r];
                let (allowed, bias) = match rules.mask {
                    Mask::All => (None, None),
                    Mask::Allowed(m, rows) => (Some(&m[rows.at(b, h, s)]), None),
                    Mask::Bias(m, rows) => (None, Some(&m[rows.at(b, h, s)])),
                };
                Row { low, high, allowed, bias }
            })
            .collect()
    }
}

/// One query row's keys.
struct Row<'a, T> {
    low: usize,
    high: usize,
    allowed: Option<&'a [u8]>,
    bias: Option<&'a [T]>,
}

impl<T: Analytic> Row<'_, T> {
    /// Whether any of these keys counts.
    fn any(&self, from: usize, to: usize) -> bool {
        let (from, to) = (from.max(self.low), to.min(self.high));
        from < to && self.allowed.is_none_or(|a| a[from..to].iter().any(|x| *x != 0))
    }
    /// Rules keys out and adds the bias, on scores of the keys from `from` on.
    #[inline(always)]
    fn apply(&self, scores: &mut [T], from: usize) {
        let to = from + scores.len();
        let (low, high) = (self.low.clamp(from, to), self.high.clamp(from, to));
        scores[..low - from].fill(T::LOWEST);
        scores[high.max(low) - from..].fill(T::LOWEST);
        if low >= high {
            return;
        }
        let inside = &mut scores[low - from..high - from];
        if let Some(allowed) = self.allowed {
            for (s, a) in inside.iter_mut().zip(&allowed[low..high]) {
                *s = if *a != 0 { *s } else { T::LOWEST };
            }
        }
        if let Some(bias) = self.bias {
            for (s, b) in inside.iter_mut().zip(&bias[low..high]) {
                *s = if *b == T::LOWEST { T::LOWEST } else { *s + *b };
            }
        }
    }
}

#[inline(always)]
fn capped<T: Analytic>(scores: &mut [T], cap: T) {
    if cap > T::ZERO {
        scores.iter_mut().for_each(|s| *s = cap * (*s / cap).tanh());
    }
}

#[inline(always)]
fn highest<T: Analytic>(x: &[T], start: T) -> T {
    let mut parts = [start; 16];
    let chunks = x.chunks_exact(16);
    let mut top = start;
    for v in chunks.remainder() {
        top = if *v > top { *v } else { top };
    }
    for c in chunks {
        for l in 0..16 {
            parts[l] = if c[l] > parts[l] { c[l] } else { parts[l] };
        }
    }
    parts.iter().fold(top, |a, b| if *b > a { *b } else { a })
}

/// One block of scores becomes weights against the running maximum; sums and results so far follow it.
struct Tile<'a, 'm, T> {
    scores: &'a mut [T],
    from: usize,
    softcap: T,
    rows: &'a [Row<'m, T>],
    top: &'a mut [T],
    sum: &'a mut [T],
    out: &'a mut [T],
}

impl<T: Analytic> Loop for Tile<'_, '_, T> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        let (width, size) = (self.scores.len() / self.rows.len(), self.out.len() / self.rows.len());
        for (r, scores) in self.scores.chunks_exact_mut(width).enumerate() {
            capped(scores, self.softcap);
            self.rows[r].apply(scores, self.from);
            let top = highest(scores, self.top[r]);
            if top == T::LOWEST && !scores.iter().any(|s| s.is_nan()) {
                scores.fill(T::ZERO);
                continue;
            }
            let shrink = (self.top[r] - top).exp();
            if shrink != T::ONE {
                self.sum[r] = self.sum[r] * shrink;
                self.out[r * size..(r + 1) * size].iter_mut().for_each(|o| *o = *o * shrink);
            }
            self.top[r] = top;
            scores.iter_mut().for_each(|s| *s = (*s - top).exp());
            self.sum[r] += super::real::sum(scores);
        }
    }
}

/// Weighted sums of the values, `[batch, heads, queries, value]`. A query that reaches no key gives zeros.
pub fn forward<T: Analytic + Lanes>(
    sizes: &Sizes,
    rules: &Rules<'_, T>,
    q: &[T],
    k: &[T],
    v: &[T],
) -> Vec<T> {
    sizes.check(q.len(), k.len(), v.len());
    let rows = sizes.rows();
    let mut out = vec![T::ZERO; sizes.batch * sizes.heads * sizes.queries * sizes.value];
    if out.is_empty() || sizes.keys == 0 {
        return out;
    }
    out.par_chunks_exact_mut(rows * sizes.value).enumerate().for_each(|(bg, out)| {
        let k = &k[bg * sizes.keys * sizes.head..][..sizes.keys * sizes.head];
        let v = &v[bg * sizes.keys * sizes.value..][..sizes.keys * sizes.value];
        out.par_chunks_mut(ROWS * sizes.value).enumerate().for_each(|(i, out)| {
            let block = Block::of(sizes, rules, bg, i * ROWS, out.len() / sizes.value);
            let q = &q[(bg * rows + block.first) * sizes.head..][..block.count * sizes.head];
            running(sizes, rules, &block, q, k, v, out);
        });
    });
    out
}

fn running<T: Analytic + Lanes>(
    sizes: &Sizes,
    rules: &Rules<'_, T>,
    block: &Block,
    q: &[T],
    k: &[T],
    v: &[T],
    out: &mut [T],
) {
    let n = block.count;
    let masks = block.masks(sizes, rules);
    let (mut top, mut sum) = (vec![T::LOWEST; n], vec![T::ZERO; n]);
    let mut scores = vec![T::ZERO; n * KEYS.min(block.high - block.low)];
    for from in (block.low..block.high).step_by(KEYS) {
        let width = KEYS.min(block.high - from);
        if !masks.iter().any(|m| m.any(from, from + width)) {
            continue;
        }
        let scores = &mut scores[..n * width];
        let keys = Matrix::new(&k[from * sizes.head..], width, sizes.head);
        product(rules.scale, Matrix::new(q, n, sizes.head), keys.t(), scores, false, false);
        T::launch(Tile {
            scores,
            from,
            softcap: rules.softcap,
            rows: &masks,
            top: &mut top,
            sum: &mut sum,
            out,
        });
        let values = Matrix::new(&v[from * sizes.value..], width, sizes.value);
        product(T::ONE, Matrix::new(scores, n, width), values, out, true, false);
    }
    for (out, sum) in out.chunks_exact_mut(sizes.value).zip(&sum) {
        if *sum != T::ZERO {
            let scale = T::ONE / *sum;
            out.iter_mut().for_each(|o| *o = *o * scale);
        }
    }
}

/// Up to where scores are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Products.
    Products,
    /// Squeezed by the soft cap.
    Capped,
    /// Masked too.
    Masked,
    /// Weights of the values.
    Weights,
}

/// Scores as they are at a stage, `[batch, heads, queries, keys]`.
pub fn scores<T: Analytic + Lanes>(
    sizes: &Sizes,
    rules: &Rules<'_, T>,
    stage: Stage,
    q: &[T],
    k: &[T],
) -> Vec<T> {
    sizes.check(q.len(), k.len(), sizes.batch * sizes.groups * sizes.keys * sizes.value);
    let mut out = vec![T::ZERO; sizes.scores()];
    if out.is_empty() {
        return out;
    }
    let rows = sizes.rows();
    out.par_chunks_exact_mut(rows * sizes.keys).enumerate().for_each(|(bg, out)| {
        let k = &k[bg * sizes.keys * sizes.head..][..sizes.keys * sizes.head];
        out.par_chunks_mut(ROWS * sizes.keys).enumerate().for_each(|(i, out)| {
            let block = Block::of(sizes, rules, bg, i * ROWS, out.len() / sizes.keys);
            let q = &q[(bg * rows + block.first) * sizes.head..][..block.count * sizes.head];
            let keys = Matrix::new(k, sizes.keys, sizes.head);
            product(rules.scale, Matrix::new(q, block.count, sizes.head), keys.t(), out, false, false);
            let masks = block.masks(sizes, rules);
            T::launch(Staged { scores: out, stage, softcap: rules.softcap, rows: &masks });
        });
    });
    out
}

struct Staged<'a, 'm, T> {
    scores: &'a mut [T],
    stage: Stage,
    softcap: T,
    rows: &'a [Row<'m, T>],
}

impl<T: Analytic> Loop for Staged<'_, '_, T> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        let width = self.scores.len() / self.rows.len();
        for (row, scores) in self.rows.iter().zip(self.scores.chunks_exact_mut(width)) {
            if self.stage != Stage::Products {
                capped(scores, self.softcap);
            }
            if matches!(self.stage, Stage::Masked | Stage::Weights) {
                row.apply(scores, 0);
            }
            if self.stage == Stage::Weights {
                weights(scores);
            }
        }
    }
}

/// Softmax of one row; zeros where nothing counts.
#[inline(always)]
fn weights<T: Analytic>(scores: &mut [T]) {
    let top = highest(scores, T::LOWEST);
    if top == T::LOWEST && !scores.iter().any(|s| s.is_nan()) {
        return scores.fill(T::ZERO);
    }
    scores.iter_mut().for_each(|s| *s = (*s - top).exp());
    let scale = T::ONE / super::real::sum(scores);
    scores.iter_mut().for_each(|s| *s = *s * scale);
}

/// Gradients of [`forward`].
#[derive(Debug, Clone)]
pub struct Gradients<T> {
    /// Of the queries.
    pub q: Vec<T>,
    /// Of the keys.
    pub k: Vec<T>,
    /// Of the values.
    pub v: Vec<T>,
    /// Of what is added to each score, `[batch, heads, queries, keys]`, where asked for.
    pub bias: Option<Vec<T>>,
}

/// Gradients from the gradient of the result, `[batch, heads, queries, value]`. Weights are computed
/// again, a block of queries at a time.
pub fn backward<T: Analytic + Lanes>(
    sizes: &Sizes,
    rules: &Rules<'_, T>,
    q: &[T],
    k: &[T],
    v: &[T],
    dy: &[T],
    bias: bool,
) -> Gradients<T> {
    sizes.check(q.len(), k.len(), v.len());
    let rows = sizes.rows();
    assert_eq!(dy.len(), sizes.batch * rows * sizes.groups * sizes.value, "a gradient for each result");
    let mut grads = Gradients {
        q: vec![T::ZERO; q.len()],
        k: vec![T::ZERO; k.len()],
        v: vec![T::ZERO; v.len()],
        bias: bias.then(|| vec![T::ZERO; sizes.scores()]),
    };
    if q.is_empty() || k.is_empty() || v.is_empty() {
        return grads;
    }
    let whole = rows * sizes.keys;
    let biases: Vec<Option<&mut [T]>> = match &mut grads.bias {
        Some(b) => b.chunks_exact_mut(whole).map(Some).collect(),
        None => (0..sizes.batch * sizes.groups).map(|_| None).collect(),
    };
    grads
        .q
        .par_chunks_exact_mut(rows * sizes.head)
        .zip(grads.k.par_chunks_exact_mut(sizes.keys * sizes.head))
        .zip(grads.v.par_chunks_exact_mut(sizes.keys * sizes.value))
        .zip(biases)
        .enumerate()
        .for_each(|(bg, (((dq, dk), dv), mut dbias))| {
            let k = &k[bg * sizes.keys * sizes.head..][..sizes.keys * sizes.head];
            let v = &v[bg * sizes.keys * sizes.value..][..sizes.keys * sizes.value];
            for first in (0..rows).step_by(ROWS) {
                let block = Block::of(sizes, rules, bg, first, ROWS.min(rows - first));
                let at = bg * rows + first;
                let part = Part {
                    q: &q[at * sizes.head..][..block.count * sizes.head],
                    dy: &dy[at * sizes.value..][..block.count * sizes.value],
                    dq: &mut dq[first * sizes.head..][..block.count * sizes.head],
                    dbias: dbias.as_mut().map(|d| &mut d[first * sizes.keys..][..block.count * sizes.keys]),
                    block,
                };
                part.run(sizes, rules, (k, v), (dk, dv));
            }
        });
    grads
}

/// Scores become weights, row by row.
struct Weights<'a, 'm, T> {
    scores: &'a mut [T],
    from: usize,
    rows: &'a [Row<'m, T>],
}

impl<T: Analytic> Loop for Weights<'_, '_, T> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        let width = self.scores.len() / self.rows.len();
        for (row, scores) in self.rows.iter().zip(self.scores.chunks_exact_mut(width)) {
            row.apply(scores, self.from);
            weights(scores);
        }
    }
}

/// Gradients of weights become gradients of scores.
struct Slopes<'a, T> {
    p: &'a [T],
    ds: &'a mut [T],
    width: usize,
}

impl<T: Analytic> Loop for Slopes<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        for (p, ds) in self.p.chunks_exact(self.width).zip(self.ds.chunks_exact_mut(self.width)) {
            let mean = super::real::dot(p, ds);
            ds.iter_mut().zip(p).for_each(|(d, p)| *d = *p * (*d - mean));
        }
    }
}

/// The reverse pass of one block of queries.
struct Part<'a, T> {
    block: Block,
    q: &'a [T],
    dy: &'a [T],
    dq: &'a mut [T],
    dbias: Option<&'a mut [T]>,
}

impl<T: Analytic + Lanes> Part<'_, T> {
    fn run(self, sizes: &Sizes, rules: &Rules<'_, T>, (k, v): (&[T], &[T]), (dk, dv): (&mut [T], &mut [T])) {
        let Part { block, q, dy, dq, dbias } = self;
        let (n, low, width) = (block.count, block.low, block.high - block.low);
        if width == 0 {
            return;
        }
        let keys = |x| Matrix::new(x, width, sizes.head);
        let values = |x| Matrix::new(x, width, sizes.value);
        let (k, v) = (&k[low * sizes.head..], &v[low * sizes.value..]);
        let mut p = vec![T::ZERO; n * width];
        product(rules.scale, Matrix::new(q, n, sizes.head), keys(k).t(), &mut p, false, false);
        let masks = block.masks(sizes, rules);
        let mut slope = vec![];
        if rules.softcap > T::ZERO {
            capped(&mut p, rules.softcap);
            slope = p.iter().map(|s| T::ONE - (*s / rules.softcap) * (*s / rules.softcap)).collect();
        }
        T::launch(Weights { scores: &mut p, from: low, rows: &masks });
        let dv = &mut dv[low * sizes.value..][..width * sizes.value];
        product(T::ONE, Matrix::new(&p, n, width).t(), Matrix::new(dy, n, sizes.value), dv, true, false);
        let mut ds = vec![T::ZERO; n * width];
        product(T::ONE, Matrix::new(dy, n, sizes.value), values(v).t(), &mut ds, false, false);
        T::launch(Slopes { p: &p, ds: &mut ds, width });
        if let Some(dbias) = dbias {
            for (row, ds) in dbias.chunks_exact_mut(sizes.keys).zip(ds.chunks_exact(width)) {
                axpy(T::ONE, ds, &mut row[low..low + width]);
            }
        }
        if !slope.is_empty() {
            ds.iter_mut().zip(&slope).for_each(|(d, s)| *d = *d * *s);
        }
        product(rules.scale, Matrix::new(&ds, n, width), keys(k), dq, false, false);
        let dk = &mut dk[low * sizes.head..][..width * sizes.head];
        product(rules.scale, Matrix::new(&ds, n, width).t(), Matrix::new(q, n, sizes.head), dk, true, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u64) -> Vec<f64> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0
            })
            .collect()
    }

    fn rules(mask: Mask<'_, f64>) -> Rules<'_, f64> {
        Rules { scale: 0.7, softcap: 0.0, mask, offset: vec![0], left: None, right: None, valid: vec![] }
    }

    /// The definition, key by key.
    fn naive(z: &Sizes, r: &Rules<'_, f64>, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
        let mut out = vec![];
        for b in 0..z.batch {
            for h in 0..z.heads {
                let g = b * z.groups + h / (z.heads / z.groups);
                for s in 0..z.queries {
                    let q = &q[((b * z.heads + h) * z.queries + s) * z.head..][..z.head];
                    let at = r.offset[if r.offset.len() == 1 { 0 } else { b }] + s as i64;
                    let weight = |t: usize| -> f64 {
                        let far = at - t as i64;
                        if r.left.is_some_and(|l| far > l)
                            || r.right.is_some_and(|x| -far > x)
                            || r.valid.get(b).is_some_and(|n| t as i64 >= *n)
                        {
                            return 0.0;
                        }
                        let k = &k[(g * z.keys + t) * z.head..][..z.head];
                        let mut x: f64 = q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() * r.scale;
                        if r.softcap > 0.0 {
                            x = r.softcap * (x / r.softcap).tanh();
                        }
                        match r.mask {
                            Mask::All => x.exp(),
                            Mask::Allowed(m, rows) => {
                                if m[rows.at(b, h, s)].get(t).is_some_and(|a| *a != 0) {
                                    x.exp()
                                } else {
                                    0.0
                                }
                            }
                            Mask::Bias(m, rows) => m[rows.at(b, h, s)].get(t).map_or(0.0, |m| (x + m).exp()),
                        }
                    };
                    let w: Vec<f64> = (0..z.keys).map(weight).collect();
                    let sum: f64 = w.iter().sum();
                    for e in 0..z.value {
                        let y: f64 = (0..z.keys).map(|t| w[t] * v[(g * z.keys + t) * z.value + e]).sum();
                        out.push(if sum == 0.0 { 0.0 } else { y / sum });
                    }
                }
            }
        }
        out
    }

    #[test]
    fn blocks_give_what_the_definition_gives() {
        for (heads, groups, queries, keys) in [(4, 2, 70, 600), (3, 1, 1, 513), (2, 2, 5, 5), (6, 3, 33, 300)]
        {
            let z = Sizes { batch: 2, heads, groups, queries, keys, head: 6, value: 5 };
            let (q, k) = (noise(2 * heads * queries * 6, 1), noise(2 * groups * keys * 6, 2));
            let v = noise(2 * groups * keys * 5, 3);
            let allowed: Vec<u8> = noise(2 * queries * keys, 4).iter().map(|x| u8::from(*x > 0.3)).collect();
            let bias: Vec<f64> = noise(heads * queries * keys, 5)
                .iter()
                .map(|x| if *x > 0.5 { f64::NEG_INFINITY } else { *x })
                .collect();
            let byte = Rows { strides: [queries * keys, 0, keys], width: keys };
            let float = Rows { strides: [0, queries * keys, keys], width: keys };
            let offset = keys as i64 - queries as i64;
            let all = [
                rules(Mask::All),
                rules(Mask::Allowed(&allowed, byte)),
                rules(Mask::Bias(&bias, float)),
                Rules { right: Some(0), offset: vec![offset], ..rules(Mask::All) },
                Rules { right: Some(0), left: Some(3), offset: vec![offset, -2], ..rules(Mask::All) },
                Rules {
                    softcap: 0.4,
                    valid: vec![keys as i64 / 2, 0],
                    ..rules(Mask::Allowed(&allowed, byte))
                },
                rules(Mask::Bias(&bias, Rows { width: keys - 2, ..float })),
            ];
            for (i, r) in all.iter().enumerate() {
                let (y, wanted) = (forward(&z, r, &q, &k, &v), naive(&z, r, &q, &k, &v));
                let far = y.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(far < 1e-12 && y.len() == wanted.len(), "case {i} of {z:?}: {far:e}");
                assert!(wanted.iter().any(|x| *x != 0.0));
                // The same from the weights.
                let w = scores(&z, r, Stage::Weights, &q, &k);
                let row: f64 = w[..keys].iter().zip(v.chunks(5)).map(|(w, v)| w * v[0]).sum();
                assert!((row - wanted[0]).abs() < 1e-12, "case {i}: weights");
            }
        }
    }
}
