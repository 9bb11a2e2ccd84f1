//! Activation functions, and Clip. Where a function has a kink, its slope there is the one given in the
//! comment beside it.

use super::float::{self, Float, Scalar, real};
use super::unary::{Unary, curve};
use super::{Attributes, Coupling, Fact, Operator, Spec, Vjp, broadcast, elements};
use crate::error::{Error, Result};
use crate::kernels::analytic::Analytic;
use crate::kernels::pointwise::{self, Broadcast};
use crate::tensor::{DType, Value};
use std::sync::Arc;

const RELU: &[DType] =
    &[DType::F32, DType::F64, DType::F16, DType::BF16, DType::I8, DType::I16, DType::I32, DType::I64];

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec::new("Relu", 6, RELU, |_, _| Unary::of(Relu {})),
    Spec::new("LeakyRelu", 6, DType::FLOATS, |a, _| {
        Unary::of(LeakyRelu { alpha: number(a, "alpha", 0.01)? })
    }),
    Spec::new("ThresholdedRelu", 10, DType::FLOATS, |a, _| {
        Unary::of(ThresholdedRelu { alpha: number(a, "alpha", 1.0)? })
    }),
    Spec::new("Elu", 6, DType::FLOATS, |a, _| Unary::of(Elu { alpha: number(a, "alpha", 1.0)?, gamma: 1.0 })),
    Spec::new("Selu", 6, DType::FLOATS, |a, _| {
        Unary::of(Elu { alpha: number(a, "alpha", 1.673_263_2)?, gamma: number(a, "gamma", 1.050_701)? })
    }),
    Spec::new("Celu", 12, DType::FLOATS, |a, _| {
        let alpha = number(a, "alpha", 1.0)?;
        if alpha == 0.0 {
            return Err(Error::invalid("ATTR-RANGE", "alpha must not be zero").field("attribute alpha"));
        }
        Unary::of(Celu { alpha })
    }),
    Spec::new("Sigmoid", 6, DType::FLOATS, |_, _| Unary::of(Sigmoid {})),
    Spec::new("Tanh", 6, DType::FLOATS, |_, _| Unary::of(Tanh {})),
    Spec::new("HardSigmoid", 6, DType::FLOATS, |a, _| {
        Unary::of(HardSigmoid { alpha: number(a, "alpha", 0.2)?, beta: number(a, "beta", 0.5)? })
    }),
    Spec::new("HardSwish", 14, DType::FLOATS, |_, _| Unary::of(HardSwish {})),
    Spec::new("Softplus", 1, DType::FLOATS, |_, _| Unary::of(Softplus {})),
    Spec::new("Softsign", 1, DType::FLOATS, |_, _| Unary::of(Softsign {})),
    Spec::new("Mish", 18, DType::FLOATS, |_, _| Unary::of(Mish {})),
    Spec::new("Swish", 24, DType::FLOATS, |a, _| Unary::of(Swish { alpha: number(a, "alpha", 1.0)? })),
    Spec::new("Gelu", 20, DType::FLOATS, |a, _| match a.str("approximate", "none")?.as_str() {
        "none" => Unary::of(Gelu {}),
        "tanh" => Unary::of(GeluTanh {}),
        other => Err(Error::invalid("ATTR-VALUE", "the approximation is not known")
            .field("attribute approximate")
            .found(other)
            .limit("none, tanh")),
    }),
    contrib("Gelu", |_, _| Ok(Biased::of(Gelu {}, None))),
    contrib("BiasGelu", |_, _| Ok(Biased::of(Gelu {}, Some(1)))),
    contrib("FastGelu", |_, _| Ok(Biased::of(GeluTanh {}, Some(1)))),
    contrib("QuickGelu", |a, _| Ok(Biased::of(Swish { alpha: number(a, "alpha", 1.702)? }, None))),
    Spec::new("Shrink", 9, DType::FLOATS, |a, _| {
        Unary::of(Shrink { bias: number(a, "bias", 0.0)?, lambda: number(a, "lambd", 0.5)? })
    }),
    Spec::new("Clip", 6, DType::NUMBERS, |a, v| {
        let bound = |n, none| Ok::<_, Error>(if v < 11 { number(a, n, none)? } else { f64::from(none) });
        Ok(Arc::new(Clip {
            low: bound("min", f32::MIN)?,
            high: bound("max", f32::MAX)?,
            from_input: v >= 11,
        }))
    }),
];

