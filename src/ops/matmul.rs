//! Matrix products: MatMul, Gemm.

use super::float::{self, Elements, Float, Scalar, real};
use super::{Attributes, Contraction, Coupling, Dim, Fact, Operator, Port, Spec, Vjp, broadcast};
use crate::error::{Error, Result};
use crate::kernels::gemm::{Matrix, batched, produced, product};
use crate::tensor::{DType, Value};
use std::sync::Arc;

const FLOATS: &[DType] = &[DType::F32, DType::F64, DType::F16, DType::BF16];

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec { domain: "", name: "MatMul", opsets: (1, super::LAST_OPSET), dtypes: FLOATS, parse: MatMul::parse },
    Spec { domain: "", name: "Gemm", opsets: (7, super::LAST_OPSET), dtypes: FLOATS, parse: Gemm::parse },
];

/// Product of the last two axes, the others broadcast. Strided views are read in place.
pub fn matmul(a: &Float, b: &Float) -> Result<Float> {
    real!(a.dtype(), T => typed::<T>(a, b))
}

fn typed<T: Scalar>(a: &Float, b: &Float) -> Result<Float> {
    let (ra, rb) = (a.rank(), b.rank());
    if ra < 2 || rb < 2 || a.dims()[ra - 1] != b.dims()[rb - 2] {
        return Err(mismatch(&format!("{:?}", a.dims()), &format!("{:?}", b.dims())));
    }
    let (m, k, n) = (a.dims()[ra - 2], a.dims()[ra - 1], b.dims()[rb - 1]);
    if rb == 2 && ra > 2 && a.is_contiguous() {
        let rows: usize = a.dims()[..ra - 1].iter().product();
        let mut shape = a.dims().to_vec();
        shape[ra - 1] = n;
        return Ok(typed::<T>(&a.reshape((rows, k))?, b)?.reshape(shape)?);
    }
    let batch = broadcast::fixed(&[&a.dims()[..ra - 2], &b.dims()[..rb - 2]])?;
    let shape = [batch.as_slice(), &[m, n]].concat();
    let elements = float::size(&shape)?;
    if elements == 0 || k == 0 {
        return float::tensor(vec![T::ZERO; elements], &shape, a.dtype());
    }
    let ((av, sa), (bv, sb)): ((Elements<T>, _), (Elements<T>, _)) = (float::strided(a)?, float::strided(b)?);
    let offsets = |dims: &[usize], strides: &[usize]| {
        let skip = batch.len() + 2 - dims.len();
        let steps: Vec<isize> = (0..batch.len())
            .map(|i| if i < skip || dims[i - skip] == 1 { 0 } else { strides[i - skip] as isize })
            .collect();
        let mut at = vec![0usize];
        for (d, s) in batch.iter().zip(steps) {
            at = at.iter().flat_map(|o| (0..*d).map(move |i| o + i * s as usize)).collect();
        }
        at
    };
    let (at_a, at_b) = (offsets(a.dims(), &sa), offsets(b.dims(), &sb));
    let out = batched(
        (m, n, k),
        |i| {
            (
                Matrix::strided(&av[at_a[i]..], m, k, sa[ra - 2], sa[ra - 1]),
                Matrix::strided(&bv[at_b[i]..], k, n, sb[rb - 2], sb[rb - 1]),
            )
        },
        elements / (m * n),
    );
    float::tensor(out, &shape, a.dtype())
}

fn mismatch(a: &str, b: &str) -> Error {
    Error::invalid("OP-SHAPE", "inner sizes of a matrix product differ").found(format!("{a} times {b}"))
}

fn same_type(a: &Fact, b: &Fact) -> Result<()> {
    if a.dtype == b.dtype {
        return Ok(());
    }
    Err(Error::invalid("OP-TYPE", "operands differ in type").found(format!("{} and {}", a.dtype, b.dtype)))
}

fn last_two_swapped(t: &Float) -> Result<Float> {
    let r = t.rank();
    Ok(t.transpose(r - 2, r - 1)?)
}

