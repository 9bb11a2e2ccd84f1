//! Reductions over axes that come as an attribute or as an input.

use super::float::{self, Float, Scalar, real};
use super::{Attributes, Coupling, Dim, Fact, Keeps, Operator, Port, Spec, Vjp, elements};
use crate::error::{Error, Result};
use crate::kernels::analytic::Analytic;
use crate::kernels::pointwise::{Broadcast, map, zip, zip3};
use crate::kernels::reduce::{self as kernel, Split, whole};
use crate::kernels::whole::Whole;
use crate::tensor::{DType, Value};
use std::sync::Arc;

const WIDE: &[DType] =
    &[DType::F32, DType::F64, DType::F16, DType::BF16, DType::U32, DType::I32, DType::U64, DType::I64];
const EXTREMES: &[DType] = &[
    DType::F32,
    DType::F64,
    DType::F16,
    DType::BF16,
    DType::U32,
    DType::I32,
    DType::U64,
    DType::I64,
    DType::U8,
    DType::I8,
    DType::Bool,
];

macro_rules! spec {
    ($name:literal, $dtypes:expr, $kind:ident, $input_from:literal) => {
        Spec::new($name, 1, $dtypes, |a, v| Reduce::parse(Kind::$kind, a, v >= $input_from))
    };
}

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    spec!("ReduceSum", WIDE, Sum, 13),
    spec!("ReduceMean", WIDE, Mean, 18),
    spec!("ReduceMax", EXTREMES, Max, 18),
    spec!("ReduceMin", EXTREMES, Min, 18),
    spec!("ReduceProd", WIDE, Prod, 18),
    spec!("ReduceL1", WIDE, L1, 18),
    spec!("ReduceL2", WIDE, L2, 18),
    spec!("ReduceLogSum", WIDE, LogSum, 18),
    spec!("ReduceLogSumExp", WIDE, LogSumExp, 18),
    spec!("ReduceSumSquare", WIDE, SumSquare, 18),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sum,
    Mean,
    Max,
    Min,
    Prod,
    L1,
    L2,
    LogSum,
    LogSumExp,
    SumSquare,
}

#[derive(Debug)]
struct Reduce {
    kind: Kind,
    axes: Option<Vec<i64>>,
    from_input: bool,
    keep: bool,
    /// No axes mean none, not all.
    none: bool,
}

impl Reduce {
    fn parse(kind: Kind, a: &Attributes, from_input: bool) -> Result<Arc<dyn Operator>> {
        Ok(Arc::new(Reduce {
            kind,
            axes: if from_input { None } else { a.ints("axes")? },
            from_input,
            keep: a.int("keepdims", 1)? != 0,
            none: from_input && a.int("noop_with_empty_axes", 0)? != 0,
        }))
    }

    /// The reduced axes, ascending.
    fn resolve(&self, given: Option<&[i64]>, rank: usize) -> Result<Vec<usize>> {
        match given {
            None | Some([]) if self.none => Ok(vec![]),
            None | Some([]) => Ok((0..rank).collect()),
            Some(axes) => {
                let mut axes: Vec<usize> =
                    axes.iter().map(|a| super::axis(*a, rank)).collect::<Result<_>>()?;
                axes.sort_unstable();
                if axes.windows(2).any(|w| w[0] == w[1]) {
                    return Err(
                        Error::invalid("OP-AXIS", "an axis is given twice").found(format!("{axes:?}"))
                    );
                }
                Ok(axes)
            }
        }
    }

    /// As [`Reduce::resolve`], from facts; `None` where the axes are not known.
    fn axes(&self, inputs: &[Option<&Fact>], rank: usize) -> Result<Option<Vec<usize>>> {
        match inputs.get(1).copied().flatten().filter(|_| self.from_input) {
            Some(f) => match f.ints() {
                Some(axes) => self.resolve(Some(&axes), rank).map(Some),
                None => Ok(None),
            },
            None => self.resolve(self.axes.as_deref(), rank).map(Some),
        }
    }

    fn split(&self, inputs: &[Option<&Value>]) -> Result<Split> {
        let shape = super::input(inputs, 0)?.shape();
        let axes = match inputs.get(1).copied().flatten().filter(|_| self.from_input) {
            Some(v) => self.resolve(Some(&v.ints()?), shape.len())?,
            None => self.resolve(self.axes.as_deref(), shape.len())?,
        };
        Ok(Split::new(shape, &axes))
    }

