//! Einsum: products summed over labelled axes. Operands are combined from left to right, each pair as
//! one batched matrix product (or an element-wise product where nothing is summed); a gradient is an
//! einsum again.

use super::{Attributes, Coupling, Dim, Fact, Operator, Port, Spec, Vjp, broadcast, elements, float};
use super::{matmul, movement};
use crate::error::{Error, Result};
use crate::kernels::index::{add, take};
use crate::kernels::real::Real;
use crate::tensor::{DType, Value, strides};
use candle_core::Tensor as Float;
use std::sync::Arc;

/// Claims of this family.
pub const SPECS: &[Spec] = &[Spec::new("Einsum", 12, DType::FLOATS, |a, _| Einsum::parse(a))];

/// One side of the equation, as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Label(u8),
    Rest,
}

#[derive(Debug)]
struct Einsum {
    terms: Vec<Vec<Token>>,
    output: Vec<Token>,
}

/// Numbers of the labels on every axis; the axes of `...` have labels of their own.
struct Labels {
    inputs: Vec<Vec<usize>>,
    output: Vec<usize>,
    count: usize,
}

fn wrong(what: &str, found: impl std::fmt::Display) -> Error {
    Error::invalid("OP-EINSUM", what.to_string()).field("attribute equation").found(found)
}

fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut out = Vec::new();
    let mut rest = text.trim().as_bytes();
    while let [first, tail @ ..] = rest {
        if rest.starts_with(b"...") {
            if out.contains(&Token::Rest) {
                return Err(wrong("a term has two ellipses", text));
            }
            out.push(Token::Rest);
            rest = &rest[3..];
            continue;
        }
        match first {
            b' ' => {}
            c if c.is_ascii_alphabetic() => out.push(Token::Label(*c)),
            _ => return Err(wrong("a term holds something that is no label", text)),
        }
        rest = tail;
    }
    Ok(out)
}

impl Einsum {
    fn parse(a: &Attributes) -> Result<Arc<dyn Operator>> {
        let equation = a.str("equation", "")?;
        let (left, right) = match equation.split_once("->") {
            Some((left, right)) => (left, Some(right)),
            None => (equation.as_str(), None),
        };
        let terms = left.split(',').map(tokens).collect::<Result<Vec<_>>>()?;
        let all: Vec<Token> = terms.iter().flatten().copied().collect();
        let times = |t: &Token| all.iter().filter(|x| *x == t).count();
        let output = match right {
            Some(right) => tokens(right)?,
            None => {
                // All labels that occur once, in alphabetical order, behind the ellipsis.
                let mut once: Vec<u8> = all
                    .iter()
                    .filter_map(|t| match t {
                        Token::Label(c) if times(t) == 1 => Some(*c),
                        _ => None,
                    })
                    .collect();
                once.sort_unstable();
                let rest = all.contains(&Token::Rest).then_some(Token::Rest);
                rest.into_iter().chain(once.into_iter().map(Token::Label)).collect()
            }
        };
        for (i, t) in output.iter().enumerate() {
            if output[..i].contains(t) {
                return Err(wrong("the result names a label twice", &equation));
            }
            if !all.contains(t) {
                return Err(wrong("the result names a label that no operand has", &equation));
            }
        }
        if all.contains(&Token::Rest) && !output.contains(&Token::Rest) {
            return Err(wrong("the result leaves out the axes of the ellipsis", &equation));
        }
        Ok(Arc::new(Einsum { terms, output }))
    }

    fn labels(&self, ranks: &[usize]) -> Result<Labels> {
        if ranks.len() != self.terms.len() {
            return Err(
                wrong("the equation has another number of operands", self.terms.len()).limit(ranks.len())
            );
        }
        let mut names: Vec<u8> = Vec::new();
        let mut number = |c: u8| match names.iter().position(|n| *n == c) {
            Some(at) => at,
            None => {
                names.push(c);
                names.len() - 1
            }
        };
        // First all names, so that the numbers of the ellipsis come behind.
        let named: Vec<Vec<Option<usize>>> = self
            .terms
            .iter()
            .chain([&self.output])
            .map(|term| {
                term.iter()
                    .map(|t| match t {
                        Token::Label(c) => Some(number(*c)),
                        Token::Rest => None,
                    })
                    .collect()
            })
            .collect();
        let base = names.len();
        let mut widest = 0;
        let mut rests = Vec::with_capacity(ranks.len());
        for (i, (term, rank)) in self.terms.iter().zip(ranks).enumerate() {
            let labels = term.iter().filter(|t| **t != Token::Rest).count();
            let open = term.contains(&Token::Rest);
            if labels > *rank || (!open && labels != *rank) {
                return Err(wrong("an operand has another rank than its term", labels)
                    .field(format!("input[{i}]"))
                    .limit(rank));
            }
            rests.push(rank - labels);
            widest = widest.max(rank - labels);
        }
        rests.push(widest);
        // The axes of the ellipsis lie on each other from the right.
        let mut expanded: Vec<Vec<usize>> = named
            .iter()
            .zip(rests)
            .map(|(term, rest)| {
                term.iter()
                    .flat_map(|t| match t {
                        Some(n) => *n..*n + 1,
                        None => base + widest - rest..base + widest,
                    })
                    .collect()
            })
            .collect();
        let output = expanded.pop().unwrap_or_default();
        Ok(Labels { inputs: expanded, output, count: base + widest })
    }

