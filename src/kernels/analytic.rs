//! Elementary functions. For `f32` the hot ones are branch-free polynomials that vectorise; their
//! coefficients are Chebyshev fits on the reduced range. `f64` takes the system's.

use super::real::Real;

/// Elementary functions of a number. Errors of the `f32` polynomials stay within a few units in the last
/// place; NaN stays NaN.
pub trait Analytic: Real + std::ops::Rem<Output = Self> {
    /// Positive infinity.
    const HIGHEST: Self;
    /// Not a number.
    const NAN: Self;
    /// e to the x.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Error function.
    fn erf(self) -> Self;
    /// x to the y.
    fn powf(self, y: Self) -> Self;
    /// Nearest integer, halves to even.
    fn round(self) -> Self;
    /// Largest integer not above.
    fn floor(self) -> Self;
    /// Smallest integer not below.
    fn ceil(self) -> Self;
    /// Towards zero.
    fn trunc(self) -> Self;
    /// Sine.
    fn sin(self) -> Self;
    /// Cosine.
    fn cos(self) -> Self;
    /// Tangent.
    fn tan(self) -> Self;
    /// Inverse sine.
    fn asin(self) -> Self;
    /// Inverse cosine.
    fn acos(self) -> Self;
    /// Inverse tangent.
    fn atan(self) -> Self;
    /// Hyperbolic sine.
    fn sinh(self) -> Self;
    /// Hyperbolic cosine.
    fn cosh(self) -> Self;
    /// Inverse hyperbolic sine.
    fn asinh(self) -> Self;
    /// Inverse hyperbolic cosine.
    fn acosh(self) -> Self;
    /// Inverse hyperbolic tangent.
    fn atanh(self) -> Self;

    /// `1 / (1 + exp(-x))`.
    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + (-self).exp())
    }
    /// `ln(1 + exp(x))` without overflow.
    #[inline(always)]
    fn softplus(self) -> Self {
        let small = (-self.abs()).exp();
        // ln(1 + s) loses s below the unit in the last place of one; there it is s.
        let one = Self::ONE + small;
        let rest = if one == Self::ONE { small } else { one.ln() * (small / (one - Self::ONE)) };
        self.larger(Self::ZERO) + rest
    }
    /// The larger of both; NaN if one is.
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if self > other || self.is_nan() { self } else { other }
    }
    /// The smaller of both; NaN if one is.
    #[inline(always)]
    fn smaller(self, other: Self) -> Self {
        if self < other || self.is_nan() { self } else { other }
    }
    /// `exp(x) - 1`, exact near zero too.
    #[inline(always)]
    fn exp_m1(self) -> Self {
        let t = (self * Self::of(0.5)).tanh();
        if self < Self::ONE { (t + t) / (Self::ONE - t) } else { self.exp() - Self::ONE }
    }
    /// Whether it is not a number.
    #[inline(always)]
    #[allow(clippy::eq_op)]
    fn is_nan(self) -> bool {
        self != self
    }
    /// 1, 0 or -1 with the sign of x; NaN stays.
    #[inline(always)]
    fn sign(self) -> Self {
        if self > Self::ZERO {
            Self::ONE
        } else if self < Self::ZERO {
            -Self::ONE
        } else {
            self + Self::ZERO
        }
    }
}

/// The polynomial with these coefficients, highest first.
#[inline(always)]
fn horner<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[0];
    for c in &coefficients[1..] {
        sum = sum * x + c;
    }
    sum
}

/// `a` where `condition` holds, else `b`; both are computed, as vectors must, instead of a branch.
#[inline(always)]
fn choose(condition: bool, a: f32, b: f32) -> f32 {
    let mask = u32::from(condition).wrapping_neg();
    f32::from_bits((a.to_bits() & mask) | (b.to_bits() & !mask))
}

/// Adding this leaves the nearest integer in the low bits of the mantissa.
const ROUNDER: f32 = 12_582_912.0;