    fn floats<T: Scalar + Analytic>(&self, split: &Split, x: &[T], dims: &[usize]) -> Vec<T> {
        match self.kind {
            Kind::Sum => split.fold(x, kernel::Sum),
            Kind::Mean => {
                let n = T::of(split.count() as f64);
                map(&split.fold(x, kernel::Sum), |s: T| s / n)
            }
            Kind::Max => split.fold(x, kernel::Largest),
            Kind::Min => split.fold(x, kernel::Smallest),
            Kind::Prod => split.fold(x, kernel::Product),
            Kind::L1 => split.fold(x, kernel::Magnitudes),
            Kind::L2 => map(&split.fold(x, kernel::Squares), |s: T| s.sqrt()),
            Kind::SumSquare => split.fold(x, kernel::Squares),
            Kind::LogSum => map(&split.fold(x, kernel::Sum), |s: T| Analytic::ln(s)),
            Kind::LogSumExp => {
                // Infinite tops are left out: the sum is infinite or zero by itself.
                let top: Vec<T> =
                    map(
                        &split.fold(x, kernel::Largest),
                        |m: T| {
                            if m.abs() < T::HIGHEST { m } else { T::ZERO }
                        },
                    );
                let kept = split.kept();
                let plan = Broadcast::new(dims, [dims, &kept]);
                let raised = zip(&plan, x, &top, |x, m| Analytic::exp(x - m));
                let sums = split.fold(&raised, kernel::Sum);
                let plan = Broadcast::new(&kept, [&kept, &kept]);
                zip(&plan, &sums, &top, |s, m| Analytic::ln(s) + m)
            }
        }
    }

    fn whole<T: Whole>(&self, split: &Split, x: &[T], dims: &[usize]) -> Vec<T> {
        match self.kind {
            Kind::Sum => split.fold(x, whole::Sum),
            Kind::Max => split.fold(x, whole::Largest),
            Kind::Min => split.fold(x, whole::Smallest),
            Kind::Prod => split.fold(x, whole::Product),
            Kind::L1 => split.fold(x, whole::Magnitudes),
            Kind::SumSquare => split.fold(x, whole::Squares),
            Kind::Mean | Kind::L2 | Kind::LogSum | Kind::LogSumExp => {
                let wide: Vec<f64> = map(x, T::wide);
                map(&self.floats(split, &wide, dims), T::narrow)
            }
        }
    }

    fn backward<T: Scalar + Analytic>(&self, v: &Vjp<'_>, grad: &Float) -> Result<Float> {
        let x = super::input(v.inputs, 0)?.float()?;
        let split = self.split(v.inputs)?;
        let (dims, kept) = (x.dims(), split.kept());
        let dy = float::elements::<T>(grad)?;
        let plan = Broadcast::new(dims, [dims, &kept]);
        let three = Broadcast::new(dims, [dims, &kept, &kept]);
        let result = || float::elements::<T>(super::input(v.outputs, 0)?.float()?);
        let data = || float::elements::<T>(x);
        let dx = match self.kind {
            Kind::Sum | Kind::Mean => {
                let scale = match self.kind {
                    Kind::Sum => T::ONE,
                    _ => T::ONE / T::of(split.count() as f64),
                };
                zip(&Broadcast::new(dims, [&kept, &kept]), &dy, &dy, |g: T, _| g * scale)
            }
            Kind::L1 => zip(&plan, &data()?, &dy, |x: T, g: T| Analytic::sign(x) * g),
            Kind::SumSquare => zip(&plan, &data()?, &dy, |x: T, g: T| (x + x) * g),
            // At the origin the slope is zero.
            Kind::L2 => {
                zip3(
                    &three,
                    &data()?,
                    &result()?,
                    &dy,
                    |x: T, y: T, g: T| {
                        if y == T::ZERO { T::ZERO } else { x / y * g }
                    },
                )
            }
            Kind::LogSum => zip(&Broadcast::new(dims, [&kept, &kept]), &result()?, &dy, |y: T, g: T| {
                g * Analytic::exp(-y)
            }),
            Kind::LogSumExp => {
                zip3(&three, &data()?, &result()?, &dy, |x: T, y: T, g: T| g * Analytic::exp(x - y))
            }
            // Elements that tie share the gradient equally.
            Kind::Max | Kind::Min => {
                let (x, y) = (data()?, result()?);
                let hits: Vec<T> = zip(&plan, &x, &y, |x: T, y: T| if x == y { T::ONE } else { T::ZERO });
                let count = split.fold(&hits, kernel::Sum);
                zip3(&three, &hits, &count, &dy, |h: T, n: T, g: T| if h == T::ZERO { h } else { g / n })
            }
            // The product of all others, right where elements are zero too.
            Kind::Prod => {
                let x = data()?;
                let zeros: Vec<T> = map(&x, |x: T| if x == T::ZERO { T::ONE } else { T::ZERO });
                let others: Vec<T> = map(&x, |x: T| if x == T::ZERO { T::ONE } else { x });
                let (zeros, rest) = (split.fold(&zeros, kernel::Sum), split.fold(&others, kernel::Product));
                let part: Vec<T> = zip3(&three, &x, &zeros, &rest, |x: T, zeros: T, rest: T| {
                    if x == T::ZERO && zeros == T::ONE {
                        rest
                    } else if zeros == T::ZERO {
                        rest / x
                    } else {
                        T::ZERO
                    }
                });
                zip(&plan, &part, &dy, |p: T, g: T| p * g)
            }
        };
        float::tensor(dx, dims, x.dtype())
    }
}

