//! Encodings whose groups of four or eight elements are points of a codebook, with signs or a shift and
//! a scale for each 8 to 32 elements.

use super::grids;
use super::{half_at, u16_at, u32_at};

/// Values of the two-bit codebooks with signs.
const MAGNITUDES: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
/// Values of the ternary codebook.
const TERNARY: [f32; 4] = [-1.0, 0.0, 1.0, 0.0];
/// Values of the codebook of IQ3_XXS.
const EIGHT: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
/// Shift of the ternary points.
const DELTA: f32 = 0.125;

/// Eight sign bits of seven: the last makes their number even.
#[inline]
fn signs(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | ((seven.count_ones() & 1) as u8) << 7
}

#[inline]
fn sign(bits: u8, i: usize) -> f32 {
    if bits >> i & 1 == 0 { 1.0 } else { -1.0 }
}

/// Eight elements of a signed two-bit point.
#[inline]
fn signed(db: f32, point: u16, signs: u8, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = db * MAGNITUDES[usize::from(point >> (2 * i) & 3)] * sign(signs, i);
    }
}

/// Eight elements of a shifted ternary point.
#[inline]
fn shifted(dl: f32, point: u16, delta: f32, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = dl * (TERNARY[usize::from(point >> (2 * i) & 3)] + delta);
    }
}

/// Eight elements of two signed points of four.
#[inline]
fn pair(db: f32, points: [u16; 2], values: impl Fn(usize) -> f32, signs: u8, out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = db * values(usize::from(points[i / 4] >> (4 * (i % 4)) & 7)) * sign(signs, i);
    }
}

pub(super) fn iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let at = 2 + group * 8;
        let rest = u32_at(block, at + 4);
        let db = d * (0.5 + (rest >> 28) as f32) * 0.25;
        for (i, out) in out.chunks_exact_mut(8).enumerate() {
            signed(db, grids::IQ2_XXS[usize::from(block[at + i])], signs(rest >> (7 * i)), out);
        }
    }
}

pub(super) fn iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let (d, scales) = (half_at(block, 0), &block[66..]);
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let q = u16_at(block, 2 + 2 * i);
        let db = d * (0.5 + f32::from(scales[i / 4] >> (i / 2 % 2 * 4) & 15)) * 0.25;
        signed(db, grids::IQ2_XS[usize::from(q & 511)], signs(u32::from(q >> 9)), out);
    }
}

pub(super) fn iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let (quants, signs, high, scales) = (&block[2..34], &block[34..66], &block[66..74], &block[74..]);
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let db = d * (0.5 + f32::from(scales[i / 4] >> (i / 2 % 2 * 4) & 15)) * 0.25;
        let index = usize::from(quants[i]) | usize::from(high[i / 4] >> (i % 4 * 2) & 3) << 8;
        signed(db, grids::IQ2_S[index], signs[i], out);
    }
}

pub(super) fn iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let rest = u32_at(block, 66 + group * 4);
        let db = d * (0.5 + (rest >> 28) as f32) * 0.5;
        for (i, out) in out.chunks_exact_mut(8).enumerate() {
            let at = 2 + group * 8 + i * 2;
            let points = [0, 1].map(|k| grids::IQ3_XXS[usize::from(block[at + k])]);
            pair(db, points, |v| EIGHT[v], signs(rest >> (7 * i)), out);
        }
    }
}

pub(super) fn iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let (quants, high, signs, scales) = (&block[2..66], &block[66..74], &block[74..106], &block[106..]);
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let group = i / 4;
        let db = d * f32::from(1 + 2 * (scales[group / 2] >> (group % 2 * 4) & 15));
        let points = [2 * i, 2 * i + 1]
            .map(|at| grids::IQ3_S[usize::from(quants[at]) | usize::from(high[at / 8] >> (at % 8) & 1) << 8]);
        pair(db, points, |v| (2 * v + 1) as f32, signs[i], out);
    }
}

pub(super) fn iq1_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let high = u16_at(block, 34 + 2 * group);
        let dl = d * f32::from(2 * (high >> 12 & 7) + 1);
        let delta = if high & 0x8000 == 0 { DELTA } else { -DELTA };
        for (i, out) in out.chunks_exact_mut(8).enumerate() {
            let index = usize::from(block[2 + group * 4 + i]) | usize::from(high >> (3 * i) & 7) << 8;
            shifted(dl, grids::IQ1[index], delta, out);
        }
    }
}

pub(super) fn iq1_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let (quants, high) = (&block[..32], &block[32..48]);
    let scales = [48, 50, 52, 54].map(|at| u16_at(block, at));
    // The half-precision scale lies in the top nibbles of the four scale words.
    let bits = scales.iter().enumerate().fold(0, |bits, (i, s)| bits | s >> 12 << (4 * i));
    let d = half::f16::from_bits(bits).to_f32();
    for (i, out) in out.chunks_exact_mut(8).enumerate() {
        let pair = i / 2;
        let dl = d * f32::from(2 * (scales[pair / 4] >> (pair % 4 * 3) & 7) + 1);
        let h = high[pair] >> (i % 2 * 4) & 15;
        let delta = if h & 8 == 0 { DELTA } else { -DELTA };
        shifted(dl, grids::IQ1[usize::from(quants[i]) | usize::from(h & 7) << 8], delta, out);
    }
}
