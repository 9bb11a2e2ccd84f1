//! Operators that write at given indices: ScatterElements (Scatter in old operator sets), ScatterND.

use super::elements::{self, rearrange};
use super::gather::{block_positions, couple_elementwise, element_positions, elementwise, tuples};
use super::{Attributes, Coupling, Dim, Fact, Keeps, Operator, Port, Spec, Vjp, float};
use crate::error::{Error, Result};
use crate::kernels::index::put;
use crate::kernels::real::Real;
use crate::tensor::{DType, Value};
use candle_core::Tensor as Float;
use std::sync::Arc;

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec { domain: "", name: "Scatter", opsets: (9, 10), dtypes: DType::ALL, parse: parse_elements },
    Spec::new("ScatterElements", 11, DType::ALL, parse_elements),
    Spec::new("ScatterND", 11, DType::ALL, |a, _| {
        Ok(Arc::new(Scatter { way: Way::Blocks, reduction: Reduction::parse(a)? }))
    }),
];

fn parse_elements(a: &Attributes, _: i64) -> Result<Arc<dyn Operator>> {
    Ok(Arc::new(Scatter { way: Way::Elements(a.int("axis", 0)?), reduction: Reduction::parse(a)? }))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reduction {
    None,
    Add,
    Mul,
    Min,
    Max,
}

impl Reduction {
    fn parse(a: &Attributes) -> Result<Reduction> {
        Ok(match a.str("reduction", "none")?.as_str() {
            "none" => Reduction::None,
            "add" => Reduction::Add,
            "mul" => Reduction::Mul,
            "min" => Reduction::Min,
            "max" => Reduction::Max,
            other => {
                return Err(Error::invalid("ATTR-RANGE", "the reduction is not known")
                    .field("attribute reduction")
                    .found(other)
                    .limit("none, add, mul, min, max"));
            }
        })
    }
}

/// Combining two elements of one type.
trait Combine: Clone {
    /// The old element and the new one, combined. Types that are not numbers take the new one.
    fn combine(&self, new: &Self, how: Reduction) -> Self;
}

macro_rules! numbers {
    ($($t:ty: $add:expr, $mul:expr;)*) => { $(impl Combine for $t {
        fn combine(&self, new: &Self, how: Reduction) -> Self {
            let (a, b) = (*self, *new);
            // What is not a number wins, as in the standard's reference.
            let nan = |x: $t| x != x;
            match how {
                Reduction::None => b,
                Reduction::Add => $add(a, b),
                Reduction::Mul => $mul(a, b),
                Reduction::Min => if nan(a) || a < b { a } else { b },
                Reduction::Max => if nan(a) || a > b { a } else { b },
            }
        }
    })* };
}
numbers! {
    f32: |a: f32, b| a + b, |a: f32, b| a * b;
    f64: |a: f64, b| a + b, |a: f64, b| a * b;
    half::f16: |a: half::f16, b| a + b, |a: half::f16, b| a * b;
    half::bf16: |a: half::bf16, b| a + b, |a: half::bf16, b| a * b;
    u8: u8::wrapping_add, u8::wrapping_mul;
    i8: i8::wrapping_add, i8::wrapping_mul;
    u16: u16::wrapping_add, u16::wrapping_mul;
    i16: i16::wrapping_add, i16::wrapping_mul;
    u32: u32::wrapping_add, u32::wrapping_mul;
    i32: i32::wrapping_add, i32::wrapping_mul;
    u64: u64::wrapping_add, u64::wrapping_mul;
    i64: i64::wrapping_add, i64::wrapping_mul;
}

macro_rules! others {
    ($($t:ty),*) => { $(impl Combine for $t {
        fn combine(&self, new: &Self, _: Reduction) -> Self {
            new.clone()
        }
    })* };
}
others!(Vec<u8>, [f32; 2], [f64; 2]);

/// How indices address the data.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// One element for each index, along an axis.
    Elements(i64),
    /// Blocks named by index tuples.
    Blocks,
}

/// The data with updates combined in at the addressed places, in order.
#[derive(Debug)]
struct Scatter {
    way: Way,
    reduction: Reduction,
}

impl Scatter {
    fn positions(&self, data: &[usize], indices: &Value) -> Result<(Vec<usize>, usize)> {
        match self.way {
            Way::Elements(axis) => {
                let axis = super::axis(axis, data.len())?;
                Ok((element_positions(data, indices.shape(), &indices.ints()?, axis)?, 1))
            }
            Way::Blocks => block_positions(data, indices.shape(), &indices.ints()?, 0),
        }
    }