/// Output shape of a product with NumPy's rules for rank 1.
pub fn product_shape(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>> {
    if a.is_empty() || b.is_empty() {
        return Err(Error::invalid("OP-RANK", "a matrix product needs rank 1 or more"));
    }
    let one = [Dim::from(1i64)];
    let left = if a.len() == 1 { [&one, a].concat() } else { a.to_vec() };
    let right = if b.len() == 1 { [b, &one].concat() } else { b.to_vec() };
    let (la, lb) = (left.len(), right.len());
    if let (Some(x), Some(y)) = (left[la - 1].known(), right[lb - 2].known())
        && x != y
    {
        return Err(mismatch(&format!("{a:?}"), &format!("{b:?}")));
    }
    let mut out = broadcast::symbolic(&[&left[..la - 2], &right[..lb - 2]])?;
    if a.len() > 1 {
        out.push(left[la - 2].clone());
    }
    if b.len() > 1 {
        out.push(right[lb - 1].clone());
    }
    Ok(out)
}

/// Multiply-accumulates of a product: output elements times inner size.
pub fn product_macs(a: Option<&Fact>, output: &Fact) -> Option<Dim> {
    Some(output.elements()? * a?.shape.as_ref()?.last()?.clone())
}

/// How the axes of a product (inputs `a` and `b`, output 0) couple.
pub fn couple_product(a: (usize, &Fact), b: (usize, &Fact), out: &Fact, coupling: &mut Coupling) {
    let (Some(sa), Some(sb), Some(so)) = (&a.1.shape, &b.1.shape, &out.shape) else { return };
    let (ra, rb) = (sa.len(), sb.len());
    let (a, b) = (Port::In(a.0), Port::In(b.0));
    let inner_b = if rb == 1 { 0 } else { rb - 2 };
    coupling.same((a, ra - 1), (b, inner_b));
    let mut trailing = 0;
    if rb > 1 {
        trailing += 1;
        coupling.same((b, rb - 1), (Port::Out(0), so.len() - 1));
    }
    if ra > 1 {
        trailing += 1;
        coupling.same((a, ra - 2), (Port::Out(0), so.len() - trailing));
    }
    let batch = so.len() - trailing;
    for (port, shape) in [(a, sa), (b, sb)] {
        let own = shape.len().saturating_sub(2);
        for i in 0..own {
            let o = batch - own + i;
            if shape[i].is(1) && !so[o].is(1) {
                coupling.free.push((port, i));
            } else {
                coupling.same((port, i), (Port::Out(0), o));
            }
        }
    }
}

#[derive(Debug)]
struct MatMul;

impl MatMul {
    fn parse(_: &Attributes, _: i64) -> Result<Arc<dyn Operator>> {
        Ok(Arc::new(MatMul))
    }
}

/// Rank-1 operands as a row on the left, a column on the right.
fn promoted(a: &Float, b: &Float) -> Result<(Float, Float)> {
    let left = if a.rank() == 1 { a.unsqueeze(0)? } else { a.clone() };
    let right = if b.rank() == 1 { b.unsqueeze(1)? } else { b.clone() };
    Ok((left, right))
}

impl Operator for MatMul {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (a, b) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
        same_type(a, b)?;
        Ok(vec![match (&a.shape, &b.shape) {
            (Some(x), Some(y)) => Fact::new(a.dtype, product_shape(x, y)?),
            _ => Fact::unranked(a.dtype),
        }])
    }
    fn macs(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Option<Dim> {
        product_macs(*inputs.first()?, outputs.first()?)
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.remove(0);
        let (a, b) = promoted(super::input(inputs, 0)?.float()?, super::input(inputs, 1)?.float()?)?;
        Ok(vec![matmul(&a, &b)?.reshape(shape)?.into()])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let Some(dy) = &v.grads[0] else { return Ok(vec![None, None]) };
        let (a0, b0) = (super::input(v.inputs, 0)?.float()?, super::input(v.inputs, 1)?.float()?);
        let (a, b) = promoted(a0, b0)?;
        let mut dy = dy.clone();
        if a0.rank() == 1 {
            dy = dy.unsqueeze(dy.rank() - usize::from(b0.rank() > 1))?;
        }
        if b0.rank() == 1 {
            dy = dy.unsqueeze(dy.rank())?;
        }
        let da = match v.needs[0] {
            true => {
                let d = matmul(&dy, &last_two_swapped(&b)?)?;
                Some(broadcast::sum_to(&d, a.dims())?.reshape(a0.dims())?)
            }
            false => None,
        };
        let db = match v.needs[1] {
            true if b.rank() == 2 => {
                let (k, n) = b.dims2()?;
                let rows = |t: &Float, width: usize| -> Result<Float> {
                    Ok(t.reshape((t.elem_count() / width.max(1), width))?)
                };
                let d = matmul(&rows(&a, k)?.t()?, &rows(&dy, n)?)?;
                Some(d.reshape(b0.dims())?)
            }
            true => {
                let d = matmul(&last_two_swapped(&a)?, &dy)?;
                Some(broadcast::sum_to(&d, b.dims())?.reshape(b0.dims())?)
            }
            false => None,
        };
        Ok(vec![da, db])
    }
    fn contraction(&self, inputs: &[Option<&Fact>]) -> Option<Contraction> {
        let rank = |n: usize| inputs.get(n).copied().flatten().and_then(Fact::rank);
        let last = rank(0).filter(|r| *r >= 2 && rank(1) == Some(2))? - 1;
        Some(Contraction { data: (0, last), weight: (1, 0), features: 1, output: last, bias: None })
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling = Coupling::default();
        if let (Ok(a), Ok(b)) = (super::input(inputs, 0), super::input(inputs, 1)) {
            couple_product((0, a), (1, b), &outputs[0], &mut coupling);
        }
        coupling
    }
}

/// `alpha * op(A) op(B) + beta * C`.
#[derive(Debug)]
struct Gemm {
    alpha: f64,
    beta: f64,
    trans_a: bool,
    trans_b: bool,
}

impl Gemm {
    fn parse(attributes: &Attributes, _: i64) -> Result<Arc<dyn Operator>> {
        Ok(Arc::new(Gemm {
            alpha: f64::from(attributes.float("alpha", 1.0)?),
            beta: f64::from(attributes.float("beta", 1.0)?),
            trans_a: attributes.int("transA", 0)? != 0,
            trans_b: attributes.int("transB", 0)? != 0,
        }))
    }

    fn run<T: Scalar>(&self, a: &Float, b: &Float, c: Option<&Float>, shape: &[usize]) -> Result<Float> {
        let (a, b) =
            (if self.trans_a { a.t()? } else { a.clone() }, if self.trans_b { b.t()? } else { b.clone() });
        let ((m, k), n) = (a.dims2()?, shape[1]);
        let elements = float::size(shape)?;
        let start = match c {
            Some(c) if self.beta != 0.0 => {
                let mut start = elements_owned::<T>(&c.broadcast_as(shape)?)?;
                if self.beta != 1.0 {
                    let beta = T::of(self.beta);
                    start.iter_mut().for_each(|v| *v *= beta);
                }
                Some(start)
            }
            _ => None,
        };
        if elements == 0 || k == 0 {
            return float::tensor(start.unwrap_or_else(|| vec![T::ZERO; elements]), shape, a.dtype());
        }
        let ((av, sa), (bv, sb)): ((Elements<T>, _), (Elements<T>, _)) =
            (float::strided(&a)?, float::strided(&b)?);
        let (x, y) = (Matrix::strided(&av, m, k, sa[0], sa[1]), Matrix::strided(&bv, k, n, sb[0], sb[1]));
        let alpha = T::of(self.alpha);
        let out = match start {
            Some(mut out) => {
                product(alpha, x, y, &mut out, true, true);
                out
            }
            None => produced(alpha, x, y, true),
        };
        float::tensor(out, shape, a.dtype())
    }
}

fn elements_owned<T: Scalar>(t: &Float) -> Result<Vec<T>> {
    Ok(t.to_dtype(T::DTYPE)?.flatten_all()?.to_vec1::<T>()?)
}

impl Operator for Gemm {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (a, b) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
        same_type(a, b)?;
        let (Some(x), Some(y)) = (&a.shape, &b.shape) else { return Ok(vec![Fact::unranked(a.dtype)]) };
        if x.len() != 2 || y.len() != 2 {
            return Err(Error::invalid("OP-RANK", "Gemm needs matrices").found(format!("{x:?} and {y:?}")));
        }
        let flip = |s: &[Dim], t: bool| if t { vec![s[1].clone(), s[0].clone()] } else { s.to_vec() };
        let out = product_shape(&flip(x, self.trans_a), &flip(y, self.trans_b))?;
        if let Some(c) = inputs.get(2).copied().flatten().and_then(|c| c.shape.as_ref()) {
            let fits = c.len() <= 2
                && c.iter().rev().zip(out.iter().rev()).all(|(c, o)| {
                    c.is(1) || c.known().is_none() || o.known().is_none() || c.known() == o.known()
                });
            if !fits {
                return Err(Error::invalid("OP-BROADCAST", "C does not broadcast to the product")
                    .found(format!("{c:?}"))
                    .limit(format!("{out:?}")));
            }
        }
        Ok(vec![Fact::new(a.dtype, out)])
    }
    fn macs(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Option<Dim> {
        let inner = super::input(inputs, 0).ok()?.shape.as_ref()?.get(usize::from(!self.trans_a))?.clone();
        Some(outputs.first()?.elements()? * inner)
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.remove(0);
        let (a, b) = (super::input(inputs, 0)?.float()?, super::input(inputs, 1)?.float()?);
        let c = inputs.get(2).copied().flatten().map(Value::float).transpose()?;
        Ok(vec![real!(a.dtype(), T => self.run::<T>(a, b, c, &shape))?.into()])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let mut out = vec![None; v.inputs.len()];
        let Some(dy) = &v.grads[0] else { return Ok(out) };
        let scaled = |t: Float, by: f64| -> Result<Float> { Ok(if by == 1.0 { t } else { (t * by)? }) };
        if v.needs[0] {
            let b = super::input(v.inputs, 1)?.float()?;
            let b = if self.trans_b { b.t()? } else { b.clone() };
            let d = if self.trans_a { matmul(&b, &dy.t()?)? } else { matmul(dy, &b.t()?)? };
            out[0] = Some(scaled(d, self.alpha)?);
        }
        if v.needs[1] {
            let a = super::input(v.inputs, 0)?.float()?;
            let a = if self.trans_a { a.t()? } else { a.clone() };
            let d = if self.trans_b { matmul(&dy.t()?, &a)? } else { matmul(&a.t()?, dy)? };
            out[1] = Some(scaled(d, self.alpha)?);
        }
        if v.needs.get(2) == Some(&true) {
            let c = super::input(v.inputs, 2)?;
            out[2] = Some(scaled(broadcast::sum_to(dy, c.shape())?, self.beta)?);
        }
        Ok(out)
    }
    fn contraction(&self, inputs: &[Option<&Fact>]) -> Option<Contraction> {
        let (sum, features) = if self.trans_b { (1, 0) } else { (0, 1) };
        let bias = inputs.get(2).copied().flatten().is_some_and(|c| c.rank() == Some(1));
        let plain = !self.trans_a && self.alpha == 1.0 && (self.beta == 1.0 || !bias);
        plain.then_some(Contraction {
            data: (0, 1),
            weight: (1, sum),
            features,
            output: 1,
            bias: bias.then_some(2),
        })
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling = Coupling::default();
        let (a, b) = (Port::In(0), Port::In(1));
        let (ia, ma) = if self.trans_a { (0, 1) } else { (1, 0) };
        let (ib, nb) = if self.trans_b { (1, 0) } else { (0, 1) };
        coupling.same((a, ia), (b, ib));
        coupling.same((a, ma), (Port::Out(0), 0));
        coupling.same((b, nb), (Port::Out(0), 1));
        if let (Some(Some(c)), Some(out)) = (inputs.get(2), &outputs[0].shape)
            && let Some(shape) = &c.shape
        {
            for (axis, d) in shape.iter().enumerate() {
                let o = axis + 2 - shape.len().min(2);
                if d.is(1) && !out[o].is(1) {
                    coupling.free.push((Port::In(2), axis));
                } else {
                    coupling.same((Port::In(2), axis), (Port::Out(0), o));
                }
            }
        }
        coupling
    }
}