    /// Labels and the size of each, broadcast over the operands.
    fn sizes(&self, shapes: &[&[Dim]]) -> Result<(Labels, Vec<Dim>)> {
        let ranks: Vec<usize> = shapes.iter().map(|s| s.len()).collect();
        let labels = self.labels(&ranks)?;
        let mut sizes = vec![Dim::from(1i64); labels.count];
        for (term, shape) in labels.inputs.iter().zip(shapes) {
            for (label, d) in term.iter().zip(shape.iter()) {
                sizes[*label] =
                    broadcast::symbolic(&[&sizes[*label..*label + 1], std::slice::from_ref(d)])?.remove(0);
            }
        }
        Ok((labels, sizes))
    }

    fn fixed(&self, shapes: &[&[usize]]) -> Result<(Labels, Vec<usize>)> {
        let dims: Vec<Vec<Dim>> = shapes.iter().map(|s| s.iter().map(|n| Dim::from(*n)).collect()).collect();
        let refs: Vec<&[Dim]> = dims.iter().map(Vec::as_slice).collect();
        let (labels, sizes) = self.sizes(&refs)?;
        let sizes = sizes.iter().map(|d| d.size().unwrap_or(0)).collect();
        Ok((labels, sizes))
    }
}

/// A tensor whose axes carry these labels, each once, at its full size.
#[derive(Clone)]
struct Operand {
    tensor: Float,
    labels: Vec<usize>,
}

/// Distinct labels in order of first occurrence.
fn distinct(labels: &[usize]) -> Vec<usize> {
    let mut out: Vec<usize> = Vec::new();
    labels.iter().for_each(|l| {
        if !out.contains(l) {
            out.push(*l)
        }
    });
    out
}

/// Offsets of the diagonal along repeated labels, and its shape.
fn diagonal(shape: &[usize], labels: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let steps = strides(shape);
    let names = distinct(labels);
    let (mut at, mut out) = (vec![0usize], Vec::with_capacity(names.len()));
    for name in names {
        let axes = || labels.iter().enumerate().filter(move |(_, l)| **l == name).map(|(a, _)| a);
        let n = axes().map(|a| shape[a]).max().unwrap_or(1);
        // An axis of size one is broadcast along the others.
        let step: usize = axes().filter(|a| shape[*a] > 1).map(|a| steps[a]).sum();
        at = at.iter().flat_map(|o| (0..n).map(move |i| o + i * step)).collect();
        out.push(n);
    }
    (at, out)
}

fn permuted(t: &Float, perm: &[usize]) -> Result<Float> {
    if perm.iter().enumerate().all(|(i, p)| i == *p) {
        return Ok(t.clone());
    }
    Ok(movement::permuted(&t.clone().into(), perm)?.float()?.clone())
}

impl Operand {
    /// An input in the type it is computed in, on its diagonal, broadcast to the sizes.
    fn new(tensor: &Float, labels: &[usize], sizes: &[usize]) -> Result<Operand> {
        let wide = match tensor.dtype() {
            candle_core::DType::F64 => tensor.clone(),
            _ => tensor.to_dtype(candle_core::DType::F32)?,
        };
        let names = distinct(labels);
        let tensor = if names.len() == labels.len() {
            wide
        } else {
            let (at, shape) = diagonal(wide.dims(), labels);
            float::real!(wide.dtype(), T => {
                float::tensor(take::<T>(&float::elements::<T>(&wide)?, &at, 1), &shape, wide.dtype())
            })?
        };
        let full: Vec<usize> = names.iter().map(|l| sizes[*l]).collect();
        let tensor = if tensor.dims() == full { tensor } else { tensor.broadcast_as(full)?.contiguous()? };
        Ok(Operand { tensor, labels: names })
    }

