//! Operators that choose elements or places by their values: TopK, NonZero, Compress, Unique, OneHot.

use super::elements::{self, numeric, rearrange};
use super::gather::{added, taken};
use super::{
    Attributes, Barrier, Coupling, Dim, Fact, Keeps, Operator, Port, Spec, Vjp, fact::FOLD_LIMIT, float,
};
use crate::error::{Error, Result};
use crate::kernels::movement::{pick, unpick};
use crate::tensor::{DType, Tensor, Value};
use candle_core::Tensor as Float;
use std::{cmp::Ordering, sync::Arc};

const COMPARED: &[DType] = &[
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
];

const UNIQUE: &[DType] = &[
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
    Spec::new("TopK", 1, DType::NUMBERS, |a, v| {
        let k = if v < 10 {
            let missing =
                || Error::invalid("ATTR-MISSING", "a required attribute is missing").field("attribute k");
            Some(a.opt_int("k")?.ok_or_else(missing)?)
        } else {
            None
        };
        Ok(Arc::new(TopK { axis: a.int("axis", -1)?, k, largest: a.int("largest", 1)? != 0 }))
    }),
    Spec::new("NonZero", 9, COMPARED, |_, _| Ok(Arc::new(NonZero))),
    Spec::new("Compress", 9, DType::ALL, |a, _| Ok(Arc::new(Compress { axis: a.opt_int("axis")? }))),
    Spec::new("Unique", 11, UNIQUE, |a, _| {
        Ok(Arc::new(Unique { axis: a.opt_int("axis")?, sorted: a.int("sorted", 1)? != 0 }))
    }),
    Spec::new("OneHot", 9, DType::NUMBERS, |a: &Attributes, _| {
        Ok(Arc::new(OneHot { axis: a.int("axis", -1)? }))
    }),
];

/// A total order in which what is not a number is largest.
fn order<T: PartialOrd>(a: &T, b: &T) -> Ordering {
    a.partial_cmp(b).unwrap_or_else(|| {
        let nan = |x: &T| x.partial_cmp(x).is_none();
        nan(a).cmp(&nan(b))
    })
}

/// Facts of results whose shape follows from content, where all of it is known and small.
fn folded(op: &dyn Operator, inputs: &[Option<&Fact>]) -> Result<Option<Vec<Fact>>> {
    let mut values = Vec::with_capacity(inputs.len());
    for fact in inputs {
        values.push(match fact {
            None => None,
            Some(f) => match f.value.as_ref().filter(|t| t.len() <= FOLD_LIMIT) {
                Some(t) => Some(Value::load(t)?),
                None => return Ok(None),
            },
        });
    }
    let refs: Vec<Option<&Value>> = values.iter().map(Option::as_ref).collect();
    let out = op.eval(&refs)?.iter().map(|v| Ok(Fact::constant(&v.to_tensor()?))).collect::<Result<_>>()?;
    Ok(Some(out))
}

/// (product of the axes before, size of the axis, product of the axes behind).
fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product())
}

/// Ties all axes but one of input 0 and outputs.
fn couple_others(input: Option<&Fact>, outputs: &[Fact], axis: i64) -> Coupling {
    let mut coupling =
        Coupling { reason: Some("the axis is chosen from by value".into()), ..Coupling::default() };
    let rank = input.and_then(Fact::rank).unwrap_or(0);
    let Ok(along) = super::axis(axis, rank) else { return coupling };
    for a in (0..rank).filter(|a| *a != along) {
        for (o, _) in outputs.iter().enumerate().filter(|(_, f)| f.rank() == Some(rank)) {
            coupling.same((Port::In(0), a), (Port::Out(o), a));
        }
    }
    coupling
}

/// The largest or smallest elements along an axis, in order, and their indices. Of equal ones the
/// first comes first. Unsorted results are given sorted.
#[derive(Debug)]
struct TopK {
    axis: i64,
    k: Option<i64>,
    largest: bool,
}

impl TopK {
    fn k(&self, inputs: &[Option<&Fact>]) -> Result<Dim> {
        if let Some(k) = self.k {
            return Ok(Dim::from(k));
        }
        let k = super::input(inputs, 1)?;
        let one = k.dims.as_ref().and_then(|d| d.first()).cloned();
        Ok(one.or_else(|| k.ints()?.first().map(|n| Dim::from(*n))).unwrap_or_else(Dim::unknown))
    }
}

