//! Arithmetic of integers as ONNX's operators need it: wrapping, never a panic. Narrower integers are
//! computed in `i64` and cut down, which wraps as they would.

use super::wide::Lanes;

/// An integer. Overflow wraps; a division by zero gives zero.
pub trait Whole: Lanes + Ord + Default + std::fmt::Debug + 'static {
    /// Smallest value.
    const LOWEST: Self;
    /// Largest value.
    const HIGHEST: Self;
    /// `a + b`.
    fn add(self, b: Self) -> Self;
    /// `a - b`.
    fn sub(self, b: Self) -> Self;
    /// `a * b`.
    fn mul(self, b: Self) -> Self;
    /// `a / b`, towards zero.
    fn div(self, b: Self) -> Self;
    /// Remainder with the sign of `b`.
    fn modulo(self, b: Self) -> Self;
    /// Remainder with the sign of `a`.
    fn remainder(self, b: Self) -> Self;
    /// `a` to the `b`; a negative power of anything but 1 and -1 is zero.
    fn pow(self, b: i64) -> Self;
    /// Bits moved up; zero where `b` is the width or more.
    fn up(self, b: Self) -> Self;
    /// Bits moved down; zero where `b` is the width or more.
    fn down(self, b: Self) -> Self;
    /// Common bits.
    fn and(self, b: Self) -> Self;
    /// Bits of either.
    fn or(self, b: Self) -> Self;
    /// Bits of one.
    fn xor(self, b: Self) -> Self;
    /// Opposite bits.
    fn not(self) -> Self;
    /// Magnitude.
    fn abs(self) -> Self;
    /// Negative.
    fn neg(self) -> Self;
    /// -1, 0 or 1.
    fn sign(self) -> Self;
    /// Nearest float.
    fn wide(self) -> f64;
    /// Truncated and clamped.
    fn narrow(x: f64) -> Self;
}

macro_rules! whole {
    ($($t:ty: $sign:expr, $abs:expr);*) => { $(impl Whole for $t {
        const LOWEST: $t = <$t>::MIN;
        const HIGHEST: $t = <$t>::MAX;
        #[inline(always)]
        fn add(self, b: $t) -> $t { self.wrapping_add(b) }
        #[inline(always)]
        fn sub(self, b: $t) -> $t { self.wrapping_sub(b) }
        #[inline(always)]
        fn mul(self, b: $t) -> $t { self.wrapping_mul(b) }
        #[inline(always)]
        fn div(self, b: $t) -> $t { if b == 0 { 0 } else { self.wrapping_div(b) } }
        #[inline(always)]
        fn modulo(self, b: $t) -> $t {
            let r = self.remainder(b);
            #[allow(unused_comparisons)]
            if r != 0 && ((r < 0) != (b < 0)) { r.wrapping_add(b) } else { r }
        }
        #[inline(always)]
        fn remainder(self, b: $t) -> $t { if b == 0 { 0 } else { self.wrapping_rem(b) } }
        #[inline(always)]
        fn pow(self, b: i64) -> $t {
            if b < 0 {
                return match Whole::abs(self) {
                    1 if b & 1 == 0 => 1,
                    1 => self,
                    _ => 0,
                };
            }
            self.wrapping_pow(u32::try_from(b).unwrap_or(u32::MAX))
        }
        #[inline(always)]
        fn up(self, b: $t) -> $t { u32::try_from(b).ok().and_then(|b| self.checked_shl(b)).unwrap_or(0) }
        #[inline(always)]
        fn down(self, b: $t) -> $t { u32::try_from(b).ok().and_then(|b| self.checked_shr(b)).unwrap_or(0) }
        #[inline(always)]
        fn and(self, b: $t) -> $t { self & b }
        #[inline(always)]
        fn or(self, b: $t) -> $t { self | b }
        #[inline(always)]
        fn xor(self, b: $t) -> $t { self ^ b }
        #[inline(always)]
        fn not(self) -> $t { !self }
        #[inline(always)]
        fn abs(self) -> $t { ($abs)(self) }
        #[inline(always)]
        fn neg(self) -> $t { self.wrapping_neg() }
        #[inline(always)]
        fn sign(self) -> $t { ($sign)(self) }
        #[inline(always)]
        fn wide(self) -> f64 { self as f64 }
        #[inline(always)]
        fn narrow(x: f64) -> $t { x as $t }
    })* };
}
whole!(i64: i64::signum, i64::wrapping_abs; u64: |x| u64::from(x != 0), |x| x);

#[cfg(test)]
mod tests {
    use super::Whole;

    #[test]
    fn nothing_panics_and_signs_follow_the_standard() {
        assert_eq!((7i64.modulo(-3), (-7i64).modulo(3)), (-2, 2));
        assert_eq!((7i64.remainder(-3), (-7i64).remainder(3)), (1, -1));
        assert_eq!((Whole::div(i64::MIN, -1), Whole::div(5i64, 0), 5u64.modulo(0)), (i64::MIN, 0, 0));
        assert_eq!((Whole::pow(2u64, 64), Whole::pow(3i64, 4), Whole::pow(-1i64, -3)), (0, 81, -1));
        assert_eq!((1u64.up(64), 1u64.up(63), 8u64.down(3), 1u64.down(200)), (0, 1 << 63, 1, 0));
        assert_eq!((Whole::abs(i64::MIN), Whole::sign(-4i64), Whole::sign(3u64)), (i64::MIN, -1, 1));
    }
}
