//! Operators that read at given indices: Gather, GatherElements, GatherND, and the positions that
//! scattering shares with them.

use super::elements::rearrange;
use super::{Coupling, Cut, Dim, Fact, Keeps, Operator, Pattern, Port, Rewrite, Spec, Vjp, float};
use crate::error::{Error, Result};
use crate::kernels::index::{add, take};
use crate::kernels::movement::{pick, unpick};
use crate::tensor::{DType, Tensor, Value, strides};
use candle_core::Tensor as Float;
use std::sync::Arc;

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec::new("Gather", 1, DType::ALL, |a, _| Ok(Arc::new(Gather { axis: a.int("axis", 0)? }))),
    Spec::new("GatherElements", 11, DType::ALL, |a, _| {
        Ok(Arc::new(GatherElements { axis: a.int("axis", 0)? }))
    }),
    Spec::new("GatherND", 11, DType::ALL, |a, _| {
        let batch = a.int("batch_dims", 0)?;
        let batch = usize::try_from(batch).map_err(|_| {
            Error::invalid("ATTR-RANGE", "batch_dims is negative").field("attribute batch_dims").found(batch)
        })?;
        Ok(Arc::new(GatherNd { batch }))
    }),
];

/// An index on an axis of `n`; negative ones count from the end.
pub fn wrapped(index: i64, n: usize) -> Result<usize> {
    let resolved = if index < 0 { index.saturating_add(n as i64) } else { index };
    usize::try_from(resolved).ok().filter(|i| *i < n).ok_or_else(|| {
        Error::invalid("OP-INDEX", "an index is out of range")
            .found(index)
            .limit(format!("{n} elements on the axis"))
    })
}

/// Checks that a fact can hold indices.
pub fn index_type(fact: &Fact, slot: usize) -> Result<()> {
    if matches!(fact.dtype, DType::I32 | DType::I64) {
        return Ok(());
    }
    Err(Error::invalid("OP-TYPE", "indices must be i32 or i64")
        .field(format!("input[{slot}]"))
        .found(fact.dtype))
}

/// Ties the axes of `ports` that agree in size, all at the same index.
fn tie(coupling: &mut Coupling, ports: &[(Port, usize, &Dim)]) {
    let [(first, axis, size), rest @ ..] = ports else { return };
    if rest.iter().all(|(_, _, d)| d == size) {
        for (port, other, _) in rest {
            coupling.same((*first, *axis), (*port, *other));
        }
    }
}

/// Offsets in a tensor of shape `data` of the elements that `indices` name along `axis`; on the other
/// axes an index is its own place.
pub fn element_positions(
    data: &[usize],
    shape: &[usize],
    indices: &[i64],
    axis: usize,
) -> Result<Vec<usize>> {
    let steps = strides(data);
    let n = data[axis];
    let mut at = vec![0usize; shape.len()];
    let mut base = 0;
    let mut out = Vec::with_capacity(indices.len());
    for index in indices {
        out.push(base + wrapped(*index, n)? * steps[axis]);
        for a in (0..shape.len()).rev() {
            at[a] += 1;
            let step = if a == axis { 0 } else { steps[a] };
            if at[a] < shape[a] {
                base += step;
                break;
            }
            at[a] = 0;
            base -= step * (shape[a] - 1);
        }
    }
    Ok(out)
}

/// Offsets of the blocks that the last axis of `indices` names behind `batch` common axes, and the
/// length of a block.
pub fn block_positions(
    data: &[usize],
    shape: &[usize],
    indices: &[i64],
    batch: usize,
) -> Result<(Vec<usize>, usize)> {
    let depth = shape[shape.len() - 1];
    let steps = strides(data);
    let block: usize = data[batch + depth..].iter().product();
    let batches: usize = data[..batch].iter().product();
    let rows: usize = shape[..shape.len() - 1].iter().product();
    let within = rows / batches.max(1);
    let size: usize = data[batch..].iter().product();
    let mut out = Vec::with_capacity(rows);
    for row in 0..rows {
        let mut at = row / within.max(1) * size;
        for (k, index) in indices[row * depth..(row + 1) * depth].iter().enumerate() {
            at += wrapped(*index, data[batch + k])? * steps[batch + k];
        }
        out.push(at);
    }
    Ok((out, block))
}

