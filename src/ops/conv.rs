//! Convolution and transposed convolution over one to three spatial axes.

use super::float::{self, Float, Scalar, real};
use super::spatial::{self, AutoPad, Axis, Spatial, three};
use super::{
    Attr, Attributes, Columns, Contraction, Coupling, Cut, Dim, Fact, Operator, Pattern, Port, Rewrite, Spec,
    Vjp,
};
use crate::error::{Error, Result};
use crate::kernels::conv::Conv as Kernel;
use crate::tensor::{DType, Value};
use std::sync::Arc;

const FLOATS: &[DType] = &[DType::F32, DType::F64, DType::F16, DType::BF16];

/// Most elements that are unfolded at once.
const COLUMNS: usize = 1 << 22;

/// Claims of this family.
pub const SPECS: &[Spec] = &[
    Spec { domain: "", name: "Conv", opsets: (1, super::LAST_OPSET), dtypes: FLOATS, parse: Conv::parse },
    Spec {
        domain: "",
        name: "ConvTranspose",
        opsets: (1, super::LAST_OPSET),
        dtypes: FLOATS,
        parse: ConvTranspose::parse,
    },
];

/// Shapes of x `[N, C, ...]` and w `[M, C/g, ...]`, checked for a convolution; the fixed kernel sizes.
pub(super) fn check_shapes<'a>(
    x: &'a [Dim],
    w: &'a [Dim],
    group: usize,
    transposed: bool,
) -> Result<Vec<usize>> {
    if x.len() < 3 || x.len() != w.len() {
        return Err(Error::invalid(
            "OP-RANK",
            "x and w of a convolution differ in rank or have no spatial axis",
        )
        .found(format!("{x:?} and {w:?}")));
    }
    let kernel: Option<Vec<usize>> = w[2..].iter().map(|d| d.size().filter(|k| *k > 0)).collect();
    let Some(kernel) = kernel else {
        return Err(Error::invalid(
            "OP-SHAPE",
            "the kernel sizes of a convolution must be known and positive",
        )
        .found(format!("{w:?}")));
    };
    let (channels, wanted) = match transposed {
        false => (x[1].size(), w[1].size().map(|c| c.saturating_mul(group))),
        true => (x[1].size(), w[0].size()),
    };
    if let (Some(a), Some(b)) = (channels, wanted)
        && a != b
    {
        return Err(Error::invalid("OP-SHAPE", "channels of x and w of a convolution differ")
            .field("input[1]")
            .found(format!("x has {a} channels, w takes {b} in {group} groups")));
    }
    if let Some(m) = w[0].size()
        && m % group != 0
    {
        return Err(Error::invalid("OP-SHAPE", "groups do not divide the channels of w")
            .found(format!("{m} channels, {group} groups")));
    }
    Ok(kernel)
}

pub(super) fn group(attributes: &Attributes) -> Result<usize> {
    let group = attributes.int("group", 1)?;
    usize::try_from(group).ok().filter(|g| (1..=1 << 24).contains(g)).ok_or_else(|| {
        Error::invalid("ATTR-RANGE", "attribute is out of range").field("attribute group").found(group)
    })
}

/// Group-wise coupling of convolutions: channels of x to output channels and parameters.
pub(super) fn couple_channels(
    inputs: &[Option<&Fact>],
    group: usize,
    x: usize,
    w: usize,
    per_output: &[usize],
    coupling: &mut Coupling,
) {
    let shape = |i: usize| inputs.get(i).copied().flatten().and_then(|f| f.shape.as_ref());
    let (Some(xs), Some(ws)) = (shape(x), shape(w)) else { return };
    coupling.same((Port::In(x), 0), (Port::Out(0), 0));
    coupling.reason = Some("spatial axes of a convolution keep their size".into());
    let present = |i: &&usize| inputs.get(**i).copied().flatten().is_some_and(|f| f.rank() == Some(1));
    if group == 1 {
        coupling.same((Port::In(x), 1), (Port::In(w), 1));
        coupling.same((Port::In(w), 0), (Port::Out(0), 1));
        for i in per_output.iter().filter(present) {
            coupling.same((Port::In(w), 0), (Port::In(*i), 0));
        }
        return;
    }
    let (Some(channels), Some(outputs)) = (xs[1].size(), ws[0].size()) else { return };
    let (from, to) = (Pattern::blocks(channels / group), Pattern::blocks(outputs / group));
    coupling.link((Port::In(x), 1), from, (Port::In(w), 0), to, group);
    coupling.link((Port::In(x), 1), from, (Port::Out(0), 1), to, group);
    for i in per_output.iter().filter(present) {
        coupling.link((Port::In(x), 1), from, (Port::In(*i), 0), to, group);
    }
    coupling.reason = Some("spatial axes and channels within a group keep their size".into());
}

