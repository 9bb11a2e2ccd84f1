//! Tensors that come from attributes or sizes alone: Constant, ConstantOfShape, Range, EyeLike.

use super::{Attr, Attributes, Barrier, Coupling, Cut, Dim, Fact, Keeps, Operator, Port, Rewrite, Spec, Vjp};
use super::{elements, float, float::Float, movement};
use crate::error::{Error, Result};
use crate::tensor::{DType, Data, Tensor, Value};
use std::sync::Arc;

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec::new("Constant", 1, DType::ALL, Constant::parse),
    Spec::new("ConstantOfShape", 9, &[DType::I64], |a, _| {
        let value = match a.tensor("value")? {
            Some(t) if t.len() == 1 => t.reshaped(vec![])?,
            Some(t) => {
                return Err(Error::invalid("ATTR-RANGE", "the value must be one element")
                    .field("attribute value")
                    .found(format!("{:?}", t.shape())));
            }
            None => Tensor::scalar(0f32),
        };
        Ok(Arc::new(ConstantOfShape { value }))
    }),
    Spec::new(
        "Range",
        11,
        &[DType::F32, DType::F64, DType::F16, DType::BF16, DType::I16, DType::I32, DType::I64],
        |_, _| Ok(Arc::new(Range)),
    ),
    Spec::new("EyeLike", 9, DType::ALL, |a, _| {
        let dtype = match a.opt_int("dtype")? {
            None => None,
            Some(n) => Some(i32::try_from(n).ok().and_then(DType::from_onnx).ok_or_else(|| {
                Error::invalid("ATTR-RANGE", "the element type is not known")
                    .field("attribute dtype")
                    .found(n)
            })?),
        };
        Ok(Arc::new(EyeLike { dtype, k: a.int("k", 0)? }))
    }),
];

/// A tensor that the node itself holds.
#[derive(Debug)]
struct Constant {
    /// Attribute that holds it.
    form: &'static str,
    /// `None` where it is sparse.
    tensor: Option<Tensor>,
}

const FORMS: &[&str] = &[
    "value",
    "value_float",
    "value_floats",
    "value_int",
    "value_ints",
    "value_string",
    "value_strings",
    "sparse_value",
];

impl Constant {
    fn parse(a: &Attributes, _: i64) -> Result<Arc<dyn Operator>> {
        let mut present = FORMS.iter().filter_map(|form| Some((*form, a.get(form)?)));
        let (Some((form, attribute)), None) = (present.next(), present.next()) else {
            return Err(Error::invalid(
                "ATTR-MISSING",
                "a constant needs one attribute that holds its value",
            )
            .limit(FORMS.join(", ")));
        };
        let wrong = || {
            Error::invalid("ATTR-TYPE", "attribute is of another type than its name says")
                .field(format!("attribute {form}"))
        };
        let strings = |shape, v: Vec<Vec<u8>>| Tensor::new(DType::Str, shape, Data::Str(v));
        let tensor = match (form, attribute) {
            ("sparse_value", _) => None,
            ("value", Attr::Tensor(t)) => Some(t.clone()),
            ("value_float", Attr::Float(v)) => Some(Tensor::scalar(*v)),
            ("value_floats", _) => {
                let v = a.floats(form)?.unwrap_or_default();
                Some(Tensor::from_vec(vec![v.len()], v)?)
            }
            ("value_int", Attr::Int(v)) => Some(Tensor::scalar(*v)),
            ("value_ints", _) => {
                let v = a.ints(form)?.unwrap_or_default();
                Some(Tensor::from_vec(vec![v.len()], v)?)
            }
            ("value_string", Attr::Str(v)) => Some(strings(vec![], vec![v.clone()])?),
            ("value_strings", Attr::Strs(v)) => Some(strings(vec![v.len()], v.clone())?),
            _ => return Err(wrong()),
        };
        Ok(Arc::new(Constant { form, tensor }))
    }