/// The blocks of a value at positions.
pub fn taken(x: &Value, positions: &[usize], block: usize, shape: &[usize]) -> Result<Value> {
    rearrange!(&[x], shape, v => Ok::<_, Error>(take(v[0], positions, block)))
}

/// Blocks of a gradient added up at positions of a tensor of zeros.
pub fn added(g: &Float, positions: &[usize], block: usize, shape: &[usize]) -> Result<Float> {
    float::real!(g.dtype(), T => {
        let mut out = vec![<T as crate::kernels::real::Real>::ZERO; float::size(shape)?];
        add::<T>(&float::elements::<T>(g)?, positions, block, &mut out);
        float::tensor(out, shape, g.dtype())
    })
}

/// The gradient of the first input, where it is wanted; indices have none.
fn first(v: &Vjp<'_>, grad: impl FnOnce(&Float, &[usize]) -> Result<Float>) -> Result<Vec<Option<Float>>> {
    let mut grads = vec![None; v.inputs.len()];
    if let (Some(g), true) = (&v.grads[0], v.needs[0]) {
        grads[0] = Some(grad(g, super::input(v.inputs, 0)?.shape())?);
    }
    Ok(grads)
}

/// Entries of one axis at indices of any shape, which takes the place of the axis.
#[derive(Debug)]
struct Gather {
    axis: i64,
}

impl Gather {
    fn maps(&self, shape: &[usize], indices: &[i64]) -> Result<Vec<Vec<usize>>> {
        let axis = super::axis(self.axis, shape.len())?;
        let at = indices.iter().map(|i| wrapped(*i, shape[axis])).collect::<Result<Vec<_>>>()?;
        Ok((0..shape.len()).map(|a| if a == axis { at.clone() } else { (0..shape[a]).collect() }).collect())
    }

    /// The axis of the data and its constant indices, where these form a vector that can be rewritten.
    fn constant(&self, inputs: &[Option<&Fact>]) -> Option<(usize, Vec<usize>)> {
        let (data, indices) = (super::input(inputs, 0).ok()?, super::input(inputs, 1).ok()?);
        let shape = data.shape.as_ref()?;
        let axis = super::axis(self.axis, shape.len()).ok()?;
        let n = shape[axis].size()?;
        if indices.rank() != Some(1) {
            return None;
        }
        Some((axis, indices.ints()?.into_iter().map(|i| wrapped(i, n)).collect::<Result<_>>().ok()?))
    }
}

