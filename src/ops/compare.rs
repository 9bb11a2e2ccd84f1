//! Comparison, logic and choice. Truth values are bytes of 0 and 1; as facts they carry content too, so
//! that shapes chosen by Where stay symbolic.

use super::elements::{self, bool_value};
use super::float::{self, Float, real};
use super::{Barrier, Coupling, Dim, Fact, Keeps, Operator, Spec, Vjp, broadcast};
use crate::error::Result;
use crate::kernels::pointwise::{Broadcast, map, spread, zip, zip3};
use crate::kernels::wide::Lanes;
use crate::tensor::{DType, Value};
use std::sync::Arc;

const BOOL: &[DType] = &[DType::Bool];
const EQUAL: &[DType] = &[
    DType::F32,
    DType::F64,
    DType::F16,
    DType::BF16,
    DType::U8,
    DType::I8,
    DType::U16,
    DType::I16,
    DType::U32,
    DType::I32,
    DType::U64,
    DType::I64,
    DType::Bool,
    DType::Str,
];

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec::new("Equal", 7, EQUAL, |_, _| Ok(Arc::new(Compare(Relation::Equal)))),
    Spec::new("Less", 7, DType::NUMBERS, |_, _| Ok(Arc::new(Compare(Relation::Less)))),
    Spec::new("LessOrEqual", 12, DType::NUMBERS, |_, _| Ok(Arc::new(Compare(Relation::LessOrEqual)))),
    Spec::new("Greater", 7, DType::NUMBERS, |_, _| Ok(Arc::new(Compare(Relation::Greater)))),
    Spec::new("GreaterOrEqual", 12, DType::NUMBERS, |_, _| Ok(Arc::new(Compare(Relation::GreaterOrEqual)))),
    Spec::new("And", 7, BOOL, |_, _| Ok(Arc::new(Logic(Gate::And)))),
    Spec::new("Or", 7, BOOL, |_, _| Ok(Arc::new(Logic(Gate::Or)))),
    Spec::new("Xor", 7, BOOL, |_, _| Ok(Arc::new(Logic(Gate::Xor)))),
    Spec::new("Not", 1, BOOL, |_, _| Ok(Arc::new(Logic(Gate::Not)))),
    Spec::new("IsNaN", 9, DType::FLOATS, |_, _| Ok(Arc::new(Class::Nan))),
    Spec::new("IsInf", 10, DType::FLOATS, |a, _| {
        let (positive, negative) = (a.int("detect_positive", 1)? != 0, a.int("detect_negative", 1)? != 0);
        Ok(Arc::new(Class::Infinite { positive, negative }))
    }),
    Spec::new("Where", 9, BOOL, |_, _| Ok(Arc::new(Where))),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Relation {
    fn run<T: PartialOrd + Lanes>(self, plan: &Broadcast<2>, a: &[T], b: &[T]) -> Vec<u8> {
        match self {
            Relation::Equal => zip(plan, a, b, |a, b| u8::from(a == b)),
            Relation::Less => zip(plan, a, b, |a, b| u8::from(a < b)),
            Relation::LessOrEqual => zip(plan, a, b, |a, b| u8::from(a <= b)),
            Relation::Greater => zip(plan, a, b, |a, b| u8::from(a > b)),
            Relation::GreaterOrEqual => zip(plan, a, b, |a, b| u8::from(a >= b)),
        }
    }

    /// What is certain of two dimensions: sizes that are symbols are not negative.
    fn dims(self, a: &Dim, b: &Dim) -> Option<Dim> {
        let truth = |t: bool| Some(Dim::from(i64::from(t)));
        let negative = |d: &Dim| d.known().is_some_and(|n| n < 0);
        match (a.known(), b.known()) {
            (Some(a), Some(b)) => truth(match self {
                Relation::Equal => a == b,
                Relation::Less => a < b,
                Relation::LessOrEqual => a <= b,
                Relation::Greater => a > b,
                Relation::GreaterOrEqual => a >= b,
            }),
            _ if a == b => {
                truth(matches!(self, Relation::Equal | Relation::LessOrEqual | Relation::GreaterOrEqual))
            }
            _ if a.as_symbol().is_some() && negative(b) => {
                truth(matches!(self, Relation::Greater | Relation::GreaterOrEqual))
            }
            _ if negative(a) && b.as_symbol().is_some() => {
                truth(matches!(self, Relation::Less | Relation::LessOrEqual))
            }
            _ => None,
        }
    }
}