    fn tensor(&self) -> Result<&Tensor> {
        self.tensor.as_ref().ok_or_else(|| {
            Error::unsupported("OP-SPARSE", "sparse constants are not evaluated")
                .field("attribute sparse_value")
                .hint("store the constant as a dense tensor")
        })
    }
}

impl Operator for Constant {
    fn infer(&self, _: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        Ok(vec![Fact::constant(self.tensor()?)])
    }
    fn eval(&self, _: &[Option<&Value>]) -> Result<Vec<Value>> {
        Ok(vec![Value::load(self.tensor()?)?])
    }
    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Shapes)
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    /// Any axis may be cut: the tensor in the attribute is cut with it.
    fn couple(&self, _: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        let Some(tensor) = self.tensor.as_ref().filter(|t| !t.dtype().is_packed()) else {
            return Coupling {
                reason: Some("the constant is packed or sparse".into()),
                ..Coupling::default()
            };
        };
        let free = (0..tensor.shape().len()).map(|axis| (Port::Out(0), axis)).collect();
        Coupling { free, ..Coupling::default() }
    }
    fn resize(&self, _: &[Option<&Fact>], _: &[Fact], cut: &Cut) -> Result<Rewrite> {
        let mut tensor = self.tensor()?.clone();
        let mut changed = false;
        for axis in 0..tensor.shape().len() {
            if let Some((_, kept)) = cut.of(Port::Out(0), axis) {
                tensor = tensor.selected(axis, kept);
                changed = true;
            }
        }
        if !changed {
            return Ok(Rewrite::default());
        }
        let attribute = match self.form {
            "value_floats" => Attr::Floats(tensor.to_vec::<f32>()?),
            "value_ints" => Attr::Ints(tensor.to_vec::<i64>()?),
            "value_strings" => match &*tensor.data()? {
                Data::Str(v) => Attr::Strs(v.clone()),
                _ => return Err(Error::internal("VALUE", "a string tensor holds other elements")),
            },
            _ => Attr::Tensor(tensor),
        };
        Ok(Rewrite { attributes: vec![(self.form.into(), attribute)], ..Rewrite::default() })
    }
}

/// One element repeated to a shape.
#[derive(Debug)]
struct ConstantOfShape {
    /// Rank 0.
    value: Tensor,
}

impl Operator for ConstantOfShape {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let shape = super::input(inputs, 0)?;
        let dtype = self.value.dtype();
        let Some(dims) = &shape.dims else {
            let rank = shape.shape.as_ref().and_then(|s| s.first()).and_then(Dim::size).filter(|n| *n <= 64);
            return Ok(vec![match rank {
                Some(n) => Fact::new(dtype, (0..n).map(|_| Dim::unknown()).collect()),
                None => Fact::unranked(dtype),
            }]);
        };
        if let Some(d) = dims.iter().find(|d| d.known().is_some_and(|n| n < 0)) {
            return Err(Error::invalid("OP-SHAPE", "the shape holds a negative size").found(d));
        }
        Ok(vec![Fact::new(dtype, dims.clone())])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape: Option<Vec<usize>> =
            super::input(inputs, 0)?.ints()?.into_iter().map(|n| usize::try_from(n).ok()).collect();
        let shape = shape.ok_or_else(|| Error::invalid("OP-SHAPE", "the shape holds a negative size"))?;
        float::size(&shape)?;
        Ok(vec![movement::expanded(&Value::load(&self.value)?, &shape)?])
    }
    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Shapes)
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    /// All elements are equal, so that any may go where the shape can be rewritten.
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        if inputs.first().copied().flatten().and_then(Fact::ints).is_none() {
            return Coupling { reason: Some("the shape is computed".into()), ..Coupling::default() };
        }
        let free = (0..outputs[0].rank().unwrap_or(0)).map(|axis| (Port::Out(0), axis)).collect();
        Coupling { free, ..Coupling::default() }
    }
    fn resize(&self, inputs: &[Option<&Fact>], _: &[Fact], cut: &Cut) -> Result<Rewrite> {
        let Some(mut sizes) = super::input(inputs, 0)?.ints() else { return Ok(Rewrite::default()) };
        let before = sizes.clone();
        for (axis, n) in sizes.iter_mut().enumerate() {
            if let Some((_, kept)) = cut.of(Port::Out(0), axis) {
                *n = kept.len() as i64;
            }
        }
        if sizes == before {
            return Ok(Rewrite::default());
        }
        Ok(Rewrite { inputs: vec![(0, Tensor::from_vec(vec![sizes.len()], sizes)?)], ..Rewrite::default() })
    }
}