    /// The shape that updates must have, where it is known.
    fn updates(&self, x: &Fact, indices: &Fact) -> Result<Option<Vec<Dim>>> {
        match self.way {
            Way::Elements(axis) => {
                elementwise(x, indices, 1, axis)?;
                Ok(indices.shape.clone())
            }
            Way::Blocks => Ok(match (tuples(x, indices, 0)?, &x.shape, &indices.shape) {
                (Some(depth), Some(data), Some(at)) => Some([&at[..at.len() - 1], &data[depth..]].concat()),
                _ => None,
            }),
        }
    }

    /// Gradients of the data and of the updates, of which update `n` goes to element `at[n]`. Elements that
    /// tie for an extreme share the gradient equally, as they do in reductions.
    fn shares<T: Real>(&self, x: &[T], new: &[T], at: &[usize], g: &[T]) -> (Vec<T>, Vec<T>) {
        let mut own = g.to_vec();
        let mut each: Vec<T> = at.iter().map(|p| g[*p]).collect();
        match self.reduction {
            Reduction::Add => {}
            Reduction::None => {
                // Of several updates of one element only the last is seen.
                let mut last = vec![usize::MAX; g.len()];
                at.iter().enumerate().for_each(|(n, p)| last[*p] = n);
                at.iter().for_each(|p| own[*p] = T::ZERO);
                at.iter().enumerate().filter(|(n, p)| last[**p] != *n).for_each(|(n, _)| each[n] = T::ZERO);
            }
            Reduction::Mul => {
                // The product of all others, right where factors are zero too.
                let mut rest: Vec<T> = x.iter().map(|x| if *x == T::ZERO { T::ONE } else { *x }).collect();
                let mut zeros: Vec<usize> = x.iter().map(|x| usize::from(*x == T::ZERO)).collect();
                for (n, p) in at.iter().enumerate() {
                    match new[n] == T::ZERO {
                        true => zeros[*p] += 1,
                        false => rest[*p] = rest[*p] * new[n],
                    };
                }
                let others = |factor: T, p: usize| match (factor == T::ZERO, zeros[p]) {
                    (true, 1) => rest[p],
                    (false, 0) => rest[p] / factor,
                    _ => T::ZERO,
                };
                own.iter_mut().enumerate().for_each(|(p, d)| *d = *d * others(x[p], p));
                for (n, p) in at.iter().enumerate() {
                    each[n] = each[n] * others(new[n], *p);
                }
            }
            Reduction::Min | Reduction::Max => {
                let least = self.reduction == Reduction::Min;
                let mut best = x.to_vec();
                let ahead = |a: T, b: T| if least { a < b } else { a > b };
                for (new, p) in new.iter().zip(at) {
                    best[*p] = if ahead(*new, best[*p]) { *new } else { best[*p] };
                }
                let mut tied: Vec<f64> =
                    x.iter().zip(&best).map(|(x, b)| if x == b { 1.0 } else { 0.0 }).collect();
                at.iter()
                    .enumerate()
                    .filter(|(n, p)| new[*n] == best[**p])
                    .for_each(|(_, p)| tied[*p] += 1.0);
                let part = |value: T, p: usize, g: T| {
                    if value == best[p] { g / T::of(tied[p]) } else { T::ZERO }
                };
                own.iter_mut().enumerate().for_each(|(p, d)| *d = part(x[p], p, *d));
                for (n, p) in at.iter().enumerate() {
                    each[n] = part(new[n], *p, each[n]);
                }
            }
        }
        (own, each)
    }

    /// Offsets of single elements.
    fn spread(positions: &[usize], block: usize) -> impl Iterator<Item = usize> + '_ {
        positions.iter().flat_map(move |p| *p..*p + block)
    }
}