/// Two operands compared; nothing is equal to NaN.
#[derive(Debug)]
struct Compare(Relation);

impl Operator for Compare {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        super::input(inputs, 1)?;
        elements::common_type(inputs)?;
        Ok(vec![broadcast::content(DType::Bool, inputs, |d| self.0.dims(d[0], d[1]))?])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let (a, b) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
        let shape = broadcast::fixed(&[a.shape(), b.shape()])?;
        float::size(&shape)?;
        if a.dtype() == DType::Str && self.0 == Relation::Equal {
            let wide = |s: &[usize], v: &[Vec<u8>]| spread(&Broadcast::new(&shape, [s]), v);
            return elements::strings(&[a, b], |v| {
                let (x, y) = (wide(a.shape(), v[0]), wide(b.shape(), v[1]));
                Ok(vec![bool_value(&shape, x.iter().zip(&y).map(|(x, y)| u8::from(x == y)).collect())?])
            });
        }
        let plan = Broadcast::new(&shape, [a.shape(), b.shape()]);
        let found: Vec<u8> = elements::numeric!(&[a, b], v => Ok(self.0.run(&plan, v[0], v[1])))?;
        Ok(vec![bool_value(&shape, found)?])
    }
    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Whole)
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        broadcast::couple(inputs, &outputs[0])
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    And,
    Or,
    Xor,
    Not,
}

/// Truth values combined.
#[derive(Debug)]
struct Logic(Gate);

impl Operator for Logic {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        if self.0 != Gate::Not {
            super::input(inputs, 1)?;
        }
        match elements::common_type(inputs)? {
            DType::Bool => Ok(vec![broadcast::content(DType::Bool, inputs, |d| {
                let truth: Option<Vec<bool>> = d.iter().map(|d| d.known().map(|n| n != 0)).collect();
                let truth = truth?;
                let (a, b) = (truth[0], truth[truth.len() - 1]);
                Some(Dim::from(i64::from(match self.0 {
                    Gate::And => a && b,
                    Gate::Or => a || b,
                    Gate::Xor => a != b,
                    Gate::Not => !a,
                })))
            })?]),
            other => Err(elements::refused(other)),
        }
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.remove(0);
        let given: Vec<&Value> = inputs.iter().flatten().copied().collect();
        let (a, b) = (given[0], given[given.len() - 1]);
        let plan = Broadcast::new(&shape, [a.shape(), b.shape()]);
        elements::hosts::<u8, _>(&given, |v| {
            let (a, b) = (v[0], v[v.len() - 1]);
            let found = match self.0 {
                Gate::And => zip(&plan, a, b, |a, b| u8::from(a != 0 && b != 0)),
                Gate::Or => zip(&plan, a, b, |a, b| u8::from(a != 0 || b != 0)),
                Gate::Xor => zip(&plan, a, b, |a, b| u8::from((a != 0) != (b != 0))),
                Gate::Not => map(a, |a| u8::from(a == 0)),
            };
            Ok(vec![bool_value(&shape, found)?])
        })
    }
    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Whole)
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        broadcast::couple(inputs, &outputs[0])
    }
}

/// Floats of a kind.
#[derive(Debug)]
enum Class {
    Nan,
    Infinite { positive: bool, negative: bool },
}