/// `start`, `start + delta`, ... before `limit`.
#[derive(Debug)]
struct Range;

impl Range {
    fn zero() -> Error {
        Error::invalid("OP-RANGE", "the step of a range is zero").field("input[2]")
    }

    /// Number of elements.
    fn count(dtype: DType, ends: &[Tensor]) -> Result<usize> {
        let not_finite = || Error::invalid("OP-RANGE", "a range needs finite numbers");
        if dtype.is_float() {
            let v: Vec<f64> = ends.iter().map(one_float).collect::<Result<_>>()?;
            if v[2] == 0.0 {
                return Err(Range::zero());
            }
            let n = ((v[1] - v[0]) / v[2]).ceil().max(0.0);
            if !n.is_finite() || v.iter().any(|x| !x.is_finite()) {
                return Err(not_finite());
            }
            return float::size(&[n as usize]);
        }
        let v: Vec<i128> = ends.iter().map(|t| Ok(i128::from(one_int(t)?))).collect::<Result<_>>()?;
        if v[2] == 0 {
            return Err(Range::zero());
        }
        let (span, step) = if v[2] > 0 { (v[1] - v[0], v[2]) } else { (v[0] - v[1], -v[2]) };
        let n = if span <= 0 { 0 } else { (span + step - 1) / step };
        float::size(&[usize::try_from(n).unwrap_or(usize::MAX)])
    }
}

fn one_float(t: &Tensor) -> Result<f64> {
    t.to_f64s()?.first().copied().ok_or_else(|| Error::invalid("OP-RANGE", "a range needs single numbers"))
}

fn one_int(t: &Tensor) -> Result<i64> {
    t.to_i64s()?.first().copied().ok_or_else(|| Error::invalid("OP-RANGE", "a range needs single numbers"))
}

impl Operator for Range {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let ends = [super::input(inputs, 0)?, super::input(inputs, 1)?, super::input(inputs, 2)?];
        let dtype = elements::common_type(inputs)?;
        let values: Option<Vec<Tensor>> = ends.iter().map(|f| f.value.clone()).collect();
        if let Some(values) = values {
            return Ok(vec![Fact::fixed(dtype, &[Range::count(dtype, &values)?])]);
        }
        let number = |f: &Fact| f.dims.as_ref().and_then(|d| d.first()).cloned();
        let n = match (number(ends[0]), number(ends[1]), ends[2].ints().and_then(|v| v.first().copied())) {
            (_, _, Some(0)) => return Err(Range::zero()),
            (Some(a), Some(b), Some(d)) if d > 0 => (b - a).ceil_div(&Dim::from(d)),
            (Some(a), Some(b), Some(d)) => (a - b).ceil_div(&Dim::from(d.saturating_neg())),
            _ => Dim::unknown(),
        };
        Ok(vec![Fact::new(dtype, vec![if n.known().is_some_and(|n| n < 0) { Dim::from(0i64) } else { n }])])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let ends: Vec<Tensor> =
            (0..3).map(|i| super::input(inputs, i)?.to_tensor()).collect::<Result<_>>()?;
        let dtype = ends[0].dtype();
        let n = Range::count(dtype, &ends)?;
        let tensor = if dtype.is_float() {
            let (start, step) = (one_float(&ends[0])?, one_float(&ends[2])?);
            Tensor::from_vec(vec![n], (0..n).map(|i| start + i as f64 * step).collect())?
        } else {
            let (start, step) = (one_int(&ends[0])?, one_int(&ends[2])?);
            let v = (0..n as i64).map(|i| start.wrapping_add(i.wrapping_mul(step))).collect();
            Tensor::from_vec(vec![n], v)?
        };
        Ok(vec![Value::load(&tensor.cast_to(dtype))?])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    /// Element `i` is `start + i * delta`; `limit` decides about their number alone.
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let mut out = vec![None; v.inputs.len()];
        let Some(grad) = &v.grads[0] else { return Ok(out) };
        let g: Vec<f64> = grad.to_dtype(candle_core::DType::F64)?.to_vec1()?;
        let slopes = [g.iter().sum(), 0.0, g.iter().enumerate().map(|(i, g)| i as f64 * g).sum::<f64>()];
        for (i, slope) in slopes.into_iter().enumerate().filter(|(i, _)| v.needs[*i]) {
            let like = super::input(v.inputs, i)?;
            if let Value::Float(x) = like {
                out[i] = Some(float::tensor(vec![slope], x.dims(), x.dtype())?);
            }
        }
        Ok(out)
    }
    fn couple(&self, _: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        Coupling { reason: Some("a range has no gaps".into()), ..Coupling::default() }
    }
}

