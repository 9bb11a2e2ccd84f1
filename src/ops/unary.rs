//! Functions of one element: the operator over any curve, and those of plain mathematics. Halves are
//! computed in `f32`.

use super::float::{self, Float, Scalar, real};
use super::{Coupling, Fact, Keeps, Operator, Spec, Vjp, broadcast, elements};
use crate::error::Result;
use crate::kernels::analytic::Analytic;
use crate::kernels::pointwise::{self, Curve};
use crate::kernels::whole::Whole;
use crate::tensor::{DType, Value};
use std::sync::Arc;

/// A curve, which may also be defined on integers.
pub trait Function: Curve {
    /// Whether it is.
    const WHOLE: bool = false;
    /// Its value at an integer, where [`Function::WHOLE`].
    fn whole<T: Whole>(self, x: T) -> T {
        x
    }
}

/// Declares a curve: its value, and its derivative in terms of the argument (`input`) or of the value
/// (`output`); then its value at integers, where it has one. `T` is the type computed in.
macro_rules! curve {
    ($(#[$doc:meta])* $name:ident { $($field:ident),* }: |$s:ident, $x:ident| $at:expr, $of:ident |$v:ident| $slope:expr $(, whole |$w:ident| $whole:expr)?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        struct $name { $($field: f64),* }
        impl $crate::kernels::pointwise::Curve for $name {
            const OF_OUTPUT: bool = $crate::ops::unary::curve!(@ $of);
            #[inline(always)]
            fn at<T: $crate::kernels::analytic::Analytic>($s, $x: T) -> T { $at }
            #[inline(always)]
            fn slope<T: $crate::kernels::analytic::Analytic>($s, $v: T) -> T { $slope }
        }
        impl $crate::ops::unary::Function for $name {
            $(const WHOLE: bool = true;
            #[inline(always)]
            fn whole<T: $crate::kernels::whole::Whole>(self, $w: T) -> T { $whole })?
        }
    };
    (@ input) => { false };
    (@ output) => { true };
}
pub(crate) use curve;

/// A curve applied to every element.
#[derive(Debug)]
pub struct Unary<C>(pub C);

impl<C: Function> Unary<C> {
    /// As an operator.
    pub fn of(curve: C) -> Result<Arc<dyn Operator>> {
        Ok(Arc::new(Unary(curve)))
    }

    fn forward<T: Scalar + Analytic>(&self, x: &Float) -> Result<Float> {
        float::tensor(pointwise::at(self.0, &float::elements::<T>(x)?), x.dims(), x.dtype())
    }

    fn backward<T: Scalar + Analytic>(&self, at: &Float, grad: &Float) -> Result<Float> {
        let dx = pointwise::slope(self.0, &float::elements::<T>(at)?, &float::elements::<T>(grad)?);
        float::tensor(dx, grad.dims(), grad.dtype())
    }
}

impl<C: Function> Operator for Unary<C> {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        Ok(vec![super::input(inputs, 0)?.without_value()])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let x = super::input(inputs, 0)?;
        Ok(vec![match x {
            Value::Float(x) => real!(x.dtype(), T => self.forward::<T>(x))?.into(),
            Value::Host(t) if C::WHOLE && t.dtype().is_int() => {
                let c = self.0;
                elements::whole!(&[x], v => {
                    elements::narrowed(x.dtype(), x.shape(), pointwise::map(v[0], |x| c.whole(x)))
                })?
            }
            Value::Host(t) => return Err(elements::refused(t.dtype())),
        }])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps { inputs: !C::OF_OUTPUT, outputs: C::OF_OUTPUT }
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let Some(grad) = &v.grads[0] else { return Ok(vec![None]) };
        let at = super::input(if C::OF_OUTPUT { v.outputs } else { v.inputs }, 0)?.float()?;
        Ok(vec![Some(real!(grad.dtype(), T => self.backward::<T>(at, grad))?)])
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        broadcast::couple(inputs, &outputs[0])
    }
}

const SIGNED: &[DType] =
    &[DType::F32, DType::F64, DType::F16, DType::BF16, DType::I8, DType::I16, DType::I32, DType::I64];

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec::new("Abs", 6, DType::NUMBERS, |_, _| Unary::of(Abs {})),
    Spec::new("Neg", 6, SIGNED, |_, _| Unary::of(Neg {})),
    Spec::new("Sign", 9, DType::NUMBERS, |_, _| Unary::of(Sign {})),
    Spec::new("Ceil", 6, DType::FLOATS, |_, _| Unary::of(Ceil {})),
    Spec::new("Floor", 6, DType::FLOATS, |_, _| Unary::of(Floor {})),
    Spec::new("Round", 11, DType::FLOATS, |_, _| Unary::of(Round {})),
    Spec::new("Sqrt", 6, DType::FLOATS, |_, _| Unary::of(Sqrt {})),
    Spec::new("Reciprocal", 6, DType::FLOATS, |_, _| Unary::of(Reciprocal {})),
    Spec::new("Exp", 6, DType::FLOATS, |_, _| Unary::of(Exp {})),
    Spec::new("Log", 6, DType::FLOATS, |_, _| Unary::of(Log {})),
    Spec::new("Erf", 9, DType::FLOATS, |_, _| Unary::of(Erf {})),
    Spec::new("Sin", 7, DType::FLOATS, |_, _| Unary::of(Sin {})),
    Spec::new("Cos", 7, DType::FLOATS, |_, _| Unary::of(Cos {})),
    Spec::new("Tan", 7, DType::FLOATS, |_, _| Unary::of(Tan {})),
    Spec::new("Asin", 7, DType::FLOATS, |_, _| Unary::of(Asin {})),
    Spec::new("Acos", 7, DType::FLOATS, |_, _| Unary::of(Acos {})),
    Spec::new("Atan", 7, DType::FLOATS, |_, _| Unary::of(Atan {})),
    Spec::new("Sinh", 9, DType::FLOATS, |_, _| Unary::of(Sinh {})),
    Spec::new("Cosh", 9, DType::FLOATS, |_, _| Unary::of(Cosh {})),
    Spec::new("Asinh", 9, DType::FLOATS, |_, _| Unary::of(Asinh {})),
    Spec::new("Acosh", 9, DType::FLOATS, |_, _| Unary::of(Acosh {})),
    Spec::new("Atanh", 9, DType::FLOATS, |_, _| Unary::of(Atanh {})),
];