/// A claim for one of ONNX Runtime's own functions.
const fn contrib(name: &'static str, parse: super::Parse) -> Spec {
    Spec { domain: "com.microsoft", name, opsets: (1, 1), dtypes: &[DType::F32, DType::F16], parse }
}

/// A function of `x`, or of `x` and a bias that is added first where it is given.
#[derive(Debug)]
struct Biased<C> {
    curve: Unary<C>,
    bias: Option<usize>,
}

impl<C: super::unary::Function> Biased<C> {
    fn of(curve: C, bias: Option<usize>) -> Arc<dyn Operator> {
        Arc::new(Biased { curve: Unary(curve), bias })
    }
    fn sum(&self, inputs: &[Option<&Value>]) -> Result<Option<Value>> {
        let bias = self.bias.and_then(|slot| inputs.get(slot).copied().flatten());
        let Some(bias) = bias else { return Ok(None) };
        let x = super::input(inputs, 0)?.float()?;
        Ok(Some(x.broadcast_add(bias.float()?)?.into()))
    }
}

impl<C: super::unary::Function> Operator for Biased<C> {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        let fact = broadcast::fact(x.dtype, inputs)?;
        match (&fact.shape, &x.shape) {
            (Some(a), Some(b)) if a.len() != b.len() => {
                Err(Error::invalid("OP-BROADCAST", "the bias is larger than what it is added to")
                    .field("input[1]")
                    .found(format!("{a:?}"))
                    .limit(format!("{b:?}")))
            }
            _ => Ok(vec![x.without_value()]),
        }
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        float::shapes(self, inputs)?;
        match self.sum(inputs)? {
            Some(sum) => self.curve.eval(&[Some(&sum)]),
            None => self.curve.eval(&inputs[..1]),
        }
    }
    fn differentiable(&self) -> bool {
        self.curve.differentiable()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let mut out = vec![None; v.inputs.len()];
        if v.grads[0].is_none() {
            return Ok(out);
        }
        let sum = self.sum(v.inputs)?;
        let x = [sum.as_ref().or(v.inputs[0])];
        let y;
        let outputs: &[Option<&Value>] = match self.curve.keeps().outputs {
            true => {
                y = self.curve.eval(&x)?.remove(0);
                &[Some(&y)]
            }
            false => &[None],
        };
        let inner = Vjp { inputs: &x, outputs, grads: v.grads, needs: &[true] };
        let Some(d) = self.curve.vjp(&inner)?.remove(0) else { return Ok(out) };
        for (slot, need) in v.needs.iter().enumerate() {
            if *need {
                out[slot] = Some(broadcast::sum_to(&d, super::input(v.inputs, slot)?.shape())?);
            }
        }
        Ok(out)
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        broadcast::couple(inputs, &outputs[0])
    }
}

/// Gelu, or its approximation by a hyperbolic tangent.
pub(super) fn gelu(tanh: bool) -> Arc<dyn Operator> {
    if tanh { Arc::new(Unary(GeluTanh {})) } else { Arc::new(Unary(Gelu {})) }
}

/// Swish.
pub(super) fn swish(alpha: f64) -> Arc<dyn Operator> {
    Arc::new(Unary(Swish { alpha }))
}

/// HardSwish.
pub(super) fn hard_swish() -> Arc<dyn Operator> {
    Arc::new(Unary(HardSwish {}))
}