/// A shape with axes reduced.
fn reduced(shape: &[Dim], axes: &[usize], keep: bool) -> Vec<Dim> {
    let one = |(a, d): (usize, &Dim)| match (axes.contains(&a), keep) {
        (false, _) => Some(d.clone()),
        (true, true) => Some(Dim::from(1i64)),
        (true, false) => None,
    };
    shape.iter().enumerate().filter_map(one).collect()
}

/// Ties the axes that are kept to those of the result, in order.
pub fn couple_kept(rank: usize, axes: &[usize], keep: bool) -> Coupling {
    let mut coupling = Coupling::default();
    let mut out = 0;
    for axis in 0..rank {
        if axes.contains(&axis) {
            out += usize::from(keep);
            continue;
        }
        coupling.same((Port::In(0), axis), (Port::Out(0), out));
        out += 1;
    }
    coupling
}

impl Operator for Reduce {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let Some(axes) = self.axes(inputs, shape.len())? else {
            return Ok(vec![match self.keep {
                true => Fact::new(x.dtype, shape.iter().map(|_| Dim::unknown()).collect()),
                false => Fact::unranked(x.dtype),
            }]);
        };
        if shape.len() == 1
            && axes.len() == 1
            && x.dtype == DType::I64
            && let Some(content) = &x.dims
        {
            let total = match self.kind {
                Kind::Sum => Some(content.iter().fold(Dim::from(0i64), |s, d| s + d.clone())),
                Kind::Prod => Some(Dim::product(content)),
                _ => None,
            };
            if let Some(total) = total {
                return Ok(vec![Fact::of_dims(x.dtype, vec![total], !self.keep)]);
            }
        }
        Ok(vec![Fact::new(x.dtype, reduced(shape, &axes, self.keep))])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let x = super::input(inputs, 0)?;
        let shape = float::shapes(self, inputs)?.remove(0);
        let split = self.split(inputs)?;
        Ok(vec![match x {
            Value::Float(x) => real!(x.dtype(), T => {
                float::tensor(self.floats::<T>(&split, &float::elements(x)?, x.dims()), &shape, x.dtype())
            })?
            .into(),
            Value::Host(t) if t.dtype() == DType::Bool => {
                // The extremes of nothing lie beyond 0 and 1.
                let found = elements::widened(&[x], |v| Ok(self.whole(&split, v[0], t.shape())))?;
                elements::bool_value(&shape, map(&found, |b| u8::from(b > 0)))?
            }
            Value::Host(t) => elements::whole!(&[x], v => {
                elements::narrowed(t.dtype(), &shape, self.whole(&split, v[0], t.shape()))
            })?,
        }])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps {
            inputs: !matches!(self.kind, Kind::Sum | Kind::Mean | Kind::LogSum),
            outputs: matches!(self.kind, Kind::L2 | Kind::LogSum | Kind::LogSumExp | Kind::Max | Kind::Min),
        }
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let mut out = vec![None; v.inputs.len()];
        if let (Some(grad), true) = (&v.grads[0], v.needs[0]) {
            out[0] = Some(real!(grad.dtype(), T => self.backward::<T>(v, grad))?);
        }
        Ok(out)
    }
    /// A sum runs over its axes, as a product of matrices does; any other reduction is a statistic.
    fn couple(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        let rank = inputs.first().copied().flatten().and_then(Fact::rank);
        let Some((rank, axes)) = rank.and_then(|r| Some((r, self.axes(inputs, r).ok().flatten()?))) else {
            return Coupling { reason: Some("the reduced axes are not known".into()), ..Coupling::default() };
        };
        let mut coupling = couple_kept(rank, &axes, self.keep);
        for axis in axes {
            coupling.free.push((Port::In(0), axis));
            if self.kind != Kind::Sum {
                coupling.statistics.push((Port::In(0), axis));
            }
        }
        coupling
    }
}

#[cfg(test)]
mod tests;
