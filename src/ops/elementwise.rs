//! Element-wise operators.

use super::{Attributes, Coupling, Fact, Keeps, Operator, Spec, Vjp, broadcast};
use crate::error::{Error, Result};
use crate::tensor::{DType, Value};
use std::sync::Arc;

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec {
        domain: "",
        name: "Relu",
        opsets: (6, super::LAST_OPSET),
        dtypes: &[DType::F32, DType::F64],
        parse: Relu::parse,
    },
    Spec {
        domain: "",
        name: "Add",
        opsets: (7, super::LAST_OPSET),
        dtypes: &[DType::F32, DType::F64],
        parse: Add::parse,
    },
];

/// `max(x, 0)`.
#[derive(Debug)]
struct Relu;

impl Relu {
    fn parse(_: &Attributes, _: i64) -> Result<Arc<dyn Operator>> {
        Ok(Arc::new(Relu))
    }
}

impl Operator for Relu {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        Ok(vec![super::input(inputs, 0)?.without_value()])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        Ok(vec![super::input(inputs, 0)?.float()?.relu()?.into()])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn keeps(&self) -> Keeps {
        Keeps { inputs: false, outputs: true }
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<candle_core::Tensor>>> {
        let (Some(grad), y) = (&v.grads[0], super::input(v.outputs, 0)?.float()?) else {
            return Ok(vec![None]);
        };
        Ok(vec![Some((grad * y.gt(0f64)?.to_dtype(grad.dtype())?)?)])
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        broadcast::couple(inputs, &outputs[0])
    }
}

/// `a + b`.
#[derive(Debug)]
struct Add;

impl Add {
    fn parse(_: &Attributes, _: i64) -> Result<Arc<dyn Operator>> {
        Ok(Arc::new(Add))
    }
}

impl Operator for Add {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (a, b) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
        if a.dtype != b.dtype {
            return Err(Error::invalid("OP-TYPE", "operands differ in type")
                .found(format!("{} and {}", a.dtype, b.dtype)));
        }
        Ok(vec![match (&a.shape, &b.shape) {
            (Some(x), Some(y)) => Fact::new(a.dtype, broadcast::symbolic(&[x, y])?),
            _ => Fact::unranked(a.dtype),
        }])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let (a, b) = (super::input(inputs, 0)?.float()?, super::input(inputs, 1)?.float()?);
        Ok(vec![a.broadcast_add(b)?.into()])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<candle_core::Tensor>>> {
        let Some(grad) = &v.grads[0] else { return Ok(vec![None, None]) };
        (0..2)
            .map(|i| match v.needs[i] {
                true => broadcast::sum_to(grad, super::input(v.inputs, i)?.shape()).map(Some),
                false => Ok(None),
            })
            .collect()
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        broadcast::couple(inputs, &outputs[0])
    }
}