    /// Summed over the labels that are not wanted.
    fn only(self, wanted: impl Fn(usize) -> bool) -> Result<Operand> {
        let axes: Vec<usize> = (0..self.labels.len()).filter(|a| !wanted(self.labels[*a])).collect();
        if axes.is_empty() {
            return Ok(self);
        }
        let labels = self.labels.iter().copied().filter(|l| wanted(*l)).collect();
        Ok(Operand { tensor: self.tensor.sum(axes)?, labels })
    }

    /// Axes in this order of labels, which are all of them.
    fn ordered(&self, labels: &[usize]) -> Result<Float> {
        let perm: Vec<usize> =
            labels.iter().filter_map(|l| self.labels.iter().position(|x| x == l)).collect();
        permuted(&self.tensor, &perm)
    }
}

/// The product of two operands, summed over common labels that are not wanted any more.
fn pair(a: Operand, b: Operand, sizes: &[usize], wanted: impl Fn(usize) -> bool) -> Result<Operand> {
    let (in_a, in_b) = (a.labels.clone(), b.labels.clone());
    let a = a.only(|l| wanted(l) || in_b.contains(&l))?;
    let b = b.only(|l| wanted(l) || in_a.contains(&l))?;
    let pick = |from: &[usize], test: &dyn Fn(usize) -> bool| -> Vec<usize> {
        from.iter().copied().filter(|l| test(*l)).collect()
    };
    let batch = pick(&a.labels, &|l| b.labels.contains(&l) && wanted(l));
    let inner = pick(&a.labels, &|l| b.labels.contains(&l) && !wanted(l));
    let rows = pick(&a.labels, &|l| !b.labels.contains(&l));
    let columns = pick(&b.labels, &|l| !a.labels.contains(&l));
    let count = |labels: &[usize]| labels.iter().map(|l| sizes[*l]).product::<usize>();
    let left = a.ordered(&[batch.as_slice(), &rows, &inner].concat())?;
    let right = b.ordered(&[batch.as_slice(), &inner, &columns].concat())?;
    let labels = [batch.as_slice(), &rows, &columns].concat();
    let shape: Vec<usize> = labels.iter().map(|l| sizes[*l]).collect();
    float::size(&shape)?;
    let (n, m, k, c) = (count(&batch), count(&rows), count(&inner), count(&columns));
    let tensor = if inner.is_empty() {
        left.reshape((n, m, 1))?.broadcast_mul(&right.reshape((n, 1, c))?)?
    } else {
        matmul::matmul(&left.reshape((n, m, k))?, &right.reshape((n, k, c))?)?
    };
    Ok(Operand { tensor: tensor.reshape(shape)?, labels })
}

/// The einsum of operands into a tensor with axes `output`, which some operand has.
fn contract(operands: Vec<Operand>, output: &[usize], sizes: &[usize]) -> Result<Float> {
    let later: Vec<Vec<usize>> = operands.iter().map(|o| o.labels.clone()).collect();
    let mut rest = operands.into_iter().enumerate();
    let Some((_, mut sum)) = rest.next() else {
        return Err(Error::invalid("OP-INPUT", "an einsum needs an operand"));
    };
    for (i, next) in rest {
        sum = pair(sum, next, sizes, |l| {
            output.contains(&l) || later[i + 1..].iter().any(|labels| labels.contains(&l))
        })?;
    }
    sum.only(|l| output.contains(&l))?.ordered(output)
}