/// The new `group` attribute after whole groups were cut.
pub(super) fn resize_groups(group: usize, x: usize, cut: &Cut) -> Rewrite {
    let mut rewrite = Rewrite::default();
    if group > 1
        && let Some((before, kept)) = cut.of(Port::In(x), 1)
    {
        let per = (before / group).max(1);
        rewrite.attributes.push(("group".into(), Attr::Int((kept.len() / per) as i64)));
    }
    rewrite
}

/// Kernel sizes of a convolution from fixed shapes.
pub(super) fn kernel_of(x: &[usize], w: &[usize], y: &[usize], group: usize, axes: &[Axis]) -> Kernel {
    let of = |f: fn(&Axis) -> usize, fill| three(&axes.iter().map(f).collect::<Vec<_>>(), fill);
    Kernel {
        batch: x[0],
        groups: group,
        inputs: w[1],
        outputs: w[0] / group,
        input: three(&x[2..], 1),
        output: three(&y[2..], 1),
        kernel: of(|a| a.kernel, 1),
        stride: of(|a| a.stride, 1),
        dilation: of(|a| a.dilation, 1),
        pad: of(|a| a.pad.0, 0),
    }
}

#[derive(Debug)]
struct Conv {
    spatial: Spatial,
    group: usize,
}

impl Conv {
    fn parse(attributes: &Attributes, _: i64) -> Result<Arc<dyn Operator>> {
        Ok(Arc::new(Conv { spatial: Spatial::parse(attributes)?, group: group(attributes)? }))
    }
    fn kernel(&self, x: &[usize], w: &[usize], y: &[usize]) -> Result<Kernel> {
        let axes = self.spatial.resolve(&w[2..], &x[2..], &y[2..])?;
        Ok(kernel_of(x, w, y, self.group, &axes))
    }
    fn forward<T: Scalar>(&self, inputs: &[Option<&Value>], shape: &[usize]) -> Result<Float> {
        let (x, w) = (super::input(inputs, 0)?.float()?, super::input(inputs, 1)?.float()?);
        let bias = float::optional::<T>(inputs, 2)?;
        let mut y = vec![T::ZERO; float::size(shape)?];
        self.kernel(x.dims(), w.dims(), shape)?.forward(
            &float::elements::<T>(x)?,
            &float::elements::<T>(w)?,
            bias.as_deref(),
            &mut y,
        );
        float::tensor(y, shape, x.dtype())
    }
    fn backward<T: Scalar>(&self, v: &Vjp<'_>, dy: &Float) -> Result<Vec<Option<Float>>> {
        let (x, w) = (super::input(v.inputs, 0)?.float()?, super::input(v.inputs, 1)?.float()?);
        let kernel = self.kernel(x.dims(), w.dims(), dy.dims())?;
        let grad = float::elements::<T>(dy)?;
        let mut out = vec![None; v.inputs.len()];
        if v.needs[0] {
            let mut dx = vec![T::ZERO; x.elem_count()];
            kernel.backward_input(&float::elements::<T>(w)?, &grad, &mut dx);
            out[0] = Some(float::tensor(dx, x.dims(), x.dtype())?);
        }
        if v.needs[1] {
            let mut dw = vec![T::ZERO; w.elem_count()];
            kernel.backward_weights(&float::elements::<T>(x)?, &grad, &mut dw);
            out[1] = Some(float::tensor(dw, w.dims(), w.dtype())?);
        }
        if v.needs.get(2) == Some(&true) {
            let mut db = vec![T::ZERO; w.dims()[0]];
            kernel.backward_bias(&grad, &mut db);
            out[2] = Some(float::tensor(db, &[w.dims()[0]], w.dtype())?);
        }
        Ok(out)
    }
}