impl Operator for Gather {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (x, indices) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
        index_type(indices, 1)?;
        let Some(shape) = &x.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let axis = super::axis(self.axis, shape.len())?;
        let known = indices.ints();
        if let (Some(n), Some(ints)) = (shape[axis].size(), &known) {
            ints.iter().try_for_each(|i| wrapped(*i, n).map(drop))?;
        }
        let Some(at) = &indices.shape else { return Ok(vec![Fact::unranked(x.dtype)]) };
        if let (Some(dims), Some(ints), 1, 0 | 1) = (&x.dims, &known, shape.len(), at.len()) {
            let content = ints
                .iter()
                .map(|i| Ok(dims[wrapped(*i, dims.len())?].clone()))
                .collect::<Result<Vec<_>>>()?;
            return Ok(vec![Fact::of_dims(x.dtype, content, at.is_empty())]);
        }
        Ok(vec![Fact::new(x.dtype, [&shape[..axis], at, &shape[axis + 1..]].concat())])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.swap_remove(0);
        let (x, indices) = (super::input(inputs, 0)?, super::input(inputs, 1)?.ints()?);
        let maps = self.maps(x.shape(), &indices)?;
        // Nothing is filled in, so that any element will do.
        Ok(vec![
            rearrange!(&[x], &shape, v => Ok::<_, Error>(pick(v[0], x.shape(), &maps, &Default::default())))?,
        ])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        first(v, |g, shape| {
            let maps = self.maps(shape, &super::input(v.inputs, 1)?.ints()?)?;
            float::real!(g.dtype(), T => {
                float::tensor(unpick::<T>(&float::elements::<T>(g)?, shape, &maps), shape, g.dtype())
            })
        })
    }
    fn couple(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        let mut coupling =
            Coupling { reason: Some("the axis is read by index".into()), ..Coupling::default() };
        let shape = |i: usize| inputs.get(i).copied().flatten().and_then(|f| f.shape.as_ref());
        let (Some(data), Some(at)) = (shape(0), shape(1)) else { return coupling };
        let Ok(axis) = super::axis(self.axis, data.len()) else { return coupling };
        for a in (0..data.len()).filter(|a| *a != axis) {
            let out = if a < axis { a } else { a + at.len() - 1 };
            coupling.same((Port::In(0), a), (Port::Out(0), out));
        }
        match self.constant(inputs) {
            Some((_, indices)) => {
                // Runs of adjacent indices tie as slices do.
                let mut start = 0;
                while start < indices.len() {
                    let mut n = 1;
                    while start + n < indices.len() && indices[start + n] == indices[start] + n {
                        n += 1;
                    }
                    let units = (Pattern::from(indices[start]), Pattern::from(start));
                    coupling.link((Port::In(0), axis), units.0, (Port::Out(0), axis), units.1, n);
                    start += n;
                }
            }
            None => {
                for a in 0..at.len() {
                    coupling.same((Port::In(1), a), (Port::Out(0), axis + a));
                }
            }
        }
        coupling
    }
    fn resize(&self, inputs: &[Option<&Fact>], _: &[Fact], cut: &Cut) -> Result<Rewrite> {
        let Some((axis, indices)) = self.constant(inputs) else { return Ok(Rewrite::default()) };
        let (data, out) = (cut.of(Port::In(0), axis), cut.of(Port::Out(0), axis));
        if data.is_none() && out.is_none() {
            return Ok(Rewrite::default());
        }
        let places: Vec<usize> = match out {
            Some((_, kept)) => kept.to_vec(),
            None => (0..indices.len()).collect(),
        };
        let moved = |index: usize| match data {
            None => Ok(index as i64),
            Some((_, kept)) => kept.binary_search(&index).map(|at| at as i64).map_err(|_| {
                Error::internal("RESIZE-INDEX", "an index that is still read was cut").found(index)
            }),
        };
        let new: Vec<i64> = places.iter().map(|p| moved(indices[*p])).collect::<Result<_>>()?;
        let dtype = super::input(inputs, 1)?.dtype;
        let tensor = Tensor::from_vec(vec![new.len()], new)?.cast_to(dtype);
        Ok(Rewrite { inputs: vec![(1, tensor)], ..Rewrite::default() })
    }
}

/// One element for each index, found along an axis.
#[derive(Debug)]
struct GatherElements {
    axis: i64,
}

/// Checks that `indices` fit a tensor that they are applied to element by element, on all axes but one.
pub fn elementwise(x: &Fact, indices: &Fact, slot: usize, axis: i64) -> Result<()> {
    index_type(indices, slot)?;
    let (Some(shape), Some(at)) = (&x.shape, &indices.shape) else { return Ok(()) };
    let axis = super::axis(axis, shape.len())?;
    let fits = at.len() == shape.len()
        && (0..at.len())
            .all(|a| a == axis || !matches!((at[a].known(), shape[a].known()), (Some(i), Some(n)) if i > n));
    if !fits {
        return Err(Error::invalid("OP-INDEX", "indices do not fit the data")
            .field(format!("input[{slot}]"))
            .found(format!("{at:?}"))
            .limit(format!("{shape:?}")));
    }
    Ok(())
}

/// Ties every axis but `axis` of the ports, which all lie on each other.
pub fn couple_elementwise(axis: i64, ports: &[(Port, Option<&Fact>)]) -> Coupling {
    let mut coupling =
        Coupling { reason: Some("the axis is addressed by index".into()), ..Coupling::default() };
    let shapes: Option<Vec<(Port, &Vec<Dim>)>> =
        ports.iter().map(|(port, f)| Some((*port, f.as_ref()?.shape.as_ref()?))).collect();
    let Some(shapes) = shapes else { return coupling };
    let rank = shapes[0].1.len();
    let Ok(along) = super::axis(axis, rank) else { return coupling };
    for a in (0..rank).filter(|a| *a != along) {
        let sides: Option<Vec<(Port, usize, &Dim)>> =
            shapes.iter().map(|(port, s)| Some((*port, a, s.get(a)?))).collect();
        tie(&mut coupling, &sides.unwrap_or_default());
    }
    coupling
}