impl Operator for Class {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        Ok(vec![Fact { dtype: DType::Bool, ..super::input(inputs, 0)?.without_value() }])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let x = super::input(inputs, 0)?.float()?;
        let found = real!(x.dtype(), T => {
            let v = float::elements::<T>(x)?;
            match *self {
                Class::Nan => map(&v, |x: T| u8::from(x.is_nan())),
                Class::Infinite { positive, negative } => map(&v, |x: T| {
                    u8::from((positive && x == T::INFINITY) || (negative && x == T::NEG_INFINITY))
                }),
            }
        });
        Ok(vec![bool_value(x.dims(), found)?])
    }
    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Whole)
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        broadcast::couple(inputs, &outputs[0])
    }
}

/// Elements of the second input where the first is true, of the third elsewhere.
#[derive(Debug)]
struct Where;

impl Where {
    fn types(inputs: &[Option<&Fact>]) -> Result<DType> {
        let (condition, x, y) =
            (super::input(inputs, 0)?, super::input(inputs, 1)?, super::input(inputs, 2)?);
        match (condition.dtype, x.dtype == y.dtype) {
            (DType::Bool, true) => Ok(x.dtype),
            (DType::Bool, false) => Err(elements::differing(x.dtype, y.dtype)),
            (other, _) => Err(elements::refused(other)),
        }
    }
}

