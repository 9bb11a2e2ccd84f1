//! MatMulNBits of ONNX Runtime: a product with a weight of 2, 4 or 8 bits in blocks along the inner axis, each
//! with a scale and a zero point. The weight is spelled out and multiplied in the type of the data.

use super::float::{self, Float};
use super::{Attributes, Dim, Fact, Operator, Spec, Vjp, matmul};
use crate::error::{Error, Result};
use crate::kernels::packed::Bits;
use crate::tensor::{DType, Data, Value};
use rayon::prelude::*;
use std::sync::Arc;

/// Claims of this family.
pub const SPECS: &[Spec] = &[Spec {
    domain: "com.microsoft",
    name: "MatMulNBits",
    opsets: (1, 1),
    dtypes: &[DType::F32, DType::F16, DType::BF16],
    parse: |a, _| BlockProduct::parse(a),
}];

/// Inputs: data `[.., k]`; weight `[n, blocks, bytes of a block]`, the first element in the lowest bits; scales
/// `[n * blocks]`; optionally zero points, packed like the weight with each row of its own bytes, or of the
/// data's type and one a block; an order of groups (not supported); a bias `[n]`. Output `[.., n]`.
#[derive(Debug)]
struct BlockProduct {
    k: usize,
    n: usize,
    bits: Bits,
    block: usize,
}

/// What a weight is made of: `(levels - zeros) * scales`, the latter two one a block.
struct Parts {
    levels: Vec<u8>,
    scales: Vec<f64>,
    zeros: Vec<f64>,
}

impl BlockProduct {
    fn parse(a: &Attributes) -> Result<Arc<dyn Operator>> {
        let size = |name: &str| -> Result<usize> {
            let found = a.int(name, 0)?;
            usize::try_from(found).ok().filter(|n| *n > 0 && *n <= 1 << 30).ok_or_else(|| {
                Error::invalid("OP-ATTRIBUTE", "a size is missing or no count").field(name).found(found)
            })
        };
        let bits = a.int("bits", 4)?;
        let bits = Bits::of(bits).ok_or_else(|| {
            Error::unsupported("OP-BITS", "a weight of so many bits is not supported")
                .field("bits")
                .found(bits)
                .limit("2, 4 or 8")
        })?;
        let block = size("block_size")?;
        if !block.is_power_of_two() || block < 16 {
            return Err(Error::invalid("OP-ATTRIBUTE", "a block is a power of two from 16 on")
                .field("block_size")
                .found(block));
        }
        Ok(Arc::new(BlockProduct { k: size("K")?, n: size("N")?, bits, block }))
    }

    fn blocks(&self) -> usize {
        self.k.div_ceil(self.block)
    }

    fn sized(&self, slot: usize, found: usize, wanted: usize) -> Result<()> {
        if found == wanted {
            return Ok(());
        }
        Err(Error::invalid(
            "OP-SHAPE",
            "an input of MatMulNBits has another size than N, K and block_size ask for",
        )
        .field(format!("input[{slot}]"))
        .found(found)
        .limit(wanted))
    }

    /// Levels, scales and zero points.
    fn parts(&self, inputs: &[Option<&Value>]) -> Result<Parts> {
        let (n, k, block, blocks) = (self.n, self.k, self.block, self.blocks());
        let packed = super::input(inputs, 1)?.host()?.data()?;
        let Data::U8(packed) = &*packed else {
            return Err(Error::invalid("OP-TYPE", "the weight of MatMulNBits is of bytes").field("input[1]"));
        };
        let bytes = self.bits.bytes(block);
        self.sized(1, packed.len(), n * blocks * bytes)?;
        let scales = super::input(inputs, 2)?.to_tensor()?.to_f64s()?;
        self.sized(2, scales.len(), n * blocks)?;
        let mut levels = vec![0u8; n * k];
        levels.par_chunks_mut(k).zip(packed.par_chunks(blocks * bytes)).for_each(|(levels, packed)| {
            let blocks = levels.chunks_mut(block).zip(packed.chunks(bytes));
            blocks.for_each(|(levels, packed)| self.bits.unpack(packed, levels));
        });
        let zeros = self.zeros(inputs)?.unwrap_or_else(|| vec![self.bits.middle().into(); n * blocks]);
        Ok(Parts { levels, scales, zeros })
    }

    /// The block of an element of the weight.
    fn at(&self, i: usize) -> usize {
        i / self.k * self.blocks() + i % self.k / self.block
    }

    /// The weight `[n, k]` in the type of the data.
    fn weight(&self, inputs: &[Option<&Value>]) -> Result<Float> {
        let Parts { levels, scales, zeros } = self.parts(inputs)?;
        let dtype = super::input(inputs, 0)?.float()?.dtype();
        let one = |(i, q): (usize, &u8)| (f64::from(*q) - zeros[self.at(i)]) * scales[self.at(i)];
        let (all, shape) = (levels.par_iter().enumerate(), [self.n, self.k]);
        match dtype {
            candle_core::DType::F64 => float::tensor(all.map(one).collect::<Vec<f64>>(), &shape, dtype),
            _ => float::tensor(all.map(|p| one(p) as f32).collect::<Vec<f32>>(), &shape, dtype),
        }
    }