/// `x` times its HardSigmoid.
pub(super) fn hard_gate(alpha: f64, beta: f64) -> Arc<dyn Operator> {
    Arc::new(Unary(HardGate { alpha, beta }))
}

/// HardSigmoid as Clip has it.
pub(super) fn ramp(alpha: f64, beta: f64) -> Arc<dyn Operator> {
    Arc::new(Unary(Ramp { alpha, beta }))
}

/// The function that a recurrent operator names, with the parameters that it takes in the order in which
/// they are listed; `alpha` and `beta` give the next one, or what stands where none is listed.
pub(super) fn named(
    name: &str,
    alpha: &mut dyn FnMut(f32) -> f32,
    beta: &mut dyn FnMut(f32) -> f32,
) -> Result<Arc<dyn Operator>> {
    let mut a = |default| f64::from(alpha(default));
    let mut b = |default| f64::from(beta(default));
    match name.to_ascii_lowercase().as_str() {
        "sigmoid" => Unary::of(Sigmoid {}),
        "tanh" => Unary::of(Tanh {}),
        "relu" => Unary::of(Relu {}),
        "softplus" => Unary::of(Softplus {}),
        "softsign" => Unary::of(Softsign {}),
        "leakyrelu" => Unary::of(LeakyRelu { alpha: a(0.01) }),
        "thresholdedrelu" => Unary::of(ThresholdedRelu { alpha: a(1.0) }),
        "elu" => Unary::of(Elu { alpha: a(1.0), gamma: 1.0 }),
        "hardsigmoid" => Unary::of(HardSigmoid { alpha: a(0.2), beta: b(0.5) }),
        "affine" => Unary::of(Affine { alpha: a(1.0), beta: b(0.0) }),
        "scaledtanh" => Unary::of(ScaledTanh { alpha: a(1.0), beta: b(1.0) }),
        _ => Err(Error::invalid("ATTR-VALUE", "the function is not known")
            .field("attribute activations")
            .found(name)),
    }
}

fn number(attributes: &Attributes, name: &str, default: f32) -> Result<f64> {
    Ok(attributes.float(name, default)?.into())
}

/// `x` inside, the nearer end outside; NaN stays.
#[inline(always)]
fn clamp<T: Analytic>(x: T, low: T, high: T) -> T {
    x.larger(low).smaller(high)
}

curve!(/// `max(x, 0)`; slope 0 at 0.
    Relu {}: |self, x| x.larger(T::ZERO),
    output |y| if y > T::ZERO { T::ONE } else { T::ZERO },
    whole |x| x.max(T::default()));
curve!(/// `x`, or `alpha * x` below 0; slope alpha at 0.
    LeakyRelu { alpha }: |self, x| if x < T::ZERO { x * T::of(self.alpha) } else { x },
    input |x| if x > T::ZERO { T::ONE } else { T::of(self.alpha) });
curve!(/// `x` above alpha, else 0; slope 0 at alpha.
    ThresholdedRelu { alpha }: |self, x| if x > T::of(self.alpha) { x } else { x * T::ZERO },
    input |x| if x > T::of(self.alpha) { T::ONE } else { T::ZERO });
curve!(/// `gamma * (x, or alpha * (exp(x) - 1) below 0)`; slope from below at 0.
    Elu { alpha, gamma }: |self, x| {
        let below = T::of(self.alpha) * x.smaller(T::ZERO).exp_m1();
        T::of(self.gamma) * if x > T::ZERO { x } else { below }
    },
    input |x| T::of(self.gamma) * if x > T::ZERO { T::ONE } else { T::of(self.alpha) * x.exp() });
curve!(/// `max(x, 0) + min(0, alpha * (exp(x / alpha) - 1))`; slope from below at 0.
Celu { alpha }: |self, x| {
    let a = T::of(self.alpha);
    x.larger(T::ZERO) + (a * (x / a).exp_m1()).smaller(T::ZERO)
},
input |x| {
    let a = T::of(self.alpha);
    let above = if x > T::ZERO { T::ONE } else { T::ZERO };
    above + if a * (x / a).exp_m1() < T::ZERO || x == T::ZERO { (x / a).exp() } else { T::ZERO }
});
curve!(/// `1 / (1 + exp(-x))`.
    Sigmoid {}: |self, x| x.sigmoid(), output |y| y * (T::ONE - y));