/// Indices of the first `k` elements of each lane, lane by lane, in the order of the result.
fn top<T: PartialOrd>(
    v: &[T],
    (outer, n, inner): (usize, usize, usize),
    k: usize,
    largest: bool,
) -> Vec<usize> {
    let mut out = vec![0; outer * k * inner];
    if k == 0 {
        return out;
    }
    let mut lane: Vec<usize> = Vec::with_capacity(n);
    for o in 0..outer {
        for i in 0..inner {
            let at = |j: usize| &v[(o * n + j) * inner + i];
            let rank = |a: &usize, b: &usize| {
                let by_value = order(at(*a), at(*b));
                (if largest { by_value.reverse() } else { by_value }).then(a.cmp(b))
            };
            lane.clear();
            lane.extend(0..n);
            if k < n {
                lane.select_nth_unstable_by(k - 1, rank);
                lane.truncate(k);
            }
            lane.sort_unstable_by(rank);
            for (j, index) in lane.iter().enumerate() {
                out[(o * k + j) * inner + i] = *index;
            }
        }
    }
    out
}

/// Offsets of elements that lie at `indices` along an axis of size `n`, of a result of `k` along it.
fn lanes(indices: impl Iterator<Item = usize>, (n, k, inner): (usize, usize, usize)) -> Vec<usize> {
    indices
        .enumerate()
        .map(|(at, index)| {
            let (o, i) = (at / (k * inner).max(1), at % inner.max(1));
            (o * n + index) * inner + i
        })
        .collect()
}

impl Operator for TopK {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        let k = self.k(inputs)?;
        let Some(shape) = &x.shape else {
            return Ok(vec![Fact::unranked(x.dtype), Fact::unranked(DType::I64)]);
        };
        let axis = super::axis(self.axis, shape.len())?;
        let fits = k.known().is_none_or(|k| k >= 0 && shape[axis].known().is_none_or(|n| k <= n));
        if !fits {
            return Err(Error::invalid("OP-TOPK", "k does not fit the axis").found(&k).limit(&shape[axis]));
        }
        let mut out = shape.clone();
        out[axis] = k;
        Ok(vec![Fact::new(x.dtype, out.clone()), Fact::new(DType::I64, out)])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.swap_remove(0);
        let x = super::input(inputs, 0)?;
        let axis = super::axis(self.axis, shape.len())?;
        let (outer, n, inner) = around(x.shape(), axis);
        let k = shape[axis];
        let indices = numeric!(&[x], v => Ok(top(v[0], (outer, n, inner), k, self.largest)))?;
        let at = lanes(indices.iter().copied(), (n, k, inner));
        let indices = indices.into_iter().map(|i| i as i64).collect();
        Ok(vec![taken(x, &at, 1, &shape)?, Tensor::from_vec(shape, indices)?.into()])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let mut grads = vec![None; v.inputs.len()];
        if let (Some(g), true) = (&v.grads[0], v.needs[0]) {
            let x = super::input(v.inputs, 0)?;
            let axis = super::axis(self.axis, x.shape().len())?;
            let (outer, n, inner) = around(x.shape(), axis);
            let k = g.dims()[axis];
            let chosen = numeric!(&[x], v => Ok(top(v[0], (outer, n, inner), k, self.largest)))?;
            grads[0] = Some(added(g, &lanes(chosen.into_iter(), (n, k, inner)), 1, x.shape())?);
        }
        Ok(grads)
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        couple_others(inputs.first().copied().flatten(), outputs, self.axis)
    }
}

/// Indices of the elements that are not zero, one row an axis.
#[derive(Debug)]
struct NonZero;

impl Operator for NonZero {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        if let Some(facts) = folded(self, inputs)? {
            return Ok(facts);
        }
        let rank = super::input(inputs, 0)?.rank().map_or_else(Dim::unknown, |r| Dim::from(r.max(1)));
        Ok(vec![Fact::new(DType::I64, vec![rank, Dim::unknown()])])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let x = super::input(inputs, 0)?;
        fn found<T: Default + PartialEq>(v: &[T]) -> Vec<usize> {
            let zero = T::default();
            v.iter().enumerate().filter(|(_, x)| **x != zero).map(|(i, _)| i).collect()
        }
        let at = numeric!(&[x], v => Ok(found(v[0])))?;
        // A single number counts as a vector of one.
        let shape = if x.shape().is_empty() { &[1] } else { x.shape() };
        let mut rows = Vec::with_capacity(shape.len() * at.len());
        for axis in 0..shape.len() {
            let (_, n, inner) = around(shape, axis);
            rows.extend(at.iter().map(|i| (i / inner % n) as i64));
        }
        Ok(vec![Tensor::from_vec(vec![shape.len(), at.len()], rows)?.into()])
    }
    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Whole)
    }
    fn couple(&self, _: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        Coupling { reason: Some("the result depends on every element".into()), ..Coupling::default() }
    }
}

