//! Encodings with blocks of 256 elements whose groups of 16 or 32 have quantised scales of their own.

use super::small::CURVE;
use super::{half_at, u16_at};

pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, quants) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let dl = d * f32::from(scales[group] & 15);
        let ml = dmin * f32::from(scales[group] >> 4);
        let (from, shift) = (group / 8 * 32 + group % 2 * 16, group % 8 / 2 * 2);
        for (q, out) in quants[from..from + 16].iter().zip(out) {
            *out = dl * f32::from(q >> shift & 3) - ml;
        }
    }
}

pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (high, quants, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let low = scales[group % 8] >> (group / 8 * 4) & 15;
        let top = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        let dl = d * f32::from((low | top << 4) as i8 - 32);
        let half = group % 2 * 16;
        let (from, shift) = (group / 8 * 32 + half, group % 8 / 2 * 2);
        for ((q, h), out) in quants[from..from + 16].iter().zip(&high[half..half + 16]).zip(out) {
            let offset = if h >> (group / 2) & 1 == 1 { 0 } else { 4 };
            *out = dl * f32::from((q >> shift & 3) as i8 - offset);
        }
    }
}

/// The 6-bit scale and minimum of a group of 32, packed as Q4_K and Q5_K have them.
#[inline]
fn scale_and_minimum(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (packed[group] & 63, packed[group + 4] & 63);
    }
    let rest = packed[group + 4];
    ((rest & 15) | (packed[group - 4] >> 6) << 4, (rest >> 4) | (packed[group] >> 6) << 4)
}

pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, quants) = (&block[4..16], &block[16..]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(scales, group);
        let (dl, ml) = (d * f32::from(scale), dmin * f32::from(minimum));
        let (from, shift) = (group / 2 * 32, group % 2 * 4);
        for (q, out) in quants[from..from + 32].iter().zip(out) {
            *out = dl * f32::from(q >> shift & 15) - ml;
        }
    }
}

pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, high, quants) = (&block[4..16], &block[16..48], &block[48..]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(scales, group);
        let (dl, ml) = (d * f32::from(scale), dmin * f32::from(minimum));
        let (from, shift) = (group / 2 * 32, group % 2 * 4);
        for ((q, h), out) in quants[from..from + 32].iter().zip(high).zip(out) {
            *out = dl * f32::from((q >> shift & 15) | (h >> group & 1) << 4) - ml;
        }
    }
}

pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let dl = d * f32::from(scales[group] as i8);
        let (part, row, half) = (group / 8, group % 8 / 2, group % 2 * 16);
        let from = part * 64 + row % 2 * 32 + half;
        let above = part * 32 + half;
        for ((q, h), out) in low[from..from + 16].iter().zip(&high[above..above + 16]).zip(out) {
            let q = (q >> (row / 2 * 4) & 15) | (h >> (row * 2) & 3) << 4;
            *out = dl * f32::from(q as i8 - 32);
        }
    }
}

pub(super) fn q8_k(block: &[u8; 292], out: &mut [f32; 256]) {
    let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for (q, out) in block[4..260].iter().zip(out) {
        *out = d * f32::from(*q as i8);
    }
}

/// The ternary digit at power `factor` of three, as -1, 0 or 1.
#[inline]
fn digit(byte: u8, factor: u8) -> f32 {
    f32::from(((u16::from(byte.wrapping_mul(factor)) * 3) >> 8) as i8 - 1)
}

pub(super) fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let d = half_at(block, 52);
    let parts = [(&block[..32], 5), (&block[32..48], 5), (&block[48..52], 4)];
    let digits = parts.iter().flat_map(|(bytes, digits)| {
        POWERS[..*digits].iter().flat_map(move |p| bytes.iter().map(move |b| digit(*b, *p)))
    });
    out.iter_mut().zip(digits).for_each(|(out, q)| *out = d * q);
}

pub(super) fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = half_at(block, 64);
    for (row, out) in out.chunks_exact_mut(32).enumerate() {
        let (from, shift) = (row / 4 * 32, row % 4 * 2);
        for (q, out) in block[from..from + 32].iter().zip(out) {
            *out = d * f32::from((q >> shift & 3) as i8 - 1);
        }
    }
}

pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let (top, low, quants) = (u16_at(block, 2), &block[4..8], &block[8..]);
    for (group, (quants, out)) in quants.chunks_exact(16).zip(out.chunks_exact_mut(32)).enumerate() {
        let scale = (low[group / 2] >> (group % 2 * 4) & 15) | ((top >> (group * 2) & 3) as u8) << 4;
        let dl = d * f32::from(scale as i8 - 32);
        let (first, second) = out.split_at_mut(16);
        for ((q, first), second) in quants.iter().zip(first).zip(second) {
            *first = dl * CURVE[usize::from(q & 15)];
            *second = dl * CURVE[usize::from(q >> 4)];
        }
    }
}