impl Operator for Einsum {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let dtype = elements::common_type(inputs)?;
        let shapes: Option<Vec<&[Dim]>> = inputs.iter().map(|f| f.and_then(|f| f.shape.as_deref())).collect();
        let Some(shapes) = shapes else { return Ok(vec![Fact::unranked(dtype)]) };
        let (labels, sizes) = self.sizes(&shapes)?;
        Ok(vec![Fact::new(dtype, labels.output.iter().map(|l| sizes[*l].clone()).collect())])
    }
    fn macs(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Option<Dim> {
        let shapes: Vec<&[Dim]> =
            inputs.iter().map(|f| f.and_then(|f| f.shape.as_deref())).collect::<Option<_>>()?;
        let (labels, sizes) = self.sizes(&shapes).ok()?;
        let mut held = distinct(labels.inputs.first()?);
        let mut total = Dim::from(0i64);
        for i in 1..labels.inputs.len() {
            let next = distinct(&labels.inputs[i]);
            let wanted =
                |l: &usize| labels.output.contains(l) || labels.inputs[i + 1..].iter().any(|t| t.contains(l));
            // What only one side has and nobody wants is summed before.
            let mut step: Vec<usize> =
                held.iter().copied().filter(|l| wanted(l) || next.contains(l)).collect();
            step.extend(next.iter().copied().filter(|l| !held.contains(l) && wanted(l)));
            total = total + Dim::product(step.iter().map(|l| &sizes[*l]));
            held = step.into_iter().filter(wanted).collect();
        }
        Some(total)
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        float::shapes(self, inputs)?;
        let tensors: Vec<&Float> =
            (0..inputs.len()).map(|i| super::input(inputs, i)?.float()).collect::<Result<_>>()?;
        let shapes: Vec<&[usize]> = tensors.iter().map(|t| t.dims()).collect();
        let (labels, sizes) = self.fixed(&shapes)?;
        let operands = tensors
            .iter()
            .zip(&labels.inputs)
            .map(|(t, l)| Operand::new(t, l, &sizes))
            .collect::<Result<_>>()?;
        let y = contract(operands, &labels.output, &sizes)?;
        Ok(vec![y.to_dtype(tensors[0].dtype())?.into()])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let mut grads = vec![None; v.inputs.len()];
        let Some(g) = &v.grads[0] else { return Ok(grads) };
        let tensors: Vec<&Float> =
            (0..v.inputs.len()).map(|i| super::input(v.inputs, i)?.float()).collect::<Result<_>>()?;
        let shapes: Vec<&[usize]> = tensors.iter().map(|t| t.dims()).collect();
        let (labels, sizes) = self.fixed(&shapes)?;
        for i in (0..tensors.len()).filter(|i| v.needs[*i]) {
            let mut operands = vec![Operand::new(g, &labels.output, &sizes)?];
            for j in (0..tensors.len()).filter(|j| *j != i) {
                operands.push(Operand::new(tensors[j], &labels.inputs[j], &sizes)?);
            }
            // Labels that only this operand has were summed: the gradient is the same all along them.
            let own = distinct(&labels.inputs[i]);
            let seen: Vec<usize> =
                own.iter().copied().filter(|l| operands.iter().any(|o| o.labels.contains(l))).collect();
            let found = contract(operands, &seen, &sizes)?;
            let kept: Vec<usize> = own.iter().map(|l| if seen.contains(l) { sizes[*l] } else { 1 }).collect();
            let full: Vec<usize> = own.iter().map(|l| sizes[*l]).collect();
            let spread = found.reshape(kept)?.broadcast_as(full)?.contiguous()?;
            let (at, shape) = diagonal(tensors[i].dims(), &labels.inputs[i]);
            let spread = broadcast::sum_to(&spread, &shape)?;
            let grad = if own.len() == labels.inputs[i].len() {
                spread
            } else {
                float::real!(spread.dtype(), T => {
                    let mut out = vec![T::ZERO; tensors[i].elem_count()];
                    add::<T>(&float::elements::<T>(&spread)?, &at, 1, &mut out);
                    float::tensor(out, tensors[i].dims(), spread.dtype())
                })?
            };
            grads[i] = Some(grad.to_dtype(tensors[i].dtype())?);
        }
        Ok(grads)
    }
    /// Axes with one label are one axis; a label that is summed in one operand alone is free.
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling = Coupling::default();
        let shapes: Option<Vec<&[Dim]>> = inputs.iter().map(|f| f.and_then(|f| f.shape.as_deref())).collect();
        let Some((Ok((labels, sizes)), shapes)) = shapes.map(|s| (self.sizes(&s), s)) else {
            return coupling;
        };
        for (label, size) in sizes.iter().enumerate() {
            let mut ports: Vec<(Port, usize)> = Vec::new();
            for (i, term) in labels.inputs.iter().enumerate() {
                for (axis, _) in term.iter().enumerate().filter(|(_, l)| **l == label) {
                    if shapes[i][axis].is(1) && !size.is(1) {
                        coupling.free.push((Port::In(i), axis));
                    } else {
                        ports.push((Port::In(i), axis));
                    }
                }
            }
            if let (Some(axis), Some(_)) = (labels.output.iter().position(|l| *l == label), outputs.first()) {
                ports.push((Port::Out(0), axis));
            }
            match ports.as_slice() {
                [] => {}
                [only] => coupling.free.push(*only),
                [first, rest @ ..] => rest.iter().for_each(|p| coupling.same(*first, *p)),
            }
        }
        coupling
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Attr;

    fn op(equation: &str) -> Result<Arc<dyn Operator>> {
        Einsum::parse(&Attributes::new().with("equation", Attr::Str(equation.into())))
    }

    fn run(equation: &str, inputs: &[(&[usize], &[f64])]) -> (Vec<usize>, Vec<f64>) {
        let values: Vec<Value> = inputs
            .iter()
            .map(|(s, v)| Float::from_vec(v.to_vec(), *s, &candle_core::Device::Cpu).unwrap().into())
            .collect();
        let refs: Vec<Option<&Value>> = values.iter().map(Some).collect();
        let y = op(equation).unwrap().eval(&refs).unwrap().remove(0).to_tensor().unwrap();
        (y.shape().to_vec(), y.to_f64s().unwrap())
    }

    #[test]
    fn the_common_forms_follow_their_definition() {
        let m: (&[usize], &[f64]) = (&[2, 2], &[1., 2., 3., 4.]);
        let v: (&[usize], &[f64]) = (&[2], &[10., 100.]);
        assert_eq!(run("ij,jk->ik", &[m, m]).1, [7., 10., 15., 22.]);
        assert_eq!(run("ij,j->i", &[m, v]), (vec![2], vec![210., 430.]));
        assert_eq!(run("ij->ji", &[m]).1, [1., 3., 2., 4.]);
        assert_eq!(run("ij->", &[m]), (vec![], vec![10.]));
        assert_eq!(run("ii->i", &[m]).1, [1., 4.]);
        assert_eq!(run("ii", &[m]), (vec![], vec![5.]));
        assert_eq!(run("i,j->ij", &[v, v]).1, [100., 1000., 1000., 10000.]);
        assert_eq!(run("ij,ij->ij", &[m, m]).1, [1., 4., 9., 16.]);
        assert_eq!(run("i , ij , j", &[v, m, v]), (vec![], vec![100. + 2000. + 3000. + 40000.]));
        assert_eq!(run("ba", &[m]).1, [1., 3., 2., 4.]);
        let cube: (&[usize], &[f64]) = (&[2, 1, 2], &[1., 2., 3., 4.]);
        assert_eq!(run("...j,j->...", &[cube, v]), (vec![2, 1], vec![210., 430.]));
        assert_eq!(run("...i,...j->...ij", &[cube, v]).0, [2, 1, 2, 2]);
        // A size of one is broadcast against the other operand, the ellipsis from the right.
        let row: (&[usize], &[f64]) = (&[1, 2], &[1., 2.]);
        assert_eq!(run("ij,ij->i", &[m, row]).1, [5., 11.]);
        assert_eq!(run("...,...", &[m, v]).1, [10., 200., 30., 400.]);
    }

    #[test]
    fn equations_that_cannot_be_are_refused() {
        for bad in ["ij->ik", "i->ii", "i1->i", "...i->i", "......->...", "a b->ab-"] {
            assert_eq!(op(bad).unwrap_err().code(), "OP-EINSUM", "{bad}");
        }
        let fact = |s: &[usize]| Fact::fixed(DType::F32, s);
        let infer = |equation, facts: &[Fact]| {
            let refs: Vec<Option<&Fact>> = facts.iter().map(Some).collect();
            op(equation).unwrap().infer(&refs)
        };
        assert_eq!(infer("ij,j", &[fact(&[2, 3])]).unwrap_err().code(), "OP-EINSUM");
        assert_eq!(infer("ij", &[fact(&[2])]).unwrap_err().code(), "OP-EINSUM");
        assert_eq!(infer("ij,jk", &[fact(&[2, 3]), fact(&[4, 5])]).unwrap_err().code(), "OP-BROADCAST");
    }

    #[test]
    fn attention_scores_couple_heads_and_count_their_products() {
        let shape = |n: &str| {
            let dims = vec![Dim::symbol("b"), Dim::symbol(n), Dim::from(4usize), Dim::from(8usize)];
            Fact::new(DType::F32, dims)
        };
        let (q, k) = (shape("q"), shape("k"));
        let op = op("bqhd,bkhd->bhqk").unwrap();
        let out = op.infer(&[Some(&q), Some(&k)]).unwrap();
        assert_eq!(format!("{:?}", out[0].shape), "Some([b, 4, q, k])");
        assert_eq!(op.macs(&[Some(&q), Some(&k)], &out).unwrap().to_string(), "32*b*k*q");
        let coupling = op.couple(&[Some(&q), Some(&k)], &out);
        let tied = |a, b| coupling.links.iter().any(|l| l.a == a && l.b == b && l.same);
        assert!(tied((Port::In(0), 2), (Port::In(1), 2)) && tied((Port::In(0), 2), (Port::Out(0), 1)));
        assert!(tied((Port::In(0), 3), (Port::In(1), 3)));
        assert!(coupling.free.is_empty());
    }
}
