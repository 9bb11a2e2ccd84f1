//! Pooling over windows and over whole planes.

use super::float::{self, Float, Scalar, real};
use super::spatial::{Spatial, three};
use super::{Attributes, Coupling, Dim, Fact, Operator, Port, Spec, Vjp};
use crate::error::{Error, Result};
use crate::kernels::pool::Pool as Kernel;
use crate::tensor::{DType, Element, Tensor, Value};
use std::sync::Arc;

const FLOATS: &[DType] = &[DType::F32, DType::F64, DType::F16, DType::BF16];
const WITH_BYTES: &[DType] = &[DType::F32, DType::F64, DType::F16, DType::BF16, DType::I8, DType::U8];

macro_rules! spec {
    ($name:literal, $from:literal, $dtypes:expr, $parse:expr) => {
        Spec { domain: "", name: $name, opsets: ($from, super::LAST_OPSET), dtypes: $dtypes, parse: $parse }
    };
}

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    spec!("MaxPool", 1, WITH_BYTES, |a, _| window(a, Kind::Max)),
    spec!("AveragePool", 1, FLOATS, |a, _| window(a, Kind::Mean)),
    spec!("LpPool", 2, FLOATS, |a, _| window(a, Kind::Norm)),
    spec!("GlobalAveragePool", 1, FLOATS, |_, _| Ok(Arc::new(Global(Kind::Mean, 2.0)))),
    spec!("GlobalMaxPool", 1, FLOATS, |_, _| Ok(Arc::new(Global(Kind::Max, 2.0)))),
    spec!("GlobalLpPool", 2, FLOATS, |a, _| Ok(Arc::new(Global(Kind::Norm, power(a)?)))),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Max,
    Mean,
    Norm,
}

fn power(attributes: &Attributes) -> Result<f64> {
    match attributes.int("p", 2)? {
        p if p >= 1 => Ok(p as f64),
        p => Err(Error::invalid("ATTR-RANGE", "attribute p must be positive").found(p)),
    }
}

fn window(attributes: &Attributes, kind: Kind) -> Result<Arc<dyn Operator>> {
    let spatial = Spatial::parse(attributes)?;
    if spatial.kernel.is_empty() {
        return Err(Error::invalid("ATTR-MISSING", "a pool needs its window").field("attribute kernel_shape"));
    }
    Ok(Arc::new(Pool {
        include_pad: attributes.int("count_include_pad", 0)? != 0,
        column_major: attributes.int("storage_order", 0)? != 0,
        power: if kind == Kind::Norm { power(attributes)? } else { 2.0 },
        spatial,
        kind,
    }))
}

#[derive(Debug)]
struct Pool {
    kind: Kind,
    spatial: Spatial,
    include_pad: bool,
    column_major: bool,
    power: f64,
}

impl Pool {
    fn kernel(&self, x: &[usize], y: &[usize]) -> Result<Kernel> {
        let axes = self.spatial.resolve(&self.spatial.kernel, &x[2..], &y[2..])?;
        let of = |f: &dyn Fn(usize) -> usize| three(&(0..axes.len()).map(f).collect::<Vec<_>>(), 1);
        let pads: Vec<(usize, usize)> = axes.iter().map(|a| a.pad).collect();
        Ok(Kernel::new(
            three(&x[2..], 1),
            three(&y[2..], 1),
            of(&|i| axes[i].kernel),
            of(&|i| axes[i].stride),
            of(&|i| axes[i].dilation),
            three(&pads, (0, 0)),
        ))
    }

    fn forward<T: Scalar>(&self, x: &Float, shape: &[usize], places: Option<&mut [i64]>) -> Result<Float> {
        let mut y = vec![T::ZERO; float::size(shape)?];
        let (kernel, data) = (self.kernel(x.dims(), shape)?, float::elements::<T>(x)?);
        match self.kind {
            Kind::Max => kernel.max(&data, T::LOWEST, &mut y, places),
            Kind::Mean => kernel.mean(&data, self.include_pad, &mut y),
            Kind::Norm => kernel.norm(&data, self.power, &mut y),
        }
        float::tensor(y, shape, x.dtype())
    }

    fn host<T: Element + Default>(
        &self,
        x: &Tensor,
        lowest: T,
        shape: &[usize],
        places: Option<&mut [i64]>,
    ) -> Result<Value> {
        let mut y = vec![T::default(); float::size(shape)?];
        self.kernel(x.shape(), shape)?.max(&x.to_vec::<T>()?, lowest, &mut y, places);
        Ok(Tensor::from_vec(shape.to_vec(), y)?.into())
    }

    fn backward<T: Scalar>(&self, v: &Vjp<'_>, dy: &Float) -> Result<Vec<Option<Float>>> {
        let x = super::input(v.inputs, 0)?.float()?;
        let mut dx = vec![T::ZERO; x.elem_count()];
        let (kernel, grad) = (self.kernel(x.dims(), dy.dims())?, float::elements::<T>(dy)?);
        match self.kind {
            Kind::Max => kernel.max_backward(&float::elements::<T>(x)?, &grad, &mut dx),
            Kind::Mean => kernel.mean_backward(&grad, self.include_pad, &mut dx),
            Kind::Norm => kernel.norm_backward(&float::elements::<T>(x)?, self.power, &grad, &mut dx),
        }
        Ok(vec![Some(float::tensor(dx, x.dims(), x.dtype())?)])
    }

