//! Shapes as values: Shape and Size. The content that leaves is symbolic where the shape is, so that
//! arithmetic on shapes can be followed before anything runs.

use super::{Barrier, Coupling, Dim, Fact, Keeps, Operator, Port, Spec};
use crate::error::Result;
use crate::tensor::{DType, Tensor, Value};
use std::sync::Arc;

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec::new("Shape", 1, DType::ALL, |a, v| {
        let (start, end) = if v < 15 { (0, None) } else { (a.int("start", 0)?, a.opt_int("end")?) };
        Ok(Arc::new(Shape { start, end }))
    }),
    Spec::new("Size", 1, DType::ALL, |_, _| Ok(Arc::new(Size))),
];

/// A shape that is read follows the tensor when axes are cut; the reader is what may have to change.
fn read_only(inputs: &[Option<&Fact>]) -> Coupling {
    let rank = inputs.first().copied().flatten().and_then(Fact::rank).unwrap_or(0);
    let free = (0..rank).map(|axis| (Port::In(0), axis)).collect();
    Coupling { free, reason: Some("the vector has one entry an axis".into()), ..Coupling::default() }
}

/// The sizes of axes `start..end`, counted as Python slices.
#[derive(Debug)]
struct Shape {
    start: i64,
    end: Option<i64>,
}

impl Shape {
    fn range(&self, rank: usize) -> std::ops::Range<usize> {
        let n = rank as i64;
        let at = |v: i64| (if v < 0 { v.saturating_add(n) } else { v }).clamp(0, n) as usize;
        let (start, end) = (at(self.start), self.end.map_or(rank, at));
        start..end.max(start)
    }
}

impl Operator for Shape {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        Ok(vec![match &super::input(inputs, 0)?.shape {
            Some(s) => Fact::of_dims(DType::I64, s[self.range(s.len())].to_vec(), false),
            None => Fact::new(DType::I64, vec![Dim::unknown()]),
        }])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = super::input(inputs, 0)?.shape();
        let sizes: Vec<i64> = shape[self.range(shape.len())].iter().map(|n| *n as i64).collect();
        Ok(vec![Tensor::from_vec(vec![sizes.len()], sizes)?.into()])
    }
    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Shapes)
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn couple(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        read_only(inputs)
    }
}

/// The number of elements.
#[derive(Debug)]
struct Size;

impl Operator for Size {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let elements = super::input(inputs, 0)?.elements().unwrap_or_else(Dim::unknown);
        Ok(vec![Fact::of_dims(DType::I64, vec![elements], true)])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let n: usize = super::input(inputs, 0)?.shape().iter().product();
        Ok(vec![Tensor::scalar(n as i64).into()])
    }
    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Shapes)
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn couple(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        read_only(inputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_shape_are_counted_as_slices() {
        let range = |start, end| Shape { start, end }.range(4);
        assert_eq!(range(0, None), 0..4);
        assert_eq!(range(-2, None), 2..4);
        assert_eq!(range(1, Some(-1)), 1..3);
        assert_eq!(range(-9, Some(9)), 0..4);
        assert_eq!(range(3, Some(1)), 3..3);
        assert_eq!(range(i64::MIN, Some(i64::MAX)), 0..4);
    }

    #[test]
    fn symbols_stay_in_the_content() {
        let x = Fact::new(DType::F32, vec![Dim::symbol("n"), Dim::from(3usize)]);
        let shape = Shape { start: 0, end: None }.infer(&[Some(&x)]).unwrap().remove(0);
        assert_eq!(format!("{:?}", shape.dims), "Some([n, 3])");
        assert!(shape.value.is_none());
        let size = Size.infer(&[Some(&x)]).unwrap().remove(0);
        assert_eq!(format!("{:?} {:?}", size.dims, size.shape), "Some([3*n]) Some([])");
    }
}