    /// One zero point a block, if there are any.
    fn zeros(&self, inputs: &[Option<&Value>]) -> Result<Option<Vec<f64>>> {
        let Some(zeros) = inputs.get(3).copied().flatten() else { return Ok(None) };
        let (n, blocks) = (self.n, self.blocks());
        if let Value::Float(_) = zeros {
            let zeros = zeros.to_tensor()?.to_f64s()?;
            self.sized(3, zeros.len(), n * blocks)?;
            return Ok(Some(zeros));
        }
        let data = zeros.host()?.data()?;
        let Data::U8(packed) = &*data else {
            return Err(
                Error::invalid("OP-TYPE", "zero points are of bytes or of the data's type").field("input[3]")
            );
        };
        let row = self.bits.bytes(blocks);
        self.sized(3, packed.len(), n * row)?;
        let mut levels = vec![0u8; row * self.bits.per_byte()];
        let mut out = Vec::with_capacity(n * blocks);
        for packed in packed.chunks_exact(row) {
            self.bits.unpack(packed, &mut levels);
            out.extend(levels[..blocks].iter().map(|q| f64::from(*q)));
        }
        Ok(Some(out))
    }
}

impl Operator for BlockProduct {
    fn infer(&self, inputs: &[Option<&Fact>]) -> Result<Vec<Fact>> {
        let a = super::input(inputs, 0)?;
        if inputs.get(4).copied().flatten().is_some() {
            return Err(Error::unsupported(
                "OP-ORDER",
                "MatMulNBits with an order of groups is not supported",
            )
            .field("input[4]"));
        }
        let Some(shape) = &a.shape else { return Ok(vec![Fact::unranked(a.dtype)]) };
        let Some((last, outer)) = shape.split_last() else {
            return Err(Error::invalid("OP-SHAPE", "a product of a scalar").field("input[0]"));
        };
        if last.known().is_some_and(|k| k != self.k as i64) {
            return Err(Error::invalid("OP-SHAPE", "the data's last axis is not K")
                .field("input[0]")
                .found(last)
                .limit(self.k));
        }
        let shape = outer.iter().cloned().chain([Dim::from(self.n as i64)]).collect();
        Ok(vec![Fact::new(a.dtype, shape)])
    }

    fn macs(&self, inputs: &[Option<&Fact>], outputs: &[Fact]) -> Option<Dim> {
        matmul::product_macs(*inputs.first()?, outputs.first()?)
    }

    fn eval(&self, inputs: &[Option<&Value>]) -> Result<Vec<Value>> {
        let shape = float::shapes(self, inputs)?.remove(0);
        let x = super::input(inputs, 0)?.float()?;
        let flat = x.reshape((x.elem_count() / self.k, self.k))?;
        let y = matmul::matmul(&flat, &self.weight(inputs)?.t()?)?;
        let y = match inputs.get(5).copied().flatten() {
            Some(bias) => y.broadcast_add(bias.float()?)?,
            None => y,
        };
        Ok(vec![y.reshape(shape)?.into()])
    }

    fn differentiable(&self) -> bool {
        true
    }

    /// Towards data, scales, zero points that are floats, and bias; levels are fixed.
    fn vjp(&self, v: &Vjp<'_>) -> Result<Vec<Option<Float>>> {
        let mut out = vec![None; v.inputs.len()];
        let Some(dy) = v.grads.first().cloned().flatten() else { return Ok(out) };
        let needs = |slot: usize| v.needs.get(slot) == Some(&true);
        let x = super::input(v.inputs, 0)?.float()?;
        let dy = dy.reshape((dy.elem_count() / self.n, self.n))?;
        if needs(0) {
            out[0] = Some(matmul::matmul(&dy, &self.weight(v.inputs)?)?.reshape(x.shape())?);
        }
        if needs(2) || needs(3) {
            let x = x.reshape((x.elem_count() / self.k, self.k))?;
            let dw = matmul::matmul(&dy.t()?, &x)?.to_dtype(candle_core::DType::F64)?;
            let dw = dw.flatten_all()?.to_vec1::<f64>()?;
            let Parts { levels, scales, zeros } = self.parts(v.inputs)?;
            let mut sums = [vec![0f64; scales.len()], vec![0f64; scales.len()]];
            for (i, (dw, q)) in dw.iter().zip(&levels).enumerate() {
                let at = self.at(i);
                sums[0][at] += dw * (f64::from(*q) - zeros[at]);
                sums[1][at] -= dw * scales[at];
            }
            for (slot, sums) in [2, 3].into_iter().zip(sums).filter(|(slot, _)| needs(*slot)) {
                let like = super::input(v.inputs, slot)?.float()?;
                out[slot] = Some(float::tensor(sums, like.dims(), like.dtype())?);
            }
        }
        if needs(5) {
            out[5] = Some(dy.sum(0)?);
        }
        Ok(out)
    }
}