curve!(/// Hyperbolic tangent.
    Tanh {}: |self, x| x.tanh(), output |y| T::ONE - y * y);
curve!(/// `alpha * x + beta` between 0 and 1; slope 0 at both ends.
    HardSigmoid { alpha, beta }: |self, x| clamp(T::of(self.alpha) * x + T::of(self.beta), T::ZERO, T::ONE),
    output |y| if y > T::ZERO && y < T::ONE { T::of(self.alpha) } else { T::ZERO });
curve!(/// `x * clamp(x / 6 + 1/2, 0, 1)`; slope of the middle part at -3 and 3.
HardSwish {}: |self, x| x * clamp(x * T::of(1.0 / 6.0) + T::of(0.5), T::ZERO, T::ONE),
input |x| if x < T::of(-3.0) {
    T::ZERO
} else if x > T::of(3.0) {
    T::ONE
} else {
    x * T::of(1.0 / 3.0) + T::of(0.5)
});
curve!(/// `x * clamp(alpha * x + beta, 0, 1)`; slope of the outer parts at both kinks.
HardGate { alpha, beta }: |self, x| x * clamp(T::of(self.alpha) * x + T::of(self.beta), T::ZERO, T::ONE),
input |x| {
    let y = T::of(self.alpha) * x + T::of(self.beta);
    if y > T::ZERO && y < T::ONE { y + T::of(self.alpha) * x } else { clamp(y, T::ZERO, T::ONE) }
});
curve!(/// `alpha * x + beta` between 0 and 1; slope alpha at both ends.
Ramp { alpha, beta }: |self, x| clamp(T::of(self.alpha) * x + T::of(self.beta), T::ZERO, T::ONE),
input |x| {
    let y = T::of(self.alpha) * x + T::of(self.beta);
    if y >= T::ZERO && y <= T::ONE { T::of(self.alpha) } else { T::ZERO }
});
curve!(/// `alpha * x + beta`.
    Affine { alpha, beta }: |self, x| T::of(self.alpha) * x + T::of(self.beta), input |_x| T::of(self.alpha));
curve!(/// `alpha * tanh(beta * x)`.
ScaledTanh { alpha, beta }: |self, x| T::of(self.alpha) * (T::of(self.beta) * x).tanh(),
input |x| {
    let t = (T::of(self.beta) * x).tanh();
    T::of(self.alpha * self.beta) * (T::ONE - t * t)
});
curve!(/// `ln(1 + exp(x))`.
    Softplus {}: |self, x| x.softplus(), input |x| x.sigmoid());
curve!(/// `x / (1 + |x|)`.
    Softsign {}: |self, x| x / (T::ONE + x.abs()),
    input |x| { let d = T::ONE + x.abs(); T::ONE / (d * d) });
curve!(/// `x * tanh(softplus(x))`.
    Mish {}: |self, x| x * x.softplus().tanh(),
    input |x| { let t = x.softplus().tanh(); t + x * (T::ONE - t * t) * x.sigmoid() });