impl GatherElements {
    fn positions(&self, data: &[usize], indices: &Value) -> Result<Vec<usize>> {
        let axis = super::axis(self.axis, data.len())?;
        element_positions(data, indices.shape(), &indices.ints()?, axis)
    }
}

impl Operator for GatherElements {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (x, indices) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
        elementwise(x, indices, 1, self.axis)?;
        Ok(vec![Fact { dtype: x.dtype, ..indices.without_value() }])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.swap_remove(0);
        let x = super::input(inputs, 0)?;
        let positions = self.positions(x.shape(), super::input(inputs, 1)?)?;
        Ok(vec![taken(x, &positions, 1, &shape)?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        first(v, |g, shape| added(g, &self.positions(shape, super::input(v.inputs, 1)?)?, 1, shape))
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let ports = [
            (Port::In(0), inputs[0]),
            (Port::In(1), inputs.get(1).copied().flatten()),
            (Port::Out(0), outputs.first()),
        ];
        couple_elementwise(self.axis, &ports)
    }
}

/// Blocks named by index tuples.
#[derive(Debug)]
struct GatherNd {
    batch: usize,
}

/// Checks index tuples against the data: how many axes a tuple addresses.
pub fn tuples(x: &Fact, indices: &Fact, batch: usize) -> Result<Option<usize>> {
    index_type(indices, 1)?;
    let (Some(data), Some(at)) = (&x.shape, &indices.shape) else { return Ok(None) };
    let invalid = |what: &str| {
        Error::invalid("OP-INDEX", what.to_string())
            .field("input[1]")
            .found(format!("{at:?}"))
            .limit(format!("data {data:?}, {batch} batch axes"))
    };
    let Some(depth) = at.last() else { return Err(invalid("index tuples need an axis")) };
    if batch >= at.len() || batch > data.len() {
        return Err(invalid("there are fewer axes than batch axes"));
    }
    if data[..batch]
        .iter()
        .zip(at)
        .any(|(a, b)| matches!((a.known(), b.known()), (Some(a), Some(b)) if a != b))
    {
        return Err(invalid("the batch axes differ"));
    }
    match depth.known() {
        None => Ok(None),
        Some(n) if n < 0 || n as usize > data.len() - batch => Err(invalid("index tuples are too long")),
        Some(n) => Ok(Some(n as usize)),
    }
}

impl Operator for GatherNd {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (x, indices) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
        let depth = tuples(x, indices, self.batch)?;
        Ok(vec![match (depth, &x.shape, &indices.shape) {
            (Some(depth), Some(data), Some(at)) => {
                Fact::new(x.dtype, [&at[..at.len() - 1], &data[self.batch + depth..]].concat())
            }
            _ => Fact::unranked(x.dtype),
        }])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.swap_remove(0);
        let (x, indices) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
        let (at, block) = block_positions(x.shape(), indices.shape(), &indices.ints()?, self.batch)?;
        Ok(vec![taken(x, &at, block, &shape)?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        first(v, |g, shape| {
            let indices = super::input(v.inputs, 1)?;
            let (at, block) = block_positions(shape, indices.shape(), &indices.ints()?, self.batch)?;
            added(g, &at, block, shape)
        })
    }
    fn couple(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        let mut coupling =
            Coupling { reason: Some("the axis is read by index".into()), ..Coupling::default() };
        let (Ok(x), Ok(indices)) = (super::input(inputs, 0), super::input(inputs, 1)) else {
            return coupling;
        };
        let Ok(Some(depth)) = tuples(x, indices, self.batch) else { return coupling };
        let (Some(data), Some(at)) = (&x.shape, &indices.shape) else { return coupling };
        for a in 0..at.len() - 1 {
            coupling.same((Port::In(1), a), (Port::Out(0), a));
            if a < self.batch {
                coupling.same((Port::In(0), a), (Port::Out(0), a));
            }
        }
        for a in self.batch + depth..data.len() {
            let out = a - self.batch - depth + at.len() - 1;
            coupling.same((Port::In(0), a), (Port::Out(0), out));
        }
        coupling
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ints(shape: &[usize], v: &[i64]) -> Tensor {
        Tensor::from_vec(shape.to_vec(), v.to_vec()).unwrap()
    }

    #[test]
    fn a_shape_is_gathered_symbolically() {
        let shape =
            Fact::of_dims(DType::I64, vec![Dim::symbol("n"), Dim::from(3i64), Dim::symbol("w")], false);
        let gather = Gather { axis: 0 };
        let at = |t: Tensor| gather.infer(&[Some(&shape), Some(&Fact::constant(&t))]);
        assert_eq!(format!("{:?}", at(Tensor::scalar(-1i64)).unwrap()[0].dims), "Some([w])");
        assert_eq!(at(Tensor::scalar(-1i64)).unwrap()[0].rank(), Some(0));
        assert_eq!(format!("{:?}", at(ints(&[2], &[2, 0])).unwrap()[0].dims), "Some([w, n])");
        assert_eq!(at(Tensor::scalar(3i64)).unwrap_err().code(), "OP-INDEX");
    }

    #[test]
    fn constant_indices_tie_unit_by_unit_and_are_rewritten() {
        let x = Fact::fixed(DType::F32, &[2, 6]);
        let order = ints(&[5], &[4, 5, 0, -5, 4]);
        let indices = Fact::constant(&order);
        let inputs = [Some(&x), Some(&indices)];
        let gather = Gather { axis: 1 };
        let out = gather.infer(&inputs).unwrap();
        let coupling = gather.couple(&inputs, &out);
        // (data index, output index) of every unit on the gathered axis.
        let mut pairs: Vec<(usize, usize)> = coupling
            .links
            .iter()
            .filter(|l| !l.same)
            .flat_map(|l| (0..l.count).map(|u| (l.a_units.start + u, l.b_units.start + u)))
            .collect();
        pairs.sort_by_key(|p| p.1);
        assert_eq!(pairs, [(4, 0), (5, 1), (0, 2), (1, 3), (4, 4)]);
        // Unit 4 goes, and with it both outputs that read it.
        let cut = Cut {
            kept: vec![((Port::In(0), 1), 6, vec![0, 1, 2, 3, 5]), ((Port::Out(0), 1), 5, vec![1, 2, 3])],
        };
        let rewrite = gather.resize(&inputs, &out, &cut).unwrap();
        assert_eq!(rewrite.inputs[0].1.to_i64s().unwrap(), [4, 0, 1]);
        let data: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let whole = Tensor::from_vec(vec![2, 6], data).unwrap();
        let run = |x: &Tensor, at: &Tensor| {
            let (x, at) = (Value::load(x).unwrap(), Value::load(at).unwrap());
            gather.eval(&[Some(&x), Some(&at)]).unwrap().remove(0).to_tensor().unwrap()
        };
        let before = run(&whole, &order).selected(1, &[1, 2, 3]).to_f32s().unwrap();
        let after = run(&whole.selected(1, &[0, 1, 2, 3, 5]), &rewrite.inputs[0].1);
        assert_eq!(before, after.to_f32s().unwrap());
    }

    #[test]
    fn an_embedding_ties_its_width_and_its_positions() {
        let table = Fact::fixed(DType::F32, &[100, 8]);
        let ids = Fact::new(DType::I64, vec![Dim::symbol("batch"), Dim::symbol("seq")]);
        let gather = Gather { axis: 0 };
        let out = gather.infer(&[Some(&table), Some(&ids)]).unwrap();
        assert_eq!(format!("{:?}", out[0].shape), "Some([batch, seq, 8])");
        let coupling = gather.couple(&[Some(&table), Some(&ids)], &out);
        let ties: Vec<_> = coupling.links.iter().map(|l| (l.a, l.b)).collect();
        assert_eq!(
            ties,
            [
                ((Port::In(0), 1), (Port::Out(0), 2)),
                ((Port::In(1), 0), (Port::Out(0), 0)),
                ((Port::In(1), 1), (Port::Out(0), 1)),
            ]
        );
    }

    #[test]
    fn indices_outside_are_errors_for_every_operator() {
        let x: Value = ints(&[2, 2], &[1, 2, 3, 4]).into();
        for bad in [2i64, -3, i64::MAX, i64::MIN] {
            let at: Value = ints(&[1, 1], &[bad]).into();
            let ops: [&dyn Operator; 3] =
                [&Gather { axis: 1 }, &GatherElements { axis: 0 }, &GatherNd { batch: 0 }];
            for op in ops {
                assert_eq!(op.eval(&[Some(&x), Some(&at)]).unwrap_err().code(), "OP-INDEX", "{op:?}");
            }
        }
    }
}