fn check_bias(inputs: &[Option<&Fact>], channels: &Dim) -> Result<()> {
    let Some(b) = inputs.get(2).copied().flatten().and_then(|f| f.shape.as_ref()) else { return Ok(()) };
    let known = b.first().and_then(Dim::known).zip(channels.known());
    if b.len() != 1 || known.is_some_and(|(a, b)| a != b) {
        return Err(Error::invalid("OP-SHAPE", "the bias has not one element a channel")
            .field("input[2]")
            .found(format!("{b:?}"))
            .limit(format!("[{channels}]")));
    }
    Ok(())
}

impl Operator for Conv {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (x, w) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
        let (Some(xs), Some(ws)) = (&x.shape, &w.shape) else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let kernel = check_shapes(xs, ws, self.group, false)?;
        check_bias(inputs, &ws[0])?;
        let mut shape = vec![xs[0].clone(), ws[0].clone()];
        shape.extend(self.spatial.outputs(&kernel, &xs[2..])?);
        Ok(vec![Fact::new(x.dtype, shape)])
    }
    fn macs(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Option<Dim> {
        let w = super::input(inputs, 1).ok()?.shape.as_ref()?;
        Some(outputs.first()?.elements()? * Dim::product(&w[1..]))
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.remove(0);
        let dtype = super::input(inputs, 0)?.float()?.dtype();
        Ok(vec![real!(dtype, T => self.forward::<T>(inputs, &shape))?.into()])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        match &v.grads[0] {
            Some(dy) => real!(dy.dtype(), T => self.backward::<T>(v, dy)),
            None => Ok(vec![None; v.inputs.len()]),
        }
    }
    fn contraction(&self, inputs: &[Option<&Fact>]) -> Option<Contraction> {
        let bias = inputs.get(2).copied().flatten().is_some().then_some(2);
        (self.group == 1).then_some(Contraction {
            data: (0, 1),
            weight: (1, 1),
            features: 0,
            output: 1,
            bias,
        })
    }
    fn unfold(&self, inputs: &[Option<&Value>], see: &mut Columns<'_>) -> Result<bool> {
        let (x, w) = (super::input(inputs, 0)?.float()?, super::input(inputs, 1)?.float()?);
        let shape = float::shapes(self, inputs)?.remove(0);
        let kernel = self.kernel(x.dims(), w.dims(), &shape)?;
        let data = float::elements::<f32>(x)?;
        let (area, taps) = (kernel.area_out(), kernel.taps().max(1));
        let tile = (COLUMNS / taps).clamp(1, area.max(1));
        let mut columns = vec![0f32; taps * tile];
        for (row, x) in data.chunks((kernel.inputs * kernel.area_in()).max(1)).enumerate() {
            for from in (0..area).step_by(tile) {
                let to = (from + tile).min(area);
                let columns = &mut columns[..taps * (to - from)];
                kernel.im2col(x, columns, from, to);
                see(row, columns, to - from);
            }
        }
        Ok(true)
    }
    fn couple(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Coupling {
        let mut coupling = Coupling::default();
        couple_channels(inputs, self.group, 0, 1, &[2], &mut coupling);
        coupling
    }
    fn resize(&self, _: &[Option<&Fact>], _: &[Fact], cut: &Cut) -> Result<Rewrite> {
        Ok(resize_groups(self.group, 0, cut))
    }
}

#[derive(Debug)]
struct ConvTranspose {
    spatial: Spatial,
    group: usize,
    output_padding: Vec<usize>,
    output_shape: Vec<usize>,
}

impl ConvTranspose {
    fn parse(attributes: &Attributes, _: i64) -> Result<Arc<dyn Operator>> {
        Ok(Arc::new(ConvTranspose {
            spatial: Spatial::parse(attributes)?,
            group: group(attributes)?,
            output_padding: spatial::sizes(attributes, "output_padding", 0)?,
            output_shape: spatial::sizes(attributes, "output_shape", 0)?,
        }))
    }

    /// Output size of one axis, and the padding before it.
    fn axis(&self, i: usize, rank: usize, a: Axis, input: &Dim) -> Result<(Dim, Option<usize>)> {
        let extra = self.output_padding.get(i).copied().unwrap_or(0);
        let stride = Dim::from(a.stride);
        let full = (input.clone() - Dim::from(1i64)) * stride.clone() + Dim::from(extra + a.extent());
        let wanted = match (&self.output_shape[..], self.spatial.auto) {
            (shape, _) if shape.len() >= rank => Some(Dim::from(shape[shape.len() - rank + i])),
            (_, AutoPad::SameUpper | AutoPad::SameLower) => Some(input.clone() * stride),
            _ => None,
        };
        let Some(out) = wanted else {
            let out = full - Dim::from(a.pad.0 + a.pad.1);
            if out.known().is_some_and(|n| n < 0) {
                return Err(Error::invalid("OP-SHAPE", "padding removes more than the output has")
                    .found(format!("{out}")));
            }
            return Ok((out, Some(a.pad.0)));
        };
        let total = (full - out.clone()).known().map(|t| t.max(0) as usize);
        let before = total.map(|t| if self.spatial.auto == AutoPad::SameUpper { t / 2 } else { t - t / 2 });
        Ok((out, before))
    }

    fn spatial_of(
        &self,
        kernel: &[usize],
        input: &[Dim],
    ) -> Result<(Vec<Dim>, Vec<Option<usize>>, Vec<Axis>)> {
        let axes = self.spatial.axes(kernel)?;
        let rank = axes.len();
        for (name, v) in [("output_padding", &self.output_padding), ("output_shape", &self.output_shape)] {
            if !v.is_empty() && v.len() != rank && !(name == "output_shape" && v.len() == rank + 2) {
                return Err(Error::invalid("ATTR-LENGTH", "attribute has the wrong length")
                    .field(format!("attribute {name}"))
                    .found(v.len())
                    .limit(rank));
            }
        }
        let mut sizes = vec![];
        let mut pads = vec![];
        for (i, (a, d)) in axes.iter().zip(input).enumerate() {
            let (size, pad) = self.axis(i, rank, *a, d)?;
            sizes.push(size);
            pads.push(pad);
        }
        Ok((sizes, pads, axes))
    }

    /// The convolution whose input gradient this is.
    fn kernel(&self, x: &[usize], w: &[usize], y: &[usize]) -> Result<Kernel> {
        let input: Vec<Dim> = x[2..].iter().map(|d| Dim::from(*d)).collect();
        let (_, pads, mut axes) = self.spatial_of(&w[2..], &input)?;
        for (a, p) in axes.iter_mut().zip(pads) {
            a.pad.0 = p.unwrap_or(0);
        }
        Ok(kernel_of(y, w, x, self.group, &axes))
    }

    fn forward<T: Scalar>(&self, inputs: &[Option<&Value>], shape: &[usize]) -> Result<Float> {
        let (x, w) = (super::input(inputs, 0)?.float()?, super::input(inputs, 1)?.float()?);
        let mut y = vec![T::ZERO; float::size(shape)?];
        if let Some(bias) = float::optional::<T>(inputs, 2)? {
            let area: usize = shape[2..].iter().product();
            let channels = bias.len().max(1);
            y.chunks_exact_mut(area.max(1)).enumerate().for_each(|(i, y)| y.fill(bias[i % channels]));
        }
        let kernel = self.kernel(x.dims(), w.dims(), shape)?;
        kernel.backward_input(&float::elements::<T>(w)?, &float::elements::<T>(x)?, &mut y);
        float::tensor(y, shape, x.dtype())
    }

    fn backward<T: Scalar>(&self, v: &Vjp<'_>, dy: &Float) -> Result<Vec<Option<Float>>> {
        let (x, w) = (super::input(v.inputs, 0)?.float()?, super::input(v.inputs, 1)?.float()?);
        let kernel = self.kernel(x.dims(), w.dims(), dy.dims())?;
        let grad = float::elements::<T>(dy)?;
        let mut out = vec![None; v.inputs.len()];
        if v.needs[0] {
            let mut dx = vec![T::ZERO; x.elem_count()];
            kernel.forward(&grad, &float::elements::<T>(w)?, None, &mut dx);
            out[0] = Some(float::tensor(dx, x.dims(), x.dtype())?);
        }
        if v.needs[1] {
            let mut dw = vec![T::ZERO; w.elem_count()];
            kernel.backward_weights(&grad, &float::elements::<T>(x)?, &mut dw);
            out[1] = Some(float::tensor(dw, w.dims(), w.dtype())?);
        }
        if v.needs.get(2) == Some(&true) {
            let channels = dy.dims()[1];
            let area: usize = dy.dims()[2..].iter().product();
            let mut db = vec![T::ZERO; channels];
            for (i, line) in grad.chunks_exact(area.max(1)).enumerate() {
                db[i % channels] += crate::kernels::real::sum(line);
            }
            out[2] = Some(float::tensor(db, &[channels], w.dtype())?);
        }
        Ok(out)
    }
}

impl Operator for ConvTranspose {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let (x, w) = (super::input(inputs, 0)?, super::input(inputs, 1)?);
        let (Some(xs), Some(ws)) = (&x.shape, &w.shape) else { return Ok(vec![Fact::unranked(x.dtype)]) };
        let kernel = check_shapes(xs, ws, self.group, true)?;
        let channels = ws[1].clone() * Dim::from(self.group);
        check_bias(inputs, &channels)?;
        let mut shape = vec![xs[0].clone(), channels];
        shape.extend(self.spatial_of(&kernel, &xs[2..])?.0);
        Ok(vec![Fact::new(x.dtype, shape)])
    }
    fn macs(&self, inputs: &[Option<&Fact>], _: &[Fact]) -> Option<Dim> {
        let w = super::input(inputs, 1).ok()?.shape.as_ref()?;
        Some(super::input(inputs, 0).ok()?.elements()? * Dim::product(&w[1..]))
    }
    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.remove(0);
        let dtype = super::input(inputs, 0)?.float()?.dtype();
        Ok(vec![real!(dtype, T => self.forward::<T>(inputs, &shape))?.into()])
    }
    fn differentiable(&self) -> bool {
        true
    }
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        match &v.grads[0] {
            Some(dy) => real!(dy.dtype(), T => self.backward::<T>(v, dy)),
            None => Ok(vec![None; v.inputs.len()]),
        }
    }
    fn couple(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Coupling {
        let mut coupling = Coupling {
            reason: Some("spatial axes of a convolution keep their size".into()),
            ..Coupling::default()
        };
        let (x, w, b, y) = (Port::In(0), Port::In(1), Port::In(2), Port::Out(0));
        coupling.same((x, 0), (y, 0));
        let bias = inputs.get(2).copied().flatten().is_some();
        if self.group == 1 {
            coupling.same((x, 1), (w, 0));
            coupling.same((w, 1), (y, 1));
            if bias {
                coupling.same((w, 1), (b, 0));
            }
        } else if let (Some(Some(f)), Some(out)) = (inputs.first(), &outputs[0].shape)
            && let (Some(c), Some(m)) = (f.shape.as_ref().and_then(|s| s[1].size()), out[1].size())
        {
            let (from, to) = (Pattern::blocks(c / self.group), Pattern::blocks(m / self.group));
            coupling.link((x, 1), from, (w, 0), from, self.group);
            coupling.link((x, 1), from, (y, 1), to, self.group);
            if bias {
                coupling.link((x, 1), from, (b, 0), to, self.group);
            }
        }
        coupling
    }
    fn resize(&self, _: &[Option<&Fact>], _: &[Fact], cut: &Cut) -> Result<Rewrite> {
        Ok(resize_groups(self.group, 0, cut))
    }
}
