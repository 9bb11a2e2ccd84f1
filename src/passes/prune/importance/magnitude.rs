//! Scores of units from the magnitudes of their weights.
//!
//! A member of a group is an axis of a float weight of rank two or more on which its units lie (rank
//! one, such as biases and norms, is cut along but has no say, unless a group has nothing else). With
//! p = 1 or 2, a unit's score is the mean over the members of the sum of |w|^p over all elements at the
//! unit's indices of that axis (Torch-Pruning's group magnitude with reduction `mean`). A convolution
//! that only a BatchNormalization reads is judged as if the two were folded: each output channel's
//! weights count times |scale| / sqrt(variance + epsilon), without which their magnitude means nothing.

use super::gates::{group_of, members};
use super::{Criterion, Source};
use crate::error::{Error, Result};
use crate::graph::constants::Constants;
use crate::graph::coupling::Coupled;
use crate::graph::{Graph, Uses, ValueId};
use crate::tensor::Tensor;

/// Scores by unit.
pub(super) fn scores(source: &Source<'_>, criterion: Criterion) -> Result<Vec<f64>> {
    let (graph, coupled) = (source.graph, source.coupled);
    let constants = Constants::of(graph);
    let uses = graph.uses();
    let rank = |v: ValueId| constants.get(v).map_or(0, |t| t.shape().len());
    let members = members(source);
    let group_of = group_of(source);
    let mut sums = vec![0f64; coupled.units()];
    source.monitor.phase("prune: look at weights", Some(members.len() as u64));
    for (done, (v, axes)) in members.iter().enumerate() {
        source.monitor.check()?;
        let Some(tensor) = constants.get(*v) else { continue };
        let at = |e: Error| e.field(format!("weight \"{}\"", graph.value_name(*v)));
        let fold = folded(graph, &constants, &uses, *v)?;
        let elements = tensor.to_f32s().map_err(at)?;
        finite(graph, *v, &elements)?;
        let powers = powers(elements, tensor, criterion, fold.as_ref());
        for axis in axes {
            let vector = tensor.shape().len() < 2;
            let along = sum_along(&powers, tensor.shape(), *axis);
            for (unit, sum) in coupled.on(*v, *axis).into_iter().flatten().zip(along) {
                // A vector beside matrices of one group may be all that another group has.
                if let Some(u) = unit
                    && source.ranked[group_of[u]]
                    && (!vector || only_vectors(coupled, group_of[u], &rank))
                {
                    sums[u] += sum;
                }
            }
        }
        source.monitor.progress(done as u64 + 1);
    }
    for group in coupled.groups() {
        let vectors = only_vectors(coupled, group.id, &rank);
        let voices = group.weights().filter(|p| vectors || rank(p.value) >= 2).count().max(1);
        sums[group.numbers()].iter_mut().for_each(|s| *s /= voices as f64);
    }
    Ok(sums)
}

fn only_vectors(coupled: &Coupled, group: usize, rank: &dyn Fn(ValueId) -> usize) -> bool {
    coupled.groups()[group].weights().all(|p| rank(p.value) < 2)
}

/// The error of a weight with an element that is not finite, where it has one.
pub(super) fn finite(graph: &Graph, v: ValueId, w: &[f32]) -> Result<()> {
    match w.iter().find(|x| !x.is_finite()) {
        None => Ok(()),
        Some(bad) => Err(Error::invalid("PRUNE-WEIGHT", "the weight holds an element that is not finite")
            .field(format!("weight \"{}\"", graph.value_name(v)))
            .found(bad)
            .hint("`tinsmith inspect --weights` lists damaged weights; export the model again")),
    }
}

/// |w|^p of every element, each index of the folded axis times its factor.
fn powers(
    mut w: Vec<f32>,
    tensor: &Tensor,
    criterion: Criterion,
    fold: Option<&(usize, Vec<f64>)>,
) -> Vec<f32> {
    if let Some((axis, factors)) = fold {
        let inner: usize = tensor.shape()[axis + 1..].iter().product();
        let size = tensor.shape()[*axis];
        for (i, line) in w.chunks_mut(inner.max(1)).enumerate() {
            let f = factors[i % size] as f32;
            line.iter_mut().for_each(|x| *x *= f);
        }
    }
    for x in &mut w {
        *x = match criterion {
            Criterion::L1 => x.abs(),
            _ => *x * *x,
        };
    }
    w
}

/// Sums over all axes but one.
fn sum_along(v: &[f32], shape: &[usize], axis: usize) -> Vec<f64> {
    let inner: usize = shape[axis + 1..].iter().product();
    let mut out = vec![0f64; shape[axis]];
    for (i, line) in v.chunks(inner.max(1)).enumerate() {
        out[i % shape[axis].max(1)] += line.iter().map(|x| f64::from(*x)).sum::<f64>();
    }
    out
}

/// The channel axis of a convolution's weight and |scale| / sqrt(variance + epsilon) of each channel,
/// where a BatchNormalization is all that reads the convolution.
fn folded(
    graph: &Graph,
    constants: &Constants<'_>,
    uses: &Uses,
    weight: ValueId,
) -> Result<Option<(usize, Vec<f64>)>> {
    let [(conv, 1)] = uses.consumers(weight) else { return Ok(None) };
    let conv = graph.node(*conv);
    let Some(Some(y)) = conv.outputs.first().filter(|_| conv.is("Conv")) else { return Ok(None) };
    let ([(norm, 0)], false) = (uses.consumers(*y), graph.outputs().contains(y)) else { return Ok(None) };
    let norm = graph.node(*norm);
    let input = |slot: usize| norm.inputs.get(slot).copied().flatten().and_then(|v| constants.get(v));
    let (true, Some(scale), Some(variance)) = (norm.is("BatchNormalization"), input(1), input(4)) else {
        return Ok(None);
    };
    let epsilon = f64::from(norm.attributes.float("epsilon", 1e-5)?);
    let factors: Vec<f64> = scale
        .to_f64s()?
        .iter()
        .zip(variance.to_f64s()?)
        .map(|(s, v)| s.abs() / (v.max(0.0) + epsilon).sqrt())
        .collect();
    let channels = constants.get(weight).and_then(|t| t.shape().first().copied());
    Ok((channels == Some(factors.len())).then_some((0, factors)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_summed_by_axis_and_power() {
        let w = Tensor::from_vec(vec![2, 3], vec![1f32, -2., 3., 0., 5., -6.]).unwrap();
        let powers =
            |criterion, fold: Option<&(usize, Vec<f64>)>| powers(w.to_f32s().unwrap(), &w, criterion, fold);
        let l1 = powers(Criterion::L1, None);
        assert_eq!(sum_along(&l1, &[2, 3], 0), [6., 11.]);
        assert_eq!(sum_along(&l1, &[2, 3], 1), [1., 7., 9.]);
        let l2 = powers(Criterion::L2, Some(&(0, vec![2.0, 1.0])));
        assert_eq!(sum_along(&l2, &[2, 3], 0), [56., 61.]);
    }
}
