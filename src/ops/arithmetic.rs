//! Arithmetic of two or more operands that broadcast: numbers of every type, and shapes as dimensions.

use super::float::{self, Float, Scalar, real};
use super::{Coupling, Dim, Fact, Keeps, Operator, Spec, Vjp, broadcast, elements};
use crate::error::{Error, Result};
use crate::kernels::analytic::Analytic;
use crate::kernels::pointwise::{Broadcast, zip, zip3};
use crate::kernels::real::Real;
use crate::kernels::whole::Whole;
use crate::tensor::{DType, Value};
use std::sync::Arc;

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec::new("Add", 7, DType::NUMBERS, |_, _| Ok(Arc::new(Binary(Op::Add)))),
    Spec::new("Sub", 7, DType::NUMBERS, |_, _| Ok(Arc::new(Binary(Op::Sub)))),
    Spec::new("Mul", 7, DType::NUMBERS, |_, _| Ok(Arc::new(Binary(Op::Mul)))),
    Spec::new("Div", 7, DType::NUMBERS, |_, _| Ok(Arc::new(Binary(Op::Div)))),
    Spec::new("Pow", 7, DType::NUMBERS, |_, _| Ok(Arc::new(Binary(Op::Pow)))),
    Spec::new("Mod", 10, DType::NUMBERS, |a, _| {
        Ok(Arc::new(Binary(if a.int("fmod", 0)? != 0 { Op::Remainder } else { Op::Modulo })))
    }),
    Spec::new("PRelu", 7, DType::FLOATS, |_, _| Ok(Arc::new(Binary(Op::PRelu)))),
    Spec::new("Min", 6, DType::NUMBERS, |_, _| Ok(Arc::new(Variadic(Many::Min)))),
    Spec::new("Max", 6, DType::NUMBERS, |_, _| Ok(Arc::new(Variadic(Many::Max)))),
    Spec::new("Sum", 6, DType::FLOATS, |_, _| Ok(Arc::new(Variadic(Many::Sum)))),
    Spec::new("Mean", 6, DType::FLOATS, |_, _| Ok(Arc::new(Variadic(Many::Mean)))),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Add,
    Sub,
    Mul,
    /// Integers towards zero; by zero gives zero.
    Div,
    /// The result has the type of the base.
    Pow,
    /// Remainder with the sign of the divisor, for integers.
    Modulo,
    /// Remainder with the sign of the dividend.
    Remainder,
    /// `x`, or `slope * x` below zero.
    PRelu,
    Min,
    Max,
}

impl Op {
    fn floats<T: Scalar + Analytic>(self, plan: &Broadcast<2>, a: &[T], b: &[T]) -> Vec<T> {
        match self {
            Op::Add => zip(plan, a, b, |a, b| a + b),
            Op::Sub => zip(plan, a, b, |a, b| a - b),
            Op::Mul => zip(plan, a, b, |a, b| a * b),
            Op::Div => zip(plan, a, b, |a, b| a / b),
            Op::Pow => match b {
                [e] if *e == T::of(2.0) => zip(plan, a, b, |a, _| a * a),
                [e] if *e == T::of(3.0) => zip(plan, a, b, |a, _| a * a * a),
                [e] if *e == T::ONE => zip(plan, a, b, |a, _| a),
                [e] if *e == -T::ONE => zip(plan, a, b, |a, _| T::ONE / a),
                // The power of negative infinity and of negative zero is positive, the root is not.
                [e] if *e == T::of(0.5) => zip(plan, a, b, |a, _| {
                    let root = a.sqrt() + T::ZERO;
                    if a == T::LOWEST { T::HIGHEST } else { root }
                }),
                _ => zip(plan, a, b, |a, b| a.powf(b)),
            },
            Op::Modulo | Op::Remainder => zip(plan, a, b, |a, b| a % b),
            Op::PRelu => zip(plan, a, b, |a, b| if a < T::ZERO { a * b } else { a }),
            Op::Min => zip(plan, a, b, |a, b| a.smaller(b)),
            Op::Max => zip(plan, a, b, |a, b| a.larger(b)),
        }
    }

    fn whole<T: Whole>(self, plan: &Broadcast<2>, a: &[T], b: &[T]) -> Result<Vec<T>> {
        Ok(match self {
            Op::Add => zip(plan, a, b, T::add),
            Op::Sub => zip(plan, a, b, T::sub),
            Op::Mul => zip(plan, a, b, T::mul),
            Op::Div => zip(plan, a, b, T::div),
            Op::Modulo => zip(plan, a, b, T::modulo),
            Op::Remainder => zip(plan, a, b, T::remainder),
            Op::Min => zip(plan, a, b, T::min),
            Op::Max => zip(plan, a, b, T::max),
            Op::Pow | Op::PRelu => return Err(Error::internal("OP-TYPE", "integers take another way")),
        })
    }