curve!(/// Magnitude; its slope at 0 is 0.
    Abs {}: |self, x| x.abs(), input |x| x.sign(), whole |x| x.abs());
curve!(/// `-x`.
    Neg {}: |self, x| -x, output |_y| -T::ONE, whole |x| x.neg());
curve!(/// -1, 0 or 1; flat.
    Sign {}: |self, x| x.sign(), output |_y| T::ZERO, whole |x| x.sign());
curve!(/// Smallest integer not below; flat.
    Ceil {}: |self, x| x.ceil(), output |_y| T::ZERO);
curve!(/// Largest integer not above; flat.
    Floor {}: |self, x| x.floor(), output |_y| T::ZERO);
curve!(/// Nearest integer, halves to even; flat.
    Round {}: |self, x| x.round(), output |_y| T::ZERO);
curve!(/// Square root.
    Sqrt {}: |self, x| x.sqrt(), output |y| T::of(0.5) / y);
curve!(/// `1 / x`.
    Reciprocal {}: |self, x| T::ONE / x, output |y| -(y * y));
curve!(/// e to the x.
    Exp {}: |self, x| x.exp(), output |y| y);
curve!(/// Natural logarithm.
    Log {}: |self, x| x.ln(), input |x| T::ONE / x);
curve!(/// Error function.
    Erf {}: |self, x| x.erf(), input |x| T::of(std::f64::consts::FRAC_2_SQRT_PI) * (-(x * x)).exp());
curve!(/// Sine.
    Sin {}: |self, x| x.sin(), input |x| x.cos());
curve!(/// Cosine.
    Cos {}: |self, x| x.cos(), input |x| -x.sin());
curve!(/// Tangent.
    Tan {}: |self, x| x.tan(), output |y| T::ONE + y * y);
curve!(/// Inverse sine.
    Asin {}: |self, x| x.asin(), input |x| T::ONE / (T::ONE - x * x).sqrt());
curve!(/// Inverse cosine.
    Acos {}: |self, x| x.acos(), input |x| -T::ONE / (T::ONE - x * x).sqrt());
curve!(/// Inverse tangent.
    Atan {}: |self, x| x.atan(), input |x| T::ONE / (T::ONE + x * x));
curve!(/// Hyperbolic sine.
    Sinh {}: |self, x| x.sinh(), input |x| x.cosh());
curve!(/// Hyperbolic cosine.
    Cosh {}: |self, x| x.cosh(), input |x| x.sinh());
curve!(/// Inverse hyperbolic sine.
    Asinh {}: |self, x| x.asinh(), input |x| T::ONE / (x * x + T::ONE).sqrt());
curve!(/// Inverse hyperbolic cosine.
    Acosh {}: |self, x| x.acosh(), input |x| T::ONE / (x * x - T::ONE).sqrt());
curve!(/// Inverse hyperbolic tangent.
    Atanh {}: |self, x| x.atanh(), input |x| T::ONE / (T::ONE - x * x));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    fn op(name: &str) -> Arc<dyn Operator> {
        (super::super::lookup("", name, 13).unwrap().parse)(&Default::default(), 13).unwrap()
    }

    #[test]
    fn integers_and_halves_keep_their_type() {
        let x: Value = Tensor::from_vec(vec![3], vec![-3i16, 0, i16::MIN]).unwrap().into();
        let y = op("Abs").eval(&[Some(&x)]).unwrap().remove(0);
        assert_eq!(y.host().unwrap().to_vec::<i16>().unwrap(), [3, 0, i16::MIN]);
        assert!(op("Exp").eval(&[Some(&x)]).is_err());
        let half = Tensor::from_vec(vec![2], vec![half::f16::from_f32(4.0), half::f16::NAN]).unwrap();
        let y = op("Sqrt").eval(&[Some(&Value::load(&half).unwrap())]).unwrap().remove(0);
        assert_eq!(y.dtype(), DType::F16);
        let y = y.to_tensor().unwrap().to_f32s().unwrap();
        assert!(y[0] == 2.0 && y[1].is_nan());
    }

    #[test]
    fn halves_round_to_even_and_signs_are_kept() {
        let x = Tensor::from_vec(vec![5], vec![0.5f32, 1.5, 2.5, -0.5, -1.5]).unwrap();
        let y = op("Round").eval(&[Some(&Value::load(&x).unwrap())]).unwrap().remove(0);
        let y = y.to_tensor().unwrap().to_f32s().unwrap();
        assert_eq!(y, [0.0, 2.0, 2.0, -0.0, -2.0]);
        assert!(y[3].is_sign_negative());
    }
}
