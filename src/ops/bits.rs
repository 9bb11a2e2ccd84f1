//! Operators on the bits of integers.

use super::{Barrier, Coupling, Fact, Operator, Spec, broadcast, elements, float};
use crate::error::{Error, Result};
use crate::kernels::pointwise::{Broadcast, map, zip};
use crate::kernels::whole::Whole;
use crate::tensor::{DType, Value};
use std::sync::Arc;

const UNSIGNED: &[DType] = &[DType::U8, DType::U16, DType::U32, DType::U64];

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec::new("BitShift", 11, UNSIGNED, |a, _| match a.str("direction", "")?.as_str() {
        "LEFT" => Ok(Arc::new(Bits(Op::Up))),
        "RIGHT" => Ok(Arc::new(Bits(Op::Down))),
        other => Err(Error::invalid("ATTR-VALUE", "the direction of a shift must be given")
            .field("attribute direction")
            .found(other)
            .limit("LEFT, RIGHT")),
    }),
    Spec::new("BitwiseAnd", 18, DType::INTS, |_, _| Ok(Arc::new(Bits(Op::And)))),
    Spec::new("BitwiseOr", 18, DType::INTS, |_, _| Ok(Arc::new(Bits(Op::Or)))),
    Spec::new("BitwiseXor", 18, DType::INTS, |_, _| Ok(Arc::new(Bits(Op::Xor)))),
    Spec::new("BitwiseNot", 18, DType::INTS, |_, _| Ok(Arc::new(Bits(Op::Not)))),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Up,
    Down,
    And,
    Or,
    Xor,
    Not,
}

#[derive(Debug)]
struct Bits(Op);

impl Bits {
    fn run<T: Whole>(&self, plan: &Broadcast<2>, v: &[&[T]]) -> Vec<T> {
        let (a, b) = (v[0], v[v.len() - 1]);
        match self.0 {
            Op::Up => zip(plan, a, b, T::up),
            Op::Down => zip(plan, a, b, T::down),
            Op::And => zip(plan, a, b, T::and),
            Op::Or => zip(plan, a, b, T::or),
            Op::Xor => zip(plan, a, b, T::xor),
            Op::Not => map(a, T::not),
        }
    }
}

impl Operator for Bits {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        if self.0 != Op::Not {
            super::input(inputs, 1)?;
        }
        let dtype = elements::common_type(inputs)?;
        if !dtype.is_int() {
            return Err(elements::refused(dtype));
        }
        Ok(vec![broadcast::fact(dtype, inputs)?])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.remove(0);
        let given: Vec<&Value> = inputs.iter().flatten().copied().collect();
        let plan = Broadcast::new(&shape, [given[0].shape(), given[given.len() - 1].shape()]);
        Ok(vec![elements::whole!(&given, v => {
            elements::narrowed(given[0].dtype(), &shape, self.run(&plan, v))
        })?])
    }
    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Integers)
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        broadcast::couple(inputs, &outputs[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    #[test]
    fn bits_broadcast_and_wide_shifts_clear() {
        let op = |op| Bits(op);
        let x: Value = Tensor::from_vec(vec![2, 2], vec![1u8, 2, 3, 255]).unwrap().into();
        let y: Value = Tensor::from_vec(vec![2], vec![1u8, 9]).unwrap().into();
        let run =
            |o: Op| op(o).eval(&[Some(&x), Some(&y)]).unwrap()[0].host().unwrap().to_vec::<u8>().unwrap();
        assert_eq!(run(Op::Up), [2, 0, 6, 0]);
        assert_eq!(run(Op::Down), [0, 0, 1, 0]);
        assert_eq!(run(Op::And), [1, 0, 1, 9]);
        assert_eq!(run(Op::Xor), [0, 11, 2, 246]);
        let not = op(Op::Not).eval(&[Some(&x)]).unwrap()[0].host().unwrap().to_vec::<u8>().unwrap();
        assert_eq!(not, [254, 253, 252, 0]);
        assert!(op(Op::And).eval(&[Some(&x)]).is_err());
    }
}