impl Operator for Scatter {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (x, indices, updates) =
            (super::input(inputs, 0)?, super::input(inputs, 1)?, super::input(inputs, 2)?);
        if x.dtype != updates.dtype {
            return Err(elements::differing(x.dtype, updates.dtype));
        }
        if self.reduction != Reduction::None && !DType::NUMBERS.contains(&x.dtype) {
            return Err(elements::refused(x.dtype));
        }
        if let (Some(wanted), Some(found)) = (self.updates(x, indices)?, &updates.shape) {
            let fits = wanted.len() == found.len()
                && wanted
                    .iter()
                    .zip(found)
                    .all(|(a, b)| !matches!((a.known(), b.known()), (Some(a), Some(b)) if a != b));
            if !fits {
                return Err(Error::invalid("OP-SCATTER", "updates do not fit the indices")
                    .field("input[2]")
                    .found(format!("{found:?}"))
                    .limit(format!("{wanted:?}")));
            }
        }
        Ok(vec![x.without_value()])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        float::shapes(self, inputs)?;
        let (x, updates) = (super::input(inputs, 0)?, super::input(inputs, 2)?);
        let (at, block) = self.positions(x.shape(), super::input(inputs, 1)?)?;
        Ok(vec![rearrange!(&[x, updates], x.shape(), v => {
            let mut out = v[0].to_vec();
            put(v[1], &at, block, &mut out, |old, new| old.combine(new, self.reduction));
            Ok::<_, Error>(out)
        })?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps { inputs: !matches!(self.reduction, Reduction::None | Reduction::Add), outputs: false }
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let mut grads = vec![None; v.inputs.len()];
        let Some(g) = &v.grads[0] else { return Ok(grads) };
        let (indices, updates) = (super::input(v.inputs, 1)?, super::input(v.inputs, 2)?);
        let (at, block) = self.positions(g.dims(), indices)?;
        let at: Vec<usize> = Scatter::spread(&at, block).collect();
        let parts = float::real!(g.dtype(), T => {
            let of = |value: &Value| -> Result<Vec<T>> { Ok(float::elements::<T>(value.float()?)?.to_vec()) };
            let (x, new) = match self.keeps().inputs {
                true => (of(super::input(v.inputs, 0)?)?, of(updates)?),
                false => (vec![], vec![]),
            };
            let (old, new) = self.shares(&x, &new, &at, &float::elements::<T>(g)?);
            [float::tensor(old, g.dims(), g.dtype())?, float::tensor(new, updates.shape(), g.dtype())?]
        });
        for (slot, part) in [0, 2].into_iter().zip(parts) {
            grads[slot] = v.needs[slot].then_some(part);
        }
        Ok(grads)
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let input = |i: usize| inputs.get(i).copied().flatten();
        if let Way::Elements(axis) = self.way {
            let ports = [
                (Port::In(0), input(0)),
                (Port::In(1), input(1)),
                (Port::In(2), input(2)),
                (Port::Out(0), outputs.first()),
            ];
            return couple_elementwise(axis, &ports);
        }
        let mut coupling =
            Coupling { reason: Some("the axis is addressed by index".into()), ..Coupling::default() };
        let (Some(x), Some(indices)) = (input(0), input(1)) else { return coupling };
        let Ok(Some(depth)) = tuples(x, indices, 0) else { return coupling };
        let (Some(data), Some(at)) = (&x.shape, &indices.shape) else { return coupling };
        for a in 0..at.len() - 1 {
            coupling.same((Port::In(1), a), (Port::In(2), a));
        }
        for a in depth..data.len() {
            coupling.same((Port::In(0), a), (Port::Out(0), a));
            coupling.same((Port::In(2), a - depth + at.len() - 1), (Port::Out(0), a));
        }
        coupling
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    #[test]
    fn updates_are_combined_in_order() {
        let ints = |shape: &[usize], v: &[i32]| -> Value {
            Tensor::from_vec(shape.to_vec(), v.to_vec()).unwrap().into()
        };
        let (x, at, new) = (ints(&[4], &[1, 2, 3, 4]), ints(&[3], &[1, -1, 1]), ints(&[3], &[5, 6, -7]));
        for (reduction, wanted) in [
            (Reduction::None, [1, -7, 3, 6]),
            (Reduction::Add, [1, 0, 3, 10]),
            (Reduction::Mul, [1, -70, 3, 24]),
            (Reduction::Min, [1, -7, 3, 4]),
            (Reduction::Max, [1, 5, 3, 6]),
        ] {
            let op = Scatter { way: Way::Elements(0), reduction };
            let out = op.eval(&[Some(&x), Some(&at), Some(&new)]).unwrap();
            assert_eq!(out[0].ints().unwrap(), wanted.map(i64::from), "{reduction:?}");
        }
        assert_eq!(f32::NAN.combine(&1.0, Reduction::Max).to_bits(), f32::NAN.to_bits());
        assert!(1f32.combine(&f32::NAN, Reduction::Min).is_nan());
    }

    #[test]
    fn text_is_replaced_and_not_added() {
        let text = |v: &[&str]| -> Value {
            let data = v.iter().map(|s| s.as_bytes().to_vec()).collect::<Vec<_>>();
            Tensor::new(DType::Str, vec![data.len()], crate::tensor::Data::Str(data)).unwrap().into()
        };
        let at: Value = Tensor::from_vec(vec![1, 1], vec![1i64]).unwrap().into();
        let inputs = [text(&["a", "b"]), text(&["c"])];
        let run = |reduction| {
            let op = Scatter { way: Way::Blocks, reduction };
            op.eval(&[Some(&inputs[0]), Some(&at), Some(&inputs[1])])
        };
        let out = run(Reduction::None).unwrap()[0].to_tensor().unwrap();
        assert!(out.same_bits(&text(&["a", "c"]).to_tensor().unwrap()).unwrap());
        assert_eq!(run(Reduction::Add).unwrap_err().code(), "OP-TYPE");
    }
}
