//! Encodings with blocks of up to 128 elements: one scale, sometimes a minimum, and the elements behind.
//! Nibbles of a block hold its first half low and its second half high.

use super::{half_at, u32_at};

/// Values of the four-bit float E2M1, doubled.
const E2M1: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// The curve of IQ4_NL and IQ4_XS.
pub(super) const CURVE: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

#[inline]
fn nibbles(bytes: &[u8], out: &mut [f32], low_and_high: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(bytes.len());
    for ((b, low), high) in bytes.iter().zip(low).zip(high) {
        *low = low_and_high(b & 15);
        *high = low_and_high(b >> 4);
    }
}

pub(super) fn q1_0(block: &[u8; 18], out: &mut [f32; 128]) {
    let d = half_at(block, 0);
    for (i, out) in out.iter_mut().enumerate() {
        *out = if block[2 + i / 8] >> (i % 8) & 1 == 1 { d } else { -d };
    }
}

pub(super) fn q2_0(block: &[u8; 18], out: &mut [f32; 64]) {
    let d = half_at(block, 0);
    for (i, out) in out.iter_mut().enumerate() {
        *out = f32::from((block[2 + i / 4] >> (2 * (i % 4)) & 3) as i8 - 1) * d;
    }
}

pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    nibbles(&block[2..], out, |q| d * f32::from(q as i8 - 8));
}

pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    nibbles(&block[4..], out, |q| d * f32::from(q) + m);
}

/// Nibbles with a fifth bit each.
#[inline]
fn five_bits(bytes: &[u8], fifth: u32, out: &mut [f32; 32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for (i, ((b, low), high)) in bytes.iter().zip(low).zip(high).enumerate() {
        *low = value((b & 15) | ((fifth >> i & 1) as u8) << 4);
        *high = value((b >> 4) | ((fifth >> (i + 16) & 1) as u8) << 4);
    }
}

pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    five_bits(&block[6..], u32_at(block, 2), out, |q| d * f32::from(q as i8 - 16));
}

pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    five_bits(&block[8..], u32_at(block, 4), out, |q| d * f32::from(q) + m);
}

pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (q, out) in block[2..].iter().zip(out) {
        *out = f32::from(*q as i8) * d;
    }
}

/// Half of the power of two with this exponent byte (E8M0), for values that are stored doubled.
fn e8m0_half(x: u8) -> f32 {
    f32::from_bits(if x < 2 { 0x0020_0000 << x } else { u32::from(x - 1) << 23 })
}

pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let d = e8m0_half(block[0]);
    nibbles(&block[1..], out, |q| d * E2M1[usize::from(q)]);
}

/// Half of an unsigned E4M3 float (bias 7), for values that are stored doubled; its NaN counts as 0.
fn e4m3_half(x: u8) -> f32 {
    if x == 0 || x == 0x7f {
        return 0.0;
    }
    let (exponent, mantissa) = (i32::from(x >> 3 & 15), f32::from(x & 7));
    let value = match exponent {
        0 => mantissa * (1.0 / 512.0),
        e => (1.0 + mantissa / 8.0) * 2f32.powi(e - 7),
    };
    value * 0.5
}

pub(super) fn nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    let (scales, quants) = block.split_at(4);
    for ((scale, quants), out) in scales.iter().zip(quants.chunks_exact(8)).zip(out.chunks_exact_mut(16)) {
        let d = e4m3_half(*scale);
        nibbles(quants, out, |q| d * E2M1[usize::from(q)]);
    }
}

pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    nibbles(&block[2..], out, |q| d * CURVE[usize::from(q)]);
}