/// `exp(x)` as a mantissa near one and a power of two, for |x| up to 128.
#[inline(always)]
fn exp_parts(x: f32) -> (f32, i32) {
    let shifted = x * std::f32::consts::LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    // ln 2 in two parts, the first exact in few bits.
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let p = horner(r, [1.989_108e-4, 1.393_373_1e-3, 8.333_311e-3, 4.166_646_4e-2, 1.666_666_7e-1, 0.5]);
    (r * r * p + r + 1.0, (shifted.to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32))
}

/// Two to the n, for n from -126 to 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = if x > 90.0 { 90.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let (p, n) = exp_parts(x);
    // In two steps, so that the ends of the range come out right.
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n - half)
}

#[inline(always)]
fn ln(x: f32) -> f32 {
    let tiny = x < f32::MIN_POSITIVE;
    let scaled = if tiny { x * 8_388_608.0 } else { x };
    let bits = scaled.to_bits() as i32;
    // Exponent and mantissa, the latter from sqrt(1/2) to sqrt(2).
    let e = bits.wrapping_sub(0x3f35_04f3) >> 23;
    let m = f32::from_bits(bits.wrapping_sub(e << 23) as u32);
    let e = (e - if tiny { 23 } else { 0 }) as f32;
    let f = m - 1.0;
    let p = horner(
        f,
        [
            6.971_612e-2,
            -1.147_973_4e-1,
            1.168_542e-1,
            -1.242_568_7e-1,
            1.424_905_8e-1,
            -1.666_780_2e-1,
            2.000_071_6e-1,
            -2.499_999_7e-1,
            3.333_333e-1,
        ],
    );
    let square = f * f;
    let y = (f * square * p + e * -2.121_944_4e-4 - 0.5 * square) + f + e * 0.693_359_4;
    let y = choose(x == f32::INFINITY, x, y);
    let y = choose(x == 0.0, f32::NEG_INFINITY, y);
    choose(x >= 0.0, y, f32::NAN)
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    let a = f32::abs(x);
    let z = x * x;
    let near =
        x + x * z * horner(z, [-6.096_714e-3, 2.099_718e-2, -5.385_091e-2, 1.333_277e-1, -3.333_333e-1]);
    // At 10 it is one to the last bit.
    let (p, n) = exp_parts(if a > 10.0 { 20.0 } else { a + a });
    let far = 1.0 - 2.0 / (p * power_of_two(n) + 1.0);
    let far = f32::copysign(far, x);
    choose(x.is_nan(), x, choose(a < 0.625, near, far))
}

#[inline(always)]
fn erf(x: f32) -> f32 {
    let a = f32::abs(x);
    let z = x * x;
    let near = x + x * horner(
        z,
        [-5.967_311e-4, 4.988_906e-3, -2.676_399_5e-2, 1.128_175_4e-1, -3.761_249e-1, 1.283_791_5e-1],
    );
    // -ln(erfc(a)) as a polynomial; at 3.95 erf is one to the last bit.
    let b = if a > 3.95 { 3.95 } else { a };
    let q = horner(
        b,
        [
            -1.660_596_3e-6,
            4.649_336_3e-5,
            -6.002_25e-4,
            4.774_377_5e-3,
            -2.645_941_5e-2,
            1.101_405_6e-1,
            6.317_695e-1,
            1.130_261_8,
            -3.259_053_6e-4,
        ],
    );
    let (p, n) = exp_parts(-q);
    let far = f32::copysign(1.0 - p * power_of_two(n), x);
    choose(x.is_nan(), x, choose(a < 0.92, near, far))
}

macro_rules! system {
    ($t:ty; $($name:ident),*) => { $(
        #[inline(always)]
        fn $name(self) -> $t { <$t>::$name(self) }
    )* };
}

impl Analytic for f32 {
    const HIGHEST: f32 = f32::INFINITY;
    const NAN: f32 = f32::NAN;
    #[inline(always)]
    fn exp(self) -> f32 {
        exp(self)
    }
    #[inline(always)]
    fn ln(self) -> f32 {
        ln(self)
    }
    #[inline(always)]
    fn tanh(self) -> f32 {
        tanh(self)
    }
    #[inline(always)]
    fn erf(self) -> f32 {
        erf(self)
    }
    #[inline(always)]
    fn powf(self, y: f32) -> f32 {
        f32::powf(self, y)
    }
    #[inline(always)]
    fn round(self) -> f32 {
        self.round_ties_even()
    }
    system!(f32; floor, ceil, trunc, sin, cos, tan, asin, acos, atan, sinh, cosh, asinh, acosh, atanh);
}