/// The entries of an axis (or of the flattened input) whose condition holds.
#[derive(Debug)]
struct Compress {
    axis: Option<i64>,
}

impl Compress {
    /// The shape that is chosen from, the maps of its axes, and the shape of the result.
    #[allow(clippy::type_complexity)]
    fn plan(&self, shape: &[usize], condition: &Value) -> Result<(Vec<usize>, Vec<Vec<usize>>, Vec<usize>)> {
        let (shape, axis) = match self.axis {
            Some(axis) => (shape.to_vec(), super::axis(axis, shape.len())?),
            None => (vec![shape.iter().product()], 0),
        };
        let held = condition.ints()?;
        if held.len() > shape[axis] || condition.shape().len() != 1 {
            return Err(Error::invalid("OP-COMPRESS", "the condition does not fit the axis")
                .field("input[1]")
                .found(format!("{:?}", condition.shape()))
                .limit(format!("{} entries", shape[axis])));
        }
        let kept: Vec<usize> = held.iter().enumerate().filter(|(_, c)| **c != 0).map(|(i, _)| i).collect();
        let maps: Vec<Vec<usize>> = (0..shape.len())
            .map(|a| if a == axis { kept.clone() } else { (0..shape[a]).collect() })
            .collect();
        let out = maps.iter().map(Vec::len).collect();
        Ok((shape, maps, out))
    }
}

impl Operator for Compress {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (x, condition) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
        if condition.dtype != DType::Bool {
            return Err(elements::refused(condition.dtype).field("input[1]"));
        }
        let kept = match &condition.value {
            Some(t) if t.len() <= FOLD_LIMIT => Dim::from(t.to_i64s()?.iter().filter(|v| **v != 0).count()),
            _ => Dim::unknown(),
        };
        let Some(axis) = self.axis else { return Ok(vec![Fact::new(x.dtype, vec![kept])]) };
        let Some(mut shape) = x.shape.clone() else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let axis = super::axis(axis, shape.len())?;
        shape[axis] = kept;
        Ok(vec![Fact::new(x.dtype, shape)])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let x = super::input(inputs, 0)?;
        let (shape, maps, out) = self.plan(x.shape(), super::input(inputs, 1)?)?;
        // Nothing is filled in, so that any element will do.
        Ok(vec![rearrange!(&[x], &out, v => Ok::<_, Error>(pick(v[0], &shape, &maps, &Default::default())))?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let mut grads = vec![None; v.inputs.len()];
        if let (Some(g), true) = (&v.grads[0], v.needs[0]) {
            let x = super::input(v.inputs, 0)?.shape();
            let (shape, maps, _) = self.plan(x, super::input(v.inputs, 1)?)?;
            grads[0] = Some(float::real!(g.dtype(), T => {
                float::tensor(unpick::<T>(&float::elements::<T>(g)?, &shape, &maps), x, g.dtype())
            })?);
        }
        Ok(grads)
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        match self.axis {
            Some(axis) => couple_others(inputs.first().copied().flatten(), outputs, axis),
            None => Coupling { reason: Some("the axes are flattened".into()), ..Coupling::default() },
        }
    }
}

/// Distinct elements, or distinct slices of an axis: themselves, where each is first seen, which one
/// each entry is, and how often it occurs.
#[derive(Debug)]
struct Unique {
    axis: Option<i64>,
    sorted: bool,
}

/// Where each distinct entry is first seen, which distinct entry each entry is, and the counts.
type Distinct = (Vec<usize>, Vec<i64>, Vec<i64>);

fn distinct<T: PartialOrd>(v: &[T], (outer, n, inner): (usize, usize, usize), sorted: bool) -> Distinct {
    let compare = |a: &usize, b: &usize| {
        for o in 0..outer {
            for i in 0..inner {
                match order(&v[(o * n + a) * inner + i], &v[(o * n + b) * inner + i]) {
                    Ordering::Equal => {}
                    other => return other,
                }
            }
        }
        Ordering::Equal
    };
    let mut entries: Vec<usize> = (0..n).collect();
    entries.sort_by(compare);
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for e in entries {
        match groups.last_mut() {
            Some(group) if compare(&group[0], &e) == Ordering::Equal => group.push(e),
            _ => groups.push(vec![e]),
        }
    }
    if !sorted {
        groups.sort_by_key(|g| g[0]);
    }
    let mut inverse = vec![0; n];
    for (g, group) in groups.iter().enumerate() {
        group.iter().for_each(|e| inverse[*e] = g as i64);
    }
    let counts = groups.iter().map(|g| g.len() as i64).collect();
    (groups.into_iter().map(|g| g[0]).collect(), inverse, counts)
}

impl Operator for Unique {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        if let Some(facts) = folded(self, inputs)? {
            return Ok(facts);
        }
        let x = super::input(inputs, 0)?;
        let count = Dim::unknown();
        let vector = |n: &Dim| Fact::new(DType::I64, vec![n.clone()]);
        let (y, entries) = match (self.axis, &x.shape) {
            (None, _) => (Fact::new(x.dtype, vec![count.clone()]), x.elements().unwrap_or_else(Dim::unknown)),
            (Some(_), None) => (Fact::unranked(x.dtype), Dim::unknown()),
            (Some(axis), Some(shape)) => {
                let axis = super::axis(axis, shape.len())?;
                let mut out = shape.clone();
                let entries = std::mem::replace(&mut out[axis], count.clone());
                (Fact::new(x.dtype, out), entries)
            }
        };
        Ok(vec![y, vector(&count), vector(&entries), vector(&count)])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let x = super::input(inputs, 0)?;
        let (shape, axis) = match self.axis {
            Some(axis) => (x.shape().to_vec(), super::axis(axis, x.shape().len())?),
            None => (vec![x.shape().iter().product()], 0),
        };
        let lanes = around(&shape, axis);
        let (first, inverse, counts) = match x.dtype() {
            DType::Str => elements::strings(&[x], |v| Ok(distinct(v[0], lanes, self.sorted)))?,
            _ => numeric!(&[x], v => Ok(distinct(v[0], lanes, self.sorted)))?,
        };
        let maps: Vec<Vec<usize>> = (0..shape.len())
            .map(|a| if a == axis { first.clone() } else { (0..shape[a]).collect() })
            .collect();
        let out: Vec<usize> = maps.iter().map(Vec::len).collect();
        let y = rearrange!(&[x], &out, v => Ok::<_, Error>(pick(v[0], &shape, &maps, &Default::default())))?;
        let vector = |v: Vec<i64>| Ok::<Value, Error>(Tensor::from_vec(vec![v.len()], v)?.into());
        let first = first.into_iter().map(|i| i as i64).collect();
        Ok(vec![y, vector(first)?, vector(inverse)?, vector(counts)?])
    }
    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Count)
    }
    fn couple(&self, _: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        Coupling { reason: Some("the result depends on every element".into()), ..Coupling::default() }
    }
}