    /// The operator on dimensions, where it has a dimension as result.
    fn dims(self, a: &Dim, b: &Dim) -> Option<Dim> {
        let known = a.known().zip(b.known());
        match (self, known) {
            (Op::Add, _) => Some(a.clone() + b.clone()),
            (Op::Sub, _) => Some(a.clone() - b.clone()),
            (Op::Mul, _) => Some(a.clone() * b.clone()),
            (Op::Div, Some((a, b))) => Some(Dim::from(Whole::div(a, b))),
            // Sizes are not negative, so that rounding down is rounding towards zero.
            (Op::Div, None) if b.known() != Some(0) => Some(a.floor_div(b)),
            (Op::Modulo, Some((a, b))) => Some(Dim::from(a.modulo(b))),
            (Op::Remainder, Some((a, b))) => Some(Dim::from(a.remainder(b))),
            (Op::Pow, Some((a, b))) => Some(Dim::from(Whole::pow(a, b))),
            (Op::Min, Some((a, b))) => Some(Dim::from(a.min(b))),
            (Op::Max, Some((a, b))) => Some(Dim::from(a.max(b))),
            (Op::Min | Op::Max, None) if a == b => Some(a.clone()),
            _ => None,
        }
    }
}

fn plan<'a>(a: &'a Value, b: &'a Value) -> Result<(Vec<usize>, Broadcast<2>)> {
    let shape = broadcast::fixed(&[a.shape(), b.shape()])?;
    float::size(&shape)?;
    let plan = Broadcast::new(&shape, [a.shape(), b.shape()]);
    Ok((shape, plan))
}

/// Two values of one type.
fn pair(op: Op, a: &Value, b: &Value) -> Result<Value> {
    let (shape, plan) = plan(a, b)?;
    match (a, b) {
        _ if a.dtype() != b.dtype() => Err(elements::differing(a.dtype(), b.dtype())),
        (Value::Float(x), Value::Float(y)) => Ok(real!(x.dtype(), T => {
            let data = op.floats::<T>(&plan, &float::elements(x)?, &float::elements(y)?);
            float::tensor(data, &shape, x.dtype())
        })?
        .into()),
        _ if !a.dtype().is_int() => Err(elements::refused(a.dtype())),
        _ => elements::whole!(&[a, b], v => {
            elements::narrowed(a.dtype(), &shape, op.whole(&plan, v[0], v[1])?)
        }),
    }
}

/// A power, whose exponent may be of another type than the base.
fn power(a: &Value, b: &Value) -> Result<Value> {
    let (shape, plan) = plan(a, b)?;
    match (a, b) {
        (Value::Float(x), Value::Float(y)) if x.dtype() == y.dtype() => pair(Op::Pow, a, b),
        (Value::Float(x), _) => Ok(real!(x.dtype(), T => {
            let exponent: Vec<T> = b.to_tensor()?.to_f64s()?.into_iter().map(T::of).collect();
            let data = Op::Pow.floats::<T>(&plan, &float::elements(x)?, &exponent);
            float::tensor(data, &shape, x.dtype())
        })?
        .into()),
        _ if !a.dtype().is_int() => Err(elements::refused(a.dtype())),
        (_, Value::Float(_)) => {
            let exponent = b.to_tensor()?.to_f64s()?;
            elements::whole!(&[a], v => {
                let data = zip(&plan, v[0], &exponent, narrowed);
                elements::narrowed(a.dtype(), &shape, data)
            })
        }
        _ => {
            let exponent = b.ints()?;
            elements::whole!(&[a], v => {
                elements::narrowed(a.dtype(), &shape, zip(&plan, v[0], &exponent, Whole::pow))
            })
        }
    }
}

/// A power of an integer by a float.
fn narrowed<T: Whole>(a: T, b: f64) -> T {
    T::narrow(a.wide().powf(b))
}

/// Two operands.
#[derive(Debug)]
struct Binary(Op);