impl Analytic for f64 {
    const HIGHEST: f64 = f64::INFINITY;
    const NAN: f64 = f64::NAN;
    #[inline(always)]
    fn erf(self) -> f64 {
        statrs::function::erf::erf(self)
    }
    #[inline(always)]
    fn powf(self, y: f64) -> f64 {
        f64::powf(self, y)
    }
    #[inline(always)]
    fn round(self) -> f64 {
        self.round_ties_even()
    }
    #[inline(always)]
    fn exp_m1(self) -> f64 {
        f64::exp_m1(self)
    }
    system!(f64; exp, ln, tanh, floor, ceil, trunc, sin, cos, tan, asin, acos, atan, sinh, cosh, asinh, acosh, atanh);
}

#[cfg(test)]
mod tests {
    use super::Analytic;

    /// Largest error in units of the last place of the result, over a sweep of all magnitudes.
    fn worst(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, range: std::ops::Range<f32>) -> f64 {
        let mut worst = 0f64;
        let mut check = |x: f32| {
            if !range.contains(&x) {
                return;
            }
            let (found, wanted) = (f(x), exact(f64::from(x)));
            let rounded = wanted as f32;
            if found == rounded {
                return;
            }
            let unit = f64::from(rounded.abs().next_up() - rounded.abs()).max(1e-45);
            worst = worst.max((f64::from(found) - wanted).abs() / unit);
        };
        for i in (0..0x7f80_0000u32).step_by(7919) {
            check(f32::from_bits(i));
            check(-f32::from_bits(i));
        }
        worst
    }

    #[test]
    fn polynomials_stay_within_a_few_units_of_the_last_place() {
        let all = f32::NEG_INFINITY..f32::INFINITY;
        let errors = [
            ("exp", worst(Analytic::exp, f64::exp, all.clone())),
            ("ln", worst(Analytic::ln, f64::ln, 0.0..f32::INFINITY)),
            ("tanh", worst(Analytic::tanh, f64::tanh, all.clone())),
            ("erf", worst(Analytic::erf, statrs::function::erf::erf, all.clone())),
            ("exp_m1", worst(Analytic::exp_m1, f64::exp_m1, all.clone())),
            ("sigmoid", worst(Analytic::sigmoid, |x| 1.0 / (1.0 + (-x).exp()), -80.0..f32::INFINITY)),
            (
                "softplus",
                worst(
                    Analytic::softplus,
                    |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p(),
                    -80.0..f32::INFINITY,
                ),
            ),
        ];
        for (name, error) in errors {
            println!("{name}: {error:.2} units");
            assert!(error < 4.0, "{name}: {error}");
        }
    }

    #[test]
    fn ends_of_the_range_are_exact() {
        assert_eq!(Analytic::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Analytic::exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(Analytic::exp(89.0f32), f32::INFINITY);
        assert!(Analytic::exp(88.7f32) < f32::INFINITY);
        assert_eq!(Analytic::exp(0f32), 1.0);
        assert_eq!(Analytic::ln(0f32), f32::NEG_INFINITY);
        assert_eq!(Analytic::ln(f32::INFINITY), f32::INFINITY);
        assert!(Analytic::ln(-1f32).is_nan());
        assert_eq!((Analytic::tanh(50f32), Analytic::erf(-50f32)), (1.0, -1.0));
        assert_eq!(Analytic::sigmoid(f32::NEG_INFINITY), 0.0);
        for f in [
            Analytic::exp,
            Analytic::ln,
            Analytic::tanh,
            Analytic::erf,
            Analytic::sigmoid,
            Analytic::softplus,
        ] as [fn(f32) -> f32; 6]
        {
            assert!(f(f32::NAN).is_nan());
        }
        assert!(Analytic::larger(f32::NAN, 1.0).is_nan() && Analytic::larger(1.0, f32::NAN).is_nan());
        assert!(Analytic::smaller(f32::NAN, 1.0).is_nan() && Analytic::smaller(1.0, f32::NAN).is_nan());
    }
}