/// A new axis of `depth` that holds the on-value at the index and the off-value elsewhere.
#[derive(Debug)]
struct OneHot {
    axis: i64,
}

impl OneHot {
    fn axis(&self, rank: usize) -> Result<usize> {
        super::axis(self.axis, rank + 1)
    }

    /// 1 for each element of the result that is on, else 0.
    fn places(&self, indices: &Value, shape: &[usize]) -> Result<Vec<usize>> {
        let indices = indices.to_tensor()?.to_i64s()?;
        let (outer, depth, inner) = around(shape, self.axis(shape.len() - 1)?);
        let mut on = vec![0usize; outer * depth * inner];
        for (at, index) in indices.iter().enumerate() {
            let (o, i) = (at / inner.max(1), at % inner.max(1));
            let index = if *index < 0 { index.saturating_add(depth as i64) } else { *index };
            if let Some(d) = usize::try_from(index).ok().filter(|d| *d < depth) {
                on[(o * depth + d) * inner + i] = 1;
            }
        }
        Ok(on)
    }
}

impl Operator for OneHot {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (indices, depth, values) =
            (super::input(inputs, 0)?, super::input(inputs, 1)?, super::input(inputs, 2)?);
        if values.shape.as_deref().is_some_and(|s| s.len() != 1 || s[0].known().is_some_and(|n| n != 2)) {
            return Err(Error::invalid("OP-ONEHOT", "an off-value and an on-value are needed")
                .field("input[2]")
                .found(format!("{:?}", values.shape)));
        }
        let Some(shape) = &indices.shape else { return Ok(vec![Fact::unranked(values.dtype)]) };
        let one = depth.dims.as_ref().and_then(|d| d.first()).cloned();
        let depth = one.or_else(|| depth.ints()?.first().map(|n| Dim::from(*n))).unwrap_or_else(Dim::unknown);
        if depth.known().is_some_and(|n| n < 0) {
            return Err(Error::invalid("OP-ONEHOT", "the depth is negative").field("input[1]").found(depth));
        }
        let mut out = shape.clone();
        out.insert(self.axis(shape.len())?, depth);
        Ok(vec![Fact::new(values.dtype, out)])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.swap_remove(0);
        let on = self.places(super::input(inputs, 0)?, &shape)?;
        Ok(vec![taken(super::input(inputs, 2)?, &on, 1, &shape)?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    /// To the off-value and the on-value; indices and depth change the result in jumps.
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let mut out = vec![None; v.inputs.len()];
        if let (Some(g), true) = (&v.grads[0], v.needs[2]) {
            let on = self.places(super::input(v.inputs, 0)?, g.dims())?;
            out[2] = Some(added(g, &on, 1, &[2])?);
        }
        Ok(out)
    }
    fn couple(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        let mut coupling =
            Coupling { reason: Some("the axis stands for the index".into()), ..Coupling::default() };
        let rank = inputs.first().copied().flatten().and_then(Fact::rank).unwrap_or(0);
        let Ok(axis) = self.axis(rank) else { return coupling };
        for a in 0..rank {
            coupling.same((Port::In(0), a), (Port::Out(0), a + usize::from(a >= axis)));
        }
        coupling
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ints(shape: &[usize], v: &[i64]) -> Value {
        Tensor::from_vec(shape.to_vec(), v.to_vec()).unwrap().into()
    }

    #[test]
    fn the_first_of_equals_comes_first_and_what_is_no_number_is_largest() {
        let floats = Tensor::from_vec(vec![5], vec![1f32, f32::NAN, 3., 3., -1.]).unwrap();
        let x = Value::load(&floats).unwrap();
        for (largest, k, wanted) in
            [(true, 3, vec![1, 2, 3]), (false, 5, vec![4, 0, 2, 3, 1]), (true, 0, vec![])]
        {
            let op = TopK { axis: 0, k: None, largest };
            let out = op.eval(&[Some(&x), Some(&ints(&[1], &[k]))]).unwrap();
            assert_eq!(out[1].ints().unwrap(), wanted);
        }
        let e = TopK { axis: 0, k: Some(6), largest: true }.eval(&[Some(&x)]).unwrap_err();
        assert_eq!(e.code(), "OP-TOPK");
    }

    #[test]
    fn a_known_mask_is_folded_to_its_places() {
        let x = ints(&[2, 3], &[0, 5, 0, 7, 0, 1]);
        let fact = Fact::constant(&x.to_tensor().unwrap());
        let out = NonZero.infer(&[Some(&fact)]).unwrap().remove(0);
        assert_eq!(out.value.unwrap().to_i64s().unwrap(), [0, 1, 1, 1, 0, 2]);
        let open = NonZero.infer(&[Some(&fact.without_value())]).unwrap().remove(0);
        assert_eq!(format!("{:?}", open.shape), "Some([2, ?])");
        let scalar = NonZero.eval(&[Some(&ints(&[], &[4]))]).unwrap();
        assert_eq!(scalar[0].shape(), [1, 1]);
    }

    #[test]
    fn distinct_slices_keep_their_first_place() {
        let x = ints(&[3, 2], &[2, 1, 0, 0, 2, 1]);
        for (sorted, y, first, inverse, counts) in [
            (true, [0, 0, 2, 1], [1, 0], [1, 0, 1], [1, 2]),
            (false, [2, 1, 0, 0], [0, 1], [0, 1, 0], [2, 1]),
        ] {
            let out = Unique { axis: Some(0), sorted }.eval(&[Some(&x)]).unwrap();
            assert_eq!(out[0].ints().unwrap(), y);
            assert_eq!(out[1].ints().unwrap(), first);
            assert_eq!(out[2].ints().unwrap(), inverse);
            assert_eq!(out[3].ints().unwrap(), counts);
        }
    }

    #[test]
    fn indices_outside_the_depth_are_all_off() {
        let values = ints(&[2], &[7, 9]);
        let op = OneHot { axis: 0 };
        let out = op.eval(&[Some(&ints(&[3], &[-1, 5, 1])), Some(&ints(&[], &[3])), Some(&values)]).unwrap();
        assert_eq!(out[0].shape(), [3, 3]);
        assert_eq!(out[0].ints().unwrap(), [7, 7, 7, 7, 7, 9, 9, 7, 7]);
    }
}