/// Ones on a diagonal of a matrix shaped like the input.
#[derive(Debug)]
struct EyeLike {
    dtype: Option<DType>,
    k: i64,
}

impl Operator for EyeLike {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        let dtype = self.dtype.unwrap_or(x.dtype);
        if !(DType::NUMBERS.contains(&dtype) || dtype == DType::Bool) {
            return Err(elements::refused(dtype));
        }
        match x.shape.as_deref() {
            Some(s @ [_, _]) => Ok(vec![Fact::new(dtype, s.to_vec())]),
            Some(s) => Err(Error::invalid("OP-RANK", "a matrix is needed").found(s.len())),
            None => Ok(vec![Fact::new(dtype, vec![Dim::unknown(), Dim::unknown()])]),
        }
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.swap_remove(0);
        let mut eye = vec![0u8; shape[0] * shape[1]];
        for row in 0..shape[0] {
            let column = usize::try_from((row as i64).saturating_add(self.k));
            if let Some(column) = column.ok().filter(|c| *c < shape[1]) {
                eye[row * shape[1] + column] = 1;
            }
        }
        let dtype = self.dtype.unwrap_or(super::input(inputs, 0)?.dtype());
        Ok(vec![Value::load(&Tensor::from_vec(shape, eye)?.cast_to(dtype))?])
    }
    fn barrier(&self) -> Option<Barrier> {
        Some(Barrier::Shapes)
    }
    fn keeps(&self) -> Keeps {
        Keeps::default()
    }
    fn couple(&self, _: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        Coupling { reason: Some("the diagonal would shift".into()), ..Coupling::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(name: &str, a: Attributes) -> Arc<dyn Operator> {
        (crate::ops::lookup("", name, 17).unwrap().parse)(&a, 17).unwrap()
    }

    #[test]
    fn every_form_of_a_constant_holds_its_value_and_is_cut_in_place() {
        let cut = Cut { kept: vec![((Port::Out(0), 0), 3, vec![0, 2])] };
        let tensor = Tensor::from_vec(vec![3, 2], vec![1u8, 2, 3, 4, 5, 6]).unwrap();
        for (form, attribute, wanted) in [
            ("value", Attr::Tensor(tensor), "[1, 2, 5, 6]"),
            ("value_ints", Attr::Ints(vec![7, 8, 9]), "[7, 9]"),
            ("value_floats", Attr::Floats(vec![7., 8., 9.]), "[7.0, 9.0]"),
            ("value_strings", Attr::Strs(vec![vec![1], vec![2], vec![3]]), "[[1], [3]]"),
        ] {
            let before = op("Constant", Attributes::new().with(form, attribute));
            let fact = before.infer(&[]).unwrap().remove(0);
            let free = before.couple(&[], std::slice::from_ref(&fact)).free;
            assert_eq!(free.len(), fact.rank().unwrap());
            let mut rewrite = before.resize(&[], std::slice::from_ref(&fact), &cut).unwrap();
            let (name, attribute) = rewrite.attributes.remove(0);
            let after = op("Constant", Attributes::new().with(&name, attribute));
            let value = after.eval(&[]).unwrap().remove(0).to_tensor().unwrap();
            let text = format!("{:?}", value.data().unwrap());
            assert!(text.contains(wanted), "{form}: {text}");
        }
        let scalar = op("Constant", Attributes::new().with("value_float", Attr::Float(2.5)));
        assert_eq!(scalar.eval(&[]).unwrap()[0].shape(), [0usize; 0]);
        let both = Attributes::new().with("value_int", Attr::Int(1)).with("value_float", Attr::Float(1.0));
        for bad in [Attributes::new(), both, Attributes::new().with("value_int", Attr::Float(1.0))] {
            assert_eq!(Constant::parse(&bad, 17).unwrap_err().kind(), crate::error::Kind::Invalid);
        }
    }

    #[test]
    fn ranges_count_as_their_numbers_do_and_stay_symbolic() {
        let range = |v: [i64; 3]| {
            let ends: Vec<Value> = v.iter().map(|n| Tensor::scalar(*n).into()).collect();
            let refs: Vec<Option<&Value>> = ends.iter().map(Some).collect();
            Range.eval(&refs).map(|v| v[0].ints().unwrap())
        };
        assert_eq!(range([1, 8, 3]).unwrap(), [1, 4, 7]);
        assert_eq!(range([5, 0, -2]).unwrap(), [5, 3, 1]);
        assert_eq!(range([5, 5, 1]).unwrap(), [0i64; 0]);
        assert_eq!(range([0, 5, 0]).unwrap_err().code(), "OP-RANGE");
        assert_eq!(range([i64::MIN, i64::MAX, 1]).unwrap_err().kind(), crate::error::Kind::Limit);
        let n = Fact::of_dims(DType::I64, vec![Dim::symbol("n")], true);
        let known = |v: i64| Fact::of_dims(DType::I64, vec![Dim::from(v)], true);
        let out = Range.infer(&[Some(&known(0)), Some(&n), Some(&known(1))]).unwrap();
        assert_eq!(format!("{:?}", out[0].shape), "Some([n])");
    }

    #[test]
    fn a_filled_tensor_is_cut_by_its_shape_where_that_is_known() {
        let value = Tensor::from_vec(vec![1], vec![7i32]).unwrap();
        let fill = op("ConstantOfShape", Attributes::new().with("value", Attr::Tensor(value)));
        let shape = Fact::of_dims(DType::I64, vec![Dim::from(2i64), Dim::from(4i64)], false);
        let out = fill.infer(&[Some(&shape)]).unwrap();
        assert_eq!(fill.couple(&[Some(&shape)], &out).free.len(), 2);
        let cut = Cut { kept: vec![((Port::Out(0), 1), 4, vec![1, 3])] };
        let rewrite = fill.resize(&[Some(&shape)], &out, &cut).unwrap();
        assert_eq!(rewrite.inputs[0].1.to_i64s().unwrap(), [2, 2]);
        let input: Value = rewrite.inputs[0].1.clone().into();
        assert_eq!(fill.eval(&[Some(&input)]).unwrap()[0].ints().unwrap(), [7; 4]);
        let open = Fact::of_dims(DType::I64, vec![Dim::symbol("n"), Dim::from(4i64)], false);
        let out = fill.infer(&[Some(&open)]).unwrap();
        assert!(fill.couple(&[Some(&open)], &out).free.is_empty());
    }
}