impl Binary {
    fn backward<T: Scalar + Analytic>(&self, v: &Vjp<'_>, grad: &Float) -> Result<Vec<Option<Float>>> {
        let (a, b) = (super::input(v.inputs, 0)?, super::input(v.inputs, 1)?);
        let flows = [v.needs[0], v.needs[1] && matches!(b, Value::Float(_))];
        let to = |i: usize, data: Vec<T>| -> Result<Option<Float>> {
            let wide = float::tensor(data, grad.dims(), grad.dtype())?;
            let shape = if i == 0 { a.shape() } else { b.shape() };
            Ok(Some(broadcast::sum_to(&wide, shape)?))
        };
        let mut out = vec![None, None];
        if matches!(self.0, Op::Add | Op::Sub) {
            if flows[0] {
                out[0] = Some(broadcast::sum_to(grad, a.shape())?);
            }
            if flows[1] {
                let sum = broadcast::sum_to(grad, b.shape())?;
                out[1] = Some(if self.0 == Op::Sub { sum.neg()? } else { sum });
            }
            return Ok(out);
        }
        let x = float::elements::<T>(a.float()?)?;
        let exponent;
        let held;
        let y: &[T] = match b {
            Value::Float(b) => {
                held = float::elements::<T>(b)?;
                &held
            }
            Value::Host(b) => {
                exponent = b.to_f64s()?.into_iter().map(T::of).collect::<Vec<T>>();
                &exponent
            }
        };
        let dy = float::elements::<T>(grad)?;
        let plan = Broadcast::new(grad.dims(), [grad.dims(), a.shape(), b.shape()]);
        let each = |f: fn(T, T, T) -> T| zip3(&plan, &dy, &x, y, f);
        for i in (0..2).filter(|i| flows[*i]) {
            let data = match (self.0, i) {
                (Op::Mul, 0) => {
                    zip(&Broadcast::new(grad.dims(), [grad.dims(), b.shape()]), &dy, y, |g, b| g * b)
                }
                (Op::Mul, _) => {
                    zip(&Broadcast::new(grad.dims(), [grad.dims(), a.shape()]), &dy, &x, |g, a| g * a)
                }
                (Op::Div, 0) => {
                    zip(&Broadcast::new(grad.dims(), [grad.dims(), b.shape()]), &dy, y, |g, b| g / b)
                }
                (Op::Div, _) => each(|g, a, b| -(g * a) / (b * b)),
                (Op::Pow, 0) if matches!(y, [e] if *e == T::of(2.0)) => each(|g, a, _| g * (a + a)),
                // A constant has no slope, at zero neither.
                (Op::Pow, 0) => each(|g, a, b| if b == T::ZERO { b } else { g * b * a.powf(b - T::ONE) }),
                // The logarithm of a base that is not positive is left out.
                (Op::Pow, _) => each(|g, a, b| if a > T::ZERO { g * a.powf(b) * a.ln() } else { T::ZERO }),
                (Op::Remainder | Op::Modulo, 0) => dy.to_vec(),
                (Op::Remainder | Op::Modulo, _) => each(|g, a, b| -(g * (a / b).trunc())),
                // At zero the slope is one.
                (Op::PRelu, 0) => each(|g, a, b| if a < T::ZERO { g * b } else { g }),
                (Op::PRelu, _) => each(|g, a, _| g * a.smaller(T::ZERO)),
                (Op::Add | Op::Sub | Op::Min | Op::Max, _) => continue,
            };
            out[i] = to(i, data)?;
        }
        Ok(out)
    }
}

impl Operator for Binary {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (a, b) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
        if self.0 != Op::Pow && a.dtype != b.dtype {
            return Err(elements::differing(a.dtype, b.dtype));
        }
        if self.0 == Op::Modulo && a.dtype.is_float() {
            return Err(Error::invalid("ATTR-VALUE", "the remainder of floats needs fmod = 1")
                .field("attribute fmod")
                .found(0));
        }
        let fact = broadcast::content(a.dtype, &inputs[..2], |d| self.0.dims(d[0], d[1]))?;
        if self.0 == Op::PRelu
            && let (Some(x), Some(y)) = (&a.shape, &fact.shape)
            && (x.len() < y.len()
                || x.iter().zip(y).any(|(x, y)| x.known().is_some() && x.known() != y.known()))
        {
            return Err(Error::invalid("OP-BROADCAST", "the slope is larger than what it applies to")
                .found(format!("{x:?} and {:?}", b.shape)));
        }
        Ok(vec![fact])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let (a, b) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
        if matches!(self.0, Op::PRelu | Op::Modulo) {
            float::shapes(self, inputs)?;
        }
        Ok(vec![if self.0 == Op::Pow { power(a, b)? } else { pair(self.0, a, b)? }])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps { inputs: !matches!(self.0, Op::Add | Op::Sub), outputs: false }
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        match &v.grads[0] {
            Some(grad) => real!(grad.dtype(), T => self.backward::<T>(v, grad)),
            None => Ok(vec![None; 2]),
        }
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        broadcast::couple(inputs, &outputs[0])
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Many {
    Min,
    Max,
    Sum,
    Mean,
}

/// One operand or more.
#[derive(Debug)]
struct Variadic(Many);

impl Variadic {
    fn op(&self) -> Op {
        match self.0 {
            Many::Min => Op::Min,
            Many::Max => Op::Max,
            Many::Sum | Many::Mean => Op::Add,
        }
    }