    /// Positions within a plane to positions within the whole tensor, as ONNX numbers them.
    fn globalise(&self, places: &mut [i64], x: &[usize], area_out: usize) {
        let [d, h, w] = three(&x[2..], 1);
        let area = (d * h * w) as i64;
        for (i, p) in places.iter_mut().enumerate() {
            let mut at = *p;
            if self.column_major {
                let (z, y, c) = (at / (h * w) as i64, at / w as i64 % h as i64, at % w as i64);
                at = match x.len() {
                    5 => (c * h as i64 + y) * d as i64 + z,
                    _ => c * h as i64 + y,
                };
            }
            *p = (i / area_out.max(1)) as i64 * area + at;
        }
    }
}

fn couple_planes(inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
    let mut coupling =
        Coupling { reason: Some("spatial axes of a pool keep their size".into()), ..Coupling::default() };
    if outputs.get(1).is_some_and(|f| f.shape.is_some()) {
        coupling.reason = Some("the places that a pool tells count over all channels".into());
        return coupling;
    }
    if inputs.first().copied().flatten().is_some_and(|f| f.shape.is_some()) {
        for axis in 0..2 {
            coupling.same((Port::In(0), axis), (Port::Out(0), axis));
        }
    }
    coupling
}

fn planes(x: &Fact) -> Result<Option<&Vec<Dim>>> {
    match &x.shape {
        Some(s) if s.len() < 3 => {
            Err(Error::invalid("OP-RANK", "a pool needs batch, channels and spatial axes")
                .found(format!("{s:?}")))
        }
        s => Ok(s.as_ref()),
    }
}

impl Operator for Pool {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        let mut out = match planes(x)? {
            None => vec![Fact::unranked(x.dtype)],
            Some(s) => {
                let mut shape = s[..2].to_vec();
                shape.extend(self.spatial.outputs(&self.spatial.kernel, &s[2..])?);
                vec![Fact::new(x.dtype, shape)]
            }
        };
        if self.kind == Kind::Max {
            let places = Fact { dtype: DType::I64, ..out[0].clone() };
            out.push(places);
        }
        Ok(out)
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.remove(0);
        let x = super::input(inputs, 0)?;
        let mut places = vec![0; if self.kind == Kind::Max { float::size(&shape)? } else { 0 }];
        let wanted = (self.kind == Kind::Max).then_some(places.as_mut_slice());
        let y = match (x, self.kind) {
            (Value::Host(t), Kind::Max) if t.dtype() == DType::I8 => self.host(t, i8::MIN, &shape, wanted)?,
            (Value::Host(t), Kind::Max) if t.dtype() == DType::U8 => self.host(t, 0u8, &shape, wanted)?,
            _ => {
                let x = x.float()?;
                real!(x.dtype(), T => self.forward::<T>(x, &shape, wanted))?.into()
            }
        };
        let mut out = vec![y];
        if self.kind == Kind::Max {
            self.globalise(&mut places, x.shape(), shape[2..].iter().product());
            out.push(Tensor::from_vec(shape, places)?.into());
        }
        Ok(out)
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        match &v.grads[0] {
            Some(dy) => real!(dy.dtype(), T => self.backward::<T>(v, dy)),
            None => Ok(vec![None]),
        }
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        couple_planes(inputs, outputs)
    }
}

/// One value a plane; the float is the power of the norm.
#[derive(Debug)]
struct Global(Kind, f64);

impl Global {
    fn kernel(x: &[usize]) -> Kernel {
        let area = x[2..].iter().product();
        Kernel::new([1, 1, area], [1; 3], [1, 1, area], [1; 3], [1; 3], [(0, 0); 3])
    }
    fn forward<T: Scalar>(&self, x: &Float, shape: &[usize]) -> Result<Float> {
        let mut y = vec![T::ZERO; float::size(shape)?];
        let (kernel, data) = (Self::kernel(x.dims()), float::elements::<T>(x)?);
        match self.0 {
            Kind::Max => kernel.max(&data, T::LOWEST, &mut y, None),
            Kind::Mean => kernel.mean(&data, false, &mut y),
            Kind::Norm => kernel.norm(&data, self.1, &mut y),
        }
        float::tensor(y, shape, x.dtype())
    }
    fn backward<T: Scalar>(&self, v: &Vjp<'_>, dy: &Float) -> Result<Vec<Option<Float>>> {
        let x = super::input(v.inputs, 0)?.float()?;
        let mut dx = vec![T::ZERO; x.elem_count()];
        let grad = float::elements::<T>(dy)?;
        let kernel = Self::kernel(x.dims());
        match self.0 {
            Kind::Max => kernel.max_backward(&float::elements::<T>(x)?, &grad, &mut dx),
            Kind::Mean => kernel.mean_backward(&grad, false, &mut dx),
            Kind::Norm => kernel.norm_backward(&float::elements::<T>(x)?, self.1, &grad, &mut dx),
        }
        Ok(vec![Some(float::tensor(dx, x.dims(), x.dtype())?)])
    }
}

impl Operator for Global {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let x = super::input(inputs, 0)?;
        Ok(vec![match planes(x)? {
            None => Fact::unranked(x.dtype),
            Some(s) => {
                if s[2..].iter().any(|d| d.is(0)) {
                    return Err(Error::invalid("OP-SHAPE", "a pool over nothing").found(format!("{s:?}")));
                }
                let mut shape = s[..2].to_vec();
                shape.resize(s.len(), Dim::from(1i64));
                Fact::new(x.dtype, shape)
            }
        }])
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.remove(0);
        let x = super::input(inputs, 0)?.float()?;
        Ok(vec![real!(x.dtype(), T => self.forward::<T>(x, &shape))?.into()])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        match &v.grads[0] {
            Some(dy) => real!(dy.dtype(), T => self.backward::<T>(v, dy)),
            None => Ok(vec![None]),
        }
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        couple_planes(inputs, outputs)
    }
}