impl Operator for Where {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let dtype = Self::types(inputs)?;
        Ok(vec![broadcast::content(dtype, inputs, |d| match d[0].known() {
            Some(0) => Some(d[2].clone()),
            Some(_) => Some(d[1].clone()),
            None if d[1] == d[2] => Some(d[1].clone()),
            None => None,
        })?])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.remove(0);
        let (c, x, y) = (super::input(inputs, 0)?, super::input(inputs, 1)?, super::input(inputs, 2)?);
        let condition = c.host()?.to_vec::<u8>()?;
        if x.dtype() == DType::Str || matches!(x.dtype(), DType::C64 | DType::C128) {
            let c = spread(&Broadcast::new(&shape, [c.shape()]), &condition);
            let plans = [x, y].map(|v| Broadcast::new(&shape, [v.shape()]));
            return Ok(vec![elements::rearrange!(&[x, y], &shape, v => {
                let (x, y) = (spread(&plans[0], v[0]), spread(&plans[1], v[1]));
                let chosen = c.iter().zip(x).zip(y).map(|((c, x), y)| if *c != 0 { x } else { y });
                Ok::<_, crate::error::Error>(chosen.collect::<Vec<_>>())
            })?]);
        }
        let plan = Broadcast::new(&shape, [c.shape(), x.shape(), y.shape()]);
        let dtype = x.dtype();
        if let (Value::Float(a), Value::Float(b)) = (x, y) {
            return Ok(vec![
                real!(a.dtype(), T => {
                    let (a, b) = (float::elements::<T>(a)?, float::elements::<T>(b)?);
                    let data = zip3(&plan, &condition, &a, &b, |c, x: T, y: T| if c != 0 { x } else { y });
                    float::tensor(data, &shape, x.float()?.dtype())
                })?
                .into(),
            ]);
        }
        if dtype.is_packed() {
            return Err(elements::refused(dtype));
        }
        Ok(vec![elements::widened(&[x, y], |v| {
            let data = zip3(&plan, &condition, v[0], v[1], |c, x, y| if c != 0 { x } else { y });
            elements::narrowed(dtype, &shape, data)
        })?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        // The condition is a host tensor, which always holds its elements.
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let mut out = vec![None; 3];
        let Some(grad) = &v.grads[0] else { return Ok(out) };
        let c = super::input(v.inputs, 0)?;
        let condition = c.host()?.to_vec::<u8>()?;
        let plan = Broadcast::new(grad.dims(), [c.shape(), grad.dims()]);
        for i in (1..3).filter(|i| v.needs[*i]) {
            let part = real!(grad.dtype(), T => {
                let g = float::elements::<T>(grad)?;
                let zero: T = 0.0;
                let data = zip(&plan, &condition, &g, |c, g| if (c != 0) == (i == 1) { g } else { zero });
                float::tensor(data, grad.dims(), grad.dtype())
            })?;
            out[i] = Some(broadcast::sum_to(&part, super::input(v.inputs, i)?.shape())?);
        }
        Ok(out)
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        broadcast::couple(inputs, &outputs[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Data, Tensor};

    fn bools(op: &dyn Operator, inputs: &[&Value]) -> Vec<u8> {
        let refs: Vec<Option<&Value>> = inputs.iter().map(|v| Some(*v)).collect();
        let y = op.eval(&refs).unwrap().remove(0);
        assert_eq!(y.dtype(), DType::Bool);
        y.host().unwrap().to_vec::<u8>().unwrap()
    }

    #[test]
    fn a_shape_chosen_by_where_stays_symbolic() {
        let (b, n) = (Dim::symbol("batch"), |n: i64| Dim::from(n));
        let wanted = Fact::of_dims(DType::I64, vec![b.clone(), n(-1), n(8)], false);
        let minus = Fact::of_dims(DType::I64, vec![n(-1)], true);
        let ones = Fact::of_dims(DType::I64, vec![n(1); 3], false);
        let given = Compare(Relation::Equal).infer(&[Some(&wanted), Some(&minus)]).unwrap().remove(0);
        assert_eq!(given.dims, Some(vec![n(0), n(1), n(0)]));
        let chosen = Where.infer(&[Some(&given), Some(&ones), Some(&wanted)]).unwrap().remove(0);
        assert_eq!(chosen.dims, Some(vec![b.clone(), n(1), n(8)]));
        let unsure = Compare(Relation::Less).infer(&[Some(&wanted), Some(&ones)]).unwrap().remove(0);
        assert!(unsure.dims.unwrap()[0].is_unknown());
    }

    #[test]
    fn nothing_equals_nan_and_unsigned_numbers_keep_their_order() {
        let x = Value::load(&Tensor::from_vec(vec![2], vec![f32::NAN, 1.0]).unwrap()).unwrap();
        assert_eq!(bools(&Compare(Relation::Equal), &[&x, &x]), [0, 1]);
        assert_eq!(bools(&Compare(Relation::GreaterOrEqual), &[&x, &x]), [0, 1]);
        let a: Value = Tensor::from_vec(vec![2], vec![u64::MAX, 0]).unwrap().into();
        let b: Value = Tensor::from_vec(vec![1], vec![1u64]).unwrap().into();
        assert_eq!(bools(&Compare(Relation::Less), &[&a, &b]), [0, 1]);
        assert_eq!(bools(&Class::Nan, &[&x]), [1, 0]);
        let y = Value::load(&Tensor::from_vec(vec![2], vec![f32::NEG_INFINITY, 1.0]).unwrap()).unwrap();
        assert_eq!(bools(&Class::Infinite { positive: true, negative: false }, &[&y]), [0, 0]);
        assert_eq!(bools(&Class::Infinite { positive: true, negative: true }, &[&y]), [1, 0]);
    }

    #[test]
    fn choices_work_on_text_and_every_number() {
        let c: Value = Tensor::from_bools(vec![2], vec![true, false]).unwrap().into();
        let text = |t: &[&str]| -> Value {
            let data = t.iter().map(|t| t.as_bytes().to_vec()).collect();
            Tensor::new(DType::Str, vec![t.len()], Data::Str(data)).unwrap().into()
        };
        let y = Where.eval(&[Some(&c), Some(&text(&["a", "b"])), Some(&text(&["z"]))]).unwrap().remove(0);
        let Data::Str(found) = &*y.host().unwrap().data().unwrap() else { panic!() };
        assert_eq!(found, &[b"a".to_vec(), b"z".to_vec()]);
        let (x, y): (Value, Value) =
            (Tensor::scalar(u64::MAX).into(), Tensor::from_vec(vec![2], vec![3u64, 4]).unwrap().into());
        let y = Where.eval(&[Some(&c), Some(&x), Some(&y)]).unwrap().remove(0);
        assert_eq!(y.host().unwrap().to_vec::<u64>().unwrap(), [u64::MAX, 4]);
        assert_eq!(bools(&Compare(Relation::Equal), &[&text(&["a", "b"]), &text(&["b"])]), [0, 1]);
    }
}