    /// The gradient of Min and Max goes to the inputs that attain it, in equal shares.
    fn shares<T: Scalar + Analytic>(&self, v: &Vjp<'_>, grad: &Float) -> Result<Vec<Option<Float>>> {
        let dims = grad.dims();
        let y = float::elements::<T>(super::input(v.outputs, 0)?.float()?)?;
        let mut count = vec![T::ZERO; y.len()];
        for x in v.inputs.iter().flatten() {
            let plan = Broadcast::new(dims, [dims, dims, x.shape()]);
            let x = float::elements::<T>(x.float()?)?;
            count = zip3(&plan, &count, &y, &x, |n, y, x| if x == y { n + T::ONE } else { n });
        }
        let plan = Broadcast::new(dims, [dims, dims]);
        let share = zip(&plan, &float::elements::<T>(grad)?, &count, |g: T, n: T| g / n);
        let mut out = vec![None; v.inputs.len()];
        for (i, x) in v.inputs.iter().enumerate() {
            let Some(x) = x.filter(|_| v.needs[i]) else { continue };
            let plan = Broadcast::new(dims, [dims, dims, x.shape()]);
            let data =
                zip3(
                    &plan,
                    &share,
                    &y,
                    &float::elements::<T>(x.float()?)?,
                    |g, y, x| {
                        if x == y { g } else { T::ZERO }
                    },
                );
            out[i] = Some(broadcast::sum_to(&float::tensor(data, dims, grad.dtype())?, x.shape())?);
        }
        Ok(out)
    }
}

impl Operator for Variadic {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let dtype = elements::common_type(inputs)?;
        let op = self.op();
        Ok(vec![broadcast::content(dtype, inputs, |d| {
            d[1..].iter().try_fold(d[0].clone(), |a, b| op.dims(&a, b))
        })?])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let mut given = inputs.iter().flatten();
        let mut sum: Value = (*given.next().map_or_else(|| super::input(inputs, 0), |v| Ok(v))?).clone();
        for v in given {
            sum = pair(self.op(), &sum, v)?;
        }
        if self.0 == Many::Mean {
            let n = inputs.iter().flatten().count() as f64;
            sum = (sum.float()? / n)?.into();
        }
        Ok(vec![sum])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        let extremes = matches!(self.0, Many::Min | Many::Max);
        Keeps { inputs: extremes, outputs: extremes }
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let Some(grad) = &v.grads[0] else { return Ok(vec![None; v.inputs.len()]) };
        let part = match self.0 {
            Many::Min | Many::Max => return real!(grad.dtype(), T => self.shares::<T>(v, grad)),
            Many::Sum => grad.clone(),
            Many::Mean => (grad / v.inputs.iter().flatten().count() as f64)?,
        };
        let flow = |(x, needed): (&Option<&Value>, &bool)| {
            x.filter(|_| *needed).map(|x| broadcast::sum_to(&part, x.shape())).transpose()
        };
        v.inputs.iter().zip(v.needs).map(flow).collect()
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        broadcast::couple(inputs, &outputs[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    fn op(name: &str) -> Arc<dyn Operator> {
        (super::super::lookup("", name, 13).unwrap().parse)(&Default::default(), 13).unwrap()
    }

    fn run(name: &str, inputs: &[&Value]) -> Tensor {
        let refs: Vec<Option<&Value>> = inputs.iter().map(|v| Some(*v)).collect();
        op(name).eval(&refs).unwrap().remove(0).to_tensor().unwrap()
    }

    fn dims(name: &str, a: &[Dim], b: &[Dim]) -> Option<Vec<Dim>> {
        let (a, b) = (
            Fact::of_dims(DType::I64, a.to_vec(), false),
            Fact::of_dims(DType::I64, b.to_vec(), b.len() == 1),
        );
        op(name).infer(&[Some(&a), Some(&b)]).unwrap().remove(0).dims
    }

    #[test]
    fn shapes_stay_symbolic_through_arithmetic() {
        let (b, s, n) = (Dim::symbol("batch"), Dim::symbol("seq"), |n: i64| Dim::from(n));
        let pair = [b.clone(), s.clone() * n(4)];
        assert_eq!(dims("Mul", &pair, &[n(2)]), Some(vec![b.clone() * n(2), s.clone() * n(8)]));
        assert_eq!(
            dims("Add", &pair, &[s.clone(), n(1)]),
            Some(vec![b.clone() + s.clone(), s.clone() * n(4) + n(1)])
        );
        assert_eq!(dims("Sub", &pair, &pair), Some(vec![n(0), n(0)]));
        assert_eq!(dims("Div", &pair[1..], std::slice::from_ref(&s)), Some(vec![n(4)]));
        assert_eq!(dims("Div", &[n(-7)], &[n(2)]), Some(vec![n(-3)]));
        assert_eq!(dims("Max", &[n(3), n(5)], &[n(4)]), Some(vec![n(4), n(5)]));
        let found = dims("Min", &[b.clone(), n(5)], &[n(4)]).unwrap();
        assert!(found[0].is_unknown() && found[1] == n(4));
        assert_eq!(dims("Div", &[b], &[n(0)]), None);
    }

    #[test]
    fn values_that_do_not_fit_their_type_are_not_taken_for_content() {
        let x = Fact::constant(&Tensor::from_vec(vec![1], vec![i32::MAX]).unwrap());
        let y = op("Add").infer(&[Some(&x), Some(&x)]).unwrap().remove(0);
        assert!(y.dims.is_none());
        let v: Value = Tensor::from_vec(vec![1], vec![i32::MAX]).unwrap().into();
        assert_eq!(run("Add", &[&v, &v]).to_vec::<i32>().unwrap(), [-2]);
    }

    #[test]
    fn narrow_integers_wrap_and_divide_towards_zero() {
        let v = |v: Vec<i8>| -> Value { Tensor::from_vec(vec![v.len()], v).unwrap().into() };
        let (a, b) = (v(vec![-128, 100, -7, 7]), v(vec![-1, 100, 2, 0]));
        assert_eq!(run("Add", &[&a, &b]).to_vec::<i8>().unwrap(), [127, -56, -5, 7]);
        assert_eq!(run("Div", &[&a, &b]).to_vec::<i8>().unwrap(), [-128, 1, -3, 0]);
        assert_eq!(run("Mod", &[&a, &b]).to_vec::<i8>().unwrap(), [0, 0, 1, 0]);
        let u = |v: Vec<u64>| -> Value { Tensor::from_vec(vec![v.len()], v).unwrap().into() };
        let (a, b) = (u(vec![u64::MAX, 1]), u(vec![2, u64::MAX]));
        assert_eq!(run("Div", &[&a, &b]).to_vec::<u64>().unwrap(), [u64::MAX / 2, 0]);
        assert_eq!(run("Max", &[&a, &b]).to_vec::<u64>().unwrap(), [u64::MAX, u64::MAX]);
    }

    #[test]
    fn the_type_of_a_power_is_that_of_its_base() {
        let float = Value::load(&Tensor::from_vec(vec![2], vec![2.0f32, 9.0]).unwrap()).unwrap();
        let whole: Value = Tensor::from_vec(vec![2], vec![3i64, 2]).unwrap().into();
        assert_eq!(run("Pow", &[&float, &whole]).to_vec::<f32>().unwrap(), [8.0, 81.0]);
        assert_eq!(run("Pow", &[&whole, &float]).to_vec::<i64>().unwrap(), [9, 512]);
    }

    #[test]
    fn operands_of_different_type_or_shape_are_invalid() {
        let x = Value::load(&Tensor::from_vec(vec![2], vec![2.0f32, 9.0]).unwrap()).unwrap();
        let y: Value = Tensor::from_vec(vec![2], vec![3i64, 2]).unwrap().into();
        assert!(op("Add").eval(&[Some(&x), Some(&y)]).is_err());
        let z = Value::load(&Tensor::from_vec(vec![3], vec![1.0f32; 3]).unwrap()).unwrap();
        for name in ["Add", "Pow", "Max", "PRelu"] {
            assert!(op(name).eval(&[Some(&x), Some(&z)]).is_err(), "{name}");
        }
        let wide = Value::load(&Tensor::from_vec(vec![1, 2], vec![1.0f32; 2]).unwrap()).unwrap();
        assert!(op("PRelu").eval(&[Some(&x), Some(&wide)]).is_err());
    }
}