curve!(/// `x * sigmoid(alpha * x)`.
Swish { alpha }: |self, x| x * (x * T::of(self.alpha)).sigmoid(),
input |x| {
    let ax = x * T::of(self.alpha);
    let s = ax.sigmoid();
    s + ax * s * (T::ONE - s)
});
curve!(/// `x * P(X <= x)` for X normal.
Gelu {}: |self, x| {
    let half = T::of(0.5) * x;
    half + half * (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf()
},
input |x| {
    let cumulated = T::of(0.5) + T::of(0.5) * (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf();
    let density = T::of(0.398_942_280_401_432_7) * (x * x * T::of(-0.5)).exp();
    cumulated + x * density
});
curve!(/// The same with the error function approximated by a hyperbolic tangent.
GeluTanh {}: |self, x| {
    let half = T::of(0.5) * x;
    half + half * (T::of(ROOT) * (x + T::of(CUBIC) * x * x * x)).tanh()
},
input |x| {
    let t = (T::of(ROOT) * (x + T::of(CUBIC) * x * x * x)).tanh();
    let inner = T::of(ROOT) * (T::ONE + T::of(3.0 * CUBIC) * x * x);
    T::of(0.5) * (T::ONE + t) + T::of(0.5) * x * (T::ONE - t * t) * inner
});
curve!(/// `x` drawn towards 0 by bias, 0 within lambda of 0; slope 0 at both kinks.
    Shrink { bias, lambda }: |self, x| if x < T::of(-self.lambda) {
        x + T::of(self.bias)
    } else if x > T::of(self.lambda) {
        x - T::of(self.bias)
    } else {
        T::ZERO
    },
    input |x| if x < T::of(-self.lambda) || x > T::of(self.lambda) { T::ONE } else { T::ZERO });

/// `sqrt(2 / pi)`.
const ROOT: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044715;

/// `min(max(x, low), high)`; at either end the gradient goes to `x`. Bounds that are inputs are scalars.
#[derive(Debug)]
struct Clip {
    low: f64,
    high: f64,
    from_input: bool,
}

impl Clip {
    fn bounds<T: Scalar>(&self, inputs: &[Option<&Value>]) -> Result<(T, T)> {
        if !self.from_input {
            return Ok((T::of(self.low), T::of(self.high)));
        }
        let bound = |i, none| {
            Ok::<_, Error>(match float::optional::<T>(inputs, i)? {
                Some(v) => v.first().copied().unwrap_or(none),
                None => none,
            })
        };
        Ok((bound(1, T::LOWEST)?, bound(2, -T::LOWEST)?))
    }

    fn forward<T: Scalar + Analytic>(&self, x: &Float, inputs: &[Option<&Value>]) -> Result<Float> {
        let (low, high) = self.bounds::<T>(inputs)?;
        let y = pointwise::map(&float::elements::<T>(x)?, |x: T| clamp(x, low, high));
        float::tensor(y, x.dims(), x.dtype())
    }

    fn backward<T: Scalar + Analytic>(&self, v: &Vjp<'_>, grad: &Float) -> Result<Vec<Option<Float>>> {
        let (low, high) = self.bounds::<T>(v.inputs)?;
        let x = float::elements::<T>(super::input(v.inputs, 0)?.float()?)?;
        let (plan, dy) = (Broadcast::new(grad.dims(), [grad.dims(); 2]), float::elements::<T>(grad)?);
        let to = |i: usize, flows: fn(T, T, T) -> bool| -> Result<Option<Float>> {
            if v.needs.get(i) != Some(&true) {
                return Ok(None);
            }
            let part = pointwise::zip(&plan, &x, &dy, |x, g| if flows(x, low, high) { g } else { T::ZERO });
            let part = float::tensor(part, grad.dims(), grad.dtype())?;
            let shape = super::input(v.inputs, i)?.shape();
            Ok(Some(if i == 0 { part } else { broadcast::sum_to(&part, &[])?.reshape(shape)? }))
        };
        let mut grads = vec![
            to(0, |x, low, high| x >= low && x <= high)?,
            to(1, |x, low, high| x < low && low <= high)?,
            to(2, |x, low, high| x > high || low > high)?,
        ];
        grads.truncate(v.inputs.len());
        Ok(grads)
    }
}

impl Operator for Clip {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        elements::common_type(inputs)?;
        for (i, f) in inputs.iter().enumerate().skip(1) {
            if let Some(shape) = f.and_then(|f| f.fixed_shape())
                && shape.iter().product::<usize>() != 1
            {
                return Err(Error::invalid("OP-SHAPE", "a bound is not a scalar")
                    .field(format!("input[{i}]"))
                    .found(format!("{shape:?}")));
            }
        }
        Ok(vec![super::input(inputs, 0)?.without_value()])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        float::shapes(self, inputs)?;
        let x = super::input(inputs, 0)?;
        if let Value::Float(x) = x {
            return Ok(vec![real!(x.dtype(), T => self.forward::<T>(x, inputs))?.into()]);
        }
        let given: Vec<&Value> = inputs.iter().flatten().copied().collect();
        let (low, high) =
            (inputs.get(1).copied().flatten().is_some(), inputs.get(2).copied().flatten().is_some());
        Ok(vec![elements::whole!(&given, v => {
            let low = if low { v[1].first().copied() } else { None };
            let high = if high { v[v.len() - 1].first().copied() } else { None };
            elements::narrowed(x.dtype(), x.shape(), pointwise::map(v[0], |x| {
                let x = low.map_or(x, |l| x.max(l));
                high.map_or(x, |h| x.min(h))
            }))
        })?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        match &v.grads[0] {
            Some(grad) => real!(grad.dtype(), T => self.backward::<T>(v, grad)),
            None => Ok(vec![None; v.inputs.len()]),
        }
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        broadcast::couple(&inputs[..1], &outputs[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    fn run(name: &str, opset: i64, attributes: Attributes, x: Vec<f32>) -> Vec<f32> {
        let op = (super::super::lookup("", name, opset).unwrap().parse)(&attributes, opset).unwrap();
        let x = Value::load(&Tensor::from_vec(vec![x.len()], x).unwrap()).unwrap();
        op.eval(&[Some(&x)]).unwrap().remove(0).to_tensor().unwrap().to_f32s().unwrap()
    }

    #[test]
    fn nan_comes_out_and_large_arguments_stay_finite() {
        for (name, opset) in [
            ("Relu", 14),
            ("LeakyRelu", 16),
            ("Elu", 6),
            ("Selu", 6),
            ("Celu", 12),
            ("Sigmoid", 13),
            ("Tanh", 13),
            ("HardSigmoid", 6),
            ("HardSwish", 14),
            ("Softplus", 1),
            ("Softsign", 1),
            ("Mish", 18),
            ("Swish", 24),
            ("Gelu", 20),
            ("ThresholdedRelu", 10),
            ("Clip", 13),
        ] {
            let y = run(name, opset, Attributes::new(), vec![f32::NAN, 1e4, -1e4, 0.0]);
            assert!(y[0].is_nan(), "{name}");
            assert!(y[1..].iter().all(|y| y.is_finite()), "{name}: {y:?}");
        }
    }

    #[test]
    fn bounds_are_attributes_or_inputs_and_the_upper_one_wins() {
        let old = Attributes::new().with("max", crate::ops::Attr::Float(2.0));
        assert_eq!(run("Clip", 6, old, vec![-9.0, 5.0]), [-9.0, 2.0]);
        let clip = (super::super::lookup("", "Clip", 13).unwrap().parse)(&Attributes::new(), 13).unwrap();
        let v = |v: Vec<i32>| -> Value { Tensor::from_vec(vec![v.len()], v).unwrap().into() };
        let (x, low, high): (Value, Value, Value) =
            (v(vec![-5, 0, 5]), Tensor::scalar(3i32).into(), Tensor::scalar(1i32).into());
        let ints = |inputs: &[Option<&Value>]| clip.eval(inputs).unwrap()[0].ints().unwrap();
        assert_eq!(ints(&[Some(&x), None, Some(&high)]), [-5, 0, 1]);
        assert_eq!(ints(&[Some(&x), Some(&low)]), [3, 3, 5]);
        assert_eq!(ints(&[Some(&x), Some(&low), Some(&high)]), [1, 1, 1]);
        assert!(clip.eval(&[Some(&x), Some(&x)]).is_err());
    }
}
